//! What a target's load was made of, beyond its requests as a whole: bodies, idle connections,
//! requests by name, steps, event streams and WebSockets.

use std::collections::BTreeMap;
use std::fmt::{self, Write};

use hdrhistogram::Histogram;
use serde::Serialize;

use super::{Latency, latency};
use crate::clock::SECOND;
use crate::failure::Kind;
use crate::gate::Time;
use crate::plan::Plan;
use crate::rate::Step;
use crate::stats::{PartStats, TargetStats};
use crate::target::Target;

/// The figures; times are microseconds. What a run had none of is left out.
#[derive(Debug, Serialize)]
pub struct LoadReport {
    /// Body bytes received within the measured time.
    pub bytes_received: u64,
    /// Body bytes sent within the measured time.
    pub bytes_sent: u64,
    /// Connections opened within the measured time.
    pub connections_opened_in_time: u64,
    /// Of these, by a resumed TLS session.
    pub connections_resumed_in_time: u64,
    /// Idle connections.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle: Option<IdleReport>,
    /// Each request of a scenario.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub by_request: Vec<RequestReport>,
    /// Each step of a changing rate.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<StepReport>,
    /// Event streams.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sse: Option<SseReport>,
    /// WebSockets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub websocket: Option<WebSocketReport>,
}

/// Idle connections of a target.
#[derive(Debug, Serialize)]
pub struct IdleReport {
    /// Asked for.
    pub wanted: u64,
    /// Opened before the start.
    pub opened: u64,
    /// Could not be opened.
    pub failed: u64,
    /// Lost before the end.
    pub lost: u64,
    /// Good answers to what they sent.
    pub good: u64,
    /// Requests without a good answer.
    pub errors: u64,
}

/// One request of a scenario.
#[derive(Debug, Serialize)]
pub struct RequestReport {
    /// Its name.
    pub name: String,
    /// Its figures.
    #[serde(flatten)]
    pub part: PartReport,
}

/// One step of a changing rate.
#[derive(Debug, Serialize)]
pub struct StepReport {
    /// Seconds into the measured time at which it began.
    pub from_s: f64,
    /// Its length in seconds.
    pub length_s: f64,
    /// The rate asked for; on a ramp the mean.
    pub rate_wanted: f64,
    /// Good answers per second to requests that were due and answered within the step.
    pub rps: f64,
    /// Its figures.
    #[serde(flatten)]
    pub part: PartReport,
}

/// A part of a target's requests.
#[derive(Debug, Serialize)]
pub struct PartReport {
    /// Requests that were due.
    pub requests: u64,
    /// Good answers among them.
    pub good: u64,
    /// Failures by kind; kinds without any are left out.
    pub errors: BTreeMap<&'static str, u64>,
    /// All failures.
    pub errors_total: u64,
    /// Body bytes received.
    pub body_bytes: u64,
    /// From when requests were due.
    pub latency: Latency,
}

/// Event streams.
#[derive(Debug, Serialize)]
pub struct SseReport {
    /// Events.
    pub events: u64,
    /// From when a request was due to its first event.
    pub first_event: Spread,
    /// From one event to the next.
    pub gap: Spread,
    /// How far gaps are off: from the announced one, or from the one at the sender.
    pub jitter: Spread,
    /// From the sender's stamp to the arrival.
    pub delay: Spread,
}

/// WebSockets.
#[derive(Debug, Serialize)]
pub struct WebSocketReport {
    /// Messages that came back.
    pub messages: u64,
    /// From sending the request to upgrade to the answer.
    pub handshake: Spread,
    /// From sending a message to the last byte of its echo.
    pub round_trip: Spread,
}

/// A distribution of times, microseconds.
#[derive(Debug, Serialize)]
pub struct Spread {
    /// Values.
    pub count: u64,
    /// Their mean.
    pub mean: f64,
    /// The median.
    pub p50: f64,
    /// The 90th percentile.
    pub p90: f64,
    /// The 99th percentile.
    pub p99: f64,
    /// The 99.9th percentile.
    #[serde(rename = "p99.9")]
    pub p999: f64,
    /// The largest.
    pub max: f64,
}

impl LoadReport {
    /// Computes everything from what was measured.
    pub fn new(plan: &Plan, target: &Target, stats: &TargetStats) -> Self {
        let idle = stats.idle;
        let names = target.requests.iter().map(|request| &request.name);
        Self {
            bytes_received: stats.bytes_received,
            bytes_sent: stats.bytes_sent,
            connections_opened_in_time: stats.connections_opened_in_time,
            connections_resumed_in_time: stats.connections_resumed_in_time,
            idle: (plan.idle > 0).then_some(IdleReport {
                wanted: plan.idle as u64,
                opened: idle.opened,
                failed: idle.failed,
                lost: idle.lost,
                good: idle.good,
                errors: idle.errors,
            }),
            by_request: match plan.by_request {
                true => names
                    .enumerate()
                    .map(|(index, name)| RequestReport {
                        name: name.clone(),
                        part: PartReport::new(stats.requests.get(index)),
                    })
                    .collect(),
                false => Vec::new(),
            },
            steps: plan
                .steps()
                .iter()
                .enumerate()
                .map(|(index, step)| StepReport::new(step, stats.steps.get(index)))
                .collect(),
            sse: stats.sse.as_ref().map(|sse| SseReport {
                events: sse.events,
                first_event: Spread::new(&sse.first_event),
                gap: Spread::new(&sse.gap),
                jitter: Spread::new(&sse.jitter),
                delay: Spread::new(&sse.delay),
            }),
            websocket: stats.websocket.as_ref().map(|websocket| WebSocketReport {
                messages: websocket.messages,
                handshake: Spread::new(&websocket.handshake),
                round_trip: Spread::new(&websocket.round_trip),
            }),
        }
    }

    /// Whether bodies were so large that a reader will ask how much it was.
    pub fn bodies_shown(&self) -> bool {
        self.bytes_received.max(self.bytes_sent) >= BODY_BYTES_SHOWN
    }

    /// Its lines of the table.
    pub fn write_text(&self, out: &mut impl Write) -> fmt::Result {
        if self.bodies_shown() {
            let mib = |bytes: u64| bytes as f64 / (1024.0 * 1024.0);
            writeln!(
                out,
                "  bodies: {:.1} MiB received, {:.1} MiB sent",
                mib(self.bytes_received),
                mib(self.bytes_sent)
            )?;
        }
        if let Some(idle) = &self.idle {
            write!(out, "  idle connections: {} opened", idle.opened)?;
            for (count, what) in [
                (idle.failed, "failed to open"),
                (idle.lost, "lost"),
                (idle.good, "good answers"),
                (idle.errors, "errors"),
            ] {
                if count > 0 {
                    write!(out, ", {count} {what}")?;
                }
            }
            writeln!(out)?;
        }
        let width = self.by_request.iter().map(|request| request.name.len());
        let width = width.max().unwrap_or(0).max(8);
        if !self.by_request.is_empty() {
            writeln!(out, "  {:width$} {PART_HEADINGS}", "request")?;
        }
        for request in &self.by_request {
            write!(out, "  {:width$}", request.name)?;
            request.part.write_text(out)?;
        }
        if !self.steps.is_empty() {
            writeln!(out, "  {:>8} {:>9} {PART_HEADINGS}", "step", "good/s")?;
        }
        for step in &self.steps {
            write!(out, "  {:>6.0}/s {:>9.0}", step.rate_wanted, step.rps)?;
            step.part.write_text(out)?;
        }
        if let Some(sse) = &self.sse {
            writeln!(out, "  {} events", sse.events)?;
            for (name, spread) in [
                ("first event", &sse.first_event),
                ("gap", &sse.gap),
                ("jitter", &sse.jitter),
                ("delay", &sse.delay),
            ] {
                spread.write_text(out, name)?;
            }
        }
        if let Some(websocket) = &self.websocket {
            writeln!(out, "  {} WebSocket messages", websocket.messages)?;
            websocket.handshake.write_text(out, "handshake")?;
            websocket.round_trip.write_text(out, "round trip")?;
        }
        Ok(())
    }
}

/// Below this the table does not mention bodies: who loads a small answer does not ask.
const BODY_BYTES_SHOWN: u64 = 16 * 1024 * 1024;

const PART_HEADINGS: &str =
    " requests   errors     mean      p50      p90      p99    p99.9      max";

impl StepReport {
    fn new(step: &Step, stats: Option<&PartStats>) -> Self {
        let length_s = (step.end - step.begin) as f64 / SECOND as f64;
        let good = stats.map_or(0, |stats| stats.good_in_time);
        Self {
            from_s: step.begin as f64 / SECOND as f64,
            length_s,
            rate_wanted: step.rate,
            rps: good as f64 / length_s,
            part: PartReport::new(stats),
        }
    }
}

impl PartReport {
    fn new(stats: Option<&PartStats>) -> Self {
        let none = PartStats::default();
        let stats = stats.unwrap_or(&none);
        Self {
            requests: stats.requests(),
            good: stats.good,
            errors: Kind::ALL
                .into_iter()
                .zip(stats.failures)
                .filter(|(_, count)| *count > 0)
                .map(|(kind, count)| (kind.name(), count))
                .collect(),
            errors_total: stats.failed(),
            body_bytes: stats.body_bytes,
            latency: latency(&stats.corrected),
        }
    }

    fn write_text(&self, out: &mut impl Write) -> fmt::Result {
        write!(out, " {:>9} {:>8}", self.requests, self.errors_total)?;
        let latency = &self.latency;
        for value in [
            latency.mean,
            latency.p50,
            latency.p90,
            latency.p99,
            latency.p999,
            latency.max,
        ] {
            match latency.count {
                0 => write!(out, " {:>8}", "-")?,
                _ => write!(out, " {:>8}", Time(value * 1e3))?,
            }
        }
        writeln!(out)
    }
}

impl Spread {
    fn new(histogram: &Histogram<u64>) -> Self {
        let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1e3;
        Self {
            count: histogram.len(),
            mean: histogram.mean() / 1e3,
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: histogram.max() as f64 / 1e3,
        }
    }

    fn write_text(&self, out: &mut impl Write, name: &str) -> fmt::Result {
        if self.count == 0 {
            return Ok(());
        }
        writeln!(
            out,
            "    {name:12} {} p50, {} p90, {} p99, {} p99.9, {} max",
            Time(self.p50 * 1e3),
            Time(self.p90 * 1e3),
            Time(self.p99 * 1e3),
            Time(self.p999 * 1e3),
            Time(self.max * 1e3),
        )
    }
}
