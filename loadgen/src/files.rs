//! The files that a run writes beside its result: `--hgrm`, `--csv`, `--report`.
//!
//! Whether they can be written is found out before the load starts, for an hour of measuring is not
//! to be lost to a mistyped directory. That leaves what a file holds as it is; it is overwritten when
//! there is something to write. A directory that vanishes meanwhile is an error then.

use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use crate::cli::Args;
use crate::report::{self, Report};

/// Sees whether every file asked for can be written. `targets` are the targets' names.
///
/// # Errors
/// A sentence with the option, the file and the cure.
pub fn check(args: &Args, targets: &[&str]) -> Result<(), String> {
    let files = wanted(args, targets);
    for (index, (option, path)) in files.iter().enumerate() {
        if let Some((other, _)) = files[..index].iter().find(|(_, earlier)| earlier == path) {
            return Err(format!(
                "{option} {}: {other} writes the same file; name another one",
                path.display()
            ));
        }
        writable(path).map_err(|error| refusal(option, path, &error))?;
    }
    Ok(())
}

/// Writes them all; one that fails keeps none of the others from being written.
///
/// # Errors
/// As above, for the first that failed.
pub fn write(args: &Args, report: &Report) -> Result<(), String> {
    let names: Vec<&str> = report.targets.iter().map(|t| t.name.as_str()).collect();
    let mut of_target = 0..;
    let mut result = Ok(());
    for (option, path) in wanted(args, &names) {
        let text = match option {
            HGRM => report.hgrm(of_target.next().unwrap_or(0)),
            CSV => report.csv(),
            _ => report.html(),
        };
        let written = fs::write(&path, text).map_err(|error| refusal(option, &path, &error));
        result = result.and(written);
    }
    result
}

const HGRM: &str = "--hgrm";
const CSV: &str = "--csv";
const REPORT: &str = "--report";

/// The files with their options; those of [`HGRM`] in the order of the targets.
fn wanted(args: &Args, targets: &[&str]) -> Vec<(&'static str, PathBuf)> {
    let mut files = Vec::new();
    if let Some(path) = &args.hgrm {
        files.extend(
            report::hgrm_paths(path, targets)
                .into_iter()
                .map(|path| (HGRM, path)),
        );
    }
    files.extend(args.csv.clone().map(|path| (CSV, path)));
    files.extend(args.report.clone().map(|path| (REPORT, path)));
    files
}

/// Opens the file for writing without changing what it holds. One that was not there is not there
/// afterwards either.
fn writable(path: &Path) -> io::Result<()> {
    let found = fs::metadata(path);
    match &found {
        Ok(what) if what.is_dir() => return Err(io::ErrorKind::IsADirectory.into()),
        // To open and close a pipe would tell its reader that all is over.
        Ok(what) if !what.is_file() => return Ok(()),
        _ => {}
    }
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)?;
    match found {
        Ok(_) => Ok(()),
        // Not through `path`: that may be a link to what was missing.
        Err(_) => fs::remove_file(fs::canonicalize(path)?),
    }
}

fn refusal(option: &str, path: &Path, error: &io::Error) -> String {
    let cure = match error.kind() {
        io::ErrorKind::NotFound => "create its directory first, or name another one",
        io::ErrorKind::IsADirectory => "name a file in it",
        io::ErrorKind::PermissionDenied => "name a file that this user may write",
        io::ErrorKind::StorageFull => "make room, or name a file on another disk",
        _ => "name a file that can be written",
    };
    format!("{option} {}: {error}; {cure}", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looking_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let (old, new) = (directory.path().join("old"), directory.path().join("new"));
        let link = directory.path().join("link");
        fs::write(&old, "kept").unwrap();
        std::os::unix::fs::symlink("new", &link).unwrap();
        for path in [old.as_path(), &new, &link, Path::new("/dev/null")] {
            writable(path).unwrap();
        }
        assert_eq!(fs::read_to_string(&old).unwrap(), "kept");
        assert!(!new.exists() && link.is_symlink());
    }
}
