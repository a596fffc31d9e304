use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::rc::Rc;
use std::thread::JoinHandle;

use futures_util::future::join;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

use super::*;
use crate::rt;
use crate::test_support::{
    Bench, HOST, IDENTITY, LONG, elsewhere, idle_core, joined, on_each_driver, receive, send, until,
};

const LIMIT: Duration = Duration::from_secs(5);

/// Both ends of a new connection to this core.
async fn connection(core: &Core) -> (Transport, TcpStream) {
    let bench = Bench {
        tick: Rc::clone(&core.tick),
        buffers: Rc::clone(&core.buffers),
    };
    bench.socket().await
}

/// Serves the handshake as the listener `main` does.
async fn shake(core: &Core, ours: &mut Transport) -> io::Result<Accepted> {
    let view = core.view();
    accept(core, &view, &view.listeners[0], ours, LIMIT).await
}

/// A caller that says hello, sends `ping`, and takes what comes.
fn caller(
    config: ClientConfig,
    name: &'static str,
    stream: TcpStream,
) -> JoinHandle<io::Result<String>> {
    std::thread::spawn(move || {
        let name = name.try_into().expect("a host name");
        let session = ClientConnection::new(Arc::new(config), name).expect("a good name");
        let mut peer = StreamOwned::new(session, stream);
        peer.write_all(b"ping")?;
        let mut answer = String::new();
        peer.read_to_string(&mut answer)?;
        Ok(answer)
    })
}

/// Answers a caller that was let in.
async fn answer(ours: &mut Transport) {
    assert_eq!(receive(ours, 4).await, b"ping");
    send(ours, b"pong").await;
    ours.goodbye().await;
}

#[test]
fn the_server_name_picks_the_host() {
    on_each_driver(async || {
        let (core, _drain) = idle_core();
        for version in rustls::ALL_VERSIONS {
            let (mut ours, theirs) = connection(&core).await;
            let theirs = caller(IDENTITY.client_of(&[version]), HOST, theirs);
            let accepted = shake(&core, &mut ours).await.expect("a good caller");
            assert_eq!(&*accepted.server_name, HOST);
            answer(&mut ours).await;
            assert_eq!(joined(theirs).await.expect("an answer"), "pong");
        }
        assert_eq!(core.counters.get(Counter::handshakes), 2);
        assert_eq!(core.counters.get(Counter::handshakes_failed), 0);
    });
}

/// A first flight of this size: the rest is protocols that nobody speaks.
fn verbose(bytes: usize) -> ClientConfig {
    let mut config = IDENTITY.client();
    config.alpn_protocols = (0..bytes / 101)
        .map(|at| format!("{at:0>100}").into_bytes())
        .chain([b"http/1.1".to_vec()])
        .collect();
    config
}

#[test]
fn a_long_hello() {
    on_each_driver(async || {
        // Beyond what rustls reads at a time, beyond a record, and beyond two.
        for bytes in [5_000, 20_000, 40_000] {
            let (core, _drain) = idle_core();
            let (mut ours, theirs) = connection(&core).await;
            let theirs = caller(verbose(bytes), HOST, theirs);
            shake(&core, &mut ours).await.expect("a good caller");
            answer(&mut ours).await;
            assert_eq!(joined(theirs).await.expect("an answer"), "pong");
        }
    });
}

/// The hello arrives piece by piece; each is taken in before the next one comes.
#[test]
fn a_hello_in_pieces() {
    on_each_driver(async || {
        for (bytes, piece) in [(0, 40), (6_000, 999), (20_000, 4_096)] {
            let (core, _drain) = idle_core();
            let (mut ours, mut theirs) = connection(&core).await;
            let fd = ours.watch().fd();
            let name = HOST.try_into().expect("a host name");
            let mut session =
                ClientConnection::new(Arc::new(verbose(bytes)), name).expect("a good name");
            let mut hello = Vec::new();
            while session.wants_write() {
                session.write_tls(&mut hello).expect("it fits");
            }
            let (accepted, theirs) = join(shake(&core, &mut ours), async {
                // The record's header and the start of the message byte by byte.
                let (front, back) = hello.split_at(12);
                for piece in front.chunks(1).chain(back.chunks(piece)) {
                    theirs.write_all(piece).expect("it is read");
                    until(|| rt::peek(fd) == rt::Peeked::Quiet).await;
                }
                elsewhere(move || {
                    let mut peer = StreamOwned::new(session, theirs);
                    peer.write_all(b"ping").expect("it is open");
                    peer
                })
                .await
            })
            .await;
            accepted.expect("a good caller");
            answer(&mut ours).await;
            drop(theirs);
        }
    });
}

#[test]
fn unknown_and_absent_names_are_told_so() {
    on_each_driver(async || {
        let (core, _drain) = idle_core();
        for name in ["nobody.test", "192.0.2.1", "x.api.example.com"] {
            let (mut ours, theirs) = connection(&core).await;
            let theirs = caller(IDENTITY.client(), name, theirs);
            assert!(shake(&core, &mut ours).await.is_err());
            drop(ours);
            let told = joined(theirs)
                .await
                .expect_err("no certificate")
                .to_string();
            assert!(told.contains("UnrecognisedName"), "{told}");
        }
        assert_eq!(core.counters.get(Counter::handshakes_refused_sni), 3);
        assert_eq!(core.counters.get(Counter::handshakes_failed), 3);
    });
}

#[test]
fn a_caller_that_speaks_only_h2_is_told_so() {
    on_each_driver(async || {
        let (core, _drain) = idle_core();
        let mut config = IDENTITY.client();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let (mut ours, theirs) = connection(&core).await;
        let theirs = caller(config, HOST, theirs);
        assert!(shake(&core, &mut ours).await.is_err());
        drop(ours);
        let told = joined(theirs).await.expect_err("no protocol").to_string();
        assert!(told.contains("NoApplicationProtocol"), "{told}");
        assert_eq!(core.counters.get(Counter::handshakes_refused_alpn), 1);
        // Whoever says nothing of protocols means HTTP/1.1.
        let mut config = IDENTITY.client();
        config.alpn_protocols.clear();
        let (mut ours, theirs) = connection(&core).await;
        let theirs = caller(config, HOST, theirs);
        shake(&core, &mut ours).await.expect("a good caller");
        answer(&mut ours).await;
        assert_eq!(joined(theirs).await.expect("an answer"), "pong");
    });
}

#[test]
fn what_is_no_handshake_gets_an_alert() {
    on_each_driver(async || {
        let (core, _drain) = idle_core();
        let (mut ours, mut theirs) = connection(&core).await;
        theirs
            .write_all(b"GET / HTTP/1.1\r\nHost: api.example.com\r\n\r\n")
            .expect("it is open");
        let refused = shake(&core, &mut ours).await.map(|_| ());
        assert_eq!(
            refused.expect_err("no TLS").kind(),
            io::ErrorKind::InvalidData
        );
        drop(ours);
        let told = elsewhere(move || {
            let mut told = [0; 5];
            theirs.read_exact(&mut told).map(|()| told)
        })
        .await;
        assert_eq!(told.expect("an alert")[..2], [21, 3]);
        // And whoever says nothing at all gets nothing.
        let (mut ours, theirs) = connection(&core).await;
        drop(theirs);
        let gone = shake(&core, &mut ours).await.map(|_| ());
        assert_eq!(
            gone.expect_err("nobody").kind(),
            io::ErrorKind::UnexpectedEof
        );
        assert_eq!(core.counters.get(Counter::handshakes_failed), 2);
    });
}

#[test]
fn a_slow_handshake_ends() {
    on_each_driver(async || {
        let (core, _drain) = idle_core();
        let (mut ours, mut theirs) = connection(&core).await;
        let fd = ours.watch().fd();
        let (outcome, ()) = join(shake(&core, &mut ours), async {
            // The start of a record, and never the rest.
            theirs.write_all(&[22, 3, 1, 2]).expect("it is open");
            until(|| rt::peek(fd) == rt::Peeked::Quiet).await;
            core.tick.sweep_at(5_000, false);
            core.tick.sweep_at(5_100, false);
        })
        .await;
        let late = outcome.map(|_| ()).expect_err("it took too long");
        assert_eq!(late.kind(), io::ErrorKind::TimedOut);
        assert_eq!(core.counters.get(Counter::handshakes_timed_out), 1);
    });
}

/// The limit is the handshake's alone: what follows has limits of its own.
#[test]
fn a_handshake_leaves_nothing_due() {
    on_each_driver(async || {
        let (core, _drain) = idle_core();
        let (mut ours, theirs) = connection(&core).await;
        let theirs = caller(IDENTITY.client(), HOST, theirs);
        shake(&core, &mut ours).await.expect("a good caller");
        core.tick.sweep_at(LONG.as_millis() as u64, false);
        assert!(!ours.watch().is_expired());
        answer(&mut ours).await;
        assert_eq!(joined(theirs).await.expect("an answer"), "pong");
    });
}
