//! On the machine of a hub or an edge: its listener, its rules, and the way on from it.
//!
//! What a service's machine cannot know, the configuration says: which route a call takes,
//! what is stripped, which key is written. Then the way to the API, or to the hub, with the
//! very resolvers, roots and client certificate that the configuration names.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use policy::{AddressBook, Upstream};

use super::connection::{self, Answered, Probe};
use super::finding::Code;
use super::{Diagnosis, is_public, list, names};
use crate::config::{self, Outcome, Question, ResolveContext, Resolved};

/// Which configuration, and whose call.
#[derive(Debug, Clone)]
pub struct Options {
    /// The configuration's file.
    pub config: PathBuf,
    /// The method of a call.
    pub method: String,
    /// Its path.
    pub path: String,
    /// Where it comes from.
    pub from: IpAddr,
}

/// Looks at Claviger itself.
pub fn look(options: &super::Options, office: &Options, diagnosis: &mut Diagnosis) {
    let Some(resolved) = configuration(office, diagnosis) else {
        return;
    };
    let Some(index) = resolved.snapshot.find_host(&options.host) else {
        return diagnosis.find(
            Code::ConfigHostUnknown,
            format!("no route serves {}", options.host),
        );
    };
    let Some(route_name) = rules(options, office, &resolved, diagnosis) else {
        return;
    };
    listener(options, &resolved, diagnosis);
    let host = resolved.snapshot.host(index);
    let Some(route) = host
        .routes()
        .iter()
        .find(|route| *route.name == *route_name)
    else {
        return;
    };
    let mut seen = Vec::new();
    for (upstream, _) in route.every_way() {
        if !seen.contains(&upstream.id) {
            seen.push(upstream.id);
            onward(upstream, &resolved, diagnosis);
        }
    }
}

fn configuration(office: &Options, diagnosis: &mut Diagnosis) -> Option<Resolved> {
    let resolved = config::load(&office.config)
        .and_then(|file| config::resolve(&file, &mut ResolveContext::to_look()));
    match resolved {
        Ok(resolved) => {
            diagnosis.fact("config", format!("{} can be used", office.config.display()));
            Some(resolved)
        }
        Err(report) => {
            let first = report
                .problems
                .iter()
                .find(|problem| problem.severity == config::Severity::Error);
            let place = first.and_then(|problem| problem.place.as_ref());
            let place = place.map_or_else(String::new, |place| {
                format!("{}:{}: ", place.path.display(), place.line)
            });
            let what = first.map_or("it cannot be read", |problem| &problem.message);
            diagnosis.find(
                Code::ConfigInvalid,
                format!("{place}{what} ({})", report.summary()),
            );
            None
        }
    }
}

/// What the rules say of a call: the route's name, unless they refuse it.
fn rules(
    options: &super::Options,
    office: &Options,
    resolved: &Resolved,
    diagnosis: &mut Diagnosis,
) -> Option<String> {
    let question = Question {
        method: office.method.to_ascii_uppercase(),
        url: format!("https://{}{}", options.host, office.path),
        from: office.from,
    };
    let explanation = match config::explain(&resolved.snapshot, &AddressBook::default(), &question)
    {
        Ok(explanation) => explanation,
        Err(error) => {
            diagnosis.find(Code::RuleRefuses, error.to_string());
            return None;
        }
    };
    let asked = format!(
        "{} {} from {}",
        explanation.method, explanation.url, explanation.from
    );
    if let Outcome::Denied {
        status,
        reason,
        detail,
    } = &explanation.outcome
    {
        diagnosis.find(
            Code::RuleRefuses,
            format!("{asked}: {status} {reason}. {detail}"),
        );
        return None;
    }
    let route = explanation.route?;
    diagnosis.fact(
        "rule",
        format!("{asked}: route {}, callers {}", route.name, route.callers),
    );
    diagnosis.fact(
        "strips",
        format!(
            "headers {}; query parameters {}",
            route.strip_headers.join(", "),
            route.strip_query.join(", ")
        ),
    );
    match (&route.writes, &route.credential) {
        (Some(writes), Some(credential)) => {
            diagnosis.fact("writes", format!("{writes}, credential {credential}"))
        }
        _ => diagnosis.fact("writes", "no key"),
    }
    Some(route.name)
}

/// Whether a Claviger answers at the address that the configuration listens on.
fn listener(options: &super::Options, resolved: &Resolved, diagnosis: &mut Diagnosis) {
    let serving = resolved
        .snapshot
        .find_host(&options.host)
        .map(|index| resolved.snapshot.host(index));
    let Some(listener) =
        resolved.snapshot.listeners.iter().find(|listener| {
            listener.tls && serving.is_some_and(|host| host.is_on(&listener.name))
        })
    else {
        return diagnosis.fact("listener", "none that speaks TLS serves this host");
    };
    let Some(&written) = listener
        .addresses
        .iter()
        .find(|address| address.port() != 0)
    else {
        return diagnosis.fact("listener", "its port is chosen at the start: not looked at");
    };
    // Whoever listens on every address listens on this one.
    let address = match written.ip() {
        ip if ip.is_unspecified() && ip.is_ipv4() => {
            SocketAddr::new(Ipv4Addr::LOCALHOST.into(), written.port())
        }
        ip if ip.is_unspecified() => {
            SocketAddr::new(std::net::Ipv6Addr::LOCALHOST.into(), written.port())
        }
        _ => written,
    };
    let connection = connection::connect(address)
        .and_then(|socket| connection::handshake(socket, address, &options.host));
    match connection {
        Err(finding) if finding.code == Code::TlsNameRefused => diagnosis.findings.push(finding),
        Err(finding) => diagnosis.find(Code::ListenerRefused, finding.sentence),
        Ok(connection) => match connection.ask(&options.host, Probe::Trace) {
            Ok(Answered { own: Some(_), .. }) => {
                diagnosis.fact("listener", format!("Claviger answers at {address}"))
            }
            Ok(_) => diagnosis.find(
                Code::NotClaviger,
                format!("something else answers at {address}"),
            ),
            // A host with `client_ca` refuses a client without a certificate after the handshake.
            Err(_) => diagnosis.fact(
                "listener",
                format!("{address} speaks TLS and serves this host, to callers with a certificate"),
            ),
        },
    }
}

/// The way to the API, or to the hub.
fn onward(upstream: &Arc<Upstream>, resolved: &Resolved, diagnosis: &mut Diagnosis) {
    let addresses = if upstream.addresses.is_empty() {
        looked_up(upstream, resolved, diagnosis)
    } else {
        upstream.addresses.to_vec()
    };
    if addresses.is_empty() {
        return;
    }
    let mut failures = Vec::new();
    for &address in &addresses {
        let socket = match connection::connect(address) {
            Ok(socket) => socket,
            Err(finding) => {
                failures.push((Code::UpstreamUnreachable, finding.sentence));
                continue;
            }
        };
        let name = upstream.tls_name.to_str();
        let connection = match connection::handshake_with((*upstream.tls).clone(), socket, &name) {
            Ok(connection) => connection,
            Err(error) => {
                failures.push((
                    Code::UpstreamHandshakeFailed,
                    format!("{} at {address}: {error}", upstream.name),
                ));
                continue;
            }
        };
        if !upstream.is_hub {
            return diagnosis.fact(
                "upstream",
                format!("{} at {address}: verified", upstream.name),
            );
        }
        match connection.ask(&upstream.host, Probe::Trace) {
            Ok(Answered { own: Some(_), .. }) => {
                return diagnosis.fact(
                    "hub",
                    format!("{} at {address}: verified, and a Claviger", upstream.name),
                );
            }
            Ok(answered) => failures.push((
                Code::HubIsNoClaviger,
                format!(
                    "{} at {address} answers {} as Claviger never does",
                    upstream.name, answered.status
                ),
            )),
            Err(error) => failures.push((
                Code::UpstreamHandshakeFailed,
                format!("{} at {address}: {error}", upstream.name),
            )),
        }
    }
    for (code, sentence) in failures {
        diagnosis.find(code, sentence);
    }
}

/// What the configured resolvers say, without what Claviger would not go to.
fn looked_up(
    upstream: &Upstream,
    resolved: &Resolved,
    diagnosis: &mut Diagnosis,
) -> Vec<SocketAddr> {
    let Some(name) = resolved
        .names
        .iter()
        .find(|name| name.upstream == upstream.id)
    else {
        return Vec::new();
    };
    let dns = &resolved.settings.dns;
    if dns.servers.iter().any(|server| server.tls_name.is_some()) {
        diagnosis.fact(
            "upstream",
            "its resolvers are asked over TLS: the log and the status line say what they answer",
        );
        return Vec::new();
    }
    let servers: Vec<SocketAddr> = dns.servers.iter().map(|server| server.address).collect();
    let told = names::ask(&servers, &name.host).unwrap_or_default();
    let mut found: Vec<IpAddr> = told.iter().flat_map(names::Told::addresses).collect();
    found.sort();
    found.dedup();
    if found.is_empty() {
        let servers: Vec<String> = servers.iter().map(ToString::to_string).collect();
        diagnosis.find(
            Code::UpstreamDnsFailed,
            format!("{} give no address for {}", servers.join(", "), name.host),
        );
        return Vec::new();
    }
    let mut good = Vec::new();
    for ip in found {
        let address = SocketAddr::new(ip, name.port);
        match resolved
            .own_addresses
            .objection(address, name.allow_private)
        {
            None => good.push(address),
            Some(why) => diagnosis.find(
                Code::UpstreamAddressRefused,
                format!("{} leads to {address}: {why}", name.host),
            ),
        }
    }
    let ips: Vec<IpAddr> = good.iter().map(SocketAddr::ip).collect();
    let public = if ips.iter().all(|&ip| is_public(ip)) {
        "public"
    } else {
        "allowed"
    };
    if !ips.is_empty() {
        diagnosis.fact(
            "upstream",
            format!(
                "{} is {} ({public}, and not ourselves)",
                name.host,
                list(&ips)
            ),
        );
    }
    good
}
