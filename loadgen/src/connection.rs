//! The life of one connection slot: open, wait for a request, send it, read the answer, again.

use std::io;
use std::rc::Rc;

use crate::alarm::Purpose;
use crate::clock::{MILLISECOND, Nanos};
use crate::core::{Core, Due};
use crate::exchange::Exchange;
use crate::failure::{Failure, Kind};
use crate::plan::Load;
use crate::slot::{Slot, Work};
use crate::stream::{self, Stream};
use crate::target::Target;

/// Runs a slot until it is told to quit. Failures are counted, never retried.
pub async fn run(core: Rc<Core>, slot: Rc<Slot>) {
    let target = &core.plan().targets[slot.target];
    let mut exchange = Exchange::new(core.clone(), slot.clone());
    let reuse = !core.plan().new_connection;
    let uses_max = core.plan().requests_per_connection;

    let mut stream = None;
    if reuse {
        stream = open(&core, &slot, target, None).await.ok();
    }
    core.opened(stream.is_some());
    let mut uses = 0;
    // A closed loop's connection rests after an answer; an alarm gives it its next request.
    let mut resting = false;
    loop {
        // A closed loop has the next request ready; an open one may have some waiting.
        let ready = match resting {
            true => None,
            false => core.next_due(slot.target),
        };
        let due = match ready {
            Some(due) => due,
            None => {
                if !resting {
                    core.park(&slot);
                }
                let alive = match &mut stream {
                    Some(open) => stream::idle(open, &slot).await,
                    None => {
                        slot.wait_for_work().await;
                        true
                    }
                };
                if !alive {
                    // Ordinary weather: the server's idle time is up. Open the next one now, so
                    // that no request has to wait for it.
                    stream = None;
                    uses = 0;
                    core.closed_idle(&slot);
                    let unparked = core.unpark(&slot);
                    if reuse && core.running() && (unparked || resting) {
                        stream = open(&core, &slot, target, None).await.ok();
                        resting &= !unparked;
                        continue;
                    }
                    slot.wait_for_work().await;
                }
                resting = false;
                match slot.take_work() {
                    Some(Work::Request { due }) => Due {
                        at: due,
                        waited: false,
                    },
                    Some(Work::Quit) => break,
                    None => continue,
                }
            }
        };

        let choice = core.choose(slot.target);
        let request = &target.requests[choice.request as usize];
        let sent = core.clock().now();
        core.began(due, sent);
        slot.set_deadline(core.deadline_of(request, due.at));
        let outcome = match stream.take() {
            Some(mut open) => exchange
                .run(&mut open, choice, due.at)
                .await
                .map(|keep| (open, keep)),
            None => match open(&core, &slot, target, Some(due.at)).await {
                Ok(mut open) => exchange
                    .run(&mut open, choice, due.at)
                    .await
                    .map(|keep| (open, keep)),
                Err(failure) => Err(failure),
            },
        };
        slot.clear_deadline();
        uses += 1;
        match outcome {
            Ok((open, keep)) => {
                core.finished(slot.target, choice, due.at, sent, exchange.answer());
                if keep && reuse && uses < uses_max {
                    stream = Some(open);
                } else if keep {
                    open.close();
                }
                if request.think > 0 && core.plan().load == Load::Closed && core.running() {
                    resting = true;
                    let until = core.clock().now() + request.think;
                    core.alarms().set(until, slot.clone(), Purpose::Rested);
                }
            }
            Err(failure) => {
                let unreachable = failure.kind == Kind::Connect;
                core.failed(slot.target, choice, due.at, failure);
                if unreachable {
                    if core.plan().load == Load::Closed {
                        // Nothing else paces a closed loop whose server is gone.
                        slot.pause_until(core.clock().now() + RECONNECT_PAUSE).await;
                    }
                    continue;
                }
            }
        }
        if stream.is_none() {
            uses = 0;
            if reuse && core.running() {
                stream = open(&core, &slot, target, None).await.ok();
            }
        }
    }
    if let Some(stream) = stream {
        stream.close();
    }
    core.quitted();
}

/// Opens a connection, for a request that was due at `due` or in reserve.
///
/// # Errors
/// Why there is none. In reserve it has been counted.
pub async fn open(
    core: &Core,
    slot: &Slot,
    target: &Target,
    due: Option<Nanos>,
) -> Result<Stream<impl Future<Output = io::Result<()>> + use<>>, Failure> {
    let began = core.clock().now();
    if due.is_none() {
        slot.set_deadline(core.deadline(began));
    }
    let opened = stream::open(target.address, target.tls_of(slot.index), slot).await;
    if due.is_none() {
        slot.clear_deadline();
    }
    match &opened {
        Ok(stream) => core.connected(slot.target, began, stream.resumed(), || {
            stream.tls_description()
        }),
        Err(failure) if due.is_none() => core.connecting_failed(slot.target, failure.clone()),
        Err(_) => {}
    }
    opened
}

/// How long a connection of a closed loop waits after it could not connect.
const RECONNECT_PAUSE: Nanos = 100 * MILLISECOND;
