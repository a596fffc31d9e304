//! What the API answers: one function per endpoint, grouped by kind.
//!
//! [`answer`] is the way of every request but the fixed answer: let faults have their say, find
//! the endpoint, check the key and the limits, read the body if the endpoint wants it, record the
//! request, take the time that the latency model asks for, answer.

mod bytes;
mod echo;
mod endpoint;
mod events;
mod faulty;
mod fields;
mod hints;
mod misbehave;
mod personality;
mod redirect;
mod refusal;
pub mod report;
mod trailers;
mod websocket;

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::clock::monotonic_nanos;
use crate::connection::{After, Body, BodyWish, Connection, Gone};
use crate::http::date::unix_seconds;
use crate::http::uri;
use crate::keys::Access;
use crate::steering::Steering;
use crate::worker::OK_CONTENT;

pub use bytes::pattern;
pub use endpoint::Endpoint;

/// Answers the request at hand.
pub async fn answer(conn: &mut Connection) -> Result<After, Gone> {
    conn.arrived = monotonic_nanos();
    conn.extra_fields.clear();
    let steering = Arc::clone(&conn.worker.steering());
    let server_name = conn.tls.as_ref().and_then(|tls| tls.server_name.as_deref());
    let action = steering
        .faults
        .as_ref()
        .and_then(|faults| faults.on_request(&conn.head, server_name));
    match action {
        None => properly(conn, &steering).await,
        Some(action) => Box::pin(faulty::answer(conn, &steering, &action)).await,
    }
}

/// Answers as a server does with which nothing is wrong.
async fn properly(conn: &mut Connection, steering: &Steering) -> Result<After, Gone> {
    let (mut endpoint, rest) = Endpoint::find(conn.head.path());
    let argument = uri::whole(rest);
    let settings = Arc::clone(&conn.worker.settings);
    let route = match endpoint {
        Endpoint::Unknown => settings.catalogue.find(&conn.head),
        _ => None,
    };
    if route.is_some() {
        endpoint = Endpoint::Personality;
    }
    conn.worker.stats.endpoints[endpoint.index()].increment();

    let access = match endpoint {
        Endpoint::Healthz => Access::Granted("none"),
        _ => settings.auth.check(&conn.head, &conn.worker.keys()),
    };
    let style = settings
        .style
        .as_deref()
        .or(route.as_ref().map(|route| route.style()))
        .unwrap_or("generic");
    if !matches!(access, Access::Granted(_)) {
        conn.worker.stats.unauthorized.increment();
        let refusal = settings.catalogue.refusal(style, access);
        return refusal::send(conn, steering, access, refusal).await;
    }
    if let Some(limits) = &steering.limits {
        let key = settings.auth.presented(&conn.head, &conn.worker.keys());
        let key = key.unwrap_or_default();
        if let Some(standing) = limits.take(conn.head.path(), &key, Instant::now()) {
            let style = standing.style.as_deref().unwrap_or(style);
            let (fields, refusal) = settings.catalogue.limit(style, &standing, unix_seconds());
            conn.extra_fields = fields;
            if !standing.allowed {
                conn.worker.stats.limited.increment();
                return refusal::send(conn, steering, access, &refusal).await;
            }
        }
    }

    let mut body = Body::default();
    if endpoint.reads_body() {
        let wish = BodyWish {
            keep_bytes_max: match endpoint {
                Endpoint::Echo if uri::flag(conn.head.query(), "body") == Ok(true) => {
                    ECHO_BODY_BYTES_MAX
                }
                Endpoint::Personality => PERSONALITY_BODY_BYTES_MAX,
                _ => 0,
            },
            digest: matches!(
                endpoint,
                Endpoint::Echo | Endpoint::Upload | Endpoint::Trailers
            ) || settings.record.is_some(),
        };
        body = conn.read_body(wish).await?;
    }
    record(conn, access, &body);
    if let (Endpoint::Personality, Some(route)) = (endpoint, &route) {
        return personality::answer(conn, steering, route, &body).await;
    }
    take_time(conn, steering).await?;

    match (endpoint, argument) {
        (Endpoint::Ok | Endpoint::Healthz, _) => {
            conn.respond(200).content("text/plain", OK_CONTENT);
            Ok(After::KeepAlive)
        }
        (Endpoint::Echo, _) => echo::echo(conn, access, &body),
        (Endpoint::Upload, _) => echo::upload(conn, &body),
        (Endpoint::Headers, _) => fields::headers(conn),
        (Endpoint::Redirect, _) => redirect::redirect(conn),
        (Endpoint::Leak, _) => redirect::leak(conn),
        (Endpoint::Trailers, _) => trailers::trailers(conn, &body),
        (Endpoint::Sse, _) => events::events(conn).await,
        (Endpoint::WebSocket, _) => websocket::answer(conn).await,
        (Endpoint::Drop, _) => Ok(After::Cut),
        (Endpoint::Delay | Endpoint::Hangup | Endpoint::SlowHead, Some(PAUSE_MS_TOO_LONG..)) => {
            let message = format!("at most {PAUSE_MAX_MS} milliseconds, as in `/delay/50`");
            Ok(bad_request(conn, &message))
        }
        (Endpoint::Bytes, Some(length)) => bytes::bytes(conn, length).await,
        (Endpoint::Status, Some(status)) => fields::status(conn, status),
        (Endpoint::Delay, Some(millis)) => misbehave::delay(conn, millis).await,
        (Endpoint::Hints, Some(count)) => hints::hints(conn, count).await,
        (Endpoint::Hangup, Some(millis)) => misbehave::hangup(conn, millis).await,
        (Endpoint::Early, Some(bytes)) => misbehave::early(conn, bytes).await,
        (Endpoint::Truncate, Some(length)) => misbehave::truncate(conn, length).await,
        (Endpoint::SlowHead, Some(millis)) => misbehave::slow_head(conn, millis).await,
        (Endpoint::Unknown | Endpoint::Personality, _) => Ok(not_found(conn)),
        (
            Endpoint::Bytes
            | Endpoint::Status
            | Endpoint::Delay
            | Endpoint::Hints
            | Endpoint::Hangup
            | Endpoint::Early
            | Endpoint::Truncate
            | Endpoint::SlowHead,
            None,
        ) => Ok(bad_request(
            conn,
            "this path needs a whole number at its end, as in `/status/200`",
        )),
    }
}

/// Waits as long as the latency model says, counted from when the request's head had arrived.
async fn take_time(conn: &mut Connection, steering: &Steering) -> Result<(), Gone> {
    let Some(latency) = &steering.latency else {
        return Ok(());
    };
    match latency.draw(conn.head.path()) {
        Some(time) => {
            let passed = Duration::from_nanos(monotonic_nanos().saturating_sub(conn.arrived));
            conn.pause(time.saturating_sub(passed)).await
        }
        None => Ok(()),
    }
}

/// Writes the records, if there are any. A record that cannot be written is an error that nobody
/// here can mend; the message on standard error is all the help there is.
fn record(conn: &mut Connection, access: Access, body: &Body) {
    if let Some(recorder) = &conn.worker.settings.record {
        let entry = report::of(conn, access, body);
        if let Err(error) = recorder.append(&entry) {
            eprintln!("mock-upstream: the record is incomplete: {error}");
        }
    }
    conn.tape_request(None);
}

/// Appends an error answer of our own: `{"error": code, "message": text}`.
pub fn refuse(conn: &mut Connection, status: u16, code: &str, message: &str) {
    let content = serde_json::json!({"error": code, "message": message}).to_string();
    conn.respond(status)
        .content("application/json", content.as_bytes());
}

fn bad_request(conn: &mut Connection, message: &str) -> After {
    conn.close_afterwards();
    refuse(conn, 400, "bad_request", message);
    After::Linger
}

fn not_found(conn: &mut Connection) -> After {
    refuse(conn, 404, "not_found", "no such endpoint");
    After::KeepAlive
}

fn send_json(conn: &mut Connection, status: u16, value: &serde_json::Value) {
    let mut content = value.to_string();
    content.push('\n');
    conn.respond(status)
        .content("application/json", content.as_bytes());
}

/// `/echo?body=1` shows bodies up to this size.
const ECHO_BODY_BYTES_MAX: usize = 64 * 1024;

/// A personality understands bodies up to this size; larger ones are answered 413.
pub const PERSONALITY_BODY_BYTES_MAX: usize = 8 * 1024 * 1024;

/// No request can make the server wait for more milliseconds than this (an hour) at a time; one that
/// wants to is answered 400.
const PAUSE_MAX_MS: u64 = 3_600_000;
const PAUSE_MS_TOO_LONG: u64 = PAUSE_MAX_MS + 1;
