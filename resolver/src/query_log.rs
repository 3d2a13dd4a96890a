//! `log`: a line for each query, in CoreDNS's common format, through a bounded channel that drops when it is full.
//!
//! ```text
//!   [INFO] 10.244.0.7:41234 - 4711 "A IN example.com. udp 41 false 512" NOERROR qr,rd,ra 106 0.000112s
//! ```
//!
//! The thread that answers only fills in numbers; a thread of its own makes the text.

use std::io::Write;
use std::net::SocketAddr;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use nodestub_wire::{Flags, Header, Name, NameBuf, Query, Rcode};

use crate::metrics::{Counter, Observation, Protocol};

/// Lines that may wait for the writer.
const QUEUE: usize = 4096;

/// Where lines go.
#[derive(Debug)]
pub struct QueryLog {
    lines: SyncSender<LogLine>,
    /// Lines dropped because the writer was behind.
    pub dropped: Counter,
}

/// What one line says.
#[derive(Debug)]
pub struct LogLine {
    client: SocketAddr,
    id: u16,
    name: NameBuf,
    qtype: u16,
    protocol: Protocol,
    request_bytes: usize,
    response_bytes: usize,
    dnssec_ok: bool,
    udp_size: u16,
    rcode: Rcode,
    flags: Flags,
    duration: Duration,
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

    /// Logs a query if one of `names` holds its name. Never waits.
    pub fn write(&self, names: &[Name], line: &LogLine) {
        let name = line.name.to_name();
        if names.iter().any(|zone| name.is_within(zone)) && self.lines.try_send(line.clone()).is_err() {
            self.dropped.add(1);
        }
    }
}

impl Clone for LogLine {
    fn clone(&self) -> Self {
        Self { name: self.name.clone(), ..*self }
    }
}

impl LogLine {
    /// From what is known when the reply has been built.
    pub fn new(
        query: &Query,
        client: SocketAddr,
        observation: &Observation,
        reply: &[u8],
        received: Instant,
    ) -> Self {
        Self {
            client,
            id: query.id,
            name: query.name.clone(),
            qtype: query.qtype,
            protocol: observation.protocol,
            request_bytes: observation.request_bytes,
            response_bytes: observation.response_bytes,
            dnssec_ok: observation.dnssec_ok,
            udp_size: query.edns.map_or(512, |edns| edns.udp_size),
            rcode: observation.rcode,
            flags: Header::parse(reply).map_or(Flags(0), |header| header.flags),
            duration: received.elapsed(),
        }
    }
}

fn write_lines(lines: &Receiver<LogLine>) {
    while let Ok(line) = lines.recv() {
        let mut output = std::io::stdout().lock();
        // Nobody reads: nothing to be done about it, and no reason to stop answering.
        drop(writeln!(output, "[INFO] {line}"));
        for line in lines.try_iter().take(QUEUE) {
            drop(writeln!(output, "[INFO] {line}"));
        }
        drop(output.flush());
    }
}

impl std::fmt::Display for LogLine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [client, port] = [self.client.ip().to_canonical().to_string(), self.client.port().to_string()];
        let client = if client.contains(':') { format!("[{client}]") } else { client };
        let qtype = hickory_proto::rr::RecordType::from(self.qtype);
        let protocol = self.protocol.label();
        let bits = [
            (Flags::QR, "qr"),
            (Flags::AA, "aa"),
            (Flags::TC, "tc"),
            (Flags::RD, "rd"),
            (Flags::RA, "ra"),
            (Flags::AD, "ad"),
            (Flags::CD, "cd"),
        ];
        let flags: Vec<&str> =
            bits.iter().filter(|(bit, _)| self.flags.has(*bit)).map(|(_, text)| *text).collect();
        write!(
            f,
            "{client}:{port} - {} \"{qtype} IN {} {protocol} {} {} {}\" {} {} {} {:.9}s",
            self.id,
            self.name.to_name(),
            self.request_bytes,
            self.dnssec_ok,
            self.udp_size,
            self.rcode,
            flags.join(","),
            self.response_bytes,
            self.duration.as_secs_f64(),
        )
    }
}
