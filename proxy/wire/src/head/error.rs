//! Why a head was refused.

/// Why a head was refused. The texts never quote what was received.
///
/// For a request, [`status`](Self::status) is the answer to send before closing. For a response the
/// peer at fault is the upstream, so the caller gets 502 whatever `status` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HeadError {
    /// More than one empty line came before the request line (RFC 9112 section 2.2 asks for one).
    #[error("more than one empty line before the request line; send none")]
    LeadingBlankLines,
    /// A CR without LF or an LF without CR.
    #[error("a line does not end in CR LF; send both bytes and use neither of them elsewhere")]
    LineEnding,
    /// NUL or another control byte.
    #[error("the head contains a control byte; remove or encode it")]
    ControlByte,
    /// Not `method SP target SP version`.
    #[error("the request line is not `method target version` with single spaces")]
    RequestLine,
    /// The method is longer than any that exists.
    #[error("the method is longer than 32 bytes and not implemented here")]
    MethodTooLong,
    /// A byte that a request target may not contain.
    #[error(
        "the request target contains a raw space, `#`, control or non-ASCII byte; percent-encode it"
    )]
    TargetBytes,
    /// The target is none of the four forms of RFC 9112 section 3.2, or not one that this method may use.
    #[error(
        "the request target must be a path (`/...`), an http or https URL without user information, `*` with OPTIONS, or host:port with CONNECT"
    )]
    TargetForm,
    /// Neither HTTP/1.0 nor HTTP/1.1.
    #[error("only HTTP/1.0 and HTTP/1.1 are spoken here")]
    Version,
    /// Not `HTTP/1.x SP three digits SP reason`, or a status outside 100..=599.
    #[error("the status line is malformed")]
    StatusLine,
    /// A field name that is empty or no token, white space before the colon, or a folded line.
    #[error(
        "a field line is malformed: a name needs token characters, a colon right behind it, and no line may be folded"
    )]
    FieldName,
    /// A byte that a field value may not contain.
    #[error("a field value contains a byte that is not allowed")]
    FieldValue,
    /// The request line does not end within the bound for the whole head.
    #[error(
        "the request target is longer than the limit for a request head; shorten it or raise the limit"
    )]
    TargetTooLong,
    /// The head does not end within its bound.
    #[error("the head is larger than the limit; send fewer or shorter fields, or raise the limit")]
    HeadTooLarge,
    /// More field lines than allowed.
    #[error("the head has more fields than the limit; send fewer, or raise the limit")]
    FieldsTooMany,
    /// HTTP/1.1 without Host (RFC 9112 section 3.2).
    #[error("HTTP/1.1 needs a Host field")]
    HostMissing,
    /// More than one Host field.
    #[error("more than one Host field; send one")]
    HostRepeated,
    /// Host is no `host[:port]`.
    #[error("the Host field is not a host name or address with an optional port")]
    HostMalformed,
    /// Connection names more options than any honest peer needs.
    #[error("Connection names more than 32 options; name fewer")]
    ConnectionOptionsTooMany,
}

impl HeadError {
    /// The status that answers such a request: 400, 414, 431, 501 or 505.
    #[must_use]
    pub fn status(&self) -> u16 {
        match self {
            Self::TargetTooLong => 414,
            Self::HeadTooLarge | Self::FieldsTooMany => 431,
            Self::MethodTooLong => 501,
            Self::Version => 505,
            _ => 400,
        }
    }

    /// A stable machine-readable name, in snake_case.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::LeadingBlankLines => "leading_blank_lines",
            Self::LineEnding => "line_ending",
            Self::ControlByte => "control_byte",
            Self::RequestLine => "request_line",
            Self::MethodTooLong => "method_too_long",
            Self::TargetBytes => "target_bytes",
            Self::TargetForm => "target_form",
            Self::Version => "http_version",
            Self::StatusLine => "status_line",
            Self::FieldName => "field_name",
            Self::FieldValue => "field_value",
            Self::TargetTooLong => "target_too_long",
            Self::HeadTooLarge => "head_too_large",
            Self::FieldsTooMany => "fields_too_many",
            Self::HostMissing => "host_missing",
            Self::HostRepeated => "host_repeated",
            Self::HostMalformed => "host_malformed",
            Self::ConnectionOptionsTooMany => "connection_options_too_many",
        }
    }
}
