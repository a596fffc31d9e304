//! What the API answers: one function per endpoint, grouped by kind.
//!
//! [`answer`] is the way of every request but the fixed answer: find the endpoint, check the key,
//! read the body if the endpoint wants it, record the request, answer.

mod basic;
mod fault;
pub mod report;
mod vendor;
mod websocket;

use crate::connection::{After, Body, BodyWish, Connection, Gone};
use crate::http::uri;
use crate::keys::Access;

pub use basic::pattern;

macro_rules! endpoints {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// Everything that a path may lead to.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Endpoint {
            $($(#[$doc])* $variant,)*
        }

        impl Endpoint {
            /// All endpoints, in the order of [`Endpoint::index`].
            pub const ALL: &'static [Endpoint] = &[$(Endpoint::$variant,)*];

            /// The name in statistics, which for all but personalities is the first segment of
            /// the path.
            pub fn name(self) -> &'static str {
                match self {
                    $(Endpoint::$variant => $name,)*
                }
            }
        }
    };
}

endpoints! {
    /// `/ok`: a fixed small answer, for measuring.
    Ok = "ok",
    /// `/healthz`: the same, without the key.
    Healthz = "healthz",
    /// `/echo`: exactly what arrived, as JSON.
    Echo = "echo",
    /// `/bytes/N`: N bytes of a known pattern.
    Bytes = "bytes",
    /// `/upload`: length and digest of the body.
    Upload = "upload",
    /// `/sse`: server-sent events.
    Sse = "sse",
    /// `/ws`: a WebSocket that echoes.
    WebSocket = "ws",
    /// `/status/N`: an answer with this status.
    Status = "status",
    /// `/delay/MS`: an answer that takes its time.
    Delay = "delay",
    /// `/headers?Name=value`: an answer with these fields.
    Headers = "headers",
    /// `/redirect?to=URL`: an answer that leads elsewhere.
    Redirect = "redirect",
    /// `/leak`: the presented key, given back in places where real APIs do that.
    Leak = "leak",
    /// `/trailers`: a chunked answer with trailers.
    Trailers = "trailers",
    /// `/hints/N`: N interim answers before the final one.
    Hints = "hints",
    /// `/hangup/MS`: promises to keep the connection, and closes it.
    Hangup = "hangup",
    /// `/early/N`: 413 after N bytes of the body, the rest unread.
    Early = "early",
    /// `/drop`: the connection ends without an answer.
    Drop = "drop",
    /// `/truncate/N`: half of what was announced.
    Truncate = "truncate",
    /// `/slow-head/MS`: a response head in small pieces.
    SlowHead = "slow-head",
    /// An endpoint of a personality.
    Personality = "personality",
    /// Nothing is known about this path.
    Unknown = "unknown",
}

impl Endpoint {
    /// Its place in [`Endpoint::ALL`].
    pub fn index(self) -> usize {
        self as usize
    }

    /// Finds the endpoint, and the rest of the path behind its first segment.
    fn find(path: &[u8]) -> (Endpoint, &[u8]) {
        let Some(path) = path.strip_prefix(b"/") else {
            return (Endpoint::Unknown, b"");
        };
        let end = memchr::memchr(b'/', path).unwrap_or(path.len());
        let rest = path.get(end + 1..).unwrap_or(b"");
        let endpoint = Endpoint::ALL
            .iter()
            .copied()
            .find(|endpoint| endpoint.name().as_bytes() == &path[..end])
            .filter(|endpoint| !matches!(endpoint, Endpoint::Personality | Endpoint::Unknown))
            .unwrap_or(Endpoint::Unknown);
        (endpoint, rest)
    }

    /// Whether the body is read before the answer begins.
    fn reads_body(self) -> bool {
        !matches!(self, Endpoint::WebSocket | Endpoint::Early | Endpoint::Drop)
    }
}

/// Answers the request at hand.
pub async fn answer(conn: &mut Connection) -> Result<After, Gone> {
    let (mut endpoint, rest) = Endpoint::find(conn.head.path());
    let argument = std::str::from_utf8(rest)
        .ok()
        .and_then(|rest| rest.parse::<u64>().ok());
    let settings = std::sync::Arc::clone(&conn.worker.settings);
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
    if !matches!(access, Access::Granted(_)) {
        conn.worker.stats.unauthorized.increment();
        let style = settings
            .style
            .as_deref()
            .or(route.as_ref().map(|route| route.style()))
            .unwrap_or("generic");
        return unauthorized(conn, access, style).await;
    }

    let mut body = Body::default();
    if endpoint.reads_body() {
        let wish = BodyWish {
            keep_bytes_max: match endpoint {
                Endpoint::Echo if uri::flag(conn.head.query(), "body") => ECHO_BODY_BYTES_MAX,
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

    match (endpoint, argument) {
        (Endpoint::Personality, _) => match route {
            Some(route) => vendor::answer(conn, &route, &body).await,
            None => Ok(not_found(conn)),
        },
        (Endpoint::Ok | Endpoint::Healthz, _) => basic::ok(conn),
        (Endpoint::Echo, _) => basic::echo(conn, access, &body),
        (Endpoint::Upload, _) => basic::upload(conn, &body),
        (Endpoint::Headers, _) => basic::headers(conn),
        (Endpoint::Redirect, _) => basic::redirect(conn),
        (Endpoint::Leak, _) => basic::leak(conn),
        (Endpoint::Trailers, _) => basic::trailers(conn, &body),
        (Endpoint::Sse, _) => basic::events(conn).await,
        (Endpoint::WebSocket, _) => websocket::answer(conn).await,
        (Endpoint::Drop, _) => Ok(After::Cut),
        (Endpoint::Bytes, Some(length)) => basic::bytes(conn, length).await,
        (Endpoint::Status, Some(status)) => basic::status(conn, status),
        (Endpoint::Delay, Some(millis)) => basic::delay(conn, millis).await,
        (Endpoint::Hints, Some(count)) => basic::hints(conn, count).await,
        (Endpoint::Hangup, Some(millis)) => fault::hangup(conn, millis).await,
        (Endpoint::Early, Some(bytes)) => fault::early(conn, bytes).await,
        (Endpoint::Truncate, Some(length)) => fault::truncate(conn, length).await,
        (Endpoint::SlowHead, Some(millis)) => fault::slow_head(conn, millis).await,
        (Endpoint::Unknown, _) => Ok(not_found(conn)),
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
        ) => Ok(bad_request(conn, "this path needs a number at its end")),
    }
}

/// Refuses a request without a valid key as the real provider does. The key is not repeated.
async fn unauthorized(conn: &mut Connection, access: Access, style: &str) -> Result<After, Gone> {
    let settings = std::sync::Arc::clone(&conn.worker.settings);
    let mut after = After::Linger;
    let mut body = Body::default();
    if conn.body_is_cheap() {
        after = After::KeepAlive;
        let digest = settings.record.is_some();
        let wish = BodyWish {
            keep_bytes_max: 0,
            digest,
        };
        body = conn.read_body(wish).await?;
    } else {
        conn.close_afterwards();
    }
    record(conn, access, &body);
    let refusal = settings.catalogue.refusal(style, access);
    let mut response = conn.respond(refusal.status);
    for (name, value) in &refusal.fields {
        response = response.field(name, value);
    }
    response.content("application/json", &refusal.content);
    Ok(after)
}

/// Writes the record, if there is one. A record that cannot be written is an error that nobody
/// here can mend; the message on standard error is all the help there is.
fn record(conn: &Connection, access: Access, body: &Body) {
    if let Some(recorder) = &conn.worker.settings.record {
        let entry = report::of(conn, access, body);
        if let Err(error) = recorder.append(&entry) {
            eprintln!("mock-upstream: the record is incomplete: {error}");
        }
    }
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

/// `/echo?body=1` shows bodies up to this size.
const ECHO_BODY_BYTES_MAX: usize = 64 * 1024;

/// A personality understands bodies up to this size; larger ones are answered 413.
pub const PERSONALITY_BODY_BYTES_MAX: usize = 8 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_endpoints_by_their_first_segment() {
        assert_eq!(Endpoint::find(b"/ok"), (Endpoint::Ok, &b""[..]));
        assert_eq!(Endpoint::find(b"/bytes/12"), (Endpoint::Bytes, &b"12"[..]));
        assert_eq!(Endpoint::find(b"/bytes"), (Endpoint::Bytes, &b""[..]));
        assert_eq!(Endpoint::find(b"/bytesx"), (Endpoint::Unknown, &b""[..]));
        assert_eq!(Endpoint::find(b"/unknown").0, Endpoint::Unknown);
        assert_eq!(Endpoint::find(b"/personality").0, Endpoint::Unknown);
        assert_eq!(Endpoint::find(b"*").0, Endpoint::Unknown);
    }

    #[test]
    fn an_endpoint_knows_its_place() {
        for (index, endpoint) in Endpoint::ALL.iter().enumerate() {
            assert_eq!(endpoint.index(), index);
        }
    }
}
