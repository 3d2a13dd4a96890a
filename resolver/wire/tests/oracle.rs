//! Our reading and writing of packets against the crate `domain`, which shares no code with ours.
//!
//! Packets are made by `domain`'s builder, with its compression or without, from random names and records of many
//! types; replies that we write are read by `domain`'s parser.
#![forbid(unsafe_code)]
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test may stop at the first surprise, in its helpers too"
)]
#![expect(clippy::cast_possible_truncation, reason = "small numbers that the tests chose themselves")]

use std::net::{Ipv4Addr, Ipv6Addr};

use domain::base::iana::{Class, Rcode, Rtype};
use domain::base::message_builder::{
    AdditionalBuilder, MessageBuilder, OptBuilder, PushError, StaticCompressor,
};
use domain::base::name::{ParsedName, ToName};
use domain::base::rdata::{ComposeRecordData, UnknownRecordData};
use domain::base::wire::Composer;
use domain::base::{Message, Name as OracleName, Ttl};
use domain::dep::octseq::OctetsBuilder;
use domain::rdata::{A, Aaaa, AllRecordData, Cname, Mx, Ns, Ptr, Soa, Srv, Txt};
use nodestub_wire::{
    Admission, Flags, HEADER, MAX_UDP_PAYLOAD, Name, OwnedAnswer, Query, Rcode as OurRcode, Reply, Section,
    write_error,
};
use proptest::prelude::*;

/// A record that the builder is given.
#[derive(Debug, Clone)]
struct Made {
    section: Section,
    owner: OracleName<Vec<u8>>,
    ttl: u32,
    data: Data,
}

#[derive(Debug, Clone)]
enum Data {
    A(u32),
    Aaaa(u128),
    Cname(OracleName<Vec<u8>>),
    Ns(OracleName<Vec<u8>>),
    Ptr(OracleName<Vec<u8>>),
    Mx(u16, OracleName<Vec<u8>>),
    Srv(u16, OracleName<Vec<u8>>),
    Soa(OracleName<Vec<u8>>, OracleName<Vec<u8>>, u32),
    Txt(Vec<u8>),
    Unknown(u16, Vec<u8>),
}

/// A response to be built.
#[derive(Debug, Clone)]
struct Script {
    id: u16,
    flags: u16,
    rcode: u8,
    question: OracleName<Vec<u8>>,
    qtype: u16,
    records: Vec<Made>,
    edns: bool,
}

/// A record as `domain` reads it; names in lower case.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    section: Section,
    owner: String,
    rtype: u16,
    class: u16,
    ttl: u32,
    data: String,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn a_response_reads_the_same_as_the_oracle_reads_it(script in script(), compress in any::<bool>()) {
        let packet = build(&script, compress);
        let reply = Reply::parse(&packet).unwrap();
        prop_assert_eq!(reply.header.id, script.id);
        prop_assert_eq!(reply.name.as_bytes(), wire(&script.question));
        prop_assert_eq!((reply.qtype, reply.qclass), (script.qtype, 1));
        prop_assert_eq!(reply.rcode(), OurRcode(u16::from(script.rcode)));
        prop_assert_eq!(reply.end, packet.len());
        prop_assert_eq!(reply.edns.is_some(), script.edns);
        prop_assert!(reply.answers(script.id, &wire(&script.question), script.qtype, 1));
        prop_assert!(!reply.answers(script.id ^ 1, &wire(&script.question), script.qtype, 1));
        prop_assert!(!reply.answers(script.id, &wire(&script.question), script.qtype ^ 1, 1));
        let seen = read(&packet);
        prop_assert_eq!(seen.len(), reply.records.len());
        for (seen, ours) in seen.iter().zip(&reply.records) {
            let expected = (seen.section, seen.rtype, seen.class, seen.ttl);
            prop_assert_eq!((ours.section, ours.rtype, ours.class, ours.ttl), expected);
        }
    }

    #[test]
    fn a_kept_answer_gives_another_client_the_same_records_with_the_ttl_that_is_left(
        script in script(), compress in any::<bool>(), id in any::<u16>(), ttl in 0u32..100_000,
        client in client(), shout in any::<bool>(),
    ) {
        let packet = build(&script, compress);
        let reply = Reply::parse(&packet).unwrap();
        let kept = OwnedAnswer::from_reply(&packet, &reply).unwrap();
        let name = if shout { upper(&script.question) } else { script.question.clone() };
        let (query, mut buffer, length) = ask(id, &name, script.qtype, client);
        let question = buffer[HEADER..query.question_end].to_vec();
        buffer.resize(kept.as_answer().reply_len(&query).max(length), 0xEE);
        let length = kept.as_answer().write(&mut buffer, &query, Some(ttl), usize::MAX).unwrap();
        let buffer = &buffer[..length];

        prop_assert_eq!(&buffer[HEADER..query.question_end], question, "the question and its case stay");
        let message = Message::from_octets(buffer).unwrap();
        prop_assert_eq!(message.header().id(), id);
        prop_assert!(message.header().qr() && !message.header().tc());
        prop_assert_eq!(message.header().rd(), client.recursion_desired);
        prop_assert_eq!(message.header().rcode(), Rcode::masked_from_int(script.rcode));
        prop_assert_eq!(message.opt().is_some(), client.edns.is_some());
        if let (Some(opt), Some((_, dnssec_ok))) = (message.opt(), client.edns) {
            prop_assert_eq!((opt.version(), opt.dnssec_ok()), (0, dnssec_ok));
        }
        let expected: Vec<Seen> = read(&packet).into_iter().map(|seen| Seen { ttl, ..seen }).collect();
        prop_assert_eq!(read(buffer), expected);
    }

    #[test]
    fn what_is_too_long_for_the_client_is_cut_behind_a_whole_record_and_marked(
        script in script(), compress in any::<bool>(), client in client(), limit in 300usize..2000,
    ) {
        let packet = build(&script, compress);
        let kept = OwnedAnswer::from_reply(&packet, &Reply::parse(&packet).unwrap()).unwrap();
        let (query, mut buffer, length) = ask(7, &script.question, script.qtype, client);
        let whole = kept.as_answer().reply_len(&query);
        buffer.resize(whole.max(length), 0);
        let length = kept.as_answer().write(&mut buffer, &query, Some(30), limit).unwrap();
        let buffer = &buffer[..length];
        prop_assert!(length <= limit);
        let message = Message::from_octets(buffer).unwrap();
        prop_assert_eq!(message.header().tc(), whole > limit);
        prop_assert_eq!(message.opt().is_some(), client.edns.is_some());
        let all: Vec<Seen> = read(&packet).into_iter().map(|seen| Seen { ttl: 30, ..seen }).collect();
        let given = read(buffer);
        prop_assert_eq!(&given[..], &all[..given.len()]);
        prop_assert_eq!(given.len() == all.len(), whole <= limit);
    }

    #[test]
    fn a_query_reads_the_same_as_the_oracle_wrote_it(
        id in any::<u16>(), name in name(), qtype in 1u16..500, client in client(),
    ) {
        let (query, buffer, _) = ask(id, &name, qtype, client);
        prop_assert_eq!((query.id, query.qtype, query.qclass), (id, qtype, 1));
        prop_assert_eq!(query.name.as_bytes(), wire(&name));
        prop_assert_eq!(query.flags.has(Flags::RD), client.recursion_desired);
        prop_assert_eq!(query.dnssec_ok(), client.edns.is_some_and(|(_, dnssec_ok)| dnssec_ok));
        let announced = client.edns.map_or(512, |(size, _)| size.max(512));
        prop_assert_eq!(query.udp_limit(), usize::from(announced.min(MAX_UDP_PAYLOAD)));
        prop_assert_eq!(query.question_end, HEADER + query.name.as_bytes().len() + 4);
        prop_assert!(buffer.len() >= query.question_end);
    }

    #[test]
    fn an_error_reply_has_the_question_and_nothing_else(name in name(), client in client(), rcode in 0u16..16) {
        let (query, mut buffer, length) = ask(9, &name, 1, client);
        buffer.resize(length.max(600), 0xEE);
        let length = write_error(&mut buffer, Some(&query), OurRcode(rcode)).unwrap();
        let message = Message::from_octets(&buffer[..length]).unwrap();
        prop_assert_eq!(message.header().rcode(), Rcode::masked_from_int(rcode as u8));
        prop_assert_eq!(message.header_counts().qdcount(), 1);
        prop_assert_eq!(read(&buffer[..length]), vec![]);
        let back = message.sole_question().unwrap();
        prop_assert_eq!(back.qname().to_name::<Vec<u8>>(), name);
    }

    #[test]
    fn a_text_is_a_name_for_both_or_for_neither(text in r"([a-cA-C0-9_*-]{0,5}|\\[.\\a]|\\0[0-9][0-9]|\.){0,12}") {
        let ours = text.parse::<Name>();
        let theirs = text.parse::<OracleName<Vec<u8>>>();
        // An empty text is the root for `domain` and nothing for a Corefile.
        if !text.is_empty() {
            prop_assert_eq!(ours.is_ok(), theirs.is_ok(), "{:?} {:?}", ours, theirs);
        }
        if let (Ok(ours), Ok(theirs)) = (ours, theirs) {
            prop_assert_eq!(ours.as_bytes(), wire(&theirs));
            let shown: OracleName<Vec<u8>> = ours.to_string().parse().unwrap();
            prop_assert_eq!(shown, theirs);
        }
    }
}

#[test]
fn a_code_beyond_fifteen_is_servfail_for_a_client_without_edns() {
    let name: OracleName<Vec<u8>> = "a.test".parse().unwrap();
    for (edns, expected) in [(None, Rcode::SERVFAIL), (Some((1232, false)), Rcode::masked_from_int(0))] {
        let client = Client { edns, recursion_desired: true };
        let (query, mut buffer, length) = ask(9, &name, 1, client);
        buffer.resize(length.max(600), 0);
        let length = write_error(&mut buffer, Some(&query), OurRcode::BADVERS).unwrap();
        let message = Message::from_octets(&buffer[..length]).unwrap();
        assert_eq!(message.header().rcode(), expected);
        let whole = if edns.is_some() { 16 } else { 2 };
        assert_eq!(message.opt_rcode().to_int(), whole);
    }
}

#[test]
fn a_response_that_was_truncated_on_its_way_to_us_says_so_to_the_client() {
    let name: OracleName<Vec<u8>> = "a.test".parse().unwrap();
    let mut builder = MessageBuilder::new_vec().question();
    builder.header_mut().set_qr(true);
    builder.header_mut().set_tc(true);
    builder.push((&name, Rtype::A)).unwrap();
    let packet = builder.finish();
    let answer = OwnedAnswer::from_reply(&packet, &Reply::parse(&packet).unwrap()).unwrap();
    let (query, mut buffer, _) = ask(1, &name, 1, Client { edns: None, recursion_desired: true });
    buffer.resize(600, 0);
    let length = answer.as_answer().write(&mut buffer, &query, None, 512).unwrap();
    assert!(Message::from_octets(&buffer[..length]).unwrap().header().tc());
}

#[test]
fn records_behind_the_opt_record_are_left_out_and_not_counted() {
    let name: OracleName<Vec<u8>> = "a.test".parse().unwrap();
    let mut builder = MessageBuilder::new_vec().question();
    builder.header_mut().set_qr(true);
    builder.push((&name, Rtype::A)).unwrap();
    let mut builder = builder.answer();
    builder.push((&name, Ttl::from_secs(60), A::new(Ipv4Addr::LOCALHOST))).unwrap();
    let mut builder = builder.additional();
    builder.push((&name, Ttl::from_secs(60), A::new(Ipv4Addr::new(192, 0, 2, 1)))).unwrap();
    builder.opt(|opt| opt.push_raw_option(10.into(), 8, |target| target.append_slice(b"a cookie"))).unwrap();
    builder.push((&name, Ttl::from_secs(60), A::new(Ipv4Addr::new(192, 0, 2, 2)))).unwrap();
    let packet = builder.finish();
    let kept = OwnedAnswer::from_reply(&packet, &Reply::parse(&packet).unwrap()).unwrap();
    let (query, mut buffer, _) = ask(1, &name, 1, Client { edns: None, recursion_desired: true });
    buffer.resize(600, 0);
    let length = kept.as_answer().write(&mut buffer, &query, Some(5), usize::MAX).unwrap();
    let data: Vec<String> = read(&buffer[..length]).into_iter().map(|seen| seen.data).collect();
    assert_eq!(data, ["127.0.0.1", "192.0.2.1"]);
}

/// How a client asks: EDNS (payload size, DO), RD.
#[derive(Debug, Clone, Copy)]
struct Client {
    edns: Option<(u16, bool)>,
    recursion_desired: bool,
}

fn client() -> impl Strategy<Value = Client> {
    let edns = prop::option::of((any::<u16>(), any::<bool>()));
    (edns, any::<bool>()).prop_map(|(edns, recursion_desired)| Client { edns, recursion_desired })
}

fn name() -> impl Strategy<Value = OracleName<Vec<u8>>> {
    // Few labels, so that compression has something to do; now and then the root or a very long name.
    let label = prop_oneof![
        8 => prop::sample::select(vec!["a", "Bc", "svc", "Cluster", "local", "x1"]).prop_map(str::to_owned),
        1 => "[a-zA-Z0-9-]{1,40}",
    ];
    prop::collection::vec(label, 0..6).prop_map(|labels| {
        let text = labels.join(".");
        if text.is_empty() { OracleName::root_vec() } else { text.parse().unwrap() }
    })
}

fn record() -> impl Strategy<Value = Made> {
    let data = prop_oneof![
        any::<u32>().prop_map(Data::A),
        any::<u128>().prop_map(Data::Aaaa),
        name().prop_map(Data::Cname),
        name().prop_map(Data::Ns),
        name().prop_map(Data::Ptr),
        (any::<u16>(), name()).prop_map(|(preference, name)| Data::Mx(preference, name)),
        (any::<u16>(), name()).prop_map(|(port, name)| Data::Srv(port, name)),
        (name(), name(), 0u32..100_000)
            .prop_map(|(primary, mail, minimum)| Data::Soa(primary, mail, minimum)),
        prop::collection::vec(any::<u8>(), 1..250).prop_map(Data::Txt),
        (1000u16..2000, prop::collection::vec(any::<u8>(), 0..60))
            .prop_map(|(rtype, data)| Data::Unknown(rtype, data)),
    ];
    let section =
        prop::sample::select(vec![Section::Answer, Section::Answer, Section::Authority, Section::Additional]);
    (section, name(), 0u32..i32::MAX as u32, data).prop_map(|(section, owner, ttl, data)| Made {
        section,
        owner,
        ttl,
        data,
    })
}

fn script() -> impl Strategy<Value = Script> {
    let bits = (any::<u16>(), any::<bool>(), any::<bool>(), 0u8..11, any::<bool>());
    (bits, name(), 1u16..300, prop::collection::vec(record(), 0..24)).prop_map(
        |((id, aa, ra, rcode, edns), question, qtype, mut records)| {
            records.sort_by_key(|record| record.section);
            let flags = (u16::from(aa) * Flags::AA) | (u16::from(ra) * Flags::RA);
            Script { id, flags, rcode, question, qtype, records, edns }
        },
    )
}

fn build(script: &Script, compress: bool) -> Vec<u8> {
    if compress {
        let target = StaticCompressor::new(Vec::new());
        build_with(script, MessageBuilder::from_target(target).unwrap()).into_target()
    } else {
        build_with(script, MessageBuilder::from_target(Vec::new()).unwrap())
    }
}

fn build_with<T: Composer + Clone>(script: &Script, mut builder: MessageBuilder<T>) -> T {
    let header = builder.header_mut();
    header.set_id(script.id);
    header.set_qr(true);
    header.set_aa(Flags(script.flags).has(Flags::AA));
    header.set_ra(Flags(script.flags).has(Flags::RA));
    header.set_rcode(Rcode::masked_from_int(script.rcode));
    let mut builder = builder.question();
    builder.push((&script.question, Rtype::from_int(script.qtype))).unwrap();
    let of = |section| script.records.iter().filter(move |record| record.section == section);
    let mut builder = builder.answer();
    for record in of(Section::Answer) {
        push(record, |ttl, data| builder.push((&record.owner, ttl, data)));
    }
    let mut builder = builder.authority();
    for record in of(Section::Authority) {
        push(record, |ttl, data| builder.push((&record.owner, ttl, data)));
    }
    let mut builder: AdditionalBuilder<T> = builder.additional();
    for record in of(Section::Additional) {
        push(record, |ttl, data| builder.push((&record.owner, ttl, data)));
    }
    if script.edns {
        let size = |opt: &mut OptBuilder<'_, T>| {
            opt.set_udp_payload_size(1232);
            Ok(())
        };
        builder.opt(size).unwrap();
    }
    builder.finish()
}

fn push(
    record: &Made,
    push: impl FnOnce(Ttl, AllRecordData<Vec<u8>, OracleName<Vec<u8>>>) -> Result<(), PushError>,
) {
    let (ttl, number) = (Ttl::from_secs(record.ttl), Ttl::from_secs(3600));
    let data: AllRecordData<Vec<u8>, OracleName<Vec<u8>>> = match record.data.clone() {
        Data::A(address) => A::new(Ipv4Addr::from(address)).into(),
        Data::Aaaa(address) => Aaaa::new(Ipv6Addr::from(address)).into(),
        Data::Cname(target) => Cname::new(target).into(),
        Data::Ns(target) => Ns::new(target).into(),
        Data::Ptr(target) => Ptr::new(target).into(),
        Data::Mx(preference, target) => Mx::new(preference, target).into(),
        Data::Srv(port, target) => Srv::new(0, 100, port, target).into(),
        Data::Soa(primary, mail, minimum) => {
            Soa::new(primary, mail, 1.into(), number, number, number, Ttl::from_secs(minimum)).into()
        }
        Data::Txt(text) => Txt::<Vec<u8>>::build_from_slice(&text).unwrap().into(),
        Data::Unknown(rtype, data) => {
            UnknownRecordData::from_octets(Rtype::from_int(rtype), data).unwrap().into()
        }
    };
    assert!(data.rdlen(false).is_none_or(|length| length < 600));
    push(ttl, data).unwrap();
}

/// A query that `domain` made and we admitted, its packet, and that one's length.
fn ask(id: u16, name: &OracleName<Vec<u8>>, qtype: u16, client: Client) -> (Query, Vec<u8>, usize) {
    let mut builder = MessageBuilder::new_vec();
    builder.header_mut().set_id(id);
    builder.header_mut().set_rd(client.recursion_desired);
    let mut builder = builder.question();
    builder.push((name, Rtype::from_int(qtype))).unwrap();
    let mut builder = builder.additional();
    if let Some((size, dnssec_ok)) = client.edns {
        let fill = |opt: &mut OptBuilder<'_, _>| {
            opt.set_udp_payload_size(size);
            opt.set_dnssec_ok(dnssec_ok);
            Ok(())
        };
        builder.opt(fill).unwrap();
    }
    let packet = builder.finish();
    let Admission::Accept(query) = Query::admit(&packet) else { panic!("not admitted: {packet:?}") };
    let length = packet.len();
    (query, packet, length)
}

/// All records but OPT, as `domain` reads them. It must find as many as the header counts.
fn read(packet: &[u8]) -> Vec<Seen> {
    let message = Message::from_octets(packet).unwrap();
    let (_, answer, authority, additional) = message.sections().unwrap();
    let sections =
        [(Section::Answer, answer), (Section::Authority, authority), (Section::Additional, additional)];
    let mut seen = Vec::new();
    for (section, records) in sections {
        for record in records {
            let record = record.unwrap();
            if record.rtype() == Rtype::OPT {
                continue;
            }
            let record =
                record.to_record::<AllRecordData<&[u8], ParsedName<&[u8]>>>().unwrap().expect("all types");
            assert_eq!(record.class(), Class::IN);
            seen.push(Seen {
                section,
                owner: record.owner().to_string().to_lowercase(),
                rtype: record.rtype().to_int(),
                class: record.class().to_int(),
                ttl: record.ttl().as_secs(),
                // Names in data may point at the question and take its case.
                data: record.data().to_string().to_lowercase(),
            });
        }
    }
    seen
}

/// Lower-cased wire form.
fn wire(name: &OracleName<Vec<u8>>) -> Vec<u8> {
    name.as_slice().to_ascii_lowercase()
}

fn upper(name: &OracleName<Vec<u8>>) -> OracleName<Vec<u8>> {
    // Length bytes are below `a`.
    OracleName::from_octets(name.as_slice().to_ascii_uppercase()).unwrap()
}
