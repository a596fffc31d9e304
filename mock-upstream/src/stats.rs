//! Counters: one set per worker, written by that worker alone, read by anybody.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Value, json};

use crate::faults::Action;
use crate::handlers::Endpoint;

/// A number that one thread writes and any thread may read.
///
/// A plain load and store rather than a locked addition: with one writer nothing is lost, and
/// the request path stays free of locked instructions.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds one. Only the worker that owns the counter may call this.
    pub fn increment(&self) {
        self.0
            .store(self.0.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    /// The value as it stands.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What one worker has done.
#[derive(Debug, Default)]
pub struct WorkerStats {
    /// Connections accepted.
    pub connections: Counter,
    /// Connections closed, by whichever side.
    pub closed: Counter,
    /// Connections turned away since too many were open.
    pub connections_refused: Counter,
    /// TLS handshakes completed, resumed ones included.
    pub handshakes: Counter,
    /// TLS handshakes that resumed a session.
    pub resumed: Counter,
    /// TLS handshakes that failed.
    pub handshakes_failed: Counter,
    /// Requests whose head was accepted.
    pub requests: Counter,
    /// Requests refused for want of a valid key.
    pub unauthorized: Counter,
    /// Requests refused as malformed: head or body.
    pub malformed: Counter,
    /// Exchanges that the client abandoned before they were complete.
    pub abandoned: Counter,
    /// Connections closed for having been idle too long.
    pub idle_closed: Counter,
    /// Panics caught; each closed its connection.
    pub panics: Counter,
    /// Connections that carried at least one request.
    pub used: Counter,
    /// Requests refused for being too many.
    pub limited: Counter,
    /// Answers given again for an idempotency key.
    pub replayed: Counter,
    /// Closed connections by how many requests they carried, indexed by [`reuse_bucket`].
    pub reuse: [Counter; REUSE_BUCKETS.len()],
    /// Faults carried out, indexed by [`Action::index`].
    pub faults: [Counter; Action::KINDS.len()],
    /// Requests per endpoint, indexed by [`Endpoint::index`].
    pub endpoints: [Counter; Endpoint::ALL.len()],
}

impl WorkerStats {
    /// Counts a fault that is about to happen.
    pub fn fault(&self, action: &Action) {
        self.faults[action.index()].increment();
    }

    /// Counts a closed connection by the requests that it carried.
    pub fn reused(&self, requests: u64) {
        self.reuse[reuse_bucket(requests)].increment();
    }
}

/// How many requests a connection carried, in JSON.
pub const REUSE_BUCKETS: [&str; 6] = ["0", "1", "2-10", "11-100", "101-1000", "1001+"];

/// The place in [`REUSE_BUCKETS`].
pub fn reuse_bucket(requests: u64) -> usize {
    match requests {
        0 => 0,
        1 => 1,
        2..=10 => 2,
        11..=100 => 3,
        101..=1000 => 4,
        _ => 5,
    }
}

/// The sum over all workers at one moment, by name; names with a dot are members of an object.
#[derive(Clone, Debug, Default)]
pub struct Totals(BTreeMap<String, u64>);

impl Totals {
    /// Adds up what all workers have counted since they started.
    pub fn of<'w>(workers: impl Iterator<Item = &'w WorkerStats>) -> Self {
        let mut totals = BTreeMap::new();
        for worker in workers {
            let mut add = |name: &str, counter: &Counter| {
                *totals.entry(name.to_string()).or_insert(0) += counter.get();
            };
            add("connections", &worker.connections);
            add("closed", &worker.closed);
            add("connections_refused", &worker.connections_refused);
            add("handshakes", &worker.handshakes);
            add("handshakes_failed", &worker.handshakes_failed);
            add("resumed", &worker.resumed);
            add("requests", &worker.requests);
            add("connections_used", &worker.used);
            add("unauthorized", &worker.unauthorized);
            add("limited", &worker.limited);
            add("replayed", &worker.replayed);
            add("malformed", &worker.malformed);
            add("abandoned", &worker.abandoned);
            add("idle_closed", &worker.idle_closed);
            add("panics", &worker.panics);
            for (name, counter) in REUSE_BUCKETS.iter().zip(&worker.reuse) {
                add(&format!("requests_per_connection.{name}"), counter);
            }
            for (name, counter) in Action::KINDS.iter().zip(&worker.faults) {
                add(&format!("faults.{name}"), counter);
            }
            for (endpoint, counter) in Endpoint::ALL.iter().zip(&worker.endpoints) {
                add(&format!("endpoints.{}", endpoint.name()), counter);
            }
        }
        Totals(totals)
    }

    /// What has been counted since `baseline`, as JSON. How many connections are open is told as
    /// it is, whenever they were opened.
    pub fn report(&self, baseline: &Totals) -> Value {
        let get = |name: &str| self.0.get(name).copied().unwrap_or(0);
        let since = |name: &str| {
            let before = baseline.0.get(name).copied().unwrap_or(0);
            get(name).saturating_sub(before)
        };
        let mut report = json!({
            "connections_open": get("connections").saturating_sub(get("closed")),
            // Every request but the first of its connection.
            "requests_reused": since("requests").saturating_sub(since("connections_used")),
            "requests_per_connection": {},
            "faults": {},
            "endpoints": {},
        });
        for name in self.0.keys().filter(|name| *name != "closed") {
            let count = since(name);
            match name.split_once('.') {
                None => report[name] = json!(count),
                Some((group, member)) if count != 0 => report[group][member] = json!(count),
                Some(_) => {}
            }
        }
        report
    }
}
