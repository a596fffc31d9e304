//! One caller's connection: the handshake, then one exchange after another.

use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use handoff::Counter;
use policy::Caller;

use crate::core::Core;
use crate::exchange::{self, Next};
use crate::ledger::Draft;
use crate::rt::{self, RawSocket};
use crate::tls;
use crate::transport::{Filled, Transport};

/// How long after its handshake a connection may send its first request although
/// the core drains.
const FIRST_GRACE: Duration = Duration::from_secs(1);

/// Who is at the other end, as far as the connection tells.
pub struct Peer {
    /// The listener that accepted it.
    pub listener: Arc<str>,
    pub address: IpAddr,
    pub server_name: Option<Box<str>>,
    pub tls: bool,
}

impl Peer {
    /// The same in policy's words.
    pub fn caller(&self) -> Caller<'_> {
        Caller {
            address: self.address,
            server_name: self.server_name.as_deref(),
            tls: self.tls,
        }
    }
}

/// Serves a connection to its end.
pub async fn serve(core: &Rc<Core>, listener: Arc<str>, client: SocketAddr, socket: RawSocket) {
    let socket = match rt::adopt(socket) {
        Ok(socket) => socket,
        Err(error) => {
            core.count(Counter::accepts_failed);
            if let Some(unsaid) = core.complaints.accepting.may(core.tick.now_ms()) {
                tracing::warn!(
                    listener = &*listener,
                    unsaid,
                    "a connection could not be watched: {error}; likely cause: `sysctl fs.epoll.max_user_watches`, or the kernel's memory"
                );
            }
            return;
        }
    };
    let mut down = Transport::new(socket, &core.tick, &core.buffers);
    let client = SocketAddr::new(Caller::canonical(client.ip()), client.port());
    let Some(peer) = greet(core, listener, client, &mut down).await else {
        return;
    };
    let draft = Draft::new(Arc::clone(&peer.listener), client);
    draft.borrow_mut().server_name.clone_from(&peer.server_name);
    let _record = LastRecord {
        core,
        draft: &draft,
    };
    exchanges(core, &peer, &draft, &mut down).await;
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
        address: client.ip(),
        server_name: None,
        tls: settings.tls,
    };
    if settings.tls {
        let limit = view.limits.handshake_timeout;
        // Boxed: a handshake's state is large and short-lived.
        match Box::pin(tls::accept(core, &view, settings, down, limit)).await {
            Ok(accepted) => peer.server_name = Some(accepted.server_name),
            Err(error) => {
                tracing::debug!(listener = &*peer.listener, client = %peer.address, "handshake failed: {error}");
                return None;
            }
        }
    }
    Some(peer)
}

async fn exchanges(core: &Rc<Core>, peer: &Peer, draft: &Rc<RefCell<Draft>>, down: &mut Transport) {
    let mut is_first = true;
    loop {
        let limits = core.view().limits;
        // A connection that was taken from the queue while draining gets its chance.
        let grace = if std::mem::take(&mut is_first) {
            FIRST_GRACE
        } else {
            Duration::ZERO
        };
        let arrived = down.incoming().fill_idle(limits.idle_timeout, grace).await;
        match arrived {
            Ok(Filled::Data) => {}
            // An idle end is a clean one, whoever wants it.
            Ok(Filled::End) | Err(_) => {
                down.goodbye().await;
                break;
            }
        }
        // An idle connection has no desk; a pipelined request keeps it.
        let mut desk = core.take_desk();
        let next = loop {
            // Boxed: a connection that waits does not carry an exchange's state along.
            let next = Box::pin(exchange::run(core, peer, draft, down, &mut desk)).await;
            if next != Next::KeepAlive || desk.request.buffered() == 0 {
                break next;
            }
        };
        core.give_desk(desk);
        match next {
            Next::KeepAlive if !core.draining.get() => {}
            Next::KeepAlive | Next::Close => {
                down.goodbye().await;
                break;
            }
            Next::Linger => {
                crate::respond::linger(down).await;
                break;
            }
            Next::Drop => break,
        }
    }
}

#[cfg(test)]
mod tests;
