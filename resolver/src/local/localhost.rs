//! `local`: names that are this machine, whoever asks: `localhost`, what is below it, and the reverse zones of loopback.

use nodestub_corefile::config::answering::Local;
use nodestub_wire::{CLASS_IN, OwnedRecord, Rcode, Section, rtype};

use crate::asked::Asked;

/// Seconds of all these records (CoreDNS): a week.
const TTL: u32 = 604_800;

const LOCALHOST: &[u8] = b"\x09localhost\0";
const LABEL: &[u8] = b"\x09localhost";
const REVERSE: [&[u8]; 3] =
    [b"\x010\x07in-addr\x04arpa\0", b"\x03127\x07in-addr\x04arpa\0", b"\x03255\x07in-addr\x04arpa\0"];

/// One `local` at work.
#[derive(Debug)]
pub struct Localhost {
    prefix: bool,
}

impl Localhost {
    /// From what the Corefile says.
    pub fn new(config: &Local) -> Self {
        Self { prefix: config.localhost_prefix }
    }

    /// Whether this name (lower-cased wire form) is answered here.
    pub fn is_responsible(&self, name: &[u8]) -> bool {
        self.is_host(name) || zone_of(name).is_some()
    }

    /// `x.localhost`, or, as in old times, `localhost.x`.
    fn is_host(&self, name: &[u8]) -> bool {
        name.len() > LOCALHOST.len()
            && (ends_with_zone(name, LOCALHOST) || self.prefix && name.starts_with(LABEL))
    }

    /// The answer, if the name is one of these.
    pub fn answer(&self, asked: &Asked) -> Option<(Rcode, Vec<OwnedRecord>)> {
        let name = asked.name.as_slice();
        let lower = name.to_ascii_lowercase();
        if self.is_host(&lower) {
            let records =
                address(name, asked.qtype).map_or_else(|| vec![soa(name, Section::Authority)], |a| vec![a]);
            return Some((Rcode::NOERROR, records));
        }
        let zone = zone_of(&lower)?;
        // As the client wrote it.
        let zone = name.get(name.len() - zone.len()..).unwrap_or(zone);
        let is_apex = zone.len() == name.len();
        let is_loopback = lower == b"\x011\x010\x010\x03127\x07in-addr\x04arpa\0";
        let records = match asked.qtype {
            rtype::A | rtype::AAAA if lower == LOCALHOST => address(name, asked.qtype).into_iter().collect(),
            rtype::SOA if is_apex => vec![soa(name, Section::Answer)],
            rtype::NS if is_apex => vec![record(name, rtype::NS, LOCALHOST.to_vec(), Section::Answer)],
            _ if is_apex => vec![soa(name, Section::Authority)],
            rtype::PTR if is_loopback => vec![record(name, rtype::PTR, LOCALHOST.to_vec(), Section::Answer)],
            _ if is_loopback => vec![soa(zone, Section::Authority)],
            _ => return Some((Rcode::NXDOMAIN, vec![soa(zone, Section::Authority)])),
        };
        Some((Rcode::NOERROR, records))
    }
}

fn ends_with_zone(name: &[u8], zone: &[u8]) -> bool {
    let mut rest = name;
    while let Some((&length, tail)) = rest.split_first().filter(|(length, _)| **length > 0) {
        if rest == zone {
            return true;
        }
        rest = tail.get(usize::from(length)..).unwrap_or_default();
    }
    false
}

fn zone_of(name: &[u8]) -> Option<&'static [u8]> {
    REVERSE.into_iter().chain([LOCALHOST]).find(|zone| ends_with_zone(name, zone))
}

fn record(owner: &[u8], rtype: u16, data: Vec<u8>, section: Section) -> OwnedRecord {
    OwnedRecord { section, owner: owner.to_vec(), rtype, class: CLASS_IN, ttl: TTL, data }
}

fn address(name: &[u8], qtype: u16) -> Option<OwnedRecord> {
    let data = match qtype {
        rtype::A => vec![127, 0, 0, 1],
        rtype::AAAA => std::net::Ipv6Addr::LOCALHOST.octets().to_vec(),
        _ => return None,
    };
    Some(record(name, qtype, data, Section::Answer))
}

fn soa(owner: &[u8], section: Section) -> OwnedRecord {
    let mut data = [LOCALHOST, b"\x04root\x09localhost\0"].concat();
    for number in [1, 0, 0, 0, TTL] {
        data.extend(number.to_be_bytes());
    }
    record(owner, rtype::SOA, data, section)
}
