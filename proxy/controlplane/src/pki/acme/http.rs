//! [`Messenger`]: carries messages to the authority, one connection each, verified by the roots
//! that the configuration names and found by the resolvers that it names.

use std::error::Error as StdError;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::header::{HOST, HeaderValue};
use hyper::{Request, Response, Uri};
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::names::{DnsClient, DnsSettings};

/// One request and its answer, connecting included. Past it the attempt has failed.
const MESSAGE_TIME_MAX: Duration = Duration::from_secs(30);

/// Bytes of an answer. Past it the attempt has failed: a chain of certificates takes 10 KiB.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// A client of the authority.
pub(super) struct Messenger {
    tls: Arc<ClientConfig>,
    dns: DnsSettings,
}

impl Messenger {
    pub(super) fn new(tls: Arc<ClientConfig>, dns: DnsSettings) -> Messenger {
        Messenger { tls, dns }
    }
}

impl HttpClient for Messenger {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let (tls, dns) = (Arc::clone(&self.tls), self.dns.clone());
        Box::pin(async move {
            let uri = request.uri().clone();
            let sent = tokio::time::timeout(MESSAGE_TIME_MAX, send(request, tls, dns)).await;
            let failed = |problem: String| {
                // The host, and no more: paths name accounts.
                let host = uri.host().unwrap_or_default();
                Error::Other(format!("{host}: {problem}").into())
            };
            match sent {
                Ok(Ok(response)) => Ok(BytesResponse::from(response)),
                Ok(Err(error)) => Err(failed(error.to_string())),
                Err(_) => Err(failed(format!("no answer within {MESSAGE_TIME_MAX:?}"))),
            }
        })
    }
}

type Failed = Box<dyn StdError + Send + Sync>;

async fn send(
    request: Request<BodyWrapper<Bytes>>,
    tls: Arc<ClientConfig>,
    dns: DnsSettings,
) -> Result<Response<Full<Bytes>>, Failed> {
    let (mut parts, body) = request.into_parts();
    if parts.uri.scheme_str() != Some("https") {
        return Err("the authority gave a URL that is not https".into());
    }
    let authority = parts.uri.authority().ok_or("a URL without a host")?.clone();
    let host = authority.host().trim_matches(['[', ']']).to_owned();
    let port = authority.port_u16().unwrap_or(443);
    let tcp = connect(&host, port, &dns).await?;
    tcp.set_nodelay(true)?;
    let stream = TlsConnector::from(tls)
        .connect(ServerName::try_from(host)?, tcp)
        .await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(Io(stream)).await?;
    // RFC 9112, 3.2.1: the path alone, and the host in a field.
    let path = parts.uri.path_and_query().cloned();
    parts.uri = path.map_or_else(|| Uri::from_static("/"), Uri::from);
    parts
        .headers
        .insert(HOST, HeaderValue::from_str(authority.as_str())?);
    let exchange = async {
        let response = sender
            .send_request(Request::from_parts(parts, body))
            .await?;
        let (parts, body) = response.into_parts();
        let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await?;
        Ok(Response::from_parts(parts, Full::new(body.to_bytes())))
    };
    tokio::pin!(exchange, connection);
    tokio::select! {
        answer = &mut exchange => answer,
        // It ends when the answer is whole; then the exchange has all that it needs.
        ended = &mut connection => {
            ended?;
            exchange.await
        }
    }
}

async fn connect(host: &str, port: u16, dns: &DnsSettings) -> Result<TcpStream, Failed> {
    let addresses = match host.parse::<IpAddr>() {
        Ok(address) => vec![address],
        Err(_) => DnsClient::new(dns)?.addresses(host).await?,
    };
    let mut last: Option<std::io::Error> = None;
    for address in addresses {
        match TcpStream::connect(SocketAddr::new(address, port)).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = Some(error),
        }
    }
    Err(last.map_or_else(|| "no address".into(), Failed::from))
}

/// A tokio stream as hyper reads and writes it.
struct Io<S>(S);

impl<S: AsyncRead + Unpin> hyper::rt::Read for Io<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        mut cursor: hyper::rt::ReadBufCursor<'_>,
    ) -> Poll<std::io::Result<()>> {
        let mut bytes = [0; 8192];
        let room = cursor.remaining().min(bytes.len());
        let mut buffer = ReadBuf::new(&mut bytes[..room]);
        std::task::ready!(Pin::new(&mut self.0).poll_read(context, &mut buffer))?;
        cursor.put_slice(buffer.filled());
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> hyper::rt::Write for Io<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}
