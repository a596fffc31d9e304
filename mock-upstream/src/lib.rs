//! A mock third-party API: the judge that Claviger's tests and benchmarks call.
//!
//! It behaves like the real thing (TLS 1.3 and 1.2 with resumption, strict HTTP/1.1, a key check
//! whose refusals look like the provider's own, endpoints shaped like well-known APIs), tells
//! exactly what arrived (`/echo`, `--record`), and misbehaves on demand (`/drop`, `/truncate`,
//! `/early`). Its fixed answer (`/ok`) is cheap enough never to be what a benchmark measures.
//!
//! It shares no code with the proxy that it judges.
//!
//! The binary is a thin shell around [`server::start`]; tests may call that instead.
//!
//! ```text
//! cli -> settings -> server -> worker -> connection -> handlers
//!                                  |         |-> http (bytes, no I/O)
//!                                  |-> stream (TCP, TLS, buffers)
//! ```

#![forbid(unsafe_code)]

pub mod alarm;
pub mod cli;
pub mod clock;
pub mod connection;
pub mod control;
pub mod document;
pub mod draws;
pub mod executor;
pub mod faults;
pub mod handlers;
pub mod http;
pub mod idempotency;
pub mod idle;
pub mod keys;
pub mod latency;
pub mod limits;
pub mod personality;
pub mod published;
pub mod raw;
pub mod readiness;
pub mod record;
pub mod redact;
pub mod server;
pub mod settings;
pub mod stats;
pub mod steering;
pub mod stream;
pub mod tls;
pub mod units;
pub mod worker;
