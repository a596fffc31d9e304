//! Finding a way to an upstream: Happy Eyeballs over the known addresses.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::future::{Either, select};
use futures_util::stream::{FuturesUnordered, StreamExt};

use crate::rt;
use crate::tick::Tick;

/// Head start of one address over the next (RFC 8305, section 5).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// Addresses tried for one connection; further ones wait for the next attempt.
const ATTEMPTS_MAX: usize = 6;

/// How long an address that failed is tried last.
const FAILED_MS: u64 = 10_000;

/// Failed addresses remembered. When full, the memory starts afresh.
const FAILED_MAX: usize = 1024;

/// Addresses that just failed, and until when they are tried last.
#[derive(Debug, Default)]
pub struct Failures(RefCell<HashMap<SocketAddr, u64>>);

impl Failures {
    pub fn note(&self, address: SocketAddr, now_ms: u64) {
        let mut failed = self.0.borrow_mut();
        if failed.len() >= FAILED_MAX {
            failed.clear();
        }
        failed.insert(address, now_ms + FAILED_MS);
    }

    pub fn forget(&self, address: SocketAddr) {
        let mut failed = self.0.borrow_mut();
        if !failed.is_empty() {
            failed.remove(&address);
        }
    }

    fn is_failed(&self, address: SocketAddr, now_ms: u64) -> bool {
        self.0
            .borrow()
            .get(&address)
            .is_some_and(|&until| until > now_ms)
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
        self.failures.forget(self.address);
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
        if connected.is_ok() {
            trial.succeed();
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
