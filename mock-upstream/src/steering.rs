//! What the control port may change while the mock runs, besides the keys: latency, limits, faults.
//!
//! One immutable value, so that a request sees all of it as it was at one moment, and so that the
//! fixed answer needs to ask one question only: is anything steered at all?

use std::sync::Arc;

use crate::faults::Faults;
use crate::latency::Latency;
use crate::limits::Limits;

/// All that is in force at one moment.
#[derive(Clone, Debug, Default)]
pub struct Steering {
    /// How long answers take.
    pub latency: Option<Arc<Latency>>,
    /// How many requests a key may make.
    pub limits: Option<Arc<Limits>>,
    /// What goes wrong.
    pub faults: Option<Arc<Faults>>,
}

impl Steering {
    /// Whether every request is served at once, always and properly.
    pub fn is_plain(&self) -> bool {
        self.latency.is_none() && self.limits.is_none() && self.faults.is_none()
    }
}
