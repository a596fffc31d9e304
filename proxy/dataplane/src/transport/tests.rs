use std::io::ErrorKind;
use std::net::Shutdown;
use std::sync::Arc;

use futures_util::future::join;
use rustls::{ClientConnection, StreamOwned};
use std::io::Write as _;

use super::*;
use crate::test_support::{
    Bench, ClientPeer, IDENTITY, IMPOSTOR, LONG, ServerPeer, accept_tls, elsewhere, joined,
    on_each_driver, on_each_kind, pattern, read_all, read_exactly, receive, send, until,
};

/// Beyond what sockets hold, and not a multiple of a record.
const LARGE: usize = 3 * 1024 * 1024 + 17;

/// The sessions of both versions, with us as the client.
async fn clients(bench: &Bench) -> Vec<(Transport, ServerPeer)> {
    let mut made = Vec::new();
    for version in rustls::ALL_VERSIONS {
        let (mut ours, theirs) = bench.socket().await;
        let theirs = std::thread::spawn(move || accept_tls(theirs, &IDENTITY.server(&[])));
        let config = Arc::new(IDENTITY.client_of(&[version]));
        ours.handshake(client(config))
            .await
            .expect("the peer is trusted");
        let theirs = joined(theirs).await;
        assert_eq!(theirs.conn.protocol_version(), Some(version.version));
        made.push((ours, theirs));
    }
    made
}

fn client(config: Arc<rustls::ClientConfig>) -> Handshake {
    Handshake::client(config, IDENTITY.name()).expect("a good name")
}

#[test]
fn large_messages_go_both_ways() {
    on_each_driver(async || {
        let bench = Bench::new();
        for (mut ours, mut theirs) in clients(&bench).await {
            let echo = std::thread::spawn(move || {
                let text = read_exactly(&mut theirs, LARGE);
                theirs.write_all(&text).expect("it is read");
                theirs
            });
            let text = pattern(LARGE);
            // One message of several slices.
            let (one, other) = text.split_at(LARGE / 3);
            let mut outgoing = ours.outgoing();
            let before = outgoing.bytes_sent();
            outgoing.write(&[one, b"", other]).expect("a session");
            assert!(outgoing.wants_send() && outgoing.bytes_sent() == before);
            outgoing.flush(LONG).await.expect("it is read");
            assert!(!outgoing.wants_send() && outgoing.bytes_sent() > before + LARGE as u64);
            assert!(receive(&mut ours, LARGE).await == text);
            joined(echo).await;
        }
        let (mut ours, mut theirs) = bench.socket().await;
        let echo = std::thread::spawn(move || {
            let text = read_exactly(&mut theirs, LARGE);
            theirs.write_all(&text).expect("it is read");
        });
        let text = pattern(LARGE);
        send(&mut ours, &text).await;
        assert!(receive(&mut ours, LARGE).await == text);
        joined(echo).await;
        assert_eq!(ours.outgoing().bytes_sent(), LARGE as u64);
    });
}

#[test]
fn a_connection_goes_on_on_another_core() {
    on_each_kind(async |kind| {
        let bench = Bench::new();
        let mut connections: Vec<_> = clients(&bench)
            .await
            .into_iter()
            .map(|(ours, theirs)| (ours, Box::new(theirs) as Box<dyn Peer>))
            .collect();
        let (clear, clear_peer) = bench.socket().await;
        connections.push((clear, Box::new(clear_peer)));
        for (mut ours, mut theirs) in connections {
            theirs.write_all(b"one, two").expect("it is open");
            assert_eq!(receive(&mut ours, 4).await, b"one,");
            assert!(ours.dismantle().is_none(), "something waits to be read");
            assert_eq!(receive(&mut ours, 4).await, b" two");
            ours.outgoing().write(&[b"three"]).expect("a session");
            assert!(ours.dismantle().is_none(), "something waits to be sent");
            ours.outgoing().flush(LONG).await.expect("it is open");
            let (socket, session) = ours.dismantle().expect("nothing is under way");
            drop(ours);
            // What comes on the way waits in the socket.
            theirs.write_all(b"four").expect("it is open");
            let other = std::thread::spawn(move || {
                let serve = async {
                    let bench = Bench::new();
                    let socket = rt::adopt(socket).expect("it is open");
                    let mut ours = Transport::new(socket, &bench.tick, &bench.buffers);
                    ours.resume(session);
                    assert_eq!(receive(&mut ours, 4).await, b"four");
                    send(&mut ours, b", five").await;
                    ours.goodbye().await;
                };
                rt::run(kind, Duration::ZERO, serve).expect("the driver runs here too");
            });
            joined(other).await;
            let text = elsewhere(move || read_all(&mut theirs)).await;
            assert_eq!(text.expect("a clean end"), b"three, five");
        }
    });
}

/// The other end, whether it speaks TLS or not.
trait Peer: std::io::Read + std::io::Write + Send {}

impl<T: std::io::Read + std::io::Write + Send> Peer for T {}

/// Both directions at once, each blocked for as long as the other one is not served.
#[test]
fn the_directions_do_not_wait_for_each_other() {
    on_each_driver(async || {
        let bench = Bench::new();
        for (mut ours, mut theirs) in clients(&bench).await {
            let peer = std::thread::spawn(move || {
                // Sends all of its own before it takes a byte.
                theirs.write_all(&pattern(LARGE)).expect("it is read");
                read_exactly(&mut theirs, LARGE)
            });
            let text = pattern(LARGE);
            let (mut incoming, mut outgoing) = ours.split();
            outgoing.write(&[&text]).expect("a session");
            let receiving = async {
                let mut received = Vec::new();
                while received.len() < LARGE {
                    incoming.fill(LONG).await.expect("it comes");
                    incoming.take(|chunk| {
                        received.extend_from_slice(chunk);
                        (chunk.len(), ())
                    });
                }
                received
            };
            let (received, sent) = join(receiving, outgoing.flush(LONG)).await;
            sent.expect("it is read in the end");
            assert!(received == text);
            assert!(joined(peer).await == text);
        }
    });
}

#[test]
fn a_message_of_many_slices() {
    on_each_driver(async || {
        let bench = Bench::new();
        let (mut ours, mut theirs) = bench.client().await;
        let text = pattern(400);
        for count in [1, 2, 31, 200] {
            let slices: Vec<&[u8]> = text.chunks(2).take(count).collect();
            let mut outgoing = ours.outgoing();
            outgoing.write(&slices).expect("a session");
            outgoing.flush(LONG).await.expect("it is read");
            assert_eq!(read_exactly(&mut theirs, 2 * count), slices.concat());
        }
    });
}

#[test]
fn what_follows_a_message_stays() {
    on_each_driver(async || {
        let bench = Bench::new();
        let (mut tls, mut tls_peer) = bench.client().await;
        let (mut clear, mut clear_peer) = bench.socket().await;
        tls_peer.write_all(b"one").expect("it is open");
        tls_peer.write_all(b"two, three").expect("it is open");
        clear_peer.write_all(b"onetwo, three").expect("it is open");
        for ours in [&mut tls, &mut clear] {
            assert_eq!(receive(ours, 4).await, b"onet");
            assert!(ours.incoming().has_leftover());
            assert!(!ours.is_still_idle(), "somebody would get another's answer");
            // It is at hand without a wait.
            assert_eq!(ours.incoming().ready().ok(), Some(Some(Filled::Data)));
            assert_eq!(receive(ours, 9).await, b"wo, three");
            assert!(!ours.incoming().has_leftover());
            assert_eq!(ours.incoming().ready().ok(), Some(None));
        }
        assert!(clear.is_still_idle());
    });
}

/// An answer that ends where the connection does is whole only if the end was said.
/// A record is used up, part of the next one stands behind it, and its rest is waited for.
#[test]
fn a_part_of_a_record_behind_a_whole_one_is_kept_in_a_small_buffer() {
    on_each_driver(async || {
        let bench = Bench::new();
        for (mut ours, mut theirs) in clients(&bench).await {
            drain_tickets(&mut ours, &mut theirs).await;
            let mut records = Vec::new();
            for text in [&b"the first"[..], b"the second"] {
                theirs.conn.writer().write_all(text).expect("a session");
                while theirs.conn.wants_write() {
                    theirs.conn.write_tls(&mut records).expect("memory");
                }
            }
            let (now, later) = records.split_at(records.len() - 3);
            theirs.sock.write_all(now).expect("it is read");
            assert!(receive(&mut ours, 9).await == b"the first");
            let rest = async {
                // Behind the first look, which finds nothing.
                rt::yield_now().await;
                theirs.sock.write_all(later).expect("it is read");
            };
            let (filled, ()) = join(ours.incoming().fill(LONG), rest).await;
            assert_eq!(filled.expect("it comes"), Filled::Data);
            assert!(receive(&mut ours, 10).await == b"the second");
        }
    });
}

#[test]
fn a_goodbye_is_an_end_and_a_bare_fin_is_not() {
    on_each_driver(async || {
        let bench = Bench::new();
        for (mut ours, mut theirs) in clients(&bench).await {
            theirs.write_all(b"whole").expect("it is open");
            theirs.conn.send_close_notify();
            theirs.flush().expect("it is open");
            assert_eq!(receive(&mut ours, 5).await, b"whole");
            for _ in 0..2 {
                assert_eq!(ours.incoming().fill(LONG).await.ok(), Some(Filled::End));
            }
            assert!(!ours.is_still_idle());
            // Our direction is still open.
            send(&mut ours, b"thanks").await;
            assert_eq!(read_exactly(&mut theirs, 6), b"thanks");
            ours.goodbye().await;
            let rest = elsewhere(move || read_all(&mut theirs)).await;
            assert_eq!(rest.expect("a goodbye of ours"), b"");
        }
        for (mut ours, mut theirs) in clients(&bench).await {
            theirs.write_all(b"half").expect("it is open");
            theirs.sock.shutdown(Shutdown::Write).expect("it is open");
            assert_eq!(receive(&mut ours, 4).await, b"half");
            for _ in 0..2 {
                let end = ours.incoming().fill(LONG).await;
                assert_eq!(
                    end.expect_err("cut").kind(),
                    ErrorKind::UnexpectedEof,
                    "anybody on the way can send a FIN"
                );
            }
            assert!(!ours.is_still_idle());
            drop(ours);
            let end = elsewhere(move || read_all(&mut theirs)).await;
            assert_eq!(
                end.expect_err("no goodbye of ours either").kind(),
                ErrorKind::UnexpectedEof
            );
        }
        let (mut ours, peer) = bench.socket().await;
        peer.shutdown(Shutdown::Write).expect("it is open");
        assert_eq!(ours.incoming().fill(LONG).await.ok(), Some(Filled::End));
    });
}

#[test]
fn a_reset_is_an_error() {
    on_each_driver(async || {
        let bench = Bench::new();
        let (mut ours, peer) = bench.socket().await;
        rt::reset_on_close(std::os::fd::AsRawFd::as_raw_fd(&peer));
        drop(peer);
        let end = ours.incoming().fill(LONG).await;
        assert_eq!(end.expect_err("reset").kind(), ErrorKind::ConnectionReset);
        // And one of ours, so that nobody takes what was sent for the whole.
        let (mut ours, mut peer) = bench.socket().await;
        send(&mut ours, b"half").await;
        assert_eq!(read_exactly(&mut peer, 4), b"half");
        ours.outgoing().reset();
        drop(ours);
        let end = elsewhere(move || read_all(&mut peer)).await;
        assert_eq!(end.expect_err("reset").kind(), ErrorKind::ConnectionReset);
    });
}

#[test]
fn bytes_that_are_no_tls_end_the_session() {
    on_each_driver(async || {
        let bench = Bench::new();
        let (mut ours, theirs) = bench.client().await;
        let mut raw = &theirs.sock;
        raw.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            .expect("it is open");
        let end = ours.incoming().fill(LONG).await;
        assert_eq!(end.expect_err("no TLS").kind(), ErrorKind::InvalidData);
    });
}

#[test]
fn a_certificate_of_somebody_else_is_refused() {
    on_each_driver(async || {
        let bench = Bench::new();
        let (mut ours, peer) = bench.socket().await;
        let peer = std::thread::spawn(move || {
            let config = Arc::new(IMPOSTOR.server(&[]));
            let mut session = rustls::ServerConnection::new(config).expect("a good configuration");
            let mut peer = peer;
            loop {
                if let Err(error) = session.complete_io(&mut peer) {
                    return error;
                }
            }
        });
        let refused = ours
            .handshake(client(Arc::new(IDENTITY.client())))
            .await
            .expect_err("nobody vouches for it");
        assert_eq!(refused.kind(), ErrorKind::InvalidData);
        // The peer is told why.
        let told = joined(peer).await.to_string();
        assert!(told.contains("received fatal alert"), "{told}");
    });
}

#[test]
fn a_peer_that_leaves_amid_the_handshake() {
    on_each_driver(async || {
        let bench = Bench::new();
        let (mut ours, peer) = bench.socket().await;
        peer.shutdown(Shutdown::Write).expect("it is open");
        let end = ours
            .handshake(client(Arc::new(IDENTITY.client())))
            .await
            .expect_err("nobody is there");
        assert_eq!(end.kind(), ErrorKind::UnexpectedEof);
    });
}

#[test]
fn tickets_leave_a_connection_idle() {
    on_each_driver(async || {
        let bench = Bench::new();
        let config = Arc::new(IDENTITY.client());
        let server = Arc::new(IDENTITY.server(&[]));
        for expected in [rustls::HandshakeKind::Full, rustls::HandshakeKind::Resumed] {
            let (mut ours, theirs) = bench.socket().await;
            let fd = ours.watch().fd();
            let server = Arc::clone(&server);
            let theirs = std::thread::spawn(move || accept_tls(theirs, &server));
            ours.handshake(client(Arc::clone(&config)))
                .await
                .expect("the peer is trusted");
            let mut theirs = joined(theirs).await;
            assert_eq!(
                ours.is_resumed(),
                expected == rustls::HandshakeKind::Resumed
            );
            theirs.flush().expect("it is open");
            // The tickets come behind the handshake; they are taken in unasked.
            until(|| rt::peek(fd) == rt::Peeked::Bytes).await;
            assert!(ours.is_still_idle());
            assert_eq!(rt::peek(fd), rt::Peeked::Quiet, "they were taken in");
            assert!(ours.is_still_idle());
            // The session has lost nothing by it.
            send(&mut ours, b"question").await;
            assert_eq!(read_exactly(&mut theirs, 8), b"question");
            theirs.write_all(b"answer").expect("it is open");
            assert_eq!(receive(&mut ours, 6).await, b"answer");
            assert!(ours.is_still_idle());
        }
    });
}

#[test]
fn a_look_between_exchanges_disturbs_nothing() {
    on_each_driver(async || {
        let bench = Bench::new();
        for (mut ours, mut theirs) in clients(&bench).await {
            for round in 0..20u8 {
                send(&mut ours, &[round; 3]).await;
                assert_eq!(read_exactly(&mut theirs, 3), [round; 3]);
                theirs.write_all(&[round; 500]).expect("it is open");
                assert_eq!(receive(&mut ours, 500).await, [round; 500]);
                assert!(ours.is_still_idle(), "round {round}");
            }
        }
    });
}

#[test]
fn what_is_not_as_it_was_left_is_not_idle() {
    on_each_driver(async || {
        let bench = Bench::new();
        // Closed, with and without a goodbye, reset, and bytes nobody asked for.
        type Act = fn(ServerPeer);
        let acts: [Act; 4] = [
            |mut theirs| {
                theirs.conn.send_close_notify();
                theirs.flush().expect("it is open");
            },
            |theirs| theirs.sock.shutdown(Shutdown::Both).expect("it is open"),
            |theirs| rt::reset_on_close(std::os::fd::AsRawFd::as_raw_fd(&theirs.sock)),
            |mut theirs| {
                theirs
                    .write_all(b"HTTP/1.1 408 Request Timeout\r\n")
                    .expect("open")
            },
        ];
        for act in acts {
            let (mut ours, mut theirs) = bench.client().await;
            drain_tickets(&mut ours, &mut theirs).await;
            let fd = ours.watch().fd();
            act(theirs);
            until(|| rt::peek(fd) != rt::Peeked::Quiet).await;
            assert!(!ours.is_still_idle());
            assert!(!ours.is_still_idle());
        }
        // Bytes in clear text can only be wrong.
        let (mut ours, mut peer) = bench.socket().await;
        assert!(ours.is_still_idle());
        peer.write_all(b"?").expect("it is open");
        let fd = ours.watch().fd();
        until(|| rt::peek(fd) == rt::Peeked::Bytes).await;
        assert!(!ours.is_still_idle());
        // Time that is up, too.
        let (mut ours, _peer) = bench.socket().await;
        ours.watch().recv_within(Duration::ZERO);
        bench.tick.sweep_at(1_000, false);
        assert!(!ours.is_still_idle());
    });
}

/// Sees to it that nothing is on its way.
async fn drain_tickets(ours: &mut Transport, theirs: &mut ServerPeer) {
    theirs.write_all(b"ready").expect("it is open");
    assert_eq!(receive(ours, 5).await, b"ready");
    assert!(ours.is_still_idle());
}

#[test]
fn an_idle_transport_holds_no_buffer() {
    on_each_driver(async || {
        let bench = Bench::new();
        let buffer = bench.buffers.take_recv(RECV_BYTES);
        let place = buffer.as_ptr();
        bench.buffers.give_recv(buffer);
        let is_home = || {
            let buffer = bench.buffers.take_recv(RECV_BYTES);
            let home = buffer.as_ptr() == place;
            bench.buffers.give_recv(buffer);
            home
        };
        let (mut ours, mut theirs) = bench.client().await;
        assert!(is_home(), "after the handshake");
        drain_tickets(&mut ours, &mut theirs).await;
        assert!(is_home(), "after a message");
        theirs.write_all(b"rest").expect("it is open");
        ours.incoming().fill(LONG).await.expect("it comes");
        drop(ours);
        assert!(is_home(), "after the end");
        drop(theirs);
        let (mut ours, mut peer) = bench.socket().await;
        peer.write_all(b"text").expect("it is open");
        assert_eq!(receive(&mut ours, 4).await, b"text");
        assert!(is_home(), "after a message in clear text");
    });
}

/// A send that was dropped may have left in part: nothing may follow it.
#[test]
fn nothing_follows_a_send_that_was_given_up() {
    on_each_driver(async || {
        let bench = Bench::new();
        let (mut ours, mut peer) = bench.socket().await;
        let mut outgoing = ours.outgoing();
        outgoing
            .write(&[&pattern(32 * 1024 * 1024)])
            .expect("clear text");
        let given_up = rt::timeout(Duration::from_millis(1), outgoing.flush(LONG)).await;
        assert!(given_up.is_none(), "nobody reads it");
        outgoing.write(&[b"another message"]).expect("clear text");
        assert!(outgoing.flush(LONG).await.is_err());
        drop(ours);
        let arrived = elsewhere(move || read_all(&mut peer)).await;
        assert!(!arrived.is_ok_and(|all| all.ends_with(b"another message")));
    });
}

#[test]
fn a_goodbye_to_nobody_does_not_wait() {
    on_each_driver(async || {
        let bench = Bench::new();
        let (mut ours, theirs) = bench.client().await;
        drop(theirs);
        ours.goodbye().await;
        ours.goodbye().await;
    });
}

#[test]
fn the_peer_may_be_a_client_as_well() {
    on_each_driver(async || {
        let bench = Bench::new();
        let (mut ours, theirs) = bench.socket().await;
        let theirs = std::thread::spawn(move || -> ClientPeer {
            let config = Arc::new(IDENTITY.client());
            let session = ClientConnection::new(config, IDENTITY.name()).expect("a good name");
            let mut peer = StreamOwned::new(session, theirs);
            peer.write_all(b"question").expect("it is open");
            peer
        });
        let config = Arc::new(IDENTITY.server(&["http/1.1"]));
        let handshake = Handshake::server(config).expect("a good configuration");
        ours.handshake(handshake).await.expect("a good client");
        // The ticket does not wait for an answer (see `handshake`).
        assert!(!ours.outgoing().wants_send());
        assert!(ours.outgoing().bytes_sent() > 0);
        assert_eq!(receive(&mut ours, 8).await, b"question");
        let mut theirs = joined(theirs).await;
        send(&mut ours, b"answer").await;
        ours.goodbye().await;
        let all = elsewhere(move || read_all(&mut theirs)).await;
        assert_eq!(all.expect("a goodbye"), b"answer");
    });
}
