//! Upstreams that a Corefile names by host names.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise, in its helpers too")]

mod common;

use common::{HANG, Scene, ip, upstream_in};
use nodestub_lab::skip::can_make_namespaces;
use nodestub_lab::upstream::zone;
use nodestub_lab::{Netns, Signal};

fn corefile(forward: &str) -> String {
    format!(". {{\n bind 127.0.0.1\n prometheus 127.0.0.1:9153\n {forward}\n}}\n")
}

#[test]
fn the_servers_of_a_name_are_asked_and_looked_up_again_at_a_reload() {
    if !can_make_namespaces("the_servers_of_a_name_are_asked_and_looked_up_again_at_a_reload") {
        return;
    }
    let net = Netns::new().unwrap();
    let _first = upstream_in(&net, "127.0.0.2:53", zone(1, &[("a.test.", ip("192.0.2.1"))]));
    let _second = upstream_in(&net, "127.0.0.3:5300", zone(1, &[("a.test.", ip("192.0.2.2"))]));
    let names = [("dns.test.", ip("127.0.0.2")), ("other.test.", ip("127.0.0.3"))];
    let names = upstream_in(&net, "127.0.0.4:5353", zone(1, &names));
    // The first knows nothing; the second is asked then.
    let forward = "forward . dns.test {\n resolver 127.0.0.9 127.0.0.4:5353\n }";
    let mut scene = Scene::start_in(net, &corefile(forward));
    assert_eq!(scene.ask("a.test", "A").data(), ["192.0.2.1"]);

    // A name that nobody knows is a Corefile that cannot be served.
    scene.write_corefile(&corefile("forward . nosuch.test {\n resolver 127.0.0.4:5353\n }"));
    scene.daemon.signal(Signal::HUP).unwrap();
    scene.wait_for("cannot find the address of \"nosuch.test\"");
    assert_eq!(scene.metrics().sum("coredns_reload_failed_total", &[]), 1.0);
    assert_eq!(scene.ask("a.test", "A").data(), ["192.0.2.1"]);

    scene.write_corefile(&corefile("forward . other.test:5300 {\n resolver 127.0.0.4:5353\n }"));
    scene.daemon.signal(Signal::HUP).unwrap();
    scene.wait_for("the Corefile was reloaded");
    let end = std::time::Instant::now() + HANG;
    while scene.ask("a.test", "A").data() != ["192.0.2.2"] {
        assert!(std::time::Instant::now() < end, "the new upstream is not asked");
    }
    drop(names);

    // The system's own names need nobody.
    let _local = upstream_in(&scene.net, "127.0.0.1:5301", zone(1, &[("b.test.", ip("192.0.2.3"))]));
    scene.write_corefile(&corefile("forward . localhost:5301"));
    scene.daemon.signal(Signal::HUP).unwrap();
    let end = std::time::Instant::now() + HANG;
    while scene.ask("b.test", "A").data() != ["192.0.2.3"] {
        assert!(std::time::Instant::now() < end, "localhost is not asked");
    }
}
