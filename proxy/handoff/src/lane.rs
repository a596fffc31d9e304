//! [`lane`]: audit bytes on their way from one core to the control plane.
//!
//! A worker formats records into a batch of its own and sends whole batches, so
//! that a request costs no queue operation. What is bounded is the number of
//! *records* between the worker and the disk: the drain says how many it has
//! written, and the worker never runs more than the limit ahead of that.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Records that may be on their way between one core and the disk. When they
/// are all taken, a route with `audit = "required"` answers 503 and others drop
/// the record and count it.
pub const RECORDS_MAX: u64 = 8192;

/// Batches that may wait in a lane. Larger than needed: a batch holds at least
/// one record, and an unsent batch simply grows.
const BATCHES_MAX: usize = 256;

/// Makes the two ends of one core's lane.
pub fn lane() -> (Lane, Drain) {
    let (producer, consumer) = rtrb::RingBuffer::new(BATCHES_MAX);
    let written = Arc::new(AtomicU64::new(0));
    (
        Lane {
            producer,
            written: Arc::clone(&written),
            taken: 0,
        },
        Drain { consumer, written },
    )
}

/// Some records, formatted, with their number.
#[derive(Debug, Default)]
pub struct Batch {
    /// Whole lines, each ended by a newline.
    pub lines: Vec<u8>,
    /// How many lines there are.
    pub records: u64,
}

/// The worker's end.
#[derive(Debug)]
pub struct Lane {
    producer: rtrb::Producer<Batch>,
    written: Arc<AtomicU64>,
    /// Places taken since the start. Invariant: `taken - written <= RECORDS_MAX`.
    taken: u64,
}

impl Lane {
    /// Takes a place for one record. `false` means that the limit is reached.
    #[must_use]
    pub fn reserve(&mut self) -> bool {
        let outstanding = self.taken - self.written.load(Ordering::Relaxed);
        if outstanding >= RECORDS_MAX {
            return false;
        }
        self.taken += 1;
        true
    }

    /// Gives a place back that will not be used.
    pub fn release(&mut self) {
        self.taken -= 1;
    }

    /// Hands a batch over; it comes back if the lane is full, and may be sent later.
    ///
    /// # Errors
    /// The batch itself, untouched, when no place is free or the drain is gone.
    pub fn send(&mut self, batch: Batch) -> Result<(), Batch> {
        match self.producer.push(batch) {
            Ok(()) => Ok(()),
            Err(rtrb::PushError::Full(batch)) => Err(batch),
        }
    }

    /// How many records are between this core and the disk.
    pub fn outstanding(&self) -> u64 {
        self.taken - self.written.load(Ordering::Relaxed)
    }
}

/// The control plane's end.
#[derive(Debug)]
pub struct Drain {
    consumer: rtrb::Consumer<Batch>,
    written: Arc<AtomicU64>,
}

impl Drain {
    /// The next batch, if there is one. Call [`written`](Self::written) once it is safe.
    pub fn take(&mut self) -> Option<Batch> {
        self.consumer.pop().ok()
    }

    /// Says that `records` records are on the disk (or given up, and counted as
    /// lost by the caller): their places are free again.
    pub fn written(&self, records: u64) {
        self.written.fetch_add(records, Ordering::Relaxed);
    }

    /// Whether the worker's end is gone.
    pub fn is_abandoned(&self) -> bool {
        self.consumer.is_abandoned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_bounded_until_the_drain_has_written() {
        let (mut lane, mut drain) = lane();
        for _ in 0..RECORDS_MAX {
            assert!(lane.reserve());
        }
        assert!(!lane.reserve(), "the limit holds");
        lane.send(Batch {
            lines: b"{}\n".to_vec(),
            records: 1,
        })
        .expect("there is room for a batch");
        let batch = drain.take().expect("the batch arrives");
        assert!(!lane.reserve(), "taken from the lane is not yet written");
        drain.written(batch.records);
        assert!(lane.reserve());
        assert!(!lane.reserve());
        lane.release();
        assert!(lane.reserve());
    }

    #[test]
    fn a_full_lane_gives_the_batch_back() {
        let (mut lane, _drain) = lane();
        for _ in 0..BATCHES_MAX {
            lane.send(Batch::default()).expect("room");
        }
        let batch = Batch {
            lines: b"x\n".to_vec(),
            records: 1,
        };
        assert_eq!(lane.send(batch).unwrap_err().lines, b"x\n");
    }
}
