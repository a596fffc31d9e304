//! [`Ledger`]: one core's audit records, on their way to the control plane.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use handoff::{Counter, Counters, Lane, lane::Batch};
use policy::audit::AuditRecord;
use policy::snapshot::RouteIndex;
use policy::{Admitted, Denial, Refuser, Told};
use wire::rewrite::Plan;

use crate::core::View;
use crate::rt;

/// A batch is handed over when it has grown to this size, or at the next tick.
const BATCH_BYTES: usize = 32 * 1024;

/// An exchange that lasts longer than this also writes a `begin` record.
const BEGIN_AFTER: Duration = Duration::from_secs(10);

/// The batch under way, the lane, and the exchanges that may need a begin record.
pub struct Ledger {
    lane: RefCell<Lane>,
    batch: RefCell<Batch>,
    counters: Arc<Counters>,
    /// Drafts of open exchanges that had not ended at the last tick.
    open: RefCell<Vec<Weak<RefCell<Draft>>>>,
}

/// What is known so far of a connection's current exchange.
pub struct Draft {
    // Of the connection.
    pub listener: Arc<str>,
    pub client: SocketAddr,
    pub server_name: Option<Box<str>>,
    // Of the exchange.
    pub request_id: String,
    pub started: Instant,
    pub unix_ms: u64,
    pub view: Option<View>,
    pub route: Option<RouteIndex>,
    /// How the caller was recognised; there is one as soon as there is a route.
    pub admitted: Option<Admitted>,
    /// Which of the route's ways the request took.
    pub way: usize,
    pub denied_on: Option<Box<str>>,
    /// What the edge said that has brought the request.
    pub told: Option<Box<Told>>,
    pub method: String,
    pub host: String,
    pub path: Vec<u8>,
    pub status: u16,
    pub refused: Option<(Refuser, &'static str)>,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub upstream_address: Option<SocketAddr>,
    /// Whether the key was written.
    pub injected: bool,
    pub scrubbed: usize,
    /// Why the answer was not searched.
    pub uninspected: Option<&'static str>,
    pub upstream_wait: Duration,
    open: bool,
    begun: bool,
    reserved: bool,
    /// Names of what was stripped, copied only for a begin record's sake.
    listed: bool,
}

impl Draft {
    pub fn new(listener: Arc<str>, client: SocketAddr) -> Rc<RefCell<Self>> {
        Rc::new(RefCell::new(Self {
            listener,
            client,
            server_name: None,
            request_id: String::new(),
            started: rt::now(),
            unix_ms: 0,
            view: None,
            route: None,
            admitted: None,
            way: 0,
            denied_on: None,
            told: None,
            method: String::new(),
            host: String::new(),
            path: Vec::new(),
            status: 0,
            refused: None,
            bytes_in: 0,
            bytes_out: 0,
            upstream_address: None,
            injected: false,
            scrubbed: 0,
            uninspected: None,
            upstream_wait: Duration::ZERO,
            open: false,
            begun: false,
            reserved: false,
            listed: false,
        }))
    }

    /// Starts the next exchange of the connection.
    pub fn begin(&mut self, instance: u64, core: usize, number: u64, view: View) {
        self.started = rt::now();
        self.unix_ms = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_millis() as u64);
        self.request_id.clear();
        push_id(&mut self.request_id, instance, core, number);
        self.view = Some(view);
        self.route = None;
        self.admitted = None;
        self.way = 0;
        self.denied_on = None;
        self.told = None;
        self.method.clear();
        self.host.clear();
        self.path.clear();
        self.status = 0;
        self.refused = None;
        self.bytes_in = 0;
        self.bytes_out = 0;
        self.upstream_address = None;
        self.injected = false;
        self.scrubbed = 0;
        self.uninspected = None;
        self.upstream_wait = Duration::ZERO;
        self.open = true;
        self.begun = false;
        self.reserved = false;
    }

    /// Notes a refusal by policy.
    pub fn deny(&mut self, denial: &Denial) {
        self.status = denial.status;
        self.refused = Some((denial.refuser, denial.reason));
        self.denied_on.clone_from(&denial.route);
        self.told.clone_from(&denial.told);
    }

    fn encode(&self, event: &'static str, plan: Option<&Plan>, out: &mut Vec<u8>) {
        let snapshot = self.view.as_deref();
        let route = self
            .route
            .and_then(|index| snapshot.map(|snapshot| snapshot.route(index)));
        let admitted = self.admitted.zip(route.map(|route| &route.callers));
        let way = route.map(|route| route.way(self.way));
        let upstream = way.map(|(upstream, _)| upstream);
        let credential = way
            .filter(|_| self.injected)
            .and_then(|(_, credential)| credential)
            .map(|(_, credential)| (credential.name(), credential.version()));
        AuditRecord {
            event,
            unix_ms: self.unix_ms,
            request_id: &self.request_id,
            listener: &self.listener,
            route: route
                .map(|route| &*route.name)
                .or(self.denied_on.as_deref()),
            caller: admitted.map_or("unknown", |(admitted, callers)| admitted.name(callers)),
            identified_by: admitted.map_or("address", |(admitted, _)| admitted.identified_by()),
            token_version: admitted.and_then(|(admitted, callers)| admitted.token_version(callers)),
            client: self.client.ip(),
            client_port: self.client.port(),
            told: self.told.as_deref(),
            host: match &self.told {
                Some(told) => &told.authority,
                None if self.host.is_empty() => self.server_name.as_deref().unwrap_or(""),
                None => &self.host,
            },
            method: &self.method,
            path: &self.path,
            status: self.status,
            refused: self.refused,
            bytes_in: self.bytes_in,
            bytes_out: self.bytes_out,
            upstream: upstream.map(|upstream| &*upstream.name),
            upstream_address: self.upstream_address,
            credential,
            stripped: plan.map(Plan::stripped),
            scrubbed: self.scrubbed,
            uninspected: self.uninspected,
            total: rt::now() - self.started,
            upstream_wait: self.upstream_wait,
            generation: snapshot.map_or(0, |snapshot| snapshot.generation),
        }
        .encode(out);
    }
}

/// Instance, core and number: 16, 2 and 10 digits in hex.
fn push_id(out: &mut String, instance: u64, core: usize, number: u64) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut digits = |value: u64, width: u32| {
        for at in (0..width).rev() {
            out.push(char::from(HEX[(value >> (at * 4)) as usize & 15]));
        }
    };
    digits(instance, 16);
    digits(core as u64, 2);
    digits(number, 10);
}

impl Ledger {
    pub fn new(lane: Lane, counters: Arc<Counters>) -> Self {
        Self {
            lane: RefCell::new(lane),
            batch: RefCell::default(),
            counters,
            open: RefCell::default(),
        }
    }

    /// Takes a place for the exchange's record. `false`: there is none.
    pub fn reserve(&self, draft: &mut Draft) -> bool {
        draft.reserved = draft.reserved || self.lane.borrow_mut().reserve();
        draft.reserved
    }

    /// The exchange will outlive this tick: it may need a begin record.
    pub fn watch(&self, draft: &Rc<RefCell<Draft>>) {
        if !std::mem::replace(&mut draft.borrow_mut().listed, true) {
            self.open.borrow_mut().push(Rc::downgrade(draft));
        }
    }

    /// Writes the exchange's record.
    pub fn end(&self, draft: &mut Draft, plan: Option<&Plan>) {
        if !std::mem::replace(&mut draft.open, false) {
            return;
        }
        #[cfg(test)]
        if crate::simulation::is(crate::simulation::Break::WritesRecordTwice)
            && self.lane.borrow_mut().reserve()
        {
            self.write(draft, "exchange", plan);
        }
        if !self.reserve(draft) {
            self.counters.add(Counter::audit_lost);
            draft.view = None;
            return;
        }
        draft.reserved = false;
        self.write(draft, "exchange", plan);
        // The snapshot, and the keys in it, are not kept alive by an idle connection.
        draft.view = None;
    }

    /// An exchange that nobody needs to know of: it called no API and was refused nothing.
    pub fn forget(&self, draft: &mut Draft) {
        draft.open = false;
        draft.view = None;
    }

    fn write(&self, draft: &Draft, event: &'static str, plan: Option<&Plan>) {
        let mut batch = self.batch.borrow_mut();
        draft.encode(event, plan, &mut batch.lines);
        batch.records += 1;
        self.counters.add(Counter::audit_records);
        if batch.lines.len() >= BATCH_BYTES {
            self.send(&mut batch);
        }
    }

    fn send(&self, batch: &mut Batch) {
        let full = std::mem::take(batch);
        match self.lane.borrow_mut().send(full) {
            Ok(()) => batch.lines.reserve(BATCH_BYTES + 1024),
            // The lane is full: the batch waits and grows, bounded by the places.
            Err(full) => *batch = full,
        }
    }

    /// Hands over what there is, and writes begin records that are due.
    pub fn flush(&self) {
        self.begin_records();
        let mut batch = self.batch.borrow_mut();
        if batch.records > 0 {
            self.send(&mut batch);
        }
    }

    fn begin_records(&self) {
        self.open.borrow_mut().retain(|draft| {
            let Some(draft) = draft.upgrade() else {
                return false;
            };
            let Ok(mut draft) = draft.try_borrow_mut() else {
                return true;
            };
            if !draft.open {
                draft.listed = false;
                return false;
            }
            if !draft.begun && rt::now() - draft.started >= BEGIN_AFTER {
                draft.begun = true;
                // A place of its own; without one the end record still comes.
                if self.lane.borrow_mut().reserve() {
                    self.write(&draft, "begin", None);
                } else {
                    self.counters.add(Counter::audit_lost);
                }
            }
            true
        });
    }

    /// Drafts that are watched and whose exchange has not ended.
    #[cfg(test)]
    pub fn open(&self) -> usize {
        let open = self.open.borrow();
        let drafts = open.iter().filter_map(Weak::upgrade);
        drafts.filter(|draft| draft.borrow().open).count()
    }

    /// The core ends with exchanges in flight: each has its record all the same.
    pub fn stop(&self) {
        for draft in self.open.take() {
            if let Some(draft) = draft.upgrade()
                && let Ok(mut draft) = draft.try_borrow_mut()
                && draft.open
            {
                draft.refused = Some((Refuser::Claviger, "stopped"));
                self.end(&mut draft, None);
            }
        }
        self.flush();
    }
}

#[cfg(test)]
mod tests;
