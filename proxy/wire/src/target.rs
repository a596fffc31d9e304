//! Request targets: what else an upstream may read in a path, the parameters of a query, and the
//! host of an authority.
//!
//! Nothing here rewrites a target; [`rewrite`](crate::rewrite) does.

use core::net::Ipv6Addr;
use core::ops::Range;

use crate::names::hex;

/// Other readings that an upstream may take of this path, apart from the raw one: with dot segments
/// resolved, percent-encoding undone (once or twice), slashes merged, backslashes as slashes, and
/// `;parameters` cut. Empty for the ordinary path, which costs one pass over it.
///
/// A rule that protects a path must hold for each reading; which one the upstream takes is unknown.
///
/// # Errors
/// When the readings together are longer than 256 KiB: eight readings of the longest path are, and all that
/// a path of 2 KiB can have are not. Nobody can say then that a rule holds for each of them.
pub fn readings(path: &[u8]) -> Result<Vec<Vec<u8>>, ReadingsTooLong> {
    if is_ordinary(path) {
        return Ok(Vec::new());
    }
    // Each step may be taken or not, in the order in which a chain of servers would take them. A step
    // that changes nothing adds nothing, so few paths have more than a handful of readings.
    let steps: [Step; 7] = [
        decoded,
        decoded,
        cut_at_query,
        without_params,
        with_slashes,
        slashes_merged,
        dots_resolved,
    ];
    let mut readings = vec![path.to_vec()];
    let mut bytes = 0;
    for step in steps {
        for at in 0..readings.len() {
            let Some(reading) = step(&readings[at]) else {
                continue;
            };
            if readings.contains(&reading) {
                continue;
            }
            bytes += reading.len();
            if bytes > READINGS_BYTES_MAX {
                return Err(ReadingsTooLong);
            }
            readings.push(reading);
        }
    }
    readings.remove(0);
    Ok(readings)
}

/// A path can be read in too many ways for its length; see [`readings`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the path is long and can be read in many ways; send it without dot segments, empty segments, `;` and encoding"
)]
pub struct ReadingsTooLong;

/// One thing that some servers do to a path. `None` where it is seen at once that it changes nothing.
type Step = fn(&[u8]) -> Option<Vec<u8>>;

/// One parameter of a query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Param {
    /// The name, undecoded.
    pub name: Range<usize>,
    /// Name, `=` and value, without separators.
    pub whole: Range<usize>,
}

/// The parameters of a query, in order, split at `&` and at `;` (some servers still take it as a
/// separator). Two separators in a row enclose an empty parameter; an empty query has none.
pub fn params(query: &[u8]) -> impl Iterator<Item = Param> {
    let mut next = (!query.is_empty()).then_some(0);
    core::iter::from_fn(move || {
        let start = next?;
        let rest = &query[start..];
        let len = memchr::memchr2(b'&', b';', rest).unwrap_or(rest.len());
        let end = start + len;
        next = (end < query.len()).then_some(end + 1);
        let name = memchr::memchr(b'=', &rest[..len]).unwrap_or(len);
        Some(Param {
            name: start..start + name,
            whole: start..end,
        })
    })
}

/// Splits `host[:port]` into the host, without the brackets of an IPv6 address, and the port.
///
/// `None` for user information, an empty host, anything but letters, digits, `-`, `.` and `_` in a
/// name, a bracketed thing that is no IPv6 address, and a port that is empty, zero or above 65535.
#[must_use]
pub fn authority_host(authority: &[u8]) -> Option<(&[u8], Option<u16>)> {
    let (host, behind) = match authority {
        [b'[', behind @ ..] => {
            let close = memchr::memchr(b']', behind)?;
            let host = &behind[..close];
            core::str::from_utf8(host).ok()?.parse::<Ipv6Addr>().ok()?;
            (host, &behind[close + 1..])
        }
        _ => {
            let end = memchr::memchr(b':', authority).unwrap_or(authority.len());
            let host = &authority[..end];
            let allowed = |&byte: &u8| HOST_BYTES[usize::from(byte)];
            if host.is_empty() || host.len() > HOST_BYTES_MAX || !host.iter().all(allowed) {
                return None;
            }
            (host, &authority[end..])
        }
    };
    match behind {
        [] => Some((host, None)),
        [b':', port @ ..] => Some((host, Some(parse_port(port)?))),
        _ => None,
    }
}

/// Undoes percent-encoding (RFC 3986, section 2.1). A `%` that no two digits follow stays as it is,
/// and so does `+`, which is a space in forms alone.
#[must_use]
pub fn percent_decode(bytes: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let [first, after @ ..] = rest {
        rest = match after {
            [high, low, behind @ ..] if *first == b'%' => match (hex(*high), hex(*low)) {
                (Some(high), Some(low)) => {
                    decoded.push(high << 4 | low);
                    behind
                }
                _ => {
                    decoded.push(b'%');
                    after
                }
            },
            _ => {
                decoded.push(*first);
                after
            }
        };
    }
    decoded
}

/// Appends `value` to `out` with everything but RFC 3986's unreserved bytes percent-encoded.
pub fn percent_encode_query(value: &[u8], out: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    for &byte in value {
        if is_unreserved(byte) {
            out.push(byte);
        } else {
            out.extend([
                b'%',
                DIGITS[usize::from(byte >> 4)],
                DIGITS[usize::from(byte & 15)],
            ]);
        }
    }
}

/// RFC 3986 section 2.3.
pub(crate) fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// Whether every server reads this path the same way: no `%`, `;` or backslash, no empty segment,
/// and no segment that starts with a dot.
fn is_ordinary(path: &[u8]) -> bool {
    // Paths are too short for vector searches to pay.
    let mut odd_here = BYTE_ODD;
    path.iter().all(|&byte| {
        let odd = BYTE_KINDS[usize::from(byte)] & odd_here;
        odd_here = if byte == b'/' {
            BYTE_ODD | BYTE_ODD_AFTER_SLASH
        } else {
            BYTE_ODD
        };
        odd == 0
    })
}

/// Percent-decoded once. `+` means itself in a path.
fn decoded(path: &[u8]) -> Option<Vec<u8>> {
    memchr::memchr(b'%', path)?;
    let mut out = Vec::with_capacity(path.len());
    let mut rest = path;
    while let [first, behind @ ..] = rest {
        rest = behind;
        if let (b'%', [high, low, behind @ ..]) = (first, behind)
            && let (Some(high), Some(low)) = (hex(*high), hex(*low))
        {
            out.push(high << 4 | low);
            rest = behind;
        } else {
            out.push(*first);
        }
    }
    Some(out)
}

/// Up to the first byte that would end a path had it not been encoded: a server that decodes first
/// and splits later stops there, and so does one whose strings end at NUL.
fn cut_at_query(path: &[u8]) -> Option<Vec<u8>> {
    let end = memchr::memchr3(b'?', b'#', 0, path)?;
    Some(path[..end].to_vec())
}

/// Without `;` and what follows it, in each segment.
fn without_params(path: &[u8]) -> Option<Vec<u8>> {
    memchr::memchr(b';', path)?;
    let mut out = Vec::with_capacity(path.len());
    let mut cutting = false;
    for &byte in path {
        match byte {
            b'/' | b'\\' => cutting = false,
            b';' => cutting = true,
            _ => {}
        }
        if !cutting {
            out.push(byte);
        }
    }
    Some(out)
}

/// With `/` for each backslash.
fn with_slashes(path: &[u8]) -> Option<Vec<u8>> {
    memchr::memchr(b'\\', path)?;
    let slash = |&byte: &u8| if byte == b'\\' { b'/' } else { byte };
    Some(path.iter().map(slash).collect())
}

fn slashes_merged(path: &[u8]) -> Option<Vec<u8>> {
    memchr::memchr_iter(b'/', path).find(|&at| path.get(at + 1) == Some(&b'/'))?;
    let mut out = Vec::with_capacity(path.len());
    let mut before = 0;
    for &byte in path {
        if byte != b'/' || before != b'/' {
            out.push(byte);
        }
        before = byte;
    }
    Some(out)
}

/// RFC 3986 section 5.2.4 on an absolute path.
fn dots_resolved(path: &[u8]) -> Option<Vec<u8>> {
    let relative = path.strip_prefix(b"/")?;
    memchr::memchr_iter(b'.', path).find(|&at| path[at.saturating_sub(1)] == b'/')?;
    let mut out: Vec<u8> = Vec::with_capacity(path.len());
    let mut segments = relative.split(|&byte| byte == b'/').peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match segment {
            b"." | b".." => {
                if segment == b".." {
                    let parent = out.iter().rposition(|&byte| byte == b'/').unwrap_or(0);
                    out.truncate(parent);
                }
                if last {
                    out.push(b'/');
                }
            }
            _ => {
                out.push(b'/');
                out.extend_from_slice(segment);
            }
        }
    }
    Some(out)
}

fn parse_port(digits: &[u8]) -> Option<u16> {
    if digits.is_empty() || digits.len() > 5 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let port = digits
        .iter()
        .fold(0u32, |port, digit| port * 10 + u32::from(digit - b'0'));
    u16::try_from(port).ok().filter(|&port| port != 0)
}

/// What a byte is to [`is_ordinary`].
const BYTE_KINDS: [u8; 256] = {
    let mut kinds = [0; 256];
    kinds[b'%' as usize] = BYTE_ODD;
    kinds[b';' as usize] = BYTE_ODD;
    kinds[b'\\' as usize] = BYTE_ODD;
    kinds[b'/' as usize] = BYTE_ODD_AFTER_SLASH;
    kinds[b'.' as usize] = BYTE_ODD_AFTER_SLASH;
    kinds
};
const BYTE_ODD: u8 = 1;
const BYTE_ODD_AFTER_SLASH: u8 = 2;

/// Which bytes stand in a host's name: letters, digits, `-`, `.` and `_`.
const HOST_BYTES: [bool; 256] = {
    let mut allowed = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        allowed[byte] =
            (byte as u8).is_ascii_alphanumeric() || matches!(byte as u8, b'-' | b'.' | b'_');
        byte += 1;
    }
    allowed
};

/// Bytes of a host name (RFC 1035 section 3.1). Longer ones are malformed.
const HOST_BYTES_MAX: usize = 255;

/// Bytes of all readings of one path together. Past it [`ReadingsTooLong`], and policy refuses the request:
/// else one head of 32 KiB would keep a core busy for milliseconds.
const READINGS_BYTES_MAX: usize = 256 * 1024;
