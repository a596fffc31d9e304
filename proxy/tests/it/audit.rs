//! One line per exchange, complete; where it is required, no key without it.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::harness::world::{HOST, Site, bearer_route, read_audit};
use crate::harness::{Mock, World, eventually};

#[test]
fn every_field() {
    let site = Site::new();
    let body = "some text";
    let mut client = site.connect();
    let port = client.socket().local_addr().expect("connected").port();
    let request = format!(
        "POST /echo?key=wrong&page=2 HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: Bearer wrong\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let answer = client.call(request);
    answer.expect(200);
    let record = site.claviger.audit_of("/echo");
    for (field, value) in [
        ("event", "exchange".into()),
        ("listener", "main".into()),
        ("route", "mock".into()),
        ("identified_by", "address".into()),
        ("client", "127.0.0.1".into()),
        ("client_port", port.into()),
        ("host", HOST.into()),
        ("method", "POST".into()),
        ("status", 200.into()),
        ("refused_by", serde_json::Value::Null),
        ("bytes_in", body.len().into()),
        ("bytes_out", answer.body.len().into()),
        ("upstream", "mock".into()),
        ("upstream_address", site.mock.address().to_string().into()),
        ("credential", "mock".into()),
        ("generation", 1.into()),
    ] {
        assert_eq!(record[field], value, "{field} of {record}");
    }
    let stripped: BTreeSet<_> = record["stripped"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|name| name.as_str())
        .collect();
    assert_eq!(stripped, BTreeSet::from(["authorization", "?key"]));
    for field in ["request_id", "caller", "credential_version", "time"] {
        assert!(
            record[field].as_str().is_some_and(|text| !text.is_empty()),
            "{field} of {record}"
        );
    }
    let micros = |field: &str| {
        record[field]
            .as_u64()
            .unwrap_or_else(|| panic!("{field} of {record}"))
    };
    // Each is cut to whole microseconds by itself.
    let parts = micros("own_us") + micros("upstream_us");
    assert!(micros("total_us").abs_diff(parts) <= 1, "{record}");
    assert!(micros("upstream_us") > 0);
    // Neither the query nor anything else that the caller sent is in it.
    assert!(!record.to_string().contains("page=2") && !record.to_string().contains("wrong"));
}

#[test]
fn refusals_name_who_and_why() {
    let site = Site::new();
    let own = site
        .connect()
        .call(format!("TRACE /traced HTTP/1.1\r\nHost: {HOST}\r\n\r\n"));
    let body = own.expect_own(405, "method_refused");
    let record = site.claviger.audit_of("/traced");
    assert_eq!(record["refused_by"], "policy");
    assert_eq!(record["reason"], "method_refused");
    assert_eq!(record["status"], 405);
    assert_eq!(record["credential"], serde_json::Value::Null);
    assert_eq!(
        record["request_id"], body["request_id"],
        "answer and record can be matched"
    );

    let _ = site.connect().call(format!(
        "GET /misdirected HTTP/1.1\r\nHost: other.{HOST}\r\n\r\n"
    ));
    assert_eq!(
        site.claviger.audit_of("/misdirected")["refused_by"],
        "policy"
    );
    // A refusal by the API itself is the API's: its status, and nobody here refused.
    site.get("/status/403").expect(403);
    assert_eq!(
        site.claviger.audit_of("/status/403")["refused_by"],
        serde_json::Value::Null
    );
}

/// The file's disk is full. A route that requires its record serves nothing, and the
/// key does not leave; others go on, and what was lost is counted.
#[test]
fn a_full_disk() {
    let world = World::new();
    let (key, key_file) = world.key_file("key");
    let mock = Mock::start(&world, &[HOST], &["--auth", "bearer", "--key", &key]);
    let best_effort = "[[route]]\nname = \"other\"\npath = \"/echo\"\nhost = \"api.example.com\"\nupstream = \"mock\"\ncredential = \"mock\"\ncallers = \"open\"\naudit = \"best-effort\"\n";
    let base = world.base().replace(
        &format!("path = {:?}", world.path("audit.ndjson")),
        "path = \"/dev/full\"",
    );
    let claviger = world.start(&format!(
        "{base}{}{}audit = \"required\"\n{best_effort}",
        mock.upstream("mock", HOST),
        bearer_route(&key_file)
    ));
    // Records wait in the core's lane until it is full. Requests that are refused at
    // the door fill it quickest.
    let mut client = claviger.connect(&world);
    let refused = format!("TRACE / HTTP/1.1\r\nHost: {HOST}\r\n\r\n");
    let answer = eventually("the lane to be full", || {
        client.send(refused.repeat(500));
        for _ in 0..500 {
            assert_eq!(client.answer().status, 405);
        }
        let answer = client.get(HOST, "/ok");
        (answer.status != 200).then_some(answer)
    });
    answer.expect_own(503, "audit_unavailable");
    assert!(answer.field("retry-after").is_some());
    let before = mock.received().len();
    claviger
        .get(&world, "/ok")
        .expect_own(503, "audit_unavailable");
    assert_eq!(mock.received().len(), before, "no record, no request");
    let lost = || {
        claviger.status()["audit_lost"]
            .as_u64()
            .expect("it is counted")
    };
    let lost_before = lost();
    for _ in 0..20 {
        claviger.get(&world, "/echo").expect(200);
    }
    // An answer is there a moment before what it lost is counted.
    eventually("twenty to be counted as lost", || {
        (lost() >= lost_before + 20).then_some(())
    });
}

#[test]
fn rotation_by_size_and_by_signal() {
    let site = Site::build(&[], |world, mock, key_file| {
        let base = world
            .base()
            .replace("[ca]", "rotate_bytes = \"64KiB\"\nkeep = 3\n[ca]");
        format!(
            "{base}{}{}",
            mock.upstream("mock", HOST),
            bearer_route(key_file)
        )
    });
    let mut client = site.connect();
    for number in 0..800 {
        client.get(HOST, &format!("/echo/{number}")).expect(200);
    }
    let files = || -> Vec<std::path::PathBuf> {
        let mut files: Vec<_> = fs::read_dir(site.world.path(""))
            .expect("readable")
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| {
                path.file_name()
                    .is_some_and(|name| name.to_string_lossy().starts_with("audit"))
            })
            .collect();
        files.sort();
        files
    };
    // 800 records are some 400 KiB: the file and the three that are kept.
    eventually("three rotated files", || (files().len() == 4).then_some(()));
    eventually("the last record", || {
        files()
            .iter()
            .flat_map(|path| read_audit(path))
            .any(|record| record["path"] == "/echo/799")
            .then_some(())
    });
    for path in files() {
        let size = fs::metadata(&path).expect("there").len();
        assert!(size < 65 * 1024, "{}: {size}", path.display());
        assert!(!read_audit(&path).is_empty() || size == 0);
    }

    // logrotate's way: the file is renamed, then the process is told. It looks by itself, too,
    // once a second: what comes in between is in either file, and in one of them only.
    let current = site.world.path("audit.ndjson");
    let mark = site.claviger.log().mark();
    let moved = site.world.path("audit-moved");
    fs::rename(&current, &moved).expect("one directory");
    client.get(HOST, "/echo/before").expect(200);
    site.claviger.process().signal(libc::SIGUSR1);
    site.claviger
        .log()
        .wait_event(mark, "the audit file was opened anew");
    client.get(HOST, "/echo/after").expect(200);
    site.claviger.audit_of("/echo/after");
    // Records are written in order: the one before is somewhere now.
    let times = |file: &Path, path: &str| {
        let records = read_audit(file);
        records
            .iter()
            .filter(|record| record["path"] == path)
            .count()
    };
    assert_eq!(times(&moved, "/echo/after"), 0);
    let before = times(&moved, "/echo/before") + times(&current, "/echo/before");
    assert_eq!(before, 1);
}

/// An exchange that lasts is on the trail before it ends.
#[test]
fn a_long_exchange_writes_a_begin_record() {
    let site = Site::with("audit = \"required\"\n", "");
    let mut client = site.connect();
    client.send(format!("GET /delay/11500 HTTP/1.1\r\nHost: {HOST}\r\n\r\n"));
    let begin = site.claviger.wait_audit("the beginning", |record| {
        (record["event"] == "begin").then(|| record.clone())
    });
    assert_eq!(begin["path"], "/delay/11500");
    assert_eq!(begin["credential"], "mock");
    assert_eq!(
        site.claviger
            .audit()
            .iter()
            .filter(|record| record["event"] == "exchange")
            .count(),
        0,
        "it has not ended"
    );
    client.answer().expect(200);
    let end = site.claviger.audit_of("/delay/11500");
    assert_eq!(end["request_id"], begin["request_id"]);
    assert!(end["total_us"].as_u64() > Some(11_000_000));
}

/// A path is bytes: whatever it holds, the trail stays one record a line.
#[test]
fn paths_cannot_forge_records() {
    let site = Site::new();
    site.get("/echo/%0a%7b%22event%22:%22exchange%22%7d/\"quoted\"")
        .expect(200);
    let long = format!("/echo/{}", "a".repeat(4000));
    site.get(&long).expect(200);
    let cut = site.claviger.wait_audit("the long path", |record| {
        (record["path_cut"] == true).then(|| record.clone())
    });
    assert_eq!(cut["path"].as_str().map(str::len), Some(1024));
    assert_eq!(site.claviger.audit().len(), 2);
}

/// What would forge a line, or draw on a terminal, if it were written as it came or decoded; and
/// the status that it gets.
const FORGERIES: [(&[u8], u16); 16] = [
    (b"/echo/%0d%0a%7B%22event%22:%22exchange%22%7D%0d%0a", 200),
    (b"/echo/%0A2026-01-01T00:00:00Z%20INFO%20forged", 200),
    (b"/echo/%1b%5b2J%1b%5d0;forged%07", 200),
    (b"/echo/%00%08%7f%c2%85%e2%80%a8%e2%80%ae", 200),
    (b"/echo/%ff%fe%c0%af%ed%a0%80", 200),
    (b"/echo/%22,%22event%22:%22forged%22,%22x%22:%22", 200),
    (b"/echo/\",\"event\":\"forged\",\"x\":\"", 200),
    (b"/echo/\\u000a\\n\\\"", 200),
    (
        b"/echo?x=%0d%0a%7B%22event%22:%22forged%22%7D&key=canary-in-a-query-0123456789",
        200,
    ),
    (b"/no\r\n{\"event\":\"forged\"}", 400),
    (b"/no\n{\"event\":\"forged\"}", 400),
    (b"/no\x1b[2Jforged", 400),
    (b"/no\x00forged", 400),
    (b"/no\x7fforged", 400),
    (b"/no\xff\xfe\x85forged", 400),
    ("/no\u{2028}\u{202e}forged".as_bytes(), 400),
];

/// At the level that says most, every line of log and trail is one record of ours, in characters
/// that show nothing else than themselves, whatever a request says; and no query is in it.
#[test]
fn no_request_forges_a_line() {
    let world = World::new();
    let (key, key_file) = world.key_file("key");
    let mock = Mock::start(&world, &[HOST], &["--key", &key]);
    let config = world.base() + &mock.upstream("mock", HOST) + &bearer_route(&key_file);
    let claviger = world.start_with(&config, world.command(), &["--log-level", "trace"]);
    for (target, status) in FORGERIES {
        let mut client = claviger.connect(&world);
        let end = format!(
            " HTTP/1.1\r\nHost: {HOST}\r\nUser-Agent: \x09{{\"event\":\"forged\"}}\r\n\r\n"
        );
        client.send([b"GET ", target, end.as_bytes()].concat());
        assert_eq!(client.answer().status, status, "{target:?}");
    }
    // In the other places of a request that a line may tell of.
    for request in [
        "G\u{1b}[2JET /echo HTTP/1.1\r\nHost: HOST\r\n\r\n",
        "GET\r\n{\"event\":\"forged\"} /echo HTTP/1.1\r\nHost: HOST\r\n\r\n",
        "GET /echo HTTP/1.1\r\nHost: HOST\u{1b}[2J\r\n\r\n",
        "GET /echo HTTP/1.1\r\nHost: \"},{\"event\":\"forged\"\r\n\r\n",
        "GET /echo HTTP/\u{1b}.1\r\nHost: HOST\r\n\r\n",
        "GET /echo HTTP/1.1\r\nHost: HOST\r\nX-\u{1b}: a\r\n\r\n",
        "GET /echo HTTP/1.1\r\nHost: HOST\r\nUpgrade: \"\\n{}\r\nConnection: upgrade\r\n\r\n",
    ] {
        let mut client = claviger.connect(&world);
        client.send(request.replace("HOST", HOST));
        client.answer();
    }
    let requests = FORGERIES.len() + 7;
    let recorded = || (claviger.audit().len() >= requests).then_some(());
    eventually("every request is recorded", recorded);
    let trail = fs::read(world.path("audit.ndjson")).expect("the trail");
    let audit = claviger.audit();
    assert_eq!(audit.len(), requests);
    for record in &audit {
        assert_eq!(record["event"], "exchange", "{record}");
        assert_eq!(record["host"], HOST, "{record}");
    }
    let log = claviger.log().bytes();
    let lines: Vec<&[u8]> = log.split(|&byte| byte == b'\n').collect();
    let (_under_way, lines) = lines.split_last().expect("one at least");
    assert!(!lines.is_empty());
    for line in lines {
        let line: serde_json::Value = serde_json::from_slice(line)
            .unwrap_or_else(|err| panic!("{err}: {}", String::from_utf8_lossy(line)));
        assert!(
            line["event"].is_null() && line["timestamp"].is_string(),
            "{line}"
        );
    }
    for (place, bytes) in [("the trail", &trail), ("the log", &log)] {
        let odd = |&byte: &u8| (byte < 0x20 && byte != b'\n') || byte >= 0x7f;
        let at = bytes.iter().position(odd);
        assert_eq!(at, None, "{place} has a byte that is not plain");
        let shows = memchr::memmem::find(bytes, b"canary-in-a-query");
        assert_eq!(shows, None, "{place} has a query");
    }
}
