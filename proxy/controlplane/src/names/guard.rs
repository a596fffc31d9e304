//! [`OwnAddresses`]: which answers would send a request back to ourselves, or to a
//! place that no API lives in.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};

use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{SockaddrLike, SockaddrStorage};
use policy::access::{is_never_an_upstream, is_private};

/// Where we listen ourselves. An upstream must not lead there: the machine's own
/// name service sends the vendors' names to us, and the key would go round.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OwnAddresses {
    /// Listeners on one address.
    exact: HashSet<SocketAddr>,
    /// Ports of listeners on every address of the machine.
    wildcard_ports: HashSet<u16>,
}

/// Why an address is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Loopback, link-local, a metadata service, or no host's address at all.
    Never,
    /// One of our own listeners.
    Ourselves,
    /// Private, and the upstream does not say `allow_private`.
    Private,
}

impl Refusal {
    /// What it is, and what helps, for the log.
    pub(super) fn explain(self) -> &'static str {
        match self {
            Refusal::Never => {
                "it is a loopback, link-local, metadata or other special address, which no name \
                 may lead to; look at the resolvers in `[dns] servers`, or, if the address is \
                 meant, write it into the upstream's `addresses`"
            }
            Refusal::Ourselves => {
                "Claviger itself listens there, so requests would go round in a circle; use \
                 resolvers in `[dns] servers` that know the real addresses, not the ones that \
                 your services are sent here by"
            }
            Refusal::Private => {
                "it is a private address; if the API really is inside your network, set \
                 `allow_private = true` for the upstream, else look at the resolvers in \
                 `[dns] servers`"
            }
        }
    }
}

impl OwnAddresses {
    /// Of these listeners.
    pub fn of(listeners: impl IntoIterator<Item = SocketAddr>) -> Self {
        let mut own = Self::default();
        for address in listeners {
            if address.ip().is_unspecified() {
                own.wildcard_ports.insert(address.port());
            } else {
                own.exact.insert(canonical(address));
            }
        }
        own
    }

    /// Why a resolver's answer would not be used, and what helps.
    pub fn objection(&self, address: SocketAddr, allow_private: bool) -> Option<&'static str> {
        let verdict = self.guard().judge(address, allow_private);
        verdict.err().map(Refusal::explain)
    }

    /// Takes the machine's addresses as they are now, if they matter: they come
    /// and go with interfaces, so this is done again for each answer.
    pub(super) fn guard(&self) -> Guard<'_> {
        let machine = if self.wildcard_ports.is_empty() {
            HashSet::new()
        } else {
            machine_addresses()
        };
        Guard { own: self, machine }
    }
}

/// [`OwnAddresses`] at one moment.
pub(super) struct Guard<'a> {
    own: &'a OwnAddresses,
    machine: HashSet<IpAddr>,
}

impl Guard<'_> {
    /// Whether requests may go to `address`, which a resolver has named.
    pub(super) fn judge(&self, address: SocketAddr, allow_private: bool) -> Result<(), Refusal> {
        let address = canonical(address);
        let ip = address.ip();
        if is_never_an_upstream(ip) {
            return Err(Refusal::Never);
        }
        let everywhere = self.own.wildcard_ports.contains(&address.port());
        if self.own.exact.contains(&address) || (everywhere && self.machine.contains(&ip)) {
            return Err(Refusal::Ourselves);
        }
        if is_private(ip) && !allow_private {
            return Err(Refusal::Private);
        }
        Ok(())
    }
}

/// `::ffff:192.0.2.1` is `192.0.2.1`, to us and to the kernel.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Every address of every interface. None, if the kernel does not say: then
/// `CDN-Loop` is what still ends a circle.
fn machine_addresses() -> HashSet<IpAddr> {
    let interfaces = match getifaddrs() {
        Ok(interfaces) => interfaces,
        Err(error) => {
            tracing::warn!(%error, "the machine's own addresses are not known");
            return HashSet::new();
        }
    };
    interfaces
        .filter_map(|interface| ip_of(&interface.address?))
        .collect()
}

fn ip_of(address: &SockaddrStorage) -> Option<IpAddr> {
    match address.family()? {
        nix::sys::socket::AddressFamily::Inet => Some(IpAddr::V4(address.as_sockaddr_in()?.ip())),
        nix::sys::socket::AddressFamily::Inet6 => Some(IpAddr::V6(address.as_sockaddr_in6()?.ip())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(listeners: &[&str], answer: &str, allow_private: bool, expected: Result<(), Refusal>) {
        let own = OwnAddresses::of(
            listeners
                .iter()
                .map(|text| text.parse().expect("an address")),
        );
        let guard = Guard {
            own: &own,
            machine: ["203.0.113.5", "10.0.0.5", "2001:db8::5"]
                .map(|ip| ip.parse().expect("an address"))
                .into(),
        };
        let answer = answer.parse().expect("an address");
        assert_eq!(
            guard.judge(answer, allow_private),
            expected,
            "{answer} with {listeners:?}"
        );
    }

    #[test]
    fn answers_that_lead_nowhere_good_are_refused() {
        use Refusal::*;
        let one = &["203.0.113.5:443"][..];
        let all = &["0.0.0.0:443"][..];
        let all_v6 = &["[::]:443"][..];
        check(&[], "93.184.216.34:443", false, Ok(()));
        check(&[], "127.0.0.1:443", true, Err(Never));
        check(&[], "[::1]:443", true, Err(Never));
        check(&[], "169.254.169.254:80", true, Err(Never));
        check(&[], "0.0.0.0:443", true, Err(Never));
        check(&[], "10.1.2.3:443", false, Err(Private));
        check(&[], "10.1.2.3:443", true, Ok(()));
        check(&[], "[fd12::1]:443", false, Err(Private));
        check(one, "203.0.113.5:443", false, Err(Ourselves));
        check(one, "[::ffff:203.0.113.5]:443", false, Err(Ourselves));
        check(one, "203.0.113.5:8443", false, Ok(()));
        check(one, "203.0.113.6:443", false, Ok(()));
        check(all, "203.0.113.5:443", false, Err(Ourselves));
        check(all, "203.0.113.5:8443", false, Ok(()));
        check(all, "203.0.113.6:443", false, Ok(()));
        // The circle is the more important thing to say about a private address.
        check(all, "10.0.0.5:443", false, Err(Ourselves));
        check(all, "10.0.0.5:443", true, Err(Ourselves));
        check(all_v6, "203.0.113.5:443", false, Err(Ourselves));
        check(all_v6, "[2001:db8::5]:443", false, Err(Ourselves));
    }

    #[test]
    fn the_machine_knows_its_addresses() {
        let addresses = machine_addresses();
        assert!(addresses.iter().any(IpAddr::is_loopback), "{addresses:?}");
        assert!(
            OwnAddresses::default().guard().machine.is_empty(),
            "not even asked for"
        );
    }
}
