//! [`check`]: from what was typed to what it means, with every problem found.
//!
//! Pure: it reads no file, no clock and no environment. It goes on past every
//! problem, so that a file with ten mistakes is corrected in one round.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use policy::{ForwardingField, Injection};

use crate::config::draft::{CallerDraft, CredentialDraft, Draft, RouteDraft, UpstreamDraft};
use crate::config::file::{File, Item};
use crate::config::report::{Place, Problem, Report, quote};
use crate::config::written::{Period, Written};
use crate::config::{file, shape};
use crate::credentials::SecretRef;

mod acme;
mod callers;
mod credentials;
mod hosts;
mod listeners;
mod routes;
mod settings;
mod targets;
mod upstreams;

/// Connections that may be configured at most, per worker or upstream.
const CONNECTIONS_CEILING: u64 = 1 << 20;

/// A rate in bytes per second that no caller far away is sure to reach.
const BODY_RATE_CEILING: u64 = 1 << 20;

/// The most requests that may wait for a connection: whoever leaves the queue is looked for in it.
const QUEUE_CEILING: u64 = 1 << 16;

/// Decides everything that can be decided from the file alone, and finds every
/// problem that can be found. The draft is worth resolving only if the report
/// has no errors.
pub fn check(file: &File) -> (Draft, Report) {
    let mut checker = Checker::new(file);
    let (settings, limits, dns_tls) = checker.settings();
    let ca_passphrase = checker.ca_passphrase();
    let listeners = checker.listeners();
    checker.upstreams(&listeners);
    checker.credentials();
    checker.caller_sections();
    checker.routes();
    let hosts = checker.hosts(&listeners);
    checker.callers_by_certificate(&hosts);
    let acme = checker.acme(&hosts, &listeners, &settings.dns);
    checker.sni_hosts(&listeners, &hosts);
    checker.unused();
    let Checker {
        mut report,
        upstreams,
        credentials,
        callers,
        ..
    } = checker;
    let mut all = file.problems.clone();
    // Of a key in the open nothing more needs to be said.
    let keys = all.problems.clone();
    report.problems.retain(|problem| {
        let known = |key: &Problem| key.is_key_in_the_open() && key.place == problem.place;
        problem.place.is_none() || !keys.iter().any(known)
    });
    all.problems.append(&mut report.problems);
    all.sort();
    let draft = Draft {
        listeners,
        hosts,
        upstreams,
        credentials,
        callers,
        limits,
        settings,
        user_place: file.server.as_ref().and_then(|server| {
            server
                .fields
                .user
                .as_ref()
                .map(|user| file.place_of(server, &user.span))
        }),
        ca_place: file.ca.as_ref().map(|ca| file.place(ca)),
        ca_passphrase,
        acme,
        dns_tls,
    };
    (draft, all)
}

/// What is known so far.
struct Checker<'f> {
    file: &'f File,
    report: Report,
    upstreams: Vec<UpstreamDraft>,
    /// Every upstream by name, sections first.
    upstream_names: HashMap<String, usize>,
    /// The section of each upstream; beyond these, they are implied by routes.
    upstream_sections: Vec<&'f Item<file::Upstream>>,
    /// Sections that are there but cannot be used; not unknown.
    upstream_broken: HashSet<String>,
    upstream_used: HashSet<usize>,
    credentials: Vec<CredentialDraft>,
    /// `None`: it is there but cannot be used.
    credential_sections: HashMap<String, Option<usize>>,
    credential_used: HashSet<String>,
    callers: Vec<CallerDraft>,
    /// Every `[caller.NAME]`.
    caller_names: HashMap<String, usize>,
    caller_used: HashSet<usize>,
    /// How each named credential says that it is written.
    injections: HashMap<String, Option<Injection>>,
    /// Routes by host, in the order of the file.
    routes: BTreeMap<String, Vec<RouteDraft>>,
}

impl<'f> Checker<'f> {
    fn new(file: &'f File) -> Self {
        Self {
            file,
            report: Report::default(),
            upstreams: Vec::new(),
            upstream_names: HashMap::new(),
            upstream_sections: Vec::new(),
            upstream_broken: HashSet::new(),
            upstream_used: HashSet::new(),
            credentials: Vec::new(),
            credential_sections: HashMap::new(),
            credential_used: HashSet::new(),
            callers: Vec::new(),
            caller_names: HashMap::new(),
            caller_used: HashSet::new(),
            injections: HashMap::new(),
            routes: BTreeMap::new(),
        }
    }

    fn push(&mut self, problem: Problem) {
        self.report.push(problem);
    }

    /// A time that must not be zero.
    fn timeout<T>(
        &mut self,
        item: Option<&Item<T>>,
        field: &str,
        written: &Option<Written<Period>>,
        default: Duration,
    ) -> Duration {
        let (Some(item), Some(written)) = (item, written) else {
            return default;
        };
        if written.value.0.is_zero() {
            let place = self.file.place_of(item, &written.span);
            self.push(
                Problem::error(format!(
                    "`{field}` is zero, so nothing could ever happen in time"
                ))
                .at(place)
                .expected("a duration of at least \"1ms\""),
            );
            return default;
        }
        written.value.0
    }

    /// A number within bounds.
    fn number<T>(
        &mut self,
        item: Option<&Item<T>>,
        field: &str,
        written: &Option<Written<u64>>,
        bounds: std::ops::RangeInclusive<u64>,
        default: usize,
    ) -> usize {
        let (Some(item), Some(written)) = (item, written) else {
            return default;
        };
        match usize::try_from(written.value) {
            Ok(number) if bounds.contains(&written.value) => number,
            _ => {
                let place = self.file.place_of(item, &written.span);
                self.push(
                    Problem::error(format!("`{field}` is out of bounds"))
                        .at(place)
                        .expected(format!("{} to {}", bounds.start(), bounds.end())),
                );
                default
            }
        }
    }

    /// A file or directory: `/path`, `file:///path`, or relative to the file that names it.
    fn path<T>(
        &mut self,
        item: Option<&Item<T>>,
        written: &Option<Written<String>>,
    ) -> Option<PathBuf> {
        let (Some(item), Some(written)) = (item, written) else {
            return None;
        };
        self.path_of(item, written)
    }

    fn path_of<T>(&mut self, item: &Item<T>, written: &Written<String>) -> Option<PathBuf> {
        let text = &written.value;
        let path = match text.strip_prefix("file://") {
            Some(path) if path.starts_with('/') => path,
            None if !text.is_empty() && !text.contains("://") && !text.contains('\n') => text,
            _ => {
                let place = self.file.place_of(item, &written.span);
                self.push(
                    Problem::error("not the name of a file")
                        .at(place)
                        .expected("a path, as in \"/etc/claviger/tls/api.pem\" or \"file:///etc/claviger/tls/api.pem\""),
                );
                return None;
            }
        };
        Some(self.file.directory(item).join(path))
    }

    /// A host that is served: a name, or `*.` and a name.
    fn host_name<T>(&mut self, item: &Item<T>, written: &Written<String>) -> Option<String> {
        let text = written.value.trim_end_matches('.').to_ascii_lowercase();
        let place = self.file.place_of(item, &written.span);
        match served_name(&text) {
            Ok(()) => Some(text),
            Err(cure) => {
                let problem = Problem::error("not a host name")
                    .at(place)
                    .expected("as in \"api.example.com\" or \"*.example.com\"");
                self.push(match cure {
                    Some(cure) => problem.cure(cure),
                    None => problem,
                });
                None
            }
        }
    }

    /// A header's name; `slot` is one that a key is written into.
    fn header_name(&mut self, name: &str, place: Place, slot: bool) {
        if !is_token(name) {
            self.push(
                Problem::error("not a header's name")
                    .at(place)
                    .expected("letters, digits and `-`, as in \"X-Api-Key\""),
            );
            return;
        }
        let lower = name.to_ascii_lowercase().replace('_', "-");
        let is_origin = |field: ForwardingField| field.name().eq_ignore_ascii_case(&lower);
        if FRAMING_HEADERS.contains(&&*lower)
            || lower.starts_with("claviger-")
            || (slot && ForwardingField::ALL.into_iter().any(is_origin))
        {
            self.push(
                Problem::error(format!(
                    "{} has rules of its own and cannot be {}",
                    quote(name),
                    if slot { "a key's place" } else { "stripped" }
                ))
                .at(place),
            );
        }
    }

    /// A reference to a secret. What is no reference may be the secret: nothing
    /// of it is ever said.
    fn reference(&mut self, place: Place, text: &str) -> Option<SecretRef> {
        match SecretRef::parse(text) {
            Ok(reference) => Some(reference),
            Err(error) => {
                self.push(if shape::has_key(text) {
                    file::key_in_the_open(place)
                        .expected("`file:///path`, `env://NAME` or `credential://NAME`")
                } else {
                    Problem::error("not a reference to a key")
                        .at(place)
                        .expected(error.to_string())
                });
                None
            }
        }
    }

    fn unused(&mut self) {
        let file = self.file;
        // After other mistakes, much seems unused.
        let sure = !self.report.has_errors() && !file.problems.has_errors();
        for (index, item) in self.upstream_sections.clone().into_iter().enumerate() {
            if !self.upstream_used.contains(&index) && sure {
                let place = file.place(item);
                self.push(
                    Problem::warning(format!(
                        "no route leads to the upstream {}",
                        quote(&item.name)
                    ))
                    .at(place),
                );
            }
        }
        for (index, item) in file.callers.iter().enumerate() {
            if !self.caller_used.contains(&index) && sure {
                let place = file.place(item);
                self.push(
                    Problem::warning(format!("no route names the caller {}", quote(&item.name)))
                        .at(place),
                );
            }
        }
        for item in &file.credentials {
            if !self.credential_used.contains(&item.name) && sure {
                let place = file.place(item);
                self.push(
                    Problem::warning(format!(
                        "no route uses the credential {}",
                        quote(&item.name)
                    ))
                    .at(place),
                );
            }
        }
    }

    /// A name that goes on the audit trail and into metrics.
    fn name<T>(&mut self, item: &Item<T>, written: &Written<String>, what: &str) {
        let place = self.file.place_of(item, &written.span);
        self.check_name(&written.value, what, place);
    }

    fn table_name<T>(&mut self, item: &Item<T>, what: &str) {
        let place = self.file.place(item);
        self.check_name(&item.name, what, place);
    }

    fn check_name(&mut self, name: &str, what: &str, place: Place) {
        let fine = !name.is_empty()
            && name.len() <= NAME_CHARS_MAX
            && name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-_.:/*[]@+".contains(&byte));
        if shape::has_key(name) {
            self.push(
                Problem::error(format!("the name of this {what} has the shape of a key"))
                    .at(place)
                    .cure(
                        "names are logged: give it another one, and replace the key if it is one",
                    ),
            );
        } else if !fine {
            self.push(
                Problem::error(format!("not a name for a {what}"))
                    .at(place)
                    .expected("letters, digits and `-_.:/*`, at most 128"),
            );
        }
    }
}

/// Characters of a name.
const NAME_CHARS_MAX: usize = 128;

/// Headers that are written or removed by rules of their own.
const FRAMING_HEADERS: [&str; 11] = [
    "host",
    "content-length",
    "transfer-encoding",
    "connection",
    "keep-alive",
    "te",
    "trailer",
    "upgrade",
    "expect",
    "proxy-connection",
    "cdn-loop",
];

/// Whether callers may ask for this name; if not, a cure where there is one.
fn served_name(name: &str) -> Result<(), Option<String>> {
    let rest = name.strip_prefix("*.").unwrap_or(name);
    if rest.contains('*') {
        return Err(Some(
            "`*` stands for one whole label at the front, as in \"*.example.com\"".to_owned(),
        ));
    }
    if name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok() {
        return Err(Some(
            "write a name: TLS clients name no addresses (RFC 6066, section 3)".to_owned(),
        ));
    }
    if name.contains("://") {
        return Err(Some("leave the scheme out".to_owned()));
    }
    if name.contains(':') {
        return Err(Some(
            "leave the port out: it belongs to a listener".to_owned(),
        ));
    }
    if name.contains('/') {
        return Err(Some(
            "leave the path out: it belongs into `path`".to_owned(),
        ));
    }
    if !name.is_ascii() {
        return Err(Some(
            "write its ASCII form, which begins with `xn--` (RFC 5890)".to_owned(),
        ));
    }
    if is_host_name(rest) {
        Ok(())
    } else {
        Err(None)
    }
}

/// A DNS name in lower case (RFC 1123, section 2.1; underscores are met with).
pub(super) fn is_host_name(name: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    // All digits and dots is a mistyped address.
    name.len() <= 253
        && name.split('.').all(label)
        && !name
            .bytes()
            .all(|byte| byte.is_ascii_digit() || byte == b'.')
}

/// RFC 9110, section 5.6.2.
fn is_token(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}
