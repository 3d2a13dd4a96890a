//! What rules are made of, and how each part reads in nft's language.
//!
//! Only what our rules need; `nftables` turns the same parts into instructions of the kernel.

use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU16;

use crate::desired::{ASK_DEVICE, HEAR_DEVICE};

/// `NF_IP_PRI_RAW`: before connection tracking, which is at -200.
const PRIORITY_RAW: i32 = -300;
/// After `NF_IP_PRI_NAT_SRC` (100), where a DNAT gives an answer its source back.
const PRIORITY_AFTER_NAT: i32 = 200;

/// One rule. Its `Display` is the rule in nft's language.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    chain: Chain,
    statements: Vec<Statement>,
    purpose: &'static str,
}

impl Rule {
    pub(super) fn new(chain: Chain, statements: Vec<Statement>, purpose: &'static str) -> Self {
        Self { chain, statements, purpose }
    }

    /// The chain it stands in.
    pub fn chain(&self) -> Chain {
        self.chain
    }

    /// What it matches and does, from left to right.
    pub fn statements(&self) -> &[Statement] {
        &self.statements
    }

    /// What it is for; the rule's comment in the kernel.
    pub fn purpose(&self) -> &'static str {
        self.purpose
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for statement in &self.statements {
            write!(f, "{statement} ")?;
        }
        write!(f, "comment \"{}\"", self.purpose)
    }
}

/// A part of a rule: a condition, a change, or a verdict. Its `Display` is nft's language.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Statement {
    /// The packet came in over `lo`.
    InputIsLoopback,
    /// The packet came in by the hearing end of the pair of devices by which fail-open is tried: see `proof`.
    InputIsProof,
    /// The packet leaves by the asking end of that pair.
    OutputIsProof,
    /// The packet has this address.
    Address(Side, IpAddr),
    /// The packet is of this protocol and has this port.
    Port(Protocol, Side, NonZeroU16),
    /// The packet opens a TCP connection: SYN without ACK.
    IsSyn,
    /// A socket is there for the packet, and it is bound to every address (`true`) or to one (`false`).
    SocketWildcard(bool),
    /// A socket is there for the packet, and it is a transparent proxy's (`true`) or not (`false`).
    SocketTransparent(bool),
    /// Something about the packet's connection in the family's set of those opened past the listener.
    Opened(SetUse, Family),
    /// The packet's connection was opened in this conntrack zone.
    Zone(u16),
    /// The packet goes against the direction in which its connection was opened.
    IsReply,
    /// From here on the connection is tracked in this zone.
    SetZone(u16),
    /// Writes an address, and corrects the checksums.
    SetAddress(Side, IpAddr),
    /// The packet is not tracked.
    NoTrack,
    /// Done with our chains at this hook.
    Accept,
    /// Done with this chain.
    Return,
    /// On in another chain, not to come back.
    Goto(Chain),
}

impl fmt::Display for Statement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InputIsLoopback => f.write_str("iif \"lo\""),
            Self::InputIsProof => write!(f, "iifname \"{HEAR_DEVICE}\""),
            Self::OutputIsProof => write!(f, "oifname \"{ASK_DEVICE}\""),
            Self::Address(side, address) => {
                write!(f, "{} {} {address}", Family::of(*address), side.of_address())
            }
            Self::Port(protocol, side, port) => write!(f, "{protocol} {} {port}", side.of_port()),
            Self::IsSyn => f.write_str("tcp flags & (syn | ack) == syn"),
            Self::SocketWildcard(is) => write!(f, "socket wildcard {}", u8::from(*is)),
            Self::SocketTransparent(is) => write!(f, "socket transparent {}", u8::from(*is)),
            Self::Opened(how, family) => {
                let (key, set) =
                    (format!("{family} saddr . tcp sport . {family} daddr"), family.opened_set());
                match how {
                    SetUse::Lookup => write!(f, "{key} @{set}"),
                    SetUse::Update => write!(f, "update @{set} {{ {key} }}"),
                    SetUse::Delete => write!(f, "delete @{set} {{ {key} }}"),
                }
            }
            Self::Zone(zone) => write!(f, "ct original zone {zone}"),
            Self::IsReply => f.write_str("ct direction reply"),
            Self::SetZone(zone) => write!(f, "ct original zone set {zone}"),
            Self::SetAddress(side, address) => {
                write!(f, "{} {} set {address}", Family::of(*address), side.of_address())
            }
            Self::NoTrack => f.write_str("notrack"),
            Self::Accept => f.write_str("accept"),
            Self::Return => f.write_str("return"),
            Self::Goto(chain) => write!(f, "goto {chain}"),
        }
    }
}

/// What a rule does with a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetUse {
    /// Goes on only when the connection is in it.
    Lookup,
    /// Puts it in, or starts its time anew. Ends the rule when the set is full.
    Update,
    /// Takes it out, if it is in.
    Delete,
}

/// A chain of our table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chain {
    /// Packets that come in, from pods and over `lo`.
    Prerouting,
    /// Packets of the node's own processes, the resolver's among them.
    Output,
    /// Packets on their way out, translated.
    Postrouting,
    /// A pod's query over UDP.
    DnsUdp,
    /// A pod's segment over TCP.
    DnsTcp(Family),
    /// A pod's SYN.
    NewTcp(Family),
    /// A segment of a TCP connection that goes past the listener.
    OpenTcp(Family),
    /// A packet that goes to the fallback target.
    Open,
}

impl Chain {
    /// All, in the order in which they are written.
    pub const ALL: [Self; 11] = [
        Self::Prerouting,
        Self::Output,
        Self::Postrouting,
        Self::DnsUdp,
        Self::DnsTcp(Family::V4),
        Self::NewTcp(Family::V4),
        Self::OpenTcp(Family::V4),
        Self::DnsTcp(Family::V6),
        Self::NewTcp(Family::V6),
        Self::OpenTcp(Family::V6),
        Self::Open,
    ];

    /// The chain's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Prerouting => "prerouting",
            Self::Output => "output",
            Self::Postrouting => "postrouting",
            Self::DnsUdp => "dns_udp",
            Self::DnsTcp(Family::V4) => "dns_tcp4",
            Self::DnsTcp(Family::V6) => "dns_tcp6",
            Self::NewTcp(Family::V4) => "new_tcp4",
            Self::NewTcp(Family::V6) => "new_tcp6",
            Self::OpenTcp(Family::V4) => "open_tcp4",
            Self::OpenTcp(Family::V6) => "open_tcp6",
            Self::Open => "open",
        }
    }

    /// Where in a packet's way it stands; `None` when only rules lead to it.
    pub fn hook(self) -> Option<Hook> {
        match self {
            Self::Prerouting => Some(Hook::Prerouting),
            Self::Output => Some(Hook::Output),
            Self::Postrouting => Some(Hook::Postrouting),
            _ => None,
        }
    }
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Where in a packet's way a chain stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// Packets that come in, before routing.
    Prerouting,
    /// Packets of the node's own processes.
    Output,
    /// Packets on their way out.
    Postrouting,
}

impl Hook {
    /// The chain's place among others at the same hook; lower is earlier.
    pub fn priority(self) -> i32 {
        match self {
            Self::Prerouting | Self::Output => PRIORITY_RAW,
            Self::Postrouting => PRIORITY_AFTER_NAT,
        }
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Prerouting => "prerouting",
            Self::Output => "output",
            Self::Postrouting => "postrouting",
        })
    }
}

/// IPv4 or IPv6; its `Display` is nft's word for the header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// The name of the set of TCP connections that were opened past the listener.
    pub fn opened_set(self) -> &'static str {
        match self {
            Self::V4 => "opened_tcp4",
            Self::V6 => "opened_tcp6",
        }
    }

    pub(super) fn has(self, address: IpAddr) -> bool {
        self == Self::of(address)
    }

    pub(super) fn address_type(self) -> &'static str {
        match self {
            Self::V4 => "ipv4_addr",
            Self::V6 => "ipv6_addr",
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "ip",
            Self::V6 => "ip6",
        })
    }
}

/// Which end of a packet a rule looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Where it comes from.
    Source,
    /// Where it goes.
    Destination,
}

impl Side {
    fn of_address(self) -> &'static str {
        match self {
            Self::Source => "saddr",
            Self::Destination => "daddr",
        }
    }

    fn of_port(self) -> &'static str {
        match self {
            Self::Source => "sport",
            Self::Destination => "dport",
        }
    }
}

/// The transports of DNS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Datagrams.
    Udp,
    /// Streams.
    Tcp,
}

impl Protocol {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Udp, Self::Tcp];
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
        })
    }
}
