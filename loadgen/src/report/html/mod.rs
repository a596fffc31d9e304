//! The report as one HTML file that needs nothing else: no network, no fonts, no library.
//!
//! Plots are drawn here, as SVG, so they show without scripts and print; the one small script only
//! reads values off under the pointer. Whatever came from outside (names, URLs, failures in words)
//! passes through [`Escaped`]; the document's own policy forbids it to load anything.

mod load;
mod search;
mod svg;

use std::fmt::{self, Write as _};

use hdrhistogram::Histogram;

use self::svg::{Plot, Scale};
use super::{Comparison, Latency, Moment, Report, quantile_name};
use crate::board::Interval;
use crate::clock::{Nanos, SECOND};
use crate::failure::Kind;
use crate::gate::Time;

impl Report {
    /// The whole document.
    pub fn html(&self) -> String {
        let mut out = String::with_capacity(256 * 1024);
        // Writing to a String cannot fail.
        let _ = self.write_html(&mut out);
        out
    }

    fn write_html(&self, out: &mut String) -> fmt::Result {
        let title = self.title();
        write!(
            out,
            "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta http-equiv=\"Content-Security-Policy\" content=\"{POLICY}\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <meta name=\"color-scheme\" content=\"light dark\">\n<title>loadgen: {}</title>\n\
             <style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n",
            Escaped(&title)
        )?;
        writeln!(
            out,
            "<h1>{}</h1>\n<p class=\"soft\">{}, {:.1} s measured, {} connections{}. {}</p>",
            Escaped(&title),
            match &self.course {
                Some(course) => format!(
                    "Open loop, {course} ({} arrivals): latency counts from when each request was due",
                    self.arrivals.unwrap_or("constant")
                ),
                None => "Closed loop: each connection sends as soon as it was answered".to_owned(),
            },
            self.duration_s,
            self.connections,
            if self.targets.len() > 1 {
                " per target"
            } else {
                ""
            },
            Escaped(&self.date),
        )?;
        self.write_banners(out)?;
        self.write_summary(out)?;
        if let Some(found) = &self.find_max {
            search::write(found, out)?;
        }
        self.write_comparisons(out)?;
        self.write_percentiles(out)?;
        self.write_time(out)?;
        self.write_errors(out)?;
        load::write(&self.targets, out)?;
        self.write_generator(out)?;
        self.write_facts(out)?;
        write!(
            out,
            "</main>\n<script>\n{SCRIPT}</script>\n</body>\n</html>\n"
        )
    }

    fn title(&self) -> String {
        let names: Vec<&str> = self.targets.iter().map(|t| t.name.as_str()).collect();
        match names.split_last() {
            Some((last, others)) if !others.is_empty() => {
                format!("{} against {last}", others.join(", "))
            }
            _ => names.join(", "),
        }
    }

    fn write_banners(&self, out: &mut String) -> fmt::Result {
        for remark in &self.remarks {
            let class = if remark.starts_with("INVALID") || remark.starts_with("FAILED") {
                "bad"
            } else {
                "warn"
            };
            writeln!(
                out,
                "<p class=\"banner {class}\" role=\"alert\">{}</p>",
                Escaped(remark)
            )?;
        }
        for gate in self.gates.iter().filter(|gate| gate.failed) {
            writeln!(
                out,
                "<p class=\"banner bad\" role=\"alert\">FAILED: {}{} (measured {})</p>",
                Escaped(
                    &gate
                        .target
                        .as_ref()
                        .map_or(String::new(), |name| format!("{name}: "))
                ),
                Escaped(&gate.condition),
                Escaped(&gate.value)
            )?;
        }
        Ok(())
    }

    fn write_summary(&self, out: &mut String) -> fmt::Result {
        out.push_str(
            "<div class=\"scroll\"><table><caption>Good answers, failures and latency</caption><thead><tr><th scope=\"col\"></th>\
             <th scope=\"col\">requests</th><th scope=\"col\">good/s</th><th scope=\"col\">errors</th>",
        );
        for name in ["mean", "p50", "p75", "p90", "p99", "p99.9", "p99.99", "max"] {
            write!(out, "<th scope=\"col\">{name}</th>")?;
        }
        out.push_str("</tr></thead><tbody>\n");
        for target in &self.targets {
            write!(
                out,
                "<tr><th scope=\"row\">{}</th><td>{}</td><td>{}</td><td{}>{}</td>",
                Escaped(&target.name),
                grouped(target.requests),
                amount(target.rps),
                if target.errors_total > 0 {
                    " class=\"bad\""
                } else {
                    ""
                },
                grouped(target.errors_total)
            )?;
            cells(out, &target.latency)?;
            out.push_str("</tr>\n");
            if self.rate_wanted.is_some() {
                out.push_str(
                    "<tr><td class=\"text soft\">from the send</td><td></td><td></td><td></td>",
                );
                cells(out, &target.latency_from_send)?;
                out.push_str("</tr>\n");
            }
        }
        out.push_str("</tbody></table></div>\n");
        if self.gates.iter().any(|gate| !gate.failed) {
            out.push_str("<p>");
            for gate in self.gates.iter().filter(|gate| !gate.failed) {
                write!(
                    out,
                    "<span class=\"good\">passed</span> {}{} (measured {})<br>",
                    Escaped(
                        &gate
                            .target
                            .as_ref()
                            .map_or(String::new(), |name| format!("{name}: "))
                    ),
                    Escaped(&gate.condition),
                    Escaped(&gate.value)
                )?;
            }
            out.push_str("</p>\n");
        }
        Ok(())
    }

    fn write_comparisons(&self, out: &mut String) -> fmt::Result {
        for comparison in &self.comparisons {
            writeln!(
                out,
                "<h2>What {0} adds to {1}</h2>\n<p>Both were driven in this run, in alternating slices; {2} rounds \
                 of one slice each. The intervals hold the true difference 95 times in 100 (bootstrap over rounds). \
                 One that holds zero shows nothing: the difference is below the noise.</p>",
                Escaped(&comparison.subject),
                Escaped(&comparison.baseline),
                comparison.rounds
            )?;
            let plotted = comparison.quantiles.iter().any(|line| line.low.is_some());
            if plotted {
                out.push_str("<figure>");
                out.push_str(&both(|width| forest(comparison, width)));
                writeln!(
                    out,
                    "<figcaption>{} minus {}. Filled marks: a difference was shown. Hollow grey ones: below the noise. \
                     The axis is even near zero and logarithmic beyond.</figcaption></figure>",
                    Escaped(&comparison.subject),
                    Escaped(&comparison.baseline)
                )?;
            }
            write!(
                out,
                "<div class=\"scroll\"><table><thead><tr><th scope=\"col\"></th><th scope=\"col\">{}</th><th scope=\"col\">{}</th>\
                 <th scope=\"col\">difference</th><th scope=\"col\">95 % interval</th><th scope=\"col\" class=\"text\">finding</th></tr></thead><tbody>",
                Escaped(&comparison.subject),
                Escaped(&comparison.baseline)
            )?;
            for line in &comparison.quantiles {
                writeln!(
                    out,
                    "<tr><th scope=\"row\">{}</th><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td class=\"text\">{}</td></tr>",
                    quantile_name(line.quantile),
                    span(line.subject * 1e3),
                    span(line.baseline * 1e3),
                    signed(line.difference * 1e3),
                    match (line.low, line.high) {
                        (Some(low), Some(high)) =>
                            format!("{} to {}", signed(low * 1e3), signed(high * 1e3)),
                        _ => "none".to_owned(),
                    },
                    line.finding
                )?;
            }
            out.push_str("</tbody></table></div>\n");
        }
        Ok(())
    }

    fn write_percentiles(&self, out: &mut String) -> fmt::Result {
        if self
            .targets
            .iter()
            .all(|target| target.corrected.is_empty())
        {
            return Ok(());
        }
        let open = self.rate_wanted.is_some();
        out.push_str("<h2>Latency by percentile</h2>\n<ul class=\"legend\">");
        for (index, target) in self.targets.iter().enumerate() {
            legend(out, &format!("line t{}", index % COLORS), &target.name)?;
            if open {
                let name = format!("{} from the send", target.name);
                legend(out, &format!("line dashed t{}", index % COLORS), &name)?;
            }
        }
        out.push_str("</ul>\n<figure><div class=\"choose\">");
        for (n, (class, name)) in [("pick-one", "logarithmic"), ("pick-two", "linear")]
            .into_iter()
            .enumerate()
        {
            write!(
                out,
                "<input type=\"radio\" name=\"scale\" id=\"scale{n}\" class=\"{class}\"{}><label for=\"scale{n}\">{name}</label>",
                if n == 0 { " checked" } else { "" }
            )?;
        }
        for (class, log) in [("one", true), ("two", false)] {
            write!(
                out,
                "<div class=\"{class}\">{}</div>",
                both(|width| self.percentiles(width, log))
            )?;
        }
        out.push_str("</div><figcaption>Each step to the right is one more nine: a tenth of the requests that the step before it left over.");
        if open {
            out.push_str(
                " Solid: from when a request was due, which is what a caller waits. Dashed: from when it was sent, \
                 which hides what a stall did to the requests behind it.",
            );
        }
        out.push_str("</figcaption></figure>\n");
        Ok(())
    }

    fn percentiles(&self, width: f64, log: bool) -> String {
        let filled = || {
            self.targets
                .iter()
                .filter(|target| !target.corrected.is_empty())
        };
        let open = self.rate_wanted.is_some();
        let count = filled()
            .map(|target| target.corrected.len())
            .max()
            .unwrap_or(1);
        let nines = (count as f64).log10().max(1.0);
        let high = filled()
            .map(|target| target.corrected.max().max(target.uncorrected.max()))
            .max()
            .unwrap_or(1) as f64;
        let low = filled()
            .flat_map(|target| [&target.corrected, &target.uncorrected])
            .filter(|histogram| !histogram.is_empty())
            .map(Histogram::min)
            .min()
            .unwrap_or(0)
            .max(1) as f64;
        let scale = match log {
            true => Scale::Log {
                low: low * 0.9,
                high: high * 1.1,
            },
            false => Scale::Linear {
                low: 0.0,
                high: high * 1.05,
            },
        };
        let mut plot = Plot::new(
            width,
            360.0,
            62.0,
            "Latency by percentile, on an axis of nines",
        );
        plot.y_times(scale, 7);
        let marks: Vec<(f64, String)> = [(0.0, "0".to_owned()), (0.5, "50 %".to_owned())]
            .into_iter()
            .chain((1..=12).map(|n| {
                let digits = usize::from(n > 2) * (n as usize).saturating_sub(2);
                let share = 1.0 - 10f64.powi(-n);
                (share, format!("{:.digits$} %", share * 100.0))
            }))
            .map(|(quantile, name)| (-(1.0 - quantile).log10() / nines, name))
            .filter(|(share, _)| *share <= 1.0)
            .collect();
        plot.x_marks(&marks, "percentile");
        let at = |histogram: &Histogram<u64>, share: f64| {
            let quantile = 1.0 - 10f64.powf(-share * nines);
            histogram.value_at_quantile(quantile) as f64
        };
        for (index, target) in self.targets.iter().enumerate() {
            for (histogram, dashed) in [(&target.uncorrected, " dashed"), (&target.corrected, "")] {
                if histogram.is_empty() || (!open && !dashed.is_empty()) {
                    continue;
                }
                let end = ((histogram.len() as f64).log10() / nines).clamp(0.0, 1.0);
                let steps = (0..=CURVE_STEPS).map(|step| step as f64 / CURVE_STEPS as f64);
                let class = format!("t{}{dashed}", index % COLORS);
                plot.line(
                    &class,
                    steps
                        .filter(|share| *share < end)
                        .map(|share| (share, at(histogram, share)))
                        .chain([(end, histogram.max() as f64)])
                        .map(|(share, value)| Some((share, scale.place(value)))),
                );
            }
        }
        let readings: Vec<(f64, String)> = (0..=80)
            .map(|step| step as f64 / 80.0)
            .map(|share| {
                let quantile = 1.0 - 10f64.powf(-share * nines);
                let digits = (share * nines).ceil().max(1.0) as usize;
                let mut text = format!("{:.digits$} %", quantile * 100.0);
                for target in filled() {
                    let _ = write!(
                        text,
                        "   {}: {}",
                        target.name,
                        span(at(&target.corrected, share))
                    );
                    if open {
                        let _ = write!(
                            text,
                            " ({} from the send)",
                            span(at(&target.uncorrected, share))
                        );
                    }
                }
                (share, text)
            })
            .collect();
        plot.finish(&readings)
    }

    fn write_time(&self, out: &mut String) -> fmt::Result {
        let measured = self.timeline.end - self.timeline.measure_from;
        if measured == 0 || self.targets.iter().all(|target| target.series.is_empty()) {
            return Ok(());
        }
        let length = self.column_length(measured);
        let columns = measured.div_ceil(length) as usize;
        let series: Vec<Vec<Moment>> = (0..self.targets.len())
            .map(|index| {
                let mut moments = self.moments(index, length);
                // What was over after the end belongs to the last column.
                while moments.len() > columns {
                    if let (Some(late), Some(last)) = (moments.pop(), moments.last_mut()) {
                        last.seen.merge(&late.seen);
                    }
                }
                moments
            })
            .collect();
        let all = || series.iter().flatten().map(|moment| &moment.seen);
        let (low, high) = latency_range(all());
        if high > 0.0 {
            writeln!(
                out,
                "<h2>Latency over time</h2>\n<p class=\"soft\">Darker: more answers (lighter in dark mode); the steps are by ratio. Columns of {}, by when answers were complete. \
                 Solid line p50, dashed p99. The colours of all targets have one scale, as have the axes.</p>",
                span(length as f64)
            )?;
            out.push_str("<ul class=\"legend\"><li>fewest ");
            for level in 1..=HEAT_LEVELS {
                write!(
                    out,
                    "<svg viewBox=\"0 0 30 12\" aria-hidden=\"true\" style=\"width:18px\"><rect class=\"h{level}\" width=\"30\" height=\"12\"/></svg>"
                )?;
            }
            out.push_str(" most</li></ul>\n");
            let most = all()
                .map(|seen| densest(seen, low, high))
                .max()
                .unwrap_or(1);
            for (index, target) in self.targets.iter().enumerate() {
                writeln!(
                    out,
                    "<h3>{}</h3><figure>{}</figure>",
                    Escaped(&target.name),
                    both(|width| heat_map(
                        &target.name,
                        &series[index],
                        length,
                        (low, high),
                        most,
                        width
                    ))
                )?;
            }
        }
        out.push_str("<h2>Rate over time</h2>\n<ul class=\"legend\">");
        for (index, target) in self.targets.iter().enumerate() {
            legend(out, &format!("line t{}", index % COLORS), &target.name)?;
        }
        if self.rate_wanted.is_some() {
            legend(out, "wanted", "wanted")?;
        }
        writeln!(
            out,
            "</ul>\n<figure>{}<figcaption>Good answers per second in which the target was under load.</figcaption></figure>",
            both(|width| self.rates(&series, length, width))
        )?;
        if self.targets.iter().any(|target| target.errors_total > 0) {
            writeln!(
                out,
                "<h3>Errors over time</h3>\n<figure>{}<figcaption>Failed requests in each {}.</figcaption></figure>",
                both(|width| self.failures(&series, length, width)),
                span(length as f64)
            )?;
        }
        Ok(())
    }

    /// How long a column of the plots over time is: whole intervals, few enough to be seen, and
    /// whole rounds where targets take turns.
    fn column_length(&self, measured: Nanos) -> Nanos {
        let rounds = match self.targets.len() {
            1 => self.interval,
            // A round that is no multiple of the interval cannot be kept apart anyway.
            _ => self.round.max(self.interval) / self.interval * self.interval,
        };
        rounds * measured.div_ceil(rounds * COLUMNS_MAX).max(1)
    }

    fn rates(&self, series: &[Vec<Moment>], length: Nanos, width: f64) -> String {
        let rates = || series.iter().flatten().filter_map(Moment::rate);
        let wanted = || self.wanted.iter().map(|(_, rate)| *rate);
        let high = rates().chain(wanted()).fold(1.0, f64::max) * 1.08;
        let scale = Scale::Linear { low: 0.0, high };
        let mut plot = Plot::new(width, 220.0, 62.0, "Good answers per second over time");
        plot.y_amounts(scale, 5);
        let columns = series.iter().map(Vec::len).max().unwrap_or(1);
        time_axis(&mut plot, columns, length);
        let end = columns as f64 * length as f64;
        let corner = |&(time, rate): &(Nanos, f64)| (time as f64 / end, scale.place(rate));
        let corners = self.wanted.iter().map(corner).collect();
        plot.line("wanted", until_end(corners).into_iter().map(Some));
        for (index, moments) in series.iter().enumerate() {
            plot.line(
                &format!("t{}", index % COLORS),
                moments.iter().enumerate().map(|(n, moment)| {
                    let x = (n as f64 + 0.5) / columns as f64;
                    moment.rate().map(|rate| (x, scale.place(rate)))
                }),
            );
        }
        let readings = self.readings(series, length, |moment| {
            moment
                .rate()
                .map_or("-".to_owned(), |rate| format!("{}/s", amount(rate)))
        });
        plot.finish(&readings)
    }

    fn failures(&self, series: &[Vec<Moment>], length: Nanos, width: f64) -> String {
        let columns = series.iter().map(Vec::len).max().unwrap_or(1);
        let high = (0..columns)
            .map(|n| {
                series
                    .iter()
                    .filter_map(|of| of.get(n))
                    .map(|m| m.seen.failed())
                    .sum::<u64>()
            })
            .max()
            .unwrap_or(0)
            .max(1) as f64;
        let scale = Scale::Linear {
            low: 0.0,
            high: high * 1.08,
        };
        let mut plot = Plot::new(width, 150.0, 62.0, "Failed requests over time");
        plot.y_amounts(scale, 4);
        time_axis(&mut plot, columns, length);
        for n in 0..columns {
            let mut below = 0.0;
            for (index, moments) in series.iter().enumerate() {
                let failed = moments.get(n).map_or(0, |moment| moment.seen.failed()) as f64;
                if failed > 0.0 {
                    let (from, to) = (n as f64 / columns as f64, (n + 1) as f64 / columns as f64);
                    plot.rectangle(
                        &format!("f{}", index % COLORS),
                        (from, scale.place(below)),
                        (to, scale.place(below + failed)),
                    );
                    below += failed;
                }
            }
        }
        let readings = self.readings(series, length, |moment| {
            Kind::ALL
                .into_iter()
                .zip(moment.seen.failures)
                .filter(|(_, count)| *count > 0)
                .map(|(kind, count)| format!("{} {count}", kind.name()))
                .collect::<Vec<_>>()
                .join(", ")
        });
        plot.finish(&readings)
    }

    fn readings(
        &self,
        series: &[Vec<Moment>],
        length: Nanos,
        text: impl Fn(&Moment) -> String,
    ) -> Vec<(f64, String)> {
        let columns = series.iter().map(Vec::len).max().unwrap_or(1);
        (0..columns)
            .map(|n| {
                let mut line = format!("{} s", (n as Nanos * length) as f64 / 1e9);
                for (target, moments) in self.targets.iter().zip(series) {
                    if let Some(shown) = moments.get(n).map(&text).filter(|text| !text.is_empty()) {
                        let _ = write!(line, "   {}: {shown}", target.name);
                    }
                }
                ((n as f64 + 0.5) / columns as f64, line)
            })
            .collect()
    }

    fn write_errors(&self, out: &mut String) -> fmt::Result {
        out.push_str("<h2>Errors and answers</h2>\n");
        if self.targets.iter().all(|target| target.errors_total == 0) {
            out.push_str("<p class=\"good\">No request failed.</p>\n");
        }
        out.push_str(
            "<div class=\"scroll\"><table><thead><tr><th scope=\"col\"></th><th scope=\"col\">errors</th>\
             <th scope=\"col\" class=\"text\">by kind</th><th scope=\"col\" class=\"text\">by status</th></tr></thead><tbody>\n",
        );
        for target in &self.targets {
            let kinds: Vec<_> = target
                .errors
                .iter()
                .map(|(kind, n)| format!("{kind} {}", grouped(*n)))
                .collect();
            let status: Vec<_> = target
                .status
                .iter()
                .map(|(status, n)| format!("{status}: {}", grouped(*n)))
                .collect();
            writeln!(
                out,
                "<tr><th scope=\"row\">{}</th><td>{}</td><td class=\"text\">{}</td><td class=\"text\">{}</td></tr>",
                Escaped(&target.name),
                grouped(target.errors_total),
                kinds.join(", "),
                status.join(", ")
            )?;
        }
        out.push_str("</tbody></table></div>\n");
        for target in self
            .targets
            .iter()
            .filter(|target| !target.error_examples.is_empty())
        {
            write!(
                out,
                "<h3>Examples from {}</h3>\n<ul>",
                Escaped(&target.name)
            )?;
            for example in &target.error_examples {
                write!(out, "<li>{}</li>", Escaped(example))?;
            }
            out.push_str("</ul>\n");
        }
        Ok(())
    }

    fn write_generator(&self, out: &mut String) -> fmt::Result {
        let own = &self.generator;
        let verdict = match self.valid {
            true => "<span class=\"good\">It kept its schedule.</span>",
            false => {
                "<span class=\"bad\">It did not keep its schedule: the figures mean nothing.</span>"
            }
        };
        writeln!(
            out,
            "<h2>Was the judge fit to judge?</h2>\n<p>{verdict} It worked {:.0} % of its threads' time; beyond 90 % it is itself the limit.{}</p>",
            own.cpu_share * 100.0,
            own.cpu_us_per_request.map_or(String::new(), |cpu| format!(
                " It spent {cpu:.2} µs of CPU on each good answer."
            ))
        )?;
        if self.rate_wanted.is_some() {
            out.push_str("<div class=\"scroll\"><table><thead><tr><th scope=\"col\"></th><th scope=\"col\">requests</th>");
            for name in ["mean", "p50", "p75", "p90", "p99", "p99.9", "p99.99", "max"] {
                write!(out, "<th scope=\"col\">{name}</th>")?;
            }
            out.push_str("</tr></thead><tbody>\n");
            for (name, latency) in [
                ("generator lag", &own.lag),
                ("wait for a connection", &own.wait),
            ] {
                write!(
                    out,
                    "<tr><th scope=\"row\">{name}</th><td>{}</td>",
                    grouped(latency.count)
                )?;
                cells(out, latency)?;
                out.push_str("</tr>\n");
            }
            writeln!(
                out,
                "</tbody></table></div>\n<p class=\"soft\">Lag: how late requests were sent that found a connection free; \
                 the generator's own error, at most {} at p99. Waits are the server's doing and part of its latency.</p>",
                span(self.lag_bound_us * 1e3)
            )?;
        }
        Ok(())
    }

    fn write_facts(&self, out: &mut String) -> fmt::Result {
        write!(
            out,
            "<h2>To repeat it</h2>\n<p class=\"soft\">Values of headers, bodies and queries are left out.</p>\n<pre>{}</pre>\n<dl>",
            Escaped(&shell(&self.command))
        )?;
        let mut fact = |name: &str, value: &str| {
            write!(out, "<dt>{}</dt><dd>{}</dd>", Escaped(name), Escaped(value))
        };
        for target in &self.targets {
            let tls = target
                .tls
                .as_deref()
                .map_or(String::new(), |tls| format!(", {tls}"));
            let connections = &target.connections;
            fact(
                &target.name,
                &format!(
                    "{} at {}{tls}; {} connections opened ({} p50, {} p99), {} resumed, {} closed idle, {} failed",
                    target.url,
                    target.address,
                    connections.opened,
                    span(connections.opening.p50 * 1e3),
                    span(connections.opening.p99 * 1e3),
                    connections.resumed,
                    connections.closed_idle,
                    connections.failed
                ),
            )?;
        }
        for (name, watched) in &self.watched {
            let cpu = match (watched.cpu_s, watched.cpu_us_per_request) {
                (_, Some(cpu)) => format!("{cpu:.2} µs of CPU per good answer"),
                (Some(cpu), None) => format!("{cpu:.3} s of CPU"),
                (None, None) => "CPU unknown, the process is gone".to_owned(),
            };
            fact(name, &cpu)?;
        }
        fact(
            "generator",
            &format!("loadgen {}, {}", self.loadgen, self.driver),
        )?;
        let pinned = match self.cpus.as_slice() {
            [] => "not pinned".to_owned(),
            cpus => format!("pinned to CPU {}", super::join(cpus)),
        };
        fact("threads", &format!("{}, {pinned}", self.threads))?;
        fact(
            "times",
            &format!(
                "warm-up {} s, slices of {} s, time-out {} s, seed {}",
                self.warmup_s, self.slice_s, self.timeout_s, self.seed
            ),
        )?;
        fact("began", &self.date)?;
        fact("kernel", &self.machine.kernel)?;
        fact(
            "CPU",
            &format!(
                "{} × {}{}",
                self.machine.cpus,
                self.machine.cpu,
                if self.machine.virtual_machine {
                    ", virtual machine"
                } else {
                    ""
                }
            ),
        )?;
        out.push_str("</dl>\n");
        Ok(())
    }
}

/// Draws a plot twice, for wide and for narrow screens: one that is scaled down cannot be read.
fn both(plot: impl Fn(f64) -> String) -> String {
    format!(
        "<div class=\"wide\">{}</div><div class=\"narrow\">{}</div>",
        plot(840.0),
        plot(380.0)
    )
}

fn heat_map(
    name: &str,
    moments: &[Moment],
    length: Nanos,
    (low, high): (f64, f64),
    most: u64,
    width: f64,
) -> String {
    let scale = Scale::Log { low, high };
    let rows = heat_rows(low, high);
    let mut plot = Plot::new(width, 260.0, 62.0, &format!("Latency of {name} over time"));
    let columns = moments.len().max(1);
    let mut levels: Vec<Vec<(usize, usize)>> = vec![Vec::new(); HEAT_LEVELS];
    for (column, moment) in moments.iter().enumerate() {
        for (row, count) in by_row(&moment.seen, low, high).into_iter().enumerate() {
            if count > 0 {
                let share = (count as f64).ln_1p() / (most as f64).ln_1p();
                let level = (share * HEAT_LEVELS as f64).ceil() as usize;
                levels[level.clamp(1, HEAT_LEVELS) - 1].push((column, row));
            }
        }
    }
    plot.y_times(scale, 6);
    time_axis(&mut plot, columns, length);
    for (level, cells) in levels.into_iter().enumerate() {
        plot.cells(
            &format!("h{}", level + 1),
            (columns, rows),
            cells.into_iter(),
        );
    }
    for (quantile, dashed) in [(0.5, ""), (0.99, " dashed")] {
        for class in ["halo", "over"] {
            plot.line(
                &format!("{class}{dashed}"),
                moments.iter().enumerate().map(|(n, moment)| {
                    let x = (n as f64 + 0.5) / columns as f64;
                    moment
                        .seen
                        .quantile(quantile)
                        .map(|value| (x, scale.place(value)))
                }),
            );
        }
    }
    let readings: Vec<(f64, String)> = moments
        .iter()
        .enumerate()
        .map(|(n, moment)| {
            let mut text = format!(
                "{} s   {} requests",
                (n as Nanos * length) as f64 / 1e9,
                grouped(moment.seen.requests())
            );
            for (quantile, name) in [(0.5, "p50"), (0.9, "p90"), (0.99, "p99"), (1.0, "max")] {
                if let Some(value) = moment.seen.quantile(quantile) {
                    let _ = write!(text, "   {name} {}", span(value));
                }
            }
            ((n as f64 + 0.5) / columns as f64, text)
        })
        .collect();
    plot.finish(&readings)
}

/// Counts of an interval by row of the heat map.
fn by_row(seen: &Interval, low: f64, high: f64) -> Vec<u64> {
    let (scale, rows) = (Scale::Log { low, high }, heat_rows(low, high));
    let mut counts = vec![0; rows];
    for (from, to, count) in seen.latency.buckets() {
        let place = scale.place((from + to) as f64 / 2.0);
        counts[((place * rows as f64) as usize).min(rows - 1)] += count;
    }
    counts
}

fn densest(seen: &Interval, low: f64, high: f64) -> u64 {
    by_row(seen, low, high).into_iter().max().unwrap_or(0)
}

/// As many rows as the buckets can fill, and no more than can be seen.
fn heat_rows(low: f64, high: f64) -> usize {
    (((high / low).ln() / 0.04) as usize).clamp(4, 48)
}

/// The ends of a logarithmic axis that holds all latencies; zeros without any.
fn latency_range<'a>(all: impl Iterator<Item = &'a Interval>) -> (f64, f64) {
    let (mut low, mut high) = (f64::INFINITY, 0f64);
    for (from, to, _) in all.flat_map(|seen| seen.latency.buckets()) {
        low = low.min(from.max(1) as f64);
        high = high.max(to as f64);
    }
    match high > 0.0 {
        true => (low * 0.9, high * 1.1),
        false => (0.0, 0.0),
    }
}

/// What of a line lies before the right end of its plot: a run may have been cut short.
fn until_end(mut line: Vec<(f64, f64)>) -> Vec<(f64, f64)> {
    let Some(beyond) = line.iter().position(|(x, _)| *x > 1.0) else {
        return line;
    };
    if let Some(&(x, y)) = beyond.checked_sub(1).and_then(|last| line.get(last)) {
        let (far, there) = line[beyond];
        line[beyond] = (1.0, y + (there - y) * (1.0 - x) / (far - x));
    }
    line.truncate(beyond + 1);
    line
}

fn time_axis(plot: &mut Plot, columns: usize, length: Nanos) {
    let seconds = columns as f64 * length as f64 / SECOND as f64;
    let scale = Scale::Linear {
        low: 0.0,
        high: seconds,
    };
    let marks: Vec<(f64, String)> = scale
        .ticks(8)
        .into_iter()
        .map(|tick| {
            (
                scale.place(tick),
                format!("{} s", (tick * 1000.0).round() / 1000.0),
            )
        })
        .collect();
    plot.x_marks(&marks, "measured time");
}

/// The differences of one comparison with their intervals.
fn forest(comparison: &Comparison, width: f64) -> String {
    let lines: Vec<_> = comparison
        .quantiles
        .iter()
        .filter_map(|line| {
            Some((
                line,
                line.low? * 1e3,
                line.difference * 1e3,
                line.high? * 1e3,
            ))
        })
        .collect();
    let reach = |line: &(_, f64, f64, f64)| line.1.abs().max(line.3.abs()).max(line.2.abs());
    let low = lines
        .iter()
        .map(|line| line.1.min(line.2))
        .fold(0.0, f64::min);
    let high = lines
        .iter()
        .map(|line| line.3.max(line.2))
        .fold(0.0, f64::max);
    let knee = lines
        .iter()
        .map(reach)
        .fold(f64::INFINITY, f64::min)
        .max(200.0)
        / 4.0;
    let scale = Scale::Signed {
        low: low * 1.25 - knee,
        high: high * 1.25 + knee,
        knee,
    };
    let height = 50.0 + 34.0 * lines.len() as f64;
    let mut plot = Plot::new(width, height, 62.0, "Differences with their intervals");
    let marks: Vec<(f64, String)> = scale
        .ticks(8)
        .into_iter()
        .map(|tick| (scale.place(tick), signed(tick)))
        .collect();
    plot.x_marks(&marks, "difference");
    plot.upright("zero", scale.place(0.0));
    for (n, (line, low, value, high)) in lines.iter().enumerate() {
        let y = 1.0 - (n as f64 + 0.5) / lines.len() as f64;
        let class = match line.finding {
            "slower" => "slower",
            "faster" => "faster",
            _ => "noise",
        };
        plot.interval(
            class,
            y,
            (scale.place(*low), scale.place(*value), scale.place(*high)),
        );
        let (x, y) = (plot.x(0.0) - 8.0, plot.y(y) + 4.0);
        plot.text(x, y, "end", &quantile_name(line.quantile));
    }
    plot.finish(&[])
}

fn legend(out: &mut String, class: &str, name: &str) -> fmt::Result {
    write!(
        out,
        "<li><svg viewBox=\"0 0 30 12\" aria-hidden=\"true\"><path class=\"{class}\" d=\"M1 6H29\"/></svg>{}</li>",
        Escaped(name)
    )
}

fn cells(out: &mut String, latency: &Latency) -> fmt::Result {
    for value in [
        latency.mean,
        latency.p50,
        latency.p75,
        latency.p90,
        latency.p99,
        latency.p999,
        latency.p9999,
        latency.max,
    ] {
        match latency.count {
            0 => out.push_str("<td>-</td>"),
            _ => write!(out, "<td>{}</td>", span(value * 1e3))?,
        }
    }
    Ok(())
}

/// A time in nanoseconds, for people.
fn span(nanos: f64) -> String {
    let text = Time(nanos).to_string();
    let unit = text
        .find(|c: char| c.is_ascii_alphabetic())
        .unwrap_or(text.len());
    let (mut value, unit) = text.split_at(unit);
    if value.contains('.') {
        // Axis labels read `1 ms`; `1.20 ms` keeps its digits.
        let short = value.trim_end_matches('0').trim_end_matches('.');
        value = if short.contains('.') { value } else { short };
    }
    format!("{value}\u{a0}{}", unit.replace("us", "µs"))
}

fn signed(nanos: f64) -> String {
    match nanos {
        n if n > 0.0 => format!("+{}", span(n)),
        n if n < 0.0 => format!("−{}", span(-n)),
        _ => "0".to_owned(),
    }
}

/// A rate or a count that need not be exact.
fn amount(value: f64) -> String {
    match value {
        v if v >= 99.95 || v.fract() == 0.0 => grouped(v.round() as u64),
        v => format!("{v:.1}"),
    }
}

/// A whole number with its thousands set apart.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// The command as one would type it again.
fn shell(command: &[String]) -> String {
    let plain = |word: &str| {
        !word.is_empty()
            && word
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c))
    };
    command
        .iter()
        .map(|word| match plain(word) {
            true => word.clone(),
            false => format!("'{}'", word.replace('\'', "'\\''")),
        })
        .collect::<Vec<_>>()
        .join(" ")
}

/// Text that stays text, in elements and in quoted attributes.
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                '\n' | '\t' => f.write_char(c)?,
                // No control character, nor one that turns the direction of a line.
                c if c.is_control()
                    || ('\u{202a}'..='\u{202e}').contains(&c)
                    || ('\u{2066}'..='\u{2069}').contains(&c) =>
                {
                    f.write_char('\u{fffd}')?;
                }
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

/// The document may load nothing at all; only what stands in it may run.
const POLICY: &str =
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:";

const STYLE: &str = include_str!("style.css");

const SCRIPT: &str = include_str!("script.js");

/// Colours in the style sheet; further targets share them.
const COLORS: usize = 4;

/// Steps of a heat map's colour.
const HEAT_LEVELS: usize = 9;

/// Columns of a plot over time; more could not be told apart. They get longer instead.
const COLUMNS_MAX: u64 = 150;

/// Points of a percentile curve.
const CURVE_STEPS: usize = 240;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_never_becomes_markup() {
        let hostile = "</script><img src=x onerror=\"alert('1')\">&\u{202e}\u{0}";
        let shown = Escaped(hostile).to_string();
        assert_eq!(
            shown,
            "&lt;/script&gt;&lt;img src=x onerror=&quot;alert(&#39;1&#39;)&quot;&gt;&amp;\u{fffd}\u{fffd}"
        );
        let mut plot = Plot::new(100.0, 100.0, 10.0, hostile);
        plot.text(1.0, 1.0, "end", hostile);
        let svg = plot.finish(&[(0.5, hostile.to_owned())]);
        assert!(!svg.contains("<img"), "{svg}");
        assert_eq!(svg.matches("</script>").count(), 1, "{svg}");
    }

    #[test]
    fn a_wanted_rate_ends_where_the_run_was_cut() {
        let ramp = |end: f64| until_end(vec![(0.0, 0.0), (end, 1.0)]);
        assert_eq!(ramp(1.0), [(0.0, 0.0), (1.0, 1.0)]);
        assert_eq!(ramp(4.0), [(0.0, 0.0), (1.0, 0.25)]);
        let steps = vec![(0.0, 0.2), (1.5, 0.2), (1.5, 0.4), (3.0, 0.4)];
        assert_eq!(until_end(steps), [(0.0, 0.2), (1.0, 0.2)]);
    }

    #[test]
    fn figures_read_well() {
        for (nanos, text) in [
            (1e6, "1\u{a0}ms"),
            (1.2e6, "1.20\u{a0}ms"),
            (250e3, "250\u{a0}µs"),
        ] {
            assert_eq!(span(nanos), text);
        }
        assert_eq!(
            (grouped(1234567), amount(0.25)),
            ("1,234,567".into(), "0.2".into())
        );
        assert_eq!(signed(-2e6), "−2\u{a0}ms");
        let command = ["loadgen", "--fail-if", "p99>5ms", "it's"].map(str::to_owned);
        assert_eq!(shell(&command), "loadgen --fail-if 'p99>5ms' 'it'\\''s'");
    }
}
