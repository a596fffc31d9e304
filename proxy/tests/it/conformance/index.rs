//! The index of the table: which rows and tests show each thing that is promised, and each history that
//! must not repeat. `docs/conformance-index.md` is made from it.
//!
//! A clause or a history without a row or a test, and a row or test that is named but does not exist, is
//! an error.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::case::Case;

/// `clauses.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Clauses {
    clause: Vec<Clause>,
}

/// One thing that is promised.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Clause {
    /// The heading that it stands under.
    part: String,
    /// What is promised.
    text: String,
    /// Names of rows; one `*` stands for anything, `topic: NAME` for all of a topic.
    #[serde(default)]
    rows: Vec<String>,
    /// Tests, as `FILE::NAME`, the file as seen from `proxy/`.
    #[serde(default)]
    tests: Vec<String>,
}

/// `histories.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Histories {
    history: Vec<History>,
}

/// A fault that somebody else has had.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct History {
    /// Its number.
    name: String,
    /// Whose it was.
    who: String,
    /// What happened.
    what: String,
}

/// Writes the index of these rows, or says what is missing.
pub fn write(cases: &[Case]) -> Result<String, Vec<String>> {
    let mut problems = Vec::new();
    let mut text = String::from(
        "# Index of the conformance table\n\n\
         Which rows of the [conformance table](conformance.md) and which tests show what. Rows stand in\n\
         [`proxy/tests/it/conformance/cases/`](../proxy/tests/it/conformance/cases/README.md), tests in the files that are\n\
         named. This page is made from `clauses.toml`, `histories.toml` and the rows themselves; a test fails when\n\
         something has neither row nor test, or is not there any more.\n",
    );
    let mut part = String::new();
    for clause in read::<Clauses>("clauses.toml").clause {
        if clause.part != part {
            part.clone_from(&clause.part);
            let _ = write!(text, "\n## {part}\n\n");
        }
        let mut rows: Vec<String> = Vec::new();
        for pattern in &clause.rows {
            let found: Vec<&Case> = cases.iter().filter(|case| fits(case, pattern)).collect();
            match (&found[..], pattern.strip_prefix("topic: ")) {
                ([], _) => problems.push(format!("{:?}: no row {pattern}", clause.text)),
                (_, Some(topic)) => rows.push(format!("all {} of *{topic}*", found.len())),
                ([one], _) => rows.push(format!("`{}`", one.name)),
                _ => rows.push(format!("`{pattern}` ({})", found.len())),
            }
        }
        if clause.rows.is_empty() && clause.tests.is_empty() {
            problems.push(format!("{:?}: neither row nor test", clause.text));
        }
        for test in &clause.tests {
            match test.split_once("::") {
                Some((file, name)) if is_test(file, name) => {
                    rows.push(format!("[`{name}`](../proxy/{file})"));
                }
                _ => problems.push(format!("{:?}: no test {test}", clause.text)),
            }
        }
        let _ = writeln!(text, "- **{}** {}", clause.text, rows.join(", "));
    }
    text += "\n## Histories that must not repeat\n\n| Fault | Whose | What happened | Shown by |\n|---|---|---|---|\n";
    let tests = tests_of_histories();
    let mut known = BTreeSet::new();
    for history in read::<Histories>("histories.toml").history {
        let mut shown: Vec<String> = cases
            .iter()
            .filter(|case| names(&case.rule).any(|name| name == history.name))
            .map(|case| format!("`{}`", case.name))
            .collect();
        let prefix = format!("{}_", history.name.to_ascii_lowercase().replace('-', "_"));
        shown.extend(
            tests
                .iter()
                .filter(|(name, text)| {
                    name.starts_with(&prefix) || names(text).any(|name| name == history.name)
                })
                .map(|(name, _)| format!("[`{name}`](../proxy/tests/it/histories.rs)")),
        );
        if shown.is_empty() {
            problems.push(format!("{}: neither row nor test", history.name));
        }
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} |",
            history.name,
            history.who,
            history.what,
            shown.join(", ")
        );
        if !known.insert(history.name.clone()) {
            problems.push(format!("{} is there twice", history.name));
        }
    }
    for case in cases {
        for name in names(&case.rule).filter(|name| !known.contains(*name)) {
            problems.push(format!("{} names {name}, which is no history", case.name));
        }
    }
    if problems.is_empty() {
        Ok(text)
    } else {
        Err(problems)
    }
}

fn here() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/conformance")
}

fn read<T: for<'de> Deserialize<'de>>(file: &str) -> T {
    let text = std::fs::read_to_string(here().join(file)).expect("readable");
    toml::from_str(&text).unwrap_or_else(|err| panic!("{file}: {err}"))
}

fn fits(case: &Case, pattern: &str) -> bool {
    match (pattern.strip_prefix("topic: "), pattern.split_once('*')) {
        (Some(topic), _) => case.topic == topic,
        (_, Some((front, end))) => case.name.starts_with(front) && case.name.ends_with(end),
        _ => case.name == pattern,
    }
}

/// The numbers of faults in a text.
fn names(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'))
        .filter(|word| word.starts_with("CVE-") || word.starts_with("RUSTSEC-"))
}

fn is_test(file: &str, name: &str) -> bool {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    std::fs::read_to_string(path).is_ok_and(|text| text.contains(&format!("#[test]\nfn {name}(")))
}

/// The tests of `histories.rs`, each with the comment before it.
fn tests_of_histories() -> Vec<(String, String)> {
    let text = std::fs::read_to_string(here().join("../histories.rs")).expect("readable");
    let mut parts = text.split("#[test]\nfn ");
    let mut before = parts.next().unwrap_or_default().to_owned();
    let mut tests = Vec::new();
    for part in parts {
        let name = part.split('(').next().unwrap_or_default().to_owned();
        let comment = before.rsplit("\n\n").next().unwrap_or_default().to_owned();
        tests.push((name, comment));
        before = part.to_owned();
    }
    tests
}
