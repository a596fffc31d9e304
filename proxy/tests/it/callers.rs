//! Callers that are known by name: tokens, client certificates and what load balancers say of
//! their addresses. Whoever proves nothing gets nothing, and a proof goes no further than here.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;

use rcgen::SanType;
use rustls::ClientConfig;
use serde_json::Value;

use crate::harness::process::Process;
use crate::harness::world::{Claviger, HOST, Site, bearer_route};
use crate::harness::{Answer, Client, Mock, World, eventually, pki};

/// The usual route for these callers, and further tables.
fn site(callers: &str, tables: impl FnOnce(&World) -> String) -> Site {
    Site::build(&[], |world, mock, key_file| {
        let route = bearer_route(key_file).replace("\"open\"", callers);
        let base = format!("{}{}{route}", world.base(), mock.upstream("mock", HOST));
        format!("{base}{}", tables(world))
    })
}

/// A token's file in the world's directory; the token is looked for at the end, as keys are.
fn token(world: &World, name: &str) -> String {
    let (token, _) = world.key_file(name);
    token
}

fn get(client: &mut Client, path: &str, field: &str) -> Answer {
    client.call(format!(
        "GET {path} HTTP/1.1\r\nHost: {HOST}\r\n{field}\r\n\r\n"
    ))
}

/// What the trail says of who called: caller, proofs, version of the token.
fn known_as(claviger: &Claviger, path: &str) -> (String, String, Option<String>) {
    let record = claviger.audit_of(path);
    let text = |name: &str| record[name].as_str().map(str::to_owned);
    (
        text("caller").expect("a caller"),
        text("identified_by").expect("proofs"),
        text("token_version"),
    )
}

#[test]
fn a_token_lets_its_caller_in_and_goes_no_further() {
    let mut tokens = Vec::new();
    let site = site("[\"billing\"]", |world| {
        tokens = vec![token(world, "billing"), token(world, "billing.next")];
        // A version is the time of its file; these were written within one tick of the clock.
        let older = std::time::SystemTime::now() - std::time::Duration::from_secs(60);
        std::fs::File::options()
            .write(true)
            .open(world.path("billing"))
            .and_then(|file| file.set_modified(older))
            .expect("it is ours");
        let file = |name| format!("\"file://{}\"", world.path(name).display());
        format!(
            "[caller.billing]\ntoken = [{}, {}]\n",
            file("billing"),
            file("billing.next")
        )
    });
    let mut client = site.connect();
    let answer = client.get(HOST, "/echo/none");
    answer.expect_own(401, "caller_not_authenticated");
    assert_eq!(
        answer.field("www-authenticate"),
        Some("Bearer realm=\"claviger\"")
    );
    let record = site.claviger.audit_of("/echo/none");
    assert_eq!(record["status"], 401);
    assert_eq!(record["route"], "mock");
    assert_eq!(record["reason"], "caller_not_authenticated");
    assert_eq!(record["credential"], Value::Null);
    // The API's own key, were it known, would open nothing.
    for wrong in [
        "Claviger-Token: 0123456789abcdef0123",
        &format!("Claviger-Token: {}", site.key),
    ] {
        get(&mut client, "/echo/wrong", wrong).expect_own(401, "caller_not_authenticated");
    }
    let mut versions = Vec::new();
    for (number, token) in tokens.iter().enumerate() {
        for (place, field) in [
            ("own", format!("Claviger-Token: {token}")),
            ("bearer", format!("Authorization: Bearer {token}")),
            ("header", format!("x-api-key: {token}")),
        ] {
            let path = format!("/echo/{number}/{place}");
            let echo = get(&mut client, &path, &field).expect(200).json();
            assert_eq!(echo["authorized"], true);
            let (caller, by, version) = known_as(&site.claviger, &path);
            assert_eq!((&*caller, &*by), ("billing", "token"));
            versions.extend(version);
        }
    }
    versions.dedup();
    assert_eq!(
        versions.len(),
        2,
        "each file has a version of its own: {versions:?}"
    );
    for request in site.mock.received() {
        let seen = request.to_string().to_ascii_lowercase();
        assert!(!seen.contains("claviger-token"), "{seen}");
        for token in &tokens {
            assert!(!seen.contains(&token.to_ascii_lowercase()), "{seen}");
        }
    }
    // Dropping the world looks for the tokens in everything that came out, as for keys.
}

#[test]
fn a_token_is_replaced_without_a_restart() {
    let site = site("[\"billing\"]", |world| {
        token(world, "billing");
        let file = world.path("billing");
        format!("[caller.billing]\ntoken = \"file://{}\"\n", file.display())
    });
    let old = std::fs::read_to_string(site.world.path("billing")).expect("just written");
    let mut client = site.connect();
    get(&mut client, "/ok", &format!("Claviger-Token: {old}")).expect(200);
    let mark = site.claviger.log().mark();
    let new = site.world.key();
    site.world.write("billing", &new);
    site.claviger.wait_reloaded(mark);
    // On the same connection: what was shown is asked for anew with each request.
    get(&mut client, "/ok", &format!("Claviger-Token: {old}"))
        .expect_own(401, "caller_not_authenticated");
    get(&mut client, "/ok", &format!("Claviger-Token: {new}")).expect(200);
}

#[test]
fn a_token_that_could_be_guessed_is_refused() {
    let world = World::new();
    let (key, key_file) = world.key_file("key");
    let mock = Mock::start(&world, &[HOST], &["--auth", "bearer", "--key", &key]);
    world.write("short", "0123456789abcde\n");
    let route = bearer_route(&key_file).replace("\"open\"", "\"short\"");
    let config = format!(
        "{}{}{route}[caller.short]\ntoken = \"file://{}\"\n",
        world.base(),
        mock.upstream("mock", HOST),
        world.path("short").display()
    );
    let path = world.write("claviger.toml", config);
    let refused = world.cli(&["check", "--config", &path.display().to_string()]);
    let text = refused.err_text() + &refused.out_text();
    refused.expect_code(1);
    assert!(
        text.contains("a token of the caller `short` cannot be used"),
        "{text}"
    );
    assert!(text.contains("openssl rand -hex 32"), "{text}");
    assert!(!text.contains("0123456789abcde"), "{text}");
}

// ---- Client certificates -----------------------------------------------------

fn with_certificate(world: &World, (chain, key): Shown) -> ClientConfig {
    ClientConfig::builder_with_provider(pki::provider())
        .with_safe_default_protocol_versions()
        .expect("both versions")
        .with_root_certificates(pki::roots(&world.path("root.pem")))
        .with_client_auth_cert(chain, key)
        .expect("they belong together")
}

type Shown = (
    Vec<rustls::pki_types::CertificateDer<'static>>,
    rustls::pki_types::PrivateKeyDer<'static>,
);

/// The status of a request by a caller with this configuration; `None` if the handshake fails.
fn status(claviger: &Claviger, config: ClientConfig, path: &str) -> Option<u16> {
    let mut client = claviger.connect_with(HOST, config).ok()?;
    // In TLS 1.3 the refusal comes after the client's last flight.
    let sent = client.try_send(format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n"));
    sent.ok()?;
    match client.fill() {
        Ok(0) | Err(_) => None,
        Ok(_) => Some(client.answer().status),
    }
}

#[test]
fn a_certificate_is_a_caller_until_it_is_revoked() {
    let mut authorities = Vec::new();
    let site = site("[\"edge\", \"mesh\", \"billing\"]", |world| {
        let directory = world.subdirectory("callers");
        let ca = pki::TestCa::new(&directory, "callers");
        world.write("callers.crl", ca.revoking(&[]));
        token(world, "billing");
        let tables = format!(
            "[host.{HOST:?}]\nclient_ca = {:?}\nclient_certificate = \"request\"\nclient_crl = {:?}\n\
             [caller.edge]\ncertificate = \"edge.example.com\"\n\
             [caller.mesh]\ncertificate = \"spiffe://example.com/mesh\"\n\
             [caller.billing]\ntoken = \"file://{}\"\n",
            ca.file(),
            world.path("callers.crl"),
            world.path("billing").display()
        );
        authorities = vec![ca, pki::TestCa::new(&directory, "others")];
        tables
    });
    let (ca, others) = (&authorities[0], &authorities[1]);
    let dns = |name: &str| SanType::DnsName(name.try_into().expect("a DNS name"));
    let uri = |text: &str| SanType::URI(text.try_into().expect("a URI"));
    let ask = |shown: Shown, path: &str| {
        let config = with_certificate(&site.world, shown);
        status(&site.claviger, config, path)
    };
    let edge = |serial| ca.client_with(dns("Edge.example.com"), serial);
    assert_eq!(ask(edge(11), "/echo/edge"), Some(200));
    let by_certificate = |name: &str| (name.to_owned(), "certificate".to_owned(), None);
    assert_eq!(
        known_as(&site.claviger, "/echo/edge"),
        by_certificate("edge")
    );
    let mesh = ca.client_with(uri("spiffe://example.com/mesh"), 12);
    assert_eq!(ask(mesh, "/echo/mesh"), Some(200));
    assert_eq!(
        known_as(&site.claviger, "/echo/mesh"),
        by_certificate("mesh")
    );
    // Good certificates of nobody, and a name from another authority.
    assert_eq!(
        ask(ca.client_with(dns("*.example.com"), 13), "/echo/wide"),
        Some(401)
    );
    assert_eq!(
        ask(
            ca.client_with(uri("spiffe://example.com/mesh/x"), 14),
            "/echo/near"
        ),
        Some(401)
    );
    assert_eq!(
        ask(
            others.client_with(dns("edge.example.com"), 15),
            "/echo/false"
        ),
        None
    );
    // None is asked for, and then the others' rules decide.
    let without = || site.world.client_config();
    assert_eq!(
        status(&site.claviger, without(), "/echo/without"),
        Some(401)
    );
    let billing = std::fs::read_to_string(site.world.path("billing")).expect("just written");
    let mut client = site.connect();
    get(
        &mut client,
        "/echo/billing",
        &format!("Claviger-Token: {billing}"),
    )
    .expect(200);

    let mark = site.claviger.log().mark();
    site.world.write("callers.crl", ca.revoking(&[11]));
    site.claviger.wait_reloaded(mark);
    assert_eq!(ask(edge(11), "/echo/revoked"), None);
    assert_eq!(ask(edge(16), "/echo/renewed"), Some(200));
    // Each of those who were refused is nobody on the trail, or not on it.
    let record = site.claviger.audit_of("/echo/wide");
    assert_eq!(
        (record["caller"].as_str(), record["status"].as_u64()),
        (Some("unknown"), Some(401))
    );
    assert!(!site.mock.received().iter().any(|request| {
        [
            "/echo/wide",
            "/echo/near",
            "/echo/false",
            "/echo/without",
            "/echo/revoked",
        ]
        .iter()
        .any(|path| request["target"] == *path)
    }));
}

// ---- Load balancers ------------------------------------------------------------

/// HAProxy in front, which passes connections on as they are and says whose they are.
fn balancer(world: &World, port: u16, send: &str, to: SocketAddr) -> (Process, SocketAddr) {
    let config = format!(
        "global\n    nbthread 1\n    maxconn 100\ndefaults\n    mode tcp\n    timeout connect 10s\n    \
         timeout client 1m\n    timeout server 1m\nlisten front\n    bind 127.0.0.1:{port}\n    \
         server claviger {to} {send}\n"
    );
    let path = world.write(&format!("haproxy-{port}.cfg"), config);
    let mut command = Command::new("haproxy");
    command.arg("-db").arg("-f").arg(path);
    let process = Process::start("haproxy", command);
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    eventually("haproxy listens", || TcpStream::connect(address).ok());
    (process, address)
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has ports");
    listener.local_addr().expect("it is bound").port()
}

#[test]
fn a_load_balancer_says_who_calls() {
    let world = World::new();
    let (key, key_file) = world.key_file("key");
    let mock = Mock::start(&world, &[HOST], &["--auth", "bearer", "--key", &key]);
    // HAProxy comes from 127.0.0.1, which alone is believed; 127.0.0.9 is another peer.
    let route =
        bearer_route(&key_file).replace("\"open\"", "[\"127.0.0.1/32\"]\ndenied = \"127.0.0.7\"");
    let base = world.base();
    let (before, after) = base
        .split_once("[[listener]]\n")
        .expect("the base has a listener");
    let claviger = world.start(&format!(
        "{before}[[listener]]\nproxy_protocol = \"127.0.0.1\"\n{after}{}{route}",
        mock.upstream("mock", HOST)
    ));
    let config = world.client_config();
    for (send, version) in [("send-proxy", 1), ("send-proxy-v2", 2)] {
        let (_haproxy, front) = balancer(&world, free_port(), send, claviger.address());
        for (source, expected) in [
            ([127, 0, 0, 1], 200),
            ([127, 0, 0, 7], 403),
            ([127, 0, 0, 8], 403),
        ] {
            let path = format!("/echo/v{version}/{}", source[3]);
            let mut client = Client::tls_from(
                SocketAddr::from((source, 0)),
                front,
                HOST,
                config.clone().into(),
                world.transcript(),
            )
            .expect("a handshake through the balancer");
            assert_eq!(client.get(HOST, &path).status, expected, "{path}");
            let record = claviger.audit_of(&path);
            let source = SocketAddr::from((source, 0)).ip().to_string();
            assert_eq!(record["client"].as_str(), Some(&*source));
        }
    }
    // A listed peer without a header is nobody; its bytes are not read as anything else.
    let refused = || claviger.status()["connections_refused_proxy"].as_u64();
    let before = refused().expect("a number");
    assert!(claviger.connect_with(HOST, config.clone()).is_err());
    eventually("the connection is counted", || {
        (refused()? > before).then_some(())
    });
    // And another peer's header is not believed: it is no handshake.
    let failed = claviger.status()["handshakes_failed"]
        .as_u64()
        .expect("a number");
    let mut liar = Client::clear_from(
        SocketAddr::from(([127, 0, 0, 9], 0)),
        claviger.address(),
        world.transcript(),
    )
    .expect("it is accepted");
    liar.send("PROXY TCP4 127.0.0.1 127.0.0.1 1 443\r\n");
    liar.read_to_end();
    eventually("the handshake has failed", || {
        (claviger.status()["handshakes_failed"].as_u64()? > failed).then_some(())
    });
}
