//! Some APIs let a field or a parameter name the method. What that method may not
//! do, the request may not do either, whatever its own method is.

use crate::world::Expected::{By, Denied, Offered};
use crate::world::{Expected, check, tls};

#[track_caller]
fn asked(host: &'static str, line: &str, fields: &[&str], expected: Expected<'_>) {
    let line = format!("{line} HTTP/1.1");
    let host_field = format!("Host: {host}");
    let mut request = vec![&*line, &host_field];
    request.extend(fields);
    check(tls(host), &request, expected);
}

/// Ways to say that DELETE is meant: fields, and parameters.
const FIELDS: [&str; 5] = [
    "X-HTTP-Method-Override: DELETE",
    "x-http-method-override: delete",
    "X_HTTP_Method_Override:DELETE",
    "X-HTTP-Method: DELETE",
    "X-Method-Override: Delete",
];
const PARAMS: [&str; 7] = [
    "_method=DELETE",
    "_METHOD=delete",
    "a=1&_method=DELETE",
    "a=1;_method=%44ELETE",
    "%5fmethod=DELETE",
    "_m%65th%6Fd=DELETE",
    "+_method=+DELETE",
];

#[test]
fn a_method_that_the_route_does_not_serve() {
    for field in FIELDS {
        let refused = Denied(400, "ambiguous_method");
        asked("api.example.com", "POST /v3/mail", &[field], refused);
    }
    for param in PARAMS {
        let line = format!("POST /v3/mail?{param}");
        asked(
            "api.example.com",
            &line,
            &[],
            Denied(400, "ambiguous_method"),
        );
    }
    // Two fields, one of them good.
    asked(
        "api.example.com",
        "POST /v3/mail",
        &[
            "X-HTTP-Method-Override: PUT",
            "X-HTTP-Method-Override: DELETE",
        ],
        Denied(400, "ambiguous_method"),
    );
    // Another route of the same path has another key.
    asked(
        "api.example.com",
        "POST /v3/mail",
        &["X-HTTP-Method-Override: GET"],
        Denied(400, "ambiguous_method"),
    );
}

#[test]
fn a_method_of_the_same_rule_passes() {
    for fields in [
        &["X-HTTP-Method-Override: PUT"][..],
        &["X-HTTP-Method-Override: put"],
        &["X-HTTP-Method-Override: POST", "X-Method-Override: PUT"],
        &["X-Method: DELETE"],
    ] {
        asked("api.example.com", "POST /v3/mail", fields, By("mail-send"));
    }
    for query in [
        "?_method=PUT",
        "?method=DELETE",
        "?x=_method=DELETE",
        "?_methods=DELETE",
    ] {
        let line = format!("POST /v3/mail{query}");
        asked("api.example.com", &line, &[], By("mail-send"));
    }
    // A route that serves every method serves these too.
    asked("api.example.com", "POST /x", &FIELDS[..1], By("root"));
}

#[test]
fn key_management_is_not_reached_by_another_name() {
    for field in [
        "X-HTTP-Method-Override: POST",
        "X-HTTP-Method-Override: get",
    ] {
        asked(
            "keys.example.com",
            "PUT /v3/api_keys",
            &[field],
            Denied(403, "key_management_refused"),
        );
    }
    for param in ["_method=POST", "_m%65thod=GET", "%5FMETHOD=head"] {
        asked(
            "keys.example.com",
            &format!("PUT /v3/api_keys?{param}"),
            &[],
            Denied(403, "key_management_refused"),
        );
    }
    asked(
        "keys.example.com",
        "PUT /v3/api_keys",
        &["X-HTTP-Method-Override: DELETE"],
        By("keys"),
    );
}

#[test]
fn methods_that_reflect_or_tunnel_neither() {
    let every = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";
    for method in ["TRACE", "track", "Connect"] {
        asked(
            "api.example.com",
            "POST /x",
            &[&format!("X-HTTP-Method-Override: {method}")],
            Offered(405, "method_refused", every),
        );
        asked(
            "api.example.com",
            &format!("POST /x?_method={method}"),
            &[],
            Offered(405, "method_refused", every),
        );
    }
}
