//! A question as the directives of a block see it, and change it, on the slow side.

use std::net::{IpAddr, SocketAddr};

use nodestub_wire::{Ask, Flags, Name, Query, name_text};

use crate::metrics::Protocol;

/// What is asked, by whom.
#[derive(Debug, Clone)]
pub struct Asked {
    /// Message id.
    pub id: u16,
    /// Uncompressed wire form, its case as the client, or a rule, wrote it.
    pub name: Vec<u8>,
    /// QTYPE.
    pub qtype: u16,
    /// QCLASS.
    pub qclass: u16,
    /// RD, CD and AD.
    pub flags: Flags,
    /// DO.
    pub dnssec_ok: bool,
    /// EDNS options: the client's, and what `rewrite` has made of them.
    pub options: Vec<EdnsOption>,
    /// Bytes of the query.
    pub bytes: usize,
    /// Bytes that the client takes: as its OPT record says, 512 without one, 65535 by TCP.
    pub buffer_size: u16,
    /// The client.
    pub client: SocketAddr,
    /// How it asks.
    pub protocol: Protocol,
    /// The listening address that was asked.
    pub server: SocketAddr,
}

/// One option of an OPT record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EdnsOption {
    /// Its code.
    pub code: u16,
    /// Its data.
    pub data: Vec<u8>,
    /// `rewrite` has put it there: upstreams get it. The client's own are hop by hop.
    pub ours: bool,
}

impl Asked {
    /// What a client's packet asks.
    pub fn new(
        query: &Query,
        packet: &[u8],
        client: SocketAddr,
        protocol: Protocol,
        server: SocketAddr,
    ) -> Self {
        let options = query.options(packet);
        let question = packet.get(nodestub_wire::HEADER..query.question_end.saturating_sub(4));
        Self {
            id: query.id,
            // The question's name has no pointers: it is the first in the packet.
            name: question.map_or_else(|| query.name.as_bytes().to_vec(), <[u8]>::to_vec),
            qtype: query.qtype,
            qclass: query.qclass,
            flags: Flags(query.flags.0 & (Flags::RD | Flags::CD | Flags::AD)),
            dnssec_ok: query.dnssec_ok(),
            options: options
                .map(|(code, data)| EdnsOption { code, data: data.to_vec(), ours: false })
                .collect(),
            bytes: packet.len(),
            buffer_size: match protocol {
                Protocol::Tcp => u16::MAX,
                Protocol::Udp => query.edns.map_or(512, |edns| edns.udp_size.max(512)),
            },
            client,
            protocol,
            server,
        }
    }

    /// The name, lower-cased.
    pub fn lower(&self) -> Name {
        Name::from_wire(&self.name).unwrap_or_else(|_| Name::root())
    }

    /// The name as text, lower-cased, with its final dot.
    pub fn text(&self) -> String {
        name_text(&self.name).to_ascii_lowercase()
    }

    /// The client's address; IPv4 where it is mapped.
    pub fn client_ip(&self) -> IpAddr {
        self.client.ip().to_canonical()
    }

    /// What upstreams are asked.
    pub fn to_ask(&self) -> Ask {
        let mut options = Vec::new();
        for option in self.options.iter().filter(|option| option.ours) {
            let Ok(length) = u16::try_from(option.data.len()) else { continue };
            options.extend_from_slice(&option.code.to_be_bytes());
            options.extend_from_slice(&length.to_be_bytes());
            options.extend_from_slice(&option.data);
        }
        Ask {
            name: self.name.to_ascii_lowercase().into(),
            qtype: self.qtype,
            qclass: self.qclass,
            recursion_desired: self.flags.has(Flags::RD),
            checking_disabled: self.flags.has(Flags::CD),
            dnssec_ok: self.dnssec_ok,
            options: options.into(),
        }
    }

    /// The same client asks for something else.
    #[must_use]
    pub fn with_question(&self, name: Vec<u8>, qtype: u16) -> Self {
        Self { name, qtype, ..self.clone() }
    }
}
