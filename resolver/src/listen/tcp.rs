//! Clients by TCP: pipelined, answered in the order in which answers are there (RFC 7766, 6.2.1.1).
//!
//! A cached answer never waits behind a miss of the same connection: misses are tasks of their own, and a writer puts
//! out whatever is ready. When a handover begins, a connection is read no further, what was asked on it is answered, and
//! then it moves as it stands: socket, and bytes that have been read and not been taken up.
//!
//! Bounds: connections and misses, of a client and of all (`clients`); a time for the first query and between queries,
//! and a time for a client that does not read, all of which shrink as places become few. A connection with
//! [`MAX_UNDER_WAY`] misses is not read on until one is answered; a client with too many on all of its connections is
//! refused. Who asks by EDNS is told the time (RFC 7828).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nodestub_corefile::config::Timeouts;
use nodestub_wire::{Admission, Query, add_keepalive, asks_keepalive};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::{timeout, timeout_at};

use super::clients::{ConnectionPlace, Pressure};
use super::{Held, Movers, Shared};
use crate::answer::{Context, Outcome, Replied, answer};
use crate::framing::{FrameReader, frame};
use crate::metrics::Protocol;
use crate::query_log::Answered;
use crate::resolve::{Miss, is_v6};

/// Misses under way on one connection: with more of them, what comes next waits in the client's own queue.
const MAX_UNDER_WAY: usize = 256;

/// Bytes for a reply that is given at once; a longer one goes by the slow side.
const BUFFER: usize = 4096;

/// Replies that wait for the writer of one connection.
const REPLY_QUEUE: usize = 128;

/// Bytes of replies that are put together before they are written.
const MOST_AT_ONCE: usize = 64 << 10;

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
        let Some(place) = shared.clients.connect(client.ip()) else { continue };
        // Not having it costs latency, nothing else.
        drop(stream.set_nodelay(true));
        let idle = Idle { stream, client, address, has_asked: false, unread: Vec::new(), place };
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
    pub(super) place: ConnectionPlace,
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
    let Idle { stream, client, address, has_asked, unread, place } = idle;
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
        pressure: shared.clients.pressure(),
        under_way: Arc::new(Semaphore::new(MAX_UNDER_WAY)),
        timeouts,
        queries: 0,
    };
    // The writer ends when the reader and all misses have let go of `replies`, or when the client does not read.
    let write = tokio::spawn(write(write_half, queue, Arc::clone(shared), timeouts.write.unwrap_or(WRITE)));
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
    Some(Idle { stream, client, address, has_asked, unread, place })
}

struct Connection {
    shared: Arc<Shared>,
    client: SocketAddr,
    address: SocketAddr,
    has_asked: bool,
    replies: mpsc::Sender<Vec<u8>>,
    pressure: watch::Receiver<Pressure>,
    under_way: Arc<Semaphore>,
    timeouts: Timeouts,
    /// Asked on it since this process has it.
    queries: u32,
}

impl Connection {
    /// True: connections are to move. False: the connection is of no more use.
    async fn read(&mut self, frames: &mut FrameReader<impl AsyncRead + Unpin>, movers: &mut Movers) -> bool {
        let mut silent_since = tokio::time::Instant::now();
        loop {
            if self.timeouts.max_queries.is_some_and(|most| self.queries >= most) {
                return false;
            }
            let usual = if self.has_asked { self.idle() } else { self.timeouts.read.unwrap_or(FIRST_QUERY) };
            let patience = self.pressure.borrow_and_update().patience(usual);
            let packet = tokio::select! {
                biased;
                ordered = movers.wait_for(Option::is_some) => return ordered.is_ok(),
                frame = timeout_at(silent_since + patience, frames.next()) => match frame {
                    Ok(Ok(Some(packet))) => packet,
                    // Gone, or in the middle of a message: nothing more will come of it.
                    Ok(Ok(None) | Err(_)) => return false,
                    Err(_) => {
                        self.shared.clients.timed_out.add(1);
                        return false;
                    }
                },
                // The writer has given up.
                () = self.replies.closed() => return false,
                // There is less patience, or more; the clock runs on.
                changed = self.pressure.changed() => if changed.is_ok() { continue } else { return false },
            };
            self.has_asked = true;
            self.queries = self.queries.saturating_add(1);
            if !self.query(packet).await {
                return false;
            }
            silent_since = tokio::time::Instant::now();
        }
    }

    /// Answers or hands on one query; false when the connection is of no more use.
    async fn query(&self, mut packet: Vec<u8>) -> bool {
        let received = Instant::now();
        let tables = self.shared.tables.load_full();
        let Some(zones) = tables.listeners.get(&self.address) else { return false };
        let length = packet.len();
        let keepalive = self.keepalive_for(&packet);
        packet.resize(length.max(BUFFER), 0);
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
                let length = reply.length;
                packet.truncate(length);
                match finish(packet, keepalive) {
                    Some(reply) => self.replies.send(reply).await.is_ok(),
                    None => false,
                }
            }
            Outcome::Miss(query, route) => {
                packet.truncate(length);
                packet.shrink_to_fit();
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
                self.miss(miss, keepalive).await
            }
        }
    }

    /// Begins to resolve one query, or refuses it; false when the connection is of no more use.
    async fn miss(&self, miss: Miss, keepalive: Option<u16>) -> bool {
        let Ok(turn) = Arc::clone(&self.under_way).acquire_owned().await else { return false };
        let place = self.shared.clients.miss(self.client.ip());
        let permit = Arc::clone(&self.shared.misses).try_acquire_owned().ok();
        if place.is_some() && permit.is_none() {
            self.shared.drops.misses.add(1);
        }
        let Some((place, permit)) = place.zip(permit) else {
            let refusal = finish(self.shared.resolver.refuse(miss), keepalive);
            return match refusal {
                Some(refusal) => self.replies.send(refusal).await.is_ok(),
                None => false,
            };
        };
        let (shared, replies) = (Arc::clone(&self.shared), self.replies.clone());
        tokio::spawn(async move {
            let reply = shared.resolver.resolve(miss).await.and_then(|reply| finish(reply, keepalive));
            // A client that does not read keeps a place of its own, and none of those that all share.
            drop(permit);
            if let Some(reply) = reply {
                // The client may have gone.
                drop(replies.send(reply).await);
            }
            drop((place, turn));
        });
        true
    }

    /// How long the connection may be silent between queries, where places are plenty.
    fn idle(&self) -> Duration {
        self.timeouts.idle.unwrap_or(IDLE)
    }

    /// What a client that asks for it is told of how long its connection may be silent, in tenths of a second.
    fn keepalive_for(&self, packet: &[u8]) -> Option<u16> {
        let Admission::Accept(query) = Query::admit(packet) else { return None };
        asks_keepalive(packet, &query).then(|| {
            let patience = self.pressure.borrow().patience(self.idle());
            u16::try_from(patience.as_millis() / 100).unwrap_or(u16::MAX)
        })
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
            let (client, server) = (self.client, self.address);
            let packet = packet.get(..reply.length).unwrap_or_default();
            let observation = &reply.observation;
            let answered = Answered { query, client, server, observation, reply: packet, received };
            self.shared.resolver.query_log.write(&block.log, &answered);
        }
    }
}

/// Puts the keepalive option into a reply where it is due, and the length in front.
fn finish(mut reply: Vec<u8>, keepalive: Option<u16>) -> Option<Vec<u8>> {
    if let Some(tenths) = keepalive {
        add_keepalive(&mut reply, tenths);
    }
    frame(&reply)
}

/// Gives the socket back when all is written; `None` when the client does not read.
async fn write<W: AsyncWrite + Unpin>(
    mut socket: W,
    mut queue: mpsc::Receiver<Vec<u8>>,
    shared: Arc<Shared>,
    usual: Duration,
) -> Option<W> {
    let pressure = shared.clients.pressure();
    while let Some(mut replies) = queue.recv().await {
        // What has come together meanwhile leaves in one system call.
        while replies.len() < MOST_AT_ONCE
            && let Ok(more) = queue.try_recv()
        {
            replies.extend_from_slice(&more);
        }
        let patience = pressure.borrow().patience(usual);
        match timeout(patience, socket.write_all(&replies)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return None,
            Err(_) => {
                shared.clients.timed_out.add(1);
                return None;
            }
        }
    }
    Some(socket)
}
