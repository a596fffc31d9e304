//! A key-writing proxy on Pingora, as someone who knows Pingora would write it for this one job: TLS in
//! by server name, the caller's credentials out, the real key in, verified TLS over pooled connections
//! to one API, an access log as JSON.
//!
//! It lacks what Claviger has and this job does not ask for: policies, several upstreams, scrubbing, an
//! audit trail that holds requests back when it is full. `../FAIRNESS.md` says why each setting stands
//! as it does.
//!
//! Usage: `claviger-perf-pingora [--check] CONFIG.json`. SIGHUP reads the file again and takes up its
//! routes.

#![forbid(unsafe_code)]

mod access_log;
mod certificates;
mod config;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use http::header::{HOST, HeaderName, HeaderValue};
use pingora::prelude::*;
use pingora::protocols::ALPN;
use pingora::protocols::Digest;
use pingora::server::ShutdownWatch;
use pingora::server::configuration::{Opt, ServerConf};
use pingora::services::background::{BackgroundService, background_service};
use pingora::upstreams::peer::HttpPeer;

use crate::access_log::{AccessLog, Entry};
use crate::config::{Config, Routes};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (path, check) = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--version"] => return println!("pingora/{PINGORA_VERSION}, {TLS_LIBRARY}"),
        ["--check", path] => (PathBuf::from(path), true),
        [path] => (PathBuf::from(path), false),
        _ => fail("usage: claviger-perf-pingora [--check] CONFIG.json"),
    };
    let config = Config::read(&path).unwrap_or_else(|error| fail(&error));
    if check {
        config
            .routes()
            .and_then(|_| certificates::settings(&config))
            .unwrap_or_else(|error| fail(&error));
        return;
    }
    log::set_logger(&Stderr)
        .map(|()| log::set_max_level(log::LevelFilter::Error))
        .ok();

    let mut server = Server::new_with_opt_and_conf(Opt::default(), server_conf(&config));
    server.bootstrap();

    let log = Arc::new(AccessLog::open(&config.access_log).unwrap_or_else(|error| fail(&error)));
    let routes = Arc::new(ArcSwap::from_pointee(
        config.routes().unwrap_or_else(|error| fail(&error)),
    ));
    let mut proxy = http_proxy_service(
        &server.configuration,
        KeyProxy {
            peer: peer(&config),
            upstream: config.upstream.clone(),
            host: HeaderValue::from_str(&config.host)
                .unwrap_or_else(|_| fail("`host` is no host name")),
            rewrite_host: config.hosts.len() > 1,
            routes: Arc::clone(&routes),
            log: Arc::clone(&log),
        },
    );
    let tls = certificates::settings(&config).unwrap_or_else(|error| fail(&error));
    proxy.add_tls_with_settings(&config.listen, None, tls);
    server.add_service(proxy);
    server.add_service(background_service("upkeep", Upkeep { path, routes, log }));
    server.run_forever();
}

fn server_conf(config: &Config) -> ServerConf {
    ServerConf {
        threads: config.workers,
        work_stealing: config.work_stealing,
        ca_file: Some(config.ca.clone()),
        user: config.user.clone(),
        upstream_keepalive_pool_size: POOL_SIZE,
        pid_file: format!("{}.pid", config.access_log),
        upgrade_sock: format!("{}.sock", config.access_log),
        grace_period_seconds: Some(0),
        graceful_shutdown_timeout_seconds: Some(1),
        ..ServerConf::default()
    }
}

/// Where requests go. The CA is the server's (`ca_file`): one given here would be loaded anew for each
/// connection.
fn peer(config: &Config) -> HttpPeer {
    let mut peer = HttpPeer::new(&config.upstream, true, config.host.clone());
    peer.options.alpn = ALPN::H1;
    peer.options.connection_timeout = Some(Duration::from_secs(10));
    peer.options.verify_cert = true;
    peer.options.verify_hostname = true;
    peer
}

/// The proxy itself.
struct KeyProxy {
    peer: HttpPeer,
    /// `peer`'s address, for the access log.
    upstream: String,
    host: HeaderValue,
    /// With one route the caller's `Host` is the API's already.
    rewrite_host: bool,
    routes: Arc<ArcSwap<Routes>>,
    log: Arc<AccessLog>,
}

/// What one request has to remember.
struct Exchange {
    began: Instant,
    connected: Option<Instant>,
    answered: Option<Instant>,
    /// `Authorization`, complete, as it goes upstream.
    authorization: Option<HeaderValue>,
    upstream_status: u16,
}

#[async_trait]
impl ProxyHttp for KeyProxy {
    type CTX = Exchange;

    fn new_ctx(&self) -> Exchange {
        Exchange {
            began: Instant::now(),
            connected: None,
            answered: None,
            authorization: None,
            upstream_status: 0,
        }
    }

    async fn request_filter(&self, session: &mut Session, exchange: &mut Exchange) -> Result<bool> {
        exchange.authorization = {
            let routes = self.routes.load();
            let host = session
                .req_header()
                .headers
                .get(HOST)
                .and_then(|host| host.to_str().ok());
            host.and_then(|host| routes.authorization(host)).cloned()
        };
        if exchange.authorization.is_none() {
            session.respond_error(421).await?;
            return Ok(true);
        }
        Ok(false)
    }

    async fn upstream_peer(&self, _: &mut Session, _: &mut Exchange) -> Result<Box<HttpPeer>> {
        Ok(Box::new(self.peer.clone()))
    }

    async fn connected_to_upstream(
        &self,
        _: &mut Session,
        _reused: bool,
        _: &HttpPeer,
        _: std::os::unix::io::RawFd,
        _: Option<&Digest>,
        exchange: &mut Exchange,
    ) -> Result<()> {
        exchange.connected = Some(Instant::now());
        Ok(())
    }

    async fn upstream_request_filter(
        &self,
        _: &mut Session,
        head: &mut RequestHeader,
        exchange: &mut Exchange,
    ) -> Result<()> {
        for name in &STRIPPED {
            head.remove_header(name);
        }
        // Replaces every one that the caller sent. A retry writes it again, so it stays.
        if let Some(authorization) = &exchange.authorization {
            head.insert_header(http::header::AUTHORIZATION, authorization.clone())?;
        }
        if self.rewrite_host {
            head.insert_header(HOST, self.host.clone())?;
        }
        Ok(())
    }

    async fn response_filter(
        &self,
        _: &mut Session,
        head: &mut ResponseHeader,
        exchange: &mut Exchange,
    ) -> Result<()> {
        exchange.answered = Some(Instant::now());
        exchange.upstream_status = head.status.as_u16();
        Ok(())
    }

    async fn logging(&self, session: &mut Session, _: Option<&Error>, exchange: &mut Exchange) {
        let head = session.req_header();
        self.log.write(&Entry {
            client: session.client_addr(),
            host: head
                .headers
                .get(HOST)
                .map_or(&b""[..], HeaderValue::as_bytes),
            method: head.method.as_str(),
            path: head.uri.path(),
            status: session
                .response_written()
                .map_or(0, |head| head.status.as_u16()),
            bytes_in: session.body_bytes_read(),
            bytes_out: session.body_bytes_sent(),
            upstream: &self.upstream,
            upstream_status: exchange.upstream_status,
            took: exchange.began.elapsed(),
            connect: exchange.connected.map(|at| at - exchange.began),
            head: exchange.answered.map(|at| at - exchange.began),
        });
    }
}

/// As in Cargo.toml.
const PINGORA_VERSION: &str = "0.9.1";

#[cfg(feature = "boringssl")]
const TLS_LIBRARY: &str = "BoringSSL";
#[cfg(all(feature = "openssl", not(feature = "boringssl")))]
const TLS_LIBRARY: &str = "OpenSSL";

/// Where callers' keys may stand, beside `Authorization`, which is replaced.
static STRIPPED: [HeaderName; 5] = [
    HeaderName::from_static("proxy-authorization"),
    HeaderName::from_static("x-api-key"),
    HeaderName::from_static("api-key"),
    HeaderName::from_static("x-goog-api-key"),
    HeaderName::from_static("ocp-apim-subscription-key"),
];

/// Idle connections to the API that are kept, for all threads together; beyond, the oldest is closed.
const POOL_SIZE: usize = 2048;

/// What happens beside requests: the log is written out each second, and SIGHUP reads the routes again.
struct Upkeep {
    path: PathBuf,
    routes: Arc<ArcSwap<Routes>>,
    log: Arc<AccessLog>,
}

#[async_trait]
impl BackgroundService for Upkeep {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        let hangup = tokio::signal::unix::SignalKind::hangup();
        let mut hangup =
            tokio::signal::unix::signal(hangup).unwrap_or_else(|error| fail(&error.to_string()));
        let mut second = tokio::time::interval(Duration::from_secs(1));
        loop {
            tokio::select! {
                _ = second.tick() => self.log.flush(),
                _ = hangup.recv() => match Config::read(&self.path).and_then(|config| config.routes()) {
                    Ok(routes) => self.routes.store(Arc::new(routes)),
                    Err(error) => log::error!("the old routes stay: {error}"),
                },
                _ = shutdown.changed() => return self.log.flush(),
            }
        }
    }
}

/// Pingora's errors, on standard error.
struct Stderr;

impl log::Log for Stderr {
    fn enabled(&self, _: &log::Metadata) -> bool {
        true
    }

    fn log(&self, record: &log::Record) {
        eprintln!("{} {}: {}", record.level(), record.target(), record.args());
    }

    fn flush(&self) {}
}

fn fail(text: &str) -> ! {
    eprintln!("claviger-perf-pingora: {text}");
    std::process::exit(1)
}
