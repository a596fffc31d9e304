//! A deterministic simulation of one worker: [`crate::worker::Worker`] whole, from accepting to
//! draining, on the simulated driver ([`crate::rt::simulated`]), between scripted callers and
//! scripted upstreams that misbehave as a seed says. Test builds only.
//!
//! **What holds at every step** ([`judge`]): a key's bytes go to no socket in clear; opened, they
//! are found on connections of the credential's own upstream and of that credential alone; what
//! upstreams answer carries the nonce of its request in every 32 bytes, and is found on the
//! connection that asked. **And at every end**: pools, registrations, sockets, lent buffers and
//! tasks are back where they were; every exchange has one record, and it is true; nobody has
//! waited for longer than all time limits together; what was broken off does not look whole; no
//! request that must not be repeated has arrived twice; no key arrives that was replaced before
//! its request was made.
//!
//! **Why so.** The worker is the product's, unchanged; what is not is its driver, by `cfg(test)`
//! within `rt`, so that the product has nothing of this to turn on. Callers speak clear text, as
//! a listener may: what our side sends them is searched as it is. Towards upstreams records,
//! AEAD, alerts and tickets are real, and the judge opens each record as it is written: only the
//! handshake is replaced, by an agreement on keys, since rustls's costs more than the exchanges
//! behind it, and nothing with its random numbers could be replayed
//! ([`crate::session::simulated`]). So bytes that never arrive are searched as well, at
//! thousands of exchanges a second.
//!
//! **To use it**: `cargo test -p dataplane simulation` runs some hundreds of seeds and prints the
//! one that fails; `CLAVIGER_SEED=n` replays it with its story; `scripts/simulate 100000` runs
//! more. [`controls`] breaks the product on purpose, once per invariant, and wants it noticed.
//!
//! What it lacks: TLS towards callers, tunnels, several cores (handing connections over), and
//! wall-clock time in records. These have tests of their own.

mod caller;
mod controls;
mod cuts;
mod judge;
mod setting;
mod upstream;

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::sync::{Arc, LazyLock, mpsc};
use std::time::Duration;

use handoff::{Counter, Counters, Drain, Lifecycle, Phase, Published, lane};
use policy::{AddressBook, Snapshot};

use self::judge::{Judge, Report};
use self::setting::{CREDENTIALS, Setting};
use crate::balance::Cores;
use crate::core::Core;
use crate::rt::simulated::{Outside, Random, World, sleep};
use crate::rt::{self, DriverKind};
use crate::worker::Worker;

/// Virtual time for one run. Callers come within seconds, and none may wait for longer than
/// [`judge::PATIENCE`] at a time.
const TIME_MAX: Duration = Duration::from_secs(1_800);

/// How long everything may take to come to rest behind the last caller.
const REST_MAX: Duration = Duration::from_secs(60);

/// Rotations in one run.
const ROTATIONS_MAX: u64 = 40;

/// A mistake that is made on purpose, so that it is seen that it would be noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Break {
    /// An idle connection is lent for another pool's key.
    MixesPools,
    /// An exchange is given up with its answer still to come, and its connection lent again.
    KeepsUnfinished,
    /// A body's last part is not passed on.
    DropsLastPart,
    /// A body that is cut ends as if it were whole.
    EndsCutBodies,
    /// A lease that ends does not give its place back.
    LeaksPlaces,
    /// A lease that ends does not close its connection.
    LeaksSockets,
    /// A socket that is closed stays registered.
    KeepsRegistrations,
    /// Nobody is cut for being late in sending.
    ForgetsDeadlines,
    /// A new configuration is not taken up.
    KeepsOldKeys,
    WritesRecordTwice,
    /// A record does not reach the file.
    LosesRecord,
    /// A receive that is stopped takes bytes along.
    LosesAtStop,
}

thread_local! {
    static BROKEN: Cell<Option<Break>> = const { Cell::new(None) };
    static JUDGE: RefCell<Weak<Judge>> = const { RefCell::new(Weak::new()) };
}

/// Whether this mistake is to be made.
pub fn is(broken: Break) -> bool {
    BROKEN.get() == Some(broken)
}

/// The worker's core has been made: whoever simulates it wants to look at it.
pub fn attend(core: &Rc<Core>) {
    if let Some(judge) = JUDGE.with_borrow(Weak::upgrade) {
        judge.attend(core);
    }
}

/// A run that showed what must not be.
#[derive(Debug)]
pub struct Failure {
    pub seed: u64,
    pub violations: Vec<String>,
    pub story: Vec<String>,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for line in &self.story {
            writeln!(f, "{line}")?;
        }
        writeln!(
            f,
            "seed {} (CLAVIGER_SEED={} replays it):",
            self.seed, self.seed
        )?;
        for violation in &self.violations {
            writeln!(f, "  {violation}")?;
        }
        Ok(())
    }
}

/// How a seed is run.
#[derive(Debug, Clone, Copy, Default)]
pub struct Plan {
    pub broken: Option<Break>,
    pub logs: bool,
    /// With a few callers.
    pub is_small: bool,
    /// [`Report::waits`] is wanted.
    pub notes_waits: bool,
    /// What happens after which step, and nothing goes wrong by itself from then on.
    pub cut: Option<(u64, cuts::Cut)>,
}

/// What the run's tasks share.
struct Stage {
    judge: Rc<Judge>,
    setting: Setting,
    snapshots: Arc<Published<Snapshot>>,
    lifecycle: Arc<Lifecycle>,
    callers: Cell<usize>,
    drain: RefCell<Drain>,
}

/// Runs one seed.
///
/// # Errors
/// What must not have been, with the seed that brings it about.
pub fn run(seed: u64, broken: Option<Break>, logs: bool) -> Result<Report, Failure> {
    run_as(
        seed,
        Plan {
            broken,
            logs,
            ..Plan::default()
        },
    )
}

/// Runs one seed in one way.
///
/// # Errors
/// As [`run`].
pub fn run_as(seed: u64, plan: Plan) -> Result<Report, Failure> {
    let random = Random::new(seed);
    let mut setting = if plan.is_small {
        Setting::draw_small(&random)
    } else {
        Setting::draw(&random)
    };
    let Plan { broken, logs, .. } = plan;
    setting.world.loses_at_stop = broken == Some(Break::LosesAtStop);
    let world = World::new(random.next(), setting.world);
    let judge = Judge::new(&world, &setting, logs);
    judge.log(|| {
        format!(
            "{:?} {:?} {:?}",
            setting.world, setting.upstream, setting.server
        )
    });
    BROKEN.set(broken);
    JUDGE.set(Rc::downgrade(&judge));

    let snapshot = Arc::new(setting.snapshot(1, judge.versions.get()));
    let snapshots = Published::new(snapshot);
    let counters = Arc::new(Counters::default());
    let lifecycle = Arc::new(Lifecycle::default());
    let (lane, drain) = lane();
    let worker = worker(&snapshots, &lifecycle, lane, &counters);
    let stage = Rc::new(Stage {
        judge: Rc::clone(&judge),
        setting,
        snapshots,
        lifecycle,
        callers: Cell::new(0),
        drain: RefCell::new(drain),
    });
    if plan.notes_waits {
        world.note_waits();
    }
    if let Some((step, cut)) = plan.cut {
        let stage = Rc::downgrade(&stage);
        let act = Box::new(move || {
            if let Some(stage) = stage.upgrade() {
                cut.act(&stage);
            }
        });
        judge.schedule(judge::Due { step, act });
    }
    let (ready, _started) = mpsc::channel();
    let main = async {
        world.spawn_outside(direct(Rc::clone(&stage)));
        worker.live(DriverKind::Epoll, ready).await;
    };
    let outside: Rc<dyn Outside> = Rc::clone(&judge) as Rc<dyn Outside>;
    let ended = world.run(outside, TIME_MAX, main);
    if let Err(stuck) = ended
        && judge.violations().is_empty()
    {
        judge.accuse(|| format!("the run does not end: {stuck:?}"));
    }
    let core = judge.dismiss().map(|core| Rc::downgrade(&core));
    if judge.violations().is_empty() {
        judge.read_records(&mut stage.drain.borrow_mut());
        judge.check_records(counters.get(Counter::exchanges));
        judge.check_extras();
        // What a task's end leaves behind, nobody could reach any more.
        if core.is_some_and(|core| core.strong_count() > 0) {
            judge.accuse(|| "the core outlives its worker".to_owned());
        }
        let sockets = world.sockets_open();
        if sockets > 0 {
            judge.accuse(|| format!("{sockets} sockets outlive their worker"));
        }
        for gauge in [Counter::exchanges_open, Counter::connections_open] {
            let open = counters.get(gauge);
            if open > 0 {
                judge.accuse(|| format!("{open} {} outlive their worker", gauge.name()));
            }
        }
        if !judge.is_over() {
            judge.accuse(|| "what was to happen has not".to_owned());
        }
    }
    BROKEN.set(None);
    JUDGE.take();
    let violations = judge.violations();
    if violations.is_empty() {
        return Ok(judge.report(counters.get(Counter::exchanges)));
    }
    Err(Failure {
        seed,
        violations,
        story: judge.story(),
    })
}

fn worker(
    snapshots: &Arc<Published<Snapshot>>,
    lifecycle: &Arc<Lifecycle>,
    lane: handoff::Lane,
    counters: &Arc<Counters>,
) -> Worker {
    /// Nobody connects to it; the worker's listener wants one.
    static LISTENER: LazyLock<std::net::TcpListener> = LazyLock::new(crate::test_support::listener);
    let (hatch, opening) = rt::hatch().expect("there are descriptors left");
    let (_, heart) = rt::pulse().expect("there are descriptors left");
    Worker {
        index: 0,
        sockets: vec![LISTENER.try_clone().expect("there are descriptors left")],
        opening,
        heart,
        cores: Cores::new(vec![hatch]),
        names: Arc::new([Arc::from("clear")]),
        snapshots: Arc::clone(snapshots),
        addresses: Published::new(Arc::new(AddressBook::default())),
        lane,
        counters: Arc::clone(counters),
        turns: Arc::default(),
        lifecycle: Arc::clone(lifecycle),
        instance: 0x0123_4567_89ab_cdef,
    }
}

/// Lets callers come, keys change and records be written; then looks whether all is as it was.
async fn direct(stage: Rc<Stage>) {
    let judge = &stage.judge;
    let world = Rc::clone(&judge.world);
    let random = &world.random;
    let is_cut = !judge.is_over();
    if stage.setting.rotates {
        world.spawn_outside(rotate(Rc::clone(&stage)));
    }
    stage.callers.set(stage.setting.callers);
    for number in 0..stage.setting.callers {
        let client = SocketAddr::from(([10, 9, 0, number as u8], 40_000 + number as u16));
        let pause = random.below(stage.setting.arrival.as_millis() as usize);
        let pause = Duration::from_millis(pause as u64);
        let stage = Rc::clone(&stage);
        world.spawn_outside(async move {
            sleep(pause).await;
            caller::call(Rc::clone(&stage.judge), client).await;
            stage.callers.set(stage.callers.get() - 1);
        });
    }
    let drains_at = world.clock() + Duration::from_millis(random.below(4_000) as u64);
    while stage.callers.get() > 0 {
        sleep(Duration::from_millis(100)).await;
        judge.read_records(&mut stage.drain.borrow_mut());
        if stage.setting.drains_early && world.clock() >= drains_at {
            judge.saw("draining with callers");
            stage.lifecycle.advance(Phase::Draining);
        }
    }
    if is_cut && stage.lifecycle.phase() == Phase::Serving {
        cuts::follow_up(&stage).await;
    }
    if stage.lifecycle.phase() == Phase::Serving {
        let begun = world.clock();
        // What lingers, and the connections that are kept warm, come to their rest.
        while let Some(unrest) = judge.unrest() {
            if world.clock() - begun > REST_MAX {
                return judge.accuse(|| unrest);
            }
            sleep(Duration::from_millis(50)).await;
        }
        stage.lifecycle.advance(Phase::Draining);
    }
}

/// Publishes new versions of the keys, as long as there are callers.
async fn rotate(stage: Rc<Stage>) {
    let judge = &stage.judge;
    let random = &judge.world.random;
    for generation in 2..ROTATIONS_MAX + 2 {
        let pause = stage.setting.rotation.as_millis() as usize;
        sleep(Duration::from_millis(random.within(1..=2 * pause) as u64)).await;
        if stage.callers.get() == 0 {
            break;
        }
        let mut versions = judge.versions.get();
        versions[random.below(CREDENTIALS)] += 1;
        let snapshot = stage.setting.snapshot(generation, versions);
        stage.snapshots.publish(Arc::new(snapshot));
        judge.versions.set(versions);
        judge.saw("rotations");
    }
}

mod tests;
