//! What the kernel or somebody else refuses the daemon: it says what and what to do, counts it, fights nobody, and DNS
//! goes on wherever it can.
//!
//! A node, a pod behind a veth pair, and the cluster DNS behind another.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise, in its helpers too")]

mod common;

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use common::{HANG, Metrics, ip, patient, patient_tcp, socket, upstream_in};
use nodestub_lab::skip::can_make_namespaces;
use nodestub_lab::upstream::zone;
use nodestub_lab::{Daemon, Netns, Options, Upstream, ask};
use tempfile::TempDir;

const LOCAL: &str = "169.254.20.10";
const SERVICE: &str = "10.96.0.10";
const CLUSTER_DNS: &str = "10.96.7.7";
const NODE: &str = "10.244.0.1";
const NAME: &str = "db.default.svc.cluster.local";
const TABLE: &str = "nodestub";

struct Node {
    net: Netns,
    pod: Netns,
    cluster: Upstream,
    _dns: Netns,
    folder: TempDir,
}

impl Node {
    fn new() -> Self {
        let (net, pod, dns) = (Netns::new().unwrap(), Netns::new().unwrap(), Netns::new().unwrap());
        net.join("pod0", &pod, "eth0").unwrap();
        net.add_address("pod0", ip(NODE), 24).unwrap();
        pod.add_address("eth0", ip("10.244.0.7"), 24).unwrap();
        pod.add_route(ip("0.0.0.0"), 0, ip(NODE)).unwrap();
        net.join("dns0", &dns, "eth0").unwrap();
        net.add_address("dns0", ip("10.96.7.1"), 24).unwrap();
        dns.add_address("eth0", ip(CLUSTER_DNS), 24).unwrap();
        dns.add_route(ip("0.0.0.0"), 0, ip("10.96.7.1")).unwrap();
        net.set_sysctl("net/ipv4/ip_forward", "1").unwrap();
        let names = [("db.default.svc.cluster.local.", ip("10.96.33.33"))];
        let cluster = upstream_in(&dns, &format!("{CLUSTER_DNS}:53"), zone(30, &names));
        let node = Self { net, pod, cluster, _dns: dns, folder: tempfile::tempdir().unwrap() };
        node.write_corefile(LOCAL);
        node
    }

    /// A Corefile that binds these addresses.
    fn write_corefile(&self, bind: &str) {
        let text = format!(
            ".:53 {{\n bind {bind}\n cache 30\n forward . {CLUSTER_DNS}\n ready {NODE}:8181\n prometheus {NODE}:9153\n}}\n"
        );
        std::fs::write(self.corefile(), text).unwrap();
    }

    fn corefile(&self) -> std::path::PathBuf {
        self.folder.path().join("Corefile")
    }

    /// The daemon with these flags, and `KUBE_DNS_SERVICE_HOST` set.
    fn command(&self, flags: &str) -> Command {
        self.dressed(common::binary(), flags)
    }

    /// The same without the capability NET_ADMIN.
    fn without_net_admin(&self, flags: &str) -> Command {
        let mut command = Command::new("setpriv");
        command
            .args(["--bounding-set=-net_admin", "--inh-caps=-net_admin"])
            .arg(common::binary().get_program());
        self.dressed(command, flags)
    }

    fn dressed(&self, mut command: Command, flags: &str) -> Command {
        command.arg("-conf").arg(self.corefile()).args(flags.split_whitespace());
        command.env("KUBE_DNS_SERVICE_HOST", SERVICE);
        command
    }

    fn start(&self, command: Command) -> Daemon {
        let daemon = self.net.spawn(command).unwrap();
        daemon.wait_for_line(HANG, |line| line.contains("serving DNS")).unwrap();
        daemon
    }

    /// Runs it to its end, which is to be a failure, and gives what it said.
    fn refused(&self, command: &Command) -> String {
        let mut limited = Command::new("timeout");
        limited.arg(HANG.as_secs().to_string()).arg(command.get_program()).args(command.get_args());
        copy_environment(command, &mut limited);
        let output = self.net.output(limited).unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        said
    }

    fn sh(&self, line: &str) {
        let mut command = Command::new("sh");
        command.args(["-c", line]);
        let output = self.net.output(command).unwrap();
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Both by UDP and TCP, the pod gets the Service's address.
    fn pod_resolves(&self, server: &str) {
        for options in [patient(), patient_tcp()] {
            let server = SocketAddr::new(ip(server), 53);
            let answer = self.pod.run(|| ask(server, NAME, "A", &options)).unwrap().unwrap();
            assert_eq!(answer.data(), ["10.96.33.33"], "{server}");
        }
    }

    fn pod_is_answered_at_once(&self, server: &str) -> bool {
        let options = Options { timeout: Duration::from_millis(300), ..Options::default() };
        let server = SocketAddr::new(ip(server), 53);
        self.pod.run(|| ask(server, NAME, "A", &options)).unwrap().is_ok()
    }

    fn get(&self, port: u16, path: &str) -> String {
        let address = socket(&format!("{NODE}:{port}"));
        self.net.run(|| common::get(address, path)).unwrap().1
    }

    fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        Metrics(self.get(9153, "/metrics")).sum(name, labels)
    }

    fn setup_errors(&self, kind: &str) -> f64 {
        self.metric("coredns_nodecache_setup_errors_total", &[("errortype", kind)])
    }

    /// The devices that carry an address.
    fn carriers(&self, address: &str) -> Vec<String> {
        let mut list = Command::new("ip");
        list.args(["-brief", "address"]);
        let output = String::from_utf8(self.net.output(list).unwrap().stdout).unwrap();
        let with = |line: &&str| line.split_whitespace().any(|word| word.split('/').next() == Some(address));
        let device = |line: &str| line.split_whitespace().next().unwrap_or_default().to_owned();
        output.lines().filter(with).map(device).collect()
    }

    /// Our table as text; empty where there is none.
    fn table(&self) -> String {
        let mut list = Command::new("nft");
        list.args(["list", "ruleset"]);
        let text = String::from_utf8(self.net.output(list).unwrap().stdout).unwrap();
        let without_elements =
            || text.lines().filter(|line| !line.contains("elements =")).collect::<String>();
        if text.contains(&format!("table inet {TABLE} ")) { without_elements() } else { String::new() }
    }
}

/// Waits for something that comes about by itself.
fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < HANG, "never: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn names_a_chain_that_drops_queries_once_and_the_line_that_it_prints_helps() {
    const TEST: &str = "names_a_chain_that_drops_queries_once_and_the_line_that_it_prints_helps";
    if !can_make_namespaces(TEST) {
        return;
    }
    let node = Node::new();
    let flags = "-localip 169.254.20.10 -syncinterval 1h";
    let daemon = node.start(node.command(flags));
    node.pod_resolves(LOCAL);
    // The kernel tells: a look would come an hour later. What is more, established connections are let in, as usual.
    node.sh("nft -f - <<END
        table inet guard { chain input { type filter hook input priority 0; policy drop;
            ct state established,related accept
            iifname lo accept
            tcp dport { 8181, 9153 } accept; }; }\nEND");
    let named = |line: &str| line.contains("chain input of table inet guard drops queries of pods");
    daemon.wait_for_line(HANG, named).unwrap();
    assert!(!node.pod_is_answered_at_once(LOCAL));
    let labels = [("table", "inet guard"), ("chain", "input"), ("certain", "yes")];
    assert_eq!(node.metric("nodestub_node_obstacles", &labels), 1.0);
    let ready = node.get(8181, "/ready");
    assert!(ready.starts_with("OK") && ready.contains("table inet guard"), "{ready}");

    // Another change of the same table is no news.
    node.sh("nft add rule inet guard input tcp dport 22 accept");
    // And `rules` says the same, as comments: the text loads.
    let mut rules = common::binary();
    rules.args(["rules", "-localip", LOCAL]);
    let text = String::from_utf8(node.net.output(rules).unwrap().stdout).unwrap();
    let lines: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("#     ")).collect();
    assert_eq!(lines.len(), 2, "{text}");
    std::fs::write(node.folder.path().join("rules.nft"), &text).unwrap();
    node.sh(&format!("nft --check -f {}", node.folder.path().join("rules.nft").display()));

    for line in lines {
        node.sh(line);
    }
    daemon.wait_for_line(HANG, |line| line.contains("drops nothing of ours any more")).unwrap();
    node.pod_resolves(LOCAL);
    assert_eq!(node.metric("nodestub_node_obstacles", &[]), 0.0);
    let ready = node.get(8181, "/ready");
    assert!(ready.starts_with("OK\nfail-open ") && ready.lines().count() == 2, "{ready}");
    assert_eq!(daemon.lines().iter().filter(|line| named(line)).count(), 1);
}

#[test]
fn leaves_the_address_of_a_service_to_ipvs_and_serves_the_local_one() {
    if !can_make_namespaces("leaves_the_address_of_a_service_to_ipvs_and_serves_the_local_one") {
        return;
    }
    let node = Node::new();
    // A bridge is as good as a dummy here, and every kernel has it.
    node.sh("ip link add kube-ipvs0 type bridge && ip address add 10.96.0.10/32 dev kube-ipvs0");
    let daemon = node.start(node.command("-localip 169.254.20.10,10.96.0.10"));
    let said =
        |line: &str| line.contains(SERVICE) && line.contains("kube-ipvs0") && line.contains("-localip");
    daemon.wait_for_line(HANG, said).unwrap();
    node.pod_resolves(LOCAL);
    assert_eq!(node.carriers(SERVICE), ["kube-ipvs0"]);
    assert_eq!(node.setup_errors("interface_add"), 1.0);
    let table = node.table();
    let rules = with_first_word(&node.command("-localip 169.254.20.10,10.96.0.10"), "rules");
    let text = String::from_utf8(node.net.output(rules).unwrap().stdout).unwrap();
    assert!(text.contains("# 10.96.0.10 is already on device kube-ipvs0"), "{text}");
    assert!(!text.contains("saddr 10.96.0.10 udp"), "{text}");
    // It is where queries go while nobody listens, and nothing more.
    assert!(table.contains("daddr set 10.96.0.10") && !table.contains("saddr 10.96.0.10 udp"), "{table}");
}

#[test]
fn gives_up_the_address_of_a_service_when_ipvs_comes_later() {
    if !can_make_namespaces("gives_up_the_address_of_a_service_when_ipvs_comes_later") {
        return;
    }
    let node = Node::new();
    let daemon = node.start(node.command("-localip 169.254.20.10,10.96.0.10 -syncinterval 1h"));
    assert_eq!(node.carriers(SERVICE).len(), 1);
    node.sh("ip link add kube-ipvs0 type bridge && ip address add 10.96.0.10/32 dev kube-ipvs0");
    daemon.wait_for_line(HANG, |line| line.contains("kube-ipvs0") && line.contains("left to")).unwrap();
    eventually("it is kube-proxy's alone", || node.carriers(SERVICE) == ["kube-ipvs0"]);
    eventually("no rule stands in its way", || !node.table().contains("saddr 10.96.0.10 udp"));
    node.pod_resolves(LOCAL);
    assert!(node.setup_errors("interface_check") >= 1.0);
}

#[test]
fn names_the_device_that_takes_the_local_address_and_answers_all_the_same() {
    if !can_make_namespaces("names_the_device_that_takes_the_local_address_and_answers_all_the_same") {
        return;
    }
    let node = Node::new();
    let daemon = node.start(node.command("-localip 169.254.20.10 -syncinterval 1h"));
    let ours = node.carriers(LOCAL);
    node.sh("ip link add thief type bridge && ip address add 169.254.20.10/32 dev thief");
    daemon.wait_for_line(HANG, |line| line.contains("already on device thief")).unwrap();
    node.pod_resolves(LOCAL);
    assert!(node.setup_errors("interface_check") >= 1.0);
    // Not taken from the other, nor given up.
    let mut both = node.carriers(LOCAL);
    both.retain(|device| !ours.contains(device));
    assert_eq!(both, ["thief"]);
}

#[test]
fn names_another_cache_on_the_address_and_leaves_it_serving() {
    if !can_make_namespaces("names_another_cache_on_the_address_and_leaves_it_serving") {
        return;
    }
    let node = Node::new();
    node.sh("ip link add nodelocaldns type bridge && ip address add 169.254.20.10/32 dev nodelocaldns");
    node.sh("ip link set nodelocaldns up");
    let names = [("db.default.svc.cluster.local.", ip("10.96.33.33"))];
    let other = upstream_in(&node.net, "169.254.20.10:53", zone(30, &names));
    let said = node.refused(&node.command("-localip 169.254.20.10"));
    assert!(said.contains("already on device nodelocaldns"), "{said}");
    // It has given up the right to look into processes that may do more than it.
    assert!(said.contains("a process of user 0") && said.contains("listens on 169.254.20.10:53"), "{said}");
    assert_eq!(node.carriers(LOCAL), ["nodelocaldns"]);
    assert_eq!(node.table(), "", "rules of ours are of no use to the other one");
    node.pod_resolves(LOCAL);
    assert!(other.count() > 0);
}

#[test]
fn names_a_listener_on_every_address_and_the_kernel_answers_pods_meanwhile() {
    if !can_make_namespaces("names_a_listener_on_every_address_and_the_kernel_answers_pods_meanwhile") {
        return;
    }
    let node = Node::new();
    let wild = upstream_in(&node.net, "0.0.0.0:53", zone(30, &[]));
    let said = node.refused(&node.command("-localip 169.254.20.10 --fallback 10.96.7.7"));
    // It has given up the right to look into processes that may do more than it.
    assert!(said.contains("a process of user 0") && said.contains("listens on 0.0.0.0:53"), "{said}");
    node.pod_resolves(LOCAL);
    assert_eq!(node.cluster.count(), 2);
    assert_eq!(wild.count(), 0);
}

#[test]
fn serves_without_net_admin_where_the_address_is_there_and_says_what_is_missing() {
    const TEST: &str = "serves_without_net_admin_where_the_address_is_there_and_says_what_is_missing";
    if !can_make_namespaces(TEST) {
        return;
    }
    let node = Node::new();
    node.net.add_address("lo", ip(LOCAL), 32).unwrap();
    let daemon = node.start(node.without_net_admin("-localip 169.254.20.10"));
    daemon
        .wait_for_line(HANG, |line| line.contains("Operation not permitted") && line.contains("NET_ADMIN"))
        .unwrap();
    node.pod_resolves(LOCAL);
    assert!(node.setup_errors("iptables") >= 1.0);
    assert_eq!(node.table(), "");
}

#[test]
fn puts_the_address_up_where_the_kernel_refuses_the_rules_and_loads_them_later() {
    const TEST: &str = "puts_the_address_up_where_the_kernel_refuses_the_rules_and_loads_them_later";
    if !can_make_namespaces(TEST) {
        return;
    }
    let node = Node::new();
    // A table under our name that the kernel lets nobody else touch, for as long as this process lives.
    let mut owner = Command::new("sh");
    owner.current_dir(node.folder.path());
    let line =
        "mkfifo in; (echo 'add table inet nodestub { flags owner; }'; exec tail --pid=$$ -f /dev/null) > in &
        exec nft -i < in";
    owner.args(["-c", line]);
    let mut owner = node.net.spawn(owner).unwrap();
    eventually("the table is somebody's", || !node.table().is_empty());
    let daemon = node.start(node.command("-localip 169.254.20.10 --fallback 10.96.7.7 -syncinterval 1s"));
    daemon
        .wait_for_line(HANG, |line| line.contains("the kernel refused") && line.contains("no rules"))
        .unwrap();
    node.pod_resolves(LOCAL);
    assert_eq!(node.carriers(LOCAL).len(), 1);
    assert!(node.setup_errors("iptables") >= 1.0);
    assert!(!node.table().contains("notrack"));
    owner.kill().unwrap();
    eventually("the rules are loaded", || node.table().contains("notrack"));
    node.pod_resolves(LOCAL);
}

#[test]
fn keeps_rules_of_an_earlier_start_and_says_so_where_none_are_asked_for() {
    if !can_make_namespaces("keeps_rules_of_an_earlier_start_and_says_so_where_none_are_asked_for") {
        return;
    }
    let node = Node::new();
    node.start(node.command("-localip 169.254.20.10 --fallback 10.96.7.7")).kill().unwrap();
    let before = node.table();
    assert!(!before.is_empty());
    let said =
        |line: &str| line.contains("of an earlier start") && line.contains("nodestub-resolver cleanup");
    for flags in ["-localip 169.254.20.10 -setupiptables=false", "-setupinterface=false -setupiptables=false"]
    {
        let mut daemon = node.start(node.command(flags));
        daemon.wait_for_line(HANG, said).unwrap();
        node.pod_resolves(LOCAL);
        assert!(daemon.terminate(HANG).unwrap().success());
        assert_eq!(node.table(), before, "{flags}");
        // Pods live by them.
        node.pod_resolves(LOCAL);
    }
    let daemon = node.start(node.command("-localip 169.254.20.10 --fallback 10.96.7.7"));
    assert!(!daemon.lines().iter().any(|line| said(line)));
}

#[test]
fn says_that_the_service_in_front_of_the_cluster_dns_is_missing() {
    if !can_make_namespaces("says_that_the_service_in_front_of_the_cluster_dns_is_missing") {
        return;
    }
    let node = Node::new();
    std::fs::write(node.corefile(), nodelocal_corefile()).unwrap();
    let mut command = node.command("-localip 169.254.20.10,10.96.0.10 -upstreamsvc kube-dns-upstream");
    command.args(["--cluster-domain", "cluster.local"]);
    let daemon = node.start(command);
    let said = |line: &str| line.contains("kube-system/kube-dns-upstream (-upstreamsvc) is not there");
    daemon.wait_for_line(HANG, said).unwrap();
    drop(daemon);
    let said = node.refused(&node.command("--mode intercept -localip 169.254.20.10"));
    assert!(said.contains("--intercept") && said.contains("Service"), "{said}");
}

/// The flags of NodeLocal's manifest for a local redirect policy, as Cilium's documentation has them, and its Corefile:
/// NodeLocal's own, bound to every address. The pod has an address of its own, and no rights on the node.
#[test]
fn serves_behind_a_local_redirect_policy_and_touches_nothing() {
    if !can_make_namespaces("serves_behind_a_local_redirect_policy_and_touches_nothing") {
        return;
    }
    let flags = "-localip 169.254.20.10,10.96.0.10 -upstreamsvc kube-dns-upstream -skipteardown=true \
                 -setupinterface=false -setupiptables=false --cluster-domain cluster.local";
    let bound_to_all = nodelocal_corefile()
        .replace("bind __PILLAR__LOCAL__DNS__ __PILLAR__DNS__SERVER__", "bind 0.0.0.0")
        .replace("health __PILLAR__LOCAL__DNS__:8080", "health");
    assert!(bound_to_all.contains("bind 0.0.0.0") && !bound_to_all.contains("LOCAL__DNS__"));
    // With our own flag, placeholders for the local address serve as well: there is none.
    let placeholders = nodelocal_corefile();
    let with_mode = "--mode redirect -localip 169.254.20.10,10.96.0.10 -upstreamsvc kube-dns-upstream \
                     --cluster-domain cluster.local";
    for (corefile, flags) in [
        (&bound_to_all, flags.to_owned()),
        (&bound_to_all, format!("{flags} --mode redirect")),
        (&placeholders, with_mode.to_owned()),
    ] {
        let node = Node::new();
        std::fs::write(node.corefile(), corefile).unwrap();
        let mut command = node.without_net_admin(&flags);
        command.env("KUBE_DNS_UPSTREAM_SERVICE_HOST", CLUSTER_DNS);
        let daemon = node.start(command);
        node.pod_resolves(NODE);
        let health = socket(&format!("{NODE}:8080"));
        assert_eq!(node.net.run(|| common::get(health, "/health")).unwrap().1, "OK");
        let said = daemon.lines().join("\n");
        assert!(!said.contains("NET_ADMIN") && !said.contains("WARN") && !said.contains("ERROR"), "{said}");
        assert_eq!(node.table(), "");
        for address in [LOCAL, SERVICE] {
            assert_eq!(node.carriers(address), [""; 0]);
        }
    }
}

#[test]
fn says_what_contradicts_a_local_redirect_policy() {
    if !can_make_namespaces("says_what_contradicts_a_local_redirect_policy") {
        return;
    }
    let node = Node::new();
    let said = node.refused(&node.command("--mode redirect -localip 169.254.20.10"));
    assert!(said.contains("binds 169.254.20.10:53") && said.contains("bind 0.0.0.0"), "{said}");
    node.write_corefile("0.0.0.0");
    let said = node.refused(&node.command("--mode redirect -localip 169.254.20.10 -setupiptables=true"));
    assert!(said.contains("--mode redirect") && said.contains("-setupiptables=true"), "{said}");
    let _daemon = node.start(node.command("--mode redirect -localip 169.254.20.10"));
    node.pod_resolves(NODE);
}

/// The same command with a subcommand, and the flags that it takes.
fn with_first_word(command: &Command, word: &str) -> Command {
    let mut again = Command::new(command.get_program());
    again.arg(word).args(command.get_args());
    copy_environment(command, &mut again);
    again
}

fn copy_environment(from: &Command, to: &mut Command) {
    for (name, value) in from.get_envs() {
        match value {
            Some(value) => to.env(name, value),
            None => to.env_remove(name),
        };
    }
}

/// NodeLocal's own: the corefile crate has it, with source and licence.
fn nodelocal_corefile() -> String {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("corefile/tests/fixtures/nodelocaldns.Corefile");
    std::fs::read_to_string(fixture).unwrap()
}
