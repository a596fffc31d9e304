//! The configuration that every case is decided by, and the one `check`.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use policy::route::Endpoint;
use policy::upstream::{CredentialId, UpstreamLimits};
use policy::verdict::PoolKey;
use policy::{
    Caller, Callers, CertificateName, Credential, Forwarding, ForwardingField, Identity, Injection,
    Listener, NamedCaller, OnEcho, OnUninspected, Require, Route, Secret, ServerLimits, Snapshot,
    Token, UnknownSni, Upstream, UpstreamId, Verdict, VirtualHost,
};
use rustls::pki_types::ServerName;
use wire::framing;
use wire::head::{HeadLimits, Parse, RequestHead};
use wire::names::{NameSet, ParamSet};
use wire::rewrite::Plan;

/// Stands in every value in which a caller sends a credential of its own.
pub const CALLER_SECRET: &str = "caller-secret";

/// This instance's mark.
pub const LOOP_TOKEN: &str = "clv-5f1e";

/// What the audit trail would call the exchange.
pub const REQUEST_ID: &str = "0a-1";

/// Fields that every route strips.
pub const STRIPPED_FIELDS: [&str; 6] = [
    "authorization",
    "proxy-authorization",
    "x-api-key",
    "api-key",
    "x-goog-api-key",
    "ocp-apim-subscription-key",
];

/// Query parameters that every route strips.
pub const STRIPPED_PARAMS: [&str; 4] = ["key", "api_key", "access_token", "token"];

/// The real key of a route. No key is part of another one.
pub fn key(route: &str) -> String {
    format!("real-key-of-{route}-0123456789")
}

/// How a caller is connected.
#[derive(Clone, Copy)]
pub struct Connection {
    listener: &'static str,
    address: &'static str,
    server_name: Option<&'static str>,
    /// The names of a client certificate.
    identity: Option<&'static Identity>,
}

/// A TLS connection from a private address with this server name.
pub fn tls(server_name: &'static str) -> Connection {
    Connection {
        listener: "main",
        address: "10.0.0.7",
        server_name: Some(server_name),
        identity: None,
    }
}

/// A clear-text connection from a private address.
pub fn clear() -> Connection {
    Connection {
        listener: "clear",
        address: "10.0.0.7",
        server_name: None,
        identity: None,
    }
}

impl Connection {
    pub fn from(self, address: &'static str) -> Self {
        Self { address, ..self }
    }

    pub fn with(self, identity: &'static Identity) -> Self {
        let identity = Some(identity);
        Self { identity, ..self }
    }

    pub fn on(self, listener: &'static str) -> Self {
        Self { listener, ..self }
    }
}

/// What must become of a request.
pub enum Expected<'a> {
    /// It goes upstream as these lines.
    Upstream(&'a [&'a str]),
    /// It goes upstream by this route.
    By(&'a str),
    /// It is answered with this status and reason.
    Denied(u16, &'a str),
    /// The same, with these methods offered instead.
    Offered(u16, &'a str, &'a str),
}

/// What went upstream.
#[derive(Debug, Default)]
pub struct Written {
    pub text: String,
    /// Who it was, and how that was known, as the audit trail will show it.
    pub caller: String,
    pub identified_by: &'static str,
    pub token_version: Option<String>,
    /// The names that the audit trail will show.
    pub stripped: Vec<String>,
}

/// Decides on a request, given by its lines, and writes what goes upstream.
#[track_caller]
pub fn check(connection: Connection, request: &[&str], expected: Expected<'_>) -> Written {
    let snapshot = &*WORLD;
    let text = format!("{}\r\n\r\n", request.join("\r\n"));
    let head = parse(&text);
    let caller = Caller {
        address: Caller::canonical(connection.address.parse().expect("an address")),
        server_name: connection.server_name,
        tls: connection.server_name.is_some(),
        identity: connection.identity,
    };
    let verdict = snapshot.authorize(connection.listener, &caller, &head);
    assert_silent(&verdict, &text);
    let permit = match verdict {
        Verdict::Allow(permit) => permit,
        Verdict::Greet => panic!("no host of this world is for edges: {text}"),
        Verdict::Deny(denial) => {
            let shown = format!("{denial:?}");
            assert!(!shown.contains(CALLER_SECRET), "{shown} quotes {text}");
            assert_eq!(
                denial.allow.is_some(),
                denial.status == 405,
                "a 405 names the methods, nothing else does (RFC 9110, 15.5.6)"
            );
            match expected {
                Expected::Denied(status, reason) => {
                    assert_eq!((denial.status, denial.reason), (status, reason), "{text}");
                }
                Expected::Offered(status, reason, allow) => assert_eq!(
                    (denial.status, denial.reason, denial.allow.as_deref()),
                    (status, reason, Some(allow)),
                    "{text}"
                ),
                Expected::Upstream(_) | Expected::By(_) => {
                    panic!("{text} is refused: {} {}", denial.status, denial.reason)
                }
            }
            return Written::default();
        }
    };
    let framing = framing::of_request(&head).expect("these requests are framed well");
    let mut plan = Plan::new();
    let outbound = permit.inject(
        REQUEST_ID,
        &head,
        framing,
        permit.upgrade(&head),
        head.expects_continue(),
        &mut plan,
    );
    assert_silent(&outbound, &text);
    assert_silent(&plan, &text);
    let mut slices = Vec::new();
    outbound.slices(permit.pool_key(), &plan, &head, &mut slices);
    let written = String::from_utf8(slices.concat()).expect("these requests are text");

    assert!(
        !written.contains(CALLER_SECRET),
        "the caller's credential goes upstream:\n{written}"
    );
    let route = &*permit.route().name;
    for name in ROUTES.iter().map(|(_, name, _)| *name) {
        let count = written.matches(&key(name)).count();
        let expected = usize::from(name == route && !KEYLESS.contains(&name));
        if name != "basic" {
            assert_eq!(count, expected, "the key of {name} in\n{written}");
        }
    }
    let again = parse(&written);
    assert_eq!(again.host(), Some(permit.upstream().host.as_bytes()));
    assert!(again.cdn_loop_contains(LOOP_TOKEN.as_bytes()), "{written}");
    assert_eq!(framing::of_request(&again), Ok(framing), "{written}");
    assert!(!written.to_ascii_lowercase().contains("claviger-"));
    assert_eq!(
        String::from_utf8_lossy(again.path()),
        String::from_utf8_lossy(&permit.route().upstream_path_of(head.path())),
        "what is said of the path is what is written"
    );
    match expected {
        Expected::Upstream(lines) => {
            assert_eq!(written, format!("{}\r\n\r\n", lines.join("\r\n")));
        }
        Expected::By(name) => assert_eq!(route, name, "{text}"),
        Expected::Denied(status, reason) | Expected::Offered(status, reason, _) => {
            panic!("{text} passes by {route}; expected {status} {reason}")
        }
    }
    let callers = &permit.route().callers;
    let admitted = permit.admitted();
    Written {
        caller: admitted.name(callers).to_owned(),
        identified_by: admitted.identified_by(),
        token_version: admitted.token_version(callers).map(str::to_owned),
        text: written,
        stripped: plan.stripped().iter().map(str::to_owned).collect(),
    }
}

/// No real key in what a log might show, as text or as a list of bytes.
#[track_caller]
pub fn assert_silent(shown: &impl std::fmt::Debug, context: &str) {
    for shown in [format!("{shown:?}"), format!("{shown:#?}")] {
        for (_, name, _) in ROUTES {
            let key = key(name);
            let listed = format!("{:?}", key.as_bytes());
            let listed = listed.trim_matches(['[', ']']);
            assert!(
                !shown.contains(&key) && !shown.contains(listed),
                "the key of {name} is shown: {context}"
            );
        }
    }
}

/// A request head of complete text.
#[track_caller]
pub fn parse(text: &str) -> RequestHead {
    let mut head = RequestHead::new();
    head.buffer().extend_from_slice(text.as_bytes());
    match head.parse(&HeadLimits::default()) {
        Ok(Parse::Complete) => head,
        other => panic!("{other:?} for {text}"),
    }
}

/// Every virtual host, route and path prefix, and what makes it special.
type Entry = (&'static str, &'static str, fn(Route) -> Route);

/// Routes that write no key.
const KEYLESS: [&str; 1] = ["keyless"];

fn at(path: &str, route: Route) -> Route {
    Route {
        path: path.as_bytes().into(),
        ..route
    }
}

fn serving(methods: &[&str], route: Route) -> Route {
    Route {
        methods: methods.iter().map(|method| (*method).into()).collect(),
        ..route
    }
}

fn instead(path: &str, route: Route) -> Route {
    Route {
        upstream_path: Some(path.as_bytes().into()),
        ..route
    }
}

fn only(networks: &[&str], route: Route) -> Route {
    Route {
        callers: Callers::Networks(
            networks
                .iter()
                .map(|network| network.parse().expect("a network"))
                .collect(),
        ),
        ..route
    }
}

/// A caller's token, by its version.
pub fn token(version: &str) -> String {
    format!("token-{version}-0123456789-{CALLER_SECRET}")
}

pub fn named(
    name: &str,
    networks: &[&str],
    tokens: &[&str],
    certificates: &[&str],
    require: Require,
) -> Arc<NamedCaller> {
    let networks = networks.iter();
    let tokens = tokens.iter().map(|version| {
        let text = format!("{}\n", token(version));
        Token::new(version, &Secret::new(text.into_bytes())).expect("a token")
    });
    Arc::new(NamedCaller {
        name: name.into(),
        networks: networks
            .map(|text| text.parse().expect("a network"))
            .collect(),
        tokens: tokens.collect(),
        certificates: certificates
            .iter()
            .map(|text| CertificateName::new(text))
            .collect(),
        require,
    })
}

fn written_as(injection: Injection, route: Route) -> Route {
    let credential = credential(&route.name, injection);
    Route {
        credential: route.credential.map(|(id, _)| (id, Arc::new(credential))),
        ..route
    }
}

fn without_key_management(route: Route) -> Route {
    let refused = ["POST /v3/api_keys", "GET /v3/api_keys", "* /v1/org/*/keys"];
    Route {
        refused: refused
            .iter()
            .map(|text| Endpoint::parse(text).expect("an endpoint"))
            .collect(),
        ..route
    }
}

/// Virtual host, route, and how the route differs from a plain one.
static ROUTES: [Entry; 27] = [
    ("api.example.com", "root", |r| r),
    ("api.example.com", "mail-send", |r| {
        at("/v3/mail", serving(&["POST", "PUT"], r))
    }),
    ("api.example.com", "mail-read", |r| {
        at("/v3/mail", serving(&["GET", "HEAD"], r))
    }),
    ("api.example.com", "mail-draft", |r| {
        at("/v3/mail/draft", serving(&["PUT"], r))
    }),
    ("bare.example.com", "bare", |r| at("/v1", r)),
    ("*.example.net", "wild", |r| r),
    ("exact.example.net", "exact", |r| r),
    ("internal.example.com", "internal", |r| r),
    ("clear.example.com", "clear", |r| r),
    ("guarded.example.com", "guarded-all", |r| r),
    ("guarded.example.com", "guarded-admin", |r| {
        at("/admin", only(&["192.0.2.0/24", "2001:db8::/32"], r))
    }),
    ("guarded.example.com", "guarded-query", |r| at("/a?b", r)),
    ("anyone.example.com", "anyone", |r| {
        only(&["0.0.0.0/0", "::/0"], r)
    }),
    ("partner.example.com", "partner", |r| Route {
        callers: Callers::Named {
            networks: vec!["198.51.100.0/24".parse().expect("a network")],
            callers: vec![
                named(
                    "edge",
                    &["203.0.113.0/24"],
                    &["edge-now", "edge-next"],
                    &[],
                    Require::All,
                ),
                named(
                    "mesh",
                    &[],
                    &[],
                    &["Mesh.example.com", "spiffe://example.com/mesh"],
                    Require::All,
                ),
                named("both", &[], &["both"], &["both.example.com"], Require::All),
                named("either", &["192.0.2.7/32"], &["either"], &[], Require::Any),
            ],
        },
        denied: vec!["203.0.113.66/32".parse().expect("a network")],
        keep_params: ParamSet::new(["token"]),
        ..r
    }),
    ("partner.example.com", "partner-query", |r| {
        at(
            "/query",
            Route {
                callers: Callers::Named {
                    networks: Vec::new(),
                    callers: vec![named("service", &[], &["service"], &[], Require::All)],
                },
                ..written_as(
                    Injection::Query {
                        name: "key".to_owned(),
                    },
                    r,
                )
            },
        )
    }),
    ("keys.example.com", "keys", without_key_management),
    ("claviger.internal", "gemini", |r| {
        at("/proxy/gemini", instead("/v1beta", r))
    }),
    ("claviger.internal", "plain", |r| {
        at("/proxy/plain", instead("/", r))
    }),
    ("claviger.internal", "slash", |r| {
        at("/proxy/slash/", instead("/api/", r))
    }),
    ("claviger.internal", "mail", |r| {
        at("/proxy/mail", instead("/", without_key_management(r)))
    }),
    ("claviger.internal", "orgs", |r| {
        at("/proxy/orgs", instead("/v1/org", without_key_management(r)))
    }),
    ("basic.example.com", "basic", |r| {
        written_as(
            Injection::Basic {
                username: Some("api".to_owned()),
            },
            r,
        )
    }),
    ("header.example.com", "header", |r| {
        written_as(
            Injection::Header {
                name: "X-Goog-Api-Key".to_owned(),
                template: "v1 {key};".to_owned(),
            },
            Route {
                strip_cookies: true,
                ..r
            },
        )
    }),
    ("query.example.com", "query", |r| {
        written_as(
            Injection::Query {
                name: "key".to_owned(),
            },
            r,
        )
    }),
    ("keep.example.com", "keep", |r| Route {
        keep_params: ParamSet::new(["key"]),
        upgrades: vec!["websocket".into(), "chat".into()],
        ..r
    }),
    ("told.example.com", "told", |r| Route {
        forwarding: Some(Forwarding {
            fields: ForwardingField::ALL.into(),
            trust: vec!["10.9.0.0/16".parse().expect("a network")],
        }),
        ..r
    }),
    ("keyless.example.com", "keyless", |r| Route {
        credential: None,
        ..r
    }),
];

fn credential(route: &str, injection: Injection) -> Credential {
    Credential::new(
        route,
        "v1",
        injection,
        &Secret::new(key(route).into_bytes()),
    )
    .expect("a good key")
}

/// A route at `/` for everybody near, with a bearer key of its own.
pub fn plain_route(number: u64, name: &str) -> Route {
    let tls = rustls::ClientConfig::builder_with_provider(Arc::new(
        rustls::crypto::aws_lc_rs::default_provider(),
    ))
    .with_safe_default_protocol_versions()
    .expect("the provider's own versions")
    .with_root_certificates(rustls::RootCertStore::empty())
    .with_no_client_auth();
    Route {
        name: name.into(),
        path: b"/"[..].into(),
        methods: Vec::new(),
        callers: Callers::Open,
        denied: Vec::new(),
        upstream: Arc::new(Upstream {
            id: UpstreamId(number),
            name: name.into(),
            host: format!("{name}.upstream.example").into(),
            tls_name: ServerName::try_from(format!("{name}.upstream.example"))
                .expect("a host name"),
            tls: Arc::new(tls),
            is_hub: false,
            addresses: Arc::from([]),
            limits: UpstreamLimits::default(),
        }),
        credential: Some((
            CredentialId(number),
            Arc::new(credential(name, Injection::Bearer)),
        )),
        further: Vec::new(),
        upstream_path: None,
        strip_fields: NameSet::new(STRIPPED_FIELDS),
        strip_params: ParamSet::new(STRIPPED_PARAMS),
        keep_params: ParamSet::default(),
        strip_cookies: false,
        forwarding: None,
        strip_response_fields: NameSet::default(),
        upgrades: vec!["websocket".into()],
        refused: Vec::new(),
        audit_required: false,
        retry_with_idempotency_key: false,
        body_bytes_max: u64::MAX,
        response_head_timeout: None,
        on_echo: OnEcho::Redact,
        on_uninspected: OnUninspected::Refuse,
    }
}

/// The pool that a route's requests may use.
pub fn pool_key(route: &str) -> PoolKey {
    let number = ROUTES
        .iter()
        .position(|(_, name, _)| *name == route)
        .expect("a route of this world") as u64;
    PoolKey {
        upstream: UpstreamId(number),
        credential: (!KEYLESS.contains(&route)).then_some(CredentialId(number)),
    }
}

/// The configuration.
pub static WORLD: LazyLock<Snapshot> = LazyLock::new(|| {
    let mut hosts: Vec<(&str, Vec<Route>)> = Vec::new();
    for (number, (host, name, change)) in ROUTES.iter().enumerate() {
        let route = change(plain_route(number as u64, name));
        match hosts.iter_mut().find(|(known, _)| known == host) {
            Some((_, routes)) => routes.push(route),
            None => hosts.push((host, vec![route])),
        }
    }
    let hosts = hosts
        .into_iter()
        .map(|(name, routes)| {
            let listeners = match name {
                "internal.example.com" => vec!["main".into()],
                "clear.example.com" => vec!["clear".into(), "spare".into()],
                _ => Vec::new(),
            };
            VirtualHost::new(name, listeners, None, routes)
        })
        .collect();
    let listener = |name: &str, tls| Listener {
        name: name.into(),
        addresses: Vec::new(),
        tls,
        proxies: Vec::new(),
        unknown_sni: UnknownSni::Refuse,
    };
    Snapshot::new(
        7,
        vec![listener("main", true), listener("clear", false)],
        hosts,
        ServerLimits {
            head_timeout: Duration::from_secs(1),
            ..ServerLimits::default()
        },
        LOOP_TOKEN,
    )
    .expect("every host is there once")
});
