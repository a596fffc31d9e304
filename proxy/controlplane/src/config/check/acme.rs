//! `[acme]`: the public authority, and how it is shown that hosts are ours.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use policy::Listener;

use super::Checker;
use crate::config::draft::{AcmeDraft, Certificates, HostDraft};
use crate::config::file::{self, AcmeChallenge, Item};
use crate::config::report::{Problem, quote};
use crate::config::written::{OneOrMany, Written};
use crate::names::{DnsSettings, Server};
use crate::pki::acme::{Answer, DIRECTORY_DEFAULT, Hook};

/// For one call of the hook.
const HOOK_TIMEOUT: Duration = Duration::from_secs(60);
/// Until every resolver that is asked knows a record.
const PROPAGATION_TIMEOUT: Duration = Duration::from_secs(300);
/// Where the authority looks (RFC 8555, 8.3).
const HTTP_LISTEN: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), 80);

impl Checker<'_> {
    pub(super) fn acme(
        &mut self,
        hosts: &[HostDraft],
        listeners: &[Listener],
        dns: &DnsSettings,
    ) -> Option<AcmeDraft> {
        let mut hosts = hosts
            .iter()
            .filter(|host| host.certificates == Certificates::Acme)
            .peekable();
        let file = self.file;
        let Some(item) = &file.acme else {
            for host in hosts {
                self.push(
                    Problem::error(format!(
                        "{} shall have a certificate of a public authority, and there is no [acme]",
                        quote(&host.name)
                    ))
                    .at(host.place.clone())
                    .cure("write [acme] with `terms_agreed` and `challenge`"),
                );
            }
            return None;
        };
        let place = file.place(item);
        if hosts.peek().is_none() {
            self.push(
                Problem::warning("no host has a certificate of the authority in [acme]")
                    .at(place)
                    .cure("write certificate = \"acme\" in [host.NAME], or remove the section"),
            );
            return None;
        }
        let fields = &item.fields;
        if !fields.terms_agreed.as_ref().is_some_and(|it| it.value)
            && !item.is_unread("terms_agreed")
        {
            self.push(
                Problem::error("the authority wants you to agree to its terms of service")
                    .at(place.clone())
                    .cure("read them, and write terms_agreed = true"),
            );
        }
        let directory = match &fields.directory {
            None => DIRECTORY_DEFAULT.to_owned(),
            Some(written) => {
                let is_https = url::Url::parse(&written.value)
                    .is_ok_and(|url| url.scheme() == "https" && url.has_host());
                if !is_https {
                    let place = file.place_of(item, &written.span);
                    self.push(
                        Problem::error("not the URL of a directory")
                            .at(place)
                            .expected(format!("an https URL, as in \"{DIRECTORY_DEFAULT}\"")),
                    );
                }
                written.value.clone()
            }
        };
        let mut contact = Vec::new();
        for written in list(&fields.contact) {
            if url::Url::parse(&written.value).is_err() {
                let place = file.place_of(item, &written.span);
                self.push(
                    Problem::error("not a URL")
                        .at(place)
                        .expected("as in \"mailto:ops@example.com\""),
                );
            }
            contact.push(written.value.clone());
        }
        let ca_file = self.path(Some(item), &fields.ca_file);
        let external_account = self.external_account(item);
        let answer = self.answer(item, listeners, dns)?;
        for host in hosts {
            if host.name.starts_with("*.") && !matches!(answer, Answer::Dns { .. }) {
                self.push(
                    Problem::error(format!(
                        "a certificate for {} is given by way of DNS alone",
                        quote(&host.name)
                    ))
                    .at(host.place.clone())
                    .cure("write challenge = \"dns-01\" and `hook` in [acme], or name the hosts one by one"),
                );
            }
        }
        Some(AcmeDraft {
            directory,
            contact,
            ca_file,
            answer,
            external_account,
            place,
        })
    }

    fn answer(
        &mut self,
        item: &Item<file::Acme>,
        listeners: &[Listener],
        dns: &DnsSettings,
    ) -> Option<Answer> {
        let file = self.file;
        let fields = &item.fields;
        let Some(challenge) = &fields.challenge else {
            if !item.is_unread("challenge") {
                let place = file.place(item);
                self.push(
                    Problem::error(
                        "[acme] does not say how the authority is shown that a host is yours",
                    )
                    .at(place)
                    .cure("write challenge = \"dns-01\", \"http-01\" or \"tls-alpn-01\""),
                );
            }
            return None;
        };
        let belongs = |fields: &[(&'static str, bool)], to: &str| {
            let stray = fields.iter().filter(|(_, is_there)| *is_there);
            stray
                .map(|(field, _)| {
                    Problem::warning(format!("`{field}` is for challenge = \"{to}\" alone"))
                        .at(file.place(item))
                        .cure("remove it")
                })
                .collect::<Vec<_>>()
        };
        let dns_fields = [
            ("hook", fields.hook.is_some()),
            ("hook_timeout", fields.hook_timeout.is_some()),
            ("resolvers", fields.resolvers.is_some()),
            ("propagation_timeout", fields.propagation_timeout.is_some()),
        ];
        let http_fields = [("http_listen", fields.http_listen.is_some())];
        if challenge.value != AcmeChallenge::Dns {
            self.report.problems.extend(belongs(&dns_fields, "dns-01"));
        }
        if challenge.value != AcmeChallenge::Http {
            self.report
                .problems
                .extend(belongs(&http_fields, "http-01"));
        }
        match challenge.value {
            AcmeChallenge::TlsAlpn => Some(Answer::TlsAlpn),
            AcmeChallenge::Http => {
                let mut addresses = Vec::new();
                for written in list(&fields.http_listen) {
                    let place = file.place_of(item, &written.span);
                    match written.value.parse::<SocketAddr>() {
                        Ok(address) => addresses.push(address),
                        Err(_) => self.push(
                            Problem::error("not an address with a port")
                                .at(place)
                                .expected("as in \"0.0.0.0:80\" or \"[::]:80\""),
                        ),
                    }
                }
                if addresses.is_empty() {
                    addresses.push(HTTP_LISTEN);
                }
                let taken = addresses.iter().find(|address| {
                    let mut bound = listeners.iter().flat_map(|listener| &listener.addresses);
                    address.port() != 0 && bound.any(|bound| overlap(bound, address))
                });
                if let Some(address) = taken {
                    let place = file.place(item);
                    self.push(
                        Problem::error(format!("a listener of callers is at {address} already"))
                            .at(place)
                            .cure("give challenges a port of their own by `http_listen`; the authority looks at port 80"),
                    );
                }
                Some(Answer::Http(addresses))
            }
            AcmeChallenge::Dns => {
                let command: Vec<String> = list(&fields.hook)
                    .map(|written| written.value.clone())
                    .collect();
                let place = file.place(item);
                match command.first() {
                    None if item.is_unread("hook") => {}
                    None => self.push(
                        Problem::error("challenge = \"dns-01\" without `hook`, which writes the record")
                            .at(place)
                            .cure("write hook = [\"/path/to/program\"]; docs/certificates.md says how it is called"),
                    ),
                    Some(program) if !Path::new(program).is_absolute() => self.push(
                        Problem::error("`hook` does not begin with an absolute path")
                            .at(place)
                            .cure("write the whole path of the program; no PATH is searched for it"),
                    ),
                    Some(_) => {}
                }
                let mut resolvers = Vec::new();
                for written in list(&fields.resolvers) {
                    let place = file.place_of(item, &written.span);
                    match written.value.parse::<Server>() {
                        Ok(server) => resolvers.push(server),
                        Err(error) => self.push(
                            Problem::error("not a resolver")
                                .at(place)
                                .expected(error.to_string()),
                        ),
                    }
                }
                if resolvers.is_empty() {
                    resolvers = dns.servers.clone();
                }
                Some(Answer::Dns {
                    hook: Hook {
                        command,
                        time_max: self.timeout(
                            Some(item),
                            "hook_timeout",
                            &fields.hook_timeout,
                            HOOK_TIMEOUT,
                        ),
                    },
                    resolvers,
                    propagation: self.timeout(
                        Some(item),
                        "propagation_timeout",
                        &fields.propagation_timeout,
                        PROPAGATION_TIMEOUT,
                    ),
                })
            }
        }
    }

    fn external_account(
        &mut self,
        item: &Item<file::Acme>,
    ) -> Option<(String, crate::credentials::SecretRef)> {
        let file = self.file;
        let fields = &item.fields;
        match (&fields.eab_key_id, &fields.eab_key) {
            (Some(id), Some(key)) => {
                let place = file.place_of(item, &key.span);
                let key = self.reference(place, &key.value)?;
                Some((id.value.clone(), key))
            }
            (None, None) => None,
            _ => {
                let place = file.place(item);
                self.push(
                    Problem::error("`eab_key_id` and `eab_key` belong together")
                        .at(place)
                        .cure("write both, as the authority gave them, or neither"),
                );
                None
            }
        }
    }
}

fn list(written: &Option<OneOrMany>) -> impl Iterator<Item = &Written<String>> {
    written.iter().flat_map(|list| &list.0)
}

/// Whether one socket takes what the other is bound to.
fn overlap(one: &SocketAddr, other: &SocketAddr) -> bool {
    one.port() == other.port()
        && (one.ip() == other.ip() || one.ip().is_unspecified() || other.ip().is_unspecified())
}
