//! nginx, HAProxy and Envoy in Claviger's place: same rows, same callers, same upstreams, set up as in
//! `perf/contenders`. `scripts/conformance` runs this and prints where each stands.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use serde_json::{Value, json};

use super::case::{Layout, UPSTREAM_HOST};
use super::judge::{Standing, standing};
use super::{Stage, Subject, Table};
use crate::harness::pki::{self, TestCa};
use crate::harness::process::Process;
use crate::harness::{World, eventually};

/// How long a peer may keep silent before that counts as its answer: nothing here has a reason to
/// take longer, and a peer that waits for more of what Claviger refuses does so in a hundred rows.
const PATIENCE: Duration = Duration::from_millis(1500);

/// What a peer is started with.
struct Setting<'a> {
    world: &'a World,
    table: &'a Table,
    upstreams: &'a [SocketAddr],
    ca_file: &'a Path,
    chain: &'a Path,
    chain_key: &'a Path,
    key: &'a str,
    port: u16,
}

/// A peer: how it is called, and how its command is made.
type Peer = (&'static str, fn(&Setting<'_>) -> Command);

const PEERS: [Peer; 3] = [("nginx", nginx), ("haproxy", haproxy), ("envoy", envoy)];

/// The table is HTTP's and not Claviger's: other proxies hold most rows of it. Which ones may be named in
/// `CONFORMANCE_PEERS`, and how often each goes through the table in `CONFORMANCE_RUNS` (once, unless told);
/// where they stand is written to the file in `CONFORMANCE_REPORT`.
#[test]
fn peers() {
    let wanted = std::env::var("CONFORMANCE_PEERS").unwrap_or_else(|_| "nginx,haproxy".to_owned());
    let runs = std::env::var("CONFORMANCE_RUNS").map_or(1, |runs| {
        let runs: usize = runs.parse().expect("CONFORMANCE_RUNS is a number");
        assert!(runs > 0, "CONFORMANCE_RUNS is at least 1");
        runs
    });
    let mut table = Table::load();
    // The other layouts are Claviger's own rules, not HTTP's.
    table
        .cases
        .retain(|case| case.layout == Layout::Plain && !case.rule.starts_with("Claviger"));
    let mut columns = Vec::new();
    for (name, command) in PEERS
        .iter()
        .filter(|(name, _)| wanted.split(',').any(|wanted| wanted == *name))
    {
        let standings = together((0..runs).map(|_| stand(&table, name, *command)));
        let same = standings.iter().filter(|one| one[..] == [Standing::Same]);
        let (same, rows) = (same.count(), table.cases.len());
        // A peer that was set up wrongly would hold hardly any.
        assert!(
            same * 2 > rows,
            "{name} does the same in {same} of {rows} rows"
        );
        columns.push((*name, standings));
    }
    assert!(
        !columns.is_empty(),
        "CONFORMANCE_PEERS={wanted:?} names none of {:?}",
        PEERS.map(|(name, _)| name)
    );
    let report = report(&table, &columns);
    println!("{report}");
    if let Ok(path) = std::env::var("CONFORMANCE_REPORT") {
        std::fs::write(path, report).expect("the report's place is writable");
    }
}

/// What was seen of each row in all runs: one standing, unless timing decides it.
fn together(runs: impl Iterator<Item = Vec<Standing>>) -> Vec<Vec<Standing>> {
    let mut seen: Vec<Vec<Standing>> = Vec::new();
    for run in runs {
        seen.resize_with(run.len(), Vec::new);
        for (seen, standing) in seen.iter_mut().zip(run) {
            if !seen.contains(&standing) {
                seen.push(standing);
            }
        }
    }
    seen
}

/// Runs every row with one peer.
fn stand(table: &Table, name: &str, command: fn(&Setting<'_>) -> Command) -> Vec<Standing> {
    let world = World::new();
    let directory = world.subdirectory("peer");
    let ca = TestCa::new(&directory, "ca");
    let stage = Stage::new(table, &ca);
    let (chain, chain_key) = ca.server_files(&directory, &["*.example.com"]);
    let port = TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .expect("a free port")
        .port();
    let key = "conformance-key-0123456789";
    let setting = Setting {
        world: &world,
        table,
        upstreams: &stage.addresses,
        ca_file: ca.file(),
        chain: &chain,
        chain_key: &chain_key,
        key,
        port,
    };
    let process = Process::start(name, command(&setting));
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    eventually(&format!("{name} listens"), || {
        TcpStream::connect(address).ok()
    });
    let config = ClientConfig::builder_with_provider(pki::provider())
        .with_safe_default_protocol_versions()
        .expect("both versions")
        .with_root_certificates(pki::roots(ca.file()))
        .with_no_client_auth();
    let subject = Subject {
        address,
        config: Arc::new(config),
        patience: PATIENCE,
        key: key.to_owned(),
    };
    let observed = stage.run(table, &subject);
    drop(process);
    table
        .cases
        .iter()
        .zip(&observed)
        .map(|(case, observed)| standing(case, &table.words(case, key), observed))
        .collect()
}

/// A standing, and its word in the tables.
const KINDS: [(Standing, &str); 4] = [
    (Standing::Same, "same"),
    (Standing::Stricter, "stricter"),
    (Standing::Laxer, "laxer"),
    (Standing::Broken, "mixed up"),
];

/// Markdown: counts by topic, then the rows by name. A row that was not the same in every run counts for
/// none of the four, and is listed with what it was.
fn report(table: &Table, columns: &[(&str, Vec<Vec<Standing>>)]) -> String {
    let mut out = String::from("| Topic | Rows |");
    for (name, _) in columns {
        let _ = write!(out, " {name} |");
    }
    out += "\n|---|---|";
    out += &"---|".repeat(columns.len());
    out.push('\n');
    let mut topics: Vec<&str> = Vec::new();
    for case in &table.cases {
        if !topics.contains(&case.topic.as_str()) {
            topics.push(&case.topic);
        }
    }
    for topic in topics.iter().copied().chain(["**All**"]) {
        let rows: Vec<usize> = (0..table.cases.len())
            .filter(|&row| topic == "**All**" || table.cases[row].topic == topic)
            .collect();
        let _ = write!(out, "| {topic} | {} |", rows.len());
        for (_, standings) in columns {
            let count = |wanted: &dyn Fn(&[Standing]) -> bool| {
                let of_kind = rows.iter().filter(|&&row| wanted(&standings[row]));
                of_kind.count().to_string()
            };
            let mut counts: Vec<String> = KINDS
                .iter()
                .map(|(kind, _)| count(&|seen| seen == [*kind]))
                .collect();
            counts.push(count(&|seen| seen.len() > 1));
            let _ = write!(out, " {} |", counts.join(" / "));
        }
        out.push('\n');
    }
    for (name, standings) in columns {
        for (kind, word) in &KINDS[1..] {
            list(
                &mut out,
                table,
                standings,
                &format!("{name}: {word}"),
                |seen| (seen == [*kind]).then(String::new),
            );
        }
        list(
            &mut out,
            table,
            standings,
            &format!("{name}: varies"),
            |seen| {
                let words = KINDS.iter().filter(|(kind, _)| seen.contains(kind));
                let words: Vec<&str> = words.map(|(_, word)| *word).collect();
                (seen.len() > 1).then(|| format!(" ({})", words.join(" or ")))
            },
        );
    }
    out
}

/// The rows for which `remark` has one, by topic, each with it.
fn list(
    out: &mut String,
    table: &Table,
    standings: &[Vec<Standing>],
    title: &str,
    remark: impl Fn(&[Standing]) -> Option<String>,
) {
    let mut by_topic: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (case, seen) in table.cases.iter().zip(standings) {
        if let Some(remark) = remark(seen) {
            let names = by_topic.entry(&case.topic).or_default();
            names.push(format!("{}{remark}", case.name));
        }
    }
    if !by_topic.is_empty() {
        let _ = write!(out, "\n### {title}\n\n");
    }
    for (topic, names) in by_topic {
        let _ = writeln!(out, "- {topic}: {}", names.join(", "));
    }
}

impl Setting<'_> {
    /// Host and upstream of each row.
    fn rows(&self) -> impl Iterator<Item = (String, SocketAddr)> {
        (0..self.table.cases.len()).map(|number| (Table::host(number), self.upstreams[number]))
    }
}

fn nginx(setting: &Setting<'_>) -> Command {
    let directory = setting.world.subdirectory("nginx");
    let at = |name: &str| directory.join(name).display().to_string();
    let (mut names, mut upstreams) = (String::new(), String::new());
    for (host, address) in setting.rows() {
        let _ = writeln!(names, "        {host} up-{host};");
        let _ = writeln!(
            upstreams,
            "    upstream up-{host} {{ server {address} max_fails=0; keepalive 8; }}"
        );
    }
    let stripped: String = STRIPPED
        .iter()
        .map(|name| format!("            proxy_set_header {name} \"\";\n"))
        .collect();
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|kind| format!("    {kind}_temp_path {};\n", at(kind)))
        .collect();
    let config = format!(
        "daemon off;
master_process off;
pid {pid};
error_log {errors} warn;
events {{ worker_connections 16384; }}
http {{
    access_log off;
{temporary}    variables_hash_bucket_size 128;
    map_hash_max_size 16384;
    map_hash_bucket_size 128;
    map $ssl_server_name $row {{
{names}    }}
    map $http_upgrade $connection_upgrade {{
        default upgrade;
        '' '';
    }}
{upstreams}    server {{
        listen 127.0.0.1:{port} ssl backlog=1024;
        ssl_certificate {chain};
        ssl_certificate_key {chain_key};
        client_max_body_size 0;
        proxy_request_buffering off;
        if ($host != $ssl_server_name) {{ return 421; }}
        location / {{
            proxy_pass https://$row;
            proxy_http_version 1.1;
            proxy_next_upstream off;
            proxy_ssl_server_name on;
            proxy_ssl_name {UPSTREAM_HOST};
            proxy_ssl_verify on;
            proxy_ssl_trusted_certificate {ca};
            proxy_set_header Connection $connection_upgrade;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Host {UPSTREAM_HOST};
{stripped}            proxy_set_header Authorization \"Bearer {key}\";
        }}
    }}
}}
",
        pid = at("pid"),
        errors = at("errors"),
        port = setting.port,
        chain = setting.chain.display(),
        chain_key = setting.chain_key.display(),
        ca = setting.ca_file.display(),
        key = setting.key,
    );
    let path = setting.world.write("nginx.conf", config);
    let mut command = Command::new("nginx");
    command.arg("-p").arg(&directory).arg("-c").arg(path);
    command
}

fn haproxy(setting: &Setting<'_>) -> Command {
    let (mut map, mut backends) = (String::new(), String::new());
    for (host, address) in setting.rows() {
        let _ = writeln!(map, "{host} up-{host}");
        let _ = write!(
            backends,
            "backend up-{host}\n    http-reuse always\n    retries 0\n    server api {address} ssl verify required ca-file {} sni str({UPSTREAM_HOST}) verifyhost {UPSTREAM_HOST} alpn http/1.1\n",
            setting.ca_file.display()
        );
    }
    let map = setting.world.write("haproxy.map", map);
    let mut pem = std::fs::read_to_string(setting.chain).expect("just written");
    pem += &std::fs::read_to_string(setting.chain_key).expect("just written");
    let pem = setting.world.write("haproxy.pem", pem);
    let stripped: String = STRIPPED
        .iter()
        .map(|name| format!("    http-request del-header {name}\n"))
        .collect();
    let config = format!(
        "global
    nbthread 1
    maxconn 4000
    tune.pool-low-fd-ratio 90
    tune.pool-high-fd-ratio 95
defaults
    mode http
    timeout connect 10s
    timeout client 1m
    timeout server 1m
    timeout tunnel 1m
    timeout http-request 15s
frontend callers
    bind 127.0.0.1:{port} ssl crt {pem} alpn http/1.1
    http-request set-var(txn.host) req.hdr(host),host_only,lower
    http-request deny deny_status 421 unless {{ ssl_fc_sni,lower,strcmp(txn.host) eq 0 }}
{stripped}    http-request set-header Host {UPSTREAM_HOST}
    http-request set-header Authorization \"Bearer {key}\"
    use_backend %[ssl_fc_sni,lower,map_str({map})]
{backends}",
        port = setting.port,
        pem = pem.display(),
        key = setting.key,
        map = map.display(),
    );
    let path = setting.world.write("haproxy.cfg", config);
    let mut command = Command::new("haproxy");
    command.arg("-db").arg("-f").arg(path);
    command
}

fn envoy(setting: &Setting<'_>) -> Command {
    let typed = |message: &str, mut fields: Value| {
        fields["@type"] = Value::from(format!("type.googleapis.com/envoy.{message}"));
        fields
    };
    let at = |address: SocketAddr| {
        json!({"socket_address": {
            "address": address.ip().to_string(), "port_value": address.port()}})
    };
    let upstream_tls = typed(
        "extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        json!({"sni": UPSTREAM_HOST, "common_tls_context": {
            "alpn_protocols": ["http/1.1"],
            "validation_context": {
                "trusted_ca": {"filename": setting.ca_file},
                "match_typed_subject_alt_names":
                    [{"san_type": "DNS", "matcher": {"exact": UPSTREAM_HOST}}]}}}),
    );
    let clusters: Vec<Value> = setting
        .rows()
        .map(|(host, address)| {
            json!({
                "name": host, "type": "STATIC", "connect_timeout": "10s",
                "load_assignment": {"cluster_name": host, "endpoints": [
                    {"lb_endpoints": [{"endpoint": {"address": at(address)}}]}]},
                "transport_socket": {
                    "name": "envoy.transport_sockets.tls", "typed_config": upstream_tls}})
        })
        .collect();
    let hosts: Vec<Value> = setting
        .rows()
        .map(|(host, _)| {
            json!({
                "name": host, "domains": [host, format!("{host}:*")],
                "routes": [{"match": {"prefix": "/"}, "route": {
                    "cluster": host, "timeout": "0s", "host_rewrite_literal": UPSTREAM_HOST,
                    "upgrade_configs": [{"upgrade_type": "websocket"}]}}],
                "request_headers_to_remove": STRIPPED,
                "request_headers_to_add": [{
                    "header": {"key": "authorization", "value": format!("Bearer {}", setting.key)},
                    "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}]})
        })
        .collect();
    let manager = typed(
        "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        json!({
            "stat_prefix": "callers", "codec_type": "HTTP1",
            "route_config": {"name": "routes", "virtual_hosts": hosts},
            "http_filters": [{"name": "envoy.filters.http.router", "typed_config":
                typed("extensions.filters.http.router.v3.Router", json!({}))}]}),
    );
    let downstream_tls = typed(
        "extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        json!({"common_tls_context": {
            "alpn_protocols": ["http/1.1"],
            "tls_certificates": [{
                "certificate_chain": {"filename": setting.chain},
                "private_key": {"filename": setting.chain_key}}]}}),
    );
    let config = json!({"static_resources": {
        "listeners": [{
            "name": "callers",
            "address": at(SocketAddr::from(([127, 0, 0, 1], setting.port))),
            "filter_chains": [{
                "transport_socket": {
                    "name": "envoy.transport_sockets.tls", "typed_config": downstream_tls},
                "filters": [{
                    "name": "envoy.filters.network.http_connection_manager",
                    "typed_config": manager}]}]}],
        "clusters": clusters}});
    let path = setting.world.write("envoy.json", config.to_string());
    let mut command = Command::new(std::env::var_os("ENVOY").unwrap_or_else(|| "envoy".into()));
    command
        .arg("-c")
        .arg(path)
        .args(["--concurrency", "1", "--disable-hot-restart"])
        .args(["--log-level", "error"]);
    command
}

/// Where callers' keys may stand, beside Authorization, which is overwritten.
const STRIPPED: &[&str] = &[
    "proxy-authorization",
    "x-api-key",
    "api-key",
    "x-goog-api-key",
    "ocp-apim-subscription-key",
];
