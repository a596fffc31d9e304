//! Files: which are looked at, and how they are read.
//!
//! Links are not followed, so that a hunt stays where it was sent and comes round to nothing
//! twice. Only regular files are opened, and without waiting: a pipe or a device does not hold
//! it up, nor does it set anything off. Kernel file systems (`/proc`, `/sys`) are passed over.
//!
//! It deliberately lacks archives and compressed files: nobody's program reads its key there.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use ignore::WalkBuilder;
use ignore::overrides::OverrideBuilder;
use nix::sys::statfs;
use zeroize::Zeroizing;

use super::report::{Finding, Passed, Place, Result, shown_path};
use super::search::Searcher;
use super::{Ignored, Options};

/// Bytes of the largest file that is looked at. A larger one is passed over, and that is said.
pub const FILE_BYTES_MAX: u64 = 64 << 20;

/// Bytes at the beginning of a file by which it is judged to be text: as Git does it.
const SNIFF_BYTES: usize = 8000;

/// Looks at every file under the options' paths.
pub fn look(
    options: &Options,
    searcher: &Searcher,
    result: &mut Result,
) -> std::result::Result<(), String> {
    let keepers: Vec<(u64, u64)> = options
        .keepers
        .iter()
        .filter_map(|path| path.metadata().ok())
        .map(|metadata| identity(&metadata))
        .collect();
    // One for all files: what was read last is wiped, and the memory used again.
    let mut bytes = Zeroizing::new(Vec::new());
    for path in &options.paths {
        for entry in walk(path, options)? {
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) => {
                    let path = path_of(&error).unwrap_or_else(|| path.clone());
                    result.passed.push(unreadable(&path, error.io_error()));
                    continue;
                }
            };
            // Only the path that was given may be a link.
            let is_file = match entry.file_type() {
                Some(kind) if kind.is_symlink() && entry.depth() == 0 => true,
                Some(kind) => kind.is_file(),
                None => false,
            };
            if !is_file {
                if entry.depth() == 0 && entry.file_type().is_some_and(|kind| !kind.is_dir()) {
                    result.passed.push(Passed {
                        place: shown_path(entry.path()),
                        reason: "neither a file nor a directory".to_owned(),
                        is_gap: true,
                    });
                }
                continue;
            }
            match read(entry.path(), entry.depth() == 0, &keepers, &mut bytes) {
                Ok(Looked::Text) => {
                    result.looked_at.files += 1;
                    result.looked_at.bytes += bytes.len() as u64;
                    search(entry.path(), &bytes, searcher, result);
                }
                Ok(Looked::Keeper) => result.passed.push(Passed {
                    place: shown_path(entry.path()),
                    reason: "Claviger's own file of a key".to_owned(),
                    is_gap: false,
                }),
                Ok(Looked::Binary) => result.passed.push(Passed {
                    place: shown_path(entry.path()),
                    reason: "not text".to_owned(),
                    is_gap: false,
                }),
                Ok(Looked::TooLarge(size)) => result.passed.push(Passed {
                    place: shown_path(entry.path()),
                    reason: format!("larger than {FILE_BYTES_MAX} bytes ({size})"),
                    is_gap: true,
                }),
                Err(error) => result.passed.push(unreadable(entry.path(), Some(&error))),
            }
        }
    }
    Ok(())
}

/// What a file turned out to be.
enum Looked {
    /// It is in the buffer, as UTF-8 or something like it.
    Text,
    /// It is where Claviger keeps a key.
    Keeper,
    /// It is no text.
    Binary,
    /// It has so many bytes.
    TooLarge(u64),
}

/// Reads a regular file into `bytes`.
fn read(
    path: &Path,
    may_be_link: bool,
    keepers: &[(u64, u64)],
    bytes: &mut Zeroizing<Vec<u8>>,
) -> io::Result<Looked> {
    let follow = if may_be_link {
        0
    } else {
        nix::libc::O_NOFOLLOW
    };
    // What was a file a moment ago may be a pipe by now: opening one without waiting has no effect.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(follow | nix::libc::O_NONBLOCK | nix::libc::O_NOCTTY)
        .open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Ok(Looked::Binary);
    }
    if keepers.contains(&identity(&metadata)) {
        return Ok(Looked::Keeper);
    }
    if metadata.len() > FILE_BYTES_MAX {
        return Ok(Looked::TooLarge(metadata.len()));
    }
    fill(file, metadata.len(), bytes)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Ok(Looked::TooLarge(bytes.len() as u64));
    }
    if let Some(text) = from_utf16(bytes) {
        *bytes = text;
    }
    let beginning = &bytes[..bytes.len().min(SNIFF_BYTES)];
    Ok(match memchr::memchr(0, beginning) {
        Some(_) => Looked::Binary,
        None => Looked::Text,
    })
}

/// Reads to the end, or to one byte beyond what is looked at: a file may grow meanwhile.
fn fill(file: File, size: u64, bytes: &mut Zeroizing<Vec<u8>>) -> io::Result<()> {
    let wanted = usize::try_from(size)
        .unwrap_or(usize::MAX)
        .saturating_add(1);
    if bytes.capacity() < wanted {
        // Made anew and not grown: growing leaves a copy behind.
        *bytes = Zeroizing::new(Vec::with_capacity(wanted));
    }
    bytes.clear();
    file.take(FILE_BYTES_MAX + 1).read_to_end(bytes)?;
    Ok(())
}

/// The text of a file that begins with the mark of UTF-16, as some editors of Windows write.
fn from_utf16(bytes: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let unit: fn([u8; 2]) -> u16 = match bytes {
        [0xff, 0xfe, ..] => u16::from_le_bytes,
        [0xfe, 0xff, ..] => u16::from_be_bytes,
        _ => return None,
    };
    let units = bytes[2..]
        .chunks_exact(2)
        .map(|pair| unit([pair[0], pair[1]]));
    // Sized ahead, for three bytes per unit at the most.
    let mut text = Zeroizing::new(Vec::with_capacity(bytes.len() / 2 * 3));
    for character in char::decode_utf16(units) {
        let character = character.unwrap_or(char::REPLACEMENT_CHARACTER);
        text.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
    }
    Some(text)
}

fn search(path: &Path, text: &[u8], searcher: &Searcher, result: &mut Result) {
    let mut lines = Lines::of(text);
    for hit in searcher.search(text) {
        let (line, column) = lines.place_of(hit.range.start);
        let place = Place::File {
            path: path.to_owned(),
            line,
            column,
        };
        result.findings.push(Finding::new(place, hit));
    }
}

/// Counts lines once, for places in ascending order.
struct Lines<'t> {
    text: &'t [u8],
    at: usize,
    line: usize,
    line_start: usize,
}

impl<'t> Lines<'t> {
    fn of(text: &'t [u8]) -> Self {
        Self {
            text,
            at: 0,
            line: 1,
            line_start: 0,
        }
    }

    /// Line and column of a byte, in bytes, from 1.
    fn place_of(&mut self, at: usize) -> (usize, usize) {
        for end in memchr::memchr_iter(b'\n', &self.text[self.at..at]) {
            self.line += 1;
            self.line_start = self.at + end + 1;
        }
        self.at = at;
        (self.line, at - self.line_start + 1)
    }
}

fn walk(path: &Path, options: &Options) -> std::result::Result<ignore::Walk, String> {
    let mut exclude = OverrideBuilder::new(path);
    for glob in &options.exclude {
        // Of an override, what begins with `!` is what is left out.
        exclude
            .add(&format!("!{glob}"))
            .map_err(|error| format!("--exclude: {error}"))?;
    }
    let exclude = exclude
        .build()
        .map_err(|error| format!("--exclude: {error}"))?;
    let mut builder = WalkBuilder::new(path);
    builder
        .standard_filters(false)
        .overrides(exclude)
        .follow_links(false)
        .sort_by_file_name(std::ffi::OsStr::cmp)
        .filter_entry(|entry| {
            let is_directory = entry.file_type().is_some_and(|kind| kind.is_dir());
            !is_directory || !(is_of_the_kernel(entry.path()) || holds_objects_of_git(entry.path()))
        });
    if options.ignored_by_git == Ignored::PassedOver {
        builder
            .git_ignore(true)
            .git_exclude(true)
            .git_global(true)
            .parents(true)
            .require_git(false);
    }
    Ok(builder.build())
}

/// Whether what looks like files is made up by the kernel: reading some of it does something.
fn is_of_the_kernel(path: &Path) -> bool {
    /// `CGROUP`, `CGROUP2`, `DEBUGFS`, `DEVPTS`, `PROC`, `SECURITYFS`, `SYSFS`, `TRACEFS`, `BPF`, `PSTOREFS`:
    /// `include/uapi/linux/magic.h`.
    const MAGICS: [i64; 10] = [
        0x27_e0eb,
        0x6367_7270,
        0x6462_6720,
        0x1cd1,
        0x9fa0,
        0x7363_6673,
        0x6265_6572,
        0x7472_6163,
        0xcafe_4a11,
        0x6165_676c,
    ];
    statfs::statfs(path).is_ok_and(|found| {
        #[allow(clippy::unnecessary_cast, reason = "its width depends on the machine")]
        MAGICS.contains(&(found.filesystem_type().0 as i64))
    })
}

/// Git keeps contents compressed there. `--git-history` reads them; the rest of a repository, its `config`
/// with the addresses of others above all, is read as it is.
fn holds_objects_of_git(path: &Path) -> bool {
    let is_named_so = path.file_name().is_some_and(|name| name == "objects");
    is_named_so
        && path
            .parent()
            .is_some_and(|parent| parent.join("HEAD").is_file() && parent.join("refs").is_dir())
}

fn identity(metadata: &std::fs::Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// Without the error's own text where that names a path, which may hold a key.
fn unreadable(path: &Path, error: Option<&io::Error>) -> Passed {
    Passed {
        place: shown_path(path),
        reason: error.map_or_else(
            || "cannot be read".to_owned(),
            |error| error.kind().to_string(),
        ),
        is_gap: true,
    }
}

/// The path that a walk's error is about.
fn path_of(error: &ignore::Error) -> Option<PathBuf> {
    match error {
        ignore::Error::WithPath { path, .. } => Some(path.clone()),
        ignore::Error::WithDepth { err, .. } | ignore::Error::WithLineNumber { err, .. } => {
            path_of(err)
        }
        _ => None,
    }
}
