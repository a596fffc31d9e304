//! One thread of the generator: it hands due requests to free connections and keeps the books.
//!
//! Its main task, the dispatcher, sleeps until the next request is due (by timerfd, since the
//! runtime's own timers round to 1 ms), spins the last few microseconds if asked to, and gives
//! the request to the connection that has been idle longest. With none free the request waits,
//! and its latency runs. Nothing here is shared with other threads but the start signal.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Barrier, Mutex, PoisonError};
use std::time::Duration;

use crate::clock::{Clock, MILLISECOND, Nanos};
use crate::connection;
use crate::failure::{Failure, Kind};
use crate::plan::{Load, Plan, Timeline, nanos};
use crate::response::ResponseReader;
use crate::rt::{self, Driver};
use crate::schedule::Schedule;
use crate::slot::{Slot, Work};
use crate::stats::{Stats, record};
use crate::sys::{CpuTime, Timer};

/// What all threads of a run agree on before it starts.
pub struct Start {
    clock: Clock,
    gate: Barrier,
    at: AtomicU64,
    abandoned: AtomicBool,
    reason: Mutex<Option<String>>,
}

impl Start {
    /// A start for `threads` threads.
    pub fn new(threads: usize) -> Self {
        Self {
            clock: Clock::start(),
            gate: Barrier::new(threads),
            at: AtomicU64::new(0),
            abandoned: AtomicBool::new(false),
            reason: Mutex::new(None),
        }
    }

    /// Why the run was abandoned before it began, if it was.
    pub fn abandoned(&self) -> Option<String> {
        self.reason
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Waits for all threads, and returns the common start, or `None` if one of them cannot.
    fn agree(&self, ready: Result<(), String>) -> Option<Nanos> {
        if let Err(reason) = ready {
            self.abandoned.store(true, Ordering::Relaxed);
            self.reason
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .get_or_insert(reason);
        }
        if self.gate.wait().is_leader() {
            self.at
                .store(self.clock.now() + START_MARGIN, Ordering::Relaxed);
        }
        // The barrier orders these accesses.
        self.gate.wait();
        (!self.abandoned.load(Ordering::Relaxed)).then(|| self.at.load(Ordering::Relaxed))
    }
}

/// Runs thread `index` of the plan from opening its connections to closing them. `None` if the run
/// was abandoned before it began.
pub fn run(plan: Arc<Plan>, start: &Start, index: usize) -> Option<(Stats, Driver)> {
    let prepared = prepare(&plan, index);
    let (mut runtime, driver) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => {
            start.agree(Err(error.to_string()));
            return None;
        }
    };
    let core = Rc::new(Core {
        stats: RefCell::new(Stats::new(plan.targets.len())),
        lanes: plan.targets.iter().map(|_| Lane::default()).collect(),
        timeline: Cell::new(None),
        clock: start.clock,
        timeout: nanos(plan.timeout),
        openings: Cell::new(Openings::default()),
        in_flight: Cell::new(0),
        alive: Cell::new(0),
        plan,
    });
    let finished = runtime.block_on(drive(&core, start, index));
    finished.then(|| {
        // Idle connections may still hold the core; the books are closed all the same.
        let targets = core.plan.targets.len();
        (core.stats.replace(Stats::new(targets)), driver)
    })
}

/// One thread's state, shared by its tasks.
pub struct Core {
    plan: Arc<Plan>,
    clock: Clock,
    /// `None` before the start.
    timeline: Cell<Option<Timeline>>,
    timeout: Nanos,
    /// One per target.
    lanes: Vec<Lane>,
    stats: RefCell<Stats>,
    openings: Cell<Openings>,
    /// Requests that connections are working on.
    in_flight: Cell<usize>,
    /// Connection tasks that have not quit.
    alive: Cell<usize>,
}

/// Free connections and waiting requests of one target. At least one of the two is empty,
/// except while connections are being opened.
#[derive(Default)]
struct Lane {
    free: RefCell<VecDeque<Rc<Slot>>>,
    waiting: RefCell<VecDeque<Nanos>>,
}

#[derive(Clone, Copy, Default)]
struct Openings {
    succeeded: usize,
    failed: usize,
}

impl Core {
    /// The plan of the run.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The run's clock.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Whether the load is still on, or about to start.
    pub fn running(&self) -> bool {
        self.timeline
            .get()
            .is_none_or(|timeline| self.clock.now() < timeline.end)
    }

    /// When what begins at `from` must be over.
    pub fn deadline(&self, from: Nanos) -> Nanos {
        from.saturating_add(self.timeout)
    }

    /// The request that a connection of `target` shall send next, if there is one now.
    pub fn next_due(&self, target: usize) -> Option<Nanos> {
        let timeline = self.timeline.get()?;
        match self.plan.load {
            Load::Closed => {
                let now = self.clock.now();
                (now < timeline.end && timeline.target_at(now) == target).then_some(now)
            }
            Load::Open { .. } => {
                let mut waiting = self.lanes[target].waiting.borrow_mut();
                loop {
                    let due = waiting.pop_front()?;
                    if self.deadline(due) > self.clock.now() {
                        return Some(due);
                    }
                    self.failed_waiting(
                        target,
                        due,
                        Kind::Timeout,
                        "no connection became free in time",
                    );
                }
            }
        }
    }

    /// Puts a connection that has nothing to do at the end of the queue of free ones.
    pub fn park(&self, slot: &Rc<Slot>) {
        self.lanes[slot.target]
            .free
            .borrow_mut()
            .push_back(slot.clone());
    }

    /// Takes a connection out of the queue of free ones. False if it is not there, which means that
    /// it has just been given work.
    pub fn unpark(&self, slot: &Rc<Slot>) -> bool {
        let mut free = self.lanes[slot.target].free.borrow_mut();
        match free.iter().position(|other| Rc::ptr_eq(other, slot)) {
            Some(at) => free.remove(at).is_some(),
            None => false,
        }
    }

    /// A slot's first attempt to connect is over.
    pub fn opened(&self, succeeded: bool) {
        let mut openings = self.openings.get();
        if succeeded || self.plan.new_connection {
            openings.succeeded += 1;
        } else {
            openings.failed += 1;
        }
        self.openings.set(openings);
    }

    /// A connection was opened.
    pub fn connected(
        &self,
        target: usize,
        began: Nanos,
        resumed: Option<bool>,
        tls: impl FnOnce() -> Option<String>,
    ) {
        let took = self.clock.now() - began;
        let stats = &mut self.stats.borrow_mut().targets[target];
        stats.connections_opened += 1;
        stats.connections_resumed += u64::from(resumed == Some(true));
        if stats.tls.is_none() {
            stats.tls = tls();
        }
        record(&mut stats.opening, took);
    }

    /// A connection failed to open, outside of any request.
    pub fn connecting_failed(&self, target: usize, failure: Failure) {
        let stats = &mut self.stats.borrow_mut().targets[target];
        stats.connections_failed += 1;
        stats.example(failure);
    }

    /// The server closed an idle connection.
    pub fn closed_idle(&self, slot: &Slot) {
        self.stats.borrow_mut().targets[slot.target].connections_closed_idle += 1;
    }

    /// A connection starts to work on a request.
    pub fn began(&self, due: Nanos, sent: Nanos) {
        self.in_flight.set(self.in_flight.get() + 1);
        if self.plan.load != Load::Closed && self.measures(due) {
            record(&mut self.stats.borrow_mut().wait, sent.saturating_sub(due));
        }
    }

    /// A complete answer arrived.
    pub fn finished(&self, target: usize, due: Nanos, sent: Nanos, reader: &ResponseReader) {
        self.in_flight.set(self.in_flight.get() - 1);
        let Some(timeline) = self.timeline.get() else {
            return;
        };
        let now = self.clock.now();
        let expected = &self.plan.targets[target].expected_status;
        let mut stats = self.stats.borrow_mut();
        let stats = &mut stats.targets[target];
        let good = expected.contains(reader.status()) && reader.body_matches();
        if good && timeline.measures(now) {
            stats.good_in_time += 1;
        }
        if !timeline.measures(due) {
            return;
        }
        if let Some(count) = stats.status.get_mut(usize::from(reader.status())) {
            *count += 1;
        }
        stats.body_bytes += reader.body_bytes();
        if !good {
            return stats.fail(if expected.contains(reader.status()) {
                Failure::new(Kind::WrongBody, "a body other than the expected one")
            } else {
                Failure::new(Kind::BadStatus, format!("status {}", reader.status()))
            });
        }
        stats.good += 1;
        record(&mut stats.corrected, now - due);
        record(&mut stats.uncorrected, now - sent);
        if self.plan.targets.len() > 1 {
            stats.round(timeline.round_index(due)).add(now - due);
        }
    }

    /// A request has no complete answer.
    pub fn failed(&self, target: usize, due: Nanos, failure: Failure) {
        self.in_flight.set(self.in_flight.get() - 1);
        let kind = failure.kind;
        if self.measures(due) {
            let mut stats = self.stats.borrow_mut();
            stats.targets[target].fail(failure);
            if kind == Kind::Timeout {
                let elapsed = self.clock.now().saturating_sub(due);
                // It took at least this long. Leaving it out would flatter the worst servers most.
                record(&mut stats.targets[target].corrected, elapsed);
            }
        }
    }

    /// A connection task has ended.
    pub fn quitted(&self) {
        self.alive.set(self.alive.get() - 1);
    }

    fn measures(&self, due: Nanos) -> bool {
        self.timeline
            .get()
            .is_some_and(|timeline| timeline.measures(due))
    }

    /// A request that never left the queue.
    fn failed_waiting(&self, target: usize, due: Nanos, kind: Kind, detail: &str) {
        if self.measures(due) {
            let elapsed = self.clock.now().saturating_sub(due);
            let mut stats = self.stats.borrow_mut();
            record(&mut stats.wait, elapsed);
            record(&mut stats.targets[target].corrected, elapsed);
            stats.targets[target].fail(Failure::new(kind, detail));
        }
    }

    /// Gives a request to the connection that has been free longest, or lets it wait.
    fn dispatch(&self, target: usize, due: Nanos) {
        let lane = &self.lanes[target];
        let free = lane.free.borrow_mut().pop_front();
        match free {
            Some(slot) => slot.give(Work::Request { due }),
            None => lane.waiting.borrow_mut().push_back(due),
        }
    }
}

fn prepare(plan: &Plan, index: usize) -> io::Result<(rt::AnyRuntime, Driver)> {
    if !plan.cpus.is_empty() {
        rt::pin(plan.cpus[index % plan.cpus.len()])?;
    }
    rt::build(plan.driver)
}

/// The main task: opens, starts with the others, drives, drains, closes.
async fn drive(core: &Rc<Core>, start: &Start, index: usize) -> bool {
    let timer = match Timer::new() {
        Ok(timer) => timer,
        Err(error) => {
            start.agree(Err(format!("cannot make a timer: {error}")));
            return false;
        }
    };
    let slots = open_all(core, &timer, index).await;
    let Some(at) = start.agree(any_connection(core)) else {
        return false;
    };
    let timeline = core.plan.timeline(at);
    core.timeline.set(Some(timeline));
    match core.plan.load {
        Load::Open { rate, arrivals } => {
            let plan = &core.plan;
            let schedule = Schedule::new(arrivals, rate, at, index, plan.threads, plan.seed);
            drive_open(core, &timer, &slots, timeline, schedule).await;
        }
        Load::Closed => drive_closed(core, &timer, &slots, timeline).await,
    }
    drain(core, &timer, &slots).await;
    true
}

/// Spawns all slots, a bounded number of them connecting at a time, and waits for the last.
async fn open_all(core: &Rc<Core>, timer: &Timer, index: usize) -> Vec<Rc<Slot>> {
    let targets = core.plan.targets.len();
    let wanted = core.plan.connections_of(index) * targets;
    let mut slots = Vec::with_capacity(wanted);
    loop {
        let Openings { succeeded, failed } = core.openings.get();
        let over = succeeded + failed;
        if over == wanted {
            return slots;
        }
        while slots.len() < wanted && slots.len() - over < OPENING_AT_ONCE_MAX {
            let slot = Rc::new(Slot::new(slots.len() % targets));
            slots.push(slot.clone());
            core.alive.set(core.alive.get() + 1);
            monoio::spawn(connection::run(core.clone(), slot));
        }
        pause(timer, MILLISECOND).await;
        sweep(core, &slots);
    }
}

/// A run without a single connection measures nothing; it is refused with the first reason.
fn any_connection(core: &Core) -> Result<(), String> {
    let Openings { succeeded, failed } = core.openings.get();
    if succeeded > 0 || failed == 0 {
        return Ok(());
    }
    let stats = core.stats.borrow();
    let (target, example) = core
        .plan
        .targets
        .iter()
        .zip(&stats.targets)
        .find_map(|(target, stats)| Some((target, stats.examples.first()?)))
        .ok_or("no connection could be opened")?;
    Err(format!(
        "no connection to {} at {}: {}: {}",
        target.name,
        target.address,
        example.0.name(),
        example.1
    ))
}

async fn drive_open(
    core: &Rc<Core>,
    timer: &Timer,
    slots: &[Rc<Slot>],
    timeline: Timeline,
    mut schedule: Schedule,
) {
    let spin = nanos(core.plan.spin);
    let mut cpu = CpuWindow::new(timeline);
    let mut sweep_at = timeline.start;
    loop {
        let mut now = core.clock.now();
        if schedule.next_due().saturating_sub(now) <= spin {
            while now < schedule.next_due() {
                std::hint::spin_loop();
                now = core.clock.now();
            }
        }
        // What is due is handed out, at most a burst of it before answers get their turn.
        for _ in 0..DISPATCH_BURST_MAX {
            let due = schedule.next_due();
            if due > now || due >= timeline.end {
                break;
            }
            if timeline.measures(due) {
                record(&mut core.stats.borrow_mut().lag, now - due);
            }
            core.dispatch(timeline.target_at(due), due);
            schedule.advance();
            now = core.clock.now();
        }
        cpu.look(now);
        if now >= sweep_at {
            sweep(core, slots);
            sweep_at = now + sweep_interval(core);
        }
        if now >= timeline.end {
            break;
        }
        let until = schedule
            .next_due()
            .saturating_sub(spin)
            .min(sweep_at)
            .min(timeline.end)
            .min(cpu.next());
        pause(timer, until.saturating_sub(core.clock.now())).await;
    }
    cpu.close(core);
    for (target, lane) in core.lanes.iter().enumerate() {
        let unsent = std::mem::take(&mut *lane.waiting.borrow_mut());
        for due in unsent {
            core.failed_waiting(
                target,
                due,
                Kind::Unsent,
                "due within the run, but no connection was free before its end",
            );
        }
    }
}

async fn drive_closed(core: &Rc<Core>, timer: &Timer, slots: &[Rc<Slot>], timeline: Timeline) {
    let mut cpu = CpuWindow::new(timeline);
    pause(timer, timeline.start.saturating_sub(core.clock.now())).await;
    loop {
        let now = core.clock.now();
        if now >= timeline.end {
            break;
        }
        cpu.look(now);
        // Whoever is free and has its turn starts; from then on each connection drives itself.
        let free = std::mem::take(&mut *core.lanes[timeline.target_at(now)].free.borrow_mut());
        for slot in free {
            slot.give(Work::Request { due: now });
        }
        sweep(core, slots);
        let until = timeline
            .slice_end(now)
            .min(now + sweep_interval(core))
            .min(timeline.end)
            .min(cpu.next());
        pause(timer, until.saturating_sub(core.clock.now())).await;
    }
    cpu.close(core);
}

/// Waits for the answers under way, then for all connections to close.
async fn drain(core: &Rc<Core>, timer: &Timer, slots: &[Rc<Slot>]) {
    // Each request has a deadline, so this ends.
    while core.in_flight.get() > 0 {
        pause(timer, MILLISECOND).await;
        sweep(core, slots);
    }
    let give_up = core.clock.now() + CLOSING_MAX;
    loop {
        for lane in &core.lanes {
            let free = std::mem::take(&mut *lane.free.borrow_mut());
            for slot in free {
                slot.give(Work::Quit);
            }
        }
        // The first turn lets them close; what is still connecting then is left to the kernel.
        pause(timer, MILLISECOND / 10).await;
        if core.alive.get() == 0 || core.clock.now() > give_up {
            return;
        }
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

    fn look(&mut self, now: Nanos) {
        if now >= self.from && self.at_start.is_none() {
            self.at_start = Some(CpuTime::of_thread());
        }
    }

    fn close(self, core: &Core) {
        let start = self.at_start.unwrap_or_else(CpuTime::of_thread);
        core.stats.borrow_mut().cpu = CpuTime::of_thread().since(start);
    }
}

fn sweep(core: &Core, slots: &[Rc<Slot>]) {
    let now = core.clock.now();
    for slot in slots {
        slot.sweep(now);
    }
}

/// Deadlines are kept to within a twentieth of the timeout, at most 50 ms.
fn sweep_interval(core: &Core) -> Nanos {
    (core.timeout / 20).clamp(MILLISECOND, 50 * MILLISECOND)
}

async fn pause(timer: &Timer, time: Nanos) {
    // A timer that cannot be set would turn every wait into a spin; nothing else is left to do,
    // and the run says so by its CPU.
    let _ = timer.wait(Duration::from_nanos(time)).await;
}

/// Time between the last thread's readiness and the common start.
const START_MARGIN: Nanos = 5 * MILLISECOND;

/// Connections that one thread opens at the same time before the start. More would overflow a
/// server's accept queue, whose retransmissions take a second.
const OPENING_AT_ONCE_MAX: usize = 64;

/// Due requests handed out in one go. When the generator is behind by more, it first takes in what
/// has arrived: answers must not wait for questions.
const DISPATCH_BURST_MAX: usize = 256;

/// How long closing may take; connections left then are closed by the end of the process.
const CLOSING_MAX: Nanos = 500 * MILLISECOND;
