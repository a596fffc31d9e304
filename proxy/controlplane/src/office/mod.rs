//! The control plane's thread: reloads, names, renewals, and the status line.
//!
//! One tokio runtime on one thread, which never blocks: reading the configuration
//! and its secrets happens on a thread per reload, looking at files on the watch's
//! thread, and writing the audit trail on the audit's. So a secret on a network
//! mount that hangs keeps a reload from ending and nothing else, and while it hangs
//! names are still resolved and the status line still comes.
//!
//! Nothing here is needed for traffic. If this thread panics it is started anew
//! with what it knew; if it hung for good, the cores would run on with the last
//! snapshot and the last addresses.
//!
//! A reload that fails changes nothing: the old configuration stays in force, the
//! log says why, and it is tried again when a file changes, on request, and now and
//! then by itself, since the cause may be outside of our files.
//!
//! What is deliberately missing: knowledge of what a configuration is. A
//! [`Reload`] reads it and gives back what is to be published.

#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashSet};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak, mpsc};
use std::time::{Duration, Instant, SystemTime};

use handoff::{Counter, Counters};
use policy::Snapshot;
use tokio::sync::Notify;

use crate::audit::AuditHandle;
use crate::names::{DnsSettings, Name, Names, OwnAddresses, Resolving};
use crate::pki::acme::{Acme, AcmePlan};
use crate::pki::{Expiry, ExpiryState};
use crate::publish::Publisher;
use crate::status::{self, CertificateLine, Report, StatusSocket};
use crate::supervise::{Backoff, supervise};
use crate::watch::Watch;

/// Time between two looks at what is due; also the heartbeat's.
const TICK: Duration = Duration::from_secs(1);

/// Time between a reload that failed and the next attempt that nobody asked for.
const RETRY_INTERVAL: Duration = Duration::from_secs(30);

/// Shortest time between two renewals: an issuer that hands out certificates that
/// are already due must not keep us busy.
const RENEWAL_INTERVAL_MIN: Duration = Duration::from_secs(10);

/// How long a new configuration waits for the first answers about names that are
/// new in it, so that their first requests find addresses. Past it, it is published
/// all the same.
const NEW_NAMES_WAIT: Duration = Duration::from_secs(1);

/// How long addresses are kept that the new configuration does not ask for: a core
/// takes it up at its next tick, and what is in flight may still connect.
const FORGET_AFTER: Duration = Duration::from_secs(30);

/// A reload that takes longer is mentioned in the log, once per this time.
const RELOAD_TIME_MAX: Duration = Duration::from_secs(15);

/// Time between two looks at how long certificates still serve.
const CERTIFICATES_INTERVAL: Duration = Duration::from_secs(60);

/// What was said of a certificate is said again after this.
const CERTIFICATES_AGAIN: Duration = Duration::from_secs(24 * 3600);

/// Upstreams without addresses that the status line names. The rest is counted.
const NAMED_MAX: usize = 8;

/// Pauses between starts after a panic.
const BACKOFF: Backoff = Backoff {
    pause_min: Duration::from_millis(500),
    pause_max: Duration::from_secs(30),
    healthy: Duration::from_secs(60),
};

/// Why the configuration is read again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// Somebody asked for it (SIGHUP).
    Requested,
    /// These files or directories changed.
    Files(BTreeSet<PathBuf>),
    /// A certificate is due for renewal.
    Renewal,
    /// The last reload failed, or the control plane did.
    Again,
}

impl Reason {
    /// Both at once: the one that an operator knows of first.
    fn and(self, other: Reason) -> Reason {
        match (self, other) {
            (Reason::Requested, _) | (_, Reason::Requested) => Reason::Requested,
            (Reason::Files(mut files), Reason::Files(mut more)) => {
                files.append(&mut more);
                Reason::Files(files)
            }
            (files @ Reason::Files(_), _) | (_, files @ Reason::Files(_)) => files,
            (Reason::Renewal, _) | (_, Reason::Renewal) => Reason::Renewal,
            (Reason::Again, Reason::Again) => Reason::Again,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Requested => f.write_str("requested"),
            Reason::Files(files) => {
                let mut names = files.iter().map(|path| path.display());
                match names.next() {
                    None => f.write_str("a file changed"),
                    Some(first) => {
                        write!(f, "{first} changed")?;
                        match names.count() {
                            0 => Ok(()),
                            more => write!(f, ", and {more} more"),
                        }
                    }
                }
            }
            Reason::Renewal => f.write_str("a certificate is due for renewal"),
            Reason::Again => f.write_str("another attempt"),
        }
    }
}

/// A configuration that was read, checked and resolved.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// What the cores run on.
    pub snapshot: Arc<Snapshot>,
    /// Names of upstreams that are to be resolved.
    pub names: Vec<Name>,
    /// By whom, and for how long answers are good.
    pub dns: DnsSettings,
    /// Addresses that no name may lead to.
    pub own_addresses: OwnAddresses,
    /// Files and directories that it was read from. Changes to them are a reason to
    /// read it again.
    pub watch: Vec<PathBuf>,
    /// When reading began. What changed after that is read again.
    pub read_began: SystemTime,
    /// When to read it again for the sake of a certificate.
    pub renew_at: Option<SystemTime>,
    /// Until when each certificate serves, by its end.
    pub certificates: Vec<Expiry>,
    /// What a public authority is asked for, if it is.
    pub acme: Option<AcmePlan>,
    /// Time between two status lines. `None` for none.
    pub status_interval: Option<Duration>,
    /// What should be looked at, though it stops nothing.
    pub warnings: Option<String>,
}

/// Reads the configuration again. May block, on the thread that it is called on.
pub trait Reload: Send {
    /// Reads, checks and resolves; publishes nothing. Never called twice at once.
    ///
    /// # Errors
    /// The report for the operator. Nothing changes then.
    fn reload(&mut self, reason: &Reason) -> Result<Loaded, String>;
}

impl<F: FnMut(&Reason) -> Result<Loaded, String> + Send> Reload for F {
    fn reload(&mut self, reason: &Reason) -> Result<Loaded, String> {
        self(reason)
    }
}

/// How a reload goes, for whoever tells the service manager.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// One has begun.
    Began,
    /// It has put this generation in force.
    InForce(u64),
    /// It failed: the old configuration stays.
    Failed,
}

/// What the control plane starts with.
pub struct OfficePlan {
    /// Where snapshots and addresses go.
    pub publisher: Publisher,
    /// The configuration that is in force: its snapshot is published already.
    pub first: Loaded,
    /// Reads the next one.
    pub reload: Box<dyn Reload>,
    /// Every core's, for the status line.
    pub counters: Vec<Arc<Counters>>,
    /// The I/O driver that runs, for the status line.
    pub driver: String,
    /// The audit trail, for its figures and for reopening its file.
    pub audit: Option<AuditHandle>,
    /// Where `claviger status` asks. `None` for nowhere.
    pub status_socket: Option<PathBuf>,
    /// Is told of every reload, whatever its reason, on the control plane's thread:
    /// it must not block for long.
    pub progress: Box<dyn Fn(Progress) + Send + Sync>,
}

impl fmt::Debug for OfficePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OfficePlan").finish_non_exhaustive()
    }
}

/// Starts the control plane's thread.
///
/// # Errors
/// A thread could not be started.
pub fn start(plan: OfficePlan) -> std::io::Result<Office> {
    let names = Names::new(plan.publisher.clone());
    names.expect(&plan.first.names);
    let mut first = plan.first;
    let acme_plan = first.acme.take();
    let shared = Arc::new_cyclic(|shared: &Weak<Shared>| Shared {
        acme: Acme::new({
            let shared = Weak::clone(shared);
            move || {
                if let Some(shared) = shared.upgrade() {
                    shared.ask(Reason::Renewal);
                }
            }
        }),
        publisher: plan.publisher,
        names: names.clone(),
        counters: plan.counters,
        driver: plan.driver,
        audit: plan.audit,
        status_path: plan.status_socket,
        status_socket: Mutex::default(),
        progress: plan.progress,
        started: Instant::now(),
        inbox: Mutex::new(Inbox::default()),
        news: Notify::new(),
        in_force: Mutex::new(InForce::of(first)),
        reload: Mutex::new(plan.reload),
        heartbeat: AtomicU64::new(0),
    });
    shared.acme.set(acme_plan, false);
    let watch = Watch::start({
        let shared = Arc::clone(&shared);
        move |files| shared.ask(Reason::Files(files))
    })?;
    let (ended, end) = mpsc::sync_channel(1);
    let (stop, stopped) = mpsc::channel::<()>();
    let for_thread = Arc::clone(&shared);
    std::thread::Builder::new()
        .name("office".to_owned())
        .spawn(move || {
            let shared = for_thread;
            // The sender goes when the office stops; until then this only waits.
            let pause = |time| {
                matches!(
                    stopped.recv_timeout(time),
                    Err(mpsc::RecvTimeoutError::Timeout)
                )
            };
            let mut first_time = true;
            supervise("the control plane", BACKOFF, pause, || {
                if !std::mem::take(&mut first_time) {
                    // What was under way when it failed is not known: read all anew.
                    shared.ask(Reason::Again);
                }
                run(&shared, &watch);
            });
            let _ = ended.send(());
        })?;
    Ok(Office {
        shared,
        names,
        end,
        _stop: stop,
    })
}

/// The running control plane. Dropping it lets the thread run on, until it panics.
#[derive(Debug)]
pub struct Office {
    shared: Arc<Shared>,
    names: Names,
    end: mpsc::Receiver<()>,
    _stop: mpsc::Sender<()>,
}

impl Office {
    /// For whoever handles signals.
    pub fn requests(&self) -> Requests {
        Requests {
            shared: Arc::clone(&self.shared),
        }
    }

    /// Connections are accepted, also those by which an authority validates. From here on `claviger status` is answered here, and no longer by
    /// a process that this one takes over from.
    pub fn serving(&self) {
        self.shared.acme.begin();
        let Some(path) = &self.shared.status_path else {
            return;
        };
        match StatusSocket::bind(path) {
            Ok(socket) => {
                *self.shared.status_socket() = Some(Arc::new(socket));
                self.shared.news.notify_one();
            }
            Err(error) => tracing::info!(
                "`claviger status` will find nobody: {} could not be made ({error}); \
                 let the service's user write to `state_dir`",
                path.display()
            ),
        }
    }

    /// Waits until every name has been asked for once, whatever came of it. `false`
    /// when `at_most` is over first. For the start, before connections are accepted.
    pub fn wait_for_names(&self, at_most: Duration) -> bool {
        self.names.wait_for_first(at_most)
    }

    /// Grows at least once a second while the control plane lives.
    pub fn heartbeat(&self) -> u64 {
        self.shared.heartbeat.load(Ordering::Relaxed)
    }

    /// Ends the thread. `false` when `deadline` is over first; it is then left to
    /// the end of the process.
    pub fn stop(self, deadline: Duration) -> bool {
        self.shared.tell(|inbox| inbox.stop = true);
        if let Some(socket) = self.shared.status_socket().take() {
            socket.withdraw();
        }
        drop(self._stop);
        self.end.recv_timeout(deadline).is_ok()
    }
}

/// What the outside asks of the control plane. Returns at once, from any thread.
#[derive(Debug, Clone)]
pub struct Requests {
    shared: Arc<Shared>,
}

impl Requests {
    /// Reads the configuration again.
    pub fn reload(&self) {
        self.shared.ask(Reason::Requested);
    }

    /// Logs the status line.
    pub fn status(&self) {
        self.shared.tell(|inbox| inbox.status = true);
    }

    /// Opens the audit file anew, after somebody has moved it away.
    pub fn reopen_logs(&self) {
        // Not by way of the office: it works while that hangs.
        if let Some(audit) = &self.shared.audit {
            audit.reopen();
        }
    }
}

/// What outlives a panic of the office's thread.
struct Shared {
    acme: Acme,
    publisher: Publisher,
    names: Names,
    counters: Vec<Arc<Counters>>,
    driver: String,
    audit: Option<AuditHandle>,
    status_path: Option<PathBuf>,
    status_socket: Mutex<Option<Arc<StatusSocket>>>,
    progress: Box<dyn Fn(Progress) + Send + Sync>,
    started: Instant,
    inbox: Mutex<Inbox>,
    news: Notify,
    in_force: Mutex<InForce>,
    /// Locked for as long as a reload takes.
    reload: Mutex<Box<dyn Reload>>,
    heartbeat: AtomicU64,
}

#[derive(Debug, Default)]
struct Inbox {
    stop: bool,
    status: bool,
    /// Why the configuration is to be read again, if it is.
    reason: Option<Reason>,
    /// Since when a reload is under way, and why.
    reloading: Option<(Reason, Instant)>,
    /// What came of it.
    done: Option<(Reason, Result<Loaded, String>)>,
}

/// What is needed of the configuration in force.
struct InForce {
    names: Vec<Name>,
    dns: DnsSettings,
    own_addresses: OwnAddresses,
    watch: Vec<PathBuf>,
    read_began: SystemTime,
    renew_at: Option<SystemTime>,
    certificates: Vec<Expiry>,
    status_interval: Option<Duration>,
}

impl InForce {
    fn of(loaded: Loaded) -> Self {
        Self {
            names: loaded.names,
            dns: loaded.dns,
            own_addresses: loaded.own_addresses,
            watch: loaded.watch,
            read_began: loaded.read_began,
            renew_at: loaded.renew_at,
            certificates: loaded.certificates,
            status_interval: loaded.status_interval,
        }
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl Shared {
    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn in_force(&self) -> MutexGuard<'_, InForce> {
        self.in_force.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn status_socket(&self) -> MutexGuard<'_, Option<Arc<StatusSocket>>> {
        self.status_socket
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, change: impl FnOnce(&mut Inbox)) {
        change(&mut self.inbox());
        self.news.notify_one();
    }

    fn ask(&self, reason: Reason) {
        self.tell(|inbox| {
            inbox.reason = Some(match inbox.reason.take() {
                None => reason,
                Some(earlier) => earlier.and(reason),
            });
        });
    }
}

/// The thread's body: ends when it is told to stop.
fn run(shared: &Arc<Shared>, watch: &Watch) {
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "the control plane's runtime could not be made");
            panic!("the supervisor tries again");
        }
    };
    runtime.block_on(async {
        let mut desk = Desk::new(shared, watch);
        desk.work().await;
    });
    // Nothing of ours blocks in there, and nothing shall be waited for.
    runtime.shutdown_background();
}

/// What one life of the thread keeps in its head.
struct Desk<'a> {
    shared: &'a Arc<Shared>,
    watch: &'a Watch,
    resolving: Option<Resolving>,
    status_due: Option<Instant>,
    retry_due: Option<Instant>,
    renewed: Option<Instant>,
    forget_due: Option<Instant>,
    /// What the last failure said, so that it is not said every 30 seconds.
    last_failure: Option<String>,
    slow_reload_told: Option<Instant>,
    stuck_told: Option<PathBuf>,
    is_answering: bool,
    certificates_due: Instant,
    /// Of which certificates it was said how they stand, and when.
    certificates_told: Vec<(String, ExpiryState, Instant)>,
}

impl<'a> Desk<'a> {
    /// Takes up the work where it is.
    fn new(shared: &'a Arc<Shared>, watch: &'a Watch) -> Self {
        let in_force = shared.in_force();
        let resolving = Resolving::new(shared.names.clone(), in_force.dns.clone());
        let mut resolving = resolving.map_err(|error| no_resolving(&error)).ok();
        if let Some(resolving) = &mut resolving {
            resolving.add(&in_force.names, in_force.own_addresses.clone());
        }
        watch.set(in_force.watch.clone(), in_force.read_began);
        Self {
            shared,
            watch,
            resolving,
            status_due: next_status(in_force.status_interval),
            retry_due: None,
            renewed: None,
            // An earlier life may not have come to it.
            forget_due: Some(Instant::now() + FORGET_AFTER),
            last_failure: None,
            slow_reload_told: None,
            stuck_told: None,
            is_answering: false,
            certificates_due: Instant::now(),
            certificates_told: Vec::new(),
        }
    }

    async fn work(&mut self) {
        loop {
            self.shared.heartbeat.fetch_add(1, Ordering::Relaxed);
            self.ask_for_what_is_due();
            let (stop, status, done) = {
                let mut inbox = self.shared.inbox();
                let status = std::mem::take(&mut inbox.status);
                (inbox.stop, status, inbox.done.take())
            };
            if stop {
                return;
            }
            if let Some((reason, result)) = done {
                match result {
                    Ok(loaded) => self.put_in_force(&reason, loaded).await,
                    Err(report) => self.keep_the_old(&reason, report),
                }
            }
            self.answer_questions();
            self.begin_reload();
            self.forget_old_names();
            if status || self.status_due.is_some_and(|due| Instant::now() >= due) {
                self.status_line();
            }
            self.complain_about_hanging();
            self.look_at_certificates();
            let _ = tokio::time::timeout(TICK, self.shared.news.notified()).await;
        }
    }

    /// Reasons that come with time.
    fn ask_for_what_is_due(&mut self) {
        let now = Instant::now();
        let renew_at = self.shared.in_force().renew_at;
        let lately = self
            .renewed
            .is_some_and(|at| now < at + RENEWAL_INTERVAL_MIN);
        if renew_at.is_some_and(|at| SystemTime::now() >= at) && !lately {
            self.renewed = Some(now);
            self.shared.ask(Reason::Renewal);
        }
        if self.retry_due.is_some_and(|due| now >= due) {
            self.retry_due = None;
            self.shared.ask(Reason::Again);
        }
    }

    /// Begins to answer `claviger status` when its socket is there.
    fn answer_questions(&mut self) {
        if self.is_answering {
            return;
        }
        let Some(socket) = self.shared.status_socket().clone() else {
            return;
        };
        self.is_answering = true;
        let shared = Arc::clone(self.shared);
        tokio::spawn(async move {
            if let Err(error) = socket.serve(|| report(&shared)).await {
                tracing::info!("`claviger status` is not answered: {error}");
            }
        });
    }

    /// Drops the names that only an earlier configuration asked for.
    fn forget_old_names(&mut self) {
        if self.forget_due.is_some_and(|due| Instant::now() >= due) {
            self.forget_due = None;
            if let Some(resolving) = &mut self.resolving {
                resolving.keep_only(&self.shared.in_force().names);
            }
        }
    }

    /// Starts a reload, if there is a reason and none is under way.
    fn begin_reload(&mut self) {
        let reason = {
            let mut inbox = self.shared.inbox();
            if inbox.reloading.is_some() || inbox.done.is_some() {
                return;
            }
            let Some(reason) = inbox.reason.take() else {
                return;
            };
            inbox.reloading = Some((reason.clone(), Instant::now()));
            reason
        };
        (self.shared.progress)(Progress::Began);
        self.slow_reload_told = None;
        let shared = Arc::clone(self.shared);
        let for_thread = reason.clone();
        let spawned = std::thread::Builder::new()
            .name("reload".to_owned())
            .spawn(move || {
                let mut reload = shared.reload.lock().unwrap_or_else(PoisonError::into_inner);
                let result = catch_unwind(AssertUnwindSafe(|| reload.reload(&for_thread)));
                drop(reload);
                let result = result.unwrap_or_else(|payload| {
                    std::mem::forget(payload);
                    Err("it failed by a defect; the log says where".to_owned())
                });
                shared.tell(|inbox| {
                    inbox.reloading = None;
                    inbox.done = Some((for_thread, result));
                });
            });
        if let Err(error) = spawned {
            self.shared.inbox().reloading = None;
            let report = format!("no thread could be started for it: {error}");
            self.keep_the_old(&reason, report);
        }
    }

    async fn put_in_force(&mut self, reason: &Reason, mut loaded: Loaded) {
        self.retry_due = None;
        self.last_failure = None;
        let known: HashSet<_> = self.shared.in_force().names.iter().cloned().collect();
        let (new, _): (Vec<_>, Vec<_>) = loaded
            .names
            .iter()
            .cloned()
            .partition(|name| !known.contains(name));
        self.resolve(&loaded);
        if let Some(resolving) = self.resolving.as_ref().filter(|_| !new.is_empty()) {
            resolving.first_answers(&new, NEW_NAMES_WAIT).await;
        }
        let generation = loaded.snapshot.generation;
        self.shared.publisher.snapshot(Arc::clone(&loaded.snapshot));
        self.forget_due = Some(Instant::now() + FORGET_AFTER);
        self.watch.set(loaded.watch.clone(), loaded.read_began);
        self.status_due = next_status(loaded.status_interval);
        self.certificates_due = Instant::now();
        // Whoever asks for a reload may have mended what an authority did not like.
        let acme = loaded.acme.take();
        self.shared.acme.set(acme, *reason == Reason::Requested);
        if let Some(warnings) = &loaded.warnings {
            tracing::warn!("the configuration is in force, with warnings:\n{warnings}");
        }
        tracing::info!(generation, "a new configuration is in force: {reason}");
        *self.shared.in_force() = InForce::of(loaded);
        (self.shared.progress)(Progress::InForce(generation));
    }

    /// Resolves what is new. What is old stays until the snapshot is published.
    fn resolve(&mut self, loaded: &Loaded) {
        let ready = match &mut self.resolving {
            Some(resolving) => resolving.set(loaded.dns.clone()),
            None => Resolving::new(self.shared.names.clone(), loaded.dns.clone())
                .map(|resolving| self.resolving = Some(resolving)),
        };
        if let Err(error) = ready {
            no_resolving(&error);
        }
        if let Some(resolving) = &mut self.resolving {
            resolving.add(&loaded.names, loaded.own_addresses.clone());
        }
    }

    fn keep_the_old(&mut self, reason: &Reason, report: String) {
        self.retry_due = Some(Instant::now() + RETRY_INTERVAL);
        (self.shared.progress)(Progress::Failed);
        let said = self.last_failure.as_deref() == Some(report.as_str());
        // Whoever asked gets an answer, even if it is the same one.
        if said && *reason == Reason::Again {
            tracing::debug!("the configuration still cannot be loaded");
            return;
        }
        tracing::error!(
            generation = self.shared.publisher.current().generation,
            "the configuration could not be loaded ({reason}); the old one stays in force:\n{report}",
        );
        self.last_failure = Some(report);
    }

    fn status_line(&mut self) {
        let interval = self.shared.in_force().status_interval;
        self.status_due = next_status(interval);
        tracing::info!("{}", status(self.shared));
    }

    /// Says which certificates end soon, when that begins and once a day.
    fn look_at_certificates(&mut self) {
        if Instant::now() < self.certificates_due {
            return;
        }
        self.certificates_due = Instant::now() + CERTIFICATES_INTERVAL;
        let now = SystemTime::now();
        let mut told = Vec::new();
        for expiry in &self.shared.in_force().certificates {
            let state = expiry.state(now);
            if state == ExpiryState::Good {
                continue;
            }
            let text = expiry.to_string();
            let mut earlier = self.certificates_told.iter();
            let earlier = earlier.find(|(it, at, when)| {
                *it == text && *at == state && when.elapsed() < CERTIFICATES_AGAIN
            });
            match (earlier, state) {
                (Some(earlier), _) => told.push(earlier.clone()),
                (None, ExpiryState::Expired) => {
                    tracing::error!("a certificate has expired: {text}; {}", expiry.kind.cure());
                    told.push((text, state, Instant::now()));
                }
                (None, _) => {
                    tracing::warn!("a certificate expires soon: {text}; {}", expiry.kind.cure());
                    told.push((text, state, Instant::now()));
                }
            }
        }
        self.certificates_told = told;
    }

    /// Says that a reload or a look at a file does not come back.
    fn complain_about_hanging(&mut self) {
        let now = Instant::now();
        let reloading = self.shared.inbox().reloading.clone();
        if let Some((reason, since)) = reloading {
            let told = self.slow_reload_told.unwrap_or(since);
            if now.duration_since(told) >= RELOAD_TIME_MAX {
                self.slow_reload_told = Some(now);
                tracing::warn!(
                    seconds = since.elapsed().as_secs(),
                    "a reload ({reason}) has not come back; the old configuration stays in force. \
                     Likely cause: a file system that does not answer",
                );
            }
        }
        let stuck = self.watch.stuck();
        if let Some(path) = stuck.as_ref().filter(|_| stuck != self.stuck_told) {
            tracing::warn!(
                path = %path.display(),
                "looking at a file has not come back, and until it does no changed file is \
                 noticed. Likely cause: a file system that does not answer",
            );
        }
        self.stuck_told = stuck;
    }
}

/// A time beyond what the clock can say is never.
fn next_status(interval: Option<Duration>) -> Option<Instant> {
    Instant::now().checked_add(interval?)
}

fn no_resolving(error: &str) {
    tracing::error!(
        "names cannot be resolved with these resolvers: {error}; look at `[dns] servers`"
    );
}

/// What the process says of itself.
fn report(shared: &Shared) -> Report {
    let mut figures = Vec::new();
    let mut figure = |name: &str, value: u64| figures.push((name.to_owned(), value));
    for &counter in Counter::ALL {
        let sum = shared
            .counters
            .iter()
            .fold(0_u64, |sum, core| sum.wrapping_add(core.get(counter)));
        figure(counter.name(), sum);
    }
    if let Some(audit) = &shared.audit {
        let audit = audit.figures();
        figure("audit_written", audit.records);
        figure("audit_bytes", audit.bytes);
        figure("audit_waiting", audit.waiting);
        figure("audit_failures", audit.failures);
    }
    let known = shared.names.known();
    let addresses: usize = known.iter().map(|name| name.addresses).sum();
    let stale = known.iter().filter(|name| name.stale).count();
    let missing = known.iter().filter(|name| name.addresses == 0);
    let unresolved: Vec<String> = missing.map(|name| name.label.clone()).collect();
    figure("upstream_names", known.len() as u64);
    figure("upstream_addresses", addresses as u64);
    figure("upstream_names_stale", stale as u64);
    figure("upstream_names_unresolved", unresolved.len() as u64);
    let now = SystemTime::now();
    let certificates: Vec<_> = shared
        .in_force()
        .certificates
        .iter()
        .map(|expiry| (CertificateLine::new(expiry, now), expiry.state(now)))
        .collect();
    let count = |state| certificates.iter().filter(|(_, it)| *it == state).count() as u64;
    figure("certificates", certificates.len() as u64);
    figure("certificates_expiring", count(ExpiryState::Expiring));
    figure("certificates_expired", count(ExpiryState::Expired));
    let acme = shared.acme.lines();
    figure("acme_hosts", acme.len() as u64);
    let failing = acme.iter().filter(|line| line.failures > 0).count();
    figure("acme_hosts_failing", failing as u64);
    figure("acme_obtained", acme.iter().map(|line| line.obtained).sum());
    Report {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        driver: shared.driver.clone(),
        generation: shared.publisher.current().generation,
        uptime_s: shared.started.elapsed().as_secs(),
        figures,
        unresolved,
        acme,
        certificates: certificates.into_iter().map(|(line, _)| line).collect(),
    }
}

/// The status line.
fn status(shared: &Shared) -> String {
    let report = report(shared);
    let mut line = report.line(SystemTime::now());
    let unresolved = report.unresolved.iter().map(String::as_str);
    status::list(&mut line, "unresolved", unresolved, NAMED_MAX);
    line
}
