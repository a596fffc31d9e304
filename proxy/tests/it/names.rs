//! Names are looked up with the configured resolvers, and an answer that would
//! lead the key astray is refused. A real resolver answers, in a network of its
//! own that has a public address and a private one.

use std::net::SocketAddr;

use serde_json::Value;

use crate::harness::namespace::Namespace;
use crate::harness::process::{self, Process};
use crate::harness::world::{Claviger, HOST};
use crate::harness::{Mock, World, eventually};

/// Addresses of the namespace's loopback interface: what the Internet looks like
/// from there (RFC 5737), and what an inner network does.
const PUBLIC: &str = "203.0.113.5";
const ANOTHER_PUBLIC: &str = "203.0.113.6";
const PRIVATE: &str = "10.20.30.40";

/// Where the resolver answers.
const RESOLVER: &str = "127.0.0.1:5300";

/// A network with a mock API on every address, port 443, and Claviger in front.
struct Net {
    resolver: Option<Process>,
    claviger: Claviger,
    mock: Mock,
    namespace: Namespace,
    world: World,
}

impl Net {
    /// The API's name has this address, and its upstream table these lines.
    #[track_caller]
    fn new(address: &str, lines: &str) -> Self {
        let world = World::new();
        let namespace = Namespace::new(&format!(
            "for address in {PUBLIC} {ANOTHER_PUBLIC} {PRIVATE} 169.254.169.254; do\n\
             ip address add $address/32 dev lo; done"
        ));
        let resolver = Some(resolver(&namespace, address, 1));
        let (key, key_file) = world.key_file("key");
        let mut command = namespace.command(process::binary("mock-upstream"));
        // On all of them: whatever is let through would be answered.
        command.args(["--listen", "0.0.0.0:443"]);
        let mock = Mock::start_with(
            &world,
            command,
            &[HOST],
            &["--auth", "bearer", "--key", &key],
        );
        let config = format!(
            "{}[dns]\nservers = [{RESOLVER:?}]\nttl_min = \"1s\"\n\
             [upstream.mock]\nhost = {HOST:?}\nca_file = {:?}\n{lines}\n\
             [[route]]\nname = \"mock\"\nhost = {HOST:?}\nupstream = \"mock\"\ncredential = \"file://{}\"\ncallers = \"open\"\n",
            world.base().replace("127.0.0.1:0", "127.0.0.2:8443"),
            mock.ca_file(),
            key_file.display()
        );
        let mut command = namespace.command(process::binary("claviger"));
        command.env_clear();
        let claviger = world.start_with(&config, command, &[]);
        Self {
            resolver,
            claviger,
            mock,
            namespace,
            world,
        }
    }

    /// The status that a service gets, and where Claviger went for it.
    #[track_caller]
    fn call(&self, path: &str) -> (u64, Value) {
        let mut command = self.namespace.command("/usr/bin/curl");
        command.env_clear().args([
            "--silent",
            "--show-error",
            "--include",
            "--max-time",
            "30",
            "--connect-to",
            "::127.0.0.2:8443",
            "--cacert",
        ]);
        command.arg(self.world.path("root.pem"));
        command.arg(format!("https://{HOST}{path}"));
        let finished = Process::run("curl", command).expect_code(0);
        self.world.evidence("what curl received", finished.all());
        let record = self
            .claviger
            .audit_of(path.split('?').next().expect("split gives one"));
        (
            record["status"].as_u64().expect("a number"),
            record["upstream_address"].clone(),
        )
    }

    /// Asserts that no request reaches the API at its address, and that the log
    /// says what was refused.
    #[track_caller]
    fn assert_refused(&self, address: &str) {
        assert_eq!(self.call("/refused"), (503, Value::Null));
        assert_eq!(self.mock.received().len(), 0);
        let refusal = self
            .claviger
            .log()
            .wait_event(0, "an address that the resolvers gave is refused");
        assert_eq!(refusal["address"], address, "{refusal}");
    }
}

/// dnsmasq, which knows nothing but this one address.
#[track_caller]
fn resolver(namespace: &Namespace, address: &str, ttl: u32) -> Process {
    let (ip, port) = RESOLVER.split_once(':').expect("a port");
    let mut command = namespace.dnsmasq();
    command.arg("--log-queries");
    command.arg(format!("--listen-address={ip}"));
    command.arg(format!("--port={port}"));
    command.arg(format!("--local-ttl={ttl}"));
    command.arg(format!("--address=/{HOST}/{address}"));
    let resolver = Process::start("dnsmasq", command);
    resolver.err.wait("dnsmasq's start", |line| {
        line.contains("started").then_some(())
    });
    resolver
}

#[test]
fn a_public_address_is_used_and_followed() {
    let mut net = Net::new(PUBLIC, "");
    let at = |address: &str| {
        Value::from(SocketAddr::new(address.parse().expect("an address"), 443).to_string())
    };
    assert_eq!(net.call("/echo/first"), (200, at(PUBLIC)));
    // The name moves; nothing is reloaded. Pooled connections are still good for the
    // old address, so this one is not kept.
    drop(net.resolver.take());
    net.resolver = Some(resolver(&net.namespace, ANOTHER_PUBLIC, 1));
    let mut number = 0;
    eventually("the new address to be used", || {
        number += 1;
        let (status, address) = net.call(&format!("/bytes/{number}?close=1"));
        assert_eq!(status, 200, "no request fails meanwhile");
        (address == at(ANOTHER_PUBLIC)).then_some(())
    });
    // The resolver goes away: the last good answer is used.
    drop(net.resolver.take());
    net.claviger
        .log()
        .wait_event(0, "a name cannot be resolved");
    assert_eq!(net.call("/echo/stale"), (200, at(ANOTHER_PUBLIC)));
}

/// Resolvers that lead back to us: the very loop that an operator makes by pointing
/// Claviger at the resolvers of its own services.
#[test]
fn loopback_and_our_own_listeners_are_refused() {
    Net::new("127.0.0.3", "").assert_refused("127.0.0.3");
    // Not even on request: loopback is for addresses that are written.
    Net::new("127.0.0.2", "allow_private = true").assert_refused("127.0.0.2");
}

#[test]
fn cloud_metadata_is_refused() {
    Net::new("169.254.169.254", "allow_private = true").assert_refused("169.254.169.254");
}

#[test]
fn private_addresses_on_request_only() {
    Net::new(PRIVATE, "").assert_refused(PRIVATE);
    let net = Net::new(PRIVATE, "allow_private = true");
    assert_eq!(net.call("/echo").0, 200);
}
