//! Certificates of the tests' own, for upstreams that Claviger calls. (The ones
//! that Claviger serves are made by `claviger ca`.)

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, IsCa, Issuer,
    KeyIdMethod, KeyPair, RevokedCertParams, SanType,
};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{RootCertStore, ServerConfig};

/// The one provider.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// A certificate authority for one test's upstreams.
#[derive(Debug)]
pub struct TestCa {
    issuer: Issuer<'static, KeyPair>,
    file: PathBuf,
}

impl TestCa {
    /// Makes one and writes its certificate to `directory/NAME.pem`.
    pub fn new(directory: &Path, name: &str) -> Self {
        let key = KeyPair::generate().expect("a P-256 key");
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let certificate = params.self_signed(&key).expect("a self-signed certificate");
        let file = directory.join(format!("{name}.pem"));
        std::fs::write(&file, certificate.pem()).expect("the test's own directory is writable");
        Self {
            issuer: Issuer::new(params, key),
            file,
        }
    }

    /// The file that an upstream's `ca_file` names.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// What a TLS server for `names` needs.
    pub fn server(&self, names: &[&str]) -> Arc<ServerConfig> {
        let key = KeyPair::generate().expect("a P-256 key");
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let certificate = CertificateParams::new(names)
            .expect("DNS names")
            .signed_by(&key, &self.issuer)
            .expect("signed");
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect("both versions")
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .expect("key and certificate belong together");
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Arc::new(config)
    }

    /// Writes what another program's TLS server for `names` needs into `directory`: chain and key, in PEM.
    pub fn server_files(&self, directory: &Path, names: &[&str]) -> (PathBuf, PathBuf) {
        let key = KeyPair::generate().expect("a P-256 key");
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let certificate = CertificateParams::new(names)
            .expect("DNS names")
            .signed_by(&key, &self.issuer)
            .expect("signed");
        let (chain, key_file) = (directory.join("chain.pem"), directory.join("key.pem"));
        for (path, pem) in [
            (&chain, certificate.pem()),
            (&key_file, key.serialize_pem()),
        ] {
            std::fs::write(path, pem).expect("the test's own directory is writable");
        }
        (chain, key_file)
    }

    /// A client's certificate and key.
    pub fn client(&self, name: &str) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let name = name.try_into().expect("a DNS name");
        self.client_with(SanType::DnsName(name), 7)
    }

    /// A client's certificate and key, with this name and serial number.
    pub fn client_with(
        &self,
        name: SanType,
        serial: u64,
    ) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let key = KeyPair::generate().expect("a P-256 key");
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.subject_alt_names.push(name);
        params.serial_number = Some(serial.into());
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&key, &self.issuer).expect("signed");
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        (vec![certificate.der().clone()], key)
    }

    /// Writes a client's certificate and key, in PEM, for another program to show: the one file
    /// `directory/FILE` holds both.
    pub fn client_file(&self, directory: &Path, file: &str, name: &str, serial: u64) -> PathBuf {
        let name = SanType::DnsName(name.try_into().expect("a DNS name"));
        let (chain, key) = self.client_with(name, serial);
        let pem = |label: &str, der: &[u8]| {
            let text = STANDARD.encode(der);
            let lines: Vec<&str> = (0..text.len())
                .step_by(64)
                .map(|at| &text[at..text.len().min(at + 64)])
                .collect();
            format!(
                "-----BEGIN {label}-----\n{}\n-----END {label}-----\n",
                lines.join("\n")
            )
        };
        let both = pem("CERTIFICATE", &chain[0]) + &pem("PRIVATE KEY", key.secret_der());
        let path = directory.join(file);
        // In one step: whoever watches it sees one or the other.
        let beside = directory.join(format!("{file}.new"));
        std::fs::write(&beside, both).expect("the test's own directory is writable");
        std::fs::set_permissions(&beside, std::fs::Permissions::from_mode(0o600))
            .expect("the file is ours");
        std::fs::rename(&beside, &path).expect("the same directory");
        path
    }

    /// A list, in PEM, that revokes the certificates with these serial numbers.
    pub fn revoking(&self, serials: &[u64]) -> String {
        let day = |year| rcgen::date_time_ymd(year, 1, 1);
        let revoked = serials.iter().map(|&serial| RevokedCertParams {
            serial_number: serial.into(),
            revocation_time: day(2025),
            reason_code: None,
            invalidity_date: None,
        });
        let list = CertificateRevocationListParams {
            this_update: day(2025),
            next_update: day(2099),
            crl_number: 1u64.into(),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = list.signed_by(&self.issuer).expect("signed");
        list.pem().expect("PEM")
    }
}

/// The certificates of a PEM file as trust roots.
#[track_caller]
pub fn roots(pem: &Path) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    let certificates =
        CertificateDer::pem_file_iter(pem).unwrap_or_else(|err| panic!("{}: {err}", pem.display()));
    for certificate in certificates {
        roots
            .add(certificate.expect("PEM"))
            .expect("a CA certificate");
    }
    assert!(!roots.is_empty(), "{} holds no certificate", pem.display());
    roots
}
