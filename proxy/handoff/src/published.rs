//! [`Published`]: one immutable value that is replaced whole.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// A value that one side replaces and many cores read.
///
/// A reader keeps its own `Arc` and asks only whether the generation moved: one
/// relaxed-cost load of a cache line that nobody writes between two publishes.
/// The mutex is taken when the generation has moved, and holds for the time of
/// one pointer copy, so a dead or stuck publisher cannot hold a worker up.
#[derive(Debug)]
pub struct Published<T> {
    generation: AtomicU64,
    value: Mutex<Arc<T>>,
}

impl<T> Published<T> {
    /// Starts with `value` as generation 1.
    pub fn new(value: Arc<T>) -> Arc<Self> {
        Arc::new(Self {
            generation: AtomicU64::new(1),
            value: Mutex::new(value),
        })
    }

    /// Replaces the value for every reader. Returns the new generation.
    pub fn publish(&self, value: Arc<T>) -> u64 {
        let old;
        let generation;
        {
            let mut slot = self.value.lock().unwrap_or_else(PoisonError::into_inner);
            old = std::mem::replace(&mut *slot, value);
            // Release: a reader that sees the generation also sees the value.
            generation = self.generation.fetch_add(1, Ordering::Release) + 1;
        }
        // The old value may be the last of its kind; it is torn down outside the lock.
        drop(old);
        generation
    }

    /// The value now, for callers outside the request path.
    pub fn load(&self) -> Arc<T> {
        self.load_with_generation().0
    }

    /// The number of the newest publish, counted from 1.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// A reader for one core.
    pub fn reader(self: &Arc<Self>) -> Reader<T> {
        let (value, seen) = self.load_with_generation();
        Reader {
            source: Arc::clone(self),
            value,
            seen,
        }
    }

    fn load_with_generation(&self) -> (Arc<T>, u64) {
        let slot = self.value.lock().unwrap_or_else(PoisonError::into_inner);
        (Arc::clone(&slot), self.generation.load(Ordering::Acquire))
    }
}

/// One core's view of a [`Published`] value.
#[derive(Debug)]
pub struct Reader<T> {
    source: Arc<Published<T>>,
    value: Arc<T>,
    /// Invariant: `value` is what was published as generation `seen`.
    seen: u64,
}

impl<T> Reader<T> {
    /// Takes up a newer value if there is one. `true` means that it changed.
    pub fn refresh(&mut self) -> bool {
        if self.source.generation.load(Ordering::Acquire) == self.seen {
            return false;
        }
        (self.value, self.seen) = self.source.load_with_generation();
        true
    }

    /// The value as of the last [`refresh`](Self::refresh).
    pub fn get(&self) -> &Arc<T> {
        &self.value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_sees_each_publish_once_and_lets_go_of_the_old_value() {
        let first = Arc::new(1);
        let published = Published::new(Arc::clone(&first));
        let mut reader = published.reader();
        assert!(!reader.refresh());
        assert_eq!(published.publish(Arc::new(2)), 2);
        assert!(reader.refresh());
        assert!(!reader.refresh());
        assert_eq!(**reader.get(), 2);
        assert_eq!(Arc::strong_count(&first), 1, "nobody keeps the old value");
    }

    #[test]
    fn a_publisher_that_panicked_does_not_stop_readers() {
        let published = Published::new(Arc::new(1));
        let poisoner = Arc::clone(&published);
        let _ = std::thread::spawn(move || {
            let _guard = poisoner.value.lock().unwrap();
            panic!("while holding the lock");
        })
        .join();
        let mut reader = published.reader();
        published.publish(Arc::new(2));
        assert!(reader.refresh());
        assert_eq!(**reader.get(), 2);
    }
}
