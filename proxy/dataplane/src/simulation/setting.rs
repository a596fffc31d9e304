//! What a run is about: upstreams, credentials and their versions, routes, limits.
//!
//! Two credentials share an upstream, so that a pool that looks at one half of its key only is
//! noticed; one route has no credential, so nothing that looks like a key may go there.

use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use policy::upstream::{CredentialId, UpstreamLimits};
use policy::{
    Callers, Credential, Injection, Listener, OnEcho, OnUninspected, Route, Secret, ServerLimits,
    Snapshot, UnknownSni, Upstream, UpstreamId, VirtualHost,
};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use wire::names::{NameSet, ParamSet};

use crate::rt::simulated::{Cut, Random, Setup};
use crate::test_support::IDENTITY;

/// The host that callers ask for.
pub const HOST: &str = "api.example.com";

/// What a caller writes where the key belongs; it must never arrive.
pub const CALLERS_OWN: &str = "caller-writes-here";

pub const UPSTREAMS: usize = 3;

/// Each route's upstream and credential.
pub const ROUTES: [(usize, Option<usize>); 4] =
    [(0, Some(0)), (1, Some(1)), (0, Some(2)), (2, None)];

pub const CREDENTIALS: usize = 3;

/// Each credential's upstream.
pub const CREDENTIAL_UPSTREAM: [usize; CREDENTIALS] = [0, 1, 0];

/// Every key begins with this, its credential's number and its version.
pub const KEY_BEGINS: &[u8] = b"sk-C";
/// The same behind `u:` in base64, as Basic writes it.
pub const KEY_BEGINS_BASIC: &[u8] = b"dTpzay1D";

/// `sk-C1V0042-...`: as long as a real one, so that it is searched for in answers.
pub fn key(credential: usize, version: u64) -> Vec<u8> {
    let check = Random::new(version * 8 + credential as u64).next();
    format!("sk-C{credential}V{version:04}-{check:016x}").into_bytes()
}

/// A version's key as it stands in a request.
pub fn key_as_written(credential: usize, version: u64) -> Vec<u8> {
    let key = key(credential, version);
    if credential != 2 {
        return key;
    }
    base64(&[b"u:", &key[..]].concat())
}

fn base64(text: &[u8]) -> Vec<u8> {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = Vec::new();
    for three in text.chunks(3) {
        let bits = three
            .iter()
            .chain([0, 0].iter())
            .take(3)
            .fold(0u32, |bits, &byte| bits << 8 | u32::from(byte));
        for at in 0..4 {
            out.push(if at <= three.len() {
                ALPHABET[(bits >> (18 - 6 * at)) as usize & 63]
            } else {
                b'='
            });
        }
    }
    out
}

/// Where an upstream listens.
pub fn addresses(upstream: usize) -> Vec<SocketAddr> {
    (1..=2u8)
        .map(|at| SocketAddr::from(([10, 0, upstream as u8, at], 443)))
        .collect()
}

/// Whose an address is.
pub fn upstream_at(address: SocketAddr) -> Option<usize> {
    (0..UPSTREAMS).find(|&upstream| addresses(upstream).contains(&address))
}

/// The name that an upstream is greeted by.
pub fn name(upstream: usize) -> String {
    format!("up{upstream}.example.net")
}

fn ms(ms: usize) -> Duration {
    Duration::from_millis(ms as u64)
}

/// What one seed draws once.
pub struct Setting {
    pub world: Setup,
    pub upstream: UpstreamLimits,
    pub server: ServerLimits,
    /// Connections of callers in the run.
    pub callers: usize,
    /// They come within this time.
    pub arrival: Duration,
    /// Exchanges go wrong once in so many times, on either side.
    pub fault_one_in: usize,
    /// The keys change by themselves, one once in this time, about.
    pub rotates: bool,
    pub rotation: Duration,
    /// So many of [`ROUTES`] are configured, and a request's body may be so long on them.
    pub routes: usize,
    pub body_bytes_max: u64,
    /// The worker is told to drain while callers still come.
    pub drains_early: bool,
    pub on_echo: [OnEcho; ROUTES.len()],
    pub audit_required: bool,
}

static TLS: LazyLock<Arc<ClientConfig>> = LazyLock::new(|| Arc::new(IDENTITY.client()));

impl Setting {
    pub fn draw(random: &Random) -> Self {
        let window = *random.one_of(&[1_500, 8_000, 64 * 1024, 256 * 1024]);
        let world = Setup {
            lends: random.one_in(2),
            cut: *random.one_of(&[Cut::Whole, Cut::Somewhere, Cut::Somewhere, Cut::Everywhere]),
            is_stingy: random.one_in(2),
            latency_max: ms(*random.one_of(&[0, 1, 5, 40])),
            window,
            window_down: window,
            loses_at_stop: false,
        };
        let upstream = UpstreamLimits {
            connect_timeout: ms(1_000),
            response_head_timeout: ms(2_000),
            read_timeout: ms(2_000),
            connections_max: random.within(1..=6),
            queue_max: random.within(0..=8),
            queue_timeout: ms(*random.one_of(&[200, 700, 3_000])),
            idle_max: random.within(0..=4),
            idle_min: random.below(2),
            idle_timeout: ms(*random.one_of(&[300, 3_000])),
            age_max: ms(*random.one_of(&[1_000, 20_000])),
        };
        let server = ServerLimits {
            head_timeout: ms(2_000),
            idle_timeout: ms(*random.one_of(&[400, 4_000])),
            read_timeout: ms(2_500),
            exchanges_max: *random.one_of(&[3, 1_000, 1_000]),
            ..ServerLimits::default()
        };
        let echoes = [OnEcho::Redact, OnEcho::Redact, OnEcho::Block];
        Self {
            world,
            upstream,
            server,
            callers: random.within(6..=24),
            arrival: ms(2_500),
            fault_one_in: *random.one_of(&[2, 4, 4, 12, 1_000]),
            rotates: true,
            routes: ROUTES.len(),
            body_bytes_max: u64::MAX,
            rotation: ms(*random.one_of(&[60, 300, 2_000])),
            drains_early: random.one_in(4),
            on_echo: std::array::from_fn(|_| *random.one_of(&echoes)),
            audit_required: random.one_in(2),
        }
    }

    /// A few callers, and whatever else there may be: every send may have to wait, every limit may be
    /// met.
    pub fn draw_small(random: &Random) -> Self {
        let mut setting = Self::draw(random);
        setting.callers = random.within(1..=3);
        setting.arrival = ms(*random.one_of(&[1, 100, 1_000]));
        setting.world.window = *random.one_of(&[40, 300, 1_500, 256 * 1024]);
        setting.world.window_down = *random.one_of(&[setting.world.window, 60, 300, 1_500]);
        if setting.world.window.min(setting.world.window_down) < 1_500 {
            // Whoever sends much would otherwise take minutes.
            setting.world.latency_max = ms(1);
        }
        setting.routes = *random.one_of(&[ROUTES.len(), ROUTES.len(), ROUTES.len() - 1]);
        setting.body_bytes_max = *random.one_of(&[10_000, u64::MAX]);
        setting.server.exchanges_max = *random.one_of(&[1, 3, 1_000]);
        setting.fault_one_in = *random.one_of(&[1, 2, 3, 1_000]);
        setting.upstream.connections_max = random.within(1..=2);
        setting.drains_early = false;
        setting.rotates = false;
        setting
    }

    /// The configuration with these versions of the keys.
    pub fn snapshot(&self, generation: u64, versions: [u64; CREDENTIALS]) -> Snapshot {
        self.snapshot_of(generation, versions, self.routes)
    }

    /// The same with so many of the routes.
    pub fn snapshot_of(
        &self,
        generation: u64,
        versions: [u64; CREDENTIALS],
        routes: usize,
    ) -> Snapshot {
        let upstreams: Vec<Arc<Upstream>> = (0..UPSTREAMS)
            .map(|at| {
                Arc::new(Upstream {
                    id: UpstreamId(at as u64 + 1),
                    name: format!("up{at}").into(),
                    host: name(at).into(),
                    tls_name: ServerName::try_from(name(at)).expect("a host name"),
                    tls: Arc::clone(&TLS),
                    is_hub: false,
                    addresses: addresses(at).into(),
                    limits: self.upstream,
                })
            })
            .collect();
        let routes = ROUTES
            .iter()
            .enumerate()
            .take(routes)
            .map(|(at, &(upstream, credential))| {
                let credential = credential.map(|credential| {
                    let written = Credential::new(
                        &format!("cred{credential}"),
                        &format!("v{}", versions[credential]),
                        match credential {
                            0 => Injection::Bearer,
                            1 => Injection::Header {
                                name: "X-Api-Key".to_owned(),
                                template: "{key}".to_owned(),
                            },
                            _ => Injection::Basic {
                                username: Some("u".to_owned()),
                            },
                        },
                        &Secret::new(key(credential, versions[credential])),
                    );
                    (
                        CredentialId(credential as u64 + 1),
                        Arc::new(written.expect("a good key")),
                    )
                });
                Route {
                    name: format!("r{at}").into(),
                    path: format!("/r{at}/").into_bytes().into(),
                    methods: Vec::new(),
                    callers: Callers::Open,
                    denied: Vec::new(),
                    upstream: Arc::clone(&upstreams[upstream]),
                    credential,
                    further: Vec::new(),
                    upstream_path: None,
                    strip_fields: NameSet::new(["authorization", "x-api-key"]),
                    strip_params: ParamSet::default(),
                    keep_params: ParamSet::default(),
                    strip_cookies: false,
                    forwarding: None,
                    strip_response_fields: NameSet::default(),
                    upgrades: Vec::new(),
                    refused: Vec::new(),
                    audit_required: self.audit_required,
                    retry_with_idempotency_key: false,
                    body_bytes_max: self.body_bytes_max,
                    response_head_timeout: None,
                    on_echo: self.on_echo[at],
                    on_uninspected: OnUninspected::Refuse,
                }
            });
        let host = VirtualHost::new(HOST, Vec::new(), None, routes.collect());
        let listener = Listener {
            name: "clear".into(),
            addresses: Vec::new(),
            tls: false,
            proxies: Vec::new(),
            unknown_sni: UnknownSni::Refuse,
        };
        Snapshot::new(
            generation,
            vec![listener],
            vec![host],
            self.server,
            "clv-test",
        )
        .expect("one host")
    }
}
