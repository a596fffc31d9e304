//! [`Report`]: the proof as it is printed, and whether it holds.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use policy::OnEcho;
use serde_json::{Value, json};

use super::LIMITS;
use super::api::Api;
use super::drive::{Evidence, judge_received};
use super::process::{Crash, core_pattern};
use super::scripts::{EARLIER, ECHOES, FAULTS, REQUESTS, UNINSPECTED};
use super::search::{Canaries, Found, forms};
use super::site::{Site, kind};

/// Something that came out, and what was found in it.
#[derive(Debug, Default)]
pub struct Channel {
    /// What it is.
    pub name: String,
    /// How much of it there is.
    pub bytes: u64,
    /// Forms that were planted in it, and how many of them were found.
    pub planted: u64,
    pub found: u64,
    /// Canaries in it that should not be: which, and in which form.
    pub hits: Vec<String>,
}

/// A claim, and whether it was borne out.
#[derive(Debug)]
struct Claim {
    what: String,
    detail: String,
    holds: bool,
}

/// The proof.
#[derive(Debug)]
pub struct Report {
    config: Option<PathBuf>,
    driven: Vec<(&'static str, String)>,
    reasons: Vec<(String, u64)>,
    /// What came out.
    pub channels: Vec<Channel>,
    claims: Vec<Claim>,
    /// How long it took.
    pub took: Duration,
    /// Where everything is that was searched, if it was kept.
    pub kept: Option<PathBuf>,
}

impl Report {
    /// Of this configuration, or of the built-in one.
    pub fn new(config: Option<&Path>) -> Self {
        Self {
            config: config.map(Path::to_owned),
            driven: Vec::new(),
            reasons: Vec::new(),
            channels: Vec::new(),
            claims: Vec::new(),
            took: Duration::ZERO,
            kept: None,
        }
    }

    /// Whether every claim was borne out, nothing was found where it must not be,
    /// and no search was blind.
    pub fn holds(&self) -> bool {
        self.claims.iter().all(|claim| claim.holds)
            && self.channels.iter().all(|channel| {
                channel.hits.is_empty() && channel.found == channel.planted && channel.planted > 0
            })
    }

    fn claim(&mut self, holds: bool, what: impl Into<String>, detail: impl Into<String>) {
        self.claims.push(Claim {
            what: what.into(),
            detail: detail.into(),
            holds,
        });
    }

    /// What was driven.
    pub fn told(&mut self, site: &Site, canaries: &Canaries, evidence: &Evidence, api: &Api) {
        let kinds: BTreeSet<&str> = site
            .routes
            .iter()
            .map(|route| kind(&route.injection))
            .collect();
        let kinds: Vec<&str> = kinds.into_iter().collect();
        let passing = site
            .routes
            .iter()
            .filter(|route| route.on_echo == OnEcho::Report)
            .count();
        let requests =
            api.received(|received| received.values().map(|one| one.requests).sum::<u64>());
        let mut add = |what, text: String| self.driven.push((what, text));
        add(
            "routes",
            format!(
                "{}, {passing} of them told to pass keys on",
                site.routes.len()
            ),
        );
        add("injections", kinds.join("; "));
        add(
            "secrets",
            format!(
                "{} slots, two versions of each; {} private keys; {} canaries in all",
                site.slots.len(),
                site.private_keys,
                canaries.len()
            ),
        );
        add(
            "calls",
            format!(
                "{} connections, {} answered, {requests} requests reached an API",
                evidence.calls,
                evidence.calls - evidence.unanswered
            ),
        );
        add(
            "echoes",
            format!(
                "{} of a key, in {} forms and {} places of an answer",
                evidence.echoes,
                forms("").len() + 1,
                ECHOES.len() + 1
            ),
        );
        add(
            "errors",
            format!(
                "{} faulty answers; {} refused or broken requests; keys exchanged in the middle of an answer; \
                 no certificate, no TLS, no answer, no API; a panic; a crash",
                FAULTS.len() + UNINSPECTED.len(),
                REQUESTS.len()
            ),
        );
        let statuses: Vec<String> = evidence
            .statuses
            .iter()
            .map(|(status, count)| format!("{status} ({count})"))
            .collect();
        add("statuses", statuses.join(", "));
        self.reasons = evidence
            .reasons
            .iter()
            .map(|(reason, count)| (reason.clone(), *count))
            .collect();
        self.driven.push((
            "own answers",
            format!("{} reasons; all with --json", self.reasons.len()),
        ));
    }

    /// Each key arrived at its own API, and nothing else did.
    pub fn judge_arrival(&mut self, site: &Site, canaries: &Canaries, api: &Api, tolerated: usize) {
        let (bytes, requests, wrong, arrived) = judge_received(api, site, canaries, tolerated);
        let keyed: Vec<usize> = (0..site.routes.len())
            .filter(|&route| site.routes[route].slot.is_some() && site.routes[route].open)
            .collect();
        let missing: Vec<&str> = keyed
            .iter()
            .filter(|route| !arrived.contains(route))
            .map(|&route| &*site.routes[route].name)
            .collect();
        self.claim(
            missing.is_empty(),
            "every key arrived at its own API",
            if missing.is_empty() {
                format!("on {} routes", keyed.len())
            } else {
                format!("not on: {}; nothing is shown for these", missing.join(", "))
            },
        );
        self.claim(
            wrong.is_empty(),
            "no API got another's key, or a caller's",
            if wrong.is_empty() {
                format!("{bytes} bytes of {requests} requests searched")
            } else {
                wrong.join("; ")
            },
        );
    }

    /// A route that is told to pass keys on shows what the others would look like.
    pub fn judge_controls(&mut self, evidence: &Evidence) {
        let (sent, seen) = evidence.passed_on_echoes;
        if sent > 0 {
            self.claim(
                sent == seen,
                "control: a key that is passed on is seen",
                format!("in {seen} of {sent} answers of routes with on_echo = \"report\""),
            );
        }
    }

    /// The log was as talkative as it gets, and told of the panic.
    pub fn judge_log(&mut self, place: &Path) -> Result<(), String> {
        let read = |name: &str| {
            fs::read_to_string(place.join(name)).map_err(|error| format!("{name}: {error}"))
        };
        let log = read("claviger.log")?;
        let lines = |word: &str| log.lines().filter(|line| line.contains(word)).count();
        let debug = lines("\"level\":\"DEBUG\"") + lines("\"level\":\"TRACE\"");
        let (panics, status) = (lines("a defect of Claviger"), lines("\"status "));
        self.claim(
            debug > 0 && panics == 1 && status > 0,
            "the log was talkative, and told of the panic and the figures",
            format!(
                "{} lines, {debug} of them debug or trace, {panics} panic, {status} with figures",
                log.lines().count()
            ),
        );
        let records = read("audit.ndjson")?.lines().count();
        self.claim(
            records > 0,
            "exchanges are on the audit trail",
            format!("{records} records"),
        );
        Ok(())
    }

    /// A crash leaves no core, where the same process with permission leaves one with
    /// keys in it. Where the kernel gives cores to a program, its memory is looked at
    /// in their place.
    pub fn judge_crash(
        &mut self,
        crash: &Crash,
        control: &Crash,
        control_memory: Option<io::Result<(Found, u64)>>,
    ) {
        let found = |crash: &Crash| crash.found.as_ref().map_or(0, |(found, _)| found.len());
        self.claim(
            crash.crashed && !crash.core && found(crash) == 0,
            "a crash leaves no core",
            if !crash.crashed {
                "it did not crash when told to".to_owned()
            } else if crash.core {
                format!("there is one, with {} keys in it", found(crash))
            } else {
                "neither a file nor, by the kernel's word, one elsewhere".to_owned()
            },
        );
        let seen = |(found, bytes): &(Found, u64)| {
            (
                !found.is_empty(),
                format!("{bytes} bytes searched, {} canaries seen", found.len()),
            )
        };
        let (holds, detail) = match (&control.found, control_memory) {
            (Some(core), _) => match seen(core) {
                (true, detail) => (true, detail),
                (false, detail) => (
                    false,
                    format!(
                        "{detail}; it may have been cut: see whether the directory for \
                         temporary files has room for it"
                    ),
                ),
            },
            (None, Some(Ok(memory))) => {
                let (holds, detail) = seen(&memory);
                let whither = if control.core {
                    format!("the core went to `{}`", core_pattern())
                } else {
                    "no core could be had".to_owned()
                };
                (
                    holds,
                    format!("{whither}; of what would be in it, {detail}"),
                )
            }
            (None, Some(Err(error))) => (
                false,
                format!("neither core nor memory can be read here ({error}): run it as root"),
            ),
            (None, None) => (
                false,
                format!(
                    "there is none, although RLIMIT_CORE and core_pattern (`{}`) permit it: \
                     see whether the directory for temporary files is full",
                    core_pattern()
                ),
            ),
        };
        self.claim(
            control.crashed && holds,
            "control: permitted to leave a core, it leaves one with keys",
            detail,
        );
    }

    /// Nobody but root sees its memory.
    pub fn judge_memory(&mut self, memory: Result<(), io::ErrorKind>, is_root: bool) {
        let (holds, detail) = match memory {
            Err(kind) => (true, format!("refused: {kind}")),
            Ok(()) if is_root => (
                true,
                "not asked: this proof runs as root, who may read everything".to_owned(),
            ),
            Ok(()) => (false, "this process could open it".to_owned()),
        };
        self.claim(
            holds,
            "other processes of the user cannot read its memory",
            detail,
        );
    }

    /// What of `/proc` could be read, and was searched.
    pub fn note_proc(&mut self, shown: &BTreeSet<&str>) {
        let shown: Vec<&str> = shown.iter().copied().collect();
        let text = if shown.is_empty() {
            "nothing of it can be read".to_owned()
        } else {
            shown.join(", ")
        };
        self.driven.push(("/proc", text));
    }

    /// The same for programs.
    pub fn to_json(&self) -> Value {
        json!({
            "holds": self.holds(),
            "config": self.config.as_ref().map(|path| path.display().to_string()),
            "took_ms": u64::try_from(self.took.as_millis()).unwrap_or(u64::MAX),
            "driven": self.driven.iter().map(|(what, text)| json!({ "what": what, "text": text })).collect::<Vec<_>>(),
            "echoes": ECHOES.iter().chain([&EARLIER]).map(|script| script.name).collect::<Vec<_>>(),
            "forms": forms("").iter().map(|(name, _)| *name).collect::<Vec<_>>(),
            "faults": FAULTS.iter().chain(UNINSPECTED).map(|script| script.name).collect::<Vec<_>>(),
            "refusals": REQUESTS.iter().map(|(name, _, _)| *name).collect::<Vec<_>>(),
            "reasons": self.reasons.iter().map(|(reason, count)| json!({ "reason": reason, "answers": count })).collect::<Vec<_>>(),
            "channels": self.channels.iter().map(|channel| json!({
                "name": channel.name,
                "bytes": channel.bytes,
                "planted": channel.planted,
                "found": channel.found,
                "hits": channel.hits,
            })).collect::<Vec<_>>(),
            "claims": self.claims.iter().map(|claim| json!({
                "what": claim.what,
                "holds": claim.holds,
                "detail": claim.detail,
            })).collect::<Vec<_>>(),
            "limits": LIMITS,
            "kept": self.kept.as_ref().map(|path| path.display().to_string()),
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.config {
            Some(path) => writeln!(f, "Driven: {}, with canaries for keys", path.display())?,
            None => writeln!(f, "Driven: the built-in configuration")?,
        }
        for (what, text) in &self.driven {
            writeln!(f, "  {what:<12} {text}")?;
        }
        writeln!(
            f,
            "\n{:<32} {:>12} {:>16} {:>6}",
            "Searched", "bytes", "planted, found", "keys"
        )?;
        for channel in &self.channels {
            writeln!(
                f,
                "  {:<30} {:>12} {:>16} {:>6}",
                channel.name,
                channel.bytes,
                format!("{}, {}", channel.planted, channel.found),
                channel.hits.len()
            )?;
            for hit in &channel.hits {
                writeln!(f, "    FOUND {hit}")?;
            }
        }
        writeln!(f, "\nShown")?;
        for claim in &self.claims {
            let sign = if claim.holds { "yes" } else { "NO " };
            writeln!(f, "  {sign}  {}: {}", claim.what, claim.detail)?;
        }
        writeln!(f, "\nNot shown")?;
        for limit in LIMITS {
            writeln!(f, "  {limit}")?;
        }
        let keys: usize = self.channels.iter().map(|channel| channel.hits.len()).sum();
        let verdict = if self.holds() {
            "The proof holds: no key came out."
        } else if keys > 0 {
            "THE PROOF FAILS: keys came out. Please report this, with the lines above."
        } else {
            "THE PROOF FAILS: see what is not shown above."
        };
        if let Some(kept) = &self.kept {
            writeln!(
                f,
                "\nEverything that was searched is in {}.",
                kept.display()
            )?;
        }
        writeln!(f, "\n{verdict} ({:.1} s)", self.took.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Report {
        let mut report = Report::new(None);
        report.channels.push(Channel {
            name: "a place".to_owned(),
            bytes: 7,
            planted: 18,
            found: 18,
            hits: Vec::new(),
        });
        report.claim(true, "a claim", "so it is");
        report
    }

    #[track_caller]
    fn check(holds: bool, word: &str, spoil: impl FnOnce(&mut Report)) {
        let mut report = good();
        spoil(&mut report);
        assert_eq!(report.holds(), holds, "{report}");
        assert_eq!(report.to_json()["holds"], holds);
        assert!(report.to_string().contains(word), "{report}");
    }

    #[test]
    fn whatever_is_wrong_makes_the_proof_fail() {
        check(true, "The proof holds", |_| {});
        check(false, "FOUND a key: raw", |report| {
            report.channels[0].hits.push("a key: raw".to_owned());
        });
        // The search is blind, or none was made.
        check(false, "THE PROOF FAILS", |report| {
            report.channels[0].found -= 1
        });
        check(false, "THE PROOF FAILS", |report| {
            (report.channels[0].planted, report.channels[0].found) = (0, 0);
        });
        check(false, "NO   a claim", |report| {
            report.claims[0].holds = false;
        });
    }

    #[test]
    fn a_core_makes_the_proof_fail_and_so_does_a_control_without_one() {
        let crash = |core: bool, keys: usize| Crash {
            crashed: true,
            core,
            found: core.then(|| {
                let sighting = super::super::search::Sighting {
                    form: "raw".to_owned(),
                    at: 0,
                    pieces: 1,
                };
                ((0..keys).map(|id| (id, sighting.clone())).collect(), 1)
            }),
        };
        let memory = |keys: usize| Some(Ok((crash(true, keys).found.expect("a core").0, 1)));
        let denied = || Some(Err(io::ErrorKind::PermissionDenied.into()));
        for (real, control, memory, holds) in [
            (crash(false, 0), crash(true, 3), None, true),
            (crash(true, 0), crash(true, 3), None, false),
            (crash(true, 3), crash(true, 3), None, false),
            (crash(false, 0), crash(true, 0), None, false),
            (crash(false, 0), crash(false, 0), None, false),
            (crash(false, 0), crash(false, 0), memory(2), true),
            (crash(false, 0), crash(false, 0), memory(0), false),
            (crash(false, 0), crash(false, 0), denied(), false),
        ] {
            let mut report = good();
            report.judge_crash(&real, &control, memory);
            assert_eq!(report.holds(), holds, "{report}");
        }
    }

    #[test]
    fn memory_that_can_be_read_makes_the_proof_fail() {
        let denied = Err(io::ErrorKind::PermissionDenied);
        for (memory, is_root, holds) in [
            (denied, false, true),
            (denied, true, true),
            (Ok(()), true, true),
            (Ok(()), false, false),
        ] {
            let mut report = good();
            report.judge_memory(memory, is_root);
            assert_eq!(report.holds(), holds, "{report}");
        }
    }
}
