//! The raw record: each request's bytes exactly as they came out of TLS, framing and all.
//!
//! It holds credentials as they arrived, and is therefore kept only if `--record-raw` asks for it,
//! which is as much as `--reveal`. Bounded in memory; files grow as long as requests come.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

/// What one connection has consumed since somebody asked.
#[derive(Debug, Default)]
pub struct Tape {
    bytes: Vec<u8>,
    total: u64,
}

/// All records of the process.
#[derive(Debug)]
pub struct RawRecorder {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    entries: VecDeque<Entry>,
    bytes: usize,
    next: u64,
    dropped: u64,
    sink: Sink,
}

#[derive(Debug)]
enum Sink {
    Memory,
    Lines(File),
    Directory(PathBuf),
}

/// One request's bytes.
#[derive(Debug)]
struct Entry {
    record: u64,
    place: Place,
    /// Why the request is not whole, if it is not.
    error: Option<String>,
    bytes: Vec<u8>,
    total: u64,
}

/// Which request it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The connection's number.
    pub connection: u64,
    /// The request's number on it, from 1.
    pub request: u64,
}

impl Tape {
    /// Copies bytes, up to [`RECORD_BYTES_MAX`]; the rest is counted.
    pub fn push(&mut self, bytes: &[u8]) {
        self.total += bytes.len() as u64;
        let room = RECORD_BYTES_MAX - self.bytes.len();
        self.bytes
            .extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    /// Whether nothing was consumed.
    pub fn is_empty(&self) -> bool {
        self.total == 0
    }
}

impl RawRecorder {
    /// Opens what `--record-raw` names: `memory`, a directory (one that exists, or a name that
    /// ends in `/`), or a file.
    ///
    /// # Errors
    ///
    /// It cannot be made or written.
    pub fn open(place: &Path) -> io::Result<Self> {
        let named = |error: io::Error| {
            let text = format!("--record-raw {}: {error}", place.display());
            io::Error::new(error.kind(), text)
        };
        let sink = if place.as_os_str() == "memory" {
            Sink::Memory
        } else if place.is_dir() || place.as_os_str().as_encoded_bytes().ends_with(b"/") {
            fs::create_dir_all(place).map_err(named)?;
            Sink::Directory(place.to_path_buf())
        } else {
            Sink::Lines(private().append(true).open(place).map_err(named)?)
        };
        Ok(RawRecorder {
            state: Mutex::new(State {
                entries: VecDeque::new(),
                bytes: 0,
                next: 1,
                dropped: 0,
                sink,
            }),
        })
    }

    /// Keeps one request. `error` says why it is not whole.
    ///
    /// # Errors
    ///
    /// The file cannot be written; the record is kept in memory all the same.
    pub fn push(&self, place: Place, tape: Tape, error: Option<String>) -> io::Result<()> {
        let mut state = self.lock();
        let entry = Entry {
            record: state.next,
            place,
            error,
            bytes: tape.bytes,
            total: tape.total,
        };
        state.next += 1;
        let written = state.sink.write(&entry);
        state.bytes += entry.bytes.len();
        state.entries.push_back(entry);
        while state.entries.len() > RECORDS_MAX || state.bytes > BYTES_MAX {
            let oldest = state.entries.pop_front();
            state.bytes -= oldest.map_or(0, |entry| entry.bytes.len());
            state.dropped += 1;
        }
        written
    }

    /// Adds bytes that the same request brought after it was recorded (a body read late, WebSocket
    /// frames). They are lost if the record is gone already.
    ///
    /// # Errors
    ///
    /// The file cannot be written.
    pub fn amend(&self, place: Place, tape: Tape) -> io::Result<()> {
        let mut guard = self.lock();
        let state = &mut *guard;
        let Some(entry) = state
            .entries
            .iter_mut()
            .rev()
            .find(|entry| entry.place == place)
        else {
            return Ok(());
        };
        let room = RECORD_BYTES_MAX - entry.bytes.len();
        let added = tape.bytes.len().min(room);
        entry.bytes.extend_from_slice(&tape.bytes[..added]);
        entry.total += tape.total;
        state.bytes += added;
        state.sink.write(entry)
    }

    /// The records behind number `after`, as JSON.
    pub fn report(&self, after: u64) -> Value {
        let state = self.lock();
        let records: Vec<Value> = state
            .entries
            .iter()
            .filter(|entry| entry.record > after)
            .map(Entry::report)
            .collect();
        json!({"records": records, "dropped": state.dropped})
    }

    /// Forgets everything in memory; numbers go on.
    pub fn clear(&self) {
        let mut state = self.lock();
        state.entries.clear();
        state.bytes = 0;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    fn report(&self) -> Value {
        json!({
            "record": self.record,
            "connection": self.place.connection,
            "request": self.place.request,
            "bytes": self.total,
            "truncated": self.total > self.bytes.len() as u64,
            "error": self.error,
            "base64": STANDARD.encode(&self.bytes),
        })
    }
}

impl Sink {
    /// An amended entry is written again: the later line counts, the file is replaced.
    fn write(&mut self, entry: &Entry) -> io::Result<()> {
        match self {
            Sink::Memory => Ok(()),
            Sink::Lines(file) => file.write_all(format!("{}\n", entry.report()).as_bytes()),
            Sink::Directory(directory) => {
                let name = format!("{}-{}.http", entry.place.connection, entry.place.request);
                private()
                    .write(true)
                    .truncate(true)
                    .open(directory.join(name))
                    .and_then(|mut file| file.write_all(&entry.bytes))
            }
        }
    }
}

/// For files that hold credentials: nobody else may read them.
fn private() -> OpenOptions {
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut options = OpenOptions::new();
    options.create(true).mode(0o600);
    options
}

/// Records kept in memory; beyond that the oldest is dropped, and counted.
pub const RECORDS_MAX: usize = 1000;

/// Bytes kept of one request; the rest is counted, and the record says that it is truncated.
pub const RECORD_BYTES_MAX: usize = 1024 * 1024;

/// Bytes kept in memory over all records; beyond that the oldest are dropped, and counted.
pub const BYTES_MAX: usize = 16 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn tape(bytes: &[u8]) -> Tape {
        let mut tape = Tape::default();
        tape.push(bytes);
        tape
    }

    #[test]
    fn is_bounded_and_says_what_is_missing() {
        let recorder = RawRecorder::open(Path::new("memory")).unwrap();
        let place = |request| Place {
            connection: 1,
            request,
        };
        for request in 0..RECORDS_MAX as u64 + 2 {
            recorder.push(place(request), tape(b"x"), None).unwrap();
        }
        let report = recorder.report(RECORDS_MAX as u64);
        assert_eq!(report["dropped"], 2);
        assert_eq!(report["records"].as_array().unwrap().len(), 2);
        recorder.clear();
        let large = vec![b'y'; RECORD_BYTES_MAX + 1];
        for request in 0..=(BYTES_MAX / RECORD_BYTES_MAX) as u64 {
            recorder.push(place(request), tape(&large), None).unwrap();
        }
        let report = recorder.report(0);
        assert_eq!(report["dropped"], 3);
        assert_eq!(report["records"][0]["truncated"], true);
        assert_eq!(report["records"][0]["bytes"], large.len());
    }
}
