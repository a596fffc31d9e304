//! The kernel calls that no safe crate of ours offers. All of this program's `unsafe` is here and in
//! [`crate::signals`].
//!
//! It holds a one-shot timer with the kernel's own resolution (monoio's timers round to 1 ms),
//! a send and a receive that never block, the CPU time of a thread and of another process, and the
//! limit on open files.

#![allow(unsafe_code)]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use monoio::net::TcpStream;

/// A timerfd that a monoio task can await, on the ring as well as on epoll.
pub struct Timer {
    // monoio can poll only descriptors that it owns as a stream. Nothing is ever received through
    // them: `wait` asks for readability, and setting the timer again clears the expiry.
    timer: TcpStream,
    /// An eventfd that is always readable. `None` on epoll, which would not look at it again.
    always: Option<TcpStream>,
}

impl Timer {
    /// A disarmed timer on the monotonic clock. Must be called inside a monoio runtime, and told
    /// whether that runtime is on a ring.
    pub fn new(on_ring: bool) -> io::Result<Self> {
        // SAFETY: timerfd_create takes no pointers.
        let timer = unsafe {
            libc::timerfd_create(
                libc::CLOCK_MONOTONIC,
                libc::TFD_NONBLOCK | libc::TFD_CLOEXEC,
            )
        };
        let always = match on_ring {
            // SAFETY: eventfd takes no pointers.
            true => Some(watched(unsafe { libc::eventfd(1, libc::EFD_CLOEXEC) })?),
            false => None,
        };
        Ok(Self {
            timer: watched(timer)?,
            always,
        })
    }

    /// Gives the runtime one turn without sleeping: what has completed by now is taken in.
    pub async fn turn(&self) -> io::Result<()> {
        match &self.always {
            // A poll that completes at once: the ring is entered and left.
            Some(always) => always.readable(false).await,
            None => self.wait(Duration::ZERO).await,
        }
    }

    /// Returns once `after` has passed. Zero returns at the next turn of the runtime.
    pub async fn wait(&self, after: Duration) -> io::Result<()> {
        self.set(after)?;
        self.expired().await
    }

    /// Sets the timer, whatever it was set to, without waiting for it.
    pub fn set(&self, after: Duration) -> io::Result<()> {
        // A timer set to zero is disarmed and would never fire.
        let after = after.max(Duration::from_nanos(1));
        let spec = libc::itimerspec {
            it_interval: libc::timespec {
                tv_sec: 0,
                tv_nsec: 0,
            },
            it_value: libc::timespec {
                tv_sec: after.as_secs() as libc::time_t,
                tv_nsec: libc::c_long::from(after.subsec_nanos() as i32),
            },
        };
        // SAFETY: the descriptor is open as long as `self.timer` lives, `spec` outlives the
        // call, and the old value is not asked for.
        let set = unsafe {
            libc::timerfd_settime(self.timer.as_raw_fd(), 0, &spec, std::ptr::null_mut())
        };
        if set < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// Returns once the time that was last set has passed.
    pub async fn expired(&self) -> io::Result<()> {
        self.timer.readable(false).await
    }
}

/// Hands a descriptor that a call has just returned to monoio.
fn watched(fd: RawFd) -> io::Result<TcpStream> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor and nobody else has it.
    let owned = unsafe { OwnedFd::from_raw_fd(fd) };
    TcpStream::from_std(std::net::TcpStream::from(owned))
}

/// Sends what the socket takes at once. `WouldBlock` when it takes nothing.
///
/// The socket itself may be in blocking mode (monoio's are, on the ring); this call is not.
#[inline]
pub fn send_now(socket: RawFd, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: the pointer and the length come from one live slice, which the kernel only reads.
    let sent = unsafe {
        libc::send(
            socket,
            bytes.as_ptr().cast(),
            bytes.len(),
            libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
        )
    };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(sent as usize)
}

/// Receives what has arrived. `WouldBlock` when nothing has, zero bytes at the end of the stream.
#[inline]
pub fn receive_now(socket: RawFd, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the pointer and the length come from one live slice, which is ours alone meanwhile.
    let received = unsafe {
        libc::recv(
            socket,
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            libc::MSG_DONTWAIT,
        )
    };
    if received < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(received as usize)
}

/// CPU time, user and system apart.
#[derive(Clone, Copy, Debug, Default)]
pub struct CpuTime {
    /// Time in user mode.
    pub user: Duration,
    /// Time in the kernel on our behalf.
    pub system: Duration,
}

impl CpuTime {
    /// What the calling thread has used so far.
    pub fn of_thread() -> Self {
        Self::read(libc::RUSAGE_THREAD)
    }

    /// What the process has used so far, all threads together.
    pub fn of_process() -> Self {
        Self::read(libc::RUSAGE_SELF)
    }

    /// What was used between `earlier` and this reading.
    pub fn since(self, earlier: Self) -> Self {
        Self {
            user: self.user.saturating_sub(earlier.user),
            system: self.system.saturating_sub(earlier.system),
        }
    }

    /// User and system time together.
    pub fn total(self) -> Duration {
        self.user + self.system
    }

    fn read(who: libc::c_int) -> Self {
        let mut usage = MaybeUninit::<libc::rusage>::zeroed();
        // SAFETY: `usage` is writable and of the right size; an all-zero rusage is valid, so it
        // may be read whatever the call answers.
        let usage = unsafe {
            libc::getrusage(who, usage.as_mut_ptr());
            usage.assume_init()
        };
        Self {
            user: duration(usage.ru_utime),
            system: duration(usage.ru_stime),
        }
    }
}

impl std::ops::AddAssign for CpuTime {
    fn add_assign(&mut self, other: Self) {
        self.user += other.user;
        self.system += other.system;
    }
}

/// CPU time that a process has used so far, user and system, by all threads that it has or had. The
/// processes that it started have clocks of their own. In nanoseconds, but the time of a thread that
/// runs at this moment is up to a tick of the kernel's (1 to 10 ms) behind.
///
/// # Errors
/// When there is no such process.
pub fn process_time(pid: u32) -> io::Result<Duration> {
    if pid == 0 || pid > PID_MAX {
        return Err(io::ErrorKind::NotFound.into());
    }
    let mut clock: libc::clockid_t = 0;
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: both are writable and of the right type for the duration of their call.
    unsafe {
        match libc::clock_getcpuclockid(pid as libc::pid_t, &mut clock) {
            0 => {}
            error => return Err(io::Error::from_raw_os_error(error)),
        }
        if libc::clock_gettime(clock, &mut time) != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
}

/// The kernel gives no higher number to a process (`PID_MAX_LIMIT`). Beyond it, as at 0, what makes a
/// clock of a number yields our own.
const PID_MAX: u32 = 1 << 22;

fn duration(time: libc::timeval) -> Duration {
    Duration::new(time.tv_sec as u64, time.tv_usec as u32 * 1000)
}

/// Raises the limit on open files to what `needed` takes, or at least to the hard limit, and
/// returns it. Beyond the hard limit goes only who may (`CAP_SYS_RESOURCE`).
pub fn raise_open_files(needed: u64) -> u64 {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is a valid rlimit that the calls only access for their duration.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) != 0 {
            return 0;
        }
        let hard = limit.rlim_max;
        limit.rlim_cur = hard.max(needed);
        limit.rlim_max = hard.max(needed);
        if libc::setrlimit(libc::RLIMIT_NOFILE, &limit) != 0 {
            limit.rlim_cur = hard;
            limit.rlim_max = hard;
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
        }
        libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit);
    }
    limit.rlim_cur
}

/// Makes the calling thread an ordinary one, whatever real-time priority it was started with. Where
/// that is refused it stays as it is.
pub fn leave_real_time() {
    let parameter = libc::sched_param { sched_priority: 0 };
    // SAFETY: `parameter` is valid and only read; zero is the calling thread.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_OTHER, &parameter) };
}

/// Columns and rows of the terminal on a descriptor, if it is one.
pub fn terminal_size(descriptor: impl AsFd) -> Option<(usize, usize)> {
    let mut size = libc::winsize {
        ws_row: 0,
        ws_col: 0,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: TIOCGWINSZ writes one winsize, which `size` is.
    let answer =
        unsafe { libc::ioctl(descriptor.as_fd().as_raw_fd(), libc::TIOCGWINSZ, &mut size) };
    (answer == 0 && size.ws_col > 0).then(|| (size.ws_col.into(), size.ws_row.into()))
}

/// CLOCK_MONOTONIC in nanoseconds: the clock that other processes of this machine read too.
pub fn monotonic() -> u64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `now` is writable and of the right size.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_has_ended_still_counts() {
        let pid = std::process::id();
        let before = process_time(pid).unwrap();
        let work = Duration::from_millis(60);
        let worked = std::thread::spawn(move || {
            let mut n = 0u64;
            while CpuTime::of_thread().total() < work {
                n = std::hint::black_box(n + 1);
            }
        });
        worked.join().unwrap();
        let used = process_time(pid).unwrap() - before;
        assert!(used >= work - Duration::from_millis(10), "{used:?}");
        for nobody in [0, PID_MAX + 1, i32::MAX as u32, u32::MAX] {
            assert!(process_time(nobody).is_err(), "{nobody}");
        }
    }

    #[test]
    fn another_process_has_a_clock_until_it_is_gone() {
        let mut child = std::process::Command::new("sh")
            .args(["-c", "while :; do :; done"])
            .spawn()
            .unwrap();
        while process_time(child.id()).unwrap() < Duration::from_millis(20) {
            std::thread::yield_now();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(process_time(child.id()).is_err());
    }
}
