//! What the load was made of: bodies, idle connections, requests by name, steps, event streams and
//! WebSockets. What a run had none of is left out.

use std::fmt::{self, Write as _};

use super::{Escaped, amount, cells, grouped, span};
use crate::report::TargetReport;
use crate::report::load::{LoadReport, PartReport, Spread};

/// Writes the section, if there is anything to say.
pub fn write(targets: &[TargetReport], out: &mut String) -> fmt::Result {
    let mut begun = false;
    for target in targets {
        let mut text = String::new();
        of_target(&target.load, &mut text)?;
        if text.is_empty() {
            continue;
        }
        if !std::mem::replace(&mut begun, true) {
            out.push_str("<h2>What the load was made of</h2>\n");
        }
        if targets.len() > 1 {
            writeln!(out, "<h3>{}</h3>", Escaped(&target.name))?;
        }
        out.push_str(&text);
    }
    Ok(())
}

fn of_target(load: &LoadReport, out: &mut String) -> fmt::Result {
    if load.bodies_shown() {
        let mib = |bytes: u64| amount(bytes as f64 / (1024.0 * 1024.0));
        writeln!(
            out,
            "<p>Bodies: {} MiB received, {} MiB sent.</p>",
            mib(load.bytes_received),
            mib(load.bytes_sent)
        )?;
    }
    if let Some(idle) = &load.idle {
        writeln!(
            out,
            "<p>Idle connections: {} of {} opened, {} lost; {} good answers on them, {} errors.</p>",
            grouped(idle.opened),
            grouped(idle.wanted),
            grouped(idle.lost),
            grouped(idle.good),
            grouped(idle.errors)
        )?;
    }
    if !load.by_request.is_empty() {
        head(out, "By request", &["requests", "errors"], &LATENCY)?;
        for request in &load.by_request {
            write!(out, "<tr><th scope=\"row\">{}</th>", Escaped(&request.name))?;
            part(out, &request.part)?;
        }
        out.push_str(END);
    }
    if !load.steps.is_empty() {
        head(
            out,
            "By step",
            &["asked/s", "good/s", "requests", "errors"],
            &LATENCY,
        )?;
        for step in &load.steps {
            write!(
                out,
                "<tr><th scope=\"row\">from {:.1} s</th><td>{}</td><td>{}</td>",
                step.from_s,
                amount(step.rate_wanted),
                amount(step.rps)
            )?;
            part(out, &step.part)?;
        }
        out.push_str(END);
    }
    if let Some(sse) = &load.sse {
        let caption = format!("Event streams: {} events", grouped(sse.events));
        head(out, &caption, &["values"], &SPREAD)?;
        for (name, times) in [
            ("first event", &sse.first_event),
            ("gap", &sse.gap),
            ("jitter", &sse.jitter),
            ("delay", &sse.delay),
        ] {
            spread(out, name, times)?;
        }
        out.push_str(END);
        out.push_str(
            "<p class=\"soft\">First event: from when the request was due. Gap: from one event to the next. \
             Jitter: how far gaps are off the announced one, or the sender's. Delay: from the sender's stamp to the arrival.</p>\n",
        );
    }
    if let Some(websocket) = &load.websocket {
        let caption = format!("WebSockets: {} messages", grouped(websocket.messages));
        head(out, &caption, &["values"], &SPREAD)?;
        spread(out, "handshake", &websocket.handshake)?;
        spread(out, "round trip", &websocket.round_trip)?;
        out.push_str(END);
    }
    Ok(())
}

const LATENCY: [&str; 8] = ["mean", "p50", "p75", "p90", "p99", "p99.9", "p99.99", "max"];

const SPREAD: [&str; 6] = ["mean", "p50", "p90", "p99", "p99.9", "max"];

const END: &str = "</tbody></table></div>\n";

fn head(out: &mut String, caption: &str, counts: &[&str], times: &[&str]) -> fmt::Result {
    write!(
        out,
        "<div class=\"scroll\"><table><caption>{caption}</caption><thead><tr><th scope=\"col\"></th>"
    )?;
    for name in counts.iter().chain(times) {
        write!(out, "<th scope=\"col\">{name}</th>")?;
    }
    out.push_str("</tr></thead><tbody>\n");
    Ok(())
}

fn part(out: &mut String, part: &PartReport) -> fmt::Result {
    let class = if part.errors_total > 0 {
        " class=\"bad\""
    } else {
        ""
    };
    write!(
        out,
        "<td>{}</td><td{class}>{}</td>",
        grouped(part.requests),
        grouped(part.errors_total)
    )?;
    cells(out, &part.latency)?;
    out.push_str("</tr>\n");
    Ok(())
}

fn spread(out: &mut String, name: &str, times: &Spread) -> fmt::Result {
    write!(
        out,
        "<tr><th scope=\"row\">{name}</th><td>{}</td>",
        grouped(times.count)
    )?;
    for value in [
        times.mean, times.p50, times.p90, times.p99, times.p999, times.max,
    ] {
        match times.count {
            0 => out.push_str("<td>-</td>"),
            _ => write!(out, "<td>{}</td>", span(value * 1e3))?,
        }
    }
    out.push_str("</tr>\n");
    Ok(())
}
