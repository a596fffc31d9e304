//! Accepting: every core listens, and a connection goes to the least busy core.
//!
//! All cores accept from the same listening sockets. Whoever accepts looks at
//! how many connections each core serves and passes the descriptor on if another
//! one has fewer; so a few long-lived callers do not share one core while the
//! next one idles. Later a connection may move again, at the end of an exchange
//! ([`crate::balance`]). The measurements behind both are in ARCHITECTURE.md.

use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::Arc;

use handoff::Counter;

use crate::balance::Cores;
use crate::complaint;
use crate::connection::{self, Arrival, Carried};
use crate::core::Core;
use crate::rt::{self, Hatch, RawSocket};

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

/// What goes through a core's hatch: a connection, new or in the midst of its life.
pub struct Handed {
    /// The connection.
    pub socket: RawSocket,
    /// An index into the listeners' list.
    pub listener: u32,
    /// What another core has made of it; `None` is a new one.
    pub carried: Option<Carried>,
}

/// A connection's place on its core; given back when dropped.
struct Place {
    cores: Arc<Cores>,
    core: Rc<Core>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.cores.went(self.core.index);
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
    let handed = Handed {
        socket,
        listener: index,
        carried: None,
    };
    if target == core.index {
        cores.came(target);
        start(core, cores, names, handed);
        return;
    }
    match cores.hand(target, Box::new(handed)) {
        Ok(()) => core.count(Counter::connections_handed_over),
        Err(kept) => {
            cores.came(core.index);
            start(core, cores, names, *kept);
        }
    }
}

/// Takes in what other cores hand over.
pub async fn take_in(
    core: Rc<Core>,
    cores: Arc<Cores>,
    names: Arc<[Arc<str>]>,
    hatch: Hatch<Handed>,
) {
    loop {
        match hatch.receive().await {
            Ok(handed) => start(&core, &cores, &names, *handed),
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
    let connections_max = core.view().limits.connections_max;
    // One that was let in stays so.
    if handed.carried.is_none() && cores.load(core.index) > connections_max {
        // Whoever keeps us waiting makes room for whoever comes.
        let made_room = core.make_room();
        if let Some(unsaid) = core.complaints.connections.may(core.tick.now_ms()) {
            tracing::warn!(
                listener = &*names[handed.listener as usize],
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
            return;
        }
    }
    let cores = Arc::clone(cores);
    let name = Arc::clone(&names[handed.listener as usize]);
    let core = Rc::clone(core);
    rt::spawn(async move {
        // A panic ends this connection and nothing else; it unwinds through here.
        let _place = place;
        let _guard = PanicCounter(&core);
        let mut handed = handed;
        loop {
            let Ok(client) = rt::peer_address(&handed.socket) else {
                return;
            };
            let arrival = Arrival {
                listener: Arc::clone(&name),
                client,
                socket: handed.socket,
                carried: handed.carried,
            };
            let Some(departure) = connection::serve(&core, arrival).await else {
                return;
            };
            let leaving = Handed {
                socket: departure.socket,
                listener: handed.listener,
                carried: Some(departure.carried),
            };
            match cores.hand(departure.core, Box::new(leaving)) {
                Ok(()) => return core.count(Counter::connections_moved),
                // Its queue is full: so the connection goes on here.
                Err(kept) => handed = *kept,
            }
        }
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
