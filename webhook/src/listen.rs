//! Sockets: accepted, wrapped in TLS, bounded in number and time, and drained at the end.
//!
//! The loop is our own on `tokio-rustls` and `hyper-util`, not `axum-server`: it bounds the number of connections,
//! the time to the first request (HTTP/2 has no limit of its own there) and a connection's age, and counts what
//! fails. It is also one dependency less for a first build.
//!
//! A connection's way: a permit → accepted → TLS handshake → HTTP/1.1 or 2, as ALPN says → first request in time →
//! until it is idle for long, too old, or we stop: then it ends gracefully, after what it has in hand (`linger`), which
//! has a bound too.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use nodestub_certs::{Resolver, crypto_provider};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore};
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;

use crate::linger::Shared;
use crate::metrics::{ConnectionFailure, Metrics};

/// Bounds of one port.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections at the same time; further ones wait in the kernel's queue.
    pub connections: usize,
    /// How long a TLS handshake may take.
    pub handshake: Duration,
    /// How long a client may take from the handshake to its first request, and for a request's head.
    /// HTTP/1.1 connections that are idle for as long are closed.
    pub head: Duration,
    /// After this time a connection is ended gracefully, so that clients meet new certificates and new replicas.
    pub age: Duration,
    /// How long a connection may take from then on, or from when we are to stop, to end what it has in hand. What is left
    /// after that is a client that does not take its answers, and would hold its place for good.
    pub ending: Duration,
}

impl Default for Limits {
    /// An API server holds few connections and uses them at once; a cluster has a handful of API servers.
    fn default() -> Self {
        Self {
            connections: 1024,
            handshake: Duration::from_secs(5),
            head: Duration::from_secs(20),
            age: Duration::from_secs(300),
            ending: Duration::from_secs(15),
        }
    }
}

/// The largest head of a request, in bytes: an API server's is below 1 KiB.
const MAX_HEAD_BYTES: u32 = 16 * 1024;
/// Requests at the same time on one HTTP/2 connection (Go's own default for servers).
const MAX_STREAMS: u32 = 250;
/// HTTP/2: an idle peer is asked this often whether it is still there, and given up after as long.
const PING: Duration = Duration::from_secs(15);
/// After `accept` failed, most likely for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// TLS 1.2 and 1.3 with whatever certificate the resolver holds at each handshake.
///
/// # Errors
/// When the cryptography provider lacks the protocol versions.
pub fn tls(certificates: Arc<Resolver>) -> Result<TlsAcceptor, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(crypto_provider())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(certificates);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// A port that is being served.
pub struct Port {
    /// The routes.
    pub router: Router,
    /// TLS; none for the admin port.
    pub tls: Option<TlsAcceptor>,
    /// Its bounds.
    pub limits: Limits,
    /// Where failures are counted; none for the admin port.
    pub metrics: Option<Arc<Metrics>>,
}

/// Accepts until it is stopped; connections live on in the tracker until they are done.
pub async fn serve(listener: TcpListener, port: Port, stop: CancellationToken, connections: TaskTracker) {
    let permits = Arc::new(Semaphore::new(port.limits.connections));
    let port = Arc::new(port);
    loop {
        let accepted = async {
            // Never closed, so a permit always comes.
            let permit = Arc::clone(&permits).acquire_owned().await;
            (permit, listener.accept().await)
        };
        let (permit, accepted) = tokio::select! {
            () = stop.cancelled() => return,
            accepted = accepted => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let (port, stop) = (Arc::clone(&port), stop.clone());
                connections.spawn(async move {
                    let _permit = permit;
                    port.connection(stream, stop).await;
                });
            }
            Err(error) => {
                tracing::warn!(%error, "accepting a connection failed");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

impl Port {
    async fn connection(&self, stream: TcpStream, stop: CancellationToken) {
        if let Some(metrics) = &self.metrics {
            metrics.connections.inc();
        }
        let stream = Shared::new(stream);
        let ended = match &self.tls {
            None => self.http(stream.clone(), false, &stop).await,
            Some(tls) => match timeout(self.limits.handshake, tls.accept(stream.clone())).await {
                Err(_) => Err((ConnectionFailure::HandshakeTimeout, None)),
                Ok(Err(error)) => Err((ConnectionFailure::Handshake, Some(error.into()))),
                Ok(Ok(stream)) => {
                    let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                    self.http(stream, http2, &stop).await
                }
            },
        };
        stream.linger().await;
        if let Some(metrics) = &self.metrics {
            metrics.connections.dec();
            if let Err((failure, cause)) = ended {
                metrics.connection_failed(failure);
                tracing::debug!(?failure, cause, "a connection failed");
            }
        }
    }

    async fn http(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        http2: bool,
        stop: &CancellationToken,
    ) -> Result<(), (ConnectionFailure, Option<Cause>)> {
        let first = Arc::new(Notify::new());
        let service = service_fn({
            let (router, first) = (self.router.clone(), Arc::clone(&first));
            move |request: hyper::Request<Incoming>| {
                first.notify_one();
                router.clone().oneshot(request.map(Body::new))
            }
        });
        let mut http = Builder::new(TokioExecutor::new());
        http.http1()
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.head)
            .max_buf_size(MAX_HEAD_BYTES as usize);
        http.http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_STREAMS)
            .max_header_list_size(MAX_HEAD_BYTES)
            .keep_alive_interval(PING)
            .keep_alive_timeout(PING);
        let http = if http2 { http.http2_only() } else { http.http1_only() };

        let mut connection = pin!(http.serve_connection(TokioIo::new(stream), service));
        let mut no_request = pin!(sleep(self.limits.head));
        let mut too_old = pin!(sleep(self.limits.age));
        let mut overdue = pin!(sleep(self.limits.age.saturating_add(self.limits.ending)));
        let (mut asked, mut ending) = (false, false);
        loop {
            tokio::select! {
                done = connection.as_mut() => {
                    return done.map_err(|error| (ConnectionFailure::Protocol, Some(error)));
                }
                () = first.notified(), if !asked => asked = true,
                () = &mut no_request, if !asked => return Err((ConnectionFailure::NoRequest, None)),
                () = &mut too_old, if !ending => ending = true,
                () = &mut overdue => return Err((ConnectionFailure::Overdue, None)),
                () = stop.cancelled(), if !ending => {
                    ending = true;
                    overdue.as_mut().reset(Instant::now() + self.limits.ending);
                }
            }
            if ending {
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Binds a port.
///
/// # Errors
/// When the address is taken or not ours.
pub async fn bind(address: std::net::SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address).await
}
