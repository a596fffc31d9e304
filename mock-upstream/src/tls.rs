//! TLS: server configuration from PEM files, and throw-away certificates.
//!
//! TLS 1.3 and 1.2, ALPN `http/1.1` only, tickets from one ticketer that all workers share, so
//! that a session may be resumed on any of them. The cipher suite is chosen here, not by the client,
//! so that clients which are compared do the same work. Client certificates are not asked for.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{self, cipher_suite, kx_group};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::Deserialize;
use time::{Duration, OffsetDateTime};

/// Where the certificate, its key and (for throw-away ones) the CA are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The CA that clients must trust, if this process made it.
    pub ca: Option<PathBuf>,
    /// The chain, leaf first, in PEM.
    pub cert: PathBuf,
    /// The leaf's private key, in PEM.
    pub key: PathBuf,
}

/// What is wrong with a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Flaw {
    /// Its time is over.
    Expired,
    /// Its time has not begun.
    NotYetValid,
    /// It is for another name ([`WRONG_NAME`]).
    WrongName,
    /// Nobody knows its CA.
    UnknownCa,
    /// It vouches for itself.
    SelfSigned,
}

/// Configurations with bad certificates, by what is wrong with them.
pub type Flawed = HashMap<Flaw, Arc<ServerConfig>>;

/// Builds the server's TLS configuration from PEM files.
pub fn server_config(files: &TlsFiles) -> io::Result<Arc<ServerConfig>> {
    let chain = CertificateDer::pem_file_iter(&files.cert)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| about("reading the certificate", &files.cert, error))?;
    if chain.is_empty() {
        return Err(about(
            "reading the certificate",
            &files.cert,
            "no certificate in it",
        ));
    }
    let key = PrivateKeyDer::from_pem_file(&files.key)
        .map_err(|error| about("reading the private key", &files.key, error))?;
    configured(chain, key).map_err(|error| about("using the certificate", &files.cert, error))
}

/// Tickets of one configuration are worth nothing to another, so that a bad certificate cannot be
/// avoided by resuming a session.
fn configured(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<Arc<ServerConfig>, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.ignore_client_order = true;
    config.ticketer = aws_lc_rs::Ticketer::new()?;
    // For alerts within a session, which rustls itself never sends without a cause.
    config.enable_secret_extraction = true;
    Ok(Arc::new(config))
}

/// What is accepted, most wanted first: AES-128-GCM, as the front ends of large APIs choose where AES
/// is in hardware, and groups without post-quantum parts, since not every client has those.
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

/// Makes a CA and a certificate for `names` (DNS names or IP addresses) and writes `ca.pem`,
/// `cert.pem` and `key.pem` into `directory`. The CA's key is forgotten at once, so that the
/// file `ca.pem` can vouch for nothing else; the bad certificates, which stay in memory, are made
/// before that.
pub fn self_signed(directory: &Path, names: &[String]) -> io::Result<(TlsFiles, Flawed)> {
    fs::create_dir_all(directory)
        .map_err(|error| about("creating the directory", directory, error))?;
    let now = OffsetDateTime::now_utc();

    let (ca_cert, ca_params, ca_key) = authority("mock-upstream throw-away CA", now)?;
    let issuer = Issuer::from_params(&ca_params, &ca_key);
    let leaf_params = leaf(names, now)?;
    let leaf_key = KeyPair::generate().map_err(io::Error::other)?;
    let leaf_cert = leaf_params
        .signed_by(&leaf_key, &issuer)
        .map_err(io::Error::other)?;

    let (_, stranger_params, stranger_key) = authority("nobody knows this CA", now)?;
    let stranger = Issuer::from_params(&stranger_params, &stranger_key);
    let mut flawed = Flawed::new();
    for flaw in [
        Flaw::Expired,
        Flaw::NotYetValid,
        Flaw::WrongName,
        Flaw::UnknownCa,
        Flaw::SelfSigned,
    ] {
        let mut params = match flaw {
            Flaw::WrongName => leaf(&[WRONG_NAME.to_string()], now)?,
            _ => leaf(names, now)?,
        };
        match flaw {
            Flaw::Expired => {
                params.not_before = now - VALIDITY;
                params.not_after = now - CLOCK_SKEW;
            }
            Flaw::NotYetValid => params.not_before = now + VALIDITY - CLOCK_SKEW,
            Flaw::WrongName | Flaw::UnknownCa | Flaw::SelfSigned => {}
        }
        let key = KeyPair::generate().map_err(io::Error::other)?;
        let cert = match flaw {
            Flaw::UnknownCa => params.signed_by(&key, &stranger),
            Flaw::SelfSigned => params.self_signed(&key),
            _ => params.signed_by(&key, &issuer),
        }
        .map_err(io::Error::other)?;
        let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
        let config = configured(vec![cert.der().clone()], key).map_err(io::Error::other)?;
        flawed.insert(flaw, config);
    }

    let files = TlsFiles {
        ca: Some(directory.join("ca.pem")),
        cert: directory.join("cert.pem"),
        key: directory.join("key.pem"),
    };
    write(&directory.join("ca.pem"), &ca_cert.pem(), 0o644)?;
    write(&files.cert, &leaf_cert.pem(), 0o644)?;
    write(&files.key, &leaf_key.serialize_pem(), 0o600)?;
    Ok((files, flawed))
}

fn authority(
    name: &str,
    now: OffsetDateTime,
) -> io::Result<(rcgen::Certificate, CertificateParams, KeyPair)> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = now - VALIDITY;
    params.not_after = now + VALIDITY;
    let key = KeyPair::generate().map_err(io::Error::other)?;
    let cert = params.self_signed(&key).map_err(io::Error::other)?;
    Ok((cert, params, key))
}

fn leaf(names: &[String], now: OffsetDateTime) -> io::Result<CertificateParams> {
    let mut params = CertificateParams::new(names)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, format!("--name: {error}")))?;
    let first = names.first().map_or("mock-upstream", String::as_str);
    params.distinguished_name.push(DnType::CommonName, first);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    params.not_before = now - CLOCK_SKEW;
    params.not_after = now + VALIDITY;
    Ok(params)
}

/// Writes the file anew, so that its mode holds even if it existed.
fn write(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    let _ = fs::remove_file(path);
    fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|error| about("writing", path, error))
}

fn about(doing: &str, path: &Path, error: impl std::fmt::Display) -> io::Error {
    io::Error::other(format!("{doing} {}: {error}", path.display()))
}

/// The name for which the certificate with [`Flaw::WrongName`] is valid.
pub const WRONG_NAME: &str = "wrong.invalid";

/// How far a client's clock may lag behind ours.
const CLOCK_SKEW: Duration = Duration::hours(1);

/// How long a throw-away certificate is valid: longer than any test, shorter than the 398 days
/// that some clients accept at most.
const VALIDITY: Duration = Duration::days(90);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn throw_away_certificates_load_and_keys_are_private() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = tempfile::tempdir().unwrap();
        for _ in 0..2 {
            let names = ["api.example.com".to_string(), "127.0.0.1".to_string()];
            let (files, flawed) = self_signed(directory.path(), &names).unwrap();
            assert_eq!(flawed.len(), 5);
            let config = server_config(&files).unwrap();
            assert_eq!(config.alpn_protocols, [b"http/1.1".to_vec()]);
            let mode = fs::metadata(&files.key).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
    }

    #[test]
    fn errors_name_the_file() {
        let files = TlsFiles {
            ca: None,
            cert: "/nonexistent/cert.pem".into(),
            key: "/nonexistent/key.pem".into(),
        };
        let error = server_config(&files).unwrap_err().to_string();
        assert!(error.contains("/nonexistent/cert.pem"), "{error}");
    }
}
