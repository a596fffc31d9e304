//! [`Target`]: a host and a path that a route serves, and where they lead.

use std::collections::{BTreeSet, HashSet};
use std::time::Duration;

use policy::upstream::UpstreamLimits;
use rustls::pki_types::ServerName;

use super::Checker;
use crate::config::draft::UpstreamDraft;
use crate::config::file;
use crate::config::file::Item;
use crate::config::presets::{Preset, PresetHost};
use crate::config::report::{Place, Problem, one_of, quote};
use crate::config::written::{OneOrMany, Written};

/// A host that a route serves, and where that leads.
pub(super) struct Target {
    pub(super) host: String,
    pub(super) path: String,
    pub(super) upstream: usize,
    pub(super) upstream_path: Option<String>,
    pub(super) response_head_timeout: Option<Duration>,
}

/// How a route is addressed: what of it decides on its targets.
pub(super) struct Addressed<'r> {
    pub(super) preset: Option<&'static Preset>,
    pub(super) hosts: &'r [String],
    pub(super) path: Option<String>,
    pub(super) upstream_path: Option<String>,
    pub(super) upstream: Option<usize>,
    pub(super) place: Place,
}

impl Checker<'_> {
    /// The upstreams that the route names, several only if they are hubs. `Err` when it
    /// names one that is not there.
    pub(super) fn named_upstreams(&mut self, item: &Item<file::Route>) -> Result<Vec<usize>, ()> {
        let Some(OneOrMany(list)) = &item.fields.upstream else {
            return if item.is_unread("upstream") {
                Err(())
            } else {
                Ok(Vec::new())
            };
        };
        let mut found: Vec<usize> = Vec::new();
        for written in list {
            let index = self.named_upstream(item, written)?;
            let place = self.file.place_of(item, &written.span);
            if found.contains(&index) {
                let problem = Problem::error(format!("{} is there twice", quote(&written.value)));
                self.push(problem.at(place));
                return Err(());
            }
            if list.len() > 1 && !self.upstreams[index].is_hub {
                self.push(
                    Problem::error(format!("{} is no hub, and stands in a list", quote(&written.value)))
                        .at(place)
                        .cure("a route leads to one API, or to hubs that stand in for each other; several addresses of one API are its upstream's `addresses`"),
                );
                return Err(());
            }
            found.push(index);
        }
        if found.is_empty() {
            let place = self.file.place(item);
            self.push(Problem::error("an empty list of upstreams leads nowhere").at(place));
            return Err(());
        }
        Ok(found)
    }

    fn named_upstream(
        &mut self,
        item: &Item<file::Route>,
        written: &Written<String>,
    ) -> Result<usize, ()> {
        let name = &written.value;
        let named = self.upstream_names.get(name).copied();
        if let Some(index) = named.filter(|&index| index < self.upstream_sections.len()) {
            self.upstream_used.insert(index);
            return Ok(index);
        }
        if self.upstream_broken.contains(name) {
            return Err(());
        }
        let place = self.file.place_of(item, &written.span);
        let sections = self.file.upstreams.iter();
        let known: Vec<&str> = sections.map(|item| &*item.name).collect();
        let problem = if name.to_ascii_lowercase().starts_with("http://") {
            Problem::error("`upstream` names an [upstream.NAME], not a URL")
                .at(place)
                .cure("write [upstream.NAME] with `host`; there is no clear text to upstreams, since a key would travel in it")
        } else if name.contains("://") {
            Problem::error("`upstream` names an [upstream.NAME], not a URL")
                .at(place)
                .cure("write [upstream.NAME] with `host`, and that NAME here")
        } else {
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
    pub(super) fn targets(&mut self, route: &Addressed<'_>) -> Vec<Target> {
        let Some(preset) = route.preset else {
            let hosts = route.hosts.iter();
            return hosts
                .filter_map(|host| self.host_target(route, host))
                .collect();
        };
        let mut targets = Vec::new();
        for known in self.preset_hosts(route, preset) {
            let upstream = route.upstream;
            if let Some(upstream) =
                upstream.or_else(|| self.implied_upstream(&known.name, &route.place))
            {
                let upstream_path = route.upstream_path.clone();
                targets.push(self.preset_target(
                    route,
                    known,
                    &known.name,
                    upstream_path,
                    upstream,
                ));
            }
        }
        // A path of the operator's own replaces the preset's, so that a preset
        // with several paths on a host has one there.
        if route.path.is_some() {
            let mut seen = HashSet::new();
            targets.retain(|target| seen.insert(target.host.clone()));
        }
        for host in route.hosts {
            if preset.hosts.iter().all(|known| known.name != *host) {
                targets.extend(self.other_target(route, preset, host));
            }
        }
        targets
    }

    /// A host without a preset.
    fn host_target(&mut self, route: &Addressed<'_>, host: &str) -> Option<Target> {
        let upstream = match route.upstream {
            Some(upstream) => upstream,
            None if self.leads_nowhere(route, host) => return None,
            None if route.upstream_path.is_some() => {
                self.push(
                    Problem::error("`upstream_path` without `upstream`")
                        .at(route.place.clone())
                        .cure("write upstream = \"NAME\": a path is rewritten for another host than the one that callers ask for"),
                );
                return None;
            }
            None => self.implied_upstream(host, &route.place)?,
        };
        Some(Target {
            host: host.to_owned(),
            path: route.path.clone().unwrap_or_else(|| "/".to_owned()),
            upstream,
            upstream_path: route.upstream_path.clone(),
            response_head_timeout: None,
        })
    }

    /// The hosts of the provider's own that the route serves: those that it names,
    /// or else the one that its upstream is, or else all but those on request.
    fn preset_hosts(
        &mut self,
        route: &Addressed<'_>,
        preset: &'static Preset,
    ) -> Vec<&'static PresetHost> {
        let those = |wanted: &dyn Fn(&PresetHost) -> bool| {
            preset
                .hosts
                .iter()
                .filter(|host| wanted(host))
                .collect::<Vec<_>>()
        };
        if !route.hosts.is_empty() {
            return those(&|host| route.hosts.contains(&host.name));
        }
        let by_default = those(&|host| !host.on_request);
        let Some(upstream) = route.upstream else {
            return by_default;
        };
        let leads_to = &self.upstreams[upstream].host;
        let same = those(&|host| host.name == *leads_to);
        if !same.is_empty() {
            return same;
        }
        let names: BTreeSet<&str> = by_default.iter().map(|host| &*host.name).collect();
        // A hub serves them all.
        if names.len() == 1 || self.upstreams[upstream].is_hub {
            return by_default;
        }
        self.push(
            Problem::error(format!(
                "the preset `{}` has several hosts, and the upstream is none of them",
                preset.name
            ))
            .at(route.place.clone())
            .cure(format!(
                "write `host`: the name that callers ask for, such as {}",
                one_of(names)
            )),
        );
        Vec::new()
    }

    /// A host that is not the provider's: it stands before the provider's first
    /// one, or is one of the operator's own that the provider's software runs on.
    fn other_target(
        &mut self,
        route: &Addressed<'_>,
        preset: &'static Preset,
        host: &str,
    ) -> Option<Target> {
        let first = preset.hosts.first()?;
        let upstream = match route.upstream {
            Some(upstream) => upstream,
            None if self.leads_nowhere(route, host) => return None,
            None => self.implied_upstream(&first.name, &route.place)?,
        };
        // Its own software is addressed as it is.
        let itself = self.upstreams[upstream].host == *host;
        let is_hub = self.upstreams[upstream].is_hub;
        let upstream_path = route.upstream_path.clone().or_else(|| {
            let own = route.path.as_ref()?;
            (!itself && !is_hub && *own != first.path).then(|| first.path.clone())
        });
        Some(self.preset_target(route, first, host, upstream_path, upstream))
    }

    /// A wildcard is many hosts, and an upstream is one.
    fn leads_nowhere(&mut self, route: &Addressed<'_>, host: &str) -> bool {
        let is_wildcard = host.starts_with("*.");
        if is_wildcard {
            self.push(
                Problem::error(format!(
                    "the route serves {}, and no `upstream` says where it leads",
                    quote(host)
                ))
                .at(route.place.clone())
                .cure("write [upstream.NAME] with `host`, and upstream = \"NAME\" here"),
            );
        }
        is_wildcard
    }

    fn preset_target(
        &mut self,
        route: &Addressed<'_>,
        known: &PresetHost,
        host: &str,
        upstream_path: Option<String>,
        upstream: usize,
    ) -> Target {
        let section = self.upstream_sections.get(upstream).copied();
        // What the preset knows holds, unless the upstream's section says otherwise.
        if section.is_none_or(|item| item.fields.read_timeout.is_none())
            && let Some(read_timeout) = route.preset.and_then(|preset| preset.read_timeout)
        {
            let limits = &mut self.upstreams[upstream].limits;
            limits.read_timeout = limits.read_timeout.max(read_timeout);
        }
        Target {
            host: host.to_owned(),
            path: route.path.clone().unwrap_or_else(|| known.path.clone()),
            upstream,
            upstream_path,
            response_head_timeout: route
                .preset
                .and_then(|preset| preset.response_head_timeout)
                .filter(|_| section.is_none_or(|item| item.fields.response_head_timeout.is_none())),
        }
    }

    /// The upstream of a host that no section is named for: the host itself.
    fn implied_upstream(&mut self, host: &str, place: &Place) -> Option<usize> {
        if self.upstream_broken.contains(host) {
            return None;
        }
        let index = match self.upstream_names.get(host) {
            Some(&index) => index,
            None => {
                let index = self.upstreams.len();
                self.upstreams.push(UpstreamDraft {
                    name: host.to_owned(),
                    host: host.to_owned(),
                    port: 443,
                    tls_name: ServerName::try_from(host.to_owned()).ok()?,
                    addresses: Vec::new(),
                    ca_file: None,
                    allow_private: false,
                    is_hub: false,
                    token: None,
                    client_certificate: None,
                    limits: UpstreamLimits::default(),
                    place: place.clone(),
                    ca_place: None,
                    address_places: Vec::new(),
                });
                self.upstream_names.insert(host.to_owned(), index);
                index
            }
        };
        self.upstream_used.insert(index);
        Some(index)
    }
}
