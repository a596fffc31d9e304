use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use futures_util::future::join;

use super::*;

/// A wait that is never waited for: whoever does hangs, and fails by it.
const LONG: Duration = Duration::from_secs(3600);

/// Runs a test on loops that sleep at once, and that look for events first.
fn on_a_loop(test: impl AsyncFn(Rc<Loop>)) {
    for busy_poll in [Duration::ZERO, Duration::from_millis(2)] {
        let home = Loop::new(busy_poll).expect("descriptors are left");
        home.run(test(Rc::clone(&home)));
    }
}

/// A socket in the loop, and its peer.
fn pair(home: &Rc<Loop>) -> (UnixStream, Registered, UnixStream) {
    let (ours, peer) = UnixStream::pair().expect("descriptors are left");
    ours.set_nonblocking(true).expect("it is open");
    let registered = home.register(ours.as_raw_fd()).expect("it is open");
    (ours, registered, peer)
}

/// Receives once, as `rt::Receiver` does.
async fn receive(mut ours: &UnixStream, registered: &Registered) -> Vec<u8> {
    let mut buffer = [0; 64];
    loop {
        registered.readable().await;
        match ours.read(&mut buffer) {
            Ok(n) => {
                if n < buffer.len() {
                    registered.drained();
                }
                return buffer[..n].to_vec();
            }
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                registered.drained();
            }
        }
    }
}

/// Counts how often it is polled.
async fn count(polls: Rc<Cell<u32>>, woken: Rc<Cell<Option<Waker>>>) {
    poll_fn(|context| {
        polls.set(polls.get() + 1);
        woken.set(Some(context.waker().clone()));
        Poll::Pending
    })
    .await
}

#[test]
fn each_message_is_told_of_once_it_is_there() {
    on_a_loop(async |home| {
        let (ours, registered, mut peer) = pair(&home);
        for text in ["one", "two", "three"] {
            let (received, ()) = join(receive(&ours, &registered), async {
                // The receive finds nothing at first.
                yield_now().await;
                peer.write_all(text.as_bytes()).expect("it is open");
            })
            .await;
            assert_eq!(received, text.as_bytes());
        }
    });
}

#[test]
fn an_end_behind_the_last_bytes_is_seen_although_one_event_told_of_both() {
    on_a_loop(async |home| {
        let (ours, registered, mut peer) = pair(&home);
        // Found empty, so that only events count from here.
        assert!((&ours).read(&mut [0]).is_err());
        registered.drained();
        peer.write_all(b"last").expect("it is open");
        drop(peer);
        assert_eq!(receive(&ours, &registered).await, b"last");
        assert_eq!(receive(&ours, &registered).await, b"");
        assert_eq!(receive(&ours, &registered).await, b"", "again and again");
    });
}

#[test]
fn who_found_no_room_is_told_when_there_is_some() {
    on_a_loop(async |home| {
        let (mut ours, registered, mut peer) = pair(&home);
        let mut sent = 0;
        loop {
            match ours.write(&[7; 4096]) {
                Ok(n) => sent += n,
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                    registered.filled();
                    break;
                }
            }
        }
        let reader = std::thread::spawn(move || {
            let mut all = Vec::new();
            peer.read_to_end(&mut all).map(|_| all.len())
        });
        registered.writable().await;
        loop {
            registered.writable().await;
            match ours.write(b"more") {
                Ok(n) => break sent += n,
                Err(_) => registered.filled(),
            }
        }
        drop(registered);
        drop(ours);
        let read = reader.join().expect("it did not panic");
        assert_eq!(read.expect("a clean end"), sent);
    });
}

#[test]
fn a_wait_that_is_given_up_loses_nothing() {
    on_a_loop(async |home| {
        let (ours, registered, mut peer) = pair(&home);
        for _ in 0..100 {
            let given_up = std::pin::pin!(receive(&ours, &registered));
            let paused = std::pin::pin!(yield_now());
            let (_, _) = match futures_util::future::select(given_up, paused).await {
                futures_util::future::Either::Left(_) => panic!("nothing was sent"),
                futures_util::future::Either::Right(((), _)) => ((), ()),
            };
            peer.write_all(b"word").expect("it is open");
            assert_eq!(receive(&ours, &registered).await, b"word");
        }
    });
}

#[test]
fn times_come_in_order_and_leave_nothing_behind() {
    on_a_loop(async |home| {
        let order = Rc::new(RefCell::new(Vec::new()));
        for ms in [9, 3, 6] {
            let (order, home) = (Rc::clone(&order), Rc::clone(&home));
            let again = Rc::clone(&home);
            home.spawn(async move {
                sleep(again, Duration::from_millis(ms)).await;
                order.borrow_mut().push(ms);
            });
        }
        let begun = Instant::now();
        sleep(Rc::clone(&home), Duration::from_millis(20)).await;
        assert!(begun.elapsed() >= Duration::from_millis(20), "never early");
        assert_eq!(*order.borrow(), [3, 6, 9]);
        // One that is given up is not waited for.
        let mut given_up = Box::pin(sleep(Rc::clone(&home), LONG));
        let mut context = Context::from_waker(Waker::noop());
        assert!(given_up.as_mut().poll(&mut context).is_pending());
        assert_eq!(home.timers.borrow().len(), 1);
        drop(given_up);
        assert_eq!(home.timers.borrow().len(), 0);
    });
}

#[test]
fn a_task_is_run_once_however_often_it_is_woken() {
    on_a_loop(async |home| {
        let (polls, woken) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(None)));
        home.spawn(count(Rc::clone(&polls), Rc::clone(&woken)));
        yield_now().await;
        assert_eq!(polls.get(), 1);
        let waker: Waker = woken.take().expect("it was polled");
        for _ in 0..3 {
            waker.wake_by_ref();
        }
        yield_now().await;
        assert_eq!(polls.get(), 2);
    });
}

#[test]
fn a_late_wake_up_does_not_meet_the_next_task_in_its_place() {
    on_a_loop(async |home| {
        let kept = Rc::new(Cell::new(None));
        let keeps = Rc::clone(&kept);
        home.spawn(poll_fn(move |context| {
            keeps.set(Some(context.waker().clone()));
            Poll::Ready(())
        }));
        yield_now().await;
        let late: Waker = kept.take().expect("it was polled");
        let (polls, woken) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(None)));
        home.spawn(count(Rc::clone(&polls), woken));
        yield_now().await;
        late.wake();
        yield_now().await;
        assert_eq!(polls.get(), 1);
    });
}

#[test]
fn tasks_that_wake_themselves_leave_sockets_their_turn() {
    on_a_loop(async |home| {
        let (ours, registered, mut peer) = pair(&home);
        let over = Rc::new(Cell::new(false));
        for _ in 0..3 {
            let over = Rc::clone(&over);
            home.spawn(async move {
                while !over.get() {
                    yield_now().await;
                }
            });
        }
        peer.write_all(b"in between").expect("it is open");
        registered.drained();
        assert_eq!(receive(&ours, &registered).await, b"in between");
        over.set(true);
    });
}

#[test]
fn the_end_drops_what_still_runs_and_what_that_holds() {
    let home = Loop::new(Duration::ZERO).expect("descriptors are left");
    let mut peer = home.run(async {
        let (ours, registered, peer) = pair(&home);
        let _ended = StartsAnother(Rc::clone(&home));
        let starts = StartsAnother(Rc::clone(&home));
        home.spawn(async move {
            let _until_the_end = (registered, ours, starts);
            std::future::pending().await
        });
        peer
    });
    assert_eq!(peer.read(&mut [0]).expect("a clean end"), 0, "it is closed");
    assert!(Loop::current().is_none());
    assert_eq!(Rc::strong_count(&home), 1, "nothing holds it");
    // And it may run again.
    assert_eq!(home.run(async { 7 }), 7);
}

/// Starts a task when it is dropped, as an end may.
struct StartsAnother(Rc<Loop>);

impl Drop for StartsAnother {
    fn drop(&mut self) {
        self.0.spawn(std::future::pending());
    }
}

#[test]
fn a_place_is_used_again() {
    let mut slots = Slots::default();
    for value in ["a", "b", "c"] {
        slots.insert(value);
    }
    assert_eq!(slots.remove(1), Some("b"));
    assert_eq!(slots.remove(1), None, "once");
    assert_eq!((slots.get(1), slots.next()), (None, 1));
    slots.insert("d");
    assert_eq!((slots.get(1), slots.get(2)), (Some(&"d"), Some(&"c")));
    assert_eq!(slots.next(), 3);
}
