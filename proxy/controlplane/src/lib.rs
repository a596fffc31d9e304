//! The control plane, the office behind the data plane's counters: configuration,
//! certificates, secrets, names, the audit trail, the log.
//!
//! It lives on ordinary threads and one small tokio runtime, where the ecosystem's
//! libraries are at home. It reaches the data plane through `handoff` alone: whole
//! snapshots in, audit records and counters out. When it dies, traffic goes on with
//! the last snapshot.
//!
//! Deliberately missing: monoio, sockets of callers or upstreams, and any key that
//! is not on its way into a [`policy::Secret`].

#![deny(unsafe_code)]

pub mod audit;
pub mod config;
pub mod credentials;
pub mod doctor;
pub mod hunt;
pub mod names;
pub mod office;
pub mod pki;
pub mod publish;
pub mod status;
mod supervise;
pub mod telemetry;
pub mod watch;

#[cfg(test)]
mod test_support;
