//! Who may use a route.

use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use policy::Identity;

use crate::world::Expected::{By, Denied};
use crate::world::{CALLER_SECRET, Connection, check, tls, token};

#[test]
fn addresses_decide() {
    for (host, path, address, allowed) in [
        ("guarded.example.com", "/", "127.0.0.1", true),
        ("guarded.example.com", "/", "::1", true),
        ("guarded.example.com", "/", "10.9.8.7", true),
        ("guarded.example.com", "/", "::ffff:192.168.1.1", true),
        ("guarded.example.com", "/", "fd00::7", true),
        ("guarded.example.com", "/", "8.8.8.8", false),
        ("guarded.example.com", "/", "::ffff:8.8.8.8", false),
        ("guarded.example.com", "/", "2606:4700::1", false),
        ("guarded.example.com", "/", "100.64.0.1", false),
        ("guarded.example.com", "/admin", "192.0.2.200", true),
        ("guarded.example.com", "/admin", "::ffff:192.0.2.200", true),
        ("guarded.example.com", "/admin", "2001:db8::9", true),
        ("guarded.example.com", "/admin", "192.0.3.1", false),
        ("guarded.example.com", "/admin", "2001:db9::9", false),
        // A rule replaces `open`: being near is not enough.
        ("guarded.example.com", "/admin", "127.0.0.1", false),
        ("guarded.example.com", "/admin", "10.0.0.1", false),
        ("anyone.example.com", "/", "8.8.8.8", true),
        ("anyone.example.com", "/", "2606:4700::1", true),
    ] {
        let expected = match (allowed, host, path) {
            (false, ..) => Denied(403, "caller_not_allowed"),
            (true, "anyone.example.com", _) => By("anyone"),
            (true, _, "/") => By("guarded-all"),
            (true, ..) => By("guarded-admin"),
        };
        check(
            tls(host).from(address),
            &[&format!("GET {path} HTTP/1.1"), &format!("Host: {host}")],
            expected,
        );
    }
}

/// Fields that claim to know the caller's address are a claim of the caller's.
#[test]
fn fields_do_not_change_the_address() {
    check(
        tls("guarded.example.com").from("8.8.8.8"),
        &[
            "GET / HTTP/1.1",
            "Host: guarded.example.com",
            "X-Forwarded-For: 127.0.0.1",
            "Forwarded: for=10.0.0.1",
            "X-Real-IP: 10.0.0.1",
        ],
        Denied(403, "caller_not_allowed"),
    );
}

const PARTNER: &str = "partner.example.com";

fn partner(address: &'static str) -> Connection {
    tls(PARTNER).from(address)
}

/// What a request with these fields is taken for: caller, proofs, version of the token; or a refusal.
#[track_caller]
fn check_partner(
    connection: Connection,
    target: &str,
    fields: &[String],
    expected: Result<(&str, &str, Option<&str>), u16>,
) {
    let line = format!("GET {target} HTTP/1.1");
    let mut lines = vec![&*line, "Host: partner.example.com"];
    lines.extend(fields.iter().map(|field| &**field));
    let route = if target.starts_with("/query") {
        "partner-query"
    } else {
        "partner"
    };
    match expected {
        Ok((caller, identified_by, version)) => {
            let written = check(connection, &lines, By(route));
            assert_eq!(
                (
                    &*written.caller,
                    written.identified_by,
                    written.token_version.as_deref()
                ),
                (caller, identified_by, version),
                "{lines:?}"
            );
        }
        Err(401) => drop(check(
            connection,
            &lines,
            Denied(401, "caller_not_authenticated"),
        )),
        Err(status) => drop(check(
            connection,
            &lines,
            Denied(status, "caller_not_allowed"),
        )),
    }
}

#[test]
fn a_token_is_found_wherever_a_key_could_stand() {
    let shown = token("edge-now");
    let basic = |pair: String| format!("Authorization: Basic {}", STANDARD.encode(pair));
    let by_token = Ok(("edge", "address+token", Some("edge-now")));
    for field in [
        format!("Claviger-Token: {shown}"),
        format!("claviger-token:\t{shown} "),
        format!("Authorization: Bearer {shown}"),
        format!("authorization: bearer  {shown}"),
        format!("Authorization: {shown}"),
        format!("X-Api-Key: {shown}"),
        format!("X_Api_Key: {shown}"),
        format!("Proxy-Authorization: Bearer {shown}"),
        basic(format!("user:{shown}")),
        basic(format!("{shown}:")),
        basic(shown.clone()),
    ] {
        check_partner(partner("203.0.113.7"), "/", &[field], by_token);
    }
    let in_query = format!("/?a=1&key={}&b=2", shown.replace('-', "%2D"));
    check_partner(partner("203.0.113.7"), &in_query, &[], by_token);
    // A parameter that stays is forwarded, so nothing in it is a proof.
    let in_kept = format!("/?token={shown}");
    check_partner(partner("203.0.113.7"), &in_kept, &[], Err(401));
    // The next one is as good, and the trail says which it was.
    let next = [format!("Claviger-Token: {}", token("edge-next"))];
    let by_next = Ok(("edge", "address+token", Some("edge-next")));
    check_partner(partner("203.0.113.7"), "/", &next, by_next);
    // A field that nobody strips is the API's, whatever it says.
    let elsewhere = [format!("X-Other: {}", CALLER_SECRET.len())];
    check_partner(partner("203.0.113.7"), "/", &elsewhere, Err(401));
    for wrong in [
        shown[1..].to_owned(),
        format!("{shown}x"),
        shown.to_uppercase(),
        String::new(),
        "x".repeat(5_000),
    ] {
        let fields = [format!("Claviger-Token: {wrong}")];
        check_partner(partner("203.0.113.7"), "/", &fields, Err(401));
    }
}

#[test]
fn every_kind_that_is_listed_is_needed() {
    static MESH: LazyLock<Identity> =
        LazyLock::new(|| Identity::new(["other.example.com", "MESH.example.com"], []));
    static WORKLOAD: LazyLock<Identity> =
        LazyLock::new(|| Identity::new([], ["spiffe://example.com/mesh"]));
    static STRANGER: LazyLock<Identity> =
        LazyLock::new(|| Identity::new(["*.example.com"], ["spiffe://example.com/mesh2"]));
    static BOTH: LazyLock<Identity> = LazyLock::new(|| Identity::new(["both.example.com"], []));
    let none: &[String] = &[];
    let shows = |version| [format!("Claviger-Token: {}", token(version))];
    let anywhere = || partner("8.8.8.8");

    // Being there is enough for some, and not for others.
    check_partner(
        partner("198.51.100.9"),
        "/",
        none,
        Ok(("address", "address", None)),
    );
    check_partner(partner("203.0.113.7"), "/", none, Err(401));
    check_partner(anywhere(), "/", &shows("edge-now"), Err(401));
    check_partner(partner("203.0.113.7"), "/", &shows("service"), Err(401));
    // `open` is not implied.
    check_partner(partner("10.0.0.7"), "/", none, Err(401));

    let mesh = Ok(("mesh", "certificate", None));
    check_partner(anywhere().with(&MESH), "/", none, mesh);
    check_partner(anywhere().with(&WORKLOAD), "/", none, mesh);
    check_partner(anywhere().with(&STRANGER), "/", none, Err(401));

    let both = Ok(("both", "token+certificate", Some("both")));
    check_partner(anywhere().with(&BOTH), "/", &shows("both"), both);
    check_partner(anywhere().with(&BOTH), "/", none, Err(401));
    check_partner(anywhere(), "/", &shows("both"), Err(401));

    check_partner(
        partner("192.0.2.7"),
        "/",
        none,
        Ok(("either", "address", None)),
    );
    check_partner(
        anywhere(),
        "/",
        &shows("either"),
        Ok(("either", "token", Some("either"))),
    );
    let all = Ok(("either", "address+token", Some("either")));
    check_partner(partner("192.0.2.7"), "/", &shows("either"), all);
}

#[test]
fn who_is_denied_stays_so() {
    let fields = [format!("Claviger-Token: {}", token("edge-now"))];
    check_partner(partner("203.0.113.66"), "/", &fields, Err(403));
    check_partner(partner("::ffff:203.0.113.66"), "/", &fields, Err(403));
    let by_token = Ok(("edge", "address+token", Some("edge-now")));
    check_partner(partner("203.0.113.67"), "/", &fields, by_token);
}

/// The token stands where the key goes, and the key takes its place.
#[test]
fn a_placeholder_may_be_the_proof() {
    let target = format!("/query?key={}", token("service"));
    check_partner(
        partner("8.8.8.8"),
        &target,
        &[],
        Ok(("service", "token", Some("service"))),
    );
    check_partner(partner("8.8.8.8"), "/query?key=placeholder", &[], Err(401));
}
