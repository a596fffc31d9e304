//! [`Authority`]: the internal certificate authority, and the commands `claviger ca init`,
//! `issue` and `export`.
//!
//! Callers must trust the root on every machine, so the root is made to be worth little to a
//! thief: critical name constraints (RFC 5280, 4.2.1.10) permit the operator's domains alone and
//! exclude every IP address, and its certificates serve TLS servers only. The intermediate, whose
//! key the running proxy holds, is limited further, to the hosts that are configured. When hosts
//! are added within the root's domains, [`Authority::ensure_intermediate`] makes another
//! intermediate, with another key, and no caller notices.
//!
//! A constraint can never be widened later without trusting a new root everywhere, which is why
//! `check` asks [`Authority::coverage`] before a host is served.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    NameConstraints, PKCS_RSA_SHA256, PublicKeyData, RsaKeySize,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use zeroize::Zeroizing;

use super::error::List;
use super::leaf::{BACKDATE, LEAF_DAYS_DEFAULT, LeafIssuer, random_serial, renew_at};
use super::name::{HostName, minimal_cover};
use super::sealed::{Passphrase, Sealed};
use super::store::{
    CERT_BYTES_MAX, CERT_MODE, CaDir, Existing, KEY_BYTES_MAX, KEY_MODE, PEM_CURE, Privacy, Role,
    State, read_bounded, read_certificates, write_atomic,
};
use super::x509::{self, Facts};
use super::{CertificateKind, Expiry, OwnCa, PkiError};

/// A certificate authority as its directory has it. The root's key stays on disk; the
/// intermediate's is read when a [`LeafIssuer`] is asked for.
#[derive(Debug)]
pub struct Authority {
    pub(super) dir: CaDir,
    pub(super) root: Certificate,
    root_pem: String,
    /// Why there is none, if there is none: then [`Authority::ensure_intermediate`] makes one.
    intermediate: Result<Certificate, String>,
    /// The other root of a roll-over.
    pub(super) other: Option<OtherRoot>,
    /// The intermediate's key, if it was opened with the passphrase: opening it is slow.
    opened: Option<Arc<Zeroizing<KeyPair>>>,
    pub(super) state: State,
    passphrase: Option<Passphrase>,
}

impl Authority {
    /// Reads a directory that `claviger ca init` made. `root.key` need not be there. Keys may be
    /// encrypted under `passphrase`; new ones are, if there is one.
    ///
    /// # Errors
    /// No readable root, a root without name constraints, or a broken state file.
    pub fn load(dir: &Path, passphrase: Option<&Passphrase>) -> Result<Authority, PkiError> {
        let dir = CaDir::new(dir);
        let _lock = dir.lock_to_read();
        Authority::read(dir, passphrase)
    }

    /// The same, for whoever has the directory locked.
    pub(super) fn read(dir: CaDir, passphrase: Option<&Passphrase>) -> Result<Authority, PkiError> {
        let root = match Certificate::read(&dir.root_pem()) {
            Err(PkiError::Io {
                path,
                action,
                source,
                ..
            }) if source.kind() == io::ErrorKind::NotFound => {
                let cure = "make an authority by `claviger ca init --permit DOMAIN`".to_owned();
                return Err(PkiError::Io {
                    path,
                    action,
                    cure,
                    source,
                });
            }
            root => root?,
        };
        if !root.facts.is_ca || root.facts.permitted.is_empty() {
            return Err(PkiError::file(
                &dir.root_pem(),
                "is not a root with permitted domains",
                "use a directory made by `claviger ca init`",
            ));
        }
        let mut opened = None;
        let intermediate = read_intermediate(&dir, &root, passphrase, &mut opened);
        let state = dir.read_state()?;
        let root_pem = x509::to_pem(&root.der);
        let other = OtherRoot::read(&dir, &root)?;
        Ok(Authority {
            dir,
            root,
            root_pem,
            intermediate,
            other,
            opened,
            state,
            passphrase: passphrase.cloned(),
        })
    }

    /// Which of these hosts can have certificates, and what to do about the others.
    pub fn coverage(&self, hosts: &[String]) -> Coverage {
        let mut coverage = Coverage {
            permitted: self.root.facts.permitted.clone(),
            ..Coverage::default()
        };
        for given in hosts {
            match HostName::parse(given) {
                Err(PkiError::Host { problem, .. }) => {
                    coverage.invalid.push((given.clone(), problem));
                }
                Err(err) => coverage.invalid.push((given.clone(), err.to_string())),
                Ok(host) if !self.root.permits(&host) => coverage.outside_root.push(given.clone()),
                Ok(host) if !self.intermediate.as_ref().is_ok_and(|it| it.permits(&host)) => {
                    coverage.outside_intermediate.push(given.clone());
                }
                Ok(_) => {}
            }
        }
        coverage
    }

    /// Sees to it that the intermediate permits these hosts and is not near its end; makes a new
    /// one with a new key if need be, for which `root.key` must be in the directory.
    ///
    /// # Errors
    /// Hosts outside the root's domains, a needed root key that is missing or unreadable, an
    /// expired root, or files that cannot be written.
    pub fn ensure_intermediate(
        &mut self,
        hosts: &[String],
        now: SystemTime,
    ) -> Result<Ensured, PkiError> {
        let hosts = HostName::parse_all(hosts)?;
        self.refuse_outside_root(&hosts)?;
        if let Need::Nothing { until } = self.need(&hosts, now) {
            return Ok(Ensured::Kept { until });
        }
        // Another process may have seen to it while we waited.
        let lock = match self.dir.lock() {
            Ok(lock) => Some(lock),
            // A directory that we cannot write still serves while its intermediate lasts.
            Err(err) => match self.need(&hosts, now) {
                Need::Renewal { until } => {
                    return Ok(Ensured::KeptButDue {
                        until,
                        why: err.to_string(),
                    });
                }
                _ => return Err(err),
            },
        };
        let passphrase = self.passphrase.take();
        *self = Authority::read(self.dir.clone(), passphrase.as_ref())?;
        // There may be another root.
        self.refuse_outside_root(&hosts)?;
        let need = self.need(&hosts, now);
        let reason = match &need {
            Need::Nothing { until } => return Ok(Ensured::Kept { until: *until }),
            Need::Renewal { .. } => "the intermediate is near its end".to_owned(),
            Need::Now(reason) => reason.clone(),
        };
        let made = self.replace_intermediate(&hosts, now, &reason);
        drop(lock);
        match (made, need) {
            (Ok(()), _) => Ok(Ensured::Reissued {
                reason,
                permitted: self.intermediate_permitted().to_vec(),
                until: self.intermediate_not_after().unwrap_or(now),
            }),
            (Err(err), Need::Renewal { until }) => Ok(Ensured::KeptButDue {
                until,
                why: err.to_string(),
            }),
            (Err(err), _) => Err(err),
        }
    }

    /// Takes the intermediate's key into memory, to sign leaves with.
    ///
    /// # Errors
    /// No usable intermediate, or a key file that cannot be read, is open to every user, or does
    /// not belong to the certificate.
    pub fn leaf_issuer(&self) -> Result<LeafIssuer, PkiError> {
        let path = self.dir.intermediate_key();
        let intermediate = self.intermediate.as_ref().map_err(|problem| {
            PkiError::file(&self.dir.intermediate_pem(), problem.clone(), REISSUE_CURE)
        })?;
        let key = match &self.opened {
            Some(key) => Arc::clone(key),
            None => Arc::new(read_key(&path, self.passphrase.as_ref())?.0),
        };
        if key_hash(&key) != intermediate.facts.key {
            return Err(PkiError::file(
                &path,
                "does not belong to intermediate.pem",
                REISSUE_CURE,
            ));
        }
        Ok(LeafIssuer::new(
            intermediate.der.clone(),
            self.cross().map(|cross| cross.der.clone()),
            &intermediate.facts,
            key,
        ))
    }

    /// What an upstream must not present: see [`super::verify`].
    pub fn own_ca(&self) -> OwnCa {
        let other = self.other.as_ref();
        let certificates = [
            Some(&self.root),
            self.intermediate.as_ref().ok(),
            other.map(|other| &other.root),
        ];
        let keys = certificates
            .iter()
            .flatten()
            .map(|certificate| certificate.facts.key);
        OwnCa::new(
            keys.chain(self.state.key_hashes()),
            certificates
                .iter()
                .flatten()
                .map(|certificate| certificate.der.clone()),
        )
    }

    /// Until when the root and the intermediate serve.
    pub fn expiries(&self) -> Vec<Expiry> {
        let of = |kind, certificate: &Certificate| Expiry {
            kind,
            name: certificate.facts.subject.clone(),
            not_before: certificate.facts.not_before,
            not_after: certificate.facts.not_after,
        };
        let mut expiries = vec![of(CertificateKind::CaRoot, &self.root)];
        if let Some(other) = &self.other {
            expiries.push(of(CertificateKind::CaRoot, &other.root));
        }
        if let Ok(intermediate) = &self.intermediate {
            expiries.push(of(CertificateKind::CaIntermediate, intermediate));
        }
        expiries
    }

    /// The domains that the root permits.
    pub fn permitted(&self) -> &[String] {
        &self.root.facts.permitted
    }

    /// The domains that the intermediate permits; none while there is no usable one.
    pub fn intermediate_permitted(&self) -> &[String] {
        match &self.intermediate {
            Ok(intermediate) => &intermediate.facts.permitted,
            Err(_) => &[],
        }
    }

    /// The private keys of this authority that lie here unencrypted. One that cannot be read is
    /// not among them.
    pub fn plain_keys(&self) -> Vec<PathBuf> {
        let mut paths = self.dir.keys();
        paths.retain(|path| {
            let content = read_bounded(path, KEY_BYTES_MAX, Privacy::Any);
            content.is_ok_and(|pem| PrivateKeyDer::from_pem_slice(&pem).is_ok())
        });
        paths
    }

    /// Every root that callers shall trust: the one that certificates come from first, and in a
    /// roll-over the other one.
    pub(super) fn roots(&self) -> Vec<&Certificate> {
        let mut roots = vec![&self.root];
        roots.extend(self.other.iter().map(|other| &other.root));
        roots
    }

    /// The root, signed by the other one of a roll-over.
    fn cross(&self) -> Option<&Certificate> {
        self.other.as_ref().and_then(|other| other.cross.as_ref())
    }

    /// The root certificate in PEM, for callers to trust.
    pub fn root_pem(&self) -> &str {
        &self.root_pem
    }

    /// End of the root's validity.
    pub fn root_not_after(&self) -> SystemTime {
        self.root.facts.not_after
    }

    /// End of the intermediate's validity; `None` while there is no usable one.
    pub fn intermediate_not_after(&self) -> Option<SystemTime> {
        self.intermediate
            .as_ref()
            .ok()
            .map(|intermediate| intermediate.facts.not_after)
    }

    fn refuse_outside_root(&self, hosts: &[HostName]) -> Result<(), PkiError> {
        let outside: Vec<String> = hosts
            .iter()
            .filter(|host| !self.root.permits(host))
            .map(|host| host.as_str().to_owned())
            .collect();
        if outside.is_empty() {
            return Ok(());
        }
        Err(PkiError::OutsideRoot {
            hosts: outside,
            permitted: self.permitted().to_vec(),
        })
    }

    fn need(&self, hosts: &[HostName], now: SystemTime) -> Need {
        let intermediate = match &self.intermediate {
            Ok(intermediate) => intermediate,
            Err(problem) => return Need::Now(format!("intermediate.pem {problem}")),
        };
        let outside: Vec<String> = hosts
            .iter()
            .filter(|host| !intermediate.permits(host))
            .map(|host| host.as_str().to_owned())
            .collect();
        if !outside.is_empty() {
            return Need::Now(format!(
                "the intermediate does not permit {}",
                List(&outside)
            ));
        }
        let until = intermediate.facts.not_after;
        if until <= now {
            return Need::Now(format!("the intermediate expired on {}", x509::day(until)));
        }
        // The root's end bounds the intermediate's, so there a new one would gain nothing.
        let begun = intermediate.facts.not_before + BACKDATE;
        if now >= renew_at(begun, until) && until < self.root.facts.not_after {
            return Need::Renewal { until };
        }
        Need::Nothing { until }
    }

    fn replace_intermediate(
        &mut self,
        hosts: &[HostName],
        now: SystemTime,
        reason: &str,
    ) -> Result<(), PkiError> {
        let path = self.dir.root_key();
        let (root_key, _) = match read_key(&path, self.passphrase.as_ref()) {
            Err(PkiError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Err(PkiError::RootKeyMissing {
                    path,
                    reason: reason.to_owned(),
                });
            }
            key => key?,
        };
        if key_hash(&root_key) != self.root.facts.key {
            return Err(PkiError::file(
                &path,
                "does not belong to root.pem",
                "bring back the root.key that was made with it",
            ));
        }
        let permitted = intermediate_names(hosts, self.permitted());
        let (certificate, key) = make_intermediate(&self.root, &root_key, permitted, now)?;
        let text = key_pem(&key, self.passphrase.as_ref())?;
        write_intermediate(&self.dir, &certificate, &text, &mut self.state, now)?;
        self.intermediate = Ok(certificate);
        self.opened = Some(Arc::new(key));
        Ok(())
    }
}

/// What [`Authority::coverage`] found. `Display` says it with the cures, one line per kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    /// Hosts that need a new root.
    pub outside_root: Vec<String>,
    /// Hosts that need another intermediate only: [`Authority::ensure_intermediate`] makes it.
    pub outside_intermediate: Vec<String>,
    /// Hosts that cannot stand in a certificate, and why.
    pub invalid: Vec<(String, String)>,
    permitted: Vec<String>,
}

impl Coverage {
    /// Whether every host can have a certificate right away.
    pub fn is_complete(&self) -> bool {
        self.outside_root.is_empty()
            && self.outside_intermediate.is_empty()
            && self.invalid.is_empty()
    }

    /// Whether every host can have a certificate without trusting anything anew.
    pub fn is_reachable(&self) -> bool {
        self.outside_root.is_empty() && self.invalid.is_empty()
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut lines = Vec::new();
        for (host, problem) in &self.invalid {
            lines.push(format!("host name `{host}`: {problem}"));
        }
        if !self.outside_root.is_empty() {
            lines.push(format!(
                "{}: outside the domains that the root certificate permits ({}); needs a new root: \
                 `claviger ca init --force --permit ...` with all domains (adding constraints \
                 later would mean re-trusting everywhere, so name them all now)",
                List(&self.outside_root),
                List(&self.permitted),
            ));
        }
        if !self.outside_intermediate.is_empty() {
            lines.push(format!(
                "{}: not yet permitted by the intermediate certificate; `claviger run` re-issues \
                 it if root.key is present, and no caller needs to trust anything anew",
                List(&self.outside_intermediate),
            ));
        }
        f.write_str(&lines.join("\n"))
    }
}

/// What [`Authority::ensure_intermediate`] did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ensured {
    /// The intermediate serves as it is.
    Kept {
        /// End of its validity.
        until: SystemTime,
    },
    /// It serves, but should be renewed, and could not be: warn the operator.
    KeptButDue {
        /// End of its validity: from then on no certificate verifies.
        until: SystemTime,
        /// Why it could not be renewed, with the cure.
        why: String,
    },
    /// There is a new one; leaves of the former one stay valid until their own end.
    Reissued {
        /// Why it was needed.
        reason: String,
        /// The domains that it permits.
        permitted: Vec<String>,
        /// End of its validity.
        until: SystemTime,
    },
}

impl fmt::Display for Ensured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Ensured::Kept { until } => {
                write!(
                    f,
                    "intermediate certificate serves until {}",
                    x509::day(*until)
                )
            }
            Ensured::KeptButDue { until, why } => write!(
                f,
                "intermediate certificate should be renewed before {}, and could not be: {why}",
                x509::day(*until)
            ),
            Ensured::Reissued {
                reason,
                permitted,
                until,
            } => write!(
                f,
                "intermediate certificate re-issued ({reason}): permits {}, serves until {}",
                List(permitted),
                x509::day(*until)
            ),
        }
    }
}

/// Which kind of key a certificate gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum KeyType {
    /// ECDSA over P-256: every client of the last ten years, and ten times cheaper to sign with.
    #[default]
    Ecdsa,
    /// RSA, for older clients: 3,072 bits for authorities, 2,048 for leaves.
    Rsa,
}

impl KeyType {
    pub(super) fn generate_ca_key(self) -> Result<Zeroizing<KeyPair>, PkiError> {
        self.generate(RsaKeySize::_3072)
    }

    pub(super) fn generate_leaf_key(self) -> Result<Zeroizing<KeyPair>, PkiError> {
        self.generate(RsaKeySize::_2048)
    }

    fn generate(self, rsa: RsaKeySize) -> Result<Zeroizing<KeyPair>, PkiError> {
        let key = match self {
            KeyType::Ecdsa => KeyPair::generate(),
            KeyType::Rsa => KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, rsa),
        };
        key.map(Zeroizing::new)
            .map_err(PkiError::crypto("generate a key"))
    }
}

impl FromStr for KeyType {
    type Err = String;

    fn from_str(text: &str) -> Result<KeyType, String> {
        match text {
            "ecdsa" => Ok(KeyType::Ecdsa),
            "rsa" => Ok(KeyType::Rsa),
            _ => Err("expected `ecdsa` or `rsa`".to_owned()),
        }
    }
}

impl fmt::Display for KeyType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            KeyType::Ecdsa => "ecdsa",
            KeyType::Rsa => "rsa",
        })
    }
}

/// Arguments of `claviger ca init`.
#[derive(Clone, Debug)]
pub struct InitOptions {
    /// The directory to make, or an empty one.
    pub dir: PathBuf,
    /// Domains that the root permits, each with every name under it. At least one.
    pub permit: Vec<String>,
    /// Hosts to limit the intermediate to; if there are none, it permits what the root permits.
    pub hosts: Vec<String>,
    /// Kind of the authority's keys.
    pub key_type: KeyType,
    /// Replace an authority that is there; its files are moved aside, not deleted.
    pub force: bool,
    /// What the keys are encrypted under at rest.
    pub passphrase: Option<Passphrase>,
    /// The time now.
    pub now: SystemTime,
}

/// Makes a root and an intermediate, and writes them with their keys.
///
/// # Errors
/// No or unfit domains, hosts outside of them, files in the way (without `force`), or a directory
/// that cannot be written.
pub fn init(options: &InitOptions) -> Result<InitReport, PkiError> {
    let permitted = permitted_domains(&options.permit)?;
    let hosts = HostName::parse_all(&options.hosts)?;
    let outside: Vec<String> = hosts
        .iter()
        .filter(|host| !permitted.iter().any(|domain| host.is_within(domain)))
        .map(|host| host.as_str().to_owned())
        .collect();
    if !outside.is_empty() {
        return Err(PkiError::Host {
            host: outside.join(", "),
            problem: format!(
                "outside the permitted domains ({}); name its domain by a further `--permit`",
                List(&permitted)
            ),
        });
    }

    let dir = CaDir::new(&options.dir);
    dir.create()?;
    let _lock = dir.lock()?;
    let occupied = dir.occupied();
    if let Some(path) = &occupied
        && !options.force
    {
        return Err(PkiError::Exists {
            path: path.clone(),
            cure: "give `--force` for a new root, which every machine must then trust anew (the \
                   old files are moved aside)"
                .to_owned(),
        });
    }

    let root_key = options.key_type.generate_ca_key()?;
    let root = make_root(&root_key, &permitted, options.now)?;
    let names = intermediate_names(&hosts, &permitted);
    let (intermediate, key) = make_intermediate(&root, &root_key, names, options.now)?;
    let passphrase = options.passphrase.as_ref();
    let root_key_pem = key_pem(&root_key, passphrase)?;
    let key_text = key_pem(&key, passphrase)?;

    // Machines may trust a former root for years: its keys stay known as ours.
    let mut state = dir.read_state().unwrap_or_default();
    if let Ok(former) = Certificate::read(&dir.root_pem()) {
        state.remember(
            Role::Root,
            &former.facts.key,
            former.facts.not_after,
            options.now,
        );
    }
    state.remember(
        Role::Root,
        &root.facts.key,
        root.facts.not_after,
        options.now,
    );
    let set_aside = match occupied {
        Some(_) => Some(dir.set_aside(options.now)?),
        None => None,
    };
    write_atomic(
        &dir.root_key(),
        root_key_pem.as_bytes(),
        KEY_MODE,
        Existing::Keep,
    )?;
    write_intermediate(&dir, &intermediate, &key_text, &mut state, options.now)?;
    // Last, since a directory with a root is taken for complete.
    let root_pem = x509::to_pem(&root.der);
    write_atomic(
        &dir.root_pem(),
        root_pem.as_bytes(),
        CERT_MODE,
        Existing::Keep,
    )?;
    Ok(InitReport {
        dir: options.dir.clone(),
        permitted,
        intermediate_permitted: intermediate.facts.permitted,
        root_not_after: root.facts.not_after,
        intermediate_not_after: intermediate.facts.not_after,
        fingerprint: x509::fingerprint(&root.der),
        set_aside,
    })
}

/// What [`init`] made. `Display` tells it on a terminal, with the next steps.
#[derive(Clone, Debug)]
pub struct InitReport {
    /// The directory.
    pub dir: PathBuf,
    /// The domains that the root permits.
    pub permitted: Vec<String>,
    /// The domains that the intermediate permits.
    pub intermediate_permitted: Vec<String>,
    /// End of the root's validity.
    pub root_not_after: SystemTime,
    /// End of the intermediate's validity.
    pub intermediate_not_after: SystemTime,
    /// SHA-256 of the root certificate, `AB:CD:...`.
    pub fingerprint: String,
    /// Where the files of a replaced authority went.
    pub set_aside: Option<PathBuf>,
}

impl fmt::Display for InitReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dir = self.dir.display();
        if let Some(aside) = &self.set_aside {
            writeln!(f, "Moved the former authority to {}", aside.display())?;
        }
        writeln!(f, "Made a certificate authority in {dir}")?;
        writeln!(
            f,
            "  root          permits {} and every name under it, no IP address; until {}",
            self.permitted.join(", "),
            x509::day(self.root_not_after)
        )?;
        writeln!(
            f,
            "  intermediate  permits {}; until {}",
            List(&self.intermediate_permitted),
            x509::day(self.intermediate_not_after)
        )?;
        writeln!(f, "  SHA-256       {}", self.fingerprint)?;
        writeln!(
            f,
            "Next: trust {dir}/root.pem on the machines that call through Claviger."
        )?;
        write!(
            f,
            "{dir}/root.key is needed only to admit further hosts and to renew the intermediate: \
             it may be kept offline in between."
        )
    }
}

/// Arguments of `claviger ca issue`.
#[derive(Clone, Debug)]
pub struct IssueOptions {
    /// The authority's directory.
    pub dir: PathBuf,
    /// The names of the certificate; the first one also names the files.
    pub hosts: Vec<String>,
    /// The directory to write to; the working directory if `None`.
    pub out: Option<PathBuf>,
    /// Kind of the key.
    pub key_type: KeyType,
    /// Life in days; [`LEAF_DAYS_DEFAULT`] is a good choice.
    pub days: u32,
    /// Replace files that are there.
    pub force: bool,
    /// What opens the authority's keys. The certificate's own key is written as it is, for a server
    /// that has no passphrase.
    pub passphrase: Option<Passphrase>,
    /// The time now.
    pub now: SystemTime,
}

impl IssueOptions {
    /// The usual certificate for these hosts, into the working directory.
    pub fn new(dir: PathBuf, hosts: Vec<String>, now: SystemTime) -> IssueOptions {
        IssueOptions {
            dir,
            hosts,
            out: None,
            key_type: KeyType::default(),
            days: LEAF_DAYS_DEFAULT,
            force: false,
            passphrase: None,
            now,
        }
    }
}

/// Writes a server certificate with its chain (`HOST.pem`) and its key (`HOST.key`, mode 0600);
/// a wildcard's files are called `wildcard.example.com.*`. Nothing renews these files.
///
/// # Errors
/// As [`Authority::ensure_intermediate`]; files in the way, without `force`.
pub fn issue(options: &IssueOptions) -> Result<IssueReport, PkiError> {
    let mut authority = Authority::load(&options.dir, options.passphrase.as_ref())?;
    // Names that were admitted before stay admitted.
    let mut admitted = authority.intermediate_permitted().to_vec();
    admitted.extend(options.hosts.iter().cloned());
    let ensured = authority.ensure_intermediate(&admitted, options.now)?;
    let made = authority.leaf_issuer()?.make(
        &options.hosts,
        options.key_type,
        DAY * options.days.max(1),
        options.now,
    )?;

    let stem = HostName::parse(&options.hosts[0])?
        .as_str()
        .replace('*', "wildcard");
    let out = options.out.clone().unwrap_or_else(|| PathBuf::from("."));
    let certificate = out.join(format!("{stem}.pem"));
    let key = out.join(format!("{stem}.key"));
    let existing = if options.force {
        Existing::Replace
    } else {
        Existing::Keep
    };
    if !options.force
        && let Some(path) = [&certificate, &key].into_iter().find(|it| it.exists())
    {
        return Err(PkiError::Exists {
            path: path.clone(),
            cure: "give `--force` to replace it".to_owned(),
        });
    }
    let chain: String = made.chain.iter().map(|der| x509::to_pem(der)).collect();
    write_atomic(
        &key,
        key_pem(&made.key, None)?.as_bytes(),
        KEY_MODE,
        existing,
    )?;
    write_atomic(&certificate, chain.as_bytes(), CERT_MODE, existing)?;
    Ok(IssueReport {
        certificate,
        key,
        hosts: options.hosts.clone(),
        not_after: made.not_after,
        ensured,
    })
}

/// What [`issue`] wrote.
#[derive(Clone, Debug)]
pub struct IssueReport {
    /// Leaf and intermediate, in PEM.
    pub certificate: PathBuf,
    /// The private key, in PEM.
    pub key: PathBuf,
    /// The names.
    pub hosts: Vec<String>,
    /// End of the leaf's validity.
    pub not_after: SystemTime,
    /// What became of the intermediate on the way.
    pub ensured: Ensured,
}

impl fmt::Display for IssueReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !matches!(self.ensured, Ensured::Kept { .. }) {
            writeln!(f, "{}", self.ensured)?;
        }
        write!(
            f,
            "Issued a certificate for {} until {}\n  certificate  {}\n  key          {}",
            List(&self.hosts),
            x509::day(self.not_after),
            self.certificate.display(),
            self.key.display()
        )
    }
}

/// Arguments of `claviger ca encrypt` and `claviger ca decrypt`.
#[derive(Clone, Debug)]
pub struct RekeyOptions {
    /// The authority's directory.
    pub dir: PathBuf,
    /// What the keys are encrypted under now; keys that are not encrypted need none.
    pub old: Option<Passphrase>,
    /// What they are to be encrypted under; `None` leaves them plain.
    pub new: Option<Passphrase>,
}

/// Writes every private key that is in the directory anew, under another passphrase or none. The
/// keys themselves stay, and so do all certificates.
///
/// # Errors
/// As [`Authority::load`]; a key that cannot be opened or written, and then none was changed that
/// comes behind it in the report.
pub fn rekey(options: &RekeyOptions) -> Result<RekeyReport, PkiError> {
    let dir = CaDir::new(&options.dir);
    // Not any directory with files of these names.
    Authority::load(&options.dir, options.old.as_ref())?;
    let _lock = dir.lock()?;
    let mut keys = Vec::new();
    for path in dir.keys() {
        match read_key(&path, options.old.as_ref()) {
            Err(PkiError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            key => keys.push((path, key?.0)),
        }
    }
    for (path, key) in &keys {
        let text = key_pem(key, options.new.as_ref())?;
        write_atomic(path, text.as_bytes(), KEY_MODE, Existing::Replace)?;
    }
    Ok(RekeyReport {
        keys: keys.into_iter().map(|(path, _)| path).collect(),
        encrypted: options.new.is_some(),
    })
}

/// What [`rekey`] did.
#[derive(Clone, Debug)]
pub struct RekeyReport {
    /// The keys that were written.
    pub keys: Vec<PathBuf>,
    /// Whether they are encrypted now.
    pub encrypted: bool,
}

impl fmt::Display for RekeyReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.encrypted {
            true => "encrypted under the passphrase",
            false => "not encrypted",
        };
        for path in &self.keys {
            writeln!(f, "{}: {state}", path.display())?;
        }
        match self.encrypted {
            true => f.write_str(
                "Name the passphrase in [ca] `passphrase` before the next start. Copies of the \
                 keys as they were, in backups say, are as open as before.",
            ),
            false => f.write_str("Whoever reads these files can sign with them."),
        }
    }
}

/// The root that is to come, or that was, in a roll-over.
#[derive(Clone, Debug)]
pub(super) struct OtherRoot {
    pub(super) which: Which,
    pub(super) root: Certificate,
    /// The root in use, signed by this one. None where this one permits no authority that far
    /// below it.
    cross: Option<Certificate>,
}

/// Which root the other one is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Which {
    /// It will be the one in use.
    Next,
    /// It was.
    Former,
}

impl Which {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Which::Next => "next",
            Which::Former => "former",
        }
    }
}

impl OtherRoot {
    /// Whether whoever trusts it alone verifies what is served.
    pub(super) fn has_cross(&self) -> bool {
        self.cross.is_some()
    }

    /// A roll-over was begun when its root is there: that is written last.
    fn read(dir: &CaDir, root: &Certificate) -> Result<Option<OtherRoot>, PkiError> {
        for which in [Which::Next, Which::Former] {
            let path = dir.other_root(which.as_str(), "root.pem");
            let other = match Certificate::read(&path) {
                Err(PkiError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                    continue;
                }
                other => other?,
            };
            let path = dir.other_root(which.as_str(), "cross.pem");
            let cross = match Certificate::read(&path) {
                Err(PkiError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                    None
                }
                cross => Some(cross?),
            };
            // What does not fit together (a crash in the middle of a switch) is of no use to anyone.
            let cross = cross.filter(|cross| {
                cross.facts.key == root.facts.key && x509::is_issued_by(&cross.der, &other.der)
            });
            return Ok(Some(OtherRoot {
                which,
                root: other,
                cross,
            }));
        }
        Ok(None)
    }
}

/// A certificate and what it says.
#[derive(Clone, Debug)]
pub(super) struct Certificate {
    pub(super) der: CertificateDer<'static>,
    pub(super) facts: Facts,
}

impl Certificate {
    fn new(der: CertificateDer<'static>) -> Result<Certificate, &'static str> {
        let facts = x509::facts(&der)?;
        Ok(Certificate { der, facts })
    }

    pub(super) fn read(path: &Path) -> Result<Certificate, PkiError> {
        let mut certificates = read_certificates(path, CERT_BYTES_MAX)?;
        if certificates.len() > 1 {
            return Err(PkiError::file(
                path,
                "holds more than one certificate",
                "leave the authority's own certificate alone in it",
            ));
        }
        Certificate::new(certificates.remove(0))
            .map_err(|problem| PkiError::file(path, problem, PEM_CURE))
    }

    fn permits(&self, host: &HostName) -> bool {
        self.facts
            .permitted
            .iter()
            .any(|domain| host.is_within(domain))
    }
}

/// What has to be done about the intermediate.
enum Need {
    Nothing { until: SystemTime },
    Renewal { until: SystemTime },
    Now(String),
}

/// A pair on disk that does not fit together (a crash between two renames) counts as none: it is
/// simply made again.
///
/// A key that took a passphrase to open is left in `opened`.
fn read_intermediate(
    dir: &CaDir,
    root: &Certificate,
    passphrase: Option<&Passphrase>,
    opened: &mut Option<Arc<Zeroizing<KeyPair>>>,
) -> Result<Certificate, String> {
    *opened = None;
    let certificate = Certificate::read(&dir.intermediate_pem()).map_err(|err| match err {
        PkiError::Io { source, .. } => format!("cannot be read ({source})"),
        PkiError::File { problem, .. } => problem,
        other => other.to_string(),
    })?;
    if !x509::is_issued_by(&certificate.der, &root.der) {
        return Err("was not issued by root.pem".to_owned());
    }
    match read_key(&dir.intermediate_key(), passphrase) {
        Ok((key, _)) if key_hash(&key) != certificate.facts.key => {
            Err("does not belong to intermediate.key".to_owned())
        }
        Ok((key, AtRest::Encrypted)) => {
            *opened = Some(Arc::new(key));
            Ok(certificate)
        }
        Err(PkiError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            Err("has no intermediate.key beside it".to_owned())
        }
        // A key that we may not read is reported when it is needed, by `leaf_issuer`.
        _ => Ok(certificate),
    }
}

/// How a key lies on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AtRest {
    Plain,
    Encrypted,
}

pub(super) fn read_key(
    path: &Path,
    passphrase: Option<&Passphrase>,
) -> Result<(Zeroizing<KeyPair>, AtRest), PkiError> {
    const CURE: &str = "expected one private key in PEM, as `claviger ca init` wrote it";
    const UNUSABLE: &str = "holds a private key that cannot be used";
    let pem = read_bounded(path, KEY_BYTES_MAX, Privacy::NotWorld)?;
    if let Some(sealed) = x509::encrypted_key_from_pem(&pem) {
        let Some(passphrase) = passphrase else {
            return Err(PkiError::file(
                path,
                "is encrypted, and no passphrase was given",
                "name it by `passphrase` in [ca], or by --passphrase: `file:///path`, \
                 `credential://NAME` or `env://NAME`",
            ));
        };
        let der = passphrase.open(&sealed).map_err(|sealed| {
            let (problem, cure) = sealed.explain();
            PkiError::file(path, problem, cure)
        })?;
        let der = Zeroizing::new(PrivateKeyDer::from(PrivatePkcs8KeyDer::from(der.to_vec())));
        // A passphrase that is wrong leaves, once in 256 times, a padding that looks right.
        let (problem, cure) = Sealed::Wrong.explain();
        return KeyPair::try_from(&*der)
            .map(|key| (Zeroizing::new(key), AtRest::Encrypted))
            .map_err(|_| PkiError::file(path, problem, cure));
    }
    let der = PrivateKeyDer::from_pem_slice(&pem)
        .map(Zeroizing::new)
        .map_err(|_| PkiError::file(path, "holds no private key", CURE))?;
    KeyPair::try_from(&*der)
        .map(|key| (Zeroizing::new(key), AtRest::Plain))
        .map_err(|_| PkiError::file(path, UNUSABLE, CURE))
}

pub(super) fn key_hash(key: &KeyPair) -> x509::KeyHash {
    x509::key_hash(&key.subject_public_key_info())
}

pub(super) fn key_pem(
    key: &KeyPair,
    passphrase: Option<&Passphrase>,
) -> Result<Zeroizing<String>, PkiError> {
    match passphrase {
        None => Ok(x509::key_to_pem(key.serialized_der())),
        Some(passphrase) => passphrase.seal(key.serialized_der()),
    }
}

pub(super) fn write_intermediate(
    dir: &CaDir,
    certificate: &Certificate,
    key_pem: &str,
    state: &mut State,
    now: SystemTime,
) -> Result<(), PkiError> {
    // Remembered before it is used, so that a crash leaves no key of ours unknown.
    state.remember(
        Role::Intermediate,
        &certificate.facts.key,
        certificate.facts.not_after,
        now,
    );
    dir.write_state(state)?;
    write_atomic(
        &dir.intermediate_key(),
        key_pem.as_bytes(),
        KEY_MODE,
        Existing::Replace,
    )?;
    let pem = x509::to_pem(&certificate.der);
    write_atomic(
        &dir.intermediate_pem(),
        pem.as_bytes(),
        CERT_MODE,
        Existing::Replace,
    )
}

pub(super) fn make_root(
    key: &KeyPair,
    permitted: &[String],
    now: SystemTime,
) -> Result<Certificate, PkiError> {
    let mut params = ca_params("Root", permitted, now, now + ROOT_LIFE)?;
    // An intermediate below, in a roll-over behind the other root, and nothing below that.
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(ROOT_PATH_LEN));
    let root = params
        .self_signed(key)
        .map_err(PkiError::crypto("sign the root certificate"))?;
    reread(root)
}

pub(super) fn make_intermediate(
    root: &Certificate,
    root_key: &KeyPair,
    permitted: Vec<String>,
    now: SystemTime,
) -> Result<(Certificate, Zeroizing<KeyPair>), PkiError> {
    if now >= root.facts.not_after {
        return Err(PkiError::Expired {
            path: "root.pem".into(),
            what: "root",
            on: x509::day(root.facts.not_after),
            cure: "make a new one by `claviger ca init --force`, and trust it everywhere",
        });
    }
    // The same kind of key as the root's.
    let key_type = match root_key.algorithm() == &PKCS_RSA_SHA256 {
        true => KeyType::Rsa,
        false => KeyType::Ecdsa,
    };
    let key = key_type.generate_ca_key()?;
    let not_after = root.facts.not_after.min(now + INTERMEDIATE_LIFE);
    let mut params = ca_params("Intermediate", &permitted, now, not_after)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.use_authority_key_identifier_extension = true;
    let issuer = Issuer::from_ca_cert_der(&root.der, root_key)
        .map_err(PkiError::crypto("read the root certificate"))?;
    let intermediate = params
        .signed_by(&*key, &issuer)
        .map_err(PkiError::crypto("sign the intermediate certificate"))?;
    Ok((reread(intermediate)?, key))
}

/// `subject`, a root of ours, signed by `issuer`, another one: whoever trusts the issuer alone gets
/// from there to the subject's intermediate.
pub(super) fn cross_sign(
    subject: &Certificate,
    subject_key: &KeyPair,
    issuer: &Certificate,
    issuer_key: &KeyPair,
    now: SystemTime,
) -> Result<Certificate, PkiError> {
    let not_after = subject.facts.not_after.min(issuer.facts.not_after);
    let mut params = ca_params("Root", &subject.facts.permitted, now, not_after)?;
    params.distinguished_name = distinguished_name(&subject.facts.subject);
    // Addresses are excluded above and below. Java's merging of two such lists, with both kinds of
    // addresses, ends in an exception (17: "Index 8 out of bounds"), so this one has names alone.
    if let Some(constraints) = &mut params.name_constraints {
        constraints.excluded_subtrees.clear();
    }
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    params.use_authority_key_identifier_extension = true;
    let issuer = Issuer::from_ca_cert_der(&issuer.der, issuer_key)
        .map_err(PkiError::crypto("read the root certificate"))?;
    let cross = params
        .signed_by(subject_key, &issuer)
        .map_err(PkiError::crypto("sign the other root"))?;
    let cross = reread(cross)?;
    // Otherwise nobody would find a way through it.
    match cross.facts.key == subject.facts.key && x509::same_subject(&cross.der, &subject.der) {
        true => Ok(cross),
        false => Err(PkiError::Crypto {
            action: "sign the other root",
            problem: "it is not named as those that this program makes".to_owned(),
        }),
    }
}

fn distinguished_name(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, "Claviger");
    name.push(DnType::CommonName, common_name);
    name
}

/// What root and intermediate have in common.
fn ca_params(
    role: &str,
    permitted: &[String],
    now: SystemTime,
    not_after: SystemTime,
) -> Result<CertificateParams, PkiError> {
    let serial = random_serial()?;
    // Verifiers look issuers up by name. A new certificate with a new key gets a new name, so that
    // nothing cached of a former one is taken for it.
    let id: String = serial
        .as_ref()
        .iter()
        .take(4)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let mut params = CertificateParams::default();
    params.not_before = (now - BACKDATE).into();
    params.not_after = not_after.into();
    params.serial_number = Some(serial);
    params.distinguished_name = distinguished_name(&format!("Claviger {role} CA {id}"));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    // Verifiers nest these: nothing below serves for anything but TLS servers.
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.name_constraints = Some(NameConstraints {
        permitted_subtrees: permitted
            .iter()
            .cloned()
            .map(GeneralSubtree::DnsName)
            .collect(),
        // A constraint on DNS names says nothing of addresses: those are excluded, all of them.
        excluded_subtrees: vec![
            GeneralSubtree::IpAddress(CidrSubnet::V4([0; 4], [0; 4])),
            GeneralSubtree::IpAddress(CidrSubnet::V6([0; 16], [0; 16])),
        ],
    });
    Ok(params)
}

/// Reads back what was signed, so that what we report is what is in it.
fn reread(certificate: rcgen::Certificate) -> Result<Certificate, PkiError> {
    Certificate::new(certificate.into()).map_err(|problem| PkiError::Crypto {
        action: "read the new certificate back",
        problem: problem.to_owned(),
    })
}

/// The domains of `--permit`, without those that another one covers.
pub(super) fn permitted_domains(permit: &[String]) -> Result<Vec<String>, PkiError> {
    let domains = HostName::parse_all(permit)?;
    if domains.is_empty() {
        return Err(PkiError::Host {
            host: String::new(),
            problem: "no permitted domain; give at least one `--permit DOMAIN`, since the root \
                      is limited for good"
                .to_owned(),
        });
    }
    for domain in &domains {
        let base = domain.base();
        if !base.contains('.') && !PRIVATE_LABELS.contains(&base) {
            return Err(PkiError::Host {
                host: base.to_owned(),
                problem: "is a whole top-level domain: the root could speak for every site under \
                          it; name the domains that you call, such as example.com"
                    .to_owned(),
            });
        }
    }
    Ok(minimal_cover(domains.iter().map(HostName::base)))
}

/// The intermediate's constraints: the hosts, or what the root permits if there are none or more
/// than a certificate that travels with each handshake should carry.
fn intermediate_names(hosts: &[HostName], permitted: &[String]) -> Vec<String> {
    let names = minimal_cover(hosts.iter().map(HostName::base));
    match names.len() {
        0 => permitted.to_vec(),
        1..=INTERMEDIATE_NAMES_MAX => names,
        _ => permitted
            .iter()
            .filter(|domain| hosts.iter().any(|host| host.is_within(domain)))
            .cloned()
            .collect(),
    }
}

/// Names of one label that are nobody's on the Internet (RFC 6761, RFC 6762, RFC 8375's family,
/// ICANN's `internal`) or are in use within organisations; any other would be a public suffix.
const PRIVATE_LABELS: [&str; 11] = [
    "internal",
    "intranet",
    "private",
    "corp",
    "home",
    "lan",
    "local",
    "localhost",
    "test",
    "example",
    "invalid",
];

/// Authorities below a root: the other root of a roll-over, and the intermediate below that.
pub(super) const ROOT_PATH_LEN: u8 = 2;

/// More hosts than this, and the intermediate permits the root's domains that hold them: its
/// constraints go over the wire with each full handshake, at some 20 bytes a name.
const INTERMEDIATE_NAMES_MAX: usize = 64;

const DAY: Duration = Duration::from_secs(86_400);
/// Callers trust it by hand, so it lives long.
const ROOT_LIFE: Duration = DAY.saturating_mul(3_652);
/// Its key lives in the running proxy, so it lives shorter.
const INTERMEDIATE_LIFE: Duration = DAY.saturating_mul(730);

const REISSUE_CURE: &str =
    "`claviger run` and `claviger ca issue` re-issue the intermediate where root.key is present";
