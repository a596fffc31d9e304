//! [`Process`]: one of the real binaries, everything that it prints, and its end.

use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use std::{io::Read, thread};

use serde_json::Value;

use super::{PATIENCE, eventually};

/// A child process. Killed, by its own id, when dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    /// Standard output.
    pub out: Arc<Journal>,
    /// Standard error.
    pub err: Arc<Journal>,
    readers: Vec<JoinHandle<()>>,
    ended: Option<ExitStatus>,
}

impl Process {
    /// Starts `command` with no standard input and both outputs collected.
    #[track_caller]
    pub fn start(name: &str, mut command: Command) -> Self {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let shown = format!("{command:?}");
        let mut child = spawn(command).unwrap_or_else(|err| panic!("cannot start {shown}: {err}"));
        let (out, err) = (Arc::new(Journal::default()), Arc::new(Journal::default()));
        let readers = vec![
            Journal::follow(&out, child.stdout.take().expect("piped")),
            Journal::follow(&err, child.stderr.take().expect("piped")),
        ];
        Self {
            name: name.to_owned(),
            child,
            out,
            err,
            readers,
            ended: None,
        }
    }

    /// Runs `command` to its end.
    #[track_caller]
    pub fn run(name: &str, command: Command) -> Finished {
        Self::start(name, command).finish()
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal: `libc::SIGHUP` and so on.
    pub fn signal(&self, signal: libc::c_int) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.pid()).expect("a process id"));
        let signal = nix::sys::signal::Signal::try_from(signal).expect("a signal");
        nix::sys::signal::kill(pid, signal)
            .unwrap_or_else(|err| panic!("cannot signal {}: {err}", self.name));
    }

    /// Waits for the end and returns everything. Panics after [`PATIENCE`].
    #[track_caller]
    pub fn finish(mut self) -> Finished {
        let name = format!("the end of {}", self.name);
        let status = eventually(&name, || self.child.try_wait().expect("our own child"));
        self.ended = Some(status);
        for reader in self.readers.drain(..) {
            reader.join().expect("readers do not panic");
        }
        Finished {
            name: self.name.clone(),
            status,
            out: self.out.bytes(),
            err: self.err.bytes(),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.ended.is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        for reader in self.readers.drain(..) {
            let _ = reader.join();
        }
        if thread::panicking() {
            eprintln!(
                "---- {} printed:\n{}{}",
                self.name,
                self.out.text(),
                self.err.text()
            );
        }
    }
}

/// A process that has ended.
#[derive(Debug)]
pub struct Finished {
    name: String,
    /// How it ended.
    pub status: ExitStatus,
    /// Standard output, whole.
    pub out: Vec<u8>,
    /// Standard error, whole.
    pub err: Vec<u8>,
}

impl Finished {
    /// Standard output as text.
    pub fn out_text(&self) -> String {
        String::from_utf8_lossy(&self.out).into_owned()
    }

    /// Standard error as text.
    pub fn err_text(&self) -> String {
        String::from_utf8_lossy(&self.err).into_owned()
    }

    /// Both outputs.
    pub fn all(&self) -> Vec<u8> {
        [self.out.as_slice(), b"\n", &self.err].concat()
    }

    /// Panics, showing both outputs, unless it exited with `code`.
    #[track_caller]
    pub fn expect_code(self, code: i32) -> Self {
        assert!(
            self.status.code() == Some(code),
            "{} ended with {} (signal {:?}), not with {code}:\n{}{}",
            self.name,
            self.status,
            self.status.signal(),
            self.out_text(),
            self.err_text()
        );
        self
    }
}

/// What a process has printed so far on one stream.
#[derive(Debug, Default)]
pub struct Journal {
    state: Mutex<Printed>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Printed {
    bytes: Vec<u8>,
    closed: bool,
}

impl Journal {
    fn follow(journal: &Arc<Self>, mut from: impl Read + Send + 'static) -> JoinHandle<()> {
        let journal = Arc::clone(journal);
        thread::spawn(move || {
            let mut chunk = [0; 4096];
            loop {
                let read = from.read(&mut chunk).unwrap_or(0);
                let mut state = journal.state.lock().expect("no panic while held");
                state.bytes.extend_from_slice(&chunk[..read]);
                state.closed = read == 0;
                drop(state);
                journal.changed.notify_all();
                if read == 0 {
                    return;
                }
            }
        })
    }

    /// All of it.
    pub fn bytes(&self) -> Vec<u8> {
        self.state
            .lock()
            .expect("no panic while held")
            .bytes
            .clone()
    }

    /// All of it, as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes()).into_owned()
    }

    /// Where it ends now: lines printed later are found by [`Journal::wait_from`].
    pub fn mark(&self) -> usize {
        self.state.lock().expect("no panic while held").bytes.len()
    }

    /// Waits for a complete line of which `find` makes something.
    #[track_caller]
    pub fn wait<T>(&self, what: &str, find: impl FnMut(&str) -> Option<T>) -> T {
        self.wait_from(0, what, find)
    }

    /// The same, of the lines after `mark` only.
    #[track_caller]
    pub fn wait_from<T>(
        &self,
        mark: usize,
        what: &str,
        mut find: impl FnMut(&str) -> Option<T>,
    ) -> T {
        let deadline = Instant::now() + PATIENCE;
        let mut at = mark;
        let mut state = self.state.lock().expect("no panic while held");
        loop {
            while let Some(end) = memchr::memchr(b'\n', &state.bytes[at..]) {
                let line = String::from_utf8_lossy(&state.bytes[at..at + end]).into_owned();
                at += end + 1;
                if let Some(found) = find(&line) {
                    return found;
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if state.closed || left == Duration::ZERO {
                let so_far = String::from_utf8_lossy(&state.bytes).into_owned();
                let closed = state.closed;
                drop(state);
                panic!(
                    "{what} never came ({}); printed so far:\n{so_far}",
                    if closed {
                        "the process ended"
                    } else {
                        "time is up"
                    }
                );
            }
            state = self
                .changed
                .wait_timeout(state, left)
                .expect("no panic while held")
                .0;
        }
    }

    /// Waits for a JSON log line whose message begins like this, and returns its fields.
    #[track_caller]
    pub fn wait_event(&self, mark: usize, message: &str) -> Value {
        self.wait_from(mark, &format!("the log line {message:?}"), |line| {
            event(line).filter(|event| {
                event["message"]
                    .as_str()
                    .is_some_and(|said| said.starts_with(message))
            })
        })
    }
}

/// A log line's fields, wherever the writer nests them.
fn event(line: &str) -> Option<Value> {
    let mut event: Value = serde_json::from_str(line).ok()?;
    if let Some(fields) = event.get_mut("fields").map(Value::take) {
        for (name, value) in fields.as_object()? {
            event[name] = value.clone();
        }
    }
    Some(event)
}

/// Threads of a child, held by `ptrace` in a thread of its own, since a tracer is a
/// thread. Let go when dropped.
pub struct Held {
    release: Option<mpsc::Sender<()>>,
    tracer: Option<JoinHandle<()>>,
}

impl Held {
    /// Holds the threads of which `choose` says so, given each one's name and whether it
    /// is the first one.
    #[track_caller]
    pub fn threads(pid: u32, choose: impl Fn(&str, bool) -> bool + Send + 'static) -> Self {
        let (release, wait) = mpsc::channel::<()>();
        let (ready, held) = mpsc::channel();
        let tracer = thread::spawn(move || {
            use nix::sys::{ptrace, wait as waiting};
            let mut threads = Vec::new();
            for entry in std::fs::read_dir(format!("/proc/{pid}/task")).expect("our own child") {
                let entry = entry.expect("readable");
                let name = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
                let id = entry.file_name().to_string_lossy().into_owned();
                if !choose(name.trim_end(), id == pid.to_string()) {
                    continue;
                }
                let id = nix::unistd::Pid::from_raw(id.parse().expect("a thread id"));
                ptrace::seize(id, ptrace::Options::empty())
                    .expect("a tracer may hold its own child's thread");
                ptrace::interrupt(id).expect("it is held");
                waiting::waitpid(id, Some(waiting::WaitPidFlag::__WALL)).expect("it stops");
                threads.push(id);
            }
            assert!(!threads.is_empty(), "there are threads to hold");
            let _ = ready.send(threads.len());
            let _ = wait.recv();
            for id in threads {
                let _ = ptrace::detach(id, None);
            }
        });
        held.recv().expect("the threads are held");
        Self {
            release: Some(release),
            tracer: Some(tracer),
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        drop(self.release.take());
        if let Some(tracer) = self.tracer.take() {
            let _ = tracer.join();
        }
    }
}

/// Where this build's binary of that name is. Tools of the workspace that a plain
/// `cargo test` has not built are built once, here.
pub fn binary(name: &str) -> PathBuf {
    let claviger = PathBuf::from(env!("CARGO_BIN_EXE_claviger"));
    if name == "claviger" {
        return claviger;
    }
    static BUILT: Mutex<Vec<String>> = Mutex::new(Vec::new());
    let mut built = BUILT
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let directory = claviger.parent().expect("a file in a directory");
    if !built.iter().any(|done| done == name) {
        // CLAVIGER_IT_BUILT=1: `scripts/test` has just built the whole workspace.
        if std::env::var_os("CLAVIGER_IT_BUILT").is_none() || !directory.join(name).exists() {
            let mut cargo = Command::new(env!("CARGO"));
            cargo.current_dir(env!("CARGO_MANIFEST_DIR")).args([
                "build",
                "--quiet",
                "--package",
                name,
                "--target-dir",
            ]);
            cargo.arg(directory.parent().expect("the target directory"));
            if directory.ends_with("release") {
                cargo.arg("--release");
            }
            let status = cargo
                .status()
                .expect("cargo, which runs this test, can be run again");
            assert!(status.success(), "`{name}` does not build");
        }
        built.push(name.to_owned());
    }
    directory.join(name)
}

/// Starts `command` from a thread that lives as long as the test process, and asks
/// the kernel to kill the child when that thread dies: not even a killed test run
/// leaves a process behind, and a test's end does not end what others share.
pub fn spawn(mut command: Command) -> std::io::Result<Child> {
    type Order = (Command, mpsc::Sender<std::io::Result<Child>>);
    static SPAWNER: OnceLock<Mutex<mpsc::Sender<Order>>> = OnceLock::new();
    // SAFETY: the closure runs between fork and exec and makes one system call,
    // `prctl`, which allocates nothing and takes no lock.
    unsafe {
        command.pre_exec(|| {
            let signal = nix::sys::signal::Signal::SIGKILL;
            nix::sys::prctl::set_pdeathsig(signal).map_err(Into::into)
        });
    }
    let orders = SPAWNER.get_or_init(|| {
        let (orders, inbox) = mpsc::channel::<Order>();
        thread::spawn(move || {
            for (mut command, reply) in inbox {
                let _ = reply.send(command.spawn());
            }
        });
        Mutex::new(orders)
    });
    let (reply, answer) = mpsc::channel();
    orders
        .lock()
        .expect("no panic while held")
        .send((command, reply))
        .expect("the spawner lives");
    answer.recv().expect("the spawner answers")
}
