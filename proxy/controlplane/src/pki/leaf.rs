//! Server certificates from the intermediate: [`LeafIssuer`] makes one, [`LeafStore`] keeps them
//! in memory and knows when they are due.
//!
//! Private keys of these leaves are never written to disk: after a restart there are new ones,
//! which no caller notices, since callers trust the root. Time is an argument throughout.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, SerialNumber,
};
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use zeroize::Zeroizing;

use super::authority::KeyType;
use super::name::HostName;
use super::x509;
use super::{CertificateKind, Expiry, PkiError};

/// Leaves by the names that they hold, kept across reloads.
#[derive(Debug)]
pub struct LeafStore {
    issuer: Arc<LeafIssuer>,
    life: Duration,
    leaves: HashMap<(Vec<String>, KeyType), Leaf>,
}

impl LeafStore {
    /// An empty store, whose leaves shall live for `life`.
    pub fn new(issuer: LeafIssuer, life: Duration) -> LeafStore {
        LeafStore {
            issuer: Arc::new(issuer),
            life,
            leaves: HashMap::new(),
        }
    }

    /// Issues from here on with another intermediate, or for another life. Former leaves are
    /// dropped then, so that the next [`LeafStore::leaf`] makes them anew; nothing changes if both
    /// are the same.
    pub fn replace_issuer(&mut self, issuer: LeafIssuer, life: Duration) {
        let is_other =
            issuer.intermediate != self.issuer.intermediate || issuer.cross != self.issuer.cross;
        if is_other || life != self.life {
            self.leaves.clear();
        }
        self.life = life;
        self.issuer = Arc::new(issuer);
    }

    /// The certificate for these names: the one that was made before, or a new one if there is
    /// none or its renewal is due. If renewing fails, a former one serves until it expires.
    ///
    /// # Errors
    /// A name that the intermediate does not permit, an expired intermediate, or names that are
    /// no DNS names.
    pub fn leaf(
        &mut self,
        hosts: &[String],
        key_type: KeyType,
        now: SystemTime,
    ) -> Result<Arc<CertifiedKey>, PkiError> {
        let id = (hosts.to_vec(), key_type);
        let former = self.leaves.get(&id);
        if let Some(leaf) = former
            && now < leaf.renew_at
        {
            return Ok(Arc::clone(&leaf.certified));
        }
        match self.issuer.issue(hosts, key_type, self.life, now) {
            Ok(leaf) => {
                let certified = Arc::clone(&leaf.certified);
                self.leaves.insert(id, leaf);
                Ok(certified)
            }
            Err(err) => match former {
                Some(leaf) if now < leaf.not_after => {
                    tracing::warn!(
                        host = hosts.first().map_or("", String::as_str),
                        until = x509::day(leaf.not_after),
                        "server certificate not renewed, the former one serves on: {err}"
                    );
                    Ok(Arc::clone(&leaf.certified))
                }
                _ => Err(err),
            },
        }
    }

    /// Whether some leaf should be made anew. Then rebuild whatever took keys from this store.
    pub fn renew_due(&self, now: SystemTime) -> bool {
        self.next_renewal().is_some_and(|due| due <= now)
    }

    /// When the next leaf is due; `None` while the store is empty.
    pub fn next_renewal(&self) -> Option<SystemTime> {
        self.leaves.values().map(|leaf| leaf.renew_at).min()
    }

    /// When the first leaf would stop serving if nothing were renewed.
    pub fn expires_at(&self) -> Option<SystemTime> {
        self.leaves.values().map(|leaf| leaf.not_after).min()
    }

    /// Until when each leaf serves.
    pub fn expiries(&self) -> impl Iterator<Item = Expiry> {
        self.leaves.iter().map(|((hosts, _), leaf)| Expiry {
            kind: CertificateKind::Leaf,
            name: hosts.first().cloned().unwrap_or_default(),
            not_before: leaf.made,
            not_after: leaf.not_after,
        })
    }

    /// Forgets leaves whose names are no longer configured.
    pub fn retain(&mut self, hosts_in_use: impl Fn(&[String]) -> bool) {
        self.leaves.retain(|(hosts, _), _| hosts_in_use(hosts));
    }
}

/// Signs leaves with the intermediate's key, which it holds in memory.
pub struct LeafIssuer {
    intermediate: CertificateDer<'static>,
    /// Sent behind it during a roll-over: the root, signed by the other one.
    cross: Option<CertificateDer<'static>>,
    permitted: Vec<String>,
    not_after: SystemTime,
    key: Arc<Zeroizing<KeyPair>>,
}

impl LeafIssuer {
    /// Takes an intermediate and its key, which must belong together.
    pub(super) fn new(
        intermediate: CertificateDer<'static>,
        cross: Option<CertificateDer<'static>>,
        facts: &x509::Facts,
        key: Arc<Zeroizing<KeyPair>>,
    ) -> LeafIssuer {
        LeafIssuer {
            intermediate,
            cross,
            permitted: facts.permitted.clone(),
            not_after: facts.not_after,
            key,
        }
    }

    /// Makes a certificate for these names, valid for `life` (less if the intermediate ends
    /// earlier), dated back by an hour for callers whose clocks are slow.
    ///
    /// # Errors
    /// No name or one that is no DNS name, names outside the intermediate's, or an intermediate
    /// that has expired.
    pub fn issue(
        &self,
        hosts: &[String],
        key_type: KeyType,
        life: Duration,
        now: SystemTime,
    ) -> Result<Leaf, PkiError> {
        let made = self.make(hosts, key_type, life, now)?;
        let der = Zeroizing::new(PrivateKeyDer::from(PrivatePkcs8KeyDer::from(
            made.key.serialized_der().to_vec(),
        )));
        let key = any_supported_type(&der).map_err(PkiError::tls("load the new key"))?;
        let certified = CertifiedKey::new(made.chain, key);
        certified
            .keys_match()
            .map_err(PkiError::tls("match the new key with its certificate"))?;
        Ok(Leaf {
            certified: Arc::new(certified),
            made: now,
            not_after: made.not_after,
            renew_at: renew_at(now, made.not_after),
        })
    }

    /// As [`LeafIssuer::issue`], with a key that can be written to a file.
    pub(super) fn make(
        &self,
        hosts: &[String],
        key_type: KeyType,
        life: Duration,
        now: SystemTime,
    ) -> Result<MadeLeaf, PkiError> {
        // In the order given: the first one is the name that a person reads.
        let mut seen = HashSet::new();
        let mut hosts = hosts
            .iter()
            .map(|host| HostName::parse(host))
            .collect::<Result<Vec<_>, _>>()?;
        hosts.retain(|host| seen.insert(host.clone()));
        let Some(first) = hosts.first() else {
            return Err(PkiError::Host {
                host: String::new(),
                problem: "a certificate needs at least one name".to_owned(),
            });
        };
        let outside: Vec<String> = hosts
            .iter()
            .filter(|host| !self.permitted.iter().any(|domain| host.is_within(domain)))
            .map(|host| host.as_str().to_owned())
            .collect();
        if !outside.is_empty() {
            return Err(PkiError::OutsideIntermediate {
                hosts: outside,
                permitted: self.permitted.clone(),
            });
        }
        if now >= self.not_after {
            return Err(PkiError::Expired {
                path: "intermediate.pem".into(),
                what: "intermediate",
                on: x509::day(self.not_after),
                cure: "re-issue it by `claviger ca issue` where root.key is present",
            });
        }
        let key = key_type.generate_leaf_key()?;
        let not_after = self.not_after.min(now + life);

        let mut params = CertificateParams::default();
        params.not_before = (now - BACKDATE).into();
        params.not_after = not_after.into();
        params.serial_number = Some(random_serial()?);
        // Some old clients still show the common name; none may decide by it. X.520 bounds it.
        params.distinguished_name = DistinguishedName::new();
        if first.as_str().len() <= COMMON_NAME_BYTES_MAX {
            params
                .distinguished_name
                .push(DnType::CommonName, first.as_str());
        }
        for host in &hosts {
            let name = host
                .as_str()
                .try_into()
                .map_err(PkiError::crypto("write the name"))?;
            params.subject_alt_names.push(SanType::DnsName(name));
        }
        // Says `cA` is false, and adds the subject key identifier.
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = match key_type {
            KeyType::Ecdsa => vec![KeyUsagePurpose::DigitalSignature],
            // TLS 1.2 clients without ephemeral keys would encrypt to an RSA key. rustls offers no
            // such suite, yet some verifiers look for the bit.
            KeyType::Rsa => {
                vec![
                    KeyUsagePurpose::DigitalSignature,
                    KeyUsagePurpose::KeyEncipherment,
                ]
            }
        };
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;

        let issuer = Issuer::from_ca_cert_der(&self.intermediate, &**self.key)
            .map_err(PkiError::crypto("read the intermediate certificate"))?;
        let leaf = params
            .signed_by(&*key, &issuer)
            .map_err(PkiError::crypto("sign the server certificate"))?;
        let mut chain = vec![leaf.der().clone(), self.intermediate.clone()];
        chain.extend(self.cross.clone());
        Ok(MadeLeaf {
            chain,
            key,
            not_after,
        })
    }
}

impl fmt::Debug for LeafIssuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LeafIssuer")
            .field("permitted", &self.permitted)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

/// A server certificate with its chain and key, ready for rustls.
#[derive(Clone)]
pub struct Leaf {
    /// Leaf and intermediate (not the root, which callers have; in a roll-over the root signed by
    /// the other one), and the signing key.
    pub certified: Arc<CertifiedKey>,
    /// When it was made; it is dated back a little.
    pub made: SystemTime,
    /// End of its validity.
    pub not_after: SystemTime,
    /// When to make the next one: after two thirds of its life.
    pub renew_at: SystemTime,
}

impl fmt::Debug for Leaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leaf")
            .field("not_after", &self.not_after)
            .field("renew_at", &self.renew_at)
            .finish_non_exhaustive()
    }
}

/// A new leaf whose key can still be serialized.
pub(super) struct MadeLeaf {
    pub chain: Vec<CertificateDer<'static>>,
    pub key: Zeroizing<KeyPair>,
    pub not_after: SystemTime,
}

/// After two thirds of the life that is left at `now`.
pub(super) fn renew_at(now: SystemTime, not_after: SystemTime) -> SystemTime {
    let left = not_after.duration_since(now).unwrap_or_default();
    now + (left * 2 / 3).max(RENEW_INTERVAL_MIN)
}

/// 158 random bits: positive, and exactly 20 bytes (RFC 5280, 4.1.2.2, allows no more).
pub(super) fn random_serial() -> Result<SerialNumber, PkiError> {
    let mut bytes = [0; 20];
    getrandom::fill(&mut bytes).map_err(|err| PkiError::Crypto {
        action: "get random bytes",
        problem: err.to_string(),
    })?;
    // Neither negative nor with a leading zero byte, which DER would drop.
    bytes[0] = bytes[0] & 0x7f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

/// Life of a leaf unless asked otherwise.
pub const LEAF_DAYS_DEFAULT: u32 = 30;
/// The same, as the time that it is.
pub const LEAF_LIFE_DEFAULT: Duration = Duration::from_secs(LEAF_DAYS_DEFAULT as u64 * 86_400);
/// Certificates are dated back by this, so that a caller with a slow clock accepts a new one.
pub(super) const BACKDATE: Duration = Duration::from_secs(3600);
/// A leaf is not made anew more often, even when the intermediate's end shortens its life.
const RENEW_INTERVAL_MIN: Duration = Duration::from_secs(10);
/// A longer first name leaves the subject empty (X.520, ub-common-name).
const COMMON_NAME_BYTES_MAX: usize = 64;
