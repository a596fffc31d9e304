//! What can be told without a network; the rest is `tests/it/doctor.rs`.

use super::*;

#[test]
fn every_code_is_named_once_and_has_a_cure() {
    let mut names: Vec<&str> = Code::ALL.iter().map(|code| code.as_str()).collect();
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count);
    for code in Code::ALL {
        let name = code.as_str();
        assert!(
            name.bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_'),
            "{name}"
        );
        assert!(code.meaning().ends_with('.'), "{name}");
        assert!(
            !code.cure().ends_with('.'),
            "{name}: what follows a colon has no full stop"
        );
    }
}

#[test]
fn the_table_of_codes() {
    let mut table = String::from("| Code | | Means | Cure |\n|---|---|---|---|\n");
    for code in Code::ALL {
        let severity = match code.severity() {
            Severity::Wrong => "wrong",
            Severity::Warning => "warning",
        };
        let _ = writeln!(
            table,
            "| `{}` | {severity} | {} | {} |",
            code.as_str(),
            code.meaning(),
            code.cure()
        );
    }
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/doctor.md");
    let text = std::fs::read_to_string(&path).expect("docs/doctor.md");
    let (before, rest) = text.split_once("<!-- codes -->\n").expect("the mark");
    let (_, after) = rest.split_once("<!-- end -->").expect("its end");
    let current = format!("{before}<!-- codes -->\n{table}<!-- end -->{after}");
    if std::env::var_os("CLAVIGER_UPDATE_EXPECTED").is_some() {
        std::fs::write(&path, &current).expect("docs/doctor.md");
    } else {
        assert!(
            text == current,
            "docs/doctor.md is not current; run the tests of `controlplane` with CLAVIGER_UPDATE_EXPECTED=1"
        );
    }
}

#[test]
fn who_is_exempt_from_a_proxy() {
    for (list, expected) in [
        ("", false),
        ("*", true),
        ("api.example.com", true),
        ("localhost, .example.com", true),
        ("*.example.com", true),
        ("example.com", true),
        ("xample.com", false),
        ("10.0.0.0/8", false),
    ] {
        assert_eq!(is_exempt(list, "api.example.com"), expected, "{list}");
    }
}

#[test]
fn the_first_is_the_first_that_a_call_meets() {
    let mut diagnosis = Diagnosis::default();
    diagnosis.find(Code::EgressOpen, "a");
    assert!(diagnosis.first().is_none(), "a warning is nothing wrong");
    diagnosis.find(Code::NodeLacksCa, "b");
    diagnosis.find(Code::DnsHttpsRecord, "c\u{1b}[31m");
    assert_eq!(
        diagnosis.first().map(|finding| finding.code),
        Some(Code::DnsHttpsRecord)
    );
    let text = diagnosis.render();
    assert!(!text.contains('\u{1b}'), "{text}");
    let order: Vec<usize> = [
        "WRONG: dns_https_record",
        "also wrong: node_lacks_ca",
        "warning: egress_open",
    ]
    .iter()
    .map(|part| text.find(part).expect("it is said"))
    .collect();
    assert!(order.is_sorted(), "{text}");
    assert_eq!(diagnosis.to_json()["first"], "dns_https_record");
}

#[test]
fn clocks_may_be_two_minutes_apart() {
    for (theirs, ours, expected) in [
        (1_000_000, 1_000_120, None),
        (1_000_000, 1_000_121, Some(Code::ClockSkew)),
        (1_003_600, 1_000_000, Some(Code::ClockSkew)),
    ] {
        assert_eq!(skew(theirs, ours).map(|finding| finding.code), expected);
    }
}
