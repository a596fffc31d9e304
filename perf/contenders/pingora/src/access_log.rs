//! The access log: a JSON line for each request, gathered in memory and written in large pieces.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pingora::protocols::l4::socket::SocketAddr;

pub struct AccessLog {
    /// Not contended: one thread serves, and another one looks in each second.
    gathered: Mutex<Gathered>,
    /// Distinguishes requests of one process.
    requests: AtomicU64,
    /// Distinguishes processes.
    process: u64,
}

struct Gathered {
    text: String,
    file: File,
}

/// What is known of a request when it has ended.
pub struct Entry<'a> {
    pub client: Option<&'a SocketAddr>,
    pub host: &'a [u8],
    pub method: &'a str,
    pub path: &'a str,
    pub status: u16,
    pub bytes_in: usize,
    pub bytes_out: usize,
    pub upstream: &'a str,
    pub upstream_status: u16,
    pub took: Duration,
    pub connect: Option<Duration>,
    pub head: Option<Duration>,
}

impl AccessLog {
    pub fn open(path: &str) -> Result<AccessLog, String> {
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .open(path)
            .map_err(|error| format!("{path}: {error}"))?;
        Ok(AccessLog {
            gathered: Mutex::new(Gathered {
                text: String::with_capacity(GATHERED_BYTES + LINE_BYTES),
                file,
            }),
            requests: AtomicU64::new(0),
            process: now().as_nanos() as u64,
        })
    }

    pub fn write(&self, entry: &Entry) {
        let mut gathered = self
            .gathered
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        // Into a string, so it cannot fail.
        let _ = self.line(&mut gathered.text, number, entry);
        if gathered.text.len() >= GATHERED_BYTES {
            gathered.write_out();
        }
    }

    pub fn flush(&self) {
        self.gathered
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .write_out();
    }

    fn line(&self, text: &mut String, number: u64, entry: &Entry) -> std::fmt::Result {
        let now = now();
        write!(
            text,
            r#"{{"time":{}.{:03},"#,
            now.as_secs(),
            now.subsec_millis()
        )?;
        write!(
            text,
            r#""request_id":"{:016x}{number:016x}","client":""#,
            self.process
        )?;
        match entry.client {
            Some(SocketAddr::Inet(client)) => write!(text, "{}", client.ip())?,
            _ => text.push('-'),
        }
        text.push_str(r#"","host":""#);
        escape(text, &String::from_utf8_lossy(entry.host));
        write!(text, r#"","method":"{}","path":""#, entry.method)?;
        escape(text, entry.path);
        write!(
            text,
            r#"","status":{},"bytes_in":{},"bytes_out":{},"upstream":"{}","upstream_status":{},"seconds":{}"#,
            entry.status,
            entry.bytes_in,
            entry.bytes_out,
            entry.upstream,
            entry.upstream_status,
            Seconds(Some(entry.took)),
        )?;
        writeln!(
            text,
            r#","upstream_connect":{},"upstream_head":{}}}"#,
            Seconds(entry.connect),
            Seconds(entry.head)
        )
    }
}

impl Gathered {
    fn write_out(&mut self) {
        if let Err(error) = self.file.write_all(self.text.as_bytes()) {
            log::error!("the access log cannot be written: {error}");
        }
        self.text.clear();
    }
}

/// A time in seconds with three digits, as nginx logs it; `null` if it never came to that.
struct Seconds(Option<Duration>);

impl std::fmt::Display for Seconds {
    fn fmt(&self, out: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self.0 {
            Some(time) => write!(out, "{}.{:03}", time.as_secs(), time.subsec_millis()),
            None => out.write_str("null"),
        }
    }
}

/// RFC 8259, 7: what may not stand in a string as it is.
fn escape(text: &mut String, raw: &str) {
    for char in raw.chars() {
        match char {
            '"' | '\\' => text.extend(['\\', char]),
            '\0'..='\x1f' => {
                let _ = write!(text, "\\u{:04x}", u32::from(char));
            }
            _ => text.push(char),
        }
    }
}

fn now() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

/// Written out when it has so many bytes; nginx's `buffer=64k`.
const GATHERED_BYTES: usize = 64 * 1024;
/// Room for the line that goes beyond.
const LINE_BYTES: usize = 2048;
