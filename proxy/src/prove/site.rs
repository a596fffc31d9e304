//! [`Site`]: a configuration with canaries in the place of its secrets and the
//! proof's own APIs in the place of its upstreams, and what there is to drive in it.
//!
//! An operator's configuration is never served as it is: a copy is rewritten. Kept:
//! hosts, routes, paths, methods, injections, presets, what is stripped, `on_echo`,
//! `on_uninspected`, bounds. Replaced: secrets (none is read), certificates, addresses, times, the
//! user, and where things are written. `callers` becomes `"open"`, since the proof
//! calls from loopback.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use controlplane::config::{self, Certificates, Draft};
use controlplane::pki::authority;
use policy::{Callers, Injection, OnEcho, OnUninspected};
use toml::{Table, Value};

use super::pki::ApiCa;
use super::search::Canaries;

/// How long an upstream may take, in place of what is configured: the proof waits
/// for each of these to pass.
const UPSTREAM_TIMEOUT: &str = "2s";

/// How long a caller may take for a head, likewise.
const HEAD_TIMEOUT: &str = "1s";

/// How long a caller's connection may wait for its next request, likewise.
const IDLE_TIMEOUT: &str = "2s";

/// What is driven.
#[derive(Debug)]
pub struct Site {
    /// The configuration file.
    pub config: PathBuf,
    /// Its text.
    pub text: String,
    /// Every route of every host.
    pub routes: Vec<Driven>,
    /// Where each secret was put.
    pub slots: Vec<Slot>,
    /// What Claviger is started with.
    pub environment: Vec<(String, String)>,
    /// The private keys that it holds, adopted as canaries.
    pub private_keys: usize,
    /// Whether each listener speaks TLS, by name.
    pub listeners: BTreeMap<String, bool>,
}

/// One route of one host.
#[derive(Debug, Clone)]
pub struct Driven {
    /// The route's name.
    pub name: String,
    /// A name that its host answers to.
    pub host: String,
    /// A listener that serves the host.
    pub listener: String,
    /// A path of its own.
    pub path: String,
    /// A method that it serves.
    pub method: String,
    /// How the key is written, the value hidden.
    pub injection: String,
    /// Index into [`Site::slots`].
    pub slot: Option<usize>,
    /// What the API must find in `Host`.
    pub upstream_host: String,
    /// Whether a WebSocket may be opened.
    pub websocket: bool,
    /// What becomes of a key in an answer.
    pub on_echo: OnEcho,
    /// Whether a body passes that cannot be searched.
    pub passes_uninspected: bool,
    /// The largest body that it takes.
    pub body_bytes_max: u64,
    /// Whether it drives every form in every place, or each form and each place once.
    pub thorough: bool,
    /// Whether callers of loopback are let in.
    pub open: bool,
}

/// A place for a secret.
#[derive(Debug)]
pub struct Slot {
    /// The canaries: the one in use at first, and the one after the rotation.
    pub versions: [usize; 2],
    /// Where it is, unless in the environment.
    file: Option<PathBuf>,
    /// What stands before the canary: a user's name, where `basic` wants a pair.
    before: &'static str,
}

impl Slot {
    /// Puts a version of the canary in place.
    pub fn put(&self, version: usize, canaries: &Canaries) -> Result<(), String> {
        let Some(file) = &self.file else {
            return Ok(());
        };
        // As a careful operator would: whole or not at all.
        let fresh = file.with_extension("fresh");
        let _ = fs::remove_file(&fresh);
        write_private(&fresh, self.secret(version, canaries).as_bytes())?;
        fs::rename(&fresh, file).map_err(|error| format!("{}: {error}", file.display()))
    }

    /// Whether another version can take the place of the first while it is in use.
    pub fn rotates(&self) -> bool {
        self.file.is_some()
    }

    fn secret(&self, version: usize, canaries: &Canaries) -> String {
        format!("{}{}", self.before, canaries.text(self.versions[version]))
    }
}

/// Where a configuration comes from.
#[derive(Debug, Clone, Copy)]
pub enum Origin<'o> {
    /// The proof's own.
    BuiltIn(&'o str),
    /// An operator's file.
    File(&'o Path),
}

impl Site {
    /// Rewrites a configuration and writes it into `place`.
    ///
    /// # Errors
    /// A sentence, or the report of what is wrong with the configuration.
    pub fn build(
        origin: Origin<'_>,
        place: &Path,
        api: SocketAddr,
        ca: &mut ApiCa,
        canaries: &mut Canaries,
    ) -> Result<Self, String> {
        let (mut table, draft) = read(origin)?;
        let mut slots = Slots::default();
        slots.note_pairs(&draft);
        for directory in ["keys", "state", "run"] {
            make_directory(&place.join(directory))?;
        }

        let names: BTreeSet<String> = draft
            .hosts
            .iter()
            .map(|host| host.name.trim_start_matches("*.").to_owned())
            .collect();
        let ca_dir = place.join("ca");
        authority::init(&authority::InitOptions {
            dir: ca_dir.clone(),
            permit: names.iter().cloned().collect(),
            hosts: Vec::new(),
            key_type: authority::KeyType::default(),
            force: false,
            passphrase: None,
            now: SystemTime::now(),
        })
        .map_err(|error| error.to_string())?;
        ca.serve(
            draft
                .upstreams
                .iter()
                .map(|upstream| upstream.tls_name.to_str().into_owned()),
        );

        replace_process(&mut table, place, &ca_dir);
        replace_listeners(&mut table);
        let own_certificates = replace_certificates(&mut table, &draft, place, &ca_dir, ca)?;
        replace_upstreams(&mut table, &draft, api, &place.join("api-ca.pem"));
        slots.replace(&mut table, place, canaries)?;
        let keep_callers = matches!(origin, Origin::BuiltIn(_));
        for route in array(&mut table, "route") {
            route.insert("response_head_timeout".into(), UPSTREAM_TIMEOUT.into());
            if !keep_callers {
                route.insert("callers".into(), "open".into());
                route.remove("denied");
            }
        }

        let text = toml::to_string(&table).map_err(|error| error.to_string())?;
        let config = place.join("claviger.toml");
        write_private(&config, text.as_bytes())?;
        let file = config::load(&config).map_err(|report| report.render(false))?;
        let (draft, report) = config::check(&file);
        if report.has_errors() {
            return Err(format!(
                "the configuration with canaries in it is refused, which is a defect of `prove`:\n{}",
                report.render(false)
            ));
        }
        let mut private_keys = 0;
        for name in ["root.key", "intermediate.key"] {
            private_keys += usize::from(adopt(canaries, &ca_dir.join(name)));
        }
        for path in own_certificates {
            private_keys += usize::from(adopt(canaries, &path));
        }
        let mut routes = routes(&draft, &slots);
        let mut seen = BTreeSet::new();
        for route in &mut routes {
            route.thorough =
                route.open && seen.insert((kind(&route.injection), format!("{:?}", route.on_echo)));
        }
        Ok(Self {
            config,
            text,
            routes,
            slots: slots.all,
            environment: slots.environment,
            private_keys,
            listeners: draft
                .listeners
                .iter()
                .map(|listener| (listener.name.to_string(), listener.tls))
                .collect(),
        })
    }
}

/// The tables of a configuration, `conf.d` among them, and what they mean.
fn read(origin: Origin<'_>) -> Result<(Table, Draft), String> {
    let (file, texts) = match origin {
        Origin::BuiltIn(text) => (
            config::File::parse(Path::new("built-in"), text),
            vec![(PathBuf::from("built-in"), text.to_owned())],
        ),
        Origin::File(path) => {
            let file = config::load(path).map_err(|report| report.render(false))?;
            let mut texts = Vec::new();
            for path in file.watch_paths() {
                // The last one is the directory of drop-in files.
                if path.is_file() {
                    let text = fs::read_to_string(&path)
                        .map_err(|error| format!("{}: {error}", path.display()))?;
                    texts.push((path, text));
                }
            }
            (file, texts)
        }
    };
    let (draft, report) = config::check(&file);
    if report.has_errors() {
        return Err(report.render(false));
    }
    let mut merged = Table::new();
    for (path, text) in texts {
        // It was read a moment ago, so the parser's words, which may quote a line,
        // are not needed.
        let table: Table = text
            .parse()
            .map_err(|_| format!("{}: it has changed while it was read", path.display()))?;
        for (name, value) in table {
            // Several files may add to the same tables.
            match value {
                Value::Array(more) => match merged.get_mut(&name) {
                    Some(Value::Array(all)) => all.extend(more),
                    _ => drop(merged.insert(name, Value::Array(more))),
                },
                Value::Table(more) => section(&mut merged, &name).extend(more),
                value => drop(merged.insert(name, value)),
            }
        }
    }
    Ok((merged, draft))
}

// ---- Replacing -------------------------------------------------------------

/// The table of a name, made if it is not there.
fn section<'t>(table: &'t mut Table, name: &str) -> &'t mut Table {
    let value = table
        .entry(name)
        .or_insert_with(|| Value::Table(Table::new()));
    if !value.is_table() {
        *value = Value::Table(Table::new());
    }
    match value {
        Value::Table(table) => table,
        _ => unreachable!("it was made one"),
    }
}

/// The tables of an array of tables.
fn array<'t>(table: &'t mut Table, name: &str) -> impl Iterator<Item = &'t mut Table> {
    table
        .get_mut(name)
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
        .filter_map(Value::as_table_mut)
}

fn show(path: &Path) -> Value {
    Value::String(path.display().to_string())
}

/// What concerns the process: one worker, short times, the most talkative log, and
/// all that it writes in one place.
fn replace_process(table: &mut Table, place: &Path, ca_dir: &Path) {
    let server = section(table, "server");
    for name in ["user", "group", "cpus"] {
        server.remove(name);
    }
    server.insert("workers".into(), Value::Integer(1));
    server.insert("state_dir".into(), show(&place.join("state")));
    server.insert("memory_lock".into(), "try".into());
    server.insert("head_timeout".into(), HEAD_TIMEOUT.into());
    server.insert("idle_timeout".into(), IDLE_TIMEOUT.into());
    server.insert("drain_timeout".into(), "2s".into());
    let log = section(table, "log");
    log.insert("level".into(), "trace".into());
    log.insert("format".into(), "json".into());
    log.insert("status_interval".into(), "1s".into());
    let audit = section(table, "audit");
    audit.clear();
    audit.insert("path".into(), show(&place.join("audit.ndjson")));
    let ca = section(table, "ca");
    ca.clear();
    ca.insert("directory".into(), show(ca_dir));
    // Every upstream has an address.
    table.remove("dns");
}

fn replace_listeners(table: &mut Table) {
    if array(table, "listener").next().is_none() {
        table.insert(
            "listener".into(),
            Value::Array(vec![Value::Table(Table::new())]),
        );
    }
    for (number, listener) in array(table, "listener").enumerate() {
        let first = match listener.get("address") {
            Some(Value::String(one)) => Some(one.clone()),
            Some(Value::Array(many)) => many.first().and_then(Value::as_str).map(str::to_owned),
            _ => None,
        };
        // A listener without a name is named after its first address, and hosts may
        // go by that.
        listener
            .entry("name")
            .or_insert_with(|| first.unwrap_or_else(|| "prove".to_owned()).into());
        // All of 127.0.0.0/8 is this machine; no two may listen on one address.
        listener.remove("proxy_protocol");
        let address = std::net::Ipv4Addr::from_bits(0x7f00_0001 + (number as u32 & 0xff_ffff));
        listener.insert("address".into(), format!("{address}:0").into());
    }
}

/// Certificates from files become others, from the proof's own CA and in files too.
/// Returns the private keys' files.
fn replace_certificates(
    table: &mut Table,
    draft: &Draft,
    place: &Path,
    ca_dir: &Path,
    ca: &ApiCa,
) -> Result<Vec<PathBuf>, String> {
    let out = place.join("keys");
    let mut keys = Vec::new();
    let hosts = section(table, "host");
    for host in &draft.hosts {
        let Some(Value::Table(written)) = hosts.get_mut(&host.name) else {
            continue;
        };
        if written.contains_key("client_ca") {
            written.insert("client_ca".into(), show(ca.file()));
            written.remove("client_crl");
        }
        if !matches!(host.certificates, Certificates::Files(_)) || host.name.starts_with('*') {
            for name in ["certificate", "private_key", "allow_world_readable"] {
                written.remove(name);
            }
            continue;
        }
        let options = authority::IssueOptions {
            out: Some(out.clone()),
            ..authority::IssueOptions::new(
                ca_dir.to_owned(),
                vec![host.name.clone()],
                SystemTime::now(),
            )
        };
        authority::issue(&options).map_err(|error| error.to_string())?;
        for (field, extension) in [("certificate", "pem"), ("private_key", "key")] {
            let path = out.join(format!("{}.{extension}", host.name));
            written.insert(field.into(), format!("file://{}", path.display()).into());
        }
        keys.push(out.join(format!("{}.key", host.name)));
    }
    Ok(keys)
}

/// Each API is the proof's own, under its own name.
fn replace_upstreams(table: &mut Table, draft: &Draft, api: SocketAddr, ca_file: &Path) {
    let upstreams = section(table, "upstream");
    for upstream in &draft.upstreams {
        let written = section(upstreams, &upstream.name);
        written.insert("host".into(), upstream.host.clone().into());
    }
    for (_, written) in upstreams.iter_mut() {
        let Some(written) = written.as_table_mut() else {
            continue;
        };
        written.remove("allow_private");
        written.insert(
            "addresses".into(),
            Value::Array(vec![api.to_string().into()]),
        );
        written.insert("ca_file".into(), show(ca_file));
        for name in ["connect_timeout", "response_head_timeout", "read_timeout"] {
            written.insert(name.into(), UPSTREAM_TIMEOUT.into());
        }
    }
}

/// The secrets of a configuration.
#[derive(Debug, Default)]
struct Slots {
    all: Vec<Slot>,
    environment: Vec<(String, String)>,
    /// References that are written as `basic` without a user's name.
    pairs: BTreeSet<String>,
    /// The reference that each one became, and its slot.
    became: BTreeMap<String, (String, usize)>,
}

impl Slots {
    fn note_pairs(&mut self, draft: &Draft) {
        for route in draft.hosts.iter().flat_map(|host| &host.routes) {
            if let Some((index, Injection::Basic { username: None })) = &route.credential
                && let Some(credential) = draft.credentials.get(*index)
            {
                self.pairs.insert(credential.reference.to_string());
            }
        }
    }

    /// Puts a canary in the place of each secret.
    fn replace(
        &mut self,
        table: &mut Table,
        place: &Path,
        canaries: &mut Canaries,
    ) -> Result<(), String> {
        make_directory(&place.join("credentials"))?;
        self.environment.push((
            "CREDENTIALS_DIRECTORY".to_owned(),
            place.join("credentials").display().to_string(),
        ));
        let mut written: Vec<&mut Value> = Vec::new();
        let (mut routes, mut sections, mut callers) = (None, None, None);
        for (name, value) in table.iter_mut() {
            match &**name {
                "route" => routes = value.as_array_mut(),
                "credential" => sections = value.as_table_mut(),
                "caller" => callers = value.as_table_mut(),
                _ => {}
            }
        }
        for route in routes.into_iter().flatten() {
            written.extend(route.get_mut("credential"));
        }
        for (_, section) in sections.into_iter().flatten() {
            written.extend(section.get_mut("source"));
        }
        for (_, caller) in callers.into_iter().flatten() {
            match caller.get_mut("token") {
                Some(Value::Array(many)) => written.extend(many),
                Some(one) => written.push(one),
                None => {}
            }
        }
        for value in written {
            let Some(reference) = value.as_str().filter(|text| text.contains("://")) else {
                continue;
            };
            let reference = reference.to_owned();
            let became = match self.became.get(&reference) {
                Some((became, _)) => became.clone(),
                None => self.plant(&reference, place, canaries)?,
            };
            *value = Value::String(became);
        }
        Ok(())
    }

    fn plant(
        &mut self,
        reference: &str,
        place: &Path,
        canaries: &mut Canaries,
    ) -> Result<String, String> {
        let number = self.all.len();
        let mut plant = |version: &str| {
            canaries
                .plant(format!("{reference}, {version} version"))
                .map_err(|error| format!("random numbers: {error}"))
        };
        let mut slot = Slot {
            versions: [plant("first")?, plant("second")?],
            file: None,
            before: if self.pairs.contains(reference) {
                "account:"
            } else {
                ""
            },
        };
        let became = match reference.split_once("://").map_or("", |(scheme, _)| scheme) {
            "env" => {
                let name = format!("CLAVIGER_PROVE_{number}");
                let secret = slot.secret(0, canaries);
                self.environment.push((name.clone(), secret));
                format!("env://{name}")
            }
            "credential" => {
                slot.file = Some(place.join(format!("credentials/secret-{number}")));
                format!("credential://secret-{number}")
            }
            _ => {
                let file = place.join(format!("keys/secret-{number}"));
                let became = format!("file://{}", file.display());
                slot.file = Some(file);
                became
            }
        };
        slot.put(0, canaries)?;
        self.all.push(slot);
        self.became
            .insert(reference.to_owned(), (became.clone(), number));
        Ok(became)
    }

    fn of_reference(&self, became: &str) -> Option<usize> {
        self.became
            .values()
            .find(|(text, _)| text == became)
            .map(|(_, slot)| *slot)
    }
}

// ---- What there is to drive ------------------------------------------------

fn routes(draft: &Draft, slots: &Slots) -> Vec<Driven> {
    let mut driven = Vec::new();
    for host in &draft.hosts {
        let listener = draft
            .listeners
            .iter()
            .find(|listener| {
                let serves = host.listeners.is_empty()
                    || host.listeners.iter().any(|name| **name == *listener.name);
                serves && (!listener.tls || host.certificates != Certificates::None)
            })
            .map(|listener| listener.name.to_string());
        for route in &host.routes {
            let upstream = &draft.upstreams[route.upstream];
            let slot = route.credential.as_ref().and_then(|(index, _)| {
                slots.of_reference(&draft.credentials[*index].reference.to_string())
            });
            let loopback = std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
            driven.push(Driven {
                name: route.name.clone(),
                host: host.name.replace('*', "prove"),
                listener: listener.clone().unwrap_or_default(),
                path: format!("{}/prove", route.path.trim_end_matches('/')),
                method: route
                    .methods
                    .iter()
                    .find(|method| *method == "GET")
                    .or(route.methods.first())
                    .map_or_else(|| "GET".to_owned(), Clone::clone),
                injection: route
                    .credential
                    .as_ref()
                    .map_or_else(|| "none".to_owned(), |(_, injection)| injection.describe()),
                slot,
                upstream_host: if upstream.port == 443 {
                    upstream.host.clone()
                } else {
                    format!("{}:{}", upstream.host, upstream.port)
                },
                websocket: route.upgrades.iter().any(|name| name == "websocket")
                    && (route.methods.is_empty() || route.methods.iter().any(|name| name == "GET")),
                on_echo: route.on_echo,
                passes_uninspected: route.on_uninspected == OnUninspected::Mark,
                body_bytes_max: route.body_bytes_max,
                thorough: false,
                open: !policy::access::contains(&route.denied, loopback)
                    && match &route.callers {
                        Callers::Open => true,
                        Callers::Networks(networks) | Callers::Named { networks, .. } => {
                            policy::access::contains(networks, loopback)
                        }
                    },
            });
        }
    }
    driven
}

/// The kind of an injection: where it writes, whatever the name.
pub fn kind(injection: &str) -> &'static str {
    if injection.starts_with("Authorization: Bearer") {
        "bearer"
    } else if injection.starts_with("Authorization: Basic base64(<") {
        "basic, a pair"
    } else if injection.starts_with("Authorization: Basic") {
        "basic, a user's name"
    } else if injection.starts_with('?') {
        "query"
    } else if injection.ends_with(": <hidden>") {
        "header"
    } else if injection == "none" {
        "none"
    } else {
        "header, a template"
    }
}

// ---- Files -----------------------------------------------------------------

/// Takes a private key's secret part for a canary.
fn adopt(canaries: &mut Canaries, path: &Path) -> bool {
    use rustls::pki_types::PrivateKeyDer;
    use rustls::pki_types::pem::PemObject;
    let Ok(key) = PrivateKeyDer::from_pem_file(path) else {
        return false;
    };
    // PKCS #8 of a P-256 key (RFC 5915, section 3): version 1, then 32 bytes.
    let der = key.secret_der();
    let Some(at) = memchr::memmem::find(der, &[0x02, 0x01, 0x01, 0x04, 0x20]) else {
        return false;
    };
    let Some(secret) = der.get(at + 5..at + 37) else {
        return false;
    };
    canaries.adopt(
        format!(
            "the private key {}",
            path.file_name().unwrap_or_default().display()
        ),
        secret,
    );
    true
}

fn make_directory(path: &Path) -> Result<(), String> {
    fs::DirBuilder::new()
        .mode(0o700)
        .recursive(true)
        .create(path)
        .map_err(|error| format!("{}: {error}", path.display()))
}

/// Writes a new file that only its owner may read.
pub fn write_private(path: &Path, bytes: &[u8]) -> Result<(), String> {
    fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(bytes))
        .map_err(|error| format!("{}: {error}", path.display()))
}
