//! [`diagnose`]: the whole way of a call, step by step, and the first thing that is wrong.
//!
//! On a service's machine: the environment, the name, the connection, the certificate and who
//! trusts it, and whether it is Claviger that answers. On the machine of a hub or an edge,
//! with its configuration: its own listener, the rule and the key that a call would get, and
//! the way to the API or to the hub ([`office`]).
//!
//! Promises: no credential is sent, to nobody; an unverified connection carries one request
//! that says nothing ([`connection`]). No key is shown, only its fingerprint. It needs no
//! privilege, and changes nothing.
//!
//! It deliberately lacks: a look into the rules from a service's machine. Claviger tells a
//! caller no more of them than its refusals do, and doctor is a caller like any other.

mod connection;
mod finding;
mod names;
mod office;
mod stores;

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use policy::access::{is_never_an_upstream, is_private};
use rustls::CertificateError;
use rustls::client::verify_server_name;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::ParsedCertificate;
use serde_json::{Value, json};
use x509_parser::prelude::{FromDer, X509Certificate};

use connection::{Answered, Connection, Probe};
pub use finding::{Code, Finding, Severity};
use names::{Answer, Told};
pub use stores::SEARCH_DEFAULT;

/// A certificate that is valid for less than this is mentioned: Claviger renews its own long before.
const EXPIRY_WARNING: Duration = Duration::from_secs(3 * 24 * 60 * 60);

/// How far the clocks of this machine and the API may be apart.
const SKEW_MAX: Duration = Duration::from_secs(120);

/// What to look at.
#[derive(Debug, Clone)]
pub struct Options {
    /// The API's host, as services write it.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// A path to call for real, without credentials. It may go on to the API.
    pub call: Option<String>,
    /// Where bundles and keystores are looked for.
    pub search: Vec<PathBuf>,
    /// Resolvers that know the API's real address, to see whether one can go around. None: not looked at.
    pub public_resolvers: Vec<SocketAddr>,
    /// The configuration, on a machine where Claviger runs, and a call as a service would make it.
    pub office: Option<office::Options>,
}

pub use office::Options as OfficeOptions;

/// What was seen.
#[derive(Debug, Default)]
pub struct Diagnosis {
    /// What is right, as steps: what was looked at, and what was seen.
    pub facts: Vec<(&'static str, String)>,
    /// What is wrong or should be looked at.
    findings: Vec<Finding>,
}

impl Diagnosis {
    fn fact(&mut self, step: &'static str, seen: impl Into<String>) {
        self.facts
            .push((step, finding::without_controls(&seen.into())));
    }

    fn find(&mut self, code: Code, sentence: impl Into<String>) {
        self.findings.push(Finding::new(code, sentence));
    }

    /// What is wrong, in the order in which a call meets it, then the warnings.
    pub fn findings(&self) -> Vec<&Finding> {
        let mut findings: Vec<&Finding> = self.findings.iter().collect();
        findings
            .sort_by_key(|finding| (finding.code.severity() == Severity::Warning, finding.code));
        findings
    }

    /// The first thing that is wrong.
    pub fn first(&self) -> Option<&Finding> {
        self.findings()
            .into_iter()
            .find(|finding| finding.code.severity() == Severity::Wrong)
    }

    /// For a terminal.
    pub fn render(&self) -> String {
        let mut text = String::new();
        for (step, seen) in &self.facts {
            let _ = writeln!(text, "{step:<12}{seen}");
        }
        let findings = self.findings();
        if !findings.is_empty() {
            text.push('\n');
        }
        for (index, finding) in findings.iter().enumerate() {
            let word = match (finding.code.severity(), index) {
                (Severity::Wrong, 0) => "WRONG",
                (Severity::Wrong, _) => "also wrong",
                (Severity::Warning, _) => "warning",
            };
            let _ = writeln!(text, "{word}: {finding}");
        }
        if self.first().is_none() {
            text.push_str("\nnothing is wrong\n");
        }
        text
    }

    /// For machines.
    pub fn to_json(&self) -> Value {
        json!({
            "healthy": self.first().is_none(),
            "first": self.first().map(|finding| finding.code.as_str()),
            "findings": self.findings().iter().map(|finding| finding.to_json()).collect::<Vec<_>>(),
            "facts": self.facts.iter().map(|(step, seen)| json!({ "step": step, "seen": seen })).collect::<Vec<_>>(),
        })
    }
}

/// Looks at everything that can be looked at from here.
pub fn diagnose(options: &Options) -> Diagnosis {
    let mut diagnosis = Diagnosis::default();
    if let Some(office) = &options.office {
        office::look(options, office, &mut diagnosis);
        return diagnosis;
    }
    environment(options, &mut diagnosis);
    let addresses = where_it_leads(options, &mut diagnosis);
    if let Some((address, connection)) = reach(&addresses, options, &mut diagnosis) {
        let is_trusted = certificate(&connection, options, &mut diagnosis);
        let is_claviger = who_answers(address, connection, options, &mut diagnosis);
        if let (Some(path), true, true) = (&options.call, is_trusted, is_claviger) {
            call(address, path, options, &mut diagnosis);
        }
    }
    way_around(options, &addresses, &mut diagnosis);
    diagnosis
}

/// Whether the environment sends HTTPS elsewhere. What a service's own environment says is known to the
/// service: run it there.
fn environment(options: &Options, diagnosis: &mut Diagnosis) {
    let set = |name: &str| {
        std::env::var(name)
            .ok()
            .filter(|value| !value.trim().is_empty())
    };
    let proxy = ["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"]
        .into_iter()
        .find(|name| set(name).is_some());
    let none = set("no_proxy")
        .or_else(|| set("NO_PROXY"))
        .unwrap_or_default();
    match proxy {
        None => diagnosis.fact("environment", "no proxy is set"),
        Some(name) if is_exempt(&none, &options.host) => {
            diagnosis.fact(
                "environment",
                format!("{name} is set, and NO_PROXY has this host"),
            );
        }
        // Its value may hold a password.
        Some(name) => diagnosis.find(
            Code::ProxyEnvironment,
            format!("{name} is set, and NO_PROXY does not have {}", options.host),
        ),
    }
}

/// `NO_PROXY` has no standard. What curl, Python and Go agree on: `*`, names, and names for all below.
fn is_exempt(list: &str, host: &str) -> bool {
    list.split([',', ' ']).map(str::trim).any(|entry| {
        let entry = entry
            .trim_start_matches("*.")
            .trim_start_matches('.')
            .to_ascii_lowercase();
        entry == "*"
            || (!entry.is_empty() && (host == entry || host.ends_with(&format!(".{entry}"))))
    })
}

/// Whether an address is the Internet's.
fn is_public(address: IpAddr) -> bool {
    !is_private(address) && !is_never_an_upstream(address)
}

fn list(addresses: &[IpAddr]) -> String {
    addresses
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(", ")
}

/// The addresses that programs here get for the host.
fn where_it_leads(options: &Options, diagnosis: &mut Diagnosis) -> Vec<IpAddr> {
    if let Ok(address) = options.host.parse() {
        diagnosis.fact("name", "none: an address was given");
        return vec![address];
    }
    let written = names::hosts_file(&options.host);
    let told = told_by_resolvers(options, diagnosis, written.is_empty());
    if !written.is_empty() {
        diagnosis.fact("name", format!("{} (/etc/hosts)", list(&written)));
        diagnosis.find(
            Code::HostsEntry,
            format!("/etc/hosts has {} for {}", list(&written), options.host),
        );
        return written;
    }
    let mut addresses = Vec::new();
    for one in &told {
        for address in one.addresses() {
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
    }
    addresses
}

/// Asks the resolvers. What they fail in is wrong only where the name has no other source.
fn told_by_resolvers(options: &Options, diagnosis: &mut Diagnosis, is_needed: bool) -> Vec<Told> {
    let resolvers = names::resolvers();
    if resolvers.is_empty() {
        if is_needed {
            diagnosis.find(Code::ResolverNone, "/etc/resolv.conf names no resolver");
        }
        return Vec::new();
    }
    let told = match names::ask(&resolvers, &options.host) {
        Ok(told) => told,
        Err(error) => {
            diagnosis.find(Code::DnsNoSuchName, format!("{}: {error}", options.host));
            return Vec::new();
        }
    };
    for one in &told {
        let addresses = one.addresses();
        if !addresses.is_empty() {
            diagnosis.fact(
                "name",
                format!("{} (resolver {})", list(&addresses), one.resolver.ip()),
            );
        }
        if let Some(kind) = one.service {
            diagnosis.find(
                Code::DnsHttpsRecord,
                format!(
                    "resolver {} has a record of type {kind} for {}",
                    one.resolver.ip(),
                    options.host
                ),
            );
        }
        if !is_needed || !addresses.is_empty() {
            continue;
        }
        let who = one.resolver.ip();
        // The worse of the two: an answer for one type may just be missing.
        let (code, what) = match (&one.v4, &one.v6) {
            (Answer::Silence, _) | (_, Answer::Silence) => {
                (Code::ResolverSilent, "does not answer".to_owned())
            }
            (Answer::Failed(why), _) | (_, Answer::Failed(why)) => {
                (Code::ResolverFailed, format!("answers {why}"))
            }
            (Answer::NoSuchName, _) => (
                Code::DnsNoSuchName,
                "says that there is no such name".to_owned(),
            ),
            _ => (Code::DnsNoAddress, "has no address".to_owned()),
        };
        diagnosis.find(code, format!("resolver {who} {what} for {}", options.host));
    }
    let kinds = |public: bool| {
        told.iter()
            .filter(move |one| {
                one.addresses()
                    .iter()
                    .any(|&address| is_public(address) == public)
            })
            .map(|one| one.resolver.ip())
            .collect::<Vec<_>>()
    };
    let (inside, outside) = (kinds(false), kinds(true));
    let outside_only: Vec<IpAddr> = outside
        .iter()
        .filter(|ip| !inside.contains(ip))
        .copied()
        .collect();
    if !inside.is_empty() && !outside_only.is_empty() {
        diagnosis.find(
            Code::ResolversDisagree,
            format!(
                "resolver {} gives a private address, resolver {} a public one",
                list(&inside),
                list(&outside_only)
            ),
        );
    }
    for one in &told {
        if let (Answer::Addresses(v4), Answer::Addresses(v6)) = (&one.v4, &one.v6)
            && v4.iter().all(|&address| !is_public(address))
            && v6.iter().any(|&address| is_public(address))
        {
            diagnosis.find(
                Code::DnsPublicIpv6,
                format!(
                    "resolver {} has A {} and AAAA {}",
                    one.resolver.ip(),
                    list(v4),
                    list(v6)
                ),
            );
        }
    }
    told
}

/// Connects to the addresses, private ones first, and goes on with the first that completes a handshake.
fn reach(
    addresses: &[IpAddr],
    options: &Options,
    diagnosis: &mut Diagnosis,
) -> Option<(SocketAddr, Connection)> {
    let (outside, inside): (Vec<IpAddr>, Vec<IpAddr>) =
        addresses.iter().partition(|&&address| is_public(address));
    // Where some lead to Claviger, those that do not have been found already.
    let tried = if inside.is_empty() { &outside } else { &inside };
    let mut reached = None;
    let mut failed = Vec::new();
    for &ip in tried {
        let address = SocketAddr::new(ip, options.port);
        match connection::connect(address)
            .and_then(|socket| connection::handshake(socket, address, &options.host))
        {
            Ok(connection) if reached.is_none() => {
                diagnosis.fact(
                    "connection",
                    format!(
                        "{address}, TLS; seen from {}",
                        connection
                            .local
                            .map_or_else(String::new, |ip| ip.to_string())
                    ),
                );
                reached = Some((address, connection));
            }
            Ok(_) => {}
            Err(finding) => failed.push(finding),
        }
    }
    for finding in failed {
        match (&reached, is_public_only(tried, &inside)) {
            (Some(_), _) => diagnosis.find(Code::AddressFails, finding.sentence),
            (None, true) => public_answer(options, tried, &finding.sentence, diagnosis),
            (None, false) => diagnosis.findings.push(finding),
        }
    }
    reached
}

fn is_public_only(tried: &[IpAddr], inside: &[IpAddr]) -> bool {
    inside.is_empty() && !tried.is_empty()
}

/// The name leads to the Internet, and it is no Claviger there.
fn public_answer(options: &Options, addresses: &[IpAddr], seen: &str, diagnosis: &mut Diagnosis) {
    let is_written = !names::hosts_file(&options.host).is_empty();
    let (code, who) = match is_written {
        true => (Code::HostsPublicAddress, "/etc/hosts"),
        false => (Code::DnsPublicAnswer, "the resolver"),
    };
    if !diagnosis
        .findings
        .iter()
        .any(|finding| finding.code == code)
    {
        diagnosis.find(
            code,
            format!(
                "{who} leads {} to {}; {seen}",
                options.host,
                list(addresses)
            ),
        );
    }
}

/// Judges the chain. Returns whether the system's store, or one beside it, trusts it for this host and now.
fn certificate(connection: &Connection, options: &Options, diagnosis: &mut Diagnosis) -> bool {
    let chain = &connection.chain;
    let Ok(name) = ServerName::try_from(options.host.clone()) else {
        return false;
    };
    let Some(shown) = Shown::of(chain) else {
        diagnosis.find(Code::TlsFailed, "the server's certificate cannot be read");
        return false;
    };
    diagnosis.fact(
        "certificate",
        format!(
            "signed by {}; valid until {}",
            shown.issuer,
            day(shown.not_after)
        ),
    );
    let now = unix_now();
    let mut is_good = true;
    if now < shown.not_before {
        is_good = false;
        diagnosis.find(
            Code::CertificateNotYetValid,
            format!(
                "valid from {}; this machine's clock says {}",
                day(shown.not_before),
                day(now)
            ),
        );
    }
    if now > shown.not_after {
        is_good = false;
        diagnosis.find(
            Code::CertificateExpired,
            format!(
                "expired on {}; this machine's clock says {}",
                day(shown.not_after),
                day(now)
            ),
        );
    } else if shown.not_after - now < EXPIRY_WARNING.as_secs() as i64 && shown.is_long {
        diagnosis.find(
            Code::CertificateExpiresSoon,
            format!("it expires on {}", day(shown.not_after)),
        );
    }
    let has_name = chain
        .first()
        .and_then(|leaf| ParsedCertificate::try_from(leaf).ok())
        .is_some_and(|leaf| verify_server_name(&leaf, &name).is_ok());
    if !has_name {
        is_good = false;
        diagnosis.find(
            Code::CertificateWrongName,
            format!("it is for {} and not for {}", shown.names, options.host),
        );
    }
    if !is_good {
        // Every store would refuse it for the same reason.
        return false;
    }
    trust(chain, &name, &shown, options, diagnosis)
}

/// Holds the chain against each store of this machine.
fn trust(
    chain: &[CertificateDer<'static>],
    name: &ServerName<'static>,
    shown: &Shown,
    options: &Options,
    diagnosis: &mut Diagnosis,
) -> bool {
    let system = stores::system(chain, name);
    match (&system.verdict, &system.unreadable) {
        (_, Some(error)) => diagnosis.find(
            Code::CaUnknown,
            format!("this system has no store: {error}"),
        ),
        (Ok(()), None) => diagnosis.fact("trust", "the system's store has its CA"),
        (Err(CertificateError::UnknownIssuer), None) => {
            diagnosis.find(
                Code::CaUnknown,
                format!(
                    "signed by {}, which the system's store does not have",
                    shown.issuer
                ),
            );
        }
        (Err(error), None) => diagnosis.find(
            Code::ChainRefused,
            format!("the system's store does not accept it: {error}"),
        ),
    }
    let mut is_trusted = system.unreadable.is_none() && system.verdict.is_ok();
    let (others, is_cut) = stores::others(&options.search, chain, name);
    for (kind, code) in [
        (stores::Kind::Bundle, Code::CertifiLacksCa),
        (stores::Kind::Keystore, Code::JavaLacksCa),
    ] {
        let of_kind: Vec<&stores::Store> =
            others.iter().filter(|store| store.kind == kind).collect();
        let lacking: Vec<String> = of_kind
            .iter()
            .filter(|store| store.verdict.is_err())
            .map(|store| store.path.display().to_string())
            .collect();
        is_trusted |= of_kind
            .iter()
            .any(|store| store.verdict.is_ok() && store.unreadable.is_none());
        for store in of_kind.iter().filter(|store| store.unreadable.is_some()) {
            let why = store.unreadable.as_deref().unwrap_or_default();
            diagnosis.fact(
                "trust",
                format!("{} cannot be read: {why}", store.path.display()),
            );
        }
        if lacking.is_empty() && !of_kind.is_empty() {
            let what = if kind == stores::Kind::Bundle {
                "bundles"
            } else {
                "Java keystores"
            };
            diagnosis.fact("trust", format!("{} of {what}: each has it", of_kind.len()));
        }
        if !lacking.is_empty() {
            diagnosis.find(code, lacking.join(", "));
        }
    }
    if is_cut {
        diagnosis.fact(
            "trust",
            "not every directory was searched for bundles: name some with --search",
        );
    }
    match stores::node() {
        None => {}
        Some(Ok(how)) => diagnosis.fact("trust", format!("Node: {how}")),
        Some(Err(path)) => diagnosis.find(
            Code::NodeLacksCa,
            format!(
                "{} has its own roots, and nothing names another",
                path.display()
            ),
        ),
    }
    is_trusted
}

/// Asks whether it is Claviger.
fn who_answers(
    address: SocketAddr,
    connection: Connection,
    options: &Options,
    diagnosis: &mut Diagnosis,
) -> bool {
    let local = connection.local;
    let seen = match connection.ask(&options.host, Probe::Trace) {
        Ok(Answered { own: Some(_), .. }) => {
            let from = local.map_or_else(String::new, |ip| format!("; there, `claviger doctor {} --config FILE --from {ip}` tells the rule and the key", options.host));
            diagnosis.fact("claviger", format!("it is Claviger that answers{from}"));
            return true;
        }
        Ok(answered) => {
            let server = answered
                .server
                .map_or_else(String::new, |name| format!(" ({name})"));
            (
                Code::NotClaviger,
                format!(
                    "{address} answers {}{server} as Claviger never does",
                    answered.status
                ),
            )
        }
        Err(error)
            if matches!(
                error.kind(),
                std::io::ErrorKind::TimedOut | std::io::ErrorKind::WouldBlock
            ) =>
        {
            (
                Code::HttpSilent,
                format!("{address} does not answer a request"),
            )
        }
        // TLS 1.3 refuses a client without a certificate only now.
        Err(error) => (
            Code::TlsFailed,
            format!("{address}: after the handshake: {error}"),
        ),
    };
    if is_public(address.ip()) {
        public_answer(options, &[address.ip()], &seen.1, diagnosis);
    } else {
        diagnosis.find(seen.0, seen.1);
    }
    false
}

/// A real call without credentials, over a connection that this machine's stores trust.
fn call(address: SocketAddr, path: &str, options: &Options, diagnosis: &mut Diagnosis) {
    let answered = connection::connect(address)
        .and_then(|socket| connection::handshake(socket, address, &options.host))
        .map_err(|finding| finding.sentence)
        .and_then(|connection| {
            connection
                .ask(&options.host, Probe::Call { path })
                .map_err(|error| error.to_string())
        });
    let answered = match answered {
        Ok(answered) => answered,
        Err(error) => return diagnosis.find(Code::HttpSilent, format!("GET {path}: {error}")),
    };
    match (&answered.own, answered.status) {
        (Some((refuser, reason)), status) => {
            let code = match (reason.as_str(), status) {
                (_, 508) => Code::LoopDetected,
                (_, 401 | 403) if refuser == "policy" => Code::CallerNotAllowed,
                _ => Code::CallRefused,
            };
            diagnosis.find(
                code,
                format!("GET {path}: {status} from Claviger ({refuser}), reason {reason}"),
            );
        }
        // Of an answer that comes from another Claviger, the header that says so is removed.
        (None, 508) => diagnosis.find(
            Code::LoopDetected,
            format!("GET {path}: 508 from what Claviger takes for the API"),
        ),
        (None, 401 | 403) => diagnosis.find(
            Code::ApiRefusesKey,
            format!("GET {path}: {} from the API", answered.status),
        ),
        (None, status) => diagnosis.fact(
            "call",
            format!("GET {path}: {status} from the API, with the key that Claviger wrote"),
        ),
    }
    if let Some(date) = answered.date {
        diagnosis.findings.extend(skew(date, unix_now()));
    }
}

/// What is said of two clocks, in seconds since 1970.
fn skew(theirs: i64, ours: i64) -> Option<Finding> {
    let apart = theirs.abs_diff(ours);
    (apart > SKEW_MAX.as_secs()).then(|| {
        Finding::new(
            Code::ClockSkew,
            format!("this clock and the API's are {apart} s apart"),
        )
    })
}

/// Whether the API's real address can be reached from here.
fn way_around(options: &Options, addresses: &[IpAddr], diagnosis: &mut Diagnosis) {
    if options.public_resolvers.is_empty() || options.host.parse::<IpAddr>().is_ok() {
        return;
    }
    let told = names::ask(&options.public_resolvers, &options.host).unwrap_or_default();
    let mut real: Vec<IpAddr> = told
        .iter()
        .flat_map(Told::addresses)
        .filter(|&address| is_public(address))
        .collect();
    real.sort();
    real.dedup();
    if real.is_empty() {
        return diagnosis.fact(
            "egress",
            "no public resolver answers from here: nothing to try",
        );
    }
    let open = real
        .iter()
        .filter(|address| !addresses.contains(address))
        .map(|&address| SocketAddr::new(address, options.port))
        .find(|&address| connection::connect(address).is_ok());
    match open {
        Some(address) => diagnosis.find(
            Code::EgressOpen,
            format!("{address}, the API's own, accepts a connection from here"),
        ),
        None => diagnosis.fact(
            "egress",
            "the API's own address cannot be reached from here",
        ),
    }
}

/// What a certificate says.
struct Shown {
    issuer: String,
    names: String,
    not_before: i64,
    not_after: i64,
    /// Whether it was made for longer than what is warned about.
    is_long: bool,
}

impl Shown {
    fn of(chain: &[CertificateDer<'static>]) -> Option<Self> {
        let (_, leaf) = X509Certificate::from_der(chain.first()?).ok()?;
        let (_, last) = X509Certificate::from_der(chain.last()?).ok()?;
        let names = leaf
            .subject_alternative_name()
            .ok()
            .flatten()
            .map(|names| {
                names
                    .value
                    .general_names
                    .iter()
                    .map(ToString::to_string)
                    .collect::<Vec<_>>()
                    .join(", ")
            })
            .unwrap_or_default();
        let (not_before, not_after) = (
            leaf.validity().not_before.timestamp(),
            leaf.validity().not_after.timestamp(),
        );
        Some(Self {
            issuer: last.issuer().to_string(),
            names,
            not_before,
            not_after,
            is_long: not_after - not_before > 4 * EXPIRY_WARNING.as_secs() as i64,
        })
    }
}

fn unix_now() -> i64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs() as i64)
}

fn day(unix: i64) -> String {
    time::OffsetDateTime::from_unix_timestamp(unix)
        .ok()
        .and_then(|when| {
            let format =
                time::macros::format_description!("[year]-[month]-[day] [hour]:[minute] UTC");
            when.format(&format).ok()
        })
        .unwrap_or_else(|| "a day beyond the calendar".to_owned())
}

#[cfg(test)]
mod tests;
