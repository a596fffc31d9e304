//! How long answers take: models of latency, per path prefix, seeded and replayable.
//!
//! The time runs from when the request (with its body, where the endpoint reads one) has arrived
//! until the answer is begun. It applies to every answer of the API, refusals included, and to
//! none of the control port. What a model draws for the n-th request of its rule depends on the
//! seed and on n alone.

mod histogram;
mod model;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::document::{self, RULES_MAX};

pub use histogram::{Recorded, Unit};
pub use model::Model;

/// Which model applies to which requests.
#[derive(Debug)]
pub struct Latency {
    seed: u64,
    /// Longest prefix first.
    rules: Vec<Rule>,
}

#[derive(Debug)]
struct Rule {
    prefix: String,
    model: Model,
    drawn: AtomicU64,
}

/// What `PUT /__latency` takes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    seed: Option<u64>,
    rules: Vec<Value>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleData {
    #[serde(default)]
    path: String,
    model: Option<String>,
    histogram: Option<String>,
    unit: Option<Unit>,
}

impl Latency {
    /// Reads the document that the control port was given. `seed` serves if it names none.
    ///
    /// # Errors
    ///
    /// A sentence that says what is wrong and what was expected.
    pub fn from_json(text: &[u8], seed: u64) -> Result<Self, String> {
        let document: Document = document::read(text, EXAMPLE)?;
        let rules = document::each_rule(document.rules, |rule| {
            let data: RuleData = document::read_value(&rule, "it", RULE_EXAMPLE)?;
            document::check_prefix(&data.path)?;
            let model = match (&data.model, &data.histogram) {
                (Some(_), None) if data.unit.is_some() => {
                    return Err("`unit` belongs to `histogram`; a model names its own units".into());
                }
                (Some(model), None) => Model::parse(model, false)?,
                (None, Some(text)) => {
                    Model::Recorded(Recorded::parse(text, data.unit.unwrap_or_default())?)
                }
                _ => {
                    return Err(format!(
                        "it needs either `model` or `histogram`; example: {RULE_EXAMPLE}"
                    ));
                }
            };
            Ok((data.path, model))
        })?;
        Latency::new(document.seed.unwrap_or(seed), rules)
    }

    /// Reads `--latency` options: `MODEL` or `/PREFIX=MODEL`.
    ///
    /// # Errors
    ///
    /// A sentence that says what is wrong; or a file that cannot be read.
    pub fn from_options(options: &[String], seed: u64) -> Result<Self, String> {
        let mut rules = Vec::new();
        for option in options {
            let (prefix, model) = match option.split_once('=') {
                Some((prefix, model)) if prefix.starts_with('/') => (prefix, model),
                _ => ("", option.as_str()),
            };
            document::check_prefix(prefix)?;
            rules.push((prefix.to_string(), Model::parse(model, true)?));
        }
        Latency::new(seed, rules)
    }

    fn new(seed: u64, rules: Vec<(String, Model)>) -> Result<Self, String> {
        if rules.len() > RULES_MAX {
            return Err(format!(
                "at most {RULES_MAX} rules; there are {}",
                rules.len()
            ));
        }
        let mut rules: Vec<Rule> = rules
            .into_iter()
            .map(|(prefix, model)| Rule {
                prefix,
                model,
                drawn: AtomicU64::new(0),
            })
            .collect();
        rules.sort_by_key(|rule| std::cmp::Reverse(rule.prefix.len()));
        if let Some(pair) = rules
            .windows(2)
            .find(|pair| pair[0].prefix == pair[1].prefix)
        {
            return Err(format!(
                "two models for the path prefix `{}`",
                pair[0].prefix
            ));
        }
        Ok(Latency { seed, rules })
    }

    /// How long the answer to the request at hand takes; `None` if no rule fits.
    pub fn draw(&self, path: &[u8]) -> Option<Duration> {
        let (stream, rule) = (0..)
            .zip(&self.rules)
            .find(|(_, rule)| path.starts_with(rule.prefix.as_bytes()))?;
        let place = rule.drawn.fetch_add(1, Ordering::Relaxed);
        Some(rule.model.draw(self.seed, stream, place))
    }

    /// Whether nothing is ever delayed.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// The seed.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// What is in force, for `GET /__latency`.
    pub fn report(&self) -> Value {
        let rules: Vec<Value> = self
            .rules
            .iter()
            .map(|rule| {
                json!({
                    "path": rule.prefix,
                    "model": rule.model.to_string(),
                    "drawn": rule.drawn.load(Ordering::Relaxed),
                })
            })
            .collect();
        json!({"seed": self.seed, "rules": rules})
    }
}

/// What errors show.
const EXAMPLE: &str = r#"{"seed": 7, "rules": [{"path": "/v1/", "model": "fixed:20ms"}]}"#;
const RULE_EXAMPLE: &str = r#"{"path": "/v1/", "model": "fixed:20ms"}"#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_prefix_decides_and_draws_replay() {
        let text = br#"{"seed": 5, "rules": [
            {"model": "fixed:1ms"},
            {"path": "/v1/", "model": "lognormal:median=20ms,sigma=0.5"},
            {"path": "/v1/slow", "histogram": "100 1\n", "unit": "ms"}]}"#;
        let latency = Latency::from_json(text, 9).unwrap();
        assert_eq!(latency.draw(b"/ok"), Some(Duration::from_millis(1)));
        assert_eq!(latency.draw(b"/v1/slow"), Some(Duration::from_millis(100)));
        let again = Latency::from_json(text, 1).unwrap();
        for _ in 0..100 {
            assert_eq!(latency.draw(b"/v1/x"), again.draw(b"/v1/x"));
        }
        assert_eq!(latency.report()["seed"], 5);
    }

    #[test]
    fn errors_are_sentences() {
        for (text, part) in [
            (
                r#"{"rules": [{"modle": "fixed:1ms"}]}"#,
                "rule 1: it has an unknown field `modle`",
            ),
            ("[7, []]", "the document is a list: expected an object"),
            (
                r#"{"seed": -7, "rules": []}"#,
                "`seed` is -7: expected a whole number",
            ),
            (
                r#"{"rules": [{"model": "fixed:1ms"}, ["/x", "fixed:1ms"]]}"#,
                "rule 2: it is a list: expected an object",
            ),
            (
                r#"{"rules": [{"histogram": "1 1\n", "unit": "h"}]}"#,
                "rule 1: `unit` cannot be `h`: expected `ns`, `us`, `ms` or `s`",
            ),
            (r#"{"rules": [{}]}"#, "either `model` or `histogram`"),
            (
                r#"{"rules": [{"path": "v1", "model": "fixed:1ms"}]}"#,
                "begin with `/`",
            ),
            (
                r#"{"rules": [{"model": "fixed:1ms"}, {"model": "fixed:2ms"}]}"#,
                "two models",
            ),
            (
                r#"{"rules": [{"model": "fixed:1ms", "unit": "ms"}]}"#,
                "`unit` belongs",
            ),
            (
                r#"{"rules": [{"model": "histogram:/etc/passwd"}]}"#,
                "`histogram`",
            ),
        ] {
            let error = Latency::from_json(text.as_bytes(), 0).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
        let options = ["/v1/=fixed:1ms".to_string(), "fixed:2ms".to_string()];
        let latency = Latency::from_options(&options, 0).unwrap();
        assert_eq!(latency.draw(b"/x"), Some(Duration::from_millis(2)));
        assert_eq!(latency.draw(b"/v1/x"), Some(Duration::from_millis(1)));
    }
}
