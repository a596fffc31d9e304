//! `callers`, `denied` and `[caller.NAME]`: who may use a route, and by what proof.

use std::net::IpAddr;

use ipnet::IpNet;
use policy::{Callers, CertificateName, Require};

use super::{Checker, is_host_name};
use crate::config::draft::CallerDraft;
use crate::config::file::{self, Item};
use crate::config::report::{Problem, quote};
use crate::config::written::{OneOrMany, Written};

/// What a list of networks may also hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Takes {
    /// Nothing.
    Networks,
    /// Words and names.
    Callers,
}

/// Whom a route lets in.
#[derive(Debug, Clone)]
pub(super) struct Admission {
    pub(super) callers: Callers,
    /// Indices into the callers by name.
    pub(super) named: Vec<usize>,
    pub(super) denied: Vec<IpNet>,
}

impl Checker<'_> {
    /// `[caller.NAME]`
    pub(super) fn caller_sections(&mut self) {
        let file = self.file;
        for item in &file.callers {
            let fields = &item.fields;
            self.table_name(item, "caller");
            let place = file.place(item);
            let is_taken = item.name == "open" || item.name.parse::<IpNet>().is_ok();
            if is_taken {
                self.push(
                    Problem::error(format!(
                        "a caller cannot be named {}: a route that wrote it would mean something else",
                        quote(&item.name)
                    ))
                    .at(place.clone()),
                );
            }
            let lists = [&fields.networks, &fields.token, &fields.certificate];
            let is_unread = ["networks", "token", "certificate"]
                .iter()
                .any(|field| item.is_unread(field));
            if lists.iter().all(|list| list.is_none()) && !is_unread {
                self.push(
                    Problem::error(format!("the caller {} has nothing to show", quote(&item.name)))
                        .at(place)
                        .cure(format!(
                            "write what it proves itself by, as in token = \"file:///etc/claviger/callers/{}\"",
                            super::credentials::plain_file_name(&item.name)
                        )),
                );
            }
            for (field, list) in ["networks", "token", "certificate"].into_iter().zip(lists) {
                if list.as_ref().is_some_and(|list| list.0.is_empty()) {
                    self.push(
                        Problem::error(format!(
                            "`{field}` is an empty list, which nobody can match"
                        ))
                        .at(file.place(item))
                        .cure("fill it, or leave it out"),
                    );
                }
            }
            let written = |list: &Option<OneOrMany>| {
                let list = list.as_ref().map(|list| list.0.clone());
                list.unwrap_or_default()
            };
            let networks = self.networks(item, &written(&fields.networks), Takes::Networks);
            let mut tokens = Vec::new();
            for one in written(&fields.token) {
                let place = file.place_of(item, &one.span);
                if let Some(reference) = self.reference(place.clone(), &one.value) {
                    tokens.push((reference, place));
                }
            }
            let mut certificates = Vec::new();
            for one in written(&fields.certificate) {
                certificates.extend(self.certificate_name(item, &one));
            }
            if !is_taken {
                self.caller_names
                    .insert(item.name.clone(), self.callers.len());
            }
            self.callers.push(CallerDraft {
                name: item.name.clone(),
                networks,
                tokens,
                certificates,
                require: match fields.require.as_ref().map(|written| written.value) {
                    Some(file::Require::Any) => Require::Any,
                    Some(file::Require::All) | None => Require::All,
                },
                allow_world_readable: fields
                    .allow_world_readable
                    .as_ref()
                    .is_some_and(|allow| allow.value),
            });
        }
    }

    fn certificate_name<T>(
        &mut self,
        item: &Item<T>,
        written: &Written<String>,
    ) -> Option<CertificateName> {
        let text = &written.value;
        let is_uri = text.split_once("://").is_some_and(|(scheme, rest)| {
            !rest.is_empty() && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric())
        }) && text.bytes().all(|byte| byte.is_ascii_graphic());
        if is_uri || is_host_name(&text.to_ascii_lowercase()) {
            return Some(CertificateName::new(text));
        }
        let place = self.file.place_of(item, &written.span);
        self.push(
            Problem::error("not a name of a certificate")
                .at(place)
                .expected("a host name without `*`, or a URI as in \"spiffe://example.com/edge\""),
        );
        None
    }

    /// `callers` and `denied` of a route.
    pub(super) fn admission(&mut self, item: &Item<file::Route>) -> Admission {
        let denied = match &item.fields.denied {
            Some(OneOrMany(list)) => self.networks(item, list, Takes::Networks),
            None => Vec::new(),
        };
        let (callers, named) = self.admitted(item);
        Admission {
            callers,
            named,
            denied,
        }
    }

    fn admitted(&mut self, item: &Item<file::Route>) -> (Callers, Vec<usize>) {
        let Some(OneOrMany(list)) = &item.fields.callers else {
            return (Callers::Open, Vec::new());
        };
        let mut named = Vec::new();
        let mut addresses = Vec::new();
        for written in list {
            match self.caller_names.get(&written.value) {
                Some(&index) => {
                    self.caller_used.insert(index);
                    named.push(index);
                }
                None => addresses.push(written.clone()),
            }
        }
        let is_open = |written: &Written<String>| written.value == "open";
        if addresses.len() == 1 && addresses.iter().all(is_open) {
            return match named.is_empty() {
                true => (Callers::Open, named),
                // Beside names it is what it stands for.
                false => (Callers::Networks(local_networks()), named),
            };
        }
        if let Some(open) = addresses.iter().find(|written| is_open(written)) {
            let place = self.file.place_of(item, &open.span);
            self.push(
                Problem::error("\"open\" beside networks")
                    .at(place)
                    .cure("write callers = \"open\", or the networks alone"),
            );
        }
        addresses.retain(|written| !is_open(written));
        let networks = self.networks(item, &addresses, Takes::Callers);
        if list.is_empty() {
            let place = self.file.place(item);
            self.push(
                Problem::error("an empty list of callers lets nobody in")
                    .at(place)
                    .cure("write callers = \"open\", or networks"),
            );
        }
        (Callers::Networks(networks), named)
    }

    /// Networks, each of them good.
    pub(super) fn networks<T>(
        &mut self,
        item: &Item<T>,
        list: &[Written<String>],
        takes: Takes,
    ) -> Vec<IpNet> {
        let networks = list
            .iter()
            .filter_map(|written| self.network(item, written, takes));
        networks.collect()
    }

    fn network<T>(
        &mut self,
        item: &Item<T>,
        written: &Written<String>,
        takes: Takes,
    ) -> Option<IpNet> {
        let text = &written.value;
        let place = self.file.place_of(item, &written.span);
        if takes == Takes::Callers && EVERYBODY.contains(&&*text.to_ascii_lowercase()) {
            self.push(
                Problem::error(format!(
                    "{} would offer the key to the whole Internet",
                    quote(text)
                ))
                .at(place)
                .expected(
                    "\"open\" for loopback and private peers, or networks as in [\"10.0.0.0/8\"]",
                )
                .cure("if everybody may use this key, write callers = [\"0.0.0.0/0\", \"::/0\"]"),
            );
            return None;
        }
        match network(text) {
            Ok(network) => Some(network),
            Err(NetworkError::Odd(problem)) => {
                self.push(problem.at(place));
                None
            }
            Err(NetworkError::Unreadable) => {
                let known = self.caller_names.keys().map(String::as_str);
                let problem = match takes {
                    Takes::Networks => Problem::error("not a network").at(place).expected(
                        "an address or a network, as in \"192.0.2.7\", \"10.0.0.0/8\" or \"2001:db8::/32\"",
                    ),
                    Takes::Callers => Problem::error("not a rule for callers")
                        .at(place)
                        .meant(text, known.chain(["open"]))
                        .expected(
                            "\"open\", networks as in [\"10.0.0.0/8\", \"2001:db8::/32\"], or the name of a [caller.NAME]",
                        ),
                };
                self.push(problem);
                None
            }
        }
    }

    /// Networks that have much of the Internet in them, where no proof is asked for.
    pub(super) fn wide_networks(&mut self, item: &Item<file::Route>, admission: &Admission) {
        let Callers::Networks(networks) = &admission.callers else {
            return;
        };
        for network in networks {
            if !is_wide(*network) {
                continue;
            }
            let list = item.fields.callers.iter().flat_map(|list| &list.0);
            let written = list
                .filter(|written| written.value.parse::<IpNet>().as_ref() == Ok(network))
                .map(|written| self.file.place_of(item, &written.span))
                .next();
            self.push(
                Problem::warning(format!(
                    "{network} lets callers from the Internet use this key"
                ))
                .at(written.unwrap_or_else(|| self.file.place(item)))
                .cure("name the networks that need it, unless everybody is meant"),
            );
        }
    }
}

/// What `open` stands for, as [`policy::access::is_local`] has it.
fn local_networks() -> Vec<IpNet> {
    [
        "127.0.0.0/8",
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "169.254.0.0/16",
        "::1/128",
        "fc00::/7",
        "fe80::/10",
    ]
    .iter()
    .filter_map(|text| text.parse().ok())
    .collect()
}

/// Why a text is no network.
pub(super) enum NetworkError {
    /// It has not the form of one.
    Unreadable,
    /// It has, but cannot be meant.
    Odd(Box<Problem>),
}

/// A network, or an address alone.
pub(super) fn network(text: &str) -> Result<IpNet, NetworkError> {
    let network = text
        .parse::<IpNet>()
        .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
        .map_err(|_| NetworkError::Unreadable)?;
    if network.trunc() != network {
        let problem = Problem::error(format!("{network} has bits behind its mask")).cure(format!(
            "write {} for the network, or {}/{} for the one address",
            network.trunc(),
            network.addr(),
            network.max_prefix_len()
        ));
        return Err(NetworkError::Odd(Box::new(problem)));
    }
    if let IpNet::V6(v6) = network
        && v6.addr().to_ipv4_mapped().is_some()
        && v6.prefix_len() >= 96
    {
        let problem = Problem::error("an IPv4 network in IPv6 clothes never matches")
            .cure("write it as IPv4; callers that come over IPv6 sockets are matched by it too");
        return Err(NetworkError::Odd(Box::new(problem)));
    }
    Ok(network)
}

/// Whether it is so large that the Internet must be meant, or a mistake.
pub(super) fn is_wide(network: IpNet) -> bool {
    match network {
        IpNet::V4(v4) => v4.prefix_len() < 8,
        IpNet::V6(v6) => {
            let address = v6.addr();
            let is_near = v6.prefix_len() >= 7 && address.is_unique_local()
                || v6.prefix_len() >= 10 && address.is_unicast_link_local();
            v6.prefix_len() < 16 && !is_near
        }
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_is_the_same_by_rule_and_by_list() {
        let networks = local_networks();
        assert_eq!(networks.len(), 8);
        for network in &networks {
            assert!(!is_wide(*network), "{network}");
            for address in [network.network(), network.broadcast()] {
                assert!(policy::access::is_local(address), "{address}");
            }
        }
        for outside in ["126.255.255.255", "172.32.0.0", "fec0::1", "8.8.8.8", "::2"] {
            let outside: IpAddr = outside.parse().expect("an address");
            assert!(!policy::access::is_local(outside));
            assert!(!networks.iter().any(|network| network.contains(&outside)));
        }
    }
}
