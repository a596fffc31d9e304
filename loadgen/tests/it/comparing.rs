//! The overhead experiment.

use std::time::Duration;

use crate::server::{NAME, Server, ok};
use crate::{measure, number, run, shown};

#[test]
fn the_slower_of_two_is_found_and_by_how_much() {
    let server = Server::tls(|request, out| {
        if request.path() == "/slow" {
            std::thread::sleep(Duration::from_millis(4));
        }
        assert_eq!(
            request.headers.contains_key("x-only-fast"),
            request.path() == "/fast"
        );
        ok(out, "hello")
    });
    let address = server.address.to_string();
    let slow = format!("slow=https://{NAME}/slow");
    let fast = format!("fast=https://{NAME}/fast");
    let ca = server.ca();
    let args = [
        "--target",
        &slow,
        "--target",
        &fast,
        "--connect",
        &address,
        "--cacert",
        shown(&ca),
        "--target-header",
        "fast=X-Only-Fast: 1",
        "--rps",
        "300",
        "--slice",
        "50ms",
        "--warmup",
        "100ms",
        "--duration",
        "1200ms",
        "--connections",
        "8",
        "--lag-bound",
        "10s",
        "--fail-if",
        "diff.p50>2ms",
    ];
    let (code, document) = measure(&args);
    assert_eq!(code, 1, "the gate on the difference holds");
    let [slow, fast] = [&document["targets"][0], &document["targets"][1]];
    assert_eq!(slow["errors_total"], 0, "{}", slow["error_examples"]);
    assert_eq!(fast["errors_total"], 0, "{}", fast["error_examples"]);
    assert_eq!((&slow["good"], &fast["good"]), (&180.into(), &180.into()));
    let comparison = &document["comparisons"][0];
    assert_eq!(comparison["subject"], "slow");
    assert_eq!(comparison["baseline"], "fast");
    assert_eq!(comparison["rounds"], 12);
    let p50 = &comparison["quantiles"][0];
    assert_eq!(p50["finding"], "slower");
    let difference = number(&p50["difference"]);
    assert!((2_000.0..20_000.0).contains(&difference), "{difference} us");
    assert!(number(&p50["low"]) > 0.0 && number(&p50["low"]) <= number(&p50["high"]));

    let text = String::from_utf8(run(&args).stdout).unwrap();
    assert!(text.contains("slow minus fast, 12 rounds"), "{text}");
}

#[test]
fn a_few_rounds_show_nothing_and_it_says_so() {
    let server = Server::plain(|_, out| ok(out, ""));
    let a = format!("a=http://{}/", server.address);
    let b = format!("b=http://{}/", server.address);
    let output = run(&[
        "--target",
        &a,
        "--target",
        &b,
        "--rps",
        "200",
        "--slice",
        "50ms",
        "--warmup",
        "0ms",
        "--duration",
        "200ms",
        "--lag-bound",
        "10s",
    ]);
    assert_eq!(output.status.code(), Some(0));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("too few rounds"), "{text}");
}

#[test]
fn closed_loops_take_turns_too() {
    let server = Server::plain(|_, out| ok(out, ""));
    let a = format!("a=http://{}/", server.address);
    let b = format!("b=http://{}/", server.address);
    let (code, document) = measure(&[
        "--target",
        &a,
        "--target",
        &b,
        "--concurrency",
        "2",
        "--slice",
        "150ms",
        "--warmup",
        "0ms",
        "--duration",
        "1800ms",
    ]);
    assert_eq!(code, 0);
    assert_eq!(document["comparisons"][0]["rounds"], 6);
    for target in document["targets"].as_array().unwrap() {
        assert!(number(&target["good"]) > 20.0);
        assert_eq!(target["errors_total"], 0);
    }
}
