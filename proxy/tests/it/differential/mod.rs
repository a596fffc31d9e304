//! Whatever Claviger forwards is read in one way only: by llhttp, h11, gunicorn,
//! waitress, nginx and hyper, which were written by six parties, in the same way as by the
//! naive reading of the upstream here. A request that two of them understood differently
//! could be one request to Claviger and two to an API.
//!
//! Generated requests go through the real binary to an upstream that records bytes.
//! What was recorded is put together to connections as an API would see them. Any
//! disagreement is a defect, and is printed with its seed:
//! `scripts/differential 1 SEED` replays it.

mod answers;
mod generate;
mod hyper;
mod judges;
mod nginx;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use judges::{Judge, Reading, Seen};
use memchr::memmem;

use crate::harness::scripted::Peer;
use crate::harness::world::Claviger;
use crate::harness::world::{HOST, bearer_route};
use crate::harness::{PATIENCE, Scripted, World};

/// Connections of a run, unless `CLAVIGER_DIFFERENTIAL` says otherwise.
const CONNECTIONS: u64 = 10_000;

/// Requests that are put together to one connection.
const TOGETHER: usize = 12;

/// Disagreements after which a run ends.
const TOLD_MAX: usize = 5;

/// A request as it was recorded, with the seed of what led to it.
#[derive(Debug, Clone)]
struct Recorded {
    seed: u64,
    bytes: Vec<u8>,
}

#[test]
fn what_is_forwarded_is_read_in_one_way_only() {
    let count = number("CLAVIGER_DIFFERENTIAL", CONNECTIONS);
    let first = number("CLAVIGER_DIFFERENTIAL_SEED", 1);
    let site = Site::start(first);
    let mut judges = Judge::all(&site.world, &python());
    let (mut forwarded, mut told) = (0, Vec::new());
    for at in first..first + count {
        site.call(at);
        // Now and then, so that a long run needs no more memory than a short one.
        if at % 500 == 499 || at + 1 == first + count {
            let recorded = site.recorded();
            forwarded += recorded.len();
            for together in recorded.chunks(TOGETHER) {
                told.extend(disagreement(&mut judges, together));
            }
            assert!(told.is_empty(), "{} disagreements:\n{}", told.len(), {
                told.truncate(TOLD_MAX);
                told.join("\n")
            });
        }
    }
    println!(
        "{count} connections from seed {first}, {forwarded} requests forwarded and read alike"
    );
    // A run in which nearly everything is refused shows nearly nothing.
    assert!(
        count < 100 || forwarded as u64 > count / 3,
        "only {forwarded} of {count} were forwarded"
    );
}

/// The judges do disagree about what is ambiguous, and the comparison notices.
#[test]
fn what_is_ambiguous_is_noticed() {
    let world = World::new();
    let mut judges = Judge::all(&world, &python());
    let host = format!("Host: {HOST}\r\n");
    for ambiguous in [
        // Both framings: two requests or one.
        format!(
            "POST / HTTP/1.1\r\n{host}Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        ),
        // Two lengths.
        format!("POST / HTTP/1.1\r\n{host}Content-Length: 0\r\nContent-Length: 3\r\n\r\nabc"),
        // A line end that is one to some.
        format!("GET / HTTP/1.1\r\n{host}X: a\nY: b\r\n\r\n"),
        // A space before a colon.
        format!("POST / HTTP/1.1\r\n{host}Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n"),
        // A chunk's size that is one to some.
        format!("POST / HTTP/1.1\r\n{host}Transfer-Encoding: chunked\r\n\r\n0x1\r\na\r\n0\r\n\r\n"),
        // A header that is folded.
        format!("GET / HTTP/1.1\r\n{host}X: a\r\n b\r\n\r\n"),
    ] {
        let recorded = [Recorded {
            seed: 0,
            bytes: ambiguous.clone().into_bytes(),
        }];
        assert!(
            disagreement(&mut judges, &recorded).is_some(),
            "{ambiguous:?}"
        );
    }
    // And about the rest they agree.
    let plain = [
        format!("GET /a%2Fb?c=%20 HTTP/1.1\r\n{host}X-A: \u{1}\r\n\r\n").replace('\u{1}', "b"),
        format!("POST / HTTP/1.1\r\n{host}Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX-T: 1\r\n\r\n"),
        format!("PUT / HTTP/1.1\r\n{host}Content-Length: 3\r\n\r\nabc"),
    ]
    .map(|text| Recorded {
        seed: 0,
        bytes: text.into_bytes(),
    });
    assert_eq!(disagreement(&mut judges, &plain), None);
}

/// What is done to a request that was forwarded.
type Mangle = fn(&str) -> Option<String>;

/// What is forwarded in another way than Claviger does is noticed: each kind of slip, made
/// in the very bytes that it forwarded.
#[test]
fn a_slip_in_forwarding_is_noticed() {
    let site = Site::start(1);
    for seed in 1..=300 {
        site.call(seed);
    }
    let recorded = site.recorded();
    let mut judges = Judge::all(&site.world, &python());
    let replaced = |from: &str, to: &str, text: &str| {
        let (head, body) = text.split_once("\r\n\r\n")?;
        let head = head.contains(from).then(|| head.replacen(from, to, 1))?;
        Some(format!("{head}\r\n\r\n{body}"))
    };
    // Where a body ends is another matter than in which way: the second half of each is
    // what an honest reading would not show.
    let mangles: [(&str, Mangle); 8] = [
        ("a length too short", |text| {
            let (head, length) = length_of(text)?;
            (length > 0).then(|| with_length(text, head, length - 1))
        }),
        ("a length too long", |text| {
            let (head, length) = length_of(text)?;
            Some(with_length(text, head, length + 1))
        }),
        ("a second length", |text| {
            let (_, length) = length_of(text)?;
            let second = format!("\r\nContent-Length: {}\r\n\r\n", length + 1);
            Some(text.replacen("\r\n\r\n", &second, 1))
        }),
        ("chunks that are none", |text| {
            length_of(text)?;
            Some(text.replacen("\r\n\r\n", "\r\nTransfer-Encoding: chunked\r\n\r\n", 1))
        }),
        ("no framing", |text| {
            let (head, length) = length_of(text)?;
            let field = format!("\r\nContent-Length: {length}");
            (length > 0).then(|| format!("{}{}", head.replace(&field, ""), &text[head.len()..]))
        }),
        ("a bare line feed", |text| {
            Some(text.replacen("\r\nHost", "\nX: a\nHost", 1)).filter(|it| it != text)
        }),
        ("a hidden request", |text| {
            Some(format!("{text}GET /hidden HTTP/1.1\r\nHost: a\r\n\r\n"))
        }),
        ("a chunk's size", |text| {
            let at = text.find("chunked\r\n")?;
            let from = text[at..].find("\r\n\r\n")? + at + 4;
            Some(format!("{}1{}", &text[..from], &text[from..]))
        }),
    ];
    for (name, mangle) in mangles {
        let (good, bad) = recorded
            .iter()
            .find_map(|one| {
                let mut bad = one.clone();
                bad.bytes = bytes_of(&mangle(&latin(&one.bytes))?);
                Some((one.clone(), bad))
            })
            .unwrap_or_else(|| panic!("{name}: nothing to do it to"));
        // Behind it comes another one, which the slip may swallow or not.
        let after = recorded[0].clone();
        let both = [good, after.clone()];
        assert_eq!(disagreement(&mut judges, &both), None, "{name}");
        let both = [bad, after];
        let told = disagreement(&mut judges, &both);
        assert!(told.is_some(), "{name}: {}", both[0].bytes.escape_ascii());
    }
    // A field is another one, or gone: what is read is compared with what was sent.
    let one = recorded
        .iter()
        .find(|one| length_of(&latin(&one.bytes)).is_some())
        .expect("one with a body");
    let text = latin(&one.bytes);
    for (from, to) in [("Host: ", "Hosts: "), ("\r\nContent-", "\r\nX-Content-")] {
        let other = replaced(from, to, &text).expect("it is there");
        let mut other_one = one.clone();
        other_one.bytes = bytes_of(&other);
        let theirs = judges[0].read(&one.bytes);
        let ours = read(&other_one.bytes).expect("a request").0;
        let ours = Reading {
            requests: vec![ours],
            error: None,
        };
        assert!(!theirs.agrees(&ours, &[]), "{other}");
    }
}

/// The head of a request with a length that is not 0, and the length.
fn length_of(text: &str) -> Option<(&str, usize)> {
    let (head, _) = text.split_once("\r\n\r\n")?;
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("Content-Length: "))?;
    Some((head, length.parse().ok()?))
}

fn with_length(text: &str, head: &str, length: usize) -> String {
    let lines: Vec<String> = head
        .lines()
        .map(|line| {
            if line.starts_with("Content-Length: ") {
                format!("Content-Length: {length}")
            } else {
                line.to_owned()
            }
        })
        .collect();
    format!("{}{}", lines.join("\r\n"), &text[head.len()..])
}

fn bytes_of(text: &str) -> Vec<u8> {
    text.chars()
        .map(|c| u8::try_from(u32::from(c)).expect("Latin-1"))
        .collect()
}

/// Claviger, and an upstream that records what it is sent.
struct Site {
    claviger: Claviger,
    seed: Arc<AtomicU64>,
    record: Arc<Mutex<Vec<Recorded>>>,
    world: World,
    _upstream: Scripted,
}

impl Site {
    fn start(first: u64) -> Self {
        let world = World::new();
        let (_, key_file) = world.key_file("key");
        let seed = Arc::new(AtomicU64::new(first));
        let record: Arc<Mutex<Vec<Recorded>>> = Arc::default();
        let upstream = Scripted::start(&world, HOST, {
            let (seed, record) = (Arc::clone(&seed), Arc::clone(&record));
            move |peer| recorder(peer, &seed, &record)
        });
        let claviger = world.start(&format!(
            "{}[[listener]]\nname = \"main\"\naddress = \"127.0.0.1:0\"\ntls = false\n{}{}",
            world.base_without_listener(),
            upstream.upstream("mock", HOST),
            bearer_route(&key_file)
        ));
        Self {
            claviger,
            seed,
            record,
            world,
            _upstream: upstream,
        }
    }

    /// Sends what the caller of this seed sends.
    fn call(&self, seed: u64) {
        self.seed.store(seed, Ordering::SeqCst);
        call(self.claviger.address(), &generate::connection(seed));
    }

    /// What was forwarded since the last time, but for methods that a judge refuses:
    /// mutations make such, and one that refuses reads nothing differently.
    fn recorded(&self) -> Vec<Recorded> {
        let mut recorded = std::mem::take(&mut *self.record.lock().expect("no panic while held"));
        recorded.retain(|one| generate::is_known_method(&one.bytes));
        recorded
    }
}

/// Sends what a caller sends, and waits until Claviger has had enough of it.
fn call(address: SocketAddr, bytes: &[u8]) {
    let mut socket = TcpStream::connect(address).expect("Claviger listens");
    socket.set_read_timeout(Some(PATIENCE)).expect("a socket");
    // It may be refused, and closed, before it has all been sent.
    let _ = socket.write_all(bytes);
    let _ = socket.shutdown(Shutdown::Write);
    let mut answer = Vec::new();
    if let Err(err) = socket.read_to_end(&mut answer) {
        assert_ne!(
            err.kind(),
            std::io::ErrorKind::WouldBlock,
            "no end: {}",
            bytes.escape_ascii()
        );
    }
}

/// One connection of the upstream: notes each request that came whole.
fn recorder(peer: &mut Peer, seed: &AtomicU64, record: &Mutex<Vec<Recorded>>) {
    let mut ahead = Vec::new();
    let mut continued = false;
    loop {
        let Some(length) = request_length(&ahead) else {
            if !continued && memmem::find(&ahead, b"\r\n\r\n").is_some() && expects(&ahead) {
                continued = true;
                peer.send("HTTP/1.1 100 Continue\r\n\r\n");
            }
            let more = peer.read_some();
            if more.is_empty() {
                return;
            }
            ahead.extend(more);
            continue;
        };
        continued = false;
        let bytes = ahead.drain(..length).collect();
        record.lock().expect("no panic while held").push(Recorded {
            seed: seed.load(Ordering::SeqCst),
            bytes,
        });
        if !peer.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n") {
            return;
        }
    }
}

fn expects(bytes: &[u8]) -> bool {
    read(bytes).is_some_and(|(seen, _)| {
        let fields = seen.fields.unwrap_or_default();
        fields
            .iter()
            .any(|(name, _)| name.eq_ignore_ascii_case("expect"))
    })
}

/// Where the request that these bytes begin with ends, if it is whole.
fn request_length(bytes: &[u8]) -> Option<usize> {
    read(bytes).and_then(|(_, length)| length)
}

fn latin(bytes: &[u8]) -> String {
    bytes.iter().map(|&byte| char::from(byte)).collect()
}

/// A naive reading, enough for what Claviger writes: the request, and its length if
/// it is whole.
fn read(bytes: &[u8]) -> Option<(Seen, Option<usize>)> {
    let end = memmem::find(bytes, b"\r\n\r\n")? + 4;
    let head = latin(&bytes[..end - 4]);
    let mut lines = head.split("\r\n");
    let mut words = lines.next()?.split(' ');
    let mut seen = Seen {
        method: words.next()?.to_owned(),
        target: words.next()?.to_owned(),
        fields: Some(fields(lines)),
        body: String::new(),
        trailers: Some(Vec::new()),
    };
    let value = |name: &str| {
        let fields = seen.fields.iter().flatten();
        fields
            .filter(|(found, _)| found.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.clone())
            .next()
    };
    if value("transfer-encoding").is_some() {
        let mut at = end;
        loop {
            let line = memmem::find(&bytes[at..], b"\r\n").map(|line| at + line);
            let Some(line) = line else {
                return Some((seen, None));
            };
            let size = latin(&bytes[at..line]);
            // As Claviger never writes it: the request never comes whole, and whoever
            // waits for its answer says so.
            let Ok(size) = usize::from_str_radix(&size, 16) else {
                return Some((seen, None));
            };
            at = line + 2;
            if size == 0 {
                // The last chunk's line end stands for an empty list of trailers.
                let Some(last) = memmem::find(&bytes[at - 2..], b"\r\n\r\n") else {
                    return Some((seen, None));
                };
                let stop = at - 2 + last;
                if stop > at {
                    let text = latin(&bytes[at..stop]);
                    seen.trailers = Some(fields(text.split("\r\n")));
                }
                return Some((seen, Some(stop + 4)));
            }
            let Some(data) = bytes.get(at..at + size) else {
                return Some((seen, None));
            };
            seen.body.push_str(&latin(data));
            at += size + 2;
            if at > bytes.len() {
                return Some((seen, None));
            }
        }
    }
    let length = value("content-length").map_or(0, |text| text.parse().expect("a length"));
    let Some(body) = bytes.get(end..end + length) else {
        return Some((seen, None));
    };
    seen.body = latin(body);
    Some((seen, Some(end + length)))
}

fn fields<'l>(lines: impl Iterator<Item = &'l str>) -> Vec<(String, String)> {
    lines
        .map(|line| {
            let (name, value) = line.split_once(':').unwrap_or((line, ""));
            (name.to_owned(), value.trim_matches([' ', '\t']).to_owned())
        })
        .collect()
}

/// What is wrong with these requests as one connection, if anything is: first
/// together, and if they are read differently, one by one to say which. What a judge is
/// known to refuse is left out for it.
fn disagreement(judges: &mut [Judge], recorded: &[Recorded]) -> Option<String> {
    judges.iter_mut().find_map(|judge| differs(judge, recorded))
}

fn differs(judge: &mut Judge, recorded: &[Recorded]) -> Option<String> {
    let together = compare(judge, recorded).err()?;
    let mut taken = Vec::new();
    for one in recorded {
        match compare(judge, std::slice::from_ref(one)) {
            Ok(()) => taken.push(one.clone()),
            Err(difference) if judge.refuses(&difference.theirs) => {}
            Err(difference) => return Some(difference.told(judge)),
        }
    }
    // Each for itself is read alike, so what differs is where one ends.
    if taken.len() == recorded.len() {
        return Some(together.told(judge));
    }
    let without = compare(judge, &taken).err()?;
    Some(without.told(judge))
}

/// Two readings of the same bytes.
struct Difference {
    seeds: Vec<u64>,
    stream: Vec<u8>,
    theirs: Reading,
    ours: Reading,
}

impl Difference {
    fn told(&self, judge: &Judge) -> String {
        format!(
            "seed {:?}, {}: {}\n  reads  {:?}\n  and we {:?}",
            self.seeds,
            judge.name,
            self.stream.escape_ascii(),
            self.theirs,
            self.ours
        )
    }
}

fn compare(judge: &mut Judge, recorded: &[Recorded]) -> Result<(), Box<Difference>> {
    let ours = Reading {
        requests: recorded
            .iter()
            .filter_map(|one| Some(read(&one.bytes)?.0))
            .collect(),
        error: None,
    };
    let stream: Vec<u8> = recorded.iter().flat_map(|one| one.bytes.clone()).collect();
    let theirs = judge.read(&stream);
    if theirs.agrees(&ours, judge.unseen) {
        return Ok(());
    }
    Err(Box::new(Difference {
        seeds: recorded.iter().map(|one| one.seed).collect(),
        stream,
        theirs,
        ours,
    }))
}

/// What a variable of the environment says.
fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

/// The Python with the judges in it.
fn python() -> PathBuf {
    crate::clients::installed("venv/bin/python")
}
