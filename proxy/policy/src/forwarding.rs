//! [`Forwarding`]: what an upstream learns of where a request came from.
//!
//! Nothing, unless a route says so: an internal address is not a third party's business. What callers
//! say of it themselves is removed in any case ([`wire::rewrite::request`]); here it is written anew,
//! behind the words of proxies that the route trusts. The syntax is that of RFC 7239 (`Forwarded`),
//! RFC 9110 section 7.6.3 (`Via`), and of habit (`X-Forwarded-*`).
//!
//! Answers get no `Via`: a gateway need not write one (RFC 9110, 7.6.3).

use std::net::IpAddr;

use ipnet::IpNet;
use wire::head::{FieldId, RequestHead, Version};
use wire::target::authority_host;

/// One of the fields that say where a request came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ForwardingField {
    /// `X-Forwarded-For`: the caller's address, behind those that a trusted proxy has seen.
    XForwardedFor,
    /// `X-Forwarded-Proto`: `https` or `http`, as a trusted proxy or the caller asked.
    XForwardedProto,
    /// `X-Forwarded-Host`: the host that was asked for.
    XForwardedHost,
    /// `Forwarded` (RFC 7239): all three in one.
    Forwarded,
    /// `Via`: that we were here.
    Via,
}

impl ForwardingField {
    /// All of them, in the order in which they are written.
    pub const ALL: [Self; 5] = [
        Self::XForwardedFor,
        Self::XForwardedProto,
        Self::XForwardedHost,
        Self::Forwarded,
        Self::Via,
    ];

    /// The field's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::XForwardedFor => "X-Forwarded-For",
            Self::XForwardedProto => "X-Forwarded-Proto",
            Self::XForwardedHost => "X-Forwarded-Host",
            Self::Forwarded => "Forwarded",
            Self::Via => "Via",
        }
    }

    /// Whether it carries the caller's address.
    pub fn tells_address(self) -> bool {
        matches!(self, Self::XForwardedFor | Self::Forwarded)
    }
}

/// A route's rule for these fields.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Forwarding {
    /// Which of them are written.
    pub fields: Vec<ForwardingField>,
    /// Peers whose own values are kept, in front of what we add. Others' are dropped.
    pub trust: Vec<IpNet>,
}

/// Where a request came from, as far as the connection tells.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Origin {
    pub(crate) address: IpAddr,
    pub(crate) tls: bool,
}

impl Forwarding {
    /// Appends the field lines, each with its CRLF, to `out`.
    pub(crate) fn lines(&self, origin: Origin, head: &RequestHead, out: &mut Vec<u8>) {
        let trusted = self
            .trust
            .iter()
            .any(|network| network.contains(&origin.address));
        for &field in &self.fields {
            let start = out.len();
            out.extend_from_slice(field.name().as_bytes());
            out.extend_from_slice(b": ");
            let value = out.len();
            if trusted {
                earlier(field, head, out);
            }
            let has_earlier = out.len() > value;
            let is_single = matches!(
                field,
                ForwardingField::XForwardedProto | ForwardingField::XForwardedHost
            );
            if !(has_earlier && is_single) {
                if has_earlier {
                    out.extend_from_slice(b", ");
                }
                own(field, origin, head, out);
            }
            if out.len() == value {
                out.truncate(start);
            } else {
                out.extend_from_slice(b"\r\n");
            }
        }
    }
}

/// What a trusted proxy said in this field, as one list. Nothing, if it is not well-formed: an open
/// quote or comment would swallow what stands behind it.
fn earlier(field: ForwardingField, head: &RequestHead, out: &mut Vec<u8>) {
    let start = out.len();
    for known in head.fields() {
        // In its own spelling alone: `X_Forwarded_For` is nobody's but a forger's (CVE-2025-64484).
        if known.id != FieldId::Origin
            || !head
                .name(known)
                .eq_ignore_ascii_case(field.name().as_bytes())
        {
            continue;
        }
        let value = head.value(known);
        let fits = match field {
            ForwardingField::XForwardedFor => is_plain(value),
            ForwardingField::XForwardedProto => {
                value.eq_ignore_ascii_case(b"https") || value.eq_ignore_ascii_case(b"http")
            }
            ForwardingField::XForwardedHost => authority_host(value).is_some(),
            ForwardingField::Forwarded => is_forwarded(value),
            ForwardingField::Via => is_plain(value) || has_whole_comments(value),
        };
        let is_second = out.len() > start;
        let is_single = matches!(
            field,
            ForwardingField::XForwardedProto | ForwardingField::XForwardedHost
        );
        if !fits || (is_second && is_single) {
            out.truncate(start);
            return;
        }
        if value.is_empty() {
            continue;
        }
        if is_second {
            out.extend_from_slice(b", ");
        }
        out.extend_from_slice(value);
    }
}

/// What we say in this field; nothing, where there is nothing to say.
fn own(field: ForwardingField, origin: Origin, head: &RequestHead, out: &mut Vec<u8>) {
    let proto: &[u8] = if origin.tls { b"https" } else { b"http" };
    match field {
        ForwardingField::XForwardedFor => out.extend(origin.address.to_string().bytes()),
        ForwardingField::XForwardedProto => out.extend_from_slice(proto),
        ForwardingField::XForwardedHost => {
            out.extend_from_slice(asked_host(head).unwrap_or_default());
        }
        ForwardingField::Forwarded => {
            out.extend_from_slice(b"for=");
            match origin.address {
                IpAddr::V4(address) => out.extend(address.to_string().bytes()),
                // RFC 7239, section 6: in brackets, and so in quotes.
                IpAddr::V6(address) => out.extend(format!("\"[{address}]\"").bytes()),
            }
            if let Some(host) = asked_host(head) {
                out.extend_from_slice(b";host=");
                // A colon or a bracket is no token. A host has no byte that needs escaping.
                let quote: &[u8] = if host.iter().any(|byte| b":[]".contains(byte)) {
                    b"\""
                } else {
                    b""
                };
                for part in [quote, host, quote] {
                    out.extend_from_slice(part);
                }
            }
            out.extend_from_slice(b";proto=");
            out.extend_from_slice(proto);
        }
        ForwardingField::Via => {
            // RFC 9110, 7.6.3: the version that was received, and a pseudonym, since the real name of
            // a gateway inside is as private as an address.
            out.extend_from_slice(match head.version() {
                Version::Http10 => b"1.0 ",
                Version::Http11 => b"1.1 ",
            });
            out.extend_from_slice(VIA_PSEUDONYM);
        }
    }
}

fn asked_host(head: &RequestHead) -> Option<&[u8]> {
    head.authority().or_else(|| head.host())
}

/// Without a byte that could open a quote or a comment.
fn is_plain(value: &[u8]) -> bool {
    !value.iter().any(|byte| b"\"\\()".contains(byte))
}

/// Whether every comment that is opened is closed; no quotes, no escapes.
fn has_whole_comments(value: &[u8]) -> bool {
    let mut depth = 0u32;
    for &byte in value {
        match byte {
            b'"' | b'\\' => return false,
            b'(' => depth += 1,
            b')' if depth == 0 => return false,
            b')' => depth -= 1,
            _ => {}
        }
    }
    depth == 0
}

/// RFC 7239, section 4: elements of `token=value` pairs, a value being a token or a quoted string.
/// What an identifier is (an address, `unknown`, `_obfuscated`) is its reader's business.
fn is_forwarded(value: &[u8]) -> bool {
    let mut rest = value.trim_ascii();
    while !rest.is_empty() {
        let name = rest.iter().take_while(|byte| is_tchar(**byte)).count();
        let Some(behind) = rest[name..].strip_prefix(b"=").filter(|_| name > 0) else {
            return false;
        };
        let length = match behind {
            [b'"', quoted @ ..] => match quoted_len(quoted) {
                Some(length) => 1 + length,
                None => return false,
            },
            _ => behind.iter().take_while(|byte| is_tchar(**byte)).count(),
        };
        if length == 0 {
            return false;
        }
        rest = match behind[length..].trim_ascii_start() {
            [] => return true,
            [b';' | b',', behind @ ..] => behind.trim_ascii_start(),
            _ => return false,
        };
        if rest.is_empty() {
            return false;
        }
    }
    true
}

/// Bytes up to and with the quote that ends this string.
fn quoted_len(quoted: &[u8]) -> Option<usize> {
    let mut escaped = false;
    for (at, &byte) in quoted.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return Some(at + 1),
            _ => {}
        }
    }
    None
}

fn is_tchar(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// What `Via` calls us.
const VIA_PSEUDONYM: &[u8] = b"claviger";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forwarded_values_are_read_as_rfc_7239_says() {
        for (value, expected) in [
            ("for=192.0.2.60;proto=http;by=203.0.113.43", true),
            ("for=192.0.2.43, for=198.51.100.17", true),
            (r#"For="[2001:db8:cafe::17]:4711""#, true),
            ("for=_gazonk", true),
            ("for=unknown", true),
            (r#"for="_SEVKISEK", for=_hidden;by="x\"y""#, true),
            ("for=1.2.3.4 ; proto=https", true),
            ("", true),
            (r#"for="open"#, false),
            (r#"for="open\""#, false),
            ("for=", false),
            ("=1.2.3.4", false),
            ("for", false),
            ("for=a b", false),
            ("for=a,", false),
            ("for=a;", false),
            (",for=a", false),
            ("for=[::1]", false),
            (r#"for="a"b"#, false),
        ] {
            assert_eq!(is_forwarded(value.as_bytes()), expected, "{value}");
        }
    }

    #[test]
    fn comments_are_whole() {
        for (value, expected) in [
            ("1.1 a (b), 1.0 c", true),
            ("1.1 a (b (c))", true),
            ("1.1 a (b", false),
            ("1.1 a b)", false),
            ("1.1 a (\\))", false),
            ("1.1 \"a\"", false),
        ] {
            assert_eq!(has_whole_comments(value.as_bytes()), expected, "{value}");
        }
    }
}
