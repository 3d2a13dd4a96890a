//! Forwarding to ourselves: said, measured and survived.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise, in its helpers too")]

mod common;

use common::{SERVER, Scene, patient, patient_tcp, upstream_in};
use nodestub_lab::Netns;
use nodestub_lab::skip::can_make_namespaces;
use nodestub_lab::upstream::zone;

/// `loop.test` leads back here, `other.test` does not.
fn corefile(options: &str) -> String {
    format!(
        "loop.test {{
    bind 127.0.0.1
    loop
    errors
    forward . 127.0.0.1 {{
        {options}
    }}
    ready 127.0.0.1:8181
    prometheus 127.0.0.1:9153
}}
other.test {{
    bind 127.0.0.1
    loop
    cache
    forward . 127.0.0.2
}}
"
    )
}

#[test]
fn a_loop_is_found_and_named_and_the_process_and_other_zones_go_on() {
    if !can_make_namespaces("a_loop_is_found_and_named_and_the_process_and_other_zones_go_on") {
        return;
    }
    for options in ["", "force_tcp"] {
        let net = Netns::new().unwrap();
        let other = upstream_in(&net, "127.0.0.2:53", zone(30, &[("a.other.test.", [192, 0, 2, 1].into())]));
        let mut scene = Scene::start_in(net, &corefile(options));
        let said = scene.wait_for("sends our queries back");
        assert!(said.contains("127.0.0.1:53") && said.contains("loop.test."), "{said}");

        let (status, reasons) = scene.get("127.0.0.1:8181", "/ready");
        assert_eq!(status, 503);
        assert!(reasons.contains("127.0.0.1:53") && reasons.contains("loop.test."), "{reasons}");
        let metrics = scene.metrics();
        assert_eq!(metrics.find("nodestub_upstream_looped", &[("to", "127.0.0.1:53")]), Some(1.0));
        assert_eq!(metrics.find("nodestub_upstream_looped", &[("to", "127.0.0.2:53")]), Some(0.0));
        assert_eq!(metrics.find("nodestub_ready", &[]), Some(0.0));

        // Nobody is asked any more, so nothing comes round.
        let requests = || scene.metrics().sum("coredns_dns_requests_total", &[("zone", "loop.test.")]);
        for (number, options) in [patient(), patient_tcp()].iter().enumerate() {
            let before = requests();
            let name = format!("n{number}.loop.test");
            assert_eq!(scene.ask_with(SERVER, &name, "A", options).rcode, "SERVFAIL");
            assert!(requests() <= before + 1.0, "the query went round");
            assert_eq!(scene.ask_with(SERVER, "a.other.test", "A", options).data(), ["192.0.2.1"]);
        }
        assert!(other.count() >= 1);
        assert_eq!(scene.daemon.try_wait().unwrap(), None, "the process has ended");
    }
}

#[test]
fn a_question_that_looks_like_a_probe_does_nothing() {
    if !can_make_namespaces("a_question_that_looks_like_a_probe_does_nothing") {
        return;
    }
    let net = Netns::new().unwrap();
    let upstream = upstream_in(&net, "127.0.0.2:53", zone(30, &[]));
    let corefile = ". {
        bind 127.0.0.1
        loop
        forward . 127.0.0.2
        prometheus 127.0.0.1:9153
        ready 127.0.0.1:8181
    }
";
    let scene = Scene::start_in(net, corefile);
    // The probe itself.
    upstream.wait_for(1, common::HANG).unwrap();
    let probe = upstream.received()[0].bytes.clone();
    let (name, rtype) = nodestub_lab::upstream::question(&probe).unwrap();
    assert_eq!((name.trim_end_matches('.').len(), rtype.as_str()), (32, "HINFO"), "128 bits in hex");
    // CoreDNS exits at the third of these.
    for guess in ["1234567890.1234567890.", "00000000000000000000000000000000."] {
        for _ in 0..5 {
            assert_eq!(scene.rcode(guess, "HINFO"), "NXDOMAIN");
        }
    }
    assert_eq!(scene.metrics().find("nodestub_upstream_looped", &[("to", "127.0.0.2:53")]), Some(0.0));
    assert_eq!(scene.get("127.0.0.1:8181", "/ready").0, 200);
}

#[test]
fn two_resolvers_that_forward_to_each_other_find_out() {
    if !can_make_namespaces("two_resolvers_that_forward_to_each_other_find_out") {
        return;
    }
    let corefile = |own: &str, other: &str| {
        format!(". {{\n bind {own}\n loop\n cache\n forward . {other}\n prometheus {own}:9153\n}}\n")
    };
    let net = Netns::new().unwrap();
    let first = Scene::start_in(net.try_clone().unwrap(), &corefile("127.0.0.1", "127.0.0.5"));
    let second = Scene::start_in(net, &corefile("127.0.0.5", "127.0.0.1"));
    // One breaks the circle; for the other it is none any more.
    second.wait_for("sends our queries back");
    for server in ["127.0.0.1:53", "127.0.0.5:53"].map(common::socket) {
        assert_eq!(first.ask_with(server, "a.test", "A", &patient()).rcode, "SERVFAIL");
    }
}
