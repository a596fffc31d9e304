//! Names of upstreams, and the addresses behind them.
//!
//! Resolving happens here and nowhere else: with the resolvers that the
//! configuration names, never with `/etc/resolv.conf` or a hosts file, which on
//! such machines send the vendors' names to ourselves. What is found is published
//! whole, as an [`AddressBook`](policy::AddressBook); no core ever waits for DNS.
//!
//! - An answer is asked for again when four fifths of its time are over, so that a
//!   name in use never expires while the resolvers work. TTLs count within
//!   `ttl_floor` and `ttl_ceiling`.
//! - While the resolvers fail, the last good answer serves for `stale_max` more.
//!   That the name does not exist counts as failing too: resolvers say so when
//!   something before them is broken, and the certificate is verified anyway.
//! - The loop guard: every address is looked at before it counts. Those of our own
//!   listeners, of this machine's own kind (loopback, link-local, metadata
//!   services) and, without `allow_private`, private ones are refused, with a line
//!   in the log that says what helps. An answer with no other address is no answer.
//!
//! What is deliberately missing: a preference among addresses beyond "first those
//! that this machine has a route to". Connecting, and remembering which address
//! failed, is the data plane's.

mod guard;
mod lookup;
mod resolver;
mod settings;
#[cfg(test)]
mod tests;

pub use guard::OwnAddresses;
pub(crate) use lookup::Client as DnsClient;
pub(crate) use resolver::Resolving;
pub use resolver::{Known, Names};
pub use settings::{DnsSettings, Name, Server, ServerError};
