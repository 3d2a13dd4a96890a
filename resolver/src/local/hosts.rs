//! `hosts`: names and addresses from a file in the format of /etc/hosts and from the Corefile itself.
//!
//! Semantics are CoreDNS's (`plugin/hosts`): A and AAAA for a name, PTR for an address, NODATA for another type of a
//! name that exists; for a name that does not, `fallthrough` decides between passing on and SERVFAIL. Answers are made
//! with `hickory-proto` on the slow side, and kept by `cache` like any other.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use hickory_proto::op::{Message, MessageType, OpCode, Query as Question};
use hickory_proto::rr::rdata::{A, AAAA, PTR};
use hickory_proto::rr::{Name as HickoryName, RData, Record, RecordType};
use nodestub_corefile::config::{Hosts, HostsEntry};
use nodestub_wire::{CLASS_IN, Name, OwnedAnswer, Rcode, Reply, rtype};

use crate::metrics::Counter;

/// Longest file that is read, in bytes; block lists reach some 20 MiB.
const MAX_FILE: u64 = 64 << 20;

/// One `hosts` directive at work.
#[derive(Debug)]
pub struct HostsTable {
    config: Hosts,
    inline: Entries,
    from_file: ArcSwap<Entries>,
    /// Attempts to read the file that failed.
    pub failed_reads: Counter,
}

#[derive(Debug, Default)]
struct Entries {
    v4: HashMap<Name, Vec<Ipv4Addr>>,
    v6: HashMap<Name, Vec<Ipv6Addr>>,
    names: HashMap<IpAddr, Vec<Name>>,
    /// Modification time and length of the file that was read.
    version: Option<(SystemTime, u64)>,
    /// When it was read.
    read_at: Option<SystemTime>,
}

/// What `hosts` says to a question.
#[derive(Debug)]
pub enum Verdict {
    /// This.
    Answer(OwnedAnswer),
    /// The next directive is asked.
    PassOn,
}

impl HostsTable {
    /// Reads the file, if there is one; a file that cannot be read counts as empty (it may come later) and is said.
    pub fn new(config: &Hosts) -> Self {
        let mut inline = Entries::default();
        for HostsEntry { addr, names } in &config.inline {
            inline.add(*addr, names.iter().cloned());
        }
        let table = Self {
            config: config.clone(),
            inline,
            from_file: ArcSwap::default(),
            failed_reads: Counter::default(),
        };
        table.refresh();
        table
    }

    /// How often [`HostsTable::refresh`] should be called; `None`: never.
    pub fn interval(&self) -> Option<std::time::Duration> {
        self.config.file.as_ref().and(self.config.reload)
    }

    /// The file, if there is one.
    pub fn file(&self) -> Option<&PathBuf> {
        self.config.file.as_ref()
    }

    /// Entries in all, and when the file was last read.
    pub fn stats(&self) -> (usize, Option<SystemTime>) {
        let from_file = self.from_file.load();
        (from_file.len() + self.inline.len(), from_file.read_at)
    }

    /// Reads the file again if it has changed. What was read before stays where it cannot be read.
    pub fn refresh(&self) {
        let Some(file) = &self.config.file else { return };
        let read = || -> io::Result<Option<Entries>> {
            let meta = std::fs::metadata(file)?;
            let version = Some((meta.modified()?, meta.len()));
            if self.from_file.load().version == version {
                return Ok(None);
            }
            if meta.len() > MAX_FILE {
                return Err(io::Error::other(format!("the file has more than {MAX_FILE} bytes")));
            }
            let text = String::from_utf8_lossy(&std::fs::read(file)?).into_owned();
            let mut entries = Entries::parse(&text);
            entries.version = version;
            entries.read_at = Some(SystemTime::now());
            Ok(Some(entries))
        };
        match read() {
            Ok(Some(entries)) => self.from_file.store(Arc::new(entries)),
            Ok(None) => {}
            Err(error) => {
                self.failed_reads.add(1);
                tracing::warn!(file = %file.display(), %error, "hosts: cannot read the file; its last contents stay");
            }
        }
    }

    /// Answers a question of class IN, or passes it on.
    pub fn answer(&self, name: &Name, qtype: u16) -> Verdict {
        let in_zones =
            self.config.zones.is_empty() || self.config.zones.iter().any(|zone| name.is_within(zone));
        let known_type = matches!(qtype, rtype::A | rtype::AAAA | rtype::PTR);
        if !known_type && in_zones && self.config.passes_other_types && self.falls_through(name) {
            return Verdict::PassOn;
        }
        let from_file = self.from_file.load();
        let both = [&**from_file, &self.inline];
        let data: Vec<RData> = if qtype == rtype::PTR {
            // Reverse names need not be in the zones; what is not found is passed on whatever `fallthrough` says.
            let address = (!self.config.no_reverse).then(|| address_of_reverse_name(name)).flatten();
            let Some(address) = address else { return Verdict::PassOn };
            let names = both.iter().filter_map(|entries| entries.names.get(&address)).flatten();
            let data: Vec<_> = names.filter_map(|name| Some(RData::PTR(PTR(hickory_name(name)?)))).collect();
            if data.is_empty() {
                return Verdict::PassOn;
            }
            data
        } else if in_zones {
            let v4: Vec<RData> =
                both.iter().flat_map(|one| one.v4(name)).map(|ip| RData::A(A(*ip))).collect();
            let v6: Vec<RData> =
                both.iter().flat_map(|one| one.v6(name)).map(|ip| RData::AAAA(AAAA(*ip))).collect();
            if v4.is_empty() && v6.is_empty() {
                // Not NXDOMAIN: there is no SOA to give with it, and a hosts file does not speak for a zone.
                return if self.falls_through(name) {
                    Verdict::PassOn
                } else {
                    Verdict::Answer(OwnedAnswer::empty(Rcode::SERVFAIL))
                };
            }
            match qtype {
                rtype::A => v4,
                rtype::AAAA => v6,
                _ => Vec::new(),
            }
        } else {
            return Verdict::PassOn;
        };
        let answer = make_answer(name, qtype, data, self.config.ttl);
        Verdict::Answer(answer.unwrap_or_else(|| OwnedAnswer::empty(Rcode::SERVFAIL)))
    }

    fn falls_through(&self, name: &Name) -> bool {
        let zones = self.config.fallthrough.as_deref();
        zones.is_some_and(|zones| zones.is_empty() || zones.iter().any(|zone| name.is_within(zone)))
    }
}

impl Entries {
    fn parse(text: &str) -> Self {
        let mut entries = Self::default();
        for line in text.lines() {
            let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
            // A line that is no entry is passed over, as by every reader of this format.
            let Some(address) = words.next().and_then(parse_address) else { continue };
            entries.add(address, words.filter_map(|word| word.parse().ok()));
        }
        entries
    }

    fn add(&mut self, address: IpAddr, names: impl Iterator<Item = Name>) {
        for name in names {
            // What a `*` stands for has no one name to give back.
            if name.labels().next() != Some(b"*") {
                push_new(self.names.entry(address).or_default(), name.clone());
            }
            match address {
                IpAddr::V4(address) => push_new(self.v4.entry(name).or_default(), address),
                IpAddr::V6(address) => push_new(self.v6.entry(name).or_default(), address),
            }
        }
    }

    fn v4(&self, name: &Name) -> &[Ipv4Addr] {
        exact_or_wildcard(&self.v4, name)
    }

    fn v6(&self, name: &Name) -> &[Ipv6Addr] {
        exact_or_wildcard(&self.v6, name)
    }

    fn len(&self) -> usize {
        let addresses = self.v4.values().map(Vec::len).chain(self.v6.values().map(Vec::len));
        addresses.chain(self.names.values().map(Vec::len)).sum()
    }
}

/// The addresses of a name, or of the name with `*` for its first label.
fn exact_or_wildcard<'a, T>(map: &'a HashMap<Name, Vec<T>>, name: &Name) -> &'a [T] {
    let found = map.get(name).or_else(|| {
        let parent = name.as_bytes().get(1 + name.labels().next()?.len()..)?;
        map.get(&Name::from_wire(&[b"\x01*", parent].concat()).ok()?)
    });
    found.map(Vec::as_slice).unwrap_or_default()
}

fn push_new<T: PartialEq>(list: &mut Vec<T>, item: T) {
    if !list.contains(&item) {
        list.push(item);
    }
}

/// `fe80::1%lo0` counts without its zone, as in CoreDNS.
fn parse_address(word: &str) -> Option<IpAddr> {
    let address: IpAddr = word.split('%').next()?.parse().ok()?;
    Some(address.to_canonical())
}

/// The address behind `4.3.2.1.in-addr.arpa.` or 32 nibbles under `ip6.arpa.`.
fn address_of_reverse_name(name: &Name) -> Option<IpAddr> {
    let labels: Vec<&str> =
        name.labels().map(|label| std::str::from_utf8(label).unwrap_or_default()).collect();
    match labels.as_slice() {
        [d, c, b, a, "in-addr", "arpa"] => format!("{a}.{b}.{c}.{d}").parse().ok(),
        [nibbles @ .., "ip6", "arpa"] if nibbles.len() == 32 => {
            let bits = nibbles.iter().rev().try_fold(0u128, |bits, nibble| {
                let one_digit = nibble.len() == 1;
                Some(bits << 4 | u128::from_str_radix(nibble, 16).ok().filter(|_| one_digit)?)
            })?;
            Some(IpAddr::V6(bits.into()))
        }
        _ => None,
    }
}

fn make_answer(name: &Name, qtype: u16, data: Vec<RData>, ttl: u32) -> Option<OwnedAnswer> {
    let owner = hickory_name(name)?;
    let mut message = Message::new(0, MessageType::Response, OpCode::Query);
    message.metadata.authoritative = true;
    message.add_query(Question::query(owner.clone(), RecordType::from(qtype)));
    for data in data {
        message.add_answer(Record::from_rdata(owner.clone(), ttl, data));
    }
    let packet = message.to_vec().ok()?;
    let reply = Reply::parse(&packet).ok()?;
    debug_assert!(reply.answers(0, name.as_bytes(), qtype, CLASS_IN), "we answer what was asked");
    OwnedAnswer::from_reply(&packet, &reply).ok()
}

fn hickory_name(name: &Name) -> Option<HickoryName> {
    HickoryName::from_labels(name.labels()).ok()
}
