//! The life of one connection slot: open, wait for a request, send it, read the answer, again.

use std::io;
use std::rc::Rc;

use crate::clock::{MILLISECOND, Nanos};
use crate::core::{Core, Due};
use crate::failure::{Failure, Kind};
use crate::plan::Load;
use crate::response::{AtEnd, ResponseReader};
use crate::slot::{Slot, Work};
use crate::stream::{self, Received, Stream, Taken};
use crate::target::Target;

/// Runs a slot until it is told to quit. Failures are counted, never retried.
pub async fn run(core: Rc<Core>, slot: Rc<Slot>) {
    let target = &core.plan().targets[slot.target];
    let mut reader = ResponseReader::new(target.expected_body.clone());
    let reuse = !core.plan().new_connection;

    let mut stream = None;
    if reuse {
        stream = open(&core, &slot, target, None).await.ok();
    }
    core.opened(stream.is_some());
    loop {
        // A closed loop has the next request ready; an open one may have some waiting.
        let due = match core.next_due(slot.target) {
            Some(due) => due,
            None => {
                core.park(&slot);
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
                    core.closed_idle(&slot);
                    if reuse && core.running() && core.unpark(&slot) {
                        stream = open(&core, &slot, target, None).await.ok();
                        continue;
                    }
                    slot.wait_for_work().await;
                }
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

        let sent = core.clock().now();
        core.began(due, sent);
        slot.set_deadline(core.deadline(due.at));
        let outcome = match stream.take() {
            Some(mut open) => exchange(&mut open, &mut reader, target, &slot)
                .await
                .map(|keep| keep.then_some(open)),
            None => match open(&core, &slot, target, Some(due.at)).await {
                Ok(mut open) => exchange(&mut open, &mut reader, target, &slot)
                    .await
                    .map(|keep| keep.then_some(open)),
                Err(failure) => Err(failure),
            },
        };
        slot.clear_deadline();
        match outcome {
            Ok(kept) => {
                core.finished(slot.target, due.at, sent, &reader);
                stream = kept.filter(|_| reuse);
            }
            Err(failure) => {
                let unreachable = failure.kind == Kind::Connect;
                core.failed(slot.target, due.at, failure);
                if unreachable {
                    if core.plan().load == Load::Closed {
                        // Nothing else paces a closed loop whose server is gone.
                        slot.pause_until(core.clock().now() + RECONNECT_PAUSE).await;
                    }
                    continue;
                }
            }
        }
        if reuse && stream.is_none() && core.running() {
            stream = open(&core, &slot, target, None).await.ok();
        }
    }
    if let Some(stream) = stream {
        stream.close();
    }
    core.quitted();
}

/// Opens a connection, for a request that was due at `due` or in reserve.
async fn open(
    core: &Core,
    slot: &Slot,
    target: &Target,
    due: Option<Nanos>,
) -> Result<Stream<impl Future<Output = io::Result<()>> + use<>>, Failure> {
    let began = core.clock().now();
    if due.is_none() {
        slot.set_deadline(core.deadline(began));
    }
    let opened = stream::open(target.address, target.tls.as_ref(), slot).await;
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

/// Sends the request and reads its answer. Returns whether the connection may be used again.
async fn exchange<W: Future<Output = io::Result<()>>>(
    stream: &mut Stream<W>,
    reader: &mut ResponseReader,
    target: &Target,
    slot: &Slot,
) -> Result<bool, Failure> {
    reader.begin(target.is_head);
    stream.send(&target.request, slot).await?;
    while !reader.is_done() {
        let received = stream
            .receive(slot, |piece| match reader.feed(piece) {
                Ok(used) if used < piece.len() => {
                    Err(Failure::new(Kind::Protocol, "bytes after the response"))
                }
                Ok(_) if reader.is_done() => Ok(Taken::Enough),
                Ok(_) => Ok(Taken::More),
                Err(malformed) => Err(Failure::new(Kind::Protocol, malformed.0)),
            })
            .await?;
        if let Received::End { clean } = received {
            match reader.end() {
                AtEnd::Complete if clean => break,
                AtEnd::Complete => {
                    return Err(Failure::new(
                        Kind::Truncated,
                        "the body ends with the connection, but TLS did not announce the end",
                    ));
                }
                AtEnd::BeforeResponse => {
                    return Err(Failure::new(
                        Kind::Reset,
                        "closed before a byte of the answer",
                    ));
                }
                AtEnd::Truncated => {
                    return Err(Failure::new(Kind::Truncated, "closed within the answer"));
                }
            }
        }
    }
    Ok(reader.keep_alive())
}

/// How long a connection of a closed loop waits after it could not connect.
const RECONNECT_PAUSE: Nanos = 100 * MILLISECOND;
