//! The bypass, judged by packets: a node and a pod in namespaces, tracking forced on, a server on the local address.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise, in its helpers too")]

mod common;

use common::{Node, desired};
use nodestub_dataplane::rules::{Chain, Protocol, Side, Statement};
use nodestub_dataplane::{Parts, Rule, apply, nftables};
use nodestub_lab::Transport;
use nodestub_lab::conntrack::{self, Tracked};
use nodestub_lab::skip::can_make_namespaces;

#[test]
fn tracks_every_kind_of_packet_without_rules_and_none_with_them() {
    if !can_make_namespaces("tracks_every_kind_of_packet_without_rules_and_none_with_them") {
        return;
    }
    let node = Node::new();
    let applied = node.net.block_on(async || apply(&desired(), Parts::ALL).await.unwrap()).unwrap();
    node.serve();

    node.net.block_on(async || nftables::delete().await.unwrap()).unwrap();
    node.everybody_asks();
    // For each family: the pod's and the host's query over UDP and TCP, and the host's probe over TCP.
    let tracked = node.tracked();
    for (transport, expected) in [(Transport::Udp, 2 * 2), (Transport::Tcp, 2 * 3)] {
        let found = tracked.iter().filter(|one| one.transport == transport).count();
        assert_eq!(found, expected, "{transport}: {tracked:#?}");
    }

    node.net.block_on(async || nftables::replace(applied.ruleset().unwrap()).await.unwrap()).unwrap();
    node.forget();
    node.everybody_asks();
    assert_eq!(node.tracked(), []);
}

#[test]
fn tracks_again_when_any_single_rule_is_left_out() {
    if !can_make_namespaces("tracks_again_when_any_single_rule_is_left_out") {
        return;
    }
    let node = Node::new();
    let applied = node.net.block_on(async || apply(&desired(), Parts::ALL).await.unwrap()).unwrap();
    node.serve();
    let rules = applied.ruleset().unwrap();
    // Two families of eight.
    assert_eq!(rules.rules().len(), 16);
    for (index, rule) in rules.rules().iter().enumerate() {
        let rest = rules.without(index);
        node.net.block_on(async || nftables::replace(&rest).await.unwrap()).unwrap();
        node.forget();
        node.everybody_asks();
        let tracked = node.tracked();
        assert!(!tracked.is_empty(), "nothing was tracked without rule `{rule}`");
        // And nothing that the other rules are for.
        for one in &tracked {
            assert!(is_for(rule, one), "rule `{rule}` was left out, but tracked was {one:?}");
        }
    }
    node.net.block_on(async || nftables::replace(rules).await.unwrap()).unwrap();
    node.forget();
    node.everybody_asks();
    assert_eq!(node.tracked(), []);
}

#[test]
fn leaves_other_traffic_of_the_address_tracked() {
    if !can_make_namespaces("leaves_other_traffic_of_the_address_tracked") {
        return;
    }
    let node = Node::new();
    let _applied = node.net.block_on(async || apply(&desired(), Parts::ALL).await.unwrap()).unwrap();
    node.serve();
    // Another port of the same address, and port 53 of another address.
    let neighbours = node.serve_neighbours();
    for server in neighbours {
        let address = server.address();
        node.ask_from_pod(address);
        let tracked = conntrack::tracked(&node.net, address.port()).unwrap();
        let asked = tracked.iter().filter(|one| one.destination == address).count();
        // Over UDP and over TCP.
        assert_eq!(asked, 2, "{address}: {tracked:#?}");
    }
}

/// Whether a tracked packet is of the kind that a rule keeps from being tracked.
fn is_for(rule: &Rule, one: &Tracked) -> bool {
    // The host's own packets have the local address at both ends; a pod's never.
    let by_pod = one.source.ip() != one.destination.ip();
    rule.statements().iter().all(|statement| match statement {
        Statement::Address(Side::Source, address) => one.source.ip() == *address,
        Statement::Address(Side::Destination, address) => {
            one.destination.ip() == *address && by_pod == (rule.chain() == Chain::Prerouting)
        }
        Statement::Port(protocol, side, port) => {
            let transport = match protocol {
                Protocol::Udp => Transport::Udp,
                Protocol::Tcp => Transport::Tcp,
            };
            let end = match side {
                Side::Source => one.source,
                Side::Destination => one.destination,
            };
            one.transport == transport && end.port() == port.get()
        }
        statement => *statement == Statement::NoTrack,
    })
}
