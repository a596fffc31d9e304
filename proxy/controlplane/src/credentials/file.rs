//! Secrets in files: regular ones, small ones, not everybody's.

use std::collections::HashMap;
use std::fs::{File, Metadata, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak, mpsc};
use std::time::Duration;

use policy::Secret;
use time::OffsetDateTime;
use time::macros::format_description;
use zeroize::Zeroizing;

use super::source::SourceError;
use super::{Fetched, SourcePolicy};

/// Largest file that is read as a secret. Past it the file is refused: a key is
/// rarely longer than a few kilobytes, and a wrong path may lead to a disk image.
pub const SECRET_BYTES_MAX: u64 = 64 * 1024;

/// How long a read may take. Past it the caller goes on without the secret; the
/// thread that hangs is left to the kernel, and until it returns the same file is
/// refused at once.
pub const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// Attempts to read a file that changes meanwhile. Past it the file is refused,
/// and the next change to it is another chance.
const ATTEMPTS_MAX: usize = 4;

/// Reads `path` within [`READ_TIMEOUT`].
pub(super) fn fetch(path: PathBuf, policy: SourcePolicy) -> Result<Fetched, SourceError> {
    within(READ_TIMEOUT, path, move |path| read(path, policy))
}

/// Runs `read` on a thread of its own, for a file system that does not answer
/// keeps the thread that asked, and nothing but the kernel can free it.
fn within(
    limit: Duration,
    path: PathBuf,
    read: impl FnOnce(&Path) -> Result<Fetched, SourceError> + Send + 'static,
) -> Result<Fetched, SourceError> {
    /// Reads that did not come back in time; the thread holds the other end.
    static STUCK: Mutex<Option<HashMap<PathBuf, Weak<()>>>> = Mutex::new(None);
    let stuck = || STUCK.lock().unwrap_or_else(PoisonError::into_inner);

    if let Some(stuck) = stuck().as_mut() {
        stuck.retain(|_, thread| thread.strong_count() > 0);
        if stuck.contains_key(&path) {
            return Err(SourceError::TimedOut { path });
        }
    }
    let alive = Arc::new(());
    let thread = Arc::downgrade(&alive);
    let (sender, receiver) = mpsc::sync_channel(1);
    let to_read = path.clone();
    std::thread::Builder::new()
        .name("secret-read".to_owned())
        .spawn(move || {
            let _alive = alive;
            // Nobody may be waiting any more: then the secret is wiped right here.
            let _ = sender.send(read(&to_read));
        })
        .map_err(|error| SourceError::Unreadable {
            path: path.clone(),
            reason: format!("no thread could be started for it ({})", error.kind()),
            cure: "; raise the limit on tasks (systemd: `TasksMax=`)",
        })?;
    match receiver.recv_timeout(limit) {
        Ok(result) => result,
        Err(mpsc::RecvTimeoutError::Timeout) => {
            stuck()
                .get_or_insert_with(HashMap::new)
                .insert(path.clone(), thread);
            Err(SourceError::TimedOut { path })
        }
        // The thread panicked, and its hook has said where.
        Err(mpsc::RecvTimeoutError::Disconnected) => Err(SourceError::Unreadable {
            path,
            reason: "the reader failed; the log says where".to_owned(),
            cure: "",
        }),
    }
}

fn read(path: &Path, policy: SourcePolicy) -> Result<Fetched, SourceError> {
    for _ in 0..ATTEMPTS_MAX {
        // Looked at before it is opened: opening a device may already do something.
        let before = std::fs::metadata(path).map_err(|error| unreadable(path, &error))?;
        judge(path, &before, policy)?;
        // Without O_NONBLOCK a pipe that was put there meanwhile would hold us.
        let mut file = OpenOptions::new()
            .read(true)
            .custom_flags(nix::libc::O_NONBLOCK | nix::libc::O_NOCTTY | nix::libc::O_CLOEXEC)
            .open(path)
            .map_err(|error| unreadable(path, &error))?;
        let opened = file.metadata().map_err(|error| unreadable(path, &error))?;
        judge(path, &opened, policy)?;
        let secret =
            read_sized(&mut file, opened.len()).map_err(|error| unreadable(path, &error))?;
        let after = file.metadata().map_err(|error| unreadable(path, &error))?;
        let Some(secret) = secret.filter(|_| same_content(&opened, &after)) else {
            continue;
        };
        if secret.is_empty() {
            return Err(SourceError::Empty {
                place: path.display().to_string(),
            });
        }
        return Ok(Fetched {
            secret,
            version: version(&opened),
            watch: Some(path.to_owned()),
        });
    }
    Err(SourceError::Unsteady {
        path: path.to_owned(),
    })
}

/// Reads the whole file into a buffer of its size. `None` if it has another size
/// by now: growing the buffer would leave a copy of the key behind.
fn read_sized(file: &mut File, len: u64) -> std::io::Result<Option<Secret>> {
    let len = usize::try_from(len).unwrap_or(usize::MAX);
    // One more byte, to see that the file ends where it should.
    let mut buffer = Zeroizing::new(vec![0; len + 1]);
    let mut filled = 0;
    loop {
        match file.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        if filled > len {
            return Ok(None);
        }
    }
    if filled != len {
        return Ok(None);
    }
    buffer.truncate(filled);
    // The allocation itself moves on; an empty one is wiped in its place.
    Ok(Some(Secret::new(std::mem::take(&mut *buffer))))
}

/// Refuses what is no file, too large, or everybody's.
fn judge(path: &Path, metadata: &Metadata, policy: SourcePolicy) -> Result<(), SourceError> {
    let path = || path.to_owned();
    if !metadata.is_file() {
        return Err(SourceError::NotRegular {
            path: path(),
            kind: kind(metadata),
        });
    }
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & 0o002 != 0 {
        return Err(SourceError::WorldWritable { path: path(), mode });
    }
    if mode & 0o004 != 0 && !policy.allow_world_readable {
        return Err(SourceError::WorldReadable { path: path(), mode });
    }
    if metadata.len() > SECRET_BYTES_MAX {
        return Err(SourceError::TooLarge { path: path() });
    }
    Ok(())
}

fn kind(metadata: &Metadata) -> &'static str {
    let kind = metadata.file_type();
    if kind.is_dir() {
        "a directory"
    } else if kind.is_fifo() {
        "a named pipe"
    } else if kind.is_socket() {
        "a socket"
    } else {
        "a device"
    }
}

/// Whether nothing was written between the two looks.
fn same_content(before: &Metadata, after: &Metadata) -> bool {
    before.len() == after.len()
        && (before.mtime(), before.mtime_nsec()) == (after.mtime(), after.mtime_nsec())
}

/// The modification time, which says when the key was put there and nothing else.
fn version(metadata: &Metadata) -> String {
    let nanoseconds =
        i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec());
    let format =
        format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]Z");
    OffsetDateTime::from_unix_timestamp_nanos(nanoseconds)
        .ok()
        .and_then(|time| time.format(format).ok())
        // A clock beyond the year 9999: the number is as good a name.
        .unwrap_or_else(|| nanoseconds.to_string())
}

fn unreadable(path: &Path, error: &std::io::Error) -> SourceError {
    let cure = match error.kind() {
        std::io::ErrorKind::NotFound => "; create it, or correct the path",
        std::io::ErrorKind::PermissionDenied => {
            "; let the service's group read it (`chgrp GROUP FILE`, `chmod 640 FILE`) and enter its directories"
        }
        _ => "",
    };
    SourceError::Unreadable {
        path: path.to_owned(),
        reason: error.to_string(),
        cure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::write_private;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::symlink;

    const WORLD: SourcePolicy = SourcePolicy {
        allow_world_readable: true,
    };
    const STRICT: SourcePolicy = SourcePolicy {
        allow_world_readable: false,
    };

    /// `len` bytes with these permissions: is it taken, or what does the refusal say?
    #[track_caller]
    fn check(mode: u32, len: usize, policy: SourcePolicy, expected: Result<(), &str>) {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("key");
        write_private(&path, "k".repeat(len).as_bytes());
        fs::set_permissions(&path, Permissions::from_mode(mode)).expect("owner");
        match (fetch(path.clone(), policy), expected) {
            (Ok(fetched), Ok(())) => assert_eq!(fetched.secret.len(), len),
            (Err(error), Err(text)) => {
                let error = error.to_string();
                assert!(error.contains(text), "{error}");
                assert!(error.contains(&path.display().to_string()), "{error}");
                assert!(!error.contains("kkk"), "{error}");
            }
            (got, expected) => panic!("{got:?} instead of {expected:?}"),
        }
    }

    #[test]
    fn permissions_and_sizes() {
        check(0o600, 32, STRICT, Ok(()));
        check(0o640, 32, STRICT, Ok(()));
        check(0o644, 32, STRICT, Err("allow_world_readable = true"));
        check(0o644, 32, WORLD, Ok(()));
        check(0o646, 32, WORLD, Err("chmod o-w"));
        check(0o602, 32, STRICT, Err("chmod o-w"));
        check(0o600, 0, STRICT, Err("is empty"));
        check(0o600, SECRET_BYTES_MAX as usize, STRICT, Ok(()));
        check(
            0o600,
            SECRET_BYTES_MAX as usize + 1,
            STRICT,
            Err("larger than 65536"),
        );
    }

    #[test]
    fn what_is_no_regular_file_is_refused_at_once() {
        let directory = tempfile::tempdir().expect("a directory");
        let fifo = directory.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR).expect("a pipe");
        let started = std::time::Instant::now();
        for (path, kind) in [
            (fifo, "a named pipe"),
            (directory.path().to_owned(), "a directory"),
            ("/dev/zero".into(), "a device"),
        ] {
            let error = fetch(path, WORLD).expect_err("refused").to_string();
            assert!(error.contains(kind), "{error}");
        }
        assert!(started.elapsed() < READ_TIMEOUT, "nothing waited");
    }

    #[test]
    fn a_missing_file_says_so() {
        let directory = tempfile::tempdir().expect("a directory");
        let error = fetch(directory.path().join("none"), STRICT).expect_err("not there");
        assert!(error.to_string().contains("create it"), "{error}");
    }

    #[test]
    fn kubernetes_links_are_followed_and_the_version_is_the_files() {
        let directory = tempfile::tempdir().expect("a directory");
        let at = |name: &str| directory.path().join(name);
        for (version, seconds) in [("..1", 1_000_000_000), ("..2", 2_000_000_000)] {
            fs::create_dir(at(version)).expect("a directory");
            let path = at(version).join("key");
            write_private(&path, version.as_bytes());
            let file = File::options().write(true).open(path).expect("it is there");
            file.set_modified(
                std::time::UNIX_EPOCH + Duration::from_secs(seconds) + Duration::from_micros(120),
            )
            .expect("owner");
        }
        symlink("..1", at("..data")).expect("a link");
        symlink("..data/key", at("key")).expect("a link");
        let fetched = fetch(at("key"), STRICT).expect("readable");
        assert_eq!(fetched.version, "2001-09-09T01:46:40.000120Z");
        assert_eq!(fetched.watch, Some(at("key")));
        symlink("..2", at("..next")).expect("a link");
        fs::rename(at("..next"), at("..data")).expect("a swap");
        let fetched = fetch(at("key"), STRICT).expect("readable");
        assert_eq!(fetched.version, "2033-05-18T03:33:20.000120Z");
    }

    #[test]
    fn a_read_that_hangs_ends_and_is_not_piled_up() {
        let limit = Duration::from_millis(20);
        let path = PathBuf::from("/not/opened/in/this/test");
        let (release, held) = mpsc::channel::<()>();
        let error = within(limit, path.clone(), move |path| {
            let _ = held.recv();
            Err(SourceError::TooLarge {
                path: path.to_owned(),
            })
        })
        .expect_err("it hangs");
        assert_eq!(error, SourceError::TimedOut { path: path.clone() });
        // While it hangs no second thread is sent after it.
        let error = within(limit, path.clone(), |_| unreachable!("not even started"))
            .expect_err("refused at once");
        assert_eq!(error, SourceError::TimedOut { path: path.clone() });
        // Once the kernel answers, the file may be tried again.
        drop(release);
        let retried = (0..1000).find_map(|_| {
            let result = within(Duration::from_secs(5), path.clone(), |path| {
                Err(SourceError::TooLarge {
                    path: path.to_owned(),
                })
            });
            match result {
                Err(SourceError::TimedOut { .. }) => {
                    std::thread::yield_now();
                    None
                }
                other => Some(other),
            }
        });
        assert!(matches!(retried, Some(Err(SourceError::TooLarge { .. }))));
    }
}
