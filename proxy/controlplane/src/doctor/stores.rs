//! The stores of roots on this machine, and whether a chain leads to one of theirs.
//!
//! The system's store, the bundles that Python's `certifi` and SDKs bring along, and Java's
//! keystores are each held against the chain that the server showed, by the verifier that
//! Claviger itself uses. Of Node it is known only whether it is told of another root.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use ignore::WalkBuilder;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, RootCertStore};

use crate::pki;

/// Where bundles and keystores are looked for.
pub const SEARCH_DEFAULT: [&str; 9] = [
    "/usr/lib",
    "/usr/local",
    "/usr/share",
    "/opt",
    "/srv",
    "/home",
    "/root",
    "/app",
    "/var/lib",
];

/// Entries that a search looks at. What is beyond is not found, and that is said.
const ENTRIES_MAX: usize = 1_000_000;

/// Bytes of the largest bundle. Mozilla's has 300 kB.
const BUNDLE_BYTES_MAX: u64 = 16 << 20;

/// How paths of bundles end, and what reads them.
const BUNDLES: [&str; 7] = [
    "/certifi/cacert.pem",
    "/botocore/cacert.pem",
    "/httplib2/cacerts.txt",
    "/stripe/data/ca-certificates.crt",
    "/grpc/_cython/_credentials/roots.pem",
    "/requests/cacert.pem",
    "/braintree/ssl/api_braintreegateway_com.ca.crt",
];

/// A store of roots.
#[derive(Debug)]
pub struct Store {
    /// What it is.
    pub kind: Kind,
    /// Where it is.
    pub path: PathBuf,
    /// Whether the chain leads to a root in it; if not, why.
    pub verdict: Result<(), CertificateError>,
    /// Why it could not be read.
    pub unreadable: Option<String>,
}

/// Kinds of stores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The system's.
    System,
    /// A bundle of Python's or of an SDK.
    Bundle,
    /// Java's.
    Keystore,
}

/// Holds the chain against the system's store.
pub fn system(chain: &[CertificateDer<'static>], name: &ServerName<'static>) -> Store {
    let found = rustls_native_certs::load_native_certs();
    let unreadable = found.certs.is_empty().then(|| match found.errors.first() {
        Some(error) => error.to_string(),
        None => "there is none; install the package ca-certificates".to_owned(),
    });
    Store {
        kind: Kind::System,
        path: PathBuf::from("the system's store"),
        verdict: verify(chain, name, found.certs),
        unreadable,
    }
}

/// Holds the chain against every bundle and keystore below these directories. With `true`, there was
/// more than could be looked at.
pub fn others(
    search: &[PathBuf],
    chain: &[CertificateDer<'static>],
    name: &ServerName<'static>,
) -> (Vec<Store>, bool) {
    let mut seen = Vec::new();
    let mut stores = Vec::new();
    let mut entries = 0;
    for directory in search.iter().filter(|directory| directory.is_dir()) {
        let walk = WalkBuilder::new(directory)
            .standard_filters(false)
            .follow_links(false)
            .sort_by_file_name(std::ffi::OsStr::cmp)
            .filter_entry(|entry| {
                entry.file_name() != "node_modules" && entry.file_name() != ".git"
            })
            .build();
        for entry in walk.flatten() {
            entries += 1;
            if entries > ENTRIES_MAX {
                return (stores, true);
            }
            let Some(kind) = kind_of(entry.path()) else {
                continue;
            };
            // Distributions replace bundles by links to the system's: held once.
            let Ok(real) = entry.path().canonicalize() else {
                continue;
            };
            if seen.contains(&real) || !real.is_file() {
                continue;
            }
            let roots = match kind {
                Kind::Keystore => keystore(&real),
                _ => bundle(&real),
            };
            let (verdict, unreadable) = match roots {
                Ok(roots) => (verify(chain, name, roots), None),
                Err(error) => (Ok(()), Some(error)),
            };
            stores.push(Store {
                kind,
                path: entry.into_path(),
                verdict,
                unreadable,
            });
            seen.push(real);
        }
    }
    (stores, false)
}

fn kind_of(path: &Path) -> Option<Kind> {
    let text = path.to_str()?;
    // pip's own copy serves nobody but pip.
    if text.contains("/pip/_vendor/") {
        return None;
    }
    if text.ends_with("/lib/security/cacerts") {
        return Some(Kind::Keystore);
    }
    BUNDLES
        .iter()
        .any(|end| text.ends_with(end))
        .then_some(Kind::Bundle)
}

/// Whether the chain leads to one of these roots, for this name and now.
pub fn verify(
    chain: &[CertificateDer<'static>],
    name: &ServerName<'static>,
    roots: Vec<CertificateDer<'static>>,
) -> Result<(), CertificateError> {
    let mut store = RootCertStore::empty();
    let (added, _) = store.add_parsable_certificates(roots);
    let [leaf, intermediates @ ..] = chain else {
        return Err(CertificateError::BadEncoding);
    };
    if added == 0 {
        return Err(CertificateError::UnknownIssuer);
    }
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(store), pki::provider())
        .build()
        .map_err(|_| CertificateError::UnknownIssuer)?;
    match verifier.verify_server_cert(leaf, intermediates, name, &[], UnixTime::now()) {
        Ok(_) => Ok(()),
        Err(rustls::Error::InvalidCertificate(error)) => Err(error),
        Err(_) => Err(CertificateError::BadEncoding),
    }
}

fn bundle(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let text = small(path)?;
    Ok(CertificateDer::pem_slice_iter(&text).flatten().collect())
}

fn small(path: &Path) -> Result<Vec<u8>, String> {
    let size = fs::metadata(path).map_err(|error| error.to_string())?.len();
    if size > BUNDLE_BYTES_MAX {
        return Err(format!("larger than {BUNDLE_BYTES_MAX} bytes"));
    }
    fs::read(path).map_err(|error| error.to_string())
}

/// The certificates of a keystore: read here if it is of Java's old format, else by `keytool`.
fn keystore(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let bytes = small(path)?;
    if let Some(found) = jks(&bytes) {
        return Ok(found);
    }
    // The one in PATH and not the one beside the store: a user's directory must not say what root runs.
    let output = Command::new("keytool")
        .args([
            "-J-Duser.language=en",
            "-list",
            "-rfc",
            "-storepass",
            "changeit",
            "-keystore",
        ])
        .arg(path)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("keytool cannot be run: {error}"))?;
    if !output.status.success() {
        return Err("keytool cannot read it; has it another password than `changeit`?".to_owned());
    }
    Ok(CertificateDer::pem_slice_iter(&output.stdout)
        .flatten()
        .collect())
}

/// The trusted certificates of a Java keystore in the format JKS: big-endian numbers, strings with their
/// length before them. Certificates in it are not encrypted; its checksum is not looked at.
fn jks(bytes: &[u8]) -> Option<Vec<CertificateDer<'static>>> {
    const MAGIC: u32 = 0xfeed_feed;
    const TRUSTED: u32 = 2;
    let mut rest = bytes;
    let mut take = |length: usize| -> Option<&[u8]> {
        let (part, after) = rest.split_at_checked(length)?;
        rest = after;
        Some(part)
    };
    let number = |part: &[u8]| {
        part.iter()
            .fold(0_u32, |sum, &byte| sum << 8 | u32::from(byte))
    };
    if number(take(4)?) != MAGIC {
        return None;
    }
    take(4)?;
    let count = number(take(4)?);
    let mut found = Vec::new();
    for _ in 0..count {
        // A private key ends the reading: what is behind it is no root's.
        if number(take(4)?) != TRUSTED {
            break;
        }
        let alias = number(take(2)?);
        take(alias as usize + 8)?;
        let kind = number(take(2)?);
        take(kind as usize)?;
        let length = number(take(4)?);
        found.push(CertificateDer::from(take(length as usize)?.to_vec()));
    }
    Some(found)
}

/// What Node is told, if it is installed. `Err` says that nobody tells it.
pub fn node() -> Option<Result<String, PathBuf>> {
    let path = std::env::var_os("PATH")?;
    let node = std::env::split_paths(&path)
        .map(|directory| directory.join("node"))
        .find(|path| path.is_file())?;
    let environments = [
        "/etc/environment",
        "/etc/systemd/system.conf.d/claviger-ca.conf",
    ];
    let told = |text: &str| {
        let extra = text.contains("NODE_EXTRA_CA_CERTS=");
        let options = text.contains("--use-system-ca") || text.contains("--use-openssl-ca");
        extra || (options && text.contains("NODE_OPTIONS"))
    };
    if std::env::var_os("NODE_EXTRA_CA_CERTS").is_some_and(|path| Path::new(&path).is_file()) {
        return Some(Ok("NODE_EXTRA_CA_CERTS in this environment".to_owned()));
    }
    if std::env::var("NODE_OPTIONS").is_ok_and(|options| told(&format!("NODE_OPTIONS={options}"))) {
        return Some(Ok("NODE_OPTIONS in this environment".to_owned()));
    }
    for file in environments {
        if fs::read_to_string(file).is_ok_and(|text| told(&text)) {
            return Some(Ok(file.to_owned()));
        }
    }
    // Debian builds its Node so that it reads the system's store.
    let output = Command::new(&node)
        .args(["-p", "process.config.variables.node_shared_openssl || process.config.variables.node_use_openssl_def_ca_store"])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output();
    let reads_the_system = output.is_ok_and(|output| output.stdout.starts_with(b"true"));
    Some(match reads_the_system {
        true => Ok("its build reads the system's store".to_owned()),
        false => Err(node),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_keystore_of_java_s_old_format_is_read() {
        let mut bytes = vec![0xfe, 0xed, 0xfe, 0xed, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 2];
        bytes.extend([0, 1, b'a']);
        bytes.extend([0; 8]);
        bytes.extend([0, 5]);
        bytes.extend(b"X.509");
        bytes.extend([0, 0, 0, 3, 7, 8, 9]);
        let found = jks(&bytes).expect("a keystore");
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].as_ref(), [7, 8, 9]);
        for end in 0..bytes.len() {
            assert!(jks(&bytes[..end]).is_none(), "cut at {end}");
        }
    }

    #[test]
    fn bundles_are_known_by_their_paths() {
        for (path, kind) in [
            (
                "/opt/v/lib/python3.11/site-packages/certifi/cacert.pem",
                Some(Kind::Bundle),
            ),
            ("/opt/v/site-packages/pip/_vendor/certifi/cacert.pem", None),
            ("/opt/jdk/lib/security/cacerts", Some(Kind::Keystore)),
            ("/etc/ssl/certs/ca-certificates.crt", None),
        ] {
            assert_eq!(kind_of(Path::new(path)), kind, "{path}");
        }
    }
}
