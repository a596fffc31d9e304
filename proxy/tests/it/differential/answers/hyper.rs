//! hyper's client, given each connection as a stream in memory: an answer's bytes are there when its
//! request has been written.

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::{HeaderMap, Request};

use super::super::latin;
use super::{Answer, Reading};

/// How often a connection whose every byte is there may be looked at before it stands still.
const POLLS_MAX: usize = 10_000;

/// How hyper reads these answers to requests of these methods.
pub fn hyper(methods: &[&str], parts: &[&[u8]]) -> Reading {
    let stream = Rc::new(RefCell::new(Stream {
        parts: parts.iter().map(|part| part.to_vec()).collect(),
        unread: Vec::new(),
        written: Vec::new(),
        given: 0,
    }));
    let reading = Rc::new(RefCell::new(Reading {
        answers: Vec::new(),
        error: None,
    }));
    let exchanges = {
        let (stream, reading) = (Rc::clone(&stream), Rc::clone(&reading));
        async move {
            let mut builder = http1::Builder::new();
            builder.max_headers(1000).max_buf_size(1 << 20);
            let (mut sender, connection) = builder.handshake(InMemory(stream)).await?;
            let mut connection = pin!(connection);
            for method in methods {
                let request = Request::builder()
                    .method(*method)
                    .uri("/")
                    .header("host", "a")
                    .body(Empty::<Bytes>::new())
                    .expect("a request");
                let answer = async {
                    sender.ready().await?;
                    let (head, body) = sender.send_request(request).await?.into_parts();
                    let collected = body.collect().await?;
                    let trailers = collected.trailers().map(fields);
                    reading.borrow_mut().answers.push(Answer {
                        status: head.status.as_u16(),
                        fields: Some(fields(&head.headers)),
                        trailers: Some(trailers.unwrap_or_default()),
                        body: latin(&collected.to_bytes()),
                        // It takes them without a word.
                        interim: None,
                    });
                    Ok::<_, hyper::Error>(head.headers)
                };
                let mut answer = pin!(answer);
                let headers = std::future::poll_fn(|context| {
                    let ended = connection.as_mut().poll(context);
                    match (answer.as_mut().poll(context), ended) {
                        (Poll::Ready(answered), _) => Poll::Ready(answered),
                        (Poll::Pending, Poll::Ready(Err(error))) => Poll::Ready(Err(error)),
                        (Poll::Pending, _) => Poll::Pending,
                    }
                })
                .await?;
                let closes = headers
                    .get("connection")
                    .is_some_and(|value| value == "close");
                if closes {
                    break;
                }
            }
            Ok::<_, hyper::Error>(())
        }
    };
    let mut exchanges = pin!(exchanges);
    let mut context = Context::from_waker(Waker::noop());
    let ended = (0..POLLS_MAX).find_map(|_| match exchanges.as_mut().poll(&mut context) {
        Poll::Ready(ended) => Some(ended),
        Poll::Pending => None,
    });
    let mut reading = std::mem::replace(
        &mut *reading.borrow_mut(),
        Reading {
            answers: Vec::new(),
            error: None,
        },
    );
    let stream = stream.borrow();
    reading.error = match ended {
        Some(Err(error)) => Some(format!("{error:?}")),
        None => Some("it stands still".to_owned()),
        Some(Ok(())) if !stream.unread.is_empty() || stream.given < stream.parts.len() => {
            Some("bytes are left".to_owned())
        }
        Some(Ok(())) => None,
    };
    reading
}

fn fields(headers: &HeaderMap) -> Vec<(String, String)> {
    headers
        .iter()
        .map(|(name, value)| (name.to_string(), latin(value.as_bytes())))
        .collect()
}

/// What both directions of a connection hold.
struct Stream {
    parts: Vec<Vec<u8>>,
    /// Of the parts that were given.
    unread: Vec<u8>,
    written: Vec<u8>,
    given: usize,
}

struct InMemory(Rc<RefCell<Stream>>);

impl Read for InMemory {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        mut into: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let mut stream = self.0.borrow_mut();
        if stream.unread.is_empty() && stream.given < stream.parts.len() {
            // So many requests have been written.
            let asked = memchr::memmem::find_iter(&stream.written, b"\r\n\r\n").count();
            if asked <= stream.given {
                return Poll::Pending;
            }
            let given = stream.given;
            stream.unread = std::mem::take(&mut stream.parts[given]);
            stream.given += 1;
        }
        let n = stream.unread.len().min(into.remaining());
        into.put_slice(&stream.unread[..n]);
        stream.unread.drain(..n);
        Poll::Ready(Ok(()))
    }
}

impl Write for InMemory {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.0.borrow_mut().written.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
