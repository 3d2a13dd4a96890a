//! An answer as it is kept and given: the records of a packet, and where their TTLs are.
//!
//! A reply is built in the buffer that holds the query: id, question and its case stay where they are, the stored
//! records are appended, TTLs and header are patched:
//!
//! ```text
//!   buffer before:  | header | question | the client's OPT ... |
//!   buffer after:   | header'| question | stored records, TTLs patched | OPT' if the client speaks EDNS |
//! ```
//!
//! That works because a question has one length, whoever asks it: a compression pointer in the records still points
//! at what it meant, and one at the question now yields the case in which this client asked.

use crate::cursor::Malformed;
use crate::header::{Flags, HEADER, Header, Rcode};
use crate::query::{Edns, OPT, Query};
use crate::reply::{Reply, Section};

/// The records of a response without its OPT, borrowed from wherever they are kept.
#[derive(Debug, Clone, Copy)]
pub struct Answer<'a> {
    /// AA, TC, RA and AD of the response; the other bits depend on who asks.
    pub flags: Flags,
    /// The response code; all twelve bits.
    pub rcode: Rcode,
    /// Records in the answer, authority and additional section.
    pub counts: [u16; 3],
    /// Where the TTL of each record is, as offsets into `records`: pairs of bytes, little-endian, ascending.
    pub ttl_offsets: &'a [u8],
    /// The records, as they stood in the response's packet.
    pub records: &'a [u8],
}

/// An [`Answer`] that owns its bytes; the slow side's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnedAnswer {
    /// As in [`Answer`].
    pub flags: Flags,
    /// As in [`Answer`].
    pub rcode: Rcode,
    /// As in [`Answer`].
    pub counts: [u16; 3],
    /// As in [`Answer`].
    pub ttl_offsets: Box<[u8]>,
    /// As in [`Answer`].
    pub records: Box<[u8]>,
}

impl OwnedAnswer {
    /// Takes the records out of a response that [`Reply::parse`] has accepted.
    ///
    /// The OPT record is hop-by-hop and left out. Should additional records follow it, they are left out as well:
    /// closing the gap would bend compression pointers, and additional records are never needed.
    ///
    /// # Errors
    /// `packet` is not the one that `reply` was parsed from.
    pub fn from_reply(packet: &[u8], reply: &Reply) -> Result<Self, Malformed> {
        let end = reply.edns.as_ref().map_or(reply.end, |(_, place)| place.start);
        let records = packet.get(reply.question_end..end).ok_or(Malformed)?;
        let kept = || reply.records.iter().filter(|record| record.end <= end);
        let count = |section| {
            let number = kept().filter(|record| record.section == section).count();
            u16::try_from(number).map_err(|_| Malformed)
        };
        let mut ttl_offsets = Vec::with_capacity(reply.records.len() * 2);
        for record in kept() {
            let offset = u16::try_from(record.ttl_at - reply.question_end).map_err(|_| Malformed)?;
            ttl_offsets.extend_from_slice(&offset.to_le_bytes());
        }
        Ok(Self {
            flags: Flags(reply.header.flags.0 & (Flags::AA | Flags::TC | Flags::RA | Flags::AD)),
            rcode: reply.rcode(),
            counts: [count(Section::Answer)?, count(Section::Authority)?, count(Section::Additional)?],
            ttl_offsets: ttl_offsets.into(),
            records: records.into(),
        })
    }

    /// An answer without records.
    pub fn empty(rcode: Rcode) -> Self {
        Self { flags: Flags(0), rcode, counts: [0; 3], ttl_offsets: Box::default(), records: Box::default() }
    }

    /// TTL of the first record, in seconds; `None` where there is none.
    pub fn first_ttl(&self) -> Option<u32> {
        let offset = offsets(&self.ttl_offsets).next()?;
        let bytes = self.records.get(offset..offset + 4)?;
        Some(u32::from_be_bytes(bytes.try_into().ok()?))
    }

    /// The borrowed form.
    pub fn as_answer(&self) -> Answer<'_> {
        Answer {
            flags: self.flags,
            rcode: self.rcode,
            counts: self.counts,
            ttl_offsets: &self.ttl_offsets,
            records: &self.records,
        }
    }
}

impl Answer<'_> {
    /// Length of the whole reply to `query`, in bytes, if nothing is cut and no option is said.
    pub fn reply_len(&self, query: &Query) -> usize {
        query.question_end + self.records.len() + query.edns.map_or(0, |_| OPT)
    }

    /// Builds the reply to `query` in `buffer`, which has the query's packet in front, and returns its length.
    ///
    /// `ttl`: seconds that every record gets; `None` leaves them as they are. `limit`: most bytes that the client
    /// takes; what does not fit is left out record by record, from the end, and TC is set (as CoreDNS does, for
    /// additional records too). `None` is returned, and the buffer left as it was, when `buffer` is too small for a
    /// reply that the client would take.
    pub fn write(&self, buffer: &mut [u8], query: &Query, ttl: Option<u32>, limit: usize) -> Option<usize> {
        self.write_with_options(buffer, query, ttl, limit, &[])
    }

    /// As [`Answer::write`], with these options in the OPT record (as they stand in one). Who sent no OPT gets none.
    #[inline]
    pub fn write_with_options(
        &self,
        buffer: &mut [u8],
        query: &Query,
        ttl: Option<u32>,
        limit: usize,
        options: &[u8],
    ) -> Option<usize> {
        // The upper bits of a code have their place in the OPT record only: without one, BADVERS would read NOERROR.
        let unsayable = query.edns.is_none() && self.rcode.0 > 0xF;
        let rcode = if unsayable { Rcode::SERVFAIL } else { self.rcode };
        let opt = query.edns.map(|edns| opt_for(edns, rcode, options.len()));
        let opt_len = opt.map_or(0, |opt| opt.len() + options.len());
        let room = limit.saturating_sub(query.question_end + opt_len);
        let (records, counts, cut) = if self.records.len() <= room {
            (self.records, self.counts, false)
        } else {
            let (records, counts) = self.fitting(room);
            (records, counts, true)
        };
        let records_end = query.question_end + records.len();
        let end = records_end + opt_len;
        if end > buffer.len() {
            return None;
        }
        let place = buffer.get_mut(query.question_end..records_end)?;
        place.copy_from_slice(records);
        if let Some(ttl) = ttl {
            patch_ttls(place, self.ttl_offsets, ttl);
        }
        if let Some(opt) = opt {
            let place = buffer.get_mut(records_end..end)?;
            let (head, tail) = place.split_at_mut_checked(opt.len())?;
            head.copy_from_slice(&opt);
            if !options.is_empty() {
                tail.copy_from_slice(options);
            }
        }
        let mut flags = query.flags.response(rcode).0 | self.flags.0;
        if cut {
            flags |= Flags::TC;
        }
        if !query.dnssec_ok() && !query.flags.has(Flags::AD) {
            flags &= !Flags::AD; // RFC 6840, 5.8: only for those who asked
        }
        let [answers, authorities, additionals] = counts;
        let header = Header {
            id: query.id,
            flags: Flags(flags),
            counts: [1, answers, authorities, additionals + u16::from(opt.is_some())],
        };
        buffer.get_mut(..HEADER)?.copy_from_slice(&header.to_bytes());
        Some(end)
    }

    /// The longest run of whole records that has at most `room` bytes, and how many of each section are in it.
    fn fitting(&self, room: usize) -> (&[u8], [u16; 3]) {
        let mut end = 0;
        let mut left = self.counts;
        let mut counts = [0; 3];
        for offset in offsets(self.ttl_offsets) {
            // TTL (4), RDLENGTH (2), RDATA
            let Some(&[high, low]) = self.records.get(offset + 4..offset + 6) else { break };
            let record_end = offset + 6 + usize::from(u16::from_be_bytes([high, low]));
            let section = left.iter_mut().zip(&mut counts).find(|(left, _)| **left > 0);
            let Some((left, count)) = section else { break };
            if record_end > room {
                break;
            }
            *left -= 1;
            *count += 1;
            end = record_end;
        }
        (self.records.get(..end).unwrap_or_default(), counts)
    }
}

/// Builds a reply without records in `buffer`, which has the query in front, and returns its length. A query that
/// could not be read (`None`) gets the header alone.
pub fn write_error(buffer: &mut [u8], query: Option<&Query>, rcode: Rcode) -> Option<usize> {
    if let Some(query) = query {
        return OwnedAnswer::empty(rcode).as_answer().write(buffer, query, None, usize::MAX);
    }
    let header = Header::parse(buffer).ok()?;
    let reply = Header { id: header.id, flags: header.flags.response(rcode), counts: [0; 4] };
    buffer.get_mut(..HEADER)?.copy_from_slice(&reply.to_bytes());
    Some(HEADER)
}

/// Our OPT in a reply: version 0, the client's size and DO, and the length of the options that follow.
fn opt_for(client: Edns, rcode: Rcode, options: usize) -> [u8; OPT] {
    let extended_rcode = u8::try_from(rcode.0 >> 4).unwrap_or_default();
    let mut opt = Edns { version: 0, extended_rcode, ..client }.to_bytes();
    if options > 0 {
        let [.., high, low] = &mut opt;
        [*high, *low] = u16::try_from(options).unwrap_or_default().to_be_bytes();
    }
    opt
}

fn patch_ttls(records: &mut [u8], ttl_offsets: &[u8], ttl: u32) {
    let ttl = ttl.to_be_bytes();
    for offset in offsets(ttl_offsets) {
        // Offsets past a cut are simply not there any more.
        let Some(place) = records.get_mut(offset..offset + ttl.len()) else { break };
        place.copy_from_slice(&ttl);
    }
}

fn offsets(ttl_offsets: &[u8]) -> impl Iterator<Item = usize> {
    ttl_offsets.as_chunks::<2>().0.iter().map(|&pair| usize::from(u16::from_le_bytes(pair)))
}
