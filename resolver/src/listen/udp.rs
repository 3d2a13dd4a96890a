//! The fast side: one thread per CPU, one UDP socket per address and thread.
//!
//! A thread waits for its sockets, takes a batch, answers what it can in the buffers that the queries came in, hands
//! the rest to the slow side, sends the replies, and counts last. While a socket has full batches, it is asked again
//! without waiting. The clock is read twice a batch, never per query.
//!
//! While an older process stands by for this one, packets are taken one by one, and leave the queue only when they have
//! been answered or handed on: what kills this process does not cost the query that it died of.
//!
//! A panic while answering (a bug of ours) costs the batch, is counted, and does not stop the thread.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{
    AtomicBool, AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};
use std::thread::JoinHandle;
use std::time::Instant;

use arc_swap::ArcSwap;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use socket2::{Socket, Type};
use tokio::sync::{mpsc, watch};

use super::{Shared, bind};
use crate::answer::{Context, Outcome, Replied, answer};
use crate::metrics::Protocol;
use crate::query_log::Answered;
use crate::resolve::{Miss, is_v6};
use crate::sys::{self, BATCH, Batch, LocalEnd};

/// Full batches of one socket in a row before the others, and orders, are looked at.
const ROUNDS: usize = 16;

/// A UDP socket of one worker.
#[derive(Debug)]
pub(super) struct Listener {
    socket: Socket,
    address: SocketAddr,
}

/// Where a late reply goes out.
#[derive(Debug)]
pub(super) struct ReplyTo {
    listener: Arc<Listener>,
    local_end: Option<LocalEnd>,
}

type Misses = mpsc::Sender<(Miss, ReplyTo)>;

/// A thread of the fast side.
#[derive(Debug)]
pub struct Worker {
    orders: Arc<Orders>,
    thread: JoinHandle<()>,
}

#[derive(Debug)]
struct Orders {
    sockets: ArcSwap<Vec<Arc<Listener>>>,
    /// Counts the orders about sockets.
    given: AtomicU64,
    /// The last order that the thread has taken up.
    taken_up: watch::Sender<u64>,
    stop: AtomicBool,
    wake: OwnedFd,
}

impl Listener {
    pub(super) fn bind(address: SocketAddr) -> io::Result<Self> {
        Ok(Self { socket: bind::udp(address)?, address })
    }

    /// A socket that another process has bound; `None` where it is not a UDP socket of that address.
    pub(super) fn adopt(socket: OwnedFd, address: SocketAddr) -> Option<Self> {
        let socket = Socket::from(socket);
        let bound = socket.local_addr().ok()?.as_socket()?;
        let is_it = bound == address && socket.r#type().ok()? == Type::DGRAM;
        (is_it && socket.set_nonblocking(true).is_ok()).then_some(Self { socket, address })
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Lets the kernel give no new query to this socket, though it stays open: what is in its queue can still be read,
    /// and replies still leave by it. It is connected to where nobody is, so a packet from elsewhere is not for it, and is
    /// refused where no rules of ours send it elsewhere.
    ///
    /// Not for a socket that another process has a copy of.
    pub(super) fn turn_away(&self) -> io::Result<()> {
        // TCP's port multiplexer's; no client of ours asks from it.
        const NOBODY: u16 = 1;
        let nowhere = match self.address.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            own => own,
        };
        self.socket.connect(&SocketAddr::new(nowhere, NOBODY).into())
    }
}

impl ReplyTo {
    pub(super) fn send(&self, reply: &[u8], client: SocketAddr) -> io::Result<()> {
        sys::send_reply(self.listener.as_fd(), reply, client, self.local_end)
    }
}

impl Worker {
    pub(super) fn start(number: usize, shared: Arc<Shared>, misses: Misses) -> io::Result<Self> {
        let orders = Arc::new(Orders {
            sockets: ArcSwap::default(),
            given: AtomicU64::new(0),
            taken_up: watch::Sender::new(0),
            stop: AtomicBool::new(false),
            wake: eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?,
        });
        let for_thread = Arc::clone(&orders);
        let thread = std::thread::Builder::new()
            .name(format!("udp-{number}"))
            .spawn(move || Lane { number, shared, misses, orders: for_thread, batch: Batch::new() }.run())?;
        Ok(Self { orders, thread })
    }

    /// From now on serves these sockets.
    pub(super) fn serve(&self, sockets: Vec<Arc<Listener>>) {
        self.orders.sockets.store(Arc::new(sockets));
        // After the sockets: who sees this number finds them.
        self.orders.given.fetch_add(1, Release);
        self.wake();
    }

    /// Waits until the thread serves the sockets of the last [`Worker::serve`] and no others.
    pub(super) async fn settled(&self) {
        let given = self.orders.given.load(Acquire);
        let mut taken_up = self.orders.taken_up.subscribe();
        // An error means that the thread has ended, and reads nothing any more.
        drop(taken_up.wait_for(|taken_up| *taken_up >= given).await);
    }

    /// Answers what has arrived, and ends the thread. Waits for that.
    pub(super) fn stop(self) {
        self.orders.stop.store(true, Relaxed);
        self.wake();
        if self.thread.join().is_err() {
            tracing::error!("a thread of the fast side had ended by a panic");
        }
    }

    fn wake(&self) {
        if rustix::io::write(&self.orders.wake, &1_u64.to_ne_bytes()).is_err() {
            // Only a counter that is full refuses, and then the thread is awake already.
        }
    }
}

/// What one thread works with.
struct Lane {
    number: usize,
    shared: Arc<Shared>,
    misses: Misses,
    orders: Arc<Orders>,
    batch: Batch,
}

impl Lane {
    fn run(mut self) {
        while !self.orders.stop.load(Relaxed) {
            let given = self.orders.given.load(Acquire);
            self.orders.taken_up.send_replace(given);
            let sockets = self.orders.sockets.load_full();
            self.serve_until_ordered(&sockets);
        }
    }

    /// Serves these sockets until there are new orders. What has arrived by then is still answered.
    fn serve_until_ordered(&mut self, sockets: &[Arc<Listener>]) {
        let orders = Arc::clone(&self.orders);
        let mut waited = vec![PollFd::new(&orders.wake, PollFlags::IN)];
        waited.extend(sockets.iter().map(|listener| PollFd::new(&listener.socket, PollFlags::IN)));
        let mut ordered = false;
        while !ordered {
            if poll(&mut waited, None).is_err() {
                // Interrupted, or the kernel is short of memory for a moment: asked again.
                continue;
            }
            ordered = waited.first().is_some_and(|wake| !wake.revents().is_empty());
            for (listener, ready) in sockets.iter().zip(waited.iter().skip(1)) {
                if ordered || !ready.revents().is_empty() {
                    // A flood on one address must not starve the others, nor orders.
                    self.serve_rounds(listener);
                }
            }
        }
        if rustix::io::read(&orders.wake, &mut [0; 8]).is_err() {
            // Nothing to read: somebody woke us for a socket set that we are about to load anyway.
        }
    }

    /// Answers what one socket has, up to [`ROUNDS`] batches.
    fn serve_rounds(&mut self, listener: &Arc<Listener>) {
        let wildcard = listener.address.ip().is_unspecified();
        if self.shared.has_stand_by.load(Relaxed) {
            // One by one, and each taken out of the queue last: a query that this process dies of, or dies with, is
            // answered by the one who stands by. Three system calls a query instead of an eighth of one.
            for _ in 0..ROUNDS * BATCH {
                let Ok(count) = self.batch.peek(listener.as_fd(), wildcard) else { return };
                self.serve_batch(listener, count);
                sys::take_first(listener.as_fd());
            }
            return;
        }
        for _ in 0..ROUNDS {
            let Ok(count) = self.batch.receive(listener.as_fd(), wildcard) else { return };
            if !self.serve_batch(listener, count) || count < BATCH {
                return;
            }
        }
    }

    /// Answers a batch; false after a panic.
    fn serve_batch(&mut self, listener: &Arc<Listener>, count: usize) -> bool {
        let answered = catch_unwind(AssertUnwindSafe(|| self.answer_batch(listener, count)));
        if answered.is_err() {
            self.shared.resolver.panics.add(1);
        }
        answered.is_ok()
    }

    fn answer_batch(&mut self, listener: &Arc<Listener>, count: usize) {
        let received = Instant::now();
        let tables = self.shared.tables.load();
        let Some(zones) = tables.listeners.get(&listener.address) else { return };
        let mut context = Context {
            zones,
            cache: &self.shared.resolver.cache,
            now: self.shared.resolver.clock.now(),
            protocol: Protocol::Udp,
            v6: listener.address.is_ipv6(),
            client: None,
        };
        let mut replied: [Option<Replied<'_>>; BATCH] = [const { None }; BATCH];
        for (index, replied) in replied.iter_mut().enumerate().take(count) {
            if zones.asks_for_client {
                context.client = self.batch.peer(index).map(|peer| peer.ip());
            }
            let (buffer, length) = self.batch.packet(index);
            match answer(&context, buffer, length) {
                Outcome::Ignore => {}
                Outcome::Reply(reply) => {
                    self.batch.set_reply(index, reply.length);
                    *replied = Some(reply);
                }
                Outcome::Miss(query, route) => {
                    let packet = buffer.get(..length).unwrap_or_default().to_vec();
                    let Some(client) = self.batch.peer(index) else { continue };
                    context.v6 = is_v6(client);
                    let route = Arc::clone(route);
                    let miss = Miss {
                        packet,
                        query,
                        route,
                        tables: Arc::clone(&tables),
                        listener: listener.address,
                        client,
                        protocol: Protocol::Udp,
                        received,
                    };
                    let local_end = self.batch.local_end(index);
                    let reply_to = ReplyTo { listener: Arc::clone(listener), local_end };
                    if self.misses.try_send((miss, reply_to)).is_err() {
                        self.shared.drops.misses.add(1);
                    }
                }
            }
        }
        let refused = self.batch.send(listener.as_fd(), count);
        if refused > 0 {
            self.shared.drops.replies.add(refused as u64);
        }
        count_replies(&self.shared, self.number, listener.address, &mut self.batch, &replied, received);
    }
}

/// Counts what a batch has answered, and logs it where the Corefile says so.
fn count_replies(
    shared: &Shared,
    worker: usize,
    server: SocketAddr,
    batch: &mut Batch,
    replied: &[Option<Replied<'_>>; BATCH],
    received: Instant,
) {
    let duration = received.elapsed();
    for (index, reply) in replied.iter().enumerate() {
        let Some(reply) = reply else { continue };
        let lane = reply.counters.worker(worker);
        lane.observe(&reply.observation);
        lane.observe_durations(duration, 1);
        if let Some(kind) = reply.cached {
            lane.cache_hit(kind);
        }
        if reply.allowed {
            lane.allowed();
        }
        if let Some((block, query)) = &reply.logged
            && let Some(client) = batch.peer(index)
        {
            let (buffer, _) = batch.packet(index);
            let packet = buffer.get(..reply.length).unwrap_or_default();
            let observation = &reply.observation;
            let answered = Answered { query, client, server, observation, reply: packet, received };
            shared.resolver.query_log.write(&block.log, &answered);
        }
    }
}
