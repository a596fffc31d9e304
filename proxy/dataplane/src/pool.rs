//! [`ConnectionPool`] and [`Lease`]: one core's connections to upstreams.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use handoff::Counter;
use policy::verdict::PoolKey;
use policy::{Refuser, Upstream};

use crate::addresses;
use crate::core::Core;
use crate::rt;
use crate::session::Handshake;
use crate::transport::Transport;

/// How long a pool stays warm after its last use.
const WARM_MS: u64 = 600_000;

/// Failures to connect are logged at most this often, by each core.
const COMPLAINT_MS: u64 = 1_000;

/// Pauses between attempts to warm a pool whose upstream does not answer.
const WARM_PAUSE_MS_MIN: u64 = 1_000;
const WARM_PAUSE_MS_MAX: u64 = 60_000;

/// Idle connections by [`PoolKey`]. Connections of one key are never lent for another.
#[derive(Default)]
pub struct ConnectionPool {
    buckets: RefCell<HashMap<PoolKey, Bucket, BuildHasherDefault<KeyHasher>>>,
    /// When the last complaint about an upstream was logged, and how many were not
    /// since then.
    complaints: Cell<(Option<u64>, u64)>,
}

#[derive(Default)]
struct Bucket {
    /// The last one returned is the first one lent.
    idle: VecDeque<Idle>,
    /// Idle, lent and being opened.
    open: usize,
    last_used_ms: u64,
    turn: usize,
    /// The upstream as it was last used, for keeping connections warm.
    upstream: Option<Arc<Upstream>>,
    warming: bool,
    /// Pause after an attempt to warm it that failed, doubled by each.
    warm_pause_ms: u64,
    warm_after_ms: u64,
}

struct Idle {
    connection: Transport,
    address: SocketAddr,
    opened_ms: u64,
    since_ms: u64,
    idle_timeout_ms: u64,
    age_max_ms: u64,
}

/// A connection to an upstream, lent to one exchange. Dropped, it is closed;
/// only [`Lease::give_back`] returns it to the pool.
pub struct Lease {
    core: Rc<Core>,
    key: PoolKey,
    connection: Option<Transport>,
    address: SocketAddr,
    opened_ms: u64,
    /// Whether it has carried an exchange before.
    pub reused: bool,
    returned: bool,
}

/// Why no connection could be lent.
#[derive(Debug)]
pub enum LeaseError {
    /// The bound of the upstream is reached on this core.
    Exhausted,
    /// No address is known: DNS has not answered, or only with refused addresses.
    NoAddress,
    /// No address could be connected to.
    Connect(io::Error),
    /// The handshake failed, or the certificate is not good for the name.
    Tls(io::Error),
    /// It took too long.
    TimedOut,
}

impl LeaseError {
    /// Status, reason, detail, refuser: for the answer, the log and the audit trail.
    pub fn answer(&self) -> (u16, &'static str, &'static str, Refuser) {
        match self {
            LeaseError::Exhausted => (
                503,
                "upstream_connections_exhausted",
                "All connections to this upstream are in use (connections_max).",
                Refuser::Claviger,
            ),
            LeaseError::NoAddress => (
                503,
                "upstream_address_unknown",
                "No address of this upstream is known. Check the resolvers in [dns] and the log for refused answers.",
                Refuser::Claviger,
            ),
            LeaseError::Connect(_) => (
                502,
                "upstream_unreachable",
                "No address of this upstream accepted a connection.",
                Refuser::Upstream,
            ),
            LeaseError::Tls(_) => (
                502,
                "upstream_not_verified",
                "The TLS handshake with the upstream failed, or its certificate could not be verified. No key was sent.",
                Refuser::Upstream,
            ),
            LeaseError::TimedOut => (
                504,
                "upstream_connect_timeout",
                "The upstream did not accept a connection in time (connect_timeout).",
                Refuser::Upstream,
            ),
        }
    }
}

impl ConnectionPool {
    /// Idle connections of all buckets.
    pub fn idle(&self) -> usize {
        self.buckets
            .borrow()
            .values()
            .map(|bucket| bucket.idle.len())
            .sum()
    }

    /// Closes idle connections of buckets that no route leads to any more.
    pub fn retain(&self, is_used: impl Fn(&PoolKey) -> bool) {
        for (key, bucket) in self.buckets.borrow_mut().iter_mut() {
            if !is_used(key) {
                bucket.open -= bucket.idle.len();
                bucket.idle.clear();
                bucket.upstream = None;
            }
        }
    }

    /// Closes what is too old, too long idle, or was closed by the peer.
    pub fn sweep(&self, now_ms: u64) {
        self.buckets.borrow_mut().retain(|_, bucket| {
            let before = bucket.idle.len();
            bucket.idle.retain(|idle| {
                !idle.connection.watch().is_hung_up()
                    && now_ms.saturating_sub(idle.since_ms) < idle.idle_timeout_ms
                    && now_ms.saturating_sub(idle.opened_ms) < idle.age_max_ms
            });
            bucket.open -= before - bucket.idle.len();
            bucket.open > 0 || now_ms.saturating_sub(bucket.last_used_ms) < WARM_MS
        });
    }

    /// Buckets that were used lately and have fewer idle connections than they should.
    pub fn cold(&self, now_ms: u64) -> Vec<(PoolKey, Arc<Upstream>)> {
        let mut cold = Vec::new();
        for (key, bucket) in self.buckets.borrow_mut().iter_mut() {
            let Some(upstream) = &bucket.upstream else {
                continue;
            };
            if !bucket.warming
                && now_ms >= bucket.warm_after_ms
                && bucket.idle.len() < upstream.limits.idle_min
                // Lent connections come back; they count.
                && bucket.open < upstream.limits.idle_min
                && now_ms.saturating_sub(bucket.last_used_ms) < WARM_MS
            {
                bucket.warming = true;
                cold.push((*key, Arc::clone(upstream)));
            }
        }
        cold
    }

    /// Whether a failure may be logged now, and how many were not since the last.
    fn may_complain(&self, now_ms: u64) -> Option<u64> {
        let (last, unsaid) = self.complaints.get();
        if last.is_some_and(|last| now_ms.saturating_sub(last) < COMPLAINT_MS) {
            self.complaints.set((last, unsaid + 1));
            return None;
        }
        self.complaints.set((Some(now_ms), 0));
        Some(unsaid)
    }

    fn warmed(&self, key: PoolKey, well: bool, now_ms: u64) {
        if let Some(bucket) = self.buckets.borrow_mut().get_mut(&key) {
            bucket.warming = false;
            bucket.warm_pause_ms = if well {
                0
            } else {
                (bucket.warm_pause_ms * 2).clamp(WARM_PAUSE_MS_MIN, WARM_PAUSE_MS_MAX)
            };
            bucket.warm_after_ms = now_ms + bucket.warm_pause_ms;
        }
    }

    fn closed(&self, key: PoolKey) {
        if let Some(bucket) = self.buckets.borrow_mut().get_mut(&key) {
            bucket.open = bucket.open.saturating_sub(1);
        }
    }
}

/// What a connection is wanted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A request.
    Request,
    /// A request's second try: a new connection, since the idle one was closed.
    SecondTry,
    /// Keeping the pool warm: a new connection, and no use of the pool.
    Warmth,
}

/// Lends a connection: an idle one that is as it was left, or else a new one.
///
pub async fn lease(
    core: &Rc<Core>,
    key: PoolKey,
    upstream: &Arc<Upstream>,
    purpose: Purpose,
) -> Result<Lease, LeaseError> {
    let now_ms = core.tick.now_ms();
    let turn = {
        let mut buckets = core.pool.buckets.borrow_mut();
        let bucket = buckets.entry(key).or_default();
        if purpose != Purpose::Warmth {
            bucket.last_used_ms = now_ms;
        }
        if bucket
            .upstream
            .as_ref()
            .is_none_or(|known| !Arc::ptr_eq(known, upstream))
        {
            bucket.upstream = Some(Arc::clone(upstream));
        }
        while purpose == Purpose::Request
            && let Some(mut idle) = bucket.idle.pop_back()
        {
            idle.connection.watch().unwatch();
            if idle.connection.is_still_idle() {
                core.count(Counter::upstream_reuses);
                return Ok(Lease {
                    core: Rc::clone(core),
                    key,
                    connection: Some(idle.connection),
                    address: idle.address,
                    opened_ms: idle.opened_ms,
                    reused: true,
                    returned: false,
                });
            }
            bucket.open -= 1;
        }
        if bucket.open >= upstream.limits.connections_max {
            // An idle one that is not wanted for this request makes room.
            if bucket.idle.pop_front().is_none() {
                return Err(LeaseError::Exhausted);
            }
            bucket.open -= 1;
        }
        bucket.open += 1;
        bucket.turn = bucket.turn.wrapping_add(1);
        bucket.turn
    };
    // From here the place is the lease's: dropped, it is given back.
    let mut lease = Lease {
        core: Rc::clone(core),
        key,
        connection: None,
        address: SocketAddr::from(([0, 0, 0, 0], 0)),
        opened_ms: now_ms,
        reused: false,
        returned: false,
    };
    // Boxed: most requests find a connection, and would carry this along.
    let opening = Box::pin(open(core, upstream, turn));
    let opened = rt::timeout(upstream.limits.connect_timeout, opening)
        .await
        .unwrap_or(Err(LeaseError::TimedOut));
    match opened {
        Ok((connection, address)) => {
            core.count(Counter::upstream_connections);
            lease.connection = Some(connection);
            lease.address = address;
            Ok(lease)
        }
        Err(error) => {
            core.count(Counter::upstream_connect_failures);
            let cause: &dyn std::fmt::Display = match &error {
                LeaseError::Connect(cause) | LeaseError::Tls(cause) => cause,
                _ => &error.answer().2,
            };
            // Once a second is enough to read, however many requests fail.
            if let Some(unsaid) = core.pool.may_complain(now_ms) {
                tracing::warn!(
                    upstream = &*upstream.name,
                    reason = error.answer().1,
                    unsaid,
                    "cannot connect: {cause}"
                );
            }
            Err(error)
        }
    }
}

async fn open(
    core: &Rc<Core>,
    upstream: &Upstream,
    turn: usize,
) -> Result<(Transport, SocketAddr), LeaseError> {
    let book = core.addresses();
    let known = book.addresses(upstream);
    if known.is_empty() {
        return Err(LeaseError::NoAddress);
    }
    let now_ms = core.tick.now_ms();
    let mut ordered = addresses::order(known, &core.failures, now_ms, turn);
    loop {
        let (socket, address) = addresses::connect(&ordered, &core.failures, &core.tick)
            .await
            .map_err(LeaseError::Connect)?;
        let handshake = Handshake::client(Arc::clone(&upstream.tls), upstream.tls_name.clone())
            .map_err(|error| LeaseError::Tls(io::Error::other(error)))?;
        let mut connection = Transport::new(socket, &core.tick, &core.buffers);
        let trial = addresses::Trial::new(&core.failures, &core.tick, address);
        // One address alone may not use up the time of all.
        let limit = if ordered.len() > 1 {
            upstream.limits.connect_timeout / 2
        } else {
            upstream.limits.connect_timeout
        };
        let shaken = rt::timeout(limit, connection.handshake(handshake))
            .await
            .unwrap_or_else(|| Err(io::ErrorKind::TimedOut.into()));
        match shaken {
            Ok(()) => {
                trial.succeed();
                return Ok((connection, address));
            }
            // Not TLS's verdict but the network's: another address may do better.
            Err(error) if error.kind() != io::ErrorKind::InvalidData && ordered.len() > 1 => {
                ordered.retain(|other| *other != address);
            }
            Err(error) => return Err(LeaseError::Tls(error)),
        }
    }
}

/// Opens connections ahead of need for upstreams in use.
pub fn keep_warm(core: &Rc<Core>) {
    for (key, upstream) in core.pool.cold(core.tick.now_ms()) {
        let core = Rc::clone(core);
        rt::spawn(async move {
            let warmed = match lease(&core, key, &upstream, Purpose::Warmth).await {
                Ok(lease) => {
                    lease.give_back(&upstream);
                    true
                }
                Err(_) => false,
            };
            core.pool.warmed(key, warmed, core.tick.now_ms());
        });
    }
}

impl Lease {
    /// The connection.
    pub fn connection(&mut self) -> &mut Transport {
        self.connection
            .as_mut()
            .expect("a lease holds its connection until it is given back")
    }

    /// Where it leads.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Which pool it belongs to.
    pub fn key(&self) -> PoolKey {
        self.key
    }

    /// Returns the connection for another exchange. Only for one whose response
    /// was complete, with nothing behind it.
    pub fn give_back(mut self, upstream: &Upstream) {
        let Some(mut connection) = self.connection.take() else {
            return;
        };
        let core = Rc::clone(&self.core);
        let limits = &upstream.limits;
        let now_ms = self.core.tick.now_ms();
        let age_max_ms = limits.age_max.as_millis() as u64;
        if connection.incoming().has_leftover()
            || connection.watch().is_expired()
            || now_ms.saturating_sub(self.opened_ms) >= age_max_ms
            || limits.idle_max == 0
            || self.core.draining.get()
        {
            return;
        }
        let mut buckets = core.pool.buckets.borrow_mut();
        let Some(bucket) = buckets.get_mut(&self.key) else {
            return;
        };
        if bucket.idle.len() >= limits.idle_max {
            bucket.idle.pop_front();
            bucket.open -= 1;
        }
        // Its exchange may have left a time by which an answer was due.
        connection.watch().recv_done();
        connection.watch().watch(None);
        bucket.idle.push_back(Idle {
            connection,
            address: self.address,
            opened_ms: self.opened_ms,
            since_ms: now_ms,
            idle_timeout_ms: limits.idle_timeout.as_millis() as u64,
            age_max_ms,
        });
        drop(buckets);
        // The place stays taken, by the idle connection.
        self.returned = true;
    }
}

#[cfg(feature = "bench")]
impl Lease {
    /// A connection that was opened elsewhere, as if it had just been lent.
    pub fn of(core: &Rc<Core>, key: PoolKey, connection: Transport, address: SocketAddr) -> Self {
        core.pool.buckets.borrow_mut().entry(key).or_default().open += 1;
        Self {
            core: Rc::clone(core),
            key,
            connection: Some(connection),
            address,
            opened_ms: core.tick.now_ms(),
            reused: false,
            returned: false,
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if !self.returned {
            self.core.pool.closed(self.key);
        }
    }
}

/// Hashes a [`PoolKey`]: two numbers that this process has counted, so nobody chooses
/// them to collide, and the standard library's defence against that would cost more than
/// the rest of the search.
#[derive(Default)]
struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(byte.into());
        }
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = (self.0.rotate_left(26) ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn write_isize(&mut self, variant: isize) {
        self.write_u64(variant as u64);
    }

    fn finish(&self) -> u64 {
        // The map takes the bucket from the low bits, and multiplying has filled the high ones.
        self.0 ^ (self.0 >> 32)
    }
}

#[cfg(test)]
mod tests;
