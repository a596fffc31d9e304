//! Where a name leads on this machine: /etc/hosts, and each resolver by itself.
//!
//! Each resolver is asked directly and for each type, as programs do that go around the
//! system's own library: what one of them knows differently, some program will meet.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{Name, RData, RecordType};

/// How long one resolver may take for one type, twice (UDP, then TCP).
const ANSWER_WAIT: Duration = Duration::from_secs(2);

/// Resolvers that the system's library asks; more in the file are not read by it (`MAXNS`, resolv.conf(5)).
const RESOLVERS_MAX: usize = 3;

/// What one resolver says of a host.
#[derive(Debug, Clone)]
pub struct Told {
    /// Who.
    pub resolver: SocketAddr,
    /// A.
    pub v4: Answer,
    /// AAAA.
    pub v6: Answer,
    /// Whether there is a record of type HTTPS or SVCB, and which.
    pub service: Option<&'static str>,
}

/// What is said of one type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// These.
    Addresses(Vec<IpAddr>),
    /// The name exists, and has none.
    Nothing,
    /// NXDOMAIN.
    NoSuchName,
    /// SERVFAIL, REFUSED and their kin.
    Failed(String),
    /// No answer.
    Silence,
}

impl Told {
    /// Both kinds of addresses.
    pub fn addresses(&self) -> Vec<IpAddr> {
        [&self.v4, &self.v6]
            .into_iter()
            .flat_map(|answer| match answer {
                Answer::Addresses(addresses) => addresses.as_slice(),
                _ => &[],
            })
            .copied()
            .collect()
    }
}

/// The addresses that /etc/hosts has for a host.
pub fn hosts_file(host: &str) -> Vec<IpAddr> {
    hosts_in(&fs::read_to_string("/etc/hosts").unwrap_or_default(), host)
}

fn hosts_in(text: &str, host: &str) -> Vec<IpAddr> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split('#').next()?.split_whitespace();
            let address = words.next()?.parse().ok()?;
            words
                .any(|name| name.trim_end_matches('.').eq_ignore_ascii_case(host))
                .then_some(address)
        })
        .collect()
}

/// The resolvers of /etc/resolv.conf.
pub fn resolvers() -> Vec<SocketAddr> {
    resolvers_in(&fs::read_to_string("/etc/resolv.conf").unwrap_or_default())
}

fn resolvers_in(text: &str) -> Vec<SocketAddr> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let is_one = words.next()? == "nameserver";
            // Without a zone (`fe80::1%eth0`), which only the system's library understands.
            let address: IpAddr = words.next()?.split('%').next()?.parse().ok()?;
            is_one.then(|| SocketAddr::new(address, 53))
        })
        .take(RESOLVERS_MAX)
        .collect()
}

/// Asks each resolver for everything, all at once.
///
/// # Errors
/// The name is none, or there is no thread or descriptor for the questions.
pub fn ask(resolvers: &[SocketAddr], host: &str) -> Result<Vec<Told>, String> {
    let mut name = Name::from_ascii(host).map_err(|_| "this is no DNS name".to_owned())?;
    name.set_fqdn(true);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| error.to_string())?;
    runtime.block_on(async {
        let mut told = Vec::new();
        for &resolver in resolvers {
            told.push(ask_one(resolver, &name).await?);
        }
        Ok(told)
    })
}

async fn ask_one(server: SocketAddr, name: &Name) -> Result<Told, String> {
    let mut options = ResolverOpts::default();
    options.use_hosts_file = ResolveHosts::Never;
    options.timeout = ANSWER_WAIT;
    options.attempts = 1;
    options.cache_size = 0;
    options.try_tcp_on_error = true;
    let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()]
        .into_iter()
        .map(|mut connection| {
            connection.port = server.port();
            connection
        })
        .collect();
    let servers = vec![NameServerConfig::new(server.ip(), true, connections)];
    let config = ResolverConfig::from_name_servers(servers);
    let resolver = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        .with_options(options)
        .build()
        .map_err(|error| error.to_string())?;
    let one = |kind: RecordType| {
        let (resolver, name) = (&resolver, name.clone());
        async move {
            let lookup = tokio::time::timeout(ANSWER_WAIT * 3, resolver.lookup(name, kind)).await;
            match lookup {
                Err(_) => (Answer::Silence, false),
                Ok(Err(error)) => (failure(&error), false),
                Ok(Ok(found)) => {
                    let records: Vec<&RData> =
                        found.answers().iter().map(|record| &record.data).collect();
                    let is_there = found
                        .answers()
                        .iter()
                        .any(|record| record.record_type() == kind);
                    let addresses: Vec<IpAddr> = records
                        .iter()
                        .filter_map(|data| match data {
                            RData::A(address) => Some(IpAddr::V4(address.0)),
                            RData::AAAA(address) => Some(IpAddr::V6(address.0)),
                            _ => None,
                        })
                        .collect();
                    match addresses.is_empty() {
                        true => (Answer::Nothing, is_there),
                        false => (Answer::Addresses(addresses), is_there),
                    }
                }
            }
        }
    };
    let (v4, v6, https, svcb) = tokio::join!(
        one(RecordType::A),
        one(RecordType::AAAA),
        one(RecordType::HTTPS),
        one(RecordType::SVCB)
    );
    let service = match (https.1, svcb.1) {
        (true, _) => Some("HTTPS"),
        (false, true) => Some("SVCB"),
        (false, false) => None,
    };
    Ok(Told {
        resolver: server,
        v4: v4.0,
        v6: v6.0,
        service,
    })
}

fn failure(error: &NetError) -> Answer {
    match error {
        NetError::Dns(DnsError::NoRecordsFound(found)) => match found.response_code {
            ResponseCode::NXDomain => Answer::NoSuchName,
            ResponseCode::NoError => Answer::Nothing,
            code => Answer::Failed(code.to_string()),
        },
        NetError::Dns(DnsError::ResponseCode(code)) => Answer::Failed(code.to_string()),
        _ => Answer::Silence,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_as_the_library_does() {
        let hosts = "127.0.0.1 localhost\n10.0.0.5\tAPI.example.com. other # api.example.org\n#10.0.0.6 api.example.com\nfd00::5 api.example.com\n";
        assert_eq!(hosts_in(hosts, "api.example.com").len(), 2);
        assert!(hosts_in(hosts, "api.example.org").is_empty());
        let text = "# c\nnameserver 10.0.0.2\nsearch x\nnameserver fe80::1%eth0\noptions y\nnameserver z\nnameserver 10.0.0.3\nnameserver 10.0.0.4\n";
        let shown: Vec<String> = resolvers_in(text).iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["10.0.0.2:53", "[fe80::1]:53", "10.0.0.3:53"]);
    }
}
