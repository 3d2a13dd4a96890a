//! Answers of a record or two: `any`, `chaos`, `whoami`.

use std::net::IpAddr;

use nodestub_corefile::config::answering::Chaos;
use nodestub_wire::{CLASS_IN, OwnedRecord, Section, rtype};
use rand::seq::SliceRandom;

use crate::asked::Asked;
use crate::chain::host_name;

const TXT: u16 = 16;
const SRV: u16 = 33;
const CLASS_CHAOS: u16 = 3;

/// Seconds of the record that stands for all (CoreDNS: the number of its RFC).
const ANY_TTL: u32 = 8482;

/// `any`: one record in place of all (RFC 8482, 4.2).
pub fn any(asked: &Asked) -> OwnedRecord {
    let data = [string("ANY obsoleted"), string("See RFC 8482")].concat();
    OwnedRecord {
        section: Section::Answer,
        owner: asked.name.clone(),
        rtype: rtype::HINFO,
        class: CLASS_IN,
        ttl: ANY_TTL,
        data,
    }
}

/// What we call ourselves where CoreDNS says its name and version.
pub const VERSION: &str = concat!("Nodestub-", env!("CARGO_PKG_VERSION"));

/// `chaos`: who we are, for those who ask in class CH. `None`: another question.
pub fn chaos(config: &Chaos, asked: &Asked) -> Option<Vec<OwnedRecord>> {
    if asked.qclass != CLASS_CHAOS || asked.qtype != TXT {
        return None;
    }
    let texts = match asked.text().as_str() {
        "version.bind." | "version.server." => {
            vec![config.version.clone().unwrap_or_else(|| VERSION.to_owned())]
        }
        "authors.bind." => {
            let mut authors = config.authors.clone();
            authors.shuffle(&mut rand::rng());
            authors
        }
        "hostname.bind." | "id.server." => vec![host_name()],
        _ => return None,
    };
    let record = |text: &String| OwnedRecord {
        section: Section::Answer,
        owner: asked.name.clone(),
        rtype: TXT,
        class: CLASS_CHAOS,
        ttl: 0,
        data: string(text),
    };
    Some(texts.iter().map(record).collect())
}

/// `whoami`: the client's own address, port and transport.
pub fn whoami(asked: &Asked) -> Vec<OwnedRecord> {
    let (rtype, address) = match asked.client_ip() {
        IpAddr::V4(address) => (rtype::A, address.octets().to_vec()),
        IpAddr::V6(address) => (rtype::AAAA, address.octets().to_vec()),
    };
    let protocol = asked.protocol.label();
    let mut owner = vec![u8::try_from(protocol.len() + 1).unwrap_or_default(), b'_'];
    owner.extend_from_slice(protocol.as_bytes());
    owner.extend_from_slice(&asked.name);
    let mut target = vec![0, 0, 0, 0];
    target.extend(asked.client.port().to_be_bytes());
    target.push(0);
    let record = |owner: Vec<u8>, rtype, data| OwnedRecord {
        section: Section::Additional,
        owner,
        rtype,
        class: asked.qclass,
        ttl: 0,
        data,
    };
    let mut records = vec![record(asked.name.clone(), rtype, address)];
    // A name so long that nothing fits in front of it has no such record.
    if owner.len() <= nodestub_wire::MAX_NAME {
        records.push(record(owner, SRV, target));
    }
    records
}

/// A string of TXT or HINFO, cut to what fits into one.
fn string(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let bytes = bytes.get(..255).unwrap_or(bytes);
    let mut data = vec![u8::try_from(bytes.len()).unwrap_or(u8::MAX)];
    data.extend_from_slice(bytes);
    data
}
