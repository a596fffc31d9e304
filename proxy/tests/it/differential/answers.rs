//! Whatever answer Claviger passes on is read in one way only: by llhttp, h11, Python's http.client and
//! hyper, in the same way as by the naive reading here. An answer that two of them understood
//! differently could be one answer to Claviger and two to a caller, or the next one's.
//!
//! Generated answers go through the real binary to callers that record bytes, with another
//! exchange behind each on the same connection. `scripts/differential 1 SEED` replays a seed.

mod generate;
mod hyper;

use std::fmt::Write as _;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::Path;

use memchr::memmem;
use serde::Deserialize;

use super::judges::{Talker, comparable};
use super::{latin, number, python};
use crate::coded::target;
use crate::harness::scripted::Peer;
use crate::harness::world::{Claviger, HOST, bearer_route};
use crate::harness::{PATIENCE, Scripted, World};

/// Connections of a run, unless `CLAVIGER_DIFFERENTIAL` says otherwise.
const CONNECTIONS: u64 = 10_000;

/// Disagreements after which a run ends.
const TOLD_MAX: usize = 5;

/// For answers that end in the middle while their connection stays.
const HASTY: &str = "response_head_timeout = \"100ms\"\nread_timeout = \"100ms\"\n";

/// The answer to the request that follows on each connection.
const LAST: &str = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlast";

/// An answer as somebody read it. Bytes are written as Latin-1; what a parser does not tell is `None`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Answer {
    status: u16,
    fields: Option<Vec<(String, String)>>,
    /// Without its framing.
    body: String,
    trailers: Option<Vec<(String, String)>>,
    /// Statuses of the interim answers before it.
    interim: Option<Vec<u16>>,
}

/// What a connection's bytes are to somebody.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Reading {
    /// The answers, up to an error.
    answers: Vec<Answer>,
    /// Why nothing more was read.
    error: Option<String>,
}

impl Answer {
    /// Whether both are the same, as far as both tell.
    fn agrees(&self, other: &Answer) -> bool {
        let pairs = |one: &Option<Vec<_>>, other: &Option<Vec<_>>| match (one, other) {
            (Some(one), Some(other)) => comparable(one, &[]) == comparable(other, &[]),
            _ => true,
        };
        let interim = match (&self.interim, &other.interim) {
            (Some(one), Some(other)) => one == other,
            _ => true,
        };
        self.status == other.status
            && self.body == other.body
            && pairs(&self.fields, &other.fields)
            && pairs(&self.trailers, &other.trailers)
            && interim
    }
}

/// What a caller received on one connection.
#[derive(Debug, Clone)]
struct Received {
    seed: u64,
    /// Of its requests, in order.
    methods: [&'static str; 2],
    bytes: Vec<u8>,
    /// Whether it ended in a reset.
    is_reset: bool,
}

/// A parser that others wrote.
struct Judge {
    name: &'static str,
    way: Way,
    /// It takes every interim answer but 100 for the final one.
    knows_only_100: bool,
}

enum Way {
    Process(Box<Talker>),
    Here(fn(&[&str], &[&[u8]]) -> Reading),
}

impl Judge {
    fn all() -> Vec<Self> {
        let parsers = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/differential/parsers");
        let talker = |name, way| Self {
            name,
            way: Way::Process(Box::new(way)),
            knows_only_100: name == "http.client",
        };
        let of_python = |name: &'static str| {
            let arguments = ["-B".into(), parsers.join("answers.py"), name.into()];
            talker(name, Talker::start(python(), &arguments))
        };
        let node = Talker::start("node".into(), &[parsers.join("answers.mjs")]);
        vec![
            talker("llhttp", node),
            of_python("h11"),
            of_python("http.client"),
            Self {
                name: "hyper",
                way: Way::Here(hyper::hyper),
                knows_only_100: false,
            },
        ]
    }

    /// How it reads what was received, whose answers are `parts` to the naive reading.
    #[track_caller]
    fn read(&mut self, methods: &[&str], bytes: &[u8], parts: &[&[u8]]) -> Reading {
        match &mut self.way {
            Way::Process(talker) => {
                let message = [methods.join(" ").as_bytes(), b"\n", bytes].concat();
                talker
                    .ask(&message)
                    .unwrap_or_else(|err| panic!("the judge {} is lost: {err}", self.name))
            }
            Way::Here(read) => read(methods, parts),
        }
    }
}

#[test]
fn what_is_answered_is_read_in_one_way_only() {
    let count = number("CLAVIGER_DIFFERENTIAL", CONNECTIONS);
    let first = number("CLAVIGER_DIFFERENTIAL_SEED", 1);
    let site = Site::start();
    let mut judges = Judge::all();
    let (mut passed, mut cut, mut told) = (0u64, 0u64, Vec::new());
    for seed in first..first + count {
        let received = site.call(seed);
        told.extend(disagreement(&mut judges, &received));
        assert!(told.len() < TOLD_MAX, "{}", told.join("\n"));
        let is_ours = memmem::find(&received.bytes, b"\r\nClaviger-Answer: ").is_some();
        passed += u64::from(!is_ours);
        cut += u64::from(received.is_reset);
    }
    assert!(told.is_empty(), "{}", told.join("\n"));
    println!(
        "{count} connections from seed {first}, {passed} answers passed on, {cut} of them cut, and read alike"
    );
    // A run in which nearly everything is refused, or nothing is ever cut, shows nearly nothing.
    assert!(
        count < 100 || passed > count / 3,
        "only {passed} of {count} were passed on"
    );
    assert!(count < 5000 || cut > 20, "only {cut} were cut");
}

/// The judges do disagree about what is ambiguous, and the comparison notices.
#[test]
fn an_ambiguous_answer_is_noticed() {
    let mut judges = Judge::all();
    let received = |text: &str| Received {
        seed: 0,
        methods: ["GET", "GET"],
        bytes: super::bytes_of(text),
        is_reset: false,
    };
    for ambiguous in [
        "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "Content-Length: 0\r\nContent-Length: 3\r\n\r\nabc",
        "Content-Length: 2\nX: y\r\n\r\nok",
        "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n0x2\r\nok\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked, identity\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        "Transfer-Encoding: \u{b}chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        "Content-Length: +2\r\n\r\nok",
        "Content-Length: 2, 2\r\n\r\nok",
        "X: a\r\n Content-Length: 2\r\nContent-Length: 2\r\n\r\nok",
    ] {
        let text = format!("HTTP/1.1 200 OK\r\n{ambiguous}{LAST}");
        assert!(
            disagreement(&mut judges, &received(&text)).is_some(),
            "{text:?}"
        );
    }
    for plain in [
        "X-A: \u{e9}\r\nContent-Length: 2\r\n\r\nok",
        "Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-T: 1\r\n\r\n",
    ] {
        let text = format!("HTTP/1.1 103 Early\r\nLink: a\r\n\r\nHTTP/1.1 200 OK\r\n{plain}{LAST}");
        assert_eq!(disagreement(&mut judges, &received(&text)), None, "{text}");
    }
}

/// What is done to an answer that was passed on.
type Mangle = fn(&str) -> Option<String>;

/// What is answered in another way than Claviger does is noticed: each kind of slip, made in the very
/// bytes that it passed on.
#[test]
fn a_slip_in_answering_is_noticed() {
    let site = Site::start();
    let mut judges = Judge::all();
    let mangles: [(&str, Mangle); 7] = [
        ("a length too short", |text| with_length(text, -1)),
        ("a length too long", |text| with_length(text, 1)),
        ("a second length", |text| {
            with_length(text, 0)?;
            Some(text.replacen("\r\n\r\n", "\r\nContent-Length: 1\r\n\r\n", 1))
        }),
        ("chunks that are none", |text| {
            with_length(text, 0)?;
            Some(text.replacen("\r\n\r\n", "\r\nTransfer-Encoding: chunked\r\n\r\n", 1))
        }),
        ("a hidden answer", |text| {
            let at = text.rfind("HTTP/1.1 200 OK\r\n")?;
            Some(format!("{}{LAST}{}", &text[..at], &text[at..]))
        }),
        ("a chunk's size", |text| {
            let at = text.find("chunked\r\n")?;
            let from = text[at..].find("\r\n\r\n")? + at + 4;
            Some(format!("{}1{}", &text[..from], &text[from..]))
        }),
        ("a chunk's end", |text| {
            let at = text.find("chunked\r\n")?;
            let from = text[at..].find("\r\n0\r\n")? + at;
            Some(format!("{}{}", &text[..from], &text[from + 2..]))
        }),
    ];
    let all: Vec<Received> = (1..=300)
        .map(|seed| site.call(seed))
        .filter(|received| !received.is_reset && received.bytes.ends_with(b"last"))
        .collect();
    for (name, mangle) in mangles {
        let (good, bad) = all
            .iter()
            .filter(|good| good.methods[0] != "HEAD")
            .find_map(|good| {
                let mut bad = good.clone();
                bad.bytes = super::bytes_of(&mangle(&latin(&good.bytes))?);
                Some((good, bad))
            })
            .unwrap_or_else(|| panic!("{name}: nothing to do it to"));
        assert_eq!(disagreement(&mut judges, good), None, "{name}");
        let told = disagreement(&mut judges, &bad);
        assert!(told.is_some(), "{name}: {}", bad.bytes.escape_ascii());
    }
}

/// The same bytes with another length in the first head, if there is one that is not 0.
fn with_length(text: &str, by: isize) -> Option<String> {
    let (head, _) = text.split_once("\r\n\r\n")?;
    let at = head.find("\r\nContent-Length: ")? + 18;
    let end = head[at..].find("\r\n").map_or(head.len(), |end| at + end);
    let length: isize = head[at..end].parse().ok()?;
    let is_final = !text.starts_with("HTTP/1.1 1") && !text.starts_with("HTTP/1.1 304");
    (length > 0 && is_final).then(|| format!("{}{}{}", &text[..at], length + by, &text[end..]))
}

/// Claviger, and an upstream that answers as seeds say.
struct Site {
    claviger: Claviger,
    _upstream: Scripted,
    _world: World,
}

impl Site {
    fn start() -> Self {
        let world = World::new();
        let (_, key_file) = world.key_file("key");
        let upstream = Scripted::start(&world, HOST, answer);
        let claviger = world.start(&format!(
            "{}[[listener]]\nname = \"main\"\naddress = \"127.0.0.1:0\"\ntls = false\n{}{HASTY}{}",
            world.base_without_listener(),
            upstream.upstream("mock", HOST),
            bearer_route(&key_file)
        ));
        Self {
            claviger,
            _upstream: upstream,
            _world: world,
        }
    }

    /// Asks what the caller of this seed asks, and then for the last answer.
    fn call(&self, seed: u64) -> Received {
        let (method, version) = generate::asked(seed);
        let mut socket = TcpStream::connect(self.claviger.address()).expect("Claviger listens");
        socket.set_read_timeout(Some(PATIENCE)).expect("a socket");
        let requests = format!(
            "{method} /a/{seed} {version}\r\nHost: {HOST}\r\n\r\nGET /last HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n"
        );
        let _ = socket.write_all(requests.as_bytes());
        let mut bytes = Vec::new();
        let read = socket.read_to_end(&mut bytes);
        let is_reset = match &read {
            Ok(_) => false,
            Err(err) if err.kind() == ErrorKind::ConnectionReset => true,
            Err(err) => panic!("seed {seed}: {err}"),
        };
        Received {
            seed,
            methods: [method, "GET"],
            bytes,
            is_reset,
        }
    }
}

/// One connection of the upstream.
fn answer(peer: &mut Peer) {
    while let Some(head) = peer.head() {
        let Some(seed) = target(&head).strip_prefix("/a/") else {
            peer.send(LAST);
            continue;
        };
        let (bytes, ends) = generate::answer(seed.parse().expect("a seed"));
        if !peer.send(&bytes) || ends {
            peer.close();
            return;
        }
    }
}

/// What somebody reads differently, if anybody does.
fn disagreement(judges: &mut [Judge], received: &Received) -> Option<String> {
    let Received { methods, bytes, .. } = received;
    let (ours, parts) = read(methods, bytes);
    let is_whole = !received.is_reset;
    if is_whole && (ours.error.is_some() || bytes.is_empty()) {
        return Some(format!(
            "seed {}, whose end is a clean one, is {ours:?} in {}",
            received.seed,
            bytes.escape_ascii()
        ));
    }
    let others_than_100 = |answer: &Answer| {
        let interim = answer.interim.iter().flatten();
        interim.into_iter().any(|&status| status != 100)
    };
    let mut told = String::new();
    for judge in judges {
        if judge.knows_only_100 && (ours.answers.iter().any(others_than_100) || !is_whole) {
            continue;
        }
        let theirs = judge.read(&methods[..], bytes, &parts);
        let agrees = if is_whole {
            theirs.error.is_none()
                && theirs.answers.len() == ours.answers.len()
                && (theirs.answers.iter().zip(&ours.answers)).all(|(one, other)| one.agrees(other))
        } else if ours.error.is_none() {
            // A body that the connection's end ends: the reset is what tells, and nobody here sees it.
            true
        } else {
            // Without a final answer there is nothing to take for whole.
            theirs.error.is_some() || theirs.answers.is_empty()
        };
        if !agrees {
            let _ = writeln!(
                told,
                "seed {}, {} reads {theirs:?}\n  and not {ours:?}\n  in {}",
                received.seed,
                judge.name,
                bytes.escape_ascii()
            );
        }
    }
    (!told.is_empty()).then_some(told)
}

/// A naive reading, enough for what Claviger writes: the answers, and the bytes of each.
fn read<'b>(methods: &[&str], bytes: &'b [u8]) -> (Reading, Vec<&'b [u8]>) {
    let mut reading = Reading {
        answers: Vec::new(),
        error: None,
    };
    let mut parts = Vec::new();
    let mut rest = bytes;
    for method in methods {
        if rest.is_empty() {
            break;
        }
        match read_one(method, rest) {
            Ok((answer, used, closes)) => {
                reading.answers.push(answer);
                parts.push(&rest[..used]);
                rest = &rest[used..];
                if closes {
                    break;
                }
            }
            Err(problem) => {
                reading.error = Some(problem.to_owned());
                parts.push(rest);
                return (reading, parts);
            }
        }
    }
    if !rest.is_empty() {
        reading.error = Some(format!("{} bytes more", rest.len()));
        parts.push(rest);
    }
    (reading, parts)
}

/// One answer, its interim ones included: how many bytes it has, and whether none follows.
fn read_one(method: &str, bytes: &[u8]) -> Result<(Answer, usize, bool), &'static str> {
    let mut at = 0;
    let mut interim = Vec::new();
    let (status, fields) = loop {
        let length = memmem::find(&bytes[at..], b"\r\n\r\n").ok_or("a cut head")?;
        let head = latin(&bytes[at..at + length]);
        at += length + 4;
        let mut lines = head.split("\r\n");
        let line = lines.next().unwrap_or_default();
        let status = line.strip_prefix("HTTP/1.1 ").ok_or("a status line")?;
        let status: u16 = status
            .get(..3)
            .and_then(|digits| digits.parse().ok())
            .ok_or("a status")?;
        if status >= 200 {
            break (status, super::fields(lines));
        }
        interim.push(status);
    };
    let value = |name: &str| {
        let mut found = fields
            .iter()
            .filter(|(other, _)| other.eq_ignore_ascii_case(name));
        found.next().map(|(_, value)| &**value)
    };
    let mut closes = value("connection") == Some("close");
    let mut trailers = Vec::new();
    let rest = &bytes[at..];
    let body = if method == "HEAD" || matches!(status, 204 | 304) {
        String::new()
    } else if value("transfer-encoding").is_some() {
        let (body, used) = unchunk(rest, &mut trailers)?;
        at += used;
        body
    } else if let Some(length) = value("content-length") {
        let length: usize = length.parse().map_err(|_| "a length")?;
        let body = rest.get(..length).ok_or("a cut body")?;
        at += length;
        latin(body)
    } else {
        closes = true;
        at = bytes.len();
        latin(rest)
    };
    let answer = Answer {
        status,
        fields: Some(fields),
        body,
        trailers: Some(trailers),
        interim: Some(interim),
    };
    Ok((answer, at, closes))
}

fn unchunk(
    bytes: &[u8],
    trailers: &mut Vec<(String, String)>,
) -> Result<(String, usize), &'static str> {
    let mut body = String::new();
    let mut at = 0;
    loop {
        let line = memmem::find(&bytes[at..], b"\r\n").ok_or("a cut chunk")?;
        let size = usize::from_str_radix(&latin(&bytes[at..at + line]), 16);
        let size = size.map_err(|_| "a chunk's size")?;
        at += line + 2;
        if size == 0 {
            // The last chunk's line end stands for an empty list of trailers.
            let last = memmem::find(&bytes[at - 2..], b"\r\n\r\n").ok_or("a cut end")?;
            let stop = at - 2 + last;
            if stop > at {
                trailers.extend(super::fields(latin(&bytes[at..stop]).split("\r\n")));
            }
            return Ok((body, stop + 4));
        }
        let data = bytes.get(at..at + size).ok_or("a cut chunk")?;
        body.push_str(&latin(data));
        if bytes.get(at + size..at + size + 2) != Some(b"\r\n") {
            return Err("a chunk's end");
        }
        at += size + 2;
    }
}
