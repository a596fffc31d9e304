//! Accepting: every core listens, and a connection goes to the least busy core.
//!
//! All cores accept from the same listening sockets. Whoever accepts looks at
//! how many connections each core serves and passes the descriptor on if another
//! one has fewer; so a few long-lived callers do not share one core while the
//! next one idles. The measurement behind this choice is in ARCHITECTURE.md.

use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use handoff::Counter;

use crate::complaint;
use crate::connection;
use crate::core::Core;
use crate::rt::{self, Handed, Hatch, HatchSender, RawSocket};

/// Connections that a core takes from one socket's queue when it stops accepting: as
/// many as can wait there (`BACKLOG` of the process). What has come since did not wait,
/// and under load would never end; it is reset when the socket is closed.
const QUEUE_TAKEN_MAX: usize = 4096;

/// For how long it takes them while another process accepts on the same socket: that
/// one takes the rest.
const QUEUE_TIME_SHARED: std::time::Duration = std::time::Duration::from_millis(250);

/// After an accept that failed for want of descriptors or memory.
const ACCEPT_PAUSE: std::time::Duration = std::time::Duration::from_millis(50);

/// A socket that listens, and the name of its listener.
#[derive(Debug)]
pub struct BoundListener {
    /// The name in the configuration.
    pub name: Arc<str>,
    /// The address that was bound, with its real port.
    pub address: SocketAddr,
    /// The listening socket. Each core holds a duplicate.
    pub socket: TcpListener,
}

/// A connection stays where it was accepted while that core has at most one more
/// than the least busy one per so many of its own.
const HAND_OUT_SLACK: usize = 8;

/// One core's number of connections, on a cache line of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Load(AtomicUsize);

/// How many connections each core serves, and how to reach it. Touched when a
/// connection comes or goes, never by a request.
#[derive(Debug)]
pub struct Cores {
    loads: Vec<Load>,
    hatches: Vec<HatchSender>,
}

impl Cores {
    /// One entry per core.
    pub fn new(hatches: Vec<HatchSender>) -> Arc<Self> {
        Arc::new(Self {
            loads: hatches.iter().map(|_| Load::default()).collect(),
            hatches,
        })
    }

    /// The core that should serve the next connection that `me` accepted.
    fn least_loaded(&self, me: usize) -> usize {
        let mine = self.load(me);
        let (best, least) = (0..self.loads.len())
            .map(|core| (core, self.load(core)))
            .min_by_key(|&(_, load)| load)
            .unwrap_or((me, mine));
        // Exact for a few long-lived callers, silent for many: measured, 0 % of
        // spreads were apart by 2, and hardly anything is passed on under load.
        if mine.saturating_sub(least) > mine / HAND_OUT_SLACK {
            best
        } else {
            me
        }
    }

    /// Connections that `core` serves.
    pub fn load(&self, core: usize) -> usize {
        self.loads[core].0.load(Ordering::Relaxed)
    }
}

/// A connection's place on its core; given back when dropped.
struct Place {
    cores: Arc<Cores>,
    core: Rc<Core>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.cores.loads[self.core.index]
            .0
            .fetch_sub(1, Ordering::Relaxed);
        self.core.counters.sub(Counter::connections_open);
    }
}

/// Counts a panic that unwinds through it.
struct PanicCounter<'a>(&'a Core);

impl Drop for PanicCounter<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.count(Counter::exchanges_panicked);
        }
    }
}

/// Accepts on one listening socket until the core drains. What waits in the
/// queue then is served as well: closing the last duplicate would reset it, and a
/// stopped accept may have been the one that was woken for it.
pub async fn accept(
    core: Rc<Core>,
    cores: Arc<Cores>,
    names: Arc<[Arc<str>]>,
    index: u32,
    listener: rt::Listener,
) {
    while !core.draining.get() {
        let socket = match listener.accept().await {
            Ok(socket) => socket,
            Err(error) => {
                if is_gone(&error) || rt::is_stopped(&error) {
                    continue;
                }
                core.count(Counter::accepts_failed);
                let cure = complaint::exhausted(&error);
                // Whoever keeps us waiting makes room for whoever comes.
                let made_room = cure.is_some() && core.make_room();
                if let Some(unsaid) = core.complaints.accepting.may(core.tick.now_ms()) {
                    tracing::warn!(
                        listener = &*names[index as usize],
                        unsaid,
                        made_room,
                        "accept failed: {error}; {}",
                        cure.unwrap_or("the cause is not known")
                    );
                }
                rt::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        place(&core, &cores, &names, index, socket);
    }
    let began = rt::now();
    for _ in 0..QUEUE_TAKEN_MAX {
        if core.retiring.get() && rt::now() - began >= QUEUE_TIME_SHARED {
            break;
        }
        let Ok(socket) = listener.accept_waiting().await else {
            break;
        };
        place(&core, &cores, &names, index, socket);
    }
}

/// Serves a new connection here, or hands it to a less busy core.
fn place(
    core: &Rc<Core>,
    cores: &Arc<Cores>,
    names: &Arc<[Arc<str>]>,
    index: u32,
    socket: RawSocket,
) {
    core.count(Counter::connections_accepted);
    // While draining each core finishes what it has: the others may be gone.
    let target = if core.draining.get() {
        core.index
    } else {
        cores.least_loaded(core.index)
    };
    // The load counts from here, so that a burst is spread as well.
    cores.loads[target].0.fetch_add(1, Ordering::Relaxed);
    if target == core.index {
        start(
            core,
            cores,
            names,
            Handed {
                socket,
                listener: index,
            },
        );
        return;
    }
    match cores.hatches[target].hand(Handed {
        socket,
        listener: index,
    }) {
        Ok(()) => core.count(Counter::connections_handed_over),
        Err(kept) => {
            cores.loads[target].0.fetch_sub(1, Ordering::Relaxed);
            cores.loads[core.index].0.fetch_add(1, Ordering::Relaxed);
            start(core, cores, names, kept);
        }
    }
}

/// Takes in what other cores hand over.
pub async fn take_in(core: Rc<Core>, cores: Arc<Cores>, names: Arc<[Arc<str>]>, hatch: Hatch) {
    loop {
        match hatch.receive().await {
            Ok(handed) => start(&core, &cores, &names, handed),
            Err(error) => {
                tracing::error!("the hatch between cores failed: {error}");
                rt::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn start(core: &Rc<Core>, cores: &Arc<Cores>, names: &Arc<[Arc<str>]>, handed: Handed) {
    core.count(Counter::connections_open);
    let place = Place {
        cores: Arc::clone(cores),
        core: Rc::clone(core),
    };
    let Handed { socket, listener } = handed;
    let connections_max = core.view().limits.connections_max;
    if cores.load(core.index) > connections_max {
        // Whoever keeps us waiting makes room for whoever comes.
        let made_room = core.make_room();
        if let Some(unsaid) = core.complaints.connections.may(core.tick.now_ms()) {
            tracing::warn!(
                listener = &*names[listener as usize],
                connections_max,
                unsaid,
                made_room,
                "connections_max is reached on this core: {}; raise it if memory and open files allow, or look at who connects",
                if made_room {
                    "a caller that kept it waiting was cut off"
                } else {
                    "a new connection was refused"
                }
            );
        }
        if !made_room {
            core.count(Counter::connections_refused_limit);
            drop(socket);
            return;
        }
    }
    let Ok(client) = rt::peer_address(&socket) else {
        return;
    };
    let name = Arc::clone(&names[listener as usize]);
    let core = Rc::clone(core);
    rt::spawn(async move {
        // A panic ends this connection and nothing else; it unwinds through here.
        let _place = place;
        let _guard = PanicCounter(&core);
        connection::serve(&core, name, client, socket).await;
    });
}

/// Errors of a connection that was gone before it was accepted (accept(2)).
fn is_gone(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        std::io::ErrorKind::ConnectionAborted
            | std::io::ErrorKind::ConnectionReset
            | std::io::ErrorKind::Interrupted
    ) || matches!(error.raw_os_error(), Some(libc::EPROTO))
}
