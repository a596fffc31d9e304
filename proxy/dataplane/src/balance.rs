//! Which core serves a connection: [`Cores`] knows what each has to carry, and
//! [`Burden`] finds out when this one carries too much.
//!
//! A connection is placed twice. When it is accepted the core with fewest
//! connections gets it ([`Cores::least_loaded`]). That says nothing of who will be
//! busy: callers leave, and one caller asks more than another. So each core tells
//! how much of its time it had work, and one that is busy while another is not
//! passes connections on, each at the end of an exchange, where nothing of it is
//! under way. With its TLS session a connection is one value; the new core goes on
//! where the old one stopped, and the caller notices nothing.
//!
//! What it lacks: a say in what an exchange does, and in streams that never end:
//! an event stream or a tunnel stays where it began.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::listener::Handed;
use crate::rt::{HatchSender, Meter};

/// A connection stays where it was accepted while that core has at most one more
/// than the least busy one per so many of its own.
const HAND_OUT_SLACK: usize = 8;

/// A core compares itself with the others every so many ticks: long enough that
/// one burst is not taken for a burden.
const LOOK_TICKS: u32 = 3;

/// Of a thousand: a core with less to do than this is not busy, whatever the
/// others do. Nobody waits long for it, and requests on one core share wake-ups.
const BUSY_FROM: u32 = 700;

/// Another core is asked if it has at most one part in so many of this one's work.
const RELIEF_RATIO: u32 = 2;

/// Connections that one look may pass on; more wait for the next one.
const MOVES_MAX: u32 = 64;

/// How long a connection that was passed on stays at least, so that one that brings
/// its burden along is not sent to and fro.
const STAYS_MS: u64 = 5_000;

/// What one core has to carry, on a cache line of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Load {
    connections: AtomicUsize,
    /// [`Share::busy`], as of the core's last look.
    busy: AtomicU32,
    /// [`Share::active`], likewise.
    active: AtomicU32,
}

/// What each core carries, and how to reach it. Touched when a connection comes or
/// goes and once per look, never by a request.
pub struct Cores {
    loads: Vec<Load>,
    hatches: Vec<HatchSender<Handed>>,
}

/// A core's work between two looks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Share {
    /// Of a thousand parts of the time, in how many there was work: the thread ran,
    /// or was ready to and waited for the processor.
    busy: u32,
    /// Connections that had an exchange.
    active: u32,
}

impl Cores {
    /// One entry per core.
    pub fn new(hatches: Vec<HatchSender<Handed>>) -> Arc<Self> {
        Arc::new(Self {
            loads: hatches.iter().map(|_| Load::default()).collect(),
            hatches,
        })
    }

    /// The core that should serve the next connection that `me` accepted.
    pub fn least_loaded(&self, me: usize) -> usize {
        let mine = self.load(me);
        let (best, least) = (0..self.loads.len())
            .map(|core| (core, self.load(core)))
            .min_by_key(|&(_, load)| load)
            .unwrap_or((me, mine));
        // Exact for a few long-lived callers, silent for many: measured, 0 % of
        // spreads were apart by 2, and hardly anything is passed on under load.
        if mine.saturating_sub(least) > mine / HAND_OUT_SLACK {
            best
        } else {
            me
        }
    }

    /// Connections that `core` serves.
    pub fn load(&self, core: usize) -> usize {
        self.loads[core].connections.load(Ordering::Relaxed)
    }

    /// `core` has one connection more.
    pub fn came(&self, core: usize) {
        self.loads[core].connections.fetch_add(1, Ordering::Relaxed);
    }

    /// `core` has one connection less.
    pub fn went(&self, core: usize) {
        self.loads[core].connections.fetch_sub(1, Ordering::Relaxed);
    }

    /// Hands a connection to `core`, which counts it from here on, so that a burst
    /// is spread as well.
    ///
    /// # Errors
    /// The connection itself when that core's queue is full.
    pub fn hand(&self, core: usize, handed: Box<Handed>) -> Result<(), Box<Handed>> {
        self.came(core);
        self.hatches[core]
            .hand(handed)
            .inspect_err(|_| self.went(core))
    }

    fn tell(&self, core: usize, share: Share) {
        self.loads[core].busy.store(share.busy, Ordering::Relaxed);
        let active = &self.loads[core].active;
        active.store(share.active, Ordering::Relaxed);
    }

    /// The core with least work, unless that is `me`.
    fn idlest(&self, me: usize) -> Option<(usize, Share)> {
        let shares = self.loads.iter().map(|load| Share {
            busy: load.busy.load(Ordering::Relaxed),
            active: load.active.load(Ordering::Relaxed),
        });
        let others = shares.enumerate().filter(|&(core, _)| core != me);
        others.min_by_key(|(_, share)| (share.busy, share.active))
    }
}

/// One core's own work, and whom it may pass connections on to.
#[derive(Default)]
pub struct Burden {
    /// Made at the first look, on the core's own thread.
    meter: RefCell<Option<Meter>>,
    ticks: Cell<u32>,
    looked: Cell<Option<(Instant, Duration)>>,
    /// The number of the present look.
    look: Cell<u32>,
    /// Connections that had an exchange since the last one.
    active: Cell<u32>,
    /// The last look found relief: what the next one would compare is of before.
    settles: Cell<bool>,
    target: Cell<usize>,
    left: Cell<u32>,
}

/// What [`Burden`] keeps of a connection.
#[derive(Debug, Default)]
pub struct Activity {
    /// The look since which it is counted as active.
    look: u32,
    /// When it may be passed on, by the core's clock.
    movable_from_ms: u64,
}

impl Activity {
    /// Of a connection that another core has passed on, at `now_ms` of this core.
    pub fn of_moved(now_ms: u64) -> Self {
        Self {
            look: 0,
            movable_from_ms: now_ms.saturating_add(STAYS_MS),
        }
    }
}

impl Burden {
    /// A connection begins an exchange.
    #[inline]
    pub fn serves(&self, activity: &mut Activity) {
        // Looks are counted from 1, so that a new connection is in none.
        let look = self.look.get() + 1;
        if activity.look != look {
            activity.look = look;
            self.active.set(self.active.get() + 1);
        }
    }

    /// Where a connection that is between two exchanges should go on, if not here.
    #[inline]
    pub fn relief(&self, activity: &Activity, now_ms: u64) -> Option<usize> {
        let left = self.left.get();
        if left == 0 || now_ms < activity.movable_from_ms {
            return None;
        }
        self.left.set(left - 1);
        Some(self.target.get())
    }

    /// Once per tick of core `me`: measures its work and compares it with the others'.
    pub fn on_tick(&self, cores: &Cores, me: usize) {
        let ticks = self.ticks.get() + 1;
        if cores.loads.len() == 1 || ticks < LOOK_TICKS {
            self.ticks.set(ticks);
            return;
        }
        self.ticks.set(0);
        let worked = self.meter.borrow_mut().get_or_insert_default().so_far();
        let now = Instant::now();
        let before = self.looked.replace(Some((now, worked)));
        self.look.set(self.look.get().wrapping_add(1));
        let active = self.active.take();
        let Some((then, worked_then)) = before else {
            return;
        };
        let share = Share {
            busy: per_mille(worked.saturating_sub(worked_then), now - then),
            active,
        };
        cores.tell(me, share);
        // What was not used up was meant for the time before.
        self.left.set(0);
        if self.settles.take() {
            return;
        }
        if let Some((core, other)) = cores.idlest(me) {
            let moves = moves(share, other);
            self.target.set(core);
            self.left.set(moves);
            self.settles.set(moves > 0);
        }
    }
}

/// How many connections a core should pass on to another one.
fn moves(mine: Share, other: Share) -> u32 {
    let is_relief = mine.busy >= BUSY_FROM && other.busy <= mine.busy / RELIEF_RATIO;
    // The last one would take the whole burden along.
    if !is_relief || mine.active < 2 {
        return 0;
    }
    // As if each did the same work: half of what this core does more than that one.
    let half = mine.active * (mine.busy - other.busy) / (2 * mine.busy);
    half.clamp(1, MOVES_MAX.min(mine.active - 1))
}

fn per_mille(part: Duration, whole: Duration) -> u32 {
    let whole = whole.as_micros().max(1);
    u32::try_from((part.as_micros() * 1000 / whole).min(1000)).unwrap_or(1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_core_passes_on_what_evens_the_work() {
        let share = |busy, active| Share { busy, active };
        for (mine, other, expected) in [
            // All of the work is here.
            (share(1000, 4), share(0, 0), 2),
            (share(1000, 2), share(0, 0), 1),
            (share(950, 8), share(100, 1), 3),
            (share(800, 3), share(400, 9), 1),
            (share(1000, 5_000), share(10, 1), MOVES_MAX),
            // One connection is all of it: the other core would have it then.
            (share(1000, 1), share(0, 0), 0),
            (share(1000, 0), share(0, 0), 0),
            // Nobody waits.
            (share(699, 8), share(0, 0), 0),
            // Both have much to do.
            (share(1000, 8), share(501, 2), 0),
            (share(1000, 8), share(1000, 8), 0),
        ] {
            assert_eq!(moves(mine, other), expected, "{mine:?} beside {other:?}");
        }
    }

    #[test]
    fn a_connection_counts_once_between_two_looks() {
        let burden = Burden::default();
        let (mut one, mut other) = (Activity::default(), Activity::default());
        burden.serves(&mut one);
        burden.serves(&mut one);
        burden.serves(&mut other);
        assert_eq!(burden.active.take(), 2);
        burden.look.set(burden.look.get() + 1);
        burden.serves(&mut one);
        assert_eq!(burden.active.take(), 1);
    }

    #[test]
    fn what_was_passed_on_stays_for_a_while() {
        let burden = Burden::default();
        burden.left.set(2);
        burden.target.set(7);
        let moved = Activity::of_moved(1_000);
        assert_eq!(burden.relief(&moved, 1_000 + STAYS_MS - 1), None);
        assert_eq!(burden.relief(&moved, 1_000 + STAYS_MS), Some(7));
        assert_eq!(burden.relief(&Activity::default(), 0), Some(7));
        // That was all.
        assert_eq!(burden.relief(&Activity::default(), 0), None);
    }
}
