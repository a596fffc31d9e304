//! Bytes and configurations that the cases share.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, LazyLock};

use policy::upstream::{CredentialId, UpstreamLimits};
use policy::{
    Caller, Callers, Credential, Endpoint, Injection, Listener, OnEcho, OnUninspected, Route,
    Secret, ServerLimits, Snapshot, UnknownSni, Upstream, UpstreamId, VirtualHost,
};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use wire::names::{NameSet, ParamSet};

/// The host that is asked for, and the upstream's name.
pub const HOST: &str = "api.example.com";

/// The listener on which callers arrive.
pub const LISTENER: &str = "main";

/// The real key. It is as long as those of the large providers.
pub const KEY: &str = "sk-proj-0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRST";

/// The least that a request can be.
pub const REQUEST_SMALL: &[u8] = b"GET / HTTP/1.1\r\nHost: api.example.com\r\n\r\n";

/// Thirteen fields, about 520 bytes: what an SDK sends.
pub const REQUEST_TYPICAL: &[u8] =
    b"POST /v1/chat/completions?api-version=2024-06-01&stream=true HTTP/1.1\r\n\
Host: api.example.com\r\n\
Accept: application/json\r\n\
Accept-Encoding: gzip, deflate, br\r\n\
Authorization: Bearer sk-not-the-real-one\r\n\
Connection: keep-alive\r\n\
Content-Length: 321\r\n\
Content-Type: application/json\r\n\
User-Agent: OpenAI/Python 1.51.0\r\n\
X-Stainless-Arch: x64\r\n\
X-Stainless-Lang: python\r\n\
X-Stainless-Runtime-Version: 3.12.1\r\n\
X-Request-Id: 7f0c2d8e-6a54-4f6e-9d9b-3a1f7f6f0b11\r\n\
\r\n";

/// The least that an answer can be.
pub const RESPONSE_SMALL: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n";

/// Twelve fields: what an API answers.
pub const RESPONSE_TYPICAL: &[u8] = b"HTTP/1.1 200 OK\r\n\
Date: Mon, 27 Jul 2026 12:28:53 GMT\r\n\
Content-Type: application/json\r\n\
Content-Length: 1024\r\n\
Connection: keep-alive\r\n\
Access-Control-Expose-Headers: X-Request-ID\r\n\
Openai-Organization: example\r\n\
Openai-Processing-Ms: 412\r\n\
Strict-Transport-Security: max-age=31536000; includeSubDomains\r\n\
X-Ratelimit-Limit-Requests: 10000\r\n\
X-Ratelimit-Remaining-Requests: 9999\r\n\
Server: example\r\n\
Alt-Svc: h3=\":443\"; ma=86400\r\n\
\r\n";

/// `start_line` and so many fields of an ordinary length.
pub fn head_of(start_line: &str, host: bool, fields: usize) -> Vec<u8> {
    let mut head = format!("{start_line}\r\n");
    if host {
        head.push_str("Host: api.example.com\r\n");
    }
    for at in usize::from(host)..fields {
        head.push_str(&format!(
            "X-Field-Number-{at:03}: value {at:03} of many\r\n"
        ));
    }
    head.push_str("\r\n");
    head.into_bytes()
}

/// About the longest path that a head can hold.
pub const PATH_BYTES_LONGEST: usize = 32 * 1024 - 256;

/// A path of at most so many bytes, made of what every reading reads differently.
pub fn path_hostile(bytes: usize) -> Vec<u8> {
    let dense = b"/a;p=1/%252e%252e\\b//./%2e%2e/c%3bq";
    dense.repeat(bytes / dense.len())
}

/// What the default configuration strips, and the preset of a chat API.
pub fn strip_fields() -> NameSet {
    NameSet::new([
        "authorization",
        "proxy-authorization",
        "x-api-key",
        "api-key",
        "x-goog-api-key",
        "ocp-apim-subscription-key",
        "x-auth-token",
        "x-access-token",
        "apikey",
    ])
}

/// The parameters that go with them.
pub fn strip_params() -> ParamSet {
    ParamSet::new(["key", "api_key", "apikey", "access_token", "token", "auth"])
}

/// A caller from a private network, whose handshake named `server_name`.
pub fn caller(server_name: &str) -> Caller<'_> {
    Caller {
        address: IpAddr::V4(Ipv4Addr::new(10, 1, 2, 3)),
        server_name: Some(server_name),
        tls: true,
        identity: None,
    }
}

/// A key to be written as a bearer token.
pub fn credential() -> Credential {
    Credential::new(
        "chat",
        "v7",
        Injection::Bearer,
        &Secret::new(KEY.as_bytes().to_vec()),
    )
    .expect("a good key")
}

/// The upstream of every route.
pub fn upstream() -> Upstream {
    Upstream {
        id: UpstreamId(1),
        name: "chat".into(),
        host: HOST.into(),
        tls_name: server_name(),
        tls: Arc::new(IDENTITY.client.clone()),
        is_hub: false,
        addresses: Arc::new([]),
        limits: UpstreamLimits {
            connections_max: 4096,
            idle_max: 4096,
            ..UpstreamLimits::default()
        },
    }
}

/// What routes have in common: making it takes longer than a route does.
struct Shared {
    upstream: Arc<Upstream>,
    credential: Arc<Credential>,
}

fn route(shared: &Shared, path: &str) -> Route {
    // As the preset of a chat API has them.
    let refused = [
        "* /v1/organization/admin_api_keys",
        "* /v1/organization/projects/*/api_keys",
        "* /v1/organization/projects/*/service_accounts",
        "POST /v1/realtime/client_secrets",
        "POST /v1/realtime/sessions",
        "POST /v1/realtime/transcription_sessions",
        "POST /v1/chatkit/sessions",
    ];
    Route {
        name: "chat".into(),
        path: path.as_bytes().into(),
        methods: Vec::new(),
        callers: Callers::Open,
        denied: Vec::new(),
        upstream: Arc::clone(&shared.upstream),
        credential: Some((CredentialId(1), Arc::clone(&shared.credential))),
        further: Vec::new(),
        upstream_path: None,
        strip_fields: strip_fields(),
        strip_params: strip_params(),
        keep_params: ParamSet::default(),
        strip_cookies: false,
        forwarding: None,
        strip_response_fields: NameSet::default(),
        upgrades: vec!["websocket".into()],
        refused: refused
            .iter()
            .map(|text| Endpoint::parse(text).expect("an endpoint"))
            .collect(),
        audit_required: true,
        retry_with_idempotency_key: false,
        body_bytes_max: u64::MAX,
        response_head_timeout: None,
        on_echo: OnEcho::Redact,
        on_uninspected: OnUninspected::Refuse,
    }
}

/// Hosts of one route each, the last of which is [`HOST`].
pub fn snapshot_of_hosts(hosts: usize) -> Snapshot {
    snapshot((1..=hosts).map(|at| {
        let name = if at == hosts {
            HOST.to_owned()
        } else {
            format!("r{at:05}.example.com")
        };
        (name, vec!["/".to_owned()])
    }))
}

/// [`HOST`] with one route for each path.
pub fn snapshot_of_routes(paths: Vec<String>) -> Snapshot {
    snapshot([(HOST.to_owned(), paths)])
}

fn snapshot(hosts: impl IntoIterator<Item = (String, Vec<String>)>) -> Snapshot {
    let shared = Shared {
        upstream: Arc::new(upstream()),
        credential: Arc::new(credential()),
    };
    let hosts = hosts
        .into_iter()
        .map(|(name, paths)| {
            let routes = paths.iter().map(|path| route(&shared, path)).collect();
            VirtualHost::new(&name, Vec::new(), None, routes)
        })
        .collect();
    let listener = Listener {
        name: LISTENER.into(),
        addresses: Vec::new(),
        tls: true,
        proxies: Vec::new(),
        unknown_sni: UnknownSni::Refuse,
    };
    Snapshot::new(
        3,
        vec![listener],
        hosts,
        ServerLimits::default(),
        "0123456789abcdef",
    )
    .expect("each host is there once")
}

/// The two ends of a TLS connection, as Claviger configures them.
pub struct Identity {
    /// Trusts the server.
    pub client: ClientConfig,
    /// Shows a certificate of its own.
    pub server: ServerConfig,
}

/// Made once: a key costs more than most cases.
pub static IDENTITY: LazyLock<Identity> = LazyLock::new(|| {
    // Ed25519, because its signatures are all of one length: an ECDSA signature's varies, and with it
    // what the handshake leaves behind on the heap.
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("a key");
    let certificate = rcgen::CertificateParams::new([HOST.to_owned()])
        .and_then(|params| params.self_signed(&key))
        .expect("a certificate");
    let mut roots = RootCertStore::empty();
    roots
        .add(certificate.der().clone())
        .expect("a certificate is a root of its own");
    let provider = Arc::new(default_provider());
    Identity {
        client: ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .expect("the provider's own versions")
            .with_root_certificates(roots)
            .with_no_client_auth(),
        server: ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider's own versions")
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::Pkcs8(key.serialize_der().into()),
            )
            .expect("the key is the certificate's"),
    }
});

/// [`HOST`], for a handshake.
pub fn server_name() -> ServerName<'static> {
    ServerName::try_from(HOST).expect("a host name")
}
