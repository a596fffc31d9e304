//! What processes were started with: their environments, and their command lines.
//!
//! The kernel lets a user read the environments of the user's own processes, and root all of
//! them; command lines are for everybody, and that is the trouble with keys in them. What is
//! seen is what a process began with: it may have changed its environment since.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::report::{Finding, Passed, Place, Result};
use super::search::Searcher;

/// Bytes of the largest environment that is looked at. Linux lets one have 2 MiB unless the limit for
/// stacks is raised; what is beyond is not looked at, and that is said.
const ENVIRON_BYTES_MAX: u64 = 8 << 20;

/// Looks at every process that can be read.
pub fn look(searcher: &Searcher, result: &mut Result) {
    let mut closed = 0;
    for pid in pids() {
        let directory = PathBuf::from(format!("/proc/{pid}"));
        let program = first_line(&directory.join("comm"));
        let unit = unit_of(&directory);
        let (environment, command) = (
            read(&directory.join("environ")),
            read(&directory.join("cmdline")),
        );
        match &environment {
            Ok(text) => {
                result.looked_at.processes += 1;
                for (index, entry) in entries(text).enumerate() {
                    let name = entry.split(|&byte| byte == b'=').next().unwrap_or_default();
                    let variable = if name.len() < entry.len() {
                        String::from_utf8_lossy(name).into_owned()
                    } else {
                        format!("number {index}")
                    };
                    for hit in searcher.search(entry) {
                        let place = Place::Environment {
                            pid,
                            program: program.clone(),
                            unit: unit.clone(),
                            variable: variable.clone(),
                        };
                        result.findings.push(Finding::new(place, hit));
                    }
                }
            }
            // It has ended, or it is a thread of the kernel's.
            Err(error) if error.kind() == io::ErrorKind::NotFound || is_gone(error) => {}
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => closed += 1,
            Err(error) => result.passed.push(Passed {
                place: format!("process {pid}"),
                reason: error.to_string(),
                is_gap: true,
            }),
        }
        for (word, text) in command.iter().flat_map(|text| entries(text)).enumerate() {
            for hit in searcher.search(text) {
                let place = Place::CommandLine {
                    pid,
                    program: program.clone(),
                    unit: unit.clone(),
                    word,
                };
                result.findings.push(Finding::new(place, hit));
            }
        }
    }
    if closed > 0 {
        result.passed.push(Passed {
            place: format!("the environments of {closed} processes"),
            reason: "they are other users'; root can read them".to_owned(),
            is_gap: true,
        });
    }
}

fn pids() -> Vec<u32> {
    let mut pids: Vec<u32> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    pids.sort_unstable();
    pids
}

/// The strings of a list in which each ends with a zero.
fn entries(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|&byte| byte == 0)
        .filter(|entry| !entry.is_empty())
}

fn read(path: &Path) -> io::Result<Zeroizing<Vec<u8>>> {
    use std::io::Read;
    // Such files have no size; what grows leaves copies behind, so room is made for what is usual.
    let mut bytes = Zeroizing::new(Vec::with_capacity(256 << 10));
    fs::File::open(path)?
        .take(ENVIRON_BYTES_MAX + 1)
        .read_to_end(&mut bytes)?;
    if bytes.len() as u64 > ENVIRON_BYTES_MAX {
        return Err(io::Error::other(format!(
            "larger than {ENVIRON_BYTES_MAX} bytes"
        )));
    }
    Ok(bytes)
}

fn is_gone(error: &io::Error) -> bool {
    error.raw_os_error() == Some(nix::libc::ESRCH)
}

fn first_line(path: &Path) -> String {
    let text = fs::read(path).unwrap_or_default();
    String::from_utf8_lossy(&text)
        .lines()
        .next()
        .unwrap_or_default()
        .to_owned()
}

/// The systemd unit that a process belongs to, from its control group: whoever cures it looks there.
fn unit_of(directory: &Path) -> Option<String> {
    let groups = fs::read_to_string(directory.join("cgroup")).ok()?;
    groups
        .lines()
        .filter_map(|line| line.splitn(3, ':').nth(2))
        .flat_map(|path| path.rsplit('/'))
        .find(|name| name.ends_with(".service"))
        .map(str::to_owned)
}
