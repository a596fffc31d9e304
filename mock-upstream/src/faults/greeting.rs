//! What goes wrong between accepting a connection and its first request.

use std::rc::Rc;
use std::sync::Arc;

use rustls::ServerConfig;

use super::Faults;
use super::action::{Action, How};
use crate::stream::Stream;
use crate::worker::Worker;

/// Carries out what the rules have for a connection that has just been accepted, and begins TLS on
/// a stream that was made without it. Returns whether the connection goes on.
///
/// `tls` is the ordinary configuration; `None`: the connection stays in clear text.
pub async fn greet(
    worker: &Rc<Worker>,
    faults: &Faults,
    stream: &mut Stream,
    tls: Option<&Arc<ServerConfig>>,
) -> bool {
    if let Some(action) = faults.on_accept() {
        worker.stats.fault(&action);
        carry_out(worker, stream, &action).await;
        return false;
    }
    let Some(config) = tls else {
        return true;
    };
    let Ok(hello) = stream.client_hello().await else {
        worker.stats.handshakes_failed.increment();
        return false;
    };
    let action = faults.on_hello(hello.client_hello().server_name());
    let mut config = Arc::clone(config);
    if let Some(action) = action {
        worker.stats.fault(&action);
        match &*action {
            Action::SlowHandshake(slow) => {
                stream.exempt_from_idle(true);
                worker.alarm.sleep(slow.delay.0).await;
                stream.exempt_from_idle(false);
            }
            Action::Certificate(certificate) => {
                if let Some(flawed) = worker.settings.flawed.get(&certificate.flaw) {
                    config = Arc::clone(flawed);
                }
            }
            action => {
                carry_out(worker, stream, action).await;
                return false;
            }
        }
    }
    stream.begin_tls(hello, config).await.is_ok()
}

/// What leaves the connection unusable.
async fn carry_out(worker: &Rc<Worker>, stream: &mut Stream, action: &Action) {
    match action {
        Action::HangUp(hang_up) => match hang_up.how {
            How::Reset => stream.reset(),
            How::Close => {
                let _ = stream.cut();
            }
        },
        Action::Silence => stream.until_gone(&worker.alarm, None).await,
        Action::HelloAlert(hello) => {
            stream.outbox().extend_from_slice(&hello.alert.record());
            end(stream).await;
        }
        Action::GarbageHello => {
            stream.outbox().extend_from_slice(GARBAGE);
            end(stream).await;
        }
        _ => {}
    }
}

async fn end(stream: &mut Stream) {
    if stream.flush().await.is_ok() {
        let _ = stream.cut();
    }
}

/// What a clear-text server says to a ClientHello; no TLS record begins so.
const GARBAGE: &[u8] =
    b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
