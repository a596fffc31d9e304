//! `claviger prove`: it finds no key, shows that it would have found one, drives what
//! it says, and reads no secret of an operator's configuration.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::process::{Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::harness::{World, eventually};

/// Runs it to its end, which takes longer than other commands, and sees that it leaves nothing.
fn run(world: &World, arguments: &[&str]) -> Output {
    let temporary = world.subdirectory("temporary");
    let output = world
        .command()
        .arg("prove")
        .args(arguments)
        .env("TMPDIR", &temporary)
        .stdin(Stdio::null())
        .output()
        .expect("it runs");
    let left: Vec<_> = fs::read_dir(&temporary).expect("a directory").collect();
    assert!(left.is_empty(), "{left:?}");
    output
}

/// Runs it and returns its report.
#[track_caller]
fn prove(world: &World, arguments: &[&str]) -> Value {
    let output = run(world, &[&["--json"], arguments].concat());
    let report: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|err| panic!("no report ({err}): {}", told(&output)));
    assert!(
        output.status.success() && report["holds"] == true,
        "{report:#}"
    );
    for claim in report["claims"].as_array().expect("claims") {
        assert_eq!(claim["holds"], true, "{claim}");
    }
    for channel in report["channels"].as_array().expect("channels") {
        assert_eq!(channel["hits"], Value::Array(Vec::new()), "{channel}");
        assert_eq!(channel["planted"], channel["found"], "{channel}");
        assert!(channel["planted"].as_u64() > Some(15), "{channel}");
    }
    report
}

/// What it said on standard error.
fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// What a report says was driven.
fn driven<'r>(report: &'r Value, what: &str) -> &'r str {
    report["driven"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|line| line["what"] == what)
        .and_then(|line| line["text"].as_str())
        .unwrap_or_else(|| panic!("{what}: {report:#}"))
}

fn bytes(report: &Value, channel: &str) -> u64 {
    report["channels"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|found| found["name"] == channel)
        .and_then(|found| found["bytes"].as_u64())
        .unwrap_or_else(|| panic!("{channel}: {report:#}"))
}

#[test]
fn no_key_comes_out_of_the_built_in_configuration() {
    let world = World::new();
    let report = prove(&world, &[]);
    for kind in [
        "bearer",
        "basic, a pair",
        "basic, a user's name",
        "header",
        "header, a template",
        "query",
        "none",
    ] {
        let injections = driven(&report, "injections");
        assert!(injections.split("; ").any(|it| it == kind), "{injections}");
    }
    for (channel, least) in [
        ("answers to callers", 500_000),
        ("the log, level trace", 20_000),
        ("the audit trail", 100_000),
        ("check, explain, schema; /proc", 20_000),
    ] {
        assert!(bytes(&report, channel) > least, "{channel}: {report:#}");
    }
    // Each kind of refusal and failure was met.
    let reasons: Vec<&str> = report["reasons"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|reason| reason["reason"].as_str())
        .collect();
    for reason in [
        "upstream_response_timeout",
        "upstream_connect_timeout",
        "upstream_not_verified",
        "upstream_answer_malformed",
        "key_echoed",
        "answer_not_inspected",
        "caller_not_allowed",
        "method_refused",
        "request_head_timeout",
        "head_too_large",
    ] {
        assert!(reasons.contains(&reason), "{reason} in {reasons:?}");
    }
}

/// With secrets that are not there, a user that would be become, and a drop-in file.
#[test]
fn an_operators_routes_are_driven_and_no_secret_is_read() {
    let world = World::new();
    let directory = world.subdirectory("operator");
    fs::create_dir(directory.join("conf.d")).expect("a directory");
    let config = directory.join("claviger.toml");
    let write = |path: &std::path::Path, text: &str| fs::write(path, text).expect("written");
    write(
        &config,
        r#"
[server]
user = "nobody"
workers = 2
[[listener]]
address = ["0.0.0.0:443", "[::]:443"]
[[listener]]
name = "inside"
address = "127.0.0.1:8080"
tls = false
[host."api.example.com"]
certificate = "file:///nowhere/chain.pem"
private_key = "file:///nowhere/private.key"
listeners = ["0.0.0.0:443"]
[upstream.partner]
host = "partner.example.net"
port = 8443
[credential.partner]
source = "credential://partner"
inject = "basic"
[[route]]
host = "*.partner.example.com"
path = "/v1"
upstream = "partner"
credential = "partner"
callers = ["10.20.0.0/16"]
methods = ["POST"]
[[route]]
host = "api.example.com"
credential = "env://NOT_SET"
on_echo = "block"
"#,
    );
    write(
        &directory.join("conf.d/more.toml"),
        "[[route]]\npreset = \"stripe\"\ncredential = \"file:///nowhere/stripe\"\n",
    );
    let report = prove(&world, &["--config", &config.display().to_string()]);
    assert!(driven(&report, "routes").starts_with("4,"), "{report:#}");
    assert!(
        driven(&report, "secrets").starts_with("3 slots"),
        "{report:#}"
    );
    // What is wrong with it is told as `check` tells it.
    write(&config, "[[route]]\nhost = \"api.example.com\"\n");
    let refused = run(&world, &["--config", &config.display().to_string()]);
    assert!(!refused.status.success());
    let told = told(&refused);
    assert!(told.contains("has no `credential`"), "{told}");
}

#[test]
fn an_interrupted_proof_leaves_nothing() {
    let world = World::new();
    let temporary = world.subdirectory("temporary");
    let mut child = world
        .command()
        .arg("prove")
        .env("TMPDIR", &temporary)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it runs");
    let stderr = BufReader::new(child.stderr.take().expect("piped"));
    let calling = stderr
        .lines()
        .any(|line| line.expect("text").starts_with("calling every route"));
    assert!(calling, "it serves");
    let pid = child.id().cast_signed();
    let serving = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let serving = serving.expect("our own child").trim().to_owned();
    assert!(!serving.is_empty());
    kill(Pid::from_raw(pid), Signal::SIGINT).expect("it is there");
    let status = child.wait().expect("our own child");
    assert_eq!(status.signal(), Some(Signal::SIGINT as i32), "{status}");
    let left: Vec<_> = fs::read_dir(&temporary).expect("a directory").collect();
    assert!(left.is_empty(), "{left:?}");
    eventually("what it started ends", || {
        (!fs::exists(format!("/proc/{serving}")).expect("a path")).then_some(())
    });
}
