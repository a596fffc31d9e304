//! [`FreeList`]: one core's stock of receive and send buffers.
//!
//! Buffers are lent for as long as an operation or a message needs them, so an
//! idle connection holds none.

use std::cell::RefCell;

/// Size of a receive buffer in bytes. Larger ones gained nothing for bodies,
/// smaller ones cost (see ARCHITECTURE.md).
pub const RECV_BYTES: usize = 64 * 1024;

/// Buffers kept for re-use. Beyond it a returned buffer is freed.
const KEPT_MAX: usize = 128;

/// A send buffer that grew beyond this is freed instead of kept.
const SEND_BYTES_KEPT_MAX: usize = 256 * 1024;

/// The stock. Last in, first out: a warm buffer is the likeliest to be in cache.
#[derive(Debug, Default)]
pub struct FreeList {
    recv: RefCell<Vec<Vec<u8>>>,
    send: RefCell<Vec<Vec<u8>>>,
}

impl FreeList {
    /// An empty buffer of [`RECV_BYTES`] capacity.
    pub fn take_recv(&self) -> Vec<u8> {
        self.recv
            .borrow_mut()
            .pop()
            .unwrap_or_else(|| Vec::with_capacity(RECV_BYTES))
    }

    /// Takes a receive buffer back.
    pub fn give_recv(&self, mut buffer: Vec<u8>) {
        let mut kept = self.recv.borrow_mut();
        if kept.len() < KEPT_MAX && buffer.capacity() >= RECV_BYTES {
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
    fn buffers_come_back_empty_and_giants_do_not_stay() {
        let list = FreeList::default();
        let mut buffer = list.take_recv();
        buffer.extend_from_slice(b"plaintext");
        let place = buffer.as_ptr();
        list.give_recv(buffer);
        let again = list.take_recv();
        assert!(again.is_empty());
        assert_eq!(again.as_ptr(), place);
        list.give_send(Vec::with_capacity(SEND_BYTES_KEPT_MAX + 1));
        assert_eq!(list.take_send().capacity(), 0);
    }
}
