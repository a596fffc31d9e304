//! `[server]`, `[log]`, `[dns]`, `[audit]` and `[ca]`.

use std::collections::HashSet;
use std::path::PathBuf;
use std::time::Duration;

use policy::ServerLimits;
use wire::head::HeadLimits;

use super::{BODY_RATE_CEILING, CONNECTIONS_CEILING, Checker};
use crate::config::file;
use crate::config::file::{DnsProtocol, LogFormat, LogLevel, MemoryLock};
use crate::config::report::{Place, Problem};
use crate::config::settings::{AuditSettings, LogSettings, Settings};
use crate::config::written::{Workers, Written};
use crate::credentials::SecretRef;
use crate::names::{DnsSettings, Server};
use crate::pki::LEAF_LIFE_DEFAULT;

impl Checker<'_> {
    pub(super) fn settings(&mut self) -> (Settings, ServerLimits, bool) {
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
            body_rate_min: self.number(
                server,
                "body_rate_min",
                &fields.body_rate_min,
                0..=BODY_RATE_CEILING,
                default.body_rate_min as usize,
            ) as u64,
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
            exchanges_max: self.number(
                server,
                "exchanges_max",
                &fields.exchanges_max,
                1..=CONNECTIONS_CEILING,
                default.exchanges_max,
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
        let leaf_life = self.leaf_life();

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
        let driver = fields
            .driver
            .as_ref()
            .map_or(file::Driver::Auto, |driver| driver.value);
        let busy_poll_us = self.number(
            server,
            "busy_poll_us",
            &fields.busy_poll_us,
            0..=BUSY_POLL_US_MAX,
            0,
        );
        if let (Some(server), Some(written)) = (server, &fields.busy_poll_us)
            && busy_poll_us > 0
            && driver == file::Driver::IoUring
        {
            let place = file.place_of(server, &written.span);
            self.push(
                Problem::error("`busy_poll_us` does nothing on the io_uring driver")
                    .at(place)
                    .cure("leave it out, or write driver = \"epoll\""),
            );
        }
        let settings = Settings {
            workers,
            cpus,
            driver,
            busy_poll: Duration::from_micros(busy_poll_us as u64),
            user: fields.user.as_ref().map(|user| user.value.clone()),
            group: fields.group.as_ref().map(|group| group.value.clone()),
            state_dir,
            ca_dir,
            leaf_life,
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

    fn leaf_life(&mut self) -> Duration {
        let Some(ca) = &self.file.ca else {
            return LEAF_LIFE_DEFAULT;
        };
        let Some(written) = &ca.fields.leaf_lifetime else {
            return LEAF_LIFE_DEFAULT;
        };
        if written.value.0 < LEAF_LIFE_MIN {
            let place = self.file.place_of(ca, &written.span);
            self.push(
                Problem::error("`leaf_lifetime` is too short")
                    .at(place)
                    .expected("at least \"30s\"; \"1d\" and more for daily use"),
            );
        }
        written.value.0
    }

    /// What the internal CA's keys are encrypted under.
    pub(super) fn ca_passphrase(&mut self) -> Option<(SecretRef, Place)> {
        let ca = self.file.ca.as_ref()?;
        let written = ca.fields.passphrase.as_ref()?;
        let place = self.file.place_of(ca, &written.span);
        let reference = self.reference(place.clone(), &written.value)?;
        Some((reference, place))
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
}

/// A shorter life is an error: the next certificate has to be in force before the former ends.
const LEAF_LIFE_MIN: Duration = Duration::from_secs(30);

/// Bytes of a request head that may be configured at most. Each connection that
/// reads a head may hold that much.
const HEAD_BYTES_CEILING: u64 = 1 << 20;
/// Fewer would not hold the head of an ordinary SDK's request.
const HEAD_BYTES_FLOOR: u64 = 1 << 10;
/// Fields of a request head that may be configured at most.
const FIELDS_CEILING: u64 = 256;
/// Microseconds without sleep that may be configured at most. Who is away for longer
/// than that does not miss the few that waking takes.
const BUSY_POLL_US_MAX: u64 = 10_000;
/// Smallest audit file worth rotating.
const ROTATE_BYTES_FLOOR: u64 = 64 << 10;

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
