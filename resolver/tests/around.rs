//! What an operator sees of the directives around the cache: their counters, and connections that are bounded. (What a
//! client sees is `differential`'s.)
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise, in its helpers too")]

mod common;

use std::io::{Read, Write};
use std::net::{IpAddr, TcpStream};

use common::{HANG, SERVER, Scene, patient, patient_tcp, upstream_in};
use nodestub_lab::skip::can_make_namespaces;
use nodestub_lab::upstream::zone;
use nodestub_lab::{Netns, dns, exchange};

#[test]
fn counts_what_each_directive_does_under_the_names_of_coredns() {
    if !can_make_namespaces("counts_what_each_directive_does_under_the_names_of_coredns") {
        return;
    }
    let net = Netns::new().unwrap();
    let known: [(&str, IpAddr); 2] =
        [("a.test.", "192.0.2.1".parse().unwrap()), ("b.test.", "192.0.2.2".parse().unwrap())];
    let _upstream = upstream_in(&net, "127.0.0.2:53", zone(300, &known));
    let corefile = ". {
    bind 127.0.0.1
    local
    any
    dns64 {
        allow_ipv4
    }
    acl blocked.test {
        block
    }
    acl filtered.test {
        filter
    }
    acl dropped.test {
        drop
    }
    template IN TXT made.test {
        answer \"{{ .Name }} 60 IN TXT {{ .Type }}\"
        answer \"{{ .Name }} 60 IN TXT {{ index .Match 7 }}\"
    }
    template IN MX made.test {
        answer \"{{ .Name }} 60 IN MX nothing\"
    }
    cache
    forward . 127.0.0.2
    prometheus 127.0.0.1:9153
}
";
    let scene = Scene::start_in(net, corefile);
    for (name, rtype, rcode) in [
        ("a.blocked.test", "A", "REFUSED"),
        ("a.filtered.test", "A", "NOERROR"),
        ("a.made.test", "TXT", "SERVFAIL"),
        ("a.made.test", "MX", "SERVFAIL"),
        ("x.localhost", "A", "NOERROR"),
        ("a.test", "AAAA", "NOERROR"),
        ("a.test", "A", "NOERROR"),
        ("a.test", "A", "NOERROR"),
        ("a.test", "ANY", "NOERROR"),
    ] {
        assert_eq!(scene.rcode(name, rtype), rcode, "{name} {rtype}");
    }
    // By TCP as well, and from the cache.
    assert_eq!(scene.ask_with(SERVER, "a.test", "A", &patient_tcp()).data(), ["192.0.2.1"]);
    let dropped = dns::query("a.dropped.test", "A", &patient()).unwrap();
    let short = nodestub_lab::Options { timeout: std::time::Duration::from_millis(300), ..patient() };
    assert!(scene.net.run(|| exchange(SERVER, &dropped, &short)).unwrap().is_err(), "answered");
    let metrics = scene.metrics();
    let server = ("server", "dns://127.0.0.1:53");
    for (name, labels, expected) in [
        ("coredns_acl_blocked_requests_total", vec![server, ("zone", "blocked.test.")], 1.0),
        ("coredns_acl_filtered_requests_total", vec![server, ("zone", "filtered.test.")], 1.0),
        ("coredns_acl_dropped_requests_total", vec![server, ("zone", "dropped.test.")], 1.0),
        ("coredns_dns64_requests_translated_total", vec![server], 1.0),
        ("coredns_local_localhost_requests_total", vec![], 1.0),
        (
            "coredns_template_matches_total",
            vec![server, ("zone", "made.test."), ("class", "IN"), ("type", "TXT")],
            1.0,
        ),
        ("coredns_template_template_failures_total", vec![("section", "answer"), ("type", "TXT")], 1.0),
        ("coredns_template_rr_failures_total", vec![("section", "answer"), ("type", "MX")], 1.0),
        ("coredns_dns_responses_total", vec![("plugin", "acl"), ("rcode", "REFUSED")], 1.0),
        ("coredns_dns_responses_total", vec![("plugin", "any")], 1.0),
        ("coredns_dns_responses_total", vec![("plugin", "local")], 1.0),
        ("coredns_dns_responses_total", vec![("plugin", "dns64")], 1.0),
    ] {
        assert_eq!(metrics.find(name, &labels), Some(expected), "{name} {labels:?}\n{}", metrics.0);
    }
    // What came further than the list: two failed templates, an AAAA, two A by UDP and one by TCP.
    assert_eq!(metrics.sum("coredns_acl_allowed_requests_total", &[server]), 6.0);
}

#[test]
fn a_connection_ends_after_as_many_queries_as_the_corefile_allows() {
    if !can_make_namespaces("a_connection_ends_after_as_many_queries_as_the_corefile_allows") {
        return;
    }
    let corefile = "test {\n bind 127.0.0.1\n timeouts {\n maxtcpqueries 2\n }\n hosts {\n 192.0.2.1 a.test\n reload 0\n }\n}\n";
    let scene = Scene::start(corefile);
    let answers = scene
        .net
        .run(|| {
            let mut stream = TcpStream::connect(SERVER).unwrap();
            stream.set_read_timeout(Some(HANG)).unwrap();
            let query = dns::query("a.test", "A", &patient()).unwrap();
            let framed = [&u16::try_from(query.len()).unwrap().to_be_bytes()[..], &query].concat();
            // Three at once; the third finds nobody, and the server may say so by a reset.
            stream.write_all(&framed.repeat(3)).unwrap();
            let (mut answers, mut length) = (0, [0; 2]);
            while stream.read_exact(&mut length).is_ok() {
                let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
                stream.read_exact(&mut answer).unwrap();
                answers += 1;
            }
            answers
        })
        .unwrap();
    assert!(answers <= 2, "{answers}");
    assert_eq!(scene.rcode("a.test", "A"), "NOERROR");
}
