//! `prefetch` of `cache`: what is asked often is asked for again before it ends. The real binary and real servers.
#![forbid(unsafe_code)]
#![expect(
    clippy::unwrap_used,
    clippy::float_cmp,
    reason = "a test may stop at the first surprise; counters are whole"
)]

mod common;

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU8, Ordering::SeqCst};
use std::time::{Duration, Instant};

use common::{HANG, Scene, upstream_in};
use nodestub_lab::skip::can_make_namespaces;
use nodestub_lab::upstream::{Data, Reply, answer, question};
use nodestub_lab::{Netns, Upstream};

/// Seconds: long enough for a machine under load.
const TTL: u32 = 60;

/// The last 90 % of the life begin after six seconds.
fn scene(prefetch: &str, silent_from: u8) -> (Scene, Upstream) {
    let net = Netns::new().unwrap();
    let asked = AtomicU8::new(0);
    // Each answer is another one.
    let upstream = upstream_in(&net, "127.0.0.2:53", move |query, _| {
        let number = asked.fetch_add(1, SeqCst) + 1;
        if number >= silent_from {
            return vec![];
        }
        let (name, _) = question(query).unwrap();
        let data = Data::A(Ipv4Addr::new(192, 0, 2, number));
        vec![Reply::now(answer(query, &[(&name, TTL, data)]).unwrap())]
    });
    let text = format!(
        ". {{\n bind 127.0.0.1\n cache {{\n  prefetch {prefetch}\n }}\n forward . 127.0.0.2 {{\n  max_fails 0\n }}\n \
         prometheus 127.0.0.1:9153\n}}\n"
    );
    (Scene::start_in(net, &text), upstream)
}

#[test]
fn what_is_asked_often_is_asked_for_again_once_and_nobody_waits_for_it() {
    if !can_make_namespaces("what_is_asked_often_is_asked_for_again_once_and_nobody_waits_for_it") {
        return;
    }
    let (scene, upstream) = scene("3 1m 90%", u8::MAX);
    assert_eq!(scene.ask("a.test", "A").data(), ["192.0.2.1"]);
    let end = Instant::now() + HANG;
    while scene.ask("a.test", "A").data() == ["192.0.2.1"] {
        assert!(Instant::now() < end, "never asked for again");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(scene.ask("a.test", "A").data(), ["192.0.2.2"]);
    assert_eq!(upstream.count(), 2, "asked for again once");
    let metrics = scene.metrics();
    assert_eq!(metrics.sum("coredns_cache_prefetch_total", &[]), 1.0);
    assert_eq!(metrics.sum("coredns_cache_misses_total", &[]), 1.0, "no client had to wait");
}

#[test]
fn a_refresh_that_nobody_answers_costs_no_client_the_answer_that_there_is() {
    if !can_make_namespaces("a_refresh_that_nobody_answers_costs_no_client_the_answer_that_there_is") {
        return;
    }
    let (scene, upstream) = scene("1 1m 90%", 2);
    assert_eq!(scene.ask("a.test", "A").data(), ["192.0.2.1"]);
    let end = Instant::now() + HANG;
    while upstream.count() < 2 {
        assert!(Instant::now() < end, "never asked for again");
        assert_eq!(scene.ask("a.test", "A").data(), ["192.0.2.1"]);
        std::thread::sleep(Duration::from_millis(50));
    }
    // While it is under way, and after it has failed.
    let end = Instant::now() + Duration::from_secs(8);
    while Instant::now() < end {
        assert_eq!(scene.ask("a.test", "A").data(), ["192.0.2.1"]);
        std::thread::sleep(Duration::from_millis(50));
    }
    // Each try is sent several times, for it may have been lost; and there are probes, two a second.
    assert!(upstream.count() <= 32, "{} questions for one that is not answered", upstream.count());
}

#[test]
fn what_is_asked_less_often_than_the_corefile_says_is_left_to_its_end() {
    if !can_make_namespaces("what_is_asked_less_often_than_the_corefile_says_is_left_to_its_end") {
        return;
    }
    let (scene, upstream) = scene("1000 1m 90%", u8::MAX);
    let end = Instant::now() + Duration::from_secs(9);
    while Instant::now() < end {
        assert_eq!(scene.ask("a.test", "A").data(), ["192.0.2.1"]);
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(upstream.count(), 1);
}
