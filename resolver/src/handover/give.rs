//! The side of who serves: opens the door to newcomers, gives, stands by, serves again; and hands back when it stops
//! while another stands by for it.
//!
//! ```text
//!   serving ──Newcomer──► giving ──Serving──► standing by ──Superseded──► superseded
//!      ▲                    │ failed               │ line closed, TakeBack
//!      └────────────────────┴──────────────────────┘
//! ```
//!
//! The door is a task: greeting a newcomer and sending it the cache may take long, and nothing else waits for it. Giving
//! is a matter of milliseconds and is done by whoever owns the sockets.

use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use nodestub_cache::Millis;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::link::{Link, LinkError, Rendezvous};
use super::message::{Connection, MAX_DESCRIPTORS, Message, Refusal, SocketKind};
use super::{Identity, PATIENCE, Taken, warm};
use crate::admin::{Admin, Status};
use crate::listen::{Departures, Listeners, Moving};
use crate::service::{self, Word};

/// How long a newcomer may take to say hello.
const HELLO: Duration = Duration::from_secs(2);

/// How long sending the whole cache may take; what does not arrive in it stays behind.
const CACHE: Duration = Duration::from_secs(20);

/// How long a newcomer may take from the cache to being ready: it sets up the node's address and rules.
const READY: Duration = Duration::from_secs(60);

/// How long the last connections may take to leave a process that stops.
const LAST_CONNECTIONS: Duration = Duration::from_secs(6);

/// Pause after accepting failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A newcomer that has everything but the sockets.
#[derive(Debug)]
pub struct Newcomer {
    link: Link,
    version: String,
    /// What was kept from here on it does not have.
    warm_since: Millis,
    /// Dropped when the handover is over, for the door to open again.
    _over: oneshot::Sender<()>,
}

/// What happens to who serves.
#[derive(Debug)]
pub enum Event {
    /// A newcomer wants the sockets.
    Newcomer(Newcomer),
    /// The one before us serves again, because we were too slow.
    Withdrawn,
}

/// How standing by ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoodBy {
    /// We serve again.
    Resumed,
    /// The order to stop came. The address and the rules of the node are another's.
    Stopped,
}

/// What ends standing by.
enum Ended {
    Stop,
    Superseded,
    TakeBack,
    Died,
}

/// Our place among the processes of this machine that may serve.
#[derive(Debug)]
pub struct Post {
    identity: Identity,
    status: Arc<Status>,
    rendezvous: Option<Rendezvous>,
    door: Option<CancellationToken>,
    events: mpsc::Receiver<Event>,
    announce: mpsc::Sender<Event>,
    /// The one who stands by for us.
    stand_by: Option<StandBy>,
}

/// Seen from who serves.
#[derive(Debug)]
struct StandBy {
    link: Arc<Link>,
    /// `Serving` from it: it has taken back.
    serves: mpsc::Receiver<()>,
}

impl Post {
    /// The door is closed.
    pub fn new(identity: Identity, status: &Arc<Status>) -> Self {
        let (announce, events) = mpsc::channel(4);
        Self {
            identity,
            status: Arc::clone(status),
            rendezvous: None,
            door: None,
            events,
            announce,
            stand_by: None,
        }
    }

    /// With what was taken, and is served by now: tells who gave it, and opens the door.
    pub async fn enter(&mut self, taken: Taken, listeners: &mut Listeners, admin: &Admin) {
        self.rendezvous = taken.rendezvous;
        if let Some(link) = taken.link {
            self.status.handovers.taken.add(1);
            match say_serving(&link, listeners, admin).await {
                Ok(()) => {
                    tracing::info!("took over; the resolver before this one stands by");
                    self.stand_by = Some(self.listen_to_stand_by(link));
                }
                Err(error) => {
                    self.status.shared.has_stand_by.store(false, Relaxed);
                    tracing::warn!(%error, "took over; the resolver before this one does not stand by");
                }
            }
        }
        listeners.steer_adopted();
        self.open_door();
    }

    /// What happens next. For ever nothing where there is no handover.
    pub async fn next(&mut self) -> Event {
        match self.events.recv().await {
            Some(event) => event,
            // We hold a sender ourselves.
            None => std::future::pending().await,
        }
    }

    /// Our addresses have changed: who stands by must not keep sockets that nobody reads.
    pub async fn addresses_changed(&mut self, listeners: &Listeners, admin: &Admin) {
        let Some(stand_by) = &self.stand_by else { return };
        let serving = serving(listeners, admin);
        if let Err(error) = stand_by.link.send(&serving, &[], PATIENCE).await {
            tracing::warn!(%error, "cannot tell the resolver that stands by of new addresses");
        }
    }

    /// Gives everything to a newcomer and stands by, until there is a reason to serve again or `stop` says so. Returns
    /// at once, serving, where the handover failed.
    pub async fn hand_over(
        &mut self,
        newcomer: Newcomer,
        listeners: &mut Listeners,
        admin: &mut Admin,
        stop: impl Future<Output = ()>,
    ) -> StoodBy {
        tracing::info!(version = newcomer.version, "a newer resolver has come; handing over");
        self.close_door();
        self.status.handovers.giving.store(true, Relaxed);
        let departures = listeners.pause().await;
        admin.pause();
        let given = self.give(&newcomer, listeners, admin).await;
        let link = Arc::new(newcomer.link);
        let (dns, http) = match given {
            Ok(served) => served,
            Err(error) => {
                self.status.handovers.failed.add(1);
                tracing::error!(%error, "the handover failed; this resolver serves on");
                if !matches!(error, LinkError::Gone) {
                    // It may have begun to read; both answering for a moment does no harm.
                    drop(link.send(&Message::Withdrawn, &[], Duration::from_secs(1)).await);
                }
                self.serve_again(departures, listeners, admin).await;
                self.status.handovers.giving.store(false, Relaxed);
                return StoodBy::Resumed;
            }
        };
        let mover = Mover::start(departures, Arc::clone(&link));
        listeners.keep_only(&dns).await;
        admin.keep_only(&http);
        self.status.handovers.given.add(1);
        self.status.handovers.standing_by.store(true, Relaxed);
        self.status.handovers.giving.store(false, Relaxed);
        service::tell(Word::StandingBy);
        tracing::info!("standing by: the newer resolver serves, and this one should that one die");
        let mut stop = std::pin::pin!(stop);
        match self.stand_by(&link, listeners, admin, &mut stop).await {
            Ended::Stop => {
                mover.detach();
                StoodBy::Stopped
            }
            Ended::Superseded => {
                self.status.handovers.superseded.store(true, Relaxed);
                tracing::info!("a still newer resolver serves; this one waits to be stopped");
                // What did not leave is served here to its end.
                mover.stop().await.give_up().await;
                listeners.abandon();
                admin.keep_only(&[]);
                self.rendezvous = None;
                drop(link);
                stop.await;
                StoodBy::Stopped
            }
            Ended::TakeBack => {
                self.status.handovers.resumed.add(1);
                self.serve_again(mover.stop().await, listeners, admin).await;
                self.take_connections(link);
                StoodBy::Resumed
            }
            Ended::Died => {
                self.status.handovers.resumed.add(1);
                self.serve_again(mover.stop().await, listeners, admin).await;
                StoodBy::Resumed
            }
        }
    }

    async fn serve_again(&mut self, departures: Departures, listeners: &mut Listeners, admin: &mut Admin) {
        self.status.handovers.standing_by.store(false, Relaxed);
        departures.give_up().await;
        listeners.resume();
        admin.resume();
        self.open_door();
    }

    /// Lets who stands by serve again, if there is one, and sends it our connections. False: there is none, and we are
    /// the last.
    pub async fn hand_back(&mut self, listeners: &mut Listeners, admin: &mut Admin) -> bool {
        self.close_door();
        let Some(mut stand_by) = self.stand_by.take() else { return false };
        self.status.shared.has_stand_by.store(false, Relaxed);
        let departures = listeners.pause().await;
        admin.pause();
        let asked = stand_by.link.send(&Message::TakeBack, &[], PATIENCE).await;
        let answer = tokio::time::timeout(PATIENCE, stand_by.serves.recv()).await;
        if asked.is_err() || !matches!(answer, Ok(Some(()))) {
            departures.give_up().await;
            listeners.resume();
            admin.resume();
            return false;
        }
        tracing::info!("the resolver that stood by serves again");
        Mover::start(departures, Arc::clone(&stand_by.link)).detach();
        true
    }

    /// Waits until the last connections have left, which they do when what was asked on them is answered.
    pub async fn last_connections(&self) {
        let end = Instant::now() + LAST_CONNECTIONS;
        while self.status.shared.connections_held() > 0 && Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Returns what the newcomer serves now.
    async fn give(
        &mut self,
        newcomer: &Newcomer,
        listeners: &mut Listeners,
        admin: &Admin,
    ) -> Result<(Vec<SocketAddr>, Vec<SocketAddr>), LinkError> {
        let link = &newcomer.link;
        for (address, udp, tcp) in listeners.sockets() {
            send_group(link, SocketKind::Udp, address, &udp).await?;
            send_group(link, SocketKind::Tcp, address, &[tcp]).await?;
        }
        for (address, socket) in admin.sockets() {
            send_group(link, SocketKind::Http, address, &[socket]).await?;
        }
        let resolver = &self.status.shared.resolver;
        warm::send(link, &resolver.cache, resolver.clock, newcomer.warm_since).await?;
        if let Some(below) = self.stand_by.take() {
            // Before anybody else can read: it must never serve beside the newcomer. If the newcomer fails now, we
            // serve on with nobody standing by.
            self.status.shared.has_stand_by.store(false, Relaxed);
            drop(below.link.send(&Message::Superseded, &[], PATIENCE).await);
        }
        let rendezvous = self.rendezvous.as_ref().ok_or(LinkError::Gone)?;
        link.send(&Message::Yours, &[rendezvous.as_fd()], PATIENCE).await?;
        let end = Instant::now() + PATIENCE;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match link.receive_within(left).await? {
                (Message::Socket { kind: SocketKind::Udp, address, .. }, sockets) => {
                    listeners.extend(address, sockets);
                }
                (Message::Serving { dns, http }, _) => return Ok((dns, http)),
                (other, _) => return Err(LinkError::Unexpected(other.name())),
            }
        }
    }

    async fn stand_by(
        &mut self,
        link: &Link,
        listeners: &mut Listeners,
        admin: &mut Admin,
        mut stop: impl Future<Output = ()> + Unpin,
    ) -> Ended {
        loop {
            let received = tokio::select! {
                () = &mut stop => return Ended::Stop,
                received = link.receive() => received,
            };
            match received {
                Ok((Message::Serving { dns, http }, _)) => {
                    listeners.keep_only(&dns).await;
                    admin.keep_only(&http);
                }
                Ok((Message::TakeBack, _)) => {
                    tracing::info!("the newer resolver stops; this one serves again");
                    return Ended::TakeBack;
                }
                Ok((Message::Superseded, _)) => return Ended::Superseded,
                Ok((other, _)) => tracing::warn!(message = other.name(), "not expected here, and ignored"),
                Err(LinkError::Malformed(cause)) => tracing::warn!(%cause, "ignored"),
                Err(error) => {
                    tracing::warn!(%error, "the newer resolver has died; this one serves again");
                    return Ended::Died;
                }
            }
        }
    }

    /// Says that we serve again, and takes the connections that the one who asked for it still sends.
    fn take_connections(&self, link: Arc<Link>) {
        let status = Arc::clone(&self.status);
        tokio::spawn(async move {
            let serving = Message::Serving { dns: Vec::new(), http: Vec::new() };
            if link.send(&serving, &[], PATIENCE).await.is_err() {
                return;
            }
            while let Ok((message, descriptors)) = link.receive().await {
                if let Message::Connection(connection) = message {
                    admit(&status, connection, descriptors);
                }
            }
        });
    }

    fn listen_to_stand_by(&self, link: Link) -> StandBy {
        let link = Arc::new(link);
        let (tell, serves) = mpsc::channel(1);
        let (status, announce) = (Arc::clone(&self.status), self.announce.clone());
        let line = Arc::clone(&link);
        status.shared.has_stand_by.store(true, Relaxed);
        // Ends with the line, and not before: connections may still be on their way.
        tokio::spawn(async move {
            loop {
                match line.receive().await {
                    Ok((Message::Connection(connection), descriptors)) => {
                        admit(&status, connection, descriptors);
                    }
                    Ok((Message::Serving { .. }, _)) => drop(tell.try_send(())),
                    Ok((Message::Withdrawn, _)) => drop(announce.try_send(Event::Withdrawn)),
                    Ok((other, _)) => {
                        tracing::warn!(message = other.name(), "not expected here, and ignored");
                    }
                    Err(LinkError::Malformed(cause)) => tracing::warn!(%cause, "ignored"),
                    Err(_) => break,
                }
            }
            status.shared.has_stand_by.store(false, Relaxed);
            tracing::info!("the resolver that stood by has ended");
        });
        StandBy { link, serves }
    }

    fn open_door(&mut self) {
        let Some(rendezvous) = &self.rendezvous else { return };
        match rendezvous.try_clone() {
            Ok(rendezvous) => {
                let closed = CancellationToken::new();
                self.door = Some(closed.clone());
                let door = keep_door(
                    rendezvous,
                    self.identity.clone(),
                    Arc::clone(&self.status),
                    self.announce.clone(),
                );
                tokio::spawn(async move { closed.run_until_cancelled(door).await });
            }
            Err(cause) => tracing::error!(%cause, "no newer resolver can take over from this one"),
        }
    }

    fn close_door(&mut self) {
        if let Some(door) = self.door.take() {
            door.cancel();
        }
    }
}

impl Drop for Post {
    fn drop(&mut self) {
        self.close_door();
    }
}

/// Sends connections to another process as they become idle.
struct Mover {
    stop: CancellationToken,
    task: JoinHandle<Departures>,
}

impl Mover {
    fn start(mut departures: Departures, link: Arc<Link>) -> Self {
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            while let Some(Some(moving)) = stopped.run_until_cancelled(departures.next()).await {
                let message = Message::Connection(Connection {
                    address: moving.address,
                    client: moving.client,
                    has_asked: moving.has_asked,
                    unread: moving.unread.clone(),
                });
                if let Err(error) = link.send(&message, &[moving.socket.as_fd()], PATIENCE).await {
                    tracing::debug!(%error, "a TCP connection stays");
                    departures.put_back(moving);
                    break;
                }
            }
            departures
        });
        Self { stop, task }
    }

    /// What has not left by now stays.
    async fn stop(self) -> Departures {
        self.stop.cancel();
        match self.task.await {
            Ok(departures) => departures,
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
    }

    /// Goes on until this process ends.
    fn detach(self) {}
}

/// Meets newcomers, one at a time, until this is dropped.
async fn keep_door(
    rendezvous: Rendezvous,
    identity: Identity,
    status: Arc<Status>,
    announce: mpsc::Sender<Event>,
) {
    loop {
        let link = match rendezvous.accept().await {
            Ok(Ok(link)) => link,
            Ok(Err(uid)) => {
                status.handovers.refused.add(1);
                tracing::warn!(uid, "a process of another user asked for a handover, and was refused");
                continue;
            }
            Err(cause) => {
                tracing::warn!(%cause, "cannot meet a newer resolver");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        match welcome(&link, &identity, &status).await {
            Ok((version, warm_since)) => {
                let (_over, over) = oneshot::channel();
                let newcomer = Newcomer { link, version, warm_since, _over };
                if announce.send(Event::Newcomer(newcomer)).await.is_err() {
                    return;
                }
                // An error is how it ends.
                drop(over.await);
            }
            Err(Declined::Refused(refusal, version)) => {
                status.handovers.refused.add(1);
                tracing::warn!(version, ?refusal, "a resolver asked for a handover, and was refused");
            }
            Err(Declined::Link(error)) => {
                status.handovers.failed.add(1);
                tracing::warn!(%error, "a handover came to nothing; this resolver serves on");
            }
        }
    }
}

enum Declined {
    Refused(Refusal, String),
    Link(LinkError),
}

impl From<LinkError> for Declined {
    fn from(error: LinkError) -> Self {
        Self::Link(error)
    }
}

/// Greets a newcomer and sends it the cache; returns its version, and from when on the cache is missing.
async fn welcome(link: &Link, identity: &Identity, status: &Status) -> Result<(String, Millis), Declined> {
    let ours = identity.greeting();
    let theirs = match link.receive_within(HELLO).await?.0 {
        Message::Hello(theirs) => theirs,
        other => return Err(LinkError::Unexpected(other.name()).into()),
    };
    let refusal = if theirs.protocol != ours.protocol {
        Some(Refusal::Protocol)
    } else if theirs.started <= ours.started {
        Some(Refusal::NotNewer)
    } else {
        None
    };
    if let Some(refusal) = refusal {
        // It may not even understand this.
        drop(link.send(&Message::Refused(refusal, ours), &[], HELLO).await);
        return Err(Declined::Refused(refusal, theirs.version));
    }
    let same_format = theirs.cache_format == ours.cache_format;
    link.send(&Message::Welcome(ours), &[], PATIENCE).await?;
    let resolver = &status.shared.resolver;
    let mut warm_since = resolver.clock.now();
    if same_format {
        match tokio::time::timeout(CACHE, warm::send(link, &resolver.cache, resolver.clock, Millis(0))).await
        {
            Ok(sent) => tracing::debug!(answers = sent?, "the cache was sent"),
            Err(_) => tracing::warn!("sending the cache takes too long; the rest stays behind"),
        }
    } else {
        warm_since = Millis(u64::MAX);
    }
    link.send(&Message::Warm, &[], PATIENCE).await?;
    match link.receive_within(READY).await?.0 {
        Message::Ready => Ok((theirs.version, warm_since)),
        other => Err(LinkError::Unexpected(other.name()).into()),
    }
}

async fn say_serving(link: &Link, listeners: &Listeners, admin: &Admin) -> Result<(), LinkError> {
    for (address, added) in listeners.added() {
        send_group(link, SocketKind::Udp, address, &added).await?;
    }
    link.send(&serving(listeners, admin), &[], PATIENCE).await
}

fn serving(listeners: &Listeners, admin: &Admin) -> Message {
    Message::Serving {
        dns: listeners.addresses(),
        http: admin.sockets().map(|(address, _)| address).collect(),
    }
}

async fn send_group(
    link: &Link,
    kind: SocketKind,
    address: SocketAddr,
    sockets: &[std::os::fd::BorrowedFd<'_>],
) -> Result<(), LinkError> {
    for some in sockets.chunks(MAX_DESCRIPTORS) {
        let count = u8::try_from(some.len()).unwrap_or(u8::MAX);
        link.send(&Message::Socket { kind, address, count }, some, PATIENCE).await?;
    }
    Ok(())
}

fn admit(status: &Status, connection: Connection, mut descriptors: Vec<OwnedFd>) {
    let Some(socket) = descriptors.pop() else { return };
    let Connection { address, client, has_asked, unread } = connection;
    let moving = Moving { socket, address, client, has_asked, unread, place: None };
    if let Err(cause) = status.shared.admit(moving) {
        tracing::warn!(%cause, "a TCP connection that was handed over is lost");
    }
}
