//! The life of an idle connection: opened before the load, held to its end, and nearly always
//! silent.
//!
//! It costs a socket, a TLS session and a task that waits; it shares its buffers with all others.
//! What it sends enters no latency: it is there to be held, not to be measured. One that is lost
//! stays lost, so that the count tells how many were.

use std::rc::Rc;

use crate::alarm::Purpose;
use crate::connection::open;
use crate::core::Core;
use crate::exchange::Exchange;
use crate::slot::{Slot, Work};
use crate::stream;

/// Runs an idle connection until it is told to quit or lost.
pub async fn run(core: Rc<Core>, slot: Rc<Slot>) {
    let target = &core.plan().targets[slot.target];
    let opened = open(&core, &slot, target, None).await;
    core.idle_opened(&slot, opened.is_ok());
    let Ok(mut stream) = opened else {
        return core.quitted();
    };
    // Most never send anything.
    let mut exchange = None;
    loop {
        let alive = stream::idle(&mut stream, &slot).await;
        let due = match slot.take_work() {
            Some(Work::Quit) => break,
            Some(Work::Request { due }) if alive => due,
            _ if alive => continue,
            _ => {
                core.idle_lost(&slot);
                return core.quitted();
            }
        };
        let exchange = exchange.get_or_insert_with(|| Exchange::new(core.clone(), slot.clone()));
        let choice = core.choose_idle(slot.target);
        slot.set_deadline(core.deadline(core.clock().now()));
        let outcome = exchange.run(&mut stream, choice, due).await;
        slot.clear_deadline();
        let keep = matches!(outcome, Ok(true));
        core.idle_answered(&slot, choice, outcome.map(|_| exchange.answer()));
        if !keep {
            core.idle_lost(&slot);
            return core.quitted();
        }
        if let Some(every) = core.plan().idle_every_nanos() {
            core.alarms().set(due + every, slot.clone(), Purpose::Turn);
        }
    }
    stream.close();
    core.quitted();
}
