//! # How should a worker come by its connections?
//!
//! A stand-alone measurement behind `proxy/dataplane/src/listener.rs`. Two
//! pinned workers, each with a monoio io_uring ring of its own with the data
//! plane's flags, serve a 64-byte echo over loopback, and four strategies take
//! turns:
//!
//! | name | who accepts, who serves |
//! |---|---|
//! | reuseport | one `SO_REUSEPORT` socket per core; whoever accepts serves |
//! | shared | one socket, an accept in flight on every ring; whoever accepts serves |
//! | reuseport + hand-out | as reuseport, but an accepted descriptor goes to the core with fewer open connections, as a number through a socketpair that core reads on its ring |
//! | shared + hand-out | the same from one shared socket |
//!
//! It answers: how evenly 2, 4 and 8 long-lived clients spread, what that does
//! to throughput and latency, what a new connection costs, what becomes of new
//! connections when a worker stops accepting in the midst of a flood, and what
//! they notice when a worker sleeps.
//!
//! Run it (root, for a network namespace of its own; without, it says what it
//! leaves out), about a minute and a half, never more than two:
//!
//! ```sh
//! cd perf/accept && cargo run --release                # four rounds
//! cd perf/accept && cargo run --release -- --rounds 1  # a quick look
//! cd perf/accept && cargo run --release -- --epoll     # the fall-back driver
//! ```
//!
//! The result is Markdown on standard output. Workers are pinned to the first
//! two cores; the clients are blocking threads of the same process, pinned to
//! the same two cores. So absolute figures say little: the
//! strategies are interleaved within each round, and only ratios within one
//! run are meant.
//!
//! Deliberately lacking: TLS, remote peers, more than two workers, and load
//! measured in anything but open connections.

mod client;
mod clock;
mod netns;
mod single;
mod worker;

use std::io;
use std::time::{Duration, Instant};

use client::{Arrival, Flood, Stalled};
use single::Way;
use worker::{Cluster, Command, Driver, PING, PING_WORK, Strategy, WORKERS};

/// Rounds, unless `--rounds` says otherwise.
const ROUNDS: usize = 4;
/// No round begins after this.
const LAST_ROUND_BEGINS: Duration = Duration::from_secs(85);
/// The process is killed after this, whatever hangs.
const ALARM_SECONDS: u32 = 120;

/// Numbers of long-lived clients.
const CLIENTS: [usize; 3] = [2, 4, 8];
/// Spreads per round, strategy and number of clients.
const SPREADS: usize = 50;
/// Throughput runs per round, strategy, number of clients and kind of message,
/// and how long each takes. Many short ones: what varies is where the clients
/// went, and that is drawn anew for each. Even, so that clients sit beside
/// their workers as often as across from them (see `client::throughput`).
const THROUGHPUTS: usize = 4;
const THROUGHPUT_TIME: Duration = Duration::from_millis(100);
/// CPU that a message burns, by kind, in microseconds.
const WORKS: [u128; 2] = [0, worker::WORK.as_micros()];
/// Churn runs take this long, alone and beside this many idle connections.
const CHURN_TIME: Duration = Duration::from_millis(400);
const CHURN_IDLE: [usize; 2] = [0, 128];
/// Runs of each way of accepting alone, per round.
const SINGLES: usize = 3;
/// Floods take this long.
const FLOOD_TIME: Duration = Duration::from_millis(400);

/// A worker leaves in the midst of a flood.
struct Leave {
    name: &'static str,
    strategy: Strategy,
    command: Command,
    migrate: bool,
}

const LEAVES: [Leave; 6] = [
    Leave {
        name: "reuseport: close",
        strategy: Strategy::ALL[0],
        command: Command::LeaveAndClose,
        migrate: false,
    },
    Leave {
        name: "reuseport: close, `tcp_migrate_req=1`",
        strategy: Strategy::ALL[0],
        command: Command::LeaveAndClose,
        migrate: true,
    },
    Leave {
        name: "reuseport: pass the listener on",
        strategy: Strategy::ALL[0],
        command: Command::LeaveAndPassOn,
        migrate: false,
    },
    Leave {
        name: "shared: cancel the accept, close the duplicate",
        strategy: Strategy::ALL[1],
        command: Command::LeaveAndClose,
        migrate: false,
    },
    Leave {
        name: "reuseport + hand-out: pass the listener on",
        strategy: Strategy::ALL[2],
        command: Command::LeaveAndPassOn,
        migrate: false,
    },
    Leave {
        name: "shared + hand-out: cancel the accept, close the duplicate",
        strategy: Strategy::ALL[3],
        command: Command::LeaveAndClose,
        migrate: false,
    },
];

/// Everything measured for one strategy, all rounds.
#[derive(Default)]
struct Results {
    /// By number of clients, then by arrival.
    spreads: [[Vec<client::Spread>; Arrival::ALL.len()]; CLIENTS.len()],
    /// By number of clients; without work, then with.
    throughputs: [[Vec<client::Throughput>; 2]; CLIENTS.len()],
    /// By number of idle connections beside it.
    churns: [Vec<client::Churn>; CHURN_IDLE.len()],
    stalls: Vec<Stalled>,
}

fn main() -> io::Result<()> {
    // SAFETY: no memory is involved. It bounds the run even if a worker hangs.
    unsafe { libc::alarm(ALARM_SECONDS) };
    let mut rounds = ROUNDS;
    let mut driver = Driver::Ring;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--rounds" => {
                let number = arguments.next().unwrap_or_default();
                rounds = number
                    .parse()
                    .map_err(|_| io::Error::other("--rounds wants a number"))?;
            }
            "--epoll" => driver = Driver::Epoll,
            _ => return Err(io::Error::other("usage: accept [--rounds N] [--epoll]")),
        }
    }
    let isolated = netns::enter();
    if let Err(e) = &isolated {
        eprintln!(
            "accept: no network namespace of our own ({e}); leaving out tcp_migrate_req; run it as root"
        );
    }
    clock::burn(worker::WORK);

    let begun = Instant::now();
    let mut results: [Results; Strategy::ALL.len()] = Default::default();
    let mut floods = [Flood::default(); LEAVES.len()];
    let mut singles: [[Vec<f64>; 2]; Way::ALL.len()] = Default::default();
    let mut done = 0;
    while done < rounds && begun.elapsed() < LAST_ROUND_BEGINS {
        for offset in 0..Strategy::ALL.len() {
            // Another strategy goes first in each round.
            let index = (done + offset) % Strategy::ALL.len();
            measure(Strategy::ALL[index], driver, &mut results[index])?;
        }
        for (leave, flood) in LEAVES.iter().zip(&mut floods) {
            if leave.migrate && isolated.is_err() {
                continue;
            }
            if isolated.is_ok() {
                netns::set_migrate(leave.migrate)?;
            }
            let cluster = Cluster::start(leave.strategy, driver)?;
            flood.add(client::flood(&cluster, leave.command, FLOOD_TIME));
            cluster.stop();
        }
        for (way, costs) in Way::ALL.into_iter().zip(&mut singles) {
            for (one_by_one, costs) in [false, true].into_iter().zip(costs) {
                for _ in 0..SINGLES {
                    costs.push(single::cost(way, one_by_one)?);
                }
            }
        }
        done += 1;
        eprintln!(
            "accept: round {done} of {rounds}, {:.0} s",
            begun.elapsed().as_secs_f64()
        );
    }
    report(driver, done, begun.elapsed(), &results, &floods, &singles);
    Ok(())
}

fn measure(strategy: Strategy, driver: Driver, results: &mut Results) -> io::Result<()> {
    let cluster = Cluster::start(strategy, driver)?;
    for (clients, results) in CLIENTS.into_iter().zip(&mut results.spreads) {
        for (arrival, results) in Arrival::ALL.into_iter().zip(results) {
            for _ in 0..SPREADS {
                results.push(client::spread(&cluster, clients, arrival)?);
            }
        }
    }
    for (clients, results) in CLIENTS.into_iter().zip(&mut results.throughputs) {
        for (kind, results) in [PING, PING_WORK].into_iter().zip(results) {
            for run in 0..THROUGHPUTS {
                results.push(client::throughput(
                    &cluster,
                    clients,
                    kind,
                    run,
                    THROUGHPUT_TIME,
                )?);
            }
        }
    }
    for (idle, results) in CHURN_IDLE.into_iter().zip(&mut results.churns) {
        results.push(client::churn(&cluster, idle, CHURN_TIME)?);
    }
    results.stalls.push(client::stall(&cluster)?);
    cluster.stop();
    Ok(())
}

fn report(
    driver: Driver,
    rounds: usize,
    took: Duration,
    results: &[Results],
    floods: &[Flood],
    singles: &[[Vec<f64>; 2]],
) {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    println!(
        "{WORKERS} workers ({driver:?}), {rounds} rounds in {:.0} s, kernel {}, load average at the end {}",
        took.as_secs_f64(),
        kernel.trim(),
        load.trim()
    );

    println!(
        "\n## Spread of long-lived clients over 2 cores ({} spreads each)\n",
        rounds * SPREADS
    );
    println!(
        "| strategy | clients | arriving | one core idle, % | apart by 2 or more, % | connect to first answer p50 / p99, us |"
    );
    println!("|---|---|---|---|---|---|");
    for (strategy, results) in Strategy::ALL.iter().zip(results) {
        for (clients, results) in CLIENTS.iter().zip(&results.spreads) {
            for (arrival, results) in Arrival::ALL.into_iter().zip(results) {
                let first = results
                    .iter()
                    .flat_map(|spread| spread.first.iter().copied())
                    .collect();
                println!(
                    "| {} | {clients} | {} | {:.0} | {:.0} | {} |",
                    strategy.name(),
                    arrival.name(),
                    percent(results, |spread| idle(spread.split)),
                    percent(results, |spread| apart(spread.split)),
                    p50_p99(first)
                );
            }
        }
    }

    println!(
        "\n## Throughput of long-lived clients ({} runs of {} ms each)\n",
        rounds * THROUGHPUTS,
        THROUGHPUT_TIME.as_millis()
    );
    println!(
        "| strategy | clients | work, us | messages/s mean | worst run | p50 / p99, us | worker CPU us/message |"
    );
    println!("|---|---|---|---|---|---|---|");
    for (strategy, results) in Strategy::ALL.iter().zip(results) {
        for (clients, results) in CLIENTS.iter().zip(&results.throughputs) {
            for (work, results) in WORKS.iter().zip(results) {
                let runs: Vec<_> = results.iter().collect();
                println!(
                    "| {} | {clients} | {work} | {} |",
                    strategy.name(),
                    throughput(&runs)
                );
            }
        }
    }

    println!("\n## The same runs by how the clients were split, all strategies together\n");
    println!(
        "| clients | split | runs | work, us | messages/s mean | worst run | p50 / p99, us | worker CPU us/message |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for (index, clients) in CLIENTS.iter().enumerate() {
        for (kind, work) in WORKS.iter().enumerate() {
            for larger in clients.div_ceil(WORKERS)..=*clients {
                let runs: Vec<_> = results
                    .iter()
                    .flat_map(|results| &results.throughputs[index][kind])
                    .filter(|run| run.split.iter().max() == Some(&(larger as u32)))
                    .collect();
                if !runs.is_empty() {
                    println!(
                        "| {clients} | {larger}/{} | {} | {work} | {} |",
                        clients - larger,
                        runs.len(),
                        throughput(&runs)
                    );
                }
            }
        }
    }

    println!("\n## Churn: connect, one message, close; 4 clients\n");
    println!(
        "| strategy | idle connections beside it | connections/s | worker CPU us/connection | all CPU us/connection | passed on, % | p50 / p99, us |"
    );
    println!("|---|---|---|---|---|---|---|");
    for (strategy, results) in Strategy::ALL.iter().zip(results) {
        for (idle, results) in CHURN_IDLE.iter().zip(&results.churns) {
            println!(
                "| {} | {idle} | {:.0} | {:.1} | {:.1} | {:.0} | {} |",
                strategy.name(),
                median(results.iter().map(|run| run.per_second).collect()),
                median(results.iter().map(|run| run.cpu_us).collect()),
                median(results.iter().map(|run| run.process_us).collect()),
                100.0 * median(results.iter().map(|run| run.handed).collect()),
                p50_p99(
                    results
                        .iter()
                        .flat_map(|run| run.latencies.iter().copied())
                        .collect()
                ),
            );
        }
    }

    println!("\n## One of two workers stops accepting in the midst of a flood\n");
    println!("| how | answered | reset | refused | timed out |");
    println!("|---|---|---|---|---|");
    for (leave, flood) in LEAVES.iter().zip(floods) {
        println!(
            "| {} | {} | {} | {} | {} |",
            leave.name, flood.answered, flood.reset, flood.refused, flood.timed_out
        );
    }

    println!(
        "\n## One of two workers sleeps for {} ms while a connection arrives every ms\n",
        worker::STALL.as_millis()
    );
    println!(
        "| strategy | connections | held up > 40 ms | unanswered | longest wait, ms (worst round) |"
    );
    println!("|---|---|---|---|---|");
    for (strategy, results) in Strategy::ALL.iter().zip(results) {
        let stalls = &results.stalls;
        println!(
            "| {} | {} | {} | {} | {} |",
            strategy.name(),
            stalls.iter().map(|stall| stall.connections).sum::<usize>(),
            stalls.iter().map(|stall| stall.held_up).sum::<usize>(),
            stalls.iter().map(|stall| stall.unanswered).sum::<usize>(),
            stalls
                .iter()
                .map(|stall| stall.longest)
                .max()
                .unwrap_or_default()
                .as_millis(),
        );
    }

    println!(
        "\n## Accepting alone: CPU of the accepting thread, us per connection (median of {})\n",
        rounds * SINGLES
    );
    println!("| way | from a full queue | one by one |");
    println!("|---|---|---|");
    for (way, costs) in Way::ALL.iter().zip(singles) {
        println!(
            "| {} | {:.2} | {:.2} |",
            way.name(),
            median(costs[0].clone()),
            median(costs[1].clone())
        );
    }
}

/// The columns that every throughput table ends with.
fn throughput(runs: &[&client::Throughput]) -> String {
    let rates: Vec<f64> = runs.iter().map(|run| run.per_second).collect();
    format!(
        "{:.0} | {:.0} | {} | {:.1}",
        rates.iter().sum::<f64>() / rates.len() as f64,
        rates.iter().copied().fold(f64::INFINITY, f64::min),
        p50_p99(
            runs.iter()
                .flat_map(|run| run.latencies.iter().copied())
                .collect()
        ),
        median(runs.iter().map(|run| run.cpu_us).collect()),
    )
}

/// One core has nothing while another has two or more.
fn idle(split: [u32; WORKERS]) -> bool {
    split.contains(&0) && apart(split)
}

fn apart(split: [u32; WORKERS]) -> bool {
    split.iter().max().unwrap_or(&0) - split.iter().min().unwrap_or(&0) >= 2
}

fn percent<T>(all: &[T], is: impl Fn(&T) -> bool) -> f64 {
    100.0 * all.iter().filter(|one| is(one)).count() as f64 / all.len().max(1) as f64
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => (values[n / 2 - 1] + values[n / 2]) / 2.0,
    }
}

fn p50_p99(mut values: Vec<Duration>) -> String {
    values.sort();
    let at = |part: f64| {
        values
            .get((values.len() as f64 * part) as usize)
            .map_or(0, Duration::as_micros)
    };
    format!("{} / {}", at(0.50), at(0.99))
}
