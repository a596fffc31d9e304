//! `[host.NAME]`: certificates, and the routes by host.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;

use policy::{Listener, Require};

use super::{Checker, served_name};
use crate::config::draft::{Certificates, HostDraft};
use crate::config::file;
use crate::config::file::{ClientCertificate, Item};
use crate::config::report::{Problem, one_of, quote};
use crate::config::written::OneOrMany;

impl Checker<'_> {
    pub(super) fn hosts(&mut self, listeners: &[Listener]) -> Vec<HostDraft> {
        let file = self.file;
        let mut routes = std::mem::take(&mut self.routes);
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
            if item.fields.edges.is_some() {
                // Edges are reason enough to be there.
                routes.entry(name.clone()).or_default();
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
                client_auth_optional: fields
                    .client_certificate
                    .as_ref()
                    .is_some_and(|written| written.value == ClientCertificate::Request),
                client_crls: self.client_crls(item),
                edges: self.edges(item),
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

    fn client_crls(&mut self, item: Option<&Item<file::Host>>) -> Vec<PathBuf> {
        let Some(item) = item else {
            return Vec::new();
        };
        let fields = &item.fields;
        let needs_ca = [
            ("client_crl", fields.client_crl.is_some()),
            ("client_certificate", fields.client_certificate.is_some()),
        ];
        for (field, is_there) in needs_ca {
            if is_there && fields.client_ca.is_none() && !item.is_unread("client_ca") {
                let place = self.file.place(item);
                self.push(
                    Problem::error(format!("`{field}` without `client_ca`, which it is about"))
                        .at(place)
                        .cure("name the CAs of the callers' certificates in `client_ca`"),
                );
            }
        }
        let list = fields.client_crl.as_ref().map(|list| list.0.clone());
        let list = list.unwrap_or_default();
        let paths = list
            .iter()
            .filter_map(|written| self.path_of(item, written));
        paths.collect()
    }

    /// Edges that bring requests to this host.
    fn edges(&mut self, item: Option<&Item<file::Host>>) -> Vec<usize> {
        let Some((item, OneOrMany(list))) =
            item.and_then(|item| Some((item, item.fields.edges.as_ref()?)))
        else {
            return Vec::new();
        };
        let mut edges = Vec::new();
        for written in list {
            let place = self.file.place_of(item, &written.span);
            let Some(&at) = self.caller_names.get(&written.value) else {
                let known: Vec<&str> = self.caller_names.keys().map(String::as_str).collect();
                let mut problem =
                    Problem::error(format!("there is no caller {}", quote(&written.value)))
                        .at(place)
                        .meant(&written.value, known.iter().copied());
                if problem.meant.is_none() {
                    problem = problem.cure(
                        "write [caller.NAME] with the edge's `certificate` or `token`, and that NAME here",
                    );
                }
                self.push(problem);
                continue;
            };
            self.caller_used.insert(at);
            let caller = &self.callers[at];
            let has_proof = !caller.certificates.is_empty() || !caller.tokens.is_empty();
            if !has_proof || (caller.require == Require::Any && !caller.networks.is_empty()) {
                let problem = Problem::error(format!(
                    "the caller {} would be an edge by its address alone, and could speak for everybody",
                    quote(&caller.name)
                ))
                .at(place)
                .cure("give it a `certificate` or a `token`, with require = \"all\"");
                self.push(problem);
                continue;
            }
            if edges.contains(&at) {
                let problem = Problem::error(format!("{} is there twice", quote(&written.value)));
                self.push(problem.at(place));
                continue;
            }
            edges.push(at);
        }
        if list.is_empty() {
            let place = self.file.place(item);
            self.push(
                Problem::error("an empty list of edges")
                    .at(place)
                    .cure("leave it out, or name a [caller.NAME]"),
            );
        }
        edges
    }

    /// Callers that need a certificate on hosts that ask for none could never call.
    pub(super) fn callers_by_certificate(&mut self, hosts: &[HostDraft]) {
        let edges: HashSet<usize> = hosts.iter().flat_map(|host| host.edges.clone()).collect();
        for host in hosts.iter().filter(|host| host.client_ca.is_none()) {
            // An edge shows its certificate where it comes in, and that is elsewhere.
            let of_routes = host.routes.iter().flat_map(|route| {
                let callers = route.named_callers.iter();
                callers
                    .filter(|at| !edges.contains(at))
                    .map(|&at| (at, &route.place))
            });
            let of_host = host.edges.iter().map(|&at| (at, &host.place));
            for (at, place) in of_routes.chain(of_host) {
                let caller = &self.callers[at];
                let is_alone = caller.tokens.is_empty() && caller.networks.is_empty();
                let needs = caller.require == Require::All || is_alone;
                if caller.certificates.is_empty() || !needs {
                    continue;
                }
                self.report.push(
                        Problem::error(format!(
                            "the caller {} must show a certificate, and the host {} asks for none",
                            quote(&caller.name),
                            quote(&host.name)
                        ))
                        .at(place.clone())
                        .cure(format!(
                            "write [host.\"{}\"] with `client_ca`, the CAs of the callers' certificates",
                            host.name
                        )),
                    );
            }
        }
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
        if let [one] = list
            && one.value == "acme"
        {
            if let Some(written) = fields.private_key.as_ref().and_then(|keys| keys.0.first()) {
                let place = file.place_of(item, &written.span);
                self.push(
                    Problem::error("`private_key` beside certificate = \"acme\"")
                        .at(place)
                        .cure("leave it out: the key is made here, anew with each certificate"),
                );
            }
            return Certificates::Acme;
        }
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
            if written.value == "ca" || written.value == "acme" {
                let place = file.place_of(item, &written.span);
                self.push(
                    Problem::error(format!("\"{}\" beside certificate files", written.value))
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
}
