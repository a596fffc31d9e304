//! CPU clocks, and CPU burnt on purpose.

use std::hint::black_box;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// CPU time that a thread of this process has used. The thread must not have
/// been joined.
pub fn thread_cpu(thread: libc::pthread_t) -> Duration {
    let mut id = 0;
    // SAFETY: the caller holds the thread's join handle, so the id is alive;
    // `id` is a valid place for the answer.
    if unsafe { libc::pthread_getcpuclockid(thread, &mut id) } != 0 {
        return Duration::ZERO;
    }
    read(id)
}

/// CPU time that the calling thread has used.
pub fn own_cpu() -> Duration {
    read(libc::CLOCK_THREAD_CPUTIME_ID)
}

/// CPU time that the whole process has used, clients included.
pub fn process_cpu() -> Duration {
    read(libc::CLOCK_PROCESS_CPUTIME_ID)
}

fn read(id: libc::clockid_t) -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is a valid place for the answer; a bad id only fails.
    unsafe { libc::clock_gettime(id, &mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Burns about this much CPU. It counts iterations rather than watching a
/// clock, so that being preempted does not pass for work done.
pub fn burn(time: Duration) {
    spin((time.as_nanos() as f64 * *ITERATIONS_PER_NS.get_or_init(calibrate)) as u64);
}

static ITERATIONS_PER_NS: OnceLock<f64> = OnceLock::new();

fn calibrate() -> f64 {
    const ITERATIONS: u64 = 200_000;
    (0..5)
        .map(|_| {
            let start = Instant::now();
            spin(ITERATIONS);
            ITERATIONS as f64 / start.elapsed().as_nanos() as f64
        })
        .fold(0.0, f64::max)
}

fn spin(iterations: u64) {
    let mut x = 1u64;
    for _ in 0..iterations {
        x = black_box(x ^ (x << 13) ^ (x >> 7));
    }
}
