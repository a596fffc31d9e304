//! One rule: which events it is about, how many of them it takes, and what it does to them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Deserialize;
use serde_json::{Value, json};

use super::Abilities;
use super::action::{Action, Moment};
use crate::document;
use crate::draws::uniform;
use crate::http::Head;
use crate::http::response::is_field_name;

/// A rule and its counts.
#[derive(Debug)]
pub struct Rule {
    /// What is done.
    pub action: Arc<Action>,
    data: RuleData,
    given: Value,
    /// Events that fitted path, method and server name.
    seen: AtomicU64,
    /// Events that were taken.
    applied: AtomicU64,
}

/// A rule as it is written.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuleData {
    /// For people.
    #[serde(default, rename = "name")]
    _name: Option<String>,
    path: Option<String>,
    method: Option<String>,
    sni: Option<String>,
    nth: Option<u64>,
    every: Option<u64>,
    probability: Option<f64>,
    count: Option<u64>,
    action: Action,
}

impl Rule {
    /// Checks what the types cannot say.
    pub fn new(data: RuleData, given: Value, abilities: Abilities) -> Result<Self, String> {
        if data.nth == Some(0) || data.every == Some(0) {
            return Err("`nth` and `every` count from 1".into());
        }
        if data.count == Some(0) {
            return Err(
                "`count` is 0: the rule would never act; expected 1 or more, as in `\"count\": 1`, \
                 or no `count` for ever"
                    .into(),
            );
        }
        if let (Some(nth), Some(every)) = (data.nth, data.every)
            && !nth.is_multiple_of(every)
        {
            return Err(format!(
                "`nth` {nth} is no multiple of `every` {every}: the rule would never act; \
                 expected one of the two"
            ));
        }
        if let Some(method) = data.method.as_deref() {
            check_method(method)?;
        }
        if data.probability.is_some_and(|p| !(0.0..=1.0).contains(&p)) {
            return Err("`probability` is a number from 0 to 1".into());
        }
        match data.path.as_deref() {
            Some("") => return Err("`path` is empty; expected a prefix, as in `/v1/`".into()),
            Some(path) => document::check_prefix(path)?,
            None => {}
        }
        let moment = data.action.moment();
        if moment != Moment::Request && (data.path.is_some() || data.method.is_some()) {
            return Err(format!(
                "`{}` happens before there is a request: it has no `path` or `method`",
                data.action.kind()
            ));
        }
        if data.sni.is_some() && !abilities.tls {
            return Err("there is no `sni`: this mock speaks clear text".into());
        }
        let picky = data.sni.is_some()
            || data.nth.is_some()
            || data.every.is_some()
            || data.probability.is_some()
            || data.count.is_some();
        if matches!(data.action, Action::Refuse) && picky {
            return Err(
                "`refuse` closes the listening sockets, and cannot pick connections: use `hang_up`"
                    .into(),
            );
        }
        data.action.check(abilities)?;
        Ok(Rule {
            action: Arc::new(data.action.clone()),
            data,
            given,
            seen: AtomicU64::new(0),
            applied: AtomicU64::new(0),
        })
    }

    /// Whether it acts as soon as a connection is there.
    pub fn wants_accept(&self) -> bool {
        self.action.moment() == Moment::Accept && self.data.sni.is_none()
    }

    /// Whether it acts once the ClientHello is known.
    pub fn wants_hello(&self) -> bool {
        match self.action.moment() {
            Moment::Hello => true,
            Moment::Accept => self.data.sni.is_some(),
            Moment::Request | Moment::Never => false,
        }
    }

    /// Whether it acts on this request.
    pub fn wants_request(&self, head: &Head) -> bool {
        let data = &self.data;
        self.action.moment() == Moment::Request
            && data
                .path
                .as_deref()
                .is_none_or(|path| head.path().starts_with(path.as_bytes()))
            && data
                .method
                .as_deref()
                .is_none_or(|method| head.method() == method.as_bytes())
    }

    /// Whether it is about this server name.
    pub fn names(&self, server_name: Option<&str>) -> bool {
        match (&self.data.sni, server_name) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(wanted), Some(name)) => wanted.eq_ignore_ascii_case(name),
        }
    }

    /// Counts an event that fits, and says whether to take it.
    pub fn takes(&self, seed: u64, index: u64) -> bool {
        let data = &self.data;
        let place = self.seen.fetch_add(1, Ordering::Relaxed) + 1;
        let chosen = data.nth.is_none_or(|nth| place == nth)
            && data.every.is_none_or(|every| place.is_multiple_of(every))
            && data
                .probability
                .is_none_or(|p| uniform(seed, index, place) < p);
        let left = |applied| (applied < data.count.unwrap_or(u64::MAX)).then_some(applied + 1);
        chosen
            && self
                .applied
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, left)
                .is_ok()
    }

    /// The rule as it was given, with its counts.
    pub fn report(&self) -> Value {
        let mut report = self.given.clone();
        report["seen"] = json!(self.seen.load(Ordering::Relaxed));
        report["applied"] = json!(self.applied.load(Ordering::Relaxed));
        report
    }
}

/// Methods are compared as they are written (RFC 9110, section 9.1), and all that are registered
/// are written in capitals.
fn check_method(method: &str) -> Result<(), String> {
    if !is_field_name(method.as_bytes()) {
        return Err(
            "`method` is no HTTP method; expected one, as in `\"method\": \"POST\"`".into(),
        );
    }
    if method.bytes().any(|byte| byte.is_ascii_lowercase()) {
        return Err(format!(
            "`method` is `{method}`, which no request has: methods are written in capitals; \
             expected `{}`",
            method.to_ascii_uppercase()
        ));
    }
    Ok(())
}
