//! How the server's certificate is judged: by a CA file, by the system's roots, or not at all; and
//! which certificate is presented to it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs::{self, cipher_suite, kx_group};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

/// Whom to trust.
#[derive(Clone, Copy, Debug)]
pub enum Trust<'a> {
    /// The certificates in this PEM file, and no others.
    File(&'a Path),
    /// The system's.
    System,
    /// Anyone.
    Anyone,
}

/// Client settings: TLS 1.3 and 1.2 (see [`provider`]), `http/1.1` by ALPN, resumption only if
/// `resume`. One for each pair of a certificate and its key, or one that presents none. Each has its own sessions.
///
/// # Errors
/// When the roots, a certificate or a key cannot be read; the text names the file.
pub fn client_configs(
    trust: Trust<'_>,
    resume: bool,
    pairs: &[(&PathBuf, &PathBuf)],
) -> Result<Vec<Arc<ClientConfig>>, String> {
    let provider = Arc::new(provider());
    let roots = match trust {
        Trust::Anyone => None,
        Trust::File(path) => Some(Arc::new(roots_from(path)?)),
        Trust::System => Some(Arc::new(system_roots()?)),
    };
    let config = |pair: Option<&(&PathBuf, &PathBuf)>| {
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?;
        let builder = match &roots {
            None => builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(NoVerification(provider.clone()))),
            Some(roots) => builder.with_root_certificates(roots.clone()),
        };
        let mut config = match pair {
            None => builder.with_no_client_auth(),
            Some((chain, key)) => {
                let (shown, shown_key) = (chain.display(), key.display());
                builder
                    .with_client_auth_cert(chain_from(chain)?, key_from(key)?)
                    .map_err(|error| {
                        format!("--client-cert {shown}, --client-key {shown_key}: {error}")
                    })?
            }
        };
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        if !resume {
            config.resumption = Resumption::disabled();
        }
        Ok(Arc::new(config))
    };
    match pairs {
        [] => Ok(vec![config(None)?]),
        pairs => pairs.iter().map(|pair| config(Some(pair))).collect(),
    }
}

/// What is offered, so that servers which are compared do the same work whatever each prefers.
///
/// OpenSSL and rustls take the client's first suite, BoringSSL and Go AES-128-GCM wherever AES is in
/// hardware: it stands first, and they agree. It is also the one suite that every TLS 1.3 must have
/// (RFC 8446, 9.1). The hybrid post-quantum groups are left out, since a server that prefers one asks a
/// client that only mentions it to begin anew, and others do not have them.
fn provider() -> CryptoProvider {
    CryptoProvider {
        cipher_suites: vec![
            cipher_suite::TLS13_AES_128_GCM_SHA256,
            cipher_suite::TLS13_AES_256_GCM_SHA384,
            cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
            cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
            cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
            cipher_suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
            cipher_suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
            cipher_suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
            cipher_suite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
        ],
        kx_groups: vec![kx_group::X25519, kx_group::SECP256R1, kx_group::SECP384R1],
        ..aws_lc_rs::default_provider()
    }
}

fn chain_from(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let shown = path.display();
    let pem = fs::read(path).map_err(|error| format!("--client-cert {shown}: {error}"))?;
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .map_err(|error| format!("--client-cert {shown}: {error}"))?;
    match chain.is_empty() {
        true => Err(format!(
            "--client-cert {shown}: the file holds no certificate in PEM form"
        )),
        false => Ok(chain),
    }
}

fn key_from(path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    PrivateKeyDer::from_pem_file(path).map_err(|error| {
        format!(
            "--client-key {}: no private key in PEM form could be read: {error}",
            path.display()
        )
    })
}

fn roots_from(path: &Path) -> Result<RootCertStore, String> {
    let shown = path.display();
    let pem = fs::read(path).map_err(|error| format!("--cacert {shown}: {error}"))?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|error| format!("--cacert {shown}: {error}"))?;
        roots
            .add(certificate)
            .map_err(|error| format!("--cacert {shown}: {error}"))?;
    }
    if roots.is_empty() {
        return Err(format!(
            "--cacert {shown}: the file holds no certificate in PEM form"
        ));
    }
    Ok(roots)
}

fn system_roots() -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        return Err(
            "this system has no root certificates; install ca-certificates, or name a CA with --cacert"
                .into(),
        );
    }
    Ok(roots)
}

/// `--insecure`. The handshake's signatures are still checked, so that the work is the same.
#[derive(Debug)]
struct NoVerification(Arc<CryptoProvider>);

impl ServerCertVerifier for NoVerification {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(
            message,
            cert,
            dss,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            cert,
            dss,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
