//! [`check`]: from what was typed to what it means, with every problem found.
//!
//! Pure: it reads no file, no clock and no environment. It goes on past every
//! problem, so that a file with ten mistakes is corrected in one round.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use policy::access::is_never_an_upstream;
use policy::upstream::UpstreamLimits;
use policy::{Callers, Injection, Listener, ServerLimits, UnknownSni};
use rustls::pki_types::ServerName;
use wire::head::HeadLimits;

use super::draft::{Certificates, CredentialDraft, Draft, HostDraft, RouteDraft, UpstreamDraft};
use super::file::{
    self, AuditMode, DnsProtocol, File, Inject, Item, LogFormat, LogLevel, MemoryLock,
};
use super::presets::{self, Preset, PresetHost};
use super::report::{Place, Problem, Report, nearest, one_of, quote};
use super::settings::{AuditSettings, LogSettings, Settings};
use super::shape;
use super::written::{OneOrMany, Period, Workers, Written};
use crate::credentials::SecretRef;
use crate::names::{DnsSettings, Server};

/// Bytes of a request head that may be configured at most. Each connection that
/// reads a head may hold that much.
const HEAD_BYTES_CEILING: u64 = 1 << 20;
/// Fewer would not hold the head of an ordinary SDK's request.
const HEAD_BYTES_FLOOR: u64 = 1 << 10;
/// Fields of a request head that may be configured at most.
const FIELDS_CEILING: u64 = 1024;
/// Connections that may be configured at most, per worker or upstream.
const CONNECTIONS_CEILING: u64 = 1 << 20;
/// Smallest audit file worth rotating.
const ROTATE_BYTES_FLOOR: u64 = 64 << 10;
/// Characters of a name.
const NAME_CHARS_MAX: usize = 128;

/// Words that callers' rules are often thought to have, and that mean everybody.
const EVERYBODY: [&str; 7] = [
    "everyone",
    "everybody",
    "any",
    "all",
    "*",
    "public",
    "anyone",
];

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

/// Decides everything that can be decided from the file alone, and finds every
/// problem that can be found. The draft is worth resolving only if the report
/// has no errors.
pub fn check(file: &File) -> (Draft, Report) {
    let mut checker = Checker::new(file);
    let (settings, limits, dns_tls) = checker.settings();
    let listeners = checker.listeners();
    checker.upstreams(&listeners);
    checker.credentials();
    checker.routes();
    let hosts = checker.hosts(&listeners);
    checker.sni_hosts(&listeners, &hosts);
    checker.unused();
    let Checker {
        mut report,
        upstreams,
        credentials,
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
        dns_tls,
    };
    (draft, all)
}

/// What is known so far.
struct Checker<'f> {
    file: &'f File,
    report: Report,
    upstreams: Vec<UpstreamDraft>,
    /// The section of each upstream, where it has one.
    upstream_sections: HashMap<String, usize>,
    /// Sections that are there but cannot be used; not unknown.
    upstream_broken: HashSet<String>,
    upstream_used: HashSet<usize>,
    credentials: Vec<CredentialDraft>,
    /// `None`: it is there but cannot be used.
    credential_sections: HashMap<String, Option<usize>>,
    credential_used: HashSet<String>,
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
            upstream_sections: HashMap::new(),
            upstream_broken: HashSet::new(),
            upstream_used: HashSet::new(),
            credentials: Vec::new(),
            credential_sections: HashMap::new(),
            credential_used: HashSet::new(),
            injections: HashMap::new(),
            routes: BTreeMap::new(),
        }
    }

    fn push(&mut self, problem: Problem) {
        self.report.push(problem);
    }

    // ---- [server], [log], [dns], [audit], [ca] -----------------------------

    fn settings(&mut self) -> (Settings, ServerLimits, bool) {
        let file = self.file;
        let default = ServerLimits::default();
        let none = file::Server::default();
        let server = file.server.as_ref();
        let fields = server.map_or(&none, |item| &item.fields);
        let limits = ServerLimits {
            handshake_timeout: self.timeout(
                server,
                "handshake_timeout",
                &fields.handshake_timeout,
                default.handshake_timeout,
            ),
            head_timeout: self.timeout(
                server,
                "head_timeout",
                &fields.head_timeout,
                default.head_timeout,
            ),
            idle_timeout: self.timeout(
                server,
                "idle_timeout",
                &fields.idle_timeout,
                default.idle_timeout,
            ),
            read_timeout: self.timeout(
                server,
                "read_timeout",
                &fields.read_timeout,
                default.read_timeout,
            ),
            drain_timeout: fields
                .drain_timeout
                .as_ref()
                .map_or(default.drain_timeout, |period| period.value.0),
            connections_max: self.number(
                server,
                "connections_max",
                &fields.connections_max,
                1..=CONNECTIONS_CEILING,
                default.connections_max,
            ),
            head: HeadLimits {
                head_bytes_max: {
                    let written = fields
                        .head_bytes_max
                        .as_ref()
                        .map(|size| Written::new(size.value.0, size.span.clone()));
                    self.number(
                        server,
                        "head_bytes_max",
                        &written,
                        HEAD_BYTES_FLOOR..=HEAD_BYTES_CEILING,
                        default.head.head_bytes_max,
                    )
                },
                fields_max: self.number(
                    server,
                    "fields_max",
                    &fields.fields_max,
                    8..=FIELDS_CEILING,
                    default.head.fields_max,
                ),
            },
        };
        let workers = fields
            .workers
            .as_ref()
            .map_or(Workers::Auto, |workers| workers.value);
        let cpus = fields
            .cpus
            .as_ref()
            .map_or_else(Vec::new, |cpus| cpus.value.clone());
        if let (Some(server), Some(written)) = (server, &fields.cpus) {
            let distinct: HashSet<_> = cpus.iter().collect();
            if distinct.len() != cpus.len() {
                let place = file.place_of(server, &written.span);
                self.push(
                    Problem::error("a core is named twice in `cpus`")
                        .at(place)
                        .cure("name each core once; each worker has one of its own"),
                );
            }
            if let Workers::Count(count) = workers
                && count > cpus.len()
            {
                let place = file.place_of(server, &written.span);
                self.push(
                    Problem::error(format!(
                        "{count} workers, but only {} cores in `cpus`",
                        cpus.len()
                    ))
                    .at(place)
                    .cure("name as many cores as there are workers, or leave `workers` out"),
                );
            }
        }
        if let (Some(server), Some(group), None) = (server, &fields.group, &fields.user) {
            let place = file.place_of(server, &group.span);
            self.push(
                Problem::error("`group` without `user`")
                    .at(place)
                    .cure("name the user too"),
            );
        }
        let state_dir = self
            .path(server, &fields.state_dir)
            .unwrap_or_else(|| PathBuf::from("/var/lib/claviger"));

        let none = file::Ca::default();
        let ca = file.ca.as_ref();
        let ca_dir = self
            .path(ca, &ca.map_or(&none, |item| &item.fields).directory)
            .unwrap_or_else(|| state_dir.join("ca"));

        let none = file::Log::default();
        let log = file.log.as_ref().map_or(&none, |item| &item.fields);
        let log = LogSettings {
            level: log
                .level
                .as_ref()
                .map_or(LogLevel::Info, |level| level.value),
            format: log
                .format
                .as_ref()
                .map_or(LogFormat::Auto, |format| format.value),
            status_interval: log
                .status_interval
                .as_ref()
                .map_or(Duration::from_secs(60), |period| period.value.0),
        };

        let none = file::Audit::default();
        let audit = file.audit.as_ref();
        let fields_audit = audit.map_or(&none, |item| &item.fields);
        let rotate = fields_audit.rotate_bytes.as_ref();
        if let (Some(audit), Some(size)) = (audit, rotate)
            && size.value.0 < ROTATE_BYTES_FLOOR
        {
            let place = file.place_of(audit, &size.span);
            self.push(
                Problem::error("`rotate_bytes` is too small")
                    .at(place)
                    .expected("at least \"64KiB\", or \"unlimited\""),
            );
        }
        let audit = AuditSettings {
            path: self
                .path(audit, &fields_audit.path)
                .unwrap_or_else(|| PathBuf::from("/var/log/claviger/audit.ndjson")),
            rotate_bytes: rotate.map_or(100 << 20, |size| size.value.0),
            keep: self.number(audit, "keep", &fields_audit.keep, 0..=10_000, 10),
        };
        let (dns, dns_tls) = self.dns();
        let settings = Settings {
            workers,
            cpus,
            driver: fields
                .driver
                .as_ref()
                .map_or(file::Driver::Auto, |driver| driver.value),
            user: fields.user.as_ref().map(|user| user.value.clone()),
            group: fields.group.as_ref().map(|group| group.value.clone()),
            state_dir,
            ca_dir,
            memory_lock: fields
                .memory_lock
                .as_ref()
                .map_or(MemoryLock::Try, |lock| lock.value),
            audit,
            dns,
            log,
            watch_paths: file.watch_paths(),
        };
        (settings, limits, dns_tls)
    }

    fn dns(&mut self) -> (DnsSettings, bool) {
        let file = self.file;
        let none = file::Dns::default();
        let dns = file.dns.as_ref();
        let fields = dns.map_or(&none, |item| &item.fields);
        let mut settings = DnsSettings::default();
        let tls = fields
            .protocol
            .as_ref()
            .is_some_and(|protocol| protocol.value == DnsProtocol::Tls);
        if let (Some(dns), Some(list)) = (dns, &fields.servers) {
            if list.value.is_empty() {
                let place = file.place_of(dns, &list.span);
                self.push(
                    Problem::error("no resolver at all")
                        .at(place)
                        .cure("name at least one, or leave `servers` out for 8.8.8.8 and 1.1.1.1"),
                );
            }
            settings.servers = Vec::new();
            for written in &list.value {
                let place = file.place_of(dns, &written.span);
                let text = match (tls, written.value.contains('#')) {
                    (true, false) => match known_resolver(&written.value) {
                        Some(name) => format!("{}#{name}", written.value),
                        None => {
                            self.push(
                                Problem::error("a resolver without a name, and `protocol` is \"tls\"")
                                    .at(place)
                                    .cure("write the name in its certificate behind `#`, as in \"8.8.8.8#dns.google\""),
                            );
                            continue;
                        }
                    },
                    (false, true) => {
                        self.push(
                            Problem::error("a resolver with a name, and `protocol` is \"udp\"")
                                .at(place)
                                .cure(
                                    "write protocol = \"tls\", or leave out what begins with `#`",
                                ),
                        );
                        continue;
                    }
                    _ => written.value.clone(),
                };
                match text.parse::<Server>() {
                    Ok(server) => settings.servers.push(server),
                    Err(error) => self.push(
                        Problem::error("not a resolver")
                            .at(place)
                            .expected(error.to_string()),
                    ),
                }
            }
        } else if tls {
            settings.servers = ["8.8.8.8#dns.google", "1.1.1.1#cloudflare-dns.com"]
                .iter()
                .filter_map(|text| text.parse().ok())
                .collect();
        }
        settings.timeout = self.timeout(dns, "timeout", &fields.timeout, settings.timeout);
        settings.ttl_floor = fields
            .ttl_min
            .as_ref()
            .map_or(settings.ttl_floor, |period| period.value.0);
        settings.ttl_ceiling = self.timeout(dns, "ttl_max", &fields.ttl_max, settings.ttl_ceiling);
        settings.stale_max = fields
            .stale_max
            .as_ref()
            .map_or(settings.stale_max, |period| period.value.0);
        if settings.ttl_floor > settings.ttl_ceiling
            && let Some(dns) = dns
            && let Some(written) = fields.ttl_min.as_ref().or(fields.ttl_max.as_ref())
        {
            let place = file.place_of(dns, &written.span);
            self.push(Problem::error("`ttl_min` is longer than `ttl_max`").at(place));
        }
        (settings, tls)
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

    // ---- [[listener]] ------------------------------------------------------

    fn listeners(&mut self) -> Vec<Listener> {
        let file = self.file;
        if file.listeners.is_empty() {
            return vec![Listener {
                name: Arc::from("https"),
                addresses: vec![SocketAddr::from(([0, 0, 0, 0], 443))],
                tls: true,
                unknown_sni: UnknownSni::Refuse,
            }];
        }
        let mut listeners: Vec<Listener> = Vec::new();
        let mut names: HashMap<String, Place> = HashMap::new();
        let mut seen: HashMap<SocketAddr, Place> = HashMap::new();
        for item in &file.listeners {
            let mut addresses = Vec::new();
            match &item.fields.address {
                None if item.is_unread("address") => {}
                None => {
                    let place = file.place(item);
                    self.push(
                        Problem::error("a listener without `address`")
                            .at(place)
                            .cure("write address = \"0.0.0.0:443\", or a list"),
                    );
                }
                Some(list) => {
                    for written in &list.0 {
                        let place = file.place_of(item, &written.span);
                        match listen_address(&written.value) {
                            Ok(address) => {
                                if let Some(earlier) = seen.get(&address) {
                                    let problem =
                                        Problem::error(format!("{address} is listened on twice"))
                                            .at(place)
                                            .also("first here:", earlier.clone());
                                    self.push(problem);
                                } else {
                                    seen.insert(address, place);
                                    addresses.push(address);
                                }
                            }
                            Err(cure) => {
                                self.push(
                                    Problem::error("not an address to listen on")
                                        .at(place)
                                        .expected("an IP address and a port, as in \"0.0.0.0:443\" or \"[::]:443\"")
                                        .cure(cure),
                                );
                            }
                        }
                    }
                    if list.0.is_empty() {
                        let place = file.place(item);
                        self.push(Problem::error("a listener without an address").at(place));
                    }
                }
            }
            let (name, place) = match &item.fields.name {
                Some(name) => {
                    self.name(item, name, "listener");
                    (name.value.clone(), file.place_of(item, &name.span))
                }
                None => (
                    addresses.first().map_or_else(
                        || format!("listener-{}", listeners.len() + 1),
                        SocketAddr::to_string,
                    ),
                    file.place(item),
                ),
            };
            if let Some(earlier) = names.get(&name) {
                let problem = Problem::error(format!("two listeners are named {}", quote(&name)))
                    .at(place)
                    .also("first here:", earlier.clone())
                    .cure("give each one a `name` of its own");
                self.push(problem);
            } else {
                names.insert(name.clone(), place);
            }
            let tls = item.fields.tls.as_ref().is_none_or(|tls| tls.value);
            let unknown_sni = match item.fields.unknown_sni.as_ref() {
                Some(written) if written.value != "refuse" => match self.host_name(item, written) {
                    Some(host) => UnknownSni::Host(host.into()),
                    None => UnknownSni::Refuse,
                },
                _ => UnknownSni::Refuse,
            };
            if !tls {
                if let Some(written) = &item.fields.unknown_sni {
                    let place = file.place_of(item, &written.span);
                    self.push(
                        Problem::error("`unknown_sni` on a clear-text listener, which has no SNI")
                            .at(place)
                            .cure("leave it out"),
                    );
                }
                if addresses.iter().any(|address| !address.ip().is_loopback()) {
                    let place = item
                        .fields
                        .tls
                        .as_ref()
                        .map_or_else(|| file.place(item), |tls| file.place_of(item, &tls.span));
                    self.push(
                        Problem::warning("a clear-text listener that others than this machine can reach: requests and answers travel unprotected")
                            .at(place)
                            .cure("listen on 127.0.0.1, or use TLS"),
                    );
                }
            }
            listeners.push(Listener {
                name: Arc::from(name),
                addresses,
                tls,
                unknown_sni,
            });
        }
        listeners
    }

    /// The host behind `unknown_sni` must be there.
    fn sni_hosts(&mut self, listeners: &[Listener], hosts: &[HostDraft]) {
        for (item, listener) in self.file.listeners.iter().zip(listeners) {
            let served: Vec<&HostDraft> = hosts
                .iter()
                .filter(|host| {
                    host.listeners.is_empty()
                        || host.listeners.iter().any(|name| **name == *listener.name)
                })
                .collect();
            if served.is_empty() && !listener.addresses.is_empty() && !hosts.is_empty() {
                let place = self.file.place(item);
                self.push(
                    Problem::error(format!(
                        "no host is served on the listener {}",
                        quote(&listener.name)
                    ))
                    .at(place)
                    .cure("name it in `listeners` of a [host.NAME], or remove it"),
                );
            }
            let (UnknownSni::Host(name), Some(written)) =
                (&listener.unknown_sni, &item.fields.unknown_sni)
            else {
                continue;
            };
            if served.iter().all(|host| *host.name != **name) {
                let place = self.file.place_of(item, &written.span);
                let problem = Problem::error(format!(
                    "`unknown_sni` names {}, which is no host of this listener",
                    quote(name)
                ))
                .at(place)
                .meant(name, served.iter().map(|host| &*host.name))
                .cure("name a host that a route serves, or \"refuse\"");
                self.push(problem);
            }
        }
    }

    // ---- [upstream.NAME] ---------------------------------------------------

    fn upstreams(&mut self, listeners: &[Listener]) {
        let file = self.file;
        for item in &file.upstreams {
            let fields = &item.fields;
            self.table_name(item, "upstream");
            let host = match &fields.host {
                Some(written) => self.upstream_host(item, written),
                None if item.is_unread("host") => None,
                None if is_host_name(&item.name) && item.name.contains('.') => {
                    Some(item.name.to_ascii_lowercase())
                }
                None => {
                    let place = file.place(item);
                    self.push(
                        Problem::error(format!("the upstream {} has no `host`", quote(&item.name)))
                            .at(place)
                            .cure("write host = \"api.example.com\", the name that the API has"),
                    );
                    None
                }
            };
            let mut addresses = Vec::new();
            let mut address_places = Vec::new();
            if let Some(list) = &fields.addresses {
                for written in &list.value {
                    let place = file.place_of(item, &written.span);
                    match written.value.parse::<SocketAddr>() {
                        Ok(address) => {
                            self.static_address(address, &place, listeners);
                            addresses.push(address);
                            address_places.push(place);
                        }
                        Err(_) => self.push(
                            Problem::error("not an address with a port")
                                .at(place)
                                .expected("as in \"192.0.2.7:443\" or \"[2001:db8::7]:443\""),
                        ),
                    }
                }
                if list.value.is_empty() {
                    let place = file.place_of(item, &list.span);
                    self.push(
                        Problem::error("an empty list of addresses")
                            .at(place)
                            .cure("leave it out to look the host up"),
                    );
                }
            }
            let port = fields.port.as_ref().map_or(443, |port| port.value);
            if let Some(written) = &fields.port
                && written.value == 0
            {
                let place = file.place_of(item, &written.span);
                self.push(
                    Problem::error("0 is not a port")
                        .at(place)
                        .expected("1 to 65535"),
                );
            }
            // An address in place of a name needs no look-up.
            if let Some(ip) = host.as_ref().and_then(|host| host.parse::<IpAddr>().ok())
                && addresses.is_empty()
            {
                let address = SocketAddr::new(ip, port);
                let place = fields
                    .host
                    .as_ref()
                    .map_or_else(|| file.place(item), |host| file.place_of(item, &host.span));
                self.static_address(address, &place, listeners);
                addresses.push(address);
                address_places.push(place);
            }
            let tls_name = match &fields.tls_name {
                Some(written) => self.upstream_host(item, written),
                None => host.clone(),
            };
            let tls_name = tls_name.and_then(|name| ServerName::try_from(name).ok());
            let default = UpstreamLimits::default();
            let item_some = Some(item);
            let limits = UpstreamLimits {
                connect_timeout: self.timeout(
                    item_some,
                    "connect_timeout",
                    &fields.connect_timeout,
                    default.connect_timeout,
                ),
                response_head_timeout: self.timeout(
                    item_some,
                    "response_head_timeout",
                    &fields.response_head_timeout,
                    default.response_head_timeout,
                ),
                read_timeout: self.timeout(
                    item_some,
                    "read_timeout",
                    &fields.read_timeout,
                    default.read_timeout,
                ),
                connections_max: self.number(
                    item_some,
                    "connections_max",
                    &fields.connections_max,
                    1..=CONNECTIONS_CEILING,
                    default.connections_max,
                ),
                idle_max: self.number(
                    item_some,
                    "idle_max",
                    &fields.idle_max,
                    0..=CONNECTIONS_CEILING,
                    default.idle_max,
                ),
                idle_min: self.number(
                    item_some,
                    "idle_min",
                    &fields.idle_min,
                    0..=CONNECTIONS_CEILING,
                    default.idle_min,
                ),
                idle_timeout: self.timeout(
                    item_some,
                    "idle_timeout",
                    &fields.idle_timeout,
                    default.idle_timeout,
                ),
                age_max: self.timeout(item_some, "age_max", &fields.age_max, default.age_max),
            };
            let limits = self.idle_bounds(item, limits);
            let ca_file = self.path(item_some, &fields.ca_file);
            let (Some(host), Some(tls_name)) = (host, tls_name) else {
                self.upstream_broken.insert(item.name.clone());
                continue;
            };
            self.upstream_sections
                .insert(item.name.clone(), self.upstreams.len());
            self.upstreams.push(UpstreamDraft {
                name: item.name.clone(),
                host,
                port,
                tls_name,
                addresses,
                ca_file,
                allow_private: fields
                    .allow_private
                    .as_ref()
                    .is_some_and(|allow| allow.value),
                limits,
                place: file.place(item),
                ca_place: fields
                    .ca_file
                    .as_ref()
                    .map(|ca_file| file.place_of(item, &ca_file.span)),
                address_places,
            });
        }
    }

    /// `idle_min <= idle_max <= connections_max`: what was not written gives way.
    fn idle_bounds(
        &mut self,
        item: &Item<file::Upstream>,
        mut limits: UpstreamLimits,
    ) -> UpstreamLimits {
        let fields = &item.fields;
        match &fields.idle_max {
            Some(written) if limits.idle_max > limits.connections_max => {
                let place = self.file.place_of(item, &written.span);
                self.push(
                    Problem::error(format!(
                        "`idle_max` is more than `connections_max` ({})",
                        limits.connections_max
                    ))
                    .at(place),
                );
            }
            Some(_) => {}
            None => limits.idle_max = limits.idle_max.min(limits.connections_max),
        }
        match &fields.idle_min {
            Some(written) if limits.idle_min > limits.idle_max => {
                let place = self.file.place_of(item, &written.span);
                self.push(
                    Problem::error(format!(
                        "`idle_min` is more than `idle_max` ({})",
                        limits.idle_max
                    ))
                    .at(place),
                );
            }
            Some(_) => {}
            None => limits.idle_min = limits.idle_min.min(limits.idle_max),
        }
        limits
    }

    fn static_address(&mut self, address: SocketAddr, place: &Place, listeners: &[Listener]) {
        let ours = listeners
            .iter()
            .find(|listener| listener.addresses.iter().any(|own| leads_to(address, *own)));
        if let Some(listener) = ours {
            let problem = Problem::error(format!(
                "{address} is our own listener {}: requests would go round in a circle",
                quote(&listener.name)
            ))
            .at(place.clone())
            .cure("write the address of the API itself");
            self.push(problem);
            return;
        }
        // A loopback address is possible where it is written, for a tunnel or a
        // stand-in on this machine; the others never lead to an API.
        if is_never_an_upstream(address.ip()) && !address.ip().to_canonical().is_loopback() {
            let problem = Problem::error(format!("{} never is an API's address", address.ip()))
                .at(place.clone())
                .expected("neither a link-local, multicast or unspecified address nor a cloud's metadata service");
            self.push(problem);
        }
        if address.port() == 0 {
            self.push(
                Problem::error("0 is not a port")
                    .at(place.clone())
                    .expected("1 to 65535"),
            );
        }
    }

    /// A host without a scheme, a port, a path.
    fn upstream_host<T>(&mut self, item: &Item<T>, written: &Written<String>) -> Option<String> {
        let text = written.value.trim_end_matches('.').to_ascii_lowercase();
        if text.parse::<IpAddr>().is_ok() || is_host_name(&text) {
            return Some(text);
        }
        let place = self.file.place_of(item, &written.span);
        let problem = Problem::error("not a host name")
            .at(place)
            .expected("a name without scheme, port and path, as in \"api.example.com\"");
        let problem = if text.starts_with("http://") {
            problem.cure("leave `http://` out: a key never travels in clear text, so upstreams are reached by TLS alone")
        } else if text.starts_with("https://") {
            problem.cure("leave `https://` out; TLS is all there is")
        } else if text.contains(':') {
            problem.cure("write the port as port = N")
        } else if text.starts_with("*.") {
            problem.cure("an upstream is one host; a route may serve `*.x`, but leads to one name")
        } else {
            problem
        };
        self.push(problem);
        None
    }

    // ---- [credential.NAME] -------------------------------------------------

    fn credentials(&mut self) {
        let file = self.file;
        for item in &file.credentials {
            let fields = &item.fields;
            self.table_name(item, "credential");
            if item.name == "none" {
                let place = file.place(item);
                self.push(
                    Problem::error(
                        "a credential cannot be named `none`: routes write \"none\" to use no key",
                    )
                    .at(place),
                );
            }
            let injection = self.injection(item);
            self.injections.insert(item.name.clone(), injection);
            let reference = match &fields.source {
                None if item.is_unread("source") => None,
                None => {
                    let place = file.place(item);
                    self.push(
                        Problem::error(format!("the credential {} has no `source`", quote(&item.name)))
                            .at(place)
                            .cure(format!("put the key into a file and write source = \"file:///etc/claviger/keys/{}\"", plain_file_name(&item.name))),
                    );
                    None
                }
                Some(written) => self.reference(file.place_of(item, &written.span), &written.value),
            };
            let index = reference.map(|reference| {
                self.credentials.push(CredentialDraft {
                    name: item.name.clone(),
                    reference,
                    allow_world_readable: fields
                        .allow_world_readable
                        .as_ref()
                        .is_some_and(|allow| allow.value),
                    place: fields.source.as_ref().map_or_else(
                        || file.place(item),
                        |source| file.place_of(item, &source.span),
                    ),
                });
                self.credentials.len() - 1
            });
            self.credential_sections.insert(item.name.clone(), index);
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

    /// How a credential says that it is written; `None` leaves it to the preset.
    fn injection(&mut self, item: &Item<file::Credential>) -> Option<Injection> {
        let fields = &item.fields;
        let file = self.file;
        let how = fields.inject.as_ref().map(|inject| inject.value);
        let slots = [
            (
                "name",
                &fields.name,
                [Inject::Header, Inject::Query].as_slice(),
            ),
            ("template", &fields.template, &[Inject::Header]),
            ("username", &fields.username, &[Inject::Basic]),
        ];
        for (field, written, belongs) in slots {
            let Some(written) = written else { continue };
            if how.is_some_and(|how| belongs.contains(&how)) || item.is_unread("inject") {
                continue;
            }
            let with: Vec<&str> = belongs
                .iter()
                .map(|inject| match inject {
                    Inject::Bearer => "inject = \"bearer\"",
                    Inject::Basic => "inject = \"basic\"",
                    Inject::Header => "inject = \"header\"",
                    Inject::Query => "inject = \"query\"",
                })
                .collect();
            let with = one_of(with);
            self.push(
                Problem::error(format!("`{field}` without {with}, where it belongs"))
                    .at(file.place_of(item, &written.span))
                    .cure(format!("write {with} too, or leave `{field}` out")),
            );
        }
        let place = |written: &Option<Written<String>>| {
            written.as_ref().map_or_else(
                || file.place(item),
                |written| file.place_of(item, &written.span),
            )
        };
        match how? {
            Inject::Bearer => Some(Injection::Bearer),
            Inject::Basic => {
                let username = fields
                    .username
                    .as_ref()
                    .map(|username| username.value.clone());
                if let Some(name) = &username
                    && (name.contains(':') || name.chars().any(char::is_control))
                {
                    self.push(
                        Problem::error(
                            "a user name with a colon or a control character (RFC 7617, section 2)",
                        )
                        .at(place(&fields.username)),
                    );
                }
                Some(Injection::Basic { username })
            }
            Inject::Header => {
                let name = match &fields.name {
                    Some(name) => name.value.clone(),
                    None => {
                        if !item.is_unread("name") {
                            self.push(
                                Problem::error("`inject = \"header\"` without `name`")
                                    .at(file.place(item))
                                    .cure("write the header's name, as in name = \"X-Api-Key\""),
                            );
                        }
                        return None;
                    }
                };
                self.header_name(&name, place(&fields.name), true);
                let template = fields
                    .template
                    .as_ref()
                    .map_or_else(|| "{key}".to_owned(), |template| template.value.clone());
                if template.matches("{key}").count() != 1
                    || !template.bytes().all(|byte| (0x20..0x7f).contains(&byte))
                {
                    self.push(
                        Problem::error("not a template for a header")
                            .at(place(&fields.template))
                            .expected(
                                "printable ASCII with `{key}` exactly once, as in \"Token {key}\"",
                            ),
                    );
                }
                Some(Injection::Header { name, template })
            }
            Inject::Query => match &fields.name {
                Some(name) if name.value.is_empty() => {
                    self.push(Problem::error("an empty parameter name").at(place(&fields.name)));
                    None
                }
                Some(name) => Some(Injection::Query {
                    name: name.value.clone(),
                }),
                None => {
                    if !item.is_unread("name") {
                        self.push(
                            Problem::error("`inject = \"query\"` without `name`")
                                .at(file.place(item))
                                .cure("write the parameter's name, as in name = \"key\""),
                        );
                    }
                    None
                }
            },
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
        if FRAMING_HEADERS.contains(&&*lower) || lower.starts_with("claviger-") {
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

    // ---- [[route]] ---------------------------------------------------------

    fn routes(&mut self) {
        let file = self.file;
        if file.routes.is_empty() && !file.problems.has_errors() {
            self.push(
                Problem::error(format!("no route in {} or its conf.d", file.path.display())).cure(
                    "write one, for example: [[route]] preset = \"sendgrid\" credential = \"file:///etc/claviger/keys/sendgrid\"",
                ),
            );
        }
        let mut names: HashMap<String, Place> = HashMap::new();
        for item in &file.routes {
            self.route(item, &mut names);
        }
        self.overlaps();
    }

    fn route(&mut self, item: &Item<file::Route>, names: &mut HashMap<String, Place>) {
        let file = self.file;
        let fields = &item.fields;
        let preset = self.preset(item);
        let hosts = self.route_hosts(item);
        let path = fields
            .path
            .as_ref()
            .and_then(|written| self.route_path(item, written, "path"));
        let upstream_path = fields
            .upstream_path
            .as_ref()
            .and_then(|written| self.route_path(item, written, "upstream_path"));
        let methods = self.methods(item);
        let callers = self.callers(item);
        let explicit_upstream = self.named_upstream(item);
        let targets = self.targets(
            item,
            preset,
            &hosts,
            &path,
            &upstream_path,
            explicit_upstream,
        );

        let default_name = match (preset, targets.first()) {
            (Some(preset), _) => preset.name.to_owned(),
            (None, Some(target)) if target.path == "/" => target.host.clone(),
            (None, Some(target)) => format!("{}{}", target.host, target.path),
            (None, None) => "route".to_owned(),
        };
        let (name, name_place) = match &fields.name {
            Some(written) => {
                self.name(item, written, "route");
                (written.value.clone(), file.place_of(item, &written.span))
            }
            None => (default_name, file.place(item)),
        };
        // A name by default needs something to be named after.
        let is_named = fields.name.is_some() || !targets.is_empty();
        if let Some(earlier) = names.get(&name).filter(|_| is_named) {
            let problem = Problem::error(format!("two routes are named {}", quote(&name)))
                .at(name_place)
                .also("first here:", earlier.clone())
                .cure("give each one a `name` of its own: the audit trail goes by it");
            self.push(problem);
        } else if is_named {
            names.insert(name.clone(), name_place);
        }

        let credential = self.route_credential(item, preset, &name);
        let strip = self.strip(
            item,
            preset,
            credential.as_ref().map(|(_, injection)| injection),
        );
        for target in targets {
            let draft = RouteDraft {
                name: name.clone(),
                path: target.path,
                methods: methods.clone(),
                callers: callers.clone(),
                upstream: target.upstream,
                credential: credential.clone(),
                upstream_path: target.upstream_path,
                strip_fields: strip.fields.clone(),
                strip_params: strip.params.clone(),
                keep_params: strip.keep.clone(),
                strip_cookies: fields
                    .strip_cookies
                    .as_ref()
                    .is_some_and(|strip| strip.value),
                upgrades: self.upgrades(item),
                refused: match preset {
                    Some(preset)
                        if !fields
                            .allow_key_management
                            .as_ref()
                            .is_some_and(|allow| allow.value) =>
                    {
                        preset.refused.clone()
                    }
                    _ => Vec::new(),
                },
                audit_required: fields
                    .audit
                    .as_ref()
                    .is_some_and(|audit| audit.value == AuditMode::Required),
                body_bytes_max: fields
                    .body_bytes_max
                    .as_ref()
                    .map_or(u64::MAX, |size| size.value.0),
                response_head_timeout: match &fields.response_head_timeout {
                    Some(_) => Some(self.timeout(
                        Some(item),
                        "response_head_timeout",
                        &fields.response_head_timeout,
                        Duration::from_secs(60),
                    )),
                    None => target.response_head_timeout,
                },
                place: file.place(item),
            };
            self.routes.entry(target.host).or_default().push(draft);
        }
    }

    fn preset(&mut self, item: &Item<file::Route>) -> Option<&'static Preset> {
        let written = item.fields.preset.as_ref()?;
        let found = presets::find(&written.value);
        if found.is_none() {
            let names = presets::all().iter().map(|preset| preset.name);
            let place = self.file.place_of(item, &written.span);
            let mut problem =
                Problem::error(format!("there is no preset {}", quote(&written.value)))
                    .at(place)
                    .meant(&written.value, names.clone());
            if problem.meant.is_none() {
                problem = problem.expected(one_of(names)).cure(
                    "leave `preset` out and write `host` and `credential`: a route needs no preset",
                );
            }
            self.push(problem);
        }
        found
    }

    fn route_hosts(&mut self, item: &Item<file::Route>) -> Vec<String> {
        let fields = &item.fields;
        let Some(OneOrMany(list)) = &fields.host else {
            if fields.preset.is_none() && !item.is_unread("host") && !item.is_unread("preset") {
                let place = self.file.place(item);
                self.push(
                    Problem::error("a route without `host` or `preset`")
                        .at(place)
                        .cure("write host = \"api.example.com\", the name that callers ask for"),
                );
            }
            return Vec::new();
        };
        let mut hosts: Vec<String> = Vec::new();
        for written in list {
            if let Some(host) = self.host_name(item, written) {
                if hosts.contains(&host) {
                    let place = self.file.place_of(item, &written.span);
                    self.push(
                        Problem::error(format!("the host {} is there twice", quote(&host)))
                            .at(place),
                    );
                } else {
                    hosts.push(host);
                }
            }
        }
        if list.is_empty() {
            let place = self.file.place(item);
            self.push(Problem::error("an empty list of hosts").at(place));
        }
        hosts
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

    fn route_path(
        &mut self,
        item: &Item<file::Route>,
        written: &Written<String>,
        field: &str,
    ) -> Option<String> {
        let text = &written.value;
        let place = self.file.place_of(item, &written.span);
        let problem = if !text.starts_with('/') {
            Problem::error(format!("`{field}` must start with `/`"))
        } else if text.contains(['?', '#']) {
            Problem::error(format!("`{field}` has a query or a fragment"))
                .cure("routes go by path alone; leave out what begins with `?` or `#`")
        } else if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            Problem::error(format!(
                "`{field}` has a space or a character that is not ASCII"
            ))
            .cure("write it percent-encoded, as it is sent")
        } else if text.contains('*') {
            Problem::error(format!("`{field}` has a `*`"))
                .cure("a path covers what lies under it; leave the `*` out")
        } else if text != "/" && !wire::target::readings(text.as_bytes()).is_empty() {
            Problem::error(format!("`{field}` can be read in several ways"))
                .cure("write it without dot segments, empty segments, `;` and encoded slashes")
        } else {
            return Some(text.clone());
        };
        self.push(problem.at(place));
        None
    }

    fn methods(&mut self, item: &Item<file::Route>) -> Vec<String> {
        let mut methods: Vec<String> = Vec::new();
        for written in item.fields.methods.iter().flat_map(|list| &list.value) {
            let method = &written.value;
            let place = self.file.place_of(item, &written.span);
            if matches!(&*method.to_ascii_uppercase(), "TRACE" | "TRACK" | "CONNECT") {
                self.push(
                    Problem::error(format!("{} is never served", quote(method)))
                        .at(place)
                        .cure("leave it out: TRACE and TRACK reflect the key, CONNECT opens a tunnel to anywhere"),
                );
            } else if !is_token(method) {
                self.push(
                    Problem::error("not a method")
                        .at(place)
                        .expected("as in \"GET\""),
                );
            } else if method.bytes().any(|byte| byte.is_ascii_lowercase()) {
                let upper = method.to_ascii_uppercase();
                let mut problem =
                    Problem::error("methods are written in upper case (they are case-sensitive)")
                        .at(place);
                problem.meant = Some(quote(&upper));
                self.push(problem);
            } else if methods.contains(method) {
                self.push(Problem::error(format!("{} is there twice", quote(method))).at(place));
            } else {
                methods.push(method.clone());
            }
        }
        if let Some(list) = &item.fields.methods
            && list.value.is_empty()
        {
            let place = self.file.place_of(item, &list.span);
            self.push(
                Problem::error("an empty list of methods serves nothing")
                    .at(place)
                    .cure("leave it out to serve all"),
            );
        }
        methods
    }

    fn callers(&mut self, item: &Item<file::Route>) -> Callers {
        let Some(OneOrMany(list)) = &item.fields.callers else {
            return Callers::Open;
        };
        if let [one] = list.as_slice()
            && one.value == "open"
        {
            return Callers::Open;
        }
        let mut networks = Vec::new();
        for written in list {
            let text = &written.value;
            let place = self.file.place_of(item, &written.span);
            if EVERYBODY.contains(&&*text.to_ascii_lowercase()) {
                self.push(
                    Problem::error(format!("{} would offer the key to the whole Internet", quote(text)))
                        .at(place)
                        .expected("\"open\" for loopback and private peers, or networks as in [\"10.0.0.0/8\"]")
                        .cure("if everybody may use this key, write callers = [\"0.0.0.0/0\", \"::/0\"]"),
                );
                continue;
            }
            if text == "open" {
                self.push(
                    Problem::error("\"open\" beside networks")
                        .at(place)
                        .cure("write callers = \"open\", or the networks alone"),
                );
                continue;
            }
            let network = match text.parse::<IpNet>() {
                Ok(network) => network,
                Err(_) => {
                    match text.parse::<IpAddr>() {
                        Ok(address) => IpNet::from(address),
                        Err(_) => {
                            let problem = Problem::error("not a rule for callers")
                            .at(place)
                            .meant(text, ["open"])
                            .expected("\"open\", or networks as in [\"10.0.0.0/8\", \"2001:db8::/32\"]");
                            self.push(problem);
                            continue;
                        }
                    }
                }
            };
            if network.trunc() != network {
                self.push(
                    Problem::error(format!("{network} has bits behind its mask"))
                        .at(place)
                        .cure(format!(
                            "write {} for the network, or {}/{} for the one address",
                            network.trunc(),
                            network.addr(),
                            network.max_prefix_len()
                        )),
                );
                continue;
            }
            if let IpNet::V6(v6) = network
                && v6.addr().to_ipv4_mapped().is_some()
                && v6.prefix_len() >= 96
            {
                self.push(
                    Problem::error("an IPv4 network in IPv6 clothes never matches")
                        .at(place)
                        .cure("write it as IPv4; callers that come over IPv6 sockets are matched by it too"),
                );
                continue;
            }
            let wide = match network {
                IpNet::V4(v4) => v4.prefix_len() < 8,
                IpNet::V6(v6) => v6.prefix_len() < 16 && !v6.addr().is_unique_local(),
            };
            if wide {
                self.push(
                    Problem::warning(format!(
                        "{network} lets callers from the Internet use this key"
                    ))
                    .at(place)
                    .cure("name the networks that need it, unless everybody is meant"),
                );
            }
            networks.push(network);
        }
        if list.is_empty() {
            let place = self.file.place(item);
            self.push(
                Problem::error("an empty list of callers lets nobody in")
                    .at(place)
                    .cure("write callers = \"open\", or networks"),
            );
        }
        Callers::Networks(networks)
    }

    /// The upstream that the route names. `Err` when it names one that is not there.
    fn named_upstream(&mut self, item: &Item<file::Route>) -> Result<Option<usize>, ()> {
        let Some(written) = &item.fields.upstream else {
            return if item.is_unread("upstream") {
                Err(())
            } else {
                Ok(None)
            };
        };
        let name = &written.value;
        if let Some(&index) = self.upstream_sections.get(name) {
            self.upstream_used.insert(index);
            return Ok(Some(index));
        }
        if self.upstream_broken.contains(name) {
            return Err(());
        }
        let place = self.file.place_of(item, &written.span);
        let known: Vec<String> = self
            .upstream_sections
            .keys()
            .chain(&self.upstream_broken)
            .cloned()
            .collect();
        let problem = if name.to_ascii_lowercase().starts_with("http://") {
            Problem::error("`upstream` names an [upstream.NAME], not a URL")
                .at(place)
                .cure("write [upstream.NAME] with `host`; there is no clear text to upstreams, since a key would travel in it")
        } else if name.contains("://") {
            Problem::error("`upstream` names an [upstream.NAME], not a URL")
                .at(place)
                .cure("write [upstream.NAME] with `host`, and that NAME here")
        } else {
            let mut known: Vec<&str> = known.iter().map(String::as_str).collect();
            known.sort_unstable();
            let problem = Problem::error(format!("there is no upstream {}", quote(name)))
                .at(place)
                .meant(name, known);
            if problem.meant.is_none() {
                problem.cure("write [upstream.NAME] for it, or leave `upstream` out to lead to the route's own host")
            } else {
                problem
            }
        };
        self.push(problem);
        Err(())
    }

    /// Which hosts and paths the route serves, and where each leads.
    fn targets(
        &mut self,
        item: &Item<file::Route>,
        preset: Option<&'static Preset>,
        hosts: &[String],
        path: &Option<String>,
        upstream_path: &Option<String>,
        upstream: Result<Option<usize>, ()>,
    ) -> Vec<Target> {
        let Ok(upstream) = upstream else {
            return Vec::new();
        };
        let place = self.file.place(item);
        let Some(preset) = preset else {
            if item.fields.preset.is_some() {
                return Vec::new();
            }
            return hosts
                .iter()
                .filter_map(|host| {
                    let upstream = match upstream {
                        Some(upstream) => upstream,
                        None if host.starts_with("*.") => {
                            self.push(
                                Problem::error(format!("the route serves {}, and no `upstream` says where it leads", quote(host)))
                                    .at(place.clone())
                                    .cure("write [upstream.NAME] with `host`, and upstream = \"NAME\" here"),
                            );
                            return None;
                        }
                        None if upstream_path.is_some() => {
                            self.push(
                                Problem::error("`upstream_path` without `upstream`")
                                    .at(place.clone())
                                    .cure("write upstream = \"NAME\": a path is rewritten for another host than the one that callers ask for"),
                            );
                            return None;
                        }
                        None => self.implied_upstream(host, &place)?,
                    };
                    Some(Target {
                        host: host.clone(),
                        path: path.clone().unwrap_or_else(|| "/".to_owned()),
                        upstream,
                        upstream_path: upstream_path.clone(),
                        response_head_timeout: None,
                    })
                })
                .collect();
        };

        // With a preset: its own hosts are addressed as they are (transparent);
        // any other host stands before the preset's first one (explicit).
        let serves: Vec<&PresetHost> = match (hosts.is_empty(), upstream) {
            (true, None) => preset
                .hosts
                .iter()
                .filter(|host| !host.on_request)
                .collect(),
            (true, Some(index)) => {
                let leads_to = self.upstreams[index].host.clone();
                let same: Vec<&PresetHost> = preset
                    .hosts
                    .iter()
                    .filter(|host| host.name == leads_to)
                    .collect();
                let names: BTreeSet<&str> = preset
                    .hosts
                    .iter()
                    .filter(|host| !host.on_request)
                    .map(|host| &*host.name)
                    .collect();
                if !same.is_empty() {
                    same
                } else if names.len() == 1 {
                    preset
                        .hosts
                        .iter()
                        .filter(|host| !host.on_request)
                        .collect()
                } else {
                    self.push(
                        Problem::error(format!(
                            "the preset `{}` has several hosts, and the upstream is none of them",
                            preset.name
                        ))
                        .at(place)
                        .cure(format!(
                            "write `host`: the name that callers ask for, such as {}",
                            one_of(names)
                        )),
                    );
                    return Vec::new();
                }
            }
            (false, _) => preset
                .hosts
                .iter()
                .filter(|host| hosts.contains(&host.name))
                .collect(),
        };
        let mut targets = Vec::new();
        for known in serves {
            let Some(upstream) = upstream.or_else(|| self.implied_upstream(&known.name, &place))
            else {
                continue;
            };
            targets.push(self.preset_target(
                preset,
                known,
                &known.name,
                path.clone(),
                upstream_path.clone(),
                upstream,
            ));
        }
        // A path of the operator's own replaces the preset's, so that a preset
        // with several paths on a host has one there.
        if path.is_some() {
            let mut seen = HashSet::new();
            targets.retain(|target| seen.insert(target.host.clone()));
        }
        for host in hosts
            .iter()
            .filter(|host| preset.hosts.iter().all(|known| known.name != **host))
        {
            if host.starts_with("*.") && upstream.is_none() {
                self.push(
                    Problem::error(format!(
                        "the route serves {}, and no `upstream` says where it leads",
                        quote(host)
                    ))
                    .at(place.clone())
                    .cure("write [upstream.NAME] with `host`, and upstream = \"NAME\" here"),
                );
                continue;
            }
            let Some(first) = preset.hosts.first() else {
                continue;
            };
            let Some(upstream) = upstream.or_else(|| self.implied_upstream(&first.name, &place))
            else {
                continue;
            };
            // A host of the operator's own that the provider's software runs on is
            // addressed as it is; any other one stands before the provider's.
            let itself = self.upstreams[upstream].host == *host;
            let upstream_path = upstream_path.clone().or_else(|| {
                let own = path.as_ref()?;
                (!itself && *own != first.path).then(|| first.path.clone())
            });
            targets.push(self.preset_target(
                preset,
                first,
                host,
                path.clone(),
                upstream_path,
                upstream,
            ));
        }
        targets
    }

    fn preset_target(
        &mut self,
        preset: &Preset,
        known: &PresetHost,
        host: &str,
        path: Option<String>,
        upstream_path: Option<String>,
        upstream: usize,
    ) -> Target {
        let section = self
            .file
            .upstreams
            .iter()
            .find(|item| item.name == self.upstreams[upstream].name);
        // What the preset knows holds, unless the upstream's section says otherwise.
        if section.is_none_or(|item| item.fields.read_timeout.is_none())
            && let Some(read_timeout) = preset.read_timeout
        {
            let limits = &mut self.upstreams[upstream].limits;
            limits.read_timeout = limits.read_timeout.max(read_timeout);
        }
        Target {
            host: host.to_owned(),
            path: path.unwrap_or_else(|| known.path.clone()),
            upstream,
            upstream_path,
            response_head_timeout: preset
                .response_head_timeout
                .filter(|_| section.is_none_or(|item| item.fields.response_head_timeout.is_none())),
        }
    }

    /// The upstream of a host that no section is named for: the host itself.
    fn implied_upstream(&mut self, host: &str, place: &Place) -> Option<usize> {
        if self.upstream_broken.contains(host) {
            return None;
        }
        let known = self
            .upstreams
            .iter()
            .position(|upstream| upstream.name == host);
        let index = match known {
            Some(index) => index,
            None => {
                self.upstreams.push(UpstreamDraft {
                    name: host.to_owned(),
                    host: host.to_owned(),
                    port: 443,
                    tls_name: ServerName::try_from(host.to_owned()).ok()?,
                    addresses: Vec::new(),
                    ca_file: None,
                    allow_private: false,
                    limits: UpstreamLimits::default(),
                    place: place.clone(),
                    ca_place: None,
                    address_places: Vec::new(),
                });
                self.upstreams.len() - 1
            }
        };
        self.upstream_used.insert(index);
        Some(index)
    }

    /// The key that the route writes, and how.
    fn route_credential(
        &mut self,
        item: &Item<file::Route>,
        preset: Option<&Preset>,
        route: &str,
    ) -> Option<(usize, Injection)> {
        let file = self.file;
        let default = preset.map_or(Injection::Bearer, |preset| preset.injection.clone());
        let Some(written) = &item.fields.credential else {
            if !item.is_unread("credential") {
                let place = file.place(item);
                self.push(
                    Problem::error(format!("the route {} has no `credential`", quote(route)))
                        .at(place)
                        .cure("write credential = \"file:///path/to/key\", the name of a [credential.NAME], or \"none\" to strip callers' keys and write none"),
                );
            }
            return None;
        };
        let text = &written.value;
        let place = file.place_of(item, &written.span);
        if text == "none" {
            return None;
        }
        if let Some(index) = self.credential_sections.get(text) {
            self.credential_used.insert(text.clone());
            let injection = self
                .injections
                .get(text)
                .cloned()
                .flatten()
                .unwrap_or(default);
            return index.map(|index| (index, injection));
        }
        if text.contains("://") || shape::has_key(text) {
            let reference = self.reference(place.clone(), text)?;
            if self.credential_sections.contains_key(route) {
                self.push(
                    Problem::error(format!(
                        "the route {} holds a reference of its own, and there is a credential of that name too",
                        quote(route)
                    ))
                    .at(place)
                    .cure(format!("write credential = \"{}\", or give the route another `name`", quote(route).trim_matches('`'))),
                );
                return None;
            }
            self.credentials.push(CredentialDraft {
                name: route.to_owned(),
                reference,
                allow_world_readable: false,
                place,
            });
            return Some((self.credentials.len() - 1, default));
        }
        // What stands here is not quoted: it may be a key without a shape.
        let mut known: Vec<&str> = self
            .credential_sections
            .keys()
            .map(String::as_str)
            .collect();
        known.sort_unstable();
        let meant = nearest(text, known.iter().copied()).map(quote);
        let mut problem = Problem::error(
            "`credential` is neither the name of a [credential.NAME] nor a reference to a key",
        )
        .at(place);
        if meant.is_none() {
            problem = problem
                .expected(if known.is_empty() {
                    "`file:///path`, `env://NAME` or `credential://NAME`".to_owned()
                } else {
                    format!("{}, or `file:///path`, `env://NAME`, `credential://NAME`", one_of(known))
                })
                .cure("if it is the key itself: put it into a file that only the service may read, name the file, and replace the key");
        }
        problem.meant = meant;
        self.push(problem);
        None
    }

    fn strip(
        &mut self,
        item: &Item<file::Route>,
        preset: Option<&Preset>,
        injection: Option<&Injection>,
    ) -> Strip {
        let file = self.file;
        let fields = &item.fields;
        let mut names: BTreeSet<String> = presets::header_slots().clone();
        names.extend(
            injection
                .and_then(Injection::header_slot)
                .map(str::to_ascii_lowercase),
        );
        for written in fields.strip_headers.iter().flat_map(|list| &list.value) {
            self.header_name(&written.value, file.place_of(item, &written.span), false);
            names.insert(written.value.to_ascii_lowercase());
        }
        let mut params: BTreeSet<String> = match preset {
            Some(preset) => {
                let slot = preset.injection.query_slot().map(str::to_owned);
                preset.strip_query.iter().cloned().chain(slot).collect()
            }
            None => presets::query_slots().iter().cloned().collect(),
        };
        let slot = injection.and_then(Injection::query_slot);
        params.extend(slot.map(str::to_owned));
        for written in fields.strip_query.iter().flat_map(|list| &list.value) {
            self.parameter(item, written);
            params.insert(written.value.clone());
        }
        let mut keep = Vec::new();
        for written in fields.keep_query.iter().flat_map(|list| &list.value) {
            self.parameter(item, written);
            if slot.is_some_and(|slot| slot.eq_ignore_ascii_case(&written.value)) {
                let place = file.place_of(item, &written.span);
                self.push(
                    Problem::error(format!(
                        "`keep_query` names {}, into which the key is written",
                        quote(&written.value)
                    ))
                    .at(place)
                    .cure("leave it out: a caller's own value never goes beside ours"),
                );
            }
            if fields
                .strip_query
                .iter()
                .flat_map(|list| &list.value)
                .any(|strip| strip.value.eq_ignore_ascii_case(&written.value))
            {
                let place = file.place_of(item, &written.span);
                self.push(
                    Problem::error(format!(
                        "{} is in `keep_query` and in `strip_query`",
                        quote(&written.value)
                    ))
                    .at(place),
                );
            }
            keep.push(written.value.clone());
        }
        Strip {
            fields: names.into_iter().collect(),
            params: params.into_iter().collect(),
            keep,
        }
    }

    fn parameter(&mut self, item: &Item<file::Route>, written: &Written<String>) {
        if written.value.is_empty() || written.value.contains(['=', '&', ';', '?']) {
            let place = self.file.place_of(item, &written.span);
            self.push(
                Problem::error("not the name of a query parameter")
                    .at(place)
                    .expected("the name alone, as in \"api_key\""),
            );
        }
    }

    fn upgrades(&mut self, item: &Item<file::Route>) -> Vec<String> {
        let Some(list) = &item.fields.upgrades else {
            return vec!["websocket".to_owned()];
        };
        let mut upgrades = Vec::new();
        for written in &list.value {
            let lower = written.value.to_ascii_lowercase();
            let place = self.file.place_of(item, &written.span);
            if !lower.split('/').all(is_token) {
                self.push(
                    Problem::error("not a protocol's name")
                        .at(place)
                        .expected("as in \"websocket\""),
                );
            } else if lower == "h2c" {
                self.push(
                    Problem::error("`h2c` is a tunnel in which nothing is stripped or recorded")
                        .at(place)
                        .cure("leave it out"),
                );
            }
            upgrades.push(lower);
        }
        upgrades
    }

    /// Two routes of a host that would both serve a request.
    fn overlaps(&mut self) {
        let mut problems = Vec::new();
        let mut pairs: Vec<(Place, Place)> = Vec::new();
        for (host, routes) in &self.routes {
            for (at, route) in routes.iter().enumerate() {
                let same = routes[..at].iter().find(|other| {
                    other.path == route.path
                        && (other.methods.is_empty() == route.methods.is_empty())
                        && (route.methods.is_empty()
                            || route
                                .methods
                                .iter()
                                .any(|method| other.methods.contains(method)))
                });
                // A preset has several hosts and paths; once is enough.
                let pair = same.map(|other| (other.place.clone(), route.place.clone()));
                if let Some(other) = same
                    && pair.is_some_and(|pair| {
                        !pairs.contains(&pair) && {
                            pairs.push(pair);
                            true
                        }
                    })
                {
                    problems.push(
                        Problem::error(format!(
                            "{} on {} is routed twice for the same methods",
                            quote(&route.path),
                            quote(host)
                        ))
                        .at(route.place.clone())
                        .also("first here:", other.place.clone())
                        .cure("give one of them another `path` or other `methods`"),
                    );
                }
            }
        }
        self.report.problems.extend(problems);
    }

    // ---- [host.NAME] -------------------------------------------------------

    fn hosts(&mut self, listeners: &[Listener]) -> Vec<HostDraft> {
        let file = self.file;
        let routes = std::mem::take(&mut self.routes);
        let mut sections: HashMap<String, &Item<file::Host>> = HashMap::new();
        for item in &file.hosts {
            let name = item.name.trim_end_matches('.').to_ascii_lowercase();
            if let Err(cure) = served_name(&name) {
                let problem = Problem::error("not a host name")
                    .at(file.place(item))
                    .expected("as in [host.\"api.example.com\"], with the name in quotes");
                self.push(match cure {
                    Some(cure) => problem.cure(cure),
                    None => problem,
                });
                continue;
            }
            if let Some(earlier) = sections.get(&name) {
                let problem = Problem::error(format!("the host {} is there twice", quote(&name)))
                    .at(file.place(item))
                    .also("first here:", file.place(earlier));
                self.push(problem);
                continue;
            }
            if !routes.contains_key(&name) {
                let problem =
                    Problem::warning(format!("no route serves the host {}", quote(&name)))
                        .at(file.place(item))
                        .meant(&name, routes.keys().map(String::as_str))
                        .cure("remove it, or write a route with this `host`");
                self.push(problem);
            }
            sections.insert(name, item);
        }
        let mut hosts = Vec::new();
        for (name, routes) in routes {
            let none = file::Host::default();
            let item = sections.get(&name).copied();
            let fields = item.map_or(&none, |item| &item.fields);
            let on = self.host_listeners(item, listeners);
            let tls = listeners.iter().any(|listener| {
                listener.tls && (on.is_empty() || on.iter().any(|name| **name == *listener.name))
            });
            let place = match (item, routes.first()) {
                (Some(item), _) => file.place(item),
                (None, Some(route)) => route.place.clone(),
                (None, None) => continue,
            };
            let certificates = match item {
                Some(item) => self.certificates(item),
                None => Certificates::Ca,
            };
            hosts.push(HostDraft {
                name,
                listeners: on,
                certificates: if tls {
                    certificates
                } else {
                    Certificates::None
                },
                client_ca: item.and_then(|item| self.path(Some(item), &fields.client_ca)),
                allow_world_readable: fields
                    .allow_world_readable
                    .as_ref()
                    .is_some_and(|allow| allow.value),
                place,
                routes,
            });
        }
        hosts
    }

    fn host_listeners(
        &mut self,
        item: Option<&Item<file::Host>>,
        listeners: &[Listener],
    ) -> Vec<String> {
        let Some((item, list)) =
            item.and_then(|item| item.fields.listeners.as_ref().map(|list| (item, list)))
        else {
            return Vec::new();
        };
        let mut names = Vec::new();
        for written in &list.value {
            if listeners
                .iter()
                .any(|listener| *listener.name == *written.value)
            {
                names.push(written.value.clone());
            } else {
                let place = self.file.place_of(item, &written.span);
                let known: Vec<&str> = listeners.iter().map(|listener| &*listener.name).collect();
                let problem =
                    Problem::error(format!("there is no listener {}", quote(&written.value)))
                        .at(place)
                        .meant(&written.value, known.iter().copied())
                        .expected(one_of(known));
                self.push(problem);
            }
        }
        if list.value.is_empty() {
            let place = self.file.place_of(item, &list.span);
            self.push(
                Problem::error("an empty list of listeners serves nothing")
                    .at(place)
                    .cure("leave it out to serve it on all"),
            );
        }
        names
    }

    fn certificates(&mut self, item: &Item<file::Host>) -> Certificates {
        let file = self.file;
        let fields = &item.fields;
        let list = match &fields.certificate {
            None => &[][..],
            Some(OneOrMany(list)) => list.as_slice(),
        };
        let is_ca = match list {
            [] => true,
            [one] => one.value == "ca",
            _ => false,
        };
        if is_ca {
            if let Some(written) = fields.private_key.as_ref().and_then(|keys| keys.0.first())
                && !item.is_unread("certificate")
            {
                let place = file.place_of(item, &written.span);
                self.push(
                    Problem::error("`private_key` without `certificate`")
                        .at(place)
                        .cure("write certificate = \"file:///path\", or leave both out for a certificate of the internal CA"),
                );
            }
            return Certificates::Ca;
        }
        let mut chains = Vec::new();
        for written in list {
            if written.value == "ca" {
                let place = file.place_of(item, &written.span);
                self.push(
                    Problem::error("\"ca\" beside certificate files")
                        .at(place)
                        .cure("write one or the other"),
                );
            } else {
                chains.extend(self.path_of(item, written));
            }
        }
        let mut keys = Vec::new();
        for written in fields.private_key.iter().flat_map(|list| &list.0) {
            keys.extend(self.path_of(item, written));
        }
        let keys_written = fields.private_key.as_ref().map_or(0, |list| list.0.len());
        if keys_written != list.len() && !item.is_unread("private_key") {
            let place = file.place(item);
            self.push(
                Problem::error(format!(
                    "{} in `certificate`, but {keys_written} in `private_key`",
                    list.len()
                ))
                .at(place)
                .cure("name one private key for each certificate, in the same order"),
            );
        }
        Certificates::Files(chains.into_iter().zip(keys).collect())
    }

    // ---- What is left ------------------------------------------------------

    fn unused(&mut self) {
        let file = self.file;
        // After other mistakes, much seems unused.
        let sure = !self.report.has_errors() && !file.problems.has_errors();
        for item in &file.upstreams {
            let used = self
                .upstream_sections
                .get(&item.name)
                .is_none_or(|index| self.upstream_used.contains(index));
            if !used && sure {
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

/// A host that a route serves, and where that leads.
struct Target {
    host: String,
    path: String,
    upstream: usize,
    upstream_path: Option<String>,
    response_head_timeout: Option<Duration>,
}

/// What is removed from requests.
struct Strip {
    fields: Vec<String>,
    params: Vec<String>,
    keep: Vec<String>,
}

/// Whether a connection to `address` would arrive at the listener's `own`.
/// Other addresses of this machine are compared when the file is resolved.
fn leads_to(address: SocketAddr, own: SocketAddr) -> bool {
    let (ip, own_ip) = (address.ip().to_canonical(), own.ip().to_canonical());
    address.port() == own.port()
        && (ip == own_ip || (own_ip.is_unspecified() && (ip.is_loopback() || ip.is_unspecified())))
}

fn listen_address(text: &str) -> Result<SocketAddr, String> {
    match text.parse::<SocketAddr>() {
        // Port 0 is any free one; which, the log says.
        Ok(address) => Ok(address),
        Err(_) => Err(
            if let Ok(ip) = text.trim_matches(['[', ']']).parse::<IpAddr>() {
                format!("write \"{}\"", SocketAddr::new(ip, 443))
            } else if let Some(port) = text
                .strip_prefix([':', '*'])
                .map(|rest| rest.trim_start_matches(':'))
                .or(Some(text))
                .filter(|port| port.parse::<u16>().is_ok())
            {
                format!("write \"0.0.0.0:{port}\" for every address of this machine")
            } else {
                "write the IP address itself; names are not looked up here".to_owned()
            },
        ),
    }
}

/// The name in the certificate of a well-known resolver.
fn known_resolver(address: &str) -> Option<&'static str> {
    Some(match address {
        "8.8.8.8" | "8.8.4.4" | "2001:4860:4860::8888" | "2001:4860:4860::8844" => "dns.google",
        "1.1.1.1" | "1.0.0.1" | "2606:4700:4700::1111" | "2606:4700:4700::1001" => {
            "cloudflare-dns.com"
        }
        "9.9.9.9" | "149.112.112.112" | "2620:fe::fe" => "dns.quad9.net",
        _ => return None,
    })
}

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
    if is_host_name(rest) {
        Ok(())
    } else {
        Err(None)
    }
}

/// A DNS name in lower case (RFC 1123, section 2.1; underscores are met with).
fn is_host_name(name: &str) -> bool {
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

/// A name as a file's name, for a cure that can be copied.
fn plain_file_name(name: &str) -> String {
    if shape::has_key(name)
        || !name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
    {
        "NAME".to_owned()
    } else {
        name.to_owned()
    }
}
