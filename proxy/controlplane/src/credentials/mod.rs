//! Where keys come from: references in the configuration, and how they are read.
//!
//! A reference is `file:///path`, `credential://NAME` (systemd's
//! `$CREDENTIALS_DIRECTORY/NAME`) or `env://NAME`. [`fetch`] reads one and says
//! which version it read, so that the audit trail can name it.
//!
//! Promises: no error, log line or `Debug` text quotes what was read, nor a
//! reference that could not be parsed (it may be a key in the wrong place).
//! Buffers are sized ahead, so that no growing vector leaves a copy behind, and
//! are wiped when dropped. A read that blocks ends after [`READ_TIMEOUT`].
//!
//! What is deliberately missing: reading on the caller's behalf in the
//! background. Who fetches again, and when, is the [office](crate::office)'s
//! business. Nor is a key looked at: what is a good key is `policy`'s to say.

mod access;
mod env;
mod file;
mod source;

pub use access::{ServiceUser, readable_by, service_user};
pub use env::{adopt as adopt_variable, each_taken as each_taken_variable};
pub use file::{READ_TIMEOUT, SECRET_BYTES_MAX};
pub use source::{RefError, SecretRef, SourceError};

use std::path::PathBuf;

/// What is allowed of a source beyond the usual.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SourcePolicy {
    /// Takes a file that every user of the machine may read. Kubernetes mounts
    /// secrets that way (0644) into a container where there is nobody else.
    pub allow_world_readable: bool,
}

/// A secret, as it was read.
#[derive(Debug)]
pub struct Fetched {
    /// The bytes of the source, a trailing line break included.
    pub secret: policy::Secret,
    /// What the audit trail calls this value: the time at which the file was last
    /// modified (UTC, microseconds), or `env`. Says nothing of the value.
    pub version: String,
    /// The file that holds it, as the reference names it. Watching it means
    /// watching the directories of every link on the way: see [`crate::watch`].
    pub watch: Option<PathBuf>,
}

/// Reads a secret. Blocks, for [`READ_TIMEOUT`] at the longest.
///
/// An `env://` value is taken over when it is first read: it stays in memory of
/// our own for later reloads, and the process's environment is overwritten.
///
/// # Errors
/// [`SourceError`], which names the reference and the cure.
pub fn fetch(reference: &SecretRef, policy: &SourcePolicy) -> Result<Fetched, SourceError> {
    match reference {
        SecretRef::Env(name) => env::fetch(name),
        SecretRef::File(_) | SecretRef::Credential(_) => {
            let path = reference
                .path()
                .ok_or(SourceError::NoCredentialsDirectory)?;
            file::fetch(path, *policy)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn systemds_credentials_are_read() {
        const CHILD: &str = "CLAVIGER_TEST_CREDENTIALS_CHILD";
        let reference = SecretRef::parse("credential://stripe").expect("a reference");
        if std::env::var_os(CHILD).is_some() {
            let fetched = fetch(&reference, &SourcePolicy::default()).expect("readable");
            assert_eq!(fetched.secret.len(), 7);
            assert_eq!(fetched.watch, reference.path());
            return;
        }
        // Variables are the whole process's; so the test has one of its own.
        let directory = tempfile::tempdir().expect("a directory");
        crate::test_support::write_private(&directory.path().join("stripe"), b"sk_live");
        let output = std::process::Command::new(std::env::current_exe().expect("it runs"))
            .args([
                "--exact",
                "credentials::tests::systemds_credentials_are_read",
            ])
            .env(CHILD, "1")
            .env("CREDENTIALS_DIRECTORY", directory.path())
            .output()
            .expect("it starts");
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains("1 passed"), "{text}");
    }

    #[test]
    fn debug_of_a_fetched_secret_shows_nothing_of_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("key");
        crate::test_support::write_private(&path, b"sk_live_planted");
        let fetched = fetch(&SecretRef::File(path), &SourcePolicy::default()).expect("readable");
        let text = format!("{fetched:?}");
        assert!(!text.contains("planted"), "{text}");
        assert!(
            text.contains("version"),
            "the search looked at the right text"
        );
    }
}
