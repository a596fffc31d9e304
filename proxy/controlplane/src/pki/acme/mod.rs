//! Certificates of a public authority by ACME (RFC 8555): [`Acme`] obtains and renews them while
//! Claviger serves.
//!
//! One thread with a runtime of its own sees to one host after the other, so that a hook that
//! hangs keeps neither traffic nor names nor reloads waiting. A certificate is due after two thirds
//! of its life; what fails is tried again with growing pauses, and the last good certificate serves
//! until its own end, also across restarts: it lies in the [`Store`] with its key. A reload tries
//! what failed at once.
//!
//! How a challenge is answered: [`dns`] calls a program of the operator's and looks whether the
//! record is there; [`http01`] listens on a port of its own and serves nothing else; for
//! TLS-ALPN-01 the data plane shows a certificate from [`Challenges`] to whoever offers
//! `acme-tls/1` alone. [`order`] walks through one order, [`http`] carries its messages.
//!
//! What is deliberately missing: revocation, several names in one certificate, and renewal
//! information (RFC 9773).

mod challenge;
mod dns;
mod http;
mod http01;
mod manager;
mod order;
mod store;

pub use challenge::Challenges;
pub use dns::Hook;
pub use manager::{Acme, AcmeLine};
pub use store::Store;

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use policy::Secret;
use rustls::ClientConfig;

use crate::names::{DnsSettings, Server};

/// Let's Encrypt.
pub const DIRECTORY_DEFAULT: &str = "https://acme-v02.api.letsencrypt.org/directory";

/// What is asked of whom, and how challenges are answered.
#[derive(Clone)]
pub struct AcmePlan {
    /// The authority's directory: an `https` URL.
    pub directory: String,
    /// How the authority is verified.
    pub tls: Arc<ClientConfig>,
    /// Who resolves the authority's name.
    pub dns: DnsSettings,
    /// URLs at which the authority may reach the operator.
    pub contact: Vec<String>,
    /// An account elsewhere that this one is bound to: its identifier and its key.
    pub external_account: Option<(String, Arc<Secret>)>,
    /// How challenges are answered.
    pub answer: Answer,
    /// The hosts, each with a certificate of its own; lower case, `*.x` possible by DNS alone.
    pub hosts: Vec<String>,
    /// Where accounts and certificates are kept.
    pub store: Store,
    /// Where challenges wait for the authority.
    pub challenges: Arc<Challenges>,
}

impl AcmePlan {
    /// Whether `other` asks the same of the same authority in the same way.
    fn is_same_as(&self, other: &AcmePlan) -> bool {
        let same_account = match (&self.external_account, &other.external_account) {
            (Some((id, key)), Some((other_id, other_key))) => {
                id == other_id && key.is_unchanged_from(other_key)
            }
            (None, None) => true,
            _ => false,
        };
        same_account
            && self.directory == other.directory
            && Arc::ptr_eq(&self.tls, &other.tls)
            && self.dns.same_transport(&other.dns)
            && self.contact == other.contact
            && self.answer == other.answer
            && self.hosts == other.hosts
            && self.store == other.store
    }
}

impl fmt::Debug for AcmePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AcmePlan")
            .field("directory", &self.directory)
            .field("answer", &self.answer)
            .field("hosts", &self.hosts)
            .finish_non_exhaustive()
    }
}

/// How challenges are answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// By a record in the zone, which a program writes.
    Dns {
        /// The program.
        hook: Hook,
        /// Who must know the record before the authority is told: all of them.
        resolvers: Vec<Server>,
        /// How long that may take.
        propagation: Duration,
    },
    /// Over plain HTTP, at these addresses.
    Http(Vec<SocketAddr>),
    /// In a TLS handshake with the listeners that serve the host.
    TlsAlpn,
}
