//! One caller's connection: the handshake, then one exchange after another, and
//! between two of them perhaps the way to another core.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use handoff::Counter;
use policy::access::contains;
use policy::{Caller, Identity};
use wire::proxy_header::{NotAProxyHeader, ProxyHeader};

use crate::balance::Activity;
use crate::core::Core;
use crate::exchange::{self, Next};
use crate::ledger::Draft;
use crate::rt::{self, RawSocket};
use crate::session::Session;
use crate::tls;
use crate::transport::{Filled, Transport};

/// How long after its handshake a connection may send its first request although
/// the core drains.
const FIRST_GRACE: Duration = Duration::from_secs(1);

/// Answers of our own wait for nobody. After so many of them on one connection it lets others of
/// its core run, or a caller that never pauses would have the core to itself.
const OWN_ANSWERS_PER_TURN: u64 = 16;

/// A connection that this core shall serve.
pub struct Arrival {
    /// The listener that accepted it.
    pub listener: Arc<str>,
    pub client: SocketAddr,
    pub socket: RawSocket,
    /// What another core has made of it; `None` is a new one.
    pub carried: Option<Carried>,
}

/// A connection that goes on elsewhere.
pub struct Departure {
    /// Where.
    pub core: usize,
    pub socket: RawSocket,
    pub carried: Carried,
}

/// What of a connection moves to another core, beside its socket.
pub struct Carried {
    peer: Peer,
    /// `None` is clear text.
    session: Option<Box<Session>>,
}

/// Who is at the other end, as far as the connection tells.
pub struct Peer {
    /// The listener that accepted it.
    pub listener: Arc<str>,
    /// Where it is: its own address, or what a load balancer in front has said.
    pub client: SocketAddr,
    pub server_name: Option<Box<str>>,
    pub tls: bool,
    /// What its certificate says, where one was asked for and shown.
    pub identity: Option<Box<Identity>>,
}

impl Peer {
    /// The same in policy's words.
    pub fn caller(&self) -> Caller<'_> {
        Caller {
            address: self.client.ip(),
            server_name: self.server_name.as_deref(),
            tls: self.tls,
            identity: self.identity.as_deref(),
        }
    }
}

/// Serves a connection to its end, or until another core should go on with it.
pub async fn serve(core: &Rc<Core>, arrival: Arrival) -> Option<Departure> {
    let socket = match rt::adopt(arrival.socket) {
        Ok(socket) => socket,
        Err(error) => {
            core.count(Counter::accepts_failed);
            if let Some(unsaid) = core.complaints.accepting.may(core.tick.now_ms()) {
                tracing::warn!(
                    listener = &*arrival.listener,
                    unsaid,
                    "a connection could not be watched: {error}; likely cause: `sysctl fs.epoll.max_user_watches`, or the kernel's memory"
                );
            }
            return None;
        }
    };
    let mut down = Transport::new(socket, &core.tick, &core.buffers);
    let client = arrival.client;
    let client = SocketAddr::new(Caller::canonical(client.ip()), client.port());
    let (peer, mut pace) = match arrival.carried {
        None => {
            let peer = greet(core, arrival.listener, client, &mut down).await?;
            (peer, Pace::of_new())
        }
        Some(carried) => {
            down.resume(carried.session);
            (carried.peer, Pace::of_moved(core))
        }
    };
    let client = peer.client;
    let goes_to = {
        let draft = Draft::new(Arc::clone(&peer.listener), client);
        draft.borrow_mut().server_name.clone_from(&peer.server_name);
        let _record = LastRecord {
            core,
            draft: &draft,
        };
        exchanges(core, &peer, &draft, &mut down, &mut pace).await?
    };
    let (socket, session) = goes_to.parts;
    Some(Departure {
        core: goes_to.core,
        socket,
        carried: Carried { peer, session },
    })
}

/// Whatever way a connection ends, be it a panic, an exchange that was begun has
/// its record.
struct LastRecord<'a> {
    core: &'a Core,
    draft: &'a RefCell<Draft>,
}

impl Drop for LastRecord<'_> {
    fn drop(&mut self) {
        if let Ok(mut draft) = self.draft.try_borrow_mut() {
            if std::thread::panicking() {
                draft.refused = Some((policy::Refuser::Claviger, "panic"));
            }
            self.core.ledger.end(&mut draft, None);
        }
    }
}

/// The handshake, where the listener speaks TLS.
async fn greet(
    core: &Rc<Core>,
    listener: Arc<str>,
    client: SocketAddr,
    down: &mut Transport,
) -> Option<Peer> {
    let view = core.view();
    let settings = view.listeners.iter().find(|known| known.name == listener)?;
    let mut peer = Peer {
        listener,
        client,
        server_name: None,
        tls: settings.tls,
        identity: None,
    };
    let limit = view.limits.handshake_timeout;
    if contains(&settings.proxies, client.ip()) {
        match behind_proxy(down, limit).await {
            Ok(Some(source)) => {
                peer.client = SocketAddr::new(Caller::canonical(source.ip()), source.port());
            }
            // The load balancer's own connection.
            Ok(None) => {}
            Err(error) => {
                core.count(Counter::connections_refused_proxy);
                tracing::debug!(listener = &*peer.listener, client = %client.ip(), "no PROXY protocol header: {error}");
                return None;
            }
        }
    }
    if settings.tls {
        // Boxed: a handshake's state is large and short-lived.
        match Box::pin(tls::accept(core, &view, settings, down, limit)).await {
            Ok(accepted) => {
                peer.server_name = Some(accepted.server_name);
                peer.identity = accepted.identity;
            }
            Err(error) => {
                tracing::debug!(listener = &*peer.listener, client = %peer.client.ip(), "handshake failed: {error}");
                return None;
            }
        }
    }
    Some(peer)
}

/// What a load balancer says of the connection, in front of everything else.
async fn behind_proxy(down: &mut Transport, limit: Duration) -> io::Result<Option<SocketAddr>> {
    down.watch().recv_within(limit);
    let header = async {
        loop {
            let parsed = down.take_raw(|bytes| match ProxyHeader::parse(bytes) {
                Ok(ProxyHeader::Complete { length, source }) => (length, Ok(Some(source))),
                Ok(ProxyHeader::Partial) => (0, Ok(None)),
                Err(error) => (0, Err(error)),
            });
            match parsed {
                Ok(Some(source)) => return Ok(source),
                Ok(None) => down.recv_raw(|_| ()).await?,
                Err(NotAProxyHeader) => return Err(io::ErrorKind::InvalidData.into()),
            }
        }
    };
    let header = header.await;
    down.watch().recv_done();
    header
}

/// How a connection's exchanges follow each other.
struct Pace {
    /// For the first request after a handshake.
    grace: Duration,
    activity: Activity,
}

impl Pace {
    fn of_new() -> Self {
        Self {
            // A connection that was taken from the queue while draining gets its chance.
            grace: FIRST_GRACE,
            activity: Activity::default(),
        }
    }

    fn of_moved(core: &Core) -> Self {
        Self {
            grace: Duration::ZERO,
            activity: Activity::of_moved(core.tick.now_ms()),
        }
    }
}

/// Where a connection goes on, and what it is then.
struct GoesTo {
    core: usize,
    parts: (RawSocket, Option<Box<Session>>),
}

async fn exchanges(
    core: &Rc<Core>,
    peer: &Peer,
    draft: &Rc<RefCell<Draft>>,
    down: &mut Transport,
    pace: &mut Pace,
) -> Option<GoesTo> {
    let mut own_answers = 0;
    let member = core.admission.member(peer.client.ip());
    loop {
        let limits = core.view().limits;
        let grace = std::mem::take(&mut pace.grace);
        let arrived = down.incoming().fill_idle(limits.idle_timeout, grace).await;
        match arrived {
            Ok(Filled::Data) => {}
            // An idle end is a clean one, whoever wants it.
            Ok(Filled::End) | Err(_) => {
                down.goodbye().await;
                return None;
            }
        }
        core.burden.serves(&mut pace.activity);
        // An idle connection has no desk; a pipelined request keeps it.
        let mut desk = core.take_desk();
        let next = loop {
            let before = core.counters.get(Counter::exchanges_answered_here);
            // Boxed: a connection that waits does not carry an exchange's state along.
            let next = Box::pin(exchange::run(core, peer, &member, draft, down, &mut desk)).await;
            // Those of other connections count as well, if this one waited: harmless.
            own_answers += u64::from(core.counters.get(Counter::exchanges_answered_here) != before);
            if own_answers >= OWN_ANSWERS_PER_TURN {
                own_answers = 0;
                rt::yield_now().await;
            }
            if next != Next::KeepAlive || desk.request.buffered() == 0 {
                break next;
            }
        };
        core.give_desk(desk);
        match next {
            Next::KeepAlive if !core.draining.get() => {}
            Next::KeepAlive | Next::Close => {
                down.goodbye().await;
                return None;
            }
            Next::Linger => {
                crate::respond::linger(down).await;
                return None;
            }
            Next::Drop => return None,
        }
        // Nothing is under way now: neither an exchange nor an operation of the kernel.
        if let Some(other) = core.burden.relief(&pace.activity, core.tick.now_ms())
            && let Some(parts) = down.dismantle()
        {
            return Some(GoesTo { core: other, parts });
        }
    }
}

#[cfg(test)]
mod tests;
