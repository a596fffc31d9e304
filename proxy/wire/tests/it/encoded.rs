//! A key comes back percent-encoded in part, as whoever builds a URL pleases.

use wire::framing::BodyFraming;
use wire::head::{HeadLimits, Parse, ResponseHead};
use wire::rewrite::{self, Plan, ResponseEdit};
use wire::scrub::Scrubber;

const KEY: &[u8] = b"EV/il+key=0123";

#[track_caller]
fn check(location: &str, expected: &str, hits: usize) {
    let scrubber = Scrubber::of_secrets(&[KEY], &[]);
    let mut head = ResponseHead::new();
    head.buffer().extend_from_slice(
        format!("HTTP/1.1 302 Found\r\nLocation: {location}\r\n\r\n").as_bytes(),
    );
    assert!(matches!(
        head.parse(&HeadLimits::default()),
        Ok(Parse::Complete)
    ));
    let mut plan = Plan::new();
    let found = rewrite::response(
        &head,
        &ResponseEdit {
            framing: BodyFraming::None,
            close: false,
            http10: false,
            upgrade: None,
            scrubber: Some(&scrubber),
            keep_length: false,
            strip_fields: None,
        },
        &mut plan,
    );
    let mut slices = Vec::new();
    plan.slices(head.bytes(), &[], &mut slices);
    let text = String::from_utf8(slices.concat()).expect("text");
    assert!(
        text.contains(&format!("Location: {expected}\r\n")),
        "{text}"
    );
    assert_eq!(found, hits, "{text}");
}

#[test]
fn any_mixture_of_encodings_is_found() {
    check("/?key=EV/il+key=0123&x=1", "/?key=redacted&x=1", 1);
    check("/?key=EV%2Fil%2Bkey%3D0123", "/?key=redacted", 1);
    check("/?key=EV/il%2Bkey%3d0123", "/?key=redacted", 1);
    check("/?key=%45%56%2f%69l+key=0123#f", "/?key=redacted#f", 1);
    check(
        "/?a=EV/il+key=0123&b=EV/il%2bkey%3D0123",
        "/?a=redacted&b=redacted",
        2,
    );
    check(
        "/?key=EV%2Fil%2Bkey%3D0124",
        "/?key=EV%2Fil%2Bkey%3D0124",
        0,
    );
    check("/100%/EV%2", "/100%/EV%2", 0);
}
