//! [`Hubs`]: which hubs are in reach, as one core knows it.
//!
//! An edge leads to hubs that stand in for each other. Requests go to the first one of a route's list
//! that is not lost. A hub is lost when no connection to it can be opened, or it closes a new one
//! without an answer, or a question stays open: [`Ping`], asked over a kept connection when
//! nothing else was heard for [`CHECK_MS`]. From then on no request waits for it; it is asked anew every
//! [`PROBE_MS`], each time over a connection of its own, since a connect under way when the link comes
//! back may wait for its next SYN for seconds.
//!
//! Deliberately missing: a state that cores share. Each has its own connections, so each asks for
//! itself.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use policy::edge::Ping;
use policy::snapshot::RouteIndex;
use policy::verdict::PoolKey;
use policy::{Permit, Snapshot};
use wire::framing::{self, BodyFraming};
use wire::head::{HeadLimits, Method, Parse, ResponseHead};

use crate::core::{Core, View};
use crate::pool::{self, Lease, LeaseError, Purpose};
use crate::rt;
use crate::transport::Filled;

/// A hub of which nothing was heard for so long is asked.
const CHECK_MS: u64 = 1_000;

/// For its answer. Past it the hub is lost.
const CHECK_WITHIN: Duration = Duration::from_secs(1);

/// A lost hub is asked again so often.
const PROBE_MS: u64 = 200;

/// Questions to a lost hub at once. Further ones wait until one of these has failed, which takes
/// `connect_timeout` at most.
const PROBES_MAX: u32 = 10;

/// So long may bytes on a hub's connection be unacknowledged, or a probe of the kernel's. Past it
/// the connection has failed, and a request on it goes elsewhere or is answered.
pub const SILENCE_MAX: Duration = Duration::from_secs(3);

/// The hubs of the snapshot in force.
#[derive(Default)]
pub struct Hubs {
    generation: Cell<u64>,
    known: RefCell<Vec<Hub>>,
}

struct Hub {
    key: PoolKey,
    /// A route that leads there, and by which of its ways.
    route: RouteIndex,
    way: usize,
    is_lost: bool,
    /// When it was last asked, and when it last answered anything.
    asked_ms: u64,
    heard_ms: u64,
    /// Questions under way.
    asking: u32,
}

impl Hubs {
    /// Picks the way of a request. `false`: it leads to hubs, and all of them are lost, or `tries`
    /// says that each has been tried. What leads to no hub stays as it is.
    pub fn choose(&self, permit: &mut Permit<'_>, tries: usize) -> bool {
        if !permit.upstream().is_hub {
            return true;
        }
        let route = permit.route();
        let way = (0..route.ways()).find(|&way| !self.is_lost(route.pool_key(way)));
        match way {
            Some(way) if tries < route.ways() => {
                permit.take_way(way);
                true
            }
            _ => false,
        }
    }

    /// Whether an error means that the permit's hub is lost; notes it.
    pub fn is_loss(&self, permit: &Permit<'_>, error: &LeaseError) -> bool {
        let is_loss = permit.upstream().is_hub && is_out_of_reach(error);
        if is_loss {
            self.lose(permit);
        }
        is_loss
    }

    /// Notes that the permit's hub is lost.
    pub fn lose(&self, permit: &Permit<'_>) {
        if self.with(permit.pool_key(), |hub| {
            !std::mem::replace(&mut hub.is_lost, true)
        }) {
            say_lost(&permit.upstream().name);
        }
    }

    /// Notes that the permit's hub, if it is one, has answered.
    pub fn heard(&self, permit: &Permit<'_>, now_ms: u64) {
        if permit.upstream().is_hub {
            self.with(permit.pool_key(), |hub| {
                hub.heard_ms = now_ms;
                hub.is_lost = false;
            });
        }
    }

    /// Whether requests avoid it.
    pub fn is_lost(&self, key: PoolKey) -> bool {
        self.with(key, |hub| hub.is_lost)
    }

    /// Acts on a hub that is known, or gives the default.
    fn with<R: Default>(&self, key: PoolKey, act: impl FnOnce(&mut Hub) -> R) -> R {
        let mut known = self.known.borrow_mut();
        let hub = known.iter_mut().find(|hub| hub.key == key);
        hub.map(act).unwrap_or_default()
    }

    /// Takes up the hubs of a new snapshot; of those that stay, what is known of them.
    fn learn(&self, view: &Snapshot) {
        if self.generation.replace(view.generation) == view.generation {
            return;
        }
        let mut before = self.known.take();
        if view.upstreams.iter().all(|upstream| !upstream.is_hub) {
            return;
        }
        let mut known: Vec<Hub> = Vec::new();
        for (index, route) in view.routes().filter(|(_, route)| route.upstream.is_hub) {
            for way in 0..route.ways() {
                let key = route.pool_key(way);
                if known.iter().any(|hub| hub.key == key) {
                    continue;
                }
                let earlier = before.iter().position(|hub| hub.key == key);
                let hub = match earlier.map(|at| before.swap_remove(at)) {
                    Some(hub) => Hub {
                        route: index,
                        way,
                        ..hub
                    },
                    None => Hub {
                        key,
                        route: index,
                        way,
                        is_lost: false,
                        asked_ms: 0,
                        heard_ms: 0,
                        asking: 0,
                    },
                };
                known.push(hub);
            }
        }
        self.known.replace(known);
    }

    /// Hubs that are to be asked now; they count as asked.
    fn due(&self, now_ms: u64) -> Vec<Question> {
        let mut due = Vec::new();
        for hub in self.known.borrow_mut().iter_mut() {
            let (pause, at_once) = match hub.is_lost {
                true => (PROBE_MS, PROBES_MAX),
                false => (CHECK_MS, 1),
            };
            let last = if hub.is_lost {
                hub.asked_ms
            } else {
                hub.asked_ms.max(hub.heard_ms)
            };
            // Never asked: the first connections are opened ahead of the first request.
            let is_new = hub.asked_ms == 0 && hub.heard_ms == 0;
            if hub.asking < at_once && (is_new || now_ms.saturating_sub(last) >= pause) {
                hub.asked_ms = now_ms.max(1);
                hub.asking += 1;
                due.push(Question {
                    key: hub.key,
                    route: hub.route,
                    way: hub.way,
                    of_lost: hub.is_lost,
                });
            }
        }
        due
    }
}

/// What is to be asked.
struct Question {
    key: PoolKey,
    route: RouteIndex,
    way: usize,
    of_lost: bool,
}

/// Asks the hubs that are due. Called once per tick.
pub fn tick(core: &Rc<Core>) {
    let view = core.view();
    core.hubs.learn(&view);
    for question in core.hubs.due(core.tick.now_ms()) {
        let (core, view) = (Rc::clone(core), Rc::clone(&view));
        rt::spawn(async move {
            let _asking = Asking(&core, question.key);
            let is_there = ask(&core, &view, &question).await;
            settle(&core, &view, &question, is_there);
        });
    }
}

/// Counts a question as under way for as long as it lives.
struct Asking<'a>(&'a Core, PoolKey);

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.0
            .hubs
            .with(self.1, |hub| hub.asking = hub.asking.saturating_sub(1));
    }
}

fn settle(core: &Core, view: &View, question: &Question, is_there: bool) {
    let now_ms = core.tick.now_ms();
    let has_changed = core.hubs.with(question.key, |hub| {
        if is_there {
            hub.heard_ms = now_ms;
        } else if hub.is_lost != question.of_lost {
            // It was asked before that changed.
            return false;
        }
        std::mem::replace(&mut hub.is_lost, !is_there) == is_there
    });
    let name = &view.route(question.route).way(question.way).0.name;
    if has_changed && is_there {
        tracing::info!(upstream = &**name, "the hub is in reach again");
    } else if has_changed {
        say_lost(name);
    }
    if !is_there {
        // Whatever is kept towards it leads to nobody.
        core.pool.close_idle(question.key);
    }
}

fn say_lost(name: &str) {
    tracing::warn!(
        upstream = name,
        "the hub is out of reach; requests go to another one, or are answered 503 hub_unreachable, until it answers"
    );
}

/// Whether the hub answers.
async fn ask(core: &Rc<Core>, view: &View, question: &Question) -> bool {
    let route = view.route(question.route);
    let (upstream, _) = route.way(question.way);
    let Some(ping) = Ping::of(route, question.way) else {
        return true;
    };
    let purpose = match question.of_lost {
        true => Purpose::Probe,
        false => Purpose::Check,
    };
    let mut lease = match pool::lease(core, question.key, upstream, purpose, pool::NOBODY).await {
        Ok(lease) => lease,
        Err(error) => return !is_out_of_reach(&error) && !question.of_lost,
    };
    match answer(&mut lease, &ping).await {
        Some((is_there, true)) => {
            lease.give_back(upstream);
            is_there
        }
        Some((is_there, false)) => is_there,
        None => false,
    }
}

/// Whether the answer speaks for the hub, and whether the connection can be used again.
async fn answer(lease: &mut Lease, ping: &Ping<'_>) -> Option<(bool, bool)> {
    let key = lease.key();
    let (mut up_in, mut up_out) = lease.connection().split();
    up_out.write(&ping.slices(key)).ok()?;
    up_out.flush(CHECK_WITHIN).await.ok()?;
    let mut head = ResponseHead::new();
    loop {
        match up_in.fill(CHECK_WITHIN).await {
            Ok(Filled::Data) => up_in.take(|chunk| {
                head.buffer().extend_from_slice(chunk);
                (chunk.len(), ())
            }),
            Ok(Filled::End) | Err(_) => return None,
        }
        if head.parse(&HeadLimits::default()).ok()? == Parse::Complete {
            break;
        }
    }
    // One that does not know us, or is too busy for a question, is there all the same: it says so to
    // each request that it refuses. What stands before a hub that is gone says so in its own name.
    let is_there = head.status() < 500 || is_claviger_s(&head);
    let is_whole = framing::of_response(&head, Method::Options) == Ok(BodyFraming::None)
        && head.rest().is_empty();
    Some((is_there, is_whole && head.keep_alive()))
}

/// Whether an answer is a Claviger's own.
fn is_claviger_s(head: &ResponseHead) -> bool {
    let mut names = head.fields().iter().map(|field| head.name(field));
    names.any(|name| name.eq_ignore_ascii_case(b"Claviger-Answer"))
}

/// Whether it says something of the way to the hub, and not of a bound of our own.
fn is_out_of_reach(error: &LeaseError) -> bool {
    match error {
        LeaseError::Down
        | LeaseError::NoAddress
        | LeaseError::Connect(_)
        | LeaseError::Tls(_)
        | LeaseError::Unasked
        | LeaseError::TimedOut => true,
        LeaseError::Exhausted | LeaseError::Waited | LeaseError::NoHub | LeaseError::Local(_) => {
            false
        }
    }
}
