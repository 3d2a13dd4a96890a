//! Whether fail-open works on this node, shown by a query of our own that goes the way of a pod's.
//!
//! ```text
//! socket ─▶ nodestub-ask ══ nodestub-hear ─▶ prerouting ─▶ open ─▶ kube-proxy ─▶ routing, forwarding ─▶ cluster DNS
//!   ▲                                                                                                    │
//!   └──────────── the node's own address ◀── connection tracking gives the target's address back ◀──────┘
//! ```
//!
//! A socket of the host does not show it: its packets never come in, and are not forwarded. So a pair of devices of our own
//! (`pair`) takes the query out and in again; a rule sends what comes in there past the question who listens, so that it can
//! be tried while a resolver serves. The query comes from an address of the node, and not from one that we make up: every
//! firewall and network policy lets a node ask its own cluster DNS, and its answer finds back from another node.
//!
//! The answer is to an address of the node, so it is delivered here and does not pass the rule that gives a pod the address
//! that was asked; that one rule is read back only. It comes from the fallback target (for an address that kube-proxy serves:
//! from that one), port and all, and anything else is no answer: our own listener's has another source.
//!
//! What cannot be tried here says nothing about pods: [`Obstacle`]. This module knows nothing of DNS: what is asked and what
//! counts as its answer is the caller's.

mod pair;

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use socket2::{Domain, Socket, Type};
use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout_at};

use crate::desired::{ASK_DEVICE, Desired, FailOpen, HEAR_DEVICE};
use crate::link::{Error as LinkError, Netlink};
use pair::{Pair, Route};

/// How often the query is sent before silence counts: a datagram may be lost.
const TRIES: u32 = 3;
/// The longest answer that is read, in octets; of a longer one, so much.
const MAX_ANSWER: usize = 4096;
/// Datagrams that are looked at while one try waits; more than that is a flood.
const MAX_LOOKED_AT: usize = 64;

/// What is asked.
#[derive(Clone, Copy)]
pub struct Question<'query> {
    /// The datagram.
    pub query: &'query [u8],
    /// Whether a datagram answers it.
    pub is_answer: &'query (dyn Fn(&[u8]) -> bool + Sync),
    /// How long each of three tries waits for an answer.
    pub patience: Duration,
}

/// Whether a query that finds no listener is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Passage {
    /// It is.
    Open,
    /// It is not.
    Closed(Why),
}

/// Why no answer came, as far as is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// This node does not forward packets.
    NoForwarding,
    /// The fallback target does not answer the node's own processes either.
    TargetSilent(IpAddr),
    /// It answers them, but not what is forwarded.
    NotForwarded(IpAddr),
    /// Nothing came back, and nothing more can be found out.
    Silence,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoForwarding => f.write_str(
                "this node forwards no packets: see sysctl net.ipv4.ip_forward and net.ipv6.conf.all.forwarding",
            ),
            Self::TargetSilent(target) => write!(
                f,
                "{target} does not answer the node itself either: no cluster DNS is ready, or kube-proxy's rules are missing"
            ),
            Self::NotForwarded(target) => write!(
                f,
                "{target} answers the node itself, but nothing that is forwarded: a firewall drops it, or kube-proxy's rules \
                 for packets that come in are missing, or eBPF stands in for them"
            ),
            Self::Silence => f.write_str(
                "no answer came back: kube-proxy's rules are missing, or a firewall drops what is forwarded",
            ),
        }
    }
}

/// Why it cannot be tried on this node; that says nothing about pods.
#[derive(Debug)]
pub enum Obstacle {
    /// The address is none of those that have a fallback.
    NoFallback(IpAddr),
    /// This kernel has no devices of type veth.
    NoVeth,
    /// The kernel takes no packet from an address of its own where `rp_filter` is strict for all devices.
    StrictFilter,
    /// This node has no address of the family that others answer to.
    NoSource {
        /// Of which family.
        is_ipv4: bool,
    },
    /// A device of this name is there and is not ours.
    ForeignDevice(&'static str),
    /// The pair of devices cannot be set up.
    Link(LinkError),
    /// A socket cannot be opened or used.
    Socket {
        /// What was tried.
        step: &'static str,
        /// The system's word.
        cause: io::Error,
    },
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoFallback(address) => write!(f, "{address} has no fallback"),
            Self::NoVeth => f.write_str("this kernel has no devices of type veth (`modprobe veth`)"),
            Self::StrictFilter => f.write_str(
                "sysctl net.ipv4.conf.all.rp_filter is 1 (strict), so the kernel drops a query of the node's own",
            ),
            Self::NoSource { is_ipv4 } => {
                let family = if *is_ipv4 { "IPv4" } else { "IPv6" };
                write!(f, "the node has no {family} address to ask from")
            }
            Self::ForeignDevice(name) => {
                write!(f, "device {name} is there and is not ours: give it another name, or remove it")
            }
            Self::Link(cause) => {
                write!(f, "{cause}")?;
                cause.hint().map_or(Ok(()), |hint| write!(f, " ({hint})"))
            }
            Self::Socket { step, cause } => write!(f, "{step}: {cause}"),
        }
    }
}

impl std::error::Error for Obstacle {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Link(cause) => Some(cause),
            Self::Socket { cause, .. } => Some(cause),
            Self::NoFallback(_)
            | Self::NoVeth
            | Self::StrictFilter
            | Self::NoSource { .. }
            | Self::ForeignDevice(_) => None,
        }
    }
}

impl From<LinkError> for Obstacle {
    fn from(error: LinkError) -> Self {
        Self::Link(error)
    }
}

/// Asks as a pod would that finds no listener on `address`, and tells whether an answer comes back. The rules of `desired`
/// must be in force. Takes at most four times the question's patience.
///
/// # Errors
/// It cannot be tried here.
pub async fn try_fail_open(
    desired: &Desired,
    address: IpAddr,
    question: Question<'_>,
) -> Result<Passage, Obstacle> {
    let mode = desired.fail_open().find(|(local, _)| *local == address).map(|(_, mode)| mode);
    let from = match mode {
        Some(FailOpen::To(target)) => target,
        Some(FailOpen::KubeProxy) => address,
        Some(FailOpen::Off(_)) | None => return Err(Obstacle::NoFallback(address)),
    };
    let port = desired.dns_port().get();
    if address.is_ipv4() && setting("ipv4/conf/all/rp_filter").as_deref() == Some("1") {
        return Err(Obstacle::StrictFilter);
    }
    let netlink = Netlink::open()?;
    let handle = &netlink.handle;
    let pair = pair::ensure(handle).await?;
    let source = source(handle, pair, desired, from).await?;
    let route = match address {
        IpAddr::V6(to) => Some(Route::add(handle, pair, to).await?),
        IpAddr::V4(_) => None,
    };
    let answered = ask(source, SocketAddr::new(address, port), SocketAddr::new(from, port), question).await;
    if let Some(route) = route {
        route.remove(handle).await;
    }
    if answered? {
        return Ok(Passage::Open);
    }
    if !forwards(address) {
        return Ok(Passage::Closed(Why::NoForwarding));
    }
    if mode == Some(FailOpen::KubeProxy) {
        // Asked from here, our own listener might answer.
        return Ok(Passage::Closed(Why::Silence));
    }
    let answers_here = answers_the_node(SocketAddr::new(from, port), question).await;
    Ok(Passage::Closed(if answers_here { Why::NotForwarded(from) } else { Why::TargetSilent(from) }))
}

/// Takes away the pair of devices, if it is there. Returns whether it was.
pub async fn remove() -> Result<bool, LinkError> {
    pair::remove().await
}

/// Sends the query by the asking end until an answer comes from `from` to an ordinary socket of the same address and port.
async fn ask(
    source: IpAddr,
    to: SocketAddr,
    from: SocketAddr,
    question: Question<'_>,
) -> Result<bool, Obstacle> {
    let failed = |step| move |cause| Obstacle::Socket { step, cause };
    // Two sockets: one is bound to the device, and would hear by that device only.
    let hearing = socket(source, 0).and_then(|socket| UdpSocket::from_std(socket.into()));
    let hearing = hearing.map_err(failed("open a socket for our own question's answer"))?;
    let bound = hearing.local_addr().map_err(failed("find the port of our own question"))?;
    let asking = Socket::new(Domain::for_address(to), Type::DGRAM.cloexec().nonblocking(), None)
        .and_then(|asking| {
            asking.set_reuse_address(true)?;
            asking.bind_device(Some(ASK_DEVICE.as_bytes()))?;
            asking.bind(&bound.into())?;
            Ok(asking)
        })
        .map_err(failed("open a socket on device nodestub-ask"))?;
    let mut answer = vec![0; MAX_ANSWER];
    for _ in 0..TRIES {
        asking
            .send_to(question.query, &to.into())
            .map_err(failed("send our own question by device nodestub-ask"))?;
        let end = Instant::now() + question.patience;
        for _ in 0..MAX_LOOKED_AT {
            let Ok(received) = timeout_at(end, hearing.recv_from(&mut answer)).await else { break };
            let (length, sender) = received.map_err(failed("read the answer to our own question"))?;
            let octets = answer.get(..length).unwrap_or_default();
            if sender.ip() == from.ip() && sender.port() == from.port() && (question.is_answer)(octets) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// Whether the target answers a socket of the node's own, once.
async fn answers_the_node(target: SocketAddr, question: Question<'_>) -> bool {
    let any: IpAddr =
        if target.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let asked = async {
        let socket = UdpSocket::bind((any, 0)).await?;
        socket.connect(target).await?;
        socket.send(question.query).await?;
        let mut answer = vec![0; MAX_ANSWER];
        let length = socket.recv(&mut answer).await?;
        io::Result::Ok((question.is_answer)(answer.get(..length).unwrap_or_default()))
    };
    matches!(tokio::time::timeout(question.patience, asked).await, Ok(Ok(true)))
}

/// An address of the node that the target answers to: the one that the kernel would ask it from, unless that is one of ours or
/// the target itself (on `kube-ipvs0`); else the one towards anywhere; else any of a device.
async fn source(
    handle: &rtnetlink::Handle,
    pair: Pair,
    desired: &Desired,
    target: IpAddr,
) -> Result<IpAddr, Obstacle> {
    let anywhere: IpAddr = match target {
        // Of documentation (RFC 5737, RFC 3849): nothing is sent there.
        IpAddr::V4(_) => Ipv4Addr::new(198, 51, 100, 1).into(),
        IpAddr::V6(_) => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(),
    };
    let candidates = pair::node_addresses(handle, pair).await?;
    let is_usable = |address: &IpAddr| {
        candidates.contains(address) && *address != target && !desired.addresses().contains(address)
    };
    let by_route = [target, anywhere].into_iter().filter_map(chosen_towards).find(is_usable);
    let first = || candidates.iter().copied().find(|one| one.is_ipv4() == target.is_ipv4() && is_usable(one));
    by_route.or_else(first).ok_or(Obstacle::NoSource { is_ipv4: target.is_ipv4() })
}

/// The source that the kernel chooses towards an address. Sends nothing.
fn chosen_towards(target: IpAddr) -> Option<IpAddr> {
    let any: IpAddr =
        if target.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = std::net::UdpSocket::bind((any, 0)).ok()?;
    socket.connect((target, 53)).ok()?;
    socket.local_addr().ok().map(|address| address.ip())
}

fn socket(address: IpAddr, port: u16) -> io::Result<Socket> {
    let address = SocketAddr::new(address, port);
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM.cloexec().nonblocking(), None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

/// Whether what comes in by our pair may go on to elsewhere. What cannot be read counts as yes.
fn forwards(address: IpAddr) -> bool {
    // IPv4 goes by the device that a packet comes in by, IPv6 by the one switch of all.
    let name = match address {
        IpAddr::V4(_) => format!("ipv4/conf/{HEAR_DEVICE}/forwarding"),
        IpAddr::V6(_) => "ipv6/conf/all/forwarding".to_owned(),
    };
    setting(&name).as_deref() != Some("0")
}

/// A sysctl of this network namespace.
fn setting(name: &str) -> Option<String> {
    let text = std::fs::read_to_string(format!("/proc/sys/net/{name}")).ok()?;
    Some(text.trim().to_owned())
}
