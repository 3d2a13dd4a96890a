//! A client's question, checked before anything else looks at it.
//!
//! What passes and what does not is CoreDNS's admission (miekg/dns `acceptfunc.go`): a response is ignored, an opcode
//! other than QUERY is NOTIMP, and counts that no query has are FORMERR. Nothing is allocated, nothing borrowed.

use crate::cursor::{Cursor, Malformed, NameBuf};
use crate::header::{Flags, HEADER, Header, Rcode, rtype};

/// What to do with a packet that came from a client.
// The large variant is the common one, and lives on the stack of the thread that reads the packet.
#[expect(clippy::large_enum_variant, reason = "boxing the query would allocate on the fast side")]
#[derive(Debug)]
pub enum Admission {
    /// Answer it.
    Accept(Query),
    /// Not a query at all: a response, or shorter than a header. Saying anything could start a loop.
    Ignore,
    /// Answer with this code and no question.
    Reject(Rcode),
}

/// A query with exactly one question.
#[derive(Debug, Clone)]
pub struct Query {
    /// Message id.
    pub id: u16,
    /// As the client sent them.
    pub flags: Flags,
    /// The name, lower-cased.
    pub name: NameBuf,
    /// QTYPE.
    pub qtype: u16,
    /// QCLASS.
    pub qclass: u16,
    /// Offset of the byte after the question; a reply's records start here.
    pub question_end: usize,
    /// The client's EDNS, if it speaks it.
    pub edns: Option<Edns>,
    /// Where the options of the client's OPT stand in the packet: from, to.
    pub edns_options: (u16, u16),
}

/// What an OPT record says (RFC 6891, 6.1). Options are not kept: those that nobody handled are not echoed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Edns {
    /// Largest UDP payload that the sender takes, in bytes.
    pub udp_size: u16,
    /// The high eight bits of the RCODE.
    pub extended_rcode: u8,
    /// 0 is the only one there is.
    pub version: u8,
    /// DNSSEC OK.
    pub dnssec_ok: bool,
}

/// Smallest UDP payload that every client takes, in bytes (RFC 1035, 4.2.1).
pub const MIN_UDP_PAYLOAD: u16 = 512;

/// Largest UDP payload that can be sent by IPv4, in bytes; the kernel refuses more, whatever the client would take.
pub const MAX_UDP_PAYLOAD: u16 = u16::MAX - 20 - 8;

impl Query {
    /// Whether, and how, a packet from a client is answered.
    pub fn admit(packet: &[u8]) -> Admission {
        let Ok(header) = Header::parse(packet) else { return Admission::Ignore };
        if header.flags.has(Flags::QR) {
            return Admission::Ignore;
        }
        if header.flags.opcode() != 0 {
            return Admission::Reject(Rcode::NOTIMP);
        }
        match Self::parse(packet, header) {
            Ok(query) => Admission::Accept(query),
            Err(Malformed) => Admission::Reject(Rcode::FORMERR),
        }
    }

    fn parse(packet: &[u8], header: Header) -> Result<Self, Malformed> {
        let [questions, answers, authorities, additionals] = header.counts;
        // IXFR has an SOA in its authority section, EDNS and TSIG are additional records.
        if questions != 1 || answers > 1 || authorities > 1 || additionals > 2 {
            return Err(Malformed);
        }
        let mut cursor = Cursor::new(packet, HEADER);
        let name = cursor.name()?;
        let (qtype, qclass) = (cursor.u16()?, cursor.u16()?);
        let question_end = cursor.at();
        let mut edns = None;
        let mut edns_options = (0, 0);
        for _ in 0..answers + authorities + additionals {
            let root_owner = packet.get(cursor.at()) == Some(&0);
            cursor.skip_name()?;
            let (record_type, class) = (cursor.u16()?, cursor.u16()?);
            let ttl = cursor.u32()?;
            let length = cursor.u16()?;
            let data_at = cursor.at();
            cursor.take(usize::from(length))?;
            if record_type == rtype::OPT {
                // RFC 6891, 6.1.1: more than one, or one with an owner, is FORMERR.
                if edns.is_some() || !root_owner {
                    return Err(Malformed);
                }
                edns = Some(Edns::from_record(class, ttl));
                let place = |at: usize| u16::try_from(at).map_err(|_| Malformed);
                edns_options = (place(data_at)?, place(cursor.at())?);
            }
        }
        Ok(Self { id: header.id, flags: header.flags, name, qtype, qclass, question_end, edns, edns_options })
    }

    /// The options of the client's OPT: code and data. `packet` is the one that was admitted. Stops at what is cut.
    pub fn options<'a>(&self, packet: &'a [u8]) -> impl Iterator<Item = (u16, &'a [u8])> {
        let (start, end) = self.edns_options;
        let mut cursor = Cursor::new(packet.get(..usize::from(end)).unwrap_or_default(), usize::from(start));
        std::iter::from_fn(move || {
            let (code, length) = (cursor.u16().ok()?, cursor.u16().ok()?);
            Some((code, cursor.take(usize::from(length)).ok()?))
        })
    }

    /// DNSSEC OK: RRSIGs are wanted.
    pub fn dnssec_ok(&self) -> bool {
        self.edns.is_some_and(|edns| edns.dnssec_ok)
    }

    /// Checking disabled.
    pub fn checking_disabled(&self) -> bool {
        self.flags.has(Flags::CD)
    }

    /// Largest UDP payload that this client takes and that can be sent, in bytes: what its OPT says, at least 512.
    pub fn udp_limit(&self) -> usize {
        let announced = self.edns.map_or(MIN_UDP_PAYLOAD, |edns| edns.udp_size);
        usize::from(announced.clamp(MIN_UDP_PAYLOAD, MAX_UDP_PAYLOAD))
    }
}

impl Edns {
    /// From the CLASS and TTL fields of an OPT record.
    pub(crate) fn from_record(class: u16, ttl: u32) -> Self {
        let [extended_rcode, version, flags, _] = ttl.to_be_bytes();
        Self { udp_size: class, extended_rcode, version, dnssec_ok: flags & 0x80 != 0 }
    }

    /// The record without options, 11 bytes.
    pub fn to_bytes(self) -> [u8; OPT] {
        let [size_high, size_low] = self.udp_size.to_be_bytes();
        let flags = if self.dnssec_ok { 0x80 } else { 0 };
        [0, 0, 41, size_high, size_low, self.extended_rcode, self.version, flags, 0, 0, 0]
    }
}

/// Length of an OPT record without options, in bytes.
pub const OPT: usize = 11;

#[cfg(test)]
mod tests {
    use super::*;

    fn query(extra: &[u8], counts: [u16; 4]) -> Vec<u8> {
        let header = Header { id: 0x1234, flags: Flags(Flags::RD), counts };
        let mut packet = header.to_bytes().to_vec();
        packet.extend(b"\x07EXAMPLE\x03Com\0\0\x01\0\x01");
        packet.extend(extra);
        packet
    }

    const EDNS: &[u8] = b"\0\0\x29\x04\xd0\0\0\x80\0\0\0";

    #[test]
    fn reads_the_question_and_lower_cases_the_name() {
        let Admission::Accept(query) = Query::admit(&query(EDNS, [1, 0, 0, 1])) else {
            panic!("not accepted")
        };
        assert_eq!(query.name.as_bytes(), b"\x07example\x03com\0");
        assert_eq!((query.id, query.qtype, query.qclass, query.question_end), (0x1234, 1, 1, 29));
        assert_eq!(
            query.edns.unwrap(),
            Edns { udp_size: 1232, extended_rcode: 0, version: 0, dnssec_ok: true }
        );
        assert_eq!(query.edns.unwrap().to_bytes(), EDNS);
    }

    #[test]
    fn shows_the_options_of_the_client() {
        let opt = b"\0\0\x29\x04\xd0\0\0\0\0\0\x0a\0\x03\0\0\xff\xee\0\x02hi";
        let packet = query(opt, [1, 0, 0, 1]);
        let Admission::Accept(query) = Query::admit(&packet) else { panic!("not accepted") };
        let options: Vec<_> = query.options(&packet).collect();
        assert_eq!(options, [(3, &b""[..]), (0xffee, &b"hi"[..])]);
    }

    #[test]
    fn ignores_responses_and_stumps() {
        let mut response = query(&[], [1, 0, 0, 0]);
        response[2] |= 0x80;
        assert!(matches!(Query::admit(&response), Admission::Ignore));
        assert!(matches!(Query::admit(&response[..11]), Admission::Ignore));
    }

    #[test]
    fn rejects_what_no_query_has() {
        let mut notify = query(&[], [1, 0, 0, 0]);
        notify[2] |= 4 << 3;
        assert!(matches!(Query::admit(&notify), Admission::Reject(Rcode::NOTIMP)));
        for (extra, counts) in [
            (&b""[..], [0, 0, 0, 0]),
            (b"", [2, 0, 0, 0]),
            (b"", [65535, 0, 0, 0]),
            (b"", [1, 2, 0, 0]),
            (b"", [1, 0, 0, 3]),
            (b"", [1, 0, 0, 1]),
            (&[EDNS, EDNS].concat(), [1, 0, 0, 2]),
            (&[b"\x01a", EDNS].concat(), [1, 0, 0, 1]),
        ] {
            let packet = query(extra, counts);
            assert!(matches!(Query::admit(&packet), Admission::Reject(Rcode::FORMERR)), "{counts:?}");
        }
    }
}
