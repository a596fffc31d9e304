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
