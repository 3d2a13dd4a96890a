//! `autopath @kubernetes`: the first name of a search walk names the namespace, and gets the answer of the whole walk.
#![forbid(unsafe_code)]
#![expect(
    clippy::unwrap_used,
    clippy::float_cmp,
    reason = "a test may stop at the first surprise, and counters are whole numbers"
)]

mod common;

use std::net::Ipv4Addr;

use common::{Scene, resolver, upstream_in};
use nodestub_lab::skip::can_make_namespaces;
use nodestub_lab::upstream::{Data, Reply, answer, denial, question};
use nodestub_lab::{Netns, Rcode, Upstream};

const COREFILE: &str = "cluster.local {
    bind 127.0.0.1
    autopath @kubernetes
    cache 30
    forward . 127.0.0.2
    prometheus 127.0.0.1:9153
}
. {
    bind 127.0.0.1
    cache 30
    forward . 127.0.0.3
}
";

/// A cluster DNS with the namespace `default` and a Service `web` in another one, and the resolver of the node.
struct Cluster {
    scene: Scene,
    cluster_dns: Upstream,
    node_dns: Upstream,
}

fn cluster() -> Cluster {
    let net = Netns::new().unwrap();
    let address = |last| Data::A(Ipv4Addr::new(192, 0, 2, last));
    let cluster_dns = upstream_in(&net, "127.0.0.2:53", move |query, _| {
        let (name, _) = question(query).unwrap();
        let reply = match name.to_lowercase().trim_end_matches('.') {
            "web.other.svc.cluster.local" => answer(query, &[(&name, 30, address(1))]),
            "default.svc.cluster.local" => denial(query, Rcode::NOERROR, "cluster.local", 30),
            _ => denial(query, Rcode::NXDOMAIN, "cluster.local", 30),
        };
        vec![Reply::now(reply.unwrap())]
    });
    let node_dns = upstream_in(&net, "127.0.0.3:53", move |query, _| {
        let (name, _) = question(query).unwrap();
        let reply = match name.to_lowercase().trim_end_matches('.') {
            "www.example.com" => answer(query, &[(&name, 30, address(2))]),
            // Only where a namespace was made up out of `com` would anybody ask for it.
            "www.example" => answer(query, &[(&name, 30, address(66))]),
            _ => denial(query, Rcode::NXDOMAIN, "example", 30),
        };
        vec![Reply::now(reply.unwrap())]
    });
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("Corefile");
    std::fs::write(&path, COREFILE).unwrap();
    let scene = Scene::of(net, resolver(&path), folder);
    Cluster { scene, cluster_dns, node_dns }
}

#[test]
fn the_first_name_of_a_search_gets_the_answer_of_the_whole_search() {
    if !can_make_namespaces("the_first_name_of_a_search_gets_the_answer_of_the_whole_search") {
        return;
    }
    let Cluster { scene, cluster_dns, node_dns } = cluster();
    let mut asked = Vec::new();
    for _ in 0..3 {
        // Kept as it is, each name by itself, and searched anew from what is kept.
        let found = scene.ask("Www.example.com.default.svc.cluster.local", "A");
        assert_eq!(found.rcode, "NOERROR");
        assert_eq!(found.data(), ["www.example.com.", "192.0.2.2"], "{found:?}");
        let found = scene.ask("web.other.default.svc.cluster.local", "A");
        assert_eq!(found.data(), ["web.other.svc.cluster.local.", "192.0.2.1"], "{found:?}");
        asked.push((cluster_dns.count(), node_dns.count()));
    }
    // Three names and two, and the namespace once. (The node's DNS is asked below the machine's own search list as well.)
    assert_eq!(asked.first().unwrap().0, 6);
    asked.dedup();
    assert_eq!(asked.len(), 1, "{asked:?}");
    let counted = scene.metrics().sum("coredns_autopath_success_total", &[("server", "dns://127.0.0.1:53")]);
    assert_eq!(counted, 6.0);
    // A Service by its whole name is no search.
    assert_eq!(scene.ask("web.other.svc.cluster.local", "A").data(), ["192.0.2.1"]);
}

#[test]
fn what_is_no_first_name_of_a_search_is_denied_as_before() {
    if !can_make_namespaces("what_is_no_first_name_of_a_search_is_denied_as_before") {
        return;
    }
    let Cluster { scene, cluster_dns: _cluster_dns, node_dns: _node_dns } = cluster();
    for name in [
        // The second name of a search: `com` is no namespace.
        "www.example.com.svc.cluster.local",
        "www.example.com.cluster.local",
        "absent.other.svc.cluster.local",
        // A search in which nothing is found.
        "absent.default.svc.cluster.local",
    ] {
        for _ in 0..2 {
            let answer = scene.ask(name, "A");
            assert_eq!((answer.rcode.as_str(), answer.data().len()), ("NXDOMAIN", 0), "{name}: {answer:?}");
        }
    }
}
