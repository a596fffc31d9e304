//! [`Init`]: configurations to begin with, for `claviger init`.
//!
//! What is written is as short as it can be, and says what has to be put where. It is good as it is:
//! once the files that it names are there, [`check`](super::check()) accepts it. Nothing here reads or
//! writes a file.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::check::is_host_name;
use super::presets::{self, Preset};
use super::report::one_of;

/// Which configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Init {
    /// A Claviger without keys, near its callers.
    Edge {
        /// The names of its hubs, the preferred one first.
        hubs: Vec<String>,
        /// It shows a token instead of a certificate.
        by_token: bool,
        /// The hosts that callers ask for.
        hosts: Vec<String>,
        /// Providers whose hosts they are as well.
        presets: Vec<String>,
    },
    /// A Claviger with keys, that edges come to.
    Hub {
        /// The name by which edges know it.
        host: String,
        /// The edge's name.
        edge: String,
        /// Where the edge comes from; none is from anywhere.
        edge_networks: Vec<String>,
        /// Providers whose keys it holds.
        presets: Vec<String>,
    },
    /// One service's API, as a file for `conf.d`.
    Service {
        /// The provider.
        preset: String,
        /// Who may use it.
        callers: Vec<String>,
    },
}

/// Where the files are that a configuration names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// Keys, certificates and tokens; usually `/etc/claviger`.
    pub directory: PathBuf,
    /// State, with the internal CA in it; usually `/var/lib/claviger`.
    pub state: PathBuf,
    /// The audit trail; usually `/var/log/claviger/audit.ndjson`.
    pub audit: PathBuf,
}

impl Default for Places {
    fn default() -> Self {
        Self {
            directory: "/etc/claviger".into(),
            state: "/var/lib/claviger".into(),
            audit: "/var/log/claviger/audit.ndjson".into(),
        }
    }
}

impl Init {
    /// The text of the configuration.
    ///
    /// # Errors
    /// A name that is no host's, or a preset that is not there; in a sentence for the operator.
    pub fn render(&self, places: &Places) -> Result<String, String> {
        match self {
            Init::Edge {
                hubs,
                by_token,
                hosts,
                presets,
            } => edge(hubs, *by_token, hosts, presets, places),
            Init::Hub {
                host,
                edge,
                edge_networks,
                presets,
            } => hub(host, edge, edge_networks, presets, places),
            Init::Service { preset, callers } => service(preset, callers, places),
        }
    }
}

fn edge(
    hubs: &[String],
    by_token: bool,
    hosts: &[String],
    presets: &[String],
    places: &Places,
) -> Result<String, String> {
    let mut served = Vec::new();
    for preset in presets {
        let by_default = found(preset)?.hosts.iter().filter(|host| !host.on_request);
        served.extend(by_default.map(|host| host.name.clone()));
    }
    for host in hosts {
        served.push(host_name(host)?);
    }
    let is_example = served.is_empty();
    if is_example {
        served.push("api.example.com".to_owned());
    }
    served.sort_unstable();
    served.dedup();
    let permits = permits(&served);
    let mut text = format!(
        "# An edge: services in this network call APIs by their own names, which lead here, and find no key here.\n\
         # The hub holds the keys. Check with `claviger check`, then `systemctl start claviger`.\n\
         #\n\
         # Once: claviger ca init{permits} --dir {ca}\n\
         #       claviger ca export --dir {ca} --out root.crt      (for install-ca on the services' machines)\n\n",
        ca = shown(&places.state.join("ca")),
    );
    begin(&mut text, places);
    let proof = match by_token {
        true => format!(
            "# What we show it. The hub's [caller.NAME] has the same: `openssl rand -hex 32`.\n\
             token = {}\n",
            reference(&places.directory.join("edge.token"))
        ),
        false => format!(
            "# What we show it: a client certificate by the CA that the hub's `client_ca` names.\n\
             client_certificate = {}\n\
             client_key = {}\n",
            quoted(&places.directory.join("edge.pem")),
            quoted(&places.directory.join("edge.key"))
        ),
    };
    let mut names = Vec::new();
    for (number, hub) in hubs.iter().enumerate() {
        let name = match number {
            0 => "hub".to_owned(),
            _ => format!("hub-{}", number + 1),
        };
        let host = host_name(hub)?;
        let _ = write!(
            text,
            "[upstream.{name}]\n\
             host = \"{host}\"\n\
             hub = true\n\
             {proof}\
             # Where its certificate is not a public one:\n\
             # ca_file = {}\n\
             # Where it has a private address, as behind a VPN:\n\
             # allow_private = true\n\n",
            quoted(&places.directory.join("hub-root.pem")),
        );
        names.push(format!("\"{name}\""));
    }
    if names.is_empty() {
        return Err("an edge needs a hub: name one with --hub".to_owned());
    }
    let upstream = match names.as_slice() {
        [one] => one.clone(),
        several => format!("[{}]", several.join(", ")),
    };
    let list: Vec<String> = served.iter().map(|host| format!("\"{host}\"")).collect();
    let _ = write!(
        text,
        "{}[[route]]\n\
         name = \"hub\"\n\
         host = [{}]\n\
         upstream = {upstream}\n\
         # Loopback and private addresses. Others by network, or by name with a [caller.NAME].\n\
         callers = \"open\"\n",
        match is_example {
            true =>
                "# An example: write the hosts that your services call, each of which the hub serves.\n",
            false =>
                "# Each of these is served by the hub, where a route's `callers` name this edge.\n",
        },
        list.join(", ")
    );
    Ok(text)
}

fn hub(
    host: &str,
    edge: &str,
    networks: &[String],
    presets: &[String],
    places: &Places,
) -> Result<String, String> {
    let host = host_name(host)?;
    if edge.is_empty()
        || !edge
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    {
        return Err(format!(
            "`{edge}` is not a name for an edge: letters, digits and `-`"
        ));
    }
    let mut served = Vec::new();
    let mut routes = String::new();
    for name in presets {
        let preset = found(name)?;
        let by_default = preset.hosts.iter().filter(|host| !host.on_request);
        served.extend(by_default.map(|host| host.name.clone()));
        route(
            &mut routes,
            preset,
            &format!("[\"open\", \"{edge}\"]"),
            places,
        );
        routes.push('\n');
    }
    if presets.is_empty() {
        served.push("api.example.com".to_owned());
        let _ = write!(
            routes,
            "# An example. `claviger init service --preset NAME` writes routes for well-known APIs.\n\
             [[route]]\n\
             host = \"api.example.com\"\n\
             credential = {}\n\
             callers = [\"open\", \"{edge}\"]\n",
            reference(&places.directory.join("keys/example"))
        );
    }
    let mut text = format!(
        "# A hub: it holds the keys. Services in this network call APIs by their own names, which lead here;\n\
         # edges in other networks come to {host}. Check with `claviger check`.\n\
         #\n\
         # Once: claviger ca init{permits} --dir {ca}\n\
         #       claviger ca export --dir {ca} --out root.crt      (for install-ca on the services' machines)\n\n",
        permits = permits(&served),
        ca = shown(&places.state.join("ca")),
    );
    begin(&mut text, places);
    public_certificate(&mut text, &host, places);
    let networks: Vec<String> = networks
        .iter()
        .map(|network| match network.parse::<ipnet::IpNet>() {
            Ok(network) => Ok(format!("\"{network}\"")),
            Err(_) => match network.parse::<std::net::IpAddr>() {
                Ok(address) => Ok(format!("\"{address}\"")),
                Err(_) => Err(format!("`{network}` is neither an address nor a network")),
            },
        })
        .collect::<Result<_, _>>()?;
    let _ = write!(
        text,
        "# The CA of the edges' certificates, and what it has revoked. Nobody else may issue from it.\n\
         client_ca = {ca}\n\
         # client_crl = {crl}\n\
         # With an edge that shows a token instead: client_certificate = \"request\"\n\
         edges = [\"{edge}\"]\n\n\
         [caller.{edge}]\n\
         # A name in its certificate; or token = \"file://...\", as in its own configuration; or both.\n\
         certificate = \"{edge}.{host}\"\n\
         {networks}\n\n\
         {routes}",
        ca = quoted(&places.directory.join("edges-ca.pem")),
        crl = quoted(&places.directory.join("edges.crl")),
        networks = match networks.is_empty() {
            true => "# Where it comes from; from anywhere without this line:\n# networks = [\"203.0.113.7/32\"]"
                .to_owned(),
            false => format!("networks = [{}]", networks.join(", ")),
        },
    );
    Ok(text)
}

/// The hub's public certificate: `[acme]`, and `[host]` left open for further lines.
fn public_certificate(text: &mut String, host: &str, places: &Places) {
    let _ = write!(
        text,
        "# A public certificate, which edges verify without further ado: obtained by ACME and renewed by itself.\n\
         # The hook writes the DNS record that shows that the name is yours, so that nothing has to be opened\n\
         # towards here; docs/certificates.md says how it is called.\n\
         [acme]\n\
         # By this line you agree to the authority's terms of service.\n\
         terms_agreed = true\n\
         challenge = \"dns-01\"\n\
         hook = [{}]\n\
         # contact = \"mailto:operators@example.com\"\n\n\
         [host.\"{host}\"]\n\
         certificate = \"acme\"\n\
         # Or, without [acme], one from elsewhere, which is read again when it changes:\n\
         # certificate = {}\n\
         # private_key = {}\n",
        quoted(&places.directory.join("acme-dns")),
        reference(&places.directory.join("tls/hub.pem")),
        reference(&places.directory.join("tls/hub.key")),
    );
}

fn service(preset: &str, callers: &[String], places: &Places) -> Result<String, String> {
    let preset = found(preset)?;
    let callers = match callers {
        [] => "\"open\"".to_owned(),
        some => {
            let some: Vec<String> = some.iter().map(|caller| format!("{caller:?}")).collect();
            format!("[{}]", some.join(", "))
        }
    };
    let mut text = format!(
        "# {}: {}\n# A file for conf.d beside claviger.toml.\n",
        preset.title, preset.reference
    );
    if let Some(note) = &preset.note {
        let _ = writeln!(text, "# {note}");
    }
    text.push('\n');
    route(&mut text, preset, &callers, places);
    let on_request: Vec<&str> = preset
        .hosts
        .iter()
        .filter(|host| host.on_request)
        .map(|host| &*host.name)
        .collect();
    if !on_request.is_empty() {
        let _ = writeln!(
            text,
            "# Served where they are named, in place of the others:\n# host = {on_request:?}"
        );
    }
    text.push_str(
        "# No record, no request: 503 instead.\n\
         # audit = \"required\"\n",
    );
    if !preset.refused.is_empty() {
        text.push_str(
            "# Its endpoints that read or make keys are refused, unless you write:\n\
             # allow_key_management = true\n",
        );
    }
    Ok(text)
}

/// A provider's route, left open for further lines.
fn route(text: &mut String, preset: &Preset, callers: &str, places: &Places) {
    let _ = write!(
        text,
        "[[route]]\n\
         preset = \"{name}\"\n\
         # One line, and readable for the service alone: install -m 640 -g claviger /dev/stdin FILE\n\
         credential = {key}\n\
         # \"open\" (loopback and private addresses) or networks; beside either, names of [caller.NAME].\n\
         callers = {callers}\n",
        name = preset.name,
        key = reference(&places.directory.join("keys").join(preset.name)),
    );
}

/// What every configuration has in front.
fn begin(text: &mut String, places: &Places) {
    let usual = Places::default();
    let line = |name: &str, path: &Path, usual: &Path| {
        let mark = if path == usual { "# " } else { "" };
        format!("{mark}{name} = {}\n", quoted(path))
    };
    let _ = write!(
        text,
        "[server]\n\
         # Given up after the start, where systemd has not seen to it:\n\
         # user = \"claviger\"\n\
         {}\n\
         [audit]\n\
         {}\n",
        line("state_dir", &places.state, &usual.state),
        line("path", &places.audit, &usual.audit),
    );
}

/// `--permit` for the domains of some hosts.
fn permits(hosts: &[String]) -> String {
    let mut domains: Vec<&str> = hosts.iter().map(|host| domain(host)).collect();
    domains.sort_unstable();
    domains.dedup();
    domains.iter().fold(String::new(), |mut text, domain| {
        let _ = write!(text, " --permit {domain}");
        text
    })
}

/// The domain that a CA is permitted for: without the first label, if enough is left.
fn domain(host: &str) -> &str {
    let host = host.strip_prefix("*.").unwrap_or(host);
    match host.split_once('.') {
        Some((_, parent)) if parent.contains('.') => parent,
        _ => host,
    }
}

fn found(name: &str) -> Result<&'static Preset, String> {
    presets::find(name).ok_or_else(|| {
        let known = presets::all().iter().map(|preset| preset.name);
        format!("there is no preset `{name}`; there are {}", one_of(known))
    })
}

fn host_name(text: &str) -> Result<String, String> {
    let name = text.trim_end_matches('.').to_ascii_lowercase();
    match is_host_name(&name) && name.contains('.') {
        true => Ok(name),
        false => Err(format!(
            "`{text}` is not a host name; write it without scheme, port and path, as in keys.company.example"
        )),
    }
}

/// A path as a shell takes it in a comment.
fn shown(path: &Path) -> String {
    path.display().to_string()
}

/// A path as a value.
fn quoted(path: &Path) -> String {
    format!("{:?}", path.display().to_string())
}

/// A secret's file as a value.
fn reference(path: &Path) -> String {
    format!("{:?}", format!("file://{}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{File, check};

    /// No problem of any kind, files aside.
    #[track_caller]
    fn check_good(what: &Init, places: &Places) -> String {
        let text = what.render(places).expect("it can be written");
        let file = File::parse(Path::new("/etc/claviger/claviger.toml"), &text);
        let (_, report) = check(&file);
        assert!(report.is_empty(), "{text}\n{}", report.render(false));
        for line in text.lines() {
            // Lists grow with what was asked for.
            let is_list = line.contains("--permit") || line.starts_with("host = [");
            assert!(is_list || line.len() <= 200, "too long to be read: {line}");
        }
        text
    }

    fn list(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|&text| text.to_owned()).collect()
    }

    #[test]
    fn every_one_is_good() {
        let elsewhere = Places {
            directory: "/tmp/a b".into(),
            state: "/tmp/state".into(),
            audit: "/tmp/audit".into(),
        };
        let every: Vec<String> = presets::all()
            .iter()
            .map(|preset| preset.name.to_owned())
            .collect();
        for places in [Places::default(), elsewhere] {
            for presets in std::iter::once(Vec::new())
                .chain(every.iter().map(|one| vec![one.clone()]))
                .chain([every.clone()])
            {
                for by_token in [false, true] {
                    for hubs in [&["keys.company.example"][..], &["a.example", "B.example"]] {
                        check_good(
                            &Init::Edge {
                                hubs: list(hubs),
                                by_token,
                                hosts: list(&["api.internal.example"]),
                                presets: presets.clone(),
                            },
                            &places,
                        );
                    }
                }
                for networks in [&[][..], &["203.0.113.7", "2001:db8::/32"]] {
                    check_good(
                        &Init::Hub {
                            host: "keys.company.example".to_owned(),
                            edge: "gcp-edge".to_owned(),
                            edge_networks: list(networks),
                            presets: presets.clone(),
                        },
                        &places,
                    );
                }
            }
            for preset in &every {
                for callers in [&[][..], &["10.0.0.0/8", "192.0.2.7"]] {
                    check_good(
                        &Init::Service {
                            preset: preset.clone(),
                            callers: list(callers),
                        },
                        &places,
                    );
                }
            }
        }
    }

    #[test]
    fn the_shortest_edge() {
        let edge = Init::Edge {
            hubs: list(&["keys.company.example"]),
            by_token: false,
            hosts: Vec::new(),
            presets: list(&["stripe"]),
        };
        let text = check_good(&edge, &Places::default());
        assert!(text.contains("--permit stripe.com"), "{text}");
        assert!(text.contains("host = [\"api.stripe.com\""), "{text}");
        assert!(!text.contains("credential"), "{text}");
    }

    #[test]
    fn what_cannot_be_meant() {
        let places = Places::default();
        let service = |preset: &str| {
            Init::Service {
                preset: preset.to_owned(),
                callers: Vec::new(),
            }
            .render(&places)
        };
        assert!(service("strip").is_err_and(|error| error.contains("`stripe`")));
        for hub in [
            "",
            "https://keys.company.example",
            "keys:443",
            "10.0.0.1",
            "hub\"]",
        ] {
            let edge = Init::Edge {
                hubs: list(&[hub]),
                by_token: false,
                hosts: Vec::new(),
                presets: Vec::new(),
            };
            assert!(edge.render(&places).is_err(), "{hub}");
        }
        let none = Init::Edge {
            hubs: Vec::new(),
            by_token: false,
            hosts: Vec::new(),
            presets: Vec::new(),
        };
        assert!(
            none.render(&places)
                .is_err_and(|error| error.contains("--hub"))
        );
    }
}
