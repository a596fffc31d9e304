//! Counters: one set per worker, written by that worker alone, read by anybody.

use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Value, json};

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
    /// Requests per endpoint, indexed by [`Endpoint::index`].
    pub endpoints: [Counter; Endpoint::ALL.len()],
}

/// The sum over all workers, as JSON.
pub fn report<'w>(workers: impl Iterator<Item = &'w WorkerStats> + Clone) -> Value {
    let sum = |pick: fn(&WorkerStats) -> &Counter| -> u64 {
        workers.clone().map(|worker| pick(worker).get()).sum()
    };
    let (connections, closed) = (sum(|w| &w.connections), sum(|w| &w.closed));
    let endpoints: serde_json::Map<String, Value> = Endpoint::ALL
        .iter()
        .map(|endpoint| {
            let count: u64 = workers
                .clone()
                .map(|worker| worker.endpoints[endpoint.index()].get())
                .sum();
            (endpoint.name().to_string(), json!(count))
        })
        .filter(|(_, count)| *count != 0)
        .collect();
    json!({
        "connections": connections,
        "connections_open": connections.saturating_sub(closed),
        "connections_refused": sum(|w| &w.connections_refused),
        "handshakes": sum(|w| &w.handshakes),
        "handshakes_failed": sum(|w| &w.handshakes_failed),
        "resumed": sum(|w| &w.resumed),
        "requests": sum(|w| &w.requests),
        "unauthorized": sum(|w| &w.unauthorized),
        "malformed": sum(|w| &w.malformed),
        "abandoned": sum(|w| &w.abandoned),
        "idle_closed": sum(|w| &w.idle_closed),
        "panics": sum(|w| &w.panics),
        "endpoints": endpoints,
    })
}
