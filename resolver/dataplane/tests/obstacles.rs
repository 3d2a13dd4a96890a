//! Chains of others, judged by packets: what is said to drop them drops them, the line that is said lets them pass, and
//! of chains that let them pass nothing is said.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise, in its helpers too")]

mod common;

use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::time::{Duration, Instant};

use common::{DNS_PORT, HEALTH_PORT, LOCAL, Node, desired, ip};
use nodestub_dataplane::obstacles::{Ears, Keeper, Report, look};
use nodestub_dataplane::{Parts, apply};
use nodestub_lab::skip::can_make_namespaces;
use nodestub_lab::{Options, ask, skip};

/// Answers that do not come are waited for this long; those that are to come, for as long as it takes.
const PATIENCE: Duration = Duration::from_millis(500);

/// Longer than anything takes that works.
const HANG: Duration = Duration::from_secs(120);

/// A node with servers, whose rules and addresses are ours; a pod and the host itself ask.
struct Scene {
    node: Node,
    /// Set for every line that is run.
    variable: Option<(&'static str, String)>,
}

impl Scene {
    fn new() -> Self {
        let node = Node::new();
        let _applied = node.net.block_on(async || apply(&desired(), Parts::ALL).await.unwrap()).unwrap();
        node.serve();
        Self { node, variable: None }
    }

    fn run(&self, lines: &str) {
        for line in lines.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let mut command = Command::new("sh");
            command.args(["-c", line]);
            command.envs(self.variable.iter().map(|(name, value)| (name, value)));
            let output = self.node.net.output(command).unwrap();
            assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        }
    }

    fn look(&self) -> Report {
        self.node.net.block_on(async || look(&desired()).await.unwrap()).unwrap()
    }

    /// Who gets no answer in this time: `pod` or `host`, the address, the port, and the transport.
    fn unanswered(&self, timeout: Duration) -> Vec<String> {
        let mut unanswered = Vec::new();
        for address in LOCAL.map(ip) {
            for (who, net) in [("pod", &self.node.pod), ("host", &self.node.net)] {
                for (transport, options) in [("udp", Options::default()), ("tcp", Options::tcp())] {
                    let options = Options { timeout, ..options };
                    if !net.run(|| answers(address, DNS_PORT, &options)).unwrap() {
                        unanswered.push(format!("{who} {address} {DNS_PORT} {transport}"));
                    }
                }
            }
            let probe = Options { timeout, ..Options::tcp() };
            if !self.node.net.run(|| answers(address, HEALTH_PORT, &probe)).unwrap() {
                unanswered.push(format!("host {address} {HEALTH_PORT} tcp"));
            }
        }
        unanswered
    }
}

fn answers(address: IpAddr, port: u16, options: &Options) -> bool {
    ask(SocketAddr::new(address, port), "a.test", "A", options).is_ok()
}

fn shown(report: &Report) -> String {
    report.findings.iter().map(|finding| format!("{finding}\n  {:#?}\n", finding.lines)).collect()
}

/// A firewall that drops our packets: what makes it, and the chains that are to be named.
struct Case {
    name: &'static str,
    rules: &'static str,
    chains: &'static [(&'static str, &'static str)],
    keeper: Keeper,
    is_certain: bool,
    /// A part of who is not answered.
    hurt: &'static str,
}

/// The packet is dropped, the chain is named, and after the printed lines it passes and nothing is left to say.
fn names_it_and_the_line_helps(cases: &[Case]) {
    for case in cases {
        let scene = Scene::new();
        assert_eq!(scene.unanswered(HANG), [""; 0], "{}", case.name);
        scene.run(case.rules);
        scene.is_named_and_helped(case);
    }
}

impl Scene {
    fn is_named_and_helped(&self, case: &Case) {
        let unanswered = self.unanswered(PATIENCE);
        assert!(unanswered.iter().any(|one| one.contains(case.hurt)), "{}: {unanswered:#?}", case.name);
        let report = self.look();
        let named: Vec<(String, &str)> =
            report.findings.iter().map(|finding| (finding.table_name(), finding.chain.as_str())).collect();
        let expected: Vec<(String, &str)> =
            case.chains.iter().map(|(table, chain)| ((*table).to_owned(), *chain)).collect();
        assert_eq!(named, expected, "{}:\n{}", case.name, shown(&report));
        for finding in &report.findings {
            assert_eq!(finding.keeper, case.keeper, "{}: {finding}", case.name);
            assert_eq!(finding.is_certain, case.is_certain, "{}: {finding}", case.name);
            assert!(!finding.culprits.is_empty(), "{}: {finding}", case.name);
            self.run(&finding.lines.join("\n"));
        }
        assert_eq!(self.unanswered(HANG), [""; 0], "{}, after\n{}", case.name, shown(&report));
        let report = self.look();
        assert_eq!(report, Report::default(), "{}, after the lines:\n{}", case.name, shown(&report));
    }
}

const NFT_POLICY: &str = "nft add table inet guard
    nft add chain inet guard input '{ type filter hook input priority 0; policy drop; }'
    nft add rule inet guard input ct state established,related accept
    nft add rule inet guard input iifname lo accept
    nft add rule inet guard input meta l4proto icmpv6 accept
    nft add rule inet guard input tcp dport 22 accept";

#[test]
fn names_chains_of_nft_that_drop_and_their_line_helps() {
    if !can_make_namespaces("names_chains_of_nft_that_drop_and_their_line_helps") {
        return;
    }
    let guard = |rules| Case {
        name: rules,
        rules,
        chains: &[("inet guard", "input")],
        keeper: Keeper::Nft,
        is_certain: true,
        hurt: "pod 169.254.20.10 53 udp",
    };
    names_it_and_the_line_helps(&[
        // The trap: our packets are never established.
        guard(NFT_POLICY),
        guard(
            "nft add table inet guard
            nft add chain inet guard input '{ type filter hook input priority 10; }'
            nft add chain inet guard dns
            nft add rule inet guard input meta l4proto { tcp, udp } th dport vmap { 53 : goto dns, 22 : accept }
            nft add rule inet guard dns iifname lo return
            nft add rule inet guard dns reject",
        ),
        guard(
            "nft add table inet guard
            nft add set inet guard allowed '{ type inet_service; flags interval; elements = { 20-22, 80, 8000-9000 }; }'
            nft add chain inet guard input '{ type filter hook input priority -10; }'
            nft add rule inet guard input iif lo accept
            nft add rule inet guard input ip6 nexthdr icmpv6 accept
            nft add rule inet guard input th dport != @allowed drop",
        ),
        Case {
            name: "answers, by an output chain that knows established connections only",
            rules: "nft add table ip guard
                nft add chain ip guard out '{ type filter hook output priority 0; policy drop; }'
                nft add rule ip guard out oif lo accept
                nft add rule ip guard out ct state vmap { established : accept, related : accept, new : accept }",
            chains: &[("ip guard", "out")],
            keeper: Keeper::Nft,
            is_certain: true,
            hurt: "pod 169.254.20.10 53 tcp",
        },
        Case {
            name: "untracked packets in prerouting, by a jump, IPv6",
            rules: "nft add table ip6 guard
                nft add chain ip6 guard early '{ type filter hook prerouting priority -150; }'
                nft add chain ip6 guard strict
                nft add rule ip6 guard early iifname != lo jump strict
                nft add rule ip6 guard strict ct state untracked meta l4proto { tcp, udp } counter drop",
            chains: &[("ip6 guard", "early")],
            keeper: Keeper::Nft,
            is_certain: true,
            hurt: "pod fd00:20::a 53 udp",
        },
        Case {
            name: "health probes, and answers of TCP that are no first segments",
            rules: "nft add table inet guard
                nft add chain inet guard out '{ type filter hook output priority 5; }'
                nft add rule inet guard out tcp sport 8080 tcp flags '&' '(syn|ack)' == ack drop
                nft add chain inet guard post '{ type filter hook postrouting priority 5; }'
                nft add rule inet guard post ip daddr 10.77.0.0/24 tcp sport 53 tcp flags syn / syn,rst,ack drop
                nft add rule inet guard post ip saddr 169.254.0.0/16 udp dport 53 th sport 1024-65535 drop",
            chains: &[("inet guard", "out"), ("inet guard", "post")],
            keeper: Keeper::Nft,
            is_certain: true,
            hurt: "host 169.254.20.10 8080 tcp",
        },
        Case {
            name: "by the pod's own address, so that it only may",
            rules: "nft add table inet guard
                nft add chain inet guard input '{ type filter hook input priority 0; }'
                nft add rule inet guard input ip saddr 10.77.0.0/24 udp dport 53 drop",
            chains: &[("inet guard", "input")],
            keeper: Keeper::Nft,
            is_certain: false,
            hurt: "pod 169.254.20.10 53 udp",
        },
        Case {
            name: "by a mark that a rule before gives",
            rules: "nft add table inet guard
                nft add chain inet guard first '{ type filter hook prerouting priority -200; }'
                nft add rule inet guard first udp dport 53 meta mark set meta mark or 0x8000
                nft add chain inet guard input '{ type filter hook input priority 0; }'
                nft add rule inet guard input meta mark and 0x8000 == 0x8000 drop",
            chains: &[("inet guard", "input")],
            keeper: Keeper::Nft,
            is_certain: true,
            hurt: "pod 169.254.20.10 53 udp",
        },
    ]);
}

#[test]
fn names_chains_of_iptables_over_nftables_and_their_line_helps() {
    if !can_make_namespaces("names_chains_of_iptables_over_nftables_and_their_line_helps") {
        return;
    }
    iptables("iptables-nft", "ip", Keeper::IptablesNft);
}

#[test]
fn names_chains_of_iptables_legacy_and_their_line_helps() {
    if !can_make_namespaces("names_chains_of_iptables_legacy_and_their_line_helps") {
        return;
    }
    iptables("iptables-legacy", "iptables-legacy", Keeper::IptablesLegacy);
}

/// The same rules for both kinds of iptables.
fn iptables(program: &str, table: &str, keeper: Keeper) {
    let cases = [
        (
            "filter",
            "INPUT",
            "X -P INPUT DROP
            X -A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
            X -A INPUT -i lo -j ACCEPT
            X -A INPUT -p tcp --dport 22 -j ACCEPT
            X -A INPUT -p udp --dport 67:68 --sport 67:68 -j ACCEPT",
        ),
        (
            "filter",
            "INPUT",
            "X -N GUARD
            X -A INPUT -i lo -j ACCEPT
            X -A INPUT -m comment --comment guarded -j GUARD
            X -A GUARD -p tcp -m multiport --dports 22,80,8000:9000 -j RETURN
            X -A GUARD -m addrtype --dst-type LOCAL -m limit --limit 5/min -j LOG
            X -A GUARD -m state --state ESTABLISHED -j RETURN
            X -A GUARD -j REJECT",
        ),
        (
            "raw",
            "PREROUTING",
            "X -t raw -A PREROUTING -p udp ! --dport 5353 ! -i lo -m mark ! --mark 1/1 -j DROP",
        ),
        (
            "mangle",
            "OUTPUT",
            "X -t mangle -A OUTPUT -m conntrack ! --ctstate NEW,ESTABLISHED -p udp -j MARK --or-mark 0x40
            X -t mangle -A OUTPUT ! -o lo -m mark --mark 0x40/0x40 -g DOOM
            X -t mangle -A OUTPUT -j ACCEPT",
        ),
    ];
    for (name, chain, rules) in cases {
        let rules = rules.replace("X ", &format!("{program} -w "));
        let rules = if rules.contains("DOOM") {
            format!("{program} -w -t mangle -N DOOM\n{program} -w -t mangle -A DOOM -j DROP\n{rules}")
        } else {
            rules
        };
        let chains: &'static [(&'static str, &'static str)] =
            Box::leak(Box::new([(&*Box::leak(format!("{table} {name}").into_boxed_str()), chain)]));
        names_it_and_the_line_helps(&[Case {
            name: Box::leak(rules.clone().into_boxed_str()),
            rules: Box::leak(rules.into_boxed_str()),
            chains,
            keeper,
            is_certain: true,
            hurt: "pod 169.254.20.10 53 udp",
        }]);
    }
}

#[test]
fn names_chains_of_ip6tables_of_both_kinds_and_their_line_helps() {
    if !can_make_namespaces("names_chains_of_ip6tables_of_both_kinds_and_their_line_helps") {
        return;
    }
    for (program, table, keeper) in [
        ("ip6tables-nft", "ip6 filter", Keeper::IptablesNft),
        ("ip6tables-legacy", "ip6tables-legacy filter", Keeper::IptablesLegacy),
    ] {
        let rules = "X -P INPUT DROP
            X -A INPUT -i lo -j ACCEPT
            X -A INPUT -p ipv6-icmp -j ACCEPT
            X -A INPUT -s fe80::/10 -d ff02::/16 -p udp -j ACCEPT
            X -A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT";
        names_it_and_the_line_helps(&[Case {
            name: program,
            rules: Box::leak(rules.replace("X ", &format!("{program} -w ")).into_boxed_str()),
            chains: Box::leak(Box::new([(table, "INPUT")])),
            keeper,
            is_certain: true,
            hurt: "pod fd00:20::a 53 tcp",
        }]);
    }
}

#[test]
fn names_the_chain_of_firewalld_and_its_lines_help() {
    const TEST: &str = "names_the_chain_of_firewalld_and_its_lines_help";
    if !can_make_namespaces(TEST) {
        return;
    }
    for program in ["firewalld", "dbus-daemon"] {
        if Command::new(program).arg("--version").output().is_err() {
            skip(TEST, &format!("needs {program}"));
            return;
        }
    }
    let mut scene = Scene::new();
    let folder = tempfile::tempdir().unwrap();
    let address = format!("unix:path={}/bus", folder.path().display());
    let mut bus = Command::new("dbus-daemon");
    bus.args(["--session", "--nofork", "--nopidfile", "--print-address"]).arg(format!("--address={address}"));
    let bus = scene.node.net.spawn(bus).unwrap();
    bus.wait_for_line(HANG, |line| line.contains("unix:path")).unwrap();
    let mut firewalld = Command::new("firewalld");
    firewalld.args(["--nofork", "--nopid", "--system-config"]).arg(folder.path());
    firewalld.arg("--log-file").arg(folder.path().join("log")).env("DBUS_SYSTEM_BUS_ADDRESS", &address);
    let _firewalld = scene.node.net.spawn(firewalld).unwrap();
    scene.variable = Some(("DBUS_SYSTEM_BUS_ADDRESS", address));
    scene.run("for n in $(seq 300); do firewall-cmd --state && exit; sleep 0.2; done; exit 1");
    scene.is_named_and_helped(&Case {
        name: "firewalld as it comes",
        rules: "",
        chains: &[("inet firewalld", "filter_INPUT")],
        keeper: Keeper::Firewalld,
        is_certain: true,
        hurt: "pod 169.254.20.10 53 udp",
    });
}

#[test]
fn says_nothing_of_chains_that_let_us_pass() {
    if !can_make_namespaces("says_nothing_of_chains_that_let_us_pass") {
        return;
    }
    for rules in [
        // What is often there, and harmless: reasons stand in `obstacles`.
        "nft add table inet guard
        nft add set inet guard banned '{ type ipv4_addr; flags timeout; }'
        nft add chain inet guard raw '{ type filter hook prerouting priority -300; }'
        nft add rule inet guard raw fib saddr . iif oif missing counter drop
        nft add chain inet guard input '{ type filter hook input priority 0; policy drop; }'
        nft add rule inet guard input ct state invalid drop
        nft add rule inet guard input ct status dnat drop
        nft add rule inet guard input ip saddr @banned drop
        nft add rule inet guard input iifname lo accept
        nft add rule inet guard input ct state vmap { established : accept, invalid : drop, untracked : accept }
        nft add rule inet guard input limit rate 5/second accept
        nft add chain inet guard forward '{ type filter hook forward priority 0; policy drop; }'
        nft add chain inet guard nat '{ type nat hook prerouting priority -100; }'
        nft add rule inet guard nat udp dport 53 drop",
        "nft add table ip guard
        nft add chain ip guard input '{ type filter hook input priority 0; }'
        nft add rule ip guard input udp dport 53 fib daddr type != local drop
        nft add rule ip guard input tcp dport 1-52 drop
        nft add rule ip guard input ip daddr 10.77.0.1 udp dport 53 drop
        nft add rule ip guard input meta mark 0x1 drop",
        // What a kubelet and kube-proxy leave in filter.
        "X -N KUBE-FIREWALL
        X -A INPUT -j KUBE-FIREWALL
        X -A OUTPUT -j KUBE-FIREWALL
        X -A KUBE-FIREWALL -m mark --mark 0x8000/0x8000 -j DROP
        X -A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP
        X -P FORWARD DROP
        X -t raw -A PREROUTING -m rpfilter --invert -j DROP
        X -A INPUT -m conntrack --ctstate INVALID -j DROP
        X -A INPUT -p tcp ! --syn -m conntrack --ctstate NEW -j DROP
        X -A INPUT -p udp -m multiport --dports 111,137:139 -j DROP
        X -A INPUT -p udp --dport 53 -m addrtype ! --dst-type LOCAL -j DROP",
    ] {
        for program in ["iptables-nft", "iptables-legacy"] {
            if !rules.contains("X ") && program == "iptables-legacy" {
                continue;
            }
            let scene = Scene::new();
            scene.run(&rules.replace("X ", &format!("{program} -w ")));
            assert_eq!(scene.unanswered(HANG), [""; 0], "{rules}");
            let report = scene.look();
            assert_eq!(report, Report::default(), "{rules}\n{}", shown(&report));
        }
    }
}

#[test]
fn prints_no_line_with_names_that_a_shell_would_take_for_something_else() {
    if !can_make_namespaces("prints_no_line_with_names_that_a_shell_would_take_for_something_else") {
        return;
    }
    let scene = Scene::new();
    scene.run(
        "printf 'table inet guard { chain a/b { type filter hook input priority 0; policy drop; iif lo accept; }; }' | nft -f -",
    );
    let report = scene.look();
    assert_eq!(report.findings.len(), 1);
    assert_eq!(report.findings[0].chain, "a/b");
    assert!(report.findings[0].lines.is_empty(), "{}", shown(&report));
}

#[test]
fn hears_that_others_changed_rules_and_takes_a_flood_for_one_change() {
    if !can_make_namespaces("hears_that_others_changed_rules_and_takes_a_flood_for_one_change") {
        return;
    }
    let scene = Scene::new();
    let changes = scene.node.net.block_on(async || {
        let mut ears = Ears::open().unwrap();
        let mut heard = 0;
        for flood in 0..2 {
            let mut command = Command::new("sh");
            let many = format!("for n in $(seq 50); do nft add table ip flood{flood}_$n; done");
            assert!(command.args(["-c", &many]).status().unwrap().success());
            tokio::time::timeout(HANG, ears.changed()).await.unwrap().unwrap();
            heard += 1;
            // Fifty changes, and nothing is left to hear.
            let more = tokio::time::timeout(Duration::from_secs(1), ears.changed()).await;
            assert!(more.is_err(), "{more:?}");
        }
        heard
    });
    assert_eq!(changes.unwrap(), 2);
}

#[test]
fn reads_only_what_our_packets_come_to() {
    if !can_make_namespaces("reads_only_what_our_packets_come_to") {
        return;
    }
    let scene = Scene::new();
    let file = tempfile::NamedTempFile::new().unwrap();
    // Some 20,000 rules: for each of 5,000 Services a chain in nat and one in filter, as kube-proxy has them.
    let mut text = String::from(
        "table ip proxy {\n chain pre { type nat hook prerouting priority -100; }\n chain input { type filter hook input priority 0; ct state new jump services; }\n chain services { }\n}\n",
    );
    for n in 0..5000 {
        text.push_str(&format!(
            "add chain ip proxy svc{n}\nadd rule ip proxy svc{n} counter dnat to 10.0.{}.{}\n\
             add rule ip proxy pre ip daddr 10.96.{}.{} udp dport 53 jump svc{n}\n\
             add rule ip proxy services ip daddr 10.97.{}.{} tcp dport 80 drop\n\
             add rule ip proxy input ip daddr 10.98.{}.{} udp dport 53 drop\n",
            n / 250,
            n % 250,
            n / 250,
            n % 250,
            n / 250,
            n % 250,
            n / 250,
            n % 250
        ));
    }
    std::fs::write(file.path(), text).unwrap();
    scene.run(&format!("nft -f {}", file.path().display()));
    let before = Instant::now();
    let report = scene.look();
    println!("looked through 20,000 foreign rules in {:?}", before.elapsed());
    assert_eq!(report, Report::default());
}
