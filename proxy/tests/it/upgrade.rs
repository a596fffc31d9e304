//! A new process takes the place of the old one: no request fails, a process that cannot
//! serve takes nobody's place, and the service manager is told the truth.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::client::Client;
use crate::harness::namespace::Namespace;
use crate::harness::process::{self, Held};
use crate::harness::world::{Claviger, HOST, Site, bearer_route, read_audit};
use crate::harness::{Mock, PATIENCE, World, cannot_run, eventually};

/// A process that took over: a child of a child, so nobody else ends it for us.
struct Successor {
    pid: u32,
}

impl Successor {
    /// The one whose `serving` line came after `mark`.
    #[track_caller]
    fn of(claviger: &Claviger, mark: usize) -> Self {
        let serving = claviger.log().wait_event(mark, "serving");
        let successor = Self {
            pid: u32::try_from(serving["pid"].as_u64().expect("a process id")).expect("small"),
        };
        assert_ne!(successor.pid, claviger.pid());
        successor
    }

    fn signal(&self, signal: nix::sys::signal::Signal) -> nix::Result<()> {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.pid).expect("a process id"));
        nix::sys::signal::kill(pid, signal)
    }

    /// Whether it runs: neither gone nor waiting to be reaped.
    fn runs(&self) -> bool {
        std::fs::read_to_string(format!("/proc/{}/stat", self.pid))
            .is_ok_and(|stat| !stat.contains(") Z "))
    }

    fn terminate(self) {
        self.signal(nix::sys::signal::Signal::SIGTERM)
            .expect("it runs");
        eventually("the new process's end", || (!self.runs()).then_some(()));
    }
}

impl Drop for Successor {
    fn drop(&mut self) {
        if self.runs() {
            let _ = self.signal(nix::sys::signal::Signal::SIGKILL);
        }
    }
}

/// Asks for a hand-over and waits for its outcome.
#[track_caller]
fn hand_over(claviger: &Claviger) -> Successor {
    let mark = claviger.log().mark();
    claviger.process().signal(libc::SIGURG);
    let successor = Successor::of(claviger, mark);
    let said = claviger.log().wait_event(mark, "handed over");
    assert_eq!(said["pid"], successor.pid);
    successor
}

/// Whether the process that a test started has ended, while another still holds its
/// outputs open.
#[track_caller]
fn wait_gone(pid: u32) {
    eventually("the old process's end", || {
        std::fs::read_to_string(format!("/proc/{pid}/stat"))
            .map_or(true, |stat| stat.contains(") Z "))
            .then_some(())
    });
}

/// Callers that never stop, half of them on connections that they keep, half on a new
/// one for each request. A caller that is told `Connection: close` connects anew, as
/// clients do; whatever else happens to a request fails the test.
struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    callers: Vec<thread::JoinHandle<()>>,
}

impl Load {
    fn start(address: SocketAddr, world: &World) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let answered = Arc::new(AtomicU64::new(0));
        let config = Arc::new(world.client_config());
        let callers = (0..6)
            .map(|number| {
                let (stop, answered) = (Arc::clone(&stop), Arc::clone(&answered));
                let (config, transcript) = (Arc::clone(&config), world.transcript());
                let connect = move || {
                    Client::tls(address, HOST, Arc::clone(&config), Arc::clone(&transcript))
                        .expect("there is no moment in which nobody accepts")
                };
                let keeps = number % 2 == 0;
                thread::spawn(move || {
                    let mut client = connect();
                    while !stop.load(Ordering::Relaxed) {
                        let answer = client.get(HOST, "/ok");
                        answer.expect(200);
                        answered.fetch_add(1, Ordering::Relaxed);
                        if !keeps || answer.field("connection") == Some("close") {
                            client = connect();
                        }
                    }
                })
            })
            .collect();
        Self {
            stop,
            answered,
            callers,
        }
    }

    /// Waits for so many further answers.
    #[track_caller]
    fn wait_for(&self, more: u64) {
        let before = self.answered.load(Ordering::Relaxed);
        eventually("answers under load", || {
            assert!(
                self.callers.iter().all(|caller| !caller.is_finished()),
                "a caller met a failure"
            );
            (self.answered.load(Ordering::Relaxed) >= before + more).then_some(())
        });
    }

    /// Ends the load; a caller that met a failure panics here. Returns the answers.
    #[track_caller]
    fn finish(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        for caller in self.callers {
            caller.join().expect("no request may fail");
        }
        self.answered.load(Ordering::Relaxed)
    }
}

/// Two workers, whatever the machine: they may share a core.
fn two_workers(base: &str) -> String {
    let (before, after) = base.split_once("cpus = ").expect("the base pins");
    let (_, after) = after.split_once('\n').expect("a line");
    format!("{before}{after}").replace("workers = 1", "workers = 2")
}

/// Two workers, on this driver.
fn site(driver: &str) -> Site {
    Site::build(&[], |world, mock, key_file| {
        let base = two_workers(&world.base());
        let (before, after) = base.split_once("state_dir").expect("a line of the base");
        let base = format!("{before}driver = {driver:?}\nstate_dir{after}");
        // Rotation under two writers, and enough files for all lines.
        let base = base.replace(
            "[audit]\n",
            "[audit]\nrotate_bytes = \"64KiB\"\nkeep = 1000\n",
        );
        format!(
            "{base}{}{}",
            mock.upstream("mock", HOST),
            bearer_route(key_file)
        )
    })
}

/// Every record, of the file and of those that were put aside.
fn all_records(world: &World) -> Vec<Value> {
    let directory = world.path("");
    let mut records = Vec::new();
    for entry in std::fs::read_dir(directory).expect("readable") {
        let entry = entry.expect("readable");
        if entry
            .file_name()
            .to_string_lossy()
            .starts_with("audit.ndjson")
        {
            records.extend(read_audit(&entry.path()));
        }
    }
    records
}

/// A hand-over, then another one by the new process, under load; then the audit trail
/// has a line for every request, and none twice.
#[track_caller]
fn nobody_notices(driver: &str) {
    let site = site(driver);
    let load = Load::start(site.claviger.address(), &site.world);
    load.wait_for(50);
    let first = hand_over(&site.claviger);
    load.wait_for(50);
    wait_gone(site.claviger.pid());
    load.wait_for(50);
    let mark = site.claviger.log().mark();
    first
        .signal(nix::sys::signal::Signal::SIGURG)
        .expect("it runs");
    let second = Successor::of(&site.claviger, mark);
    assert_ne!(first.pid, second.pid);
    load.wait_for(50);
    wait_gone(first.pid);
    load.wait_for(50);
    let answered = load.finish();
    second.terminate();
    let records = all_records(&site.world);
    let exchanges: std::collections::BTreeSet<_> = records
        .iter()
        .filter(|record| record["event"] == "exchange" && record["status"] == 200)
        .map(|record| record["request_id"].to_string())
        .collect();
    assert_eq!(exchanges.len() as u64, answered);
    assert_eq!(
        records.len() as u64,
        answered,
        "no other outcome, none twice"
    );
    site.claviger.finish().expect_code(0);
}

#[test]
fn nobody_notices_a_hand_over_on_io_uring() {
    nobody_notices("auto");
}

#[test]
fn nobody_notices_a_hand_over_on_epoll() {
    nobody_notices("epoll");
}

#[test]
fn nobody_notices_ten_reloads() {
    let site = site("auto");
    let load = Load::start(site.claviger.address(), &site.world);
    let config = std::fs::read_to_string(site.claviger.config()).expect("readable");
    for round in 0..10 {
        load.wait_for(20);
        let event = site.claviger.reload(&format!("{config}# round {round}\n"));
        assert!(event["generation"].as_u64() >= Some(round + 2), "{event}");
    }
    load.wait_for(20);
    load.finish();
}

/// What is open in the old process goes on there: an idle connection has its next
/// request answered, and one under way is finished.
#[test]
fn what_is_open_goes_on_in_the_old_process() {
    let site = Site::new();
    let mut idle = site.connect();
    idle.get(HOST, "/ok").expect(200);
    let mut streaming = site.connect();
    streaming.send(format!(
        "GET /sse?n=40&ms=50 HTTP/1.1\r\nHost: {HOST}\r\n\r\n"
    ));
    assert_eq!(streaming.head().status, 200);
    let successor = hand_over(&site.claviger);
    // Several ticks later it is still open: a request might have been on its way.
    for _ in 0..5 {
        site.get("/sse?n=2&ms=100").expect(200);
    }
    let last = idle.get(HOST, "/ok");
    assert_eq!(last.expect(200).field("connection"), Some("close"));
    idle.expect_end();
    let rest = streaming.read_until(b"[DONE]");
    assert!(rest.ends_with(b"[DONE]"));
    drop(streaming);
    wait_gone(site.claviger.pid());
    // The one that serves now is the new one, with everything that belongs to it.
    site.get("/ok").expect(200);
    successor.terminate();
    site.claviger.finish().expect_code(0);
}

/// A hand-over is a start: what a reload cannot change is taken up, an address that is
/// new is bound, one that has gone is closed.
#[test]
fn a_new_process_takes_up_what_needs_a_restart() {
    let site = Site::with(
        "",
        "[[listener]]\nname = \"second\"\naddress = [\"127.0.0.3:0\"]\n",
    );
    let gone = site.claviger.addresses_of("second")[0];
    let config = std::fs::read_to_string(site.claviger.config()).expect("readable");
    std::fs::write(
        site.claviger.config(),
        config.replace("\"second\"", "\"third\"").replace(
            "[[listener]]\nname = \"third\"\naddress = [\"127.0.0.3:0\"]\n",
            "[[listener]]\nname = \"third\"\naddress = [\"127.0.0.2:0\"]\n",
        ),
    )
    .expect("writable");
    let mark = site.claviger.log().mark();
    let successor = hand_over(&site.claviger);
    let serving = site.claviger.log().wait_event(mark, "serving");
    assert_eq!(serving["took_over_from"], site.claviger.pid());
    let addresses = serving["addresses"].as_str().expect("text").to_owned();
    assert!(
        addresses.contains(&format!("main={}", site.claviger.address()))
            && addresses.contains("third=127.0.0.2:"),
        "{addresses}"
    );
    eventually("the address that has gone to be closed", || {
        std::net::TcpStream::connect(gone).is_err().then_some(())
    });
    site.get("/ok").expect(200);
    successor.terminate();
    site.claviger.finish().expect_code(0);
}

/// Whatever is wrong with the new process, the old one serves on and says why.
#[test]
fn a_process_that_cannot_serve_takes_nobody_s_place() {
    let world = World::new();
    let (key, key_file) = world.key_file("key");
    let mock = Mock::start(&world, &[HOST], &["--auth", "bearer", "--key", &key]);
    let config = format!(
        "{}{}{}",
        world.base(),
        mock.upstream("mock", HOST),
        bearer_route(&key_file)
    );
    // Started through a link, as operators who keep several versions do.
    let program = world.path("claviger-current");
    let point_to = |target: &std::path::Path| {
        let beside = world.path("claviger-next");
        std::os::unix::fs::symlink(target, &beside).expect("a fresh name");
        std::fs::rename(&beside, &program).expect("one directory");
    };
    point_to(&process::binary("claviger"));
    let mut command = Command::new(&program);
    command
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default());
    let claviger = world.start_with(&config, command, &[]);
    let load = Load::start(claviger.address(), &world);
    let refused = |what: &str| {
        load.wait_for(5);
        let mark = claviger.log().mark();
        claviger.process().signal(libc::SIGURG);
        let failure = claviger.log().wait_event(mark, "the hand-over failed");
        let told = failure["message"].as_str().expect("text").to_owned();
        assert!(told.contains(what), "{told}");
        load.wait_for(5);
    };
    // A configuration that it refuses. The old one reads it too, and keeps its own.
    std::fs::write(claviger.config(), config.replace("callers", "cullers")).expect("writable");
    refused("cullers");
    std::fs::write(claviger.config(), &config).expect("writable");
    // Another driver: the sockets that both hold cannot suit both.
    let on_ring = claviger.status()["driver"]
        .as_str()
        .is_some_and(|driver| driver.contains("io_uring"));
    if on_ring {
        let changed = config.replace("[audit]", "driver = \"epoll\"\n[audit]");
        std::fs::write(claviger.config(), changed).expect("writable");
        refused("Restart instead");
        std::fs::write(claviger.config(), &config).expect("writable");
    }
    // A binary that is none of ours, one that cannot be executed, and none at all.
    point_to(std::path::Path::new("/bin/true"));
    refused("without saying why");
    point_to(&key_file);
    refused("cannot be executed");
    std::fs::remove_file(&program).expect("ours");
    refused("cannot be executed");
    // And then a good one again.
    point_to(&process::binary("claviger"));
    let successor = hand_over(&claviger);
    load.wait_for(20);
    load.finish();
    successor.terminate();
    claviger.finish().expect_code(0);
}

/// A key from `env://` has been taken out of the environment, and reaches the next
/// process all the same.
#[test]
fn a_key_from_the_environment_goes_along() {
    let world = World::new();
    let (key, key_file) = world.key_file("key");
    let mock = Mock::start(&world, &[HOST], &["--auth", "bearer", "--key", &key]);
    let config = format!(
        "{}{}{}",
        world.base(),
        mock.upstream("mock", HOST),
        bearer_route(&key_file).replace(&format!("file://{}", key_file.display()), "env://API_KEY")
    );
    let mut command = world.command();
    command.env("API_KEY", &key);
    let claviger = world.start_with(&config, command, &[]);
    claviger.get(&world, "/echo").expect(200);
    let successor = hand_over(&claviger);
    wait_gone(claviger.pid());
    claviger.get(&world, "/echo").expect(200);
    // Nor does the new one's environment show it.
    let shown = std::fs::read(format!("/proc/{}/environ", successor.pid)).unwrap_or_default();
    world.evidence("the new process's environment", shown);
    successor.terminate();
    claviger.finish().expect_code(0);
}

/// From root to the service's user, and from there to the next process: the same low
/// port, another one that is new, and nothing else gained.
#[test]
fn the_service_user_hands_low_ports_on() {
    if !nix::unistd::Uid::effective().is_root() {
        return cannot_run("only root can become somebody else");
    }
    let world = World::for_everybody();
    let (key, key_file) = world.key_file("key");
    let namespace = Namespace::new("");
    let mut command = namespace.command(process::binary("mock-upstream"));
    command.args(["--listen", "127.0.0.3:443"]);
    let mock = Mock::start_with(
        &world,
        command,
        &[HOST],
        &["--auth", "bearer", "--key", &key],
    );
    let base = world
        .base()
        .replace("127.0.0.1:0", "127.0.0.2:443")
        .replace("[audit]", "user = \"nobody\"\n[audit]");
    let config = format!(
        "{base}{}{}",
        mock.upstream("mock", HOST),
        bearer_route(&key_file)
    );
    fn give(path: &std::path::Path) {
        std::os::unix::fs::chown(path, Some(65534), Some(65534)).expect("root may");
        if path.is_dir() {
            for entry in std::fs::read_dir(path).expect("readable") {
                give(&entry.expect("readable").path());
            }
        }
    }
    world.write("claviger.toml", &config);
    give(&world.path(""));
    // Executed once more by that user, who may not reach the directory of the build.
    let program = world.path("claviger");
    std::fs::copy(process::binary("claviger"), &program).expect("there is room");
    let mut command = namespace.command(&program);
    command.env_clear();
    let claviger = world.start_with(&config, command, &[]);
    std::fs::write(
        claviger.config(),
        config.replace("\"127.0.0.2:443\"", "\"127.0.0.2:443\", \"127.0.0.4:443\""),
    )
    .expect("root may");
    let successor = hand_over(&claviger);
    let status =
        std::fs::read_to_string(format!("/proc/{}/status", successor.pid)).expect("it runs");
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_else(|| panic!("{name}")).trim().to_owned()
    };
    assert_eq!(field("Uid:").split_whitespace().next(), Some("65534"));
    for set in ["CapEff:", "CapPrm:"] {
        assert_eq!(field(set), format!("{:016x}", 1 << 10), "{set}");
    }
    for set in ["CapInh:", "CapAmb:"] {
        assert_eq!(field(set), format!("{:016x}", 0), "{set}");
    }
    for address in ["127.0.0.2", "127.0.0.4"] {
        let mut curl = namespace.command("/usr/bin/curl");
        curl.env_clear()
            .args(["--silent", "--fail", "--connect-to"])
            .arg(format!("::{address}:443"))
            .arg("--cacert")
            .arg(world.path("root.pem"))
            .arg(format!("https://{HOST}/echo"));
        let answer = process::Process::run("curl", curl).expect_code(0);
        assert!(answer.out_text().contains("\"authorized\":true"));
    }
    successor.terminate();
    claviger.finish().expect_code(0);
}

/// The units that are shipped mean something to systemd, and all of it.
#[test]
fn the_units_are_good() {
    let analyze = std::path::Path::new("/usr/bin/systemd-analyze");
    if !analyze.exists() {
        return cannot_run("systemd-analyze is not installed");
    }
    let world = World::new();
    let units = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
    let service = std::fs::read_to_string(units.join("claviger.service")).expect("it is there");
    // The binary is not installed where tests run.
    let here = process::binary("claviger").display().to_string();
    world.write(
        "claviger.service",
        service.replace("/usr/local/bin/claviger", &here),
    );
    let socket = std::fs::read_to_string(units.join("claviger.socket")).expect("it is there");
    world.write("claviger.socket", &socket);
    let verify = |service: &str, socket: &str| {
        let mut command = Command::new(analyze);
        command.env_clear().args(["verify", "--man=no"]);
        command.args([world.path(service), world.path(socket)]);
        let judged = process::Process::run("systemd-analyze", command);
        let judged = String::from_utf8_lossy(&judged.all()).into_owned();
        // Only what is said of these units; the machine's own are not ours to mend.
        judged
            .lines()
            .filter(|line| line.contains("claviger") || line.contains("Unknown"))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert_eq!(
        verify("claviger.service", "claviger.socket"),
        [] as [String; 0]
    );
    // It would have found something.
    world.write("claviger.socket", socket.replace("Backlog=", "Backlock="));
    assert_ne!(
        verify("claviger.service", "claviger.socket"),
        [] as [String; 0]
    );
}

/// A service manager's end of `sd_notify(3)`.
struct Manager {
    socket: UnixDatagram,
    path: std::path::PathBuf,
}

impl Manager {
    fn new(world: &World) -> Self {
        let path = world.path("notify");
        let socket = UnixDatagram::bind(&path).expect("a fresh name");
        socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        Self { socket, path }
    }

    fn told(&self) -> String {
        let mut message = [0; 4096];
        let length = self.socket.recv(&mut message).expect("a message in time");
        String::from_utf8_lossy(&message[..length]).into_owned()
    }

    /// The next message with a line that begins so; returns the message.
    #[track_caller]
    fn wait(&self, begins: &str) -> String {
        let give_up = Instant::now() + PATIENCE;
        while Instant::now() < give_up {
            let message = self.told();
            if message.lines().any(|line| line.starts_with(begins)) {
                return message;
            }
        }
        panic!("the service manager was never told {begins}");
    }
}

/// Has `command` executed with listening sockets as descriptors 3 and following, as
/// `sd_listen_fds(3)` says; `names` is LISTEN_FDNAMES. The process id is only known
/// behind the fork, so a shell sets it.
fn activate(command: Command, sockets: &[&TcpListener], names: &str) -> Command {
    let mut shell = Command::new("/bin/sh");
    shell.env_clear();
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            shell.env(name, value);
        }
    }
    shell
        .env("LISTEN_FDS", sockets.len().to_string())
        .env("LISTEN_FDNAMES", names)
        .args(["-c", "export LISTEN_PID=$$; exec \"$0\" \"$@\""])
        .arg(command.get_program())
        .args(command.get_args());
    let sources: Vec<_> = sockets.iter().map(|socket| socket.as_raw_fd()).collect();
    // SAFETY: the closure runs between fork and exec and makes system calls alone. The
    // numbers above 100 are nobody's; the sources stay open in the parent.
    unsafe {
        shell.pre_exec(move || {
            for (place, &source) in sources.iter().enumerate() {
                if libc::dup2(source, 100 + place as i32) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
            }
            for place in 0..sources.len() as i32 {
                if libc::dup2(100 + place, 3 + place) < 0 || libc::close(100 + place) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
    shell
}

/// The sockets of a service manager are served, by address and by name, and stay open
/// when the process has ended: who connects meanwhile is served by the next one.
#[test]
fn sockets_of_the_service_manager_are_served() {
    let site = Site::new();
    let Site {
        claviger,
        world,
        mock,
        key_file,
        ..
    } = site;
    claviger.terminate().expect_code(0);
    let by_address = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let by_name = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let (first, second) = (
        by_address.local_addr().expect("bound"),
        by_name.local_addr().expect("bound"),
    );
    let manager = Manager::new(&world);
    let config = format!(
        "{}[[listener]]\nname = \"main\"\naddress = [\"{first}\"]\n[[listener]]\nname = \"named\"\naddress = [\"127.0.0.1:0\"]\n{}{}",
        world.base_without_listener(),
        mock.upstream("mock", HOST),
        bearer_route(&key_file)
    );
    let start = || {
        let mut command = world.command();
        command.env("NOTIFY_SOCKET", &manager.path);
        let path = world.write("claviger.toml", &config);
        command.arg("run").arg("--config").arg(path);
        activate(command, &[&by_name, &by_address], "named:")
    };
    let config_of = Arc::new(world.client_config());
    let connect = |address| {
        Client::tls(address, HOST, Arc::clone(&config_of), world.transcript()).expect("served")
    };
    let process = world.watch("claviger", start());
    let serving = process.err.wait_event(0, "serving");
    let addresses = serving["addresses"].as_str().expect("text").to_owned();
    assert!(
        addresses.contains(&format!("main={first}"))
            && addresses.contains(&format!("named={second}")),
        "{addresses}"
    );
    assert!(manager.wait("READY=1").contains("STATUS=Serving"));
    connect(first).get(HOST, "/ok").expect(200);
    connect(second).get(HOST, "/ok").expect(200);
    process.signal(libc::SIGTERM);
    manager.wait("STOPPING=1");
    process.finish().expect_code(0);
    // Nobody serves, and nobody is refused.
    let waiting = thread::spawn({
        let (config, transcript) = (Arc::clone(&config_of), world.transcript());
        move || Client::tls(first, HOST, config, transcript)
    });
    let process = world.watch("claviger", start());
    let mut client = waiting
        .join()
        .expect("no panic")
        .expect("the queue was never closed");
    client.get(HOST, "/ok").expect(200);
    drop(client);
    process.signal(libc::SIGTERM);
    process.finish().expect_code(0);
    // A socket that no listener is meant for.
    let stray = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let mut command = world.command();
    command
        .arg("run")
        .arg("--config")
        .arg(world.path("claviger.toml"));
    let refused = world
        .watch(
            "claviger",
            activate(command, &[&by_address, &stray], "main:stray"),
        )
        .finish();
    assert!(!refused.status.success());
    let told = refused.err_text();
    assert!(
        told.contains("`stray`") && told.contains("FileDescriptorName="),
        "{told}"
    );
}

/// What the manager is told: that it serves, that it reloads and since when, how that
/// ended, who the main process is, and that it stops.
#[test]
fn the_service_manager_is_told() {
    let world = World::new();
    let (key, key_file) = world.key_file("key");
    let mock = Mock::start(&world, &[HOST], &["--auth", "bearer", "--key", &key]);
    let config = format!(
        "{}{}{}",
        world.base(),
        mock.upstream("mock", HOST),
        bearer_route(&key_file)
    );
    let manager = Manager::new(&world);
    let mut command = world.command();
    command.env("NOTIFY_SOCKET", &manager.path);
    let claviger = world.start_with(&config, command, &[]);
    manager.wait("READY=1");
    claviger.reload(&format!("{config}# changed\n"));
    let told = manager.wait("RELOADING=1");
    let since: u64 = told
        .lines()
        .find_map(|line| line.strip_prefix("MONOTONIC_USEC="))
        .and_then(|since| since.parse().ok())
        .expect("a time");
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).expect("a clock");
    let now = u64::try_from(Duration::from(now).as_micros()).expect("small");
    assert!(since <= now && now - since < 60_000_000, "{since} {now}");
    manager.wait("READY=1");
    std::fs::write(claviger.config(), "nonsense").expect("writable");
    claviger.process().signal(libc::SIGHUP);
    manager.wait("RELOADING=1");
    let told = manager.wait("READY=1");
    assert!(told.contains("could not be loaded"), "{told}");
    // A hand-over that fails, and one that does not.
    claviger.process().signal(libc::SIGURG);
    manager.wait("STATUS=Serving; a hand-over failed");
    std::fs::write(claviger.config(), &config).expect("writable");
    let successor = hand_over(&claviger);
    let told = manager.wait("MAINPID=");
    assert_eq!(told, format!("MAINPID={}", successor.pid));
    // From then on the new one speaks, and the old one is silent.
    wait_gone(claviger.pid());
    let told = manager.wait("READY=1");
    assert!(told.contains("STATUS=Serving"), "{told}");
    successor
        .signal(nix::sys::signal::Signal::SIGTERM)
        .expect("it runs");
    manager.wait("STOPPING=1");
    eventually("its end", || (!successor.runs()).then_some(()));
    claviger.finish().expect_code(0);
}

/// The watchdog is fed while every core's loop comes round, and not when one hangs,
/// whatever the rest of the process does.
#[test]
fn the_watchdog_starves_when_a_core_hangs() {
    let world = World::new();
    let (key, key_file) = world.key_file("key");
    let mock = Mock::start(&world, &[HOST], &["--auth", "bearer", "--key", &key]);
    let base = two_workers(&world.base());
    let config = format!(
        "{base}{}{}",
        mock.upstream("mock", HOST),
        bearer_route(&key_file)
    );
    let manager = Manager::new(&world);
    let mut command = world.command();
    command
        .env("NOTIFY_SOCKET", &manager.path)
        .env("WATCHDOG_USEC", "2000000");
    let claviger = world.start_with(&config, command, &[]);
    for _ in 0..3 {
        manager.wait("WATCHDOG=1");
    }
    let held = Held::threads(claviger.pid(), |name, _| name == "worker-1");
    manager.wait("STATUS=Worker 1 hangs");
    // Starving for longer than the manager waits.
    let until = Instant::now() + Duration::from_millis(2500);
    while let Some(left) = until
        .checked_duration_since(Instant::now())
        .filter(|left| !left.is_zero())
    {
        let timeout = manager.socket.set_read_timeout(Some(left));
        timeout.expect("a timeout");
        let mut message = [0; 256];
        if let Ok(length) = manager.socket.recv(&mut message) {
            let message = String::from_utf8_lossy(&message[..length]);
            assert!(
                !message.contains("WATCHDOG"),
                "a process whose core hangs said that all is well"
            );
        }
    }
    let timeout = manager.socket.set_read_timeout(Some(PATIENCE));
    timeout.expect("a timeout");
    drop(held);
    manager.wait("WATCHDOG=1");
}
