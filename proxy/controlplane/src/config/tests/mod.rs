//! Tables of files, and what comes of them.

mod docs;
mod explain;
mod reload;
mod reports;
mod routes;
mod sources;

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::*;
use crate::pki::authority::{InitOptions, init};

/// A directory with a CA for `example.com` and the presets' domains, and keys.
pub(super) struct House {
    dir: tempfile::TempDir,
}

impl House {
    pub(super) fn new(permit: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        init(&InitOptions {
            dir: dir.path().join("ca"),
            permit: permit.iter().map(|&domain| domain.to_owned()).collect(),
            hosts: Vec::new(),
            key_type: crate::pki::KeyType::Ecdsa,
            force: false,
            passphrase: None,
            now: SystemTime::now(),
        })
        .expect("a CA");
        Self { dir }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(super) fn key(&self, name: &str, secret: &[u8]) {
        crate::test_support::write_private(&self.path(name), secret);
    }

    pub(super) fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
        std::fs::write(path, text).expect("a file");
    }

    /// Loads `text` as `claviger.toml`, with `DIR` standing for the directory.
    pub(super) fn load(&self, text: &str) -> Result<File, Report> {
        let dir = self.dir.path().display().to_string();
        self.write(
            "claviger.toml",
            &format!(
                "[server]\nstate_dir = \"{dir}\"\n{}",
                text.replace("DIR", &dir)
            ),
        );
        load(&self.path("claviger.toml"))
    }

    pub(super) fn resolve(&self, text: &str) -> Result<Resolved, Report> {
        resolve(&self.load(text)?, &mut ResolveContext::new())
    }
}
