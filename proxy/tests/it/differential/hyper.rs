//! hyper's server, given each connection as a stream in memory.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response};

use super::judges::{Reading, Seen};
use super::latin;

/// How often a connection whose every byte is there may be looked at before it stands still.
const POLLS_MAX: usize = 10_000;

/// How hyper reads the bytes of one connection.
pub fn hyper(stream: &[u8]) -> Reading {
    let requests = Arc::new(Mutex::new(Vec::new()));
    let service = service_fn(|request: Request<Incoming>| {
        let requests = Arc::clone(&requests);
        async move {
            let (head, body) = request.into_parts();
            let collected = body.collect().await?;
            let trailers = collected.trailers().map(fields);
            requests.lock().expect("no panic while held").push(Seen {
                method: head.method.to_string(),
                target: latin(head.uri.to_string().as_bytes()),
                fields: Some(fields(&head.headers)),
                trailers: Some(trailers.unwrap_or_default()),
                body: latin(&collected.to_bytes()),
            });
            Ok::<_, hyper::Error>(Response::new(Empty::<Bytes>::new()))
        }
    });
    let mut connection = std::pin::pin!(
        http1::Builder::new()
            .header_read_timeout(None)
            .half_close(true)
            .max_headers(1000)
            .max_buf_size(1 << 20)
            .serve_connection(InMemory(stream), service)
    );
    let mut context = Context::from_waker(Waker::noop());
    let ended = (0..POLLS_MAX).find_map(|_| match connection.as_mut().poll(&mut context) {
        Poll::Ready(ended) => Some(ended),
        Poll::Pending => None,
    });
    let error = match ended {
        Some(Ok(())) => None,
        Some(Err(error)) => Some(format!("{error:?}")),
        None => Some("it stands still".to_owned()),
    };
    let requests = std::mem::take(&mut *requests.lock().expect("no panic while held"));
    Reading { requests, error }
}

fn fields(headers: &HeaderMap) -> Vec<(String, String)> {
    headers
        .iter()
        .map(|(name, value)| (name.to_string(), latin(value.as_bytes())))
        .collect()
}

/// Bytes to be read, and nobody who reads what is written.
struct InMemory<'b>(&'b [u8]);

impl Read for InMemory<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        mut into: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let (now, later) = self.0.split_at(self.0.len().min(into.remaining()));
        into.put_slice(now);
        self.0 = later;
        Poll::Ready(Ok(()))
    }
}

impl Write for InMemory<'_> {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
