//! [`Verdict`]: what was decided, and [`Permit`], the only way to a key.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use wire::framing::BodyFraming;
use wire::head::RequestHead;
use wire::names::NameSet;
use wire::rewrite::{self, Plan, RequestEdit};
use wire::scrub::Scrubber;

use crate::access::Admitted;
use crate::credential::Credential;
use crate::edge::{self, Told};
use crate::forwarding::Origin;
use crate::route::{Route, without_last_slash};
use crate::snapshot::RouteIndex;
use crate::upstream::{CredentialId, Upstream, UpstreamId};

/// The decision on one request.
#[derive(Debug)]
pub enum Verdict<'s> {
    /// It may go on, as the permit says.
    Allow(Permit<'s>),
    /// It may not.
    Deny(Denial),
    /// An edge asks whether its hub is there ([`Ping`](crate::edge::Ping)): it is.
    Greet,
}

/// Who refused or failed an exchange, on the audit trail and in our own answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refuser {
    /// The caller: its request was malformed, or it went away.
    Caller,
    /// A rule of the configuration.
    Policy,
    /// The third-party API, or the way to it.
    Upstream,
    /// Claviger itself: a bound was reached, or something broke.
    Claviger,
}

impl Refuser {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Refuser::Caller => "caller",
            Refuser::Policy => "policy",
            Refuser::Upstream => "upstream",
            Refuser::Claviger => "claviger",
        }
    }
}

/// Why a request is answered here and not by the upstream. Says nothing that
/// the caller sent, and names no secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denial {
    /// The status of the answer.
    pub status: u16,
    /// Machine-readable, snake_case, stable.
    pub reason: &'static str,
    /// A sentence for whoever reads the answer, with the cure.
    pub detail: &'static str,
    /// Who refused.
    pub refuser: Refuser,
    /// The route whose rule it was, if it came that far.
    pub route: Option<Box<str>>,
    /// The methods that are served, where the method was what was wrong.
    pub allow: Option<Box<str>>,
    /// What the edge said that has brought the request, once it had proven itself.
    pub told: Option<Box<Told>>,
}

impl Denial {
    const fn new(
        status: u16,
        reason: &'static str,
        refuser: Refuser,
        detail: &'static str,
    ) -> Self {
        Self {
            status,
            reason,
            detail,
            refuser,
            route: None,
            allow: None,
            told: None,
        }
    }

    /// The same, with the route whose rule refused.
    #[must_use]
    pub fn on(mut self, route: &str) -> Self {
        self.route = Some(route.into());
        self
    }

    /// The same, with the methods that are served.
    #[must_use]
    pub fn allowing(mut self, methods: &str) -> Self {
        self.allow = Some(methods.into());
        self
    }

    /// TRACE, TRACK or CONNECT.
    pub const METHOD_REFUSED: Denial = Denial::new(
        405,
        "method_refused",
        Refuser::Policy,
        "TRACE, TRACK and CONNECT are never forwarded.",
    );
    /// No usable host.
    pub const BAD_HOST: Denial = Denial::new(
        400,
        "bad_host",
        Refuser::Caller,
        "The request names no host, or its Host field is malformed.",
    );
    /// SNI, Host and absolute target name different hosts (RFC 9110, 15.5.20).
    pub const MISDIRECTED: Denial = Denial::new(
        421,
        "misdirected_request",
        Refuser::Policy,
        "The TLS server name, the Host field and the request target must name the same host.",
    );
    /// A host that is not served here.
    pub const UNKNOWN_HOST: Denial = Denial::new(
        421,
        "unknown_host",
        Refuser::Policy,
        "This host is not configured here.",
    );
    /// The request has passed through this instance before (RFC 5842, 7.2).
    pub const LOOP: Denial = Denial::new(
        508,
        "loop_detected",
        Refuser::Policy,
        "This request has already passed through this Claviger: the upstream's name leads back to it. Check the resolvers in [dns]; they must be public ones.",
    );
    /// Two readings of the path lead to different rules.
    pub const AMBIGUOUS_PATH: Denial = Denial::new(
        400,
        "ambiguous_path",
        Refuser::Policy,
        "The path can be read in several ways that fall under different rules. Send it without dot segments, empty segments and encoded slashes.",
    );
    /// A method that a header or a parameter names falls under another rule.
    pub const AMBIGUOUS_METHOD: Denial = Denial::new(
        400,
        "ambiguous_method",
        Refuser::Policy,
        "A header or query parameter names another method (such as X-HTTP-Method-Override) that falls under another rule than the request's own.",
    );
    /// No route covers the path.
    pub const NO_ROUTE: Denial = Denial::new(
        404,
        "no_route",
        Refuser::Policy,
        "No route covers this path on this host.",
    );
    /// A route covers the path, but not with this method.
    pub const METHOD_NOT_SERVED: Denial = Denial::new(
        405,
        "method_not_served",
        Refuser::Policy,
        "The route for this path does not serve this method.",
    );
    /// The caller's address is not among those that may use the route.
    pub const CALLER_REFUSED: Denial = Denial::new(
        403,
        "caller_not_allowed",
        Refuser::Policy,
        "This caller may not use this route.",
    );
    /// The caller's address would do, but a proof is missing or wrong (RFC 9110, 15.5.2).
    pub const CALLER_UNPROVEN: Denial = Denial::new(
        401,
        "caller_not_authenticated",
        Refuser::Policy,
        "This route wants a caller's token or client certificate, and the request has none that is known.",
    );
    /// On a host for edges alone, a request that names no authority.
    pub const EDGE_AUTHORITY: Denial = Denial::new(
        400,
        "edge_authority_missing",
        Refuser::Caller,
        "This host serves edges, and the request does not say for which host it is (Claviger-Authority). Services call an edge by the API's own name.",
    );
    /// An edge's fields are there twice, or malformed.
    pub const EDGE_FIELDS: Denial = Denial::new(
        400,
        "edge_fields_malformed",
        Refuser::Caller,
        "Claviger-Authority, Claviger-Caller or Claviger-Request-Id is there more than once, or malformed: expected are a host name without a port, an address, and an id.",
    );
    /// An endpoint that reads or mints keys.
    pub const KEY_MANAGEMENT: Denial = Denial::new(
        403,
        "key_management_refused",
        Refuser::Policy,
        "This endpoint reads or makes API keys. The route does not allow that (allow_key_management = false).",
    );
}

/// Proof that a request was authorised. Made by
/// [`Snapshot::authorize`](crate::Snapshot::authorize) alone, and the only way
/// to a credential.
#[derive(Debug)]
pub struct Permit<'s> {
    route: &'s Route,
    index: RouteIndex,
    admitted: Admitted,
    scrubber: Option<&'s Scrubber>,
    loop_token: &'s str,
    origin: Origin,
    /// Which of the route's ways it takes.
    way: usize,
    /// The host that was asked for, where the upstream is a hub, which must be told.
    authority: Option<Cow<'s, str>>,
    told: Option<Box<Told>>,
}

impl<'s> Permit<'s> {
    pub(crate) fn new(
        route: &'s Route,
        index: RouteIndex,
        admitted: Admitted,
        scrubber: Option<&'s Scrubber>,
        loop_token: &'s str,
        origin: Origin,
    ) -> Self {
        Self {
            route,
            index,
            admitted,
            scrubber,
            loop_token,
            origin,
            way: 0,
            authority: None,
            told: None,
        }
    }

    /// The same towards a hub, which is told for which host it is.
    pub(crate) fn for_authority(mut self, authority: Cow<'s, str>) -> Self {
        self.authority = Some(authority);
        self
    }

    pub(crate) fn brought_by(mut self, told: Option<Box<Told>>) -> Self {
        self.told = told;
        self
    }

    /// What the edge said that has brought the request, if one has.
    pub fn told(&self) -> Option<&Told> {
        self.told.as_deref()
    }

    /// The rules that let it through.
    pub fn route(&self) -> &'s Route {
        self.route
    }

    /// The same, as a number within the snapshot.
    pub fn index(&self) -> RouteIndex {
        self.index
    }

    /// How the caller was recognised.
    pub fn admitted(&self) -> Admitted {
        self.admitted
    }

    /// Where the request goes, and nowhere else.
    pub fn upstream(&self) -> &'s Arc<Upstream> {
        self.route.way(self.way).0
    }

    /// Which of the route's ways that is.
    pub fn way(&self) -> usize {
        self.way
    }

    /// Lets the request take another of the route's ways.
    ///
    /// # Panics
    /// When there is no such way.
    pub fn take_way(&mut self, way: usize) {
        assert!(way < self.route.ways(), "the route has no such way");
        self.way = way;
    }

    /// Which pool of connections may carry it.
    pub fn pool_key(&self) -> PoolKey {
        self.route.pool_key(self.way)
    }

    /// What is written, if anything is.
    pub fn credential(&self) -> Option<&'s Credential> {
        let (_, credential) = self.route.way(self.way);
        credential.map(|(_, credential)| &**credential)
    }

    /// The limit on the response head: the route's own, or else the upstream's.
    pub fn response_head_timeout(&self) -> Duration {
        self.route
            .response_head_timeout
            .unwrap_or(self.upstream().limits.response_head_timeout)
    }

    /// The upgrade that passes: what the caller asks for, if the route lists it.
    pub fn upgrade(&self, head: &RequestHead) -> Option<&'s str> {
        let asked = head.upgrade()?;
        self.route
            .upgrades
            .iter()
            .find(|token| token.as_bytes().eq_ignore_ascii_case(asked))
            .map(|token| &**token)
    }

    /// Finds in what comes back the key that is written, and those that other routes write to
    /// the same API; `None` if there is none, or they are too short to be searched for. A hub's
    /// answers are not searched: what is written is the hub's own token, which it never passes on.
    pub fn scrubber(&self) -> Option<&'s Scrubber> {
        self.scrubber
    }

    /// The fields that are removed from the answer, if there are any.
    pub fn strip_response_fields(&self) -> Option<&'s NameSet> {
        let fields = &self.route.strip_response_fields;
        (!fields.is_empty()).then_some(fields)
    }

    /// Strips what the caller sent and writes what the route says, as a list of
    /// pieces in `plan`. The key itself stays where it is: see [`Outbound`].
    ///
    /// `request_id` is what the audit trail calls the exchange; a hub is told it.
    pub fn inject(
        &self,
        request_id: &str,
        head: &RequestHead,
        framing: BodyFraming,
        upgrade: Option<&str>,
        expect_continue: bool,
        plan: &mut Plan,
    ) -> Outbound<'s> {
        let route = self.route;
        let credential = self.credential();
        let injection = credential.map(Credential::injection);
        let (path_strip, path_insert): (usize, &[u8]) = match &route.upstream_path {
            None => (0, b""),
            Some(instead) => (route.path_cut(), without_last_slash(instead)),
        };
        let mut forwarding = Vec::new();
        if let Some(rule) = &route.forwarding {
            rule.lines(self.origin, head, &mut forwarding);
        }
        if let Some(authority) = &self.authority {
            edge::lines(authority, self.origin.address, request_id, &mut forwarding);
        }
        rewrite::request(
            head,
            &RequestEdit {
                path_strip,
                path_insert,
                host: self.upstream().host.as_bytes(),
                strip_fields: &route.strip_fields,
                strip_params: &route.strip_params,
                keep_params: &route.keep_params,
                strip_cookies: route.strip_cookies,
                inject_line: injection.and_then(|how| how.header_slot()).map(|_| KEY),
                inject_param: injection.and_then(|how| how.query_slot()).map(|_| KEY),
                framing,
                upgrade: upgrade.map(str::as_bytes),
                expect_continue,
                searched: self.scrubber().is_some(),
                lines: &[
                    &forwarding,
                    b"CDN-Loop: ",
                    self.loop_token.as_bytes(),
                    b"\r\n",
                ],
            },
            plan,
        );
        Outbound {
            key: self.pool_key(),
            rendered: credential.map_or(&[], Credential::rendered),
        }
    }
}

/// The index of the key among a plan's external pieces.
const KEY: u8 = 0;

/// Which connections may carry a request: same upstream, same TLS name and
/// settings, same credential by name. Never split by route, never flushed by a
/// key's new version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PoolKey {
    /// The definition of the upstream.
    pub upstream: UpstreamId,
    /// The credential's name, by number.
    pub credential: Option<CredentialId>,
}

/// A rewritten head on its way out, bound to the pool that may carry it.
pub struct Outbound<'s> {
    key: PoolKey,
    rendered: &'s [u8],
}

impl<'s> Outbound<'s> {
    /// The pieces as slices, ready to be encrypted. `lease` is the key of the
    /// connection that will carry them.
    ///
    /// # Panics
    /// When the connection belongs to another pool: this is the last gate in
    /// front of the worst bug, so it is checked where the bytes come out.
    pub fn slices<'a>(
        &'a self,
        lease: PoolKey,
        plan: &'a Plan,
        head: &'a RequestHead,
        out: &mut Vec<&'a [u8]>,
    ) {
        assert!(
            lease == self.key,
            "a request was led to a connection of another pool"
        );
        plan.slices(head.bytes(), &[self.rendered], out);
    }
}

impl std::fmt::Debug for Outbound<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Outbound({:?})", self.key)
    }
}
