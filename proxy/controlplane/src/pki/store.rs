//! [`CaDir`]: the files of a certificate authority on disk, and how files with keys are read and
//! written at all.
//!
//! ```text
//! root.pem          what callers trust                       0644
//! root.key          signs intermediates; can be kept offline 0600
//! intermediate.pem  sent with each leaf                      0644
//! intermediate.key  signs leaves                             0600
//! state.json        every key this authority ever used       0644
//! next-*, former-*  the other root of a roll-over            see `rollover`
//! replaced-<time>/  what `ca init --force` moved aside
//! ```
//!
//! A file appears whole or not at all: it is written under another name, synced, and renamed. The
//! directory itself is locked while its files are replaced. Where root writes into the directory
//! of a service user, files become that user's, and a file that is replaced keeps its owner and
//! its group's right to read: the service must be able to read them after it drops privileges.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use nix::fcntl::{Flock, FlockArg};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::{self, PemObject};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::PkiError;
use super::x509::KeyHash;

/// The directory of one certificate authority.
#[derive(Clone, Debug)]
pub(super) struct CaDir {
    dir: PathBuf,
}

impl CaDir {
    pub(super) fn new(dir: &Path) -> CaDir {
        CaDir {
            dir: dir.to_owned(),
        }
    }

    pub(super) fn root_pem(&self) -> PathBuf {
        self.dir.join("root.pem")
    }

    pub(super) fn root_key(&self) -> PathBuf {
        self.dir.join("root.key")
    }

    pub(super) fn intermediate_pem(&self) -> PathBuf {
        self.dir.join("intermediate.pem")
    }

    pub(super) fn intermediate_key(&self) -> PathBuf {
        self.dir.join("intermediate.key")
    }

    pub(super) fn state_json(&self) -> PathBuf {
        self.dir.join("state.json")
    }

    /// Makes the directory for its owner alone, or takes one that is there.
    ///
    /// # Errors
    /// One that is open to others and not empty: it serves something else, and closing it would
    /// break that.
    pub(super) fn create(&self) -> Result<(), PkiError> {
        let failed = |action| move |source| io_error(&self.dir, action, source);
        DirBuilder::new()
            .recursive(true)
            .mode(DIR_MODE)
            .create(&self.dir)
            .map_err(failed("create"))?;
        let metadata = fs::metadata(&self.dir).map_err(failed("read"))?;
        if metadata.mode() & 0o027 == 0 {
            return Ok(());
        }
        let empty = fs::read_dir(&self.dir)
            .map_err(failed("read"))?
            .next()
            .is_none();
        if !empty {
            return Err(PkiError::file(
                &self.dir,
                format!(
                    "is open to others (mode {:04o}) and not empty",
                    metadata.mode() & 0o7777
                ),
                "name a directory of its own for the authority",
            ));
        }
        fs::set_permissions(&self.dir, Permissions::from_mode(DIR_MODE))
            .map_err(failed("make private"))
    }

    /// Waits until no other process replaces files here, and keeps others out until dropped.
    pub(super) fn lock(&self) -> Result<Flock<File>, PkiError> {
        let failed = |source| io_error(&self.dir, "lock", source);
        let dir = File::open(&self.dir).map_err(failed)?;
        Flock::lock(dir, FlockArg::LockExclusive).map_err(|(_, errno)| failed(errno.into()))
    }

    /// Waits until no other process replaces files here, as well as that can be done by a process
    /// that may only read.
    pub(super) fn lock_to_read(&self) -> Option<Flock<File>> {
        let dir = File::open(&self.dir).ok()?;
        Flock::lock(dir, FlockArg::LockShared).ok()
    }

    /// The first of our files that is already there.
    pub(super) fn occupied(&self) -> Option<PathBuf> {
        self.files()
            .into_iter()
            .find(|path| path.symlink_metadata().is_ok())
    }

    /// Moves what is here into a directory beside it, so that `--force` destroys nothing.
    pub(super) fn set_aside(&self, now: SystemTime) -> Result<PathBuf, PkiError> {
        self.set_aside_these(&self.files(), now)
    }

    /// The same of some of the files.
    pub(super) fn set_aside_these(
        &self,
        files: &[PathBuf],
        now: SystemTime,
    ) -> Result<PathBuf, PkiError> {
        let seconds = now
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        let aside = (0u32..)
            .map(|turn| match turn {
                0 => self.dir.join(format!("replaced-{seconds}")),
                turn => self.dir.join(format!("replaced-{seconds}-{turn}")),
            })
            .find(|path| !path.exists())
            .unwrap_or_else(|| self.dir.join("replaced"));
        DirBuilder::new()
            .mode(DIR_MODE)
            .create(&aside)
            .map_err(|source| io_error(&aside, "create", source))?;
        for path in files {
            if let Some(name) = path.file_name()
                && path.symlink_metadata().is_ok()
            {
                fs::rename(path, aside.join(name))
                    .map_err(|source| io_error(path, "move aside", source))?;
            }
        }
        sync_dir(&self.dir)?;
        Ok(aside)
    }

    /// What this authority remembers. A directory without the file remembers nothing.
    pub(super) fn read_state(&self) -> Result<State, PkiError> {
        let path = self.state_json();
        let text = match read_bounded(&path, STATE_BYTES_MAX, Privacy::Any) {
            Ok(text) => text,
            Err(PkiError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Ok(State::default());
            }
            Err(err) => return Err(err),
        };
        let broken = |problem: String| {
            PkiError::file(
                &path,
                problem,
                "move it away: it is made anew, and forgets only the keys of former intermediates",
            )
        };
        let state: State = serde_json::from_slice(&text)
            .map_err(|err| broken(format!("is not a state file ({err})")))?;
        if state.version != STATE_VERSION {
            return Err(broken(format!(
                "is of version {}, this program knows version {STATE_VERSION}",
                state.version
            )));
        }
        Ok(state)
    }

    pub(super) fn write_state(&self, state: &State) -> Result<(), PkiError> {
        let mut text = serde_json::to_vec_pretty(state).map_err(|err| PkiError::Crypto {
            action: "write the state file",
            problem: err.to_string(),
        })?;
        text.push(b'\n');
        write_atomic(&self.state_json(), &text, CERT_MODE, Existing::Replace)
    }

    /// A file of the root that is to come (`next`) or that was (`former`) in a roll-over.
    pub(super) fn other_root(&self, which: &str, file: &str) -> PathBuf {
        self.dir.join(format!("{which}-{file}"))
    }

    /// Where private keys may be.
    pub(super) fn keys(&self) -> Vec<PathBuf> {
        vec![
            self.root_key(),
            self.intermediate_key(),
            self.other_root("next", "root.key"),
            self.other_root("former", "root.key"),
        ]
    }

    fn files(&self) -> Vec<PathBuf> {
        let mut files = vec![
            self.root_pem(),
            self.root_key(),
            self.intermediate_pem(),
            self.intermediate_key(),
            self.state_json(),
        ];
        files.extend(self.rollover_files("next"));
        files.extend(self.rollover_files("former"));
        files
    }

    /// What a roll-over leaves beside the usual files.
    pub(super) fn rollover_files(&self, which: &str) -> Vec<PathBuf> {
        ROLLOVER_FILES
            .iter()
            .map(|file| self.other_root(which, file))
            .collect()
    }
}

/// What `state.json` holds: nothing secret.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct State {
    version: u32,
    /// Keys of every root and intermediate of this directory that has not expired, so that a
    /// chain of a replaced one is still known as ours.
    pub keys: Vec<OwnKey>,
}

/// One key that signed, or signs, for this authority.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OwnKey {
    pub role: Role,
    /// SHA-256 over the SubjectPublicKeyInfo, in hex.
    pub spki_sha256: String,
    /// End of its certificate, in seconds since 1970.
    pub not_after: i64,
}

/// What a key of ours signs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Role {
    Root,
    Intermediate,
}

impl Default for State {
    fn default() -> State {
        State {
            version: STATE_VERSION,
            keys: Vec::new(),
        }
    }
}

impl State {
    /// Remembers a key, and forgets those whose certificates no longer verify anywhere.
    pub(super) fn remember(
        &mut self,
        role: Role,
        key: &KeyHash,
        not_after: SystemTime,
        now: SystemTime,
    ) {
        let now = unix(now);
        let spki_sha256 = hex(key);
        self.keys
            .retain(|known| known.not_after >= now && known.spki_sha256 != spki_sha256);
        self.keys.push(OwnKey {
            role,
            spki_sha256,
            not_after: unix(not_after),
        });
    }

    /// The hashes of all remembered keys. An entry that is no hash is skipped.
    pub(super) fn key_hashes(&self) -> impl Iterator<Item = KeyHash> {
        self.keys.iter().filter_map(|key| unhex(&key.spki_sha256))
    }
}

/// Who may read a file for us to use it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Privacy {
    /// Anyone.
    Any,
    /// Not the whole machine: a key that every local user can read is no secret.
    NotWorld,
}

/// Reads a whole file of bounded size. The content is wiped from memory when dropped.
pub(super) fn read_bounded(
    path: &Path,
    bytes_max: u64,
    privacy: Privacy,
) -> Result<Zeroizing<Vec<u8>>, PkiError> {
    let failed = |source| io_error(path, "read", source);
    let file = File::open(path).map_err(failed)?;
    // The open file is asked, not the path: what was checked is what is read.
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(PkiError::file(path, "is not a regular file", "name a file"));
    }
    if metadata.len() > bytes_max {
        return Err(PkiError::file(
            path,
            format!("is larger than {bytes_max} bytes"),
            "name a PEM file that holds only what is asked for",
        ));
    }
    if privacy == Privacy::NotWorld && metadata.mode() & 0o007 != 0 {
        return Err(PkiError::file(
            path,
            format!(
                "is open to every user of this machine (mode {:04o})",
                metadata.mode() & 0o7777
            ),
            format!("`chmod 0600 {}`", path.display()),
        ));
    }
    // All room at once: a vector that grows leaves copies behind that nobody wipes.
    let mut content = Zeroizing::new(Vec::with_capacity(
        bytes_max.min(metadata.len() + 1) as usize
    ));
    file.take(bytes_max)
        .read_to_end(&mut content)
        .map_err(failed)?;
    Ok(content)
}

/// Reads every certificate of a PEM file, in order; other sections are skipped.
pub(super) fn read_certificates(
    path: &Path,
    bytes_max: u64,
) -> Result<Vec<CertificateDer<'static>>, PkiError> {
    let content = read_bounded(path, bytes_max, Privacy::Any)?;
    let certificates = CertificateDer::pem_slice_iter(&content)
        .collect::<Result<Vec<_>, pem::Error>>()
        .map_err(|err| PkiError::file(path, format!("is not valid PEM ({err})"), PEM_CURE))?;
    if certificates.is_empty() {
        return Err(PkiError::file(path, "holds no certificate", PEM_CURE));
    }
    Ok(certificates)
}

/// What to do with a file that is already there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Existing {
    Replace,
    Keep,
}

/// Writes a file so that others see the old one or the whole new one, also after a power cut.
pub(super) fn write_atomic(
    path: &Path,
    content: &[u8],
    mode: u32,
    existing: Existing,
) -> Result<(), PkiError> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(PkiError::file(path, "is not a file's path", "name a file"));
    };
    let dir = if dir.as_os_str().is_empty() {
        Path::new(".")
    } else {
        dir
    };
    let mut random = [0; 8];
    getrandom::fill(&mut random).map_err(|err| PkiError::Crypto {
        action: "get random bytes",
        problem: err.to_string(),
    })?;
    let temporary = dir.join(format!(".{}.{}.tmp", name.display(), hex(&random)));
    let written = write_synced(dir, path, &temporary, content, mode, existing).and_then(|()| {
        match existing {
            Existing::Replace => fs::rename(&temporary, path),
            // A link fails where a rename would silently replace.
            Existing::Keep => {
                fs::hard_link(&temporary, path).and_then(|()| fs::remove_file(&temporary))
            }
        }
    });
    match written {
        Ok(()) => sync_dir(dir),
        Err(source) => {
            // The first error is the one to tell; the name is random, so nobody trips over the rest.
            let _ = fs::remove_file(&temporary);
            if source.kind() == io::ErrorKind::AlreadyExists {
                return Err(PkiError::Exists {
                    path: path.to_owned(),
                    cure: "give `--force` to replace it".to_owned(),
                });
            }
            Err(io_error(path, "write", source))
        }
    }
}

fn write_synced(
    dir: &Path,
    path: &Path,
    temporary: &Path,
    content: &[u8],
    mode: u32,
    existing: Existing,
) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(temporary)?;
    let made = file.metadata()?;
    let former = match existing {
        Existing::Replace => path.symlink_metadata().ok().filter(fs::Metadata::is_file),
        Existing::Keep => None,
    };
    let model = match former {
        Some(ref former) => former,
        None => &fs::metadata(dir)?,
    };
    // Only root can give files away; for others these are equal, or the attempt is pointless.
    if nix::unistd::geteuid().is_root() && (made.uid(), made.gid()) != (model.uid(), model.gid()) {
        fchown(&file, Some(model.uid()), Some(model.gid()))?;
    }
    // Set again: the umask may have taken bits away.
    let group_reads = former.map_or(0, |former| former.mode() & 0o040);
    file.set_permissions(Permissions::from_mode(mode | group_reads))?;
    file.write_all(content)?;
    file.sync_all()
}

fn sync_dir(dir: &Path) -> Result<(), PkiError> {
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(|source| io_error(dir, "sync", source))
}

/// An I/O error with the cure that its kind suggests.
fn io_error(path: &Path, action: &'static str, source: io::Error) -> PkiError {
    let cure = match source.kind() {
        io::ErrorKind::NotFound => "check the path".to_owned(),
        io::ErrorKind::PermissionDenied => {
            "run as the user that owns it, or give that user access".to_owned()
        }
        io::ErrorKind::ReadOnlyFilesystem => {
            "name a writable directory, or mount it writable".to_owned()
        }
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "free some room".to_owned(),
        _ => "see the system's message".to_owned(),
    };
    PkiError::Io {
        path: path.to_owned(),
        action,
        cure,
        source,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<KeyHash> {
    let mut hash = KeyHash::default();
    if text.len() != hash.len() * 2 || !text.is_ascii() {
        return None;
    }
    for (index, byte) in hash.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[index * 2..index * 2 + 2], 16).ok()?;
    }
    Some(hash)
}

fn unix(when: SystemTime) -> i64 {
    match when.duration_since(UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_secs()).map_or(i64::MIN, |secs| -secs),
    }
}

/// Root, its key, and the roots signed across.
const ROLLOVER_FILES: [&str; 4] = ["root.pem", "root.key", "cross.pem", "back.pem"];

/// Key files: their owner only.
pub(super) const KEY_MODE: u32 = 0o600;
/// Certificates are public.
pub(super) const CERT_MODE: u32 = 0o644;
const DIR_MODE: u32 = 0o700;

/// A key file above this is refused as something else. An RSA key of 8,192 bits takes 6.4 KiB.
pub(super) const KEY_BYTES_MAX: u64 = 64 * 1024;
/// A certificate file above this is refused. Debian's whole bundle takes 220 KiB.
pub(super) const CERT_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// A revocation list above this is refused. Of 30 bytes an entry, it names half a million.
pub(super) const CRL_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// A state file above this is refused; at 150 bytes a key it holds a thousand times what comes up.
const STATE_BYTES_MAX: u64 = 1024 * 1024;
const STATE_VERSION: u32 = 1;

pub(super) const PEM_CURE: &str =
    "expected one or more `-----BEGIN CERTIFICATE-----` sections (PEM)";

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn files_are_private_whole_and_not_overwritten_by_chance() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.key");
        write_atomic(&path, b"one", KEY_MODE, Existing::Keep).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        let error = write_atomic(&path, b"two", KEY_MODE, Existing::Keep).unwrap_err();
        assert!(error.to_string().contains("--force"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"one");
        write_atomic(&path, b"three", KEY_MODE, Existing::Replace).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"three");
        // The group's right to read survives, and no other.
        fs::set_permissions(&path, Permissions::from_mode(0o664)).unwrap();
        write_atomic(&path, b"four", KEY_MODE, Existing::Replace).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o640);
        // Nothing temporary stays.
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_key_that_everyone_can_read_is_refused_with_the_cure() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.key");
        fs::write(&path, b"x").unwrap();
        for (mode, privacy, accepted) in [
            (0o600, Privacy::NotWorld, true),
            (0o640, Privacy::NotWorld, true),
            (0o644, Privacy::NotWorld, false),
            (0o602, Privacy::NotWorld, false),
            (0o644, Privacy::Any, true),
        ] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            let read = read_bounded(&path, 10, privacy);
            assert_eq!(read.is_ok(), accepted, "{mode:o}");
            if let Err(error) = read {
                assert!(error.to_string().contains("chmod 0600"), "{error}");
            }
        }
        assert!(read_bounded(dir.path(), 10, Privacy::Any).is_err());
        fs::write(&path, b"longer than ten").unwrap();
        assert!(read_bounded(&path, 10, Privacy::Any).is_err());
    }

    #[test]
    fn a_directory_of_others_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let mode = || fs::metadata(dir.path()).unwrap().mode() & 0o7777;
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        fs::write(dir.path().join("theirs"), "").unwrap();
        let error = CaDir::new(dir.path()).create().unwrap_err().to_string();
        assert!(
            error.contains("mode 0755") && error.contains("of its own"),
            "{error}"
        );
        assert_eq!(mode(), 0o755);
        fs::remove_file(dir.path().join("theirs")).unwrap();
        CaDir::new(dir.path()).create().unwrap();
        assert_eq!(mode(), 0o700);
    }

    #[test]
    fn what_root_writes_belongs_to_the_service_user() {
        if !nix::unistd::geteuid().is_root() {
            // Nobody else can give files away, so there is nothing to see.
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::chown(dir.path(), Some(12_345), Some(12_346)).unwrap();
        let path = dir.path().join("a.key");
        for existing in [Existing::Keep, Existing::Replace] {
            write_atomic(&path, b"", KEY_MODE, existing).unwrap();
            let metadata = fs::metadata(&path).unwrap();
            assert_eq!((metadata.uid(), metadata.gid()), (12_345, 12_346));
        }
        // A file's own owner goes before the directory's.
        std::os::unix::fs::chown(&path, Some(12_347), None).unwrap();
        write_atomic(&path, b"", KEY_MODE, Existing::Replace).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().uid(), 12_347);
    }

    #[test]
    fn state_remembers_live_keys_and_forgets_expired_ones() {
        let dir = tempfile::tempdir().unwrap();
        let ca = CaDir::new(dir.path());
        let now = UNIX_EPOCH + Duration::from_secs(1_000_000);
        let later = now + Duration::from_secs(100);
        let mut state = ca.read_state().unwrap();
        state.remember(Role::Root, &[1; 32], later, now);
        state.remember(
            Role::Intermediate,
            &[2; 32],
            now + Duration::from_secs(10),
            now,
        );
        ca.write_state(&state).unwrap();
        let mut state = ca.read_state().unwrap();
        assert_eq!(state.key_hashes().collect::<Vec<_>>(), [[1; 32], [2; 32]]);
        state.remember(
            Role::Intermediate,
            &[3; 32],
            later,
            now + Duration::from_secs(11),
        );
        assert_eq!(state.key_hashes().collect::<Vec<_>>(), [[1; 32], [3; 32]]);
        fs::write(ca.state_json(), b"{}").unwrap();
        assert!(
            ca.read_state()
                .unwrap_err()
                .to_string()
                .contains("move it away")
        );
    }
}
