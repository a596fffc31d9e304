//! What outlives a reload, and what does not.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::*;

const FILE: &str = r#"
[upstream.api]
host = "api.example.com"
connect_timeout = "10s"
[[route]]
host = "api.example.com"
upstream = "api"
credential = "file://DIR/key"
"#;

struct Running {
    house: House,
    context: ResolveContext,
}

impl Running {
    fn new() -> Self {
        let house = House::new(&["example.com"]);
        house.key("key", b"planted-0123456789abcdef");
        Self {
            house,
            context: ResolveContext::new(),
        }
    }

    fn reload(&mut self, text: &str) -> Resolved {
        self.try_reload(text, SystemTime::now())
            .unwrap_or_else(|report| panic!("{report}"))
    }

    fn try_reload(&mut self, text: &str, now: SystemTime) -> Result<Resolved, Report> {
        resolve_at(&self.house.load(text)?, &mut self.context, now)
    }
}

fn upstream(resolved: &Resolved) -> &Arc<policy::Upstream> {
    &resolved.snapshot.upstreams[0]
}

fn version(resolved: &Resolved) -> String {
    let route = &resolved.snapshot.hosts()[0].routes()[0];
    let (_, credential) = route.credential.as_ref().expect("a credential");
    credential.version().to_owned()
}

#[test]
fn what_is_the_same_keeps_its_number() {
    let mut running = Running::new();
    let first = running.reload(FILE);
    let again = running.reload(&FILE.replace("10s", "20s"));
    assert_eq!(again.snapshot.generation, 2);
    assert_eq!(again.snapshot.loop_token, first.snapshot.loop_token);
    assert_eq!(
        upstream(&again).id,
        upstream(&first).id,
        "times do not make another upstream"
    );
    assert!(
        Arc::ptr_eq(&upstream(&again).tls, &upstream(&first).tls),
        "sessions are kept"
    );
    assert_eq!(upstream(&again).limits.connect_timeout.as_secs(), 20);
    let id = |resolved: &Resolved| {
        resolved.snapshot.hosts()[0].routes()[0]
            .credential
            .as_ref()
            .map(|(id, _)| *id)
    };
    assert_eq!(id(&again), id(&first));
    let ticketer = |resolved: &Resolved| {
        let tls = resolved.snapshot.hosts()[0].tls.as_ref().expect("TLS");
        Arc::clone(&tls.ticketer)
    };
    assert!(
        Arc::ptr_eq(&ticketer(&again), &ticketer(&first)),
        "tickets still serve"
    );

    for other in [
        FILE.replace(
            "host = \"api.example.com\"\nconnect",
            "host = \"b.example.com\"\nconnect",
        ),
        FILE.replace("connect_timeout", "port = 8443\nconnect_timeout"),
        FILE.replace(
            "connect_timeout",
            "tls_name = \"b.example.com\"\nconnect_timeout",
        ),
        FILE.replace(
            "connect_timeout",
            "addresses = [\"192.0.2.1:443\"]\nconnect_timeout",
        ),
        FILE.replace("connect_timeout", "allow_private = true\nconnect_timeout"),
        FILE.replace(
            "connect_timeout",
            "ca_file = \"ca/root.pem\"\nconnect_timeout",
        ),
        FILE.replace("api]", "other]")
            .replace("\"api\"", "\"other\""),
    ] {
        let mut running = Running::new();
        let first = running.reload(FILE);
        let changed = running.reload(&other);
        assert_ne!(upstream(&changed).id, upstream(&first).id, "{other}");
    }
}

#[test]
fn a_failed_reload_changes_nothing_that_is_in_force() {
    let mut running = Running::new();
    let first = running.reload(FILE);
    running
        .try_reload(&FILE.replace("\"api\"", "\"apj\""), SystemTime::now())
        .expect_err("no such upstream");
    let again = running.reload(FILE);
    assert_eq!(again.snapshot.generation, first.snapshot.generation + 1);
    assert_eq!(upstream(&again).id, upstream(&first).id);
}

/// What answers are searched for: the value in force and those before it, as many as are remembered.
#[test]
fn earlier_values_of_a_key_are_searched_for() {
    let mut running = Running::new();
    let value = |number: usize| format!("planted-{number}-0123456789abcdef");
    let found = |resolved: &Resolved| -> Vec<usize> {
        let route = &resolved.snapshot.hosts()[0].routes()[0];
        let (_, credential) = route.credential.as_ref().expect("a credential");
        let finds = |number: &usize| {
            let echo = format!("you sent {}", value(*number));
            credential.scrubber().find(echo.as_bytes()).is_some()
        };
        (0..6).filter(finds).collect()
    };
    let mut rotate = |number: usize, text: &str| {
        running.house.key("key", value(number).as_bytes());
        running.try_reload(text, SystemTime::now())
    };
    let in_force =
        |reloaded: Result<Resolved, Report>| reloaded.unwrap_or_else(|report| panic!("{report}"));
    assert_eq!(found(&in_force(rotate(0, FILE))), [0]);
    assert_eq!(found(&in_force(rotate(1, FILE))), [0, 1]);
    // A reload for another reason forgets nothing, and one that fails remembers nothing.
    assert_eq!(found(&in_force(rotate(1, FILE))), [0, 1]);
    rotate(5, &FILE.replace("\"api\"", "\"apj\"")).expect_err("no such upstream");
    assert_eq!(found(&in_force(rotate(2, FILE))), [0, 1, 2]);
    assert_eq!(policy::credential::EARLIER_MAX, 2);
    assert_eq!(found(&in_force(rotate(3, FILE))), [1, 2, 3]);
    // A value that comes back is the present one, and no earlier one.
    assert_eq!(found(&in_force(rotate(2, FILE))), [1, 2, 3]);
    assert_eq!(found(&in_force(rotate(4, FILE))), [2, 3, 4]);
}

#[test]
fn a_changed_key_is_another_version_under_the_same_number() {
    let mut running = Running::new();
    let first = running.reload(FILE);
    running.house.key("next", b"planted-fedcba9876543210");
    std::fs::rename(running.house.path("next"), running.house.path("key")).expect("a rename");
    let again = running.reload(FILE);
    assert_ne!(version(&again), version(&first));
    assert_eq!(upstream(&again).id, upstream(&first).id);
}

#[test]
fn a_changed_ca_file_is_another_upstream() {
    let mut running = Running::new();
    let text = FILE.replace(
        "connect_timeout",
        "ca_file = \"roots.pem\"\nconnect_timeout",
    );
    let other = House::new(&["example.com"]);
    std::fs::copy(
        running.house.path("ca/root.pem"),
        running.house.path("roots.pem"),
    )
    .expect("a copy");
    let first = running.reload(&text);
    std::fs::copy(other.path("ca/root.pem"), running.house.path("roots.pem")).expect("a copy");
    let again = running.reload(&text);
    assert_ne!(
        upstream(&again).id,
        upstream(&first).id,
        "another trust, another pool"
    );
}

#[test]
fn leaves_are_made_anew_when_they_are_due() {
    let mut running = Running::new();
    let now = SystemTime::now();
    let first = running
        .try_reload(FILE, now)
        .unwrap_or_else(|report| panic!("{report}"));
    let due = first.next_renewal.expect("a leaf");
    assert!(due > now + Duration::from_secs(24 * 3600), "not at once");
    let again = running
        .try_reload(FILE, due)
        .unwrap_or_else(|report| panic!("{report}"));
    assert!(again.next_renewal.expect("a leaf") > due);
}

#[test]
fn what_needs_a_restart_is_named() {
    let mut running = Running::new();
    let first = running.reload(FILE);
    let again = running.reload(&format!("workers = 3\ndriver = \"epoll\"\nbusy_poll_us = 50\n[log]\nlevel = \"debug\"\nformat = \"json\"\n[audit]\npath = \"/x\"\n{FILE}"));
    assert_eq!(
        again.settings.restart_needed(&first.settings),
        [
            "server.workers",
            "server.driver",
            "server.busy_poll_us",
            "audit.path",
            "log.format"
        ]
    );
    assert!(first.settings.restart_needed(&first.settings).is_empty());
}
