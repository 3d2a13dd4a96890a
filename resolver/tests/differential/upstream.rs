//! What both servers ask: a small world under `test.`, and whatever a name's first label says.
//!
//! | name | answer |
//! | --- | --- |
//! | `a.`, `two.`, `four.` | A and AAAA |
//! | `alias.`, `chain.`, `loop.` | CNAMEs, with what they lead to |
//! | `mx.`, `srv.`, `txt.`, `naptr.`, `ns.`, `soa.` | what they say, with additional records |
//! | `empty.` | no such data |
//! | `nx*.` | no such name |
//! | `servfail.`, `refused.`, `notimp.`, `formerr.` | that code |
//! | `zero.`, `short.`, `long.` | a TTL of 0, 1, 100,000 s |
//! | `secure.` | AD, and a signature |
//! | `referral.` | name servers only |
//! | `echo.` | TXT: the EDNS options that came, in hexadecimal |
//! | `who.` | TXT: the question's name as it came |
//! | `big.` | more than 1,232 bytes |

use nodestub_lab::Transport;
use nodestub_lab::upstream::Reply;

use crate::question::wire_name;

struct Record {
    section: usize,
    owner: String,
    rtype: u16,
    ttl: u32,
    data: Vec<u8>,
}

struct World {
    rcode: u16,
    flags: u16,
    records: Vec<Record>,
}

const AA: u16 = 1 << 10;
const RA: u16 = 1 << 7;
const AD: u16 = 1 << 5;

impl World {
    fn add(mut self, section: usize, owner: &str, rtype: u16, ttl: u32, data: Vec<u8>) -> Self {
        self.records.push(Record { section, owner: owner.to_owned(), rtype, ttl, data });
        self
    }

    fn answer(self, owner: &str, rtype: u16, ttl: u32, data: Vec<u8>) -> Self {
        self.add(0, owner, rtype, ttl, data)
    }

    fn soa(self) -> Self {
        let mut data = wire_name("ns.test.");
        data.extend(wire_name("admin.test."));
        for number in [1_u32, 7200, 3600, 1_209_600, 300] {
            data.extend(number.to_be_bytes());
        }
        self.add(1, "test.", 6, 300, data)
    }
}

fn txt(text: &str) -> Vec<u8> {
    text.as_bytes()
        .chunks(255)
        .flat_map(|part| [&[u8::try_from(part.len()).unwrap()], part].concat())
        .collect()
}

fn v6(last: u8) -> Vec<u8> {
    let mut address = vec![0x20, 0x01, 0x0d, 0xb8];
    address.resize(15, 0);
    address.push(last);
    address
}

/// Answers one query.
pub(crate) fn behaviour(query: &[u8], transport: Transport) -> Vec<Reply> {
    let Some((name, qtype, qclass, question_end)) = question(query) else { return Vec::new() };
    let mut world = answer_to(&name, qtype, query, question_end);
    if qclass != 1 {
        world = World { rcode: 5, flags: 0, records: Vec::new() };
    }
    let edns = query.get(11) == Some(&1);
    let size = if edns { query.get(question_end + 3..question_end + 5) } else { None };
    let size = size.map_or(512, |size| usize::from(u16::from_be_bytes([size[0], size[1]])).max(512));
    let mut packet = build(query, question_end, &world, edns);
    if transport == Transport::Udp && packet.len() > size {
        let cut = World { rcode: world.rcode, flags: world.flags | 1 << 9, records: Vec::new() };
        packet = build(query, question_end, &cut, edns);
    }
    vec![Reply::now(packet)]
}

/// A second server, which knows denials and nothing else: the others are SERVFAIL.
pub(crate) fn failing(query: &[u8], _: Transport) -> Vec<Reply> {
    let Some((name, _, _, question_end)) = question(query) else { return Vec::new() };
    let world = World { rcode: 0, flags: RA, records: Vec::new() };
    let world = match name.to_lowercase().split('.').next().unwrap_or_default() {
        "nx" => World { rcode: 3, ..world }.soa(),
        "empty" => world.soa(),
        "refused" => World { rcode: 5, ..world },
        _ => World { rcode: 2, ..world },
    };
    vec![Reply::now(build(query, question_end, &world, query.get(11) == Some(&1)))]
}

fn question(query: &[u8]) -> Option<(String, u16, u16, usize)> {
    let mut name = String::new();
    let mut at = 12;
    loop {
        let length = usize::from(*query.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        name += &String::from_utf8_lossy(query.get(at..at + length)?);
        name.push('.');
        at += length;
    }
    let word = |at: usize| Some(u16::from_be_bytes([*query.get(at)?, *query.get(at + 1)?]));
    Some((name, word(at)?, word(at + 2)?, at + 4))
}

fn answer_to(asked: &str, qtype: u16, query: &[u8], question_end: usize) -> World {
    let name = asked.to_lowercase();
    let world = World { rcode: 0, flags: AA | RA, records: Vec::new() };
    if !(name == "test." || name.ends_with(".test.") || name.ends_with(".arpa.")) {
        return World { rcode: 3, ..world }.soa();
    }
    let label = name.split('.').next().unwrap_or_default();
    let addresses = |world: World, owner: &str, count: u8, ttl: u32| {
        let mut world = world;
        for last in 1..=count {
            world = match qtype {
                1 => world.answer(owner, 1, ttl, vec![192, 0, 2, last]),
                28 => world.answer(owner, 28, ttl, v6(last)),
                255 => world.answer(owner, 1, ttl, vec![192, 0, 2, last]).answer(owner, 28, ttl, v6(last)),
                _ => world,
            };
        }
        if world.records.is_empty() { world.soa() } else { world }
    };
    match (label, qtype) {
        ("a", _) => addresses(world, &name, 1, 300),
        ("two", _) => addresses(world, &name, 2, 60),
        ("four", _) => addresses(world, &name, 4, 60),
        ("only4", 1) => {
            world.answer(&name, 1, 120, vec![192, 0, 2, 44]).answer(&name, 1, 120, vec![192, 0, 2, 45])
        }
        ("up53", 1) => world.answer(&name, 1, 60, vec![127, 0, 0, 53]),
        ("zero", _) => addresses(world, &name, 1, 0),
        ("short", _) => addresses(world, &name, 1, 1),
        ("long", _) => addresses(world, &name, 1, 100_000),
        ("alias", _) => {
            let world = world.answer(&name, 5, 200, wire_name("a.test."));
            if qtype == 5 { world } else { addresses_behind(world, "a.test.", qtype, 300) }
        }
        ("chain", _) => {
            let world = world.answer(&name, 5, 200, wire_name("alias.test."));
            if qtype == 5 {
                return world;
            }
            let world = world.answer("alias.test.", 5, 100, wire_name("a.test."));
            addresses_behind(world, "a.test.", qtype, 300)
        }
        ("dangling", _) => {
            let world = world.answer(&name, 5, 200, wire_name("nx.test."));
            if qtype == 5 { world } else { World { rcode: 3, ..world.soa() } }
        }
        ("half", _) => world.answer(&name, 5, 200, wire_name("elsewhere.test.")),
        ("mx", 15) => {
            let data = |preference: u8, host: &str| [&[0, preference][..], &wire_name(host)].concat();
            world
                .answer(&name, 15, 400, data(10, "mail1.test."))
                .answer(&name, 15, 400, data(20, "mail2.test."))
                .add(1, "test.", 2, 500, wire_name("ns.test."))
                .add(2, "mail1.test.", 1, 600, vec![192, 0, 2, 25])
        }
        ("srv", 33) => {
            let data = |port: u8, host: &str| [&[0, 1, 0, 2, 0, port][..], &wire_name(host)].concat();
            world
                .answer(&name, 33, 30, data(80, "web1.test."))
                .answer(&name, 33, 30, data(81, "web2.test."))
                .add(2, "web1.test.", 1, 30, vec![192, 0, 2, 80])
                .add(2, "web2.test.", 1, 30, vec![192, 0, 2, 81])
        }
        ("txt", 16) => world.answer(&name, 16, 77, txt("hello world")).answer(&name, 16, 77, txt("second")),
        ("naptr", 35) => {
            let mut data = vec![0, 10, 0, 20, 1, b'u', 3, b'S', b'I', b'P', 0];
            data.extend(wire_name("target.test."));
            world.answer(&name, 35, 90, data)
        }
        ("ns", 2) => world
            .answer(&name, 2, 3600, wire_name("ns1.test."))
            .answer(&name, 2, 3600, wire_name("ns2.test."))
            .add(2, "ns1.test.", 1, 3600, vec![192, 0, 2, 53]),
        ("soa", 6) => {
            let mut world = world.soa();
            for record in &mut world.records {
                record.section = 0;
                record.owner.clone_from(&name);
            }
            world
        }
        ("1" | "5", 12) => world.answer(&name, 12, 50, wire_name("host.test.")),
        ("servfail", _) => World { rcode: 2, ..world },
        ("refused", _) => World { rcode: 5, ..world },
        ("notimp", _) => World { rcode: 4, ..world },
        ("formerr", _) => World { rcode: 1, flags: 0, ..world },
        ("bare", _) => world,
        ("barenx", _) => World { rcode: 3, ..world },
        ("secure", _) => {
            let world = World { flags: RA | AD, ..world };
            addresses(world, &name, 1, 300)
        }
        ("referral", _) => World { flags: 0, ..world }
            .add(1, "sub.test.", 2, 900, wire_name("ns.sub.test."))
            .add(2, "ns.sub.test.", 1, 900, vec![192, 0, 2, 99]),
        ("echo", 16) => {
            let options = query.get(question_end + 11..).unwrap_or_default();
            let hex: String = options.iter().map(|byte| format!("{byte:02x}")).collect();
            world.answer(&name, 16, 60, txt(&format!("options {hex}")))
        }
        ("who", 16) => world.answer(&name, 16, 60, txt(asked)),
        ("big", 16) => {
            let mut world = world;
            for number in 0..12 {
                world = world.answer(&name, 16, 60, txt(&format!("{number} {}", "x".repeat(200))));
            }
            world
        }
        ("medium", 16) => {
            let mut world = world;
            for number in 0..4 {
                world = world.answer(&name, 16, 60, txt(&format!("{number} {}", "y".repeat(180))));
            }
            world
        }
        _ if label.starts_with("nx") => World { rcode: 3, ..world }.soa(),
        _ if label.starts_with("host") || label.starts_with("web") => addresses(world, &name, 1, 40),
        _ => world.soa(),
    }
}

fn addresses_behind(world: World, owner: &str, qtype: u16, ttl: u32) -> World {
    match qtype {
        1 => world.answer(owner, 1, ttl, vec![192, 0, 2, 1]),
        28 => world.answer(owner, 28, ttl, v6(1)),
        _ => world.soa(),
    }
}

fn build(query: &[u8], question_end: usize, world: &World, edns: bool) -> Vec<u8> {
    let asked_flags = u16::from_be_bytes([query[2], query[3]]);
    let flags = 1 << 15 | asked_flags & (1 << 8 | 1 << 4) | world.flags | world.rcode;
    let count = |section: usize| {
        u16::try_from(world.records.iter().filter(|record| record.section == section).count()).unwrap()
    };
    let mut packet = query[..2].to_vec();
    for word in [flags, 1, count(0), count(1), count(2) + u16::from(edns)] {
        packet.extend(word.to_be_bytes());
    }
    packet.extend(&query[12..question_end]);
    let asked = wire_lower(&query[12..question_end - 4]);
    for section in 0..3 {
        for record in world.records.iter().filter(|record| record.section == section) {
            let owner = wire_name(&record.owner);
            // The question's own name, by a pointer, as every server writes it.
            if owner == asked {
                packet.extend([0xC0, 12]);
            } else {
                packet.extend(owner);
            }
            packet.extend(record.rtype.to_be_bytes());
            packet.extend(1_u16.to_be_bytes());
            packet.extend(record.ttl.to_be_bytes());
            packet.extend(u16::try_from(record.data.len()).unwrap().to_be_bytes());
            packet.extend(&record.data);
        }
    }
    if edns {
        packet.extend([0, 0, 41, 0x10, 0, 0, 0, query[question_end + 7] & 0x80, 0, 0, 0]);
    }
    packet
}

fn wire_lower(name: &[u8]) -> Vec<u8> {
    name.to_ascii_lowercase()
}
