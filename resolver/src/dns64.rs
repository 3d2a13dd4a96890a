//! `dns64`: IPv6 addresses for names that have IPv4 addresses alone (RFC 6147).

use std::net::{Ipv4Addr, Ipv6Addr};

use nodestub_corefile::config::answering::Dns64;
use nodestub_wire::{OwnedRecord, Rcode, Section, rtype};

/// TTL where the denial had no SOA, in seconds (RFC 6147, 5.1.7).
const DEFAULT_TTL: u32 = 600;

/// Whether the answer to a question for AAAA calls for addresses of ours.
pub fn is_wanted(config: &Dns64, rcode: Rcode, records: &[OwnedRecord]) -> bool {
    let answers = || records.iter().filter(|record| record.section == Section::Answer);
    // A name that does not exist has no addresses of either kind. With records, CoreDNS takes it for no such denial.
    if rcode == Rcode::NXDOMAIN && answers().next().is_none() {
        return false;
    }
    config.translate_all || !answers().any(|record| record.rtype == rtype::AAAA)
}

/// The records for an answer: those of the answer to the question for A, translated. `denial`: those of the answer to the
/// question for AAAA.
pub fn synthesize(config: &Dns64, denial: &[OwnedRecord], found: Vec<OwnedRecord>) -> Vec<OwnedRecord> {
    let soa =
        denial.iter().rfind(|record| record.section == Section::Authority && record.rtype == rtype::SOA);
    let most = soa.map_or(DEFAULT_TTL, |record| record.ttl);
    let translate = |mut record: OwnedRecord| {
        if record.section == Section::Answer
            && record.rtype == rtype::A
            && let Ok(address) = <[u8; 4]>::try_from(record.data.as_slice())
        {
            record.rtype = rtype::AAAA;
            record.ttl = record.ttl.min(most);
            record.data = embed(config.prefix, config.length, Ipv4Addr::from(address)).octets().to_vec();
        }
        record
    };
    found.into_iter().map(translate).collect()
}

/// RFC 6052, 2.2: the address behind the prefix, around bits 64 to 71, which are 0.
fn embed(prefix: Ipv6Addr, length: u8, address: Ipv4Addr) -> Ipv6Addr {
    let mut octets = [0; 16];
    let kept = usize::from(length / 8);
    for (place, octet) in octets.iter_mut().zip(prefix.octets()).take(kept) {
        *place = octet;
    }
    let places = octets.iter_mut().enumerate().skip(kept).filter(|(index, _)| *index != 8);
    for ((_, place), octet) in places.zip(address.octets()) {
        *place = octet;
    }
    Ipv6Addr::from(octets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn embeds_as_rfc_6052_shows_it() {
        for (length, expected) in [
            (32, "2001:db8:c000:221::"),
            (40, "2001:db8:1c0:2:21::"),
            (48, "2001:db8:122:c000:2:2100::"),
            (56, "2001:db8:122:3c0:0:221::"),
            (64, "2001:db8:122:344:c0:2:2100::"),
            (96, "2001:db8:122:344::192.0.2.33"),
        ] {
            let prefix: Ipv6Addr = "2001:db8:122:344::".parse().unwrap();
            let found = embed(prefix, length, Ipv4Addr::new(192, 0, 2, 33));
            assert_eq!(found, expected.parse::<Ipv6Addr>().unwrap(), "/{length}");
        }
    }
}
