//! From files to the routes of a snapshot, and what those decide.

use policy::route::Route;
use policy::{AddressBook, Callers, UnknownSni};

use super::*;

const DOMAINS: [&str; 2] = ["example.com", "claviger.internal"];

fn resolved(house: &House, text: &str) -> Resolved {
    house
        .resolve(text)
        .unwrap_or_else(|report| panic!("{report}"))
}

fn route<'a>(resolved: &'a Resolved, host: &str, name: &str) -> &'a Route {
    let index = resolved.snapshot.find_host(host).expect("the host");
    let routes = resolved.snapshot.host(index).routes();
    routes
        .iter()
        .find(|route| &*route.name == name)
        .expect("the route")
}

#[test]
fn three_lines_are_enough() {
    let house = House::new(&["sendgrid.com"]);
    house.key("key", b"SG.planted-0123456789abcdef\n");
    let resolved = resolved(
        &house,
        "[[route]]\npreset = \"sendgrid\"\ncredential = \"file://DIR/key\"\ncallers = \"open\"\n",
    );
    assert!(resolved.warnings.is_empty(), "{}", resolved.warnings);
    let snapshot = &resolved.snapshot;
    assert_eq!(snapshot.generation, 1);
    assert_eq!(snapshot.listeners.len(), 1);
    assert_eq!(
        snapshot.listeners[0].addresses,
        ["0.0.0.0:443".parse().expect("an address")]
    );
    assert!(snapshot.listeners[0].tls);
    assert_eq!(snapshot.listeners[0].unknown_sni, UnknownSni::Refuse);
    assert_eq!(snapshot.hosts().len(), 1);
    assert!(snapshot.hosts()[0].tls.is_some());
    let route = route(&resolved, "api.sendgrid.com", "sendgrid");
    assert_eq!(route.callers, Callers::Open);
    assert_eq!(&*route.upstream.host, "api.sendgrid.com");
    assert_eq!(resolved.names.len(), 1);
    assert_eq!(resolved.names[0].upstream, route.upstream.id);
    assert!(resolved.next_renewal.is_some());
    let shown = format!("{resolved:?}");
    assert!(!shown.contains("planted"), "Debug shows the key");
}

#[test]
fn two_lines_are_enough_without_a_preset() {
    let house = House::new(&DOMAINS);
    house.key("key", b"planted-0123456789abcdef");
    let resolved = resolved(
        &house,
        "[[route]]\nhost = \"API.Example.com.\"\ncredential = \"file://DIR/key\"\n",
    );
    let route = route(&resolved, "api.example.com", "api.example.com");
    assert_eq!(&*route.path, b"/");
    assert_eq!(&*route.upstream.host, "api.example.com");
    assert_eq!(route.upstream_path, None);
    assert_eq!(route.upgrades, ["websocket".into()]);
    assert!(!route.retry_with_idempotency_key);
    assert_eq!(route.body_bytes_max, u64::MAX);
    assert_eq!(route.on_echo, policy::OnEcho::Redact);
    assert_eq!(route.on_uninspected, policy::OnUninspected::Refuse);
    assert!(!route.audit_required);
    let (_, credential) = route.credential.as_ref().expect("a credential");
    assert_eq!(credential.name(), "api.example.com");
    assert_eq!(credential.injection(), &policy::Injection::Bearer);
    for name in [
        "authorization",
        "X_API_KEY",
        "x-goog-api-key",
        "private-token",
    ] {
        assert!(route.strip_fields.contains(name.as_bytes()), "{name}");
    }
    assert!(!route.strip_fields.contains(b"content-type"));
    for name in ["key", "k%65y", "ACCESS_TOKEN", "subscription-key"] {
        assert!(route.strip_params.contains(name.as_bytes()), "{name}");
    }
}

#[test]
fn everything_that_can_be_said() {
    let house = House::new(&DOMAINS);
    house.key("key", b"planted-0123456789abcdef");
    let resolved = resolved(
        &house,
        r#"
[[listener]]
name = "inside"
address = ["127.0.0.1:8443", "[::1]:8443"]
unknown_sni = "api.example.com"
[[listener]]
name = "clear"
address = "127.0.0.1:8080"
tls = false

[host."api.example.com"]
listeners = ["inside"]

[upstream.api]
host = "API.Example.com"
port = 8443
addresses = ["192.0.2.7:8443", "127.0.0.1:9443"]
tls_name = "other.example.com"
allow_private = true
connect_timeout = "1s"
response_head_timeout = "2s"
read_timeout = "3s"
connections_max = 7
idle_max = 6
idle_min = 5
idle_timeout = "4s"
age_max = "5m"

[credential.main]
source = "file://DIR/key"
inject = "header"
name = "X-Auth"
template = "Token {key}"

[[route]]
name = "things"
host = ["api.example.com", "claviger.internal"]
path = "/things"
methods = ["GET", "POST"]
upstream = "api"
upstream_path = "/v1"
credential = "main"
callers = ["10.0.0.0/8", "192.0.2.1", "2001:db8::/32"]
strip_headers = ["X-Other"]
strip_query = ["appid"]
keep_query = ["key"]
strip_cookies = true
forwarded = ["Forwarded", "x-forwarded-for", "via"]
forwarded_trust = ["10.0.0.0/24", "192.0.2.7"]
strip_response_headers = ["Set-Cookie"]
upgrades = []
audit = "required"
on_echo = "block"
on_uninspected = "mark"
body_bytes_max = "10MiB"
response_head_timeout = "5m"
"#,
    );
    assert!(resolved.warnings.is_empty(), "{}", resolved.warnings);
    let snapshot = &resolved.snapshot;
    assert_eq!(
        snapshot.listeners[0].unknown_sni,
        UnknownSni::Host("api.example.com".into())
    );
    assert!(!snapshot.listeners[1].tls);
    let host = snapshot.host(snapshot.find_host("api.example.com").expect("the host"));
    assert!(host.is_on("inside") && !host.is_on("clear"));
    let internal = snapshot.host(snapshot.find_host("claviger.internal").expect("the host"));
    assert!(internal.is_on("inside") && internal.is_on("clear"));
    let route = route(&resolved, "claviger.internal", "things");
    assert_eq!(route.methods, ["GET".into(), "POST".into()]);
    assert!(matches!(&route.callers, Callers::Networks(networks) if networks.len() == 3));
    assert_eq!(route.upstream_path.as_deref(), Some(&b"/v1"[..]));
    assert_eq!(route.upstream_path_of(b"/things/1"), b"/v1/1");
    assert!(route.strip_fields.contains(b"x-other"));
    assert!(
        route.strip_fields.contains(b"x-auth"),
        "the slot is stripped"
    );
    assert!(route.strip_params.contains(b"appid"));
    assert!(route.keep_params.contains(b"key"));
    assert!(route.strip_cookies && route.upgrades.is_empty() && route.audit_required);
    assert_eq!(route.body_bytes_max, 10 << 20);
    let forwarding = route.forwarding.as_ref().expect("some");
    assert_eq!(
        forwarding.fields,
        [
            policy::ForwardingField::XForwardedFor,
            policy::ForwardingField::Forwarded,
            policy::ForwardingField::Via
        ]
    );
    assert_eq!(forwarding.trust.len(), 2);
    assert!(route.strip_response_fields.contains(b"set-cookie"));
    assert_eq!(route.on_echo, policy::OnEcho::Block);
    assert_eq!(route.on_uninspected, policy::OnUninspected::Mark);
    assert_eq!(
        route.response_head_timeout.map(|time| time.as_secs()),
        Some(300)
    );
    let upstream = &route.upstream;
    assert_eq!(&*upstream.host, "api.example.com:8443");
    assert_eq!(upstream.tls_name.to_str(), "other.example.com");
    assert_eq!(upstream.addresses.len(), 2);
    assert_eq!(upstream.limits.connections_max, 7);
    assert_eq!(upstream.limits.idle_min, 5);
    assert_eq!(upstream.limits.age_max.as_secs(), 300);
    assert!(
        resolved.names.is_empty(),
        "written addresses need no look-up"
    );
    assert_eq!(
        snapshot.upstreams.len(),
        1,
        "one upstream, shared by two hosts"
    );
}

#[test]
fn defaults_are_those_that_are_documented() {
    let house = House::new(&DOMAINS);
    let resolved = resolved(
        &house,
        "[[route]]\nhost = \"api.example.com\"\ncredential = \"none\"\n",
    );
    let schema = json_schema();
    let documented = |section: &str, field: &str| {
        let value = &schema["$defs"][section]["properties"][field]["default"];
        assert!(!value.is_null(), "{section}.{field} documents no default");
        value
            .as_str()
            .map_or_else(|| value.to_string(), str::to_owned)
    };
    let check = |section: &str, field: &str, actual: String| {
        // "60s" is "1m".
        let same = |text: &str| written::Period::parse(text).map(|it| written::show_period(it.0));
        let documented = documented(section, field);
        assert_eq!(
            same(&documented).unwrap_or(documented),
            actual,
            "{section}.{field}"
        );
    };
    let period = written::show_period;
    let limits = resolved.snapshot.limits;
    check(
        "Server",
        "handshake_timeout",
        period(limits.handshake_timeout),
    );
    check("Server", "head_timeout", period(limits.head_timeout));
    check("Server", "idle_timeout", period(limits.idle_timeout));
    check("Server", "read_timeout", period(limits.read_timeout));
    check("Server", "body_rate_min", limits.body_rate_min.to_string());
    check("Server", "drain_timeout", period(limits.drain_timeout));
    check(
        "Server",
        "connections_max",
        limits.connections_max.to_string(),
    );
    check("Server", "exchanges_max", limits.exchanges_max.to_string());
    check(
        "Server",
        "head_bytes_max",
        format!("{}KiB", limits.head.head_bytes_max >> 10),
    );
    check("Server", "fields_max", limits.head.fields_max.to_string());
    let upstream = route(&resolved, "api.example.com", "api.example.com")
        .upstream
        .limits;
    check(
        "Upstream",
        "connect_timeout",
        period(upstream.connect_timeout),
    );
    check(
        "Upstream",
        "response_head_timeout",
        period(upstream.response_head_timeout),
    );
    check("Upstream", "read_timeout", period(upstream.read_timeout));
    check(
        "Upstream",
        "connections_max",
        upstream.connections_max.to_string(),
    );
    check("Upstream", "queue_max", upstream.queue_max.to_string());
    check("Upstream", "queue_timeout", period(upstream.queue_timeout));
    check("Upstream", "idle_max", upstream.idle_max.to_string());
    check("Upstream", "idle_min", upstream.idle_min.to_string());
    check("Upstream", "idle_timeout", period(upstream.idle_timeout));
    check("Upstream", "age_max", period(upstream.age_max));
    let settings = &resolved.settings;
    check("Dns", "ttl_min", period(settings.dns.ttl_floor));
    check("Dns", "ttl_max", period(settings.dns.ttl_ceiling));
    check("Dns", "stale_max", period(settings.dns.stale_max));
    check("Dns", "timeout", period(settings.dns.timeout));
    check("Log", "level", settings.log.level.as_str().to_owned());
    check(
        "Log",
        "status_interval",
        period(settings.log.status_interval),
    );
    check("Audit", "path", settings.audit.path.display().to_string());
    check(
        "Audit",
        "rotate_bytes",
        format!("{}MiB", settings.audit.rotate_bytes >> 20),
    );
    check("Audit", "keep", settings.audit.keep.to_string());
}

#[test]
fn drop_ins_are_merged() {
    let house = House::new(&DOMAINS);
    house.key("key", b"planted-0123456789abcdef");
    house.write(
        "conf.d/b.toml",
        "[[route]]\nhost = \"b.example.com\"\ncredential = \"main\"\n",
    );
    house.write(
        "conf.d/a.toml",
        "[credential.main]\nsource = \"file://KEY\"\n",
    );
    let key = house.path("key").display().to_string();
    house.write(
        "conf.d/a.toml",
        &format!("[credential.main]\nsource = \"file://{key}\"\n"),
    );
    house.write("conf.d/.hidden.toml", "nonsense");
    house.write("conf.d/notes.txt", "nonsense");
    let resolved = resolved(
        &house,
        "[[route]]\nhost = \"a.example.com\"\ncredential = \"main\"\n",
    );
    assert_eq!(resolved.snapshot.hosts().len(), 2);
    for name in [
        "claviger.toml",
        "conf.d",
        "conf.d/a.toml",
        "conf.d/b.toml",
        "key",
    ] {
        assert!(
            resolved.settings.watch_paths.contains(&house.path(name)),
            "{name} is watched"
        );
    }

    house.write(
        "conf.d/c.toml",
        "[credential.main]\nsource = \"file:///x\"\n[server]\nworkers = 1\n",
    );
    let report = house
        .resolve("[[route]]\nhost = \"a.example.com\"\ncredential = \"main\"\n")
        .expect_err("duplicates")
        .to_string();
    let place = |name: &str, line: &str| format!("{}:{line}", house.path(name).display());
    for part in [
        "error: [credential.main] is there twice".to_owned(),
        place("conf.d/a.toml", "1:13"),
        place("conf.d/c.toml", "1:13"),
        "error: [server] is there twice".to_owned(),
        place("claviger.toml", "1:2"),
        place("conf.d/c.toml", "3:2"),
    ] {
        assert!(report.contains(&part), "{part} is not in\n{report}");
    }
}

#[test]
fn a_file_that_is_not_there_or_not_toml() {
    let house = House::new(&DOMAINS);
    let report = load(&house.path("none.toml"))
        .expect_err("no file")
        .to_string();
    assert!(report.contains("none.toml: No such file"), "{report}");
    assert!(report.contains("cure: create it"), "{report}");
    let report = house.load("[[route]\n").expect_err("not TOML").to_string();
    assert!(report.contains("not TOML"), "{report}");
    house.write("conf.d/latin.toml", "");
    std::fs::write(house.path("conf.d/latin.toml"), b"x = \"\xe9\"").expect("a file");
    let report = house.load("").expect_err("not UTF-8").to_string();
    assert!(report.contains("save it as UTF-8"), "{report}");
    std::fs::remove_file(house.path("conf.d/latin.toml")).expect("the file");
    let mode = |name: &str, mode: u32| {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
        std::fs::set_permissions(house.path(name), mode).expect("a mode");
    };
    house.load("").unwrap_or_else(|report| panic!("{report}"));
    mode("conf.d", 0o777);
    let report = house.load("").expect_err("anybody's").to_string();
    assert!(
        report.contains("conf.d may be written by every user"),
        "{report}"
    );
    mode("conf.d", 0o755);
    mode("claviger.toml", 0o666);
    let report = house.load("").expect_err("anybody's").to_string();
    assert!(
        report.contains("claviger.toml may be written by every user"),
        "{report}"
    );
}

#[test]
fn presets_can_be_overridden() {
    let house = House::new(&["example.com", "googleapis.com", "github.com", "openai.com"]);
    house.key("key", b"planted-0123456789abcdef");
    let resolved = resolved(
        &house,
        r#"
[upstream.stand-in]
host = "generativelanguage.googleapis.com"
addresses = ["127.0.0.1:9443"]
[upstream."api.github.com"]
connections_max = 3
[credential.by-query]
source = "file://DIR/key"
inject = "query"
name = "key"

[[route]]
preset = "gemini"
upstream = "stand-in"
credential = "by-query"

[[route]]
name = "explicit"
preset = "gemini"
host = "proxy.example.com"
path = "/gemini"
credential = "file://DIR/key"

[[route]]
name = "explicit-youtube"
preset = "youtube"
host = "proxy.example.com"
path = "/youtube"
credential = "file://DIR/key"

[[route]]
preset = "github"
credential = "file://DIR/key"
allow_key_management = true

[[route]]
preset = "openai"
credential = "file://DIR/key"
response_head_timeout = "30s"
"#,
    );
    let gemini = route(&resolved, "generativelanguage.googleapis.com", "gemini");
    let (_, credential) = gemini.credential.as_ref().expect("a credential");
    assert_eq!(credential.injection().describe(), "?key=<hidden>");
    assert_eq!(gemini.upstream.addresses.len(), 1);
    assert_eq!(
        gemini.response_head_timeout.map(|time| time.as_secs()),
        Some(600)
    );
    assert_eq!(gemini.upstream.limits.read_timeout.as_secs(), 600);

    let explicit = route(&resolved, "proxy.example.com", "explicit");
    assert_eq!(
        &*explicit.upstream.host,
        "generativelanguage.googleapis.com"
    );
    assert_ne!(
        explicit.upstream.id, gemini.upstream.id,
        "another definition"
    );
    assert_eq!(
        explicit.upstream_path_of(b"/gemini/v1beta/models"),
        b"/v1beta/models"
    );
    let youtube = route(&resolved, "proxy.example.com", "explicit-youtube");
    assert_eq!(
        youtube.upstream_path_of(b"/youtube/videos"),
        b"/youtube/v3/videos"
    );

    let github = route(&resolved, "api.github.com", "github");
    assert!(github.refused.is_empty());
    assert_eq!(
        github.upstream.limits.connections_max, 3,
        "the section of that name"
    );
    assert!(
        !github.strip_params.contains(b"key"),
        "GitHub's own `key` stays"
    );
    assert_eq!(
        route(&resolved, "uploads.github.com", "github")
            .upstream
            .limits
            .connections_max,
        1024
    );
    let openai = route(&resolved, "api.openai.com", "openai");
    assert_eq!(
        openai.response_head_timeout.map(|time| time.as_secs()),
        Some(30)
    );
    assert!(!openai.refused.is_empty());
}

#[test]
fn a_providers_software_on_a_host_of_ones_own() {
    let house = House::new(&["example.com"]);
    house.key("key", b"planted-0123456789abcdef");
    for path in ["", "path = \"/api/v4\"\n"] {
        let text = format!(
            "[upstream.\"gitlab.example.com\"]\naddresses = [\"10.0.0.7:443\"]\n[[route]]\n\
             preset = \"gitlab\"\nhost = \"gitlab.example.com\"\nupstream = \"gitlab.example.com\"\n\
             credential = \"file://DIR/key\"\n{path}"
        );
        let resolved = resolved(&house, &text);
        let route = route(&resolved, "gitlab.example.com", "gitlab");
        assert_eq!(
            route.upstream_path_of(b"/api/v4/projects"),
            b"/api/v4/projects"
        );
        assert!(!route.covers(b"/users/sign_in"), "only the API");
        assert_eq!(&*route.upstream.host, "gitlab.example.com");
    }
}

#[test]
fn every_preset_resolves_and_guards_its_key_management() {
    let domains: Vec<String> = presets::all()
        .iter()
        .flat_map(|preset| &preset.hosts)
        .map(|host| host.name.rsplitn(3, '.').take(2).collect::<Vec<_>>())
        .map(|labels| format!("{}.{}", labels[1], labels[0]))
        .collect();
    let domains: std::collections::BTreeSet<&str> = domains.iter().map(String::as_str).collect();
    let house = House::new(&domains.into_iter().collect::<Vec<_>>());
    house.key("key", b"user:planted-0123456789abcdef");
    for preset in presets::all() {
        let hosts: std::collections::BTreeSet<&str> =
            preset.hosts.iter().map(|host| &*host.name).collect();
        let hosts: Vec<String> = hosts.iter().map(|host| format!("{host:?}")).collect();
        let everywhere = format!("host = [{}]\n", hosts.join(", "));
        for host in ["", &*everywhere] {
            let text = format!(
                "[[route]]\npreset = \"{}\"\ncredential = \"file://DIR/key\"\n{host}",
                preset.name
            );
            let resolved = house
                .resolve(&text)
                .unwrap_or_else(|report| panic!("{}: {report}", preset.name));
            assert!(
                resolved.warnings.is_empty(),
                "{}: {}",
                preset.name,
                resolved.warnings
            );
            for host in resolved.snapshot.hosts() {
                for route in host.routes() {
                    assert_eq!(&*route.upstream.host, &*host.name, "transparent");
                    assert_eq!(route.upstream_path, None);
                    let (_, credential) = route.credential.as_ref().expect("a credential");
                    if let Some(slot) = credential.injection().header_slot() {
                        assert!(
                            route.strip_fields.contains(slot.as_bytes()),
                            "{}",
                            preset.name
                        );
                    }
                    if let Some(slot) = credential.injection().query_slot() {
                        assert!(
                            route.strip_params.contains(slot.as_bytes()),
                            "{}",
                            preset.name
                        );
                    }
                }
            }
            // Each endpoint that the data names is refused, and its neighbour is not.
            for endpoint in &preset.refused_text {
                let (method, path) = endpoint.split_once(' ').expect("method and path");
                let method = if method == "*" { "GET" } else { method };
                let path = path.replace('*', "x1");
                // What lies under an exact endpoint is its neighbour.
                let (path, neighbour) = match path.strip_suffix('$') {
                    Some(path) => (path.to_owned(), format!("{path}/y1/z1")),
                    None => {
                        let stem = path.strip_suffix(".json").unwrap_or(&path);
                        (path.clone(), format!("{stem}-neighbour"))
                    }
                };
                let index = resolved
                    .snapshot
                    .hosts()
                    .iter()
                    .find(|host| {
                        host.routes()
                            .iter()
                            .any(|route| route.covers(path.as_bytes()))
                    })
                    .unwrap_or_else(|| panic!("{endpoint} is on no host"));
                let ask = |path: &str| {
                    let question = Question {
                        method: method.to_owned(),
                        url: format!("https://{}{path}", index.name),
                        from: "127.0.0.1".parse().expect("an address"),
                    };
                    explain(&resolved.snapshot, &AddressBook::default(), &question)
                        .expect("a question")
                        .outcome
                };
                match ask(&path) {
                    Outcome::Denied { reason, .. } => {
                        assert_eq!(reason, "key_management_refused", "{endpoint}")
                    }
                    allowed @ Outcome::Allowed { .. } => panic!("{endpoint}: {allowed:?}"),
                }
                assert!(
                    matches!(ask(&neighbour), Outcome::Allowed { .. }),
                    "{endpoint}"
                );
            }
        }
    }
}
