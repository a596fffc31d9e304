//! Positive controls: the product makes a mistake, and the simulation must notice, for the
//! right reason.

use super::{Break, run};

/// Seeds that are tried; each mistake shows in the first few.
const SEEDS: u64 = 60;

/// Makes the mistake in one seed after the other, until one shows `what`.
fn check(broken: Break, what: &[&str]) {
    let mut others = Vec::new();
    for seed in 0..SEEDS {
        let Err(failure) = run(seed, Some(broken), false) else {
            continue;
        };
        let is_it = |violation: &String| what.iter().any(|what| violation.contains(what));
        if failure.violations.iter().any(is_it) {
            return;
        }
        others.extend(failure.violations);
    }
    panic!("{broken:?} does not show as {what:?}, but as {others:#?}");
}

#[test]
fn a_pool_that_ignores_the_upstream_is_noticed() {
    check(Break::MixesPools, &[") went to upstream"]);
}

#[test]
fn a_pool_that_ignores_the_credential_is_noticed() {
    check(Break::MixesPools, &["carried keys of credentials"]);
}

#[test]
fn an_answer_that_goes_to_another_caller_is_noticed() {
    check(Break::KeepsUnfinished, &["went to connection"]);
}

#[test]
fn a_body_without_its_last_part_is_noticed() {
    check(Break::DropsLastPart, &["looks whole with"]);
}

#[test]
fn a_cut_body_that_looks_whole_is_noticed() {
    check(Break::EndsCutBodies, &["looks whole"]);
}

#[test]
fn a_place_that_is_not_given_back_is_noticed() {
    check(Break::LeaksPlaces, &["places of the pool"]);
}

#[test]
fn a_socket_that_is_not_closed_is_noticed() {
    check(Break::LeaksSockets, &["sockets are open"]);
}

#[test]
fn a_registration_that_stays_is_noticed() {
    check(Break::KeepsRegistrations, &["sockets are registered"]);
}

#[test]
fn a_caller_that_waits_for_ever_is_noticed() {
    check(Break::ForgetsDeadlines, &["waits for ever"]);
}

#[test]
fn a_key_that_was_replaced_is_noticed() {
    check(Break::KeepsOldKeys, &["has no key of credential"]);
}

#[test]
fn a_record_too_many_is_noticed() {
    check(Break::WritesRecordTwice, &["records"]);
}

#[test]
fn a_record_too_few_is_noticed() {
    check(Break::LosesRecord, &["have", "has no record"]);
}

#[test]
fn a_stopped_receive_that_loses_bytes_is_noticed() {
    check(
        Break::LosesAtStop,
        &["was called bad", "is not the one that", "nobody made"],
    );
}
