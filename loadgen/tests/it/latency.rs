//! What latency means, and when the generator distrusts itself.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::server::{Server, ok};
use crate::{measure, number, run, shown, target};

#[test]
fn a_stall_counts_for_every_request_that_was_due_meanwhile() {
    // All connections stand still for 300 ms, once, half a second after the first request.
    let began = Mutex::new(None);
    let server = Server::plain(move |_, out| {
        let mut began = began.lock().unwrap();
        let since = began.get_or_insert_with(Instant::now).elapsed();
        if (Duration::from_millis(500)..Duration::from_millis(510)).contains(&since) {
            std::thread::sleep(Duration::from_millis(300));
        }
        ok(out, "")
    });
    let (_, document) = measure(&[
        &format!("http://{}/", server.address),
        "--rps",
        "1000",
        "--connections",
        "2",
        "--duration",
        "1500ms",
        "--warmup",
        "0ms",
        "--lag-bound",
        "10s",
    ]);
    let seen = target(&document);
    assert_eq!(seen["good"], 1500, "{}", seen["errors"]);
    // 300 of 1500 requests were due in the stall, so the top fifth of them waited for its end.
    let p90 = number(&seen["latency"]["p90"]);
    assert!(
        (100_000.0..400_000.0).contains(&p90),
        "corrected p90 {p90} us"
    );
    assert!(number(&seen["latency"]["max"]) >= 290_000.0);
    // A closed loop would have seen two slow requests.
    let naive = number(&seen["latency_from_send"]["p90"]);
    assert!(naive < 50_000.0, "uncorrected p90 {naive} us");
    let wait = &document["generator"]["wait"];
    assert!(number(&wait["count"]) >= 200.0);
    assert!(number(&wait["max"]) >= 250_000.0);
}

#[test]
fn a_generator_that_lags_says_that_its_run_is_invalid() {
    let server = Server::plain(|_, out| ok(out, ""));
    let url = format!("http://{}/", server.address);
    let args = [
        url.as_str(),
        "--rps",
        "500",
        "--duration",
        "200ms",
        "--warmup",
        "0ms",
        "--lag-bound",
        "1ns",
        "--fail-if",
        "p50>1s",
    ];
    let (code, document) = measure(&args);
    assert_eq!(code, 3, "a gate that passes means nothing then");
    assert_eq!(document["valid"], false);
    let text = run(&args);
    assert_eq!(text.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&text.stdout).contains("INVALID"));
}

#[test]
fn conditions_become_exit_codes() {
    let server = Server::plain(|_, out| ok(out, ""));
    let url = format!("http://{}/", server.address);
    for (condition, code) in [
        ("p50>5s", 0),
        ("p50>1ns", 1),
        ("errors>0", 0),
        ("rps<1", 0),
        ("rps>1", 1),
        ("127.0.0.1:max>=1ns", 1),
    ] {
        let (seen, document) = measure(&[
            &url,
            "--concurrency",
            "1",
            "--duration",
            "50ms",
            "--warmup",
            "0ms",
            "--fail-if",
            condition,
        ]);
        assert_eq!(seen, code, "{condition}");
        assert_eq!(document["gates"][0]["failed"], code == 1);
    }
}

#[test]
fn percentile_files_hold_every_request() {
    let server = Server::plain(|_, out| ok(out, ""));
    let file = server.file("out.hgrm");
    let (_, document) = measure(&[
        &format!("http://{}/", server.address),
        "--rps",
        "200",
        "--duration",
        "200ms",
        "--warmup",
        "0ms",
        "--lag-bound",
        "10s",
        "--hgrm",
        shown(&file),
    ]);
    assert_eq!(target(&document)["good"], 40);
    let text = std::fs::read_to_string(&file).unwrap();
    let last = text.lines().rfind(|line| !line.starts_with('#')).unwrap();
    assert_eq!(last.split_whitespace().nth(2), Some("40"), "{text}");
}

#[test]
fn the_table_shows_what_matters() {
    let server = Server::plain(|_, out| ok(out, ""));
    let output = run(&[
        "--target",
        &format!("mine=http://{}/", server.address),
        "--rps",
        "100",
        "--duration",
        "100ms",
        "--warmup",
        "0ms",
        "--lag-bound",
        "10s",
    ]);
    let text = String::from_utf8(output.stdout).unwrap();
    for word in [
        "mine",
        "p99.9",
        "from the send",
        "generator lag",
        "generator CPU",
        "status 200: 10",
    ] {
        assert!(text.contains(word), "{word} is missing in:\n{text}");
    }
}

#[test]
fn what_others_use_meanwhile_is_told() {
    let server = Server::plain(|_, out| ok(out, ""));
    // One that is always busy, with a single thread that does not end.
    let busy = Busy::start();
    let watched = format!("busy={}", busy.0.id());
    let (code, document) = measure(&[
        &format!("http://{}/", server.address),
        "--concurrency",
        "2",
        "--duration",
        "200ms",
        "--warmup",
        "0ms",
        "--watch",
        &watched,
        "--watch",
        "gone=4194304",
    ]);
    assert_eq!(code, 0);
    let cpu = number(&document["watched"]["busy"]["cpu_us_per_request"]);
    assert!(cpu > 1.0, "{cpu} us per request");
    assert!(document["watched"]["gone"]["cpu_s"].is_null());
}

/// A process that uses all the CPU it gets, until this is dropped.
struct Busy(std::process::Child);

impl Busy {
    fn start() -> Self {
        let child = std::process::Command::new("sh")
            .args(["-c", "while :; do :; done"])
            .spawn();
        Self(child.expect("a shell"))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
