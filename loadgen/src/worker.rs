//! One thread of the generator, from opening its connections to closing them.
//!
//! Threads share nothing but the plan and the moment of the start; each has its own runtime,
//! connections, schedule and books.

use std::io;
use std::rc::Rc;
use std::sync::Arc;

use crate::clock::{MILLISECOND, Nanos};
use crate::connection;
use crate::core::Core;
use crate::dispatcher::{self, Sweeper, pause};
use crate::plan::{Load, Plan};
use crate::rt::{self, AnyRuntime, Driver};
use crate::schedule::Schedule;
use crate::slot::Slot;
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
    let timer = match Timer::new(driver != Driver::Epoll) {
        Ok(timer) => timer,
        Err(error) => {
            start.agree(Err(format!("cannot make a timer: {error}")));
            return false;
        }
    };
    let slots = open_all(&core, &timer, index).await;
    let Some(at) = start.agree(core.any_connection()) else {
        return false;
    };
    let plan = core.plan();
    let timeline = plan.timeline(at);
    core.start(timeline);
    match plan.load {
        Load::Open { rate, arrivals } => {
            let schedule = Schedule::new(arrivals, rate, at, index, plan.threads, plan.seed);
            dispatcher::open_loop(&core, &timer, &slots, timeline, schedule).await;
        }
        Load::Closed => dispatcher::closed_loop(&core, &timer, &slots, timeline).await,
    }
    drain(&core, &timer, &slots).await;
    true
}

/// Spawns all slots, a bounded number of them connecting at a time, and waits for the last.
async fn open_all(core: &Rc<Core>, timer: &Timer, index: usize) -> Vec<Rc<Slot>> {
    let targets = core.plan().targets.len();
    let wanted = core.plan().connections_of(index) * targets;
    let mut slots = Vec::with_capacity(wanted);
    let mut sweeper = Sweeper::new(core);
    loop {
        let over = core.openings_over();
        if over == wanted {
            return slots;
        }
        while slots.len() < wanted && slots.len() - over < OPENING_AT_ONCE_MAX {
            let slot = Rc::new(Slot::new(slots.len() % targets));
            slots.push(slot.clone());
            core.joined();
            monoio::spawn(connection::run(core.clone(), slot));
        }
        pause(timer, MILLISECOND).await;
        sweeper.look(core.clock().now(), &slots);
    }
}

/// Waits for the answers under way, then for all connections to close.
async fn drain(core: &Rc<Core>, timer: &Timer, slots: &[Rc<Slot>]) {
    let mut sweeper = Sweeper::new(core);
    // Each request has a deadline, so this ends.
    while core.in_flight() > 0 && !core.impatient() {
        pause(timer, MILLISECOND).await;
        sweeper.look(core.clock().now(), slots);
    }
    let give_up = core.clock().now() + CLOSING_MAX;
    while core.alive() > 0 && core.clock().now() < give_up && !core.impatient() {
        core.dismiss_free();
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
