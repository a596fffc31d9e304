//! Answering for a personality: filling its template with what the request said.

use std::time::Instant;

use super::events::EventSender;
use super::take_time;
use crate::connection::{After, Body, Connection, Gone};
use crate::http::date::unix_seconds;
use crate::http::response::is_field_value;
use crate::idempotency::{Answer, Claim, Pending};
use crate::personality::{Facts, Idempotency, RouteMatch};
use crate::redact::latin1;
use crate::steering::Steering;

/// Answers as the personality's data says.
pub(super) async fn answer(
    conn: &mut Connection,
    steering: &Steering,
    route: &RouteMatch<'_>,
    body: &Body,
) -> Result<After, Gone> {
    let Some(content) = &body.content else {
        super::refuse(
            conn,
            413,
            "too_large",
            "the body is too large for this endpoint",
        );
        return Ok(After::KeepAlive);
    };
    let mut pending = None;
    if let Some(idempotency) = route.idempotency()
        && let Some(key) = conn.head.field(&idempotency.field)
    {
        let key = key.to_vec();
        // The key is taken before any time passes: whoever repeats it meanwhile is in conflict.
        match claim(conn, idempotency, &key, content) {
            Claim::New(claimed) => {
                pending = Some(claimed);
                conn.extra_fields
                    .push((idempotency.field.clone(), latin1(&key)));
            }
            Claim::Again(answer) => {
                take_time(conn, steering).await?;
                conn.worker.stats.replayed.increment();
                conn.extra_fields
                    .push((idempotency.field.clone(), latin1(&key)));
                conn.extra_fields
                    .push(("Idempotent-Replayed".into(), "true".into()));
                send(conn, &answer);
                return Ok(After::KeepAlive);
            }
            refused => {
                take_time(conn, steering).await?;
                let refusal = match refused {
                    Claim::Mismatch => &idempotency.mismatch,
                    _ => &idempotency.in_progress,
                };
                let mut response = conn.respond(refusal.status);
                for (name, value) in &refusal.fields {
                    response = response.field(name, value);
                }
                response.content("application/json", &refusal.content);
                return Ok(After::KeepAlive);
            }
        }
    }
    take_time(conn, steering).await?;
    whole(conn, route, content, pending).await
}

fn claim(conn: &Connection, idempotency: &Idempotency, key: &[u8], body: &[u8]) -> Claim {
    let settings = &conn.worker.settings;
    let credential = settings.auth.presented(&conn.head, &conn.worker.keys());
    settings.idempotency.claim(
        &credential.unwrap_or_default(),
        key,
        &[conn.head.method(), conn.head.resource(), body],
        idempotency.keep.0,
        Instant::now(),
    )
}

async fn whole(
    conn: &mut Connection,
    route: &RouteMatch<'_>,
    content: &[u8],
    pending: Option<Pending>,
) -> Result<After, Gone> {
    let unique = format!(
        "{:x}{:04x}{:04x}",
        unix_seconds(),
        conn.number,
        conn.requests
    );
    let facts = Facts::new(&conn.head, content, unix_seconds(), unique);
    let fields = route.fields(&facts);
    if let Some(stream) = route.stream(&facts) {
        let mut sender = EventSender::begin(conn, &fields);
        for (index, event) in stream.events.iter().enumerate() {
            if index > 0 {
                sender.conn.pause(stream.gap).await?;
            }
            sender.send(event.as_bytes()).await?;
        }
        return Ok(sender.end());
    }
    let answer = Answer {
        status: route.status(),
        fields,
        content: route.content(&facts),
    };
    send(conn, &answer);
    if let Some(pending) = pending {
        pending.complete(answer);
    }
    Ok(After::KeepAlive)
}

fn send(conn: &mut Connection, answer: &Answer) {
    let mut response = conn.respond(answer.status);
    for (name, value) in &answer.fields {
        if is_field_value(value.as_bytes()) {
            response = response.field(name, value);
        }
    }
    match &answer.content {
        Some(content) => response.content("application/json", content.as_bytes()),
        // RFC 9110, section 8.6: no length in a 204.
        None if answer.status == 204 => drop(response.bare()),
        None => drop(response.announce(0)),
    }
}
