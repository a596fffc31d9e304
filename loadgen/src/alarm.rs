//! One timer for whatever has to happen to a connection at a given time: the end of a rest, or the
//! turn of an idle one.
//!
//! The dispatcher has a timer of its own; this one keeps what many connections wait for in a heap.

use std::cell::{Cell, OnceCell, RefCell};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::rc::Rc;
use std::time::Duration;

use crate::clock::{Clock, Nanos, SECOND};
use crate::slot::Slot;
use crate::sys::Timer;

/// The alarms of one thread.
pub struct Alarms {
    clock: Clock,
    timer: OnceCell<Timer>,
    pending: RefCell<BinaryHeap<Reverse<Alarm>>>,
    /// What the timer is set to.
    armed: Cell<Nanos>,
    /// Numbers alarms, so that equal times go off in the order in which they were set.
    count: Cell<u64>,
}

struct Alarm {
    at: Nanos,
    order: u64,
    slot: Rc<Slot>,
    purpose: Purpose,
}

/// What an alarm is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The rest of a closed loop's connection is over.
    Rested,
    /// It is an idle connection's turn to send a request.
    Turn,
    /// A pause within an exchange is over.
    Resume,
}

impl Alarms {
    /// No alarms. Nothing goes off before [`Alarms::run`] runs.
    pub fn new(clock: Clock) -> Self {
        Self {
            clock,
            timer: OnceCell::new(),
            pending: RefCell::new(BinaryHeap::new()),
            armed: Cell::new(Nanos::MAX),
            count: Cell::new(0),
        }
    }

    /// Has `slot` called at `at`.
    pub fn set(&self, at: Nanos, slot: Rc<Slot>, purpose: Purpose) {
        let order = self.count.get();
        self.count.set(order + 1);
        self.pending.borrow_mut().push(Reverse(Alarm {
            at,
            order,
            slot,
            purpose,
        }));
        if at < self.armed.get() {
            self.arm();
        }
    }

    /// Calls `ring` with each slot when its time has come, for ever.
    pub async fn run(&self, timer: Timer, ring: impl Fn(Rc<Slot>, Nanos, Purpose)) {
        let timer = self.timer.get_or_init(|| timer);
        self.arm();
        // A timer that can neither be set nor watched ends the alarms; those who wait for one are
        // then ended by their deadlines or by the end of the run.
        while timer.expired().await.is_ok() {
            let now = self.clock.now();
            while let Some(alarm) = self.due(now) {
                ring(alarm.slot, alarm.at, alarm.purpose);
            }
            self.arm();
        }
    }

    /// Drops all alarms and returns whom they were for.
    pub fn dismiss(&self) -> Vec<Rc<Slot>> {
        self.pending
            .take()
            .into_iter()
            .map(|Reverse(alarm)| alarm.slot)
            .collect()
    }

    fn due(&self, now: Nanos) -> Option<Alarm> {
        let mut pending = self.pending.borrow_mut();
        match pending.peek() {
            Some(Reverse(alarm)) if alarm.at <= now => pending.pop().map(|Reverse(alarm)| alarm),
            _ => None,
        }
    }

    fn arm(&self) {
        let Some(timer) = self.timer.get() else {
            return;
        };
        let now = self.clock.now();
        let next = self
            .pending
            .borrow()
            .peek()
            .map_or(now + FAR, |Reverse(alarm)| alarm.at);
        self.armed.set(next);
        let _ = timer.set(Duration::from_nanos(next.saturating_sub(now)));
    }
}

/// Where the timer is set while there is no alarm. It going off then costs one wake-up.
const FAR: Nanos = 60 * SECOND;

impl PartialEq for Alarm {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Alarm {}

impl PartialOrd for Alarm {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Alarm {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alarms_are_due_in_order_and_never_early() {
        let alarms = Alarms::new(Clock::start());
        for (index, at) in [30, 10, 20, 10].into_iter().enumerate() {
            alarms.set(at, Rc::new(Slot::new(0, index)), Purpose::Turn);
        }
        let due = |now| alarms.due(now).map(|alarm| alarm.slot.index);
        assert_eq!(due(9), None);
        assert_eq!((due(10), due(10), due(10)), (Some(1), Some(3), None));
        assert_eq!(due(40), Some(2));
        assert_eq!(alarms.dismiss().len(), 1);
        assert_eq!(due(Nanos::MAX), None);
    }
}
