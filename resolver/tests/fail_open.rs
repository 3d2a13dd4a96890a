//! Whether fail-open works on this node is in a metric and in the text of `/ready`: the real binary, a node with a DNAT that
//! plays kube-proxy, and a cluster DNS behind it.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise, in its helpers too")]

mod common;

use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::{HANG, Metrics, ip, upstream_in};
use nodestub_lab::skip::can_make_namespaces;
use nodestub_lab::upstream::zone;
use nodestub_lab::{Daemon, Netns, Upstream, nat};
use tempfile::TempDir;

const LOCAL: &str = "169.254.20.10";
const KUBE_DNS: &str = "10.96.0.10";
const CLUSTER_DNS: &str = "10.88.0.2";
const COREFILE: &str = "cluster.local {\n bind 169.254.20.10\n forward . 10.96.0.10\n prometheus 127.0.0.1:9153\n \
                        ready 127.0.0.1:8181\n}\n";

struct Node {
    net: Netns,
    _dns_net: Netns,
    _cluster: Upstream,
    folder: TempDir,
}

impl Node {
    fn new() -> Self {
        let (net, dns_net) = (Netns::new().unwrap(), Netns::new().unwrap());
        net.join("dns0", &dns_net, "eth0").unwrap();
        net.add_address("dns0", ip("10.88.0.1"), 24).unwrap();
        dns_net.add_address("eth0", ip(CLUSTER_DNS), 24).unwrap();
        net.add_route(ip("0.0.0.0"), 0, ip(CLUSTER_DNS)).unwrap();
        net.set_sysctl("net/ipv4/ip_forward", "1").unwrap();
        let names = [("hoge.default.svc.cluster.local.", ip("10.96.33.33"))];
        let cluster = upstream_in(&dns_net, &format!("{CLUSTER_DNS}:53"), zone(30, &names));
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("Corefile"), COREFILE).unwrap();
        let node = Self { net, _dns_net: dns_net, _cluster: cluster, folder };
        node.start_kube_proxy();
        node
    }

    fn start_kube_proxy(&self) {
        nat::translate(&self.net, &[(ip(KUBE_DNS), ip(CLUSTER_DNS))]).unwrap();
    }

    fn command(&self, more: &[&str]) -> Command {
        let mut command = common::resolver(&self.folder.path().join("Corefile"));
        command.args(["-localip", LOCAL, "--cluster-domain", "cluster.local"]).args(more);
        command
    }

    fn start(&self, more: &[&str]) -> Daemon {
        let daemon = self.net.spawn(self.command(more)).unwrap();
        daemon.wait_for_line(HANG, |line| line.contains("serving DNS")).unwrap();
        daemon
    }

    fn metrics(&self) -> Metrics {
        Metrics(self.net.run(|| common::get(common::socket("127.0.0.1:9153"), "/metrics")).unwrap().1)
    }

    fn ready(&self) -> (u16, String) {
        self.net.run(|| common::get(common::socket("127.0.0.1:8181"), "/ready")).unwrap()
    }

    /// Waits until the metric says so, and only so.
    fn wait_for(&self, state: &str, daemon: &Daemon) {
        let started = Instant::now();
        loop {
            let metrics = self.metrics();
            let value = |state| metrics.find("nodestub_fail_open", &[("address", LOCAL), ("state", state)]);
            if value(state) == Some(1.0) {
                for other in ["works", "broken", "untried", "unknown", "off"] {
                    assert_eq!(value(other), Some(f64::from(u8::from(other == state))), "{other}");
                }
                return;
            }
            assert!(started.elapsed() < HANG, "not {state}:\n{}\n{}", metrics.0, daemon.lines().join("\n"));
            sleep(Duration::from_millis(100));
        }
    }
}

#[test]
fn tells_whether_fail_open_works_and_stays_ready_whatever_it_finds() {
    if !can_make_namespaces("tells_whether_fail_open_works_and_stays_ready_whatever_it_finds") {
        return;
    }
    let node = Node::new();
    let mut daemon = node.start(&["--fallback", KUBE_DNS]);
    node.wait_for("works", &daemon);
    assert_eq!(node.metrics().find("nodestub_fail_open_proven", &[]), Some(1.0));
    assert!(node.metrics().sum("nodestub_fail_open_answered_timestamp_seconds", &[("address", LOCAL)]) > 1e9);
    let (status, text) = node.ready();
    assert_eq!(status, 200);
    assert!(text.starts_with("OK\n"), "{text}");
    assert!(text.contains(&format!("fail-open {LOCAL} to {KUBE_DNS}: works")), "{text}");

    // kube-proxy's rules go; that somebody takes ours away as well makes the daemon look again.
    node.net.delete_nft_table(nat::NAT_TABLE).unwrap();
    node.net.delete_nft_table("nodestub").unwrap();
    node.wait_for("broken", &daemon);
    let (status, text) = node.ready();
    assert_eq!(status, 200, "{text}");
    assert!(text.contains("does not work") && text.contains("kube-proxy's rules are missing"), "{text}");
    let metrics = node.metrics();
    assert_eq!(metrics.find("nodestub_fail_open_proven", &[]), Some(0.0));
    assert!(metrics.sum("nodestub_fail_open_tries_total", &[("result", "silent")]) >= 1.0);

    node.start_kube_proxy();
    node.wait_for("works", &daemon);
    // A line on a change, and no other.
    let lines = daemon.lines();
    let told = |text: &str| lines.iter().filter(|line| line.contains(text)).count();
    assert_eq!(told("kernel fail-open works"), 2, "{}", lines.join("\n"));
    assert_eq!(told("kernel fail-open does not work"), 1, "{}", lines.join("\n"));

    // The next process adopts the pair of devices, and cleanup takes it away.
    daemon.kill().unwrap();
    let mut next = node.start(&["--fallback", KUBE_DNS]);
    node.wait_for("works", &next);
    next.terminate(HANG).unwrap();
    let mut cleanup = common::binary();
    cleanup.args(["cleanup", "--force"]);
    let output = node.net.output(cleanup).unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("nodestub-ask"), "{output:?}");
    for device in ["nodestub-ask", "nodestub-hear"] {
        assert!(node.net.addresses(device).is_err(), "{device} is there");
    }
}

#[test]
fn tells_that_fail_open_is_off_or_cannot_be_tried() {
    if !can_make_namespaces("tells_that_fail_open_is_off_or_cannot_be_tried") {
        return;
    }
    let node = Node::new();
    let daemon = node.start(&["--fallback", KUBE_DNS, "--fail-open=false"]);
    node.wait_for("off", &daemon);
    assert!(node.ready().1.contains("off: switched off"), "{}", node.ready().1);
    assert_eq!(node.metrics().find("nodestub_fail_open_proven", &[]), Some(0.0));
    drop(daemon);

    node.net.set_sysctl("net/ipv4/conf/all/rp_filter", "1").unwrap();
    let daemon = node.start(&["--fallback", KUBE_DNS]);
    node.wait_for("unknown", &daemon);
    let text = node.ready().1;
    assert!(text.contains("cannot be tried here") && text.contains("rp_filter"), "{text}");
}
