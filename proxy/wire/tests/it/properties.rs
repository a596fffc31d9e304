//! Generated heads and bodies: what comes out differs from what went in exactly as intended.
//!
//! The model of what is intended is in the fuzz targets' bodies; here the inputs are mostly valid,
//! which random bytes seldom are.

use crate::bodies;
use crate::rng::Rng;

const ROUNDS: usize = 4000;

const METHODS: &[&str] = &["GET", "POST", "PUT", "OPTIONS", "HEAD", "PATCH", "FOO"];
const PATHS: &[&str] = &[
    "/",
    "/v1/models",
    "/proxy/gemini/v1",
    "//x",
    "/a%2e/b;c",
    "http://a.example",
    "https://a.example:443/p",
    "*",
];
const PARAMS: &[&str] = &[
    "a=1",
    "key=no",
    "k%65y=no",
    "KEY",
    "access_token=x",
    "",
    "b",
    "c=key=1",
    "+key=2",
    "x={|}",
    "%6bey=%00",
    "=",
    "key%3D=1",
];
const NAMES: &[&str] = &[
    "Accept",
    "Authorization",
    "AUTHORIZATION",
    "X-Api-Key",
    "X_API_KEY",
    "Connection",
    "Keep-Alive",
    "TE",
    "Trailer",
    "Upgrade",
    "Expect",
    "Cookie",
    "CDN-Loop",
    "cdn_loop",
    "Content-Type",
    "Transfer_Encoding",
    "Content_Length",
    "Claviger-Id",
    "claviger_x",
    "Claviger",
    "Proxy-Authorization",
    "Proxy-Connection",
    "HTTP2-Settings",
    "X-Drop",
    "x-drop",
    "Alt-Svc",
    "Date",
    "Set-Cookie",
    "Location",
    "Te",
    "Forwarded",
];
const VALUES: &[&str] = &[
    "1",
    "",
    "a, b",
    "close",
    "keep-alive, X-Drop",
    "upgrade",
    "websocket",
    "100-continue",
    "x-drop, host, cdn-loop, authorization",
    "the-real-key",
    "/x?key=the-real-key&y",
    "\u{fc}",
    "a\tb",
    "trailers",
    "cookie",
];
const FRAMINGS: &[&str] = &[
    "",
    "",
    "Content-Length: 5\r\n",
    "Transfer-Encoding: chunked\r\n",
    "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
    "Content-Length: x\r\n",
    "Content-Length: 1\r\nContent-Length: 1\r\n",
    "Transfer-Encoding: gzip\r\n",
];

fn fields(rng: &mut Rng) -> String {
    let mut fields = String::new();
    for _ in 0..rng.below(14) {
        let space = rng.pick(&["", " ", "\t", "  "]);
        let behind = rng.pick(&["", "", " ", " \t"]);
        fields += &format!(
            "{}:{space}{}{behind}\r\n",
            rng.pick(NAMES),
            rng.pick(VALUES)
        );
        if rng.below(12) == 0 {
            fields += rng.pick(FRAMINGS);
        }
    }
    fields += rng.pick(FRAMINGS);
    fields
}

fn request(rng: &mut Rng) -> String {
    let mut target = rng.pick(PATHS).to_owned();
    if rng.below(3) > 0 && target != "*" {
        target += "?";
        for n in 0..rng.below(6) {
            if n > 0 {
                target += rng.pick(&["&", "&", ";"]);
            }
            target += rng.pick(PARAMS);
        }
    }
    let version = rng.pick(&["1.1", "1.1", "1.1", "1.0"]);
    let host = rng.pick(&[
        "Host: a.example\r\n",
        "Host: a.example\r\n",
        "host:[::1]:80\r\n",
        "",
    ]);
    format!(
        "{} {target} HTTP/{version}\r\n{host}{}\r\n",
        rng.pick(METHODS),
        fields(rng)
    )
}

fn response(rng: &mut Rng) -> String {
    let line = rng.pick(&[
        "HTTP/1.1 200 OK",
        "HTTP/1.0 200 OK",
        "HTTP/1.1 304",
        "HTTP/1.1 204 ",
        "HTTP/1.1 101 the-real-key",
    ]);
    format!("{line}\r\n{}\r\n", fields(rng))
}

#[test]
fn edited_heads_differ_only_as_intended() {
    let mut rng = Rng::from_env("edited heads");
    for _ in 0..ROUNDS {
        let head = if rng.below(2) == 0 {
            request(&mut rng)
        } else {
            response(&mut rng)
        };
        println!("{head:?}");
        let mut data = vec![rng.next() as u8, rng.below(20) as u8];
        data.extend_from_slice(head.as_bytes());
        bodies::rewrite(&data);
        bodies::framing(head.as_bytes());
    }
}

#[test]
fn heads_read_the_same_at_every_split() {
    let mut rng = Rng::from_env("split heads");
    for _ in 0..100 {
        let mut head = if rng.below(2) == 0 {
            request(&mut rng)
        } else {
            response(&mut rng)
        };
        head += rng.pick(&["", "body", "\r\n", "GET / HTTP/1.1\r\n"]);
        println!("{head:?}");
        for cut in 0..=head.len().min(255) {
            let mut data = vec![cut as u8];
            data.extend_from_slice(head.as_bytes());
            bodies::head(&data);
        }
    }
}

#[test]
fn chunked_bodies_read_the_same_at_every_split() {
    let mut rng = Rng::from_env("split bodies");
    for _ in 0..100 {
        let mut body = Vec::new();
        for _ in 0..rng.below(5) {
            let len = 1 + rng.below(20);
            body.extend_from_slice(
                format!("{len:x}{}\r\n", rng.pick(&["", "", ";a", " ;b=c"])).as_bytes(),
            );
            body.extend((0..len).map(|_| rng.next() as u8));
            body.extend_from_slice(b"\r\n");
        }
        body.extend_from_slice(b"0\r\n");
        for _ in 0..rng.below(4) {
            body.extend_from_slice(
                format!("{}: {}\r\n", rng.pick(NAMES), rng.pick(VALUES)).as_bytes(),
            );
        }
        body.extend_from_slice(b"\r\nbehind");
        if rng.below(4) == 0 {
            let at = rng.below(body.len());
            body[at] = rng.next() as u8;
        }
        println!("{:?}", String::from_utf8_lossy(&body));
        for cut in 0..=body.len().min(255) {
            bodies::chunked(&[&[cut as u8], &body[..]].concat());
        }
    }
}
