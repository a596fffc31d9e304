//! One thread's books: free connections, waiting requests, and what came of them.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use crate::board::Recorder;
use crate::clock::{Clock, MILLISECOND, Nanos};
use crate::failure::{Failure, Kind};
use crate::plan::{Load, Plan, Timeline, nanos};
use crate::response::ResponseReader;
use crate::slot::{Slot, Work};
use crate::start::Start;
use crate::stats::{Stats, TargetStats, record};
use crate::sys::CpuTime;

/// One thread's state, shared by its tasks.
pub struct Core {
    plan: Arc<Plan>,
    clock: Clock,
    start: Arc<Start>,
    recorder: RefCell<Recorder>,
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
    /// Counts everything that happens, so that a turn in which nothing did can be told.
    progress: Cell<u64>,
    spun: Cell<Nanos>,
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

/// A request for a connection to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Due {
    /// When it was due.
    pub at: Nanos,
    /// Whether it had to wait for a connection.
    pub waited: bool,
}

impl Core {
    /// The state of thread `index`, which has done nothing yet.
    pub fn new(plan: Arc<Plan>, start: Arc<Start>, index: usize) -> Self {
        Self {
            recorder: RefCell::new(Recorder::new(&plan, start.boards[index].clone())),
            clock: start.clock,
            start,
            stats: RefCell::new(Stats::new(plan.targets.len())),
            lanes: plan.targets.iter().map(|_| Lane::default()).collect(),
            timeline: Cell::new(None),
            timeout: nanos(plan.timeout),
            openings: Cell::new(Openings::default()),
            in_flight: Cell::new(0),
            alive: Cell::new(0),
            progress: Cell::new(0),
            spun: Cell::new(0),
            plan,
        }
    }

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
    pub fn next_due(&self, target: usize) -> Option<Due> {
        let timeline = self.timeline.get()?;
        match self.plan.load {
            Load::Closed => {
                let now = self.clock.now();
                (now < timeline.end && timeline.target_at(now) == target).then_some(Due {
                    at: now,
                    waited: false,
                })
            }
            Load::Open { .. } => loop {
                let due = self.lanes[target].waiting.borrow_mut().pop_front()?;
                if self.deadline(due) > self.clock.now() {
                    return Some(Due {
                        at: due,
                        waited: true,
                    });
                }
                self.never_sent(
                    target,
                    due,
                    Kind::Timeout,
                    "no connection became free in time",
                );
            },
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

    /// A connection sends a request now.
    pub fn began(&self, due: Due, sent: Nanos) {
        self.in_flight.set(self.in_flight.get() + 1);
        self.progress.set(self.progress.get() + 1);
        if self.plan.load != Load::Closed && self.measures(due.at) {
            let mut stats = self.stats.borrow_mut();
            let late = sent.saturating_sub(due.at);
            // Only what the generator itself is to blame for is its lag. What waited for the
            // server to free a connection is another matter, and has been told apart before.
            match due.waited {
                false => {
                    record(&mut stats.lag, late);
                    self.recorder.borrow().lag(late);
                }
                true => record(&mut stats.wait, late),
            }
        }
    }

    /// A complete answer arrived.
    pub fn finished(&self, target: usize, due: Nanos, sent: Nanos, reader: &ResponseReader) {
        self.in_flight.set(self.in_flight.get() - 1);
        self.progress.set(self.progress.get() + 1);
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
        let mut recorder = self.recorder.borrow_mut();
        match good {
            true => recorder.good(target, due, now),
            false if expected.contains(reader.status()) => {
                recorder.failed(target, due, now, Kind::WrongBody, false);
            }
            false => recorder.failed(target, due, now, Kind::BadStatus, false),
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
        self.progress.set(self.progress.get() + 1);
        let kind = failure.kind;
        let now = self.clock.now();
        let timed = kind == Kind::Timeout;
        self.recorder
            .borrow_mut()
            .failed(target, due, now, kind, timed);
        if self.measures(due) {
            let mut stats = self.stats.borrow_mut();
            stats.targets[target].fail(failure);
            if timed {
                self.took_at_least(&mut stats.targets[target], due, now);
            }
        }
    }

    /// A connection task has ended.
    pub fn quitted(&self) {
        self.alive.set(self.alive.get() - 1);
    }

    /// A request was due and nobody sent it.
    fn never_sent(&self, target: usize, due: Nanos, kind: Kind, detail: &str) {
        let now = self.clock.now();
        self.recorder
            .borrow_mut()
            .failed(target, due, now, kind, true);
        if self.measures(due) {
            let mut stats = self.stats.borrow_mut();
            record(&mut stats.wait, now.saturating_sub(due));
            self.took_at_least(&mut stats.targets[target], due, now);
            stats.targets[target].fail(Failure::new(kind, detail));
        }
    }

    /// A request without a complete answer took at least this long. Leaving it out, here or where
    /// targets are compared, would flatter the worst servers most.
    fn took_at_least(&self, stats: &mut TargetStats, due: Nanos, now: Nanos) {
        let elapsed = now.saturating_sub(due);
        record(&mut stats.corrected, elapsed);
        if let Some(timeline) = self.timeline.get().filter(|_| self.plan.targets.len() > 1) {
            stats.round(timeline.round_index(due)).add(elapsed);
        }
    }

    /// Gives a request that is due to the connection that has been free longest, or lets it wait.
    pub fn dispatch(&self, target: usize, due: Nanos, now: Nanos) {
        let lane = &self.lanes[target];
        let free = lane.free.borrow_mut().pop_front();
        if let Some(slot) = free {
            return slot.give(Work::Request { due });
        }
        if self.measures(due) {
            let late = now.saturating_sub(due);
            record(&mut self.stats.borrow_mut().lag, late);
            self.recorder.borrow().lag(late);
        }
        lane.waiting.borrow_mut().push_back(due);
    }

    /// Sets all free connections of `target` to work: how a closed loop begins, and how it goes on
    /// when a target's turn comes.
    pub fn start_free(&self, target: usize, now: Nanos) {
        let free = std::mem::take(&mut *self.lanes[target].free.borrow_mut());
        for slot in free {
            slot.give(Work::Request { due: now });
        }
    }

    /// The load is over: what waits is counted, for it will not be sent.
    pub fn give_up_waiting(&self) {
        for (target, lane) in self.lanes.iter().enumerate() {
            for due in std::mem::take(&mut *lane.waiting.borrow_mut()) {
                self.never_sent(
                    target,
                    due,
                    Kind::Unsent,
                    "due within the run, but no connection was free before its end",
                );
            }
        }
    }

    /// Tells all free connections to close.
    pub fn dismiss_free(&self) {
        for lane in &self.lanes {
            for slot in std::mem::take(&mut *lane.free.borrow_mut()) {
                slot.give(Work::Quit);
            }
        }
    }

    /// The load starts.
    pub fn start(&self, timeline: Timeline) {
        self.recorder.borrow_mut().start(timeline);
        self.timeline.set(Some(timeline));
    }

    /// Ends the load now if the user wants it to, and returns the timeline that is then in force.
    pub fn heed_stop(&self, mut timeline: Timeline) -> Timeline {
        let stopped_at = self.start.stopped_at();
        if stopped_at < timeline.end {
            timeline.end = stopped_at;
            self.timeline.set(Some(timeline));
        }
        timeline
    }

    /// Whether to give up what is under way: the user does not want to wait for it.
    pub fn impatient(&self) -> bool {
        self.start.stopped_at().saturating_add(PATIENCE) < self.clock.now()
    }

    /// A connection task begins.
    pub fn joined(&self) {
        self.alive.set(self.alive.get() + 1);
    }

    /// Connection tasks that have not quit.
    pub fn alive(&self) -> usize {
        self.alive.get()
    }

    /// Requests that connections are working on.
    pub fn in_flight(&self) -> usize {
        self.in_flight.get()
    }

    /// Slots whose first attempt to connect is over.
    pub fn openings_over(&self) -> usize {
        let Openings { succeeded, failed } = self.openings.get();
        succeeded + failed
    }

    /// A run without a single connection measures nothing: it is refused with the first reason.
    ///
    /// # Errors
    /// That reason.
    pub fn any_connection(&self) -> Result<(), String> {
        let Openings { succeeded, failed } = self.openings.get();
        if succeeded > 0 || failed == 0 {
            return Ok(());
        }
        let stats = self.stats.borrow();
        let (target, (kind, detail)) = self
            .plan
            .targets
            .iter()
            .zip(&stats.targets)
            .find_map(|(target, stats)| Some((target, stats.examples.first()?)))
            .ok_or("no connection could be opened")?;
        Err(format!(
            "no connection to {} at {}: {}: {detail}",
            target.name,
            target.address,
            kind.name(),
        ))
    }

    /// A number that changes whenever a request is sent or over.
    pub fn progress(&self) -> u64 {
        self.progress.get()
    }

    /// Time was spun away.
    pub fn spun(&self, time: Nanos) {
        self.spun.set(self.spun.get() + time);
    }

    /// The measured time begins: earlier spinning does not count.
    pub fn forget_spinning(&self) {
        self.spun.set(0);
    }

    /// CPU that this thread used within the measured time, spinning included.
    pub fn used(&self, cpu: CpuTime) {
        let mut stats = self.stats.borrow_mut();
        stats.cpu = cpu;
        stats.spun = self.spun.get();
    }

    /// Closes the books. Idle connections may still hold the core.
    pub fn take_stats(&self) -> Stats {
        let mut stats = self.stats.replace(Stats::new(self.plan.targets.len()));
        stats.in_flight = self.in_flight.get() as u64;
        let series = self.recorder.borrow_mut().finish();
        for (target, series) in stats.targets.iter_mut().zip(series) {
            target.series = series;
        }
        stats
    }

    fn measures(&self, due: Nanos) -> bool {
        self.timeline
            .get()
            .is_some_and(|timeline| timeline.measures(due))
    }
}

/// How long answers that are under way may take once the user has stopped the run. What is missing
/// then is reported as such.
const PATIENCE: Nanos = 200 * MILLISECOND;
