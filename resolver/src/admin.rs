//! HTTP for operators: `/health`, `/ready`, `/metrics`, on the addresses that the Corefile names.
//!
//! Apart from the DNS sockets, so that a probe never waits behind queries, and the other way round.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::routing::get;
use socket2::{Domain, Socket, Type};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::admin_tls::{Tls, TlsListener};
use crate::handover::Handovers;
use crate::listen::Shared;
use crate::metrics::{Facts, render};
use crate::node::SetupErrors;
use crate::obstacles::Obstacles;
use crate::privileges;
use crate::proof::Proof;
use crate::self_check::{self, SelfChecks};
use crate::surroundings::{Known, Service};
use crate::tables::{Endpoints, Workshop};

/// Connections that wait for being accepted.
const BACKLOG: i32 = 128;

/// What the endpoints report.
#[derive(Debug)]
pub struct Status {
    /// The running state.
    pub shared: Arc<Shared>,
    /// Where counters come from.
    pub workshop: Arc<Mutex<Workshop>>,
    /// Queries are answered.
    pub serving: AtomicBool,
    /// The order to stop has come.
    pub stopping: AtomicBool,
    /// Reloads that were refused.
    pub failed_reloads: AtomicU64,
    /// Fingerprint of the Corefile in force.
    pub fingerprint: Mutex<String>,
    /// What went wrong with the address and the rules.
    pub setup_errors: Arc<SetupErrors>,
    /// Whether what becomes of queries while nobody listens was seen to work, address by address.
    pub proof: Arc<Proof>,
    /// What is known of the cluster.
    pub known: watch::Receiver<Known>,
    /// Chains of others that would drop our packets.
    pub obstacles: Arc<Obstacles>,
    /// What became of handovers.
    pub handovers: Handovers,
    /// What `health` found out about itself.
    pub self_checks: Arc<SelfChecks>,
}

/// All HTTP servers.
#[derive(Debug)]
pub struct Admin {
    status: Arc<Status>,
    servers: HashMap<SocketAddr, Server>,
    /// Sockets that another process has handed over, not taken yet.
    offered: HashMap<SocketAddr, OwnedFd>,
    /// The address that the flags serve by HTTPS.
    tls: Option<(SocketAddr, Arc<Tls>)>,
}

#[derive(Debug)]
struct Server {
    /// Kept beside the copy that is served from, so that a pause closes nothing.
    socket: std::net::TcpListener,
    /// Ends the serving.
    stop: CancellationToken,
    /// By HTTPS.
    tls: Option<Arc<Tls>>,
}

/// Sockets for HTTP servers that do not run yet.
#[derive(Debug)]
pub struct Prepared(Vec<(SocketAddr, Endpoints, std::net::TcpListener)>);

/// An HTTP address could not be bound.
#[derive(Debug)]
pub struct AdminError {
    address: SocketAddr,
    cause: io::Error,
}

impl Status {
    /// What keeps us from being ready; empty: nothing.
    pub fn unready(&self) -> Vec<String> {
        self.unready_if(false)
    }

    /// The same; `once`: what the Corefile waits for is not looked at again once it was there.
    fn unready_if(&self, once: bool) -> Vec<String> {
        let mut reasons = Vec::new();
        if self.stopping.load(Relaxed) {
            reasons.push("stopping".to_owned());
        } else if self.handovers.is_standing_by() {
            reasons.push("standing by: a newer process serves".to_owned());
        } else if !self.serving.load(Relaxed) {
            reasons.push("not serving yet".to_owned());
        }
        let tables = self.shared.tables.load();
        if !(once && tables.was_ready.load(Relaxed)) {
            let lacks = self.lacks_cluster_dns();
            if lacks.is_none() {
                tables.was_ready.store(true, Relaxed);
            }
            reasons.extend(lacks);
        }
        for block in &tables.blocks {
            let looped =
                block.forwarders.iter().flat_map(|forwarder| &forwarder.upstreams).filter(|u| u.is_looped());
            let zone = || block.zones.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
            reasons
                .extend(looped.map(|up| format!("loop: {} sends queries for {} back", up.address, zone())));
        }
        reasons
    }

    /// What is missing where the Corefile names the cluster DNS by its placeholder, and nothing is known to put there.
    pub fn lacks_cluster_dns(&self) -> Option<String> {
        let tables = self.shared.tables.load();
        let mut forwarders = tables.blocks.iter().flat_map(|block| &block.forwarders);
        let lacks = forwarders.any(|forwarder| forwarder.upstreams.is_empty());
        if lacks { self.known.borrow().complaint() } else { None }
    }

    /// What an operator may want to know, ready or not: one line each.
    fn details(&self) -> Vec<String> {
        let mut details: Vec<String> = self.proof.findings().iter().map(ToString::to_string).collect();
        let known = self.known.borrow();
        if known.service == Service::StandIn {
            details.extend(known.complaint());
        }
        details
    }

    fn facts(&self) -> Facts {
        Facts {
            routes: self.workshop.lock().unwrap_or_else(PoisonError::into_inner).all_counters(),
            failed_reloads: self.failed_reloads.load(Relaxed),
            fingerprint: self.fingerprint.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            setup_errors: Arc::clone(&self.setup_errors),
            fail_open: self.proof.findings(),
            fail_open_is_proven: self.proof.is_proven(),
            service: {
                let known = self.known.borrow();
                (known.service_name.clone(), known.service)
            },
            obstacles: self.obstacles.report(),
            self_checks: Arc::clone(&self.self_checks),
            ready: self.unready().is_empty(),
            handovers: self.handovers.counts(),
            has_stand_by: self.shared.has_stand_by.load(Relaxed),
        }
    }
}

impl Admin {
    /// No server yet. From a task of tokio: what is served is asked from inside as well.
    pub fn new(status: Arc<Status>) -> Self {
        self_check::start(&status);
        Self { status, servers: HashMap::new(), offered: HashMap::new(), tls: None }
    }

    /// Serves this address by HTTPS, once it is served.
    pub fn serve_by_tls(&mut self, address: SocketAddr, tls: Arc<Tls>) {
        self.tls = Some((address, tls));
    }

    /// Sockets that the next [`Admin::prepare`] takes where it would bind; those that it has no use for are closed.
    pub fn offer(&mut self, offered: HashMap<SocketAddr, OwnedFd>) {
        self.offered = offered;
    }

    /// The listening sockets.
    pub fn sockets(&self) -> impl Iterator<Item = (SocketAddr, BorrowedFd<'_>)> {
        self.servers.iter().map(|(address, server)| (*address, server.socket.as_fd()))
    }

    /// Accepts nothing more; requests under way are answered. No socket is closed.
    pub fn pause(&self) {
        for server in self.servers.values() {
            server.stop.cancel();
        }
    }

    /// Accepts again.
    pub fn resume(&mut self) {
        for (address, server) in &mut self.servers {
            server.stop = CancellationToken::new();
            serve(&self.status, *address, &server.socket, server.tls.as_ref(), server.stop.clone());
        }
    }

    /// What an address is served with: as the flags say, or else the Corefile.
    fn tls_of(&self, address: SocketAddr, wanted: &HashMap<SocketAddr, Arc<Tls>>) -> Option<Arc<Tls>> {
        let by_flags = self.tls.as_ref().filter(|(secured, _)| *secured == address).map(|(_, tls)| tls);
        by_flags.or_else(|| wanted.get(&address)).cloned()
    }

    /// Binds what `wanted` has and we have not. Nothing that runs is touched.
    ///
    /// # Errors
    /// An address cannot be bound.
    pub fn prepare(&mut self, wanted: &HashMap<SocketAddr, Endpoints>) -> Result<Prepared, AdminError> {
        let mut prepared = Vec::new();
        for (&address, &endpoints) in wanted {
            if self.servers.contains_key(&address) {
                continue;
            }
            let listener = match self.offered.remove(&address) {
                Some(socket) => adopt(socket, address),
                None => privileges::call(move || bind(address)),
            };
            prepared.push((address, endpoints, listener.map_err(|cause| AdminError { address, cause })?));
        }
        self.offered.clear();
        Ok(Prepared(prepared))
    }

    /// Goes over to `wanted`: starts what was prepared, stops what is no longer wanted. `by_tls`: what is served by HTTPS.
    pub fn apply(
        &mut self,
        wanted: &HashMap<SocketAddr, Endpoints>,
        by_tls: &HashMap<SocketAddr, Arc<Tls>>,
        prepared: Prepared,
    ) {
        self.servers.retain(|address, server| {
            let keep = wanted.contains_key(address);
            if !keep {
                server.stop.cancel();
            }
            keep
        });
        for (address, endpoints, socket) in prepared.0 {
            if let Ok(bound) = socket.local_addr() {
                tracing::info!(address = %bound, ?endpoints, "serving HTTP");
            }
            let stop = CancellationToken::new();
            let tls = self.tls_of(address, by_tls);
            serve(&self.status, address, &socket, tls.as_ref(), stop.clone());
            self.servers.insert(address, Server { socket, stop, tls });
        }
        let addresses: Vec<SocketAddr> = self.servers.keys().copied().collect();
        for address in addresses {
            let tls = self.tls_of(address, by_tls);
            let Some(server) = self.servers.get_mut(&address) else { continue };
            if server.tls.as_ref().map(Arc::as_ptr) != tls.as_ref().map(Arc::as_ptr) {
                server.stop.cancel();
                server.stop = CancellationToken::new();
                serve(&self.status, address, &server.socket, tls.as_ref(), server.stop.clone());
                server.tls = tls;
            }
        }
    }

    /// Closes the sockets of all other addresses.
    pub fn keep_only(&mut self, addresses: &[SocketAddr]) {
        self.servers.retain(|address, server| {
            let keep = addresses.contains(address);
            if !keep {
                server.stop.cancel();
            }
            keep
        });
    }
}

/// Serves from a copy of `socket` until `stop`.
fn serve(
    status: &Arc<Status>,
    address: SocketAddr,
    socket: &std::net::TcpListener,
    tls: Option<&Arc<Tls>>,
    stop: CancellationToken,
) {
    let listener = match socket.try_clone().and_then(TcpListener::from_std) {
        Ok(listener) => listener,
        Err(cause) => {
            tracing::error!(%address, %cause, "cannot serve HTTP");
            return;
        }
    };
    let router = router(Arc::clone(status), address);
    let tls = tls.cloned();
    tokio::spawn(async move {
        let stopped = stop.cancelled_owned();
        let ended = match tls {
            Some(tls) => {
                let listener = TlsListener::new(listener, tls);
                axum::serve(listener, router).with_graceful_shutdown(stopped).await
            }
            None => axum::serve(listener, router).with_graceful_shutdown(stopped).await,
        };
        if let Err(cause) = ended {
            tracing::error!(%address, %cause, "an HTTP server has ended");
        }
    });
}

/// What another process has bound for `address`, its fall-back to IPv4 included.
fn adopt(socket: OwnedFd, address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let listener = std::net::TcpListener::from(socket);
    listener.set_nonblocking(true)?;
    let bound = listener.local_addr()?;
    let same_port = address.port() == 0 || bound.port() == address.port();
    let same_ip =
        bound.ip() == address.ip() || (bound.ip().is_unspecified() && address.ip().is_unspecified());
    if same_port && same_ip {
        Ok(listener)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidData, "not a socket of this address was handed over"))
    }
}

fn bind(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    match bind_exactly(address) {
        // No IPv6 on this machine.
        Err(_) if address.ip().is_unspecified() && address.is_ipv6() => {
            bind_exactly(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), address.port()))
        }
        bound => bound,
    }
}

fn bind_exactly(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking().cloexec(), None)?;
    // A reload may go from the wildcard to one of its addresses, which the kernel allows side by side only so.
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

type Place = (Arc<Status>, SocketAddr);

/// All paths are there; what an address serves is looked up in the tables in force, so that a reload may change it.
fn router(status: Arc<Status>, address: SocketAddr) -> Router {
    Router::new()
        .route("/health", get(health))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics))
        .with_state((status, address))
}

fn serves((status, address): &Place, wanted: impl Fn(&Endpoints) -> bool) -> bool {
    status.shared.tables.load().admin.get(address).is_some_and(wanted)
}

async fn health(State(place): State<Place>) -> (StatusCode, &'static str) {
    if serves(&place, |endpoints| endpoints.health) { (StatusCode::OK, "OK") } else { NOT_HERE }
}

async fn ready(State(place): State<Place>) -> (StatusCode, String) {
    if !serves(&place, |endpoints| endpoints.ready) {
        return (NOT_HERE.0, NOT_HERE.1.to_owned());
    }
    let mut lines = place.0.unready_if(serves(&place, |endpoints| endpoints.ready_once));
    let status = if lines.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    if lines.is_empty() {
        lines.push("OK".to_owned());
    }
    // What is so on this node and keeps nobody from being ready: others would not do better.
    lines.extend(place.0.details());
    lines.extend(place.0.obstacles.details());
    (status, lines.join("\n"))
}

async fn metrics(
    State(place): State<Place>,
) -> (StatusCode, [(header::HeaderName, &'static str); 1], String) {
    let content_type = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    if !serves(&place, |endpoints| endpoints.metrics) {
        return (NOT_HERE.0, content_type, NOT_HERE.1.to_owned());
    }
    let status = &place.0;
    (StatusCode::OK, content_type, render(&status.shared, &status.facts()))
}

const NOT_HERE: (StatusCode, &str) = (StatusCode::NOT_FOUND, "not served on this address\n");

impl std::fmt::Display for AdminError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "cannot serve HTTP on {}: {}. Change the address of `health`, `ready` or `prometheus`, or stop what has it",
            self.address, self.cause
        )
    }
}

impl std::error::Error for AdminError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.cause)
    }
}
