//! `report.schema.json` against what `--json` really prints: every kind of run is valid by it, and it
//! describes every field.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::mock::Mock;
use crate::server::{NAME, Server, Then, ok};
use crate::{measure, shown};

fn schema() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("report.schema.json");
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// What is wrong with a document, with the places.
fn wrong(document: &Value) -> Vec<String> {
    let validator = jsonschema::draft202012::new(&schema()).unwrap();
    validator
        .iter_errors(document)
        .map(|error| format!("{}: {error}", error.instance_path()))
        .collect()
}

fn check(document: &Value, has: &[&str]) {
    assert_eq!(wrong(document), [""; 0], "{document:#}");
    for place in has {
        let found = document.pointer(place);
        let empty = |value: &Value| match value {
            Value::Null => true,
            Value::Array(list) => list.is_empty(),
            Value::Object(fields) => fields.is_empty(),
            _ => false,
        };
        assert!(!found.is_none_or(empty), "{place}: {document:#}");
    }
}

const BASE: [&str; 5] = ["-q", "--warmup", "0ms", "--lag-bound", "10s"];

fn measured(args: &[&str]) -> Value {
    measure(&[&BASE[..], args].concat()).1
}

#[test]
fn closed_open_and_compared_runs_are_as_the_schema_says() {
    let server = Server::plain(|request, out| {
        if request.earlier % 10 == 9 {
            out.write_all(b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n")?;
            return Ok(Then::Keep);
        }
        ok(out, "")
    });
    let url = format!("http://{}/", server.address);
    let me = format!("me={}", std::process::id());
    let closed = measured(&[
        &url,
        "--concurrency",
        "2",
        "--duration",
        "300ms",
        "--watch",
        &me,
        "--fail-if",
        "errors>0",
        "--fail-if",
        "lag.p99>50us",
    ]);
    check(
        &closed,
        &[
            "/targets/0/errors",
            "/targets/0/error_examples",
            "/watched/me/cpu_s",
            "/gates",
        ],
    );
    assert_eq!(closed["mode"], "closed");
    let open = measured(&[
        &url,
        "--ramp",
        "50..150",
        "--arrivals",
        "poisson",
        "--duration",
        "500ms",
    ]);
    check(&open, &["/targets/0/steps", "/arrivals", "/rate_wanted"]);
    let (a, b) = (format!("a={url}"), format!("b={url}"));
    let compared = measured(&[
        "--target",
        &a,
        "--target",
        &b,
        "--rps",
        "200",
        "--slice",
        "50ms",
        "--duration",
        "800ms",
        "--fail-if",
        "diff.p50>50s",
    ]);
    check(&compared, &["/comparisons/0/quantiles/4/low", "/gates"]);
}

#[test]
fn nothing_measured_is_as_the_schema_says() {
    // No answer ever comes, so there is no figure per answer.
    let server = Server::plain(|_, _| Ok(Then::Cut));
    let url = format!("http://{}/", server.address);
    let (code, document) = measure(&[
        &url,
        "-q",
        "--rps",
        "20",
        "--duration",
        "300ms",
        "--warmup",
        "0ms",
    ]);
    assert_eq!(code, 1, "{document:#}");
    check(&document, &["/targets/0/errors/reset"]);
    assert_eq!(document["generator"]["cpu_us_per_request"], Value::Null);
}

#[test]
fn a_search_is_as_the_schema_says() {
    let server = Server::plain(|_, out| {
        std::thread::sleep(std::time::Duration::from_millis(5));
        ok(out, "")
    });
    let url = format!("http://{}/", server.address);
    let document = measured(&[
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
    ]);
    check(&document, &["/find_max/probes/0"]);
}

#[test]
fn a_scenario_with_streams_is_as_the_schema_says() {
    let mock = Mock::start();
    let directory = tempfile::tempdir().unwrap();
    let scenario = directory.path().join("streams.toml");
    fs::write(
        &scenario,
        "[[request]]\nname='events'\nkind='sse'\npath='/sse?n=4&ms=10'\n\
         [[request]]\nname='chat'\nkind='websocket'\npath='/ws'\n\
         [[request]]\nname='small'\npath='/ok'\n",
    )
    .unwrap();
    let (url, ca) = (format!("https://{NAME}/"), mock.ca());
    let document = measured(&[
        &url,
        "--connect",
        &mock.address,
        "--cacert",
        shown(&ca),
        "--scenario",
        shown(&scenario),
        "--steps",
        "50,100",
        "--idle",
        "2",
        "--duration",
        "1s",
    ]);
    check(
        &document,
        &[
            "/targets/0/tls",
            "/targets/0/idle",
            "/targets/0/by_request/2/latency",
            "/targets/0/steps/1/latency",
            "/targets/0/sse/delay",
            "/targets/0/websocket/round_trip",
        ],
    );
    // What the schema does not know, it refuses: at the top, in a target, in a list.
    for place in [
        "",
        "/targets/0",
        "/targets/0/sse/delay",
        "/targets/0/steps/0",
    ] {
        let mut more = document.clone();
        more.pointer_mut(place).unwrap()["unknown"] = json!(1);
        assert_eq!(wrong(&more).len(), 1, "{place}");
    }
    let mut less = document.clone();
    less["targets"][0].as_object_mut().unwrap().remove("rps");
    assert_eq!(wrong(&less).len(), 1);
}

/// Every object is closed, and every field of it says what it is.
#[test]
fn the_schema_describes_every_field() {
    let schema = schema();
    assert!(jsonschema::meta::is_valid(&schema));
    let mut waiting = vec![("#".to_owned(), &schema)];
    let mut fields = 0;
    while let Some((place, value)) = waiting.pop() {
        if let Some(properties) = value.get("properties").and_then(Value::as_object) {
            assert_eq!(value["additionalProperties"], false, "{place}");
            for (name, field) in properties {
                let text = field["description"].as_str().unwrap_or_default();
                assert!(text.len() > 4, "{place}/{name} says nothing");
                fields += 1;
            }
        }
        match value {
            Value::Object(map) => {
                waiting.extend(
                    map.iter()
                        .map(|(key, value)| (format!("{place}/{key}"), value)),
                );
            }
            Value::Array(list) => waiting.extend(list.iter().map(|value| (place.clone(), value))),
            _ => {}
        }
    }
    assert!(fields > 100, "{fields}");
}
