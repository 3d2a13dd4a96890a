//! Where queries come in.
//!
//! ```text
//!   udp worker threads, one per CPU ── hit: reply by the same socket
//!        │ miss, through a bounded queue                ▲
//!        ▼                                              │
//!   dispatcher ── a task for each ── Resolver::resolve ─┘
//!        ▲
//!   tcp: a task for each connection
//! ```
//!
//! [`Listeners`] owns all sockets. A new set of addresses is bound beside the old one before anything else changes, so
//! that a reload that cannot bind does not happen. Sockets are bound to one address each; where the Corefile binds
//! none, to the wildcard of each family, and then they report which address was asked.

mod tcp;
mod udp;

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use arc_swap::ArcSwap;
use socket2::{Domain, Socket, Type};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use crate::metrics::Counter;
use crate::resolve::{Miss, Resolver};
use crate::sys;
use crate::tables::Tables;
pub use udp::Worker;

/// Misses that wait between the fast side and the slow side.
const MISS_QUEUE: usize = 4096;

/// Misses under way at once; a further one waits in the queue, and is dropped when that is full: its client repeats.
/// About 4 KiB each.
const MAX_MISSES: usize = 4096;

/// Receive buffer of each UDP socket, in bytes: a burst of 2,000 queries (the kernel counts about 1.3 KiB for each).
/// The kernel allows what `net.core.rmem_max` says without NET_ADMIN, and is asked with it first.
const RECEIVE_BUFFER: usize = 4 << 20;

/// TCP connections that wait for being accepted.
const TCP_BACKLOG: i32 = 1024;

/// Most threads of the fast side.
pub const MAX_WORKERS: usize = 64;

/// What the workers, the connections and the scrapes share.
#[derive(Debug)]
pub struct Shared {
    /// The Corefile in force.
    pub tables: ArcSwap<Tables>,
    /// How queries are answered.
    pub resolver: Resolver,
    /// Bounds that were met.
    pub drops: Drops,
    misses: Arc<Semaphore>,
    connections: Arc<Semaphore>,
    /// TCP connections of clients, now.
    pub open_connections: AtomicUsize,
}

/// Bounds that were met, each counted.
#[derive(Debug, Default)]
pub struct Drops {
    /// Misses dropped because the queue to the slow side was full.
    pub misses: Counter,
    /// Replies that the kernel refused to send.
    pub replies: Counter,
    /// TCP connections closed at once because there were too many.
    pub connections: Counter,
}

/// All sockets that queries come in by.
#[derive(Debug)]
pub struct Listeners {
    shared: Arc<Shared>,
    workers: Vec<Worker>,
    cpus: Vec<usize>,
    /// Ends when all workers have, and all that they left in the queue is under way.
    dispatcher: tokio::task::JoinHandle<()>,
    bound: HashMap<SocketAddr, Bound>,
}

#[derive(Debug)]
struct Bound {
    /// One for each worker.
    udp: Vec<Arc<udp::Listener>>,
    /// Taken by the task that accepts.
    tcp: Option<std::net::TcpListener>,
    /// Ends that task.
    stop_tcp: CancellationToken,
}

/// A socket could not be made, bound or set up.
#[derive(Debug)]
pub struct BindError {
    address: SocketAddr,
    protocol: &'static str,
    cause: io::Error,
}

impl Shared {
    /// Nothing bound yet.
    pub fn new(tables: Tables, resolver: Resolver) -> Arc<Self> {
        Arc::new(Self {
            tables: ArcSwap::from_pointee(tables),
            resolver,
            drops: Drops::default(),
            misses: Arc::new(Semaphore::new(MAX_MISSES)),
            connections: Arc::new(Semaphore::new(tcp::MAX_CONNECTIONS)),
            open_connections: AtomicUsize::new(0),
        })
    }

    /// Misses under way, now.
    pub fn misses_under_way(&self) -> usize {
        MAX_MISSES - self.misses.available_permits()
    }
}

impl Listeners {
    /// Starts `workers` threads of the fast side, for queries received on `cpus`, and the dispatcher of misses. Nothing
    /// is bound.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub fn start(shared: &Arc<Shared>, workers: usize, cpus: Vec<usize>) -> io::Result<Self> {
        let (sender, receiver) = mpsc::channel(MISS_QUEUE);
        let start = |number| Worker::start(number, Arc::clone(shared), sender.clone());
        let workers = (0..workers).map(start).collect::<io::Result<_>>()?;
        let dispatcher = tokio::spawn(dispatch(Arc::clone(shared), receiver));
        Ok(Self { shared: Arc::clone(shared), workers, cpus, dispatcher, bound: HashMap::new() })
    }

    /// Goes over to new tables: binds what is new, swaps, closes what is no longer wanted. Where something cannot be
    /// bound, nothing changes.
    ///
    /// # Errors
    /// An address cannot be bound.
    pub fn apply(&mut self, tables: Tables) -> Result<(), BindError> {
        let wanted: Vec<SocketAddr> = tables.listeners.keys().copied().collect();
        let mut fresh = Vec::new();
        for &address in wanted.iter().filter(|address| !self.bound.contains_key(address)) {
            fresh.push((address, self.bind(address)?));
        }
        self.shared.tables.store(Arc::new(tables));
        self.bound.extend(fresh);
        self.bound.retain(|address, bound| {
            let keep = wanted.contains(address);
            if !keep {
                bound.stop_tcp.cancel();
            }
            keep
        });
        self.serve();
        Ok(())
    }

    /// The addresses that are bound.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        let mut addresses: Vec<_> = self.bound.keys().copied().collect();
        addresses.sort_unstable();
        addresses
    }

    /// Closes all sockets to new queries, waits until those under way are answered, at most for `patience`, and ends
    /// the threads. What lies in a closed socket's queue is answered before it closes.
    pub async fn stop(mut self, patience: Duration) {
        for bound in self.bound.values() {
            bound.stop_tcp.cancel();
        }
        let sockets: Vec<_> = self.bound.drain().flat_map(|(_, bound)| bound.udp).collect();
        for worker in self.workers.drain(..) {
            // The thread answers what has arrived already, then ends.
            drop(tokio::task::spawn_blocking(move || worker.stop()).await);
        }
        let permits = u32::try_from(MAX_MISSES).unwrap_or(u32::MAX);
        let drained = async {
            drop((&mut self.dispatcher).await);
            drop(self.shared.misses.acquire_many(permits).await);
        };
        if tokio::time::timeout(patience, drained).await.is_err() {
            tracing::warn!(
                misses = self.shared.misses_under_way(),
                "queries were still under way when the time to stop had come"
            );
        }
        // Only now: replies to misses leave by the sockets that the questions came by.
        drop(sockets);
    }

    fn bind(&self, address: SocketAddr) -> Result<Bound, BindError> {
        let error = |protocol| move |cause| BindError { address, protocol, cause };
        let mut udp = Vec::new();
        for _ in &self.workers {
            udp.push(Arc::new(udp::Listener::bind(address).map_err(error("UDP"))?));
        }
        if let Some(first) = udp.first()
            && let Err(cause) = sys::steer_by_cpu(first.as_fd(), &self.cpus, udp.len())
        {
            // Slower, not wrong: the kernel then chooses by a hash of the client's address.
            tracing::warn!(%address, %cause, "cannot steer queries to the CPU that received them");
        }
        let tcp = bind_tcp(address).map_err(error("TCP"))?;
        Ok(Bound { udp, tcp: Some(tcp), stop_tcp: CancellationToken::new() })
    }

    /// Hands the sockets to the workers, and starts accepting where that is not under way.
    fn serve(&mut self) {
        for (number, worker) in self.workers.iter().enumerate() {
            let sockets = self.bound.values().filter_map(|bound| bound.udp.get(number).cloned());
            worker.serve(sockets.collect());
        }
        for (address, bound) in &mut self.bound {
            let Some(listener) = bound.tcp.take() else { continue };
            match tokio::net::TcpListener::from_std(listener) {
                Ok(listener) => {
                    let accept = tcp::accept(Arc::clone(&self.shared), listener, *address);
                    let stop = bound.stop_tcp.clone();
                    tokio::spawn(async move { stop.run_until_cancelled(accept).await });
                }
                Err(cause) => tracing::error!(%address, %cause, "cannot accept TCP connections"),
            }
        }
    }
}

/// Takes misses off the queue and answers each in a task of its own.
async fn dispatch(shared: Arc<Shared>, mut queue: mpsc::Receiver<(Miss, udp::ReplyTo)>) {
    while let Some((miss, reply_to)) = queue.recv().await {
        let Ok(permit) = Arc::clone(&shared.misses).acquire_owned().await else { return };
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            let _permit = permit;
            let client = miss.client;
            let reply = shared.resolver.resolve(miss).await;
            if reply_to.send(&reply, client).is_err() {
                shared.drops.replies.add(1);
            }
        });
    }
}

fn bind_udp(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM.nonblocking().cloexec(), None)?;
    socket.set_reuse_port(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // Without the right to go beyond the system's limit, as much as it allows.
    socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    if address.ip().is_unspecified() {
        sys::report_local_end(socket.as_fd(), address.is_ipv6())?;
    }
    socket.bind(&address.into())?;
    Ok(socket)
}

fn bind_tcp(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking().cloexec(), None)?;
    // A restart must not wait for connections that are fading away; and a reload may go from the wildcard to one of
    // its addresses, which the kernel allows side by side only so.
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    socket.listen(TCP_BACKLOG)?;
    Ok(socket.into())
}

impl std::fmt::Display for BindError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { address, protocol, cause } = self;
        write!(f, "cannot listen on {address} ({protocol}): {cause}")?;
        match cause.kind() {
            io::ErrorKind::AddrInUse => {
                write!(f, ". Another process has the port: `ss -lnup sport = :{}` names it", address.port())
            }
            io::ErrorKind::AddrNotAvailable => {
                f.write_str(". No device has this address: give it with -localip, or change `bind`")
            }
            io::ErrorKind::PermissionDenied => {
                f.write_str(". Ports below 1024 need the capability NET_BIND_SERVICE")
            }
            _ => Ok(()),
        }
    }
}

impl std::error::Error for BindError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.cause)
    }
}

/// Counts a value up for as long as it lives.
struct Held<'a>(&'a AtomicUsize);

impl<'a> Held<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Relaxed);
        Self(count)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}
