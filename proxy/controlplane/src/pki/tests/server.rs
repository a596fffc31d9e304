//! What callers meet: ALPN, the choice of a certificate, resumption, client certificates, and
//! keys from files.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use rustls::client::Resumption;
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::ProducesTickets;
use rustls::version::{TLS12, TLS13};
use rustls::{
    AlertDescription, ClientConfig, Error, HandshakeKind, RootCertStore, ServerConfig,
    SignatureAlgorithm, SignatureScheme, SupportedProtocolVersion,
};

use super::{Ca, Failed, handshake, strings};
use crate::pki::authority::{IssueOptions, KeyType, issue};
use crate::pki::tls::provider;
use crate::pki::{Roots, ServerTls, Ticketers, load_certified_key, server_config, x509};

/// A plain client of someone else's making.
fn client(ca: &Ca, version: &'static SupportedProtocolVersion) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(ca.root()).unwrap();
    ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth()
}

fn ca() -> Ca {
    Ca::new(&["example.com"], &[])
}

fn host(ca: &Ca, tickets: Option<Arc<dyn ProducesTickets>>) -> Arc<ServerConfig> {
    let options = ServerTls {
        tickets,
        ..ServerTls::default()
    };
    server_config(vec![ca.leaf(&["api.example.com"])], &options).unwrap()
}

#[test]
fn only_http_1_1_is_spoken() {
    let ca = ca();
    let server = host(&ca, None);
    for version in [&TLS13, &TLS12] {
        for (offered, selected) in [
            (&["http/1.1"][..], Some("http/1.1")),
            (&["h2", "http/1.1"], Some("http/1.1")),
            (&[], None),
        ] {
            let mut config = client(&ca, version);
            config.alpn_protocols = offered.iter().map(|it| it.as_bytes().to_vec()).collect();
            let (down, _) = handshake(&Arc::new(config), &server, "api.example.com").unwrap();
            assert_eq!(down.alpn_protocol(), selected.map(str::as_bytes));
        }
        let mut config = client(&ca, version);
        config.alpn_protocols = vec![b"h2".to_vec()];
        match handshake(&Arc::new(config), &server, "api.example.com") {
            Err(Failed::Server(Error::NoApplicationProtocol)) => {}
            other => panic!("{other:?}"),
        }
    }
    // And what goes over the wire is the alert of that name.
    let mut config = client(&ca, &TLS13);
    config.alpn_protocols = vec![b"h2".to_vec()];
    let mut down =
        rustls::ClientConnection::new(Arc::new(config), "api.example.com".try_into().unwrap())
            .unwrap();
    let mut up = rustls::ServerConnection::new(server).unwrap();
    let mut wire = Vec::new();
    down.write_tls(&mut wire).unwrap();
    up.read_tls(&mut wire.as_slice()).unwrap();
    up.process_new_packets().unwrap_err();
    wire.clear();
    up.write_tls(&mut wire).unwrap();
    down.read_tls(&mut wire.as_slice()).unwrap();
    assert_eq!(
        down.process_new_packets().unwrap_err(),
        Error::AlertReceived(AlertDescription::NoApplicationProtocol)
    );
}

#[test]
fn the_client_gets_a_certificate_that_it_can_verify() {
    static ONLY_RSA: &[SignatureScheme] = &[SignatureScheme::RSA_PSS_SHA256];
    static ONLY_ED25519: &[SignatureScheme] = &[SignatureScheme::ED25519];
    let ca = ca();
    let rsa = ca.leaf_of(KeyType::Rsa, &["api.example.com"]);
    let ecdsa = ca.leaf(&["api.example.com"]);
    let other = ca.leaf(&["www.example.com", "*.v1.example.com"]);
    let server = server_config(vec![other, rsa, ecdsa], &ServerTls::default()).unwrap();

    let served = |schemes: Option<&'static [SignatureScheme]>, name: &str| {
        let mut config = client(&ca, &TLS13);
        if let Some(schemes) = schemes {
            // Certificates may be signed by anything; handshakes only thus.
            let all = provider().signature_verification_algorithms;
            let mapping: Vec<_> = all
                .mapping
                .iter()
                .copied()
                .filter(|(it, _)| schemes.contains(it))
                .collect();
            let mut narrow = (*provider()).clone();
            narrow.signature_verification_algorithms = WebPkiSupportedAlgorithms {
                all: all.all,
                mapping: Vec::leak(mapping),
            };
            let mut roots = RootCertStore::empty();
            roots.add(ca.root()).unwrap();
            config = ClientConfig::builder_with_provider(Arc::new(narrow))
                .with_protocol_versions(&[&TLS13])
                .unwrap()
                .with_root_certificates(roots)
                .with_no_client_auth();
        }
        handshake(&Arc::new(config), &server, name).map(|(down, _)| {
            let leaf = &down.peer_certificates().unwrap()[0];
            let (_, parsed) = x509_parser::parse_x509_certificate(leaf).unwrap();
            let algorithm = match parsed.public_key().parsed().unwrap() {
                x509_parser::public_key::PublicKey::RSA(_) => SignatureAlgorithm::RSA,
                x509_parser::public_key::PublicKey::EC(_) => SignatureAlgorithm::ECDSA,
                _ => panic!("neither"),
            };
            (algorithm, x509::facts(leaf).unwrap().dns_names.join(" "))
        })
    };
    let api = "api.example.com";
    assert_eq!(
        served(None, api).unwrap(),
        (SignatureAlgorithm::ECDSA, api.to_owned())
    );
    assert_eq!(
        served(Some(ONLY_RSA), api).unwrap(),
        (SignatureAlgorithm::RSA, api.to_owned())
    );
    assert_eq!(
        served(None, "www.example.com").unwrap().0,
        SignatureAlgorithm::ECDSA
    );
    assert_eq!(
        served(None, "b.v1.example.com").unwrap().1,
        "www.example.com *.v1.example.com"
    );
    assert!(matches!(
        served(Some(ONLY_ED25519), api),
        Err(Failed::Server(Error::PeerIncompatible(_)))
    ));
    assert!(server_config(Vec::new(), &ServerTls::default()).is_err());
}

/// The kinds of two handshakes of one client, the second perhaps with another host.
fn twice(
    client: ClientConfig,
    first: &Arc<ServerConfig>,
    second: &Arc<ServerConfig>,
) -> [HandshakeKind; 2] {
    let client = Arc::new(client);
    [first, second].map(|server| {
        let (down, up) = handshake(&client, server, "api.example.com").unwrap();
        assert_eq!(down.handshake_kind(), up.handshake_kind());
        down.handshake_kind().unwrap()
    })
}

#[test]
fn sessions_resume_by_tickets_within_a_virtual_host_only() {
    use HandshakeKind::{Full, Resumed};
    let ca = ca();
    let mut ticketers = Ticketers::new();
    for version in [&TLS13, &TLS12] {
        let server = host(&ca, Some(ticketers.for_host("api", "rules").unwrap()));
        assert_eq!(
            twice(client(&ca, version), &server, &server),
            [Full, Resumed]
        );
        // After a reload.
        let reloaded = host(&ca, Some(ticketers.for_host("api", "rules").unwrap()));
        assert_eq!(
            twice(client(&ca, version), &server, &reloaded),
            [Full, Resumed]
        );
        // Under another virtual host, and after its rules changed.
        let other = host(&ca, Some(ticketers.for_host("www", "rules").unwrap()));
        assert_eq!(twice(client(&ca, version), &server, &other), [Full, Full]);
        let changed = host(&ca, Some(ticketers.for_host("api", "other rules").unwrap()));
        assert_eq!(twice(client(&ca, version), &server, &changed), [Full, Full]);
        // Without tickets there is no other memory.
        let without = host(&ca, None);
        assert_eq!(
            twice(client(&ca, version), &without, &without),
            [Full, Full]
        );
        ticketers.retain(|host| host == "www");
        let forgotten = host(&ca, Some(ticketers.for_host("api", "other rules").unwrap()));
        assert_eq!(
            twice(client(&ca, version), &changed, &forgotten),
            [Full, Full]
        );
    }
}

#[test]
fn a_host_that_asks_for_client_certificates_never_resumes() {
    let ca = ca();
    // A client's authority, and a certificate of it.
    let ca_key = KeyPair::generate().unwrap();
    let mut ca_params = CertificateParams::default();
    ca_params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let issuer = rcgen::CertifiedIssuer::self_signed(ca_params, ca_key).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(strings(&["billing.service"])).unwrap();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let certificate = params.signed_by(&key, &issuer).unwrap();

    let roots = Roots::from_der(vec![issuer.der().clone()])
        .unwrap()
        .client_ca_store();
    let options = ServerTls {
        tickets: Some(Ticketers::new().for_host("api", "").unwrap()),
        client_ca: Some(roots),
        client_crls: Vec::new(),
        client_auth_optional: false,
    };
    let server = server_config(vec![ca.leaf(&["api.example.com"])], &options).unwrap();
    assert_eq!(server.send_tls13_tickets, 0);
    for version in [&TLS13, &TLS12] {
        let with_certificate = || {
            let mut roots = RootCertStore::empty();
            roots.add(ca.root()).unwrap();
            let mut config = ClientConfig::builder_with_provider(provider())
                .with_protocol_versions(&[version])
                .unwrap()
                .with_root_certificates(roots)
                .with_client_auth_cert(
                    vec![certificate.der().clone()],
                    PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
                )
                .unwrap();
            config.resumption = Resumption::in_memory_sessions(16);
            config
        };
        use HandshakeKind::Full;
        assert_eq!(twice(with_certificate(), &server, &server), [Full, Full]);
        // A ticket of a host without client certificates is no way in either.
        let open = ServerTls {
            client_ca: None,
            ..options.clone()
        };
        let open = server_config(vec![ca.leaf(&["api.example.com"])], &open).unwrap();
        assert_eq!(twice(with_certificate(), &open, &server), [Full, Full]);

        let without = handshake(&Arc::new(client(&ca, version)), &server, "api.example.com");
        assert!(
            matches!(without, Err(Failed::Server(Error::NoCertificatesPresented))),
            "{without:?}"
        );
        let optional = ServerTls {
            client_auth_optional: true,
            ..options.clone()
        };
        let optional = server_config(vec![ca.leaf(&["api.example.com"])], &optional).unwrap();
        let (_, up) = handshake(
            &Arc::new(client(&ca, version)),
            &optional,
            "api.example.com",
        )
        .unwrap();
        assert!(up.peer_certificates().is_none());
        let (_, up) =
            handshake(&Arc::new(with_certificate()), &optional, "api.example.com").unwrap();
        assert_eq!(up.peer_certificates().unwrap().len(), 1);
    }
}

#[test]
fn keys_from_files_are_loaded_or_refused_with_the_cure() {
    let ca = ca();
    let out = tempfile::tempdir().unwrap();
    for (host, key_type) in [
        ("a.example.com", KeyType::Ecdsa),
        ("b.example.com", KeyType::Rsa),
    ] {
        let mut options = IssueOptions::new(
            ca.dir.path().to_owned(),
            strings(&[host, "*.w.example.com"]),
            std::time::SystemTime::now(),
        );
        options.out = Some(out.path().to_owned());
        options.key_type = key_type;
        issue(&options).unwrap();
        let [pem, key] = ["pem", "key"].map(|it| out.path().join(format!("{host}.{it}")));
        let loaded = load_certified_key(&pem, &key, false).unwrap();
        assert_eq!(loaded.certified.cert.len(), 2);
        assert!(loaded.covers(host) && loaded.covers("x.w.example.com"));
        assert!(loaded.covers("*.w.example.com"));
        assert!(!loaded.covers("w.example.com") && !loaded.covers("x.y.w.example.com"));
        assert!(!loaded.covers("*.example.com"));
        let now = std::time::SystemTime::now();
        assert_eq!(
            loaded.concerns(&strings(&[host, "x.w.example.com"]), now),
            [""; 0]
        );
        for (hosts, when, says) in [
            (["w.example.com"], now, "is not valid for w.example.com"),
            ([host], now + 20 * super::DAY, "expires on"),
            ([host], now + 31 * super::DAY, "expired on"),
            ([host], now - super::DAY, "not valid before"),
        ] {
            let concerns = loaded.concerns(&strings(&hosts), when);
            assert!(
                concerns.len() == 1 && concerns[0].contains(says),
                "{concerns:?}"
            );
        }
        let server = server_config(vec![loaded.certified], &ServerTls::default()).unwrap();
        handshake(&Arc::new(client(&ca, &TLS12)), &server, host).unwrap();
    }

    let path = |file: &str| out.path().join(file);
    let write = |file: &str, content: &str| {
        fs::write(path(file), content).unwrap();
        fs::set_permissions(path(file), Permissions::from_mode(0o600)).unwrap();
        path(file)
    };
    let read = |file: &str| fs::read_to_string(path(file)).unwrap();
    let chain = read("a.example.com.pem");
    let second = chain.rfind("-----BEGIN").unwrap();
    let swapped = write(
        "swapped.pem",
        &format!("{}{}", &chain[second..], &chain[..second]),
    );
    let both = write("both.pem", &format!("{chain}{}", read("a.example.com.key")));
    let empty = write("empty.pem", "");
    let torn = write("torn.pem", &chain[..chain.len() / 3]);
    let encrypted = write(
        "encrypted.key",
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
    );
    let open = write("open.key", &read("a.example.com.key"));
    fs::set_permissions(&open, Permissions::from_mode(0o644)).unwrap();
    let [pem, key, other] = [
        "a.example.com.pem",
        "a.example.com.key",
        "b.example.com.key",
    ]
    .map(path);

    load_certified_key(&both, &both, false).unwrap();
    let now = std::time::SystemTime::now();
    for (content, says) in [
        (
            chain[..second].to_owned(),
            "without the certificate of its issuer",
        ),
        (
            format!("{}{}", &chain[..second], ca.authority.root_pem()),
            "did not issue number 1",
        ),
    ] {
        let odd = write("odd.pem", &content);
        let concerns = load_certified_key(&odd, &key, false)
            .unwrap()
            .concerns(&[], now);
        assert!(
            concerns.len() == 1 && concerns[0].contains(says),
            "{concerns:?}"
        );
    }
    load_certified_key(&pem, &open, true).unwrap();
    for (pem, key, file, says) in [
        (&pem, &other, &other, "does not belong to the certificate"),
        (&swapped, &key, &swapped, "at place 2, not first"),
        (&empty, &key, &empty, "holds no certificate"),
        (&torn, &key, &torn, "BEGIN CERTIFICATE"),
        (&key, &key, &key, "holds no certificate"),
        (&pem, &pem, &pem, "mode 0644"),
        (&pem, &encrypted, &encrypted, "openssl pkey"),
        (&pem, &empty, &empty, "holds no private key"),
        (&pem, &open, &open, "chmod 0600"),
        (
            &path("absent.pem"),
            &key,
            &path("absent.pem"),
            "check the path",
        ),
        (
            &pem,
            &path("absent.key"),
            &path("absent.key"),
            "check the path",
        ),
    ] {
        let error = load_certified_key(pem, key, false).unwrap_err().to_string();
        assert!(error.starts_with(file.to_str().unwrap()), "{error}");
        assert!(error.contains(says), "{error}");
    }
}
