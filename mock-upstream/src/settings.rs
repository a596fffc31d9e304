//! What the options amount to once everything has been read and checked, shared by all workers.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::ServerConfig;
use socket2::Socket;

use crate::cli::Options;
use crate::draws::fresh_seed;
use crate::faults::{Abilities, Faults};
use crate::idempotency;
use crate::keys::{AuthScheme, KeyRing, KeySet};
use crate::latency::Latency;
use crate::limits::Limits;
use crate::personality::Catalogue;
use crate::published::Published;
use crate::raw::RawRecorder;
use crate::record::Recorder;
use crate::server::LISTEN_BACKLOG;
use crate::stats::{Totals, WorkerStats};
use crate::steering::Steering;
use crate::tls::{self, Flawed, TlsFiles};

/// Settings and shared state. Immutable but for what the control port changes, the records and the counters.
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
    /// TLS with bad certificates, for faults.
    pub flawed: Flawed,
    /// Latency, limits and faults.
    pub steering: Published<Steering>,
    /// Seeds chance where nobody gives another seed.
    pub seed: u64,
    /// Keys of idempotent requests.
    pub idempotency: Arc<idempotency::Store>,
    /// Where requests are recorded byte by byte.
    pub raw: Option<RawRecorder>,
    /// Second descriptors of the API's listening sockets, to close and open them.
    pub listeners: Mutex<Vec<Socket>>,
    /// The counters as they stood when they were reset.
    pub baseline: Mutex<Totals>,
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
        let (files, flawed) = tls_files(options)?;
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

        let seed = options.seed.unwrap_or_else(fresh_seed);
        let mut steering = Steering::default();
        if !options.latency.is_empty() {
            let latency = Latency::from_options(&options.latency, seed)
                .map_err(|error| invalid(format!("--latency: {error}")))?;
            steering.latency = Some(Arc::new(latency));
        }
        if let Some(path) = &options.limits {
            let limits = Limits::from_json(&read(path, "--limits")?, &catalogue.style_names())
                .map_err(|error| invalid(format!("--limits {}: {error}", path.display())))?;
            steering.limits = Some(Arc::new(limits));
        }
        if let Some(path) = &options.faults {
            let abilities = Abilities {
                tls: tls.is_some(),
                bad_certificates: !flawed.is_empty(),
            };
            let faults = Faults::from_json(&read(path, "--faults")?, seed, abilities)
                .map_err(|error| invalid(format!("--faults {}: {error}", path.display())))?;
            steering.faults = Some(Arc::new(faults));
        }

        let settings = Settings {
            flawed,
            steering: Published::new(steering),
            seed,
            idempotency: Arc::default(),
            raw: options
                .record_raw
                .as_deref()
                .map(RawRecorder::open)
                .transpose()?,
            listeners: Mutex::default(),
            baseline: Mutex::default(),
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

impl Settings {
    /// What faults this mock can make.
    pub fn abilities(&self) -> Abilities {
        Abilities {
            tls: self.tls.is_some(),
            bad_certificates: !self.flawed.is_empty(),
        }
    }

    /// Closes the API's listening sockets, or opens them again, as the faults in force ask. The
    /// sockets stay bound, so that nobody else can take their ports.
    pub fn set_listening(&self, listening: bool) -> io::Result<()> {
        let sockets = self
            .listeners
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        for socket in sockets.iter() {
            match listening {
                true => socket.listen(LISTEN_BACKLOG)?,
                // Linux lets a listening socket fall back to a merely bound one.
                false => match socket.shutdown(std::net::Shutdown::Read) {
                    Err(error) if error.kind() != io::ErrorKind::NotConnected => return Err(error),
                    _ => {}
                },
            }
        }
        Ok(())
    }
}

fn read(path: &Path, option: &str) -> io::Result<Vec<u8>> {
    fs::read(path).map_err(|error| {
        io::Error::new(
            error.kind(),
            format!("{option} {}: {error}", path.display()),
        )
    })
}

fn tls_files(options: &Options) -> io::Result<(Option<TlsFiles>, Flawed)> {
    if options.plain {
        return Ok((None, Flawed::new()));
    }
    match (&options.self_signed, &options.cert, &options.key_pem) {
        (Some(directory), _, _) => {
            let names = match options.names.is_empty() {
                true => vec!["localhost".to_string(), "127.0.0.1".to_string()],
                false => options.names.clone(),
            };
            tls::self_signed(directory, &names).map(|(files, flawed)| (Some(files), flawed))
        }
        (None, Some(cert), Some(key)) => {
            let files = TlsFiles {
                ca: None,
                cert: cert.clone(),
                key: key.clone(),
            };
            Ok((Some(files), Flawed::new()))
        }
        _ => Err(invalid(
            "no certificate; give --cert FILE --cert-key FILE, --self-signed DIR, or --plain",
        )),
    }
}

fn invalid(text: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, text.into())
}
