//! [`Api`]: the third-party APIs of the proof, all of them at once: a TLS server on
//! loopback that does what a request's `X-Prove` field asks for, mostly badly.
//!
//! It knows just enough of HTTP to find the end of a request of the proof's own
//! caller. It shares no parser with the proxy.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};

use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::coded;
use super::search::{Canaries, forms};
use super::{LockExt, PATIENCE};

/// The largest head that is read: more than Claviger forwards.
const HEAD_BYTES_MAX: usize = 1 << 20;

/// How the API meets a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Manner {
    /// With a good certificate, and answers as asked.
    Healthy,
    /// With a certificate of somebody else's CA.
    WrongCertificate,
    /// With bytes that are no TLS.
    NoTls,
    /// Not at all: nothing is read, nothing is said.
    Mute,
    /// Nobody listens.
    Down,
}

const MANNERS: [Manner; 5] = [
    Manner::Healthy,
    Manner::WrongCertificate,
    Manner::NoTls,
    Manner::Mute,
    Manner::Down,
];

/// What an answer does with the key that the request carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Script {
    /// As `X-Prove` names it.
    pub name: &'static str,
    /// What is sent back. `{form}` is the key in some form, `{earlier}` the one that was in
    /// its place before in that form, `{key}` the key as it is, `{many}` the key many times
    /// over, `{flood}` many interim answers with it. A body is coded as the head says.
    pub text: &'static str,
    /// How it is sent.
    pub pieces: Pieces,
    /// How it ends.
    pub end: End,
    /// How it is asked for.
    pub asked: Asked,
}

/// In which pieces an answer is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pieces {
    /// At once.
    Whole,
    /// In two writes, cut in the middle of what is filled in.
    Halves,
    /// A head, then each byte as a chunk of its own, coded if the head says so, and an
    /// empty chunk.
    ByteChunks,
    /// A head, then two chunks cut in the middle of what is filled in; the last
    /// chunk and whatever follows is the script's.
    TwoChunks,
    /// A head with the length of what follows it, coded if the head says so.
    Sized,
    /// A head, then WebSocket messages: a text, the same in two fragments, the same
    /// in binary, as a ping, and as the reason of a close.
    Frames,
}

/// What follows an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The next request.
    Stay,
    /// A proper close.
    Close,
    /// A reset.
    Reset,
    /// Nothing, for as long as the other side waits.
    Wait,
    /// Nothing until the gate opens; then the second half, and a close.
    Gate,
}

/// How a script's answer is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// An ordinary request.
    Plainly,
    /// With `Upgrade: websocket`.
    WebSocket,
}

/// What one route's API was sent.
#[derive(Debug, Default)]
pub struct Received {
    /// All of it.
    pub bytes: Vec<u8>,
    /// Requests.
    pub requests: u64,
    /// The `Host` fields of the requests.
    pub hosts: BTreeMap<String, u64>,
}

/// The running APIs.
#[derive(Debug)]
pub struct Api {
    address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    manner: AtomicU8,
    good: Arc<ServerConfig>,
    wrong: Arc<ServerConfig>,
    canaries: Arc<Canaries>,
    /// The canaries from this one on are keys; those before it are others' secrets.
    keys_from: usize,
    /// The canary that each one has taken the place of.
    earlier: BTreeMap<usize, usize>,
    scripts: Vec<Script>,
    received: Mutex<BTreeMap<usize, Received>>,
    /// How many have come to the gate, and whether it is open.
    gate: Mutex<(usize, bool)>,
    gate_moved: Condvar,
}

impl Api {
    /// Listens on a free port of loopback.
    ///
    /// # Errors
    /// As binding.
    pub fn start(
        listener: TcpListener,
        good: Arc<ServerConfig>,
        wrong: Arc<ServerConfig>,
        canaries: Arc<Canaries>,
        keys_from: usize,
        earlier: BTreeMap<usize, usize>,
        scripts: Vec<Script>,
    ) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            manner: AtomicU8::new(Manner::Healthy as u8),
            good,
            wrong,
            canaries,
            keys_from,
            earlier,
            scripts,
            received: Mutex::default(),
            gate: Mutex::default(),
            gate_moved: Condvar::new(),
        });
        let acceptor = thread::spawn({
            let shared = Arc::clone(&shared);
            move || {
                for socket in listener.incoming() {
                    if shared.manner() == Manner::Down {
                        return;
                    }
                    let Ok(socket) = socket else { continue };
                    let shared = Arc::clone(&shared);
                    // What a connection ends with is the proof's business, not an error.
                    thread::spawn(move || drop(shared.connection(socket)));
                }
            }
        });
        Ok(Self {
            address,
            shared,
            acceptor: Some(acceptor),
        })
    }

    /// Meets connections differently from now on. [`Manner::Down`] is for good.
    pub fn behave(&mut self, manner: Manner) {
        self.shared.manner.store(manner as u8, Ordering::SeqCst);
        if manner == Manner::Down
            && let Some(acceptor) = self.acceptor.take()
        {
            // Wakes the acceptor, which ends and with it the listening socket.
            let _ = TcpStream::connect(self.address);
            let _ = acceptor.join();
        }
    }

    /// Waits until so many connections stand at the gate.
    pub fn wait_at_gate(&self, count: usize) -> bool {
        let gate = self.shared.gate.lock_unpoisoned();
        let (gate, _) = self
            .shared
            .gate_moved
            .wait_timeout_while(gate, PATIENCE, |(came, _)| *came < count)
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        gate.0 >= count
    }

    /// Opens the gate.
    pub fn open_gate(&self) {
        self.shared.gate.lock_unpoisoned().1 = true;
        self.shared.gate_moved.notify_all();
    }

    /// What was received so far, by route.
    pub fn received<T>(&self, look: impl FnOnce(&BTreeMap<usize, Received>) -> T) -> T {
        look(&self.shared.received.lock_unpoisoned())
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        self.open_gate();
        self.behave(Manner::Down);
    }
}

type Stream = StreamOwned<ServerConnection, TcpStream>;

impl Shared {
    fn manner(&self) -> Manner {
        MANNERS[usize::from(self.manner.load(Ordering::SeqCst))]
    }

    fn connection(&self, mut socket: TcpStream) -> io::Result<()> {
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        let config = match self.manner() {
            Manner::Healthy => &self.good,
            Manner::WrongCertificate => &self.wrong,
            Manner::NoTls => return socket.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
            Manner::Mute => return io::copy(&mut socket, &mut io::sink()).map(drop),
            Manner::Down => return Ok(()),
        };
        let connection = ServerConnection::new(Arc::clone(config)).map_err(io::Error::other)?;
        let mut stream = StreamOwned::new(connection, socket);
        let mut ahead = Vec::new();
        while let Some(head) = read_head(&mut stream, &mut ahead)? {
            if self.manner() != Manner::Healthy {
                return Ok(());
            }
            let text = String::from_utf8_lossy(&head).into_owned();
            let mut received = head;
            if let Some(length) = field(&text, "content-length")
                && let Ok(length) = length.parse::<usize>()
            {
                while ahead.len() < length.min(HEAD_BYTES_MAX) {
                    if fill(&mut stream, &mut ahead)? == 0 {
                        return Ok(());
                    }
                }
                received.extend(ahead.drain(..length.min(ahead.len())));
            }
            if !self.answer(&mut stream, &text, &received)? {
                stream.conn.send_close_notify();
                let _ = stream.flush();
                return stream.sock.shutdown(Shutdown::Both);
            }
        }
        Ok(())
    }

    /// Answers one request. `false`: the connection ends with it.
    fn answer(&self, stream: &mut Stream, head: &str, received: &[u8]) -> io::Result<bool> {
        // ROUTE SCRIPT FORM
        let order = field(head, "x-prove").unwrap_or_default();
        let mut words = order.split(' ');
        let mut number = || words.next().and_then(|word| word.parse::<usize>().ok());
        let (route, script, form) = (number(), number(), number());
        {
            let mut all = self.received.lock_unpoisoned();
            // What nobody asked for is nobody's, and no key may be in it.
            let entry = all.entry(route.unwrap_or(usize::MAX)).or_default();
            entry.bytes.extend_from_slice(received);
            entry.requests += 1;
            let host = field(head, "host").unwrap_or_default().to_owned();
            *entry.hosts.entry(host).or_default() += 1;
        }
        let (Some(script), Some(form)) = (script.and_then(|at| self.scripts.get(at)), form) else {
            stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n")?;
            return Ok(true);
        };
        // The key as this very request carried it, whatever version that is.
        let key = self
            .canaries
            .search(received)
            .range(self.keys_from..)
            .map(|(&id, _)| (id, self.canaries.text(id)))
            .find(|(_, text)| !text.is_empty());
        let earlier = key
            .and_then(|(id, _)| self.earlier.get(&id))
            .map_or("no key was there before", |&id| self.canaries.text(id));
        let key = key.map_or("no key was sent", |(_, text)| text);
        let in_form = |text: &str| match forms(text).into_iter().nth(form) {
            Some((_, form)) => form,
            // As it was written into the request.
            None => match field(head, "authorization") {
                Some(written) if text == key => written.to_owned(),
                _ => text.to_owned(),
            },
        };
        let form = &*in_form(key);
        let text = script
            .text
            .replace("{many}", &format!("{key},").repeat(2000))
            .replace(
                "{flood}",
                &format!("HTTP/1.1 103 Early Hints\r\nLink: {key}\r\n\r\n").repeat(500),
            )
            .replace("{key}", key)
            .replace("{earlier}", &in_form(earlier))
            .replace("{form}", form);
        let (start, rest) = text
            .find("\r\n\r\n")
            .map_or((&*text, ""), |at| text.split_at(at + 4));
        let middle = rest
            .find(form)
            .map_or(rest.len() / 2, |at| at + form.len() / 2);
        let coding = field(start, "content-encoding").unwrap_or_default();
        let coded = |body: &str| coded::encode(coding, body.as_bytes());
        match script.pieces {
            Pieces::Whole => write(stream, text.as_bytes())?,
            Pieces::Halves => {
                let cut = start.len() + middle;
                write(stream, &text.as_bytes()[..cut])?;
                if script.end == End::Gate {
                    self.wait_for_gate();
                }
                write(stream, &text.as_bytes()[cut..])?;
            }
            Pieces::Sized => {
                let head = start.trim_end();
                let body = coded(rest);
                let length = body.len();
                let head = format!("{head}\r\nContent-Length: {length}\r\n\r\n");
                write(stream, &[head.as_bytes(), &body].concat())?;
            }
            Pieces::ByteChunks => {
                let mut out = start.as_bytes().to_vec();
                for byte in coded(rest) {
                    out.extend_from_slice(&[b'1', b'\r', b'\n', byte, b'\r', b'\n']);
                }
                out.extend_from_slice(b"0\r\n\r\n");
                write(stream, &out)?;
            }
            Pieces::TwoChunks => {
                let (body, last) = rest.split_once("<last>").unwrap_or((rest, "0\r\n\r\n"));
                let (one, other) = body.split_at(middle.min(body.len()));
                write(stream, start.as_bytes())?;
                for part in [one, other] {
                    if !part.is_empty() {
                        write(stream, format!("{:x}\r\n{part}\r\n", part.len()).as_bytes())?;
                    }
                }
                write(stream, last.as_bytes())?;
            }
            Pieces::Frames => {
                write(stream, start.as_bytes())?;
                let (one, other) = rest.split_at(middle);
                write(stream, &frame(0x81, rest.as_bytes()))?;
                write(stream, &frame(0x01, one.as_bytes()))?;
                write(stream, &frame(0x80, other.as_bytes()))?;
                write(stream, &frame(0x82, rest.as_bytes()))?;
                // Control frames hold 125 bytes (RFC 6455, section 5.5).
                let short = &key.as_bytes()[..key.len().min(100)];
                write(stream, &frame(0x89, short))?;
                write(stream, &frame(0x88, &[&[0x03, 0xe8], short].concat()))?;
            }
        }
        match script.end {
            End::Stay => Ok(true),
            End::Close | End::Gate => Ok(false),
            End::Reset => {
                // Bytes that nobody will read make the close a reset; without
                // close_notify it is an error in TLS anyway.
                let _ = stream.sock.shutdown(Shutdown::Both);
                Err(io::ErrorKind::ConnectionReset.into())
            }
            End::Wait => {
                let mut ahead = Vec::new();
                while fill(stream, &mut ahead)? > 0 {
                    ahead.clear();
                }
                Ok(false)
            }
        }
    }

    fn wait_for_gate(&self) {
        let mut gate = self.gate.lock_unpoisoned();
        gate.0 += 1;
        self.gate_moved.notify_all();
        drop(
            self.gate_moved
                .wait_timeout_while(gate, PATIENCE, |(_, open)| !*open),
        );
    }
}

/// Sends all of it now.
fn write(stream: &mut Stream, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes)?;
    stream.flush()
}

/// An unmasked WebSocket frame (RFC 6455, section 5.2).
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![first];
    match u16::try_from(payload.len()) {
        Ok(length) if length < 126 => out.push(length as u8),
        Ok(length) => {
            out.push(126);
            out.extend_from_slice(&length.to_be_bytes());
        }
        Err(_) => {
            out.push(127);
            out.extend_from_slice(&(payload.len() as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(payload);
    out
}

/// The next request's head; `None` when the other side has gone.
fn read_head(stream: &mut Stream, ahead: &mut Vec<u8>) -> io::Result<Option<Vec<u8>>> {
    loop {
        if let Some(at) = memchr::memmem::find(ahead, b"\r\n\r\n") {
            return Ok(Some(ahead.drain(..at + 4).collect()));
        }
        if ahead.len() > HEAD_BYTES_MAX || fill(stream, ahead)? == 0 {
            return Ok(None);
        }
    }
}

fn fill(stream: &mut Stream, ahead: &mut Vec<u8>) -> io::Result<usize> {
    let mut chunk = [0; 16 * 1024];
    let read = match stream.read(&mut chunk) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => 0,
        other => other?,
    };
    ahead.extend_from_slice(&chunk[..read]);
    Ok(read)
}

/// A field's value in a head that Claviger wrote.
pub fn field<'h>(head: &'h str, name: &str) -> Option<&'h str> {
    head.lines().skip(1).find_map(|line| {
        let (found, value) = line.split_once(':')?;
        found.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}
