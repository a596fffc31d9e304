//! Content codings (RFC 9110, section 8.4) in heads: what a body is coded with, and what may be asked
//! for. [`Inspector`](crate::inspect::Inspector) looks into such bodies.
//!
//! It lacks those that need a dictionary (`dcb`, `dcz`: RFC 9842), and `compress`, which nobody sends. An
//! upstream is not asked for them.

/// A coding that can be looked into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    /// RFC 1952.
    Gzip,
    /// RFC 1950, or the bare RFC 1951 that some servers send in its stead.
    Deflate,
    /// RFC 7932.
    Brotli,
    /// RFC 8878, with a window as RFC 9659 allows it.
    Zstd,
}

impl Coding {
    /// The coding of this name, in any case (RFC 9110, section 8.4.1).
    #[must_use]
    pub fn named(name: &[u8]) -> Option<Self> {
        // The length tells them apart, mostly.
        let (known, coding): (&[u8], _) = match name.len() {
            2 => (b"br", Coding::Brotli),
            4 if name[0].eq_ignore_ascii_case(&b'z') => (b"zstd", Coding::Zstd),
            4 => (b"gzip", Coding::Gzip),
            6 => (b"x-gzip", Coding::Gzip),
            7 => (b"deflate", Coding::Deflate),
            _ => return None,
        };
        name.eq_ignore_ascii_case(known).then_some(coding)
    }
}

/// The codings of one body, at most [`CODINGS_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Codings {
    list: [Coding; CODINGS_MAX],
    /// Of `list`, from its beginning: at least 1.
    count: usize,
}

impl Codings {
    /// One coding.
    #[must_use]
    pub fn one(coding: Coding) -> Self {
        Self {
            list: [coding; CODINGS_MAX],
            count: 1,
        }
    }

    /// The same with another one on top; `None` if there are too many.
    #[must_use]
    pub fn and(mut self, coding: Coding) -> Option<Self> {
        *self.list.get_mut(self.count)? = coding;
        self.count += 1;
        Some(self)
    }

    /// In the order in which they were applied; they are undone from the last to the first.
    #[must_use]
    pub fn applied(&self) -> &[Coding] {
        &self.list[..self.count]
    }
}

/// What a response's Content-Encoding says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coded {
    /// The body is what it says.
    Plain,
    /// It has to be decoded to be searched.
    With(Codings),
    /// It cannot be searched: a coding that is not known, or too many of them.
    Opaque,
}

impl Coded {
    /// Reads the values of all Content-Encoding fields of a head, in their order.
    pub fn of<'a>(values: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut coded = Coded::Plain;
        for name in values.into_iter().flat_map(members) {
            let coding = match Coding::named(name) {
                Some(coding) => coding,
                // RFC 9110, section 8.4.1: it should not be written here, but does no harm.
                None if name.eq_ignore_ascii_case(IDENTITY) => continue,
                None => return Coded::Opaque,
            };
            let with = match coded {
                Coded::Plain => Some(Codings::one(coding)),
                Coded::With(codings) => codings.and(coding),
                Coded::Opaque => None,
            };
            let Some(with) = with else {
                return Coded::Opaque;
            };
            coded = Coded::With(with);
        }
        coded
    }
}

/// Whether an upstream may be asked by this Accept-Encoding (RFC 9110, section 12.5.3): nothing in it
/// invites a coding that cannot be looked into.
#[must_use]
pub fn is_acceptable(value: &[u8]) -> bool {
    members(value).all(is_member_acceptable) && !value.trim_ascii().is_empty()
}

/// Writes an Accept-Encoding's value without what must not be asked for. What stays, stays byte for
/// byte, weights included. `*` invites every coding there is, so the usual two of those that it means
/// are written in its place, under its weight; where it forbids, it stays. If nothing is left, only the
/// bare body is wanted, which is said.
pub fn write_acceptable(value: &[u8], mut write: impl FnMut(&[u8])) {
    let mut is_first = true;
    let mut separate = |write: &mut dyn FnMut(&[u8])| {
        if !is_first {
            write(b", ");
        }
        is_first = false;
    };
    for member in members(value) {
        let (name, weight) = split(member);
        if is_member_acceptable(member) {
            separate(&mut write);
            write(member);
        } else if name == b"*" {
            for &(coding, offered) in &OFFERED {
                let is_it = |other| Coding::named(split(other).0) == Some(coding);
                if !members(value).any(is_it) {
                    separate(&mut write);
                    write(offered);
                    write(weight);
                }
            }
        }
    }
    if is_first {
        write(IDENTITY);
    }
}

fn is_member_acceptable(member: &[u8]) -> bool {
    let (name, weight) = split(member);
    match name {
        b"*" => is_zero(weight),
        name => name.eq_ignore_ascii_case(IDENTITY) || Coding::named(name).is_some(),
    }
}

/// A member's name, and its weight with the `;` before it.
fn split(member: &[u8]) -> (&[u8], &[u8]) {
    let end = memchr::memchr(b';', member).unwrap_or(member.len());
    let (name, weight) = member.split_at(end);
    (name.trim_ascii_end(), weight)
}

/// Whether a weight says never (RFC 9110, section 12.4.2: `q=0`, with up to three further zeros).
fn is_zero(weight: &[u8]) -> bool {
    let weight = weight.strip_prefix(b";").unwrap_or(weight).trim_ascii();
    let [b'q' | b'Q', b'=', b'0', digits @ ..] = weight else {
        return false;
    };
    digits.iter().all(|byte| matches!(byte, b'0' | b'.'))
}

fn members(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    let members = value.split(|&byte| byte == b',');
    members
        .map(<[u8]>::trim_ascii)
        .filter(|member| !member.is_empty())
}

/// Codings of one body, on top of each other. One more, and it cannot be searched: each costs a decoder
/// of its own, and nobody but a server behind a careless gateway has as many as two.
pub const CODINGS_MAX: usize = 2;

/// What `*` is taken to mean.
const OFFERED: [(Coding, &[u8]); 2] = [(Coding::Gzip, b"gzip"), (Coding::Brotli, b"br")];

const IDENTITY: &[u8] = b"identity";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_encodings() {
        use Coding::{Brotli, Deflate, Gzip, Zstd};
        let of = |values: &[&str]| Coded::of(values.iter().map(|value| value.as_bytes()));
        for (values, expected) in [
            (&[][..], Some(&[][..])),
            (&[""], Some(&[])),
            (&["identity"], Some(&[])),
            (&["gzip"], Some(&[Gzip])),
            (&["X-GZip"], Some(&[Gzip])),
            (&["identity, br"], Some(&[Brotli])),
            (&["deflate"], Some(&[Deflate])),
            (&["gzip, br"], Some(&[Gzip, Brotli])),
            (&["gzip", "br"], Some(&[Gzip, Brotli])),
            (&[" , gzip ,,gzip"], Some(&[Gzip, Gzip])),
            (&["gzip, gzip, gzip"], None),
            (&["zstd"], Some(&[Zstd])),
            (&["gzip, ZSTD"], Some(&[Gzip, Zstd])),
            (&["zzip"], None),
            (&["dcz"], None),
            (&["compress"], None),
            (&["gzip;q=1"], None),
            (&["\"gzip\""], None),
            (&["utf-8"], None),
        ] {
            let shown = match of(values) {
                Coded::Plain => Some(Vec::new()),
                Coded::With(codings) => Some(codings.applied().to_vec()),
                Coded::Opaque => None,
            };
            assert_eq!(shown.as_deref(), expected, "{values:?}");
        }
    }

    #[test]
    fn accept_encodings() {
        for (value, expected) in [
            ("gzip, deflate, br", "gzip, deflate, br"),
            ("gzip, deflate, br, zstd", "gzip, deflate, br, zstd"),
            (
                "gzip, deflate, br, zstd, dcb, dcz",
                "gzip, deflate, br, zstd",
            ),
            (
                "gzip;q=0.5,dcz ;q=1.0 , BR ; q=0.8",
                "gzip;q=0.5, BR ; q=0.8",
            ),
            ("br;q=1.0, gzip;q=0.8, *;q=0.1", "br;q=1.0, gzip;q=0.8"),
            ("br, *;q=0.1", "br, gzip;q=0.1"),
            ("*", "gzip, br"),
            ("identity, *;q=0.5", "identity, gzip;q=0.5, br;q=0.5"),
            ("gzip;q=0, *", "gzip;q=0, br"),
            ("identity;q=0, *;q=0.0", "identity;q=0, *;q=0.0"),
            ("*;q=0.01", "gzip;q=0.01, br;q=0.01"),
            ("dcz", "identity"),
            ("dcz, identity;q=0", "identity;q=0"),
            (",, GZIP ,compress;q=0.5", "GZIP"),
            ("dcb, dcz, x-gzip", "x-gzip"),
            ("", "identity"),
        ] {
            let mut written = Vec::new();
            write_acceptable(value.as_bytes(), |bytes| written.extend_from_slice(bytes));
            assert_eq!(String::from_utf8_lossy(&written), expected, "{value}");
            assert!(is_acceptable(&written), "{value}");
            if is_acceptable(value.as_bytes()) {
                assert_eq!(value, expected);
            }
        }
    }
}
