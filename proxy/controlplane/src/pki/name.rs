//! [`HostName`]: a DNS name that may stand in a certificate.

use std::net::IpAddr;

use super::PkiError;

/// A DNS name in lower case, without a trailing dot; perhaps a wildcard (`*.example.com`).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct HostName(String);

impl HostName {
    /// Checks and normalises one name.
    ///
    /// # Errors
    /// IP addresses (our certificates exclude them), names that are not in ASCII form, wildcards
    /// anywhere but as the whole first label, and anything that DNS would not carry.
    pub(super) fn parse(given: &str) -> Result<HostName, PkiError> {
        let refuse = |problem: &str| {
            Err(PkiError::Host {
                host: given.to_owned(),
                problem: problem.to_owned(),
            })
        };
        let unbracketed = given.trim_start_matches('[').trim_end_matches(']');
        if unbracketed.parse::<IpAddr>().is_ok() {
            return refuse(
                "is an IP address, which this certificate authority excludes; give the listener \
                 a name and let callers use that",
            );
        }
        if !given.is_ascii() {
            return refuse("is not ASCII; write it in its `xn--` form");
        }
        let name = given
            .strip_suffix('.')
            .unwrap_or(given)
            .to_ascii_lowercase();
        let base = name.strip_prefix("*.").unwrap_or(&name);
        if base.is_empty() {
            return refuse("is empty; write a DNS name such as api.example.com");
        }
        if base.contains('*') {
            return refuse("has a wildcard that is not the whole first label; write *.example.com");
        }
        // RFC 1035, 2.3.4, less the root's length byte.
        if name.len() > NAME_BYTES_MAX {
            return refuse("is longer than 253 characters");
        }
        if !base.split('.').all(is_label) {
            return refuse(
                "is not a DNS name: labels of 1 to 63 letters, digits, `-` and `_`, joined by dots \
                 (no scheme, port or path)",
            );
        }
        // A name whose last label is a number is read as an IPv4 address by many clients (WHATWG URL).
        if base
            .rsplit('.')
            .next()
            .is_some_and(|tld| tld.bytes().all(|b| b.is_ascii_digit()))
        {
            return refuse("ends in a number, so clients take it for an IP address");
        }
        Ok(HostName(name))
    }

    /// Checks a list, sorts it and drops duplicates.
    pub(super) fn parse_all<S: AsRef<str>>(given: &[S]) -> Result<Vec<HostName>, PkiError> {
        let mut names = given
            .iter()
            .map(|name| HostName::parse(name.as_ref()))
            .collect::<Result<Vec<_>, _>>()?;
        names.sort();
        names.dedup();
        Ok(names)
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    /// The name without `*.`: the smallest name constraint (RFC 5280, 4.2.1.10) that admits it.
    pub(super) fn base(&self) -> &str {
        self.0.strip_prefix("*.").unwrap_or(&self.0)
    }

    /// Whether a name constraint of this domain admits the name.
    pub(super) fn is_within(&self, domain: &str) -> bool {
        is_within(self.base(), domain)
    }
}

/// RFC 5280, 4.2.1.10: "Any DNS name that can be constructed by simply adding zero or more labels
/// to the left-hand side of the name satisfies the name constraint."
fn is_within(name: &str, domain: &str) -> bool {
    match name.strip_suffix(domain) {
        Some(rest) => rest.is_empty() || rest.ends_with('.'),
        None => false,
    }
}

/// The fewest domains that admit all these names, sorted.
pub(super) fn minimal_cover<'a>(names: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut bases: Vec<&str> = names.collect();
    // Shorter names first, so that whatever covers a name has been kept before it comes.
    bases.sort_by_key(|base| (base.len(), *base));
    bases.dedup();
    let mut kept = std::collections::BTreeSet::new();
    for base in bases {
        let covered = ancestors(base).any(|ancestor| kept.contains(ancestor));
        if !covered {
            kept.insert(base.to_owned());
        }
    }
    kept.into_iter().collect()
}

/// `a.b.c`, `b.c`, `c`.
fn ancestors(name: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(name), |name| {
        name.split_once('.').map(|(_, rest)| rest)
    })
}

fn is_label(label: &str) -> bool {
    (1..=LABEL_BYTES_MAX).contains(&label.len())
        && label
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        && !label.starts_with('-')
        && !label.ends_with('-')
}

/// A longer name is refused (RFC 1035, 2.3.4).
const NAME_BYTES_MAX: usize = 253;
/// A name with a longer label is refused (RFC 1035, 2.3.4).
const LABEL_BYTES_MAX: usize = 63;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_normalised_or_refused() {
        for (given, kept) in [
            ("API.Example.COM", "api.example.com"),
            ("api.example.com.", "api.example.com"),
            ("*.example.com", "*.example.com"),
            ("claviger.internal", "claviger.internal"),
            ("_acme.example.com", "_acme.example.com"),
            ("xn--mnchen-3ya.example", "xn--mnchen-3ya.example"),
        ] {
            assert_eq!(HostName::parse(given).unwrap().as_str(), kept);
        }
        for (given, why) in [
            ("127.0.0.1", "IP address"),
            ("[::1]", "IP address"),
            ("::1", "IP address"),
            ("", "empty"),
            (".", "empty"),
            ("*.", "wildcard"),
            ("*", "wildcard"),
            ("a.*.example.com", "wildcard"),
            ("api*.example.com", "wildcard"),
            ("https://api.example.com", "not a DNS name"),
            ("api.example.com:443", "not a DNS name"),
            ("api..example.com", "not a DNS name"),
            ("-a.example.com", "not a DNS name"),
            ("a-.example.com", "not a DNS name"),
            ("münchen.example", "xn--"),
            ("1.2.3.256", "ends in a number"),
        ] {
            let error = HostName::parse(given).unwrap_err().to_string();
            assert!(error.contains(why), "{given}: {error}");
        }
        assert!(HostName::parse(&format!("{}.example.com", "a".repeat(64))).is_err());
        assert!(HostName::parse(&["a"; 128].join(".")).is_err());
    }

    #[test]
    fn within_counts_whole_labels() {
        let within = |name: &str, domain: &str| HostName::parse(name).unwrap().is_within(domain);
        assert!(within("example.com", "example.com"));
        assert!(within("a.b.example.com", "example.com"));
        assert!(within("*.example.com", "example.com"));
        assert!(!within("badexample.com", "example.com"));
        assert!(!within("example.com", "a.example.com"));
        assert!(!within("*.example.com", "a.example.com"));
    }

    #[test]
    fn a_cover_keeps_the_widest_only() {
        let cover = minimal_cover(
            [
                "a.example.com",
                "example.com",
                "b.a.example.com",
                "x.net",
                "badexample.com",
                "x.net",
            ]
            .into_iter(),
        );
        assert_eq!(cover, ["badexample.com", "example.com", "x.net"]);
    }
}
