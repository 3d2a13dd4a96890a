//! What a pod sees of a resolver's death, end and replacement, in IPv4 and IPv6 at once, and over IPVS where the kernel
//! has it.
//!
//! ```text
//! pod ──veth── node ──veth── cluster DNS      10.96.0.10, fd00:96::10 ─DNAT or IPVS─▶ 10.88.0.2, fd88::2
//!              169.254.20.10, fd00:20::a      no masquerade: it sees who asks
//! ```

use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::time::{Duration, Instant};

use nodestub_lab::upstream::{Received, zone};
use nodestub_lab::{Daemon, Netns, Reply, Signal, Upstream, ask, conntrack, nat, skip};
use tempfile::TempDir;

use super::load::{UdpLoad, answer_on, ask_on, connect};
use super::{HANG, names, patient, rounds, terminate, wait};

const LOCAL: [&str; 2] = ["169.254.20.10", "fd00:20::a"];
const SERVICE: [&str; 2] = ["10.96.0.10", "fd00:96::10"];
const CLUSTER_DNS: [&str; 2] = ["10.88.0.2", "fd88::2"];
const POD: [&str; 2] = ["10.77.0.2", "fd77::2"];
/// What a process may hold when it is killed: what was sent that long before.
pub(crate) const HELD: Duration = Duration::from_millis(500);

/// What plays kube-proxy.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Proxy {
    Dnat,
    Ipvs,
}

struct Place {
    node: Netns,
    pod: Netns,
    dns: Vec<Upstream>,
    _dns_net: Netns,
    folder: TempDir,
    /// How many of the families take part: IPv4, and IPv6.
    families: usize,
}

impl Place {
    fn new(test: &str, proxy: Proxy) -> Option<Self> {
        if !skip::can_make_namespaces(test) {
            return None;
        }
        let (node, pod, dns_net) = (Netns::new().unwrap(), Netns::new().unwrap(), Netns::new().unwrap());
        for net in [&node, &pod, &dns_net] {
            net.set_sysctl("net/ipv6/conf/default/accept_dad", "0").unwrap();
        }
        link(&node, "pod0", ["10.77.0.1", "fd77::1"], &pod, POD);
        link(&node, "dns0", ["10.88.0.1", "fd88::1"], &dns_net, CLUSTER_DNS);
        node.set_sysctl("net/ipv4/ip_forward", "1").unwrap();
        node.set_sysctl("net/ipv6/conf/all/forwarding", "1").unwrap();
        conntrack::force_tracking(&node).unwrap();
        match proxy {
            Proxy::Dnat => {
                let pairs = SERVICE.map(ip).into_iter().zip(CLUSTER_DNS.map(ip)).collect::<Vec<_>>();
                nat::translate(&node, &pairs).unwrap();
            }
            Proxy::Ipvs => {
                if let Err(why) = balance(&node) {
                    skip(test, &format!("needs IPVS and the dummy device: {why}"));
                    return None;
                }
            }
        }
        let families = if proxy == Proxy::Ipvs { 1 } else { 2 };
        let dns = CLUSTER_DNS.iter().take(families).map(|address| {
            dns_net.run(|| Upstream::start(SocketAddr::new(ip(address), 53), answers())).unwrap().unwrap()
        });
        let dns = dns.collect();
        let folder = tempfile::tempdir().unwrap();
        let place = Self { node, pod, dns, _dns_net: dns_net, folder, families };
        let local = LOCAL[..families].join(" ");
        place.write(&format!(
            ".:53 {{\n    bind {local}\n    cache 3600\n    forward . {}\n}}\n",
            CLUSTER_DNS[0]
        ));
        Some(place)
    }

    fn write(&self, corefile: &str) {
        std::fs::write(self.folder.path().join("Corefile"), corefile).unwrap();
    }

    fn start(&self) -> Daemon {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nodestub-resolver"));
        command
            .env_remove("NODESTUB_LOG")
            .args(["-localip", &LOCAL[..self.families].join(",")])
            .args(["--fallback", &SERVICE[..self.families].join(","), "-conf"])
            .arg(self.folder.path().join("Corefile"));
        self.node.spawn(command).unwrap()
    }

    fn serve(&self) -> Daemon {
        let daemon = self.start();
        wait(&daemon, "kernel fail-open");
        for address in LOCAL.iter().take(self.families) {
            let wanted = SocketAddr::new(ip(address), 53).to_string();
            daemon
                .wait_for_line(HANG, |line| line.contains("serving DNS") && line.contains(&wanted))
                .unwrap();
        }
        daemon
    }

    fn servers(&self) -> impl Iterator<Item = SocketAddr> {
        LOCAL.into_iter().take(self.families).map(|address| SocketAddr::new(ip(address), 53))
    }

    fn load(&self, rate: u32) -> Vec<UdpLoad> {
        self.servers().map(|server| UdpLoad::start(&self.pod, server, &names(), 2, rate)).collect()
    }

    fn warm_up(&self) {
        for name in names() {
            let server = SocketAddr::new(ip(LOCAL[0]), 53);
            assert_eq!(
                self.pod.run(|| ask(server, &name, "A", &patient())).unwrap().unwrap().rcode,
                "NOERROR"
            );
        }
    }

    /// What the cluster DNS was asked by the pod itself, not by a resolver.
    fn asked_by_pod(&self) -> Vec<Received> {
        let all = self.dns.iter().flat_map(Upstream::received);
        all.filter(|one| POD.map(ip).contains(&one.from.ip())).collect()
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn link(node: &Netns, device: &str, gateways: [&str; 2], peer: &Netns, addresses: [&str; 2]) {
    node.join(device, peer, "eth0").unwrap();
    for ((gateway, address), (anywhere, length)) in
        gateways.into_iter().zip(addresses).zip([("0.0.0.0", 24), ("::", 64)])
    {
        node.add_address(device, ip(gateway), length).unwrap();
        peer.add_address("eth0", ip(address), length).unwrap();
        peer.add_route(ip(anywhere), 0, ip(gateway)).unwrap();
    }
}

/// As kube-proxy in mode ipvs: the Service on a dummy device, and a virtual server for each protocol.
fn balance(node: &Netns) -> Result<(), String> {
    let script = format!(
        "set -e
        ip link add kube-ipvs0 type dummy
        ip address add {service}/32 dev kube-ipvs0
        for protocol in u t; do
            ipvsadm -A -$protocol {service}:53 -s rr
            ipvsadm -a -$protocol {service}:53 -r {server}:53 -m
        done
        echo 1 > /proc/sys/net/ipv4/vs/conntrack",
        service = SERVICE[0],
        server = CLUSTER_DNS[0]
    );
    let mut shell = Command::new("sh");
    shell.args(["-c", &script]);
    let done = node.output(shell).map_err(|error| error.to_string())?;
    let said = String::from_utf8_lossy(&done.stderr).trim().to_owned();
    if done.status.success() { Ok(()) } else { Err(said) }
}

/// Names that begin with "slow" are answered late, unless the pod itself asks.
fn answers() -> impl Fn(&[u8], nodestub_lab::Transport) -> Vec<Reply> + Send + Sync + 'static {
    let address = IpAddr::from([192, 0, 2, 1]);
    let names: Vec<String> = names().iter().map(|name| format!("{name}.")).collect();
    let mut records: Vec<(&str, IpAddr)> = names.iter().map(|name| (name.as_str(), address)).collect();
    records.push(("slow1.test.", address));
    let zone = zone(3600, &records);
    move |bytes, transport| {
        let delay = if is_slow(bytes) { Duration::from_millis(1500) } else { Duration::ZERO };
        zone(bytes, transport).into_iter().map(|reply| reply.after(delay)).collect()
    }
}

fn is_slow(query: &[u8]) -> bool {
    query.windows(4).any(|window| window == b"slow")
}

/// A processor that is emulated takes less.
fn rate() -> u32 {
    std::env::var("NODESTUB_TEST_RATE").map_or(1000, |text| text.parse().unwrap())
}

/// Killed again and again under load: whatever is sent after a death is answered, by the cluster DNS, which sees the
/// pod; connections opened in between live on; and the restarted resolver takes over again.
fn a_death_costs_only_what_the_dead_one_held(place: &Place) {
    let mut daemon = place.serve();
    place.warm_up();
    let loads = place.load(rate());
    let mut deaths = Vec::new();
    for _ in 0..rounds(3, 50) {
        loads.iter().for_each(|load| load.wait_for(100));
        let killed = Instant::now();
        daemon.kill().unwrap();
        deaths.push((killed, Instant::now()));
        loads.iter().for_each(|load| load.wait_for(100));
        let opened = place.servers().map(|server| {
            let mut stream = place.pod.run(|| connect(server)).unwrap();
            ask_on(&mut stream, "n1.test", 1);
            assert_eq!(answer_on(&mut stream).data(), ["192.0.2.1"]);
            stream
        });
        let mut opened: Vec<_> = opened.collect();
        daemon = place.serve();
        // What was on its way when the resolver began to listen.
        loads.iter().for_each(|load| load.wait_for(100));
        let before = place.asked_by_pod().len();
        loads.iter().for_each(|load| load.wait_for(100));
        let past_it = place.asked_by_pod().len() - before;
        assert_eq!(past_it, 0, "the restarted resolver does not take over");
        for stream in &mut opened {
            ask_on(stream, "n2.test", 2);
            assert_eq!(answer_on(stream).id, 2);
        }
    }
    for load in loads {
        let tally = load.finish();
        let held =
            |lost: &&Instant| deaths.iter().any(|(killed, dead)| **lost + HELD > *killed && *lost <= dead);
        let held = tally.lost_at.iter().filter(held).count();
        eprintln!(
            "{} kills: {} of {} lost, {held} of them held by the dead",
            deaths.len(),
            tally.lost,
            tally.sent
        );
        assert_eq!(tally.lost, held as u64, "{tally:?}");
    }
    assert!(!place.asked_by_pod().is_empty());
    terminate(daemon);
}

#[test]
fn a_death_costs_only_what_the_dead_one_held_in_both_families() {
    let test = "a_death_costs_only_what_the_dead_one_held_in_both_families";
    let Some(place) = Place::new(test, Proxy::Dnat) else { return };
    a_death_costs_only_what_the_dead_one_held(&place);
}

#[test]
fn a_death_costs_only_what_the_dead_one_held_over_ipvs() {
    let test = "a_death_costs_only_what_the_dead_one_held_over_ipvs";
    let Some(place) = Place::new(test, Proxy::Ipvs) else { return };
    a_death_costs_only_what_the_dead_one_held(&place);
}

#[test]
fn an_end_in_good_order_loses_nothing_in_both_families() {
    let test = "an_end_in_good_order_loses_nothing_in_both_families";
    let Some(place) = Place::new(test, Proxy::Dnat) else { return };
    let mut daemon = place.serve();
    place.warm_up();
    let loads = place.load(rate());
    for _ in 0..rounds(10, 100) {
        loads.iter().for_each(|load| load.wait_for(100));
        terminate(daemon);
        // Nobody listens.
        loads.iter().for_each(|load| load.wait_for(100));
        daemon = place.serve();
    }
    loads.iter().for_each(|load| load.wait_for(100));
    for load in loads {
        let tally = load.finish();
        eprintln!("{} of {} lost", tally.lost, tally.sent);
        assert_eq!(tally.lost, 0, "{tally:?}");
    }
    assert!(!place.asked_by_pod().is_empty());
    terminate(daemon);
}

#[test]
fn a_handover_loses_nothing_in_both_families_and_nothing_is_tracked() {
    let test = "a_handover_loses_nothing_in_both_families_and_nothing_is_tracked";
    let Some(place) = Place::new(test, Proxy::Dnat) else { return };
    let mut daemon = place.serve();
    place.warm_up();
    let asked = place.dns.iter().map(Upstream::count).sum::<usize>();
    conntrack::flush(&place.node).unwrap();
    let loads = place.load(rate());
    for _ in 0..rounds(3, 50) {
        loads.iter().for_each(|load| load.wait_for(100));
        let next = place.start();
        wait(&next, "took over; the resolver before this one stands by");
        terminate(std::mem::replace(&mut daemon, next));
    }
    loads.iter().for_each(|load| load.wait_for(100));
    for load in loads {
        let tally = load.finish();
        assert_eq!(tally.lost, 0, "{tally:?}");
    }
    let local = LOCAL.map(ip);
    let tracked = conntrack::tracked(&place.node, 53).unwrap();
    assert!(!tracked.iter().any(|one| local.contains(&one.destination.ip())), "{tracked:?}");
    // Nothing but what each process asks by itself.
    let own = |one: &Received| !one.bytes.windows(6).any(|window| window == b"\x04test\0");
    let since = place.dns.iter().flat_map(Upstream::received).skip(asked).filter(|one| !own(one)).count();
    assert_eq!(since, 0, "the cache is cold");
    terminate(daemon);
}

#[test]
fn who_asks_while_it_stops_is_answered_by_the_cluster_dns() {
    let Some(place) = Place::new("who_asks_while_it_stops_is_answered_by_the_cluster_dns", Proxy::Dnat)
    else {
        return;
    };
    let mut daemon = place.serve();
    for server in place.servers() {
        let asked = place.dns[0].received().len();
        // Under way for a second and a half, less than the resolver waits for an answer.
        let slow = place.pod.run(|| std::thread::spawn(move || ask(server, "slow1.test", "A", &patient())));
        let slow = slow.unwrap();
        let began = Instant::now();
        while !place.dns[0].received().iter().skip(asked).any(|one| is_slow(&one.bytes)) {
            assert!(began.elapsed() < HANG, "the slow question never came");
            std::thread::sleep(Duration::from_millis(5));
        }
        daemon.signal(Signal::TERM).unwrap();
        wait(&daemon, "stopping");
        for number in 0..20 {
            let name = format!("n{number}.test");
            let answer = place.pod.run(|| ask(server, &name, "A", &patient())).unwrap();
            let answer =
                answer.unwrap_or_else(|error| panic!("{number}: {error}: {}", daemon.lines().join("\n")));
            assert_eq!(answer.data(), ["192.0.2.1"]);
        }
        assert!(daemon.try_wait().unwrap().is_none(), "it has ended, so this shows nothing");
        assert!(place.asked_by_pod().len() >= 10);
        // And what was under way is answered by who was asked.
        assert_eq!(slow.join().unwrap().unwrap().data(), ["192.0.2.1"]);
        assert!(daemon.wait(HANG).unwrap().success());
        daemon = place.serve();
    }
    terminate(daemon);
}
