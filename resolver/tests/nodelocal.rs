//! The unmodified Corefile of NodeLocal DNSCache's manifest, with node-cache's flags, on a node with a pod.
//!
//! The node, a namespace with the cluster DNS and the site's resolver on its loopback device, tracks connections
//! whether anybody wants it or not. The pod is another namespace behind a veth pair.
#![forbid(unsafe_code)]
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test may stop at the first surprise, in its helpers too"
)]

mod common;

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{HANG, ip, patient, patient_tcp, upstream_in};
use nodestub_lab::conntrack::{self, Tracked};
use nodestub_lab::skip::can_make_namespaces;
use nodestub_lab::upstream::{Received, zone};
use nodestub_lab::{Answer, Daemon, Netns, Options, Pod, Transport, Upstream, ask};

const LOCAL: [&str; 2] = ["169.254.20.10", "10.96.0.10"];
const NODE_ADDRESS: &str = "10.244.0.1";
const CLUSTER_DNS: &str = "10.96.7.7:53";
const SITE_DNS: &str = "10.5.5.5:53";
const DEVICE: &str = "nodestub";
const TABLE: &str = "nodestub";

struct Node {
    net: Netns,
    pod: Netns,
    /// The node's file system, with its resolv.conf.
    files: Pod,
    cluster: Upstream,
    site: Upstream,
}

impl Node {
    fn new() -> Self {
        let (net, pod) = (Netns::new().unwrap(), Netns::new().unwrap());
        net.join("pod0", &pod, "eth0").unwrap();
        net.add_address("pod0", ip(NODE_ADDRESS), 24).unwrap();
        pod.add_address("eth0", ip("10.244.0.7"), 24).unwrap();
        pod.add_route(ip("0.0.0.0"), 0, ip("10.244.0.1")).unwrap();
        for server in [CLUSTER_DNS, SITE_DNS] {
            net.add_address("lo", common::socket(server).ip(), 32).unwrap();
        }
        conntrack::force_tracking(&net).unwrap();
        let service = [
            ("hoge.default.svc.cluster.local.", ip("10.96.33.33")),
            ("33.33.96.10.in-addr.arpa.", ip("192.0.2.9")),
        ];
        let cluster = upstream_in(&net, CLUSTER_DNS, zone(30, &service));
        let site = upstream_in(&net, SITE_DNS, zone(300, &[("www.example.com.", ip("192.0.2.80"))]));
        let files = Pod::new(&net, "search example.com\nnameserver 10.5.5.5\n").unwrap();
        Self { net, pod, files, cluster, site }
    }

    /// Starts the daemon as the manifest's container does, and waits until it serves.
    fn start(&self) -> Daemon {
        let daemon = self.files.spawn(command()).unwrap();
        let both = LOCAL.map(|address| format!("{address}:53"));
        for address in &both {
            daemon
                .wait_for_line(HANG, |line| line.contains("serving DNS") && line.contains(address))
                .unwrap();
        }
        daemon
    }

    fn ask_from(&self, net: &Netns, server: &str, name: &str, options: &Options) -> Answer {
        let server = SocketAddr::new(ip(server), 53);
        net.run(|| ask(server, name, "A", options)).unwrap().unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// What is tracked with one of the local addresses at an end, and what else is.
    fn tracked(&self) -> (Vec<Tracked>, Vec<Tracked>) {
        let mut all = conntrack::tracked(&self.net, 53).unwrap();
        all.extend(conntrack::tracked(&self.net, 8080).unwrap());
        // The daemon's own question, whether fail-open works: from the node's own address, to kube-dns's.
        all.retain(|one| (one.source.ip(), one.destination.ip()) != (ip(NODE_ADDRESS), ip(LOCAL[1])));
        let local = LOCAL.map(ip);
        all.into_iter()
            .partition(|one| local.contains(&one.source.ip()) || local.contains(&one.destination.ip()))
    }

    /// Which of the local addresses the node has: on a device of their own, or on `lo` where the kernel has no `dummy`.
    fn local_addresses(&self) -> Vec<IpAddr> {
        let found = self.net.addresses(DEVICE).or_else(|_| self.net.addresses("lo")).unwrap();
        let mut found: Vec<IpAddr> = found.into_iter().map(|(address, _)| address).collect();
        found.retain(|address| LOCAL.map(ip).contains(address));
        found.sort();
        found
    }

    fn assert_untouched(&self) {
        assert!(self.net.addresses(DEVICE).is_err(), "the device is there");
        assert_eq!(self.local_addresses(), Vec::<IpAddr>::new());
        assert!(!self.net.nft_tables().unwrap().contains(&TABLE.to_owned()));
    }
}

fn corefile() -> PathBuf {
    // The corefile crate's: its README there has source and licence.
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corefile/tests/fixtures/nodelocaldns.Corefile")
}

fn command() -> Command {
    let mut command = common::binary();
    command
        .env("KUBE_DNS_UPSTREAM_SERVICE_HOST", common::socket(CLUSTER_DNS).ip().to_string())
        .args(["-localip", &LOCAL.join(","), "-conf"])
        .arg(corefile())
        .args(["-upstreamsvc", "kube-dns-upstream", "--cluster-domain", "cluster.local"]);
    command
}

#[test]
fn answers_pods_and_the_host_on_both_addresses_and_no_packet_of_theirs_is_tracked() {
    if !can_make_namespaces("answers_pods_and_the_host_on_both_addresses_and_no_packet_of_theirs_is_tracked")
    {
        return;
    }
    let node = Node::new();
    let daemon = node.start();
    let mut expected = LOCAL.map(ip);
    expected.sort();
    assert_eq!(node.local_addresses(), expected);
    assert!(node.net.nft_tables().unwrap().contains(&TABLE.to_owned()));

    for net in [&node.pod, &node.net] {
        for server in LOCAL {
            for options in [patient(), patient_tcp()] {
                let ask = |name: &str| node.ask_from(net, server, name, &options);
                assert_eq!(ask("hoge.default.svc.cluster.local").data(), ["10.96.33.33"], "{server}");
                assert_eq!(ask("www.example.com").data(), ["192.0.2.80"], "{server}");
                assert_eq!(ask("absent.default.svc.cluster.local").rcode, "NXDOMAIN", "{server}");
                assert_eq!(ask("hoge.example.com").rcode, "NXDOMAIN", "{server}");
            }
        }
    }
    // The kubelet's probe, from the node itself.
    let health = common::socket("169.254.20.10:8080");
    let probed = node.net.run(|| common::get(health, "/health")).unwrap();
    assert_eq!(probed, (200, "OK".to_owned()));
    let (local, other) = node.tracked();
    assert_eq!(local, [], "the bypass has a hole");
    // What we ask upstreams is tracked, so the tracker does work.
    assert!(!other.is_empty());

    // The cluster's names go to the cluster DNS by TCP, the rest as the client asked to the site's.
    // (The daemon's own questions there are for the Service and for fail-open; nobody else asks by UDP.)
    let of_clients = |query: &Received| {
        query.transport == Transport::Udp
            && ["hoge", "absent"]
                .iter()
                .any(|label| query.bytes.windows(label.len()).any(|part| part == label.as_bytes()))
    };
    assert!(!node.cluster.received().iter().any(of_clients));
    assert!(node.cluster.count_of(Transport::Tcp) > 0);
    assert!(node.site.count() > 0);
    let (status, page) = node.net.run(|| common::get(common::socket("10.244.0.1:9253"), "/metrics")).unwrap();
    assert_eq!(status, 200);
    let metrics = common::Metrics(page);
    let labels = [("server", "dns://169.254.20.10:53"), ("zones", "cluster.local.")];
    assert!(metrics.sum("coredns_cache_hits_total", &labels) > 0.0);
    drop(daemon);
}

#[test]
fn keeps_cluster_answers_thirty_seconds_and_denials_five() {
    if !can_make_namespaces("keeps_cluster_answers_thirty_seconds_and_denials_five") {
        return;
    }
    let node = Node::new();
    let _daemon = node.start();
    let ask = |name: &str| node.ask_from(&node.pod, LOCAL[0], name, &patient());
    assert_eq!(ask("www.example.com").ttls(), [30], "the site's 300 are cut by `cache 30`");
    assert_eq!(ask("hoge.default.svc.cluster.local").ttls(), [30]);
    let denied = ask("absent.default.svc.cluster.local");
    assert_eq!((denied.rcode.as_str(), denied.authority[0].ttl), ("NXDOMAIN", 5));
}

#[test]
fn dns_goes_on_while_the_daemon_is_stopped_or_killed_and_it_takes_over_again() {
    if !can_make_namespaces("dns_goes_on_while_the_daemon_is_stopped_or_killed_and_it_takes_over_again") {
        return;
    }
    let node = Node::new();
    let resolves = || {
        for server in LOCAL {
            for options in [patient(), patient_tcp()] {
                let found = node.ask_from(&node.pod, server, "hoge.default.svc.cluster.local", &options);
                assert_eq!(found.data(), ["10.96.33.33"], "{server}");
            }
        }
    };
    for round in 0..4 {
        let mut daemon = node.start();
        assert_eq!(node.local_addresses().len(), 2);
        conntrack::flush(&node.net).unwrap();
        resolves();
        assert_eq!(node.tracked().0, [], "the daemon answers");
        if round % 2 == 0 {
            assert!(daemon.terminate(HANG).unwrap().success());
        } else {
            daemon.kill().unwrap();
        }
        assert_eq!(node.local_addresses().len(), 2, "the address stays");
        let asked = node.cluster.count();
        resolves();
        assert_eq!(node.cluster.count(), asked + 4, "the kernel sends them to the cluster DNS");
        let tables = node.net.nft_tables().unwrap();
        assert_eq!(tables.iter().filter(|table| *table == TABLE).count(), 1);
    }
}

#[test]
fn a_corefile_that_does_not_read_on_a_fresh_node_costs_no_answer() {
    if !can_make_namespaces("a_corefile_that_does_not_read_on_a_fresh_node_costs_no_answer") {
        return;
    }
    let node = Node::new();
    let mut command = common::binary();
    command.env("KUBE_DNS_UPSTREAM_SERVICE_HOST", common::socket(CLUSTER_DNS).ip().to_string()).args([
        "-localip",
        &LOCAL.join(","),
        "-conf",
        "/nonexistent",
        "-upstreamsvc",
        "kube-dns-upstream",
    ]);
    let mut daemon = node.files.spawn(command).unwrap();
    assert_eq!(daemon.wait(HANG).unwrap().code(), Some(1));
    let found = node.ask_from(&node.pod, LOCAL[0], "hoge.default.svc.cluster.local", &patient());
    assert_eq!(found.data(), ["10.96.33.33"]);
}

#[test]
fn serves_over_what_a_killed_one_left() {
    if !can_make_namespaces("serves_over_what_a_killed_one_left") {
        return;
    }
    let node = Node::new();
    node.start().kill().unwrap();
    assert_eq!(node.local_addresses().len(), 2, "nobody was there to take them away");
    let _daemon = node.start();
    for options in [patient(), patient_tcp()] {
        let found = node.ask_from(&node.pod, LOCAL[1], "hoge.default.svc.cluster.local", &options);
        assert_eq!(found.data(), ["10.96.33.33"]);
    }
    assert_eq!(node.tracked().0, []);
}

#[test]
fn touches_nothing_where_the_flags_say_so() {
    if !can_make_namespaces("touches_nothing_where_the_flags_say_so") {
        return;
    }
    let node = Node::new();
    for address in LOCAL {
        node.net.add_address("lo", ip(address), 32).unwrap();
    }
    let mut command = command();
    command.args(["-setupinterface=false", "-setupiptables=false"]);
    let daemon = node.files.spawn(command).unwrap();
    daemon.wait_for_line(HANG, |line| line.contains("serving DNS")).unwrap();
    let found = node.ask_from(&node.pod, LOCAL[0], "hoge.default.svc.cluster.local", &patient());
    assert_eq!(found.data(), ["10.96.33.33"]);
    assert!(node.net.addresses(DEVICE).is_err());
    assert_eq!(node.net.nft_tables().unwrap().iter().filter(|table| *table == TABLE).count(), 0);
    // So the pod's query is tracked: the test above would see a missing rule.
    assert!(!node.tracked().0.is_empty());
}

#[test]
fn what_somebody_takes_away_is_put_back_at_once() {
    if !can_make_namespaces("what_somebody_takes_away_is_put_back_at_once") {
        return;
    }
    let node = Node::new();
    let mut command = command();
    command.args(["-syncinterval", "1h"]);
    let daemon = node.files.spawn(command).unwrap();
    daemon.wait_for_line(HANG, |line| line.contains("serving DNS")).unwrap();
    let carrier = if node.net.addresses(DEVICE).is_ok() { DEVICE } else { "lo" };
    for (program, arguments, named) in [
        ("nft", vec!["flush", "ruleset"], "conntrack bypass"),
        ("ip", vec!["address", "delete", "169.254.20.10/32", "dev", carrier], "local address"),
    ] {
        let mut command = Command::new(program);
        command.args(arguments);
        assert!(node.net.output(command).unwrap().status.success());
        // The kernel has told us: a look would come an hour later.
        daemon.wait_for_line(HANG, |line| line.contains("in order again") && line.contains(named)).unwrap();
        assert_eq!(node.local_addresses().len(), 2);
        assert!(node.net.nft_tables().unwrap().contains(&TABLE.to_owned()));
    }
    let found = node.ask_from(&node.pod, LOCAL[0], "hoge.default.svc.cluster.local", &patient());
    assert_eq!(found.data(), ["10.96.33.33"]);
}

#[test]
fn cleanup_refuses_while_somebody_listens_and_leaves_nothing_afterwards() {
    if !can_make_namespaces("cleanup_refuses_while_somebody_listens_and_leaves_nothing_afterwards") {
        return;
    }
    let node = Node::new();
    let mut daemon = node.start();
    let nobodys = tempfile::tempdir().unwrap();
    let cleanup = || {
        let mut command = common::binary();
        // No node's files: the machine that runs this test may be one.
        command.args(["cleanup", "--host-root"]).arg(nobodys.path());
        node.net.output(command).unwrap()
    };
    let refused = cleanup();
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("169.254.20.10"));
    assert_eq!(node.local_addresses().len(), 2);
    assert!(daemon.terminate(HANG).unwrap().success());
    let done = cleanup();
    assert!(done.status.success(), "{done:?}");
    node.assert_untouched();
    assert!(String::from_utf8_lossy(&cleanup().stdout).contains("nothing to remove"));
}
