//! [`Caller`] and [`Callers`]: who asks, and who may.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// Who sent a request, as far as it is known without trusting the request.
#[derive(Debug, Clone, Copy)]
pub struct Caller<'a> {
    /// The peer's address, IPv4-mapped IPv6 already turned into IPv4.
    pub address: IpAddr,
    /// The server name of the TLS handshake, in lower case; `None` on a
    /// clear-text listener, or where the listener serves callers without SNI.
    pub server_name: Option<&'a str>,
    /// Whether the connection is TLS: then the virtual host was chosen by the
    /// handshake, and the request must agree with it.
    pub tls: bool,
}

impl Caller<'_> {
    /// `::ffff:10.0.0.1` is `10.0.0.1`: a rule for one is a rule for the other.
    pub fn canonical(address: IpAddr) -> IpAddr {
        address.to_canonical()
    }
}

/// A route's rule for who may use it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Callers {
    /// Loopback and private peers, and nobody else: a key must never be on
    /// offer to the Internet by accident.
    Open,
    /// Peers in these networks. `0.0.0.0/0` is possible, but must be written.
    Networks(Vec<IpNet>),
}

impl Callers {
    /// Whether `address` may use the route.
    pub fn allow(&self, address: IpAddr) -> bool {
        match self {
            Callers::Open => is_local(address),
            Callers::Networks(networks) => {
                networks.iter().any(|network| network.contains(&address))
            }
        }
    }

    /// The name of the rule on the audit trail.
    pub fn rule(&self) -> &'static str {
        match self {
            Callers::Open => "open",
            Callers::Networks(_) => "address",
        }
    }
}

/// Loopback, RFC 1918, RFC 4193 (`fc00::/7`) and link-local addresses. Shared
/// address space (RFC 6598, `100.64.0.0/10`) is a carrier's, so it is not.
pub fn is_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_loopback() || v4.is_private() || v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unique_local() || v6.is_unicast_link_local(),
    }
}

/// Addresses that an upstream's name must never lead to: ourselves, the link,
/// a cloud's metadata service, nothing, or many.
pub fn is_never_an_upstream(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => {
            v4.is_loopback()
                || v4.is_unspecified()
                || v4.is_link_local() // 169.254.169.254 among them
                || v4.is_multicast()
                || v4.is_broadcast()
                || v4.octets()[0] == 0
                // Azure's wire server and Alibaba's metadata service.
                || v4 == Ipv4Addr::new(168, 63, 129, 16)
                || v4 == Ipv4Addr::new(100, 100, 100, 200)
        }
        IpAddr::V6(v6) => {
            v6.is_loopback()
                || v6.is_unspecified()
                || v6.is_unicast_link_local()
                || v6.is_multicast()
                // AWS's metadata service.
                || v6 == Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)
                // NAT64 and 6to4 spell an IPv4 address; judge that one.
                || embedded_v4(v6).is_some_and(|v4| is_never_an_upstream(IpAddr::V4(v4)))
        }
    }
}

/// Whether the address is private, so that an upstream must say `allow_private`.
pub fn is_private(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.is_private() || (v4.octets()[0] == 100 && v4.octets()[1] & 0xc0 == 64),
        IpAddr::V6(v6) => {
            v6.is_unique_local() || embedded_v4(v6).is_some_and(|v4| is_private(IpAddr::V4(v4)))
        }
    }
}

/// The IPv4 address inside a NAT64 (RFC 6052, `64:ff9b::/96`) or 6to4 (RFC 3056,
/// `2002::/16`) address.
fn embedded_v4(v6: Ipv6Addr) -> Option<Ipv4Addr> {
    let s = v6.segments();
    let pair = |high: u16, low: u16| {
        let [a, b] = high.to_be_bytes();
        let [c, d] = low.to_be_bytes();
        Ipv4Addr::new(a, b, c, d)
    };
    match s {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => Some(pair(high, low)),
        [0x2002, high, low, ..] => Some(pair(high, low)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(address: &str, local: bool, never: bool, private: bool) {
        let address: IpAddr = address.parse().expect("an address");
        let canonical = Caller::canonical(address);
        assert_eq!(Callers::Open.allow(canonical), local, "local {address}");
        assert_eq!(is_never_an_upstream(address), never, "never {address}");
        assert_eq!(is_private(address), private, "private {address}");
    }

    #[test]
    fn kinds_of_addresses() {
        //    address                local  never  private
        check("127.0.0.1", true, true, false);
        check("::1", true, true, false);
        check("::ffff:127.0.0.1", true, true, false);
        check("10.1.2.3", true, false, true);
        check("::ffff:10.1.2.3", true, false, true);
        check("192.168.0.1", true, false, true);
        check("172.31.255.255", true, false, true);
        check("172.32.0.0", false, false, false);
        check("fd12::1", true, false, true);
        check("169.254.169.254", true, true, false);
        check("fe80::1", true, true, false);
        check("fd00:ec2::254", true, true, true);
        check("168.63.129.16", false, true, false);
        check("100.64.0.1", false, false, true);
        check("100.100.100.200", false, true, true);
        check("8.8.8.8", false, false, false);
        check("0.0.0.0", false, true, false);
        check("255.255.255.255", false, true, false);
        check("2606:4700::1", false, false, false);
        check("64:ff9b::7f00:1", false, true, false);
        check("64:ff9b::a00:1", false, false, true);
        check("2002:a9fe:a9fe::1", false, true, false);
    }

    #[test]
    fn networks_are_all_that_is_allowed() {
        let callers = Callers::Networks(vec!["192.0.2.0/24".parse().expect("a network")]);
        assert!(callers.allow("192.0.2.7".parse().expect("an address")));
        assert!(!callers.allow("192.0.3.7".parse().expect("an address")));
        assert!(!callers.allow("127.0.0.1".parse().expect("an address")));
    }
}
