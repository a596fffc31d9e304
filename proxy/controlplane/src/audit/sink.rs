//! [`Sink`]: the audit file itself, with its rotation.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, fcntl};

use super::{AuditError, AuditSettings, SyncPolicy};

/// How often it is looked whether the file is still at its path.
const MOVED_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// How long after a failed rotation or reopening it is tried again. Meanwhile the
/// old file goes on: a trail in the wrong file beats no trail.
const RETRY_INTERVAL: Duration = Duration::from_secs(10);

/// How long the lock of a file is waited for that another process writes to as well.
/// Past it the attempt counts as refused, and is made again like any other.
const LOCK_WAIT: Duration = Duration::from_secs(1);

/// Time between two attempts to get it. A batch is written in less.
const LOCK_INTERVAL: Duration = Duration::from_millis(1);

/// Whether the audit file can be opened, for `claviger check` and for the start.
/// Creates the file if it is not there.
///
/// # Errors
/// [`AuditError::Open`] with the cure.
pub fn check(settings: &AuditSettings) -> Result<(), AuditError> {
    Sink::open(settings).map(drop)
}

/// The open audit file.
pub(super) struct Sink {
    settings: AuditSettings,
    file: File,
    /// Which file that is: device and inode.
    identity: (u64, u64),
    /// Where it is, behind all links: there it rotates, and the links stay.
    real_path: PathBuf,
    /// `false` for pipes and devices: they have no size, and do not rotate.
    is_regular: bool,
    /// Bytes in the file. Invariant: exact while it is locked.
    len: u64,
    /// Whether the file's lock is ours. Invariant: it is while `torn > 0`.
    locked: bool,
    /// Bytes of an unfinished line at the file's end; 0 at a line's end.
    torn: u64,
    /// The file was found with an unfinished line, which needs a line break first.
    needs_newline: bool,
    not_before: Instant,
    moved_check_due: Instant,
}

impl Sink {
    /// Opens, and creates, the file of `settings`.
    pub(super) fn open(settings: &AuditSettings) -> Result<Self, AuditError> {
        let path = &settings.path;
        let opened = open_for_append(path).and_then(|file| Ok((file.metadata()?, file)));
        let (metadata, file) = opened.map_err(|source| AuditError::Open {
            path: path.clone(),
            cure: match source.kind() {
                ErrorKind::NotFound => "; create its directory",
                ErrorKind::PermissionDenied => {
                    "; give the file and its directory to the service's user"
                }
                _ if source.raw_os_error() == Some(nix::libc::ENXIO) => {
                    "; nobody reads from this pipe"
                }
                _ => "",
            },
            source,
        })?;
        let is_regular = metadata.is_file();
        let now = Instant::now();
        Ok(Self {
            settings: settings.clone(),
            needs_newline: is_regular && ends_torn(path, &metadata),
            file,
            identity: identity(&metadata),
            real_path: std::fs::canonicalize(path).unwrap_or_else(|_| path.clone()),
            is_regular,
            len: metadata.len(),
            locked: false,
            torn: 0,
            not_before: now,
            moved_check_due: now + MOVED_CHECK_INTERVAL,
        })
    }

    /// Takes the file's lock, and looks what has become of the file since. Two processes
    /// write to it while one takes over from the other: each writes whole lines under
    /// the lock, and whoever finds the file put aside goes on in the new one.
    ///
    /// # Errors
    /// `ResourceBusy` when somebody else keeps the lock, or as `fstat(2)`; nothing is
    /// written then.
    pub(super) fn lock(&mut self) -> io::Result<()> {
        if self.locked || !self.is_regular {
            return Ok(());
        }
        let give_up = Instant::now() + LOCK_WAIT;
        loop {
            if !self.try_lock() {
                if Instant::now() >= give_up {
                    return Err(io::Error::new(
                        ErrorKind::ResourceBusy,
                        "another process holds its lock and does not write; \
                         find it with `lslocks` and end it",
                    ));
                }
                std::thread::sleep(LOCK_INTERVAL);
                continue;
            }
            if !self.is_put_aside() {
                break;
            }
            // Dropping the old file gives its lock back.
            self.reopen().map_err(io::Error::other)?;
        }
        let metadata = self.file.metadata()?;
        if self.torn == 0 && (self.needs_newline || metadata.len() != self.len) {
            self.needs_newline = ends_torn(&self.settings.path, &metadata);
        }
        self.len = metadata.len();
        Ok(())
    }

    /// Lets others write, unless a line of ours is unfinished.
    pub(super) fn unlock(&mut self) {
        if self.locked && self.torn == 0 {
            self.locked = false;
            // What cannot be given back goes with the file.
            let _ = fcntl(
                &self.file,
                FcntlArg::F_OFD_SETLK(&whole(nix::libc::F_UNLCK)),
            );
        }
    }

    /// `false`: somebody else has it.
    fn try_lock(&mut self) -> bool {
        use nix::errno::Errno;
        let wanted = whole(nix::libc::F_WRLCK);
        // Of the open file, not of the process: closing another descriptor of the same
        // file, as `reopen` does, must not give it back.
        self.locked = match fcntl(&self.file, FcntlArg::F_OFD_SETLK(&wanted)) {
            Err(Errno::EAGAIN | Errno::EACCES) => false,
            // A file system without locks is written to without.
            Ok(_) | Err(_) => true,
        };
        self.locked
    }

    /// Whether another file is at the path: then somebody has rotated.
    fn is_put_aside(&self) -> bool {
        std::fs::metadata(&self.settings.path)
            .is_ok_and(|found| found.is_file() && identity(&found) != self.identity)
    }

    /// Writes some of `lines`, which are whole lines except that the first one may
    /// have been begun by the call before. Returns how many bytes were taken; fewer
    /// than all is no error. Rotates between lines.
    pub(super) fn write_some(&mut self, lines: &[u8]) -> io::Result<usize> {
        if self.needs_newline {
            if self.file.write(b"\n")? == 0 {
                return Err(ErrorKind::WriteZero.into());
            }
            self.needs_newline = false;
            self.len += 1;
        }
        let fitting = match self.fitting(lines) {
            // What was begun is finished first, however large the file gets.
            _ if self.torn > 0 => end_of_line(lines),
            // Larger than any file may be: it gets one of its own.
            0 if self.len == 0 => end_of_line(lines),
            0 if self.rotate() => self.fitting(lines).max(end_of_line(lines)),
            0 => lines.len(),
            fitting => fitting,
        };
        let written = self.file.write(&lines[..fitting])?;
        if written == 0 {
            return Err(ErrorKind::WriteZero.into());
        }
        self.len += written as u64;
        self.torn = match memrchr(b'\n', &lines[..written]) {
            Some(at) => (written - at - 1) as u64,
            None => self.torn + written as u64,
        };
        Ok(written)
    }

    /// Makes what was written durable, where the settings ask for it.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        if self.settings.sync == SyncPolicy::AfterBatch && self.is_regular {
            self.file.sync_data()?;
        }
        Ok(())
    }

    /// Whether a look at the path is due, so that a file that was moved or removed
    /// is noticed even if nobody sent the signal.
    pub(super) fn is_displaced(&mut self, now: Instant) -> bool {
        if now < self.moved_check_due {
            return false;
        }
        self.moved_check_due = now + MOVED_CHECK_INTERVAL;
        match std::fs::metadata(&self.settings.path) {
            Ok(metadata) => identity(&metadata) != self.identity,
            Err(error) => error.kind() == ErrorKind::NotFound,
        }
    }

    /// Opens the path anew, and leaves the old file whole. Returns how many bytes
    /// of an unfinished line were taken back: they are to be written again.
    ///
    /// # Errors
    /// The new file cannot be opened; the old one goes on.
    pub(super) fn reopen(&mut self) -> Result<u64, AuditError> {
        let fresh = Self::open(&self.settings).inspect_err(|_| {
            // Said once per this time, and not at every look.
            self.moved_check_due = Instant::now() + RETRY_INTERVAL;
        })?;
        // What the old file holds was not synced only if that failed before.
        if let Err(error) = self.sync() {
            tracing::error!(%error, "the end of the old audit file may not be on the disk");
        }
        if fresh.identity == self.identity {
            // The same file: what is torn is simply finished, under the same lock.
            self.real_path = fresh.real_path;
            self.moved_check_due = fresh.moved_check_due;
            return Ok(0);
        }
        let taken_back = self.take_back();
        *self = fresh;
        Ok(taken_back)
    }

    /// Ends the file with a whole line. Returns how many bytes were taken back.
    ///
    /// If they cannot be, because the file is a pipe or somebody else has written
    /// behind us, the torn line stays, and is still written whole elsewhere.
    pub(super) fn take_back(&mut self) -> u64 {
        let torn = std::mem::take(&mut self.torn);
        if torn > 0 && self.is_regular {
            let ours = self.file.metadata().is_ok_and(|now| now.len() == self.len);
            if ours && self.file.set_len(self.len - torn).is_ok() {
                self.len -= torn;
            }
        }
        torn
    }

    /// How many bytes of whole lines fit before the file is full.
    fn fitting(&self, lines: &[u8]) -> usize {
        if self.settings.rotate_bytes == 0 || !self.is_regular {
            return lines.len();
        }
        let room = self.settings.rotate_bytes.saturating_sub(self.len);
        let room = usize::try_from(room).unwrap_or(usize::MAX);
        if room >= lines.len() {
            return lines.len();
        }
        memrchr(b'\n', &lines[..room]).map_or(0, |at| at + 1)
    }

    /// Puts the file aside and begins a new one. `false` means that the old one
    /// goes on, since it could not be done, or was tried only a moment ago.
    fn rotate(&mut self) -> bool {
        let now = Instant::now();
        if now < self.not_before {
            return false;
        }
        match self.try_rotate() {
            Ok(()) => true,
            Err(error) => {
                self.not_before = now + RETRY_INTERVAL;
                tracing::error!(
                    path = %self.settings.path.display(),
                    %error,
                    "the audit file cannot be rotated and goes on growing; let the service's user \
                     write to its directory, and let nothing else be in the way of its numbered files",
                );
                false
            }
        }
    }

    fn try_rotate(&mut self) -> io::Result<()> {
        // Lines of this file would otherwise count as synced with the next one.
        self.sync()?;
        if self.is_put_aside() {
            // Somebody else has rotated: the new file holds lines of theirs.
            self.reopen().map_err(io::Error::other)?;
            return self.lock();
        }
        let path = &self.real_path;
        // The new file is made first: what cannot be made must not cost the old one
        // its name. A left-over of an earlier attempt is ours, and empty.
        let next = numbered(path, "new");
        match std::fs::remove_file(&next) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = options().create_new(true).open(&next)?;
        let metadata = file.metadata()?;
        if self.locked {
            // Before it has its name: so nobody writes to it between.
            let _ = fcntl(&file, FcntlArg::F_OFD_SETLK(&whole(nix::libc::F_WRLCK)));
        }
        let keep = self.settings.keep.max(1);
        for number in (1..keep).rev() {
            match std::fs::rename(numbered(path, number), numbered(path, number + 1)) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        // Somebody may have put another file there: only ours is put aside.
        if std::fs::symlink_metadata(path).is_ok_and(|found| identity(&found) == self.identity) {
            std::fs::rename(path, numbered(path, 1))?;
        }
        std::fs::rename(&next, path)?;
        self.file = file;
        self.identity = identity(&metadata);
        self.len = 0;
        Ok(())
    }
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    // A pipe that nobody reads must fail here, and not hold the start up; a full
    // one is tried again like a full disk.
    options
        .append(true)
        .mode(0o640)
        .custom_flags(nix::libc::O_NONBLOCK | nix::libc::O_NOCTTY);
    options
}

fn open_for_append(path: &Path) -> io::Result<File> {
    options().create(true).open(path)
}

/// A lock of a whole file, as `fcntl(2)` wants it.
fn whole(kind: nix::libc::c_int) -> nix::libc::flock {
    nix::libc::flock {
        l_type: kind as nix::libc::c_short,
        l_whence: nix::libc::SEEK_SET as nix::libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

fn identity(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// Whether the file's last line has no end. If it cannot be read, which the mode
/// may forbid, a line break too many does no harm: JSON lines allow empty ones.
fn ends_torn(path: &Path, metadata: &Metadata) -> bool {
    if metadata.len() == 0 {
        return false;
    }
    let mut last = [0];
    let read = File::open(path).and_then(|file| file.read_exact_at(&mut last, metadata.len() - 1));
    read.is_err() || last != *b"\n"
}

/// `audit.log` and `3` make `audit.log.3`.
fn numbered(path: &Path, suffix: impl std::fmt::Display) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{suffix}"));
    PathBuf::from(name)
}

fn end_of_line(lines: &[u8]) -> usize {
    lines
        .iter()
        .position(|&byte| byte == b'\n')
        .map_or(lines.len(), |at| at + 1)
}

fn memrchr(byte: u8, hay: &[u8]) -> Option<usize> {
    hay.iter().rposition(|&other| other == byte)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    struct Place {
        directory: tempfile::TempDir,
    }

    impl Place {
        fn new() -> Self {
            Self {
                directory: tempfile::tempdir().expect("a directory"),
            }
        }

        fn settings(&self, rotate_bytes: u64, keep: usize) -> AuditSettings {
            AuditSettings {
                rotate_bytes,
                keep,
                ..AuditSettings::new(self.directory.path().join("audit.log"))
            }
        }

        fn read(&self, name: &str) -> String {
            std::fs::read_to_string(self.directory.path().join(name)).expect("it is there")
        }

        fn names(&self) -> Vec<String> {
            let mut names: Vec<_> = std::fs::read_dir(self.directory.path())
                .expect("a directory")
                .map(|entry| {
                    entry
                        .expect("an entry")
                        .file_name()
                        .into_string()
                        .expect("ASCII")
                })
                .collect();
            names.sort();
            names
        }
    }

    fn write_all(sink: &mut Sink, mut lines: &[u8]) {
        while !lines.is_empty() {
            let n = sink.write_some(lines).expect("room on the disk");
            lines = &lines[n..];
        }
    }

    #[test]
    fn files_rotate_between_lines_and_the_oldest_goes() {
        let place = Place::new();
        let mut sink = Sink::open(&place.settings(12, 2)).expect("opens");
        write_all(&mut sink, b"1aaa\n2aaa\n3aaa\n4aaa\n5aaa\n6aaa\n7aaa\n");
        assert_eq!(place.names(), ["audit.log", "audit.log.1", "audit.log.2"]);
        assert_eq!(place.read("audit.log.2"), "3aaa\n4aaa\n");
        assert_eq!(place.read("audit.log.1"), "5aaa\n6aaa\n");
        assert_eq!(place.read("audit.log"), "7aaa\n");
        // A line that no file can hold has one of its own.
        write_all(&mut sink, b"8aaaaaaaaaaaaaaaaaaaaaaa\n9\n");
        assert_eq!(place.read("audit.log.1"), "8aaaaaaaaaaaaaaaaaaaaaaa\n");
        assert_eq!(place.read("audit.log"), "9\n");
    }

    #[test]
    fn the_size_of_a_file_that_was_there_counts() {
        let place = Place::new();
        let settings = place.settings(12, 1);
        write_all(&mut Sink::open(&settings).expect("opens"), b"1aaa\n2aaa\n");
        write_all(&mut Sink::open(&settings).expect("opens"), b"3aaa\n");
        assert_eq!(place.read("audit.log.1"), "1aaa\n2aaa\n");
        assert_eq!(place.read("audit.log"), "3aaa\n");
    }

    #[test]
    fn others_may_not_read_it() {
        let place = Place::new();
        let settings = place.settings(0, 1);
        check(&settings).expect("opens");
        let mode = settings
            .path
            .metadata()
            .expect("it is there")
            .permissions()
            .mode();
        assert_eq!(mode & 0o7117, 0, "{mode:o}");
    }

    #[test]
    fn a_rotation_that_fails_goes_on_in_the_old_file() {
        let place = Place::new();
        let settings = place.settings(5, 1);
        // In the way, and no file: it cannot be replaced, whoever we are.
        let obstacle = place.directory.path().join("audit.log.1");
        std::fs::create_dir_all(obstacle.join("full")).expect("a directory");
        let mut sink = Sink::open(&settings).expect("opens");
        write_all(&mut sink, b"1aaa\n2aaa\n3aaa\n");
        assert_eq!(place.read("audit.log"), "1aaa\n2aaa\n3aaa\n");
        std::fs::remove_dir_all(obstacle).expect("ours");
        sink.not_before = Instant::now();
        write_all(&mut sink, b"4aaa\n");
        assert_eq!(place.read("audit.log.1"), "1aaa\n2aaa\n3aaa\n");
        assert_eq!(place.read("audit.log"), "4aaa\n");
        assert_eq!(place.names(), ["audit.log", "audit.log.1"]);
    }

    #[test]
    fn two_writers_keep_every_line_whole_and_rotate_one_file_once() {
        const LINES: usize = 2000;
        let place = Place::new();
        let settings = place.settings(4000, 1000);
        std::thread::scope(|scope| {
            for writer in ["a", "b"] {
                let settings = &settings;
                scope.spawn(move || {
                    let mut sink = Sink::open(settings).expect("opens");
                    for batch in 0..LINES / 4 {
                        let lines: String = (batch * 4..batch * 4 + 4)
                            .map(|line| format!("{writer}{line}\n"))
                            .collect();
                        sink.lock().expect("the other one gives it back");
                        write_all(&mut sink, lines.as_bytes());
                        sink.unlock();
                    }
                });
            }
        });
        let mut found: Vec<_> = place
            .names()
            .iter()
            .flat_map(|name| {
                let text = place.read(name);
                assert!(text.len() <= 4000 && text.ends_with('\n'), "{name}");
                text.lines().map(str::to_owned).collect::<Vec<_>>()
            })
            .collect();
        found.sort();
        let mut written: Vec<_> = (0..LINES)
            .flat_map(|line| [format!("a{line}"), format!("b{line}")])
            .collect();
        written.sort();
        assert_eq!(found, written);
        assert!(place.names().len() > 4, "{:?}", place.names());
    }

    #[test]
    fn nobody_else_writes_behind_a_line_that_is_begun() {
        let place = Place::new();
        let settings = place.settings(0, 1);
        let mut one = Sink::open(&settings).expect("opens");
        let mut other = Sink::open(&settings).expect("opens");
        one.lock().expect("free");
        write_all(&mut one, b"be");
        one.unlock();
        let error = other.lock().expect_err("the line is not finished");
        assert!(error.to_string().contains("lslocks"), "{error}");
        write_all(&mut one, b"gun\n");
        one.unlock();
        other.lock().expect("free again");
        write_all(&mut other, b"other\n");
        assert_eq!(place.read("audit.log"), "begun\nother\n");
        // Whoever ends takes back what it cannot finish, and frees the file.
        other.unlock();
        one.lock().expect("free");
        write_all(&mut one, b"never fin");
        one.take_back();
        drop(one);
        other.lock().expect("free again");
        write_all(&mut other, b"last\n");
        assert_eq!(place.read("audit.log"), "begun\nother\nlast\n");
    }

    #[test]
    fn a_torn_line_of_an_earlier_process_is_ended_first() {
        let place = Place::new();
        let settings = place.settings(0, 1);
        std::fs::write(&settings.path, "whole\nto").expect("writable");
        write_all(&mut Sink::open(&settings).expect("opens"), b"next\n");
        assert_eq!(place.read("audit.log"), "whole\nto\nnext\n");
    }

    #[test]
    fn a_line_begun_in_a_file_that_is_left_is_taken_back() {
        let place = Place::new();
        let settings = place.settings(0, 1);
        let mut sink = Sink::open(&settings).expect("opens");
        // As a disk that fills up within the second line would have it.
        write_all(&mut sink, b"whole\nto");
        std::fs::rename(&settings.path, place.directory.path().join("moved")).expect("ours");
        assert_eq!(sink.reopen().expect("opens"), 2);
        write_all(&mut sink, b"torn\n");
        assert_eq!(place.read("moved"), "whole\n");
        assert_eq!(place.read("audit.log"), "torn\n");
        // Reopening the same file takes nothing back.
        write_all(&mut sink, b"be");
        assert_eq!(sink.reopen().expect("opens"), 0);
        write_all(&mut sink, b"gun\n");
        assert_eq!(place.read("audit.log"), "torn\nbegun\n");
    }

    #[test]
    fn what_cannot_be_opened_says_what_helps() {
        let place = Place::new();
        let mut settings = place.settings(0, 1);
        settings.path = place.directory.path().join("missing/audit.log");
        let error = check(&settings).expect_err("no directory").to_string();
        assert!(error.contains("create its directory"), "{error}");
        settings.path = place.directory.path().join("pipe");
        nix::unistd::mkfifo(&settings.path, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
        let error = check(&settings).expect_err("no reader").to_string();
        assert!(error.contains("nobody reads"), "{error}");
    }
}
