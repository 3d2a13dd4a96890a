//! Connection tracking: forced on, and read back.
//!
//! A namespace tracks connections only when some rule in it needs to know them; a bypass would look perfect where
//! nothing is tracked anyway. [`force_tracking`] is that rule. The table is read by ctnetlink, and where a kernel has
//! none, from `/proc/net/nf_conntrack`.

use std::net::{IpAddr, SocketAddr};

use netlink_packet_core::DefaultNla;
use netlink_packet_netfilter::conntrack::{
    ConntrackAttribute, ConntrackMessage, IPTuple, ProtoTuple, Protocol, Tuple,
};
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, Expressions, Hook, InetHookNumber, NfTablesMessage, RuleAttribute,
    RuleMessage, TableAttribute, TableMessage,
};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};

use crate::netfilter::{dump, transact};
use crate::{Error, Netns, Transport};

/// The table that [`force_tracking`] makes.
pub const TRACKING_TABLE: &str = "lab_tracking";

/// A tracked connection as it was opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tracked {
    /// UDP or TCP; others are not reported.
    pub transport: Transport,
    /// Who sent the first packet.
    pub source: SocketAddr,
    /// To whom.
    pub destination: SocketAddr,
}

/// How many connections are tracked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Over UDP.
    pub udp: usize,
    /// Over TCP.
    pub tcp: usize,
}

impl Counts {
    /// Both transports together.
    pub fn total(self) -> usize {
        self.udp.saturating_add(self.tcp)
    }
}

/// Switches connection tracking on in a namespace, for IPv4 and IPv6, incoming and outgoing packets.
///
/// The table holds, in each of two chains at priority 0, a rule that reads `ct state` and does nothing with it.
pub fn force_tracking(netns: &Netns) -> Result<(), Error> {
    let table = || TRACKING_TABLE.to_owned();
    let mut messages =
        vec![NfTablesMessage::NewTable(TableMessage { attributes: vec![TableAttribute::Name(table())] })];
    for (chain, hook) in [("prerouting", InetHookNumber::PreRouting), ("output", InetHookNumber::LocalOut)] {
        messages.push(NfTablesMessage::NewChain(ChainMessage {
            attributes: vec![
                ChainAttribute::Table(table()),
                ChainAttribute::Name(chain.to_owned()),
                ChainAttribute::Type("filter".to_owned()),
                ChainAttribute::Hook(vec![Hook::Number(hook.into()), Hook::Priority(0)]),
            ],
        }));
        // NFTA_CT_KEY (2) = NFT_CT_STATE (0) into NFTA_CT_DREG (1) = register 1.
        let load_state = Expressions::Other {
            expression_type: "ct".to_owned(),
            attributes: vec![
                DefaultNla::new(2, 0_u32.to_be_bytes().to_vec()),
                DefaultNla::new(1, 1_u32.to_be_bytes().to_vec()),
            ],
        };
        messages.push(NfTablesMessage::NewRule(RuleMessage {
            attributes: vec![
                RuleAttribute::Table(table()),
                RuleAttribute::Chain(chain.to_owned()),
                RuleAttribute::Expressions(vec![load_state.into()]),
            ],
        }));
    }
    netns.run(|| transact(NetfilterProtoFamily::Inet, messages))?
}

/// The tracked connections of a namespace that have `port` as source or destination.
///
/// A UDP entry stays for half a minute after its last packet and a TCP one for up to two minutes after the end, so what
/// has just happened is still there.
pub fn tracked(netns: &Netns, port: u16) -> Result<Vec<Tracked>, Error> {
    let all = netns.run(|| match by_netlink() {
        Ok(all) => Ok(all),
        // A kernel without ctnetlink; its other window shows the same table.
        Err(refused) => match std::fs::read_to_string("/proc/thread-self/net/nf_conntrack") {
            Ok(text) => Ok(text.lines().filter_map(parse_proc_line).collect()),
            Err(_) => Err(refused),
        },
    })??;
    Ok(all.into_iter().filter(|one| one.source.port() == port || one.destination.port() == port).collect())
}

/// How many connections of a namespace have `port` as source or destination.
pub fn count(netns: &Netns, port: u16) -> Result<Counts, Error> {
    let all = tracked(netns, port)?;
    let udp = all.iter().filter(|one| one.transport == Transport::Udp).count();
    Ok(Counts { udp, tcp: all.len() - udp })
}

/// Forgets all tracked connections of a namespace.
pub fn flush(netns: &Netns) -> Result<(), Error> {
    netns.run(|| {
        // A deletion that names no connection means all of them.
        crate::netfilter::ask(NetfilterMessage::new(
            NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, 0),
            ConntrackMessage::Delete(Vec::new()),
        ))
    })?
}

fn by_netlink() -> Result<Vec<Tracked>, Error> {
    let messages = dump(NetfilterMessage::new(
        NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, 0),
        ConntrackMessage::Get(Vec::new()),
    ))?;
    Ok(messages
        .iter()
        .filter_map(|message| match message {
            NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)) => {
                from_attributes(attributes)
            }
            _ => None,
        })
        .collect())
}

fn from_attributes(attributes: &[ConntrackAttribute]) -> Option<Tracked> {
    let opened = attributes.iter().find_map(|attribute| match attribute {
        ConntrackAttribute::CtaTupleOrig(tuple) => Some(tuple),
        _ => None,
    })?;
    let (mut source, mut destination): (Option<IpAddr>, Option<IpAddr>) = (None, None);
    let (mut source_port, mut destination_port, mut transport) = (None, None, None);
    for part in opened {
        match part {
            Tuple::Ip(addresses) => {
                for address in addresses {
                    match address {
                        IPTuple::SourceAddress(address) => source = Some(*address),
                        IPTuple::DestinationAddress(address) => destination = Some(*address),
                        _ => {}
                    }
                }
            }
            Tuple::Proto(parts) => {
                for part in parts {
                    match part {
                        ProtoTuple::Protocol(Protocol::Udp) => transport = Some(Transport::Udp),
                        ProtoTuple::Protocol(Protocol::Tcp) => transport = Some(Transport::Tcp),
                        ProtoTuple::SourcePort(port) => source_port = Some(*port),
                        ProtoTuple::DestinationPort(port) => destination_port = Some(*port),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    Some(Tracked {
        transport: transport?,
        source: SocketAddr::new(source?, source_port?),
        destination: SocketAddr::new(destination?, destination_port?),
    })
}

/// A line of `/proc/net/nf_conntrack`. The first `src=`, `dst=`, `sport=`, `dport=` are those of the first packet.
fn parse_proc_line(line: &str) -> Option<Tracked> {
    let mut words = line.split_ascii_whitespace();
    let transport = match words.nth(2)? {
        "udp" => Transport::Udp,
        "tcp" => Transport::Tcp,
        _ => return None,
    };
    let value = |key: &str| line.split_ascii_whitespace().find_map(|word| word.strip_prefix(key));
    let end = |address: &str, port: &str| {
        Some(SocketAddr::new(value(address)?.parse().ok()?, value(port)?.parse().ok()?))
    };
    Some(Tracked { transport, source: end("src=", "sport=")?, destination: end("dst=", "dport=")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_first_direction_of_a_proc_line() {
        let line = "ipv4     2 udp      17 29 src=10.0.0.2 dst=169.254.20.10 sport=40000 dport=53 \
                    [UNREPLIED] src=169.254.20.10 dst=10.0.0.2 sport=53 dport=40000 mark=0 zone=0 use=2";
        let tracked = parse_proc_line(line).unwrap();
        assert_eq!(tracked.transport, Transport::Udp);
        assert_eq!(tracked.source, "10.0.0.2:40000".parse().unwrap());
        assert_eq!(tracked.destination, "169.254.20.10:53".parse().unwrap());
    }

    #[test]
    fn passes_over_lines_of_other_protocols_and_broken_ones() {
        for line in [
            "",
            "ipv4 2 icmp 1 29 src=1.1.1.1 dst=2.2.2.2 type=8",
            "ipv4 2 udp 17 29 src=x dst=y sport=1 dport=2",
        ] {
            assert_eq!(parse_proc_line(line), None, "{line}");
        }
    }
}
