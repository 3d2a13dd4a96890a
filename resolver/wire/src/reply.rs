//! An upstream's answer, walked once and checked whole.
//!
//! [`Reply::parse`] is strict where a cache could be poisoned or a client confused: every count is met by a record,
//! every name is well formed (those inside the RDATA of the types that may be compressed as well), nothing points
//! outside the packet, or through a TTL, which will be written over. Its result is a list of places in the packet; no
//! record becomes an object.

use crate::cursor::{Cursor, Malformed, NameBuf};
use crate::header::{Flags, HEADER, Header, Rcode, rtype};
use crate::query::Edns;

/// A response with exactly one question, as places in its packet.
#[derive(Debug, Clone)]
pub struct Reply {
    /// As received.
    pub header: Header,
    /// The question's name, lower-cased.
    pub name: NameBuf,
    /// QTYPE.
    pub qtype: u16,
    /// QCLASS.
    pub qclass: u16,
    /// Offset of the byte after the question.
    pub question_end: usize,
    /// All records but the OPT, in order.
    pub records: Vec<Record>,
    /// The upstream's EDNS, and where its record lies.
    pub edns: Option<(Edns, Range)>,
    /// Offset of the byte after the last record; what follows is ignored.
    pub end: usize,
}

/// From a byte to before a byte, from the packet's start.
pub type Range = std::ops::Range<usize>;

/// One record other than OPT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// Where it stands.
    pub section: Section,
    /// TYPE.
    pub rtype: u16,
    /// CLASS.
    pub class: u16,
    /// TTL in seconds; a value with the top bit set counts as 0 (RFC 2181, 8).
    pub ttl: u32,
    /// Offset of the owner name.
    pub start: usize,
    /// Offset of the four bytes of the TTL.
    pub ttl_at: usize,
    /// Offset of the RDATA.
    pub rdata_at: usize,
    /// Offset of the byte after it.
    pub end: usize,
}

/// The three sections that have records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Section {
    /// Answer.
    Answer,
    /// Authority.
    Authority,
    /// Additional.
    Additional,
}

/// Most records that a reply may have. A 64 KiB message holds at most 5,957 (11 bytes each); this is what keeps a
/// hostile one from costing more than a few microseconds.
pub const MAX_RECORDS: usize = 4096;

impl Reply {
    /// Walks a whole response.
    ///
    /// # Errors
    /// Anything that breaks a rule of the module comment.
    pub fn parse(packet: &[u8]) -> Result<Self, Malformed> {
        let header = Header::parse(packet)?;
        let [questions, answers, authorities, additionals] = header.counts;
        if !header.flags.has(Flags::QR) || questions != 1 {
            return Err(Malformed);
        }
        let mut cursor = Cursor::new(packet, HEADER);
        let name = cursor.name()?;
        let (qtype, qclass) = (cursor.u16()?, cursor.u16()?);
        let question_end = cursor.at();
        let total = usize::from(answers) + usize::from(authorities) + usize::from(additionals);
        if total > MAX_RECORDS {
            return Err(Malformed);
        }
        let mut records = Vec::with_capacity(total.min(64));
        let mut ttl_offsets = Vec::with_capacity(records.capacity());
        let mut edns = None;
        for (section, count) in [
            (Section::Answer, answers),
            (Section::Authority, authorities),
            (Section::Additional, additionals),
        ] {
            for _ in 0..count {
                let record = Record::parse(packet, &mut cursor, section, &mut ttl_offsets)?;
                if record.rtype == rtype::OPT {
                    if edns.is_some() || section != Section::Additional {
                        return Err(Malformed);
                    }
                    edns = Some((Edns::from_record(record.class, record.ttl), record.start..record.end));
                } else {
                    let ttl = if record.ttl > i32::MAX as u32 { 0 } else { record.ttl };
                    records.push(Record { ttl, ..record });
                }
            }
        }
        Ok(Self { header, name, qtype, qclass, question_end, records, edns, end: cursor.at() })
    }

    /// Whether this answers a query with that id and question.
    pub fn answers(&self, id: u16, name: &[u8], qtype: u16, qclass: u16) -> bool {
        self.header.id == id
            && self.header.flags.opcode() == 0
            && (self.qtype, self.qclass) == (qtype, qclass)
            && self.name.as_bytes() == name
    }

    /// All twelve bits of the response code.
    pub fn rcode(&self) -> Rcode {
        let high = self.edns.as_ref().map_or(0, |(edns, _)| u16::from(edns.extended_rcode));
        Rcode(high << 4 | self.header.flags.rcode().0)
    }

    /// The records of one section.
    pub fn section(&self, section: Section) -> impl Iterator<Item = &Record> {
        self.records.iter().filter(move |record| record.section == section)
    }

    /// The MINIMUM field of the SOA in the authority section, in seconds: how long a denial holds (RFC 2308, 5).
    pub fn soa_minimum(&self, packet: &[u8]) -> Option<u32> {
        let soa = self.section(Section::Authority).find(|record| record.rtype == rtype::SOA)?;
        let at = soa.end.checked_sub(4)?;
        Cursor::new(packet, at).u32().ok()
    }
}

impl Record {
    fn parse(
        packet: &[u8],
        cursor: &mut Cursor<'_>,
        section: Section,
        ttl_offsets: &mut Vec<usize>,
    ) -> Result<Self, Malformed> {
        let start = cursor.at();
        cursor.skip_name_beside(ttl_offsets)?;
        let (record_type, class) = (cursor.u16()?, cursor.u16()?);
        let ttl_at = cursor.at();
        ttl_offsets.push(ttl_at);
        let ttl = cursor.u32()?;
        let length = usize::from(cursor.u16()?);
        let rdata_at = cursor.at();
        cursor.take(length)?;
        let end = cursor.at();
        check_names_in_rdata(packet, record_type, rdata_at..end, ttl_offsets)?;
        Ok(Self { section, rtype: record_type, class, ttl, start, ttl_at, rdata_at, end })
    }
}

/// Checks the names within RDATA that a client's library will follow. Other types have none, or none that may be
/// compressed (RFC 3597, 4), and pass as bytes.
fn check_names_in_rdata(
    packet: &[u8],
    record_type: u16,
    Range { start, end }: Range,
    ttl_offsets: &[usize],
) -> Result<(), Malformed> {
    let mut cursor = Cursor::new(packet, start);
    match record_type {
        1 => return if end - start == 4 { Ok(()) } else { Err(Malformed) },
        28 => return if end - start == 16 { Ok(()) } else { Err(Malformed) },
        // NS, MD, MF, CNAME, MB, MG, MR, PTR, DNAME
        2..=5 | 7..=9 | 12 | 39 => cursor.skip_name_beside(ttl_offsets)?,
        // SOA: two names, five numbers
        6 => {
            cursor.skip_name_beside(ttl_offsets)?;
            cursor.skip_name_beside(ttl_offsets)?;
            cursor.take(20)?;
        }
        // MINFO, RP
        14 | 17 => {
            cursor.skip_name_beside(ttl_offsets)?;
            cursor.skip_name_beside(ttl_offsets)?;
        }
        // MX, AFSDB, RT, KX
        15 | 18 | 21 | 36 => {
            cursor.take(2)?;
            cursor.skip_name_beside(ttl_offsets)?;
        }
        // SRV
        33 => {
            cursor.take(6)?;
            cursor.skip_name_beside(ttl_offsets)?;
        }
        _ => return Ok(()),
    }
    if cursor.at() == end { Ok(()) } else { Err(Malformed) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rejects_a_name_that_leads_through_a_ttl() {
        let mut packet = vec![0, 1, 0x84, 0, 0, 1, 0, 2, 0, 0, 0, 0];
        packet.extend(b"\x01a\0\0\x01\0\x01"); // question: a. IN A, offsets 12 to 18
        packet.extend(b"\xc0\x0c\0\x01\0\x01"); // owner, type, class: offsets 19 to 24
        packet.extend(b"\x01b\0\0\0\x04\x0a\0\0\x01"); // a TTL that reads as the name b.: offset 25
        packet.extend(b"\xc0\x19\0\x01\0\x01\0\0\0\x3c\0\x04\x0a\0\0\x02");
        assert_eq!(Reply::parse(&packet).unwrap_err(), Malformed);
        let last = packet.len() - 16;
        packet[last + 1] = 0x0C;
        assert_eq!(Reply::parse(&packet).unwrap().records.len(), 2);
    }
}
