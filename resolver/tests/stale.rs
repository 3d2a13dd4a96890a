//! What has expired, while nothing better is to be had (`serve_stale`, RFC 8767). The real binary, and an upstream that
//! fails on demand.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise, in its helpers too")]

mod common;

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use common::{HANG, SERVER, Scene, patient};
use nodestub_lab::skip::can_make_namespaces;
use nodestub_lab::upstream::{Data, Reply, answer, denial, question, refusal};
use nodestub_lab::{Answer, Netns, Options, Rcode, Upstream};

/// Longer than the second for which answers live here.
const EXPIRED: Duration = Duration::from_millis(1_200);

/// The mood in which no name exists.
const GONE: u8 = 255;

/// What the upstream does: 0 fails, [`GONE`] denies, any other number is the last byte of the address that it gives.
type Mood = Arc<AtomicU8>;

fn scene(options: &str) -> (Scene, Upstream, Mood) {
    scene_with(&format!("serve_stale {options}"))
}

/// The same with all options of `cache`.
fn scene_with(options: &str) -> (Scene, Upstream, Mood) {
    let mood = Mood::new(AtomicU8::new(1));
    let net = Netns::new().unwrap();
    let theirs = Arc::clone(&mood);
    let upstream = common::upstream_in(&net, "127.0.0.2:53", move |query, _| {
        let (name, _) = question(query).unwrap();
        let reply = match theirs.load(Ordering::SeqCst) {
            0 => refusal(query, Rcode::SERVFAIL),
            GONE => denial(query, Rcode::NXDOMAIN, "test.", 1),
            _ if name.starts_with("nx") => denial(query, Rcode::NXDOMAIN, "test.", 1),
            last => answer(query, &[(&name, 1, Data::A(Ipv4Addr::new(192, 0, 2, last)))]),
        };
        reply.map(Reply::now).into_iter().collect()
    });
    let corefile = format!(
        ". {{\n bind 127.0.0.1\n cache 1 {{\n {options}\n }}\n forward . 127.0.0.2\n prometheus 127.0.0.1:9153\n}}\n"
    );
    (Scene::start_in(net, &corefile), upstream, mood)
}

fn edns(scene: &Scene, name: &str) -> Answer {
    scene.ask_with(SERVER, name, "A", &Options { edns: Some(1232), ..patient() })
}

fn extended_errors(answer: &Answer) -> Vec<u16> {
    answer.edns.as_ref().unwrap().extended_errors.clone()
}

#[test]
fn an_expired_answer_outlives_a_failing_upstream_and_says_so() {
    if !can_make_namespaces("an_expired_answer_outlives_a_failing_upstream_and_says_so") {
        return;
    }
    let (scene, upstream, mood) = scene("");
    assert_eq!(
        (edns(&scene, "a.test").data(), edns(&scene, "nx.test").rcode.as_str()),
        (vec!["192.0.2.1"], "NXDOMAIN")
    );
    mood.store(0, Ordering::SeqCst);
    std::thread::sleep(EXPIRED);
    // Its failures are there before the last of these, and do not take the answer's place.
    // One that comes while the last is still asked for asks nobody: so as often as it takes.
    let end = Instant::now() + HANG;
    while upstream.count() < 6 {
        assert!(Instant::now() < end, "the upstream was asked {} times", upstream.count());
        let stale = edns(&scene, "a.test");
        assert_eq!(
            (stale.data(), stale.ttls(), extended_errors(&stale)),
            (vec!["192.0.2.1"], vec![0], vec![3])
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    let stale = edns(&scene, "nx.test");
    assert_eq!((stale.rcode.as_str(), extended_errors(&stale)), ("NXDOMAIN", vec![19]));
    assert_eq!(scene.rcode("never-known.test", "A"), "SERVFAIL");
    assert!(
        scene.metrics().sum("coredns_cache_served_stale_total", &[("server", "dns://127.0.0.1:53")]) >= 5.0
    );
    // And when the upstream is well again, so is the answer.
    mood.store(7, Ordering::SeqCst);
    let end = Instant::now() + HANG;
    loop {
        let found = edns(&scene, "a.test");
        if found.data() == ["192.0.2.7"] {
            assert_eq!(extended_errors(&found), Vec::<u16>::new());
            break;
        }
        assert!(Instant::now() < end, "{found:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn verify_asks_first_and_falls_back_on_what_has_expired() {
    if !can_make_namespaces("verify_asks_first_and_falls_back_on_what_has_expired") {
        return;
    }
    let (scene, _upstream, mood) = scene("1h verify 10s 20s");
    assert_eq!(edns(&scene, "a.test").data(), ["192.0.2.1"]);
    mood.store(2, Ordering::SeqCst);
    std::thread::sleep(EXPIRED);
    let fresh = edns(&scene, "a.test");
    assert_eq!((fresh.data(), extended_errors(&fresh)), (vec!["192.0.2.2"], vec![]));
    mood.store(0, Ordering::SeqCst);
    std::thread::sleep(EXPIRED);
    let stale = edns(&scene, "a.test");
    assert_eq!((stale.data(), stale.ttls(), extended_errors(&stale)), (vec!["192.0.2.2"], vec![20], vec![3]));
}

#[test]
fn after_a_failure_an_upstream_is_left_alone_for_as_long_as_the_corefile_says() {
    if !can_make_namespaces("after_a_failure_an_upstream_is_left_alone_for_as_long_as_the_corefile_says") {
        return;
    }
    let (scene, upstream, mood) = scene("1h verify 10s 0s 5m");
    assert_eq!(edns(&scene, "a.test").data(), ["192.0.2.1"]);
    mood.store(0, Ordering::SeqCst);
    std::thread::sleep(EXPIRED);
    for _ in 0..5 {
        assert_eq!(edns(&scene, "a.test").data(), ["192.0.2.1"]);
    }
    assert_eq!(upstream.count(), 2);
}

#[test]
fn where_positive_answers_are_preferred_a_denial_does_not_take_their_place() {
    if !can_make_namespaces("where_positive_answers_are_preferred_a_denial_does_not_take_their_place") {
        return;
    }
    for (policy, kept) in [("serve_stale_policy prefer_positive", true), ("", false)] {
        let (scene, upstream, mood) = scene_with(&format!("serve_stale 1h\n {policy}"));
        assert_eq!(edns(&scene, "a.test").data(), ["192.0.2.1"]);
        mood.store(GONE, Ordering::SeqCst);
        std::thread::sleep(EXPIRED);
        // The stale answer at once, while the upstream is asked, which says that the name is gone.
        assert_eq!(edns(&scene, "a.test").data(), ["192.0.2.1"]);
        upstream.wait_for(2, HANG).unwrap();
        let end = Instant::now() + HANG;
        if kept {
            // Asked again for each answer, and denied each time: as often as it takes.
            while upstream.count() < 5 {
                assert!(Instant::now() < end, "the upstream was asked {} times", upstream.count());
                assert_eq!(edns(&scene, "a.test").data(), ["192.0.2.1"]);
                std::thread::sleep(Duration::from_millis(20));
            }
        } else {
            while edns(&scene, "a.test").rcode != "NXDOMAIN" {
                assert!(Instant::now() < end, "the denial is never believed");
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        // What exists again takes the place in either case.
        mood.store(9, Ordering::SeqCst);
        std::thread::sleep(EXPIRED);
        let end = Instant::now() + HANG;
        while edns(&scene, "a.test").data() != ["192.0.2.9"] {
            assert!(Instant::now() < end, "the new answer is never believed");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
