//! What a container's environment cannot say, because it never changes: a Service that is made after the resolver, or again with
//! another address. The real binary serves what it can, names what is missing, and follows without a restart.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise, in its helpers too")]

mod common;

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::{HANG, Metrics, ip, patient, upstream_in};
use nodestub_lab::skip::{can_make_namespaces, skip};
use nodestub_lab::upstream::zone;
use nodestub_lab::{Answer, Daemon, Netns, Upstream, ask};
use tempfile::TempDir;

const LOCAL: &str = "169.254.20.10";
/// The cluster DNS by the address of Service kube-dns, and by those that Service kube-dns-upstream gets.
const KUBE_DNS: &str = "10.96.0.10";
const UPSTREAM: [&str; 2] = ["10.96.7.7", "10.96.8.8"];
const SITE_DNS: &str = "10.5.5.5";
const SERVICE_NAME: &str = "kube-dns-upstream.kube-system.svc.cluster.local.";
const COREFILE: &str = "__PILLAR__DNS__DOMAIN__ {\n bind __PILLAR__LOCAL__DNS__\n forward . __PILLAR__CLUSTER__DNS__\n}\n\
                        . {\n bind __PILLAR__LOCAL__DNS__\n forward . 10.5.5.5\n prometheus 127.0.0.1:9153\n \
                        ready 127.0.0.1:8181\n}\n";

/// A node that has the cluster DNS on its loopback device: each address answers with a name that tells which it is.
struct Node {
    net: Netns,
    folder: TempDir,
    /// Where the Service is, as the cluster DNS says.
    service: Arc<Mutex<Option<IpAddr>>>,
    _servers: Vec<Upstream>,
}

impl Node {
    fn new() -> Self {
        Self::with(&[KUBE_DNS, UPSTREAM[0], UPSTREAM[1], SITE_DNS], COREFILE)
    }

    /// A node with a server on each of these addresses.
    fn with(addresses: &[&'static str], corefile: &str) -> Self {
        let net = Netns::new().unwrap();
        let service = Arc::new(Mutex::new(None));
        let mut servers = Vec::new();
        for &address in addresses {
            net.add_address("lo", ip(address), 32).unwrap();
            let here = Arc::clone(&service);
            let behaviour = move |query: &[u8], transport| {
                let mut names = vec![("who.cluster.local.", ip(address)), ("www.example.com.", ip(address))];
                names.extend(here.lock().unwrap().map(|at: IpAddr| (SERVICE_NAME, at)));
                zone(0, &names)(query, transport)
            };
            servers.push(upstream_in(&net, &format!("{address}:53"), behaviour));
        }
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("Corefile"), corefile).unwrap();
        Self { net, folder, service, _servers: servers }
    }

    /// A mounted ConfigMap: files behind the link `..data`, which is swapped.
    fn write_facts(&self, version: &str, data: &[(&str, &str)]) {
        let folder = self.facts();
        let files = folder.join(format!("..{version}"));
        std::fs::create_dir_all(&files).unwrap();
        for (key, value) in data {
            std::fs::write(files.join(key), value).unwrap();
            let link = folder.join(key);
            if link.symlink_metadata().is_err() {
                std::os::unix::fs::symlink(Path::new("..data").join(key), link).unwrap();
            }
        }
        std::os::unix::fs::symlink(format!("..{version}"), folder.join("..data_tmp")).unwrap();
        std::fs::rename(folder.join("..data_tmp"), folder.join("..data")).unwrap();
    }

    fn facts(&self) -> std::path::PathBuf {
        self.folder.path().join("facts")
    }

    fn command(&self) -> Command {
        self.command_on(LOCAL)
    }

    fn command_on(&self, local: &str) -> Command {
        let mut command = common::resolver(&self.folder.path().join("Corefile"));
        command
            .args(["-localip", local, "-upstreamsvc", "kube-dns-upstream", "--facts-folder"])
            .arg(self.facts());
        for variable in ["KUBE_DNS_SERVICE_HOST", "KUBE_DNS_UPSTREAM_SERVICE_HOST", "NODESTUB_FALLBACK"] {
            command.env_remove(variable);
        }
        command
    }

    fn start(&self, command: Command) -> Daemon {
        let daemon = self.net.spawn(command).unwrap();
        daemon.wait_for_line(HANG, |line| line.contains("serving DNS")).unwrap();
        daemon
    }

    fn ask(&self, name: &str) -> Answer {
        let server = SocketAddr::new(ip(LOCAL), 53);
        self.net.run(|| ask(server, name, "A", &patient())).unwrap().unwrap()
    }

    /// Waits until the cluster's names are answered by the server of that address.
    fn wait_for_upstream(&self, address: &str, daemon: &Daemon) {
        let started = Instant::now();
        while self.ask("who.cluster.local").data() != [address] {
            assert!(started.elapsed() < 3 * HANG, "not {address}:\n{}", daemon.lines().join("\n"));
            sleep(Duration::from_millis(100));
        }
    }

    fn metrics(&self) -> Metrics {
        Metrics(self.net.run(|| common::get(common::socket("127.0.0.1:9153"), "/metrics")).unwrap().1)
    }

    fn service_is(&self, state: &str) -> bool {
        let labels = [("name", "kube-dns-upstream"), ("state", state)];
        self.metrics().find("nodestub_upstream_service", &labels) == Some(1.0)
    }

    fn ready(&self) -> (u16, String) {
        self.net.run(|| common::get(common::socket("127.0.0.1:8181"), "/ready")).unwrap()
    }

    /// Where the kernel sends queries while nobody listens, as the metric says.
    fn falls_back_to(&self, target: &str) -> bool {
        let metrics = self.metrics();
        metrics.find("nodestub_fail_open", &[("address", LOCAL), ("to", target)]).is_some()
    }

    fn wait_until(&self, what: &str, daemon: &Daemon, holds: impl Fn() -> bool) {
        let started = Instant::now();
        while !holds() {
            assert!(started.elapsed() < HANG, "never {what}:\n{}", daemon.lines().join("\n"));
            sleep(Duration::from_millis(100));
        }
    }
}

#[test]
fn a_service_that_is_made_later_or_again_is_followed_and_the_cluster_dns_stands_in_meanwhile() {
    const NAME: &str =
        "a_service_that_is_made_later_or_again_is_followed_and_the_cluster_dns_stands_in_meanwhile";
    if !can_make_namespaces(NAME) {
        return;
    }
    let node = Node::new();
    let mut command = node.command();
    command.env("KUBE_DNS_SERVICE_HOST", KUBE_DNS).args(["--cluster-domain", "cluster.local"]);
    let daemon = node.start(command);
    node.wait_for_upstream(KUBE_DNS, &daemon);
    assert!(node.service_is("stand_in"));
    assert!(node.falls_back_to(KUBE_DNS));
    let (status, text) = node.ready();
    assert_eq!(status, 200, "{text}");
    assert!(text.contains("Service kube-system/kube-dns-upstream (-upstreamsvc) is not there"), "{text}");
    let complaints =
        || daemon.lines().iter().filter(|line| line.contains("kube-system/kube-dns-upstream")).count();
    assert_eq!(complaints(), 1, "{}", daemon.lines().join("\n"));

    *node.service.lock().unwrap() = Some(ip(UPSTREAM[0]));
    node.wait_for_upstream(UPSTREAM[0], &daemon);
    node.wait_until("found", &daemon, || node.service_is("found"));
    assert!(!node.ready().1.contains("is not there"));

    // Made again, it has another address.
    *node.service.lock().unwrap() = Some(ip(UPSTREAM[1]));
    node.wait_for_upstream(UPSTREAM[1], &daemon);
    // The rules outlive the Service of -upstreamsvc, which comes and goes with a manifest.
    assert!(node.falls_back_to(KUBE_DNS));
    // A name of the rest was never in danger.
    assert_eq!(node.ask("www.example.com").data(), [SITE_DNS]);
    assert_eq!(complaints(), 1, "{}", daemon.lines().join("\n"));
}

#[test]
fn what_the_environment_said_once_is_not_believed_when_the_cluster_says_otherwise() {
    if !can_make_namespaces("what_the_environment_said_once_is_not_believed_when_the_cluster_says_otherwise")
    {
        return;
    }
    let node = Node::new();
    *node.service.lock().unwrap() = Some(ip(UPSTREAM[1]));
    let mut command = node.command();
    command
        .env("KUBE_DNS_SERVICE_HOST", KUBE_DNS)
        .env("KUBE_DNS_UPSTREAM_SERVICE_HOST", UPSTREAM[0])
        .args(["--cluster-domain", "cluster.local"]);
    let daemon = node.start(command);
    node.wait_for_upstream(UPSTREAM[1], &daemon);
}

#[test]
fn answers_what_it_can_without_a_cluster_dns_and_serves_all_when_the_folder_names_one() {
    if !can_make_namespaces(
        "answers_what_it_can_without_a_cluster_dns_and_serves_all_when_the_folder_names_one",
    ) {
        return;
    }
    let node = Node::new();
    let mut command = node.command();
    command.args(["--cluster-domain", "cluster.local"]);
    let mut daemon = node.start(command);
    assert_eq!(node.ask("www.example.com").data(), [SITE_DNS]);
    assert_eq!(node.ask("who.cluster.local").rcode, "SERVFAIL");
    assert!(node.service_is("unknown"));
    let (status, text) = node.ready();
    assert_eq!(status, 503, "{text}");
    assert!(text.contains("the cluster DNS is not known"), "{text}");
    assert!(node.falls_back_to("nowhere"));
    assert!(daemon.try_wait().unwrap().is_none());

    std::fs::create_dir(node.facts()).unwrap();
    node.write_facts("1", &[("cluster-dns", KUBE_DNS), ("cluster-domain", "cluster.local")]);
    node.wait_for_upstream(KUBE_DNS, &daemon);
    node.wait_until("followed by the rules", &daemon, || node.falls_back_to(KUBE_DNS));
    node.write_facts("2", &[("cluster-dns", UPSTREAM[0]), ("cluster-domain", "cluster.local")]);
    node.wait_for_upstream(UPSTREAM[0], &daemon);
    node.wait_until("followed by the rules", &daemon, || node.falls_back_to(UPSTREAM[0]));
    assert_eq!(node.ready().0, 200, "{}", node.ready().1);
    let rules = node.net.nft_tables().unwrap();
    assert!(rules.contains(&"nodestub".to_owned()), "{rules:?}");
}

#[test]
fn waits_for_the_domain_where_the_folder_may_come_to_say_it_and_fails_where_there_is_none() {
    if !can_make_namespaces(
        "waits_for_the_domain_where_the_folder_may_come_to_say_it_and_fails_where_there_is_none",
    ) {
        return;
    }
    let node = Node::new();
    let mut without = node.net.spawn(node.command()).unwrap();
    assert!(!without.wait(HANG).unwrap().success());

    std::fs::create_dir(node.facts()).unwrap();
    let mut daemon = node.net.spawn(node.command()).unwrap();
    daemon.wait_for_line(HANG, |line| line.contains("not serving yet")).unwrap();
    assert!(node.net.nft_tables().unwrap().contains(&"nodestub".to_owned()));
    node.write_facts("1", &[("cluster-dns", KUBE_DNS), ("cluster-domain", "cluster.local")]);
    daemon.wait_for_line(HANG, |line| line.contains("serving DNS")).unwrap();
    node.wait_for_upstream(KUBE_DNS, &daemon);
    // The cluster DNS moves.
    node.write_facts("2", &[("cluster-dns", UPSTREAM[0]), ("cluster-domain", "cluster.local")]);
    node.wait_for_upstream(UPSTREAM[0], &daemon);
    daemon.terminate(HANG).unwrap();
}

#[test]
fn a_cluster_dns_that_was_known_once_is_looked_at_again_unless_the_corefile_says_until_ready() {
    let test = "a_cluster_dns_that_was_known_once_is_looked_at_again_unless_the_corefile_says_until_ready";
    if !can_make_namespaces(test) {
        return;
    }
    if std::env::var_os("NODESTUB_FULL").is_none() {
        return skip(test, "it takes two minutes; NODESTUB_FULL=1 runs it");
    }
    let started = |monitor: &str| {
        let ready = format!("ready 127.0.0.1:8181 {{\n monitor {monitor}\n }}");
        let node = Node::with(&[UPSTREAM[0], SITE_DNS], &COREFILE.replace("ready 127.0.0.1:8181", &ready));
        let mut command = node.command();
        command.env("KUBE_DNS_UPSTREAM_SERVICE_HOST", UPSTREAM[0]);
        command.args(["--cluster-domain", "cluster.local"]);
        let daemon = node.start(command);
        assert_eq!(node.ready().0, 200, "{}", node.ready().1);
        (node, daemon)
    };
    // The Service denies itself, three times in a row; then nothing is known of the cluster DNS.
    let (patient, first) = started("until-ready");
    let (watchful, second) = started("continuously");
    for (node, daemon) in [(&patient, &first), (&watchful, &second)] {
        let began = Instant::now();
        while !node.service_is("unknown") {
            assert!(began.elapsed() < 4 * HANG, "still known:\n{}", daemon.lines().join("\n"));
            sleep(Duration::from_secs(1));
        }
    }
    watchful.wait_until("unready", &second, || watchful.ready().0 == 503);
    assert_eq!(patient.ready().0, 200, "{}", patient.ready().1);
    assert_eq!(patient.ask("who.cluster.local").rcode, "SERVFAIL");
}

#[test]
fn chains_of_others_are_judged_by_what_the_rules_are_for_now_and_not_at_the_start() {
    if !can_make_namespaces("chains_of_others_are_judged_by_what_the_rules_are_for_now_and_not_at_the_start")
    {
        return;
    }
    let corefile = ". {\n bind 169.254.20.10 10.96.0.10\n forward . 10.5.5.5\n ready 127.0.0.1:8181\n}\n";
    let node = Node::with(&[SITE_DNS], corefile);
    // The host's queries to a Service's address are kube-proxy's; those to any other local address are ours.
    let mut guard = Command::new("nft");
    guard.arg(format!(
        "table inet guard {{ chain output {{ type filter hook output priority 0; ip daddr {KUBE_DNS} tcp dport 53 drop; }}; }}"
    ));
    assert!(node.net.output(guard).unwrap().status.success());
    std::fs::create_dir(node.facts()).unwrap();
    let mut command = node.command_on("169.254.20.10,10.96.0.10");
    // No look would come in time by itself.
    command.args(["--cluster-domain", "cluster.local", "-syncinterval", "1h"]);
    let daemon = node.start(command);
    let is_named = || node.ready().1.contains("chain output of table inet guard drops queries of the host");
    node.wait_until("named", &daemon, is_named);

    node.write_facts("1", &[("cluster-dns", KUBE_DNS)]);
    node.wait_until("gone, for the address is a Service's", &daemon, || !is_named());
    node.write_facts("2", &[("cluster-dns", UPSTREAM[0])]);
    node.wait_until("named again, for it is one no more", &daemon, is_named);
}
