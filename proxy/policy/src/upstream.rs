//! [`Upstream`]: a third-party API, and what is known of reaching it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;

/// Names one definition of an upstream for the life of the process. Equal
/// definitions keep their number across reloads, and different ones never share
/// one: a pooled connection is found by this number, so it must not be a hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UpstreamId(pub u64);

/// Names one credential (not its version) for the life of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CredentialId(pub u64);

/// A third-party API.
#[derive(Debug, Clone)]
pub struct Upstream {
    /// See [`UpstreamId`].
    pub id: UpstreamId,
    /// The name in the configuration.
    pub name: Box<str>,
    /// The value of the `Host` field that is written: name, and port if not 443.
    pub host: Box<str>,
    /// The name that the certificate must be good for, and the SNI.
    pub tls_name: ServerName<'static>,
    /// Full verification, ALPN `http/1.1`.
    pub tls: Arc<rustls::ClientConfig>,
    /// It is another Claviger, which holds the keys; see [`crate::edge`].
    pub is_hub: bool,
    /// Addresses written in the configuration. Empty: see the [`AddressBook`].
    pub addresses: Arc<[SocketAddr]>,
    /// Times and bounds.
    pub limits: UpstreamLimits,
}

/// Times and bounds of one upstream; the bounds count per core.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UpstreamLimits {
    /// TCP connect and TLS handshake together, over all addresses. Past it: 504.
    pub connect_timeout: Duration,
    /// From the end of the request to the end of the response head. Past it: 504.
    pub response_head_timeout: Duration,
    /// Between two reads of a body. Past it the exchange is cut.
    pub read_timeout: Duration,
    /// Connections at once. Past it requests wait.
    pub connections_max: usize,
    /// Requests that wait for a connection at once. Past it: 503 with `Retry-After`.
    pub queue_max: usize,
    /// How long a request waits for a connection. Past it: 503 with `Retry-After`.
    pub queue_timeout: Duration,
    /// Idle connections kept. Past it the oldest one is closed.
    pub idle_max: usize,
    /// Idle connections kept warm while the upstream is in use.
    pub idle_min: usize,
    /// How long an idle connection is kept.
    pub idle_timeout: Duration,
    /// How old a connection may grow before it is not used again.
    pub age_max: Duration,
}

impl Default for UpstreamLimits {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(10),
            response_head_timeout: Duration::from_secs(60),
            read_timeout: Duration::from_secs(60),
            connections_max: 1024,
            queue_max: 256,
            queue_timeout: Duration::from_secs(1),
            idle_max: 128,
            idle_min: 1,
            idle_timeout: Duration::from_secs(50),
            age_max: Duration::from_secs(3600),
        }
    }
}

/// Addresses found by name, published apart from the [`Snapshot`](crate::Snapshot)
/// because they change more often.
#[derive(Debug, Default)]
pub struct AddressBook {
    /// Addresses in order of preference; empty or absent while none is known.
    pub addresses: HashMap<UpstreamId, Arc<[SocketAddr]>>,
}

impl AddressBook {
    /// What is known of `upstream`: the configuration's addresses, or else the names'.
    pub fn addresses<'a>(&'a self, upstream: &'a Upstream) -> &'a [SocketAddr] {
        if !upstream.addresses.is_empty() {
            return &upstream.addresses;
        }
        self.addresses
            .get(&upstream.id)
            .map_or(&[], |addresses| addresses)
    }
}
