//! A change takes effect without a restart, whole or not at all, and without a
//! failed request.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::harness::mock::fingerprint;
use crate::harness::world::{Claviger, HOST, Site, bearer_route};
use crate::harness::{Mock, World};

/// Replaces a file the careful way: a new one beside it, then a rename.
pub(crate) fn rename_over(path: &Path, content: &str) {
    let beside = path.with_extension("new");
    fs::write(&beside, content).expect("writable");
    fs::set_permissions(&beside, fs::Permissions::from_mode(0o600)).expect("ours");
    fs::rename(&beside, path).expect("one directory");
}

/// Overwrites it where it is, as `echo >` does.
fn write_in_place(path: &Path, content: &str) {
    fs::write(path, content).expect("writable");
}

/// A volume as Kubernetes mounts it: `NAME -> ..data/NAME`, `..data -> ..TIME`.
struct Mounted {
    directory: PathBuf,
    name: &'static str,
    generation: u32,
}

impl Mounted {
    fn new(directory: PathBuf, name: &'static str, content: &str) -> Self {
        let mut mounted = Self {
            directory,
            name,
            generation: 0,
        };
        mounted.swap(content);
        symlink(format!("..data/{name}"), mounted.path()).expect("a fresh directory");
        mounted
    }

    fn path(&self) -> PathBuf {
        self.directory.join(self.name)
    }

    fn swap(&mut self, content: &str) {
        let old = self.directory.join(format!("..v{}", self.generation));
        self.generation += 1;
        let version = format!("..v{}", self.generation);
        fs::create_dir(self.directory.join(&version)).expect("a fresh name");
        let file = self.directory.join(&version).join(self.name);
        fs::write(&file, content).expect("writable");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).expect("ours");
        symlink(&version, self.directory.join("..data_tmp")).expect("a fresh name");
        fs::rename(
            self.directory.join("..data_tmp"),
            self.directory.join("..data"),
        )
        .expect("one directory");
        let _ = fs::remove_dir_all(old);
    }
}

/// The fingerprint of the `Authorization` field with which a request arrived.
pub fn key_used(answer: &crate::harness::Answer) -> String {
    let echoed = answer.expect(200).json();
    let fields = echoed["headers"].as_array().expect("a list");
    let field = fields.iter().find(|field| {
        field[0]
            .as_str()
            .is_some_and(|name| name.eq_ignore_ascii_case("authorization"))
    });
    field.expect("the key was written")[1]
        .as_str()
        .expect("text")
        .to_owned()
}

/// How the mock shows it.
pub fn shown(key: &str) -> String {
    format!("sha256:{}", fingerprint(&format!("Bearer {key}")))
}

/// Callers that never stop: each keeps one connection and sends one request after
/// the other. Any failure fails the test; each answer is noted with the time at
/// which its request was sent.
struct Load {
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Vec<(Instant, String)>>>,
    callers: Vec<thread::JoinHandle<()>>,
}

impl Load {
    fn start(claviger: &Claviger, world: &World) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let callers = (0..4)
            .map(|_| {
                let mut client = claviger.connect(world);
                let (stop, seen) = (Arc::clone(&stop), Arc::clone(&seen));
                thread::spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        let sent = Instant::now();
                        let key = key_used(&client.get(HOST, "/echo"));
                        seen.lock().expect("no panic while held").push((sent, key));
                    }
                })
            })
            .collect();
        Self {
            stop,
            seen,
            callers,
        }
    }

    fn wait(&self, what: &str, wanted: impl Fn(&(Instant, String)) -> bool) {
        crate::harness::eventually(what, || {
            self.seen
                .lock()
                .expect("no panic while held")
                .iter()
                .any(&wanted)
                .then_some(())
        });
    }

    /// Ends the load; a caller that met a failure panics here.
    #[track_caller]
    fn finish(self) -> Vec<(Instant, String)> {
        self.stop.store(true, Ordering::Relaxed);
        for caller in self.callers {
            caller.join().expect("no request may fail");
        }
        self.seen.lock().expect("no panic while held").clone()
    }
}

/// Rotates the key under load with `replace`, and asserts that every request sent a
/// second later went out with the new one.
#[track_caller]
fn rotate(key_file: &Path, lines: &str, old: String, world: World, mut replace: impl FnMut(&str)) {
    let new = world.key();
    let mock = Mock::start(
        &world,
        &[HOST],
        &["--auth", "bearer", "--key", &old, "--key", &new],
    );
    let route = bearer_route(key_file).replace("inject", &format!("{lines}inject"));
    let claviger = world.start(&format!(
        "{}{}{route}",
        world.base(),
        mock.upstream("mock", HOST)
    ));
    let load = Load::start(&claviger, &world);
    let (old_shown, new_shown) = (shown(&old), shown(&new));
    load.wait("requests with the old key", |(_, key)| *key == old_shown);
    replace(&new);
    let replaced = Instant::now();
    load.wait("requests a second later", |(sent, _)| {
        *sent > replaced + Duration::from_millis(1200)
    });
    let seen = load.finish();
    let late = seen
        .iter()
        .filter(|(sent, key)| *key == old_shown && *sent > replaced + Duration::from_secs(1))
        .count();
    assert_eq!(
        late, 0,
        "requests with the old key more than a second after it was replaced"
    );
    assert!(seen.iter().any(|(_, key)| *key == new_shown));
    // The audit trail tells the versions apart.
    let versions: std::collections::BTreeSet<String> = claviger
        .audit()
        .iter()
        .filter_map(|record| record["credential_version"].as_str().map(str::to_owned))
        .collect();
    assert_eq!(versions.len(), 2, "{versions:?}");
}

#[test]
fn a_key_replaced_by_rename() {
    let world = World::new();
    let (old, path) = world.key_file("key");
    rotate(&path.clone(), "", old, world, |new| rename_over(&path, new));
}

#[test]
fn a_key_overwritten_in_place() {
    let world = World::new();
    let (old, path) = world.key_file("key");
    rotate(&path.clone(), "", old, world, |new| {
        write_in_place(&path, new)
    });
}

#[test]
fn a_key_swapped_as_kubernetes_does() {
    let world = World::new();
    let old = world.key();
    let mut mounted = Mounted::new(world.subdirectory("secret"), "key", &old);
    rotate(
        &mounted.path(),
        "allow_world_readable = true\n",
        old,
        world,
        |new| mounted.swap(new),
    );
}

/// A route more in the file, without a signal: rename, in place, and as a mounted
/// `conf.d`-less ConfigMap would do it.
#[test]
fn a_configuration_that_changes_on_disk_is_loaded() {
    let site = Site::new();
    let path = site.claviger.config().to_owned();
    let original = fs::read_to_string(&path).expect("readable");
    for (number, replace) in [rename_over as fn(&Path, &str), write_in_place]
        .into_iter()
        .enumerate()
    {
        let methods = format!("methods = [\"GET\", \"X{number}\"]\n");
        let mark = site.claviger.log().mark();
        replace(
            &path,
            &original.replace(
                "callers = \"open\"\n",
                &format!("callers = \"open\"\n{methods}"),
            ),
        );
        let event = site.claviger.wait_reloaded(mark);
        assert_eq!(
            event["generation"].as_u64(),
            Some(number as u64 + 2),
            "{event}"
        );
        let answer = site.connect().call(format!(
            "X{number} /echo/{number} HTTP/1.1\r\nHost: {HOST}\r\n\r\n"
        ));
        answer.expect(200);
        assert_eq!(
            site.claviger.audit_of(&format!("/echo/{number}"))["generation"],
            number + 2
        );
        site.connect()
            .call(format!("Y /echo HTTP/1.1\r\nHost: {HOST}\r\n\r\n"))
            .expect_own(405, "method_not_served");
    }
}

#[test]
fn files_of_conf_d_come_and_go() {
    let site = Site::new();
    site.connect().get(HOST, "/ok").expect(200);
    let directory = site
        .claviger
        .config()
        .parent()
        .expect("a file in a directory")
        .join("conf.d");
    let mark = site.claviger.log().mark();
    fs::create_dir(&directory).expect("a fresh name");
    let (_, key_file) = site.world.key_file("second");
    let route = format!(
        "[[route]]\nname = \"second\"\nhost = \"second.example.com\"\nupstream = \"mock\"\ncredential = \"file://{}\"\ncallers = \"open\"\n",
        key_file.display()
    );
    fs::write(directory.join("second.toml"), route).expect("writable");
    site.claviger.process().signal(libc::SIGHUP);
    site.claviger.wait_reloaded(mark);
    // Another key than the mock knows: the API itself refuses, so the route is there.
    site.claviger
        .connect_as(&site.world, "second.example.com")
        .get("second.example.com", "/ok")
        .expect(401);
}

/// On any mistake the old configuration goes on, and the log says what is wrong and
/// where.
#[test]
fn a_bad_configuration_changes_nothing() {
    let site = Site::new();
    let path = site.claviger.config().to_owned();
    let original = fs::read_to_string(&path).expect("readable");
    let load = Load::start(&site.claviger, &site.world);
    for (bad, told) in [
        ("this is not TOML [".to_owned(), "TOML"),
        (original.replace("callers =", "caller ="), "callers"),
        (original.replace("/key\"", "/no-such-key\""), "no-such-key"),
        (
            original.replace("upstream = \"mock\"", "upstream = \"mook\""),
            "mook",
        ),
    ] {
        let mark = site.claviger.log().mark();
        fs::write(&path, &bad).expect("writable");
        site.claviger.process().signal(libc::SIGHUP);
        site.claviger
            .log()
            .wait_from(mark, &format!("an error about {told}"), |line| {
                let severe = line.contains("ERROR") || line.contains("WARN");
                (severe && line.contains(told)).then_some(())
            });
        site.get("/echo").expect(200);
    }
    // The key's file goes away altogether: the key in use goes on.
    fs::write(&path, &original).expect("writable");
    fs::rename(&site.key_file, site.key_file.with_extension("away")).expect("one directory");
    let mark = site.claviger.log().mark();
    site.claviger.process().signal(libc::SIGHUP);
    site.claviger
        .log()
        .wait_from(mark, "an error about the key's file", |line| {
            line.contains("ERROR").then_some(())
        });
    site.get("/echo").expect(200);
    fs::rename(site.key_file.with_extension("away"), &site.key_file).expect("one directory");
    site.claviger.reload(&original);
    site.get("/echo").expect(200);
    assert!(
        load.finish()
            .iter()
            .all(|(_, key)| *key == shown(&site.key))
    );
}

/// A change that needs a restart is named, and the rest of the file takes effect.
#[test]
fn what_needs_a_restart_is_said() {
    let site = Site::new();
    let original = fs::read_to_string(site.claviger.config()).expect("readable");
    let mark = site.claviger.log().mark();
    let changed = original
        .replace("[audit]", "memory_lock = \"off\"\n[audit]")
        .replace(
            "callers = \"open\"\n",
            "callers = \"open\"\nmethods = [\"GET\"]\n",
        );
    site.claviger.reload(&changed);
    let warning = site
        .claviger
        .log()
        .wait_event(mark, "the configuration is in force, with warnings");
    assert!(
        warning.to_string().contains("server.memory_lock"),
        "{warning}"
    );
    site.get("/ok").expect(200);
    site.connect()
        .call(format!("PUT /ok HTTP/1.1\r\nHost: {HOST}\r\n\r\n"))
        .expect_own(405, "method_not_served");
}
