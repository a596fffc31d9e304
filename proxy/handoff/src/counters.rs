//! [`Counters`]: what one core did, written by that core alone.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident),+ $(,)?) => {
        /// What is counted. The names are those of the status line.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(usize)]
        pub enum Counter { $($(#[doc = $doc])+ #[allow(non_camel_case_types)] $name),+ }

        impl Counter {
            /// Every counter, in the order of the status line.
            pub const ALL: &'static [Counter] = &[$(Counter::$name),+];
            /// The name in the status line.
            pub fn name(self) -> &'static str {
                match self { $(Counter::$name => stringify!($name)),+ }
            }
        }
    };
}

counters! {
    /// Connections accepted by this core.
    connections_accepted,
    /// Connections that this core serves now, whoever accepted them.
    connections_open,
    /// Connections handed to a less busy core.
    connections_handed_over,
    /// Connections passed on to a less busy core in the midst of their life.
    connections_moved,
    /// Connections closed at once because the core was at its limit.
    connections_refused_limit,
    /// Connections closed for the sake of another one, because their callers kept the core
    /// waiting when connections or descriptors had run out.
    connections_evicted,
    /// Attempts to accept a connection that failed for want of descriptors or memory.
    accepts_failed,
    /// Connections of a load balancer that did not begin with a PROXY protocol header.
    connections_refused_proxy,
    /// TLS handshakes with callers that were completed.
    handshakes,
    /// Of these, resumed sessions.
    handshakes_resumed,
    /// TLS handshakes with callers that failed, for whatever reason.
    handshakes_failed,
    /// Handshakes refused because the SNI was absent or unknown.
    handshakes_refused_sni,
    /// Handshakes refused because the caller offered no `http/1.1` (an h2-only client).
    handshakes_refused_alpn,
    /// Handshakes by which an authority validated a host (ACME, TLS-ALPN-01). Nothing else is
    /// served behind them.
    handshakes_acme,
    /// Handshakes that took longer than the limit.
    handshakes_timed_out,
    /// Exchanges begun: a request head was received.
    exchanges,
    /// Exchanges under way now.
    exchanges_open,
    /// Exchanges refused or failed by Claviger's own answer.
    exchanges_answered_here,
    /// Exchanges refused because the core was at its limit.
    exchanges_refused_limit,
    /// Exchanges whose caller went away before the end.
    exchanges_abandoned,
    /// Exchanges that ended in a panic; their connections were closed.
    exchanges_panicked,
    /// Connections to upstreams opened.
    upstream_connections,
    /// Requests sent on a pooled connection.
    upstream_reuses,
    /// Requests sent again on a fresh connection.
    upstream_retries,
    /// Connections to upstreams that could not be opened or verified.
    upstream_connect_failures,
    /// Connections to upstreams for which no descriptor, port or memory was left.
    upstream_connects_exhausted,
    /// Requests that waited for a connection to an upstream.
    upstream_queued,
    /// Requests refused because none became free, or the queue was full.
    upstream_queue_refusals,
    /// Second tries that were not made because the budget was spent.
    upstream_retries_refused,
    /// Connections to upstreams that are idle in the pool now.
    upstream_idle,
    /// Injected values found in answers.
    scrub_hits,
    /// Answers whose body was not searched for them, or not to its end.
    answers_uninspected,
    /// Audit records written to the lane.
    audit_records,
    /// Audit records dropped because the lane was full.
    audit_lost,
}

/// One core's counters. The owner adds with plain relaxed stores; others read.
#[derive(Debug)]
pub struct Counters {
    values: [AtomicU64; Counter::ALL.len()],
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            values: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }
}

impl Counters {
    /// Adds one. Only the owning core may call this.
    #[inline]
    pub fn add(&self, counter: Counter) {
        self.add_many(counter, 1);
    }

    /// Adds `n`. Only the owning core may call this.
    #[inline]
    pub fn add_many(&self, counter: Counter, n: u64) {
        let value = &self.values[counter as usize];
        // One writer: a load and a store are enough, and cost no locked instruction.
        value.store(
            value.load(Ordering::Relaxed).wrapping_add(n),
            Ordering::Relaxed,
        );
    }

    /// Takes one away from a gauge. Only the owning core may call this.
    #[inline]
    pub fn sub(&self, counter: Counter) {
        self.add_many(counter, u64::MAX);
    }

    /// Sets a gauge. Only the owning core may call this.
    #[inline]
    pub fn set(&self, counter: Counter, n: u64) {
        self.values[counter as usize].store(n, Ordering::Relaxed);
    }

    /// The value now.
    pub fn get(&self, counter: Counter) -> u64 {
        self.values[counter as usize].load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_gauges() {
        let counters = Counters::default();
        counters.add(Counter::exchanges);
        counters.add_many(Counter::exchanges, 2);
        assert_eq!(counters.get(Counter::exchanges), 3);
        counters.add(Counter::exchanges_open);
        counters.sub(Counter::exchanges_open);
        assert_eq!(counters.get(Counter::exchanges_open), 0);
        assert_eq!(Counter::exchanges.name(), "exchanges");
    }
}
