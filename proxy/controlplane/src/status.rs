//! [`Report`]: what the running process says of itself, to `claviger status`, to a monitoring
//! system, and in the status line of the log.
//!
//! The process listens on a Unix socket beside its state ([`SOCKET_NAME`]) for its own user and
//! group, and answers `GET /status` with JSON and `GET /metrics` with the text format of
//! Prometheus; anything else is 404. One question at a time, each with a deadline: whoever does not
//! ask keeps nobody but the next one waiting, and none of it is on the path of a request.
//!
//! What is deliberately missing: any way to change something, a network address, and every secret.

use std::fmt::{self, Write as _};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::pki::acme::AcmeLine;
use crate::pki::{Expiry, ExpiryState};

/// The socket's name within `state_dir`.
pub const SOCKET_NAME: &str = "status.sock";

/// How long a question, and the answer to it, may take. Past it the connection is closed.
const EXCHANGE_TIME_MAX: Duration = Duration::from_secs(2);

/// Bytes of a question. Past it the connection is closed.
const QUESTION_BYTES_MAX: usize = 4096;

/// Bytes of an answer that [`ask`] reads. Past it that is another program's socket.
const ANSWER_BYTES_MAX: u64 = 64 << 20;

/// Certificates that the status line names. The rest is counted.
const NAMED_MAX: usize = 4;

/// What the running process says of itself.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Of the binary.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// The I/O driver and its workers.
    pub driver: String,
    /// The configuration that is in force.
    pub generation: u64,
    /// Seconds since it was started.
    pub uptime_s: u64,
    /// The counters of all cores, summed, and the figures of the office, in the order of the
    /// status line.
    pub figures: Vec<(String, u64)>,
    /// Upstreams without an address.
    pub unresolved: Vec<String>,
    /// Hosts with certificates of a public authority.
    #[serde(default)]
    pub acme: Vec<AcmeLine>,
    /// Every certificate, by its end.
    pub certificates: Vec<CertificateLine>,
}

/// A certificate of the report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateLine {
    /// What it is for: see [`crate::pki::CertificateKind::as_str`].
    pub kind: String,
    /// Which one of its kind.
    pub name: String,
    /// Begin of its validity, in seconds since 1970.
    pub not_before: i64,
    /// End of its validity, in seconds since 1970.
    pub not_after: i64,
    /// `good`, `expiring` or `expired`.
    pub state: String,
    /// Whether the running process renews it.
    pub renews_itself: bool,
}

impl CertificateLine {
    /// A certificate at `now`.
    pub fn new(expiry: &Expiry, now: SystemTime) -> Self {
        Self {
            kind: expiry.kind.as_str().to_owned(),
            name: expiry.name.clone(),
            not_before: unix(expiry.not_before),
            not_after: unix(expiry.not_after),
            state: expiry.state(now).as_str().to_owned(),
            renews_itself: expiry.kind.is_renewed_by_itself(),
        }
    }

    fn is(&self, state: ExpiryState) -> bool {
        self.state == state.as_str()
    }
}

impl Report {
    /// The status line of the log: `name=value`, separated by spaces.
    pub fn line(&self, now: SystemTime) -> String {
        let mut line = format!(
            "status driver={:?} generation={} uptime_s={}",
            self.driver, self.generation, self.uptime_s
        );
        // Writing to a String cannot fail.
        for (name, value) in &self.figures {
            let _ = write!(line, " {name}={value}");
        }
        if let Some(first) = self.certificates.first() {
            let left = first.not_after.saturating_sub(unix(now)).max(0);
            let _ = write!(line, " certificate_expires_s={left}");
        }
        for state in [ExpiryState::Expiring, ExpiryState::Expired] {
            list(
                &mut line,
                state.as_str(),
                self.certificates
                    .iter()
                    .filter(|certificate| certificate.is(state))
                    .map(|certificate| certificate.name.as_str()),
                NAMED_MAX,
            );
        }
        line
    }

    /// The text format of Prometheus (version 0.0.4).
    pub fn metrics(&self) -> String {
        let mut text = String::new();
        let _ = writeln!(
            text,
            "# TYPE claviger_info gauge\nclaviger_info{{version=\"{}\",driver=\"{}\"}} 1",
            escaped(&self.version),
            escaped(&self.driver)
        );
        for (name, value) in [
            ("generation", self.generation),
            ("uptime_seconds", self.uptime_s),
        ] {
            let _ = writeln!(text, "claviger_{name} {value}");
        }
        for (name, value) in &self.figures {
            let _ = writeln!(text, "claviger_{name} {value}");
        }
        text.push_str(
            "# HELP claviger_certificate_not_after_seconds End of a certificate's validity, in \
             seconds since 1970.\n# TYPE claviger_certificate_not_after_seconds gauge\n",
        );
        for certificate in &self.certificates {
            let _ = writeln!(
                text,
                "claviger_certificate_not_after_seconds{{kind=\"{}\",name=\"{}\"}} {}",
                certificate.kind,
                escaped(&certificate.name),
                certificate.not_after
            );
        }
        text
    }
}

/// For a person at a terminal.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "claviger {} (process {}), {}, up {}, configuration {}",
            self.version,
            self.pid,
            self.driver,
            span(self.uptime_s),
            self.generation
        )?;
        for name in &self.unresolved {
            writeln!(f, "  no address for the upstream {name}")?;
        }
        if self.certificates.is_empty() {
            writeln!(f, "no certificates")?;
        } else {
            writeln!(f, "certificates, by their end:")?;
        }
        let now = unix(SystemTime::now());
        for certificate in &self.certificates {
            let left = certificate.not_after.saturating_sub(now);
            let left = match u64::try_from(left) {
                Ok(left) => format!("{} left", span(left)),
                Err(_) => "over".to_owned(),
            };
            writeln!(
                f,
                "  {:<9} {:<16} {:<12} {}{}",
                certificate.state,
                certificate.kind,
                left,
                certificate.name,
                match certificate.renews_itself {
                    true => " (renewed by itself)",
                    false => "",
                }
            )?;
        }
        for line in &self.acme {
            let Some(error) = &line.error else { continue };
            let wait = line.next_attempt.unwrap_or(now).saturating_sub(now);
            writeln!(
                f,
                "  no certificate by ACME for {}, {} times; again in {}: {error}",
                line.host,
                line.failures,
                span(u64::try_from(wait).unwrap_or(0))
            )?;
        }
        writeln!(f, "figures:")?;
        for (name, value) in &self.figures {
            writeln!(f, "  {name} {value}")?;
        }
        Ok(())
    }
}

/// ` name=a,b` of at most `max` names; nothing of none.
pub(crate) fn list<'a>(
    line: &mut String,
    name: &str,
    values: impl Iterator<Item = &'a str>,
    max: usize,
) {
    for (index, value) in values.take(max).enumerate() {
        match index {
            0 => {
                let _ = write!(line, " {name}={}", word(value));
            }
            _ => {
                let _ = write!(line, ",{}", word(value));
            }
        }
    }
}

/// A value of the status line holds no spaces.
fn word(value: &str) -> String {
    value.split_whitespace().collect::<Vec<_>>().join("_")
}

/// The value of a label.
fn escaped(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

/// Days and hours, or hours and minutes, or minutes, or seconds.
fn span(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

fn unix(when: SystemTime) -> i64 {
    let seconds = |span: Duration| i64::try_from(span.as_secs()).unwrap_or(i64::MAX);
    match when.duration_since(UNIX_EPOCH) {
        Ok(since) => seconds(since),
        Err(before) => -seconds(before.duration()),
    }
}

/// The socket, for as long as the process serves; then it is removed.
#[derive(Debug)]
pub struct StatusSocket {
    listener: UnixListener,
    path: PathBuf,
    inode: u64,
}

impl StatusSocket {
    /// Listens at `path`, for the process's own user and group. A socket that is there is
    /// replaced in one step: at a hand-over the next process takes the name over.
    ///
    /// # Errors
    /// The directory cannot be made or written, or the path is too long for a socket.
    pub fn bind(path: &Path) -> io::Result<StatusSocket> {
        let directory = path.parent().unwrap_or(Path::new("."));
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(DIRECTORY_MODE)
            .create(directory)?;
        // A socket's path is bounded (108 bytes), so this one is short.
        let temporary = directory.join(format!(".s{}", std::process::id()));
        let _ = std::fs::remove_file(&temporary);
        let listener = UnixListener::bind(&temporary)?;
        let placed =
            std::fs::set_permissions(&temporary, std::fs::Permissions::from_mode(SOCKET_MODE))
                .and_then(|()| std::fs::rename(&temporary, path))
                .and_then(|()| std::fs::metadata(path));
        let placed = placed.and_then(|metadata| {
            listener.set_nonblocking(true)?;
            Ok(metadata)
        });
        match placed {
            Ok(metadata) => Ok(StatusSocket {
                listener,
                path: path.to_owned(),
                inode: metadata.ino(),
            }),
            Err(error) => {
                let _ = std::fs::remove_file(&temporary);
                Err(error)
            }
        }
    }

    /// Answers questions until dropped.
    ///
    /// # Errors
    /// The runtime does not take the socket.
    pub async fn serve(&self, report: impl Fn() -> Report) -> io::Result<()> {
        let listener = tokio::net::UnixListener::from_std(self.listener.try_clone()?)?;
        loop {
            let connection = match listener.accept().await {
                Ok((connection, _)) => connection,
                Err(error) => {
                    // Out of descriptors, say: not at full speed.
                    tracing::debug!("a question about the status was not accepted: {error}");
                    tokio::time::sleep(EXCHANGE_TIME_MAX).await;
                    continue;
                }
            };
            let _ = tokio::time::timeout(EXCHANGE_TIME_MAX, answer(connection, &report)).await;
        }
    }
}

impl StatusSocket {
    /// Takes the name away: nobody answers there any more.
    pub fn withdraw(&self) {
        // Not the one of the process that has taken over.
        if std::fs::metadata(&self.path).is_ok_and(|metadata| metadata.ino() == self.inode) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

async fn answer(
    mut connection: tokio::net::UnixStream,
    report: &impl Fn() -> Report,
) -> io::Result<()> {
    let mut question = Vec::new();
    while !question.windows(4).any(|end| end == b"\r\n\r\n") {
        if question.len() > QUESTION_BYTES_MAX || connection.read_buf(&mut question).await? == 0 {
            return Ok(());
        }
    }
    let line = question.split(|byte| *byte == b'\r').next();
    let (status, kind, body) = match line.unwrap_or_default() {
        b"GET /status HTTP/1.1" | b"GET /status HTTP/1.0" => (
            "200 OK",
            "application/json",
            serde_json::to_string(&report()).unwrap_or_default(),
        ),
        b"GET /metrics HTTP/1.1" | b"GET /metrics HTTP/1.0" => {
            ("200 OK", "text/plain; version=0.0.4", report().metrics())
        }
        _ => (
            "404 Not Found",
            "text/plain",
            "/status or /metrics\n".to_owned(),
        ),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    connection.write_all(head.as_bytes()).await?;
    connection.write_all(body.as_bytes()).await?;
    connection.shutdown().await
}

/// Asks the process that serves at `socket`.
///
/// # Errors
/// A sentence for the operator: nobody serves there, or it is somebody else's socket.
pub fn ask(socket: &Path) -> Result<Report, String> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => format!(
            "{}: no process serves with this `state_dir`; start it, or name its configuration with --config",
            socket.display()
        ),
        io::ErrorKind::PermissionDenied => format!(
            "{}: it is for the service's own user and group, and root",
            socket.display()
        ),
        _ => format!("{}: {error}", socket.display()),
    };
    let mut connection = UnixStream::connect(socket).map_err(failed)?;
    connection
        .set_read_timeout(Some(EXCHANGE_TIME_MAX * 2))
        .map_err(failed)?;
    connection
        .write_all(b"GET /status HTTP/1.0\r\n\r\n")
        .map_err(failed)?;
    let mut answer = Vec::new();
    connection
        .take(ANSWER_BYTES_MAX)
        .read_to_end(&mut answer)
        .map_err(failed)?;
    let head = answer.windows(4).position(|end| end == b"\r\n\r\n");
    head.and_then(|end| serde_json::from_slice(&answer[end + 4..]).ok())
        .ok_or_else(|| format!("{}: this is no status of Claviger", socket.display()))
}

/// Owner and group.
const SOCKET_MODE: u32 = 0o660;
const DIRECTORY_MODE: u32 = 0o750;

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        Report {
            version: "1".to_owned(),
            driver: "io_uring (1 workers)".to_owned(),
            figures: vec![("exchanges".to_owned(), 3)],
            certificates: vec![CertificateLine {
                kind: "file".to_owned(),
                name: "a\"b: /x y".to_owned(),
                not_before: 0,
                not_after: 100,
                state: "expired".to_owned(),
                renews_itself: false,
            }],
            ..Report::default()
        }
    }

    #[test]
    fn a_report_is_a_line_metrics_and_a_page() {
        let line = report().line(UNIX_EPOCH + Duration::from_secs(40));
        assert!(
            line.contains(" exchanges=3 certificate_expires_s=60 expired=a\"b:_/x_y"),
            "{line}"
        );
        let metrics = report().metrics();
        assert!(
            metrics.contains(
                "claviger_certificate_not_after_seconds{kind=\"file\",name=\"a\\\"b: /x y\"} 100\n"
            ),
            "{metrics}"
        );
        assert!(metrics.contains("\nclaviger_exchanges 3\n"), "{metrics}");
        let page = report().to_string();
        assert!(page.contains("expired   file             over"), "{page}");
    }

    #[test]
    fn a_process_answers_at_its_socket_and_takes_it_away() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("state/status.sock");
        assert!(ask(&path).unwrap_err().contains("no process serves"));
        let socket = StatusSocket::bind(&path).expect("bound");
        // The next process takes the name over, and the first one leaves it alone.
        let next = StatusSocket::bind(&path).expect("bound");
        socket.withdraw();
        assert_eq!(
            std::fs::metadata(&path)
                .expect("there")
                .permissions()
                .mode()
                & 0o777,
            0o660
        );
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let serving = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(async {
                tokio::select! {
                    served = next.serve(report) => served.expect("it serves"),
                    _ = stopped => {}
                }
            });
            next.withdraw();
        });
        assert_eq!(ask(&path).expect("answered"), report());
        stop.send(()).expect("it waits");
        serving.join().expect("it ended");
        assert!(!path.exists());
    }
}
