//! What every test stands on: the real binaries in processes of their own, a
//! byte-level client, scripted upstreams, certificates, network namespaces, and
//! the search for the key in everything that anyone outside could have seen.
//!
//! Threads and blocking calls throughout: a test reads from top to bottom. It
//! waits for events (a log line, an answer, the end of a stream), never for a
//! guess of how long something takes.

pub mod client;
pub mod leak;
pub mod mock;
pub mod namespace;
pub mod pki;
pub mod process;
pub mod scripted;
pub mod world;

use std::time::{Duration, Instant};

pub use client::{Answer, Client};
pub use mock::Mock;
pub use scripted::Scripted;
pub use world::{Claviger, World};

/// How long an awaited event may take before the test fails: far longer than it
/// needs, since two busy cores are shared with every other test.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Says that this machine does not grant what a test needs. Where every test has to run, which
/// `scripts/test` demands as root by setting `CLAVIGER_IT_ALL`, that is a failure.
#[track_caller]
pub fn cannot_run(why: &str) {
    assert!(
        std::env::var_os("CLAVIGER_IT_ALL").is_none(),
        "cannot run, and CLAVIGER_IT_ALL demands it: {why}"
    );
    println!("not run: {why}");
}

/// Asks again until `probe` answers, for facts that no event announces (a line in
/// a file, a counter of the kernel). Panics after [`PATIENCE`], naming `what`.
#[track_caller]
pub fn eventually<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(
            Instant::now() < deadline,
            "waited {PATIENCE:?} in vain for {what}"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}
