//! Queries on a stream of bytes, whether plain TCP or TLS: pipelined, answered in the order in which answers are there
//! (RFC 7766, 6.2.1.1; RFC 7858, 3.3).
//!
//! A cached answer never waits behind a miss of the same connection: misses are tasks of their own, and a writer puts
//! out whatever is ready. Who is told to leave reads no further, and is done when all that was asked is answered.
//!
//! Bounds: connections and misses, of a client and of all (`clients`); a time for the first query and between queries,
//! and a time for a client that does not read, all of which shrink as places become few. A connection with
//! [`MAX_UNDER_WAY`] misses is not read on until one is answered; a client with too many on all of its connections is
//! refused. Who asks by EDNS is told the time (RFC 7828).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nodestub_corefile::config::{Scheme, Timeouts};
use nodestub_wire::{Admission, Query, add_keepalive, add_padding, asks_keepalive, asks_padding};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::{timeout, timeout_at};

use super::Shared;
use super::clients::Pressure;
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
pub(super) const FIRST_QUERY: Duration = Duration::from_secs(3);

/// How long a connection may be silent after that (CoreDNS `idle`, 10 s).
const IDLE: Duration = Duration::from_secs(10);

/// How long one reply may take to be sent (CoreDNS `write`, 5 s).
const WRITE: Duration = Duration::from_secs(5);

/// Who asks, and where.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer {
    pub(super) client: SocketAddr,
    /// The listening address that the connection came in by.
    pub(super) address: SocketAddr,
    pub(super) scheme: Scheme,
    /// It has asked something already.
    pub(super) has_asked: bool,
}

/// What is left of a connection that is read no further, when all that was asked is answered.
pub(super) struct Rest<R, W> {
    pub(super) reader: R,
    /// Read, and not taken up: whole queries, and a part of one.
    pub(super) unread: Vec<u8>,
    /// `None`: the client does not read.
    pub(super) writer: Option<W>,
    /// It was told to leave. Otherwise it is of no more use.
    pub(super) leaves: bool,
    pub(super) has_asked: bool,
}

/// Serves until the connection ends, or `leave` says that it is to.
pub(super) async fn serve<R, W>(
    shared: &Arc<Shared>,
    peer: Peer,
    (reader, unread): (R, Vec<u8>),
    writer: W,
    leave: impl Future<Output = bool>,
) -> Rest<R, W>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin + Send + 'static,
{
    let timeouts = timeouts(shared, peer.address);
    let (replies, queue) = mpsc::channel(REPLY_QUEUE);
    let mut connection = Connection {
        shared: Arc::clone(shared),
        peer,
        replies,
        pressure: shared.clients.pressure(),
        under_way: Arc::new(Semaphore::new(MAX_UNDER_WAY)),
        timeouts,
        queries: 0,
    };
    // The writer ends when the reader and all misses have let go of `replies`, or when the client does not read.
    let write = tokio::spawn(write(writer, queue, Arc::clone(shared), timeouts.write.unwrap_or(WRITE)));
    let mut frames = FrameReader::with_buffer(reader, unread);
    let leaves = connection.read(&mut frames, leave).await;
    let has_asked = connection.peer.has_asked;
    drop(connection);
    let writer = write.await.ok().flatten();
    let (reader, unread) = frames.into_parts();
    Rest { reader, unread, writer, leaves, has_asked }
}

/// What the Corefile says of connections at an address.
pub(super) fn timeouts(shared: &Shared, address: SocketAddr) -> Timeouts {
    shared.tables.load().listeners.get(&address).map(|zones| zones.timeouts).unwrap_or_default()
}

struct Connection {
    shared: Arc<Shared>,
    peer: Peer,
    replies: mpsc::Sender<Vec<u8>>,
    pressure: watch::Receiver<Pressure>,
    under_way: Arc<Semaphore>,
    timeouts: Timeouts,
    /// Asked on it since this process has it.
    queries: u32,
}

impl Connection {
    /// True: it is to leave. False: the connection is of no more use.
    async fn read(
        &mut self,
        frames: &mut FrameReader<impl AsyncRead + Unpin>,
        leave: impl Future<Output = bool>,
    ) -> bool {
        let mut leave = std::pin::pin!(leave);
        let mut silent_since = tokio::time::Instant::now();
        loop {
            if self.timeouts.max_queries.is_some_and(|most| self.queries >= most) {
                return false;
            }
            let usual =
                if self.peer.has_asked { self.idle() } else { self.timeouts.read.unwrap_or(FIRST_QUERY) };
            let patience = self.pressure.borrow_and_update().patience(usual);
            let packet = tokio::select! {
                biased;
                leaves = &mut leave => {
                    if leaves && self.peer.scheme == Scheme::Tls {
                        self.take_up_rest(frames).await;
                    }
                    return leaves;
                }
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
            self.peer.has_asked = true;
            self.queries = self.queries.saturating_add(1);
            if !self.query(packet).await {
                return false;
            }
            silent_since = tokio::time::Instant::now();
        }
    }

    /// What is here already is taken up, where it cannot go elsewhere with its connection; so much of it that a client
    /// that goes on asking is no reason to stay.
    async fn take_up_rest(&mut self, frames: &mut FrameReader<impl AsyncRead + Unpin>) {
        for _ in 0..MAX_UNDER_WAY {
            let Ok(Ok(Some(packet))) = timeout(Duration::ZERO, frames.next()).await else { return };
            if !self.query(packet).await {
                return;
            }
        }
    }

    /// Answers or hands on one query; false when the connection is of no more use.
    async fn query(&self, mut packet: Vec<u8>) -> bool {
        let received = Instant::now();
        let tables = self.shared.tables.load_full();
        let zones = tables.listeners.get(&self.peer.address);
        // A reload has taken it away, or made another thing of it.
        let Some(zones) = zones.filter(|zones| zones.scheme() == self.peer.scheme) else { return false };
        let length = packet.len();
        let wishes = self.wishes(&packet);
        packet.resize(length.max(BUFFER), 0);
        let context = Context {
            zones,
            cache: &self.shared.resolver.cache,
            now: self.shared.resolver.clock.now(),
            protocol: Protocol::Tcp,
            v6: is_v6(self.peer.client),
            client: Some(self.peer.client.ip()),
        };
        match answer(&context, &mut packet, length) {
            Outcome::Ignore => false,
            Outcome::Reply(reply) => {
                self.count(&reply, &packet, received);
                let length = reply.length;
                packet.truncate(length);
                match finish(packet, wishes) {
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
                    listener: self.peer.address,
                    client: self.peer.client,
                    protocol: Protocol::Tcp,
                    received,
                };
                self.miss(miss, wishes).await
            }
        }
    }

    /// Begins to resolve one query, or refuses it; false when the connection is of no more use.
    async fn miss(&self, miss: Miss, wishes: Wishes) -> bool {
        let Ok(turn) = Arc::clone(&self.under_way).acquire_owned().await else { return false };
        let place = self.shared.clients.miss(self.peer.client.ip());
        let permit = Arc::clone(&self.shared.misses).try_acquire_owned().ok();
        if place.is_some() && permit.is_none() {
            self.shared.drops.misses.add(1);
        }
        let Some((place, permit)) = place.zip(permit) else {
            let refusal = finish(self.shared.resolver.refuse(miss), wishes);
            return match refusal {
                Some(refusal) => self.replies.send(refusal).await.is_ok(),
                None => false,
            };
        };
        let (shared, replies) = (Arc::clone(&self.shared), self.replies.clone());
        tokio::spawn(async move {
            let reply = shared.resolver.resolve(miss).await.and_then(|reply| finish(reply, wishes));
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

    /// What the client wants of the reply beside the answer.
    fn wishes(&self, packet: &[u8]) -> Wishes {
        let Admission::Accept(query) = Query::admit(packet) else { return Wishes::default() };
        let keepalive = asks_keepalive(packet, &query).then(|| {
            let patience = self.pressure.borrow().patience(self.idle());
            u16::try_from(patience.as_millis() / 100).unwrap_or(u16::MAX)
        });
        Wishes { keepalive, padding: self.peer.scheme == Scheme::Tls && asks_padding(packet, &query) }
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
            let (client, server) = (self.peer.client, self.peer.address);
            let packet = packet.get(..reply.length).unwrap_or_default();
            let observation = &reply.observation;
            let answered = Answered { query, client, server, observation, reply: packet, received };
            self.shared.resolver.query_log.write(&block.log, &answered);
        }
    }
}

/// What a client wants of a reply beside the answer.
#[derive(Debug, Clone, Copy, Default)]
struct Wishes {
    /// To be told how long its connection may be silent; inside, in tenths of a second.
    keepalive: Option<u16>,
    /// That its length says little (RFC 7830; only where nobody can read it on the way).
    padding: bool,
}

/// Puts in what is wished, and the length in front.
fn finish(mut reply: Vec<u8>, wishes: Wishes) -> Option<Vec<u8>> {
    if let Some(tenths) = wishes.keepalive {
        add_keepalive(&mut reply, tenths);
    }
    if wishes.padding {
        add_padding(&mut reply);
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
        // TLS keeps back what it has encrypted until it is told.
        let written = async {
            socket.write_all(&replies).await?;
            socket.flush().await
        };
        match timeout(patience, written).await {
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
