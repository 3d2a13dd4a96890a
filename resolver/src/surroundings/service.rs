//! The cluster DNS is asked where a Service is: A and AAAA, over UDP, by a socket that takes answers from there only.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use nodestub_wire::{Ask, CLASS_IN, Name, Rcode, Reply, Section, rtype};
use rand::Rng;
use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout_at};

/// The port of the cluster DNS.
pub(super) const PORT: u16 = 53;
/// How long one question waits for its answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// Datagrams that are looked at while it waits.
const MAX_LOOKED_AT: usize = 16;
/// The most addresses of one family that are taken from an answer; a Service has one.
const MAX_ADDRESSES: usize = 4;
/// The longest answer that is read, in octets.
const MAX_ANSWER: usize = 4096;

/// What the cluster DNS says about a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Said {
    /// It is there, IPv4 first.
    There(Vec<IpAddr>),
    /// There is none of that name, or it has no address.
    NotThere,
    /// Nothing that could be relied on.
    Nothing,
}

pub(super) async fn ask(server: SocketAddr, name: &Name) -> Said {
    let mut addresses = Vec::new();
    for qtype in [rtype::A, rtype::AAAA] {
        match ask_addresses(server, name, qtype, MAX_ADDRESSES).await {
            Some(Ok(found)) => addresses.extend(found),
            Some(Err(Rcode::NXDOMAIN)) => return Said::NotThere,
            _ => return Said::Nothing,
        }
    }
    if addresses.is_empty() { Said::NotThere } else { Said::There(addresses) }
}

/// The addresses (`most` at most), or a response code that is none of success; `None`: no answer.
pub async fn ask_addresses(
    server: SocketAddr,
    name: &Name,
    qtype: u16,
    most: usize,
) -> Option<Result<Vec<IpAddr>, Rcode>> {
    let ask = Ask {
        name: name.as_bytes().into(),
        qtype,
        qclass: CLASS_IN,
        recursion_desired: true,
        checking_disabled: false,
        dnssec_ok: false,
        options: Box::default(),
    };
    let id: u16 = rand::rng().random();
    let any: IpAddr =
        if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await.ok()?;
    socket.connect(server).await.ok()?;
    socket.send(&ask.to_packet(id, true)).await.ok()?;
    let end = Instant::now() + PATIENCE;
    let mut packet = vec![0; MAX_ANSWER];
    for _ in 0..MAX_LOOKED_AT {
        let length = timeout_at(end, socket.recv(&mut packet)).await.ok()?.ok()?;
        let octets = packet.get(..length)?;
        let Ok(reply) = Reply::parse(octets) else { continue };
        let is_ours = reply.header.id == id
            && *reply.name.as_bytes() == *ask.name
            && (reply.qtype, reply.qclass) == (qtype, CLASS_IN);
        if is_ours {
            return Some(read(octets, &reply, most));
        }
    }
    None
}

fn read(packet: &[u8], reply: &Reply, most: usize) -> Result<Vec<IpAddr>, Rcode> {
    let rcode = reply.header.flags.rcode();
    if rcode != Rcode::NOERROR {
        return Err(rcode);
    }
    let answers = reply.records.iter().filter(|record| {
        record.section == Section::Answer && (record.rtype, record.class) == (reply.qtype, CLASS_IN)
    });
    let addresses = answers.filter_map(|record| {
        let data = packet.get(record.rdata_at..record.end)?;
        match record.rtype {
            rtype::A => <[u8; 4]>::try_from(data).ok().map(IpAddr::from),
            rtype::AAAA => <[u8; 16]>::try_from(data).ok().map(IpAddr::from),
            _ => None,
        }
    });
    Ok(addresses.take(most).collect())
}
