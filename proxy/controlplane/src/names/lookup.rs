//! [`Client`]: one question to the configured resolvers.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{Name as DnsName, RData, RecordType};

use super::settings::DnsSettings;

/// Addresses kept of one answer. The rest is not used: nobody needs more to find
/// one that works, and an answer must not grow the address book without bound.
const ADDRESSES_MAX: usize = 16;

/// How long an answer for one kind of addresses waits for the other kind. There are
/// networks that drop every question for IPv6 addresses, and those for IPv4 are good
/// enough to begin with (RFC 8305, section 3, waits for much less).
const OTHER_KIND_WAIT: Duration = Duration::from_secs(1);

/// The longest that one question may take, however the settings multiply.
const DEADLINE_MAX: Duration = Duration::from_secs(60);

/// What the resolvers said. At least one of the two kinds has addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    /// IPv6.
    pub(super) v6: Heard,
    /// IPv4.
    pub(super) v4: Heard,
    /// The shortest of all records, links on the way (CNAME) included.
    pub(super) ttl: Duration,
}

/// What was heard of one kind of addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Heard {
    /// These, in the order of the answer; never none.
    Addresses(Vec<IpAddr>),
    /// That there are none.
    Nothing,
    /// No answer, or none that may be used: what was known still holds.
    Silence,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LookupError {
    /// The configuration's name cannot even be asked for.
    #[error("this is not a DNS name; correct the upstream's `host`")]
    NotAName,
    /// NXDOMAIN.
    #[error(
        "the name does not exist, say the resolvers; is it spelled right, and do they know it?"
    )]
    NoSuchName,
    /// Neither A nor AAAA.
    #[error("the name has no addresses, say the resolvers")]
    NoAddresses,
    /// Nobody answered in time.
    #[error("no resolver answered; can this machine reach {servers} over {transport}?")]
    Silence {
        /// Who was asked.
        servers: String,
        /// By which way.
        transport: &'static str,
    },
    /// Something else, in hickory's words.
    #[error("the resolvers failed: {0}")]
    Failed(String),
}

/// Asks the servers of one [`DnsSettings`].
#[derive(Clone)]
pub(crate) struct Client {
    resolver: TokioResolver,
    silence: Arc<LookupError>,
    /// For both kinds of addresses and all tries. A last bound: hickory's own are shorter.
    deadline: Duration,
}

impl Client {
    /// Never reads `/etc/resolv.conf`, the hosts file or a search list.
    pub(crate) fn new(settings: &DnsSettings) -> Result<Self, String> {
        let mut options = ResolverOpts::default();
        options.use_hosts_file = ResolveHosts::Never;
        options.timeout = settings.timeout;
        options.attempts = settings.attempts;
        // When to ask again is decided here, before the answer expires; a cache
        // below would only give us the old one back.
        options.cache_size = 0;
        // A firewall that drops UDP, or cuts long answers, leaves TCP.
        options.try_tcp_on_error = true;
        let servers = settings.servers.iter().map(|server| {
            let connections = match &server.tls_name {
                None => vec![ConnectionConfig::udp(), ConnectionConfig::tcp()],
                Some(name) => vec![ConnectionConfig::tls(name.as_str().into())],
            };
            let connections = connections
                .into_iter()
                .map(|mut connection| {
                    connection.port = server.address.port();
                    connection
                })
                .collect();
            NameServerConfig::new(server.address.ip(), true, connections)
        });
        let config = ResolverConfig::from_name_servers(servers.collect());
        let mut builder =
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
                .with_options(options);
        let over_tls = settings
            .servers
            .iter()
            .any(|server| server.tls_name.is_some());
        if let Some(tls) = &settings.tls {
            let mut tls = (**tls).clone();
            // That list is for HTTP. Resolvers that look at it want `dot` or nothing.
            tls.alpn_protocols.clear();
            builder = builder.with_tls_config(tls);
        } else if over_tls {
            return Err("a resolver with `#NAME` needs certificate roots to verify it by".into());
        }
        let servers: Vec<_> = settings.servers.iter().map(ToString::to_string).collect();
        Ok(Self {
            resolver: builder.build().map_err(|error| error.to_string())?,
            silence: Arc::new(LookupError::Silence {
                servers: servers.join(", "),
                transport: if over_tls { "TLS" } else { "UDP or TCP" },
            }),
            deadline: settings
                .timeout
                .saturating_mul(u32::try_from(settings.attempts).unwrap_or(u32::MAX))
                .saturating_add(settings.timeout * 2)
                .saturating_mul(2)
                .min(DEADLINE_MAX),
        })
    }

    /// Every address of a name, for a connection of the office's own: IPv4 first, as it is seldom
    /// the broken one.
    pub(crate) async fn addresses(&self, host: &str) -> Result<Vec<IpAddr>, LookupError> {
        let answer = self.ask(host).await?;
        let kinds = [answer.v4, answer.v6].into_iter();
        Ok(kinds
            .flat_map(|heard| match heard {
                Heard::Addresses(addresses) => addresses,
                Heard::Nothing | Heard::Silence => Vec::new(),
            })
            .collect())
    }

    /// The texts (TXT records) of a name, each in one piece.
    pub(crate) async fn texts(&self, name: &str) -> Result<Vec<String>, LookupError> {
        let mut name = DnsName::from_ascii(name).map_err(|_| LookupError::NotAName)?;
        name.set_fqdn(true);
        let lookup = self.resolver.lookup(name, RecordType::TXT);
        let lookup = tokio::time::timeout(self.deadline, lookup)
            .await
            .map_err(|_| (*self.silence).clone())?
            .map_err(|error| self.explain(&error))?;
        let texts = lookup
            .answers()
            .iter()
            .filter_map(|record| match &record.data {
                RData::TXT(text) => Some(text.txt_data.concat()),
                _ => None,
            });
        Ok(texts
            .map(|text| String::from_utf8_lossy(&text).into_owned())
            .collect())
    }

    /// Asks for both kinds of addresses at once.
    pub(super) async fn ask(&self, host: &str) -> Result<Answer, LookupError> {
        let mut name = DnsName::from_ascii(host).map_err(|_| LookupError::NotAName)?;
        // With the root's dot nobody looks for it below some other domain.
        name.set_fqdn(true);
        let v6 = self.resolver.lookup(name.clone(), RecordType::AAAA);
        let v4 = self.resolver.lookup(name.clone(), RecordType::A);
        let both = async {
            tokio::pin!(v6, v4);
            tokio::select! {
                v6 = &mut v6 => {
                    let v4 = self.other(v6.is_ok(), v4).await;
                    self.combine(self.part(v6), v4)
                }
                v4 = &mut v4 => {
                    let v6 = self.other(v4.is_ok(), v6).await;
                    self.combine(v6, self.part(v4))
                }
            }
        };
        tokio::time::timeout(self.deadline, both)
            .await
            .unwrap_or_else(|_| Err((*self.silence).clone()))
    }

    /// Waits for the other kind: not for long if there is something to go on with.
    async fn other(
        &self,
        enough: bool,
        lookup: impl Future<Output = Result<Lookup, NetError>>,
    ) -> Result<Part, LookupError> {
        let wait = if enough {
            OTHER_KIND_WAIT
        } else {
            self.deadline
        };
        match tokio::time::timeout(wait, lookup).await {
            Ok(result) => self.part(result),
            Err(_) => Err((*self.silence).clone()),
        }
    }

    fn combine(
        &self,
        v6: Result<Part, LookupError>,
        v4: Result<Part, LookupError>,
    ) -> Result<Answer, LookupError> {
        let ttl = match (&v6, &v4) {
            (Ok(a), Ok(b)) => a.ttl.min(b.ttl),
            (Ok(one), Err(_)) | (Err(_), Ok(one)) => one.ttl,
            // The one that says more: `no addresses` may just be about the other kind.
            (Err(LookupError::NoAddresses), Err(error)) | (Err(error), Err(_)) => {
                return Err(error.clone());
            }
        };
        let heard = |part: Result<Part, LookupError>| match part {
            Ok(part) => Heard::Addresses(part.addresses),
            Err(LookupError::NoAddresses | LookupError::NoSuchName) => Heard::Nothing,
            Err(_) => Heard::Silence,
        };
        Ok(Answer {
            v6: heard(v6),
            v4: heard(v4),
            ttl,
        })
    }

    fn part(&self, result: Result<Lookup, NetError>) -> Result<Part, LookupError> {
        let lookup = result.map_err(|error| self.explain(&error))?;
        let mut addresses = Vec::new();
        let mut ttl = u32::MAX;
        for record in lookup.answers() {
            ttl = ttl.min(record.ttl);
            match &record.data {
                RData::A(address) => addresses.push(IpAddr::V4(address.0)),
                RData::AAAA(address) => addresses.push(IpAddr::V6(address.0)),
                _ => {}
            }
        }
        addresses.truncate(ADDRESSES_MAX / 2);
        if addresses.is_empty() {
            return Err(LookupError::NoAddresses);
        }
        Ok(Part {
            addresses,
            ttl: Duration::from_secs(ttl.into()),
        })
    }

    fn explain(&self, error: &NetError) -> LookupError {
        match error {
            NetError::Dns(DnsError::NoRecordsFound(found)) => match found.response_code {
                ResponseCode::NXDomain => LookupError::NoSuchName,
                ResponseCode::NoError => LookupError::NoAddresses,
                code => LookupError::Failed(code.to_string()),
            },
            NetError::Dns(DnsError::ResponseCode(code)) => LookupError::Failed(code.to_string()),
            NetError::Timeout | NetError::NoConnections => (*self.silence).clone(),
            other => LookupError::Failed(other.to_string()),
        }
    }
}

/// One kind of addresses, and the shortest TTL of the records that led to them.
struct Part {
    addresses: Vec<IpAddr>,
    ttl: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dns_over_tls_needs_roots() {
        let settings = DnsSettings {
            servers: vec!["127.0.0.1#localhost".parse().expect("a resolver")],
            ..DnsSettings::default()
        };
        assert!(Client::new(&settings).is_err());
    }
}
