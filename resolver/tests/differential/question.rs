//! What both servers are asked: the bytes of a query, and how they travel.

use nodestub_lab::{Options, Transport};

/// One question.
#[derive(Debug, Clone)]
pub(crate) struct Question {
    /// Presentation form; its case is kept.
    pub(crate) name: String,
    pub(crate) qtype: u16,
    pub(crate) qclass: u16,
    pub(crate) way: Way,
}

/// How a question is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Way {
    pub(crate) transport: Transport,
    /// Over TLS, at port 853.
    pub(crate) tls: bool,
    pub(crate) recursion: bool,
    pub(crate) authentic_data: bool,
    pub(crate) checking_disabled: bool,
    /// Payload size; `None`: no OPT.
    pub(crate) edns: Option<u16>,
    pub(crate) dnssec_ok: bool,
    /// Options as they stand in the OPT record.
    pub(crate) options: &'static [u8],
    /// From `fd00::3`.
    pub(crate) v6: bool,
    /// From 127.0.0.1 and this port.
    pub(crate) port: Option<u16>,
}

/// As a stub resolver asks.
pub(crate) const PLAIN: Way = Way {
    transport: Transport::Udp,
    tls: false,
    recursion: true,
    authentic_data: false,
    checking_disabled: false,
    edns: None,
    dnssec_ok: false,
    options: &[],
    v6: false,
    port: None,
};
pub(crate) const TCP: Way = Way { transport: Transport::Tcp, ..PLAIN };
pub(crate) const EDNS: Way = Way { edns: Some(1232), ..PLAIN };
pub(crate) const BIG_EDNS: Way = Way { edns: Some(4096), ..PLAIN };
pub(crate) const DNSSEC: Way = Way { dnssec_ok: true, ..EDNS };
pub(crate) const CHECKING_DISABLED: Way = Way { checking_disabled: true, ..PLAIN };
pub(crate) const AUTHENTIC: Way = Way { authentic_data: true, ..PLAIN };
pub(crate) const TCP_EDNS: Way = Way { edns: Some(1232), ..TCP };
pub(crate) const OVER_V6: Way = Way { v6: true, ..PLAIN };
pub(crate) const FROM_A_PORT: Way = Way { port: Some(45_353), ..PLAIN };
pub(crate) const FROM_A_PORT_WITH_EDNS: Way = Way { port: Some(45_353), ..EDNS };
pub(crate) const WITH_NSID: Way = Way { options: &[0, 3, 0, 0], ..EDNS };
pub(crate) const WITH_NSID_BY_TCP: Way = Way { options: &[0, 3, 0, 0], ..TCP_EDNS };

/// The usual ways.
pub(crate) const WAYS: [Way; 8] =
    [PLAIN, TCP, EDNS, BIG_EDNS, DNSSEC, CHECKING_DISABLED, AUTHENTIC, TCP_EDNS];

pub(crate) const A: u16 = 1;
pub(crate) const NS: u16 = 2;
pub(crate) const CNAME: u16 = 5;
pub(crate) const SOA: u16 = 6;
pub(crate) const PTR: u16 = 12;
pub(crate) const HINFO: u16 = 13;
pub(crate) const MX: u16 = 15;
pub(crate) const TXT: u16 = 16;
pub(crate) const AAAA: u16 = 28;
pub(crate) const SRV: u16 = 33;
pub(crate) const NAPTR: u16 = 35;
pub(crate) const HTTPS: u16 = 65;
pub(crate) const ANY: u16 = 255;

impl Question {
    pub(crate) fn new(name: &str, qtype: u16, way: Way) -> Self {
        Self { name: name.to_owned(), qtype, qclass: 1, way }
    }

    /// The packet.
    pub(crate) fn to_packet(&self, id: u16) -> Vec<u8> {
        let way = &self.way;
        let flags = u16::from(way.recursion) << 8
            | u16::from(way.authentic_data) << 5
            | u16::from(way.checking_disabled) << 4;
        let mut packet = Vec::new();
        for word in [id, flags, 1, 0, 0, u16::from(way.edns.is_some())] {
            packet.extend(word.to_be_bytes());
        }
        packet.extend(wire_name(&self.name));
        packet.extend(self.qtype.to_be_bytes());
        packet.extend(self.qclass.to_be_bytes());
        if let Some(size) = way.edns {
            packet.extend([0, 0, 41]);
            packet.extend(size.to_be_bytes());
            packet.extend([0, 0, if way.dnssec_ok { 0x80 } else { 0 }, 0]);
            packet.extend(u16::try_from(way.options.len()).unwrap().to_be_bytes());
            packet.extend(way.options);
        }
        packet
    }

    /// How the laboratory's client sends it.
    pub(crate) fn options(&self) -> Options {
        let from = match (self.way.v6, self.way.port) {
            (true, _) => Some("[fd00::3]:0".parse().unwrap()),
            (false, port) => port.map(|port| std::net::SocketAddr::from(([127, 0, 0, 1], port))),
        };
        let timeout = std::time::Duration::from_secs(30);
        Options { transport: self.way.transport, timeout, from, ..Options::default() }
    }
}

impl std::fmt::Display for Question {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Way {
            transport,
            tls,
            recursion,
            authentic_data,
            checking_disabled,
            edns,
            dnssec_ok,
            options,
            v6,
            ..
        } = self.way;
        write!(f, "{} {} class {} by {transport}", self.name, self.qtype, self.qclass)?;
        for (set, text) in [
            (tls, "and TLS"),
            (!recursion, "without RD"),
            (authentic_data, "AD"),
            (checking_disabled, "CD"),
            (dnssec_ok, "DO"),
            (v6, "over IPv6"),
        ] {
            if set {
                write!(f, " {text}")?;
            }
        }
        if let Some(size) = edns {
            write!(f, " EDNS {size} {options:x?}")?;
        }
        Ok(())
    }
}

/// A name without compression, its case kept.
pub(crate) fn wire_name(name: &str) -> Vec<u8> {
    let mut wire = Vec::new();
    for label in name.split('.').filter(|label| !label.is_empty()) {
        wire.push(u8::try_from(label.len()).unwrap());
        wire.extend(label.as_bytes());
    }
    wire.push(0);
    wire
}

/// Each name with each type in each way, twice: asked, then from the cache where there is one.
pub(crate) fn all(names: &[&str], types: &[u16], ways: &[Way]) -> Vec<Question> {
    let mut questions = Vec::new();
    for way in ways {
        for name in names {
            for &qtype in types {
                let question = Question::new(name, qtype, *way);
                questions.extend([question.clone(), question]);
            }
        }
    }
    questions
}
