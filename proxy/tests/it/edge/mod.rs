//! Two clouds: an edge that holds no key, and a hub that holds them all. Both are the real binary,
//! each with a CA, a configuration and an audit trail of its own; the API is the mock.

mod trust;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use crate::harness::mock::upstream;
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
    pub fn start(tables: impl FnOnce(&World, &pki::TestCa) -> String) -> Self {
        Self::listening("[\"127.0.0.1:0\"]", tables)
    }

    /// The same at these addresses.
    pub fn listening(addresses: &str, tables: impl FnOnce(&World, &pki::TestCa) -> String) -> Self {
        let world = World::new();
        let (key, key_file) = world.key_file("key");
        let mock = Mock::start(&world, &[HOST], &["--auth", "bearer", "--key", &key]);
        let edges = pki::TestCa::new(&world.subdirectory("edges"), "edges");
        world.write("edges.crl", edges.revoking(&[]));
        world.key_file("token");
        let config = format!(
            "{}[[listener]]\nname = \"main\"\naddress = {addresses}\n{}{}{}{}",
            world.base_without_listener(),
            door(&world, &edges, &["gcp"]),
            mock.upstream("mock", HOST),
            route(&key_file, "[\"gcp\"]"),
            tables(&world, &edges)
        );
        let claviger = world.start(&config);
        Self {
            claviger,
            mock,
            key,
            edges,
            world,
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
    /// One that shows the usual certificate, with further tables.
    pub fn start(hub: &Hub, tables: &str) -> Self {
        let world = World::new();
        let shown = hub
            .edges
            .client_file(world.path("").as_path(), "edge.pem", EDGE, 11);
        let proof = format!("client_certificate = {shown:?}\nclient_key = {shown:?}\n");
        Self::showing(world, hub, &proof, tables)
    }

    /// One that shows the hub's token.
    pub fn with_token(hub: &Hub) -> Self {
        let world = World::new();
        let path = world.write("token", hub.token());
        world.secret(&hub.token());
        let proof = format!("token = \"file://{}\"\n", path.display());
        Self::showing(world, hub, &proof, "")
    }

    fn showing(world: World, hub: &Hub, proof: &str, tables: &str) -> Self {
        // Whatever the hub's key is: the edge has never seen it.
        world.secret(&hub.key);
        let claviger = world.start(&format!(
            "{}{}{proof}{}{tables}",
            world.base(),
            hub.upstream("hub"),
            edge_route("[\"hub\"]")
        ));
        Self { claviger, world }
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
