//! TLS alerts (RFC 8446, section 6), in clear text before a session and sealed within it.

use rustls::crypto::cipher::{AeadKey, Iv, OutboundChunks, OutboundPlainMessage};
use rustls::{
    ConnectionTrafficSecrets, ContentType, ProtocolVersion, ServerConnection, SupportedCipherSuite,
};
use serde::Deserialize;

/// A fatal alert, by its name in the RFC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "the names are those of the RFC")]
#[repr(u8)]
pub enum Alert {
    UnexpectedMessage = 10,
    BadRecordMac = 20,
    RecordOverflow = 22,
    HandshakeFailure = 40,
    BadCertificate = 42,
    UnsupportedCertificate = 43,
    CertificateRevoked = 44,
    CertificateExpired = 45,
    CertificateUnknown = 46,
    IllegalParameter = 47,
    UnknownCa = 48,
    AccessDenied = 49,
    DecodeError = 50,
    DecryptError = 51,
    ProtocolVersion = 70,
    InsufficientSecurity = 71,
    InternalError = 80,
    InappropriateFallback = 86,
    UserCanceled = 90,
    MissingExtension = 109,
    UnsupportedExtension = 110,
    UnrecognizedName = 112,
    CertificateRequired = 116,
    NoApplicationProtocol = 120,
}

impl Alert {
    /// The record, in clear text.
    pub fn record(self) -> [u8; 7] {
        [21, 3, 3, 0, 2, FATAL, self as u8]
    }

    /// The record as the next one of this session. Everything pending must have been taken from
    /// the session before; it is of no use afterwards.
    ///
    /// # Errors
    ///
    /// The session is not established, or its cipher suite cannot hand out its keys.
    pub fn seal(self, session: ServerConnection) -> Result<Vec<u8>, rustls::Error> {
        let suite = session
            .negotiated_cipher_suite()
            .ok_or(rustls::Error::HandshakeNotComplete)?;
        let (sequence, secrets) = session.dangerous_extract_secrets()?.tx;
        let (key, iv): (AeadKey, Iv) = match secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv }
            | ConnectionTrafficSecrets::Aes256Gcm { key, iv }
            | ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (key, iv),
            _ => return Err(rustls::Error::General("an unknown kind of keys".into())),
        };
        let mut encrypter = match suite {
            SupportedCipherSuite::Tls13(suite) => suite.aead_alg.encrypter(key, iv),
            SupportedCipherSuite::Tls12(suite) => {
                // What rustls hands out joined, it wants back in its parts.
                let fixed = suite.aead_alg.key_block_shape().fixed_iv_len;
                let (fixed, explicit) = iv.as_ref().split_at(fixed);
                suite.aead_alg.encrypter(key, fixed, explicit)
            }
        };
        let payload = [FATAL, self as u8];
        let alert = OutboundPlainMessage {
            typ: ContentType::Alert,
            version: ProtocolVersion::TLSv1_2,
            payload: OutboundChunks::Single(&payload),
        };
        Ok(encrypter.encrypt(alert, sequence)?.encode())
    }
}

/// The alert level that ends a session.
const FATAL: u8 = 2;
