//! Clients by TCP: pipelined, answered in the order in which answers are there (RFC 7766, 6.2.1.1).
//!
//! A cached answer never waits behind a miss of the same connection: misses are tasks of their own, and a writer puts
//! out whatever is ready. When a handover begins, a connection is read no further, what was asked on it is answered, and
//! then it moves as it stands: socket, and bytes that have been read and not been taken up. Bounds: [`MAX_CONNECTIONS`] in all, [`MAX_UNDER_WAY`] misses on one connection (then it is
//! not read on), a time for the first query and between queries, and a time for a client that does not read.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nodestub_corefile::config::Timeouts;
use tokio::io::AsyncWriteExt;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::timeout;

use super::{Held, Movers, Shared};
use crate::answer::{Context, Outcome, Replied, answer};
use crate::framing::{FrameReader, frame};
use crate::metrics::Protocol;
use crate::query_log::LogLine;
use crate::resolve::{Miss, is_v6};

/// Connections of all clients together. A further one is closed at once, and counted.
pub(super) const MAX_CONNECTIONS: usize = 1024;

/// Misses under way on one connection.
const MAX_UNDER_WAY: usize = 128;

/// Replies that wait for the writer of one connection.
const REPLY_QUEUE: usize = 128;

/// How long a client may take until its first query is there (CoreDNS `read`, 3 s).
const FIRST_QUERY: Duration = Duration::from_secs(3);

/// How long a connection may be silent after that (CoreDNS `idle`, 10 s).
const IDLE: Duration = Duration::from_secs(10);

/// How long one reply may take to be sent (CoreDNS `write`, 5 s).
const WRITE: Duration = Duration::from_secs(5);

/// Pause after accepting failed for want of file descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Accepts for ever; the caller ends it by dropping.
pub(super) async fn accept(shared: Arc<Shared>, listener: TcpListener, address: SocketAddr) {
    loop {
        let (stream, client) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(cause) => {
                tracing::warn!(%address, %cause, "cannot accept a TCP connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(permit) = Arc::clone(&shared.connections).try_acquire_owned() else {
            shared.drops.connections.add(1);
            continue;
        };
        // Not having it costs latency, nothing else.
        drop(stream.set_nodelay(true));
        let idle = Idle { stream, client, address, has_asked: false, unread: Vec::new(), permit };
        tokio::spawn(serve(Arc::clone(&shared), idle));
    }
}

/// A connection on which nothing is under way.
#[derive(Debug)]
pub(super) struct Idle {
    pub(super) stream: TcpStream,
    pub(super) client: SocketAddr,
    pub(super) address: SocketAddr,
    pub(super) has_asked: bool,
    /// Read, and not taken up: whole queries, and a part of one.
    pub(super) unread: Vec<u8>,
    /// Its place among all connections.
    pub(super) permit: OwnedSemaphorePermit,
}

/// Serves a connection until it ends or has moved to another process.
pub(super) async fn serve(shared: Arc<Shared>, mut idle: Idle) {
    let _open = Held::new(&shared.open_connections);
    let mut movers = shared.movers.subscribe();
    loop {
        let Some(rest) = serve_until_moved(&shared, &mut movers, idle).await else { return };
        idle = rest;
        let Some(mover) = movers.borrow_and_update().clone() else { continue };
        match mover.send(idle).await {
            Ok(()) => return,
            Err(refused) => idle = refused.0,
        }
        // That mover has given up; served again when the order is lifted, and not before.
        if movers.wait_for(Option::is_none).await.is_err() {
            return;
        }
    }
}

/// Serves until the connection ends (`None`), or connections are to move and nothing is under way on this one.
async fn serve_until_moved(shared: &Arc<Shared>, movers: &mut Movers, idle: Idle) -> Option<Idle> {
    let Idle { stream, client, address, has_asked, unread, permit } = idle;
    let timeouts =
        shared.tables.load().listeners.get(&address).map(|zones| zones.timeouts).unwrap_or_default();
    let (read_half, write_half) = stream.into_split();
    let (replies, queue) = mpsc::channel(REPLY_QUEUE);
    let mut connection = Connection {
        shared: Arc::clone(shared),
        client,
        address,
        has_asked,
        replies,
        under_way: Arc::new(Semaphore::new(MAX_UNDER_WAY)),
        timeouts,
        queries: 0,
    };
    // The writer ends when the reader and all misses have let go of `replies`, or when the client does not read.
    let write = tokio::spawn(write(write_half, queue, timeouts.write.unwrap_or(WRITE)));
    let mut frames = FrameReader::with_buffer(read_half, unread);
    let moves = connection.read(&mut frames, movers).await;
    let has_asked = connection.has_asked;
    drop(connection);
    let written = write.await.ok().flatten();
    if !moves {
        return None;
    }
    let (read_half, unread) = frames.into_parts();
    let stream = read_half.reunite(written?).ok()?;
    Some(Idle { stream, client, address, has_asked, unread, permit })
}

struct Connection {
    shared: Arc<Shared>,
    client: SocketAddr,
    address: SocketAddr,
    has_asked: bool,
    replies: mpsc::Sender<Vec<u8>>,
    under_way: Arc<Semaphore>,
    timeouts: Timeouts,
    /// Asked on it since this process has it.
    queries: u32,
}

impl Connection {
    /// True: connections are to move. False: the connection is of no more use.
    async fn read(
        &mut self,
        frames: &mut FrameReader<tokio::net::tcp::OwnedReadHalf>,
        movers: &mut Movers,
    ) -> bool {
        loop {
            if self.timeouts.max_queries.is_some_and(|most| self.queries >= most) {
                return false;
            }
            let patience = if self.has_asked {
                self.timeouts.idle.unwrap_or(IDLE)
            } else {
                self.timeouts.read.unwrap_or(FIRST_QUERY)
            };
            let packet = tokio::select! {
                biased;
                ordered = movers.wait_for(Option::is_some) => return ordered.is_ok(),
                frame = timeout(patience, frames.next()) => match frame {
                    Ok(Ok(Some(packet))) => packet,
                    // Silent, gone, or in the middle of a message: nothing more will come of it.
                    Ok(Ok(None) | Err(_)) | Err(_) => return false,
                },
                // The writer has given up.
                () = self.replies.closed() => return false,
            };
            self.has_asked = true;
            self.queries = self.queries.saturating_add(1);
            if !self.query(packet).await {
                return false;
            }
        }
    }

    /// Answers or hands on one query; false when the connection is of no more use.
    async fn query(&self, mut packet: Vec<u8>) -> bool {
        let received = Instant::now();
        let tables = self.shared.tables.load_full();
        let Some(zones) = tables.listeners.get(&self.address) else { return false };
        let length = packet.len();
        // Room for any reply: at most 64 KiB, given back at once.
        packet.resize(usize::from(u16::MAX), 0);
        let context = Context {
            zones,
            cache: &self.shared.resolver.cache,
            now: self.shared.resolver.clock.now(),
            protocol: Protocol::Tcp,
            v6: is_v6(self.client),
            client: Some(self.client.ip()),
        };
        match answer(&context, &mut packet, length) {
            Outcome::Ignore => false,
            Outcome::Reply(reply) => {
                self.count(&reply, &packet, received);
                let reply = packet.get(..reply.length).and_then(frame);
                match reply {
                    Some(reply) => self.replies.send(reply).await.is_ok(),
                    None => false,
                }
            }
            Outcome::Miss(query, route) => {
                packet.truncate(length);
                packet.shrink_to_fit();
                let Ok(place) = Arc::clone(&self.under_way).acquire_owned().await else { return false };
                let Ok(permit) = Arc::clone(&self.shared.misses).acquire_owned().await else { return false };
                let miss = Miss {
                    packet,
                    query,
                    route: Arc::clone(route),
                    tables: Arc::clone(&tables),
                    listener: self.address,
                    client: self.client,
                    protocol: Protocol::Tcp,
                    received,
                };
                let (shared, replies) = (Arc::clone(&self.shared), self.replies.clone());
                tokio::spawn(async move {
                    let _places = (place, permit);
                    if let Some(reply) = shared.resolver.resolve(miss).await.as_deref().and_then(frame) {
                        // The client may have gone.
                        drop(replies.send(reply).await);
                    }
                });
                true
            }
        }
    }

    fn count(&self, reply: &Replied<'_>, packet: &[u8], received: Instant) {
        let lane = reply.counters.slow();
        lane.observe(&reply.observation);
        lane.observe_durations(received.elapsed(), 1);
        if let Some(kind) = reply.cached {
            lane.cache_hit(kind);
        }
        if reply.allowed {
            lane.allowed();
        }
        if let Some((block, query)) = &reply.logged {
            let line = LogLine::new(query, self.client, &reply.observation, packet, received);
            self.shared.resolver.query_log.write(&block.log, &line);
        }
    }
}

/// Gives the socket back when all is written; `None` when the client does not read.
async fn write(
    mut socket: OwnedWriteHalf,
    mut queue: mpsc::Receiver<Vec<u8>>,
    patience: Duration,
) -> Option<OwnedWriteHalf> {
    while let Some(mut replies) = queue.recv().await {
        // What has come together meanwhile leaves in one system call.
        while let Ok(more) = queue.try_recv() {
            replies.extend_from_slice(&more);
        }
        if !matches!(timeout(patience, socket.write_all(&replies)).await, Ok(Ok(()))) {
            return None;
        }
    }
    Some(socket)
}
