//! Finding a way to an upstream: Happy Eyeballs over the known addresses.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::future::{Either, select};
use futures_util::stream::{FuturesUnordered, StreamExt};

use crate::complaint;
use crate::rt;
use crate::tick::Tick;

/// Head start of one address over the next (RFC 8305, section 5).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// Addresses tried for one connection; further ones wait for the next attempt.
const ATTEMPTS_MAX: usize = 6;

/// How long an address that failed is tried last; twice as long after each further failure.
const FAILED_MS_MIN: u64 = 1_000;
const FAILED_MS_MAX: u64 = 120_000;

/// So many exchanges in a row that the upstream broke off, or did not answer, count as a failure of
/// the address, although it accepts connections.
const EXCHANGES_FAILED_MAX: u32 = 5;

/// Failed addresses remembered. When full, the memory starts afresh.
const FAILED_MAX: usize = 1024;

/// Addresses that just failed, and until when they are tried last.
#[derive(Debug, Default)]
pub struct Failures(RefCell<HashMap<SocketAddr, Failing>>);

#[derive(Debug, Default, Clone, Copy)]
struct Failing {
    /// Tried last until then.
    until: u64,
    /// Failures since it last did well.
    in_a_row: u32,
    /// Exchanges that failed since one did not, on connections that were accepted.
    exchanges: u32,
}

impl Failing {
    fn note(&mut self, now_ms: u64) {
        let pause = FAILED_MS_MIN << self.in_a_row.min(16);
        self.until = now_ms + pause.min(FAILED_MS_MAX);
        self.in_a_row = self.in_a_row.saturating_add(1);
    }
}

impl Failures {
    fn entry(&self, address: SocketAddr, act: impl FnOnce(&mut Failing)) {
        let mut failing = self.0.borrow_mut();
        if failing.len() >= FAILED_MAX {
            failing.clear();
        }
        act(failing.entry(address).or_default());
    }

    /// No connection could be opened.
    pub fn note(&self, address: SocketAddr, now_ms: u64) {
        self.entry(address, |failing| failing.note(now_ms));
    }

    /// A connection was opened.
    pub fn connected(&self, address: SocketAddr) {
        let mut failing = self.0.borrow_mut();
        // That it accepts says nothing of an address whose exchanges fail.
        if failing.get(&address).is_some_and(|one| one.exchanges == 0) {
            failing.remove(&address);
        }
    }

    /// An exchange failed, by the upstream's doing. Returns whether the address is to be avoided
    /// from now on.
    pub fn exchange_failed(&self, address: SocketAddr, now_ms: u64) -> bool {
        let mut avoid = false;
        self.entry(address, |failing| {
            failing.exchanges = failing.exchanges.saturating_add(1);
            avoid = failing.exchanges.is_multiple_of(EXCHANGES_FAILED_MAX);
            if avoid {
                failing.note(now_ms);
            }
        });
        avoid
    }

    /// An exchange went well.
    pub fn exchanged(&self, address: SocketAddr) {
        let mut failing = self.0.borrow_mut();
        if !failing.is_empty() {
            failing.remove(&address);
        }
    }

    fn is_failed(&self, address: SocketAddr, now_ms: u64) -> bool {
        self.0
            .borrow()
            .get(&address)
            .is_some_and(|failing| failing.until > now_ms)
    }
}

/// An address that is being tried. Unless it is settled, by success or by an error
/// of its own, it counts as failed: it lost the race, or the time was up.
pub struct Trial<'a> {
    failures: &'a Failures,
    tick: &'a Tick,
    address: SocketAddr,
    settled: bool,
}

impl<'a> Trial<'a> {
    pub fn new(failures: &'a Failures, tick: &'a Tick, address: SocketAddr) -> Self {
        Self {
            failures,
            tick,
            address,
            settled: false,
        }
    }

    pub fn succeed(mut self) {
        self.settled = true;
        self.failures.connected(self.address);
    }

    /// The address was not asked.
    fn say_nothing(mut self) {
        self.settled = true;
    }
}

impl Drop for Trial<'_> {
    fn drop(&mut self) {
        if !self.settled {
            self.failures.note(self.address, self.tick.now_ms());
        }
    }
}

/// The order in which addresses are tried: families alternate (RFC 8305, section
/// 4), those that just failed come last, `turn` spreads connections.
pub fn order(
    addresses: &[SocketAddr],
    failures: &Failures,
    now_ms: u64,
    turn: usize,
) -> Vec<SocketAddr> {
    let mut families: [Vec<SocketAddr>; 2] = [Vec::new(), Vec::new()];
    let mut failed = Vec::new();
    for at in 0..addresses.len() {
        let address = addresses[(at + turn) % addresses.len()];
        if failures.is_failed(address, now_ms) {
            failed.push(address);
        } else {
            families[usize::from(address.is_ipv4())].push(address);
        }
    }
    let [v6, v4] = families;
    let mut ordered = Vec::with_capacity(addresses.len());
    let (mut v6, mut v4) = (v6.into_iter(), v4.into_iter());
    loop {
        let pair = (v6.next(), v4.next());
        if pair == (None, None) {
            break;
        }
        ordered.extend(pair.0);
        ordered.extend(pair.1);
    }
    ordered.extend(failed);
    ordered.truncate(ATTEMPTS_MAX);
    ordered
}

/// Connects to the first address that answers.
///
/// # Errors
/// The last attempt's error when none does.
pub async fn connect(
    ordered: &[SocketAddr],
    failures: &Failures,
    tick: &Tick,
) -> io::Result<((rt::Receiver, rt::Sender, std::os::fd::RawFd), SocketAddr)> {
    let attempt = |address: SocketAddr| async move {
        let trial = Trial::new(failures, tick, address);
        let connected = rt::connect(address).await;
        match &connected {
            Ok(_) => trial.succeed(),
            // Ours, not the address's.
            Err(error) if complaint::exhausted(error).is_some() => trial.say_nothing(),
            Err(_) => {}
        }
        (address, connected)
    };
    let mut waiting = ordered.iter().copied();
    let mut racing = FuturesUnordered::new();
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    if let Some(first) = waiting.next() {
        racing.push(attempt(first));
    }
    while !racing.is_empty() {
        let outcome = if waiting.len() == 0 {
            racing.next().await
        } else {
            let delay = std::pin::pin!(rt::sleep(ATTEMPT_DELAY));
            match select(racing.next(), delay).await {
                Either::Left((outcome, _)) => outcome,
                Either::Right(((), _)) => None,
            }
        };
        match outcome {
            Some((address, Ok(stream))) => return Ok((stream, address)),
            Some((_, Err(error))) => last = error,
            None => {}
        }
        racing.extend(waiting.next().map(attempt));
    }
    Err(last)
}

#[cfg(test)]
mod tests;
