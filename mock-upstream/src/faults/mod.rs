//! Things that go wrong on purpose: rules that the control port (`PUT /__faults`) or `--faults`
//! sets, each of which picks requests or connections and says what happens to them.
//!
//! The first rule that takes an event decides; the others do not see it. Rules about connections
//! act before or during the TLS handshake, rules about requests on the answer. All workers share
//! the counts, so that "the third request" is the third wherever it arrives.
//!
//! ```text
//! rule -> action        what the document says (data, checked)
//! greeting              carries out what concerns a connection
//! wreck                 stops, breaks or slows a response at a byte
//! defect                writes a response wrongly
//! alert                 TLS alerts, before and within a session
//! ```

pub mod action;
pub mod alert;
pub mod defect;
pub mod greeting;
mod rule;
pub mod wreck;

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};

pub use action::Action;
use rule::{Rule, RuleData};

use crate::document;
use crate::http::Head;

/// The rules in force.
#[derive(Debug)]
pub struct Faults {
    seed: u64,
    rules: Vec<Rule>,
}

/// What this mock can do; decides which rules make sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abilities {
    /// It speaks TLS.
    pub tls: bool,
    /// It has made its own certificate authority, and can hence make bad certificates.
    pub bad_certificates: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    seed: Option<u64>,
    rules: Vec<Value>,
}

impl Faults {
    /// Reads the document. `seed` serves if it names none.
    ///
    /// # Errors
    ///
    /// A sentence that names the rule and says what is wrong with it.
    pub fn from_json(text: &[u8], seed: u64, abilities: Abilities) -> Result<Self, String> {
        let document: Document = document::read(text, EXAMPLE)?;
        let rules = document::each_rule(document.rules, |given| {
            let data: RuleData = document::read_value(&given, "it", &example(&given))?;
            Rule::new(data, given, abilities)
        })?;
        let refuses = rules
            .iter()
            .filter(|rule| matches!(*rule.action, Action::Refuse));
        if refuses.count() > 0 && rules.len() > 1 {
            return Err(
                "`refuse` leaves nothing for other rules to do: it must stand alone".into(),
            );
        }
        Ok(Faults {
            seed: document.seed.unwrap_or(seed),
            rules,
        })
    }

    /// Whether no rule is left.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Whether the listening sockets are to be closed.
    pub fn refuses(&self) -> bool {
        self.rules
            .iter()
            .any(|rule| matches!(*rule.action, Action::Refuse))
    }

    /// What happens to a connection that has just been accepted.
    pub fn on_accept(&self) -> Option<Arc<Action>> {
        self.pick(|rule| rule.wants_accept())
    }

    /// What happens to a connection whose client asks for this name.
    pub fn on_hello(&self, server_name: Option<&str>) -> Option<Arc<Action>> {
        self.pick(|rule| rule.wants_hello() && rule.names(server_name))
    }

    /// What happens to this request.
    pub fn on_request(&self, head: &Head, server_name: Option<&str>) -> Option<Arc<Action>> {
        self.pick(|rule| rule.wants_request(head) && rule.names(server_name))
    }

    fn pick(&self, fits: impl Fn(&Rule) -> bool) -> Option<Arc<Action>> {
        (0..)
            .zip(&self.rules)
            .find(|(index, rule)| fits(rule) && rule.takes(self.seed, *index))
            .map(|(_, rule)| Arc::clone(&rule.action))
    }

    /// The rules as they were given, and how often each saw and took something.
    pub fn report(&self) -> Value {
        let rules: Vec<Value> = self.rules.iter().map(Rule::report).collect();
        json!({"seed": self.seed, "rules": rules})
    }
}

/// A rule like this one, as it should be.
fn example(given: &Value) -> String {
    let action = &given["action"];
    let kind = match action.as_object() {
        Some(fields) => fields.keys().next().map(String::as_str),
        None => action.as_str(),
    };
    let action = kind
        .and_then(Action::example)
        .unwrap_or(r#"{"reset": {"at": 100}}"#);
    format!(r#"{{"action": {action}}}"#)
}

/// What errors show.
const EXAMPLE: &str =
    r#"{"seed": 7, "rules": [{"path": "/v1/", "nth": 3, "action": {"reset": {"at": 100}}}]}"#;

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Abilities = Abilities {
        tls: true,
        bad_certificates: true,
    };

    fn head(method: &str, path: &str) -> Head {
        let mut head = Head::default();
        let text = format!("{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n");
        head.parse(text.as_bytes()).unwrap().expect("complete");
        head
    }

    #[test]
    fn rules_pick_by_place_and_count() {
        let text = br#"{"seed": 1, "rules": [
            {"path": "/v1/", "method": "POST", "nth": 2, "action": {"reset": {}}},
            {"every": 3, "count": 2, "action": {"framing": {"defect": "bare_lf"}}},
            {"sni": "a.example", "action": {"stall": {"at": 5}}}]}"#;
        let faults = Faults::from_json(text, 0, ALL).unwrap();
        let kind = |method: &str, path: &str, sni| {
            faults
                .on_request(&head(method, path), sni)
                .map(|action| action.kind())
        };
        assert_eq!(kind("POST", "/v1/a", None), None);
        assert_eq!(kind("POST", "/v1/a", None), Some("reset"));
        assert_eq!(kind("POST", "/v1/a", None), None);
        // The second rule has seen the first and the third.
        assert_eq!(kind("GET", "/x", None), Some("framing"));
        assert_eq!(kind("GET", "/x", Some("A.example")), Some("stall"));
        assert_eq!(faults.report()["rules"][1]["applied"], 1);
        assert_eq!(faults.report()["rules"][0]["seen"], 3);
        for _ in 0..20 {
            kind("GET", "/x", None);
        }
        assert_eq!(faults.report()["rules"][1]["applied"], 2);
    }

    #[test]
    fn chance_replays() {
        let text = br#"{"seed": 3, "rules": [{"probability": 0.25, "action": {"drip": {"bytes": 1, "every": "1ms"}}}]}"#;
        let run = || -> Vec<bool> {
            let faults = Faults::from_json(text, 0, ALL).unwrap();
            (0..400)
                .map(|_| faults.on_request(&head("GET", "/"), None).is_some())
                .collect()
        };
        let first = run();
        assert_eq!(first, run());
        let taken = first.iter().filter(|taken| **taken).count();
        assert!((70..130).contains(&taken), "{taken}");
    }

    #[test]
    fn a_document_is_an_object_and_its_rules_a_list() {
        for (text, part) in [
            ("[7, []]", "the document is a list: expected an object"),
            (r#"{"rules": {}}"#, "`rules` is an object: expected a list"),
            (r#"{"seed": "7", "rules": []}"#, "`seed` is a text"),
            (r#"{"rules": [], "rules": []}"#, "`rules` stands twice"),
        ] {
            let error = Faults::from_json(text.as_bytes(), 0, ALL).unwrap_err();
            assert!(
                error.contains(part) && error.ends_with(EXAMPLE),
                "{text}: {error}"
            );
        }
        assert!(Faults::from_json(EXAMPLE.as_bytes(), 0, ALL).is_ok());
    }

    #[test]
    fn the_example_of_every_action_is_a_rule() {
        for kind in Action::KINDS {
            let rule = example(&json!({"action": kind}));
            assert!(rule.contains(kind), "{rule}");
            let text = format!(r#"{{"rules": [{rule}]}}"#);
            let faults = Faults::from_json(text.as_bytes(), 0, ALL).expect(&rule);
            assert_eq!(faults.rules[0].action.kind(), *kind);
        }
    }

    #[test]
    fn errors_are_sentences() {
        let plain = Abilities {
            tls: false,
            bad_certificates: false,
        };
        let own = Abilities {
            tls: true,
            bad_certificates: false,
        };
        for (rule, abilities, part) in [
            (
                r#"{"action": "explode"}"#,
                ALL,
                "`action` cannot be `explode`: expected `refuse`, `hang_up`",
            ),
            (
                r#"["a", "/x"]"#,
                ALL,
                r#"it is a list: expected an object, as in `{"field": ...}`; example: {"action": {"reset""#,
            ),
            (
                r#"{"action": {"reset": [7, "body"]}}"#,
                ALL,
                "`action.reset` is a list: expected an object",
            ),
            (
                r#"{"action": {"drip": {"bytes": "1", "every": "1ms"}}}"#,
                ALL,
                "`action.drip.bytes` is a text: expected a whole number from 0 to 4294967295",
            ),
            (
                r#"{"action": {"drip": {"bytes": 1}}}"#,
                ALL,
                r#"lacks the field `every`; example: {"action": {"drip": {"bytes": 1, "every": "1ms"}}}"#,
            ),
            (
                r#"{"action": {"reset": {"to": 1}}}"#,
                ALL,
                "`action.reset` has an unknown field `to`: expected `at` or `from`",
            ),
            (
                r#"{"action": {"reset": {}}, "nht": 1}"#,
                ALL,
                "unknown field `nht`",
            ),
            (r#"{"action": {"reset": {}}, "nth": 0}"#, ALL, "`nth`"),
            (
                r#"{"action": {"reset": {}}, "probability": 2}"#,
                ALL,
                "from 0 to 1",
            ),
            (
                r#"{"action": {"reset": {}}, "path": "x"}"#,
                ALL,
                "begin with `/`",
            ),
            (
                r#"{"action": "silence", "path": "/x"}"#,
                ALL,
                "before there is a request",
            ),
            (r#"{"action": "switch", "count": 0}"#, ALL, "`count` is 0"),
            (
                r#"{"action": "switch", "method": "get"}"#,
                ALL,
                "expected `GET`",
            ),
            (
                r#"{"action": "switch", "method": "Post"}"#,
                ALL,
                "expected `POST`",
            ),
            (
                r#"{"action": "switch", "method": "GET /"}"#,
                ALL,
                "no HTTP method",
            ),
            (
                r#"{"action": "switch", "method": ""}"#,
                ALL,
                "no HTTP method",
            ),
            (
                r#"{"action": "switch", "path": "/x?y=1"}"#,
                ALL,
                "fits no path",
            ),
            (
                r#"{"action": "switch", "path": ""}"#,
                ALL,
                "`path` is empty",
            ),
            (
                r#"{"action": "switch", "nth": 3, "every": 2}"#,
                ALL,
                "no multiple of `every` 2",
            ),
            (
                r#"{"action": {"drip": {"bytes": 1, "every": "0s"}}}"#,
                ALL,
                "`drip` would do nothing with this value of `every`; example: {",
            ),
            (
                r#"{"action": {"stall": {"time": "0s"}}}"#,
                ALL,
                "do nothing with this value of `time`",
            ),
            (
                r#"{"action": {"slow_handshake": {"delay": "0ms"}}}"#,
                ALL,
                "do nothing with this value of `delay`",
            ),
            (
                r#"{"action": {"flood": {"count": 0}}}"#,
                ALL,
                "do nothing with this value of `count`",
            ),
            (
                r#"{"action": {"extra_bytes": {"text": ""}}}"#,
                ALL,
                "do nothing with this value of `text`",
            ),
            (
                r#"{"action": {"large_head": {"bytes": 0}}}"#,
                ALL,
                "do nothing with this value of `bytes`",
            ),
            (r#"{"action": "refuse", "count": 1}"#, ALL, "`refuse`"),
            (r#"{"action": "garbage_hello"}"#, plain, "clear text"),
            (
                r#"{"action": {"reset": {}}, "sni": "a"}"#,
                plain,
                "clear text",
            ),
            (
                r#"{"action": {"certificate": {"flaw": "expired"}}}"#,
                own,
                "--self-signed",
            ),
            (
                r#"{"action": {"flood": {"count": 1, "status": 200}}}"#,
                ALL,
                "102 to 199",
            ),
            (
                r#"{"action": {"drip": {"bytes": 0, "every": "1ms"}}}"#,
                ALL,
                "at least one byte",
            ),
        ] {
            let text = format!(r#"{{"rules": [{rule}]}}"#);
            let error = Faults::from_json(text.as_bytes(), 0, abilities).unwrap_err();
            assert!(
                error.starts_with("rule 1: ") && error.contains(part),
                "{rule}: {error}"
            );
        }
    }
}
