//! Clients by TCP: pipelined, answered in the order in which answers are there (RFC 7766, 6.2.1.1).
//!
//! A cached answer never waits behind a miss of the same connection: misses are tasks of their own, and a writer puts
//! out whatever is ready. Bounds: [`MAX_CONNECTIONS`] in all, [`MAX_UNDER_WAY`] misses on one connection (then it is
//! not read on), a time for the first query and between queries, and a time for a client that does not read.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;

use super::{Held, Shared};
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
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            let _permit = permit;
            serve(&shared, stream, client, address).await;
        });
    }
}

async fn serve(shared: &Arc<Shared>, stream: TcpStream, client: SocketAddr, address: SocketAddr) {
    let _open = Held::new(&shared.open_connections);
    // Not having it costs latency, nothing else.
    drop(stream.set_nodelay(true));
    let (read_half, write_half) = stream.into_split();
    let (replies, queue) = mpsc::channel(REPLY_QUEUE);
    let connection = Connection {
        shared: Arc::clone(shared),
        client,
        address,
        replies,
        under_way: Arc::new(Semaphore::new(MAX_UNDER_WAY)),
    };
    // The writer ends when the reader and all misses have let go of `replies`, or when the client does not read.
    let write = tokio::spawn(write(write_half, queue));
    connection.read(FrameReader::new(read_half)).await;
    drop(write.await);
}

struct Connection {
    shared: Arc<Shared>,
    client: SocketAddr,
    address: SocketAddr,
    replies: mpsc::Sender<Vec<u8>>,
    under_way: Arc<Semaphore>,
}

impl Connection {
    async fn read(self, mut frames: FrameReader<tokio::net::tcp::OwnedReadHalf>) {
        let mut patience = FIRST_QUERY;
        loop {
            let packet = tokio::select! {
                frame = timeout(patience, frames.next()) => match frame {
                    Ok(Ok(Some(packet))) => packet,
                    // Silent, gone, or in the middle of a message: nothing more will come of it.
                    Ok(Ok(None) | Err(_)) | Err(_) => return,
                },
                // The writer has given up.
                () = self.replies.closed() => return,
            };
            patience = IDLE;
            if !self.query(packet).await {
                return;
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
                    client: self.client,
                    protocol: Protocol::Tcp,
                    received,
                };
                let (shared, replies) = (Arc::clone(&self.shared), self.replies.clone());
                tokio::spawn(async move {
                    let _places = (place, permit);
                    if let Some(reply) = frame(&shared.resolver.resolve(miss).await) {
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
        if let Some((block, query)) = &reply.logged {
            let line = LogLine::new(query, self.client, &reply.observation, packet, received);
            self.shared.resolver.query_log.write(&block.log, &line);
        }
    }
}

async fn write(mut socket: OwnedWriteHalf, mut queue: mpsc::Receiver<Vec<u8>>) {
    while let Some(mut replies) = queue.recv().await {
        // What has come together meanwhile leaves in one system call.
        while let Ok(more) = queue.try_recv() {
            replies.extend_from_slice(&more);
        }
        if !matches!(timeout(WRITE, socket.write_all(&replies)).await, Ok(Ok(()))) {
            return;
        }
    }
}
