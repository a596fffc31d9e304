use std::future::Future;
use std::time::Duration;

use policy::UpstreamId;
use policy::upstream::{CredentialId, UpstreamLimits};

use super::*;
use crate::test_support::{
    IDENTITY, IMPOSTOR, Origin, Refusing, core, on_each_driver, until, upstream,
};
use crate::transport::Filled;

const CALLER: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

const KEY: PoolKey = PoolKey {
    upstream: UpstreamId(1),
    credential: Some(CredentialId(1)),
};

/// A core and an upstream that it can lease connections to.
struct World {
    core: Rc<Core>,
    upstream: Arc<Upstream>,
    origin: Origin,
}

impl World {
    fn new(limits: UpstreamLimits) -> Self {
        let origin = Origin::start(&IDENTITY);
        let upstream = upstream(1, &[origin.address], limits);
        Self {
            core: core(Arc::clone(&upstream)).0,
            upstream,
            origin,
        }
    }

    fn lease(&self, purpose: Purpose) -> impl Future<Output = Result<Lease, LeaseError>> {
        lease(&self.core, KEY, &self.upstream, purpose, CALLER)
    }

    async fn leased(&self) -> Lease {
        self.lease(Purpose::Request)
            .await
            .expect("the origin is up")
    }

    /// Opens a connection and leaves it idle.
    async fn leave_one_idle(&self) {
        self.leased().await.give_back(&self.upstream);
    }

    fn at(&self, now_ms: u64) {
        self.core.tick.sweep_at(now_ms, false);
    }

    /// Places taken, and how many of them by idle connections. A pool that was
    /// forgotten has none.
    #[track_caller]
    fn assert_places(&self, open: usize, idle: usize) {
        assert_places(&self.core, open, idle);
    }

    fn counted(&self, counter: Counter) -> u64 {
        self.core.counters.get(counter)
    }
}

#[track_caller]
fn assert_places(core: &Core, open: usize, idle: usize) {
    let buckets = core.pool.buckets.borrow();
    let places = buckets
        .values()
        .map(|bucket| (bucket.open, bucket.idle.len()))
        .fold((0, 0), |all, one| (all.0 + one.0, all.1 + one.1));
    drop(buckets);
    assert_eq!(places, (open, idle), "places taken, and idle");
    assert_eq!(core.pool.idle(), idle);
}

fn limits() -> UpstreamLimits {
    UpstreamLimits {
        connect_timeout: Duration::from_secs(5),
        ..UpstreamLimits::default()
    }
}

#[test]
fn an_idle_connection_is_used_again() {
    on_each_driver(async || {
        let world = World::new(limits());
        let lease = world.leased().await;
        assert!(!lease.reused);
        assert_eq!(lease.address(), world.origin.address);
        assert_eq!(lease.key(), KEY);
        world.assert_places(1, 0);
        lease.give_back(&world.upstream);
        world.assert_places(1, 1);
        let lease = world.leased().await;
        assert!(lease.reused);
        assert_eq!(lease.address(), world.origin.address);
        world.assert_places(1, 0);
        drop(lease);
        world.assert_places(0, 0);
        assert_eq!(world.counted(Counter::upstream_connections), 1);
        assert_eq!(world.counted(Counter::upstream_reuses), 1);
    });
}

#[test]
fn the_last_one_back_is_the_first_one_lent() {
    on_each_driver(async || {
        let world = World::new(limits());
        let mut one = world.leased().await;
        let mut other = world.leased().await;
        let (first, last) = (
            one.connection().watch().fd(),
            other.connection().watch().fd(),
        );
        one.give_back(&world.upstream);
        other.give_back(&world.upstream);
        assert_eq!(world.leased().await.connection().watch().fd(), last);
        assert_eq!(world.leased().await.connection().watch().fd(), first);
    });
}

#[test]
fn connections_are_lent_for_their_own_key_only() {
    on_each_driver(async || {
        let world = World::new(limits());
        world.leave_one_idle().await;
        for other in [
            PoolKey {
                credential: None,
                ..KEY
            },
            PoolKey {
                credential: Some(CredentialId(2)),
                ..KEY
            },
            PoolKey {
                upstream: UpstreamId(2),
                ..KEY
            },
        ] {
            let lease = lease(
                &world.core,
                other,
                &world.upstream,
                Purpose::Request,
                CALLER,
            )
            .await
            .expect("the origin is up");
            assert!(!lease.reused);
            assert_eq!(lease.key(), other);
        }
        world.assert_places(1, 1);
    });
}

#[test]
fn the_bound_holds_and_idle_ones_make_room() {
    on_each_driver(async || {
        let world = World::new(UpstreamLimits {
            connections_max: 2,
            queue_max: 0,
            ..limits()
        });
        let one = world.leased().await;
        let other = world.leased().await;
        for purpose in [Purpose::Request, Purpose::SecondTry, Purpose::Warmth] {
            let refused = world.lease(purpose).await.map(|_| ());
            assert!(matches!(refused, Err(LeaseError::Exhausted)));
        }
        world.assert_places(2, 0);
        drop(one);
        let again = world.leased().await;
        world.assert_places(2, 0);
        other.give_back(&world.upstream);
        world.assert_places(2, 1);
        // A second try wants a new one: the idle one makes room for it.
        let fresh = world
            .lease(Purpose::SecondTry)
            .await
            .expect("there is room");
        assert!(!fresh.reused);
        world.assert_places(2, 0);
        drop((again, fresh));
        world.assert_places(0, 0);
        assert_eq!(
            world.counted(Counter::upstream_connect_failures),
            0,
            "a full pool is no failure to connect"
        );
    });
}

#[test]
fn who_waits_gets_the_next_connection() {
    on_each_driver(async || {
        let world = World::new(UpstreamLimits {
            connections_max: 1,
            queue_max: 2,
            queue_timeout: Duration::from_secs(30),
            ..limits()
        });
        let held = world.leased().await;
        let served = Rc::new(RefCell::new(Vec::new()));
        for (number, purpose) in [(1, Purpose::Request), (2, Purpose::SecondTry)] {
            let (core, upstream) = (Rc::clone(&world.core), Arc::clone(&world.upstream));
            let served = Rc::clone(&served);
            rt::spawn(async move {
                let lease = lease(&core, KEY, &upstream, purpose, CALLER).await;
                let lease = lease.expect("its turn comes");
                served.borrow_mut().push((number, lease.reused));
                lease.give_back(&upstream);
            });
        }
        until(|| world.counted(Counter::upstream_queued) == 2).await;
        let refused = world.lease(Purpose::Request).await.map(|_| ());
        assert!(matches!(refused, Err(LeaseError::Exhausted)), "a third");
        let refused = world.lease(Purpose::Warmth).await.map(|_| ());
        assert!(
            matches!(refused, Err(LeaseError::Exhausted)),
            "warmth waits never"
        );
        assert_eq!(world.counted(Counter::upstream_queue_refusals), 2);
        held.give_back(&world.upstream);
        until(|| served.borrow().len() == 2).await;
        // In order; the second try has a connection of its own, and leaves that.
        assert_eq!(*served.borrow(), [(1, true), (2, false)]);
        world.assert_places(1, 1);
        assert_eq!(world.counted(Counter::upstream_connections), 2);
    });
}

/// Whose route is taken away while they wait are served still, and no more of them at a time.
#[test]
fn a_route_that_is_gone_lets_nobody_in_past_the_limit() {
    on_each_driver(async || {
        let world = World::new(UpstreamLimits {
            connections_max: 1,
            queue_max: 2,
            queue_timeout: Duration::from_secs(30),
            ..limits()
        });
        let held = world.leased().await;
        let served = Rc::new(Cell::new(0));
        for _ in 0..2 {
            let (core, upstream) = (Rc::clone(&world.core), Arc::clone(&world.upstream));
            let served = Rc::clone(&served);
            rt::spawn(async move {
                let lease = lease(&core, KEY, &upstream, Purpose::Request, CALLER).await;
                served.set(served.get() + 1);
                drop(lease.expect("its turn comes"));
            });
        }
        until(|| world.counted(Counter::upstream_queued) == 2).await;
        world.core.pool.retain(|_| false);
        drop(held);
        world.assert_places(1, 0);
        until(|| served.get() == 2).await;
    });
}

/// A connection that comes back serves those who wait for its own key, however long others wait.
#[test]
fn nobody_waits_into_another_key_s_connection() {
    on_each_driver(async || {
        let world = World::new(UpstreamLimits {
            connections_max: 1,
            queue_timeout: Duration::from_secs(30),
            ..limits()
        });
        let other = PoolKey {
            credential: Some(CredentialId(2)),
            ..KEY
        };
        let ours = world.leased().await;
        let theirs = lease(
            &world.core,
            other,
            &world.upstream,
            Purpose::Request,
            CALLER,
        );
        let mut theirs = theirs.await.expect("the origin is up");
        let fd = theirs.connection().watch().fd();
        let waits = lease(
            &world.core,
            other,
            &world.upstream,
            Purpose::Request,
            CALLER,
        );
        let mut waits = Box::pin(waits);
        assert!(futures_util::poll!(&mut waits).is_pending());
        ours.give_back(&world.upstream);
        assert!(futures_util::poll!(&mut waits).is_pending());
        world.assert_places(2, 1);
        theirs.give_back(&world.upstream);
        let mut served = waits.await.expect("its own came back");
        assert_eq!((served.key(), served.reused), (other, true));
        assert_eq!(served.connection().watch().fd(), fd);
    });
}

#[test]
fn waiting_has_an_end_and_leaves_no_trace() {
    on_each_driver(async || {
        let world = World::new(UpstreamLimits {
            connections_max: 1,
            queue_timeout: Duration::from_millis(5),
            ..limits()
        });
        let held = world.leased().await;
        let late = world.lease(Purpose::Request).await.map(|_| ());
        assert!(matches!(late, Err(LeaseError::Waited)));
        // Served, and gone before it noticed: the next one is not forgotten.
        let patient = UpstreamLimits {
            queue_timeout: Duration::from_secs(30),
            ..world.upstream.limits
        };
        let patient = upstream(1, &[world.origin.address], patient);
        let gone = lease(&world.core, KEY, &patient, Purpose::Request, CALLER);
        let mut gone = Box::pin(gone);
        assert!(futures_util::poll!(&mut gone).is_pending());
        let mut next = Box::pin(lease(&world.core, KEY, &patient, Purpose::Request, CALLER));
        assert!(futures_util::poll!(&mut next).is_pending());
        drop(held);
        drop(gone);
        drop(next.await.expect("the place was passed on"));
        world.assert_places(0, 0);
        assert!(world.core.pool.buckets.borrow()[&KEY].queue.is_empty());
    });
}

/// While an upstream accepts nothing, one attempt at a time is made, for all.
#[test]
fn an_upstream_that_is_down_is_asked_by_one_at_a_time() {
    on_each_driver(async || {
        let mute = crate::test_support::listener();
        let address = mute.local_addr().expect("it is bound");
        let refusing = Refusing::new();
        let patient = UpstreamLimits {
            queue_timeout: Duration::from_secs(30),
            ..limits()
        };
        let dead = upstream(1, &[refusing.address], patient);
        let (core, _drain) = core(Arc::clone(&dead));
        for _ in 0..DOWN_AFTER {
            let error = lease(&core, KEY, &dead, Purpose::Request, CALLER)
                .await
                .map(|_| ());
            assert!(matches!(error, Err(LeaseError::Connect(_))));
        }
        // It listens and says nothing: the attempt hangs, and the others wait on it.
        let hanging = upstream(1, &[address], patient);
        let mut probe = Box::pin(lease(&core, KEY, &hanging, Purpose::Request, CALLER));
        assert!(futures_util::poll!(&mut probe).is_pending());
        let mut waits = Box::pin(lease(&core, KEY, &hanging, Purpose::Request, CALLER));
        assert!(futures_util::poll!(&mut waits).is_pending());
        assert_places(&core, 1, 0);
        // Whoever made the attempt leaves: the next in line makes one.
        drop(probe);
        assert_places(&core, 1, 0);
        assert!(futures_util::poll!(&mut waits).is_pending());
        assert_eq!(core.counters.get(Counter::upstream_queued), 1);
        drop(waits);
        assert_places(&core, 0, 0);
        // It fails again: so it does for all who wait.
        let impatient = UpstreamLimits {
            connect_timeout: Duration::from_millis(20),
            ..patient
        };
        let hanging = upstream(1, &[address], impatient);
        let mut probe = Box::pin(lease(&core, KEY, &hanging, Purpose::Request, CALLER));
        assert!(futures_util::poll!(&mut probe).is_pending());
        let mut waits = Box::pin(lease(&core, KEY, &hanging, Purpose::Request, CALLER));
        assert!(futures_util::poll!(&mut waits).is_pending());
        let (probe, waits) = futures_util::join!(probe, waits);
        assert!(probe.is_err());
        let error = waits.map(|_| ());
        assert!(matches!(error, Err(LeaseError::Down)), "{error:?}");
        // It is back: the first connection ends it.
        let origin = Origin::start(&IDENTITY);
        let alive = upstream(1, &[origin.address], patient);
        let mut probe = Box::pin(lease(&core, KEY, &alive, Purpose::Request, CALLER));
        assert!(futures_util::poll!(&mut probe).is_pending());
        let mut waits = Box::pin(lease(&core, KEY, &alive, Purpose::Request, CALLER));
        assert!(futures_util::poll!(&mut waits).is_pending());
        let (probe, waits) = futures_util::join!(probe, waits);
        drop((probe.expect("it is back"), waits.expect("for all")));
        assert_places(&core, 0, 0);
    });
}

#[test]
fn second_tries_have_a_budget() {
    on_each_driver(async || {
        let world = World::new(limits());
        assert!(!world.core.pool.may_retry(KEY), "nothing was ever sent");
        world.leave_one_idle().await;
        for _ in 0..RETRY_RESERVE {
            assert!(world.core.pool.may_retry(KEY));
        }
        assert!(!world.core.pool.may_retry(KEY), "the reserve is spent");
        for _ in 1..REQUESTS_PER_RETRY {
            world.leave_one_idle().await;
            assert!(!world.core.pool.may_retry(KEY));
        }
        world.leave_one_idle().await;
        assert!(world.core.pool.may_retry(KEY), "a fifth of the traffic");
        assert!(!world.core.pool.may_retry(KEY));
    });
}

#[test]
fn idle_connections_to_a_bad_address_are_closed() {
    on_each_driver(async || {
        let world = World::new(limits());
        world.leave_one_idle().await;
        world
            .core
            .pool
            .avoid(SocketAddr::from(([192, 0, 2, 1], 443)));
        world.assert_places(1, 1);
        world.core.pool.avoid(world.origin.address);
        world.assert_places(0, 0);
    });
}

/// Whatever way an attempt ends, its place is free again.
#[test]
fn errors_give_their_places_back() {
    on_each_driver(async || {
        let check = async |upstream: Arc<Upstream>, expected: fn(&LeaseError) -> bool| {
            let (core, _drain) = core(Arc::clone(&upstream));
            for _ in 0..3 {
                let error = lease(&core, KEY, &upstream, Purpose::Request, CALLER)
                    .await
                    .map(|_| ())
                    .expect_err("it must fail");
                assert!(expected(&error), "{error:?}");
                assert_places(&core, 0, 0);
            }
            assert_eq!(core.counters.get(Counter::upstream_connect_failures), 3);
        };
        let one = UpstreamLimits {
            connections_max: 1,
            ..limits()
        };
        check(upstream(1, &[], one), |error| {
            matches!(error, LeaseError::NoAddress)
        })
        .await;
        let refusing = Refusing::new();
        check(upstream(1, &[refusing.address], one), |error| {
            matches!(error, LeaseError::Connect(_))
        })
        .await;
        let impostor = Origin::start(&IMPOSTOR);
        check(upstream(1, &[impostor.address], one), |error| {
            matches!(error, LeaseError::Tls(_))
        })
        .await;
        // Listens, and never says a word.
        let mute = crate::test_support::listener();
        let address = mute.local_addr().expect("it is bound");
        let impatient = UpstreamLimits {
            connect_timeout: Duration::from_millis(20),
            ..one
        };
        check(upstream(1, &[address], impatient), |error| {
            matches!(error, LeaseError::TimedOut) || matches!(error, LeaseError::Tls(_))
        })
        .await;
    });
}

#[test]
fn a_lease_that_nobody_waits_for_gives_its_place_back() {
    on_each_driver(async || {
        let mute = crate::test_support::listener();
        let upstream = upstream(1, &[mute.local_addr().expect("it is bound")], limits());
        let (core, _drain) = core(Arc::clone(&upstream));
        let given_up = rt::timeout(
            Duration::from_millis(5),
            lease(&core, KEY, &upstream, Purpose::Request, CALLER),
        )
        .await;
        assert!(given_up.is_none());
        assert_places(&core, 0, 0);
    });
}

/// A bad certificate is the upstream's word; a dead address is not.
#[test]
fn another_address_is_tried_only_where_the_network_failed() {
    on_each_driver(async || {
        let origin = Origin::start(&IDENTITY);
        let refusing = Refusing::new();
        let up = upstream(1, &[refusing.address, origin.address], limits());
        let (fine, _drain) = core(Arc::clone(&up));
        for _ in 0..2 {
            let lease = lease(&fine, KEY, &up, Purpose::Request, CALLER)
                .await
                .expect("one of them answers");
            assert_eq!(lease.address(), origin.address);
        }
        let impostor = Origin::start(&IMPOSTOR);
        let up = upstream(1, &[impostor.address, origin.address], limits());
        let (core, _drain) = core(Arc::clone(&up));
        let mut refused = 0;
        for _ in 0..2 {
            // Addresses take turns, so one of the two attempts meets the impostor.
            match lease(&core, KEY, &up, Purpose::Request, CALLER).await {
                Ok(lease) => assert_eq!(lease.address(), origin.address),
                Err(error) => {
                    assert!(matches!(error, LeaseError::Tls(_)), "{error:?}");
                    refused += 1;
                }
            }
        }
        assert_eq!(refused, 1);
        assert_places(&core, 0, 0);
    });
}

#[test]
fn what_is_not_worth_keeping_is_closed_when_it_comes_back() {
    on_each_driver(async || {
        let world = World::new(UpstreamLimits {
            idle_max: 2,
            age_max: Duration::from_secs(60),
            ..limits()
        });
        // Its time was up.
        let mut lease = world.leased().await;
        lease.connection().watch().recv_within(Duration::ZERO);
        world.at(1_000);
        lease.give_back(&world.upstream);
        world.assert_places(0, 0);
        // It is too old.
        let lease = world.leased().await;
        world.at(61_000);
        lease.give_back(&world.upstream);
        world.assert_places(0, 0);
        // There are enough of them: the one that was idle for longest goes.
        let leases = [
            world.leased().await,
            world.leased().await,
            world.leased().await,
        ];
        let mut fds = Vec::new();
        for mut lease in leases {
            fds.push(lease.connection().watch().fd());
            lease.give_back(&world.upstream);
        }
        world.assert_places(2, 2);
        assert_eq!(world.leased().await.connection().watch().fd(), fds[2]);
        assert_eq!(world.leased().await.connection().watch().fd(), fds[1]);
        world.assert_places(0, 0);
        // None are kept, or none any more.
        let keeps_none = Upstream {
            limits: UpstreamLimits {
                idle_max: 0,
                ..world.upstream.limits
            },
            ..(*world.upstream).clone()
        };
        world.leased().await.give_back(&keeps_none);
        world.assert_places(0, 0);
        world.core.draining.set(true);
        world.leave_one_idle().await;
        world.assert_places(0, 0);
    });
}

#[test]
fn leftover_bytes_never_meet_the_next_exchange() {
    on_each_driver(async || {
        let world = World::new(limits());
        let mut lease = world.leased().await;
        let mut origin = world.origin.next().await;
        // It is clear text only for this test's sake: bytes that nobody asked for.
        origin.intrude();
        let fd = lease.connection().watch().fd();
        until(|| rt::peek(fd) == rt::Peeked::Bytes).await;
        lease.give_back(&world.upstream);
        let again = world.leased().await;
        assert!(!again.reused);
        world.assert_places(1, 0);
    });
}

#[test]
fn time_closes_what_is_idle() {
    on_each_driver(async || {
        let world = World::new(UpstreamLimits {
            idle_timeout: Duration::from_secs(50),
            age_max: Duration::from_secs(100),
            ..limits()
        });
        world.at(1_000);
        let old = world.leased().await;
        world.at(60_000);
        old.give_back(&world.upstream);
        let young = world.lease(Purpose::SecondTry).await.expect("it is up");
        young.give_back(&world.upstream);
        world.assert_places(2, 2);
        world.core.pool.sweep(100_999);
        world.assert_places(2, 2);
        // By age the one, by idleness the other.
        world.core.pool.sweep(101_000);
        world.assert_places(1, 1);
        world.core.pool.sweep(109_999);
        world.assert_places(1, 1);
        world.core.pool.sweep(110_000);
        world.assert_places(0, 0);
        // An unused pool is forgotten in the end.
        assert_eq!(world.core.pool.buckets.borrow().len(), 1);
        world.core.pool.sweep(60_000 + WARM_MS);
        assert_eq!(world.core.pool.buckets.borrow().len(), 0);
        // And one that lends is not, however long that takes.
        let held = world.leased().await;
        world.core.pool.sweep(10 * WARM_MS);
        world.assert_places(1, 0);
        drop(held);
        world.core.pool.sweep(10 * WARM_MS);
        assert_eq!(world.core.pool.buckets.borrow().len(), 0);
    });
}

#[test]
fn closed_by_the_upstream() {
    on_each_driver(async || {
        let world = World::new(limits());
        world.leave_one_idle().await;
        let origin = world.origin.next().await;
        origin.close();
        let fd = world.core.pool.buckets.borrow()[&KEY].idle[0]
            .connection
            .watch()
            .fd();
        until(|| rt::peek(fd) != rt::Peeked::Quiet).await;
        // Whoever comes first notices it: a request,
        let lease = world.leased().await;
        assert!(!lease.reused);
        world.assert_places(1, 0);
        assert_eq!(world.counted(Counter::upstream_reuses), 0);
        // or the sweep.
        lease.give_back(&world.upstream);
        world.origin.next().await.close();
        let fd = world.core.pool.buckets.borrow()[&KEY].idle[0]
            .connection
            .watch()
            .fd();
        until(|| rt::peek(fd) != rt::Peeked::Quiet).await;
        for now_ms in [1_000, 1_100] {
            world.at(now_ms);
        }
        world.core.pool.sweep(1_100);
        world.assert_places(0, 0);
    });
}

/// A lease is not watched for its upstream's hanging up: its answer may still come.
#[test]
fn a_lent_connection_is_not_watched() {
    on_each_driver(async || {
        let world = World::new(limits());
        world.leave_one_idle().await;
        let mut lease = world.leased().await;
        world.origin.next().await.close();
        let fd = lease.connection().watch().fd();
        until(|| rt::peek(fd) != rt::Peeked::Quiet).await;
        for now_ms in [1_000, 1_100] {
            world.at(now_ms);
        }
        assert!(!lease.connection().watch().is_hung_up());
        let end = lease
            .connection()
            .incoming()
            .fill(Duration::from_secs(5))
            .await;
        assert!(!matches!(end, Ok(Filled::Data)));
    });
}

#[test]
fn a_credential_that_is_gone_takes_its_connections_along() {
    on_each_driver(async || {
        let world = World::new(limits());
        world.leave_one_idle().await;
        let lent = world.lease(Purpose::SecondTry).await.expect("it is up");
        world.assert_places(2, 1);
        world.core.pool.retain(|key| *key == KEY);
        world.assert_places(2, 1);
        world.core.pool.retain(|_| false);
        world.assert_places(1, 0);
        assert!(world.core.pool.cold(0).is_empty(), "it is not kept warm");
        drop(lent);
        world.assert_places(0, 0);
    });
}

#[test]
fn a_tick_counts_what_is_idle() {
    on_each_driver(async || {
        let world = World::new(limits());
        world.leave_one_idle().await;
        world.core.on_tick(handoff::Phase::Serving);
        world.assert_places(1, 1);
        assert_eq!(world.counted(Counter::upstream_idle), 1);
    });
}

#[test]
fn used_pools_are_kept_warm() {
    on_each_driver(async || {
        let world = World::new(UpstreamLimits {
            idle_min: 1,
            ..limits()
        });
        keep_warm(&world.core);
        assert_eq!(
            world.core.pool.buckets.borrow().len(),
            0,
            "it was never used"
        );
        world.at(1_000);
        drop(world.leased().await);
        world.at(2_000);
        keep_warm(&world.core);
        // One attempt at a time.
        assert!(world.core.pool.cold(2_000).is_empty());
        until(|| world.core.pool.idle() == 1).await;
        world.assert_places(1, 1);
        assert!(world.core.pool.cold(2_000).is_empty(), "there is one");
        // Warming is no use: the pool cools down in the end.
        assert_eq!(world.core.pool.buckets.borrow()[&KEY].last_used_ms, 1_000);
        let lease = world.leased().await;
        assert!(lease.reused);
        assert!(world.core.pool.cold(2_000).is_empty(), "it will come back");
        drop(lease);
        assert_eq!(world.core.pool.cold(2_000).len(), 1);
        world.core.pool.warmed(KEY, true, 2_000);
        assert!(world.core.pool.cold(2_000 + WARM_MS).is_empty());
    });
}

#[test]
fn a_dead_upstream_is_warmed_ever_more_seldom() {
    on_each_driver(async || {
        let refusing = Refusing::new();
        let upstream = upstream(1, &[refusing.address], limits());
        let (core, _drain) = core(Arc::clone(&upstream));
        let mut now_ms = 0;
        assert!(
            lease(&core, KEY, &upstream, Purpose::Request, CALLER)
                .await
                .is_err()
        );
        for pause_ms in [1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000] {
            assert_eq!(core.pool.cold(now_ms).len(), 1);
            core.pool.warmed(KEY, false, now_ms);
            assert!(core.pool.cold(now_ms + pause_ms - 1).is_empty());
            now_ms += pause_ms;
        }
        assert_eq!(core.pool.cold(now_ms).len(), 1);
        core.pool.warmed(KEY, true, now_ms);
        assert_eq!(core.pool.cold(now_ms).len(), 1, "it answers again");
        core.pool.warmed(KEY, true, now_ms);
        // For real, once.
        keep_warm(&core);
        until(|| !core.pool.buckets.borrow()[&KEY].warming).await;
        assert_places(&core, 0, 0);
    });
}

/// A connection that comes back may have had a time by which it was due.
#[test]
fn an_idle_connection_is_due_for_nothing() {
    on_each_driver(async || {
        let world = World::new(limits());
        let mut lease = world.leased().await;
        lease
            .connection()
            .outgoing()
            .peer_must_answer_within(Duration::from_secs(1));
        lease.give_back(&world.upstream);
        world.at(10_000);
        assert!(world.leased().await.reused);
    });
}
