//! One connection: requests come in, answers go out, in order, until one side has enough.
//!
//! [`Connection::serve`] tells the whole story. The fixed answer (`GET /ok`) is given right there
//! without an allocation; everything else goes through [`handlers`].

use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::control;
use crate::executor::before;
use crate::handlers::{self, Endpoint};
use crate::http::{BodyDecoder, BodyError, Decoded, Framing, Head, HeadError, Response, Version};
use crate::keys::Access;
use crate::raw::Place;
use crate::stream::{Received, Stream, TlsFacts};
use crate::worker::{Role, Worker};

/// A connection and the request on it.
pub struct Connection {
    /// The bytes.
    pub stream: Stream,
    /// The request at hand.
    pub head: Head,
    /// The worker that serves this connection.
    pub worker: Rc<Worker>,
    /// This connection's number, unique within the process.
    pub number: u64,
    /// The request's number on this connection, from 1.
    pub requests: u64,
    /// Where the client is.
    pub peer: SocketAddr,
    /// What the handshake settled; none in clear text.
    pub tls: Option<TlsFacts>,
    role: Role,
    /// The number of the request that the raw record has last.
    taped: u64,
    /// When the request's head had arrived, if anybody wants to know: `CLOCK_MONOTONIC`.
    pub arrived: u64,
    /// Fields that every answer to the request at hand carries.
    pub extra_fields: Vec<(String, String)>,
    /// Whether the answer to the request at hand says `Connection: close`.
    closing: bool,
}

impl Drop for Connection {
    fn drop(&mut self) {
        if self.role == Role::Api {
            self.worker.stats.reused(self.requests);
        }
    }
}

/// How an exchange ended, and hence what becomes of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// The next request may follow, unless the answer said otherwise.
    KeepAlive,
    /// The connection ends properly.
    Close,
    /// The connection ends properly, while the client may still be sending a body that nobody
    /// read: RFC 9112, section 9.6 tells how not to lose the answer to a reset.
    Linger,
    /// The connection ends as if the server had crashed.
    Cut,
}

/// Why an exchange could not be completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gone {
    /// The client went away, or its TLS broke.
    Client,
    /// The body is malformed; no answer has been begun.
    Malformed(BodyError),
}

/// A request's body, as far as anybody wanted it.
#[derive(Default)]
pub struct Body {
    /// Whether the body was read. Otherwise the rest says nothing.
    pub read: bool,
    /// Content bytes that arrived.
    pub bytes: u64,
    /// Their digest, if asked for.
    pub sha256: Option<[u8; 32]>,
    /// The content, if all of it fitted.
    pub content: Option<Vec<u8>>,
    /// The trailers in order.
    pub trailers: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What a handler wants to know of a body.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BodyWish {
    /// Keep the content if it has at most so many bytes.
    pub keep_bytes_max: usize,
    /// Compute the digest.
    pub digest: bool,
}

enum NextHead {
    Bad(HeadError),
    Gone,
}

impl From<std::io::Error> for Gone {
    fn from(_: std::io::Error) -> Self {
        Gone::Client
    }
}

impl Connection {
    /// A connection that has completed its handshake, if there is one.
    pub fn new(
        worker: Rc<Worker>,
        stream: Stream,
        number: u64,
        peer: SocketAddr,
        tls: Option<TlsFacts>,
        role: Role,
    ) -> Self {
        Connection {
            stream,
            head: Head::default(),
            worker,
            number,
            requests: 0,
            peer,
            tls,
            role,
            taped: 0,
            arrived: 0,
            extra_fields: Vec::new(),
            closing: false,
        }
    }

    /// Serves requests until the connection ends.
    pub async fn serve(mut self) {
        let role = self.role;
        loop {
            match self.next_head().await {
                Ok(true) => {}
                Ok(false) => {
                    let _ = self.stream.finish().await;
                    return;
                }
                Err(NextHead::Gone) => return self.worker.stats.abandoned.increment(),
                Err(NextHead::Bad(error)) => {
                    self.requests += 1;
                    self.tape_malformed(&error.to_string());
                    self.worker.stats.malformed.increment();
                    handlers::refuse(&mut self, error.status(), "malformed", &error.to_string());
                    return self.linger().await;
                }
            }
            self.requests += 1;
            let limit = self.worker.settings.requests_per_connection;
            self.closing = !self.head.keep_alive() || self.requests == limit;
            if role == Role::Api {
                self.worker.stats.requests.increment();
                if self.requests == 1 {
                    self.worker.stats.used.increment();
                }
                if self.answer_fixed() {
                    if self.stream.outbox().len() > OUTBOX_BYTES_MAX
                        && self.stream.flush().await.is_err()
                    {
                        return;
                    }
                    continue;
                }
            }
            // Boxed, so that an idle connection does not carry room for every handler's state.
            let after = match role {
                Role::Api => Box::pin(handlers::answer(&mut self)).await,
                Role::Control => Box::pin(control::answer(&mut self)).await,
            };
            match after {
                Ok(After::KeepAlive) if !self.closing => {}
                // Requests that were pipelined behind the last one would provoke a reset.
                Ok(After::KeepAlive | After::Close) if !self.stream.input().is_empty() => {
                    return self.linger().await;
                }
                Ok(After::KeepAlive | After::Close) => {
                    let _ = self.stream.finish().await;
                    return;
                }
                Ok(After::Linger) => return self.linger().await,
                Ok(After::Cut) => {
                    let _ = self.stream.cut();
                    return;
                }
                Err(Gone::Client) if self.stream.is_faulted() => return,
                Err(Gone::Client) => {
                    self.tape_request(Some("the client left before it was whole"));
                    return self.worker.stats.abandoned.increment();
                }
                Err(Gone::Malformed(error)) => {
                    self.tape_malformed(&error.to_string());
                    self.worker.stats.malformed.increment();
                    self.closing = true;
                    handlers::refuse(&mut self, 400, "malformed", &error.to_string());
                    return self.linger().await;
                }
            }
        }
    }

    /// The fixed answer, if this is an ordinary request for it. Returns whether it was.
    #[inline]
    fn answer_fixed(&mut self) -> bool {
        let settings = &self.worker.settings;
        if self.head.target() != b"/ok"
            || self.head.method() != b"GET"
            || self.head.framing() != Framing::None
            || self.head.version() != Version::Http11
            || self.closing
            || settings.record.is_some()
            || settings.raw.is_some()
            || !self.worker.steering().is_plain()
        {
            return false;
        }
        let access = settings.auth.check(&self.head, &self.worker.keys());
        if !matches!(access, Access::Granted(_)) {
            return false;
        }
        self.worker.stats.endpoints[Endpoint::Ok.index()].increment();
        let ok = self.worker.ok();
        self.stream.outbox().extend_from_slice(&ok);
        true
    }

    /// Keeps the bytes of the request at hand in the raw record, if there is one. Call it before
    /// the answer leaves. Bytes that are consumed later are added later.
    pub fn tape_request(&mut self, error: Option<&str>) {
        let Some(tape) = self.stream.take_tape() else {
            return;
        };
        let place = Place {
            connection: self.number,
            request: self.requests,
        };
        if let Some(raw) = &self.worker.settings.raw {
            let outcome = match self.taped == self.requests {
                true if tape.is_empty() => Ok(()),
                true => raw.amend(place, tape),
                false => raw.push(place, tape, error.map(str::to_string)),
            };
            self.taped = self.requests;
            if let Err(error) = outcome {
                eprintln!("mock-upstream: the raw record is incomplete: {error}");
            }
        }
    }

    /// Keeps everything that has arrived: nobody can say where a malformed request ends.
    fn tape_malformed(&mut self, error: &str) {
        let unread = self.stream.input().len();
        self.stream.consume(unread);
        self.tape_request(Some(error));
    }

    /// Waits for a whole request head. `Ok(false)`: the client is done.
    async fn next_head(&mut self) -> Result<bool, NextHead> {
        self.head.reset();
        if self.requests > 0 {
            self.tape_request(None);
        }
        loop {
            match self.head.parse(self.stream.input()) {
                Ok(Some(length)) => {
                    self.stream.consume(length);
                    return Ok(true);
                }
                Ok(None) => {}
                Err(error) => {
                    // Half a head has no method that an answer could depend on.
                    self.head.reset();
                    self.closing = true;
                    return Err(NextHead::Bad(error));
                }
            }
            match self.stream.fill().await {
                Ok(true) => {}
                Ok(false) if self.stream.input().is_empty() => return Ok(false),
                Ok(false) => return Err(NextHead::Gone),
                // A reset between two requests is an ordinary way to end.
                Err(_) if self.stream.input().is_empty() => return Ok(false),
                Err(_) => return Err(NextHead::Gone),
            }
        }
    }

    /// Starts the answer to the request at hand.
    pub fn respond(&mut self, status: u16) -> Response<'_> {
        let omit_content = self.head.is_head_request();
        let old = self.head.version() == Version::Http10;
        let mut response = Response::start(
            self.stream.outbox(),
            status,
            &self.worker.date(),
            omit_content,
        );
        for (name, value) in &self.extra_fields {
            response = response.field(name, value);
        }
        match self.closing {
            false if old => response.field("Connection", "keep-alive"),
            closing => response.closing(closing),
        }
    }

    /// Makes the answer to the request at hand the last one. Call it before [`Self::respond`].
    pub fn close_afterwards(&mut self) {
        self.closing = true;
    }

    /// Reads the whole body, after asking for it if the client waits to be asked.
    pub async fn read_body(&mut self, wish: BodyWish) -> Result<Body, Gone> {
        let mut decoder = BodyDecoder::new(self.head.framing());
        let mut digest = wish.digest.then(Sha256::new);
        let mut content = Some(Vec::new());
        let mut bytes = 0;
        if !decoder.is_done() && self.head.expects_continue() && self.stream.input().is_empty() {
            let go_on = b"HTTP/1.1 100 Continue\r\n\r\n";
            self.stream.outbox().extend_from_slice(go_on);
        }
        loop {
            let step = decoder.step(self.stream.input()).map_err(Gone::Malformed)?;
            let (consumed, more) = match step {
                Decoded::Content {
                    consumed,
                    content: piece,
                } => {
                    bytes += piece.len() as u64;
                    if let Some(digest) = &mut digest {
                        digest.update(piece);
                    }
                    if bytes > wish.keep_bytes_max as u64 {
                        content = None;
                    } else if let Some(content) = &mut content {
                        content.extend_from_slice(piece);
                    }
                    (consumed, false)
                }
                Decoded::NeedMore { consumed } => (consumed, true),
                Decoded::End { consumed } => {
                    self.stream.consume(consumed);
                    break;
                }
            };
            self.stream.consume(consumed);
            if more && !self.stream.fill().await? {
                return Err(Gone::Client);
            }
        }
        Ok(Body {
            read: true,
            bytes,
            sha256: digest.map(|digest| digest.finalize().into()),
            content,
            trailers: decoder.into_trailers(),
        })
    }

    /// Whether the body can be read at no great cost and without asking the client for it. If
    /// not, a refusal closes the connection instead.
    pub fn body_is_cheap(&self) -> bool {
        match self.head.framing() {
            Framing::None | Framing::Length(0) => true,
            Framing::Length(length) => length <= CHEAP_BODY_BYTES && !self.head.expects_continue(),
            Framing::Chunked => false,
        }
    }

    /// Sends what is pending and lets time pass, while watching whether the client goes away.
    ///
    /// A client that ends its side while it waits counts as gone, as it does for nginx.
    pub async fn pause(&mut self, time: Duration) -> Result<(), Gone> {
        self.stream.flush().await?;
        if time.is_zero() {
            return Ok(());
        }
        self.stream.exempt_from_idle(true);
        let outcome = self.watch(time).await;
        self.stream.exempt_from_idle(false);
        outcome
    }

    async fn watch(&mut self, time: Duration) -> Result<(), Gone> {
        let mut sleep = pin!(self.worker.alarm.sleep(time));
        loop {
            if self.stream.input().len() >= PIPELINED_BYTES_MAX {
                sleep.await;
                return Ok(());
            }
            if before(sleep.as_mut(), self.stream.readable())
                .await
                .is_none()
            {
                return Ok(());
            }
            if self.stream.receive().await? == Received::End {
                return Err(Gone::Client);
            }
        }
    }

    /// Ends our side and discards what the client still sends, for a while.
    async fn linger(mut self) {
        if self.stream.finish().await.is_err() {
            return;
        }
        let mut discarded = 0;
        let limit = self.worker.alarm.sleep(LINGER);
        let _ = before(limit, async {
            while discarded < LINGER_BYTES_MAX {
                match self.stream.receive().await {
                    Ok(Received::End) | Err(_) => return,
                    Ok(_) => {
                        let length = self.stream.input().len();
                        discarded += length;
                        self.stream.consume(length);
                    }
                }
            }
        })
        .await;
    }
}

/// Answers to pipelined requests are sent when they exceed this many bytes, even if more requests
/// have arrived already.
const OUTBOX_BYTES_MAX: usize = 64 * 1024;

/// A body up to this size is read before the request is refused, so that the connection may
/// stay.
const CHEAP_BODY_BYTES: u64 = 64 * 1024;

/// Pipelined bytes accepted while the server pauses; more stay in the kernel, and the client's
/// departure goes unnoticed until the pause is over.
const PIPELINED_BYTES_MAX: usize = 64 * 1024;

/// How long a lingering close listens.
const LINGER: Duration = Duration::from_secs(2);

/// How much a lingering close discards before it resets the connection.
const LINGER_BYTES_MAX: usize = 64 * 1024 * 1024;
