//! Who may use a route.

use crate::world::Expected::{By, Denied};
use crate::world::{check, tls};

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
