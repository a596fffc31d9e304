//! [`Draft`]: the configuration as it was decided, before anything was read.
//!
//! Made by [`check`](super::check) from a [`File`](super::File) alone; every
//! default is filled in, every preset expanded, every name resolved to what it
//! names. What is left to [`resolve`](super::resolve) is I/O: certificates, CA
//! files, secrets.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use policy::upstream::UpstreamLimits;
use policy::{Callers, CertificateName, Endpoint, Injection, Listener, Require, ServerLimits};
use rustls::pki_types::ServerName;

use super::report::Place;
use super::settings::Settings;
use crate::credentials::SecretRef;
use crate::pki::acme::Answer;

/// Everything that can be decided without reading another file.
#[derive(Debug)]
pub struct Draft {
    /// Where callers connect.
    pub listeners: Vec<Listener>,
    /// Virtual hosts, each with its routes.
    pub hosts: Vec<HostDraft>,
    /// Third-party APIs that a route leads to.
    pub upstreams: Vec<UpstreamDraft>,
    /// Keys that a route writes.
    pub credentials: Vec<CredentialDraft>,
    /// Callers that a route names.
    pub callers: Vec<CallerDraft>,
    /// Times and bounds towards callers.
    pub limits: ServerLimits,
    /// The process's own settings.
    pub settings: Settings,
    /// `[server] user`, for messages.
    pub user_place: Option<Place>,
    /// `[ca]`, for messages; `None` when it is not in the file.
    pub ca_place: Option<Place>,
    /// What the internal CA's keys are encrypted under, and where the reference stands.
    pub ca_passphrase: Option<(SecretRef, Place)>,
    /// The public authority; `None` without a host that needs it.
    pub acme: Option<AcmeDraft>,
    /// Whether a resolver is asked over TLS.
    pub dns_tls: bool,
}

/// A public authority.
#[derive(Debug)]
pub struct AcmeDraft {
    /// Its directory.
    pub directory: String,
    /// Where it may write to.
    pub contact: Vec<String>,
    /// The roots that it is verified by.
    pub ca_file: Option<PathBuf>,
    /// How it is shown that a host is ours.
    pub answer: Answer,
    /// An account elsewhere: its identifier, and where its key is.
    pub external_account: Option<(String, SecretRef)>,
    /// Its section.
    pub place: Place,
}

/// A virtual host.
#[derive(Debug)]
pub struct HostDraft {
    /// Lower case; `*.x` possible.
    pub name: String,
    /// Names of listeners; empty is all.
    pub listeners: Vec<String>,
    /// Where its certificates come from.
    pub certificates: Certificates,
    /// The CAs of its callers' certificates.
    pub client_ca: Option<PathBuf>,
    /// Whether a caller without a certificate is let in by the handshake.
    pub client_auth_optional: bool,
    /// Revocation lists of those CAs.
    pub client_crls: Vec<PathBuf>,
    /// Who may bring requests for other hosts: indices into [`Draft::callers`].
    pub edges: Vec<usize>,
    /// Whether its private key may be world-readable.
    pub allow_world_readable: bool,
    /// Its section, or the route that names it.
    pub place: Place,
    /// Its routes, in the order of the file.
    pub routes: Vec<RouteDraft>,
}

/// Where a host's certificates come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Certificates {
    /// None: it is served in clear text only.
    None,
    /// The internal CA.
    Ca,
    /// A public authority, by ACME.
    Acme,
    /// Files: chain and private key.
    Files(Vec<(PathBuf, PathBuf)>),
}

/// A route of one host.
#[derive(Debug, Clone)]
pub struct RouteDraft {
    /// Its name; the routes of one `[[route]]` share it.
    pub name: String,
    /// See [`policy::Route::path`].
    pub path: String,
    /// Upper case; empty is all.
    pub methods: Vec<String>,
    /// Who may use it by address.
    pub callers: Callers,
    /// Who may use it by name: indices into [`Draft::callers`].
    pub named_callers: Vec<usize>,
    /// Who may not.
    pub denied: Vec<IpNet>,
    /// Index into [`Draft::upstreams`].
    pub upstream: usize,
    /// Index into [`Draft::credentials`], and how that key is written here.
    pub credential: Option<(usize, Injection)>,
    /// Further hubs, and what is written for each of them.
    pub further: Vec<(usize, Option<(usize, Injection)>)>,
    /// See [`policy::Route::upstream_path`].
    pub upstream_path: Option<String>,
    /// Headers that are removed.
    pub strip_fields: Vec<String>,
    /// Query parameters that are removed.
    pub strip_params: Vec<String>,
    /// Query parameters that stay.
    pub keep_params: Vec<String>,
    /// Whether cookies are removed.
    pub strip_cookies: bool,
    /// See [`policy::Route::forwarding`].
    pub forwarding: Option<policy::Forwarding>,
    /// Headers that are removed from answers.
    pub strip_response_fields: Vec<String>,
    /// Lower case.
    pub upgrades: Vec<String>,
    /// Endpoints that read or make keys.
    pub refused: Vec<Endpoint>,
    /// Whether a place on the audit trail is needed.
    pub audit_required: bool,
    /// Whether an `Idempotency-Key` permits a second try.
    pub retry_with_idempotency_key: bool,
    /// What becomes of an answer that contains the key.
    pub on_echo: policy::OnEcho,
    /// What becomes of an answer that cannot be searched for it.
    pub on_uninspected: policy::OnUninspected,
    /// `u64::MAX` is no limit.
    pub body_bytes_max: u64,
    /// Its own limit, or its preset's.
    pub response_head_timeout: Option<Duration>,
    /// Its `[[route]]`.
    pub place: Place,
}

/// A third-party API.
#[derive(Debug, Clone)]
pub struct UpstreamDraft {
    /// The name of its section, or its host.
    pub name: String,
    /// Lower case.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// What its certificate must be good for.
    pub tls_name: ServerName<'static>,
    /// Used in place of a look-up.
    pub addresses: Vec<SocketAddr>,
    /// Roots that are trusted in place of the system's.
    pub ca_file: Option<PathBuf>,
    /// Whether a look-up may lead to private addresses.
    pub allow_private: bool,
    /// Whether it is a hub.
    pub is_hub: bool,
    /// The token that a hub is shown: index into [`Draft::credentials`].
    pub token: Option<usize>,
    /// The certificate that it is shown, with its key.
    pub client_certificate: Option<ClientCertificate>,
    /// Times and bounds.
    pub limits: UpstreamLimits,
    /// Its section, or the route that implies it.
    pub place: Place,
    /// Where `ca_file` stands.
    pub ca_place: Option<Place>,
    /// Where each address stands.
    pub address_places: Vec<Place>,
}

/// A certificate that is shown to an upstream.
#[derive(Debug, Clone)]
pub struct ClientCertificate {
    /// The chain, leaf first.
    pub chain: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// Whether that may be world-readable.
    pub allow_world_readable: bool,
    /// Where it stands.
    pub place: Place,
}

/// A caller by name.
#[derive(Debug, Clone)]
pub struct CallerDraft {
    /// The name of its section.
    pub name: String,
    /// Where it calls from; empty is anywhere.
    pub networks: Vec<IpNet>,
    /// Tokens, and where each reference stands.
    pub tokens: Vec<(SecretRef, Place)>,
    /// Names of its certificate.
    pub certificates: Vec<CertificateName>,
    /// How its proofs combine.
    pub require: Require,
    /// Whether its token files may be world-readable.
    pub allow_world_readable: bool,
}

/// A key, by reference.
#[derive(Debug, Clone)]
pub struct CredentialDraft {
    /// The name of its section, or of the route that holds the reference.
    pub name: String,
    /// Where it is.
    pub reference: SecretRef,
    /// Whether its file may be world-readable.
    pub allow_world_readable: bool,
    /// Where the reference stands.
    pub place: Place,
}
