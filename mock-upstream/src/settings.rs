//! What the options amount to once everything has been read and checked, shared by all workers.

use std::fs;
use std::io;
use std::sync::Arc;

use rustls::ServerConfig;

use crate::cli::Options;
use crate::keys::{AuthScheme, KeyRing, KeySet};
use crate::personality::Catalogue;
use crate::record::Recorder;
use crate::stats::WorkerStats;
use crate::tls::{self, TlsFiles};

/// Settings and shared state. Immutable but for the key ring, the record and the counters.
#[derive(Debug)]
pub struct Settings {
    /// Where keys are looked for.
    pub auth: AuthScheme,
    /// The keys that are valid.
    pub keys: KeyRing,
    /// Personalities and error styles.
    pub catalogue: Catalogue,
    /// The style that overrides every personality's own.
    pub style: Option<String>,
    /// Report credentials as they arrived.
    pub reveal: bool,
    /// Where requests are recorded.
    pub record: Option<Recorder>,
    /// TLS, unless everything is clear text.
    pub tls: Option<Arc<ServerConfig>>,
    /// Seconds; 0: never.
    pub idle_timeout: u32,
    /// 0: without limit.
    pub requests_per_connection: u64,
    /// One set of counters per worker.
    pub stats: Vec<Arc<WorkerStats>>,
}

impl Settings {
    /// Reads every file that the options name. The error says which, and what to do.
    pub fn from_options(options: &Options) -> io::Result<(Self, Option<TlsFiles>)> {
        let files = tls_files(options)?;
        let tls = files.as_ref().map(tls::server_config).transpose()?;

        let mut keys: Vec<Vec<u8>> = options
            .keys
            .iter()
            .map(|key| key.expose().as_bytes().to_vec())
            .collect();
        for path in &options.key_files {
            let text = fs::read_to_string(path).map_err(|error| {
                io::Error::new(
                    error.kind(),
                    format!("--key-file {}: {error}", path.display()),
                )
            })?;
            let set = KeySet::from_lines(&text);
            if set.is_empty() {
                return Err(invalid(format!(
                    "--key-file {}: no key in it",
                    path.display()
                )));
            }
            keys.extend(set.iter().map(<[u8]>::to_vec));
        }
        let keys = KeySet::new(keys);
        if keys.is_empty() && options.auth != AuthScheme::None {
            return Err(invalid("no key is valid; give --key VALUE, or --auth none"));
        }

        let mut catalogue = Catalogue::built_in();
        for path in options.personalities.iter().rev() {
            let text = fs::read_to_string(path).map_err(|error| {
                io::Error::new(
                    error.kind(),
                    format!("--personalities {}: {error}", path.display()),
                )
            })?;
            catalogue
                .prepend(&text)
                .map_err(|error| invalid(format!("--personalities {}: {error}", path.display())))?;
        }
        if let Some(style) = &options.style
            && !catalogue.has_style(style)
        {
            return Err(invalid(format!(
                "--style {style}: no such style; there are {}",
                catalogue.style_names().join(", ")
            )));
        }

        let settings = Settings {
            auth: options.auth.clone(),
            keys: KeyRing::new(keys),
            catalogue,
            style: options.style.clone(),
            reveal: options.reveal,
            record: options.record.as_deref().map(Recorder::open).transpose()?,
            tls,
            idle_timeout: options.idle_timeout,
            requests_per_connection: options.requests_per_connection,
            stats: (0..options.workers).map(|_| Arc::default()).collect(),
        };
        Ok((settings, files))
    }
}

fn tls_files(options: &Options) -> io::Result<Option<TlsFiles>> {
    if options.plain {
        return Ok(None);
    }
    match (&options.self_signed, &options.cert, &options.key_pem) {
        (Some(directory), _, _) => {
            let names = match options.names.is_empty() {
                true => vec!["localhost".to_string(), "127.0.0.1".to_string()],
                false => options.names.clone(),
            };
            tls::self_signed(directory, &names).map(Some)
        }
        (None, Some(cert), Some(key)) => Ok(Some(TlsFiles {
            ca: None,
            cert: cert.clone(),
            key: key.clone(),
        })),
        _ => Err(invalid(
            "no certificate; give --cert FILE --cert-key FILE, --self-signed DIR, or --plain",
        )),
    }
}

fn invalid(text: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, text.into())
}
