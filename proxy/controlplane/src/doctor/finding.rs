//! [`Finding`]: what is wrong, under a name that stays, with its cure.

use std::fmt;

use serde_json::{Value, json};

/// Something that is wrong, or should be looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What kind of thing.
    pub code: Code,
    /// What is wrong here, in one sentence.
    pub sentence: String,
}

/// Whether calls fail of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// Calls fail, or go past Claviger.
    Wrong,
    /// Calls work; something may come of it.
    Warning,
}

impl Finding {
    /// A finding. What others have written in `sentence` loses its control characters.
    pub fn new(code: Code, sentence: impl Into<String>) -> Self {
        Self {
            code,
            sentence: without_controls(&sentence.into()),
        }
    }

    /// For machines.
    pub fn to_json(&self) -> Value {
        json!({
            "code": self.code.as_str(),
            "severity": match self.code.severity() {
                Severity::Wrong => "wrong",
                Severity::Warning => "warning",
            },
            "sentence": self.sentence,
            "cure": self.code.cure(),
        })
    }
}

/// What others have written, for a terminal: a blank for each control character.
pub(super) fn without_controls(text: &str) -> String {
    text.replace(char::is_control, " ")
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {}\n  cure: {}",
            self.code.as_str(),
            self.sentence,
            self.code.cure()
        )
    }
}

/// Makes the codes, each with its name, severity, meaning and cure: `docs/doctor.md` is made of the same.
macro_rules! codes {
    ($($variant:ident $name:literal $severity:ident $meaning:literal $cure:literal)*) => {
        /// What can be wrong, in the order in which a call meets it. The names are stable.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Code {
            $(#[doc = $meaning] $variant,)*
        }

        impl Code {
            /// Every code.
            pub const ALL: &'static [Code] = &[$(Code::$variant),*];

            /// The name, for scripts.
            pub fn as_str(self) -> &'static str {
                match self { $(Code::$variant => $name,)* }
            }

            /// Whether calls fail of it.
            pub fn severity(self) -> Severity {
                match self { $(Code::$variant => Severity::$severity,)* }
            }

            /// What it means.
            pub fn meaning(self) -> &'static str {
                match self { $(Code::$variant => $meaning,)* }
            }

            /// What to do.
            pub fn cure(self) -> &'static str {
                match self { $(Code::$variant => $cure,)* }
            }
        }
    };
}

codes! {
    ConfigInvalid "config_invalid" Wrong
        "The configuration cannot be used."
        "run `claviger check` as the service's user; it shows every problem with its line"
    ConfigHostUnknown "config_host_unknown" Wrong
        "No route of the configuration serves this host."
        "add a `[[route]]` with this host (or a preset that has it), and reload"
    RuleRefuses "rule_refuses" Wrong
        "A rule of the configuration refuses this call."
        "`claviger explain` shows the route and its rules; change the route, or call from where it allows"
    ListenerRefused "listener_refused" Wrong
        "Claviger does not listen where its configuration says."
        "start it (`systemctl status claviger`, and the log says why it ended), or look which configuration it runs with"
    UpstreamDnsFailed "upstream_dns_failed" Wrong
        "The resolvers in `[dns] servers` do not give the API's address."
        "let this machine reach them over UDP and TCP 53 (853 with `#NAME`), or name others in `[dns] servers`"
    UpstreamAddressRefused "upstream_address_refused" Wrong
        "The resolvers in `[dns] servers` lead the API's name to ourselves, or to an address that is not the Internet's."
        "name public resolvers in `[dns] servers`, not the ones that send your services here"
    UpstreamUnreachable "upstream_unreachable" Wrong
        "No connection to the API, or to the hub."
        "open TCP 443 from this machine to it in the firewall or security group, and look at the route and NAT"
    UpstreamHandshakeFailed "upstream_handshake_failed" Wrong
        "The TLS handshake with the API, or with the hub, fails."
        "if its certificate is of a private CA, name that in the upstream's `ca_file`; if it is Claviger's own, DNS leads back here; if a hub refuses a client certificate, see `client_certificate` here and `client_ca` there"
    HubIsNoClaviger "hub_is_no_claviger" Wrong
        "What answers at the hub's address is no Claviger."
        "correct the hub's `host` (or `addresses`), or its public DNS record"
    ProxyEnvironment "proxy_environment" Wrong
        "The environment sends HTTPS through another proxy, so calls go past Claviger."
        "add the host to NO_PROXY (and no_proxy) in the environment of the service, or take HTTPS_PROXY and ALL_PROXY out of it"
    HostsPublicAddress "hosts_public_address" Wrong
        "/etc/hosts leads the name to the Internet, past Claviger."
        "delete the line in /etc/hosts, or write Claviger's address"
    ResolverNone "resolver_none" Wrong
        "This machine has no resolver."
        "write `nameserver ADDRESS` into /etc/resolv.conf, or see why DHCP, netplan or systemd-resolved did not"
    ResolverSilent "resolver_silent" Wrong
        "No resolver answers."
        "open UDP and TCP 53 from this machine to the resolver, and see that it runs"
    ResolverFailed "resolver_failed" Wrong
        "The resolver answers that it failed, or refuses to answer."
        "look at the resolver's own log; a forwarder that cannot reach the next one says SERVFAIL, an access list REFUSED"
    DnsNoSuchName "dns_no_such_name" Wrong
        "The resolver says that the name does not exist."
        "add the zone or record for this host to the private DNS, and link it to this network"
    DnsNoAddress "dns_no_address" Wrong
        "The resolver knows the name and gives no address for it."
        "add an A record with Claviger's address at the zone's own name (`@`)"
    ResolversDisagree "resolvers_disagree" Wrong
        "One resolver of this machine leads to Claviger and another one past it: calls go either way, by chance."
        "name in /etc/resolv.conf only resolvers that know the private zone"
    DnsPublicAnswer "dns_public_answer" Wrong
        "The resolver gives a public address, and what answers there is no Claviger: private DNS is not in force here."
        "link the private zone for this host to this network, or make this machine ask the resolver that has it"
    DnsPublicIpv6 "dns_public_ipv6" Wrong
        "The A record leads to Claviger, and the AAAA record past it: a client with IPv6 goes past."
        "let the resolver answer AAAA for this host with nothing (NODATA), or with Claviger's IPv6 address"
    DnsHttpsRecord "dns_https_record" Wrong
        "The resolver passes on an HTTPS or SVCB record of the provider's, with addresses and keys of its own: a client that reads it goes past, or fails."
        "let the resolver answer the types HTTPS (65) and SVCB (64) for this host with nothing (NODATA)"
    ConnectRefused "connect_refused" Wrong
        "The port is closed at the address that the name leads to."
        "see that Claviger runs and listens there on 443, and that the DNS record has its present address"
    ConnectDropped "connect_dropped" Wrong
        "Nothing answers at the address: a firewall drops the packets, or no machine has it."
        "open TCP 443 from this machine's network to Claviger in the security group or firewall, and see that the address is the present one"
    ConnectUnreachable "connect_unreachable" Wrong
        "This machine has no way to the address, or a firewall rejects it."
        "add the route or peering to Claviger's network; a firewall on this machine or on the way may say so, too"
    TlsNotSpoken "tls_not_spoken" Wrong
        "What listens at the address does not speak TLS."
        "see what listens there; a listener of Claviger's for this has `tls = true` (the default)"
    TlsSilent "tls_silent" Wrong
        "Something accepts connections at the address and says nothing: a load balancer without a machine behind it, or a firewall that looks into TLS."
        "see what is at the address, and whether what stands between lets TLS through"
    TlsNameRefused "tls_name_refused" Wrong
        "Claviger refuses the name in the handshake: no route serves this host on this listener."
        "add the host to the configuration of the Claviger at this address, and reload; `claviger check` there"
    TlsFailed "tls_failed" Wrong
        "The TLS handshake fails."
        "the sentence says how; a client certificate may be demanded (`client_ca`), or something between breaks the connection"
    CertificateNotYetValid "certificate_not_yet_valid" Wrong
        "The certificate is not valid yet by this machine's clock."
        "set this machine's clock (`timedatectl`); if it is right, the clock of the machine that issued it was ahead"
    CertificateExpired "certificate_expired" Wrong
        "The certificate has expired by this machine's clock."
        "see that this machine's clock is right; then why Claviger did not renew (its log), or replace the file in `certificate`"
    CertificateWrongName "certificate_wrong_name" Wrong
        "The certificate is for other names."
        "see whose address this is; for a certificate from a file, one that has this host among its names"
    CaUnknown "ca_unknown" Wrong
        "The CA that signed the certificate is not in this system's store."
        "install Claviger's root (`install-ca`, docs/trust.md); if that has been done, another CA has signed (something between opens TLS, or Claviger has a new root), or the server does not show its intermediate"
    ChainRefused "chain_refused" Wrong
        "The system's store has the CA and refuses the chain all the same: a constraint forbids the name, or a certificate in between is not fit."
        "for a host outside the domains that the root permits, `claviger ca init --permit` a new root; for a certificate from a file, ask who issued it"
    CertifiLacksCa "certifi_lacks_ca" Wrong
        "A bundle of its own, of Python or an SDK, lacks the CA: programs that read it refuse the certificate."
        "run `install-ca` (or `install-ca --reapply` after an upgrade); docs/trust.md"
    JavaLacksCa "java_lacks_ca" Wrong
        "A Java keystore lacks the CA."
        "run `install-ca` (or `install-ca --reapply` after an upgrade of the JDK); docs/trust.md"
    NodeLacksCa "node_lacks_ca" Wrong
        "Node is installed and not told of the CA: its roots are compiled in."
        "set NODE_EXTRA_CA_CERTS to the root's file, or NODE_OPTIONS=--use-openssl-ca, where services start; `install-ca` does"
    NotClaviger "not_claviger" Wrong
        "What answers is no Claviger."
        "see whose address this is; the DNS record or the load balancer in front leads elsewhere"
    HttpSilent "http_silent" Wrong
        "The handshake succeeds, and then nothing answers."
        "look at Claviger's status line (`systemctl kill -s USR2 claviger`) and at what stands in between"
    CallerNotAllowed "caller_not_allowed" Wrong
        "Claviger does not let this caller in."
        "add this machine's address to the route's `callers`, or show the token or certificate that it asks for"
    LoopDetected "loop_detected" Wrong
        "The request came round to Claviger: its own resolvers lead the API's name back."
        "name public resolvers in `[dns] servers` on Claviger"
    CallRefused "call_refused" Wrong
        "Claviger answers the call itself."
        "the reason is in docs/operating.md, with its cure"
    ApiRefusesKey "api_refuses_key" Wrong
        "The call reached the API, which does not accept the key that Claviger wrote."
        "look in the provider's dashboard whether the key is valid; write the right one into the credential's file on Claviger"
    ClockSkew "clock_skew" Warning
        "This machine's clock differs from the API's by minutes: certificates and signatures depend on it."
        "set the clock (`timedatectl`), and let NTP through (UDP 123)"
    CertificateExpiresSoon "certificate_expires_soon" Warning
        "The certificate expires within days."
        "Claviger renews those of its own CA long before; for one from a file, replace the file now"
    HostsEntry "hosts_entry" Warning
        "The address comes from /etc/hosts, which not every program reads."
        "lead the name there by DNS, then delete the line"
    AddressFails "address_fails" Warning
        "Of several addresses, one does not work: some clients wait for it first."
        "take the address out of the DNS record, or mend what should listen there"
    EgressOpen "egress_open" Warning
        "This machine reaches the API's public address directly: whoever has a key can go past Claviger."
        "close TCP and UDP 443 to the Internet for this network (docs/dns.md, Closing the way around)"
}
