//! One thread's books: free connections, waiting requests, and what came of them.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use crate::alarm::{Alarms, Purpose};
use crate::board::Recorder;
use crate::clock::{Clock, MILLISECOND, Nanos};
use crate::failure::{Failure, Kind};
use crate::plan::{Load, Plan, Timeline, nanos};
use crate::rate::Step;
use crate::request::{Choice, Chooser, Request};
use crate::response::ResponseReader;
use crate::slot::{Slot, Work};
use crate::start::Start;
use crate::stats::{PartStats, SseStats, Stats, TargetStats, WebSocketStats, record};
use crate::sys::CpuTime;
use crate::target::Target;

/// One thread's state, shared by its tasks.
pub struct Core {
    plan: Arc<Plan>,
    clock: Clock,
    start: Arc<Start>,
    recorder: RefCell<Recorder>,
    /// `None` before the start.
    timeline: Cell<Option<Timeline>>,
    timeout: Nanos,
    /// The parts of the measured time that have figures of their own.
    steps: Vec<Step>,
    /// One per target.
    lanes: Vec<Lane>,
    stats: RefCell<Stats>,
    openings: Cell<Openings>,
    alarms: Alarms,
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
struct Lane {
    free: RefCell<VecDeque<Rc<Slot>>>,
    waiting: RefCell<VecDeque<Nanos>>,
    traffic: Traffic,
    /// What had gone over the connections when measuring began.
    traffic_before: Cell<(u64, u64)>,
    chooser: RefCell<Chooser>,
    chooser_idle: RefCell<Chooser>,
}

/// Body bytes that have gone over a target's connections so far.
#[derive(Default)]
pub struct Traffic {
    /// Towards the server.
    pub sent: Cell<u64>,
    /// From the server.
    pub received: Cell<u64>,
}

#[derive(Clone, Copy, Default)]
struct Openings {
    succeeded: usize,
    failed: usize,
    /// The same of idle connections.
    idle_succeeded: usize,
    idle_failed: usize,
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
        let lane = |target: &Target| {
            // Threads draw sequences of their own; targets under comparison draw the same.
            let seed = plan.seed.wrapping_add(index as u64);
            Lane {
                chooser: RefCell::new(Chooser::new(&target.requests, seed)),
                chooser_idle: RefCell::new(Chooser::new(&target.requests, !seed)),
                free: RefCell::default(),
                waiting: RefCell::default(),
                traffic: Traffic::default(),
                traffic_before: Cell::default(),
            }
        };
        Self {
            recorder: RefCell::new(Recorder::new(&plan, start.boards[index].clone())),
            clock: start.clock,
            alarms: Alarms::new(start.clock),
            start,
            stats: RefCell::new(Stats::new(plan.targets.len())),
            lanes: plan.targets.iter().map(lane).collect(),
            timeline: Cell::new(None),
            timeout: nanos(plan.timeout),
            steps: plan.steps(),
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

    /// When `request` must be over if it was due at `due`.
    pub fn deadline_of(&self, request: &Request, due: Nanos) -> Nanos {
        due.saturating_add(request.timeout.unwrap_or(self.timeout))
    }

    /// The thread's alarms.
    pub fn alarms(&self) -> &Alarms {
        &self.alarms
    }

    /// The body bytes of `target`, for whoever moves them to count.
    pub fn traffic(&self, target: usize) -> &Traffic {
        &self.lanes[target].traffic
    }

    /// What the next request to `target` is.
    #[inline]
    pub fn choose(&self, target: usize) -> Choice {
        self.lanes[target].chooser.borrow_mut().choose()
    }

    /// The same for idle connections, whose choices must not disturb those of the load.
    pub fn choose_idle(&self, target: usize) -> Choice {
        self.lanes[target].chooser_idle.borrow_mut().choose()
    }

    /// An alarm goes off.
    pub fn ring(&self, slot: Rc<Slot>, at: Nanos, purpose: Purpose) {
        match purpose {
            Purpose::Turn => slot.give(Work::Request { due: at }),
            Purpose::Resume => slot.resume(),
            Purpose::Rested => {
                let now = self.clock.now();
                let its_turn = self.timeline.get().is_some_and(|timeline| {
                    now < timeline.end && timeline.target_at(now) == slot.target
                });
                match its_turn {
                    true => slot.give(Work::Request { due: now }),
                    false => self.park(&slot),
                }
            }
        }
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

    /// The attempt to open an idle connection is over.
    pub fn idle_opened(&self, slot: &Slot, succeeded: bool) {
        let mut openings = self.openings.get();
        let idle = &mut self.stats.borrow_mut().targets[slot.target].idle;
        match succeeded {
            true => {
                openings.idle_succeeded += 1;
                idle.opened += 1;
            }
            false => {
                openings.idle_failed += 1;
                idle.failed += 1;
            }
        }
        self.openings.set(openings);
    }

    /// An idle connection is gone before the end.
    pub fn idle_lost(&self, slot: &Slot) {
        if self.running() {
            self.stats.borrow_mut().targets[slot.target].idle.lost += 1;
        }
    }

    /// An idle connection has sent a request.
    pub fn idle_answered(
        &self,
        slot: &Slot,
        choice: Choice,
        outcome: Result<&ResponseReader, Failure>,
    ) {
        let request = &self.plan.targets[slot.target].requests[choice.request as usize];
        let stats = &mut self.stats.borrow_mut().targets[slot.target];
        match outcome.and_then(|answer| judge(request, answer)) {
            Ok(()) => stats.idle.good += 1,
            Err(failure) => {
                stats.idle.errors += 1;
                stats.example(failure);
            }
        }
    }

    /// An event of a stream has arrived.
    pub fn event(&self, target: usize, now: Nanos, note: impl FnOnce(&mut SseStats)) {
        if self.measures(now) {
            let stats = &mut self.stats.borrow_mut().targets[target];
            let sse = stats.sse.get_or_insert_default();
            sse.events += 1;
            note(sse);
        }
    }

    /// Something happened on a WebSocket.
    pub fn websocket(&self, target: usize, now: Nanos, note: impl FnOnce(&mut WebSocketStats)) {
        if self.measures(now) {
            let stats = &mut self.stats.borrow_mut().targets[target];
            note(stats.websocket.get_or_insert_default());
        }
    }

    /// A connection was opened.
    pub fn connected(
        &self,
        target: usize,
        began: Nanos,
        resumed: Option<bool>,
        tls: impl FnOnce() -> Option<String>,
    ) {
        let now = self.clock.now();
        let took = now - began;
        let measured = self.measures(now);
        let stats = &mut self.stats.borrow_mut().targets[target];
        let resumptions = u64::from(resumed == Some(true));
        stats.connections_opened += 1;
        stats.connections_resumed += resumptions;
        if measured {
            stats.connections_opened_in_time += 1;
            stats.connections_resumed_in_time += resumptions;
        }
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
    pub fn finished(
        &self,
        target: usize,
        choice: Choice,
        due: Nanos,
        sent: Nanos,
        reader: &ResponseReader,
    ) {
        self.in_flight.set(self.in_flight.get() - 1);
        self.progress.set(self.progress.get() + 1);
        let Some(timeline) = self.timeline.get() else {
            return;
        };
        let now = self.clock.now();
        let requests = &self.plan.targets[target].requests;
        let judged = judge(&requests[choice.request as usize], reader);
        let mut stats = self.stats.borrow_mut();
        let stats = &mut stats.targets[target];
        if judged.is_ok() && timeline.measures(now) {
            stats.good_in_time += 1;
        }
        let mut recorder = self.recorder.borrow_mut();
        match &judged {
            Ok(()) => recorder.good(target, due, now),
            Err(failure) => recorder.failed(target, due, now, failure.kind, false),
        }
        if !timeline.measures(due) {
            return;
        }
        if let Some(count) = stats.status.get_mut(usize::from(reader.status())) {
            *count += 1;
        }
        stats.body_bytes += reader.body_bytes();
        let good = judged.is_ok();
        if good {
            stats.good += 1;
            record(&mut stats.corrected, now - due);
            record(&mut stats.uncorrected, now - sent);
            if self.plan.targets.len() > 1 {
                stats.round(timeline.round_index(due)).add(now - due);
            }
        }
        self.in_parts(stats, choice, due, |part, end| {
            part.body_bytes += reader.body_bytes();
            match &judged {
                Ok(()) => {
                    part.good += 1;
                    part.good_in_time += u64::from(now < end);
                    record(&mut part.corrected, now - due);
                }
                Err(failure) => part.failures[failure.kind as usize] += 1,
            }
        });
        if let Err(failure) = judged {
            stats.fail(failure);
        }
    }

    /// A request has no complete answer.
    pub fn failed(&self, target: usize, choice: Choice, due: Nanos, failure: Failure) {
        self.in_flight.set(self.in_flight.get() - 1);
        self.progress.set(self.progress.get() + 1);
        let now = self.clock.now();
        let timed = failure.kind == Kind::Timeout;
        self.recorder
            .borrow_mut()
            .failed(target, due, now, failure.kind, timed);
        if self.measures(due) {
            let elapsed = timed.then(|| now.saturating_sub(due));
            self.count_failure(target, choice, due, elapsed, failure);
        }
    }

    /// Counts a request without a good answer. One that took at least `elapsed` enters the latency
    /// with it: leaving it out, here or where targets are compared, would flatter the worst servers
    /// most.
    fn count_failure(
        &self,
        target: usize,
        choice: Choice,
        due: Nanos,
        elapsed: Option<Nanos>,
        failure: Failure,
    ) {
        let mut stats = self.stats.borrow_mut();
        let stats = &mut stats.targets[target];
        self.in_parts(stats, choice, due, |part, _| {
            part.failures[failure.kind as usize] += 1;
            if let Some(elapsed) = elapsed {
                record(&mut part.corrected, elapsed);
            }
        });
        if let Some(elapsed) = elapsed {
            record(&mut stats.corrected, elapsed);
            if let Some(timeline) = self.timeline.get().filter(|_| self.plan.targets.len() > 1) {
                stats.round(timeline.round_index(due)).add(elapsed);
            }
        }
        stats.fail(failure);
    }

    /// Notes a request in the parts that it belongs to: its own name's, and its step's. The second
    /// argument of `note` is where the part's time ends.
    #[inline]
    fn in_parts(
        &self,
        stats: &mut TargetStats,
        choice: Choice,
        due: Nanos,
        note: impl Fn(&mut PartStats, Nanos),
    ) {
        let Some(timeline) = self.timeline.get() else {
            return;
        };
        if self.plan.by_request {
            note(stats.request(choice.request as usize), timeline.end);
        }
        if !self.steps.is_empty() {
            let into = due - timeline.measure_from;
            let index = self.steps.partition_point(|step| step.end <= into);
            let step = self.steps[index.min(self.steps.len() - 1)];
            note(stats.step(index), timeline.measure_from + step.end);
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
            let elapsed = now.saturating_sub(due);
            record(&mut self.stats.borrow_mut().wait, elapsed);
            let failure = Failure::new(kind, detail);
            self.count_failure(target, self.choose(target), due, Some(elapsed), failure);
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

    /// Whether requests wait for a connection.
    pub fn any_waiting(&self) -> bool {
        let waits = |lane: &Lane| !lane.waiting.borrow().is_empty();
        self.lanes.iter().any(waits)
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
        // Nobody is in an exchange any more, so these rest.
        for slot in self.alarms.dismiss() {
            slot.give(Work::Quit);
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

    /// Slots whose first attempt to connect is over, idle ones included.
    pub fn openings_over(&self) -> usize {
        let openings = self.openings.get();
        openings.succeeded + openings.failed + openings.idle_succeeded + openings.idle_failed
    }

    /// Connections that are open or opened when needed: active ones, and idle ones.
    pub fn ready(&self) -> (usize, usize) {
        let openings = self.openings.get();
        (openings.succeeded, openings.idle_succeeded)
    }

    /// A run without a single connection measures nothing: it is refused with the first reason.
    ///
    /// # Errors
    /// That reason.
    pub fn any_connection(&self) -> Result<(), String> {
        let openings = self.openings.get();
        let some = |succeeded, failed| succeeded > 0 || failed == 0;
        if some(openings.succeeded, openings.failed)
            && some(openings.idle_succeeded, openings.idle_failed)
        {
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

    /// The measured time begins: earlier spinning and traffic do not count.
    pub fn measuring_begins(&self) {
        self.spun.set(0);
        for lane in &self.lanes {
            lane.traffic_before
                .set((lane.traffic.sent.get(), lane.traffic.received.get()));
        }
    }

    /// CPU that this thread used within the measured time, spinning included.
    pub fn used(&self, cpu: CpuTime) {
        let mut stats = self.stats.borrow_mut();
        stats.cpu = cpu;
        stats.spun = self.spun.get();
        for (stats, lane) in stats.targets.iter_mut().zip(&self.lanes) {
            let (sent, received) = lane.traffic_before.get();
            stats.bytes_sent = lane.traffic.sent.get() - sent;
            stats.bytes_received = lane.traffic.received.get() - received;
        }
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
/// Whether a complete answer is a good one.
fn judge(request: &Request, answer: &ResponseReader) -> Result<(), Failure> {
    if !request.expected_status.contains(answer.status()) {
        let detail = format!("status {}", answer.status());
        return Err(Failure::new(Kind::BadStatus, detail));
    }
    if !answer.body_matches() {
        return Err(Failure::new(
            Kind::WrongBody,
            "a body other than the expected one",
        ));
    }
    Ok(())
}
