//! A DNS server that does what a test tells it: answers late, twice, from elsewhere, wrongly, or never.
//!
//! The behaviour is a closure from a query's bytes to a list of [`Reply`]s. UDP and TCP share one port. Threads and
//! blocking sockets: the server is started inside a namespace (`netns.run(|| Upstream::start(..))`) and stays there.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use domain::base::iana::Rcode;
use domain::base::message_builder::MessageBuilder;
use domain::base::{Message, Name, Ttl};
use domain::rdata::{A, Aaaa, Cname, Soa};

use crate::Error;
use crate::dns::{read_framed, write_framed};

/// Queries that are remembered in full; later ones are counted only.
const MAX_REMEMBERED: usize = 10_000;
/// TCP connections at a time; more are closed at once.
const MAX_CONNECTIONS: usize = 256;

/// UDP or TCP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transport {
    /// Datagrams.
    Udp,
    /// A stream, each message with its length before it.
    Tcp,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Udp => "UDP",
            Self::Tcp => "TCP",
        })
    }
}

/// Something to send back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// The message; over TCP the length is put before it.
    pub bytes: Vec<u8>,
    /// Time to wait before it is sent. Other replies and queries go on meanwhile.
    pub delay: Duration,
    /// Another address to send from (UDP only); port 0 takes any.
    pub from: Option<SocketAddr>,
    /// Close the connection afterwards (TCP only). With no bytes, close without a message.
    pub closes: bool,
}

impl Reply {
    /// These bytes, at once, from where they were asked.
    pub fn now(bytes: Vec<u8>) -> Self {
        Self { bytes, delay: Duration::ZERO, from: None, closes: false }
    }

    /// The same, later.
    pub fn after(self, delay: Duration) -> Self {
        Self { delay, ..self }
    }

    /// The same, from another address.
    pub fn from(self, from: SocketAddr) -> Self {
        Self { from: Some(from), ..self }
    }

    /// Closes the connection without an answer.
    pub fn hang_up() -> Self {
        Self { bytes: Vec::new(), delay: Duration::ZERO, from: None, closes: true }
    }
}

/// A query that came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// How.
    pub transport: Transport,
    /// From where.
    pub from: SocketAddr,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

type Behaviour = dyn Fn(&[u8], Transport) -> Vec<Reply> + Send + Sync;

/// A running server. Stops on drop; then nobody listens there any more.
pub struct Upstream {
    address: SocketAddr,
    shared: Arc<Shared>,
    udp: Arc<UdpSocket>,
    tcp: Arc<TcpListener>,
    listeners: Vec<JoinHandle<()>>,
}

struct Shared {
    behaviour: Box<Behaviour>,
    log: Mutex<Log>,
    grew: Condvar,
    stopped: AtomicBool,
}

#[derive(Default)]
struct Log {
    received: Vec<Received>,
    udp: usize,
    tcp: usize,
    connections: usize,
    open: usize,
    streams: Vec<TcpStream>,
}

impl Upstream {
    /// Binds UDP and TCP (port 0 takes a port that is free for both) and answers as `behaviour` says.
    pub fn start(
        bind: SocketAddr,
        behaviour: impl Fn(&[u8], Transport) -> Vec<Reply> + Send + Sync + 'static,
    ) -> Result<Self, Error> {
        let (udp, tcp) = bind_both(bind).map_err(Error::at(format!("bind {bind} for UDP and TCP")))?;
        let address = udp.local_addr().map_err(Error::at("read a socket's address"))?;
        let shared = Arc::new(Shared {
            behaviour: Box::new(behaviour),
            log: Mutex::default(),
            grew: Condvar::new(),
            stopped: AtomicBool::new(false),
        });
        let (udp, tcp) = (Arc::new(udp), Arc::new(tcp));
        let listeners = vec![
            thread::spawn({
                let (shared, udp) = (Arc::clone(&shared), Arc::clone(&udp));
                move || shared.serve_udp(&udp)
            }),
            thread::spawn({
                let (shared, tcp) = (Arc::clone(&shared), Arc::clone(&tcp));
                move || shared.serve_tcp(&tcp)
            }),
        ];
        Ok(Self { address, shared, udp, tcp, listeners })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Queries so far, UDP and TCP.
    pub fn count(&self) -> usize {
        let log = self.shared.log();
        log.udp.saturating_add(log.tcp)
    }

    /// Queries so far by one transport.
    pub fn count_of(&self, transport: Transport) -> usize {
        let log = self.shared.log();
        match transport {
            Transport::Udp => log.udp,
            Transport::Tcp => log.tcp,
        }
    }

    /// TCP connections accepted so far.
    pub fn connections(&self) -> usize {
        self.shared.log().connections
    }

    /// The queries so far, the first ten thousand.
    pub fn received(&self) -> Vec<Received> {
        self.shared.log().received.clone()
    }

    /// Waits until at least `count` queries have come.
    pub fn wait_for(&self, count: usize, deadline: Duration) -> Result<(), Error> {
        let end = Instant::now() + deadline;
        let mut log = self.shared.log();
        while log.udp.saturating_add(log.tcp) < count {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let came = log.udp.saturating_add(log.tcp);
                return Err(Error::new(format!("wait for {count} queries: only {came} came in time")));
            }
            log = self.shared.grew.wait_timeout(log, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        // Each thread sleeps in a system call; this ends it, and sends nothing that a test could count.
        // Linux says ENOTCONN for the UDP socket, which has no peer, and wakes its reader all the same.
        use rustix::net::{Shutdown, shutdown};
        for result in [shutdown(&*self.udp, Shutdown::Both), shutdown(&*self.tcp, Shutdown::Both)] {
            if let Err(error) = result
                && error != rustix::io::Errno::NOTCONN
            {
                eprintln!("stop the server at {}: {error}", self.address);
            }
        }
        for stream in self.shared.log().streams.drain(..) {
            // Already closed by its peer, perhaps.
            stream.shutdown(std::net::Shutdown::Both).ok();
        }
        // They hold the sockets; a reply that is still waiting for its time may do so a while longer.
        for listener in self.listeners.drain(..) {
            listener.join().ok();
        }
    }
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upstream").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Shared {
    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, transport: Transport, from: SocketAddr, bytes: &[u8]) {
        let mut log = self.log();
        match transport {
            Transport::Udp => log.udp += 1,
            Transport::Tcp => log.tcp += 1,
        }
        if log.received.len() < MAX_REMEMBERED {
            log.received.push(Received { transport, from, bytes: bytes.to_vec() });
        }
        drop(log);
        self.grew.notify_all();
    }

    fn serve_udp(&self, socket: &Arc<UdpSocket>) {
        let mut buffer = vec![0; 65_535];
        loop {
            let received = socket.recv_from(&mut buffer);
            if self.stopped.load(Ordering::SeqCst) {
                return;
            }
            // An error here is an ICMP message about an earlier answer; the socket works on.
            let Ok((length, peer)) = received else { continue };
            let query = buffer.get(..length).unwrap_or_default();
            self.note(Transport::Udp, peer, query);
            for reply in (self.behaviour)(query, Transport::Udp) {
                let socket = Arc::clone(socket);
                let delay = reply.delay;
                let send = move || send_datagram(&socket, peer, &reply);
                if delay.is_zero() { send() } else { later(delay, send) }
            }
        }
    }

    fn serve_tcp(self: &Arc<Self>, listener: &TcpListener) {
        loop {
            let accepted = listener.accept();
            if self.stopped.load(Ordering::SeqCst) {
                return;
            }
            let Ok((stream, peer)) = accepted else { continue };
            let mut log = self.log();
            log.connections += 1;
            if log.open == MAX_CONNECTIONS {
                continue;
            }
            log.open += 1;
            if let Ok(copy) = stream.try_clone() {
                log.streams.push(copy);
            }
            drop(log);
            let shared = Arc::clone(self);
            thread::spawn(move || {
                if let Err(error) = shared.serve_stream(stream, peer)
                    && !matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof)
                {
                    eprintln!("serve {peer} over TCP: {error}");
                }
                let mut log = shared.log();
                log.open -= 1;
                log.streams.retain(|stream| stream.peer_addr().is_ok_and(|other| other != peer));
            });
        }
    }

    fn serve_stream(&self, mut stream: TcpStream, peer: SocketAddr) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let writer = Arc::new(Mutex::new(stream.try_clone()?));
        while let Some(query) = read_framed(&mut stream)? {
            self.note(Transport::Tcp, peer, &query);
            for reply in (self.behaviour)(&query, Transport::Tcp) {
                let writer = Arc::clone(&writer);
                let delay = reply.delay;
                let send = move || send_framed(&writer, &reply);
                if delay.is_zero() { send() } else { later(delay, send) }
            }
        }
        Ok(())
    }
}

/// Data of a record in [`answer`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Data {
    /// An IPv4 address.
    A(Ipv4Addr),
    /// An IPv6 address.
    Aaaa(Ipv6Addr),
    /// Another name.
    Cname(String),
}

/// An ordinary answer to a query: these records (owner, TTL in seconds, data), `NOERROR`, AA.
pub fn answer(query: &[u8], records: &[(&str, u32, Data)]) -> Result<Vec<u8>, Error> {
    let step = "make a DNS answer";
    let message = Message::from_octets(query).map_err(Error::at("parse the query to answer"))?;
    let mut builder =
        MessageBuilder::new_vec().start_answer(&message, Rcode::NOERROR).map_err(Error::at(step))?;
    builder.header_mut().set_aa(true);
    for (owner, ttl, data) in records {
        let (owner, ttl) = (name(owner)?, Ttl::from_secs(*ttl));
        match data {
            Data::A(address) => builder.push((owner, ttl, A::new(*address))),
            Data::Aaaa(address) => builder.push((owner, ttl, Aaaa::new(*address))),
            Data::Cname(target) => builder.push((owner, ttl, Cname::new(name(target)?))),
        }
        .map_err(Error::at(step))?;
    }
    Ok(builder.finish())
}

/// A negative answer: this code (`Rcode::NXDOMAIN`, or `Rcode::NOERROR` for "no data") with a zone's SOA, whose
/// minimum and TTL are `ttl` seconds.
pub fn denial(query: &[u8], rcode: Rcode, zone: &str, ttl: u32) -> Result<Vec<u8>, Error> {
    let step = "make a negative DNS answer";
    let message = Message::from_octets(query).map_err(Error::at("parse the query to answer"))?;
    let mut builder = MessageBuilder::new_vec().start_answer(&message, rcode).map_err(Error::at(step))?;
    builder.header_mut().set_aa(true);
    let mut builder = builder.authority();
    let times = Ttl::from_secs(3600);
    let soa = Soa::new(name(zone)?, name(zone)?, 1.into(), times, times, times, Ttl::from_secs(ttl));
    builder.push((name(zone)?, Ttl::from_secs(ttl), soa)).map_err(Error::at(step))?;
    Ok(builder.finish())
}

/// An answer without records: a code, nothing else.
pub fn refusal(query: &[u8], rcode: Rcode) -> Result<Vec<u8>, Error> {
    let message = Message::from_octets(query).map_err(Error::at("parse the query to answer"))?;
    let builder = MessageBuilder::new_vec().start_answer(&message, rcode);
    Ok(builder.map_err(Error::at("make a DNS answer"))?.finish())
}

/// Name and type of a query's question, the name in lower case and with its final dot.
pub fn question(query: &[u8]) -> Result<(String, String), Error> {
    match crate::Answer::parse(query)?.question {
        Some((name, rtype, _)) => Ok((name.to_lowercase(), rtype)),
        None => Err(Error::new("read a query's question: it has none")),
    }
}

/// A behaviour that knows some names (with their final dot) and their addresses: `NOERROR` with what fits the type,
/// `NXDOMAIN` for the rest. TTLs are `ttl` seconds.
pub fn zone(
    ttl: u32,
    names: &[(&str, IpAddr)],
) -> impl Fn(&[u8], Transport) -> Vec<Reply> + Send + Sync + use<> {
    let names: Vec<(String, IpAddr)> =
        names.iter().map(|(name, address)| (name.to_lowercase(), *address)).collect();
    move |query, _| {
        let reply = question(query).and_then(|(asked, rtype)| {
            let known = names.iter().filter(|(name, _)| *name == asked);
            let records: Vec<(&str, u32, Data)> = known
                .clone()
                .filter_map(|(name, address)| match (address, rtype.as_str()) {
                    (IpAddr::V4(address), "A") => Some((name.as_str(), ttl, Data::A(*address))),
                    (IpAddr::V6(address), "AAAA") => Some((name.as_str(), ttl, Data::Aaaa(*address))),
                    _ => None,
                })
                .collect();
            match (records.is_empty(), known.count()) {
                (false, _) => answer(query, &records),
                (true, 0) => denial(query, Rcode::NXDOMAIN, ".", ttl),
                (true, _) => denial(query, Rcode::NOERROR, ".", ttl),
            }
        });
        // What is no query gets no answer.
        reply.map(Reply::now).into_iter().collect()
    }
}

fn name(text: &str) -> Result<Name<Vec<u8>>, Error> {
    Name::from_str(text).map_err(Error::at(format!("read the name {text}")))
}

fn later(delay: Duration, send: impl FnOnce() + Send + 'static) {
    thread::spawn(move || {
        thread::sleep(delay);
        send();
    });
}

fn send_datagram(socket: &UdpSocket, peer: SocketAddr, reply: &Reply) {
    let sent = match reply.from {
        None => socket.send_to(&reply.bytes, peer),
        Some(from) => UdpSocket::bind(from).and_then(|other| other.send_to(&reply.bytes, peer)),
    };
    if let Err(error) = sent {
        eprintln!("answer {peer} over UDP: {error}");
    }
}

fn send_framed(writer: &Mutex<TcpStream>, reply: &Reply) {
    let mut stream = writer.lock().unwrap_or_else(PoisonError::into_inner);
    // A client that has gone is the client's affair.
    if !(reply.closes && reply.bytes.is_empty()) {
        write_framed(&mut *stream, &reply.bytes).ok();
    }
    if reply.closes {
        stream.shutdown(std::net::Shutdown::Both).ok();
    }
}

fn bind_both(address: SocketAddr) -> io::Result<(UdpSocket, TcpListener)> {
    /// A port that is free for UDP may be taken for TCP; a few tries find one free for both.
    const TRIES: usize = 32;
    let mut last = None;
    for _ in 0..TRIES {
        let udp = UdpSocket::bind(address)?;
        match TcpListener::bind(udp.local_addr()?) {
            Ok(tcp) => return Ok((udp, tcp)),
            Err(error) if address.port() == 0 => last = Some(error),
            Err(error) => return Err(error),
        }
    }
    Err(last.unwrap_or_else(|| io::ErrorKind::AddrInUse.into()))
}
