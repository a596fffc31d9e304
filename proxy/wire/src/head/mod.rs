//! Request and response heads: bytes that own themselves, plus the positions of their parts.
//!
//! httparse finds the parts; it is not the gate. What it accepts wrongly (bare LF, bare CR, leading
//! blank lines, odd bytes in targets) is refused here on the raw bytes, so that what passes is what
//! RFC 9112 calls a head and nothing else.
//!
//! Fields are classified once, while parsing; later questions ("is this connection kept?") are
//! answered from what was seen then. This module does not decide on framing (see
//! [`framing`](crate::framing)), does not route, and changes no byte.

mod block;
mod error;
mod field;
mod request;
mod response;

pub use error::HeadError;
pub use field::{Field, FieldId};
pub use request::{Method, RequestHead, TargetForm};
pub use response::ResponseHead;

pub(crate) use block::{LengthSeen, TransferCodingSeen, is_token};
pub(crate) use field::classify;

/// How large a head may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadLimits {
    /// Bytes from the first of the start line through the blank line. Beyond it a request is
    /// answered 431 (414 if even the request line does not end within it).
    pub head_bytes_max: usize,
    /// Field lines. Beyond it a request is answered 431. At most 256, whatever is set here.
    pub fields_max: usize,
}

impl Default for HeadLimits {
    fn default() -> Self {
        Self {
            head_bytes_max: 32 * 1024,
            fields_max: 128,
        }
    }
}

/// Bytes of a head, whatever [`HeadLimits::head_bytes_max`] says: positions are 32 bits wide. A longer one
/// is answered 431.
pub const HEAD_BYTES_CEILING: usize = u32::MAX as usize;

/// Whether a head is there yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Parse {
    /// The blank line has not arrived: append more bytes and parse again.
    Partial,
    /// The head is complete and passed every check.
    Complete,
}

/// The versions this crate speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.0: no chunks, no connection reuse unless asked for.
    Http10,
    /// HTTP/1.1.
    Http11,
}
