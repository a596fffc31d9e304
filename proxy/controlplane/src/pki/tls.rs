//! From certificates and trust anchors to the configurations of `rustls`: one
//! [`rustls::ServerConfig`] per virtual host and one [`rustls::ClientConfig`] per upstream.
//!
//! Both sides speak TLS 1.3 and 1.2, and `http/1.1` by ALPN alone: a client that offers only
//! other protocols gets the alert `no_application_protocol` (RFC 7301, 3.2). There is no early
//! data, since it can be replayed, and nothing is kept per session on the server side: sessions
//! resume by encrypted tickets or not at all.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, TrustAnchor};
use rustls::server::{
    ClientHello, NoServerSessionStorage, ProducesTickets, ResolvesServerCert, WebPkiClientVerifier,
};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::{TLS12, TLS13};
use rustls::{
    ClientConfig, KeyLog, RootCertStore, ServerConfig, SignatureAlgorithm, SupportedProtocolVersion,
};
use zeroize::Zeroizing;

use super::error::List;
use super::store::{
    CERT_BYTES_MAX, CRL_BYTES_MAX, KEY_BYTES_MAX, Privacy, read_bounded, read_certificates,
};
use super::verify::UpstreamVerifier;
use super::x509;
use super::{CertificateKind, Expiry, OwnCa, PkiError};

/// The one cryptographic provider of the process.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> =
        LazyLock::new(|| Arc::new(aws_lc_rs::default_provider()));
    Arc::clone(&PROVIDER)
}

/// What a virtual host's handshake does beyond showing a certificate.
#[derive(Clone, Debug, Default)]
pub struct ServerTls {
    /// Resume sessions by these tickets; `None`: every handshake is a full one. Take them from
    /// [`Ticketers`], so that no two virtual hosts share them. Ignored beside `client_ca`.
    pub tickets: Option<Arc<dyn ProducesTickets>>,
    /// Ask for a client certificate that one of these authorities issued for client
    /// authentication.
    pub client_ca: Option<Arc<RootCertStore>>,
    /// Lists of certificates that were revoked. If there are any, each issuer of a
    /// client's certificate must have one that is in date.
    pub client_crls: Vec<CertificateRevocationListDer<'static>>,
    /// Also admit a client without a certificate (one with a bad certificate is still refused).
    pub client_auth_optional: bool,
}

/// The configuration of a virtual host.
///
/// Of several certificates, a handshake gets the first that holds the name which the client asks
/// for and that the client can verify, ECDSA before RSA.
///
/// A host that asks for client certificates neither issues nor accepts tickets: a resumed session
/// would skip the check of a certificate that may have expired since.
///
/// # Errors
/// No certificate, or `client_ca` is empty.
pub fn server_config(
    keys: Vec<Arc<CertifiedKey>>,
    options: &ServerTls,
) -> Result<Arc<ServerConfig>, PkiError> {
    let certificates = Arc::new(Certificates::new(keys)?);
    let builder = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(VERSIONS)
        .map_err(PkiError::tls("choose the TLS versions"))?;
    let mut config = match &options.client_ca {
        None => builder
            .with_no_client_auth()
            .with_cert_resolver(certificates),
        Some(roots) => {
            let verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), provider());
            let verifier = match options.client_crls.is_empty() {
                true => verifier,
                // A list that is out of date says nothing of the time since.
                false => verifier
                    .with_crls(options.client_crls.clone())
                    .enforce_revocation_expiration(),
            };
            let verifier = match options.client_auth_optional {
                true => verifier.allow_unauthenticated(),
                false => verifier,
            };
            let verifier = verifier.build().map_err(|err| PkiError::Crypto {
                action: "use the client CA",
                problem: err.to_string(),
            })?;
            builder
                .with_client_cert_verifier(verifier)
                .with_cert_resolver(certificates)
        }
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    // The keys move into the data plane's own record layer when the handshake is over.
    config.enable_secret_extraction = true;
    config.key_log = key_log();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    match &options.tickets {
        Some(tickets) if options.client_ca.is_none() => {
            config.ticketer = Arc::clone(tickets);
            config.send_tls13_tickets = TICKETS_PER_HANDSHAKE;
        }
        // rustls's default ticketer is one that makes none.
        _ => config.send_tls13_tickets = 0,
    }
    Ok(Arc::new(config))
}

/// Reads revocation lists (RFC 5280, section 5) from a PEM or DER file, with what there is to
/// worry about one that can be used.
///
/// # Errors
/// A file that cannot be read, or holds no list.
pub fn load_crls(
    path: &Path,
    now: SystemTime,
) -> Result<(Vec<CertificateRevocationListDer<'static>>, Option<String>), PkiError> {
    let content = read_bounded(path, CRL_BYTES_MAX, Privacy::Any)?;
    let cure = "name a PEM or DER file with the CA's revocation list";
    let lists = match content.starts_with(&[0x30]) {
        true => vec![CertificateRevocationListDer::from(content.to_vec())],
        false => CertificateRevocationListDer::pem_slice_iter(&content)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|err| PkiError::file(path, format!("is not valid PEM ({err})"), cure))?,
    };
    if lists.is_empty() {
        return Err(PkiError::file(path, "holds no revocation list", cure));
    }
    let mut concern = None;
    for list in &lists {
        let next =
            x509::crl_next_update(list).map_err(|problem| PkiError::file(path, problem, cure))?;
        match next {
            None => {
                return Err(PkiError::file(
                    path,
                    "does not say when the next list is due (nextUpdate), which RFC 5280 requires",
                    cure,
                ));
            }
            Some(next) if next <= now => {
                concern = Some(
                    "the list is out of date: every caller whose certificate it is about is refused"
                        .to_owned(),
                );
            }
            Some(_) => {}
        }
    }
    Ok((lists, concern))
}

/// The configuration for an upstream: full verification against `roots`, and refusal of whatever
/// hangs on our own keys (see [`super::verify`]) unless `roots` were given for this upstream and
/// hold our authority themselves.
///
/// It remembers a few sessions ([`CLIENT_SESSIONS_MAX`]) for resumption, so make one per upstream
/// and keep it across reloads where nothing changed.
///
/// # Errors
/// No trust anchor is left.
pub fn client_config(roots: &Roots, own_ca: &OwnCa) -> Result<Arc<ClientConfig>, PkiError> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(VERSIONS)
        .map_err(PkiError::tls("choose the TLS versions"))?
        // "Dangerous" is any verifier but rustls's own; ours calls it and then refuses more.
        .dangerous()
        .with_custom_certificate_verifier(roots.verifier(own_ca)?)
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    // As in `server_config`.
    config.enable_secret_extraction = true;
    config.key_log = key_log();
    config.resumption = Resumption::in_memory_sessions(CLIENT_SESSIONS_MAX);
    Ok(Arc::new(config))
}

/// The same for an upstream that wants a client certificate: this one.
///
/// # Errors
/// As [`client_config`].
pub fn client_config_showing(
    roots: &Roots,
    own_ca: &OwnCa,
    identity: Option<&CertifiedKey>,
) -> Result<Arc<ClientConfig>, PkiError> {
    let config = client_config(roots, own_ca)?;
    let Some(identity) = identity else {
        return Ok(config);
    };
    let mut config = (*config).clone();
    config.client_auth_cert_resolver = Arc::new(SingleCertAndKey::from(identity.clone()));
    // Not the one of the configuration that it was cloned from.
    config.resumption = Resumption::in_memory_sessions(CLIENT_SESSIONS_MAX);
    Ok(Arc::new(config))
}

/// Where the secrets of sessions go: nowhere. A build with debug assertions, which nobody serves with, writes them
/// to the file that `SSLKEYLOGFILE` names, so that a test can decrypt what it captured.
fn key_log() -> Arc<dyn KeyLog> {
    #[cfg(debug_assertions)]
    return Arc::new(rustls::KeyLogFile::new());
    #[cfg(not(debug_assertions))]
    return Arc::new(rustls::NoKeyLog {});
}

/// The ticket keys of all virtual hosts, kept across reloads, shared by all cores.
///
/// Each virtual host has its own, so that a session which began under one host's rules never
/// resumes under another's. Keys are random, live in memory only, and rotate every six hours; a
/// ticket serves for twelve at most.
#[derive(Debug, Default)]
pub struct Ticketers {
    hosts: HashMap<String, (String, Arc<dyn ProducesTickets>)>,
}

impl Ticketers {
    /// None yet.
    pub fn new() -> Ticketers {
        Ticketers::default()
    }

    /// The ticketer of a virtual host. `rules_digest` stands for what a handshake decides there:
    /// while it is the same, so is the ticketer; once it differs, there is a new one, and tickets
    /// of the former lead to full handshakes.
    ///
    /// # Errors
    /// No random bytes from the system.
    pub fn for_host(
        &mut self,
        virtual_host: &str,
        rules_digest: &str,
    ) -> Result<Arc<dyn ProducesTickets>, PkiError> {
        if let Some((digest, tickets)) = self.hosts.get(virtual_host)
            && digest == rules_digest
        {
            return Ok(Arc::clone(tickets));
        }
        let tickets = aws_lc_rs::Ticketer::new().map_err(PkiError::tls("make ticket keys"))?;
        self.hosts.insert(
            virtual_host.to_owned(),
            (rules_digest.to_owned(), Arc::clone(&tickets)),
        );
        Ok(tickets)
    }

    /// Forgets virtual hosts that are no longer configured.
    pub fn retain(&mut self, in_use: impl Fn(&str) -> bool) {
        self.hosts.retain(|host, _| in_use(host));
    }
}

/// Trust anchors for upstreams. Cloning is cheap, and all upstreams with clones of the same roots
/// share one store and one verifier.
#[derive(Clone)]
pub struct Roots(Arc<RootsInner>);

struct RootsInner {
    origin: String,
    /// Given for an upstream by name, not found on the system: may hold our own authority.
    named: bool,
    anchors: Vec<(CertificateDer<'static>, TrustAnchor<'static>)>,
    warnings: Vec<String>,
    /// The last verifier that was made, with what it was made for.
    verifier: Mutex<Option<(OwnCa, Arc<UpstreamVerifier>)>>,
}

impl Roots {
    /// The system's trust store, or what `SSL_CERT_FILE` and `SSL_CERT_DIR` name. Reads some
    /// hundred kilobytes: load once and clone.
    ///
    /// # Errors
    /// Not one usable certificate. Single bad files are [`Roots::warnings`].
    pub fn system() -> Result<Roots, PkiError> {
        let loaded = rustls_native_certs::load_native_certs();
        let warnings = loaded.errors.iter().map(ToString::to_string).collect();
        Roots::new(
            "system trust store".to_owned(),
            false,
            loaded.certs,
            warnings,
        )
    }

    /// The certificates of a PEM file: an upstream's CA file.
    ///
    /// # Errors
    /// A file that cannot be read, or holds no usable certificate.
    pub fn file(path: &Path) -> Result<Roots, PkiError> {
        let certificates = read_certificates(path, CERT_BYTES_MAX)?;
        let roots = Roots::new(path.display().to_string(), true, certificates, Vec::new())?;
        match roots.0.warnings.is_empty() {
            true => Ok(roots),
            // In a file of one's own, every certificate is meant.
            false => Err(PkiError::file(
                path,
                roots.0.warnings.join(", "),
                "replace or remove that certificate",
            )),
        }
    }

    /// Trust anchors from memory, with the meaning of a CA file.
    ///
    /// # Errors
    /// Not one usable certificate.
    pub fn from_der(certificates: Vec<CertificateDer<'static>>) -> Result<Roots, PkiError> {
        Roots::new(
            "given trust anchors".to_owned(),
            true,
            certificates,
            Vec::new(),
        )
    }

    /// Trust anchors as the system would have them.
    #[cfg(test)]
    pub(super) fn found(certificates: Vec<CertificateDer<'static>>) -> Result<Roots, PkiError> {
        Roots::new("test store".to_owned(), false, certificates, Vec::new())
    }

    fn new(
        origin: String,
        named: bool,
        certificates: Vec<CertificateDer<'static>>,
        mut warnings: Vec<String>,
    ) -> Result<Roots, PkiError> {
        let mut anchors = Vec::with_capacity(certificates.len());
        for (index, der) in certificates.into_iter().enumerate() {
            match webpki_anchor(&der) {
                Ok(anchor) => anchors.push((der, anchor)),
                Err(err) => warnings.push(format!("certificate {} is unusable ({err})", index + 1)),
            }
        }
        if anchors.is_empty() {
            return Err(PkiError::NoRoots {
                origin,
                problem: match warnings.first() {
                    Some(first) => first.clone(),
                    None => "no certificate was found".to_owned(),
                },
                cure: if named {
                    "name a PEM file that holds the upstream's root"
                } else {
                    "install the package ca-certificates, or give the upstream a CA file"
                },
            });
        }
        Ok(Roots(Arc::new(RootsInner {
            origin,
            named,
            anchors,
            warnings,
            verifier: Mutex::new(None),
        })))
    }

    /// Files and certificates of the system that could not be used. Harmless, unless the missing
    /// one is needed.
    pub fn warnings(&self) -> &[String] {
        &self.0.warnings
    }

    /// How many trust anchors there are.
    pub fn len(&self) -> usize {
        self.0.anchors.len()
    }

    /// Never: such roots cannot be made.
    pub fn is_empty(&self) -> bool {
        self.0.anchors.is_empty()
    }

    /// Whether these roots were given by name and hold our own authority, which lifts the refusal
    /// of our own certificates.
    pub fn names(&self, own_ca: &OwnCa) -> bool {
        self.0.named
            && self
                .0
                .anchors
                .iter()
                .any(|(der, anchor)| own_ca.owns_anchor(der, anchor))
    }

    /// Until when each certificate serves, of those that are not our own.
    pub fn expiries(&self, kind: CertificateKind, file: &Path) -> Vec<Expiry> {
        let facts = self
            .0
            .anchors
            .iter()
            .filter_map(|(der, _)| x509::facts(der).ok());
        facts
            .map(|facts| Expiry {
                kind,
                name: format!("{}: {}", file.display(), facts.subject),
                not_before: facts.not_before,
                not_after: facts.not_after,
            })
            .collect()
    }

    /// All of them as a store, to verify client certificates with ([`ServerTls::client_ca`]).
    pub fn client_ca_store(&self) -> Arc<RootCertStore> {
        Arc::new(
            self.0
                .anchors
                .iter()
                .map(|(_, anchor)| anchor.clone())
                .collect(),
        )
    }

    pub(super) fn verifier(&self, own_ca: &OwnCa) -> Result<Arc<UpstreamVerifier>, PkiError> {
        // Nothing below panics with the lock held, and a cache cannot be half-written.
        let mut cache = self
            .0
            .verifier
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some((made_for, verifier)) = &*cache
            && made_for == own_ca
        {
            return Ok(Arc::clone(verifier));
        }
        let named = self.names(own_ca);
        let store: RootCertStore = self
            .0
            .anchors
            .iter()
            .filter(|(der, anchor)| named || !own_ca.owns_anchor(der, anchor))
            .map(|(_, anchor)| anchor.clone())
            .collect();
        if store.is_empty() {
            return Err(PkiError::NoRoots {
                origin: self.0.origin.clone(),
                problem: "it holds only Claviger's own authority".to_owned(),
                cure: "install the package ca-certificates, or give the upstream a CA file",
            });
        }
        let webpki = WebPkiServerVerifier::builder_with_provider(Arc::new(store), provider())
            .build()
            .map_err(|err| PkiError::Crypto {
                action: "make the verifier",
                problem: err.to_string(),
            })?;
        let verifier = Arc::new(UpstreamVerifier::new(webpki, own_ca.clone(), named));
        *cache = Some((own_ca.clone(), Arc::clone(&verifier)));
        Ok(verifier)
    }
}

impl fmt::Debug for Roots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Roots")
            .field("origin", &self.0.origin)
            .field("anchors", &self.0.anchors.len())
            .finish_non_exhaustive()
    }
}

/// A certificate and key from files.
#[derive(Clone)]
pub struct LoadedKey {
    /// Chain and signing key.
    pub certified: Arc<CertifiedKey>,
    /// DNS names of the certificate, in lower case; wildcards as `*.example.com`.
    pub names: Vec<String>,
    /// Begin of its validity.
    pub not_before: SystemTime,
    /// End of its validity.
    pub not_after: SystemTime,
}

impl LoadedKey {
    /// Whether clients accept it for this host name (in lower case; a configured wildcard must be
    /// in the certificate as it is).
    pub fn covers(&self, host: &str) -> bool {
        covers(&self.names, host)
    }

    /// Of [`concerns`](Self::concerns) those about its validity in time: all that matters for one that
    /// we show as a client, to whom has the issuer anyway.
    pub fn concerns_in_time(&self, now: SystemTime) -> Vec<String> {
        let mut concerns = Vec::new();
        if now >= self.not_after {
            concerns.push(format!(
                "the certificate expired on {}",
                x509::day(self.not_after)
            ));
        } else if now + EXPIRY_NOTICE >= self.not_after {
            concerns.push(format!(
                "the certificate expires on {}",
                x509::day(self.not_after)
            ));
        }
        if now < self.not_before {
            concerns.push(format!(
                "the certificate is not valid before {}; check the clock",
                x509::day(self.not_before)
            ));
        }
        concerns
    }

    /// What clients will not like about it, for `check`; empty if there is nothing. Callers may
    /// still serve it: clients differ in what they accept.
    pub fn concerns(&self, hosts: &[String], now: SystemTime) -> Vec<String> {
        let mut concerns = Vec::new();
        let uncovered: Vec<String> = hosts
            .iter()
            .filter(|host| !self.covers(host))
            .cloned()
            .collect();
        if !uncovered.is_empty() {
            concerns.push(format!(
                "the certificate is not valid for {}; it names {}",
                List(&uncovered),
                List(&self.names)
            ));
        }
        concerns.extend(self.concerns_in_time(now));
        let chain = &self.certified.cert;
        let broken =
            (1..chain.len()).find(|index| !x509::is_issued_by(&chain[index - 1], &chain[*index]));
        if let Some(index) = broken {
            concerns.push(format!(
                "certificate number {} of the chain did not issue number {index}; put each \
                 certificate's issuer behind it",
                index + 1,
            ));
        } else if let [only] = chain.as_slice()
            && !x509::is_issued_by(only, only)
        {
            concerns.push(
                "the certificate comes without the certificate of its issuer, which many clients \
                 need; append it to the file"
                    .to_owned(),
            );
        }
        concerns
    }
}

impl fmt::Debug for LoadedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoadedKey")
            .field("names", &self.names)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

/// Reads a certificate with its chain (leaf first) and its private key, both in PEM; they may be
/// in one file.
///
/// # Errors
/// Files that cannot be read or hold something else, a key file that every user of the machine
/// can read (unless `allow_world_readable`), a key that is encrypted, of an unknown kind, or that
/// does not belong to the first certificate. Validity in time is the caller's to judge.
pub fn load_certified_key(
    cert_pem: &Path,
    key_pem: &Path,
    allow_world_readable: bool,
) -> Result<LoadedKey, PkiError> {
    let chain = read_certificates(cert_pem, CERT_BYTES_MAX)?;
    let privacy = if allow_world_readable {
        Privacy::Any
    } else {
        Privacy::NotWorld
    };
    let content = read_bounded(
        key_pem,
        KEY_BYTES_MAX.max(file_share(cert_pem, key_pem)),
        privacy,
    )?;
    let der = PrivateKeyDer::from_pem_slice(&content).map(Zeroizing::new).map_err(|_| {
        let encrypted = contains(&content, b"BEGIN ENCRYPTED PRIVATE KEY")
            || contains(&content, b"Proc-Type: 4,ENCRYPTED");
        match encrypted {
            true => PkiError::file(
                key_pem,
                "holds an encrypted private key",
                "decrypt it by `openssl pkey -in FILE -out NEW` and keep it readable by its owner \
                 alone",
            ),
            false => PkiError::file(
                key_pem,
                "holds no private key",
                "expected a `-----BEGIN PRIVATE KEY-----` section (or RSA or EC, in PEM)",
            ),
        }
    })?;
    let key = aws_lc_rs::sign::any_supported_type(&der).map_err(|_| {
        PkiError::file(
            key_pem,
            "holds a private key of a kind that cannot be used",
            "use RSA of 2,048 to 8,192 bits, ECDSA (P-256, P-384, P-521) or Ed25519",
        )
    })?;
    let facts = x509::facts(&chain[0]).map_err(|problem| {
        PkiError::file(cert_pem, problem, "replace it by a server certificate")
    })?;
    let mut certified = CertifiedKey::new(chain, key);
    if certified.keys_match().is_err() {
        let position = (1..certified.cert.len()).find(|index| {
            certified.cert.swap(0, *index);
            let matches = certified.keys_match().is_ok();
            certified.cert.swap(0, *index);
            matches
        });
        return Err(match position {
            Some(index) => PkiError::file(
                cert_pem,
                format!(
                    "has the key's certificate at place {}, not first",
                    index + 1
                ),
                "put the server's own certificate first, then its issuer's, without the root",
            ),
            None => PkiError::file(
                key_pem,
                format!(
                    "does not belong to the certificate in {}",
                    cert_pem.display()
                ),
                "name the certificate and the key that were made together",
            ),
        });
    }
    Ok(LoadedKey {
        certified: Arc::new(certified),
        names: facts.dns_names,
        not_before: facts.not_before,
        not_after: facts.not_after,
    })
}

/// The certificates of one virtual host.
#[derive(Debug)]
struct Certificates {
    /// Never empty; cheapest to sign with first.
    entries: Vec<Entry>,
}

struct Entry {
    certified: Arc<CertifiedKey>,
    names: Vec<String>,
}

impl Certificates {
    fn new(keys: Vec<Arc<CertifiedKey>>) -> Result<Certificates, PkiError> {
        let refuse = |problem: &str| PkiError::Crypto {
            action: "serve TLS",
            problem: problem.to_owned(),
        };
        let mut entries = Vec::with_capacity(keys.len());
        for certified in keys {
            let leaf = certified
                .cert
                .first()
                .ok_or_else(|| refuse("a key has no certificate"))?;
            let names = x509::facts(leaf).map_err(refuse)?.dns_names;
            entries.push(Entry { certified, names });
        }
        if entries.is_empty() {
            return Err(refuse(
                "a virtual host has no certificate; issue or name one",
            ));
        }
        // Stable, so the operator's order decides among equals.
        entries.sort_by_key(|entry| match entry.certified.key.algorithm() {
            SignatureAlgorithm::RSA => 1,
            _ => 0,
        });
        Ok(Certificates { entries })
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, client_hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let [first, others @ ..] = self.entries.as_slice() else {
            return None;
        };
        if others.is_empty() {
            return Some(Arc::clone(&first.certified));
        }
        // rustls has already dropped schemes that no cipher suite of a TLS 1.2 client goes with.
        let schemes = client_hello.signature_schemes();
        let mut verifiable = self
            .entries
            .iter()
            .filter(|entry| entry.certified.key.choose_scheme(schemes).is_some());
        let chosen = match client_hello.server_name() {
            None => verifiable.next(),
            Some(name) => {
                let name = name.to_ascii_lowercase();
                let mut fallback = None;
                verifiable
                    .find(|entry| {
                        fallback.get_or_insert(*entry);
                        covers(&entry.names, &name)
                    })
                    .or(fallback)
            }
        };
        // With none that the client can verify, rustls ends the handshake and says so better.
        Some(Arc::clone(&chosen.unwrap_or(first).certified))
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry")
            .field("names", &self.names)
            .field("algorithm", &self.certified.key.algorithm())
            .finish_non_exhaustive()
    }
}

/// RFC 6125, 6.4.3, as clients do it: a wildcard stands for exactly one whole label.
fn covers(names: &[String], host: &str) -> bool {
    names.iter().any(|name| match name.strip_prefix("*.") {
        _ if name == host => true,
        Some(base) => host
            .split_once('.')
            .is_some_and(|(label, rest)| label != "*" && rest == base),
        None => false,
    })
}

fn webpki_anchor(der: &CertificateDer<'_>) -> Result<TrustAnchor<'static>, rustls::Error> {
    let mut store = RootCertStore::empty();
    store.add(der.clone())?;
    store
        .roots
        .pop()
        .ok_or(rustls::Error::NoCertificatesPresented)
}

/// A file that holds both may be as large as a certificate file.
fn file_share(cert_pem: &Path, key_pem: &Path) -> u64 {
    if cert_pem == key_pem {
        CERT_BYTES_MAX
    } else {
        0
    }
}

fn contains(hay: &[u8], needle: &[u8]) -> bool {
    hay.windows(needle.len()).any(|window| window == needle)
}

/// The only protocol, on both sides (RFC 7301's registry).
const ALPN: &[u8] = b"http/1.1";

/// A certificate from a file that ends sooner is worth a word: nobody here renews it.
const EXPIRY_NOTICE: Duration = Duration::from_secs(14 * 86_400);

const VERSIONS: &[&SupportedProtocolVersion] = &[&TLS13, &TLS12];

/// New tickets after a full TLS 1.3 handshake and after a resumed one. One suffices: clients that
/// open many connections at once use a ticket more than once, or do a full handshake.
const TICKETS_PER_HANDSHAKE: usize = 1;

/// Sessions that an upstream's configuration remembers, all cores together; an older one is
/// forgotten, and the next connection does a full handshake. rustls keeps them in sets of eight
/// tickets per server name, so this is one name.
pub const CLIENT_SESSIONS_MAX: usize = 8;
