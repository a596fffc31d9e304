//! From a command line to a serving process, and back to nothing.
//!
//! The order matters: the configuration is read, then privileges are dropped,
//! and only then are secrets fetched, sockets bound and threads started. So a
//! secret that the service user cannot read fails at once, and not at the first
//! rotation in the middle of a night.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant, SystemTime};

use controlplane::config::{self, ResolveContext, Resolved, Settings};
use controlplane::office::{self, Loaded, OfficePlan, Progress, Reason, Reload};
use controlplane::publish::Publisher;
use controlplane::{audit, credentials, telemetry};
use dataplane::{BoundListener, DriverKind, Workers};
use handoff::{Counters, Lifecycle, Phase, Published, Turns};
use policy::{AddressBook, Listener};

use crate::cli;
use crate::handover::{self, Kept, Predecessor, Successor};
use crate::privileges::{self, User};
use crate::service::{self, Manager, Watchdog};
use crate::signals::{self, Event};
use crate::sockets::{self, Bound, Given, Giver};

/// How long the first answers of the resolvers are waited for before serving.
const FIRST_NAMES_WAIT: Duration = Duration::from_secs(5);

/// How long the audit trail may take to write what is left at the end.
const AUDIT_FLUSH: Duration = Duration::from_secs(5);

/// How long the control plane may take to end.
const OFFICE_STOP: Duration = Duration::from_secs(2);

/// Open files that are needed beside those of callers' connections: a default upstream's
/// connections, and our own. With fewer, callers that keep a core waiting make room.
const OPEN_FILES_BESIDE: u64 = 2048;

/// The exit code when a worker panicked (EX_SOFTWARE of sysexits.h).
const EXIT_WORKER_PANICKED: u8 = 70;

/// How long workers that were told to stop may take to notice; then they are told
/// again.
const STOP_WAIT: Duration = Duration::from_secs(5);

/// Why the process cannot serve: a text for the operator, cure included.
#[derive(Debug)]
pub struct BootError(String);

impl std::fmt::Display for BootError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

fn failed(what: impl std::fmt::Display) -> BootError {
    BootError(what.to_string())
}

fn rendered(report: &config::Report) -> BootError {
    BootError(report.render(std::io::stderr().is_terminal()))
}

/// Whether the process may leave a core when it crashes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dumps {
    /// It leaves none, and no other process of its user may look into it.
    Forbid,
    /// As whoever started it has it. There are keys in a core: for the control of
    /// `claviger prove`, whose keys are made up.
    Permit,
}

/// Serves until told to stop.
///
/// # Errors
/// [`BootError`] for whatever kept it from serving.
pub fn run(args: &cli::Run, dumps: Dumps) -> Result<ExitCode, BootError> {
    // Before anything is read. A failure is told once there is a log.
    if dumps == Dumps::Forbid {
        let _ = privileges::forbid_dumps();
    }
    // Before anything is opened.
    let mut predecessor = Predecessor::find().map_err(failed)?;
    let outcome = run_in_place_of(args, dumps, &mut predecessor);
    if let (Err(error), Some(predecessor)) = (&outcome, &predecessor) {
        predecessor.failed(&error.0);
    }
    outcome
}

/// The same, as the next process or as the first one. Takes `predecessor` when that
/// one has handed over.
fn run_in_place_of(
    args: &cli::Run,
    dumps: Dumps,
    predecessor: &mut Option<Predecessor>,
) -> Result<ExitCode, BootError> {
    let (given, giver) = match predecessor {
        Some(predecessor) => {
            signals::survive().map_err(failed)?;
            privileges::pass_nothing_on();
            (predecessor.take_sockets(), Giver::Predecessor)
        }
        None => (activated()?, Giver::Manager),
    };
    let manager = Arc::new(Manager::from_environment(giver == Giver::Predecessor).map_err(failed)?);
    let file = config::load(&args.config.config).map_err(|report| rendered(&report))?;
    let (draft, report) = config::check(&file);
    if report.has_errors() {
        return Err(rendered(&report));
    }
    let settings = &draft.settings;
    let log = telemetry::init(&telemetry::LogSettings {
        level: args
            .log_level
            .clone()
            .unwrap_or_else(|| settings.log.level.as_str().to_owned()),
        format: match settings.log.format {
            config::LogFormat::Auto => telemetry::Format::Auto,
            config::LogFormat::Text => telemetry::Format::Text,
            config::LogFormat::Json => telemetry::Format::Json,
        },
    })
    .map_err(failed)?;
    let log = Arc::new(log);
    let start = Start {
        predecessor,
        given,
        giver,
        manager,
    };
    let served = serve(args, dumps, settings, &log, start);
    log.flush(Duration::from_secs(1));
    served
}

/// What a process starts with beside its configuration.
struct Start<'a> {
    /// Whose place it takes. `None` once that one has handed over.
    predecessor: &'a mut Option<Predecessor>,
    /// Sockets that listen already.
    given: Vec<Given>,
    giver: Giver,
    manager: Arc<Manager>,
}

/// The sockets that the service manager holds for this process.
fn activated() -> Result<Vec<Given>, BootError> {
    service::activated()
        .map_err(failed)?
        .into_iter()
        .map(|activated| Given::new(activated.socket, activated.name, None).map_err(failed))
        .collect()
}

fn serve(
    args: &cli::Run,
    dumps: Dumps,
    early: &Settings,
    log: &Arc<telemetry::Telemetry>,
    start: Start<'_>,
) -> Result<ExitCode, BootError> {
    let Start {
        predecessor,
        given,
        giver,
        manager,
    } = start;
    drop_privileges(early)?;
    // Another user is dumpable again, as fs.suid_dumpable says (prctl(2)).
    if dumps == Dumps::Forbid
        && let Err(error) = privileges::forbid_dumps()
    {
        tracing::warn!("core dumps could not be forbidden: {error}");
    }
    lock_memory(early)?;
    let mut reloader = Reloader {
        path: args.config.config.clone(),
        context: ResolveContext::new(),
        in_force: None,
        log: args.log_level.is_none().then(|| Arc::clone(log)),
    };
    let (first, settings) = reloader.load().map_err(|report| rendered(&report))?;
    reloader.in_force = Some((settings.clone(), first.snapshot.listeners.clone()));
    if let Some(warnings) = &first.warnings {
        tracing::warn!("configuration warnings:\n{warnings}");
    }
    let snapshot = Arc::clone(&first.snapshot);
    let bound = sockets::open(&snapshot.listeners, given, giver).map_err(failed)?;
    let addresses = bound
        .iter()
        .map(|bound| format!("{}={}", bound.listener, bound.address))
        .collect::<Vec<_>>()
        .join(" ");

    let cpus = cpus(&settings)?;
    raise_open_files(cpus.len(), snapshot.limits.connections_max);
    let turns: Vec<Arc<Turns>> = cpus.iter().map(|_| Arc::default()).collect();
    let watchdog = Watchdog::from_environment(&turns, predecessor.is_some()).map_err(failed)?;
    let counters: Vec<Arc<Counters>> = cpus.iter().map(|_| Arc::default()).collect();
    let (lanes, drains) = cpus.iter().map(|_| handoff::lane()).unzip();
    let trail = audit::start(audit_settings(&settings), drains).map_err(failed)?;
    let snapshots = Published::new(Arc::clone(&snapshot));
    let address_book = Published::new(Arc::new(AddressBook::default()));
    let lifecycle = Arc::new(Lifecycle::default());

    let driver = match args.driver {
        Some(cli::Driver::Auto) => dataplane::Driver::Auto,
        Some(cli::Driver::IoUring) => dataplane::Driver::IoUring,
        Some(cli::Driver::Epoll) => dataplane::Driver::Epoll,
        None => match settings.driver {
            // Only epoll can busy-poll, and whoever sets that has chosen.
            config::Driver::Auto if !settings.busy_poll.is_zero() => dataplane::Driver::Epoll,
            config::Driver::Auto => dataplane::Driver::Auto,
            config::Driver::IoUring => dataplane::Driver::IoUring,
            config::Driver::Epoll => dataplane::Driver::Epoll,
        },
    };
    let kind = dataplane::rt::choose(driver).map_err(failed)?;
    if kind != dataplane::DriverKind::Epoll && !settings.busy_poll.is_zero() {
        tracing::warn!(
            "server.busy_poll_us does nothing on the io_uring driver; run with `--driver epoll`"
        );
    }
    if let Some(predecessor) = &predecessor {
        predecessor.agree_on(kind).map_err(failed)?;
    }
    let office = office::start(OfficePlan {
        publisher: Publisher::new(Arc::clone(&snapshots), Arc::clone(&address_book)),
        first,
        reload: Box::new(reloader),
        counters: counters.clone(),
        driver: format!("{} ({} workers)", kind.as_str(), cpus.len()),
        audit: Some(trail.handle()),
        status_socket: Some(settings.state_dir.join(controlplane::status::SOCKET_NAME)),
        progress: Box::new({
            let manager = Arc::clone(&manager);
            move |progress| tell_progress(&manager, progress)
        }),
    })
    .map_err(|error| {
        failed(format_args!(
            "the control plane could not be started: {error}"
        ))
    })?;
    office.wait_for_names(FIRST_NAMES_WAIT);

    let (events, happened) = mpsc::channel();
    let kept: Vec<Kept> = bound
        .iter()
        .map(Kept::of)
        .collect::<Result<_, _>>()
        .map_err(failed)?;
    signals::listen(events.clone())
        .map_err(|error| failed(format_args!("signals cannot be handled: {error}")))?;
    let instance =
        random_u64().map_err(|error| failed(format_args!("no random numbers: {error}")))?;
    let workers = Workers::start(dataplane::Plan {
        cpus,
        driver,
        busy_poll: settings.busy_poll,
        listeners: bound.into_iter().map(to_workers).collect(),
        snapshots: Arc::clone(&snapshots),
        addresses: address_book,
        lanes,
        counters,
        turns,
        lifecycle: Arc::clone(&lifecycle),
        instance,
    })
    .map_err(failed)?;
    let driver = workers.driver();
    office.serving();
    let took_over_from = predecessor.as_ref().map(Predecessor::pid);
    // From here on this process accepts. If the other one does not let go, this one
    // finishes what it has accepted and ends.
    let handed_over = predecessor.take().map_or(Ok(()), Predecessor::ready);
    if handed_over.is_ok() {
        tracing::info!(
            addresses,
            driver = driver.as_str(),
            generation = snapshot.generation,
            version = env!("CARGO_PKG_VERSION"),
            pid = std::process::id(),
            took_over_from,
            "serving"
        );
        manager.speak();
        manager.serving(&serving(&addresses, snapshot.generation));
    } else {
        let _ = events.send(Event::Stop);
    }
    drop(snapshot);

    std::thread::Builder::new()
        .name("workers-end".to_owned())
        .spawn({
            let events = events.clone();
            move || {
                let _ = events.send(Event::WorkersGone(workers.join()));
            }
        })
        .map_err(|error| failed(format_args!("a thread could not be started: {error}")))?;
    let clean = Life {
        happened: &happened,
        events,
        lifecycle: &lifecycle,
        snapshots: &snapshots,
        requests: office.requests(),
        manager,
        watchdog: handed_over.is_ok().then_some(watchdog).flatten(),
        sockets: kept,
        driver,
        handing_over: false,
        phase_ends: None,
    }
    .live();

    office.stop(OFFICE_STOP);
    let left = trail.shutdown(AUDIT_FLUSH);
    if left.records > 0 {
        tracing::error!(
            records = left.records,
            "audit records could not be written before the end"
        );
    }
    tracing::info!("stopped");
    handed_over.map_err(failed)?;
    Ok(if clean {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(EXIT_WORKER_PANICKED)
    })
}

fn to_workers(bound: Bound) -> BoundListener {
    BoundListener {
        name: bound.listener,
        address: bound.address,
        socket: bound.socket,
    }
}

/// What `systemctl status` shows.
fn serving(addresses: &str, generation: u64) -> String {
    format!("Serving {addresses}, configuration {generation}")
}

/// Tells the service manager how a reload goes.
fn tell_progress(manager: &Manager, progress: Progress) {
    match progress {
        Progress::Began => manager.reloading(),
        Progress::InForce(generation) => {
            manager.serving(&format!("Serving, configuration {generation}"));
        }
        Progress::Failed => manager
            .serving("Serving the old configuration: the new one could not be loaded, see the log"),
    }
}

/// What acts on events from the start of serving to the end of the last worker.
struct Life<'a> {
    happened: &'a mpsc::Receiver<Event>,
    /// For the thread of a hand-over.
    events: mpsc::Sender<Event>,
    lifecycle: &'a Lifecycle,
    snapshots: &'a Published<policy::Snapshot>,
    requests: office::Requests,
    manager: Arc<Manager>,
    watchdog: Option<Watchdog>,
    /// Duplicates of the listening sockets, for a process that takes over. Let go of
    /// when this one stops accepting, since the last duplicate keeps a queue open.
    sockets: Vec<Kept>,
    driver: DriverKind,
    /// A hand-over is under way.
    handing_over: bool,
    /// When the phase ends that follows serving.
    phase_ends: Option<Instant>,
}

impl Life<'_> {
    /// Lives until every worker has ended. `false` if one panicked.
    fn live(mut self) -> bool {
        loop {
            match self.next_event() {
                Some(Event::Reload) => self.requests.reload(),
                Some(Event::ReopenLogs) => self.requests.reopen_logs(),
                Some(Event::Status) => self.requests.status(),
                Some(Event::HandOver) => self.begin_hand_over(),
                Some(Event::Successor(outcome)) => self.end_hand_over(outcome),
                Some(Event::Stop) if self.lifecycle.phase() < Phase::Draining => self.drain(),
                Some(Event::WorkersGone(clean)) => {
                    if !clean {
                        tracing::error!(
                            "a worker panicked; ending so that the service manager starts anew"
                        );
                    }
                    return clean;
                }
                None if self.lifecycle.phase() == Phase::Retiring => self.drain(),
                // A second signal, or the limit: what is still open is closed.
                Some(Event::Stop) | None => self.stop(),
            }
        }
    }

    /// `None` when the phase is over. Looks after the watchdog meanwhile.
    fn next_event(&mut self) -> Option<Event> {
        loop {
            let now = Instant::now();
            if let Some(watchdog) = &mut self.watchdog
                && watchdog.due() <= now
            {
                watchdog.look(now, &self.manager);
            }
            if self.phase_ends.is_some_and(|at| at <= now) {
                return None;
            }
            let wake = self.watchdog.as_ref().map(Watchdog::due);
            let event = match wake.into_iter().chain(self.phase_ends).min() {
                None => self.happened.recv().ok(),
                Some(at) => match self
                    .happened
                    .recv_timeout(at.saturating_duration_since(now))
                {
                    Ok(event) => Some(event),
                    Err(mpsc::RecvTimeoutError::Timeout) => continue,
                    Err(mpsc::RecvTimeoutError::Disconnected) => None,
                },
            };
            return event;
        }
    }

    fn begin_hand_over(&mut self) {
        if self.lifecycle.phase() != Phase::Serving || self.handing_over {
            tracing::info!("a hand-over is under way or done already, or the process ends");
            return;
        }
        tracing::info!("handing over: starting a process of the binary that is installed now");
        self.manager.status("Handing over to a new process");
        match handover::begin(&self.sockets, self.driver, self.events.clone()) {
            Ok(()) => self.handing_over = true,
            Err(why) => self.go_on(&why),
        }
    }

    fn end_hand_over(&mut self, outcome: Result<Successor, String>) {
        self.handing_over = false;
        let successor = match outcome {
            // The end has begun meanwhile: dropped, the new process ends as well.
            _ if self.lifecycle.phase() != Phase::Serving => return,
            Ok(successor) => successor,
            Err(why) => return self.go_on(&why),
        };
        let pid = successor.pid();
        if let Err(error) = successor.take_over() {
            return self.go_on(&format!(
                "the new process ended in the last moment: {error}"
            ));
        }
        // The manager believes the main process alone; so the new one speaks once
        // `successor` is dropped, at the end of this.
        self.manager.handed_over_to(pid);
        self.watchdog = None;
        // As long as an idle connection may wait for its next request anyway.
        let limit = self.snapshots.load().limits.idle_timeout;
        tracing::info!(
            pid,
            limit_s = limit.as_secs(),
            "handed over: another process accepts; every connection here ends with its next answer"
        );
        self.sockets.clear();
        self.lifecycle.advance(Phase::Retiring);
        self.phase_ends = Some(Instant::now() + limit);
    }

    /// The hand-over has failed, and nothing has changed.
    fn go_on(&self, why: &str) {
        tracing::error!("the hand-over failed; this process goes on serving: {why}");
        self.manager.status(&format!(
            "Serving; a hand-over failed: {}",
            why.lines().next().unwrap_or_default()
        ));
    }

    fn drain(&mut self) {
        let limit = self.snapshots.load().limits.drain_timeout;
        tracing::info!(
            limit_s = limit.as_secs(),
            "draining: no new connections; finishing what is in flight"
        );
        self.manager.stopping();
        self.sockets.clear();
        self.lifecycle.advance(Phase::Draining);
        self.phase_ends = Some(Instant::now() + limit);
    }

    fn stop(&mut self) {
        if self.lifecycle.phase() != Phase::Stopping {
            tracing::warn!("stopping with exchanges in flight");
        }
        self.lifecycle.advance(Phase::Stopping);
        // Workers notice at their next tick.
        self.phase_ends = Some(Instant::now() + STOP_WAIT);
    }
}

/// Loads the configuration, the first time and each time it changes.
struct Reloader {
    path: PathBuf,
    context: ResolveContext,
    in_force: Option<(Settings, Vec<Listener>)>,
    /// Takes the configured level, unless the command line gave one.
    log: Option<Arc<telemetry::Telemetry>>,
}

impl Reloader {
    fn load(&mut self) -> Result<(Loaded, Settings), config::Report> {
        let read_began = SystemTime::now();
        let file = config::load(&self.path)?;
        let Resolved {
            snapshot,
            settings,
            names,
            own_addresses,
            warnings,
            next_renewal,
            certificates,
            acme,
        } = config::resolve(&file, &mut self.context)?;
        let loaded = Loaded {
            read_began,
            snapshot: Arc::new(snapshot),
            names,
            own_addresses,
            dns: settings.dns.clone(),
            watch: settings.watch_paths.clone(),
            renew_at: next_renewal,
            certificates,
            acme,
            status_interval: (!settings.log.status_interval.is_zero())
                .then_some(settings.log.status_interval),
            warnings: (!warnings.is_empty()).then(|| warnings.render(false)),
        };
        Ok((loaded, settings))
    }
}

impl Reload for Reloader {
    fn reload(&mut self, _reason: &Reason) -> Result<Loaded, String> {
        let (mut loaded, settings) = self.load().map_err(|report| report.render(false))?;
        if let Some(log) = &self.log {
            log.set_level(settings.log.level.as_str())
                .map_err(|error| error.to_string())?;
        }
        if let Some((in_force, listeners)) = &self.in_force {
            let mut waiting = settings.restart_needed(in_force);
            if !same_listeners(&loaded.snapshot.listeners, listeners) {
                waiting.push("listener");
            }
            if !waiting.is_empty() {
                let note = format!(
                    "warning: these settings have changed and take effect at the next start: {}\n",
                    waiting.join(", ")
                );
                loaded.warnings = Some(loaded.warnings.take().unwrap_or_default() + &note);
            }
        }
        Ok(loaded)
    }
}

/// Whether the same sockets would be bound.
fn same_listeners(one: &[Listener], other: &[Listener]) -> bool {
    one.len() == other.len()
        && one
            .iter()
            .zip(other)
            .all(|(one, other)| one.name == other.name && one.addresses == other.addresses)
}

fn drop_privileges(settings: &Settings) -> Result<(), BootError> {
    match &settings.user {
        Some(name) => {
            let user =
                credentials::service_user(name, settings.group.as_deref()).map_err(failed)?;
            privileges::become_user(&User {
                name: name.clone(),
                uid: user.uid,
                gid: user.gid,
                gids: user.gids,
            })
            .map_err(failed)
        }
        None => {
            if privileges::is_root() {
                tracing::warn!(
                    "running as root: set server.user, so that the process gives its privileges up"
                );
            }
            Ok(())
        }
    }
}

/// Takes all open files that are granted, and says so where they are fewer than the
/// connections that the configuration allows: then they are what runs out first.
fn raise_open_files(workers: usize, connections_max: usize) {
    match privileges::raise_open_files() {
        Ok(granted) => {
            let wanted = (workers as u64) * (connections_max as u64) + OPEN_FILES_BESIDE;
            if granted < wanted {
                tracing::info!(
                    granted,
                    wanted,
                    "the limit of open files is below server.connections_max for all workers: callers that keep a core waiting are closed when it is reached. LimitNOFILE= raises it"
                );
            }
        }
        Err(error) => tracing::warn!("the limit of open files could not be raised: {error}"),
    }
}

fn lock_memory(settings: &Settings) -> Result<(), BootError> {
    match settings.memory_lock {
        config::MemoryLock::Off => Ok(()),
        wanted => match (privileges::lock_memory(), wanted) {
            (Ok(true), _) => Ok(()),
            (Ok(false), config::MemoryLock::Require) => Err(failed(
                "memory cannot be locked (server.memory_lock = \"require\"); set LimitMEMLOCK=infinity in the unit",
            )),
            (Err(error), config::MemoryLock::Require) => {
                Err(failed(format_args!("memory cannot be locked: {error}")))
            }
            (Ok(false), _) => {
                tracing::info!(
                    "memory is not locked: keys may reach swap. LimitMEMLOCK=infinity permits it"
                );
                Ok(())
            }
            (Err(error), _) => {
                tracing::warn!("memory is not locked: {error}");
                Ok(())
            }
        },
    }
}

/// One CPU per worker.
fn cpus(settings: &Settings) -> Result<Vec<Option<usize>>, BootError> {
    let allowed: Vec<usize> = core_affinity::get_core_ids()
        .unwrap_or_default()
        .iter()
        .map(|core| core.id)
        .collect();
    let chosen: Vec<usize> = if settings.cpus.is_empty() {
        allowed.clone()
    } else {
        settings.cpus.clone()
    };
    if let Some(missing) = chosen.iter().find(|cpu| !allowed.contains(cpu)) {
        return Err(failed(format_args!(
            "server.cpus names CPU {missing}, which this process may not use; it may use {allowed:?}"
        )));
    }
    let count = match settings.workers {
        config::Workers::Auto => chosen.len().max(1),
        config::Workers::Count(count) => count,
    };
    // More workers than CPUs share them; without any to name they run unpinned.
    Ok((0..count)
        .map(|worker| (!chosen.is_empty()).then(|| chosen[worker % chosen.len()]))
        .collect())
}

fn audit_settings(settings: &Settings) -> audit::AuditSettings {
    audit::AuditSettings {
        rotate_bytes: if settings.audit.rotate_bytes == u64::MAX {
            0
        } else {
            settings.audit.rotate_bytes
        },
        keep: settings.audit.keep,
        ..audit::AuditSettings::new(&settings.audit.path)
    }
}

fn random_u64() -> std::io::Result<u64> {
    let mut bytes = [0u8; 8];
    let mut source = std::fs::File::open("/dev/urandom")?;
    std::io::Read::read_exact(&mut source, &mut bytes)?;
    Ok(u64::from_ne_bytes(bytes))
}
