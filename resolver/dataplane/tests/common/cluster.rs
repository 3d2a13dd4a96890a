//! A node, a pod and a cluster DNS in namespaces; a DNAT plays kube-proxy, without masquerade.
//!
//! ```text
//! pod ──veth── node ──veth── cluster DNS        10.96.0.10 and 10.96.0.20 ─DNAT─▶ 10.88.0.2, and so in IPv6
//! ```
//!
//! What is asked and answered is no DNS but a word: who answers says its name, and the kernel does not care.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use nodestub_lab::conntrack::{self, Tracked};
use nodestub_lab::{Netns, Reply, Upstream, nat};
use socket2::{Domain, SockRef, Socket, Type};

pub(crate) const LOCAL: [&str; 2] = ["169.254.20.10", "fd00:20::a"];
pub(crate) const DNS_PORT: u16 = 53;
pub(crate) const HEALTH_PORT: u16 = 8080;
const NODE_TO_POD: [&str; 2] = ["10.77.0.1", "fd77::1"];
const NODE_TO_DNS: [&str; 2] = ["10.88.0.1", "fd88::1"];
pub(crate) const POD: [&str; 2] = ["10.77.0.2", "fd77::2"];
pub(crate) const CLUSTER_DNS: [&str; 2] = ["10.88.0.2", "fd88::2"];
/// The fallback targets.
pub(crate) const KUBE_DNS: [&str; 2] = ["10.96.0.10", "fd00:96::10"];
/// Service addresses for mode intercept.
pub(crate) const SERVICE: [&str; 2] = ["10.96.0.20", "fd00:96::20"];

/// What a client waits at most when an answer must come. A test that fails waits it out; one that passes never does.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(crate) struct Cluster {
    pub(crate) node: Netns,
    pub(crate) pod: Netns,
    /// The cluster DNS, IPv4 and IPv6.
    pub(crate) dns: [Upstream; 2],
    _dns_net: Netns,
}

impl Cluster {
    pub(crate) fn new() -> Self {
        let (node, pod, dns_net) = (Netns::new().unwrap(), Netns::new().unwrap(), Netns::new().unwrap());
        for net in [&node, &pod, &dns_net] {
            // Link-local addresses serve at once; the first neighbour is not waited for.
            net.set_sysctl("net/ipv6/conf/default/accept_dad", "0").unwrap();
        }
        connect(&node, "pod0", NODE_TO_POD, &pod, POD);
        connect(&node, "dns0", NODE_TO_DNS, &dns_net, CLUSTER_DNS);
        node.set_sysctl("net/ipv4/ip_forward", "1").unwrap();
        node.set_sysctl("net/ipv6/conf/all/forwarding", "1").unwrap();
        // So that 0.0.0.0 and :: can be listened on side by side.
        node.set_sysctl("net/ipv6/bindv6only", "1").unwrap();
        let pairs = |from: [&str; 2]| [(ip(from[0]), ip(CLUSTER_DNS[0])), (ip(from[1]), ip(CLUSTER_DNS[1]))];
        let all = [pairs(KUBE_DNS), pairs(SERVICE)].concat();
        nat::translate(&node, &all).unwrap();
        conntrack::force_tracking(&node).unwrap();
        let dns = CLUSTER_DNS
            .map(|address| dns_net.run(|| named(SocketAddr::new(ip(address), DNS_PORT), "cluster")).unwrap());
        Self { node, pod, dns, _dns_net: dns_net }
    }

    /// Starts a listener on the node that answers with its name.
    pub(crate) fn listen(&self, address: IpAddr, name: &'static str) -> Upstream {
        self.node.run(|| named(SocketAddr::new(address, DNS_PORT), name)).unwrap()
    }

    /// Starts the health check of an address.
    pub(crate) fn health(&self, address: IpAddr) -> Upstream {
        self.node.run(|| named(SocketAddr::new(address, HEALTH_PORT), "health")).unwrap()
    }

    /// Where the last query to the cluster DNS of a family came from.
    pub(crate) fn last_asker(&self, is_ipv4: bool) -> Option<IpAddr> {
        let [v4, v6] = &self.dns;
        let server = if is_ipv4 { v4 } else { v6 };
        server.received().last().map(|query| query.from.ip())
    }

    /// What the node tracks on the DNS port and the health port.
    pub(crate) fn tracked(&self) -> Vec<Tracked> {
        let mut found = conntrack::tracked(&self.node, DNS_PORT).unwrap();
        found.extend(conntrack::tracked(&self.node, HEALTH_PORT).unwrap());
        found
    }
}

fn connect(node: &Netns, device: &str, gateways: [&str; 2], peer: &Netns, addresses: [&str; 2]) {
    node.join(device, peer, "eth0").unwrap();
    let families = gateways.into_iter().zip(addresses).zip([("0.0.0.0", 24), ("::", 64)]);
    for ((gateway, address), (anywhere, prefix_len)) in families {
        node.add_address(device, ip(gateway), prefix_len).unwrap();
        peer.add_address("eth0", ip(address), prefix_len).unwrap();
        peer.add_route(ip(anywhere), 0, ip(gateway)).unwrap();
    }
}

fn named(address: SocketAddr, name: &'static str) -> Upstream {
    Upstream::start(address, move |_, _| vec![Reply::now(name.into())]).unwrap()
}

/// Who answers a datagram from this port (0: any), or what happened instead. The answer must come from the address that
/// was asked: the socket is connected and takes no other.
pub(crate) fn ask_udp(net: &Netns, from_port: u16, server: SocketAddr, patience: Duration) -> String {
    let ask = || {
        let socket = UdpSocket::bind(any(server, from_port))?;
        socket.set_read_timeout(Some(patience))?;
        socket.connect(server)?;
        socket.send(b"who?")?;
        let mut answer = [0; 64];
        let length = socket.recv(&mut answer)?;
        Ok(answer.get(..length).unwrap_or_default().to_vec())
    };
    net.run(|| in_words(ask())).unwrap()
}

/// Who answers over a new connection from this port, or what happened instead.
pub(crate) fn ask_tcp(net: &Netns, from_port: u16, server: SocketAddr, patience: Duration) -> String {
    match open_tcp(net, from_port, server, patience) {
        Ok(mut stream) => stream.ask(),
        Err(error) => in_words(Err(error)),
    }
}

/// Opens a connection from this port (0: any).
pub(crate) fn open_tcp(
    net: &Netns,
    from_port: u16,
    server: SocketAddr,
    patience: Duration,
) -> io::Result<Stream> {
    net.run(|| {
        let socket = Socket::new(Domain::for_address(server), Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        // Closing resets, so that the port is free again at once.
        socket.set_linger(Some(Duration::ZERO))?;
        socket.bind(&any(server, from_port).into())?;
        socket.connect_timeout(&server.into(), patience)?;
        socket.set_read_timeout(Some(patience))?;
        Ok(Stream(socket.into()))
    })
    .unwrap()
}

/// A connection; reset when dropped.
pub(crate) struct Stream(TcpStream);

impl Stream {
    /// Who answers on it now, or what happened instead.
    pub(crate) fn ask(&mut self) -> String {
        let mut ask = || {
            self.0.write_all(b"\0\x04who?")?;
            let mut length = [0; 2];
            self.0.read_exact(&mut length)?;
            let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
            self.0.read_exact(&mut answer)?;
            Ok(answer)
        };
        in_words(ask())
    }

    /// Waits until the server has closed, and closes in turn, in order (no reset).
    pub(crate) fn close_after_server(mut self) {
        SockRef::from(&self.0).set_linger(None).unwrap();
        let read = self.0.read(&mut [0; 1]);
        assert!(matches!(read, Ok(0)), "the server did not close: {read:?}");
    }
}

fn any(server: SocketAddr, port: u16) -> SocketAddr {
    SocketAddr::new(if server.is_ipv4() { ip("0.0.0.0") } else { ip("::") }, port)
}

fn in_words(answer: io::Result<Vec<u8>>) -> String {
    match answer {
        Ok(name) => String::from_utf8(name).unwrap(),
        Err(error) => match error.kind() {
            io::ErrorKind::ConnectionRefused => "refused".to_owned(),
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => "silence".to_owned(),
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => "reset".to_owned(),
            io::ErrorKind::UnexpectedEof => "closed".to_owned(),
            _ => error.to_string(),
        },
    }
}
