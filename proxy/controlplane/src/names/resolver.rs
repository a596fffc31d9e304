//! [`Names`]: what is known, and the tasks that keep it so.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use policy::{AddressBook, UpstreamId};
use tokio::sync::{Notify, Semaphore};
use tokio::task::AbortHandle;

use super::guard::{OwnAddresses, Refusal};
use super::lookup::{Answer, Client, Heard, LookupError};
use super::settings::{DnsSettings, Name};
use crate::publish::Publisher;

/// An answer is asked for again when this much of its time is over.
const REFRESH_PERCENT: u32 = 80;

/// The first pause after a resolution failed; it doubles up to the next constant.
/// Each pause is cut by up to a quarter at random, so that names (and instances)
/// that failed together do not come back together.
const RETRY_INTERVAL_MIN: Duration = Duration::from_secs(1);
/// See [`RETRY_INTERVAL_MIN`].
const RETRY_INTERVAL_MAX: Duration = Duration::from_secs(30);

/// How often the log repeats that a name still cannot be resolved.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(300);

/// Questions under way at once. Past it a name waits for its turn, so that a start
/// with thousands of names does not look like an attack to the resolvers.
const QUESTIONS_MAX: usize = 64;

/// The shortest time between two publishes, so that a start with thousands of names
/// does not publish as many address books.
const PUBLISH_INTERVAL: Duration = Duration::from_millis(20);

/// What is known of all names. Outlives the tasks that find it out, so that a
/// control plane that had to be started anew forgets nothing.
#[derive(Debug, Clone)]
pub struct Names {
    shared: Arc<Shared>,
}

/// What the status line says of one upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// The upstream's name in the configuration.
    pub label: String,
    /// Addresses that are in the book.
    pub addresses: usize,
    /// The answer has expired, and serves because there is no newer one.
    pub stale: bool,
}

impl Names {
    /// Knows nothing yet.
    pub(crate) fn new(publisher: Publisher) -> Self {
        Self {
            shared: Arc::new(Shared {
                publisher,
                state: Mutex::new(State::default()),
                changed: Notify::new(),
                settled: Condvar::new(),
                settled_async: Notify::new(),
            }),
        }
    }

    /// Waits until every name has been asked for once, whatever came of it.
    /// `false` when `at_most` is over first. Blocks: for the start, not for a task.
    pub fn wait_for_first(&self, at_most: Duration) -> bool {
        let state = self.shared.lock();
        let (_state, timeout) = self
            .shared
            .settled
            .wait_timeout_while(state, at_most, |state| !state.all_settled())
            .unwrap_or_else(PoisonError::into_inner);
        !timeout.timed_out()
    }

    /// What is known now, in the order of the upstreams' names.
    pub fn known(&self) -> Vec<Known> {
        let now = Instant::now();
        let state = self.shared.lock();
        let mut known: Vec<_> = state
            .entries
            .iter()
            .map(|(name, entry)| Known {
                label: name.label.clone(),
                addresses: entry.usable(now).count(),
                stale: entry.expires.is_some_and(|expires| expires < now),
            })
            .collect();
        known.sort_by(|a, b| a.label.cmp(&b.label));
        known
    }

    /// Says which names there will be, before anything is asked, so that
    /// [`wait_for_first`](Self::wait_for_first) waits for them.
    pub(crate) fn expect(&self, names: &[Name]) {
        let mut state = self.shared.lock();
        for name in names {
            state.entries.entry(name.clone()).or_default();
        }
    }
}

/// The tasks that resolve. They end when this is dropped.
pub(crate) struct Resolving {
    names: Names,
    settings: DnsSettings,
    client: Client,
    turns: Arc<Semaphore>,
    tasks: HashMap<Name, AbortHandle>,
    publishing: AbortHandle,
}

impl Resolving {
    /// Builds the client; nothing is asked before [`add`](Self::add). Needs a runtime.
    pub(crate) fn new(names: Names, settings: DnsSettings) -> Result<Self, String> {
        let settings = settings.bounded();
        let client = Client::new(&settings)?;
        let publishing = tokio::spawn(Arc::clone(&names.shared).publish_changes());
        Ok(Self {
            names,
            client,
            settings,
            turns: Arc::new(Semaphore::new(QUESTIONS_MAX)),
            tasks: HashMap::new(),
            publishing: publishing.abort_handle(),
        })
    }

    /// Takes other settings. Answers that are known stay; with other servers, every
    /// name is asked for again.
    pub(crate) fn set(&mut self, settings: DnsSettings) -> Result<(), String> {
        let settings = settings.bounded();
        if !self.settings.same_transport(&settings) {
            self.client = Client::new(&settings)?;
            let names: Vec<_> = self.tasks.keys().cloned().collect();
            self.stop_all();
            self.settings = settings;
            for name in names {
                self.names.shared.lock().entry(&name).due = None;
                self.spawn(name);
            }
        } else if !self.settings.same_times(&settings) {
            self.settings = settings;
            let names: Vec<_> = self.tasks.keys().cloned().collect();
            self.stop_all();
            for name in names {
                self.spawn(name);
            }
        }
        Ok(())
    }

    /// Begins to resolve what is new in `names`, and judges by `own` from now on.
    pub(crate) fn add(&mut self, names: &[Name], own: OwnAddresses) {
        self.names.expect(names);
        self.names.shared.lock().own = own;
        for name in names {
            if !self.tasks.contains_key(name) {
                self.spawn(name.clone());
            }
        }
        self.names.shared.changed.notify_one();
    }

    /// Forgets what is not in `names`.
    pub(crate) fn keep_only(&mut self, names: &[Name]) {
        let keep: HashSet<_> = names.iter().collect();
        self.tasks.retain(|name, task| {
            let kept = keep.contains(name);
            if !kept {
                task.abort();
            }
            kept
        });
        self.names
            .shared
            .lock()
            .entries
            .retain(|name, _| keep.contains(name));
        self.names.shared.changed.notify_one();
    }

    /// Waits until each of `names` has been asked for once, whatever came of it.
    /// `false` when `at_most` is over first.
    pub(crate) async fn first_answers(&self, names: &[Name], at_most: Duration) -> bool {
        let all = async {
            loop {
                let settled = self.names.shared.settled_async.notified();
                tokio::pin!(settled);
                // Counted from here on, so that nothing is missed in between.
                settled.as_mut().enable();
                if self.names.shared.lock().settled(names) {
                    return;
                }
                settled.await;
            }
        };
        tokio::time::timeout(at_most, all).await.is_ok()
    }

    fn spawn(&mut self, name: Name) {
        let task = Task {
            shared: Arc::clone(&self.names.shared),
            client: self.client.clone(),
            settings: self.settings.clone(),
            turns: Arc::clone(&self.turns),
            name: name.clone(),
        };
        self.tasks
            .insert(name, tokio::spawn(task.run()).abort_handle());
    }

    fn stop_all(&mut self) {
        for (_, task) in self.tasks.drain() {
            task.abort();
        }
    }
}

impl Drop for Resolving {
    fn drop(&mut self) {
        self.stop_all();
        self.publishing.abort();
    }
}

/// Keeps one name resolved, for ever.
struct Task {
    shared: Arc<Shared>,
    client: Client,
    settings: DnsSettings,
    turns: Arc<Semaphore>,
    name: Name,
}

impl Task {
    async fn run(self) {
        // Another task's answer may still be good: this one then waits until it is due.
        let due = self.shared.lock().entry(&self.name).due;
        if let Some(due) = due {
            tokio::time::sleep_until(due.into()).await;
        }
        let mut trouble = None;
        loop {
            let result = {
                let _turn = self.turns.acquire().await;
                self.client.ask(&self.name.host).await
            };
            let result = result.map_err(Failure::Lookup);
            let pause = match result.and_then(|answer| self.take(&answer)) {
                Ok(pause) => {
                    self.recovered(trouble.take());
                    pause
                }
                Err(failure) => self.failed(&failure, &mut trouble),
            };
            let due = Instant::now() + cut_at_random(pause);
            {
                let mut state = self.shared.lock();
                let entry = state.entry(&self.name);
                entry.attempted = true;
                entry.due = Some(due);
            }
            self.shared.changed.notify_one();
            tokio::time::sleep_until(due.into()).await;
        }
    }

    /// Judges an answer and keeps what is good in it. Returns when to ask again.
    fn take(&self, answer: &Answer) -> Result<Duration, Failure> {
        let now = Instant::now();
        let mut state = self.shared.lock();
        let state = &mut *state;
        let mut refused = Vec::new();
        let guard = state.own.guard();
        let mut judge = |heard: &Heard| match heard {
            Heard::Addresses(addresses) => {
                let mut good = addresses.clone();
                good.retain(|&ip| {
                    let address = SocketAddr::new(ip, self.name.port);
                    let verdict = guard.judge(address, self.name.allow_private);
                    refused.extend(verdict.err().map(|refusal| (ip, refusal)));
                    verdict.is_ok()
                });
                match good.is_empty() {
                    true => Heard::Silence,
                    false => Heard::Addresses(good),
                }
            }
            other => other.clone(),
        };
        let (v6, v4) = (judge(&answer.v6), judge(&answer.v4));
        let any = [&v6, &v4]
            .iter()
            .any(|heard| matches!(heard, Heard::Addresses(_)));
        let ttl = answer
            .ttl
            .clamp(self.settings.ttl_floor, self.settings.ttl_ceiling);
        let entry = state.entries.entry(self.name.clone()).or_default();
        // Resolvers turn the order round; the same addresses are told once.
        refused.sort_by_key(|&(ip, _)| ip);
        if entry.refused != refused {
            for (address, refusal) in &refused {
                tracing::warn!(
                    upstream = %self.name.label,
                    host = %self.name.host,
                    %address,
                    "an address that the resolvers gave is refused: {}",
                    refusal.explain(),
                );
            }
            entry.refused.clone_from(&refused);
        }
        if !any {
            return Err(Failure::Refused);
        }
        let expires = now + ttl;
        entry.expires = Some(expires);
        for (part, heard) in [(&mut entry.v6, v6), (&mut entry.v4, v4)] {
            match heard {
                Heard::Addresses(addresses) => {
                    part.replace(addresses, expires + self.settings.stale_max);
                }
                Heard::Nothing => part.addresses.clear(),
                Heard::Silence => {}
            }
        }
        Ok(ttl * REFRESH_PERCENT / 100)
    }

    /// Tells the operator, now and then, and says when to try again.
    fn failed(&self, failure: &Failure, trouble: &mut Option<Trouble>) -> Duration {
        let now = Instant::now();
        let trouble = trouble.get_or_insert(Trouble {
            since: now,
            pause: RETRY_INTERVAL_MIN / 2,
            complain_due: now,
        });
        trouble.pause = (trouble.pause * 2).min(RETRY_INTERVAL_MAX);
        if now >= trouble.complain_due {
            trouble.complain_due = now + COMPLAINT_INTERVAL;
            let mut state = self.shared.lock();
            let entry = state.entry(&self.name);
            let known = entry.usable(now).count();
            let instead = match entry.stale_at().filter(|_| known > 0) {
                Some(until) => format!(
                    "the {known} addresses known from before serve for another {} s",
                    until.saturating_duration_since(now).as_secs()
                ),
                None => "requests to it are refused".to_owned(),
            };
            drop(state);
            tracing::warn!(
                upstream = %self.name.label,
                host = %self.name.host,
                "a name cannot be resolved: {failure}. Meanwhile {instead}",
            );
        }
        trouble.pause
    }

    fn recovered(&self, trouble: Option<Trouble>) {
        if let Some(trouble) = trouble {
            tracing::info!(
                upstream = %self.name.label,
                host = %self.name.host,
                seconds = trouble.since.elapsed().as_secs(),
                "a name can be resolved again",
            );
        }
    }
}

/// A name cannot be resolved.
struct Trouble {
    since: Instant,
    pause: Duration,
    complain_due: Instant,
}

/// Why there is nothing new.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{0}")]
    Lookup(LookupError),
    #[error("all its addresses are refused (see the lines above)")]
    Refused,
}

#[derive(Debug)]
struct Shared {
    publisher: Publisher,
    state: Mutex<State>,
    /// There may be something to publish.
    changed: Notify,
    /// Names have been asked for, and what came of it is published.
    settled: Condvar,
    /// The same, for tasks.
    settled_async: Notify,
}

#[derive(Debug, Default)]
struct State {
    own: OwnAddresses,
    entries: HashMap<Name, Entry>,
}

/// What is known of one name.
#[derive(Debug, Default)]
struct Entry {
    v6: Part,
    v4: Part,
    /// When the newest answer expires.
    expires: Option<Instant>,
    /// When to ask again.
    due: Option<Instant>,
    /// Whether it has been asked for, whatever came of it.
    attempted: bool,
    /// Whether what came of the first attempt has been published.
    settled: bool,
    /// What was refused of the newest answer, and is in the log.
    refused: Vec<(IpAddr, Refusal)>,
}

/// One kind of addresses.
#[derive(Debug, Default)]
struct Part {
    addresses: Vec<IpAddr>,
    /// Past it they are not used any more. Means nothing while there are none.
    stale_at: Option<Instant>,
    /// Whether this machine has a route to them; else they come last.
    has_route: bool,
}

impl Part {
    /// The same addresses in another order are the same: resolvers turn them round
    /// at each answer, and that is no news for the cores.
    fn replace(&mut self, addresses: Vec<IpAddr>, stale_at: Instant) {
        let same = addresses.len() == self.addresses.len()
            && addresses.iter().all(|ip| self.addresses.contains(ip));
        if !same {
            self.addresses = addresses;
        }
        self.stale_at = Some(stale_at);
        self.has_route = self.addresses.first().is_some_and(|&ip| has_route(ip));
    }

    fn usable(&self, now: Instant) -> &[IpAddr] {
        match self.stale_at {
            Some(at) if now < at => &self.addresses,
            _ => &[],
        }
    }
}

impl Entry {
    fn usable(&self, now: Instant) -> impl Iterator<Item = IpAddr> {
        let (first, second) = match (self.v6.has_route, self.v4.has_route) {
            (false, true) => (&self.v4, &self.v6),
            _ => (&self.v6, &self.v4),
        };
        first.usable(now).iter().chain(second.usable(now)).copied()
    }

    /// When the last of it goes.
    fn stale_at(&self) -> Option<Instant> {
        let parts = [&self.v6, &self.v4];
        let filled = parts.into_iter().filter(|part| !part.addresses.is_empty());
        filled.filter_map(|part| part.stale_at).max()
    }
}

impl State {
    fn entry(&mut self, name: &Name) -> &mut Entry {
        self.entries.entry(name.clone()).or_default()
    }

    fn settled(&self, names: &[Name]) -> bool {
        names
            .iter()
            .all(|name| self.entries.get(name).is_none_or(|entry| entry.settled))
    }

    fn all_settled(&self) -> bool {
        self.entries.values().all(|entry| entry.settled)
    }

    /// Everything that may be used now. Judged once more: a listener or an
    /// interface may be new since the answer came.
    fn book(&self, now: Instant) -> HashMap<UpstreamId, Arc<[SocketAddr]>> {
        let guard = self.own.guard();
        let mut book: HashMap<UpstreamId, Vec<SocketAddr>> = HashMap::new();
        for (name, entry) in &self.entries {
            let good = entry
                .usable(now)
                .map(|ip| SocketAddr::new(ip, name.port))
                .filter(|&address| guard.judge(address, name.allow_private).is_ok());
            let addresses = book.entry(name.upstream).or_default();
            for address in good {
                if !addresses.contains(&address) {
                    addresses.push(address);
                }
            }
        }
        book.into_iter()
            .filter(|(_, addresses)| !addresses.is_empty())
            .map(|(upstream, addresses)| (upstream, addresses.into()))
            .collect()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Publishes what is known whenever it has changed, for ever.
    async fn publish_changes(self: Arc<Self>) {
        loop {
            self.changed.notified().await;
            self.publish();
            tokio::time::sleep(PUBLISH_INTERVAL).await;
        }
    }

    /// Publishes what is known, if it is news, and wakes who waits for that.
    fn publish(&self) {
        let mut state = self.lock();
        let addresses = state.book(Instant::now());
        if self.publisher.current_addresses().addresses != addresses {
            self.publisher.addresses(AddressBook { addresses });
        }
        for entry in state.entries.values_mut() {
            entry.settled |= entry.attempted;
        }
        drop(state);
        self.settled.notify_all();
        self.settled_async.notify_waiters();
    }
}

/// Whether the kernel knows a way to `ip`. Sends nothing: connecting a UDP socket
/// only looks the route up (RFC 6724, rule 1: avoid unusable destinations).
fn has_route(ip: IpAddr) -> bool {
    let any: IpAddr = match ip {
        IpAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    UdpSocket::bind((any, 0)).is_ok_and(|socket| socket.connect((ip, 53)).is_ok())
}

/// Up to a quarter less. Without randomness from the kernel it is just `pause`.
fn cut_at_random(pause: Duration) -> Duration {
    let dice = getrandom::u32().unwrap_or(0);
    pause - pause.mul_f64(f64::from(dice) / f64::from(u32::MAX) / 4.0)
}
