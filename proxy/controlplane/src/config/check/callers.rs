//! `callers`: who may use a route.

use std::net::IpAddr;

use ipnet::IpNet;
use policy::Callers;

use super::Checker;
use crate::config::file::{self, Item};
use crate::config::report::{Problem, quote};
use crate::config::written::OneOrMany;

impl Checker<'_> {
    pub(super) fn callers(&mut self, item: &Item<file::Route>) -> Callers {
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
            let network = match network(text) {
                Ok(network) => network,
                Err(NetworkError::Unreadable) => {
                    let problem = Problem::error("not a rule for callers")
                        .at(place)
                        .meant(text, ["open"])
                        .expected(
                            "\"open\", or networks as in [\"10.0.0.0/8\", \"2001:db8::/32\"]",
                        );
                    self.push(problem);
                    continue;
                }
                Err(NetworkError::Odd(problem)) => {
                    self.push(problem.at(place));
                    continue;
                }
            };
            if is_wide(network) {
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
        IpNet::V6(v6) => v6.prefix_len() < 16 && !v6.addr().is_unique_local(),
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
