//! Heads: parsed, framed, planned, gathered, searched.

use std::hint::black_box;

use wire::framing::{self, BodyFraming};
use wire::head::{HeadLimits, Method, Parse, RequestHead, ResponseHead};
use wire::names::ParamSet;
use wire::rewrite::{self, Plan, RequestEdit, ResponseEdit};
use wire::scrub::Scrubber;

use crate::fixtures::{
    HOST, KEY, REQUEST_SMALL, REQUEST_TYPICAL, RESPONSE_SMALL, RESPONSE_TYPICAL, head_of,
    strip_fields, strip_params,
};
use crate::{Case, Run};

pub fn cases() -> Vec<Case> {
    vec![
        Case::of_bytes("request-parse/small", REQUEST_SMALL.len(), || {
            parse_request(REQUEST_SMALL.to_vec())
        }),
        Case::of_bytes("request-parse/typical", REQUEST_TYPICAL.len(), || {
            parse_request(REQUEST_TYPICAL.to_vec())
        }),
        Case::new("request-parse/100-fields", || {
            parse_request(head_of("GET /v1/models HTTP/1.1", true, 100))
        }),
        Case::of_bytes(
            "request-parse/typical-in-64-byte-reads",
            REQUEST_TYPICAL.len(),
            || parse_request_in_pieces(64),
        ),
        Case::new("request-framing/length", frame_request),
        Case::new("request-plan/small", || {
            plan_request(REQUEST_SMALL.to_vec())
        }),
        Case::new("request-plan/typical", || {
            plan_request(REQUEST_TYPICAL.to_vec())
        }),
        Case::new("request-plan/100-fields", || {
            plan_request(head_of("GET /v1/models HTTP/1.1", true, 100))
        }),
        Case::of_bytes("response-parse/small", RESPONSE_SMALL.len(), || {
            parse_response(RESPONSE_SMALL.to_vec())
        }),
        Case::of_bytes("response-parse/typical", RESPONSE_TYPICAL.len(), || {
            parse_response(RESPONSE_TYPICAL.to_vec())
        }),
        Case::new("response-parse/100-fields", || {
            parse_response(head_of("HTTP/1.1 200 OK", false, 100))
        }),
        Case::new("response-framing/length", frame_response),
        Case::new("response-plan/typical-unsearched", || {
            plan_response(RESPONSE_TYPICAL.to_vec(), false, 0)
        }),
        Case::new("response-plan/typical", || {
            plan_response(RESPONSE_TYPICAL.to_vec(), true, 0)
        }),
        Case::new("response-plan/key-in-location", || {
            let head = format!(
                "HTTP/1.1 302 Found\r\nLocation: https://api.example.com/?key={KEY}\r\nContent-Length: 0\r\n\r\n"
            );
            plan_response(head.into_bytes(), true, 1)
        }),
        Case::new("response-plan/encoded-location", || {
            plan_response(
                b"HTTP/1.1 302 Found\r\nLocation: https://api.example.com/?next=%2Fv1%2Fmodels&s=%20\r\nContent-Length: 0\r\n\r\n".to_vec(),
                true,
                0,
            )
        }),
        Case::new("response-plan/100-fields", || {
            plan_response(head_of("HTTP/1.1 200 OK", false, 100), true, 0)
        }),
    ]
}

/// A parsed request.
pub fn request(bytes: &[u8]) -> RequestHead {
    let mut head = RequestHead::new();
    head.buffer().extend_from_slice(bytes);
    assert_eq!(head.parse(&HeadLimits::default()), Ok(Parse::Complete));
    head
}

/// A parsed answer.
pub fn response(bytes: &[u8]) -> ResponseHead {
    let mut head = ResponseHead::new();
    head.buffer().extend_from_slice(bytes);
    assert_eq!(head.parse(&HeadLimits::default()), Ok(Parse::Complete));
    head
}

/// Finds the key in all its forms.
pub fn scrubber() -> Scrubber {
    Scrubber::of_secrets(&[KEY.as_bytes()], &[])
}

fn parse_request(bytes: Vec<u8>) -> Run {
    let limits = HeadLimits::default();
    let mut head = RequestHead::new();
    Box::new(move || {
        head.buffer().extend_from_slice(black_box(&bytes));
        assert_eq!(head.parse(&limits), Ok(Parse::Complete));
        black_box(&head);
        head.finish(0);
    })
}

fn parse_request_in_pieces(piece: usize) -> Run {
    let limits = HeadLimits::default();
    let mut head = RequestHead::new();
    Box::new(move || {
        let mut parsed = Parse::Partial;
        for bytes in black_box(REQUEST_TYPICAL).chunks(piece) {
            assert_eq!(parsed, Parse::Partial);
            head.buffer().extend_from_slice(bytes);
            parsed = head.parse(&limits).expect("a good head");
        }
        assert_eq!(parsed, Parse::Complete);
        head.finish(0);
    })
}

fn frame_request() -> Run {
    let head = request(REQUEST_TYPICAL);
    Box::new(move || {
        let framing = framing::of_request(black_box(&head));
        assert_eq!(framing, Ok(BodyFraming::Length(321)));
    })
}

fn plan_request(bytes: Vec<u8>) -> Run {
    let head = request(&bytes);
    let (fields, params, keep) = (strip_fields(), strip_params(), ParamSet::default());
    let framing = framing::of_request(&head).expect("one length");
    let line = format!("Authorization: Bearer {KEY}\r\n");
    let mut plan = Plan::new();
    Box::new(move || {
        let edit = RequestEdit {
            path_strip: 0,
            path_insert: b"",
            host: HOST.as_bytes(),
            strip_fields: &fields,
            strip_params: &params,
            keep_params: &keep,
            strip_cookies: false,
            inject_line: Some(0),
            inject_param: None,
            framing,
            upgrade: None,
            expect_continue: false,
            searched: false,
            lines: &[b"CDN-Loop: ", b"0123456789abcdef", b"\r\n"],
        };
        rewrite::request(black_box(&head), &edit, &mut plan);
        let mut slices = Vec::with_capacity(24);
        plan.slices(head.bytes(), &[line.as_bytes()], &mut slices);
        assert!(slices.len() > 2);
        black_box(&slices);
    })
}

fn parse_response(bytes: Vec<u8>) -> Run {
    let limits = HeadLimits::default();
    let mut head = ResponseHead::new();
    Box::new(move || {
        head.buffer().extend_from_slice(black_box(&bytes));
        assert_eq!(head.parse(&limits), Ok(Parse::Complete));
        black_box(&head);
        head.finish(0);
    })
}

fn frame_response() -> Run {
    let head = response(RESPONSE_TYPICAL);
    Box::new(move || {
        let framing = framing::of_response(black_box(&head), Method::Get);
        assert_eq!(framing, Ok(BodyFraming::Length(1024)));
    })
}

fn plan_response(bytes: Vec<u8>, searched: bool, hits: usize) -> Run {
    let head = response(&bytes);
    let framing = framing::of_response(&head, Method::Get).expect("one length");
    let scrubber = scrubber();
    let mut plan = Plan::new();
    Box::new(move || {
        let edit = ResponseEdit {
            framing,
            close: false,
            http10: false,
            upgrade: None,
            scrubber: searched.then_some(&scrubber),
            keep_length: false,
            strip_fields: None,
        };
        assert_eq!(rewrite::response(black_box(&head), &edit, &mut plan), hits);
        let mut slices = Vec::with_capacity(24);
        plan.slices(head.bytes(), &[], &mut slices);
        black_box(&slices);
    })
}
