//! Personalities: endpoints shaped like well-known APIs, and the ways in which those APIs refuse.
//!
//! All of it is data (`personalities.json`; more files by `--personalities`). A personality has a
//! style, which holds its refusals, and routes. A route's answer is a JSON template, in which
//! `{{expression}}` or `{{expression|default}}` is replaced; a string that is nothing but one
//! expression becomes whatever JSON value the expression has. Expressions:
//!
//! | expression         | meaning                                                             |
//! |--------------------|---------------------------------------------------------------------|
//! | `now`              | seconds since the Unix epoch                                        |
//! | `unique`           | a text that no other answer of this process has                     |
//! | `host`             | the `Host` field                                                    |
//! | `path.NAME`        | what `{NAME}` in the route's path matched                           |
//! | `query.NAME`       | the first query parameter of this name                              |
//! | `header.NAME`      | the first header field of this name                                 |
//! | `body.A.B.0.last`  | a value within the JSON body (or form); `last` is an array's last   |
//! | `number EXPR`      | the same as a number, where it is text: forms know nothing else     |
//! | `tokens.A.B+N,C`   | N, and a token for every four bytes of text under `body.A.B`; sums  |
//!
//! A member called `name?EXPR` is there, as `name`, if the expression is true, and so is an event
//! with `"when": "EXPR"`. In a style, `limited` is the refusal beyond a rate limit, and
//! `limit_fields` go with every answer while a limit applies; both know `{{limit.NAME}}`, with the
//! names `limit`, `remaining`, `used`, `window_seconds`, `reset_seconds`, `reset_unix`,
//! `reset_rfc3339`, `reset_text`, `retry_after` and `retry_after_ms`.
//!
//! Keys are never available to templates by any other way than those; the built-in data uses none
//! of the places where keys stand.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use crate::http::{Head, uri};
use crate::keys::Access;
use crate::limits::Standing;
use crate::redact::latin1;
use crate::units::Span;

/// All styles and routes.
#[derive(Debug)]
pub struct Catalogue {
    styles: BTreeMap<String, Style>,
    routes: Vec<Route>,
}

/// A ready-made answer to a request without a valid key.
#[derive(Debug)]
pub struct Refusal {
    /// The status code.
    pub status: u16,
    /// Fields besides `Content-Type` and the framing.
    pub fields: Vec<(String, String)>,
    /// The JSON content.
    pub content: Vec<u8>,
}

/// A route that fits a request, with what its path captured.
pub struct RouteMatch<'c> {
    route: &'c Route,
    captures: Vec<(&'c str, String)>,
}

/// A stream of server-sent events, ready to be sent.
pub struct EventStream {
    /// The events, with their line ends.
    pub events: Vec<String>,
    /// The pause between two events.
    pub gap: Duration,
}

/// What templates may say about a request.
pub struct Facts<'r> {
    head: &'r Head,
    body: Value,
    now: u64,
    unique: String,
}

/// How a personality treats idempotency keys.
#[derive(Debug)]
pub struct Idempotency {
    /// The field in which clients send them.
    pub field: String,
    /// How long an answer is given again.
    pub keep: Span,
    /// The refusal if the key was used with another request.
    pub mismatch: Refusal,
    /// The refusal while the first request is under way.
    pub in_progress: Refusal,
}

#[derive(Debug)]
struct Style {
    missing: Refusal,
    wrong: Refusal,
    limited: Option<RefusalData>,
    /// Fields of every answer while a limit applies; templates of `limit.NAME`.
    limit_fields: BTreeMap<String, String>,
}

#[derive(Debug)]
struct Route {
    style: String,
    /// Host names for which this route goes before those of others; empty: no preference.
    hosts: Vec<String>,
    path: Vec<Segment>,
    idempotency: Option<Arc<Idempotency>>,
    data: RouteData,
}

#[derive(Debug, PartialEq, Eq)]
enum Segment {
    Literal(String),
    Capture {
        prefix: String,
        name: String,
        suffix: String,
    },
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileData {
    #[serde(default)]
    styles: BTreeMap<String, StyleData>,
    #[serde(default)]
    personalities: Vec<PersonalityData>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct StyleData {
    missing: RefusalData,
    wrong: RefusalData,
    limited: Option<RefusalData>,
    #[serde(default)]
    limit_fields: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RefusalData {
    status: u16,
    #[serde(default)]
    fields: BTreeMap<String, String>,
    json: Value,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PersonalityData {
    /// For people who read the file.
    #[serde(rename = "name")]
    _name: String,
    style: String,
    #[serde(default)]
    hosts: Vec<String>,
    /// For all routes with the method POST.
    idempotency: Option<IdempotencyData>,
    routes: Vec<RouteData>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct IdempotencyData {
    field: String,
    keep: Span,
    mismatch: RefusalData,
    in_progress: RefusalData,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RouteData {
    method: String,
    path: String,
    #[serde(default = "ok")]
    status: u16,
    #[serde(default)]
    fields: BTreeMap<String, String>,
    /// Absent: an answer without content.
    json: Option<Value>,
    stream: Option<StreamData>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct StreamData {
    /// Stream if this expression is true; absent: always.
    when: Option<String>,
    /// Milliseconds between events.
    #[serde(default)]
    ms: u64,
    events: Vec<EventData>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct EventData {
    /// Send it if this expression is true; absent: always.
    when: Option<String>,
    event: Option<String>,
    /// JSON, or a string that is sent as it is.
    data: Value,
}

fn ok() -> u16 {
    200
}

impl Catalogue {
    /// The built-in personalities.
    ///
    /// # Panics
    ///
    /// Never: a test parses the data.
    pub fn built_in() -> Self {
        let mut catalogue = Catalogue {
            styles: BTreeMap::new(),
            routes: Vec::new(),
        };
        catalogue
            .prepend(include_str!("personalities.json"))
            .expect("the built-in personalities are well formed");
        catalogue
    }

    /// Adds the personalities of a file; they are asked before those already there.
    ///
    /// # Errors
    ///
    /// What is wrong with the file.
    pub fn prepend(&mut self, text: &str) -> Result<(), String> {
        let file: FileData = serde_json::from_str(text).map_err(|error| error.to_string())?;
        for (name, style) in file.styles {
            let style = Style {
                missing: refusal(style.missing)?,
                wrong: refusal(style.wrong)?,
                limited: style.limited,
                limit_fields: style.limit_fields,
            };
            self.styles.insert(name, style);
        }
        let mut routes = Vec::new();
        for personality in file.personalities {
            if !self.styles.contains_key(&personality.style) {
                return Err(format!("no style is called `{}`", personality.style));
            }
            let idempotency = match personality.idempotency {
                None => None,
                Some(data) => Some(Arc::new(Idempotency {
                    field: data.field,
                    keep: data.keep,
                    mismatch: refusal(data.mismatch)?,
                    in_progress: refusal(data.in_progress)?,
                })),
            };
            for data in personality.routes {
                check_status(data.status)?;
                routes.push(Route {
                    style: personality.style.clone(),
                    hosts: personality.hosts.clone(),
                    path: segments(&data.path)?,
                    idempotency: idempotency.clone().filter(|_| data.method == "POST"),
                    data,
                });
            }
        }
        routes.append(&mut self.routes);
        self.routes = routes;
        Ok(())
    }

    /// Whether there is a style of this name.
    pub fn has_style(&self, name: &str) -> bool {
        self.styles.contains_key(name)
    }

    /// The names of all styles.
    pub fn style_names(&self) -> Vec<&str> {
        self.styles.keys().map(String::as_str).collect()
    }

    /// How this style refuses. An unknown style refuses generically.
    ///
    /// # Panics
    ///
    /// Never: the built-in data has the generic style.
    pub fn refusal(&self, style: &str, access: Access) -> &Refusal {
        let style = self
            .styles
            .get(style)
            .or_else(|| self.styles.get("generic"))
            .expect("the generic style is built in");
        match access {
            Access::Missing => &style.missing,
            _ => &style.wrong,
        }
    }

    /// The fields with which this style announces a limit, and its refusal beyond it. A style that
    /// says nothing about limits does as the generic one.
    pub fn limit(
        &self,
        style: &str,
        standing: &Standing,
        now: u64,
    ) -> (Vec<(String, String)>, Refusal) {
        let generic = self.styles.get("generic");
        let limited = |style: &&Style| style.limited.is_some();
        let style = self.styles.get(style).filter(limited).or(generic);
        let fill = |template: &str| fill_limit(template, standing, now);
        let fields = |templates: &BTreeMap<String, String>| {
            templates
                .iter()
                .map(|(name, template)| (name.clone(), fill(template)))
                .collect()
        };
        let announced = style
            .map(|style| fields(&style.limit_fields))
            .unwrap_or_default();
        let refusal = match style.and_then(|style| style.limited.as_ref()) {
            Some(limited) => Refusal {
                status: limited.status,
                fields: fields(&limited.fields),
                content: fill(&limited.json.to_string()).into_bytes(),
            },
            None => Refusal {
                status: 429,
                fields: Vec::new(),
                content: b"{}".to_vec(),
            },
        };
        (announced, refusal)
    }

    /// The route for a request: the first that fits and names the request's host, or else the
    /// first that fits.
    pub fn find(&self, head: &Head) -> Option<RouteMatch<'_>> {
        let host = head.host().map(host_name).unwrap_or_default();
        let fits = |route: &&Route| {
            let method = route.data.method.as_bytes();
            method == head.method() || (method == b"GET" && head.is_head_request())
        };
        let path = std::str::from_utf8(head.path()).ok()?;
        let matched = |route| captures(route, path).map(|captures| RouteMatch { route, captures });
        let candidates = || self.routes.iter().filter(fits);
        candidates()
            .filter(|route| {
                route
                    .hosts
                    .iter()
                    .any(|name| name.eq_ignore_ascii_case(&host))
            })
            .find_map(matched)
            .or_else(|| candidates().find_map(matched))
    }
}

impl RouteMatch<'_> {
    /// The style in which this route refuses.
    pub fn style(&self) -> &str {
        &self.route.style
    }

    /// How this route treats idempotency keys, if it does.
    pub fn idempotency(&self) -> Option<&Idempotency> {
        self.route.idempotency.as_deref()
    }

    /// The status of the answer.
    pub fn status(&self) -> u16 {
        self.route.data.status
    }

    /// The fields of the answer, besides `Content-Type` and the framing.
    pub fn fields(&self, facts: &Facts<'_>) -> Vec<(String, String)> {
        self.route
            .data
            .fields
            .iter()
            .map(|(name, template)| {
                let value = self.text(template, facts).replace(char::is_control, " ");
                (name.clone(), value)
            })
            .collect()
    }

    /// The JSON content of the answer, if it has any.
    pub fn content(&self, facts: &Facts<'_>) -> Option<String> {
        let template = self.route.data.json.as_ref()?;
        Some(self.fill(template, facts).to_string())
    }

    /// The events, if this request is to be answered by a stream.
    pub fn stream(&self, facts: &Facts<'_>) -> Option<EventStream> {
        let stream = self.route.data.stream.as_ref()?;
        let wanted = match &stream.when {
            None => true,
            Some(when) => self.holds(when, facts),
        };
        if !wanted {
            return None;
        }
        let wanted = |event: &&EventData| match &event.when {
            None => true,
            Some(when) => self.holds(when, facts),
        };
        let events = stream.events.iter().filter(wanted).map(|event| {
            let data = match self.fill(&event.data, facts) {
                Value::String(text) => text,
                value => value.to_string(),
            };
            match &event.event {
                Some(name) => format!("event: {name}\ndata: {data}\n\n"),
                None => format!("data: {data}\n\n"),
            }
        });
        Some(EventStream {
            events: events.collect(),
            gap: Duration::from_millis(stream.ms),
        })
    }

    /// Whether an expression is true.
    fn holds(&self, expression: &str, facts: &Facts<'_>) -> bool {
        match self.value(expression, facts) {
            Some(Value::Bool(wanted)) => wanted,
            Some(Value::String(text)) => text == "true",
            _ => false,
        }
    }

    fn fill(&self, template: &Value, facts: &Facts<'_>) -> Value {
        match template {
            Value::String(text) => match sole_expression(text) {
                Some(expression) => self.value(expression, facts).unwrap_or(Value::Null),
                None => Value::String(self.text(text, facts)),
            },
            Value::Array(items) => items.iter().map(|item| self.fill(item, facts)).collect(),
            Value::Object(members) => members
                .iter()
                .filter_map(|(name, value)| match name.split_once('?') {
                    None => Some((name.clone(), self.fill(value, facts))),
                    Some((name, when)) => self
                        .holds(when, facts)
                        .then(|| (name.to_string(), self.fill(value, facts))),
                })
                .collect(),
            value => value.clone(),
        }
    }

    fn text(&self, template: &str, facts: &Facts<'_>) -> String {
        let mut out = String::new();
        let mut rest = template;
        while let Some((before, behind)) = rest.split_once("{{") {
            let Some((expression, after)) = behind.split_once("}}") else {
                break;
            };
            out.push_str(before);
            match self.value(expression, facts) {
                Some(Value::String(text)) => out.push_str(&text),
                Some(value) => out.push_str(&value.to_string()),
                None => {}
            }
            rest = after;
        }
        out.push_str(rest);
        out
    }

    fn value(&self, expression: &str, facts: &Facts<'_>) -> Option<Value> {
        let (expression, default) = match expression.split_once('|') {
            Some((expression, default)) => (expression, Some(default)),
            None => (expression, None),
        };
        let (expression, number) = match expression.strip_prefix("number ") {
            Some(expression) => (expression, true),
            None => (expression, false),
        };
        let found = match expression.split_once('.') {
            None if expression == "now" => Some(facts.now.into()),
            None if expression == "unique" => Some(facts.unique.clone().into()),
            None if expression == "host" => facts.head.host().map(|host| latin1(host).into()),
            None if expression == "body" => Some(facts.body.clone()),
            Some(("path", name)) => self
                .captures
                .iter()
                .find(|(candidate, _)| *candidate == name)
                .map(|(_, value)| value.clone().into()),
            Some(("query", name)) => uri::text(facts.head.query(), name).map(Value::from),
            Some(("header", name)) => facts.head.field(name).map(|value| latin1(value).into()),
            Some(("body", path)) => facts.in_body(path),
            Some(("tokens", path)) => Some(facts.tokens(path).into()),
            _ => None,
        };
        let found = match found {
            Some(Value::String(text)) if number => text.parse::<u64>().ok().map(Value::from),
            found => found,
        };
        found.filter(|value| !value.is_null()).or_else(|| {
            let default = default?;
            Some(serde_json::from_str(default).unwrap_or_else(|_| default.into()))
        })
    }
}

impl<'r> Facts<'r> {
    /// Understands the body as JSON or as a form, by its type; anything else is empty.
    pub fn new(head: &'r Head, body: &[u8], now: u64, unique: String) -> Self {
        let kind = head.field("Content-Type").unwrap_or_default();
        let form = b"application/x-www-form-urlencoded";
        let body = if kind.len() >= form.len() && kind[..form.len()].eq_ignore_ascii_case(form) {
            uri::pairs(body)
                .fold(serde_json::Map::new(), |mut form, (name, value)| {
                    let text = |part| latin1(&uri::decode(part));
                    insert_form(&mut form, &text(name), text(value));
                    form
                })
                .into()
        } else {
            serde_json::from_slice(body).unwrap_or(Value::Null)
        };
        Facts {
            head,
            body,
            now,
            unique,
        }
    }

    /// An estimate of the kind that providers give: four bytes of text are a token.
    fn tokens(&self, path: &str) -> u64 {
        let term = |term: &str| {
            let (path, more) = term.split_once('+').unwrap_or((term, "0"));
            let text = self.in_body(path).map_or(0, |value| text_bytes(&value));
            text.div_ceil(4) + more.parse::<u64>().unwrap_or(0)
        };
        path.split(',').map(term).sum()
    }

    fn in_body(&self, path: &str) -> Option<Value> {
        let mut value = &self.body;
        for step in path.split('.') {
            value = match value {
                Value::Array(items) if step == "last" => items.last()?,
                Value::Array(items) => items.get(step.parse::<usize>().ok()?)?,
                value => value.get(step)?,
            };
        }
        Some(value.clone())
    }
}

/// Bytes in all strings of a value.
fn text_bytes(value: &Value) -> u64 {
    match value {
        Value::String(text) => text.len() as u64,
        Value::Array(items) => items.iter().map(text_bytes).sum(),
        Value::Object(members) => members.values().map(text_bytes).sum(),
        _ => 0,
    }
}

/// `a[b]=c` makes an object, as Stripe's forms do; anything else a member.
fn insert_form(form: &mut serde_json::Map<String, Value>, name: &str, value: String) {
    let nested = name.strip_suffix(']').and_then(|name| name.split_once('['));
    if let Some((outer, inner)) = nested
        && let Some(object) = form
            .entry(outer)
            .or_insert_with(|| Value::Object(serde_json::Map::new()))
            .as_object_mut()
    {
        object.insert(inner.to_string(), value.into());
        return;
    }
    form.insert(name.to_string(), value.into());
}

/// Replaces `{{limit.NAME}}`; a name that does not exist stays as it is, for a test to find.
fn fill_limit(template: &str, standing: &Standing, now: u64) -> String {
    let mut out = String::new();
    let mut rest = template;
    while let Some((before, behind)) = rest.split_once("{{limit.") {
        let filled = behind
            .split_once("}}")
            .and_then(|(name, after)| Some((standing.value(name, now)?, after)));
        out.push_str(before);
        match filled {
            Some((value, after)) => {
                out.push_str(&value);
                rest = after;
            }
            None => {
                out.push_str("{{limit.");
                rest = behind;
            }
        }
    }
    out.push_str(rest);
    out
}

fn refusal(data: RefusalData) -> Result<Refusal, String> {
    check_status(data.status)?;
    Ok(Refusal {
        status: data.status,
        fields: data.fields.into_iter().collect(),
        content: data.json.to_string().into_bytes(),
    })
}

fn check_status(status: u16) -> Result<(), String> {
    match (200..=599).contains(&status) {
        true => Ok(()),
        false => Err(format!("{status} is no final status")),
    }
}

/// The expression of a string that is nothing else.
fn sole_expression(text: &str) -> Option<&str> {
    let inner = text.strip_prefix("{{")?.strip_suffix("}}")?;
    (!inner.contains("{{") && !inner.contains("}}")).then_some(inner)
}

/// `Host` without its port.
fn host_name(host: &[u8]) -> String {
    let host = latin1(host);
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name.to_string(),
        _ => host,
    }
}

fn segments(path: &str) -> Result<Vec<Segment>, String> {
    let Some(path) = path.strip_prefix('/') else {
        return Err(format!("the path `{path}` does not begin with `/`"));
    };
    path.split('/')
        .map(|segment| match segment.split_once('{') {
            None => Ok(Segment::Literal(segment.to_string())),
            Some((prefix, rest)) => match rest.split_once('}') {
                Some((name, suffix)) if !suffix.contains('{') => Ok(Segment::Capture {
                    prefix: prefix.to_string(),
                    name: name.to_string(),
                    suffix: suffix.to_string(),
                }),
                _ => Err(format!("malformed `{segment}` in the path `/{path}`")),
            },
        })
        .collect()
}

fn captures<'c>(route: &'c Route, path: &str) -> Option<Vec<(&'c str, String)>> {
    let mut parts = path.strip_prefix('/')?.split('/');
    let mut found = Vec::new();
    for segment in &route.path {
        let part = parts.next()?;
        match segment {
            Segment::Literal(text) if text == part => {}
            Segment::Literal(_) => return None,
            Segment::Capture {
                prefix,
                name,
                suffix,
            } => {
                let value = part
                    .strip_prefix(prefix.as_str())?
                    .strip_suffix(suffix.as_str())?;
                if value.is_empty() {
                    return None;
                }
                found.push((name.as_str(), latin1(&uri::decode(value.as_bytes()))));
            }
        }
    }
    parts.next().is_none().then_some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(method: &str, target: &str, fields: &str) -> Head {
        let input = format!("{method} {target} HTTP/1.1\r\n{fields}\r\n");
        let mut head = Head::default();
        head.parse(input.as_bytes()).unwrap().expect("complete");
        head
    }

    fn answer(catalogue: &Catalogue, head: &Head, body: &str) -> Option<Value> {
        let route = catalogue.find(head)?;
        let facts = Facts::new(head, body.as_bytes(), 7, "u".into());
        Some(serde_json::from_str(&route.content(&facts)?).unwrap())
    }

    #[test]
    fn built_in_data_is_well_formed_and_every_template_fills() {
        let catalogue = Catalogue::built_in();
        for style in catalogue.style_names() {
            for access in [Access::Missing, Access::Wrong] {
                let refusal = catalogue.refusal(style, access);
                assert!((400..=403).contains(&refusal.status), "{style}");
                serde_json::from_slice::<Value>(&refusal.content).unwrap();
            }
            let limits = br#"{"rules": [{"requests": 0, "per": "90s"}]}"#;
            let limits = crate::limits::Limits::from_json(limits, &[]).unwrap();
            let standing = limits.take(b"/", b"", std::time::Instant::now()).unwrap();
            let (fields, refusal) = catalogue.limit(style, &standing, 1000);
            serde_json::from_slice::<Value>(&refusal.content).unwrap();
            let retry = refusal
                .fields
                .iter()
                .find(|(name, _)| name == "Retry-After");
            assert_eq!(
                retry.map(|(_, value)| value.as_str()),
                Some("90"),
                "{style}"
            );
            for (_, value) in fields.iter().chain(&refusal.fields) {
                assert!(!value.contains("{{"), "{value}");
            }
        }
        for route in &catalogue.routes {
            let target = route.data.path.replace(['{', '}'], "");
            let head = head(&route.data.method, &target, "Host: x\r\n");
            let route = catalogue.find(&head).expect("finds itself");
            let facts = Facts::new(&head, b"{\"stream\":true}", 7, "u".into());
            let content = route.content(&facts).unwrap_or_default();
            assert!(!content.contains("{{"), "{content}");
            for event in route.stream(&facts).iter().flat_map(|s| &s.events) {
                assert!(event.ends_with("\n\n") && !event.contains("{{"), "{event}");
            }
        }
    }

    #[test]
    fn templates_keep_json_types() {
        let mut catalogue = Catalogue::built_in();
        catalogue
            .prepend(
                r#"{"personalities": [{"name": "t", "style": "generic", "routes": [
                    {"method": "POST", "path": "/a/{x}:go/{y}", "json": {
                        "x": "{{path.x}}", "n": "{{body.n}}", "m": "m={{body.n}}",
                        "d": "{{body.none|12}}", "s": "{{query.s|none given}}",
                        "last": "{{body.list.last.v}}", "null": "{{body.none}}", "now": "{{now}}"
                    }}]}]}"#,
            )
            .unwrap();
        let head = head("POST", "/a/b%20c:go/d", "Host: x\r\n");
        let body = r#"{"n": 3, "list": [{"v": 1}, {"v": [2]}]}"#;
        assert_eq!(
            answer(&catalogue, &head, body).unwrap(),
            serde_json::json!({
                "x": "b c", "n": 3, "m": "m=3", "d": 12, "s": "none given",
                "last": [2], "null": null, "now": 7,
            })
        );
    }

    #[test]
    fn hosts_decide_between_equal_paths() {
        let mut catalogue = Catalogue::built_in();
        catalogue
            .prepend(
                r#"{"personalities": [
                    {"name": "a", "style": "generic", "hosts": ["a.example"], "routes": [
                        {"method": "GET", "path": "/same", "json": "a"}]},
                    {"name": "b", "style": "generic", "hosts": ["b.example"], "routes": [
                        {"method": "GET", "path": "/same", "json": "b"}]}]}"#,
            )
            .unwrap();
        for (host, expected) in [("B.example:8443", "b"), ("a.example", "a"), ("c", "a")] {
            let head = head("GET", "/same", &format!("Host: {host}\r\n"));
            assert_eq!(answer(&catalogue, &head, "").unwrap(), expected);
        }
        let other = head("DELETE", "/same", "Host: c\r\n");
        assert!(catalogue.find(&other).is_none());
    }

    #[test]
    fn forms_are_understood() {
        let catalogue = Catalogue::built_in();
        let kind = "Host: x\r\nContent-Type: application/x-www-form-urlencoded\r\n";
        let head = head("POST", "/v1/customers", kind);
        let customer = answer(&catalogue, &head, "email=a%40b.c&name=A+B").unwrap();
        assert_eq!(customer["email"], "a@b.c");
        assert_eq!(customer["name"], "A B");
    }

    #[test]
    fn errors_say_what_is_wrong() {
        let mut catalogue = Catalogue::built_in();
        for (text, part) in [
            ("{", "EOF"),
            (r#"{"other": 1}"#, "other"),
            (
                r#"{"personalities": [{"name": "x", "style": "none", "routes": []}]}"#,
                "`none`",
            ),
        ] {
            let error = catalogue.prepend(text).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }
}
