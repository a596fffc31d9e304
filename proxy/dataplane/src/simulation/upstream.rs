//! The scripted upstreams: they read requests with a parser of their own, and answer well, early,
//! late, never, in part, twice, or not in HTTP at all.

use std::io;
use std::rc::Rc;
use std::time::Duration;

use super::judge::{Given, Judge, NOBODYS, content, mark, nonce_of, upload};
use super::setting;
use crate::record::{self, Content, Opener, PLAIN_BYTES_MAX, Sealer};
use crate::rt::simulated::{End, sleep};
use crate::session::simulated as greeting;

/// Serves one connection of an upstream.
pub async fn serve(judge: Rc<Judge>, upstream: usize, end: End) {
    let Some(mut api) = Api::greet(judge, upstream, end).await else {
        return;
    };
    while api.exchange().await.is_ok() {}
}

/// An upstream's end of a connection.
struct Api {
    judge: Rc<Judge>,
    upstream: usize,
    end: End,
    opener: Opener,
    sealer: Sealer,
    raw: Vec<u8>,
    /// What was said in the records, and not yet used.
    plain: Vec<u8>,
}

/// The connection is over, whoever ended it.
struct Over;

impl From<io::Error> for Over {
    fn from(_: io::Error) -> Self {
        Over
    }
}

/// How an upstream ends a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leave {
    /// close_notify, then FIN.
    Goodbye,
    /// FIN alone.
    Finish,
    Reset,
    /// close_notify and no more; the socket stays open for a while.
    HalfClose,
}

const LEAVES: [Leave; 4] = [
    Leave::Goodbye,
    Leave::Finish,
    Leave::Reset,
    Leave::HalfClose,
];

/// What goes wrong with an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Late,
    Never,
    /// Before a byte of it.
    Leaves(Leave),
    CutInHead(Leave),
    CutInBody(Leave),
    StallsInBody,
    Trickles,
    NotHttp,
    TwoFramings,
    BadChunk,
    NotTls,
    /// Something nobody asked for, right behind it.
    Extra,
    /// The same, when it is idle.
    ExtraLater,
    TooManyInformational,
    UnaskedSwitch,
    EchoInHead,
    EchoInBody,
    LeavesAfter(Leave),
    LeavesLater(Leave),
    /// Answers when it has the head.
    Early,
    EarlyAndLeaves(Leave),
    /// Records that carry nothing, between those of the answer.
    Tickets,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    Length,
    Chunked,
    UntilClose,
    /// None, by its status or the request's method.
    Bodiless,
}

/// A request as it has arrived.
struct Request {
    nonce: u64,
    method: String,
    head: String,
    /// `None` is chunked.
    length: Option<usize>,
}

impl Api {
    async fn greet(judge: Rc<Judge>, upstream: usize, end: End) -> Option<Self> {
        let random = &judge.world.random;
        let mut raw = Vec::new();
        let number = loop {
            if let Ok(Some(length)) = record::length(&raw)
                && raw.len() >= length
            {
                let record = take_front(&mut raw, length);
                break greeting::read_hello(&record)?.0;
            }
            let received = end.receive().await.ok()?;
            if received.is_empty() {
                return None;
            }
            raw.extend_from_slice(&received);
        };
        if judge.is_faulty() && random.one_in(3) {
            judge.saw("handshakes that fail");
            match random.below(4) {
                0 => sleep(Duration::from_secs(10)).await,
                1 => drop(end.send(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()).await),
                2 => drop(end.send(vec![21, 3, 3, 0, 2, 2, 40]).await),
                _ => end.reset_on_close(),
            }
            return None;
        }
        let (opener, sealer) = greeting::keys(number, true).ok()?;
        let mut api = Self {
            judge: Rc::clone(&judge),
            upstream,
            end,
            opener,
            sealer,
            raw,
            plain: Vec::new(),
        };
        let mut says = greeting::welcome(number);
        if random.one_in(2) {
            api.seal_ticket(&mut says);
        }
        api.end.send(says).await.0.ok()?;
        Some(api)
    }

    fn seal_ticket(&mut self, out: &mut Vec<u8>) {
        const TICKET: [u8; 8] = [4, 0, 0, 4, 1, 2, 3, 4];
        // This end's keys last for longer than any run.
        let _ = (self.sealer).seal(Content::Handshake, TICKET.len(), out, |out| {
            out.extend_from_slice(&TICKET);
        });
    }

    /// Says `text`, in records of any size.
    async fn say(&mut self, text: &[u8]) -> Result<(), Over> {
        let mut out = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            let random = &self.judge.world.random;
            let most = rest.len().min(PLAIN_BYTES_MAX);
            let length = if random.one_in(4) {
                random.within(1..=most)
            } else {
                most
            };
            let (now, later) = rest.split_at(length);
            rest = later;
            (self.sealer)
                .seal(Content::Data, now.len(), &mut out, |out| {
                    out.extend_from_slice(now)
                })
                .map_err(|_| Over)?;
        }
        Ok(self.end.send(out).await.0?)
    }

    /// Receives more of what was said. An end is an error here.
    async fn hear(&mut self) -> Result<(), Over> {
        let received = self.end.receive().await?;
        if received.is_empty() {
            return Err(Over);
        }
        self.raw.extend_from_slice(&received);
        let mut at = 0;
        while let Some(length) = record::length(&self.raw[at..]).map_err(|_| Over)?
            && self.raw.len() - at >= length
        {
            let record = &mut self.raw[at..at + length];
            at += length;
            match self.opener.open(record).map_err(|_| Over)? {
                (Content::Data, range) => self.plain.extend_from_slice(&record[range]),
                (Content::Alert, _) => return Err(Over),
                _ => {}
            }
        }
        self.raw.drain(..at);
        Ok(())
    }

    async fn leave(&mut self, how: Leave) -> Over {
        if matches!(how, Leave::Goodbye | Leave::HalfClose) {
            let mut out = Vec::new();
            let sealed = (self.sealer).seal(Content::Alert, 2, &mut out, |out| {
                out.extend_from_slice(&[1, 0]);
            });
            if sealed.is_ok() {
                let _ = self.end.send(out).await;
            }
        }
        match how {
            Leave::Reset => self.end.reset_on_close(),
            Leave::HalfClose => {
                // Until the other end has enough of it.
                while self.hear().await.is_ok() {}
            }
            Leave::Goodbye | Leave::Finish => self.end.finish(),
        }
        Over
    }

    /// One request and its answer.
    async fn exchange(&mut self) -> Result<(), Over> {
        let request = self.read_head().await?;
        let fault = self.draw_fault();
        self.judge.log(|| {
            format!(
                "upstream {} answers {} with {fault:?}",
                self.upstream, request.nonce
            )
        });
        match fault {
            Some(Fault::Early) => {
                self.judge.saw("answers before the request's end");
                self.reply(&request, fault).await?;
                self.read_body(&request).await
            }
            Some(Fault::EarlyAndLeaves(how)) => {
                self.judge.saw("answers before the request's end");
                self.reply(&request, fault).await?;
                Err(self.leave(how).await)
            }
            Some(Fault::Leaves(how)) if self.judge.world.random.one_in(2) => {
                // With the request's body unread, or still under way.
                Err(self.leave(how).await)
            }
            _ => {
                self.go_on(&request).await?;
                self.read_body(&request).await?;
                if !self.plain.is_empty() {
                    let nonce = request.nonce;
                    self.judge.accuse(|| {
                        format!("something follows request {nonce}, which has no answer yet")
                    });
                }
                self.reply(&request, fault).await
            }
        }
    }

    /// Answers, and tells the judge where somebody else may get it.
    async fn reply(&mut self, request: &Request, fault: Option<Fault>) -> Result<(), Over> {
        let (judge, link) = (Rc::clone(&self.judge), self.end.link.number);
        judge.answers(link, request.nonce, None);
        self.answer(request, fault).await?;
        judge.answers(link, request.nonce, Some(self.end.arrives_by()));
        Ok(())
    }

    /// `100 Continue`, where it is waited for, and sometimes where it is not.
    async fn go_on(&mut self, request: &Request) -> Result<(), Over> {
        let expects = request
            .head
            .to_ascii_lowercase()
            .contains("\r\nexpect: 100-continue");
        if expects || self.judge.world.random.one_in(16) {
            self.say(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        }
        Ok(())
    }

    fn draw_fault(&self) -> Option<Fault> {
        let random = &self.judge.world.random;
        if !self.judge.is_faulty() {
            return None;
        }
        let how = *random.one_of(&LEAVES);
        Some(*random.one_of(&[
            Fault::Late,
            Fault::Never,
            Fault::Leaves(how),
            Fault::Leaves(how),
            Fault::CutInHead(how),
            Fault::CutInBody(how),
            Fault::CutInBody(how),
            Fault::StallsInBody,
            Fault::Trickles,
            Fault::NotHttp,
            Fault::TwoFramings,
            Fault::BadChunk,
            Fault::NotTls,
            Fault::Extra,
            Fault::ExtraLater,
            Fault::TooManyInformational,
            Fault::UnaskedSwitch,
            Fault::EchoInHead,
            Fault::EchoInBody,
            Fault::EchoInBody,
            Fault::LeavesAfter(how),
            Fault::LeavesAfter(how),
            Fault::LeavesLater(how),
            Fault::LeavesLater(how),
            Fault::Early,
            Fault::EarlyAndLeaves(how),
            Fault::Tickets,
        ]))
    }

    async fn read_head(&mut self) -> Result<Request, Over> {
        let end = loop {
            if let Some(at) = memchr::memmem::find(&self.plain, b"\r\n\r\n") {
                break at + 4;
            }
            self.hear().await?;
        };
        let head = take_front(&mut self.plain, end);
        let head = String::from_utf8_lossy(&head).into_owned();
        let mut first = head.split(' ');
        let method = first.next().unwrap_or("").to_owned();
        // `/r0/n00000042`
        let nonce = (first.next())
            .and_then(|path| path.strip_prefix("/r")?.get(2..))
            .and_then(nonce_of);
        let Some(nonce) = nonce else {
            let upstream = self.upstream;
            self.judge
                .accuse(|| format!("upstream {upstream} got a request that nobody made: {head:?}"));
            return Err(Over);
        };
        self.judge.reached(nonce, self.upstream, &head);
        let lower = head.to_ascii_lowercase();
        let value = |name: &str| {
            let at = lower.find(name)? + name.len();
            lower[at..].split("\r\n").next()
        };
        let length = match (
            value("\r\ntransfer-encoding: "),
            value("\r\ncontent-length: "),
        ) {
            (None, length) => Some(length.and_then(|text| text.parse().ok()).unwrap_or(0)),
            (Some("chunked"), None) => None,
            _ => {
                self.judge
                    .accuse(|| format!("request {nonce} was framed ambiguously: {head:?}"));
                return Err(Over);
            }
        };
        Ok(Request {
            nonce,
            method,
            head,
            length,
        })
    }

    /// Reads the body, and holds it against what the caller sends.
    async fn read_body(&mut self, request: &Request) -> Result<(), Over> {
        let body = match request.length {
            Some(length) => {
                while self.plain.len() < length {
                    self.hear().await?;
                }
                take_front(&mut self.plain, length)
            }
            None => self.read_chunks(request).await?,
        };
        if body != upload(request.nonce, body.len()) {
            let nonce = request.nonce;
            self.judge.accuse(|| {
                format!("the body of request {nonce} is not the one that its caller sent")
            });
        }
        Ok(())
    }

    async fn read_chunks(&mut self, request: &Request) -> Result<Vec<u8>, Over> {
        let mut body = Vec::new();
        loop {
            let line = self.read_line().await?;
            let Ok(size) = usize::from_str_radix(&line, 16) else {
                let nonce = request.nonce;
                self.judge
                    .accuse(|| format!("a chunk of request {nonce} begins with {line:?}"));
                return Err(Over);
            };
            while self.plain.len() < size + 2 {
                self.hear().await?;
            }
            if &self.plain[size..size + 2] != b"\r\n" {
                let nonce = request.nonce;
                self.judge
                    .accuse(|| format!("a chunk of request {nonce} does not end where it should"));
                return Err(Over);
            }
            body.extend_from_slice(&self.plain[..size]);
            self.plain.drain(..size + 2);
            if size == 0 {
                return Ok(body);
            }
        }
    }

    async fn read_line(&mut self) -> Result<String, Over> {
        let end = loop {
            if let Some(at) = memchr::memmem::find(&self.plain, b"\r\n") {
                break at;
            }
            self.hear().await?;
        };
        let line = take_front(&mut self.plain, end + 2);
        Ok(String::from_utf8_lossy(&line[..end]).into_owned())
    }

    /// Answers, with what goes wrong on the way. An error ends the connection.
    async fn answer(&mut self, request: &Request, fault: Option<Fault>) -> Result<(), Over> {
        let judge = Rc::clone(&self.judge);
        let random = &judge.world.random;
        match fault {
            Some(Fault::Late) => {
                sleep(Duration::from_millis(
                    *random.one_of(&[500, 1_900, 2_300, 5_000]),
                ))
                .await;
            }
            Some(Fault::Never) => {
                while self.hear().await.is_ok() {}
                return Err(Over);
            }
            Some(Fault::Leaves(how)) => return Err(self.leave(how).await),
            Some(Fault::NotHttp) => {
                let bad: [&[u8]; 4] = [
                    b"SSH-2.0-OpenSSH_9.9\r\n\r\n",
                    b"HTTP/1.1 20x OK\r\n\r\n",
                    b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\r\n",
                    b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
                ];
                self.say(bad[random.below(bad.len())]).await?;
                while self.hear().await.is_ok() {}
                return Err(Over);
            }
            Some(Fault::NotTls) => {
                let _ = self.end.send(b"HTTP/1.1 200 OK\r\n\r\n".to_vec()).await;
                while self.hear().await.is_ok() {}
                return Err(Over);
            }
            Some(Fault::UnaskedSwitch) => {
                self.say(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n")
                    .await?;
                while self.hear().await.is_ok() {}
                return Err(Over);
            }
            _ => {}
        }
        let informational = match fault {
            Some(Fault::TooManyInformational) => 20,
            _ if random.one_in(8) => 2,
            _ => 0,
        };
        for _ in 0..informational {
            self.say(b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n")
                .await?;
        }
        let is_head = request.method == "HEAD";
        let framing = match random.below(8) {
            _ if is_head => Framing::Bodiless,
            0 => Framing::Bodiless,
            1 => Framing::UntilClose,
            2..=4 => Framing::Chunked,
            _ => Framing::Length,
        };
        let framing = match fault {
            Some(Fault::BadChunk) if !is_head => Framing::Chunked,
            _ => framing,
        };
        // Only close_notify says that what ends with the connection is whole.
        let is_goodbye = |how| matches!(how, Leave::Goodbye | Leave::HalfClose);
        let fault = match fault {
            // Where the end is the connection's, that is the body's end, or part of the body.
            Some(Fault::CutInBody(how)) if framing == Framing::UntilClose && is_goodbye(how) => {
                None
            }
            Some(Fault::Extra | Fault::ExtraLater) if framing == Framing::UntilClose => None,
            fault => fault,
        };
        let length = match framing {
            Framing::Bodiless => 0,
            _ => match random.below(16) {
                0 => 0,
                1..=9 => random.below(300),
                10..=13 => random.below(6_000),
                14 => random.below(70_000),
                _ => random.below(200_000),
            },
        };
        let status = match framing {
            Framing::Bodiless if !is_head => *random.one_of(&[204, 304]),
            _ => *random.one_of(&[200, 200, 201, 404, 500]),
        };
        let mut body = content(request.nonce, self.upstream, length);
        let key = self.key_of(request);
        let mut echo = None;
        if let (Some(Fault::EchoInBody), Some(key)) = (fault, &key)
            && length > key.len()
        {
            judge.saw("keys echoed in a body");
            let at = random.below(length - key.len());
            body[at..at + key.len()].copy_from_slice(key);
            echo = Some((at, key.len()));
        }
        let cut = match fault {
            Some(Fault::CutInBody(how)) => Some(how),
            Some(Fault::EarlyAndLeaves(how) | Fault::LeavesAfter(how)) => Some(how),
            _ => None,
        };
        let leaves_how = cut.unwrap_or(if random.one_in(4) {
            Leave::Finish
        } else {
            Leave::Goodbye
        });
        let is_broken = match fault {
            Some(Fault::CutInBody(_) | Fault::StallsInBody)
                if length > 0 || framing == Framing::Chunked =>
            {
                true
            }
            Some(Fault::CutInHead(_) | Fault::TooManyInformational) => true,
            Some(Fault::BadChunk) if framing == Framing::Chunked => true,
            Some(Fault::TwoFramings) if framing != Framing::Bodiless => true,
            _ => framing == Framing::UntilClose && !is_goodbye(leaves_how),
        };
        judge.with_asked(request.nonce, |asked| {
            asked.given.push(Given {
                status,
                length,
                echo,
                is_broken,
            });
        });
        let mut head = format!(
            "HTTP/1.1 {status} Fine\r\nX-Mark: {}\r\n",
            mark(request.nonce, self.upstream)
        );
        if let (Some(Fault::EchoInHead), Some(key)) = (fault, &key) {
            judge.saw("keys echoed in a head");
            head.push_str(&format!("X-Echo: {}\r\n", String::from_utf8_lossy(key)));
        }
        match framing {
            Framing::Length => head.push_str(&format!("Content-Length: {length}\r\n")),
            Framing::Chunked => head.push_str("Transfer-Encoding: chunked\r\n"),
            Framing::UntilClose => head.push_str("Connection: close\r\n"),
            Framing::Bodiless if is_head => head.push_str("Content-Length: 4242\r\n"),
            Framing::Bodiless => {}
        }
        if fault == Some(Fault::TwoFramings) {
            head.push_str("Content-Length: 3\r\nTransfer-Encoding: chunked\r\n");
        }
        head.push_str("\r\n");
        let head = head.into_bytes();
        if let Some(Fault::CutInHead(how)) = fault {
            let at = random.below(head.len());
            self.say(&head[..at]).await?;
            return Err(self.leave(how).await);
        }
        let mut message = head;
        let head_bytes = message.len();
        match framing {
            Framing::Chunked => {
                frame_chunks(&body, random, fault == Some(Fault::BadChunk), &mut message)
            }
            _ => message.extend_from_slice(&body),
        }
        let body_bytes = message.len() - head_bytes;
        match fault {
            Some(Fault::CutInBody(how)) if body_bytes > 0 => {
                judge.saw("answers cut in their body");
                self.say(&message[..head_bytes + random.below(body_bytes)])
                    .await?;
                return Err(self.leave(how).await);
            }
            Some(Fault::StallsInBody) if body_bytes > 0 => {
                judge.saw("answers that stall");
                self.say(&message[..head_bytes + random.below(body_bytes)])
                    .await?;
                while self.hear().await.is_ok() {}
                return Err(Over);
            }
            Some(Fault::Trickles) => {
                let step = message.len() / 6 + 1;
                for piece in message.chunks(step) {
                    self.say(piece).await?;
                    sleep(Duration::from_millis(random.within(1..=900) as u64)).await;
                }
            }
            Some(Fault::Tickets) => {
                let at = random.below(message.len());
                self.say(&message[..at]).await?;
                let mut ticket = Vec::new();
                self.seal_ticket(&mut ticket);
                self.end.send(ticket).await.0?;
                self.say(&message[at..]).await?;
            }
            Some(Fault::Extra) => {
                judge.saw("bytes behind an answer");
                message.extend(self.poison());
                self.say(&message).await?;
                judge.extra(self.end.link.number, self.end.arrives_by());
            }
            _ => self.say(&message).await?,
        }
        if framing == Framing::UntilClose {
            return Err(self.leave(leaves_how).await);
        }
        match fault {
            Some(Fault::LeavesAfter(how)) => Err(self.leave(how).await),
            Some(Fault::LeavesLater(how)) => {
                sleep(Duration::from_millis(random.within(1..=400) as u64)).await;
                judge.saw("idle connections closed by the upstream");
                Err(self.leave(how).await)
            }
            Some(Fault::ExtraLater) => {
                let writes = judge.writes(self.end.link.number);
                sleep(Duration::from_millis(random.within(1..=400) as u64)).await;
                if judge.writes(self.end.link.number) == writes {
                    let poison = self.poison();
                    self.say(&poison).await?;
                    judge.extra(self.end.link.number, self.end.arrives_by());
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// An answer to nobody's request.
    fn poison(&self) -> Vec<u8> {
        let mark = mark(NOBODYS, self.upstream);
        let length = mark.len();
        format!("HTTP/1.1 200 OK\r\nX-Mark: {mark}\r\nContent-Length: {length}\r\n\r\n{mark}")
            .into_bytes()
    }

    /// The key in a request's head, as it stands there.
    fn key_of(&self, request: &Request) -> Option<Vec<u8>> {
        let begins = |begin: &[u8]| memchr::memmem::find(request.head.as_bytes(), begin);
        let at = begins(setting::KEY_BEGINS).or_else(|| begins(setting::KEY_BEGINS_BASIC))?;
        let rest = &request.head.as_bytes()[at..];
        let length = rest.iter().position(|byte| *byte <= b' ')?;
        Some(rest[..length].to_vec())
    }
}

/// Takes the first bytes out.
pub fn take_front(bytes: &mut Vec<u8>, length: usize) -> Vec<u8> {
    let rest = bytes.split_off(length);
    std::mem::replace(bytes, rest)
}

fn frame_chunks(
    body: &[u8],
    random: &crate::rt::simulated::Random,
    is_bad: bool,
    out: &mut Vec<u8>,
) {
    let mut rest = body;
    while !rest.is_empty() {
        let length = if random.one_in(3) {
            rest.len()
        } else {
            random.within(1..=rest.len().min(9_000))
        };
        out.extend_from_slice(format!("{length:x}\r\n").as_bytes());
        out.extend_from_slice(&rest[..length]);
        out.extend_from_slice(b"\r\n");
        rest = &rest[length..];
    }
    out.extend_from_slice(if is_bad { b"+0\r\n\r\n" } else { b"0\r\n\r\n" });
}
