//! The real binary against a small server that runs in the test: what it counts, what it calls an
//! error, and when it says that it is not to be believed.

mod comparing;
mod errors;
mod latency;
mod load;
mod mock;
mod output;
mod pages;
mod schema;
mod server;
mod traffic;

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

/// Runs loadgen with `args` and returns its output.
fn run(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_loadgen"))
        .args(args)
        .output()
        .expect("loadgen starts")
}

/// Runs loadgen with `--json` on top of `args`, and returns its exit code and document.
fn measure(args: &[&str]) -> (i32, Value) {
    let mut all = args.to_vec();
    all.push("--json");
    let output = run(&all);
    let text = String::from_utf8_lossy(&output.stdout);
    let document = serde_json::from_str(&text).unwrap_or_else(|error| {
        panic!(
            "no JSON ({error}): {text}\n{}",
            String::from_utf8_lossy(&output.stderr)
        )
    });
    (output.status.code().expect("an exit code"), document)
}

/// A path as an argument.
fn shown(path: &Path) -> &str {
    path.to_str().expect("a temporary path in UTF-8")
}

/// The only target's figures.
fn target(document: &Value) -> &Value {
    &document["targets"][0]
}

/// A number somewhere in the document.
fn number(value: &Value) -> f64 {
    value
        .as_f64()
        .unwrap_or_else(|| panic!("not a number: {value}"))
}
