//! [`supervise`]: starts a body of work anew when it panics.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

/// How long to wait before the next start.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Backoff {
    /// After a first panic. Doubles with each one that follows.
    pub(crate) pause_min: Duration,
    /// The longest pause.
    pub(crate) pause_max: Duration,
    /// A body that ran this long counts as healthy: the pause begins anew.
    pub(crate) healthy: Duration,
}

/// Runs `body` until it returns, and again after each panic. `pause` waits for the
/// time that it is given and says whether to go on.
///
/// The payload of a panic is let go of unseen: it may quote anything. Where it
/// happened is for the panic hook to say (see [`crate::telemetry`]).
pub(crate) fn supervise(
    what: &str,
    backoff: Backoff,
    mut pause: impl FnMut(Duration) -> bool,
    mut body: impl FnMut(),
) {
    let mut next_pause = backoff.pause_min;
    loop {
        let started = Instant::now();
        let Err(payload) = catch_unwind(AssertUnwindSafe(&mut body)) else {
            return;
        };
        // A payload whose own drop panics must not end what it cannot end itself.
        std::mem::forget(payload);
        if started.elapsed() >= backoff.healthy {
            next_pause = backoff.pause_min;
        }
        // Even a log that panics must not end it.
        let told = catch_unwind(|| {
            tracing::error!(
                seconds = next_pause.as_secs_f32(),
                "{what} failed by a defect (the line above says where) and is started anew; \
                 traffic goes on",
            );
        });
        if let Err(payload) = told {
            std::mem::forget(payload);
        }
        if !pause(next_pause) {
            return;
        }
        next_pause = (next_pause * 2).min(backoff.pause_max);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BACKOFF: Backoff = Backoff {
        pause_min: Duration::from_secs(1),
        pause_max: Duration::from_secs(3),
        healthy: Duration::from_secs(3600),
    };

    #[test]
    fn a_body_that_panics_is_run_again_with_growing_pauses() {
        let mut runs = 0;
        let mut pauses = Vec::new();
        let pause = |time: Duration| {
            pauses.push(time.as_secs());
            true
        };
        supervise("a test", BACKOFF, pause, || {
            runs += 1;
            assert!(runs > 4, "not yet");
        });
        assert_eq!(runs, 5);
        assert_eq!(pauses, [1, 2, 3, 3]);
    }

    #[test]
    fn a_healthy_run_begins_anew_with_a_short_pause() {
        let mut runs = 0;
        let mut pauses = Vec::new();
        let healthy = Backoff {
            healthy: Duration::ZERO,
            ..BACKOFF
        };
        let pause = |time: Duration| {
            pauses.push(time.as_secs());
            true
        };
        supervise("a test", healthy, pause, || {
            runs += 1;
            assert!(runs > 3, "not yet");
        });
        assert_eq!(pauses, [1, 1, 1]);
    }

    #[test]
    fn who_stops_is_not_started_again() {
        let mut runs = 0;
        supervise(
            "a test",
            BACKOFF,
            |_| false,
            || {
                runs += 1;
                panic!("always");
            },
        );
        assert_eq!(runs, 1);
    }

    #[test]
    fn a_payload_that_panics_when_dropped_does_no_harm() {
        struct Bomb;
        impl Drop for Bomb {
            fn drop(&mut self) {
                if !std::thread::panicking() {
                    panic!("again");
                }
            }
        }
        let mut runs = 0;
        supervise(
            "a test",
            BACKOFF,
            |_| true,
            || {
                runs += 1;
                if runs == 1 {
                    std::panic::panic_any(Bomb);
                }
            },
        );
        assert_eq!(runs, 2);
    }
}
