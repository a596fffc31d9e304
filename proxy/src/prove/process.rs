//! [`Claviger`]: this very binary, serving for the proof, and the ways it may end.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::PATIENCE;
use super::search::{Canaries, Found};
use super::site::Site;

/// How often a file that another process writes is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// A serving process, killed when dropped.
#[derive(Debug)]
pub struct Claviger {
    child: Child,
    orders: Option<ChildStdin>,
    /// Where each listener is.
    pub addresses: BTreeMap<String, SocketAddr>,
    log: PathBuf,
}

impl Claviger {
    /// Starts it, in a directory of its own where a core would be left, and waits
    /// until it serves.
    ///
    /// # Errors
    /// What it said instead.
    pub fn start(
        site: &Site,
        place: &Path,
        name: &str,
        permit_dumps: bool,
    ) -> Result<Self, String> {
        let log = place.join(format!("{name}.log"));
        let create = |path: &Path| {
            File::create(path).map_err(|error| format!("{}: {error}", path.display()))
        };
        let exe = std::env::current_exe().map_err(|error| format!("this program: {error}"))?;
        let mut command = Command::new(exe);
        command.arg("prove-serve").arg("--config").arg(&site.config);
        if permit_dumps {
            command.arg("--permit-dumps");
        }
        let mut child = command
            .env_clear()
            .envs(site.environment.iter().map(|(name, value)| (name, value)))
            .current_dir(place.join("run"))
            // Ctrl-C is for the proof, and the end of its orders for this one.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(create(&place.join(format!("{name}.out")))?)
            .stderr(create(&log)?)
            .spawn()
            .map_err(|error| format!("claviger: {error}"))?;
        let orders = child.stdin.take();
        let mut claviger = Self {
            child,
            orders,
            addresses: BTreeMap::new(),
            log,
        };
        let serving = claviger.wait_line(0, "it serves", |line| {
            (line["message"] == "serving").then(|| line["addresses"].clone())
        })?;
        for word in serving.as_str().unwrap_or_default().split_whitespace() {
            if let Some((name, address)) = word.rsplit_once('=')
                && let Ok(address) = address.parse()
            {
                claviger.addresses.insert(name.to_owned(), address);
            }
        }
        Ok(claviger)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        let _ = kill(Pid::from_raw(self.child.id().cast_signed()), signal);
    }

    /// Has a thread of it panic, with a message that quotes `text`.
    ///
    /// # Errors
    /// It has gone.
    pub fn panic_with(&mut self, text: &str) -> Result<(), String> {
        let orders = self.orders.as_mut().ok_or("no way to give it orders")?;
        writeln!(orders, "panic {text}").map_err(|error| format!("claviger: {error}"))
    }

    /// Waits for a line of the log, behind a mark, whose message begins so.
    ///
    /// # Errors
    /// As [`Claviger::wait_line`].
    pub fn wait_message(&mut self, mark: usize, what: &str, begins: &str) -> Result<(), String> {
        self.wait_line(mark, what, |line| {
            let message = line["message"].as_str()?;
            message.starts_with(begins).then_some(())
        })
    }

    /// How long its log is.
    pub fn mark(&self) -> usize {
        fs::metadata(&self.log).map_or(0, |metadata| metadata.len() as usize)
    }

    /// Waits for the first line of the log, behind a mark, of which `find` makes
    /// something.
    ///
    /// # Errors
    /// It has ended, or nothing came within [`PATIENCE`]. What it said is not
    /// quoted: it is what is under suspicion.
    pub fn wait_line<T>(
        &mut self,
        mark: usize,
        what: &str,
        find: impl Fn(&Value) -> Option<T>,
    ) -> Result<T, String> {
        let begun = Instant::now();
        loop {
            let ended = self.child.try_wait().map_err(|error| error.to_string())?;
            let log = fs::read(&self.log).unwrap_or_default();
            let found = log[mark.min(log.len())..]
                .split_inclusive(|&byte| byte == b'\n')
                .filter(|line| line.ends_with(b"\n"))
                .filter_map(|line| serde_json::from_slice(line).ok())
                .find_map(|line| find(&line));
            match (found, ended) {
                (Some(found), _) => return Ok(found),
                (None, Some(status)) => {
                    return Err(format!(
                        "waiting until {what}: claviger ended with {status}; its log is {}, kept with --keep",
                        self.log.display()
                    ));
                }
                (None, None) if begun.elapsed() > PATIENCE => {
                    return Err(format!(
                        "waiting until {what}: nothing of the kind within {} s; its log is {}, kept with --keep",
                        PATIENCE.as_secs(),
                        self.log.display()
                    ));
                }
                (None, None) => thread::sleep(LOOK_INTERVAL),
            }
        }
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// As `waitpid(2)`.
    pub fn wait(mut self) -> Result<ExitStatus, String> {
        drop(self.orders.take());
        self.child
            .wait()
            .map_err(|error| format!("claviger: {error}"))
    }
}

impl Drop for Claviger {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How a process that was told to crash did.
#[derive(Debug)]
pub struct Crash {
    /// Whether it ended by the signal, and not in any order of its own.
    pub crashed: bool,
    /// Whether the kernel made a core, wherever it went.
    pub core: bool,
    /// What was found in the core, and how many bytes were searched. `None`: no
    /// core was left where it could be read.
    pub found: Option<(Found, u64)>,
}

/// Crashes a process, and searches the core if one is left.
///
/// # Errors
/// A core that cannot be read.
pub fn crash(claviger: Claviger, place: &Path, canaries: &Canaries) -> Result<Crash, String> {
    let begun = SystemTime::now();
    let pid = claviger.pid();
    // As `abort` raises it. (The first SIGSEGV from outside would only end Rust's
    // watch for stack overflows.)
    claviger.signal(Signal::SIGABRT);
    let status = claviger.wait()?;
    let mut crash = Crash {
        crashed: status.signal() == Some(Signal::SIGABRT as i32),
        core: status.core_dumped(),
        found: None,
    };
    if let Some(path) = core_file(&place.join("run"), pid, begun) {
        let read =
            || -> std::io::Result<(Found, u64)> { canaries.search_file(&mut File::open(&path)?) };
        crash.core = true;
        crash.found = Some(read().map_err(|error| format!("{}: {error}", path.display()))?);
        // It may be large, and it was made here.
        let _ = fs::remove_file(&path);
    }
    Ok(crash)
}

/// The core that a process left, if the kernel writes it into a file (core(5)).
fn core_file(directory: &Path, pid: u32, since: SystemTime) -> Option<PathBuf> {
    if !cores_are_files() {
        return None;
    }
    let pattern = directory.join(core_pattern());
    let begin = pattern.file_name()?.to_string_lossy().into_owned();
    let begin = begin.split('%').next().unwrap_or_default();
    let ours = |path: &Path| {
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let fresh = path
            .metadata()
            .and_then(|metadata| metadata.modified())
            .is_ok_and(|changed| changed + Duration::from_secs(1) >= since);
        // In a directory that others use as well, only by its process id.
        let told = pattern.parent() == Some(directory) || name.contains(&pid.to_string());
        name.starts_with(begin) && fresh && told
    };
    fs::read_dir(pattern.parent()?)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.is_file() && ours(path))
}

/// Whether cores are left where they can be read here, and not given to a program.
pub fn cores_are_files() -> bool {
    !core_pattern().starts_with('|')
}

/// Where this machine's kernel puts cores.
pub fn core_pattern() -> String {
    fs::read_to_string("/proc/sys/kernel/core_pattern")
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// Lets children leave cores: it must be their own doing that they leave none.
/// `false`: this machine permits none at all.
pub fn permit_cores() -> bool {
    use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};
    if setrlimit(Resource::RLIMIT_CORE, RLIM_INFINITY, RLIM_INFINITY).is_ok() {
        return true;
    }
    getrlimit(Resource::RLIMIT_CORE)
        .is_ok_and(|(_, hard)| hard > 0 && setrlimit(Resource::RLIMIT_CORE, hard, hard).is_ok())
}

/// Whether this process may look into another one's memory.
///
/// # Errors
/// It may not.
pub fn open_memory(pid: u32) -> std::io::Result<File> {
    File::open(format!("/proc/{pid}/mem"))
}

/// Searches what a process has in memory, where the kernel shows it: that of a
/// process that may be dumped. `Err`: it shows nothing.
pub fn search_memory(pid: u32, canaries: &Canaries) -> std::io::Result<(Found, u64)> {
    use std::os::unix::fs::FileExt;
    /// Bytes that are read at a time.
    const CHUNK_BYTES: usize = 1 << 20;
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let memory = open_memory(pid)?;
    let mut found = Found::new();
    let mut bytes = 0;
    for line in maps.lines() {
        let mut words = line.split(' ');
        let (Some(range), Some(rights)) = (words.next(), words.next()) else {
            continue;
        };
        let Some((start, end)) = range.split_once('-') else {
            continue;
        };
        let (Ok(start), Ok(end)) = (u64::from_str_radix(start, 16), u64::from_str_radix(end, 16))
        else {
            continue;
        };
        if !rights.starts_with("rw") {
            continue;
        }
        let mut at = start;
        // Chunks overlap, so that nothing is cut.
        while at < end {
            let mut chunk = vec![0; CHUNK_BYTES.min((end - at) as usize)];
            // Pages that cannot be read hold nothing that anybody could.
            if let Ok(read) = memory.read_at(&mut chunk, at) {
                bytes += read as u64;
                found.extend(canaries.search_plain(&chunk[..read]));
            }
            at += if chunk.len() == CHUNK_BYTES {
                (CHUNK_BYTES - 4096) as u64
            } else {
                chunk.len() as u64
            };
        }
    }
    Ok((found, bytes))
}
