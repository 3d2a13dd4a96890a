//! Questions by TCP, and by TLS over it: few connections to each server, pipelined, answered out of order (RFC 7766, 6.2.1).
//!
//! ```text
//!   exchange ── id chosen, entry in `pending` ──► queue ──► writer ──► socket
//!      ▲                                                                 │
//!      └────────── entry taken out by id, question checked ◄── reader ◄──┘
//! ```
//!
//! A connection is opened when there is none, or when all are busy; it is closed by the server, by the reader when
//! nothing has been under way for `expire`, after `max_age` once nothing is under way, or by an asker who gave up while nothing at all was heard (a black hole).
//! One that answered before and has been silent since a question was sent, for longer than [`STALL`], is replaced: it may
//! lead to a server that is gone (a pod behind a cluster IP). What waits on it is asked on a fresh one too, no new
//! questions go there, and whichever answers first is believed.
//! A question that was sent on a connection which then closes is asked once more on a fresh one, in silence: the
//! server had every right to close an idle connection.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nodestub_corefile::config::Forward;
use nodestub_wire::{Ask, Reply};
use rand::Rng;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::tls::Secured;
use super::upstream::ExchangeError;
use super::{Response, TRY_TIMEOUT, local_end};
use crate::framing::{FrameReader, frame};
use crate::metrics::Counter;

/// Connections to one server: "few", whatever the load (RFC 7766, 6.2.2; kube-dns's dnsmasq takes 20 from all).
const MAX_CONNECTIONS: usize = 2;

/// Questions under way on a connection from which on a second one is opened.
const BUSY: usize = 64;

/// Most questions under way on one connection; beyond that, [`ExchangeError::Busy`].
const MAX_UNDER_WAY: usize = 1024;

/// Silence of a connection that was heard before, with questions under way, after which it is no longer believed to lead anywhere.
const STALL: Duration = Duration::from_millis(600);

/// The shortest time that an idle connection is kept, whatever `expire` says: shorter, and no answer could come.
const LEAST_IDLE: Duration = Duration::from_millis(10);

#[derive(Debug)]
pub(super) struct TcpPool {
    way: Arc<Way>,
    expire: Duration,
    max_age: Option<Duration>,
    /// [`MAX_CONNECTIONS`], or less by `max_idle_conns`.
    most: usize,
    connections: Mutex<Vec<Arc<Connection>>>,
    pub(super) reused: Counter,
    pub(super) opened: Counter,
    /// Connections that fell silent, and were replaced.
    pub(super) stalled: Counter,
}

/// How a connection is made.
#[derive(Debug)]
struct Way {
    address: SocketAddr,
    source: Option<IpAddr>,
    /// Over TLS.
    secured: Option<Secured>,
}

#[derive(Debug)]
struct Connection {
    began: Instant,
    /// Length-prefixed questions for the writer. As long as `pending`, so that sending never waits.
    frames: mpsc::Sender<Vec<u8>>,
    pending: Mutex<HashMap<u16, Pending>>,
    /// Messages heard so far.
    heard: AtomicU64,
    closed: AtomicBool,
    /// Silent with questions under way: no more of them go here until it is heard again.
    stalled: AtomicBool,
    /// Too old for new questions: closed once nothing is under way.
    retired: AtomicBool,
    close: CancellationToken,
}

#[derive(Debug)]
struct Pending {
    ask: Ask,
    answer: oneshot::Sender<Result<Response, ExchangeError>>,
}

impl TcpPool {
    pub(super) fn new(address: SocketAddr, secured: Option<Secured>, config: &Forward) -> Self {
        let most = config.max_idle.and_then(|most| usize::try_from(most).ok()).unwrap_or(MAX_CONNECTIONS);
        Self {
            way: Arc::new(Way { address, source: config.source_address, secured }),
            expire: config.expire.max(LEAST_IDLE),
            max_age: config.max_age,
            most: MAX_CONNECTIONS.min(most),
            connections: Mutex::default(),
            reused: Counter::default(),
            opened: Counter::default(),
            stalled: Counter::default(),
        }
    }

    pub(super) async fn exchange(&self, ask: &Ask, with_edns: bool) -> Result<Response, ExchangeError> {
        let (connection, fresh) = self.connection();
        let mut waiting = std::pin::pin!(connection.exchange(ask, with_edns));
        tokio::select! {
            biased;
            outcome = &mut waiting => return match outcome {
                // All who were under way on it share the next one.
                Err(ExchangeError::Closed) if !fresh => self.connection().0.exchange(ask, with_edns).await,
                outcome => outcome,
            },
            () = connection.stalls() => {}
        }
        if !connection.stalled.swap(true, Relaxed) {
            self.stalled.add(1);
        }
        let (other, _) = self.connection();
        tokio::select! {
            biased;
            outcome = &mut waiting => match outcome {
                Ok(response) => Ok(response),
                Err(_) => other.exchange(ask, with_edns).await,
            },
            outcome = other.exchange(ask, with_edns) => match outcome {
                Ok(response) => Ok(response),
                Err(_) => waiting.await,
            },
        }
    }

    /// The connection with the least under way, or a new one; and whether it is new.
    fn connection(&self) -> (Arc<Connection>, bool) {
        let mut connections = lock(&self.connections);
        connections.retain(|connection| {
            let is_old = self.max_age.is_some_and(|most| connection.began.elapsed() >= most);
            if is_old {
                connection.retire();
            }
            !is_old && !connection.closed.load(Relaxed)
        });
        // A server that is slow with everything must not be given ever more of them.
        let full = connections.len() >= 2 * self.most;
        let trusted = connections.iter().filter(|connection| full || !connection.stalled.load(Relaxed));
        let least = trusted.clone().min_by_key(|connection| lock(&connection.pending).len());
        if let Some(connection) = least {
            let busy = lock(&connection.pending).len() >= BUSY;
            if !busy || trusted.count() >= self.most {
                self.reused.add(1);
                return (Arc::clone(connection), false);
            }
        }
        (self.open_in(&mut connections), true)
    }

    /// Opens a connection in the background; questions for it can be queued at once.
    fn open_in(&self, connections: &mut Vec<Arc<Connection>>) -> Arc<Connection> {
        self.opened.add(1);
        let (frames, queue) = mpsc::channel(MAX_UNDER_WAY);
        let connection = Arc::new(Connection {
            frames,
            pending: Mutex::default(),
            heard: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            began: Instant::now(),
            stalled: AtomicBool::new(false),
            retired: AtomicBool::new(false),
            close: CancellationToken::new(),
        });
        connections.push(Arc::clone(&connection));
        tokio::spawn(run(Arc::clone(&connection), Arc::clone(&self.way), self.expire, queue));
        connection
    }
}

impl Drop for TcpPool {
    fn drop(&mut self) {
        for connection in lock(&self.connections).iter() {
            connection.close.cancel();
        }
    }
}

impl Connection {
    async fn exchange(&self, ask: &Ask, with_edns: bool) -> Result<Response, ExchangeError> {
        let (answer, receiver) = oneshot::channel();
        let id = self.register(ask, answer)?;
        let mut entry = Entry {
            connection: self,
            id,
            asked: Instant::now(),
            heard_before: self.heard.load(Relaxed),
            answered: false,
        };
        let question = frame(&ask.to_packet(id, with_edns)).ok_or(ExchangeError::Busy)?;
        self.frames.try_send(question).map_err(|refused| match refused {
            mpsc::error::TrySendError::Full(_) => ExchangeError::Busy,
            mpsc::error::TrySendError::Closed(_) => ExchangeError::Closed,
        })?;
        let outcome = receiver.await.unwrap_or(Err(ExchangeError::Closed));
        entry.answered = true;
        outcome
    }

    /// Returns when nothing has been heard for [`STALL`] on a connection that was heard before. Never on a new one: for
    /// that there is the time limit of connecting, and a server may think about its first answer.
    async fn stalls(&self) {
        loop {
            let heard_before = self.heard.load(Relaxed);
            sleep(STALL).await;
            if heard_before > 0 && self.heard.load(Relaxed) == heard_before {
                return;
            }
        }
    }

    /// A place among the questions under way, under an id that is random and free.
    fn register(
        &self,
        ask: &Ask,
        answer: oneshot::Sender<Result<Response, ExchangeError>>,
    ) -> Result<u16, ExchangeError> {
        let mut pending = lock(&self.pending);
        if self.closed.load(Relaxed) {
            return Err(ExchangeError::Closed);
        }
        if pending.len() >= MAX_UNDER_WAY {
            return Err(ExchangeError::Busy);
        }
        let mut id: u16 = rand::rng().random();
        // At most 1024 of 65536 are taken: this ends at once.
        while pending.contains_key(&id) {
            id = rand::rng().random();
        }
        pending.insert(id, Pending { ask: ask.clone(), answer });
        Ok(id)
    }

    fn deliver(&self, packet: Vec<u8>) {
        self.heard.fetch_add(1, Relaxed);
        self.stalled.store(false, Relaxed);
        let Ok(reply) = Reply::parse(&packet) else { return };
        let id = reply.header.id;
        let mut pending = lock(&self.pending);
        let matches = pending.get(&id).is_some_and(|entry| {
            let Ask { name, qtype, qclass, .. } = &entry.ask;
            reply.answers(id, name, *qtype, *qclass)
        });
        if !matches {
            return;
        }
        let Some(entry) = pending.remove(&id) else { return };
        let is_done = pending.is_empty() && self.retired.load(Relaxed);
        drop(pending);
        // The asker may have gone.
        drop(entry.answer.send(Ok(Response { packet, reply })));
        if is_done {
            self.close.cancel();
        }
    }

    /// Closes it once nothing is under way.
    fn retire(&self) {
        self.retired.store(true, Relaxed);
        if lock(&self.pending).is_empty() {
            self.closed.store(true, Relaxed);
            self.close.cancel();
        }
    }

    fn fail_all(&self, cause: &ExchangeError) {
        let mut pending = lock(&self.pending);
        self.closed.store(true, Relaxed);
        for (_, entry) in pending.drain() {
            drop(entry.answer.send(Err(cause.clone())));
        }
    }
}

/// A question under way; an asker who goes away takes it along.
struct Entry<'a> {
    connection: &'a Connection,
    id: u16,
    asked: Instant,
    heard_before: u64,
    answered: bool,
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        lock(&self.connection.pending).remove(&self.id);
        // Given up, and not a word was heard on the whole connection meanwhile: nobody should queue up on it again. An
        // asker who was answered by somebody else within moments proves nothing.
        if !self.answered
            && self.asked.elapsed() >= STALL
            && self.connection.heard.load(Relaxed) == self.heard_before
        {
            self.connection.closed.store(true, Relaxed);
            self.connection.close.cancel();
        }
    }
}

/// The life of one connection.
async fn run(connection: Arc<Connection>, way: Arc<Way>, expire: Duration, queue: mpsc::Receiver<Vec<u8>>) {
    let connected = tokio::select! {
        connected = timeout(TRY_TIMEOUT, way.connect()) => connected,
        // Nobody waits for it any more.
        () = connection.close.cancelled() => return connection.fail_all(&ExchangeError::Closed),
    };
    let cause = match connected {
        Err(_) => ExchangeError::TimedOut,
        Ok(Err(cause)) => ExchangeError::Connect(Arc::new(cause)),
        Ok(Ok(Stream::Plain(stream))) => {
            let (read_half, write_half) = stream.into_split();
            talk(&connection, read_half, write_half, expire, queue).await
        }
        Ok(Ok(Stream::Tls(stream))) => {
            let (read_half, write_half) = tokio::io::split(*stream);
            talk(&connection, read_half, write_half, expire, queue).await
        }
    };
    connection.fail_all(&cause);
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<tokio_rustls::client::TlsStream<TcpStream>>),
}

impl Way {
    async fn connect(&self) -> io::Result<Stream> {
        let local_end = local_end(self.source, self.address)?;
        let socket = if local_end.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        if !local_end.ip().is_unspecified() {
            socket.bind(local_end)?;
        }
        let stream = socket.connect(self.address).await?;
        // Not having it costs latency, nothing else.
        drop(stream.set_nodelay(true));
        match &self.secured {
            None => Ok(Stream::Plain(stream)),
            Some(Secured { connector, name }) => {
                Ok(Stream::Tls(Box::new(connector.connect(name.clone(), stream).await?)))
            }
        }
    }
}

async fn talk(
    connection: &Connection,
    read_half: impl AsyncRead + Unpin,
    write_half: impl AsyncWrite + Unpin,
    expire: Duration,
    queue: mpsc::Receiver<Vec<u8>>,
) -> ExchangeError {
    tokio::select! {
        () = read(connection, read_half, expire) => {}
        () = write(write_half, queue) => {}
        () = connection.close.cancelled() => {}
    }
    ExchangeError::Closed
}

async fn write(mut socket: impl AsyncWrite + Unpin, mut queue: mpsc::Receiver<Vec<u8>>) {
    let mut buffer = Vec::new();
    while let Some(frame) = queue.recv().await {
        buffer.clear();
        buffer.extend_from_slice(&frame);
        // What has come together meanwhile leaves in one system call.
        while let Ok(frame) = queue.try_recv() {
            buffer.extend_from_slice(&frame);
        }
        // TLS keeps what is written until it is told that this was all.
        if socket.write_all(&buffer).await.is_err() || socket.flush().await.is_err() {
            return;
        }
    }
}

async fn read(connection: &Connection, socket: impl AsyncRead + Unpin, expire: Duration) {
    let mut frames = FrameReader::new(socket);
    loop {
        match timeout(expire, frames.next()).await {
            Ok(Ok(Some(packet))) => connection.deliver(packet),
            Ok(Ok(None) | Err(_)) => return,
            Err(_) if lock(&connection.pending).is_empty() => return,
            Err(_) => {}
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
