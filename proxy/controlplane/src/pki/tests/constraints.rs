//! The limits of our certificates hold for those who steal a key: as webpki sees it, as OpenSSL
//! sees it, and as Python's `ssl` sees it in a real handshake.

use std::fs;
use std::sync::Arc;
use std::time::SystemTime;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, RootCertStore};

use super::{Ca, run, serve_once, strings};
use crate::pki::authority::KeyType;
use crate::pki::leaf::LEAF_LIFE_DEFAULT;
use crate::pki::{ServerTls, server_config, x509};

/// A chain, leaf first, and what the name on the leaf is.
struct Chain {
    certificates: Vec<CertificateDer<'static>>,
    name: String,
    key: KeyPair,
}

/// What a thief does with a key of ours: signs whatever he likes, heeding nothing.
fn forge(
    ca: &Ca,
    signer: &str,
    sans: &[SanType],
    change: impl FnOnce(&mut CertificateParams),
) -> Chain {
    let issuer_der = CertificateDer::from_pem_file(ca.path(&format!("{signer}.pem"))).unwrap();
    let issuer_key =
        KeyPair::from_pem(&fs::read_to_string(ca.path(&format!("{signer}.key"))).unwrap()).unwrap();
    let issuer = Issuer::from_ca_cert_der(&issuer_der, issuer_key).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.not_before = (SystemTime::now() - super::DAY).into();
    params.not_after = (SystemTime::now() + super::DAY).into();
    params.distinguished_name.push(DnType::CommonName, "forged");
    params.subject_alt_names = sans.to_vec();
    params.is_ca = IsCa::ExplicitNoCa;
    params.use_authority_key_identifier_extension = true;
    change(&mut params);
    let leaf = params.signed_by(&key, &issuer).unwrap();
    let mut certificates = vec![leaf.into()];
    if signer != "root" {
        certificates.push(issuer_der);
    }
    let name = match &sans[0] {
        SanType::IpAddress(address) => address.to_string(),
        SanType::DnsName(name) => name.as_str().to_owned(),
        _ => unreachable!("no other names here"),
    };
    Chain {
        certificates,
        name,
        key,
    }
}

fn dns(name: &str) -> SanType {
    SanType::DnsName(name.try_into().unwrap())
}

/// Asks webpki and OpenSSL about a chain; both must agree with us.
fn check(ca: &Ca, chain: &Chain, accepted: bool) {
    let name = chain.name.replace('*', "any");
    let what = format!("{name}, {} certificates", chain.certificates.len());

    let mut roots = RootCertStore::empty();
    roots.add(ca.root()).unwrap();
    let provider = crate::pki::tls::provider();
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .unwrap();
    let verdict = verifier.verify_server_cert(
        &chain.certificates[0],
        &chain.certificates[1..],
        &ServerName::try_from(name.clone()).unwrap(),
        &[],
        UnixTime::now(),
    );
    assert_eq!(verdict.is_ok(), accepted, "webpki on {what}: {verdict:?}");

    let leaf = ca.path("checked.pem");
    let untrusted = ca.path("untrusted.pem");
    let text = |certificates: &[CertificateDer<'_>]| -> String {
        certificates.iter().map(x509::to_pem).collect()
    };
    fs::write(&leaf, text(&chain.certificates[..1])).unwrap();
    fs::write(&untrusted, text(&chain.certificates[1..])).unwrap();
    let name_option = if chain.name.parse::<std::net::IpAddr>().is_ok() {
        "-verify_ip"
    } else {
        "-verify_hostname"
    };
    let mut arguments = vec!["verify", "-x509_strict", "-purpose", "sslserver"];
    let root = ca.path("root.pem");
    arguments.extend([
        "-CAfile",
        root.to_str().unwrap(),
        "-no-CApath",
        "-no-CAstore",
    ]);
    if chain.certificates.len() > 1 {
        arguments.extend(["-untrusted", untrusted.to_str().unwrap()]);
    }
    arguments.extend([name_option, &name, leaf.to_str().unwrap()]);
    let (verified, text) = run("openssl", &arguments);
    assert_eq!(verified, accepted, "openssl on {what}: {text}");
}

fn issued(ca: &Ca, key_type: KeyType, hosts: &[&str]) -> Chain {
    let issuer = ca.authority.leaf_issuer().unwrap();
    let made = issuer
        .make(
            &strings(hosts),
            key_type,
            LEAF_LIFE_DEFAULT,
            SystemTime::now(),
        )
        .unwrap();
    Chain {
        certificates: made.chain,
        name: hosts[0].to_owned(),
        key: KeyPair::try_from(made.key.serialized_der()).unwrap(),
    }
}

#[test]
fn what_we_issue_verifies() {
    let hosts = ["api.example.com", "*.example.net", "claviger.internal"];
    for ca_keys in [KeyType::Ecdsa, KeyType::Rsa] {
        let ca = Ca::of(ca_keys, &["example.com", "example.net", "internal"], &hosts);
        for leaf_key in [KeyType::Ecdsa, KeyType::Rsa] {
            for host in hosts {
                check(&ca, &issued(&ca, leaf_key, &[host]), true);
            }
            check(&ca, &issued(&ca, leaf_key, &hosts), true);
        }
        // A first name too long for a common name.
        let long = format!("{}.{}.example.com", "a".repeat(60), "b".repeat(60));
        let ca = Ca::of(ca_keys, &["example.com"], &[]);
        check(&ca, &issued(&ca, KeyType::Ecdsa, &[&long]), true);
    }
}

#[test]
fn a_stolen_intermediate_key_speaks_for_our_hosts_only() {
    let ca = Ca::new(&["example.com"], &["api.example.com"]);
    let forge = |sans: &[SanType]| forge(&ca, "intermediate", sans, |_| {});
    // The forger's tools work: what is permitted verifies.
    check(&ca, &forge(&[dns("api.example.com")]), true);
    check(&ca, &forge(&[dns("v2.api.example.com")]), true);
    // Permitted by the root, yet not configured.
    check(&ca, &forge(&[dns("www.example.com")]), false);
    check(&ca, &forge(&[dns("*.example.com")]), false);
    check(&ca, &forge(&[dns("example.com")]), false);
    check(&ca, &forge(&[dns("bank.example")]), false);
    check(&ca, &forge(&[dns("notapi.example.com")]), false);
    // One good name does not carry a bad one.
    check(
        &ca,
        &forge(&[dns("api.example.com"), dns("bank.example")]),
        false,
    );
    for address in ["192.0.2.1", "127.0.0.1", "2001:db8::1"] {
        let ip = SanType::IpAddress(address.parse().unwrap());
        check(&ca, &forge(std::slice::from_ref(&ip)), false);
        check(&ca, &forge(&[dns("api.example.com"), ip]), false);
    }
}

#[test]
fn a_stolen_intermediate_key_makes_no_authority() {
    let ca = Ca::new(&["example.com"], &["api.example.com"]);
    let mut below = forge(&ca, "intermediate", &[dns("api.example.com")], |params| {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.subject_alt_names.clear();
    });
    let issuer_der = below.certificates[0].clone();
    let issuer = Issuer::from_ca_cert_der(&issuer_der, &below.key).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(strings(&["api.example.com"])).unwrap();
    params.is_ca = IsCa::ExplicitNoCa;
    params.use_authority_key_identifier_extension = true;
    params.not_after = (SystemTime::now() + super::DAY).into();
    below
        .certificates
        .insert(0, params.signed_by(&key, &issuer).unwrap().into());
    check(&ca, &below, false);
}

#[test]
fn a_stolen_root_key_speaks_for_our_domains_only() {
    let ca = Ca::new(&["example.com"], &["api.example.com"]);
    let forge = |sans: &[SanType]| forge(&ca, "root", sans, |_| {});
    check(&ca, &forge(&[dns("www.example.com")]), true);
    check(&ca, &forge(&[dns("bank.example")]), false);
    check(
        &ca,
        &forge(&[SanType::IpAddress("192.0.2.1".parse().unwrap())]),
        false,
    );

    // An intermediate without constraints of its own.
    let free = Ca::new(&["bank.example"], &[]);
    let mut chain = issued(&free, KeyType::Ecdsa, &["bank.example"]);
    check(&free, &chain, true);
    let issuer_key = KeyPair::from_pem(&fs::read_to_string(ca.path("root.key")).unwrap()).unwrap();
    let issuer = Issuer::from_ca_cert_der(&ca.root(), issuer_key).unwrap();
    let key =
        KeyPair::from_pem(&fs::read_to_string(free.path("intermediate.key")).unwrap()).unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.use_authority_key_identifier_extension = true;
    params.not_after = (SystemTime::now() + super::DAY).into();
    let (_, parsed) = x509_parser::parse_x509_certificate(&chain.certificates[1]).unwrap();
    let names: Vec<&str> = parsed
        .subject()
        .iter_attributes()
        .map(|attribute| attribute.as_str().unwrap())
        .collect();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::OrganizationName, names[0]);
    params.distinguished_name.push(DnType::CommonName, names[1]);
    chain.certificates[1] = params.signed_by(&key, &issuer).unwrap().into();
    check(&ca, &chain, false);
}

#[test]
fn our_certificates_serve_tls_servers_only() {
    let ca = Ca::new(&["example.com"], &["api.example.com"]);
    let leaf = ca.leaf(&["api.example.com"]);
    let mut roots = RootCertStore::empty();
    roots.add(ca.root()).unwrap();
    let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(
        Arc::new(roots),
        crate::pki::tls::provider(),
    )
    .build()
    .unwrap();
    let verdict = verifier.verify_client_cert(&leaf.cert[0], &leaf.cert[1..], UnixTime::now());
    assert!(
        matches!(
            verdict,
            Err(rustls::Error::InvalidCertificate(
                CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. }
            ))
        ),
        "{verdict:?}"
    );
}

/// Python's `ssl`, as an unmodified service would use it, with the strict flag of Python 3.13.
const PYTHON: &str = "
import socket, ssl, sys
root, port, name = sys.argv[1:]
context = ssl.create_default_context(cafile=root)
context.verify_flags |= ssl.VERIFY_X509_STRICT
context.set_alpn_protocols(['http/1.1'])
raw = socket.create_connection(('127.0.0.1', int(port)), timeout=20)
with context.wrap_socket(raw, server_hostname=name) as tls:
    tls.sendall(b'ping')
    print(tls.recv(2).decode(), tls.version(), tls.selected_alpn_protocol())
";

fn python(ca: &Ca, certified: Arc<CertifiedKey>, name: &str) -> (bool, String) {
    let config = server_config(vec![certified], &ServerTls::default()).unwrap();
    let (address, serving) = serve_once(config);
    let port = address.port().to_string();
    let answer = run(
        "python3",
        &[
            "-c",
            PYTHON,
            ca.path("root.pem").to_str().unwrap(),
            &port,
            name,
        ],
    );
    serving.join().unwrap();
    answer
}

#[test]
fn python_agrees_in_a_real_handshake() {
    let ca = Ca::new(&["example.com"], &["api.example.com", "*.example.com"]);
    for (key_type, name) in [
        (KeyType::Ecdsa, "api.example.com"),
        (KeyType::Rsa, "api.example.com"),
        (KeyType::Ecdsa, "*.example.com"),
    ] {
        let leaf = ca.leaf_of(key_type, &[name]);
        let (accepted, text) = python(&ca, leaf, &name.replace('*', "www"));
        assert!(accepted, "{text}");
        assert_eq!(text.trim(), "ok TLSv1.3 http/1.1");
    }
    let forged = forge(&ca, "intermediate", &[dns("bank.example")], |_| {});
    let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(
        &rustls::pki_types::PrivateKeyDer::try_from(forged.key.serialize_der()).unwrap(),
    )
    .unwrap();
    let certified = Arc::new(CertifiedKey::new(forged.certificates, key));
    let (accepted, text) = python(&ca, certified, "bank.example");
    assert!(
        !accepted && text.contains("permitted subtree violation"),
        "{text}"
    );
}
