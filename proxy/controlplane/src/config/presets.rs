//! [`Preset`]: what is known of a provider, as data.
//!
//! `presets/*.toml` hold the hosts, how the key is written, the places where a
//! caller may have put one, times, and the endpoints that read or make keys.
//! `docs/presets.md` is generated from them. Deliberately missing: code for any
//! one provider. Whoever needs more than a preset writes a route without one.

use std::collections::BTreeSet;
use std::sync::LazyLock;
use std::time::Duration;

use policy::{Endpoint, Injection};
use serde::Deserialize;

use super::file::Inject;
use super::shape::Shape;
use super::written::Period;

/// One provider.
#[derive(Debug, Clone)]
pub struct Preset {
    /// What a route calls it.
    pub name: &'static str,
    /// The provider's own name.
    pub title: String,
    /// Where the provider documents how its API is authenticated.
    pub reference: String,
    /// A sentence for the documentation.
    pub note: Option<String>,
    /// Its hosts, each with the path below which the API lives.
    pub hosts: Vec<PresetHost>,
    /// How the key is written.
    pub injection: Injection,
    /// Headers in which a caller may have put a key.
    pub strip_headers: Vec<String>,
    /// Query parameters in which a caller may have put a key.
    pub strip_query: Vec<String>,
    /// How long the provider may think.
    pub response_head_timeout: Option<Duration>,
    /// How long it may pause within an answer.
    pub read_timeout: Option<Duration>,
    /// Endpoints that read or make keys.
    pub refused: Vec<Endpoint>,
    /// The same as they are written, for the documentation.
    pub refused_text: Vec<String>,
    /// What its keys look like.
    pub shapes: Vec<Shape>,
    /// Environment variables in which programs expect its keys.
    pub variables: Vec<String>,
}

/// A host of a provider.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PresetHost {
    /// The host's name.
    pub name: String,
    /// The path below which the API lives.
    #[serde(default = "root")]
    pub path: String,
    /// Served only where a route names it: a region, or a product of its own.
    #[serde(default)]
    pub on_request: bool,
}

fn root() -> String {
    "/".to_owned()
}

/// The preset of a name.
pub fn find(name: &str) -> Option<&'static Preset> {
    PRESETS.iter().find(|preset| preset.name == name)
}

/// Every preset, by name.
pub fn all() -> &'static [Preset] {
    &PRESETS
}

/// Every shape that keys are known to have.
pub fn shapes() -> impl Iterator<Item = &'static Shape> {
    PRESETS
        .iter()
        .flat_map(|preset| &preset.shapes)
        .chain(&GENERIC.shape)
}

/// Every shape with whose it is: its preset, or for other providers a name.
pub fn shapes_by_provider()
-> impl Iterator<Item = (&'static str, Option<&'static Preset>, &'static Shape)> {
    PRESETS
        .iter()
        .flat_map(|preset| {
            let title: &'static str = &preset.title;
            preset
                .shapes
                .iter()
                .map(move |shape| (title, Some(preset), shape))
        })
        .chain(
            GENERIC
                .shape
                .iter()
                .map(|shape| (shape.title.as_deref().unwrap_or_default(), None, shape)),
        )
}

/// Every variable in which programs expect a key, with whose it is, in the same way.
pub fn variables_by_provider()
-> impl Iterator<Item = (&'static str, Option<&'static Preset>, &'static str)> {
    PRESETS
        .iter()
        .flat_map(|preset| {
            let title: &'static str = &preset.title;
            preset
                .variables
                .iter()
                .map(move |name| (title, Some(preset), &**name))
        })
        .chain(GENERIC.named.iter().flat_map(|named| {
            let title: &'static str = &named.title;
            named
                .variables
                .iter()
                .map(move |name| (title, None, &**name))
        }))
}

/// Fingerprints of keys that providers print in their documentation. They are nobody's.
pub fn published() -> &'static [String] {
    &GENERIC.published
}

/// Every header in which some provider takes a key, and those that lead a server astray or tell where
/// a caller sits: stripped on every route.
pub fn header_slots() -> &'static BTreeSet<String> {
    static SLOTS: LazyLock<BTreeSet<String>> = LazyLock::new(|| {
        GENERIC
            .strip_headers
            .iter()
            .chain(PRESETS.iter().flat_map(|preset| &preset.strip_headers))
            .map(|name| name.to_ascii_lowercase())
            .collect()
    });
    &SLOTS
}

/// Query parameters that are stripped on a route without a preset.
pub fn query_slots() -> &'static [String] {
    &GENERIC.strip_query
}

/// How such a file is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Data {
    title: String,
    reference: String,
    note: Option<String>,
    inject: Inject,
    name: Option<String>,
    template: Option<String>,
    username: Option<String>,
    #[serde(default)]
    strip_headers: Vec<String>,
    #[serde(default)]
    strip_query: Vec<String>,
    response_head_timeout: Option<Period>,
    read_timeout: Option<Period>,
    #[serde(default)]
    refused: Vec<String>,
    #[serde(default)]
    variables: Vec<String>,
    host: Vec<PresetHost>,
    #[serde(default)]
    shape: Vec<Shape>,
}

/// What holds for every route, and for keys of providers without a preset.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Generic {
    strip_headers: Vec<String>,
    strip_query: Vec<String>,
    published: Vec<String>,
    shape: Vec<Shape>,
    named: Vec<Named>,
}

/// Variables in which programs expect the keys of a provider without a preset.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Named {
    title: String,
    variables: Vec<String>,
}

// The files are part of the program and read by a test: one that cannot be read
// never leaves the house, so there is nobody to report it to.
static PRESETS: LazyLock<Vec<Preset>> = LazyLock::new(|| {
    let mut presets: Vec<Preset> = FILES
        .iter()
        .map(|(name, text)| {
            read(name, text).unwrap_or_else(|error| panic!("presets/{name}.toml: {error}"))
        })
        .collect();
    presets.sort_by_key(|preset| preset.name);
    presets
});

static GENERIC: LazyLock<Generic> = LazyLock::new(|| {
    toml::from_str(include_str!("presets/_generic.toml"))
        .unwrap_or_else(|error| panic!("presets/_generic.toml: {error}"))
});

fn read(name: &'static str, text: &str) -> Result<Preset, String> {
    let data: Data = toml::from_str(text).map_err(|error| error.to_string())?;
    let slot = || data.name.clone().ok_or("the slot has no `name`");
    let injection = match data.inject {
        Inject::Bearer => Injection::Bearer,
        Inject::Basic => Injection::Basic {
            username: data.username.clone(),
        },
        Inject::Header => Injection::Header {
            name: slot()?,
            template: data.template.clone().unwrap_or_else(|| "{key}".to_owned()),
        },
        Inject::Query => Injection::Query { name: slot()? },
    };
    Ok(Preset {
        name,
        title: data.title,
        reference: data.reference,
        note: data.note,
        hosts: data.host,
        injection,
        strip_headers: data.strip_headers,
        strip_query: data.strip_query,
        response_head_timeout: data.response_head_timeout.map(|period| period.0),
        read_timeout: data.read_timeout.map(|period| period.0),
        refused: data
            .refused
            .iter()
            .map(|text| Endpoint::parse(text))
            .collect::<Result<_, _>>()?,
        refused_text: data.refused,
        shapes: data.shape,
        variables: data.variables,
    })
}

macro_rules! files {
    ($($name:literal),* $(,)?) => {
        [$(($name, include_str!(concat!("presets/", $name, ".toml")))),*]
    };
}

const FILES: &[(&str, &str)] = &files![
    "anthropic",
    "cloudflare",
    "deepl",
    "gemini",
    "github",
    "gitlab",
    "google-maps",
    "groq",
    "mailgun",
    "mistral",
    "openai",
    "openrouter",
    "openweathermap",
    "postmark",
    "resend",
    "sendgrid",
    "slack",
    "stripe",
    "twilio",
    "youtube",
];
