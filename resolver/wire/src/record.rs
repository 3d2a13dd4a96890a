//! Records that somebody rewrites: taken out of a packet with their names in full, and packed again.
//!
//! The slow side's alone, and only where a Corefile asks for it (`rewrite`, `loadbalance`, `dns64`, `minimal`): what is
//! passed on as it is stays the packet that it was. The case of names is kept, for a client may look at it.

use std::collections::HashMap;

use crate::answer::{Answer, OwnedAnswer};
use crate::cursor::{Cursor, Malformed};
use crate::header::{Flags, HEADER, Header, Rcode};
use crate::name::{MAX_LABEL, MAX_NAME};
use crate::reply::{Reply, Section};

/// A record that owns its bytes. Names in it are uncompressed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnedRecord {
    /// Where it stands.
    pub section: Section,
    /// Owner, in wire form, its case kept.
    pub owner: Vec<u8>,
    /// TYPE.
    pub rtype: u16,
    /// CLASS.
    pub class: u16,
    /// Seconds.
    pub ttl: u32,
    /// RDATA; names in it are uncompressed where their place is known.
    pub data: Vec<u8>,
}

/// Where names stand in the RDATA of a type: bytes before them, how many, and whether they may be compressed when they
/// are written (RFC 3597, 4: in the types of RFC 1035 only).
fn names_of(rtype: u16) -> Option<(usize, usize, bool)> {
    match rtype {
        2..=5 | 7..=9 | 12 => Some((0, 1, true)),
        39 => Some((0, 1, false)),
        6 | 14 => Some((0, 2, true)),
        17 => Some((0, 2, false)),
        15 => Some((2, 1, true)),
        18 | 21 | 36 => Some((2, 1, false)),
        33 => Some((6, 1, false)),
        _ => None,
    }
}

impl OwnedRecord {
    /// Takes all records of a reply, in their order.
    ///
    /// # Errors
    /// `packet` is not the one that `reply` was parsed from.
    pub fn unpack(packet: &[u8], reply: &Reply) -> Result<Vec<Self>, Malformed> {
        let one = |record: &crate::Record| {
            let mut data = Vec::new();
            let mut cursor = Cursor::new(packet, record.rdata_at);
            if let Some((before, names, _)) = names_of(record.rtype) {
                data.extend_from_slice(cursor.take(before)?);
                for _ in 0..names {
                    data.extend(cursor.name_as_written()?);
                }
            }
            data.extend_from_slice(packet.get(cursor.at()..record.end).ok_or(Malformed)?);
            Ok(Self {
                section: record.section,
                owner: Cursor::new(packet, record.start).name_as_written()?,
                rtype: record.rtype,
                class: record.class,
                ttl: record.ttl,
                data,
            })
        };
        reply.records.iter().map(one).collect()
    }

    /// Takes all records of an answer to this question (a name in wire form, as the answer's pointers mean it).
    /// `ttl`: seconds for every record; `None`: as they are.
    ///
    /// # Errors
    /// The answer was made for a question of another length.
    pub fn unpack_answer(
        name: &[u8],
        qtype: u16,
        qclass: u16,
        answer: &Answer<'_>,
        ttl: Option<u32>,
    ) -> Result<Vec<Self>, Malformed> {
        let [answers, authorities, additionals] = answer.counts;
        let header =
            Header { id: 0, flags: Flags(Flags::QR), counts: [1, answers, authorities, additionals] };
        let mut packet = header.to_bytes().to_vec();
        packet.extend_from_slice(name);
        packet.extend_from_slice(&qtype.to_be_bytes());
        packet.extend_from_slice(&qclass.to_be_bytes());
        packet.extend_from_slice(answer.records);
        let mut records = Self::unpack(&packet, &Reply::parse(&packet)?)?;
        if let Some(ttl) = ttl {
            for record in &mut records {
                record.ttl = ttl;
            }
        }
        Ok(records)
    }

    /// Packs records as the answer to a question. Records are ordered by section; inside one their order stays.
    /// `None`: they do not fit into a message.
    pub fn pack(name: &[u8], flags: Flags, rcode: Rcode, records: &[Self]) -> Option<OwnedAnswer> {
        let mut packer = Packer::new(name);
        let mut counts = [0_u16; 3];
        let mut ttl_offsets = Vec::with_capacity(records.len() * 2);
        for (section, count) in
            [Section::Answer, Section::Authority, Section::Additional].into_iter().zip(&mut counts)
        {
            for record in records.iter().filter(|record| record.section == section) {
                *count = count.checked_add(1)?;
                let offset = packer.record(record)?;
                ttl_offsets.extend_from_slice(&offset.to_le_bytes());
            }
        }
        Some(OwnedAnswer {
            flags: Flags(flags.0 & (Flags::AA | Flags::TC | Flags::RA | Flags::AD)),
            rcode,
            counts,
            ttl_offsets: ttl_offsets.into(),
            records: packer.packet.get(packer.start..)?.into(),
        })
    }

    /// The name in the data of the types that have one that may be rewritten: the target of CNAME, DNAME, NS, PTR, MX,
    /// SRV and NAPTR, and the server of SOA; as a range of `data`.
    pub fn value_name(&self) -> Option<std::ops::Range<usize>> {
        let start = match self.rtype {
            2 | 5 | 6 | 12 | 39 => 0,
            15 => 2,
            33 => 6,
            35 => {
                let mut at = 4;
                for _ in 0..3 {
                    at += 1 + usize::from(*self.data.get(at)?);
                }
                at
            }
            _ => return None,
        };
        let length = wire_len(self.data.get(start..)?)?;
        Some(start..start + length)
    }
}

/// Length of an uncompressed name at the front of `bytes`, its zero included.
fn wire_len(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        let length = usize::from(*bytes.get(at)?);
        if length > MAX_LABEL {
            return None;
        }
        at += 1 + length;
        if length == 0 {
            return (at <= MAX_NAME).then_some(at);
        }
    }
}

/// Writes names once, and points at them after that.
struct Packer {
    packet: Vec<u8>,
    /// Offset of the first record.
    start: usize,
    /// Lower-cased names and their tails, and where they stand.
    seen: HashMap<Vec<u8>, u16>,
}

impl Packer {
    fn new(name: &[u8]) -> Self {
        let mut packer = Self { packet: vec![0; HEADER], start: 0, seen: HashMap::new() };
        packer.name(name, true);
        packer.packet.extend_from_slice(&[0; 4]);
        packer.start = packer.packet.len();
        packer
    }

    fn name(&mut self, name: &[u8], compress: bool) {
        let mut rest = name;
        while let Some((&length, tail)) = rest.split_first().filter(|(length, _)| **length > 0) {
            let key = rest.to_ascii_lowercase();
            if let Some(at) = self.seen.get(&key).filter(|_| compress) {
                self.packet.extend_from_slice(&(0xC000 | at).to_be_bytes());
                return;
            }
            if let Some(at) = u16::try_from(self.packet.len()).ok().filter(|at| *at < 0x4000) {
                self.seen.entry(key).or_insert(at);
            }
            let Some((label, after)) = tail.split_at_checked(usize::from(length)) else { break };
            self.packet.push(length);
            self.packet.extend_from_slice(label);
            rest = after;
        }
        self.packet.push(0);
    }

    /// Appends a record, and returns where its TTL is, counted from the first record. `None`: there is no room.
    fn record(&mut self, record: &OwnedRecord) -> Option<u16> {
        self.name(&record.owner, true);
        self.packet.extend_from_slice(&record.rtype.to_be_bytes());
        self.packet.extend_from_slice(&record.class.to_be_bytes());
        let ttl_at = self.packet.len();
        self.packet.extend_from_slice(&record.ttl.to_be_bytes());
        let length_at = self.packet.len();
        self.packet.extend_from_slice(&[0; 2]);
        let data_at = self.packet.len();
        match names_of(record.rtype) {
            Some((before, names, compress)) => {
                let (head, mut rest) = record.data.split_at_checked(before)?;
                self.packet.extend_from_slice(head);
                for _ in 0..names {
                    let (name, after) = rest.split_at_checked(wire_len(rest)?)?;
                    self.name(name, compress);
                    rest = after;
                }
                self.packet.extend_from_slice(rest);
            }
            None => self.packet.extend_from_slice(&record.data),
        }
        let length = u16::try_from(self.packet.len() - data_at).ok()?;
        self.packet.get_mut(length_at..data_at)?.copy_from_slice(&length.to_be_bytes());
        if self.packet.len() > usize::from(u16::MAX) {
            return None;
        }
        u16::try_from(ttl_at - self.start).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CLASS_IN;

    const NAME: &[u8] = b"\x03www\x07Example\x03com\0";

    fn record(section: Section, owner: &[u8], rtype: u16, data: &[u8]) -> OwnedRecord {
        OwnedRecord { section, owner: owner.into(), rtype, class: CLASS_IN, ttl: 60, data: data.into() }
    }

    #[test]
    fn what_is_packed_unpacks_to_the_same_records_and_is_compressed() {
        let records = [
            record(Section::Answer, NAME, 5, b"\x03cdn\x07example\x03com\0"),
            record(Section::Answer, b"\x03cdn\x07example\x03com\0", 1, &[192, 0, 2, 1]),
            record(Section::Answer, b"\x07example\x03com\0", 15, b"\0\x0a\x04mail\x07example\x03com\0"),
            record(
                Section::Answer,
                b"\x07example\x03com\0",
                33,
                b"\0\x01\0\x02\0\x50\x03www\x07example\x03com\0",
            ),
            record(Section::Authority, b"\x03com\0", 6, &[b"\0\x01a\x03com\0".as_slice(), &[7; 20]].concat()),
            record(Section::Additional, b"\0", 16, b"\x02hi"),
        ];
        let packed = OwnedRecord::pack(NAME, Flags(Flags::AA), Rcode::NOERROR, &records).unwrap();
        assert_eq!((packed.counts, packed.first_ttl()), ([4, 1, 1], Some(60)));
        let unpacked = OwnedRecord::unpack_answer(NAME, 1, CLASS_IN, &packed.as_answer(), None).unwrap();
        assert_eq!(unpacked.len(), records.len());
        for (unpacked, record) in unpacked.iter().zip(&records) {
            assert_eq!(unpacked.owner.to_ascii_lowercase(), record.owner.to_ascii_lowercase());
            let lower = |data: &[u8]| data.to_ascii_lowercase();
            assert_eq!((unpacked.rtype, lower(&unpacked.data)), (record.rtype, lower(&record.data)));
        }
        let plain: usize = records.iter().map(|record| record.owner.len() + 10 + record.data.len()).sum();
        assert!(packed.records.len() < plain - 60, "{} of {plain}", packed.records.len());
    }

    #[test]
    fn finds_the_name_in_the_data_of_each_type_that_has_one() {
        let name = b"\x01a\0";
        for (rtype, before) in [(2, 0), (5, 0), (6, 0), (12, 0), (39, 0), (15, 2), (33, 6)] {
            let data = [&vec![9; before][..], name].concat();
            assert_eq!(record(Section::Answer, b"\0", rtype, &data).value_name(), Some(before..before + 3));
        }
        let naptr = [&[0, 1, 0, 2, 1, b'u', 0, 2, b'.', b'.'][..], name].concat();
        assert_eq!(record(Section::Answer, b"\0", 35, &naptr).value_name(), Some(10..13));
        assert_eq!(record(Section::Answer, b"\0", 35, &naptr[..5]).value_name(), None);
        assert_eq!(record(Section::Answer, b"\0", 1, &[1, 2, 3, 4]).value_name(), None);
    }

    #[test]
    fn what_does_not_fit_into_a_message_is_not_packed() {
        let long = record(Section::Answer, b"\0", 16, &[b"\xff".as_slice(), &[b'x'; 255]].concat());
        assert!(OwnedRecord::pack(NAME, Flags(0), Rcode::NOERROR, &vec![long; 300]).is_none());
    }
}
