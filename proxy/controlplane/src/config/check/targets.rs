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

/// A host that a route serves, and where that leads.
pub(super) struct Target {
    pub(super) host: String,
    pub(super) path: String,
    pub(super) upstream: usize,
    pub(super) upstream_path: Option<String>,
    pub(super) response_head_timeout: Option<Duration>,
}

impl Checker<'_> {
    /// The upstream that the route names. `Err` when it names one that is not there.
    pub(super) fn named_upstream(&mut self, item: &Item<file::Route>) -> Result<Option<usize>, ()> {
        let Some(written) = &item.fields.upstream else {
            return if item.is_unread("upstream") {
                Err(())
            } else {
                Ok(None)
            };
        };
        let name = &written.value;
        let named = self.upstream_names.get(name).copied();
        if let Some(index) = named.filter(|&index| index < self.upstream_sections.len()) {
            self.upstream_used.insert(index);
            return Ok(Some(index));
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
    pub(super) fn targets(
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
        let section = self.upstream_sections.get(upstream).copied();
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
