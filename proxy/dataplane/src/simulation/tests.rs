use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::judge::Report;
use super::{Failure, run};

/// Seeds of an ordinary test run.
const SEEDS: u64 = 200;

/// A number from the environment.
pub(super) fn setting(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name} must be a number")),
    )
}

/// Runs the seeds on all cores, up to the first failure.
fn run_all(seeds: std::ops::Range<u64>) -> (Report, Option<Failure>) {
    let next = AtomicU64::new(seeds.start);
    let is_over = AtomicBool::new(false);
    let total = Mutex::new((Report::default(), None));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        break;
                    }
                    let outcome = run(seed, None, false);
                    let mut total = total.lock().expect("nobody panics with it");
                    match outcome {
                        Ok(report) => {
                            total.0.exchanges += report.exchanges;
                            total.0.steps += report.steps;
                            for (event, times) in report.events {
                                *total.0.events.entry(event).or_default() += times;
                            }
                        }
                        Err(failure) => {
                            is_over.store(true, Ordering::Relaxed);
                            total.1.get_or_insert(failure);
                        }
                    }
                }
            });
        }
    });
    total.into_inner().expect("nobody panics with it")
}

/// What every invariant is held against: hundreds of seeds, or those of the environment.
#[test]
fn every_seed_keeps_every_promise() {
    if let Some(seed) = setting("CLAVIGER_SEED") {
        match run(seed, None, true) {
            Ok(report) => println!("seed {seed} keeps every promise: {report:?}"),
            Err(failure) => panic!("{failure}"),
        }
        return;
    }
    let first = setting("CLAVIGER_SEED_FIRST").unwrap_or(0);
    let seeds = setting("CLAVIGER_SEEDS").unwrap_or(SEEDS);
    let begun = std::time::Instant::now();
    let (report, failure) = run_all(first..first + seeds);
    if let Some(failure) = failure {
        panic!("{failure}");
    }
    let seconds = begun.elapsed().as_secs_f64();
    println!(
        "{seeds} seeds, {} exchanges, {} steps in {seconds:.1} s: {:.0} exchanges a second",
        report.exchanges,
        report.steps,
        report.exchanges as f64 / seconds
    );
    let mut events: Vec<_> = report.events.iter().collect();
    events.sort();
    for (event, times) in events {
        println!("{times:>9}  {event}");
    }
    if seeds >= SEEDS {
        shows_what_it_should(&report.events);
    }
}

/// A simulation in which nothing goes wrong shows nothing.
fn shows_what_it_should(events: &HashMap<&'static str, u64>) {
    const SHOULD: &[&str] = &[
        "answers before the request's end",
        "answers cut in their body",
        "answers of our own",
        "answers that came broken off",
        "answers that came whole",
        "answers that stall",
        "bytes behind an answer",
        "callers that came too late",
        "callers that leave while they ask",
        "callers that leave while they wait",
        "callers that stop in the middle",
        "draining with callers",
        "handshakes that fail",
        "idle connections closed by the upstream",
        "keys echoed in a body",
        "keys echoed in a head",
        "requests overtaken by a rotation",
        "requests sent again",
        "rotations",
    ];
    for event in SHOULD {
        assert!(events.contains_key(event), "no seed has shown any {event}");
    }
}

#[test]
fn a_seed_is_the_same_run_each_time() {
    for seed in 1_000..1_010 {
        let (Ok(first), Ok(second)) = (run(seed, None, false), run(seed, None, false)) else {
            panic!("seed {seed} fails");
        };
        assert_eq!(first.digest, second.digest, "seed {seed}");
        assert_eq!(first.steps, second.steps, "seed {seed}");
    }
}
