//! A node and a pod for the tests: two namespaces, a veth pair, tracking forced on, servers on the local addresses.
#![allow(dead_code, clippy::allow_attributes, reason = "every test file uses another part of it")]

use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;

use nodestub_dataplane::Desired;
use nodestub_dataplane::desired::DEFAULT_DEVICE;
use nodestub_lab::conntrack::{self, Tracked};
use nodestub_lab::{Netns, Options, Upstream, ask, upstream};

pub(crate) const LOCAL: [&str; 2] = ["169.254.20.10", "fd00:20::a"];
pub(crate) const DNS_PORT: u16 = 53;
pub(crate) const HEALTH_PORT: u16 = 8080;
const NODE: [&str; 2] = ["10.77.0.1", "fd77::1"];
const POD: [&str; 2] = ["10.77.0.2", "fd77::2"];

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Both local addresses, port 53 and the health port.
pub(crate) fn desired() -> Desired {
    let addresses = LOCAL.map(ip);
    let dns = NonZeroU16::new(DNS_PORT).unwrap();
    Desired::new(&addresses, DEFAULT_DEVICE, dns, NonZeroU16::new(HEALTH_PORT)).unwrap()
}

pub(crate) struct Node {
    pub(crate) net: Netns,
    pub(crate) pod: Netns,
    servers: RefCell<Vec<Upstream>>,
}

impl Node {
    pub(crate) fn new() -> Self {
        let (net, pod) = (Netns::new().unwrap(), Netns::new().unwrap());
        net.join("pod0", &pod, "eth0").unwrap();
        let families = NODE.into_iter().zip(POD).zip([("0.0.0.0", 24), ("::", 64)]);
        for ((node_address, pod_address), (anywhere, prefix_len)) in families {
            net.add_address("pod0", ip(node_address), prefix_len).unwrap();
            pod.add_address("eth0", ip(pod_address), prefix_len).unwrap();
            pod.add_route(ip(anywhere), 0, ip(node_address)).unwrap();
        }
        conntrack::force_tracking(&net).unwrap();
        Self { net, pod, servers: RefCell::default() }
    }

    /// Starts servers on both local addresses, on the DNS port and the health port.
    pub(crate) fn serve(&self) {
        let mut servers = self.servers.borrow_mut();
        for address in LOCAL {
            for port in [DNS_PORT, HEALTH_PORT] {
                servers.push(self.server(SocketAddr::new(ip(address), port)));
            }
        }
    }

    /// Servers beside the bypass: the local addresses on another port, the node's addresses on port 53.
    pub(crate) fn serve_neighbours(&self) -> Vec<Upstream> {
        let other_ports = LOCAL.map(|address| SocketAddr::new(ip(address), DNS_PORT + 1));
        let other_addresses = NODE.map(|address| SocketAddr::new(ip(address), DNS_PORT));
        other_ports.into_iter().chain(other_addresses).map(|address| self.server(address)).collect()
    }

    /// The pod and the host ask over UDP and TCP and the host probes the health port, in both families.
    pub(crate) fn everybody_asks(&self) {
        for address in LOCAL.map(ip) {
            let dns = SocketAddr::new(address, DNS_PORT);
            self.ask_from_pod(dns);
            self.net.run(|| ask_both_ways(dns)).unwrap();
            let health = SocketAddr::new(address, HEALTH_PORT);
            // Any exchange over TCP on that port is a probe to the kernel.
            self.net.run(|| ask(health, "a.test", "A", &Options::tcp()).unwrap()).unwrap();
        }
    }

    pub(crate) fn ask_from_pod(&self, server: SocketAddr) {
        self.pod.run(|| ask_both_ways(server)).unwrap();
    }

    /// What the node tracks on the DNS port and the health port.
    pub(crate) fn tracked(&self) -> Vec<Tracked> {
        let mut found = conntrack::tracked(&self.net, DNS_PORT).unwrap();
        found.extend(conntrack::tracked(&self.net, HEALTH_PORT).unwrap());
        found
    }

    pub(crate) fn forget(&self) {
        conntrack::flush(&self.net).unwrap();
    }

    fn server(&self, address: SocketAddr) -> Upstream {
        self.net.run(|| Upstream::start(address, upstream::zone(30, &[])).unwrap()).unwrap()
    }
}

fn ask_both_ways(server: SocketAddr) {
    for options in [Options::default(), Options::tcp()] {
        assert_eq!(ask(server, "a.test", "A", &options).unwrap().rcode, "NXDOMAIN");
    }
}
