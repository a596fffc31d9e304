use std::io::Write;

use futures_util::future::join;

use super::*;
use crate::test_support::{
    Bench, LONG, arrived, elsewhere, on_each_driver, pattern, read_all, read_exactly,
};

/// Answers in clear text, and gives what was sent.
async fn sent(problem: &Problem, is_head: bool, close: bool) -> (String, u64) {
    let bench = Bench::new();
    let (mut ours, mut peer) = bench.socket().await;
    let bytes = answer(&mut ours, problem, "0a-1", is_head, close, LONG)
        .await
        .expect("the peer is there");
    (String::from_utf8(arrived(&mut peer)).expect("text"), bytes)
}

#[test]
fn an_answer_says_who_refused_and_why() {
    on_each_driver(async || {
        let problem = Problem::from(&Denial::NO_ROUTE.on("mail"));
        let body = concat!(
            r#"{"type":"urn:claviger:problem:no_route","title":"Not Found","status":404,"#,
            r#""detail":"No route covers this path on this host.","reason":"no_route","#,
            r#""refused_by":"policy","request_id":"0a-1"}"#,
            "\n"
        );
        let head = |close: &str| {
            format!(
                "HTTP/1.1 404 Not Found\r\n\
                 Content-Type: application/problem+json\r\n\
                 Content-Length: {}\r\n\
                 Cache-Control: no-store\r\n\
                 Claviger-Answer: policy; reason=no_route\r\n\
                 Claviger-Request-Id: 0a-1\r\n\
                 {close}\r\n",
                body.len()
            )
        };
        let whole = (format!("{}{body}", head("")), body.len() as u64);
        assert_eq!(sent(&problem, false, false).await, whole);
        let closing = (
            format!("{}{body}", head("Connection: close\r\n")),
            body.len() as u64,
        );
        assert_eq!(sent(&problem, false, true).await, closing);
        // HEAD gets the head that GET would get (RFC 9110, 9.3.2).
        assert_eq!(sent(&problem, true, false).await, (head(""), 0));
    });
}

#[test]
fn what_would_help_is_said() {
    on_each_driver(async || {
        let denial = Denial::METHOD_NOT_SERVED.allowing("GET, POST");
        let (text, _) = sent(&Problem::from(&denial), false, false).await;
        assert!(text.starts_with("HTTP/1.1 405 Method Not Allowed\r\n"));
        assert!(text.contains("\r\nAllow: GET, POST\r\n"), "{text}");
        assert!(!text.contains("Retry-After"));
        let later = Problem::new(503, "busy", Refuser::Claviger, "Later.").retry_after(7);
        let (text, _) = sent(&later, true, true).await;
        assert!(text.starts_with("HTTP/1.1 503 Service Unavailable\r\n"));
        assert!(text.contains("\r\nRetry-After: 7\r\n"), "{text}");
        assert!(text.ends_with("\r\nConnection: close\r\n\r\n"));
        assert!(!text.contains("Allow"));
    });
}

/// Texts that would need an escape would break the document.
#[test]
fn every_refusal_fits_into_the_document() {
    for denial in [
        Denial::METHOD_REFUSED,
        Denial::BAD_HOST,
        Denial::MISDIRECTED,
        Denial::UNKNOWN_HOST,
        Denial::LOOP,
        Denial::AMBIGUOUS_PATH,
        Denial::AMBIGUOUS_METHOD,
        Denial::NO_ROUTE,
        Denial::METHOD_NOT_SERVED,
        Denial::CALLER_REFUSED,
        Denial::KEY_MANAGEMENT,
    ] {
        assert_ne!(title(denial.status), "Refused", "{}", denial.status);
        for text in [denial.detail, denial.reason] {
            assert!(
                text.bytes()
                    .all(|byte| (0x20..0x7f).contains(&byte) && byte != b'"' && byte != b'\\'),
                "{text}"
            );
        }
    }
}

/// A caller that sends on against its answer can read it all the same: closing at
/// once would reset the connection and destroy what is on its way.
#[test]
fn lingering_lets_the_answer_arrive() {
    on_each_driver(async || {
        let bench = Bench::new();
        let (mut ours, peer) = bench.socket().await;
        let problem = Problem::new(413, "body_too_large", Refuser::Policy, "Too large.");
        let caller = elsewhere(move || {
            let mut peer = peer;
            peer.write_all(&pattern(4 * 1024 * 1024))
                .expect("it is taken");
            peer.shutdown(std::net::Shutdown::Write)
                .expect("it is open");
            read_all(&mut peer).expect("no reset")
        });
        let answering = async {
            answer(&mut ours, &problem, "0a-1", false, true, LONG)
                .await
                .expect("the peer is there");
            linger(&mut ours).await;
            drop(ours);
        };
        let (text, ()) = join(caller, answering).await;
        assert!(text.starts_with(b"HTTP/1.1 413 Content Too Large\r\n"));
        assert!(text.ends_with(b"}\n"));
    });
}

#[test]
fn lingering_ends() {
    on_each_driver(async || {
        let bench = Bench::new();
        let (mut ours, mut peer) = bench.socket().await;
        // It sends on, but not for ever.
        let last_ms = LINGER_TIME.as_millis() as u64 + crate::tick::PERIOD.as_millis() as u64;
        join(linger(&mut ours), async {
            for now_ms in [0, last_ms / 2, last_ms, 2 * last_ms] {
                peer.write_all(b"more").expect("it is open");
                crate::rt::sleep(Duration::from_millis(2)).await;
                bench.tick.sweep_at(now_ms, false);
            }
        })
        .await;
        assert_eq!(read_exactly(&mut peer, 0), b"");
        // Or not at all.
        let (mut ours, _peer) = bench.socket().await;
        let begun_ms = bench.tick.now_ms();
        join(linger(&mut ours), async {
            bench.tick.sweep_at(begun_ms + last_ms, false);
        })
        .await;
        assert!(ours.watch().is_recv_late());
    });
}
