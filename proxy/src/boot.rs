//! From a command line to a serving process, and back to nothing.
//!
//! The order matters: the configuration is read, then privileges are dropped,
//! and only then are secrets fetched, sockets bound and threads started. So a
//! secret that the service user cannot read fails at once, and not at the first
//! rotation in the middle of a night.

use std::io::IsTerminal;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant, SystemTime};

use controlplane::config::{self, ResolveContext, Resolved, Settings};
use controlplane::office::{self, Loaded, OfficePlan, Reason, Reload};
use controlplane::publish::Publisher;
use controlplane::{audit, credentials, telemetry};
use dataplane::{BoundListener, Workers};
use handoff::{Counters, Lifecycle, Phase, Published};
use policy::{AddressBook, Listener};

use crate::cli;
use crate::privileges::{self, User};
use crate::signals::{self, Event};

/// How long the first answers of the resolvers are waited for before serving.
const FIRST_NAMES_WAIT: Duration = Duration::from_secs(5);

/// How long the audit trail may take to write what is left at the end.
const AUDIT_FLUSH: Duration = Duration::from_secs(5);

/// How long the control plane may take to end.
const OFFICE_STOP: Duration = Duration::from_secs(2);

/// The exit code when a worker panicked (EX_SOFTWARE of sysexits.h).
const EXIT_WORKER_PANICKED: u8 = 70;

/// Connections that may wait to be accepted, per listening socket; the kernel's
/// bound (net.core.somaxconn) applies as well. Beyond it callers see a timeout.
const BACKLOG: i32 = 4096;

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

/// Serves until told to stop.
///
/// # Errors
/// [`BootError`] for whatever kept it from serving.
pub fn run(args: &cli::Run) -> Result<ExitCode, BootError> {
    // Before anything is read. A failure is told once there is a log.
    let _ = privileges::forbid_dumps();
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
    let served = serve(args, settings, &log);
    log.flush(Duration::from_secs(1));
    served
}

fn serve(
    args: &cli::Run,
    early: &Settings,
    log: &Arc<telemetry::Telemetry>,
) -> Result<ExitCode, BootError> {
    drop_privileges(early)?;
    // Another user is dumpable again, as fs.suid_dumpable says (prctl(2)).
    if let Err(error) = privileges::forbid_dumps() {
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
    let listeners = bind(&snapshot.listeners)?;
    let addresses = listeners
        .iter()
        .map(|bound| format!("{}={}", bound.name, bound.address))
        .collect::<Vec<_>>()
        .join(" ");

    let cpus = cpus(&settings)?;
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
    let office = office::start(OfficePlan {
        publisher: Publisher::new(Arc::clone(&snapshots), Arc::clone(&address_book)),
        first,
        reload: Box::new(reloader),
        counters: counters.clone(),
        driver: format!("{} ({} workers)", kind.as_str(), cpus.len()),
        audit: Some(trail.handle()),
    })
    .map_err(|error| {
        failed(format_args!(
            "the control plane could not be started: {error}"
        ))
    })?;
    office.wait_for_names(FIRST_NAMES_WAIT);

    let (events, happened) = mpsc::channel();
    signals::listen(events.clone())
        .map_err(|error| failed(format_args!("signals cannot be handled: {error}")))?;
    let instance =
        random_u64().map_err(|error| failed(format_args!("no random numbers: {error}")))?;
    let workers = Workers::start(dataplane::Plan {
        cpus,
        driver,
        busy_poll: settings.busy_poll,
        listeners,
        snapshots: Arc::clone(&snapshots),
        addresses: address_book,
        lanes,
        counters,
        lifecycle: Arc::clone(&lifecycle),
        instance,
    })
    .map_err(failed)?;
    tracing::info!(
        addresses,
        driver = workers.driver().as_str(),
        generation = snapshot.generation,
        version = env!("CARGO_PKG_VERSION"),
        "serving"
    );
    drop(snapshot);

    std::thread::Builder::new()
        .name("workers-end".to_owned())
        .spawn(move || {
            let _ = events.send(Event::WorkersGone(workers.join()));
        })
        .map_err(|error| failed(format_args!("a thread could not be started: {error}")))?;
    let requests = office.requests();
    let clean = live(&happened, &lifecycle, &snapshots, &requests);

    office.stop(OFFICE_STOP);
    let left = trail.shutdown(AUDIT_FLUSH);
    if left.records > 0 {
        tracing::error!(
            records = left.records,
            "audit records could not be written before the end"
        );
    }
    tracing::info!("stopped");
    Ok(if clean {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(EXIT_WORKER_PANICKED)
    })
}

/// Acts on events until every worker has ended. `false` if one panicked.
fn live(
    happened: &mpsc::Receiver<Event>,
    lifecycle: &Lifecycle,
    snapshots: &Published<policy::Snapshot>,
    requests: &office::Requests,
) -> bool {
    let mut stop_at: Option<Instant> = None;
    loop {
        let event = match stop_at {
            None => happened.recv().ok(),
            Some(at) => happened
                .recv_timeout(at.saturating_duration_since(Instant::now()))
                .ok(),
        };
        match event {
            Some(Event::Reload) => requests.reload(),
            Some(Event::ReopenLogs) => requests.reopen_logs(),
            Some(Event::Status) => requests.status(),
            Some(Event::Stop) if stop_at.is_none() => {
                let limit = snapshots.load().limits.drain_timeout;
                tracing::info!(
                    limit_s = limit.as_secs(),
                    "draining: no new connections; finishing what is in flight"
                );
                lifecycle.advance(Phase::Draining);
                stop_at = Some(Instant::now() + limit);
            }
            Some(Event::WorkersGone(clean)) => {
                if !clean {
                    tracing::error!(
                        "a worker panicked; ending so that the service manager starts anew"
                    );
                }
                return clean;
            }
            // A second signal, or the limit: what is still open is closed.
            Some(Event::Stop) | None => {
                if lifecycle.phase() != Phase::Stopping {
                    tracing::warn!("stopping with exchanges in flight");
                }
                lifecycle.advance(Phase::Stopping);
                // Workers notice at their next tick.
                stop_at = Some(Instant::now() + Duration::from_secs(5));
            }
        }
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
        } = config::resolve(&file, &mut self.context)?;
        let loaded = Loaded {
            read_began,
            snapshot: Arc::new(snapshot),
            names,
            own_addresses,
            dns: settings.dns.clone(),
            watch: settings.watch_paths.clone(),
            renew_at: next_renewal,
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

fn bind(listeners: &[Listener]) -> Result<Vec<BoundListener>, BootError> {
    let mut bound = Vec::new();
    for listener in listeners {
        for &address in &listener.addresses {
            let socket = listen(address).map_err(|error| {
                let cure = match error.kind() {
                    std::io::ErrorKind::AddrInUse => "another process listens there; find it with `ss -ltnp`",
                    std::io::ErrorKind::PermissionDenied => {
                        "ports below 1024 need CAP_NET_BIND_SERVICE: start as root with server.user, or set AmbientCapabilities=CAP_NET_BIND_SERVICE"
                    }
                    std::io::ErrorKind::AddrNotAvailable => "no interface of this machine has that address",
                    _ => "check the listener's address",
                };
                failed(format_args!("listener `{}`: cannot listen on {address}: {error}; {cure}", listener.name))
            })?;
            let address = socket.local_addr().map_err(failed)?;
            bound.push(BoundListener {
                name: Arc::clone(&listener.name),
                address,
                socket,
            });
        }
    }
    Ok(bound)
}

fn listen(address: std::net::SocketAddr) -> std::io::Result<TcpListener> {
    use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrStorage, sockopt};
    use std::os::fd::AsRawFd;
    let family = if address.is_ipv6() {
        AddressFamily::Inet6
    } else {
        AddressFamily::Inet
    };
    let socket = socket::socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    socket::setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    // Not SO_REUSEPORT: a second instance by mistake would share the address in
    // silence. A later process is given the descriptor itself.
    if address.is_ipv6() {
        // `[::]` and `0.0.0.0` are two addresses, whatever the machine's default is.
        socket::setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
    }
    socket::bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
    socket::listen(&socket, socket::Backlog::new(BACKLOG)?)?;
    Ok(TcpListener::from(socket))
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
