//! What other processes cost meanwhile: their CPU time, read at both ends of the measured time.
//!
//! A server's CPU per request is the figure that stays steady where latency does not. Reading it
//! here rather than around the run leaves the warm-up and all handshakes out of it.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::Nanos;
use crate::plan::Plan;
use crate::start::Start;

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

/// Waits for the start with the workers, and then for both ends. `None` if the run was abandoned.
pub fn run(plan: &Plan, start: &Arc<Start>) -> Option<Usage> {
    let at = start.agree(Ok(()))?;
    let timeline = plan.timeline(at);
    sleep_until(start, timeline.measure_from);
    let before = read(plan);
    sleep_until(start, timeline.end);
    let used = read(plan).into_iter().map(|(name, after)| {
        let before = before.get(&name).copied().flatten();
        let used = after
            .zip(before)
            .map(|(after, before)| after.saturating_sub(before));
        (name, used)
    });
    Some(used.collect())
}

fn sleep_until(start: &Start, time: Nanos) {
    let rest = time.saturating_sub(start.clock.now());
    std::thread::sleep(Duration::from_nanos(rest));
}

fn read(plan: &Plan) -> Usage {
    let mut usage = Usage::new();
    for watched in &plan.watched {
        let used = process_time(watched.pid).ok();
        let sum = usage
            .entry(watched.name.clone())
            .or_insert(Some(Duration::ZERO));
        *sum = sum.zip(used).map(|(sum, used)| sum + used);
    }
    usage
}

/// CPU time of all threads that a process has now. A thread that ended in between takes its time
/// with it; servers under load keep theirs.
fn process_time(pid: u32) -> io::Result<Duration> {
    let mut sum = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let Ok(text) = fs::read_to_string(task?.path().join("schedstat")) else {
            continue;
        };
        sum += text
            .split_whitespace()
            .next()
            .and_then(|nanos| nanos.parse::<u64>().ok())
            .ok_or(io::ErrorKind::InvalidData)?;
    }
    Ok(Duration::from_nanos(sum))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_cpu_time_grows() {
        let before = process_time(std::process::id()).unwrap();
        let mut n = 0u64;
        while process_time(std::process::id()).unwrap() == before {
            n = std::hint::black_box(n + 1);
        }
        assert!(process_time(u32::MAX).is_err());
    }
}
