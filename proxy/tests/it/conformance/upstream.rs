//! The upstream of one row: it does what the row's answers say, and notes every byte that it gets.
//!
//! Its reader of requests is the judge's own. It takes requests apart as strictly as the RFC allows a
//! server to; what it cannot take apart counts as malformed, and ends the connection.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use memchr::memmem;
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::case::{Answer, Case, End, On, Words};

/// A target that contains this is a probe: answered by itself, and no request of the row.
pub const PROBE: &str = "/probe-";

/// What has happened so far, on both sides.
#[derive(Debug, Default)]
pub struct Seen {
    /// All bytes received, by connection.
    pub received: Vec<Vec<u8>>,
    /// Requests of the row, complete ones.
    pub requests: Vec<Request>,
    /// The connection over which each probe came.
    pub probes: Vec<usize>,
    /// What the caller has received.
    pub client: Vec<u8>,
    /// Answers that are under way.
    busy: usize,
    /// What the judge could not read.
    pub malformed: Vec<String>,
    /// Bytes of complete requests and of probes, by connection: what else was received is stray.
    pub accounted: Vec<usize>,
}

/// A request, as the upstream took it from its connection.
#[derive(Debug, Clone)]
pub struct Request {
    /// The connection, from 0.
    pub connection: usize,
    /// Head and body, as they came.
    pub raw: Vec<u8>,
}

/// [`Seen`], and a bell that rings when it changes.
#[derive(Debug, Default)]
pub struct Scene {
    seen: Mutex<Seen>,
    changed: Condvar,
}

impl Scene {
    /// Looks.
    pub fn look<T>(&self, look: impl FnOnce(&Seen) -> T) -> T {
        look(&self.seen.lock().expect("no panic while held"))
    }

    /// Changes something and rings.
    pub fn note<T>(&self, note: impl FnOnce(&mut Seen) -> T) -> T {
        let noted = note(&mut self.seen.lock().expect("no panic while held"));
        self.changed.notify_all();
        noted
    }

    /// Waits until `is` holds; false when it did not within `limit`.
    pub fn wait(&self, limit: Duration, is: impl Fn(&Seen) -> bool) -> bool {
        let deadline = Instant::now() + limit;
        let mut seen = self.seen.lock().expect("no panic while held");
        while !is(&seen) {
            let Some(left) = deadline.checked_duration_since(Instant::now()) else {
                return false;
            };
            seen = self
                .changed
                .wait_timeout(seen, left)
                .expect("no panic while held")
                .0;
        }
        true
    }

    /// Waits until no answer is under way.
    pub fn wait_idle(&self, limit: Duration) -> bool {
        self.wait(limit, |seen| seen.busy == 0)
    }

    /// Waits until `bytes` stand in what the upstream received.
    pub fn wait_upstream(&self, limit: Duration, bytes: &[u8]) -> bool {
        self.wait(limit, |seen| {
            seen.received
                .iter()
                .any(|received| memmem::find(received, bytes).is_some())
        })
    }
}

/// The listening upstream of a row. When dropped it takes no further connection; those that it has
/// end with the subject.
#[derive(Debug)]
pub struct Upstream {
    /// What it has seen.
    pub scene: Arc<Scene>,
    address: SocketAddr,
    ended: Arc<AtomicBool>,
    acceptor: Option<JoinHandle<()>>,
}

impl Upstream {
    /// Serves `listener` for this row. Nothing it does takes longer than `patience`.
    pub fn start(
        listener: TcpListener,
        config: &Arc<ServerConfig>,
        case: &Case,
        words: &Words,
        patience: Duration,
    ) -> Self {
        let address = listener.local_addr().expect("bound");
        let scene = Arc::new(Scene::default());
        let ended = Arc::new(AtomicBool::new(false));
        let script = Arc::new(Script {
            name: case.name.clone(),
            answers: case.answer.clone(),
            words: words.clone(),
            numbers: AtomicUsize::new(0),
            accepted: AtomicUsize::new(0),
            scene: Arc::clone(&scene),
            patience,
        });
        let config = Arc::clone(config);
        let acceptor = thread::spawn({
            let ended = Arc::clone(&ended);
            move || {
                for socket in listener.incoming() {
                    if ended.load(Ordering::Acquire) {
                        return;
                    }
                    let Ok(socket) = socket else { continue };
                    let (config, script) = (Arc::clone(&config), Arc::clone(&script));
                    thread::spawn(move || {
                        if let Ok(peer) = Peer::accept(socket, config, script) {
                            peer.serve();
                        }
                    });
                }
            }
        });
        Self {
            scene,
            address,
            ended,
            acceptor: Some(acceptor),
        }
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
        // Wakes the acceptor.
        let _ = TcpStream::connect(self.address);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

/// What all connections of a row share.
#[derive(Debug)]
struct Script {
    name: String,
    answers: Vec<Answer>,
    words: Words,
    /// Requests whose head has come.
    numbers: AtomicUsize,
    /// Connections that were accepted, with a handshake or without.
    accepted: AtomicUsize,
    scene: Arc<Scene>,
    patience: Duration,
}

struct Peer {
    number: usize,
    stream: StreamOwned<ServerConnection, TcpStream>,
    script: Arc<Script>,
    ahead: Vec<u8>,
}

impl Peer {
    fn accept(
        mut socket: TcpStream,
        config: Arc<ServerConfig>,
        script: Arc<Script>,
    ) -> io::Result<Self> {
        socket.set_nodelay(true)?;
        socket.set_write_timeout(Some(script.patience))?;
        let is_first = script.accepted.fetch_add(1, Ordering::AcqRel) == 0;
        let early = |on: On| -> Vec<u8> {
            let answers = script.answers.iter();
            let bytes = answers
                .filter(|answer| is_first && answer.on == on)
                .map(|answer| script.words.bytes(answer.send()));
            bytes.flatten().collect()
        };
        socket.write_all(&early(On::Socket))?;
        let half_rtt = early(On::Handshake);
        let config = if half_rtt.is_empty() {
            config
        } else {
            let mut config = ServerConfig::clone(&config);
            config.send_half_rtt_data = true;
            Arc::new(config)
        };
        let mut connection = ServerConnection::new(config).map_err(io::Error::other)?;
        // A row's answer is written in one piece, however long it is.
        connection.set_buffer_limit(None);
        connection.writer().write_all(&half_rtt)?;
        while connection.is_handshaking() {
            connection.complete_io(&mut socket)?;
        }
        let number = script.scene.note(|seen| {
            seen.received.push(Vec::new());
            seen.accounted.push(0);
            seen.received.len() - 1
        });
        Ok(Self {
            number,
            stream: StreamOwned::new(connection, socket),
            script,
            ahead: Vec::new(),
        })
    }

    fn serve(mut self) {
        let connected: Vec<Answer> = self.answers(0, On::Connect);
        if self.number == 0 && !connected.is_empty() && !self.play(&connected) {
            return;
        }
        while self.exchange() {}
    }

    /// One request and its answers; false at the connection's end.
    fn exchange(&mut self) -> bool {
        let head_len = loop {
            match memmem::find(&self.ahead, b"\r\n\r\n") {
                Some(at) => break at + 4,
                None if !self.fill() => return false,
                None => {}
            }
        };
        let head = String::from_utf8_lossy(&self.ahead[..head_len]).into_owned();
        let target = head.split(' ').nth(1).unwrap_or_default().to_owned();
        let is_probe = target.contains(PROBE);
        let number = if is_probe {
            0
        } else {
            self.script.numbers.fetch_add(1, Ordering::AcqRel) + 1
        };
        let early = self.answers(number, On::Head);
        if !is_probe && !early.is_empty() {
            self.script.scene.note(|seen| seen.busy += 1);
            let goes_on = self.play(&early);
            self.script.scene.note(|seen| seen.busy -= 1);
            if !goes_on {
                return false;
            }
        }
        let body_len = loop {
            match body_len(&head, &self.ahead[head_len..]) {
                Ok(Some(body_len)) => break body_len,
                Ok(None) if !self.fill() => return false,
                Ok(None) => {}
                Err(problem) => {
                    self.script.scene.note(|seen| {
                        seen.malformed.push(format!("{problem}: {head:?}"));
                    });
                    self.end(End::Goodbye);
                    return false;
                }
            }
        };
        let raw: Vec<u8> = self.ahead.drain(..head_len + body_len).collect();
        if is_probe {
            self.script.scene.note(|seen| {
                seen.accounted[self.number] += raw.len();
                seen.probes.push(self.number);
            });
            // The query may hold the key.
            let path = target.split('?').next().unwrap_or_default();
            return self.send(&marker(path));
        }
        self.script.scene.note(|seen| {
            seen.busy += 1;
            seen.accounted[self.number] += raw.len();
            seen.requests.push(Request {
                connection: self.number,
                raw,
            });
        });
        let late = self.answers(number, On::Request);
        let goes_on = if late.is_empty() && early.is_empty() {
            self.send(&marker(&format!("{} {number}", self.script.name)))
        } else {
            self.play(&late)
        };
        self.script.scene.note(|seen| seen.busy -= 1);
        goes_on
    }

    fn answers(&self, number: usize, on: On) -> Vec<Answer> {
        let answers = self.script.answers.iter();
        answers
            .filter(|answer| answer.on == on && (on == On::Connect || answer.request == number))
            .cloned()
            .collect()
    }

    fn play(&mut self, answers: &[Answer]) -> bool {
        for answer in answers {
            if let Some(bytes) = &answer.after_client {
                let bytes = self.script.words.bytes(bytes);
                self.script.scene.wait(self.script.patience, |seen| {
                    memmem::find(&seen.client, &bytes).is_some()
                });
            }
            if !answer.send().is_empty() {
                // One write for all records, and for the goodbye: they arrive together.
                for record in self.script.words.pattern(answer.send()) {
                    if self.stream.conn.writer().write_all(&record).is_err() {
                        return false;
                    }
                }
                if answer.end == End::Goodbye {
                    self.stream.conn.send_close_notify();
                }
                if !self.flush() {
                    return false;
                }
            }
            if answer.end != End::Keep {
                self.end(answer.end);
                return false;
            }
        }
        true
    }

    fn send(&mut self, bytes: &[u8]) -> bool {
        self.stream.conn.writer().write_all(bytes).is_ok() && self.flush()
    }

    /// Sends what was sealed, in one write.
    fn flush(&mut self) -> bool {
        let mut sealed = Vec::new();
        while self.stream.conn.wants_write() {
            if self.stream.conn.write_tls(&mut sealed).is_err() {
                return false;
            }
        }
        self.stream.sock.write_all(&sealed).is_ok()
    }

    fn end(&mut self, end: End) {
        match end {
            End::Keep => {}
            End::Goodbye => {
                self.stream.conn.send_close_notify();
                let _ = self.stream.flush();
                let _ = self.stream.sock.shutdown(Shutdown::Write);
                // Bytes that are read no more would turn the FIN into a reset.
                while self.fill() {}
            }
            End::Fin => {
                let _ = self.stream.sock.shutdown(Shutdown::Write);
                while self.fill() {}
            }
            End::Reset => super::reset(&self.stream.sock),
        }
    }

    fn fill(&mut self) -> bool {
        let mut chunk = [0; 16 * 1024];
        match self.stream.read(&mut chunk) {
            Ok(read) if read > 0 => {
                self.ahead.extend_from_slice(&chunk[..read]);
                self.script.scene.note(|seen| {
                    seen.received[self.number].extend_from_slice(&chunk[..read]);
                });
                true
            }
            _ => false,
        }
    }
}

/// A 200 that nobody else gets.
fn marker(body: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// How long the body behind `head` is; `None` while it is not all there.
fn body_len(head: &str, rest: &[u8]) -> Result<Option<usize>, String> {
    let mut length = None;
    let mut chunked = false;
    for line in head.split("\r\n").skip(1).filter(|line| !line.is_empty()) {
        let (name, value) = line.split_once(':').ok_or("a line without colon")?;
        if name.is_empty() || name.contains([' ', '\t', '\r', '\n']) {
            return Err("a field name with white space, or none".into());
        }
        if line.contains(['\r', '\n', '\0']) {
            return Err("a control byte".into());
        }
        let value = value.trim();
        if name.eq_ignore_ascii_case("content-length") {
            if length.is_some() || value.is_empty() || !value.bytes().all(|b| b.is_ascii_digit()) {
                return Err("Content-Length".into());
            }
            length = Some(value.parse::<usize>().map_err(|_| "Content-Length")?);
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            if chunked || !value.eq_ignore_ascii_case("chunked") {
                return Err("Transfer-Encoding".into());
            }
            chunked = true;
        }
    }
    match (length, chunked) {
        (Some(_), true) => Err("Content-Length and Transfer-Encoding".into()),
        (Some(length), false) => Ok((rest.len() >= length).then_some(length)),
        (None, false) => Ok(Some(0)),
        (None, true) => super::wire::chunked_len(rest),
    }
}
