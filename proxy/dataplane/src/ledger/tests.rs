use handoff::lane::RECORDS_MAX;
use handoff::{Drain, lane};
use policy::Caller;
use policy::verdict::Verdict;
use wire::framing::BodyFraming;
use wire::head::{HeadLimits, Parse, RequestHead};

use super::*;
use crate::core::Core;
use crate::test_support::{HOST, KEY, idle_core};

/// A ledger whose lane has `places` left.
fn ledger(places: u64) -> (Ledger, Drain, Arc<Counters>) {
    let (mut lane, drain) = lane();
    for _ in places..RECORDS_MAX {
        assert!(lane.reserve());
    }
    let counters = Arc::new(Counters::default());
    (Ledger::new(lane, Arc::clone(&counters)), drain, counters)
}

/// An exchange that has begun, on a connection of its own.
fn exchange(core: &Core, ledger: &Ledger) -> Rc<RefCell<Draft>> {
    let client = "10.0.0.7:4711".parse().expect("an address");
    let draft = Draft::new("main".into(), client);
    next(core, ledger, &draft);
    draft
}

/// The connection's next exchange.
fn next(core: &Core, ledger: &Ledger, draft: &Rc<RefCell<Draft>>) {
    draft
        .borrow_mut()
        .begin(core.instance, core.index, core.next_request(), core.view());
    ledger.watch(draft);
}

/// What has reached the lane, line by line.
fn arrived(drain: &mut Drain) -> Vec<String> {
    let mut lines = Vec::new();
    while let Some(batch) = drain.take() {
        let text = String::from_utf8(batch.lines).expect("JSON is text");
        assert_eq!(text.lines().count() as u64, batch.records);
        lines.extend(text.lines().map(str::to_owned));
    }
    lines
}

/// The events of the records that are there once all was handed over.
fn events(ledger: &Ledger, drain: &mut Drain) -> Vec<String> {
    ledger.flush();
    arrived(drain)
        .iter()
        .map(|line| field(line, "event").to_owned())
        .collect()
}

/// A field's text.
#[track_caller]
fn field<'l>(line: &'l str, name: &str) -> &'l str {
    let start = format!("\"{name}\":");
    let (_, rest) = line
        .split_once(&start)
        .unwrap_or_else(|| panic!("no {name} in {line}"));
    let end = match rest.strip_prefix('"') {
        Some(text) => return text.split('"').next().unwrap_or_default(),
        None => rest.find([',', '}']).unwrap_or(rest.len()),
    };
    &rest[..end]
}

fn lasts_longer_than_ten_seconds(draft: &RefCell<Draft>) {
    let started = Instant::now().checked_sub(BEGIN_AFTER);
    draft.borrow_mut().started = started.expect("the machine has been up for longer");
}

#[test]
fn an_exchange_has_one_record() {
    let (core, _) = idle_core();
    let (ledger, mut drain, counters) = ledger(8);
    let draft = exchange(&core, &ledger);
    assert!(events(&ledger, &mut drain).is_empty(), "it is under way");
    ledger.end(&mut draft.borrow_mut(), None);
    ledger.end(&mut draft.borrow_mut(), None);
    assert!(
        draft.borrow().view.is_none(),
        "an idle connection holds no keys"
    );
    assert_eq!(events(&ledger, &mut drain), ["exchange"]);
    ledger.end(&mut draft.borrow_mut(), None);
    ledger.stop();
    assert!(events(&ledger, &mut drain).is_empty());
    // A kept-alive connection's next exchange has another one.
    next(&core, &ledger, &draft);
    ledger.end(&mut draft.borrow_mut(), None);
    assert_eq!(events(&ledger, &mut drain), ["exchange"]);
    assert_eq!(counters.get(Counter::audit_records), 2);
    assert_eq!(counters.get(Counter::audit_lost), 0);
}

#[test]
fn a_record_says_what_was_done_and_shows_no_key() {
    let (core, _) = idle_core();
    let (ledger, mut drain, _) = ledger(8);
    let mut head = RequestHead::new();
    head.buffer().extend_from_slice(
        b"POST /v3/mail?secret=caller HTTP/1.1\r\nHost: api.example.com\r\nAuthorization: Bearer caller\r\n\r\n",
    );
    assert!(matches!(
        head.parse(&HeadLimits::default()),
        Ok(Parse::Complete)
    ));
    let view = core.view();
    let caller = Caller {
        address: [10, 0, 0, 7].into(),
        server_name: Some(HOST),
        tls: true,
        identity: None,
    };
    let Verdict::Allow(permit) = view.authorize("main", &caller, &head) else {
        panic!("it is allowed");
    };
    let mut plan = Plan::new();
    permit.inject("", &head, BodyFraming::None, None, false, &mut plan);
    let draft = exchange(&core, &ledger);
    {
        let mut draft = draft.borrow_mut();
        draft.server_name = Some(HOST.into());
        draft.method.push_str("POST");
        draft.path.extend_from_slice(head.path());
        draft.route = Some(permit.index());
        draft.admitted = Some(permit.admitted());
        draft.status = 202;
        draft.bytes_in = 5;
        draft.upstream_address = Some("192.0.2.1:443".parse().expect("an address"));
        draft.injected = true;
        ledger.end(&mut draft, Some(&plan));
    }
    ledger.flush();
    let lines = arrived(&mut drain);
    let line = &lines[0];
    for (name, expected) in [
        ("request_id", "0123456789abcdef000000000001"),
        ("listener", "main"),
        ("route", "mail"),
        ("caller", "open"),
        ("client", "10.0.0.7"),
        ("client_port", "4711"),
        ("host", HOST),
        ("method", "POST"),
        ("path", "/v3/mail"),
        ("status", "202"),
        ("refused_by", "null"),
        ("bytes_in", "5"),
        ("upstream", "mail"),
        ("upstream_address", "192.0.2.1:443"),
        ("credential", "mail"),
        ("credential_version", "v7"),
        ("generation", "3"),
    ] {
        assert_eq!(field(line, name), expected, "{name}");
    }
    assert!(line.contains("\"stripped\":[\"authorization\"]"), "{line}");
    assert!(!line.contains(KEY) && !line.contains("secret"), "{line}");
}

#[test]
fn a_credential_is_named_only_when_it_was_written() {
    let (core, _) = idle_core();
    let (ledger, mut drain, _) = ledger(8);
    let draft = exchange(&core, &ledger);
    {
        let mut draft = draft.borrow_mut();
        draft.deny(&Denial::KEY_MANAGEMENT.on("mail"));
        ledger.end(&mut draft, None);
    }
    ledger.flush();
    let lines = arrived(&mut drain);
    assert_eq!(field(&lines[0], "credential"), "null");
    assert_eq!(field(&lines[0], "upstream_address"), "null");
    assert_eq!(field(&lines[0], "route"), "mail");
    assert_eq!(field(&lines[0], "status"), "403");
    assert_eq!(field(&lines[0], "refused_by"), "policy");
    assert_eq!(field(&lines[0], "reason"), "key_management_refused");
}

#[test]
fn without_a_place_there_is_no_permission() {
    let (core, _) = idle_core();
    let (ledger, mut drain, counters) = ledger(1);
    let one = exchange(&core, &ledger);
    let other = exchange(&core, &ledger);
    // Asking twice takes one place.
    assert!(ledger.reserve(&mut one.borrow_mut()));
    assert!(ledger.reserve(&mut one.borrow_mut()));
    assert!(!ledger.reserve(&mut other.borrow_mut()));
    // What was refused for want of a place is counted, and the other one written.
    ledger.end(&mut other.borrow_mut(), None);
    assert_eq!(counters.get(Counter::audit_lost), 1);
    assert!(other.borrow().view.is_none());
    ledger.end(&mut one.borrow_mut(), None);
    assert_eq!(events(&ledger, &mut drain), ["exchange"]);
    // On its way to the disk it still has its place.
    let third = exchange(&core, &ledger);
    assert!(!ledger.reserve(&mut third.borrow_mut()));
    drain.written(1);
    assert!(ledger.reserve(&mut third.borrow_mut()));
    ledger.end(&mut third.borrow_mut(), None);
    assert_eq!(events(&ledger, &mut drain), ["exchange"]);
    assert_eq!(counters.get(Counter::audit_records), 2);
    assert_eq!(counters.get(Counter::audit_lost), 1);
}

/// The places of a thousand exchanges are free again when their records are written.
#[test]
fn no_place_is_ever_lost() {
    let (core, _) = idle_core();
    let (ledger, mut drain, counters) = ledger(RECORDS_MAX);
    let draft = exchange(&core, &ledger);
    for round in 0..1000 {
        if round % 3 == 0 {
            assert!(ledger.reserve(&mut draft.borrow_mut()));
        }
        if round % 5 == 0 {
            lasts_longer_than_ten_seconds(&draft);
            ledger.flush();
        }
        ledger.end(&mut draft.borrow_mut(), None);
        next(&core, &ledger, &draft);
    }
    ledger.stop();
    let written = arrived(&mut drain).len() as u64;
    assert_eq!(written, 1000 + 200 + 1);
    assert_eq!(counters.get(Counter::audit_records), written);
    assert_eq!(ledger.lane.borrow().outstanding(), written);
    drain.written(written);
    assert_eq!(ledger.lane.borrow().outstanding(), 0);
}

#[test]
fn a_long_exchange_also_has_a_begin_record() {
    let (core, _) = idle_core();
    let (ledger, mut drain, counters) = ledger(8);
    let short = exchange(&core, &ledger);
    let long = exchange(&core, &ledger);
    lasts_longer_than_ten_seconds(&long);
    assert_eq!(events(&ledger, &mut drain), ["begin"]);
    assert!(events(&ledger, &mut drain).is_empty(), "once");
    // While somebody has it in hand it waits for the next tick.
    lasts_longer_than_ten_seconds(&short);
    let in_hand = short.borrow_mut();
    assert!(events(&ledger, &mut drain).is_empty());
    drop(in_hand);
    assert_eq!(events(&ledger, &mut drain), ["begin"]);
    ledger.end(&mut long.borrow_mut(), None);
    ledger.end(&mut short.borrow_mut(), None);
    assert_eq!(events(&ledger, &mut drain), ["exchange", "exchange"]);
    assert_eq!(counters.get(Counter::audit_records), 4);
    // The connection's next exchange begins anew.
    next(&core, &ledger, &long);
    assert!(events(&ledger, &mut drain).is_empty());
    lasts_longer_than_ten_seconds(&long);
    assert_eq!(events(&ledger, &mut drain), ["begin"]);
}

#[test]
fn a_begin_record_does_not_take_the_end_s_place() {
    let (core, _) = idle_core();
    let (ledger, mut drain, counters) = ledger(1);
    let draft = exchange(&core, &ledger);
    assert!(ledger.reserve(&mut draft.borrow_mut()));
    lasts_longer_than_ten_seconds(&draft);
    assert!(events(&ledger, &mut drain).is_empty());
    assert_eq!(counters.get(Counter::audit_lost), 1);
    ledger.end(&mut draft.borrow_mut(), None);
    assert_eq!(events(&ledger, &mut drain), ["exchange"]);
}

#[test]
fn whatever_is_under_way_at_the_end_has_its_record() {
    let (core, _) = idle_core();
    let (ledger, mut drain, _) = ledger(8);
    let open = exchange(&core, &ledger);
    let ended = exchange(&core, &ledger);
    let gone = exchange(&core, &ledger);
    ledger.end(&mut ended.borrow_mut(), None);
    ledger.end(&mut gone.borrow_mut(), None);
    drop(gone);
    assert_eq!(events(&ledger, &mut drain).len(), 2);
    ledger.stop();
    let lines = arrived(&mut drain);
    assert_eq!(lines.len(), 1);
    assert_eq!(field(&lines[0], "refused_by"), "claviger");
    assert_eq!(field(&lines[0], "reason"), "stopped");
    // Its task is dropped with the runtime, and says nothing more.
    ledger.end(&mut open.borrow_mut(), None);
    ledger.stop();
    assert!(arrived(&mut drain).is_empty());
}

#[test]
fn a_connection_is_listed_once_however_many_exchanges_it_has() {
    let (core, _) = idle_core();
    let (ledger, _drain, _) = ledger(8);
    let draft = exchange(&core, &ledger);
    for _ in 0..5 {
        ledger.end(&mut draft.borrow_mut(), None);
        next(&core, &ledger, &draft);
    }
    assert_eq!(ledger.open.borrow().len(), 1);
    ledger.end(&mut draft.borrow_mut(), None);
    ledger.flush();
    assert_eq!(ledger.open.borrow().len(), 0);
    next(&core, &ledger, &draft);
    assert_eq!(ledger.open.borrow().len(), 1);
    drop(draft);
    ledger.flush();
    assert_eq!(ledger.open.borrow().len(), 0);
}

#[test]
fn a_full_batch_does_not_wait_for_the_tick() {
    let (core, _) = idle_core();
    let (ledger, mut drain, _) = ledger(RECORDS_MAX);
    let mut written = 0;
    let lines = loop {
        let draft = exchange(&core, &ledger);
        ledger.end(&mut draft.borrow_mut(), None);
        written += 1;
        let lines = arrived(&mut drain);
        if !lines.is_empty() {
            break lines;
        }
    };
    assert_eq!(lines.len(), written);
    assert!(lines.iter().map(String::len).sum::<usize>() + written >= BATCH_BYTES);
}

/// A control plane that does not take batches loses no record that has a place.
#[test]
fn a_lane_that_nobody_empties_keeps_its_records() {
    let (core, _) = idle_core();
    let (ledger, mut drain, counters) = ledger(RECORDS_MAX);
    // One batch each, until there is no room for batches.
    for _ in 0..1000 {
        let draft = exchange(&core, &ledger);
        ledger.end(&mut draft.borrow_mut(), None);
        ledger.flush();
    }
    let mut lines = arrived(&mut drain);
    ledger.flush();
    lines.extend(arrived(&mut drain));
    assert_eq!(lines.len(), 1000);
    let mut numbers: Vec<_> = lines.iter().map(|line| field(line, "request_id")).collect();
    numbers.dedup();
    assert_eq!(numbers.len(), 1000, "each one once, in order");
    assert_eq!(counters.get(Counter::audit_lost), 0);
}
