//! The table's rows: read from `cases/*.toml`, checked, and expanded to bytes.
//!
//! The format is strict: an unknown field, a name used twice, a marker that does not exist or a row
//! that expects nothing is an error. `cases/README.md` describes it.

use std::collections::HashSet;
use std::path::Path;

use serde::Deserialize;

/// A file of the table: one topic.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    /// Shown as the table's section.
    topic: String,
    case: Vec<Case>,
}

/// One row.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// In snake_case, unique in the whole table.
    pub name: String,
    /// The section of an RFC, a CVE or a publication that the row obeys.
    pub rule: String,
    /// The topic of its file.
    #[serde(skip)]
    pub topic: String,
    /// What stands in front of the upstream: see [`Layout`].
    #[serde(default)]
    pub layout: Layout,
    /// All that the caller sends, if it needs no steps.
    send: Option<String>,
    /// What the caller does, in order, if one `send` is not enough.
    #[serde(default)]
    steps: Vec<Step>,
    /// What the upstream does; a request without one gets the marker.
    #[serde(default)]
    pub answer: Vec<Answer>,

    /// Nothing reaches the upstream, and the caller gets this status and the end.
    refused: Option<u16>,
    /// One request reaches the upstream, and the caller gets its own 200. Both connections stay.
    #[serde(default)]
    passes: bool,
    /// The upstream's answer is replaced by this status, and its connection goes.
    fails: Option<u16>,
    /// The caller gets this status and then not the whole answer; both connections go.
    truncated: Option<u16>,

    /// Final statuses that the caller gets, in order.
    statuses: Option<Vec<u16>>,
    /// Interim statuses that it gets on the way.
    pub interim: Option<Vec<u16>>,
    /// Complete requests that the upstream gets.
    requests: Option<usize>,
    /// Whether part of a further request may have reached the upstream before it was cut.
    #[serde(default)]
    pub partial: bool,
    /// Our machine-readable reason for the last answer.
    pub reason: Option<String>,
    /// The body of the last answer. Without it a 200 must carry its own marker.
    pub body: Option<String>,
    /// The whole bytes of each request that the upstream got, as patterns.
    #[serde(default)]
    pub upstream: Vec<String>,
    /// Stands in what the upstream received.
    #[serde(default)]
    pub upstream_has: Vec<String>,
    /// Stands nowhere in what the upstream received.
    #[serde(default)]
    pub upstream_lacks: Vec<String>,
    /// Stands in what the caller received.
    #[serde(default)]
    pub client_has: Vec<String>,
    /// Stands nowhere in what the caller received.
    #[serde(default)]
    pub client_lacks: Vec<String>,
    /// What becomes of the caller's connection.
    down: Option<Down>,
    /// What becomes of the upstream's last connection.
    up: Option<Up>,
}

/// Which routes a row's host has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    /// One route for everything, with a bearer key.
    #[default]
    Plain,
    /// `/` as above; `/locked` for nobody; `/mapped` to `/inner` of the upstream.
    Paths,
    /// One route for everything, with the key in the query as `key`.
    Query,
    /// The upstream is told where requests come from, in each field that there is for it.
    Telling,
    /// As [`Telling`](Self::Telling), with a caller that is trusted to know more.
    Trusting,
    /// Some fields are removed from answers.
    Hiding,
    /// The upstream has little time.
    Hasty,
}

/// One thing that the caller does.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Step {
    /// Sends bytes in a TLS record of their own.
    Send(String),
    /// Waits until the upstream has received these.
    UntilUpstream(String),
    /// Reads until these have arrived.
    UntilClient(String),
    /// Says goodbye in TLS and ends its half of the connection.
    HalfClose,
    /// Cuts the connection with a reset; nothing is read after that.
    Reset,
}

/// One thing that the upstream does.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answer {
    /// To the how-manieth request of the case, from 1.
    #[serde(default = "one")]
    pub request: usize,
    /// When.
    #[serde(default)]
    pub on: On,
    /// Waits until the caller has received these bytes before it sends.
    pub after_client: Option<String>,
    /// The bytes, raw.
    #[serde(default)]
    send: String,
    /// What it does with the connection then.
    #[serde(default)]
    pub end: End,
}

fn one() -> usize {
    1
}

/// When the upstream does something.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum On {
    /// When the request is there, whole.
    #[default]
    Request,
    /// When its head is there.
    Head,
    /// As soon as a connection is open.
    Connect,
    /// In the server's own flight of the handshake (0.5-RTT data); on the first connection alone.
    Handshake,
    /// In clear text, before the handshake; on the first connection alone.
    Socket,
}

/// How a side ends a connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// Not at all.
    #[default]
    Keep,
    /// With close_notify and FIN.
    Goodbye,
    /// With FIN, without close_notify.
    Fin,
    /// With a reset.
    Reset,
}

/// What becomes of the caller's connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Down {
    /// It serves another request.
    Kept,
    /// It ends after what the caller got.
    Closed,
    /// The case itself ended it.
    Gone,
}

/// What becomes of the upstream's connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Up {
    /// The next request goes over it.
    Reused,
    /// No further request ever goes over it.
    Dropped,
    /// Not said.
    Any,
}

/// How a row ends for the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// What came in was not passed on.
    Refused,
    /// It was, and its answer came back.
    Passes,
    /// It was, and its answer was not passed on.
    Fails,
    /// Part of the answer was passed on, visibly so.
    Truncated,
}

impl Case {
    /// What this row is about.
    pub fn outcome(&self) -> Outcome {
        match (self.refused, self.passes, self.fails, self.truncated) {
            (Some(_), ..) => Outcome::Refused,
            (_, true, ..) => Outcome::Passes,
            (_, _, Some(_), _) => Outcome::Fails,
            _ => Outcome::Truncated,
        }
    }

    /// Final statuses that the caller gets, in order.
    pub fn statuses(&self) -> Vec<u16> {
        self.statuses.clone().unwrap_or_else(|| {
            let one = self.refused.or(self.fails).or(self.truncated);
            vec![one.unwrap_or(200)]
        })
    }

    /// Complete requests that the upstream gets.
    pub fn requests(&self) -> usize {
        self.requests
            .unwrap_or(usize::from(self.outcome() != Outcome::Refused))
    }

    /// What becomes of the caller's connection.
    pub fn down(&self) -> Down {
        self.down.unwrap_or(match self.outcome() {
            Outcome::Passes | Outcome::Fails => Down::Kept,
            Outcome::Refused | Outcome::Truncated => Down::Closed,
        })
    }

    /// What becomes of the upstream's connection.
    pub fn up(&self) -> Up {
        self.up.unwrap_or(match self.outcome() {
            Outcome::Passes => Up::Reused,
            Outcome::Fails | Outcome::Truncated => Up::Dropped,
            Outcome::Refused => Up::Any,
        })
    }

    /// What the caller does, in order.
    pub fn steps(&self) -> Vec<Step> {
        match &self.send {
            Some(send) => vec![Step::Send(send.clone())],
            None => self.steps.clone(),
        }
    }

    /// Whether the method of every request is HEAD, so that no answer has a body.
    pub fn is_head(&self) -> bool {
        self.steps()
            .iter()
            .any(|step| matches!(step, Step::Send(bytes) if bytes.starts_with("HEAD ")))
    }

    fn check(&self) -> Result<(), String> {
        let outcomes = usize::from(self.refused.is_some())
            + usize::from(self.passes)
            + usize::from(self.fails.is_some())
            + usize::from(self.truncated.is_some());
        if outcomes != 1 {
            return Err("exactly one of refused, passes, fails and truncated".into());
        }
        if self.send.is_some() != self.steps.is_empty() {
            return Err("either send or steps".into());
        }
        if self.rule.is_empty() {
            return Err("a rule".into());
        }
        let snake = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        if self.name.is_empty() || !self.name.chars().all(snake) {
            return Err("a name in snake_case".into());
        }
        Ok(())
    }
}

impl Answer {
    /// The bytes, unexpanded.
    pub fn send(&self) -> &str {
        &self.send
    }
}

/// Every row of the directory, in the order of file names.
pub fn load(directory: &Path) -> Vec<Case> {
    let mut files: Vec<_> = std::fs::read_dir(directory)
        .expect("the table is there")
        .map(|entry| entry.expect("readable").path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "toml")
        })
        .collect();
    files.sort();
    let mut cases = Vec::new();
    for path in files {
        let text = std::fs::read_to_string(&path).expect("readable");
        cases.extend(parse(&path.display().to_string(), &text));
    }
    let mut names = HashSet::new();
    for case in &cases {
        assert!(names.insert(&case.name), "{} is there twice", case.name);
    }
    cases
}

/// The rows of one file, which is called `place`.
pub fn parse(place: &str, text: &str) -> Vec<Case> {
    let file: File = toml::from_str(text).unwrap_or_else(|err| panic!("{place}: {err}"));
    let mut cases = file.case;
    for case in &mut cases {
        if let Err(problem) = case.check() {
            panic!("{place}: {}: needs {problem}", case.name);
        }
        case.topic.clone_from(&file.topic);
    }
    cases
}

/// What the markers in a row's texts stand for.
#[derive(Debug, Clone)]
pub struct Words {
    /// The host that the caller asks for.
    pub host: String,
    /// The injected key.
    pub key: String,
}

/// The host under which the upstream is known.
pub const UPSTREAM_HOST: &str = "up.example.com";

impl Words {
    /// The bytes that a text stands for. A character up to U+00FF is the byte of its number;
    /// `⟨...⟩` is a marker.
    pub fn bytes(&self, text: &str) -> Vec<u8> {
        let mut parts = self.pattern(text);
        assert!(parts.len() == 1, "⟨any⟩ stands in a pattern only: {text}");
        parts.remove(0)
    }

    /// The pieces between a pattern's `⟨any⟩`.
    pub fn pattern(&self, text: &str) -> Vec<Vec<u8>> {
        let mut parts = vec![Vec::new()];
        let mut rest = text;
        while let Some(c) = rest.chars().next() {
            rest = &rest[c.len_utf8()..];
            if c != '⟨' {
                let byte = u8::try_from(u32::from(c))
                    .unwrap_or_else(|_| panic!("{c:?} is no byte: {text}"));
                parts.last_mut().expect("never empty").push(byte);
                continue;
            }
            let (marker, after) = rest.split_once('⟩').expect("a marker ends with ⟩");
            rest = after;
            if marker == "any" || marker == "record" {
                parts.push(Vec::new());
            } else {
                let bytes = self.marker(marker);
                parts.last_mut().expect("never empty").extend(bytes);
            }
        }
        parts
    }

    fn marker(&self, marker: &str) -> Vec<u8> {
        let Self { host, key } = self;
        match marker {
            "host" => host.clone().into_bytes(),
            "key" => key.clone().into_bytes(),
            "up" => UPSTREAM_HOST.into(),
            "get" => format!("GET /x HTTP/1.1\r\nHost: {host}\r\n").into_bytes(),
            "post" => format!("POST /x HTTP/1.1\r\nHost: {host}\r\n").into_bytes(),
            "200" => b"HTTP/1.1 200 OK\r\n".to_vec(),
            "ok" => b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec(),
            _ => {
                let repeated = marker
                    .rsplit_once('*')
                    .and_then(|(what, count)| Some((what, count.parse().ok()?)));
                match repeated {
                    Some((what, count)) => self.bytes(what).repeat(count),
                    None => panic!("no such marker: {marker}"),
                }
            }
        }
    }
}
