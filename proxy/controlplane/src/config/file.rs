//! [`File`]: what the operator typed, with its places.
//!
//! One `claviger.toml` and the files of `conf.d` beside it are one
//! configuration. Nothing is decided here: no default is filled in, no name is
//! looked up, no secret is read. Reading goes on past every mistake, so that
//! [`check`](super::check) can show all of them at once.
//!
//! The doc comments of the fields are the descriptions in the JSON Schema and
//! in `docs/configuration.md`.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::ops::Range;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::Deserialize;
use serde::de::{DeserializeOwned, IntoDeserializer};
use toml::Spanned;
use toml::de::{DeTable, DeValue, ValueDeserializer};

use super::report::{
    HIDDEN, KEY_IN_THE_OPEN, Place, Problem, Report, Source, nearest, one_of, quote,
};
use super::shape;
use super::written::{OneOrMany, Period, Size, Workers, Written};

/// Files of one configuration. More is an error: a `conf.d` that holds a
/// thousand files for one appliance is a mistake in a mount.
pub const FILES_MAX: usize = 1024;

/// Bytes of one file. More is an error, before anything is parsed.
pub const FILE_BYTES_MAX: u64 = 4 << 20;

/// What the operator typed.
#[derive(Debug)]
pub struct File {
    /// `claviger.toml`, as it was asked for.
    pub path: PathBuf,
    /// `[server]`
    pub server: Option<Item<Server>>,
    /// `[log]`
    pub log: Option<Item<Log>>,
    /// `[dns]`
    pub dns: Option<Item<Dns>>,
    /// `[audit]`
    pub audit: Option<Item<Audit>>,
    /// `[ca]`
    pub ca: Option<Item<Ca>>,
    /// `[acme]`
    pub acme: Option<Item<Acme>>,
    /// `[[listener]]`
    pub listeners: Vec<Item<Listener>>,
    /// `[host.NAME]`
    pub hosts: Vec<Item<Host>>,
    /// `[upstream.NAME]`
    pub upstreams: Vec<Item<Upstream>>,
    /// `[credential.NAME]`
    pub credentials: Vec<Item<Credential>>,
    /// `[caller.NAME]`
    pub callers: Vec<Item<Caller>>,
    /// `[[route]]`
    pub routes: Vec<Item<Route>>,
    /// What could not be read: unknown fields, wrong types, duplicates.
    pub problems: Report,
    sources: Vec<Source>,
}

/// One table of the configuration.
pub struct Item<T> {
    /// Which file it stands in.
    source: usize,
    /// Its header, or its name.
    header: Range<usize>,
    /// The name of a named table.
    pub name: String,
    /// What it says.
    pub fields: T,
    /// Fields that are there but could not be read; they are not missing.
    unread: Vec<String>,
}

// A name may be a key that stands where none belongs.
impl<T: std::fmt::Debug> std::fmt::Debug for Item<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Item")
            .field("name", &quote(&self.name))
            .field("fields", &self.fields)
            .finish_non_exhaustive()
    }
}

impl<T> Item<T> {
    /// Whether a field is there that could not be read.
    pub fn is_unread(&self, field: &str) -> bool {
        self.unread.iter().any(|name| name == field)
    }
}

impl File {
    /// The place of a table.
    pub fn place<T>(&self, item: &Item<T>) -> Place {
        self.sources[item.source].place(item.header.clone())
    }

    /// The place of some bytes within a table.
    pub fn place_of<T>(&self, item: &Item<T>, span: &Range<usize>) -> Place {
        self.sources[item.source].place(span.clone())
    }

    /// The directory that relative paths in a table start from: that of its file.
    pub fn directory<T>(&self, item: &Item<T>) -> &Path {
        self.sources[item.source]
            .path
            .parent()
            .unwrap_or(Path::new(""))
    }

    /// Every file that was read, and every directory whose content matters.
    pub fn watch_paths(&self) -> Vec<PathBuf> {
        let mut paths: Vec<PathBuf> = self
            .sources
            .iter()
            .map(|source| source.path.clone())
            .collect();
        paths.push(conf_d(&self.path));
        paths
    }

    /// Reads a configuration from text alone, under the name of `path`: for
    /// tests, and for tools that hold the text in memory.
    pub fn parse(path: &Path, text: &str) -> Self {
        Self::from_sources(path, vec![Source::new(path, text.to_owned())])
    }

    fn from_sources(path: &Path, sources: Vec<Source>) -> Self {
        let mut reader = Reader::new(path, sources);
        for source in 0..reader.file.sources.len() {
            reader.read(source);
        }
        reader.file.problems.sort();
        reader.file
    }
}

/// Reads `claviger.toml` and `conf.d/*.toml` beside it.
///
/// # Errors
/// A [`Report`] when a file cannot be read or is not TOML. What is wrong within
/// readable TOML is in [`File::problems`], and [`check`](super::check) reports
/// it together with what it finds itself.
pub fn load(path: &Path) -> Result<File, Report> {
    let mut report = Report::default();
    let mut paths = vec![path.to_owned()];
    match drop_ins(&conf_d(path)) {
        Ok(more) => paths.extend(more),
        Err(problem) => report.push(*problem),
    }
    let mut sources = Vec::new();
    for path in &paths {
        match read(path) {
            Ok(text) => sources.push(Source::new(path, text)),
            Err(problem) => report.push(*problem),
        }
    }
    if report.has_errors() {
        return Err(report);
    }
    let file = File::from_sources(path, sources);
    if file.sources.iter().any(Source::is_broken) {
        return Err(file.problems);
    }
    Ok(file)
}

/// Where drop-in files are looked for.
fn conf_d(path: &Path) -> PathBuf {
    path.parent().unwrap_or(Path::new("")).join("conf.d")
}

/// The drop-in files in the order of their names. No directory, no files.
fn drop_ins(directory: &Path) -> Result<Vec<PathBuf>, Box<Problem>> {
    let fail = |error: io::Error| {
        Box::new(
            Problem::error(format!(
                "cannot read the directory {}: {error}",
                directory.display()
            ))
            .cure("let the service user read it, or remove it"),
        )
    };
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(fail(error)),
    };
    refuse_world_writable(directory, &std::fs::metadata(directory).map_err(fail)?)?;
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(fail)?.path();
        let hidden = path
            .file_name()
            .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if !hidden
            && path
                .extension()
                .is_some_and(|extension| extension == "toml")
            && path.is_file()
        {
            paths.push(path);
        }
    }
    if paths.len() > FILES_MAX {
        return Err(Box::new(Problem::error(format!(
            "{} holds {} files; at most {FILES_MAX} are read",
            directory.display(),
            paths.len()
        ))));
    }
    paths.sort();
    Ok(paths)
}

/// Whoever writes the configuration decides where keys go.
fn refuse_world_writable(path: &Path, metadata: &std::fs::Metadata) -> Result<(), Box<Problem>> {
    let mode = metadata.permissions().mode() & 0o7777;
    // In a directory with the sticky bit others' files cannot be replaced, but
    // new ones can be put there.
    if mode & 0o002 == 0 {
        return Ok(());
    }
    Err(Box::new(
        Problem::error(format!(
            "{} may be written by every user of this machine (mode {mode:04o}), who could send keys elsewhere",
            path.display()
        ))
        .cure(format!("run `chmod o-w {}`", path.display())),
    ))
}

fn read(path: &Path) -> Result<String, Box<Problem>> {
    let fail = |error: io::Error| {
        let problem = Problem::error(format!("cannot read {}: {error}", path.display()));
        Box::new(match error.kind() {
            io::ErrorKind::NotFound => {
                problem.cure("create it, or name another file with --config")
            }
            io::ErrorKind::PermissionDenied => problem.cure("let the service user read it"),
            io::ErrorKind::InvalidData => problem.cure("save it as UTF-8"),
            _ => problem,
        })
    };
    let metadata = std::fs::metadata(path).map_err(fail)?;
    refuse_world_writable(path, &metadata)?;
    let bytes = metadata.len();
    if bytes > FILE_BYTES_MAX {
        return Err(Box::new(Problem::error(format!(
            "{} has {bytes} bytes; at most {FILE_BYTES_MAX} are read",
            path.display()
        ))));
    }
    std::fs::read_to_string(path).map_err(fail)
}

// ---- The tables ------------------------------------------------------------

/// The configuration of Claviger: one `claviger.toml` and, beside it, `conf.d/*.toml`.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "claviger.toml")]
// Only its shape is used: by the schema, and for the names of the sections.
#[allow(dead_code)]
pub(super) struct Document {
    /// The process: workers, user, times and bounds towards callers.
    pub server: Option<Server>,
    /// The operational log.
    pub log: Option<Log>,
    /// How the names of upstreams are looked up.
    pub dns: Option<Dns>,
    /// The audit trail.
    pub audit: Option<Audit>,
    /// The internal certificate authority.
    pub ca: Option<Ca>,
    /// Certificates of a public authority, for hosts with `certificate = "acme"`.
    pub acme: Option<Acme>,
    /// Where callers connect. Default: one listener, TLS on `0.0.0.0:443`.
    #[serde(default)]
    pub listener: Vec<Listener>,
    /// Virtual hosts that need more than the defaults. Every host that a route names exists without it.
    #[serde(default)]
    pub host: BTreeMap<String, Host>,
    /// Third-party APIs. A route that names none leads to the host that it serves.
    #[serde(default)]
    pub upstream: BTreeMap<String, Upstream>,
    /// Keys, by reference.
    #[serde(default)]
    pub credential: BTreeMap<String, Credential>,
    /// Callers that are known by name, and what they have to show.
    #[serde(default)]
    pub caller: BTreeMap<String, Caller>,
    /// Which requests, to where, with which key.
    #[serde(default)]
    pub route: Vec<Route>,
}

/// The process: workers, user, times and bounds towards callers.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Server {
    /// Worker threads, one per core: a number, or `"auto"` for every core that the process may use. Default: `"auto"`. Restart to change.
    pub workers: Option<Written<Workers>>,
    /// The cores that workers are pinned to, by number. Default: all that the process may use. Restart to change.
    pub cpus: Option<Written<Vec<usize>>>,
    /// How workers wait for the kernel: `"io_uring"`, `"epoll"`, or `"auto"` for io_uring where it works, and for epoll if `busy_poll_us` is set. Default: `"auto"`. Restart to change.
    pub driver: Option<Written<Driver>>,
    /// For how many microseconds a worker that has nothing to do looks for events before it sleeps: lower latency for more CPU, up to a whole core per worker. On the epoll driver only. Default: `0`. Restart to change.
    pub busy_poll_us: Option<Written<u64>>,
    /// The user that the process becomes before it listens. Default: the one that started it. Restart to change.
    pub user: Option<Written<String>>,
    /// The group that the process becomes before it listens. Default: the primary group of `user`. Restart to change.
    pub group: Option<Written<String>>,
    /// Where state is kept. Default: `"/var/lib/claviger"`. Restart to change.
    pub state_dir: Option<Written<String>>,
    /// Whether memory is locked so that keys never reach swap: `"try"` warns when the kernel refuses, `"require"` does not start then, `"off"` does not ask. Default: `"try"`. Restart to change.
    pub memory_lock: Option<Written<MemoryLock>>,
    /// For the TLS handshake of a caller. Past it the connection is closed. Default: `"10s"`.
    pub handshake_timeout: Option<Written<Period>>,
    /// From the first byte of a request head to its end. Past it the answer is 408 and the connection is closed. Default: `"15s"`.
    pub head_timeout: Option<Written<Period>>,
    /// Between two requests on a kept-alive connection. Past it the connection is closed. Default: `"75s"`.
    pub idle_timeout: Option<Written<Period>>,
    /// Between two reads of a request body, and for each write to the caller. Past it the exchange is cut. Default: `"60s"`.
    pub read_timeout: Option<Written<Period>>,
    /// Bytes per second at which a request body must come in, on average, once `head_timeout` has been spent waiting for it; `0` for any rate. Below it the exchange is cut. Default: `240`.
    pub body_rate_min: Option<Written<u64>>,
    /// How long SIGTERM waits for exchanges in flight. Past it they are cut. Default: `"30s"`.
    pub drain_timeout: Option<Written<Period>>,
    /// Callers' connections at once, per worker. Past it a caller that keeps the core waiting makes room for a new one; without any, the new one is closed. Default: `16384`.
    pub connections_max: Option<Written<u64>>,
    /// Requests under way at once, per worker, upgraded connections among them. Past it the answer is 503 with `Retry-After`; one address gets seven eighths of it at most. Default: `8192`.
    pub exchanges_max: Option<Written<u64>>,
    /// Size of a request head. Past it the answer is 431. Default: `"32KiB"`.
    pub head_bytes_max: Option<Written<Size>>,
    /// Fields of a request head. Past it the answer is 431. Default: `128`.
    pub fields_max: Option<Written<u64>>,
}

/// How workers wait for the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Driver {
    /// io_uring where it works, epoll elsewhere and for busy polling.
    Auto,
    /// io_uring, or a refusal to start.
    IoUring,
    /// epoll.
    Epoll,
}

/// Whether memory is locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum MemoryLock {
    /// Ask, and warn when the kernel refuses.
    Try,
    /// Ask, and do not start when the kernel refuses.
    Require,
    /// Do not ask.
    Off,
}

/// The operational log, on standard error.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Log {
    /// The least level that is logged. Default: `"info"`.
    pub level: Option<Written<LogLevel>>,
    /// `"text"`, `"json"`, or `"auto"` for text on a terminal and JSON elsewhere. Default: `"auto"`. Restart to change.
    pub format: Option<Written<LogFormat>>,
    /// How often a line with the state of the process is logged; `"0s"` never. Default: `"60s"`.
    pub status_interval: Option<Written<Period>>,
}

/// How much is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum LogLevel {
    /// Only what keeps something from working.
    Error,
    /// And what should be looked at.
    Warn,
    /// And what an operator wants to know of an ordinary day.
    Info,
    /// And what helps to find a fault.
    Debug,
    /// Everything.
    Trace,
}

/// How the log looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum LogFormat {
    /// Text on a terminal, JSON elsewhere.
    Auto,
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// How the names of upstreams are looked up. Claviger asks these resolvers alone and never the machine's own, which lead the services' names to Claviger itself.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Dns {
    /// Resolvers: an address, a port if it is not the usual one, and `#NAME` where `protocol` is `"tls"`, as in `"8.8.8.8#dns.google"`. Default: `["8.8.8.8", "1.1.1.1"]`, with their names where TLS asks for them.
    pub servers: Option<Written<Vec<Written<String>>>>,
    /// `"udp"` (and TCP for long answers) or `"tls"` (RFC 7858). Default: `"udp"`.
    pub protocol: Option<Written<DnsProtocol>>,
    /// An answer is kept at least this long, however short its own TTL. Default: `"5s"`.
    pub ttl_min: Option<Written<Period>>,
    /// An answer is kept at most this long, however long its own TTL. Default: `"1h"`.
    pub ttl_max: Option<Written<Period>>,
    /// How long the last good answer is used when no resolver answers. Past it requests for the upstream are answered 503. Default: `"24h"`.
    pub stale_max: Option<Written<Period>>,
    /// For one question to one resolver. Past it the next one is asked. Default: `"2s"`.
    pub timeout: Option<Written<Period>>,
}

/// How resolvers are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum DnsProtocol {
    /// UDP, and TCP for long answers.
    Udp,
    /// DNS over TLS.
    Tls,
}

/// The audit trail: one JSON object per line and exchange.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Audit {
    /// The file. Default: `"/var/log/claviger/audit.ndjson"`. Restart to change.
    pub path: Option<Written<String>>,
    /// The size at which the file is rotated. Restart to change. Default: `"100MiB"`.
    pub rotate_bytes: Option<Written<Size>>,
    /// Rotated files that are kept. Past it the oldest one is removed. Restart to change. Default: `10`.
    pub keep: Option<Written<u64>>,
}

/// The internal certificate authority that `claviger ca init` makes.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Ca {
    /// Its directory. Default: `ca` within `state_dir`.
    pub directory: Option<Written<String>>,
    /// Where the passphrase is read from that its private keys are encrypted under (`claviger ca encrypt`): `"file:///path"`, `"env://NAME"` or `"credential://NAME"`. Default: they are not encrypted.
    pub passphrase: Option<Written<String>>,
    /// How long its certificates for hosts live. They are made anew, in memory, after two thirds of it. Default: `"30d"`.
    pub leaf_lifetime: Option<Written<Period>>,
}

/// Certificates of a public authority by ACME (RFC 8555), for hosts with `certificate = "acme"`: obtained and renewed while Claviger serves.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Acme {
    /// Whether you agree to the authority's terms of service: `true`. Required.
    pub terms_agreed: Option<Written<bool>>,
    /// How the authority is shown that a host is yours: `"dns-01"` by a record that `hook` writes (needs no opening towards here, and is the only way to a wildcard), `"http-01"` by an answer at port 80, `"tls-alpn-01"` by a handshake at port 443. Required.
    pub challenge: Option<Written<AcmeChallenge>>,
    /// The authority's directory. Default: `"https://acme-v02.api.letsencrypt.org/directory"`.
    pub directory: Option<Written<String>>,
    /// Where the authority may write to, as in `"mailto:ops@example.com"`; one or a list. Default: nowhere.
    pub contact: Option<OneOrMany>,
    /// A PEM file with the roots that the authority's own server is verified by, in place of the system's.
    pub ca_file: Option<Written<String>>,
    /// For `"dns-01"`: the program that writes records, by its absolute path, and its first arguments. It is called with `present NAME VALUE` or `cleanup NAME VALUE` behind them.
    pub hook: Option<OneOrMany>,
    /// How long one call of `hook` may take. Past it it is killed. Default: `"60s"`.
    pub hook_timeout: Option<Written<Period>>,
    /// For `"dns-01"`: who must know a record before the authority is told, best the zone's own name servers: addresses as in `[dns] servers`; one or a list. Default: the resolvers of `[dns]`.
    pub resolvers: Option<OneOrMany>,
    /// How long that may take. Past it the attempt has failed. Default: `"5m"`.
    pub propagation_timeout: Option<Written<Period>>,
    /// For `"http-01"`: where challenges are answered, and nothing else; one or a list. Default: `"0.0.0.0:80"`.
    pub http_listen: Option<OneOrMany>,
    /// The identifier of an account elsewhere that the authority wants this one bound to.
    pub eab_key_id: Option<Written<String>>,
    /// Where that account's key (base64url) is read from: `"file:///path"`, `"env://NAME"` or `"credential://NAME"`.
    pub eab_key: Option<Written<String>>,
}

/// How an authority is shown that a host is ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum AcmeChallenge {
    /// A record in the zone.
    #[serde(rename = "dns-01")]
    Dns,
    /// An answer over HTTP.
    #[serde(rename = "http-01")]
    Http,
    /// A TLS handshake.
    #[serde(rename = "tls-alpn-01")]
    TlsAlpn,
}

/// Where callers connect.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Listener {
    /// Its name on the audit trail and in the log. Default: its first address.
    pub name: Option<Written<String>>,
    /// Address and port, as in `"0.0.0.0:443"` or `"[::]:443"`; one or a list. Required.
    pub address: Option<OneOrMany>,
    /// `false` serves clear text: keys are still written, and callers' requests travel unprotected. It must be written. Default: `true`.
    pub tls: Option<Written<bool>>,
    /// Load balancers in front of this listener, by network as in `["10.0.0.4/32"]`: from them a connection begins with a PROXY protocol header (version 1 or 2), which says where the caller is, and without one it is closed. From elsewhere no such header is accepted. Default: none.
    pub proxy_protocol: Option<OneOrMany>,
    /// What a handshake without a known server name gets: `"refuse"`, or the certificate of this host. Default: `"refuse"`.
    pub unknown_sni: Option<Written<String>>,
}

/// A virtual host that needs more than the defaults.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Host {
    /// `"ca"` for a certificate of the internal CA, `"acme"` for one of the authority in `[acme]`, or a PEM file with a chain, as `"file:///path"`; a list serves several key types. Default: `"ca"`.
    pub certificate: Option<OneOrMany>,
    /// The PEM file with the private key, as `"file:///path"`; a list beside a list of certificates, in the same order.
    pub private_key: Option<OneOrMany>,
    /// Whether a private key that everybody on the machine may read is accepted, as Kubernetes mounts them. Default: `false`.
    pub allow_world_readable: Option<Written<bool>>,
    /// A PEM file with the CAs whose client certificates are accepted. Default: none is asked for.
    pub client_ca: Option<Written<String>>,
    /// Whether a caller must show a certificate of `client_ca`: `"require"` refuses it in the handshake without one, `"request"` leaves it to the routes' `callers`. A certificate that is shown must be good in each case. Default: `"require"`.
    pub client_certificate: Option<Written<ClientCertificate>>,
    /// PEM or DER files with the revocation lists of the CAs in `client_ca`; one or a list. Each issuer of a certificate that is shown must have one that is not out of date. Default: nothing is looked up.
    pub client_crl: Option<OneOrMany>,
    /// Edges that bring requests for other hosts here, by the names of their `[caller.NAME]`, each of which needs a `token` or a `certificate`. A route serves those that its `callers` name. Default: none.
    pub edges: Option<OneOrMany>,
    /// The listeners that serve this host, by name. Default: all.
    pub listeners: Option<Written<Vec<Written<String>>>>,
}

/// Whether a caller must show a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum ClientCertificate {
    /// It must.
    Require,
    /// It may.
    Request,
}

/// A third-party API.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Upstream {
    /// Its host name, without a scheme. Default: the name of the section, if that is a host name.
    pub host: Option<Written<String>>,
    /// Its port. Default: `443`.
    pub port: Option<Written<u16>>,
    /// Addresses with ports that are used in place of a look-up, as in `["192.0.2.7:443"]`. A loopback or private address is possible here, since it is written.
    pub addresses: Option<Written<Vec<Written<String>>>>,
    /// The name that its certificate must be good for, and the SNI. Default: `host`.
    pub tls_name: Option<Written<String>>,
    /// A PEM file with the roots that are trusted in place of the system's.
    pub ca_file: Option<Written<String>>,
    /// Whether a look-up may lead to private addresses. Default: `false`.
    pub allow_private: Option<Written<bool>>,
    /// A PEM file with the chain of a client certificate that is shown to it. Default: none.
    pub client_certificate: Option<Written<String>>,
    /// The PEM file with that certificate's private key.
    pub client_key: Option<Written<String>>,
    /// Whether this is a hub: another Claviger, which holds the keys. Routes that lead there have no `credential`. Default: `false`.
    pub hub: Option<Written<bool>>,
    /// Where the token is read from that is shown to a hub: `"file:///path"`, `"env://NAME"` or `"credential://NAME"`. Default: none.
    pub token: Option<Written<String>>,
    /// Whether a `client_key` or `token` file that everybody on the machine may read is accepted, as Kubernetes mounts them. Default: `false`.
    pub allow_world_readable: Option<Written<bool>>,
    /// For TCP and the TLS handshake together, over all addresses. Past it the answer is 504; of a hub 503. Default: `"10s"`; of a hub `"2s"`.
    pub connect_timeout: Option<Written<Period>>,
    /// From the end of a request to the end of the response head. Past it the answer is 504. Default: `"60s"`, or the preset's; of a hub `"15m"`, since it keeps the time itself.
    pub response_head_timeout: Option<Written<Period>>,
    /// Between two reads of a response body. Past it the exchange is cut. Default: `"60s"`, or the preset's; of a hub `"15m"`.
    pub read_timeout: Option<Written<Period>>,
    /// Connections at once, per worker. Past it requests wait for one. Default: `1024`.
    pub connections_max: Option<Written<u64>>,
    /// Requests that wait for a connection at once, per worker; callers (addresses) are served in turn. Past it the caller with most of them waiting is answered 503 with `Retry-After`. Default: `256`.
    pub queue_max: Option<Written<u64>>,
    /// How long a request waits for a connection. Past it the answer is 503 with `Retry-After`. Default: `"1s"`.
    pub queue_timeout: Option<Written<Period>>,
    /// Idle connections that are kept, per worker. Past it the oldest one is closed. Default: `128`.
    pub idle_max: Option<Written<u64>>,
    /// Idle connections that are kept warm while the upstream is in use, per worker. Default: `1`.
    pub idle_min: Option<Written<u64>>,
    /// How long an idle connection is kept. Past it it is closed. Default: `"50s"`.
    pub idle_timeout: Option<Written<Period>>,
    /// How old a connection may grow. Past it it carries no further request. Default: `"1h"`.
    pub age_max: Option<Written<Period>>,
}

/// A key, by reference, and how it is written.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Credential {
    /// Where the key is read from: `"file:///path"`, `"env://NAME"`, or `"credential://NAME"` for systemd's `$CREDENTIALS_DIRECTORY`. Never the key itself. Required.
    pub source: Option<Written<String>>,
    /// How it is written: `"bearer"`, `"basic"`, `"header"` or `"query"`. Default: as the route's preset says; `"bearer"` without one.
    pub inject: Option<Written<Inject>>,
    /// The header for `"header"`, the parameter for `"query"`.
    pub name: Option<Written<String>>,
    /// The header's value, with `{key}` once. Default: `"{key}"`.
    pub template: Option<Written<String>>,
    /// The user name for `"basic"`. Without it the secret itself is `user:password`.
    pub username: Option<Written<String>>,
    /// Whether a key file that everybody on the machine may read is accepted, as Kubernetes mounts them. Default: `false`.
    pub allow_world_readable: Option<Written<bool>>,
}

/// How a key is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Inject {
    /// `Authorization: Bearer KEY`
    Bearer,
    /// `Authorization: Basic base64(user:KEY)`
    Basic,
    /// A header of the provider's own.
    Header,
    /// A query parameter.
    Query,
}

/// A caller that is known by name, and what it has to show.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Caller {
    /// Where it calls from, as in `["203.0.113.7/32"]`; one or a list. Default: from anywhere.
    pub networks: Option<OneOrMany>,
    /// Where a token is read from that it may show: `"file:///path"`, `"env://NAME"` or `"credential://NAME"`; one or a list, all of which are valid at once. It shows it in a field `Claviger-Token`, or in any place where the API's key could stand, which a service fills in anyway. Default: it needs none.
    pub token: Option<OneOrMany>,
    /// Names of which its client certificate must have one: a host name (dNSName), or a URI such as `"spiffe://example.com/edge"`; one or a list. The host needs `client_ca`. Default: it needs none.
    pub certificate: Option<OneOrMany>,
    /// Whether it needs `"all"` kinds of proof that are listed (network, token, certificate), or `"any"` of them. Default: `"all"`.
    pub require: Option<Written<Require>>,
    /// Whether a token file that everybody on the machine may read is accepted, as Kubernetes mounts them. Default: `false`.
    pub allow_world_readable: Option<Written<bool>>,
}

/// How kinds of proof combine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Require {
    /// Each that is listed.
    All,
    /// One of them.
    Any,
}

/// Which requests, to where, with which key.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// Its name on the audit trail and in metrics. Default: the preset's name, or host and path.
    pub name: Option<Written<String>>,
    /// A well-known provider (see docs/presets.md): gives hosts, upstreams, how the key is written, what is stripped, times and refused endpoints. Each can be overridden.
    pub preset: Option<Written<String>>,
    /// The host that callers ask for; one or a list, `*.example.com` possible. Default: the preset's hosts.
    pub host: Option<OneOrMany>,
    /// Serves this path and what lies under it; the longest one wins. Default: `"/"`, or the preset's.
    pub path: Option<Written<String>>,
    /// The methods that are served. Default: all but TRACE, TRACK and CONNECT, which are never served.
    pub methods: Option<Written<Vec<Written<String>>>>,
    /// The `[upstream.NAME]` that it leads to, or a list of hubs, of which the first one that is in reach is used. Default: the host itself, port 443.
    pub upstream: Option<OneOrMany>,
    /// What takes the place of `path` towards the upstream. Default: the path stays as it is; with a preset under another host, the preset's own path.
    pub upstream_path: Option<Written<String>>,
    /// The `[credential.NAME]`, or a reference such as `"file:///path"`, or `"none"` to strip and write nothing. Required, unless the upstream is a hub.
    pub credential: Option<Written<String>>,
    /// Who may use it: `"open"` for loopback and private peers, networks as in `"10.0.0.0/8"`, names of `[caller.NAME]`; one or a list, of which one has to match. Default: `"open"`.
    pub callers: Option<OneOrMany>,
    /// Networks that may not use it, whatever `callers` says; one or a list. Default: none.
    pub denied: Option<OneOrMany>,
    /// Further headers that are removed from callers' requests.
    pub strip_headers: Option<Written<Vec<Written<String>>>>,
    /// Further query parameters that are removed from callers' requests.
    pub strip_query: Option<Written<Vec<Written<String>>>>,
    /// Query parameters that stay although a list would remove them.
    pub keep_query: Option<Written<Vec<Written<String>>>>,
    /// Whether callers' cookies are removed. Default: `false`.
    pub strip_cookies: Option<Written<bool>>,
    /// Which fields tell the upstream where a request came from: some of `"x-forwarded-for"`, `"x-forwarded-proto"`, `"x-forwarded-host"`, `"forwarded"` (RFC 7239) and `"via"`. What callers put into them is removed, whether they are listed or not. Default: none of them.
    pub forwarded: Option<Written<Vec<Written<String>>>>,
    /// Proxies in front, as networks, whose own values in the fields of `forwarded` are kept, before what is added. Default: none.
    pub forwarded_trust: Option<Written<Vec<Written<String>>>>,
    /// Headers that are removed from answers, such as `"set-cookie"`, `"strict-transport-security"` or `"location"`, which pass otherwise. Alt-Svc is removed in any case. Default: none.
    pub strip_response_headers: Option<Written<Vec<Written<String>>>>,
    /// Protocols that a connection may be upgraded to. Default: `["websocket"]`.
    pub upgrades: Option<Written<Vec<Written<String>>>>,
    /// Whether the provider's endpoints that read or make keys are served. Default: `false`.
    pub allow_key_management: Option<Written<bool>>,
    /// `"required"`: without a place on the audit trail the answer is 503 and the key is not used. `"best-effort"`: a record may be lost, which is counted. Default: `"best-effort"`.
    pub audit: Option<Written<AuditMode>>,
    /// Whether a POST or PATCH with an `Idempotency-Key` is sent again, as a GET is, where a re-used connection was closed before an answer. Only for an upstream that honours that header. Default: `false`.
    pub retry_with_idempotency_key: Option<Written<bool>>,
    /// What becomes of an answer that contains the key: `"redact"` overwrites the key, `"block"` answers 502 or cuts what is under way, `"report"` passes it on. It is counted and recorded in each case. Default: `"redact"`.
    pub on_echo: Option<Written<OnEcho>>,
    /// What becomes of an answer whose body cannot be searched for the key (a coding that is not known or that lies, a part of a coded body): `"refuse"` answers 502 or cuts what is under way, `"mark"` passes it on. It is counted and recorded in each case. Default: `"refuse"`; with `on_echo = "report"`, which refuses nothing, `"mark"`.
    pub on_uninspected: Option<Written<OnUninspected>>,
    /// The largest request body. Past it the answer is 413. Default: `"unlimited"`.
    pub body_bytes_max: Option<Written<Size>>,
    /// From the end of a request to the end of the response head. Past it the answer is 504. Default: the upstream's.
    pub response_head_timeout: Option<Written<Period>>,
}

/// Whether an exchange needs a place on the audit trail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(inline)]
pub enum AuditMode {
    /// It does.
    Required,
    /// It does not; losses are counted.
    BestEffort,
}

/// What becomes of an answer that contains the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(inline)]
pub enum OnEcho {
    /// The key is overwritten.
    Redact,
    /// The answer is refused or cut.
    Block,
    /// The answer passes as it is.
    Report,
}

/// What becomes of an answer that cannot be searched for the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(inline)]
pub enum OnUninspected {
    /// The answer is refused or cut.
    Refuse,
    /// The answer passes, and its record says so.
    Mark,
}

// ---- Reading ---------------------------------------------------------------

/// Fields whose value is never shown, whatever it is.
const HIDDEN_FIELDS: [&str; 5] = ["source", "credential", "token", "passphrase", "eab_key"];

/// Reads one source after the other into one [`File`].
struct Reader {
    file: File,
    /// Where a section, or a name within one, was first seen.
    seen: HashMap<String, Place>,
}

impl Reader {
    fn new(path: &Path, sources: Vec<Source>) -> Self {
        Self {
            file: File {
                path: path.to_owned(),
                server: None,
                log: None,
                dns: None,
                audit: None,
                ca: None,
                acme: None,
                listeners: Vec::new(),
                hosts: Vec::new(),
                upstreams: Vec::new(),
                credentials: Vec::new(),
                callers: Vec::new(),
                routes: Vec::new(),
                problems: Report::default(),
                sources,
            },
            seen: HashMap::new(),
        }
    }

    fn read(&mut self, source: usize) {
        let text = self.file.sources[source].text().to_owned();
        let (root, errors) = DeTable::parse_recoverable(&text);
        if !errors.is_empty() {
            self.file.sources[source].set_broken();
            for error in errors {
                // The parser's messages are fixed sentences; they quote nothing.
                let place = self.file.sources[source].place(error.span().unwrap_or(0..0));
                let problem = Problem::error(format!("not TOML: {}", error.message())).at(place);
                self.file.problems.push(match error.message() {
                    "duplicate key" => problem.cure("the name is there twice: keep one of them"),
                    "string values must be quoted, expected literal string" => {
                        problem.cure("put the value in quotes")
                    }
                    _ => problem,
                });
            }
            return;
        }
        let root = root.into_inner();
        for span in hide_keys(&root, &mut self.file.sources[source]) {
            let place = self.file.sources[source].place(span);
            self.file.problems.push(key_in_the_open(place));
        }
        // In the order of the text: `DeTable` sorts by name.
        let mut sections: Vec<_> = root.into_iter().collect();
        sections.sort_by_key(|(key, _)| key.span().start);
        for (key, value) in sections {
            self.section(source, key, value);
        }
    }

    fn section(&mut self, source: usize, key: Spanned<Cow<'_, str>>, value: Spanned<DeValue<'_>>) {
        let name = key.get_ref().to_string();
        macro_rules! single {
            ($field:ident) => {{
                let place = self.file.sources[source].place(key.span());
                if self.is_new(&name, &format!("[{name}]"), place)
                    && let Some(item) = self.table(source, &name, String::new(), key.span(), value)
                {
                    self.file.$field = Some(item);
                }
            }};
        }
        macro_rules! many {
            ($field:ident) => {{
                let items = self.tables(source, &name, key.span(), value);
                self.file.$field.extend(items);
            }};
        }
        macro_rules! named {
            ($field:ident) => {{
                let items = self.named_tables(source, &name, key.span(), value);
                self.file.$field.extend(items);
            }};
        }
        match &*name {
            "server" => single!(server),
            "log" => single!(log),
            "dns" => single!(dns),
            "audit" => single!(audit),
            "ca" => single!(ca),
            "acme" => single!(acme),
            "listener" => many!(listeners),
            "route" => many!(routes),
            "host" => named!(hosts),
            "caller" => named!(callers),
            "upstream" => named!(upstreams),
            "credential" => named!(credentials),
            _ => {
                let known = fields_of::<Document>();
                // `[[routes]]` and `[hosts.x]` are the usual slips.
                let shown = self.unknown(source, &key);
                let place = self.file.sources[source].place(key.span());
                self.file.problems.push(
                    Problem::error(format!("unknown section {shown}"))
                        .at(place)
                        .expected(one_of(known.iter().copied()))
                        .meant(&name, known.iter().copied()),
                );
            }
        }
    }

    /// An unknown name, fit to be shown.
    fn unknown(&mut self, source: usize, key: &Spanned<Cow<'_, str>>) -> String {
        if shape::may_be_key(key.get_ref()) {
            self.file.sources[source].hide(key.span());
            return format!("`{HIDDEN}`");
        }
        quote(key.get_ref())
    }

    /// Whether this is the first of its name; if not, a problem that names both places.
    fn is_new(&mut self, id: &str, shown: &str, place: Place) -> bool {
        if let Some(earlier) = self.seen.get(id) {
            self.file.problems.push(
                Problem::error(format!("{shown} is there twice"))
                    .at(place)
                    .also("first here:", earlier.clone())
                    .cure("keep one of them"),
            );
            return false;
        }
        self.seen.insert(id.to_owned(), place);
        true
    }

    /// `[[listener]]`, `[[route]]`
    fn tables<T: DeserializeOwned>(
        &mut self,
        source: usize,
        section: &str,
        key: Range<usize>,
        value: Spanned<DeValue<'_>>,
    ) -> Vec<Item<T>> {
        let values = match value.into_inner() {
            DeValue::Array(values) => values,
            other => {
                let problem = Problem::error(format!("`{section}` is {}", kind(&other)))
                    .at(self.file.sources[source].place(key))
                    .expected("a list of tables")
                    .cure(format!(
                        "write [[{section}]] with two brackets for each one"
                    ));
                self.file.problems.push(problem);
                return Vec::new();
            }
        };
        values
            .into_iter()
            .filter_map(|value| {
                let span = value.span();
                self.table(source, section, String::new(), span, value)
            })
            .collect()
    }

    /// `[host.NAME]`, `[upstream.NAME]`, `[credential.NAME]`
    fn named_tables<T: DeserializeOwned>(
        &mut self,
        source: usize,
        section: &str,
        key: Range<usize>,
        value: Spanned<DeValue<'_>>,
    ) -> Vec<Item<T>> {
        let values = match value.into_inner() {
            DeValue::Table(values) => values,
            other => {
                let problem = Problem::error(format!("`{section}` is {}", kind(&other)))
                    .at(self.file.sources[source].place(key))
                    .expected("tables with a name")
                    .cure(format!(
                        "write [{section}.NAME] with one bracket and a name"
                    ));
                self.file.problems.push(problem);
                return Vec::new();
            }
        };
        let mut entries: Vec<_> = values.into_iter().collect();
        entries.sort_by_key(|(key, _)| key.span().start);
        let mut items = Vec::new();
        for (key, value) in entries {
            let name = key.get_ref().to_string();
            let place = self.file.sources[source].place(key.span());
            if self.is_new(
                &format!("{section}.{name}"),
                &format!("[{section}.{}]", quote(&name).trim_matches('`')),
                place,
            ) && let Some(item) = self.table(source, section, name, key.span(), value)
            {
                items.push(item);
            }
        }
        items
    }

    /// Reads one table past all its mistakes: what cannot be read is reported,
    /// taken out, and the rest is read again.
    fn table<T: DeserializeOwned>(
        &mut self,
        source: usize,
        section: &str,
        name: String,
        header: Range<usize>,
        value: Spanned<DeValue<'_>>,
    ) -> Option<Item<T>> {
        let span = value.span();
        let mut table = match value.into_inner() {
            DeValue::Table(table) => table,
            other => {
                let place = self.file.sources[source].place(header);
                self.file.problems.push(if name.is_empty() {
                    Problem::error(format!("`{section}` is {}", kind(&other)))
                        .at(place)
                        .expected("a table")
                        .cure(format!("write [{section}] on a line of its own"))
                } else {
                    Problem::error(format!("[{section}] has no fields of its own"))
                        .at(place)
                        .expected("tables with a name")
                        .cure(format!("write [{section}.NAME], and the fields below it"))
                });
                return None;
            }
        };
        let shown = match section {
            "listener" | "route" => format!("[[{section}]]"),
            _ if name.is_empty() => format!("[{section}]"),
            _ => format!("[{section}.{}]", quote(&name).trim_matches('`')),
        };
        let known = fields_of::<T>();
        let unknown: Vec<_> = table
            .keys()
            .filter(|key| !known.contains(&&**key.get_ref()))
            .cloned()
            .collect();
        for key in unknown {
            if let Some((key, value)) = table.remove_entry(&key) {
                let near = nearest(key.get_ref(), known.iter().copied());
                let harmless = near.is_some_and(|near| !HIDDEN_FIELDS.contains(&near));
                if !harmless || looks_like_secret_field(key.get_ref()) {
                    hide_all(&value, &mut self.file.sources[source]);
                }
                let mut problem = Problem::error(format!(
                    "unknown field {} in {shown}",
                    self.unknown(source, &key)
                ))
                .at(self.file.sources[source].place(key.span()))
                .meant(key.get_ref(), known.iter().copied());
                if problem.meant.is_none() {
                    problem = problem.expected(one_of(known.iter().copied()));
                }
                if matches!(section, "credential" | "caller" | "route")
                    && looks_like_secret_field(key.get_ref())
                {
                    problem = problem.cure(
                        "keys are not written into the configuration: put the key into a file that only the service user may read, and name the file, as in \"file:///etc/claviger/keys/NAME\"",
                    );
                }
                self.file.problems.push(problem);
            }
        }
        let mut unread = Vec::new();
        // Each turn takes one field out, so it ends.
        loop {
            let again = Spanned::new(span.clone(), DeValue::Table(table.clone()));
            let error = match T::deserialize(ValueDeserializer::from(again)) {
                Ok(fields) => {
                    return Some(Item {
                        source,
                        header,
                        name,
                        fields,
                        unread,
                    });
                }
                Err(error) => error,
            };
            let at = error.span().unwrap_or_else(|| span.clone());
            let culprit = table
                .iter()
                .find(|(_, value)| value.span().start <= at.start && at.end <= value.span().end)
                .map(|(key, _)| key.clone());
            let Some((key, value)) = culprit.and_then(|key| table.remove_entry(&key)) else {
                self.file.problems.push(
                    Problem::error(format!("{shown} cannot be read"))
                        .at(self.file.sources[source].place(header)),
                );
                return None;
            };
            let place = self.file.sources[source].place(at.clone());
            let message = match error.message() {
                // toml's word for "not a string where one of several words belongs".
                message if message.starts_with("wanted ") => words_of::<T>(key.get_ref()),
                message => message.to_owned(),
            };
            self.file
                .problems
                .push(wrong_value(key.get_ref(), value.get_ref(), &at, &message).at(place));
            unread.push(key.get_ref().to_string());
        }
    }
}

/// A key where none belongs.
pub(super) fn key_in_the_open(place: Place) -> Problem {
    Problem::error(KEY_IN_THE_OPEN)
        .at(place)
        .cure("put the key into a file that only the service may read, refer to it as \"file:///path\" in a credential, and replace the key: whoever has read this file knows it")
}

/// What serde says of a value, in our words and without the value.
fn wrong_value(field: &str, value: &DeValue<'_>, at: &Range<usize>, message: &str) -> Problem {
    let expected = message
        .rsplit_once("expected ")
        .map(|(_, expected)| expected.trim());
    let found = innermost(value, at);
    if message.starts_with("unknown variant") && matches!(found, DeValue::String(_)) {
        // "expected one of `a`, `b`", "expected `a` or `b`": our own words.
        let words: Vec<&str> = expected
            .unwrap_or_default()
            .split('`')
            .skip(1)
            .step_by(2)
            .collect();
        let typed = match found {
            DeValue::String(text) => text.to_string(),
            _ => String::new(),
        };
        let mut problem = Problem::error(format!("{} is not a value of `{field}`", quote(&typed)))
            .expected(one_of(words.iter().copied()));
        problem.meant = nearest(&typed, words.iter().copied()).map(quote);
        return problem;
    }
    let entry = if std::ptr::eq(found, value) {
        ""
    } else {
        "an entry of "
    };
    let is_kind = ["invalid type", "invalid value", "unknown variant"];
    let problem = if is_kind.iter().any(|begin| message.starts_with(begin)) {
        Problem::error(format!("{entry}`{field}` is {}", kind(found)))
    } else {
        let sentence = message.split(", expected ").next().unwrap_or_default();
        Problem::error(format!("{entry}`{field}`: {sentence}"))
    };
    match expected {
        Some(expected) => problem.expected(match expected.trim_start_matches("one of ") {
            "a string" => "a string, in quotes".to_owned(),
            "a boolean" => "true or false".to_owned(),
            "a sequence" => "a list, as in [\"a\", \"b\"]".to_owned(),
            "u16" => "a number from 0 to 65535".to_owned(),
            "u64" | "usize" => "a number from 0".to_owned(),
            other => other.to_owned(),
        }),
        None => problem,
    }
}

/// The element of a list that the span is about, or the value itself.
fn innermost<'a, 'i>(value: &'a DeValue<'i>, at: &Range<usize>) -> &'a DeValue<'i> {
    match value {
        DeValue::Array(values) => values
            .iter()
            .find(|value| value.span() == *at)
            .map_or(value, |value| value.get_ref()),
        _ => value,
    }
}

fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a number",
        DeValue::Float(_) => "a number with a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

fn looks_like_secret_field(field: &str) -> bool {
    let field = field.to_ascii_lowercase();
    ["key", "token", "secret", "password", "passwd", "value"]
        .iter()
        .any(|word| field.contains(word))
}

/// Marks every value that may be a key, at any depth, and returns the places of
/// those that have the shape of one where not even a reference belongs.
fn hide_keys(root: &DeTable<'_>, source: &mut Source) -> Vec<Range<usize>> {
    let mut keys = Vec::new();
    // The sections `credential` and `[credential.source]` are no values.
    for section in root.values() {
        match section.get_ref() {
            DeValue::Table(table) => {
                for (name, value) in table {
                    match value.get_ref() {
                        DeValue::Table(fields) => hide_table(fields, source, &mut keys),
                        _ => hide_value(name.get_ref(), value, source, &mut keys),
                    }
                }
            }
            _ => hide_value("", section, source, &mut keys),
        }
    }
    keys
}

fn hide_table(table: &DeTable<'_>, source: &mut Source, keys: &mut Vec<Range<usize>>) {
    for (key, value) in table {
        hide_value(key.get_ref(), value, source, keys);
    }
}

fn hide_value(
    field: &str,
    value: &Spanned<DeValue<'_>>,
    source: &mut Source,
    keys: &mut Vec<Range<usize>>,
) {
    if HIDDEN_FIELDS.contains(&field) {
        hide_all(value, source);
        return;
    }
    match value.get_ref() {
        DeValue::Table(table) => hide_table(table, source, keys),
        DeValue::Array(values) => {
            for value in values {
                hide_value(field, value, source, keys);
            }
        }
        DeValue::String(text) if shape::has_key(text) => {
            source.hide(value.span());
            keys.push(value.span());
        }
        _ => {}
    }
}

/// Hides a value and all that is in it. A table that is written with dotted keys
/// stands in many places, so each of its values is hidden by itself.
fn hide_all(value: &Spanned<DeValue<'_>>, source: &mut Source) {
    match value.get_ref() {
        DeValue::Table(table) => table.values().for_each(|value| hide_all(value, source)),
        DeValue::Array(values) => values.iter().for_each(|value| hide_all(value, source)),
        _ => source.hide(value.span()),
    }
}

/// Of a line of a file that is not TOML: what cannot be proven harmless.
pub(super) fn doubtful(line: &str) -> Vec<Range<usize>> {
    let tables: [&[&str]; 12] = [
        fields_of::<Server>(),
        fields_of::<Log>(),
        fields_of::<Dns>(),
        fields_of::<Audit>(),
        fields_of::<Ca>(),
        fields_of::<Acme>(),
        fields_of::<Listener>(),
        fields_of::<Host>(),
        fields_of::<Upstream>(),
        fields_of::<Credential>(),
        fields_of::<Caller>(),
        fields_of::<Route>(),
    ];
    shape::doubtful(line, fields_of::<Document>(), &tables.concat())
}

/// What serde says when a field that takes one of several words gets another.
fn words_of<T: DeserializeOwned>(field: &str) -> String {
    // Through TOML, since the values want to know where they stand.
    let text = format!("{field} = \"\"");
    match toml::from_str::<T>(&text) {
        Ok(_) => String::new(),
        Err(error) => error.message().to_owned(),
    }
}

/// The names of a struct's fields, from its `Deserialize`: one list, not two.
pub(super) fn fields_of<T: DeserializeOwned>() -> &'static [&'static str] {
    struct Fields<'a>(&'a mut &'static [&'static str]);
    impl<'de> serde::Deserializer<'de> for Fields<'_> {
        type Error = serde::de::value::Error;
        fn deserialize_any<V: serde::de::Visitor<'de>>(
            self,
            visitor: V,
        ) -> Result<V::Value, Self::Error> {
            visitor.visit_unit()
        }
        fn deserialize_struct<V: serde::de::Visitor<'de>>(
            self,
            _name: &'static str,
            fields: &'static [&'static str],
            visitor: V,
        ) -> Result<V::Value, Self::Error> {
            *self.0 = fields;
            visitor.visit_map(serde::de::value::MapDeserializer::new(
                std::iter::empty::<(&str, ())>().map(|(key, ())| (key, ().into_deserializer())),
            ))
        }
        serde::forward_to_deserialize_any! {
            bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf option unit
            unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
        }
    }
    let mut fields: &'static [&'static str] = &[];
    let _ = T::deserialize(Fields(&mut fields));
    fields
}
