//! A DNS client over `domain` and plain sockets. It shares no code with ours, and it is strict: an answer that does not
//! belong to the question is an error here, where a resolver would go on waiting.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::str::FromStr;
use std::time::{Duration, Instant};

use domain::base::iana::Rtype;
use domain::base::message_builder::MessageBuilder;
use domain::base::name::ParsedName;
use domain::base::opt::AllOptData;
use domain::base::record::ParsedRecord;
use domain::base::{Message, Name};
use domain::rdata::AllRecordData;

use crate::Error;
use crate::upstream::Transport;

/// How to ask. `Options::default()` is a stub resolver's plain question over UDP.
#[derive(Debug, Clone)]
pub struct Options {
    /// UDP or TCP.
    pub transport: Transport,
    /// The UDP payload size to announce (RFC 6891); `None` sends no EDNS at all.
    pub edns: Option<u16>,
    /// DNSSEC OK. Adds EDNS (1232 octets) when `edns` is `None`.
    pub dnssec_ok: bool,
    /// Checking disabled.
    pub checking_disabled: bool,
    /// Authentic data, as RFC 6840 section 5.7 lets a client ask for it.
    pub authentic_data: bool,
    /// Recursion desired.
    pub recursion_desired: bool,
    /// The message id; `None` takes a random one.
    pub id: Option<u16>,
    /// For the whole exchange, connecting included.
    pub timeout: Duration,
    /// The address, and the port if not 0, to ask from (UDP only).
    pub from: Option<SocketAddr>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            transport: Transport::Udp,
            edns: None,
            dnssec_ok: false,
            checking_disabled: false,
            authentic_data: false,
            recursion_desired: true,
            id: None,
            timeout: Duration::from_secs(5),
            from: None,
        }
    }
}

impl Options {
    /// The defaults over TCP.
    pub fn tcp() -> Self {
        Self { transport: Transport::Tcp, ..Self::default() }
    }

    /// The defaults with EDNS of this payload size.
    pub fn edns(size: u16) -> Self {
        Self { edns: Some(size), ..Self::default() }
    }
}

/// A parsed answer, as text where text is what one compares.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The message id.
    pub id: u16,
    /// The response code with EDNS's upper bits: `NOERROR`, `NXDOMAIN`, `SERVFAIL`, `REFUSED`...
    pub rcode: String,
    /// The flags that are set, in dig's manner and order: `qr aa tc rd ra ad cd`.
    pub flags: String,
    /// The question as it came back: name (its case kept, with the final dot), type, class.
    pub question: Option<(String, String, String)>,
    /// The answer section.
    pub answers: Vec<Record>,
    /// The authority section.
    pub authority: Vec<Record>,
    /// The additional section without OPT.
    pub additional: Vec<Record>,
    /// The OPT record, if there is one.
    pub edns: Option<Edns>,
    /// The message as it came.
    pub raw: Vec<u8>,
}

/// A resource record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The owner, its case kept, with the final dot.
    pub name: String,
    /// Seconds.
    pub ttl: u32,
    /// `A`, `AAAA`, `CNAME`...
    pub rtype: String,
    /// The data in presentation format.
    pub data: String,
}

/// What an OPT record says (RFC 6891).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edns {
    /// The sender's UDP payload size.
    pub size: u16,
    /// DNSSEC OK.
    pub dnssec_ok: bool,
    /// The EDNS version.
    pub version: u8,
    /// The info codes of extended errors (RFC 8914).
    pub extended_errors: Vec<u16>,
    /// The codes of all options.
    pub options: Vec<u16>,
}

impl Answer {
    /// The data of the answer section, in order.
    pub fn data(&self) -> Vec<&str> {
        self.answers.iter().map(|record| record.data.as_str()).collect()
    }

    /// The TTLs of the answer section, in order, in seconds.
    pub fn ttls(&self) -> Vec<u32> {
        self.answers.iter().map(|record| record.ttl).collect()
    }

    /// Whether a flag is set, by dig's name.
    pub fn has(&self, flag: &str) -> bool {
        self.flags.split(' ').any(|set| set == flag)
    }

    /// Parses a message, every section of it.
    pub fn parse(raw: &[u8]) -> Result<Self, Error> {
        let step = "parse a DNS message";
        let message = Message::from_octets(raw).map_err(Error::at(step))?;
        let header = message.header();
        let flags = [
            ("qr", header.qr()),
            ("aa", header.aa()),
            ("tc", header.tc()),
            ("rd", header.rd()),
            ("ra", header.ra()),
            ("ad", header.ad()),
            ("cd", header.cd()),
        ];
        let question = match message.question().next() {
            Some(question) => {
                let question = question.map_err(Error::at(step))?;
                Some((dotted(question.qname()), question.qtype().to_string(), question.qclass().to_string()))
            }
            None => None,
        };
        let (_, answer, authority, additional) = message.sections().map_err(Error::at(step))?;
        let section = |records: domain::base::message::RecordSection<'_, &[u8]>| {
            let mut found = Vec::new();
            for record in records {
                let record = record.map_err(Error::at(step))?;
                if record.rtype() != Rtype::OPT {
                    found.push(text(&record)?);
                }
            }
            Ok::<_, Error>(found)
        };
        Ok(Self {
            id: header.id(),
            rcode: message.opt_rcode().to_string(),
            flags: flags.iter().filter(|(_, set)| *set).map(|(name, _)| *name).collect::<Vec<_>>().join(" "),
            question,
            answers: section(answer)?,
            authority: section(authority)?,
            additional: section(additional)?,
            edns: edns(&message)?,
            raw: raw.to_vec(),
        })
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {} {}", self.name, self.ttl, self.rtype, self.data)
    }
}

/// Asks a server and waits for its answer.
///
/// `rtype` is a type's name (`"A"`, `"TYPE65280"`). Fails on a timeout, and on an answer with another id or question.
/// An answer with TC is returned as it is.
pub fn ask(server: SocketAddr, name: &str, rtype: &str, options: &Options) -> Result<Answer, Error> {
    let query = query(name, rtype, options)?;
    let raw = exchange(server, &query, options)?;
    let (asked, answer) = (Answer::parse(&query)?, Answer::parse(&raw)?);
    if answer.id != asked.id {
        return Err(Error::new(format!("{server} answered with id {} to {}", answer.id, asked.id)));
    }
    if !answer.has("qr") {
        return Err(Error::new(format!("{server} sent a question back")));
    }
    if answer.question != asked.question {
        return Err(Error::new(format!(
            "{server} answered another question: {:?}, asked was {:?}",
            answer.question, asked.question
        )));
    }
    Ok(answer)
}

/// The bytes of a question.
pub fn query(name: &str, rtype: &str, options: &Options) -> Result<Vec<u8>, Error> {
    let step = || format!("make a question for {name} {rtype}");
    let name = Name::<Vec<u8>>::from_str(name).map_err(Error::at(step()))?;
    let rtype = Rtype::from_str(rtype).map_err(|error| Error::new(format!("{}: {error}", step())))?;
    let mut builder = MessageBuilder::new_vec();
    let header = builder.header_mut();
    match options.id {
        Some(id) => header.set_id(id),
        None => header.set_random_id(),
    }
    header.set_rd(options.recursion_desired);
    header.set_cd(options.checking_disabled);
    header.set_ad(options.authentic_data);
    let mut builder = builder.question();
    builder.push((name, rtype)).map_err(Error::at(step()))?;
    let mut builder = builder.additional();
    let size = options.edns.or(options.dnssec_ok.then_some(1232));
    if let Some(size) = size {
        builder
            .opt(|opt| {
                opt.set_udp_payload_size(size);
                opt.set_dnssec_ok(options.dnssec_ok);
                Ok(())
            })
            .map_err(Error::at(step()))?;
    }
    Ok(builder.finish())
}

/// Sends bytes as they are and returns the first bytes that come back from the same peer.
pub fn exchange(server: SocketAddr, message: &[u8], options: &Options) -> Result<Vec<u8>, Error> {
    let step = || format!("ask {server} over {}", options.transport);
    let end = Instant::now() + options.timeout;
    match options.transport {
        Transport::Udp => {
            let from = options.from.unwrap_or_else(|| match server.ip() {
                IpAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
                IpAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
            });
            let socket = UdpSocket::bind(from).map_err(Error::at(step()))?;
            // Connected: the kernel drops what others send, and tells of a port that is closed.
            socket.connect(server).map_err(Error::at(step()))?;
            socket.send(message).map_err(Error::at(step()))?;
            socket
                .set_read_timeout(Some(left(end).map_err(Error::at(step()))?))
                .map_err(Error::at(step()))?;
            let mut buffer = vec![0; 65_535];
            let length = socket.recv(&mut buffer).map_err(Error::at(step()))?;
            buffer.truncate(length);
            Ok(buffer)
        }
        Transport::Tcp => {
            let mut stream =
                TcpStream::connect_timeout(&server, options.timeout).map_err(Error::at(step()))?;
            stream.set_nodelay(true).map_err(Error::at(step()))?;
            write_framed(&mut stream, message).map_err(Error::at(step()))?;
            stream
                .set_read_timeout(Some(left(end).map_err(Error::at(step()))?))
                .map_err(Error::at(step()))?;
            read_framed(&mut stream)
                .and_then(|answer| answer.ok_or_else(|| io::ErrorKind::UnexpectedEof.into()))
                .map_err(Error::at(step()))
        }
    }
}

/// Writes a message with its two octets of length (RFC 1035 section 4.2.2), in one piece.
pub fn write_framed(stream: &mut impl Write, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut framed = length.to_be_bytes().to_vec();
    framed.extend_from_slice(message);
    stream.write_all(&framed)
}

/// Reads a message with its two octets of length; `None` when the peer has closed between messages.
pub fn read_framed(stream: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 2];
    match stream.read(&mut length)? {
        0 => return Ok(None),
        1 => stream.read_exact(&mut length[1..])?,
        _ => {}
    }
    let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut message)?;
    Ok(Some(message))
}

/// What is left of a timeout; nothing left is the error that a socket would give.
fn left(end: Instant) -> io::Result<Duration> {
    let left = end.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

fn text(record: &ParsedRecord<'_, &[u8]>) -> Result<Record, Error> {
    let step = "parse a DNS record";
    let parsed = record
        .to_record::<AllRecordData<&[u8], ParsedName<&[u8]>>>()
        .map_err(Error::at(step))?
        .ok_or_else(|| Error::new(step))?;
    Ok(Record {
        name: dotted(parsed.owner()),
        ttl: parsed.ttl().as_secs(),
        rtype: parsed.rtype().to_string(),
        data: parsed.data().to_string(),
    })
}

fn edns(message: &Message<&[u8]>) -> Result<Option<Edns>, Error> {
    let Some(opt) = message.opt() else { return Ok(None) };
    let mut found = Edns {
        size: opt.udp_payload_size(),
        dnssec_ok: opt.dnssec_ok(),
        version: opt.version(),
        extended_errors: Vec::new(),
        options: Vec::new(),
    };
    for option in opt.opt().iter::<AllOptData<_, _>>() {
        let option = option.map_err(Error::at("parse an EDNS option"))?;
        if let AllOptData::ExtendedError(error) = &option {
            found.extended_errors.push(error.code().to_int());
        }
        found.options.push(domain::base::opt::OptData::code(&option).to_int());
    }
    Ok(Some(found))
}

fn dotted(name: &impl fmt::Display) -> String {
    let name = name.to_string();
    if name.ends_with('.') { name } else { format!("{name}.") }
}
