//! Which connections can be read from or written to: one edge-triggered epoll set per worker.
//!
//! All connections that became ready are learnt in one call, and a read that found less than it
//! asked for is not repeated in vain: two calls per request besides that one. A receive operation
//! per request on an io_uring, which the kernel tries, arms and tries again, measured dearer; so did
//! a ring that waits for this set.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::task::{Poll, Waker};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

/// The connections of one worker.
pub struct Readiness {
    epoll: Epoll,
    /// Indexed by token. A slot is used again once its connection has closed.
    slots: RefCell<Vec<Option<Rc<Slot>>>>,
    free: RefCell<Vec<usize>>,
}

/// Whether one connection has something to read. Dropping it ends the watch; drop it before the
/// socket, so that no event can arrive for a token that means another connection by then.
pub struct Watch {
    readiness: Rc<Readiness>,
    token: usize,
    slot: Rc<Slot>,
}

#[derive(Default)]
struct Slot {
    /// A read may bring something.
    readable: Cell<bool>,
    /// The peer has ended its side, or the connection is broken: a read never has to wait again.
    ended: Cell<bool>,
    reader: RefCell<Option<Waker>>,
    /// A write may find room.
    writable: Cell<bool>,
    writer: RefCell<Option<Waker>>,
}

impl Readiness {
    /// An empty set.
    ///
    /// # Errors
    ///
    /// No descriptor is left.
    pub fn new() -> io::Result<Rc<Self>> {
        Ok(Rc::new(Readiness {
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            slots: RefCell::default(),
            free: RefCell::default(),
        }))
    }

    /// Watches a socket, which counts as ready at first.
    ///
    /// # Errors
    ///
    /// The kernel watches too many descriptors already.
    pub fn watch(self: &Rc<Self>, socket: impl AsFd) -> io::Result<Watch> {
        let slot = Rc::new(Slot::default());
        slot.readable.set(true);
        let mut slots = self.slots.borrow_mut();
        let token = self.free.borrow_mut().pop().unwrap_or_else(|| {
            slots.push(None);
            slots.len() - 1
        });
        slots[token] = Some(Rc::clone(&slot));
        drop(slots);
        let watch = Watch {
            readiness: Rc::clone(self),
            token,
            slot,
        };
        let flags = EpollFlags::EPOLLIN
            | EpollFlags::EPOLLOUT
            | EpollFlags::EPOLLRDHUP
            | EpollFlags::EPOLLET;
        self.epoll
            .add(socket, EpollEvent::new(flags, token as u64))?;
        Ok(watch)
    }

    /// Wakes whoever waits for what has become ready; if `wait`, waits until something has. Returns
    /// how many sockets that were.
    pub fn take(&self, wait: bool) -> usize {
        let mut events = [EpollEvent::empty(); EVENTS_PER_CALL];
        let timeout = match wait {
            true => EpollTimeout::NONE,
            false => EpollTimeout::ZERO,
        };
        // It fails for a signal only, and then the next call tells.
        let count = self.epoll.wait(&mut events, timeout).unwrap_or(0);
        for event in &events[..count] {
            self.note(event);
        }
        count
    }

    fn note(&self, event: &EpollEvent) {
        let slots = self.slots.borrow();
        let Some(Some(slot)) = slots.get(event.data() as usize) else {
            return;
        };
        let events = event.events();
        let over = EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR;
        if events.intersects(over) {
            slot.ended.set(true);
        }
        if events.intersects(over | EpollFlags::EPOLLIN) {
            slot.readable.set(true);
            if let Some(waker) = slot.reader.take() {
                waker.wake();
            }
        }
        if events.intersects(over | EpollFlags::EPOLLOUT) {
            slot.writable.set(true);
            if let Some(waker) = slot.writer.take() {
                waker.wake();
            }
        }
    }
}

impl Watch {
    /// Waits until a read might bring something. May be abandoned at any time.
    pub async fn readable(&self) {
        wait(&self.slot.readable, &self.slot.reader).await;
    }

    /// A read has found less than it asked for: there is nothing more until the next event.
    #[inline]
    pub fn drained(&self) {
        // An end that was noticed already makes no further event, and must still be read.
        if !self.slot.ended.get() {
            self.slot.readable.set(false);
        }
    }

    /// A read has found nothing, and no end either.
    pub fn empty(&self) {
        self.slot.readable.set(false);
        self.slot.ended.set(false);
    }

    /// Waits until there is room again. Call it when a write has found too little: what was noted
    /// before that write says nothing, so call [`Watch::full`] before the write.
    pub async fn writable(&self) {
        wait(&self.slot.writable, &self.slot.writer).await;
    }

    /// Forgets that there was room: only an event from now on counts.
    pub fn full(&self) {
        self.slot.writable.set(false);
    }
}

async fn wait(flag: &Cell<bool>, waiting: &RefCell<Option<Waker>>) {
    std::future::poll_fn(|context| match flag.get() {
        true => Poll::Ready(()),
        false => {
            let mut waker = waiting.borrow_mut();
            if !waker
                .as_ref()
                .is_some_and(|waker| waker.will_wake(context.waker()))
            {
                *waker = Some(context.waker().clone());
            }
            Poll::Pending
        }
    })
    .await
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.readiness.slots.borrow_mut()[self.token] = None;
        self.readiness.free.borrow_mut().push(self.token);
    }
}

impl std::fmt::Debug for Readiness {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Readiness({} slots)", self.slots.borrow().len())
    }
}

/// Events taken per call; more take another call.
const EVENTS_PER_CALL: usize = 64;
