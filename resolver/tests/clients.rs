//! What clients are told and allowed: the time that a connection may be silent, and how much one of them may ask.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may stop at the first surprise")]

mod common;

use std::net::{Ipv4Addr, TcpStream, UdpSocket};
use std::time::Duration;

use common::{HANG, SERVER, Scene};
use nodestub_lab::dns::{self, read_framed, write_framed};
use nodestub_lab::skip::can_make_namespaces;
use nodestub_lab::upstream::{Data, Reply, answer, question};
use nodestub_lab::{Answer, Options};

/// edns-tcp-keepalive (RFC 7828), empty: "how long?".
const KEEPALIVE: [u8; 4] = [0, 11, 0, 0];

fn scene() -> Scene {
    Scene::start(".:53 {\n bind 127.0.0.1\n cache\n forward . 127.0.0.2\n prometheus 127.0.0.1:9153\n}\n")
}

/// A query whose OPT record carries this option.
fn with_option(name: &str, option: &[u8]) -> Vec<u8> {
    let mut query = dns::query(name, "A", &Options::edns(1232)).unwrap();
    let length_at = query.len() - 2;
    query[length_at + 1] = u8::try_from(option.len()).unwrap();
    query.extend_from_slice(option);
    query
}

#[test]
fn who_asks_over_tcp_how_long_a_connection_may_be_silent_is_told() {
    if !can_make_namespaces("who_asks_over_tcp_how_long_a_connection_may_be_silent_is_told") {
        return;
    }
    let scene = scene();
    let _upstream = scene.upstream("127.0.0.2:53", |query, _| {
        let (name, _) = question(query).unwrap();
        vec![Reply::now(answer(query, &[(&name, 300, Data::A(Ipv4Addr::new(192, 0, 2, 1)))]).unwrap())]
    });
    let mut stream = scene.net.run(|| TcpStream::connect(SERVER)).unwrap().unwrap();
    stream.set_read_timeout(Some(HANG)).unwrap();
    // Not kept yet, then kept.
    for _ in 0..2 {
        write_framed(&mut stream, &with_option("a.test", &KEEPALIVE)).unwrap();
        let reply = read_framed(&mut stream).unwrap().unwrap();
        assert_eq!(Answer::parse(&reply).unwrap().data(), ["192.0.2.1"]);
        // Ten seconds, in tenths.
        assert_eq!(reply[reply.len() - 8..], [0, 6, 0, 11, 0, 2, 0, 100]);
    }
    // Another option, or none: nothing of the kind.
    for option in [&[0, 10, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8][..], &[]] {
        write_framed(&mut stream, &with_option("a.test", option)).unwrap();
        let reply = read_framed(&mut stream).unwrap().unwrap();
        assert_eq!(reply[reply.len() - 2..], [0, 0]);
    }
    // By UDP there is no connection to be kept (RFC 7828, 3.2.1).
    let mut reply = [0; 512];
    let length = scene
        .net
        .run(|| {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.set_read_timeout(Some(HANG)).unwrap();
            socket.send_to(&with_option("a.test", &KEEPALIVE), SERVER).unwrap();
            socket.recv(&mut reply).unwrap()
        })
        .unwrap();
    assert_eq!(reply[length - 2..length], [0, 0]);
}

#[test]
fn a_client_that_asks_too_much_is_refused_and_its_hits_and_its_neighbours_are_not() {
    if !can_make_namespaces("a_client_that_asks_too_much_is_refused_and_its_hits_and_its_neighbours_are_not")
    {
        return;
    }
    let scene = scene();
    let _upstream = scene.upstream("127.0.0.2:53", |query, _| {
        let (name, _) = question(query).unwrap();
        let good = name.starts_with("good");
        let reply =
            good.then(|| answer(query, &[(&name, 300, Data::A(Ipv4Addr::new(192, 0, 2, 1)))]).unwrap());
        reply.map(Reply::now).into_iter().collect()
    });
    assert_eq!(scene.rcode("good.test", "A"), "NOERROR");
    let greedy = scene.net.run(|| UdpSocket::bind("127.0.0.77:0")).unwrap().unwrap();
    greedy.set_read_timeout(Some(HANG)).unwrap();
    let mut refused = 0;
    let mut buffer = [0; 512];
    for number in 0..1_200 {
        let query = dns::query(&format!("n{number}.test"), "A", &Options::default()).unwrap();
        greedy.send_to(&query, SERVER).unwrap();
        if number >= 1_000 {
            let length = greedy.recv(&mut buffer).unwrap();
            assert_eq!(Answer::parse(&buffer[..length]).unwrap().rcode, "REFUSED");
            refused += 1;
        } else if number % 50 == 0 {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    assert_eq!(refused, 200);
    // Its hits are answered; and so are others, whatever they ask.
    greedy.send_to(&dns::query("good.test", "A", &Options::default()).unwrap(), SERVER).unwrap();
    let length = greedy.recv(&mut buffer).unwrap();
    assert_eq!(Answer::parse(&buffer[..length]).unwrap().data(), ["192.0.2.1"]);
    assert_eq!(scene.rcode("good2.test", "A"), "NOERROR");
    assert!(scene.metrics().sum("nodestub_misses_refused_total", &[]) >= 200.0);
}
