//! What is shown while the load is on: a picture that is redrawn in place on a terminal, or a line
//! per second elsewhere. All of it goes to standard error.
//!
//! It looks at the boards of the driving threads once a second and never makes them wait. The
//! figures are those of the last second, to within 2 %; the report's are exact.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};

use crate::board::{Interval, Reading};
use crate::clock::{Nanos, SECOND};
use crate::failure::Kind;
use crate::gate::Time;
use crate::plan::{Plan, Timeline};
use crate::start::Start;
use crate::sys;

/// How the progress of a run is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Progress {
    /// Live on a terminal, plain elsewhere.
    Auto,
    /// A picture that is redrawn in place.
    Live,
    /// A line per second.
    Plain,
    /// Nothing.
    None,
}

/// Shows a run while it lasts.
pub struct View {
    form: Form,
    style: Style,
    /// `None` before the load starts.
    run: Option<Run>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Live,
    Plain,
    None,
}

/// What the terminal can show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Style {
    color: bool,
    unicode: bool,
}

/// What is known of a run that has started.
struct Run {
    timeline: Timeline,
    /// When to look next.
    next: Nanos,
    last: Reading,
    /// The end of the warm-up, from which errors are counted.
    measured_from: Option<Reading>,
    targets: Vec<Shown>,
    lag: crate::board::Distribution,
    stopping: bool,
    redraw: bool,
    /// Widths of the lines on the screen, so that they can be found again.
    drawn: Vec<usize>,
}

/// What is shown of a target.
#[derive(Default)]
struct Shown {
    /// Its last second under load.
    last: Interval,
    /// Good answers per second in it.
    rate: f64,
    /// Quantiles of earlier seconds, the newest last; one list for each of [`QUANTILES`].
    history: [VecDeque<f64>; QUANTILES.len()],
    /// Since the measured time began, or since the start before it.
    failures: [u64; Kind::ALL.len()],
    requests: u64,
}

impl View {
    /// Chooses the form that the terminal allows.
    pub fn new(progress: Progress) -> Self {
        let terminal = io::stderr().is_terminal()
            && std::env::var("TERM").is_ok_and(|term| term != "dumb" && !term.is_empty());
        let form = match progress {
            Progress::Auto if terminal => Form::Live,
            Progress::Live => Form::Live,
            Progress::Auto | Progress::Plain => Form::Plain,
            Progress::None => Form::None,
        };
        let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"]
            .iter()
            .find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
            .unwrap_or_default()
            .to_ascii_lowercase();
        Self {
            form,
            style: Style {
                color: terminal && !set("NO_COLOR"),
                unicode: locale.contains("utf-8") || locale.contains("utf8"),
            },
            run: None,
        }
    }

    /// The load starts: `ready` says over which connections.
    pub fn begin(&mut self, plan: &Plan, timeline: Timeline, ready: &str) {
        match self.form {
            Form::Live => {}
            Form::Plain | Form::None => say(ready),
        }
        self.run = Some(Run {
            timeline,
            next: timeline.start,
            last: Reading::default(),
            measured_from: None,
            targets: plan.targets.iter().map(|_| Shown::default()).collect(),
            lag: Default::default(),
            stopping: false,
            redraw: false,
            drawn: Vec::new(),
        });
    }

    /// Looks at the boards if it is time to, shows what is new, and returns when to come back.
    pub fn look(&mut self, plan: &Plan, start: &Start) -> Nanos {
        let Some(run) = self.run.as_mut().filter(|_| self.form != Form::None) else {
            return Nanos::MAX;
        };
        let now = start.clock.now();
        if now < run.next {
            if std::mem::take(&mut run.redraw) && self.form == Form::Live {
                run.draw(plan, now, self.style);
            }
            return run.next;
        }
        let seconds = (run.next - run.timeline.start) / SECOND;
        let delta = run.read(now, Reading::of(&start.boards));
        // Whole seconds from the start; what was missed is not made up for.
        run.next = run.timeline.start + ((now - run.timeline.start) / SECOND + 1) * SECOND;
        match self.form {
            Form::Plain if seconds > 0 => {
                say(&run.line(plan, now, seconds, &delta));
            }
            Form::Live => run.draw(plan, now, self.style),
            _ => {}
        }
        run.next
    }

    /// The window may have another size: what is on the screen has moved.
    pub fn window_changed(&mut self) {
        if let Some(run) = &mut self.run {
            run.redraw = true;
        }
    }

    /// The user wants the run to end.
    pub fn stopping(&mut self) {
        match (&mut self.run, self.form) {
            (Some(run), Form::Live) => (run.stopping, run.redraw) = (true, true),
            (_, Form::None) => {}
            _ => say("stopping; a second signal ends at once, without a report"),
        }
    }

    /// Nothing more is shown: the screen is as it was.
    pub fn end(&mut self) {
        if let (Some(run), Form::Live) = (&mut self.run, self.form) {
            let mut out = run.back();
            out.push_str("\x1b[J");
            write_out(&out);
        }
        self.run = None;
    }
}

impl Run {
    /// Takes in a reading and returns what was added since the one before.
    fn read(&mut self, now: Nanos, reading: Reading) -> Reading {
        let delta = reading.since(&self.last);
        self.last = reading;
        if self.measured_from.is_none() && now >= self.timeline.measure_from {
            self.measured_from = Some(self.last.clone());
        }
        for (n, shown) in self.targets.iter_mut().enumerate() {
            let driven =
                self.timeline
                    .driven(n, now.saturating_sub(SECOND).max(self.timeline.start), now);
            let added = &delta.targets[n];
            // A target whose turn it is not keeps showing its last turn.
            if added.requests() > 0 && driven > SECOND / 20 {
                shown.rate = added.good as f64 * SECOND as f64 / driven as f64;
                for (history, quantile) in shown.history.iter_mut().zip(QUANTILES) {
                    if history.len() == HISTORY_MAX {
                        history.pop_front();
                    }
                    history.push_back(added.quantile(quantile).unwrap_or(0.0));
                }
                shown.last = added.clone();
            }
            let nothing = Interval::default();
            let before = self
                .measured_from
                .as_ref()
                .map_or(&nothing, |reading| &reading.targets[n]);
            let total = &self.last.targets[n];
            shown.failures =
                std::array::from_fn(|kind| total.failures[kind] - before.failures[kind]);
            shown.requests = total.requests() - before.requests();
        }
        if delta.lag.count() > 0 {
            self.lag = delta.lag.clone();
        }
        delta
    }

    fn phase(&self, now: Nanos) -> String {
        let Timeline {
            start,
            measure_from,
            end,
            ..
        } = self.timeline;
        let whole = |time: Nanos| (time + SECOND / 2) / SECOND;
        match now {
            _ if self.stopping => "stopping".to_owned(),
            _ if now < measure_from => format!(
                "warm-up, {} s of {} s",
                whole(now.saturating_sub(start)),
                whole(measure_from - start)
            ),
            _ if now < end => format!(
                "{} s of {} s, {} s left",
                whole(now - measure_from),
                whole(end - measure_from),
                whole(end - now)
            ),
            _ => "waiting for the last answers".to_owned(),
        }
    }

    /// The line of one second for those who have no terminal.
    fn line(&self, plan: &Plan, now: Nanos, seconds: u64, delta: &Reading) -> String {
        let mut line = format!("{seconds:>4} s");
        if now <= self.timeline.measure_from {
            line.push_str(" (warm-up)");
        }
        let several = plan.targets.len() > 1;
        for ((target, shown), added) in plan.targets.iter().zip(&self.targets).zip(&delta.targets) {
            if added.requests() == 0 && several {
                continue;
            }
            // Writing to a String cannot fail.
            let _ = write!(line, "  {}: ", target.name);
            if added.requests() == 0 {
                line.push_str("nothing");
                continue;
            }
            let _ = write!(line, "{:.0}/s", shown.rate);
            for (quantile, name) in [(0.5, "p50"), (0.99, "p99"), (1.0, "max")] {
                if let Some(value) = added.quantile(quantile) {
                    let _ = write!(line, " {name} {}", Time(value));
                }
            }
            if added.failed() > 0 {
                let _ = write!(line, ", errors {}", kinds(&added.failures));
            }
        }
        if let Some(p99) = delta.lag.quantile(0.99) {
            let _ = write!(line, "  lag p99 {}", Time(p99));
        }
        line
    }

    fn draw(&mut self, plan: &Plan, now: Nanos, style: Style) {
        let (columns, rows) = sys::terminal_size(io::stderr()).unwrap_or((80, 24));
        let frame = self.frame(plan, now, columns.saturating_sub(1), rows, style);
        let mut out = String::from("\x1b[?25l");
        out.push_str(&self.back());
        out.push_str("\x1b[J");
        for line in &frame {
            line.paint(&mut out, style);
            out.push_str("\r\n");
        }
        // The cursor is hidden within one write only, so nothing has to bring it back.
        out.push_str("\x1b[?25h");
        self.drawn = frame.iter().map(Line::width).collect();
        write_out(&out);
    }

    /// Moves the cursor to where the picture begins. A narrower window has broken its lines.
    fn back(&mut self) -> String {
        let columns = sys::terminal_size(io::stderr())
            .map_or(80, |(columns, _)| columns)
            .max(1);
        let up: usize = self
            .drawn
            .drain(..)
            .map(|width| width.div_ceil(columns).max(1))
            .sum();
        match up {
            0 => "\r".to_owned(),
            _ => format!("\r\x1b[{up}A"),
        }
    }

    /// The picture: at most `rows - 1` lines of at most `columns` characters.
    fn frame(
        &self,
        plan: &Plan,
        now: Nanos,
        columns: usize,
        rows: usize,
        style: Style,
    ) -> Vec<Line> {
        let mut lines = vec![self.heading(plan, now), self.progress(now, columns, style)];
        let scale = self.scale();
        let full = lines.len() + self.targets.len() * (QUANTILES.len() + 2) + 3 < rows;
        for (target, shown) in plan.targets.iter().zip(&self.targets) {
            if full {
                lines.push(Line::default());
            }
            let mut line = Line::default();
            line.add(Paint::Strong, format!("{:<12}", target.name));
            let mut parts = vec![format!(" {:>9.0}/s", shown.rate)];
            if !full {
                // Before the errors, which may be long.
                let short = [(0.5, "p50"), (0.99, "p99")].into_iter();
                let known = short.filter_map(|(q, name)| Some((shown.last.quantile(q)?, name)));
                parts.extend(known.map(|(value, name)| format!("  {name} {}", Time(value))));
            }
            for part in fitting(parts, columns.saturating_sub(line.width())) {
                line.add(Paint::Plain, part);
            }
            let failed: u64 = shown.failures.iter().sum();
            match failed {
                0 => line.add(Paint::Faint, "  no errors"),
                _ => {
                    let share = 100.0 * failed as f64 / shown.requests.max(1) as f64;
                    line.add(
                        Paint::Bad,
                        format!(
                            "  errors {failed} ({share:.2} %): {}",
                            kinds(&shown.failures)
                        ),
                    );
                }
            }
            lines.push(line);
            if full {
                lines.extend(shown.bars(scale, columns, style));
            }
        }
        if let (Some(p50), Some(p99)) = (self.lag.quantile(0.5), self.lag.quantile(0.99)) {
            if full {
                lines.push(Line::default());
            }
            let mut line = Line::default();
            let bound = plan.lag_bound.as_nanos() as f64;
            let text = format!(
                "generator lag p50 {}, p99 {} (bound {})",
                Time(p50),
                Time(p99),
                Time(bound)
            );
            line.add(
                if p99 > bound {
                    Paint::Bad
                } else {
                    Paint::Faint
                },
                text,
            );
            lines.push(line);
        }
        lines.truncate(rows.saturating_sub(1).max(1));
        for line in &mut lines {
            line.truncate(columns);
        }
        lines
    }

    fn heading(&self, plan: &Plan, now: Nanos) -> Line {
        let mut line = Line::default();
        line.add(
            Paint::Plain,
            match &plan.course {
                None => "closed loop".to_owned(),
                Some(course) => format!("open loop, {}", course.words()),
            },
        );
        line.add(
            Paint::Faint,
            format!(", {} connections", plan.connections * plan.targets.len()),
        );
        line.add(Paint::Plain, format!("  {}", self.phase(now)));
        line
    }

    fn progress(&self, now: Nanos, columns: usize, style: Style) -> Line {
        let Timeline { start, end, .. } = self.timeline;
        let share = now.saturating_sub(start) as f64 / (end - start).max(1) as f64;
        let width = columns.min(PICTURE_COLUMNS_MAX);
        let done = ((share.min(1.0) * width as f64) as usize).min(width);
        let (full, empty) = match style.unicode {
            true => ("━", "─"),
            false => ("=", "-"),
        };
        let mut line = Line::default();
        line.add(Paint::Bar, full.repeat(done));
        line.add(Paint::Faint, empty.repeat(width - done));
        line
    }

    /// The shortest and the longest time on the bars' logarithmic scale, the same for all targets.
    fn scale(&self) -> (f64, f64) {
        let values = || {
            self.targets
                .iter()
                .flat_map(|shown| shown.history.iter().flatten().copied())
                .filter(|value| *value > 0.0)
        };
        let low = values().fold(f64::INFINITY, f64::min);
        let high = values().fold(0.0, f64::max);
        // A bar of no length at all would say nothing, so the scale begins a little lower.
        (low / 2.0, high.max(low))
    }
}

impl Shown {
    /// A bar for each quantile, and how it was in the seconds before.
    fn bars(&self, (low, high): (f64, f64), columns: usize, style: Style) -> Vec<Line> {
        let place = |value: f64| match value > low && high > low {
            true => (value / low).ln() / (high / low).ln(),
            false => 0.0,
        };
        let columns = columns.min(PICTURE_COLUMNS_MAX);
        let rest = columns.saturating_sub(LABEL_COLUMNS);
        // Where it is narrow, the history goes first.
        let history_columns = match rest {
            0..30 => 0,
            _ => (rest / 2).min(HISTORY_MAX),
        };
        let bar_columns = rest.saturating_sub(history_columns + 2);
        let mut lines = Vec::new();
        for ((history, quantile), name) in self.history.iter().zip(QUANTILES).zip(QUANTILE_NAMES) {
            let mut line = Line::default();
            let value = self.last.quantile(quantile);
            let shown = value.map_or("-".to_owned(), |value| Time(value).to_string());
            line.add(Paint::Plain, format!("  {name:<6} {shown:>8}  "));
            let share = value.map_or(0.0, place);
            let bar = bar(share, bar_columns, style);
            let used = bar.chars().count();
            line.add(Paint::Bar, bar);
            if history_columns > 0 {
                line.add(Paint::Plain, " ".repeat(bar_columns - used + 2));
                let skip = history.len().saturating_sub(history_columns);
                let spark = history
                    .iter()
                    .skip(skip)
                    .map(|value| spark(place(*value), style));
                line.add(Paint::Faint, spark.collect::<String>());
            }
            lines.push(line);
        }
        lines
    }
}

fn bar(share: f64, columns: usize, style: Style) -> String {
    let length = share.clamp(0.0, 1.0) * columns as f64;
    if !style.unicode {
        return "#".repeat(length.round() as usize);
    }
    let eighths = (length * 8.0).round() as usize;
    let mut bar = "█".repeat(eighths / 8);
    // The last place holds what is left of a whole block.
    bar.extend(
        [
            None,
            Some('▏'),
            Some('▎'),
            Some('▍'),
            Some('▌'),
            Some('▋'),
            Some('▊'),
            Some('▉'),
        ][eighths % 8],
    );
    bar
}

fn spark(share: f64, style: Style) -> char {
    let levels: &[char] = match style.unicode {
        true => &['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'],
        false => &['_', '.', '-', '=', '^'],
    };
    let level = (share.clamp(0.0, 1.0) * levels.len() as f64) as usize;
    levels[level.min(levels.len() - 1)]
}

fn kinds(failures: &[u64]) -> String {
    Kind::ALL
        .into_iter()
        .zip(failures)
        .filter(|(_, count)| **count > 0)
        .map(|(kind, count)| format!("{} {count}", kind.name()))
        .collect::<Vec<_>>()
        .join(", ")
}

/// The last parts that fit whole into `columns`: what is cut in the middle would be read as another
/// figure.
fn fitting(mut parts: Vec<String>, columns: usize) -> Vec<String> {
    while parts.iter().map(|part| part.chars().count()).sum::<usize>() > columns && parts.len() > 1
    {
        parts.remove(0);
    }
    parts
}

/// A line of the picture, in pieces of one look each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Line(Vec<(Paint, String)>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Paint {
    Plain,
    Strong,
    Faint,
    Bar,
    Bad,
}

impl Line {
    fn add(&mut self, paint: Paint, text: impl Into<String>) {
        self.0.push((paint, text.into()));
    }

    /// Each character that we write is one column wide; names from the command line may differ.
    fn width(&self) -> usize {
        self.0.iter().map(|(_, text)| text.chars().count()).sum()
    }

    fn truncate(&mut self, columns: usize) {
        let mut left = columns;
        for (_, text) in &mut self.0 {
            if let Some((at, _)) = text.char_indices().nth(left) {
                text.truncate(at);
            }
            left -= text.chars().count();
        }
    }

    fn paint(&self, out: &mut String, style: Style) {
        for (paint, text) in &self.0 {
            let code = match paint {
                _ if !style.color || text.is_empty() => "",
                Paint::Plain => "",
                Paint::Strong => "1",
                Paint::Faint => "2",
                Paint::Bar => "36",
                Paint::Bad => "1;31",
            };
            // A name could hold an escape sequence; it must not become one.
            let text = text.chars().map(|c| if c.is_control() { '?' } else { c });
            match code {
                "" => out.extend(text),
                code => {
                    let _ = write!(out, "\x1b[{code}m");
                    out.extend(text);
                    out.push_str("\x1b[0m");
                }
            }
        }
    }
}

/// Writes a line to standard error. Nobody may be reading, such as when a pipe was closed: that is
/// no reason to stop measuring.
pub fn say(line: &str) {
    write_out(&format!("{line}\n"));
}

/// A terminal that is gone is no reason to stop measuring.
fn write_out(text: &str) {
    let mut stderr = io::stderr().lock();
    let _ = stderr.write_all(text.as_bytes());
    let _ = stderr.flush();
}

/// The quantiles with a bar.
const QUANTILES: [f64; 5] = [0.5, 0.9, 0.99, 0.999, 1.0];

const QUANTILE_NAMES: [&str; QUANTILES.len()] = ["p50", "p90", "p99", "p99.9", "max"];

/// Seconds whose quantiles stay on the screen.
const HISTORY_MAX: usize = 40;

/// Columns before a bar: the quantile's name and value.
const LABEL_COLUMNS: usize = 19;

/// Wider pictures are harder to read, not easier.
const PICTURE_COLUMNS_MAX: usize = 110;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_narrow_line_drops_whole_figures_and_latency_last() {
        let parts = ["     1000/s", "  p50 1.20ms", "  p99 12.0ms"].map(str::to_owned);
        let left = |columns| fitting(parts.to_vec(), columns).concat();
        assert_eq!(left(35), parts.concat());
        assert_eq!(left(34), "  p50 1.20ms  p99 12.0ms");
        assert_eq!(left(23), "  p99 12.0ms");
        assert_eq!(left(5), "  p99 12.0ms");
    }
}
