//! Whether fail-open works, by a query of our own: what it finds is what a pod finds; see `common/cluster.rs`.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise, in its helpers too")]

#[path = "common/cluster.rs"]
#[expect(dead_code, reason = "every test file uses another part of it")]
mod cluster;

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::process::Command;
use std::time::Duration;

use cluster::{CLUSTER_DNS, Cluster, DNS_PORT, KUBE_DNS, LOCAL, PATIENCE, SERVICE, ask_udp, ip};
use nodestub_dataplane::desired::{ASK_DEVICE, DEFAULT_DEVICE, HEAR_DEVICE};
use nodestub_dataplane::proof::{Obstacle, Passage, Question, Why, try_fail_open};
use nodestub_dataplane::{Desired, Parts, apply, cleanup};
use nodestub_lab::skip::{can_make_namespaces, skip};
use nodestub_lab::{Netns, nat};

/// What a question waits, three times, for an answer that does not come. Where one must come, it is asked again.
const IMPATIENCE: Duration = Duration::from_millis(300);

/// Both local addresses with their fallbacks, and both service addresses.
fn everything() -> Desired {
    let wish = Desired::new(&LOCAL.map(ip), DEFAULT_DEVICE, NonZeroU16::new(DNS_PORT).unwrap(), None);
    let wish = LOCAL
        .into_iter()
        .zip(KUBE_DNS)
        .fold(wish.unwrap(), |wish, (local, target)| wish.with_fallback(ip(local), ip(target)).unwrap());
    wish.intercept(&SERVICE.map(ip)).unwrap()
}

fn set_up(cluster: &Cluster, wish: &Desired) {
    cluster
        .node
        .block_on(async || drop(apply(wish, Parts { rules: true, addresses: true }).await.unwrap()))
        .unwrap();
}

fn try_once(net: &Netns, wish: &Desired, address: IpAddr) -> Result<Passage, Obstacle> {
    let question =
        Question { query: b"who?", is_answer: &|octets| octets == b"cluster", patience: IMPATIENCE };
    net.block_on(async || try_fail_open(wish, address, question).await).unwrap()
}

/// The same, for a busy machine: what works is found within ten tries.
fn works(cluster: &Cluster, wish: &Desired, address: IpAddr) {
    let tries: Vec<_> = (0..10)
        .map_while(|_| Some(try_once(&cluster.node, wish, address).unwrap()))
        .take_while(|one| *one != Passage::Open)
        .collect();
    assert!(tries.len() < 10, "{address}: {tries:?}");
    // And a pod says so too.
    let server = SocketAddr::new(address, DNS_PORT);
    assert_eq!(ask_udp(&cluster.pod, 0, server, PATIENCE), "cluster", "{address}");
}

/// Our question is not answered, for this reason, and a pod's neither.
fn is_closed(cluster: &Cluster, wish: &Desired, address: IpAddr, why: Why) {
    assert_eq!(try_once(&cluster.node, wish, address).unwrap(), Passage::Closed(why), "{address}");
    let server = SocketAddr::new(address, DNS_PORT);
    assert_ne!(ask_udp(&cluster.pod, 0, server, IMPATIENCE), "cluster", "{address}");
}

fn nft(net: &Netns, rules: &str) {
    let mut command = Command::new("nft");
    command.arg(rules);
    let output = net.output(command).unwrap();
    assert!(output.status.success(), "{output:?}");
}

fn can_play(test: &str) -> bool {
    let has_nft = Command::new("nft").arg("--version").output().is_ok();
    if !has_nft {
        skip(test, "nft is not installed");
    }
    has_nft && can_make_namespaces(test)
}

#[test]
fn says_that_it_works_does_not_and_works_again_as_a_pod_finds_it() {
    if !can_play("says_that_it_works_does_not_and_works_again_as_a_pod_finds_it") {
        return;
    }
    let cluster = Cluster::new();
    let wish = everything();
    set_up(&cluster, &wish);
    // So that the node itself can ask for the Service.
    for (anywhere, gateway) in ["0.0.0.0", "::"].into_iter().zip(CLUSTER_DNS) {
        cluster.node.add_route(ip(anywhere), 0, ip(gateway)).unwrap();
    }
    let all = [LOCAL[0], LOCAL[1], SERVICE[0], SERVICE[1]].map(ip);
    for address in all {
        works(&cluster, &wish, address);
    }

    // kube-proxy's rules go and come.
    nft(&cluster.node, "delete table inet lab_nat");
    for (address, target) in LOCAL.map(ip).into_iter().zip(KUBE_DNS.map(ip)) {
        is_closed(&cluster, &wish, address, Why::TargetSilent(target));
    }
    for address in SERVICE.map(ip) {
        is_closed(&cluster, &wish, address, Why::Silence);
    }
    let from = KUBE_DNS.into_iter().chain(SERVICE).map(ip);
    let to = CLUSTER_DNS.into_iter().chain(CLUSTER_DNS).map(ip);
    nat::translate(&cluster.node, &from.zip(to).collect::<Vec<_>>()).unwrap();
    for address in all {
        works(&cluster, &wish, address);
    }

    // Forwarding is switched off and on.
    for (name, addresses) in [
        ("net/ipv4/ip_forward", [LOCAL[0], SERVICE[0]]),
        ("net/ipv6/conf/all/forwarding", [LOCAL[1], SERVICE[1]]),
    ] {
        cluster.node.set_sysctl(name, "0").unwrap();
        for address in addresses.map(ip) {
            is_closed(&cluster, &wish, address, Why::NoForwarding);
        }
        cluster.node.set_sysctl(name, "1").unwrap();
        for address in addresses.map(ip) {
            works(&cluster, &wish, address);
        }
    }

    // Somebody drops what is forwarded, and no longer.
    nft(
        &cluster.node,
        "table inet fence { chain forward { type filter hook forward priority 0; udp dport 53 drop; }; }",
    );
    for (address, target) in LOCAL.map(ip).into_iter().zip(KUBE_DNS.map(ip)) {
        is_closed(&cluster, &wish, address, Why::NotForwarded(target));
    }
    nft(&cluster.node, "delete table inet fence");
    for address in all {
        works(&cluster, &wish, address);
    }
}

#[test]
fn takes_no_answer_for_the_clusters_that_is_a_listeners() {
    if !can_play("takes_no_answer_for_the_clusters_that_is_a_listeners") {
        return;
    }
    let cluster = Cluster::new();
    let wish = everything();
    set_up(&cluster, &wish);
    let local = ip(LOCAL[0]);
    // It says the cluster's word, and the rule is gone that leads past it.
    let _listener = cluster.listen(local, "cluster");
    nft(&cluster.node, "flush chain inet nodestub prerouting");
    assert!(matches!(try_once(&cluster.node, &wish, local).unwrap(), Passage::Closed(_)));
}

#[test]
fn works_through_a_masquerade_and_a_loose_filter_and_says_when_a_strict_one_forbids_it() {
    if !can_play("works_through_a_masquerade_and_a_loose_filter_and_says_when_a_strict_one_forbids_it") {
        return;
    }
    let cluster = Cluster::new();
    let wish = everything();
    set_up(&cluster, &wish);
    // As kube-proxy does with what comes from no pod.
    nft(
        &cluster.node,
        "table inet kube { chain post { type nat hook postrouting priority 100; oifname \"dns0\" masquerade; }; }",
    );
    for address in [LOCAL[0], LOCAL[1], SERVICE[0], SERVICE[1]].map(ip) {
        works(&cluster, &wish, address);
    }
    cluster.node.set_sysctl("net/ipv4/conf/all/rp_filter", "2").unwrap();
    works(&cluster, &wish, ip(LOCAL[0]));
    cluster.node.set_sysctl("net/ipv4/conf/all/rp_filter", "1").unwrap();
    let strict = try_once(&cluster.node, &wish, ip(LOCAL[0])).unwrap_err();
    assert!(matches!(strict, Obstacle::StrictFilter), "{strict}");
    works(&cluster, &wish, ip(LOCAL[1]));
}

#[test]
fn adopts_the_pair_of_a_former_process_puts_it_right_and_cleanup_takes_it_away() {
    if !can_play("adopts_the_pair_of_a_former_process_puts_it_right_and_cleanup_takes_it_away") {
        return;
    }
    let cluster = Cluster::new();
    let wish = everything();
    set_up(&cluster, &wish);
    works(&cluster, &wish, ip(LOCAL[0]));
    let index = index(&cluster.node, ASK_DEVICE);
    works(&cluster, &wish, ip(LOCAL[0]));
    assert_eq!(self::index(&cluster.node, ASK_DEVICE), index);

    for (name, value) in [("accept_local", "0"), ("rp_filter", "1")] {
        cluster.node.set_sysctl(&format!("net/ipv4/conf/{HEAR_DEVICE}/{name}"), value).unwrap();
    }
    let mut down = Command::new("ip");
    down.args(["link", "set", ASK_DEVICE, "down", "arp", "on", "address", "02:00:00:00:00:01"]);
    assert!(cluster.node.output(down).unwrap().status.success());
    for address in [LOCAL[0], LOCAL[1]].map(ip) {
        works(&cluster, &wish, address);
    }
    // Nobody's neighbour, and no address that others could take for the node's.
    let carried: Vec<IpAddr> =
        cluster.node.addresses(HEAR_DEVICE).unwrap().into_iter().map(|(address, _)| address).collect();
    assert!(carried.iter().all(IpAddr::is_loopback), "{carried:?}");
    assert_eq!(cluster.node.addresses(ASK_DEVICE).unwrap().len(), 0);

    let removed = cluster.node.block_on(async || cleanup().await.unwrap()).unwrap();
    assert!(removed.to_string().contains(ASK_DEVICE), "{removed}");
    assert!(cluster.node.addresses(ASK_DEVICE).is_err() && cluster.node.addresses(HEAR_DEVICE).is_err());
    let removed = cluster.node.block_on(async || cleanup().await.unwrap()).unwrap();
    assert_eq!(removed.to_string(), "there was nothing to remove");
}

#[test]
fn leaves_a_device_alone_that_has_the_name_and_is_not_ours() {
    if !can_play("leaves_a_device_alone_that_has_the_name_and_is_not_ours") {
        return;
    }
    let cluster = Cluster::new();
    let wish = everything();
    set_up(&cluster, &wish);
    for kind in ["bridge", "veth"] {
        let ip_link = |action: &str, more: &[&str]| {
            let mut command = Command::new("ip");
            command.args(["link", action, ASK_DEVICE]).args(more);
            assert!(cluster.node.output(command).unwrap().status.success());
        };
        ip_link("add", &["type", kind]);
        let error = try_once(&cluster.node, &wish, ip(LOCAL[0])).unwrap_err();
        assert!(matches!(error, Obstacle::ForeignDevice(ASK_DEVICE)), "{error}");
        let _removed = cluster.node.block_on(async || cleanup().await.unwrap()).unwrap();
        assert!(cluster.node.addresses(ASK_DEVICE).is_ok());
        ip_link("delete", &[]);
    }
    set_up(&cluster, &wish);
    works(&cluster, &wish, ip(LOCAL[0]));
}

#[test]
fn makes_a_pair_of_which_one_end_was_taken_away_anew() {
    if !can_play("makes_a_pair_of_which_one_end_was_taken_away_anew") {
        return;
    }
    let cluster = Cluster::new();
    let wish = everything();
    set_up(&cluster, &wish);
    works(&cluster, &wish, ip(LOCAL[0]));
    // One after the other: older kernels rename no device that is up.
    for change in [&["down"][..], &["name", "elsewhere"]] {
        let mut command = Command::new("ip");
        command.args(["link", "set", HEAR_DEVICE]).args(change);
        assert!(cluster.node.output(command).unwrap().status.success());
    }
    works(&cluster, &wish, ip(LOCAL[0]));
    assert!(cluster.node.addresses("elsewhere").is_err());
}

#[test]
fn says_why_it_cannot_be_tried_where_there_is_nothing_to_try() {
    if !can_play("says_why_it_cannot_be_tried_where_there_is_nothing_to_try") {
        return;
    }
    let net = Netns::new().unwrap();
    let wish = everything();
    let foreign = try_once(&net, &wish, ip("192.0.2.1")).unwrap_err();
    assert!(matches!(foreign, Obstacle::NoFallback(_)), "{foreign}");
    let lonely = try_once(&net, &wish, ip(LOCAL[0])).unwrap_err();
    assert!(matches!(lonely, Obstacle::NoSource { is_ipv4: true }), "{lonely}");
}

fn index(net: &Netns, device: &str) -> String {
    let mut list = Command::new("ip");
    list.args(["-o", "link", "show", device]);
    let output = net.output(list).unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().split(':').next().unwrap().to_owned()
}
