//! The documents that are made from code and data are current.
//!
//! `CLAVIGER_UPDATE_EXPECTED=1` writes them anew.

use std::fmt::Write as _;

use serde_json::Value;

use super::*;

fn document(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../docs")
        .join(name)
}

#[track_caller]
fn check_current(name: &str, current: &str) {
    let path = document(name);
    if std::env::var_os("CLAVIGER_UPDATE_EXPECTED").is_some() {
        std::fs::write(&path, current).expect("the document");
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == current,
        "docs/{name} is not current; run the tests of `controlplane` with CLAVIGER_UPDATE_EXPECTED=1"
    );
}

#[test]
fn the_schema() {
    let text = serde_json::to_string_pretty(&json_schema()).expect("JSON");
    check_current("claviger.schema.json", &format!("{text}\n"));
}

#[test]
fn every_field_is_described() {
    fn look(name: &str, value: &Value, missing: &mut Vec<String>) {
        let Some(object) = value.as_object() else {
            return;
        };
        for (field, property) in object
            .get("properties")
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
        {
            if property.get("description").is_none() {
                missing.push(format!("{name}.{field}"));
            }
        }
        for (key, value) in object {
            look(key, value, missing);
        }
    }
    let schema = json_schema();
    let mut missing = Vec::new();
    look("root", &schema, &mut missing);
    assert!(missing.is_empty(), "no description: {missing:?}");
    assert!(!schema.to_string().contains("null"), "TOML has no null");
}

/// The tables of fields between `<!-- fields: Name -->` and `<!-- end -->`.
#[test]
fn the_tables_of_fields() {
    let schema = json_schema();
    let text = std::fs::read_to_string(document("configuration.md")).expect("the document");
    let mut current = String::new();
    let mut rest = &*text;
    let mut tables = 0;
    while let Some((before, after)) = rest.split_once("<!-- fields: ") {
        let (name, after) = after.split_once(" -->").expect("an end of the mark");
        let (_, after) = after
            .split_once("<!-- end -->")
            .expect("an end of the table");
        let fields = schema["$defs"][name]["properties"]
            .as_object()
            .unwrap_or_else(|| panic!("no table {name}"));
        // The order of the source, which says the important things first.
        let order = order_of(name);
        assert_eq!(order.len(), fields.len(), "{name}");
        let _ = write!(
            current,
            "{before}<!-- fields: {name} -->\n| Field | Meaning | Default |\n|---|---|---|\n"
        );
        for field in order {
            let description = fields[*field]["description"]
                .as_str()
                .expect("a description");
            let (meaning, default) = match description.split_once(" Default: ") {
                Some((meaning, default)) => {
                    let (default, more) = default
                        .split_once(". ")
                        .unwrap_or((default.trim_end_matches('.'), ""));
                    (format!("{meaning} {more}"), default.to_owned())
                }
                None => (
                    description.trim_end_matches("Required.").to_owned(),
                    if description.ends_with("Required.") {
                        "required".to_owned()
                    } else {
                        String::new()
                    },
                ),
            };
            let _ = writeln!(
                current,
                "| `{field}` | {} | {default} |",
                meaning.trim().replace('|', "\\|")
            );
        }
        current.push_str("<!-- end -->");
        rest = after;
        tables += 1;
    }
    current.push_str(rest);
    assert_eq!(tables, 12, "every section has its table");
    check_current("configuration.md", &current);
}

fn order_of(name: &str) -> &'static [&'static str] {
    use super::file::*;
    match name {
        "Server" => fields_of::<Server>(),
        "Log" => fields_of::<Log>(),
        "Dns" => fields_of::<Dns>(),
        "Audit" => fields_of::<Audit>(),
        "Ca" => fields_of::<Ca>(),
        "Acme" => fields_of::<Acme>(),
        "Listener" => fields_of::<Listener>(),
        "Host" => fields_of::<Host>(),
        "Upstream" => fields_of::<Upstream>(),
        "Credential" => fields_of::<Credential>(),
        "Caller" => fields_of::<Caller>(),
        "Route" => fields_of::<Route>(),
        _ => panic!("no table {name}"),
    }
}

#[test]
fn the_presets() {
    check_current("presets.md", &presets_document());
}

fn presets_document() -> String {
    let mut text = String::from(
        "# Presets\n\
        \n\
        A preset is what is known of a provider, as data: its hosts, how the key is written,\n\
        where callers may have put one, how long the provider may think, and which of its\n\
        endpoints read or make keys. Those are refused unless the route says\n\
        `allow_key_management = true`.\n\
        \n\
        ```toml\n\
        [[route]]\n\
        preset = \"openai\"\n\
        credential = \"file:///etc/claviger/keys/openai\"\n\
        ```\n\
        \n\
        Everything can be overridden in the route, in a `[credential.NAME]` and in an\n\
        `[upstream.\"HOST\"]` of the host's own name; see [configuration.md](configuration.md).\n\
        A provider without a preset needs `host` in place of `preset`, and perhaps a\n\
        `[credential.NAME]` that says how its key is written.\n\
        \n\
        This file is generated from `proxy/controlplane/src/config/presets/*.toml`, which also name\n\
        the provider's page behind each refused endpoint.\n\
        \n\
        | Preset | Provider | Hosts | The key is written as |\n\
        |---|---|---|---|\n",
    );
    for preset in presets::all() {
        let mut hosts: Vec<String> = Vec::new();
        for host in &preset.hosts {
            let path = if host.path == "/" { "" } else { &host.path };
            hosts.push(format!(
                "`{}{path}`{}",
                host.name,
                if host.on_request { " (on request)" } else { "" }
            ));
        }
        let _ = writeln!(
            text,
            "| `{}` | {} | {} | `{}` |",
            preset.name,
            preset.title,
            hosts.join(", "),
            preset.injection.describe()
        );
    }
    text.push_str(
        "\nA host that is served *on request* is served where the route names it, as in\n\
        `host = \"api.eu.mailgun.net\"`.\n",
    );
    for preset in presets::all() {
        let _ = write!(
            text,
            "\n## {} (`{}`)\n\nHow it authenticates: <{}>.\n",
            preset.title, preset.name, preset.reference
        );
        if let Some(note) = &preset.note {
            let _ = writeln!(text, "{note}");
        }
        let list = |names: &[String]| {
            names
                .iter()
                .map(|name| format!("`{name}`"))
                .collect::<Vec<_>>()
                .join(", ")
        };
        let _ = write!(
            text,
            "\n- Removed beside the headers that are removed everywhere: {}",
            list(&preset.strip_headers)
        );
        if !preset.strip_query.is_empty() {
            let _ = write!(text, "; query parameters {}", list(&preset.strip_query));
        }
        text.push_str(".\n");
        if let Some(time) = preset.response_head_timeout {
            let _ = writeln!(
                text,
                "- Waits up to {} s for the response head.",
                time.as_secs()
            );
        }
        if let Some(time) = preset.read_timeout {
            let _ = writeln!(
                text,
                "- Waits up to {} s for the next part of a response body.",
                time.as_secs()
            );
        }
        if preset.refused_text.is_empty() {
            text.push_str("- No endpoint on these hosts is known to read or make keys.\n");
        } else {
            let _ = writeln!(
                text,
                "- Refused, with what lies below: {}.",
                list(&preset.refused_text)
            );
        }
        if !preset.shapes.is_empty() {
            let shapes: Vec<String> = preset
                .shapes
                .iter()
                .map(|shape| format!("{}...", shape.prefix))
                .collect();
            let _ = writeln!(
                text,
                "- A key begins like {}; where one stands in the configuration, `check` fails.",
                list(&shapes)
            );
        }
    }
    text
}
