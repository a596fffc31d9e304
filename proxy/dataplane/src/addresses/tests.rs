use super::*;
use crate::test_support::{Refusing, Unanswering, listener, on_each_driver};

#[test]
fn families_alternate_and_failures_come_last() {
    let parse = |text: &str| text.parse::<SocketAddr>().expect("an address");
    let addresses = [
        "192.0.2.1:1",
        "192.0.2.2:1",
        "[2001:db8::1]:1",
        "[2001:db8::2]:1",
    ]
    .map(parse);
    let failures = Failures::default();
    let names = |ordered: Vec<SocketAddr>| {
        ordered
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(" ")
    };
    assert_eq!(
        names(order(&addresses, &failures, 0, 0)),
        "[2001:db8::1]:1 192.0.2.1:1 [2001:db8::2]:1 192.0.2.2:1"
    );
    failures.note(addresses[2], 0);
    assert_eq!(
        names(order(&addresses, &failures, FAILED_MS_MIN - 1, 0)),
        "[2001:db8::2]:1 192.0.2.1:1 192.0.2.2:1 [2001:db8::1]:1"
    );
    assert_eq!(
        order(&addresses, &failures, FAILED_MS_MIN, 0)[0],
        addresses[2]
    );
    assert_eq!(
        order(&addresses, &Failures::default(), 0, 1)[1],
        addresses[1],
        "turns spread the load"
    );
}

fn address_of(listener: &std::net::TcpListener) -> SocketAddr {
    listener.local_addr().expect("it is bound")
}

#[test]
fn the_first_that_answers_is_taken() {
    on_each_driver(async || {
        let (failures, tick) = (Failures::default(), Tick::new());
        let (refusing, good) = (Refusing::new(), listener());
        let addresses = [refusing.address, address_of(&good)];
        let (_, address) = connect(&addresses, &failures, &tick)
            .await
            .expect("one of them answers");
        assert_eq!(address, addresses[1]);
        assert!(failures.is_failed(addresses[0], 0));
        assert!(!failures.is_failed(addresses[1], 0));
        // From now on it is tried last, for a while.
        assert_eq!(order(&addresses, &failures, 0, 0)[0], addresses[1]);
    });
}

#[test]
fn an_address_that_never_answers_loses_the_race() {
    on_each_driver(async || {
        let (failures, tick) = (Failures::default(), Tick::new());
        let (silent, good) = (Unanswering::new(), listener());
        let addresses = [silent.address, address_of(&good)];
        let (_, address) = connect(&addresses, &failures, &tick)
            .await
            .expect("one of them answers");
        assert_eq!(address, addresses[1]);
        assert!(failures.is_failed(addresses[0], 0));
        assert!(!failures.is_failed(addresses[1], 0));
    });
}

#[test]
fn when_none_answers_the_error_is_the_last_one() {
    on_each_driver(async || {
        let (failures, tick) = (Failures::default(), Tick::new());
        let refusing = [Refusing::new(), Refusing::new()];
        let addresses = [refusing[0].address, refusing[1].address];
        let error = connect(&addresses, &failures, &tick).await.map(|_| ());
        assert_eq!(
            error.expect_err("nobody listens").kind(),
            io::ErrorKind::ConnectionRefused
        );
        assert!(
            addresses
                .iter()
                .all(|&address| failures.is_failed(address, 0))
        );
        let error = connect(&[], &failures, &tick).await.map(|_| ());
        assert_eq!(
            error.expect_err("there is none").kind(),
            io::ErrorKind::AddrNotAvailable
        );
    });
}

/// Failed is counted from when it failed, not from when it was begun.
#[test]
fn giving_up_is_a_failure_too() {
    on_each_driver(async || {
        let (failures, tick) = (Failures::default(), Tick::new());
        let silent = Unanswering::new();
        let addresses = [silent.address];
        {
            let connecting = std::pin::pin!(connect(&addresses, &failures, &tick));
            let pause = std::pin::pin!(rt::sleep(Duration::from_millis(2)));
            assert!(matches!(select(connecting, pause).await, Either::Right(_)));
            tick.sweep_at(60_000, false);
        }
        assert!(failures.is_failed(silent.address, 60_000 + FAILED_MS_MIN - 1));
        assert!(!failures.is_failed(silent.address, 60_000 + FAILED_MS_MIN));
    });
}

#[test]
fn a_success_is_no_failure_any_more() {
    let (failures, tick) = (Failures::default(), Tick::new());
    let address = SocketAddr::from(([192, 0, 2, 1], 443));
    drop(Trial::new(&failures, &tick, address));
    assert!(failures.is_failed(address, 0));
    Trial::new(&failures, &tick, address).succeed();
    assert!(!failures.is_failed(address, 0));
}

#[test]
fn who_fails_again_waits_twice_as_long() {
    let failures = Failures::default();
    let address = SocketAddr::from(([192, 0, 2, 1], 443));
    let mut now_ms = 0;
    for pause_ms in [
        1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 64_000, 120_000, 120_000,
    ] {
        failures.note(address, now_ms);
        assert!(failures.is_failed(address, now_ms + pause_ms - 1));
        assert!(!failures.is_failed(address, now_ms + pause_ms));
        now_ms += pause_ms;
    }
    failures.connected(address);
    failures.note(address, now_ms);
    assert!(
        !failures.is_failed(address, now_ms + 1_000),
        "it starts afresh"
    );
}

#[test]
fn an_address_that_accepts_and_never_answers_is_avoided() {
    let failures = Failures::default();
    let address = SocketAddr::from(([192, 0, 2, 1], 443));
    for _ in 1..EXCHANGES_FAILED_MAX {
        assert!(!failures.exchange_failed(address, 0));
        failures.connected(address);
    }
    assert!(!failures.is_failed(address, 0));
    assert!(failures.exchange_failed(address, 0), "one too many");
    failures.connected(address);
    assert!(
        failures.is_failed(address, 999),
        "that it accepts says nothing"
    );
    for _ in 1..EXCHANGES_FAILED_MAX {
        assert!(!failures.exchange_failed(address, 5_000));
    }
    assert!(failures.exchange_failed(address, 5_000));
    assert!(failures.is_failed(address, 6_999) && !failures.is_failed(address, 7_000));
    failures.exchanged(address);
    for _ in 1..EXCHANGES_FAILED_MAX {
        assert!(
            !failures.exchange_failed(address, 8_000),
            "in a row, that is"
        );
    }
}

#[test]
fn attempts_and_memory_are_bounded() {
    let failures = Failures::default();
    let many: Vec<SocketAddr> = (0..=FAILED_MAX)
        .map(|at| SocketAddr::from(([192, 0, 2, 1], at as u16 + 1)))
        .collect();
    assert_eq!(order(&many, &failures, 0, 0).len(), ATTEMPTS_MAX);
    for &address in &many {
        failures.note(address, 0);
    }
    assert!(failures.0.borrow().len() <= FAILED_MAX);
    assert!(
        failures.is_failed(many[FAILED_MAX], 0),
        "the newest is known"
    );
    assert!(order(&[], &failures, 0, 7).is_empty());
}
