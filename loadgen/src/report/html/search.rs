//! The search for the highest rate: each probe as a mark in a plot and as a row of a table.

use std::fmt::{self, Write as _};

use super::svg::{Plot, Scale};
use super::{Escaped, amount, both, span};
use crate::find_max::{Found, Probe};

/// Writes the section.
pub fn write(found: &Found, out: &mut String) -> fmt::Result {
    writeln!(
        out,
        "<h2>The highest rate that holds</h2>\n<p>{}</p>",
        Escaped(&verdict(found))
    )?;
    let drawn = found.probes.iter().any(|probe| probe.p99 > 0.0);
    if drawn {
        out.push_str(
            "<ul class=\"legend\"><li><svg viewBox=\"0 0 30 12\" aria-hidden=\"true\"><circle class=\"mark held\" cx=\"15\" cy=\"6\" r=\"5\"/></svg>held</li>\
             <li><svg viewBox=\"0 0 30 12\" aria-hidden=\"true\"><path class=\"cross\" d=\"M10 1L20 11M20 1L10 11\"/></svg>failed</li>",
        );
        if found.p99_bound.is_some() {
            out.push_str(
                "<li><svg viewBox=\"0 0 30 12\" aria-hidden=\"true\"><path class=\"line wanted\" d=\"M1 6H29\"/></svg>bound of p99</li>",
            );
        }
        writeln!(
            out,
            "</ul>\n<figure>{}<figcaption>Each probe by the rate asked for and its 99th percentile from the due time. \
             A rate has failed when it failed twice.</figcaption></figure>",
            both(|width| plot(found, width))
        )?;
    }
    out.push_str("<div class=\"scroll\"><table class=\"long\"><thead><tr>");
    for name in [
        "asked/s",
        "length",
        "good/s",
        "p50",
        "p99",
        "errors",
        "lag p99",
        "judge busy",
    ] {
        write!(out, "<th scope=\"col\">{name}</th>")?;
    }
    out.push_str("<th scope=\"col\" class=\"text\">outcome</th></tr></thead><tbody>\n");
    for probe in &found.probes {
        writeln!(
            out,
            "<tr><th scope=\"row\">{}</th><td>{:.1} s</td><td>{}</td><td>{}</td><td>{}</td><td>{:.3} %</td><td>{}</td><td>{:.0} %</td>\
             <td class=\"text outcome\"><span class=\"{}\">{}</span>{}</td></tr>",
            amount(probe.rate),
            probe.duration_s,
            amount(probe.achieved),
            span(probe.p50 * 1e3),
            span(probe.p99 * 1e3),
            probe.error_share * 100.0,
            span(probe.lag_p99 * 1e3),
            probe.cpu_share * 100.0,
            if probe.holds { "good" } else { "bad" },
            if probe.holds { "held" } else { "failed" },
            Escaped(&reason(probe))
        )?;
    }
    out.push_str("</tbody></table></div>\n<p class=\"soft\">The rest of this page is about the last of these runs.</p>\n");
    Ok(())
}

fn verdict(found: &Found) -> String {
    let slo = &found.slo;
    let limit = match found.limited_by {
        "nothing" => "nothing that was tried failed, so it may be higher",
        "generator" => {
            "the generator was at its own limit, not the target: give it more threads or CPUs"
        }
        _ => "the target was at its limit",
    };
    match found.rate {
        Some(rate) => format!("{slo} holds up to {}/s; {limit}.", amount(rate)),
        None => format!("{slo} held at no rate for the whole time."),
    }
}

fn reason(probe: &Probe) -> String {
    let mut text = String::new();
    if probe.confirmation {
        text.push_str(", to confirm");
    }
    if probe.generator_limited {
        text.push_str(", with the generator at its limit");
    }
    if !probe.broken.is_empty() {
        text.push_str(": ");
        text.push_str(&probe.broken.join(", "));
    }
    text
}

fn plot(found: &Found, width: f64) -> String {
    // A probe without a single answer has no percentile to be placed by.
    let probes = || found.probes.iter().filter(|probe| probe.p99 > 0.0);
    let ends = |values: &mut dyn Iterator<Item = f64>| {
        values.fold((f64::INFINITY, 0f64), |(low, high), value| {
            (low.min(value), high.max(value))
        })
    };
    let (low, high) = ends(&mut probes().map(|probe| probe.rate));
    let across = Scale::Log {
        low: low / 1.3,
        high: high * 1.3,
    };
    let times = probes().map(|probe| probe.p99 * 1e3);
    let (low, high) = ends(&mut times.chain(found.p99_bound));
    let upwards = Scale::Log {
        low: low / 1.4,
        high: high * 1.4,
    };
    let mut plot = Plot::new(width, 220.0, 62.0, "Probes by rate and 99th percentile");
    plot.y_times(upwards, 5);
    let marks: Vec<(f64, String)> = across
        .ticks(6)
        .into_iter()
        .map(|rate| (across.place(rate), format!("{}/s", amount(rate))))
        .collect();
    plot.x_marks(&marks, "rate asked for");
    if let Some(bound) = found.p99_bound {
        let y = upwards.place(bound);
        plot.line("wanted", [(0.0, y), (1.0, y)].into_iter().map(Some));
    }
    let mut readings: Vec<(f64, String)> = Vec::new();
    for probe in probes() {
        let (x, y) = (across.place(probe.rate), upwards.place(probe.p99 * 1e3));
        plot.mark(probe.holds, x, y);
        let word = if probe.holds { "held" } else { "failed" };
        let text = format!("p99 {}, {word}", span(probe.p99 * 1e3));
        // Several probes of one rate have one place.
        match readings.iter_mut().find(|(place, _)| *place == x) {
            Some((_, line)) => {
                let _ = write!(line, "; {text}");
            }
            None => readings.push((x, format!("{}/s   {text}", amount(probe.rate)))),
        }
    }
    plot.finish(&readings)
}
