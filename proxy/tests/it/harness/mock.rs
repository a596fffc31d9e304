//! [`Mock`]: a `mock-upstream` process and what it says that it received.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::process::{self, Process};
use super::{World, eventually};

/// A running mock API.
#[derive(Debug)]
pub struct Mock {
    process: Process,
    address: SocketAddr,
    directory: PathBuf,
    record: PathBuf,
}

impl Mock {
    /// Starts one for `names` (its certificate's), with further options.
    #[track_caller]
    pub fn start(world: &World, names: &[&str], options: &[&str]) -> Self {
        let mut command = Command::new(process::binary("mock-upstream"));
        command.args(["--listen", "127.0.0.1:0"]);
        Self::start_with(world, command, names, options)
    }

    /// The same, with a command of the caller's making: in a namespace, on another address.
    #[track_caller]
    pub fn start_with(
        world: &World,
        mut command: Command,
        names: &[&str],
        options: &[&str],
    ) -> Self {
        let directory = world.subdirectory("mock");
        let record = directory.join("record.ndjson");
        command
            .arg("--self-signed")
            .arg(&directory)
            .arg("--record")
            .arg(&record);
        for name in names {
            command.args(["--name", name]);
        }
        command.args(options);
        let process = Process::start("mock-upstream", command);
        let address = process.out.wait("mock-upstream's address", |line| {
            line.strip_prefix("listening ")?
                .split(' ')
                .next()?
                .parse()
                .ok()
        });
        process.out.wait("mock-upstream's `ready`", |line| {
            (line == "ready").then_some(())
        });
        Self {
            process,
            address,
            directory,
            record,
        }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its process.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// The file that an upstream's `ca_file` names.
    pub fn ca_file(&self) -> PathBuf {
        self.directory.join("ca.pem")
    }

    /// Its `[upstream.NAME]` table.
    pub fn upstream(&self, name: &str, host: &str) -> String {
        upstream(name, host, &[self.address], &self.ca_file())
    }

    /// Everything that it received so far, one JSON object per request.
    pub fn received(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(&self.record).unwrap_or_default();
        // The last line may be under way.
        text.split_inclusive('\n')
            .filter(|line| line.ends_with('\n'))
            .map(|line| serde_json::from_str(line).expect("the mock writes JSON"))
            .collect()
    }

    /// Waits until `find` makes something of one of the requests received.
    #[track_caller]
    pub fn wait_received<T>(&self, what: &str, find: impl Fn(&Value) -> Option<T>) -> T {
        eventually(what, || self.received().iter().find_map(&find))
    }
}

/// An `[upstream.NAME]` table with static addresses.
pub fn upstream(name: &str, host: &str, addresses: &[SocketAddr], ca_file: &Path) -> String {
    let addresses: Vec<String> = addresses
        .iter()
        .map(|address| format!("{:?}", address.to_string()))
        .collect();
    format!(
        "[upstream.{name}]\nhost = {host:?}\naddresses = [{}]\nca_file = {ca_file:?}\n",
        addresses.join(", ")
    )
}

/// How `mock-upstream` shows a credential: never itself.
pub fn fingerprint(key: &str) -> String {
    Sha256::digest(key)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
