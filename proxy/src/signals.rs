//! What the outside tells the process, as events of one channel.

use std::io;
use std::sync::mpsc;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::Signals;

/// Something that the main thread acts on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// SIGHUP: load the configuration again.
    Reload,
    /// SIGUSR1: open the audit file again, after it was moved away.
    ReopenLogs,
    /// SIGUSR2: log the status line.
    Status,
    /// SIGTERM or SIGINT: drain; a second one: stop.
    Stop,
    /// Every worker has ended; `false` if one of them panicked.
    WorkersGone(bool),
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
    let mut signals = Signals::new([SIGHUP, SIGUSR1, SIGUSR2, SIGTERM, SIGINT])?;
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            for signal in signals.forever() {
                let event = match signal {
                    SIGHUP => Event::Reload,
                    SIGUSR1 => Event::ReopenLogs,
                    SIGUSR2 => Event::Status,
                    _ => Event::Stop,
                };
                if events.send(event).is_err() {
                    return;
                }
            }
        })?;
    Ok(())
}
