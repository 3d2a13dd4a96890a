//! The packets that must pass: what of each is known, and its way through the kernel's hooks.
//!
//! | packet | its way |
//! | --- | --- |
//! | a pod's query | in by the pod's device: prerouting, input |
//! | its answer | output, postrouting: out by the pod's device |
//! | a query of the host, a health probe, and their answers | output, postrouting, and in again by `lo`: prerouting, input |
//!
//! All are untracked from our own table on (priority -300). What goes on to the cluster DNS while nobody listens is an
//! ordinary tracked query by then, through `forward`, as it would be without us: not ours to judge.

use std::fmt;
use std::net::IpAddr;

use super::model::Hook;
use super::value::{Octet, known, unknown};
use crate::desired::Desired;
use crate::rules::Protocol;

const TCP: u8 = 6;
const UDP: u8 = 17;
pub(super) const TCP_SYN: u8 = 0x02;
pub(super) const TCP_ACK: u8 = 0x10;
/// The flags of TCP that are known of our segments: FIN, SYN, RST, ACK.
const TCP_KNOWN_FLAGS: u8 = 0x17;

/// What a packet is to the one who sends it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// From a pod to us.
    Query,
    /// From us to a pod.
    Answer,
    /// From a process of the host to us.
    HostQuery,
    /// From us to a process of the host.
    HostAnswer,
    /// A kubelet's health probe.
    Probe,
    /// Our answer to it.
    ProbeAnswer,
}

impl Kind {
    /// Over `lo`, in and out.
    pub(super) fn is_inside(self) -> bool {
        !matches!(self, Self::Query | Self::Answer)
    }

    /// From us.
    pub(super) fn is_answer(self) -> bool {
        matches!(self, Self::Answer | Self::HostAnswer | Self::ProbeAnswer)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Query => "queries of pods",
            Self::Answer => "answers to pods",
            Self::HostQuery => "queries of the host",
            Self::HostAnswer => "answers to the host",
            Self::Probe => "health probes",
            Self::ProbeAnswer => "answers to health probes",
        })
    }
}

/// A packet of ours.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Packet {
    /// What it is.
    pub kind: Kind,
    /// Our address.
    pub address: IpAddr,
    /// Its transport is TCP, not UDP.
    pub is_tcp: bool,
    /// Our port.
    pub port: u16,
    /// The first of a connection, or a later one.
    pub(super) is_first: bool,
}

/// The packets that follow from a wish.
pub(super) fn packets(desired: &Desired) -> Vec<Packet> {
    let mut packets = Vec::new();
    for &address in desired.addresses() {
        let mut add = |kind, is_tcp, port: u16| {
            packets.push(Packet { kind, address, is_tcp, port, is_first: true });
            if is_tcp {
                packets.push(Packet { kind, address, is_tcp, port, is_first: false });
            }
        };
        for protocol in Protocol::ALL {
            let is_tcp = protocol == Protocol::Tcp;
            let port = desired.dns_port().get();
            add(Kind::Query, is_tcp, port);
            add(Kind::Answer, is_tcp, port);
            // The host's queries to a Service's address are kube-proxy's, and so is the port of its health check.
            if !desired.is_service(address) {
                add(Kind::HostQuery, is_tcp, port);
                add(Kind::HostAnswer, is_tcp, port);
            }
        }
        if let Some(port) = desired.health_port().filter(|_| !desired.is_service(address)) {
            add(Kind::Probe, true, port.get());
            add(Kind::ProbeAnswer, true, port.get());
        }
    }
    packets
}

impl Packet {
    /// The hooks that it passes, in order.
    pub(super) fn hooks(&self) -> &'static [Hook] {
        match self.kind {
            Kind::Query => &[Hook::Prerouting, Hook::Input],
            Kind::Answer => &[Hook::Output, Hook::Postrouting],
            _ => &[Hook::Output, Hook::Postrouting, Hook::Prerouting, Hook::Input],
        }
    }

    /// Whether it is one of IPv4.
    pub(super) fn is_ipv4(&self) -> bool {
        self.address.is_ipv4()
    }

    /// The number of its transport.
    pub(super) fn protocol(&self) -> u8 {
        if self.is_tcp { TCP } else { UDP }
    }

    /// Its flags, if it is one of TCP.
    pub(super) fn tcp_flags(&self) -> u8 {
        match (self.is_first, self.kind.is_answer()) {
            (true, false) => TCP_SYN,
            (true, true) => TCP_SYN | TCP_ACK,
            (false, _) => TCP_ACK,
        }
    }

    pub(super) fn source(&self) -> Vec<Octet> {
        self.end(!self.kind.is_answer())
    }

    pub(super) fn destination(&self) -> Vec<Octet> {
        self.end(self.kind.is_answer())
    }

    pub(super) fn source_port(&self) -> [Octet; 2] {
        self.port_of_end(!self.kind.is_answer())
    }

    pub(super) fn destination_port(&self) -> [Octet; 2] {
        self.port_of_end(self.kind.is_answer())
    }

    /// The address of the peer, or ours. The host's processes reach a local address from that same address.
    fn end(&self, of_peer: bool) -> Vec<Octet> {
        match (of_peer && !self.kind.is_inside(), self.address) {
            (false, IpAddr::V4(address)) => known(&address.octets()),
            (false, IpAddr::V6(address)) => known(&address.octets()),
            (true, IpAddr::V4(_)) => unknown(4),
            (true, IpAddr::V6(_)) => unknown(16),
        }
    }

    /// Clients take their ports from the upper half (`net.ipv4.ip_local_port_range` begins at 32768).
    fn port_of_end(&self, of_peer: bool) -> [Octet; 2] {
        if of_peer {
            return [Octet::partly(0x80, 0x80), Octet::UNKNOWN];
        }
        self.port.to_be_bytes().map(Octet::known)
    }

    /// The IP header. What is not known stays so: lengths, identifiers, checksums.
    pub(super) fn network_header(&self) -> Vec<Octet> {
        if self.is_ipv4() {
            // Version and header length; later the fragment's offset, which is 0.
            let mut header = vec![Octet::known(0x45), Octet::UNKNOWN];
            header.extend(unknown(4));
            header.extend([Octet::partly(0, 0x3f), Octet::known(0), Octet::UNKNOWN]);
            header.push(Octet::known(self.protocol()));
            header.extend(unknown(2));
            header.extend(self.source());
            header.extend(self.destination());
            return header;
        }
        let mut header = vec![Octet::partly(0x60, 0xf0)];
        header.extend(unknown(5));
        header.extend([Octet::known(self.protocol()), Octet::UNKNOWN]);
        header.extend(self.source());
        header.extend(self.destination());
        header
    }

    /// The header of UDP or TCP.
    pub(super) fn transport_header(&self) -> Vec<Octet> {
        let mut header = self.source_port().to_vec();
        header.extend(self.destination_port());
        if !self.is_tcp {
            header.extend(unknown(4));
            return header;
        }
        header.extend(unknown(9));
        header.push(Octet::partly(self.tcp_flags(), TCP_KNOWN_FLAGS));
        header.extend(unknown(6));
        header
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::obstacles::value::{Truth, equals};
    use std::num::NonZeroU16;

    #[test]
    fn lays_addresses_ports_and_flags_where_the_kernel_looks_for_them() {
        let addresses = ["169.254.20.10", "fd00::a"].map(|text| text.parse().unwrap());
        let dns = NonZeroU16::new(53).unwrap();
        let desired = Desired::new(&addresses, "nodestub", dns, NonZeroU16::new(8080)).unwrap();
        // UDP, and TCP twice: queries and answers of pods and of the host; probes and their answers.
        assert_eq!(packets(&desired).len(), 2 * (3 * 4 + 2 * 2));
        for packet in packets(&desired) {
            let (network, transport) = (packet.network_header(), packet.transport_header());
            assert_eq!(network.len(), if packet.is_ipv4() { 20 } else { 40 });
            assert_eq!(transport.len(), if packet.is_tcp { 20 } else { 8 });
            let at = if packet.is_ipv4() { 9 } else { 6 };
            assert_eq!(network[at], Octet::known(packet.protocol()));
            let at = if packet.kind.is_answer() { 0 } else { 2 };
            assert_eq!(equals(&transport[at..at + 2], &packet.port.to_be_bytes()), Truth::Yes);
            if packet.is_tcp {
                assert_eq!(transport[13], Octet::partly(packet.tcp_flags(), TCP_KNOWN_FLAGS));
            }
        }
    }
}
