//! The runtime of one thread: a pinned core and the best driver that this kernel allows.
//!
//! The ring's set-up flags matter more than anything else here: an unflagged ring costs more CPU
//! than epoll does. So we step down ourselves, from one issuer with deferred completion work, to
//! cooperative completion work, to epoll, and never run an unflagged ring.

use std::future::Future;
use std::io;

use monoio::{IoUringDriver, LegacyDriver, Runtime, RuntimeBuilder};

/// Which driver a user asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum DriverChoice {
    /// io_uring where it can be had, else epoll.
    Auto,
    /// io_uring or nothing.
    Uring,
    /// epoll.
    Epoll,
}

/// Which driver a thread got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// A ring with one issuer, which runs its completion work when it asks for completions.
    UringDefer,
    /// A ring whose completion work never interrupts its thread.
    UringCoop,
    /// Readiness by epoll.
    Epoll,
}

impl Driver {
    /// The name shown in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::UringDefer => "io_uring (single issuer, deferred work)",
            Self::UringCoop => "io_uring (cooperative work)",
            Self::Epoll => "epoll",
        }
    }
}

/// A built runtime. It belongs to the thread that built it: a ring with one issuer refuses others.
pub enum AnyRuntime {
    /// On a ring.
    Uring(Runtime<IoUringDriver>),
    /// On epoll.
    Epoll(Runtime<LegacyDriver>),
}

impl AnyRuntime {
    /// Runs `future` to its end on this thread.
    pub fn block_on<F: Future>(&mut self, future: F) -> F::Output {
        match self {
            Self::Uring(runtime) => runtime.block_on(future),
            Self::Epoll(runtime) => runtime.block_on(future),
        }
    }
}

/// Builds the runtime for the calling thread.
///
/// # Errors
/// With [`DriverChoice::Uring`], when the kernel refuses both rings: the text names the usual cause.
pub fn build(choice: DriverChoice) -> io::Result<(AnyRuntime, Driver)> {
    if choice != DriverChoice::Epoll {
        let mut defer = io_uring::IoUring::builder();
        defer
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_coop_taskrun();
        let mut coop = io_uring::IoUring::builder();
        coop.setup_coop_taskrun();
        let mut refused = None;
        for (flags, driver) in [(defer, Driver::UringDefer), (coop, Driver::UringCoop)] {
            match RuntimeBuilder::<IoUringDriver>::new()
                .uring_builder(flags)
                .build()
            {
                Ok(runtime) => return Ok((AnyRuntime::Uring(runtime), driver)),
                Err(error) => refused = Some(error),
            }
        }
        if choice == DriverChoice::Uring {
            let error = refused.unwrap_or_else(|| io::ErrorKind::Unsupported.into());
            return Err(io::Error::new(
                error.kind(),
                format!(
                    "io_uring is not available ({error}); likely cause: kernel.io_uring_disabled, \
                     a container's seccomp profile, or a kernel before 5.19; \
                     cure: allow it, or use --driver epoll"
                ),
            ));
        }
    }
    let runtime = RuntimeBuilder::<LegacyDriver>::new().build()?;
    Ok((AnyRuntime::Epoll(runtime), Driver::Epoll))
}

/// Pins the calling thread to `cpu`.
///
/// # Errors
/// When there is no such CPU or this process may not use it.
pub fn pin(cpu: usize) -> io::Result<()> {
    if core_affinity::set_for_current(core_affinity::CoreId { id: cpu }) {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::InvalidInput,
        format!(
            "cannot pin a thread to CPU {cpu}: it does not exist or is outside this process's set (see `taskset -p $$`)"
        ),
    ))
}
