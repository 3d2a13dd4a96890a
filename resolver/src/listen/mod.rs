//! Where queries come in.
//!
//! ```text
//!   udp worker threads, one per CPU ── hit: reply by the same socket
//!        │ miss, through a bounded queue                ▲
//!        ▼                                              │
//!   dispatcher ── a task for each ── Resolver::resolve ─┘
//!        ▲
//!   tcp, tls: a task for each connection ── stream: the queries on it
//! ```
//!
//! [`Listeners`] owns all sockets. A new set of addresses is bound beside the old one before anything else changes, so
//! that a reload that cannot bind does not happen. Sockets that another process hands over are taken in place of bound
//! ones; [`Listeners::pause`] stops reading without closing anything, so that what arrives meanwhile waits in the
//! kernel for whoever reads next. Sockets are bound to one address each; where the Corefile binds
//! none, to the wildcard of each family, and then they report which address was asked. Where clients ask by TLS there is
//! no UDP.

mod bind;
mod clients;
mod leave;
mod memory;
pub mod overflow;
mod stream;
mod tcp;
mod tls;
mod udp;

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use arc_swap::ArcSwap;
use nodestub_corefile::config::Scheme;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::metrics::Counter;
use crate::privileges;
use crate::resolve::{Miss, Resolver};
use crate::sys;
use crate::tables::Tables;
pub use bind::{BindError, is_free};
pub use clients::{Clients, ConnectionPlace};
pub use tls::Handshakes;
pub use udp::Worker;

/// Misses that wait between the fast side and the slow side.
const MISS_QUEUE: usize = 4096;

/// Misses under way at once; a further one waits in the queue, and is dropped when that is full: its client repeats.
/// About 4 KiB each.
const MAX_MISSES: usize = 4096;

/// Between looks whether connections by TLS have taken leave.
const TAKING_LEAVE: Duration = Duration::from_millis(10);

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
    /// What each client has under way.
    pub clients: Arc<Clients>,
    misses: Arc<Semaphore>,
    /// TCP connections of clients, those by TLS included, now.
    pub open_connections: AtomicUsize,
    /// What became of handshakes by TLS.
    pub handshakes: Handshakes,
    /// The end has come for what cannot move: connections by TLS take leave once nothing is under way on them.
    ending: CancellationToken,
    /// Another process reads the sockets, should this one die. Then a query leaves its socket's queue only once it is
    /// answered here, or on its way to being so.
    pub has_stand_by: AtomicBool,
    /// Where connections go once nothing is under way on them; `None`: they stay.
    movers: watch::Sender<Option<mpsc::Sender<tcp::Idle>>>,
}

type Movers = watch::Receiver<Option<mpsc::Sender<tcp::Idle>>>;

/// A TCP connection between two queries, on its way from this process or into it.
#[derive(Debug)]
pub struct Moving {
    /// The socket.
    pub socket: OwnedFd,
    /// The listening address that it came in by.
    pub address: SocketAddr,
    /// The client.
    pub client: SocketAddr,
    /// Whether it has asked something already.
    pub has_asked: bool,
    /// What has been read and not been taken up: whole queries, and a part of one.
    pub unread: Vec<u8>,
    /// Its place among the connections of this process, for as long as it is in it; `None`: it has none yet.
    pub place: Option<ConnectionPlace>,
}

/// Takes connections as they become idle, while [`Listeners::pause`] holds.
#[derive(Debug)]
pub struct Departures {
    shared: Arc<Shared>,
    queue: mpsc::Receiver<tcp::Idle>,
}

/// Sockets of one address that another process has handed over.
#[derive(Debug, Default)]
pub struct Offered {
    /// In the order of their group; none where clients ask by TLS.
    pub udp: Vec<OwnedFd>,
    /// Listening.
    pub tcp: Option<OwnedFd>,
}

/// Bounds that were met, each counted.
#[derive(Debug, Default)]
pub struct Drops {
    /// Misses dropped because the queue to the slow side was full.
    pub misses: Counter,
    /// Replies that the kernel refused to send.
    pub replies: Counter,
}

/// All sockets that queries come in by.
#[derive(Debug)]
pub struct Listeners {
    shared: Arc<Shared>,
    workers: Vec<Worker>,
    cpus: Vec<usize>,
    /// Ends when all workers have, and all that they left in the queue is under way.
    dispatcher: tokio::task::JoinHandle<()>,
    /// Ends with the listeners.
    memory: tokio::task::JoinHandle<()>,
    bound: HashMap<SocketAddr, Bound>,
    /// By another process, and not taken yet.
    offered: HashMap<SocketAddr, Offered>,
    /// Nothing is read or accepted.
    paused: bool,
}

#[derive(Debug)]
struct Bound {
    scheme: Scheme,
    /// A group, in the kernel's order: at least one for each worker, and none where clients ask by TLS. Never shrunk, for
    /// what lies in a closed socket's queue is lost.
    udp: Vec<Arc<udp::Listener>>,
    /// How many of them came from another process.
    adopted: usize,
    tcp: std::net::TcpListener,
    /// Ends the task that accepts from a copy of `tcp`; `None`: there is none.
    stop_tcp: Option<CancellationToken>,
}

impl Shared {
    /// Nothing bound yet.
    pub fn new(tables: Tables, resolver: Resolver) -> Arc<Self> {
        Arc::new(Self {
            tables: ArcSwap::from_pointee(tables),
            resolver,
            drops: Drops::default(),
            misses: Arc::new(Semaphore::new(MAX_MISSES)),
            clients: Clients::new(),
            open_connections: AtomicUsize::new(0),
            handshakes: Handshakes::default(),
            ending: CancellationToken::new(),
            has_stand_by: AtomicBool::new(false),
            movers: watch::Sender::new(None),
        })
    }

    /// Serves a connection that another process has handed over. Where its address is not served here, or there are
    /// too many, it is closed, as a new one would be.
    ///
    /// # Errors
    /// The socket cannot be waited for.
    pub fn admit(self: &Arc<Self>, moving: Moving) -> io::Result<()> {
        let Moving { socket, address, client, has_asked, unread, place } = moving;
        if self.tables.load().listeners.get(&address).is_none_or(|zones| zones.scheme() == Scheme::Tls) {
            return Ok(());
        }
        let Some(place) = place.or_else(|| self.clients.connect(client.ip())) else { return Ok(()) };
        let stream = std::net::TcpStream::from(socket);
        stream.set_nonblocking(true)?;
        let stream = tokio::net::TcpStream::from_std(stream)?;
        let idle = tcp::Idle { stream, client, address, has_asked, unread, place };
        tokio::spawn(tcp::serve(Arc::clone(self), idle));
        Ok(())
    }

    /// Connections that this process holds, those included that are about to leave.
    pub fn connections_held(&self) -> usize {
        self.clients.connections()
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
        Ok(Self {
            shared: Arc::clone(shared),
            workers,
            cpus,
            dispatcher,
            memory: tokio::spawn(memory::give_back_after_floods(Arc::clone(shared))),
            bound: HashMap::new(),
            offered: HashMap::new(),
            paused: false,
        })
    }

    /// Sockets that the next [`Listeners::apply`] takes where it would bind; it closes those that it has no use for.
    /// `stands_by`: who gave them lives, and would read them again.
    pub fn offer(&mut self, offered: HashMap<SocketAddr, Offered>, stands_by: bool) {
        self.offered = offered;
        self.shared.has_stand_by.store(stands_by, Relaxed);
    }

    /// Goes over to new tables: binds what is new, swaps, closes what is no longer wanted. Where something cannot be
    /// bound, nothing changes.
    ///
    /// # Errors
    /// An address cannot be bound.
    pub fn apply(&mut self, tables: Tables) -> Result<(), BindError> {
        let wanted: HashMap<SocketAddr, Scheme> =
            tables.listeners.iter().map(|(address, zones)| (*address, zones.scheme())).collect();
        let mut fresh = Vec::new();
        for (&address, &scheme) in &wanted {
            if self.bound.get(&address).is_some_and(|bound| bound.scheme == scheme) {
                continue;
            }
            let error = |cause| BindError { address, protocol: "TCP", cause };
            let bound = match (self.bound.get(&address), self.offered.remove(&address)) {
                // Served otherwise from now on. The same listener, for who stands by has it too, and another one would
                // share its clients.
                (Some(before), _) => {
                    self.bind_beside(address, scheme, before.tcp.try_clone().map_err(error)?)?
                }
                (None, Some(offered)) => self.adopt(address, scheme, offered)?,
                (None, None) => self.bind(address, scheme)?,
            };
            fresh.push((address, bound));
        }
        self.offered.clear();
        self.shared.tables.store(Arc::new(tables));
        for (address, bound) in fresh {
            // What was served there otherwise; threads read its queues to the end.
            if let Some(mut before) = self.bound.insert(address, bound) {
                before.stop_accepting();
            }
        }
        self.bound.retain(|address, bound| {
            let keep = wanted.contains_key(address);
            if !keep {
                bound.stop_accepting();
            }
            keep
        });
        self.serve();
        Ok(())
    }

    /// Stops reading and accepting, and returns when no thread reads any more; nothing is closed. Queries under way are
    /// answered. Connections leave by [`Departures`] once nothing is under way on them.
    pub async fn pause(&mut self) -> Departures {
        self.paused = true;
        let (sender, queue) = mpsc::channel(clients::MAX_CONNECTIONS);
        self.shared.movers.send_replace(Some(sender));
        for bound in self.bound.values_mut() {
            bound.stop_accepting();
        }
        self.hand_to_workers(&HashMap::new());
        for worker in &self.workers {
            worker.settled().await;
        }
        Departures { shared: Arc::clone(&self.shared), queue }
    }

    /// Reads and accepts again.
    pub fn resume(&mut self) {
        self.paused = false;
        self.shared.movers.send_replace(None);
        for (address, bound) in &self.bound {
            self.steer(*address, bound);
        }
        self.serve();
    }

    /// For one who stands by: closes the sockets of all other addresses, once what lies in their queues is answered.
    pub async fn keep_only(&mut self, addresses: &[SocketAddr]) {
        let (kept, unwanted): (HashMap<_, _>, HashMap<_, _>) =
            self.bound.drain().partition(|(address, _)| addresses.contains(address));
        self.bound = kept;
        if unwanted.is_empty() {
            return;
        }
        self.hand_to_workers(&unwanted);
        for worker in &self.workers {
            worker.settled().await;
        }
        // At a new order a thread reads its sockets once more, and lets go of them.
        self.hand_to_workers(&HashMap::new());
        for worker in &self.workers {
            worker.settled().await;
        }
    }

    /// Closes all sockets at once, for others have copies and read them. Connections that have not left stay.
    pub fn abandon(&mut self) {
        self.bound.clear();
        self.shared.movers.send_replace(None);
    }

    /// Adds sockets that another process has bound to the group of an address that we have.
    pub fn extend(&mut self, address: SocketAddr, sockets: Vec<OwnedFd>) {
        let Some(bound) = self.bound.get_mut(&address) else { return };
        let room = MAX_WORKERS.saturating_sub(bound.udp.len());
        let more = sockets.into_iter().take(room).filter_map(|socket| udp::Listener::adopt(socket, address));
        bound.udp.extend(more.map(Arc::new));
    }

    /// The UDP group and the TCP listener of each address.
    pub fn sockets(&self) -> impl Iterator<Item = (SocketAddr, Vec<BorrowedFd<'_>>, BorrowedFd<'_>)> {
        self.bound.iter().map(|(address, bound)| {
            (*address, bound.udp.iter().map(|udp| udp.as_fd()).collect(), bound.tcp.as_fd())
        })
    }

    /// The UDP sockets that were added here to groups that came from another process.
    pub fn added(&self) -> impl Iterator<Item = (SocketAddr, Vec<BorrowedFd<'_>>)> {
        self.bound.iter().filter(|(_, bound)| bound.adopted > 0).filter_map(|(address, bound)| {
            let added: Vec<_> = bound.udp.iter().skip(bound.adopted).map(|udp| udp.as_fd()).collect();
            (!added.is_empty()).then_some((*address, added))
        })
    }

    /// Steers queries of adopted groups to the threads of this process. Not before who stands by has copies of the
    /// sockets that were added: until then nothing arrives there, and nothing is lost with them.
    pub fn steer_adopted(&self) {
        for (address, bound) in self.bound.iter().filter(|(_, bound)| bound.adopted > 0) {
            self.steer(*address, bound);
        }
    }

    /// The addresses that are bound.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        let mut addresses: Vec<_> = self.bound.keys().copied().collect();
        addresses.sort_unstable();
        addresses
    }

    /// Closes all sockets, waits until queries under way are answered, at most for `patience`, and ends the threads.
    /// What lies in a closed socket's queue is answered before it closes.
    pub async fn stop(mut self, patience: Duration) {
        self.memory.abort();
        for bound in self.bound.values_mut() {
            bound.stop_accepting();
        }
        self.shared.ending.cancel();
        let sockets: Vec<_> = self.bound.drain().flat_map(|(_, bound)| bound.udp).collect();
        for worker in self.workers.drain(..) {
            // The thread answers what has arrived already, then ends.
            drop(tokio::task::spawn_blocking(move || worker.stop()).await);
        }
        let permits = u32::try_from(MAX_MISSES).unwrap_or(u32::MAX);
        let drained = async {
            drop((&mut self.dispatcher).await);
            // Before all places are taken, for what they have read still needs some.
            while self.shared.handshakes.connections.load(Relaxed) > 0 {
                tokio::time::sleep(TAKING_LEAVE).await;
            }
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

    fn bind(&self, address: SocketAddr, scheme: Scheme) -> Result<Bound, BindError> {
        let tcp = privileges::call(move || bind::tcp(address));
        self.bind_beside(address, scheme, tcp.map_err(|cause| BindError { address, protocol: "TCP", cause })?)
    }

    /// The UDP sockets of an address whose listener is there.
    fn bind_beside(
        &self,
        address: SocketAddr,
        scheme: Scheme,
        tcp: std::net::TcpListener,
    ) -> Result<Bound, BindError> {
        let mut udp = Vec::new();
        for _ in self.workers.iter().filter(|_| scheme == Scheme::Dns) {
            let socket = privileges::call(move || udp::Listener::bind(address));
            udp.push(Arc::new(socket.map_err(|cause| BindError { address, protocol: "UDP", cause })?));
        }
        let bound = Bound { scheme, udp, adopted: 0, tcp, stop_tcp: None };
        self.steer(address, &bound);
        Ok(bound)
    }

    /// Takes what another process has bound, and adds UDP sockets where there are fewer than workers.
    fn adopt(&self, address: SocketAddr, scheme: Scheme, offered: Offered) -> Result<Bound, BindError> {
        let strange =
            || io::Error::new(io::ErrorKind::InvalidData, "not a socket of this address was handed over");
        let tcp = offered.tcp.ok_or_else(strange).and_then(|tcp| {
            let tcp = std::net::TcpListener::from(tcp);
            tcp.set_nonblocking(true)?;
            if tcp.local_addr()? == address { Ok(tcp) } else { Err(strange()) }
        });
        let tcp = tcp.map_err(|cause| BindError { address, protocol: "TCP", cause })?;
        if scheme == Scheme::Tls || offered.udp.is_empty() {
            // By TLS, here or until now.
            return self.bind_beside(address, scheme, tcp);
        }
        let udp = offered.udp.into_iter().map(|socket| udp::Listener::adopt(socket, address).map(Arc::new));
        let udp = udp.collect::<Option<Vec<_>>>();
        let mut udp = udp.ok_or_else(|| BindError { address, protocol: "UDP", cause: strange() })?;
        let adopted = udp.len();
        while udp.len() < self.workers.len() {
            match privileges::call(move || udp::Listener::bind(address)) {
                Ok(socket) => udp.push(Arc::new(socket)),
                Err(cause) => {
                    // Some threads then have nothing to do at this address.
                    tracing::warn!(%address, %cause, "cannot add a socket to those that were handed over");
                    break;
                }
            }
        }
        Ok(Bound { scheme, udp, adopted, tcp, stop_tcp: None })
    }

    fn hand_to_workers(&self, bound: &HashMap<SocketAddr, Bound>) {
        for (number, worker) in self.workers.iter().enumerate() {
            let share = bound.values().flat_map(|bound| bound.share_of(number, self.workers.len()));
            worker.serve(share.collect());
        }
    }

    fn steer(&self, address: SocketAddr, bound: &Bound) {
        if let Some(first) = bound.udp.first()
            && let Err(cause) = sys::steer_by_cpu(first.as_fd(), &self.cpus, bound.udp.len())
        {
            // Slower, not wrong: the kernel then chooses by a hash of the client's address.
            tracing::warn!(%address, %cause, "cannot steer queries to the CPU that received them");
        }
    }

    /// Hands the sockets to the workers, and starts accepting where that is not under way.
    fn serve(&mut self) {
        if self.paused {
            return;
        }
        self.hand_to_workers(&self.bound);
        for (address, bound) in &mut self.bound {
            if bound.stop_tcp.is_some() {
                continue;
            }
            match bound.tcp.try_clone().and_then(tokio::net::TcpListener::from_std) {
                Ok(listener) => {
                    let accept = tcp::accept(Arc::clone(&self.shared), listener, *address, bound.scheme);
                    let stop = CancellationToken::new();
                    bound.stop_tcp = Some(stop.clone());
                    tokio::spawn(async move { stop.run_until_cancelled(accept).await });
                }
                Err(cause) => tracing::error!(%address, %cause, "cannot accept TCP connections"),
            }
        }
    }
}

impl Bound {
    /// What one of so many workers reads. A group from another process may have more sockets than there are workers.
    fn share_of(&self, number: usize, workers: usize) -> impl Iterator<Item = Arc<udp::Listener>> {
        self.udp.iter().skip(number).step_by(workers).cloned()
    }

    fn stop_accepting(&mut self) {
        if let Some(stop) = self.stop_tcp.take() {
            stop.cancel();
        }
    }
}

impl Departures {
    /// The next connection on which nothing is under way; `None` once all have left, and none can come any more.
    pub async fn next(&mut self) -> Option<Moving> {
        loop {
            let tcp::Idle { stream, client, address, has_asked, unread, place } = self.queue.recv().await?;
            if let Ok(stream) = stream.into_std() {
                let (socket, place) = (stream.into(), Some(place));
                return Some(Moving { socket, address, client, has_asked, unread, place });
            }
        }
    }

    /// One that could not leave.
    pub fn put_back(&self, moving: Moving) {
        if let Err(cause) = self.shared.admit(moving) {
            tracing::warn!(%cause, "a TCP connection was lost");
        }
    }

    /// Gives up: what has not left stays, and is served once [`Listeners::resume`] is called.
    pub async fn give_up(mut self) {
        self.queue.close();
        while let Some(moving) = self.next().await {
            self.put_back(moving);
        }
    }
}

/// Takes misses off the queue and answers each in a task of its own; those of a client that has too many it refuses.
async fn dispatch(shared: Arc<Shared>, mut queue: mpsc::Receiver<(Miss, udp::ReplyTo)>) {
    while let Some((miss, reply_to)) = queue.recv().await {
        let client = miss.client;
        let Some(place) = shared.clients.miss(client.ip()) else {
            if reply_to.send(&shared.resolver.refuse(miss), client).is_err() {
                shared.drops.replies.add(1);
            }
            continue;
        };
        let Ok(permit) = Arc::clone(&shared.misses).acquire_owned().await else { return };
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            let _places = (place, permit);
            let reply = shared.resolver.resolve(miss).await;
            if let Some(reply) = reply
                && reply_to.send(&reply, client).is_err()
            {
                shared.drops.replies.add(1);
            }
        });
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
