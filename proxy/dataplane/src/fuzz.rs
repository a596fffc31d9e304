//! What must hold of the records and sessions of this crate for every input, whatever it is: one
//! function per fuzz target, behind the feature `fuzz`, which the product is built without.
//!
//! The targets in `proxy/fuzz` call these functions, and so does this crate's own test, over their
//! seeds and seeded mutations of them: an ordinary `cargo test` exercises what a fuzzing run starts
//! from. No key, session or record leaves this module. What it lacks is the socket: see
//! [`crate::transport`] for what becomes of what is opened.

pub use crate::record::fuzz::{length, open};
pub use crate::session::fuzz::{handshake, session};

/// What is left of an input. A fuzzer's bytes end at any place, and the rest reads as zeros.
pub(crate) struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn byte(&mut self) -> u8 {
        self.0.split_off_first().copied().unwrap_or_default()
    }

    /// Two bytes, the higher one first.
    pub(crate) fn number(&mut self) -> usize {
        usize::from(u16::from_be_bytes([self.byte(), self.byte()]))
    }

    /// As many bytes as are left, at most `count`.
    pub(crate) fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }

    pub(crate) fn rest(&mut self) -> &'a [u8] {
        self.take(usize::MAX)
    }

    /// One of these.
    pub(crate) fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[usize::from(self.byte()) % of.len()]
    }
}

#[cfg(test)]
mod tests;
