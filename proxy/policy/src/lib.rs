//! `policy` decides. It never waits.
//!
//! Who may do what, which key belongs to which upstream, and what the audit
//! trail says of it. Everything here is a pure function of its arguments: time
//! is passed in, and there is no I/O, no clock and no randomness.
//!
//! The crate's promise is carried by its types. A request's head becomes
//! something that can be sent only through a [`Permit`], a `Permit` comes only
//! from [`Snapshot::authorize`], and the bytes of a [`Secret`] are readable in
//! this crate alone. A code path that forgets the check does not compile.
//!
//! Deliberately missing: serde. The configuration file and the admin interface
//! have types of their own, so that a new field here can leak nowhere.

#![forbid(unsafe_code)]

pub mod access;
pub mod audit;
pub mod credential;
pub mod edge;
pub mod fingerprint;
pub mod forwarding;
pub mod proof;
pub mod route;
pub mod searches;
pub mod secret;
pub mod snapshot;
pub mod upstream;
pub mod verdict;

pub use access::{Admitted, Caller, Callers, CertificateName, NamedCaller, Require};
pub use credential::{Credential, Injection};
pub use edge::Told;
pub use fingerprint::Fingerprint;
pub use forwarding::{Forwarding, ForwardingField};
pub use proof::{Identity, Token};
pub use route::{Endpoint, OnEcho, OnUninspected, Route};
pub use secret::Secret;
pub use snapshot::{ACME_TLS_ALPN, Listener, ServerLimits, Snapshot, UnknownSni, VirtualHost};
pub use upstream::{AddressBook, Upstream, UpstreamId};
pub use verdict::{Denial, Outbound, Permit, Refuser, Verdict};
