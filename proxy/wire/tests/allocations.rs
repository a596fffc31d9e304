//! A warm head and a warm plan allocate nothing, whatever passes through them.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use wire::framing;
use wire::head::{HeadLimits, Method, Parse, RequestHead, ResponseHead};
use wire::names::{NameSet, ParamSet};
use wire::rewrite::{self, Plan, RequestEdit, ResponseEdit};
use wire::scrub::Scrubber;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call is passed on to `System` unchanged; counting touches a thread-local `Cell` that
// needs neither an allocation nor a destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller keeps `alloc`'s contract, which is `System`'s.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: `at` came from `System.alloc` with this layout.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: `at` came from `System.alloc` with this layout.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

const REQUEST: &[u8] = b"POST /v1/x?key=no&a=1 HTTP/1.1\r\nHost: a.example\r\nConnection: close, X-Drop\r\nAuthorization: no\r\nX-Drop: 1\r\n\
Cookie: a\r\nContent-Length: 5\r\nAccept: */*\r\nClaviger-Id: x\r\n\r\nhello";
const RESPONSE: &[u8] = b"HTTP/1.1 302 Found\r\nLocation: /?key=the-real-key\r\nContent-Length: 0\r\nAlt-Svc: x\r\n\r\n";

#[test]
fn a_warm_exchange_allocates_nothing() {
    let limits = HeadLimits::default();
    let (strip_fields, strip_params, keep_params) = (
        NameSet::new(["authorization"]),
        ParamSet::new(["key"]),
        ParamSet::default(),
    );
    let scrubber = Scrubber::new(&[b"the-real-key"]);
    let (mut head, mut answer, mut plan) = (RequestHead::new(), ResponseHead::new(), Plan::new());
    let mut exchange = || {
        head.buffer().extend_from_slice(REQUEST);
        assert_eq!(head.parse(&limits), Ok(Parse::Complete));
        let edit = RequestEdit {
            path_strip: 3,
            path_insert: b"/v2",
            host: b"up.example",
            strip_fields: &strip_fields,
            strip_params: &strip_params,
            keep_params: &keep_params,
            strip_cookies: true,
            inject_line: Some(0),
            inject_param: Some(1),
            framing: framing::of_request(&head).expect("one length"),
            upgrade: None,
            expect_continue: false,
            searched: false,
            lines: &[b"CDN-Loop: ours\r\n"],
        };
        rewrite::request(&head, &edit, &mut plan);
        assert_eq!(plan.stripped().iter().count(), 4);
        head.finish(5);

        answer.buffer().extend_from_slice(RESPONSE);
        assert_eq!(answer.parse(&limits), Ok(Parse::Complete));
        let edit = ResponseEdit {
            framing: framing::of_response(&answer, Method::Post).expect("one length"),
            close: true,
            http10: false,
            upgrade: None,
            scrubber: Some(&scrubber),
            keep_length: false,
            strip_fields: None,
        };
        assert_eq!(rewrite::response(&answer, &edit, &mut plan), 1);
        answer.finish(0);
    };
    exchange();
    let warm = ALLOCATIONS.with(Cell::get);
    assert!(warm > 0, "the counter counts");
    for _ in 0..100 {
        exchange();
    }
    assert_eq!(ALLOCATIONS.with(Cell::get), warm);
}
