//! A worker's event loop: runs whatever can run, then waits for all sockets at once.
//!
//! One thread, one queue, one wait for however many connections have become ready. It lacks what
//! a general runtime has: tasks on other threads, timers of its own ([`crate::alarm`] is an
//! ordinary task), results of tasks.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use crate::readiness::Readiness;

/// The event loop of the thread that made it. Clones are the same loop.
#[derive(Clone)]
pub struct Executor(Rc<Shared>);

struct Shared {
    readiness: Rc<Readiness>,
    queue: Arc<Queue>,
    /// Indexed by number; a slot is used again once its task has ended.
    tasks: RefCell<Vec<Option<Task>>>,
    free: RefCell<Vec<usize>>,
}

struct Task {
    future: Pin<Box<dyn Future<Output = ()>>>,
    ticket: Arc<Ticket>,
    waker: Waker,
}

/// Whether to look a few times more before the thread goes to sleep. Sleeping and being woken costs
/// both sides more than a few looks, and a server that is a little faster than its clients would do
/// it for every request. It is worth it as long as it takes few looks on average to find something.
#[derive(Default)]
struct Patience {
    /// Looks that it took of late, as a moving average, in eighths.
    eighths: u32,
    /// Sleeps to come that are not delayed.
    skip: u32,
    /// Doubles with each time that was not worth it, up to [`SKIP_MAX`].
    penalty: u32,
}

/// Tasks to run, in order. Only this thread uses it; wakers must be able to cross threads, hence
/// the lock, which nobody ever waits for.
#[derive(Default)]
struct Queue(Mutex<VecDeque<usize>>);

/// What wakes one task. A ticket that outlives its task may wake the slot's next one, which is
/// polled once too often, and no harm.
struct Ticket {
    number: usize,
    queued: AtomicBool,
    queue: Arc<Queue>,
}

impl Executor {
    /// An event loop with nothing to do.
    ///
    /// # Errors
    ///
    /// No descriptor is left.
    pub fn new() -> io::Result<Self> {
        Ok(Executor(Rc::new(Shared {
            readiness: Readiness::new()?,
            queue: Arc::default(),
            tasks: RefCell::default(),
            free: RefCell::default(),
        })))
    }

    /// Where sockets are watched.
    pub fn readiness(&self) -> &Rc<Readiness> {
        &self.0.readiness
    }

    /// Adds a task, which begins in the next round.
    pub fn spawn(&self, future: impl Future<Output = ()> + 'static) {
        let mut tasks = self.0.tasks.borrow_mut();
        let number = self.0.free.borrow_mut().pop().unwrap_or_else(|| {
            tasks.push(None);
            tasks.len() - 1
        });
        let ticket = Arc::new(Ticket {
            number,
            queued: AtomicBool::new(false),
            queue: Arc::clone(&self.0.queue),
        });
        ticket.wake_by_ref();
        tasks[number] = Some(Task {
            future: Box::pin(future),
            waker: Waker::from(Arc::clone(&ticket)),
            ticket,
        });
    }

    /// Runs everything until `main` has ended; other tasks are dropped then.
    pub fn run(&self, main: impl Future<Output = ()> + 'static) {
        let done = Rc::new(Cell::new(false));
        let ended = Rc::clone(&done);
        self.spawn(async move {
            main.await;
            ended.set(true);
        });
        let mut patience = Patience::default();
        while !done.get() {
            // What is woken meanwhile waits for the next round, so that sockets get their turn.
            for _ in 0..self.0.queue.len() {
                if let Some(number) = self.0.queue.pop() {
                    self.poll(number);
                }
            }
            if done.get() {
                break;
            }
            let idle = self.0.queue.len() == 0;
            if !idle || !patience.find(|| self.0.readiness.take(false) > 0) {
                self.0.readiness.take(idle);
            }
        }
        // Tasks hold this loop, which holds them.
        let tasks = std::mem::take(&mut *self.0.tasks.borrow_mut());
        drop(tasks);
    }

    fn poll(&self, number: usize) {
        // Out of its slot, since it may add tasks.
        let task = self
            .0
            .tasks
            .borrow_mut()
            .get_mut(number)
            .and_then(Option::take);
        let Some(mut task) = task else {
            return;
        };
        task.ticket.queued.store(false, Ordering::Relaxed);
        let outcome = task
            .future
            .as_mut()
            .poll(&mut Context::from_waker(&task.waker));
        match outcome {
            Poll::Pending => self.0.tasks.borrow_mut()[number] = Some(task),
            Poll::Ready(()) => self.0.free.borrow_mut().push(number),
        }
    }
}

impl std::fmt::Debug for Executor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Executor({} slots)", self.0.tasks.borrow().len())
    }
}

impl Patience {
    fn find(&mut self, look: impl Fn() -> bool) -> bool {
        if self.skip > 0 {
            self.skip -= 1;
            return false;
        }
        let found = (0..LOOKS_MAX).find(|_| look());
        self.eighths = self.eighths * 7 / 8 + found.unwrap_or(LOOKS_MAX);
        self.penalty = match self.eighths <= 8 * LOOKS_WORTH_IT {
            true => 0,
            false => (2 * self.penalty + 1).min(SKIP_MAX),
        };
        self.skip = self.penalty;
        found.is_some()
    }
}

impl Queue {
    fn len(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    fn pop(&self) -> Option<usize> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop_front()
    }
}

impl Wake for Ticket {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::Relaxed) {
            let mut queue = self.queue.0.lock().unwrap_or_else(PoisonError::into_inner);
            queue.push_back(self.number);
        }
    }
}

/// Waits for whichever comes first, and drops the other. `None`: it was `limit`.
pub async fn before<T>(
    limit: impl Future<Output = ()>,
    work: impl Future<Output = T>,
) -> Option<T> {
    let (mut limit, mut work) = (pin!(limit), pin!(work));
    std::future::poll_fn(|context| {
        if let Poll::Ready(value) = work.as_mut().poll(context) {
            return Poll::Ready(Some(value));
        }
        limit.as_mut().poll(context).map(|()| None)
    })
    .await
}

/// Lets every task that is ready run once, and sockets be looked at: for whoever could go on for
/// long without having to wait.
pub async fn yield_once() {
    let mut yielded = false;
    std::future::poll_fn(|context| match std::mem::replace(&mut yielded, true) {
        true => Poll::Ready(()),
        false => {
            context.waker().wake_by_ref();
            Poll::Pending
        }
    })
    .await
}

/// Looks at most before going to sleep: some 20 us.
const LOOKS_MAX: u32 = 128;

/// So many looks on average cost about what going to sleep does, to both sides together.
const LOOKS_WORTH_IT: u32 = 32;

/// Sleeps at most that are not delayed after looking in vain: looking is then a hundredth of the
/// work, and soon noticed to be worth it again.
const SKIP_MAX: u32 = 255;

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use std::os::unix::net::UnixStream;

    #[test]
    fn patience_lasts_as_long_as_it_pays() {
        let mut patience = Patience::default();
        let (looks, quick) = (Cell::new(0), Cell::new(true));
        let sleep = |patience: &mut Patience| {
            looks.set(0);
            patience.find(|| {
                looks.set(looks.get() + 1);
                quick.get() && looks.get() == 5
            })
        };
        assert!((0..100).all(|_| sleep(&mut patience)));
        quick.set(false);
        let tried = (0..10_000)
            .filter(|_| {
                sleep(&mut patience);
                looks.get() > 0
            })
            .count();
        assert!(tried < 60, "{tried}");
        quick.set(true);
        let found = (0..10_000).filter(|_| sleep(&mut patience)).count();
        assert!(found > 7_000, "{found}");
    }

    #[test]
    fn runs_tasks_that_wake_and_add_each_other() {
        let executor = Executor::new().unwrap();
        let order = Rc::new(RefCell::new(Vec::new()));
        let (mut sender, receiver) = UnixStream::pair().unwrap();
        let watch = executor.readiness().watch(&receiver).unwrap();
        watch.empty();
        let (inner, seen) = (executor.clone(), Rc::clone(&order));
        executor.spawn(async move {
            seen.borrow_mut().push("first");
            let seen = Rc::clone(&seen);
            inner.spawn(async move {
                seen.borrow_mut().push("second");
                sender.write_all(b"x").unwrap();
            });
        });
        let seen = Rc::clone(&order);
        executor.run(async move {
            watch.readable().await;
            seen.borrow_mut().push("main");
            assert_eq!(before(async {}, std::future::pending::<()>()).await, None);
            assert_eq!(before(std::future::pending(), async { 7 }).await, Some(7));
        });
        assert_eq!(*order.borrow(), ["first", "second", "main"]);
    }
}
