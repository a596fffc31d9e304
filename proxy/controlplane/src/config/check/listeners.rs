//! `[[listener]]`: where callers connect.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use policy::{Listener, UnknownSni};

use super::Checker;
use super::callers::Takes;
use crate::config::draft::HostDraft;
use crate::config::report::{Place, Problem, quote};

impl Checker<'_> {
    pub(super) fn listeners(&mut self) -> Vec<Listener> {
        let file = self.file;
        if file.listeners.is_empty() {
            return vec![Listener {
                name: Arc::from("https"),
                addresses: vec![SocketAddr::from(([0, 0, 0, 0], 443))],
                tls: true,
                proxies: Vec::new(),
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
            let proxies = match &item.fields.proxy_protocol {
                Some(list) => self.networks(item, &list.0, Takes::Networks),
                None => Vec::new(),
            };
            listeners.push(Listener {
                name: Arc::from(name),
                addresses,
                tls,
                proxies,
                unknown_sni,
            });
        }
        listeners
    }

    /// The host behind `unknown_sni` must be there.
    pub(super) fn sni_hosts(&mut self, listeners: &[Listener], hosts: &[HostDraft]) {
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
