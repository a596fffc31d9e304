//! [`Snapshot`]: everything a worker needs to decide, fixed at one moment.

use std::borrow::Cow;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use ipnet::IpNet;
use wire::head::{HeadLimits, RequestHead};
use wire::names::{NameSet, ParamSet};
use wire::scrub::Scrubber;
use wire::target::{authority_host, percent_decode, readings};

use crate::access::{Caller, KnownEdge, NamedCaller, contains};
use crate::edge::{self, Told};
use crate::forwarding::Origin;
use crate::route::{Endpoint, Route, Split};
use crate::searches::searches;
use crate::upstream::{CredentialId, Upstream};
use crate::verdict::{Denial, Permit, Verdict};

/// A whole configuration, resolved: no names to look up, nothing optional left
/// that should have been decided. Replaced whole, never changed.
#[derive(Debug)]
pub struct Snapshot {
    /// Counted from 1; the audit trail and the log name it.
    pub generation: u64,
    /// What is listened on. A worker compares addresses with what it has bound.
    pub listeners: Vec<Listener>,
    /// Virtual hosts; see [`Snapshot::find_host`].
    hosts: Vec<VirtualHost>,
    exact: HashMap<Box<str>, usize, NameHash>,
    /// Keyed by what follows the `*.`.
    wildcard: HashMap<Box<str>, usize, NameHash>,
    /// Every upstream that a route leads to, once each.
    pub upstreams: Vec<Arc<Upstream>>,
    /// Whether some host is validated by TLS, so that others' handshakes need not look.
    pub is_validated_by_tls: bool,
    /// Times and bounds towards callers.
    pub limits: ServerLimits,
    /// This instance's mark in `CDN-Loop` (RFC 8586), a token that says nothing.
    pub loop_token: Box<str>,
}

/// The protocol by which an authority validates a host in a TLS handshake (RFC 8737, section 6.2).
pub const ACME_TLS_ALPN: &[u8] = b"acme-tls/1";

/// Where callers connect.
#[derive(Debug, Clone)]
pub struct Listener {
    /// The name in the configuration, and on the audit trail.
    pub name: Arc<str>,
    /// Every address that it is bound to.
    pub addresses: Vec<SocketAddr>,
    /// `false` serves clear text, which the file must say for this listener.
    pub tls: bool,
    /// Load balancers from which a connection begins with a PROXY protocol header.
    pub proxies: Vec<IpNet>,
    /// What happens without a known server name.
    pub unknown_sni: UnknownSni,
}

/// The answer to a handshake whose server name is absent or unknown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UnknownSni {
    /// The alert `unrecognized_name` (RFC 6066, section 3), and no certificate.
    Refuse,
    /// This virtual host's certificate; its routes are reached only by a `Host`
    /// field that names it.
    Host(Box<str>),
}

/// A name that is served, with its certificate and its routes.
#[derive(Debug)]
pub struct VirtualHost {
    /// `api.example.com`, or `*.example.com`; lower case.
    pub name: Box<str>,
    /// The listeners that serve it, by name; empty is all.
    pub listeners: Vec<Box<str>>,
    /// `None` is served on clear-text listeners only.
    pub tls: Option<Arc<rustls::ServerConfig>>,
    /// What a handshake that offers [`ACME_TLS_ALPN`] alone is served by, for an authority that
    /// validates this host. `None`: it is a handshake like any other.
    pub validation: Option<Arc<rustls::ServerConfig>>,
    /// Who may bring requests for other hosts here; see [`crate::edge`]. Each of them
    /// needs a token or a certificate.
    edges: Vec<Arc<NamedCaller>>,
    /// Longest path first; equal paths stand together, those that list methods first.
    routes: Vec<Route>,
    /// What each route's answers are searched for. Of [`Snapshot::new`]: it depends on all hosts.
    searches: Vec<Option<Arc<Scrubber>>>,
    /// Each path of the routes once, in the order of its bytes.
    prefixes: Vec<Prefix>,
}

/// A path that routes have.
#[derive(Debug)]
struct Prefix {
    /// The first of the routes that have it; the others follow.
    first: usize,
    /// The longest other path that this one starts with, in [`VirtualHost::prefixes`].
    outer: Option<usize>,
}

impl VirtualHost {
    /// Puts the routes into the order in which they are tried.
    pub fn new(
        name: &str,
        listeners: Vec<Box<str>>,
        tls: Option<Arc<rustls::ServerConfig>>,
        mut routes: Vec<Route>,
    ) -> Self {
        routes.sort_by(|a, b| {
            let longest = b.path.len().cmp(&a.path.len());
            longest
                .then_with(|| a.path.cmp(&b.path))
                .then_with(|| a.methods.is_empty().cmp(&b.methods.is_empty()))
        });
        Self {
            name: name.to_ascii_lowercase().into(),
            listeners,
            tls,
            validation: None,
            edges: Vec::new(),
            prefixes: prefixes(&routes),
            searches: Vec::new(),
            routes,
        }
    }

    /// The same host, at which these edges may bring requests for other hosts. A route of
    /// another host serves them if its `callers` name the edge: as the very same value.
    #[must_use]
    pub fn for_edges(mut self, edges: Vec<Arc<NamedCaller>>) -> Self {
        self.edges = edges;
        self
    }

    /// The routes in the order in which they are tried.
    pub fn routes(&self) -> &[Route] {
        &self.routes
    }

    /// Whether the listener serves this host.
    pub fn is_on(&self, listener: &str) -> bool {
        self.listeners.is_empty() || self.listeners.iter().any(|name| **name == *listener)
    }

    /// The methods that the routes at a path's longest prefix serve.
    fn methods_at(&self, path: &[u8]) -> String {
        let mut methods: Vec<&str> = self
            .routes_at(path)
            .1
            .flat_map(|route| route.methods.iter().map(|method| &**method))
            .collect();
        methods.sort_unstable();
        methods.dedup();
        methods.join(", ")
    }

    /// The route of one reading of a path: the longest prefix, then the method. A
    /// shorter prefix is never tried: it may be looser, and the longer one was meant.
    fn route(&self, path: &[u8], method: &str) -> Found {
        let (first, mut routes) = self.routes_at(path);
        match routes.position(|route| route.serves(method)) {
            Some(offset) => Found::Route(first + offset),
            None if first < self.routes.len() => Found::WrongMethod,
            None => Found::Nothing,
        }
    }

    /// The routes at a path's longest prefix, and where the first of them stands.
    fn routes_at(&self, path: &[u8]) -> (usize, impl Iterator<Item = &Route>) {
        let first = self.first_at(path).unwrap_or(self.routes.len());
        let routes = &self.routes[first..];
        let same = routes
            .iter()
            .take_while(|other| other.path == routes[0].path);
        (first, same)
    }

    /// The first of the routes at a path's longest prefix.
    fn first_at(&self, path: &[u8]) -> Option<usize> {
        // In the order of bytes, what stands between a prefix of `path` and `path` starts
        // with that prefix. So the longest one is the last that is not behind `path`, or
        // lies outward from that one.
        let behind = self
            .prefixes
            .partition_point(|prefix| *self.routes[prefix.first].path <= *path);
        let mut next = behind.checked_sub(1);
        let nearest = &self.routes[self.prefixes[next?].first].path;
        let common = nearest.iter().zip(path).take_while(|(a, b)| a == b).count();
        while let Some(prefix) = next.map(|at| &self.prefixes[at]) {
            // All of them are prefixes of the nearest one, so a length tells most.
            let route = &self.routes[prefix.first];
            if route.path.len() <= common && route.covers(path) {
                return Some(prefix.first);
            }
            next = prefix.outer;
        }
        None
    }
}

/// The paths of routes among which equal ones stand together.
fn prefixes(routes: &[Route]) -> Vec<Prefix> {
    let is_first = |at: &usize| *at == 0 || routes[at - 1].path != routes[*at].path;
    let mut firsts: Vec<usize> = (0..routes.len()).filter(is_first).collect();
    firsts.sort_unstable_by_key(|&first| &routes[first].path);
    let mut prefixes: Vec<Prefix> = Vec::with_capacity(firsts.len());
    for first in firsts {
        let mut outer = prefixes.len().checked_sub(1);
        while let Some(at) = outer
            && !routes[first]
                .path
                .starts_with(&routes[prefixes[at].first].path)
        {
            outer = prefixes[at].outer;
        }
        prefixes.push(Prefix { first, outer });
    }
    prefixes
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Found {
    Route(usize),
    WrongMethod,
    Nothing,
}

/// Times and bounds towards callers; the bounds count per core.
#[derive(Debug, Clone, Copy)]
pub struct ServerLimits {
    /// For the TLS handshake. Past it the connection is closed.
    pub handshake_timeout: Duration,
    /// From the first byte of a request head to its end. Past it: 408, close.
    pub head_timeout: Duration,
    /// Between exchanges on a kept-alive connection. Past it the connection is closed.
    pub idle_timeout: Duration,
    /// Between two reads of a request body, and for each write to the caller.
    /// Past it the exchange is cut.
    pub read_timeout: Duration,
    /// Bytes per second at which a request body must come in once [`head_timeout`](Self::head_timeout)
    /// has been waited for it; 0 is any rate. Below it the exchange is cut.
    pub body_rate_min: u64,
    /// How long draining waits for exchanges in flight.
    pub drain_timeout: Duration,
    /// Connections at once. Past it a caller that keeps the core waiting makes room for a new
    /// one; without any, the new one is closed. Both are counted.
    pub connections_max: usize,
    /// Exchanges under way at once, tunnels among them. Past it: 503 with `Retry-After`.
    pub exchanges_max: usize,
    /// Size of a request head. Past it: 431.
    pub head: HeadLimits,
}

impl Default for ServerLimits {
    fn default() -> Self {
        Self {
            handshake_timeout: Duration::from_secs(10),
            head_timeout: Duration::from_secs(15),
            idle_timeout: Duration::from_secs(75),
            read_timeout: Duration::from_secs(60),
            body_rate_min: 240,
            drain_timeout: Duration::from_secs(30),
            connections_max: 16_384,
            exchanges_max: 8_192,
            head: HeadLimits::default(),
        }
    }
}

/// Where [`Snapshot::find_host`] found a virtual host. Valid for one generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostIndex(usize);

/// Names a route of one snapshot, for records that outlive a borrow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RouteIndex {
    host: HostIndex,
    route: usize,
}

impl Snapshot {
    /// The route behind an index of this generation.
    pub fn route(&self, index: RouteIndex) -> &Route {
        &self.host(index.host).routes[index.route]
    }

    /// Every route with its index.
    pub fn routes(&self) -> impl Iterator<Item = (RouteIndex, &Route)> {
        self.hosts.iter().enumerate().flat_map(|(at, host)| {
            let routes = host.routes.iter().enumerate();
            routes.map(move |(route, found)| {
                let host = HostIndex(at);
                (RouteIndex { host, route }, found)
            })
        })
    }

    /// Puts the parts together.
    ///
    /// # Errors
    /// The name of a host that is there twice.
    pub fn new(
        generation: u64,
        listeners: Vec<Listener>,
        mut hosts: Vec<VirtualHost>,
        limits: ServerLimits,
        loop_token: &str,
    ) -> Result<Self, String> {
        let mut searches = searches(hosts.iter().flat_map(|host| &host.routes)).into_iter();
        for host in &mut hosts {
            host.searches = searches.by_ref().take(host.routes.len()).collect();
        }
        let mut exact = HashMap::default();
        let mut wildcard = HashMap::default();
        let mut upstreams: Vec<Arc<Upstream>> = Vec::new();
        for (index, host) in hosts.iter().enumerate() {
            let earlier = match host.name.strip_prefix("*.") {
                Some(suffix) => wildcard.insert(suffix.into(), index),
                None => exact.insert(host.name.clone(), index),
            };
            if earlier.is_some() {
                return Err(format!("the host `{}` is there twice", host.name));
            }
            for (upstream, _) in host.routes.iter().flat_map(Route::every_way) {
                if upstreams.iter().all(|known| known.id != upstream.id) {
                    upstreams.push(Arc::clone(upstream));
                }
            }
        }
        Ok(Self {
            generation,
            listeners,
            is_validated_by_tls: hosts.iter().any(|host| host.validation.is_some()),
            hosts,
            exact,
            wildcard,
            upstreams,
            limits,
            loop_token: loop_token.into(),
        })
    }

    /// Every virtual host.
    pub fn hosts(&self) -> &[VirtualHost] {
        &self.hosts
    }

    /// The virtual host of a name in lower case: the exact one, or else the
    /// wildcard one level up (RFC 6125, section 6.4.3: `*` is one label).
    pub fn find_host(&self, name: &str) -> Option<HostIndex> {
        if let Some(&index) = self.exact.get(name) {
            return Some(HostIndex(index));
        }
        let (label, parent) = name.split_once('.')?;
        if label.is_empty() {
            return None;
        }
        self.wildcard.get(parent).map(|&index| HostIndex(index))
    }

    /// The host behind an index of this generation.
    pub fn host(&self, index: HostIndex) -> &VirtualHost {
        &self.hosts[index.0]
    }

    /// Whether each credential of the snapshot is still the named one; used to
    /// close pooled connections of credentials that are gone.
    pub fn has_pool(&self, upstream: crate::UpstreamId, credential: Option<CredentialId>) -> bool {
        self.hosts
            .iter()
            .flat_map(|host| &host.routes)
            .flat_map(Route::every_way)
            .any(|(leads_to, written)| {
                leads_to.id == upstream && written.map(|(id, _)| *id) == credential
            })
    }

    /// The one decision: may this caller do this? The only maker of a [`Permit`].
    ///
    /// `listener` is the name of the listener that accepted the connection.
    pub fn authorize<'s>(
        &'s self,
        listener: &str,
        caller: &Caller<'_>,
        head: &RequestHead,
    ) -> Verdict<'s> {
        if edge::is_ping(head)
            && let Some(known) = self.greet(listener, caller, head)
        {
            return known.map_or_else(Verdict::Deny, |()| Verdict::Greet);
        }
        let mut told = None;
        match self.decide(listener, caller, head, &mut told) {
            Ok(permit) => Verdict::Allow(permit.brought_by(told)),
            Err(denial) => Verdict::Deny(Denial { told, ..denial }),
        }
    }

    fn decide<'s>(
        &'s self,
        listener: &str,
        caller: &Caller<'_>,
        head: &RequestHead,
        told: &mut Option<Box<Told>>,
    ) -> Result<Permit<'s>, Denial> {
        // RFC 9110, 9.3.8: TRACE reflects the request, key and all. TRACK is its
        // nickname. CONNECT asks for a tunnel to a place of the caller's choice.
        // In any case: methods are case-sensitive (9.1), but not to every server.
        let method = head.method_str();
        // Some APIs let a header or a parameter name another method than the request
        // line does. What that method may not do, this request may not do either.
        let overrides = method_overrides(head);
        let is_named = |name: &&str| {
            name.eq_ignore_ascii_case(method) || overrides.iter().any(|other| other == name)
        };
        if ["TRACE", "TRACK", "CONNECT"].iter().any(is_named) {
            return Err(
                Denial::METHOD_REFUSED.allowing("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS")
            );
        }
        let mut host_index = self.agreed_host(caller, head)?;
        let mut host = self.host(host_index);
        if !host.is_on(listener) {
            return Err(Denial::UNKNOWN_HOST);
        }
        // RFC 8586: our own mark in a request that arrives means it went round.
        if head.cdn_loop_contains(self.loop_token.as_bytes()) {
            return Err(Denial::LOOP);
        }
        let mut edge = None;
        if !host.edges.is_empty()
            && let Some((index, known)) = self.brought(host, caller, head, told)?
        {
            (host_index, host) = (index, self.host(index));
            edge = Some(known);
        }
        let path = head.path();
        let found = host.route(path, method);
        let others = readings(path).map_err(|_| Denial::AMBIGUOUS_PATH)?;
        if overrides
            .iter()
            .any(|other| host.route(path, other) != found)
        {
            return Err(Denial::AMBIGUOUS_METHOD);
        }
        // Another reading that leads elsewhere means that we and the upstream may
        // disagree on what was asked for; policy would then guard the wrong door.
        if others
            .iter()
            .any(|other| host.route(other, method) != found)
        {
            return Err(Denial::AMBIGUOUS_PATH);
        }
        let (route, search, index) = match found {
            Found::Route(at) => (
                &host.routes[at],
                host.searches[at].as_deref(),
                RouteIndex {
                    host: host_index,
                    route: at,
                },
            ),
            Found::WrongMethod => {
                return Err(Denial::METHOD_NOT_SERVED.allowing(&host.methods_at(path)));
            }
            Found::Nothing => return Err(Denial::NO_ROUTE),
        };
        // What the upstream will see, in each way in which it may read that.
        let (path, others) = match &route.upstream_path {
            None => (Cow::Borrowed(path), others),
            Some(_) => {
                let path = route.upstream_path_of(path);
                let others = readings(&path).map_err(|_| Denial::AMBIGUOUS_PATH)?;
                // A path that comes back to the route's prefix here may climb out of
                // the prefix that takes its place there.
                if !others.is_empty() && !route.contains_upstream(&others) {
                    return Err(Denial::AMBIGUOUS_PATH);
                }
                (Cow::Owned(path), others)
            }
        };
        if contains(&route.denied, caller.address) {
            return Err(Denial::CALLER_REFUSED.on(&route.name));
        }
        let admitted = match &edge {
            None => route.callers.admit(caller, head, route),
            Some(edge) => route.callers.admit_edge(edge),
        };
        let admitted = admitted.map_err(|denial| denial.on(&route.name))?;
        let serves = |endpoint: &Endpoint| {
            endpoint.serves(method) || overrides.iter().any(|other| endpoint.serves(other))
        };
        let refuses = |path: &[u8]| {
            let path = Split::new(path);
            let mut refused = route.refused.iter();
            refused.any(|endpoint| endpoint.covers_split(&path) && serves(endpoint))
        };
        if !route.refused.is_empty()
            && (refuses(&path) || others.iter().any(|other| refuses(other)))
        {
            return Err(Denial::KEY_MANAGEMENT.on(&route.name));
        }
        let origin = Origin {
            address: caller.address,
            tls: caller.tls,
        };
        let permit = Permit::new(route, index, admitted, search, &self.loop_token, origin);
        if !route.upstream.is_hub {
            return Ok(permit);
        }
        let authority = match host.name.starts_with('*') {
            false => Cow::Borrowed(&*host.name),
            true => Cow::Owned(asked_name(caller, head, told.as_deref())?),
        };
        Ok(permit.for_authority(authority))
    }

    /// Whether the request is an edge's question that this host answers, and whether it is
    /// known here.
    fn greet(
        &self,
        listener: &str,
        caller: &Caller<'_>,
        head: &RequestHead,
    ) -> Option<Result<(), Denial>> {
        let host = self.host(self.agreed_host(caller, head).ok()?);
        let is_door = !host.edges.is_empty() && host.is_on(listener);
        is_door.then(|| KnownEdge::recognise(&host.edges, caller, head).map(drop))
    }

    /// The host for which an edge brings a request to this one, and who the edge is. `None`:
    /// the request is for this host's own routes.
    fn brought<'s>(
        &self,
        host: &'s VirtualHost,
        caller: &Caller<'_>,
        head: &RequestHead,
        told: &mut Option<Box<Told>>,
    ) -> Result<Option<(HostIndex, KnownEdge<'s>)>, Denial> {
        if !Told::is_spoken(head) {
            return match host.routes.is_empty() {
                true => Err(Denial::EDGE_AUTHORITY),
                false => Ok(None),
            };
        }
        // Who it is comes first: a stranger's word is not even read.
        let edge = KnownEdge::recognise(&host.edges, caller, head)?;
        let said = Told::read(edge.name(), head)?.ok_or(Denial::EDGE_AUTHORITY)?;
        let found = self.find_host(&said.authority);
        *told = Some(Box::new(said));
        // An edge's own door leads to no other door.
        let found = found.filter(|index| self.host(*index).edges.is_empty());
        Ok(Some((found.ok_or(Denial::UNKNOWN_HOST)?, edge)))
    }

    /// The virtual host on which the handshake's server name, the `Host` field
    /// and an absolute target agree.
    fn agreed_host(&self, caller: &Caller<'_>, head: &RequestHead) -> Result<HostIndex, Denial> {
        // RFC 9112, 3.2.2: an absolute target's authority wins over Host; we
        // refuse the pair when they differ, since somebody behind us may not know.
        let named = match (head.authority(), head.host()) {
            (Some(authority), Some(host)) => {
                let authority = authority_host(authority).ok_or(Denial::BAD_HOST)?;
                let host = authority_host(host).ok_or(Denial::BAD_HOST)?;
                if !authority.0.eq_ignore_ascii_case(host.0) {
                    return Err(Denial::MISDIRECTED);
                }
                Some(authority.0)
            }
            (Some(one), None) | (None, Some(one)) => {
                Some(authority_host(one).ok_or(Denial::BAD_HOST)?.0)
            }
            (None, None) => None,
        };
        let lowered;
        let name: &str = match (caller.server_name, named) {
            (Some(sni), Some(named)) => {
                let named = named.strip_suffix(b".").unwrap_or(named);
                // Nearly every caller writes what it said in the handshake, letter for letter.
                if named != sni.as_bytes() && !named.eq_ignore_ascii_case(sni.as_bytes()) {
                    return Err(Denial::MISDIRECTED);
                }
                sni
            }
            // HTTP/1.0 without Host: the handshake has said it.
            (Some(sni), None) => sni,
            (None, Some(named)) => {
                lowered = lower(named).ok_or(Denial::BAD_HOST)?;
                &lowered
            }
            (None, None) => return Err(Denial::BAD_HOST),
        };
        self.find_host(name).ok_or(Denial::UNKNOWN_HOST)
    }
}

type NameHash = BuildHasherDefault<NameHasher>;

/// FNV-1a with a last mixing, for names of hosts: a tenth of what the standard
/// library's hash costs for a name.
///
/// That one resists peers who choose the keys of a map so that they collide. These
/// maps' keys are the operator's; a peer chooses what is looked up and nothing else,
/// and whatever that is, it is compared with the few names of one bucket at most.
#[derive(Debug, Clone, Copy)]
struct NameHasher(u64);

impl Default for NameHasher {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Hasher for NameHasher {
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    fn finish(&self) -> u64 {
        // The map takes the bucket from the low bits and tells its entries apart by the
        // high ones.
        (self.0 ^ (self.0 >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }
}

/// Where APIs look for another method: header fields and query parameters of
/// Google's APIs, Rails, Laravel, Spring, Express and OData.
static METHOD_OVERRIDE_FIELDS: LazyLock<NameSet> = LazyLock::new(|| {
    NameSet::new([
        "x-http-method-override",
        "x-http-method",
        "x-method-override",
    ])
});
static METHOD_OVERRIDE_PARAMS: LazyLock<ParamSet> = LazyLock::new(|| {
    ParamSet::new([
        "_method",
        "$httpmethod",
        "x-http-method-override",
        "_httpmethod",
    ])
});

/// Methods that the request names beside its own, in upper case. Empty, and
/// without an allocation, for the ordinary request.
fn method_overrides(head: &RequestHead) -> Vec<String> {
    let mut found = Vec::new();
    let mut note = |value: &[u8]| {
        let value = String::from_utf8_lossy(value);
        // In a query `+` may be a space.
        let value = value.trim_matches(|char: char| char == '+' || char.is_whitespace());
        found.push(value.to_ascii_uppercase());
    };
    for field in head.fields() {
        if METHOD_OVERRIDE_FIELDS.contains(head.name(field)) {
            note(head.value(field));
        }
    }
    if let Some(query) = head.query() {
        for param in wire::target::params(query) {
            if METHOD_OVERRIDE_PARAMS.contains(&query[param.name.clone()]) {
                let value = query[param.name.end..param.whole.end]
                    .strip_prefix(b"=")
                    .unwrap_or_default();
                note(&percent_decode(value));
            }
        }
    }
    found
}

/// The name that was asked for, on a host that has many.
fn asked_name(
    caller: &Caller<'_>,
    head: &RequestHead,
    told: Option<&Told>,
) -> Result<String, Denial> {
    if let Some(told) = told {
        return Ok(told.authority.to_string());
    }
    if let Some(name) = caller.server_name {
        return Ok(name.to_owned());
    }
    let named = head.authority().or(head.host()).ok_or(Denial::BAD_HOST)?;
    let (name, _) = authority_host(named).ok_or(Denial::BAD_HOST)?;
    lower(name).ok_or(Denial::BAD_HOST)
}

/// A host name in lower case, without the root's dot.
fn lower(name: &[u8]) -> Option<String> {
    let name = std::str::from_utf8(name).ok()?;
    Some(name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase())
}
