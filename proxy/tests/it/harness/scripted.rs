//! [`Scripted`]: an upstream that does exactly what a test says, for everything
//! that a well-behaved mock cannot do.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};

use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::pki::TestCa;
use super::{PATIENCE, World};

/// A TLS server whose every connection runs a script in a thread of its own. What
/// scripts send with [`Peer::tell`], the test receives with [`Scripted::told`].
#[derive(Debug)]
pub struct Scripted {
    address: SocketAddr,
    ca_file: PathBuf,
    ended: Arc<AtomicBool>,
    acceptor: Option<JoinHandle<()>>,
    news: mpsc::Receiver<String>,
}

impl Scripted {
    /// For `name`, with a CA of its own.
    pub fn start(
        world: &World,
        name: &str,
        script: impl Fn(&mut Peer) + Send + Sync + 'static,
    ) -> Self {
        let ca = TestCa::new(&world.subdirectory("scripted"), "ca");
        let config = ca.server(&[name]);
        Self::start_with(ca.file().to_owned(), config, script)
    }

    /// With a TLS configuration of the test's own.
    pub fn start_with(
        ca_file: PathBuf,
        config: Arc<ServerConfig>,
        script: impl Fn(&mut Peer) + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound");
        let ended = Arc::new(AtomicBool::new(false));
        let (tell, news) = mpsc::channel();
        let script = Arc::new(script);
        let acceptor = thread::spawn({
            let ended = Arc::clone(&ended);
            move || {
                for (number, socket) in listener.incoming().enumerate() {
                    let Ok(socket) = socket else { continue };
                    if ended.load(Ordering::Acquire) {
                        return;
                    }
                    let (config, script, tell) =
                        (Arc::clone(&config), Arc::clone(&script), tell.clone());
                    thread::spawn(move || {
                        if let Ok(mut peer) = Peer::accept(number, socket, config, tell) {
                            script(&mut peer);
                        }
                    });
                }
            }
        });
        Self {
            address,
            ca_file,
            ended,
            acceptor: Some(acceptor),
            news,
        }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its `[upstream.NAME]` table.
    pub fn upstream(&self, name: &str, host: &str) -> String {
        super::mock::upstream(name, host, &[self.address], &self.ca_file)
    }

    /// The next thing that a script tells.
    #[track_caller]
    pub fn told(&self) -> String {
        self.news
            .recv_timeout(PATIENCE)
            .expect("the script tells something")
    }

    /// What scripts have told and nobody has asked for.
    pub fn told_so_far(&self) -> Vec<String> {
        self.news.try_iter().collect()
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
        // Wakes the acceptor.
        let _ = TcpStream::connect(self.address);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

/// One connection of a [`Scripted`] upstream.
#[derive(Debug)]
pub struct Peer {
    /// The how-manieth connection this is, from 0.
    pub number: usize,
    stream: StreamOwned<ServerConnection, TcpStream>,
    ahead: Vec<u8>,
    tell: mpsc::Sender<String>,
}

impl Peer {
    fn accept(
        number: usize,
        mut socket: TcpStream,
        config: Arc<ServerConfig>,
        tell: mpsc::Sender<String>,
    ) -> io::Result<Self> {
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        let mut connection = ServerConnection::new(config).map_err(io::Error::other)?;
        while connection.is_handshaking() {
            if let Err(err) = connection.complete_io(&mut socket) {
                let _ = tell.send(format!("handshake failed: {err}"));
                return Err(err);
            }
        }
        Ok(Self {
            number,
            stream: StreamOwned::new(connection, socket),
            ahead: Vec::new(),
            tell,
        })
    }

    /// Tells the test something.
    pub fn tell(&self, news: impl Into<String>) {
        let _ = self.tell.send(news.into());
    }

    /// Reads the next request's head; `None` when the other side has gone.
    pub fn head(&mut self) -> Option<String> {
        loop {
            if let Some(at) = memchr::memmem::find(&self.ahead, b"\r\n\r\n") {
                let head: Vec<u8> = self.ahead.drain(..at + 4).collect();
                return Some(String::from_utf8_lossy(&head).into_owned());
            }
            if self.fill().ok()? == 0 {
                return None;
            }
        }
    }

    /// Reads whatever comes next; empty at the end, however it came.
    pub fn read_some(&mut self) -> Vec<u8> {
        if self.ahead.is_empty() && self.fill().is_err() {
            return Vec::new();
        }
        std::mem::take(&mut self.ahead)
    }

    /// Reads and discards until the other side has gone.
    pub fn wait_end(&mut self) {
        while !self.read_some().is_empty() {}
    }

    /// Sends bytes as they are; what a vanished peer misses is no error here.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.stream
            .write_all(bytes.as_ref())
            .and_then(|()| self.stream.flush())
            .is_ok()
    }

    /// Answers 200 with this body.
    pub fn answer(&mut self, body: &str) -> bool {
        self.send(format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        ))
    }

    /// Closes politely.
    pub fn close(&mut self) {
        self.stream.conn.send_close_notify();
        let _ = self.stream.flush();
        let _ = self.stream.sock.shutdown(Shutdown::Both);
    }

    fn fill(&mut self) -> io::Result<usize> {
        let mut chunk = [0; 16 * 1024];
        let read = match self.stream.read(&mut chunk) {
            Err(err) if err.kind() == io::ErrorKind::UnexpectedEof => 0,
            other => other?,
        };
        self.ahead.extend_from_slice(&chunk[..read]);
        Ok(read)
    }
}
