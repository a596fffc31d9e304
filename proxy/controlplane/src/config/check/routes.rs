//! `[[route]]`: which requests, to where, with which key.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use policy::{Forwarding, ForwardingField, Injection};

use super::callers::{NetworkError, is_wide, network};
use super::targets::Addressed;
use super::{Checker, is_token};
use crate::config::draft::{CredentialDraft, RouteDraft};
use crate::config::file::{AuditMode, Item};
use crate::config::presets::Preset;
use crate::config::report::{Place, Problem, nearest, one_of, quote};
use crate::config::written::{OneOrMany, Written};
use crate::config::{file, presets, shape};

impl Checker<'_> {
    pub(super) fn routes(&mut self) {
        let file = self.file;
        if file.routes.is_empty() && !file.problems.has_errors() {
            self.push(
                Problem::error(format!("no route in {} or its conf.d", file.path.display())).cure(
                    "write one, for example: [[route]] preset = \"sendgrid\" credential = \"file:///etc/claviger/keys/sendgrid\"",
                ),
            );
        }
        let mut names: HashMap<String, Place> = HashMap::new();
        for item in &file.routes {
            self.route(item, &mut names);
        }
        self.overlaps();
    }

    fn route(&mut self, item: &Item<file::Route>, names: &mut HashMap<String, Place>) {
        let file = self.file;
        let fields = &item.fields;
        let preset = self.preset(item);
        let hosts = self.route_hosts(item);
        let path = fields
            .path
            .as_ref()
            .and_then(|written| self.route_path(item, written, "path"));
        let upstream_path = fields
            .upstream_path
            .as_ref()
            .and_then(|written| self.route_path(item, written, "upstream_path"));
        let methods = self.methods(item);
        let admission = self.admission(item);
        self.wide_networks(item, &admission);
        let named = self.named_upstreams(item);
        let upstream = named.as_ref().ok().and_then(|named| named.first().copied());
        let is_hub = upstream.is_some_and(|upstream| self.upstreams[upstream].is_hub);
        if is_hub {
            self.towards_hub(item);
        }
        let targets = match &named {
            // An unknown preset or upstream was reported; nothing follows from it.
            Err(()) => Vec::new(),
            Ok(_) if preset.is_none() && fields.preset.is_some() => Vec::new(),
            Ok(_) => self.targets(&Addressed {
                preset,
                hosts: &hosts,
                path,
                upstream_path,
                upstream,
                place: file.place(item),
            }),
        };

        let default_name = match (preset, targets.first()) {
            (Some(preset), _) => preset.name.to_owned(),
            (None, Some(target)) if target.path == "/" => target.host.clone(),
            (None, Some(target)) => format!("{}{}", target.host, target.path),
            (None, None) => "route".to_owned(),
        };
        let (name, name_place) = match &fields.name {
            Some(written) => {
                self.name(item, written, "route");
                (written.value.clone(), file.place_of(item, &written.span))
            }
            None => (default_name, file.place(item)),
        };
        // A name by default needs something to be named after.
        let is_named = fields.name.is_some() || !targets.is_empty();
        if let Some(earlier) = names.get(&name).filter(|_| is_named) {
            let problem = Problem::error(format!("two routes are named {}", quote(&name)))
                .at(name_place)
                .also("first here:", earlier.clone())
                .cure("give each one a `name` of its own: the audit trail goes by it");
            self.push(problem);
        } else if is_named {
            names.insert(name.clone(), name_place);
        }

        let mut ways = Vec::new();
        let credential = if is_hub {
            for &way in named.iter().flatten() {
                let token = self.upstreams[way].token;
                ways.push((way, token.map(|token| (token, hub_token()))));
                // Who stands in for a hub is as patient.
                let patience = self.upstreams[ways[0].0].limits.read_timeout;
                let limits = &mut self.upstreams[way].limits;
                limits.read_timeout = limits.read_timeout.max(patience);
            }
            ways.remove(0).1
        } else {
            self.route_credential(item, preset, &name)
        };
        let mut strip = self.strip(
            item,
            preset,
            credential.as_ref().map(|(_, injection)| injection),
        );
        if is_hub {
            // The hub knows which parameters are keys; what is said here is said on purpose.
            let own = fields.strip_query.iter().flat_map(|list| &list.value);
            strip.params = own.map(|written| written.value.clone()).collect();
        }
        let on_echo = match fields.on_echo.as_ref().map(|written| written.value) {
            None | Some(file::OnEcho::Redact) => policy::OnEcho::Redact,
            Some(file::OnEcho::Block) => policy::OnEcho::Block,
            Some(file::OnEcho::Report) => policy::OnEcho::Report,
        };
        let on_uninspected = match fields.on_uninspected.as_ref().map(|written| written.value) {
            Some(file::OnUninspected::Refuse) => policy::OnUninspected::Refuse,
            Some(file::OnUninspected::Mark) => policy::OnUninspected::Mark,
            // Who lets the key pass does not want to lose answers that hold none.
            None if on_echo == policy::OnEcho::Report => policy::OnUninspected::Mark,
            None => policy::OnUninspected::Refuse,
        };
        let forwarding = self.forwarding(item, preset);
        let strip_response_fields = self.strip_response_fields(item);
        for target in targets {
            let draft = RouteDraft {
                name: name.clone(),
                path: target.path,
                methods: methods.clone(),
                callers: admission.callers.clone(),
                named_callers: admission.named.clone(),
                denied: admission.denied.clone(),
                upstream: target.upstream,
                credential: credential.clone(),
                further: ways.clone(),
                upstream_path: target.upstream_path,
                strip_fields: strip.fields.clone(),
                strip_params: strip.params.clone(),
                keep_params: strip.keep.clone(),
                strip_cookies: fields
                    .strip_cookies
                    .as_ref()
                    .is_some_and(|strip| strip.value),
                forwarding: forwarding.clone(),
                strip_response_fields: strip_response_fields.clone(),
                upgrades: self.upgrades(item),
                refused: match preset {
                    Some(preset)
                        if !is_hub
                            && !fields
                                .allow_key_management
                                .as_ref()
                                .is_some_and(|allow| allow.value) =>
                    {
                        preset.refused.clone()
                    }
                    _ => Vec::new(),
                },
                audit_required: fields
                    .audit
                    .as_ref()
                    .is_some_and(|audit| audit.value == AuditMode::Required),
                retry_with_idempotency_key: fields
                    .retry_with_idempotency_key
                    .as_ref()
                    .is_some_and(|retry| retry.value),
                on_echo,
                on_uninspected,
                body_bytes_max: fields
                    .body_bytes_max
                    .as_ref()
                    .map_or(u64::MAX, |size| size.value.0),
                response_head_timeout: match &fields.response_head_timeout {
                    Some(_) => Some(self.timeout(
                        Some(item),
                        "response_head_timeout",
                        &fields.response_head_timeout,
                        Duration::from_secs(60),
                    )),
                    None => target.response_head_timeout,
                },
                place: file.place(item),
            };
            self.routes.entry(target.host).or_default().push(draft);
        }
    }

    /// What a route to a hub cannot have, since the hub decides on it.
    fn towards_hub(&mut self, item: &Item<file::Route>) {
        let fields = &item.fields;
        let wrong = [
            (
                "credential",
                fields
                    .credential
                    .as_ref()
                    .filter(|written| written.value != "none"),
                "leave it out: the hub holds the key and writes it",
            ),
            (
                "upstream_path",
                fields.upstream_path.as_ref(),
                "leave it out: the hub gets the path as it is, and rewrites it where its own route says so",
            ),
        ];
        for (field, written, cure) in wrong {
            if let Some(written) = written {
                let place = self.file.place_of(item, &written.span);
                self.push(
                    Problem::error(format!("a route to a hub has no `{field}`"))
                        .at(place)
                        .cure(cure),
                );
            }
        }
    }

    fn preset(&mut self, item: &Item<file::Route>) -> Option<&'static Preset> {
        let written = item.fields.preset.as_ref()?;
        let found = presets::find(&written.value);
        if found.is_none() {
            let names = presets::all().iter().map(|preset| preset.name);
            let place = self.file.place_of(item, &written.span);
            let mut problem =
                Problem::error(format!("there is no preset {}", quote(&written.value)))
                    .at(place)
                    .meant(&written.value, names.clone());
            if problem.meant.is_none() {
                problem = problem.expected(one_of(names)).cure(
                    "leave `preset` out and write `host` and `credential`: a route needs no preset",
                );
            }
            self.push(problem);
        }
        found
    }

    fn route_hosts(&mut self, item: &Item<file::Route>) -> Vec<String> {
        let fields = &item.fields;
        let Some(OneOrMany(list)) = &fields.host else {
            if fields.preset.is_none() && !item.is_unread("host") && !item.is_unread("preset") {
                let place = self.file.place(item);
                self.push(
                    Problem::error("a route without `host` or `preset`")
                        .at(place)
                        .cure("write host = \"api.example.com\", the name that callers ask for"),
                );
            }
            return Vec::new();
        };
        let mut hosts: Vec<String> = Vec::new();
        for written in list {
            if let Some(host) = self.host_name(item, written) {
                if hosts.contains(&host) {
                    let place = self.file.place_of(item, &written.span);
                    self.push(
                        Problem::error(format!("the host {} is there twice", quote(&host)))
                            .at(place),
                    );
                } else {
                    hosts.push(host);
                }
            }
        }
        if list.is_empty() {
            let place = self.file.place(item);
            self.push(Problem::error("an empty list of hosts").at(place));
        }
        hosts
    }

    fn route_path(
        &mut self,
        item: &Item<file::Route>,
        written: &Written<String>,
        field: &str,
    ) -> Option<String> {
        let text = &written.value;
        let place = self.file.place_of(item, &written.span);
        let problem = if !text.starts_with('/') {
            Problem::error(format!("`{field}` must start with `/`"))
        } else if text.contains(['?', '#']) {
            Problem::error(format!("`{field}` has a query or a fragment"))
                .cure("routes go by path alone; leave out what begins with `?` or `#`")
        } else if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            Problem::error(format!(
                "`{field}` has a space or a character that is not ASCII"
            ))
            .cure("write it percent-encoded, as it is sent")
        } else if text.contains('*') {
            Problem::error(format!("`{field}` has a `*`"))
                .cure("a path covers what lies under it; leave the `*` out")
        } else if text != "/" && wire::target::readings(text.as_bytes()) != Ok(Vec::new()) {
            Problem::error(format!("`{field}` can be read in several ways"))
                .cure("write it without dot segments, empty segments, `;` and encoded slashes")
        } else {
            return Some(text.clone());
        };
        self.push(problem.at(place));
        None
    }

    fn methods(&mut self, item: &Item<file::Route>) -> Vec<String> {
        let mut methods: Vec<String> = Vec::new();
        for written in item.fields.methods.iter().flat_map(|list| &list.value) {
            let method = &written.value;
            let place = self.file.place_of(item, &written.span);
            if matches!(&*method.to_ascii_uppercase(), "TRACE" | "TRACK" | "CONNECT") {
                self.push(
                    Problem::error(format!("{} is never served", quote(method)))
                        .at(place)
                        .cure("leave it out: TRACE and TRACK reflect the key, CONNECT opens a tunnel to anywhere"),
                );
            } else if !is_token(method) {
                self.push(
                    Problem::error("not a method")
                        .at(place)
                        .expected("as in \"GET\""),
                );
            } else if method.bytes().any(|byte| byte.is_ascii_lowercase()) {
                let upper = method.to_ascii_uppercase();
                let mut problem =
                    Problem::error("methods are written in upper case (they are case-sensitive)")
                        .at(place);
                problem.meant = Some(quote(&upper));
                self.push(problem);
            } else if methods.contains(method) {
                self.push(Problem::error(format!("{} is there twice", quote(method))).at(place));
            } else {
                methods.push(method.clone());
            }
        }
        if let Some(list) = &item.fields.methods
            && list.value.is_empty()
        {
            let place = self.file.place_of(item, &list.span);
            self.push(
                Problem::error("an empty list of methods serves nothing")
                    .at(place)
                    .cure("leave it out to serve all"),
            );
        }
        methods
    }

    /// The key that the route writes, and how.
    fn route_credential(
        &mut self,
        item: &Item<file::Route>,
        preset: Option<&Preset>,
        route: &str,
    ) -> Option<(usize, Injection)> {
        let file = self.file;
        let default = preset.map_or(Injection::Bearer, |preset| preset.injection.clone());
        let Some(written) = &item.fields.credential else {
            if !item.is_unread("credential") {
                let place = file.place(item);
                self.push(
                    Problem::error(format!("the route {} has no `credential`", quote(route)))
                        .at(place)
                        .cure("write credential = \"file:///path/to/key\", the name of a [credential.NAME], or \"none\" to strip callers' keys and write none"),
                );
            }
            return None;
        };
        let text = &written.value;
        let place = file.place_of(item, &written.span);
        if text == "none" {
            return None;
        }
        if let Some(index) = self.credential_sections.get(text) {
            self.credential_used.insert(text.clone());
            let injection = self
                .injections
                .get(text)
                .cloned()
                .flatten()
                .unwrap_or(default);
            return index.map(|index| (index, injection));
        }
        if text.contains("://") || shape::has_key(text) {
            let reference = self.reference(place.clone(), text)?;
            if self.credential_sections.contains_key(route) {
                self.push(
                    Problem::error(format!(
                        "the route {} holds a reference of its own, and there is a credential of that name too",
                        quote(route)
                    ))
                    .at(place)
                    .cure(format!("write credential = \"{}\", or give the route another `name`", quote(route).trim_matches('`'))),
                );
                return None;
            }
            self.credentials.push(CredentialDraft {
                name: route.to_owned(),
                reference,
                allow_world_readable: false,
                place,
            });
            return Some((self.credentials.len() - 1, default));
        }
        // What stands here is not quoted: it may be a key without a shape.
        let mut known: Vec<&str> = self
            .credential_sections
            .keys()
            .map(String::as_str)
            .collect();
        known.sort_unstable();
        let meant = nearest(text, known.iter().copied()).map(quote);
        let mut problem = Problem::error(
            "`credential` is neither the name of a [credential.NAME] nor a reference to a key",
        )
        .at(place);
        if meant.is_none() {
            problem = problem
                .expected(if known.is_empty() {
                    "`file:///path`, `env://NAME` or `credential://NAME`".to_owned()
                } else {
                    format!("{}, or `file:///path`, `env://NAME`, `credential://NAME`", one_of(known))
                })
                .cure("if it is the key itself: put it into a file that only the service may read, name the file, and replace the key");
        }
        problem.meant = meant;
        self.push(problem);
        None
    }

    fn strip(
        &mut self,
        item: &Item<file::Route>,
        preset: Option<&Preset>,
        injection: Option<&Injection>,
    ) -> Strip {
        let file = self.file;
        let fields = &item.fields;
        let mut names: BTreeSet<String> = presets::header_slots().clone();
        names.extend(
            injection
                .and_then(Injection::header_slot)
                .map(str::to_ascii_lowercase),
        );
        for written in fields.strip_headers.iter().flat_map(|list| &list.value) {
            self.header_name(&written.value, file.place_of(item, &written.span), false);
            names.insert(written.value.to_ascii_lowercase());
        }
        let mut params: BTreeSet<String> = match preset {
            Some(preset) => {
                let slot = preset.injection.query_slot().map(str::to_owned);
                preset.strip_query.iter().cloned().chain(slot).collect()
            }
            None => presets::query_slots().iter().cloned().collect(),
        };
        let slot = injection.and_then(Injection::query_slot);
        params.extend(slot.map(str::to_owned));
        for written in fields.strip_query.iter().flat_map(|list| &list.value) {
            self.parameter(item, written);
            params.insert(written.value.clone());
        }
        let mut keep = Vec::new();
        for written in fields.keep_query.iter().flat_map(|list| &list.value) {
            self.parameter(item, written);
            if slot.is_some_and(|slot| slot.eq_ignore_ascii_case(&written.value)) {
                let place = file.place_of(item, &written.span);
                self.push(
                    Problem::error(format!(
                        "`keep_query` names {}, into which the key is written",
                        quote(&written.value)
                    ))
                    .at(place)
                    .cure("leave it out: a caller's own value never goes beside ours"),
                );
            }
            if fields
                .strip_query
                .iter()
                .flat_map(|list| &list.value)
                .any(|strip| strip.value.eq_ignore_ascii_case(&written.value))
            {
                let place = file.place_of(item, &written.span);
                self.push(
                    Problem::error(format!(
                        "{} is in `keep_query` and in `strip_query`",
                        quote(&written.value)
                    ))
                    .at(place),
                );
            }
            keep.push(written.value.clone());
        }
        Strip {
            fields: names.into_iter().collect(),
            params: params.into_iter().collect(),
            keep,
        }
    }

    fn parameter(&mut self, item: &Item<file::Route>, written: &Written<String>) {
        if written.value.is_empty() || written.value.contains(['=', '&', ';', '?']) {
            let place = self.file.place_of(item, &written.span);
            self.push(
                Problem::error("not the name of a query parameter")
                    .at(place)
                    .expected("the name alone, as in \"api_key\""),
            );
        }
    }

    /// What the upstream learns of where a request came from.
    fn forwarding(
        &mut self,
        item: &Item<file::Route>,
        preset: Option<&Preset>,
    ) -> Option<Forwarding> {
        let file = self.file;
        let names = || ForwardingField::ALL.map(|field| field.name().to_ascii_lowercase());
        let mut rule = Forwarding::default();
        for written in item.fields.forwarded.iter().flat_map(|list| &list.value) {
            let place = file.place_of(item, &written.span);
            let is_it = |field: &ForwardingField| field.name().eq_ignore_ascii_case(&written.value);
            let Some(field) = ForwardingField::ALL.into_iter().find(is_it) else {
                let names = names();
                let names = || names.iter().map(String::as_str);
                let mut problem = Problem::error(format!(
                    "{} is no field that tells where a request came from",
                    quote(&written.value)
                ))
                .at(place)
                .meant(&written.value, names());
                if problem.meant.is_none() {
                    problem = problem.expected(one_of(names()));
                }
                self.push(problem);
                continue;
            };
            if rule.fields.contains(&field) {
                self.push(
                    Problem::error(format!("{} is there twice", quote(&written.value))).at(place),
                );
                continue;
            }
            if let Some(preset) = preset.filter(|_| field.tells_address()) {
                self.push(
                    Problem::warning(format!(
                        "{} tells {} the addresses of your callers",
                        quote(&written.value),
                        preset.name
                    ))
                    .at(place)
                    .cure("leave it out, unless the provider asks for it"),
                );
            }
            rule.fields.push(field);
        }
        rule.fields.sort_unstable();
        let trust = item.fields.forwarded_trust.as_ref();
        for written in trust.iter().flat_map(|list| &list.value) {
            let place = file.place_of(item, &written.span);
            match network(&written.value) {
                Ok(network) => {
                    if is_wide(network) {
                        self.push(
                            Problem::warning(format!(
                                "{network} lets callers from the Internet say where they come from"
                            ))
                            .at(place)
                            .cure("name the proxies in front, and nobody else"),
                        );
                    }
                    rule.trust.push(network);
                }
                Err(NetworkError::Unreadable) => self.push(
                    Problem::error("not a network")
                        .at(place)
                        .expected("as in \"10.0.0.0/8\" or \"192.0.2.7\""),
                ),
                Err(NetworkError::Odd(problem)) => self.push(problem.at(place)),
            }
        }
        if rule.fields.is_empty()
            && let Some(trust) = trust
            && !item.is_unread("forwarded")
        {
            let place = file.place_of(item, &trust.span);
            self.push(
                Problem::warning("`forwarded_trust` without `forwarded` does nothing")
                    .at(place)
                    .cure("write which fields the upstream gets, as in forwarded = [\"x-forwarded-for\"]"),
            );
        }
        (!rule.fields.is_empty()).then_some(rule)
    }

    fn strip_response_fields(&mut self, item: &Item<file::Route>) -> Vec<String> {
        let list = item.fields.strip_response_headers.iter();
        let list = list.flat_map(|list| &list.value);
        list.map(|written| {
            let place = self.file.place_of(item, &written.span);
            self.header_name(&written.value, place, false);
            written.value.to_ascii_lowercase()
        })
        .collect()
    }

    fn upgrades(&mut self, item: &Item<file::Route>) -> Vec<String> {
        let Some(list) = &item.fields.upgrades else {
            return vec!["websocket".to_owned()];
        };
        let mut upgrades = Vec::new();
        for written in &list.value {
            let lower = written.value.to_ascii_lowercase();
            let place = self.file.place_of(item, &written.span);
            if !lower.split('/').all(is_token) {
                self.push(
                    Problem::error("not a protocol's name")
                        .at(place)
                        .expected("as in \"websocket\""),
                );
            } else if lower == "h2c" {
                self.push(
                    Problem::error("`h2c` is a tunnel in which nothing is stripped or recorded")
                        .at(place)
                        .cure("leave it out"),
                );
            }
            upgrades.push(lower);
        }
        upgrades
    }

    /// Two routes of a host that would both serve a request.
    fn overlaps(&mut self) {
        let mut problems = Vec::new();
        let mut said: Vec<(&Place, &Place)> = Vec::new();
        for (host, routes) in &self.routes {
            let mut by_path: HashMap<&str, Vec<&RouteDraft>> = HashMap::new();
            for route in routes {
                let earlier = by_path.entry(&route.path).or_default();
                let other = earlier.iter().find(|other| both_serve(other, route));
                // A preset has several hosts and paths; once is enough.
                if let Some(other) = other
                    && !said.contains(&(&other.place, &route.place))
                {
                    said.push((&other.place, &route.place));
                    problems.push(
                        Problem::error(format!(
                            "{} on {} is routed twice for the same methods",
                            quote(&route.path),
                            quote(host)
                        ))
                        .at(route.place.clone())
                        .also("first here:", other.place.clone())
                        .cure("give one of them another `path` or other `methods`"),
                    );
                }
                earlier.push(route);
            }
        }
        self.report.problems.extend(problems);
    }
}

/// How a hub is shown our token.
fn hub_token() -> Injection {
    Injection::Header {
        name: "Claviger-Token".to_owned(),
        template: "{key}".to_owned(),
    }
}

/// What is removed from requests.
struct Strip {
    fields: Vec<String>,
    params: Vec<String>,
    keep: Vec<String>,
}

/// Whether some method is served by both of two routes of one path. One with
/// methods goes before one without, so those two are no conflict.
fn both_serve(one: &RouteDraft, other: &RouteDraft) -> bool {
    match (one.methods.is_empty(), other.methods.is_empty()) {
        (true, true) => true,
        (false, false) => one
            .methods
            .iter()
            .any(|method| other.methods.contains(method)),
        _ => false,
    }
}
