//! What a repository once held: every line that some commit added, by `git log --patch`.
//!
//! Git is run so that the repository cannot make it run something else: no pager, no external
//! diff, no text conversion, no signature check, no hook, no monitor, nothing fetched. Output is
//! read as it comes and is bounded.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use zeroize::Zeroizing;

use super::Options;
use super::report::{Finding, Passed, Place, Result, shown_path};
use super::search::Searcher;

/// Bytes of `git log`'s output that are read of one repository. What is beyond is the oldest history; it is
/// not looked at, and that is said.
pub const HISTORY_BYTES_MAX: u64 = 8 << 30;

/// Bytes of the longest line that is looked at whole; the rest of a longer one is passed over.
pub const LINE_BYTES_MAX: usize = 1 << 20;

/// Looks at the history of each repository that one of the paths is, or lies in.
pub fn look(options: &Options, searcher: &Searcher, result: &mut Result) {
    let mut seen: Vec<PathBuf> = Vec::new();
    for path in &options.paths {
        match repository_of(path) {
            Ok(repository) if seen.contains(&repository) => {}
            Ok(repository) => {
                if let Err(reason) = look_at(&repository, searcher, result) {
                    result.passed.push(gap(&repository, reason));
                }
                seen.push(repository);
            }
            Err(reason) => result.passed.push(gap(path, reason)),
        }
    }
}

fn gap(path: &Path, reason: String) -> Passed {
    Passed {
        place: format!("the history of {}", shown_path(path)),
        reason,
        is_gap: true,
    }
}

/// `git`, unable to run anything that the repository names.
fn git(path: &Path) -> Command {
    let mut git = Command::new("git");
    git.arg("-C")
        .arg(path)
        .args([
            "-c",
            "core.fsmonitor=false",
            "-c",
            "core.hooksPath=/dev/null",
        ])
        .args([
            "-c",
            "protocol.allow=never",
            "-c",
            "core.quotePath=false",
            "-c",
            "log.showSignature=false",
        ])
        .args(["--no-pager", "--no-optional-locks", "--no-replace-objects"])
        // Set where a hook of Git's runs us: another repository's.
        .env_remove("GIT_DIR")
        .env_remove("GIT_WORK_TREE")
        .env_remove("GIT_EXTERNAL_DIFF")
        .env("GIT_NO_LAZY_FETCH", "1")
        .env("GIT_TERMINAL_PROMPT", "0")
        .stdin(Stdio::null());
    git
}

fn repository_of(path: &Path) -> std::result::Result<PathBuf, String> {
    let directory = if path.is_dir() {
        path
    } else {
        path.parent().unwrap_or(path)
    };
    let directory = if directory.as_os_str().is_empty() {
        Path::new(".")
    } else {
        directory
    };
    let output = git(directory)
        .args(["rev-parse", "--absolute-git-dir"])
        .output()
        .map_err(|error| format!("git cannot be run: {error}"))?;
    if !output.status.success() {
        return Err(told_by_git(&output.stderr, "it is no Git repository"));
    }
    use std::os::unix::ffi::OsStringExt;
    let path = output.stdout.trim_ascii_end().to_vec();
    Ok(PathBuf::from(std::ffi::OsString::from_vec(path)))
}

/// The sentence of Git's that helps, without quoting what it may quote.
fn told_by_git(said: &[u8], otherwise: &str) -> String {
    let dubious = memchr::memmem::find(said, b"dubious ownership").is_some();
    if dubious {
        "it belongs to another user; Git reads it once `git config --global --add safe.directory DIRECTORY` names it"
            .to_owned()
    } else {
        otherwise.to_owned()
    }
}

fn look_at(
    repository: &Path,
    searcher: &Searcher,
    result: &mut Result,
) -> std::result::Result<(), String> {
    let mut child = git(repository)
        .args([
            "log",
            "--all",
            "--reflog",
            "--patch",
            "--unified=0",
            "--full-history",
            "--no-color",
            "--no-renames",
        ])
        .args([
            "--no-ext-diff",
            "--no-textconv",
            "--no-show-signature",
            "--diff-merges=first-parent",
        ])
        .args([
            "--format=commit %H",
            "--src-prefix=a/",
            "--dst-prefix=b/",
            "--submodule=short",
        ])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| format!("git cannot be run: {error}"))?;
    let Some(output) = child.stdout.take() else {
        return Err("git has no output".to_owned());
    };
    let mut log = Log::new(BufReader::with_capacity(
        256 << 10,
        output.take(HISTORY_BYTES_MAX),
    ));
    let mut found: BTreeMap<_, Finding> = BTreeMap::new();
    let read = log.each_added_line(|commit, path, line, text| {
        for hit in searcher.search(text) {
            // The newest commit comes first; the key stays in the repository by any of them.
            let key = (hit.fingerprint, path.to_owned());
            found.entry(key).or_insert_with(|| {
                let place = Place::History {
                    repository: repository.to_owned(),
                    path: path.to_owned(),
                    line,
                    commit: commit.to_owned(),
                };
                Finding::new(place, hit)
            });
        }
    });
    result.looked_at.commits += log.commits;
    result.looked_at.bytes += log.bytes;
    result.findings.extend(found.into_values());
    let is_whole = log.bytes < HISTORY_BYTES_MAX;
    drop(log);
    if !is_whole {
        // It waits to write what nobody reads.
        let _ = child.kill();
    }
    let status = child.wait().map_err(|error| format!("git: {error}"))?;
    match read {
        Err(error) => Err(format!("git: {error}")),
        Ok(()) if !is_whole => Err(format!(
            "beyond the newest {HISTORY_BYTES_MAX} bytes of changes"
        )),
        // A repository without a commit has no history either.
        Ok(()) if status.success() || result.looked_at.commits == 0 => Ok(()),
        Ok(()) => Err("git could not read all of it; `git fsck` says why".to_owned()),
    }
}

/// Reads the output of `git log --patch`.
struct Log<R> {
    input: R,
    line: Zeroizing<Vec<u8>>,
    commits: u64,
    bytes: u64,
}

impl<R: BufRead> Log<R> {
    fn new(input: R) -> Self {
        Self {
            input,
            line: Zeroizing::new(Vec::with_capacity(64 << 10)),
            commits: 0,
            bytes: 0,
        }
    }

    /// Calls for each line that a commit adds: commit, path, line in the file, text.
    fn each_added_line(
        &mut self,
        mut see: impl FnMut(&str, &str, usize, &[u8]),
    ) -> std::io::Result<()> {
        let (mut commit, mut path) = (String::new(), String::new());
        // Lines of a hunk that are still to come: whatever they look like, they are text.
        let (mut removed, mut added, mut line) = (0_usize, 0_usize, 0_usize);
        while self.next_line()? {
            let text = &self.line[..];
            match text.first() {
                Some(b'-') if removed > 0 => removed -= 1,
                Some(b'+') if added > 0 => {
                    added -= 1;
                    see(&commit, &path, line, &text[1..]);
                    line += 1;
                }
                _ if text.starts_with(b"commit ") => {
                    commit = String::from_utf8_lossy(&text[7..]).trim().to_owned();
                    path.clear();
                    self.commits += 1;
                }
                _ if text.starts_with(b"+++ ") => {
                    let name = text[4..].strip_prefix(b"b/").unwrap_or(&text[4..]);
                    path = String::from_utf8_lossy(name).trim_end().to_owned();
                }
                _ if text.starts_with(b"@@ ") => {
                    let hunk = String::from_utf8_lossy(text).into_owned();
                    (removed, _) = side(&hunk, '-');
                    (added, line) = side(&hunk, '+');
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Reads one line, of which no more than [`LINE_BYTES_MAX`] are kept. `false` at the end.
    fn next_line(&mut self) -> std::io::Result<bool> {
        self.line.clear();
        let mut any = false;
        loop {
            let chunk = self.input.fill_buf()?;
            if chunk.is_empty() {
                return Ok(any);
            }
            any = true;
            let end = memchr::memchr(b'\n', chunk);
            let used = end.map_or(chunk.len(), |at| at + 1);
            let keep = (LINE_BYTES_MAX - self.line.len()).min(end.unwrap_or(used));
            self.line.extend_from_slice(&chunk[..keep]);
            self.bytes += used as u64;
            self.input.consume(used);
            if end.is_some() {
                return Ok(true);
            }
        }
    }
}

/// Of `@@ -1,2 +3,4 @@`: how many lines a side has, and where they begin.
fn side(hunk: &str, sign: char) -> (usize, usize) {
    let part = hunk
        .split(' ')
        .skip(1)
        .find_map(|part| part.strip_prefix(sign))
        .unwrap_or_default();
    let (start, count) = part.split_once(',').unwrap_or((part, "1"));
    (count.parse().unwrap_or(0), start.parse().unwrap_or(0))
}
