//! The certificate for each name, chosen in the handshake.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use pingora::listeners::TlsAccept;
use pingora::listeners::tls::TlsSettings;
use pingora::protocols::ALPN;
use pingora::tls::ext;
use pingora::tls::pkey::{PKey, Private};
use pingora::tls::ssl::{NameType, SslRef};
use pingora::tls::x509::X509;

use crate::config::Config;

/// One certificate is given to the TLS library as it is; more are chosen by a callback.
pub fn settings(config: &Config) -> Result<TlsSettings, String> {
    let mut settings = match config.hosts.as_slice() {
        [host] => TlsSettings::intermediate(&host.certificate, &host.private_key),
        _ => TlsSettings::with_callbacks(Box::new(ByName::load(config)?)),
    }
    .map_err(|error| error.to_string())?;
    settings.set_alpn(ALPN::H1);
    Ok(settings)
}

/// Every name's certificate. Names with the same files share what was read from them.
struct ByName {
    by_name: HashMap<String, Arc<Pair>>,
}

struct Pair {
    chain: Vec<X509>,
    key: PKey<Private>,
}

impl ByName {
    fn load(config: &Config) -> Result<ByName, String> {
        let mut pairs: HashMap<(&str, &str), Arc<Pair>> = HashMap::new();
        let mut by_name = HashMap::with_capacity(config.hosts.len());
        for host in &config.hosts {
            let files = (host.certificate.as_str(), host.private_key.as_str());
            let pair = match pairs.get(&files) {
                Some(pair) => Arc::clone(pair),
                None => {
                    let pair = Arc::new(Pair {
                        chain: X509::stack_from_pem(&read(files.0)?)
                            .map_err(|error| format!("{}: {error}", files.0))?,
                        key: PKey::private_key_from_pem(&read(files.1)?)
                            .map_err(|error| format!("{}: {error}", files.1))?,
                    });
                    pairs.insert(files, Arc::clone(&pair));
                    pair
                }
            };
            by_name.insert(host.name.clone(), pair);
        }
        Ok(ByName { by_name })
    }
}

#[async_trait]
impl TlsAccept for ByName {
    async fn certificate_callback(&self, ssl: &mut SslRef) {
        let pair = ssl
            .servername(NameType::HOST_NAME)
            .and_then(|name| self.by_name.get(name));
        // Without a certificate the handshake fails, as it should for a name that is not served.
        let Some(pair) = pair else { return };
        let Some((leaf, rest)) = pair.chain.split_first() else {
            return;
        };
        let done = ext::ssl_use_certificate(ssl, leaf)
            .and_then(|()| ext::ssl_use_private_key(ssl, &pair.key))
            .and_then(|()| {
                rest.iter()
                    .try_for_each(|certificate| ext::ssl_add_chain_cert(ssl, certificate))
            });
        if let Err(error) = done {
            log::error!("a certificate was not accepted: {error}");
        }
    }
}

fn read(path: &str) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|error| format!("{path}: {error}"))
}
