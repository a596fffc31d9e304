//! Rate limits: so many requests per window and key, and the fields that tell clients about it.
//!
//! A window is fixed, as GitHub's and SendGrid's are: it begins with a key's first request and ends
//! after its length, whatever happens in between. The state is shared by all workers, behind a lock
//! that is taken only while limits are in force. How a style announces its limits and refuses
//! beyond them is data in `personalities.json`.
//!
//! What it lacks: limits by tokens or bytes, and limits shared between processes.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::document;
use crate::units::Span;

/// All limits in force.
#[derive(Debug, Default)]
pub struct Limits {
    rules: Vec<Rule>,
}

#[derive(Debug)]
struct Rule {
    data: RuleData,
    windows: Mutex<HashMap<[u8; 32], Window>>,
}

/// What `PUT /__limits` and `--limits FILE` take.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    rules: Vec<Value>,
}

/// One limit.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleData {
    /// Path prefix; empty: every path.
    #[serde(default)]
    path: String,
    /// Requests per window and key; 0 refuses everything.
    requests: u64,
    /// How long a window lasts.
    per: Span,
    /// Whose fields and refusals to use; absent: those of the personality.
    style: Option<String>,
}

#[derive(Clone, Copy, Debug)]
struct Window {
    begun: Instant,
    used: u64,
}

/// Where a key stands after the request at hand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Whether the request is within the limit.
    pub allowed: bool,
    /// Requests per window.
    pub limit: u64,
    /// Requests left in this window.
    pub remaining: u64,
    /// The length of a window.
    pub window: Duration,
    /// How long until the next window.
    pub reset_in: Duration,
    /// The style that the rule names.
    pub style: Option<String>,
}

impl RuleData {
    fn read(value: &Value, styles: &[&str]) -> Result<Self, String> {
        let rule: RuleData = document::read_value(value, "it", RULE_EXAMPLE)?;
        document::check_prefix(&rule.path)?;
        if rule.per.0.is_zero() {
            return Err(format!(
                "`per` must be longer than nothing; example: {RULE_EXAMPLE}"
            ));
        }
        if let Some(style) = &rule.style
            && !styles.contains(&style.as_str())
        {
            return Err(format!(
                "no style is called `{style}`; there are {}",
                styles.join(", ")
            ));
        }
        Ok(rule)
    }
}

impl Limits {
    /// Reads the document; `styles` are the names that exist.
    ///
    /// # Errors
    ///
    /// A sentence that says what is wrong and what was expected.
    pub fn from_json(text: &[u8], styles: &[&str]) -> Result<Self, String> {
        let document: Document = document::read(text, EXAMPLE)?;
        let rules = document::each_rule(document.rules, |rule| {
            RuleData::read(&rule, styles).map(|data| Rule {
                data,
                windows: Mutex::default(),
            })
        })?;
        Ok(Limits { rules })
    }

    /// Counts a request of this key. `None` if no rule fits; the first that fits decides.
    ///
    /// Requests beyond the limit are not counted, so that waiting until the reset is enough.
    pub fn take(&self, path: &[u8], key: &[u8], now: Instant) -> Option<Standing> {
        let rule = self
            .rules
            .iter()
            .find(|rule| path.starts_with(rule.data.path.as_bytes()))?;
        let (limit, length) = (rule.data.requests, rule.data.per.0);
        let mut windows = rule.windows.lock().unwrap_or_else(PoisonError::into_inner);
        let key: [u8; 32] = Sha256::digest(key).into();
        let ended = |window: &Window| now.saturating_duration_since(window.begun) >= length;
        if windows.len() >= KEYS_MAX && !windows.contains_key(&key) {
            windows.retain(|_, window| !ended(window));
            if windows.len() >= KEYS_MAX {
                let oldest = windows.iter().min_by_key(|(_, window)| window.begun);
                let oldest = oldest.map(|(key, _)| *key);
                oldest.map(|key| windows.remove(&key));
            }
        }
        let fresh = Window {
            begun: now,
            used: 0,
        };
        let window = windows.entry(key).or_insert(fresh);
        if ended(window) {
            *window = fresh;
        }
        let allowed = window.used < limit;
        window.used += u64::from(allowed);
        Some(Standing {
            allowed,
            limit,
            remaining: limit - window.used,
            window: length,
            reset_in: length.saturating_sub(now.saturating_duration_since(window.begun)),
            style: rule.data.style.clone(),
        })
    }

    /// Whether nothing is limited.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// What is in force, for `GET /__limits`. Keys are counted, not named.
    pub fn report(&self) -> Value {
        let rules: Vec<Value> = self
            .rules
            .iter()
            .map(|rule| {
                let windows = rule.windows.lock().unwrap_or_else(PoisonError::into_inner);
                json!({
                    "path": rule.data.path,
                    "requests": rule.data.requests,
                    "per": rule.data.per,
                    "style": rule.data.style,
                    "keys": windows.len(),
                })
            })
            .collect();
        json!({"rules": rules})
    }
}

impl Standing {
    /// What a style's template may say about it: `limit.NAME`. `unix` is the time now, in seconds.
    pub fn value(&self, name: &str, unix: u64) -> Option<String> {
        // Rounded up: who comes back then finds a new window.
        let reset_seconds = self.reset_in.as_nanos().div_ceil(1_000_000_000) as u64;
        let number = match name {
            "limit" => self.limit,
            "remaining" => self.remaining,
            "used" => self.limit - self.remaining,
            "window_seconds" => self.window.as_secs().max(1),
            "reset_seconds" => reset_seconds,
            "retry_after" => reset_seconds.max(1),
            "retry_after_ms" => self.reset_in.as_nanos().div_ceil(1_000_000) as u64,
            "reset_unix" => unix + reset_seconds,
            "reset_rfc3339" => return Some(crate::http::date::rfc3339(unix + reset_seconds)),
            "reset_text" => return Some(duration_text(self.reset_in)),
            _ => return None,
        };
        Some(number.to_string())
    }
}

/// A length of time as OpenAI writes it: `17ms`, `6.5s`, `2m0s`, `1h0m3s`.
fn duration_text(time: Duration) -> String {
    let millis = time.as_nanos().div_ceil(1_000_000) as u64;
    if millis < 1000 {
        return format!("{millis}ms");
    }
    let (minutes, millis) = (millis / 60_000, millis % 60_000);
    let seconds = match millis % 1000 {
        0 => format!("{}s", millis / 1000),
        rest => format!(
            "{}.{}s",
            millis / 1000,
            format!("{rest:03}").trim_end_matches('0')
        ),
    };
    match (minutes / 60, minutes % 60) {
        (0, 0) => seconds,
        (0, minutes) => format!("{minutes}m{seconds}"),
        (hours, minutes) => format!("{hours}h{minutes}m{seconds}"),
    }
}

/// What errors show.
const EXAMPLE: &str = r#"{"rules": [{"path": "/v1/", "requests": 100, "per": "60s"}]}"#;
const RULE_EXAMPLE: &str = r#"{"path": "/v1/", "requests": 100, "per": "60s"}"#;

/// Keys remembered per rule. Beyond that, those whose window has ended are forgotten, and if
/// there are none, the one whose window is the oldest: it starts afresh when it comes back.
const KEYS_MAX: usize = 10_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(requests: u64, per: &str) -> Limits {
        let text =
            format!(r#"{{"rules": [{{"path": "/v1/", "requests": {requests}, "per": "{per}"}}]}}"#);
        Limits::from_json(text.as_bytes(), &[]).unwrap()
    }

    #[test]
    fn each_key_has_its_own_window() {
        let limits = limits(2, "60s");
        let now = Instant::now();
        let take = |key: &[u8], at: u64| {
            let standing = limits
                .take(b"/v1/x", key, now + Duration::from_secs(at))
                .unwrap();
            (
                standing.allowed,
                standing.remaining,
                standing.reset_in.as_secs(),
            )
        };
        assert_eq!(take(b"a", 0), (true, 1, 60));
        assert_eq!(take(b"a", 10), (true, 0, 50));
        assert_eq!(take(b"a", 59), (false, 0, 1));
        assert_eq!(take(b"b", 59), (true, 1, 60));
        assert_eq!(take(b"a", 60), (true, 1, 60));
        assert_eq!(limits.take(b"/v2", b"a", now), None);
    }

    #[test]
    fn forgets_the_oldest_when_there_are_too_many() {
        let limits = limits(1, "1h");
        let now = Instant::now();
        for key in 0..=KEYS_MAX as u64 {
            let later = now + Duration::from_micros(key);
            assert!(
                limits
                    .take(b"/v1/", &key.to_be_bytes(), later)
                    .unwrap()
                    .allowed
            );
        }
        assert_eq!(limits.report()["rules"][0]["keys"], KEYS_MAX);
        assert!(
            limits
                .take(b"/v1/", &0u64.to_be_bytes(), now + Duration::from_secs(1))
                .unwrap()
                .allowed
        );
        let last = (KEYS_MAX as u64).to_be_bytes();
        assert!(
            !limits
                .take(b"/v1/", &last, now + Duration::from_secs(1))
                .unwrap()
                .allowed
        );
    }

    #[test]
    fn tells_times_in_every_dialect() {
        let standing = Standing {
            allowed: false,
            limit: 5,
            remaining: 0,
            window: Duration::from_secs(60),
            reset_in: Duration::from_millis(1500),
            style: None,
        };
        for (name, expected) in [
            ("limit", "5"),
            ("used", "5"),
            ("retry_after", "2"),
            ("retry_after_ms", "1500"),
            ("reset_unix", "1002"),
            ("reset_text", "1.5s"),
            ("reset_rfc3339", "1970-01-01T00:16:42Z"),
        ] {
            assert_eq!(
                standing.value(name, 1000).as_deref(),
                Some(expected),
                "{name}"
            );
        }
        assert_eq!(standing.value("other", 0), None);
        assert_eq!(duration_text(Duration::from_millis(17)), "17ms");
        assert_eq!(duration_text(Duration::from_secs(120)), "2m0s");
        assert_eq!(duration_text(Duration::from_secs(3603)), "1h0m3s");
    }

    #[test]
    fn errors_are_sentences() {
        for (text, part) in [
            (
                r#"{"rules": [{"requests": 1, "per": "1"}]}"#,
                "no length of time",
            ),
            (
                r#"{"rules": [{"requests": 1, "per": "0s"}]}"#,
                "longer than nothing",
            ),
            (
                r#"{"rules": [{"requests": 1}]}"#,
                r#"rule 1: it lacks the field `per`; example: {"path""#,
            ),
            ("[[]]", "the document is a list: expected an object"),
            (
                r#"{"rules": [{"requests": 1, "per": "1s"}, ["/", 1, "1s"]]}"#,
                "rule 2: it is a list: expected an object",
            ),
            (
                r#"{"rules": [{"requests": "1", "per": "1s"}]}"#,
                "rule 1: `requests` is a text: expected a whole number",
            ),
            (
                r#"{"rules": [{"requests": 1, "per": 60}]}"#,
                "rule 1: `per` is 60: expected a text in double quotes",
            ),
            (
                r#"{"rules": [{"path": "/x?y", "requests": 1, "per": "1s"}]}"#,
                "rule 1: the path prefix `/x?y` fits no path",
            ),
            (
                r#"{"rules": [{"requests": 1, "per": "1s", "style": "x"}]}"#,
                "there are openai",
            ),
            (
                r#"{"rules": [{"requests": 1, "per": "1s", "burst": 2}]}"#,
                "unknown field `burst`",
            ),
        ] {
            let error = Limits::from_json(text.as_bytes(), &["openai"]).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }
}
