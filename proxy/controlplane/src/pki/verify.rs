//! Refusing an upstream that is ourselves: [`OwnCa`] and the verifier made with it.
//!
//! Machines that call through Claviger trust its authority in their system store, the proxy's own
//! machine among them. If DNS leads an upstream's name back to the proxy, its certificate
//! verifies, and the proxy would send the real key to itself or to another instance. So a chain
//! that hangs on a key of our own authority is refused before a request byte is sent.
//!
//! Why comparing keys suffices: a certificate path is a chain of keys, each of which signed the
//! next certificate. If a key of ours is in it, then the certificate that carries this key was
//! either presented by the upstream or is a trust anchor. Presented ones are compared here, by
//! SubjectPublicKeyInfo, so that another name, serial or cross-signature changes nothing; trust
//! anchors with our keys (or issued by them) are left out of the store by
//! [`super::Roots`]. Whatever verifies then, verifies without us.
//!
//! An upstream whose CA file names our authority wants it (a service of one's own behind the
//! proxy), so there the comparison is left out.

use std::collections::HashSet;
use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, DigitallySignedStruct, Error, OtherError, SignatureScheme};

use super::x509::{self, KeyHash};

/// What no upstream may present: the keys of our own authority, and optionally the keys that our
/// own listeners serve. Empty by default. Cloning is cheap.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct OwnCa(Arc<Inner>);

#[derive(Clone, Default, PartialEq, Eq)]
struct Inner {
    /// Roots and intermediates, former ones included.
    authorities: HashSet<KeyHash>,
    /// The present root and intermediate, to recognise what they signed.
    certificates: Vec<CertificateDer<'static>>,
    /// Leaf keys of our own listeners.
    served: HashSet<KeyHash>,
}

impl OwnCa {
    /// For a proxy without an authority of its own: refuses nothing.
    pub fn none() -> OwnCa {
        OwnCa::default()
    }

    pub(super) fn new(
        authorities: impl Iterator<Item = KeyHash>,
        certificates: impl Iterator<Item = CertificateDer<'static>>,
    ) -> OwnCa {
        OwnCa(Arc::new(Inner {
            authorities: authorities.collect(),
            certificates: certificates.collect(),
            served: HashSet::new(),
        }))
    }

    /// Also refuses an upstream that presents a certificate which our own listeners serve. Use it
    /// with certificates of a public authority, where a DNS loop verifies just as well. A CA file
    /// does not lift this.
    #[must_use]
    pub fn with_served_keys(self, keys: &[Arc<CertifiedKey>]) -> OwnCa {
        let mut inner = Arc::unwrap_or_clone(self.0);
        inner.served.extend(
            keys.iter()
                .filter_map(|key| key.end_entity_cert().ok())
                .filter_map(presented_key),
        );
        OwnCa(Arc::new(inner))
    }

    /// Whether a trust anchor is ours: it has one of our keys, or one of ours issued it.
    ///
    /// The key is taken from the anchor that webpki will use, not from a second reading of the
    /// certificate: webpki reads anchors more leniently than anyone reads certificates.
    pub(super) fn owns_anchor(&self, der: &CertificateDer<'_>, anchor: &TrustAnchor<'_>) -> bool {
        let spki = x509::sequence(&anchor.subject_public_key_info);
        self.0.authorities.contains(&x509::key_hash(&spki)) || self.issued(der)
    }

    fn issued(&self, der: &CertificateDer<'_>) -> bool {
        self.0
            .certificates
            .iter()
            .any(|issuer| x509::is_issued_by(der, issuer))
    }

    /// The reason to refuse a chain, if there is one. `named`: our authority is welcome.
    fn objection(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        named: bool,
    ) -> Option<OwnCaRefused> {
        let served = !self.0.served.is_empty()
            && presented_key(end_entity).is_some_and(|key| self.0.served.contains(&key));
        if served {
            return Some(OwnCaRefused {
                presented: Presented::ServedKey,
            });
        }
        if named || self.0.authorities.is_empty() {
            return None;
        }
        let mut chain = std::iter::once(end_entity).chain(intermediates);
        chain
            .any(|der| presented_key(der).is_some_and(|key| self.0.authorities.contains(&key)))
            .then_some(OwnCaRefused {
                presented: Presented::Authority,
            })
    }
}

impl fmt::Debug for OwnCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnCa")
            .field("authorities", &self.0.authorities.len())
            .field("served", &self.0.served.len())
            .finish_non_exhaustive()
    }
}

/// The upstream presented a certificate of our own. Nothing was sent to it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct OwnCaRefused {
    presented: Presented,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Presented {
    Authority,
    ServedKey,
}

impl fmt::Display for OwnCaRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.presented {
            Presented::Authority => f.write_str(
                "the upstream presented a certificate of Claviger's own certificate authority: \
                 most likely DNS leads its name back to this proxy; check the configured \
                 resolvers and the upstream's addresses (if the upstream really uses this \
                 authority, name its root in the upstream's CA file)",
            ),
            Presented::ServedKey => f.write_str(
                "the upstream presented a certificate that this proxy itself serves: DNS leads \
                 its name back to this proxy; check the configured resolvers and the upstream's \
                 addresses",
            ),
        }
    }
}

impl StdError for OwnCaRefused {}

/// The same words: rustls prints the errors of verifiers by `Debug`, also within its own `Display`.
impl fmt::Debug for OwnCaRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Finds an [`OwnCaRefused`] in an error of `rustls`, or in an `io::Error` around one.
pub fn own_ca_refused<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a OwnCaRefused> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(refused) = error.downcast_ref::<OwnCaRefused>() {
            return Some(refused);
        }
        if let Some(Error::InvalidCertificate(CertificateError::Other(OtherError(other)))) =
            error.downcast_ref::<Error>()
        {
            return other.downcast_ref::<OwnCaRefused>();
        }
        // An io::Error's source() skips the error that it holds.
        next = match error
            .downcast_ref::<std::io::Error>()
            .and_then(|io| io.get_ref())
        {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}

/// Verifies as webpki does (path, time, name, usage, constraints), and refuses what is ours.
#[derive(Debug)]
pub(super) struct UpstreamVerifier {
    webpki: Arc<WebPkiServerVerifier>,
    own: OwnCa,
    named: bool,
}

impl UpstreamVerifier {
    pub(super) fn new(webpki: Arc<WebPkiServerVerifier>, own: OwnCa, named: bool) -> Self {
        UpstreamVerifier { webpki, own, named }
    }
}

impl ServerCertVerifier for UpstreamVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        // First, since without our root in the store a loop would only be called an unknown issuer.
        if let Some(refused) = self.own.objection(end_entity, intermediates, self.named) {
            return Err(refuse(refused));
        }
        let verified = self.webpki.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        );
        match verified {
            // A leaf of ours without its chain: nothing verifies it, and the operator should know why.
            Err(Error::InvalidCertificate(CertificateError::UnknownIssuer))
                if !self.named && self.own.issued(end_entity) =>
            {
                Err(refuse(OwnCaRefused {
                    presented: Presented::Authority,
                }))
            }
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.webpki.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.webpki.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.webpki.supported_verify_schemes()
    }
}

fn refuse(refused: OwnCaRefused) -> Error {
    CertificateError::Other(OtherError(Arc::new(refused))).into()
}

/// The key of a certificate. One that webpki cannot read has none, and no path leads through it.
fn presented_key(der: &CertificateDer<'_>) -> Option<KeyHash> {
    let parsed = ParsedCertificate::try_from(der).ok()?;
    Some(x509::key_hash(&parsed.subject_public_key_info()))
}
