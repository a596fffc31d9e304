//! Whom we believe upstream, and that we never believe ourselves.

use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, KeyUsagePurpose};
use rustls::pki_types::CertificateDer;
use rustls::server::ProducesTickets;
use rustls::{CertificateError, Error, HandshakeKind, ServerConfig};

use super::{Ca, Failed, handshake, strings};
use crate::pki::authority::{Authority, IssueOptions, init, issue};
use crate::pki::tls::Ticketers;
use crate::pki::{
    LEAF_LIFE_DEFAULT, OwnCa, Roots, ServerTls, client_config, own_ca_refused, server_config, x509,
};

const API: &str = "api.example.com";

/// Roots as the system has them: found, not named.
fn system<const N: usize>(certificates: [&CertificateDer<'static>; N]) -> Roots {
    Roots::found(certificates.map(Clone::clone).to_vec()).unwrap()
}

fn file<const N: usize>(certificates: [&CertificateDer<'static>; N]) -> Roots {
    Roots::from_der(certificates.map(Clone::clone).to_vec()).unwrap()
}

fn serving(key: Arc<rustls::sign::CertifiedKey>) -> Arc<ServerConfig> {
    server_config(vec![key], &ServerTls::default()).unwrap()
}

#[derive(Debug, PartialEq)]
enum Outcome {
    Accepted,
    OurOwn,
    Unknown,
}

fn connect(roots: &Roots, own: &OwnCa, server: &Arc<ServerConfig>) -> Outcome {
    let client = match client_config(roots, own) {
        Ok(client) => client,
        Err(err) => panic!("{err}"),
    };
    match handshake(&client, server, API) {
        Ok(_) => Outcome::Accepted,
        Err(Failed::Client(err)) if own_ca_refused(&err).is_some() => {
            // Whoever only prints it tells the operator, too.
            assert!(err.to_string().contains("back to this proxy"), "{err}");
            // As the data plane meets it: inside an I/O error.
            let wrapped = std::io::Error::new(std::io::ErrorKind::InvalidData, err);
            let refused = own_ca_refused(&wrapped).unwrap();
            assert!(
                refused.to_string().contains("back to this proxy"),
                "{refused}"
            );
            Outcome::OurOwn
        }
        Err(Failed::Client(Error::InvalidCertificate(CertificateError::UnknownIssuer))) => {
            Outcome::Unknown
        }
        Err(err) => panic!("{err:?}"),
    }
}

#[test]
fn our_own_authority_is_refused_unless_the_upstream_names_it() {
    let ours = Ca::new(&["example.com"], &[API]);
    let theirs = Ca::new(&["example.com"], &[]);
    let own = ours.authority.own_ca();
    let [root, other] = [ours.root(), theirs.root()];
    let us = serving(ours.leaf(&[API]));
    let them = serving(theirs.leaf(&[API]));

    // Without the guard, a loop verifies: this is what the guard is for.
    assert_eq!(
        connect(&system([&root]), &OwnCa::none(), &us),
        Outcome::Accepted
    );

    let store = system([&root, &other]);
    assert_eq!(connect(&store, &own, &us), Outcome::OurOwn);
    assert_eq!(connect(&store, &own, &them), Outcome::Accepted);
    // Also where our root is not in the store, for the operator to know.
    assert_eq!(connect(&system([&other]), &own, &us), Outcome::OurOwn);

    assert_eq!(connect(&file([&root]), &own, &us), Outcome::Accepted);
    assert_eq!(
        connect(&file([&other, &root]), &own, &us),
        Outcome::Accepted
    );
    assert_eq!(connect(&file([&other]), &own, &us), Outcome::OurOwn);
    assert_eq!(connect(&file([&root]), &own, &them), Outcome::Unknown);
    assert!(file([&root]).names(&own) && !store.names(&own));

    // A leaf without its chain, and a store with our intermediate in it.
    let bare = ours.leaf(&[API]);
    let intermediate = bare.cert[1].clone();
    let bare = serving(Arc::new(rustls::sign::CertifiedKey::new(
        vec![bare.cert[0].clone()],
        Arc::clone(&bare.key),
    )));
    let store = system([&other, &intermediate]);
    assert_eq!(connect(&store, &OwnCa::none(), &bare), Outcome::Accepted);
    assert_eq!(connect(&store, &own, &bare), Outcome::OurOwn);
    assert_eq!(
        connect(&file([&intermediate]), &own, &bare),
        Outcome::Accepted
    );

    // A store with nothing else in it is of no use, which is said at once.
    let error = client_config(&system([&root]), &own)
        .unwrap_err()
        .to_string();
    assert!(error.contains("only Claviger's own authority"), "{error}");
}

#[test]
fn a_cross_signed_authority_is_still_ours() {
    let ours = Ca::new(&["example.com"], &[API]);
    let own = ours.authority.own_ca();
    // A company root that vouches for our root's key, with another name constraint: none.
    let company_key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
        .distinguished_name
        .push(DnType::CommonName, "Company Root");
    let company = rcgen::CertifiedIssuer::self_signed(params, company_key).unwrap();

    let ours_der = ours.root();
    let (_, parsed) = x509_parser::parse_x509_certificate(&ours_der).unwrap();
    let names: Vec<&str> = parsed
        .subject()
        .iter_attributes()
        .map(|attribute| attribute.as_str().unwrap())
        .collect();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::OrganizationName, names[0]);
    params.distinguished_name.push(DnType::CommonName, names[1]);
    let root_key =
        KeyPair::from_pem(&std::fs::read_to_string(ours.path("root.key")).unwrap()).unwrap();
    let crossed = params.signed_by(&root_key, &company).unwrap();

    let leaf = ours.leaf(&[API]);
    let mut chain = leaf.cert.clone();
    chain.push(crossed.der().clone());
    let server = serving(Arc::new(rustls::sign::CertifiedKey::new(
        chain,
        Arc::clone(&leaf.key),
    )));
    let store = system([company.der()]);
    assert_eq!(connect(&store, &OwnCa::none(), &server), Outcome::Accepted);
    assert_eq!(connect(&store, &own, &server), Outcome::OurOwn);
    // Naming the company root is not naming ours.
    assert_eq!(
        connect(&file([company.der()]), &own, &server),
        Outcome::OurOwn
    );
    // The cross-signed certificate as an anchor is ours by its key.
    let store = system([&ours.root(), crossed.der()]);
    assert!(client_config(&store, &own).is_err());
}

#[test]
fn former_authorities_are_ours_too() {
    let mut ours = Ca::new(&["example.com"], &[API]);
    let theirs = Ca::new(&["example.com"], &[]);
    let former_root = ours.root();
    let former = ours.leaf(&[API]);

    // Another intermediate, then another root.
    let mut options = IssueOptions::new(
        ours.dir.path().to_owned(),
        strings(&["www.example.com"]),
        std::time::SystemTime::now(),
    );
    options.out = Some(ours.dir.path().to_owned());
    issue(&options).unwrap();
    ours.authority = Authority::load(ours.dir.path(), None).unwrap();
    let store = system([&former_root, &theirs.root(), &former.cert[1]]);
    assert_eq!(
        connect(
            &store,
            &ours.authority.own_ca(),
            &serving(Arc::clone(&former))
        ),
        Outcome::OurOwn
    );

    let mut options = super::init_options(ours.dir.path(), &["example.com"], &[API]);
    options.force = true;
    init(&options).unwrap();
    ours.authority = Authority::load(ours.dir.path(), None).unwrap();
    assert_ne!(ours.root(), former_root);
    assert_eq!(
        connect(&store, &ours.authority.own_ca(), &serving(former)),
        Outcome::OurOwn
    );
}

#[test]
fn a_certificate_that_we_serve_ourselves_is_refused_whoever_signed_it() {
    let public = Ca::new(&["example.com"], &[]);
    let served = public.leaf(&[API]);
    let another = public.leaf(&[API]);
    let own = OwnCa::none().with_served_keys(&[Arc::clone(&served)]);
    for roots in [system([&public.root()]), file([&public.root()])] {
        assert_eq!(
            connect(&roots, &own, &serving(Arc::clone(&served))),
            Outcome::OurOwn
        );
        assert_eq!(
            connect(&roots, &own, &serving(Arc::clone(&another))),
            Outcome::Accepted
        );
    }
}

#[test]
fn the_name_and_the_time_are_verified() {
    let theirs = Ca::new(&["example.com"], &[]);
    let client = client_config(&file([&theirs.root()]), &OwnCa::none()).unwrap();
    let server = serving(theirs.leaf(&["www.example.com"]));
    assert!(matches!(
        handshake(&client, &server, API),
        Err(Failed::Client(Error::InvalidCertificate(
            CertificateError::NotValidForNameContext { .. }
        )))
    ));
    let past = std::time::SystemTime::now() - 40 * super::DAY;
    let expired = theirs.authority.leaf_issuer().unwrap();
    let expired = expired
        .issue(
            &strings(&[API]),
            Default::default(),
            LEAF_LIFE_DEFAULT,
            past,
        )
        .unwrap();
    assert!(matches!(
        handshake(&client, &serving(expired.certified), API),
        Err(Failed::Client(Error::InvalidCertificate(
            CertificateError::ExpiredContext { .. }
        )))
    ));
}

#[test]
fn sessions_with_an_upstream_resume() {
    let theirs = Ca::new(&["example.com"], &[]);
    let client = client_config(&file([&theirs.root()]), &OwnCa::none()).unwrap();
    assert_eq!(client.alpn_protocols, [b"http/1.1"]);
    assert!(client.enable_sni && !client.enable_early_data);
    let tickets: Arc<dyn ProducesTickets> = Ticketers::new().for_host("up", "").unwrap();
    let options = ServerTls {
        tickets: Some(tickets),
        ..ServerTls::default()
    };
    let server = server_config(vec![theirs.leaf(&[API])], &options).unwrap();
    let kinds = [(); 3].map(|()| handshake(&client, &server, API).unwrap().0.handshake_kind());
    assert_eq!(
        kinds.map(Option::unwrap),
        [
            HandshakeKind::Full,
            HandshakeKind::Resumed,
            HandshakeKind::Resumed
        ]
    );
}

#[test]
fn verifiers_are_shared_and_follow_the_authority() {
    let ours = Ca::new(&["example.com"], &[API]);
    let theirs = Ca::new(&["example.com"], &[]);
    let roots = system([&ours.root(), &theirs.root()]);
    let own = ours.authority.own_ca();
    let first = roots.verifier(&own).unwrap();
    // The same content, loaded again.
    let again = Authority::load(ours.dir.path(), None).unwrap().own_ca();
    assert!(Arc::ptr_eq(
        &first,
        &roots.clone().verifier(&again).unwrap()
    ));
    assert!(!Arc::ptr_eq(
        &first,
        &roots.verifier(&OwnCa::none()).unwrap()
    ));
}

#[test]
fn roots_from_files_and_from_the_system() {
    let ours = Ca::new(&["example.com"], &[API]);
    assert_eq!(Roots::file(&ours.path("root.pem")).unwrap().len(), 1);
    let error = Roots::file(&ours.path("root.key")).unwrap_err().to_string();
    assert!(
        error.contains("root.key") && error.contains("BEGIN CERTIFICATE"),
        "{error}"
    );
    let broken = ours.path("broken.pem");
    let nonsense = x509::to_pem(&CertificateDer::from(vec![0x30, 0x00]));
    let good = ours.authority.root_pem();
    std::fs::write(&broken, format!("{good}{nonsense}")).unwrap();
    let error = Roots::file(&broken).unwrap_err().to_string();
    assert!(error.contains("certificate 2 is unusable"), "{error}");
    // A machine without a trust store is told what to install.
    match Roots::system() {
        Ok(roots) => assert!(!roots.is_empty()),
        Err(err) => assert!(err.to_string().contains("ca-certificates"), "{err}"),
    }
}
