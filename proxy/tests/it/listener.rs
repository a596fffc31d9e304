//! Where callers connect: which certificate they get, which handshakes end, and
//! what a connection costs the second time.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{
    AlertDescription, ClientConfig, ClientConnection, HandshakeKind, ProtocolVersion,
    SignatureAlgorithm,
};

use crate::harness::world::{Claviger, HOST, Site, bearer_route};
use crate::harness::{Client, Mock, PATIENCE, World, pki};

/// The handshake's error, which must be an alert from the other side.
#[track_caller]
fn alert(result: std::io::Result<Client>) -> AlertDescription {
    let error = result.expect_err("the handshake is refused");
    match error
        .get_ref()
        .and_then(|error| error.downcast_ref::<rustls::Error>())
    {
        Some(rustls::Error::AlertReceived(alert)) => *alert,
        _ => panic!("no alert but {error}"),
    }
}

#[test]
fn unknown_and_absent_server_names_are_refused() {
    let site = Site::new();
    let connect = |name: &str, sni: bool| {
        let mut config = site.world.client_config();
        config.enable_sni = sni;
        site.claviger.connect_with(name, config)
    };
    assert_eq!(
        alert(connect("other.example.com", true)),
        AlertDescription::UnrecognisedName
    );
    assert_eq!(
        alert(connect(HOST, false)),
        AlertDescription::UnrecognisedName
    );
    site.claviger.wait_count("handshakes_refused_sni", 2);
    connect(HOST, true)
        .expect("the known name is served")
        .get(HOST, "/ok")
        .expect(200);
}

#[test]
fn an_unknown_server_name_may_get_a_host_of_choice() {
    let site = Site::build(&[], |world, mock, key_file| {
        format!(
            "{}unknown_sni = {HOST:?}\n{}{}",
            world.base(),
            mock.upstream("mock", HOST),
            bearer_route(key_file)
        )
    });
    let mut config = site.world.client_config();
    config.enable_sni = false;
    let mut client = site
        .claviger
        .connect_with(HOST, config)
        .expect("it gets the certificate");
    client.get(HOST, "/ok").expect(200);
}

#[test]
fn a_client_that_speaks_only_h2_gets_an_alert() {
    let site = Site::new();
    let offer = |protocols: &[&str]| {
        let mut config = site.world.client_config();
        config.alpn_protocols = protocols
            .iter()
            .map(|name| name.as_bytes().to_vec())
            .collect();
        site.claviger.connect_with(HOST, config)
    };
    assert_eq!(
        alert(offer(&["h2"])),
        AlertDescription::NoApplicationProtocol
    );
    site.claviger.wait_count("handshakes_refused_alpn", 1);
    for protocols in [&["h2", "http/1.1"][..], &["http/1.1"]] {
        let mut client = offer(protocols).expect("http/1.1 is spoken");
        assert_eq!(client.connection().alpn_protocol(), Some(&b"http/1.1"[..]));
        client.get(HOST, "/ok").expect(200);
    }
    offer(&[])
        .expect("no ALPN means HTTP/1.1")
        .get(HOST, "/ok")
        .expect(200);
}

/// A client that speaks this version of TLS alone.
pub fn version_config(
    world: &World,
    version: &'static rustls::SupportedProtocolVersion,
) -> ClientConfig {
    ClientConfig::builder_with_provider(pki::provider())
        .with_protocol_versions(&[version])
        .expect("a version")
        .with_root_certificates(pki::roots(&world.path("root.pem")))
        .with_no_client_auth()
}

#[test]
fn both_tls_versions_resume() {
    let site = Site::new();
    for (version, number) in [
        (&rustls::version::TLS12, ProtocolVersion::TLSv1_2),
        (&rustls::version::TLS13, ProtocolVersion::TLSv1_3),
    ] {
        let mut config = version_config(&site.world, version);
        config.resumption = Resumption::in_memory_sessions(4);
        let mut first = site
            .claviger
            .connect_with(HOST, config.clone())
            .expect("a handshake");
        assert_eq!(first.connection().protocol_version(), Some(number));
        assert_eq!(
            first.connection().handshake_kind(),
            Some(HandshakeKind::Full)
        );
        // Reading an answer also takes in the tickets.
        first.get(HOST, "/ok").expect(200);
        let mut second = site
            .claviger
            .connect_with(HOST, config.clone())
            .expect("a handshake");
        assert_eq!(
            second.connection().handshake_kind(),
            Some(HandshakeKind::Resumed),
            "{number:?}"
        );
        second.get(HOST, "/ok").expect(200);
        // A reload that leaves the host as it is does not cost the sessions.
        let same = std::fs::read_to_string(site.claviger.config()).expect("readable");
        site.claviger.reload(&(same + "# again\n"));
        let third = site
            .claviger
            .connect_with(HOST, config)
            .expect("a handshake");
        assert_eq!(
            third.connection().handshake_kind(),
            Some(HandshakeKind::Resumed),
            "{number:?}"
        );
    }
    site.claviger.wait_count("handshakes_resumed", 4);
}

/// The certificate that a client gets that takes only signatures of this kind.
fn certificate_for(claviger: &Claviger, world: &World, algorithm: SignatureAlgorithm) -> Vec<u8> {
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.cipher_suites.retain(|suite| match suite {
        rustls::SupportedCipherSuite::Tls12(suite) => suite.sign.iter().all(|scheme| {
            format!("{scheme:?}").starts_with(match algorithm {
                SignatureAlgorithm::RSA => "RSA",
                _ => "E",
            })
        }),
        rustls::SupportedCipherSuite::Tls13(_) => false,
    });
    let config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS12])
        .expect("a version")
        .with_root_certificates(pki::roots(&world.path("root.pem")))
        .with_no_client_auth();
    let mut client = claviger
        .connect_with(HOST, config)
        .unwrap_or_else(|err| panic!("{algorithm:?}: {err}"));
    client.get(HOST, "/ok").expect(200);
    client.connection().peer_certificates().expect("a chain")[0].to_vec()
}

#[test]
fn rsa_and_ecdsa_on_one_port() {
    let site = Site::build(&[], |world, mock, key_file| {
        let ca = world.path("ca").display().to_string();
        let mut pairs = Vec::new();
        for key_type in ["ecdsa", "rsa"] {
            let out = world.subdirectory(key_type);
            world
                .cli(&[
                    "ca",
                    "issue",
                    HOST,
                    "--dir",
                    &ca,
                    "--out",
                    &out.display().to_string(),
                    "--key-type",
                    key_type,
                ])
                .expect_code(0);
            pairs.push(out.join(HOST).display().to_string());
        }
        let list = |ending: &str| {
            pairs
                .iter()
                .map(|pair| format!("\"file://{pair}.{ending}\""))
                .collect::<Vec<_>>()
                .join(", ")
        };
        format!(
            "{}{}{}[host.{HOST:?}]\ncertificate = [{}]\nprivate_key = [{}]\n",
            world.base(),
            mock.upstream("mock", HOST),
            bearer_route(key_file),
            list("pem"),
            list("key")
        )
    });
    let rsa = certificate_for(&site.claviger, &site.world, SignatureAlgorithm::RSA);
    let ecdsa = certificate_for(&site.claviger, &site.world, SignatureAlgorithm::ECDSA);
    assert_ne!(rsa, ecdsa);
    let issued = |kind: &str| {
        let name = format!("{kind}-{}", if kind == "ecdsa" { 2 } else { 3 });
        CertificateDer::from_pem_file(site.world.path(&name).join(format!("{HOST}.pem")))
            .expect("PEM")
            .to_vec()
    };
    assert_eq!(ecdsa, issued("ecdsa"));
    assert_eq!(rsa, issued("rsa"));
}

#[test]
fn wildcard_hosts() {
    let world = World::new();
    let (key, key_file) = world.key_file("key");
    let mock = Mock::start(&world, &[HOST], &["--auth", "bearer", "--key", &key]);
    let route =
        bearer_route(&key_file).replace(&format!("host = {HOST:?}"), "host = \"*.example.com\"");
    let claviger = world.start(&format!(
        "{}{}{route}",
        world.base(),
        mock.upstream("mock", HOST)
    ));
    for name in ["a.example.com", "b.example.com"] {
        let answer = claviger.connect_as(&world, name).get(name, "/echo");
        assert_eq!(answer.expect(200).json()["tls"]["sni"], HOST);
    }
    assert!(
        claviger
            .connect_with("a.b.example.com", world.client_config())
            .is_err()
    );
    claviger
        .connect_as(&world, "a.example.com")
        .get("b.example.com", "/echo")
        .expect_own(421, "misdirected_request");
}

#[test]
fn ipv6_and_several_addresses() {
    let site = Site::build(&[], |world, mock, key_file| {
        format!(
            "{}[[listener]]\nname = \"main\"\naddress = [\"127.0.0.1:0\", \"[::1]:0\"]\n[[listener]]\nname = \"other\"\naddress = \"127.0.0.2:0\"\n{}{}",
            world.base_without_listener(),
            mock.upstream("mock", HOST),
            bearer_route(key_file)
        )
    });
    let addresses = [
        site.claviger.addresses_of("main"),
        site.claviger.addresses_of("other"),
    ]
    .concat();
    assert_eq!(addresses.len(), 3);
    for (number, address) in addresses.iter().enumerate() {
        let path = format!("/echo/{number}");
        let mut client = Client::tls(
            *address,
            HOST,
            Arc::new(site.world.client_config()),
            site.world.transcript(),
        )
        .expect("served");
        client.get(HOST, &path).expect(200);
        let record = site.claviger.audit_of(&path);
        assert_eq!(
            record["listener"],
            if number < 2 { "main" } else { "other" }
        );
        assert_eq!(
            record["client"],
            if address.is_ipv6() {
                "::1"
            } else {
                "127.0.0.1"
            }
        );
    }
}

#[test]
fn clear_text_only_where_the_file_says_so() {
    let site = Site::build(&[], |world, mock, key_file| {
        format!(
            "{}[[listener]]\nname = \"clear\"\naddress = \"127.0.0.2:0\"\ntls = false\n{}{}",
            world.base(),
            mock.upstream("mock", HOST),
            bearer_route(key_file)
        )
    });
    let clear = site.claviger.addresses_of("clear")[0];
    Client::clear(clear, site.world.transcript())
        .expect("it listens")
        .get(HOST, "/echo")
        .expect(200);
    // On the TLS listener, clear text gets no answer that could be taken for one.
    let mut socket = TcpStream::connect(site.claviger.address()).expect("it listens");
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    socket
        .write_all(format!("GET /echo HTTP/1.1\r\nHost: {HOST}\r\n\r\n").as_bytes())
        .expect("sent");
    let mut got = Vec::new();
    let _ = socket.read_to_end(&mut got);
    assert!(
        !got.starts_with(b"HTTP/"),
        "{}",
        String::from_utf8_lossy(&got)
    );
    assert_eq!(site.mock.received().len(), 1);
}

#[test]
fn slow_handshakes_and_heads_end() {
    let site = Site::build(&[], |world, mock, key_file| {
        let server = "handshake_timeout = \"500ms\"\nhead_timeout = \"500ms\"\nidle_timeout = \"1s\"\n[audit]";
        format!(
            "{}{}{}",
            world.base().replace("[audit]", server),
            mock.upstream("mock", HOST),
            bearer_route(key_file)
        )
    });
    let mut silent = TcpStream::connect(site.claviger.address()).expect("it listens");
    silent.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let _ = silent.read_to_end(&mut Vec::new());
    site.claviger.wait_count("handshakes_timed_out", 1);

    let mut slow = site.connect();
    slow.send("GET /echo HTTP/1.1\r\nHost: ");
    slow.answer().expect_own(408, "request_head_timeout");
    slow.expect_end();

    let mut idle = site.connect();
    idle.get(HOST, "/ok").expect(200);
    idle.expect_end();
}

/// With client certificates, every handshake is a full one: a resumed session would
/// skip the check.
#[test]
fn client_certificates() {
    let world = World::new();
    let (key, key_file) = world.key_file("key");
    let mock = Mock::start(&world, &[HOST], &["--auth", "bearer", "--key", &key]);
    let directory = world.subdirectory("callers");
    let ca = pki::TestCa::new(&directory, "callers");
    let claviger = world.start(&format!(
        "{}{}{}[host.{HOST:?}]\nclient_ca = {:?}\n",
        world.base(),
        mock.upstream("mock", HOST),
        bearer_route(&key_file),
        ca.file()
    ));
    let without = claviger
        .connect_with(HOST, world.client_config())
        .and_then(|mut client| {
            // In TLS 1.3 the refusal comes after the client's last flight.
            client.try_send(format!("GET /ok HTTP/1.1\r\nHost: {HOST}\r\n\r\n"))?;
            match client.fill()? {
                0 => Err(std::io::ErrorKind::UnexpectedEof.into()),
                _ => Ok(()),
            }
        });
    assert!(
        without.is_err(),
        "a caller without a certificate is refused"
    );
    let (chain, client_key) = ca.client("a-service");
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let config = ClientConfig::builder_with_provider(pki::provider())
            .with_protocol_versions(&[version])
            .expect("a version")
            .with_root_certificates(pki::roots(&world.path("root.pem")))
            .with_client_auth_cert(chain.clone(), client_key.clone_key())
            .expect("they belong together");
        for _ in 0..2 {
            let mut client = claviger
                .connect_with(HOST, config.clone())
                .expect("its certificate is accepted");
            client.get(HOST, "/ok").expect(200);
            assert_eq!(
                client.connection().handshake_kind(),
                Some(HandshakeKind::Full)
            );
        }
    }
    assert_eq!(mock.received().len(), 4);
}

/// The certificate chain is the one that `claviger ca` makes: verified by nothing
/// but the exported root, and limited to the permitted domains.
#[test]
fn the_exported_root_is_all_that_a_client_needs() {
    let site = Site::new();
    let client = site.connect();
    assert!(
        client
            .connection()
            .peer_certificates()
            .is_some_and(|chain| chain.len() >= 2),
        "leaf and intermediate are sent"
    );
    // Its own process is proof enough that another root does not do.
    let stranger = pki::TestCa::new(&site.world.subdirectory("stranger"), "ca");
    let config = ClientConfig::builder_with_provider(pki::provider())
        .with_safe_default_protocol_versions()
        .expect("both versions")
        .with_root_certificates(pki::roots(stranger.file()))
        .with_no_client_auth();
    assert!(site.claviger.connect_with(HOST, config).is_err());
    let name = ServerName::try_from(HOST).expect("a name");
    assert!(ClientConnection::new(Arc::new(site.world.client_config()), name).is_ok());
    assert!(
        PrivateKeyDer::from_pem_file(site.world.path("root.pem")).is_err(),
        "the export holds no private key"
    );
}
