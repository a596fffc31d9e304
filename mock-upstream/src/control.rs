//! The control port: what tests ask and change while the mock runs.
//!
//! Clear text and without a key: bind it to the loopback interface only. Documents are read
//! strictly; whatever is wrong with one is answered 400 with a sentence, and changes nothing.

use std::sync::{Arc, PoisonError};

use serde_json::{Value, json};

use crate::connection::{After, BodyWish, Connection, Gone};
use crate::faults::Faults;
use crate::handlers::refuse;
use crate::http::uri;
use crate::keys::KeySet;
use crate::latency::Latency;
use crate::limits::Limits;
use crate::settings::Settings;
use crate::stats::Totals;
use crate::steering::Steering;

/// Answers one request on the control port.
pub async fn answer(conn: &mut Connection) -> Result<After, Gone> {
    let body = conn
        .read_body(BodyWish {
            keep_bytes_max: BODY_BYTES_MAX,
            digest: false,
        })
        .await?;
    let settings = Arc::clone(&conn.worker.settings);
    let path = conn.head.path();
    let Some((_, methods)) = PATHS.iter().find(|(known, _)| known.as_bytes() == path) else {
        let paths: Vec<&str> = PATHS.iter().map(|(path, _)| *path).collect();
        refuse(
            conn,
            404,
            "not_found",
            &format!("there are {}", paths.join(", ")),
        );
        return Ok(After::KeepAlive);
    };
    let method = match conn.head.method() {
        b"HEAD" => "GET".to_string(),
        method => String::from_utf8_lossy(method).into_owned(),
    };
    if !methods.contains(&method.as_str()) {
        let text = format!("this path takes {}", methods.join(", "));
        refuse(conn, 405, "method_not_allowed", &text);
        return Ok(After::KeepAlive);
    }
    let outcome = match (body.content, conn.head.path()) {
        (None, _) => Err(format!("the body has more than {BODY_BYTES_MAX} bytes")),
        (Some(body), b"/__stats") => stats(&settings, &body),
        (Some(_), b"/__stats/reset") => reset(&settings),
        (Some(body), b"/__keys") => keys(&settings, &body),
        (Some(body), b"/__faults") => faults(&settings, &method, &body),
        (Some(body), b"/__latency") => latency(&settings, &method, &body),
        (Some(body), b"/__limits") => limits(&settings, &method, &body),
        (Some(_), _) => records(&settings, &method, conn.head.query()),
    };
    match outcome {
        Ok(Value::Null) => drop(conn.respond(204).bare()),
        Ok(value) => {
            let content = format!("{value}\n");
            conn.respond(200)
                .content("application/json", content.as_bytes());
        }
        Err(message) => refuse(conn, 400, "bad_request", &message),
    }
    Ok(After::KeepAlive)
}

/// The paths, and the methods that they take.
const PATHS: [(&str, &[&str]); 7] = [
    ("/__stats", &["GET"]),
    ("/__stats/reset", &["POST"]),
    ("/__keys", &["PUT"]),
    ("/__faults", &["GET", "PUT", "DELETE"]),
    ("/__latency", &["GET", "PUT", "DELETE"]),
    ("/__limits", &["GET", "PUT", "DELETE"]),
    ("/__records", &["GET", "DELETE"]),
];

fn totals(settings: &Settings) -> Totals {
    Totals::of(settings.stats.iter().map(|stats| &**stats))
}

fn stats(settings: &Settings, _body: &[u8]) -> Result<Value, String> {
    let baseline = settings
        .baseline
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    let mut report = totals(settings).report(&baseline);
    report["keys"] = json!(settings.keys.current().len());
    report["idempotency_keys"] = json!(settings.idempotency.len());
    Ok(report)
}

/// The counters belong to the workers; what they have now is subtracted from now on.
fn reset(settings: &Settings) -> Result<Value, String> {
    *settings
        .baseline
        .lock()
        .unwrap_or_else(PoisonError::into_inner) = totals(settings);
    Ok(Value::Null)
}

fn keys(settings: &Settings, body: &[u8]) -> Result<Value, String> {
    let keys = std::str::from_utf8(body)
        .map(KeySet::from_lines)
        .unwrap_or_default();
    if keys.is_empty() {
        return Err("expected one key a line, at least one".into());
    }
    settings.keys.replace(keys);
    Ok(Value::Null)
}

fn faults(settings: &Settings, method: &str, body: &[u8]) -> Result<Value, String> {
    let faults = match method {
        "PUT" => Some(Faults::from_json(
            body,
            settings.seed,
            settings.abilities(),
        )?),
        "DELETE" => None,
        _ => {
            let current = settings.steering.current();
            let none = || json!({"seed": settings.seed, "rules": []});
            return Ok(current
                .faults
                .as_ref()
                .map_or_else(none, |faults| faults.report()));
        }
    };
    let faults = faults.filter(|faults| !faults.is_empty()).map(Arc::new);
    let refuses = faults.as_ref().is_some_and(|faults| faults.refuses());
    let report = faults
        .as_ref()
        .map_or(Value::Null, |faults| faults.report());
    let mut refused = false;
    settings.steering.change(|current| {
        refused = current
            .faults
            .as_ref()
            .is_some_and(|faults| faults.refuses());
        Steering {
            faults,
            ..current.clone()
        }
    });
    if refuses != refused {
        settings
            .set_listening(!refuses)
            .map_err(|error| format!("the listening sockets: {error}"))?;
    }
    Ok(report)
}

fn latency(settings: &Settings, method: &str, body: &[u8]) -> Result<Value, String> {
    let latency = match method {
        "PUT" => Some(Latency::from_json(body, settings.seed)?),
        "DELETE" => None,
        _ => {
            let current = settings.steering.current();
            let none = || json!({"seed": settings.seed, "rules": []});
            return Ok(current
                .latency
                .as_ref()
                .map_or_else(none, |latency| latency.report()));
        }
    };
    let latency = latency.filter(|latency| !latency.is_empty()).map(Arc::new);
    let report = latency
        .as_ref()
        .map_or(Value::Null, |latency| latency.report());
    settings.steering.change(|current| Steering {
        latency,
        ..current.clone()
    });
    Ok(report)
}

fn limits(settings: &Settings, method: &str, body: &[u8]) -> Result<Value, String> {
    let limits = match method {
        "PUT" => Some(Limits::from_json(body, &settings.catalogue.style_names())?),
        "DELETE" => None,
        _ => {
            let current = settings.steering.current();
            let none = || json!({"rules": []});
            return Ok(current
                .limits
                .as_ref()
                .map_or_else(none, |limits| limits.report()));
        }
    };
    let limits = limits.filter(|limits| !limits.is_empty()).map(Arc::new);
    let report = limits
        .as_ref()
        .map_or(Value::Null, |limits| limits.report());
    settings.steering.change(|current| Steering {
        limits,
        ..current.clone()
    });
    Ok(report)
}

fn records(settings: &Settings, method: &str, query: &[u8]) -> Result<Value, String> {
    let Some(raw) = &settings.raw else {
        return Err(
            "nothing is recorded byte by byte; start with --record-raw, which keeps credentials as they arrive"
                .into(),
        );
    };
    if method == "DELETE" {
        raw.clear();
        return Ok(Value::Null);
    }
    let after = uri::number(query, "after", 0..=u64::MAX)?.unwrap_or(0);
    Ok(raw.report(after))
}

/// A larger body is answered 400.
const BODY_BYTES_MAX: usize = 4 * 1024 * 1024;
