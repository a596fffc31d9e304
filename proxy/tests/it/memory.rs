//! A caller that keeps its connection open costs little: what Claviger holds for one
//! that waits has a ceiling.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::harness::world::{HOST, Site};
use crate::harness::{Claviger, Client, eventually};

/// Connections before the measured ones, so that what is kept for all, such as spare
/// buffers, is there already. They stay: memory that they gave back would be used again.
const FIRST: usize = 500;

/// Measured connections: enough that a step of the allocator's, 4 MiB, is no more than a
/// third of what is allowed.
const MEASURED: usize = 1500;

/// Bytes of Claviger's memory per connection that waits, in a build without
/// optimisation too. What the kernel holds for the socket is not in it. A process that
/// locks its memory grows by the allocator's steps, two or three of which may fall into
/// the measured time; a buffer that every connection keeps does not fit below this.
const BYTES_MAX: u64 = 16_000;

#[test]
fn a_connection_that_waits_after_a_request() {
    check(|client| {
        client.get(HOST, "/echo").expect(200);
    });
}

#[test]
fn a_connection_that_waits_after_its_handshake() {
    check(|_| {});
}

fn check(used: impl Fn(&mut Client)) {
    // Our own ends of them: for the whole of this process, and harmless to other tests.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).expect("every process has one");
    setrlimit(Resource::RLIMIT_NOFILE, most, most).expect("up to the hard limit");
    let site = Site::new();
    let open = |count: usize| -> Vec<Client> {
        let open = || {
            let mut client = site.connect();
            used(&mut client);
            client
        };
        (0..count).map(|_| open()).collect()
    };
    let _first = open(FIRST);
    let before = settled(&site.claviger);
    let _measured = open(MEASURED);
    site.claviger
        .wait_count("connections_open", (FIRST + MEASURED) as u64);
    let after = settled(&site.claviger);
    let each = after.saturating_sub(before) / MEASURED as u64;
    assert!(each <= BYTES_MAX, "{each} bytes for each, of {BYTES_MAX}");
}

/// Claviger's memory in bytes, its share of what it shares with others, once it has
/// stopped falling: buffers go back when a receive has waited for a second.
fn settled(claviger: &Claviger) -> u64 {
    let mut lowest = u64::MAX;
    let mut since = std::time::Instant::now();
    eventually("the memory to settle", || {
        let now = proportional(claviger);
        if now < lowest {
            (lowest, since) = (now, std::time::Instant::now());
        }
        (since.elapsed().as_secs() >= 3).then_some(lowest)
    })
}

fn proportional(claviger: &Claviger) -> u64 {
    let path = format!("/proc/{}/smaps_rollup", claviger.pid());
    let rollup = std::fs::read_to_string(path).expect("our own child");
    let kib = rollup
        .lines()
        .find_map(|line| line.strip_prefix("Pss:"))
        .and_then(|rest| rest.trim().strip_suffix("kB"))
        .and_then(|number| number.trim().parse::<u64>().ok())
        .expect("Pss in KiB");
    kib * 1024
}
