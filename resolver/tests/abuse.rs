//! Everything that clients should not do, all at once: the next good query is answered, bounds are met and counted, and
//! memory comes back.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may stop at the first surprise")]

mod common;
#[path = "common/secure.rs"]
mod secure;

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::{HANG, SERVER, Scene, patient, patient_tcp, resolver, upstream_in};
use nodestub_lab::skip::can_make_namespaces;
use nodestub_lab::upstream::{Data, Reply, answer, question};
use nodestub_lab::{Netns, Options, dns};
use secure::Authority;
use socket2::{Domain, Protocol, Socket, Type};

/// Idle connections, fewer where the system allows this process fewer files.
const IDLE_CONNECTIONS: usize = 10_000;

/// Addresses that they come from: few enough on each that no client is greedy.
const SOURCES: usize = 250;

/// Where queries are taken over TLS.
const TLS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 853);

/// Unique names, none of which is ever answered.
const UNIQUE_NAMES: usize = 20_000;

/// Queries for ANY, and from made-up sources.
const FLOOD: usize = 5_000;

/// What may be left behind, in KiB: what the allocator keeps, not what is in use.
const LEFT_BEHIND: u64 = 24 << 10;

#[test]
fn good_queries_are_answered_whatever_other_clients_do_and_memory_returns() {
    if !can_make_namespaces("good_queries_are_answered_whatever_other_clients_do_and_memory_returns") {
        return;
    }
    raise_file_limit();
    let net = Netns::new().unwrap();
    let _upstream = upstream_in(&net, "127.0.0.2:53", |query, _| {
        let Ok((name, _)) = question(query) else { return vec![] };
        // Names of the flood are never answered.
        let good = name.contains("good") || name.contains("warm");
        let reply =
            good.then(|| answer(query, &[(&name, 3600, Data::A(Ipv4Addr::new(192, 0, 2, 1)))]).unwrap());
        reply.map(Reply::now).into_iter().collect()
    });
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("Corefile");
    let pair = Authority::new().sign("dns.test");
    let (certificate, key) = (folder.path().join("tls.crt"), folder.path().join("tls.key"));
    std::fs::write(&certificate, pair.certificate).unwrap();
    std::fs::write(&key, pair.key).unwrap();
    let corefile = format!(
        ".:53 tls://. {{\n bind 127.0.0.1\n tls {} {}\n cache 3600\n forward . 127.0.0.2\n prometheus 127.0.0.1:9153\n}}\n",
        certificate.display(),
        key.display()
    );
    std::fs::write(&path, corefile).unwrap();
    let mut command = resolver(&path);
    // So that what is kept cannot be taken for what was lost.
    command.arg("--cache-size=2");
    let scene = Scene::of(net, command, folder);

    assert_eq!(scene.rcode("good.test", "A"), "NOERROR");
    // Every thread has its arena, and every table its size, before memory is compared.
    for number in 0..2_000 {
        assert_eq!(scene.rcode(&format!("warm{number}.test"), "A"), "NOERROR");
    }
    let before = resident(&scene);

    let done = AtomicBool::new(false);
    let (answered, dropped_in) = std::thread::scope(|scope| {
        let (scene, done) = (&scene, &done);
        let attack = |work: fn(&AtomicBool)| scope.spawn(move || scene.net.run(|| work(done)).unwrap());
        let attacks = [
            attack(idle_connections),
            attack(one_greedy_client),
            attack(slow_first_byte),
            attack(drops_by_drops),
            attack(half_closed),
            attack(never_read),
            attack(reset_at_once),
            attack(broken_frames),
            attack(tls_garbage),
            attack(tls_handshakes_without_end),
            attack(broken_datagrams),
            attack(any_flood),
            attack(unique_names),
            attack(spoofed_sources),
        ];
        let good = scope.spawn(move || ask_until(scene, done));
        let mut failed = Vec::new();
        for (number, attack) in attacks.into_iter().enumerate() {
            if attack.join().is_err() {
                failed.push(number);
            }
        }
        done.store(true, Relaxed);
        (good.join().unwrap(), failed)
    });
    assert!(dropped_in.is_empty(), "these attacks could not be carried out: {dropped_in:?}");
    assert!(answered > 10, "only {answered} good queries were answered meanwhile");

    // The next good query, cached and not, by both transports.
    for (fresh, options) in [("good1.test", patient()), ("good2.test", patient_tcp())] {
        assert_eq!(scene.ask_with(SERVER, "good.test", "A", &options).rcode, "NOERROR");
        assert_eq!(scene.ask_with(SERVER, fresh, "A", &options).rcode, "NOERROR");
    }
    let metrics = scene.metrics();
    for moved in [
        "nodestub_tcp_rejected_total",
        "nodestub_tcp_greedy_total",
        "nodestub_tcp_timed_out_total",
        "nodestub_misses_refused_total",
        "nodestub_replies_refused_total",
    ] {
        assert!(metrics.sum(moved, &[]) > 0.0, "{moved} has not moved:\n{}", metrics.0);
    }
    for result in ["failed", "timed_out"] {
        let count = metrics.sum("nodestub_tls_handshakes_total", &[("result", result)]);
        assert!(count > 0.0, "{result} has not moved:\n{}", metrics.0);
    }
    assert!(metrics.sum("coredns_panics_total", &[]) < 1.0, "a panic:\n{}", scene.daemon.lines().join("\n"));

    // What was under way ends by itself: misses after five seconds, connections after their patience.
    let end = Instant::now() + HANG;
    loop {
        let metrics = scene.metrics();
        let left =
            metrics.sum("nodestub_misses_under_way", &[]) + metrics.sum("nodestub_tcp_connections", &[]);
        let grown = resident(&scene).saturating_sub(before);
        if left < 1.0 && grown < LEFT_BEHIND {
            break;
        }
        assert!(Instant::now() < end, "{left} are still under way, and {grown} KiB more are resident");
        sleep(Duration::from_millis(200));
    }
}

/// A client as it should be, which repeats what was not answered; how many of its queries were.
fn ask_until(scene: &Scene, done: &AtomicBool) -> usize {
    let mut answered = 0;
    let end = Instant::now() + 2 * HANG;
    while !done.load(Relaxed) {
        for options in [patient(), patient_tcp()] {
            let options = Options { timeout: Duration::from_secs(5), ..options };
            let answer = scene.net.run(|| nodestub_lab::ask(SERVER, "good.test", "A", &options)).unwrap();
            if let Ok(answer) = answer {
                assert_eq!(answer.data(), ["192.0.2.1"]);
                answered += 1;
            }
        }
        assert!(Instant::now() < end, "the attacks do not end");
        sleep(Duration::from_millis(20));
    }
    answered
}

/// Many connections that say nothing, from many addresses.
fn idle_connections(_: &AtomicBool) {
    let mut held = Vec::new();
    for number in 0..IDLE_CONNECTIONS {
        match connect_from(source(number % SOURCES)) {
            Ok(stream) => held.push(stream),
            // This process may open no more files.
            Err(_) => break,
        }
    }
    assert!(held.len() > 1_500, "only {} connections could be made", held.len());
    sleep(Duration::from_secs(2));
}

/// Two hundred connections from one address, each of which asks, so that it stays.
fn one_greedy_client(_: &AtomicBool) {
    let query = query("good.test");
    let mut held = Vec::new();
    for _ in 0..200 {
        let Ok(mut stream) = connect_from(Ipv4Addr::new(127, 9, 9, 9)) else { continue };
        drop(dns::write_framed(&mut stream, &query));
        held.push(stream);
    }
    sleep(Duration::from_secs(1));
}

/// What is no TLS, or no handshake, until some of it has come as far as being looked at.
fn tls_garbage(_: &AtomicBool) {
    let garbage: [&[u8]; 4] =
        [b"GET / HTTP/1.1\r\n\r\n", &[0xff; 600], &[22, 3, 1, 0xff, 0xff, 1], &[21, 3, 3, 0, 2, 2, 40]];
    for number in 0..400 {
        let Ok(mut stream) = connect_to(TLS, Ipv4Addr::new(127, 9, 9, 3)) else { continue };
        drop(stream.write_all(garbage[number % garbage.len()]));
        sleep(Duration::from_millis(10));
    }
}

/// Handshakes of which the beginning comes.
fn tls_handshakes_without_end(_: &AtomicBool) {
    let mut held = Vec::new();
    for number in 0..400 {
        let Ok(mut stream) = connect_to(TLS, Ipv4Addr::new(127, 9, 9, 4)) else { continue };
        drop(stream.write_all(&[22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3]));
        held.push(stream);
        if number % 100 == 99 {
            sleep(Duration::from_secs(1));
        }
    }
}

/// A question whose first byte comes late: some in time, the others too late.
fn slow_first_byte(_: &AtomicBool) {
    let query = query("good.test");
    let connect = || connect_from(Ipv4Addr::new(127, 9, 9, 5)).ok();
    let mut streams: Vec<_> = (0..40).filter_map(|_| connect()).collect();
    for late in streams.chunks_mut(10) {
        sleep(Duration::from_millis(1_500));
        for stream in late {
            // Closed already, perhaps; a whole answer otherwise.
            stream.set_read_timeout(Some(HANG)).unwrap();
            if dns::write_framed(stream, &query).is_ok()
                && let Ok(Some(reply)) = dns::read_framed(stream)
            {
                assert_eq!(reply.first_chunk::<2>(), query.first_chunk::<2>());
            }
        }
    }
}

/// One byte a second.
fn drops_by_drops(_: &AtomicBool) {
    let mut streams: Vec<_> =
        (0..20).filter_map(|_| connect_from(Ipv4Addr::new(127, 9, 9, 8)).ok()).collect();
    for byte in [0, 30, 1, 2, 3, 4, 5, 6] {
        streams.retain_mut(|stream| stream.write_all(&[byte]).is_ok());
        sleep(Duration::from_secs(1));
    }
}

/// A question, and the end of the stream: that is allowed, and answered.
fn half_closed(_: &AtomicBool) {
    let query = query("good.test");
    for _ in 0..50 {
        let Ok(mut stream) = connect_from(Ipv4Addr::new(127, 9, 9, 7)) else { continue };
        if dns::write_framed(&mut stream, &query).is_ok() && stream.shutdown(Shutdown::Write).is_ok() {
            stream.set_read_timeout(Some(HANG)).unwrap();
            // Turned away, perhaps; a whole answer otherwise.
            if let Ok(Some(reply)) = dns::read_framed(&mut stream) {
                assert_eq!(reply.first_chunk::<2>(), query.first_chunk::<2>());
            }
        }
    }
}

/// Questions without end, and no look at the answers.
fn never_read(_: &AtomicBool) {
    let query = query("good.test");
    let framed = [&u16::try_from(query.len()).unwrap().to_be_bytes()[..], &query].concat();
    let many = framed.repeat(1_000);
    let mut held = Vec::new();
    for _ in 0..10 {
        let Ok(mut stream) = connect_from(Ipv4Addr::new(127, 9, 9, 6)) else { continue };
        stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
        for _ in 0..200 {
            if stream.write_all(&many).is_err() {
                break;
            }
        }
        held.push(stream);
    }
    sleep(Duration::from_secs(6));
}

/// Connections that are gone before anybody has looked.
fn reset_at_once(_: &AtomicBool) {
    for number in 0..1_000 {
        if let Ok(stream) = connect_from(Ipv4Addr::new(127, 9, 8, u8::try_from(number % 100).unwrap())) {
            socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
        }
    }
}

/// What is no DNS on a stream; the start of TLS among it.
fn broken_frames(_: &AtomicBool) {
    let hello = [&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3][..], &[0x5a; 500]].concat();
    let mut frames = vec![vec![0, 0], vec![0, 0, 0, 0], vec![0xff, 0xff], vec![0, 5, 1, 2, 3, 4, 5], hello];
    frames.push([&[0xff, 0xff][..], &[0xc0; 65_535]].concat());
    for packet in broken_packets() {
        frames.push([&u16::try_from(packet.len()).unwrap().to_be_bytes()[..], &packet].concat());
    }
    for frame in frames.iter().cycle().take(300) {
        let Ok(mut stream) = connect_from(Ipv4Addr::new(127, 9, 7, 1)) else { continue };
        stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        // The server may close first.
        drop(stream.write_all(frame));
        drop(stream.read(&mut [0; 512]));
    }
}

fn broken_datagrams(_: &AtomicBool) {
    let socket = UdpSocket::bind("127.9.6.1:0").unwrap();
    for packet in broken_packets().iter().cycle().take(FLOOD) {
        // Not more than fits a datagram; refused by the kernel otherwise.
        drop(socket.send_to(packet, SERVER));
    }
}

fn any_flood(_: &AtomicBool) {
    let socket = UdpSocket::bind("127.9.6.2:0").unwrap();
    let query = dns::query("good.test", "ANY", &Options::default()).unwrap();
    for _ in 0..FLOOD {
        drop(socket.send_to(&query, SERVER));
    }
}

/// Names that nobody knows, from one client: it has a bound, of which the others do not notice anything.
fn unique_names(_: &AtomicBool) {
    let socket = UdpSocket::bind("127.9.6.3:0").unwrap();
    for number in 0..UNIQUE_NAMES {
        drop(socket.send_to(&query(&format!("x{number}.flood.test")), SERVER));
        if number % 100 == 0 {
            sleep(Duration::from_millis(5));
        }
    }
}

/// Datagrams from addresses to which no way leads back.
fn spoofed_sources(_: &AtomicBool) {
    let raw = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(255))).unwrap();
    let query = query("good.test");
    let server = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 53);
    for number in 0..FLOOD {
        let [high, low] = u16::try_from(number).unwrap().to_be_bytes();
        let from =
            SocketAddrV4::new(Ipv4Addr::new(198, 51, high, low), 1024 + u16::try_from(number).unwrap());
        raw.send_to(&ipv4_udp(from, server, &query), &SocketAddr::from(server).into()).unwrap();
    }
}

/// Packets that no client should send.
fn broken_packets() -> Vec<Vec<u8>> {
    let header = |flags: u16, counts: [u16; 4]| {
        let mut bytes = vec![0x12, 0x34];
        for word in [flags].iter().chain(&counts) {
            bytes.extend_from_slice(&word.to_be_bytes());
        }
        bytes
    };
    let good = [&[4][..], b"good", &[4], b"test", &[0, 0, 1, 0, 1]].concat();
    let ask = |flags: u16, counts: [u16; 4], rest: &[u8]| [header(flags, counts), rest.to_vec()].concat();
    let opt = |version: u8, length: u16| {
        let mut record = vec![0, 0, 41, 4, 208, 0, version, 0, 0];
        record.extend_from_slice(&length.to_be_bytes());
        record.resize(record.len() + usize::from(length), 0);
        record
    };
    let mut packets = vec![
        vec![],
        vec![0x12],
        vec![0x12, 0x34, 1, 0, 0, 1, 0],
        vec![0xff; 100],
        ask(0x0100, [65_535, 0, 0, 0], &good),
        ask(0x0100, [1, 65_535, 65_535, 65_535], &good),
        ask(0x0100, [0, 0, 0, 0], &[]),
        // QR.
        ask(0x8180, [1, 0, 0, 0], &good),
        // AXFR and IXFR.
        ask(0x0100, [1, 0, 0, 0], &[&good[..10], &[0, 0, 252, 0, 1]].concat()),
        ask(0x0100, [1, 0, 0, 0], &[&good[..10], &[0, 0, 251, 0, 1]].concat()),
        // A pointer to itself, two that lead to each other, one behind the end.
        ask(0x0100, [1, 0, 0, 0], &[0xc0, 12, 0, 1, 0, 1]),
        ask(0x0100, [1, 0, 0, 0], &[0xc0, 14, 0xc0, 12, 0, 1, 0, 1]),
        ask(0x0100, [1, 0, 0, 0], &[0xff, 0xff, 0, 1, 0, 1]),
        // Reserved kinds of labels.
        ask(0x0100, [1, 0, 0, 0], &[0x41, b'a', 0, 0, 1, 0, 1]),
        ask(0x0100, [1, 0, 0, 0], &[0x81, b'a', 0, 0, 1, 0, 1]),
        // A name of 255 bytes, one of 257, and one without an end.
        ask(0x0100, [1, 0, 0, 0], &[[1, b'a'].repeat(127), vec![0, 0, 1, 0, 1]].concat()),
        ask(0x0100, [1, 0, 0, 0], &[[1, b'a'].repeat(128), vec![0, 0, 1, 0, 1]].concat()),
        ask(0x0100, [1, 0, 0, 0], &[63; 2_000]),
        // Several OPTs, another version, a huge one, one that is cut.
        ask(0x0100, [1, 0, 0, 2], &[good.clone(), opt(0, 0), opt(0, 0)].concat()),
        ask(0x0100, [1, 0, 0, 1], &[good.clone(), opt(1, 0)].concat()),
        ask(0x0100, [1, 0, 0, 1], &[good.clone(), opt(0, 3_900)].concat()),
        ask(0x0100, [1, 0, 0, 1], &[good.clone(), opt(0, 60_000)].concat()),
        ask(0x0100, [1, 0, 0, 1], &[&good[..], &opt(0, 100)[..50]].concat()),
    ];
    packets.extend((1..16).map(|opcode| ask(opcode << 11, [1, 0, 0, 0], &good)));
    packets
}

fn ipv4_udp(from: SocketAddrV4, to: SocketAddrV4, payload: &[u8]) -> Vec<u8> {
    let udp_length = u16::try_from(8 + payload.len()).unwrap();
    // The kernel fills in length, id and checksum of the IP header; a UDP checksum of 0 means that there is none.
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0];
    packet.extend_from_slice(&from.ip().octets());
    packet.extend_from_slice(&to.ip().octets());
    for word in [from.port(), to.port(), udp_length, 0] {
        packet.extend_from_slice(&word.to_be_bytes());
    }
    packet.extend_from_slice(payload);
    packet
}

fn query(name: &str) -> Vec<u8> {
    dns::query(name, "A", &Options::default()).unwrap()
}

/// One of [`SOURCES`] addresses of this machine.
fn source(number: usize) -> Ipv4Addr {
    Ipv4Addr::new(127, 8, 0, u8::try_from(number % SOURCES).unwrap())
}

fn connect_from(address: Ipv4Addr) -> std::io::Result<TcpStream> {
    connect_to(SERVER, address)
}

fn connect_to(server: SocketAddr, address: Ipv4Addr) -> std::io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::new(IpAddr::V4(address), 0).into())?;
    socket.connect_timeout(&server.into(), Duration::from_secs(5))?;
    Ok(socket.into())
}

/// Resident memory of the daemon, in KiB.
fn resident(scene: &Scene) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", scene.daemon.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
}
