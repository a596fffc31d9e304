//! What must hold for every input of `wire`, whatever it is: one function per fuzz target.
//!
//! Each compares `wire` with a slow, plain reading of the same bytes that shares no code with it. The
//! fuzz targets call these functions, and so do `wire`'s own tests, over `seeds/` and seeded
//! mutations of them: the corpus is exercised by every `cargo test`.
//!
//! `scripts/fuzz head` runs one of them for long.

mod streams;

use std::io::Read;

pub use self::streams::{frames, sieve};

use wire::chunked::{ChunkedDecoder, LAST_CHUNK, chunk_header};
use wire::coding::{Coding, Codings};
use wire::framing::{self, BodyFraming};
use wire::head::{HeadLimits, Method, Parse, RequestHead, ResponseHead, TargetForm, Version};
use wire::inspect::{Inspector, Uninspected};
use wire::names::{NameSet, ParamSet};
use wire::proxy_header::ProxyHeader;
use wire::rewrite::{self, Plan, RequestEdit, ResponseEdit};
use wire::scrub::Scrubber;
use wire::sieve::{OnHit, Sieve};
use wire::target;

/// What a load balancer says is read the same however it arrives, and no further than it goes.
pub fn proxy_header(data: &[u8]) {
    let whole = ProxyHeader::parse(data);
    match whole {
        Ok(ProxyHeader::Partial) => {}
        Ok(ProxyHeader::Complete { length, .. }) => {
            assert!((1..=data.len()).contains(&length));
            assert_eq!(
                ProxyHeader::parse(&data[..length]),
                whole,
                "what follows is the caller's"
            );
            for cut in 0..length {
                assert_eq!(
                    ProxyHeader::parse(&data[..cut]),
                    Ok(ProxyHeader::Partial),
                    "{cut}"
                );
            }
        }
        // More bytes mend nothing.
        Err(error) => assert_eq!(ProxyHeader::parse(&[data, b"\r\n"].concat()), Err(error)),
    }
}

/// Heads parse to what a plain reading of the lines gives, however they arrive, or not at all.
///
/// The first byte says where the input is cut in two.
pub fn head(data: &[u8]) {
    let Some((&cut, input)) = data.split_first() else {
        return;
    };
    let cut = usize::from(cut).min(input.len());

    // What is refused at once when whole may be refused only when complete if it trickles in, so
    // the two must agree on what is accepted, not on when the rest is turned away.
    let whole = request_of(&[input], &HeadLimits::default());
    let halves = request_of(&[&input[..cut], &input[cut..]], &HeadLimits::default());
    let accepted = |head: &Result<RequestHead, _>| {
        let head = head.as_ref().ok().filter(|head| !head.bytes().is_empty())?;
        Some((
            head.bytes().to_vec(),
            head.rest().to_vec(),
            head.fields().to_vec(),
        ))
    };
    assert_eq!(
        accepted(&whole),
        accepted(&halves),
        "the cut at {cut} changes a request"
    );
    if let Ok(mut head) = whole
        && !head.bytes().is_empty()
    {
        check_request(&head);
        let used = head.bytes().len();
        let skipped = input.len() - head.buffered();
        let rest = head.rest().to_vec();
        assert_eq!(rest, &input[skipped + used..]);
        assert!(skipped == 0 || (skipped == 2 && input.starts_with(b"\r\n")));
        let consumed = rest.len().min(3);
        head.finish(consumed);
        assert_eq!(head.buffer()[..], rest[consumed..]);
    }

    let whole = response_of(&[input]);
    let halves = response_of(&[&input[..cut], &input[cut..]]);
    let accepted = |head: &Result<ResponseHead, _>| {
        let head = head.as_ref().ok().filter(|head| !head.bytes().is_empty())?;
        Some((head.bytes().to_vec(), head.fields().to_vec()))
    };
    assert_eq!(
        accepted(&whole),
        accepted(&halves),
        "the cut at {cut} changes a response"
    );
    if let Ok(head) = whole
        && !head.bytes().is_empty()
    {
        let lines = plain_lines(head.bytes());
        let first = lines[0];
        assert!(first.starts_with(b"HTTP/1.0 ") || first.starts_with(b"HTTP/1.1 "));
        assert_eq!(head.status().to_string().as_bytes(), &first[9..12]);
        assert!(matches!(first.get(12), None | Some(b' ')));
        let fields = head
            .fields()
            .iter()
            .map(|field| (head.name(field), head.value(field)));
        check_fields(&lines[1..], fields);
    }
}

/// The framing is what a plain count of the fields allows, and refused wherever that is ambiguous.
pub fn framing(data: &[u8]) {
    if let Ok(head) = request_of(&[data], &HeadLimits::default())
        && !head.bytes().is_empty()
    {
        let stated = plain_framing(&fields_of(head.bytes()), head.version() == Version::Http11);
        assert_eq!(
            framing::of_request(&head).ok(),
            stated.map(|stated| stated.unwrap_or(BodyFraming::None))
        );
    }
    if let Ok(head) = response_of(&[data])
        && !head.bytes().is_empty()
    {
        let stated = plain_framing(&fields_of(head.bytes()), head.version() == Version::Http11);
        for method in [Method::Get, Method::Head] {
            let bodiless = method == Method::Head || matches!(head.status(), 100..=199 | 204 | 304);
            let expected = stated.map(|stated| match stated {
                _ if bodiless => BodyFraming::None,
                Some(framing) => framing,
                None => BodyFraming::UntilClose,
            });
            assert_eq!(framing::of_response(&head, method).ok(), expected);
        }
    }
}

/// A chunked body reads the same whole, cut anywhere and byte by byte; what is accepted is what a
/// plain reading gives; and what we write reads back.
///
/// The first byte says where the input is cut in two.
pub fn chunked(data: &[u8]) {
    let Some((&cut, input)) = data.split_first() else {
        return;
    };
    let cut = usize::from(cut).min(input.len());
    let whole = Body::read(&[input]);
    let bytes: Vec<&[u8]> = input.chunks(1).collect();
    for other in [
        Body::read(&[&input[..cut], &input[cut..]]),
        Body::read(&bytes),
    ] {
        assert_eq!(whole, other, "the cut at {cut} changes what is read");
    }
    let Ok(body) = whole else { return };
    if !body.done {
        return;
    }
    assert_eq!(plain_chunks(input), Some((body.data.clone(), body.used)));

    let mut written = Vec::new();
    for chunk in body.data.chunks(7) {
        written.extend_from_slice(chunk_header(chunk.len(), &mut [0; 18]));
        written.extend_from_slice(chunk);
        written.extend_from_slice(b"\r\n");
    }
    written.extend_from_slice(LAST_CHUNK);
    written.extend_from_slice(&body.trailers);
    written.extend_from_slice(b"\r\n");
    let again = Body::read(&[&written]).expect("we read what we write");
    assert_eq!(
        (again.used, &again.data, &again.trailers),
        (written.len(), &body.data, &body.trailers)
    );

    let strip = NameSet::new(["x-api-key"]);
    let mut kept = Vec::new();
    rewrite::trailers(&body.trailers, &strip, &mut kept);
    for line in kept.split_inclusive(|&byte| byte == b'\n') {
        assert!(
            body.trailers
                .windows(line.len())
                .any(|window| window == line)
        );
        let name = folded(line.split(|&byte| byte == b':').next().unwrap_or_default());
        for forbidden in [
            "content-length",
            "transfer-encoding",
            "host",
            "connection",
            "te",
            "x-api-key",
            "authorization",
            "set-cookie",
        ] {
            assert_ne!(name, forbidden);
        }
    }
}

/// An edited head parses, and holds exactly what a plain model of the edit says: nothing more,
/// nothing less, in order.
///
/// The first two bytes choose the edit.
pub fn rewrite(data: &[u8]) {
    let [options, cut, input @ ..] = data else {
        return;
    };
    if let Ok(head) = request_of(&[input], &HeadLimits::default())
        && !head.bytes().is_empty()
    {
        rewrite_request(&head, *options, usize::from(*cut));
    }
    if let Ok(head) = response_of(&[input])
        && !head.bytes().is_empty()
    {
        rewrite_response(&head, *options);
    }
}

/// Targets and their parts: every reading is another one, parameters cover their query, an accepted
/// authority is plain, what is encoded decodes.
pub fn target(data: &[u8]) {
    let Ok(readings) = target::readings(data) else {
        assert!(data.len() > 2048, "a short path has few bytes of readings");
        return;
    };
    for (at, reading) in readings.iter().enumerate() {
        assert_ne!(reading, data);
        assert!(!readings[..at].contains(reading), "a reading stands twice");
        assert!(reading.len() <= data.len() + 1);
    }
    if data.starts_with(b"/") && !readings.is_empty() {
        assert!(
            data.iter().any(|byte| b"%;\\".contains(byte))
                || data.windows(2).any(|pair| pair == b"//" || pair == b"/.")
        );
    }

    let mut end = 0;
    for (at, param) in target::params(data).enumerate() {
        assert_eq!(param.whole.start, if at == 0 { 0 } else { end + 1 });
        assert_eq!(param.name.start, param.whole.start);
        assert!(param.name.end <= param.whole.end);
        let (name, whole) = (&data[param.name.clone()], &data[param.whole.clone()]);
        assert!(
            !name.iter().any(|byte| b"&;=".contains(byte))
                && !whole.iter().any(|byte| b"&;".contains(byte))
        );
        assert!(name == whole || data[param.name.end] == b'=');
        end = param.whole.end;
    }
    assert_eq!(end, data.len());

    if let Some((host, port)) = target::authority_host(data) {
        let mut again = Vec::new();
        if host.contains(&b':') {
            again.extend([&b"["[..], host, b"]"].concat());
        } else {
            again.extend_from_slice(host);
        }
        assert!(data.starts_with(&again));
        let behind =
            std::str::from_utf8(&data[again.len()..]).expect("an accepted authority is ASCII");
        assert_eq!(
            behind.strip_prefix(':').map(|port| port.parse().ok()),
            port.map(Some)
        );
        assert!(!host.is_empty() && !host.contains(&b'@'));
    }

    let mut encoded = Vec::new();
    target::percent_encode_query(data, &mut encoded);
    assert!(
        encoded
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-._~%".contains(byte))
    );
    assert_eq!(plain_decoded(&encoded, false), data);
    let forms = wire::scrub::forms(data);
    if data.len() >= 4 {
        let needles: Vec<&[u8]> = forms.iter().map(Vec::as_slice).collect();
        let scrubber = Scrubber::new(&needles);
        assert_eq!(scrubber.find(data).map(|hit| hit.start), Some(0));
        assert_eq!(scrubber.find(&encoded).map(|hit| hit.start), Some(0));
    }
}

/// What is found of two secrets, with any of their characters escaped, is what looking everywhere for
/// everything finds; and in whatever pieces a text comes, none of it passes.
///
/// The first two bytes say how long the secrets are, the third one how large the pieces.
pub fn search(data: &[u8]) {
    let [first, second, size, rest @ ..] = data else {
        return;
    };
    let lengths = [first, second].map(|length| 4 + usize::from(*length) % 64);
    let Some((first, rest)) = rest.split_at_checked(lengths[0]) else {
        return;
    };
    let Some((second, text)) = rest.split_at_checked(lengths[1]) else {
        return;
    };
    let secrets = [first, second];
    let scrubber = Scrubber::of_secrets(&[], &secrets);
    let expected = occurrences(&secrets, text);
    let mut hits = Vec::new();
    scrubber.find_all(text, &mut hits);
    let mut found = vec![false; text.len()];
    for hit in &hits {
        found[hit.clone()].fill(true);
    }
    assert_eq!(found, expected, "{hits:?}");

    let mut sieve = Sieve::new(&scrubber, OnHit::Redact);
    let mut out = Vec::new();
    for piece in text.chunks(usize::from(*size).max(1)) {
        out.extend_from_slice(sieve.pass(&[piece], false).0);
    }
    out.extend_from_slice(sieve.pass(&[], true).0);
    assert_eq!(out.len(), text.len());
    // What contains introducers itself can be read in several ways, and which one is taken may hang on
    // where a piece ends. And what is written over a secret must not become one.
    let has = |bytes: &[u8]| {
        secrets
            .iter()
            .any(|secret| secret.iter().any(|b| bytes.contains(b)))
    };
    if has(b"%\\&") {
        return;
    }
    assert_eq!(sieve.hits() > 0, !hits.is_empty());
    if hits.is_empty() {
        assert_eq!(out, text);
    } else if !has(b"redacted") {
        assert!(!occurrences(&secrets, &out).contains(&true));
    }
}

/// Which bytes of a text belong to one of the secrets: bare, or bare up to an escape and escaped or bare
/// from there on. Where an escape can be undone once or twice, twice is tried first.
fn occurrences(secrets: &[&[u8]], text: &[u8]) -> Vec<bool> {
    let mut covered = vec![false; text.len()];
    for start in 0..text.len() {
        for secret in secrets {
            for (place, &character) in secret.iter().enumerate() {
                let at = start + place;
                // From here on in disguise.
                let escaped = undone(&text[at..]);
                if escaped.iter().any(|(read, _)| *read == character) {
                    let mut end = at;
                    let is_whole = secret[place..].iter().all(|&character| {
                        let mut readings = undone(&text[end..]);
                        readings.extend(text.get(end).map(|&bare| (bare, 1)));
                        let fitting = readings.iter().find(|(read, _)| *read == character);
                        end += fitting.map_or(0, |(_, length)| *length);
                        fitting.is_some()
                    });
                    if is_whole {
                        covered[start..end].fill(true);
                    }
                }
                if text.get(at) != Some(&character) {
                    break;
                }
                if place + 1 == secret.len() {
                    covered[start..=at].fill(true);
                }
            }
        }
    }
    covered
}

/// What the escape stands for that a text begins with, and its length: undone twice, then once.
fn undone(text: &[u8]) -> Vec<(u8, usize)> {
    let number = |digits: Option<&[u8]>, radix: u32| {
        let digits = std::str::from_utf8(digits?).ok()?;
        let is_plain = digits.chars().all(|digit| digit.is_digit(radix));
        let value = u32::from_str_radix(&format!("0{digits}"), radix).ok()?;
        u8::try_from(value).ok().filter(|_| is_plain)
    };
    let mut all = Vec::new();
    match text {
        [b'%', ..] => {
            if text.get(1..3) == Some(b"25") {
                all.extend(number(text.get(3..5), 16).map(|value| (value, 5)));
            }
            all.extend(number(text.get(1..3), 16).map(|value| (value, 3)));
        }
        [b'\\', b'u', ..] => all.extend(number(text.get(2..6), 16).map(|value| (value, 6))),
        [b'\\', b'x', ..] => all.extend(number(text.get(2..4), 16).map(|value| (value, 4))),
        [b'\\', byte, ..] if byte.is_ascii_punctuation() => all.push((*byte, 2)),
        [b'&', rest @ ..] => {
            let Some(end) = rest.iter().take(5).position(|&byte| byte == b';') else {
                return all;
            };
            let value = match &rest[..end] {
                b"amp" => Some(b'&'),
                b"lt" => Some(b'<'),
                b"gt" => Some(b'>'),
                b"quot" => Some(b'"'),
                b"apos" => Some(b'\''),
                [b'#', b'x' | b'X', digits @ ..] => number(Some(digits), 16),
                [b'#', digits @ ..] if !digits.is_empty() => number(Some(digits), 10),
                _ => None,
            };
            all.extend(value.map(|value| (value, end + 2)));
        }
        _ => {}
    }
    all
}

/// A coded body goes on as it came or not at all, in whatever pieces it comes, and what goes on decodes
/// to no key.
///
/// The first byte chooses the codings, the second one the size of pieces.
pub fn inspect(data: &[u8]) {
    const KEY: &[u8] = b"the-real-key";
    let [options, size, input @ ..] = data else {
        return;
    };
    let coding = |bits: u8| match bits & 3 {
        0 => Some(Coding::Gzip),
        1 => Some(Coding::Deflate),
        2 => Some(Coding::Brotli),
        _ => None,
    };
    let inner = coding(*options).unwrap_or(Coding::Zstd);
    let mut codings = Codings::one(inner);
    if let Some(outer) = coding(options >> 2) {
        codings = codings.and(outer).expect("two are allowed");
    }
    let scrubber = Scrubber::of_secrets(&[KEY], &[]);
    let whole = Inspected::of(codings, &scrubber, &[input]);
    let pieces: Vec<&[u8]> = input.chunks(usize::from(*size).max(1)).collect();
    let in_pieces = Inspected::of(codings, &scrubber, &pieces);
    let holds_key = |body: &[u8]| {
        let text = plain_text(codings.applied(), body);
        text.windows(KEY.len()).any(|window| window == KEY)
    };
    for inspected in [&whole, &in_pieces] {
        assert!(input.starts_with(&inspected.out), "other bytes went on");
        let is_clean = inspected.hits == 0 && inspected.uninspected.is_none();
        assert_eq!(
            is_clean,
            inspected.out.len() == input.len() || input.is_empty()
        );
        assert!(!holds_key(&inspected.out), "the key went on");
    }
    // How far a body unfolds is counted by what has arrived, and a piece that is malformed behind a
    // key is one thing or the other.
    let too_far = Some(Uninspected::UnfoldsTooFar);
    if whole.uninspected.is_none() && in_pieces.uninspected != too_far {
        assert_eq!(in_pieces.uninspected, None);
        assert_eq!(in_pieces.hits > 0, whole.hits > 0);
    }
}

/// What an [`Inspector`] makes of a body, where nothing passes that was not searched.
struct Inspected {
    out: Vec<u8>,
    hits: usize,
    uninspected: Option<Uninspected>,
}

impl Inspected {
    fn of(codings: Codings, scrubber: &Scrubber, pieces: &[&[u8]]) -> Self {
        let mut inspector = Inspector::new(codings, scrubber, OnHit::Redact);
        let mut inspected = Self {
            out: Vec::new(),
            hits: 0,
            uninspected: None,
        };
        for piece in pieces.iter().copied().map(Some).chain([None]) {
            let parts: &[&[u8]] = piece.as_slice();
            let passed = inspector.pass(parts, piece.is_none());
            inspected.hits += passed.hits;
            inspected.uninspected = passed.uninspected;
            if inspected.hits > 0 || inspected.uninspected.is_some() {
                break;
            }
            inspected.out.extend_from_slice(passed.clean);
        }
        inspected
    }
}

/// What a body decodes to until something is wrong with it, as other programs' readers see it.
fn plain_text(codings: &[Coding], body: &[u8]) -> Vec<u8> {
    let mut text = body.to_vec();
    for coding in codings.iter().rev() {
        let mut reader: Box<dyn Read + '_> = match coding {
            Coding::Gzip => Box::new(flate2::read::MultiGzDecoder::new(&text[..])),
            Coding::Deflate if is_zlib(&text) => {
                Box::new(flate2::read::ZlibDecoder::new(&text[..]))
            }
            Coding::Deflate => Box::new(flate2::read::DeflateDecoder::new(&text[..])),
            Coding::Brotli => Box::new(brotli::Decompressor::new(&text[..], 4096)),
            Coding::Zstd => Box::new(zstd_reader(&text)),
        };
        let mut decoded = Vec::new();
        let mut room = [0; 4096];
        while let Ok(read @ 1..) = reader.read(&mut room) {
            decoded.extend_from_slice(&room[..read]);
            if decoded.len() > PLAIN_TEXT_MAX {
                break;
            }
        }
        drop(reader);
        text = decoded;
    }
    text
}

/// The reference's decoder, with the window that is allowed to bodies (RFC 9659).
fn zstd_reader(text: &[u8]) -> impl Read + '_ {
    let mut reader = zstd::stream::Decoder::new(text).expect("memory for a decoder");
    reader.window_log_max(23).expect("a bound that it knows");
    reader
}

/// Bytes that are looked at of what a body decodes to: more than an [`Inspector`] decodes of one that
/// fuzzing makes.
const PLAIN_TEXT_MAX: usize = 5 << 20;

fn is_zlib(body: &[u8]) -> bool {
    match body {
        [first, second, ..] => {
            first & 0x8f == 8 && (u16::from(*first) << 8 | u16::from(*second)) % 31 == 0
        }
        _ => false,
    }
}

/// Reads a request that arrives in `pieces`.
pub fn request_of(
    pieces: &[&[u8]],
    limits: &HeadLimits,
) -> Result<RequestHead, wire::head::HeadError> {
    let mut head = RequestHead::new();
    for piece in pieces {
        head.buffer().extend_from_slice(piece);
        if head.parse(limits)? == Parse::Complete {
            break;
        }
    }
    if !head.bytes().is_empty() {
        // What had not arrived when the head was complete is behind it.
        let missing: usize = pieces.iter().map(|piece| piece.len()).sum::<usize>();
        let all = pieces.concat();
        let held = head.buffered();
        let skipped = usize::from(all.starts_with(b"\r\n")) * 2;
        if held + skipped < missing {
            head.buffer().extend_from_slice(&all[held + skipped..]);
        }
    }
    Ok(head)
}

/// Reads a response that arrives in `pieces`.
pub fn response_of(pieces: &[&[u8]]) -> Result<ResponseHead, wire::head::HeadError> {
    let mut head = ResponseHead::new();
    for piece in pieces {
        head.buffer().extend_from_slice(piece);
        if head.parse(&HeadLimits::default())? == Parse::Complete {
            break;
        }
    }
    Ok(head)
}

/// What a chunked body was read as.
#[derive(Debug, PartialEq, Eq)]
struct Body {
    data: Vec<u8>,
    trailers: Vec<u8>,
    used: usize,
    done: bool,
}

impl Body {
    fn read(pieces: &[&[u8]]) -> Result<Self, ()> {
        let mut decoder = ChunkedDecoder::new();
        let mut body = Self {
            data: Vec::new(),
            trailers: Vec::new(),
            used: 0,
            done: false,
        };
        for piece in pieces {
            let mut input = *piece;
            while !decoder.is_done() {
                let decoded = decoder.decode(input).map_err(drop)?;
                assert!(decoded.data.end <= decoded.used && decoded.used <= input.len());
                if decoded.used == 0 {
                    assert!(
                        input.is_empty(),
                        "a reader that needs more must have used everything"
                    );
                    break;
                }
                body.data.extend_from_slice(&input[decoded.data]);
                body.used += decoded.used;
                input = &input[decoded.used..];
            }
        }
        body.done = decoder.is_done();
        body.trailers.extend_from_slice(decoder.trailers());
        Ok(body)
    }
}

/// The data and length of a chunked body that is known to be well-formed.
fn plain_chunks(input: &[u8]) -> Option<(Vec<u8>, usize)> {
    let line = |at: usize| -> Option<(&[u8], usize)> {
        let len = input[at..].windows(2).position(|pair| pair == b"\r\n")?;
        Some((&input[at..at + len], at + len + 2))
    };
    let mut data = Vec::new();
    let mut at = 0;
    loop {
        let (size, behind) = line(at)?;
        let digits = size
            .iter()
            .take_while(|byte| byte.is_ascii_hexdigit())
            .count();
        let size = usize::from_str_radix(std::str::from_utf8(&size[..digits]).ok()?, 16).ok()?;
        at = behind;
        if size == 0 {
            break;
        }
        data.extend_from_slice(input.get(at..at + size)?);
        at += size;
        if input.get(at..at + 2)? != b"\r\n" {
            return None;
        }
        at += 2;
    }
    loop {
        let (trailer, behind) = line(at)?;
        at = behind;
        if trailer.is_empty() {
            return Some((data, at));
        }
    }
}

/// The lines of a head without their CRLF and without the blank one. Asserts that there is nothing
/// else in it.
fn plain_lines(head: &[u8]) -> Vec<&[u8]> {
    let text = head
        .strip_suffix(b"\r\n\r\n")
        .expect("a head ends in a blank line");
    let mut lines = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.windows(2).position(|pair| pair == b"\r\n") {
        lines.push(&rest[..at]);
        rest = &rest[at + 2..];
    }
    lines.push(rest);
    for line in &lines {
        assert!(!line.is_empty());
        assert!(
            line.iter()
                .all(|&byte| byte == b'\t' || (byte >= b' ' && byte != 0x7f))
        );
    }
    lines
}

fn check_fields<'a>(lines: &[&[u8]], fields: impl Iterator<Item = (&'a [u8], &'a [u8])>) {
    let mut lines = lines.iter();
    for (name, value) in fields {
        let line = lines.next().expect("a field has a line");
        assert!(!name.is_empty());
        assert!(
            name.iter()
                .all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte))
        );
        let behind = line
            .strip_prefix(name)
            .and_then(|line| line.strip_prefix(b":"));
        assert_eq!(behind.map(<[u8]>::trim_ascii), Some(value));
    }
    assert_eq!(lines.next(), None, "a line has no field");
}

fn check_request(head: &RequestHead) {
    let lines = plain_lines(head.bytes());
    let parts: Vec<&[u8]> = lines[0].split(|&byte| byte == b' ').collect();
    let [method, target, version] = parts[..] else {
        panic!("a request line has three parts");
    };
    assert_eq!(
        (head.method_str().as_bytes(), head.target()),
        (method, target)
    );
    assert!(
        target
            .iter()
            .all(|byte| (0x21..0x7f).contains(byte) && *byte != b'#')
    );
    match head.version() {
        Version::Http10 => assert_eq!(version, b"HTTP/1.0"),
        Version::Http11 => assert_eq!(version, b"HTTP/1.1"),
    }
    let fields = head
        .fields()
        .iter()
        .map(|field| (head.name(field), head.value(field)));
    check_fields(&lines[1..], fields);

    let mut whole = Vec::new();
    match head.form() {
        TargetForm::Origin => assert_eq!(head.path()[0], b'/'),
        TargetForm::Asterisk => assert_eq!((head.path(), head.query()), (&b"*"[..], None)),
        TargetForm::Authority => {}
        TargetForm::Absolute => {
            let scheme = target
                .windows(3)
                .position(|window| window == b"://")
                .expect("a scheme");
            whole.extend_from_slice(&target[..scheme + 3]);
        }
    }
    whole.extend_from_slice(head.authority().unwrap_or_default());
    whole.extend_from_slice(head.path_span().of(head.bytes()));
    if let Some(query) = head.query() {
        whole.push(b'?');
        whole.extend_from_slice(query);
    }
    assert_eq!(whole, target, "the target's parts make the target");

    let hosts = fields_of(head.bytes())
        .into_iter()
        .filter(|(name, _)| name == "host")
        .count();
    assert!(hosts == 1 || (hosts == 0 && head.version() == Version::Http10));
    assert_eq!(head.host().is_some(), hosts == 1);
}

/// Lower-case names and trimmed values, by a plain reading.
fn fields_of(head: &[u8]) -> Vec<(String, Vec<u8>)> {
    plain_lines(head)[1..]
        .iter()
        .map(|line| {
            let colon = line
                .iter()
                .position(|&byte| byte == b':')
                .expect("a field has a colon");
            let name = String::from_utf8_lossy(&line[..colon]).to_ascii_lowercase();
            (name, line[colon + 1..].trim_ascii().to_vec())
        })
        .collect()
}

/// `None`: ambiguous. `Some(None)`: nothing is said.
fn plain_framing(fields: &[(String, Vec<u8>)], http11: bool) -> Option<Option<BodyFraming>> {
    let values = |name: &str| -> Vec<&[u8]> {
        fields
            .iter()
            .filter(|field| field.0 == name)
            .map(|field| &field.1[..])
            .collect()
    };
    match (
        &values("content-length")[..],
        &values("transfer-encoding")[..],
    ) {
        ([], []) => Some(None),
        ([length], []) => {
            let digits = !length.is_empty() && length.iter().all(u8::is_ascii_digit);
            let length = std::str::from_utf8(length)
                .ok()
                .filter(|_| digits)?
                .parse()
                .ok()?;
            Some(Some(BodyFraming::Length(length)))
        }
        ([], [coding]) if http11 && coding.eq_ignore_ascii_case(b"chunked") => {
            Some(Some(BodyFraming::Chunked))
        }
        _ => None,
    }
}

/// Lower case, `-` for `_`.
fn folded(name: &[u8]) -> String {
    String::from_utf8_lossy(name)
        .to_ascii_lowercase()
        .replace('_', "-")
}

fn plain_decoded(raw: &[u8], plus_is_space: bool) -> Vec<u8> {
    let mut out = Vec::new();
    let mut at = 0;
    while at < raw.len() {
        let digits = raw
            .get(at + 1..at + 3)
            .and_then(|digits| std::str::from_utf8(digits).ok());
        let byte = digits
            .filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()))
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match (raw[at], byte) {
            (b'%', Some(byte)) => {
                out.push(byte);
                at += 2;
            }
            (b'+', _) if plus_is_space => out.push(b' '),
            (byte, _) => out.push(byte),
        }
        at += 1;
    }
    out
}

/// Whether a field of this name never passes, by the list in the documentation of `rewrite`.
fn never_passes(name: &str) -> bool {
    const HOP: &[&str] = &[
        "connection",
        "keep-alive",
        "proxy-connection",
        "te",
        "transfer-encoding",
        "upgrade",
        "http2-settings",
        "proxy-authenticate",
        "proxy-authentication-info",
    ];
    let fold = name.replace('_', "-");
    HOP.contains(&fold.as_str())
        || fold == "claviger"
        || fold.starts_with("claviger-")
        || (name.contains('_')
            && ["content-length", "cdn-loop", "alt-svc"].contains(&fold.as_str()))
}

/// Options that Connection names.
fn nominated(fields: &[(String, Vec<u8>)]) -> Vec<String> {
    fields
        .iter()
        .filter(|(name, _)| name == "connection")
        .flat_map(|(_, value)| {
            value
                .split(|&byte| byte == b',')
                .map(|option| option.trim_ascii().to_vec())
                .collect::<Vec<_>>()
        })
        .map(|option| String::from_utf8_lossy(&option).to_ascii_lowercase())
        .collect()
}

fn rewrite_request(head: &RequestHead, options: u8, cut: usize) {
    const HOST: &str = "api.example.com";
    const INJECTED: &[u8] = b"Authorization: Bearer the-real-key\r\n";
    const PARAM: &[u8] = b"key=the-real-key";
    const LOOP: &[u8] = b"CDN-Loop: ours\r\n";
    let option = |bit: u8| options >> bit & 1 == 1;
    let strip_fields = NameSet::new(["authorization", "x-api-key", "cdn-loop"]);
    let strip_params = ParamSet::new(["key", "access_token"]);
    let keep_params = if option(0) {
        ParamSet::new(["access_token"])
    } else {
        ParamSet::default()
    };
    let framing = framing::of_request(head).unwrap_or(BodyFraming::Length(7));
    let edit = RequestEdit {
        path_strip: if option(1) { cut } else { 0 },
        path_insert: if option(2) { b"/v1/" } else { b"" },
        host: HOST.as_bytes(),
        strip_fields: &strip_fields,
        strip_params: &strip_params,
        keep_params: &keep_params,
        strip_cookies: option(3),
        inject_line: option(4).then_some(0),
        inject_param: option(5).then_some(1),
        framing,
        upgrade: option(6).then_some(b"websocket"),
        expect_continue: option(7),
        searched: false,
        lines: &[LOOP],
    };
    let mut plan = Plan::new();
    rewrite::request(head, &edit, &mut plan);
    let written = gather(&plan, head.bytes(), &[INJECTED, PARAM]);
    let again = request_of(&[&written], &LIMITS_LARGE).expect("an edited head is well-formed");
    assert_eq!(
        again.bytes(),
        written,
        "nothing stands behind an edited head"
    );
    check_request(&again);

    assert_eq!(
        (again.method_str(), again.version()),
        (head.method_str(), Version::Http11)
    );
    let (target, param_names) = model_target(head, &edit, PARAM, option(0));
    assert_eq!(
        String::from_utf8_lossy(again.target()),
        String::from_utf8_lossy(&target),
        "from {}",
        String::from_utf8_lossy(head.target())
    );

    let received = fields_of(head.bytes());
    let nominated = nominated(&received);
    let mut stripped = Vec::new();
    let mut expected = vec![("host".to_owned(), HOST.as_bytes().to_vec())];
    for (name, value) in &received {
        let fold = name.replace('_', "-");
        let stays = match fold.as_str() {
            "host" | "content-length" => false,
            _ if never_passes(name) || fold == "proxy-authorization" => false,
            "cdn-loop" => true,
            "expect" => {
                option(7)
                    && head.version() == Version::Http11
                    && value.eq_ignore_ascii_case(b"100-continue")
            }
            "trailer" => framing == BodyFraming::Chunked,
            "authorization" | "x-api-key" | "via" | "forwarded" | "x-forwarded-for"
            | "x-forwarded-host" | "x-forwarded-proto" => {
                stripped.push(fold.clone());
                false
            }
            "cookie" if option(3) => {
                stripped.push(fold.clone());
                false
            }
            _ => !nominated.contains(name),
        };
        if stays {
            expected.push((name.clone(), value.clone()));
        }
    }
    let mut own =
        |name: &str, value: &str| expected.push((name.to_owned(), value.as_bytes().to_vec()));
    own("cdn-loop", "ours");
    if option(4) {
        own("authorization", "Bearer the-real-key");
    }
    match framing {
        BodyFraming::Length(length) => own("content-length", &length.to_string()),
        BodyFraming::Chunked => own("transfer-encoding", "chunked"),
        BodyFraming::None | BodyFraming::UntilClose => {}
    }
    if option(6) {
        own("connection", "upgrade");
        own("upgrade", "websocket");
    }
    assert_eq!(fields_of(again.bytes()), expected);
    assert_eq!(framing::of_request(&again), Ok(framing));

    stripped.extend(param_names);
    for name in stripped {
        assert!(
            plan.stripped().truncated() || plan.stripped().iter().any(|known| known == name),
            "{name} is not named"
        );
    }
}

/// The target that an edit shall give, and the names of the parameters it removes.
fn model_target(
    head: &RequestHead,
    edit: &RequestEdit<'_>,
    param: &[u8],
    keep_token: bool,
) -> (Vec<u8>, Vec<String>) {
    if head.form() == TargetForm::Authority || head.path() == b"*" {
        return (
            if head.path() == b"*" {
                b"*".to_vec()
            } else {
                head.target().to_vec()
            },
            Vec::new(),
        );
    }
    let raw_path = head.path_span().of(head.bytes());
    let kept = &raw_path[edit.path_strip.min(raw_path.len())..];
    let joined = [edit.path_insert, b"/", kept].concat();
    let mut target = if edit.path_insert.is_empty() {
        if kept.starts_with(b"/") {
            kept.to_vec()
        } else {
            joined
        }
    } else if kept.is_empty() {
        edit.path_insert.to_vec()
    } else {
        let insert = edit
            .path_insert
            .strip_suffix(b"/")
            .unwrap_or(edit.path_insert);
        let slash: &[u8] = if kept.starts_with(b"/") { b"" } else { b"/" };
        [insert, slash, kept].concat()
    };

    let mut names = Vec::new();
    let mut query: Option<Vec<u8>> = edit.inject_param.map(|_| param.to_vec());
    let injected = query.is_some();
    match head.query() {
        Some(b"") if !injected => query = Some(Vec::new()),
        Some(received) if !received.is_empty() => {
            let mut first = true;
            let mut separator = b'?';
            let mut rest = received;
            loop {
                let len = rest
                    .iter()
                    .position(|byte| b"&;".contains(byte))
                    .unwrap_or(rest.len());
                let whole = &rest[..len];
                let raw = whole.split(|&byte| byte == b'=').next().unwrap_or_default();
                let decoded = plain_decoded(raw, true);
                let name = decoded.trim_ascii().to_ascii_lowercase();
                let gone = name == b"key" || (name == b"access_token" && !keep_token);
                if gone {
                    names.push(format!("?{}", String::from_utf8_lossy(&name)));
                } else {
                    let query = query.get_or_insert_with(Vec::new);
                    if !first {
                        query.push(separator);
                    } else if injected {
                        query.push(b'&');
                    }
                    query.extend_from_slice(whole);
                    first = false;
                }
                let Some(&next) = rest.get(len) else { break };
                separator = next;
                rest = &rest[len + 1..];
            }
        }
        _ => {}
    }
    if let Some(query) = query {
        target.push(b'?');
        target.extend_from_slice(&query);
    }
    (target, names)
}

fn rewrite_response(head: &ResponseHead, options: u8) {
    const NEEDLE: &[u8] = b"the-real-key";
    let option = |bit: u8| options >> bit & 1 == 1;
    let Ok(framing) =
        framing::of_response(head, if option(0) { Method::Head } else { Method::Get })
    else {
        return;
    };
    let scrubber = Scrubber::new(&[NEEDLE]);
    let edit = ResponseEdit {
        framing,
        close: option(1),
        http10: option(2),
        upgrade: option(3).then_some(b"websocket"),
        scrubber: option(4).then_some(&scrubber),
        keep_length: option(5),
        strip_fields: None,
    };
    let mut plan = Plan::new();
    let hits = rewrite::response(head, &edit, &mut plan);
    let written = gather(&plan, head.bytes(), &[]);
    let again = response_of(&[&written]).expect("an edited head is well-formed");
    assert_eq!(again.bytes(), written);
    assert_eq!(
        (again.status(), again.version()),
        (head.status(), Version::Http11)
    );
    let found = head
        .bytes()
        .windows(NEEDLE.len())
        .any(|window| window == NEEDLE);
    assert_eq!(hits > 0, option(4) && found);
    if option(4) {
        assert_eq!(
            scrubber.find(&written),
            None,
            "the key is still in the head"
        );
    }

    let received = fields_of(head.bytes());
    let nominated = nominated(&received);
    let mut expected = Vec::new();
    for (name, value) in &received {
        let fold = name.replace('_', "-");
        let stays = match fold.as_str() {
            _ if never_passes(name) || fold == "alt-svc" || fold == "proxy-authorization" => false,
            "host" if name.contains('_') => false,
            "content-length" => option(5) && framing == BodyFraming::None,
            "trailer" => framing == BodyFraming::Chunked,
            "cdn-loop" => true,
            _ => !nominated.contains(name),
        };
        if stays {
            expected.push((name.clone(), value.clone()));
        }
    }
    let mut own =
        |name: &str, value: &str| expected.push((name.to_owned(), value.as_bytes().to_vec()));
    match framing {
        BodyFraming::Length(length) => own("content-length", &length.to_string()),
        BodyFraming::Chunked => own("transfer-encoding", "chunked"),
        BodyFraming::None | BodyFraming::UntilClose => {}
    }
    if option(1) {
        own("connection", "close");
    } else if option(2) && !option(3) {
        own("connection", "keep-alive");
    }
    if option(3) {
        own("connection", "upgrade");
        own("upgrade", "websocket");
    }
    if hits == 0 {
        assert_eq!(fields_of(again.bytes()), expected);
    }
}

fn gather(plan: &Plan, head: &[u8], externals: &[&[u8]]) -> Vec<u8> {
    let mut slices = Vec::new();
    plan.slices(head, externals, &mut slices);
    let written = slices.concat();
    assert_eq!(written.len(), plan.len(externals));
    written
}

/// Room for what an edit adds to a head that just fits.
const LIMITS_LARGE: HeadLimits = HeadLimits {
    head_bytes_max: 64 * 1024,
    fields_max: 256,
};
