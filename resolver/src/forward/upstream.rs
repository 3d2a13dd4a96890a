//! One upstream server: how it is asked, and what is known of it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

use nodestub_corefile::config::{Forward, Transport};
use nodestub_wire::{Ask, CLASS_IN, Flags, Rcode, rtype};
use rustls::ClientConfig;
use tokio_rustls::TlsConnector;

use super::rtt::SmoothedRtt;
use super::tcp::TcpPool;
use super::tls::Secured;
use super::udp::UdpPool;
use super::{Response, Server, health};
use crate::metrics::{Counter, Durations, Protocol, RCODES};

/// Why one try failed.
#[derive(Debug, Clone)]
pub enum ExchangeError {
    /// Nothing usable came in time.
    TimedOut,
    /// A socket could not be made or connected.
    Connect(Arc<io::Error>),
    /// The question could not be sent.
    Send(Arc<io::Error>),
    /// The answer could not be received; a refused UDP port is noticed here.
    Receive(Arc<io::Error>),
    /// The server closed the connection before it answered.
    Closed,
    /// All connections have as many questions under way as they may.
    Busy,
}

/// A server that is asked.
#[derive(Debug)]
pub struct Upstream {
    /// Where it is.
    pub address: SocketAddr,
    max_fails: u32,
    pub(super) health_check: Duration,
    /// What probes ask.
    pub(super) probe_ask: Ask,
    /// The transport of probes: the one that questions use.
    probe_by: Protocol,
    udp: UdpPool,
    tcp: TcpPool,
    /// Over TLS only, whatever the client used.
    by_tls: bool,
    /// Failures in a row.
    fails: AtomicU32,
    pub(super) probing: AtomicBool,
    /// It sends our queries back to us; `loops` finds out.
    looped: AtomicBool,
    /// It answered FORMERR to EDNS, and NOERROR without.
    without_edns: AtomicBool,
    pub(super) rtt: SmoothedRtt,
    /// How long answers took, by response code.
    pub durations: [Durations; RCODES],
    /// Probes that were not answered.
    pub failed_probes: Counter,
}

impl Upstream {
    pub(super) fn new(server: &Server, config: &Forward, tls: Option<&Arc<ClientConfig>>) -> Self {
        let address = server.address;
        let secured = server.by_tls.clone().zip(tls);
        let secured =
            secured.map(|(name, config)| Secured { connector: TlsConnector::from(Arc::clone(config)), name });
        Self {
            address,
            max_fails: config.max_fails,
            health_check: config.health_check,
            probe_ask: Ask {
                name: config.probe_name.as_bytes().into(),
                qtype: rtype::NS,
                qclass: CLASS_IN,
                recursion_desired: !config.probe_without_recursion,
                checking_disabled: false,
                dnssec_ok: false,
                options: Box::default(),
            },
            probe_by: if config.transport == Transport::Tcp { Protocol::Tcp } else { Protocol::Udp },
            udp: UdpPool::new(address, config),
            tcp: TcpPool::new(address, secured, config),
            by_tls: server.by_tls.is_some(),
            fails: AtomicU32::new(0),
            probing: AtomicBool::new(false),
            looped: AtomicBool::new(false),
            without_edns: AtomicBool::new(false),
            rtt: SmoothedRtt::default(),
            durations: Default::default(),
            failed_probes: Counter::default(),
        }
    }

    /// Asks once. A truncated answer is asked for again by TCP; FORMERR to EDNS again without.
    ///
    /// # Errors
    /// As [`ExchangeError`]; the caller sets the time limit.
    pub async fn exchange(&self, ask: &Ask, protocol: Protocol) -> Result<Response, ExchangeError> {
        let started = Instant::now();
        let with_edns = !self.without_edns.load(Relaxed);
        let mut response = self.exchange_by(ask, protocol, with_edns).await?;
        if with_edns && response.reply.edns.is_none() && response.reply.rcode() == Rcode::FORMERR {
            response = self.exchange_by(ask, protocol, false).await?;
            if response.reply.rcode() != Rcode::FORMERR {
                self.without_edns.store(true, Relaxed);
            }
        }
        self.fails.store(0, Relaxed);
        let code = usize::from(response.reply.rcode().0).min(RCODES - 1);
        if let Some(durations) = self.durations.get(code) {
            durations.observe(started.elapsed());
        }
        self.rtt.observe(started.elapsed());
        Ok(response)
    }

    async fn exchange_by(
        &self,
        ask: &Ask,
        protocol: Protocol,
        with_edns: bool,
    ) -> Result<Response, ExchangeError> {
        if protocol == Protocol::Udp && !self.by_tls {
            let response = self.udp.exchange(ask, with_edns).await?;
            if !response.reply.header.flags.has(Flags::TC) {
                return Ok(response);
            }
            // Where TCP fails, the truncated answer is still what the server said: the client may try itself.
            return Ok(self.tcp.exchange(ask, with_edns).await.unwrap_or(response));
        }
        self.tcp.exchange(ask, with_edns).await
    }

    /// After how much silence another one is asked as well.
    pub(super) fn hedge_after(&self) -> Duration {
        self.rtt.hedge_after()
    }

    /// Notes that it was silent for so long.
    pub(super) fn observe_silence(&self, silence: Duration) {
        self.rtt.observe(silence);
    }

    /// How long it usually takes to answer; `None`: it was never asked.
    pub fn smoothed_rtt(&self) -> Option<Duration> {
        self.rtt.smoothed()
    }

    /// TCP connections that had fallen silent and were replaced, ever.
    pub fn stalled_connections(&self) -> u64 {
        self.tcp.stalled.get()
    }

    /// Notes a failure; probes begin with it.
    pub(super) fn failed(self: &Arc<Self>) {
        self.fails.fetch_add(1, Relaxed);
        if self.max_fails > 0 {
            health::start(self);
        }
    }

    pub(super) fn recovered(&self) {
        self.fails.store(0, Relaxed);
    }

    /// Whether it failed `max_fails` times in a row.
    pub fn is_down(&self) -> bool {
        self.max_fails > 0 && self.fails.load(Relaxed) >= self.max_fails
    }

    /// Marks it as one that sends our queries back to us, and is therefore not asked; or takes the mark away.
    pub fn set_looped(&self, looped: bool) {
        self.looped.store(looped, Relaxed);
    }

    /// Asks once, by the transport that questions use, whatever is thought of this upstream.
    ///
    /// # Errors
    /// As [`Upstream::exchange`].
    pub async fn probe(&self, ask: &Ask) -> Result<Response, ExchangeError> {
        self.exchange(ask, self.probe_by).await
    }

    /// Whether it sends our queries back to us.
    pub fn is_looped(&self) -> bool {
        self.looped.load(Relaxed)
    }

    /// Replies ignored on UDP sockets because they did not match what was asked, ever.
    pub fn ignored_replies(&self) -> u64 {
        self.udp.ignored.get()
    }

    /// Questions that were sent again by UDP because nothing came, and those that were not because too few had been answered in
    /// time, ever.
    pub fn resent(&self) -> [u64; 2] {
        self.udp.resent()
    }

    /// Sockets and connections used again, and made anew, ever, by CoreDNS's name of the transport.
    pub fn connections(&self) -> impl Iterator<Item = (&'static str, u64, u64)> {
        let streams = if self.by_tls { "tcp-tls" } else { "tcp" };
        let udp = (!self.by_tls).then(|| ("udp", self.udp.reused.get(), self.udp.opened.get()));
        udp.into_iter().chain([(streams, self.tcp.reused.get(), self.tcp.opened.get())])
    }
}

impl std::fmt::Display for ExchangeError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::TimedOut => f.write_str("no answer in time"),
            Self::Connect(cause) => write!(f, "cannot connect: {cause}"),
            Self::Send(cause) => write!(f, "cannot send: {cause}"),
            Self::Receive(cause) => write!(f, "cannot receive: {cause}"),
            Self::Closed => f.write_str("the server closed the connection"),
            Self::Busy => f.write_str("too many questions under way on its TCP connections"),
        }
    }
}

impl std::error::Error for ExchangeError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Connect(cause) | Self::Send(cause) | Self::Receive(cause) => Some(cause),
            Self::TimedOut | Self::Closed | Self::Busy => None,
        }
    }
}
