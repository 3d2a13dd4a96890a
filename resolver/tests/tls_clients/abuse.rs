//! What clients should not do at a port of TLS: the next good query is answered, and nothing is left behind.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nodestub_lab::dns::write_framed;

use crate::common::HANG;
use crate::stage::{PATIENT, RIGHT, Served, Stage, Trust, asked, bare, shake_hands};

/// The beginning of a ClientHello by TLS 1.2: a record of 512 bytes, of which the rest does not come.
const CUT_HELLO: [u8; 11] = [22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3];

/// Connections that begin no handshake, from so many addresses that no client is greedy. More than half of all places.
const IDLE: usize = 700;

/// What may be left behind, in KiB: what the allocator keeps, not what is in use.
const LEFT_BEHIND: u64 = 8 << 10;

#[test]
fn good_queries_are_answered_whatever_others_send_and_nothing_is_left_behind() {
    let test = "good_queries_are_answered_whatever_others_send_and_nothing_is_left_behind";
    let Some(stage) = Stage::new(test) else { return };
    let scene = stage.serve("\n timeouts {\n idle 4m\n }");
    let mut good = scene.connect(&stage.trust());
    assert_eq!(good.ask("a.test").data(), [RIGHT]);
    let net = &scene.net;

    // Closed at once, with an alert or without.
    for garbage in [
        &b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..],
        &[0xff; 600],
        &[22, 3, 1, 0xff, 0xff, 1],
        &[21, 3, 3, 0, 2, 2, 40],
        &[23, 3, 3, 0, 1, 0],
    ] {
        let mut stream = bare(net, [127, 1, 0, 1]);
        stream.write_all(garbage).unwrap();
        ends(&mut stream);
    }
    // A query in the clear.
    let mut plain = bare(net, [127, 1, 0, 1]);
    write_framed(&mut plain, &asked("a.test")).unwrap();
    ends(&mut plain);
    // A ClientHello that is cut: the client goes, or waits.
    let mut cut = bare(net, [127, 1, 0, 2]);
    cut.write_all(&CUT_HELLO).unwrap();
    cut.shutdown(Shutdown::Write).unwrap();
    ends(&mut cut);
    let mut waiting = bare(net, [127, 1, 0, 2]);
    waiting.write_all(&CUT_HELLO).unwrap();
    // One byte a time.
    let mut slow = bare(net, [127, 1, 0, 3]);
    let mut drops = CUT_HELLO.iter().cycle();
    // Many that say nothing.
    let idle: Vec<TcpStream> =
        (0..IDLE).map(|number| bare(net, [127, 2, 0, u8::try_from(number % 20 + 1).unwrap()])).collect();
    let under_way = scene.metrics().sum("nodestub_tls_handshakes_under_way", &[]);
    assert!(under_way > 300.0, "{under_way}");
    assert_eq!(good.ask("a.test").data(), [RIGHT]);
    assert_eq!(scene.connect(&stage.trust()).ask("b.test").data(), [RIGHT]);
    let end = Instant::now() + HANG;
    while slow.write_all(&[*drops.next().unwrap()]).is_ok() {
        assert!(Instant::now() < end, "a handshake that never ends is never given up");
        sleep(Duration::from_millis(300));
    }
    ends(&mut waiting);
    for mut stream in idle {
        ends(&mut stream);
    }

    assert_eq!(scene.connect(&stage.trust()).ask("c.test").data(), [RIGHT]);
    drop(good);
    until_nothing_is_left(&scene);
    let metrics = scene.metrics();
    let handshakes = |result| metrics.sum("nodestub_tls_handshakes_total", &[("result", result)]);
    assert!(handshakes("failed") >= 7.0 && handshakes("timed_out") >= 700.0, "{}", metrics.0);
    assert!(metrics.sum("coredns_panics_total", &[]) < 0.5);
}

#[test]
fn one_client_has_only_so_many_connections_and_its_handshakes_are_counted() {
    let test = "one_client_has_only_so_many_connections_and_its_handshakes_are_counted";
    let Some(stage) = Stage::new(test) else { return };
    let scene = stage.serve("");
    let held: Vec<TcpStream> = (0..100).map(|_| bare(&scene.net, [127, 3, 0, 1])).collect();
    // Another client is served.
    assert_eq!(scene.connect(&stage.trust()).ask("a.test").data(), [RIGHT]);
    let metrics = scene.metrics();
    assert!((metrics.sum("nodestub_tcp_greedy_total", &[]) - 36.0).abs() < 0.5, "{}", metrics.0);
    drop(held);
    until_nothing_is_left(&scene);
}

#[test]
fn a_silent_connection_is_closed_and_told_so() {
    let Some(stage) = Stage::new("a_silent_connection_is_closed_and_told_so") else { return };
    let scene = stage.serve("\n timeouts {\n read 1s\n idle 2s\n }");
    let mut asked = scene.connect(&stage.trust());
    assert_eq!(asked.ask("a.test").data(), [RIGHT]);
    let mut silent = scene.connect(&stage.trust());
    assert!(silent.is_taken_leave_of() && asked.is_taken_leave_of());
    let metrics = scene.metrics();
    assert!((metrics.sum("nodestub_tcp_timed_out_total", &[]) - 2.0).abs() < 0.5, "{}", metrics.0);
    until_nothing_is_left(&scene);
}

#[test]
fn a_client_that_never_reads_and_messages_that_are_none_end_their_connection_alone() {
    let test = "a_client_that_never_reads_and_messages_that_are_none_end_their_connection_alone";
    let Some(stage) = Stage::new(test) else { return };
    let scene = stage.serve("");
    let mut good = scene.connect(&stage.trust());
    // No message, a response, and one that is announced and does not come.
    for bytes in [vec![], vec![0; 5], [&[0, 1, 0x80, 0][..], &[0; 8]].concat()] {
        let mut client = scene.connect(&Trust { alpn: &[], ..stage.trust() });
        client.send_all(&[bytes]);
        assert!(client.is_taken_leave_of());
    }
    // Answers that nobody takes: the daemon's buffers fill, and it waits no longer than `write`.
    let mut deaf = scene.connect(&stage.trust());
    let queries: Vec<Vec<u8>> = (0..200).map(|_| asked("a.test")).collect();
    deaf.socket().set_write_timeout(Some(Duration::from_secs(1))).unwrap();
    let end = Instant::now() + HANG;
    while deaf.try_send_all(&queries).is_ok() {
        assert!(Instant::now() < end, "a client that does not read is read on from");
        assert_eq!(good.ask("a.test").data(), [RIGHT]);
    }
    drop((deaf, good));
    assert_eq!(scene.connect(&stage.trust()).ask("a.test").data(), [RIGHT]);
    until_nothing_is_left(&scene);
}

#[test]
fn memory_returns_when_many_connections_have_come_and_gone() {
    let test = "memory_returns_when_many_connections_have_come_and_gone";
    let Some(stage) = Stage::new(test) else { return };
    // On a slow machine the last one shakes hands long after the first.
    let scene = stage.serve(PATIENT);
    let config = stage.trust().config();
    let crowd = || {
        let mut clients: Vec<_> = (1..=10_u8)
            .flat_map(|source| (0..40).map(move |_| source))
            .map(|source| shake_hands(bare(&scene.net, [127, 4, 0, source]), &config).unwrap())
            .collect();
        for client in &mut clients {
            assert_eq!(client.ask("a.test").data(), [RIGHT]);
        }
        drop(clients);
        until_nothing_is_left(&scene);
    };
    // Every thread has its arena, and every table its size, before memory is compared.
    crowd();
    let before = resident(&scene);
    for _ in 0..3 {
        crowd();
    }
    let end = Instant::now() + HANG;
    while resident(&scene) > before + LEFT_BEHIND {
        assert!(Instant::now() < end, "{before} KiB were resident, now {}", resident(&scene));
        sleep(Duration::from_millis(200));
    }
}

/// Resident memory of the daemon, in KiB.
fn resident(scene: &Served) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", scene.daemon.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

/// Whatever still comes, the connection ends.
fn ends(stream: &mut TcpStream) {
    let mut buffer = [0; 512];
    let end = Instant::now() + HANG;
    loop {
        assert!(Instant::now() < end, "the connection stays");
        match stream.read(&mut buffer) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => panic!("the connection stays"),
            // Reset.
            Err(_) => return,
        }
    }
}

/// All connections and handshakes are over.
pub(crate) fn until_nothing_is_left(scene: &Served) {
    let end = Instant::now() + HANG;
    loop {
        let metrics = scene.metrics();
        let gauges =
            ["nodestub_tcp_connections", "nodestub_tls_connections", "nodestub_tls_handshakes_under_way"];
        let left: f64 = gauges.iter().map(|gauge| metrics.find(gauge, &[]).unwrap()).sum();
        if left < 0.5 {
            return;
        }
        assert!(Instant::now() < end, "{left} are left");
        sleep(Duration::from_millis(100));
    }
}
