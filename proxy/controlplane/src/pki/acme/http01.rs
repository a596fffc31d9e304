//! The listener for HTTP-01 (RFC 8555, 8.3): answers tokens that are asked for, and nothing else.
//!
//! It shares no code and no thread with the listeners of callers. It redirects nobody: a client
//! that sends its key in clear text shall fail, and not be served after it has told everyone.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;

use super::Challenges;

/// Connections at once. Past it new ones wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 64;
/// For a request and its answer. Past it the connection is closed.
const EXCHANGE_TIME_MAX: Duration = Duration::from_secs(5);
/// Bytes of a request head. Past it the connection is closed.
const HEAD_BYTES_MAX: usize = 8192;
/// Connections that wait in the kernel.
const BACKLOG: u32 = 128;
/// Before a listener that failed accepts again: out of descriptors, say.
const PAUSE: Duration = Duration::from_secs(1);

const PATH: &[u8] = b"/.well-known/acme-challenge/";

/// Listens at these addresses. With `SO_REUSEPORT`, so that a process that takes over can.
///
/// # Errors
/// The address that cannot be had, and why.
pub(super) fn listen(
    addresses: &[SocketAddr],
) -> Result<Vec<TcpListener>, (SocketAddr, io::Error)> {
    let one = |address: &SocketAddr| {
        let socket = match address {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        socket.set_reuseaddr(true)?;
        socket.set_reuseport(true)?;
        socket.bind(*address)?;
        socket.listen(BACKLOG)
    };
    addresses
        .iter()
        .map(|address| one(address).map_err(|error| (*address, error)))
        .collect()
}

/// Answers at one listener until dropped.
pub(super) fn serve(
    listener: TcpListener,
    challenges: Arc<Challenges>,
) -> impl Future<Output = ()> + Send + 'static {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    async move {
        loop {
            // Never closed.
            let Ok(place) = Arc::clone(&places).acquire_owned().await else {
                return;
            };
            match listener.accept().await {
                Ok((connection, _)) => {
                    let challenges = Arc::clone(&challenges);
                    tokio::spawn(async move {
                        let answer = answer(connection, &challenges);
                        let _ = tokio::time::timeout(EXCHANGE_TIME_MAX, answer).await;
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!("the listener for ACME challenges does not accept: {error}");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}

async fn answer(mut connection: TcpStream, challenges: &Challenges) -> io::Result<()> {
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        if head.len() > HEAD_BYTES_MAX || connection.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    }
    let (status, body) = match asked(&head).and_then(|token| challenges.http(token)) {
        Some(authorization) => ("200 OK", authorization),
        None => ("404 Not Found", "nothing is served here\n".to_owned()),
    };
    let answer = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{body}",
        body.len()
    );
    connection.write_all(answer.as_bytes()).await?;
    connection.shutdown().await?;
    // What still comes is read, so that closing does not take the answer back (RFC 9112, 9.6).
    let mut rest = [0; 1024];
    while connection.read(&mut rest).await? > 0 {}
    Ok(())
}

/// The token that a request asks for.
fn asked(head: &[u8]) -> Option<&str> {
    let line = head.split(|byte| *byte == b'\r').next()?;
    let mut words = line.split(|byte| *byte == b' ');
    let (method, target) = (words.next()?, words.next()?);
    let token = target.strip_prefix(PATH)?;
    let is_token = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    if method != b"GET" || !words.next()?.starts_with(b"HTTP/1.") || !token.iter().all(is_token) {
        return None;
    }
    std::str::from_utf8(token).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_alone_are_asked_for() {
        let path = "/.well-known/acme-challenge/a-B_9";
        for (line, token) in [
            (format!("GET {path} HTTP/1.1"), Some("a-B_9")),
            (format!("GET {path} HTTP/1.0"), Some("a-B_9")),
            (format!("POST {path} HTTP/1.1"), None),
            (format!("GET {path}"), None),
            (format!("GET {path}/../x HTTP/1.1"), None),
            ("GET / HTTP/1.1".to_owned(), None),
            (String::new(), None),
        ] {
            let head = format!("{line}\r\nHost: a.example\r\n\r\n");
            assert_eq!(asked(head.as_bytes()), token, "{line}");
        }
    }
}
