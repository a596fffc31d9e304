//! What the harness wants served: one JSON file.

use std::collections::HashMap;
use std::path::Path;

use http::header::HeaderValue;
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Address and port for callers, TLS.
    pub listen: String,
    /// Threads that serve.
    pub workers: usize,
    /// Whether Pingora's threads share their tasks.
    pub work_stealing: bool,
    /// The user to become after binding; none stays who it is.
    pub user: Option<String>,
    /// The API's address and port.
    pub upstream: String,
    /// The API's name: SNI, what its certificate must be good for, and `Host`.
    pub host: String,
    /// PEM with the roots that the API's certificate must lead to.
    pub ca: String,
    pub access_log: String,
    pub hosts: Vec<Host>,
}

/// One name that is served.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Host {
    pub name: String,
    /// PEM files of its certificate and private key.
    pub certificate: String,
    pub private_key: String,
    /// The real key.
    pub key: String,
}

impl Config {
    /// Reads the file. The error names it, and quotes nothing of it: keys stand there.
    pub fn read(path: &Path) -> Result<Config, String> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| format!("{}: {error}", path.display()))?;
        let config: Config = serde_json::from_str(&text).map_err(|error| {
            format!(
                "{}: line {}, {:?}",
                path.display(),
                error.line(),
                error.classify()
            )
        })?;
        if config.hosts.is_empty() || config.workers == 0 {
            return Err(format!(
                "{}: needs one host and one worker at least",
                path.display()
            ));
        }
        Ok(config)
    }

    pub fn routes(&self) -> Result<Routes, String> {
        let mut by_host = HashMap::with_capacity(self.hosts.len());
        for host in &self.hosts {
            let mut value = HeaderValue::from_str(&format!("Bearer {}", host.key))
                .map_err(|_| format!("the key of {} cannot stand in a header", host.name))?;
            value.set_sensitive(true);
            by_host.insert(host.name.clone(), value);
        }
        Ok(Routes { by_host })
    }
}

/// What is written for whom.
pub struct Routes {
    by_host: HashMap<String, HeaderValue>,
}

impl Routes {
    /// The value of `Authorization` for a `Host`, with or without a port; none for a host that is not served.
    pub fn authorization(&self, host: &str) -> Option<&HeaderValue> {
        let name = host.split(':').next().unwrap_or(host);
        self.by_host
            .get(name)
            .or_else(|| self.by_host.get(&name.to_ascii_lowercase()))
    }
}
