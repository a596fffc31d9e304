//! [`resolve`]: from a [`File`] to a [`Snapshot`], reading what the file points at.
//!
//! Blocks: it reads keys, certificates and CA files. Nothing of what is in force
//! changes when it fails; the caller keeps the old snapshot.
//!
//! A [`ResolveContext`] carries what must outlive a reload: the numbers of
//! upstreams and credentials (pools are found by them), ticket keys, issued
//! certificates, the sessions of upstreams, the loop token.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use nix::sys::socket::SockaddrStorage;
use policy::credential::EARLIER_MAX;
use policy::route::Way;
use policy::upstream::CredentialId;
use policy::{
    Callers, Credential, Injection, NamedCaller, Route, Secret, Snapshot, Token, UnknownSni,
    Upstream, UpstreamId, VirtualHost,
};
use rustls::ClientConfig;
use rustls::pki_types::CertificateRevocationListDer;
use rustls::sign::CertifiedKey;
use sha2::{Digest, Sha256};
use wire::names::{NameSet, ParamSet};

use super::check::check;
use super::draft::{
    CallerDraft, Certificates, ClientCertificate, CredentialDraft, Draft, HostDraft, RouteDraft,
    UpstreamDraft,
};
use super::file::File;
use super::report::{Place, Problem, Report, quote};
use super::settings::Settings;
use crate::credentials::{self, SecretRef, ServiceUser, SourceError, SourcePolicy};
use crate::names::{DnsSettings, Name, OwnAddresses};
use crate::pki::acme::{AcmePlan, Answer, Challenges, Store};
use crate::pki::authority::Ensured;
use crate::pki::tls::LoadedKey;
use crate::pki::{
    Authority, CertificateKind, Expiry, ExpiryState, KeyType, LeafStore, OwnCa, Passphrase, Roots,
    ServerTls, Ticketers, client_config, client_config_showing, load_certified_key, load_crls,
    server_config,
};

/// Shorter keys can be guessed, and cannot be told from chance in an answer.
const SECRET_BYTES_SHORT: usize = policy::credential::SCRUB_BYTES_MIN;

/// Random bytes of the loop token: two instances must not share one by chance.
const LOOP_TOKEN_BYTES: usize = 12;

/// What is in force after a successful [`resolve`].
#[derive(Debug)]
pub struct Resolved {
    /// For the workers.
    pub snapshot: Snapshot,
    /// For the process.
    pub settings: Settings,
    /// Upstreams without written addresses, for the resolver.
    pub names: Vec<Name>,
    /// Addresses that no upstream's name may lead to.
    pub own_addresses: OwnAddresses,
    /// What should be looked at, though it does not stop anything.
    pub warnings: Report,
    /// When a certificate of the internal CA is due to be made anew: resolve
    /// again then. `None` without such certificates.
    pub next_renewal: Option<SystemTime>,
    /// Until when each certificate serves, by its end.
    pub certificates: Vec<Expiry>,
    /// What a public authority is asked for, if it is.
    pub acme: Option<AcmePlan>,
}

/// What a [`resolve`] is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To serve. A new intermediate certificate is made where the hosts need one.
    Serve,
    /// To look only, as `claviger check` and `claviger explain` do: nothing is written.
    Look,
}

/// What outlives a reload.
pub struct ResolveContext {
    purpose: Purpose,
    generation: u64,
    loop_token: String,
    /// Definition of an upstream to its number. Only those in force are kept; a
    /// number is never given twice, so a definition that comes back gets another.
    upstream_ids: HashMap<String, UpstreamId>,
    upstream_next: u64,
    credential_ids: HashMap<String, CredentialId>,
    credential_next: u64,
    /// By the credential's name, the present value first, then earlier ones: the provider
    /// may honour them still, so answers are searched for them.
    secrets: HashMap<String, Vec<Arc<Secret>>>,
    /// With their session caches, by definition; for the own CA that they refuse.
    clients: HashMap<String, (OwnCa, Arc<ClientConfig>)>,
    ticketers: Ticketers,
    leaves: Option<(PathBuf, LeafStore)>,
    /// Where answers to a public authority wait for it.
    challenges: Arc<Challenges>,
    /// What a host is validated by in a handshake.
    validation: Option<Arc<rustls::ServerConfig>>,
    /// How the public authority is verified, by the roots that it was made of.
    acme_client: Option<(String, Arc<ClientConfig>)>,
    /// Kept, so that equal settings are recognised as equal.
    dns_client: Option<Arc<ClientConfig>>,
    system_roots: Option<Roots>,
}

impl std::fmt::Debug for ResolveContext {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ResolveContext(generation {})", self.generation)
    }
}

impl ResolveContext {
    /// For a process that serves.
    pub fn new() -> Self {
        Self::with_purpose(Purpose::Serve)
    }

    /// For a process that looks only.
    pub fn to_look() -> Self {
        Self::with_purpose(Purpose::Look)
    }

    fn with_purpose(purpose: Purpose) -> Self {
        let mut bytes = [0; LOOP_TOKEN_BYTES];
        // The token is no secret; it only has to differ from other instances'.
        if getrandom::fill(&mut bytes).is_err() {
            let now = SystemTime::now()
                .duration_since(SystemTime::UNIX_EPOCH)
                .unwrap_or_default();
            let mixed = Sha256::digest(format!("{}.{}", now.as_nanos(), std::process::id()));
            bytes.copy_from_slice(&mixed[..LOOP_TOKEN_BYTES]);
        }
        let mut loop_token = String::new();
        for byte in bytes {
            let _ = write!(loop_token, "{byte:02x}");
        }
        // RFC 8586: a pseudonym is a token. A letter first, for parsers that want one.
        loop_token.insert(0, 'c');
        Self {
            purpose,
            generation: 0,
            loop_token,
            upstream_ids: HashMap::new(),
            upstream_next: 0,
            credential_ids: HashMap::new(),
            credential_next: 0,
            secrets: HashMap::new(),
            clients: HashMap::new(),
            ticketers: Ticketers::new(),
            leaves: None,
            challenges: Challenges::new(),
            validation: None,
            acme_client: None,
            dns_client: None,
            system_roots: None,
        }
    }

    /// This instance's mark in `CDN-Loop`.
    pub fn loop_token(&self) -> &str {
        &self.loop_token
    }
}

impl Default for ResolveContext {
    fn default() -> Self {
        Self::new()
    }
}

/// Checks the file, reads what it points at, and builds the snapshot.
///
/// # Errors
/// Every problem that was found, warnings included.
pub fn resolve(file: &File, context: &mut ResolveContext) -> Result<Resolved, Report> {
    resolve_at(file, context, SystemTime::now())
}

/// [`resolve`] at a given time, which certificates are judged by.
///
/// # Errors
/// As [`resolve`].
pub fn resolve_at(
    file: &File,
    context: &mut ResolveContext,
    now: SystemTime,
) -> Result<Resolved, Report> {
    let (draft, report) = check(file);
    let mut resolver = Resolver {
        context,
        now,
        report,
        watch: Vec::new(),
        own_ca: OwnCa::none(),
        expiries: Vec::new(),
        served: Vec::new(),
        secrets: HashMap::new(),
        user: None,
    };
    resolver.user = resolver.service_user(&draft);
    // All of it is read even if some of it is wrong, so that everything is said at once.
    resolver.addresses(&draft);
    let credentials = resolver.credentials(&draft);
    let callers = resolver.callers(&draft);
    let keys = resolver.certificates(&draft);
    let upstreams = resolver.upstreams(&draft);
    let acme = resolver.acme_plan(&draft, &draft.settings.dns);
    let dns_tls = if draft.dns_tls {
        resolver.dns_client()
    } else {
        None
    };
    if resolver.report.has_errors() {
        return Err(resolver.failed());
    }
    let result = resolver.build(draft, credentials, callers, keys, upstreams, dns_tls);
    let result = result.map(|mut resolved| {
        // With the roots for resolvers that are asked over TLS.
        resolved.acme = acme.map(|acme| AcmePlan {
            dns: resolved.settings.dns.clone(),
            ..acme
        });
        resolved
    });
    result.map_err(|mut report| {
        report.sort();
        report
    })
}

struct Resolver<'c> {
    context: &'c mut ResolveContext,
    now: SystemTime,
    report: Report,
    watch: Vec<PathBuf>,
    own_ca: OwnCa,
    expiries: Vec<Expiry>,
    /// Keys from certificate files that we serve.
    served: Vec<Arc<CertifiedKey>>,
    /// What [`ResolveContext::secrets`] will be when all of it is in force.
    secrets: HashMap<String, Vec<Arc<Secret>>>,
    /// Who will have to read keys again, if that is not ourselves.
    user: Option<ServiceUser>,
}

/// A key as each injection writes it.
type Credentials = HashMap<(usize, String), Arc<Credential>>;

/// An upstream with its definition.
struct ReadyUpstream {
    definition: String,
    tls: Arc<ClientConfig>,
}

/// A virtual host's certificates and callers' CAs.
struct ReadyHost {
    keys: Vec<Arc<CertifiedKey>>,
    client_ca: Option<(Arc<rustls::RootCertStore>, String)>,
    client_crls: Vec<CertificateRevocationListDer<'static>>,
    client_auth_optional: bool,
}

impl Resolver<'_> {
    fn push(&mut self, problem: Problem) {
        self.report.push(problem);
    }

    fn failed(&mut self) -> Report {
        let mut report = std::mem::take(&mut self.report);
        report.sort();
        report
    }

    /// Static addresses that are another address of this machine, where we listen
    /// on all of them.
    fn addresses(&mut self, draft: &Draft) {
        let ports: HashSet<u16> = draft
            .listeners
            .iter()
            .flat_map(|listener| &listener.addresses)
            .filter(|address| address.ip().is_unspecified())
            .map(SocketAddr::port)
            .collect();
        if ports.is_empty() {
            return;
        }
        let machine = machine_addresses();
        for upstream in &draft.upstreams {
            for (address, place) in upstream.addresses.iter().zip(&upstream.address_places) {
                let ip = address.ip().to_canonical();
                // Loopback was compared without looking at the machine.
                if ports.contains(&address.port()) && machine.contains(&ip) && !ip.is_loopback() {
                    self.report.push(
                        Problem::error(format!("{address} is an address of this machine, and our own listener is there: requests would go round in a circle"))
                            .at(place.clone())
                            .cure("write the address of the API itself"),
                    );
                }
            }
        }
    }

    // ---- Keys --------------------------------------------------------------

    fn credentials(&mut self, draft: &Draft) -> Credentials {
        let mut wanted: BTreeMap<usize, Vec<&Injection>> = BTreeMap::new();
        for (index, injection) in draft
            .hosts
            .iter()
            .flat_map(|host| &host.routes)
            .flat_map(|route| {
                let further = route.further.iter().map(|(_, credential)| credential);
                further.chain([&route.credential])
            })
            .flatten()
        {
            let injections = wanted.entry(*index).or_default();
            if !injections.contains(&injection) {
                injections.push(injection);
            }
        }
        let mut ready = Credentials::new();
        for (index, injections) in wanted {
            let Some(credential) = draft.credentials.get(index) else {
                continue;
            };
            self.credential(credential, index, &injections, &mut ready);
        }
        ready
    }

    fn credential(
        &mut self,
        draft: &CredentialDraft,
        index: usize,
        injections: &[&Injection],
        ready: &mut Credentials,
    ) {
        self.watch.extend(draft.reference.path());
        let policy = SourcePolicy {
            allow_world_readable: draft.allow_world_readable,
        };
        let fetched = match credentials::fetch(&draft.reference, &policy) {
            Ok(fetched) => fetched,
            Err(error) => {
                let problem = source_problem(
                    &format!("the key of {} cannot be used", quote(&draft.name)),
                    &error,
                );
                self.push(problem.at(draft.place.clone()));
                return;
            }
        };
        if let Some(path) = &fetched.watch {
            let what = format!("the key of {}", quote(&draft.name));
            self.readable_again(path, &what, &draft.place);
        }
        if fetched.secret.len() < SECRET_BYTES_SHORT {
            self.push(
                Problem::warning(format!("the key of {} is shorter than {SECRET_BYTES_SHORT} bytes", quote(&draft.name)))
                    .at(draft.place.clone())
                    .cure("see whether the right file is named; a key that short can be guessed, and is not searched for in what the upstream answers"),
            );
        }
        let secrets = self.versions(&draft.name, fetched.secret);
        let earlier: Vec<&Secret> = secrets[1..].iter().map(|secret| &**secret).collect();
        for injection in injections {
            match Credential::after(
                &draft.name,
                &fetched.version,
                (*injection).clone(),
                &secrets[0],
                &earlier,
            ) {
                Ok(credential) => {
                    ready.insert((index, injection.describe()), Arc::new(credential));
                }
                Err(error) => self.push(
                    Problem::error(format!(
                        "the key of {} cannot be written: {error}",
                        quote(&draft.name)
                    ))
                    .at(draft.place.clone()),
                ),
            }
        }
    }

    /// The value that a key has now, then those that it had before.
    fn versions(&mut self, name: &str, now: Secret) -> Vec<Arc<Secret>> {
        let known = self
            .context
            .secrets
            .get(name)
            .map_or(&[][..], Vec::as_slice);
        let earlier = known.iter().filter(|known| !now.is_unchanged_from(known));
        let earlier: Vec<_> = earlier.take(EARLIER_MAX).map(Arc::clone).collect();
        let mut versions = vec![Arc::new(now)];
        versions.extend(earlier);
        self.secrets.insert(name.to_owned(), versions.clone());
        versions
    }

    /// Root reads everything; the service reads it again after a change.
    fn readable_again(&mut self, path: &Path, what: &str, place: &Place) {
        let Some(user) = &self.user else { return };
        if let Err(error) = credentials::readable_by(path, user.uid, &user.gids) {
            let problem = source_problem(&format!("{what} could not be read again"), &error);
            self.push(problem.at(place.clone()));
        }
    }

    fn service_user(&mut self, draft: &Draft) -> Option<ServiceUser> {
        let name = draft.settings.user.as_ref()?;
        match credentials::service_user(name, draft.settings.group.as_deref()) {
            Ok(user) => nix::unistd::geteuid().is_root().then_some(user),
            Err(error) => {
                let problem = source_problem("the service cannot become its user", &error);
                self.push(match &draft.user_place {
                    Some(place) => problem.at(place.clone()),
                    None => problem,
                });
                None
            }
        }
    }

    // ---- Certificates ------------------------------------------------------

    fn certificates(&mut self, draft: &Draft) -> HashMap<String, ReadyHost> {
        let ca_hosts: Vec<&HostDraft> = draft
            .hosts
            .iter()
            .filter(|host| host.certificates == Certificates::Ca)
            .collect();
        let mut ready = HashMap::new();
        for host in &draft.hosts {
            let mut loaded: Vec<LoadedKey> = Vec::new();
            if let Certificates::Files(files) = &host.certificates {
                for (chain, key) in files {
                    loaded.extend(self.certificate(host, chain, key));
                }
                if !loaded.is_empty() && !loaded.iter().any(|key| key.covers(&host.name)) {
                    self.push(
                        Problem::error(format!(
                            "no certificate is valid for {}",
                            quote(&host.name)
                        ))
                        .at(host.place.clone())
                        .cure("name one that holds this name, or use certificate = \"ca\""),
                    );
                }
            }
            if host.certificates == Certificates::Acme {
                loaded.extend(self.obtained(draft, host));
            }
            let keys: Vec<_> = loaded.into_iter().map(|key| key.certified).collect();
            let client_ca = host
                .client_ca
                .as_ref()
                .and_then(|path| self.client_ca(host, path));
            self.served.extend(keys.iter().cloned());
            let ready_host = ReadyHost {
                keys,
                client_ca,
                client_crls: self.client_crls(host),
                client_auth_optional: host.client_auth_optional,
            };
            ready.insert(host.name.clone(), ready_host);
        }
        let issued = self.issued(draft, &ca_hosts);
        for (host, key) in issued {
            if let Some(ready) = ready.get_mut(&host) {
                ready.keys.push(key);
            }
        }
        ready
    }

    fn certificate(&mut self, host: &HostDraft, chain: &Path, key: &Path) -> Option<LoadedKey> {
        self.watch.push(chain.to_owned());
        self.watch.push(key.to_owned());
        match load_certified_key(chain, key, host.allow_world_readable) {
            Ok(loaded) => {
                for concern in loaded.concerns(std::slice::from_ref(&host.name), self.now) {
                    self.push(
                        Problem::warning(format!("{}: {concern}", chain.display()))
                            .at(host.place.clone())
                            .cure(
                                "put a better one in its place: it is read as soon as it is there",
                            ),
                    );
                }
                self.expiries.push(Expiry {
                    kind: CertificateKind::File,
                    name: format!("{}: {}", host.name, chain.display()),
                    not_before: loaded.not_before,
                    not_after: loaded.not_after,
                });
                self.readable_again(
                    key,
                    &format!("the private key of {}", quote(&host.name)),
                    &host.place,
                );
                Some(loaded)
            }
            Err(error) => {
                self.push(
                    Problem::error(format!(
                        "the certificate of {} cannot be used: {error}",
                        quote(&host.name)
                    ))
                    .at(host.place.clone()),
                );
                None
            }
        }
    }

    /// The last good certificate of a public authority.
    fn obtained(&mut self, draft: &Draft, host: &HostDraft) -> Option<LoadedKey> {
        let store = acme_store(&draft.settings);
        let problem = match store.load(&host.name) {
            Ok(Some(loaded)) if loaded.covers(&host.name) => {
                let expiry = Expiry {
                    kind: CertificateKind::Acme,
                    name: host.name.clone(),
                    not_before: loaded.not_before,
                    not_after: loaded.not_after,
                };
                if self.context.purpose == Purpose::Look {
                    self.look_at(&expiry, &host.place);
                }
                self.expiries.push(expiry);
                return Some(loaded);
            }
            Ok(Some(_)) => format!(
                "{} holds no certificate for {}",
                store.path(&host.name).display(),
                quote(&host.name)
            ),
            // What `run` will see to is worth a word when it is only looked at.
            Ok(None) if self.context.purpose == Purpose::Serve => return None,
            Ok(None) => format!("there is no certificate for {} yet", quote(&host.name)),
            Err(error) => format!(
                "the certificate of {} cannot be used: {error}",
                quote(&host.name)
            ),
        };
        self.push(
            Problem::warning(problem)
                .at(host.place.clone())
                .cure("`claviger run` obtains one from the authority in [acme]; until then handshakes for this host are refused"),
        );
        None
    }

    /// What the public authority is asked for.
    fn acme_plan(&mut self, draft: &Draft, dns: &DnsSettings) -> Option<AcmePlan> {
        let acme = draft.acme.as_ref()?;
        let hosts: Vec<String> = draft
            .hosts
            .iter()
            .filter(|host| host.certificates == Certificates::Acme)
            .map(|host| host.name.clone())
            .collect();
        let external_account = match &acme.external_account {
            None => None,
            Some((id, reference)) => {
                self.watch.extend(reference.path());
                match credentials::fetch(reference, &SourcePolicy::default()) {
                    Ok(fetched) => Some((id.clone(), Arc::new(fetched.secret))),
                    Err(error) => {
                        let problem = source_problem("`eab_key` cannot be used", &error);
                        self.push(problem.at(acme.place.clone()));
                        return None;
                    }
                }
            }
        };
        let definition = match &acme.ca_file {
            Some(path) => {
                self.watch.push(path.clone());
                digest_of(path)
            }
            None => "system".to_owned(),
        };
        let tls = match &self.context.acme_client {
            Some((known, tls)) if *known == definition => Arc::clone(tls),
            _ => {
                let roots = match &acme.ca_file {
                    Some(path) => Roots::file(path),
                    None => match self.system_roots(&acme.place) {
                        Some(roots) => Ok(roots),
                        None => return None,
                    },
                };
                match roots.and_then(|roots| client_config(&roots, &OwnCa::none())) {
                    Ok(tls) => {
                        self.context.acme_client = Some((definition, Arc::clone(&tls)));
                        tls
                    }
                    Err(error) => {
                        self.push(
                            Problem::error(format!(
                                "the authority in [acme] cannot be verified: {error}"
                            ))
                            .at(acme.place.clone()),
                        );
                        return None;
                    }
                }
            }
        };
        Some(AcmePlan {
            directory: acme.directory.clone(),
            tls,
            dns: dns.clone(),
            contact: acme.contact.clone(),
            external_account,
            answer: acme.answer.clone(),
            hosts,
            store: acme_store(&draft.settings),
            challenges: Arc::clone(&self.context.challenges),
        })
    }

    /// What an authority is served by that validates a host in a handshake.
    fn validation(&mut self, host: &HostDraft, draft: &Draft) -> Option<Arc<rustls::ServerConfig>> {
        let by_tls = draft
            .acme
            .as_ref()
            .is_some_and(|acme| acme.answer == Answer::TlsAlpn);
        if host.certificates != Certificates::Acme || !by_tls {
            return None;
        }
        if self.context.validation.is_none() {
            match self.context.challenges.server_config() {
                Ok(config) => self.context.validation = Some(config),
                Err(error) => self.push(
                    Problem::error(format!("challenges cannot be answered: {error}"))
                        .at(host.place.clone()),
                ),
            }
        }
        self.context.validation.clone()
    }

    fn client_crls(&mut self, host: &HostDraft) -> Vec<CertificateRevocationListDer<'static>> {
        let mut lists = Vec::new();
        for path in &host.client_crls {
            self.watch.push(path.clone());
            match load_crls(path, self.now) {
                Ok((loaded, concern)) => {
                    lists.extend(loaded);
                    if let Some(concern) = concern {
                        self.push(
                            Problem::warning(format!("{}: {concern}", path.display()))
                                .at(host.place.clone())
                                .cure("put the CA's newest list in its place: it is read as soon as it is there"),
                        );
                    }
                }
                Err(error) => self.push(
                    Problem::error(format!(
                        "`client_crl` of {} cannot be used: {error}",
                        quote(&host.name)
                    ))
                    .at(host.place.clone()),
                ),
            }
        }
        lists
    }

    fn client_ca(
        &mut self,
        host: &HostDraft,
        path: &Path,
    ) -> Option<(Arc<rustls::RootCertStore>, String)> {
        self.watch.push(path.to_owned());
        match Roots::file(path) {
            Ok(roots) => {
                let found = roots.expiries(CertificateKind::ClientCa, path);
                for expiry in found {
                    // Several hosts may name one file.
                    if !self.expiries.contains(&expiry) {
                        self.look_at(&expiry, &host.place);
                        self.expiries.push(expiry);
                    }
                }
                Some((roots.client_ca_store(), digest_of(path)))
            }
            Err(error) => {
                self.push(
                    Problem::error(format!(
                        "`client_ca` of {} cannot be used: {error}",
                        quote(&host.name)
                    ))
                    .at(host.place.clone()),
                );
                None
            }
        }
    }

    /// Certificates of the internal CA, one for each host that takes one.
    fn issued(&mut self, draft: &Draft, hosts: &[&HostDraft]) -> Vec<(String, Arc<CertifiedKey>)> {
        let dir = &draft.settings.ca_dir;
        let passphrase = match &draft.ca_passphrase {
            None => None,
            Some((reference, place)) => match self.passphrase(reference, place) {
                Some(passphrase) => Some(passphrase),
                None => return Vec::new(),
            },
        };
        let mut authority = match Authority::load(dir, passphrase.as_ref()) {
            Ok(authority) => authority,
            // Nobody asked for one, and there is none. One that is there and cannot be
            // read is an error: without it the loop guard does not know our own root.
            Err(_)
                if hosts.is_empty()
                    && draft.ca_place.is_none()
                    && matches!(dir.join("root.pem").try_exists(), Ok(false)) =>
            {
                return Vec::new();
            }
            Err(error) => {
                let names = hosts
                    .iter()
                    .map(|host| quote(&host.name))
                    .collect::<Vec<_>>()
                    .join(", ");
                let problem = Problem::error(if hosts.is_empty() {
                    format!("the internal CA cannot be used: {error}")
                } else {
                    format!("no certificate for {names}: {error}")
                });
                let place = draft
                    .ca_place
                    .as_ref()
                    .or(hosts.first().map(|host| &host.place));
                let problem = match place {
                    Some(place) => problem.at(place.clone()),
                    None => problem,
                };
                self.push(problem.cure(format!(
                    "run `claviger ca init` for these hosts (the CA is expected in {}), or write [host.NAME] with certificate and private_key",
                    dir.display()
                )));
                return Vec::new();
            }
        };
        self.own_ca = authority.own_ca();
        let ca_place = draft.ca_place.as_ref();
        let ca_place = ca_place.or(hosts.first().map(|host| &host.place)).cloned();
        if self.context.purpose == Purpose::Look {
            self.look_at_authority(&authority, ca_place.as_ref());
        }
        self.expiries.extend(authority.expiries());
        // A CA that was made anew is in use at once.
        let files = [
            "root.pem",
            "intermediate.pem",
            "next-root.pem",
            "former-root.pem",
        ];
        self.watch.extend(files.map(|name| dir.join(name)));
        let names: Vec<String> = hosts.iter().map(|host| host.name.clone()).collect();
        let coverage = authority.coverage(&names);
        if !coverage.is_reachable() {
            for host in hosts {
                let outside = coverage.outside_root.contains(&host.name);
                let invalid = coverage.invalid.iter().find(|(name, _)| *name == host.name);
                if outside {
                    self.push(
                        Problem::error(format!(
                            "{} is outside the domains that the internal CA's root permits ({})",
                            quote(&host.name),
                            authority.permitted().join(", ")
                        ))
                        .at(host.place.clone())
                        .cure("make a new root with `claviger ca init --force --permit ...` for all domains, and let every machine trust it; or write [host.NAME] with certificate and private_key"),
                    );
                }
                if let Some((_, why)) = invalid {
                    self.push(
                        Problem::error(format!("no certificate for {}: {why}", quote(&host.name)))
                            .at(host.place.clone()),
                    );
                }
            }
            return Vec::new();
        }
        if hosts.is_empty() {
            return Vec::new();
        }
        if !self.intermediate(
            &mut authority,
            &names,
            hosts,
            &coverage.outside_intermediate,
        ) {
            return Vec::new();
        }
        self.readable_again(
            &dir.join("intermediate.key"),
            "the internal CA's intermediate key",
            draft.ca_place.as_ref().unwrap_or(&hosts[0].place),
        );
        let store = match authority.leaf_issuer() {
            Ok(issuer) => match &mut self.context.leaves {
                Some((known, store)) if known == dir => {
                    store.replace_issuer(issuer, draft.settings.leaf_life);
                    store
                }
                leaves => {
                    let store = LeafStore::new(issuer, draft.settings.leaf_life);
                    &mut leaves.insert((dir.clone(), store)).1
                }
            },
            Err(error) => {
                self.report.push(
                    Problem::error(format!("the internal CA cannot issue: {error}"))
                        .at(hosts[0].place.clone()),
                );
                return Vec::new();
            }
        };
        let mut issued = Vec::new();
        for host in hosts {
            match store.leaf(
                std::slice::from_ref(&host.name),
                KeyType::default(),
                self.now,
            ) {
                Ok(key) => issued.push((host.name.clone(), key)),
                Err(error) => self.report.push(
                    Problem::error(format!("no certificate for {}: {error}", quote(&host.name)))
                        .at(host.place.clone()),
                ),
            }
        }
        issued
    }

    /// Sees to an intermediate that permits the hosts. `false` when leaves cannot be made.
    fn intermediate(
        &mut self,
        authority: &mut Authority,
        names: &[String],
        hosts: &[&HostDraft],
        outside: &[String],
    ) -> bool {
        // Nothing is written for a configuration that will not be in force.
        if self.context.purpose == Purpose::Look || self.report.has_errors() {
            if outside.is_empty() {
                return true;
            }
            // `run` makes the intermediate anew; here nothing is written.
            let shown = outside
                .iter()
                .map(|name| quote(name))
                .collect::<Vec<_>>()
                .join(", ");
            self.push(
                Problem::warning(format!("the intermediate certificate does not permit {shown} yet"))
                    .at(hosts[0].place.clone())
                    .cure("`claviger run` makes it anew where root.key is present; no caller needs to trust anything anew"),
            );
            return false;
        }
        match authority.ensure_intermediate(names, self.now) {
            Ok(Ensured::KeptButDue { why, .. }) => {
                self.push(Problem::warning(format!(
                    "the intermediate certificate is due to be made anew, which failed: {why}"
                )));
            }
            Ok(_) => {}
            Err(error) => {
                self.push(
                    Problem::error(format!("the internal CA cannot issue: {error}"))
                        .at(hosts[0].place.clone()),
                );
                return false;
            }
        }
        self.own_ca = authority.own_ca();
        // It may be another one now.
        self.expiries
            .retain(|expiry| expiry.kind != CertificateKind::CaIntermediate);
        self.expiries.extend(
            authority
                .expiries()
                .into_iter()
                .filter(|expiry| expiry.kind == CertificateKind::CaIntermediate),
        );
        true
    }

    /// What the CA's keys are encrypted under. `None` was reported.
    fn passphrase(&mut self, reference: &SecretRef, place: &Place) -> Option<Passphrase> {
        const WHAT: &str = "the passphrase of the internal CA";
        self.watch.extend(reference.path());
        let fetched = match credentials::fetch(reference, &SourcePolicy::default()) {
            Ok(fetched) => fetched,
            Err(error) => {
                let problem = source_problem(&format!("{WHAT} cannot be used"), &error);
                self.push(problem.at(place.clone()));
                return None;
            }
        };
        if let Some(path) = &fetched.watch {
            self.readable_again(path, WHAT, place);
        }
        match Passphrase::new(fetched.secret) {
            Ok(passphrase) => Some(passphrase),
            Err(problem) => {
                self.push(Problem::error(format!("{WHAT} {problem}")).at(place.clone()));
                None
            }
        }
    }

    /// What `check` has to say about the internal CA.
    fn look_at_authority(&mut self, authority: &Authority, place: Option<&Place>) {
        let plain = authority.plain_keys();
        if !plain.is_empty() {
            let paths: Vec<_> = plain
                .iter()
                .map(|path| path.display().to_string())
                .collect();
            let problem = Problem::warning(format!(
                "private keys of the internal CA are not encrypted: {}",
                paths.join(", ")
            ))
            .cure("encrypt them by `claviger ca encrypt` and name the passphrase in [ca] `passphrase`; or keep root.key elsewhere");
            self.push(match place {
                Some(place) => problem.at(place.clone()),
                None => problem,
            });
        }
        for expiry in authority.expiries() {
            if let Some(place) = place {
                self.look_at(&expiry, place);
            }
        }
    }

    /// Warns of a certificate whose end is near.
    fn look_at(&mut self, expiry: &Expiry, place: &Place) {
        let what = match expiry.state(self.now) {
            ExpiryState::Good => return,
            ExpiryState::Expiring => "expires soon",
            ExpiryState::Expired => "has expired",
        };
        self.push(
            Problem::warning(format!("{expiry}: {what}"))
                .at(place.clone())
                .cure(expiry.kind.cure()),
        );
    }

    // ---- Upstreams ---------------------------------------------------------

    fn upstreams(&mut self, draft: &Draft) -> HashMap<usize, ReadyUpstream> {
        let used: HashSet<usize> = draft
            .hosts
            .iter()
            .flat_map(|host| &host.routes)
            .flat_map(|route| {
                let further = route.further.iter().map(|(upstream, _)| *upstream);
                further.chain([route.upstream])
            })
            .collect();
        let mut ready = HashMap::new();
        for (index, upstream) in draft.upstreams.iter().enumerate() {
            if !used.contains(&index) {
                continue;
            }
            if let Some(tls) = self.upstream(upstream) {
                ready.insert(index, tls);
            }
        }
        ready
    }

    fn upstream(&mut self, draft: &UpstreamDraft) -> Option<ReadyUpstream> {
        let (roots, own_ca, digest) = match &draft.ca_file {
            Some(path) => {
                self.watch.push(path.clone());
                match Roots::file(path) {
                    // A CA file that was given is the operator's word on whom to trust.
                    Ok(roots) => (roots, self.own_ca.clone(), digest_of(path)),
                    Err(error) => {
                        let problem = Problem::error(format!(
                            "`ca_file` of the upstream {} cannot be used: {error}",
                            quote(&draft.name)
                        ));
                        self.push(
                            problem.at(draft
                                .ca_place
                                .clone()
                                .unwrap_or_else(|| draft.place.clone())),
                        );
                        return None;
                    }
                }
            }
            None => {
                // With a public certificate of our own, a DNS loop verifies too.
                let own_ca = self.own_ca.clone().with_served_keys(&self.served);
                (
                    self.system_roots(&draft.place)?,
                    own_ca,
                    "system".to_owned(),
                )
            }
        };
        let mut definition = definition(draft, &digest);
        let identity = match &draft.client_certificate {
            None => None,
            Some(certificate) => {
                let (key, digest) = self.client_identity(draft, certificate)?;
                // A session that began with one certificate never resumes with another.
                let _ = write!(definition, " as {digest}");
                Some(key)
            }
        };
        if let Some((made_for, tls)) = self.context.clients.get(&definition)
            && *made_for == own_ca
        {
            return Some(ReadyUpstream {
                definition,
                tls: Arc::clone(tls),
            });
        }
        match client_config_showing(&roots, &own_ca, identity.as_deref()) {
            Ok(tls) => {
                self.context
                    .clients
                    .insert(definition.clone(), (own_ca, Arc::clone(&tls)));
                Some(ReadyUpstream { definition, tls })
            }
            Err(error) => {
                self.push(
                    Problem::error(format!(
                        "the upstream {} cannot be verified: {error}",
                        quote(&draft.name)
                    ))
                    .at(draft.place.clone()),
                );
                None
            }
        }
    }

    /// The certificate that an upstream is shown, and a digest of it.
    fn client_identity(
        &mut self,
        draft: &UpstreamDraft,
        certificate: &ClientCertificate,
    ) -> Option<(Arc<CertifiedKey>, String)> {
        let ClientCertificate {
            chain, key, place, ..
        } = certificate;
        self.watch.extend([chain.clone(), key.clone()]);
        match load_certified_key(chain, key, certificate.allow_world_readable) {
            Ok(loaded) => {
                for concern in loaded.concerns_in_time(self.now) {
                    self.push(
                        Problem::warning(format!("{}: {concern}", chain.display()))
                            .at(place.clone())
                            .cure("put a new one in its place: it is read as soon as it is there"),
                    );
                }
                self.expiries.push(Expiry {
                    kind: CertificateKind::Client,
                    name: format!("{}: {}", draft.name, chain.display()),
                    not_before: loaded.not_before,
                    not_after: loaded.not_after,
                });
                let what = format!("the client key for {}", quote(&draft.name));
                self.readable_again(key, &what, place);
                Some((loaded.certified, digest_of(chain)))
            }
            Err(error) => {
                self.push(
                    Problem::error(format!(
                        "`client_certificate` of the upstream {} cannot be used: {error}",
                        quote(&draft.name)
                    ))
                    .at(place.clone()),
                );
                None
            }
        }
    }

    /// Read once per process: some hundred kilobytes that hardly ever change.
    fn system_roots(&mut self, place: &Place) -> Option<Roots> {
        if let Some(roots) = &self.context.system_roots {
            return Some(roots.clone());
        }
        match Roots::system() {
            Ok(roots) => {
                for warning in roots.warnings() {
                    self.report.push(Problem::warning(format!(
                        "the system's trust store: {warning}"
                    )));
                }
                self.context.system_roots = Some(roots.clone());
                Some(roots)
            }
            Err(error) => {
                self.push(
                    Problem::error(format!("no upstream can be verified: {error}"))
                        .at(place.clone()),
                );
                None
            }
        }
    }

    fn dns_client(&mut self) -> Option<Arc<ClientConfig>> {
        if let Some(client) = &self.context.dns_client {
            return Some(Arc::clone(client));
        }
        let made = match &self.context.system_roots {
            Some(roots) => client_config(roots, &OwnCa::none()),
            None => Roots::system().and_then(|roots| client_config(&roots, &OwnCa::none())),
        };
        match made {
            Ok(client) => {
                self.context.dns_client = Some(Arc::clone(&client));
                Some(client)
            }
            Err(error) => {
                self.push(Problem::error(format!(
                    "resolvers cannot be asked over TLS: {error}"
                )));
                None
            }
        }
    }

    // ---- The snapshot ------------------------------------------------------

    fn build(
        &mut self,
        draft: Draft,
        credentials: Credentials,
        callers: Vec<Option<Arc<NamedCaller>>>,
        mut keys: HashMap<String, ReadyHost>,
        upstreams: HashMap<usize, ReadyUpstream>,
        dns_tls: Option<Arc<ClientConfig>>,
    ) -> Result<Resolved, Report> {
        let shared = self.shared_upstreams(&draft, &upstreams);
        let mut hosts = Vec::new();
        for host in &draft.hosts {
            let ready = keys.remove(&host.name);
            let tls = match (&host.certificates, ready) {
                (Certificates::None, _) | (_, None) => None,
                // Only when looking, and it was said: the certificate is yet to be made.
                (Certificates::Ca, Some(ready)) if ready.keys.is_empty() => None,
                // It is yet to be obtained.
                (Certificates::Acme, Some(ready)) if ready.keys.is_empty() => None,
                (_, Some(ready)) => Some(self.server(&draft, host, ready)?),
            };
            let routes: Vec<Route> = host
                .routes
                .iter()
                .filter_map(|route| self.route(route, &draft, &shared, &credentials, &callers))
                .collect();
            let listeners = host
                .listeners
                .iter()
                .map(|name| name.as_str().into())
                .collect();
            let edges = host.edges.iter();
            let edges = edges.filter_map(|&at| callers.get(at)?.clone()).collect();
            let mut virtual_host = VirtualHost::new(&host.name, listeners, tls, routes);
            virtual_host.validation = self.validation(host, &draft);
            hosts.push(virtual_host.for_edges(edges));
        }
        let generation = self.context.generation + 1;
        let own: Vec<SocketAddr> = draft
            .listeners
            .iter()
            .flat_map(|listener| listener.addresses.clone())
            .collect();
        let snapshot = Snapshot::new(
            generation,
            draft.listeners,
            hosts,
            draft.limits,
            &self.context.loop_token,
        )
        .map_err(|error| Report::of(Problem::error(error)))?;
        let names = draft
            .upstreams
            .iter()
            .enumerate()
            .filter(|(_, upstream)| upstream.addresses.is_empty())
            .filter_map(|(index, upstream)| {
                Some(Name {
                    upstream: shared.get(&index)?.id,
                    label: upstream.name.clone(),
                    host: upstream.host.clone(),
                    port: upstream.port,
                    allow_private: upstream.allow_private,
                })
            })
            .collect();
        let mut settings = draft.settings;
        settings.dns.tls = dns_tls;
        settings.watch_paths.append(&mut self.watch);
        let mut seen = HashSet::new();
        settings
            .watch_paths
            .retain(|path| seen.insert(path.clone()));
        self.forget(&snapshot, &upstreams);
        self.context.generation = generation;
        Ok(Resolved {
            snapshot,
            settings,
            names,
            own_addresses: OwnAddresses::of(own),
            warnings: self.failed(),
            certificates: self.certificates_by_end(),
            acme: None,
            next_renewal: self
                .context
                .leaves
                .as_ref()
                .and_then(|(_, leaves)| leaves.next_renewal()),
        })
    }

    fn certificates_by_end(&mut self) -> Vec<Expiry> {
        let mut expiries = std::mem::take(&mut self.expiries);
        if let Some((_, leaves)) = &self.context.leaves {
            expiries.extend(leaves.expiries());
        }
        expiries.sort_by(|one, other| {
            let by = |expiry: &Expiry| (expiry.not_after, expiry.kind, expiry.name.clone());
            by(one).cmp(&by(other))
        });
        expiries
    }

    fn server(
        &mut self,
        draft: &Draft,
        host: &HostDraft,
        ready: ReadyHost,
    ) -> Result<Arc<rustls::ServerConfig>, Report> {
        let fail = |error: crate::pki::PkiError| {
            Report::of(
                Problem::error(format!(
                    "TLS for {} cannot be set up: {error}",
                    quote(&host.name)
                ))
                .at(host.place.clone()),
            )
        };
        let mut rules = String::new();
        if let Some((_, digest)) = &ready.client_ca {
            let _ = write!(rules, "client_ca={digest};");
        }
        // A ticket leads past the choice by SNI, so what that leads to is part of it.
        let _ = write!(rules, "listeners={:?};", host.listeners);
        for listener in &draft.listeners {
            if listener.unknown_sni == UnknownSni::Host(host.name.as_str().into()) {
                let _ = write!(rules, "unknown_sni@{};", listener.name);
            }
        }
        let tickets = match &ready.client_ca {
            // A resumed session would skip the check of the caller's certificate.
            Some(_) => None,
            None => Some(
                self.context
                    .ticketers
                    .for_host(&host.name, &rules)
                    .map_err(fail)?,
            ),
        };
        let options = ServerTls {
            tickets,
            client_ca: ready.client_ca.map(|(store, _)| store),
            client_auth_optional: ready.client_auth_optional,
            client_crls: ready.client_crls,
        };
        server_config(ready.keys, &options).map_err(fail)
    }

    /// Each definition once, under its number.
    fn shared_upstreams(
        &mut self,
        draft: &Draft,
        upstreams: &HashMap<usize, ReadyUpstream>,
    ) -> HashMap<usize, Arc<Upstream>> {
        let mut shared = HashMap::new();
        for (&index, ready) in upstreams {
            let Some(draft) = draft.upstreams.get(index) else {
                continue;
            };
            let context = &mut *self.context;
            let id = *context
                .upstream_ids
                .entry(ready.definition.clone())
                .or_insert_with(|| {
                    context.upstream_next += 1;
                    UpstreamId(context.upstream_next)
                });
            shared.insert(
                index,
                Arc::new(Upstream {
                    id,
                    name: draft.name.as_str().into(),
                    host: host_field(&draft.host, draft.port).into(),
                    tls_name: draft.tls_name.clone(),
                    tls: Arc::clone(&ready.tls),
                    is_hub: draft.is_hub,
                    addresses: draft.addresses.clone().into(),
                    limits: draft.limits,
                }),
            );
        }
        shared
    }

    fn route(
        &mut self,
        draft: &RouteDraft,
        whole: &Draft,
        upstreams: &HashMap<usize, Arc<Upstream>>,
        credentials: &Credentials,
        callers: &[Option<Arc<NamedCaller>>],
    ) -> Option<Route> {
        let mut further = Vec::new();
        for (upstream, credential) in &draft.further {
            further.push(Way {
                upstream: Arc::clone(upstreams.get(upstream)?),
                credential: self.written(credential.as_ref(), whole, credentials)?,
            });
        }
        let credential = self.written(draft.credential.as_ref(), whole, credentials)?;
        Some(Route {
            name: draft.name.as_str().into(),
            path: draft.path.as_bytes().into(),
            methods: draft
                .methods
                .iter()
                .map(|method| method.as_str().into())
                .collect(),
            callers: named_callers(draft, callers)?,
            denied: draft.denied.clone(),
            upstream: Arc::clone(upstreams.get(&draft.upstream)?),
            credential,
            further,
            upstream_path: draft
                .upstream_path
                .as_ref()
                .map(|path| path.as_bytes().into()),
            strip_fields: NameSet::new(&draft.strip_fields),
            strip_params: ParamSet::new(&draft.strip_params),
            keep_params: ParamSet::new(&draft.keep_params),
            strip_cookies: draft.strip_cookies,
            forwarding: draft.forwarding.clone(),
            strip_response_fields: NameSet::new(&draft.strip_response_fields),
            upgrades: draft
                .upgrades
                .iter()
                .map(|token| token.as_str().into())
                .collect(),
            refused: draft.refused.clone(),
            audit_required: draft.audit_required,
            retry_with_idempotency_key: draft.retry_with_idempotency_key,
            on_echo: draft.on_echo,
            on_uninspected: draft.on_uninspected,
            body_bytes_max: draft.body_bytes_max,
            response_head_timeout: draft.response_head_timeout,
        })
    }

    /// A credential as a route writes it. `None`: it could not be made, and that was said.
    #[allow(clippy::option_option)]
    fn written(
        &mut self,
        draft: Option<&(usize, Injection)>,
        whole: &Draft,
        credentials: &Credentials,
    ) -> Option<Option<(CredentialId, Arc<Credential>)>> {
        let Some((index, injection)) = draft else {
            return Some(None);
        };
        let name = &whole.credentials.get(*index)?.name;
        let context = &mut *self.context;
        let id = *context
            .credential_ids
            .entry(name.clone())
            .or_insert_with(|| {
                context.credential_next += 1;
                CredentialId(context.credential_next)
            });
        let ready = credentials.get(&(*index, injection.describe()))?;
        Some(Some((id, Arc::clone(ready))))
    }

    // ---- Callers -----------------------------------------------------------

    /// The callers in the order of the draft, with their tokens read. One whose token
    /// cannot be used was reported and is missing.
    fn callers(&mut self, draft: &Draft) -> Vec<Option<Arc<NamedCaller>>> {
        let callers = draft.callers.iter();
        callers
            .map(|caller| self.caller(caller).map(Arc::new))
            .collect()
    }

    fn caller(&mut self, draft: &CallerDraft) -> Option<NamedCaller> {
        let policy = SourcePolicy {
            allow_world_readable: draft.allow_world_readable,
        };
        let what = format!("a token of the caller {}", quote(&draft.name));
        let mut tokens: Vec<Token> = Vec::new();
        for (reference, place) in &draft.tokens {
            self.watch.extend(reference.path());
            let fetched = match credentials::fetch(reference, &policy) {
                Ok(fetched) => fetched,
                Err(error) => {
                    let problem = source_problem(&format!("{what} cannot be used"), &error);
                    self.push(problem.at(place.clone()));
                    continue;
                }
            };
            if let Some(path) = &fetched.watch {
                self.readable_again(path, &what, place);
            }
            match Token::new(&fetched.version, &fetched.secret) {
                Ok(token) => tokens.push(token),
                Err(error) => self.push(
                    Problem::error(format!("{what} cannot be used: {error}"))
                        .at(place.clone())
                        .cure("make one, as with `openssl rand -hex 32`"),
                ),
            }
        }
        (tokens.len() == draft.tokens.len()).then(|| NamedCaller {
            name: draft.name.as_str().into(),
            networks: draft.networks.clone(),
            tokens,
            certificates: draft.certificates.clone(),
            require: draft.require,
        })
    }

    /// Lets go of what is no longer configured.
    fn forget(&mut self, snapshot: &Snapshot, upstreams: &HashMap<usize, ReadyUpstream>) {
        let definitions: HashSet<&str> =
            upstreams.values().map(|ready| &*ready.definition).collect();
        let context = &mut *self.context;
        context
            .upstream_ids
            .retain(|definition, _| definitions.contains(&**definition));
        context
            .clients
            .retain(|definition, _| definitions.contains(&**definition));
        let names: HashSet<&str> = snapshot.hosts().iter().map(|host| &*host.name).collect();
        context.ticketers.retain(|host| names.contains(host));
        if let Some((_, leaves)) = &mut context.leaves {
            leaves.retain(|hosts| hosts.iter().all(|host| names.contains(&**host)));
        }
        let credentials: HashSet<CredentialId> = snapshot
            .hosts()
            .iter()
            .flat_map(|host| host.routes())
            .flat_map(Route::every_way)
            .filter_map(|(_, credential)| credential.map(|(id, _)| *id))
            .collect();
        context
            .credential_ids
            .retain(|_, id| credentials.contains(id));
        context.secrets = std::mem::take(&mut self.secrets);
    }
}

/// Where certificates of a public authority are kept.
fn acme_store(settings: &Settings) -> Store {
    Store::new(settings.state_dir.join("acme"))
}

/// Everything that decides where a connection leads and whom it trusts. Not its
/// times and bounds, which may change under a connection.
fn definition(draft: &UpstreamDraft, ca_digest: &str) -> String {
    format!(
        "{:?} {:?}:{} as {:?} at {:?} trusting {ca_digest} private {}",
        draft.name, draft.host, draft.port, draft.tls_name, draft.addresses, draft.allow_private
    )
}

/// The value of the `Host` field (RFC 9110, 7.2): the port only if it is not the usual one.
fn host_field(host: &str, port: u16) -> String {
    let host = match host.parse::<IpAddr>() {
        Ok(IpAddr::V6(v6)) => format!("[{v6}]"),
        _ => host.to_owned(),
    };
    if port == 443 {
        host
    } else {
        format!("{host}:{port}")
    }
}

/// A file that was read a moment ago. One that has gone since counts as another.
fn digest_of(path: &Path) -> String {
    match std::fs::read(path) {
        Ok(bytes) => {
            let mut text = String::new();
            for byte in Sha256::digest(bytes) {
                let _ = write!(text, "{byte:02x}");
            }
            text
        }
        Err(_) => "unreadable".to_owned(),
    }
}

/// A source's error, whose text is a problem and its cure, apart by `; `.
/// Whom a route lets in.
fn named_callers(draft: &RouteDraft, known: &[Option<Arc<NamedCaller>>]) -> Option<Callers> {
    if draft.named_callers.is_empty() {
        return Some(draft.callers.clone());
    }
    let networks = match &draft.callers {
        Callers::Networks(networks) => networks.clone(),
        Callers::Open | Callers::Named { .. } => Vec::new(),
    };
    let callers = draft.named_callers.iter();
    let callers = callers
        .map(|&at| known.get(at)?.clone())
        .collect::<Option<_>>()?;
    Some(Callers::Named { networks, callers })
}

fn source_problem(what: &str, error: &SourceError) -> Problem {
    let text = error.to_string();
    match text.split_once("; ") {
        Some((problem, cure)) => Problem::error(format!("{what}: {problem}")).cure(cure),
        None => Problem::error(format!("{what}: {text}")),
    }
}

/// Every address of this machine. None can be read: nothing is refused for it,
/// and the loop token still stops what goes round.
fn machine_addresses() -> HashSet<IpAddr> {
    let Ok(interfaces) = nix::ifaddrs::getifaddrs() else {
        return HashSet::new();
    };
    interfaces
        .filter_map(|interface| interface.address)
        .filter_map(|address: SockaddrStorage| {
            if let Some(v4) = address.as_sockaddr_in() {
                Some(IpAddr::V4(v4.ip()))
            } else {
                address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip()))
            }
        })
        .collect()
}
