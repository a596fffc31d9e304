//! Reading what we need from a certificate.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use time::macros::format_description;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::revocation_list::CertificateRevocationList;
use zeroize::Zeroizing;

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
    /// How many authorities may be below this one; `None` is any number.
    pub path_len: Option<u32>,
    /// The common name of the subject, or all of the subject if it has none.
    pub subject: String,
}

/// When the next revocation list is due. `Err` says that this is none.
pub(super) fn crl_next_update(
    der: &CertificateRevocationListDer<'_>,
) -> Result<Option<SystemTime>, &'static str> {
    let (rest, list) = CertificateRevocationList::from_der(der.as_ref())
        .map_err(|_| "is not a readable revocation list")?;
    if !rest.is_empty() {
        return Err("has bytes behind the revocation list");
    }
    Ok(list.next_update().map(|due| system_time(due.timestamp())))
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
        path_len: cert
            .basic_constraints()
            .ok()
            .flatten()
            .and_then(|constraints| constraints.value.path_len_constraint),
        subject: match cert.subject().iter_common_name().next() {
            Some(name) => name.as_str().unwrap_or_default().to_owned(),
            None => cert.subject().to_string(),
        },
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

/// Whether two certificates are about the same name, byte by byte, as issuers are looked up.
pub(super) fn same_subject(one: &CertificateDer<'_>, other: &CertificateDer<'_>) -> bool {
    let (Ok((_, one)), Ok((_, other))) = (
        X509Certificate::from_der(one),
        X509Certificate::from_der(other),
    ) else {
        return false;
    };
    one.subject().as_raw() == other.subject().as_raw()
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

/// The minute in UTC, for messages.
pub(super) fn moment(when: SystemTime) -> String {
    OffsetDateTime::from(when)
        .format(format_description!(
            "[year]-[month]-[day] [hour]:[minute] UTC"
        ))
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
    let mut text = String::new();
    write_pem("CERTIFICATE", der, &mut text);
    text
}

/// A private key in PKCS#8 as text; it is wiped from memory when dropped.
pub(super) fn key_to_pem(der: &[u8]) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::new());
    write_pem("PRIVATE KEY", der, &mut text);
    text
}

/// A private key under a passphrase (`EncryptedPrivateKeyInfo`) as text.
pub(super) fn encrypted_key_to_pem(der: &[u8]) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::new());
    write_pem(ENCRYPTED_KEY, der, &mut text);
    text
}

/// The `EncryptedPrivateKeyInfo` of a PEM file; `None` if there is none in it.
pub(super) fn encrypted_key_from_pem(content: &[u8]) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(content).ok()?;
    let (_, rest) = text.split_once(&format!("-----BEGIN {ENCRYPTED_KEY}-----"))?;
    let (body, _) = rest.split_once(&format!("-----END {ENCRYPTED_KEY}-----"))?;
    let base64: String = body.split_ascii_whitespace().collect();
    STANDARD.decode(base64).ok()
}

fn write_pem(label: &str, der: &[u8], text: &mut String) {
    let base64 = Zeroizing::new(STANDARD.encode(der));
    // All room at once: a string that grows leaves copies behind that nobody wipes.
    text.reserve_exact(base64.len() + base64.len() / LINE + 2 * label.len() + 40);
    text.push_str(&format!("-----BEGIN {label}-----\n"));
    let mut rest = base64.as_str();
    while !rest.is_empty() {
        let (line, further) = rest.split_at(rest.len().min(LINE));
        text.push_str(line);
        text.push('\n');
        rest = further;
    }
    text.push_str(&format!("-----END {label}-----\n"));
}

/// RFC 7468, 11.
const ENCRYPTED_KEY: &str = "ENCRYPTED PRIVATE KEY";
/// RFC 7468, 2: lines of exactly 64 characters, save the last.
const LINE: usize = 64;

#[cfg(test)]
mod tests {
    use rustls::RootCertStore;
    use rustls::pki_types::PrivateKeyDer;
    use rustls::pki_types::pem::PemObject;
    use rustls::server::ParsedCertificate;

    use super::*;

    /// Three readers of one key: x509-parser, webpki of a presented certificate, webpki of a trust
    /// anchor. The refusal of our own authority rests on their agreement.
    #[test]
    fn a_key_has_one_hash_whoever_reads_it() {
        for algorithm in [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_RSA_SHA256] {
            let key = rcgen::KeyPair::generate_for(algorithm).unwrap();
            let params = rcgen::CertificateParams::new(vec!["a.example".to_owned()]).unwrap();
            let cert = params.self_signed(&key).unwrap();
            let hash = facts(cert.der()).unwrap().key;
            let presented = ParsedCertificate::try_from(cert.der()).unwrap();
            assert_eq!(hash, key_hash(&presented.subject_public_key_info()));
            let mut store = RootCertStore::empty();
            store.add(cert.der().clone()).unwrap();
            assert_eq!(
                hash,
                key_hash(&sequence(&store.roots[0].subject_public_key_info))
            );
            assert!(is_issued_by(cert.der(), cert.der()));
        }
    }

    #[test]
    fn sequences_have_minimal_lengths() {
        for (len, head) in [
            (0, &[0x30, 0][..]),
            (127, &[0x30, 127]),
            (128, &[0x30, 0x81, 128]),
            (255, &[0x30, 0x81, 255]),
            (256, &[0x30, 0x82, 1, 0]),
            (65_536, &[0x30, 0x83, 1, 0, 0]),
        ] {
            let der = sequence(&vec![7; len]);
            assert_eq!(&der[..head.len()], head);
            assert_eq!(der.len(), head.len() + len);
        }
    }

    #[test]
    fn text_reads_back() {
        for len in [0, 1, 47, 48, 49, 1_000] {
            let der: Vec<u8> = (0..len).map(|n| n as u8).collect();
            let text = to_pem(&CertificateDer::from(der.clone()));
            assert!(text.lines().all(|line| line.len() <= LINE));
            assert_eq!(
                CertificateDer::from_pem_slice(text.as_bytes())
                    .unwrap()
                    .as_ref(),
                der
            );
            let key = key_to_pem(&der);
            assert!(key.capacity() >= key.len());
            assert_eq!(
                PrivateKeyDer::from_pem_slice(key.as_bytes())
                    .unwrap()
                    .secret_der(),
                der
            );
        }
    }
}
