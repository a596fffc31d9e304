//! Holds what was observed against what a row expects.

use memchr::memmem;

use super::caller::Ended;
use super::case::{Case, Down, Layout, Outcome, Up, Words};
use super::wire::Reply;
use super::{Miss, Observed};

/// Everything in which Claviger did not do what the row says; empty if it did.
pub fn problems(case: &Case, words: &Words, observed: &Observed) -> Vec<String> {
    let mut problems: Vec<String> = observed.interrupted.iter().cloned().collect();
    match &observed.replies {
        Ok(replies) => client(case, words, observed, replies, &mut problems),
        Err(problem) => problems.push(problem.clone()),
    }
    upstream(case, words, observed, &mut problems);
    connections(case, observed, &mut problems);
    problems
}

fn client(
    case: &Case,
    words: &Words,
    observed: &Observed,
    replies: &[Reply],
    problems: &mut Vec<String>,
) {
    let is_interim = |reply: &&Reply| (100..200).contains(&reply.status) && reply.status != 101;
    let finals: Vec<&Reply> = replies.iter().filter(|reply| !is_interim(reply)).collect();
    let statuses: Vec<u16> = finals.iter().map(|reply| reply.status).collect();
    if statuses != case.statuses() {
        problems.push(format!(
            "the caller got {statuses:?} instead of {:?}: {}",
            case.statuses(),
            shown(&observed.received)
        ));
        return;
    }
    let interim: Vec<u16> = replies
        .iter()
        .filter(is_interim)
        .map(|reply| reply.status)
        .collect();
    if interim != case.interim.clone().unwrap_or_default() {
        problems.push(format!("the caller got interim answers {interim:?}"));
    }
    if observed.left_over > 0 {
        problems.push(format!(
            "{} bytes behind the last answer",
            observed.left_over
        ));
    }
    let Some((last, before)) = finals.split_last() else {
        return;
    };
    let ends_well = |reply: &Reply| {
        reply.complete && (!reply.until_close || observed.ended == Some(Ended::Goodbye))
    };
    if !before.iter().all(|reply| ends_well(reply)) {
        problems.push("an earlier answer is cut".to_owned());
    }
    if ends_well(last) == (case.outcome() == Outcome::Truncated) {
        problems.push(format!(
            "the last answer {}: {} (ended: {:?})",
            if ends_well(last) {
                "looks whole"
            } else {
                "is cut"
            },
            shown(&observed.received),
            observed.ended
        ));
    }
    let is_own = last
        .head
        .to_ascii_lowercase()
        .contains("\r\nclaviger-answer:");
    if is_own != matches!(case.outcome(), Outcome::Refused | Outcome::Fails) {
        problems.push(format!("who answered? {}", last.head));
    }
    if let Some(reason) = &case.reason
        && !last.head.contains(&format!("; reason={reason}\r\n"))
    {
        problems.push(format!("another reason than {reason}: {}", last.head));
    }
    let body = match &case.body {
        Some(body) => Some(words.bytes(body)),
        None if case.outcome() == Outcome::Passes && case.answer.is_empty() && !case.is_head() => {
            Some(format!("{} {}", case.name, case.requests()).into_bytes())
        }
        None => None,
    };
    if let Some(body) = body
        && last.body != body
    {
        problems.push(format!("the caller got the body {}", shown(&last.body)));
    }
    for wanted in &case.client_has {
        if !holds(&observed.received, words, wanted) {
            problems.push(format!(
                "the caller did not get {wanted:?}: {}",
                shown(&observed.received)
            ));
        }
    }
    for unwanted in &case.client_lacks {
        if holds(&observed.received, words, unwanted) {
            problems.push(format!(
                "the caller got {unwanted:?}: {}",
                shown(&observed.received)
            ));
        }
    }
}

fn upstream(case: &Case, words: &Words, observed: &Observed, problems: &mut Vec<String>) {
    let seen = &observed.upstream;
    let received = &observed.upstream_received;
    for malformed in &seen.malformed {
        problems.push(format!("the upstream got something malformed: {malformed}"));
    }
    if seen.requests.len() != case.requests() {
        problems.push(format!(
            "the upstream got {} requests instead of {}: {}",
            seen.requests.len(),
            case.requests(),
            shown(received)
        ));
        return;
    }
    for (connection, (received, accounted)) in seen.received.iter().zip(&seen.accounted).enumerate()
    {
        let stray = received.len() - accounted;
        if stray > 0 && !case.partial && case.statuses() != [101] {
            problems.push(format!(
                "the upstream got {stray} bytes beside whole requests: {}",
                shown(received)
            ));
        }
        if stray > 0 && seen.probes.contains(&connection) {
            problems.push("a request followed an unfinished one".to_owned());
        }
    }
    let key = match case.layout {
        Layout::Query => "?key=".to_owned(),
        _ => format!("\r\nAuthorization: Bearer {}\r\n", words.key),
    };
    for request in &seen.requests {
        if memmem::find_iter(&request.raw, key.as_bytes()).count() != 1 {
            problems.push(format!(
                "the key is not in its place, once: {}",
                shown(&request.raw)
            ));
        }
    }
    for (request, pattern) in seen.requests.iter().zip(&case.upstream) {
        let pattern = pattern.replace(
            "⟨own⟩",
            "CDN-Loop: ⟨any⟩\r\nAuthorization: Bearer ⟨key⟩\r\n",
        );
        if !matches(&request.raw, &words.pattern(&pattern)) {
            problems.push(format!(
                "the upstream got {} and not {pattern:?}",
                shown(&request.raw)
            ));
        }
    }
    for wanted in &case.upstream_has {
        if !holds(received, words, wanted) {
            problems.push(format!(
                "the upstream did not get {wanted:?}: {}",
                shown(received)
            ));
        }
    }
    for unwanted in &case.upstream_lacks {
        if holds(received, words, unwanted) {
            problems.push(format!(
                "the upstream got {unwanted:?}: {}",
                shown(received)
            ));
        }
    }
}

fn connections(case: &Case, observed: &Observed, problems: &mut Vec<String>) {
    if let Some(Err(problem)) = &observed.probe_same {
        problems.push(format!("the probe on the same connection: {problem}"));
    }
    if let Err(problem) = &observed.probe_fresh {
        problems.push(format!("the probe on a fresh connection: {problem}"));
    }
    match case.down() {
        Down::Kept if observed.ended.is_some() => {
            problems.push("the caller's connection was not kept".to_owned());
        }
        Down::Closed if observed.ended.is_none() => {
            problems.push("the caller's connection was not closed".to_owned());
        }
        _ => {}
    }
    let seen = &observed.upstream;
    let Some(last) = seen.requests.last().map(|request| request.connection) else {
        return;
    };
    match case.up() {
        Up::Reused if seen.probes.first() != Some(&last) => {
            problems.push(format!(
                "the upstream's connection {last} was not used again: {:?}",
                seen.probes
            ));
        }
        Up::Dropped if seen.probes.contains(&last) => {
            problems.push(format!("the upstream's connection {last} was used again"));
        }
        _ => {}
    }
}

/// Where a peer stands with a row, next to Claviger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It does what the row says, as far as that is not Claviger's own way of saying it.
    Same,
    /// It refuses what the row lets pass.
    Stricter,
    /// It passes on what the row refuses or removes, or takes a part for the whole.
    Laxer,
    /// A probe got no answer or another one than its own.
    Broken,
}

/// Judges a peer: only by what matters to both sides of it.
pub fn standing(case: &Case, words: &Words, observed: &Observed) -> Standing {
    let seen = &observed.upstream;
    if matches!(observed.probe_same, Some(Err(Miss::Other(_))))
        || matches!(observed.probe_fresh, Err(Miss::Other(_)))
    {
        return Standing::Broken;
    }
    let (replies, readable) = match &observed.replies {
        Ok(replies) => (&replies[..], true),
        Err(_) => (&[][..], false),
    };
    let last = replies
        .iter()
        .rfind(|reply| reply.status >= 200 || reply.status == 101);
    let status = last.map_or(0, |reply| reply.status);
    let is_whole = last.is_some_and(|reply| {
        reply.complete && (!reply.until_close || observed.ended == Some(Ended::Goodbye))
    });
    let leaks = case
        .upstream_lacks
        .iter()
        .any(|unwanted| holds(&observed.upstream_received, words, unwanted))
        || case
            .client_lacks
            .iter()
            .any(|unwanted| holds(&observed.received, words, unwanted));
    let more = seen.requests.len() > case.requests() || !seen.malformed.is_empty() || !readable;
    match case.outcome() {
        _ if more || leaks => Standing::Laxer,
        Outcome::Refused => {
            // What answers by itself with success has understood it as well.
            if status >= 400 || status == 0 {
                Standing::Same
            } else {
                Standing::Laxer
            }
        }
        Outcome::Passes => {
            let refuses = seen.requests.len() < case.requests() || status >= 400;
            if refuses && !case.statuses().contains(&status) {
                Standing::Stricter
            } else {
                Standing::Same
            }
        }
        Outcome::Fails if status < 500 && is_whole => Standing::Laxer,
        Outcome::Truncated if is_whole && status < 500 => Standing::Laxer,
        Outcome::Fails | Outcome::Truncated => match seen.requests.last() {
            Some(request)
                if case.up() == Up::Dropped && seen.probes.contains(&request.connection) =>
            {
                Standing::Laxer
            }
            _ => Standing::Same,
        },
    }
}

fn holds(bytes: &[u8], words: &Words, text: &str) -> bool {
    memmem::find(bytes, &words.bytes(text)).is_some()
}

/// Whether `bytes` are these parts in order, with anything between them.
fn matches(bytes: &[u8], parts: &[Vec<u8>]) -> bool {
    let [first, rest @ ..] = parts else {
        return false;
    };
    let Some(mut left) = bytes.strip_prefix(&first[..]) else {
        return false;
    };
    let Some((last, between)) = rest.split_last() else {
        return left.is_empty();
    };
    for part in between {
        match memmem::find(left, part) {
            Some(at) => left = &left[at + part.len()..],
            None => return false,
        }
    }
    left.ends_with(last)
}

fn shown(bytes: &[u8]) -> String {
    const SHOWN_BYTES_MAX: usize = 700;
    let text = bytes[..bytes.len().min(SHOWN_BYTES_MAX)].escape_ascii();
    format!("\"{text}\" ({} bytes)", bytes.len())
}
