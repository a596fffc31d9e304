//! [`ApiCa`]: certificates of the proof's own APIs and callers. (The ones that
//! Claviger serves are made by its own authority.)

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};

/// A certificate authority for APIs and callers, and the names that it serves.
#[derive(Debug)]
pub struct ApiCa {
    issuer: Issuer<'static, KeyPair>,
    file: PathBuf,
    names: BTreeSet<String>,
}

type Made = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

impl ApiCa {
    /// Makes one and writes its certificate to `file`.
    ///
    /// # Errors
    /// A sentence.
    pub fn new(file: &Path) -> Result<Self, String> {
        let make = || {
            let key = KeyPair::generate()?;
            let mut params = CertificateParams::new(Vec::new())?;
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params
                .distinguished_name
                .push(DnType::CommonName, "the APIs of claviger prove");
            let pem = params.self_signed(&key)?.pem();
            Ok((Issuer::new(params, key), pem))
        };
        let (issuer, pem) =
            make().map_err(|error: rcgen::Error| format!("a certificate authority: {error}"))?;
        fs::write(file, pem).map_err(|error| format!("{}: {error}", file.display()))?;
        Ok(Self {
            issuer,
            file: file.to_owned(),
            names: BTreeSet::new(),
        })
    }

    /// Its certificate.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Takes names up that its servers are good for.
    pub fn serve(&mut self, names: impl Iterator<Item = String>) {
        self.names.extend(names);
    }

    /// What a TLS server for all names needs.
    ///
    /// # Errors
    /// A sentence.
    pub fn server(&self, names: &BTreeSet<String>) -> Result<Arc<ServerConfig>, String> {
        let (chain, key) = self.issue(names.iter().cloned().collect())?;
        ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
            .map(Arc::new)
            .map_err(|error| format!("TLS for the APIs: {error}"))
    }

    /// The names that were taken up.
    pub fn names(&self) -> &BTreeSet<String> {
        &self.names
    }

    /// What a caller needs who trusts `root` and may be asked for a certificate.
    ///
    /// # Errors
    /// A sentence.
    pub fn caller(&self, root: &Path) -> Result<Arc<ClientConfig>, String> {
        let mut roots = RootCertStore::empty();
        let root = CertificateDer::from_pem_file(root)
            .map_err(|error| format!("{}: {error}", root.display()))?;
        roots.add(root).map_err(|error| error.to_string())?;
        let (chain, key) = self.issue(vec!["caller.prove.internal".to_owned()])?;
        ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .and_then(|builder| {
                builder
                    .with_root_certificates(roots)
                    .with_client_auth_cert(chain, key)
            })
            .map(Arc::new)
            .map_err(|error| format!("TLS for the callers: {error}"))
    }

    fn issue(&self, names: Vec<String>) -> Result<Made, String> {
        let make = || {
            let key = KeyPair::generate()?;
            let certificate = CertificateParams::new(names)?.signed_by(&key, &self.issuer)?;
            let der = PrivatePkcs8KeyDer::from(key.serialize_der());
            Ok((vec![certificate.der().clone()], PrivateKeyDer::Pkcs8(der)))
        };
        make().map_err(|error: rcgen::Error| format!("a certificate: {error}"))
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}
