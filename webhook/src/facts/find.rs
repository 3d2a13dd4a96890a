//! From what was given and what was seen to facts, each with its origin. Pure; guesses nothing.
//!
//! | fact | sources, the first that tells wins |
//! | --- | --- |
//! | cluster DNS | flag; the Service labelled `k8s-app=kube-dns`; RKE2's or OpenShift's Service; own resolv.conf |
//! | cluster domain | flag; own resolv.conf; Corefile of the cluster DNS |
//! | host search domains | flag; ConfigMap `nodestub-host-searches` |
//! | those of a node pool | flag; the same ConfigMap |
//! | ready resolvers | flag; DaemonSet `nodestub-resolver` |
//! | fail-open | flag; the nodes' reports |
//! | namespaces | the watch |
//!
//! Several Services may carry the label (NodeLocal DNSCache adds `kube-dns-upstream`). `kube-system/kube-dns` is the
//! one where it is there; else the one that our own resolv.conf names; else the only one; else it is not known.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use super::corefile;
use super::reports::judge;
use super::resolv_conf::ResolvConf;
use super::seen::{DNS_LABEL, DnsService, HOST_SEARCHES, POOL_SEARCHES_KEY, RESOLVERS, Seen};
use crate::admit::names::MAX_CLUSTER_DOMAIN_BYTES;
use crate::admit::{Domain, Facts, FailOpen, PoolSearches, is_usable};
use crate::args::or_none;

/// The Service of the cluster DNS in most clusters.
const KUBE_DNS: &str = "kube-system/kube-dns";
/// A second Service for the same pods, which NodeLocal DNSCache makes for itself.
const UPSTREAM: &str = "kube-system/kube-dns-upstream";

/// Where a fact comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A flag.
    Flag,
    /// An object of the cluster, such as `Service kube-system/kube-dns`.
    Object(String),
    /// Our own resolv.conf.
    ResolvConf,
    /// It is not known, and why.
    Unknown(String),
}

impl Origin {
    /// Whether the fact is known.
    #[must_use]
    pub fn is_known(&self) -> bool {
        !matches!(self, Self::Unknown(_))
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag => f.write_str("flag"),
            Self::Object(name) => f.write_str(name),
            Self::ResolvConf => f.write_str("own resolv.conf"),
            Self::Unknown(why) => write!(f, "not known: {why}"),
        }
    }
}

/// Facts, and where they come from.
#[derive(Debug, Clone)]
pub struct Found {
    /// The facts.
    pub facts: Facts,
    /// The name of each fact in [`FACTS`]' order, and its origin.
    pub origins: [(&'static str, Origin); 5],
}

/// Names of the facts that may be unknown, for metrics.
pub const FACTS: [&str; 5] = ["cluster_dns", "cluster_domain", "host_searches", "resolvers", "fail_open"];

/// Puts the facts together.
#[must_use]
pub fn find(given: &Facts, seen: &Seen, own: &ResolvConf, local_addresses: &[IpAddr]) -> Found {
    let (cluster_dns, dns_origin) = cluster_dns(given, seen, &own.cluster_dns(local_addresses));
    let (cluster_domain, domain_origin) = cluster_domain(given, seen, own);
    let (host_searches, searches_origin) = host_searches(given, seen);
    let (pool_searches, searches_origin) = pool_searches(given, seen, searches_origin);
    let (resolvers, resolvers_origin) = match (given.resolvers, seen.resolvers) {
        (Some(given), _) => (Some(given), Origin::Flag),
        (None, Some(seen)) => (Some(seen), Origin::Object(format!("DaemonSet kube-system/{RESOLVERS}"))),
        (None, None) => (None, unknown(format!("there is no DaemonSet {RESOLVERS} in kube-system"))),
    };
    let (fail_open, fail_open_origin) = match &given.fail_open {
        FailOpen::NotProven => judge(&seen.reports, resolvers, local_addresses),
        vouched => (vouched.clone(), Origin::Flag),
    };
    let [dns, domain, searches, ready, falls_back] = FACTS;
    Found {
        facts: Facts {
            cluster_dns,
            cluster_domain,
            host_searches,
            pool_searches,
            fail_open,
            resolvers,
            namespaces: seen.namespaces.clone(),
        },
        origins: [
            (dns, dns_origin),
            (domain, domain_origin),
            (searches, searches_origin),
            (ready, resolvers_origin),
            (falls_back, fail_open_origin),
        ],
    }
}

fn cluster_dns(given: &Facts, seen: &Seen, own: &[IpAddr]) -> (Vec<IpAddr>, Origin) {
    if !given.cluster_dns.is_empty() {
        return (given.cluster_dns.clone(), Origin::Flag);
    }
    for services in [&seen.labelled, &seen.known] {
        match choose(services, own) {
            Chosen::One(name, service) => {
                return (service.addresses.clone(), Origin::Object(format!("Service {name}")));
            }
            Chosen::Several(names) => {
                let names = names.join(", ");
                return (
                    Vec::new(),
                    unknown(format!("several Services may be it: {names}; give --cluster-dns")),
                );
            }
            Chosen::None => {}
        }
    }
    if own.is_empty() {
        let why =
            "no Service has the label ".to_owned() + DNS_LABEL + ", and our own resolv.conf does not tell";
        return (Vec::new(), unknown(why + "; give --cluster-dns"));
    }
    (own.to_vec(), Origin::ResolvConf)
}

enum Chosen<'a> {
    One(&'a str, &'a DnsService),
    Several(Vec<&'a str>),
    None,
}

fn choose<'a>(services: &'a BTreeMap<String, DnsService>, own: &[IpAddr]) -> Chosen<'a> {
    let usable = |(name, service): &(&'a String, &'a DnsService)| {
        service.serves_dns
            && name.as_str() != UPSTREAM
            && !service.addresses.is_empty()
            && service.addresses.iter().all(is_usable)
    };
    let candidates: Vec<(&String, &DnsService)> = services.iter().filter(usable).collect();
    let asked =
        |(_, service): &&(&String, &DnsService)| service.addresses.iter().any(|one| own.contains(one));
    let best = candidates
        .iter()
        .find(|(name, _)| name.as_str() == KUBE_DNS)
        .or_else(|| candidates.iter().find(asked))
        .or_else(|| if candidates.len() == 1 { candidates.first() } else { None });
    match best {
        Some((name, service)) => Chosen::One(name, service),
        None if candidates.is_empty() => Chosen::None,
        None => Chosen::Several(candidates.iter().map(|(name, _)| name.as_str()).collect()),
    }
}

fn cluster_domain(given: &Facts, seen: &Seen, own: &ResolvConf) -> (Option<Domain>, Origin) {
    if let Some(domain) = &given.cluster_domain {
        return (Some(domain.clone()), Origin::Flag);
    }
    let fits = |domain: &Domain| domain.as_str().len() <= MAX_CLUSTER_DOMAIN_BYTES;
    if let Some(domain) = own.cluster_domain().filter(fits) {
        return (Some(domain), Origin::ResolvConf);
    }
    for (name, text) in &seen.corefiles {
        if let Some(domain) = corefile::cluster_domain(text).filter(fits) {
            return (Some(domain), Origin::Object(format!("ConfigMap kube-system/{name}")));
        }
    }
    let why = "neither our own resolv.conf nor the cluster DNS's Corefile tells; give --cluster-domain";
    (None, unknown(why.to_owned()))
}

fn host_searches(given: &Facts, seen: &Seen) -> (Option<Vec<Domain>>, Origin) {
    if let Some(searches) = &given.host_searches {
        return (Some(searches.clone()), Origin::Flag);
    }
    let Some(text) = &seen.host_searches.all else {
        return (None, unknown(format!("there is no ConfigMap {HOST_SEARCHES}; give --host-search")));
    };
    // A single dot is what systemd-resolved writes for "none"; the kubelet passes over it too.
    let words = text.split([' ', ',', '\n', '\t', '\r']).filter(|word| !["", "."].contains(word));
    match words.map(str::parse).collect::<Result<Vec<Domain>, _>>() {
        Ok(searches) => (Some(or_none(searches)), Origin::Object(format!("ConfigMap {HOST_SEARCHES}"))),
        Err(bad) => (None, unknown(format!("ConfigMap {HOST_SEARCHES}: {bad}"))),
    }
}

/// Pools whose line cannot be read are as unknown as all others: the origin says why, and no pool is believed.
fn pool_searches(given: &Facts, seen: &Seen, origin: Origin) -> (Vec<PoolSearches>, Origin) {
    if !given.pool_searches.is_empty() {
        return (given.pool_searches.clone(), origin);
    }
    let lines = seen.host_searches.pools.as_deref().unwrap_or_default().lines().map(str::trim);
    match lines.filter(|line| !line.is_empty()).map(str::parse).collect::<Result<Vec<_>, String>>() {
        Ok(pools) => (pools, origin),
        Err(bad) => (Vec::new(), unknown(format!("ConfigMap {HOST_SEARCHES}, {POOL_SEARCHES_KEY}: {bad}"))),
    }
}

fn unknown(why: String) -> Origin {
    Origin::Unknown(why)
}

#[cfg(test)]
mod tests {
    use super::super::reports::Report;
    use super::super::seen::SearchTexts;
    use super::*;
    use crate::admit::Resolvers;

    const POD: &str = "search a.svc.own.example svc.own.example own.example\nnameserver 10.96.0.99\n";

    fn service(addresses: &[&str]) -> DnsService {
        let addresses = addresses.iter().map(|one| one.parse().unwrap()).collect();
        DnsService { addresses, serves_dns: true }
    }

    fn labelled(services: &[(&str, &[&str])]) -> Seen {
        let labelled = services.iter().map(|(name, all)| ((*name).to_owned(), service(all))).collect();
        Seen { labelled, ..Seen::default() }
    }

    fn dns(given: &Facts, seen: &Seen, own: &str) -> (String, String) {
        let found = find(given, seen, &ResolvConf::parse(own), &[]);
        let addresses: Vec<_> = found.facts.cluster_dns.iter().map(ToString::to_string).collect();
        (addresses.join(" "), found.origins[0].1.to_string())
    }

    #[test]
    fn asks_the_sources_of_the_cluster_dns_in_their_order() {
        let given = Facts { cluster_dns: vec!["192.0.2.1".parse().unwrap()], ..Facts::default() };
        let none = Facts::default();
        let mut seen = labelled(&[("kube-system/kube-dns", &["10.96.0.10", "fd00:10:96::a"])]);
        seen.known.insert("openshift-dns/dns-default".to_owned(), service(&["172.30.0.10"]));
        assert_eq!(dns(&given, &seen, POD), ("192.0.2.1".into(), "flag".into()));
        let of_label = ("10.96.0.10 fd00:10:96::a".into(), "Service kube-system/kube-dns".into());
        assert_eq!(dns(&none, &seen, POD), of_label);
        seen.labelled.clear();
        assert_eq!(
            dns(&none, &seen, POD),
            ("172.30.0.10".into(), "Service openshift-dns/dns-default".into())
        );
        seen.known.clear();
        assert_eq!(dns(&none, &seen, POD), ("10.96.0.99".into(), "own resolv.conf".into()));
        let (addresses, origin) = dns(&none, &seen, "nameserver 192.0.2.53\n");
        assert!(addresses.is_empty() && origin.contains("not known") && origin.contains("--cluster-dns"));
    }

    #[test]
    fn chooses_among_several_services_only_with_a_reason() {
        let two = labelled(&[
            ("kube-system/kube-dns", &["10.96.0.10"]),
            ("kube-system/kube-dns-upstream", &["10.96.0.11"]),
        ]);
        assert_eq!(dns(&Facts::default(), &two, "").0, "10.96.0.10");
        let renamed = labelled(&[("dns/a", &["10.96.0.10"]), ("dns/b", &["10.96.0.99"])]);
        assert_eq!(dns(&Facts::default(), &renamed, POD), ("10.96.0.99".into(), "Service dns/b".into()));
        let (addresses, origin) = dns(&Facts::default(), &renamed, "");
        assert!(addresses.is_empty() && origin.contains("dns/a, dns/b"), "{origin}");
        let only = labelled(&[("dns/a", &["10.96.0.10"])]);
        assert_eq!(dns(&Facts::default(), &only, "").0, "10.96.0.10");
    }

    #[test]
    fn passes_over_services_that_no_pod_can_ask() {
        let mut seen = labelled(&[("kube-system/kube-dns", &[]), ("kube-system/metrics", &["10.96.0.12"])]);
        seen.labelled.get_mut("kube-system/metrics").unwrap().serves_dns = false;
        assert_eq!(dns(&Facts::default(), &seen, POD).1, "own resolv.conf");
    }

    #[test]
    fn asks_the_sources_of_the_domain_in_their_order() {
        let domain = |given: &Facts, seen: &Seen, own: &str| {
            let found = find(given, seen, &ResolvConf::parse(own), &[]);
            (found.facts.cluster_domain.map(|one| one.to_string()), found.origins[1].1.is_known())
        };
        let given = Facts { cluster_domain: Some("flag.example".parse().unwrap()), ..Facts::default() };
        let corefile = ".:53 {\n kubernetes core.example\n}\n".to_owned();
        let seen = Seen { corefiles: BTreeMap::from([("coredns".to_owned(), corefile)]), ..Seen::default() };
        let known = |name: &str| (Some(name.to_owned()), true);
        assert_eq!(domain(&given, &seen, POD), known("flag.example"));
        assert_eq!(domain(&Facts::default(), &seen, POD), known("own.example"));
        assert_eq!(domain(&Facts::default(), &seen, ""), known("core.example"));
        assert_eq!(domain(&Facts::default(), &Seen::default(), ""), (None, false));
    }

    #[test]
    fn tells_no_host_searches_from_unknown_ones() {
        let searches = |text: Option<&str>| {
            let all = text.map(str::to_owned);
            let seen = Seen { host_searches: SearchTexts { all, pools: None }, ..Seen::default() };
            let found = find(&Facts::default(), &seen, &ResolvConf::default(), &[]);
            found.facts.host_searches.map(|all| all.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        assert_eq!(searches(None), None);
        assert_eq!(searches(Some("")), Some(Vec::new()));
        assert_eq!(searches(Some("none\n")), Some(Vec::new()));
        assert_eq!(searches(Some(".\n")), Some(Vec::new()));
        assert_eq!(searches(Some("a.example, b.example\n")).unwrap(), ["a.example", "b.example"]);
        assert_eq!(searches(Some("a.example bad_one")), None);
    }

    #[test]
    fn reads_pools_and_believes_none_where_a_line_is_wrong() {
        let found = |pools: &str, given: &Facts| {
            let texts = SearchTexts { all: Some("a.example".to_owned()), pools: Some(pools.to_owned()) };
            find(given, &Seen { host_searches: texts, ..Seen::default() }, &ResolvConf::default(), &[])
        };
        let good = found("\nnode-selector:pool=gpu:gpu.example\n label:bare:none\n", &Facts::default());
        assert_eq!((good.facts.pool_searches.len(), good.origins[2].1.is_known()), (2, true));
        let bad = found("node-selector:pool=gpu:gpu.example\ngpu\n", &Facts::default());
        assert!(bad.facts.pool_searches.is_empty() && bad.origins[2].1.to_string().contains("pools"));
        let given = Facts { pool_searches: good.facts.pool_searches[..1].to_vec(), ..Facts::default() };
        assert_eq!(found("label:bare:none", &given).facts.pool_searches, given.pool_searches);
    }

    #[test]
    fn believes_the_flag_before_the_nodes_reports() {
        let local = ["169.254.20.10".parse().unwrap()];
        let reports = [("a".to_owned(), Report::read("nodestub_fail_open{state=\"works\"} 1\n"))].into();
        let resolvers = Some(Resolvers { ready: 1, desired: 1 });
        let seen = Seen { resolvers, reports, ..Seen::default() };
        let fail_open =
            |given: &Facts, seen: &Seen| find(given, seen, &ResolvConf::default(), &local).facts.fail_open;
        assert_eq!(fail_open(&Facts::default(), &seen), FailOpen::At(local.to_vec()));
        assert_eq!(fail_open(&Facts::default(), &Seen::default()), FailOpen::NotProven);
        let vouched = Facts { fail_open: FailOpen::Everywhere, ..Facts::default() };
        assert_eq!(fail_open(&vouched, &Seen::default()), FailOpen::Everywhere);
    }

    #[test]
    fn counts_resolvers_by_flag_before_the_daemon_set() {
        let (flag, set) = (Resolvers { ready: 1, desired: 1 }, Resolvers { ready: 2, desired: 3 });
        let seen = Seen { resolvers: Some(set), ..Seen::default() };
        let resolvers = |given: Option<Resolvers>, seen: &Seen| {
            let given = Facts { resolvers: given, ..Facts::default() };
            find(&given, seen, &ResolvConf::default(), &[]).facts.resolvers
        };
        assert_eq!(resolvers(Some(flag), &seen), Some(flag));
        assert_eq!(resolvers(None, &seen), Some(set));
        assert_eq!(resolvers(None, &Seen::default()), None);
    }
}
