//! The same over what kube-proxy really uses: IPVS, and iptables-legacy with its masquerade; see `common/cluster.rs`.
//!
//! The kernel of a build machine may have neither; the virtual machine of `tests/vm` has both.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise, in its helpers too")]

#[path = "common/cluster.rs"]
#[expect(dead_code, reason = "every test file uses another part of it")]
mod cluster;

use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::process::Command;
use std::time::Duration;

use cluster::{CLUSTER_DNS, Cluster, DNS_PORT, KUBE_DNS, LOCAL, PATIENCE, ask_udp, ip};
use nodestub_dataplane::desired::DEFAULT_DEVICE;
use nodestub_dataplane::proof::{Passage, Question, Why, try_fail_open};
use nodestub_dataplane::{Desired, Parts, apply};
use nodestub_lab::Netns;
use nodestub_lab::skip::{can_make_namespaces, skip};

/// What a question waits, three times, for an answer that does not come. Where one must come, it is asked again.
const IMPATIENCE: Duration = Duration::from_millis(500);

fn succeeds(net: &Netns, line: &str) -> bool {
    let mut words = line.split_whitespace();
    let mut command = Command::new(words.next().unwrap());
    command.args(words);
    net.output(command).is_ok_and(|output| output.status.success())
}

fn run(net: &Netns, line: &str) {
    assert!(succeeds(net, line), "{line}");
}

/// A cluster without its DNAT: with one address of each family, and what kube-proxy would have set up.
fn set_up(kube_proxy: &[String]) -> (Cluster, Desired) {
    let cluster = Cluster::new();
    run(&cluster.node, "nft delete table inet lab_nat");
    for line in kube_proxy {
        run(&cluster.node, line);
    }
    let wish = Desired::new(&LOCAL.map(ip), DEFAULT_DEVICE, NonZeroU16::new(DNS_PORT).unwrap(), None);
    let wish = LOCAL
        .into_iter()
        .zip(KUBE_DNS)
        .fold(wish.unwrap(), |wish, (local, target)| wish.with_fallback(ip(local), ip(target)).unwrap());
    cluster.node.block_on(async || drop(apply(&wish, Parts::ALL).await.unwrap())).unwrap();
    (cluster, wish)
}

/// What our own question finds; a busy machine gets several tries.
fn finds(cluster: &Cluster, wish: &Desired, local: &str, expected: &Passage) {
    let address = ip(local);
    let question =
        Question { query: b"who?", is_answer: &|octets| octets == b"cluster", patience: IMPATIENCE };
    let once =
        || cluster.node.block_on(async || try_fail_open(wish, address, question).await.unwrap()).unwrap();
    let tries: Vec<_> = (0..10).map(|_| once()).take_while(|one| one != expected).collect();
    assert!(tries.len() < 10, "{address}: {tries:?}");
}

/// The same, and while nobody listens a pod finds it too.
fn pod_finds(cluster: &Cluster, wish: &Desired, local: &str, expected: &Passage) {
    finds(cluster, wish, local, expected);
    let server = SocketAddr::new(ip(local), DNS_PORT);
    let open = *expected == Passage::Open;
    let answer = ask_udp(&cluster.pod, 0, server, if open { PATIENCE } else { IMPATIENCE });
    assert_eq!(answer == "cluster", open, "{server}: {answer}");
}

#[test]
fn works_over_ipvs_and_not_without_the_service_there() {
    const NAME: &str = "works_over_ipvs_and_not_without_the_service_there";
    if !can_make_namespaces(NAME) {
        return;
    }
    let probe = Netns::new().unwrap();
    if !succeeds(&probe, "ipvsadm -Ln") || !succeeds(&probe, "ip link add probe0 type dummy") {
        skip(NAME, "this kernel has no IPVS or no dummy devices, or ipvsadm is not installed");
        return;
    }
    let mut lines: Vec<String> = vec!["ip link add kube-ipvs0 type dummy".into()];
    let service = |family: usize| match family {
        0 => (format!("{}:53", KUBE_DNS[0]), format!("{}:53", CLUSTER_DNS[0])),
        _ => (format!("[{}]:53", KUBE_DNS[1]), format!("[{}]:53", CLUSTER_DNS[1])),
    };
    for family in [0, 1] {
        lines.push(format!("ip address add {} dev kube-ipvs0", KUBE_DNS[family]));
        let (address, server) = service(family);
        lines.push(format!("ipvsadm -A -u {address} -s rr"));
        lines.push(format!("ipvsadm -a -u {address} -r {server} -m"));
    }
    let (cluster, wish) = set_up(&lines);
    // As kube-proxy sets it.
    cluster.node.set_sysctl("net/ipv4/vs/conntrack", "1").unwrap();
    for family in [0, 1] {
        let listener = cluster.listen(ip(LOCAL[family]), "listener");
        finds(&cluster, &wish, LOCAL[family], &Passage::Open);
        drop(listener);
        pod_finds(&cluster, &wish, LOCAL[family], &Passage::Open);
        let (address, server) = service(family);
        run(&cluster.node, &format!("ipvsadm -D -u {address}"));
        pod_finds(&cluster, &wish, LOCAL[family], &Passage::Closed(Why::TargetSilent(ip(KUBE_DNS[family]))));
        run(&cluster.node, &format!("ipvsadm -A -u {address} -s rr"));
        run(&cluster.node, &format!("ipvsadm -a -u {address} -r {server} -m"));
        pod_finds(&cluster, &wish, LOCAL[family], &Passage::Open);
    }
}

#[test]
fn works_over_iptables_legacy_as_kube_proxy_writes_it_and_not_without() {
    const NAME: &str = "works_over_iptables_legacy_as_kube_proxy_writes_it_and_not_without";
    if !can_make_namespaces(NAME) {
        return;
    }
    let probe = Netns::new().unwrap();
    if !["iptables-legacy", "ip6tables-legacy"]
        .iter()
        .all(|one| succeeds(&probe, &format!("{one} -t nat -L -n")))
    {
        skip(NAME, "this kernel has no iptables-legacy, or the program is not installed");
        return;
    }
    let mut lines = Vec::new();
    let families = [("iptables-legacy", "10.77.0.0/24"), ("ip6tables-legacy", "fd77::/64")];
    for ((program, pods), (service, server)) in
        families.into_iter().zip(KUBE_DNS.into_iter().zip(CLUSTER_DNS))
    {
        let to = if server.contains(':') { format!("[{server}]:53") } else { format!("{server}:53") };
        for rule in [
            "-N KUBE-SERVICES".to_owned(),
            "-N KUBE-SVC-DNS".to_owned(),
            "-A PREROUTING -j KUBE-SERVICES".to_owned(),
            "-A OUTPUT -j KUBE-SERVICES".to_owned(),
            format!("-A KUBE-SERVICES -d {service} -p udp --dport 53 -j KUBE-SVC-DNS"),
            format!("-A KUBE-SVC-DNS ! -s {pods} -j MARK --or-mark 0x4000"),
            format!("-A KUBE-SVC-DNS -p udp -j DNAT --to-destination {to}"),
            "-A POSTROUTING -m mark --mark 0x4000/0x4000 -j MASQUERADE --random-fully".to_owned(),
        ] {
            lines.push(format!("{program} -w -t nat {rule}"));
        }
    }
    let (cluster, wish) = set_up(&lines);
    // So that the node itself can ask for the Service.
    for (anywhere, gateway) in ["0.0.0.0", "::"].into_iter().zip(CLUSTER_DNS) {
        cluster.node.add_route(ip(anywhere), 0, ip(gateway)).unwrap();
    }
    for (family, (program, _)) in families.into_iter().enumerate() {
        pod_finds(&cluster, &wish, LOCAL[family], &Passage::Open);
        run(&cluster.node, &format!("{program} -w -t nat -F KUBE-SVC-DNS"));
        pod_finds(&cluster, &wish, LOCAL[family], &Passage::Closed(Why::TargetSilent(ip(KUBE_DNS[family]))));
    }
}
