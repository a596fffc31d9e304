//! Reading what we need from a certificate.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use time::macros::format_description;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer, X509Certificate};

/// SHA-256 over a SubjectPublicKeyInfo in DER. Certificates with equal ones share a key, whatever
/// else they say.
pub(super) type KeyHash = [u8; 32];

/// The facts of one certificate.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    pub key: KeyHash,
    pub not_before: SystemTime,
    pub not_after: SystemTime,
    /// DNS names of the subjectAltName extension, in lower case.
    pub dns_names: Vec<String>,
    /// Permitted DNS subtrees; empty if there is no such constraint.
    pub permitted: Vec<String>,
    pub is_ca: bool,
}

/// Reads a certificate. `Err` says that it is none.
pub(super) fn facts(der: &CertificateDer<'_>) -> Result<Facts, &'static str> {
    let (rest, cert) =
        X509Certificate::from_der(der).map_err(|_| "is not a readable X.509 certificate")?;
    if !rest.is_empty() {
        return Err("has bytes behind the certificate");
    }
    let mut dns_names = Vec::new();
    let mut permitted = Vec::new();
    for extension in cert.extensions() {
        match extension.parsed_extension() {
            ParsedExtension::SubjectAlternativeName(names) => {
                dns_names.extend(names.general_names.iter().filter_map(dns_name));
            }
            ParsedExtension::NameConstraints(constraints) => {
                let subtrees = constraints.permitted_subtrees.iter().flatten();
                permitted.extend(subtrees.filter_map(|subtree| dns_name(&subtree.base)));
            }
            _ => {}
        }
    }
    Ok(Facts {
        key: key_hash(cert.public_key().raw),
        not_before: system_time(cert.validity().not_before.timestamp()),
        not_after: system_time(cert.validity().not_after.timestamp()),
        dns_names,
        permitted,
        is_ca: cert.is_ca(),
    })
}

/// Whether `cert` says it was issued by `issuer`'s subject and `issuer`'s key made its signature.
/// Validity, constraints and usage are not looked at.
pub(super) fn is_issued_by(cert: &CertificateDer<'_>, issuer: &CertificateDer<'_>) -> bool {
    let (Ok((_, cert)), Ok((_, issuer))) = (
        X509Certificate::from_der(cert),
        X509Certificate::from_der(issuer),
    ) else {
        return false;
    };
    cert.issuer().as_raw() == issuer.subject().as_raw()
        && cert.verify_signature(Some(issuer.public_key())).is_ok()
}

pub(super) fn key_hash(spki_der: &[u8]) -> KeyHash {
    Sha256::digest(spki_der).into()
}

/// Wraps DER in a SEQUENCE.
pub(super) fn sequence(content: &[u8]) -> Vec<u8> {
    let mut der = vec![0x30];
    match u8::try_from(content.len()) {
        Ok(len @ ..0x80) => der.push(len),
        _ => {
            let len = content.len().to_be_bytes();
            let skipped = len.iter().take_while(|byte| **byte == 0).count();
            der.push(0x80 | (len.len() - skipped) as u8);
            der.extend(&len[skipped..]);
        }
    }
    der.extend(content);
    der
}

/// SHA-256 of the whole certificate, as tools show it: `AB:CD:...`.
pub(super) fn fingerprint(der: &CertificateDer<'_>) -> String {
    let digest = Sha256::digest(der.as_ref());
    let pairs: Vec<String> = digest.iter().map(|byte| format!("{byte:02X}")).collect();
    pairs.join(":")
}

/// The day in UTC, for messages.
pub(super) fn day(when: SystemTime) -> String {
    OffsetDateTime::from(when)
        .format(format_description!("[year]-[month]-[day]"))
        .unwrap_or_else(|_| "a day beyond the calendar".to_owned())
}

/// Seconds since 1970, as certificates count.
pub(super) fn system_time(unix: i64) -> SystemTime {
    let span = Duration::from_secs(unix.unsigned_abs());
    if unix < 0 {
        UNIX_EPOCH - span
    } else {
        UNIX_EPOCH + span
    }
}

fn dns_name(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
        _ => None,
    }
}

/// A certificate as text (RFC 7468).
pub(super) fn to_pem(der: &CertificateDer<'_>) -> String {
    let base64 = STANDARD.encode(der);
    let mut text = String::with_capacity(base64.len() * 66 / 64 + 64);
    text.push_str("-----BEGIN CERTIFICATE-----\n");
    let mut rest = base64.as_str();
    while !rest.is_empty() {
        // RFC 7468, 2: lines of exactly 64 characters, save the last.
        let (line, further) = rest.split_at(rest.len().min(64));
        text.push_str(line);
        text.push('\n');
        rest = further;
    }
    text.push_str("-----END CERTIFICATE-----\n");
    text
}
