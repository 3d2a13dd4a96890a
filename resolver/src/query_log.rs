//! `log`: a line for each query, in the Corefile's format, through a bounded channel that drops when it is full.
//!
//! ```text
//!   [INFO] 10.244.0.7:41234 - 4711 "A IN example.com. udp 41 false 512" NOERROR qr,rd,ra 106 0.000112s
//! ```
//!
//! The thread that answers only looks whether a rule wants the line, and fills in numbers; a thread of its own makes the
//! text. Where no block has `log`, nothing of this is run.

use std::fmt::Write as _;
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use nodestub_corefile::config::logging::{LogClasses, LogField, LogFormat, LogPiece, LogRule};
use nodestub_corefile::{class_name, type_name};
use nodestub_wire::{Flags, HEADER, Header, Name, NameBuf, OwnedRecord, Query, Rcode, Reply, Section, rtype};

use crate::metrics::{Counter, Observation, Protocol};

/// Lines that may wait for the writer.
const QUEUE: usize = 4096;

/// Bytes of a record besides its owner and data; of a question besides its name.
const RECORD_FIXED: usize = 10;
const QUESTION_FIXED: usize = 4;

/// Where lines go.
#[derive(Debug)]
pub struct QueryLog {
    lines: SyncSender<LogLine>,
    /// Lines dropped because the writer was behind.
    pub dropped: Counter,
}

/// One rule of `log` at work.
#[derive(Debug)]
pub struct Rule {
    name: Name,
    classes: LogClasses,
    /// Shared with the lines that wait.
    format: Arc<LogFormat>,
    /// The format says something that is only seen in the reply's records.
    needs_records: bool,
}

/// A query that was answered, or left without an answer.
#[derive(Debug, Clone, Copy)]
pub struct Answered<'a> {
    /// What was asked.
    pub query: &'a Query,
    /// By whom.
    pub client: SocketAddr,
    /// Of which of our addresses.
    pub server: SocketAddr,
    /// As it was counted.
    pub observation: &'a Observation,
    /// The reply; empty: none.
    pub reply: &'a [u8],
    /// When the query came.
    pub received: Instant,
}

/// What one line says.
#[derive(Debug)]
struct LogLine {
    format: Arc<LogFormat>,
    client: SocketAddr,
    server: IpAddr,
    id: u16,
    opcode: u16,
    name: NameBuf,
    qtype: u16,
    qclass: u16,
    protocol: Protocol,
    request_bytes: usize,
    dnssec_ok: bool,
    buffer_size: u16,
    duration: Duration,
    /// `None`: nothing was said.
    reply: Option<(Rcode, Flags)>,
    /// The reply, where the format asks what is in it: a copy is made faster than it is read.
    packet: Option<Box<[u8]>>,
}

/// What a reply is (CoreDNS `response.Typify`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ReplyKind {
    NoError,
    NxDomain,
    ServerError,
    NoData,
    Delegation,
    Meta,
    OtherError,
}

impl Rule {
    /// From what was read.
    pub fn new(rule: &LogRule) -> Self {
        let asks = |field| rule.format.has(field);
        Self {
            name: rule.name.clone(),
            classes: rule.classes,
            needs_records: asks(LogField::ReplySize)
                || asks(LogField::ReplyClass)
                || asks(LogField::ReplyKind),
            format: Arc::new(rule.format.clone()),
        }
    }

    /// The line that this rule wants, if it wants one.
    fn line(&self, answered: &Answered<'_>) -> Option<LogLine> {
        let Answered { query, client, server, observation, reply, received } = *answered;
        if self.classes != LogClasses::ALL && !ReplyKind::of_packet(reply).is_in(self.classes) {
            return None;
        }
        Some(LogLine {
            format: Arc::clone(&self.format),
            client,
            server: server.ip(),
            id: query.id,
            opcode: query.flags.opcode(),
            name: query.name.clone(),
            qtype: query.qtype,
            qclass: query.qclass,
            protocol: observation.protocol,
            request_bytes: observation.request_bytes,
            dnssec_ok: observation.dnssec_ok,
            buffer_size: match observation.protocol {
                Protocol::Tcp => u16::MAX,
                Protocol::Udp => query.edns.map_or(512, |edns| edns.udp_size.max(512)),
            },
            duration: received.elapsed(),
            reply: Header::parse(reply).ok().map(|header| (observation.rcode, header.flags)),
            packet: self.needs_records.then(|| reply.into()),
        })
    }
}

impl QueryLog {
    /// Starts the writer; lines go to standard output, as CoreDNS's do.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start() -> std::io::Result<Self> {
        let (sender, receiver) = sync_channel(QUEUE);
        std::thread::Builder::new().name("query-log".into()).spawn(move || write_lines(&receiver))?;
        Ok(Self { lines: sender, dropped: Counter::default() })
    }

    /// Logs a query if the first of the rules that is for its name wants it. Never waits.
    pub fn write(&self, rules: &[Rule], answered: &Answered<'_>) {
        let name = answered.query.name.to_name();
        let rule = rules.iter().find(|rule| name.is_within(&rule.name));
        if let Some(line) = rule.and_then(|rule| rule.line(answered))
            && self.lines.try_send(line).is_err()
        {
            self.dropped.add(1);
        }
    }
}

/// How many bytes a reply would have without compressed names, as CoreDNS counts them; OPT is left out.
fn uncompressed(packet: &[u8]) -> usize {
    let Ok(reply) = Reply::parse(packet) else { return packet.len() };
    let question = reply.name.as_bytes().len() + QUESTION_FIXED;
    let records = OwnedRecord::unpack(packet, &reply).unwrap_or_default();
    let of_one = |record: &OwnedRecord| record.owner.len() + RECORD_FIXED + record.data.len();
    HEADER + question + records.iter().map(of_one).sum::<usize>()
}

impl ReplyKind {
    fn of_packet(packet: &[u8]) -> Self {
        Reply::parse(packet).map_or(Self::OtherError, |reply| Self::of(&reply))
    }

    /// Signatures that have expired are not looked for: they are the client's matter.
    fn of(reply: &Reply) -> Self {
        if matches!(reply.qtype, rtype::AXFR | rtype::IXFR) {
            return Self::Meta;
        }
        let rcode = reply.rcode();
        let has_answers = reply.section(Section::Answer).next().is_some();
        let authority = |wanted: u16| reply.section(Section::Authority).any(|record| record.rtype == wanted);
        match rcode {
            Rcode::NOERROR if has_answers => Self::NoError,
            Rcode::NOERROR if authority(rtype::SOA) => Self::NoData,
            Rcode::NOERROR if authority(rtype::NS) => Self::Delegation,
            Rcode::NOERROR => Self::NoError,
            Rcode::NXDOMAIN if !has_answers => Self::NxDomain,
            Rcode::SERVFAIL | Rcode::NOTIMP => Self::ServerError,
            _ => Self::OtherError,
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::NoError => "NOERROR",
            Self::NxDomain => "NXDOMAIN",
            Self::ServerError => "SERVERERROR",
            Self::NoData => "NODATA",
            Self::Delegation => "DELEGATION",
            Self::Meta => "META",
            Self::OtherError => "OTHERERROR",
        }
    }

    fn class(self) -> &'static str {
        match self {
            Self::NoError | Self::Delegation => "success",
            Self::NxDomain | Self::NoData => "denial",
            Self::ServerError | Self::Meta | Self::OtherError => "error",
        }
    }

    fn is_in(self, classes: LogClasses) -> bool {
        match self.class() {
            "success" => classes.success,
            "denial" => classes.denial,
            _ => classes.error,
        }
    }
}

fn write_lines(lines: &Receiver<LogLine>) {
    while let Ok(line) = lines.recv() {
        let mut output = std::io::stdout().lock();
        // Nobody reads: nothing to be done about it, and no reason to stop answering.
        drop(writeln!(output, "[INFO] {}", line.text()));
        for line in lines.try_iter().take(QUEUE) {
            drop(writeln!(output, "[INFO] {}", line.text()));
        }
        drop(output.flush());
    }
}

impl LogLine {
    fn text(&self) -> String {
        let mut text = String::with_capacity(160);
        for piece in &self.format.0 {
            match piece {
                LogPiece::Text(piece) => text.push_str(piece),
                // A string takes whatever is written to it.
                LogPiece::Field(field) => drop(self.write_field(*field, &mut text)),
            }
        }
        text
    }

    fn write_field(&self, field: LogField, text: &mut String) -> std::fmt::Result {
        let packet = self.packet.as_deref().unwrap_or_default();
        match field {
            LogField::Type => text.push_str(&type_name(self.qtype)),
            LogField::Name => write!(text, "{}", self.name.to_name())?,
            LogField::Class => text.push_str(&class_name(self.qclass)),
            LogField::Protocol => text.push_str(self.protocol.label()),
            LogField::Remote => text.push_str(&in_brackets(self.client.ip())),
            LogField::Port => write!(text, "{}", self.client.port())?,
            LogField::Local => text.push_str(&in_brackets(self.server)),
            LogField::Size => write!(text, "{}", self.request_bytes)?,
            LogField::Id => write!(text, "{}", self.id)?,
            LogField::Opcode => write!(text, "{}", self.opcode)?,
            LogField::DnssecOk => write!(text, "{}", self.dnssec_ok)?,
            LogField::BufferSize => write!(text, "{}", self.buffer_size)?,
            LogField::Rcode => match self.reply {
                Some((rcode, _)) => write!(text, "{rcode}")?,
                None => text.push('-'),
            },
            LogField::ReplySize => write!(text, "{}", uncompressed(packet))?,
            LogField::ReplyFlags => match self.reply {
                Some((_, flags)) => text.push_str(&flag_words(flags)),
                None => text.push('-'),
            },
            // Rust writes a number with as many digits as it needs, as Go does here.
            LogField::Duration => write!(text, "{}s", self.duration.as_secs_f64())?,
            LogField::ReplyClass => text.push_str(ReplyKind::of_packet(packet).class()),
            LogField::ReplyKind => text.push_str(ReplyKind::of_packet(packet).text()),
            LogField::Unset => text.push('-'),
        }
        Ok(())
    }
}

fn in_brackets(address: IpAddr) -> String {
    match address.to_canonical() {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    }
}

fn flag_words(flags: Flags) -> String {
    /// Reserved (RFC 1035, 4.1.1).
    const Z: u16 = 1 << 6;
    let bits = [
        (Flags::QR, "qr"),
        (Flags::AA, "aa"),
        (Flags::TC, "tc"),
        (Flags::RD, "rd"),
        (Flags::RA, "ra"),
        (Z, "z"),
        (Flags::AD, "ad"),
        (Flags::CD, "cd"),
    ];
    let set: Vec<&str> = bits.iter().filter(|(bit, _)| flags.has(*bit)).map(|(_, word)| *word).collect();
    set.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use nodestub_wire::{Admission, wire_name};

    /// Header, question `a.test` of this type, and an answer by a pointer and authority of this type where there are some.
    fn reply(qtype: u16, rcode: u16, answers: u16, authority: Option<u16>) -> Vec<u8> {
        let mut packet = vec![0x12, 0x67];
        for word in [0x8180 | rcode, 1, answers, u16::from(authority.is_some()), 0] {
            packet.extend(word.to_be_bytes());
        }
        packet.extend(wire_name("a.test").unwrap());
        packet.extend(qtype.to_be_bytes());
        packet.extend([0, 1]);
        for _ in 0..answers {
            packet.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 1]);
        }
        if let Some(rtype) = authority {
            let data = if rtype == rtype::SOA { [&[0, 0][..], &[0; 20]].concat() } else { vec![0] };
            packet.extend([0xc0, 14]);
            packet.extend(rtype.to_be_bytes());
            packet.extend([0, 1, 0, 0, 0, 60, 0, u8::try_from(data.len()).unwrap()]);
            packet.extend(data);
        }
        packet
    }

    #[test]
    fn a_reply_has_the_class_that_coredns_gives_it() {
        let soa = Some(rtype::SOA);
        for (packet, kind, class) in [
            (reply(1, 0, 1, None), "NOERROR", "success"),
            (reply(1, 0, 1, soa), "NOERROR", "success"),
            (reply(1, 0, 0, None), "NOERROR", "success"),
            (reply(1, 0, 0, soa), "NODATA", "denial"),
            (reply(1, 0, 0, Some(rtype::NS)), "DELEGATION", "success"),
            (reply(1, 3, 0, soa), "NXDOMAIN", "denial"),
            (reply(1, 3, 1, None), "OTHERERROR", "error"),
            (reply(1, 2, 0, None), "SERVERERROR", "error"),
            (reply(1, 4, 0, None), "SERVERERROR", "error"),
            (reply(1, 5, 0, None), "OTHERERROR", "error"),
            (reply(rtype::AXFR, 5, 0, None), "META", "error"),
            (Vec::new(), "OTHERERROR", "error"),
        ] {
            let found = ReplyKind::of_packet(&packet);
            assert_eq!((found.text(), found.class()), (kind, class), "{packet:?}");
        }
    }

    #[test]
    fn sizes_are_told_as_if_no_name_were_compressed() {
        // 12 for the header, 8 + 4 for the question, 8 + 10 + 4 for each address.
        assert_eq!(uncompressed(&reply(1, 0, 2, None)), 12 + 12 + 2 * 22);
        assert_eq!(uncompressed(&[]), 0);
    }

    #[test]
    fn a_line_says_what_its_format_asks_for() {
        let mut packet = reply(28, 0, 0, None);
        packet.splice(2..4, [1, 0]);
        let Admission::Accept(query) = Query::admit(&packet) else { panic!("not accepted") };
        let observation = Observation {
            protocol: Protocol::Udp,
            v6: true,
            qtype: 28,
            dnssec_ok: false,
            request_bytes: 24,
            response_bytes: 24,
            rcode: Rcode::NXDOMAIN,
            source: crate::metrics::Source::Server,
        };
        let format = "{remote}:{port} {local} {>id} {type} {class} {name} {proto} {size} {>do} {>bufsize} {rcode} \
                      {>rflags} {rsize} {>opcode} {/log/type} {/x/y} {other}";
        let line = |reply: &[u8], classes| {
            let rule = Rule::new(&LogRule { name: Name::root(), format: LogFormat::read(format), classes });
            let (client, server) = ("[fd00::1]:4711".parse().unwrap(), "127.0.0.1:53".parse().unwrap());
            let received = Instant::now();
            let answered =
                Answered { query: &query, client, server, observation: &observation, reply, received };
            rule.line(&answered).map(|line| line.text())
        };
        let question = "[fd00::1]:4711 127.0.0.1 4711 AAAA IN a.test. udp 24 false 512";
        let said = line(&reply(28, 3, 0, None), LogClasses::ALL).unwrap();
        assert_eq!(said, format!("{question} NXDOMAIN qr,rd,ra 24 0 NXDOMAIN - {{other}}"));
        assert_eq!(line(&[], LogClasses::ALL).unwrap(), format!("{question} - - 0 0 OTHERERROR - {{other}}"));
        let denials = LogClasses { success: false, denial: true, error: false };
        assert!(line(&reply(28, 3, 0, None), denials).is_some());
        assert_eq!(line(&reply(28, 0, 1, None), denials), None);
    }
}
