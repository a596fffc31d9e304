//! Unmodified clients: programs that know nothing of Claviger call a vendor by its
//! own name, hold no key or a wrong one, and get the API's answer.
//!
//! Each runs in a network namespace in which the vendors' names lead to Claviger
//! and Claviger's CA is installed as README.md says: in the system's store by
//! `update-ca-certificates`, appended to the bundles that certifi and Stripe's SDK
//! ship, and named by NODE_EXTRA_CA_CERTS for Node. Their environment is empty
//! but for PATH and HOME.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, Weak};

use serde_json::Value;

use crate::harness::mock::fingerprint;
use crate::harness::namespace::Namespace;
use crate::harness::process::{self, Finished, Process};
use crate::harness::{Claviger, Mock, World};

/// Where Claviger listens in the namespace, and where the mock of all APIs does.
const CLAVIGER: &str = "127.0.0.2:443";
const APIS: &str = "127.0.0.3:443";

/// What the names lead to Claviger: the vendors', and one that has no preset.
const NAMES: [&str; 7] = [
    "api.example.com",
    "api.openai.com",
    "api.stripe.com",
    "api.sendgrid.com",
    "www.googleapis.com",
    "youtube.googleapis.com",
    "generativelanguage.googleapis.com",
];

/// The real keys, each by the vendor's name.
const VENDORS: [&str; 6] = [
    "example", "openai", "stripe", "sendgrid", "youtube", "gemini",
];

/// A machine on which the clients run. Shared by the tests that run at the same
/// time; the last one takes it down.
struct Machine {
    keys: Vec<(&'static str, String)>,
    claviger: Claviger,
    apis: Mock,
    namespace: Namespace,
    world: World,
}

impl Machine {
    fn shared() -> Arc<Self> {
        static SHARED: Mutex<Weak<Machine>> = Mutex::new(Weak::new());
        let mut shared = SHARED
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        shared.upgrade().unwrap_or_else(|| {
            let machine = Arc::new(Self::new());
            *shared = Arc::downgrade(&machine);
            machine
        })
    }

    fn new() -> Self {
        let world = World::permitting(&[
            "example.com",
            "openai.com",
            "stripe.com",
            "sendgrid.com",
            "googleapis.com",
        ]);
        let namespace = Namespace::new(&setup(&world));
        let keys: Vec<_> = VENDORS
            .iter()
            .map(|&vendor| (vendor, world.key_file(vendor).0))
            .collect();

        let mut command = namespace.command(process::binary("mock-upstream"));
        command.args(["--listen", APIS]);
        let mut options = vec!["--auth", "any"];
        for (_, key) in &keys {
            options.extend(["--key", key]);
        }
        let apis = Mock::start_with(&world, command, &NAMES, &options);

        let mut config = world.base_without_listener();
        config.push_str(&format!(
            "[[listener]]\nname = \"main\"\naddress = {CLAVIGER:?}\n"
        ));
        for name in NAMES {
            config.push_str(&format!(
                "[upstream.{name:?}]\naddresses = [{APIS:?}]\nca_file = {:?}\n",
                apis.ca_file()
            ));
        }
        let source = |vendor: &str| format!("file://{}", world.path(vendor).display());
        config.push_str(&format!(
            "[[route]]\nhost = \"api.example.com\"\ncredential = {:?}\n",
            source("example")
        ));
        for preset in &VENDORS[1..] {
            config.push_str(&format!(
                "[[route]]\npreset = {preset:?}\ncredential = {:?}\n",
                source(preset)
            ));
        }
        let mut command = namespace.command(process::binary("claviger"));
        command.env_clear();
        let claviger = world.start_with(&config, command, &[]);
        Self {
            keys,
            claviger,
            apis,
            namespace,
            world,
        }
    }

    /// Runs an unmodified client to its end; all that it printed is searched for
    /// every key when the machine is taken down, and for this test here and now.
    #[track_caller]
    fn run(
        &self,
        program: impl AsRef<Path>,
        arguments: &[&str],
        environment: &[(&str, &str)],
    ) -> Finished {
        let mut command = self.namespace.command(program);
        command
            .args(arguments)
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .env("HOME", self.world.path(""));
        command.envs(environment.iter().copied());
        let finished = Process::run("the client", command);
        self.world.evidence("what a client printed", finished.all());
        self.world.assert_no_leak();
        finished.expect_code(0)
    }

    #[track_caller]
    fn python(&self, script: &str) -> String {
        let python = installed("venv/bin/python");
        self.run(python, &[&script_path(script).display().to_string()], &[])
            .out_text()
    }

    #[track_caller]
    fn node(&self, script: &str) -> String {
        // A service's directory: its script beside its node_modules.
        let service = self.world.subdirectory("service");
        std::os::unix::fs::symlink(installed("node/node_modules"), service.join("node_modules"))
            .expect("a fresh directory");
        let path = service.join(script);
        fs::copy(script_path(script), &path).expect("the script is part of the repository");
        let roots = self.world.path("root.pem").display().to_string();
        self.run(
            node(),
            &[&path.display().to_string()],
            &[("NODE_EXTRA_CA_CERTS", &roots)],
        )
        .out_text()
    }

    fn key(&self, vendor: &str) -> &str {
        &self
            .keys
            .iter()
            .find(|(name, _)| *name == vendor)
            .expect("a vendor of the list")
            .1
    }

    /// Asserts that the API at `host` received this path (to the query) with the
    /// real key, in a header whose whole value is `template` with the key put in, or
    /// as the query parameter `key`; and that no other credential arrived with it.
    #[track_caller]
    fn assert_received(&self, host: &str, path: &str, vendor: &str, template: &str) {
        let received = self
            .apis
            .wait_received(&format!("{host}{path} at the API"), |request| {
                let target = request["target"].as_str()?;
                (request["tls"]["sni"] == host && target.split('?').next() == Some(path))
                    .then(|| request.clone())
            });
        assert_eq!(received["authorized"], true, "{received}");
        let credentials = credentials(&received);
        let (slot, value) = template.split_once(": ").expect("a name and a value");
        let expected = (
            slot.to_owned(),
            format!(
                "sha256:{}",
                fingerprint(&value.replace("{key}", self.key(vendor)))
            ),
        );
        assert_eq!(credentials, [expected], "{received}");
    }
}

/// Every credential in the mock's record of a request: header name or `?parameter`,
/// and fingerprint.
fn credentials(request: &Value) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for field in request["headers"].as_array().expect("a list") {
        let (name, value) = (
            field[0].as_str().expect("text"),
            field[1].as_str().expect("text"),
        );
        if value.starts_with("sha256:") {
            found.push((name.to_ascii_lowercase(), value.to_owned()));
        }
    }
    let target = request["target"].as_str().expect("text");
    for pair in target
        .split_once('?')
        .map_or("", |(_, query)| query)
        .split('&')
    {
        if let Some((name, value)) = pair
            .split_once('=')
            .filter(|(_, value)| value.starts_with("sha256:"))
        {
            found.push((format!("?{name}"), value.to_owned()));
        }
    }
    found
}

/// The script that makes the namespace look like a machine set up as README.md says.
fn setup(world: &World) -> String {
    let hosts = format!("127.0.0.1 localhost\n127.0.0.2 {}\n", NAMES.join(" "));
    let hosts = world.write("hosts", hosts);
    // No resolver: a name that is not in `hosts` fails at once instead of being looked up.
    let resolv = world.write(
        "resolv.conf",
        "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n",
    );
    let certs = world.path("certs");
    let hooks = world.subdirectory("no-hooks");
    let root = world.path("root.pem");
    let packages = python_packages();
    let mut script = format!(
        "mount --bind {hosts:?} /etc/hosts\n\
         mount --bind {resolv:?} /etc/resolv.conf\n\
         cp -rP /etc/ssl/certs {certs:?}\n\
         mount --bind {certs:?} /etc/ssl/certs\n\
         mount -t tmpfs none /usr/local/share/ca-certificates\n\
         cp {root:?} /usr/local/share/ca-certificates/claviger.crt\n\
         update-ca-certificates --hooksdir {hooks:?}\n"
    );
    for (number, bundle) in ["certifi/cacert.pem", "stripe/data/ca-certificates.crt"]
        .iter()
        .enumerate()
    {
        let bundle = packages.join(bundle);
        let extended = world.path(&format!("bundle-{number}.pem"));
        script.push_str(&format!(
            "cat {bundle:?} {root:?} > {extended:?}\nmount --bind {extended:?} {bundle:?}\n"
        ));
    }
    script
}

/// Something that `scripts/test --setup` has installed.
pub fn installed(path: &str) -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .parent()
        .expect("target/tmp");
    let path = target.join("it-clients").join(path);
    assert!(
        path.exists(),
        "{} is missing: run `scripts/test --setup` once",
        path.display()
    );
    path
}

fn python_packages() -> PathBuf {
    let lib = installed("venv/lib");
    let version = fs::read_dir(&lib)
        .expect("readable")
        .next()
        .expect("one Python")
        .expect("readable");
    version.path().join("site-packages")
}

/// The full path of `node`: the namespace's commands are not looked up.
fn node() -> PathBuf {
    let path = std::env::var_os("PATH").expect("PATH is set");
    std::env::split_paths(&path)
        .map(|directory| directory.join("node"))
        .find(|node| node.exists())
        .expect("node is installed: run `scripts/test --setup`")
}

fn script_path(script: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/it/clients")
        .join(script)
}

#[track_caller]
fn assert_contains(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is missing in:\n{text}");
    }
}

const BEARER: &str = "authorization: Bearer {key}";

#[test]
fn curl() {
    let machine = Machine::shared();
    let curl = |arguments: &[&str]| {
        let common = [
            "--silent",
            "--show-error",
            "--fail",
            "--include",
            "--max-time",
            "30",
        ];
        machine
            .run(
                "/usr/bin/curl",
                &[common.as_slice(), arguments].concat(),
                &[],
            )
            .out_text()
    };
    assert_contains(
        &curl(&["https://api.example.com/echo?by=curl"]),
        &["HTTP/1.1 200 OK", "\"authorized\":true"],
    );
    assert_contains(
        &curl(&[
            "-H",
            "Authorization: Bearer wrong",
            "https://api.example.com/status/201",
        ]),
        &["HTTP/1.1 201"],
    );
    assert_contains(
        &curl(&[
            "-u",
            "user:wrong",
            "-d",
            "a=b",
            "https://api.example.com/upload",
        ]),
        &["HTTP/1.1 200 OK", "\"bytes\":3"],
    );
    for path in ["/echo", "/status/201", "/upload"] {
        machine.assert_received("api.example.com", path, "example", BEARER);
    }
}

#[test]
fn python_requests() {
    let machine = Machine::shared();
    let printed = machine.python("with_requests.py");
    assert_contains(
        &printed,
        &[
            "/echo 200",
            "/bytes/100000 200",
            "\n100000\n",
            "/status/404 404",
            "/upload 200 {'bytes': 100000",
        ],
    );
    machine.assert_received("api.example.com", "/bytes/100000", "example", BEARER);
}

#[test]
fn python_httpx() {
    let machine = Machine::shared();
    let printed = machine.python("with_httpx.py");
    assert_contains(
        &printed,
        &[
            "200 HTTP/1.1",
            "data: [DONE]",
            "at once: [200, 200, 200, 200, 200, 200, 200, 200]",
        ],
    );
    machine.assert_received("api.example.com", "/sse", "example", BEARER);
}

#[test]
fn python_openai() {
    let machine = Machine::shared();
    let printed = machine.python("with_openai.py");
    assert_contains(&printed, &["You said: good morning", "gpt-4o", "pieces: 5"]);
    machine.assert_received("api.openai.com", "/v1/chat/completions", "openai", BEARER);
    machine.assert_received("api.openai.com", "/v1/models", "openai", BEARER);
}

#[test]
fn python_stripe() {
    let machine = Machine::shared();
    let printed = machine.python("with_stripe.py");
    assert_contains(&printed, &["ada@example.com", "cus_", "available"]);
    machine.assert_received("api.stripe.com", "/v1/customers", "stripe", BEARER);
    machine.assert_received("api.stripe.com", "/v1/balance", "stripe", BEARER);
}

#[test]
fn python_sendgrid() {
    let machine = Machine::shared();
    let printed = machine.python("with_sendgrid.py");
    assert_contains(&printed, &["202", "X-Message-Id"]);
    machine.assert_received("api.sendgrid.com", "/v3/mail/send", "sendgrid", BEARER);
}

#[test]
fn python_google_api_client() {
    let machine = Machine::shared();
    let printed = machine.python("with_google.py");
    assert_contains(&printed, &["youtube#searchListResponse"]);
    let received = machine
        .apis
        .wait_received("the search at the API", |request| {
            let target = request["target"].as_str()?;
            target
                .starts_with("/youtube/v3/search?")
                .then(|| request.clone())
        });
    // The mock fingerprints a parameter as it arrived, which is percent-encoded.
    let key = machine
        .key("youtube")
        .replace('+', "%2B")
        .replace('/', "%2F");
    assert_eq!(
        credentials(&received),
        [("?key".to_owned(), format!("sha256:{}", fingerprint(&key)))],
        "{received}"
    );
    assert_eq!(received["auth"], "query");
    assert_contains(
        received["target"].as_str().expect("text"),
        &["q=claviger", "part=snippet"],
    );
}

#[test]
fn python_gemini_with_the_key_in_the_query() {
    let machine = Machine::shared();
    let printed = machine.python("with_gemini.py");
    assert_contains(&printed, &["200", "candidates"]);
    let path = "/v1beta/models/gemini-2.0-flash:generateContent";
    machine.assert_received(
        "generativelanguage.googleapis.com",
        path,
        "gemini",
        "x-goog-api-key: {key}",
    );
}

#[test]
fn node_fetch() {
    let machine = Machine::shared();
    let printed = machine.node("with_fetch.mjs");
    assert_contains(
        &printed,
        &[
            "200",
            "\"authorized\":true",
            "bytes: 100000",
            "data: [DONE]",
        ],
    );
    machine.assert_received("api.example.com", "/sse", "example", BEARER);
}

#[test]
fn node_openai() {
    let machine = Machine::shared();
    let printed = machine.node("with_openai.mjs");
    assert_contains(&printed, &["You said: good morning", "pieces: 4"]);
    machine.assert_received("api.openai.com", "/v1/chat/completions", "openai", BEARER);
}

/// What the service's own environment shows: nothing of Claviger's is in it.
#[test]
fn a_client_without_the_ca_is_not_fooled() {
    let machine = Machine::shared();
    let mut command: Command = machine.namespace.command("/usr/bin/curl");
    command.env_clear().args([
        "--silent",
        "--show-error",
        "--cacert",
        "/dev/null",
        "--capath",
        "/dev/null",
        "https://api.example.com/echo",
    ]);
    let finished = Process::run("curl", command);
    assert!(!finished.status.success(), "{}", finished.out_text());
    assert!(machine.claviger.pid() > 0);
}
