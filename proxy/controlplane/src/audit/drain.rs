//! [`AuditTrail`]: the thread between the lanes and the [`Sink`].

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

use handoff::Drain;

use super::sink::Sink;
use super::{AuditError, AuditSettings};

/// Bytes taken out of the lanes at once. Past it the rest stays in the lanes, whose
/// own bound then counts; so this is also what is held while the disk refuses.
const GATHER_BYTES_MAX: usize = 1024 * 1024;

/// Time to the next look at the lanes after there was nothing in them, and after
/// there was something. At 40,000 records a second and core the lane's 8192 places
/// last for 200 ms, so neither is ever the reason for a full lane.
const IDLE_INTERVAL: Duration = Duration::from_millis(100);
/// See [`IDLE_INTERVAL`].
const BUSY_INTERVAL: Duration = Duration::from_millis(25);

/// Pause after a first refusal of the disk; it doubles up to the next constant.
const RETRY_INTERVAL_MIN: Duration = Duration::from_millis(50);
/// See [`RETRY_INTERVAL_MIN`].
const RETRY_INTERVAL_MAX: Duration = Duration::from_secs(1);

/// How often the log repeats that the disk still refuses.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(60);

/// Opens the file and starts the thread. `drains` are all the lanes of all cores.
///
/// Call it after privileges are dropped: the file then belongs to the service's
/// user, who has to open the next one at a rotation.
///
/// # Errors
/// [`AuditError`] when the file cannot be opened: a start without the audit trail
/// that was asked for must fail.
pub fn start(settings: AuditSettings, drains: Vec<Drain>) -> Result<AuditTrail, AuditError> {
    let sink = Sink::open(&settings)?;
    let shared = Arc::new(Shared::default());
    let (finished, ended) = mpsc::sync_channel(1);
    let mut writer = Writer {
        path: settings.path.display().to_string(),
        sink,
        credited: vec![0; drains.len()],
        drains,
        pending: Pending::default(),
        shared: Arc::clone(&shared),
        trouble: None,
    };
    let thread = std::thread::Builder::new()
        .name("audit".to_owned())
        .spawn(move || {
            // A panic in here must not end the trail. What is pending is consistent
            // between any two statements that can panic, and is tried again.
            while catch_unwind(AssertUnwindSafe(|| writer.run())).is_err() {
                tracing::error!("the audit thread failed and goes on in a second");
                std::thread::park_timeout(RETRY_INTERVAL_MAX);
            }
            let _ = finished.send(());
        })
        .map_err(AuditError::Thread)?;
    Ok(AuditTrail {
        handle: AuditHandle {
            thread: thread.thread().clone(),
            shared,
        },
        join: thread,
        ended,
    })
}

/// The running audit trail.
#[derive(Debug)]
pub struct AuditTrail {
    handle: AuditHandle,
    join: JoinHandle<()>,
    ended: mpsc::Receiver<()>,
}

impl AuditTrail {
    /// For whoever handles signals, and for the status line.
    pub fn handle(&self) -> AuditHandle {
        self.handle.clone()
    }

    /// Writes what is in the lanes and ends. Call it after the workers have ended.
    ///
    /// Waits for `deadline` at the longest, even if the disk hangs.
    pub fn shutdown(self, deadline: Duration) -> Leftover {
        let shared = &self.handle.shared;
        shared
            .give_up_after_ms
            .store(deadline.as_millis() as u64, Ordering::Relaxed);
        shared.stop.store(true, Ordering::Release);
        self.handle.thread.unpark();
        // A little longer than the thread itself takes, so that a disk that refuses
        // is told from one that hangs.
        let hung = self
            .ended
            .recv_timeout(deadline + RETRY_INTERVAL_MIN * 4)
            .is_err();
        if !hung {
            let _ = self.join.join();
        }
        Leftover {
            records: shared.waiting.load(Ordering::Acquire),
            hung,
        }
    }
}

/// What [`AuditTrail::shutdown`] could not write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leftover {
    /// Records that are lost; of a batch that was cut off in its middle, all count.
    /// While the disk hangs there may be more in the lanes, which nobody can count.
    pub records: u64,
    /// The disk neither took them nor refused.
    pub hung: bool,
}

/// A way to the audit thread, from any thread.
#[derive(Debug, Clone)]
pub struct AuditHandle {
    shared: Arc<Shared>,
    thread: Thread,
}

impl AuditHandle {
    /// Opens the file anew, since somebody has moved the old one (`logrotate`).
    pub fn reopen(&self) {
        self.shared.reopen.store(true, Ordering::Release);
        self.thread.unpark();
    }

    /// What has been written so far.
    pub fn figures(&self) -> AuditFigures {
        let load = |value: &AtomicU64| value.load(Ordering::Relaxed);
        AuditFigures {
            records: load(&self.shared.records),
            bytes: load(&self.shared.bytes),
            failures: load(&self.shared.failures),
            waiting: load(&self.shared.waiting),
        }
    }
}

/// What the audit thread did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AuditFigures {
    /// Records written.
    pub records: u64,
    /// Bytes written.
    pub bytes: u64,
    /// Attempts to write that the disk refused.
    pub failures: u64,
    /// Records taken from the lanes and not yet written.
    pub waiting: u64,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    reopen: AtomicBool,
    give_up_after_ms: AtomicU64,
    records: AtomicU64,
    bytes: AtomicU64,
    failures: AtomicU64,
    waiting: AtomicU64,
}

/// The thread's own state.
struct Writer {
    path: String,
    sink: Sink,
    drains: Vec<Drain>,
    /// Records per drain that are written and not yet synced.
    credited: Vec<u64>,
    pending: Pending,
    shared: Arc<Shared>,
    trouble: Option<Trouble>,
}

/// The disk refuses.
struct Trouble {
    since: Instant,
    pause: Duration,
    complain_due: Instant,
}

impl Writer {
    fn run(&mut self) {
        let mut give_up: Option<Instant> = None;
        loop {
            // Read before the lanes: what was sent before `stop` is then seen.
            let stopping = self.shared.stop.load(Ordering::Acquire);
            if stopping && give_up.is_none() {
                let limit = self.shared.give_up_after_ms.load(Ordering::Relaxed);
                give_up = Some(Instant::now() + Duration::from_millis(limit));
            }
            self.follow_the_path();
            let gathered = self.gather();
            let written = self.write();
            if stopping {
                let done = written && !gathered;
                if done || give_up.is_some_and(|at| Instant::now() >= at) {
                    self.sink.take_back();
                    self.count_the_rest();
                    return;
                }
            }
            let pause = match &self.trouble {
                Some(trouble) => trouble.pause,
                None if stopping || self.pending.is_full() => continue,
                None if gathered => BUSY_INTERVAL,
                None => IDLE_INTERVAL,
            };
            let pause = match give_up {
                Some(at) => pause.min(at.saturating_duration_since(Instant::now())),
                None => pause,
            };
            std::thread::park_timeout(pause);
        }
    }

    /// Reopens the file on request, and when it is no longer at its path.
    fn follow_the_path(&mut self) {
        let asked = self.shared.reopen.swap(false, Ordering::AcqRel);
        if !asked && !self.sink.is_displaced(Instant::now()) {
            return;
        }
        match self.sink.reopen() {
            Ok(taken_back) => {
                self.pending.take_back(taken_back);
                tracing::info!(path = %self.path, "the audit file was opened anew");
            }
            Err(error) => tracing::error!(
                %error,
                "the audit trail goes on in the file that was open before, wherever that is now",
            ),
        }
    }

    /// Takes what is in the lanes. `true` if there was something.
    fn gather(&mut self) -> bool {
        let mut any = false;
        let mut records = 0;
        for (index, drain) in self.drains.iter_mut().enumerate() {
            while !self.pending.is_full() {
                let Some(batch) = drain.take() else { break };
                any = true;
                if batch.lines.is_empty() {
                    // Nothing to write: whatever it stood for is done with.
                    drain.written(batch.records);
                    continue;
                }
                records += batch.records;
                self.pending.add(index, &batch.lines, batch.records);
            }
        }
        self.shared.waiting.fetch_add(records, Ordering::Release);
        any
    }

    /// At the end, what is still in the lanes is lost, and is counted.
    fn count_the_rest(&mut self) {
        let rest = self
            .drains
            .iter_mut()
            .flat_map(|drain| std::iter::from_fn(|| drain.take()));
        let records = rest.map(|batch| batch.records).sum();
        self.shared.waiting.fetch_add(records, Ordering::Release);
    }

    /// Writes what is pending, as far as the disk takes it. `true` if all of it is
    /// written, and synced where that is asked for.
    fn write(&mut self) -> bool {
        let before = self.shared.bytes.load(Ordering::Relaxed);
        match self.try_write() {
            Ok(()) => {
                if let Some(trouble) = self.trouble.take() {
                    tracing::info!(
                        path = %self.path,
                        seconds = trouble.since.elapsed().as_secs(),
                        "the audit file can be written again; what had waited is in it",
                    );
                }
                true
            }
            Err(error) => {
                self.shared.failures.fetch_add(1, Ordering::Relaxed);
                let progress = self.shared.bytes.load(Ordering::Relaxed) > before;
                self.complain(&error, progress);
                false
            }
        }
    }

    fn try_write(&mut self) -> std::io::Result<()> {
        if self.pending.unwritten().is_none() {
            return self.credit();
        }
        self.sink.lock()?;
        let written = self.write_pending();
        self.sink.unlock();
        written
    }

    fn write_pending(&mut self) -> std::io::Result<()> {
        while let Some(lines) = self.pending.unwritten() {
            let taken = match self.sink.write_some(lines) {
                Ok(taken) => taken,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    // What went before is written all the same.
                    self.credit()?;
                    return Err(error);
                }
            };
            self.shared.bytes.fetch_add(taken as u64, Ordering::Relaxed);
            self.pending.advance(taken, &mut self.credited);
        }
        self.credit()
    }

    /// Gives the places of what is written back to the lanes.
    fn credit(&mut self) -> std::io::Result<()> {
        if self.credited.iter().all(|&records| records == 0) {
            return Ok(());
        }
        self.sink.sync()?;
        for (drain, records) in self.drains.iter().zip(&mut self.credited) {
            let records = std::mem::take(records);
            drain.written(records);
            self.shared.records.fetch_add(records, Ordering::Relaxed);
            self.shared.waiting.fetch_sub(records, Ordering::Release);
        }
        Ok(())
    }

    /// Sets the time of the next attempt, and tells the operator now and then.
    fn complain(&mut self, error: &std::io::Error, progress: bool) {
        let now = Instant::now();
        let trouble = self.trouble.get_or_insert(Trouble {
            since: now,
            pause: RETRY_INTERVAL_MIN / 2,
            complain_due: now,
        });
        trouble.pause = if progress {
            RETRY_INTERVAL_MIN
        } else {
            (trouble.pause * 2).min(RETRY_INTERVAL_MAX)
        };
        if now >= trouble.complain_due {
            trouble.complain_due = now + COMPLAINT_INTERVAL;
            let cure = match error.kind() {
                std::io::ErrorKind::StorageFull => "; free some space",
                std::io::ErrorKind::QuotaExceeded => "; raise the service user's quota",
                std::io::ErrorKind::WouldBlock => "; read from the pipe",
                _ => "",
            };
            tracing::error!(
                path = %self.path,
                "the audit file cannot be written: {error}{cure}. Records wait; when a core's lane \
                 is full, routes with audit = \"required\" answer 503 and others lose records",
            );
        }
    }
}

/// Lines taken from the lanes and not yet written.
#[derive(Default)]
struct Pending {
    lines: Vec<u8>,
    /// Bytes of `lines` that are written. Invariant: `written <= lines.len()`.
    written: usize,
    /// Whose lines these are, in order; each ends where the next one begins.
    segments: std::collections::VecDeque<Segment>,
}

/// One batch.
struct Segment {
    drain: usize,
    records: u64,
    /// Where it ends in `lines`.
    end: usize,
}

impl Pending {
    fn is_full(&self) -> bool {
        self.lines.len() >= GATHER_BYTES_MAX
    }

    fn add(&mut self, drain: usize, lines: &[u8], records: u64) {
        self.lines.extend_from_slice(lines);
        let end = self.lines.len();
        self.segments.push_back(Segment {
            drain,
            records,
            end,
        });
    }

    fn unwritten(&self) -> Option<&[u8]> {
        let rest = &self.lines[self.written..];
        (!rest.is_empty()).then_some(rest)
    }

    /// `taken` more bytes are written: counts the records of the batches that are
    /// now complete. Bytes are let go of only when all are written, so that an
    /// unfinished line can be taken back.
    fn advance(&mut self, taken: usize, credited: &mut [u64]) {
        self.written += taken;
        while let Some(segment) = self.segments.front() {
            if segment.end > self.written {
                break;
            }
            credited[segment.drain] += segment.records;
            self.segments.pop_front();
        }
        if self.written == self.lines.len() {
            self.lines.clear();
            self.written = 0;
        }
    }

    fn take_back(&mut self, bytes: u64) {
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        self.written = self.written.saturating_sub(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use handoff::lane::{Batch, RECORDS_MAX};
    use handoff::{Lane, lane};
    use std::io::Read;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    /// Longer than anything here takes; a test that waits for it has failed.
    const LONG: Duration = Duration::from_secs(20);

    fn send(lane: &mut Lane, line: &str) -> bool {
        if !lane.reserve() {
            return false;
        }
        let batch = Batch {
            lines: format!("{line}\n").into_bytes(),
            records: 1,
        };
        lane.send(batch).is_ok()
    }

    #[track_caller]
    fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
        let started = Instant::now();
        while !done() {
            assert!(started.elapsed() < LONG, "{what} never came");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn read(path: &Path) -> String {
        std::fs::read_to_string(path).unwrap_or_default()
    }

    #[test]
    fn lines_of_all_lanes_reach_the_file_and_free_their_places() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("audit.log");
        let (mut one, first) = lane();
        let (mut two, second) = lane();
        let trail = start(AuditSettings::new(&path), vec![first, second]).expect("starts");
        for number in 0..100 {
            assert!(send(&mut one, &format!("one {number}")));
            assert!(send(&mut two, &format!("two {number}")));
        }
        wait_until("the last record", || {
            one.outstanding() + two.outstanding() == 0
        });
        let text = read(&path);
        for lane in ["one", "two"] {
            let of_lane: Vec<_> = text.lines().filter(|line| line.starts_with(lane)).collect();
            let expected: Vec<_> = (0..100).map(|number| format!("{lane} {number}")).collect();
            assert_eq!(of_lane, expected, "in order, and each once");
        }
        assert_eq!(trail.handle().figures().records, 200);
        assert!(send(&mut one, "the last"));
        let leftover = trail.shutdown(LONG);
        assert_eq!(
            leftover,
            Leftover {
                records: 0,
                hung: false
            }
        );
        assert!(read(&path).ends_with("the last\n"));
    }

    #[test]
    fn a_full_disk_keeps_the_records_until_there_is_room() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("audit.log");
        symlink("/dev/full", &path).expect("a link");
        let (mut lane, drain) = lane();
        let trail = start(AuditSettings::new(&path), vec![drain]).expect("starts");
        // Whole batches, as a worker sends them: all the places, and fewer batches
        // than a lane holds.
        for first in (0..RECORDS_MAX).step_by(64) {
            assert!((0..64).all(|_| lane.reserve()));
            let batch = Batch {
                lines: (first..first + 64)
                    .map(|number| format!("{number}\n"))
                    .collect::<String>()
                    .into_bytes(),
                records: 64,
            };
            lane.send(batch).expect("room for a batch");
        }
        wait_until("a refusal", || trail.handle().figures().failures > 1);
        assert!(!lane.reserve(), "no place is free while nothing is written");
        assert_eq!(trail.handle().figures().records, 0);
        // The operator makes room: here, by another file in its place.
        let other = directory.path().join("other");
        symlink(directory.path().join("real.log"), &other).expect("a link");
        std::fs::rename(&other, &path).expect("ours");
        trail.handle().reopen();
        wait_until("room", || lane.outstanding() == 0);
        let expected: String = (0..RECORDS_MAX)
            .map(|number| format!("{number}\n"))
            .collect();
        assert_eq!(
            read(&path),
            expected,
            "nothing is lost, and nothing is there twice"
        );
        assert_eq!(trail.shutdown(LONG).records, 0);
    }

    #[test]
    fn a_full_disk_does_not_hold_the_end_up() {
        let (mut lane, drain) = lane();
        let trail = start(AuditSettings::new("/dev/full"), vec![drain]).expect("starts");
        for number in 0..3 {
            assert!(send(&mut lane, &number.to_string()));
        }
        let started = Instant::now();
        let leftover = trail.shutdown(Duration::from_millis(100));
        assert_eq!(
            leftover,
            Leftover {
                records: 3,
                hung: false
            }
        );
        assert!(started.elapsed() < LONG / 2);
    }

    #[test]
    fn a_file_that_is_moved_away_or_removed_is_made_again() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("audit.log");
        let moved = directory.path().join("audit.log-20261121");
        let (mut lane, drain) = lane();
        let trail = start(AuditSettings::new(&path), vec![drain]).expect("starts");
        assert!(send(&mut lane, "first"));
        wait_until("the first", || lane.outstanding() == 0);
        std::fs::rename(&path, &moved).expect("ours");
        trail.handle().reopen();
        wait_until("a new file", || path.exists());
        assert!(send(&mut lane, "second"));
        wait_until("the second", || lane.outstanding() == 0);
        assert_eq!(
            (read(&moved).as_str(), read(&path).as_str()),
            ("first\n", "second\n")
        );
        // Nobody says so, and it is noticed all the same.
        std::fs::remove_file(&path).expect("ours");
        wait_until("a new file", || path.exists());
        assert!(send(&mut lane, "third"));
        wait_until("the third", || lane.outstanding() == 0);
        assert_eq!(read(&path), "third\n");
        assert_eq!(trail.shutdown(LONG).records, 0);
    }

    #[test]
    fn under_load_files_rotate_without_losing_or_cutting_a_line() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("audit.log");
        let (mut lane, drain) = lane();
        let settings = AuditSettings {
            rotate_bytes: 4096,
            keep: 1000,
            ..AuditSettings::new(&path)
        };
        let trail = start(settings, vec![drain]).expect("starts");
        let total = 20_000_u64;
        for number in 0..total {
            let line = format!(
                "{{\"n\":{number},\"fill\":\"{}\"}}\n",
                "x".repeat(number as usize % 40)
            );
            wait_until("a place", || lane.reserve());
            let mut batch = Batch {
                lines: line.into_bytes(),
                records: 1,
            };
            while let Err(back) = lane.send(batch) {
                batch = back;
                std::thread::yield_now();
            }
        }
        assert_eq!(trail.shutdown(LONG).records, 0);
        let mut seen = vec![false; total as usize];
        for entry in std::fs::read_dir(directory.path()).expect("a directory") {
            let path = entry.expect("an entry").path();
            let text = read(&path);
            assert!(
                text.len() <= 4096,
                "{} is larger than allowed",
                path.display()
            );
            assert!(text.ends_with('\n'));
            for line in text.lines() {
                let line: serde_json::Value = serde_json::from_str(line).expect("a whole line");
                let number = line["n"].as_u64().expect("its number") as usize;
                assert!(
                    !std::mem::replace(&mut seen[number], true),
                    "{number} is there twice"
                );
            }
        }
        assert!(seen.iter().all(|&seen| seen));
    }

    #[test]
    fn a_slow_reader_of_a_pipe_gets_whole_lines() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("pipe");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
        // Opened for both, so that opening does not wait for the other side.
        let mut reader = std::fs::File::options()
            .read(true)
            .write(true)
            .open(&path)
            .expect("a pipe");
        let (mut lane, drain) = lane();
        let trail = start(AuditSettings::new(&path), vec![drain]).expect("starts");
        // Several times what a pipe holds, so that writes end within a line.
        let line = |number: usize| format!("{number} {}\n", "y".repeat(5000));
        let expected: String = (0..100).map(line).collect();
        for number in 0..100 {
            assert!(lane.reserve());
            let batch = Batch {
                lines: line(number).into_bytes(),
                records: 1,
            };
            lane.send(batch).expect("room");
        }
        let mut got = vec![0; expected.len()];
        reader.read_exact(&mut got).expect("all of it");
        assert!(got == expected.as_bytes());
        wait_until("the last record", || lane.outstanding() == 0);
        assert_eq!(trail.shutdown(LONG).records, 0);
    }

    #[test]
    fn synced_lines_are_credited_too() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("audit.log");
        let settings = AuditSettings {
            sync: super::super::SyncPolicy::AfterBatch,
            ..AuditSettings::new(&path)
        };
        let (mut lane, drain) = lane();
        let trail = start(settings, vec![drain]).expect("starts");
        assert!(send(&mut lane, "durable"));
        wait_until("the record", || lane.outstanding() == 0);
        assert_eq!(read(&path), "durable\n");
        assert_eq!(trail.shutdown(LONG).records, 0);
    }
}
