//! Under fire: callers and upstreams that mean ill, and a machine that runs out of something. Whoever
//! attacks is cut off by the limit that is meant for it and counted by name, memory stays bounded,
//! the CPU is not spun away, and a well-behaved caller, which `loadgen` plays in an open loop,
//! has not one failure.
//!
//! How much later its answers come is for `perf/fire` to measure: here two cores are shared with
//! every other test.

mod callers;
mod exhaustion;
mod oddities;
mod room;
mod upstreams;

use std::io::ErrorKind;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::process::{self, Process};
use crate::harness::world::{HOST, Site, bearer_route};
use crate::harness::{Claviger, Client, World};

/// The limit of each phase in which a caller may be slow, in the configurations here.
const LIMIT: Duration = Duration::from_secs(3);

/// Beyond its limit an attacker may last so much longer: two busy cores, and the sweep.
const SLACK: Duration = Duration::from_secs(10);

/// How long slow attackers rest between two steps.
const PACE: Duration = Duration::from_millis(20);

/// What a core may use of its CPU while a thousand callers do nothing, in a build without
/// optimisation: a sweep over their sockets ten times a second.
const IDLE_SHARE_MAX: f64 = 0.10;

/// Short limits for everything that callers do.
const LIMITS: &str = "handshake_timeout = \"3s\"\nhead_timeout = \"3s\"\nread_timeout = \"3s\"\n";

/// A mock API behind Claviger, with further lines in `[server]` and in the upstream's table.
#[track_caller]
fn site(server: &str, upstream: &str) -> Site {
    Site::build(&[], |world, mock, key_file| {
        config(
            world,
            &mock.upstream("mock", HOST),
            key_file,
            server,
            upstream,
        )
    })
}

/// The configuration of [`site`], for an upstream's table of another kind.
fn config(world: &World, table: &str, key_file: &Path, server: &str, upstream: &str) -> String {
    format!(
        "{}{table}{upstream}{}",
        world
            .base()
            .replace("[server]\n", &format!("[server]\n{server}")),
        bearer_route(key_file)
    )
}

/// The well-behaved caller: `loadgen` at a steady rate over a few kept connections.
struct Judge(Process);

impl Judge {
    /// Begins, and is under way when this returns.
    #[track_caller]
    fn start(world: &World, claviger: &Claviger) -> Self {
        let mut command = Command::new(process::binary("loadgen"));
        command
            .args(["--json", "--quiet", "--rps", "100", "--connections", "4"])
            // Ended when the attack is over; by itself if the test cannot.
            .args(["--duration", "120s", "--warmup", "0ms", "--timeout", "20s"])
            .args(["--expect-status", "200", "--lag-bound", "60s"])
            .arg("--cacert")
            .arg(world.path("root.pem"))
            .args(["--connect", &claviger.address().to_string()])
            .arg(format!("https://{HOST}/ok"));
        let process = Process::start("loadgen", command);
        process.err.wait("loadgen to be ready", |line| {
            line.starts_with("ready:").then_some(())
        });
        Self(process)
    }

    /// Ends, and has had an answer to every request.
    #[track_caller]
    fn has_noticed_nothing(self) {
        self.0.signal(libc::SIGTERM);
        let finished = self.0.finish();
        let report: Value = serde_json::from_slice(&finished.out)
            .unwrap_or_else(|err| panic!("{err}: {}", finished.err_text()));
        let target = &report["targets"][0];
        // What was due when it was told to end, on a busy machine, was not yet sent. What was sent has
        // its answer, and none took as long as `--timeout`.
        let mut errors = target["errors"].as_object().cloned().unwrap_or_default();
        errors.remove("unsent");
        assert!(
            errors.is_empty() && target["good"].as_u64().is_some_and(|good| good > 0),
            "a well-behaved caller noticed: {} good, errors {errors:?}",
            target["good"],
        );
    }
}

/// Connections as of a caller that is in no hurry: they do not wait for anything.
#[track_caller]
fn open(site: &Site, count: usize) -> Vec<Client> {
    (0..count).map(|_| patient(site.connect())).collect()
}

fn patient(client: Client) -> Client {
    client.socket().set_nonblocking(true).expect("a socket");
    client
}

/// Lets attackers act until each was cut off, which has to be within `limit`. Returns what each was
/// told, and asserts that nobody was cut off `early`: before so much time was over.
#[track_caller]
fn outlast(
    mut attackers: Vec<Client>,
    early: Duration,
    limit: Duration,
    mut act: impl FnMut(&mut Client),
) -> Vec<Vec<u8>> {
    let begun = Instant::now();
    let mut told = Vec::new();
    while !attackers.is_empty() {
        assert!(
            begun.elapsed() < limit + SLACK,
            "{} attackers go on after {:?}, with a limit of {limit:?}",
            attackers.len(),
            begun.elapsed()
        );
        let mut at = 0;
        while at < attackers.len() {
            if has_ended(&mut attackers[at]) {
                assert!(begun.elapsed() >= early, "cut after {:?}", begun.elapsed());
                told.push(attackers.swap_remove(at).read_to_end());
            } else {
                act(&mut attackers[at]);
                at += 1;
            }
        }
        // The attackers' pace.
        thread::sleep(PACE);
    }
    told
}

/// Whether the other side has ended it. Takes in what has arrived.
fn has_ended(client: &mut Client) -> bool {
    loop {
        match client.fill() {
            Ok(0) => return true,
            Ok(_) => {}
            Err(err) if err.kind() == ErrorKind::WouldBlock => return false,
            Err(_) => return true,
        }
    }
}

/// Bytes of memory that a process has for itself alone.
fn private_bytes(claviger: &Claviger) -> u64 {
    let path = format!("/proc/{}/smaps_rollup", claviger.pid());
    let rollup = std::fs::read_to_string(path).expect("our own child");
    rollup
        .lines()
        .filter_map(|line| {
            let rest = line
                .strip_prefix("Private_Clean:")
                .or_else(|| line.strip_prefix("Private_Dirty:"))?;
            rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
        })
        .sum::<u64>()
        * 1024
}

/// CPU time that all threads of a process have used.
fn cpu_time(claviger: &Claviger) -> Duration {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", claviger.pid())).expect("our own child");
    let nanoseconds = tasks
        .filter_map(|task| {
            let stat = std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
            stat.split(' ').next()?.parse::<u64>().ok()
        })
        .sum();
    Duration::from_nanos(nanoseconds)
}

/// Asserts that a process sleeps: over a second and more, at most this share of a core.
#[track_caller]
fn assert_calm(claviger: &Claviger, share_max: f64) {
    // A busy machine is no spin: the calmest of three counts.
    let mut calmest = f64::MAX;
    for _ in 0..3 {
        let (begun, before) = (Instant::now(), cpu_time(claviger));
        thread::sleep(Duration::from_secs(1));
        let used = cpu_time(claviger).saturating_sub(before);
        calmest = calmest.min(used.as_secs_f64() / begun.elapsed().as_secs_f64());
        if calmest <= share_max {
            return;
        }
    }
    panic!("{calmest:.3} of a core for nothing, of {share_max}");
}

/// Numbers of the descriptors that a process has open.
fn descriptors(claviger: &Claviger) -> Vec<u32> {
    let entries = std::fs::read_dir(format!("/proc/{}/fd", claviger.pid())).expect("our own child");
    let mut numbers: Vec<u32> = entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    numbers.sort_unstable();
    numbers
}

/// Raises our own limit of descriptors: tests here hold both ends of a thousand connections.
fn raise_descriptors() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).expect("every process has one");
    setrlimit(Resource::RLIMIT_NOFILE, most, most).expect("up to the hard limit");
}

/// A counter of the status line.
#[track_caller]
fn count(claviger: &Claviger, counter: &str) -> u64 {
    claviger.status()[counter]
        .as_u64()
        .unwrap_or_else(|| panic!("the status line has no {counter}"))
}
