//! The record of what arrived: one JSON line per request, written before the answer leaves.
//!
//! Writing happens on the worker, behind a lock: a record is for tests that assert what the API
//! received, not for measuring.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use serde_json::Value;

/// An append-only file of JSON lines.
#[derive(Debug)]
pub struct Recorder {
    file: Mutex<File>,
}

impl Recorder {
    /// Opens the file, creating it if need be; earlier lines stay.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .open(path)
            .map_err(|error| {
                io::Error::new(
                    error.kind(),
                    format!("--record {}: {error}", path.display()),
                )
            })?;
        Ok(Recorder {
            file: Mutex::new(file),
        })
    }

    /// Appends one line, whole.
    pub fn append(&self, entry: &Value) -> io::Result<()> {
        let mut line = entry.to_string();
        line.push('\n');
        self.file
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .write_all(line.as_bytes())
    }
}
