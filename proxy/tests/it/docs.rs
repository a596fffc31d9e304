//! What the documents say is so: each word that an operator may meet is explained,
//! each configuration that is shown passes `claviger check`, each test and file that
//! is named exists.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::harness::World;

/// The repository.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &str) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|err| panic!("{}: {err}", path.display()))
}

/// The code of a source file: without comments and tests.
fn code(path: &str) -> String {
    let text = read(path);
    let end = text.find("#[cfg(test)]\nmod tests {").unwrap_or(text.len());
    text[..end]
        .lines()
        .map(|line| line.split("//").next().unwrap_or_default())
        .collect::<Vec<_>>()
        .join("\n")
}

/// Every Rust file in a directory of the repository, and below it.
fn rust_files(directory: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut open = vec![directory.to_owned()];
    while let Some(directory) = open.pop() {
        let entries = fs::read_dir(root().join(&directory))
            .unwrap_or_else(|err| panic!("{directory}: {err}"));
        for entry in entries {
            let entry = entry.expect("readable");
            let name = entry.file_name().into_string().expect("UTF-8");
            let path = format!("{directory}/{name}");
            if entry.path().is_dir() {
                open.push(path);
            } else if name.ends_with(".rs") {
                found.push(path);
            }
        }
    }
    found
}

/// String literals that stand within one line.
fn literals(code: &str) -> impl Iterator<Item = &str> {
    code.lines()
        .flat_map(|line| line.split('"').skip(1).step_by(2))
}

fn is_snake_case(word: &str) -> bool {
    !word.is_empty()
        && word.bytes().all(|b| {
            matches!(b,
            b'a'..=b'z' | b'0'..=b'9' | b'_')
        })
}

/// Words between backticks.
fn ticked(text: &str) -> BTreeSet<&str> {
    text.lines()
        .flat_map(|line| line.split('`').skip(1).step_by(2))
        .collect()
}

/// The part of a document under one heading.
#[track_caller]
fn section<'t>(text: &'t str, heading: &str) -> &'t str {
    let start = text
        .find(&format!("\n## {heading}\n"))
        .unwrap_or_else(|| panic!("there is no section `{heading}`"));
    let rest = &text[start + 4..];
    rest.find("\n## ").map_or(rest, |end| &rest[..end])
}

/// What stands between backticks in the first column of a section's tables.
fn explained(section: &str) -> BTreeSet<&str> {
    section
        .lines()
        .filter_map(|line| line.strip_prefix("| `"))
        .flat_map(|rest| {
            let column = rest.split(" | ").next().unwrap_or_default();
            column.split('`').step_by(2)
        })
        .filter(|word| is_snake_case(word))
        .collect()
}

/// What stands in a source from one text to the next of the other.
#[track_caller]
fn section_of<'t>(source: &'t str, from: &str, to: &str) -> &'t str {
    let (_, rest) = source
        .split_once(from)
        .unwrap_or_else(|| panic!("there is no `{from}`"));
    rest.split(to).next().unwrap_or(rest)
}

#[track_caller]
fn assert_same(what: &str, code: &BTreeSet<&str>, document: &BTreeSet<&str>) {
    assert!(!code.is_empty(), "the search for every {what} finds none");
    let missing: Vec<_> = code.difference(document).collect();
    let gone: Vec<_> = document.difference(code).collect();
    assert!(
        missing.is_empty() && gone.is_empty(),
        "docs/operating.md does not explain {what} {missing:?}; of those that it explains, {gone:?} are not in the code"
    );
}

#[test]
fn every_reason_is_explained() {
    let mut files = rust_files("proxy/dataplane/src");
    files.extend(
        [
            "proxy/policy/src/verdict.rs",
            "proxy/wire/src/head/error.rs",
            "proxy/wire/src/framing.rs",
        ]
        .map(str::to_owned),
    );
    // Tests may invent reasons.
    files.retain(|path| !path.ends_with("/tests.rs") && !path.ends_with("/test_support.rs"));
    let sources: Vec<_> = files.iter().map(|path| code(path)).collect();
    let mut reasons = BTreeSet::new();
    for source in &sources {
        reasons.extend(literals(source).filter(|word| is_snake_case(word) && word.contains('_')));
        // A word of its own stands beside whoever refused.
        reasons.extend(source.split("Refuser::").skip(1).filter_map(|rest| {
            let (_, rest) = rest.split_once(", \"")?;
            let word = rest.split('"').next()?;
            let directly = source.contains(&format!(", \"{word}\")"));
            (is_snake_case(word) && directly).then_some(word)
        }));
    }
    // A response's: the caller gets `upstream_answer_malformed` for it.
    assert!(reasons.remove("status_line"));
    let document = read("docs/operating.md");
    assert_same(
        "reason",
        &reasons,
        &explained(section(&document, "Own answers")),
    );
}

#[test]
fn every_figure_is_explained() {
    let counters = code("proxy/handoff/src/counters.rs");
    let list = counters
        .split("\ncounters! {")
        .nth(1)
        .and_then(|rest| rest.split("\n}").next())
        .expect("the list of counters");
    let mut figures: BTreeSet<_> = list
        .lines()
        .map(|line| line.trim().trim_end_matches(','))
        .filter(|word| is_snake_case(word))
        .collect();
    // Those that the status line adds from elsewhere.
    let office = code("proxy/controlplane/src/office/mod.rs");
    let named = office.split("figure(\"").skip(1);
    figures.extend(named.filter_map(|rest| rest.split('"').next()));
    let status = code("proxy/controlplane/src/status.rs");
    let line = section_of(&status, "pub fn line(", "\n    }\n");
    figures.extend(line.split([' ', '\n', '"']).filter_map(|word| {
        let (name, _) = word.split_once("={")?;
        (is_snake_case(name) && name.contains('_') && name != "uptime_s").then_some(name)
    }));
    let document = read("docs/operating.md");
    assert_same(
        "figure",
        &figures,
        &explained(section(&document, "The status line")),
    );
}

#[test]
fn every_field_of_a_record_is_explained() {
    let source = code("proxy/policy/src/audit.rs");
    let encode = source
        .split("pub fn encode(")
        .nth(1)
        .and_then(|rest| rest.split("\n}").next())
        .expect("the encoder");
    let mut fields: BTreeSet<&str> = encode
        .split("key!(\"")
        .skip(1)
        .filter_map(|rest| rest.split('"').next())
        .collect();
    // Written by hand: `,\"name\":`.
    fields.extend(encode.split("\\\"").filter(|word| is_snake_case(word)));
    let document = read("docs/operating.md");
    assert_same(
        "field",
        &fields,
        &explained(section(&document, "The audit trail")),
    );
}

/// Each block marked `toml` is a whole configuration; keys and the CA are moved to
/// where the test has them.
#[test]
fn the_configurations_that_are_shown_are_good() {
    let world = World::permitting(&[
        "sendgrid.com",
        "openai.com",
        "googleapis.com",
        "weather.example.com",
        "claviger.internal",
    ]);
    fs::create_dir(world.path("keys")).expect("a fresh directory");
    let mut shown = vec![("deploy/claviger.toml", read("deploy/claviger.toml"))];
    for document in ["README.md", "docs/installing.md"] {
        let text = read(document);
        let blocks: Vec<_> = text
            .split("```toml\n")
            .skip(1)
            .map(|rest| rest.split("```").next().unwrap_or_default().to_owned())
            .collect();
        assert!(!blocks.is_empty(), "{document} shows a configuration");
        shown.extend(blocks.into_iter().map(|block| (document, block)));
    }
    for (document, text) in shown {
        for name in text
            .split("file:///etc/claviger/keys/")
            .skip(1)
            .filter_map(|rest| rest.split('"').next())
        {
            let key = world.key();
            world.write(&format!("keys/{name}"), key);
        }
        let config = text
            .replace(
                "/etc/claviger/keys/",
                &format!("{}/", world.path("keys").display()),
            )
            .replace(
                "/var/log/claviger/",
                &format!("{}/", world.path("").display()),
            );
        let path = world.write(
            "shown.toml",
            format!("{config}\n[ca]\ndirectory = {:?}\n", world.path("ca")),
        );
        let finished = world.cli(&["check", "--config", &path.display().to_string()]);
        assert!(
            finished.status.success(),
            "{document} shows a configuration that `claviger check` refuses:\n{text}\n{}",
            String::from_utf8_lossy(&finished.all())
        );
    }
}

/// `file.rs::name` stands for a test.
#[test]
fn the_tests_that_are_named_exist() {
    let mut tests = BTreeMap::<String, String>::new();
    for path in rust_files("proxy")
        .into_iter()
        .chain(rust_files("mock-upstream"))
    {
        if path.contains("/target/") {
            continue;
        }
        let name = path.rsplit('/').next().unwrap_or_default().to_owned();
        tests.entry(name).or_default().push_str(&read(&path));
    }
    let mut named = 0;
    for document in ["proxy/ARCHITECTURE.md", "SECURITY.md"] {
        let text = read(document);
        for word in ticked(&text) {
            let Some((file, test)) = word
                .split_once("::")
                .filter(|(file, _)| file.ends_with(".rs"))
            else {
                continue;
            };
            named += 1;
            let file = file.rsplit('/').next().unwrap_or_default();
            assert!(
                tests
                    .get(file)
                    .is_some_and(|text| text.contains(&format!("fn {test}("))),
                "{document} names the test `{word}`, which does not exist"
            );
        }
    }
    assert!(named > 20, "the search finds them: {named}");
}

#[test]
fn the_rust_version_is_the_manifest_s() {
    let manifest = read("Cargo.toml");
    let version = manifest
        .split("rust-version = \"")
        .nth(1)
        .and_then(|rest| rest.split('"').next())
        .expect("the workspace names one");
    for document in ["README.md", "docs/installing.md"] {
        assert!(
            read(document).contains(&format!("Rust {version} or newer")),
            "{document} names another Rust than {version}"
        );
    }
}

/// A bound that is listed has the same name in the code.
#[test]
fn the_limits_that_are_listed_exist() {
    let sources: String = [
        "proxy/src",
        "proxy/wire/src",
        "proxy/policy/src",
        "proxy/handoff/src",
    ]
    .into_iter()
    .chain(["proxy/dataplane/src", "proxy/controlplane/src"])
    .flat_map(rust_files)
    .map(|path| code(&path))
    .collect();
    let text = read("proxy/ARCHITECTURE.md");
    let limits = section(&text, "Limits");
    let listed: Vec<_> = limits
        .lines()
        .filter_map(|line| line.strip_prefix("| `"))
        .flat_map(|rest| {
            let column = rest.split(" | ").next().unwrap_or_default();
            column.split('`').step_by(2)
        })
        .filter(|word| !word.is_empty())
        .collect();
    assert!(listed.len() > 40, "the search finds them: {listed:?}");
    for name in listed {
        assert!(
            sources.contains(&format!("const {name}: ")),
            "proxy/ARCHITECTURE.md lists the limit `{name}`, which does not exist"
        );
    }
}

/// Links within the repository lead to files, and to headings in them.
#[test]
fn links_lead_somewhere() {
    let mut documents = vec![
        "README.md".to_owned(),
        "SECURITY.md".to_owned(),
        "CHANGELOG.md".to_owned(),
        "proxy/ARCHITECTURE.md".to_owned(),
        "mock-upstream/README.md".to_owned(),
    ];
    for entry in fs::read_dir(root().join("docs")).expect("there are documents") {
        let name = entry.expect("readable").file_name();
        let name = name.to_string_lossy();
        if name.ends_with(".md") {
            documents.push(format!("docs/{name}"));
        }
    }
    let mut broken = Vec::new();
    for document in &documents {
        let text = read(document);
        let links = text
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split(')').next());
        for link in links.filter(|link| !link.contains("://")) {
            let (path, heading) = link.split_once('#').unwrap_or((link, ""));
            let target = match path {
                "" => root().join(document),
                path => root().join(document).with_file_name("").join(path),
            };
            let headings = match fs::read_to_string(&target) {
                Ok(text) => text,
                Err(_) if target.exists() && heading.is_empty() => continue,
                Err(_) => {
                    broken.push(format!("{document}: {link}"));
                    continue;
                }
            };
            let found = headings
                .lines()
                .filter_map(|line| line.strip_prefix('#'))
                .any(|line| anchor(line) == heading);
            if !heading.is_empty() && !found {
                broken.push(format!("{document}: {link}"));
            }
        }
    }
    assert!(broken.is_empty(), "links that lead nowhere: {broken:#?}");
}

/// A heading as it appears in a link.
fn anchor(heading: &str) -> String {
    heading
        .trim_start_matches('#')
        .trim()
        .to_lowercase()
        .chars()
        .filter_map(|c| match c {
            ' ' => Some('-'),
            c if c.is_alphanumeric() || c == '-' || c == '_' => Some(c),
            _ => None,
        })
        .collect()
}
