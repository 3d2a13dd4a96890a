//! The laboratory's own promises: what a test may believe of namespaces, pods and connection tracking.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise, in its helpers too")]

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::Command;
use std::time::Duration;

use nodestub_lab::skip::can_make_namespaces;
use nodestub_lab::{Netns, Options, Pod, Transport, Upstream, ask, conntrack, upstream};

const NODE: &str = "10.77.0.1";
const POD: &str = "10.77.0.2";
const NODE_V6: &str = "fd77::1";
const POD_V6: &str = "fd77::2";

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A node and a pod, joined, with both families.
fn joined() -> (Netns, Netns) {
    let (node, pod) = (Netns::new().unwrap(), Netns::new().unwrap());
    node.join("pod0", &pod, "eth0").unwrap();
    node.add_address("pod0", ip(NODE), 24).unwrap();
    pod.add_address("eth0", ip(POD), 24).unwrap();
    node.add_address("pod0", ip(NODE_V6), 64).unwrap();
    pod.add_address("eth0", ip(POD_V6), 64).unwrap();
    (node, pod)
}

#[test]
fn carries_datagrams_between_two_namespaces_in_both_families() {
    if !can_make_namespaces("carries_datagrams_between_two_namespaces_in_both_families") {
        return;
    }
    let (node, pod) = joined();
    for (server, client) in [(NODE, POD), (NODE_V6, POD_V6)] {
        let socket = node.run(|| UdpSocket::bind((ip(server), 0)).unwrap()).unwrap();
        let address = socket.local_addr().unwrap();
        pod.run(|| {
            let socket = UdpSocket::bind((ip(client), 0)).unwrap();
            socket.send_to(b"ping", address).unwrap();
        })
        .unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut buffer = [0; 16];
        let (length, from) = socket.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"ping");
        assert_eq!(from.ip(), ip(client));
    }
}

#[test]
fn leaves_the_machines_own_namespace_untouched() {
    if !can_make_namespaces("leaves_the_machines_own_namespace_untouched") {
        return;
    }
    let devices = || std::fs::read_to_string("/proc/thread-self/net/dev").unwrap().lines().count();
    let before = devices();
    let (node, _pod) = joined();
    assert_eq!(devices(), before);
    // In the new namespace: lo and pod0 beside the two header lines.
    assert_eq!(node.run(devices).unwrap(), 4);
}

#[test]
fn routes_to_an_address_on_lo_by_a_gateway() {
    if !can_make_namespaces("routes_to_an_address_on_lo_by_a_gateway") {
        return;
    }
    let (node, pod) = joined();
    node.add_address("lo", ip("169.254.20.10"), 32).unwrap();
    pod.add_route(ip("0.0.0.0"), 0, ip(NODE)).unwrap();
    let server = start(&node, "169.254.20.10:53", &[("a.test.", ip("192.0.2.1"))]);
    let answer = pod.run(|| ask(server.address(), "a.test", "A", &Options::default()).unwrap()).unwrap();
    assert_eq!(answer.data(), ["192.0.2.1"]);
    assert!(node.addresses("lo").unwrap().contains(&(ip("169.254.20.10"), 32)));
}

#[test]
fn counts_tracked_connections_only_where_tracking_is_forced() {
    if !can_make_namespaces("counts_tracked_connections_only_where_tracking_is_forced") {
        return;
    }
    for forced in [false, true] {
        let (node, pod) = joined();
        if forced {
            conntrack::force_tracking(&node).unwrap();
        }
        for server in [NODE, NODE_V6] {
            let server = start(&node, &SocketAddr::new(ip(server), 53).to_string(), &[]);
            for options in [Options::default(), Options::tcp()] {
                let answer = pod.run(|| ask(server.address(), "a.test", "A", &options).unwrap()).unwrap();
                assert_eq!(answer.rcode, "NXDOMAIN");
            }
        }
        let counts = conntrack::count(&node, 53).unwrap();
        let expected = usize::from(forced) * 2;
        assert_eq!((counts.udp, counts.tcp), (expected, expected), "forced: {forced}");
        assert_eq!(conntrack::count(&node, 54).unwrap().total(), 0);
        conntrack::flush(&node).unwrap();
        // UDP only: the last packets of a TCP connection may still come, and open an entry again.
        assert_eq!(conntrack::count(&node, 53).unwrap().udp, 0);
    }
}

#[test]
fn deletes_a_table_that_is_there_or_not() {
    if !can_make_namespaces("deletes_a_table_that_is_there_or_not") {
        return;
    }
    let netns = Netns::new().unwrap();
    conntrack::force_tracking(&netns).unwrap();
    assert_eq!(netns.nft_tables().unwrap(), [conntrack::TRACKING_TABLE]);
    for _ in 0..2 {
        netns.delete_nft_table(conntrack::TRACKING_TABLE).unwrap();
        assert!(netns.nft_tables().unwrap().is_empty());
    }
}

#[test]
fn resolves_with_the_systems_library_under_the_pods_resolv_conf() {
    if !can_make_namespaces("resolves_with_the_systems_library_under_the_pods_resolv_conf") {
        return;
    }
    let (node, netns) = joined();
    let name = "hoge.default.svc.cluster.local.";
    let server = start(&node, &format!("{NODE}:53"), &[(name, ip("10.96.7.7"))]);
    let text = format!("nameserver {NODE}\nsearch default.svc.cluster.local\noptions ndots:5\n");
    let machines = std::fs::read("/etc/resolv.conf").ok();
    let pod = Pod::new(&netns, &text).unwrap();

    let mut getent = Command::new("getent");
    getent.args(["ahostsv4", "hoge"]);
    let output = pod.output(getent).unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{stdout} {}", String::from_utf8_lossy(&output.stderr));
    assert!(stdout.starts_with("10.96.7.7 "), "{stdout}");
    assert!(server.count() > 0);

    let mut getent = Command::new("getent");
    getent.args(["ahostsv4", "nobody"]);
    assert_eq!(pod.output(getent).unwrap().status.code(), Some(2));
    assert_eq!(pod.run(|| std::fs::read_to_string("/etc/resolv.conf").unwrap()).unwrap(), text);
    assert_eq!(std::fs::read("/etc/resolv.conf").ok(), machines);
}

#[test]
fn writes_files_of_etc_that_the_machine_does_not_have() {
    if !can_make_namespaces("writes_files_of_etc_that_the_machine_does_not_have") {
        return;
    }
    let netns = Netns::new().unwrap();
    let pod = Pod::with_files(&netns, &[("nodestub-lab-absent", "here\n")]).unwrap();
    assert_eq!(pod.run(|| std::fs::read_to_string("/etc/nodestub-lab-absent").unwrap()).unwrap(), "here\n");
    assert!(!std::path::Path::new("/etc/nodestub-lab-absent").exists());
    // The rest of /etc is as it was.
    let passwd = || std::fs::read("/etc/passwd").unwrap();
    assert_eq!(pod.run(passwd).unwrap(), passwd());
}

#[test]
fn kills_what_it_spawned_when_the_handle_drops() {
    if !can_make_namespaces("kills_what_it_spawned_when_the_handle_drops") {
        return;
    }
    let netns = Netns::new().unwrap();
    let mut command = Command::new("sleep");
    command.arg("1000");
    let daemon = netns.spawn(command).unwrap();
    let process = format!("/proc/{}", daemon.id());
    assert!(std::path::Path::new(&process).exists());
    drop(daemon);
    assert!(!std::path::Path::new(&process).exists());
}

fn start(netns: &Netns, address: &str, names: &[(&str, IpAddr)]) -> Upstream {
    let address: SocketAddr = address.parse().unwrap();
    let server = netns.run(|| Upstream::start(address, upstream::zone(30, names)).unwrap()).unwrap();
    assert_eq!(server.count_of(Transport::Udp), 0);
    server
}
