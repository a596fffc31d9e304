//! [`Store`]: accounts and certificates on disk.
//!
//! ```text
//! account-<digest of the directory's URL>.json   the account and its key    0600
//! HOST.pem                                       key, certificate, chain    0600
//! ```
//!
//! Key and certificate are one file, so that both are replaced in one step. A wildcard's file is
//! called `wildcard.example.com.pem`.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use instant_acme::AccountCredentials;
use nix::fcntl::{Flock, FlockArg};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::pki::PkiError;
use crate::pki::store::{Existing, KEY_MODE, Privacy, read_bounded, write_atomic};
use crate::pki::tls::{LoadedKey, load_certified_key};

/// The directory of accounts and certificates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Store {
    dir: PathBuf,
}

impl Store {
    /// A directory, which need not be there.
    pub fn new(dir: PathBuf) -> Store {
        Store { dir }
    }

    /// The last good certificate of a host. `Ok(None)`: there was none yet.
    ///
    /// # Errors
    /// A file that cannot be read, or holds something else.
    pub fn load(&self, host: &str) -> Result<Option<LoadedKey>, PkiError> {
        let path = self.path(host);
        match load_certified_key(&path, &path, false) {
            Ok(loaded) => Ok(Some(loaded)),
            Err(PkiError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Where a host's certificate is.
    pub fn path(&self, host: &str) -> PathBuf {
        self.dir
            .join(format!("{}.pem", host.replace('*', "wildcard")))
    }

    /// Puts a new certificate in the place of the last one. It must have been looked at.
    pub(super) fn save(&self, host: &str, pem: &str) -> Result<(), PkiError> {
        write_atomic(
            &self.path(host),
            pem.as_bytes(),
            KEY_MODE,
            Existing::Replace,
        )
    }

    /// The account with this authority, if there is one.
    pub(super) fn account(&self, directory: &str) -> Result<Option<AccountCredentials>, PkiError> {
        let path = self.account_path(directory);
        let text = match read_bounded(&path, ACCOUNT_BYTES_MAX, Privacy::NotWorld) {
            Ok(text) => text,
            Err(PkiError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        // The library's error might quote what it read: the key.
        serde_json::from_slice(&text).map(Some).map_err(|_| {
            PkiError::file(
                &path,
                "is no account",
                "move it away: a new account is made, at no loss",
            )
        })
    }

    pub(super) fn save_account(
        &self,
        directory: &str,
        account: &AccountCredentials,
    ) -> Result<(), PkiError> {
        let text = serde_json::to_vec(account).map(Zeroizing::new);
        let text = text.map_err(|_| PkiError::Crypto {
            action: "write the account down",
            problem: "the library refused".to_owned(),
        })?;
        let path = self.account_path(directory);
        write_atomic(&path, &text, KEY_MODE, Existing::Replace)
    }

    /// Moves an account aside that the authority does not know any more.
    pub(super) fn forget_account(&self, directory: &str) {
        let path = self.account_path(directory);
        let _ = fs::rename(&path, path.with_extension("json.unknown"));
    }

    /// Makes the directory, and keeps other processes of ours from obtaining certificates until
    /// dropped. `None`: one of them is at it.
    pub(super) fn lock(&self) -> Result<Option<Flock<File>>, PkiError> {
        let failed = |action: &'static str| {
            let path = self.dir.clone();
            move |source: io::Error| PkiError::Io {
                path,
                action,
                cure: "let the service's user write to `state_dir`".to_owned(),
                source,
            }
        };
        DirBuilder::new()
            .recursive(true)
            .mode(DIR_MODE)
            .create(&self.dir)
            .map_err(failed("create"))?;
        let dir = File::open(&self.dir).map_err(failed("open"))?;
        match Flock::lock(dir, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Some(lock)),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, errno)) => Err(failed("lock")(errno.into())),
        }
    }

    fn account_path(&self, directory: &str) -> PathBuf {
        let digest = Sha256::digest(directory);
        let id: String = digest[..8]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        self.dir.join(format!("account-{id}.json"))
    }
}

impl AsRef<Path> for Store {
    fn as_ref(&self) -> &Path {
        &self.dir
    }
}

/// Keys are in it.
const DIR_MODE: u32 = 0o700;
/// A longer file is no account: one takes less than 1 KiB.
const ACCOUNT_BYTES_MAX: u64 = 64 * 1024;
