//! What `wire` costs per request: parse a head, plan its edit, decode a chunked body, search a
//! response head for the key.
//!
//! `cargo bench -p claviger-benches --bench wire`. Wall-clock on shared cores drifts; compare runs
//! of one sitting only.

#![allow(missing_docs)] // criterion_group! makes an undocumented function.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use wire::chunked::{ChunkedDecoder, chunk_header};
use wire::framing::{self, BodyFraming};
use wire::head::{HeadLimits, Method, Parse, RequestHead, ResponseHead};
use wire::names::{NameSet, ParamSet};
use wire::rewrite::{self, Plan, RequestEdit, ResponseEdit};
use wire::scrub::{Scrubber, forms};

/// Twelve fields, about 500 bytes: what an SDK sends.
const REQUEST: &[u8] = b"POST /v1/chat/completions?api-version=2024-06-01&stream=true HTTP/1.1\r\n\
Host: api.example.com\r\n\
Accept: application/json\r\n\
Accept-Encoding: gzip, deflate, br\r\n\
Authorization: Bearer sk-not-the-real-one\r\n\
Connection: keep-alive\r\n\
Content-Length: 321\r\n\
Content-Type: application/json\r\n\
User-Agent: OpenAI/Python 1.51.0\r\n\
X-Stainless-Arch: x64\r\n\
X-Stainless-Lang: python\r\n\
X-Stainless-Runtime-Version: 3.12.1\r\n\
X-Request-Id: 7f0c2d8e-6a54-4f6e-9d9b-3a1f7f6f0b11\r\n\
\r\n";

const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\n\
Date: Mon, 27 Jul 2026 12:28:53 GMT\r\n\
Content-Type: application/json\r\n\
Content-Length: 1024\r\n\
Connection: keep-alive\r\n\
Access-Control-Expose-Headers: X-Request-ID\r\n\
Openai-Organization: example\r\n\
Openai-Processing-Ms: 412\r\n\
Strict-Transport-Security: max-age=31536000; includeSubDomains\r\n\
X-Ratelimit-Limit-Requests: 10000\r\n\
X-Ratelimit-Remaining-Requests: 9999\r\n\
Server: example\r\n\
Alt-Svc: h3=\":443\"; ma=86400\r\n\
\r\n";

fn strip_fields() -> NameSet {
    NameSet::new([
        "authorization",
        "proxy-authorization",
        "x-api-key",
        "api-key",
        "x-goog-api-key",
        "ocp-apim-subscription-key",
        "x-auth-token",
        "x-access-token",
        "apikey",
    ])
}

fn strip_params() -> ParamSet {
    ParamSet::new(["key", "api_key", "apikey", "access_token", "token", "auth"])
}

fn edit<'a>(
    strip_fields: &'a NameSet,
    strip_params: &'a ParamSet,
    keep_params: &'a ParamSet,
    lines: &'a [&'a [u8]],
    framing: BodyFraming,
) -> RequestEdit<'a> {
    RequestEdit {
        path_strip: 0,
        path_insert: b"",
        host: b"api.example.com",
        strip_fields,
        strip_params,
        keep_params,
        strip_cookies: false,
        inject_line: Some(0),
        inject_param: None,
        framing,
        upgrade: None,
        expect_continue: false,
        lines,
    }
}

fn request(c: &mut Criterion) {
    let limits = HeadLimits::default();
    let (fields, params, keep) = (strip_fields(), strip_params(), ParamSet::default());
    let lines: &[&[u8]] = &[b"CDN-Loop: 0123456789abcdef\r\n"];
    let mut group = c.benchmark_group("request");
    group.throughput(Throughput::Bytes(REQUEST.len() as u64));

    let mut head = RequestHead::new();
    group.bench_function("parse", |b| {
        b.iter(|| {
            head.buffer().extend_from_slice(black_box(REQUEST));
            assert_eq!(head.parse(&limits), Ok(Parse::Complete));
            black_box(&head);
            head.finish(0);
        });
    });

    head.buffer().extend_from_slice(REQUEST);
    assert_eq!(head.parse(&limits), Ok(Parse::Complete));
    let framing = framing::of_request(&head).expect("one length");
    let edit = edit(&fields, &params, &keep, lines, framing);
    let mut plan = Plan::new();
    group.bench_function("rewrite", |b| {
        b.iter(|| {
            rewrite::request(black_box(&head), &edit, &mut plan);
            black_box(plan.pieces());
        });
    });
    head.finish(0);

    group.bench_function("parse, frame, rewrite, gather", |b| {
        b.iter(|| {
            head.buffer().extend_from_slice(black_box(REQUEST));
            assert_eq!(head.parse(&limits), Ok(Parse::Complete));
            let framing = framing::of_request(&head).expect("one length");
            rewrite::request(&head, &RequestEdit { framing, ..edit }, &mut plan);
            let mut slices = Vec::with_capacity(16);
            plan.slices(
                head.bytes(),
                &[b"Authorization: Bearer the-real-one\r\n"],
                &mut slices,
            );
            black_box(&slices);
            drop(slices);
            head.finish(0);
        });
    });
    group.finish();
}

fn response(c: &mut Criterion) {
    let limits = HeadLimits::default();
    let forms = forms(b"sk-proj-0123456789abcdefghijklmnopqrstuvwxyzABCDEF");
    let needles: Vec<&[u8]> = forms.iter().map(Vec::as_slice).collect();
    let scrubber = Scrubber::new(&needles);
    let mut group = c.benchmark_group("response");
    group.throughput(Throughput::Bytes(RESPONSE.len() as u64));
    let mut head = ResponseHead::new();
    let mut plan = Plan::new();
    group.bench_function("parse", |b| {
        b.iter(|| {
            head.buffer().extend_from_slice(black_box(RESPONSE));
            assert_eq!(head.parse(&limits), Ok(Parse::Complete));
            black_box(&head);
            head.finish(0);
        });
    });
    head.buffer().extend_from_slice(RESPONSE);
    assert_eq!(head.parse(&limits), Ok(Parse::Complete));
    let framing = framing::of_response(&head, Method::Get).expect("one length");
    for (name, scrubber) in [("rewrite", None), ("rewrite, scrubbed", Some(&scrubber))] {
        let edit = ResponseEdit {
            framing,
            close: false,
            http10: false,
            upgrade: None,
            scrubber,
            keep_length: false,
        };
        group.bench_function(name, |b| {
            b.iter(|| black_box(rewrite::response(black_box(&head), &edit, &mut plan)));
        });
    }
    group.finish();

    let mut group = c.benchmark_group("scrub");
    let body: Vec<u8> =
        b"{\"id\":\"chatcmpl-123\",\"content\":\"Lorem ipsum dolor sit amet 0123456789\"}"
            .iter()
            .copied()
            .cycle()
            .take(64 * 1024)
            .collect();
    group.throughput(Throughput::Bytes(body.len() as u64));
    group.bench_function("64 KiB without a hit", |b| {
        b.iter(|| black_box(scrubber.find(black_box(&body))));
    });
    group.finish();
}

fn chunked(c: &mut Criterion) {
    let mut group = c.benchmark_group("chunked");
    for size in [64usize, 1024, 16 * 1024] {
        let mut body = Vec::new();
        while body.len() < 64 * 1024 {
            body.extend_from_slice(chunk_header(size, &mut [0; 18]));
            body.resize(body.len() + size, b'x');
            body.extend_from_slice(b"\r\n");
        }
        body.extend_from_slice(b"0\r\n\r\n");
        group.throughput(Throughput::Bytes(body.len() as u64));
        group.bench_function(format!("decode 64 KiB in chunks of {size}"), |b| {
            b.iter_batched_ref(
                ChunkedDecoder::new,
                |decoder| {
                    let mut input = black_box(&body[..]);
                    let mut data = 0;
                    while !decoder.is_done() {
                        let decoded = decoder.decode(input).expect("a valid body");
                        data += decoded.data.len();
                        input = &input[decoded.used..];
                    }
                    black_box(data)
                },
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, request, response, chunked);
criterion_main!(benches);
