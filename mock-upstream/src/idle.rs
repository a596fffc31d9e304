//! Closing connections on which nothing happens.
//!
//! One sweep per second instead of a timer per operation. A connection stamps its [`Activity`]
//! with a coarse clock whenever bytes move; the sweep shuts the sockets of those whose stamp is
//! too old, which wakes their tasks with an end of file.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::os::fd::RawFd;
use std::rc::Rc;

use nix::sys::socket::{Shutdown, shutdown};

/// All open connections of one worker.
#[derive(Debug, Default)]
pub struct IdleTable {
    now: Cell<u32>,
    open: RefCell<HashMap<u64, Rc<Activity>>>,
}

/// When something last happened on one connection.
#[derive(Debug)]
pub struct Activity {
    descriptor: RawFd,
    stamp: Cell<u32>,
    exempt: Cell<bool>,
}

/// Keeps a connection in the table; dropping it takes the connection out.
///
/// Invariant: it is dropped before the descriptor is closed, so that a sweep never touches a
/// descriptor that the kernel has given to somebody else.
#[derive(Debug)]
pub struct IdleGuard {
    table: Rc<IdleTable>,
    number: u64,
    activity: Rc<Activity>,
}

impl IdleTable {
    /// Enters a connection.
    pub fn enter(self: &Rc<Self>, number: u64, descriptor: RawFd) -> IdleGuard {
        let activity = Rc::new(Activity {
            descriptor,
            stamp: Cell::new(self.now.get()),
            exempt: Cell::new(false),
        });
        self.open.borrow_mut().insert(number, Rc::clone(&activity));
        IdleGuard {
            table: Rc::clone(self),
            number,
            activity,
        }
    }

    /// How many connections are open.
    pub fn len(&self) -> usize {
        self.open.borrow().len()
    }

    /// Whether no connection is open.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Lets a second pass and shuts what has been idle for `limit` seconds (0: never). Returns
    /// how many were shut.
    pub fn sweep(&self, limit: u32) -> usize {
        let now = self.now.get().wrapping_add(1);
        self.now.set(now);
        if limit == 0 {
            return 0;
        }
        let mut shut = 0;
        for activity in self.open.borrow().values() {
            if !activity.exempt.get() && now.wrapping_sub(activity.stamp.get()) > limit {
                // Once is enough: the task ends, and the guard with it.
                activity.exempt.set(true);
                shut += usize::from(shutdown(activity.descriptor, Shutdown::Both).is_ok());
            }
        }
        shut
    }

    /// Shuts everything: the process or the server ends.
    pub fn shut_all(&self) {
        for activity in self.open.borrow().values() {
            let _ = shutdown(activity.descriptor, Shutdown::Both);
        }
    }
}

impl IdleGuard {
    /// Notes that bytes moved.
    pub fn touch(&self) {
        self.activity.stamp.set(self.table.now.get());
    }

    /// Exempts the connection while the server itself is the one that keeps it waiting.
    pub fn exempt(&self, exempt: bool) {
        self.touch();
        self.activity.exempt.set(exempt);
    }
}

impl Drop for IdleGuard {
    fn drop(&mut self) {
        self.table.open.borrow_mut().remove(&self.number);
    }
}
