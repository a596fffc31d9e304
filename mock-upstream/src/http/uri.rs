//! Request targets and queries: finding the resource, and percent-coding both ways.

use std::borrow::Cow;
use std::ops::RangeInclusive;

/// Where in `target` the resource (`/path?query`) begins. `None` when the target is malformed:
/// neither origin-form nor absolute-form (nor `*` with `OPTIONS`), or with a byte outside
/// printable ASCII, or with a fragment, which never travels (RFC 9112, section 3.2).
pub fn resource(method: &[u8], target: &[u8]) -> Option<usize> {
    if !target
        .iter()
        .all(|&byte| byte.is_ascii_graphic() && byte != b'#')
    {
        return None;
    }
    if target.starts_with(b"/") || (target == b"*" && method == b"OPTIONS") {
        return Some(0);
    }
    let scheme = [&b"http://"[..], b"https://"].into_iter().find(|scheme| {
        target.len() > scheme.len() && target[..scheme.len()].eq_ignore_ascii_case(scheme)
    })?;
    let authority = &target[scheme.len()..];
    let length = authority
        .iter()
        .position(|byte| matches!(byte, b'/' | b'?'))
        .unwrap_or(authority.len());
    (length > 0).then_some(scheme.len() + length)
}

/// The pairs of a query in order, still encoded. A pair without `=` has an empty value.
pub fn pairs(query: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    query
        .split(|&byte| byte == b'&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| match memchr::memchr(b'=', pair) {
            Some(mark) => (&pair[..mark], &pair[mark + 1..]),
            None => (pair, &b""[..]),
        })
}

/// The decoded value of the first pair whose decoded name is `name`.
pub fn value<'q>(query: &'q [u8], name: &str) -> Option<Cow<'q, [u8]>> {
    pairs(query)
        .find(|(candidate, _)| decode(candidate).as_ref() == name.as_bytes())
        .map(|(_, value)| decode(value))
}

/// Like [`value`], as text; `None` also when the value is not UTF-8.
pub fn text(query: &[u8], name: &str) -> Option<String> {
    String::from_utf8(value(query, name)?.into_owned()).ok()
}

/// Like [`value`], as a whole number in `range`.
///
/// # Errors
///
/// A sentence, if the value is anything else. It does not repeat the value.
pub fn number(query: &[u8], name: &str, range: RangeInclusive<u64>) -> Result<Option<u64>, String> {
    let Some(value) = value(query, name) else {
        return Ok(None);
    };
    match whole(&value).filter(|number| range.contains(number)) {
        Some(number) => Ok(Some(number)),
        None => Err(format!(
            "`{name}` must be a whole number from {} to {}, as in `{name}={}`",
            range.start(),
            range.end(),
            range.start().max(&5).min(range.end())
        )),
    }
}

/// A whole number in decimal digits, and nothing else.
pub fn whole(text: &[u8]) -> Option<u64> {
    if !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Whether `name` is `1`; it is not if it is `0`, empty or absent.
///
/// # Errors
///
/// A sentence, if the value is anything else.
pub fn flag(query: &[u8], name: &str) -> Result<bool, String> {
    match value(query, name).as_deref() {
        None | Some(b"" | b"0") => Ok(false),
        Some(b"1") => Ok(true),
        Some(_) => Err(format!("`{name}` must be 0 or 1, as in `{name}=1`")),
    }
}

/// Undoes percent-encoding and `+` for space. A `%` without two hex digits stays as it is.
pub fn decode(text: &[u8]) -> Cow<'_, [u8]> {
    if memchr::memchr2(b'%', b'+', text).is_none() {
        return Cow::Borrowed(text);
    }
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        match byte {
            b'+' => out.push(b' '),
            b'%' if tail.len() >= 2 => match (hex(tail[0]), hex(tail[1])) {
                (Some(high), Some(low)) => {
                    out.push(high << 4 | low);
                    rest = &tail[2..];
                }
                _ => out.push(b'%'),
            },
            byte => out.push(byte),
        }
    }
    Cow::Owned(out)
}

/// Percent-encodes everything outside the unreserved characters (RFC 3986, section 2.3).
pub fn encode(bytes: &[u8]) -> String {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let mut out = String::with_capacity(bytes.len());
    for &byte in bytes {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                out.push(byte as char)
            }
            _ => {
                out.push('%');
                out.push(HEX[(byte >> 4) as usize] as char);
                out.push(HEX[(byte & 15) as usize] as char);
            }
        }
    }
    out
}

/// The value of one hexadecimal digit.
pub fn hex(byte: u8) -> Option<u8> {
    (byte as char).to_digit(16).map(|digit| digit as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decodes_names_and_values() {
        let query = b"a=1&k%65y=x%2By+z&flag&c=%zz";
        assert_eq!(value(query, "key").unwrap().as_ref(), b"x+y z");
        assert_eq!(value(query, "flag").unwrap().as_ref(), b"");
        assert_eq!(value(query, "c").unwrap().as_ref(), b"%zz");
        assert_eq!(value(query, "none"), None);
    }

    #[test]
    fn numbers_and_flags_are_what_they_say_or_refused() {
        let query = b"a=1&b=0&n=-1&x=%zz&big=99999999999999999999&p=%2B1&e=&s=1+";
        assert_eq!(number(query, "a", 0..=u64::MAX), Ok(Some(1)));
        assert_eq!(number(query, "none", 0..=9), Ok(None));
        for bad in ["n", "x", "big", "p", "e", "s"] {
            assert!(number(query, bad, 0..=u64::MAX).is_err(), "{bad}");
        }
        let error = number(query, "a", 200..=599).unwrap_err();
        assert_eq!(
            error,
            "`a` must be a whole number from 200 to 599, as in `a=200`"
        );
        assert_eq!(flag(query, "a"), Ok(true));
        for unset in ["b", "e", "none"] {
            assert_eq!(flag(query, unset), Ok(false), "{unset}");
        }
        let error = flag(query, "n").unwrap_err();
        assert_eq!(error, "`n` must be 0 or 1, as in `n=1`");
    }

    #[test]
    fn encodes_back() {
        assert_eq!(encode(b"a b/\xff~"), "a%20b%2F%FF~");
        assert_eq!(
            decode(encode(b"a b/\xff~").as_bytes()).as_ref(),
            b"a b/\xff~"
        );
    }

    #[test]
    fn finds_the_resource() {
        assert_eq!(resource(b"GET", b"/x"), Some(0));
        assert_eq!(resource(b"GET", b"*"), None);
        assert_eq!(resource(b"GET", b"http:///x"), None);
        assert_eq!(resource(b"GET", b"HTTPS://h?x"), Some(9));
        assert_eq!(resource(b"GET", b""), None);
    }
}
