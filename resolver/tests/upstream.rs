//! What is taken from an upstream and what is not, and how upstreams are asked. The real binary, and servers that
//! misbehave on demand.
#![forbid(unsafe_code)]
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test may stop at the first surprise, in its helpers too"
)]

mod common;

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::time::Duration;

use common::{HANG, SERVER, Scene, patient, patient_tcp, socket};
use nodestub_lab::skip::can_make_namespaces;
use nodestub_lab::upstream::{Data, Reply, answer, question, refusal, zone};
use nodestub_lab::{Answer, Netns, Options, Rcode, Transport, Upstream, ask, dns};

/// Everything to one upstream, with a cache.
const FORWARD: &str = ". {
    bind 127.0.0.1
    cache
    forward . 127.0.0.2 {
        max_fails 0
    }
    prometheus 127.0.0.1:9153
}
";

const RIGHT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const WRONG: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 66);

fn forward_with(options: &str) -> String {
    format!(
        ". {{\n bind 127.0.0.1\n cache\n forward . 127.0.0.2 {{\n{options}\n}}\n prometheus 127.0.0.1:9153\n}}\n"
    )
}

/// A scene whose upstream is there before the daemon.
fn scene_with(
    corefile: &str,
    behaviour: impl Fn(&[u8], Transport) -> Vec<Reply> + Send + Sync + 'static,
) -> (Scene, Upstream) {
    let net = Netns::new().unwrap();
    let upstream = common::upstream_in(&net, "127.0.0.2:53", behaviour);
    (Scene::start_in(net, corefile), upstream)
}

/// An answer with this address to whatever is asked.
fn address(query: &[u8], address: Ipv4Addr) -> Vec<u8> {
    let (name, _) = question(query).unwrap();
    answer(query, &[(&name, 300, Data::A(address))]).unwrap()
}

fn right(query: &[u8]) -> Reply {
    Reply::now(address(query, RIGHT))
}

/// One way of being wrong: a packet made from a query, and where it comes from.
type Wrong = fn(&[u8]) -> Reply;

fn changed(query: &[u8], change: impl FnOnce(&mut Vec<u8>)) -> Reply {
    let mut bytes = address(query, WRONG);
    change(&mut bytes);
    Reply::now(bytes)
}

const WRONG_REPLIES: [(&str, Wrong); 14] = [
    ("wrong-id", |query| changed(query, |bytes| bytes[1] ^= 1)),
    ("wrong-name", |query| changed(query, |bytes| bytes[13] = b'z')),
    ("wrong-type", |query| {
        let end = question_end(query);
        changed(query, |bytes| bytes[end - 3] = 28)
    }),
    ("wrong-class", |query| {
        let end = question_end(query);
        changed(query, |bytes| bytes[end - 1] = 3)
    }),
    ("no-question", |query| {
        let end = question_end(query);
        changed(query, |bytes| {
            bytes[5] = 0;
            bytes.drain(12..end);
        })
    }),
    ("two-questions", |query| {
        let end = question_end(query);
        changed(query, |bytes| {
            bytes[5] = 2;
            let again = bytes[12..end].to_vec();
            bytes.splice(end..end, again);
        })
    }),
    ("a-question", |query| Reply::now(query.to_vec())),
    ("qr-not-set", |query| changed(query, |bytes| bytes[2] &= 0x7F)),
    ("another-opcode", |query| changed(query, |bytes| bytes[2] |= 4 << 3)),
    ("too-short", |query| changed(query, |bytes| bytes.truncate(bytes.len() - 2))),
    ("a-stump", |query| changed(query, |bytes| bytes.truncate(7))),
    ("pointer-loop", |query| {
        let end = question_end(query);
        let [high, low] = (0xC000 | u16::try_from(end).unwrap()).to_be_bytes();
        changed(query, |bytes| {
            bytes.truncate(end);
            bytes.extend([high, low, 0, 1, 0, 1, 0, 0, 1, 0, 0, 4, 203, 0, 113, 66]);
        })
    }),
    ("another-port", |query| changed(query, |_| ()).from(socket("127.0.0.2:0"))),
    ("another-address", |query| changed(query, |_| ()).from(socket("127.0.0.3:53"))),
];

fn question_end(query: &[u8]) -> usize {
    12 + query[12..].iter().position(|byte| *byte == 0).unwrap() + 5
}

#[test]
fn waits_on_through_every_kind_of_wrong_reply_and_takes_the_right_one() {
    if !can_make_namespaces("waits_on_through_every_kind_of_wrong_reply_and_takes_the_right_one") {
        return;
    }
    let (scene, upstream) = scene_with(FORWARD, |query, _| {
        let (name, _) = question(query).unwrap();
        let first_label = name.split('.').next().unwrap();
        let wrong = WRONG_REPLIES.iter().filter(|(kind, _)| first_label == *kind || first_label == "all");
        let mut replies: Vec<Reply> = wrong.map(|(_, make)| make(query)).collect();
        // Later, so that whatever a forwarder does with the wrong ones it does first.
        replies.push(right(query).after(Duration::from_millis(100)));
        replies
    });
    let names = WRONG_REPLIES.iter().map(|(kind, _)| *kind).chain(["all"]);
    for (asked, kind) in names.enumerate() {
        let name = format!("{kind}.test");
        let found = scene.ask(&name, "A");
        assert_eq!((found.rcode.as_str(), found.data()), ("NOERROR", vec!["192.0.2.1"]), "{kind}");
        // Nothing wrong was kept, and the right one was.
        assert_eq!(scene.ask(&name, "A").data(), ["192.0.2.1"], "{kind}");
        assert_eq!(upstream.count(), asked + 1, "{kind} was asked for again");
    }
    // The wrong name is a name too: what came for it unasked was not kept either.
    let before = upstream.count();
    assert_eq!(scene.ask("zrong-name.test", "A").data(), ["192.0.2.1"]);
    assert_eq!(upstream.count(), before + 1);
    // A connected socket never sees what comes from elsewhere.
    let from_the_peer = WRONG_REPLIES.len() - 2;
    let ignored = scene.metrics().sum("nodestub_upstream_ignored_replies_total", &[("to", "127.0.0.2:53")]);
    assert!(ignored >= from_the_peer as f64, "only {ignored} were ignored");
}

#[test]
fn waits_on_through_wrong_replies_on_a_tcp_connection_too() {
    if !can_make_namespaces("waits_on_through_wrong_replies_on_a_tcp_connection_too") {
        return;
    }
    let (scene, _upstream) = scene_with(&forward_with("force_tcp"), |query, transport| {
        assert_eq!(transport, Transport::Tcp);
        let from_here = WRONG_REPLIES.iter().filter(|(kind, _)| !kind.starts_with("another-"));
        let mut replies: Vec<Reply> = from_here.map(|(_, make)| make(query)).collect();
        replies.push(right(query));
        replies
    });
    for name in ["a.test", "b.test"] {
        assert_eq!(scene.ask(name, "A").data(), ["192.0.2.1"]);
        assert_eq!(scene.ask(name, "A").data(), ["192.0.2.1"]);
    }
}

#[test]
fn a_late_reply_to_one_question_is_not_taken_for_the_next() {
    if !can_make_namespaces("a_late_reply_to_one_question_is_not_taken_for_the_next") {
        return;
    }
    // Every reply comes twice, and once more later: what is left on a socket meets the next question there.
    let (scene, _upstream) = scene_with(FORWARD, |query, _| {
        let (name, _) = question(query).unwrap();
        let number: u8 = name.split('.').next().unwrap().parse().unwrap();
        let reply = Reply::now(address(query, Ipv4Addr::new(192, 0, 2, number)));
        vec![reply.clone(), reply.clone(), reply.after(Duration::from_millis(5))]
    });
    // More questions than the pool has places.
    for round in 0..4 {
        for number in 0..200 {
            let found = scene.ask(&format!("{number}.round{round}.test"), "A");
            assert_eq!(found.data(), [format!("192.0.2.{number}")]);
        }
    }
}

#[test]
fn asks_again_over_tcp_when_a_reply_is_truncated_and_cuts_it_for_each_client() {
    if !can_make_namespaces("asks_again_over_tcp_when_a_reply_is_truncated_and_cuts_it_for_each_client") {
        return;
    }
    let (scene, upstream) = scene_with(FORWARD, |query, transport| {
        if transport == Transport::Udp {
            let mut stump = refusal(query, Rcode::NOERROR).unwrap();
            stump[2] |= 0x02;
            return vec![Reply::now(stump)];
        }
        let addresses: Vec<_> =
            (0..60).map(|number| ("many.test", 300, Data::A(Ipv4Addr::new(192, 0, 2, number)))).collect();
        vec![Reply::now(answer(query, &addresses).unwrap())]
    });
    let small = scene.ask("many.test", "A");
    assert!(small.has("tc") && small.raw.len() <= 512, "{small:?}");
    assert!(!small.answers.is_empty(), "what fits is given");
    let large = scene.ask_with(SERVER, "many.test", "A", &Options { edns: Some(4096), ..patient() });
    assert_eq!((large.has("tc"), large.answers.len()), (false, 60));
    let whole = scene.ask_with(SERVER, "many.test", "A", &patient_tcp());
    assert_eq!((whole.has("tc"), whole.answers.len()), (false, 60));
    // Once for each transport: the whole answer was kept.
    assert_eq!((upstream.count_of(Transport::Udp), upstream.count_of(Transport::Tcp)), (1, 1));
}

#[test]
fn a_truncated_reply_is_passed_on_and_not_kept_where_the_upstream_has_no_tcp() {
    if !can_make_namespaces("a_truncated_reply_is_passed_on_and_not_kept_where_the_upstream_has_no_tcp") {
        return;
    }
    let (scene, upstream) = scene_with(FORWARD, |query, transport| match transport {
        Transport::Udp => {
            let mut bytes = address(query, RIGHT);
            bytes[2] |= 0x02;
            vec![Reply::now(bytes)]
        }
        Transport::Tcp => vec![Reply::hang_up()],
    });
    for asked in 1..=2 {
        let found = scene.ask("a.test", "A");
        assert!(found.has("tc"), "the client is told to try TCP");
        assert_eq!(upstream.count_of(Transport::Udp), asked);
    }
}

#[test]
fn the_transport_to_the_upstream_is_the_clients_or_the_corefiles() {
    if !can_make_namespaces("the_transport_to_the_upstream_is_the_clients_or_the_corefiles") {
        return;
    }
    for (corefile, expected) in [
        (FORWARD.to_owned(), (2, 1)),
        (forward_with("prefer_udp"), (3, 0)),
        (forward_with("force_tcp"), (0, 3)),
        (forward_with("prefer_udp\nforce_tcp"), (0, 3)),
    ] {
        let (scene, upstream) = scene_with(&corefile, |query, _| vec![right(query)]);
        for (name, options) in [("a.test", patient()), ("b.test", patient_tcp()), ("c.test", patient())] {
            assert_eq!(scene.ask_with(SERVER, name, "A", &options).data(), ["192.0.2.1"]);
        }
        let asked = (upstream.count_of(Transport::Udp), upstream.count_of(Transport::Tcp));
        assert_eq!(asked, expected, "{corefile}");
    }
}

#[test]
fn many_questions_at_once_share_at_most_two_tcp_connections() {
    if !can_make_namespaces("many_questions_at_once_share_at_most_two_tcp_connections") {
        return;
    }
    // Answered out of order: the later a question, the sooner its reply.
    let (scene, upstream) = scene_with(&forward_with("force_tcp"), |query, _| {
        let (name, _) = question(query).unwrap();
        let number: u8 = name.split('.').next().unwrap().parse().unwrap();
        let delay = Duration::from_millis(u64::from(255 - number));
        vec![Reply::now(address(query, Ipv4Addr::new(192, 0, 2, number))).after(delay)]
    });
    at_once(
        &scene,
        200,
        |number| (format!("{number}.test"), patient()),
        |number, found| {
            assert_eq!(found.data(), [format!("192.0.2.{number}")]);
        },
    );
    assert!((1..=2).contains(&upstream.connections()), "{} connections", upstream.connections());
    assert_eq!(upstream.count(), 200);
}

#[test]
fn a_pooled_connection_that_the_server_closed_costs_nobody_an_answer() {
    if !can_make_namespaces("a_pooled_connection_that_the_server_closed_costs_nobody_an_answer") {
        return;
    }
    // The answer, then the end of the connection: the pool finds it closed, before or after the next question.
    let (scene, upstream) =
        scene_with(&forward_with("force_tcp\nmax_fails 1"), |query, _| vec![right(query), Reply::hang_up()]);
    for number in 0..50 {
        let found = scene.ask(&format!("n{number}.test"), "A");
        assert_eq!((found.rcode.as_str(), found.data()), ("NOERROR", vec!["192.0.2.1"]), "{number}");
    }
    assert!(upstream.connections() >= 50);
}

#[test]
fn a_connection_that_closes_with_many_questions_under_way_is_followed_by_few() {
    if !can_make_namespaces("a_connection_that_closes_with_many_questions_under_way_is_followed_by_few") {
        return;
    }
    // The first connection is let go when all questions are on it; whatever comes next is answered.
    const QUESTIONS: usize = 50;
    let seen = Arc::new(AtomicUsize::new(0));
    let (scene, upstream) = scene_with(&forward_with("force_tcp\nmax_fails 0"), move |query, _| {
        match seen.fetch_add(1, Ordering::SeqCst) + 1 {
            ..QUESTIONS => Vec::new(),
            QUESTIONS => vec![Reply::hang_up()],
            _ => vec![right(query)],
        }
    });
    at_once(
        &scene,
        QUESTIONS,
        |number| (format!("n{number}.test"), patient()),
        |number, found| {
            assert_eq!((found.rcode.as_str(), found.data()), ("NOERROR", vec!["192.0.2.1"]), "{number}");
        },
    );
    // RFC 7766, 6.2.2: few connections to one server, whatever happens.
    assert!(upstream.connections() <= 4, "{} connections", upstream.connections());
}

#[test]
fn every_query_is_answered_while_one_of_two_upstreams_is_dead() {
    if !can_make_namespaces("every_query_is_answered_while_one_of_two_upstreams_is_dead") {
        return;
    }
    for policy in ["random", "round_robin", "sequential"] {
        // Nobody listens on 127.0.0.9.
        let corefile =
            format!(". {{\n bind 127.0.0.1\n forward . 127.0.0.9 127.0.0.2 {{\n policy {policy}\n }}\n}}\n");
        let (scene, _upstream) = scene_with(&corefile, |query, _| vec![right(query)]);
        for number in 0..60 {
            let options = if number % 2 == 0 { patient() } else { patient_tcp() };
            let found = scene.ask_with(SERVER, &format!("n{number}.test"), "A", &options);
            assert_eq!(found.rcode, "NOERROR", "{policy}, question {number}");
        }
    }
}

#[test]
fn every_query_is_answered_while_one_of_two_upstreams_is_silent() {
    if !can_make_namespaces("every_query_is_answered_while_one_of_two_upstreams_is_silent") {
        return;
    }
    let corefile = ". {\n bind 127.0.0.1\n forward . 127.0.0.3 127.0.0.2 {\n policy sequential\n }\n}\n";
    let (scene, _upstream) = scene_with(corefile, |query, _| vec![right(query)]);
    let silent = scene.upstream("127.0.0.3:53", |_, _| Vec::new());
    for number in 0..20 {
        assert_eq!(scene.rcode(&format!("n{number}.test"), "A"), "NOERROR", "question {number}");
    }
    // Two failures, then it is down; what it is asked afterwards is the probe for the root's servers. Each question is sent
    // several times, for it may have been lost.
    let mut asked: Vec<String> =
        silent.received().iter().map(|one| question(&one.bytes).unwrap().0).collect();
    asked.retain(|name| name != ".");
    asked.sort();
    asked.dedup();
    assert_eq!(asked.len(), 2, "it was asked although it is down");
}

#[test]
fn an_upstream_that_comes_back_is_asked_again() {
    if !can_make_namespaces("an_upstream_that_comes_back_is_asked_again") {
        return;
    }
    let corefile = ". {
        bind 127.0.0.1
        forward . 127.0.0.3 127.0.0.2 {
            policy sequential
            max_fails 1
            health_check 100ms
        }
    }
";
    let (scene, second) = scene_with(corefile, |query, _| vec![right(query)]);
    assert_eq!(scene.rcode("a.test", "A"), "NOERROR");
    assert_eq!(second.count(), 1);
    let first = scene.upstream("127.0.0.3:53", |query, _| vec![right(query)]);
    // The probe that finds it.
    first.wait_for(1, HANG).unwrap();
    let mut number = 0;
    while first.count() < 2 {
        assert_eq!(scene.rcode(&format!("n{number}.test"), "A"), "NOERROR");
        number += 1;
        assert!(number < 1000, "it is never asked");
    }
}

#[test]
fn a_failure_of_all_upstreams_is_servfail_and_remembered() {
    if !can_make_namespaces("a_failure_of_all_upstreams_is_servfail_and_remembered") {
        return;
    }
    let corefile = ". {
        bind 127.0.0.1
        cache {
            servfail 5m
        }
        forward . 127.0.0.2 {
            max_fails 0
        }
        prometheus 127.0.0.1:9153
    }
";
    // Hanging up is a failure that comes at once.
    let (scene, upstream) = scene_with(corefile, |_, transport| match transport {
        Transport::Udp => Vec::new(),
        Transport::Tcp => vec![Reply::hang_up()],
    });
    let over_tcp = |name: &str| scene.ask_with(SERVER, name, "A", &patient_tcp()).rcode;
    assert_eq!(over_tcp("a.test"), "SERVFAIL");
    let asked = upstream.count();
    for _ in 0..10 {
        assert_eq!(over_tcp("a.test"), "SERVFAIL");
        assert_eq!(scene.rcode("a.test", "A"), "SERVFAIL");
    }
    assert_eq!(upstream.count(), asked, "the failure was not remembered");
    assert_eq!(over_tcp("b.test"), "SERVFAIL");
    assert!(upstream.count() > asked, "another name is another question");
}

#[test]
fn a_servfail_of_the_upstream_is_remembered_and_a_refusal_is_not() {
    if !can_make_namespaces("a_servfail_of_the_upstream_is_remembered_and_a_refusal_is_not") {
        return;
    }
    let (scene, upstream) = scene_with(FORWARD, |query, _| {
        let (name, _) = question(query).unwrap();
        let rcode = if name.starts_with("servfail") { Rcode::SERVFAIL } else { Rcode::REFUSED };
        vec![Reply::now(refusal(query, rcode).unwrap())]
    });
    assert_eq!(scene.rcode("servfail.test", "A"), "SERVFAIL");
    assert_eq!(scene.rcode("servfail.test", "A"), "SERVFAIL");
    assert_eq!(upstream.count(), 1);
    assert_eq!(scene.rcode("refused.test", "A"), "REFUSED");
    assert_eq!(scene.rcode("refused.test", "A"), "REFUSED");
    assert_eq!(upstream.count(), 3);
}

#[test]
fn many_clients_that_ask_one_cold_name_at_once_cost_one_question() {
    if !can_make_namespaces("many_clients_that_ask_one_cold_name_at_once_cost_one_question") {
        return;
    }
    // A slow answer: all clients wait for it. Quick ones: clients come while the answer is being kept.
    let (scene, upstream) = scene_with(FORWARD, |query, _| {
        let (name, _) = question(query).unwrap();
        let delay = if name.starts_with("slow") { Duration::from_millis(500) } else { Duration::ZERO };
        vec![right(query).after(delay)]
    });
    let names = (0..20).map(|round| format!("quick{round}.test")).chain(["slow.test".to_owned()]);
    for (asked, name) in names.enumerate() {
        at_once(
            &scene,
            200,
            |_| (name.clone(), patient()),
            |_, found| {
                assert_eq!(found.data(), ["192.0.2.1"]);
            },
        );
        assert_eq!(upstream.count(), asked + 1, "{name}");
    }
}

#[test]
fn questions_that_differ_in_do_or_cd_or_type_are_not_answered_by_one_another() {
    if !can_make_namespaces("questions_that_differ_in_do_or_cd_or_type_are_not_answered_by_one_another") {
        return;
    }
    // The address tells which question it answers.
    let (scene, upstream) = scene_with(FORWARD, |query, _| {
        let asked = Answer::parse(query).unwrap();
        let dnssec_ok = asked.edns.as_ref().is_some_and(|edns| edns.dnssec_ok);
        let last = u8::from(dnssec_ok) << 1 | u8::from(asked.has("cd"));
        vec![Reply::now(address(query, Ipv4Addr::new(192, 0, 2, last))).after(Duration::from_millis(300))]
    });
    let options = |number: usize| Options {
        dnssec_ok: number & 2 != 0,
        checking_disabled: number & 1 != 0,
        ..patient()
    };
    at_once(
        &scene,
        40,
        |number| ("a.test".to_owned(), options(number)),
        |number, found| {
            assert_eq!(found.data(), [format!("192.0.2.{}", number & 3)]);
        },
    );
    assert_eq!(upstream.count(), 4);
}

#[test]
fn what_was_asked_without_recursion_is_not_given_to_those_who_want_it() {
    if !can_make_namespaces("what_was_asked_without_recursion_is_not_given_to_those_who_want_it") {
        return;
    }
    // As a recursive server does: without RD it says what it knows, which is nothing.
    let (scene, _upstream) = scene_with(FORWARD, |query, _| {
        if Answer::parse(query).unwrap().has("rd") {
            return vec![right(query)];
        }
        vec![Reply::now(refusal(query, Rcode::NOERROR).unwrap())]
    });
    let without = Options { recursion_desired: false, ..patient() };
    assert_eq!(scene.ask_with(SERVER, "a.test", "A", &without).data(), Vec::<&str>::new());
    assert_eq!(scene.ask("a.test", "A").data(), ["192.0.2.1"]);
}

#[test]
fn more_than_max_concurrent_questions_are_refused_and_counted() {
    if !can_make_namespaces("more_than_max_concurrent_questions_are_refused_and_counted") {
        return;
    }
    let (scene, upstream) = scene_with(&forward_with("max_concurrent 2"), |query, _| {
        let (name, _) = question(query).unwrap();
        if name.starts_with("slow") { Vec::new() } else { vec![right(query)] }
    });
    // Two that are never answered, sent and not waited for.
    let sockets: Vec<std::net::UdpSocket> = (0..2)
        .map(|number| {
            let query = dns::query(&format!("slow{number}.test"), "A", &patient()).unwrap();
            scene
                .net
                .run(|| {
                    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
                    socket.send_to(&query, SERVER).unwrap();
                    socket
                })
                .unwrap()
        })
        .collect();
    upstream.wait_for(2, HANG).unwrap();
    assert_eq!(scene.rcode("a.test", "A"), "REFUSED");
    assert_eq!(scene.metrics().sum("coredns_forward_max_concurrent_rejects_total", &[]), 1.0);
    // Their time runs out, SERVFAIL is said, and there is room again.
    for socket in &sockets {
        socket.set_read_timeout(Some(HANG)).unwrap();
        let mut reply = [0; 512];
        let length = socket.recv(&mut reply).unwrap();
        assert_eq!(Answer::parse(&reply[..length]).unwrap().rcode, "SERVFAIL");
    }
    assert_eq!(scene.ask("a.test", "A").data(), ["192.0.2.1"], "the refusal was remembered");
}

#[test]
fn an_upstream_that_chokes_on_edns_is_asked_without() {
    if !can_make_namespaces("an_upstream_that_chokes_on_edns_is_asked_without") {
        return;
    }
    let (scene, upstream) = scene_with(FORWARD, |query, _| {
        if Answer::parse(query).unwrap().edns.is_some() {
            return vec![Reply::now(refusal(query, Rcode::FORMERR).unwrap())];
        }
        vec![right(query)]
    });
    let with_edns = Options { edns: Some(1232), ..patient() };
    let found = scene.ask_with(SERVER, "a.test", "A", &with_edns);
    assert_eq!((found.rcode.as_str(), found.data()), ("NOERROR", vec!["192.0.2.1"]));
    assert!(found.edns.is_some(), "the client speaks EDNS with us");
    assert_eq!(upstream.count(), 2);
    assert_eq!(scene.rcode("b.test", "A"), "NOERROR");
    assert_eq!(upstream.count(), 3, "it is remembered");
}

#[test]
fn the_question_that_goes_out_is_ours_and_tells_nothing_of_the_client() {
    if !can_make_namespaces("the_question_that_goes_out_is_ours_and_tells_nothing_of_the_client") {
        return;
    }
    let (scene, upstream) = scene_with(FORWARD, |query, _| vec![right(query)]);
    for number in 0..100 {
        let options = Options { id: Some(0x4242), ..patient() };
        scene.ask_with(SERVER, &format!("Name{number}.TEST"), "A", &options);
    }
    let received = upstream.received();
    let ids: std::collections::HashSet<[u8; 2]> =
        received.iter().map(|one| [one.bytes[0], one.bytes[1]]).collect();
    let ports: std::collections::HashSet<u16> = received.iter().map(|one| one.from.port()).collect();
    // 100 draws from 65,536: fewer than 90 different ones come once in more lifetimes than there are.
    assert!(ids.len() > 90, "{} ids", ids.len());
    // 100 draws from 256 places: some 83 on average, each place with a port of its own.
    assert!(ports.len() > 40, "{} ports", ports.len());
    for one in &received {
        let asked = Answer::parse(&one.bytes).unwrap();
        let edns = asked.edns.expect("EDNS");
        assert_eq!((edns.size, edns.options.len()), (1232, 0));
        assert_eq!(asked.flags, "rd");
    }
}

#[test]
fn a_client_that_goes_away_does_not_take_the_answer_along() {
    if !can_make_namespaces("a_client_that_goes_away_does_not_take_the_answer_along") {
        return;
    }
    let release = Arc::new(AtomicBool::new(false));
    let (scene, upstream) = scene_with(FORWARD, {
        let release = Arc::clone(&release);
        move |query, _| {
            let delay = if release.load(Ordering::SeqCst) { 0 } else { 300 };
            vec![right(query).after(Duration::from_millis(delay))]
        }
    });
    // Asks over TCP and hangs up.
    let query = dns::query("a.test", "A", &patient()).unwrap();
    scene
        .net
        .run(|| {
            let mut stream = std::net::TcpStream::connect(SERVER).unwrap();
            dns::write_framed(&mut stream, &query).unwrap();
        })
        .unwrap();
    upstream.wait_for(1, HANG).unwrap();
    assert_eq!(scene.ask_with(SERVER, "a.test", "A", &patient_tcp()).data(), ["192.0.2.1"]);
    assert_eq!(upstream.count(), 1, "the second client joined the first one's question");
}

#[test]
fn names_under_except_are_left_to_the_next_forward() {
    if !can_make_namespaces("names_under_except_are_left_to_the_next_forward") {
        return;
    }
    let corefile = ". {
        bind 127.0.0.1
        forward . 127.0.0.2 {
            except corp.test
        }
        forward corp.test 127.0.0.3 {
            except secret.corp.test
        }
    }
";
    let net = Netns::new().unwrap();
    let first = common::upstream_in(&net, "127.0.0.2:53", zone(30, &[("a.test.", RIGHT.into())]));
    let second = common::upstream_in(&net, "127.0.0.3:53", zone(30, &[("a.corp.test.", RIGHT.into())]));
    let scene = Scene::start_in(net, corefile);
    assert_eq!(scene.rcode("a.test", "A"), "NOERROR");
    assert_eq!(scene.rcode("a.corp.test", "A"), "NOERROR");
    assert_eq!(scene.rcode("acorp.test", "A"), "NXDOMAIN");
    assert_eq!(scene.rcode("a.secret.corp.test", "A"), "SERVFAIL");
    assert_eq!((first.count(), second.count()), (2, 1));
}

/// Asks `clients` questions at the same moment, each from a thread and a socket of its own.
fn at_once(
    scene: &Scene,
    clients: usize,
    make: impl Fn(usize) -> (String, Options) + Sync,
    check: impl Fn(usize, &Answer) + Sync,
) {
    let barrier = Barrier::new(clients);
    let (barrier, make, check) = (&barrier, &make, &check);
    scene
        .net
        .run(|| {
            std::thread::scope(|scope| {
                for number in 0..clients {
                    scope.spawn(move || {
                        let (name, options) = make(number);
                        barrier.wait();
                        check(number, &ask(SERVER, &name, "A", &options).unwrap());
                    });
                }
            });
        })
        .unwrap();
}
