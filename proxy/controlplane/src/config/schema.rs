//! [`json_schema`]: the configuration's JSON Schema, from the types that read it.
//!
//! `docs/claviger.schema.json` and the tables of `docs/configuration.md` are
//! made from it; tests see to it that they are current.

use schemars::generate::SchemaSettings;
use serde_json::{Map, Value};

use super::file::Document;

/// JSON Schema (draft 2020-12) of `claviger.toml` and of the files in `conf.d`.
/// Editors complete and check by it; `claviger schema` prints it.
pub fn json_schema() -> Value {
    let schema = SchemaSettings::draft2020_12()
        .into_generator()
        .into_root_schema_for::<Document>();
    let mut schema = schema.to_value();
    tidy(&mut schema);
    schema
}

/// Makes the schema say what TOML can say: there is no null, a default stands
/// where the description names one, and so does what is required.
fn tidy(value: &mut Value) {
    match value {
        Value::Array(values) => values.iter_mut().for_each(tidy),
        Value::Object(object) => {
            object.values_mut().for_each(tidy);
            without_null(object);
            // Rust's own: a number has no width in TOML. (A table may have a field
            // of that name; then it is no string.)
            if object.get("format").is_some_and(Value::is_string) {
                object.remove("format");
            }
            require(object);
        }
        _ => {}
    }
}

/// `Option` is a field that may be left out, never one that may be null.
fn without_null(object: &mut Map<String, Value>) {
    let null = Value::from("null");
    if let Some(Value::Array(types)) = object.get_mut("type") {
        types.retain(|kind| *kind != null);
        if let [only] = types.as_slice() {
            let only = only.clone();
            object.insert("type".to_owned(), only);
        }
    }
    let Some(Value::Array(choices)) = object.get_mut("anyOf") else {
        return;
    };
    choices.retain(|choice| choice.get("type") != Some(&null));
    if let [Value::Object(only)] = choices.as_slice() {
        let only = only.clone();
        object.remove("anyOf");
        for (key, value) in only {
            // The field's own description wins over its type's.
            object.entry(key).or_insert(value);
        }
    }
}

/// Takes defaults and duties from the descriptions of a table's fields.
fn require(object: &mut Map<String, Value>) {
    let Some(Value::Object(properties)) = object.get_mut("properties") else {
        return;
    };
    let mut required = Vec::new();
    for (name, property) in properties {
        let Some(property) = property.as_object_mut() else {
            continue;
        };
        let text = property
            .get("description")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned();
        if text.ends_with("Required.") {
            required.push(Value::from(name.as_str()));
        }
        if let Some(default) = default_of(&text) {
            property.insert("default".to_owned(), default);
        }
    }
    if !required.is_empty() {
        object.insert("required".to_owned(), Value::Array(required));
    }
}

/// The value in "Default: `value`", if it is one and not a sentence.
fn default_of(description: &str) -> Option<Value> {
    let (_, rest) = description.split_once("Default: `")?;
    let (value, _) = rest.split_once('`')?;
    serde_json::from_str(value).ok()
}
