//! The service manager: what it is told (`sd_notify(3)`), the sockets that it gives
//! (`sd_listen_fds(3)`), and the watchdog (`sd_watchdog_enabled(3)`).
//!
//! The protocols are datagrams and environment variables, so nothing of systemd's is
//! linked. Without the variables nothing is sent. A message that cannot be sent is
//! lost: serving does not depend on being watched.
//!
//! What is deliberately missing: waiting for the manager. It answers nothing.

use std::env;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use handoff::Turns;

use crate::descriptors;

/// How long a message may wait for a manager that does not read; then it is lost.
const SEND_WAIT: Duration = Duration::from_secs(1);

/// A core whose loop has not come round for so long hangs, however short the
/// manager's interval is: a loop comes round ten times a second, on a busy machine
/// less often.
const STUCK_AFTER_MIN: Duration = Duration::from_millis(500);

/// Descriptors that one manager may give; more are an error. As many as addresses
/// that one could mean to listen on.
const GIVEN_MAX: usize = 256;

/// Variables that are about one process, and not about the one that it starts.
pub const VARIABLES_OF_ONE_PROCESS: [&str; 4] =
    ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "WATCHDOG_PID"];

/// The service manager, as far as it wants to be told. Shared by the main thread and
/// the control plane's.
#[derive(Debug)]
pub struct Manager {
    socket: Option<UnixDatagram>,
    /// Another process is the service, still or by now: what this one says would
    /// confuse. Held while a message is sent, so that none comes after `MAINPID=`.
    silent: Mutex<bool>,
}

impl Manager {
    /// The one of `NOTIFY_SOCKET`, if there is one. `silent`: another process is the
    /// service; nothing is said until [`Self::speak`].
    ///
    /// # Errors
    /// The socket is named and cannot be reached: with `Type=notify` the start would
    /// time out, and nobody would know why.
    pub fn from_environment(silent: bool) -> Result<Self, String> {
        let path = env::var_os("NOTIFY_SOCKET").filter(|path| !path.is_empty());
        let socket = path.map(|path| {
            connect(&path).map_err(|error| {
                format!(
                    "the service manager's socket {} (NOTIFY_SOCKET) cannot be reached: {error}; \
                     unset the variable if no service manager started this",
                    path.display()
                )
            })
        });
        Ok(Self {
            socket: socket.transpose()?,
            silent: Mutex::new(silent),
        })
    }

    /// This process is the service from now on.
    pub fn speak(&self) {
        *self.silence() = false;
    }

    fn silence(&self) -> MutexGuard<'_, bool> {
        self.silent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The start is over: it serves.
    pub fn serving(&self, status: &str) {
        self.tell(&format!("READY=1\nSTATUS={}", one_line(status)));
    }

    /// A reload has begun. The time lets the manager tell this one from an earlier one.
    pub fn reloading(&self) {
        let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)
            .map(Duration::from)
            .unwrap_or_default();
        self.tell(&format!(
            "RELOADING=1\nMONOTONIC_USEC={}\nSTATUS=Reading the configuration",
            now.as_micros()
        ));
    }

    /// What an operator sees in `systemctl status`.
    pub fn status(&self, status: &str) {
        self.tell(&format!("STATUS={}", one_line(status)));
    }

    /// The end has begun.
    pub fn stopping(&self) {
        self.tell("STOPPING=1\nSTATUS=Draining");
    }

    /// Every core lives.
    pub fn alive(&self) {
        self.tell("WATCHDOG=1");
    }

    /// Another process is the service from now on; this one says nothing more.
    pub fn handed_over_to(&self, pid: u32) {
        let mut silent = self.silence();
        if !*silent {
            self.send(&format!("MAINPID={pid}"));
        }
        *silent = true;
    }

    fn tell(&self, message: &str) {
        let silent = self.silence();
        if !*silent {
            self.send(message);
        }
    }

    fn send(&self, message: &str) {
        let Some(socket) = &self.socket else { return };
        if let Err(error) = socket.send(message.as_bytes()) {
            tracing::debug!("the service manager could not be told: {error}");
        }
    }
}

fn connect(path: &std::ffi::OsStr) -> io::Result<UnixDatagram> {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::ffi::OsStrExt;

    let address = match path.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(path)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&address)?;
    socket.set_write_timeout(Some(SEND_WAIT))?;
    Ok(socket)
}

/// A status is one line: a line break would begin another assignment.
fn one_line(text: &str) -> String {
    text.lines().collect::<Vec<_>>().join(" ")
}

/// The manager's watchdog: it is told that all is well while every core's loop comes
/// round, and not otherwise. The control plane does not count: traffic needs none.
#[derive(Debug)]
pub struct Watchdog {
    /// Between two looks, a quarter of the manager's limit.
    every: Duration,
    stuck_after: Duration,
    due: Instant,
    cores: Vec<Seen>,
    /// The core of which the log has said that it hangs.
    told: Option<usize>,
}

/// What was last seen of a core.
#[derive(Debug)]
struct Seen {
    turns: Arc<Turns>,
    count: Option<u64>,
    at: Instant,
}

impl Watchdog {
    /// The one that the environment asks for, if it does. `inherited`: the variables
    /// were meant for the process before this one, whose place it takes.
    ///
    /// # Errors
    /// A limit that cannot be read.
    pub fn from_environment(turns: &[Arc<Turns>], inherited: bool) -> Result<Option<Self>, String> {
        let Some(limit) = env::var_os("WATCHDOG_USEC").filter(|limit| !limit.is_empty()) else {
            return Ok(None);
        };
        let for_another = env::var("WATCHDOG_PID")
            .is_ok_and(|pid| !inherited && pid != std::process::id().to_string());
        if for_another {
            return Ok(None);
        }
        let limit = limit
            .to_str()
            .and_then(|limit| limit.parse().ok())
            .filter(|&limit| limit > 0)
            .ok_or_else(|| {
                "WATCHDOG_USEC is not a number of microseconds; unset it, or set WatchdogSec= in the unit"
                    .to_owned()
            })?;
        Ok(Some(Self::new(
            Duration::from_micros(limit),
            turns,
            Instant::now(),
        )))
    }

    fn new(limit: Duration, turns: &[Arc<Turns>], now: Instant) -> Self {
        let every = (limit / 4).max(Duration::from_millis(1));
        Self {
            every,
            stuck_after: (limit / 2).max(STUCK_AFTER_MIN),
            due: now,
            cores: turns
                .iter()
                .map(|turns| Seen {
                    turns: Arc::clone(turns),
                    count: turns.so_far(),
                    at: now,
                })
                .collect(),
            told: None,
        }
    }

    /// When to look again.
    pub fn due(&self) -> Instant {
        self.due
    }

    /// Looks at every core, and tells the manager if all is well.
    pub fn look(&mut self, now: Instant, manager: &Manager) {
        self.due = now + self.every;
        let stuck = self.stuck(now);
        match stuck {
            None => manager.alive(),
            Some(core) if self.told != Some(core) => {
                tracing::error!(
                    worker = core,
                    "a worker's loop has not come round for {} s; the service manager is not told that all is well, and will start the service anew",
                    self.stuck_after.as_secs_f32()
                );
                manager.status(&format!("Worker {core} hangs"));
            }
            Some(_) => {}
        }
        self.told = stuck;
    }

    /// A core that has not come round for too long.
    fn stuck(&mut self, now: Instant) -> Option<usize> {
        for seen in &mut self.cores {
            let count = seen.turns.so_far();
            if count != seen.count || count.is_none() {
                seen.count = count;
                seen.at = now;
            }
        }
        self.cores
            .iter()
            .position(|seen| now.saturating_duration_since(seen.at) >= self.stuck_after)
    }
}

/// A socket that the manager listens on, and the name that it gave it.
#[derive(Debug)]
pub struct Activated {
    /// From `FileDescriptorName=`; systemd's default is the socket unit's name.
    pub name: Option<String>,
    /// Not looked at yet.
    pub socket: OwnedFd,
}

/// The sockets that the manager gave to this process. Must be called once, and before
/// this process opens anything.
///
/// # Errors
/// Variables that contradict themselves, with the cure.
pub fn activated() -> Result<Vec<Activated>, String> {
    let Ok(pid) = env::var("LISTEN_PID") else {
        return Ok(Vec::new());
    };
    // Somebody else's, inherited by accident: the protocol says to leave them alone.
    if pid != std::process::id().to_string() {
        return Ok(Vec::new());
    }
    let wrong = |what: String| {
        format!("{what}; they are set by whoever started this, see sd_listen_fds(3)")
    };
    let count: usize = env::var("LISTEN_FDS")
        .ok()
        .and_then(|count| count.parse().ok())
        .filter(|&count| count <= GIVEN_MAX)
        .ok_or_else(|| {
            wrong(format!(
                "LISTEN_PID is set, and LISTEN_FDS is no number up to {GIVEN_MAX}"
            ))
        })?;
    let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':');
    let sockets = descriptors::passed(count).map_err(|error| {
        wrong(format!(
            "LISTEN_FDS says {count} descriptors, and not all are open: {error}"
        ))
    })?;
    Ok(sockets
        .into_iter()
        .map(|socket| Activated {
            name: names
                .next()
                .filter(|name| !name.is_empty())
                .map(str::to_owned),
            socket,
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_core_that_hangs_is_found_and_one_that_has_ended_is_not() {
        let turns: Vec<Arc<Turns>> = (0..3).map(|_| Arc::default()).collect();
        let began = Instant::now();
        let mut dog = Watchdog::new(Duration::from_secs(4), &turns, began);
        let mut at = |seconds: f32, turning: &[usize]| {
            for &core in turning {
                turns[core].add_one();
            }
            dog.stuck(began + Duration::from_secs_f32(seconds))
        };
        assert_eq!(at(1.0, &[0, 1, 2]), None);
        assert_eq!(at(2.0, &[0, 2]), None);
        // Half of the limit since its last turn.
        assert_eq!(at(3.0, &[0, 2]), Some(1));
        // It was only slow.
        assert_eq!(at(4.0, &[0, 1, 2]), None);
        turns[1].end();
        let mut at = |seconds: f32| {
            turns[0].add_one();
            turns[2].add_one();
            dog.stuck(began + Duration::from_secs_f32(seconds))
        };
        assert_eq!(at(6.0), None);
        assert_eq!(at(60.0), None);
    }

    #[test]
    fn a_short_limit_does_not_mistake_a_pause_for_a_hang() {
        let dog = Watchdog::new(Duration::from_millis(100), &[], Instant::now());
        assert_eq!(dog.stuck_after, STUCK_AFTER_MIN);
        assert_eq!(dog.every, Duration::from_millis(25));
    }

    #[test]
    fn a_status_is_one_line() {
        assert_eq!(one_line("a\nMAINPID=1\r\nb"), "a MAINPID=1 b");
    }
}
