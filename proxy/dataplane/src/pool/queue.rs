//! Waiting for a connection: [`Queue`] serves callers in turn, each in the order in which it came, and
//! whoever waits has an end.
//!
//! A place that becomes free is handed to whoever waits next, together with the connection
//! that holds it: a request that arrives in between can take neither. Who stops waiting after it was
//! served, and before it noticed, has its grant passed on.
//!
//! In turn, since one caller that floods an upstream would otherwise have all others wait behind its
//! requests; and where the queue is full, whoever has most of it gives a place up
//! ([`Queue::displace`]). A caller is an address. It lacks priorities.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// Whoever waits. Owned by one pool's bucket.
pub struct Queue<G> {
    /// The first one's turn is next. Invariant: none of them is empty.
    lines: VecDeque<CallerLine<G>>,
    /// Tickets of all lines.
    len: usize,
}

/// One caller's requests, in order of arrival.
struct CallerLine<G> {
    caller: IpAddr,
    tickets: VecDeque<Rc<Ticket<G>>>,
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
            lines: VecDeque::new(),
            len: 0,
        }
    }
}

impl<G> Queue<G> {
    /// How many wait.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether the next to be served takes a new connection only.
    pub fn first_wants_fresh(&self) -> bool {
        (self.lines.front())
            .and_then(|line| line.tickets.front())
            .is_some_and(|first| first.fresh)
    }

    /// Serves the next one, or returns the grant if there is none.
    pub fn serve(&mut self, grant: G) -> Result<(), G> {
        let Some(mut line) = self.lines.pop_front() else {
            return Err(grant);
        };
        let first = line.tickets.pop_front();
        if !line.tickets.is_empty() {
            // The others have their turn first.
            self.lines.push_back(line);
        }
        self.len -= 1;
        match first {
            Some(first) => {
                first.give(grant);
                Ok(())
            }
            None => Err(grant),
        }
    }

    /// Makes room for a request of `caller`, where the queue is full: whoever has most requests in it
    /// has the last one of them ended by `grant`. `false`: nobody has more than this caller would have.
    pub fn displace(&mut self, caller: IpAddr, grant: G) -> bool {
        let own = (self.lines.iter())
            .find(|line| line.caller == caller)
            .map_or(0, |line| line.tickets.len());
        let longest = (self.lines.iter_mut()).max_by_key(|line| line.tickets.len());
        let Some(longest) = longest.filter(|line| line.tickets.len() > own + 1) else {
            return false;
        };
        // More than one is in it, so it does not become empty.
        let Some(last) = longest.tickets.pop_back() else {
            return false;
        };
        self.len -= 1;
        last.give(grant);
        true
    }

    fn join(&mut self, caller: IpAddr, fresh: bool) -> Rc<Ticket<G>> {
        let ticket = Rc::new(Ticket {
            fresh,
            grant: Cell::new(None),
            waker: RefCell::new(None),
        });
        self.len += 1;
        match self.lines.iter_mut().find(|line| line.caller == caller) {
            Some(line) => line.tickets.push_back(Rc::clone(&ticket)),
            None => self.lines.push_back(CallerLine {
                caller,
                tickets: VecDeque::from([Rc::clone(&ticket)]),
            }),
        }
        ticket
    }

    fn leave(&mut self, ticket: &Rc<Ticket<G>>) {
        // They leave at their deadlines, and so nearly in order: the search is short.
        for (at, line) in self.lines.iter_mut().enumerate() {
            let Some(place) = (line.tickets.iter()).position(|waiting| Rc::ptr_eq(waiting, ticket))
            else {
                continue;
            };
            line.tickets.remove(place);
            self.len -= 1;
            if line.tickets.is_empty() {
                self.lines.remove(at);
            }
            return;
        }
    }
}

impl<G> Ticket<G> {
    fn give(&self, grant: G) {
        self.grant.set(Some(grant));
        if let Some(waker) = self.waker.take() {
            waker.wake();
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
    /// Joins the end of the caller's line.
    pub fn new(queue: &mut Queue<G>, caller: IpAddr, fresh: bool, line: L) -> Self {
        Self {
            ticket: queue.join(caller, fresh),
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
        #[cfg(test)]
        crate::rt::simulated::waits();
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
