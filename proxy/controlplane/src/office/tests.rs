//! The office with configurations of the tests' own making.

use std::net::{SocketAddr, UdpSocket};
use std::path::Path;

use handoff::{Published, lane};
use policy::{AddressBook, ServerLimits, UpstreamId};

use super::*;
use crate::audit::{self, AuditSettings};
use crate::names::Server;
use crate::test_support::{PANIC_WORDS, collect_log_of_all, log_of_all};

/// Longer than anything here takes; a test that waits for it has failed.
const LONG: Duration = Duration::from_secs(20);

/// A configuration whose snapshot has this generation and asks nobody for names.
fn loaded(generation: u64) -> Loaded {
    let snapshot = Snapshot::new(
        generation,
        Vec::new(),
        Vec::new(),
        ServerLimits::default(),
        "t",
    );
    Loaded {
        snapshot: Arc::new(snapshot.expect("empty")),
        names: Vec::new(),
        dns: DnsSettings::default(),
        own_addresses: OwnAddresses::default(),
        watch: Vec::new(),
        read_began: SystemTime::now(),
        renew_at: None,
        certificates: Vec::new(),
        acme: None,
        status_interval: None,
        warnings: None,
    }
}

/// An office, and what the cores would see of it.
struct Bench {
    snapshots: Arc<Published<Snapshot>>,
    book: Arc<Published<AddressBook>>,
    counters: Arc<Counters>,
    progress: Arc<Mutex<Vec<Progress>>>,
    office: Office,
}

impl Bench {
    fn start(first: Loaded, reload: impl Reload + 'static) -> Self {
        Self::start_with(first, reload, None)
    }

    fn start_with(
        first: Loaded,
        reload: impl Reload + 'static,
        audit: Option<AuditHandle>,
    ) -> Self {
        collect_log_of_all();
        let snapshots = Published::new(Arc::clone(&first.snapshot));
        let book = Published::new(Arc::new(AddressBook::default()));
        let counters = Arc::new(Counters::default());
        let progress = Arc::<Mutex<Vec<Progress>>>::default();
        let office = start(OfficePlan {
            publisher: Publisher::new(Arc::clone(&snapshots), Arc::clone(&book)),
            first,
            reload: Box::new(reload),
            counters: vec![Arc::clone(&counters)],
            driver: "epoll (2 workers)".to_owned(),
            audit,
            status_socket: None,
            progress: Box::new({
                let progress = Arc::clone(&progress);
                move |step| progress.lock().expect("no panic while held").push(step)
            }),
        });
        Self {
            snapshots,
            book,
            counters,
            progress,
            office: office.expect("starts"),
        }
    }

    fn generation(&self) -> u64 {
        self.snapshots.load().generation
    }

    /// Ends it, which must work in every state.
    fn stop(self) {
        assert!(self.office.stop(LONG), "it ends");
    }
}

#[track_caller]
fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < LONG, "{what} never came");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Counts reloads and gives each one the next generation.
fn counting() -> impl Reload {
    let mut generation = 1;
    move |_: &Reason| {
        generation += 1;
        Ok(loaded(generation))
    }
}

#[test]
fn a_request_puts_a_new_snapshot_in_force() {
    let bench = Bench::start(loaded(1), counting());
    assert!(
        bench.office.wait_for_names(LONG),
        "there are none to wait for"
    );
    assert_eq!(bench.generation(), 1, "the first one is there already");
    bench.office.requests().reload();
    wait_until("generation 2", || bench.generation() == 2);
    bench.office.requests().reload();
    wait_until("generation 3", || bench.generation() == 3);
    bench.stop();
}

#[test]
fn a_changed_file_is_in_force_within_a_second() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("number");
    std::fs::write(&file, "1").expect("writable");
    let read = {
        let file = file.clone();
        move || {
            let read_began = SystemTime::now();
            let text = std::fs::read_to_string(&file).map_err(|error| error.to_string())?;
            let number = text
                .parse()
                .map_err(|_| format!("no number in {}", file.display()))?;
            Ok::<_, String>(Loaded {
                watch: vec![file.clone()],
                read_began,
                ..loaded(number)
            })
        }
    };
    let first = read().expect("a number");
    let bench = Bench::start(first, move |_: &Reason| read());
    // In place, then by renaming over it.
    for (number, rename) in [(2, false), (3, true), (4, false), (5, true)] {
        let started = Instant::now();
        if rename {
            let next = directory.path().join("next");
            std::fs::write(&next, number.to_string()).expect("writable");
            std::fs::rename(&next, &file).expect("ours");
        } else {
            std::fs::write(&file, number.to_string()).expect("writable");
        }
        wait_until("the new number", || bench.generation() == number);
        // One second is the promise; the rest is for a machine that does other things.
        assert!(
            started.elapsed() < Duration::from_secs(3),
            "{:?}",
            started.elapsed()
        );
    }
    // What is broken stays out, and is told; what is mended comes in.
    std::fs::write(&file, "not-a-number").expect("writable");
    let expected = format!("no number in {}", file.display());
    wait_until("the report", || log_of_all().contains(&expected));
    assert_eq!(bench.generation(), 5);
    std::fs::write(&file, "6").expect("writable");
    wait_until("the mended file", || bench.generation() == 6);
    bench.stop();
}

#[test]
fn a_reload_that_hangs_keeps_nothing_else_up() {
    let (release, held) = mpsc::channel::<()>();
    let (entered, inside) = mpsc::channel();
    let mut calls = 1;
    let bench = Bench::start(loaded(1), move |reason: &Reason| {
        calls += 1;
        let _ = entered.send(reason.clone());
        let _ = held.recv();
        Ok(loaded(calls))
    });
    bench.office.requests().reload();
    assert_eq!(inside.recv_timeout(LONG), Ok(Reason::Requested));
    // It hangs. The office beats on, and still answers.
    let beat = bench.office.heartbeat();
    wait_until("two heartbeats", || bench.office.heartbeat() > beat + 2);
    bench.counters.add_many(Counter::exchanges, 987_654_321);
    bench.office.requests().status();
    wait_until("the status line", || {
        log_of_all().contains("exchanges=987654321")
    });
    // Requests meanwhile become one, after it; never two at a time.
    for _ in 0..5 {
        bench.office.requests().reload();
    }
    assert!(inside.recv_timeout(Duration::from_millis(200)).is_err());
    assert_eq!(bench.generation(), 1);
    release.send(()).expect("somebody waits");
    wait_until("generation 2", || bench.generation() == 2);
    assert_eq!(inside.recv_timeout(LONG), Ok(Reason::Requested));
    // Even now the office can be stopped.
    bench.stop();
    drop(release);
}

#[test]
fn every_reload_is_told_of_from_its_beginning_to_its_end() {
    let mut generation = 1;
    let bench = Bench::start(loaded(1), move |_: &Reason| {
        generation += 1;
        match generation {
            2 => Err("not this one".to_owned()),
            _ => Ok(loaded(generation)),
        }
    });
    let told = || bench.progress.lock().expect("no panic while held").clone();
    assert_eq!(told(), []);
    bench.office.requests().reload();
    wait_until("its failure", || {
        told() == [Progress::Began, Progress::Failed]
    });
    bench.office.requests().reload();
    wait_until("its success", || {
        told()[2..] == [Progress::Began, Progress::InForce(3)]
    });
    bench.stop();
}

#[test]
fn a_reload_that_panics_is_a_reload_that_failed() {
    let mut calls = 0;
    let bench = Bench::start(loaded(1), move |_: &Reason| {
        calls += 1;
        assert!(calls != 1, "only the first one");
        Ok(loaded(70 + calls))
    });
    let failed = || log_of_all().contains("it failed by a defect; the log says where");
    bench.office.requests().reload();
    wait_until("the report", failed);
    assert_eq!(bench.generation(), 1);
    bench.office.requests().reload();
    wait_until("the next one", || bench.generation() == 72);
    bench.stop();
}

#[test]
fn a_panic_of_the_thread_itself_starts_it_anew() {
    let mut calls = 1;
    let bench = Bench::start(loaded(1), move |_: &Reason| {
        calls += 1;
        match calls {
            // Logged by the office's own thread, which does not survive it.
            2 => Err(PANIC_WORDS.to_owned()),
            _ => Ok(loaded(calls)),
        }
    });
    bench.office.requests().reload();
    // It reads all anew by itself, since it does not know what was under way.
    wait_until("generation 3", || bench.generation() == 3);
    let beat = bench.office.heartbeat();
    wait_until("another heartbeat", || bench.office.heartbeat() > beat);
    bench.office.requests().reload();
    wait_until("generation 4", || bench.generation() == 4);
    bench.stop();
}

#[test]
fn a_certificate_is_renewed_in_time_and_not_in_a_circle() {
    let (sender, reasons) = mpsc::channel();
    let soon = SystemTime::now() + Duration::from_millis(300);
    let first = Loaded {
        renew_at: Some(soon),
        ..loaded(1)
    };
    let bench = Bench::start(first, move |reason: &Reason| {
        let _ = sender.send(reason.clone());
        // An issuer that cannot do better: due again at once.
        Ok(Loaded {
            renew_at: Some(soon),
            ..loaded(2)
        })
    });
    assert_eq!(reasons.recv_timeout(LONG), Ok(Reason::Renewal));
    wait_until("the renewed one", || bench.generation() == 2);
    assert!(reasons.recv_timeout(Duration::from_millis(2500)).is_err());
    bench.stop();
}

/// Answers nothing, ever.
fn silent_resolver() -> (UdpSocket, DnsSettings) {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("loopback");
    let address: SocketAddr = socket.local_addr().expect("bound");
    let dns = DnsSettings {
        servers: vec![Server {
            address,
            tls_name: None,
        }],
        ..DnsSettings::default()
    };
    (socket, dns)
}

fn name(number: u64) -> Name {
    Name {
        upstream: UpstreamId(number),
        label: format!("office-test-upstream-{number}"),
        host: "api.test".to_owned(),
        port: 443,
        allow_private: false,
    }
}

#[test]
fn resolvers_that_never_answer_hold_no_reload_up_for_long() {
    let (_socket, dns) = silent_resolver();
    let with_names = move |generation| Loaded {
        names: vec![name(generation)],
        dns: dns.clone(),
        ..loaded(generation)
    };
    let first = with_names(1);
    let bench = Bench::start(first, move |_: &Reason| Ok(with_names(2)));
    assert!(!bench.office.wait_for_names(Duration::from_millis(100)));
    let started = Instant::now();
    bench.office.requests().reload();
    wait_until("the reload", || bench.generation() == 2);
    assert!(started.elapsed() < NEW_NAMES_WAIT + Duration::from_secs(3));
    assert!(bench.book.load().addresses.is_empty());
    bench.office.requests().status();
    let unresolved = "unresolved=office-test-upstream-1,office-test-upstream-2";
    wait_until("the status line", || log_of_all().contains(unresolved));
    bench.stop();
}

/// What a supervisor does after a panic: a further life over the same state. (That
/// addresses outlive it too is a test beside them.)
#[test]
fn a_further_life_takes_the_work_up_where_it_is() {
    collect_log_of_all();
    let first = loaded(1);
    let snapshots = Published::new(Arc::clone(&first.snapshot));
    let book = Published::new(Arc::new(AddressBook::default()));
    let publisher = Publisher::new(Arc::clone(&snapshots), book);
    let names = Names::new(publisher.clone());
    names.expect(&first.names);
    let shared = Arc::new(Shared {
        acme: Acme::new(|| ()),
        publisher,
        names,
        counters: Vec::new(),
        driver: String::new(),
        audit: None,
        status_path: None,
        status_socket: Mutex::default(),
        progress: Box::new(|_| ()),
        started: Instant::now(),
        inbox: Mutex::new(Inbox::default()),
        news: Notify::new(),
        in_force: Mutex::new(InForce::of(first)),
        reload: Mutex::new(Box::new(counting())),
        heartbeat: AtomicU64::new(0),
    });
    let watch = Watch::start(|_| ()).expect("starts");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    for life in 1..=3 {
        runtime.block_on(async {
            let mut desk = Desk::new(&shared, &watch);
            shared.ask(Reason::Again);
            let until = async {
                while snapshots.load().generation <= life {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            };
            // Dropped in the middle of its work, as a panic would.
            tokio::select! {
                () = desk.work() => panic!("nobody told it to stop"),
                () = until => {}
            }
        });
    }
    assert_eq!(
        shared.names.known().len(),
        0,
        "the last configuration has no names"
    );
}

#[test]
fn the_status_line_has_every_counter_and_the_audit_trail() {
    let directory = tempfile::tempdir().expect("a directory");
    let (mut worker, drain) = lane();
    let settings = AuditSettings::new(directory.path().join("audit.log"));
    let trail = audit::start(settings, vec![drain]).expect("starts");
    let bench = Bench::start_with(loaded(1), counting(), Some(trail.handle()));
    assert!(worker.reserve());
    let batch = handoff::lane::Batch {
        lines: b"{}\n".to_vec(),
        records: 1,
    };
    worker.send(batch).expect("room");
    wait_until("the record", || worker.outstanding() == 0);
    bench.counters.add_many(Counter::handshakes, 123_456_789);
    bench.office.requests().status();
    wait_until("the line", || log_of_all().contains("handshakes=123456789"));
    let log = log_of_all();
    let line = log
        .lines()
        .find(|line| line.contains("handshakes=123456789"))
        .expect("it is there");
    for &counter in Counter::ALL {
        assert!(line.contains(&format!(" {}=", counter.name())), "{line}");
    }
    for part in [
        "driver=\"epoll (2 workers)\"",
        "generation=1",
        "audit_written=1",
    ] {
        assert!(line.contains(part), "{part} in {line}");
    }
    moved_and_reopened(directory.path(), &bench);
    bench.stop();
    drop(worker);
    assert_eq!(trail.shutdown(LONG).records, 0);
}

/// The audit file is opened anew through the office's requests.
fn moved_and_reopened(directory: &Path, bench: &Bench) {
    let path = directory.join("audit.log");
    std::fs::rename(&path, directory.join("audit.log-old")).expect("ours");
    bench.office.requests().reopen_logs();
    wait_until("a new file", || path.exists());
}

#[test]
fn the_status_line_comes_by_itself() {
    let first = Loaded {
        status_interval: Some(Duration::from_millis(100)),
        ..loaded(1)
    };
    let bench = Bench::start(first, counting());
    bench.counters.add_many(Counter::scrub_hits, 456_123_789);
    let lines = || log_of_all().matches("scrub_hits=456123789").count();
    wait_until("two lines", || lines() >= 2);
    bench.stop();
}

#[test]
fn reasons_become_one() {
    let files = |names: &[&str]| Reason::Files(names.iter().map(PathBuf::from).collect());
    let check = |a: Reason, b: Reason, together: Reason| {
        assert_eq!(a.clone().and(b.clone()), together);
        assert_eq!(b.and(a), together);
    };
    check(files(&["/a"]), files(&["/b"]), files(&["/a", "/b"]));
    check(files(&["/a"]), Reason::Requested, Reason::Requested);
    check(files(&["/a"]), Reason::Renewal, files(&["/a"]));
    check(Reason::Again, Reason::Renewal, Reason::Renewal);
    check(Reason::Again, Reason::Again, Reason::Again);
    assert_eq!(files(&["/a", "/b"]).to_string(), "/a changed, and 1 more");
}
