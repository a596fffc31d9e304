//! [`AuditRecord`]: what the audit trail says of one exchange.
//!
//! One JSON object per line. Names and versions of keys, never values; paths
//! without their query; nothing that a caller sent in a header or a body.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use wire::rewrite::Stripped;

use crate::edge::Told;
use crate::verdict::Refuser;

/// Bytes of a path that are recorded; the rest is cut, and the record says so.
const PATH_BYTES_MAX: usize = 1024;

/// Room made for a record at once. A longer one has its line grow on the way.
const RECORD_BYTES_USUAL: usize = 1024;

/// One exchange. Borrows everything: a record is encoded where it was made.
#[derive(Debug)]
pub struct AuditRecord<'a> {
    /// `exchange` at the end, or `begin` for one that lasts longer than 10 s.
    pub event: &'static str,
    /// Milliseconds since 1970 (UTC) at which the request head was complete.
    pub unix_ms: u64,
    /// This instance's name for the exchange.
    pub request_id: &'a str,
    /// The listener that accepted the connection.
    pub listener: &'a str,
    /// The route, if one was found.
    pub route: Option<&'a str>,
    /// The caller's name, where one is known; the rule that let it in otherwise.
    pub caller: &'a str,
    /// How the caller was identified: `address`, `token`, `certificate`, or several of
    /// them with `+` between.
    pub identified_by: &'static str,
    /// Which of the caller's tokens it showed: its version.
    pub token_version: Option<&'a str>,
    /// The peer's address.
    pub client: IpAddr,
    /// The peer's port.
    pub client_port: u16,
    /// What the edge said that has brought the request, if one has: its own name, its
    /// caller's address as it saw it, and its own request id, by which the trails join.
    pub told: Option<&'a Told>,
    /// The virtual host asked for, if the connection or the request named one.
    pub host: &'a str,
    /// The method, as sent.
    pub method: &'a str,
    /// The path, without its query; whatever it contains is escaped.
    pub path: &'a [u8],
    /// The status that the caller was sent; 0 if it got none.
    pub status: u16,
    /// Who refused or failed it, and why; `None` if the upstream answered.
    pub refused: Option<(Refuser, &'static str)>,
    /// Body bytes from the caller.
    pub bytes_in: u64,
    /// Body bytes to the caller.
    pub bytes_out: u64,
    /// The upstream's name in the configuration.
    pub upstream: Option<&'a str>,
    /// Where the request went.
    pub upstream_address: Option<SocketAddr>,
    /// The credential written: name and version.
    pub credential: Option<(&'a str, &'a str)>,
    /// Names of what was stripped.
    pub stripped: Option<&'a Stripped>,
    /// How often an injected value came back in the answer.
    pub scrubbed: usize,
    /// Why the answer's body was not searched for it, or not to its end.
    pub uninspected: Option<&'static str>,
    /// From the complete head to the end of the exchange.
    pub total: Duration,
    /// Of that, waiting for the upstream: connecting, and until its response head.
    pub upstream_wait: Duration,
    /// The generation of the configuration that decided.
    pub generation: u64,
}

/// A member's name with what stands around it, as one text.
macro_rules! key {
    ($name:literal) => {
        concat!(",\"", $name, "\":").as_bytes()
    };
}

impl AuditRecord<'_> {
    /// Appends the record as one line of JSON.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.reserve(RECORD_BYTES_USUAL);
        out.extend_from_slice(b"{\"time\":\"");
        push_time(self.unix_ms, out);
        out.extend_from_slice(b"\",\"event\":\"");
        out.extend_from_slice(self.event.as_bytes());
        out.push(b'"');
        text(key!("request_id"), self.request_id, out);
        text(key!("listener"), self.listener, out);
        optional_text(key!("route"), self.route, out);
        text(key!("caller"), self.caller, out);
        text(key!("identified_by"), self.identified_by, out);
        if let Some(version) = self.token_version {
            text(key!("token_version"), version, out);
        }
        out.extend_from_slice(b",\"client\":\"");
        push_ip(self.client, out);
        out.push(b'"');
        number(key!("client_port"), u64::from(self.client_port), out);
        if let Some(told) = self.told {
            text(key!("edge"), &told.edge, out);
            if let Some(client) = told.client {
                out.extend_from_slice(b",\"edge_client\":\"");
                push_ip(client, out);
                out.push(b'"');
            }
            if let Some(id) = &told.request_id {
                text(key!("edge_request_id"), id, out);
            }
        }
        text(key!("host"), self.host, out);
        text(key!("method"), self.method, out);
        out.extend_from_slice(b",\"path\":\"");
        escape(&self.path[..self.path.len().min(PATH_BYTES_MAX)], out);
        out.push(b'"');
        if self.path.len() > PATH_BYTES_MAX {
            out.extend_from_slice(b",\"path_cut\":true");
        }
        number(key!("status"), u64::from(self.status), out);
        match self.refused {
            None => out.extend_from_slice(b",\"refused_by\":null"),
            Some((refuser, reason)) => {
                text(key!("refused_by"), refuser.as_str(), out);
                text(key!("reason"), reason, out);
            }
        }
        number(key!("bytes_in"), self.bytes_in, out);
        number(key!("bytes_out"), self.bytes_out, out);
        optional_text(key!("upstream"), self.upstream, out);
        match self.upstream_address {
            None => out.extend_from_slice(b",\"upstream_address\":null"),
            Some(address) => {
                out.extend_from_slice(b",\"upstream_address\":\"");
                if address.is_ipv6() {
                    out.push(b'[');
                }
                push_ip(address.ip(), out);
                if address.is_ipv6() {
                    out.push(b']');
                }
                out.push(b':');
                push_number(u64::from(address.port()), out);
                out.push(b'"');
            }
        }
        match self.credential {
            None => out.extend_from_slice(b",\"credential\":null"),
            Some((name, version)) => {
                text(key!("credential"), name, out);
                text(key!("credential_version"), version, out);
            }
        }
        out.extend_from_slice(b",\"stripped\":[");
        if let Some(stripped) = self.stripped {
            for (at, name) in stripped.iter().enumerate() {
                out.extend_from_slice(if at == 0 { b"\"" } else { b",\"" });
                escape(name.as_bytes(), out);
                out.push(b'"');
            }
        }
        out.push(b']');
        if self.scrubbed > 0 {
            number(key!("scrubbed"), self.scrubbed as u64, out);
        }
        if let Some(why) = self.uninspected {
            text(key!("uninspected"), why, out);
        }
        number(key!("total_us"), micros(self.total), out);
        number(key!("upstream_us"), micros(self.upstream_wait), out);
        number(
            key!("own_us"),
            micros(self.total.saturating_sub(self.upstream_wait)),
            out,
        );
        number(key!("generation"), self.generation, out);
        out.extend_from_slice(b"}\n");
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn text(key: &[u8], value: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(key);
    out.push(b'"');
    escape(value.as_bytes(), out);
    out.push(b'"');
}

fn optional_text(key: &[u8], value: Option<&str>, out: &mut Vec<u8>) {
    match value {
        Some(value) => text(key, value, out),
        None => {
            out.extend_from_slice(key);
            out.extend_from_slice(b"null");
        }
    }
}

fn number(key: &[u8], value: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(key);
    push_number(value, out);
}

fn push_number(value: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

fn push_ip(address: IpAddr, out: &mut Vec<u8>) {
    match address {
        // The common case, without the formatting machinery.
        IpAddr::V4(v4) => {
            for (at, octet) in v4.octets().into_iter().enumerate() {
                if at > 0 {
                    out.push(b'.');
                }
                push_number(u64::from(octet), out);
            }
        }
        IpAddr::V6(v6) => {
            use std::io::Write;
            let _ = write!(out, "{v6}");
        }
    }
}

/// Escapes for a JSON string (RFC 8259, section 7). Bytes that are not ASCII are
/// written as `\u00XX`, byte by byte: a path is bytes, and nothing that it holds
/// may end a line or a string.
fn escape(bytes: &[u8], out: &mut Vec<u8>) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    if is_plain(bytes) {
        out.extend_from_slice(bytes);
        return;
    }
    let plain = |byte: u8| is_plain(&[byte]);
    for &byte in bytes {
        if plain(byte) {
            out.push(byte);
        } else if byte == b'"' || byte == b'\\' {
            out.extend_from_slice(&[b'\\', byte]);
        } else {
            out.extend_from_slice(b"\\u00");
            out.push(HEX[usize::from(byte >> 4)]);
            out.push(HEX[usize::from(byte & 15)]);
        }
    }
}

/// Whether nothing in it needs an escape: visible ASCII and spaces, without `"` and `\\`.
/// Nearly every value is, so eight bytes are looked at at once.
fn is_plain(bytes: &[u8]) -> bool {
    const fn each(byte: u8) -> u64 {
        u64::from_ne_bytes([byte; 8])
    }
    // The highest bit of some byte is set if and only if a byte is 0: a borrow that
    // strays into a neighbour has begun at one.
    let zero = |word: u64| word.wrapping_sub(each(1)) & !word & each(0x80);
    let odd = |word: u64| {
        let below_space = word.wrapping_sub(each(0x20)) & !word & each(0x80);
        let above_ascii = word & each(0x80);
        below_space
            | above_ascii
            | zero(word ^ each(0x7f))
            | zero(word ^ each(b'"'))
            | zero(word ^ each(b'\\'))
    };
    let (words, rest) = bytes.as_chunks::<8>();
    // What is left is filled up with what is plain.
    let mut last = [b' '; 8];
    last[..rest.len()].copy_from_slice(rest);
    let odd_before = words
        .iter()
        .fold(0, |seen, word| seen | odd(u64::from_ne_bytes(*word)));
    (odd_before | odd(u64::from_ne_bytes(last))) == 0
}

/// `2026-11-21T22:40:00.123Z` (RFC 3339).
fn push_time(unix_ms: u64, out: &mut Vec<u8>) {
    let seconds = unix_ms / 1000;
    let (year, month, day) = civil_from_days(seconds / 86_400);
    let of_day = seconds % 86_400;
    let two = |value: u64, out: &mut Vec<u8>| {
        out.push(b'0' + (value / 10 % 10) as u8);
        out.push(b'0' + (value % 10) as u8);
    };
    two(year / 100, out);
    two(year % 100, out);
    out.push(b'-');
    two(month, out);
    out.push(b'-');
    two(day, out);
    out.push(b'T');
    two(of_day / 3600, out);
    out.push(b':');
    two(of_day / 60 % 60, out);
    out.push(b':');
    two(of_day % 60, out);
    out.push(b'.');
    let ms = unix_ms % 1000;
    out.push(b'0' + (ms / 100) as u8);
    two(ms % 100, out);
    out.push(b'Z');
}

/// Year, month and day of a day counted from 1970-01-01, by Howard Hinnant's
/// `civil_from_days` (<https://howardhinnant.github.io/date_algorithms.html>).
fn civil_from_days(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let of_era = shifted % 146_097;
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_shifted + 2) / 5 + 1;
    let month = if month_shifted < 10 {
        month_shifted + 3
    } else {
        month_shifted - 9
    };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(path: &[u8]) -> AuditRecord<'_> {
        AuditRecord {
            event: "exchange",
            unix_ms: 1_795_305_600_123,
            request_id: "0a-1",
            listener: "main",
            route: Some("mail"),
            caller: "open",
            identified_by: "address",
            token_version: None,
            client: "10.0.0.7".parse().expect("an address"),
            client_port: 1234,
            told: None,
            host: "api.example.com",
            method: "POST",
            path,
            status: 202,
            refused: None,
            bytes_in: 10,
            bytes_out: 0,
            upstream: Some("mail"),
            upstream_address: Some("[2001:db8::1]:443".parse().expect("an address")),
            credential: Some(("mail", "v7")),
            stripped: None,
            scrubbed: 0,
            uninspected: None,
            total: Duration::from_micros(1500),
            upstream_wait: Duration::from_micros(1400),
            generation: 3,
        }
    }

    #[test]
    fn one_line_of_json() {
        let mut out = Vec::new();
        record(b"/v3/mail/send").encode(&mut out);
        assert_eq!(
            String::from_utf8(out).expect("ASCII"),
            concat!(
                r#"{"time":"2026-11-22T00:00:00.123Z","event":"exchange","request_id":"0a-1","listener":"main","route":"mail","#,
                r#""caller":"open","identified_by":"address","client":"10.0.0.7","client_port":1234,"host":"api.example.com","#,
                r#""method":"POST","path":"/v3/mail/send","status":202,"refused_by":null,"bytes_in":10,"bytes_out":0,"#,
                r#""upstream":"mail","upstream_address":"[2001:db8::1]:443","credential":"mail","credential_version":"v7","#,
                r#""stripped":[],"total_us":1500,"upstream_us":1400,"own_us":100,"generation":3}"#,
                "\n"
            )
        );
    }

    #[test]
    fn what_is_unusual_is_said_where_it_is() {
        let mut out = Vec::new();
        AuditRecord {
            scrubbed: 2,
            uninspected: Some("malformed"),
            ..record(b"/")
        }
        .encode(&mut out);
        let line = String::from_utf8(out).expect("ASCII");
        let expected = r#""stripped":[],"scrubbed":2,"uninspected":"malformed","total_us""#;
        assert!(line.contains(expected), "{line}");
    }

    #[test]
    fn what_an_edge_brought_says_so() {
        let told = Told {
            edge: "gcp".into(),
            authority: "api.example.com".into(),
            client: Some("2001:db8::7".parse().expect("an address")),
            request_id: Some("0b-2".into()),
        };
        let mut out = Vec::new();
        AuditRecord {
            told: Some(&told),
            ..record(b"/")
        }
        .encode(&mut out);
        let line = String::from_utf8(out).expect("ASCII");
        let expected = r#""client_port":1234,"edge":"gcp","edge_client":"2001:db8::7","edge_request_id":"0b-2","host":"#;
        assert!(line.contains(expected), "{line}");
    }

    #[test]
    fn nothing_in_a_path_forges_a_line() {
        let mut out = Vec::new();
        record(b"/a\r\n{\"event\":\"x\"}\\\xff\x7f").encode(&mut out);
        let line = String::from_utf8(out).expect("ASCII");
        assert_eq!(line.matches('\n').count(), 1);
        assert!(
            line.contains(r#""path":"/a\u000d\u000a{\"event\":\"x\"}\\\u00ff\u007f""#),
            "{line}"
        );
    }

    #[test]
    fn every_byte_is_plain_or_not_wherever_it_stands() {
        for byte in 0..=u8::MAX {
            let plain = (0x20..0x7f).contains(&byte) && byte != b'"' && byte != b'\\';
            for length in 1..20 {
                for at in 0..length {
                    for around in [b' ', b'a', b'~', 0x21, 0x5d] {
                        let mut text = vec![around; length];
                        text[at] = byte;
                        assert_eq!(is_plain(&text), plain, "{byte} at {at} of {length}");
                    }
                }
            }
        }
        assert!(is_plain(b""));
    }

    #[test]
    fn long_paths_are_cut_and_say_so() {
        let mut out = Vec::new();
        record(&[b'a'; 5000]).encode(&mut out);
        assert!(out.len() < 2000);
        assert!(String::from_utf8_lossy(&out).contains("\"path_cut\":true"));
    }

    #[test]
    fn days() {
        for (days, date) in [
            (0, (1970, 1, 1)),
            (59, (1970, 3, 1)),
            (11_016, (2000, 2, 29)),
            (20_778, (2026, 11, 21)),
        ] {
            assert_eq!(civil_from_days(days), date);
        }
    }
}
