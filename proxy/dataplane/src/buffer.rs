//! [`FreeList`]: one core's stock of receive and send buffers.
//!
//! Buffers are lent for as long as an operation or a message needs them, so an
//! idle connection holds none.

use std::cell::{Cell, RefCell};

/// Size of a receive buffer in bytes. Larger ones gained nothing for bodies,
/// smaller ones cost (see ARCHITECTURE.md).
pub const RECV_BYTES: usize = 56 * 1024;

/// Size of the buffer that a connection waits for a request with. A longer request
/// takes two receives.
pub const RECV_BYTES_SMALL: usize = 8 * 1024;

/// Size of a send buffer that holds more than a small message: what one receive
/// brings, sealed, has room in it. One size, since the allocator keeps megabytes
/// for each size beyond 64 KiB.
const SEND_BYTES: usize = 60 * 1024;

/// A message up to this size is sent from a buffer that grows as needed.
const SEND_BYTES_SMALL: usize = 8 * 1024;

/// Sees to it that `buffer` has room for `bytes` more, in as few sizes as possible.
pub fn make_room(buffer: &mut Vec<u8>, bytes: usize) {
    let needed = buffer.len() + bytes;
    if needed > buffer.capacity() && (SEND_BYTES_SMALL..=SEND_BYTES).contains(&needed) {
        buffer.reserve_exact(SEND_BYTES - buffer.len());
    } else {
        buffer.reserve(bytes);
    }
}

/// Buffers kept for re-use, of each kind. Beyond it a returned buffer is freed.
const KEPT_MAX: usize = 128;

/// Receives that may wait with a buffer lent to the kernel. Further ones wait for
/// readiness first, with nothing in hand: memory that was in use once stays with a
/// process that locks its memory, so a crowd of new connections would be paid for
/// for ever.
const LENT_MAX: usize = 256;

/// A send buffer that grew beyond this is freed instead of kept.
const SEND_BYTES_KEPT_MAX: usize = 256 * 1024;

/// The stock. Last in, first out: a warm buffer is the likeliest to be in cache.
#[derive(Debug, Default)]
pub struct FreeList {
    recv: RefCell<Vec<Vec<u8>>>,
    recv_small: RefCell<Vec<Vec<u8>>>,
    send: RefCell<Vec<Vec<u8>>>,
    /// Receives that wait with a buffer.
    lent: Cell<usize>,
}

/// A place among the receives that wait with a buffer; given back when dropped.
pub struct Lent<'l>(&'l FreeList);

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        self.0.lent.set(self.0.lent.get() - 1);
    }
}

impl FreeList {
    /// An empty buffer of `bytes` capacity, [`RECV_BYTES`] or [`RECV_BYTES_SMALL`].
    pub fn take_recv(&self, bytes: usize) -> Vec<u8> {
        let kept = if bytes > RECV_BYTES_SMALL {
            &self.recv
        } else {
            &self.recv_small
        };
        kept.borrow_mut()
            .pop()
            .unwrap_or_else(|| Vec::with_capacity(bytes))
    }

    /// A place for a receive that will wait with a buffer in hand; `None`: there are
    /// [`LENT_MAX`], so it should wait without.
    pub fn lend(&self) -> Option<Lent<'_>> {
        let lent = self.lent.get();
        (lent < LENT_MAX).then(|| {
            self.lent.set(lent + 1);
            Lent(self)
        })
    }

    /// Receives that wait with a buffer.
    #[cfg(test)]
    pub fn lent(&self) -> usize {
        self.lent.get()
    }

    /// Takes a receive buffer back.
    pub fn give_recv(&self, mut buffer: Vec<u8>) {
        let kept = match buffer.capacity() {
            RECV_BYTES.. => &self.recv,
            RECV_BYTES_SMALL.. => &self.recv_small,
            _ => return,
        };
        let mut kept = kept.borrow_mut();
        if kept.len() < KEPT_MAX {
            buffer.clear();
            kept.push(buffer);
        }
    }

    /// An empty buffer for sending.
    pub fn take_send(&self) -> Vec<u8> {
        self.send.borrow_mut().pop().unwrap_or_default()
    }

    /// Takes a send buffer back.
    pub fn give_send(&self, mut buffer: Vec<u8>) {
        let mut kept = self.send.borrow_mut();
        if kept.len() < KEPT_MAX && buffer.capacity() <= SEND_BYTES_KEPT_MAX {
            buffer.clear();
            kept.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_to_wait_with_a_buffer_are_bounded_and_come_back() {
        let list = FreeList::default();
        for _ in 0..2 {
            let lent: Vec<_> = (0..LENT_MAX).map_while(|_| list.lend()).collect();
            assert_eq!(lent.len(), LENT_MAX);
            assert!(list.lend().is_none());
        }
    }

    #[test]
    fn buffers_come_back_empty_and_giants_do_not_stay() {
        let list = FreeList::default();
        let mut buffer = list.take_recv(RECV_BYTES);
        buffer.extend_from_slice(b"plaintext");
        let place = buffer.as_ptr();
        list.give_recv(buffer);
        let again = list.take_recv(RECV_BYTES);
        assert!(again.is_empty());
        assert_eq!(again.as_ptr(), place);
        list.give_send(Vec::with_capacity(SEND_BYTES_KEPT_MAX + 1));
        assert_eq!(list.take_send().capacity(), 0);
    }
}
