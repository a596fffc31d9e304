//! [`ConnectionPool`] and [`Lease`]: one core's connections to upstreams.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use handoff::Counter;
use policy::verdict::PoolKey;
use policy::{Refuser, Upstream};

use crate::addresses;
use crate::complaint;
use crate::core::Core;
use crate::hubs;
use crate::rt;
use crate::session::Handshake;
use crate::transport::Transport;

mod queue;
use queue::{Line, Queue, Waiting};

/// How long a pool stays warm after its last use.
const WARM_MS: u64 = 600_000;

/// Pauses between attempts to warm a pool whose upstream does not answer.
const WARM_PAUSE_MS_MIN: u64 = 1_000;
const WARM_PAUSE_MS_MAX: u64 = 60_000;

/// So many attempts to open a connection that failed in a row mean that the upstream is down:
/// from then on one attempt at a time asks whether it is back, and its outcome is everybody's.
const DOWN_AFTER: u32 = 5;

/// Second tries that are possible at once, after a time without any: as many connections as one
/// would lose when an upstream restarts. Without tries left the failure is answered.
const RETRY_RESERVE: u32 = 100;

/// Requests that earn one more second try: at most a fifth of the traffic is sent twice.
const REQUESTS_PER_RETRY: u32 = 5;

/// Callers' connections that are ended, one after the other, so that one connection to an upstream
/// has a descriptor; past it the request is answered 503. Another one may be faster to take it.
const EVICTIONS_MAX: u32 = 4;

/// For a connection that was ended to be closed.
const EVICTION_PAUSE: Duration = Duration::from_millis(10);

/// Idle connections by [`PoolKey`]. Connections of one key are never lent for another.
#[derive(Default)]
pub struct ConnectionPool {
    buckets: RefCell<HashMap<PoolKey, Bucket, BuildHasherDefault<KeyHasher>>>,
}

#[derive(Default)]
struct Bucket {
    /// The last one returned is the first one lent.
    idle: VecDeque<Idle>,
    /// Idle, lent and being opened.
    open: usize,
    /// Requests that wait for one of these. Not empty only while nothing is idle.
    queue: Queue<Grant>,
    /// Attempts to open a connection that failed since one succeeded.
    failures: u32,
    /// An attempt is under way that decides for all; see [`DOWN_AFTER`].
    probing: bool,
    /// Requests that may still be counted against second tries: [`REQUESTS_PER_RETRY`] each.
    /// Counted down from the reserve, so that a new bucket has it whole.
    retries_spent: u32,
    last_used_ms: u64,
    turn: usize,
    /// The upstream as it was last used, for keeping connections warm.
    upstream: Option<Arc<Upstream>>,
    /// Its `connections_max`, which holds for as long as somebody waits, whether a route still leads
    /// here or not. `None` before the first lease.
    connections_max: Option<usize>,
    warming: bool,
    /// Pause after an attempt to warm it that failed, doubled by each.
    warm_pause_ms: u64,
    warm_after_ms: u64,
}

/// What one that waited gets.
enum Grant {
    /// A connection as good as an idle one, and its place.
    Connection(Idle),
    /// Room for a new connection; the place is taken already.
    Place,
    /// The upstream is down, and the attempt that asked has just failed again.
    Down,
    /// The queue is full, and this caller had most of it.
    Full,
}

struct Idle {
    /// Boxed: it moves between here and a lease with every request, and is large.
    connection: Box<Transport>,
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
    connection: Option<Box<Transport>>,
    address: SocketAddr,
    opened_ms: u64,
    /// Whether it has carried an exchange before.
    pub reused: bool,
    returned: bool,
}

/// Why no connection could be lent.
#[derive(Debug)]
pub enum LeaseError {
    /// The bound of the upstream is reached on this core, and so is the queue's.
    Exhausted,
    /// No connection became free in time.
    Waited,
    /// The upstream accepts no connections, as found by another request's attempt.
    Down,
    /// No address is known: DNS has not answered, or only with refused addresses.
    NoAddress,
    /// No address could be connected to.
    Connect(io::Error),
    /// The handshake failed, or the certificate is not good for the name.
    Tls(io::Error),
    /// Something was said before anything was asked: the answer to a request that nobody made.
    Unasked,
    /// It took too long.
    TimedOut,
    /// The machine had no descriptor, port or memory left for another connection.
    Local(io::Error),
    /// The route leads to hubs, and none of them is in reach.
    NoHub,
}

impl LeaseError {
    /// Status, reason, detail, refuser: for the answer, the log and the audit trail.
    pub fn answer(&self) -> (u16, &'static str, &'static str, Refuser) {
        match self {
            LeaseError::Exhausted => (
                503,
                "upstream_connections_exhausted",
                "All connections to this upstream are in use (connections_max), and no more requests may wait for one (queue_max).",
                Refuser::Claviger,
            ),
            LeaseError::Waited => (
                503,
                "upstream_queue_timeout",
                "All connections to this upstream were in use for too long (connections_max, queue_timeout).",
                Refuser::Claviger,
            ),
            LeaseError::Down => (
                503,
                "upstream_down",
                "This upstream accepts no connections at present; one attempt at a time is made.",
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
            LeaseError::Unasked => (
                502,
                "upstream_answer_malformed",
                "The upstream sent an answer before there was a request, so it was not passed on. No key was sent.",
                Refuser::Upstream,
            ),
            LeaseError::TimedOut => (
                504,
                "upstream_connect_timeout",
                "The upstream did not accept a connection in time (connect_timeout).",
                Refuser::Upstream,
            ),
            LeaseError::Local(_) => (
                503,
                "connections_exhausted",
                "This machine has no descriptor or port left for another connection; the log names the limit.",
                Refuser::Claviger,
            ),
            LeaseError::NoHub => (
                503,
                "hub_unreachable",
                "This Claviger is an edge, and none of its hubs answers: the way there is cut, or the hub does not take this edge's certificate. The hub has not seen this request, or has not answered one that can be repeated.",
                Refuser::Claviger,
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
                // Lent connections come back; they count, but for a hub, which is far away.
                && (bucket.open < upstream.limits.idle_min
                    || (upstream.is_hub && bucket.open < upstream.limits.connections_max))
                && now_ms.saturating_sub(bucket.last_used_ms) < WARM_MS
            {
                bucket.warming = true;
                cold.push((*key, Arc::clone(upstream)));
            }
        }
        cold
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

    /// A connection is gone: its place is the next one's that waits.
    fn closed(&self, key: PoolKey) {
        if let Some(bucket) = self.buckets.borrow_mut().get_mut(&key) {
            bucket.open = bucket.open.saturating_sub(1);
            bucket.let_in();
        }
    }

    /// What a request's wait ended in when nobody took it.
    fn pass_on(&self, key: PoolKey, grant: Grant) {
        match grant {
            // The connection is closed: it may have waited for longer than it was good for.
            Grant::Connection(_) | Grant::Place => {
                if let Some(bucket) = self.buckets.borrow_mut().get_mut(&key) {
                    bucket.probing = false;
                }
                self.closed(key);
            }
            Grant::Down | Grant::Full => {}
        }
    }

    /// The outcome of an attempt to open a connection, for all who wait on it. `None`: nobody
    /// waited for the outcome.
    fn attempted(&self, key: PoolKey, well: Option<bool>) {
        let mut buckets = self.buckets.borrow_mut();
        let Some(bucket) = buckets.get_mut(&key) else {
            return;
        };
        bucket.probing = false;
        match well {
            Some(true) => bucket.failures = 0,
            Some(false) => {
                bucket.failures = bucket.failures.saturating_add(1);
                if bucket.is_down() {
                    while bucket.queue.serve(Grant::Down).is_ok() {}
                }
            }
            None => {}
        }
        bucket.let_in();
    }

    /// Closes what is idle towards an address that is not used for now.
    pub fn avoid(&self, address: SocketAddr) {
        for bucket in self.buckets.borrow_mut().values_mut() {
            let before = bucket.idle.len();
            bucket.idle.retain(|idle| idle.address != address);
            bucket.open -= before - bucket.idle.len();
        }
    }

    /// Closes what is idle of one pool.
    pub fn close_idle(&self, key: PoolKey) {
        if let Some(bucket) = self.buckets.borrow_mut().get_mut(&key) {
            bucket.open -= bucket.idle.len();
            bucket.idle.clear();
            bucket.let_in();
        }
    }

    /// Whether a request may be sent a second time. Counts it, if so.
    pub fn may_retry(&self, key: PoolKey) -> bool {
        let mut buckets = self.buckets.borrow_mut();
        let Some(bucket) = buckets.get_mut(&key) else {
            return false;
        };
        let spent = bucket.retries_spent + REQUESTS_PER_RETRY;
        let allowed = spent <= RETRY_RESERVE * REQUESTS_PER_RETRY;
        if allowed {
            bucket.retries_spent = spent;
        }
        allowed
    }
}

/// What a pool is like, for whoever looks on.
#[cfg(test)]
#[derive(Debug, Clone, Copy)]
pub struct State {
    pub open: usize,
    pub idle: usize,
    pub queued: usize,
    pub is_probing: bool,
    /// An idle connection holds a buffer.
    pub holds_bytes: bool,
}

#[cfg(test)]
impl ConnectionPool {
    /// All pools, in no order.
    pub fn state(&self) -> Vec<(PoolKey, State)> {
        let buckets = self.buckets.borrow();
        let states = buckets.iter().map(|(key, bucket)| {
            let state = State {
                open: bucket.open,
                idle: bucket.idle.len(),
                queued: bucket.queue.len(),
                is_probing: bucket.probing,
                holds_bytes: bucket.idle.iter().any(|idle| idle.connection.holds_bytes()),
            };
            (*key, state)
        });
        states.collect()
    }
}

/// Makes the mistake that must not be made: an idle connection of another key is this one's.
#[cfg(test)]
fn mix(buckets: &mut HashMap<PoolKey, Bucket, BuildHasherDefault<KeyHasher>>, key: PoolKey) {
    let others = buckets.iter_mut().filter(|(other, _)| **other != key);
    let mut taken = others.filter_map(|(_, bucket)| {
        let idle = bucket.idle.pop_back();
        bucket.open -= usize::from(idle.is_some());
        idle
    });
    if let Some(taken) = taken.next() {
        let bucket = buckets.entry(key).or_default();
        bucket.open += 1;
        bucket.idle.push_back(taken);
    }
}

impl Bucket {
    fn is_down(&self) -> bool {
        self.failures >= DOWN_AFTER
    }

    fn connections_max(&self) -> usize {
        self.connections_max.unwrap_or(usize::MAX)
    }

    /// Gives a connection that comes back to the first in line.
    #[cold]
    fn serve_first(&mut self, idle: Idle) {
        if self.queue.first_wants_fresh() || self.open > self.connections_max() {
            // Closed; its place is theirs.
            drop(idle);
            self.open -= 1;
            self.let_in();
        } else {
            // Somebody waits, so this cannot fail; it would close the connection.
            let _ = self.queue.serve(Grant::Connection(idle));
        }
    }

    /// Gives free places to those who wait, in order; while the upstream is down, to the one that
    /// asks whether it is back.
    fn let_in(&mut self) {
        while self.open < self.connections_max()
            && !(self.is_down() && self.probing)
            && !self.queue.is_empty()
        {
            self.open += 1;
            self.probing = self.is_down();
            if self.queue.serve(Grant::Place).is_err() {
                self.open -= 1;
            }
        }
    }
}

/// One bucket's queue, for whoever waits in it.
struct LineOf {
    core: Rc<Core>,
    key: PoolKey,
}

impl Line<Grant> for LineOf {
    fn with(&self, act: impl FnOnce(&mut Queue<Grant>)) {
        if let Some(bucket) = self.core.pool.buckets.borrow_mut().get_mut(&self.key) {
            act(&mut bucket.queue);
        }
    }

    fn pass_on(&self, grant: Grant) {
        self.core.pool.pass_on(self.key, grant);
    }
}

/// Who asks for warmth.
pub const NOBODY: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

/// What a connection is wanted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A request.
    Request,
    /// A request's second try: a new connection, since the idle one was closed.
    SecondTry,
    /// Keeping the pool warm: a new connection, and no use of the pool.
    Warmth,
    /// A question whether the upstream is there: an idle connection, or else a new one.
    Check,
    /// The same of one that seems not to be: a new connection, whatever else is being tried.
    Probe,
}

/// Lends a connection: an idle one that is as it was left, or else a new one, or else the next
/// one that becomes free within the upstream's `queue_timeout`, in turn with other callers.
///
/// # Errors
/// See [`LeaseError`]. Only a lease for a request waits for another one.
pub async fn lease(
    core: &Rc<Core>,
    key: PoolKey,
    upstream: &Arc<Upstream>,
    purpose: Purpose,
    caller: IpAddr,
) -> Result<Lease, LeaseError> {
    let now_ms = core.tick.now_ms();
    let (place, turn) = {
        let mut buckets = core.pool.buckets.borrow_mut();
        #[cfg(test)]
        if crate::simulation::is(crate::simulation::Break::MixesPools) {
            mix(&mut buckets, key);
        }
        let bucket = buckets.entry(key).or_default();
        if purpose != Purpose::Warmth {
            bucket.last_used_ms = now_ms;
        }
        if purpose == Purpose::Request {
            bucket.retries_spent = bucket.retries_spent.saturating_sub(1);
        }
        if bucket
            .upstream
            .as_ref()
            .is_none_or(|known| !Arc::ptr_eq(known, upstream))
        {
            bucket.upstream = Some(Arc::clone(upstream));
            bucket.connections_max = Some(upstream.limits.connections_max);
        }
        while matches!(purpose, Purpose::Request | Purpose::Check)
            && let Some(mut idle) = bucket.idle.pop_back()
        {
            idle.connection.watch().unwatch();
            if idle.connection.is_still_idle() {
                if purpose == Purpose::Request {
                    core.count(Counter::upstream_reuses);
                }
                return Ok(Lease::reusing(core, key, idle));
            }
            bucket.open -= 1;
        }
        bucket.turn = bucket.turn.wrapping_add(1);
        let asks_already = bucket.is_down() && bucket.probing;
        let is_full = bucket.open >= upstream.limits.connections_max
            // An idle one that is not wanted for this request makes room.
            && match bucket.idle.pop_front() {
                Some(_) => {
                    bucket.open -= 1;
                    false
                }
                None => true,
            };
        let must_ask_first = asks_already && purpose != Purpose::Probe;
        if !is_full && !must_ask_first && bucket.queue.is_empty() {
            bucket.open += 1;
            bucket.probing = bucket.is_down();
            (None, bucket.turn)
        } else if matches!(purpose, Purpose::Warmth | Purpose::Check | Purpose::Probe)
            || (bucket.queue.len() >= upstream.limits.queue_max
                && !bucket.queue.displace(caller, Grant::Full))
        {
            core.count(Counter::upstream_queue_refusals);
            return Err(if asks_already {
                LeaseError::Down
            } else {
                LeaseError::Exhausted
            });
        } else {
            let line = LineOf {
                core: Rc::clone(core),
                key,
            };
            let fresh = purpose == Purpose::SecondTry;
            (
                Some(Waiting::new(&mut bucket.queue, caller, fresh, line)),
                bucket.turn,
            )
        }
    };
    if let Some(waiting) = place {
        // Boxed: most requests do not wait, and would carry this along.
        if let Some(lease) = Box::pin(wait(core, key, upstream, waiting)).await? {
            return Ok(lease);
        }
    }
    // From here the place is the lease's: dropped, it is given back.
    let mut lease = Lease {
        core: Rc::clone(core),
        key,
        connection: None,
        address: SocketAddr::from(([0, 0, 0, 0], 0)),
        opened_ms: core.tick.now_ms(),
        reused: false,
        returned: false,
    };
    let attempt = Attempt {
        core,
        key,
        well: Cell::new(None),
    };
    // Boxed: most requests find a connection, and would carry this along.
    let opening = Box::pin(open_with_room(core, upstream, turn));
    let opened = rt::timeout(upstream.limits.connect_timeout, opening)
        .await
        .unwrap_or(Err(LeaseError::TimedOut));
    match opened {
        Ok((connection, address)) => {
            attempt.well.set(Some(true));
            core.count(Counter::upstream_connections);
            lease.connection = Some(Box::new(connection));
            lease.address = address;
            Ok(lease)
        }
        Err(LeaseError::Local(cause)) => {
            // It says nothing of the upstream: nobody else's attempt is decided by it.
            core.count(Counter::upstream_connects_exhausted);
            if let Some(unsaid) = core.complaints.local.may(now_ms) {
                tracing::warn!(
                    upstream = &*upstream.name,
                    reason = "connections_exhausted",
                    unsaid,
                    "cannot connect: {cause}; {}",
                    complaint::exhausted(&cause).unwrap_or_default()
                );
            }
            Err(LeaseError::Local(cause))
        }
        Err(error) => {
            attempt.well.set(Some(false));
            core.count(Counter::upstream_connect_failures);
            let cause: &dyn std::fmt::Display = match &error {
                LeaseError::Connect(cause) | LeaseError::Tls(cause) => cause,
                _ => &error.answer().2,
            };
            // Once a second is enough to read, however many requests fail.
            if let Some(unsaid) = core.complaints.upstreams.may(now_ms) {
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

/// Waits for a connection (`Some`), or for the place to open one (`None`).
async fn wait(
    core: &Rc<Core>,
    key: PoolKey,
    upstream: &Upstream,
    waiting: Waiting<Grant, LineOf>,
) -> Result<Option<Lease>, LeaseError> {
    core.count(Counter::upstream_queued);
    let error = match rt::timeout(upstream.limits.queue_timeout, waiting).await {
        Some(Grant::Connection(mut idle)) => {
            if !idle.connection.is_still_idle() {
                // Its place serves for a new one.
                return Ok(None);
            }
            core.count(Counter::upstream_reuses);
            return Ok(Some(Lease::reusing(core, key, idle)));
        }
        Some(Grant::Place) => return Ok(None),
        Some(Grant::Down) => LeaseError::Down,
        Some(Grant::Full) => LeaseError::Exhausted,
        None => LeaseError::Waited,
    };
    core.count(Counter::upstream_queue_refusals);
    Err(error)
}

/// An attempt to open a connection. However it ends, the pool is told: a caller that leaves in
/// the middle of one must not leave everybody waiting on it.
struct Attempt<'a> {
    core: &'a Rc<Core>,
    key: PoolKey,
    /// `None` while it is under way.
    well: Cell<Option<bool>>,
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        self.core.pool.attempted(self.key, self.well.get());
    }
}

/// Opens a connection. When descriptors have run out, a caller that keeps us waiting makes room
/// for it: a request under way comes before a connection that waits for one.
async fn open_with_room(
    core: &Rc<Core>,
    upstream: &Upstream,
    turn: usize,
) -> Result<(Transport, SocketAddr), LeaseError> {
    let mut evictions = 0;
    loop {
        match open(core, upstream, turn).await {
            Err(LeaseError::Local(error))
                if error.raw_os_error() == Some(libc::EMFILE)
                    && evictions < EVICTIONS_MAX
                    && core.make_room() =>
            {
                evictions += 1;
                rt::sleep(EVICTION_PAUSE).await;
            }
            opened => return opened,
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
            .map_err(|error| match complaint::exhausted(&error) {
                Some(_) => LeaseError::Local(error),
                None => LeaseError::Connect(error),
            })?;
        if upstream.is_hub {
            // A connection that has died silently must not keep a request for minutes.
            let _ = rt::fail_after_silence(socket.2, hubs::SILENCE_MAX);
        }
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
            // RFC 9112, 9.2: what comes before a request is no answer. A server may send with its
            // own flight of the handshake (RFC 8446, 4.4.4); nothing else can have arrived yet,
            // since tickets wait for our flight.
            Ok(_) if connection.incoming().has_leftover() => return Err(LeaseError::Unasked),
            Ok(_) => {
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
        if core.hubs.is_lost(key) {
            // It is asked anyway, and has connections again with its first answer.
            core.pool.warmed(key, true, core.tick.now_ms());
            continue;
        }
        let core = Rc::clone(core);
        rt::spawn(async move {
            let warmed = match lease(&core, key, &upstream, Purpose::Warmth, NOBODY).await {
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
    fn reusing(core: &Rc<Core>, key: PoolKey, idle: Idle) -> Self {
        Self {
            core: Rc::clone(core),
            key,
            connection: Some(idle.connection),
            address: idle.address,
            opened_ms: idle.opened_ms,
            reused: true,
            returned: false,
        }
    }

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
        // Its exchange may have left a time by which an answer was due.
        connection.watch().recv_done();
        let idle = Idle {
            connection,
            address: self.address,
            opened_ms: self.opened_ms,
            since_ms: now_ms,
            idle_timeout_ms: limits.idle_timeout.as_millis() as u64,
            age_max_ms,
        };
        if !bucket.queue.is_empty() {
            bucket.serve_first(idle);
        } else {
            if bucket.idle.len() >= limits.idle_max {
                bucket.idle.pop_front();
                bucket.open -= 1;
            }
            idle.connection.watch().watch(None);
            bucket.idle.push_back(idle);
        }
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
            connection: Some(Box::new(connection)),
            address,
            opened_ms: core.tick.now_ms(),
            reused: false,
            returned: false,
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        #[cfg(test)]
        if crate::simulation::is(crate::simulation::Break::LeaksPlaces) {
            return;
        }
        #[cfg(test)]
        if crate::simulation::is(crate::simulation::Break::LeaksSockets) {
            std::mem::forget(self.connection.take());
        }
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
