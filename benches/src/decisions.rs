//! Decisions: which host, which route, and what a path may mean.

use std::hint::black_box;

use policy::{Snapshot, Verdict};
use wire::target::{self, ReadingsTooLong};

use crate::fixtures::{
    HOST, LISTENER, PATH_BYTES_LONGEST, REQUEST_TYPICAL, caller, path_hostile, snapshot_of_hosts,
    snapshot_of_routes,
};
use crate::heads::request;
use crate::{Case, Run};

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("authorize/1-host", || {
            allowed(snapshot_of_hosts(1), REQUEST_TYPICAL.to_vec())
        }),
        Case::new("authorize/100-hosts", || {
            allowed(snapshot_of_hosts(100), REQUEST_TYPICAL.to_vec())
        }),
        Case::new("authorize/10000-hosts", || {
            allowed(snapshot_of_hosts(10_000), REQUEST_TYPICAL.to_vec())
        }),
        Case::new("authorize/100-routes", || side_by_side(100)),
        Case::new("authorize/10000-routes", || side_by_side(10_000)),
        Case::new("authorize/100-routes-inside-each-other", || nested(100)),
        Case::new("authorize/no-route-of-10000", no_route),
        Case::new("authorize/hostile-path", hostile),
        Case::new("readings/ordinary", || {
            readings(b"/v1/chat/completions".to_vec(), 0)
        }),
        Case::new("readings/encoded", || {
            readings(b"/v1/files/a%20b".to_vec(), 1)
        }),
        Case::new("readings/hostile-2-KiB", || {
            let path = path_hostile(2048);
            let count = target::readings(&path).map_or(0, |readings| readings.len());
            assert!(count > 32, "it is hostile: {count}");
            readings(path, count)
        }),
        Case::new("readings/hostile-32-KiB", refused_readings),
    ]
}

fn allowed(snapshot: Snapshot, bytes: Vec<u8>) -> Run {
    let head = request(&bytes);
    Box::new(move || {
        let verdict = snapshot.authorize(LISTENER, &caller(HOST), black_box(&head));
        assert!(matches!(verdict, Verdict::Allow(_)));
        black_box(&verdict);
    })
}

fn denied(snapshot: Snapshot, bytes: Vec<u8>, reason: &'static str) -> Run {
    let head = request(&bytes);
    Box::new(
        move || match snapshot.authorize(LISTENER, &caller(HOST), black_box(&head)) {
            Verdict::Deny(denial) => assert_eq!(denial.reason, reason),
            Verdict::Allow(_) | Verdict::Greet => panic!("it is to be denied"),
        },
    )
}

/// Routes of one length; the last in the order of the alphabet is asked for.
fn side_by_side(routes: usize) -> Run {
    let snapshot = snapshot_of_routes(numbered(routes));
    let last = format!("/tenant-{routes:05}");
    allowed(snapshot, get(&format!("{last}/v1/models")))
}

fn no_route() -> Run {
    denied(
        snapshot_of_routes(numbered(10_000)),
        get("/v1/models"),
        "no_route",
    )
}

fn numbered(routes: usize) -> Vec<String> {
    (1..=routes).map(|at| format!("/tenant-{at:05}")).collect()
}

/// `/d`, `/d/d`, `/d/d/d` ...; what is asked for lies under the shortest and beside the others.
fn nested(depth: usize) -> Run {
    let paths = (1..=depth).map(|at| "/d".repeat(at)).collect();
    allowed(snapshot_of_routes(paths), get("/d/e/f"))
}

fn hostile() -> Run {
    let path = String::from_utf8(path_hostile(PATH_BYTES_LONGEST)).expect("ASCII");
    let paths = vec!["/".to_owned(), "/a/b".to_owned()];
    denied(snapshot_of_routes(paths), get(&path), "ambiguous_path")
}

fn refused_readings() -> Run {
    let path = path_hostile(PATH_BYTES_LONGEST);
    Box::new(move || assert_eq!(target::readings(black_box(&path)), Err(ReadingsTooLong)))
}

fn get(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n").into_bytes()
}

fn readings(path: Vec<u8>, count: usize) -> Run {
    Box::new(move || {
        let readings = target::readings(black_box(&path));
        assert_eq!(readings.as_ref().map(Vec::len), Ok(count));
        black_box(&readings);
    })
}
