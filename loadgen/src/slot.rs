//! What a worker and one of its connections tell each other.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use crate::clock::Nanos;
use crate::failure::{Failure, Kind};

/// One connection's place in its worker. It outlives the connections that fill it in turn.
#[derive(Debug)]
pub struct Slot {
    /// Index of the target that it drives.
    pub target: usize,
    /// Its number among the connections of its target, over all threads. Which caller's key or
    /// certificate it has depends on it.
    pub index: usize,
    work: Cell<Option<Work>>,
    /// When the phase under way must be over; `Nanos::MAX` for never.
    deadline: Cell<Nanos>,
    expired: Cell<bool>,
    /// A pause within an exchange is over.
    resumed: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

/// What a connection is asked to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Send the request that was due then.
    Request {
        /// When it was due.
        due: Nanos,
    },
    /// Close and end the task.
    Quit,
}

impl Slot {
    /// A slot for a target, with nothing to do.
    pub fn new(target: usize, index: usize) -> Self {
        Self {
            target,
            index,
            work: Cell::new(None),
            deadline: Cell::new(Nanos::MAX),
            expired: Cell::new(false),
            resumed: Cell::new(false),
            waker: RefCell::new(None),
        }
    }

    /// Gives work to an idle connection and wakes it.
    pub fn give(&self, work: Work) {
        self.work.set(Some(work));
        self.wake();
    }

    /// Takes the work given, if any.
    pub fn take_work(&self) -> Option<Work> {
        self.work.take()
    }

    /// Whether work is waiting.
    pub fn has_work(&self) -> bool {
        self.work.get().is_some()
    }

    /// Waits for work.
    pub async fn wait_for_work(&self) {
        poll_fn(|cx| {
            self.register(cx);
            match self.has_work() {
                true => Poll::Ready(()),
                false => Poll::Pending,
            }
        })
        .await;
    }

    /// Ends a pause within an exchange.
    pub fn resume(&self) {
        self.resumed.set(true);
        self.wake();
    }

    /// Waits for the end of a pause within an exchange.
    ///
    /// # Errors
    /// Kind timeout when the deadline passes first.
    pub async fn wait_for_resume(&self) -> Result<(), Failure> {
        let resumed = poll_fn(|_| match self.resumed.take() {
            true => Poll::Ready(()),
            false => Poll::Pending,
        });
        self.unless_expired(resumed).await
    }

    /// Sets the deadline of what begins now.
    pub fn set_deadline(&self, deadline: Nanos) {
        self.deadline.set(deadline);
        self.expired.set(false);
    }

    /// Nothing is under way.
    pub fn clear_deadline(&self) {
        self.set_deadline(Nanos::MAX);
    }

    /// Called by the worker's sweep: past the deadline, whatever the connection waits for fails.
    pub fn sweep(&self, now: Nanos) {
        if now > self.deadline.get() && !self.expired.replace(true) {
            self.wake();
        }
    }

    /// Runs `operation` unless the deadline passes first.
    ///
    /// At the deadline the operation is dropped, which may lose bytes: the connection must be
    /// dropped with it.
    pub async fn unless_expired<F: Future>(&self, operation: F) -> Result<F::Output, Failure> {
        let mut operation = pin!(operation);
        poll_fn(|cx| {
            if let Poll::Ready(output) = operation.as_mut().poll(cx) {
                return Poll::Ready(Ok(output));
            }
            self.register(cx);
            if self.expired.get() {
                return Poll::Ready(Err(Failure::new(
                    Kind::Timeout,
                    "no complete answer in time",
                )));
            }
            Poll::Pending
        })
        .await
    }

    /// Waits until the first sweep after `time`.
    pub async fn pause_until(&self, time: Nanos) {
        self.set_deadline(time);
        let _ = self.unless_expired(std::future::pending::<()>()).await;
        self.clear_deadline();
    }

    /// Remembers whom to wake.
    pub fn register(&self, cx: &Context<'_>) {
        let mut waker = self.waker.borrow_mut();
        if !waker
            .as_ref()
            .is_some_and(|waker| waker.will_wake(cx.waker()))
        {
            *waker = Some(cx.waker().clone());
        }
    }

    fn wake(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::Waker;

    #[test]
    fn an_operation_ends_at_the_sweep_after_its_deadline() {
        let slot = Slot::new(0, 0);
        slot.set_deadline(100);
        let mut cx = Context::from_waker(Waker::noop());
        let mut waiting = pin!(slot.unless_expired(std::future::pending::<()>()));
        slot.sweep(100);
        assert!(waiting.as_mut().poll(&mut cx).is_pending());
        slot.sweep(101);
        let Poll::Ready(Err(failure)) = waiting.as_mut().poll(&mut cx) else {
            panic!("still waiting");
        };
        assert_eq!(failure.kind, Kind::Timeout);
        slot.set_deadline(300);
        slot.sweep(200);
        let mut next = pin!(slot.unless_expired(std::future::pending::<()>()));
        assert!(
            next.as_mut().poll(&mut cx).is_pending(),
            "a new deadline is a new chance"
        );
    }

    #[test]
    fn a_result_that_is_ready_wins_over_the_deadline() {
        let slot = Slot::new(0, 0);
        slot.set_deadline(1);
        slot.sweep(2);
        let mut cx = Context::from_waker(Waker::noop());
        let mut done = pin!(slot.unless_expired(std::future::ready(7)));
        assert!(matches!(done.as_mut().poll(&mut cx), Poll::Ready(Ok(7))));
    }
}
