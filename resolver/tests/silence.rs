//! Upstreams that fall silent: somebody else is asked in time, and whoever is silent is asked less.
#![forbid(unsafe_code)]
#![expect(
    clippy::unwrap_used,
    clippy::float_cmp,
    reason = "a test may stop at the first surprise; counters are whole"
)]

mod common;

use std::collections::HashSet;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use common::Scene;
use nodestub_lab::dns::{read_framed, write_framed};
use nodestub_lab::skip::can_make_namespaces;
use nodestub_lab::upstream::{Data, Reply, answer, question};

fn scene(forward: &str) -> Scene {
    Scene::start(&format!(
        ".:53 {{\n bind 127.0.0.1\n cache\n forward . {forward}\n prometheus 127.0.0.1:9153\n}}\n"
    ))
}

fn answered(query: &[u8]) -> Vec<u8> {
    let (name, _) = question(query).unwrap();
    answer(query, &[(&name, 300, Data::A(Ipv4Addr::new(192, 0, 2, 1)))]).unwrap()
}

#[test]
fn a_second_upstream_is_asked_when_the_first_is_silent_and_the_silent_one_is_asked_less() {
    if !can_make_namespaces(
        "a_second_upstream_is_asked_when_the_first_is_silent_and_the_silent_one_is_asked_less",
    ) {
        return;
    }
    // Never down: only what it takes to answer tells them apart.
    let scene = scene("127.0.0.2 127.0.0.3 {\n max_fails 0\n }");
    let silent = scene.upstream("127.0.0.2:53", |_, _| vec![]);
    let _good = scene.upstream("127.0.0.3:53", |query, _| vec![Reply::now(answered(query))]);
    for number in 0..100 {
        assert_eq!(scene.rcode(&format!("n{number}.test"), "A"), "NOERROR");
    }
    let metrics = scene.metrics();
    assert!(metrics.sum("nodestub_hedges_total", &[]) >= 1.0);
    assert_eq!(metrics.sum("coredns_dns_responses_total", &[("rcode", "SERVFAIL")]), 0.0);
    // A coin would have asked it fifty times.
    assert!(silent.count() <= 25, "asked {} times", silent.count());
}

#[test]
fn the_order_that_a_corefile_demands_is_kept_however_slow_the_first_is() {
    if !can_make_namespaces("the_order_that_a_corefile_demands_is_kept_however_slow_the_first_is") {
        return;
    }
    let scene = scene("127.0.0.2 127.0.0.3 {\n policy sequential\n }");
    let _slow = scene.upstream("127.0.0.2:53", |query, _| {
        vec![Reply::now(answered(query)).after(std::time::Duration::from_millis(400))]
    });
    let other = scene.upstream("127.0.0.3:53", |query, _| vec![Reply::now(answered(query))]);
    for number in 0..5 {
        assert_eq!(scene.rcode(&format!("n{number}.test"), "A"), "NOERROR");
    }
    assert_eq!(other.count(), 0, "another server may give other answers");
}

#[test]
fn a_lost_datagram_is_sent_again_and_nobody_is_blamed() {
    if !can_make_namespaces("a_lost_datagram_is_sent_again_and_nobody_is_blamed") {
        return;
    }
    let scene = scene("127.0.0.2");
    let seen: Mutex<HashSet<String>> = Mutex::default();
    let upstream = scene.upstream("127.0.0.2:53", move |query, _| {
        let first_time = seen.lock().unwrap().insert(question(query).unwrap().0);
        if first_time { vec![] } else { vec![Reply::now(answered(query))] }
    });
    for number in 0..3 {
        assert_eq!(scene.rcode(&format!("n{number}.test"), "A"), "NOERROR");
    }
    // A probe would be one more.
    assert_eq!(upstream.count(), 6);
    assert_eq!(scene.metrics().sum("nodestub_upstream_resent_total", &[("to", "127.0.0.2:53")]), 3.0);
}

#[test]
fn a_connection_that_leads_nowhere_is_replaced_before_a_try_is_given_up() {
    if !can_make_namespaces("a_connection_that_leads_nowhere_is_replaced_before_a_try_is_given_up") {
        return;
    }
    let scene = scene("127.0.0.2 {\n force_tcp\n }");
    let probes = Arc::new(AtomicUsize::new(0));
    let listener = scene.net.run(|| TcpListener::bind("127.0.0.2:53")).unwrap().unwrap();
    let counted = Arc::clone(&probes);
    std::thread::spawn(move || {
        for (number, stream) in listener.incoming().flatten().enumerate() {
            let probes = Arc::clone(&counted);
            // The first one answers once: then its way is lost, as that of a pod behind a cluster IP which is gone.
            let most = if number == 0 { 1 } else { usize::MAX };
            std::thread::spawn(move || serve(stream, most, &probes));
        }
    });
    assert_eq!(scene.rcode("first.test", "A"), "NOERROR");
    for number in 0..10 {
        assert_eq!(scene.rcode(&format!("n{number}.test"), "A"), "NOERROR");
    }
    let metrics = scene.metrics();
    assert_eq!(metrics.sum("nodestub_upstream_stalled_connections_total", &[]), 1.0);
    assert_eq!(probes.load(Relaxed), 0, "the server itself was blamed");
}

fn serve(mut stream: TcpStream, most: usize, probes: &AtomicUsize) {
    let mut answers = 0;
    while let Ok(Some(query)) = read_framed(&mut stream) {
        if question(&query).is_ok_and(|(_, kind)| kind == "NS") {
            probes.fetch_add(1, Relaxed);
        }
        if answers < most && write_framed(&mut stream, &answered(&query)).is_err() {
            return;
        }
        answers += 1;
    }
}
