//! What a hunt has found: where, whose, which, and what to do. Never the key.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use policy::Fingerprint;
use serde_json::{Value, json};

use super::search::{Hit, KnownBy, Owner};
use crate::config::without_keys;

/// Everything that a hunt has to say.
#[derive(Debug, Default)]
pub struct Result {
    /// The keys, in the order of their places.
    pub findings: Vec<Finding>,
    /// What could not be looked at, or was not worth it.
    pub passed: Vec<Passed>,
    /// How much was.
    pub looked_at: LookedAt,
}

/// How much was looked at.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct LookedAt {
    /// Files.
    pub files: u64,
    /// Their bytes, and those of histories.
    pub bytes: u64,
    /// Processes.
    pub processes: u64,
    /// Commits.
    pub commits: u64,
}

/// Something that was not looked at.
#[derive(Debug, Clone)]
pub struct Passed {
    /// Where.
    pub place: String,
    /// Why.
    pub reason: String,
    /// Whether a key may be there all the same. Pictures and programs are no gaps.
    pub is_gap: bool,
}

/// A key where none belongs.
#[derive(Debug, Clone)]
pub struct Finding {
    /// Where.
    pub place: Place,
    /// Whose, as far as its shape tells.
    owners: Vec<Owner>,
    /// Which key. `None` for one of the configuration's that is short.
    pub fingerprint: Option<Fingerprint>,
    /// Why it is taken for one.
    pub known_by: KnownBy,
    /// The name in Claviger's configuration, if it is managed.
    pub managed: Option<String>,
}

/// A place where keys are found.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// In a file.
    File {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// In bytes, from 1.
        column: usize,
    },
    /// In a commit of a repository, however much later ones removed it.
    History {
        /// The repository.
        repository: PathBuf,
        /// The file, as the commit names it.
        path: String,
        /// The line in that commit's file.
        line: usize,
        /// The newest commit that adds it there.
        commit: String,
    },
    /// In the environment that a process was started with.
    Environment {
        /// The process.
        pid: u32,
        /// Its program's name.
        program: String,
        /// The systemd unit that it belongs to.
        unit: Option<String>,
        /// The variable.
        variable: String,
    },
    /// Among the words of a process's command line, which everybody on the machine can read.
    CommandLine {
        /// The process.
        pid: u32,
        /// Its program's name.
        program: String,
        /// The systemd unit that it belongs to.
        unit: Option<String>,
        /// Which word, from 0.
        word: usize,
    },
}

impl Result {
    /// Whether something that may hold a key was not looked at.
    pub fn has_gaps(&self) -> bool {
        self.passed.iter().any(|passed| passed.is_gap)
    }

    /// For a terminal.
    pub fn render(&self) -> String {
        let mut text = String::new();
        for finding in &self.findings {
            let _ = write!(
                text,
                "{}\n    {}\n    {}\n",
                finding.place.show(),
                finding.what(),
                finding.cure()
            );
        }
        if !self.findings.is_empty() {
            text.push('\n');
        }
        for passed in self.passed.iter().filter(|passed| passed.is_gap) {
            let _ = writeln!(text, "not looked at: {}: {}", passed.place, passed.reason);
        }
        let _ = writeln!(text, "{}", self.summary());
        text
    }

    /// `2 keys in 3 places; 40 files looked at, 2 passed over`.
    fn summary(&self) -> String {
        let mut keys: Vec<_> = self
            .findings
            .iter()
            .map(|finding| finding.fingerprint)
            .collect();
        keys.sort();
        keys.dedup();
        let mut text = match self.findings.len() {
            0 => "no key found".to_owned(),
            places => format!(
                "{} in {}",
                count(keys.len() as u64, "key"),
                count(places as u64, "place")
            ),
        };
        let looked = [
            (self.looked_at.files, "file"),
            (self.looked_at.processes, "process"),
            (self.looked_at.commits, "commit"),
        ];
        let looked: Vec<String> = looked
            .iter()
            .filter(|(number, _)| *number > 0)
            .map(|(number, what)| count(*number, what))
            .collect();
        if looked.is_empty() {
            text.push_str("; nothing was looked at");
        } else {
            let _ = write!(text, "; {} looked at", looked.join(", "));
        }
        let (gaps, others): (Vec<_>, Vec<_>) = self.passed.iter().partition(|passed| passed.is_gap);
        if !others.is_empty() {
            let _ = write!(
                text,
                "; {} passed over (no text, or Claviger's own)",
                others.len()
            );
        }
        if !gaps.is_empty() {
            let _ = write!(text, "; {} NOT looked at", gaps.len());
        }
        text
    }

    /// For machines.
    pub fn to_json(&self) -> Value {
        json!({
            "findings": self.findings.iter().map(Finding::to_json).collect::<Vec<_>>(),
            "looked_at": {
                "files": self.looked_at.files,
                "bytes": self.looked_at.bytes,
                "processes": self.looked_at.processes,
                "commits": self.looked_at.commits,
            },
            "passed_over": self.passed.iter().map(|passed| json!({
                "place": passed.place,
                "reason": passed.reason,
                "is_gap": passed.is_gap,
            })).collect::<Vec<_>>(),
        })
    }
}

fn count(number: u64, what: &str) -> String {
    match (number, what.ends_with('s')) {
        (1, _) => format!("1 {what}"),
        (_, true) => format!("{number} {what}es"),
        (_, false) => format!("{number} {what}s"),
    }
}

impl Finding {
    pub(super) fn new(place: Place, hit: Hit) -> Self {
        Self {
            place,
            owners: hit.owners,
            fingerprint: hit.fingerprint,
            known_by: hit.known_by,
            managed: hit.managed,
        }
    }

    /// The providers that the key may be of.
    pub fn providers(&self) -> Vec<&'static str> {
        self.owners.iter().map(|owner| owner.title).collect()
    }

    /// The presets that serve them.
    pub fn presets(&self) -> Vec<&'static str> {
        self.owners
            .iter()
            .filter_map(|owner| owner.preset)
            .map(|preset| preset.name)
            .collect()
    }

    /// `Stripe key sha256:0123456789ab`, and how that is known.
    fn what(&self) -> String {
        let mut text = match self.providers().as_slice() {
            [] => "key".to_owned(),
            owners => format!("{} key", owners.join(" or ")),
        };
        if let Some(fingerprint) = self.fingerprint {
            let _ = write!(text, " {fingerprint}");
        }
        if let Some(name) = &self.managed {
            let _ = write!(
                text,
                ", which Claviger writes as credential {}",
                shown(name)
            );
        }
        match self.known_by {
            KnownBy::Checksum => text.push_str(" (its checksum holds)"),
            KnownBy::Base64 => text.push_str(" (in base64)"),
            KnownBy::Variable => text.push_str(" (by the variable's name)"),
            KnownBy::Shape | KnownBy::Configuration => {}
        }
        text
    }

    /// What to remove.
    pub fn cure(&self) -> String {
        let mut cure = match &self.place {
            Place::File { .. } => "delete this line".to_owned(),
            Place::History { .. } => {
                return "replace this key at the provider: whoever has a clone of the repository has it. Rewriting \
                        history does not take it back"
                    .to_owned();
            }
            Place::Environment {
                variable,
                unit,
                program,
                ..
            } => {
                format!(
                    "take {} out of what starts {}, and restart it",
                    shown(variable),
                    who(program, unit.as_deref())
                )
            }
            Place::CommandLine { unit, program, .. } => format!(
                "take it off the command line of {}, which every user of this machine can read; restart it, and \
                 replace the key at the provider",
                who(program, unit.as_deref())
            ),
        };
        let hosts: Vec<&str> = self
            .owners
            .iter()
            .filter_map(|owner| owner.preset)
            .flat_map(|preset| &preset.hosts)
            .filter(|host| !host.on_request)
            .map(|host| &*host.name)
            .collect();
        if self.managed.is_some() {
            cure.push_str("; the service needs no key any more: Claviger writes it");
        } else if let [first, ..] = hosts.as_slice() {
            let _ = write!(
                cure,
                "; once {first} is led to Claviger, the service needs no key any more"
            );
        } else {
            cure.push_str("; Claviger has no preset for its provider: a route with `host` and a [credential] serves it");
        }
        if self.known_by == KnownBy::Variable {
            cure.push_str(" (a program that insists on a value takes any)");
        }
        cure
    }

    fn to_json(&self) -> Value {
        let mut json = json!({
            "providers": self.providers(),
            "presets": self.presets(),
            "fingerprint": self.fingerprint.map(|fingerprint| fingerprint.to_string()),
            "known_by": match self.known_by {
                KnownBy::Shape => "shape",
                KnownBy::Checksum => "checksum",
                KnownBy::Base64 => "base64",
                KnownBy::Variable => "variable",
                KnownBy::Configuration => "configuration",
            },
            "credential": self.managed.as_deref().map(shown),
            "cure": self.cure(),
        });
        json["place"] = match &self.place {
            Place::File { path, line, column } => {
                json!({ "kind": "file", "path": shown_path(path), "line": line, "column": column })
            }
            Place::History {
                repository,
                path,
                line,
                commit,
            } => json!({
                "kind": "history", "repository": shown_path(repository), "path": shown(path), "line": line,
                "commit": commit,
            }),
            Place::Environment {
                pid,
                program,
                unit,
                variable,
            } => json!({
                "kind": "environment", "pid": pid, "program": shown(program), "unit": unit.as_deref().map(shown),
                "variable": shown(variable),
            }),
            Place::CommandLine {
                pid,
                program,
                unit,
                word,
            } => json!({
                "kind": "command_line", "pid": pid, "program": shown(program), "unit": unit.as_deref().map(shown),
                "word": word,
            }),
        };
        json
    }
}

impl Place {
    /// `FILE:LINE:COLUMN`, or what corresponds to it.
    pub fn show(&self) -> String {
        match self {
            Place::File { path, line, column } => format!("{}:{line}:{column}", shown_path(path)),
            Place::History {
                repository,
                path,
                line,
                commit,
            } => {
                format!(
                    "{}: {}:{line} in commit {commit}",
                    shown_path(repository),
                    shown(path)
                )
            }
            Place::Environment {
                pid,
                program,
                unit,
                variable,
            } => {
                format!(
                    "process {pid} ({}): variable {}",
                    who(program, unit.as_deref()),
                    shown(variable)
                )
            }
            Place::CommandLine {
                pid,
                program,
                unit,
                word,
            } => {
                format!(
                    "process {pid} ({}): word {word} of its command line",
                    who(program, unit.as_deref())
                )
            }
        }
    }
}

/// `payments.service`, or the program.
fn who(program: &str, unit: Option<&str>) -> String {
    shown(unit.unwrap_or(program))
}

/// A path as it may be shown: without keys, and without what drives a terminal.
pub fn shown_path(path: &Path) -> String {
    shown(&path.to_string_lossy())
}

/// The same for a name that others chose.
pub fn shown(text: &str) -> String {
    without_keys(text)
        .chars()
        .map(|character| {
            if character.is_control() {
                '?'
            } else {
                character
            }
        })
        .collect()
}
