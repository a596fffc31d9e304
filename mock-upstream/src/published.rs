//! A value that all workers read and the control port replaces, whole, while they run.
//!
//! Readers compare a generation number per request and fetch the new value only when it has
//! changed: one ordinary load on the request path, no lock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// A shared, replaceable, immutable `T`.
#[derive(Debug, Default)]
pub struct Published<T> {
    current: Mutex<Arc<T>>,
    generation: AtomicU64,
}

impl<T> Published<T> {
    /// Publishes the first value.
    pub fn new(value: T) -> Self {
        Published {
            current: Mutex::new(Arc::new(value)),
            generation: AtomicU64::new(0),
        }
    }

    /// Replaces the value for every request that is parsed from now on.
    pub fn replace(&self, value: T) {
        self.change(|_| value);
    }

    /// Replaces the value by one that `next` makes of it; nobody can come in between.
    pub fn change(&self, next: impl FnOnce(&T) -> T) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let value = next(&current);
        *current = Arc::new(value);
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// A number that changes whenever the value does.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// The value as it is now.
    pub fn current(&self) -> Arc<T> {
        Arc::clone(&self.current.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_replaced_whole() {
        let number = Published::new(1);
        let before = number.generation();
        number.change(|old| old + 1);
        assert_ne!(number.generation(), before);
        assert_eq!(*number.current(), 2);
        number.replace(7);
        assert_eq!(*number.current(), 7);
    }
}
