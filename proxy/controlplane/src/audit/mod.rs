//! The audit trail on its way from the lanes to the disk.
//!
//! A thread of its own takes what the cores send, writes whole lines to one file,
//! and gives a record's place in its lane back only once the line is written. It
//! is a plain thread and no task: a disk that blocks keeps this thread and nobody
//! else. While the disk refuses, the lines at hand are kept and tried again, and
//! the bound of each lane decides what happens to further exchanges (`audit =
//! "required"` answers 503, others are counted as lost).
//!
//! **What "written" means.** With [`SyncPolicy::Never`] the kernel has the line: it
//! survives the end of this process, however sudden, but not a power cut within
//! the kernel's write-back time (some 30 s). With [`SyncPolicy::AfterBatch`] the
//! file system has said that it is on the disk, once for all lines taken together,
//! at the price of one `fdatasync` per batch.
//!
//! **Whole lines.** A line that was written in part is finished before anything
//! else enters that file; where it cannot be finished, because the file is left
//! for a new one, it is taken back and written there as a whole. A torn line that
//! an earlier process left behind is ended by a line break first.
//!
//! **Two writers.** While one process takes over from another both write to the file,
//! each batch under the file's lock (`fcntl(2)`, of the open file). A line that is
//! written in part keeps the lock until it is finished or taken back, and whoever finds
//! that the other has rotated goes on in the new file. Others may read at any time.
//!
//! What is deliberately missing: understanding of the lines. They are formatted by
//! the core that made them.

mod drain;
mod sink;

pub use drain::{AuditFigures, AuditHandle, AuditTrail, Leftover, start};
pub use sink::check;

use std::path::PathBuf;

/// Where the audit trail goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditSettings {
    /// The file. Created with mode 0640 if it is not there; its directory must be,
    /// and must be writable for the service's user if files are to rotate. A pipe
    /// or `/dev/stdout` works too, and is not rotated.
    pub path: PathBuf,
    /// The size in bytes past which a file is put aside. 0 never does.
    pub rotate_bytes: u64,
    /// Files put aside that are kept: `path.1` (the newest) to `path.N`. The oldest
    /// is removed. At least 1.
    pub keep: usize,
    /// When a line counts as written.
    pub sync: SyncPolicy,
}

impl AuditSettings {
    /// The usual settings for a file: 100 MiB each, 8 kept, no `fdatasync`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            rotate_bytes: 100 * 1024 * 1024,
            keep: 8,
            sync: SyncPolicy::Never,
        }
    }
}

/// When a line counts as written. See the [module](self).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SyncPolicy {
    /// When the kernel has it.
    #[default]
    Never,
    /// When the disk has it.
    AfterBatch,
}

/// Why there can be no audit trail.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The file cannot be opened for writing.
    #[error("cannot write the audit file {path}: {source}{cure}", path = path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
        /// What helps, if that is known; starts with `; `.
        cure: &'static str,
    },
    /// No thread.
    #[error("cannot start the audit thread: {0}; raise the limit on tasks (systemd: `TasksMax=`)")]
    Thread(std::io::Error),
}
