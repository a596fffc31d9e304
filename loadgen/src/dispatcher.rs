//! When each request is handed to a connection: the clockwork of both loops.
//!
//! The open loop sleeps by timerfd, since the runtime's own timers round to 1 ms. A sleeping
//! thread wakes late by about the same time each time, mostly the processor's way out of its idle
//! state; that lateness is learned, the timer set earlier by as much, and what is left until the
//! due time spent looking for answers. Where requests are due more often than sleeping pays, the
//! thread does not sleep at all. Time spun away is counted apart from work.

use std::rc::Rc;
use std::time::Duration;

use crate::clock::{MILLISECOND, Nanos};
use crate::core::Core;
use crate::plan::{Timeline, nanos};
use crate::schedule::Schedule;
use crate::slot::Slot;
use crate::sys::{CpuTime, Timer};

/// Follows the schedule, whatever the server does.
///
/// Must run as a spawned task: between handing out requests and setting the timer it lets the
/// connections go first, which a runtime's main future cannot.
pub async fn open_loop(
    core: &Rc<Core>,
    timer: &Timer,
    slots: &Slots,
    mut timeline: Timeline,
    mut schedule: Schedule,
) {
    let clock = *core.clock();
    let mut lateness = Lateness::new(nanos(core.plan().spin));
    let mut cpu = CpuWindow::new(timeline);
    let mut sweeper = Sweeper::new(core);
    let mut grace_until = None;
    loop {
        timeline = core.heed_stop(timeline);
        let mut now = clock.now();
        if schedule.next_due() < timeline.end
            && schedule.next_due().saturating_sub(now) <= lateness.margin()
        {
            now = spin_until(schedule.next_due(), core, timer).await;
        }
        let mut handed_out = 0;
        while schedule.next_due() <= now && schedule.next_due() < timeline.end {
            let due = schedule.next_due();
            core.dispatch(timeline.target_at(due), due, now);
            schedule.advance();
            handed_out += 1;
            if handed_out == DISPATCH_BURST_MAX {
                break;
            }
        }
        if handed_out > 0 {
            // The connections send before anything else is done.
            yield_now().await;
            now = clock.now();
        }
        cpu.look(now, core);
        let sweep_at = sweeper.look(now, slots);
        // What was due before the end is handed out even if we were held up until after it, and
        // the connections get as long to work it off: requests that nobody sends or counts would
        // be missing where the latency is worst.
        if now >= timeline.end {
            let grace = *grace_until.get_or_insert(now + (now - timeline.end));
            let handed_out_all = schedule.next_due() >= timeline.end;
            if handed_out_all && (now >= grace || !core.any_waiting()) {
                break;
            }
        }
        let until = schedule
            .next_due()
            .saturating_sub(lateness.margin())
            .min(sweep_at)
            .min(timeline.end)
            .min(cpu.next());
        now = clock.now();
        let until = match grace_until {
            Some(grace) => until.max(now + GRACE_LOOK).min(grace),
            None => until,
        };
        // A burst that was cut short also comes by here, so that answers get their turn.
        pause(timer, until.saturating_sub(now)).await;
        if until > now {
            lateness.learn(clock.now().saturating_sub(until));
        }
    }
    cpu.close(core);
    core.give_up_waiting();
}

/// Keeps each connection of the target whose turn it is busy. The connections drive themselves;
/// this starts them, and wakes those of the next target when its slice begins.
pub async fn closed_loop(core: &Rc<Core>, timer: &Timer, slots: &Slots, mut timeline: Timeline) {
    let clock = *core.clock();
    let mut cpu = CpuWindow::new(timeline);
    let mut sweeper = Sweeper::new(core);
    pause(timer, timeline.start.saturating_sub(clock.now())).await;
    loop {
        timeline = core.heed_stop(timeline);
        let now = clock.now();
        if now >= timeline.end {
            break;
        }
        cpu.look(now, core);
        core.start_free(timeline.target_at(now), now);
        let until = timeline
            .slice_end(now)
            .min(sweeper.look(now, slots))
            .min(timeline.end)
            .min(cpu.next());
        pause(timer, until.saturating_sub(clock.now())).await;
    }
    cpu.close(core);
}

/// Spins until `due` and returns the time. Answers that come meanwhile are taken in, so that
/// spinning delays none of them; only turns that brought nothing count as spinning.
async fn spin_until(due: Nanos, core: &Core, timer: &Timer) -> Nanos {
    let mut now = core.clock().now();
    while now < due {
        let before = core.progress();
        match due - now > TURN_MAX {
            true => drop(timer.turn().await),
            false => std::hint::spin_loop(),
        }
        let then = now;
        now = core.clock().now();
        if core.progress() == before {
            core.spun(now - then);
        }
    }
    now
}

/// Sleeps. Zero still gives the runtime a turn.
pub async fn pause(timer: &Timer, time: Nanos) {
    // A timer that cannot be set would turn every wait into a spin; nothing else is left to do,
    // and the run shows it by its CPU.
    let _ = timer.wait(Duration::from_nanos(time)).await;
}

/// Lets every task that is ready run once.
async fn yield_now() {
    // A task that wakes itself goes to the front of monoio's queue; a new one goes to its end.
    monoio::spawn(std::future::ready(())).await;
}

/// How late the timer wakes this thread, as far as it can be relied on: a running estimate of the
/// lateness that [`Lateness::QUANTILE`] of all wake-ups stay below.
struct Lateness {
    estimate: f64,
    max: f64,
}

impl Lateness {
    /// Most wake-ups are to come a little before the due time; the rest cannot be bought with
    /// spinning.
    const QUANTILE: f64 = 0.9;

    /// Nanoseconds by which one wake-up moves the estimate at most. Small against the lateness, so
    /// that one stall does not matter; large enough to settle within a few hundred wake-ups.
    const STEP: f64 = 500.0;

    fn new(max: Nanos) -> Self {
        Self {
            estimate: 0.0,
            max: max as f64,
        }
    }

    /// How long before a due time to wake.
    fn margin(&self) -> Nanos {
        self.estimate as Nanos
    }

    fn learn(&mut self, late: Nanos) {
        let step = match late as f64 > self.estimate {
            true => Self::STEP * Self::QUANTILE,
            false => -Self::STEP * (1.0 - Self::QUANTILE),
        };
        self.estimate = (self.estimate + step).clamp(0.0, self.max);
    }
}

/// The connections of a thread.
pub struct Slots {
    /// Those that carry the load.
    pub active: Vec<Rc<Slot>>,
    /// Those that do next to nothing.
    pub idle: Vec<Rc<Slot>>,
}

impl Slots {
    /// All of them.
    pub fn len(&self) -> usize {
        self.active.len() + self.idle.len()
    }
}

/// Fails what has passed its deadline, now and then.
pub struct Sweeper {
    clock: crate::clock::Clock,
    interval: Nanos,
    next: Nanos,
    /// When idle connections are looked at next: seldom, for there may be thousands.
    next_idle: Nanos,
}

impl Sweeper {
    /// Deadlines are kept to within a twentieth of the timeout, at most 50 ms.
    pub fn new(core: &Core) -> Self {
        Self {
            clock: *core.clock(),
            interval: (nanos(core.plan().timeout) / 20).clamp(MILLISECOND, 50 * MILLISECOND),
            next: 0,
            next_idle: 0,
        }
    }

    /// Sweeps if it is time to, and returns when to come back.
    pub fn look(&mut self, now: Nanos, slots: &Slots) -> Nanos {
        if now >= self.next {
            for slot in &slots.active {
                slot.sweep(now);
            }
            if now >= self.next_idle {
                for slot in &slots.idle {
                    slot.sweep(now);
                }
                self.next_idle = now + IDLE_SWEEP;
            }
            self.next = self.clock.now() + self.interval;
        }
        self.next
    }
}

/// Reads the thread's CPU time at both ends of the measured time.
struct CpuWindow {
    from: Nanos,
    at_start: Option<CpuTime>,
}

impl CpuWindow {
    fn new(timeline: Timeline) -> Self {
        Self {
            from: timeline.measure_from,
            at_start: None,
        }
    }

    /// When it wants to be looked at next.
    fn next(&self) -> Nanos {
        match self.at_start {
            None => self.from,
            Some(_) => Nanos::MAX,
        }
    }

    fn look(&mut self, now: Nanos, core: &Core) {
        if now >= self.from && self.at_start.is_none() {
            self.at_start = Some(CpuTime::of_thread());
            core.measuring_begins();
        }
    }

    fn close(self, core: &Core) {
        let start = self.at_start.unwrap_or_else(CpuTime::of_thread);
        core.used(CpuTime::of_thread().since(start));
    }
}

/// How often to look, after the end, whether the connections have worked off what was late.
const GRACE_LOOK: Nanos = MILLISECOND / 10;

/// Deadlines of idle connections are kept to within this.
const IDLE_SWEEP: Nanos = 500 * MILLISECOND;

/// A turn of the runtime that finds nothing takes about this long; closer to a due time than this
/// none is begun.
const TURN_MAX: Nanos = 2_000;

/// Due requests handed out in one go. When the generator is behind by more, it first takes in what
/// has arrived: answers must not wait for questions.
const DISPATCH_BURST_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::Random;

    #[test]
    fn lateness_settles_where_most_wake_ups_are_in_time() {
        let mut random = Random::new(3);
        let mut lateness = Lateness::new(50_000);
        let mut draw = || 15_000.0 + 5_000.0 * random.unit();
        for _ in 0..500 {
            lateness.learn(draw() as Nanos);
        }
        let in_time = (0..1000)
            .filter(|_| {
                let late = draw() as Nanos;
                let was_in_time = late <= lateness.margin();
                lateness.learn(late);
                was_in_time
            })
            .count();
        assert!((850..=950).contains(&in_time), "{in_time} of 1000");
    }

    #[test]
    fn a_stall_does_not_move_the_margin_and_zero_never_spins() {
        let mut lateness = Lateness::new(50_000);
        for _ in 0..1000 {
            lateness.learn(10_000);
        }
        let before = lateness.margin();
        lateness.learn(80_000_000);
        assert!(lateness.margin() <= before + 500);
        let mut never = Lateness::new(0);
        never.learn(80_000_000);
        assert_eq!(never.margin(), 0);
    }
}
