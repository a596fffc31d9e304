//! The conformance table: raw bytes in, and what must have become of them at the upstream, at the
//! caller and on each connection. The rows are data (`cases/*.toml`, see `cases/README.md`); this
//! module and its children are the one runner. `scripts/conformance` drives nginx, HAProxy and Envoy
//! with the same rows and prints where each stands.
//!
//! Every row has a host, an upstream and connections of its own, so that all of them run side by side
//! in one process under test. After each row clean probes follow, on the same connection where it
//! should be kept and on a fresh one, and must get their own answers.

mod caller;
mod case;
mod index;
mod judge;
mod peers;
mod upstream;
mod wire;

use std::collections::VecDeque;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use rustls::{ClientConfig, ServerConfig};

use crate::harness::pki::TestCa;
use crate::harness::{PATIENCE, World};
use caller::{Caller, Ended};
use case::{Case, Down, Layout, UPSTREAM_HOST, Words};
use upstream::{PROBE, Seen, Upstream};
use wire::Reply;

/// Rows under way at once.
const ROWS_AT_ONCE: usize = 8;

#[test]
fn table() {
    let table = Table::load();
    assert!(
        table.cases.len() >= 600 || std::env::var_os("CONFORMANCE_ONLY").is_some(),
        "the table has lost rows: {} are left",
        table.cases.len()
    );
    let problems: Vec<String> = table
        .cases
        .iter()
        .zip(judged(&table))
        .filter(|(_, found)| !found.is_empty())
        .map(|(case, found)| {
            format!(
                "{} ({}, {}):\n    {}",
                case.name,
                case.topic,
                case.rule,
                found.join("\n    ")
            )
        })
        .collect();
    assert!(
        problems.is_empty(),
        "{} of {} rows do not hold:\n{}",
        problems.len(),
        table.cases.len(),
        problems.join("\n")
    );
}

/// Each promise and each history has its rows or tests, and the page that lists them is current.
#[test]
fn index() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/conformance/cases");
    let text = index::write(&case::load(&directory))
        .unwrap_or_else(|problems| panic!("{}", problems.join("\n")));
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/conformance-index.md");
    if std::env::var_os("CLAVIGER_UPDATE_EXPECTED").is_some() {
        std::fs::write(&page, &text).expect("the page");
    }
    assert!(
        std::fs::read_to_string(&page).unwrap_or_default() == text,
        "docs/conformance-index.md is not current; run this test with CLAVIGER_UPDATE_EXPECTED=1"
    );
}

/// The control: rows that expect what does not happen, each wrong in one thing.
#[test]
fn a_wrong_row_is_noticed() {
    let table = Table {
        cases: case::parse("wrong.toml", include_str!("wrong.toml")),
    };
    for (case, problems) in table.cases.iter().zip(judged(&table)) {
        assert!(!problems.is_empty(), "{} went unnoticed", case.name);
    }
}

/// Runs every row with Claviger: in what it did not hold, by row.
fn judged(table: &Table) -> Vec<Vec<String>> {
    let world = World::new();
    let (key, key_file) = world.key_file("key");
    let ca = TestCa::new(&world.subdirectory("upstreams"), "ca");
    let stage = Stage::new(table, &ca);
    let claviger = world.start(&configuration(&world, table, &stage, &key_file, &ca));
    let subject = Subject {
        address: claviger.address(),
        config: Arc::new(world.client_config()),
        patience: PATIENCE,
        key,
    };
    let observed = stage.run(table, &subject);
    table
        .cases
        .iter()
        .zip(&observed)
        .map(|(case, observed)| {
            world.evidence(
                &format!("what the caller of {} received", case.name),
                observed.received.clone(),
            );
            judge::problems(case, &table.words(case, &subject.key), observed)
        })
        .collect()
}

/// All rows, and a host for each.
struct Table {
    cases: Vec<Case>,
}

impl Table {
    fn load() -> Self {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/conformance/cases");
        let mut cases = case::load(&directory);
        // For whoever works on some rows: part of a name or topic.
        if let Ok(wanted) = std::env::var("CONFORMANCE_ONLY") {
            cases.retain(|case| case.name.contains(&wanted) || case.topic.contains(&wanted));
        }
        Self { cases }
    }

    fn host(number: usize) -> String {
        format!("c{number}.example.com")
    }

    fn words(&self, case: &Case, key: &str) -> Words {
        let number = self.cases.iter().position(|other| other.name == case.name);
        Words {
            host: Self::host(number.expect("a row of this table")),
            key: key.to_owned(),
        }
    }
}

/// Claviger's configuration for the whole table.
fn configuration(
    world: &World,
    table: &Table,
    stage: &Stage,
    key_file: &Path,
    ca: &TestCa,
) -> String {
    let mut config = world.base();
    let source = format!("file://{}", key_file.display());
    config += &format!("[credential.bearer]\nsource = {source:?}\ninject = \"bearer\"\n");
    config +=
        &format!("[credential.query]\nsource = {source:?}\ninject = \"query\"\nname = \"key\"\n");
    for (number, (case, address)) in table.cases.iter().zip(&stage.addresses).enumerate() {
        let name = format!("c{number}");
        config += &format!(
            "[upstream.{name}]\nhost = {UPSTREAM_HOST:?}\naddresses = [\"{address}\"]\nca_file = {:?}\nidle_min = 0\n",
            ca.file()
        );
        if case.layout == Layout::Hasty {
            config += HASTY;
        }
        let mut route = |suffix: &str, credential: &str, lines: &str| {
            config += &format!(
                "[[route]]\nname = \"{name}{suffix}\"\nhost = {:?}\nupstream = \"{name}\"\ncredential = \"{credential}\"\n{lines}\n",
                Table::host(number)
            );
        };
        match case.layout {
            Layout::Plain => route("", "bearer", ""),
            Layout::Query => route("", "query", ""),
            Layout::Telling => route("", "bearer", TELLING),
            Layout::Trusting => {
                route(
                    "",
                    "bearer",
                    &format!("{TELLING}forwarded_trust = [\"127.0.0.0/8\"]\n"),
                );
            }
            Layout::Hiding => route(
                "",
                "bearer",
                "strip_response_headers = [\"set-cookie\", \"strict-transport-security\", \"location\"]",
            ),
            Layout::Hasty => route("", "bearer", ""),
            Layout::Paths => {
                route("", "bearer", "");
                route(
                    "-locked",
                    "bearer",
                    "path = \"/locked\"\ncallers = [\"192.0.2.0/24\"]",
                );
                route(
                    "-mapped",
                    "bearer",
                    "path = \"/mapped\"\nupstream_path = \"/inner\"",
                );
            }
        }
    }
    config
}

/// Every field that can tell where a request came from.
const TELLING: &str = "forwarded = [\"x-forwarded-for\", \"x-forwarded-proto\", \"x-forwarded-host\", \"forwarded\", \"via\"]\n";

/// The time that an upstream has in [`Layout::Hasty`]: for its head, and between two reads of its body.
const HASTY: &str = "response_head_timeout = \"300ms\"\nread_timeout = \"300ms\"\n";

/// What stands between caller and upstream: the accused.
struct Subject {
    address: SocketAddr,
    config: Arc<ClientConfig>,
    patience: Duration,
    key: String,
}

/// The upstreams of all rows. They listen from the start, since the subject must know their ports.
struct Stage {
    addresses: Vec<SocketAddr>,
    listeners: Mutex<VecDeque<(usize, TcpListener)>>,
    config: Arc<ServerConfig>,
}

impl Stage {
    fn new(table: &Table, ca: &TestCa) -> Self {
        let listeners: VecDeque<_> = (0..table.cases.len())
            .map(|number| {
                let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
                (number, listener)
            })
            .collect();
        Self {
            addresses: listeners
                .iter()
                .map(|(_, listener)| listener.local_addr().expect("bound"))
                .collect(),
            listeners: Mutex::new(listeners),
            config: ca.server(&[UPSTREAM_HOST]),
        }
    }

    /// Runs every row, several at once; what was observed, in the table's order.
    fn run(&self, table: &Table, subject: &Subject) -> Vec<Observed> {
        let observed: Mutex<Vec<Option<Observed>>> =
            Mutex::new(table.cases.iter().map(|_| None).collect());
        thread::scope(|scope| {
            for _ in 0..ROWS_AT_ONCE {
                scope.spawn(|| {
                    loop {
                        let next = self.listeners.lock().expect("no panic").pop_front();
                        let Some((number, listener)) = next else {
                            return;
                        };
                        let case = &table.cases[number];
                        let words = table.words(case, &subject.key);
                        let upstream =
                            Upstream::start(listener, &self.config, case, &words, subject.patience);
                        let seen = observe(case, &words, subject, &upstream);
                        observed.lock().expect("no panic")[number] = Some(seen);
                    }
                });
            }
        });
        let observed = observed.into_inner().expect("no panic");
        observed
            .into_iter()
            .map(|seen| seen.expect("every row ran"))
            .collect()
    }
}

/// What became of a row.
struct Observed {
    /// What did not go as the steps say.
    interrupted: Option<String>,
    /// Everything that the row's caller received.
    received: Vec<u8>,
    /// Taken apart; why that failed, otherwise.
    replies: Result<Vec<Reply>, String>,
    /// Bytes behind the last answer.
    left_over: usize,
    /// How the row's connection ended before the probes, if it did.
    ended: Option<Ended>,
    /// What the probe on the same connection got, where one was sent.
    probe_same: Option<Result<(), Miss>>,
    /// What the probe on a fresh connection got.
    probe_fresh: Result<(), Miss>,
    /// Bytes that the upstream had received before the probes, over all connections.
    upstream_received: Vec<u8>,
    /// The upstream's side, after everything.
    upstream: Seen,
}

fn observe(case: &Case, words: &Words, subject: &Subject, upstream: &Upstream) -> Observed {
    let connect = || {
        Caller::connect(
            subject.address,
            &words.host,
            &subject.config,
            subject.patience,
        )
    };
    let mut caller = match connect() {
        Ok(caller) => caller,
        Err(err) => panic!("{}: cannot connect: {err}", case.name),
    };
    let scene = &upstream.scene;
    let mut interrupted = None;
    for step in case.steps() {
        if !caller.step(&step, words, scene) {
            interrupted = Some(format!("waited in vain: {step:?}"));
            break;
        }
    }
    let is_final = |reply: &Reply| reply.status >= 200 || reply.status == 101;
    let wanted = case.statuses().len();
    loop {
        let whole = wire::replies(&caller.received, case.is_head()).map_or(wanted, |(found, _)| {
            let whole = |reply: &&Reply| is_final(reply) && reply.complete && !reply.until_close;
            found.iter().filter(whole).count()
        });
        let has_all = whole >= wanted && case.down() != Down::Closed;
        if has_all || !caller.fill(Some(scene)) {
            break;
        }
    }
    if !scene.wait_idle(subject.patience) {
        interrupted.get_or_insert_with(|| "the upstream is still answering".to_owned());
    }
    let (replies, left_over) = match wire::replies(&caller.received, case.is_head()) {
        Ok((replies, rest)) => (Ok(replies), rest.len()),
        Err(problem) => (Err(problem), 0),
    };
    let ended = caller.ended;
    let received = caller.received.clone();
    let upstream_received = scene.look(|seen| seen.received.concat());
    let probe_same = (ended.is_none() && case.down() == Down::Kept)
        .then(|| probe(&mut caller, words, &format!("same-{}", case.name)));
    let probe_fresh = connect()
        .map_err(|err| Miss::Nothing(err.to_string()))
        .and_then(|mut caller| probe(&mut caller, words, &format!("fresh-{}", case.name)));
    Observed {
        interrupted,
        received,
        replies,
        left_over,
        ended,
        probe_same,
        probe_fresh,
        upstream_received,
        upstream: scene.note(std::mem::take),
    }
}

/// Why a probe did not get its own answer.
#[derive(Debug)]
enum Miss {
    /// It got none.
    Nothing(String),
    /// It got another one.
    Other(String),
}

impl std::fmt::Display for Miss {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Miss::Nothing(why) => write!(f, "no answer: {why}"),
            Miss::Other(what) => write!(f, "another answer: {what}"),
        }
    }
}

/// A clean request, which must get its own answer and nobody else's.
fn probe(caller: &mut Caller, words: &Words, name: &str) -> Result<(), Miss> {
    let from = caller.received.len();
    let request = format!("GET {PROBE}{name} HTTP/1.1\r\nHost: {}\r\n\r\n", words.host);
    caller
        .send(request.as_bytes())
        .map_err(|err| Miss::Nothing(err.to_string()))?;
    loop {
        let (replies, rest) =
            wire::replies(&caller.received[from..], false).map_err(Miss::Other)?;
        match &replies[..] {
            [] => {}
            [reply] if !reply.complete => {}
            [reply] => {
                let expected = format!("{PROBE}{name}");
                let is_own =
                    reply.status == 200 && reply.body == expected.as_bytes() && rest.is_empty();
                return if is_own {
                    Ok(())
                } else {
                    Err(Miss::Other(format!(
                        "{} {:?}",
                        reply.status,
                        String::from_utf8_lossy(&reply.body)
                    )))
                };
            }
            [..] => return Err(Miss::Other(format!("{} answers", replies.len()))),
        }
        if !caller.fill(None) {
            return Err(Miss::Nothing("the end, or silence".to_owned()));
        }
    }
}

/// Has the socket's close send a reset.
fn reset(socket: &TcpStream) {
    let linger = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    let _ = setsockopt(socket, sockopt::Linger, &linger);
}
