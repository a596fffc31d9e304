//! The TLS side of accepting a caller: the server name picks the virtual host,
//! and the virtual host's own configuration answers the handshake.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use handoff::Counter;
use policy::{ACME_TLS_ALPN, Identity, Listener, Snapshot, UnknownSni};
use rustls::pki_types::CertificateDer;
use rustls::server::{Accepted as ClientHelloRead, AcceptedAlert, Acceptor, ClientHello};
use rustls::{AlertDescription, ServerConfig};
use webpki::EndEntityCert;

use crate::core::Core;
use crate::session::Handshake;
use crate::transport::Transport;

/// `unrecognized_name` (RFC 6066, section 3) as a plaintext alert record.
const ALERT_UNRECOGNIZED_NAME: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];

/// What the handshake has settled.
pub struct Accepted {
    /// The server name that was asked for, in lower case; or that of the host
    /// which the listener serves when it was absent or unknown.
    pub server_name: Box<str>,
    /// What the caller's certificate says, if it has shown one.
    pub identity: Option<Box<Identity>>,
}

/// Serves a caller's handshake within `limit`.
///
/// # Errors
/// Whatever ended it; the caller was told by an alert where there is one for it.
pub async fn accept(
    core: &Core,
    snapshot: &Snapshot,
    listener: &Listener,
    connection: &mut Transport,
    limit: Duration,
) -> io::Result<Accepted> {
    connection.watch().recv_within(limit);
    connection.watch().send_within(limit);
    connection.watch().may_be_evicted();
    let outcome = handshake(core, snapshot, listener, connection).await;
    connection.watch().recv_done();
    connection.watch().send_done();
    connection.watch().busy();
    match outcome {
        Ok(accepted) => {
            core.count(Counter::handshakes);
            if connection.is_resumed() {
                core.count(Counter::handshakes_resumed);
            }
            Ok(accepted)
        }
        Err(error) if is_validation(&error) => {
            core.count(Counter::handshakes_acme);
            Err(error)
        }
        Err(error) => {
            core.count(Counter::handshakes_failed);
            if connection.watch().is_expired() {
                core.count(Counter::handshakes_timed_out);
                return Err(io::ErrorKind::TimedOut.into());
            }
            if is_alpn_mismatch(&error) {
                core.count(Counter::handshakes_refused_alpn);
            }
            Err(error)
        }
    }
}

async fn handshake(
    core: &Core,
    snapshot: &Snapshot,
    listener: &Listener,
    connection: &mut Transport,
) -> io::Result<Accepted> {
    let mut acceptor = Acceptor::default();
    // Behind a load balancer's header it may have come already.
    let mut heard = connection.take_raw(|bytes| (0, hear(&mut acceptor, bytes)))?;
    let accepted = loop {
        match heard {
            Ok(Some(accepted)) => break accepted,
            Ok(None) => {
                heard = connection
                    .recv_raw(|bytes| hear(&mut acceptor, bytes))
                    .await??;
            }
            Err((error, mut alert)) => {
                let mut bytes = Vec::new();
                alert.write_all(&mut bytes)?;
                connection.send_raw(bytes).await;
                return Err(io::Error::new(io::ErrorKind::InvalidData, error));
            }
        }
    };
    let asked = accepted.client_hello().server_name().map(|name| {
        name.trim_end_matches('.')
            .to_ascii_lowercase()
            .into_boxed_str()
    });
    let validation = match snapshot.is_validated_by_tls {
        true => validation(
            snapshot,
            listener,
            asked.as_deref(),
            &accepted.client_hello(),
        ),
        false => None,
    };
    let validates = validation.is_some();
    let chosen = match (validation, asked) {
        (Some(config), Some(asked)) => Some((config, asked)),
        (_, asked) => choose(snapshot, listener, asked),
    };
    let Some((config, server_name)) = chosen else {
        core.count(Counter::handshakes_refused_sni);
        connection.send_raw(ALERT_UNRECOGNIZED_NAME.to_vec()).await;
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the server name is absent or not served here",
        ));
    };
    // The host is known now, and the ClientHello is read once more, by its rules.
    drop(accepted);
    let handshake = Handshake::server(config).map_err(io::Error::other)?;
    let certificate = connection.handshake(handshake).await?;
    if validates {
        // RFC 8737, 3: with the handshake the authority has seen what it came for.
        return Err(io::Error::other(Validation));
    }
    let identity = match &certificate {
        None => None,
        Some(certificate) => Some(Box::new(identity_of(certificate)?)),
    };
    Ok(Accepted {
        server_name,
        identity,
    })
}

/// What has come of a ClientHello.
type Heard = Result<Option<ClientHelloRead>, (rustls::Error, AcceptedAlert)>;

fn hear(acceptor: &mut Acceptor, mut bytes: &[u8]) -> io::Result<Heard> {
    while !bytes.is_empty() {
        // rustls takes 4 KiB at a time; a ClientHello may be larger than that.
        acceptor.read_tls(&mut bytes)?;
        match acceptor.accept() {
            Ok(None) => {}
            heard => return Ok(heard),
        }
    }
    Ok(Ok(None))
}

/// The names of a certificate that was verified.
fn identity_of(certificate: &CertificateDer<'_>) -> io::Result<Identity> {
    let certificate = EndEntityCert::try_from(certificate)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
    Ok(Identity::new(
        certificate.valid_dns_names(),
        certificate.valid_uri_names(),
    ))
}

/// The configuration for a server name on a listener, and the name that it stands for.
fn choose(
    snapshot: &Snapshot,
    listener: &Listener,
    asked: Option<Box<str>>,
) -> Option<(Arc<ServerConfig>, Box<str>)> {
    if let Some(asked) = asked
        && let Some(index) = snapshot.find_host(&asked)
    {
        let host = snapshot.host(index);
        if host.is_on(&listener.name)
            && let Some(tls) = &host.tls
        {
            return Some((Arc::clone(tls), asked));
        }
    }
    match &listener.unknown_sni {
        UnknownSni::Refuse => None,
        UnknownSni::Host(name) => {
            let host = snapshot.host(snapshot.find_host(name)?);
            // It has shown this host's certificate, so it is this host's caller: a
            // Host field that names another one is misdirected.
            Some((Arc::clone(host.tls.as_ref()?), name.clone()))
        }
    }
}

/// The configuration for an authority that validates a host: it offers one protocol alone.
fn validation(
    snapshot: &Snapshot,
    listener: &Listener,
    asked: Option<&str>,
    hello: &ClientHello<'_>,
) -> Option<Arc<ServerConfig>> {
    let mut offered = hello.alpn()?;
    if offered.next() != Some(ACME_TLS_ALPN) || offered.next().is_some() {
        return None;
    }
    let host = snapshot.host(snapshot.find_host(asked?)?);
    host.validation
        .as_ref()
        .filter(|_| host.is_on(&listener.name))
        .map(Arc::clone)
}

/// A handshake that was an authority's, and has done its part.
#[derive(Debug, Clone, Copy)]
struct Validation;

impl std::fmt::Display for Validation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an authority validated the host")
    }
}

impl std::error::Error for Validation {}

fn is_validation(error: &io::Error) -> bool {
    error
        .get_ref()
        .is_some_and(|source| source.is::<Validation>())
}

fn is_alpn_mismatch(error: &io::Error) -> bool {
    error
        .get_ref()
        .and_then(|source| source.downcast_ref::<rustls::Error>())
        .is_some_and(|error| {
            matches!(
                error,
                rustls::Error::NoApplicationProtocol
                    | rustls::Error::AlertReceived(AlertDescription::NoApplicationProtocol)
            )
        })
}

#[cfg(test)]
mod tests;
