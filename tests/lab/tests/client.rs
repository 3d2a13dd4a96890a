//! The DNS client and the scripted server, against each other over loopback.
#![forbid(unsafe_code)]

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use nodestub_lab::upstream::{Data, Reply, answer, denial, zone};
use nodestub_lab::{Options, Transport, Upstream, ask, dns, exchange};

const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

fn quick() -> Options {
    Options { timeout: Duration::from_millis(300), ..Options::default() }
}

#[test]
fn reads_what_the_server_wrote_over_udp_and_tcp() {
    let names = [("a.test.", "192.0.2.1".parse().unwrap()), ("a.test.", "2001:db8::1".parse().unwrap())];
    let server = Upstream::start(LOOPBACK, zone(30, &names)).unwrap();
    for options in [Options::default(), Options::tcp()] {
        let found = ask(server.address(), "A.test", "A", &options).unwrap();
        assert_eq!(found.rcode, "NOERROR");
        assert_eq!(found.flags, "qr aa rd");
        assert_eq!(found.question, Some(("A.test.".into(), "A".into(), "IN".into())));
        assert_eq!((found.data(), found.ttls()), (vec!["192.0.2.1"], vec![30]));
        assert_eq!(ask(server.address(), "a.test", "AAAA", &options).unwrap().data(), ["2001:db8::1"]);
        let denied = ask(server.address(), "b.test", "A", &options).unwrap();
        assert_eq!((denied.rcode.as_str(), denied.authority.len()), ("NXDOMAIN", 1));
    }
    assert_eq!((server.count_of(Transport::Udp), server.count_of(Transport::Tcp)), (3, 3));
}

#[test]
fn sends_the_options_that_were_asked_for() {
    let server = Upstream::start(LOOPBACK, zone(30, &[])).unwrap();
    let options = Options {
        edns: Some(4096),
        dnssec_ok: true,
        checking_disabled: true,
        id: Some(0x1234),
        recursion_desired: false,
        ..Options::default()
    };
    ask(server.address(), "a.test", "TXT", &options).unwrap();
    let received = server.received();
    let query = dns::Answer::parse(&received[0].bytes).unwrap();
    assert_eq!((query.id, query.flags.as_str()), (0x1234, "cd"));
    let edns = query.edns.unwrap();
    assert_eq!((edns.size, edns.dnssec_ok), (4096, true));
}

#[test]
fn refuses_an_answer_with_another_id_or_question() {
    let server = Upstream::start(LOOPBACK, |query, _| {
        let other = dns::query("other.test", "A", &Options { id: Some(1), ..Options::default() }).unwrap();
        let (asked, _) = nodestub_lab::upstream::question(query).unwrap();
        let mut wrong = if asked == "id.test." { query.to_vec() } else { other };
        wrong[0] = if asked == "id.test." { query[0] ^ 1 } else { query[0] };
        wrong[1] = query[1];
        vec![Reply::now(answer(&wrong, &[]).unwrap())]
    })
    .unwrap();
    let error = |name| ask(server.address(), name, "A", &quick()).unwrap_err().to_string();
    assert!(error("id.test").contains("answered with id"), "{}", error("id.test"));
    assert!(error("question.test").contains("another question"), "{}", error("question.test"));
}

#[test]
fn never_takes_an_answer_from_another_address() {
    let server = Upstream::start(LOOPBACK, |query, _| {
        let good = answer(query, &[("a.test.", 5, Data::A(Ipv4Addr::new(192, 0, 2, 9)))]).unwrap();
        vec![Reply::now(good).from(LOOPBACK)]
    })
    .unwrap();
    assert!(ask(server.address(), "a.test", "A", &quick()).is_err());
    assert_eq!(server.count(), 1);
}

#[test]
fn answers_late_twice_and_not_at_all_as_scripted() {
    let server = Upstream::start(LOOPBACK, |query, transport| {
        let reply = Reply::now(denial(query, domain::base::iana::Rcode::NXDOMAIN, "test.", 5).unwrap());
        match transport {
            Transport::Udp => vec![reply.clone().after(Duration::from_millis(50)), reply],
            Transport::Tcp => vec![Reply::hang_up()],
        }
    })
    .unwrap();
    assert_eq!(ask(server.address(), "a.test", "A", &Options::default()).unwrap().rcode, "NXDOMAIN");
    assert!(ask(server.address(), "a.test", "A", &Options::tcp()).is_err());
    server.wait_for(2, Duration::from_secs(5)).unwrap();
    assert_eq!(server.connections(), 1);
}

#[test]
fn exchanges_raw_bytes_as_they_are() {
    let server = Upstream::start(LOOPBACK, |query, _| vec![Reply::now(query.to_vec())]).unwrap();
    for options in [Options::default(), Options::tcp()] {
        assert_eq!(exchange(server.address(), b"\x00\x01not dns", &options).unwrap(), b"\x00\x01not dns");
    }
}

#[test]
fn frees_its_port_when_it_is_dropped() {
    let server = Upstream::start(LOOPBACK, zone(30, &[])).unwrap();
    let address = server.address();
    ask(address, "a.test", "A", &Options::tcp()).unwrap();
    drop(server);
    assert!(
        ask(address, "a.test", "A", &Options { timeout: Duration::from_secs(1), ..Options::tcp() }).is_err()
    );
}
