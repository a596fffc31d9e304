//! The command line as a report may show it.
//!
//! It is rendered from what clap understood and not from the words as typed, so that no spelling
//! (`-kH...`, `--data=...`) escapes. Values are shown of listed options only; those of all others,
//! new ones included, are left out.

use clap::parser::ValueSource;
use clap::{ArgMatches, CommandFactory};

use super::Args;

/// The options in the order given, by their long names. Values that may hold a secret become `...`,
/// and URLs are shown by [`url`].
pub fn command(matches: &ArgMatches) -> Vec<String> {
    let mut parts: Vec<(usize, Vec<String>)> = Vec::new();
    for arg in Args::command().get_arguments() {
        let id = arg.get_id().as_str();
        if matches.value_source(id) != Some(ValueSource::CommandLine) {
            continue;
        }
        let (Some(places), Some(values)) = (matches.indices_of(id), matches.get_raw(id)) else {
            continue;
        };
        for (place, value) in places.zip(values) {
            let mut words: Vec<String> = arg
                .get_long()
                .map(|name| format!("--{name}"))
                .into_iter()
                .collect();
            if arg.get_action().takes_values() {
                let value = value.to_string_lossy();
                words.push(match id {
                    "url" | "targets" => url(&value),
                    _ if SHOWN.contains(&id) => value.into_owned(),
                    _ => "...".to_owned(),
                });
            }
            parts.push((place, words));
        }
    }
    parts.sort_by_key(|(place, _)| *place);
    let mut words = vec!["loadgen".to_owned()];
    words.extend(parts.into_iter().flat_map(|(_, words)| words));
    words
}

/// `[NAME=]URL` without user, query and fragment, since keys live there.
pub fn url(text: &str) -> String {
    let text = &text[..text.find(['?', '#']).unwrap_or(text.len())];
    let Some(start) = text.find("://").map(|at| at + "://".len()) else {
        return text.to_owned();
    };
    let end = text[start..].find('/').map_or(text.len(), |at| start + at);
    let host = text[start..end]
        .rfind('@')
        .map_or(start, |at| start + at + 1);
    format!("{}{}", &text[..start], &text[host..])
}

/// Options whose values hold no secret: numbers, times, names of files and addresses.
const SHOWN: [&str; 39] = [
    "arrivals",
    "cacert",
    "caller_keys",
    "client_certs",
    "client_keys",
    "concurrency",
    "connections",
    "connects",
    "cpus",
    "csv",
    "data_file",
    "data_size",
    "driver",
    "duration",
    "expect_body_file",
    "expect_status",
    "fail_if",
    "hgrm",
    "idle",
    "idle_every",
    "kind",
    "lag_bound",
    "method",
    "progress",
    "ramp",
    "report",
    "requests_per_connection",
    "rps",
    "scenario",
    "seed",
    "slice",
    "slo",
    "spin_us",
    "steps",
    "think",
    "threads",
    "timeout",
    "warmup",
    "watch",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(args: &[&str]) -> String {
        let all = std::iter::once(&"loadgen").chain(args);
        command(&Args::command().try_get_matches_from(all).unwrap()).join(" ")
    }

    #[test]
    fn no_spelling_of_an_option_shows_a_secret() {
        for (args, words) in [
            (&["-H", "Authorization: Bearer s3cret"][..], "--header ..."),
            (&["-kH", "X-Key: s3cret"], "--insecure --header ..."),
            (&["-qHX-Key: s3cret"], "--quiet --header ..."),
            (&["-kqH=s3cret: x"], "--insecure --quiet --header ..."),
            (&["--header=X-Key: s3cret"], "--header ..."),
            (&["--target-header", "a=X: s3cret"], "--target-header ..."),
            (&["--data", "u@x s3cret"], "--data ..."),
            (&["--data", "s3cret:rest"], "--data ..."),
            (&["--data=s3cret"], "--data ..."),
            (&["--expect-body", "s3cret"], "--expect-body ..."),
            (
                &["--caller-header", "X-K: s3cret {}", "--caller-keys", "f"],
                "--caller-header ... --caller-keys f",
            ),
            (
                &["--target", "a=https://h/p?k=s3cret"],
                "--target a=https://h/p",
            ),
            (&["https://h/p#s3cret"], "https://h/p"),
            (&["https://h?s3cret"], "https://h"),
            (&["https://u:s3cret@h/p/@x"], "https://h/p/@x"),
            (&["https://s3cret@x@h"], "https://h"),
            (&["a?s3cret=1"], "a"),
        ] {
            let line = shown(args);
            assert!(!line.contains("s3cret"), "{args:?}: {line}");
            assert_eq!(line, format!("loadgen {words}"), "{args:?}");
        }
    }

    #[test]
    fn the_rest_is_shown_in_the_order_given() {
        assert_eq!(
            shown(&[
                "-d5s",
                "http://h/",
                "--rps=5",
                "-H",
                "A: b",
                "-kt",
                "2",
                "-H",
                "C: d",
                "--fail-if",
                "p99>5ms",
                "--json"
            ]),
            "loadgen --duration 5s http://h/ --rps 5 --header ... --insecure --threads 2 \
             --header ... --fail-if p99>5ms --json"
        );
    }

    #[test]
    fn the_list_names_options_that_exist() {
        let options = Args::command();
        let hidden: Vec<&str> = options
            .get_arguments()
            .filter(|arg| arg.get_action().takes_values())
            .map(|arg| arg.get_id().as_str())
            .filter(|id| !SHOWN.contains(id) && !["url", "targets"].contains(id))
            .collect();
        assert_eq!(
            hidden,
            [
                "headers",
                "target_headers",
                "data",
                "caller_header",
                "expect_body"
            ]
        );
        for id in SHOWN {
            assert!(
                options.get_arguments().any(|arg| arg.get_id() == id),
                "{id}"
            );
        }
    }
}
