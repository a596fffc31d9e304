//! [`Core`]: what belongs to one core and is shared by its tasks.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use handoff::{Counter, Counters, Phase, Reader};
use policy::{AddressBook, Snapshot};
use wire::head::{RequestHead, ResponseHead};
use wire::rewrite::Plan;

use crate::addresses::Failures;
use crate::admission::Admission;
use crate::balance::Burden;
use crate::buffer::FreeList;
use crate::complaint::Complaints;
use crate::hubs::Hubs;
use crate::ledger::Ledger;
use crate::pool::ConnectionPool;
use crate::tick::Tick;

/// Desks kept for re-use.
const DESKS_KEPT_MAX: usize = 256;

/// A head buffer that grew beyond this is freed instead of kept.
const DESK_BYTES_KEPT_MAX: usize = 64 * 1024;

/// One core's world. Never leaves its thread.
pub struct Core {
    /// Which core this is, counted from 0.
    pub index: usize,
    pub counters: Arc<Counters>,
    pub tick: Rc<Tick>,
    pub buffers: Rc<FreeList>,
    pub pool: ConnectionPool,
    pub failures: Failures,
    pub hubs: Hubs,
    pub ledger: Ledger,
    pub complaints: Complaints,
    /// Whose exchanges are under way.
    pub admission: Rc<Admission>,
    /// How busy this core is, and who could help.
    pub burden: Burden,
    /// Nothing new is accepted, and every answer ends its connection.
    pub draining: Cell<bool>,
    /// Of these: another process accepts on the same sockets.
    pub retiring: Cell<bool>,
    /// A task that the core cannot do without has panicked.
    pub broken: Cell<bool>,
    /// A random number of this process, so that request ids differ between instances.
    pub instance: u64,
    requests: Cell<u64>,
    view: RefCell<View>,
    snapshots: RefCell<Reader<Snapshot>>,
    addresses: RefCell<Reader<AddressBook>>,
    // Boxed: a desk moves in and out of tasks, and is large.
    #[allow(clippy::vec_box)]
    desks: RefCell<Vec<Box<Desk>>>,
}

/// A snapshot in this core's own hands: cloning it touches no other core.
pub type View = Rc<Arc<Snapshot>>;

/// What an exchange works with, lent by the core: an idle connection has none.
pub struct Desk {
    pub request: RequestHead,
    pub response: ResponseHead,
    pub request_plan: Plan,
    pub response_plan: Plan,
}

impl Core {
    #[allow(clippy::too_many_arguments)]
    pub fn new(
        index: usize,
        counters: Arc<Counters>,
        snapshots: Reader<Snapshot>,
        addresses: Reader<AddressBook>,
        ledger: Ledger,
        instance: u64,
    ) -> Rc<Self> {
        Rc::new(Self {
            index,
            counters,
            tick: Tick::new(),
            buffers: Rc::default(),
            pool: ConnectionPool::default(),
            failures: Failures::default(),
            hubs: Hubs::default(),
            ledger,
            complaints: Complaints::default(),
            admission: Rc::default(),
            burden: Burden::default(),
            draining: Cell::new(false),
            retiring: Cell::new(false),
            broken: Cell::new(false),
            instance,
            requests: Cell::new(0),
            view: RefCell::new(Rc::new(Arc::clone(snapshots.get()))),
            snapshots: RefCell::new(snapshots),
            addresses: RefCell::new(addresses),
            desks: RefCell::default(),
        })
    }

    /// The newest snapshot. One load when nothing has changed.
    pub fn view(&self) -> View {
        let mut snapshots = self.snapshots.borrow_mut();
        #[cfg(test)]
        if crate::simulation::is(crate::simulation::Break::KeepsOldKeys) {
            return Rc::clone(&self.view.borrow());
        }
        if snapshots.refresh() {
            *self.view.borrow_mut() = Rc::new(Arc::clone(snapshots.get()));
        }
        Rc::clone(&self.view.borrow())
    }

    /// The newest addresses of upstreams.
    pub fn addresses(&self) -> Arc<AddressBook> {
        let mut addresses = self.addresses.borrow_mut();
        addresses.refresh();
        Arc::clone(addresses.get())
    }

    /// A number for the next request of this core.
    pub fn next_request(&self) -> u64 {
        let number = self.requests.get() + 1;
        self.requests.set(number);
        number
    }

    pub fn take_desk(&self) -> Box<Desk> {
        self.desks.borrow_mut().pop().unwrap_or_else(|| {
            Box::new(Desk {
                request: RequestHead::new(),
                response: ResponseHead::new(),
                request_plan: Plan::new(),
                response_plan: Plan::new(),
            })
        })
    }

    pub fn give_desk(&self, mut desk: Box<Desk>) {
        let mut kept = self.desks.borrow_mut();
        if kept.len() >= DESKS_KEPT_MAX
            || desk.request.buffer().capacity() > DESK_BYTES_KEPT_MAX
            || desk.response.buffer().capacity() > DESK_BYTES_KEPT_MAX
        {
            return;
        }
        desk.request.finish(usize::MAX);
        desk.response.finish(usize::MAX);
        desk.request_plan.clear();
        desk.response_plan.clear();
        kept.push(desk);
    }

    pub fn count(&self, counter: Counter) {
        self.counters.add(counter);
    }

    /// Ends the connection of a caller that keeps us waiting, for the sake of another one.
    /// `false`: there is none; all of them are in the middle of something.
    pub fn make_room(&self) -> bool {
        let made = self.tick.evict_one();
        if made {
            self.count(Counter::connections_evicted);
        }
        made
    }

    /// What is done once per sweep.
    pub fn on_tick(&self, phase: Phase) {
        self.draining.set(phase > Phase::Serving);
        self.retiring.set(phase == Phase::Retiring);
        // While retiring an idle connection is left alone: closing it would cost the
        // request that its caller has just sent.
        self.tick.sweep(phase > Phase::Retiring);
        // An idle core takes a new snapshot up as well, or a revoked key would
        // stay in its memory.
        let before = self.view.borrow().generation;
        let view = self.view();
        if view.generation != before {
            self.pool
                .retain(|key| view.has_pool(key.upstream, key.credential));
        }
        self.pool.sweep(self.tick.now_ms());
        self.counters
            .set(Counter::upstream_idle, self.pool.idle() as u64);
        self.ledger.flush();
    }
}
