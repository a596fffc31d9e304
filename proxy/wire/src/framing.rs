//! Where a message's body ends (RFC 9112 section 6.3), or that nobody can tell.
//!
//! A proxy that guesses here guesses differently from the upstream, so every ambiguity is refused,
//! also the ones that the RFC lets a recipient mend.

use crate::head::{LengthSeen, Method, RequestHead, ResponseHead, TransferCodingSeen, Version};

/// How a message's body is delimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyFraming {
    /// There is no body.
    None,
    /// So many bytes.
    Length(u64),
    /// The chunked transfer coding.
    Chunked,
    /// Everything until the connection closes. Responses only.
    UntilClose,
}

/// Why a message's framing was refused: most of these are attempts at request smuggling.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FramingError {
    /// Content-Length beside Transfer-Encoding.
    #[error("both Content-Length and Transfer-Encoding are present; send one of them")]
    LengthAndTransferCoding,
    /// More than one Content-Length, equal or not.
    #[error("Content-Length is repeated; send it once")]
    LengthRepeated,
    /// Content-Length is no plain decimal number below 2^63.
    #[error("Content-Length is not a plain decimal number; send one number without sign or list")]
    LengthMalformed,
    /// Transfer-Encoding is not exactly one `chunked`.
    #[error("Transfer-Encoding must be exactly `chunked`, once")]
    TransferCodingUnknown,
    /// Transfer-Encoding in an HTTP/1.0 message.
    #[error("HTTP/1.0 has no Transfer-Encoding; send Content-Length or use HTTP/1.1")]
    TransferCodingInHttp10,
}

impl FramingError {
    /// The status that answers such a request: 400 or 501. For a response the caller gets 502.
    #[must_use]
    pub fn status(&self) -> u16 {
        match self {
            Self::TransferCodingUnknown => 501,
            _ => 400,
        }
    }

    /// A stable machine-readable name, in snake_case.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::LengthAndTransferCoding => "length_and_transfer_encoding",
            Self::LengthRepeated => "content_length_repeated",
            Self::LengthMalformed => "content_length_malformed",
            Self::TransferCodingUnknown => "transfer_encoding_unknown",
            Self::TransferCodingInHttp10 => "transfer_encoding_in_http10",
        }
    }
}

/// A request's framing. Never [`BodyFraming::UntilClose`].
///
/// # Errors
/// Every ambiguity of RFC 9112 section 6.3; a repeated Content-Length even if all are equal.
pub fn of_request(head: &RequestHead) -> Result<BodyFraming, FramingError> {
    stated(
        head.length_seen(),
        head.transfer_coding_seen(),
        head.version(),
    )
    .map(|framing| framing.unwrap_or(BodyFraming::None))
}

/// A response's framing. What the fields say is checked even where the status or the request's
/// method means that there is no body.
///
/// # Errors
/// As [`of_request`].
pub fn of_response(
    head: &ResponseHead,
    request_method: Method,
) -> Result<BodyFraming, FramingError> {
    let stated = stated(
        head.length_seen(),
        head.transfer_coding_seen(),
        head.version(),
    )?;
    let bodiless = request_method == Method::Head || matches!(head.status(), 100..=199 | 204 | 304);
    if bodiless {
        return Ok(BodyFraming::None);
    }
    Ok(stated.unwrap_or(BodyFraming::UntilClose))
}

/// Whether an informational response says that it has a body, or may mean that. It has none
/// (RFC 9110, section 15.2) and says nothing about one (8.6; RFC 9112, section 6.1); whoever believed
/// it would take the next response for that body. `Content-Length: 0` is let pass: it claims nothing.
#[must_use]
pub fn informational_claims_body(head: &ResponseHead) -> bool {
    let stated = stated(
        head.length_seen(),
        head.transfer_coding_seen(),
        head.version(),
    );
    !matches!(stated, Ok(None | Some(BodyFraming::Length(0))))
}

fn stated(
    length: LengthSeen,
    coding: TransferCodingSeen,
    version: Version,
) -> Result<Option<BodyFraming>, FramingError> {
    match (length, coding) {
        (LengthSeen::Absent, TransferCodingSeen::Absent) => Ok(None),
        (LengthSeen::One(length), TransferCodingSeen::Absent) => {
            Ok(Some(BodyFraming::Length(length)))
        }
        (LengthSeen::Repeated, TransferCodingSeen::Absent) => Err(FramingError::LengthRepeated),
        (LengthSeen::Malformed, TransferCodingSeen::Absent) => Err(FramingError::LengthMalformed),
        (LengthSeen::Absent, _) if version == Version::Http10 => {
            Err(FramingError::TransferCodingInHttp10)
        }
        (LengthSeen::Absent, TransferCodingSeen::Chunked) => Ok(Some(BodyFraming::Chunked)),
        (LengthSeen::Absent, TransferCodingSeen::Other) => Err(FramingError::TransferCodingUnknown),
        // RFC 9112, 6.3: a length beside a transfer coding may be request smuggling.
        (_, _) => Err(FramingError::LengthAndTransferCoding),
    }
}
