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
        Waiting::new(&mut self.queue.borrow_mut(), fresh, self.clone())
    }

    fn serve(&self, grant: u32) -> Result<(), u32> {
        self.queue.borrow_mut().serve(grant)
    }
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
