//! [`Settings`]: what the process needs to know beside the snapshot.
//!
//! Some of it takes effect on a reload, some only on a restart;
//! [`Settings::restart_needed`] names what changed and did not take effect.

use std::path::PathBuf;
use std::time::Duration;

use super::file::{Driver, LogFormat, LogLevel, MemoryLock};
use super::written::Workers;
use crate::names::DnsSettings;

/// The process's own settings, with nothing optional left.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Worker threads. Restart to change.
    pub workers: Workers,
    /// The cores that workers are pinned to; empty is every one that the process
    /// may use. Restart to change.
    pub cpus: Vec<usize>,
    /// How workers wait for the kernel. Restart to change.
    pub driver: Driver,
    /// How long a worker looks for events before it sleeps. Restart to change.
    pub busy_poll: Duration,
    /// The user that the process becomes. Restart to change.
    pub user: Option<String>,
    /// The group that the process becomes. Restart to change.
    pub group: Option<String>,
    /// Where state is kept. Restart to change.
    pub state_dir: PathBuf,
    /// Where the internal CA is. Reloads.
    pub ca_dir: PathBuf,
    /// How long its certificates for hosts live. Reloads.
    pub leaf_life: Duration,
    /// Whether memory is locked. Restart to change.
    pub memory_lock: MemoryLock,
    /// The audit trail.
    pub audit: AuditSettings,
    /// Who resolves names. Reloads.
    pub dns: DnsSettings,
    /// The operational log.
    pub log: LogSettings,
    /// Files whose change means that the configuration must be read again: the
    /// configuration's own, certificates, CA files and keys; and `conf.d`.
    pub watch_paths: Vec<PathBuf>,
}

/// The audit trail's settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditSettings {
    /// The file. Restart to change.
    pub path: PathBuf,
    /// The size at which it is rotated; `u64::MAX` is never. Restart to change.
    pub rotate_bytes: u64,
    /// Rotated files that are kept. Restart to change.
    pub keep: usize,
}

/// The operational log's settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogSettings {
    /// The least level that is logged. Reloads.
    pub level: LogLevel,
    /// How it looks. Restart to change.
    pub format: LogFormat,
    /// How often the state is logged; zero is never. Reloads.
    pub status_interval: Duration,
}

impl Settings {
    /// The settings that differ from those in force and need a restart, as the
    /// file calls them.
    pub fn restart_needed(&self, in_force: &Settings) -> Vec<&'static str> {
        let mut names = Vec::new();
        let mut compare = |name, same: bool| {
            if !same {
                names.push(name);
            }
        };
        compare("server.workers", self.workers == in_force.workers);
        compare("server.cpus", self.cpus == in_force.cpus);
        compare("server.driver", self.driver == in_force.driver);
        compare("server.busy_poll_us", self.busy_poll == in_force.busy_poll);
        compare("server.user", self.user == in_force.user);
        compare("server.group", self.group == in_force.group);
        compare("server.state_dir", self.state_dir == in_force.state_dir);
        compare(
            "server.memory_lock",
            self.memory_lock == in_force.memory_lock,
        );
        compare("audit.path", self.audit.path == in_force.audit.path);
        compare(
            "audit.rotate_bytes",
            self.audit.rotate_bytes == in_force.audit.rotate_bytes,
        );
        compare("audit.keep", self.audit.keep == in_force.audit.keep);
        compare("log.format", self.log.format == in_force.log.format);
        names
    }
}

impl LogLevel {
    /// The word that log filters use.
    pub fn as_str(self) -> &'static str {
        match self {
            LogLevel::Error => "error",
            LogLevel::Warn => "warn",
            LogLevel::Info => "info",
            LogLevel::Debug => "debug",
            LogLevel::Trace => "trace",
        }
    }
}
