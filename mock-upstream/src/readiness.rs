//! Which connections can be read from or written to: one edge-triggered epoll set per worker.
//!
//! The event loop is asked one question only, whether the set itself is readable; all connections
//! that became ready meanwhile are then learnt in one call. Compared with a receive operation per
//! request on the ring, which the kernel tries in vain, arms and tries again, this costs a third
//! less, and a connection that waits holds no buffer.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::TcpStream;
use std::rc::Rc;
use std::task::{Poll, Waker};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

/// The connections of one worker. Make it within the event loop.
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
    /// Makes the set and the task that serves it.
    ///
    /// # Errors
    ///
    /// No descriptor is left.
    pub fn start() -> io::Result<Rc<Self>> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        // The event loop knows sockets only; all that is asked of this one is when it is readable.
        let watched = std::os::unix::net::UnixStream::from(epoll.0.try_clone()?);
        let watched = monoio::net::UnixStream::from_std(watched)?;
        let readiness = Rc::new(Readiness {
            epoll,
            slots: RefCell::default(),
            free: RefCell::default(),
        });
        monoio::spawn(Rc::clone(&readiness).serve(watched));
        Ok(readiness)
    }

    /// Watches a socket, which counts as ready at first.
    ///
    /// # Errors
    ///
    /// The kernel watches too many descriptors already.
    pub fn watch(self: &Rc<Self>, socket: &TcpStream) -> io::Result<Watch> {
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

    async fn serve(self: Rc<Self>, watched: monoio::net::UnixStream) {
        let mut patience = Patience::default();
        while watched.readable(false).await.is_ok() {
            // While connections keep coming, the event loop need not be asked. It is asked now and
            // then all the same: others wait there too.
            for _ in 0..ROUNDS_MAX {
                if !patience.find(|| self.take() > 0) {
                    break;
                }
                // Those that were woken go first.
                yield_once().await;
            }
        }
    }

    /// Notes what has become ready; how many connections that concerned.
    fn take(&self) -> usize {
        let mut events = [EpollEvent::empty(); EVENTS_PER_CALL];
        // It fails for a signal only, and then the set is still readable.
        let count = self
            .epoll
            .wait(&mut events, EpollTimeout::ZERO)
            .unwrap_or(0);
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

/// Whether it is worth looking again before the thread goes to sleep: it is, as long as that keeps
/// finding something, since sleeping and being woken costs both sides more than a few looks.
#[derive(Default)]
struct Patience {
    /// Sleeps to come that are not delayed.
    skip: u32,
    /// Doubles with each look in vain, up to [`SKIP_MAX`].
    penalty: u32,
}

impl Patience {
    fn find(&mut self, mut look: impl FnMut() -> bool) -> bool {
        if look() {
            return true;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return false;
        }
        let found = (0..LOOKS).any(|_| look());
        match found {
            true => self.penalty = 0,
            false => {
                self.penalty = (2 * self.penalty + 1).min(SKIP_MAX);
                self.skip = self.penalty;
            }
        }
        found
    }
}

/// Lets every task that is ready run once.
async fn yield_once() {
    let mut yielded = false;
    std::future::poll_fn(|context| match std::mem::replace(&mut yielded, true) {
        true => Poll::Ready(()),
        false => {
            context.waker().wake_by_ref();
            Poll::Pending
        }
    })
    .await
}

/// Rounds of connections served before the event loop is asked for everything else.
const ROUNDS_MAX: u32 = 16;

/// Looks before going to sleep: some 2 us.
const LOOKS: u32 = 8;

/// Sleeps at most that are not delayed after a look in vain.
const SKIP_MAX: u32 = 255;

/// Events taken per call; more take another call.
const EVENTS_PER_CALL: usize = 64;
