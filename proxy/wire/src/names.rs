//! Sets of names: header fields and query parameters, matched the way the many servers behind us
//! match them rather than the way the RFC says.
//!
//! A set is built when a configuration is loaded and only read afterwards. It does not know what a
//! name is for, and holds no values.

/// A set of header names, matched case-insensitively and with `_` equal to `-`.
///
/// CGI-style servers fold `X_Api_Key` and `X-Api-Key` into one variable, so a strip list that told
/// them apart could be walked around.
#[derive(Clone, Debug)]
pub struct NameSet {
    /// Lower-case, `-` for `_`, sorted, no duplicates.
    names: Vec<Box<str>>,
    /// For each length (the last entry stands for all longer ones), which first letters occur: one
    /// load rejects nearly every name that is not in the set.
    firsts: Box<[u32; LENGTHS]>,
}

impl NameSet {
    /// Builds the set. Empty names are left out.
    pub fn new<I, S>(names: I) -> Self
    where
        I: IntoIterator<Item = S>,
        S: AsRef<str>,
    {
        let mut names: Vec<Box<str>> = names
            .into_iter()
            .map(|name| name.as_ref().to_ascii_lowercase().replace('_', "-"))
            .filter(|name| !name.is_empty())
            .map(String::into_boxed_str)
            .collect();
        names.sort_unstable();
        names.dedup();
        let mut firsts = Box::new([0u32; LENGTHS]);
        for name in &names {
            firsts[name.len().min(LENGTHS - 1)] |= first_bit(name.as_bytes()[0]);
        }
        Self { names, firsts }
    }

    /// Whether `name` is in the set.
    #[must_use]
    pub fn contains(&self, name: &[u8]) -> bool {
        self.get(name).is_some()
    }

    /// The set's own spelling of `name` (lower case, `-`), if it is in the set. Logs show this one,
    /// so that no byte a peer chose reaches them.
    #[must_use]
    #[inline]
    pub fn get(&self, name: &[u8]) -> Option<&str> {
        let first = *name.first()?;
        if self.firsts[name.len().min(LENGTHS - 1)] & first_bit(fold(first)) == 0 {
            return None;
        }
        self.names
            .iter()
            .find(|known| eq_folded(name, known.as_bytes()))
            .map(|known| &**known)
    }

    /// The names, lower case and with `-`, sorted.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(|name| &**name)
    }

    /// Whether nothing is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }
}

impl Default for NameSet {
    fn default() -> Self {
        Self::new(core::iter::empty::<&str>())
    }
}

/// Query parameter names, compared after percent-decoding, ASCII case-insensitive.
///
/// `k%65y`, `KEY` and `key` are one name; so is `+key`, because form decoders turn `+` into a space
/// and some (PHP) then drop leading spaces. `_` and `-` differ here, as they do in query parsers.
#[derive(Clone, Debug, Default)]
pub struct ParamSet {
    /// Lower-case, decoded, sorted, no duplicates.
    names: Vec<Box<str>>,
    /// Which first letters occur.
    firsts: u32,
}

impl ParamSet {
    /// Builds the set from decoded names. Empty names are left out.
    pub fn new<I, S>(names: I) -> Self
    where
        I: IntoIterator<Item = S>,
        S: AsRef<str>,
    {
        let mut names: Vec<Box<str>> = names
            .into_iter()
            .map(|name| name.as_ref().trim().to_ascii_lowercase())
            .filter(|name| !name.is_empty())
            .map(String::into_boxed_str)
            .collect();
        names.sort_unstable();
        names.dedup();
        let firsts = names
            .iter()
            .fold(0, |firsts, name| firsts | first_bit(name.as_bytes()[0]));
        Self { names, firsts }
    }

    /// Whether the name, as it stands in the query, is in the set.
    #[must_use]
    pub fn contains(&self, raw_name: &[u8]) -> bool {
        self.get(raw_name).is_some()
    }

    /// The set's own spelling of `raw_name`, if it is in the set.
    #[must_use]
    pub fn get(&self, raw_name: &[u8]) -> Option<&str> {
        let first = *raw_name.first()?;
        // A plain first letter settles it for names that start with another one; an encoded one
        // needs decoding.
        let is_plain = first.is_ascii_alphanumeric();
        if is_plain && self.firsts & first_bit(first) == 0 {
            return None;
        }
        let lower = first.to_ascii_lowercase();
        self.names
            .iter()
            .find(|known| {
                (!is_plain || known.as_bytes()[0] == lower)
                    && eq_decoded(raw_name, known.as_bytes())
            })
            .map(|known| &**known)
    }

    /// The names, lower case, sorted.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(|name| &**name)
    }

    /// Whether nothing is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }
}

/// `byte` in lower case, with `-` for `_`.
#[inline]
pub(crate) fn fold(byte: u8) -> u8 {
    match byte {
        b'_' => b'-',
        _ => byte.to_ascii_lowercase(),
    }
}

/// Whether `name` folds to `folded`.
#[inline]
pub(crate) fn eq_folded(name: &[u8], folded: &[u8]) -> bool {
    name.len() == folded.len() && name.iter().zip(folded).all(|(&a, &b)| fold(a) == b)
}

/// Whether `name` starts with something that folds to `folded`.
pub(crate) fn starts_folded(name: &[u8], folded: &[u8]) -> bool {
    name.len() >= folded.len() && eq_folded(&name[..folded.len()], folded)
}

/// Whether `raw`, percent-decoded, trimmed of white space and lowered, is `lower`.
fn eq_decoded(raw: &[u8], lower: &[u8]) -> bool {
    // Decoding never lengthens, so a short raw name cannot match a longer one.
    if raw.len() < lower.len() {
        return false;
    }
    let mut decoded = Decoded(raw).skip_while(|byte| byte.is_ascii_whitespace());
    for &want in lower {
        match decoded.next() {
            Some(byte) if byte.to_ascii_lowercase() == want => {}
            _ => return false,
        }
    }
    decoded.all(|byte| byte.is_ascii_whitespace())
}

/// Percent-decoding, byte by byte: `+` is a space, a `%` without two hex digits stands for itself.
struct Decoded<'a>(&'a [u8]);

impl Iterator for Decoded<'_> {
    type Item = u8;

    fn next(&mut self) -> Option<u8> {
        let (&first, behind) = self.0.split_first()?;
        self.0 = behind;
        match first {
            b'+' => Some(b' '),
            b'%' => match behind {
                [high, low, behind @ ..] => match (hex(*high), hex(*low)) {
                    (Some(high), Some(low)) => {
                        self.0 = behind;
                        Some(high << 4 | low)
                    }
                    _ => Some(b'%'),
                },
                _ => Some(b'%'),
            },
            _ => Some(first),
        }
    }
}

/// The value of a hexadecimal digit.
pub(crate) fn hex(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

/// Lengths that have their own entry in [`NameSet::firsts`]; longer names share the last one.
const LENGTHS: usize = 48;

fn first_bit(byte: u8) -> u32 {
    1 << (byte & 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn field_names_fold_case_and_underscore() {
        let set = NameSet::new(["Authorization", "X_Api-Key", "x-api-key", ""]);
        assert_eq!(
            set.iter().collect::<Vec<_>>(),
            ["authorization", "x-api-key"]
        );
        for (name, expected) in [
            ("authorization", true),
            ("AUTHORIZATION", true),
            ("X-API_KEY", true),
            ("x_api_key", true),
            ("x-api-keys", false),
            ("authorizatio", false),
            ("xauthorization", false),
            ("!uthorization", false),
            ("", false),
        ] {
            assert_eq!(set.contains(name.as_bytes()), expected, "{name}");
        }
        assert!(NameSet::default().is_empty());
        let long = "x".repeat(200);
        assert!(NameSet::new([&long]).contains(long.as_bytes()));
        assert!(!NameSet::new([&long]).contains(&long.as_bytes()[1..]));
    }

    #[test]
    fn parameter_names_compare_decoded() {
        let set = ParamSet::new(["key", "api_key", "Access_Token"]);
        for (name, expected) in [
            ("key", true),
            ("KEY", true),
            ("k%65y", true),
            ("%6B%65%79", true),
            ("%4b%45%59", true),
            ("+key", true),
            ("key%20", true),
            ("api_key", true),
            ("api%5Fkey", true),
            ("access_token", true),
            ("api-key", false),
            ("keys", false),
            ("ke", false),
            ("k%2565y", false),
            ("key%", false),
            ("key%6", false),
            ("ke%zz", false),
            ("k ey", false),
            ("", false),
            ("%20", false),
        ] {
            assert_eq!(set.contains(name.as_bytes()), expected, "{name}");
        }
        assert!(ParamSet::default().is_empty());
    }
}
