//! Claviger's own answers: problem documents (RFC 9457) that say who refused and
//! why, and name no secret.

use std::io;
use std::time::Duration;

use policy::{Denial, Refuser};

use crate::transport::{Filled, Transport};

/// How long is read after an answer to a request whose body was not taken, so
/// that closing does not destroy the answer on its way (RFC 9112, 9.6).
const LINGER_TIME: Duration = Duration::from_secs(2);

/// What an own answer says.
#[derive(Debug, Clone)]
pub struct Problem {
    pub status: u16,
    /// Machine-readable and stable.
    pub reason: &'static str,
    /// A sentence, with the cure.
    pub detail: &'static str,
    pub refuser: Refuser,
    /// Seconds after which a second try makes sense.
    pub retry_after: Option<u32>,
    /// The methods that are served, for a 405 (RFC 9110, section 10.2.1).
    pub allow: Option<Box<str>>,
}

impl Problem {
    pub const fn new(
        status: u16,
        reason: &'static str,
        refuser: Refuser,
        detail: &'static str,
    ) -> Self {
        Self {
            status,
            reason,
            detail,
            refuser,
            retry_after: None,
            allow: None,
        }
    }

    pub const fn retry_after(mut self, seconds: u32) -> Self {
        self.retry_after = Some(seconds);
        self
    }
}

impl From<&Denial> for Problem {
    fn from(denial: &Denial) -> Self {
        Problem {
            allow: denial.allow.clone(),
            ..Problem::new(denial.status, denial.reason, denial.refuser, denial.detail)
        }
    }
}

/// Writes the answer. Returns the size of its body.
///
/// # Errors
/// As the caller's connection.
pub async fn answer(
    down: &mut Transport,
    problem: &Problem,
    request_id: &str,
    is_head: bool,
    close: bool,
    limit: Duration,
) -> io::Result<u64> {
    let title = title(problem.status);
    // Every part is ours and free of characters that JSON escapes.
    let body = format!(
        "{{\"type\":\"urn:claviger:problem:{reason}\",\"title\":\"{title}\",\"status\":{status},\"detail\":\"{detail}\",\"reason\":\"{reason}\",\"refused_by\":\"{refuser}\",\"request_id\":\"{request_id}\"}}\n",
        reason = problem.reason,
        status = problem.status,
        detail = problem.detail,
        refuser = problem.refuser.as_str(),
    );
    let retry_after = problem
        .retry_after
        .map(|seconds| format!("Retry-After: {seconds}\r\n"))
        .unwrap_or_default();
    let allow = problem
        .allow
        .as_ref()
        .map(|methods| format!("Allow: {methods}\r\n"))
        .unwrap_or_default();
    let head = format!(
        "HTTP/1.1 {status} {title}\r\nContent-Type: application/problem+json\r\nContent-Length: {length}\r\nCache-Control: no-store\r\nClaviger-Answer: {refuser}; reason={reason}\r\nClaviger-Request-Id: {request_id}\r\n{retry_after}{allow}{challenge}{close}\r\n",
        status = problem.status,
        length = body.len(),
        refuser = problem.refuser.as_str(),
        reason = problem.reason,
        // RFC 9110, section 15.5.2: a 401 says how to prove oneself.
        challenge = if problem.status == 401 {
            "WWW-Authenticate: Bearer realm=\"claviger\"\r\n"
        } else {
            ""
        },
        close = if close { "Connection: close\r\n" } else { "" },
    );
    // RFC 9110, section 15.3.5: it has no content, and no field that describes any.
    let (head, body) = match problem.status {
        204 => (
            format!(
                "HTTP/1.1 204 No Content\r\nCache-Control: no-store\r\nClaviger-Request-Id: {request_id}\r\n{}\r\n",
                if close { "Connection: close\r\n" } else { "" }
            ),
            "",
        ),
        _ => (head, if is_head { "" } else { &*body }),
    };
    let mut outgoing = down.outgoing();
    outgoing.write(&[head.as_bytes(), body.as_bytes()])?;
    outgoing.flush(limit).await?;
    Ok(body.len() as u64)
}

/// Ends a connection after an answer that the caller may still be sending
/// against: says goodbye, then reads and forgets for a moment.
pub async fn linger(down: &mut Transport) {
    down.goodbye().await;
    down.finish_sending();
    let begun_ms = down.watch().now_ms();
    loop {
        let spent = Duration::from_millis(down.watch().now_ms().saturating_sub(begun_ms));
        let Some(left) = LINGER_TIME.checked_sub(spent) else {
            return;
        };
        let mut incoming = down.incoming();
        match incoming.fill(left).await {
            Ok(Filled::Data) => incoming.take(|chunk| (chunk.len(), ())),
            Ok(Filled::End) | Err(_) => return,
        }
    }
}

/// The registered phrase of a status that we answer with (RFC 9110, section 15).
fn title(status: u16) -> &'static str {
    match status {
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        411 => "Length Required",
        413 => "Content Too Large",
        414 => "URI Too Long",
        421 => "Misdirected Request",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        508 => "Loop Detected",
        _ => "Refused",
    }
}

#[cfg(test)]
mod tests;
