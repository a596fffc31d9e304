//! Fixtures for the workspace's benchmarks: whole things to be timed or counted,
//! behind the feature `bench`, which the product is built without.
//!
//! They show no internals: no pool, lease, session or socket leaves this module, and
//! there is no way to a credential. What they lack is the network: TLS is
//! played in memory, and the pooled connections are idle ones on loopback.

use std::future::Future;
use std::net::TcpListener;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use handoff::{Counters, Published, lane};
use policy::verdict::PoolKey;
use policy::{AddressBook, Snapshot, Upstream};

use crate::core::Core;
use crate::ledger::Ledger;
use crate::pool::{self, Lease, Purpose};
use crate::rt::{self, DriverKind};
use crate::transport::Transport;

pub use crate::transport::in_memory::Sessions;

/// One core that serves nobody, with idle connections to one upstream in its pool.
pub struct IdleCore {
    core: Rc<Core>,
    key: PoolKey,
    upstream: Arc<Upstream>,
    /// Where the pooled connections lead. Nobody accepts them, so each costs one descriptor.
    _listeners: Vec<TcpListener>,
}

impl IdleCore {
    /// A core with `idle` connections in clear text, all of one bucket.
    ///
    /// # Panics
    /// When loopback or the limit of open files does not allow so many.
    pub fn new(snapshot: Arc<Snapshot>, upstream: Upstream, idle: usize) -> Self {
        let listeners: Vec<TcpListener> = (0..idle.div_ceil(BACKLOG))
            .map(|_| TcpListener::bind("127.0.0.1:0").expect("loopback has free ports"))
            .collect();
        let upstream = Arc::new(upstream);
        let key = PoolKey {
            upstream: upstream.id,
            credential: None,
        };
        let counters = Arc::new(Counters::default());
        let core = Core::new(
            0,
            Arc::clone(&counters),
            Published::new(snapshot).reader(),
            Published::new(Arc::new(AddressBook::default())).reader(),
            Ledger::new(lane().0, counters),
            0x0123_4567_89ab_cdef,
        );
        // The connections never wait for anything, so the runtime is needed to make them only.
        rt::run(DriverKind::Epoll, Duration::ZERO, async {
            let mut leases = Vec::new();
            for at in 0..idle {
                let address = listeners[at / BACKLOG].local_addr().expect("it is bound");
                let socket = rt::connect(address).await.expect(
                    "loopback connects, and the limit of open files (`ulimit -n`) allows it",
                );
                let connection = Transport::new(socket, &core.tick, &core.buffers);
                leases.push(Lease::of(&core, key, connection, address));
            }
            for lease in leases {
                lease.give_back(&upstream);
            }
        })
        .expect("epoll is there");
        assert_eq!(core.pool.idle(), idle, "idle_max allows so many");
        Self {
            core,
            key,
            upstream,
            _listeners: listeners,
        }
    }

    /// Lends an idle connection and takes it back, as an exchange does.
    ///
    /// # Panics
    /// When none is idle.
    pub fn lease_and_return(&self) {
        // Pinned where it is made, as within an exchange: moving it would be counted too.
        let leasing = pin!(pool::lease(
            &self.core,
            self.key,
            &self.upstream,
            Purpose::Request,
            std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST),
        ));
        match leasing.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(lease)) => lease.give_back(&self.upstream),
            Poll::Ready(Err(error)) => panic!("an idle connection is lent: {error:?}"),
            Poll::Pending => panic!("an idle connection is lent without waiting"),
        }
    }

    /// The generation of the newest snapshot, looked up as a request does.
    pub fn view(&self) -> u64 {
        self.core.view().generation
    }
}

/// Connections that wait in one listener's queue: fewer than the standard library asks for.
const BACKLOG: usize = 100;
