//! Whatever bytes come, nothing panics, no worker stops, and what is said is a DNS message.
#![forbid(unsafe_code)]
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may stop at the first surprise, in its helpers too"
)]

mod common;

use std::io::{Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::sync::LazyLock;
use std::time::Duration;

use common::{SERVER, Scene, patient, patient_tcp, upstream_in};
use domain::base::Message;
use nodestub_cache::{Bounds, Cache, Limits, Millis, NewEntry, judge};
use nodestub_lab::skip::can_make_namespaces;
use nodestub_lab::upstream::{Data, Reply as Sent, answer as upstream_answer, denial};
use nodestub_lab::{Netns, Options, Rcode, Transport, dns};
use nodestub_resolver::answer::{Context, Outcome, answer, cache_key};
use nodestub_resolver::host_names::HostNames;
use nodestub_resolver::metrics::Protocol;
use nodestub_resolver::tables::{Tables, Workshop};
use nodestub_wire::{Admission, Header, OwnedAnswer, Query, Reply};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

const NOW: Millis = Millis(1_000_000);

/// Tables of all zones, and a cache that knows `a.test` with and without EDNS.
static BENCH: LazyLock<(Tables, Cache)> = LazyLock::new(|| {
    let corefile = ". {\n bind 127.0.0.1\n cache\n forward . 192.0.2.53\n}\n";
    let options = nodestub_corefile::Options::default();
    let loaded =
        nodestub_corefile::parse("Corefile", corefile, &options, &nodestub_corefile::System).unwrap();
    let tables = Workshop::new(1).compile(&loaded.config, &HostNames::new()).unwrap();
    let cache = Cache::new(1 << 20);
    for query in queries() {
        let Admission::Accept(admitted) = Query::admit(&query) else { panic!("not admitted") };
        let zones = &tables.listeners[&SERVER];
        let route = zones.find(admitted.name.as_bytes(), admitted.qtype).unwrap();
        let response = responses(&query).swap_remove(0);
        let kept = OwnedAnswer::from_reply(&response, &Reply::parse(&response).unwrap()).unwrap();
        let entry = NewEntry { answer: &kept, ttl: 300, kind: nodestub_cache::Kind::Success, capacity: 1024 };
        cache.insert(&cache_key(&admitted, &route.block), &entry, NOW);
    }
    (tables, cache)
});

/// Queries as pods send them.
fn queries() -> Vec<Vec<u8>> {
    let plain = Options { id: Some(0x1234), ..Options::default() };
    [
        plain.clone(),
        Options { edns: Some(1232), ..plain.clone() },
        Options { dnssec_ok: true, checking_disabled: true, ..plain },
    ]
    .iter()
    .map(|options| dns::query("a.test", "A", options).unwrap())
    .collect()
}

/// Responses as upstreams send them.
fn responses(query: &[u8]) -> Vec<Vec<u8>> {
    let addresses: Vec<(&str, u32, Data)> =
        (0..40_u8).map(|number| ("a.test", 300, Data::A([192, 0, 2, number].into()))).collect();
    let chain = [
        ("a.test", 300, Data::Cname("b.test".into())),
        ("b.test", 300, Data::Aaaa("2001:db8::1".parse().unwrap())),
    ];
    vec![
        upstream_answer(query, &addresses).unwrap(),
        upstream_answer(query, &chain).unwrap(),
        denial(query, Rcode::NXDOMAIN, "test", 300).unwrap(),
        compressed(query),
    ]
}

/// A response as real servers write it: each owner a pointer to the question, and one to another record's data.
fn compressed(query: &[u8]) -> Vec<u8> {
    let mut response = query[..24].to_vec();
    response[2] = 0x84;
    response[4..12].copy_from_slice(&[0, 1, 0, 2, 0, 1, 0, 1]);
    // a.test CNAME b.test, whose data is at 36; b.test A; test SOA; OPT.
    response.extend(b"\xc0\x0c\0\x05\0\x01\0\0\x01\x2c\0\x04\x01b\xc0\x0e");
    response.extend(b"\xc0\x24\0\x01\0\x01\0\0\x01\x2c\0\x04\xc0\0\x02\x01");
    response.extend(b"\xc0\x0e\0\x06\0\x01\0\0\x01\x2c\0\x1b\x02ns\xc0\x0e\xc0\x24");
    response.extend([0; 19]);
    response.push(60);
    response.extend(b"\0\0\x29\x04\xd0\0\0\0\0\0\0");
    response
}

#[test]
fn what_is_damaged_here_was_whole_before() {
    for query in queries() {
        assert!(matches!(Query::admit(&query), Admission::Accept(_)));
        for response in responses(&query) {
            assert_well_formed(&response).unwrap();
            assert_eq!(Reply::parse(&response).unwrap().end, response.len());
        }
    }
}

/// Bytes that have something of a message: random ones, and good messages that something happened to.
fn damaged(good: Vec<Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    let good = prop::sample::select(good);
    let edits = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8);
    let edited = (good.clone(), edits).prop_map(|(mut bytes, edits)| {
        for (place, byte) in edits {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        bytes
    });
    let truncated = (good.clone(), any::<prop::sample::Index>()).prop_map(|(mut bytes, length)| {
        bytes.truncate(length.index(bytes.len()));
        bytes
    });
    let extended = (good.clone(), prop::collection::vec(any::<u8>(), 1..40))
        .prop_map(|(bytes, more)| [bytes, more].concat());
    let pointers = (good, prop::collection::vec((any::<prop::sample::Index>(), 0u8..64), 1..4)).prop_map(
        |(mut bytes, pointers)| {
            for (place, low) in pointers {
                let place = place.index(bytes.len() - 1);
                bytes[place..place + 2].copy_from_slice(&[0xC0, low]);
            }
            bytes
        },
    );
    // Counts that promise much, and few bytes to keep it.
    let boastful = (
        any::<[u8; 12]>(),
        prop::collection::vec(prop::sample::select(vec![0_u8, 1, 63, 0xC0, 12, 255]), 0..80),
    )
        .prop_map(|(header, rest)| [&header[..], &rest].concat());
    prop_oneof![
        4 => edited,
        2 => truncated,
        1 => extended,
        2 => pointers,
        1 => boastful,
        1 => prop::collection::vec(any::<u8>(), 0..600),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn no_packet_of_a_client_makes_the_fast_side_panic_and_every_reply_is_well_formed(
        packet in damaged(queries()), tcp in any::<bool>(),
    ) {
        let (tables, cache) = &*BENCH;
        let protocol = if tcp { Protocol::Tcp } else { Protocol::Udp };
        let context = Context { zones: &tables.listeners[&SERVER], cache, now: NOW, protocol, v6: false, client: None };
        let mut buffer = vec![0xEE; 4096.max(packet.len())];
        buffer[..packet.len()].copy_from_slice(&packet);
        match answer(&context, &mut buffer, packet.len()) {
            Outcome::Ignore => prop_assert!(packet.len() < 12 || packet[2] & 0x80 != 0),
            Outcome::Miss(query, _) => {
                prop_assert_eq!(&packet[..2], query.id.to_be_bytes());
                prop_assert_eq!(&buffer[..packet.len()], &packet, "the slow side needs the query as it came");
            }
            Outcome::Reply(replied) => {
                let reply = &buffer[..replied.length];
                assert_well_formed(reply)?;
                prop_assert_eq!(&reply[..2], &packet[..2]);
                prop_assert!(reply[2] & 0x80 != 0);
            }
        }
    }

    #[test]
    fn no_packet_of_an_upstream_makes_the_slow_side_panic_and_what_is_made_of_it_is_well_formed(
        packet in damaged(queries().iter().flat_map(|query| responses(query)).collect()),
        edns in any::<bool>(), limit in 0usize..5000, min in 0u32..10, max in 0u32..10,
    ) {
        let Ok(reply) = Reply::parse(&packet) else { return Ok(()) };
        let bounds = Bounds { min, max };
        let judgement = judge(&packet, &reply, &Limits { success: bounds, denial: bounds, failure_ttl: 5 });
        prop_assert!(judgement.kind.is_none() || judgement.ttl > 0);
        let kept = OwnedAnswer::from_reply(&packet, &reply).unwrap();

        // A client with the same question, which is all that this answer is ever given to.
        let options = Options { edns: edns.then_some(4096), ..Options::default() };
        let mut question = dns::query("x", "A", &options).unwrap();
        question.splice(12..19, packet[12..reply.question_end].iter().copied());
        let Admission::Accept(query) = Query::admit(&question) else { panic!("not admitted: {question:?}") };
        let mut buffer = question;
        buffer.resize(kept.as_answer().reply_len(&query).max(buffer.len()), 0xEE);
        let whole = kept.as_answer().write(&mut buffer.clone(), &query, Some(judgement.ttl), limit);
        prop_assert!(whole.is_none_or(|length| length <= limit.max(query.question_end + 11)));
        let length = kept.as_answer().write(&mut buffer, &query, None, limit).unwrap();
        assert_well_formed(&buffer[..length])?;
    }
}

/// `domain` finds every record that the header counts, each name whole, and not a byte more.
fn assert_well_formed(packet: &[u8]) -> Result<(), TestCaseError> {
    let message = Message::from_octets(packet).map_err(|_| TestCaseError::fail("no header"))?;
    let wrong = |what: &str| TestCaseError::fail(format!("{what} in {packet:?}"));
    for question in message.question() {
        question.map_err(|_| wrong("a broken question"))?;
    }
    let (_, answer, authority, additional) = message.sections().map_err(|_| wrong("a broken section"))?;
    for section in [answer, authority, additional] {
        for record in section {
            record.map_err(|_| wrong("a broken record"))?;
        }
    }
    // And we would take it ourselves, were it an upstream's.
    if Header::parse(packet).unwrap().counts[0] == 1 {
        let parsed = Reply::parse(packet).map_err(|_| wrong("something that we refuse"))?;
        prop_assert_eq!(parsed.end, packet.len());
    }
    Ok(())
}

/// The same packets on every run, so that a failure comes back.
fn sample(strategy: &impl Strategy<Value = Vec<u8>>, number: usize) -> Vec<Vec<u8>> {
    let mut runner = TestRunner::deterministic();
    (0..number).map(|_| strategy.new_tree(&mut runner).unwrap().current()).collect()
}

/// A daemon whose upstream sends three damaged responses before the right one.
fn scene() -> (Scene, nodestub_lab::Upstream) {
    let corefile = ". {
        bind 127.0.0.1
        cache
        forward . 127.0.0.2 {
            max_fails 0
        }
        prometheus 127.0.0.1:9153
    }
";
    let net = Netns::new().unwrap();
    let upstream = upstream_in(&net, "127.0.0.2:53", |query, _| {
        // Another client's question was damaged, or is beyond this server: it is not what is tested here.
        let Ok((name, _)) = nodestub_lab::upstream::question(query) else { return Vec::new() };
        let Ok(right) = upstream_answer(query, &[(&name, 300, Data::A([192, 0, 2, 1].into()))]) else {
            return Vec::new();
        };
        vec![Sent::now(right)]
    });
    (Scene::start_in(net, corefile), upstream)
}

fn assert_alive_and_well(scene: &mut Scene) {
    for (name, options) in [("good.test", patient()), ("good.test", patient_tcp()), ("cold.test", patient())]
    {
        assert_eq!(scene.ask_with(SERVER, name, "A", &options).data(), ["192.0.2.1"]);
    }
    // More sockets than threads, so that every worker is asked.
    for _ in 0..32 {
        assert_eq!(scene.rcode("good.test", "A"), "NOERROR");
    }
    assert_eq!(scene.metrics().find("coredns_panics_total", &[]), Some(0.0));
    assert_eq!(scene.daemon.try_wait().unwrap(), None);
    let panicked: Vec<String> =
        scene.daemon.lines().into_iter().filter(|line| line.contains("panicked")).collect();
    assert_eq!(panicked, Vec::<String>::new());
}

#[test]
fn thousands_of_damaged_datagrams_stop_nothing() {
    if !can_make_namespaces("thousands_of_damaged_datagrams_stop_nothing") {
        return;
    }
    let (mut scene, _upstream) = scene();
    scene.rcode("a.test", "A");
    let packets = sample(&damaged(queries()), 4000);
    scene
        .net
        .run(|| {
            let sockets: Vec<UdpSocket> = (0..16).map(|_| connected()).collect();
            for (number, packet) in packets.iter().enumerate() {
                let socket = &sockets[number % sockets.len()];
                socket.send(packet).unwrap();
                // Reads what there is, so that replies do not pile up.
                let mut reply = [0; 65_535];
                while let Ok(length) = socket.recv(&mut reply) {
                    assert_well_formed(&reply[..length]).unwrap();
                }
            }
        })
        .unwrap();
    assert_alive_and_well(&mut scene);
}

fn connected() -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(SERVER).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket
}

#[test]
fn thousands_of_damaged_messages_and_broken_streams_over_tcp_stop_nothing() {
    if !can_make_namespaces("thousands_of_damaged_messages_and_broken_streams_over_tcp_stop_nothing") {
        return;
    }
    let (mut scene, _upstream) = scene();
    let packets = sample(&damaged(queries()), 2000);
    scene
        .net
        .run(|| {
            // One connection each: a message that is none ends a connection.
            for (number, packet) in packets.iter().enumerate() {
                let mut stream = TcpStream::connect(SERVER).unwrap();
                let mut framed = Vec::new();
                dns::write_framed(&mut framed, packet).unwrap();
                if number % 7 == 0 {
                    // Says more than it sends.
                    framed[0] |= 0x10;
                }
                // The daemon may close first.
                drop(stream.write_all(&framed));
                if number % 3 == 0 {
                    drop(stream.shutdown(std::net::Shutdown::Write));
                    drop(stream.set_read_timeout(Some(Duration::from_secs(20))));
                    let mut replies = Vec::new();
                    drop(stream.read_to_end(&mut replies));
                    let mut replies = replies.as_slice();
                    while let Ok(Some(reply)) = dns::read_framed(&mut replies) {
                        assert_well_formed(&reply).unwrap();
                    }
                }
            }
        })
        .unwrap();
    assert_alive_and_well(&mut scene);
}

#[test]
fn thousands_of_damaged_responses_stop_nothing_and_are_not_believed() {
    if !can_make_namespaces("thousands_of_damaged_responses_stop_nothing_and_are_not_believed") {
        return;
    }
    const EACH: usize = 20;
    // Their ids are wrong, or they are made for `a.test`: none answers what is asked here.
    let damaged = sample(&damaged(queries().iter().flat_map(|query| responses(query)).collect()), 100 * EACH);
    for option in ["", "force_tcp"] {
        let net = Netns::new().unwrap();
        let damaged = damaged.clone();
        let _upstream = upstream_in(&net, "127.0.0.2:53", move |query, _: Transport| {
            let (name, _) = nodestub_lab::upstream::question(query).unwrap();
            let number: usize = name.split('.').next().and_then(|label| label.parse().ok()).unwrap_or(0);
            let right = upstream_answer(query, &[(&name, 300, Data::A([192, 0, 2, 1].into()))]).unwrap();
            let wrong = damaged.iter().skip(number * EACH).take(EACH).map(|bytes| {
                let mut bytes = bytes.clone();
                if bytes.len() > 2 {
                    bytes[..2].copy_from_slice(&query[..2]);
                }
                Sent::now(bytes)
            });
            wrong.chain([Sent::now(right)]).collect()
        });
        let corefile = format!(
            ". {{\n bind 127.0.0.1\n cache\n forward . 127.0.0.2 {{\n max_fails 0\n {option}\n }}\n prometheus 127.0.0.1:9153\n}}\n"
        );
        let mut scene = Scene::start_in(net, &corefile);
        for number in 0..100 {
            let found = scene.ask(&format!("{number}.test"), "A");
            assert_eq!(found.data(), ["192.0.2.1"], "{number} {option}");
        }
        assert_alive_and_well(&mut scene);
    }
}

#[test]
fn a_datagram_longer_than_any_query_is_not_answered_and_stops_nothing() {
    if !can_make_namespaces("a_datagram_longer_than_any_query_is_not_answered_and_stops_nothing") {
        return;
    }
    let (mut scene, _upstream) = scene();
    scene
        .net
        .run(|| {
            let socket = connected();
            let mut long = queries().swap_remove(0);
            long.resize(60_000, 0);
            for _ in 0..50 {
                socket.send(&long).unwrap();
                socket.send(&[]).unwrap();
            }
        })
        .unwrap();
    assert_alive_and_well(&mut scene);
}

#[test]
fn a_client_that_never_reads_its_replies_stops_nobody_else() {
    if !can_make_namespaces("a_client_that_never_reads_its_replies_stops_nobody_else") {
        return;
    }
    let (mut scene, _upstream) = scene();
    let query = queries().swap_remove(0);
    let _deaf = scene
        .net
        .run(|| {
            let mut stream = TcpStream::connect(SERVER).unwrap();
            stream.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
            let mut framed = Vec::new();
            dns::write_framed(&mut framed, &query).unwrap();
            let many = framed.repeat(1000);
            // Until the daemon takes no more, at most so many.
            for _ in 0..200 {
                if stream.write_all(&many).is_err() {
                    break;
                }
            }
            stream
        })
        .unwrap();
    assert_alive_and_well(&mut scene);
}
