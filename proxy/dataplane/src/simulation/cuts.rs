//! Cancellation at every await point of an exchange: a run is repeated up to a step after which a
//! task of ours waits, and then something happens to it. All that holds for a run must hold for
//! this one, and every route must be served again afterwards.
//!
//! **That it is every point** is not believed but read: where the task stood is taken from its stack,
//! and held against each line of the sources with an `.await` ([`FILES`]).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use handoff::Phase;

use super::{Break, Plan, Stage, caller, run_as};
use crate::rt::simulated::{Blow, Random, sleep};

/// Seeds whose runs are cut, once in each way, in an ordinary test run: so many, and more until each point
/// has been cut, for some are drawn once in a hundred seeds.
const SEEDS: u64 = 48;
const SEEDS_MAX: u64 = 1_000;

/// One seed in so many of `scripts/simulate` is cut as well.
const ONE_SEED_IN: u64 = 10;

/// Each point was cut so often, and each way was taken so often, or the test shows too little.
const TIMES_PER_POINT_MIN: usize = 3;
const TIMES_PER_CUT_MIN: usize = 40;

/// Requests to a route until it must be served again, one each [`AGAIN_AFTER`].
const TRIES_MAX: usize = 60;
const AGAIN_AFTER: Duration = Duration::from_millis(500);

/// How long a route may be missing from the configuration.
const MISSING_FOR: Duration = Duration::from_secs(1);

/// What happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Cut {
    CallersLeave,
    CallersReset,
    /// Nothing comes from callers or reaches them: each deadline strikes.
    CallersFallSilent,
    UpstreamsLeave,
    UpstreamsReset,
    UpstreamsFallSilent,
    /// Every key is replaced.
    Rotation,
    /// The routes are gone, and come back.
    Reload,
    Drain,
    /// Another process takes over.
    Retire,
    /// Every task is dropped where it stands.
    Stop,
}

const CUTS: [Cut; 11] = [
    Cut::CallersLeave,
    Cut::CallersReset,
    Cut::CallersFallSilent,
    Cut::UpstreamsLeave,
    Cut::UpstreamsReset,
    Cut::UpstreamsFallSilent,
    Cut::Rotation,
    Cut::Reload,
    Cut::Drain,
    Cut::Retire,
    Cut::Stop,
];

impl Cut {
    pub(super) fn act(self, stage: &Rc<Stage>) {
        let judge = &stage.judge;
        let world = &judge.world;
        judge.log(|| format!("CUT {self:?}"));
        match self {
            Cut::CallersLeave => world.strike(true, Blow::Finish),
            Cut::CallersReset => world.strike(true, Blow::Reset),
            Cut::CallersFallSilent => world.strike(true, Blow::Silence),
            Cut::UpstreamsLeave => world.strike(false, Blow::Finish),
            Cut::UpstreamsReset => world.strike(false, Blow::Reset),
            Cut::UpstreamsFallSilent => world.strike(false, Blow::Silence),
            Cut::Rotation => {
                let versions = judge.versions.get().map(|version| version + 1);
                (stage.snapshots).publish(Arc::new(stage.setting.snapshot(2, versions)));
                judge.versions.set(versions);
            }
            Cut::Reload => {
                let versions = judge.versions.get();
                (stage.snapshots).publish(Arc::new(stage.setting.snapshot_of(2, versions, 0)));
                let stage = Rc::clone(stage);
                world.spawn_outside(async move {
                    sleep(MISSING_FOR).await;
                    (stage.snapshots).publish(Arc::new(stage.setting.snapshot(3, versions)));
                });
            }
            Cut::Drain => stage.lifecycle.advance(Phase::Draining),
            Cut::Retire => stage.lifecycle.advance(Phase::Retiring),
            Cut::Stop => stage.lifecycle.advance(Phase::Stopping),
        }
    }
}

/// Every route is served again.
pub(super) async fn follow_up(stage: &Stage) {
    let judge = &stage.judge;
    for route in 0..stage.setting.routes {
        let client = SocketAddr::from(([10, 9, 1, route as u8], 50_000));
        let mut tries = 0;
        while !caller::ask(Rc::clone(judge), client, route).await {
            tries += 1;
            if tries == TRIES_MAX {
                return judge.accuse(|| format!("route {route} is not served any more"));
            }
            sleep(AGAIN_AFTER).await;
        }
    }
}

/// Where an exchange waits. What has tests of its own, since it is not simulated: `tls.rs`, the
/// handshake with callers, and `tunnel.rs`.
const FILES: [&str; 8] = [
    "addresses.rs",
    "connection.rs",
    "exchange.rs",
    "forward.rs",
    "pool.rs",
    "relay.rs",
    "respond.rs",
    "transport.rs",
];

/// A line of one of [`FILES`].
type Point = (&'static str, usize);

/// What is not cut, by what stands in its line or in the two above it, and why.
const ELSEWHERE: [(&str, &str); 16] = [
    ("greet(core,", "callers speak clear text here: tls/tests.rs"),
    ("tls::accept(", "the same"),
    ("let before = inner.inbox.len()", "the same"),
    ("fn send_raw", "the same"),
    ("down.goodbye()", "clear text has none: transport/tests.rs"),
    ("send_within(Duration::from_secs(1))", "the same"),
    (
        "// The alert that says why",
        "greetings have no alerts: session/tests.rs",
    ),
    (
        "(Nagle)",
        "a client's handshake ends with what it has received",
    ),
    (
        "Box::pin(tunnel)",
        "nobody asks for an upgrade here: tunnel.rs",
    ),
    ("Break::KeepsUnfinished", "a mistake that controls.rs makes"),
    (
        "if pending >= SEND_PENDING_BYTES",
        "few seeds draw so much at hand at once: relay/tests.rs",
    ),
    ("place.is_none()", "too few wait at once: buffer.rs"),
    (
        "behind_proxy(",
        "nobody stands behind a load balancer here: it callers::",
    ),
    ("down.recv_raw(", "the same"),
    ("header.await", "the same"),
    (
        "rt::yield_now()",
        "no caller pipelines so many refused requests: connection/tests.rs",
    ),
];

/// The same for what only passes on what is there.
const ELSEWHERE_TOO: [(&str, &str); 4] = [
    (
        "EVICTION_PAUSE",
        "descriptors never run out here: it fire::",
    ),
    (
        "Err(BodyError::Sink), relay)",
        "both directions have failed, unless a caller is slow: few seeds draw it",
    ),
    ("self.settle(", "waits for tunnels alone"),
    (
        "&AUDIT_UNAVAILABLE",
        "a lane is never full here: ledger/tests.rs",
    ),
];

/// Lines that wait, outside of tests, and which of them are cut here.
fn points() -> BTreeMap<Point, (String, bool)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut points = BTreeMap::new();
    for file in FILES {
        let text = std::fs::read_to_string(root.join(file)).expect("it is there");
        let lines: Vec<&str> = text.lines().collect();
        for (at, line) in lines.iter().enumerate() {
            let code = line.split("//").next().unwrap_or("");
            let waits = code
                .split(".await")
                .skip(1)
                .any(|rest| !rest.starts_with(|next: char| next.is_alphanumeric() || next == '_'));
            if waits {
                let around = lines[at.saturating_sub(2)..=at].concat();
                let is_here = !ELSEWHERE.iter().any(|(text, _)| around.contains(text))
                    && !ELSEWHERE_TOO.iter().any(|(text, _)| line.contains(text));
                points.insert((file, at + 1), (line.trim().to_owned(), is_here));
            }
        }
    }
    points
}

/// The lines of [`FILES`] on a stack.
fn on_stack(stack: &str, found: &mut BTreeSet<Point>) {
    for line in stack.lines() {
        let Some(place) = line.trim().strip_prefix("at ") else {
            continue;
        };
        for file in FILES {
            let number = place
                .split_once(&format!("/src/{file}:"))
                .and_then(|(_, rest)| rest.split(':').next()?.parse().ok());
            found.extend(number.map(|number| (file, number)));
        }
    }
}

/// What was cut, where, and how often.
#[derive(Default)]
struct Tally {
    points: BTreeMap<Point, BTreeMap<Cut, usize>>,
    cuts: BTreeMap<Cut, usize>,
    /// How often it was cut with this stack.
    stacks: HashMap<(Cut, u64), usize>,
    failures: Vec<String>,
}

impl Tally {
    fn times(&self, point: Point) -> usize {
        self.points
            .get(&point)
            .map_or(0, |cuts| cuts.values().sum())
    }

    /// Points that were cut too rarely.
    fn missing(&self) -> Vec<String> {
        let rare = points()
            .into_iter()
            .filter(|(point, (_, is_here))| *is_here && self.times(*point) < TIMES_PER_POINT_MIN);
        rare.map(|((file, line), (text, _))| {
            format!("{} times {file}:{line}  {text}", self.times((file, line)))
        })
        .collect()
    }

    fn print(&self) {
        for (cut, times) in &self.cuts {
            println!("{times:>6}  {cut:?}");
        }
        for (point, (text, is_here)) in points() {
            let ways = self.points.get(&point).map_or(0, BTreeMap::len);
            let (file, line) = point;
            let note = if is_here { "" } else { "  (elsewhere)" };
            println!(
                "{:>6} in {ways:>2} ways  {file}:{line}  {text}{note}",
                self.times(point)
            );
        }
    }
}

fn small(cut: Option<(u64, Cut)>) -> Plan {
    Plan {
        is_small: true,
        cut,
        ..Plan::default()
    }
}

/// Cuts one seed's run in each way, where runs were cut least so far.
fn cut(seed: u64, tally: &Mutex<Tally>) {
    let plan = Plan {
        notes_waits: true,
        ..small(None)
    };
    let mut steps: HashMap<u64, Vec<u64>> = HashMap::new();
    match run_as(seed, plan) {
        Ok(report) => {
            for wait in report.waits {
                steps.entry(wait.stack).or_default().push(wait.step);
            }
        }
        Err(failure) => {
            let mut tally = tally.lock().expect("nobody panics with it");
            return tally.failures.push(format!("uncut: {failure}"));
        }
    };
    let random = Random::new(!seed);
    for cut in CUTS {
        let step = {
            let mut tally = tally.lock().expect("nobody panics with it");
            let times = |stack: &u64| tally.stacks.get(&(cut, *stack)).copied().unwrap_or(0);
            let rarest = steps
                .keys()
                .copied()
                .min_by_key(|stack| (times(stack), *stack));
            let rarest = rarest.expect("somebody waits");
            *tally.stacks.entry((cut, rarest)).or_default() += 1;
            *random.one_of(&steps[&rarest])
        };
        let outcome = run_as(seed, small(Some((step, cut))));
        let mut tally = tally.lock().expect("nobody panics with it");
        *tally.cuts.entry(cut).or_default() += 1;
        match outcome {
            Ok(report) => {
                let mut found = BTreeSet::new();
                for stack in &report.seen {
                    on_stack(stack, &mut found);
                }
                for point in found {
                    let cuts = tally.points.entry(point).or_default();
                    *cuts.entry(cut).or_default() += 1;
                }
            }
            Err(failure) => tally.failures.push(format!(
                "{cut:?} after step {step} (CLAVIGER_CUT={cut:?}@{step} replays it): {failure}"
            )),
        }
    }
}

/// Replays `KIND@STEP`.
fn replay(text: &str) {
    let (kind, step) = text.split_once('@').expect("CLAVIGER_CUT is KIND@STEP");
    let cut = CUTS.into_iter().find(|cut| format!("{cut:?}") == kind);
    let plan = Plan {
        logs: true,
        ..small(Some((
            step.parse().expect("a step's number"),
            cut.expect("one of the kinds of cuts"),
        )))
    };
    let seed = super::tests::setting("CLAVIGER_SEED").expect("CLAVIGER_SEED as well");
    if let Err(failure) = run_as(seed, plan) {
        panic!("{failure}");
    }
}

#[test]
fn every_point_of_an_exchange_may_be_its_last() {
    if let Ok(text) = std::env::var("CLAVIGER_CUT") {
        return replay(&text);
    }
    let setting = super::tests::setting;
    let first = setting("CLAVIGER_SEED_FIRST").unwrap_or(0);
    let wanted = setting("CLAVIGER_SEEDS").map(|seeds| seeds.div_ceil(ONE_SEED_IN));
    let seeds = wanted.unwrap_or(SEEDS);
    let is_enough = |tally: &Tally, done: u64| {
        let is_complete = wanted.is_some() || tally.missing().is_empty();
        !tally.failures.is_empty() || done >= seeds && (is_complete || done >= SEEDS_MAX)
    };
    let tally = Mutex::new(Tally::default());
    let next = AtomicU64::new(first);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if is_enough(&tally.lock().expect("nobody panics"), seed - first) {
                        break;
                    }
                    cut(seed, &tally);
                }
            });
        }
    });
    let tally = tally.into_inner().expect("nobody panics with it");
    assert!(tally.failures.is_empty(), "{}", tally.failures.join("\n"));
    tally.print();
    if seeds >= SEEDS_MAX || wanted.is_none() {
        let missing = tally.missing();
        assert!(
            missing.is_empty(),
            "these points were not cut at least {TIMES_PER_POINT_MIN} times:\n{}",
            missing.join("\n")
        );
        for cut in CUTS {
            let times = tally.cuts.get(&cut).copied().unwrap_or(0);
            assert!(times >= TIMES_PER_CUT_MIN, "{cut:?}: {times} times");
        }
    }
}

/// The control: what is never reached is noticed, and so is a place that does not come back.
#[test]
fn a_point_that_is_never_cut_is_noticed() {
    let count = points().values().filter(|(_, is_here)| *is_here).count();
    assert!(count > 40, "{count} points are not all");
    assert_eq!(Tally::default().missing().len(), count);
}

#[test]
fn a_cut_that_leaks_is_noticed() {
    for seed in 0..SEEDS {
        let plan = Plan {
            notes_waits: true,
            ..small(None)
        };
        let waits = match run_as(seed, plan) {
            Ok(report) => report.waits,
            Err(failure) => panic!("{failure}"),
        };
        let plan = Plan {
            broken: Some(Break::LeaksPlaces),
            ..small(Some((waits[waits.len() / 2].step, Cut::CallersReset)))
        };
        if let Err(failure) = run_as(seed, plan)
            && (failure.violations.iter()).any(|what| what.contains("is not served any more"))
        {
            return;
        }
    }
    panic!("nobody misses the places");
}
