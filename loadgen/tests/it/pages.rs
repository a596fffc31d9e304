//! The report in a real browser: a page of each kind, in light, in dark, on a phone and on paper.
//!
//! Chromium is driven by `browser.mjs`, which needs Node and nothing else; `scripts/test --setup`
//! installs both. `CHROMIUM` names another binary.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::mock::Mock;
use crate::server::{NAME, Server, Then, ok};
use crate::{number, run, shown};

#[test]
fn pages_of_each_kind_fit_every_screen_and_ask_for_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let page = |name: &str| directory.path().join(name);
    let files =
        ["plain", "overhead", "find-max", "streams"].map(|name| page(&format!("{name}.html")));
    std::thread::scope(|scope| {
        let [plain_file, overhead_file, find_max_file, streams_file] = &files;
        scope.spawn(|| plain(plain_file));
        scope.spawn(|| overhead(overhead_file));
        scope.spawn(|| find_max(find_max_file));
        scope.spawn(|| streams(streams_file));
    });
    let pages = look_at(&files.each_ref().map(|file| file.as_path()));
    let sections = [
        &["Errors and answers"][..],
        &["What proxy <b> adds to direct"],
        &["The highest rate that holds"],
        &["What the load was made of"],
    ];
    for (page, sections) in pages.as_array().unwrap().iter().zip(sections) {
        assert_eq!(page["complaints"], Value::Array(Vec::new()), "{page:#}");
        assert_eq!(page["requests"], Value::Array(Vec::new()), "{page:#}");
        let headings = page["headings"].to_string();
        for section in ["Latency by percentile", "Latency over time", "To repeat it"]
            .iter()
            .chain(sections)
        {
            assert!(headings.contains(section), "{section}: {page:#}");
        }
        for name in ["light", "dark", "phone", "print"] {
            let view = &page["views"][name];
            assert_eq!(view["overflow"], 0, "{name}: {page:#}");
            assert_eq!(view["cut"], Value::Array(Vec::new()), "{name}: {page:#}");
            assert_eq!(
                view["touching"],
                Value::Array(Vec::new()),
                "{name}: {page:#}"
            );
            assert!(number(&view["plots"]) >= 4.0, "{name}: {page:#}");
            match name {
                "print" => assert_eq!(view["pdf"], "%PDF-"),
                // The plots' script has run: it says what is under the pointer.
                _ => assert_ne!(view["reading"], "", "{name}: {page:#}"),
            }
        }
    }
    let tables = fs::read_to_string(&files[3]).unwrap();
    for part in [
        "By request",
        "By step",
        "Event streams: ",
        "WebSockets: ",
        ">first event<",
        ">round trip<",
        ">a &lt;name&gt;<",
        "Idle connections: 2 of 2 opened",
    ] {
        assert!(tables.contains(part), "{part} is missing");
    }
    let search = fs::read_to_string(&files[2]).unwrap();
    assert!(search.contains("class=\"mark held\"") && search.contains("class=\"cross\""));
    assert!(search.contains(">held<") && search.contains(">failed<"));
}

/// The browser's driver must see what is wrong, or the test above could not fail.
#[test]
fn a_bad_page_does_not_pass() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("bad.html");
    fs::write(
        &file,
        "<!DOCTYPE html><meta charset='utf-8'>\
         <meta http-equiv='Content-Security-Policy' content=\"default-src 'none'; script-src 'unsafe-inline'; img-src http:\">\
         <meta name='viewport' content='width=device-width'>\
         <h1>bad</h1><div style='width:500px'>styles are refused</div>\
         <img src='http://nowhere.example/pixel.png'>\
         <svg viewBox='0 0 100 40' width='100'><text x='90' y='20'>beyond the end</text><text x='92' y='22'>upon it</text></svg>\
         <pre>a line that does not break and goes on and on and on and on and on and on and on and on and on and on and on</pre>\
         <script>console.error('said'); throw new Error('thrown')</script>",
    )
    .unwrap();
    let seen = look_at(&[&file]);
    let page = &seen[0];
    let complaints = page["complaints"].to_string();
    for word in ["said", "thrown", "Content Security Policy"] {
        assert!(complaints.contains(word), "{word}: {page:#}");
    }
    assert!(page["requests"].to_string().contains("nowhere.example"));
    let phone = &page["views"]["phone"];
    assert!(number(&phone["overflow"]) > 0.0, "{page:#}");
    assert!(phone["cut"].to_string().contains("beyond the end"));
    assert!(phone["touching"].to_string().contains("upon it"));
    let paper = page["views"]["print"]["cut"].to_string();
    assert!(paper.contains("does not break"), "{page:#}");
}

/// What the browser saw of each page.
fn look_at(files: &[&Path]) -> Value {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/browser.mjs");
    let output = Command::new("node")
        .arg(script)
        .args(files)
        .output()
        .expect("node starts; scripts/test --setup installs it");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Runs loadgen and has it write `page`. Gates and objectives may fail, a run may not.
fn write_page(page: &Path, args: &[&str]) {
    let base = ["-q", "--warmup", "0ms", "--lag-bound", "10s", "--report"];
    let output = run(&[&base[..], &[shown(page)], args].concat());
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(matches!(output.status.code(), Some(0 | 1)), "{text}");
}

/// Every tenth answer is an error, whose words are as hostile as they get.
fn sometimes_bad() -> Server {
    Server::plain(|request, out| {
        if request.earlier % 10 == 9 {
            out.write_all(b"HTTP/1.1 503 <img src=//a.example/b>\r\nContent-Length: 0\r\n\r\n")?;
            return Ok(Then::Keep);
        }
        ok(out, "")
    })
}

fn plain(page: &Path) {
    let server = sometimes_bad();
    let url = format!("http://{}/", server.address);
    write_page(
        page,
        &[
            &url,
            "--rps",
            "200",
            "--duration",
            "1500ms",
            "--fail-if",
            "errors>0",
            "--fail-if",
            "p50>50s",
        ],
    );
}

fn overhead(page: &Path) {
    let server = sometimes_bad();
    let (proxy, direct) = (
        format!("proxy <b>=http://{}/", server.address),
        format!("direct=http://{}/", server.address),
    );
    write_page(
        page,
        &[
            "--target",
            &proxy,
            "--target",
            &direct,
            "--rps",
            "200",
            "--connections",
            "4",
            "--slice",
            "100ms",
            "--duration",
            "1600ms",
        ],
    );
}

fn find_max(page: &Path) {
    // Two connections that each take 5 ms: never more than 400 per second.
    let server = Server::plain(|_, out| {
        std::thread::sleep(std::time::Duration::from_millis(5));
        ok(out, "")
    });
    let url = format!("http://{}/", server.address);
    write_page(
        page,
        &[
            &url,
            "--find-max",
            "--slo",
            "p99<200ms,errors<5%",
            "--connections",
            "2",
            "--duration",
            "200ms",
            "--timeout",
            "500ms",
        ],
    );
}

fn streams(page: &Path) {
    let mock = Mock::start();
    let scenario = page.with_extension("toml");
    fs::write(
        &scenario,
        "[[request]]\nname='events'\nkind='sse'\npath='/sse?n=4&ms=10'\n\
         [[request]]\nname='chat'\nkind='websocket'\npath='/ws'\n\
         [[request]]\nname='a <name> that is much longer than a phone is wide, or so it seems'\nweight=4\npath='/ok'\n\
         [[request]]\nname='missing'\npath='/status/404'\n\
         [[request]]\nname='a <name>'\npath='/ok'\n",
    )
    .unwrap();
    let (url, ca) = (format!("https://{NAME}/"), mock.ca());
    write_page(
        page,
        &[
            &url,
            "--connect",
            &mock.address,
            "--cacert",
            shown(&ca),
            "--scenario",
            shown(&scenario),
            "--steps",
            "50,100,150",
            "--idle",
            "2",
            "--duration",
            "1500ms",
        ],
    );
}
