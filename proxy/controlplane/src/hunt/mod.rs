//! [`hunt`]: finding the keys that services still have, so that they can be taken away.
//!
//! It looks at files, at what processes were started with, and at what a repository once
//! held. It knows keys in three ways: by the shapes that providers give theirs (the presets
//! know them), by the variables in which programs expect them, and, given Claviger's
//! configuration, by what they are, in every form that Claviger removes from answers.
//!
//! Promise: no key that it finds is in what it says, not even where a file's name holds one.
//! A key is named by its [`Fingerprint`](policy::Fingerprint), which is also what `explain`
//! calls it.
//!
//! It deliberately lacks: asking a provider whether a key works (that would use it),
//! changing anything, keys without a shape, a known name or a configuration that manages
//! them, and the insides of archives and compressed files.

mod checksum;
mod files;
mod history;
mod made_up;
mod processes;
mod report;
mod search;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use policy::Credential;

pub use files::FILE_BYTES_MAX;
pub use history::{HISTORY_BYTES_MAX, LINE_BYTES_MAX};
pub use report::{Finding, LookedAt, Passed, Place, Result};
use search::Searcher;

/// What to look at, and for what.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Files and directories.
    pub paths: Vec<PathBuf>,
    /// Whether to look at what processes were started with.
    pub processes: bool,
    /// Whether to look at the history of the repositories at `paths`.
    pub history: bool,
    /// Whether files that Git ignores are passed over. `.env` is usually one of them.
    pub ignored_by_git: Ignored,
    /// Globs (as in `.gitignore`) of files to pass over.
    pub exclude: Vec<String>,
    /// Keys that Claviger manages.
    pub managed: Vec<Arc<Credential>>,
    /// Where those are kept: files that are meant to hold a key.
    pub keepers: Vec<PathBuf>,
}

/// What becomes of files that Git ignores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ignored {
    /// They are looked at.
    #[default]
    Searched,
    /// They are passed over.
    PassedOver,
}

/// Looks for keys.
///
/// # Errors
/// A glob that cannot be read. What cannot be looked at is no error but in [`Result::passed`].
pub fn hunt(options: &Options) -> std::result::Result<Result, String> {
    let searcher = Searcher::new(&options.managed);
    let mut result = Result::default();
    files::look(options, &searcher, &mut result)?;
    if options.history {
        history::look(options, &searcher, &mut result);
    }
    if options.processes {
        processes::look(&searcher, &mut result);
    }
    for credential in &options.managed {
        if credential.scrubber().is_empty() {
            result.passed.push(Passed {
                place: format!("credential {}", credential.name()),
                reason: "its key is too short to be searched for".to_owned(),
                is_gap: true,
            });
        }
    }
    result.findings.sort_by(|a, b| a.place.cmp(&b.place));
    Ok(result)
}

/// The keys of a configuration that is in force, each once.
pub fn managed_by(snapshot: &policy::Snapshot) -> Vec<Arc<Credential>> {
    let mut managed = BTreeMap::new();
    for host in snapshot.hosts() {
        for route in host.routes() {
            if let Some((_, credential)) = &route.credential {
                managed
                    .entry((credential.name().to_owned(), credential.fingerprint()))
                    .or_insert_with(|| Arc::clone(credential));
            }
        }
    }
    managed.into_values().collect()
}

#[cfg(test)]
mod tests;
