//! The user's side of one ordinary exchange, whole: what Claviger computes between the caller's bytes and
//! the record on the audit trail, without TLS and without the kernel.

use std::hint::black_box;

use policy::Verdict;
use wire::framing;
use wire::head::{HeadLimits, Method, Parse, RequestHead, ResponseHead};
use wire::rewrite::{self, Plan, ResponseEdit};

use crate::fixtures::{
    HOST, LISTENER, REQUEST_TYPICAL, RESPONSE_TYPICAL, caller, snapshot_of_hosts,
};
use crate::{Case, Run, door};

pub fn cases() -> Vec<Case> {
    vec![Case::new("exchange/typical", exchange)]
}

fn exchange() -> Run {
    let limits = HeadLimits::default();
    let snapshot = snapshot_of_hosts(1);
    let (mut request, mut response) = (RequestHead::new(), ResponseHead::new());
    let (mut request_plan, mut response_plan) = (Plan::new(), Plan::new());
    let mut ledger = door::Ledger::new();
    Box::new(move || {
        request
            .buffer()
            .extend_from_slice(black_box(REQUEST_TYPICAL));
        assert_eq!(request.parse(&limits), Ok(Parse::Complete));
        let framing = framing::of_request(&request).expect("one length");
        let permit = match snapshot.authorize(LISTENER, &caller(HOST), &request) {
            Verdict::Allow(permit) => permit,
            refused => panic!("{refused:?}"),
        };
        let outbound = permit.inject("", &request, framing, None, false, &mut request_plan);
        let mut slices = Vec::with_capacity(24);
        outbound.slices(permit.pool_key(), &request_plan, &request, &mut slices);
        black_box(&slices);

        response
            .buffer()
            .extend_from_slice(black_box(RESPONSE_TYPICAL));
        assert_eq!(response.parse(&limits), Ok(Parse::Complete));
        let edit = ResponseEdit {
            framing: framing::of_response(&response, Method::Post).expect("one length"),
            close: false,
            http10: false,
            upgrade: None,
            scrubber: permit.scrubber(),
            keep_length: false,
            strip_fields: None,
        };
        assert_eq!(rewrite::response(&response, &edit, &mut response_plan), 0);
        let mut slices = Vec::with_capacity(24);
        response_plan.slices(response.bytes(), &[], &mut slices);
        black_box(&slices);

        ledger.record(permit.route(), &request, Some(&request_plan));
        request.finish(usize::MAX);
        response.finish(usize::MAX);
    })
}
