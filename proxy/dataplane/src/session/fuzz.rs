//! What must hold of [`Handshake`](super::Handshake) and [`Session`](super::Session) for every
//! input.
//!
//! A session is compared with a plain reading of what a peer with the right keys sent it, which may
//! be anything that such a peer can send; and with what somebody without them can. What it lacks:
//! resumption, client certificates, and a peer that is not ours (the unit tests have rustls's).

use std::sync::LazyLock;

use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{cipher_suite as suites, default_provider};
use rustls::pki_types::PrivateKeyDer;
use rustls::{RootCertStore, SupportedProtocolVersion};

use super::*;
use crate::fuzz::Input;

/// Every way of protecting a record.
const SUITES: [SupportedCipherSuite; 6] = [
    suites::TLS13_AES_128_GCM_SHA256,
    suites::TLS13_AES_256_GCM_SHA384,
    suites::TLS13_CHACHA20_POLY1305_SHA256,
    suites::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    suites::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    suites::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
];

const HOST: &str = "api.example.com";

/// Bytes that one side says in a handshake at most, as long as it does not begin to babble.
const FLIGHT_BYTES_MAX: usize = 16 * 1024;

/// Steps of one input at most; the rest of it is not looked at.
const STEPS_MAX: usize = 200;

/// A server's configuration, and a client's for each suite.
struct Configurations {
    server: Arc<ServerConfig>,
    clients: Vec<Arc<ClientConfig>>,
}

static CONFIGURATIONS: LazyLock<Configurations> = LazyLock::new(|| {
    let made = rcgen::generate_simple_self_signed([HOST.to_owned()]).expect("a certificate");
    let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).expect("a certificate");
    let mut server = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider's own versions")
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .expect("the key is the certificate's");
    server.enable_secret_extraction = true;
    let client = |suite: SupportedCipherSuite| {
        let provider = CryptoProvider {
            cipher_suites: vec![suite],
            ..default_provider()
        };
        let versions: &[&'static SupportedProtocolVersion] = &[suite.version()];
        let mut client = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(versions)
            .expect("the suite's own version")
            .with_root_certificates(roots.clone())
            .with_no_client_auth();
        client.enable_secret_extraction = true;
        client.resumption = rustls::client::Resumption::disabled();
        Arc::new(client)
    };
    Configurations {
        server: Arc::new(server),
        clients: SUITES.map(client).into(),
    }
});

/// One end of a connection whose handshake may be under way.
struct End {
    handshake: Option<Handshake>,
    /// What the other end said and this one has not used.
    inbox: Vec<u8>,
    /// Set when the handshake is over.
    session: Option<Session>,
}

impl End {
    fn client(suite: usize) -> Self {
        let name = ServerName::try_from(HOST).expect("a host name");
        let config = Arc::clone(&CONFIGURATIONS.clients[suite]);
        Self::of(Handshake::client(config, name))
    }

    fn server() -> Self {
        Self::of(Handshake::server(Arc::clone(&CONFIGURATIONS.server)))
    }

    fn of(handshake: Result<Handshake, Error>) -> Self {
        Self {
            handshake: Some(handshake.expect("a good configuration")),
            inbox: Vec::new(),
            session: None,
        }
    }

    /// Goes as far as the inbox allows, and says what there is to say. An error ends it.
    fn advance(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        let Some(handshake) = &mut self.handshake else {
            return out;
        };
        let (used, progress) = handshake.advance(&mut self.inbox, &mut out);
        assert!(used <= self.inbox.len(), "{used} of {}", self.inbox.len());
        assert!(out.len() <= FLIGHT_BYTES_MAX, "{} bytes", out.len());
        assert_records(&out);
        self.inbox.drain(..used);
        match progress {
            Ok(Progress::Waits) => {
                let unseen = &self.inbox[handshake.seen..];
                let whole =
                    record::length(unseen).expect("rustls is asked about what is no record");
                assert!(
                    whole.is_none_or(|length| length > unseen.len()),
                    "a record is left"
                );
            }
            Ok(Progress::Done) => {
                let handshake = self.handshake.take().expect("it is there");
                self.session = Some(handshake.into_session().expect("it is over"));
            }
            Err(_) => self.handshake = None,
        }
        out
    }
}

/// What is said is whole records.
fn assert_records(mut said: &[u8]) {
    while !said.is_empty() {
        let length = record::length(said).expect("a header");
        let length = length.filter(|&length| length <= said.len());
        said = &said[length.expect("a whole record")..];
    }
}

/// A handshake ends as it should, ends with an error, or waits: it does not panic, use what it was
/// not given, leave a record lying, or end for a peer without a key.
///
/// The input: whether a client or a server is tested, whether its peer is genuine, the suite, how the
/// bytes are cut; for a genuine peer, which of its bytes is changed (two bytes) and how; for any other,
/// the bytes.
pub fn handshake(data: &[u8]) {
    let mut input = Input::new(data);
    let (is_client, is_genuine) = (input.pick(&[true, false]), input.pick(&[true, false]));
    let suite = usize::from(input.byte()) % SUITES.len();
    let piece = 1 + 8 * usize::from(input.byte());
    let (mut ours, mut theirs) = (End::client(suite), End::server());
    if !is_client {
        std::mem::swap(&mut ours, &mut theirs);
    }
    if is_genuine {
        let (at, with) = (input.number(), input.byte());
        shake(&mut ours, &mut theirs, piece, at, with);
        return;
    }
    ours.advance();
    for piece in input.rest().chunks(piece) {
        ours.inbox.extend_from_slice(piece);
        ours.advance();
        assert!(ours.session.is_none(), "a session with nobody");
    }
    if let Some(handshake) = ours.handshake {
        assert!(handshake.into_session().is_err(), "keys for nobody");
    }
}

/// Plays a handshake, of which ours hears in pieces, with the byte `at` XOR `with`.
fn shake(ours: &mut End, theirs: &mut End, piece: usize, at: usize, with: u8) {
    let mut heard = 0;
    let mut on_its_way = Vec::new();
    loop {
        theirs.inbox.extend(ours.advance());
        let before = on_its_way.len();
        on_its_way.extend(theirs.advance());
        let place = (heard + before..heard + on_its_way.len()).position(|place| place == at);
        if let Some(place) = place {
            on_its_way[before + place] ^= with;
        }
        // Nothing is said and nothing is on its way.
        if on_its_way.is_empty() && theirs.inbox.is_empty() {
            break;
        }
        let now = piece.min(on_its_way.len());
        if now == 0 && ours.handshake.is_none() && theirs.handshake.is_none() {
            break;
        }
        let waiting = theirs.inbox.len();
        ours.inbox.extend(on_its_way.drain(..now));
        heard += now;
        if now == 0 && waiting == theirs.inbox.len() {
            // Both wait; one more look, and that was it.
            let said = theirs.advance();
            if said.is_empty() {
                break;
            }
            on_its_way.extend(said);
        }
    }
    let (Some(our), Some(their)) = (&mut ours.session, &mut theirs.session) else {
        assert_ne!(with, 0, "a handshake that nobody disturbed fails");
        return;
    };
    if with != 0 && at >= heard - ours.inbox.len() {
        // A ticket was changed, behind the handshake: see `session`.
        return;
    }
    // Both believe that it went well: then it did. What the server said last, tickets, comes first.
    check_ping(their, our, &mut ours.inbox);
    check_ping(our, their, &mut theirs.inbox);
}

/// What one says behind what it said before arrives at the other.
fn check_ping(from: &mut Session, to: &mut Session, said: &mut Vec<u8>) {
    from.seal(&[b"pi", b"ng"], said).expect("it is not over");
    let mut text = Vec::new();
    open_all(to, said, |data| text.extend_from_slice(data)).expect("both have the keys");
    assert_eq!(text, b"ping");
}

/// Opens records in a row, up to a goodbye.
fn open_all(
    session: &mut Session,
    said: &mut [u8],
    mut data: impl FnMut(&[u8]),
) -> Result<(), Error> {
    let mut rest = said;
    while !rest.is_empty() {
        let length = record::length(rest)?.expect("a header");
        let (record, behind) = rest.split_at_mut(length);
        match session.open(record, &mut Vec::new())? {
            Opened::Data(at) => data(&record[at]),
            Opened::Nothing => {}
            Opened::End => return Ok(()),
        }
        rest = behind;
    }
    Ok(())
}

/// A session opens what a plain reading says that it must, and nothing else; what is wrong once is
/// wrong for ever, with one alert at most; and what it says reaches the peer whole, in order, and
/// under keys that the peer has.
///
/// The input: whether a client or a server is tested, the suite, then steps: what happens, how many
/// bytes of the input belong to it (two bytes), and those.
pub fn session(data: &[u8]) {
    let mut input = Input::new(data);
    let is_client = input.pick(&[true, false]);
    let suite = usize::from(input.byte()) % SUITES.len();
    let mut talk = Talk::new(is_client, suite);
    for _ in 0..STEPS_MAX {
        if input.is_empty() || talk.is_ended {
            break;
        }
        let kind = input.byte();
        let size = input.number() % (PLAIN_BYTES_MAX + 1);
        let bytes = input.take(size);
        match kind % 9 {
            0 => talk.hears(Content::Data, bytes, 0),
            1 => talk.hears(Content::Handshake, bytes, 0),
            2 => talk.hears(Content::Alert, bytes, 0),
            3 => talk.hears(Content::ChangeCipherSpec, bytes, 0),
            // Changed on the way.
            4 => talk.hears(Content::Data, bytes, 1 | bytes.len() as u8),
            // A long piece of a message: what is there, and zeros.
            5 => {
                let mut long = bytes.to_vec();
                long.resize(PLAIN_BYTES_MAX, 0);
                talk.hears(Content::Handshake, &long, 0);
            }
            6 => talk.hears_bare(bytes),
            7 => talk.says(bytes),
            _ => talk.closes(),
        }
    }
    talk.check_what_was_said();
}

/// A session that is tested, and its peer, who can say anything.
struct Talk {
    ours: Session,
    theirs: Session,
    is_client: bool,
    /// What ours has said, sealed, and what it was.
    out: Vec<u8>,
    said: Vec<u8>,
    /// By a plain reading: the front of a message, and what is counted.
    begun: Vec<u8>,
    dataless: u8,
    renegotiations: u8,
    has_failed: bool,
    has_closed: bool,
    /// The peer has said goodbye.
    is_ended: bool,
}

/// What must come of a record by a plain reading.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Expected {
    Data,
    Nothing,
    /// The peer's sending key is the next one from here on.
    NewKey,
    End,
    Refused,
    /// A ticket, on which rustls decides.
    Either,
}

impl Talk {
    fn new(is_client: bool, suite: usize) -> Self {
        let (mut client, mut server) = (End::client(suite), End::server());
        while client.handshake.is_some() || server.handshake.is_some() {
            server.inbox.extend(client.advance());
            client.inbox.extend(server.advance());
        }
        let mut tickets = client.inbox;
        let (mut client, server) = (client.session.expect("done"), server.session.expect("done"));
        open_all(&mut client, &mut tickets, |_| {}).expect("the server's tickets");
        let dataless = if is_client { client.dataless } else { 0 };
        let (ours, theirs) = if is_client {
            (client, server)
        } else {
            (server, client)
        };
        Self {
            ours,
            theirs,
            is_client,
            out: Vec::new(),
            said: Vec::new(),
            begun: Vec::new(),
            dataless,
            renegotiations: 0,
            has_failed: false,
            has_closed: false,
            is_ended: false,
        }
    }

    /// The peer sends a record with this; `change` is what its last byte is XORed with on the way.
    fn hears(&mut self, content: Content, text: &[u8], change: u8) {
        let mut record = Vec::new();
        let fill = |out: &mut Vec<u8>| out.extend_from_slice(text);
        let sealed = self
            .theirs
            .sealer
            .seal(content, text.len(), &mut record, fill);
        sealed.expect("the peer's key is not spent");
        *record.last_mut().expect("a tag") ^= change;
        let expected = match change {
            0 => self.reading(content, text),
            _ => Expected::Refused,
        };
        let opened = self.open(&mut record);
        match (&opened, expected) {
            (Ok(Opened::Data(at)), Expected::Data) => assert_eq!(&record[at.clone()], text),
            (Ok(Opened::Nothing), Expected::Nothing | Expected::Either) => {}
            (Ok(Opened::Nothing), Expected::NewKey) => next_sending_key(&mut self.theirs),
            (Ok(Opened::End), Expected::End) => self.is_ended = true,
            (Err(_), Expected::Refused | Expected::Either) => self.has_failed = true,
            _ => panic!("{opened:?}, and a plain reading says {expected:?}"),
        }
        // Nothing is shown of what was changed, and no more is kept than one message.
        assert!(change == 0 || text.len() < 8 || is_zeros(text) || !contains(&record, text));
        assert!(self.ours.message.len() < 4 + MESSAGE_BYTES_MAX);
    }

    /// Somebody without a key sends this.
    fn hears_bare(&mut self, bytes: &[u8]) {
        let mut bytes = bytes.to_vec();
        assert!(self.open(&mut bytes).is_err());
        self.has_failed = true;
    }

    /// Opens a record, and looks at the reply.
    fn open(&mut self, record: &mut [u8]) -> Result<Opened, Error> {
        let before = self.out.len();
        let opened = self.ours.open(record, &mut self.out);
        let reply = &self.out[before..];
        assert_records(reply);
        // A fatal alert, or warnings that renegotiation is declined: one record, none after the end.
        let is_over = self.has_failed || self.has_closed;
        if self.has_failed {
            assert!(opened.is_err(), "opened after a failure");
        }
        assert!(self.has_failed || !is_over || opened.is_ok() || reply.is_empty());
        assert!(!self.has_failed || reply.is_empty(), "a second alert");
        assert!(reply.len() <= 2 * (2 + record::OVERHEAD_BYTES_MAX));
        opened
    }

    /// We send this.
    fn says(&mut self, text: &[u8]) {
        let (front, back) = text.split_at(text.len() / 3);
        let before = self.out.len();
        let sealed = self.ours.seal(&[front, &[], back], &mut self.out);
        assert_eq!(sealed.is_err(), self.has_failed || self.has_closed);
        match sealed {
            Ok(()) => self.said.extend_from_slice(text),
            Err(_) => assert_eq!(self.out.len(), before),
        }
    }

    fn closes(&mut self) {
        self.ours.close(&mut self.out);
        self.has_closed = true;
    }

    /// All that was said is heard, up to the end that was said, if one was.
    fn check_what_was_said(mut self) {
        let mut heard = Vec::new();
        let hears = |data: &[u8]| heard.extend_from_slice(data);
        let outcome = open_all(&mut self.theirs, &mut self.out, hears);
        if let Err(error) = outcome {
            assert!(matches!(error, Error::AlertReceived(_)), "{error}");
            assert!(self.has_failed, "an alert without a reason");
        }
        assert_eq!(heard, self.said);
    }

    /// What must come of this record, from a peer with the keys (RFC 8446, sections 4.6, 5.1 and 6;
    /// RFC 5246, section 7.4.1.1).
    fn reading(&mut self, content: Content, text: &[u8]) -> Expected {
        if self.has_failed || (content != Content::Handshake && !self.begun.is_empty()) {
            return Expected::Refused;
        }
        if content == Content::Data && !text.is_empty() {
            self.dataless = 0;
            return Expected::Data;
        }
        self.dataless += 1;
        if self.dataless > DATALESS_MAX {
            return Expected::Refused;
        }
        let is_1_3 = self.ours.version == ProtocolVersion::TLSv1_3;
        match (content, text) {
            (Content::Data, _) => Expected::Nothing,
            (Content::Alert, [_, 0]) => Expected::End,
            (Content::Alert, [_, 90]) => Expected::Nothing,
            (Content::Alert, [1, _]) if !is_1_3 => Expected::Nothing,
            (Content::Alert | Content::ChangeCipherSpec, _) | (Content::Handshake, []) => {
                Expected::Refused
            }
            (Content::Handshake, _) => {
                self.begun.extend_from_slice(text);
                self.messages(is_1_3)
            }
        }
    }

    fn messages(&mut self, is_1_3: bool) -> Expected {
        let mut expected = Expected::Nothing;
        while let [kind, high, middle, low, ..] = self.begun[..] {
            let length = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
            if length > 0xffff {
                return Expected::Refused;
            }
            if self.begun.len() < 4 + length {
                break;
            }
            let message: Vec<u8> = self.begun.drain(..4 + length).collect();
            match (kind, is_1_3, self.is_client) {
                (24, true, _) if self.begun.is_empty() && matches!(message[4..], [0] | [1]) => {
                    // What rustls thinks of a ticket before it in this record comes first.
                    if expected == Expected::Nothing {
                        expected = Expected::NewKey;
                    } else {
                        return self.after_a_ticket();
                    }
                }
                (4, true, true) => expected = Expected::Either,
                (0, false, true) | (1, false, false) => {
                    self.renegotiations += 1;
                    if self.renegotiations > RENEGOTIATIONS_DECLINED_MAX {
                        return Expected::Refused;
                    }
                }
                // A ticket before it may have been refused, too: the same.
                _ => return Expected::Refused,
            }
        }
        expected
    }

    /// A ticket of unknown fate and a key update in one record: not worth a model.
    fn after_a_ticket(&mut self) -> Expected {
        self.is_ended = true;
        Expected::Either
    }
}

/// The peer's part of a key update that it has sent.
fn next_sending_key(session: &mut Session) {
    let secrets = match &mut session.kernel {
        Kernel::Client(kernel) => kernel.update_tx_secret(),
        Kernel::Server(kernel) => kernel.update_tx_secret(),
        #[cfg(test)]
        Kernel::Simulated => unreachable!("it is made by rustls"),
    };
    let secrets = secrets.expect("TLS 1.3");
    let sealer = Sealer::new(session.version, secrets, records_max(session.suite));
    session.sealer = sealer.expect("the same suite");
}

fn is_zeros(bytes: &[u8]) -> bool {
    bytes.iter().all(|&byte| byte == 0)
}

fn contains(hay: &[u8], needle: &[u8]) -> bool {
    hay.windows(needle.len()).any(|part| part == needle)
}
