//! Options about what is sent, and over which connections.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use crate::find_max::Objective;
use crate::rate::{Course, STEPS_MAX};
use crate::request::{self, Request};
use crate::scenario::{self, BodySpec, Kind, RequestSpec};
use crate::sizes::{self, Sizes};
use crate::target::{CallerLine, StatusSet, Url};

/// The options.
#[derive(Debug, clap::Args)]
pub struct LoadArgs {
    /// Open loop: from one rate evenly to another, over the measured time
    #[arg(long, value_name = "FROM..TO", value_parser = ramp, group = "rate")]
    pub ramp: Option<Course>,

    /// Open loop: one rate after the other, each for the same share of the measured time
    #[arg(long, value_name = "N,N,...", value_parser = steps, group = "rate")]
    pub steps: Option<Course>,

    /// Search the highest rate at which --slo holds: double it until it fails, halve the gap,
    /// confirm with a run of full --duration
    #[arg(long, group = "rate", requires = "slo")]
    pub find_max: bool,

    /// What has to hold, such as 'p99<5ms,errors<0.1%' or 'sse.first_event.p99<50ms'
    #[arg(long, value_name = "CONDITIONS", requires = "find_max", value_parser = Objective::parse)]
    pub slo: Option<Objective>,

    /// What callers do: several weighted requests, from a TOML file (see loadgen/scenarios)
    #[arg(long, value_name = "FILE.toml", conflicts_with_all = ["method", "data", "data_file", "data_size", "kind",
        "expect_status", "expect_body", "expect_body_file", "think"])]
    pub scenario: Option<PathBuf>,

    /// What the one request is
    #[arg(long, value_enum)]
    pub kind: Option<Kind>,

    /// Request body: that many bytes of a fixed pattern, such as 10MiB
    #[arg(long, value_name = "SIZE", value_parser = size, conflicts_with_all = ["data", "data_file"])]
    pub data_size: Option<u64>,

    /// Check bodies byte by byte: the answer must be mock-upstream's pattern, or, where a body is
    /// sent, hold its SHA-256. With --scenario: also where the file says verify = false
    #[arg(long)]
    pub verify: bool,

    /// Closed loop: how long a connection rests between an answer and its next request
    #[arg(long, value_name = "TIME", value_parser = super::duration, conflicts_with = "rate")]
    pub think: Option<Duration>,

    /// Idle connections per target, beside the others: opened before the warm-up, held to the end
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub idle: usize,

    /// Each idle connection sends a request this often; it enters no latency. Default: never
    #[arg(long, value_name = "TIME", value_parser = super::duration, requires = "idle")]
    pub idle_every: Option<Duration>,

    /// Close a connection after this many requests and open another
    #[arg(long, value_name = "N", conflicts_with = "new_connection", value_parser = clap::value_parser!(u64).range(1..))]
    pub requests_per_connection: Option<u64>,

    /// Present this certificate (PEM, with its chain); repeat it, with as many --client-key, and
    /// connections take turns
    #[arg(long = "client-cert", value_name = "FILE")]
    pub client_certs: Vec<PathBuf>,

    /// The private key (PEM) of the --client-cert at the same place
    #[arg(long = "client-key", value_name = "FILE")]
    pub client_keys: Vec<PathBuf>,

    /// Keys, one a line: each connection presents one of them, in turn
    #[arg(long, value_name = "FILE", requires = "caller_header")]
    pub caller_keys: Option<PathBuf>,

    /// The header that carries a caller's key, such as X-Api-Key or 'Authorization: Bearer {}'
    #[arg(long, value_name = "NAME[: TEXT {}]", requires = "caller_keys")]
    pub caller_header: Option<String>,
}

/// What the older options say about the one request of a run without a scenario.
pub struct OneRequest {
    /// `--request`.
    pub method: Option<String>,
    /// `--data`, `--data-file`.
    pub body: Option<Vec<u8>>,
    /// `--expect-status`.
    pub expected_status: Option<StatusSet>,
    /// `--expect-body`, `--expect-body-file`.
    pub expected_body: Option<std::sync::Arc<[u8]>>,
}

impl LoadArgs {
    /// What is sent.
    ///
    /// # Errors
    /// A sentence that names the option or the place in the file, and the cure.
    pub fn specs(&self, one: OneRequest, closed: bool) -> Result<Vec<RequestSpec>, String> {
        if let Some(path) = &self.scenario {
            let specs = scenario::read(path, self.verify)?;
            if !closed && let Some(spec) = specs.iter().find(|spec| !spec.think.is_zero()) {
                return Err(format!(
                    "--scenario {}:{}: request {}: think is for the closed loop; leave it out, or --rps",
                    path.display(),
                    spec.line_of(&["think"]),
                    spec.name
                ));
            }
            return Ok(specs);
        }
        let mut spec = RequestSpec::plain("request".to_owned());
        spec.method = one.method;
        spec.body = match (self.data_size, one.body) {
            (Some(bytes), _) => BodySpec::Sizes(Sizes::Fixed(bytes)),
            (None, Some(body)) if !body.is_empty() => BodySpec::Bytes(body.into()),
            (None, _) => BodySpec::None,
        };
        spec.kind = match (self.kind, self.verify) {
            (Some(kind @ (Kind::Sse | Kind::WebSocket)), true) => {
                return Err(format!(
                    "--verify checks downloads and uploads; leave it out with --kind {}",
                    match kind {
                        Kind::Sse => "sse",
                        _ => "websocket, which always checks its echoes",
                    }
                ));
            }
            (Some(kind), false) => kind,
            (Some(kind @ (Kind::Download | Kind::Upload)), true) => kind,
            (None, false) => Kind::Http,
            (_, true) => match spec.body {
                BodySpec::None => Kind::Download,
                _ => Kind::Upload,
            },
        };
        if one.expected_body.is_some() && spec.kind != Kind::Http {
            return Err(
                "--expect-body names the whole answer; leave it out, or --verify and --kind".into(),
            );
        }
        spec.expected_status = one.expected_status;
        spec.expected_body = one.expected_body;
        spec.think = self.think.unwrap_or_default();
        Ok(vec![spec])
    }

    /// The specs rendered for a target.
    ///
    /// # Errors
    /// As above.
    pub fn requests(
        &self,
        specs: &[RequestSpec],
        url: &Url,
        headers: &[String],
        close: bool,
    ) -> Result<Vec<Request>, String> {
        let render = |spec: &RequestSpec| {
            spec.request(url, headers, close)
                .map_err(|wrong| match &self.scenario {
                    Some(path) => {
                        format!(
                            "--scenario {}:{}: request {}: {}",
                            path.display(),
                            spec.line_of(wrong.keys),
                            spec.name,
                            wrong.text
                        )
                    }
                    None => wrong.text,
                })
        };
        specs.iter().map(render).collect()
    }

    /// The header lines that tell callers apart.
    ///
    /// # Errors
    /// A sentence with the cure; no key is quoted.
    pub fn callers(&self) -> Result<Vec<CallerLine>, String> {
        let (Some(path), Some(header)) = (&self.caller_keys, &self.caller_header) else {
            return Ok(Vec::new());
        };
        let shown = path.display();
        let template = match header.split_once(':') {
            None => format!("{header}: {{}}"),
            Some((_, value)) if value.contains("{}") => header.clone(),
            Some(_) => {
                return Err(
                    "--caller-header: it takes a name, or a name and a text that holds {} for the key"
                        .into(),
                );
            }
        };
        let keys =
            fs::read_to_string(path).map_err(|error| format!("--caller-keys {shown}: {error}"))?;
        let mut lines = Vec::new();
        for (number, key) in keys.lines().enumerate().filter(|(_, key)| !key.is_empty()) {
            let line = template.replacen("{}", key, 1);
            let (name, value) = request::header_line(&line).map_err(|_| {
                format!(
                    "--caller-keys {shown}:{}: this key and --caller-header make no header line; \
                     a key holds no control byte, and a name is a token",
                    number + 1
                )
            })?;
            lines.push(CallerLine(format!("{name}: {value}\r\n").into_bytes()));
        }
        if lines.is_empty() {
            return Err(format!(
                "--caller-keys {shown}: it holds no key; write one a line"
            ));
        }
        Ok(lines)
    }

    /// Certificates and keys, in pairs.
    ///
    /// # Errors
    /// A sentence with the cure.
    pub fn client_pairs(&self) -> Result<Vec<(&PathBuf, &PathBuf)>, String> {
        if self.client_certs.len() != self.client_keys.len() {
            return Err(format!(
                "--client-cert and --client-key come in pairs; there are {} and {}",
                self.client_certs.len(),
                self.client_keys.len()
            ));
        }
        Ok(self.client_certs.iter().zip(&self.client_keys).collect())
    }
}

fn ramp(text: &str) -> Result<Course, String> {
    text.split_once("..")
        .and_then(|(from, to)| Some((rate(from)?, rate(to)?)))
        .filter(|(from, to)| from + to > 0.0)
        .map(|(from, to)| Course::Ramp(from, to))
        .ok_or_else(|| "write two rates per second, such as 100..5000".into())
}

fn steps(text: &str) -> Result<Course, String> {
    let rates: Option<Vec<f64>> = text.split(',').map(rate).collect();
    rates
        .filter(|rates| rates.len() <= STEPS_MAX && rates.iter().all(|&rate| rate > 0.0))
        .map(Course::Steps)
        .ok_or_else(|| {
            format!(
                "write rates per second above zero, such as 1000,2000,5000; at most {STEPS_MAX}"
            )
        })
}

fn rate(text: &str) -> Option<f64> {
    let rate: f64 = text.trim().parse().ok()?;
    (rate.is_finite() && rate >= 0.0).then_some(rate)
}

fn size(text: &str) -> Result<u64, String> {
    sizes::bytes(text).ok_or_else(|| "write a size such as 512, 10KiB or 10MiB".into())
}
