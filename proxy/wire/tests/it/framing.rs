//! Framing: one table for requests, one for responses.

use wire::framing::{self, BodyFraming, FramingError};
use wire::head::Method;

use crate::bodies::{request_of, response_of};

#[test]
fn requests() {
    use BodyFraming::{Chunked, Length, None};
    use FramingError::*;
    let check = |version: &str, fields: &str, expected: Result<BodyFraming, FramingError>| {
        let bytes = format!("POST / HTTP/{version}\r\nHost: a\r\n{fields}\r\n");
        let head = request_of(&[bytes.as_bytes()], &Default::default()).expect("a head");
        assert_eq!(
            framing::of_request(&head),
            expected,
            "HTTP/{version} {fields:?}"
        );
    };
    for (fields, expected) in [
        ("", Ok(None)),
        ("Content-Length: 0\r\n", Ok(Length(0))),
        ("content-length:12 \r\n", Ok(Length(12))),
        ("Content-Length: 0012\r\n", Ok(Length(12))),
        (
            "Content-Length: 9223372036854775807\r\n",
            Ok(Length(i64::MAX as u64)),
        ),
        (
            "Content-Length: 18446744073709551616\r\n",
            Err(LengthMalformed),
        ),
        (
            "Content-Length: 99999999999999999999999\r\n",
            Err(LengthMalformed),
        ),
        ("Content-Length:\r\n", Err(LengthMalformed)),
        ("Content-Length: +5\r\n", Err(LengthMalformed)),
        ("Content-Length: -5\r\n", Err(LengthMalformed)),
        ("Content-Length: 5, 5\r\n", Err(LengthMalformed)),
        ("Content-Length: 5 5\r\n", Err(LengthMalformed)),
        ("Content-Length: 0x5\r\n", Err(LengthMalformed)),
        ("Content-Length: 5.0\r\n", Err(LengthMalformed)),
        (
            "Content-Length: 5\r\nContent-Length: 5\r\n",
            Err(LengthRepeated),
        ),
        (
            "Content-Length: 5\r\nContent-Length: 6\r\n",
            Err(LengthRepeated),
        ),
        (
            "Content-Length: x\r\nContent-Length: 6\r\n",
            Err(LengthRepeated),
        ),
        ("Transfer-Encoding: chunked\r\n", Ok(Chunked)),
        ("transfer-encoding: CHUNKED\r\n", Ok(Chunked)),
        (
            "Transfer-Encoding: gzip, chunked\r\n",
            Err(TransferCodingUnknown),
        ),
        (
            "Transfer-Encoding: chunked, chunked\r\n",
            Err(TransferCodingUnknown),
        ),
        (
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            Err(TransferCodingUnknown),
        ),
        (
            "Transfer-Encoding: identity\r\n",
            Err(TransferCodingUnknown),
        ),
        (
            "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n",
            Err(TransferCodingUnknown),
        ),
        (
            "Transfer-Encoding: chunked;q=1\r\n",
            Err(TransferCodingUnknown),
        ),
        (
            "Transfer-Encoding: \"chunked\"\r\n",
            Err(TransferCodingUnknown),
        ),
        (
            "Transfer-Encoding: xchunked\r\n",
            Err(TransferCodingUnknown),
        ),
        (
            "Transfer-Encoding: chunked,\r\n",
            Err(TransferCodingUnknown),
        ),
        ("Transfer-Encoding:\r\n", Err(TransferCodingUnknown)),
        (
            "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
            Err(LengthAndTransferCoding),
        ),
        (
            "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
            Err(LengthAndTransferCoding),
        ),
        (
            "Transfer-Encoding: identity\r\nContent-Length: 5\r\n",
            Err(LengthAndTransferCoding),
        ),
        // A spelling that some servers fold: it says nothing here, and `rewrite` removes it.
        (
            "Content_Length: 5\r\nTransfer_Encoding: chunked\r\n",
            Ok(None),
        ),
    ] {
        check("1.1", fields, expected);
    }
    check("1.0", "Content-Length: 5\r\n", Ok(Length(5)));
    check(
        "1.0",
        "Transfer-Encoding: chunked\r\n",
        Err(TransferCodingInHttp10),
    );
    check("1.0", "", Ok(None));
}

#[test]
fn responses() {
    use BodyFraming::{Chunked, Length, None, UntilClose};
    use FramingError::*;
    use Method::{Get, Head};
    let check =
        |start: &str, method: Method, fields: &str, expected: Result<BodyFraming, FramingError>| {
            let bytes = format!("HTTP/{start}\r\n{fields}\r\n");
            let head = response_of(&[bytes.as_bytes()]).expect("a head");
            assert_eq!(
                framing::of_response(&head, method),
                expected,
                "{start} to {method:?} {fields:?}"
            );
        };
    let length = "Content-Length: 5\r\n";
    let chunked = "Transfer-Encoding: chunked\r\n";
    check("1.1 200 OK", Get, length, Ok(Length(5)));
    check("1.1 200 OK", Get, chunked, Ok(Chunked));
    check("1.1 200 OK", Get, "", Ok(UntilClose));
    check("1.0 200 OK", Get, "", Ok(UntilClose));
    check("1.0 200 OK", Get, length, Ok(Length(5)));
    check("1.0 200 OK", Get, chunked, Err(TransferCodingInHttp10));
    for fields in ["", length, chunked] {
        check("1.1 200 OK", Head, fields, Ok(None));
        check("1.1 204 No Content", Get, fields, Ok(None));
        check("1.1 304 Not Modified", Get, fields, Ok(None));
        check("1.1 101 Switching Protocols", Get, fields, Ok(None));
        check("1.1 100 Continue", Method::Post, fields, Ok(None));
    }
    check("1.1 205 Reset Content", Get, length, Ok(Length(5)));
    let both = "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n";
    let two = "Content-Length: 5\r\nContent-Length: 5\r\n";
    for method in [Get, Head] {
        check("1.1 200 OK", method, both, Err(LengthAndTransferCoding));
        check("1.1 200 OK", method, two, Err(LengthRepeated));
        check(
            "1.1 200 OK",
            method,
            "Transfer-Encoding: gzip, chunked\r\n",
            Err(TransferCodingUnknown),
        );
        check(
            "1.1 200 OK",
            method,
            "Content-Length: 5, 5\r\n",
            Err(LengthMalformed),
        );
    }
}

#[test]
fn errors_have_a_status_and_a_name() {
    for (error, status) in [
        (FramingError::LengthAndTransferCoding, 400),
        (FramingError::LengthRepeated, 400),
        (FramingError::LengthMalformed, 400),
        (FramingError::TransferCodingUnknown, 501),
        (FramingError::TransferCodingInHttp10, 400),
    ] {
        assert_eq!(error.status(), status);
        assert!(
            error
                .reason()
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte == b'_' || byte.is_ascii_digit())
        );
    }
}

#[test]
fn an_informational_response_claims_no_body() {
    #[track_caller]
    fn check(start: &str, fields: &str, claims: bool) {
        let bytes = format!("HTTP/{start}\r\n{fields}\r\n");
        let head = response_of(&[bytes.as_bytes()]).expect("a head");
        assert_eq!(
            framing::informational_claims_body(&head),
            claims,
            "{start} {fields:?}"
        );
    }
    for start in ["1.1 100 Continue", "1.1 101 Switching Protocols"] {
        check(start, "", false);
        check(start, "Content-Length: 0\r\n", false);
        check(start, "Content-Length: 5\r\n", true);
        check(start, "Content-Length: 0\r\nContent-Length: 0\r\n", true);
        check(start, "Content-Length: x\r\n", true);
        check(start, "Transfer-Encoding: chunked\r\n", true);
        check(start, "Transfer-Encoding: identity\r\n", true);
    }
}
