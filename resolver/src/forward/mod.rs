//! Asking upstreams: `forward` of the Corefile.
//!
//! ```text
//!   resolve ──ask──► Forwarder ──► try, try next, ... (5 s in all)
//!                                     │ 2 s each
//!                                     ▼
//!                                  Upstream
//!                                     ├─ hedge: a second one when the first is silent for longer than usual (`rtt`)
//!                                     ├─ udp: a rotating pool of connected sockets on random ports; sends again what was lost
//!                                     ├─ tcp: few connections, pipelined, answered out of order; over TLS where said (`tls`)
//!                                     └─ health: failures counted; probes while it is down
//! ```
//!
//! A response counts only when it comes from the asked peer (the socket is connected), with the asked id and the full
//! question, and is well formed as a whole. Anything else on a UDP socket is ignored, counted, and the wait goes on.
//!
//! Deliberately not here: joining clients who ask the same (`coalesce`), what a response means and whether it is kept
//! (`resolve`, `nodestub-cache`).

mod health;
mod hedge;
mod rtt;
mod tcp;
mod tls;
mod udp;
mod upstream;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use nodestub_corefile::config::{Forward, Policy, Transport};
use nodestub_wire::{Ask, Name, Rcode, Reply, Section};
use rand::seq::SliceRandom;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::time::Instant;

use crate::metrics::{Counter, Protocol};
pub use tls::Material;
pub use upstream::{ExchangeError, Upstream};

/// Longest time for one question, over all tries (CoreDNS `defaultTimeout`): a client's library repeats after 5 s.
const TOTAL_TIMEOUT: Duration = Duration::from_secs(5);

/// Longest time until a connection stands, and for a probe of the whole way (CoreDNS's default `read_timeout`).
const TRY_TIMEOUT: Duration = Duration::from_secs(2);

/// Pause after a failed try where their number has no limit.
const PAUSE: Duration = Duration::from_millis(20);

/// Failed tries per upstream, where the Corefile says nothing, before one question is given up (CoreDNS `defaultConnectAttemptsPerUpstream`).
const TRIES_PER_UPSTREAM: usize = 2;

/// One server of a `forward`, once its files have been read.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Server {
    /// Where it is.
    pub address: SocketAddr,
    /// Over TLS: what its certificate must be for. `None`: plain DNS.
    pub by_tls: Option<ServerName<'static>>,
}

impl Server {
    /// Plain DNS.
    pub fn plain(address: SocketAddr) -> Self {
        Self { address, by_tls: None }
    }
}

/// Where sockets towards upstreams are bound: the Corefile's choice, or anywhere.
fn local_end(source: Option<IpAddr>, upstream: SocketAddr) -> std::io::Result<SocketAddr> {
    let any = match upstream {
        SocketAddr::V4(_) => IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED),
    };
    match source {
        Some(source) if source.is_ipv4() != upstream.is_ipv4() => Err(std::io::Error::new(
            std::io::ErrorKind::InvalidInput,
            format!("source_address {source} is of another family"),
        )),
        source => Ok(SocketAddr::new(source.unwrap_or(any), 0)),
    }
}

/// An upstream's response.
#[derive(Debug)]
pub struct Response {
    /// The whole packet.
    pub packet: Vec<u8>,
    /// The places in it.
    pub reply: Reply,
}

/// Why there is no response.
#[derive(Debug, Clone)]
pub enum ForwardError {
    /// `max_concurrent` queries are under way already.
    Overloaded,
    /// Each upstream sends our queries back to us.
    Looped,
    /// The address of the cluster DNS is not known yet.
    Unknown,
    /// All tries failed; this is the last one.
    Failed {
        /// Who was asked.
        upstream: SocketAddr,
        /// What happened.
        cause: ExchangeError,
    },
    /// There was no time for a single try.
    OutOfTime,
    /// All upstreams are down, and the Corefile wants none asked then.
    AllDown,
}

/// One `forward` line at work.
#[derive(Debug)]
pub struct Forwarder {
    /// Names in this zone are forwarded.
    pub from: Name,
    except: Vec<Name>,
    policy: Policy,
    transport: Transport,
    max_concurrent: Option<u32>,
    max_attempts: Option<u32>,
    read_timeout: Duration,
    failover: Vec<u16>,
    next: Vec<u16>,
    next_on_nodata: bool,
    fail_fast: bool,
    /// Whom to ask; empty where that is the cluster DNS and its address is not known yet.
    pub upstreams: Vec<Arc<Upstream>>,
    /// Whose turn it is (`round_robin`).
    turn: AtomicUsize,
    concurrent: AtomicU32,
    /// All upstreams were down, and one was asked all the same.
    pub all_down: Counter,
    /// Queries refused because of `max_concurrent`.
    pub rejected: Counter,
    hedges: hedge::Budget,
}

/// One of the queries under way; gives its place back when it is dropped.
#[derive(Debug)]
pub struct Place<'a>(&'a AtomicU32);

impl Forwarder {
    /// A forwarder over upstreams whose files have been read.
    /// `tls` is for those that are asked over TLS.
    pub fn new(config: &Forward, servers: &[Server], tls: Option<&Arc<ClientConfig>>) -> Self {
        let upstream = |server| Arc::new(Upstream::new(server, config, tls));
        let upstreams = servers.iter().map(upstream).collect();
        Self {
            from: config.from.clone(),
            except: config.except.clone(),
            policy: config.policy,
            transport: config.transport,
            max_concurrent: config.max_concurrent,
            max_attempts: config.max_attempts,
            read_timeout: config.read_timeout,
            failover: config.failover.clone(),
            next: config.next.clone(),
            next_on_nodata: config.next_on_nodata,
            fail_fast: config.fail_fast,
            upstreams,
            turn: AtomicUsize::new(0),
            concurrent: AtomicU32::new(0),
            all_down: Counter::default(),
            rejected: Counter::default(),
            hedges: hedge::Budget::new(),
        }
    }

    /// Whether this forwarder is responsible for a name.
    pub fn matches(&self, name: &Name) -> bool {
        name.is_within(&self.from) && !self.except.iter().any(|zone| name.is_within(zone))
    }

    /// Whether a response is one after which the next `forward` is asked.
    pub fn passes_on(&self, response: &Response) -> bool {
        let rcode = response.reply.rcode();
        let has_data = response.reply.section(Section::Answer).next().is_some();
        self.next.contains(&rcode.0) || self.next_on_nodata && rcode == Rcode::NOERROR && !has_data
    }

    /// The transport towards the upstream for a client that asks by `client`.
    pub fn transport(&self, client: Protocol) -> Protocol {
        match self.transport {
            Transport::Same => client,
            Transport::Udp => Protocol::Udp,
            Transport::Tcp => Protocol::Tcp,
        }
    }

    /// A place among the `max_concurrent` queries under way; hold it while waiting.
    ///
    /// # Errors
    /// [`ForwardError::Overloaded`]: there is none left.
    pub fn enter(&self) -> Result<Place<'_>, ForwardError> {
        let before = self.concurrent.fetch_add(1, Relaxed);
        let place = Place(&self.concurrent);
        if self.max_concurrent.is_some_and(|most| before >= most) {
            self.rejected.add(1);
            return Err(ForwardError::Overloaded);
        }
        Ok(place)
    }

    /// Asks one upstream after the other, until one gives a usable response or the time is up.
    ///
    /// # Errors
    /// None did.
    pub async fn ask(&self, ask: &Ask, protocol: Protocol) -> Result<Response, ForwardError> {
        let deadline = Instant::now() + TOTAL_TIMEOUT;
        let order = self.order();
        if self.upstreams.is_empty() {
            return Err(ForwardError::Unknown);
        }
        if order.is_empty() {
            let all_loop = self.upstreams.iter().all(|upstream| upstream.is_looped());
            return Err(if all_loop { ForwardError::Looped } else { ForwardError::AllDown });
        }
        let attempts = match self.max_attempts {
            None => order.len() * TRIES_PER_UPSTREAM,
            Some(0) => usize::MAX,
            Some(most) => usize::try_from(most).unwrap_or(usize::MAX),
        };
        let mut failed = 0;
        let mut passed_over = 0;
        let mut last = ForwardError::OutOfTime;
        for (number, upstream) in order.iter().cycle().enumerate() {
            let now = Instant::now();
            if now >= deadline || failed >= attempts {
                break;
            }
            let try_deadline = deadline.min(now + self.read_timeout);
            let company = self.company(&order, number);
            match hedge::exchange(upstream, company, ask, protocol, try_deadline, &self.hedges).await {
                Ok(response) if self.failover.contains(&response.reply.rcode().0) => {
                    passed_over += 1;
                    if passed_over >= self.upstreams.len() {
                        return Ok(response);
                    }
                }
                Ok(response) => return Ok(response),
                Err(cause) => {
                    failed += 1;
                    if self.max_attempts == Some(0) {
                        // Without a limit but time, a refused port must not be asked without a pause.
                        tokio::time::sleep(PAUSE).await;
                    }
                    last = ForwardError::Failed { upstream: upstream.address, cause };
                }
            }
        }
        Err(last)
    }

    /// Who is asked as well when the one in this place is silent: the next one, where the policy makes no difference
    /// between them and any answer is taken. With `failover`, an answer that sends us on must not be believed because it was
    /// the first.
    fn company<'a>(&self, order: &'a [Arc<Upstream>], number: usize) -> Option<&'a Arc<Upstream>> {
        let may_be_another = order.len() > 1 && self.policy != Policy::Sequential && self.failover.is_empty();
        order.get((number + 1) % order.len()).filter(|_| may_be_another)
    }

    /// Questions that a second upstream was asked as well, and those for which there was no budget, ever.
    pub fn hedges(&self) -> [u64; 2] {
        [self.hedges.spent.get(), self.hedges.refused.get()]
    }

    /// The upstreams in the order of trying: by the policy, those that are up; all, when none is.
    fn order(&self) -> Vec<Arc<Upstream>> {
        let mut order: Vec<_> = self.upstreams.iter().filter(|u| !u.is_looped()).cloned().collect();
        match self.policy {
            Policy::Sequential => {}
            Policy::Random => {
                order.shuffle(&mut rand::rng());
                rtt::prefer_near(&mut order);
            }
            Policy::RoundRobin => {
                let first = self.turn.fetch_add(1, Relaxed) % order.len().max(1);
                order.rotate_left(first);
            }
        }
        if order.iter().all(|upstream| upstream.is_down()) {
            // The probes may be what is broken: ask anyway (as CoreDNS does).
            self.all_down.add(u64::from(!order.is_empty()));
            if self.fail_fast {
                order.clear();
            }
            order.shuffle(&mut rand::rng());
        } else {
            order.retain(|upstream| !upstream.is_down());
        }
        order
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl std::fmt::Display for ForwardError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Overloaded => f.write_str("max_concurrent queries are under way already"),
            Self::Unknown => f.write_str("the address of the cluster DNS is not known yet"),
            Self::Looped => f.write_str("every upstream sends our queries back to us"),
            Self::Failed { upstream, cause } => write!(f, "upstream {upstream}: {cause}"),
            Self::OutOfTime => f.write_str("there was no time for a single try"),
            Self::AllDown => f.write_str("no healthy upstream"),
        }
    }
}

impl std::error::Error for ForwardError {}
