//! The door between the control plane and the data plane.
//!
//! Everything that both planes touch is here, and every atomic that a request
//! can meet is in this crate: snapshots go in through [`Published`], audit
//! bytes come out through [`lane`], figures come out through [`Counters`], and
//! the process tells its workers to stop through [`Lifecycle`], and each worker shows
//! by [`Turns`] that it lives.
//!
//! What this crate deliberately lacks: knowledge of what passes through it, and
//! any way for a worker to wait for the control plane.

#![forbid(unsafe_code)]

pub mod counters;
pub mod lane;
pub mod lifecycle;
pub mod published;

pub use counters::{Counter, Counters};
pub use lane::{Drain, Lane, lane};
pub use lifecycle::{Lifecycle, Phase, Turns};
pub use published::{Published, Reader};
