//! `[upstream.NAME]`: where requests go.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use policy::Listener;
use policy::access::is_never_an_upstream;
use policy::upstream::UpstreamLimits;
use rustls::pki_types::ServerName;

use super::{CONNECTIONS_CEILING, Checker, QUEUE_CEILING, is_host_name};
use crate::config::draft::{ClientCertificate, CredentialDraft, UpstreamDraft};
use crate::config::file;
use crate::config::file::Item;
use crate::config::report::{Place, Problem, quote};
use crate::config::written::Written;

impl Checker<'_> {
    pub(super) fn upstreams(&mut self, listeners: &[Listener]) {
        let file = self.file;
        for item in &file.upstreams {
            let fields = &item.fields;
            self.table_name(item, "upstream");
            let host = match &fields.host {
                Some(written) => self.upstream_host(item, written),
                None if item.is_unread("host") => None,
                None if is_host_name(&item.name) && item.name.contains('.') => {
                    Some(item.name.to_ascii_lowercase())
                }
                None => {
                    let place = file.place(item);
                    self.push(
                        Problem::error(format!("the upstream {} has no `host`", quote(&item.name)))
                            .at(place)
                            .cure("write host = \"api.example.com\", the name that the API has"),
                    );
                    None
                }
            };
            let mut addresses = Vec::new();
            let mut address_places = Vec::new();
            if let Some(list) = &fields.addresses {
                for written in &list.value {
                    let place = file.place_of(item, &written.span);
                    match written.value.parse::<SocketAddr>() {
                        Ok(address) => {
                            self.static_address(address, &place, listeners);
                            addresses.push(address);
                            address_places.push(place);
                        }
                        Err(_) => self.push(
                            Problem::error("not an address with a port")
                                .at(place)
                                .expected("as in \"192.0.2.7:443\" or \"[2001:db8::7]:443\""),
                        ),
                    }
                }
                if list.value.is_empty() {
                    let place = file.place_of(item, &list.span);
                    self.push(
                        Problem::error("an empty list of addresses")
                            .at(place)
                            .cure("leave it out to look the host up"),
                    );
                }
            }
            let port = fields.port.as_ref().map_or(443, |port| port.value);
            if let Some(written) = &fields.port
                && written.value == 0
            {
                let place = file.place_of(item, &written.span);
                self.push(
                    Problem::error("0 is not a port")
                        .at(place)
                        .expected("1 to 65535"),
                );
            }
            // An address in place of a name needs no look-up.
            if let Some(ip) = host.as_ref().and_then(|host| host.parse::<IpAddr>().ok())
                && addresses.is_empty()
            {
                let address = SocketAddr::new(ip, port);
                let place = fields
                    .host
                    .as_ref()
                    .map_or_else(|| file.place(item), |host| file.place_of(item, &host.span));
                self.static_address(address, &place, listeners);
                addresses.push(address);
                address_places.push(place);
            }
            let tls_name = match &fields.tls_name {
                Some(written) => self.upstream_host(item, written),
                None => host.clone(),
            };
            let tls_name = tls_name.and_then(|name| ServerName::try_from(name).ok());
            let is_hub = fields.hub.as_ref().is_some_and(|hub| hub.value);
            let default = if is_hub {
                hub_limits()
            } else {
                UpstreamLimits::default()
            };
            let item_some = Some(item);
            let limits = UpstreamLimits {
                connect_timeout: self.timeout(
                    item_some,
                    "connect_timeout",
                    &fields.connect_timeout,
                    default.connect_timeout,
                ),
                response_head_timeout: self.timeout(
                    item_some,
                    "response_head_timeout",
                    &fields.response_head_timeout,
                    default.response_head_timeout,
                ),
                read_timeout: self.timeout(
                    item_some,
                    "read_timeout",
                    &fields.read_timeout,
                    default.read_timeout,
                ),
                connections_max: self.number(
                    item_some,
                    "connections_max",
                    &fields.connections_max,
                    1..=CONNECTIONS_CEILING,
                    default.connections_max,
                ),
                queue_max: self.number(
                    item_some,
                    "queue_max",
                    &fields.queue_max,
                    0..=QUEUE_CEILING,
                    default.queue_max,
                ),
                queue_timeout: self.timeout(
                    item_some,
                    "queue_timeout",
                    &fields.queue_timeout,
                    default.queue_timeout,
                ),
                idle_max: self.number(
                    item_some,
                    "idle_max",
                    &fields.idle_max,
                    0..=CONNECTIONS_CEILING,
                    default.idle_max,
                ),
                idle_min: self.number(
                    item_some,
                    "idle_min",
                    &fields.idle_min,
                    0..=CONNECTIONS_CEILING,
                    default.idle_min,
                ),
                idle_timeout: self.timeout(
                    item_some,
                    "idle_timeout",
                    &fields.idle_timeout,
                    default.idle_timeout,
                ),
                age_max: self.timeout(item_some, "age_max", &fields.age_max, default.age_max),
            };
            let limits = self.idle_bounds(item, limits);
            let ca_file = self.path(item_some, &fields.ca_file);
            let client_certificate = self.client_certificate(item);
            let token = self.hub_token(item, is_hub);
            if is_hub && client_certificate.is_none() && token.is_none() {
                self.hub_without_proof(item);
            }
            let (Some(host), Some(tls_name)) = (host, tls_name) else {
                self.upstream_broken.insert(item.name.clone());
                continue;
            };
            self.upstream_names
                .insert(item.name.clone(), self.upstreams.len());
            self.upstream_sections.push(item);
            self.upstreams.push(UpstreamDraft {
                name: item.name.clone(),
                host,
                port,
                tls_name,
                addresses,
                ca_file,
                allow_private: fields
                    .allow_private
                    .as_ref()
                    .is_some_and(|allow| allow.value),
                is_hub,
                token,
                client_certificate,
                limits,
                place: file.place(item),
                ca_place: fields
                    .ca_file
                    .as_ref()
                    .map(|ca_file| file.place_of(item, &ca_file.span)),
                address_places,
            });
        }
    }

    /// The certificate that is shown to the upstream.
    fn client_certificate(&mut self, item: &Item<file::Upstream>) -> Option<ClientCertificate> {
        let fields = &item.fields;
        let chain = self.path(Some(item), &fields.client_certificate);
        let key = self.path(Some(item), &fields.client_key);
        let pair = [
            (
                "client_certificate",
                &fields.client_certificate,
                "client_key",
                &fields.client_key,
            ),
            (
                "client_key",
                &fields.client_key,
                "client_certificate",
                &fields.client_certificate,
            ),
        ];
        for (field, written, other, missing) in pair {
            if let Some(written) = written
                && missing.is_none()
                && !item.is_unread(other)
            {
                let place = self.file.place_of(item, &written.span);
                self.push(
                    Problem::error(format!("`{field}` without `{other}`"))
                        .at(place)
                        .cure("name the PEM files of the chain and of its private key; they may be one file"),
                );
            }
        }
        let place = fields.client_certificate.as_ref()?;
        Some(ClientCertificate {
            chain: chain?,
            key: key?,
            allow_world_readable: fields
                .allow_world_readable
                .as_ref()
                .is_some_and(|allow| allow.value),
            place: self.file.place_of(item, &place.span),
        })
    }

    /// The token that is shown to a hub, as a credential of the upstream's own.
    fn hub_token(&mut self, item: &Item<file::Upstream>, is_hub: bool) -> Option<usize> {
        let written = item.fields.token.as_ref()?;
        let place = self.file.place_of(item, &written.span);
        if !is_hub {
            if !item.is_unread("hub") {
                self.push(
                    Problem::error(format!(
                        "the upstream {} has a `token` and is no hub",
                        quote(&item.name)
                    ))
                    .at(place)
                    .cure("write hub = true, if it is another Claviger; an API's key is a [credential.NAME]"),
                );
            }
            return None;
        }
        let reference = self.reference(place.clone(), &written.value)?;
        let name = format!("{}.token", item.name);
        if let Some(other) = self
            .file
            .credentials
            .iter()
            .find(|other| other.name == name)
        {
            let problem = Problem::error(format!(
                "the token of the hub {} is called {} on the audit trail, and there is a credential of that name",
                quote(&item.name),
                quote(&name)
            ))
            .at(place.clone())
            .also("here:", self.file.place(other))
            .cure("give one of them another name");
            self.push(problem);
        }
        self.credentials.push(CredentialDraft {
            name,
            reference,
            allow_world_readable: item
                .fields
                .allow_world_readable
                .as_ref()
                .is_some_and(|allow| allow.value),
            place,
        });
        Some(self.credentials.len() - 1)
    }

    fn hub_without_proof(&mut self, item: &Item<file::Upstream>) {
        let unread = ["token", "client_certificate", "client_key"];
        let fields = &item.fields;
        let is_written = fields.token.is_some()
            || fields.client_certificate.is_some()
            || fields.client_key.is_some();
        if is_written || unread.iter().any(|field| item.is_unread(field)) {
            return;
        }
        let place = self.file.place(item);
        self.push(
            Problem::error(format!(
                "the hub {} would not know who we are",
                quote(&item.name)
            ))
            .at(place)
            .cure(format!(
                "write client_certificate and client_key, or token = \"file:///etc/claviger/{}.token\"",
                super::credentials::plain_file_name(&item.name)
            )),
        );
    }

    /// `idle_min <= idle_max <= connections_max`: what was not written gives way.
    fn idle_bounds(
        &mut self,
        item: &Item<file::Upstream>,
        mut limits: UpstreamLimits,
    ) -> UpstreamLimits {
        let fields = &item.fields;
        match &fields.idle_max {
            Some(written) if limits.idle_max > limits.connections_max => {
                let place = self.file.place_of(item, &written.span);
                self.push(
                    Problem::error(format!(
                        "`idle_max` is more than `connections_max` ({})",
                        limits.connections_max
                    ))
                    .at(place),
                );
            }
            Some(_) => {}
            None => limits.idle_max = limits.idle_max.min(limits.connections_max),
        }
        match &fields.idle_min {
            Some(written) if limits.idle_min > limits.idle_max => {
                let place = self.file.place_of(item, &written.span);
                self.push(
                    Problem::error(format!(
                        "`idle_min` is more than `idle_max` ({})",
                        limits.idle_max
                    ))
                    .at(place),
                );
            }
            Some(_) => {}
            None => limits.idle_min = limits.idle_min.min(limits.idle_max),
        }
        limits
    }

    fn static_address(&mut self, address: SocketAddr, place: &Place, listeners: &[Listener]) {
        let ours = listeners
            .iter()
            .find(|listener| listener.addresses.iter().any(|own| leads_to(address, *own)));
        if let Some(listener) = ours {
            let problem = Problem::error(format!(
                "{address} is our own listener {}: requests would go round in a circle",
                quote(&listener.name)
            ))
            .at(place.clone())
            .cure("write the address of the API itself");
            self.push(problem);
            return;
        }
        // A loopback address is possible where it is written, for a tunnel or a
        // stand-in on this machine; the others never lead to an API.
        if is_never_an_upstream(address.ip()) && !address.ip().to_canonical().is_loopback() {
            let problem = Problem::error(format!("{} never is an API's address", address.ip()))
                .at(place.clone())
                .expected("neither a link-local, multicast or unspecified address nor a cloud's metadata service");
            self.push(problem);
        }
        if address.port() == 0 {
            self.push(
                Problem::error("0 is not a port")
                    .at(place.clone())
                    .expected("1 to 65535"),
            );
        }
    }

    /// A host without a scheme, a port, a path.
    fn upstream_host<T>(&mut self, item: &Item<T>, written: &Written<String>) -> Option<String> {
        let text = written.value.trim_end_matches('.').to_ascii_lowercase();
        if text.parse::<IpAddr>().is_ok() || is_host_name(&text) {
            return Some(text);
        }
        let place = self.file.place_of(item, &written.span);
        let problem = Problem::error("not a host name")
            .at(place)
            .expected("a name without scheme, port and path, as in \"api.example.com\"");
        let problem = if text.starts_with("http://") {
            problem.cure("leave `http://` out: a key never travels in clear text, so upstreams are reached by TLS alone")
        } else if text.starts_with("https://") {
            problem.cure("leave `https://` out; TLS is all there is")
        } else if text.contains(':') {
            problem.cure("write the port as port = N")
        } else if text.starts_with("*.") {
            problem.cure("an upstream is one host; a route may serve `*.x`, but leads to one name")
        } else {
            problem
        };
        self.push(problem);
        None
    }
}

/// What holds for a hub, unless its section says otherwise: it is asked quickly, and keeps the
/// times of the API itself. Connections to it are kept ahead of need.
fn hub_limits() -> UpstreamLimits {
    const PATIENCE: Duration = Duration::from_secs(15 * 60);
    UpstreamLimits {
        connect_timeout: Duration::from_secs(2),
        response_head_timeout: PATIENCE,
        read_timeout: PATIENCE,
        idle_min: 2,
        ..UpstreamLimits::default()
    }
}

/// Whether a connection to `address` would arrive at the listener's `own`.
/// Other addresses of this machine are compared when the file is resolved.
fn leads_to(address: SocketAddr, own: SocketAddr) -> bool {
    let (ip, own_ip) = (address.ip().to_canonical(), own.ip().to_canonical());
    address.port() == own.port()
        && (ip == own_ip || (own_ip.is_unspecified() && (ip.is_loopback() || ip.is_unspecified())))
}
