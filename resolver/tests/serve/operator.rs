//! What a probe and an operator see: endpoints, metrics, the end, a start that fails.

use std::time::Duration;

use nodestub_lab::skip::can_make_namespaces;
use nodestub_lab::upstream::{Data, Reply, answer, question, zone};
use nodestub_lab::{Answer, Netns, Options, Signal, dns};

use crate::common::{self, HANG, Metrics, SERVER, Scene, patient, patient_tcp, upstream_in};
use crate::{ADDRESS, HOSTS, connect, forwarding, read_answer, until, write_question};

#[test]
fn health_ready_and_metrics_are_served_where_the_corefile_says_and_nowhere_else() {
    if !can_make_namespaces("health_ready_and_metrics_are_served_where_the_corefile_says_and_nowhere_else") {
        return;
    }
    let corefile = "test {
        bind 127.0.0.1
        hosts {
            192.0.2.1 a.test
            reload 0
        }
        health 127.0.0.1:8080
        ready 127.0.0.1:8181
        prometheus :9153
    }
";
    let scene = Scene::start(corefile);
    assert_eq!(scene.get("127.0.0.1:8080", "/health"), (200, "OK".to_owned()));
    assert_eq!(scene.get("127.0.0.1:8181", "/ready"), (200, "OK".to_owned()));
    for address in ["127.0.0.1:9153", "127.0.0.9:9153", "[::1]:9153"] {
        let (status, page) = scene.get(address, "/metrics");
        assert_eq!(status, 200, "{address}");
        assert!(page.contains("# TYPE coredns_dns_requests_total counter"), "{page}");
    }
    // `health` asks itself, and says how long that took.
    let count = "coredns_health_request_duration_seconds_count";
    until("health has asked itself", || {
        Metrics(scene.get("127.0.0.1:9153", "/metrics").1).sum(count, &[]) > 0.0
    });
    for (address, path) in [
        ("127.0.0.1:8080", "/ready"),
        ("127.0.0.1:8080", "/metrics"),
        ("127.0.0.1:8181", "/health"),
        ("127.0.0.1:9153", "/health"),
        ("127.0.0.1:9153", "/other"),
    ] {
        assert_eq!(scene.get(address, path).0, 404, "{address} {path}");
    }
}

#[test]
fn says_unready_and_keeps_answering_through_lameduck_then_ends_well() {
    if !can_make_namespaces("says_unready_and_keeps_answering_through_lameduck_then_ends_well") {
        return;
    }
    let corefile =
        HOSTS.replace("cache\n", "health 127.0.0.1:8080 {\n lameduck 1h\n }\n ready 127.0.0.1:8181\n");
    let mut scene = Scene::start(&corefile);
    scene.daemon.signal(Signal::TERM).unwrap();
    scene.wait_for("stopping");
    let (status, reasons) = scene.get("127.0.0.1:8181", "/ready");
    assert_eq!((status, reasons.as_str()), (503, "stopping"));
    assert_eq!(scene.get("127.0.0.1:8080", "/health").0, 200);
    assert_eq!(scene.ask("a.test", "A").data(), ["192.0.2.1"]);
    assert_eq!(scene.ask_with(SERVER, "a.test", "A", &patient_tcp()).data(), ["192.0.2.1"]);
    // A second order ends the waiting.
    let status = scene.daemon.terminate(HANG).unwrap();
    assert!(status.success(), "{status}");
}

#[test]
fn answers_what_had_come_before_the_order_to_stop() {
    if !can_make_namespaces("answers_what_had_come_before_the_order_to_stop") {
        return;
    }
    let (mut scene, upstream) = forwarding(|query, _| {
        let (name, _) = question(query).unwrap();
        let reply = Reply::now(answer(query, &[(&name, 300, Data::A(ADDRESS))]).unwrap());
        vec![reply.after(Duration::from_millis(500))]
    });
    let questions: Vec<Vec<u8>> =
        (0..100).map(|number| dns::query(&format!("n{number}.test"), "A", &patient()).unwrap()).collect();
    let (client, mut stream) = scene
        .net
        .run(|| {
            let client = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
            client.connect(SERVER).unwrap();
            client.set_read_timeout(Some(HANG)).unwrap();
            for query in &questions {
                client.send(query).unwrap();
            }
            let mut stream = connect();
            write_question(&mut stream, "tcp.test");
            (client, stream)
        })
        .unwrap();
    upstream.wait_for(101, HANG).unwrap();
    let status = scene.daemon.terminate(HANG).unwrap();
    assert!(status.success(), "{status}");
    for number in 0..100 {
        let mut reply = [0; 512];
        let length = client.recv(&mut reply).unwrap_or_else(|error| panic!("answer {number}: {error}"));
        assert_eq!(Answer::parse(&reply[..length]).unwrap().data(), ["192.0.2.1"]);
    }
    assert_eq!(read_answer(&mut stream).data(), ["192.0.2.1"]);
}

#[test]
fn answers_what_lies_unread_when_the_order_to_stop_comes() {
    if !can_make_namespaces("answers_what_lies_unread_when_the_order_to_stop_comes") {
        return;
    }
    let (mut scene, _upstream) = forwarding(|query, _| {
        let (name, _) = question(query).unwrap();
        vec![Reply::now(answer(query, &[(&name, 300, Data::A(ADDRESS))]).unwrap())]
    });
    let questions: Vec<Vec<u8>> =
        (0..200).map(|number| dns::query(&format!("n{number}.test"), "A", &patient()).unwrap()).collect();
    let client = scene
        .net
        .run(|| {
            let client = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
            client.connect(SERVER).unwrap();
            client
        })
        .unwrap();
    for query in &questions {
        client.send(query).unwrap();
    }
    let status = scene.daemon.terminate(HANG).unwrap();
    assert!(status.success(), "{status}");
    // The process is gone: whatever it said is here.
    client.set_nonblocking(true).unwrap();
    let mut answered = 0;
    let mut reply = [0; 512];
    while let Ok(length) = client.recv(&mut reply) {
        assert_eq!(Answer::parse(&reply[..length]).unwrap().data(), ["192.0.2.1"]);
        answered += 1;
    }
    assert_eq!(answered, questions.len());
}

#[test]
fn metrics_have_the_names_and_labels_of_coredns_and_move() {
    if !can_make_namespaces("metrics_have_the_names_and_labels_of_coredns_and_move") {
        return;
    }
    let (scene, _upstream) = forwarding(zone(300, &[("a.test.", ADDRESS.into())]));
    let dnssec = Options { dnssec_ok: true, ..patient() };
    scene.ask("a.test", "A");
    scene.ask("a.test", "A");
    scene.ask_with(SERVER, "a.test", "A", &patient_tcp());
    scene.ask_with(SERVER, "a.test", "AAAA", &dnssec);
    scene.ask("absent.test", "A");
    scene.ask("absent.test", "A");
    scene.ask("a.test", "TYPE65280");
    let server = ("server", "dns://127.0.0.1:53");
    let route = [server, ("zone", "."), ("view", "")];
    let zones = [server, ("zones", "."), ("view", "")];
    let with = |labels: [(&'static str, &'static str); 3], more: &[(&'static str, &'static str)]| {
        [&labels[..], more].concat()
    };
    let expected = [
        ("coredns_dns_requests_total", with(route, &[("proto", "udp"), ("family", "1"), ("type", "A")]), 4.0),
        ("coredns_dns_requests_total", with(route, &[("proto", "tcp"), ("family", "1"), ("type", "A")]), 1.0),
        (
            "coredns_dns_requests_total",
            with(route, &[("proto", "udp"), ("family", "1"), ("type", "AAAA")]),
            1.0,
        ),
        (
            "coredns_dns_requests_total",
            with(route, &[("proto", "udp"), ("family", "1"), ("type", "other")]),
            1.0,
        ),
        ("coredns_dns_do_requests_total", with(route, &[]), 1.0),
        ("coredns_dns_responses_total", with(route, &[("rcode", "NOERROR"), ("plugin", "forward")]), 3.0),
        ("coredns_dns_responses_total", with(route, &[("rcode", "NOERROR"), ("plugin", "cache")]), 2.0),
        ("coredns_dns_responses_total", with(route, &[("rcode", "NXDOMAIN"), ("plugin", "forward")]), 1.0),
        ("coredns_dns_responses_total", with(route, &[("rcode", "NXDOMAIN"), ("plugin", "cache")]), 1.0),
        ("coredns_dns_request_duration_seconds_count", with(route, &[]), 7.0),
        ("coredns_dns_request_size_bytes_count", with(route, &[("proto", "udp")]), 6.0),
        ("coredns_dns_response_size_bytes_count", with(route, &[("proto", "tcp")]), 1.0),
        ("coredns_cache_requests_total", with(zones, &[]), 7.0),
        ("coredns_cache_hits_total", with(zones, &[("type", "success")]), 2.0),
        ("coredns_cache_hits_total", with(zones, &[("type", "denial")]), 1.0),
        ("coredns_cache_misses_total", with(zones, &[]), 4.0),
        ("coredns_cache_entries", with(zones, &[("type", "success")]), 1.0),
        ("coredns_cache_entries", with(zones, &[("type", "denial")]), 3.0),
        ("coredns_cache_evictions_total", with(zones, &[("type", "success")]), 0.0),
        (
            "coredns_proxy_request_duration_seconds_count",
            vec![("proxy_name", "forward"), ("to", "127.0.0.2:53"), ("rcode", "NXDOMAIN")],
            1.0,
        ),
        (
            "coredns_proxy_conn_cache_misses_total",
            vec![("proxy_name", "forward"), ("to", "127.0.0.2:53"), ("proto", "tcp")],
            0.0,
        ),
        ("coredns_panics_total", vec![], 0.0),
        ("coredns_reload_failed_total", vec![], 0.0),
        ("coredns_forward_max_concurrent_rejects_total", vec![], 0.0),
        ("coredns_forward_healthcheck_broken_total", vec![], 0.0),
        ("coredns_plugin_enabled", with(route, &[("name", "forward")]), 1.0),
        ("coredns_plugin_enabled", with(route, &[("name", "cache")]), 1.0),
        ("coredns_build_info", vec![("version", concat!("Nodestub-", env!("CARGO_PKG_VERSION")))], 1.0),
        ("coredns_health_request_failures_total", vec![], 0.0),
        ("nodestub_ready", vec![], 1.0),
        ("nodestub_upstream_looped", vec![("to", "127.0.0.2:53")], 0.0),
    ];
    // Counters are added to after the reply is sent.
    until("all answers are counted", || {
        let requests = scene.metrics().sum("coredns_dns_requests_total", &[]);
        requests >= 7.0
    });
    let metrics = scene.metrics();
    for (name, labels, value) in expected {
        assert_eq!(metrics.find(name, &labels), Some(value), "{name} {labels:?} in\n{}", metrics.0);
    }
    // A buckets' line and its family.
    assert!(metrics.0.contains("# TYPE coredns_dns_request_duration_seconds histogram"));
    assert!(metrics.0.contains("coredns_dns_request_duration_seconds_bucket{"));
    assert!(metrics.0.contains("le=\"+Inf\""));
}

#[test]
fn queries_of_no_zone_are_counted_as_dropped() {
    if !can_make_namespaces("queries_of_no_zone_are_counted_as_dropped") {
        return;
    }
    let scene = Scene::start(HOSTS);
    assert_eq!(scene.rcode("a.example", "A"), "REFUSED");
    let labels = [("server", "dns://127.0.0.1:53"), ("zone", "dropped"), ("rcode", "REFUSED")];
    until("the refusal is counted", || scene.metrics().sum("coredns_dns_responses_total", &labels) == 1.0);
}

#[test]
fn another_process_on_the_port_is_an_error_that_names_it() {
    if !can_make_namespaces("another_process_on_the_port_is_an_error_that_names_it") {
        return;
    }
    let net = Netns::new().unwrap();
    let _other = upstream_in(&net, "127.0.0.1:53", |_, _| Vec::new());
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("Corefile"), HOSTS).unwrap();
    let output = net.output(common::resolver(&folder.path().join("Corefile"))).unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("cannot listen on 127.0.0.1:53"), "{said}");
}
