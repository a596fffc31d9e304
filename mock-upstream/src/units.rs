//! Lengths of time as people write them: `250us`, `1.5ms`, `20s`.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A length of time in a control document: text such as `20ms`. At most [`SPAN_MAX`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Span(pub Duration);

impl Span {
    /// Reads `1.5ms` and the like. The error says what was expected.
    pub fn parse(text: &str) -> Result<Self, String> {
        let expected = || {
            format!(
                "`{text}` is no length of time: expected a number and ns, us, ms, s, m or h, as in `20ms`"
            )
        };
        let digits = text
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .ok_or_else(expected)?;
        let number: f64 = text[..digits].parse().map_err(|_| expected())?;
        let nanos = match &text[digits..] {
            "ns" => 1.0,
            "us" | "\u{b5}s" => 1e3,
            "ms" => 1e6,
            "s" => 1e9,
            "m" => 60e9,
            "h" => 3600e9,
            _ => return Err(expected()),
        };
        let nanos = number * nanos;
        if nanos > SPAN_MAX.as_nanos() as f64 {
            return Err(format!(
                "`{text}` is too long: at most {}h",
                SPAN_MAX.as_secs() / 3600
            ));
        }
        Ok(Span(Duration::from_nanos(nanos.round() as u64)))
    }
}

impl TryFrom<String> for Span {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Span::parse(&text)
    }
}

impl From<Span> for String {
    fn from(span: Span) -> String {
        span.to_string()
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = self.0.as_nanos();
        match nanos {
            0 => write!(f, "0s"),
            _ if nanos.is_multiple_of(1_000_000_000) => write!(f, "{}s", nanos / 1_000_000_000),
            _ if nanos.is_multiple_of(1_000_000) => write!(f, "{}ms", nanos / 1_000_000),
            _ if nanos.is_multiple_of(1_000) => write!(f, "{}us", nanos / 1_000),
            _ => write!(f, "{nanos}ns"),
        }
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Nothing here waits for longer, whatever it is told: a day.
pub const SPAN_MAX: Duration = Duration::from_secs(24 * 3600);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes() {
        for (text, nanos, canonical) in [
            ("250us", 250_000, "250us"),
            ("1.5ms", 1_500_000, "1500us"),
            ("0ms", 0, "0s"),
            ("2m", 120_000_000_000, "120s"),
            ("7ns", 7, "7ns"),
        ] {
            let span = Span::parse(text).unwrap();
            assert_eq!(span.0.as_nanos(), nanos);
            assert_eq!(span.to_string(), canonical);
        }
        for text in ["", "5", "ms", "-1s", "1 s", "1d", "1.2.3s", "25h", "infs"] {
            assert!(Span::parse(text).is_err(), "{text}");
        }
    }
}
