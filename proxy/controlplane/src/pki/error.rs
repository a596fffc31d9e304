//! [`PkiError`]: what can go wrong with certificates, each with its cure.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// Why a certificate, a key or an authority cannot be made or used.
///
/// The texts are meant for the operator: they name the file and say what to do. They never quote
/// the content of a key file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PkiError {
    /// A file could not be read or written.
    #[error("{path}: cannot {action}: {source}; {cure}", path = path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What was tried ("read", "create", ...).
        action: &'static str,
        /// What the operator can do.
        cure: String,
        /// The system's own word.
        source: io::Error,
    },

    /// A file could be read, but is not what it should be.
    #[error("{path}: {problem}; {cure}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
        /// What the operator can do.
        cure: String,
    },

    /// A file is in the way, and `--force` was not given.
    #[error("{path}: already exists; {cure}", path = path.display())]
    Exists {
        /// The file.
        path: PathBuf,
        /// What the operator can do.
        cure: String,
    },

    /// A name cannot stand in a certificate.
    #[error("host name `{host}`: {problem}")]
    Host {
        /// The name as it was given.
        host: String,
        /// What is wrong with it, and the cure.
        problem: String,
    },

    /// Names that the root certificate does not permit.
    #[error(
        "the root certificate permits only {permitted}, not {hosts}: this needs a new root \
         (`claviger ca init --force --permit ...` with all domains), which every machine must \
         trust anew; no later certificate can widen it",
        permitted = List(permitted),
        hosts = List(hosts)
    )]
    OutsideRoot {
        /// The names outside.
        hosts: Vec<String>,
        /// What the root permits.
        permitted: Vec<String>,
    },

    /// Names that the root permits, but the intermediate in use does not.
    #[error(
        "the intermediate certificate permits only {permitted}, not {hosts}: it can be re-issued \
         without trusting anything anew, by `claviger ca issue` where root.key is present",
        permitted = List(permitted),
        hosts = List(hosts)
    )]
    OutsideIntermediate {
        /// The names outside.
        hosts: Vec<String>,
        /// What the intermediate permits.
        permitted: Vec<String>,
    },

    /// The root's private key is needed and is not there.
    #[error(
        "{path}: the root key is not here, and {reason}; bring root.key back for as long as it \
         takes to run the command again",
        path = path.display()
    )]
    RootKeyMissing {
        /// Where it was looked for.
        path: PathBuf,
        /// Why it is needed.
        reason: String,
    },

    /// A certificate's time is over.
    #[error("{path}: the {what} certificate expired on {on}; {cure}", path = path.display())]
    Expired {
        /// The certificate's file.
        path: PathBuf,
        /// Which certificate.
        what: &'static str,
        /// Its last day.
        on: String,
        /// What the operator can do.
        cure: &'static str,
    },

    /// There is no trust anchor to verify an upstream with.
    #[error("{origin}: no usable trust anchors ({problem}); {cure}")]
    NoRoots {
        /// Where they were looked for.
        origin: String,
        /// Why there are none.
        problem: String,
        /// What the operator can do.
        cure: &'static str,
    },

    /// The cryptographic library refused. Nothing that an operator typed causes this alone.
    #[error("cannot {action}: {problem}")]
    Crypto {
        /// What was tried.
        action: &'static str,
        /// The library's word.
        problem: String,
    },
}

impl PkiError {
    pub(super) fn crypto(action: &'static str) -> impl FnOnce(rcgen::Error) -> PkiError {
        move |err| PkiError::Crypto {
            action,
            problem: err.to_string(),
        }
    }

    pub(super) fn tls(action: &'static str) -> impl FnOnce(rustls::Error) -> PkiError {
        move |err| PkiError::Crypto {
            action,
            problem: err.to_string(),
        }
    }

    pub(super) fn file(
        path: &Path,
        problem: impl Into<String>,
        cure: impl Into<String>,
    ) -> PkiError {
        PkiError::File {
            path: path.to_owned(),
            problem: problem.into(),
            cure: cure.into(),
        }
    }
}

/// Names for a sentence: `a, b and 3 more`.
pub(super) struct List<'a>(pub &'a [String]);

/// Names that a message spells out before it says "and N more".
const LISTED_MAX: usize = 8;

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, name) in self.0.iter().take(LISTED_MAX).enumerate() {
            if index > 0 {
                f.write_str(", ")?;
            }
            f.write_str(name)?;
        }
        match self.0.len().saturating_sub(LISTED_MAX) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}
