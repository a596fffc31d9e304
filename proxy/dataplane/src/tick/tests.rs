use std::io::{self, Write};
use std::net::Shutdown;

use futures_util::future::join;

use super::*;
use crate::test_support::{
    Bench, LONG, elsewhere, is_cut, is_quiet, on_each_driver, on_each_kind, pattern, read_all,
    read_exactly, receive, send,
};
use crate::transport::Filled;

/// Beyond every limit of these tests but `LONG`.
const LATER_MS: u64 = 1_000_000;

const LIMIT: Duration = Duration::from_secs(5);

/// The first moment at which `LIMIT`, counted from 0, is over.
fn due_ms() -> u64 {
    (LIMIT + PERIOD).as_millis() as u64
}

fn kind<T: std::fmt::Debug>(result: io::Result<T>) -> io::ErrorKind {
    result.expect_err("this must fail").kind()
}

#[test]
fn a_late_receive_times_out_and_the_socket_still_sends() {
    on_each_driver(async || {
        let bench = Bench::new();
        let (mut ours, mut peer) = bench.socket().await;
        let (filled, ()) = join(async { ours.incoming().fill(LIMIT).await }, async {
            bench.tick.sweep_at(due_ms(), false)
        })
        .await;
        assert_eq!(kind(filled), io::ErrorKind::TimedOut);
        assert!(ours.watch().is_expired() && ours.watch().is_recv_late());
        assert!(!ours.watch().is_send_late());
        send(&mut ours, b"408").await;
        assert_eq!(read_exactly(&mut peer, 3), b"408");
        // It is over for good, whatever still comes.
        peer.write_all(b"late").expect("the peer's side is open");
        assert!(!matches!(
            ours.incoming().fill(LIMIT).await,
            Ok(Filled::Data)
        ));
    });
}

#[test]
fn nobody_is_cut_early() {
    on_each_driver(async || {
        let bench = Bench::new();
        let (mut ours, mut peer) = bench.socket().await;
        bench.tick.sweep_at(70, false);
        let (filled, ()) = join(async { ours.incoming().fill(LIMIT).await }, async {
            // The clock was up to a period old when the limit began to run.
            bench.tick.sweep_at(70 + due_ms() - 1, false);
            peer.write_all(b"in time").expect("it is open");
        })
        .await;
        assert_eq!(filled.expect("it is in time"), Filled::Data);
        bench.tick.sweep_at(LATER_MS, false);
        assert!(
            !ours.watch().is_expired(),
            "a receive that ended is not due"
        );
        assert_eq!(receive(&mut ours, 7).await, b"in time");
        send(&mut ours, b"ok").await;
        assert_eq!(read_exactly(&mut peer, 2), b"ok");
    });
}

#[test]
fn a_late_send_times_out() {
    on_each_driver(async || {
        let bench = Bench::new();
        let (mut ours, mut peer) = bench.socket().await;
        // More than both sockets' buffers hold.
        let much = pattern(32 * 1024 * 1024);
        let mut outgoing = ours.outgoing();
        outgoing.write(&[&much]).expect("clear text");
        let (sent, ()) = join(outgoing.flush(LIMIT), async {
            bench.tick.sweep_at(due_ms(), false);
        })
        .await;
        assert_eq!(kind(sent), io::ErrorKind::TimedOut);
        assert!(outgoing.bytes_sent() < much.len() as u64);
        assert!(ours.watch().is_send_late() && !ours.watch().is_recv_late());
        // Both directions are cut, and whoever reads on does not see an end.
        let end = elsewhere(move || read_all(&mut peer)).await;
        assert_eq!(kind(end.map(drop)), io::ErrorKind::ConnectionReset);
    });
}

#[test]
fn a_send_in_time_leaves_nothing_due() {
    on_each_driver(async || {
        let bench = Bench::new();
        let (mut ours, mut peer) = bench.socket().await;
        send(&mut ours, b"one").await;
        bench.tick.sweep_at(LATER_MS, false);
        send(&mut ours, b"two").await;
        assert_eq!(read_exactly(&mut peer, 6), b"onetwo");
        assert!(!ours.watch().is_expired());
    });
}

#[test]
fn a_cold_receive_gives_its_buffer_back() {
    on_each_kind(async |kind| {
        let bench = Bench::new();
        let (mut ours, mut peer) = bench.socket().await;
        let buffer = bench.buffers.take_recv(crate::buffer::RECV_BYTES);
        let place = buffer.as_ptr();
        bench.buffers.give_recv(buffer);
        if kind == rt::DriverKind::Epoll {
            // It has none: it waits for readiness from the start.
            let (filled, ()) = join(async { ours.incoming().fill(LONG).await }, async {
                rt::yield_now().await;
                let other = bench.buffers.take_recv(crate::buffer::RECV_BYTES);
                assert_eq!(other.as_ptr(), place, "nobody has it");
                bench.buffers.give_recv(other);
                peer.write_all(b"after a pause").expect("it is open");
            })
            .await;
            assert_eq!(filled.expect("it goes on"), Filled::Data);
            assert_eq!(receive(&mut ours, 13).await, b"after a pause");
            return;
        }
        let (filled, ()) = join(async { ours.incoming().fill(LONG).await }, async {
            let other = bench.buffers.take_recv(crate::buffer::RECV_BYTES);
            assert_ne!(other.as_ptr(), place, "the receive has it");
            bench.tick.sweep_at(COLD_AFTER_MS - 1, false);
            rt::yield_now().await;
            let other = bench.buffers.take_recv(crate::buffer::RECV_BYTES);
            assert_ne!(other.as_ptr(), place, "it is warm");
            bench.tick.sweep_at(COLD_AFTER_MS, false);
            let back = loop {
                // Whatever else is there is not it.
                let buffer = bench.buffers.take_recv(crate::buffer::RECV_BYTES);
                if buffer.as_ptr() == place {
                    break buffer;
                }
                rt::sleep(Duration::from_millis(1)).await;
            };
            // A second stop finds nothing to end.
            bench.tick.sweep_at(LATER_MS / 2, false);
            bench.buffers.give_recv(back);
            peer.write_all(b"after a pause").expect("it is open");
        })
        .await;
        assert_eq!(filled.expect("it goes on"), Filled::Data);
        assert_eq!(receive(&mut ours, 13).await, b"after a pause");
    });
}

#[test]
fn a_cold_receive_ends_as_a_warm_one_does() {
    on_each_driver(async || {
        let bench = Bench::new();
        // By its limit.
        let (mut ours, _peer) = bench.socket().await;
        let (filled, ()) = join(async { ours.incoming().fill(LIMIT).await }, async {
            bench.tick.sweep_at(COLD_AFTER_MS, false);
            rt::sleep(Duration::from_millis(2)).await;
            bench.tick.sweep_at(due_ms(), false);
        })
        .await;
        assert_eq!(kind(filled), io::ErrorKind::TimedOut);
        // By its peer.
        let (mut ours, peer) = bench.socket().await;
        let start_ms = bench.tick.now_ms();
        let (filled, ()) = join(async { ours.incoming().fill(LONG).await }, async {
            bench.tick.sweep_at(start_ms + COLD_AFTER_MS, false);
            rt::sleep(Duration::from_millis(2)).await;
            peer.shutdown(Shutdown::Write).expect("it is open");
        })
        .await;
        assert_eq!(filled.expect("a clean end"), Filled::End);
    });
}

/// Bytes arrive before, while and after the receive is stopped; each arrives once.
#[test]
fn stopping_loses_no_byte() {
    const ROUNDS: usize = 500;
    const WORD: usize = 16;
    on_each_driver(async || {
        let bench = Bench::new();
        let (mut ours, mut peer) = bench.socket().await;
        let text = pattern(ROUNDS * WORD);
        let mut received = Vec::new();
        for (round, word) in text.chunks(WORD).enumerate() {
            let now_ms = (round as u64 + 1) * 2 * COLD_AFTER_MS;
            let missing = (round + 1) * WORD - received.len();
            let (bytes, ()) = join(receive(&mut ours, missing), async {
                let stop = || bench.tick.sweep_at(now_ms, false);
                match round % 4 {
                    0 => {
                        peer.write_all(word).expect("it is open");
                        stop();
                    }
                    1 => {
                        stop();
                        peer.write_all(word).expect("it is open");
                    }
                    2 => {
                        stop();
                        rt::yield_now().await;
                        peer.write_all(word).expect("it is open");
                        stop();
                    }
                    _ => {
                        let (one, other) = word.split_at(WORD / 2);
                        peer.write_all(one).expect("it is open");
                        stop();
                        rt::yield_now().await;
                        peer.write_all(other).expect("it is open");
                        bench.tick.sweep_at(now_ms + COLD_AFTER_MS, false);
                    }
                }
            })
            .await;
            received.extend(bytes);
        }
        assert!(received == text);
    });
}

#[test]
fn draining_ends_what_waits_for_a_request_and_nothing_else() {
    on_each_driver(async || {
        let bench = Bench::new();
        let (mut idle, mut idle_peer) = bench.socket().await;
        let (mut busy, mut busy_peer) = bench.socket().await;
        let (mut young, mut young_peer) = bench.socket().await;
        let second = Duration::from_secs(1);
        let (ends, ()) = join(
            async {
                let (idle, (busy, young)) = join(
                    async { idle.incoming().fill_idle(LONG, Duration::ZERO).await },
                    join(async { busy.incoming().fill(LONG).await }, async {
                        young.incoming().fill_idle(LONG, second).await
                    }),
                )
                .await;
                (idle, busy, young)
            },
            async {
                bench.tick.sweep_at(0, false);
                bench.tick.sweep_at(1, true);
                busy_peer.write_all(b"x").expect("it is open");
                young_peer.write_all(b"x").expect("it is open");
            },
        )
        .await;
        assert_eq!(ends.0.expect("an idle end is a clean one"), Filled::End);
        assert_eq!(ends.1.expect("a body goes on"), Filled::Data);
        assert_eq!(
            ends.2.expect("a first request has its chance"),
            Filled::Data
        );
        assert!(!idle.watch().is_expired());
        // It can still say goodbye.
        send(&mut idle, b"bye").await;
        assert_eq!(read_exactly(&mut idle_peer, 3), b"bye");
        // After its grace the young one is as idle as any, and once served it is not.
        receive(&mut young, 1).await;
        bench.tick.sweep_at(LATER_MS, true);
        let (end, ()) = join(
            async { young.incoming().fill_idle(LONG, second).await },
            async { bench.tick.sweep_at(LATER_MS + 1_100, true) },
        )
        .await;
        assert_eq!(end.expect("an idle end is a clean one"), Filled::End);
    });
}

/// Lets the sweep look for hang-ups, at a time when it looks at all.
fn look(tick: &Tick, now_ms: u64) {
    for _ in 0..HANGUP_SWEEPS {
        tick.sweep_at(now_ms, false);
    }
}

#[test]
fn a_hang_up_cuts_the_partner_only() {
    on_each_driver(async || {
        let bench = Bench::new();
        let (mut down, mut caller) = bench.socket().await;
        let (mut up, mut upstream) = bench.socket().await;
        let (other, other_peer) = bench.socket().await;
        down.watch().watch(Some(up.watch()));
        look(&bench.tick, WATCH_AFTER_MS);
        assert!(!down.watch().is_hung_up(), "nobody has");
        caller.shutdown(Shutdown::Write).expect("it is open");
        look(&bench.tick, WATCH_AFTER_MS - 1);
        assert!(!down.watch().is_hung_up(), "too young to be looked at");
        assert!(is_quiet(&upstream));
        let (filled, ()) = join(async { up.incoming().fill(LONG).await }, async {
            look(&bench.tick, WATCH_AFTER_MS)
        })
        .await;
        assert_eq!(filled.expect("a cut looks like an end"), Filled::End);
        assert!(down.watch().is_hung_up() && !up.watch().is_hung_up());
        assert!(elsewhere(move || is_cut(&mut upstream)).await);
        // The caller's own socket is not cut: it may have closed one side only.
        send(&mut down, b"answer").await;
        assert_eq!(read_exactly(&mut caller, 6), b"answer");
        assert!(is_quiet(&other_peer) && !other.watch().is_hung_up());
    });
}

#[test]
fn a_watch_ends_when_it_is_said_to() {
    on_each_driver(async || {
        let bench = Bench::new();
        let (down, caller) = bench.socket().await;
        let (up, upstream) = bench.socket().await;
        down.watch().watch(Some(up.watch()));
        down.watch().unwatch();
        drop(caller);
        look(&bench.tick, LATER_MS);
        assert!(!down.watch().is_hung_up());
        assert!(is_quiet(&upstream));
        // A watch without a partner only notes it.
        down.watch().watch(None);
        look(&bench.tick, LATER_MS + WATCH_AFTER_MS);
        assert!(down.watch().is_hung_up());
        assert!(is_quiet(&upstream));
    });
}

#[test]
fn a_reset_is_a_hang_up() {
    on_each_driver(async || {
        let bench = Bench::new();
        let (ours, peer) = bench.socket().await;
        ours.watch().watch(None);
        rt::reset_on_close(std::os::fd::AsRawFd::as_raw_fd(&peer));
        drop(peer);
        look(&bench.tick, WATCH_AFTER_MS);
        assert!(ours.watch().is_hung_up());
    });
}

/// A number of a closed socket soon names another one. `new` stands for that one.
#[test]
fn a_registration_that_is_gone_never_cuts_its_successor() {
    on_each_driver(async || {
        let bench = Bench::new();
        let (new, mut new_peer) = bench.socket().await;
        let register = || bench.tick.register(new.watch().fd(), Stop::default());

        let old = register();
        old.recv_within(Duration::ZERO);
        old.send_within(Duration::ZERO);
        old.idle(Duration::ZERO);
        drop(old);
        bench.tick.sweep_at(LATER_MS, true);
        assert!(is_quiet(&new_peer));

        // Also as somebody's partner, even one that the sweep has in hand.
        let (down, caller) = bench.socket().await;
        let old = register();
        down.watch().watch(Some(&old));
        let kept = Rc::clone(&old.slot);
        drop(old);
        drop(caller);
        look(&bench.tick, 2 * LATER_MS);
        assert!(down.watch().is_hung_up());
        assert!(is_quiet(&new_peer));
        drop(kept);

        let mut new = new;
        send(&mut new, b"alive").await;
        assert_eq!(read_exactly(&mut new_peer, 5), b"alive");
        assert!(!new.watch().is_expired() && !new.watch().is_hung_up());
    });
}

#[test]
fn places_are_used_again() {
    let tick = Tick::new();
    let places = || tick.slots.borrow().entries.len();
    let mut held: Vec<_> = (0..3).map(|_| tick.register(-1, Stop::default())).collect();
    held.remove(1);
    held.push(tick.register(-1, Stop::default()));
    assert_eq!(places(), 3);
    held.clear();
    assert!(tick.slots.borrow().entries.iter().all(Option::is_none));
    held.push(tick.register(-1, Stop::default()));
    assert_eq!(places(), 3);
}

/// Whether our receiving side was cut: its task sees the end.
fn is_ended(ours: &crate::transport::Transport) -> bool {
    rt::peek(ours.watch().fd()) == rt::Peeked::Closed
}

#[test]
fn the_longest_idle_makes_room_and_nobody_who_is_busy() {
    on_each_driver(async || {
        let bench = Bench::new();
        let mut held = Vec::new();
        for now in [1000, 2000, 3000] {
            bench.tick.sweep_at(now, false);
            let (ours, peer) = bench.socket().await;
            ours.watch().idle(Duration::ZERO);
            held.push((ours, peer));
        }
        held[0].0.watch().busy();
        assert!(bench.tick.evict_one());
        assert!(is_ended(&held[1].0), "it had been idle for longest");
        assert!(bench.tick.evict_one());
        assert!(is_ended(&held[2].0));
        assert!(!bench.tick.evict_one(), "there is nobody else");
        assert!(!is_ended(&held[0].0));
    });
}

#[test]
fn a_handshake_makes_room_once_it_is_slow() {
    on_each_driver(async || {
        let bench = Bench::new();
        bench.tick.sweep_at(1000, false);
        let (ours, _peer) = bench.socket().await;
        ours.watch().may_be_evicted();
        assert!(!bench.tick.evict_one(), "it has only begun");
        let late = 1000 + (UNHURRIED + PERIOD).as_millis() as u64;
        bench.tick.sweep_at(late - 1, false);
        assert!(!bench.tick.evict_one());
        bench.tick.sweep_at(late, false);
        assert!(bench.tick.evict_one());
        assert!(is_ended(&ours));
    });
}

/// The search is short, and begins where the last one ended: whoever is far back has its turn.
#[test]
fn everybody_has_a_turn() {
    on_each_driver(async || {
        let bench = Bench::new();
        let mut held = Vec::new();
        for _ in 0..EVICTION_LOOKS_MAX * 2 {
            let (ours, peer) = bench.socket().await;
            ours.watch().idle(Duration::ZERO);
            held.push((ours, peer));
        }
        for _ in 0..held.len() {
            assert!(bench.tick.evict_one());
        }
        assert!(!bench.tick.evict_one());
        assert!(held.iter().all(|(ours, _)| is_ended(ours)));
    });
}
