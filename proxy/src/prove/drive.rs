//! [`Drive`]: calls every route in every way, and keeps what came back.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use policy::OnEcho;

use super::LockExt;
use super::api::{Api, Asked, End, Script};
use super::caller::{Caller, Door, Leave};
use super::coded;
use super::scripts::{EARLIER, ECHOES, FAULTS, REQUESTS, ROTATED, Sent, UNINSPECTED};
use super::search::{Canaries, forms};
use super::site::{Driven, Site};

/// Calls at once where an API answers.
const CALLERS: usize = 4;

/// Calls at once where much of the time is waiting.
const CALLERS_WAITING: usize = 24;

/// How often something is written again for a head that is too long.
const MANY: usize = 2000;

/// What was done and what came of it.
#[derive(Debug, Default)]
pub struct Evidence {
    /// What callers received on routes that keep keys back.
    pub answers: Vec<u8>,
    /// What callers received on routes that are told to pass keys on.
    pub passed_on: Vec<u8>,
    /// Echoes sent on routes that are told to pass keys on, and in how many of their
    /// answers the key was seen.
    pub passed_on_echoes: (u64, u64),
    /// Connections made.
    pub calls: u64,
    /// Echoes of a key, in some form and place, on routes that keep keys back.
    pub echoes: u64,
    /// Connections on which nothing was answered: refused in the handshake, or cut.
    pub unanswered: u64,
    /// Answers by status.
    pub statuses: BTreeMap<String, u64>,
    /// Claviger's own answers by their reason.
    pub reasons: BTreeMap<String, u64>,
}

/// Everything that calls need.
#[derive(Debug)]
pub struct Drive<'p> {
    /// What is driven.
    pub site: &'p Site,
    /// What is looked for.
    pub canaries: &'p Canaries,
    /// Who calls.
    pub caller: Caller,
    /// Where, by listener.
    pub doors: BTreeMap<String, Door>,
    /// What callers have for a key: must never be seen anywhere.
    pub callers_key: &'p str,
    /// What callers send in queries and bodies: an API may see it, a log may not.
    pub callers_data: &'p str,
    /// What came of it.
    pub evidence: Mutex<Evidence>,
}

/// One call to make.
#[derive(Debug, Clone, Copy)]
struct Job {
    route: usize,
    script: usize,
    form: usize,
    leave: Leave,
}

/// All scripts, in the order of their numbers.
pub fn scripts() -> Vec<Script> {
    let mut all = ECHOES.to_vec();
    all.extend([ROTATED, EARLIER]);
    all.extend_from_slice(UNINSPECTED);
    all.extend_from_slice(FAULTS);
    all
}

/// The number of [`ROTATED`].
const ROTATED_NUMBER: usize = ECHOES.len();

/// The number of [`EARLIER`].
const EARLIER_NUMBER: usize = ROTATED_NUMBER + 1;

/// The number of the first of [`UNINSPECTED`], behind which [`FAULTS`] follow.
const UNINSPECTED_FROM: usize = EARLIER_NUMBER + 1;

impl Drive<'_> {
    /// Each form of the key, in each place of an answer.
    pub fn echoes(&self) {
        let count = forms("").len() + 1;
        let mut jobs = Vec::new();
        for (route, driven) in self.open_routes() {
            let places: Vec<usize> = (0..ECHOES.len())
                .filter(|&script| driven.websocket || ECHOES[script].asked == Asked::Plainly)
                .collect();
            let mut add = |script, form| {
                jobs.push(Job {
                    route,
                    script,
                    form,
                    leave: Leave::AtTheEnd,
                });
            };
            if driven.thorough {
                for &script in &places {
                    (0..count).for_each(|form| add(script, form));
                }
            } else {
                // Each form and each place, if not each pair of them.
                for number in 0..count.max(places.len()) {
                    add(places[(number + route) % places.len()], number % count);
                }
            }
        }
        self.run(&jobs, CALLERS, true);
    }

    /// Each form of the key that was in its place before the rotation, where there was one.
    pub fn earlier(&self) {
        let mut jobs = Vec::new();
        for (route, driven) in self.open_routes() {
            if !driven
                .slot
                .is_some_and(|slot| self.site.slots[slot].rotates())
            {
                continue;
            }
            let count = if driven.thorough { forms("").len() } else { 1 };
            jobs.extend((0..count).map(|form| Job {
                route,
                script: EARLIER_NUMBER,
                form,
                leave: Leave::AtTheEnd,
            }));
        }
        self.run(&jobs, CALLERS, true);
    }

    /// Each fault of an API, and callers that go away.
    pub fn faults(&self) {
        let mut jobs = Vec::new();
        for (route, driven) in self.open_routes() {
            let uninspected = if driven.passes_uninspected {
                &[][..]
            } else {
                UNINSPECTED
            };
            jobs.extend((0..uninspected.len()).map(|number| Job {
                route,
                script: UNINSPECTED_FROM + number,
                form: 0,
                leave: Leave::AtTheEnd,
            }));
            let first = UNINSPECTED_FROM + UNINSPECTED.len();
            for (number, script) in FAULTS.iter().enumerate() {
                if script.asked == Asked::WebSocket && !driven.websocket {
                    continue;
                }
                // Waiting is the same everywhere, but for the first kind.
                if script.end == End::Wait && !driven.thorough && !script.text.is_empty() {
                    continue;
                }
                jobs.push(Job {
                    route,
                    script: first + number,
                    form: 0,
                    leave: Leave::AtTheEnd,
                });
            }
            for leave in [Leave::AtOnce, Leave::After(1), Leave::After(100)] {
                jobs.push(Job {
                    route,
                    script: 6,
                    form: 0,
                    leave,
                });
            }
        }
        // Those that wait begin first.
        let all = scripts();
        jobs.sort_by_key(|job| all[job.script].end != End::Wait);
        self.run(&jobs, CALLERS_WAITING, false);
    }

    /// Each route once, plainly: what comes of it is up to the API's manner.
    pub fn once_each(&self) {
        let jobs: Vec<Job> = self
            .open_routes()
            .map(|(route, _)| Job {
                route,
                script: 6,
                form: 0,
                leave: Leave::AtTheEnd,
            })
            .collect();
        self.run(&jobs, CALLERS_WAITING, false);
    }

    /// Requests that are refused, on each route, and on one that lets nobody in.
    pub fn refusals(&self) {
        let mut jobs: Vec<(usize, usize)> = Vec::new();
        for (route, driven) in self.site.routes.iter().enumerate() {
            let same_host = |other: &&Driven| other.host == driven.host;
            let alone = self.site.routes.iter().filter(same_host).count() == 1;
            for (number, &(_, _, text)) in REQUESTS.iter().enumerate() {
                // Another path may be another route's, whose key is another one.
                let own = alone || text.contains(" {path}");
                if own && (driven.thorough || !driven.open) {
                    jobs.push((route, number));
                }
            }
        }
        parallel(CALLERS_WAITING, jobs.len(), |at| {
            let (route, number) = jobs[at];
            self.refusal(route, number);
        });
    }

    fn refusal(&self, route: usize, number: usize) {
        let driven = &self.site.routes[route];
        let Some(door) = self.doors.get(&driven.listener) else {
            return;
        };
        let (_, sent, text) = REQUESTS[number];
        let fields: String = (0..MANY)
            .map(|field| format!("X-{field}: {}\r\n", self.callers_key))
            .collect();
        let text = text
            .replace(
                "Host: {host}\r\n",
                &format!("Host: {{host}}\r\nX-Prove: {route}\r\n"),
            )
            .replace("{fields}", &fields)
            .replace("{many}", &self.callers_key.repeat(MANY))
            .replace("{secret}", self.callers_key)
            .replace("{host}", &driven.host)
            .replace("{path}", &driven.path);
        let raw = Door {
            tls: false,
            ..door.clone()
        };
        let (door, name, leave) = match sent {
            Sent::Plainly | Sent::AndSilence => (door, &*driven.host, Leave::AtTheEnd),
            Sent::UnknownName => (door, "nobody.prove.internal", Leave::AtTheEnd),
            Sent::Raw => (&raw, &*driven.host, Leave::AtTheEnd),
            Sent::AndGone => (door, &*driven.host, Leave::AtOnce),
        };
        let answer = self.caller.call(door, name, text.as_bytes(), leave);
        self.note(driven, answer.unwrap_or_default());
    }

    /// Holds an answer on each thorough route in the middle of the key's echo, calls
    /// `rotate`, and lets them go on.
    ///
    /// # Errors
    /// As `rotate`, or the answers did not get that far.
    pub fn across(
        &self,
        api: &Api,
        rotate: impl FnOnce() -> Result<(), String>,
    ) -> Result<(), String> {
        let jobs: Vec<Job> = self
            .open_routes()
            .filter(|(_, driven)| driven.thorough)
            .map(|(route, _)| Job {
                route,
                script: ROTATED_NUMBER,
                form: 0,
                leave: Leave::AtTheEnd,
            })
            .collect();
        thread::scope(|scope| {
            let held = scope.spawn(|| self.run(&jobs, jobs.len().max(1), true));
            let rotated = if api.wait_at_gate(jobs.len()) {
                rotate()
            } else {
                Err("answers that should wait for the rotation did not arrive".to_owned())
            };
            api.open_gate();
            let _ = held.join();
            rotated
        })
    }

    fn open_routes(&self) -> impl Iterator<Item = (usize, &Driven)> {
        let routes = self.site.routes.iter().enumerate();
        routes.filter(|(_, driven)| driven.open)
    }

    /// Makes calls, so many at a time. `echoes`: each one echoes the key that it brought.
    fn run(&self, jobs: &[Job], callers: usize, echoes: bool) {
        let all = scripts();
        parallel(callers, jobs.len(), |at| {
            let job = jobs[at];
            let driven = &self.site.routes[job.route];
            let Some(door) = self.doors.get(&driven.listener) else {
                return;
            };
            let request = self.request(driven, &job, all[job.script].asked);
            let answer = self
                .caller
                .call(door, &driven.host, &request, job.leave)
                .unwrap_or_default();
            if echoes && driven.slot.is_some() {
                let seen = driven.on_echo == OnEcho::Report
                    && !self.canaries.search(&without_framing(&answer)).is_empty();
                let mut evidence = self.evidence.lock_unpoisoned();
                if driven.on_echo == OnEcho::Report {
                    evidence.passed_on_echoes.0 += 1;
                    evidence.passed_on_echoes.1 += u64::from(seen);
                } else {
                    evidence.echoes += 1;
                }
            }
            self.note(driven, answer);
        });
    }

    fn request(&self, driven: &Driven, job: &Job, asked: Asked) -> Vec<u8> {
        let Driven {
            method, path, host, ..
        } = driven;
        let (data, key) = (self.callers_data, self.callers_key);
        let order = format!("{} {} {}", job.route, job.script, job.form);
        let common = format!(
            "{path}?prove={data} HTTP/1.1\r\nHost: {host}\r\nX-Prove: {order}\r\nAuthorization: Bearer {key}\r\nX-Api-Key: {key}\r\nAccept-Encoding: gzip, br, zstd\r\n"
        );
        if asked == Asked::WebSocket {
            return format!(
                "GET {common}Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n"
            )
            .into_bytes();
        }
        let body = match &**method {
            "GET" | "HEAD" | "DELETE" | "OPTIONS" => String::new(),
            _ => format!("{{\"prove\":\"{data}\"}}"),
        };
        let body = &body[..body
            .len()
            .min(usize::try_from(driven.body_bytes_max).unwrap_or(usize::MAX))];
        let length = if body.is_empty() {
            String::new()
        } else {
            format!("Content-Length: {}\r\n", body.len())
        };
        format!("{method} {common}{length}Connection: close\r\n\r\n{body}").into_bytes()
    }

    /// Keeps what came.
    fn note(&self, driven: &Driven, answer: Vec<u8>) {
        let mut evidence = self.evidence.lock_unpoisoned();
        evidence.calls += 1;
        if answer.is_empty() {
            evidence.unanswered += 1;
            return;
        }
        let head = answer.split(|&byte| byte == b'\n').take(40);
        for (at, line) in head.enumerate() {
            let line = String::from_utf8_lossy(line);
            let line = line.trim_end();
            if at == 0 {
                let status = line.split(' ').nth(1).unwrap_or("none").to_owned();
                *evidence.statuses.entry(status).or_default() += 1;
            } else if line.is_empty() {
                break;
            } else if line.starts_with("Claviger-Answer: ")
                && let Some((_, reason)) = line.split_once("reason=")
            {
                *evidence.reasons.entry(reason.to_owned()).or_default() += 1;
            }
        }
        let kept = if driven.on_echo == OnEcho::Report {
            &mut evidence.passed_on
        } else {
            &mut evidence.answers
        };
        kept.extend_from_slice(&answer);
        // What one answer ends with and the next begins with are no text together.
        kept.push(0);
        // Chunks cut a key for whoever reads bytes, not for whoever reads HTTP.
        let body = without_framing(&answer);
        if body != answer {
            kept.extend_from_slice(&body);
            kept.push(0);
        }
    }
}

/// An answer without the sizes of its chunks, the heads of its WebSocket frames and its
/// content coding, as a client's library would hand it on: roughly, and rather too much
/// than too little.
fn without_framing(answer: &[u8]) -> Vec<u8> {
    let Some(at) = memchr::memmem::find(answer, b"\r\n\r\n") else {
        return answer.to_vec();
    };
    let (head, mut rest) = answer.split_at(at + 4);
    let mut out = Vec::new();
    let text = String::from_utf8_lossy(head).to_ascii_lowercase();
    if text.starts_with("http/1.1 101") {
        // Unmasked frames, one after the other (RFC 6455, section 5.2).
        while let [_, length, after @ ..] = rest {
            let (length, after) = match (length & 127, after) {
                (126, [a, b, after @ ..]) => (usize::from(u16::from_be_bytes([*a, *b])), after),
                (127, _) => break,
                (short, after) => (usize::from(short), after),
            };
            let (payload, next) = after.split_at(length.min(after.len()));
            out.extend_from_slice(payload);
            rest = next;
        }
    } else if text.contains("transfer-encoding: chunked") {
        while let Some(end) = memchr::memmem::find(rest, b"\r\n") {
            let size = String::from_utf8_lossy(&rest[..end]).into_owned();
            let size = size.split(';').next().unwrap_or_default().trim();
            let Ok(size) = usize::from_str_radix(size, 16) else {
                break;
            };
            let data = &rest[end + 2..];
            if size == 0 {
                rest = data;
                break;
            }
            let (data, next) = data.split_at(size.min(data.len()));
            out.extend_from_slice(data);
            rest = next.get(2..).unwrap_or_default();
        }
        // Trailers.
        out.extend_from_slice(rest);
    } else {
        out.extend_from_slice(rest);
    }
    let coding = text
        .lines()
        .find_map(|line| line.strip_prefix("content-encoding: "));
    let decoded = coding.map(|coding| coded::decode(coding, &out));
    [head, &out, &decoded.unwrap_or_default()].concat()
}

/// Does `count` things, so many at a time.
fn parallel(threads: usize, count: usize, work: impl Fn(usize) + Sync) {
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..threads.min(count) {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    if at >= count {
                        return;
                    }
                    work(at);
                }
            });
        }
    });
}

/// What is wrong with what the APIs received: a key at another API than its own, a
/// caller's key, or a route whose key never arrived. Bytes searched, too.
pub fn judge_received(
    api: &Api,
    site: &Site,
    canaries: &Canaries,
    tolerated: usize,
) -> (u64, u64, Vec<String>, BTreeSet<usize>) {
    let mut wrong = Vec::new();
    let mut arrived = BTreeSet::new();
    let (mut bytes, mut requests) = (0, 0);
    api.received(|received| {
        for (&route, received) in received {
            bytes += received.bytes.len() as u64;
            requests += received.requests;
            let driven = site.routes.get(route);
            let name = driven.map_or("no route", |driven| &*driven.name);
            let slot = driven.and_then(|driven| driven.slot);
            let own = slot
                .map(|slot| site.slots[slot].versions)
                .unwrap_or_default();
            for (id, sighting) in canaries.search(&received.bytes) {
                if slot.is_some() && own.contains(&id) {
                    arrived.insert(route);
                } else if id != tolerated {
                    wrong.push(format!(
                        "{} reached the API of {name} ({})",
                        canaries.slot(id),
                        sighting.form
                    ));
                }
            }
            for host in received.hosts.keys() {
                if driven.is_none_or(|driven| driven.upstream_host != *host) {
                    wrong.push(format!(
                        "a request of {name} reached the API under another name"
                    ));
                }
            }
        }
    });
    (bytes, requests, wrong, arrived)
}

/// Every door, by listener.
pub fn doors(
    site: &Site,
    addresses: &BTreeMap<String, std::net::SocketAddr>,
) -> BTreeMap<String, Door> {
    site.listeners
        .iter()
        .filter_map(|(name, &tls)| {
            let address = *addresses.get(name)?;
            Some((name.clone(), Door { address, tls }))
        })
        .collect()
}
