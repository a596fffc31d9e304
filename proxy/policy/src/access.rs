//! [`Caller`] and [`Callers`]: who asks, and who may.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;
use wire::head::RequestHead;

use crate::proof::{Identity, Presented, Proofs, Token};
use crate::route::Route;
use crate::verdict::Denial;

/// Who sent a request, as far as it is known without trusting the request.
#[derive(Debug, Clone, Copy)]
pub struct Caller<'a> {
    /// The peer's address, IPv4-mapped IPv6 already turned into IPv4. Behind a load
    /// balancer that is trusted to say so (PROXY protocol) it is what that one said.
    pub address: IpAddr,
    /// The server name of the TLS handshake, in lower case; `None` on a
    /// clear-text listener, or where the listener serves callers without SNI.
    pub server_name: Option<&'a str>,
    /// Whether the connection is TLS: then the virtual host was chosen by the
    /// handshake, and the request must agree with it.
    pub tls: bool,
    /// What the client certificate says that the handshake has verified; `None`
    /// where none was asked for or none was shown.
    pub identity: Option<&'a Identity>,
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
    /// Those of the networks, and those who prove to be one of the named callers.
    Named {
        /// Whoever comes from there needs no proof.
        networks: Vec<IpNet>,
        /// Tried in this order.
        callers: Vec<Arc<NamedCaller>>,
    },
}

/// A caller that the configuration knows by name: `[caller.NAME]`.
#[derive(Debug, PartialEq, Eq)]
pub struct NamedCaller {
    /// On the audit trail, and in metrics.
    pub name: Box<str>,
    /// Where it calls from. Empty: that is no part of the proof.
    pub networks: Vec<IpNet>,
    /// What it may show; several are valid at once while one takes over from
    /// another. Empty: that is no part of the proof.
    pub tokens: Vec<Token>,
    /// Names of which its certificate must have one. Empty: that is no part of the proof.
    pub certificates: Vec<CertificateName>,
    /// Whether all kinds of proof that are listed are needed, or one of them.
    pub require: Require,
}

/// How the kinds of proof of one caller combine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Require {
    /// Each kind that is listed.
    #[default]
    All,
    /// One of them.
    Any,
}

/// A name that a certificate may have (RFC 5280, section 4.2.1.6).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CertificateName {
    /// A dNSName, compared without regard to letter case. No wildcards: a certificate
    /// for `*.example.com` is not that of `a.example.com` here.
    Dns(Box<str>),
    /// A uniformResourceIdentifier, compared byte for byte, such as a SPIFFE ID.
    Uri(Box<str>),
}

impl CertificateName {
    /// `spiffe://...` and whatever else has a scheme is a URI, the rest a host name.
    pub fn new(text: &str) -> Self {
        if text.contains("://") {
            CertificateName::Uri(text.into())
        } else {
            CertificateName::Dns(text.to_ascii_lowercase().into())
        }
    }

    fn is_of(&self, identity: &Identity) -> bool {
        match self {
            CertificateName::Dns(name) => identity.has_dns_name(name),
            CertificateName::Uri(uri) => identity.has_uri(uri),
        }
    }
}

/// How a caller was let in. Says what the audit trail says, and holds no proof.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Admitted {
    /// Which of a route's named callers; `None` by its networks alone.
    caller: Option<usize>,
    /// Which of its tokens.
    token: Option<usize>,
    proofs: Proofs,
}

impl Admitted {
    const BY_ADDRESS: Admitted = Admitted {
        caller: None,
        token: None,
        proofs: Proofs::ADDRESS,
    };

    /// How it was identified, in the audit trail's words.
    pub fn identified_by(&self) -> &'static str {
        self.proofs.as_str()
    }

    /// The caller's name, or that of the rule that let it in.
    pub fn name<'c>(&self, callers: &'c Callers) -> &'c str {
        self.named(callers)
            .map_or(callers.rule(), |caller| &*caller.name)
    }

    /// The version of the token that was shown, if one was.
    pub fn token_version<'c>(&self, callers: &'c Callers) -> Option<&'c str> {
        let caller = self.named(callers)?;
        Some(caller.tokens.get(self.token?)?.version())
    }

    fn named<'c>(&self, callers: &'c Callers) -> Option<&'c NamedCaller> {
        match callers {
            Callers::Named { callers, .. } => Some(callers.get(self.caller?)?),
            _ => None,
        }
    }
}

impl Callers {
    /// Whether the caller may use the route, and how it has shown that.
    ///
    /// # Errors
    /// 401 where a proof would have let it in, 403 where none would.
    pub fn admit(
        &self,
        caller: &Caller<'_>,
        head: &RequestHead,
        route: &Route,
    ) -> Result<Admitted, Denial> {
        let (networks, named) = match self {
            Callers::Open if is_local(caller.address) => return Ok(Admitted::BY_ADDRESS),
            Callers::Open => return Err(Denial::CALLER_REFUSED),
            Callers::Networks(networks) => (networks, [].as_slice()),
            Callers::Named { networks, callers } => (networks, callers.as_slice()),
        };
        if contains(networks, caller.address) {
            return Ok(Admitted::BY_ADDRESS);
        }
        let presented = Presented::new(head, route);
        let mut denial = Denial::CALLER_REFUSED;
        for (at, one) in named.iter().enumerate() {
            match one.recognises(caller, &presented) {
                Recognised::Yes { proofs, token } => {
                    return Ok(Admitted {
                        caller: Some(at),
                        token,
                        proofs,
                    });
                }
                Recognised::WithoutProof => denial = Denial::CALLER_UNPROVEN,
                Recognised::No => {}
            }
        }
        Err(denial)
    }

    /// Whether an edge that has proven itself may use the route. It must be named: where an
    /// edge is says nothing of its callers, so networks let none in.
    pub(crate) fn admit_edge(&self, edge: &KnownEdge<'_>) -> Result<Admitted, Denial> {
        let Callers::Named { callers, .. } = self else {
            return Err(Denial::CALLER_REFUSED);
        };
        let is_it = |one: &Arc<NamedCaller>| Arc::ptr_eq(one, edge.caller);
        let at = callers.iter().position(is_it);
        Ok(Admitted {
            caller: Some(at.ok_or(Denial::CALLER_REFUSED)?),
            token: edge.token,
            proofs: edge.proofs,
        })
    }

    /// The name of the rule on the audit trail.
    pub fn rule(&self) -> &'static str {
        match self {
            Callers::Open => "open",
            Callers::Networks(_) | Callers::Named { .. } => "address",
        }
    }
}

/// An edge that has proven itself to be one of those that a host lists.
pub(crate) struct KnownEdge<'s> {
    caller: &'s Arc<NamedCaller>,
    proofs: Proofs,
    token: Option<usize>,
}

impl<'s> KnownEdge<'s> {
    /// Which of the edges has sent the request. Of tokens it looks at the one in our own field.
    ///
    /// # Errors
    /// As [`Callers::admit`].
    pub(crate) fn recognise(
        edges: &'s [Arc<NamedCaller>],
        caller: &Caller<'_>,
        head: &RequestHead,
    ) -> Result<Self, Denial> {
        let presented = Presented::in_own_field(head);
        let mut denial = Denial::CALLER_REFUSED;
        for one in edges {
            match one.recognises(caller, &presented) {
                // A network alone is no proof here, whatever the configuration has let pass.
                Recognised::Yes { proofs, token } if proofs != Proofs::ADDRESS => {
                    return Ok(Self {
                        caller: one,
                        proofs,
                        token,
                    });
                }
                Recognised::Yes { .. } | Recognised::WithoutProof => {
                    denial = Denial::CALLER_UNPROVEN;
                }
                Recognised::No => {}
            }
        }
        Err(denial)
    }

    pub(crate) fn name(&self) -> &'s str {
        &self.caller.name
    }
}

/// Whether a request is a named caller's.
enum Recognised {
    Yes {
        proofs: Proofs,
        token: Option<usize>,
    },
    /// Its address would do, but a token or a certificate is missing.
    WithoutProof,
    No,
}

impl NamedCaller {
    fn recognises(&self, caller: &Caller<'_>, presented: &Presented<'_>) -> Recognised {
        let address = !self.networks.is_empty() && contains(&self.networks, caller.address);
        let certificate = caller.identity.is_some_and(|identity| {
            let mut names = self.certificates.iter();
            names.any(|name| name.is_of(identity))
        });
        // Last: it is what costs something.
        let must = |listed: bool, holds: bool| listed && !holds && self.require == Require::All;
        if must(!self.networks.is_empty(), address) {
            return Recognised::No;
        }
        if must(!self.certificates.is_empty(), certificate) {
            return Recognised::WithoutProof;
        }
        let token = presented.find(&self.tokens);
        let proofs = Proofs::of(address, token.is_some(), certificate);
        if must(!self.tokens.is_empty(), token.is_some()) || proofs.is_none() {
            return match self.tokens.is_empty() && self.certificates.is_empty() {
                true => Recognised::No,
                false => Recognised::WithoutProof,
            };
        }
        Recognised::Yes { proofs, token }
    }
}

/// Whether one of the networks has the address.
pub fn contains(networks: &[IpNet], address: IpAddr) -> bool {
    networks.iter().any(|network| network.contains(&address))
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
        assert_eq!(is_local(canonical), local, "local {address}");
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
}
