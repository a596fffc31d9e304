//! `reports/*.toml` and what is said of each, word for word, in `*.txt`.

use super::*;

/// Parts of every value in the cases that stands for a key.
const PLANTED: [&str; 3] = ["planted", "hunter2", "0123456789"];

fn cases() -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/config/tests/reports");
    let mut paths: Vec<PathBuf> = std::fs::read_dir(directory)
        .expect("the cases")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "toml")
        })
        .collect();
    paths.sort();
    assert!(paths.len() >= 10, "the cases were found");
    paths
}

fn report_on(path: &Path) -> Report {
    let text = std::fs::read_to_string(path).expect("a case");
    let name = path.file_name().expect("a name");
    check(&File::parse(Path::new(name), &text)).1
}

#[test]
fn word_for_word() {
    let update = std::env::var_os("CLAVIGER_UPDATE_EXPECTED").is_some();
    let mut wrong = Vec::new();
    for path in cases() {
        let said = report_on(&path).to_string();
        let expected_path = path.with_extension("txt");
        if update {
            std::fs::write(&expected_path, &said).expect("the expectation");
        }
        let expected = std::fs::read_to_string(&expected_path).unwrap_or_default();
        if said != expected {
            wrong.push(format!("==== {}\n{said}", path.display()));
        }
    }
    assert!(
        wrong.is_empty(),
        "not as expected (CLAVIGER_UPDATE_EXPECTED=1 writes the expectations anew):\n{}",
        wrong.join("\n")
    );
}

#[test]
fn what_may_be_a_key_is_never_shown() {
    let mut planted = 0;
    for path in cases() {
        let text = std::fs::read_to_string(&path)
            .expect("a case")
            .to_lowercase();
        // The positive control: the search finds what was planted.
        planted += PLANTED.iter().filter(|part| text.contains(**part)).count();
        let report = report_on(&path);
        for text in [
            report.render(false),
            report.render(true),
            format!("{report:?}"),
        ] {
            for part in PLANTED {
                assert!(
                    !text.to_lowercase().contains(part),
                    "{} shows {part}:\n{text}",
                    path.display()
                );
            }
        }
    }
    assert!(planted >= 6, "the cases hold keys");
}

/// Cases with slips of all kinds: characters that are left out, doubled,
/// exchanged, lines torn apart and joined. Whatever becomes of the file, what
/// stood in a `source` or a `credential`, or had a key's shape, is not shown.
#[test]
fn slips_do_not_show_keys() {
    let mut seed: u64 = 0x5eed_c1a7_16e2_0001;
    let mut random = |below: usize| {
        // Numbers as of Knuth's MMIX; the seed is fixed, so a failure repeats.
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize % below
    };
    let base = "\
[server]
workers = 2
[credential.one]
source = \"sk-PLANTED0123456789abcdef\" # sk-PLANTED0123456789abcdef
inject = \"header\"
name = \"X-Key\"
[credential.two]
source = \"planted=hunter2\"
[[route]]
name = \"r\"
preset = \"openai\"
credential = \"planted hunter2 planted\"
[[route]]
host = [\"a.example.com\", \"b.example.com\"]
credential = \"env://planted-hunter2\"
";
    const INSERTS: [&str; 9] = ["\"", "'", "\n", "=", "[", "]", "\"\"\"", "#", ","];
    for round in 0..4000 {
        let mut text: Vec<char> = base.chars().collect();
        for _ in 0..=random(3) {
            let at = random(text.len());
            match random(4) {
                0 => {
                    text.remove(at);
                }
                1 => {
                    let insert = INSERTS[random(INSERTS.len())];
                    text.splice(at..at, insert.chars());
                }
                2 => {
                    let end = (at + random(12)).min(text.len());
                    text.drain(at..end);
                }
                _ => {
                    let other = random(text.len());
                    text.swap(at, other);
                }
            }
        }
        let text: String = text.into_iter().collect();
        let (_, report) = check(&File::parse(Path::new("f.toml"), &text));
        let said = report.to_string().to_lowercase();
        for part in ["planted", "hunter", "unter2", "anted", "0123456789"] {
            assert!(
                !said.contains(part),
                "round {round} shows {part}:\n{said}\nof\n{text}"
            );
        }
    }
}
