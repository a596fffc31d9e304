//! The door between the planes: a snapshot picked up, a record handed over.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use handoff::lane::Batch;
use handoff::{Drain, Lane, Published, lane};
use policy::Route;
use policy::audit::AuditRecord;
use policy::snapshot::RouteIndex;
use wire::head::RequestHead;
use wire::rewrite::Plan;

use crate::fixtures::{HOST, LISTENER, REQUEST_TYPICAL, caller, snapshot_of_hosts};
use crate::heads::request;
use crate::{Case, Run};

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("audit/record", record),
        Case::new("audit/64-records-and-their-batch", batch),
        Case::new("snapshot/unchanged", unchanged),
        Case::new("snapshot/replaced", replaced),
    ]
}

/// The two ends of a lane and the batch under way: what `dataplane` keeps for its records, without the
/// clock, whose digits would count.
pub struct Ledger {
    lane: Lane,
    drain: Drain,
    batch: Batch,
}

impl Ledger {
    pub fn new() -> Self {
        let (lane, drain) = lane();
        Self {
            lane,
            drain,
            batch: Batch::default(),
        }
    }

    /// Takes a place, writes a record and, as if the disk were at once done with it, gives the place back.
    pub fn record(&mut self, route: &Route, head: &RequestHead, plan: Option<&Plan>) {
        assert!(self.lane.reserve());
        AuditRecord {
            event: "exchange",
            unix_ms: 1_790_000_000_123,
            request_id: "0123456789abcdef000000000001",
            listener: LISTENER,
            route: Some(&route.name),
            caller: route.callers.rule(),
            identified_by: "address",
            token_version: None,
            client: IpAddr::V4(Ipv4Addr::new(10, 1, 2, 3)),
            client_port: 54_321,
            told: None,
            host: HOST,
            method: head.method_str(),
            path: head.path(),
            status: 200,
            refused: None,
            bytes_in: 321,
            bytes_out: 1024,
            upstream: Some(&route.upstream.name),
            upstream_address: Some(SocketAddr::from(([203, 0, 113, 7], 443))),
            credential: route
                .credential
                .as_ref()
                .map(|(_, credential)| (credential.name(), credential.version())),
            stripped: plan.map(Plan::stripped),
            scrubbed: 0,
            uninspected: None,
            total: Duration::from_micros(412_345),
            upstream_wait: Duration::from_micros(411_987),
            generation: 3,
        }
        .encode(&mut self.batch.lines);
        self.batch.records += 1;
        black_box(&self.batch);
        self.drain.written(1);
        self.batch.lines.clear();
        self.batch.records = 0;
    }

    /// Hands the batch over and takes it out at the other end.
    fn hand_over(&mut self) {
        let batch = std::mem::take(&mut self.batch);
        self.lane.send(batch).expect("the lane has room");
        let mut batch = self.drain.take().expect("it has arrived");
        self.drain.written(batch.records);
        batch.lines.clear();
        batch.records = 0;
        self.batch = batch;
    }
}

/// A request that was authorised and planned, and its route.
struct Done {
    snapshot: policy::Snapshot,
    index: RouteIndex,
    head: RequestHead,
    plan: Plan,
}

impl Done {
    fn new() -> Self {
        let snapshot = snapshot_of_hosts(1);
        let head = request(REQUEST_TYPICAL);
        let mut plan = Plan::new();
        let index = match snapshot.authorize(LISTENER, &caller(HOST), &head) {
            policy::Verdict::Allow(permit) => {
                let framing = wire::framing::of_request(&head).expect("one length");
                permit.inject("", &head, framing, None, false, &mut plan);
                permit.index()
            }
            refused => panic!("{refused:?}"),
        };
        Self {
            snapshot,
            index,
            head,
            plan,
        }
    }
}

fn record() -> Run {
    let done = Done::new();
    let mut ledger = Ledger::new();
    Box::new(move || {
        let route = done.snapshot.route(done.index);
        ledger.record(route, black_box(&done.head), Some(&done.plan));
    })
}

fn batch() -> Run {
    let done = Done::new();
    let mut ledger = Ledger::new();
    Box::new(move || {
        let route = done.snapshot.route(done.index);
        for _ in 0..64 {
            ledger.record(route, black_box(&done.head), Some(&done.plan));
        }
        ledger.hand_over();
    })
}

fn unchanged() -> Run {
    let published = Published::new(Arc::new(7u64));
    let mut reader = published.reader();
    Box::new(move || {
        assert!(!black_box(&mut reader).refresh());
        assert_eq!(**reader.get(), 7);
    })
}

fn replaced() -> Run {
    let published = Published::new(Arc::new(0u64));
    let mut reader = published.reader();
    Box::new(move || {
        published.publish(Arc::new(7));
        assert!(black_box(&mut reader).refresh());
        assert_eq!(**reader.get(), 7);
    })
}
