//! The Corefile of NodeLocal DNSCache is read as it stands in Kubernetes' manifest.

use std::time::Duration;

use crate::world::World;
use nodestub_corefile::config::{BindTarget, HttpAddr, Policy, Reload, ServerBlock, Transport, Upstream};
use nodestub_corefile::{Options, parse};

// Source and licence: tests/fixtures/README.md.
const COREFILE: &str = include_str!("../fixtures/nodelocaldns.Corefile");

fn options() -> Options {
    Options {
        cluster_domain: Some("cluster.local".into()),
        local_addresses: vec!["169.254.20.10".parse().unwrap(), "10.96.0.10".parse().unwrap()],
        cluster_dns: vec!["10.96.0.11".parse().unwrap()],
        ..Options::default()
    }
}

fn node_local() -> Vec<ServerBlock> {
    let loaded = parse("/etc/Corefile", COREFILE, &options(), &World::new())
        .unwrap_or_else(|report| panic!("{report}"));
    assert!(loaded.warnings.is_empty(), "{}", loaded.warnings);
    loaded.config.blocks
}

#[test]
fn reads_the_unmodified_corefile_without_a_warning() {
    let blocks = node_local();
    let zones: Vec<_> =
        blocks.iter().flat_map(|block| &block.zones).map(|key| (key.zone.to_string(), key.port)).collect();
    let expected = ["cluster.local.", "in-addr.arpa.", "ip6.arpa.", "."];
    assert_eq!(zones, expected.map(|zone| (zone.to_owned(), 53)));
    for block in &blocks {
        let bound: Vec<_> = block.bind.iter().map(|bind| bind.target.clone()).collect();
        let expected = ["169.254.20.10", "10.96.0.10"];
        assert_eq!(bound, expected.map(|address| BindTarget::Addr(address.parse().unwrap())));
        assert!(block.errors.is_some() && block.detect_loop && block.log.is_empty() && block.hosts.is_none());
        assert_eq!(block.prometheus.as_ref().unwrap().addr, HttpAddr { host: None, port: 9253 });
        assert_eq!(
            block.reload,
            Some(Reload { interval: Duration::from_secs(30), jitter: Duration::from_secs(15) })
        );
    }
}

#[test]
fn reads_the_cluster_zone_and_the_rest_as_they_are_meant() {
    let blocks = node_local();
    let [cluster, reverse, _, rest] = blocks.as_slice() else { panic!("four blocks") };
    let cache = cluster.cache.as_ref().unwrap();
    assert_eq!((cache.success.capacity, cache.success.max_ttl, cache.success.min_ttl), (9984, 30, 5));
    assert_eq!((cache.denial.capacity, cache.denial.max_ttl, cache.denial.min_ttl), (9984, 5, 5));
    let cache = reverse.cache.as_ref().unwrap();
    assert_eq!((cache.success.max_ttl, cache.denial.max_ttl), (30, 30));

    let forward = &cluster.forward[0];
    assert_eq!(forward.to, [Upstream::Addr("10.96.0.11:53".parse().unwrap())]);
    assert_eq!((forward.transport, forward.policy), (Transport::Tcp, Policy::Random));
    assert_eq!(rest.forward[0].to, [Upstream::ResolvConf("/etc/resolv.conf".into())]);
    assert_eq!(rest.forward[0].transport, Transport::Same);

    let health = cluster.health.as_ref().unwrap();
    assert_eq!(health.addr, HttpAddr { host: Some("169.254.20.10".parse().unwrap()), port: 8080 });
    assert!(reverse.health.is_none() && rest.health.is_none());
}

#[test]
fn names_the_option_that_is_missing_and_points_at_the_placeholder() {
    let options = Options { cluster_domain: None, cluster_dns: Vec::new(), ..options() };
    let report = parse("Corefile", COREFILE, &options, &World::new()).unwrap_err();
    let places: Vec<_> = report.diagnostics().iter().filter_map(|d| report.position(d)).collect();
    assert_eq!(places, [("Corefile", 1, 1), ("Corefile", 10, 15)]);
    let text = report.to_string();
    assert!(text.contains("--cluster-domain") && text.contains("-upstreamsvc"), "{text}");
    assert!(text.contains("__PILLAR__DNS__DOMAIN__:53 {\n  | ^^^^^^^^^^^^^^^^^^^^^^^^^^"), "{text}");
}

#[test]
fn forwards_to_the_servers_that_are_given_in_place_of_the_nodes() {
    let options = Options {
        upstream_servers: Some(vec!["8.8.8.8:53".parse().unwrap(), "[2001:db8::1]:5353".parse().unwrap()]),
        ..options()
    };
    let loaded = parse("Corefile", COREFILE, &options, &World::new()).unwrap();
    assert_eq!(
        loaded.config.blocks[3].forward[0].to,
        [
            Upstream::Addr("8.8.8.8:53".parse().unwrap()),
            Upstream::Addr("[2001:db8::1]:5353".parse().unwrap())
        ]
    );
}

#[test]
fn leaves_nobody_to_ask_where_the_cluster_dns_is_not_known_yet_and_that_may_be_so() {
    let options = Options { cluster_dns: Vec::new(), serve_without_cluster_dns: true, ..options() };
    let loaded = parse("Corefile", COREFILE, &options, &World::new()).unwrap();
    let blocks = loaded.config.blocks;
    assert_eq!(blocks[0].forward[0].to, [Upstream::UnknownClusterDns]);
    assert_eq!(blocks[3].forward[0].to, [Upstream::ResolvConf("/etc/resolv.conf".into())]);
    // Elsewhere than behind `forward` an address must stand.
    let hosts = "a {\n hosts {\n __PILLAR__CLUSTER__DNS__ b.a\n }\n}";
    assert!(parse("Corefile", hosts, &options, &World::new()).is_err());
}
