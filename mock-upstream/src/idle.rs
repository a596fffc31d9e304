//! Closing connections on which nothing happens.
//!
//! One sweep per second instead of a timer per operation. A connection stamps its [`Activity`]
//! with a coarse clock whenever bytes move; the sweep shuts the reading side of those whose stamp
//! is too old, which wakes a task that reads with an end of file and lets it say goodbye. A task
//! that is still there at the next sweep (its client does not read) loses its writing side too.

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
    state: Cell<State>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Watched,
    /// The server itself keeps the client waiting.
    Exempt,
    /// Its time was up, and its reading side has been shut.
    Shut,
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
            state: Cell::new(State::Watched),
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
    /// how many were found idle.
    pub fn sweep(&self, limit: u32) -> usize {
        let now = self.now.get().wrapping_add(1);
        self.now.set(now);
        if limit == 0 {
            return 0;
        }
        let mut idle = 0;
        for activity in self.open.borrow().values() {
            let age = now.wrapping_sub(activity.stamp.get());
            match activity.state.get() {
                State::Watched if age > limit => {
                    activity.state.set(State::Shut);
                    let _ = shutdown(activity.descriptor, Shutdown::Read);
                    idle += 1;
                }
                State::Shut => {
                    let _ = shutdown(activity.descriptor, Shutdown::Both);
                }
                State::Watched | State::Exempt => {}
            }
        }
        idle
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
        self.activity.state.set(match exempt {
            true => State::Exempt,
            false => State::Watched,
        });
    }
}

impl Drop for IdleGuard {
    fn drop(&mut self) {
        self.table.open.borrow_mut().remove(&self.number);
    }
}
