//! [`Tick`]: one core's clock, and the sweep that ends what takes too long.
//!
//! A timer per operation costs more than the operation. Instead each socket has
//! a [`Slot`] with the times at which it is due, and one sweep per [`PERIOD`]
//! looks at all of them. Whoever is late is cut with `shutdown(2)`: the
//! operation in flight ends by itself, and nothing is lost or left behind.
//!
//! The same sweep notices callers that went away while their exchange waits for
//! the upstream, and peers that closed idle connections, with one `poll(2)` for
//! all of them.
//!
//! When connections run out, [`Tick::evict_one`] ends one whose caller keeps us
//! waiting, so that slow callers keep nobody out.

use std::cell::{Cell, RefCell};
use std::os::fd::RawFd;
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

use crate::rt::{self, Stop};

/// How often the sweep runs, and so how late a deadline may be noticed.
pub const PERIOD: Duration = Duration::from_millis(100);

/// Hang-ups are looked for every so many sweeps.
const HANGUP_SWEEPS: u64 = 2;

/// An exchange younger than this is not watched for hang-ups: it is too short to
/// be worth a system call.
const WATCH_AFTER_MS: u64 = 150;

/// A receive that waits gives its buffer back after this time. Shorter than a
/// keep-alive client's usual pause it would cost a wake-up per request.
const COLD_AFTER_MS: u64 = 1_000;

/// A connection whose handshake or request head has been under way for so long may be
/// ended for the sake of another one. An honest one takes a few round trips.
pub const UNHURRIED: Duration = Duration::from_secs(1);

/// Of so many connections that may be ended, the one that has been so for longest is: looking
/// at all of them for each new one would cost as much as its handshake.
const EVICTION_LOOKS_MAX: usize = 64;

/// "Never" as a time.
const NEVER: u64 = u64::MAX;

/// One core's clock and its registered sockets.
pub struct Tick {
    started: Instant,
    /// Milliseconds since `started`, as of the last sweep.
    now_ms: Cell<u64>,
    sweeps: Cell<u64>,
    /// Where the search for a connection to end goes on.
    evict_from: Cell<usize>,
    slots: RefCell<Slots>,
    /// Scratch for the hang-up poll.
    polled: RefCell<(Vec<RawFd>, Vec<Rc<Slot>>)>,
}

#[derive(Default)]
struct Slots {
    entries: Vec<Option<Rc<Slot>>>,
    free: Vec<usize>,
}

/// What the sweep knows of one socket.
pub struct Slot {
    fd: RawFd,
    /// Invariant: while this is false `fd` is open and ours.
    gone: Cell<bool>,
    recv_due: Cell<u64>,
    send_due: Cell<u64>,
    recv_late: Cell<bool>,
    send_late: Cell<bool>,
    /// Since when the peer is watched for hanging up; `NEVER` is not at all.
    watched_since: Cell<u64>,
    hung_up: Cell<bool>,
    /// Since when a receive with a buffer waits; `NEVER` is not at all.
    waiting_since: Cell<u64>,
    /// From when on draining may end it, because it waits for a request; `NEVER`
    /// while an exchange is under way.
    idle_from: Cell<u64>,
    /// From when on it may be ended for the sake of another connection, because it
    /// waits for its caller; `NEVER` while an exchange is under way.
    evictable_from: Cell<u64>,
    stop: Stop,
    /// The other side of the exchange, cut when this one hangs up.
    partner: RefCell<Weak<Slot>>,
}

/// A socket's registration. Dropped before the socket is closed.
pub struct Registration {
    tick: Rc<Tick>,
    slot: Rc<Slot>,
    index: usize,
}

impl Tick {
    /// A clock that starts now.
    pub fn new() -> Rc<Self> {
        Rc::new(Self {
            started: rt::now(),
            now_ms: Cell::new(0),
            sweeps: Cell::new(0),
            evict_from: Cell::new(0),
            slots: RefCell::default(),
            polled: RefCell::default(),
        })
    }

    /// The time as of the last sweep: cheap, and at most [`PERIOD`] old.
    pub fn now_ms(&self) -> u64 {
        self.now_ms.get()
    }

    /// Puts a socket under watch.
    pub fn register(self: &Rc<Self>, fd: RawFd, stop: Stop) -> Registration {
        let slot = Rc::new(Slot {
            fd,
            gone: Cell::new(false),
            recv_due: Cell::new(NEVER),
            send_due: Cell::new(NEVER),
            recv_late: Cell::new(false),
            send_late: Cell::new(false),
            watched_since: Cell::new(NEVER),
            hung_up: Cell::new(false),
            waiting_since: Cell::new(NEVER),
            idle_from: Cell::new(NEVER),
            evictable_from: Cell::new(NEVER),
            stop,
            partner: RefCell::new(Weak::new()),
        });
        let mut slots = self.slots.borrow_mut();
        let index = match slots.free.pop() {
            Some(index) => {
                slots.entries[index] = Some(Rc::clone(&slot));
                index
            }
            None => {
                slots.entries.push(Some(Rc::clone(&slot)));
                slots.entries.len() - 1
            }
        };
        drop(slots);
        Registration {
            tick: Rc::clone(self),
            slot,
            index,
        }
    }

    /// Looks at every socket once. `draining` closes connections that are idle.
    pub fn sweep(&self, draining: bool) {
        self.sweep_at(
            u64::try_from((rt::now() - self.started).as_millis()).unwrap_or(NEVER),
            draining,
        );
    }

    /// The same, at a given time.
    pub(crate) fn sweep_at(&self, now: u64, draining: bool) {
        self.now_ms.set(now);
        let sweeps = self.sweeps.get() + 1;
        self.sweeps.set(sweeps);
        let look_for_hangups = sweeps.is_multiple_of(HANGUP_SWEEPS);
        let (mut fds, mut watched) = self.polled.take();
        for slot in self.slots.borrow().entries.iter().flatten() {
            #[cfg(test)]
            if crate::simulation::is(crate::simulation::Break::ForgetsDeadlines) {
                slot.recv_due.set(NEVER);
            }
            if slot.recv_due.get() <= now {
                slot.recv_due.set(NEVER);
                slot.recv_late.set(true);
                // The other direction may still carry the answer that says so.
                rt::cut(slot.fd, true);
            }
            if slot.send_due.get() <= now {
                slot.send_due.set(NEVER);
                slot.send_late.set(true);
                // What it sends is not finished, and must not look so: no FIN.
                rt::abort(slot.fd);
            }
            if draining && slot.idle_from.get() <= now {
                rt::cut(slot.fd, true);
            } else if now.saturating_sub(slot.waiting_since.get()) >= COLD_AFTER_MS {
                slot.waiting_since.set(NEVER);
                slot.stop.stop();
            }
            if look_for_hangups && now.saturating_sub(slot.watched_since.get()) >= WATCH_AFTER_MS {
                fds.push(slot.fd);
                watched.push(Rc::clone(slot));
            }
        }
        if !fds.is_empty() {
            rt::find_hung_up(&fds, |index| {
                let slot = &watched[index];
                slot.hung_up.set(true);
                slot.watched_since.set(NEVER);
                if let Some(partner) = slot.partner.borrow().upgrade()
                    && !partner.gone.get()
                {
                    rt::cut(partner.fd, false);
                }
            });
            fds.clear();
            watched.clear();
        }
        self.polled.replace((fds, watched));
    }

    /// Sockets that are registered.
    #[cfg(test)]
    pub fn registered(&self) -> usize {
        self.slots.borrow().entries.iter().flatten().count()
    }

    /// Ends a connection that waits for its caller: between two requests, or for the
    /// rest of a handshake or a request head for longer than [`UNHURRIED`]. Among those
    /// that it looks at, the one that has been so for longest. `false`: there is none.
    pub fn evict_one(&self) -> bool {
        let slots = self.slots.borrow();
        let count = slots.entries.len();
        let now = self.now_ms.get();
        let mut longest: Option<&Rc<Slot>> = None;
        let mut looked = 0;
        for step in 0..count {
            let at = (self.evict_from.get() + step) % count;
            let Some(slot) = &slots.entries[at] else {
                continue;
            };
            let from = slot.evictable_from.get();
            if from > now {
                continue;
            }
            if longest.is_none_or(|longest| from < longest.evictable_from.get()) {
                longest = Some(slot);
            }
            looked += 1;
            if looked == EVICTION_LOOKS_MAX {
                self.evict_from.set((at + 1) % count);
                break;
            }
        }
        let Some(slot) = longest else {
            return false;
        };
        // Once is enough: the task that owns it ends it now.
        slot.evictable_from.set(NEVER);
        rt::cut(slot.fd, true);
        true
    }

    fn due(&self, after: Duration) -> u64 {
        let after = u64::try_from(after.as_millis()).unwrap_or(NEVER);
        // The clock may be a period old; nobody is cut early.
        self.now_ms
            .get()
            .saturating_add(after)
            .saturating_add(PERIOD.as_millis() as u64)
    }
}

impl Registration {
    /// The socket must have received something before `limit` is over.
    pub fn recv_within(&self, limit: Duration) {
        self.slot.recv_due.set(self.tick.due(limit));
    }

    /// No receive is due.
    pub fn recv_done(&self) {
        self.slot.recv_due.set(NEVER);
    }

    /// The socket must have sent what it sends before `limit` is over.
    pub fn send_within(&self, limit: Duration) {
        self.slot.send_due.set(self.tick.due(limit));
    }

    /// No send is due.
    pub fn send_done(&self) {
        self.slot.send_due.set(NEVER);
    }

    /// Whether the sweep cut the socket because its time was up.
    pub fn is_expired(&self) -> bool {
        self.is_recv_late() || self.is_send_late()
    }

    /// Whether the receiving direction was cut because its time was up.
    pub fn is_recv_late(&self) -> bool {
        self.slot.recv_late.get()
    }

    /// Whether the socket was cut because a send took too long.
    pub fn is_send_late(&self) -> bool {
        self.slot.send_late.get()
    }

    /// Watches for the peer hanging up; then `partner`, if there is one, is cut.
    pub fn watch(&self, partner: Option<&Registration>) {
        self.slot.watched_since.set(self.tick.now_ms.get());
        *self.slot.partner.borrow_mut() =
            partner.map_or_else(Weak::new, |partner| Rc::downgrade(&partner.slot));
    }

    /// Stops watching.
    pub fn unwatch(&self) {
        self.slot.watched_since.set(NEVER);
    }

    /// Whether the peer was found to have hung up.
    pub fn is_hung_up(&self) -> bool {
        self.slot.hung_up.get()
    }

    /// The connection waits for a request: after `grace` draining may end it.
    pub fn idle(&self, grace: Duration) {
        self.slot.idle_from.set(if grace.is_zero() {
            self.tick.now_ms.get()
        } else {
            self.tick.due(grace)
        });
        self.slot.evictable_from.set(self.slot.idle_from.get());
    }

    /// It does not wait for a request any more.
    pub fn busy(&self) {
        self.slot.idle_from.set(NEVER);
        self.slot.evictable_from.set(NEVER);
    }

    /// It waits for what its caller has begun: after [`UNHURRIED`] it may be ended for
    /// the sake of another connection, until it is [`busy`](Self::busy).
    pub fn may_be_evicted(&self) {
        self.slot.evictable_from.set(self.tick.due(UNHURRIED));
    }

    /// A receive waits with a buffer in hand: after a while the sweep stops it, so
    /// that the buffer can be given back.
    pub fn waits_with_buffer(&self, waits: bool) {
        self.slot
            .waiting_since
            .set(if waits { self.tick.now_ms.get() } else { NEVER });
    }

    /// The socket, for looking at it.
    pub fn fd(&self) -> RawFd {
        self.slot.fd
    }

    /// The clock.
    pub fn now_ms(&self) -> u64 {
        self.tick.now_ms()
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        #[cfg(test)]
        if crate::simulation::is(crate::simulation::Break::KeepsRegistrations) {
            return;
        }
        self.slot.gone.set(true);
        let mut slots = self.tick.slots.borrow_mut();
        slots.entries[self.index] = None;
        slots.free.push(self.index);
    }
}

#[cfg(test)]
mod tests;
