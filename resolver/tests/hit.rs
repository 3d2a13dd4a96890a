//! What is already known is given at once: without allocating, to the right client, in the client's own words.
//!
//! In process and without a clock: Corefile text is compiled, an upstream's packet is judged and kept, and queries go
//! through `answer` with a "now" that the test chooses.
#![forbid(unsafe_code)]
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may stop at the first surprise, in its helpers too"
)]

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use allocation_counter::measure;
use nodestub_cache::{Cache, Kind, Millis, NewEntry, judge};
use nodestub_lab::upstream::{Data, answer as upstream_answer, denial};
use nodestub_lab::{Answer, Options, Rcode, dns};
use nodestub_resolver::answer::{Context, Outcome, answer, cache_key};
use nodestub_resolver::host_names::HostNames;
use nodestub_resolver::metrics::Protocol;
use nodestub_resolver::tables::{Tables, Workshop, Zones};
use nodestub_wire::{Admission, Flags, OwnedAnswer, OwnedRecord, Query, Reply};

const START: Millis = Millis(1_000_000);

/// A running resolver's tables and cache, without sockets.
struct Bench {
    workshop: Workshop,
    tables: Tables,
    cache: Cache,
}

impl Bench {
    fn new(corefile: &str) -> Self {
        let mut workshop = Workshop::new(1);
        let tables = compile(&mut workshop, corefile);
        Self { workshop, tables, cache: Cache::new(1 << 20) }
    }

    fn reload(&mut self, corefile: &str) {
        self.tables = compile(&mut self.workshop, corefile);
    }

    fn zones(&self, listener: &str) -> &Arc<Zones> {
        &self.tables.listeners[&listener.parse::<SocketAddr>().unwrap()]
    }

    fn context(&self, listener: &str, seconds: u64, protocol: Protocol) -> Context<'_> {
        let now = Millis(START.0 + 1000 * seconds);
        Context { zones: self.zones(listener), cache: &self.cache, now, protocol, v6: false, client: None }
    }

    /// Keeps an upstream's response at the start of time, as the slow side would.
    fn keep(&self, listener: &str, query: &[u8], response: &[u8]) {
        let Admission::Accept(query) = Query::admit(query) else { panic!("not admitted") };
        let route = self.zones(listener).find(query.name.as_bytes(), query.qtype).unwrap();
        let policy = route.block.cache.as_ref().unwrap();
        let reply = Reply::parse(response).unwrap();
        let judgement = judge(response, &reply, &policy.limits);
        let answer = OwnedAnswer::from_reply(response, &reply).unwrap();
        let kind = judgement.kind.expect("worth keeping");
        let entry = NewEntry { answer: &answer, ttl: judgement.ttl, kind, capacity: 1024 };
        self.cache.insert(&cache_key(&query, &route.block), &entry, START);
    }

    /// What the client reads; `None` for a miss.
    fn ask(&self, listener: &str, seconds: u64, query: &[u8], protocol: Protocol) -> Option<Answer> {
        let mut buffer = vec![0; 65_535];
        buffer[..query.len()].copy_from_slice(query);
        match answer(&self.context(listener, seconds, protocol), &mut buffer, query.len()) {
            Outcome::Reply(replied) => Some(Answer::parse(&buffer[..replied.length]).unwrap()),
            Outcome::Miss(..) => None,
            Outcome::Ignore => panic!("ignored"),
        }
    }
}

fn compile(workshop: &mut Workshop, corefile: &str) -> Tables {
    let options = nodestub_corefile::Options::default();
    let loaded =
        nodestub_corefile::parse("Corefile", corefile, &options, &nodestub_corefile::System).unwrap();
    workshop.compile(&loaded.config, &HostNames::new()).unwrap()
}

const HERE: &str = "127.0.0.1:53";
const ONE_BLOCK: &str = "test {\n bind 127.0.0.1\n cache\n forward . 192.0.2.53\n}\n";

fn question(name: &str, options: &Options) -> Vec<u8> {
    dns::query(name, "A", options).unwrap()
}

fn address(query: &[u8], name: &str, ttl: u32) -> Vec<u8> {
    upstream_answer(query, &[(name, ttl, Data::A(Ipv4Addr::new(192, 0, 2, 1)))]).unwrap()
}

/// The ways of asking that a pod's libraries use.
fn ways() -> [(&'static str, Options); 5] {
    let plain = Options::default;
    [
        ("plain", plain()),
        ("with EDNS", Options::edns(1232)),
        ("with DO", Options { dnssec_ok: true, ..plain() }),
        ("with CD", Options { checking_disabled: true, ..plain() }),
        ("with AD", Options { authentic_data: true, ..plain() }),
    ]
}

#[test]
fn a_hit_allocates_nothing_whatever_it_says_and_however_it_is_asked() {
    let bench = Bench::new(ONE_BLOCK);
    for (way, options) in ways() {
        let known = question("a.test", &options);
        bench.keep(HERE, &known, &address(&known, "a.test", 300));
        let absent = question("absent.svc.test", &options);
        bench.keep(HERE, &absent, &denial(&absent, Rcode::NXDOMAIN, "test", 300).unwrap());
        for (query, rcode) in [(known, "NOERROR"), (absent, "NXDOMAIN")] {
            for protocol in Protocol::ALL {
                let context = bench.context(HERE, 1, protocol);
                let mut buffer = [0; 4096];
                buffer[..query.len()].copy_from_slice(&query);
                let mut outcome = None;
                let allocations = measure(|| {
                    let decided = answer(&context, &mut buffer, query.len());
                    if let Outcome::Reply(replied) = &decided {
                        let lane = replied.counters.worker(0);
                        lane.observe(&replied.observation);
                        replied.cached.into_iter().for_each(|kind| lane.cache_hit(kind));
                    }
                    outcome = Some(decided);
                });
                let Some(Outcome::Reply(replied)) = outcome else { panic!("{way}: no hit") };
                assert!(replied.cached.is_some(), "{way}");
                assert_eq!(Answer::parse(&buffer[..replied.length]).unwrap().rcode, rcode, "{way}");
                assert_eq!(allocations.count_total, 0, "{rcode} {way} by {protocol:?}");
            }
        }
    }
}

/// A block with all that stands around a cache.
const WITH_A_CHAIN: &str = "test {
    bind 127.0.0.1
    nsid us
    bufsize 1232
    local
    dns64
    any
    loadbalance {
        prefer 192.0.2.3/32
    }
    rewrite continue edns0 local set 0xffee x
    rewrite name suffix .old.test .test
    rewrite ttl regex ^fixed 5
    acl {
        allow net 192.0.2.0/24
        block
    }
    cache
    forward . 192.0.2.53
}
";

#[test]
fn a_hit_that_no_directive_around_the_cache_touches_allocates_nothing_and_others_are_no_hits() {
    let bench = Bench::new(WITH_A_CHAIN);
    let options = Options::default();
    let addresses = [1, 2, 3].map(|last| Ipv4Addr::new(192, 0, 2, last));
    for name in ["a.test", "x.old.test", "fixed.test", "localhost.test"] {
        let query = question(name, &options);
        let records: Vec<_> = addresses.iter().map(|ip| (name, 300, Data::A(*ip))).collect();
        let response = upstream_answer(&query, &records).unwrap();
        // Packed as the slow side packs what `loadbalance` will reorder.
        let unpacked = OwnedRecord::unpack(&response, &Reply::parse(&response).unwrap()).unwrap();
        let Admission::Accept(query) = Query::admit(&query) else { panic!("not admitted") };
        let route = bench.zones(HERE).find(query.name.as_bytes(), query.qtype).unwrap();
        let answer =
            OwnedRecord::pack(query.name.as_bytes(), Flags(0), nodestub_wire::Rcode::NOERROR, &unpacked)
                .unwrap();
        let entry = NewEntry { answer: &answer, ttl: 300, kind: Kind::Success, capacity: 1024 };
        bench.cache.insert(&cache_key(&query, &route.block), &entry, START);
    }
    let friend = Some("192.0.2.7".parse().unwrap());
    let ask = |name: &str, client| {
        let context = Context { client, ..bench.context(HERE, 1, Protocol::Udp) };
        let query = question(name, &options);
        let mut buffer = [0; 4096];
        buffer[..query.len()].copy_from_slice(&query);
        let mut outcome = None;
        let allocations = measure(|| outcome = Some(answer(&context, &mut buffer, query.len())));
        match outcome {
            Some(Outcome::Reply(replied)) => {
                Some((Answer::parse(&buffer[..replied.length]).unwrap(), allocations.count_total))
            }
            _ => None,
        }
    };
    // A thread's random numbers are set up with the first.
    ask("a.test", friend).unwrap();
    let mut seconds = std::collections::HashSet::new();
    for _ in 0..64 {
        let (found, allocations) = ask("a.test", friend).unwrap();
        assert_eq!(allocations, 0);
        let data = found.data();
        assert_eq!((data.len(), data[0]), (3, "192.0.2.3"), "the preferred one comes first");
        seconds.insert(data[1].to_owned());
    }
    assert_eq!(seconds.len(), 2, "the others change places");
    assert!(ask("a.test", Some("198.51.100.1".parse().unwrap())).is_none(), "blocked, though it is known");
    assert!(ask("a.test", None).is_none());
    for touched in ["x.old.test", "fixed.test", "localhost.test"] {
        assert!(ask(touched, friend).is_none(), "{touched}");
    }
}

#[test]
fn a_refusal_allocates_nothing() {
    let bench = Bench::new(ONE_BLOCK);
    let query = question("a.example", &Options::edns(1232));
    let mut buffer = [0; 4096];
    buffer[..query.len()].copy_from_slice(&query);
    let context = bench.context(HERE, 0, Protocol::Udp);
    let mut replied = None;
    let allocations = measure(|| replied = Some(answer(&context, &mut buffer, query.len())));
    assert!(matches!(replied, Some(Outcome::Reply(_))));
    assert_eq!(allocations.count_total, 0);
}

#[test]
fn the_counter_of_allocations_sees_what_a_miss_costs() {
    let bench = Bench::new(ONE_BLOCK);
    let query = question("a.test", &Options::default());
    let response = address(&query, "a.test", 300);
    assert!(bench.ask(HERE, 0, &query, Protocol::Udp).is_none());
    let allocations = measure(|| bench.keep(HERE, &query, &response));
    // The list of records, the kept answer's two parts, the entry's bytes: at least.
    assert!(allocations.count_total >= 4, "{allocations:?}");
    assert!(allocations.bytes_total > response.len() as u64, "{allocations:?}");
}

#[test]
fn a_reply_keeps_the_clients_id_and_spelling_and_its_ttls_go_down() {
    let bench = Bench::new(ONE_BLOCK);
    let first = question("host.test", &Options::default());
    let records = [
        ("host.test", 300, Data::Cname("other.test".into())),
        ("other.test", 200, Data::A(Ipv4Addr::new(192, 0, 2, 1))),
        ("other.test", 100, Data::A(Ipv4Addr::new(192, 0, 2, 2))),
    ];
    bench.keep(HERE, &first, &upstream_answer(&first, &records).unwrap());
    for (seconds, ttl) in [(0, 100), (1, 99), (60, 40), (99, 1)] {
        let options = Options { id: Some(0xBEEF), ..Options::default() };
        let found =
            bench.ask(HERE, seconds, &question("HoSt.tEsT", &options), Protocol::Udp).expect("still known");
        assert_eq!(found.id, 0xBEEF);
        assert_eq!(found.question, Some(("HoSt.tEsT.".into(), "A".into(), "IN".into())));
        assert_eq!(found.ttls(), [ttl; 3]);
        assert_eq!(found.data(), ["other.test.", "192.0.2.1", "192.0.2.2"]);
        assert!(found.has("rd") && found.has("qr") && !found.has("tc"));
    }
    assert!(bench.ask(HERE, 100, &first, Protocol::Udp).is_none(), "its time is over");
}

#[test]
fn a_denial_is_given_for_the_time_of_denials() {
    let bench = Bench::new("test {\n bind 127.0.0.1\n cache {\n success 1024 600\n denial 1024 30\n }\n}\n");
    let query = question("absent.test", &Options::default());
    bench.keep(HERE, &query, &denial(&query, Rcode::NXDOMAIN, "test", 300).unwrap());
    let found = bench.ask(HERE, 10, &query, Protocol::Udp).unwrap();
    assert_eq!((found.rcode.as_str(), found.authority[0].ttl), ("NXDOMAIN", 20));
    assert!(bench.ask(HERE, 30, &query, Protocol::Udp).is_none());
}

#[test]
fn keepttl_gives_the_same_ttl_until_the_end() {
    let bench = Bench::new("test {\n bind 127.0.0.1\n cache {\n keepttl\n }\n}\n");
    let query = question("a.test", &Options::default());
    bench.keep(HERE, &query, &address(&query, "a.test", 300));
    for seconds in [0, 150, 299] {
        assert_eq!(bench.ask(HERE, seconds, &query, Protocol::Udp).unwrap().ttls(), [300]);
    }
    assert!(bench.ask(HERE, 300, &query, Protocol::Udp).is_none());
}

#[test]
fn an_answer_is_never_given_to_a_client_of_another_server_block() {
    let corefile = "
test {\n bind 127.0.0.1\n cache\n forward . 192.0.2.53\n}
test {\n bind 127.0.0.2\n cache\n forward . 192.0.2.54\n}
sub.test {\n bind 127.0.0.1\n cache\n forward . 192.0.2.55\n}
";
    let bench = Bench::new(corefile);
    let query = question("a.test", &Options::default());
    bench.keep(HERE, &query, &address(&query, "a.test", 300));
    assert!(bench.ask(HERE, 1, &query, Protocol::Udp).is_some());
    assert!(bench.ask("127.0.0.2:53", 1, &query, Protocol::Udp).is_none());
    let below = question("a.sub.test", &Options::default());
    bench.keep(HERE, &below, &address(&below, "a.sub.test", 300));
    assert!(bench.ask(HERE, 1, &below, Protocol::Udp).is_some());
    assert!(bench.ask("127.0.0.2:53", 1, &below, Protocol::Udp).is_none());
}

#[test]
fn two_blocks_that_differ_in_their_address_alone_share_nothing() {
    let block = |address: &str| format!("test {{\n bind {address}\n cache\n forward . 192.0.2.53\n}}\n");
    let bench = Bench::new(&[block("127.0.0.1"), block("127.0.0.2")].concat());
    let query = question("a.test", &Options::default());
    bench.keep(HERE, &query, &address(&query, "a.test", 300));
    assert!(bench.ask("127.0.0.2:53", 1, &query, Protocol::Udp).is_none());
}

#[test]
fn a_reload_keeps_the_answers_of_unchanged_blocks_and_of_no_other() {
    let corefile = |upstream: &str, host: &str| {
        format!(
            "test {{\n bind 127.0.0.1\n cache\n forward . {upstream}\n}}
example {{\n bind 127.0.0.1\n cache\n hosts {{\n 192.0.2.1 {host}\n reload 0\n }}\n}}\n"
        )
    };
    let mut bench = Bench::new(&corefile("192.0.2.53", "a.example"));
    let (test, example) =
        (question("a.test", &Options::default()), question("a.example", &Options::default()));
    bench.keep(HERE, &test, &address(&test, "a.test", 300));
    bench.keep(HERE, &example, &address(&example, "a.example", 300));
    let known =
        |bench: &Bench| [&test, &example].map(|query| bench.ask(HERE, 1, query, Protocol::Udp).is_some());
    assert_eq!(known(&bench), [true, true]);
    bench.reload(&corefile("192.0.2.54", "a.example"));
    assert_eq!(known(&bench), [false, true]);
    bench.reload(&corefile("192.0.2.53", "b.example"));
    assert_eq!(known(&bench), [true, false], "the first is as it was");
}

#[test]
fn answers_with_and_without_do_and_cd_are_kept_apart() {
    let plain = Options::default;
    let all = [(false, false), (false, true), (true, false), (true, true)]
        .map(|(dnssec_ok, checking_disabled)| Options { dnssec_ok, checking_disabled, ..plain() });
    for kept in &all {
        let bench = Bench::new(ONE_BLOCK);
        let query = question("a.test", kept);
        bench.keep(HERE, &query, &address(&query, "a.test", 300));
        for asked in &all {
            let same = (asked.dnssec_ok, asked.checking_disabled) == (kept.dnssec_ok, kept.checking_disabled);
            let found = bench.ask(HERE, 1, &question("a.test", asked), Protocol::Udp);
            assert_eq!(found.is_some(), same, "kept {kept:?}, asked {asked:?}");
            if let Some(found) = found {
                assert_eq!(found.has("cd"), asked.checking_disabled);
                assert_eq!(found.edns.is_some_and(|edns| edns.dnssec_ok), asked.dnssec_ok);
            }
        }
    }
}

#[test]
fn types_and_names_are_kept_apart() {
    let bench = Bench::new(ONE_BLOCK);
    let query = question("a.test", &Options::default());
    bench.keep(HERE, &query, &address(&query, "a.test", 300));
    for (name, rtype) in [("a.test", "AAAA"), ("b.test", "A"), ("a.a.test", "A"), ("test", "A")] {
        let other = dns::query(name, rtype, &Options::default()).unwrap();
        assert!(bench.ask(HERE, 1, &other, Protocol::Udp).is_none(), "{name} {rtype}");
    }
}

#[test]
fn a_client_that_did_not_ask_for_ad_is_not_told() {
    let bench = Bench::new(ONE_BLOCK);
    let query = question("a.test", &Options::default());
    let mut response = address(&query, "a.test", 300);
    response[3] |= 0x20;
    bench.keep(HERE, &query, &response);
    assert!(!bench.ask(HERE, 1, &query, Protocol::Udp).unwrap().has("ad"));
    let asked = question("a.test", &Options { authentic_data: true, ..Options::default() });
    assert!(bench.ask(HERE, 1, &asked, Protocol::Udp).unwrap().has("ad"));
}

#[test]
fn a_reply_is_cut_to_what_the_client_takes_in_whole_records() {
    let bench = Bench::new(ONE_BLOCK);
    let query = question("many.test", &Options::default());
    let addresses: Vec<(&str, u32, Data)> =
        (0..100_u8).map(|number| ("many.test", 300, Data::A(Ipv4Addr::new(192, 0, 2, number)))).collect();
    bench.keep(HERE, &query, &upstream_answer(&query, &addresses).unwrap());
    // Header and question have 27 bytes, a record 16 or, uncompressed, 25; an OPT 11.
    let whole = bench.ask(HERE, 1, &query, Protocol::Tcp).unwrap();
    let record = (whole.raw.len() - 27) / 100;
    for (options, limit) in [
        (Options::default(), 512),
        (Options::edns(100), 512),
        (Options::edns(512), 512),
        (Options::edns(1232), 1232),
        (Options::edns(65_535), 65_507),
    ] {
        let found = bench.ask(HERE, 1, &question("many.test", &options), Protocol::Udp).unwrap();
        let room = limit - 27 - if options.edns.is_some() { 11 } else { 0 };
        let fitting = (room / record).min(100);
        assert_eq!(found.answers.len(), fitting, "limit {limit}");
        assert_eq!(found.has("tc"), fitting < 100, "limit {limit}");
        assert!(found.raw.len() <= limit);
        assert_eq!(found.answers[..], whole.answers[..fitting]);
        assert_eq!(found.edns.is_some(), options.edns.is_some());
    }
    assert_eq!((whole.answers.len(), whole.has("tc")), (100, false));
}
