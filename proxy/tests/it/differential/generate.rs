//! [`connection`]: what a caller sends on one connection, made from a seed: a grammar
//! that knows every spelling which parsers have disagreed about, and mutations.
//!
//! Among them what the literature on smuggling calls CL.TE, TE.CL, TE.TE, CL.0, 0.CL,
//! TE.0, chunk extensions and terminators, early ends, hidden requests, nominated fields.
//!
//! Methods are those that every judge knows: one that refuses `BREW` reads nothing
//! differently. Upgrades are left out, since what follows them is no HTTP.

use crate::harness::world::HOST;

/// Numbers from a seed (splitmix64).
#[derive(Debug, Clone)]
pub struct Rng {
    state: u64,
    /// How many times rarer oddities are: half of all connections are mostly valid, since
    /// what is refused shows nothing, and the others have several oddities at once.
    pub calm: usize,
}

impl Rng {
    /// The numbers of a seed.
    pub fn new(seed: u64) -> Self {
        Self {
            state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d,
            calm: 1,
        }
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Less than `bound`, which is not 0.
    pub fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).expect("it was a usize")
    }

    /// Once in `times`.
    pub fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    /// The same for what is mostly refused.
    pub fn odd_in(&mut self, times: usize) -> bool {
        self.below(times * self.calm) == 0
    }

    pub fn one<'c>(&mut self, choices: &[&'c str]) -> &'c str {
        choices[self.below(choices.len())]
    }
}

const METHODS: &[&str] = &[
    "GET", "GET", "GET", "POST", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "PROPFIND",
    "MKCOL", "PURGE", "SEARCH", "REPORT",
];

const PATH_PIECES: &[&str] = &[
    "/", "a", "B9", "%2F", "%2f", "%41", "%", "%00", "%zz", "//", ";p=1", "..", ".", "%2e", "\\",
    "|", "{}", "^", "~", "'", "\"", "<", ">", "`", "@", ":", "*", "(", ")", "!", "$", ",", "=",
    "+", "[", "]", "&", "%C3%A9", "\u{e9}",
];

const QUERY_PIECES: &[&str] = &[
    "a=1",
    "&",
    "b",
    "==",
    "%26",
    "+",
    "%20",
    "|",
    "{",
    "}",
    "^",
    "\\",
    "\"",
    "<",
    ">",
    "?",
    "/",
    "key=1",
    ";",
    "%",
    "[]",
    "'",
    "#",
    "a[b]=c",
    "@",
    ":",
    "access_token=x",
];

const VERSIONS_ODD: &[&str] = &[
    "HTTP/1.0",
    "HTTP/1.2",
    "http/1.1",
    "HTTP/2.0",
    "HTTP/1.10",
    "HTTP/01.1",
    "HTTP/1.1 ",
    "HTTP/1.1\t",
    " HTTP/1.1",
    "HTTP/1.1x",
    "HTTP/1.",
    "HTTP/0.9",
    "HTTPS/1.1",
    "",
];

const NAMES: &[&str] = &[
    "X-A",
    "x-a",
    "X_A",
    "X.B",
    "Accept",
    "accept-encoding",
    "Cookie",
    "Range",
    "If-Match",
    "Via",
    "TE",
    "Trailer",
    "Keep-Alive",
    "Proxy-Connection",
    "Authorization",
    "X-Api-Key",
    "Connection",
    "Content-Type",
    "Date",
    "User-Agent",
    "!#$%&'*+-.^_`|~09",
    "Host2",
    "Content-Length2",
    "X-Content-Length",
    "Transfer-Encoding2",
    "Expect",
    "Max-Forwards",
    "Forwarded",
    "Alt-Used",
];

const VALUES: &[&str] = &[
    "",
    "1",
    "a b",
    "a\tb",
    " a ",
    "\ta\t",
    "a,b",
    "a, b",
    ",",
    "\"q\"",
    "\"",
    "\\",
    "(c)",
    "a;b=c",
    "close",
    "keep-alive",
    "x-a",
    "content-length",
    "host",
    "transfer-encoding",
    "trailers",
    "chunked",
    "100-continue",
    "\u{e9}",
    "\u{ff}\u{80}",
    "=?utf-8?q?a?=",
    ":",
    "::",
    "a: b",
    "GET / HTTP/1.1",
    "%0d%0aX: y",
    "0",
    "Bearer k",
    "gzip;q=1.0",
];

const CODINGS: &[&str] = &[
    "chunked",
    "chunked",
    "chunked",
    "Chunked",
    "CHUNKED",
    " chunked",
    "chunked ",
    "\tchunked",
    "chunked,",
    ",chunked",
    "chunked, chunked",
    "gzip, chunked",
    "identity",
    "identity, chunked",
    "chunked, identity",
    "\"chunked\"",
    "chunked;a=1",
    "xchunked",
    "chun\tked",
    "cow",
    "",
    "x",
    "\u{b}chunked",
    "chunked\u{0}",
    "chunked\u{a0}",
    "\u{ff}chunked",
    "chunked\r\n ",
    "\r\n chunked",
    "chunked\r\nTransfer-Encoding: identity",
    "chunked\rX: y",
    "deflate",
    "trailers, chunked",
    "chunked , ",
    "'chunked'",
    "chunke",
];

const SIZES: &[&str] = &[
    "{}",
    "{}",
    "{}",
    "0{}",
    "00000000{}",
    "+{}",
    "-{}",
    "0x{}",
    " {}",
    "{} ",
    "{}\t",
    "{};",
    "{};a",
    "{};a=b",
    "{};a=\"b;c\"",
    "{}; a = b",
    "{};a=\"\r\n",
    "{}\n",
    "{}g",
    "1{}",
    "{}\u{0}",
    "{};\n",
    "{};a\rb",
    "{}\r",
    "{};a\nGET /smuggled HTTP/1.1",
    "{}\u{b}",
    "{}\u{a0}",
    "{},0",
    "{}.0",
    "0000000000000000000000{}",
    "10000000000000000{}",
    "{}_0",
    "\r\n{}",
    "{};\u{ff}",
    "{};a=\"\\\"\"",
];

/// Other spellings of the two names that frame a body.
const FRAMING_NAMES: &[&str] = &[
    "Transfer_Encoding",
    "Transfer-Encoding ",
    " Transfer-Encoding",
    "Transfer-Encoding\u{b}",
    "\u{0}Transfer-Encoding",
    "Transfer-Encoding\t",
    "transfer-encoding",
    "tRANSFER-eNCODING",
    "Transfer.Encoding",
    "X-Transfer-Encoding",
    "Transfer Encoding",
    "Content_Length",
    "Content-Length ",
    "Content-Length\u{0}",
    "content-length",
    "Content-Length\u{a0}",
    "Content Length",
    "Content-Lengthx",
    "\u{ff}Content-Length",
];

/// What `Connection` may nominate.
const NOMINATED: &[&str] = &[
    "close",
    "keep-alive",
    "content-length",
    "transfer-encoding",
    "host",
    "authorization",
    "close, content-length",
    "transfer-encoding, close",
    "x-a, te, trailer",
    "connection",
    "cdn-loop",
    "expect",
    "Content-Type, User-Agent",
    "\u{ff}",
    "a b",
    ", ,",
    "",
];

/// Requests within a body or behind one, for whoever finds its end elsewhere.
const HIDDEN: &str = "GET /hidden HTTP/1.1\r\nHost: hidden\r\nX: ";

/// Whether a request has a method that every judge knows.
pub fn is_known_method(request: &[u8]) -> bool {
    let method = request.split(|&byte| byte == b' ').next();
    method.is_some_and(|method| METHODS.iter().any(|known| known.as_bytes() == method))
}

/// The bytes of one connection: mostly one request, sometimes a few.
pub fn connection(seed: u64) -> Vec<u8> {
    let mut rng = Rng::new(seed);
    rng.calm = if rng.once_in(2) { 1 } else { 8 };
    let mut bytes = Vec::new();
    let requests = if rng.once_in(4) { 2 + rng.below(5) } else { 1 };
    for number in 0..requests {
        if rng.odd_in(24) {
            // Blank lines in front, which RFC 9112 has servers skip.
            bytes.extend(
                rng.one(&["\r\n", "\n", "\r\n\r\n", "\r", " ", "\u{0}"])
                    .bytes(),
            );
        }
        bytes.extend(request(&mut rng));
        if number + 1 == requests && rng.odd_in(12) {
            bytes.extend(HIDDEN.bytes());
        }
    }
    if rng.odd_in(3) {
        for _ in 0..=rng.below(3) {
            mutate(&mut rng, &mut bytes);
        }
    }
    bytes
}

/// Text that stands for bytes: each character is one.
fn latin(text: &str) -> Vec<u8> {
    text.chars()
        .map(|c| u8::try_from(u32::from(c)).expect("Latin-1"))
        .collect()
}

fn pieces(rng: &mut Rng, from: &[&str], most: usize) -> String {
    (0..rng.below(most + 1)).map(|_| rng.one(from)).collect()
}

fn target(rng: &mut Rng, method: &str) -> String {
    let mut target = format!("/{}", pieces(rng, PATH_PIECES, 5));
    if rng.once_in(2) {
        target.push('?');
        target.push_str(&pieces(rng, QUERY_PIECES, 6));
    }
    match rng.below(24 * rng.calm) {
        0 => format!("https://{HOST}{target}"),
        1 => format!("http://{HOST}{target}"),
        2 => format!("https://other.example.com{target}"),
        3 if method == "OPTIONS" => "*".to_owned(),
        4 => target[1..].to_owned(),
        5 => format!("{target}#f"),
        6 => format!("/{}", "a".repeat(rng.below(3000))),
        _ => target,
    }
}

fn request(rng: &mut Rng) -> Vec<u8> {
    let method = rng.one(METHODS);
    let mut fields: Vec<String> = Vec::new();
    match rng.below(40 * rng.calm) {
        0 => {}
        1 => fields.push("Host: other.example.com".to_owned()),
        2 => fields.extend([format!("Host: {HOST}"), format!("Host: {HOST}")]),
        3 => fields.push(format!("Host: {HOST}:443")),
        4 => fields.push(format!("Host: a@{HOST}")),
        5 => fields.push(format!("host:{HOST}  ")),
        6 => fields.push(format!("Host : {HOST}")),
        7 => fields.push(format!("HOST:\t{HOST}")),
        _ => fields.push(format!("Host: {HOST}")),
    }
    for _ in 0..rng.below(6) {
        let separator = rng.one(&[": ", ": ", ": ", ":", ":\t", ":  ", " : ", "\t:", ": \u{0}"]);
        let usual = separator.starts_with(':') && !separator.contains('\u{0}');
        // Odd separators are refused, and should not make everything refused.
        let separator = if usual || rng.odd_in(8) {
            separator
        } else {
            ": "
        };
        fields.push(format!("{}{separator}{}", rng.one(NAMES), rng.one(VALUES)));
    }
    if rng.once_in(6) {
        fields.push(format!("Connection: {}", rng.one(NOMINATED)));
    }
    if rng.once_in(10) {
        let expected = rng.one(&[
            "100-continue",
            "100-Continue",
            "100-continue, x",
            "x",
            "100-continue;a",
            "",
        ]);
        fields.push(format!("Expect: {expected}"));
    }
    if rng.odd_in(24) {
        // A line that is none, or one that belongs to the line before.
        fields.push(
            rng.one(&[
                ": x",
                "x",
                "\tx: y",
                " x: y",
                "x y: z",
                "\r",
                "x:\r\n y",
                "\u{e9}: x",
                "x\u{0}: y",
            ])
            .to_owned(),
        );
    }
    if rng.odd_in(16) {
        let value = rng.one(&["chunked", "identity", "0", "5", "1, 1", "x"]);
        fields.push(format!("{}: {value}", rng.one(FRAMING_NAMES)));
    }
    let body: String = (0..rng.below(40))
        .map(|_| {
            rng.one(&[
                HIDDEN,
                "a",
                "0",
                "\r\n",
                "\n",
                "\u{0}",
                "\u{ff}",
                "GET / HTTP/1.1\r\n",
                "0\r\n\r\n",
            ])
        })
        .collect();
    let mut tail = String::new();
    match rng.below(10) {
        0..=2 => {}
        3..=5 => {
            let length = body.chars().count();
            let spelled = match rng.below(20 * rng.calm) {
                0 => format!("+{length}"),
                1 => format!("0{length}"),
                2 => format!("{length}, {length}"),
                3 => format!("{length}x"),
                4 => format!("0x{length:x}"),
                5 => String::new(),
                6 => format!("{}", length + 1),
                7 => format!("{}", length.saturating_sub(1)),
                8 => "99999999999999999999".to_owned(),
                9 => format!(" {length}\t"),
                _ => length.to_string(),
            };
            let name = rng.one(&[
                "Content-Length",
                "Content-Length",
                "content-length",
                "CONTENT-LENGTH",
                "Content_Length",
                "Content-Length ",
            ]);
            fields.push(format!("{name}: {spelled}"));
            if rng.odd_in(20) {
                let other = rng.below(2 * length + 1);
                let other = rng
                    .one(&[&length.to_string(), &other.to_string(), "0"])
                    .to_owned();
                fields.push(format!("Content-Length: {other}"));
            }
            tail = body;
        }
        _ => {
            let coding = if rng.odd_in(3) {
                rng.one(CODINGS)
            } else {
                "chunked"
            };
            fields.push(format!("Transfer-Encoding: {coding}"));
            if rng.odd_in(12) {
                fields.push(format!("Content-Length: {}", body.chars().count()));
            }
            if rng.odd_in(16) {
                fields.push(format!("Transfer-Encoding: {}", rng.one(CODINGS)));
            }
            tail = chunks(rng, &body);
        }
    }
    // The order is a difference, too.
    for at in (1..fields.len()).rev() {
        fields.swap(at, rng.below(at + 1));
    }
    let version = if rng.odd_in(12) {
        rng.one(VERSIONS_ODD)
    } else {
        "HTTP/1.1"
    };
    let head = format!(
        "{method} {} {}\r\n{}\r\n\r\n{tail}",
        target(rng, method),
        version,
        fields.join("\r\n")
    );
    latin(&head)
}

fn chunks(rng: &mut Rng, body: &str) -> String {
    let mut text = String::new();
    let mut rest: Vec<char> = body.chars().collect();
    // Mostly well-formed, with one slip at most.
    let slip = rng.below(8 * rng.calm);
    while !rest.is_empty() {
        let size = 1 + rng.below(rest.len());
        let chunk: String = rest.drain(..size).collect();
        let hex = if rng.once_in(2) {
            format!("{size:x}")
        } else {
            format!("{size:X}")
        };
        let size = if slip == 0 { rng.one(SIZES) } else { "{}" };
        text.push_str(&size.replace("{}", &hex));
        text.push_str("\r\n");
        text.push_str(&chunk);
        text.push_str(if slip == 1 {
            rng.one(&[
                "\r\n", "\n", "", "\r", " \r\n", "\r\r\n", "\n\n", "xx", "\n\r", "\r\n\r\n",
            ])
        } else {
            "\r\n"
        });
    }
    text.push_str(if slip == 2 {
        rng.one(&[
            "0\r\n",
            "00\r\n",
            "0;a=b\r\n",
            "0 \r\n",
            "0\n",
            "-0\r\n",
            "0;\n",
            "0\r\r\n",
            "0x0\r\n",
            "0\r\n\r\n0\r\n",
            "",
        ])
    } else {
        "0\r\n"
    });
    if rng.once_in(4) {
        for _ in 0..=rng.below(2) {
            let name = rng.one(&[
                "X-T",
                "x-t",
                "Content-Length",
                "Host",
                "Transfer-Encoding",
                "Authorization",
                "X T",
                "Expires",
                "Connection",
                "X-T ",
                "",
            ]);
            text.push_str(&format!("{name}: {}\r\n", rng.one(VALUES)));
        }
    }
    text.push_str("\r\n");
    text
}

/// Changes a byte or a line somewhere.
fn mutate(rng: &mut Rng, bytes: &mut Vec<u8>) {
    const BYTES: &[u8] = b"\r\n\t :;,=\"\\\0\x7f\x0b\x0c\x85\xa0\xff0aG%#/?";
    if bytes.is_empty() {
        return;
    }
    let at = rng.below(bytes.len());
    let byte = BYTES[rng.below(BYTES.len())];
    match rng.below(6) {
        0 => bytes.insert(at, byte),
        1 => bytes[at] = byte,
        2 => drop(bytes.remove(at)),
        3 => bytes[at] ^= 0x20,
        // A line twice.
        4 => {
            let start = bytes[..at]
                .iter()
                .rposition(|&b| b == b'\n')
                .map_or(0, |at| at + 1);
            let end = bytes[at..]
                .iter()
                .position(|&b| b == b'\n')
                .map_or(bytes.len(), |end| at + end + 1);
            let line = bytes[start..end].to_vec();
            bytes.splice(end..end, line);
        }
        // A line's end without its first half.
        _ => {
            if let Some(found) = bytes[at..].iter().position(|&b| b == b'\r') {
                bytes.remove(at + found);
            }
        }
    }
}
