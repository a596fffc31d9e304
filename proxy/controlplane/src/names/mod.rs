//! Names of upstreams, and the addresses behind them.
//!
//! Resolving happens here and nowhere else: with the resolvers that the
//! configuration names, never with `/etc/resolv.conf` or a hosts file, which on
//! such machines send the vendors' names to ourselves. What is found is published
//! whole, as an [`AddressBook`](policy::AddressBook); no core ever waits for DNS.

mod settings;

pub use settings::{DnsSettings, Name, Server, ServerError};
