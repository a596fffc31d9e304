//! The command line, and how it becomes a [`Plan`]. Every mistake is named with its cure.

mod load;
pub mod shown;

use std::collections::BTreeMap;
use std::fs;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use rustls::pki_types::ServerName;

use self::load::{LoadArgs, OneRequest};
use crate::gate::{self, Gate};
use crate::live::Progress;
use crate::plan::{Load, Plan, nanos};
use crate::rate::Course;
use crate::request::{Request, RequestKind};
use crate::rt::DriverChoice;
use crate::schedule::Arrivals;
use crate::target::{StatusSet, Target, TlsTarget, Url};
use crate::tls::{self, Trust};
use crate::watch::Watched;

/// Drives HTTP/1.1 servers at a constant rate and says how long answers took, counted from when
/// each request was due.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100, after_help = AFTER_HELP)]
pub struct Args {
    /// What to drive. With more than one, they take turns and are compared with the last
    #[arg(long = "target", value_name = "[NAME=]URL")]
    pub targets: Vec<String>,

    /// The same as one --target
    #[arg(value_name = "URL", conflicts_with = "targets")]
    pub url: Option<String>,

    /// Open loop: requests per second over all threads. Without it the loop is closed
    #[arg(long, value_name = "N", group = "rate")]
    pub rps: Option<f64>,

    /// How arrivals of the open loop are spaced
    #[arg(long, value_enum, default_value_t = Arrivals::Constant, requires = "rate")]
    pub arrivals: Arrivals,

    /// Closed loop: requests under way at any time; each has a connection
    #[arg(long, value_name = "N", conflicts_with_all = ["rate", "connections"])]
    pub concurrency: Option<usize>,

    /// Connections per target
    #[arg(short, long, value_name = "N", default_value_t = 32)]
    pub connections: usize,

    /// The measured time
    #[arg(short, long, value_name = "TIME", default_value = "10s", value_parser = duration)]
    pub duration: Duration,

    /// Time under load before measuring begins
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = duration)]
    pub warmup: Duration,

    /// How long each target is driven before the next has its turn
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = duration)]
    pub slice: Duration,

    /// An answer that is not complete this long after its request was due is an error
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration)]
    pub timeout: Duration,

    /// Threads; one core drives about 100,000 small requests per second. Default: one, or one for
    /// each of --cpus
    #[arg(short, long, value_name = "N")]
    pub threads: Option<usize>,

    /// CPUs to pin threads to, such as 1 or 2-5,7
    #[arg(long, value_name = "LIST", value_parser = cpu_list)]
    pub cpus: Option<CpuList>,

    /// Method. Default: GET, or POST with a body
    #[arg(short = 'X', long = "request", value_name = "METHOD")]
    pub method: Option<String>,

    /// Header of every request; replaces a default of that name. @FILE reads such lines from a file
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE")]
    pub headers: Vec<String>,

    /// Header of the requests to one target only; @FILE after the = reads lines from a file
    #[arg(long = "target-header", value_name = "TARGET=NAME: VALUE")]
    pub target_headers: Vec<String>,

    /// Request body
    #[arg(long, value_name = "TEXT", conflicts_with = "data_file")]
    pub data: Option<String>,

    /// Request body, from a file
    #[arg(long, value_name = "FILE")]
    pub data_file: Option<PathBuf>,

    #[command(flatten)]
    pub load: LoadArgs,

    /// Connect to this address instead of the URL's; TLS still verifies the URL's name
    #[arg(long = "connect", value_name = "[TARGET=]ADDR:PORT")]
    pub connects: Vec<String>,

    /// Trust the certificates in this PEM file, and no others
    #[arg(long, value_name = "FILE", conflicts_with = "insecure")]
    pub cacert: Option<PathBuf>,

    /// Trust any certificate
    #[arg(short = 'k', long)]
    pub insecure: bool,

    /// A new connection for each request, opened when it is sent
    #[arg(long)]
    pub new_connection: bool,

    /// Let new connections resume earlier TLS sessions
    #[arg(long)]
    pub resume: bool,

    /// Statuses that are no error, such as 200,204,3xx. Default: 200-399
    #[arg(long, value_name = "LIST")]
    pub expect_status: Option<String>,

    /// The body that every answer must have
    #[arg(long, value_name = "TEXT", conflicts_with = "expect_body_file")]
    pub expect_body: Option<String>,

    /// The body that every answer must have, from a file
    #[arg(long, value_name = "FILE")]
    pub expect_body_file: Option<PathBuf>,

    /// Fail (exit code 1) if this holds: 'p99>5ms', 'errors>0.1%', 'rps<9900', 'NAME:p50>1ms',
    /// 'diff.p50>60us', 'lag.p99>50us', 'sse.delay.p99>20ms', 'websocket.round_trip.p99>5ms'. All
    /// metrics are listed below
    #[arg(long = "fail-if", value_name = "CONDITION")]
    pub fail_if: Vec<String>,

    /// The run is invalid (exit code 3) if the generator took up requests later than this at p99
    #[arg(long, value_name = "TIME", default_value = "10ms", value_parser = duration)]
    pub lag_bound: Duration,

    /// Wake at most this many microseconds before a request is due, as early as wake-ups turn out
    /// to be late, and spin the rest. 0 never spins
    #[arg(long, value_name = "US", default_value_t = 50)]
    pub spin_us: u64,

    /// What drives the sockets
    #[arg(long, value_enum, default_value_t = DriverChoice::Auto)]
    pub driver: DriverChoice,

    /// Report the CPU time of this process too, under this name; processes of one name add up. Its
    /// ended threads count, the processes that it starts do not: name each
    #[arg(long, value_name = "NAME=PID", value_parser = watched)]
    pub watch: Vec<Watched>,

    /// Seed of Poisson arrivals and of resampling
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,

    /// What to show while the load is on, on standard error
    #[arg(long, value_enum, value_name = "FORM", default_value_t = Progress::Auto)]
    pub progress: Progress,

    /// Show nothing while the load is on; the same as --progress none
    #[arg(short, long, conflicts_with = "progress")]
    pub quiet: bool,

    /// Print the result as JSON on standard output, instead of the table
    #[arg(long)]
    pub json: bool,

    /// Also write the corrected latencies in HdrHistogram's percentile format; with several targets
    /// the target's name goes before the file's extension
    #[arg(long, value_name = "FILE")]
    pub hgrm: Option<PathBuf>,

    /// Also write what happened in each second, as comma-separated values
    #[arg(long, value_name = "FILE")]
    pub csv: Option<PathBuf>,

    /// Also write the whole report as one HTML file that needs no network
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
}

const AFTER_HELP: &str = "\
Times carry a unit: 500us, 20ms, 10s, 2m.

Ctrl-C (or SIGTERM) stops the load and reports what was measured until then; a second one ends at
once.

Metrics of --fail-if: errors, rps, mean, max, pN (p50, p99.9, ...); lag.pN of the generator;
diff.p50, p90, p99, p99.9 and max against the last target; sse.first_event, sse.gap, sse.jitter,
sse.delay, websocket.handshake and websocket.round_trip, each with .mean, .pN or .max. --slo takes the
same, but for rps, lag and diff. A stream of which nothing was measured fails.

Exit codes: 0 measured; 1 a --fail-if condition held, or no request to a target succeeded; 2 could
not start; 3 the generator lagged too much for the result to mean anything; 130 or 143 stopped by
Ctrl-C or SIGTERM.

The overhead of a proxy, measured against going direct, both in one run:
  loadgen --rps 5000 --duration 60s --cacert ca.pem \\
    --target proxy=https://api.example.com/ok  --connect proxy=127.0.0.1:8443 \\
    --target direct=https://api.example.com/ok --connect direct=127.0.0.1:9443 \\
    --target-header direct=@key.header";

/// CPUs, in the order given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuList(pub Vec<usize>);

impl Args {
    /// Settles everything: reads files, resolves names, renders requests.
    ///
    /// # Errors
    /// A sentence that names the option and the cure.
    pub fn plan(&self) -> Result<(Plan, Vec<Gate>), String> {
        let targets = self.build_targets()?;
        let gates = self
            .fail_if
            .iter()
            .map(|text| {
                let gate = Gate::parse(text).map_err(|error| format!("--fail-if {error}"))?;
                match &gate.target {
                    Some(name) if !targets.iter().any(|target| target.name == *name) => Err(
                        format!("--fail-if `{text}`: there is no target named {name}"),
                    ),
                    _ if matches!(gate.metric, gate::Metric::Difference(_))
                        && targets.len() < 2 =>
                    {
                        Err(format!(
                            "--fail-if `{text}`: a difference takes two targets"
                        ))
                    }
                    _ => measurable("--fail-if", gate, &targets),
                }
            })
            .collect::<Result<Vec<_>, _>>()?;
        for gate in self.load.slo.iter().flat_map(|slo| slo.conditions()) {
            measurable("--slo", gate.clone(), &targets)?;
        }
        let course = self.course()?;
        let load = match &course {
            Some(course) => Load::Open {
                rate: course.mean(),
                arrivals: self.arrivals,
            },
            None => Load::Closed,
        };
        if targets.len() > 1 && matches!(course, Some(Course::Ramp(..) | Course::Steps(_))) {
            return Err(
                "--ramp and --steps take one target; compared targets take turns at one rate"
                    .into(),
            );
        }
        let cpus = self.cpus.clone().map_or(Vec::new(), |list| list.0);
        let connections = self.concurrency.unwrap_or(self.connections);
        let threads = self.threads.unwrap_or(cpus.len().max(1));
        if threads == 0 || connections < threads {
            return Err(format!(
                "{connections} connections cannot be shared by {threads} threads; each thread needs at least one"
            ));
        }
        if self.duration.is_zero() || self.timeout.is_zero() || self.slice.is_zero() {
            return Err("--duration, --timeout and --slice must be above zero".into());
        }
        let (mut warmup, mut duration, mut slice) = (self.warmup, self.duration, self.slice);
        if targets.len() > 1 {
            // Whole rounds, so that each target has the same share of the measured time.
            let round = slice * targets.len() as u32;
            warmup = whole(warmup, round);
            duration = whole(duration, round);
        } else {
            slice = warmup + duration;
        }
        let plan = Plan {
            targets: targets.into(),
            load,
            course,
            connections,
            threads,
            cpus,
            warmup,
            duration,
            slice,
            timeout: self.timeout,
            spin: Duration::from_micros(self.spin_us),
            new_connection: self.new_connection,
            requests_per_connection: self.load.requests_per_connection.unwrap_or(u64::MAX),
            idle: self.load.idle,
            idle_every: self.load.idle_every.unwrap_or_default(),
            by_request: self.load.scenario.is_some(),
            driver: self.driver,
            lag_bound: self.lag_bound,
            seed: self.seed,
            watched: self.watch.clone(),
        };
        Ok((plan, gates))
    }

    /// How the open loop's rate runs; none for the closed loop.
    fn course(&self) -> Result<Option<Course>, String> {
        match (self.rps, &self.load.ramp, &self.load.steps) {
            (Some(rate), ..) if rate.is_finite() && rate > 0.0 => Ok(Some(Course::Constant(rate))),
            (Some(_), ..) => Err("--rps must be above zero".into()),
            (None, Some(course), _) | (None, None, Some(course)) => Ok(Some(course.clone())),
            // The search says at which rates.
            (None, None, None) if self.load.find_max => Ok(Some(Course::Constant(1.0))),
            (None, None, None) => Ok(None),
        }
    }

    fn build_targets(&self) -> Result<Vec<Target>, String> {
        let written: Vec<&String> = self.targets.iter().chain(&self.url).collect();
        if written.is_empty() {
            return Err("name what to drive: a URL, or --target NAME=URL".into());
        }
        let mut urls: Vec<(String, &str)> = Vec::new();
        for text in written {
            let (name, url) = match text.split_once('=') {
                // An `=` may also stand in a nameless URL's query.
                Some((name, url)) if !name.contains(['/', ':', '?']) && !name.is_empty() => {
                    (name.to_owned(), url)
                }
                _ => (Url::parse(text)?.host, text.as_str()),
            };
            if urls.iter().any(|(other, _)| *other == name) {
                return Err(format!(
                    "--target: there are two named {name}; write --target NAME=URL"
                ));
            }
            urls.push((name, url));
        }
        let names: Vec<String> = urls.iter().map(|(name, _)| name.clone()).collect();
        let connects = per_target("--connect", &self.connects, &names)?;
        let own_headers = per_target("--target-header", &self.target_headers, &names)?;

        let one = OneRequest {
            method: self.method.clone(),
            body: body(&self.data, self.data_file.as_ref(), "--data-file")?,
            expected_status: match &self.expect_status {
                Some(text) => Some(StatusSet::parse(text)?),
                None => None,
            },
            expected_body: body(
                &self.expect_body,
                self.expect_body_file.as_ref(),
                "--expect-body-file",
            )?
            .map(Arc::from),
        };
        let specs = self.load.specs(one, self.course()?.is_none())?;
        let pairs = self.load.client_pairs()?;
        let headers = header_lines(self.headers.iter().map(String::as_str))?;

        let mut configs = None;
        urls.into_iter()
            .map(|(name, text)| {
                let url = Url::parse(text)?;
                let tls = if url.tls {
                    let server_name = ServerName::try_from(url.host.clone())
                        .map_err(|_| format!("--target {name}: its host is no name that a certificate can have"))?;
                    let configs = match &configs {
                        Some(configs) => Vec::clone(configs),
                        None => configs
                            .insert(tls::client_configs(self.trust(), self.resume, &pairs)?)
                            .clone(),
                    };
                    Some(TlsTarget {
                        name: server_name,
                        configs,
                    })
                } else {
                    None
                };
                let address = match connects.get(&name).and_then(|list| list.last()) {
                    Some(text) => resolve(text)
                        .map_err(|error| format!("--connect {name}: {error}"))?,
                    None => resolve(&format!("{}:{}", bracketed(&url.host), url.port))
                        .map_err(|error| format!("--target {name}: {error}; --connect {name}=ADDR:PORT goes elsewhere"))?,
                };
                let own = own_headers.get(&name).map_or(&[][..], Vec::as_slice);
                let mut all = headers.clone();
                all.extend(header_lines(own.iter().map(String::as_str))?);
                let requests =
                    self.load
                        .requests(&specs, &url, &all, self.new_connection)?;
                Ok(Target {
                    name,
                    url: shown::url(text),
                    address,
                    tls,
                    requests,
                    callers: self.load.callers()?,
                })
            })
            .collect()
    }

    fn trust(&self) -> Trust<'_> {
        match &self.cacert {
            Some(path) => Trust::File(path),
            None if self.insecure => Trust::Anyone,
            None => Trust::System,
        }
    }
}

/// Refuses a condition about streams or WebSockets where there are none: it could only fail.
fn measurable(option: &str, gate: Gate, targets: &[Target]) -> Result<Gate, String> {
    let gate::Metric::Stream(time, _) = gate.metric else {
        return Ok(gate);
    };
    // All targets have the same requests.
    let there = targets.iter().flat_map(|target| &target.requests);
    let fits = |request: &Request| match request.kind {
        RequestKind::Http => false,
        RequestKind::Sse { .. } => time.is_sse(),
        RequestKind::WebSocket(_) => !time.is_sse(),
    };
    let kind = if time.is_sse() { "sse" } else { "websocket" };
    match there.into_iter().any(fits) {
        true => Ok(gate),
        false => Err(format!(
            "{option} `{}`: no request is of that kind; give --kind {kind}, or a scenario with one",
            gate.text
        )),
    }
}

/// Sorts `[NAME=]VALUE` options by target. Without a name they belong to all.
fn per_target(
    option: &str,
    values: &[String],
    names: &[String],
) -> Result<BTreeMap<String, Vec<String>>, String> {
    let mut sorted: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for text in values {
        match text.split_once('=') {
            Some((name, value)) if names.iter().any(|other| other == name) => {
                sorted
                    .entry(name.to_owned())
                    .or_default()
                    .push(value.to_owned());
            }
            None if option == "--connect" => {
                for name in names {
                    sorted.entry(name.clone()).or_default().push(text.clone());
                }
            }
            _ => {
                return Err(format!(
                    "{option}: it must begin with the name of a target and `=`; there are {}",
                    names.join(", ")
                ));
            }
        }
    }
    Ok(sorted)
}

/// Replaces `@FILE` by the file's lines.
fn header_lines<'a>(given: impl Iterator<Item = &'a str>) -> Result<Vec<String>, String> {
    let mut lines = Vec::new();
    for text in given {
        match text.strip_prefix('@') {
            Some(path) => {
                let file =
                    fs::read_to_string(path).map_err(|error| format!("-H @{path}: {error}"))?;
                lines.extend(
                    file.lines()
                        .filter(|line| !line.is_empty())
                        .map(str::to_owned),
                );
            }
            None => lines.push(text.to_owned()),
        }
    }
    Ok(lines)
}

fn body(
    text: &Option<String>,
    file: Option<&PathBuf>,
    option: &str,
) -> Result<Option<Vec<u8>>, String> {
    match (text, file) {
        (Some(text), _) => Ok(Some(text.clone().into_bytes())),
        (None, Some(path)) => fs::read(path)
            .map(Some)
            .map_err(|error| format!("{option} {}: {error}", path.display())),
        (None, None) => Ok(None),
    }
}

fn resolve(address: &str) -> Result<SocketAddr, String> {
    address
        .to_socket_addrs()
        .map_err(|error| format!("cannot resolve {address}: {error}"))?
        .next()
        .ok_or_else(|| format!("{address} has no address"))
}

fn bracketed(host: &str) -> String {
    match host.contains(':') {
        true => format!("[{host}]"),
        false => host.to_owned(),
    }
}

/// The least multiple of `round` that is not below `time`.
fn whole(time: Duration, round: Duration) -> Duration {
    Duration::from_nanos(nanos(time).div_ceil(nanos(round)) * nanos(round))
}

fn duration(text: &str) -> Result<Duration, String> {
    gate::time(text)
        .filter(|nanos| *nanos < 1e18)
        .map(|nanos| Duration::from_nanos(nanos as u64))
        .ok_or_else(|| "write a number and a unit: 500us, 20ms, 10s, 2m, 1h".into())
}

fn watched(text: &str) -> Result<Watched, String> {
    text.split_once('=')
        .and_then(|(name, pid)| {
            let (name, pid) = (name.to_owned(), pid.parse().ok()?);
            Some(Watched { name, pid })
        })
        .ok_or_else(|| "write NAME=PID, such as nginx=1234".into())
}

fn cpu_list(text: &str) -> Result<CpuList, String> {
    let mut cpus = Vec::new();
    for part in text.split(',') {
        let (low, high) = part.split_once('-').unwrap_or((part, part));
        match (low.trim().parse::<usize>(), high.trim().parse::<usize>()) {
            (Ok(low), Ok(high)) if low <= high && high < 4096 => cpus.extend(low..=high),
            _ => return Err("write CPU numbers and ranges, such as 1 or 2-5,7".into()),
        }
    }
    Ok(CpuList(cpus))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(args: &[&str]) -> Result<(Plan, Vec<Gate>), String> {
        let all = std::iter::once(&"loadgen").chain(args);
        Args::try_parse_from(all)
            .map_err(|error| error.to_string())?
            .plan()
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Args::command().debug_assert();
    }

    #[test]
    fn plans() {
        let (plan, _) = plan(&["http://127.0.0.1:1/x?a=b", "--concurrency", "7"]).unwrap();
        assert_eq!(plan.load, Load::Closed);
        assert_eq!((plan.connections, plan.threads), (7, 1));
        assert_eq!(plan.targets[0].name, "127.0.0.1");
        assert_eq!(plan.targets[0].address.port(), 1);
        assert!(
            plan.targets[0].requests[0].forms[0]
                .bytes
                .starts_with(b"GET /x?a=b HTTP/1.1\r\nHost: 127.0.0.1:1\r\n")
        );
        assert_eq!(plan.slice, plan.warmup + plan.duration);
    }

    #[test]
    fn compared_targets_get_whole_rounds() {
        let (plan, gates) = plan(&[
            "--target",
            "a=http://127.0.0.1:1/",
            "--target",
            "b=http://127.0.0.1:2/",
            "--connect",
            "b=127.0.0.9:9",
            "--rps",
            "10",
            "--slice",
            "400ms",
            "--warmup",
            "1s",
            "--duration",
            "5s",
            "--cpus",
            "0-1",
            "--fail-if",
            "b:p50>1ms",
            "--target-header",
            "a=X-A: 1",
            "-H",
            "X-B: 2",
        ])
        .unwrap();
        assert_eq!(plan.warmup, Duration::from_millis(1600));
        assert_eq!(plan.duration, Duration::from_millis(5600));
        assert_eq!(plan.threads, 2);
        assert_eq!(plan.targets[1].address.to_string(), "127.0.0.9:9");
        assert_eq!(gates.len(), 1);
        let a = String::from_utf8(plan.targets[0].requests[0].forms[0].bytes.clone()).unwrap();
        let b = String::from_utf8(plan.targets[1].requests[0].forms[0].bytes.clone()).unwrap();
        assert!(a.contains("X-A: 1") && a.contains("X-B: 2") && !b.contains("X-A"));
    }

    #[test]
    fn mistakes_are_named() {
        for (args, word) in [
            (&[][..], "--target"),
            (&["http://127.0.0.1:1", "--rps", "0"], "above zero"),
            (&["http://127.0.0.1:1", "--threads", "64"], "threads"),
            (&["http://127.0.0.1:1", "--duration", "5"], "unit"),
            (
                &["http://127.0.0.1:1", "--connect", "x=1.2.3.4:5"],
                "--connect",
            ),
            (&["http://127.0.0.1:1", "--fail-if", "p99>1"], "--fail-if"),
            (&["http://127.0.0.1:1", "--fail-if", "x:p99>1s"], "named x"),
            (
                &["http://127.0.0.1:1", "--fail-if", "sse.gap.p99>1s"],
                "--kind sse",
            ),
            (
                &[
                    "http://127.0.0.1:1",
                    "--kind=sse",
                    "--find-max",
                    "--slo=websocket.handshake.max<1s",
                ],
                "--kind websocket",
            ),
            (
                &["http://127.0.0.1:1", "--fail-if", "diff.p99>1s"],
                "two targets",
            ),
            (
                &["https://127.0.0.1:1", "--cacert", "/nonexistent.pem"],
                "/nonexistent.pem",
            ),
            (
                &[
                    "--target",
                    "a=http://127.0.0.1:1",
                    "--target",
                    "a=http://127.0.0.1:2",
                ],
                "two named a",
            ),
            (&["http://127.0.0.1:1", "--cpus", "x"], "CPU numbers"),
        ] {
            let Err(error) = plan(args) else {
                panic!("accepted {args:?}");
            };
            assert!(error.contains(word), "{args:?}: {error}");
        }
    }

    #[test]
    fn what_a_scenario_cannot_send_is_told_with_its_line() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("s.toml");
        for (text, args, word) in [
            (
                "\n[[request]]\nname='a'\nkind='upload'",
                &[][..],
                "takes a body",
            ),
            (
                "\n[[request]]\nname='a'\nthink='5ms'",
                &["--rps", "5"],
                "think",
            ),
        ] {
            fs::write(&file, text).unwrap();
            let file = file.to_str().unwrap();
            let error = plan(&[&["http://127.0.0.1:1", "--scenario", file], args].concat())
                .err()
                .unwrap();
            assert!(
                error.contains("s.toml:4: request a") && error.contains(word),
                "{error}"
            );
        }
    }
}
