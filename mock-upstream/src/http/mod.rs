//! HTTP/1.1 as a strict server reads and writes it (RFC 9110, RFC 9112).
//!
//! The parser is this crate's own on purpose: a judge must not share the parser that it
//! judges. It is stricter than most servers (no bare LF, no leading blank line, no line
//! folding, one `Content-Length` at most), so that a client or a proxy that strays is
//! answered 400 and counted rather than understood. No I/O happens here.
//!
//! Lacking by intent: HTTP/2, content codings, transfer codings other than `chunked`.

pub mod body;
pub mod date;
pub mod head;
pub mod response;
pub mod uri;

pub use body::{BodyDecoder, BodyError, Decoded};
pub use head::{Framing, Head, HeadError, Version};
pub use response::{Response, is_field_value};
