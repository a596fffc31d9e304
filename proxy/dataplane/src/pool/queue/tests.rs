use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Wake, Waker};

use super::*;

/// A queue, and what was passed on.
#[derive(Clone, Default)]
struct Bench {
    queue: Rc<RefCell<Queue<u32>>>,
    passed_on: Rc<RefCell<Vec<u32>>>,
}

impl Line<u32> for Bench {
    fn with(&self, act: impl FnOnce(&mut Queue<u32>)) {
        act(&mut self.queue.borrow_mut());
    }

    fn pass_on(&self, grant: u32) {
        self.passed_on.borrow_mut().push(grant);
    }
}

impl Bench {
    fn wait(&self, fresh: bool) -> Waiting<u32, Bench> {
        self.wait_as(1, fresh)
    }

    /// As one of several callers.
    fn wait_as(&self, caller: u8, fresh: bool) -> Waiting<u32, Bench> {
        let mut queue = self.queue.borrow_mut();
        Waiting::new(&mut queue, address(caller), fresh, self.clone())
    }

    fn serve(&self, grant: u32) -> Result<(), u32> {
        self.queue.borrow_mut().serve(grant)
    }
}

fn address(caller: u8) -> IpAddr {
    Ipv4Addr::new(192, 0, 2, caller).into()
}

#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

fn poll(waiting: &mut Waiting<u32, Bench>, waker: &Waker) -> Poll<u32> {
    Pin::new(waiting).poll(&mut Context::from_waker(waker))
}

#[test]
fn first_come_first_served() {
    let bench = Bench::default();
    let woken = [Arc::new(Woken::default()), Arc::new(Woken::default())];
    let wakers = woken.clone().map(Waker::from);
    let (mut first, mut second) = (bench.wait(true), bench.wait(false));
    assert!(bench.queue.borrow().first_wants_fresh());
    assert_eq!(poll(&mut second, &wakers[1]), Poll::Pending);
    assert_eq!(poll(&mut first, &wakers[0]), Poll::Pending);
    assert_eq!(bench.serve(1), Ok(()));
    assert_eq!(woken[0].0.load(Ordering::Relaxed), 1);
    assert_eq!(woken[1].0.load(Ordering::Relaxed), 0);
    assert!(!bench.queue.borrow().first_wants_fresh());
    assert_eq!(poll(&mut second, &wakers[1]), Poll::Pending);
    assert_eq!(poll(&mut first, &wakers[0]), Poll::Ready(1));
    assert_eq!(bench.serve(2), Ok(()));
    assert_eq!(poll(&mut second, &wakers[1]), Poll::Ready(2));
    assert_eq!(bench.serve(3), Err(3), "nobody waits");
    assert!(bench.queue.borrow().is_empty());
    drop((first, second));
    assert!(bench.passed_on.borrow().is_empty());
}

#[test]
fn who_leaves_is_not_served() {
    let bench = Bench::default();
    let waker = Waker::noop();
    let (first, second, mut third) = (bench.wait(false), bench.wait(false), bench.wait(false));
    drop(second);
    assert_eq!(bench.queue.borrow().len(), 2);
    drop(first);
    assert_eq!(bench.serve(1), Ok(()));
    assert_eq!(poll(&mut third, waker), Poll::Ready(1));
}

/// Between being served and noticing it one may give up.
#[test]
fn a_grant_that_nobody_takes_is_passed_on() {
    let bench = Bench::default();
    let waiting = bench.wait(false);
    assert_eq!(bench.serve(7), Ok(()));
    drop(waiting);
    assert_eq!(*bench.passed_on.borrow(), [7]);
    assert!(bench.queue.borrow().is_empty());
}

/// Who is served by the next grants, by their places in `waiting`.
fn served(bench: &Bench, waiting: &mut [Waiting<u32, Bench>]) -> Vec<usize> {
    let mut order = Vec::new();
    let waker = Waker::noop();
    while bench.serve(0).is_ok() {
        order.extend((0..waiting.len()).filter(|&at| poll(&mut waiting[at], waker).is_ready()));
    }
    order
}

/// One that floods waits behind itself.
#[test]
fn callers_are_served_in_turn() {
    let bench = Bench::default();
    let mut waiting: Vec<_> = [1, 1, 1, 1, 2, 3, 2]
        .map(|caller| bench.wait_as(caller, false))
        .into();
    assert_eq!(served(&bench, &mut waiting), [0, 4, 5, 1, 6, 2, 3]);
    assert!(bench.queue.borrow().is_empty());
}

#[test]
fn in_a_full_queue_whoever_has_most_gives_a_place_up() {
    let bench = Bench::default();
    let mut flood: Vec<_> = (0..4).map(|_| bench.wait_as(1, false)).collect();
    let waker = Waker::noop();
    let displace = |caller| bench.queue.borrow_mut().displace(address(caller), 9);
    assert!(!displace(1), "nobody has more than the caller itself");
    assert!(displace(2));
    assert_eq!(poll(&mut flood[3], waker), Poll::Ready(9), "its last one");
    let _second = bench.wait_as(2, false);
    assert!(displace(2));
    assert_eq!(poll(&mut flood[2], waker), Poll::Ready(9));
    let _third = bench.wait_as(2, false);
    // Both have two now: a third one would be more than the other has.
    assert!(!displace(2));
    assert!(
        displace(3),
        "a newcomer has a place among those that have several"
    );
    assert_eq!(bench.queue.borrow().len(), 3);
}

/// Whoever leaves takes nobody's turn.
#[test]
fn leaving_keeps_the_turns() {
    let bench = Bench::default();
    let mut waiting: Vec<_> = [1, 1, 2, 3]
        .map(|caller| bench.wait_as(caller, false))
        .into();
    drop(waiting.remove(2));
    assert_eq!(bench.queue.borrow().len(), 3);
    assert_eq!(served(&bench, &mut waiting), [0, 2, 1]);
}
