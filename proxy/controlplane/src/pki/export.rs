//! `claviger ca export`: the roots that callers shall trust, in the forms that their machines take.
//! Never a key.
//!
//! PEM and DER as everywhere; PKCS#12 (RFC 7292) as a trust store, which Java takes as it is, since
//! its entries are marked as trusted; and a Debian package (deb(5)), which needs no tool of Debian's
//! to be made. Both are written here: what they take is a page each.

use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::hmac;
use policy::Secret;
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use time::macros::format_description;
use zeroize::Zeroizing;

use super::authority::{Authority, Certificate};
use super::error::List;
use super::store::{CERT_MODE, Existing, write_atomic};
use super::{PkiError, x509};

/// Arguments of `claviger ca export`.
#[derive(Clone, Debug)]
pub struct ExportOptions {
    /// The authority's directory.
    pub dir: PathBuf,
    /// The file to write; `None` for standard output, which is the caller's part.
    pub out: Option<PathBuf>,
    /// The form.
    pub format: ExportFormat,
    /// Replace a file that is there.
    pub force: bool,
    /// The time now, which a package's version is made of.
    pub now: SystemTime,
}

/// In which form roots are given.
#[derive(Clone, Debug)]
pub enum ExportFormat {
    /// Text; in a roll-over both roots, one behind the other.
    Pem,
    /// One certificate in DER.
    Der,
    /// A trust store in PKCS#12 under this password.
    Pkcs12(TrustStorePassword),
    /// A Debian package.
    Deb,
}

/// What a trust store is protected by: against damage and exchange, not against being read, for
/// nothing in it is secret.
#[derive(Clone)]
pub struct TrustStorePassword(std::sync::Arc<Secret>);

impl TrustStorePassword {
    /// Takes what was read from a reference. A line break at its end is no part of it.
    pub fn new(secret: Secret) -> TrustStorePassword {
        TrustStorePassword(std::sync::Arc::new(secret))
    }
}

impl Default for TrustStorePassword {
    /// What Java's own trust store has.
    fn default() -> TrustStorePassword {
        TrustStorePassword::new(Secret::new(b"changeit".to_vec()))
    }
}

impl fmt::Debug for TrustStorePassword {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TrustStorePassword(..)")
    }
}

/// Gives the roots, for callers to trust.
///
/// # Errors
/// As [`Authority::load`]; a file in the way, without `force`; two roots, and a form for one.
pub fn export(options: &ExportOptions) -> Result<ExportReport, PkiError> {
    let authority = Authority::load(&options.dir, None)?;
    let roots = authority.roots();
    let bytes = match &options.format {
        ExportFormat::Pem => {
            let texts = roots.iter().map(|root| x509::to_pem(&root.der));
            texts.collect::<String>().into_bytes()
        }
        ExportFormat::Der => match roots.as_slice() {
            [root] => root.der.to_vec(),
            _ => {
                return Err(PkiError::file(
                    &options.dir,
                    "has two roots, in a roll-over, and DER holds one certificate",
                    "export them as PEM, PKCS#12 or a Debian package",
                ));
            }
        },
        ExportFormat::Pkcs12(password) => pkcs12(&roots, password)?,
        ExportFormat::Deb => deb(&roots, options.now),
    };
    if let Some(out) = &options.out {
        let existing = if options.force {
            Existing::Replace
        } else {
            Existing::Keep
        };
        write_atomic(out, &bytes, CERT_MODE, existing)?;
    }
    Ok(ExportReport {
        bytes,
        out: options.out.clone(),
        roots: roots
            .iter()
            .map(|root| ExportedRoot {
                fingerprint: x509::fingerprint(&root.der),
                permitted: root.facts.permitted.clone(),
                not_after: root.facts.not_after,
            })
            .collect(),
    })
}

/// What [`export`] gives.
#[derive(Clone, Debug)]
pub struct ExportReport {
    /// The roots in the form that was asked for.
    pub bytes: Vec<u8>,
    /// The file that was written.
    pub out: Option<PathBuf>,
    /// The roots: the one that certificates come from first.
    pub roots: Vec<ExportedRoot>,
}

/// A root that was given.
#[derive(Clone, Debug)]
pub struct ExportedRoot {
    /// SHA-256 of the certificate, `AB:CD:...`.
    pub fingerprint: String,
    /// The domains that it permits.
    pub permitted: Vec<String>,
    /// End of its validity.
    pub not_after: SystemTime,
}

impl fmt::Display for ExportReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, root) in self.roots.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            if let Some(out) = &self.out {
                write!(f, "{}: ", out.display())?;
            }
            write!(
                f,
                "root certificate for {} until {}, SHA-256 {}",
                List(&root.permitted),
                x509::day(root.not_after),
                root.fingerprint
            )?;
        }
        Ok(())
    }
}

// ---- PKCS#12 ---------------------------------------------------------------

/// A PFX with a bag for each certificate, unencrypted, under a MAC.
fn pkcs12(roots: &[&Certificate], password: &TrustStorePassword) -> Result<Vec<u8>, PkiError> {
    let bags: Vec<u8> = roots.iter().flat_map(|root| bag(root)).collect();
    let safe = content_info(&der(SEQUENCE, &bags));
    let contents = der(SEQUENCE, &safe);
    let mut salt = [0; 16];
    getrandom::fill(&mut salt).map_err(|err| PkiError::Crypto {
        action: "get random bytes",
        problem: err.to_string(),
    })?;
    let key = password
        .0
        .unlock(|password| mac_key(password, &salt))
        .ok_or_else(|| PkiError::Crypto {
            action: "protect the trust store",
            problem: "the password is not UTF-8".to_owned(),
        })?;
    let mac = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &key), &contents);
    let algorithm = der(
        SEQUENCE,
        &[&der(OID, OID_SHA256)[..], &der(NULL, &[])].concat(),
    );
    let digest = der(SEQUENCE, &[algorithm, der(OCTETS, mac.as_ref())].concat());
    let rounds = der(INTEGER, &MAC_ROUNDS.to_be_bytes());
    let mac = der(SEQUENCE, &[digest, der(OCTETS, &salt), rounds].concat());
    let parts = [der(INTEGER, &[3]), content_info(&contents), mac];
    Ok(der(SEQUENCE, &parts.concat()))
}

/// ContentInfo of the type `data`.
fn content_info(data: &[u8]) -> Vec<u8> {
    let content = der(EXPLICIT_0, &der(OCTETS, data));
    der(SEQUENCE, &[der(OID, OID_DATA), content].concat())
}

/// A SafeBag with a certificate, its name, and Java's mark of a trusted one.
fn bag(root: &Certificate) -> Vec<u8> {
    let certificate = der(EXPLICIT_0, &der(OCTETS, &root.der));
    let certificate = der(SEQUENCE, &[der(OID, OID_X509), certificate].concat());
    let name: Vec<u8> = alias(root)
        .encode_utf16()
        .flat_map(u16::to_be_bytes)
        .collect();
    let attribute = |oid, value: Vec<u8>| {
        let values = der(SET, &value);
        der(SEQUENCE, &[der(OID, oid), values].concat())
    };
    let attributes = [
        attribute(OID_FRIENDLY_NAME, der(BMP_STRING, &name)),
        attribute(OID_TRUSTED_KEY_USAGE, der(OID, OID_ANY_USAGE)),
    ];
    let parts = [
        der(OID, OID_CERT_BAG),
        der(EXPLICIT_0, &certificate),
        der(SET, &attributes.concat()),
    ];
    der(SEQUENCE, &parts.concat())
}

/// As install-ca names it: the same root has the same name everywhere.
fn alias(root: &Certificate) -> String {
    let digest = Sha256::digest(root.der.as_ref());
    let id: String = digest[..4]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("claviger-{id}")
}

/// RFC 7292, B.2, for an HMAC with SHA-256: one block is enough for its key.
fn mac_key(password: &[u8], salt: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    const BLOCK: usize = 64;
    let password = password.strip_suffix(b"\n").unwrap_or(password);
    let password = std::str::from_utf8(password).ok()?;
    let mut units = Zeroizing::new(Vec::with_capacity(2 * password.len() + 2));
    units.extend(password.encode_utf16().flat_map(u16::to_be_bytes));
    units.extend([0, 0]);
    let repeated = |bytes: &[u8]| -> Zeroizing<Vec<u8>> {
        let length = bytes.len().div_ceil(BLOCK) * BLOCK;
        Zeroizing::new(bytes.iter().copied().cycle().take(length).collect())
    };
    let mut hash = Sha256::new();
    hash.update([MAC_KEY_ID; BLOCK]);
    hash.update(&*repeated(salt));
    hash.update(&*repeated(&units));
    let mut key = Zeroizing::new(hash.finalize().to_vec());
    for _ in 1..MAC_ROUNDS {
        let next = Sha256::digest(&*key);
        key.copy_from_slice(&next);
    }
    Some(key)
}

/// A value in DER.
fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut value = x509::sequence(content);
    value[0] = tag;
    value
}

const INTEGER: u8 = 0x02;
const OCTETS: u8 = 0x04;
const NULL: u8 = 0x05;
const OID: u8 = 0x06;
const BMP_STRING: u8 = 0x1e;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const EXPLICIT_0: u8 = 0xa0;

/// 1.2.840.113549.1.7.1
const OID_DATA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x01];
/// 1.2.840.113549.1.12.10.1.3
const OID_CERT_BAG: &[u8] = &[
    0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x0c, 0x0a, 0x01, 0x03,
];
/// 1.2.840.113549.1.9.22.1
const OID_X509: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x16, 0x01];
/// 1.2.840.113549.1.9.20
const OID_FRIENDLY_NAME: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x14];
/// 2.16.840.1.113894.746875.1.1, of Oracle: for what Java trusts it.
const OID_TRUSTED_KEY_USAGE: &[u8] = &[
    0x60, 0x86, 0x48, 0x01, 0x86, 0xf9, 0x66, 0xad, 0xca, 0x7b, 0x01, 0x01,
];
/// 2.5.29.37.0: for everything that it says itself.
const OID_ANY_USAGE: &[u8] = &[0x55, 0x1d, 0x25, 0x00];
/// 2.16.840.1.101.3.4.2.1
const OID_SHA256: &[u8] = &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01];

/// RFC 7292, B.3: key material for a MAC.
const MAC_KEY_ID: u8 = 3;
/// As Java's and OpenSSL's own; the password protects nothing secret. In DER's shortest form.
const MAC_ROUNDS: u16 = 10_000;

// ---- Debian ----------------------------------------------------------------

/// A package that puts the roots where `update-ca-certificates` looks, and wakes it.
fn deb(roots: &[&Certificate], now: SystemTime) -> Vec<u8> {
    let version = OffsetDateTime::from(now)
        .format(format_description!(
            "[year][month][day].[hour][minute][second]"
        ))
        .unwrap_or_else(|_| "0".to_owned());
    let seconds = now
        .duration_since(UNIX_EPOCH)
        .unwrap_or(Duration::ZERO)
        .as_secs();
    let control = format!(
        "Package: claviger-ca\nVersion: {version}\nArchitecture: all\nMaintainer: Claviger <root@localhost>\n\
         Section: misc\nPriority: optional\nDepends: ca-certificates\n\
         Description: roots of the internal CA of this organisation's Claviger\n \
         Made by `claviger ca export --format deb`. Holds certificates, and no key.\n"
    );
    let mut tar = Tar::new(seconds);
    tar.directory("./");
    tar.file("./control", control.as_bytes());
    // The package ca-certificates waits for it (deb-triggers(5)).
    tar.file("./triggers", b"activate-noawait update-ca-certificates\n");
    let control = tar.end();
    let mut tar = Tar::new(seconds);
    for directory in [
        "./",
        "./usr/",
        "./usr/local/",
        "./usr/local/share/",
        "./usr/local/share/ca-certificates/",
    ] {
        tar.directory(directory);
    }
    for root in roots {
        let path = format!("./usr/local/share/ca-certificates/{}.crt", alias(root));
        tar.file(&path, x509::to_pem(&root.der).as_bytes());
    }
    let data = tar.end();
    let mut package = b"!<arch>\n".to_vec();
    for (name, content) in [
        ("debian-binary", &b"2.0\n"[..]),
        ("control.tar", &control),
        ("data.tar", &data),
    ] {
        // ar(5): fields of fixed width, and an even length.
        let head = format!(
            "{name:<16}{seconds:<12}{:<6}{:<6}{:<8}{:<10}`\n",
            0,
            0,
            "100644",
            content.len()
        );
        package.extend(head.as_bytes());
        package.extend(content);
        if content.len() % 2 == 1 {
            package.push(b'\n');
        }
    }
    package
}

/// An archive in the format `ustar` (POSIX.1-1988), of root's files.
struct Tar {
    bytes: Vec<u8>,
    seconds: u64,
}

impl Tar {
    fn new(seconds: u64) -> Tar {
        Tar {
            bytes: Vec::new(),
            seconds,
        }
    }

    fn directory(&mut self, path: &str) {
        self.head(path, 0o755, 0, b'5');
    }

    fn file(&mut self, path: &str, content: &[u8]) {
        self.head(path, 0o644, content.len(), b'0');
        self.bytes.extend(content);
        self.bytes
            .resize(self.bytes.len().next_multiple_of(TAR_BLOCK), 0);
    }

    fn head(&mut self, path: &str, mode: u32, size: usize, kind: u8) {
        let mut head = [0; TAR_BLOCK];
        let mut put = |at: usize, text: &[u8]| head[at..at + text.len()].copy_from_slice(text);
        // All of ours are short.
        put(0, &path.as_bytes()[..path.len().min(100)]);
        put(100, format!("{mode:07o}").as_bytes());
        put(108, b"0000000");
        put(116, b"0000000");
        put(124, format!("{size:011o}").as_bytes());
        put(136, format!("{:011o}", self.seconds).as_bytes());
        put(148, b"        ");
        put(156, &[kind]);
        put(257, b"ustar\x0000");
        put(265, b"root");
        put(297, b"root");
        let sum: u32 = head.iter().map(|byte| u32::from(*byte)).sum();
        head[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.bytes.extend(head);
    }

    fn end(mut self) -> Vec<u8> {
        self.bytes.resize(self.bytes.len() + 2 * TAR_BLOCK, 0);
        self.bytes
    }
}

const TAR_BLOCK: usize = 512;

#[cfg(test)]
mod tests {
    use super::*;

    /// What OpenSSL derives: `openssl kdf` has no such function, so this is of a store that
    /// `openssl pkcs12 -verify` accepted; the whole is tried with it and with Java in the tests of
    /// the binary.
    #[test]
    fn a_key_depends_on_password_and_salt() {
        let key = |password: &[u8], salt: &[u8]| mac_key(password, salt).expect("UTF-8").to_vec();
        assert_eq!(key(b"changeit", b"salt"), key(b"changeit\n", b"salt"));
        assert_ne!(key(b"changeit", b"salt"), key(b"changeit", b"tlas"));
        assert_ne!(key(b"changeit", b"salt"), key(b"changeis", b"salt"));
        assert!(mac_key(b"\xff", b"salt").is_none());
    }
}
