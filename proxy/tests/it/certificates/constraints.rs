//! A thief has a key of the CA. What it permits he can speak for; the rest of the Internet he cannot:
//! clients refuse it, by the constraints of the certificates above. Java does not look at those of
//! the root itself, which the test says.

use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use super::clients::{Reader, Trust, read_with};
use crate::harness::{World, pki};

/// What the thief has, and what he makes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stolen {
    /// The key that the running process holds.
    Intermediate,
    /// The root's key.
    Root,
    /// The root's key, and an intermediate of his own that has no constraints at all.
    RootForAnIntermediate,
}

/// A chain for `host`, signed with what is in the CA's directory.
fn forged(ca: &Path, host: &str, stolen: Stolen) -> ServerConfig {
    let name = match stolen {
        Stolen::Intermediate => "intermediate",
        _ => "root",
    };
    let key = std::fs::read_to_string(ca.join(format!("{name}.key"))).expect("stolen");
    let key = KeyPair::from_pem(&key).expect("a key");
    let above = CertificateDer::from_pem_file(ca.join(format!("{name}.pem"))).expect("public");
    let root = Issuer::from_ca_cert_der(&above, key).expect("an authority");
    let leaf_key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(vec![host.to_owned()]).expect("a DNS name");
    params.distinguished_name.push(DnType::CommonName, host);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    let chain = if stolen == Stolen::RootForAnIntermediate {
        let own_key = KeyPair::generate().expect("a key");
        let mut own = CertificateParams::new(Vec::new()).expect("no names");
        own.distinguished_name.push(DnType::CommonName, "A thief's");
        own.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        own.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        own.use_authority_key_identifier_extension = true;
        let certificate = own.signed_by(&own_key, &root).expect("signed");
        let own = Issuer::new(own, own_key);
        let leaf = params.signed_by(&leaf_key, &own).expect("signed");
        vec![leaf.der().clone(), certificate.der().clone()]
    } else {
        let leaf = params.signed_by(&leaf_key, &root).expect("signed");
        let mut chain = vec![leaf.der().clone()];
        if stolen == Stolen::Intermediate {
            chain.push(above.clone());
        }
        chain
    };
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(leaf_key.serialize_der()));
    let mut config = ServerConfig::builder_with_provider(pki::provider())
        .with_safe_default_protocol_versions()
        .expect("both versions")
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .expect("they belong together");
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config
}

#[test]
fn a_stolen_key_speaks_for_the_permitted_domains_alone() {
    let world = World::new();
    let ca = world.path("ca");
    let root = world.path("root.pem");
    for stolen in [
        Stolen::Intermediate,
        Stolen::Root,
        Stolen::RootForAnIntermediate,
    ] {
        for (host, is_permitted) in [
            // The control: it is the name that is refused, and not the chain.
            ("other.example.com", true),
            ("www.example.org", false),
            // What begins or ends alike is not within.
            ("example.com.example.org", false),
            ("evilexample.com", false),
        ] {
            let server = super::server::Answering::start(forged(&ca, host, stolen));
            for reader in Reader::all() {
                let outcome = read_with(reader, server.address(), host, Trust::Only(&root));
                // Java takes of a root that it trusts nothing but name and key (RFC 5280, 6.1.1,
                // asks for no more): against the root's own key it has no defence.
                let is_blind = reader == Reader::Java && stolen != Stolen::Intermediate;
                assert_eq!(
                    outcome.is_ok(),
                    is_permitted || is_blind,
                    "{reader:?}, {host}, {stolen:?}: {outcome:?}"
                );
                let Err(said) = outcome else { continue };
                let said = said.to_lowercase();
                assert!(
                    [
                        "permitted subtree",
                        "nameconstraint",
                        "name constraints",
                        "not permitted",
                        "permitted_subtree"
                    ]
                    .iter()
                    .any(|words| said.contains(words)),
                    "{reader:?} refused it for something else: {said}"
                );
            }
        }
    }
}
