//! The way to the API: verified, pooled, retried only where that is safe, and with
//! an answer of our own for each way in which it can fail.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::harness::mock::upstream;
use crate::harness::pki::TestCa;
use crate::harness::world::{Claviger, HOST, Site, bearer_route};
use crate::harness::{Client, Mock, Scripted, World};
use crate::reload::{key_used, shown};

/// Claviger in front of one upstream table, with further lines in that table.
#[track_caller]
fn serve(world: &World, upstream: &str, lines: &str) -> Claviger {
    let (_, key_file) = world.key_file("key");
    world.start(&format!(
        "{}{upstream}{lines}{}",
        world.base(),
        bearer_route(&key_file)
    ))
}

#[test]
fn connections_are_reused() {
    let site = Site::new();
    let mut client = site.connect();
    let connections: Vec<_> = (0..5)
        .map(|_| client.get(HOST, "/echo").expect(200).json()["connection"].clone())
        .collect();
    assert!(
        connections.windows(2).all(|pair| pair[0] == pair[1]),
        "{connections:?}"
    );
    // Another caller's request too: the pool belongs to the upstream.
    assert_eq!(site.get("/echo").json()["connection"], connections[0]);
    let echoed = site.get("/echo").json();
    assert_eq!(echoed["tls"]["sni"], HOST);
    assert_eq!(echoed["tls"]["alpn"], "http/1.1");
}

/// The pool goes by upstream and credential name alone. A connection per route would multiply the handshakes, and
/// a rotation that closed them would be felt by every caller.
#[test]
fn a_pool_is_neither_split_by_route_nor_flushed_by_a_new_key() {
    let world = World::new();
    let (key, key_file) = world.key_file("key");
    let mock = Mock::start(&world, &[HOST], &["--auth", "none"]);
    let route = |method: &str, credential: &str| {
        format!(
            "[[route]]\nname = {method:?}\nhost = {HOST:?}\nmethods = [{method:?}]\nupstream = \"mock\"\ncredential = {credential:?}\n"
        )
    };
    let source = format!(
        "source = \"file://{}\"\ninject = \"bearer\"\n",
        key_file.display()
    );
    let claviger = world.start(&format!(
        "{}{}idle_min = 0\n[credential.one]\n{source}[credential.other]\n{source}{}{}{}",
        world.base(),
        mock.upstream("mock", HOST),
        route("GET", "one"),
        route("PUT", "one"),
        route("PATCH", "other")
    ));
    let mut client = claviger.connect(&world);
    let mut asked = |method: &str| {
        let request = format!("{method} /echo HTTP/1.1\r\nHost: {HOST}\r\n\r\n");
        let answer = client.call(request);
        (
            answer.expect(200).json()["connection"].clone(),
            key_used(&answer),
        )
    };
    let (first, sent) = asked("GET");
    assert_eq!(sent, shown(&key));
    assert_eq!(asked("PUT").0, first, "another route");
    assert_ne!(
        asked("PATCH").0,
        first,
        "another credential, of the same value"
    );
    let new = world.key();
    let mark = claviger.log().mark();
    let beside = world.write("new", &new);
    fs::rename(beside, &key_file).expect("one directory");
    claviger.wait_reloaded(mark);
    assert_eq!(
        asked("PUT"),
        (first.clone(), shown(&new)),
        "the connection of before, the new key"
    );
    assert_eq!(asked("GET"), (first, shown(&new)));
}

/// A connection that the API closed while it was idle is not used again, and no
/// caller notices.
#[test]
fn a_connection_closed_while_idle_is_replaced() {
    let world = World::new();
    let upstream = Scripted::start(&world, HOST, |peer| {
        if peer.head().is_some() {
            peer.answer("once");
            peer.close();
            peer.tell("closed");
        }
    });
    let claviger = serve(&world, &upstream.upstream("mock", HOST), "idle_min = 0\n");
    let mut client = claviger.connect(&world);
    for _ in 0..5 {
        assert_eq!(client.get(HOST, "/x").expect(200).text(), "once");
        assert_eq!(upstream.told(), "closed");
    }
    // Even a request that may not be repeated goes out on a connection that lives.
    let post = format!("POST /x HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 2\r\n\r\nab");
    assert_eq!(client.call(post).expect(200).text(), "once");
}

/// A connection that dies with the request under way: repeated if that is safe,
/// answered if not. The script ends every connection on its second request.
#[test]
fn a_retry_where_it_is_safe() {
    let world = World::new();
    let upstream = Scripted::start(&world, HOST, |peer| {
        let Some(_) = peer.head() else { return };
        peer.answer("first");
        if let Some(second) = peer.head() {
            peer.tell(second.lines().next().unwrap_or_default());
        }
        peer.close();
    });
    let claviger = serve(&world, &upstream.upstream("mock", HOST), "idle_min = 0\n");
    let mut client = claviger.connect(&world);
    client.get(HOST, "/a").expect(200);
    // On the reused connection nothing is answered; a fresh one answers.
    assert_eq!(client.get(HOST, "/b").expect(200).text(), "first");
    assert_eq!(upstream.told(), "GET /b HTTP/1.1");
    claviger.wait_count("upstream_retries", 1);
    // Now the pooled connection has answered once. A POST may have been carried out.
    let post = format!("POST /c HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 2\r\n\r\nab");
    client.call(post).expect_own(502, "upstream_closed");
    assert_eq!(upstream.told(), "POST /c HTTP/1.1");
    assert_eq!(
        upstream.told_so_far(),
        [] as [String; 0],
        "it was sent once"
    );
    assert_eq!(claviger.audit_of("/c")["refused_by"], "upstream");
}

#[test]
fn an_idle_connection_is_kept_warm() {
    let world = World::new();
    let upstream = Scripted::start(&world, HOST, |peer| {
        // Session tickets leave before anything else: they lie in wait on the
        // connection until somebody uses it.
        peer.send("");
        peer.tell(format!("connection {}", peer.number));
        while peer.head().is_some() {
            peer.answer(&format!("answer {}", peer.number));
            if peer.number == 0 {
                peer.close();
                return;
            }
        }
    });
    let claviger = serve(&world, &upstream.upstream("mock", HOST), "idle_min = 1\n");
    claviger.get(&world, "/x").expect(200);
    assert_eq!(upstream.told(), "connection 0");
    // It is gone, and nobody asks; a new one comes all the same.
    assert_eq!(upstream.told(), "connection 1");
    claviger.wait_count("upstream_idle", 1);
    // And it is as good as any.
    let reuses = claviger.status()["upstream_reuses"].as_u64();
    for _ in 0..3 {
        assert_eq!(claviger.get(&world, "/x").expect(200).text(), "answer 1");
    }
    claviger.wait_count("upstream_reuses", reuses.expect("a number") + 3);
}

#[test]
fn a_certificate_that_cannot_be_verified() {
    let world = World::new();
    let stranger = TestCa::new(&world.subdirectory("stranger"), "ca");
    let wrong_ca = Mock::start(&world, &[HOST], &["--auth", "none"]);
    let table = upstream("mock", HOST, &[wrong_ca.address()], stranger.file());
    let claviger = serve(&world, &table, "");
    claviger
        .get(&world, "/echo")
        .expect_own(502, "upstream_not_verified");
    assert_eq!(wrong_ca.received().len(), 0);

    let world = World::new();
    let wrong_name = Mock::start(&world, &["other.example.com"], &["--auth", "none"]);
    let claviger = serve(&world, &wrong_name.upstream("mock", HOST), "");
    claviger
        .get(&world, "/echo")
        .expect_own(502, "upstream_not_verified");
    assert_eq!(wrong_name.received().len(), 0);
    // Unless the file says which name is meant.
    let config = std::fs::read_to_string(claviger.config()).expect("readable");
    claviger.reload(&config.replace(
        "[credential.mock]",
        "tls_name = \"other.example.com\"\n[credential.mock]",
    ));
    claviger.get(&world, "/echo").expect(200);
}

/// Our own CA is in the system's store of the machines that trust us. An upstream
/// that presents its certificate is ourselves, reached in a circle, and would be
/// handed the key.
#[test]
fn our_own_ca_is_refused_upstream() {
    let world = World::new();
    let issued = world.subdirectory("issued");
    world
        .cli(&[
            "ca",
            "issue",
            HOST,
            "--dir",
            &world.path("ca").display().to_string(),
            "--out",
            &issued.display().to_string(),
        ])
        .expect_code(0);
    let (cert, key) = (
        issued.join(format!("{HOST}.pem")),
        issued.join(format!("{HOST}.key")),
    );
    let circle = self_presenting(&world, &cert, &key);
    let (_, key_file) = world.key_file("key");
    let table = format!(
        "[upstream.mock]\nhost = {HOST:?}\naddresses = [\"{}\"]\n",
        circle.address()
    );
    let config = format!("{}{table}{}", world.base(), bearer_route(&key_file));
    // The machine's store: our root, and somebody else's.
    let stranger = TestCa::new(&world.subdirectory("stranger"), "ca");
    let store = [world.path("root.pem"), stranger.file().to_owned()]
        .map(|pem| std::fs::read(pem).expect("PEM"))
        .concat();
    let store = world.write("store.pem", store);
    let mut command = world.command();
    command
        .env("SSL_CERT_FILE", store)
        .env("SSL_CERT_DIR", "/nonexistent");
    let claviger = world.start_with(&config, command, &[]);
    claviger
        .get(&world, "/x")
        .expect_own(502, "upstream_not_verified");
    let told = circle.told();
    assert!(
        told.starts_with("handshake failed"),
        "no request byte may arrive: {told}"
    );
    // If the file names it for this upstream, it is meant.
    let named = config.replace(
        "[credential.mock]",
        &format!("ca_file = {:?}\n[credential.mock]", world.path("root.pem")),
    );
    claviger.reload(&named);
    assert_eq!(claviger.get(&world, "/x").expect(200).text(), "me");
}

fn self_presenting(world: &World, cert: &Path, key: &Path) -> Scripted {
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    let chain = CertificateDer::pem_file_iter(cert)
        .expect("PEM")
        .map(|der| der.expect("PEM"))
        .collect();
    let key = PrivateKeyDer::from_pem_file(key).expect("PEM");
    let config = rustls::ServerConfig::builder_with_provider(crate::harness::pki::provider())
        .with_safe_default_protocol_versions()
        .expect("both versions")
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .expect("they belong together");
    Scripted::start_with(
        world.path("root.pem"),
        std::sync::Arc::new(config),
        |peer| {
            while peer.head().is_some() {
                peer.answer("me");
            }
        },
    )
}

/// An address where nobody listens, or nobody answers, costs a moment and no more.
#[test]
fn happy_eyeballs() {
    let world = World::new();
    let mock = Mock::start(&world, &[HOST], &["--auth", "none"]);
    let closed = TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .expect("a port, now free");
    let silent = Silent::new();
    let table = upstream(
        "mock",
        HOST,
        &[closed, silent.address, mock.address()],
        &mock.ca_file(),
    );
    let claviger = serve(&world, &table, "connect_timeout = \"20s\"\n");
    let began = Instant::now();
    let answer = claviger.get(&world, "/echo");
    answer.expect(200);
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(
        claviger.audit_of("/echo")["upstream_address"],
        mock.address().to_string()
    );
}

/// An address that takes a SYN and says nothing: a listener whose queue is full.
struct Silent {
    address: SocketAddr,
    _listener: std::os::fd::OwnedFd,
    _waiting: Vec<std::net::TcpStream>,
}

impl Silent {
    fn new() -> Self {
        use nix::sys::socket::{
            AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, getsockname, listen,
            socket,
        };
        use std::os::fd::AsRawFd;
        let listener = socket(
            AddressFamily::Inet,
            SockType::Stream,
            SockFlag::SOCK_CLOEXEC,
            None,
        )
        .expect("a socket");
        bind(listener.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0)).expect("a free port");
        listen(&listener, Backlog::new(0).expect("a small one")).expect("listening");
        let bound: SockaddrIn = getsockname(listener.as_raw_fd()).expect("bound");
        let address = SocketAddr::from(([127, 0, 0, 1], bound.port()));
        let mut waiting = Vec::new();
        // The queue of a backlog of 0 takes one; what comes then is left without an answer.
        while let Ok(stream) =
            std::net::TcpStream::connect_timeout(&address, Duration::from_millis(200))
        {
            waiting.push(stream);
            assert!(waiting.len() < 16, "the queue never fills");
        }
        Self {
            address,
            _listener: listener,
            _waiting: waiting,
        }
    }
}

#[test]
fn answers_for_an_upstream_out_of_reach() {
    let world = World::new();
    let ca = TestCa::new(&world.subdirectory("ca"), "ca");
    let closed = TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .expect("a port, now free");
    let claviger = serve(&world, &upstream("mock", HOST, &[closed], ca.file()), "");
    claviger
        .get(&world, "/x")
        .expect_own(502, "upstream_unreachable");
    let record = claviger.audit_of("/x");
    assert_eq!(record["refused_by"], "upstream");
    assert_eq!(record["status"], 502);

    let world = World::new();
    let ca = TestCa::new(&world.subdirectory("ca"), "ca");
    let silent = Silent::new();
    let claviger = serve(
        &world,
        &upstream("mock", HOST, &[silent.address], ca.file()),
        "connect_timeout = \"500ms\"\n",
    );
    claviger
        .get(&world, "/x")
        .expect_own(504, "upstream_connect_timeout");
}

#[test]
fn answers_for_an_upstream_that_says_nothing_or_nonsense() {
    let world = World::new();
    let upstream = Scripted::start(&world, HOST, |peer| {
        while let Some(head) = peer.head() {
            let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
            match path.as_str() {
                "/silent" => peer.wait_end(),
                "/garbage" => drop(peer.send("SSH-2.0-OpenSSH_9.2\r\n\r\n")),
                "/two-lengths" => drop(peer.send("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab")),
                "/no-colon" => drop(peer.send("HTTP/1.1 200 OK\r\nContent-Length 1\r\n\r\na")),
                "/closes" => return,
                "/half-a-head" => {
                    peer.send("HTTP/1.1 200 OK\r\nContent-");
                    return;
                }
                "/switches" => drop(peer.send("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: foo\r\n\r\n")),
                other => drop(peer.answer(other)),
            }
        }
    });
    let claviger = serve(
        &world,
        &upstream.upstream("mock", HOST),
        "response_head_timeout = \"1s\"\n",
    );
    for (path, status, reason) in [
        ("/silent", 504, "upstream_response_timeout"),
        ("/garbage", 502, "upstream_answer_malformed"),
        ("/two-lengths", 502, "upstream_answer_malformed"),
        ("/no-colon", 502, "upstream_answer_malformed"),
        ("/closes", 502, "upstream_closed"),
        ("/half-a-head", 502, "upstream_closed"),
        ("/switches", 502, "upstream_answer_malformed"),
    ] {
        let mut client = claviger.connect(&world);
        client.get(HOST, path).expect_own(status, reason);
        // The caller's connection is as good as before, and so is the upstream.
        assert_eq!(client.get(HOST, "/fine").expect(200).text(), "/fine");
        assert_eq!(claviger.audit_of(path)["refused_by"], "upstream");
    }
}

/// An API that takes requests and says so, and no more.
fn never_answers(world: &World) -> Scripted {
    Scripted::start(world, HOST, |peer| {
        while peer.head().is_some() {
            peer.tell("asked");
            peer.wait_end();
        }
    })
}

/// Sends a request; when this returns, the API has it, and has not answered.
#[track_caller]
fn ask_and_wait(client: &mut Client, upstream: &Scripted) {
    client.send(format!("GET /first HTTP/1.1\r\nHost: {HOST}\r\n\r\n"));
    assert_eq!(upstream.told(), "asked");
}

#[test]
fn connections_to_an_upstream_are_bounded() {
    let world = World::new();
    let upstream = never_answers(&world);
    let claviger = serve(
        &world,
        &upstream.upstream("mock", HOST),
        "connections_max = 1\nqueue_max = 0\nidle_min = 0\n",
    );
    let mut first = claviger.connect(&world);
    ask_and_wait(&mut first, &upstream);
    let answer = claviger.get(&world, "/second");
    answer.expect_own(503, "upstream_connections_exhausted");
    assert!(answer.field("retry-after").is_some());
    assert_eq!(claviger.audit_of("/second")["refused_by"], "claviger");
}

/// One connection, two callers: the second waits, and gets the first one's connection.
#[test]
fn a_request_waits_for_a_connection() {
    let world = World::new();
    let (release, released) = std::sync::mpsc::channel();
    let released = std::sync::Mutex::new(released);
    let upstream = Scripted::start(&world, HOST, move |peer| {
        while let Some(head) = peer.head() {
            if head.starts_with("GET /first ") {
                peer.tell("asked");
                let released = released.lock().expect("nothing panics with it");
                released.recv().expect("the test says when");
            }
            peer.answer(&format!("on {}", peer.number));
        }
    });
    let claviger = serve(
        &world,
        &upstream.upstream("mock", HOST),
        "connections_max = 1\nqueue_max = 1\nqueue_timeout = \"30s\"\nidle_min = 0\n",
    );
    let mut first = claviger.connect(&world);
    ask_and_wait(&mut first, &upstream);
    let mut second = claviger.connect(&world);
    second.send(format!("GET /second HTTP/1.1\r\nHost: {HOST}\r\n\r\n"));
    claviger.wait_count("upstream_queued", 1);
    // The queue is full: no further wait.
    let answer = claviger.get(&world, "/third");
    answer.expect_own(503, "upstream_connections_exhausted");
    assert!(answer.field("retry-after").is_some());
    release.send(()).expect("it waits for that");
    assert_eq!(first.answer().expect(200).text(), "on 0");
    assert_eq!(second.answer().expect(200).text(), "on 0");
    claviger.wait_count("upstream_queue_refusals", 1);
}

#[test]
fn waiting_for_a_connection_has_an_end() {
    let world = World::new();
    let upstream = never_answers(&world);
    let claviger = serve(
        &world,
        &upstream.upstream("mock", HOST),
        "connections_max = 1\nqueue_timeout = \"50ms\"\nidle_min = 0\n",
    );
    let mut first = claviger.connect(&world);
    ask_and_wait(&mut first, &upstream);
    let answer = claviger.get(&world, "/second");
    answer.expect_own(503, "upstream_queue_timeout");
    assert!(answer.field("retry-after").is_some());
    assert_eq!(claviger.audit_of("/second")["refused_by"], "claviger");
}

/// Whoever may be refused for being one too many learns it at once, and keeps its connection.
#[test]
fn exchanges_are_bounded() {
    let world = World::new();
    let upstream = never_answers(&world);
    let (_, key_file) = world.key_file("key");
    let claviger = world.start(&format!(
        "{}{}{}",
        world
            .base()
            .replace("[server]\n", "[server]\nexchanges_max = 1\n"),
        upstream.upstream("mock", HOST),
        bearer_route(&key_file)
    ));
    let mut first = claviger.connect(&world);
    ask_and_wait(&mut first, &upstream);
    let mut second = claviger.connect(&world);
    for path in ["/second", "/third"] {
        let answer = second.get(HOST, path);
        answer.expect_own(503, "core_overloaded");
        assert!(answer.field("retry-after").is_some());
    }
    assert_eq!(claviger.audit_of("/third")["refused_by"], "claviger");
    claviger.wait_count("exchanges_refused_limit", 2);
    assert_eq!(
        upstream.told_so_far(),
        [] as [String; 0],
        "it never arrived"
    );
}

/// A POST that may have been carried out is repeated only where the route believes the caller's
/// key for it, and the caller sent one.
#[test]
fn an_idempotency_key_permits_a_second_try() {
    let world = World::new();
    let upstream = Scripted::start(&world, HOST, |peer| {
        let Some(_) = peer.head() else { return };
        peer.answer("first");
        if let Some(second) = peer.head() {
            // Before it may stand the body of the first.
            let line = second.lines().next().unwrap_or_default();
            peer.tell(line.trim_start_matches("ab"));
        }
        peer.close();
    });
    let (_, key_file) = world.key_file("key");
    let claviger = world.start(&format!(
        "{}{}idle_min = 0\n{}retry_with_idempotency_key = true\n",
        world.base(),
        upstream.upstream("mock", HOST),
        bearer_route(&key_file)
    ));
    let mut client = claviger.connect(&world);
    client.get(HOST, "/a").expect(200);
    let post = |key: &str| {
        format!("POST /pay HTTP/1.1\r\nHost: {HOST}\r\n{key}Content-Length: 2\r\n\r\nab")
    };
    let answer = client.call(post("Idempotency-Key: 8e03978e\r\n"));
    assert_eq!(answer.expect(200).text(), "first");
    assert_eq!(upstream.told(), "POST /pay HTTP/1.1");
    claviger.wait_count("upstream_retries", 1);
    for without in ["", "Idempotency-Key:\r\n"] {
        client
            .call(post(without))
            .expect_own(502, "upstream_closed");
        assert_eq!(upstream.told(), "POST /pay HTTP/1.1");
        client.get(HOST, "/a").expect(200);
    }
}

#[test]
fn ipv6_upstreams() {
    let world = World::new();
    let (key, key_file) = world.key_file("key");
    let mut command = std::process::Command::new(crate::harness::process::binary("mock-upstream"));
    command.args(["--listen", "[::1]:0"]);
    let mock = Mock::start_with(
        &world,
        command,
        &[HOST],
        &["--auth", "bearer", "--key", &key],
    );
    let claviger = world.start(&format!(
        "{}{}{}",
        world.base(),
        mock.upstream("mock", HOST),
        bearer_route(&key_file)
    ));
    claviger.get(&world, "/echo").expect(200);
    assert!(
        claviger.audit_of("/echo")["upstream_address"]
            .as_str()
            .is_some_and(|address| address.starts_with("[::1]:"))
    );
}
