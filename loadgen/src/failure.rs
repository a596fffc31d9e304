//! Why a request has no good answer.

use std::io;

/// One failed request. It is counted by its kind; the detail is kept for the first few only.
#[derive(Clone, Debug)]
pub struct Failure {
    /// What it counts as.
    pub kind: Kind,
    /// A sentence for people. It never quotes a body or a header value.
    pub detail: String,
}

/// The classes of failure, from the way in to the last byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// No TCP connection.
    Connect,
    /// No TLS session, or a record or alert that ended it.
    Tls,
    /// No complete answer in time, counted from when the request was due.
    Timeout,
    /// The connection ended before a byte of the answer, or was reset.
    Reset,
    /// The answer broke off.
    Truncated,
    /// The answer breaks HTTP/1.1, or bytes came that no request asked for.
    Protocol,
    /// The answer's status is not among the expected ones.
    BadStatus,
    /// The answer's body is not the expected one.
    WrongBody,
    /// Due within the run, but no connection was free for it before the run ended.
    Unsent,
}

impl Kind {
    /// All kinds, in the order of reports.
    pub const ALL: [Self; 9] = [
        Self::Connect,
        Self::Tls,
        Self::Timeout,
        Self::Reset,
        Self::Truncated,
        Self::Protocol,
        Self::BadStatus,
        Self::WrongBody,
        Self::Unsent,
    ];

    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Tls => "tls",
            Self::Timeout => "timeout",
            Self::Reset => "reset",
            Self::Truncated => "truncated",
            Self::Protocol => "protocol",
            Self::BadStatus => "bad_status",
            Self::WrongBody => "wrong_body",
            Self::Unsent => "unsent",
        }
    }
}

impl Failure {
    /// A failure with its sentence.
    pub fn new(kind: Kind, detail: impl Into<String>) -> Self {
        Self {
            kind,
            detail: detail.into(),
        }
    }

    /// A failure that the operating system reported.
    pub fn io(kind: Kind, error: &io::Error) -> Self {
        Self::new(kind, error.to_string())
    }
}
