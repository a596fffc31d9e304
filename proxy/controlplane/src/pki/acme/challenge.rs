//! [`Challenges`]: what an authority is to find here while it validates.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rcgen::{CertificateParams, CustomExtension, KeyPair};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};

use crate::pki::{PkiError, provider};

/// Answers to challenges that are under way. Shared by who obtains certificates, by the listener
/// for HTTP, and by TLS handshakes that offer `acme-tls/1` and nothing else; no other handshake
/// comes near its lock.
#[derive(Default)]
pub struct Challenges {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// Key authorizations by token.
    http: HashMap<String, String>,
    /// Certificates by host.
    tls: HashMap<String, Arc<CertifiedKey>>,
}

impl Challenges {
    /// None.
    pub fn new() -> Arc<Challenges> {
        Arc::default()
    }

    /// The answer to a question for this token.
    pub(super) fn http(&self, token: &str) -> Option<String> {
        self.lock().http.get(token).cloned()
    }

    /// Answers a token until the guard is dropped.
    pub(super) fn present_http(self: &Arc<Self>, token: &str, authorization: &str) -> Presented {
        let entry = (token.to_owned(), authorization.to_owned());
        self.lock().http.extend([entry]);
        Presented {
            challenges: Arc::clone(self),
            token: Some(token.to_owned()),
            host: None,
        }
    }

    /// Shows a certificate with this digest for `host` until the guard is dropped (RFC 8737, 3).
    pub(super) fn present_tls(
        self: &Arc<Self>,
        host: &str,
        digest: &[u8],
    ) -> Result<Presented, PkiError> {
        let key = KeyPair::generate().map_err(PkiError::crypto("generate a key"))?;
        let mut params = CertificateParams::new(vec![host.to_owned()])
            .map_err(PkiError::crypto("write the name"))?;
        params
            .custom_extensions
            .push(CustomExtension::new_acme_identifier(digest));
        let certificate = params
            .self_signed(&key)
            .map_err(PkiError::crypto("sign the certificate of the challenge"))?;
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let key = any_supported_type(&key).map_err(PkiError::tls("load the new key"))?;
        let certified = CertifiedKey::new(vec![certificate.der().clone()], key);
        self.lock().tls.insert(host.to_owned(), Arc::new(certified));
        Ok(Presented {
            challenges: Arc::clone(self),
            token: None,
            host: Some(host.to_owned()),
        })
    }

    /// What a handshake of a validator is served by: the certificate of its challenge, if one is
    /// under way, and no protocol to speak behind it.
    ///
    /// # Errors
    /// Nothing but a defect of the library.
    pub fn server_config(self: &Arc<Self>) -> Result<Arc<ServerConfig>, PkiError> {
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13, &TLS12])
            .map_err(PkiError::tls("choose the TLS versions"))?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(ChallengeCertificates(Arc::clone(self))));
        config.alpn_protocols = vec![policy::ACME_TLS_ALPN.to_vec()];
        // As every configuration of the data plane, which has a record layer of its own.
        config.enable_secret_extraction = true;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Arc::new(config))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Challenges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Challenges(..)")
    }
}

/// A challenge that is answered for as long as this lives.
#[derive(Debug)]
pub(super) struct Presented {
    challenges: Arc<Challenges>,
    token: Option<String>,
    host: Option<String>,
}

impl Drop for Presented {
    fn drop(&mut self) {
        let mut inner = self.challenges.lock();
        if let Some(token) = &self.token {
            inner.http.remove(token);
        }
        if let Some(host) = &self.host {
            inner.tls.remove(host);
        }
    }
}

#[derive(Debug)]
struct ChallengeCertificates(Arc<Challenges>);

impl ResolvesServerCert for ChallengeCertificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name()?.to_ascii_lowercase();
        self.0.lock().tls.get(&name).cloned()
    }
}
