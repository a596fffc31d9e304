//! Two clouds: an edge that holds no key, and a hub that holds them all. Both are the real binary,
//! each with a CA, a configuration and an audit trail of its own; the API is the mock.

mod cut;
mod failover;
mod init;
mod trust;

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::mock::upstream;
use crate::harness::process;
use crate::harness::world::HOST;
use crate::harness::{Answer, Claviger, Client, Mock, World, pki};

/// The hub's own name, where edges come in.
pub const DOOR: &str = "keys.example.com";

/// The name in the edge's certificate.
pub const EDGE: &str = "edge.example.com";

/// A hub with an API behind it. Fields drop in this order.
pub struct Hub {
    pub claviger: Claviger,
    pub mock: Mock,
    /// The API's key, which only the hub knows.
    pub key: String,
    /// Issues the edges' certificates.
    pub edges: pki::TestCa,
    pub world: World,
}

impl Hub {
    /// With one edge, `gcp`, which shows a certificate for [`EDGE`] or the token in the file
    /// `token`, and may use the route `mock`; and with further tables.
    pub fn start(tables: impl FnOnce(&World) -> String) -> Self {
        let start = |program: &str| Command::new(process::binary(program));
        Self::start_in(World::new(), "127.0.0.1:0", &start, tables)
    }

    /// The same at an address, with commands of the test's making.
    pub fn start_in(
        world: World,
        address: &str,
        command: &dyn Fn(&str) -> Command,
        tables: impl FnOnce(&World) -> String,
    ) -> Self {
        let (key, key_file) = world.key_file("key");
        let mut mock = command("mock-upstream");
        mock.args(["--listen", "127.0.0.1:0"]);
        let options = ["--auth", "bearer", "--key", &key];
        let mock = Mock::start_with(&world, mock, &[HOST], &options);
        let edges = pki::TestCa::new(&world.subdirectory("edges"), "edges");
        world.write("edges.crl", edges.revoking(&[]));
        world.key_file("token");
        let config = format!(
            "{}[[listener]]\nname = \"main\"\naddress = {address:?}\n{}{}{}{}",
            world.base_without_listener(),
            door(&world, &edges, &["gcp"]),
            mock.upstream("mock", HOST),
            route(&key_file, "[\"gcp\"]"),
            tables(&world)
        );
        let claviger = world.start_with(&config, world.clean(command("claviger")), &[]);
        Self {
            claviger,
            mock,
            key,
            edges,
            world,
        }
    }

    /// Kills it, and serves again where it was.
    pub fn killed(self) -> Killed {
        let address = self.claviger.address();
        self.claviger.process().signal(libc::SIGKILL);
        self.claviger.finish();
        Killed {
            address,
            mock: self.mock,
            key: self.key,
            edges: self.edges,
            world: self.world,
        }
    }

    /// A token that `gcp` may show.
    pub fn token(&self) -> String {
        std::fs::read_to_string(self.world.path("token")).expect("it was just written")
    }

    /// Where clients find out who the hub is.
    pub fn root(&self) -> PathBuf {
        self.world.path("root.pem")
    }

    /// A connection to the hub's door.
    pub fn connect(&self) -> Client {
        self.claviger.connect_as(&self.world, DOOR)
    }

    /// `[upstream.NAME]` of an edge, without a proof.
    pub fn upstream(&self, name: &str) -> String {
        let table = upstream(name, DOOR, &[self.claviger.address()], &self.root());
        format!("{table}hub = true\n")
    }

    /// The same with a certificate in a directory of the edge's.
    pub fn upstream_showing(&self, name: &str, directory: &Path) -> String {
        let file = format!("{name}.pem");
        let shown = self.edges.client_file(directory, &file, EDGE, 11);
        format!(
            "{}client_certificate = {shown:?}\nclient_key = {shown:?}\n",
            self.upstream(name)
        )
    }
}

/// What is left of a hub whose process is gone.
pub struct Killed {
    address: SocketAddr,
    mock: Mock,
    key: String,
    edges: pki::TestCa,
    world: World,
}

impl Killed {
    /// The same hub once more, at the same address.
    pub fn again(self) -> Hub {
        let path = self.world.path("claviger.toml");
        let config = std::fs::read_to_string(path).expect("it served by this");
        let config = config.replace("127.0.0.1:0\"", &format!("{}\"", self.address));
        Hub {
            claviger: self.world.start(&config),
            mock: self.mock,
            key: self.key,
            edges: self.edges,
            world: self.world,
        }
    }
}

/// `[host]` where edges come in, and the usual edge.
fn door(world: &World, edges: &pki::TestCa, names: &[&str]) -> String {
    let mut text = format!(
        "[host.{DOOR:?}]\nclient_ca = {:?}\nclient_certificate = \"request\"\nclient_crl = {:?}\nedges = {names:?}\n",
        edges.file(),
        world.path("edges.crl")
    );
    let _ = write!(
        text,
        "[caller.gcp]\ncertificate = {EDGE:?}\ntoken = \"file://{}\"\nrequire = \"any\"\n",
        world.path("token").display()
    );
    text
}

/// The credential and the route `mock` at the hub.
fn route(key_file: &Path, callers: &str) -> String {
    crate::harness::world::bearer_route(key_file).replace("\"open\"", callers)
}

/// An edge, and how it was set up.
pub struct Edge {
    pub claviger: Claviger,
    pub world: World,
}

impl Edge {
    /// One that shows the usual certificate.
    pub fn start(hub: &Hub) -> Self {
        let world = World::new();
        world.secret(&hub.key);
        let hub = hub.upstream_showing("hub", &world.path(""));
        Self::with(world, &hub, "[\"hub\"]")
    }

    /// One that leads to these hubs, by their `[upstream.NAME]`.
    pub fn with(world: World, upstreams: &str, names: &str) -> Self {
        let config = format!("{}{upstreams}{}", world.base(), edge_route(names));
        let claviger = world.start(&config);
        Self { claviger, world }
    }

    /// One that shows the hub's token.
    pub fn with_token(hub: &Hub) -> Self {
        let world = World::new();
        let path = world.write("token", hub.token());
        world.secret(&hub.token());
        // Whatever the hub's key is: the edge has never seen it.
        world.secret(&hub.key);
        let table = format!(
            "{}token = \"file://{}\"\n",
            hub.upstream("hub"),
            path.display()
        );
        Self::with(world, &table, "\"hub\"")
    }

    pub fn connect(&self) -> Client {
        self.claviger.connect(&self.world)
    }

    pub fn get(&self, path: &str) -> Answer {
        self.claviger.get(&self.world, path)
    }
}

/// The route of an edge, which leads to these hubs.
fn edge_route(hubs: &str) -> String {
    format!("[[route]]\nname = \"api\"\nhost = {HOST:?}\nupstream = {hubs}\n")
}
