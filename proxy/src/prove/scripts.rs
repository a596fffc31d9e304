//! What the proof's APIs do, and what its callers do, as data.

use super::api::{Asked, End, Pieces, Script};

const fn script(
    name: &'static str,
    text: &'static str,
    pieces: Pieces,
    end: End,
    asked: Asked,
) -> Script {
    Script {
        name,
        text,
        pieces,
        end,
        asked,
    }
}

/// Answers that echo the key, in each place of an answer.
pub const ECHOES: &[Script] = &[
    script(
        "in a field",
        "HTTP/1.1 200 OK\r\nX-Echo: {form}\r\nContent-Length: 0\r\n\r\n",
        Pieces::Whole,
        End::Stay,
        Asked::Plainly,
    ),
    script(
        "in a redirect",
        "HTTP/1.1 302 Found\r\nLocation: https://example.com/?k={form}\r\nContent-Length: 0\r\n\r\n",
        Pieces::Whole,
        End::Stay,
        Asked::Plainly,
    ),
    script(
        "in a cookie",
        "HTTP/1.1 200 OK\r\nSet-Cookie: k={form}; Path=/\r\nContent-Length: 0\r\n\r\n",
        Pieces::Whole,
        End::Stay,
        Asked::Plainly,
    ),
    script(
        "in a 401",
        "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Bearer error=\"{form}\"\r\nContent-Length: 0\r\n\r\n",
        Pieces::Whole,
        End::Stay,
        Asked::Plainly,
    ),
    script(
        "in an interim answer",
        "HTTP/1.1 103 Early Hints\r\nLink: <{form}>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        Pieces::Whole,
        End::Stay,
        Asked::Plainly,
    ),
    script(
        "in the reason phrase",
        "HTTP/1.1 403 Not with {form}\r\nContent-Length: 0\r\n\r\n",
        Pieces::Whole,
        End::Stay,
        Asked::Plainly,
    ),
    script(
        "in a body",
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{\"before\":1,\"you_sent\":\"{form}\",\"after\":\"100%\"}",
        Pieces::Sized,
        End::Stay,
        Asked::Plainly,
    ),
    script(
        "in a body that ends with the connection",
        "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nyou sent {form}, twice: {form}\n",
        Pieces::Halves,
        End::Close,
        Asked::Plainly,
    ),
    script(
        "in two chunks",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nyou sent {form}!",
        Pieces::TwoChunks,
        End::Stay,
        Asked::Plainly,
    ),
    script(
        "in chunks of a byte",
        "HTTP/1.1 500 Internal Server Error\r\nTransfer-Encoding: chunked\r\n\r\n{\"error\":\"{form}\"}",
        Pieces::ByteChunks,
        End::Stay,
        Asked::Plainly,
    ),
    script(
        "in an event",
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\ndata: 1\n\ndata: {form}\n\ndata: [DONE]\n\n",
        Pieces::TwoChunks,
        End::Stay,
        Asked::Plainly,
    ),
    script(
        "in a trailer",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Echo\r\n\r\nnothing here<last>0\r\nX-Echo: {form}\r\n\r\n",
        Pieces::TwoChunks,
        End::Stay,
        Asked::Plainly,
    ),
    script(
        "in a gzip body",
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Encoding: gzip\r\n\r\n{\"you_sent\":\"{form}\"}",
        Pieces::Sized,
        End::Stay,
        Asked::Plainly,
    ),
    script(
        "in gzip, in chunks of a byte",
        "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\nyou sent {form}, twice: {form}",
        Pieces::ByteChunks,
        End::Stay,
        Asked::Plainly,
    ),
    script(
        "in a deflate body",
        "HTTP/1.1 200 OK\r\nContent-Encoding: deflate\r\n\r\nyou sent {form}!",
        Pieces::Sized,
        End::Stay,
        Asked::Plainly,
    ),
    script(
        "in a br body",
        "HTTP/1.1 200 OK\r\nContent-Encoding: br\r\n\r\nyou sent {form}!",
        Pieces::Sized,
        End::Stay,
        Asked::Plainly,
    ),
    script(
        "in WebSocket messages",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n{\"you_sent\":\"{form}\"}",
        Pieces::Frames,
        End::Close,
        Asked::WebSocket,
    ),
];

/// An echo that is cut in the middle, while the key is exchanged for another.
pub const ROTATED: Script = script(
    "cut by a rotation",
    "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nyou sent {form}, twice: {form}\n",
    Pieces::Halves,
    End::Gate,
    Asked::Plainly,
);

/// An echo of the key that was in its place before the rotation: its provider may
/// honour it still.
pub const EARLIER: Script = script(
    "an earlier key",
    "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nX-Echo: {earlier}\r\n\r\n{\"you_sent\":\"{earlier}\"}",
    Pieces::Sized,
    End::Stay,
    Asked::Plainly,
);

/// Bodies that cannot be looked into, with the key in them for all to see. A route that
/// is told to pass such bodies on is not driven with them.
pub const UNINSPECTED: &[Script] = &[
    script(
        "a coding that is not known",
        "HTTP/1.1 200 OK\r\nContent-Encoding: compress\r\n\r\nyou sent {key}!",
        Pieces::Sized,
        End::Stay,
        Asked::Plainly,
    ),
    fault(
        "a coding that lies",
        "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nConnection: close\r\n\r\nyou sent {key}!",
    ),
    fault(
        "a part of a coded body",
        "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 9-58/59\r\nContent-Encoding: br\r\nConnection: close\r\n\r\nt {key}",
    ),
];

/// Answers that are faulty, with the key in the fault.
pub const FAULTS: &[Script] = &[
    fault("a status line", "HTTP/1.1 {key}\r\n\r\n"),
    fault("a version", "HTTP/{key} 200 OK\r\n\r\n"),
    fault("no HTTP", "{key}\r\n\r\n"),
    fault(
        "a field without a colon",
        "HTTP/1.1 200 OK\r\n{key}\r\n\r\n",
    ),
    fault(
        "a field's name",
        "HTTP/1.1 200 OK\r\n{key}: 1\r\nContent-Length: 0\r\n\r\n",
    ),
    fault(
        "a NUL",
        "HTTP/1.1 200 OK\r\nX: {key}\0\r\nContent-Length: 0\r\n\r\n",
    ),
    fault(
        "a length and chunks",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\nX: {key}\r\n\r\n0\r\n\r\n",
    ),
    fault(
        "two lengths",
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 48\r\nX: {key}\r\n\r\n{key}",
    ),
    fault(
        "a length",
        "HTTP/1.1 200 OK\r\nContent-Length: {key}\r\n\r\n{key}",
    ),
    fault(
        "a chunk's size",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{key}\r\n{key}\r\n0\r\n\r\n",
    ),
    fault(
        "a chunk's extension",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;a=\"{key}\"\r\nhello\r\n0\r\n\r\n",
    ),
    fault(
        "a chunk without its end",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello{key}\r\n0\r\n\r\n",
    ),
    fault("a head too long", "HTTP/1.1 200 OK\r\nX: {many}\r\n\r\n"),
    fault(
        "too many interim answers",
        "{flood}HTTP/1.1 200 OK\r\nX: {key}\r\nContent-Length: 0\r\n\r\n",
    ),
    fault(
        "a body cut short",
        "HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n{key}{key}",
    ),
    script(
        "a chunk cut by a reset",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n100\r\n{key}",
        Pieces::Whole,
        End::Reset,
        Asked::Plainly,
    ),
    fault("half a head", "HTTP/1.1 200 OK\r\nX: {key}"),
    fault("nothing", ""),
    script("a reset", "", Pieces::Whole, End::Reset, Asked::Plainly),
    script(
        "an answer behind the answer",
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nHTTP/1.1 200 OK\r\nX: {key}\r\nContent-Length: 0\r\n\r\n",
        Pieces::Whole,
        End::Stay,
        Asked::Plainly,
    ),
    fault(
        "a 101 that nobody asked for",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n{key}",
    ),
    script(
        "an upgrade refused",
        "HTTP/1.1 426 Upgrade Required\r\nContent-Type: text/plain\r\n\r\nnot with {key}",
        Pieces::Sized,
        End::Stay,
        Asked::WebSocket,
    ),
    script(
        "no WebSocket frames",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n{key}{key}",
        Pieces::Whole,
        End::Close,
        Asked::WebSocket,
    ),
    silence("no answer in time", ""),
    silence(
        "half a head, and no more in time",
        "HTTP/1.1 200 OK\r\nX: {key}\r\n",
    ),
    silence(
        "half a body, and no more in time",
        "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nyou sent {key}",
    ),
];

const fn fault(name: &'static str, text: &'static str) -> Script {
    script(name, text, Pieces::Whole, End::Close, Asked::Plainly)
}

const fn silence(name: &'static str, text: &'static str) -> Script {
    script(name, text, Pieces::Whole, End::Wait, Asked::Plainly)
}

/// How a caller's request is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// As it is, through the route's listener.
    Plainly,
    /// Under a server name that nobody serves.
    UnknownName,
    /// Without the TLS that the listener wants, or with bytes that are none.
    Raw,
    /// As it is, and then the caller goes away.
    AndGone,
    /// As it is, and then nothing until Claviger has had enough.
    AndSilence,
}

/// Requests that are refused, or cut; in those that may be passed on, the caller's
/// key is where a key belongs, and so it is removed. `{host}` and `{path}` are a route's own,
/// `{secret}` is what the caller has for a key, `{many}` is that many times over,
/// `{fields}` are too many fields with it.
pub const REQUESTS: &[(&str, Sent, &str)] = &[
    (
        "two hosts",
        Sent::Plainly,
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nHost: {secret}\r\n\r\n",
    ),
    (
        "another host",
        Sent::Plainly,
        "GET {path} HTTP/1.1\r\nHost: elsewhere.example.net\r\nAuthorization: Bearer {secret}\r\n\r\n",
    ),
    (
        "another absolute host",
        Sent::Plainly,
        "GET https://elsewhere.example.net/?k={secret} HTTP/1.1\r\nHost: {host}\r\n\r\n",
    ),
    (
        "a password in the target",
        Sent::Plainly,
        "GET https://a:{secret}@{host}/ HTTP/1.1\r\nHost: {host}\r\n\r\n",
    ),
    (
        "no host",
        Sent::Plainly,
        "GET {path} HTTP/1.1\r\nAuthorization: Bearer {secret}\r\n\r\n",
    ),
    (
        "a version",
        Sent::Plainly,
        "GET {path} HTTP/9.9\r\nHost: {host}\r\nX: {secret}\r\n\r\n",
    ),
    (
        "a target without a slash",
        Sent::Plainly,
        "GET no-slash HTTP/1.1\r\nHost: {host}\r\nX-API-Key: {secret}\r\n\r\n",
    ),
    (
        "a space in the target",
        Sent::Plainly,
        "GET {path}?a b={secret} HTTP/1.1\r\nHost: {host}\r\n\r\n",
    ),
    (
        "a bare line feed",
        Sent::Plainly,
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nX-API-Key: {secret}\n\r\n",
    ),
    (
        "a field without a colon",
        Sent::Plainly,
        "GET {path} HTTP/1.1\r\nHost: {host}\r\n{secret}\r\n\r\n",
    ),
    (
        "a space before a colon",
        Sent::Plainly,
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization : {secret}\r\n\r\n",
    ),
    (
        "a folded field",
        Sent::Plainly,
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nX: 1\r\n {secret}\r\n\r\n",
    ),
    (
        "a NUL",
        Sent::Plainly,
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nX: {secret}\0\r\n\r\n",
    ),
    (
        "a method",
        Sent::Plainly,
        "{secret} {path} HTTP/1.1\r\nHost: {host}\r\n\r\n",
    ),
    (
        "TRACE",
        Sent::Plainly,
        "TRACE {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {secret}\r\n\r\n",
    ),
    (
        "CONNECT",
        Sent::Plainly,
        "CONNECT {host}:443 HTTP/1.1\r\nHost: {host}\r\nProxy-Authorization: Basic {secret}\r\n\r\n",
    ),
    (
        "a length and chunks",
        Sent::Plainly,
        "POST {path} HTTP/1.1\r\nHost: {host}\r\nX: {secret}\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    (
        "two lengths",
        Sent::Plainly,
        "POST {path} HTTP/1.1\r\nHost: {host}\r\nX: {secret}\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    ),
    (
        "a length that is none",
        Sent::Plainly,
        "POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {secret}\r\n\r\n",
    ),
    (
        "a coding that is none",
        Sent::Plainly,
        "POST {path} HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: {secret}\r\n\r\n",
    ),
    (
        "a chunk's size that is none",
        Sent::Plainly,
        "POST {path} HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n{secret}\r\n",
    ),
    (
        "a head too long",
        Sent::Plainly,
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nX: {many}\r\n\r\n",
    ),
    (
        "a target too long",
        Sent::Plainly,
        "GET {path}?{many} HTTP/1.1\r\nHost: {host}\r\n\r\n",
    ),
    (
        "too many fields",
        Sent::Plainly,
        "GET {path} HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n",
    ),
    (
        "an ambiguous path",
        Sent::Plainly,
        "GET /%2e%2e%2f..;/..%5c{path} HTTP/1.1\r\nHost: {host}\r\nX-Api-Key: {secret}\r\n\r\n",
    ),
    (
        "a hidden method",
        Sent::Plainly,
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nX-HTTP-Method-Override: TRACE\r\nX-Api-Key: {secret}\r\nConnection: close\r\n\r\n",
    ),
    (
        "an expectation",
        Sent::Plainly,
        "POST {path} HTTP/1.1\r\nHost: {host}\r\nExpect: something\r\nAuthorization: Bearer {secret}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
    ),
    (
        "HTTP/2",
        Sent::Plainly,
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n{secret}",
    ),
    ("HTTP/0.9", Sent::Plainly, "GET /?k={secret}\r\n\r\n"),
    (
        "an endpoint that makes keys",
        Sent::Plainly,
        "POST /v3/api_keys HTTP/1.1\r\nHost: {host}\r\nX-Api-Key: {secret}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
    ),
    (
        "no such name",
        Sent::UnknownName,
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nX: {secret}\r\n\r\n",
    ),
    (
        "no TLS",
        Sent::Raw,
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {secret}\r\n\r\n",
    ),
    (
        "half a head, and gone",
        Sent::AndGone,
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {secret}",
    ),
    (
        "half a body, and gone",
        Sent::AndGone,
        "POST {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {secret}\r\nContent-Length: 100\r\n\r\nhalf",
    ),
    (
        "half a head, and silence",
        Sent::AndSilence,
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {secret}",
    ),
];
