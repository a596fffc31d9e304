//! Sleeping to the microsecond: one timerfd per worker for everything that waits.
//!
//! Waiting in milliseconds, as `epoll_wait` does, is useless for a latency model whose median is
//! 300 us. Sleepers stand in a heap by deadline; the kernel timer is set to the earliest.

use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use crate::clock::monotonic_nanos;
use crate::executor::Executor;
use crate::readiness::Watch;

/// Wakes sleepers of one worker.
pub struct Alarm {
    timer: TimerFd,
    /// Deadlines and numbers; numbers without a sleeper have been given up.
    queue: RefCell<BinaryHeap<Reverse<(u64, u64)>>>,
    sleepers: RefCell<HashMap<u64, Waker>>,
    /// What the timer is set to; `u64::MAX` when it is not.
    armed: Cell<u64>,
    next: Cell<u64>,
}

/// Ends at a deadline. May be dropped at any time.
pub struct Sleep {
    alarm: Rc<Alarm>,
    deadline: u64,
    number: Option<u64>,
}

impl Alarm {
    /// Sets up the timer and the task that serves it.
    ///
    /// # Errors
    ///
    /// No descriptor is left.
    pub fn start(executor: &Executor) -> io::Result<Rc<Self>> {
        let timer = TimerFd::new(
            ClockId::CLOCK_MONOTONIC,
            TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC,
        )?;
        let watch = executor.readiness().watch(&timer)?;
        let alarm = Rc::new(Alarm {
            timer,
            queue: RefCell::default(),
            sleepers: RefCell::default(),
            armed: Cell::new(u64::MAX),
            next: Cell::new(0),
        });
        executor.spawn(Rc::clone(&alarm).ring(watch));
        Ok(alarm)
    }

    /// Sleeps for so long, from now.
    pub fn sleep(self: &Rc<Self>, time: Duration) -> Sleep {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.sleep_until(monotonic_nanos().saturating_add(nanos))
    }

    /// Sleeps until [`monotonic_nanos`] has reached the deadline.
    pub fn sleep_until(self: &Rc<Self>, deadline: u64) -> Sleep {
        Sleep {
            alarm: Rc::clone(self),
            deadline,
            number: None,
        }
    }

    async fn ring(self: Rc<Self>, watch: Watch) {
        loop {
            watch.readable().await;
            watch.empty();
            // Takes note of the expiry; that there was none to note is no matter.
            let _ = self.timer.wait();
            self.armed.set(u64::MAX);
            let now = monotonic_nanos();
            while let Some(Reverse((deadline, number))) = self.earliest() {
                if deadline > now {
                    break;
                }
                self.queue.borrow_mut().pop();
                let waker = self.sleepers.borrow_mut().remove(&number);
                if let Some(waker) = waker {
                    waker.wake();
                }
            }
            self.arm();
        }
    }

    /// The earliest deadline that somebody still waits for.
    fn earliest(&self) -> Option<Reverse<(u64, u64)>> {
        let mut queue = self.queue.borrow_mut();
        while let Some(&Reverse((deadline, number))) = queue.peek() {
            if self.sleepers.borrow().contains_key(&number) {
                return Some(Reverse((deadline, number)));
            }
            queue.pop();
        }
        None
    }

    fn arm(&self) {
        let Some(Reverse((deadline, _))) = self.earliest() else {
            return;
        };
        if deadline >= self.armed.get() {
            return;
        }
        self.armed.set(deadline);
        // Zero would disarm it.
        let when = TimeSpec::from_duration(Duration::from_nanos(deadline.max(1)));
        let flags = TimerSetTimeFlags::TFD_TIMER_ABSTIME;
        if let Err(error) = self.timer.set(Expiration::OneShot(when), flags) {
            // The descriptor and the time are valid; only a bug here could bring this about.
            panic!("timerfd_settime: {error}");
        }
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if monotonic_nanos() >= self.deadline {
            return Poll::Ready(());
        }
        let alarm = Rc::clone(&self.alarm);
        let number = match self.number {
            Some(number) => number,
            None => {
                let number = alarm.next.get();
                alarm.next.set(number + 1);
                let entry = Reverse((self.deadline, number));
                alarm.queue.borrow_mut().push(entry);
                self.number = Some(number);
                number
            }
        };
        let waker = context.waker().clone();
        alarm.sleepers.borrow_mut().insert(number, waker);
        alarm.arm();
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            self.alarm.sleepers.borrow_mut().remove(&number);
        }
    }
}

impl std::fmt::Debug for Alarm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Alarm({} sleepers)", self.sleepers.borrow().len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wakes_in_order_and_forgets_the_dropped() {
        let executor = Executor::new().unwrap();
        let alarm = Alarm::start(&executor).unwrap();
        let inner = executor.clone();
        executor.run(async move {
            let order = Rc::new(RefCell::new(Vec::new()));
            for micros in [3000u64, 500, 1500] {
                let (alarm, order) = (Rc::clone(&alarm), Rc::clone(&order));
                inner.spawn(async move {
                    let started = monotonic_nanos();
                    alarm.sleep(Duration::from_micros(micros)).await;
                    assert!(monotonic_nanos() - started >= micros * 1000);
                    order.borrow_mut().push(micros);
                });
            }
            let mut given_up = Box::pin(alarm.sleep(Duration::from_micros(100)));
            std::future::poll_fn(|context| {
                assert!(given_up.as_mut().poll(context).is_pending());
                Poll::Ready(())
            })
            .await;
            drop(given_up);
            alarm.sleep(Duration::from_millis(20)).await;
            assert_eq!(*order.borrow(), [500, 1500, 3000]);
            assert!(alarm.sleepers.borrow().is_empty());
        });
    }
}
