//! What a client sees of the real binary; `operator`: what a probe and an operator do.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise, in its helpers too")]

#[path = "../common/mod.rs"]
mod common;
mod operator;

use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

use common::{HANG, SERVER, Scene, ip, patient, patient_tcp, socket, upstream_in};
use nodestub_lab::skip::can_make_namespaces;
use nodestub_lab::upstream::{Data, Reply, answer, question, zone};
use nodestub_lab::{Answer, Netns, Options, Transport, Upstream, dns, exchange};

const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// Names that need nobody else.
const HOSTS: &str = "test {
    bind 127.0.0.1
    hosts {
        192.0.2.1 a.test
        192.0.2.2 b.test b2.test
        2001:db8::2 b.test
        192.0.2.3 *.wild.test
        ttl 60
        reload 0
    }
    cache
    prometheus 127.0.0.1:9153
}
";

fn forwarding(
    behaviour: impl Fn(&[u8], Transport) -> Vec<Reply> + Send + Sync + 'static,
) -> (Scene, Upstream) {
    let corefile = ". {
        bind 127.0.0.1
        cache
        forward . 127.0.0.2
        prometheus 127.0.0.1:9153
    }
";
    let net = Netns::new().unwrap();
    let upstream = upstream_in(&net, "127.0.0.2:53", behaviour);
    (Scene::start_in(net, corefile), upstream)
}

/// Sends bytes as they are to [`SERVER`] and parses what comes back.
fn send(scene: &Scene, message: &[u8], options: &Options) -> Answer {
    let raw = scene.net.run(|| exchange(SERVER, message, options)).unwrap().unwrap();
    Answer::parse(&raw).unwrap()
}

#[test]
fn answers_over_udp_and_tcp_in_both_families() {
    if !can_make_namespaces("answers_over_udp_and_tcp_in_both_families") {
        return;
    }
    let scene = Scene::start(&HOSTS.replace("bind 127.0.0.1", "bind 127.0.0.1 ::1"));
    for server in ["127.0.0.1:53", "[::1]:53"].map(socket) {
        for options in [patient(), patient_tcp()] {
            // From `hosts`, then from the cache.
            for _ in 0..2 {
                let found = scene.ask_with(server, "A.test", "A", &options);
                assert_eq!((found.rcode.as_str(), found.data()), ("NOERROR", vec!["192.0.2.1"]));
                assert_eq!(found.question.as_ref().unwrap().0, "A.test.");
            }
        }
    }
}

#[test]
fn without_bind_answers_on_every_address_from_the_address_that_was_asked() {
    if !can_make_namespaces("without_bind_answers_on_every_address_from_the_address_that_was_asked") {
        return;
    }
    let net = Netns::new().unwrap();
    net.add_address("lo", ip("fd00::77"), 128).unwrap();
    let scene = Scene::start_in(net, &HOSTS.replace("bind 127.0.0.1\n", "\n"));
    for server in ["127.0.0.1:53", "127.0.0.77:53", "[::1]:53", "[fd00::77]:53"].map(socket) {
        for options in [patient(), patient_tcp()] {
            // The client's socket is connected: an answer from elsewhere would not reach it. From `hosts` by the slow
            // side, then from the cache by the fast side.
            for _ in 0..2 {
                let name = format!("a{}.wild.test", server.is_ipv6());
                assert_eq!(scene.ask_with(server, &name, "A", &options).data(), ["192.0.2.3"], "{server}");
            }
        }
    }
}

#[test]
fn a_block_on_one_address_and_a_block_on_all_share_a_port() {
    if !can_make_namespaces("a_block_on_one_address_and_a_block_on_all_share_a_port") {
        return;
    }
    let block = |zone: &str, bind: &str| {
        format!("{zone} {{\n {bind}\n hosts {{\n 192.0.2.5 a.{zone}\n reload 0\n }}\n}}\n")
    };
    let scene = Scene::start(&[block("one", "bind 127.0.0.5"), block("all", "")].concat());
    for options in [patient(), patient_tcp()] {
        let rcode = |server, name| scene.ask_with(socket(server), name, "A", &options).rcode;
        assert_eq!(rcode("127.0.0.5:53", "a.one"), "NOERROR");
        assert_eq!(rcode("127.0.0.5:53", "a.all"), "REFUSED");
        assert_eq!(rcode("127.0.0.1:53", "a.all"), "NOERROR");
        assert_eq!(rcode("127.0.0.1:53", "a.one"), "REFUSED");
    }
}

#[test]
fn answers_on_all_addresses_of_a_device_but_the_excepted() {
    if !can_make_namespaces("answers_on_all_addresses_of_a_device_but_the_excepted") {
        return;
    }
    let net = Netns::new().unwrap();
    net.add_address("lo", ip("10.1.1.1"), 32).unwrap();
    net.add_address("lo", ip("10.1.1.2"), 32).unwrap();
    // What one `bind` leaves out, another may name.
    let bind = "bind lo {\n except 10.1.1.2 127.0.0.1\n }\n bind 127.0.0.1\n";
    let scene = Scene::start_in(net, &HOSTS.replace("bind 127.0.0.1\n", bind));
    assert_eq!(scene.ask_with(socket("10.1.1.1:53"), "a.test", "A", &patient()).data(), ["192.0.2.1"]);
    assert_eq!(scene.rcode("a.test", "A"), "NOERROR");
    let query = dns::query("a.test", "A", &patient()).unwrap();
    let silent = scene.net.run(|| exchange(socket("10.1.1.2:53"), &query, &patient())).unwrap();
    assert!(silent.is_err(), "the excepted address answered");
}

#[test]
fn the_longest_zone_answers_and_names_of_none_are_refused() {
    if !can_make_namespaces("the_longest_zone_answers_and_names_of_none_are_refused") {
        return;
    }
    let block = |zones: &str, address: &str, name: &str| {
        format!(
            "{zones} {{\n bind 127.0.0.1\n hosts {{\n {address} {name}\n reload 0\n fallthrough\n }}\n}}\n"
        )
    };
    let corefile = [
        block("test", "192.0.2.1", "a.test a.sub.test"),
        block("sub.test other", "192.0.2.2", "a.sub.test a.other"),
        block("10.0.0.0/8", "10.1.2.3", "ten.other"),
        block("test:5353", "192.0.2.9", "a.test"),
    ]
    .concat();
    let scene = Scene::start(&corefile);
    for (name, rtype, data) in [
        ("a.test", "A", "192.0.2.1"),
        ("a.sub.test", "A", "192.0.2.2"),
        ("a.other", "A", "192.0.2.2"),
        ("3.2.1.10.in-addr.arpa", "PTR", "ten.other."),
    ] {
        assert_eq!(scene.ask(name, rtype).data(), [data], "{name}");
    }
    assert_eq!(scene.ask_with(socket("127.0.0.1:5353"), "a.test", "A", &patient()).data(), ["192.0.2.9"]);
    for outside in ["a.example", "test.", "atest", ".", "1.2.3.11.in-addr.arpa"] {
        let expected = if outside == "test." { "SERVFAIL" } else { "REFUSED" };
        assert_eq!(scene.rcode(outside, "A"), expected, "{outside}");
    }
}

#[test]
fn refuses_other_classes_and_opcodes_and_versions_by_their_own_codes() {
    if !can_make_namespaces("refuses_other_classes_and_opcodes_and_versions_by_their_own_codes") {
        return;
    }
    let scene = Scene::start(HOSTS);
    let plain = dns::query("a.test", "A", &Options { id: Some(7), ..patient() }).unwrap();
    for options in [patient(), patient_tcp()] {
        let mut chaos = plain.clone();
        *chaos.last_mut().unwrap() = 3;
        let refused = send(&scene, &chaos, &options);
        assert_eq!((refused.rcode.as_str(), refused.id), ("REFUSED", 7));
        assert_eq!(refused.question.unwrap().2, "CH");

        for opcode in [1, 2, 4, 5, 6, 15] {
            let mut other = plain.clone();
            other[2] = opcode << 3;
            let refused = send(&scene, &other, &options);
            assert_eq!((refused.rcode.as_str(), refused.id), ("NOTIMP", 7), "opcode {opcode}");
        }

        let mut version_1 = dns::query("a.test", "A", &Options { edns: Some(1232), ..patient() }).unwrap();
        let version_at = version_1.len() - 5;
        version_1[version_at] = 1;
        let refused = send(&scene, &version_1, &options);
        assert_eq!(refused.rcode, "BADVERS");
        assert_eq!(refused.edns.unwrap().version, 0);
        assert_eq!(refused.answers, []);

        let mut two_questions = plain.clone();
        two_questions[5] = 2;
        let refused = send(&scene, &two_questions, &options);
        assert_eq!((refused.rcode.as_str(), refused.id), ("FORMERR", 7));
    }
}

#[test]
fn says_nothing_to_a_response() {
    if !can_make_namespaces("says_nothing_to_a_response") {
        return;
    }
    let scene = Scene::start(HOSTS);
    let mut response = dns::query("a.test", "A", &Options { id: Some(1), ..patient() }).unwrap();
    response[2] |= 0x80;
    let query = dns::query("a.test", "A", &Options { id: Some(2), ..patient() }).unwrap();
    // One socket, one after the other: the first that comes back is the query's.
    let first = scene
        .net
        .run(|| {
            let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.connect(SERVER).unwrap();
            socket.set_read_timeout(Some(HANG)).unwrap();
            socket.send(&response).unwrap();
            socket.send(&query).unwrap();
            let mut reply = [0; 512];
            let length = socket.recv(&mut reply).unwrap();
            Answer::parse(&reply[..length]).unwrap()
        })
        .unwrap();
    assert_eq!(first.id, 2);
}

#[test]
fn a_cached_answer_does_not_wait_behind_a_slow_one_on_the_same_connection() {
    if !can_make_namespaces("a_cached_answer_does_not_wait_behind_a_slow_one_on_the_same_connection") {
        return;
    }
    // The slow one is answered when the quick ones have been.
    let gate = std::sync::Arc::new((std::sync::Mutex::new(false), std::sync::Condvar::new()));
    let at_gate = std::sync::Arc::clone(&gate);
    let (scene, _upstream) = forwarding(move |query, _| {
        let (name, _) = question(query).unwrap();
        if name.starts_with("slow") {
            let (open, changed) = &*at_gate;
            drop(changed.wait_timeout_while(open.lock().unwrap(), HANG, |open| !*open).unwrap());
        }
        vec![Reply::now(answer(query, &[(&name, 300, Data::A(ADDRESS))]).unwrap())]
    });
    for number in 0..10 {
        assert_eq!(scene.rcode(&format!("quick{number}.test"), "A"), "NOERROR");
    }
    let order: Vec<String> = scene
        .net
        .run(|| {
            let mut stream = connect();
            write_question(&mut stream, "slow.test");
            for number in 0..10 {
                write_question(&mut stream, &format!("quick{number}.test"));
            }
            let read = |stream: &mut TcpStream| read_answer(stream).question.unwrap().0;
            let mut order: Vec<String> = (0..10).map(|_| read(&mut stream)).collect();
            *gate.0.lock().unwrap() = true;
            gate.1.notify_all();
            order.push(read(&mut stream));
            order
        })
        .unwrap();
    assert_eq!(order.last().unwrap(), "slow.test.", "{order:?}");
}

#[test]
fn answers_every_question_of_a_pipelined_connection() {
    if !can_make_namespaces("answers_every_question_of_a_pipelined_connection") {
        return;
    }
    // More than are taken on at once, so that reading must pause and go on.
    const QUESTIONS: usize = 600;
    let (scene, _upstream) = forwarding(|query, _| {
        let (name, _) = question(query).unwrap();
        vec![Reply::now(answer(query, &[(&name, 300, Data::A(ADDRESS))]).unwrap())]
    });
    let mut names: Vec<String> = scene
        .net
        .run(|| {
            let mut stream = connect();
            let mut writer = stream.try_clone().unwrap();
            std::thread::scope(|scope| {
                scope.spawn(move || {
                    for number in 0..QUESTIONS {
                        write_question(&mut writer, &format!("n{number:03}.test"));
                    }
                });
                (0..QUESTIONS)
                    .map(|_| {
                        let found = read_answer(&mut stream);
                        assert_eq!(found.data(), ["192.0.2.1"]);
                        found.question.unwrap().0
                    })
                    .collect()
            })
        })
        .unwrap();
    names.sort();
    assert_eq!(names, (0..QUESTIONS).map(|number| format!("n{number:03}.test.")).collect::<Vec<_>>());
}

#[test]
fn a_client_that_closes_its_side_after_asking_is_still_answered() {
    if !can_make_namespaces("a_client_that_closes_its_side_after_asking_is_still_answered") {
        return;
    }
    let (scene, _upstream) = forwarding(|query, _| {
        let (name, _) = question(query).unwrap();
        let reply = Reply::now(answer(query, &[(&name, 300, Data::A(ADDRESS))]).unwrap());
        vec![reply.after(Duration::from_millis(100))]
    });
    let (found, rest) = scene
        .net
        .run(|| {
            let mut stream = connect();
            write_question(&mut stream, "a.test");
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            (read_answer(&mut stream), dns::read_framed(&mut stream))
        })
        .unwrap();
    assert_eq!(found.data(), ["192.0.2.1"]);
    assert_eq!(rest.unwrap(), None, "then the connection is closed");
}

#[test]
fn a_question_that_comes_byte_by_byte_is_answered() {
    if !can_make_namespaces("a_question_that_comes_byte_by_byte_is_answered") {
        return;
    }
    let scene = Scene::start(HOSTS);
    let query = dns::query("a.test", "A", &patient()).unwrap();
    let found = scene
        .net
        .run(|| {
            use std::io::Write;
            let mut stream = connect();
            let mut framed = Vec::new();
            dns::write_framed(&mut framed, &query).unwrap();
            for byte in framed {
                stream.write_all(&[byte]).unwrap();
            }
            read_answer(&mut stream)
        })
        .unwrap();
    assert_eq!(found.data(), ["192.0.2.1"]);
}

#[test]
fn ttls_stay_within_the_corefiles_bounds_even_where_the_upper_is_below_the_lower() {
    if !can_make_namespaces("ttls_stay_within_the_corefiles_bounds_even_where_the_upper_is_below_the_lower") {
        return;
    }
    // The lower bound is 5 seconds unless something else is said.
    for (cache, ttl) in [("cache 3", 3), ("cache 30", 30), ("cache {\n success 1024 2\n }", 2)] {
        let corefile = HOSTS.replace("cache\n", &format!("{cache}\n"));
        let scene = Scene::start(&corefile);
        assert_eq!(scene.ask("a.test", "A").ttls(), [ttl], "{cache}");
        // NODATA and SERVFAIL go the same way.
        assert_eq!(scene.rcode("a.test", "MX"), "NOERROR", "{cache}");
        assert_eq!(scene.rcode("absent.test", "A"), "SERVFAIL", "{cache}");
        assert_eq!(scene.metrics().sum("coredns_panics_total", &[]), 0.0);
    }
    for (cache, ttl) in [("cache 3", 3), ("cache {\n denial 1024 4\n }", 4)] {
        let corefile = format!(". {{\n bind 127.0.0.1\n {cache}\n forward . 127.0.0.2\n}}\n");
        let net = Netns::new().unwrap();
        let _upstream = upstream_in(&net, "127.0.0.2:53", zone(300, &[]));
        let scene = Scene::start_in(net, &corefile);
        let denied = scene.ask("absent.test", "A");
        assert_eq!((denied.rcode.as_str(), denied.authority[0].ttl), ("NXDOMAIN", ttl), "{cache}");
    }
}

#[test]
fn hosts_answers_inline_names_addresses_and_wildcards() {
    if !can_make_namespaces("hosts_answers_inline_names_addresses_and_wildcards") {
        return;
    }
    let scene = Scene::start(&HOSTS.replacen("test {", "test 192.0.2.0/24 2001:db8::/32 {", 1));
    for (name, rtype, data) in [
        ("a.test", "A", vec!["192.0.2.1"]),
        ("B.TEST", "A", vec!["192.0.2.2"]),
        ("b.test", "AAAA", vec!["2001:db8::2"]),
        ("b2.test", "A", vec!["192.0.2.2"]),
        ("any.wild.test", "A", vec!["192.0.2.3"]),
        // NODATA: the name is there, the type is not.
        ("a.test", "AAAA", vec![]),
        ("a.test", "MX", vec![]),
        ("2.2.0.192.in-addr.arpa", "PTR", vec!["b.test.", "b2.test."]),
        ("2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa", "PTR", vec!["b.test."]),
    ] {
        for _ in 0..2 {
            let found = scene.ask(name, rtype);
            assert_eq!((found.rcode.as_str(), found.data()), ("NOERROR", data.clone()), "{name} {rtype}");
            assert!(found.ttls().iter().all(|ttl| *ttl <= 60), "{name} {rtype}");
        }
    }
    // No SOA to give with a denial, and nobody to pass it on to.
    for (name, rtype) in
        [("absent.test", "A"), ("wild.test", "A"), ("a.b.wild.test", "A"), ("9.2.0.192.in-addr.arpa", "PTR")]
    {
        assert_eq!(scene.rcode(name, rtype), "SERVFAIL", "{name} {rtype}");
    }
}

#[test]
fn hosts_passes_on_what_it_does_not_know_where_the_corefile_says_so() {
    if !can_make_namespaces("hosts_passes_on_what_it_does_not_know_where_the_corefile_says_so") {
        return;
    }
    let corefile = |fallthrough: &str| {
        format!(
            ". {{\n bind 127.0.0.1\n hosts {{\n 192.0.2.1 a.test\n reload 0\n {fallthrough}\n }}\n forward . 127.0.0.2\n}}\n"
        )
    };
    let names = [("b.test.", ip("192.0.2.7")), ("b.example.", ip("192.0.2.8"))];
    for (fallthrough, expected) in [
        ("", ["SERVFAIL", "SERVFAIL"]),
        ("fallthrough", ["NOERROR", "NOERROR"]),
        ("fallthrough example", ["SERVFAIL", "NOERROR"]),
    ] {
        let net = Netns::new().unwrap();
        let _upstream = upstream_in(&net, "127.0.0.2:53", zone(30, &names));
        let scene = Scene::start_in(net, &corefile(fallthrough));
        assert_eq!(scene.ask("a.test", "A").data(), ["192.0.2.1"]);
        assert_eq!(["b.test", "b.example"].map(|name| scene.rcode(name, "A")), expected, "{fallthrough:?}");
    }
}

#[test]
fn hosts_reads_its_file_and_reads_it_again_when_it_changes() {
    if !can_make_namespaces("hosts_reads_its_file_and_reads_it_again_when_it_changes") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("hosts");
    std::fs::write(&file, "192.0.2.1 a.test # comment\nnonsense line\n2001:db8::1\ta.test\n").unwrap();
    let corefile = format!(
        "test {{\n bind 127.0.0.1\n hosts {} {{\n 192.0.2.9 inline.test\n reload 100ms\n }}\n prometheus 127.0.0.1:9153\n}}\n",
        file.display()
    );
    let scene = Scene::start(&corefile);
    assert_eq!(scene.ask("a.test", "A").data(), ["192.0.2.1"]);
    assert_eq!(scene.ask("a.test", "AAAA").data(), ["2001:db8::1"]);
    assert_eq!(scene.ask("inline.test", "A").data(), ["192.0.2.9"]);
    std::fs::write(&file, "192.0.2.22 a.test\n192.0.2.3 later.test\n").unwrap();
    until("the new file is in force", || scene.ask("a.test", "A").data() == ["192.0.2.22"]);
    assert_eq!(scene.ask("later.test", "A").data(), ["192.0.2.3"]);
    assert_eq!(scene.ask("inline.test", "A").data(), ["192.0.2.9"]);
    // A file that is gone for a moment is no reason to forget.
    std::fs::remove_file(&file).unwrap();
    until("the loss is noticed", || scene.metrics().sum("nodestub_hosts_failed_reads_total", &[]) > 0.0);
    assert_eq!(scene.ask("later.test", "A").data(), ["192.0.2.3"]);
}

fn connect() -> TcpStream {
    let stream = TcpStream::connect(SERVER).unwrap();
    stream.set_read_timeout(Some(HANG)).unwrap();
    stream
}

fn write_question(stream: &mut TcpStream, name: &str) {
    let query = dns::query(name, "A", &patient()).unwrap();
    dns::write_framed(stream, &query).unwrap();
}

fn read_answer(stream: &mut TcpStream) -> Answer {
    Answer::parse(&dns::read_framed(stream).unwrap().expect("an answer")).unwrap()
}

/// Asks until it is so. The limit is for what never comes.
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = std::time::Instant::now() + HANG;
    while !is_so() {
        assert!(std::time::Instant::now() < end, "{what}: never");
        std::thread::sleep(Duration::from_millis(20));
    }
}
