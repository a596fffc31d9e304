//! What callers do, as the user writes it: in a TOML file with several weighted requests, or as
//! options for a single one. Both become [`RequestSpec`]s, and these [`Request`]s.
//!
//! A mistake is told with the file, the line and the cure. Values of headers are not quoted.

use std::fmt;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde::de::{self, Deserializer, MapAccess, SeqAccess, Visitor};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::gate;
use crate::plan::nanos;
use crate::request::{
    self, Body, Check, Conversation, Fault, Form, Request, RequestKind, RequestParts,
};
use crate::sizes::{self, Sizes};
use crate::target::{StatusSet, Url};
use crate::websocket;

/// A request before it is rendered for a target.
#[derive(Clone)]
pub struct RequestSpec {
    /// Its name in reports.
    pub name: String,
    /// The line of the file where it begins; 1 without a file.
    pub line: usize,
    /// The lines of its keys, and of those of `[defaults]`, which begin with [`DEFAULTS`].
    lines: Vec<(String, usize)>,
    /// How often it is chosen, next to the others.
    pub weight: u32,
    /// What it is.
    pub kind: Kind,
    /// The method; by default what suits the kind and the body.
    pub method: Option<String>,
    /// Path and query, if not those of the target's URL. `{size}` stands for a drawn size.
    pub path: Option<String>,
    /// Header lines beyond those that all requests have.
    pub headers: Vec<String>,
    /// How many of them, the first, are from `[defaults]`.
    headers_by_default: usize,
    /// The body.
    pub body: BodySpec,
    /// Sizes that `{size}` in the path stands for.
    pub sizes: Option<Sizes>,
    /// Statuses that are no error; by default what suits the kind.
    pub expected_status: Option<StatusSet>,
    /// The body that the answer must have.
    pub expected_body: Option<Arc<[u8]>>,
    /// Whether bodies of downloads and uploads are checked byte by byte.
    pub verify: bool,
    /// Events that a stream must have.
    pub events: Option<u64>,
    /// The time between its events that a stream announces.
    pub events_every: Option<Duration>,
    /// What is said over a WebSocket.
    pub conversation: Conversation,
    /// How long it may take, if not as long as others.
    pub timeout: Option<Duration>,
    /// How long a connection of a closed loop rests after it.
    pub think: Duration,
}

/// What a request is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// One request, one answer.
    #[default]
    Http,
    /// An answer whose body must be the pattern that mock-upstream's `/bytes/N` documents.
    Download,
    /// A body whose SHA-256 must stand in the answer.
    Upload,
    /// An answer that is a stream of server-sent events.
    Sse,
    /// A WebSocket on which every message must come back.
    #[value(name = "websocket")]
    WebSocket,
}

/// What a body is made of.
#[derive(Clone)]
pub enum BodySpec {
    /// There is none.
    None,
    /// These bytes.
    Bytes(Arc<[u8]>),
    /// That much of the pattern.
    Sizes(Sizes),
}

impl RequestSpec {
    /// A GET that may be answered by anything good.
    pub fn plain(name: String) -> Self {
        Self {
            name,
            line: 1,
            lines: Vec::new(),
            weight: 1,
            kind: Kind::Http,
            method: None,
            path: None,
            headers: Vec::new(),
            headers_by_default: 0,
            body: BodySpec::None,
            sizes: None,
            expected_status: None,
            expected_body: None,
            verify: true,
            events: None,
            events_every: None,
            conversation: Conversation {
                messages: 10,
                message_bytes: 64,
                pause: 0,
            },
            timeout: None,
            think: Duration::ZERO,
        }
    }

    /// The line of the first of these keys that is written, be it in `[defaults]`; else that of the
    /// request.
    pub fn line_of(&self, keys: &[&str]) -> usize {
        let line = |key: &str| {
            let (_, line) = self.lines.iter().find(|(other, _)| other == key)?;
            Some(*line)
        };
        let found = keys
            .iter()
            .find_map(|key| line(key).or_else(|| line(&format!("{DEFAULTS}{key}"))));
        found.unwrap_or(self.line)
    }

    /// Where a header of that name stands.
    fn header_keys(&self, header: &str) -> &'static [&'static str] {
        let place = self.headers.iter().rposition(|line| {
            let name = line.split(':').next().unwrap_or_default();
            name.eq_ignore_ascii_case(header)
        });
        match place {
            // It was given on the command line.
            None => &[],
            Some(place) if place < self.headers_by_default => &["defaults.headers"],
            Some(_) => &["headers"],
        }
    }

    /// Renders the request for a target whose requests have the header lines `common`.
    ///
    /// # Errors
    /// A sentence with the cure, and the keys that it is about.
    pub fn request(&self, url: &Url, common: &[String], close: bool) -> Result<Request, Wrong> {
        let method = match (&self.method, &self.body) {
            (Some(method), _) => method.as_str(),
            (None, BodySpec::None) => "GET",
            (None, _) => "POST",
        };
        let mut headers = common.to_vec();
        headers.extend(self.headers.iter().cloned());
        let given = |wanted: &str| {
            headers.iter().any(|line| {
                line.split_once(':')
                    .is_some_and(|(name, _)| name.eq_ignore_ascii_case(wanted))
            })
        };
        match self.kind {
            Kind::Sse if !given("accept") => headers.push("Accept: text/event-stream".into()),
            Kind::WebSocket => {
                if method != "GET" || !matches!(self.body, BodySpec::None) {
                    let keys: &[_] = match self.method.as_deref() {
                        None | Some("GET") => &["body", "body_file", "body_size"],
                        Some(_) => &["method"],
                    };
                    return Err(at(keys, "a WebSocket begins with a GET without a body"));
                }
                headers.extend(websocket::UPGRADE_LINES.map(str::to_owned));
            }
            Kind::Upload if matches!(self.body, BodySpec::None) => {
                return Err(at(
                    &["kind"],
                    "an upload takes a body; give it a size, a file or a text",
                ));
            }
            Kind::Download if method == "HEAD" => {
                return Err(at(&["method"], "a HEAD downloads nothing; use kind http"));
            }
            _ => {}
        }
        let bodies: Vec<Body> = match &self.body {
            BodySpec::None => vec![Body::Bytes(Arc::from([]))],
            BodySpec::Bytes(bytes) => vec![Body::Bytes(bytes.clone())],
            BodySpec::Sizes(sizes) => sizes.drawn().into_iter().map(Body::Pattern).collect(),
        };
        let holds_size = self.path.as_ref().is_some_and(|path| path.contains(SIZE));
        let lengths: Vec<Option<u64>> = match &self.sizes {
            Some(_) if !holds_size => {
                return Err(at(
                    &["size"],
                    format!("a size takes a path that holds {SIZE}, such as /bytes/{SIZE}"),
                ));
            }
            None if holds_size => {
                return Err(at(
                    &["path"],
                    format!("{SIZE} in the path takes a size; give it one"),
                ));
            }
            Some(sizes) => sizes.drawn().into_iter().map(Some).collect(),
            None => vec![None],
        };
        let mut forms = Vec::new();
        // A distribution of both is drawn in pairs, as the numbers of draws are the same.
        for number in 0..bodies.len().max(lengths.len()) {
            let body = &bodies[number % bodies.len()];
            let length = lengths[number % lengths.len()];
            forms.push(self.form(url, method, &headers, body, length, close)?);
        }
        Ok(Request {
            name: self.name.clone(),
            weight: self.weight,
            kind: match self.kind {
                Kind::Http | Kind::Download | Kind::Upload => RequestKind::Http,
                Kind::Sse => RequestKind::Sse {
                    every: self.events_every.map(nanos),
                },
                Kind::WebSocket => RequestKind::WebSocket(self.conversation),
            },
            forms,
            is_head: method == "HEAD",
            expected_status: match (&self.expected_status, self.kind) {
                (Some(set), _) => set.clone(),
                (None, Kind::WebSocket) => StatusSet::only(101),
                (None, Kind::Http) => StatusSet::success(),
                // A redirection is no download.
                (None, _) => StatusSet::answered(),
            },
            timeout: self.timeout.map(nanos),
            think: nanos(self.think),
        })
    }

    fn form(
        &self,
        url: &Url,
        method: &str,
        headers: &[String],
        body: &Body,
        length: Option<u64>,
        close: bool,
    ) -> Result<Form, Wrong> {
        let path = match (&self.path, length) {
            (Some(path), Some(length)) => Some(path.replace(SIZE, &length.to_string())),
            (path, _) => path.clone(),
        };
        if let Some(path) = &path
            && (!path.starts_with('/') || path.bytes().any(|b| b <= b' ' || b == 0x7f))
        {
            return Err(at(
                &["path"],
                "a path begins with / and holds no space or control byte",
            ));
        }
        let check = match (&self.expected_body, self.kind) {
            (Some(expected), _) => Check::Bytes(expected.clone()),
            (None, Kind::Download) if self.verify => Check::Pattern { length },
            (None, Kind::Upload) if self.verify => Check::Holds(body.digest().into()),
            (None, Kind::Sse) => Check::Events { count: self.events },
            (None, _) => Check::Nothing,
        };
        request::render(RequestParts {
            method,
            url,
            path: path.as_deref(),
            headers,
            body,
            close: close && self.kind != Kind::WebSocket,
            check,
        })
        .map_err(|error| match error.fault {
            Fault::Method => at(&["method"], error.text),
            Fault::Header(name) => at(self.header_keys(name), error.text),
        })
    }
}

/// What a size drawn for a path replaces.
const SIZE: &str = "{size}";

/// Reads a scenario file. `verify` has downloads and uploads checked even where the file says not to.
///
/// # Errors
/// The file, the line, what is wrong and the cure.
pub fn read(path: &Path, verify: bool) -> Result<Vec<RequestSpec>, String> {
    let shown = path.display();
    let text = fs::read_to_string(path).map_err(|error| format!("--scenario {shown}: {error}"))?;
    let line_of = |span: Option<Range<usize>>| {
        let at = span.map_or(0, |span| span.start).min(text.len());
        text.as_bytes()[..at]
            .iter()
            .filter(|&&b| b == b'\n')
            .count()
            + 1
    };
    let file: File = toml::from_str(&text).map_err(|error| {
        let line = line_of(error.span());
        let message = error.message().trim_end();
        format!("--scenario {shown}:{line}: {message}{}", meant(message))
    })?;
    // Once more, for the places of the keys.
    let places = DeTable::parse(&text).map_err(|error| format!("--scenario {shown}: {error}"))?;
    if file.request.is_empty() {
        return Err(format!(
            "--scenario {shown}: it holds no request; write at least one [[request]] with a name"
        ));
    }
    if file.request.len() > REQUESTS_MAX {
        return Err(format!(
            "--scenario {shown}: more than {REQUESTS_MAX} requests; each has figures of its own, so put \
             what is alike into one with a size distribution"
        ));
    }
    let directory = path.parent().unwrap_or(Path::new(""));
    let mut specs: Vec<RequestSpec> = Vec::new();
    for (index, entry) in file.request.into_iter().enumerate() {
        let span = entry.span();
        let name = entry.get_ref().name.clone();
        let refuse = |wrong: Wrong| {
            let place = wrong
                .keys
                .iter()
                .find_map(|key| place_of(places.get_ref(), index, key));
            let line = line_of(Some(place.unwrap_or(span.clone())));
            format!("--scenario {shown}:{line}: request {name}: {}", wrong.text)
        };
        if specs.iter().any(|spec| spec.name == name) {
            return Err(refuse(at(
                &["name"],
                "there is another one of that name; names must differ",
            )));
        }
        let mut spec = entry
            .into_inner()
            .spec(&file.defaults, directory)
            .map_err(refuse)?;
        spec.verify |= verify;
        spec.line = line_of(Some(span.clone()));
        spec.lines = (keys_of(places.get_ref(), index).into_iter())
            .map(|(key, place)| (key, line_of(Some(place))))
            .collect();
        specs.push(spec);
    }
    Ok(specs)
}

/// A mistake in a request, and where it is.
#[derive(Debug)]
pub struct Wrong {
    /// The keys to look for, of which the first that is written is the place. Those of `[defaults]`
    /// begin with [`DEFAULTS`]; others may also stand there.
    pub keys: &'static [&'static str],
    /// A sentence with the cure.
    pub text: String,
}

fn at(keys: &'static [&'static str], text: impl Into<String>) -> Wrong {
    let text = text.into();
    Wrong { keys, text }
}

const DEFAULTS: &str = "defaults.";

/// Where a key of request `index` stands, or one of the defaults.
fn place_of(file: &DeTable<'_>, index: usize, key: &str) -> Option<Range<usize>> {
    let place = |value: Option<&DeValue<'_>>, key: &str| {
        let (key, _) = value?.as_table()?.get_key_value(key)?;
        Some(key.span())
    };
    let request = file
        .get("request")
        .and_then(|value| value.get_ref().get(index));
    let defaults = file.get("defaults").map(Spanned::get_ref);
    match key.strip_prefix(DEFAULTS) {
        Some(key) => place(defaults, key),
        None => place(request.map(Spanned::get_ref), key).or_else(|| place(defaults, key)),
    }
}

/// All keys of request `index` and of the defaults, with their places.
fn keys_of(file: &DeTable<'_>, index: usize) -> Vec<(String, Range<usize>)> {
    let request = file
        .get("request")
        .and_then(|value| value.get_ref().get(index));
    let tables = [(request, ""), (file.get("defaults"), DEFAULTS)];
    let keys = |(table, prefix): (Option<&Spanned<DeValue<'_>>>, &str)| -> Vec<_> {
        let table = table.and_then(|table| table.get_ref().as_table());
        table
            .into_iter()
            .flat_map(|table| table.iter())
            .map(|(key, _)| (format!("{prefix}{}", key.get_ref()), key.span()))
            .collect()
    };
    tables.into_iter().flat_map(keys).collect()
}

/// What a misspelt key was probably meant to be, from a message that names it first and what is
/// expected after it, all in backticks.
fn meant(message: &str) -> String {
    if !message.starts_with("unknown field") {
        return String::new();
    }
    let mut words = message.split('`').skip(1).step_by(2);
    let Some(written) = words.next() else {
        return String::new();
    };
    words
        .map(|key| (strsim::jaro_winkler(written, key), key))
        .filter(|(likeness, _)| *likeness >= LIKENESS_MIN)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map_or(String::new(), |(_, key)| format!("; did you mean `{key}`?"))
}

/// From this likeness on (Jaro-Winkler, 1 is the same) a key is proposed for a misspelt one.
const LIKENESS_MIN: f64 = 0.8;

/// Requests of a scenario. Each has a histogram on each thread.
const REQUESTS_MAX: usize = 64;

/// A scenario as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    defaults: Settings,
    #[serde(default)]
    request: Vec<Spanned<Entry>>,
}

/// What a request may say, and the defaults for all.
#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Settings {
    method: Option<String>,
    headers: Lines,
    expect_status: Option<String>,
    think: Option<Time>,
    timeout: Option<Time>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    #[serde(default = "one")]
    weight: u32,
    #[serde(default)]
    kind: Kind,
    method: Option<String>,
    path: Option<String>,
    #[serde(default)]
    headers: Lines,
    body: Option<String>,
    body_file: Option<PathBuf>,
    body_size: Option<Sizes>,
    size: Option<Sizes>,
    expect_status: Option<String>,
    expect_body: Option<String>,
    expect_body_file: Option<PathBuf>,
    expect_pattern: Option<bool>,
    expect_events: Option<u64>,
    events_every: Option<Time>,
    messages: Option<u32>,
    message_size: Option<Sizes>,
    message_every: Option<Time>,
    verify: Option<bool>,
    think: Option<Time>,
    timeout: Option<Time>,
}

fn one() -> u32 {
    1
}

impl Entry {
    fn spec(self, defaults: &Settings, directory: &Path) -> Result<RequestSpec, Wrong> {
        let mut spec = RequestSpec::plain(self.name.clone());
        if self.name.is_empty() {
            return Err(at(
                &["name"],
                "its name is empty; give it one that tells it from the others",
            ));
        }
        if self.weight == 0 || self.weight > WEIGHT_MAX {
            return Err(at(
                &["weight"],
                format!("weight must lie between 1 and {WEIGHT_MAX}"),
            ));
        }
        spec.weight = self.weight;
        spec.kind = match (self.kind, self.expect_pattern) {
            (Kind::Http, Some(true)) => Kind::Download,
            (Kind::Download, Some(false)) => Kind::Http,
            (kind, None | Some(false)) => kind,
            (Kind::Download, Some(true)) => Kind::Download,
            (_, Some(true)) => {
                return Err(at(
                    &["expect_pattern"],
                    "expect_pattern is for kind http or download",
                ));
            }
        };
        self.must_fit(spec.kind)?;
        spec.method = self.method.or_else(|| defaults.method.clone());
        spec.path = self.path;
        // A header of the request replaces a default of that name.
        let own =
            header_lines(&self.headers.0, directory).map_err(|error| at(&["headers"], error))?;
        let name_of = |line: &str| line.split(':').next().unwrap_or("").to_ascii_lowercase();
        spec.headers = header_lines(&defaults.headers.0, directory)
            .map_err(|error| at(&["defaults.headers"], error))?
            .into_iter()
            .filter(|line| !own.iter().any(|other| name_of(other) == name_of(line)))
            .collect();
        spec.headers_by_default = spec.headers.len();
        spec.headers.extend(own);
        let read = |key: &'static [&'static str], path: &Path| {
            fs::read(directory.join(path))
                .map(Arc::<[u8]>::from)
                .map_err(|error| at(key, format!("{} {}: {error}", key[0], path.display())))
        };
        spec.body = match (self.body, self.body_file, self.body_size) {
            (None, None, None) => BodySpec::None,
            (Some(text), None, None) => BodySpec::Bytes(text.into_bytes().into()),
            (None, Some(path), None) => BodySpec::Bytes(read(&["body_file"], &path)?),
            (None, None, Some(sizes)) => BodySpec::Sizes(sizes),
            _ => {
                return Err(at(
                    &["body_size", "body_file"],
                    "give one of body, body_file and body_size",
                ));
            }
        };
        spec.sizes = self.size;
        spec.expected_status = match self
            .expect_status
            .as_ref()
            .or(defaults.expect_status.as_ref())
        {
            Some(text) => Some(StatusSet::parse(text).map_err(|_| {
                at(
                    &["expect_status"],
                    "expect_status takes codes, classes and ranges: \"200,204,3xx\" or \"200-299\"",
                )
            })?),
            None => None,
        };
        spec.expected_body = match (self.expect_body, self.expect_body_file) {
            (None, None) => None,
            (Some(text), None) => Some(text.into_bytes().into()),
            (None, Some(path)) => Some(read(&["expect_body_file"], &path)?),
            _ => {
                return Err(at(
                    &["expect_body_file"],
                    "give one of expect_body and expect_body_file",
                ));
            }
        };
        spec.verify = self.verify.unwrap_or(true);
        spec.events = self.expect_events;
        spec.events_every = self.events_every.map(|time| time.0);
        if let Some(messages) = self.messages {
            if messages == 0 {
                return Err(at(
                    &["messages"],
                    "messages must be at least 1; leave the request out, or its kind",
                ));
            }
            spec.conversation.messages = messages;
        }
        if let Some(sizes) = self.message_size {
            spec.conversation.message_bytes = match sizes {
                Sizes::Fixed(bytes) if bytes <= websocket::MESSAGE_BYTES_MAX as u64 => {
                    bytes as usize
                }
                _ => {
                    return Err(at(
                        &["message_size"],
                        "message_size is one size, at most 64MiB",
                    ));
                }
            };
        }
        if let Some(time) = self.message_every {
            spec.conversation.pause = nanos(time.0);
        }
        spec.timeout = self.timeout.or(defaults.timeout).map(|time| time.0);
        if spec.timeout.is_some_and(|timeout| timeout.is_zero()) {
            return Err(at(&["timeout"], "timeout must be above zero"));
        }
        spec.think = self
            .think
            .or(defaults.think)
            .map_or(Duration::ZERO, |time| time.0);
        Ok(spec)
    }

    /// A setting that means nothing for the kind would be a promise that nobody keeps.
    fn must_fit(&self, kind: Kind) -> Result<(), Wrong> {
        let events = self.expect_events.is_some() || self.events_every.is_some();
        let messages =
            self.messages.is_some() || self.message_size.is_some() || self.message_every.is_some();
        let body_expected = self.expect_body.is_some() || self.expect_body_file.is_some();
        let rows: [(_, _, &'static [&'static str], _); 4] = [
            (
                events,
                kind == Kind::Sse,
                &["expect_events", "events_every"],
                "sse",
            ),
            (
                messages,
                kind == Kind::WebSocket,
                &["messages", "message_size", "message_every"],
                "websocket",
            ),
            (
                self.verify.is_some(),
                matches!(kind, Kind::Download | Kind::Upload),
                &["verify"],
                "download or upload",
            ),
            (
                body_expected,
                kind == Kind::Http,
                &["expect_body", "expect_body_file"],
                "http",
            ),
        ];
        for (given, fits, keys, kinds) in rows {
            if given && !fits {
                return Err(at(
                    keys,
                    format!(
                        "for kind {kinds} only: {}; leave it out, or say that kind",
                        keys.join(", ")
                    ),
                ));
            }
        }
        Ok(())
    }
}

/// Replaces `@FILE` by the file's lines, and checks all.
fn header_lines(given: &[String], directory: &Path) -> Result<Vec<String>, String> {
    let mut lines = Vec::new();
    for text in given {
        match text.strip_prefix('@') {
            Some(path) => {
                let file = fs::read_to_string(directory.join(path))
                    .map_err(|error| format!("headers: @{path}: {error}"))?;
                lines.extend(
                    file.lines()
                        .filter(|line| !line.is_empty())
                        .map(str::to_owned),
                );
            }
            None => lines.push(text.clone()),
        }
    }
    for line in &lines {
        request::header_line(line).map_err(|error| format!("headers: {error}"))?;
    }
    Ok(lines)
}

/// Weights add up in 64 bits, whatever a file holds.
const WEIGHT_MAX: u32 = 1_000_000;

/// A time with a unit.
#[derive(Clone, Copy)]
struct Time(Duration);

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Time;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a time with a unit, such as \"50ms\" or \"10s\"")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Time, E> {
                gate::time(text)
                    .filter(|nanos| *nanos < 1e18)
                    .map(|nanos| Time(Duration::from_nanos(nanos as u64)))
                    .ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_any(Text)
    }
}

/// Header lines: one, or a list. They may hold keys, so no error quotes them.
#[derive(Clone, Default)]
struct Lines(Vec<String>);

impl<'de> Deserialize<'de> for Lines {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List;
        impl<'de> Visitor<'de> for List {
            type Value = Lines;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of lines, such as [\"Accept: text/plain\", \"@FILE\"]")
            }
            fn visit_str<E: de::Error>(self, line: &str) -> Result<Lines, E> {
                Ok(Lines(vec![line.to_owned()]))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Lines, A::Error> {
                let mut lines = Vec::new();
                while let Some(line) = list.next_element()? {
                    lines.push(line);
                }
                Ok(Lines(lines))
            }
        }
        deserializer.deserialize_any(List)
    }
}

impl<'de> Deserialize<'de> for Sizes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Sizes;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(sizes::EXPECTED)
            }
            fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<Sizes, E> {
                u64::try_from(bytes)
                    .map(Sizes::Fixed)
                    .map_err(|_| E::invalid_value(de::Unexpected::Signed(bytes), &self))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Sizes, E> {
                sizes::bytes(text)
                    .map(Sizes::Fixed)
                    .ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Sizes, A::Error> {
                let written = Written::deserialize(de::value::MapAccessDeserializer::new(map))?;
                written.sizes().map_err(de::Error::custom)
            }
        }
        deserializer.deserialize_any(Any)
    }
}

/// A distribution as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    uniform: Option<[Size; 2]>,
    list: Option<Vec<Size>>,
    log_normal: Option<LogNormal>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LogNormal {
    median: Size,
    sigma: f64,
    max: Option<Size>,
}

impl Written {
    fn sizes(self) -> Result<Sizes, String> {
        match (self.uniform, self.list, self.log_normal) {
            (Some([low, high]), None, None) => Sizes::uniform(low.0, high.0),
            (None, Some(list), None) => Sizes::list(list.iter().map(|size| size.0).collect()),
            (None, None, Some(LogNormal { median, sigma, max })) => {
                Sizes::log_normal(median.0, sigma, max.map(|size| size.0))
            }
            _ => Err(format!("expected {}", sizes::EXPECTED)),
        }
    }
}

/// One size.
struct Size(u64);

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Sizes::deserialize(deserializer)? {
            Sizes::Fixed(bytes) => Ok(Self(bytes)),
            _ => Err(de::Error::custom(
                "expected one size, such as 512 or \"10KiB\"",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Vec<RequestSpec>, String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("test.toml");
        fs::write(&path, text).unwrap();
        read(&path, false).map_err(|error| error.replace(directory.path().to_str().unwrap(), ""))
    }

    fn rendered(spec: &RequestSpec) -> Request {
        let url = Url::parse("https://api.example.com/ok").unwrap();
        spec.request(&url, &["X-Common: 1".to_owned()], false)
            .unwrap()
    }

    #[test]
    fn a_scenario_becomes_requests() {
        let specs = parse(
            r#"
            [defaults]
            headers = ["Authorization: Bearer x", "X-Default: 1"]
            think = "5ms"

            [[request]]
            name = "send"
            weight = 3
            path = "/v3/mail/send"
            headers = "X-Default: 2"
            body = '{"to":"a"}'
            expect_status = "202"

            [[request]]
            name = "get"
            kind = "download"
            path = "/bytes/{size}"
            size = { list = [10, "2KiB"] }
            timeout = "1m"
            think = "0ms"

            [[request]]
            name = "put"
            kind = "upload"
            method = "PUT"
            path = "/upload"
            body_size = { log_normal = { median = "4KiB", sigma = 1.0, max = "1MiB" } }

            [[request]]
            name = "events"
            kind = "sse"
            path = "/sse?n=3&ms=10"
            expect_events = 3
            events_every = "10ms"

            [[request]]
            name = "chat"
            kind = "websocket"
            path = "/ws"
            messages = 3
            message_size = "1KiB"
            message_every = "1ms"
            "#,
        )
        .unwrap();
        let requests: Vec<Request> = specs.iter().map(rendered).collect();
        let names: Vec<_> = requests
            .iter()
            .map(|request| request.name.as_str())
            .collect();
        assert_eq!(names, ["send", "get", "put", "events", "chat"]);
        let text = |index: usize, form: usize| {
            String::from_utf8_lossy(&requests[index].forms[form].bytes).into_owned()
        };
        let send = text(0, 0);
        assert!(
            send.starts_with("POST /v3/mail/send HTTP/1.1\r\n"),
            "{send}"
        );
        assert!(send.contains("X-Common: 1") && send.contains("Authorization: Bearer x"));
        assert!(send.contains("X-Default: 2") && !send.contains("X-Default: 1"));
        assert_eq!(requests[0].think, 5_000_000);
        assert!(requests[0].expected_status.contains(202));
        assert!(!requests[0].expected_status.contains(200));
        assert!(text(1, 1).starts_with("GET /bytes/2048 "));
        assert_eq!(
            requests[1].forms[0].check,
            Check::Pattern { length: Some(10) }
        );
        assert_eq!(
            (requests[1].think, requests[1].timeout),
            (0, Some(60_000_000_000))
        );
        assert_eq!(requests[2].forms.len(), sizes::DRAWS);
        let digest = crate::pattern::digest(requests[2].forms[7].body_bytes());
        assert_eq!(requests[2].forms[7].check, Check::Holds(digest.into()));
        assert_eq!(requests[3].forms[0].check, Check::Events { count: Some(3) });
        assert!(text(3, 0).contains("Accept: text/event-stream\r\n"));
        assert!(text(4, 0).contains("Upgrade: websocket\r\n"));
        assert!(requests[4].expected_status.contains(101));
    }

    #[test]
    fn mistakes_are_told_with_line_and_cure() {
        for (text, words) in [
            ("", &["no request", "[[request]]"][..]),
            (
                "[[request]]\nname='a'\nwieght=2",
                &[":3:", "wieght", "did you mean `weight`?"],
            ),
            (
                "[defaults]\ntimeuot='1s'",
                &[":2:", "did you mean `timeout`?"],
            ),
            (
                "[[request]]\nname='a'\nkind='websocket'\nmessages=0",
                &[":4:", "messages", "at least 1"],
            ),
            (
                "[defaults]\ntimeout='1s'\nexpect_status='x'\n[[request]]\nname='a'",
                &[":3:", "expect_status"],
            ),
            (
                "[defaults]\nheaders='x'\n[[request]]\nname='a'\nheaders='A: b'",
                &[":2:", "headers"],
            ),
            ("x=1", &[":1:", "x"]),
            ("\n[[request]]\nweight=2", &[":2:", "name"]),
            (
                "[[request]]\nname='a'\nweight=0",
                &[":3:", "request a", "weight"],
            ),
            (
                "[[request]]\nname='a'\n[[request]]\nname='a'",
                &[":4:", "names must differ"],
            ),
            ("[[request]]\nname='a'\nthink='5'", &[":3:", "unit"]),
            ("[[request]]\nname='a'\nthink=5", &[":3:", "unit"]),
            ("[[request]]\nname='a'\nkind='ftp'", &[":3:", "websocket"]),
            (
                "[[request]]\nname='a'\nbody='x'\nbody_size=3",
                &[":4:", "one of body"],
            ),
            (
                "[[request]]\nname='a'\nbody_size='3 apples'",
                &[":3:", "10KiB"],
            ),
            (
                "[[request]]\nname='a'\nbody_size={uniform=[5,2]}",
                &[":3:", "lower"],
            ),
            (
                "[[request]]\nname='a'\nbody_size={list=[]}",
                &[":3:", "empty"],
            ),
            (
                "[[request]]\nname='a'\nbody_size={log_normal={median=5,sigma=-1}}",
                &["sigma"],
            ),
            (
                "[[request]]\nname='a'\nbody_file='/nonexistent'",
                &[":3:", "/nonexistent"],
            ),
            (
                "[[request]]\nname='a'\nexpect_status='ok'",
                &["expect_status"],
            ),
            ("[[request]]\nname='a'\nmessages=2", &[":3:", "websocket"]),
            ("[[request]]\nname='a'\nexpect_events=2", &["sse"]),
            (
                "[[request]]\nname='a'\nverify=true",
                &["download or upload"],
            ),
            (
                "[[request]]\nname='a'\nkind='sse'\nexpect_body='x'",
                &[":4:", "kind http"],
            ),
            (
                "[[request]]\nname='a'\nheaders=['no colon']",
                &[":3:", "Name: value"],
            ),
        ] {
            let Err(error) = parse(text) else {
                panic!("accepted {text:?}");
            };
            for word in words {
                assert!(
                    error.contains(word),
                    "{text:?}: `{word}` is not in: {error}"
                );
            }
        }
    }

    #[test]
    fn what_cannot_be_rendered_is_refused_with_the_cure() {
        for (defaults, text, word, line) in [
            ("", "weight=2\nkind='upload'", "body", 5),
            ("", "kind='websocket'\nmethod='POST'", "GET", 5),
            ("", "kind='websocket'\nbody='x'", "GET", 5),
            ("", "weight=2\npath='/bytes/{size}'", "takes a size", 5),
            ("", "weight=2\nsize=5", "path that holds", 5),
            ("", "weight=2\npath='bytes'", "begins with /", 5),
            ("", "weight=2\nmethod='G T'", "token", 5),
            ("", "weight=2\nheaders='Host: other'", "Host", 5),
            ("", "headers=[\n'Content-Length: 9']", "Content-Length", 4),
            // A default is wrong only for who does not replace it, and its line is the place.
            ("method='HEAD'\n", "kind='download'", "downloads nothing", 2),
            (
                "headers='Transfer-Encoding: chunked'\n",
                "headers='A: b'",
                "Transfer-Encoding",
                2,
            ),
        ] {
            let specs = parse(&format!(
                "[defaults]\n{defaults}[[request]]\nname='a'\n{text}"
            ))
            .unwrap();
            let url = Url::parse("https://api.example.com/ok").unwrap();
            let wrong = specs[0].request(&url, &[], false).err().unwrap();
            assert!(wrong.text.contains(word), "{text}: {}", wrong.text);
            assert_eq!(specs[0].line_of(wrong.keys), line, "{text}");
        }
    }

    #[test]
    fn no_error_quotes_a_header() {
        for line in [
            "headers = 's3cret'",
            "headers = ['s3cret']",
            "headers = ['A: s3cret\\u0007', 5]",
        ] {
            let line = line.replace('\'', "\"");
            let error = parse(&format!("[[request]]\nname='a'\n{line}"))
                .err()
                .unwrap();
            assert!(!error.contains("s3cret"), "{error}");
        }
    }
}
