//! What is shown: progress, a run that was cut short, files for other programs.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::server::{Server, Then, ok};
use crate::{measure, number, run, shown, target};

/// A run under way, whose progress is read as it comes.
struct Running {
    child: Child,
    progress: BufReader<std::process::ChildStderr>,
}

impl Running {
    fn start(args: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_loadgen"))
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let progress = BufReader::new(child.stderr.take().unwrap());
        Self { child, progress }
    }

    /// Reads progress up to the first line that contains `word`, and returns that line.
    fn until(&mut self, word: &str) -> String {
        let mut all = String::new();
        loop {
            let mut line = String::new();
            let read = self.progress.read_line(&mut line).unwrap();
            assert!(read > 0, "it ended without `{word}`:\n{all}");
            if line.contains(word) {
                return line;
            }
            all.push_str(&line);
        }
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill")
            .args(["-s", name, &self.child.id().to_string()])
            .status()
            .unwrap();
        assert!(sent.success());
    }

    /// Its exit code, standard output, and the rest of its progress.
    fn finish(mut self) -> (i32, String, String) {
        let (mut out, mut rest) = (String::new(), String::new());
        self.child
            .stdout
            .take()
            .unwrap()
            .read_to_string(&mut out)
            .unwrap();
        self.progress.read_to_string(&mut rest).unwrap();
        let status = self.child.wait().unwrap();
        (status.code().expect("an exit code"), out, rest)
    }
}

#[test]
fn a_run_that_is_stopped_reports_what_it_has() {
    let server = Server::plain(|_, out| ok(out, ""));
    let url = format!("http://{}/", server.address);
    for (signal, code) in [("INT", 130), ("TERM", 143)] {
        let mut running = Running::start(&[
            &url,
            "--rps",
            "200",
            "--duration",
            "600s",
            "--warmup",
            "100ms",
            "--lag-bound",
            "10s",
            "--json",
            "--fail-if",
            "errors>0",
        ]);
        running.until("2 s");
        let began = Instant::now();
        running.signal(signal);
        let (seen, out, _) = running.finish();
        assert!(
            began.elapsed() < Duration::from_secs(5),
            "{:?}",
            began.elapsed()
        );
        assert_eq!(seen, code);
        let document: Value = serde_json::from_str(&out).unwrap();
        assert_eq!(document["partial"], true);
        assert_eq!(document["stopped_by"], format!("SIG{signal}"));
        assert_eq!(document["gates"][0]["failed"], false);
        let seconds = number(&document["duration_s"]);
        assert!((1.5..60.0).contains(&seconds), "{seconds} s");
        // What was due until then was sent and answered, and the rate is that of this part.
        let due = seconds * 200.0;
        let requests = number(&target(&document)["requests"]);
        assert!(
            (requests - due).abs() <= due * 0.1 + 2.0,
            "{requests} of {due}"
        );
        let rps = number(&target(&document)["rps"]);
        assert!((150.0..=210.0).contains(&rps), "{rps}/s");
        assert!(
            document["remarks"][0]
                .as_str()
                .unwrap()
                .starts_with("PARTIAL")
        );
    }
}

#[test]
fn a_stop_does_not_wait_for_answers_that_do_not_come() {
    // The first answer comes, so that the run starts; no other one does.
    let server = Server::plain(|request, out| match request.earlier {
        0 => ok(out, ""),
        _ => Ok(Then::Keep),
    });
    let mut running = Running::start(&[
        &format!("http://{}/", server.address),
        "--concurrency",
        "3",
        "--duration",
        "600s",
        "--warmup",
        "0ms",
        "--timeout",
        "300s",
        "--json",
    ]);
    running.until("1 s");
    let began = Instant::now();
    running.signal("INT");
    let (code, out, _) = running.finish();
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(code, 130);
    let document: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(
        (&document["in_flight"], &target(&document)["good"]),
        (&3.into(), &3.into())
    );
}

#[test]
fn a_second_signal_ends_at_once() {
    let server = Server::plain(|_, _| Ok(Then::Keep));
    let mut running = Running::start(&[
        &format!("http://{}/", server.address),
        "--concurrency",
        "1",
        "--duration",
        "600s",
        "--warmup",
        "0ms",
        "--timeout",
        "300s",
    ]);
    running.until("1 s");
    running.signal("INT");
    running.until("stopping");
    running.signal("INT");
    let (code, out, rest) = running.finish();
    assert_eq!(code, 130);
    // The second one may come when the report has just been made; never both.
    assert_eq!(
        out.is_empty(),
        rest.contains("nothing reported"),
        "{out}{rest}"
    );
}

#[test]
fn a_stop_in_the_warm_up_says_that_nothing_was_measured() {
    let server = Server::plain(|_, out| ok(out, ""));
    let mut running = Running::start(&[
        &format!("http://{}/", server.address),
        "--rps",
        "100",
        "--duration",
        "60s",
        "--warmup",
        "600s",
        "--lag-bound",
        "10s",
    ]);
    running.until("1 s (warm-up)");
    running.signal("INT");
    let (code, out, _) = running.finish();
    assert_eq!(code, 130);
    assert!(out.contains("nothing was measured"), "{out}");
}

#[test]
fn a_line_per_second_says_how_it_goes_and_quiet_says_nothing() {
    let server = Server::plain(|request, out| match request.path() {
        "/bad" => {
            out.write_all(b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n")?;
            Ok(Then::Keep)
        }
        _ => ok(out, ""),
    });
    let (good, bad) = (
        format!("http://{}/", server.address),
        format!("http://{}/bad", server.address),
    );
    let times = [
        "--rps",
        "100",
        "--duration",
        "2200ms",
        "--warmup",
        "0ms",
        "--lag-bound",
        "10s",
    ];
    let output = run(&[&[good.as_str()], &times[..]].concat());
    let lines = String::from_utf8(output.stderr).unwrap();
    let line = lines
        .lines()
        .find(|line| line.contains(" 1 s"))
        .expect(&lines);
    for word in ["127.0.0.1: ", "/s p50 ", " p99 ", " max ", "lag p99 "] {
        assert!(line.contains(word), "{word} is missing in {line}");
    }
    assert!(
        !lines.contains('\x1b'),
        "no escape sequences without a terminal"
    );
    assert!(lines.starts_with("ready: "), "{lines}");
    let output = run(&[&[bad.as_str()], &times[..]].concat());
    let lines = String::from_utf8(output.stderr).unwrap();
    assert!(lines.contains("errors bad_status "), "{lines}");
    let output = run(&[&[good.as_str(), "--quiet"], &times[..]].concat());
    let lines = String::from_utf8(output.stderr).unwrap();
    assert_eq!(
        lines
            .lines()
            .filter(|line| !line.starts_with("ready: "))
            .count(),
        0,
        "{lines}"
    );
}

#[test]
fn a_closed_pipe_is_no_panic() {
    let server = Server::plain(|_, out| ok(out, ""));
    let url = format!("http://{}/", server.address);
    let run = |progress: &str, out: Stdio, error: Stdio| {
        Command::new(env!("CARGO_BIN_EXE_loadgen"))
            .args([
                &url,
                "--rps",
                "50",
                "--duration",
                "1200ms",
                "--warmup",
                "0ms",
            ])
            .args(["--lag-bound", "10s", "--progress", progress])
            .stdout(out)
            .stderr(error)
            .spawn()
            .unwrap()
    };
    let closed = || {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        Stdio::from(writer)
    };
    for progress in ["plain", "live", "none"] {
        // Progress that nobody reads takes nothing from the result.
        let output = run(progress, Stdio::piped(), closed())
            .wait_with_output()
            .unwrap();
        assert_eq!(output.status.code(), Some(0), "{progress}");
        assert!(String::from_utf8_lossy(&output.stdout).contains("requests"));
    }
    // A result that nobody reads was not delivered.
    let output = run("plain", closed(), Stdio::piped())
        .wait_with_output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("the result could not be written"), "{text}");
    let status = run("plain", closed(), closed()).wait().unwrap();
    assert_eq!(status.code(), Some(2));
}

#[test]
fn a_file_that_cannot_be_written_is_told_before_the_load() {
    let server = Server::plain(|_, out| ok(out, ""));
    let url = format!("http://{}/", server.address);
    let kept = server.file("kept.csv");
    std::fs::write(&kept, "earlier").unwrap();
    let missing = server.file("missing/out");
    let directory = kept.parent().unwrap();
    for (option, path, cure) in [
        ("--report", missing.as_path(), "create its directory"),
        ("--csv", &missing, "create its directory"),
        ("--hgrm", &missing, "create its directory"),
        ("--report", directory, "name a file in it"),
        ("--report", &kept, "--csv writes the same file"),
    ] {
        let before = server.requests();
        let mut args = vec![&*url, "--rps", "5", option, shown(path)];
        if option != "--csv" {
            args.extend(["--csv", shown(&kept)]);
        }
        let output = run(&args);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{text}");
        for word in [option, shown(path), cure] {
            assert!(text.contains(word), "`{word}` is not in: {text}");
        }
        assert_eq!(server.requests(), before, "nothing is sent");
        assert_eq!(std::fs::read_to_string(&kept).unwrap(), "earlier");
    }
}

#[test]
fn rows_of_seconds_add_up_to_the_whole() {
    let server = Server::plain(|request, out| {
        if request.earlier % 10 == 9 {
            out.write_all(b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n")?;
            return Ok(Then::Keep);
        }
        ok(out, "")
    });
    let file = server.file("out.csv");
    let (a, b) = (
        format!("a,1=http://{}/", server.address),
        format!("b=http://{}/", server.address),
    );
    let (_, document) = measure(&[
        "--target",
        &a,
        "--target",
        &b,
        "--rps",
        "200",
        "--slice",
        "250ms",
        "--duration",
        "2500ms",
        "--warmup",
        "500ms",
        "--lag-bound",
        "10s",
        "--csv",
        shown(&file),
    ]);
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(text.ends_with("\r\n") && !text.replace("\r\n", "").contains(['\r', '\n']));
    let mut lines = text.lines();
    let header: Vec<&str> = lines.next().unwrap().split(',').collect();
    assert_eq!(
        header[..8],
        [
            "time_s", "seconds", "target", "driven_s", "requests", "good", "rps", "errors"
        ]
    );
    let column = |name: &str| header.iter().position(|column| *column == name).unwrap();
    let rows: Vec<Vec<String>> = lines
        .map(|line| {
            // The one name with a comma is quoted.
            let line = line.replace("\"a,1\"", "a");
            line.split(',').map(str::to_owned).collect()
        })
        .collect();
    for (index, name) in ["a", "b"].into_iter().enumerate() {
        let of: Vec<_> = rows.iter().filter(|row| row[2] == name).collect();
        assert!((3..=5).contains(&of.len()), "{text}");
        let sum = |name| {
            of.iter()
                .map(|row| row[column(name)].parse::<f64>().unwrap())
                .sum::<f64>()
        };
        let whole = &document["targets"][index];
        assert_eq!(sum("requests"), number(&whole["requests"]));
        assert_eq!(sum("errors"), number(&whole["errors_total"]));
        assert_eq!(sum("bad_status"), number(&whole["errors"]["bad_status"]));
        assert!((sum("driven_s") - number(&document["duration_s"]) / 2.0).abs() < 1e-6);
        let max = of
            .iter()
            .filter_map(|row| row[column("max_us")].parse::<f64>().ok())
            .fold(0.0, f64::max);
        let exact = number(&whole["latency"]["max"]);
        // The histogram's own maximum is to within 0.1 %.
        assert!((max / exact - 1.0).abs() < 0.002, "{max} {exact}");
        assert_eq!(of[0][column("time_s")], "0");
        assert!(of.iter().all(|row| row.len() == header.len()));
    }
}

#[test]
fn the_page_is_whole_needs_nothing_and_keeps_text_as_text() {
    let server = Server::plain(|request, out| {
        if request.earlier % 10 == 9 {
            out.write_all(b"HTTP/1.1 503 <script>alert(1)</script>\r\nContent-Length: 0\r\n\r\n")?;
            return Ok(Then::Keep);
        }
        ok(out, "")
    });
    let file = server.file("report.html");
    let hostile = format!("<img>=http://{}/?key=s3cret#s3cret", server.address);
    let other = format!("b=http://{}/", server.address);
    let (code, document) = measure(&[
        "--target",
        &hostile,
        "--target",
        &other,
        "--rps",
        "200",
        "--connections",
        "4",
        "--slice",
        "100ms",
        "--duration",
        "1600ms",
        "--warmup",
        "0ms",
        "--lag-bound",
        "10s",
        "-qH",
        "Authorization: s3cret",
        "--data",
        "a@b s3cret",
        "--fail-if",
        "errors>0",
        "--report",
        shown(&file),
    ]);
    assert_eq!(code, 1);
    assert!(!document.to_string().contains("s3cret"), "{document:#}");
    let page = std::fs::read_to_string(&file).unwrap();
    assert!(page.starts_with("<!DOCTYPE html>") && page.ends_with("</html>\n"));
    assert!(page.contains("default-src 'none'; style-src 'unsafe-inline'"));
    for forbidden in [
        "<img", "<link", "<iframe", "@import", "url(", "src=\"", "href=", "s3cret",
    ] {
        assert!(!page.contains(forbidden), "{forbidden} is in the page");
    }
    assert!(page.contains("&lt;img&gt;"));
    // The only scripts are the one of ours and the plots' figures.
    let scripts = page.matches("<script").count();
    let figures = page.matches("<script type=\"application/json\">").count();
    assert!(figures > 0 && scripts == figures + 1);
    well_formed(&page);
    for part in [
        "FAILED",
        "below the noise",
        "Latency by percentile",
        "Latency over time",
        "bad_status",
        "To repeat it",
        "seed 1",
    ] {
        assert!(page.contains(part), "{part} is missing");
    }
}

/// Every element that begins ends, in order.
fn well_formed(page: &str) {
    const WITHOUT_END: [&str; 4] = ["!DOCTYPE", "meta", "input", "br"];
    let mut open: Vec<&str> = Vec::new();
    let mut rest = page;
    while let Some(at) = rest.find('<') {
        rest = &rest[at + 1..];
        let end = rest.find('>').expect("an unfinished tag");
        let tag = &rest[..end];
        rest = &rest[end + 1..];
        let name = tag
            .trim_start_matches('/')
            .split([' ', '/', '\n'])
            .next()
            .unwrap_or_default();
        if tag.starts_with('/') {
            assert_eq!(
                open.pop(),
                Some(name),
                "before ...{}",
                &rest[..rest.len().min(80)]
            );
        } else if !tag.ends_with('/') && !WITHOUT_END.contains(&name) {
            open.push(name);
            if matches!(name, "script" | "style") {
                let close = format!("</{name}>");
                rest = &rest[rest.find(&close).expect("an end")..];
            }
        }
    }
    assert!(open.is_empty(), "{open:?}");
}
