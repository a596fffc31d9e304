//! [`Passphrase`]: private keys at rest, encrypted under one (PKCS#8, RFC 5958, by PBES2, RFC 8018).
//!
//! Written with scrypt (RFC 7914) and AES-256 in CBC mode, which OpenSSL 1.1 and later open
//! (`openssl pkey -in root.key`). Read is whatever PBES2 offers with AES: also what
//! `openssl pkey -aes256` and `openssl pkcs8 -topk8` write, with PBKDF2.
//!
//! PBES2 does not authenticate: a file that was tampered with is found out because its key no
//! longer belongs to the certificate beside it, which whoever reads it compares.

use std::fmt;
use std::sync::Arc;

use pkcs8::EncryptedPrivateKeyInfo;
use pkcs8::der::{Decode, Encode};
use pkcs8::pkcs5::EncryptionScheme;
use pkcs8::pkcs5::pbes2::{self, Kdf, Parameters, ScryptParams};
use policy::Secret;
use zeroize::Zeroizing;

use super::{PkiError, x509};

/// What opens a private key. Read from a secret reference; `Debug` shows nothing of it.
///
/// A line break at its end is no part of it, so that a file that an editor wrote will do.
#[derive(Clone)]
pub struct Passphrase(Arc<Secret>);

impl Passphrase {
    /// Takes what was read from a reference.
    ///
    /// # Errors
    /// Nothing but a line break is in it, or it is longer than [`PASSPHRASE_BYTES_MAX`].
    pub fn new(secret: Secret) -> Result<Passphrase, &'static str> {
        match secret.unlock(|bytes| trimmed(bytes).len()) {
            0 => Err("is empty; put a passphrase there, as `openssl rand -hex 32` makes one"),
            1..=PASSPHRASE_BYTES_MAX => Ok(Passphrase(Arc::new(secret))),
            _ => Err("is too long for a passphrase (at most 1,024 bytes)"),
        }
    }

    /// Encrypts a private key (PKCS#8 in DER), as PEM. Takes some tenths of a second and 16 MiB.
    pub(super) fn seal(&self, key: &[u8]) -> Result<Zeroizing<String>, PkiError> {
        let mut random = [0; SALT_BYTES + IV_BYTES];
        getrandom::fill(&mut random).map_err(|err| PkiError::Crypto {
            action: "get random bytes",
            problem: err.to_string(),
        })?;
        let (salt, iv) = random.split_at(SALT_BYTES);
        let failed = |problem: String| PkiError::Crypto {
            action: "encrypt the private key",
            problem,
        };
        let scheme = EncryptionScheme::Pbes2(Parameters {
            kdf: Kdf::Scrypt(ScryptParams {
                salt,
                cost_parameter: SCRYPT_N,
                block_size: SCRYPT_R,
                parallelization: SCRYPT_P,
                key_length: None,
            }),
            encryption: pbes2::EncryptionScheme::Aes256Cbc {
                iv: iv.first_chunk().expect("split so"),
            },
        });
        let encrypted = self
            .0
            .unlock(|passphrase| scheme.encrypt(trimmed(passphrase), key))
            .map_err(|err| failed(err.to_string()))?;
        let der = EncryptedPrivateKeyInfo {
            encryption_algorithm: scheme,
            encrypted_data: &encrypted,
        }
        .to_der()
        .map_err(|err| failed(err.to_string()))?;
        Ok(x509::encrypted_key_to_pem(&der))
    }

    /// Decrypts what is in an `ENCRYPTED PRIVATE KEY` section.
    ///
    /// # Errors
    /// [`Sealed`] says why not.
    pub(super) fn open(&self, der: &[u8]) -> Result<Zeroizing<Vec<u8>>, Sealed> {
        let info = EncryptedPrivateKeyInfo::from_der(der).map_err(|_| Sealed::Unreadable)?;
        let scheme = info.encryption_algorithm.pbes2().ok_or(Sealed::Outdated)?;
        let is_bearable = match &scheme.kdf {
            Kdf::Scrypt(scrypt) => {
                let bytes = scrypt
                    .cost_parameter
                    .saturating_mul(u64::from(scrypt.block_size))
                    .saturating_mul(128);
                bytes <= SCRYPT_BYTES_MAX && scrypt.parallelization <= SCRYPT_P_MAX
            }
            Kdf::Pbkdf2(pbkdf2) => pbkdf2.iteration_count <= PBKDF2_ITERATIONS_MAX,
            _ => return Err(Sealed::Outdated),
        };
        if !is_bearable {
            return Err(Sealed::TooCostly);
        }
        let mut buffer = Zeroizing::new(info.encrypted_data.to_vec());
        let length = self.0.unlock(|passphrase| {
            let opened = scheme.decrypt_in_place(trimmed(passphrase), &mut buffer);
            opened.map(<[u8]>::len)
        });
        let length = length.map_err(|_| Sealed::Wrong)?;
        buffer.truncate(length);
        Ok(buffer)
    }
}

impl fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Passphrase(..)")
    }
}

/// Why an encrypted key was not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sealed {
    /// Not in the form of RFC 5958.
    Unreadable,
    /// By PBES1, or with a function that PBES2 has no more use for.
    Outdated,
    /// It would take more memory or time than a key is worth.
    TooCostly,
    /// With another passphrase.
    Wrong,
}

impl Sealed {
    /// What is wrong, and what helps.
    pub(super) fn explain(self) -> (&'static str, &'static str) {
        match self {
            Sealed::Unreadable => (
                "is no encrypted PKCS#8 key",
                "encrypt the key by `claviger ca encrypt`",
            ),
            Sealed::Outdated => (
                "is encrypted in a way that is not supported",
                "encrypt it anew with PBES2: `openssl pkcs8 -topk8 -v2 aes-256-cbc -scrypt`",
            ),
            Sealed::TooCostly => (
                "asks for more memory or time to open it than is granted",
                "encrypt it anew by `openssl pkcs8 -topk8 -v2 aes-256-cbc -scrypt`",
            ),
            Sealed::Wrong => (
                "is encrypted with another passphrase",
                "name the passphrase that it was encrypted with, by `passphrase` in [ca] or by \
                 --passphrase",
            ),
        }
    }
}

/// Without the line break that an editor leaves.
fn trimmed(bytes: &[u8]) -> &[u8] {
    let bytes = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    bytes.strip_suffix(b"\r").unwrap_or(bytes)
}

/// A longer passphrase is refused: it is another file.
const PASSPHRASE_BYTES_MAX: usize = 1024;

/// 16 MiB: what OpenSSL opens without being told to (its bound is 32 MiB).
const SCRYPT_N: u64 = 1 << 14;
const SCRYPT_R: u16 = 8;
/// With 16 MiB, five times, as OWASP's password storage sheet has it for that much memory.
const SCRYPT_P: u16 = 5;
const SALT_BYTES: usize = 16;
const IV_BYTES: usize = 16;

/// A key that asks for more memory is not opened: it would stand still, or run out.
const SCRYPT_BYTES_MAX: u64 = 512 << 20;
/// A key that asks for more rounds of that memory is not opened.
const SCRYPT_P_MAX: u16 = 64;
/// A key that asks for more rounds is not opened: this many take about half a minute.
const PBKDF2_ITERATIONS_MAX: u32 = 50_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn passphrase(text: &str) -> Passphrase {
        Passphrase::new(Secret::new(text.as_bytes().to_vec())).unwrap()
    }

    #[test]
    fn what_was_sealed_is_opened_by_the_same_passphrase_alone() {
        let key = b"thirty-two bytes of no real key.";
        let pem = passphrase("hunter2").seal(key).unwrap();
        assert!(!pem.contains("thirty"));
        let der = x509::encrypted_key_from_pem(pem.as_bytes()).unwrap();
        assert_eq!(*passphrase("hunter2\n").open(&der).unwrap(), key);
        assert_eq!(passphrase("hunter3").open(&der).unwrap_err(), Sealed::Wrong);
        assert_eq!(
            passphrase("hunter2").open(&der[1..]).unwrap_err(),
            Sealed::Unreadable
        );
    }

    #[test]
    fn a_key_that_would_take_all_memory_is_left_alone() {
        let scheme = EncryptionScheme::Pbes2(Parameters {
            kdf: Kdf::Scrypt(ScryptParams {
                salt: &[1; 16],
                cost_parameter: 1 << 40,
                block_size: 8,
                parallelization: 1,
                key_length: None,
            }),
            encryption: pbes2::EncryptionScheme::Aes256Cbc { iv: &[2; 16] },
        });
        let der = EncryptedPrivateKeyInfo {
            encryption_algorithm: scheme,
            encrypted_data: &[3; 64],
        };
        assert_eq!(
            passphrase("x").open(&der.to_der().unwrap()).unwrap_err(),
            Sealed::TooCostly
        );
    }

    #[test]
    fn a_passphrase_is_not_its_line_break() {
        assert!(Passphrase::new(Secret::new(b"\r\n".to_vec())).is_err());
        assert!(Passphrase::new(Secret::new(vec![b'x'; 1025])).is_err());
        assert_eq!(format!("{:?}", passphrase("hunter2")), "Passphrase(..)");
    }
}
