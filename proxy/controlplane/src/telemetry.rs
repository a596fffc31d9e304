//! The operational log, and the panic hook.
//!
//! Text for a terminal, one JSON object per line for everything else, both on
//! standard error. Whoever logs never waits: lines go through a bounded lane to a
//! thread that writes them, because a reader of our standard error that stalls must
//! not stall a core. What does not fit is counted, and the log says how many lines
//! it lacks.
//!
//! A panic is logged with its place and its thread, never with its payload, which
//! may quote a request.
//!
//! A level such as `debug` is that of our own crates. Libraries stay at `warn`,
//! since nobody here can promise what their debug lines quote; a filter
//! (`info,rustls=debug`) is taken as it stands.

use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, reload};

/// Lines that may wait for whoever reads standard error. Past it they are lost and
/// counted.
const LINES_MAX: usize = 4096;

/// Our own crates, by the names that their log lines carry.
const OWN_CRATES: [&str; 6] = [
    "claviger",
    "controlplane",
    "dataplane",
    "handoff",
    "policy",
    "wire",
];

/// How lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// Text on a terminal, JSON otherwise.
    #[default]
    Auto,
    /// Text; in colour on a terminal, unless `NO_COLOR` is set.
    Text,
    /// One JSON object per line.
    Json,
}

/// What is logged, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogSettings {
    /// `error`, `warn`, `info`, `debug`, `trace` or `off`, or a filter such as
    /// `info,controlplane=debug`.
    pub level: String,
    /// How lines look.
    pub format: Format,
}

impl Default for LogSettings {
    fn default() -> Self {
        Self {
            level: "info".to_owned(),
            format: Format::Auto,
        }
    }
}

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// Neither a level nor a filter.
    #[error(
        "`{0}` is no log level; write error, warn, info, debug or trace, or a filter such as \
         `info,controlplane=debug`"
    )]
    Level(String),
    /// Called twice.
    #[error("the log is set up already")]
    Twice,
    /// No thread.
    #[error("cannot start the log's thread: {0}")]
    Thread(io::Error),
}

/// Sets the log and the panic hook up, once for the process.
///
/// # Errors
/// [`TelemetryError`]; nothing is set up then.
pub fn init(settings: &LogSettings) -> Result<Telemetry, TelemetryError> {
    let terminal = io::stderr().is_terminal();
    let json = match settings.format {
        Format::Auto => !terminal,
        Format::Text => false,
        Format::Json => true,
    };
    let colour = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let (filter, handle) = reload::Layer::new(filter(&settings.level)?);
    let lane = Lane::start(json, io::stderr)?;
    let layer = tracing_subscriber::fmt::layer().with_writer(lane.clone());
    let layer: Box<dyn Layer<_> + Send + Sync> = if json {
        let layer = layer.json().flatten_event(true).with_current_span(false);
        Box::new(layer.with_span_list(false).with_thread_names(true))
    } else {
        Box::new(layer.with_ansi(colour).with_target(false))
    };
    tracing_subscriber::registry()
        .with(filter)
        .with(layer)
        .try_init()
        .map_err(|_| TelemetryError::Twice)?;
    hook_panics();
    Ok(Telemetry {
        filter: handle,
        lane,
    })
}

/// The running log.
#[derive(Debug)]
pub struct Telemetry {
    filter: reload::Handle<EnvFilter, Registry>,
    lane: Lane,
}

impl Telemetry {
    /// Takes another level or filter.
    ///
    /// # Errors
    /// [`TelemetryError::Level`]; the old one stays.
    pub fn set_level(&self, level: &str) -> Result<(), TelemetryError> {
        self.filter
            .reload(filter(level)?)
            .map_err(|_| TelemetryError::Level(level.to_owned()))
    }

    /// Waits until all that was logged before is written, for `at_most`. Before the
    /// process ends, since its lines end with it.
    pub fn flush(&self, at_most: Duration) {
        self.lane.flush(at_most);
    }
}

/// Logs where a panic happened, and on which thread. Replaces the standard hook,
/// which prints the payload.
fn hook_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        let place = panic.location().map(ToString::to_string);
        tracing::error!(
            thread = thread.name().unwrap_or("unnamed"),
            place = place.as_deref().unwrap_or("unknown"),
            "a defect of Claviger: please report this place. What was under way there has ended",
        );
    }));
}

fn filter(level: &str) -> Result<EnvFilter, TelemetryError> {
    let bad = || TelemetryError::Level(level.to_owned());
    let level = level.trim();
    if level.is_empty() {
        return Err(bad());
    }
    if level.contains(['=', ',']) {
        return EnvFilter::try_new(level).map_err(|_| bad());
    }
    let level: tracing::level_filters::LevelFilter = level.parse().map_err(|_| bad())?;
    let others = level.min(tracing::level_filters::LevelFilter::WARN);
    let mut directives = others.to_string();
    for name in OWN_CRATES {
        directives.push_str(&format!(",{name}={level}"));
    }
    // rustls warns of each odd handshake, with the caller's own bytes: anybody could
    // write our log with it. Handshakes that fail are counted, and logged at debug.
    if others > tracing::level_filters::LevelFilter::ERROR {
        directives.push_str(",rustls=error");
    }
    // What the resolver library warns of is said in our own words, with the cure.
    for name in ["hickory_net", "hickory_proto", "hickory_resolver"] {
        directives.push_str(&format!(",{name}=off"));
    }
    EnvFilter::try_new(directives).map_err(|_| bad())
}

/// The way from whoever logs to the thread that writes.
#[derive(Debug, Clone)]
struct Lane {
    sender: SyncSender<Vec<u8>>,
    figures: Arc<Figures>,
}

#[derive(Debug, Default)]
struct Figures {
    sent: AtomicU64,
    written: AtomicU64,
    lost: AtomicU64,
}

impl Lane {
    fn start<W: Write>(
        json: bool,
        out: impl FnOnce() -> W + Send + 'static,
    ) -> Result<Self, TelemetryError> {
        let (sender, receiver) = sync_channel(LINES_MAX);
        let figures = Arc::new(Figures::default());
        let for_thread = Arc::clone(&figures);
        std::thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || write_lines(&receiver, &for_thread, json, out()))
            .map_err(TelemetryError::Thread)?;
        Ok(Self { sender, figures })
    }

    fn flush(&self, at_most: Duration) {
        let sent = self.figures.sent.load(Ordering::Acquire);
        let started = Instant::now();
        while self.figures.written.load(Ordering::Acquire) < sent && started.elapsed() < at_most {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Ends when the last sender is gone. Errors are nobody's business: there is no
/// place left to complain at.
fn write_lines(receiver: &Receiver<Vec<u8>>, figures: &Figures, json: bool, mut out: impl Write) {
    while let Ok(line) = receiver.recv() {
        let lost = figures.lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            let _ = if json {
                writeln!(
                    out,
                    r#"{{"level":"WARN","message":"log lines were lost: whoever reads them was too slow","lost":{lost}}}"#
                )
            } else {
                writeln!(
                    out,
                    "WARN log lines were lost: whoever reads them was too slow lost={lost}"
                )
            };
        }
        let _ = out.write_all(&line);
        let _ = out.flush();
        figures.written.fetch_add(1, Ordering::Release);
    }
}

impl<'a> MakeWriter<'a> for Lane {
    type Writer = &'a Lane;

    fn make_writer(&'a self) -> &'a Lane {
        self
    }
}

impl Write for &Lane {
    /// Takes a whole line: the subscriber formats it first and writes it at once.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match self.sender.try_send(line.to_vec()) {
            Ok(()) => {
                self.figures.sent.fetch_add(1, Ordering::Release);
            }
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                self.figures.lost.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Output, Stdio};
    use std::sync::mpsc;

    const CHILD: &str = "CLAVIGER_TEST_TELEMETRY_CHILD";

    /// Runs one of the tests below as a process of its own: the log and the panic
    /// hook are a process's, and standard error is what it is about.
    fn as_child(test: &str) -> Output {
        let output = Command::new(std::env::current_exe().expect("it runs"))
            .args([
                "--exact",
                "--nocapture",
                &format!("telemetry::tests::{test}"),
            ])
            .env(CHILD, "1")
            .stdin(Stdio::null())
            .output()
            .expect("it starts");
        assert!(output.status.success(), "{output:?}");
        assert!(
            String::from_utf8_lossy(&output.stdout).contains("1 passed"),
            "{output:?}"
        );
        output
    }

    fn is_child() -> bool {
        std::env::var_os(CHILD).is_some()
    }

    fn lines_of(output: &Output) -> Vec<serde_json::Value> {
        let text = String::from_utf8_lossy(&output.stderr);
        text.lines()
            .map(|line| serde_json::from_str(line).expect("every line is JSON"))
            .collect()
    }

    #[test]
    fn a_panic_shows_its_place_and_never_its_payload() {
        if is_child() {
            let telemetry = init(&LogSettings::default()).expect("the first time");
            assert!(matches!(
                init(&LogSettings::default()),
                Err(TelemetryError::Twice)
            ));
            let thread = std::thread::Builder::new().name("worker-7".to_owned());
            let joined = thread
                .spawn(|| panic!("{} planted", "payload"))
                .expect("starts")
                .join();
            assert!(joined.is_err());
            telemetry.flush(Duration::from_secs(10));
            return;
        }
        let output = as_child("a_panic_shows_its_place_and_never_its_payload");
        let lines = lines_of(&output);
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert_eq!(lines[0]["thread"], "worker-7");
        assert_eq!(lines[0]["level"], "ERROR");
        let place = lines[0]["place"].as_str().expect("a place");
        assert!(place.contains("telemetry.rs:"), "{place}");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!text.contains("planted"), "{text}");
    }

    #[test]
    fn lines_are_json_where_there_is_no_terminal_and_levels_change() {
        if is_child() {
            let telemetry = init(&LogSettings::default()).expect("the first time");
            tracing::info!(answer = 42, "first");
            tracing::debug!("hidden");
            tracing::warn!(target: "notify::inotify", "a library's warning");
            tracing::warn!(target: "rustls::conn", "what a caller makes it warn of");
            tracing::info!(target: "rustls::conn", "hidden");
            telemetry.set_level("debug").expect("a level");
            tracing::debug!("second");
            tracing::debug!(target: "rustls::conn", "hidden still");
            telemetry.set_level("error,rustls=trace").expect("a filter");
            tracing::warn!("hidden");
            tracing::trace!(target: "rustls::conn", "asked for");
            assert!(telemetry.set_level("loud").is_err());
            telemetry.flush(Duration::from_secs(10));
            return;
        }
        let lines = lines_of(&as_child(
            "lines_are_json_where_there_is_no_terminal_and_levels_change",
        ));
        let messages: Vec<_> = lines.iter().map(|line| line["message"].as_str()).collect();
        let expected = ["first", "a library's warning", "second", "asked for"];
        assert_eq!(messages, expected.map(Some));
        assert_eq!(lines[0]["answer"], 42);
        assert!(lines[0]["timestamp"].is_string());
    }

    #[test]
    fn a_reader_that_stalls_holds_nobody_up_and_is_told_what_it_missed() {
        // Takes a line and then nothing until it is let go.
        struct Stalled {
            go: mpsc::Receiver<()>,
            got: mpsc::Sender<Vec<u8>>,
        }
        impl Write for Stalled {
            fn write(&mut self, line: &[u8]) -> io::Result<usize> {
                let _ = self.go.recv();
                let _ = self.got.send(line.to_vec());
                Ok(line.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (let_go, go) = mpsc::channel();
        let (got, lines) = mpsc::channel();
        let lane = Lane::start(true, move || Stalled { go, got }).expect("starts");
        let total = LINES_MAX as u64 + 1000;
        let started = Instant::now();
        for number in 0..total {
            (&lane)
                .write_all(format!("{number}\n").as_bytes())
                .expect("never fails");
        }
        assert!(started.elapsed() < Duration::from_secs(5), "nobody waited");
        lane.flush(Duration::from_millis(10));
        drop(let_go);
        lane.flush(Duration::from_secs(20));
        drop(lane);
        let text: String = lines
            .iter()
            .map(|line| String::from_utf8(line).expect("UTF-8"))
            .collect();
        let (told, kept): (Vec<_>, Vec<_>) = text.lines().partition(|line| line.contains("lost"));
        let lost: u64 = told
            .iter()
            .map(|line| {
                let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
                line["lost"].as_u64().expect("a number")
            })
            .sum();
        assert_eq!(
            kept.len() as u64 + lost,
            total,
            "every line is there or counted"
        );
        assert!(lost > 0 && kept[0] == "0");
    }

    #[test]
    fn levels_and_filters() {
        for good in [
            "error",
            "warn",
            "INFO",
            "debug",
            "trace",
            "off",
            "info,controlplane=debug",
        ] {
            assert!(filter(good).is_ok(), "{good}");
        }
        for bad in ["", "loud", "info,controlplane=loud"] {
            let error = filter(bad).expect_err(bad).to_string();
            assert!(error.contains("is no log level"), "{error}");
        }
    }
}
