//! [`answer`]: what an upstream answers, made from a seed: a grammar that knows the spellings which
//! parsers have disagreed about, and mutations. [`asked`]: what it answers to.

use super::super::generate::Rng;

/// The method and the version of the request of this seed.
pub fn asked(seed: u64) -> (&'static str, &'static str) {
    let mut rng = Rng::new(seed ^ 0xa5a5);
    let method = rng.one(&["GET", "GET", "GET", "POST", "HEAD", "OPTIONS"]);
    let version = rng.one(&["HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.0"]);
    (method, version)
}

/// The bytes of the answer of this seed, and whether the connection ends behind them.
pub fn answer(seed: u64) -> (Vec<u8>, bool) {
    let mut rng = Rng::new(seed);
    rng.calm = if rng.once_in(2) { 20 } else { 1 };
    let mut text = String::new();
    while rng.once_in(5) {
        text += &interim(&mut rng);
    }
    let ends_itself = final_answer(&mut rng, &mut text, asked(seed).0 == "HEAD");
    let mut bytes = super::super::bytes_of(&text);
    let mut is_mangled = false;
    while rng.odd_in(12) {
        mangle(&mut rng, &mut bytes);
        is_mangled = true;
    }
    if rng.odd_in(20) {
        bytes.extend_from_slice(rng.one(FOLLOWING).as_bytes());
    }
    // What is not known to end would be waited for.
    let ends = !ends_itself || is_mangled || rng.calm == 1 || rng.once_in(10);
    (bytes, ends)
}

fn interim(rng: &mut Rng) -> String {
    let status = rng.one(&[
        "100 Continue",
        "102 Processing",
        "103 Early Hints",
        "103",
        "199 x",
    ]);
    let mut text = format!("HTTP/1.1 {status}\r\n");
    for _ in 0..rng.below(3) {
        text += &field(rng);
    }
    if rng.odd_in(8) {
        text += rng.one(&[
            "Content-Length: 0\r\n",
            "Content-Length: 5\r\n",
            "Transfer-Encoding: chunked\r\n",
            "Connection: close\r\n",
        ]);
    }
    text + "\r\n"
}

/// Appends a final answer; whether its end is in it.
fn final_answer(rng: &mut Rng, text: &mut String, is_head: bool) -> bool {
    let version = if rng.odd_in(25) {
        rng.one(VERSIONS_ODD)
    } else if rng.once_in(12) {
        "HTTP/1.0"
    } else {
        "HTTP/1.1"
    };
    let status = if rng.odd_in(20) {
        rng.one(STATUSES_ODD)
    } else {
        rng.one(STATUSES)
    };
    let reason = rng.one(REASONS);
    *text += &format!("{version} {status}{reason}\r\n");
    let mut fields: Vec<String> = (0..rng.below(6)).map(|_| field(rng)).collect();
    let body = body(rng);
    let is_bodiless = is_head || ["204", "304"].contains(&status);
    let (framing, framed, ends) = match rng.below(6) {
        0 => (String::new(), body, false),
        1 | 2 => (format!("Content-Length: {}\r\n", body.len()), body, true),
        3 if rng.odd_in(4) => (rng.one(FRAMINGS_ODD).to_owned(), body, false),
        3 if rng.odd_in(4) => {
            let wrong = body.len() + rng.below(4);
            let wrong = wrong.saturating_sub(rng.below(4));
            (format!("Content-Length: {wrong}\r\n"), body, false)
        }
        _ => {
            let name = rng.one(&[
                "Transfer-Encoding: chunked\r\n",
                "transfer-encoding:chunked\r\n",
            ]);
            (name.to_owned(), chunks(rng, &body), version == "HTTP/1.1")
        }
    };
    if !framing.is_empty() {
        fields.insert(rng.below(fields.len() + 1), framing);
    }
    *text += &fields.concat();
    *text += "\r\n";
    if is_bodiless && !rng.odd_in(8) {
        return true;
    }
    *text += &framed;
    // A body where there is none leaves bytes behind.
    ends && !is_bodiless
}

fn field(rng: &mut Rng) -> String {
    let name = if rng.odd_in(30) {
        rng.one(NAMES_ODD)
    } else {
        rng.one(NAMES)
    };
    let value = if rng.odd_in(30) {
        rng.one(VALUES_ODD)
    } else {
        rng.one(VALUES)
    };
    let colon = if rng.odd_in(60) {
        rng.one(&[" :", "\t:", "", ":\r\n "])
    } else {
        rng.one(&[":", ": ", ":\t", ":  "])
    };
    let end = if rng.odd_in(60) {
        rng.one(&["\n", "\r", "\r\r\n", "\n\r"])
    } else {
        "\r\n"
    };
    format!("{name}{colon}{value}{end}")
}

fn body(rng: &mut Rng) -> String {
    let mut body = String::new();
    for _ in 0..rng.below(5) {
        body += rng.one(BODIES);
    }
    if rng.once_in(40) {
        body = body.repeat(300);
    }
    body
}

fn chunks(rng: &mut Rng, body: &str) -> String {
    let mut text = String::new();
    let bytes: Vec<char> = body.chars().collect();
    let mut rest = &bytes[..];
    while !rest.is_empty() {
        let (now, later) = rest.split_at(1 + rng.below(rest.len().min(40)));
        let size = match rng.below(6) {
            0 => format!("{:X}", now.len()),
            1 => format!("{:04x}", now.len()),
            _ => format!("{:x}", now.len()),
        };
        let size = if rng.odd_in(60) {
            rng.one(&[
                "+1",
                "-1",
                "0x1",
                " 1",
                "1 ",
                "",
                "ffffffffffffffff1",
                "1_0",
                "1;\n",
            ])
            .to_owned()
        } else {
            size
        };
        let extension = if rng.once_in(8) {
            rng.one(EXTENSIONS)
        } else {
            ""
        };
        let end = if rng.odd_in(60) {
            rng.one(&["\n", "", "\r", "\r\n\r\n", "XX"])
        } else {
            "\r\n"
        };
        text += &format!("{size}{extension}\r\n");
        text.extend(now);
        text += end;
        rest = later;
    }
    if rng.odd_in(30) {
        return text;
    }
    text += rng.one(&["0\r\n", "0\r\n", "000\r\n", "0;last\r\n"]);
    while rng.once_in(4) {
        text += if rng.odd_in(10) {
            rng.one(TRAILERS_ODD)
        } else {
            rng.one(TRAILERS)
        };
    }
    text + "\r\n"
}

fn mangle(rng: &mut Rng, bytes: &mut Vec<u8>) {
    if bytes.is_empty() {
        return;
    }
    let at = rng.below(bytes.len());
    match rng.below(5) {
        0 => bytes[at] ^= 1 << rng.below(8),
        1 => {
            bytes.remove(at);
        }
        2 => bytes.insert(at, b"\r\n\0 \t:;,\x0b\x7f\x85"[rng.below(11)]),
        3 => bytes.truncate(at),
        _ => {
            let to = (at + 1 + rng.below(40)).min(bytes.len());
            let again = bytes[at..to].to_vec();
            bytes.splice(at..at, again);
        }
    }
}

const STATUSES: &[&str] = &[
    "200", "200", "200", "200", "201", "203", "204", "205", "206", "226", "299", "301", "304",
    "307", "400", "401", "404", "418", "421", "426", "429", "500", "503", "599",
];

const STATUSES_ODD: &[&str] = &[
    "99", "600", "1000", "20", "2x0", "101", "0200", "-200", "+200", "", "2 00", "999", "000",
];

const REASONS: &[&str] = &[
    " OK",
    " ",
    "",
    " Not a word",
    " \u{e9}\u{85}",
    " a\tb",
    " HTTP/1.1 200 OK",
    " :",
];

const VERSIONS_ODD: &[&str] = &[
    "HTTP/1.2",
    "HTTP/2.0",
    "HTTP/2",
    "http/1.1",
    "HTTP/0.9",
    "HTTP/1.",
    "HTTP/1.10",
    "ICY",
    "HTTP",
    "HTTPS/1.1",
    " HTTP/1.1",
    "\r\nHTTP/1.1",
];

const NAMES: &[&str] = &[
    "X-A",
    "x-a",
    "X_A",
    "X.B",
    "Server",
    "Date",
    "Vary",
    "ETag",
    "Set-Cookie",
    "Location",
    "Cache-Control",
    "Content-Type",
    "Trailer",
    "Keep-Alive",
    "Connection",
    "Alt-Svc",
    "Upgrade",
    "Via",
    "WWW-Authenticate",
    "!#$%&'*+-.^_`|~09",
    "Content-Length2",
    "X-Content-Length",
    "Content-Range",
    "Content-MD5",
    "Proxy-Connection",
    "Proxy-Authenticate",
    "TE",
    "Strict-Transport-Security",
    "Content-Encoding2",
];

const NAMES_ODD: &[&str] = &[
    "X A",
    "X-A ",
    " X-A",
    "",
    "X\u{e9}",
    "X\u{0}",
    "X(",
    "X@",
    "X\"",
    "X/",
    "Content-Length ",
    "\tX",
    "X\u{b}",
    "Content_Length",
    "Transfer_Encoding",
    "Content\u{2d}Length\u{0}",
];

const VALUES: &[&str] = &[
    "a",
    "",
    "a b",
    "a,b",
    "\"q\"",
    "\"a\\\"b\"",
    "close",
    "keep-alive",
    "x-a",
    "x-a, content-length",
    "content-length",
    "transfer-encoding",
    "timeout=5, max=100",
    "\u{e9}",
    "\u{85}",
    "\u{a0}a",
    "a\tb",
    "<a>;rel=\"b\"",
    "a=b; Path=/",
    "h3=\":443\"",
    "websocket",
    "chunked",
    "0",
    "5",
    "{}|^~`\\",
    "a;b=c",
    "bytes 0-1/2",
    "text/html; charset=utf-8",
];

const VALUES_ODD: &[&str] = &[
    "a\u{0}b",
    "a\rb",
    "a\nb",
    "a\r\n b",
    "\u{1b}[2J",
    "\u{7f}",
    "a\u{b}b",
    "\u{8}",
    "a\r\nContent-Length: 1",
];

const FRAMINGS_ODD: &[&str] = &[
    "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n",
    "Transfer-Encoding: chunked\r\nContent-Length: 2\r\n",
    "Content-Length: 2\r\nContent-Length: 2\r\n",
    "Content-Length: 2\r\nContent-Length: 3\r\n",
    "Content-Length: 2, 2\r\n",
    "Content-Length: +2\r\n",
    "Content-Length: -2\r\n",
    "Content-Length: 0x2\r\n",
    "Content-Length: 2 3\r\n",
    "Content-Length: \r\n",
    "Content-Length: 18446744073709551618\r\n",
    "Content-Length: 02\r\n",
    "Content-Length : 2\r\n",
    "Transfer-Encoding: gzip, chunked\r\n",
    "Transfer-Encoding: chunked, gzip\r\n",
    "Transfer-Encoding: identity\r\n",
    "Transfer-Encoding: Chunked\r\n",
    "Transfer-Encoding: \"chunked\"\r\n",
    "Transfer-Encoding: chunked;a=b\r\n",
    "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
    "Transfer-Encoding:\u{b}chunked\r\n",
    "Transfer-Encoding : chunked\r\n",
    "Transfer-Encoding: xchunked\r\n",
];

const BODIES: &[&str] = &[
    "a",
    "hello",
    "\r\n",
    "\r\n\r\n",
    "0\r\n\r\n",
    "\u{0}",
    "\u{e9}\u{ff}",
    "{\"a\": 1}\n",
    "data: x\n\n",
    "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nbad",
    "HTTP/1.1 100 Continue\r\n\r\n",
    "5\r\nhello\r\n",
    "GET / HTTP/1.1\r\n\r\n",
];

const EXTENSIONS: &[&str] = &[
    ";a",
    ";a=b",
    ";a=\"b c\"",
    " ;a",
    ";",
    ";;",
    ";a=\"\\\"\"",
    ";a=\"\r\n",
    ";\u{e9}=1",
];

const TRAILERS: &[&str] = &[
    "X-T: 1\r\n",
    "ETag: \"a\"\r\n",
    "Content-Length: 5\r\n",
    "Transfer-Encoding: chunked\r\n",
    "Set-Cookie: a=b\r\n",
    "Connection: close\r\n",
    "Server-Timing: a;dur=1\r\n",
    "X-E:\r\n",
    "Host: a\r\n",
];

const TRAILERS_ODD: &[&str] = &[
    "X-T : 1\r\n",
    "X-T\r\n",
    " X-T: 1\r\n",
    ": a\r\n",
    "X: a\n",
    "X: a\u{0}\r\n",
];

/// Bytes behind an answer.
const FOLLOWING: &[&str] = &[
    "\r\n",
    "x",
    "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nbad",
    "HTTP/1.1 100 Continue\r\n\r\n",
    "0\r\n\r\n",
];
