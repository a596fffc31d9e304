//! The scripted callers: they ask in every way that is served and in some that are not, leave at
//! every point, and read what they get with a parser of their own.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::{Either, select};

use super::judge::{Given, Judge, NOBODYS, PATIENCE, content, mark, upload};
use super::setting::{CALLERS_OWN, HOST, ROUTES};
use super::upstream::take_front;
use crate::rt::simulated::{End, sleep};

/// One connection of a caller, from its first request to its end.
pub async fn call(judge: Rc<Judge>, client: SocketAddr) {
    let Some(end) = judge.world.call(client) else {
        judge.saw("callers that came too late");
        return;
    };
    let mut caller = Caller {
        judge: Rc::clone(&judge),
        end,
        received: Vec::new(),
    };
    for _ in 0..judge.world.random.within(1..=5) {
        if caller.turn().await.is_err() {
            break;
        }
        if judge.world.random.one_in(6) {
            let pause = judge.world.random.within(1..=700);
            sleep(Duration::from_millis(pause as u64)).await;
        }
    }
}

/// Makes one request that is in order. Whether an upstream has answered it, whole.
pub async fn ask(judge: Rc<Judge>, client: SocketAddr, route: usize) -> bool {
    let Some(end) = judge.world.call(client) else {
        return false;
    };
    let mut caller = Caller {
        judge: Rc::clone(&judge),
        end,
        received: Vec::new(),
    };
    let nonce = judge.ask(caller.id(), route, true);
    let request = Request {
        nonce,
        route,
        bytes: format!("GET /r{route}/n{nonce:08} HTTP/1.1\r\nHost: {HOST}\r\n\r\n").into_bytes(),
        is_head: false,
        is_http10: false,
        closes: false,
        is_bad: false,
    };
    let _ = caller.end.send(request.bytes.clone()).await;
    let mut reader = Reader {
        judge: &judge,
        end: &caller.end,
        received: &mut caller.received,
    };
    let got = reader.answer(&request).await;
    matches!(got, Got::Whole { .. })
        && (judge.with_asked(nonce, |asked| asked.is_answered)).unwrap_or(false)
}

struct Caller {
    judge: Rc<Judge>,
    end: End,
    received: Vec<u8>,
}

/// The connection is over, or shall be.
struct Over;

/// What a caller does instead of what it should.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// Stops in the middle of its request, and waits.
    Stops,
    /// Leaves in the middle of its request.
    LeavesAsking(Leave),
    /// Leaves when it has asked, after a while.
    LeavesWaiting(Leave),
    /// Leaves when it has some of the answer.
    LeavesReading(Leave),
    /// Closes its direction behind its request.
    HalfCloses,
    /// Does not read for a while.
    ReadsLate,
    /// Pauses while it asks.
    Dawdles,
    Malformed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leave {
    Finish,
    Reset,
}

/// A request as it is sent.
struct Request {
    nonce: u64,
    route: usize,
    bytes: Vec<u8>,
    is_head: bool,
    is_http10: bool,
    /// Its caller asked for the connection's end.
    closes: bool,
    /// It is not one; the answer, if there is one, says so.
    is_bad: bool,
}

/// An answer's end.
enum Got {
    /// Whole; and whether the connection goes on.
    Whole { stays: bool },
    /// Broken off, unmistakably.
    Broken,
}

struct Head {
    status: u16,
    text: String,
}

impl Head {
    fn value(&self, name: &str) -> Option<&str> {
        self.text.split("\r\n").skip(1).find_map(|line| {
            let (field, value) = line.split_once(':')?;
            field.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

impl Caller {
    fn id(&self) -> u64 {
        self.end.link.number
    }

    /// One request and its answer, or some that are sent together.
    async fn turn(&mut self) -> Result<(), Over> {
        let judge = Rc::clone(&self.judge);
        let random = &judge.world.random;
        let fault = self.draw_fault();
        let count = if fault.is_none() && random.one_in(6) {
            3
        } else {
            1
        };
        let requests: Vec<Request> = (0..count)
            .map(|_| self.draw_request(count > 1, fault == Some(Fault::Malformed)))
            .collect();
        judge.log(|| {
            let nonces: Vec<u64> = requests.iter().map(|request| request.nonce).collect();
            format!("connection {} asks {nonces:?} with {fault:?}", self.id())
        });
        let bytes: Vec<&[u8]> = requests.iter().map(|request| &request.bytes[..]).collect();
        let bytes = bytes.concat();
        let is_written = Cell::new(false);
        let (end, received) = (&self.end, &mut self.received);
        let writer = std::pin::pin!(async {
            let outcome = write(&judge, end, bytes, fault).await;
            is_written.set(true);
            outcome
        });
        let reader = std::pin::pin!(async {
            if fault == Some(Fault::ReadsLate) {
                sleep(Duration::from_millis(random.within(1..=4_000) as u64)).await;
            }
            let mut reader = Reader {
                judge: &judge,
                end,
                received,
            };
            for request in &requests {
                if let Some(Fault::LeavesReading(how)) = fault {
                    let _ = reader.fill().await;
                    leave(end, how);
                    return Err(Over);
                }
                match reader.answer(request).await {
                    Got::Whole { stays: true } => {}
                    Got::Whole { stays: false } => {
                        reader.expect_end(request.nonce).await;
                        return Err(Over);
                    }
                    Got::Broken => return Err(Over),
                }
            }
            Ok(())
        });
        match select(writer, reader).await {
            Either::Left((Err(Over), _)) => Err(Over),
            Either::Left((Ok(()), reader)) => reader.await,
            Either::Right((Err(Over), _)) => Err(Over),
            Either::Right((Ok(()), writer)) => {
                // An answer that says that the connection stays, before all was asked: what is
                // left of the request must still be taken.
                select(writer, std::pin::pin!(sleep(PATIENCE))).await;
                if !is_written.get() {
                    judge.accuse(|| {
                        "a connection stays, and takes no more of its request".to_owned()
                    });
                }
                if fault == Some(Fault::HalfCloses) {
                    Err(Over)
                } else {
                    Ok(())
                }
            }
        }
    }

    fn draw_fault(&self) -> Option<Fault> {
        let random = &self.judge.world.random;
        if !self.judge.is_faulty() {
            return None;
        }
        let how = *random.one_of(&[Leave::Finish, Leave::Reset]);
        Some(*random.one_of(&[
            Fault::Stops,
            Fault::LeavesAsking(how),
            Fault::LeavesWaiting(how),
            Fault::LeavesWaiting(how),
            Fault::LeavesReading(how),
            Fault::HalfCloses,
            Fault::ReadsLate,
            Fault::Dawdles,
            Fault::Malformed,
        ]))
    }

    fn draw_request(&self, is_plain: bool, is_bad: bool) -> Request {
        let random = &self.judge.world.random;
        let route = random.below(ROUTES.len());
        let kind = if is_plain { 0 } else { random.below(12) };
        let method = match kind {
            0..=4 => "GET",
            5 => "HEAD",
            6 => "PUT",
            _ => "POST",
        };
        let nonce = self.judge.ask(self.id(), route, method != "POST");
        let is_http10 = kind == 4;
        let version = if is_http10 { "1.0" } else { "1.1" };
        let mut head = format!("{method} /r{route}/n{nonce:08} HTTP/{version}\r\nHost: {HOST}\r\n");
        if random.one_in(3) {
            head.push_str(&format!(
                "Authorization: Bearer {CALLERS_OWN}\r\nX-Api-Key: {CALLERS_OWN}\r\n"
            ));
        }
        let closes = !is_plain && random.one_in(10);
        if closes {
            head.push_str("Connection: close\r\n");
        }
        let length = match kind {
            0..=5 => 0,
            6..=8 => random.within(1..=3_000),
            9 => random.within(1..=16_384),
            _ => random.within(1..=90_000),
        };
        let body = upload(nonce, length);
        let is_chunked = kind == 11;
        match kind {
            0..=5 => {}
            11 => head.push_str("Transfer-Encoding: chunked\r\n"),
            _ => head.push_str(&format!("Content-Length: {length}\r\n")),
        }
        if kind == 10 && random.one_in(2) {
            head.push_str("Expect: 100-continue\r\n");
        }
        if is_bad {
            let bad = [
                "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
                "X : y\r\n",
                "X: a\r\n b\r\n",
                "Content-Length: 1\r\nContent-Length: 2\r\n",
            ];
            head.push_str(bad[random.below(bad.len())]);
        }
        head.push_str("\r\n");
        let mut bytes = head.into_bytes();
        if is_chunked {
            for piece in body.chunks(random.within(1..=20_000)) {
                bytes.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
                bytes.extend_from_slice(piece);
                bytes.extend_from_slice(b"\r\n");
            }
            bytes.extend_from_slice(b"0\r\n\r\n");
        } else {
            bytes.extend_from_slice(&body);
        }
        Request {
            nonce,
            route,
            bytes,
            is_head: method == "HEAD",
            is_http10,
            closes: closes || is_http10,
            is_bad,
        }
    }
}

fn leave(end: &End, how: Leave) {
    match how {
        Leave::Finish => end.finish(),
        Leave::Reset => end.reset_on_close(),
    }
}

/// Sends the requests, with what goes wrong on the way. An error is a caller that has left.
async fn write(judge: &Judge, end: &End, bytes: Vec<u8>, fault: Option<Fault>) -> Result<(), Over> {
    let random = &judge.world.random;
    let at = random.below(bytes.len());
    match fault {
        Some(Fault::Stops) => {
            judge.saw("callers that stop in the middle");
            let _ = end.send(bytes[..at].to_vec()).await;
            // What it gets is read; it does not go on.
            std::future::pending().await
        }
        Some(Fault::LeavesAsking(how)) => {
            judge.saw("callers that leave while they ask");
            let _ = end.send(bytes[..at].to_vec()).await;
            leave(end, how);
            Err(Over)
        }
        Some(Fault::LeavesWaiting(how)) => {
            judge.saw("callers that leave while they wait");
            let _ = end.send(bytes).await;
            sleep(Duration::from_millis(random.below(1_200) as u64)).await;
            leave(end, how);
            Err(Over)
        }
        Some(Fault::Dawdles) => {
            for piece in bytes.chunks(bytes.len() / 4 + 1) {
                let _ = end.send(piece.to_vec()).await;
                sleep(Duration::from_millis(random.below(1_500) as u64)).await;
            }
            Ok(())
        }
        fault => {
            let _ = end.send(bytes).await;
            if fault == Some(Fault::HalfCloses) {
                end.finish();
            }
            Ok(())
        }
    }
}

/// Reads answers out of a caller's connection.
struct Reader<'c> {
    judge: &'c Judge,
    end: &'c End,
    received: &'c mut Vec<u8>,
}

/// How a wait for more ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Filled {
    Data,
    End,
    Reset,
}

impl Reader<'_> {
    async fn fill(&mut self) -> Filled {
        let patience = std::pin::pin!(sleep(PATIENCE));
        let receive = std::pin::pin!(self.end.receive());
        match select(receive, patience).await {
            Either::Left((Ok(bytes), _)) if bytes.is_empty() => Filled::End,
            Either::Left((Ok(bytes), _)) => {
                self.received.extend_from_slice(&bytes);
                Filled::Data
            }
            Either::Left((Err(_), _)) => Filled::Reset,
            Either::Right(_) => {
                let id = self.end.link.number;
                self.judge
                    .accuse(|| format!("connection {id} waits for ever"));
                Filled::Reset
            }
        }
    }

    /// Nothing but the end may follow.
    async fn expect_end(&mut self, nonce: u64) {
        loop {
            if !self.received.is_empty() {
                let text = String::from_utf8_lossy(&self.received[..self.received.len().min(60)])
                    .into_owned();
                return self
                    .judge
                    .accuse(|| format!("{text:?} follows the last answer, to request {nonce}"));
            }
            if self.fill().await != Filled::Data {
                return;
            }
        }
    }

    async fn head(&mut self) -> Result<Head, Filled> {
        let end = loop {
            if let Some(at) = memchr::memmem::find(self.received, b"\r\n\r\n") {
                break at + 4;
            }
            match self.fill().await {
                Filled::Data => {}
                over => return Err(over),
            }
        };
        let head = take_front(self.received, end);
        self.judge.callers_text(&head);
        let text = String::from_utf8_lossy(&head).into_owned();
        let status = text
            .strip_prefix("HTTP/1.1 ")
            .and_then(|rest| rest.get(..3)?.parse().ok());
        let Some(status) = status else {
            self.judge.accuse(|| format!("a caller got {text:?}"));
            return Err(Filled::Reset);
        };
        Ok(Head { status, text })
    }

    async fn answer(&mut self, request: &Request) -> Got {
        let head = loop {
            match self.head().await {
                Ok(head) if head.status < 200 => {
                    if request.is_http10 || head.status == 101 {
                        let nonce = request.nonce;
                        self.judge
                            .accuse(|| format!("request {nonce} was answered {}", head.status));
                    }
                }
                Ok(head) => break head,
                Err(_) => return Got::Broken,
            }
        };
        let is_bodiless = request.is_head || matches!(head.status, 204 | 304);
        let stays =
            !(head.value("connection")).is_some_and(|value| value.eq_ignore_ascii_case("close"));
        let mut body = Vec::new();
        let is_whole = if is_bodiless {
            true
        } else if let Some(coding) = head.value("transfer-encoding") {
            if coding != "chunked" || head.value("content-length").is_some() || request.is_http10 {
                self.judge
                    .accuse(|| format!("a caller got an ambiguous answer: {}", head.text));
            }
            self.chunks(&mut body).await
        } else if let Some(length) = head.value("content-length") {
            match length.parse() {
                Ok(length) => self.length(length, &mut body).await,
                Err(_) => {
                    self.judge
                        .accuse(|| format!("a caller got a length of {length:?}"));
                    false
                }
            }
        } else {
            if stays {
                self.judge
                    .accuse(|| format!("a caller got an answer without an end: {}", head.text));
            }
            self.until_close(&mut body).await
        };
        self.judge.callers_text(&body);
        self.check(request, &head, &body, is_whole);
        // Who was refused before its HEAD was known to be one gets a body, and the end.
        let is_refused_head = request.is_head && head.value("claviger-answer").is_some();
        if !is_whole || is_refused_head && !stays {
            return Got::Broken;
        }
        Got::Whole {
            stays: stays && !request.closes && !request.is_bad,
        }
    }

    async fn length(&mut self, length: usize, body: &mut Vec<u8>) -> bool {
        while self.received.len() < length {
            if self.fill().await != Filled::Data {
                body.append(self.received);
                return false;
            }
        }
        body.extend(take_front(self.received, length));
        true
    }

    async fn until_close(&mut self, body: &mut Vec<u8>) -> bool {
        loop {
            match self.fill().await {
                Filled::Data => {}
                over => {
                    body.append(self.received);
                    return over == Filled::End;
                }
            }
        }
    }

    async fn chunks(&mut self, body: &mut Vec<u8>) -> bool {
        loop {
            let end = loop {
                if let Some(at) = memchr::memmem::find(self.received, b"\r\n") {
                    break at;
                }
                if self.fill().await != Filled::Data {
                    return false;
                }
            };
            let line = take_front(self.received, end + 2);
            let line = String::from_utf8_lossy(&line[..end]).into_owned();
            let Ok(size) = usize::from_str_radix(&line, 16) else {
                self.judge
                    .accuse(|| format!("a caller got a chunk that begins with {line:?}"));
                return false;
            };
            while self.received.len() < size + 2 {
                if self.fill().await != Filled::Data {
                    let rest = self.received.len().min(size);
                    body.extend(take_front(self.received, rest));
                    return false;
                }
            }
            if &self.received[size..size + 2] != b"\r\n" {
                self.judge
                    .accuse(|| "a caller got a chunk that does not end where it should".to_owned());
                return false;
            }
            body.extend_from_slice(&self.received[..size]);
            self.received.drain(..size + 2);
            if size == 0 {
                return true;
            }
        }
    }

    /// Holds an answer against what was asked, and what was given.
    fn check(&self, request: &Request, head: &Head, body: &[u8], is_whole: bool) {
        let nonce = request.nonce;
        let status = head.status;
        if head.value("claviger-answer").is_some() {
            self.judge.saw("answers of our own");
            if status == 400 && !request.is_bad {
                self.judge
                    .accuse(|| format!("request {nonce} is good, and was called bad"));
            }
            if is_whole {
                self.judge.got(nonce, status);
            }
            return;
        }
        let upstream = ROUTES[request.route].0;
        let shown = head.value("x-mark").unwrap_or("nothing");
        if shown == mark(NOBODYS, upstream) {
            // Judged by what was on the wire, and when.
            return;
        }
        if shown != mark(nonce, upstream) && self.judge.is_excused(nonce) {
            // The same, one answer later.
            return self.judge.saw("answers that are late by one");
        }
        if shown != mark(nonce, upstream) {
            return self
                .judge
                .accuse(|| format!("request {nonce} got the answer marked {shown}"));
        }
        if request.is_bad {
            return self
                .judge
                .accuse(|| format!("request {nonce} is ambiguous, and was passed on"));
        }
        let given = self.judge.with_asked(nonce, |asked| {
            asked.is_answered = true;
            asked.given.clone()
        });
        let given = given.unwrap_or_default();
        let is_it = |given: &&Given| {
            let mut expected = content(nonce, upstream, given.length);
            expected.truncate(body.len());
            if let Some((from, length)) = given.echo {
                // What was redacted keeps its length.
                let (from, to) = (from.min(body.len()), (from + length).min(body.len()));
                expected[from..to].copy_from_slice(&body[from..to]);
            }
            given.status == status && body == expected
        };
        let Some(given) = given.iter().rev().find(is_it) else {
            return self.judge.accuse(|| {
                format!("request {nonce} got {} bytes with status {status} that no upstream gave: {given:?}", body.len())
            });
        };
        let is_bodiless = request.is_head || matches!(status, 204 | 304);
        if is_whole {
            self.judge.got(nonce, status);
            if given.is_broken && !is_bodiless {
                self.judge.accuse(|| {
                    format!("the answer to request {nonce} was broken off, and looks whole")
                });
            }
            if body.len() != given.length {
                let length = given.length;
                self.judge.accuse(|| {
                    format!(
                        "the answer to request {nonce} looks whole with {} of {length} bytes",
                        body.len()
                    )
                });
            }
            self.judge.saw("answers that came whole");
        } else {
            self.judge.saw("answers that came broken off");
        }
    }
}
