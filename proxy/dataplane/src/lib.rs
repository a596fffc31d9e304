//! The data plane: one pinned thread per core, each with a runtime, sockets,
//! pools, buffers and counters of its own.
//!
//! A request walks one way, and the modules are named after its steps:
//! [`listener`] accepts, [`tls`] picks the virtual host, [`connection`] starts
//! exchanges, [`exchange`] tells the whole story of one, [`pool`] lends a
//! connection to the upstream, [`forward`] sends, [`relay`] brings the answer
//! back, [`tunnel`] carries what was upgraded, [`respond`] speaks when Claviger
//! answers by itself.
//!
//! Deliberately missing: locks, shared atomics per request (all that exist are
//! in `handoff`), DNS, file I/O, tokio, and any wait for the control plane.

#![deny(unsafe_code)]

mod addresses;
mod admission;
mod balance;
#[cfg(feature = "bench")]
#[doc(hidden)]
pub mod bench;
mod buffer;
mod complaint;
mod connection;
mod core;
mod exchange;
mod forward;
#[cfg(any(test, feature = "fuzz"))]
#[doc(hidden)]
pub mod fuzz;
mod hubs;
mod ledger;
mod listener;
mod pool;
mod record;
mod relay;
mod respond;
#[allow(unsafe_code)]
pub mod rt;
mod session;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod test_support;
mod tick;
mod tls;
mod transport;
mod tunnel;
mod worker;

pub use listener::BoundListener;
pub use rt::{Driver, DriverKind, RuntimeError};
pub use worker::{Plan, Workers};
