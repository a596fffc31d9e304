//! What an edge tells its hub: [`Told`].
//!
//! An *edge* is a Claviger near its callers that holds no API key. It forwards to a *hub*, which holds
//! them. On that way the server name and `Host` are the hub's, so what the caller asked for travels in
//! three fields, whose names begin with our own (RFC 9110, section 16.3.2.1, wants names that nobody
//! else may take; RFC 6648 advises against `X-`):
//!
//! - `Claviger-Authority`: the host that the caller asked for; it picks the hub's virtual host.
//! - `Claviger-Caller`: the caller's address as the edge saw it, for the hub's audit trail.
//! - `Claviger-Request-Id`: the edge's name for the exchange, by which the two trails join.
//!
//! `Forwarded` (RFC 7239) says much the same, but anybody in between may write it. Of these, what a
//! caller writes is removed on every way in ([`wire::rewrite::request`]), and what arrives is
//! looked at only after the sender has proven to be an edge of the host that it came to
//! ([`Snapshot::authorize`](crate::Snapshot::authorize)).
//!
//! Deliberately missing: a decision. What the edge tells of its caller lets nobody in.

use std::net::IpAddr;

use wire::head::{Field, FieldId, Method, RequestHead, TargetForm};

use crate::route::Route;
use crate::verdict::{Denial, PoolKey};

/// The host that the edge's caller asked for.
pub const AUTHORITY_FIELD: &str = "Claviger-Authority";

/// The address of the edge's caller.
pub const CALLER_FIELD: &str = "Claviger-Caller";

/// The edge's name for the exchange.
pub const REQUEST_ID_FIELD: &str = "Claviger-Request-Id";

/// A longer name is no host's (RFC 1035, section 2.3.4): 400 `edge_fields_malformed`.
const AUTHORITY_BYTES_MAX: usize = 253;

/// A longer id is refused in the same way. Ours have 28 characters.
const REQUEST_ID_BYTES_MAX: usize = 64;

/// What an edge that has proven itself says of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// The edge's name: that of its `[caller.NAME]`.
    pub edge: Box<str>,
    /// The host that its caller asked for, in lower case.
    pub authority: Box<str>,
    /// Where its caller is. The edge's word: for the audit trail, and for no rule.
    pub client: Option<IpAddr>,
    /// Its name for the exchange: letters, digits and `-._`.
    pub request_id: Option<Box<str>>,
}

impl Told {
    /// Whether the request names an authority, well or not.
    pub(crate) fn is_spoken(head: &RequestHead) -> bool {
        fields(head, AUTHORITY_FIELD).next().is_some()
    }

    /// Reads the fields of an edge with this name. `None`: it names no authority, so it
    /// speaks for itself alone.
    ///
    /// # Errors
    /// 400 when one of the fields is there twice, or is malformed.
    pub(crate) fn read(edge: &str, head: &RequestHead) -> Result<Option<Told>, Denial> {
        let authority = only(head, AUTHORITY_FIELD)?;
        let client = only(head, CALLER_FIELD)?;
        let request_id = only(head, REQUEST_ID_FIELD)?;
        let Some(authority) = authority else {
            return Ok(None);
        };
        Ok(Some(Told {
            edge: edge.into(),
            authority: host_name(authority).ok_or(Denial::EDGE_FIELDS)?,
            client: client
                .map(|value| address(value).ok_or(Denial::EDGE_FIELDS))
                .transpose()?,
            request_id: request_id
                .map(|value| id(value).ok_or(Denial::EDGE_FIELDS))
                .transpose()?,
        }))
    }
}

/// A question to a hub: is it there? Shows the edge's token where it has one, which is the hub's
/// own: an API's key is never written without a [`Permit`](crate::Permit).
pub struct Ping<'s> {
    key: PoolKey,
    head: String,
    rendered: &'s [u8],
}

impl<'s> Ping<'s> {
    /// For the hub at this way of a route; `None` where that is no hub.
    pub fn of(route: &'s Route, way: usize) -> Option<Self> {
        let (upstream, credential) = route.way(way);
        upstream.is_hub.then(|| Self {
            key: route.pool_key(way),
            // RFC 9110, section 9.3.7: about the server as a whole, as a ping.
            head: format!("OPTIONS * HTTP/1.1\r\nHost: {}\r\n", upstream.host),
            rendered: credential.map_or(&[], |(_, credential)| credential.rendered()),
        })
    }

    /// The pieces to be encrypted, for a connection of this pool.
    ///
    /// # Panics
    /// When the connection belongs to another pool, as [`Outbound::slices`](crate::Outbound::slices).
    pub fn slices(&self, lease: PoolKey) -> [&[u8]; 3] {
        assert!(lease == self.key, "a hub's token was led to another pool");
        [self.head.as_bytes(), self.rendered, b"\r\n"]
    }
}

impl std::fmt::Debug for Ping<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Ping({:?})", self.key)
    }
}

/// Whether a request is such a question.
pub(crate) fn is_ping(head: &RequestHead) -> bool {
    head.form() == TargetForm::Asterisk
        && head.method() == Method::Options
        && !Told::is_spoken(head)
}

/// The fields of this name, in its own spelling alone: others are removed, and nobody reads them.
fn fields<'h>(head: &'h RequestHead, name: &str) -> impl Iterator<Item = &'h Field> {
    head.fields().iter().filter(move |field| {
        field.id == FieldId::Own && head.name(field).eq_ignore_ascii_case(name.as_bytes())
    })
}

/// The value of a field that may be there once.
fn only<'h>(head: &'h RequestHead, name: &str) -> Result<Option<&'h [u8]>, Denial> {
    let mut found = fields(head, name);
    let first = found.next().map(|field| head.value(field));
    match found.next() {
        None => Ok(first),
        // Which of them was meant? Somebody between us may have thought otherwise.
        Some(_) => Err(Denial::EDGE_FIELDS),
    }
}

/// A DNS name without a port, in lower case and without the root's dot.
fn host_name(value: &[u8]) -> Option<Box<str>> {
    let is_label = |label: &str| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        (1..=63).contains(&label.len()) && label.bytes().all(plain)
    };
    let name = std::str::from_utf8(value).ok()?;
    let is_name = name.len() <= AUTHORITY_BYTES_MAX && name.split('.').all(is_label);
    is_name.then(|| name.to_ascii_lowercase().into())
}

fn address(value: &[u8]) -> Option<IpAddr> {
    let address: IpAddr = std::str::from_utf8(value).ok()?.parse().ok()?;
    Some(address.to_canonical())
}

fn id(value: &[u8]) -> Option<Box<str>> {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._".contains(byte);
    let is_id = (1..=REQUEST_ID_BYTES_MAX).contains(&value.len()) && value.iter().all(plain);
    is_id.then(|| String::from_utf8_lossy(value).into())
}

/// The lines that an edge writes, each with its CRLF, appended to `out`.
pub(crate) fn lines(authority: &str, client: IpAddr, request_id: &str, out: &mut Vec<u8>) {
    let client = client.to_string();
    for (name, value) in [
        (AUTHORITY_FIELD, authority),
        (CALLER_FIELD, &client),
        (REQUEST_ID_FIELD, request_id),
    ] {
        if !value.is_empty() {
            for part in [name, ": ", value, "\r\n"] {
                out.extend_from_slice(part.as_bytes());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use wire::head::{HeadLimits, Parse};

    use super::*;

    fn head(fields: &str) -> RequestHead {
        let mut head = RequestHead::new();
        let text = format!("GET / HTTP/1.1\r\nHost: hub.example\r\n{fields}\r\n");
        head.buffer().extend_from_slice(text.as_bytes());
        assert_eq!(head.parse(&HeadLimits::default()), Ok(Parse::Complete));
        head
    }

    /// Authority, client, id.
    type Said<'a> = (&'a str, Option<&'a str>, Option<&'a str>);

    #[track_caller]
    fn check(fields: &str, expected: Result<Option<Said<'_>>, u16>) {
        let read = Told::read("e", &head(fields));
        let read = match &read {
            Ok(told) => Ok(told.as_ref().map(|told| {
                let client = told.client.map(|client| client.to_string());
                (&*told.authority, client, told.request_id.as_deref())
            })),
            Err(denial) => Err(denial.status),
        };
        let expected = expected
            .map(|told| told.map(|(name, client, id)| (name, client.map(str::to_owned), id)));
        assert_eq!(read, expected, "{fields}");
    }

    #[test]
    fn what_is_told_is_read_or_refused() {
        check("", Ok(None));
        // Alone they mean nothing.
        check("Claviger-Caller: 10.0.0.1\r\n", Ok(None));
        check(
            "claviger-authority: API.Example.com\r\nClaviger-Caller: ::ffff:10.0.0.1\r\nClaviger-Request-Id: 0a-1\r\n",
            Ok(Some(("api.example.com", Some("10.0.0.1"), Some("0a-1")))),
        );
        check(
            "Claviger-Authority: a.example\r\nClaviger-Caller: 2001:db8::1\r\n",
            Ok(Some(("a.example", Some("2001:db8::1"), None))),
        );
        // Another spelling is nobody's.
        check("Claviger_Authority: a.example\r\n", Ok(None));
        for malformed in [
            "",
            "a.example:443",
            "a.example.",
            ".example",
            "a..example",
            "a.example, b.example",
            "a.example b.example",
            "*.example",
            "https://a.example",
            "user@a.example",
            "[2001:db8::1]",
            "\u{e4}.example",
            &"a".repeat(64),
            &vec!["aaaaaaa"; 40].join("."),
        ] {
            check(&format!("Claviger-Authority: {malformed}\r\n"), Err(400));
        }
        for other in [
            "Claviger-Authority: a.example",
            "Claviger-Authority: b.example",
            "Claviger-Caller: 10.0.0.1, 10.0.0.2",
            "Claviger-Caller: unknown",
            "Claviger-Caller: 10.0.0.1:443",
            "Claviger-Caller: ",
            "Claviger-Caller: 10.0.0.1\r\nClaviger-Caller: 10.0.0.1",
            "Claviger-Request-Id: ",
            "Claviger-Request-Id: a b",
            "Claviger-Request-Id: a\"b",
            &format!("Claviger-Request-Id: {}", "a".repeat(65)),
            "Claviger-Request-Id: a\r\nClaviger-Request-Id: a",
        ] {
            check(
                &format!("Claviger-Authority: a.example\r\n{other}\r\n"),
                Err(400),
            );
        }
    }

    #[test]
    fn what_an_edge_writes_a_hub_reads() {
        for (client, id) in [("10.0.0.1", "0a-1"), ("2001:db8::1", "")] {
            let client: IpAddr = client.parse().expect("an address");
            let mut out = Vec::new();
            lines("api.example.com", client, id, &mut out);
            let text = String::from_utf8(out).expect("ASCII");
            let told = Told::read("e", &head(&text));
            let expected = Told {
                edge: "e".into(),
                authority: "api.example.com".into(),
                client: Some(client),
                request_id: (!id.is_empty()).then(|| id.into()),
            };
            assert_eq!(told, Ok(Some(expected)));
        }
    }
}
