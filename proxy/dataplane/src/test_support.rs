//! What the tests of this crate share: every driver in turn, sockets with both
//! ends in hand, TLS peers on threads of their own, and a core with a small
//! configuration. Time is passed to the sweep; nothing here waits for the clock.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use handoff::{Counters, Drain, Published, lane};
use policy::upstream::{CredentialId, UpstreamLimits};
use policy::{
    AddressBook, Callers, Credential, Injection, Listener, OnEcho, OnUninspected, Route, Secret,
    ServerLimits, Snapshot, UnknownSni, Upstream, UpstreamId, VirtualHost,
};
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned,
    SupportedCipherSuite, SupportedProtocolVersion,
};
use wire::names::{NameSet, ParamSet};

use crate::buffer::FreeList;
use crate::core::Core;
use crate::ledger::Ledger;
use crate::rt::{self, Driver, DriverKind};
use crate::session::Handshake;
use crate::tick::Tick;
use crate::transport::{Filled, Transport};

/// A limit that no test reaches.
pub const LONG: Duration = Duration::from_secs(3600);

/// A test that takes this long hangs: it is ended, and fails.
const TEST_TIME_MAX: Duration = Duration::from_secs(60);

/// Runs a test on each driver that this machine grants.
pub fn on_each_driver(test: impl AsyncFn()) {
    on_each_kind(async |_| test().await);
}

/// The same, for a test that must know which one it is.
pub fn on_each_kind(test: impl AsyncFn(DriverKind)) {
    let mut kinds = vec![DriverKind::Epoll];
    kinds.extend(rt::choose(Driver::IoUring));
    for kind in kinds {
        rt::run(kind, Duration::ZERO, async {
            rt::timeout(TEST_TIME_MAX, test(kind))
                .await
                .unwrap_or_else(|| panic!("the test hangs on {kind:?}"));
        })
        .expect("a driver that was chosen runs");
    }
}

/// Waits until a condition that something else brings about holds.
pub async fn until(condition: impl Fn() -> bool) {
    while !condition() {
        rt::sleep(Duration::from_millis(1)).await;
    }
}

/// What a thread returns, while this one's tasks go on.
pub async fn joined<T>(thread: JoinHandle<T>) -> T {
    until(|| thread.is_finished()).await;
    match thread.join() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// A clock and buffers, without the rest of a core.
#[derive(Clone)]
pub struct Bench {
    pub tick: Rc<Tick>,
    pub buffers: Rc<FreeList>,
}

impl Bench {
    pub fn new() -> Self {
        Self {
            tick: Tick::new(),
            buffers: Rc::default(),
        }
    }

    /// A connected socket in clear text, and its other end.
    pub async fn socket(&self) -> (Transport, TcpStream) {
        let listener = listener();
        let socket = rt::connect(listener.local_addr().expect("it is bound"))
            .await
            .expect("loopback connects");
        let (peer, _) = listener.accept().expect("it is connected");
        (
            Transport::new(socket, &self.tick, &self.buffers),
            patient(peer),
        )
    }

    /// A TLS client's side of a connection, and the server's.
    pub async fn client(&self) -> (Transport, ServerPeer) {
        let (mut ours, theirs) = self.socket().await;
        let theirs = std::thread::spawn(move || accept_tls(theirs, &IDENTITY.server(&[])));
        let handshake = Handshake::client(Arc::new(IDENTITY.client()), IDENTITY.name());
        let handshake = handshake.expect("a good name");
        ours.handshake(handshake)
            .await
            .expect("the peer is trusted");
        (ours, joined(theirs).await)
    }
}

/// A peer that speaks TLS as a server, blocking.
pub type ServerPeer = StreamOwned<ServerConnection, TcpStream>;

/// A peer that speaks TLS as a client, blocking.
pub type ClientPeer = StreamOwned<ClientConnection, TcpStream>;

/// A socket that listens on a free port of loopback.
pub fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").expect("loopback has free ports")
}

/// A peer's socket that fails rather than blocks for ever.
fn patient(stream: TcpStream) -> TcpStream {
    stream.set_nodelay(true).expect("a TCP socket");
    stream
        .set_read_timeout(Some(TEST_TIME_MAX))
        .expect("a TCP socket");
    stream
        .set_write_timeout(Some(TEST_TIME_MAX))
        .expect("a TCP socket");
    stream
}

/// Completes the server's side of a handshake.
pub fn accept_tls(stream: TcpStream, config: &ServerConfig) -> ServerPeer {
    let session = ServerConnection::new(Arc::new(config.clone())).expect("a good configuration");
    let mut peer = StreamOwned::new(session, stream);
    while peer.conn.is_handshaking() {
        peer.conn
            .complete_io(&mut peer.sock)
            .expect("the handshake succeeds");
    }
    peer
}

/// What has arrived at a peer and was not read.
pub fn arrived(peer: &mut TcpStream) -> Vec<u8> {
    let mut all = Vec::new();
    peer.set_nonblocking(true).expect("a TCP socket");
    // Nothing more for now is no error here.
    let _ = peer.read_to_end(&mut all);
    peer.set_nonblocking(false).expect("a TCP socket");
    all
}

/// Runs what may block on another thread, while this one's tasks go on: on a ring
/// even a socket is closed by an operation of its own.
pub async fn elsewhere<T: Send + 'static>(act: impl FnOnce() -> T + Send + 'static) -> T {
    joined(std::thread::spawn(act)).await
}

/// Everything that the peer sends until it says goodbye, or its error.
pub fn read_all(peer: &mut impl Read) -> std::io::Result<Vec<u8>> {
    let mut all = Vec::new();
    peer.read_to_end(&mut all).map(|_| all)
}

/// As many bytes as are expected.
pub fn read_exactly(peer: &mut impl Read, length: usize) -> Vec<u8> {
    let mut all = vec![0; length];
    peer.read_exact(&mut all).expect("so many bytes come");
    all
}

/// Whether the other end of a peer's socket was cut or closed: nothing more comes.
pub fn is_cut(peer: &mut TcpStream) -> bool {
    match peer.read(&mut [0]) {
        Ok(read) => read == 0,
        Err(error) => error.kind() == ErrorKind::ConnectionReset,
    }
}

/// Whether a peer's socket is as it was: nothing came, and it is not closed.
pub fn is_quiet(peer: &TcpStream) -> bool {
    peer.set_nonblocking(true).expect("a TCP socket");
    let peeked = peer.peek(&mut [0]);
    peer.set_nonblocking(false).expect("a TCP socket");
    peeked.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
}

/// Receives until `length` bytes are there.
pub async fn receive(from: &mut Transport, length: usize) -> Vec<u8> {
    let mut all = Vec::new();
    while all.len() < length {
        let mut incoming = from.incoming();
        assert_eq!(incoming.fill(LONG).await.expect("it comes"), Filled::Data);
        incoming.take(|chunk| {
            let used = chunk.len().min(length - all.len());
            all.extend_from_slice(&chunk[..used]);
            (used, ())
        });
    }
    all
}

/// Sends all of `bytes`.
pub async fn send(to: &mut Transport, bytes: &[u8]) {
    let mut outgoing = to.outgoing();
    outgoing.write(&[bytes]).expect("the session is good");
    outgoing.flush(LONG).await.expect("the peer takes it");
}

/// Bytes in which a gap or a swap would show; they repeat after 64256.
pub fn pattern(length: usize) -> Vec<u8> {
    static PERIOD: LazyLock<Vec<u8>> =
        LazyLock::new(|| (0..251 * 256).map(|at| (at * 7 + at / 251) as u8).collect());
    let mut all = PERIOD.repeat(length.div_ceil(PERIOD.len()));
    all.truncate(length);
    all
}

/// A name with its certificate.
pub struct Identity {
    certificate: rcgen::CertifiedKey<rcgen::KeyPair>,
}

/// `api.example.com`.
pub static IDENTITY: LazyLock<Identity> = LazyLock::new(Identity::new);

/// The same name with a certificate that nobody trusts.
pub static IMPOSTOR: LazyLock<Identity> = LazyLock::new(Identity::new);

/// The host that is served, and that upstreams have.
pub const HOST: &str = "api.example.com";

impl Identity {
    fn new() -> Self {
        Self {
            certificate: rcgen::generate_simple_self_signed([HOST.to_owned()])
                .expect("a key and a certificate"),
        }
    }

    pub fn name(&self) -> ServerName<'static> {
        ServerName::try_from(HOST).expect("a host name")
    }

    /// A server that shows the certificate and speaks these protocols.
    pub fn server(&self, alpn: &[&str]) -> ServerConfig {
        let key = PrivateKeyDer::Pkcs8(self.certificate.signing_key.serialize_der().into());
        let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .expect("the provider's own versions")
            .with_no_client_auth()
            .with_single_cert(vec![self.certificate.cert.der().clone()], key)
            .expect("the key is the certificate's");
        config.enable_secret_extraction = true;
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        config
    }

    /// A client that trusts the certificate and nothing else.
    pub fn client(&self) -> ClientConfig {
        self.client_of(rustls::ALL_VERSIONS)
    }

    /// The same, with this cipher suite only, and so with its version.
    pub fn client_with(&self, suite: SupportedCipherSuite) -> ClientConfig {
        let provider = CryptoProvider {
            cipher_suites: vec![suite],
            ..default_provider()
        };
        self.client_by(provider, &[suite.version()])
    }

    /// The same, with these versions of TLS only.
    pub fn client_of(&self, versions: &[&'static SupportedProtocolVersion]) -> ClientConfig {
        self.client_by(default_provider(), versions)
    }

    fn client_by(
        &self,
        provider: CryptoProvider,
        versions: &[&'static SupportedProtocolVersion],
    ) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots
            .add(self.certificate.cert.der().clone())
            .expect("a certificate");
        let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(versions)
            .expect("the provider knows them")
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.enable_secret_extraction = true;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config
    }
}

/// An upstream that listens, and whose connections a thread serves: each is shaken
/// hands with and then held until it is closed from here.
pub struct Origin {
    pub address: SocketAddr,
    /// One entry per handshake that was completed.
    accepted: mpsc::Receiver<TcpStream>,
    ended: Arc<AtomicBool>,
}

impl Origin {
    pub fn start(identity: &'static Identity) -> Self {
        let listener = listener();
        let address = listener.local_addr().expect("it is bound");
        let (sender, accepted) = mpsc::channel();
        let ended = Arc::new(AtomicBool::new(false));
        let is_ended = Arc::clone(&ended);
        let config = Arc::new(identity.server(&["http/1.1"]));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if is_ended.load(Ordering::Relaxed) {
                    break;
                }
                let (config, sender) = (Arc::clone(&config), sender.clone());
                std::thread::spawn(move || hold(patient(stream), config, &sender));
            }
        });
        Self {
            address,
            accepted,
            ended,
        }
    }

    /// The next connection that was accepted. Closing it needs no goodbye.
    pub async fn next(&self) -> Accepted {
        loop {
            match self.accepted.try_recv() {
                Ok(stream) => return Accepted(stream),
                Err(_) => rt::sleep(Duration::from_millis(1)).await,
            }
        }
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(self.address);
    }
}

/// Completes a handshake, and holds the connection until the other end closes it.
fn hold(mut stream: TcpStream, config: Arc<ServerConfig>, accepted: &mpsc::Sender<TcpStream>) {
    let mut session = ServerConnection::new(config).expect("a good configuration");
    while session.is_handshaking() || session.wants_write() {
        if session.complete_io(&mut stream).is_err() {
            return;
        }
    }
    let handle = stream.try_clone().expect("there are descriptors left");
    if accepted.send(handle).is_ok() {
        let _ = stream.read(&mut [0]);
    }
}

/// An upstream's end of a connection.
pub struct Accepted(TcpStream);

impl Accepted {
    /// Closes it, as a server does with one that was idle for too long.
    pub fn close(self) {
        self.0.shutdown(Shutdown::Both).expect("it was open");
    }

    /// Sends bytes that nobody has asked for.
    pub fn intrude(&mut self) {
        self.0.write_all(b"not a TLS record").expect("it is open");
    }
}

/// A port of loopback that is taken, and where nobody listens. It is bound, since
/// the kernel lends the port of a connected socket out a second time.
pub struct Refusing {
    _held: OwnedFd,
    pub address: SocketAddr,
}

impl Refusing {
    pub fn new() -> Self {
        use nix::sys::socket as sys;
        let held = sys::socket(
            sys::AddressFamily::Inet,
            sys::SockType::Stream,
            sys::SockFlag::SOCK_CLOEXEC,
            None,
        )
        .expect("there are descriptors left");
        sys::bind(held.as_raw_fd(), &sys::SockaddrIn::new(127, 0, 0, 1, 0))
            .expect("loopback has free ports");
        let bound: sys::SockaddrIn = sys::getsockname(held.as_raw_fd()).expect("it is bound");
        Self {
            address: SocketAddr::from((bound.ip(), bound.port())),
            _held: held,
        }
    }
}

/// An address that never answers: its queue is full, and nobody accepts.
pub struct Unanswering {
    _held: (TcpListener, Vec<TcpStream>),
    pub address: SocketAddr,
}

impl Unanswering {
    pub fn new() -> Self {
        let listener = listener();
        let address = listener.local_addr().expect("it is bound");
        let none = nix::sys::socket::Backlog::new(0).expect("a good length");
        nix::sys::socket::listen(&listener, none).expect("it listens");
        let mut queued = Vec::new();
        while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(20)) {
            queued.push(stream);
        }
        Self {
            _held: (listener, queued),
            address,
        }
    }
}

/// The upstream that the core's one route leads to.
pub fn upstream(number: u64, addresses: &[SocketAddr], limits: UpstreamLimits) -> Arc<Upstream> {
    Arc::new(Upstream {
        id: UpstreamId(number),
        name: "mail".into(),
        host: HOST.into(),
        tls_name: IDENTITY.name(),
        tls: Arc::new(IDENTITY.client()),
        is_hub: false,
        addresses: addresses.into(),
        limits,
    })
}

/// The key that the core's one route writes.
pub const KEY: &str = "SG.real-key-0123456789";

/// A credential with that key.
pub fn credential() -> Credential {
    Credential::new(
        "mail",
        "v7",
        Injection::Bearer,
        &Secret::new(KEY.as_bytes().to_vec()),
    )
    .expect("a good key")
}

/// One host with one route, on a TLS listener `main` and a clear-text one `clear`.
pub fn snapshot(upstream: Arc<Upstream>) -> Snapshot {
    let route = Route {
        name: "mail".into(),
        path: b"/"[..].into(),
        methods: Vec::new(),
        callers: Callers::Open,
        denied: Vec::new(),
        upstream,
        credential: Some((CredentialId(1), Arc::new(credential()))),
        further: Vec::new(),
        upstream_path: None,
        strip_fields: NameSet::new(["authorization"]),
        strip_params: ParamSet::default(),
        keep_params: ParamSet::default(),
        strip_cookies: false,
        forwarding: None,
        strip_response_fields: NameSet::default(),
        upgrades: Vec::new(),
        refused: Vec::new(),
        audit_required: true,
        retry_with_idempotency_key: false,
        body_bytes_max: u64::MAX,
        response_head_timeout: None,
        on_echo: OnEcho::Redact,
        on_uninspected: OnUninspected::Refuse,
    };
    let host = VirtualHost::new(
        HOST,
        Vec::new(),
        Some(Arc::new(IDENTITY.server(&["http/1.1"]))),
        vec![route],
    );
    let listener = |name: &str, tls| Listener {
        name: name.into(),
        addresses: Vec::new(),
        tls,
        proxies: Vec::new(),
        unknown_sni: UnknownSni::Refuse,
    };
    Snapshot::new(
        3,
        vec![listener("main", true), listener("clear", false)],
        vec![host],
        ServerLimits::default(),
        "clv-test",
    )
    .expect("one host")
}

/// A core of its own, and the other end of its audit lane.
pub fn core(upstream: Arc<Upstream>) -> (Rc<Core>, Drain) {
    let counters = Arc::new(Counters::default());
    let (lane, drain) = lane();
    let core = Core::new(
        0,
        Arc::clone(&counters),
        Published::new(Arc::new(snapshot(upstream))).reader(),
        Published::new(Arc::new(AddressBook::default())).reader(),
        Ledger::new(lane, counters),
        0x0123_4567_89ab_cdef,
    );
    (core, drain)
}

/// A core whose upstream is never asked.
pub fn idle_core() -> (Rc<Core>, Drain) {
    core(upstream(1, &[], UpstreamLimits::default()))
}
