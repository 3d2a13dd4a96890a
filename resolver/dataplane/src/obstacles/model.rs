//! Chains and rules of others, as far as they matter for a packet of ours. No kernel here.
//!
//! One model for nftables, iptables over nftables and iptables-legacy: a base chain stands at a hook with a priority and
//! a policy; rules are lists of expressions; some lead to other chains or look into sets. Bodies of chains and contents of
//! sets are there only as far as somebody asked for them ([`World::bodies`], [`World::sets`]).

use std::collections::HashMap;
use std::fmt;

/// Where in a packet's way a chain stands, in the kernel's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Hook {
    /// Packets that come in, before routing.
    Prerouting = 0,
    /// Packets for this node.
    Input = 1,
    /// Packets of this node's processes.
    Output = 3,
    /// Packets on their way out.
    Postrouting = 4,
}

impl Hook {
    pub(super) fn of(number: u32) -> Option<Self> {
        [Self::Prerouting, Self::Input, Self::Output, Self::Postrouting]
            .into_iter()
            .find(|hook| *hook as u32 == number)
    }
}

/// IPv4, IPv6, or both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scope {
    /// nft's `ip`.
    Ip,
    /// nft's `ip6`.
    Ip6,
    /// nft's `inet`.
    Inet,
}

impl Scope {
    pub(super) fn has(self, is_ipv4: bool) -> bool {
        match self {
            Self::Ip => is_ipv4,
            Self::Ip6 => !is_ipv4,
            Self::Inet => true,
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
            Self::Inet => "inet",
        })
    }
}

/// A table: in nf_tables, or one of iptables-legacy.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Table {
    /// Of iptables-legacy, whose tables are apart from those of nf_tables.
    pub is_legacy: bool,
    /// What it sees.
    pub scope: Scope,
    /// Its name.
    pub name: String,
}

/// A chain, by its table and name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct ChainId {
    pub(super) table: Table,
    pub(super) name: String,
}

/// A set or a map, by its table and name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct SetId {
    pub(super) table: Table,
    pub(super) name: String,
}

/// A chain at a hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BaseChain {
    pub(super) id: ChainId,
    pub(super) hook: Hook,
    pub(super) priority: i32,
    /// What goes through it whole is dropped.
    pub(super) drops_the_rest: bool,
}

/// What is known of the rules of others.
#[derive(Debug, Default)]
pub(super) struct World {
    pub(super) base: Vec<BaseChain>,
    pub(super) bodies: HashMap<ChainId, Vec<Rule>>,
    pub(super) sets: HashMap<SetId, Set>,
    /// Devices that no pod's packet comes in by or goes out by: they are hardware, and have no type of their own.
    pub(super) hardware: Vec<Device>,
}

/// A network device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Device {
    pub(super) index: u32,
    pub(super) name: String,
}

/// A rule.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Rule {
    /// The kernel's number for it, by which `nft -a list` shows it; its place, counted from 1, in iptables-legacy.
    pub(super) number: u64,
    /// It has what each rule has that iptables made.
    pub(super) is_of_iptables: bool,
    pub(super) expressions: Vec<Expression>,
}

/// What a rule does, step by step. A register is named by its first octet, 0 to 63.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Expression {
    /// Something about the packet that is not in its headers.
    Meta { key: u32, to: usize },
    /// The packet's mark, from a register.
    SetMark { from: usize },
    /// Octets of a header.
    Header { base: u32, offset: usize, length: usize, to: usize },
    /// Something of its connection. Ours have none, so but for its state the rule ends here.
    Conntrack { key: u32, to: usize },
    /// The device that the route to an address leads out by.
    Route { to: usize },
    /// What the address that the packet goes to is to this node.
    DestinationType { to: usize },
    /// Some value that we cannot tell; the rule may end here as well.
    Some { to: usize },
    /// Octets.
    Constant { octets: Vec<u8>, to: usize },
    /// `& mask ^ xor`.
    Mask { from: usize, to: usize, mask: Vec<u8>, xor: Vec<u8> },
    /// Each `size` octets in the opposite order.
    Swap { from: usize, to: usize, size: usize, length: usize },
    /// A comparison by the kernel's number for it.
    Compare { from: usize, operator: u32, octets: Vec<u8> },
    /// Between two, both included.
    Range { from: usize, low: Vec<u8>, high: Vec<u8>, inverted: bool },
    /// In a set; a map's value goes to a register, or is a verdict.
    Lookup { set: String, from: usize, inverted: bool, to: Option<usize>, is_verdict: bool },
    /// A match of iptables.
    XtMatch { name: String, revision: u8, data: Vec<u8> },
    /// A target of iptables that is no verdict.
    XtTarget { name: String, revision: u8, data: Vec<u8> },
    /// The fixed part of an iptables-legacy rule.
    Fixed(Box<Fixed>),
    /// Something that changes nothing for us: a counter, a log line.
    Nothing,
    /// Something that may end the rule: a rate limit, and whatever we do not know.
    MayEnd,
    /// The end, or on in another chain.
    Verdict(Verdict),
}

/// Addresses, devices and protocol of an iptables-legacy rule.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Fixed {
    pub(super) source: (Vec<u8>, Vec<u8>),
    pub(super) destination: (Vec<u8>, Vec<u8>),
    pub(super) input_device: (Vec<u8>, Vec<u8>),
    pub(super) output_device: (Vec<u8>, Vec<u8>),
    /// `None`: any.
    pub(super) protocol: Option<u8>,
    /// Only later fragments, which ours never are.
    pub(super) fragments: bool,
    pub(super) inverted: u8,
}

/// `IPT_INV_*`, the same for IPv6.
pub(super) const INVERTED_INPUT_DEVICE: u8 = 0x01;
pub(super) const INVERTED_OUTPUT_DEVICE: u8 = 0x02;
pub(super) const INVERTED_SOURCE: u8 = 0x08;
pub(super) const INVERTED_DESTINATION: u8 = 0x10;
pub(super) const INVERTED_FRAGMENT: u8 = 0x20;
pub(super) const INVERTED_PROTOCOL: u8 = 0x40;

/// What becomes of the packet.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Verdict {
    Accept,
    /// Or reject.
    Drop,
    /// To a program, which may drop it.
    Queue,
    /// On with the next rule.
    Continue,
    Return,
    Jump(String),
    Goto(String),
}

/// What a set holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Set {
    /// Lengths of the parts of its key, in octets; each is padded to a multiple of four in a register.
    pub(super) parts: Vec<usize>,
    /// `None`: more than we read.
    pub(super) elements: Option<Vec<Element>>,
    /// Written in the rule itself.
    pub(super) is_anonymous: bool,
}

/// From one value to another, both included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Element {
    /// `None`: whatever no other element has.
    pub(super) range: Option<(Vec<u8>, Vec<u8>)>,
    /// A map's value.
    pub(super) value: Option<Value>,
}

/// What a map holds for a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    Octets(Vec<u8>),
    Verdict(Verdict),
}
