//! The real mock-upstream, for what a server of a few lines would not be a judge of.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use tempfile::TempDir;

use crate::server::NAME;

/// Runs until it is dropped.
pub struct Mock {
    child: Child,
    /// `127.0.0.1:PORT`.
    pub address: String,
    directory: TempDir,
}

impl Mock {
    /// Over TLS, for [`NAME`], without a key.
    pub fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut child = Command::new(binary())
            .args(["--listen", "127.0.0.1:0", "--name", NAME, "--auth", "none"])
            // Should this test be killed, it ends by itself.
            .args(["--max-seconds", "120", "--self-signed"])
            .arg(directory.path())
            .stdout(Stdio::piped())
            .spawn()
            .expect("mock-upstream starts");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let mut address = None;
        for line in lines.map_while(Result::ok) {
            if let Some(rest) = line.strip_prefix("listening ") {
                address = rest.split(' ').next().map(str::to_owned);
            }
            if line == "ready" {
                break;
            }
        }
        Self {
            child,
            address: address.expect("mock-upstream says where it listens"),
            directory,
        }
    }

    /// The CA's certificate.
    pub fn ca(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }
}

impl Drop for Mock {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The binary beside ours. A plain `cargo test -p loadgen` has not built it, so this does, once.
fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        let directory = Path::new(env!("CARGO_BIN_EXE_loadgen"))
            .parent()
            .expect("a file in a directory");
        let mut cargo = Command::new(env!("CARGO"));
        cargo
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .args([
                "build",
                "--quiet",
                "--package",
                "mock-upstream",
                "--target-dir",
            ])
            .arg(directory.parent().expect("the target directory"));
        if directory.ends_with("release") {
            cargo.arg("--release");
        }
        let status = cargo
            .status()
            .expect("cargo, which runs this test, can be run again");
        assert!(status.success(), "mock-upstream does not build");
        directory.join("mock-upstream")
    })
}
