//! Answering for a personality: filling its template with what the request said.

use super::basic::EventSender;
use crate::connection::{After, Body, Connection, Gone};
use crate::http::date::unix_seconds;
use crate::personality::{Facts, RouteMatch};

/// Answers as the personality's data says.
pub(super) async fn answer(
    conn: &mut Connection,
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
    let content = route.content(&facts);
    let mut response = conn.respond(route.status());
    for (name, value) in &fields {
        response = response.field(name, value);
    }
    match content {
        Some(content) => response.content("application/json", content.as_bytes()),
        // RFC 9110, section 8.6: no length in a 204.
        None if route.status() == 204 => drop(response.bare()),
        None => drop(response.announce(0)),
    }
    Ok(After::KeepAlive)
}
