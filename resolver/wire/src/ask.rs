//! The question that we ask an upstream.

use crate::header::{Flags, HEADER, Header};
use crate::query::{Edns, OPT};

/// What an upstream is asked; also what identical questions of several clients have in common.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Ask {
    /// The name, lower-cased, in wire form.
    pub name: Box<[u8]>,
    /// QTYPE.
    pub qtype: u16,
    /// QCLASS.
    pub qclass: u16,
    /// RD as the client sent it.
    pub recursion_desired: bool,
    /// CD as the client sent it.
    pub checking_disabled: bool,
    /// DO as the client sent it.
    pub dnssec_ok: bool,
    /// EDNS options that `rewrite` has us send, as they stand in an OPT record.
    pub options: Box<[u8]>,
}

/// UDP payload that we offer to upstreams, in bytes: what passes everywhere without fragments (DNS Flag Day 2020).
pub const UPSTREAM_UDP_PAYLOAD: u16 = 1232;

impl Ask {
    /// The packet, with an OPT record unless the upstream is known to choke on one.
    pub fn to_packet(&self, id: u16, with_edns: bool) -> Vec<u8> {
        let mut flags = 0;
        if self.recursion_desired {
            flags |= Flags::RD;
        }
        if self.checking_disabled {
            flags |= Flags::CD;
        }
        let header = Header { id, flags: Flags(flags), counts: [1, 0, 0, u16::from(with_edns)] };
        let mut packet = Vec::with_capacity(HEADER + self.name.len() + 4 + OPT);
        packet.extend_from_slice(&header.to_bytes());
        packet.extend_from_slice(&self.name);
        packet.extend_from_slice(&self.qtype.to_be_bytes());
        packet.extend_from_slice(&self.qclass.to_be_bytes());
        if with_edns {
            let edns = Edns {
                udp_size: UPSTREAM_UDP_PAYLOAD,
                extended_rcode: 0,
                version: 0,
                dnssec_ok: self.dnssec_ok,
            };
            let mut opt = edns.to_bytes();
            // Longer ones were refused when the Corefile was read.
            let length = u16::try_from(self.options.len()).unwrap_or_default();
            let [.., high, low] = &mut opt;
            [*high, *low] = length.to_be_bytes();
            packet.extend_from_slice(&opt);
            if length > 0 {
                packet.extend_from_slice(&self.options);
            }
        }
        packet
    }
}
