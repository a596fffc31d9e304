//! The signals that end a run early or change its window.
//!
//! They are blocked in every thread, so that none ever interrupts a driving thread's system call,
//! and taken one by one by whoever waits for them.

#![allow(unsafe_code)]

use std::mem::MaybeUninit;
use std::time::Duration;

/// A signal that this program heeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// Ctrl-C.
    Interrupt,
    /// The polite end: `kill`, a CI system's time-out.
    Terminate,
    /// The terminal has another size.
    WindowChange,
}

impl Signal {
    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Interrupt => "SIGINT",
            Self::Terminate => "SIGTERM",
            Self::WindowChange => "SIGWINCH",
        }
    }

    /// The exit code that shells give to a process that such a signal ended: 128 and its number.
    pub fn exit_code(self) -> u8 {
        128 + self.number() as u8
    }

    fn number(self) -> libc::c_int {
        match self {
            Self::Interrupt => libc::SIGINT,
            Self::Terminate => libc::SIGTERM,
            Self::WindowChange => libc::SIGWINCH,
        }
    }
}

/// Blocks the signals in the calling thread and in all that it starts from now on.
///
/// What was ignored when the program started, as under `nohup` or in the background of a script,
/// stays ignored.
pub fn block() {
    let set = set();
    // SAFETY: `set` is a valid signal set, which is only read, and the old mask is not asked for.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) };
}

/// Waits for a blocked signal, at most `time`.
pub fn wait(time: Duration) -> Option<Signal> {
    let set = set();
    let time = libc::timespec {
        tv_sec: time.as_secs() as libc::time_t,
        tv_nsec: libc::c_long::from(time.subsec_nanos() as i32),
    };
    // SAFETY: both pointers are to valid values that outlive the call; no details are asked for.
    let number = unsafe { libc::sigtimedwait(&set, std::ptr::null_mut(), &time) };
    HEEDED.into_iter().find(|signal| signal.number() == number)
}

/// All signals that are heeded and not ignored. A blocked signal would be kept even if ignored.
fn set() -> libc::sigset_t {
    let mut set = MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: sigemptyset initialises the set that it is given, and an all-zero set is one besides;
    // sigaddset then gets valid signal numbers.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in HEEDED {
            if !ignored(signal) {
                libc::sigaddset(set.as_mut_ptr(), signal.number());
            }
        }
        set.assume_init()
    }
}

fn ignored(signal: Signal) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: nothing is changed, and the present action is written to `action`, for which all
    // zeros would be valid too.
    let action = unsafe {
        libc::sigaction(signal.number(), std::ptr::null(), action.as_mut_ptr());
        action.assume_init()
    };
    action.sa_sigaction == libc::SIG_IGN
}

const HEEDED: [Signal; 3] = [Signal::Interrupt, Signal::Terminate, Signal::WindowChange];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blocked_signal_waits_to_be_taken() {
        std::thread::spawn(|| {
            block();
            assert_eq!(wait(Duration::from_millis(1)), None);
            // SAFETY: the signal goes to this very thread, which has it blocked.
            unsafe { libc::pthread_kill(libc::pthread_self(), libc::SIGWINCH) };
            assert_eq!(wait(Duration::from_secs(10)), Some(Signal::WindowChange));
            assert_eq!(wait(Duration::ZERO), None);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn exit_codes_are_those_of_shells() {
        assert_eq!(Signal::Interrupt.exit_code(), 130);
        assert_eq!(Signal::Terminate.exit_code(), 143);
    }
}
