//! What is resolved, and by whom.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use policy::UpstreamId;
use rustls::pki_types::ServerName;

/// Port of DNS over UDP and TCP (RFC 1035, section 4.2).
const DNS_PORT: u16 = 53;
/// Port of DNS over TLS (RFC 7858, section 3.1).
const DNS_TLS_PORT: u16 = 853;

/// Longest time that any setting means. More is taken for this: it is for ever, and
/// sums with it do not overflow.
const TIME_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

/// A name of an upstream.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Name {
    /// Whose addresses these are in the address book.
    pub upstream: UpstreamId,
    /// The upstream's name in the configuration, for messages.
    pub label: String,
    /// What is resolved: a DNS name. A final dot may be there; none is added from
    /// a search list, since there is none.
    pub host: String,
    /// The port that goes with each address.
    pub port: u16,
    /// Takes private addresses as answers. Without it they are refused.
    pub allow_private: bool,
}

/// A resolver: `ADDRESS`, `ADDRESS:PORT`, and for DNS over TLS either with
/// `#NAME`, the name in its certificate (as systemd-resolved writes it).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Server {
    /// Where it is. Port 53 by default, 853 over TLS.
    pub address: SocketAddr,
    /// The name that its certificate must be good for. `None` is UDP, and TCP
    /// where an answer is too long for UDP or UDP fails.
    pub tls_name: Option<String>,
}

impl FromStr for Server {
    type Err = ServerError;

    fn from_str(text: &str) -> Result<Self, ServerError> {
        let (address, tls_name) = match text.split_once('#') {
            Some((address, name)) => (address, Some(name)),
            None => (text, None),
        };
        let port = if tls_name.is_some() {
            DNS_TLS_PORT
        } else {
            DNS_PORT
        };
        let bare = address
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
            .unwrap_or(address);
        let address = address
            .parse()
            .or_else(|_| bare.parse().map(|ip: IpAddr| SocketAddr::new(ip, port)))
            .map_err(|_| ServerError::Address)?;
        if address.port() == 0 || address.ip().is_unspecified() {
            return Err(ServerError::Address);
        }
        if let Some(name) = tls_name {
            ServerName::try_from(name).map_err(|_| ServerError::TlsName)?;
        }
        Ok(Self {
            address,
            tls_name: tls_name.map(str::to_owned),
        })
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let usual = if self.tls_name.is_some() {
            DNS_TLS_PORT
        } else {
            DNS_PORT
        };
        if self.address.port() == usual {
            write!(f, "{}", self.address.ip())?;
        } else {
            write!(f, "{}", self.address)?;
        }
        match &self.tls_name {
            Some(name) => write!(f, "#{name}"),
            None => Ok(()),
        }
    }
}

/// Why a text is no [`Server`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ServerError {
    /// A name, or not even that: a resolver cannot be resolved.
    #[error(
        "a resolver is an IP address, with a port if it is not the usual one: `8.8.8.8`, \
         `127.0.0.1:5353`, `[2001:4860:4860::8888]:53`"
    )]
    Address,
    /// What follows `#` is no name.
    #[error(
        "what follows `#` must be the name in the resolver's certificate: `1.1.1.1#cloudflare-dns.com`"
    )]
    TlsName,
}

/// Who resolves, and how long an answer is good.
#[derive(Debug, Clone)]
pub struct DnsSettings {
    /// Tried in the order of how well they answered; the ones that fail come last.
    pub servers: Vec<Server>,
    /// For one try at one server.
    pub timeout: Duration,
    /// Tries after the first one, before a resolution has failed.
    pub attempts: usize,
    /// An answer is kept at least this long, whatever its TTL says.
    pub ttl_floor: Duration,
    /// An answer is asked for again at the latest after this long.
    pub ttl_ceiling: Duration,
    /// How long the last good answer serves after it has expired, while the
    /// resolvers fail. Past it the upstream has no addresses, and answers are 502.
    pub stale_max: Duration,
    /// How long the start waits for the first answers before it goes on without.
    pub first_wait: Duration,
    /// How a resolver's certificate is verified. Needed where a server has a
    /// `tls_name`; its ALPN list is not used.
    pub tls: Option<Arc<rustls::ClientConfig>>,
}

impl Default for DnsSettings {
    fn default() -> Self {
        let plain = |ip: [u8; 4]| Server {
            address: SocketAddr::new(IpAddr::V4(Ipv4Addr::from(ip)), DNS_PORT),
            tls_name: None,
        };
        Self {
            servers: vec![plain([8, 8, 8, 8]), plain([1, 1, 1, 1])],
            timeout: Duration::from_secs(2),
            attempts: 2,
            ttl_floor: Duration::from_secs(5),
            ttl_ceiling: Duration::from_secs(3600),
            stale_max: Duration::from_secs(24 * 3600),
            first_wait: Duration::from_secs(5),
            tls: None,
        }
    }
}

impl DnsSettings {
    /// The same with every time within bounds, and the ceiling not below the floor.
    pub(super) fn bounded(mut self) -> Self {
        for time in [
            &mut self.timeout,
            &mut self.ttl_floor,
            &mut self.ttl_ceiling,
            &mut self.stale_max,
        ] {
            *time = (*time).min(TIME_MAX);
        }
        self.ttl_ceiling = self.ttl_ceiling.max(self.ttl_floor);
        self
    }

    /// Whether `other` asks the same servers in the same way, so that what was
    /// built for one serves for the other.
    pub(crate) fn same_transport(&self, other: &Self) -> bool {
        let same_tls = match (&self.tls, &other.tls) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (None, None) => true,
            _ => false,
        };
        same_tls
            && self.servers == other.servers
            && self.timeout == other.timeout
            && self.attempts == other.attempts
    }

    /// Whether `other` keeps answers for the same times.
    pub(super) fn same_times(&self, other: &Self) -> bool {
        self.ttl_floor == other.ttl_floor
            && self.ttl_ceiling == other.ttl_ceiling
            && self.stale_max == other.stale_max
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Result<(&str, Option<&str>, &str), ServerError>) {
        let server: Result<Server, _> = text.parse();
        match expected {
            Ok((address, tls_name, shown)) => {
                let server = server.expect("a resolver");
                assert_eq!(server.address.to_string(), address);
                assert_eq!(server.tls_name.as_deref(), tls_name);
                assert_eq!(server.to_string(), shown);
                assert_eq!(shown.parse(), Ok(server), "what is shown can be written");
            }
            Err(error) => assert_eq!(server, Err(error)),
        }
    }

    #[test]
    fn times_without_sense_do_no_harm() {
        let settings = DnsSettings {
            timeout: Duration::MAX,
            ttl_floor: Duration::MAX,
            ttl_ceiling: Duration::ZERO,
            stale_max: Duration::MAX,
            ..DnsSettings::default()
        };
        let bounded = settings.bounded();
        assert!(bounded.ttl_floor <= bounded.ttl_ceiling);
        let far = std::time::Instant::now().checked_add(bounded.ttl_ceiling + bounded.stale_max);
        assert!(far.is_some());
    }

    #[test]
    fn resolvers_as_they_are_written() {
        check("8.8.8.8", Ok(("8.8.8.8:53", None, "8.8.8.8")));
        check(
            "127.0.0.1:5353",
            Ok(("127.0.0.1:5353", None, "127.0.0.1:5353")),
        );
        check("::1", Ok(("[::1]:53", None, "::1")));
        check("[::1]", Ok(("[::1]:53", None, "::1")));
        check("[::1]:5353", Ok(("[::1]:5353", None, "[::1]:5353")));
        let name = Some("cloudflare-dns.com");
        check(
            "1.1.1.1#cloudflare-dns.com",
            Ok(("1.1.1.1:853", name, "1.1.1.1#cloudflare-dns.com")),
        );
        check(
            "1.1.1.1:8530#cloudflare-dns.com",
            Ok(("1.1.1.1:8530", name, "1.1.1.1:8530#cloudflare-dns.com")),
        );
        check("dns.google", Err(ServerError::Address));
        check("8.8.8.8:0", Err(ServerError::Address));
        check("0.0.0.0", Err(ServerError::Address));
        check("", Err(ServerError::Address));
        check("1.1.1.1#", Err(ServerError::TlsName));
        check("1.1.1.1#a b", Err(ServerError::TlsName));
    }
}
