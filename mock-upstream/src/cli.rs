//! The command line.

use std::convert::Infallible;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Parser, ValueEnum};

use crate::keys::AuthScheme;

/// A mock third-party API: TLS, HTTP/1.1, a key check like a real provider's, and endpoints that
/// behave well or badly on demand.
///
/// Prints `listening ADDRESS tls|plain` for each listener, `control ADDRESS` if asked for, and
/// then `ready`. Ends on SIGTERM or SIGINT with exit code 0.
#[derive(Clone, Debug, Parser)]
#[command(name = "mock-upstream", version)]
pub struct Options {
    /// Address to listen on; port 0 picks a free one. May be repeated.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    pub listen: Vec<SocketAddr>,

    /// Certificate chain in PEM, leaf first.
    #[arg(long, value_name = "FILE", requires = "key_pem", conflicts_with_all = ["self_signed", "plain"])]
    pub cert: Option<PathBuf>,

    /// Private key of the certificate, in PEM.
    #[arg(
        long = "cert-key",
        visible_alias = "key-pem",
        value_name = "FILE",
        requires = "cert"
    )]
    pub key_pem: Option<PathBuf>,

    /// Make a throw-away CA and certificate in this directory (ca.pem, cert.pem, key.pem) and
    /// print their paths.
    #[arg(long, value_name = "DIR", conflicts_with = "plain")]
    pub self_signed: Option<PathBuf>,

    /// DNS name or IP address in the throw-away certificate. May be repeated.
    #[arg(long = "name", value_name = "NAME", requires = "self_signed")]
    pub names: Vec<String>,

    /// Serve clear text.
    #[arg(long)]
    pub plain: bool,

    /// A key that is accepted (for `--auth basic`: `user:password`). May be repeated.
    #[arg(long = "key", value_name = "VALUE")]
    pub keys: Vec<KeyText>,

    /// A file of keys that are accepted, one a line. May be repeated.
    #[arg(long = "key-file", value_name = "FILE")]
    pub key_files: Vec<PathBuf>,

    /// Where the key must stand: bearer, basic, header:NAME, query:NAME, any, none.
    #[arg(long, value_name = "SCHEME", default_value = "any")]
    pub auth: AuthScheme,

    /// Whose error bodies to answer with (openai, stripe, google, sendgrid, anthropic, github,
    /// generic); by default each personality speaks its own.
    #[arg(long, value_name = "STYLE")]
    pub style: Option<String>,

    /// A file of further personalities, in the format of `src/personalities.json`; they are asked
    /// before the built-in ones. May be repeated.
    #[arg(long = "personalities", value_name = "FILE")]
    pub personalities: Vec<PathBuf>,

    /// Report credentials as they arrived instead of their SHA-256 fingerprints.
    #[arg(long)]
    pub reveal: bool,

    /// Append one JSON line per request to this file.
    #[arg(long, value_name = "FILE")]
    pub record: Option<PathBuf>,

    /// Keep every request byte by byte as it came out of TLS, credentials included: in a FILE of
    /// JSON lines, in a DIRECTORY (one that exists, or ends in `/`), or in `memory` only. The
    /// latest are told by `GET /__records` on the control port.
    #[arg(long, value_name = "WHERE")]
    pub record_raw: Option<PathBuf>,

    /// How long answers take: fixed:20ms, lognormal:median=20ms,sigma=0.5,
    /// bimodal:fast=5ms,slow=200ms,share=0.05 or histogram:FILE[,unit=us]; for a path prefix:
    /// /v1/=MODEL. May be repeated.
    #[arg(long, value_name = "[/PREFIX=]MODEL")]
    pub latency: Vec<String>,

    /// Rate limits, as `PUT /__limits` takes them.
    #[arg(long, value_name = "FILE")]
    pub limits: Option<PathBuf>,

    /// Faults, as `PUT /__faults` takes them.
    #[arg(long, value_name = "FILE")]
    pub faults: Option<PathBuf>,

    /// Seed of latencies and of faults by chance; without it, one is made up. Printed in any case.
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,

    /// Address of the clear-text control port (see the README).
    #[arg(long, value_name = "ADDRESS")]
    pub control: Option<SocketAddr>,

    /// Worker threads, each with its own event loop and accept queue.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub workers: u16,

    /// CPUs to pin the workers to, in turn; without it they are not pinned.
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub cpus: Vec<usize>,

    /// How to wait for I/O: by epoll, whatever is said here (io_uring is refused).
    #[arg(long, value_enum, default_value_t = DriverChoice::Auto)]
    pub driver: DriverChoice,

    /// Close a connection on which nothing has happened for so many seconds; 0: never.
    #[arg(long, value_name = "SECONDS", default_value_t = 75)]
    pub idle_timeout: u32,

    /// Close a connection after so many requests; 0: never.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub requests_per_connection: u64,

    /// Write the lines of standard output to this file too, once everything is ready.
    #[arg(long, value_name = "FILE")]
    pub ready_file: Option<PathBuf>,

    /// End by itself after so many seconds.
    #[arg(long, value_name = "SECONDS")]
    pub max_seconds: Option<u64>,
}

/// A key from the command line, which `Debug` does not show.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyText(String);

impl KeyText {
    /// The key itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl FromStr for KeyText {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(KeyText(text.to_string()))
    }
}

impl fmt::Debug for KeyText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyText(hidden)")
    }
}

/// How the workers wait for I/O. There is one way by now; the option stays for scripts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DriverChoice {
    /// epoll.
    Auto,
    /// Refused.
    #[value(name = "io_uring", alias = "io-uring")]
    IoUring,
    /// epoll.
    Epoll,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn is_consistent() {
        Options::command().debug_assert();
    }

    #[test]
    fn parses_repeated_options() {
        let options = Options::try_parse_from([
            "mock-upstream",
            "--listen=127.0.0.1:0",
            "--listen=[::1]:0",
            "--key=first",
            "--key=second",
            "--auth=header:X-Key",
            "--cpus=0,1",
        ])
        .unwrap();
        assert_eq!(options.listen.len(), 2);
        let keys: Vec<&str> = options.keys.iter().map(KeyText::expose).collect();
        assert_eq!(keys, ["first", "second"]);
        let debug = format!("{options:?}");
        assert!(!debug.contains("first") && debug.contains("hidden"));
        assert_eq!(options.auth, AuthScheme::Header("X-Key".into()));
        assert_eq!(options.cpus, [0, 1]);
    }
}
