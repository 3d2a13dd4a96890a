//! Kernel fail-open, judged by packets: a pod asks while a listener comes and goes; see `common/cluster.rs`.
//!
//! [`story`] is one life of a node's listeners, told with packets. The whole rules make it come true; each rule left out,
//! and each two rules swapped whose order matters, make it untrue.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise, in its helpers too")]

#[path = "common/cluster.rs"]
mod cluster;

use std::io::{ErrorKind, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::num::NonZeroU16;
use std::time::Duration;

use cluster::{
    CLUSTER_DNS, Cluster, DNS_PORT, HEALTH_PORT, KUBE_DNS, LOCAL, PATIENCE, POD, SERVICE, Stream, ask_tcp,
    ask_udp, ip, open_tcp,
};
use nodestub_dataplane::desired::DEFAULT_DEVICE;
use nodestub_dataplane::proof::{Passage, Question, try_fail_open};
use nodestub_dataplane::rules::Statement;
use nodestub_dataplane::{Desired, Parts, Rule, Ruleset, apply, nftables};
use nodestub_lab::Upstream;
use nodestub_lab::skip::can_make_namespaces;
use socket2::SockRef;

/// What a story under changed rules waits for an answer that does not come. Too short, and every such story would be
/// untrue for want of time: see [`is_told_in_time`].
const IMPATIENCE: Duration = Duration::from_millis(700);

fn port(number: u16) -> NonZeroU16 {
    NonZeroU16::new(number).unwrap()
}

/// Both local addresses, each with its fallback.
fn local_with_fallback() -> Desired {
    let wish = Desired::new(&LOCAL.map(ip), DEFAULT_DEVICE, port(DNS_PORT), Some(port(HEALTH_PORT)));
    LOCAL
        .into_iter()
        .zip(KUBE_DNS)
        .fold(wish.unwrap(), |wish, (local, target)| wish.with_fallback(ip(local), ip(target)).unwrap())
}

/// Service addresses only, left to kube-proxy without a listener.
fn only_intercepted() -> Desired {
    let wish = Desired::new(&SERVICE.map(ip), DEFAULT_DEVICE, port(DNS_PORT), Some(port(HEALTH_PORT)));
    wish.unwrap().intercept(&SERVICE.map(ip)).unwrap()
}

#[test]
fn answers_from_the_cluster_dns_while_nobody_listens_and_untracked_while_somebody_does() {
    const NAME: &str = "answers_from_the_cluster_dns_while_nobody_listens_and_untracked_while_somebody_does";
    if !can_make_namespaces(NAME) {
        return;
    }
    for wish in [
        local_with_fallback(),
        only_intercepted(),
        local_with_fallback().intercept(&SERVICE.map(ip)).unwrap(),
        // NodeLocal's way: kube-dns's own address bound as well, and the fallback too.
        local_with_fallback().intercept(&KUBE_DNS.map(ip)).unwrap(),
    ] {
        story(&wish, &wish.ruleset(), PATIENCE).unwrap();
    }
}

#[test]
fn goes_astray_without_any_single_rule() {
    if !can_make_namespaces("goes_astray_without_any_single_rule") {
        return;
    }
    for wish in [local_with_fallback().intercept(&SERVICE.map(ip)).unwrap(), only_intercepted()] {
        let rules = wish.ruleset();
        is_told_in_time(&wish, &rules);
        for (index, rule) in rules.rules().iter().enumerate() {
            let told = story(&wish, &rules.without(index), IMPATIENCE);
            let astray = told.expect_err(&format!("nothing changed without `{}: {rule}`", rule.chain()));
            println!("without `{}: {rule}`: {astray}", rule.chain());
        }
    }
}

#[test]
fn goes_astray_when_two_rules_are_swapped_whose_order_matters() {
    if !can_make_namespaces("goes_astray_when_two_rules_are_swapped_whose_order_matters") {
        return;
    }
    for wish in [local_with_fallback(), only_intercepted()] {
        let rules = wish.ruleset();
        is_told_in_time(&wish, &rules);
        let mut tried = 0;
        for (one, first) in rules.rules().iter().enumerate() {
            for (other, second) in rules.rules().iter().enumerate().skip(one + 1) {
                if first.chain() != second.chain() {
                    continue;
                }
                if let Some(reason) = why_order_does_not_matter(first, second) {
                    println!("`{}`: `{first}` and `{second}`: {reason}", first.chain());
                    continue;
                }
                tried += 1;
                let told = story(&wish, &rules.swapped(one, other), IMPATIENCE);
                let astray = told.expect_err(&format!(
                    "nothing changed with `{first}` and `{second}` of {} swapped",
                    first.chain()
                ));
                println!("`{}`: `{first}` and `{second}` swapped: {astray}", first.chain());
            }
        }
        assert!(tried >= 12, "only {tried} pairs were tried");
    }
}

#[test]
fn sends_each_address_to_its_own_target_from_one_client_port() {
    if !can_make_namespaces("sends_each_address_to_its_own_target_from_one_client_port") {
        return;
    }
    // The first two share a target; the third has another, with the same server behind it.
    let locals = ["169.254.20.10", "169.254.20.11", "169.254.20.12"].map(ip);
    let nobody = ip("10.88.0.99");
    let cluster = Cluster::new();
    let wish = Desired::new(&locals, DEFAULT_DEVICE, port(DNS_PORT), None).unwrap();
    let wish = wish.with_fallback(locals[0], ip(KUBE_DNS[0])).unwrap();
    let wish = wish.with_fallback(locals[1], ip(KUBE_DNS[0])).unwrap();
    let wish = wish.with_fallback(locals[2], ip(CLUSTER_DNS[0])).unwrap();
    let _applied = cluster.node.block_on(async || apply(&wish, Parts::ALL).await.unwrap()).unwrap();
    let mut streams = Vec::new();
    let client_port = 20_000;
    for address in locals {
        let server = SocketAddr::new(address, DNS_PORT);
        assert_eq!(ask_udp(&cluster.pod, client_port, server, PATIENCE), "cluster", "{address}");
        let mut stream = open_tcp(&cluster.pod, client_port, server, PATIENCE).unwrap();
        assert_eq!(stream.ask(), "cluster", "{address}");
        streams.push(stream);
    }
    // A listener on one address is no listener on another; a connection's address is a part of what is remembered.
    let listener = cluster.listen(locals[2], "listener");
    for (stream, address) in streams.iter_mut().zip(locals) {
        assert_eq!(stream.ask(), "cluster", "{address}");
    }
    for (address, expected) in locals.into_iter().zip(["cluster", "cluster", "listener"]) {
        let server = SocketAddr::new(address, DNS_PORT);
        assert_eq!(ask_udp(&cluster.pod, 0, server, PATIENCE), expected, "{address}");
        assert_eq!(ask_tcp(&cluster.pod, 0, server, PATIENCE), expected, "{address}");
    }
    drop(listener);

    // Whether it is the target that answers: without one there, nobody does.
    let wish = wish.with_fallback(locals[2], nobody).unwrap();
    let _applied = cluster.node.block_on(async || apply(&wish, Parts::ALL).await.unwrap()).unwrap();
    let server = SocketAddr::new(locals[2], DNS_PORT);
    let answer = ask_udp(&cluster.pod, 0, server, IMPATIENCE);
    assert!(
        ["silence", "no route to host"].iter().any(|word| answer.to_lowercase().contains(word)),
        "{answer}"
    );
}

#[test]
fn takes_a_client_port_again_whoever_answered_it_before() {
    if !can_make_namespaces("takes_a_client_port_again_whoever_answered_it_before") {
        return;
    }
    for (wish, addresses) in [(local_with_fallback(), LOCAL), (only_intercepted(), SERVICE)] {
        let cluster = Cluster::new();
        let _applied = cluster.node.block_on(async || apply(&wish, Parts::ALL).await.unwrap()).unwrap();
        for address in addresses.map(ip) {
            let server = SocketAddr::new(address, DNS_PORT);
            let open = |expected: &str| {
                let mut stream = open_tcp(&cluster.pod, 20_000, server, PATIENCE).unwrap();
                assert_eq!(stream.ask(), expected, "{address}");
                stream
            };
            // The cluster's, the listener's, and the cluster's again: the listener closed first, so the node holds the
            // connection in TIME_WAIT for a minute, and no listener is there to take the port over.
            drop(open("cluster"));
            let listener = cluster.listen(address, "listener");
            let stream = open("listener");
            drop(listener);
            stream.close_after_server();
            let stream = open("cluster");
            // And the listener's once more.
            let listener = cluster.listen(address, "listener");
            drop(stream);
            let stream = open("listener");
            drop(listener);
            stream.close_after_server();
            let _listener = cluster.listen(address, "listener");
            open("listener");
        }
    }
}

#[test]
fn keeps_connections_that_went_past_the_listener_when_a_restart_applies_again() {
    if !can_make_namespaces("keeps_connections_that_went_past_the_listener_when_a_restart_applies_again") {
        return;
    }
    let wish = local_with_fallback();
    let cluster = Cluster::new();
    let _first = cluster.node.block_on(async || apply(&wish, Parts::ALL).await.unwrap()).unwrap();
    let server = SocketAddr::new(ip(LOCAL[0]), DNS_PORT);
    let mut stream = open_tcp(&cluster.pod, 0, server, PATIENCE).unwrap();
    assert_eq!(stream.ask(), "cluster");
    let _second = cluster.node.block_on(async || apply(&wish, Parts::ALL).await.unwrap()).unwrap();
    let _listener = cluster.listen(server.ip(), "listener");
    assert_eq!(stream.ask(), "cluster");
    assert_eq!(ask_tcp(&cluster.pod, 0, server, PATIENCE), "listener");
}

#[test]
fn passes_by_a_listener_that_asks_for_it_but_not_its_connections() {
    if !can_make_namespaces("passes_by_a_listener_that_asks_for_it_but_not_its_connections") {
        return;
    }
    let wish = local_with_fallback().intercept(&SERVICE.map(ip)).unwrap();
    let cluster = Cluster::new();
    let _applied = cluster.node.block_on(async || apply(&wish, Parts::ALL).await.unwrap()).unwrap();
    for address in wish.addresses() {
        let server = SocketAddr::new(*address, DNS_PORT);
        let bind = || (UdpSocket::bind(server).unwrap(), TcpListener::bind(server).unwrap());
        let (udp, tcp) = cluster.node.run(bind).unwrap();
        udp.set_nonblocking(true).unwrap();
        assert_eq!(ask_udp(&cluster.pod, 20_000, server, IMPATIENCE), "silence", "{address}");
        let mut before = open_tcp(&cluster.pod, 20_001, server, PATIENCE).unwrap();
        let (mut accepted, _) = tcp.accept().unwrap();

        SockRef::from(&udp).set_ip_transparent_v4(true).unwrap();
        SockRef::from(&tcp).set_ip_transparent_v4(true).unwrap();
        assert_eq!(ask_udp(&cluster.pod, 20_000, server, PATIENCE), "cluster", "{address}");
        assert_eq!(ask_tcp(&cluster.pod, 20_002, server, PATIENCE), "cluster", "{address}");
        // What had arrived is still there, and nothing came after it.
        assert_eq!(udp.recv(&mut [0; 16]).unwrap(), 4, "{address}");
        assert_eq!(udp.recv(&mut [0; 16]).unwrap_err().kind(), ErrorKind::WouldBlock, "{address}");
        accepted.write_all(b"\0\x08listener").unwrap();
        assert_eq!(before.ask(), "listener", "{address}");

        SockRef::from(&udp).set_ip_transparent_v4(false).unwrap();
        assert_eq!(ask_udp(&cluster.pod, 20_000, server, IMPATIENCE), "silence", "{address}");
        assert_eq!(udp.recv(&mut [0; 16]).unwrap(), 4, "{address}");
    }
}

/// The whole rules make the story true in the time that changed ones get. A machine that is busy just now may try again.
fn is_told_in_time(wish: &Desired, rules: &Ruleset) {
    const TRIES: usize = 5;
    let told: Vec<_> = (0..TRIES).map_while(|_| story(wish, rules, IMPATIENCE).err()).collect();
    assert!(told.len() < TRIES, "{told:#?}");
}

/// The pairs that may stand either way, each with its reason; `None` for the others.
fn why_order_does_not_matter(one: &Rule, other: &Rule) -> Option<&'static str> {
    let decides = |rule: &Rule| {
        let verdict = |statement: &Statement| {
            matches!(statement, Statement::Accept | Statement::Return | Statement::Goto(_))
        };
        rule.statements().iter().any(verdict)
    };
    let only_untracks = |rule: &Rule| rule.statements().contains(&Statement::NoTrack) && !decides(rule);
    if only_untracks(one) && only_untracks(other) {
        return Some("both only untrack, and a packet meets both");
    }
    let apart = |one: &Statement, other: &Statement| match (one, other) {
        (Statement::InputIsLoopback, Statement::InputIsProof) => true,
        (Statement::Address(side, address), Statement::Address(same, other)) => {
            side == same && address != other
        }
        (Statement::Port(protocol, ..), Statement::Port(other, ..)) => protocol != other,
        (Statement::Zone(zone), Statement::Zone(other)) => zone != other,
        _ => false,
    };
    if one.statements().iter().any(|left| other.statements().iter().any(|right| apart(left, right))) {
        return Some("no packet meets both");
    }
    None
}

/// A life of the listeners on the addresses of `wish`, under `rules`; an error tells where it went otherwise.
///
/// Nobody listens; somebody does, on each address; he is gone; somebody listens on every address of the host (not ours,
/// treated as absent); the kernel forgets what was opened past the listener.
fn story(wish: &Desired, rules: &Ruleset, patience: Duration) -> Result<(), String> {
    let cluster = Cluster::new();
    cluster
        .node
        .block_on(async || {
            // The address; then the rules, whatever they are.
            let _applied = apply(wish, Parts { rules: false, addresses: true }).await.unwrap();
            nftables::replace(rules).await.unwrap();
        })
        .unwrap();
    let askers: Vec<Asker<'_>> = wish
        .addresses()
        .iter()
        .zip((20_000..).step_by(100))
        .map(|(address, first_port)| Asker {
            cluster: &cluster,
            address: *address,
            is_service: wish.is_service(*address),
            first_port,
            patience,
        })
        .collect();

    // 1. Nobody listens.
    let mut opened_past = Vec::new();
    for asker in &askers {
        asker.udp("nobody listens", 0, "cluster")?;
        opened_past.push(asker.open("nobody listens", 1, "cluster")?);
        asker.host("nobody listens", if asker.is_service { "cluster" } else { "refused" })?;
        asker.proof("nobody listens", wish)?;
    }
    if let Some(one) = cluster.tracked().into_iter().find(|one| is_local(wish, one.destination.ip())) {
        return Err(format!("nobody listens: tracked to the local address itself: {one:?}"));
    }

    // 2. Somebody listens.
    let mut listeners: Vec<Upstream> =
        askers.iter().map(|asker| cluster.listen(asker.address, "listener")).collect();
    listeners
        .extend(askers.iter().filter(|asker| !asker.is_service).map(|asker| cluster.health(asker.address)));
    let mut answered = Vec::new();
    for (asker, mut stream) in askers.iter().zip(opened_past) {
        asker.expect("a listener came, a connection opened before", "cluster", &stream.ask())?;
        drop(stream);
        // From ports that were used past the listener, and from others.
        for offset in [1, 2] {
            let mut stream = asker.open("a listener came", offset, "listener")?;
            asker.expect("a listener came, again", "listener", &stream.ask())?;
            answered.push(stream);
        }
        asker.udp("a listener came", 0, "listener")?;
        asker.udp("a listener came", 3, "listener")?;
        asker.host("a listener came", if asker.is_service { "cluster" } else { "listener" })?;
        if !asker.is_service {
            let health = SocketAddr::new(asker.address, HEALTH_PORT);
            let answer = ask_tcp(&cluster.node, 0, health, patience);
            asker.expect("a probe", "health", &answer)?;
        }
        asker.is_untracked(&[2, 3])?;
        asker.proof("a listener came", wish)?;
    }

    // 3. He is gone.
    drop(listeners);
    drop(answered);
    let mut opened_past = Vec::new();
    for asker in &askers {
        asker.udp("the listener went", 0, "cluster")?;
        asker.udp("the listener went", 3, "cluster")?;
        opened_past.push(asker.open("the listener went", 4, "cluster")?);
    }

    // 4. Somebody else listens on every address.
    let strangers = [cluster.listen(ip("0.0.0.0"), "stranger"), cluster.listen(ip("::"), "stranger")];
    for (asker, stream) in askers.iter().zip(&mut opened_past) {
        asker.udp("a stranger listens", 0, "cluster")?;
        asker.open("a stranger listens", 5, "cluster")?;
        asker.expect("a stranger listens, a connection opened before", "cluster", &stream.ask())?;
    }
    for asker in &askers {
        asker.proof("a stranger listens", wish)?;
    }
    drop(strangers);

    // 5. What was opened past the listener is forgotten: its time ran out, or there was no room for it.
    cluster.node.block_on(async || nftables::replace(rules).await.unwrap()).unwrap();
    for (asker, stream) in askers.iter().zip(&mut opened_past) {
        asker.expect("a forgotten connection", "cluster", &stream.ask())?;
    }
    Ok(())
}

fn is_local(wish: &Desired, address: IpAddr) -> bool {
    wish.addresses().contains(&address) && !wish.is_service(address)
}

/// A pod's view of one address.
struct Asker<'cluster> {
    cluster: &'cluster Cluster,
    address: IpAddr,
    is_service: bool,
    /// The client ports of this address start here; each step has its own.
    first_port: u16,
    patience: Duration,
}

impl Asker<'_> {
    fn server(&self) -> SocketAddr {
        SocketAddr::new(self.address, DNS_PORT)
    }

    fn udp(&self, when: &str, port: u16, expected: &str) -> Result<(), String> {
        let answer = ask_udp(&self.cluster.pod, self.first_port + port, self.server(), self.patience);
        self.expect(&format!("{when}, UDP"), expected, &answer)?;
        self.seen(when, &answer)
    }

    fn open(&self, when: &str, port: u16, expected: &str) -> Result<Stream, String> {
        let opened = open_tcp(&self.cluster.pod, self.first_port + port, self.server(), self.patience);
        let mut stream = opened.map_err(|error| format!("{}: {when}, open TCP: {error}", self.address))?;
        let answer = stream.ask();
        self.expect(&format!("{when}, TCP"), expected, &answer)?;
        self.seen(when, &answer)?;
        Ok(stream)
    }

    /// What a process of the host's own is told.
    fn host(&self, when: &str, expected: &str) -> Result<(), String> {
        let answer = ask_udp(&self.cluster.node, 0, self.server(), self.patience);
        self.expect(&format!("{when}, the host over UDP"), expected, &answer)?;
        let answer = ask_tcp(&self.cluster.node, 0, self.server(), self.patience);
        self.expect(&format!("{when}, the host over TCP"), expected, &answer)
    }

    /// What our own question finds that tries fail-open: the cluster DNS, whoever listens.
    fn proof(&self, when: &str, wish: &Desired) -> Result<(), String> {
        let question =
            Question { query: b"who?", is_answer: &|octets| octets == b"cluster", patience: self.patience };
        let tried =
            self.cluster.node.block_on(async || try_fail_open(wish, self.address, question).await.unwrap());
        match tried.unwrap() {
            Passage::Open => Ok(()),
            Passage::Closed(why) => Err(format!("{}: {when}, our own question: {why}", self.address)),
        }
    }

    fn expect(&self, when: &str, expected: &str, answer: &str) -> Result<(), String> {
        if answer == expected {
            return Ok(());
        }
        Err(format!("{}: {when}: {answer} in place of {expected}", self.address))
    }

    /// The cluster DNS sees the pod's own address.
    fn seen(&self, when: &str, answer: &str) -> Result<(), String> {
        let pod = ip(if self.address.is_ipv4() { POD[0] } else { POD[1] });
        match self.cluster.last_asker(self.address.is_ipv4()) {
            Some(seen) if answer == "cluster" && seen != pod => {
                Err(format!("{}: {when}: the cluster DNS saw {seen}", self.address))
            }
            _ => Ok(()),
        }
    }

    /// Nothing that was asked from these ports is tracked, and nothing at all with the local address at an end.
    fn is_untracked(&self, ports: &[u16]) -> Result<(), String> {
        let ours = |end: SocketAddr| {
            let pods_port = ports.iter().any(|port| end.port() == self.first_port + port);
            pods_port || (end.ip() == self.address && !self.is_service)
        };
        match self.cluster.tracked().into_iter().find(|one| ours(one.source) || ours(one.destination)) {
            Some(one) => Err(format!("{}: tracked: {one:?}", self.address)),
            None => Ok(()),
        }
    }
}
