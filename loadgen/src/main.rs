//! `loadgen`: an open-loop HTTP/1.1 load generator over TLS that says when it is not to be believed.
//!
//! Its main job is the overhead experiment: two targets under load in alternating slices of one
//! run, and the difference of their quantiles with an interval. Latency counts from when a request
//! was due, so neither a stalled server nor a stalled generator can hide.
//!
//! The way through the code: [`cli`] becomes a [`plan`], each thread runs a [`worker`], whose
//! [`dispatcher`] follows a [`schedule`] and hands requests to [`connection`]s; these speak through a
//! [`stream`] and read answers with [`response`]; [`stats`] are merged, [`compare`]d, held against
//! [`gate`]s and shown by [`report`].
//!
//! It shares no code with the proxy that it judges. It does not follow redirects, keep cookies,
//! decompress, or speak HTTP/2.

mod alarm;
mod board;
mod cli;
mod clock;
mod compare;
mod connection;
mod core;
mod dispatcher;
mod exchange;
mod failure;
mod files;
mod find_max;
mod gate;
mod idle;
mod live;
mod pattern;
mod plan;
mod rate;
mod report;
mod request;
mod response;
mod rt;
mod samples;
mod scenario;
mod schedule;
mod signals;
mod sizes;
mod slot;
mod sse;
mod start;
mod stats;
mod stream;
mod sys;
mod target;
mod tls;
mod watch;
mod websocket;
mod worker;

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{CommandFactory, FromArgMatches};

use crate::find_max::Ran;
use crate::live::{Progress, View};
use crate::plan::Plan;
use crate::report::Report;
use crate::rt::Driver;
use crate::start::Start;
use crate::stats::Stats;
use crate::watch::Observed;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let matches = cli::Args::command().get_matches();
    let args = cli::Args::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    match measure(&args, cli::shown::command(&matches)) {
        Ok(report) => conclude(&args, &report),
        Err(reason) => {
            live::say(&format!("loadgen: {reason}"));
            ExitCode::from(EXIT_NOT_STARTED)
        }
    }
}

/// Plans and runs. An error means that nothing was measured.
fn measure(args: &cli::Args, command: Vec<String>) -> Result<Report, String> {
    let (plan, gates) = args.plan()?;
    let names: Vec<&str> = plan.targets.iter().map(|t| t.name.as_str()).collect();
    files::check(args, &names)?;
    let needed = plan.descriptors();
    let limit = sys::raise_open_files(needed);
    if limit < needed {
        return Err(format!(
            "these connections need {needed} open files, and the limit is {limit}; raise it (ulimit \
             -Hn {needed}), or ask for fewer"
        ));
    }
    signals::block();
    let report = |plan: &Plan, run: Run| {
        let Run {
            stats,
            observed,
            driver,
        } = run;
        Report::new(plan, &gates, stats, observed, driver, command.clone())
    };
    let Some(objective) = &args.load.slo else {
        let run = drive(args, &plan)?;
        return Ok(report(&plan, run));
    };
    let (found, (plan, run)) = find_max::search(&plan, objective, |plan| {
        let run = drive(args, &plan)?;
        Ok(Ran {
            stats: run.stats.clone(),
            cut: run.observed.cut.is_some(),
            rest: (plan, run),
        })
    })?;
    let mut report = report(&plan, run);
    report.find_max = Some(found);
    Ok(report)
}

/// What came of one run.
struct Run {
    stats: Stats,
    observed: Observed,
    driver: Driver,
}

/// Runs a plan. An error means that nothing was measured.
fn drive(args: &cli::Args, plan: &Plan) -> Result<Run, String> {
    let mut view = View::new(match args.quiet {
        true => Progress::None,
        false => args.progress,
    });
    let plan = Arc::new(plan.clone());
    let start = Arc::new(Start::new(plan.threads, plan.targets.len()));
    let (results, observed) = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..plan.threads)
            .map(|index| {
                let (plan, start) = (Arc::clone(&plan), Arc::clone(&start));
                scope.spawn(move || worker::run(plan, start, index))
            })
            .collect();
        let over = || threads.iter().all(|thread| thread.is_finished());
        let observed = watch::run(&plan, &start, &mut view, over);
        let results: Vec<Option<(Stats, Driver)>> = threads
            .into_iter()
            .map(|thread| {
                thread
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
            .collect();
        (results, observed)
    });
    if let Some(reason) = start.abandoned() {
        return Err(reason);
    }
    let mut stats = Stats::new(plan.targets.len());
    let mut driver = Driver::Epoll;
    for (of_thread, used) in results.into_iter().flatten() {
        stats.merge(of_thread);
        driver = used;
    }
    Ok(Run {
        stats,
        observed,
        driver,
    })
}

/// Shows the report and chooses the exit code.
fn conclude(args: &cli::Args, report: &Report) -> ExitCode {
    let shown = if args.json {
        report
            .json()
            .map_err(std::io::Error::from)
            .map(|json| json + "\n")
    } else {
        let size = sys::terminal_size(std::io::stdout());
        Ok(report.text(size.map(|(columns, _)| columns)))
    };
    let printed = shown
        .and_then(|text| {
            let mut out = std::io::stdout().lock();
            out.write_all(text.as_bytes())?;
            out.flush()
        })
        .map_err(|error| format!("standard output: {error}"));
    // What cannot be printed may still be kept.
    let kept = files::write(args, report);
    if let Err(error) = printed.and(kept) {
        live::say(&format!(
            "loadgen: the result could not be written: {error}"
        ));
        return ExitCode::from(EXIT_NOT_STARTED);
    }
    if let Some(cut) = &report.cut {
        // Whatever the gates say of the part, the whole was not measured.
        return ExitCode::from(cut.signal.exit_code());
    }
    if !report.valid {
        return ExitCode::from(EXIT_INVALID);
    }
    if report.failed() {
        return ExitCode::from(EXIT_GATE);
    }
    ExitCode::SUCCESS
}

/// A `--fail-if` condition held, or no request succeeded.
const EXIT_GATE: u8 = 1;

/// Nothing was measured, or its result could not be written.
const EXIT_NOT_STARTED: u8 = 2;

/// The generator lagged beyond its bound: the figures mean nothing, gates included.
const EXIT_INVALID: u8 = 3;
