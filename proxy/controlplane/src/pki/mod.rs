//! Certificates and keys: who we are to callers, and whom we believe upstream.
//!
//! [`authority`] makes and keeps the internal certificate authority (a root limited to the domains
//! that the operator named, and an intermediate limited to the hosts that are configured).
//! [`leaf`] makes server certificates from it in memory. [`tls`] turns certificates and trust
//! anchors into the `rustls` configurations that the workers use, and [`verify`] refuses an
//! upstream that turns out to be this proxy itself.
//!
//! Everything here runs at start-up, at a reload or from the command line. It reads and writes
//! files with blocking calls, so an async caller wraps it in `spawn_blocking`. It reads no clock:
//! time is an argument. (`rustls` reads the clock itself during handshakes, for certificate
//! validity and for rotating ticket keys.)
//!
//! [`acme`] obtains certificates of a public authority while Claviger serves, on a thread of its own.
//!
//! It lacks on purpose: client certificates signed by our own authority
//! (its certificates carry `serverAuth` alone), and IP addresses as names (the root excludes them).

pub mod acme;
pub mod authority;
mod error;
pub mod expiry;
pub mod export;
pub mod leaf;
mod name;
pub mod rollover;
mod sealed;
mod store;
pub mod tls;
pub mod verify;
mod x509;

pub use authority::{Authority, Coverage, Ensured, KeyType};
pub use error::PkiError;
pub use expiry::{CertificateKind, Expiry, ExpiryState};
pub use leaf::{LEAF_DAYS_DEFAULT, LEAF_LIFE_DEFAULT, Leaf, LeafIssuer, LeafStore};
pub use sealed::Passphrase;
pub use tls::{
    LoadedKey, Roots, ServerTls, Ticketers, client_config, client_config_showing,
    load_certified_key, load_crls, provider, server_config,
};
pub use verify::{OwnCa, OwnCaRefused, own_ca_refused};

#[cfg(test)]
mod tests;
