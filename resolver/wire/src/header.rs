//! The twelve bytes in front (RFC 1035, 4.1.1) and the numbers that stand in them.

use crate::cursor::{Cursor, Malformed};

/// Length of a header, in bytes.
pub const HEADER: usize = 12;

/// The header of a message, by value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Header {
    /// Message id.
    pub id: u16,
    /// QR, OPCODE, AA, TC, RD, RA, Z, AD, CD, RCODE.
    pub flags: Flags,
    /// QDCOUNT, ANCOUNT, NSCOUNT, ARCOUNT.
    pub counts: [u16; 4],
}

impl Header {
    /// Reads the first twelve bytes.
    ///
    /// # Errors
    /// The packet is shorter.
    pub fn parse(packet: &[u8]) -> Result<Self, Malformed> {
        let mut cursor = Cursor::new(packet, 0);
        Ok(Self {
            id: cursor.u16()?,
            flags: Flags(cursor.u16()?),
            counts: [cursor.u16()?, cursor.u16()?, cursor.u16()?, cursor.u16()?],
        })
    }

    /// The twelve bytes.
    pub fn to_bytes(self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        let words = [self.id, self.flags.0].into_iter().chain(self.counts);
        for (place, word) in bytes.chunks_exact_mut(2).zip(words) {
            place.copy_from_slice(&word.to_be_bytes());
        }
        bytes
    }
}

/// The second word of the header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Flags(pub u16);

impl Flags {
    /// This is a response.
    pub const QR: u16 = 1 << 15;
    /// Authoritative answer.
    pub const AA: u16 = 1 << 10;
    /// Truncated.
    pub const TC: u16 = 1 << 9;
    /// Recursion desired.
    pub const RD: u16 = 1 << 8;
    /// Recursion available.
    pub const RA: u16 = 1 << 7;
    /// Authentic data (RFC 4035).
    pub const AD: u16 = 1 << 5;
    /// Checking disabled (RFC 4035).
    pub const CD: u16 = 1 << 4;
    const OPCODE: u16 = 0xF << 11;

    /// Whether all bits of `mask` are set.
    pub fn has(self, mask: u16) -> bool {
        self.0 & mask == mask
    }

    /// 0 to 15; 0 is QUERY.
    pub fn opcode(self) -> u16 {
        (self.0 & Self::OPCODE) >> 11
    }

    /// The low four bits of the RCODE; the others are in the OPT record.
    pub fn rcode(self) -> Rcode {
        Rcode(self.0 & 0xF)
    }

    /// The flags of a response of ours to a message with these flags: QR set, opcode, RD and CD echoed.
    pub fn response(self, rcode: Rcode) -> Self {
        Self(Self::QR | self.0 & (Self::OPCODE | Self::RD | Self::CD) | rcode.0 & 0xF)
    }
}

/// A response code (RFC 6895, 2.3), 12 bits with the part in the OPT record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Rcode(pub u16);

impl Rcode {
    /// NOERROR.
    pub const NOERROR: Self = Self(0);
    /// FORMERR.
    pub const FORMERR: Self = Self(1);
    /// SERVFAIL.
    pub const SERVFAIL: Self = Self(2);
    /// NXDOMAIN.
    pub const NXDOMAIN: Self = Self(3);
    /// NOTIMP.
    pub const NOTIMP: Self = Self(4);
    /// REFUSED.
    pub const REFUSED: Self = Self(5);
    /// BADVERS (RFC 6891).
    pub const BADVERS: Self = Self(16);
}

impl std::fmt::Display for Rcode {
    /// The mnemonic, or `RCODE23`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self.0 {
            0 => "NOERROR",
            1 => "FORMERR",
            2 => "SERVFAIL",
            3 => "NXDOMAIN",
            4 => "NOTIMP",
            5 => "REFUSED",
            6 => "YXDOMAIN",
            7 => "YXRRSET",
            8 => "NXRRSET",
            9 => "NOTAUTH",
            10 => "NOTZONE",
            16 => "BADVERS",
            other => return write!(f, "RCODE{other}"),
        })
    }
}

/// Record types that this project names.
pub mod rtype {
    /// Name server.
    pub const NS: u16 = 2;
    /// Canonical name.
    pub const CNAME: u16 = 5;
    /// Start of authority.
    pub const SOA: u16 = 6;
    /// Pointer.
    pub const PTR: u16 = 12;
    /// Host information; loop probes use it.
    pub const HINFO: u16 = 13;
    /// IPv6 address.
    pub const AAAA: u16 = 28;
    /// EDNS (RFC 6891).
    pub const OPT: u16 = 41;
    /// Delegation signer; asked of the parent.
    pub const DS: u16 = 43;
    /// IPv4 address.
    pub const A: u16 = 1;
    /// Incremental transfer.
    pub const IXFR: u16 = 251;
    /// Transfer.
    pub const AXFR: u16 = 252;
    /// Everything (RFC 8482).
    pub const ANY: u16 = 255;
}

/// Class IN.
pub const CLASS_IN: u16 = 1;
