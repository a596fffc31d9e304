//! Waiting for a connection: [`Queue`] is first come, first served, and whoever waits has an end.
//!
//! A place that becomes free is handed to whoever waits for longest, together with the connection
//! that holds it: a request that arrives in between can take neither. Who stops waiting after it was
//! served, and before it noticed, has its grant passed on.
//!
//! It lacks priorities: all callers of an upstream wait in one line on each core.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// Whoever waits, in order of arrival. Owned by one pool's bucket.
pub struct Queue<G> {
    waiting: VecDeque<Rc<Ticket<G>>>,
}

/// One that waits.
struct Ticket<G> {
    /// Only a new connection will do.
    fresh: bool,
    grant: Cell<Option<G>>,
    waker: RefCell<Option<Waker>>,
}

impl<G> Default for Queue<G> {
    fn default() -> Self {
        Self {
            waiting: VecDeque::new(),
        }
    }
}

impl<G> Queue<G> {
    /// How many wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whether the first in line takes a new connection only.
    pub fn first_wants_fresh(&self) -> bool {
        self.waiting.front().is_some_and(|first| first.fresh)
    }

    /// Serves the first in line, or returns the grant if there is none.
    pub fn serve(&mut self, grant: G) -> Result<(), G> {
        let Some(first) = self.waiting.pop_front() else {
            return Err(grant);
        };
        first.grant.set(Some(grant));
        if let Some(waker) = first.waker.take() {
            waker.wake();
        }
        Ok(())
    }

    fn join(&mut self, fresh: bool) -> Rc<Ticket<G>> {
        let ticket = Rc::new(Ticket {
            fresh,
            grant: Cell::new(None),
            waker: RefCell::new(None),
        });
        self.waiting.push_back(Rc::clone(&ticket));
        ticket
    }

    fn leave(&mut self, ticket: &Rc<Ticket<G>>) {
        // They leave at their deadlines, and so nearly in order: the search is short.
        if let Some(at) = self
            .waiting
            .iter()
            .position(|waiting| Rc::ptr_eq(waiting, ticket))
        {
            self.waiting.remove(at);
        }
    }
}

/// Reaches the queue that a [`Waiting`] is in, and takes back what came too late.
pub trait Line<G> {
    /// Runs `act` on the queue, if it still exists.
    fn with(&self, act: impl FnOnce(&mut Queue<G>));
    /// A grant that nobody took.
    fn pass_on(&self, grant: G);
}

/// Resolves to the grant, when the turn comes. Dropped before, it leaves the queue.
pub struct Waiting<G, L: Line<G>> {
    line: L,
    ticket: Rc<Ticket<G>>,
}

impl<G, L: Line<G>> Waiting<G, L> {
    /// Joins the end of the line.
    pub fn new(queue: &mut Queue<G>, fresh: bool, line: L) -> Self {
        Self {
            ticket: queue.join(fresh),
            line,
        }
    }
}

impl<G, L: Line<G> + Unpin> Future for Waiting<G, L> {
    type Output = G;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<G> {
        if let Some(grant) = self.ticket.grant.take() {
            return Poll::Ready(grant);
        }
        *self.ticket.waker.borrow_mut() = Some(context.waker().clone());
        Poll::Pending
    }
}

impl<G, L: Line<G>> Drop for Waiting<G, L> {
    fn drop(&mut self) {
        match self.ticket.grant.take() {
            Some(grant) => self.line.pass_on(grant),
            None => self.line.with(|queue| queue.leave(&self.ticket)),
        }
    }
}

#[cfg(test)]
mod tests;
