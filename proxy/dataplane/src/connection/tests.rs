use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::os::fd::OwnedFd;

use handoff::{Counter, Drain};
use policy::upstream::UpstreamLimits;

use super::*;
use crate::rt::DriverKind;
use crate::test_support::{
    self, HOST, Refusing, arrived, elsewhere, is_quiet, listener, on_each_driver, on_each_kind,
    read_all, until, upstream,
};

/// A caller's connection to the clear-text listener, served by a task of the core.
/// The flag is set when that task has ended.
fn connect(core: &Rc<Core>, kind: DriverKind) -> (TcpStream, Rc<std::cell::Cell<bool>>) {
    let listener = listener();
    let caller =
        TcpStream::connect(listener.local_addr().expect("it is bound")).expect("loopback connects");
    let (socket, client) = listener.accept().expect("it is connected");
    // As an accept of that driver makes them.
    socket
        .set_nonblocking(kind == DriverKind::Epoll)
        .expect("a TCP socket");
    let ended = Rc::new(std::cell::Cell::new(false));
    let (core, ends) = (Rc::clone(core), Rc::clone(&ended));
    rt::spawn(async move {
        let served = serve(&core, arrival(client, socket)).await;
        assert!(served.is_none(), "nobody is relieved");
        ends.set(true);
    });
    (caller, ended)
}

fn arrival(client: SocketAddr, socket: TcpStream) -> Arrival {
    Arrival {
        listener: "clear".into(),
        client,
        socket: OwnedFd::from(socket),
        carried: None,
    }
}

/// The reasons of the records so far.
fn reasons(core: &Core, drain: &mut Drain) -> Vec<String> {
    core.ledger.flush();
    let mut reasons = Vec::new();
    while let Some(batch) = drain.take() {
        for line in String::from_utf8(batch.lines).expect("text").lines() {
            let reason = line
                .split_once("\"reason\":\"")
                .map_or("answered", |(_, rest)| {
                    rest.split('"').next().unwrap_or_default()
                });
            reasons.push(reason.to_owned());
        }
    }
    reasons
}

/// Statuses of the answers in `text`, in order.
fn statuses(text: &[u8]) -> Vec<String> {
    String::from_utf8_lossy(text)
        .split("HTTP/1.1 ")
        .skip(1)
        .map(|answer| answer[..3].to_owned())
        .collect()
}

#[test]
fn a_panic_leaves_a_record() {
    on_each_driver(async || {
        let (core, mut drain) = test_support::idle_core();
        let client = "10.0.0.7:1".parse().expect("an address");
        for begun in [true, false] {
            let ended = Rc::new(std::cell::Cell::new(false));
            let (owner, ends) = (Rc::clone(&core), Rc::clone(&ended));
            rt::spawn(async move {
                let draft = Draft::new("main".into(), client);
                let core = &*owner;
                let _record = LastRecord {
                    core,
                    draft: &draft,
                };
                if begun {
                    draft
                        .borrow_mut()
                        .begin(core.instance, 0, core.next_request(), core.view());
                    core.ledger.watch(&draft);
                }
                let _flag = Flag(ends);
                let _in_hand = draft.borrow_mut();
                panic!("as an exchange might");
            });
            until(|| ended.get()).await;
            let expected: &[&str] = if begun { &["panic"] } else { &[] };
            assert_eq!(reasons(&core, &mut drain), expected);
        }
        core.ledger.stop();
        assert!(reasons(&core, &mut drain).is_empty());
    });
}

/// Set when it is dropped, be it by a panic.
struct Flag(Rc<std::cell::Cell<bool>>);

impl Drop for Flag {
    fn drop(&mut self) {
        self.0.set(true);
    }
}

#[test]
fn each_exchange_of_a_connection_has_one_record() {
    on_each_kind(async |kind| {
        let refusing = Refusing::new();
        let up = upstream(1, &[refusing.address], UpstreamLimits::default());
        let (core, mut drain) = test_support::core(up);
        let (mut caller, ended) = connect(&core, kind);
        // Three in one packet, and the last one ends it.
        let requests = format!(
            "GET / HTTP/1.1\r\nHost: nobody.test\r\n\r\n\
             TRACE / HTTP/1.1\r\nHost: {HOST}\r\n\r\n\
             POST /v3/mail HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 2\r\n\r\nhi\
             GET / HTTP/1.1\r\nHost: {HOST}\r\nHost: {HOST}\r\n\r\n"
        );
        caller.write_all(requests.as_bytes()).expect("it is open");
        caller.shutdown(Shutdown::Write).expect("it is open");
        let text = elsewhere(move || read_all(&mut caller)).await;
        assert_eq!(
            statuses(&text.expect("a clean end")),
            ["421", "405", "502", "400"]
        );
        until(|| ended.get()).await;
        assert_eq!(
            reasons(&core, &mut drain),
            [
                "unknown_host",
                "method_refused",
                "upstream_unreachable",
                "host_repeated"
            ]
        );
        assert_eq!(core.counters.get(Counter::exchanges), 4);
        assert_eq!(core.counters.get(Counter::exchanges_open), 0);
        assert_eq!(core.counters.get(Counter::exchanges_answered_here), 4);
        assert_eq!(core.counters.get(Counter::audit_records), 4);
        core.ledger.stop();
        assert!(reasons(&core, &mut drain).is_empty());
    });
}

#[test]
fn a_connection_that_says_nothing_leaves_nothing() {
    on_each_kind(async |kind| {
        let (core, mut drain) = test_support::idle_core();
        let (caller, ended) = connect(&core, kind);
        drop(caller);
        until(|| ended.get()).await;
        // Nor does half a request: nobody is left to answer.
        let (mut caller, ended) = connect(&core, kind);
        caller.write_all(b"GET / HTTP/1.1\r\n").expect("it is open");
        drop(caller);
        until(|| ended.get()).await;
        assert!(reasons(&core, &mut drain).is_empty());
        assert_eq!(core.counters.get(Counter::exchanges), 0);
    });
}

#[test]
fn a_head_that_takes_too_long_is_answered_and_recorded() {
    on_each_kind(async |kind| {
        let (core, mut drain) = test_support::idle_core();
        let (mut caller, ended) = connect(&core, kind);
        caller.write_all(b"GET / HTTP/1.1\r\n").expect("it is open");
        let mut now_ms = 0;
        while !ended.get() {
            // Whenever the head is begun, its time is up in the end.
            rt::sleep(Duration::from_millis(1)).await;
            now_ms += 8_000;
            core.tick.sweep_at(now_ms, false);
        }
        assert_eq!(statuses(&arrived(&mut caller)), ["408"]);
        assert_eq!(reasons(&core, &mut drain), ["request_head_timeout"]);
    });
}

#[test]
fn what_is_under_way_when_the_core_stops_has_its_record() {
    on_each_kind(async |kind| {
        // It takes connections, and never says a word.
        let mute = listener();
        let address = mute.local_addr().expect("it is bound");
        let (core, mut drain) =
            test_support::core(upstream(1, &[address], UpstreamLimits::default()));
        let (mut caller, ended) = connect(&core, kind);
        let request = format!("GET /v3/mail HTTP/1.1\r\nHost: {HOST}\r\n\r\n");
        caller.write_all(request.as_bytes()).expect("it is open");
        until(|| core.counters.get(Counter::exchanges_open) == 1).await;
        assert!(reasons(&core, &mut drain).is_empty());
        core.ledger.stop();
        assert_eq!(reasons(&core, &mut drain), ["stopped"]);
        // Its task ends later, and says nothing more.
        drop(mute);
        until(|| ended.get() || !is_quiet(&caller)).await;
        drop(caller);
        until(|| ended.get()).await;
        assert!(reasons(&core, &mut drain).is_empty());
    });
}

#[test]
fn draining_closes_idle_connections_and_answers_first_requests() {
    on_each_kind(async |kind| {
        let (core, mut drain) = test_support::idle_core();
        let (mut old, old_ended) = connect(&core, kind);
        let request = b"GET / HTTP/1.1\r\nHost: nobody.test\r\n\r\n";
        old.write_all(request).expect("it is open");
        until(|| !is_quiet(&old)).await;
        assert!(!String::from_utf8_lossy(&arrived(&mut old)).contains("Connection: close"));
        let (mut new, new_ended) = connect(&core, kind);
        core.draining.set(true);
        rt::sleep(Duration::from_millis(2)).await;
        core.tick.sweep_at(1, true);
        until(|| old_ended.get()).await;
        // It may have sent its request already.
        assert!(!new_ended.get());
        new.write_all(request).expect("it is open");
        until(|| !is_quiet(&new)).await;
        let last = String::from_utf8(arrived(&mut new)).expect("text");
        new.shutdown(Shutdown::Write).expect("it is open");
        until(|| new_ended.get()).await;
        assert!(last.contains("\r\nConnection: close\r\n"), "{last}");
        assert_eq!(reasons(&core, &mut drain), ["unknown_host", "unknown_host"]);
    });
}

#[test]
fn retiring_leaves_an_idle_connection_its_next_request() {
    on_each_kind(async |kind| {
        let (core, _drain) = test_support::idle_core();
        let (mut caller, ended) = connect(&core, kind);
        let request = b"GET / HTTP/1.1\r\nHost: nobody.test\r\n\r\n";
        caller.write_all(request).expect("it is open");
        until(|| !is_quiet(&caller)).await;
        assert!(!String::from_utf8_lossy(&arrived(&mut caller)).contains("Connection: close"));
        for _ in 0..3 {
            core.on_tick(handoff::Phase::Retiring);
            rt::sleep(Duration::from_millis(2)).await;
        }
        assert!(!ended.get(), "its request may be on the way");
        caller.write_all(request).expect("it is open");
        until(|| !is_quiet(&caller)).await;
        let last = String::from_utf8(arrived(&mut caller)).expect("text");
        assert!(last.contains("\r\nConnection: close\r\n"), "{last}");
        caller.shutdown(Shutdown::Write).expect("it is open");
        until(|| ended.get()).await;
    });
}

/// What a connection that waits keeps on the heap: its task, its session, its draft.
/// The whole, with the allocator's and the runtime's part, is measured by `tests/it`.
#[test]
fn a_connection_that_waits_is_small() {
    on_each_driver(async || {
        let (core, _drain) = test_support::idle_core();
        let listener = listener();
        let address = listener.local_addr().expect("it is bound");
        let _caller = TcpStream::connect(address).expect("loopback connects");
        let (socket, client) = listener.accept().expect("it is connected");
        let task = serve(&core, arrival(client, socket));
        let sizes = [
            ("its task", size_of_val(&task), 2_048),
            ("its session", size_of::<crate::session::Session>(), 1_024),
            ("its draft", size_of::<RefCell<Draft>>(), 512),
        ];
        for (what, bytes, bytes_max) in sizes {
            assert!(bytes <= bytes_max, "{what}: {bytes} bytes of {bytes_max}");
        }
    });
}

/// Many requests at once that are answered here: another task of the core has its turn between them.
#[test]
fn answers_of_our_own_let_others_run() {
    const REQUESTS: u64 = 200;
    on_each_kind(async |kind| {
        let refusing = Refusing::new();
        let up = upstream(1, &[refusing.address], UpstreamLimits::default());
        let (core, _drain) = test_support::core(up);
        let (mut caller, ended) = connect(&core, kind);
        let request = format!("TRACE / HTTP/1.1\r\nHost: {HOST}\r\n\r\n");
        caller
            .write_all(request.repeat(REQUESTS as usize).as_bytes())
            .expect("it is open");
        caller.shutdown(Shutdown::Write).expect("it is open");
        let answers = std::thread::spawn(move || read_all(&mut caller));
        let answered = || core.counters.get(Counter::exchanges_answered_here);
        let (mut before, mut most) = (0, 0);
        while !ended.get() {
            rt::yield_now().await;
            most = most.max(answered() - before);
            before = answered();
        }
        let text = test_support::joined(answers).await.expect("a clean end");
        assert_eq!(statuses(&text).len() as u64, REQUESTS);
        // Who lets others run is behind them in the queue, but its next turn may come before ours.
        assert!(most <= 2 * OWN_ANSWERS_PER_TURN, "{most} in one turn");
        core.ledger.stop();
    });
}
