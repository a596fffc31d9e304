//! What the outside tells the process, as events of one channel.

use std::io;
use std::sync::mpsc;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGURG, SIGUSR1, SIGUSR2};
use signal_hook::iterator::Signals;

use crate::handover::Successor;

/// Something that the main thread acts on.
#[derive(Debug)]
pub enum Event {
    /// SIGHUP: load the configuration again.
    Reload,
    /// SIGUSR1: open the audit file again, after it was moved away.
    ReopenLogs,
    /// SIGUSR2: log the status line.
    Status,
    /// SIGURG: hand over to a process of the binary that is installed now. A signal
    /// that is ignored unless somebody handles it: a process that is only starting,
    /// or of a version that does not know it, goes on.
    HandOver,
    /// What has become of that: the new process accepts, or why there is none.
    Successor(Result<Successor, String>),
    /// SIGTERM or SIGINT: drain; a second one: stop.
    Stop,
    /// Every worker has ended; `false` if one of them panicked.
    WorkersGone(bool),
}

/// Lets signals pass that would end a process which does not handle them yet, though
/// they were meant for the one whose place it takes (`systemctl kill` reaches both).
///
/// # Errors
/// As `sigaction(2)`.
pub fn survive() -> io::Result<()> {
    for signal in [SIGHUP, SIGUSR1, SIGUSR2] {
        signal_hook::flag::register(
            signal,
            std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false)),
        )?;
    }
    Ok(())
}

/// Listens for signals on a thread of its own.
///
/// # Errors
/// As `sigaction(2)`.
pub fn listen(events: mpsc::Sender<Event>) -> io::Result<()> {
    // Handled, so that a file that hits its size limit (RLIMIT_FSIZE) is a failed
    // write and not the end of the process.
    signal_hook::flag::register(
        libc::SIGXFSZ,
        std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false)),
    )?;
    let mut signals = Signals::new([SIGHUP, SIGUSR1, SIGUSR2, SIGURG, SIGTERM, SIGINT])?;
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            for signal in signals.forever() {
                let event = match signal {
                    SIGHUP => Event::Reload,
                    SIGUSR1 => Event::ReopenLogs,
                    SIGUSR2 => Event::Status,
                    SIGURG => Event::HandOver,
                    _ => Event::Stop,
                };
                if events.send(event).is_err() {
                    return;
                }
            }
        })?;
    Ok(())
}
