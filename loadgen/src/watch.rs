//! The one who watches: it waits for the moments of a run and for the user's signals, reads what
//! other processes use meanwhile, and lets the [`View`] show how things stand.
//!
//! It runs on the main thread, on a CPU of its own where there is one, and sleeps in between. The
//! driving threads never wait for it.
//!
//! A server's CPU per request is the figure that stays steady where latency does not. Reading it
//! here rather than around the run leaves the warm-up and all handshakes out of it. It is the
//! process's own clock: threads that have ended count, processes that it started do not.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use crate::clock::{MILLISECOND, Nanos, SECOND};
use crate::live::{self, View};
use crate::plan::{Plan, Timeline};
use crate::signals::{self, Signal};
use crate::start::Start;
use crate::{rt, sys};

/// Processes to watch, under a name. Several may share a name: their times add up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watched {
    /// The name in the report.
    pub name: String,
    /// The process.
    pub pid: u32,
}

/// CPU time by name, user and system together, used between the two ends of the measured time. A
/// process that is gone at the end has none.
pub type Usage = BTreeMap<String, Option<Duration>>;

/// What was seen of a run from outside of the driving threads.
#[derive(Debug)]
pub struct Observed {
    /// When the load began, or at least the program.
    pub began: SystemTime,
    /// What other processes used.
    pub usage: Usage,
    /// How the run was cut short, if it was.
    pub cut: Option<Cut>,
}

/// The end that a user's signal made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The signal.
    pub signal: Signal,
    /// How much of the planned time was measured.
    pub measured: Duration,
}

/// Watches until `over` says that all driving threads have ended.
///
/// The first signal stops the load. The second one ends the process at once, as does the first one
/// before the load has started.
pub fn run(plan: &Plan, start: &Start, view: &mut View, over: impl Fn() -> bool) -> Observed {
    step_aside(plan);
    let mut timeline: Option<Timeline> = None;
    let mut before = None;
    let mut after = None;
    let mut signal = None;
    let mut began = SystemTime::now();
    while !over() {
        let now = start.clock.now();
        if timeline.is_none() {
            timeline = start.agreed().map(|at| plan.timeline(at));
            if let Some(timeline) = timeline {
                began = SystemTime::now();
                view.begin(plan, timeline, &start.ready_line());
            }
        }
        let mut until = now + IDLE_MAX;
        if let Some(timeline) = timeline {
            let end = timeline.end.min(start.stopped_at());
            if before.is_none() && now >= timeline.measure_from.min(end) {
                before = Some(read(plan));
            }
            if after.is_none() && now >= end {
                after = Some(read(plan));
            }
            until = match (&before, &after) {
                (None, _) => timeline.measure_from.min(end),
                (_, None) => end,
                // Only the last answers are missing.
                _ => now + IDLE_MAX,
            };
            until = until.min(view.look(plan, start));
            // The thread that joins is this one, so a run that is over is noticed soon.
            until = until.min(now + SECOND);
        }
        let rest = until.saturating_sub(start.clock.now());
        match signals::wait(Duration::from_nanos(rest)) {
            None => {}
            Some(Signal::WindowChange) => view.window_changed(),
            Some(ending) if signal.is_some() || timeline.is_none() => {
                view.end();
                live::say(&format!(
                    "loadgen: stopped by {}, nothing reported",
                    ending.name()
                ));
                std::process::exit(ending.exit_code().into());
            }
            Some(ending) => {
                signal = Some(ending);
                start.stop();
                view.stopping();
            }
        }
    }
    view.end();
    Observed {
        began,
        usage: used(plan, before, after),
        cut: signal.zip(timeline).and_then(|(signal, timeline)| {
            // A signal during the last answers cuts nothing.
            let stopped_at = start.stopped_at();
            (stopped_at < timeline.end).then(|| Cut {
                signal,
                measured: Duration::from_nanos(stopped_at.saturating_sub(timeline.measure_from)),
            })
        }),
    }
}

/// Leaves the driving threads' CPUs, and gives up their priority where it was inherited. Where they
/// hold every CPU it stays as it is: an ordinary thread might then never run beside them.
fn step_aside(plan: &Plan) {
    let others = core_affinity::get_core_ids().unwrap_or_default();
    let other = others.iter().find(|core| !plan.cpus.contains(&core.id));
    if let Some(core) = other
        && !plan.cpus.is_empty()
        && rt::pin(core.id).is_ok()
    {
        sys::leave_real_time();
    }
}

fn used(plan: &Plan, before: Option<Usage>, after: Option<Usage>) -> Usage {
    let before = before.unwrap_or_default();
    // A run that never reached an end tells nothing, but by name.
    after
        .unwrap_or_else(|| read(plan))
        .into_iter()
        .map(|(name, after)| {
            let before = before.get(&name).copied().flatten();
            let used = after
                .zip(before)
                .map(|(after, before)| after.saturating_sub(before));
            (name, used)
        })
        .collect()
}
fn read(plan: &Plan) -> Usage {
    let mut usage = Usage::new();
    for watched in &plan.watched {
        let used = sys::process_time(watched.pid).ok();
        let sum = usage
            .entry(watched.name.clone())
            .or_insert(Some(Duration::ZERO));
        *sum = sum.zip(used).map(|(sum, used)| sum + used);
    }
    usage
}

/// How long it sleeps at most while threads get ready or wait for their last answers.
const IDLE_MAX: Nanos = 2 * MILLISECOND;
