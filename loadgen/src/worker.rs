//! One thread of the generator, from opening its connections to closing them.
//!
//! Threads share nothing but the plan and the moment of the start; each has its own runtime,
//! connections, schedule and books.

use std::io;
use std::rc::Rc;
use std::sync::Arc;

use crate::alarm::Purpose;
use crate::clock::{MILLISECOND, Nanos};
use crate::connection;
use crate::core::Core;
use crate::dispatcher::{self, Slots, Sweeper, pause};
use crate::idle;
use crate::plan::{Load, Plan, nanos};
use crate::rt::{self, AnyRuntime, Driver};
use crate::schedule::Schedule;
use crate::slot::{Slot, Work};
use crate::start::Start;
use crate::stats::Stats;
use crate::sys::Timer;

/// Runs thread `index` of the plan. `None` if the run was abandoned before it began.
pub fn run(plan: Arc<Plan>, start: Arc<Start>, index: usize) -> Option<(Stats, Driver)> {
    let (mut runtime, driver) = match prepare(&plan, index) {
        Ok(prepared) => prepared,
        Err(error) => {
            start.agree(Err(error.to_string()));
            return None;
        }
    };
    let core = Rc::new(Core::new(plan, start.clone(), index));
    let driving = core.clone();
    let finished =
        runtime.block_on(async move { monoio::spawn(drive(driving, start, index, driver)).await });
    finished.then(|| (core.take_stats(), driver))
}

fn prepare(plan: &Plan, index: usize) -> io::Result<(AnyRuntime, Driver)> {
    if !plan.cpus.is_empty() {
        rt::pin(plan.cpus[index % plan.cpus.len()])?;
    }
    rt::build(plan.driver)
}

/// Opens, starts with the others, drives, drains, closes. False if the run was abandoned.
async fn drive(core: Rc<Core>, start: Arc<Start>, index: usize, driver: Driver) -> bool {
    let on_ring = driver != Driver::Epoll;
    let timers = Timer::new(on_ring).and_then(|one| Ok((one, Timer::new(on_ring)?)));
    let (timer, alarm_timer) = match timers {
        Ok(timers) => timers,
        Err(error) => {
            start.agree(Err(format!("cannot make a timer: {error}")));
            return false;
        }
    };
    let slots = open_all(&core, &timer, index).await;
    let (active, idle) = core.ready();
    start.ready(active, idle);
    let Some(at) = start.agree(core.any_connection()) else {
        return false;
    };
    let plan = core.plan();
    let timeline = plan.timeline(at);
    core.start(timeline);
    if plan.has_alarms() {
        let ringing = core.clone();
        monoio::spawn(async move {
            let ring = |slot, at, purpose| ringing.ring(slot, at, purpose);
            ringing.alarms().run(alarm_timer, ring).await;
        });
        schedule_idle(&core, &slots.idle, timeline.start);
    }
    match (plan.load, &plan.course) {
        (Load::Open { arrivals, .. }, Some(course)) => {
            let profile = course.profile(nanos(plan.warmup), nanos(plan.duration));
            let schedule = Schedule::new(arrivals, profile, at, index, plan.threads, plan.seed);
            dispatcher::open_loop(&core, &timer, &slots, timeline, schedule).await;
        }
        _ => dispatcher::closed_loop(&core, &timer, &slots, timeline).await,
    }
    drain(&core, &timer, &slots).await;
    true
}

/// Spawns all slots, a bounded number of them connecting at a time, and waits for the last.
async fn open_all(core: &Rc<Core>, timer: &Timer, index: usize) -> Slots {
    let plan = core.plan();
    let targets = plan.targets.len();
    let active = plan.connections_of(index) * targets;
    let wanted = active + plan.idle_of(index) * targets;
    let mut slots = Slots {
        active: Vec::with_capacity(active),
        idle: Vec::with_capacity(wanted - active),
    };
    let mut sweeper = Sweeper::new(core);
    loop {
        let over = core.openings_over();
        if over == wanted {
            return slots;
        }
        while slots.len() < wanted && slots.len() - over < OPENING_AT_ONCE_MAX {
            let is_active = slots.active.len() < active;
            // Idle connections have the numbers after those of the active ones.
            let (number, first) = match is_active {
                true => (slots.active.len(), 0),
                false => (slots.idle.len(), plan.connections),
            };
            let in_all = first + number / targets * plan.threads + index;
            let slot = Rc::new(Slot::new(number % targets, in_all));
            core.joined();
            match is_active {
                true => {
                    slots.active.push(slot.clone());
                    monoio::spawn(connection::run(core.clone(), slot));
                }
                false => {
                    slots.idle.push(slot.clone());
                    monoio::spawn(idle::run(core.clone(), slot));
                }
            }
        }
        pause(timer, MILLISECOND).await;
        sweeper.look(core.clock().now(), &slots);
    }
}

/// Spreads the turns of the idle connections over the time between two of them.
fn schedule_idle(core: &Core, idle: &[Rc<Slot>], start: Nanos) {
    let Some(every) = core.plan().idle_every_nanos() else {
        return;
    };
    for (number, slot) in idle.iter().enumerate() {
        let into = every as f64 * (number as f64 + 0.5) / idle.len() as f64;
        let alarms = core.alarms();
        alarms.set(start + into as Nanos, slot.clone(), Purpose::Turn);
    }
}

/// Waits for the answers under way, then for all connections to close.
async fn drain(core: &Rc<Core>, timer: &Timer, slots: &Slots) {
    let mut sweeper = Sweeper::new(core);
    // Each request has a deadline, so this ends.
    while core.in_flight() > 0 && !core.impatient() {
        pause(timer, MILLISECOND).await;
        sweeper.look(core.clock().now(), slots);
    }
    let give_up = core.clock().now() + CLOSING_MAX;
    while core.alive() > 0 && core.clock().now() < give_up && !core.impatient() {
        core.dismiss_free();
        for slot in slots.idle.iter().filter(|slot| !slot.has_work()) {
            slot.give(Work::Quit);
        }
        // The first turn lets them close. Whoever is still connecting is left to the kernel.
        pause(timer, MILLISECOND / 10).await;
        sweeper.look(core.clock().now(), slots);
    }
}

/// Connections that one thread opens at the same time before the start. More would overflow a
/// server's accept queue, whose retransmissions take a second.
const OPENING_AT_ONCE_MAX: usize = 64;

/// How long closing may take; connections left then are closed by the end of the process.
const CLOSING_MAX: Nanos = 500 * MILLISECOND;
