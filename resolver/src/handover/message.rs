//! What two processes say to each other during a handover. Bytes only: no sockets, no clock.
//!
//! ```text
//!   newcomer                                    the one that serves
//!   Hello ─────────────────────────────────────►
//!         ◄───────────────────────────────────── Welcome, or Refused and the end
//!         ◄───────────────────────────────────── Cache ..., Warm      it serves on meanwhile
//!   Ready ─────────────────────────────────────►                      it stops reading
//!         ◄───────────────────────────────────── Socket ..., Cache ..., Yours
//!   Socket ..., Serving ───────────────────────►                      it stands by
//!         ◄───────────────────────────────────── Connection ...       as they become idle
//!
//!   later:  Serving      the newcomer's addresses have changed
//!           Superseded   the newcomer hands over to a third: the first never serves again
//!           Connection ..., TakeBack      the newcomer stops; the first answers Serving and serves
//!           Withdrawn    the first had lost patience before Serving came, and serves itself
//! ```
//!
//! A message is a byte of kind and its fields, numbers big-endian. [`Hello`](Message::Hello) and
//! [`Refused`](Message::Refused) begin alike in every protocol version, for ever: kind, magic, protocol version,
//! program version. So any two versions can tell each other why they do not get on.

use std::net::{IpAddr, SocketAddr, SocketAddrV6};

use nodestub_cache::Kind;
use nodestub_wire::{Cursor, Flags, Name, OwnedAnswer, Rcode};

/// Raised when a message changes. Processes of different protocol versions do not hand over.
pub const PROTOCOL: u16 = 1;

/// Raised when an entry, or the meaning of a server block's number, changes. Then the cache stays behind.
pub const CACHE_FORMAT: u16 = 1;

/// Longest message, in bytes: what has been read ahead of a client (at most 137 KiB), or an answer of 64 KiB with a TTL
/// for every eleven bytes, behind a full batch of others.
/// The kernel's default send buffer (208 KiB) takes it whole.
pub const MAX_MESSAGE: usize = 192 << 10;

/// Most file descriptors with one message (the kernel: 253).
pub const MAX_DESCRIPTORS: usize = 64;

const MAGIC: [u8; 8] = *b"NODESTUB";

/// Longest program version.
const MAX_VERSION: usize = 64;

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// May I have your sockets?
    Hello(Greeting),
    /// No, and why.
    Refused(Refusal, Greeting),
    /// You may; the cache follows.
    Welcome(Greeting),
    /// Kept answers.
    Cache {
        /// When their ages were taken: milliseconds of CLOCK_BOOTTIME.
        at: u64,
        /// The answers.
        entries: Vec<Entry>,
    },
    /// The cache is over.
    Warm,
    /// The newcomer has set everything up and wants the sockets now.
    Ready,
    /// So many descriptors come with this message; several messages for one address are one group in that order.
    Socket {
        /// What they are.
        kind: SocketKind,
        /// The address by which the Corefile knows them.
        address: SocketAddr,
        /// How many.
        count: u8,
    },
    /// The sockets are the newcomer's from now on; with the rendezvous.
    Yours,
    /// These addresses are served; the sockets of others may be closed.
    Serving {
        /// DNS.
        dns: Vec<SocketAddr>,
        /// HTTP.
        http: Vec<SocketAddr>,
    },
    /// A client's TCP connection, between two queries.
    Connection(Connection),
    /// Somebody else has taken over: never serve again.
    Superseded,
    /// Serve again: who asks is about to stop.
    TakeBack,
    /// What was given has been taken back.
    Withdrawn,
}

/// Who speaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Greeting {
    /// [`PROTOCOL`] of the sender. The fields behind `version` are read only where it is ours.
    pub protocol: u16,
    /// Version of the program.
    pub version: String,
    /// When the process started: nanoseconds of CLOCK_BOOTTIME, which all processes of a machine share.
    pub started: u64,
    /// [`CACHE_FORMAT`] of the sender.
    pub cache_format: u16,
}

/// Why there is no handover.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Another protocol version.
    Protocol,
    /// The newcomer has started before the one that serves.
    NotNewer,
    /// The one that serves cannot hand over now: it is stopping, or something failed.
    NotNow,
}

/// What kind of socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SocketKind {
    /// UDP, DNS.
    Udp,
    /// TCP, DNS, listening.
    Tcp,
    /// TCP, HTTP, listening.
    Http,
}

/// A client's TCP connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connection {
    /// The listening address that it came in by.
    pub address: SocketAddr,
    /// The client.
    pub client: SocketAddr,
    /// Whether it has asked something already.
    pub has_asked: bool,
    /// What has been read and not been taken up: whole queries, and a part of one.
    pub unread: Vec<u8>,
}

/// A kept answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Lower-cased wire form of the name.
    pub name: Box<[u8]>,
    /// QTYPE.
    pub qtype: u16,
    /// QCLASS.
    pub qclass: u16,
    /// DO.
    pub dnssec_ok: bool,
    /// CD.
    pub checking_disabled: bool,
    /// The server block's number.
    pub block: u64,
    /// The answer.
    pub answer: OwnedAnswer,
    /// Its class.
    pub kind: Kind,
    /// Its whole life, in seconds.
    pub ttl: u32,
    /// Milliseconds of it that are over.
    pub age: u64,
    /// How the cache rates it.
    pub rating: u8,
}

/// Bytes that are no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

impl Message {
    /// How many descriptors come with it.
    pub fn descriptors(&self) -> usize {
        match self {
            Self::Socket { count, .. } => usize::from(*count),
            Self::Yours | Self::Connection(_) => 1,
            _ => 0,
        }
    }

    /// What it is, for a log line.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Hello(_) => "Hello",
            Self::Refused(..) => "Refused",
            Self::Welcome(_) => "Welcome",
            Self::Cache { .. } => "Cache",
            Self::Warm => "Warm",
            Self::Ready => "Ready",
            Self::Socket { .. } => "Socket",
            Self::Yours => "Yours",
            Self::Serving { .. } => "Serving",
            Self::Connection(_) => "Connection",
            Self::Superseded => "Superseded",
            Self::TakeBack => "TakeBack",
            Self::Withdrawn => "Withdrawn",
        }
    }

    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Self::Hello(greeting) => greeting.encode(1, &mut out, |_| {}),
            Self::Refused(refusal, greeting) => greeting.encode(2, &mut out, |out| {
                out.push(match refusal {
                    Refusal::Protocol => 1,
                    Refusal::NotNewer => 2,
                    Refusal::NotNow => 3,
                });
            }),
            Self::Welcome(greeting) => greeting.encode(3, &mut out, |_| {}),
            Self::Cache { at, entries } => {
                out.push(4);
                out.extend_from_slice(&at.to_be_bytes());
                for entry in entries {
                    entry.encode(&mut out);
                }
            }
            Self::Warm => out.push(5),
            Self::Ready => out.push(6),
            Self::Socket { kind, address, count } => {
                out.push(7);
                out.push(match kind {
                    SocketKind::Udp => 1,
                    SocketKind::Tcp => 2,
                    SocketKind::Http => 3,
                });
                encode_address(*address, &mut out);
                out.push(*count);
            }
            Self::Yours => out.push(8),
            Self::Serving { dns, http } => {
                out.push(9);
                for addresses in [dns, http] {
                    out.extend_from_slice(&u32::try_from(addresses.len()).unwrap_or(0).to_be_bytes());
                    for address in addresses {
                        encode_address(*address, &mut out);
                    }
                }
            }
            Self::Connection(connection) => {
                out.push(10);
                encode_address(connection.address, &mut out);
                encode_address(connection.client, &mut out);
                out.push(u8::from(connection.has_asked));
                out.extend_from_slice(&connection.unread);
            }
            Self::Superseded => out.push(11),
            Self::TakeBack => out.push(12),
            Self::Withdrawn => out.push(13),
        }
        out
    }

    /// Reads a message.
    ///
    /// # Errors
    /// The bytes are none, or go on behind it.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut cursor = Cursor::new(bytes, 0);
        let left = |cursor: &Cursor<'_>| bytes.len() - cursor.at();
        let message = match cursor.u8()? {
            1 => Self::Hello(Greeting::decode(&mut cursor, bytes.len())?),
            2 => {
                let mut greeting = Greeting::decode_opening(&mut cursor)?;
                let refusal = match cursor.u8()? {
                    1 => Refusal::Protocol,
                    2 => Refusal::NotNewer,
                    // A reason that a later version may have.
                    _ => Refusal::NotNow,
                };
                greeting.decode_rest(&mut cursor, bytes.len())?;
                Self::Refused(refusal, greeting)
            }
            3 => Self::Welcome(Greeting::decode(&mut cursor, bytes.len())?),
            4 => {
                let at = u64_of(&mut cursor)?;
                let mut entries = Vec::new();
                while left(&cursor) > 0 {
                    entries.push(Entry::decode(&mut cursor)?);
                }
                Self::Cache { at, entries }
            }
            5 => Self::Warm,
            6 => Self::Ready,
            7 => {
                let kind = match cursor.u8()? {
                    1 => SocketKind::Udp,
                    2 => SocketKind::Tcp,
                    3 => SocketKind::Http,
                    _ => return Err(Malformed),
                };
                let address = decode_address(&mut cursor)?;
                Self::Socket { kind, address, count: cursor.u8()? }
            }
            8 => Self::Yours,
            9 => {
                let mut list = || {
                    let count = cursor.u32()?;
                    (0..count).map(|_| decode_address(&mut cursor)).collect::<Result<Vec<_>, _>>()
                };
                Self::Serving { dns: list()?, http: list()? }
            }
            10 => {
                let (address, client) = (decode_address(&mut cursor)?, decode_address(&mut cursor)?);
                let has_asked = cursor.u8()? != 0;
                let unread = cursor.take(left(&cursor))?.to_vec();
                Self::Connection(Connection { address, client, has_asked, unread })
            }
            11 => Self::Superseded,
            12 => Self::TakeBack,
            13 => Self::Withdrawn,
            _ => return Err(Malformed),
        };
        if left(&cursor) == 0 { Ok(message) } else { Err(Malformed) }
    }
}

impl Greeting {
    fn encode(&self, kind: u8, out: &mut Vec<u8>, between: impl FnOnce(&mut Vec<u8>)) {
        out.push(kind);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&self.protocol.to_be_bytes());
        let version = self.version.as_bytes();
        let version = version.get(..MAX_VERSION).unwrap_or(version);
        out.push(u8::try_from(version.len()).unwrap_or(0));
        out.extend_from_slice(version);
        between(out);
        out.extend_from_slice(&self.started.to_be_bytes());
        out.extend_from_slice(&self.cache_format.to_be_bytes());
    }

    fn decode(cursor: &mut Cursor<'_>, end: usize) -> Result<Self, Malformed> {
        let mut greeting = Self::decode_opening(cursor)?;
        greeting.decode_rest(cursor, end)?;
        Ok(greeting)
    }

    fn decode_opening(cursor: &mut Cursor<'_>) -> Result<Self, Malformed> {
        if cursor.take(MAGIC.len())? != MAGIC {
            return Err(Malformed);
        }
        let protocol = cursor.u16()?;
        let length = usize::from(cursor.u8()?).min(MAX_VERSION);
        // It goes into a log: nothing that a terminal would act on.
        let version = cursor.take(length)?.iter().map(|byte| match byte {
            0x20..=0x7e => char::from(*byte),
            _ => '?',
        });
        Ok(Self { protocol, version: version.collect(), started: 0, cache_format: 0 })
    }

    /// What only our own protocol version has in this form.
    fn decode_rest(&mut self, cursor: &mut Cursor<'_>, end: usize) -> Result<(), Malformed> {
        if self.protocol == PROTOCOL {
            self.started = u64_of(cursor)?;
            self.cache_format = cursor.u16()?;
        } else {
            cursor.take(end - cursor.at())?;
        }
        Ok(())
    }
}

impl Entry {
    /// About how many bytes it is in a message.
    pub fn size(&self) -> usize {
        48 + self.name.len() + self.answer.ttl_offsets.len() + self.answer.records.len()
    }

    fn encode(&self, out: &mut Vec<u8>) {
        let flag = |set: bool, bit: u8| if set { bit } else { 0 };
        out.push(u8::try_from(self.name.len()).unwrap_or(0));
        out.extend_from_slice(&self.name);
        for number in [self.qtype, self.qclass, self.answer.flags.0, self.answer.rcode.0] {
            out.extend_from_slice(&number.to_be_bytes());
        }
        for count in self.answer.counts {
            out.extend_from_slice(&count.to_be_bytes());
        }
        out.push(
            flag(self.dnssec_ok, 1) | flag(self.checking_disabled, 2) | flag(self.kind == Kind::Denial, 4),
        );
        out.push(self.rating);
        out.extend_from_slice(&self.block.to_be_bytes());
        out.extend_from_slice(&self.ttl.to_be_bytes());
        out.extend_from_slice(&self.age.to_be_bytes());
        for bytes in [&self.answer.ttl_offsets, &self.answer.records] {
            out.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(0).to_be_bytes());
            out.extend_from_slice(bytes);
        }
    }

    fn decode(cursor: &mut Cursor<'_>) -> Result<Self, Malformed> {
        let length = usize::from(cursor.u8()?);
        let name = cursor.take(length)?;
        Name::from_wire(name).map_err(|_| Malformed)?;
        let [qtype, qclass, flags, rcode] = [cursor.u16()?, cursor.u16()?, cursor.u16()?, cursor.u16()?];
        let counts = [cursor.u16()?, cursor.u16()?, cursor.u16()?];
        let (bits, rating) = (cursor.u8()?, cursor.u8()?);
        let block = u64_of(cursor)?;
        let ttl = cursor.u32()?;
        let age = u64_of(cursor)?;
        let mut bytes = || {
            let length = usize::try_from(cursor.u32()?).map_err(|_| Malformed)?;
            Ok::<Box<[u8]>, Malformed>(cursor.take(length)?.into())
        };
        let (ttl_offsets, records) = (bytes()?, bytes()?);
        Ok(Self {
            name: name.into(),
            qtype,
            qclass,
            dnssec_ok: bits & 1 != 0,
            checking_disabled: bits & 2 != 0,
            block,
            answer: OwnedAnswer { flags: Flags(flags), rcode: Rcode(rcode), counts, ttl_offsets, records },
            kind: if bits & 4 != 0 { Kind::Denial } else { Kind::Success },
            ttl,
            age,
            rating,
        })
    }
}

fn encode_address(address: SocketAddr, out: &mut Vec<u8>) {
    match address {
        SocketAddr::V4(v4) => {
            out.push(4);
            out.extend_from_slice(&v4.ip().octets());
        }
        SocketAddr::V6(v6) => {
            out.push(6);
            out.extend_from_slice(&v6.ip().octets());
            out.extend_from_slice(&v6.scope_id().to_be_bytes());
        }
    }
    out.extend_from_slice(&address.port().to_be_bytes());
}

fn decode_address(cursor: &mut Cursor<'_>) -> Result<SocketAddr, Malformed> {
    match cursor.u8()? {
        4 => {
            let octets: [u8; 4] = cursor.take(4)?.try_into().map_err(|_| Malformed)?;
            Ok(SocketAddr::new(IpAddr::from(octets), cursor.u16()?))
        }
        6 => {
            let octets: [u8; 16] = cursor.take(16)?.try_into().map_err(|_| Malformed)?;
            let scope = cursor.u32()?;
            Ok(SocketAddrV6::new(octets.into(), cursor.u16()?, 0, scope).into())
        }
        _ => Err(Malformed),
    }
}

fn u64_of(cursor: &mut Cursor<'_>) -> Result<u64, Malformed> {
    Ok(u64::from(cursor.u32()?) << 32 | u64::from(cursor.u32()?))
}

impl From<nodestub_wire::Malformed> for Malformed {
    fn from(_: nodestub_wire::Malformed) -> Self {
        Self
    }
}

impl std::fmt::Display for Malformed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("no message of a handover")
    }
}

impl std::error::Error for Malformed {}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn greeting() -> Greeting {
        Greeting { protocol: PROTOCOL, version: "1.2.3".into(), started: 1 << 50, cache_format: 7 }
    }

    fn one_of_each() -> Vec<Message> {
        let v4 = "169.254.20.10:53".parse().unwrap();
        let v6 = SocketAddrV6::new("fe80::1".parse().unwrap(), 53, 0, 3).into();
        let entry = Entry {
            name: b"\x01a\x07cluster\x05local\0".as_slice().into(),
            qtype: 28,
            qclass: 1,
            dnssec_ok: true,
            checking_disabled: false,
            block: u64::MAX,
            answer: OwnedAnswer {
                flags: Flags(0x0480),
                rcode: Rcode(3),
                counts: [0, 1, 0],
                ttl_offsets: [5, 0].into(),
                records: [9; 30].into(),
            },
            kind: Kind::Denial,
            ttl: 30,
            age: 29_999,
            rating: 3,
        };
        vec![
            Message::Hello(greeting()),
            Message::Refused(Refusal::NotNewer, greeting()),
            Message::Welcome(greeting()),
            Message::Cache { at: 12345, entries: vec![entry.clone(), entry] },
            Message::Warm,
            Message::Ready,
            Message::Socket { kind: SocketKind::Http, address: v6, count: 2 },
            Message::Yours,
            Message::Serving { dns: vec![v4, v6], http: vec![v6] },
            Message::Connection(Connection {
                address: v4,
                client: v6,
                has_asked: true,
                unread: b"\0\x1dpart".to_vec(),
            }),
            Message::Superseded,
            Message::TakeBack,
            Message::Withdrawn,
        ]
    }

    #[test]
    fn every_message_arrives_as_it_was_sent() {
        for message in one_of_each() {
            assert_eq!(Message::decode(&message.encode()), Ok(message));
        }
    }

    #[test]
    fn refuses_a_message_that_is_cut_or_goes_on() {
        for message in one_of_each() {
            let mut bytes = message.encode();
            if !matches!(message, Message::Connection(_)) {
                bytes.push(0);
                assert_eq!(Message::decode(&bytes), Err(Malformed), "{message:?}");
                bytes.pop();
            }
            for length in 0..bytes.len() {
                let cut = Message::decode(&bytes[..length]);
                // Lists and what was read from a client have no end of their own.
                assert!(cut != Ok(message.clone()), "{message:?} cut to {length}");
            }
        }
    }

    #[test]
    fn another_protocol_versions_opening_is_understood_whatever_follows() {
        let theirs = Greeting { protocol: 999, ..greeting() };
        let mut hello = Message::Hello(theirs.clone()).encode();
        hello.truncate(hello.len() - 10);
        hello.extend_from_slice(b"what only version 999 knows");
        let Ok(Message::Hello(read)) = Message::decode(&hello) else { panic!("not understood") };
        assert_eq!((read.protocol, read.version.as_str()), (999, "1.2.3"));
        let mut refused = Message::Refused(Refusal::Protocol, theirs).encode();
        refused.extend_from_slice(b"more");
        let Ok(Message::Refused(reason, read)) = Message::decode(&refused) else { panic!("not understood") };
        assert_eq!((reason, read.protocol), (Refusal::Protocol, 999));
    }

    #[test]
    fn a_version_carries_nothing_that_a_terminal_would_act_on() {
        let theirs = Greeting { version: "1\u{1b}[2J".into(), ..greeting() };
        let Ok(Message::Hello(read)) = Message::decode(&Message::Hello(theirs).encode()) else { panic!() };
        assert_eq!(read.version, "1?[2J");
    }

    proptest! {
        #[test]
        fn whatever_arrives_is_a_message_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..300), kind in 0_u8..15) {
            let mut bytes = bytes;
            if let Some(first) = bytes.first_mut() {
                *first = kind;
            }
            if let Ok(message) = Message::decode(&bytes) {
                prop_assert!(message.descriptors() <= 255);
            }
        }
    }
}
