//! [`Judge`]: sees every byte that our side writes, knows who asked for what, and says what must
//! not have been.
//!
//! It notes violations instead of panicking, since the data plane catches its tasks' panics.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use handoff::{Counter, Drain};
use memchr::memmem;

use super::setting::{
    self, CREDENTIAL_UPSTREAM, CREDENTIALS, KEY_BEGINS, KEY_BEGINS_BASIC, ROUTES,
};
use super::upstream;
use crate::core::Core;
use crate::record::{self, Content, Opener};
use crate::rt::simulated::{End, Far, Link, Outside, Reception, Wait, World};
use crate::session::simulated as greeting;

/// The nonce of what nobody has asked for.
pub const NOBODYS: u64 = 99_999_999;

/// Bytes of a mark, `~n00000042@0~`.
const MARK_BYTES: usize = 13;

/// From a key's first byte to behind its version, and the same in base64; a key may lie across
/// two writes.
const KEY_HEAD_BYTES: usize = 24;

/// What is embedded in everything that upstream `upstream` answers to request `nonce`.
pub fn mark(nonce: u64, upstream: usize) -> String {
    format!("~n{nonce:08}@{upstream}~")
}

/// A body in which each stretch of 32 bytes says whose it is and where it belongs.
pub fn content(nonce: u64, upstream: usize, length: usize) -> Vec<u8> {
    stretches(
        format!("{}#0000000000000000.\n", mark(nonce, upstream)),
        length,
    )
}

/// What a request carries: as [`content`], and never mistaken for it.
pub fn upload(nonce: u64, length: usize) -> Vec<u8> {
    stretches(format!("^n{nonce:08}@u^#0000000000000000.\n"), length)
}

/// Repeats a stretch of 32 bytes, each with its place in the whole.
fn stretches(stretch: String, length: usize) -> Vec<u8> {
    let mut stretch = stretch.into_bytes();
    let mut out = Vec::with_capacity(length + stretch.len());
    while out.len() < length {
        let mut place = out.len();
        for digit in stretch[14..30].iter_mut().rev().take(7) {
            *digit = b'0' + (place % 10) as u8;
            place /= 10;
        }
        out.extend_from_slice(&stretch);
    }
    out.truncate(length);
    out
}

/// An answer as an upstream means to give it.
#[derive(Debug, Clone, Copy)]
pub struct Given {
    pub status: u16,
    /// Bytes of the whole body.
    pub length: usize,
    /// Where a key stands in it, and how long it is.
    pub echo: Option<(usize, usize)>,
    /// Whoever gets it to its end must see that it was broken off.
    pub is_broken: bool,
}

/// A request as a caller makes it.
pub struct Asked {
    /// The connection that asks.
    pub link: u64,
    pub route: usize,
    /// Older keys were replaced before it was sent.
    pub version_min: u64,
    pub is_idempotent: bool,
    pub given: Vec<Given>,
    /// Times that it reached an upstream.
    pub reached: u32,
    /// Statuses that the caller got with a complete answer, our own among them.
    pub got: Vec<u16>,
    /// An upstream's answer has come to the caller, or the beginning of one.
    pub is_answered: bool,
    /// It was sent before something arrived that nobody asked for, and that looks like an answer.
    pub is_excused: bool,
    /// Its record's status.
    records: Vec<u16>,
}

/// What an upstream has said behind an answer, or without being asked.
struct Extra {
    arrives: Duration,
    /// When our side wrote next.
    written: Option<Duration>,
}

/// What was seen so far on a connection.
enum Heard {
    Caller {
        tail: Vec<u8>,
    },
    Upstream {
        upstream: usize,
        raw_tail: Vec<u8>,
        raw: Vec<u8>,
        opener: Option<Opener>,
        tail: Vec<u8>,
        /// How often it was written to.
        writes: usize,
        extra: Option<Extra>,
        /// The one credential whose keys have been there.
        credential: Option<usize>,
    },
}

/// What happened in a run, so that a simulation of nothing is noticed.
#[derive(Debug, Default, Clone)]
pub struct Report {
    pub exchanges: u64,
    pub steps: u64,
    pub digest: u64,
    /// How often each thing happened.
    pub events: HashMap<&'static str, u64>,
    /// What tasks of ours waited for, if it was to be noted.
    pub waits: Vec<Wait>,
    /// Where it stood when it was struck: a stack for each thing that it waited for.
    pub seen: Vec<String>,
}

/// What happens after a step, once.
pub struct Due {
    pub step: u64,
    pub act: Box<dyn FnOnce()>,
}

pub struct Judge {
    pub world: Rc<World>,
    pub fault_one_in: Cell<usize>,
    pub versions: Cell<[u64; CREDENTIALS]>,
    violations: RefCell<Vec<String>>,
    nonces: Cell<u64>,
    asked: RefCell<BTreeMap<u64, Asked>>,
    heard: RefCell<HashMap<u64, Heard>>,
    core: RefCell<Option<Rc<Core>>>,
    connections_max: usize,
    /// Connections of callers to which an answer went that was not theirs, since something extra
    /// had come before.
    nobodys: RefCell<BTreeSet<u64>>,
    /// It cannot be said who was to get one of them.
    is_vague: Cell<bool>,
    records: Cell<u64>,
    /// A record was lost on purpose.
    has_lost: Cell<bool>,
    digest: Cell<u64>,
    events: RefCell<HashMap<&'static str, u64>>,
    /// Itself, for the tasks that it starts.
    myself: RefCell<std::rc::Weak<Judge>>,
    finders: [memmem::Finder<'static>; 3],
    log: Option<RefCell<Vec<String>>>,
    due: RefCell<Option<Due>>,
}

impl Judge {
    pub fn new(world: &Rc<World>, setting: &setting::Setting, logs: bool) -> Rc<Self> {
        let judge = Rc::new(Self {
            world: Rc::clone(world),
            fault_one_in: Cell::new(setting.fault_one_in),
            versions: Cell::new([1; CREDENTIALS]),
            violations: RefCell::default(),
            nonces: Cell::new(0),
            asked: RefCell::default(),
            heard: RefCell::default(),
            core: RefCell::default(),
            connections_max: setting.upstream.connections_max,
            nobodys: RefCell::default(),
            is_vague: Cell::new(false),
            records: Cell::new(0),
            has_lost: Cell::new(false),
            digest: Cell::new(0xcbf2_9ce4_8422_2325),
            events: RefCell::default(),
            myself: RefCell::default(),
            finders: [
                memmem::Finder::new(KEY_BEGINS),
                memmem::Finder::new(KEY_BEGINS_BASIC),
                memmem::Finder::new(b"~n"),
            ],
            log: logs.then(RefCell::default),
            due: RefCell::default(),
        });
        *judge.myself.borrow_mut() = Rc::downgrade(&judge);
        judge
    }

    pub fn attend(&self, core: &Rc<Core>) {
        *self.core.borrow_mut() = Some(Rc::clone(core));
    }

    pub fn core(&self) -> Rc<Core> {
        let core = self.core.borrow();
        Rc::clone(core.as_ref().expect("the worker has begun"))
    }

    pub fn dismiss(&self) -> Option<Rc<Core>> {
        self.core.take()
    }

    /// Notes what must not have been.
    pub fn accuse(&self, what: impl FnOnce() -> String) {
        let mut violations = self.violations.borrow_mut();
        // The first one is the cause, most likely.
        if violations.len() < 8 {
            let what = what();
            self.log(|| format!("VIOLATION {what}"));
            violations.push(what);
        }
    }

    pub fn violations(&self) -> Vec<String> {
        self.violations.borrow().clone()
    }

    /// Counts something that a simulation should have seen.
    pub fn saw(&self, event: &'static str) {
        *self.events.borrow_mut().entry(event).or_default() += 1;
    }

    /// A line of the story, for whoever replays one.
    pub fn log(&self, line: impl FnOnce() -> String) {
        if let Some(log) = &self.log {
            let now = self.world.clock().as_micros();
            let line = format!("{now:>10} us  {}", line());
            log.borrow_mut().push(line);
        }
    }

    pub fn story(&self) -> Vec<String> {
        self.log.as_ref().map_or_else(Vec::new, RefCell::take)
    }

    pub fn report(&self, exchanges: u64) -> Report {
        Report {
            exchanges,
            steps: self.world.steps(),
            digest: self.digest.get(),
            events: self.events.borrow().clone(),
            waits: self.world.waits(),
            seen: (self.world.seen().iter().map(ToString::to_string)).collect(),
        }
    }

    /// Lets something happen after a step. Nothing goes wrong by itself from then on.
    pub fn schedule(&self, due: Due) {
        self.world.look_at(due.step);
        *self.due.borrow_mut() = Some(due);
    }

    /// Whether it has happened, or nothing was to.
    pub fn is_over(&self) -> bool {
        self.due.borrow().is_none()
    }

    /// Whether a fault is due.
    pub fn is_faulty(&self) -> bool {
        self.world.random.one_in(self.fault_one_in.get())
    }

    /// A caller is about to send a request on its connection.
    pub fn ask(&self, link: u64, route: usize, is_idempotent: bool) -> u64 {
        let nonce = self.nonces.get() + 1;
        self.nonces.set(nonce);
        let version_min = ROUTES[route].1.map_or(0, |at| self.versions.get()[at]);
        self.asked.borrow_mut().insert(
            nonce,
            Asked {
                link,
                route,
                version_min,
                is_idempotent,
                given: Vec::new(),
                reached: 0,
                got: Vec::new(),
                is_answered: false,
                is_excused: false,
                records: Vec::new(),
            },
        );
        nonce
    }

    pub fn with_asked<R>(&self, nonce: u64, act: impl FnOnce(&mut Asked) -> R) -> Option<R> {
        self.asked.borrow_mut().get_mut(&nonce).map(act)
    }

    /// A request's head has arrived at an upstream. Says which key must be in it.
    pub fn reached(&self, nonce: u64, upstream: usize, head: &str) {
        let found = self.with_asked(nonce, |asked| {
            asked.reached += 1;
            (
                asked.route,
                asked.version_min,
                asked.reached,
                asked.is_idempotent,
            )
        });
        let Some((route, version_min, times, is_idempotent)) = found else {
            return self
                .accuse(|| format!("upstream {upstream} got request {nonce}, which nobody made"));
        };
        if times > 1 {
            self.saw("requests sent again");
            if !is_idempotent {
                self.accuse(|| {
                    format!("request {nonce} arrived {times} times, and must not be repeated")
                });
            }
        }
        let (of, credential) = ROUTES[route];
        if of != upstream {
            self.accuse(|| {
                format!("request {nonce} is upstream {of}'s and came to upstream {upstream}")
            });
        }
        if head.contains(setting::CALLERS_OWN) {
            self.accuse(|| {
                format!("what the caller of {nonce} wrote into the key's slot came through")
            });
        }
        let Some(credential) = credential else {
            return;
        };
        let newest = self.versions.get()[credential];
        let written = (version_min..=newest).find(|&version| {
            let key = setting::key_as_written(credential, version);
            memmem::find(head.as_bytes(), &key).is_some()
        });
        match written {
            None => self.accuse(|| {
                format!("request {nonce} has no key of credential {credential} between versions {version_min} and {newest}")
            }),
            Some(version) if version < newest => self.saw("requests overtaken by a rotation"),
            Some(_) => {}
        }
    }

    /// How often our side has written to a connection.
    pub fn writes(&self, link: u64) -> usize {
        match self.heard.borrow().get(&link) {
            Some(Heard::Upstream { writes, .. }) => *writes,
            _ => 0,
        }
    }

    /// An upstream is about to answer a request, or has. Where a request was answered by something
    /// extra, its own answer is extra to the next one on its connection.
    pub fn answers(&self, link: u64, nonce: u64, arrives: Option<Duration>) {
        if !self.is_excused(nonce) {
            return;
        }
        match arrives {
            None => self.extra(link, Duration::MAX),
            Some(arrives) => {
                if let Some(Heard::Upstream {
                    extra: Some(extra), ..
                }) = self.heard.borrow_mut().get_mut(&link)
                {
                    extra.arrives = arrives;
                }
            }
        }
    }

    /// Whether nobody could have known that what this request got is not its answer.
    pub fn is_excused(&self, nonce: u64) -> bool {
        self.with_asked(nonce, |asked| asked.is_excused)
            .unwrap_or(false)
    }

    /// Something that looks like an answer, and that nobody asked for, will have come to our side
    /// at this time.
    pub fn extra(&self, link: u64, arrives: Duration) {
        if let Some(Heard::Upstream { extra, .. }) = self.heard.borrow_mut().get_mut(&link) {
            *extra = Some(Extra {
                arrives,
                written: None,
            });
        }
    }

    /// A request was written to a connection on which there is something extra. Whoever had
    /// written before it came cannot know that it is not the answer.
    fn follows_extra(&self, link: u64, extra: &Extra, text: &[u8]) {
        let nonce = memmem::find(text, b" /r")
            .and_then(|at| std::str::from_utf8(text.get(at + 5..at + 14)?).ok())
            .and_then(nonce_of);
        let Some(nonce) = nonce else {
            return self.is_vague.set(true);
        };
        if extra.written.is_some_and(|written| written > extra.arrives)
            && !self.world.is_silent(link)
        {
            self.accuse(|| {
                format!("request {nonce} was sent on a connection on which something stood behind the last answer")
            });
        }
        self.saw("requests that something extra overtook");
        self.with_asked(nonce, |asked| asked.is_excused = true);
    }

    /// What a caller got, whole: our own answer, or an upstream's.
    pub fn got(&self, nonce: u64, status: u16) {
        self.with_asked(nonce, |asked| asked.got.push(status));
    }

    /// Looks for the beginnings of keys: credential and version of each.
    fn keys_in(&self, text: &[u8]) -> Vec<Option<(usize, u64)>> {
        let [plain, basic, _] = &self.finders;
        let plain = plain.find_iter(text).map(|at| -> Option<(usize, u64)> {
            // `sk-C1V0042`
            let text = std::str::from_utf8(text.get(at + 4..at + 10)?).ok()?;
            let (credential, version) = text.split_once('V')?;
            Some((credential.parse().ok()?, version.parse().ok()?))
        });
        let basic = basic.find_iter(text).map(|at| -> Option<(usize, u64)> {
            let found = text.get(at..)?;
            (1..=self.versions.get()[2])
                .find(|&version| found.starts_with(&setting::key_as_written(2, version)))
                .map(|version| (2, version))
        });
        plain.chain(basic).collect()
    }

    /// Whether a key is in a text, as far as behind its version.
    fn has_key(&self, text: &[u8]) -> bool {
        self.keys_in(text).iter().any(Option::is_some)
    }

    /// Text that a caller has taken out of its framing.
    pub fn callers_text(&self, text: &[u8]) {
        if self.has_key(text) {
            self.accuse(|| "a key came down to a caller".to_owned());
        }
    }

    fn written_to_caller(&self, link: u64, text: &[u8]) {
        for at in self.finders[2].find_iter(text) {
            let Some(found) = text.get(at..at + MARK_BYTES) else {
                continue;
            };
            let Some(nonce) = std::str::from_utf8(&found[2..10])
                .ok()
                .and_then(|n| n.parse().ok())
            else {
                continue;
            };
            let asked_by = self.with_asked(nonce, |asked| asked.link);
            // An answer that comes after something extra was taken for it is nobody's as well.
            if nonce == NOBODYS || asked_by != Some(link) && self.is_excused(nonce) {
                self.nobodys.borrow_mut().insert(link);
            } else if asked_by != Some(link) {
                self.accuse(|| {
                    format!("the answer to request {nonce} of connection {asked_by:?} went to connection {link}")
                });
            }
        }
    }

    fn written_to_upstream(&self, link: u64, heard: &mut Heard, bytes: &[u8]) {
        let Heard::Upstream {
            upstream,
            raw,
            opener,
            tail,
            writes,
            extra,
            credential,
            ..
        } = heard
        else {
            return;
        };
        let upstream = *upstream;
        *writes += 1;
        if let Some(extra) = extra {
            extra.written.get_or_insert(self.world.clock());
        }
        raw.extend_from_slice(bytes);
        let mut at = 0;
        while let Ok(Some(length)) = record::length(&raw[at..])
            && raw.len() - at >= length
        {
            let record = &mut raw[at..at + length];
            at += length;
            let Some(opener) = opener else {
                let Some((number, name)) = greeting::read_hello(record) else {
                    self.accuse(|| format!("connection {link} to an upstream begins in clear"));
                    return;
                };
                if name != setting::name(upstream).as_bytes() {
                    self.accuse(|| format!("upstream {upstream} was greeted by another's name"));
                }
                *opener = greeting::keys(number, true).ok().map(|(opener, _)| opener);
                continue;
            };
            match opener.open(record) {
                Ok((Content::Data, range)) => {
                    tail.extend_from_slice(&record[range.clone()]);
                    for found in self.keys_in(tail) {
                        // Cut at the end of what has been written: it comes again.
                        let Some((of, version)) = found else { continue };
                        let home = CREDENTIAL_UPSTREAM.get(of).copied();
                        if home != Some(upstream) {
                            self.accuse(|| {
                                format!("a key of credential {of} (version {version}, upstream {home:?}) went to upstream {upstream}")
                            });
                        }
                        if *credential.get_or_insert(of) != of {
                            self.accuse(|| {
                                format!("connection {link} carried keys of credentials {of} and {credential:?}")
                            });
                        }
                    }
                    if let Some(extra) = extra.take() {
                        self.follows_extra(link, &extra, &record[range]);
                    }
                    keep_tail(tail);
                }
                Ok(_) => {}
                Err(error) => {
                    self.accuse(|| format!("a record that nobody can open was sent: {error}"));
                }
            }
        }
        raw.drain(..at);
    }

    /// Takes the records that have come out of the worker.
    pub fn read_records(&self, drain: &mut Drain) {
        while let Some(batch) = drain.take() {
            drain.written(batch.records);
            let lines: Vec<&[u8]> = batch.lines.split_inclusive(|&byte| byte == b'\n').collect();
            if lines.len() as u64 != batch.records {
                self.accuse(|| format!("{} lines for {} records", lines.len(), batch.records));
            }
            for line in lines {
                self.read_record(&String::from_utf8_lossy(line));
            }
        }
    }

    fn read_record(&self, line: &str) {
        if !line.contains("\"event\":\"exchange\"") {
            return;
        }
        if super::is(super::Break::LosesRecord)
            && self.records.get() == 3
            && !self.has_lost.replace(true)
        {
            return;
        }
        self.records.set(self.records.get() + 1);
        if self.has_key(line.as_bytes()) {
            self.accuse(|| "a record contains a key".to_owned());
        }
        let after = |name: &str| Some(&line[line.find(name)? + name.len()..]);
        let nonce = after("\"path\":\"/r")
            .and_then(|rest| rest.get(2..))
            .and_then(nonce_of);
        let status = after("\"status\":").and_then(|rest| rest.split(',').next()?.parse().ok());
        if let (Some(nonce), Some(status)) = (nonce, status)
            && self
                .with_asked(nonce, |asked| asked.records.push(status))
                .is_none()
        {
            self.accuse(|| format!("a record speaks of request {nonce}, which nobody made"));
        }
    }

    /// Whether each exchange has its one record, and the record is true.
    pub fn check_records(&self, exchanges: u64) {
        if self.records.get() != exchanges {
            let records = self.records.get();
            self.accuse(|| format!("{exchanges} exchanges have {records} records"));
        }
        for (nonce, asked) in self.asked.borrow().iter() {
            if asked.records.len() > 1 {
                self.accuse(|| format!("request {nonce} has {} records", asked.records.len()));
            }
            let was_served = asked.reached > 0 || asked.is_answered;
            if was_served && asked.records.is_empty() {
                self.accuse(|| format!("request {nonce} was served and has no record"));
            }
            if let ([got], [told]) = (&asked.got[..], &asked.records[..])
                && got != told
            {
                self.accuse(|| {
                    format!("request {nonce} was answered {got}, and its record says {told}")
                });
            }
        }
    }

    /// Whether nobody got what nobody had asked for, except where that could not be told.
    pub fn check_extras(&self) {
        let asked = self.asked.borrow();
        for link in self.nobodys.borrow().iter() {
            let is_excused = asked
                .values()
                .any(|asked| asked.link == *link && asked.is_excused);
            if !is_excused && !self.is_vague.get() {
                self.accuse(|| format!("an answer to nobody's request went to connection {link}"));
            }
        }
    }

    /// What holds at any time.
    fn check_step(&self) {
        let Some(core) = &*self.core.borrow() else {
            return;
        };
        for (key, state) in core.pool.state() {
            if state.idle > state.open || state.open > self.connections_max {
                let most = self.connections_max;
                self.accuse(|| {
                    format!("of at most {most} connections the pool {key:?} has {state:?}")
                });
            }
        }
        if core.counters.get(Counter::exchanges_panicked) > 0 {
            self.accuse(|| "an exchange has panicked".to_owned());
        }
        if core.counters.get(Counter::audit_lost) > 0 {
            self.accuse(|| "a record was lost".to_owned());
        }
    }

    /// What is not yet as it should be when nothing is under way any more.
    pub fn unrest(&self) -> Option<String> {
        let core = self.core();
        let mut idle = 0;
        for (key, state) in core.pool.state() {
            idle += state.idle;
            if state.open != state.idle || state.queued > 0 || state.is_probing {
                return Some(format!(
                    "places of the pool {key:?} are not given back: {state:?}"
                ));
            }
            if state.holds_bytes {
                return Some(format!(
                    "an idle connection of the pool {key:?} holds a buffer"
                ));
            }
        }
        let facts = [
            ("sockets are open", self.world.sockets_open(), idle),
            ("sockets are registered", core.tick.registered(), idle),
            ("receives have a buffer lent", core.buffers.lent(), 0),
            // Accepting, and taking in.
            ("tasks run", self.world.tasks_open(), 2),
            (
                "exchanges count as open",
                core.counters.get(Counter::exchanges_open) as usize,
                0,
            ),
            (
                "connections count as open",
                core.counters.get(Counter::connections_open) as usize,
                0,
            ),
            ("drafts are watched and open", core.ledger.open(), 0),
        ];
        facts.into_iter().find_map(|(what, is, should)| {
            (is != should)
                .then(|| format!("{is} {what} where nothing is under way, and {should} should be"))
        })
    }
}

/// The number in `n00000042...`.
pub fn nonce_of(text: &str) -> Option<u64> {
    text.strip_prefix('n')?.get(..8)?.parse().ok()
}

fn keep_tail(tail: &mut Vec<u8>) {
    let surplus = tail.len().saturating_sub(KEY_HEAD_BYTES * 4);
    tail.drain(..surplus);
}

impl Outside for Judge {
    fn written(&self, link: &Link, bytes: &[u8]) {
        let mut digest = self.digest.get();
        for part in [
            link.number,
            bytes.len() as u64,
            self.world.clock().as_micros() as u64,
        ] {
            digest = (digest ^ part)
                .wrapping_mul(0x0000_0100_0000_01b3)
                .rotate_left(23);
        }
        self.digest.set(digest);
        self.log(|| format!("-> {:?} #{}: {} bytes", link.far, link.number, bytes.len()));
        let mut heard = self.heard.borrow_mut();
        let heard = heard.entry(link.number).or_insert_with(|| match link.far {
            Far::Caller(_) => Heard::Caller { tail: Vec::new() },
            Far::Upstream(address) => Heard::Upstream {
                upstream: setting::upstream_at(address).unwrap_or(usize::MAX),
                raw_tail: Vec::new(),
                raw: Vec::new(),
                opener: None,
                tail: Vec::new(),
                writes: 0,
                extra: None,
                credential: None,
            },
        });
        // In clear a key goes nowhere, whatever the socket.
        let (Heard::Caller { tail } | Heard::Upstream { raw_tail: tail, .. }) = &mut *heard;
        tail.extend_from_slice(bytes);
        if self.has_key(tail) {
            self.accuse(|| format!("a key was written in clear to {:?}", link.far));
        }
        if matches!(link.far, Far::Caller(_)) {
            self.written_to_caller(link.number, tail);
        }
        keep_tail(tail);
        self.written_to_upstream(link.number, heard, bytes);
    }

    fn reception(&self, address: SocketAddr) -> Reception {
        if setting::upstream_at(address).is_none() {
            self.accuse(|| format!("a connect to {address}, which is nobody's"));
            return Reception::Refuse;
        }
        if !self.is_faulty() {
            return Reception::Accept;
        }
        *self.world.random.one_of(&[
            Reception::Accept,
            Reception::Accept,
            Reception::Refuse,
            Reception::Silence,
        ])
    }

    fn connected(&self, address: SocketAddr, end: End) {
        let Some(judge) = self.myself.borrow().upgrade() else {
            return;
        };
        let upstream = setting::upstream_at(address).unwrap_or(usize::MAX);
        self.world
            .spawn_outside(upstream::serve(judge, upstream, end));
    }

    fn step(&self) -> bool {
        self.check_step();
        let due = (self.due.borrow_mut()).take_if(|due| due.step <= self.world.steps());
        if let Some(due) = due {
            self.fault_one_in.set(usize::MAX);
            (due.act)();
        }
        self.violations.borrow().is_empty()
    }
}

/// Longer than every time limit of a request together: nobody waits for longer.
pub const PATIENCE: Duration = Duration::from_secs(60);
