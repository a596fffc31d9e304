//! [`World`]: one test's directory, keys and certificate authority, and at its end
//! the search for the keys in everything that left the process. [`Claviger`]: the
//! real binary, serving.

use std::collections::BTreeMap;
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use rustls::ClientConfig;
use serde_json::Value;
use tempfile::TempDir;

use super::client::{Client, Transcript};
use super::leak::Leak;
use super::process::{self, Finished, Journal, Process};
use super::{Mock, eventually, pki};

/// The API that most tests call.
pub const HOST: &str = "api.example.com";

/// One test's surroundings. Dropped last, it searches everything that was
/// collected for every key that was made.
#[derive(Debug)]
pub struct World {
    directory: TempDir,
    keys: Mutex<Vec<String>>,
    transcript: Transcript,
    journals: Mutex<Vec<(String, Arc<Journal>)>>,
    evidence: Mutex<Vec<(String, Vec<u8>)>>,
    subdirectories: Mutex<u32>,
}

impl World {
    /// A directory with a CA for `example.com` in `ca/`, as `claviger ca init` makes it.
    pub fn new() -> Self {
        Self::permitting(&["example.com"])
    }

    /// The same, with a CA for other domains.
    pub fn permitting(domains: &[&str]) -> Self {
        Self::make(domains, Path::new(env!("CARGO_TARGET_TMPDIR")))
    }

    /// The same in the machine's own temporary directory: another user reaches that
    /// wherever the build is.
    pub fn for_everybody() -> Self {
        Self::make(&["example.com"], &std::env::temp_dir())
    }

    fn make(domains: &[&str], parent: &Path) -> Self {
        let directory = TempDir::with_prefix_in("it-", parent).expect("writable");
        let world = Self {
            directory,
            keys: Mutex::default(),
            transcript: Transcript::default(),
            journals: Mutex::default(),
            evidence: Mutex::default(),
            subdirectories: Mutex::default(),
        };
        let ca = world.path("ca").display().to_string();
        let mut init = vec!["ca", "init", "--dir", &ca];
        for domain in domains {
            init.extend(["--permit", domain]);
        }
        world.cli(&init).expect_code(0);
        let exported = world.cli(&["ca", "export", "--dir", &ca]).expect_code(0);
        world.write("root.pem", &exported.out);
        world
    }

    /// A path in the world's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A fresh directory in it.
    pub fn subdirectory(&self, name: &str) -> PathBuf {
        let mut count = self.subdirectories.lock().expect("no panic while held");
        *count += 1;
        let path = self.path(&format!("{name}-{count}"));
        fs::create_dir(&path).expect("the world's directory is writable");
        path
    }

    /// Writes a file that only its owner may read.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path)
            .expect("writable");
        file.write_all(content.as_ref()).expect("written");
        path
    }

    /// Makes a key and returns it. Whatever is made here is looked for at the end.
    pub fn key(&self) -> String {
        const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let mut bits = Vec::new();
        while bits.len() < 40 {
            bits.extend(RandomState::new().hash_one(bits.len()).to_le_bytes());
        }
        let mut key: String = bits[..40]
            .iter()
            .map(|byte| char::from(ALPHABET[usize::from(byte & 63)]))
            .collect();
        // One of each that encodings treat differently, so that the forms differ.
        key.replace_range(10..12, "/+");
        self.secret(&key);
        key
    }

    /// Has a key of the test's own making looked for at the end.
    pub fn secret(&self, key: &str) {
        self.keys
            .lock()
            .expect("no panic while held")
            .push(key.to_owned());
    }

    /// Makes a key, writes it to a file, and returns both.
    pub fn key_file(&self, name: &str) -> (String, PathBuf) {
        let key = self.key();
        let path = self.write(name, &key);
        (key, path)
    }

    /// The trust that `claviger ca export` gives a client.
    pub fn client_config(&self) -> ClientConfig {
        ClientConfig::builder_with_provider(pki::provider())
            .with_safe_default_protocol_versions()
            .expect("both versions")
            .with_root_certificates(pki::roots(&self.path("root.pem")))
            .with_no_client_auth()
    }

    /// Where every client of this world notes what it received.
    pub fn transcript(&self) -> Transcript {
        Arc::clone(&self.transcript)
    }

    /// Has further bytes searched at the end.
    pub fn evidence(&self, place: &str, bytes: impl Into<Vec<u8>>) {
        self.evidence
            .lock()
            .expect("no panic while held")
            .push((place.to_owned(), bytes.into()));
    }

    /// The tables that every configuration here starts with: one worker, the audit
    /// trail, the CA, and a listener `main` on a free port.
    pub fn base(&self) -> String {
        format!(
            "{}{}",
            self.base_without_listener(),
            "[[listener]]\nname = \"main\"\naddress = [\"127.0.0.1:0\"]\n"
        )
    }

    /// The same without the listener.
    pub fn base_without_listener(&self) -> String {
        format!(
            "[server]\nworkers = 1\ncpus = [{}]\nstate_dir = {:?}\n[audit]\npath = {:?}\n[ca]\ndirectory = {:?}\n",
            next_cpu(),
            self.path("state"),
            self.path("audit.ndjson"),
            self.path("ca")
        )
    }

    /// A `claviger` command with a clean environment.
    pub fn command(&self) -> Command {
        self.clean(Command::new(process::binary("claviger")))
    }

    /// A command with a clean environment, in the world's directory.
    pub fn clean(&self, mut command: Command) -> Command {
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.directory.path());
        command.current_dir(self.directory.path());
        command
    }

    /// Runs `claviger ARGUMENTS` to its end; its outputs are searched too.
    #[track_caller]
    pub fn cli(&self, arguments: &[&str]) -> Finished {
        let mut command = self.command();
        command.args(arguments);
        let finished = Process::run("claviger", command);
        self.evidence(
            &format!("the output of `claviger {}`", arguments[0]),
            finished.all(),
        );
        finished
    }

    /// Writes the configuration and serves it.
    #[track_caller]
    pub fn start(&self, config: &str) -> Claviger {
        self.start_with(config, self.command(), &[])
    }

    /// The same, with a command of the caller's making and further arguments.
    #[track_caller]
    pub fn start_with(&self, config: &str, mut command: Command, arguments: &[&str]) -> Claviger {
        let path = self.write("claviger.toml", config);
        command
            .arg("run")
            .arg("--config")
            .arg(&path)
            .args(arguments);
        let process = self.watch("claviger", command);
        let serving = process.err.wait_event(0, "serving");
        let listed = serving["addresses"]
            .as_str()
            .map_or_else(|| serving["addresses"].to_string(), str::to_owned);
        let mut addresses = BTreeMap::<String, Vec<SocketAddr>>::new();
        for word in listed
            .split(|c: char| c.is_whitespace() || c == ',' || c == ';')
            .filter(|word| !word.is_empty())
        {
            let (name, address) = word
                .split_once('=')
                .unwrap_or_else(|| panic!("not NAME=ADDRESS: {listed}"));
            let address = address
                .parse()
                .unwrap_or_else(|err| panic!("{address}: {err}"));
            addresses.entry(name.to_owned()).or_default().push(address);
        }
        Claviger {
            process,
            addresses,
            audit: self.path("audit.ndjson"),
            config: path,
            transcript: self.transcript(),
        }
    }

    /// Starts a process whose outputs are searched at the end.
    #[track_caller]
    pub fn watch(&self, name: &str, command: Command) -> Process {
        let process = Process::start(name, command);
        let mut journals = self.journals.lock().expect("no panic while held");
        journals.push((
            format!("the standard output of {name}"),
            Arc::clone(&process.out),
        ));
        journals.push((format!("the log of {name}"), Arc::clone(&process.err)));
        process
    }

    /// The search itself, over everything collected up to now.
    #[track_caller]
    pub fn assert_no_leak(&self) {
        let mut places = vec![(
            "what clients received".to_owned(),
            self.transcript.lock().expect("no panic while held").clone(),
        )];
        for (name, journal) in self.journals.lock().expect("no panic while held").iter() {
            places.push((name.clone(), journal.bytes()));
        }
        places.extend(
            self.evidence
                .lock()
                .expect("no panic while held")
                .iter()
                .cloned(),
        );
        for entry in fs::read_dir(self.directory.path()).expect("readable") {
            let entry = entry.expect("readable");
            if entry.file_name().to_string_lossy().starts_with("audit") {
                places.push((
                    format!("{:?}", entry.file_name()),
                    fs::read(entry.path()).unwrap_or_default(),
                ));
            }
        }
        for key in self.keys.lock().expect("no panic while held").iter() {
            let leak = Leak::of(key);
            for (place, bytes) in &places {
                leak.assert_none(place, bytes);
            }
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if !thread::panicking() {
            self.assert_no_leak();
        }
    }
}

/// The real binary, serving.
#[derive(Debug)]
pub struct Claviger {
    process: Process,
    addresses: BTreeMap<String, Vec<SocketAddr>>,
    audit: PathBuf,
    config: PathBuf,
    transcript: Transcript,
}

impl Claviger {
    /// The address of the listener `main`.
    pub fn address(&self) -> SocketAddr {
        self.addresses_of("main")[0]
    }

    /// All addresses of a listener.
    #[track_caller]
    pub fn addresses_of(&self, listener: &str) -> &[SocketAddr] {
        self.addresses
            .get(listener)
            .unwrap_or_else(|| panic!("no listener {listener}: {:?}", self.addresses))
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// The operational log.
    pub fn log(&self) -> &Journal {
        &self.process.err
    }

    /// The process.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Connects to the listener `main` as a client of [`HOST`].
    #[track_caller]
    pub fn connect(&self, world: &World) -> Client {
        self.connect_as(world, HOST)
    }

    /// Connects with another server name.
    #[track_caller]
    pub fn connect_as(&self, world: &World, name: &str) -> Client {
        self.connect_with(name, world.client_config())
            .unwrap_or_else(|err| panic!("cannot connect to {name} at {}: {err}", self.address()))
    }

    /// Connects with a TLS configuration of the test's own.
    pub fn connect_with(&self, name: &str, config: ClientConfig) -> std::io::Result<Client> {
        Client::tls(
            self.address(),
            name,
            Arc::new(config),
            Arc::clone(&self.transcript),
        )
    }

    /// One request on a connection of its own.
    #[track_caller]
    pub fn get(&self, world: &World, path: &str) -> super::Answer {
        self.connect(world).get(HOST, path)
    }

    /// Writes another configuration in place and asks for a reload; returns the log
    /// event that ended it.
    #[track_caller]
    pub fn reload(&self, config: &str) -> Value {
        let mark = self.log().mark();
        fs::write(&self.config, config).expect("writable");
        self.process.signal(libc::SIGHUP);
        self.wait_reloaded(mark)
    }

    /// Waits for a configuration that came into force after `mark`.
    #[track_caller]
    pub fn wait_reloaded(&self, mark: usize) -> Value {
        self.log()
            .wait_event(mark, "a new configuration is in force")
    }

    /// The configuration file.
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// Asks for the status line and returns what it names: numbers as numbers.
    #[track_caller]
    pub fn status(&self) -> Value {
        let mark = self.log().mark();
        self.process.signal(libc::SIGUSR2);
        let event = self.log().wait_event(mark, "status ");
        let line = event["message"].as_str().expect("it was just found by it");
        let mut rest = line
            .strip_prefix("status ")
            .expect("it was just found by it");
        let mut status = serde_json::Map::new();
        while let Some((name, after)) = rest.split_once('=') {
            let (value, next) = match after.strip_prefix('"') {
                Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
                None => after.split_once(' ').unwrap_or((after, "")),
            };
            let value = value
                .parse::<u64>()
                .map_or_else(|_| Value::from(value), Value::from);
            status.insert(name.trim().to_owned(), value);
            rest = next;
        }
        Value::Object(status)
    }

    /// Waits until a counter of the status line stands at `count`. A caller may have
    /// its answer a moment before it is counted.
    #[track_caller]
    pub fn wait_count(&self, counter: &str, count: u64) {
        eventually(&format!("{counter}={count}"), || {
            (self.status()[counter] == count).then_some(())
        });
    }

    /// The audit records written so far.
    pub fn audit(&self) -> Vec<Value> {
        read_audit(&self.audit)
    }

    /// Waits for the first audit record of which `find` makes something.
    #[track_caller]
    pub fn wait_audit<T>(&self, what: &str, find: impl Fn(&Value) -> Option<T>) -> T {
        eventually(&format!("the audit record of {what}"), || {
            self.audit().iter().find_map(&find)
        })
    }

    /// Waits for the audit record of the exchange with this path.
    #[track_caller]
    pub fn audit_of(&self, path: &str) -> Value {
        self.wait_audit(path, |record| {
            (record["path"] == path && record["event"] == "exchange").then(|| record.clone())
        })
    }

    /// Asks it to end and returns how it did.
    #[track_caller]
    pub fn terminate(self) -> Finished {
        self.process.signal(libc::SIGTERM);
        self.process.finish()
    }

    /// Waits for its end, however it comes.
    #[track_caller]
    pub fn finish(self) -> Finished {
        self.process.finish()
    }
}

/// The CPUs that we may use, in turn: workers are pinned, and those of parallel
/// tests must not all sit on the first one.
fn next_cpu() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let pid = nix::unistd::Pid::from_raw(0);
    let allowed = nix::sched::sched_getaffinity(pid).expect("our own affinity");
    let cpus: Vec<usize> = (0..nix::sched::CpuSet::count())
        .filter(|&cpu| allowed.is_set(cpu).unwrap_or(false))
        .collect();
    cpus[NEXT.fetch_add(1, Ordering::Relaxed) % cpus.len()]
}

/// The records of an audit file; a line under way is left out.
pub fn read_audit(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.split_inclusive('\n')
        .filter(|line| line.ends_with('\n'))
        .map(|line| {
            serde_json::from_str(line).unwrap_or_else(|err| panic!("not a record ({err}): {line}"))
        })
        .collect()
}

/// The usual arrangement: a mock API that wants a bearer key, and Claviger with one
/// route to it. Fields drop in this order.
#[derive(Debug)]
pub struct Site {
    /// Claviger, serving [`HOST`].
    pub claviger: Claviger,
    /// The API behind it.
    pub mock: Mock,
    /// The key that only Claviger knows.
    pub key: String,
    /// Where the key's file is.
    pub key_file: PathBuf,
    /// Everything else.
    pub world: World,
}

impl Site {
    /// With nothing special.
    #[track_caller]
    pub fn new() -> Self {
        Self::with("", "")
    }

    /// With further lines in the route, and further tables.
    #[track_caller]
    pub fn with(route: &str, tables: &str) -> Self {
        Self::build(&[], |world, mock, key_file| {
            format!(
                "{}{}{}{route}\n{tables}",
                world.base(),
                mock.upstream("mock", HOST),
                bearer_route(key_file)
            )
        })
    }

    /// With a configuration of the test's own making.
    #[track_caller]
    pub fn build(
        mock_options: &[&str],
        config: impl FnOnce(&World, &Mock, &Path) -> String,
    ) -> Self {
        let world = World::new();
        let (key, key_file) = world.key_file("key");
        let mut options = vec!["--key", &key, "--auth", "bearer"];
        options.extend(mock_options);
        let mock = Mock::start(&world, &[HOST], &options);
        let claviger = world.start(&config(&world, &mock, &key_file));
        Self {
            claviger,
            mock,
            key,
            key_file,
            world,
        }
    }

    /// A connection to Claviger.
    #[track_caller]
    pub fn connect(&self) -> Client {
        self.claviger.connect(&self.world)
    }

    /// `GET path` on a connection of its own.
    #[track_caller]
    pub fn get(&self, path: &str) -> super::Answer {
        self.claviger.get(&self.world, path)
    }
}

/// `[credential.mock]` from this file as a bearer token, and the route `mock` that
/// uses it, left open for further lines.
pub fn bearer_route(key_file: &Path) -> String {
    format!(
        "[credential.mock]\nsource = \"file://{}\"\ninject = \"bearer\"\n[[route]]\nname = \"mock\"\nhost = {HOST:?}\nupstream = \"mock\"\ncredential = \"mock\"\ncallers = \"open\"\n",
        key_file.display()
    )
}
