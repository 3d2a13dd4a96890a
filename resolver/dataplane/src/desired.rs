//! What the node should look like, as plain values. No kernel here.
//!
//! [`Desired`] is checked when it is made, [`Desired::ruleset`] computes the rules, and their `Display` is nft's own
//! language: what `nodestub-resolver rules` prints, and what `nft -f` would take.
//!
//! # Which rules, and why no others
//!
//! For each address, UDP and TCP apart, port P:
//!
//! | chain | rule | without it, tracked is |
//! | --- | --- | --- |
//! | prerouting | to the address, destination port P | a pod's query |
//! | output | from the address, source port P | every answer (the answer to an untracked query opens a new entry) |
//! | output | to the address, destination port P | a query of the host's own processes |
//!
//! and with a health port H, TCP only, because kubelets ask on the node itself:
//!
//! | chain | rule | without it, tracked is |
//! | --- | --- | --- |
//! | output | to the address, destination port H | a probe |
//! | output | from the address, source port H | the answer to a probe |
//!
//! A packet over `lo` keeps the verdict of the output chain, so the host's queries need nothing in prerouting.
//! NodeLocal has the same eight rules for an address in its raw table. `tests/bypass.rs` takes each one away and sees
//! entries appear.

use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU16;

/// The device that carries the addresses, unless the operator says otherwise.
pub const DEFAULT_DEVICE: &str = "nodestub";
/// Our nftables table, in family `inet`.
pub const TABLE: &str = "nodestub";
/// The most addresses: far more than two families and some ClusterIPs need, few enough for one datagram of rules.
pub const MAX_ADDRESSES: usize = 16;
/// Linux's `IFNAMSIZ` less the final zero.
const MAX_DEVICE_NAME_OCTETS: usize = 15;
/// `NF_IP_PRI_RAW`: before connection tracking, which is at -200.
const PRIORITY_RAW: i32 = -300;

/// The desired state of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desired {
    addresses: Vec<IpAddr>,
    device: String,
    dns_port: NonZeroU16,
    health_port: Option<NonZeroU16>,
}

impl Desired {
    /// Checks and keeps the wishes. Addresses named twice count once.
    ///
    /// `health_port` is the port of the HTTP health check on the addresses; `None` makes no rules for it.
    pub fn new(
        addresses: &[IpAddr],
        device: &str,
        dns_port: NonZeroU16,
        health_port: Option<NonZeroU16>,
    ) -> Result<Self, Error> {
        let mut unique: Vec<IpAddr> = Vec::with_capacity(addresses.len().min(MAX_ADDRESSES));
        for address in addresses {
            let mapped = matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some());
            if address.is_loopback() || address.is_unspecified() || address.is_multicast() || mapped {
                return Err(Error::Address(*address));
            }
            if !unique.contains(address) {
                unique.push(*address);
            }
        }
        if unique.is_empty() || unique.len() > MAX_ADDRESSES {
            return Err(Error::AddressCount(unique.len()));
        }
        let plain = |byte: u8| byte.is_ascii_graphic() && byte != b'/' && byte != b':';
        if device.is_empty()
            || device.len() > MAX_DEVICE_NAME_OCTETS
            || matches!(device, "." | "..")
            || !device.bytes().all(plain)
        {
            return Err(Error::Device(device.to_owned()));
        }
        if health_port == Some(dns_port) {
            return Err(Error::SamePort(dns_port));
        }
        Ok(Self { addresses: unique, device: device.to_owned(), dns_port, health_port })
    }

    /// The addresses, each once, in the order they were given.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// The device's name.
    pub fn device(&self) -> &str {
        &self.device
    }

    /// The rules that follow. See the module's comment.
    pub fn ruleset(&self) -> Ruleset {
        let mut rules = Vec::new();
        for &address in &self.addresses {
            for protocol in [Protocol::Udp, Protocol::Tcp] {
                let port = self.dns_port;
                let rule = |hook, side, purpose| Rule { hook, side, address, protocol, port, purpose };
                rules.push(rule(Hook::Prerouting, Side::Destination, "queries of pods"));
                rules.push(rule(Hook::Output, Side::Source, "answers"));
                rules.push(rule(Hook::Output, Side::Destination, "queries of the host"));
            }
            if let Some(port) = self.health_port {
                let protocol = Protocol::Tcp;
                let rule =
                    |side, purpose| Rule { hook: Hook::Output, side, address, protocol, port, purpose };
                rules.push(rule(Side::Destination, "health probes"));
                rules.push(rule(Side::Source, "answers to health probes"));
            }
        }
        Ruleset { rules }
    }
}

/// The whole content of our table: two base chains at raw priority and these rules.
///
/// Its `Display` is a file for `nft -f` that replaces the table in one transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ruleset {
    rules: Vec<Rule>,
}

impl Ruleset {
    /// The rules of both chains, each chain's in its order.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// The rules of one chain, in order.
    pub fn chain(&self, hook: Hook) -> impl Iterator<Item = &Rule> {
        self.rules.iter().filter(move |rule| rule.hook == hook)
    }

    /// The ruleset with one rule left out, to show what that rule is for. An index past the end leaves out none.
    pub fn without(&self, index: usize) -> Self {
        let kept = self.rules.iter().enumerate().filter(|(at, _)| *at != index);
        Self { rules: kept.map(|(_, rule)| *rule).collect() }
    }
}

impl fmt::Display for Ruleset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "table inet {TABLE}\ndelete table inet {TABLE}\ntable inet {TABLE} {{")?;
        for hook in Hook::ALL {
            writeln!(f, "\tchain {hook} {{")?;
            writeln!(f, "\t\ttype filter hook {hook} priority {}; policy accept;", hook.priority())?;
            for rule in self.chain(hook) {
                writeln!(f, "\t\t{rule}")?;
            }
            writeln!(f, "\t}}")?;
        }
        writeln!(f, "}}")
    }
}

/// One rule: packets of this kind are not tracked. Its `Display` is the rule in nft's language.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// The chain it stands in.
    pub hook: Hook,
    /// Whether address and port are the packet's source or its destination.
    pub side: Side,
    /// The local address.
    pub address: IpAddr,
    /// UDP or TCP.
    pub protocol: Protocol,
    /// The port.
    pub port: NonZeroU16,
    /// What it is for; the rule's comment in the kernel.
    pub purpose: &'static str,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = if self.address.is_ipv4() { "ip" } else { "ip6" };
        let (address, port) = match self.side {
            Side::Source => ("saddr", "sport"),
            Side::Destination => ("daddr", "dport"),
        };
        write!(
            f,
            "{family} {address} {} {} {port} {} notrack comment \"{}\"",
            self.address, self.protocol, self.port, self.purpose
        )
    }
}

/// Where in a packet's way a chain stands; also the chain's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// Packets that come in, from pods and over `lo`.
    Prerouting,
    /// Packets of the node's own processes, the resolver's among them.
    Output,
}

impl Hook {
    /// Both, in the order in which they are written.
    pub const ALL: [Self; 2] = [Self::Prerouting, Self::Output];

    /// The chain's name, which is nft's name of the hook.
    pub fn name(self) -> &'static str {
        match self {
            Self::Prerouting => "prerouting",
            Self::Output => "output",
        }
    }

    /// The chain's place among others at the same hook; lower is earlier.
    pub fn priority(self) -> i32 {
        PRIORITY_RAW
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
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

/// The transports of DNS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Datagrams.
    Udp,
    /// Streams.
    Tcp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
        })
    }
}

/// A wish that cannot be met on any node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error {
    /// None, or more than [`MAX_ADDRESSES`].
    AddressCount(usize),
    /// Loopback, unspecified, multicast or IPv4-mapped: nothing that a pod could send a query to.
    Address(IpAddr),
    /// Not a name that Linux gives a device.
    Device(String),
    /// DNS and the health check on one port.
    SamePort(NonZeroU16),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddressCount(count) => {
                write!(f, "{count} local addresses: give between 1 and {MAX_ADDRESSES}")
            }
            Self::Address(address) => write!(
                f,
                "{address} cannot be a local address: pods cannot reach it; use a link-local or private one such as 169.254.20.10"
            ),
            Self::Device(name) => write!(
                f,
                "{name:?} cannot be a device's name: use 1 to {MAX_DEVICE_NAME_OCTETS} letters, digits, '-', '_' or '.'"
            ),
            Self::SamePort(port) => write!(f, "port {port} is given for both DNS and the health check"),
        }
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    const DNS: NonZeroU16 = NonZeroU16::new(53).unwrap();
    const HEALTH: NonZeroU16 = NonZeroU16::new(8080).unwrap();

    fn desired(addresses: &[&str]) -> Result<Desired, Error> {
        let addresses: Vec<IpAddr> = addresses.iter().map(|text| text.parse().unwrap()).collect();
        Desired::new(&addresses, DEFAULT_DEVICE, DNS, Some(HEALTH))
    }

    #[test]
    fn writes_the_rules_in_nfts_language() {
        let text = desired(&["169.254.20.10"]).unwrap().ruleset().to_string();
        let expected = "\
table inet nodestub
delete table inet nodestub
table inet nodestub {
\tchain prerouting {
\t\ttype filter hook prerouting priority -300; policy accept;
\t\tip daddr 169.254.20.10 udp dport 53 notrack comment \"queries of pods\"
\t\tip daddr 169.254.20.10 tcp dport 53 notrack comment \"queries of pods\"
\t}
\tchain output {
\t\ttype filter hook output priority -300; policy accept;
\t\tip saddr 169.254.20.10 udp sport 53 notrack comment \"answers\"
\t\tip daddr 169.254.20.10 udp dport 53 notrack comment \"queries of the host\"
\t\tip saddr 169.254.20.10 tcp sport 53 notrack comment \"answers\"
\t\tip daddr 169.254.20.10 tcp dport 53 notrack comment \"queries of the host\"
\t\tip daddr 169.254.20.10 tcp dport 8080 notrack comment \"health probes\"
\t\tip saddr 169.254.20.10 tcp sport 8080 notrack comment \"answers to health probes\"
\t}
}
";
        assert_eq!(text, expected);
    }

    #[test]
    fn makes_eight_rules_for_each_address_and_none_twice() {
        let rules = desired(&["169.254.20.10", "fd00::a", "169.254.20.10"]).unwrap().ruleset();
        assert_eq!(rules.rules().len(), 16);
        for (index, rule) in rules.rules().iter().enumerate() {
            assert!(!rules.without(index).rules().contains(rule), "{rule}");
        }
    }

    #[test]
    fn leaves_the_health_rules_out_without_a_health_port() {
        let desired = Desired::new(&["fd00::a".parse().unwrap()], DEFAULT_DEVICE, DNS, None).unwrap();
        assert_eq!(desired.ruleset().rules().len(), 6);
    }

    #[test]
    fn rejects_addresses_that_no_pod_can_reach() {
        for text in ["127.0.0.1", "::1", "0.0.0.0", "::", "224.0.0.251", "ff02::fb", "::ffff:10.0.0.1"] {
            assert_eq!(desired(&[text]), Err(Error::Address(text.parse().unwrap())), "{text}");
        }
    }

    #[test]
    fn rejects_no_address_and_too_many() {
        assert_eq!(desired(&[]), Err(Error::AddressCount(0)));
        let many: Vec<String> = (0..=MAX_ADDRESSES).map(|n| format!("169.254.20.{n}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(desired(&many), Err(Error::AddressCount(MAX_ADDRESSES + 1)));
    }

    #[test]
    fn rejects_names_that_linux_gives_no_device() {
        let address = ["169.254.20.10".parse().unwrap()];
        for name in ["", ".", "..", "a/b", "a b", "eth0:1", "sixteen-letters-", "\u{e9}th0"] {
            assert_eq!(Desired::new(&address, name, DNS, None), Err(Error::Device(name.to_owned())));
        }
    }

    #[test]
    fn rejects_one_port_for_dns_and_health() {
        let address = ["169.254.20.10".parse().unwrap()];
        assert_eq!(Desired::new(&address, DEFAULT_DEVICE, DNS, Some(DNS)), Err(Error::SamePort(DNS)));
    }
}
