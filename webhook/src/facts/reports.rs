//! What the nodes' resolvers report of kernel fail-open, and what follows from it. Pure.
//!
//! A resolver says on its metrics page, for each of its addresses, whether queries are answered while it does not
//! listen ([`METRIC`]). `fallback: auto` and `none` need every node's word for every address that pods are given;
//! a node that says nothing, or cannot be asked, has not said yes.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::find::Origin;
use crate::admit::{FailOpen, Resolvers};

/// The gauge on a resolver's metrics page, one sample for each label `address` and `state`: 1 for the state that it is in,
/// 0 for the others; [`WORKS`] is that in which a query of its own was answered.
pub const METRIC: &str = "nodestub_fail_open";
/// The state that counts.
pub const WORKS: &str = "works";
/// The most nodes that are asked; Kubernetes itself stays below 5000 (its "considerations for large clusters").
pub const MAX_NODES: usize = 10_000;
/// How many nodes are named where not all have said yes.
const MAX_NAMED: usize = 3;

/// What one node said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    /// By address, whether fail-open works; one with no address speaks of all.
    Said(BTreeMap<Option<IpAddr>, bool>),
    /// It could not be asked, or its page does not tell.
    Silent(String),
}

/// Reports by the name of the node.
pub type Reports = BTreeMap<String, Report>;

impl Report {
    /// Reads a metrics page (Prometheus's text format, 0.0.4, or OpenMetrics). Only samples of state [`WORKS`] count, and of
    /// their labels `address`; of several samples for an address all must say yes.
    #[must_use]
    pub fn read(page: &str) -> Self {
        let mut said: BTreeMap<Option<IpAddr>, bool> = BTreeMap::new();
        for line in page.lines() {
            let Some(rest) = line.strip_prefix(METRIC) else { continue };
            let (labels, value) = match rest.strip_prefix('{') {
                Some(rest) => match rest.rsplit_once('}') {
                    Some((labels, value)) => (labels, value),
                    None => continue,
                },
                // Else it is the name of another metric.
                None if rest.starts_with(' ') => ("", rest),
                None => continue,
            };
            if label(labels, "state") != Some(WORKS) {
                continue;
            }
            let value = value.split_whitespace().next().and_then(|text| text.parse::<f64>().ok());
            let Some(value) = value else { continue };
            let address = match label(labels, "address") {
                None => None,
                Some(text) => match text.parse() {
                    Ok(address) => Some(address),
                    Err(_) => continue,
                },
            };
            let yes = (value - 1.0).abs() < f64::EPSILON;
            said.entry(address).and_modify(|all| *all &= yes).or_insert(yes);
        }
        if said.is_empty() {
            return Self::Silent(format!("there is no {METRIC} on its metrics page"));
        }
        Self::Said(said)
    }

    /// Whether fail-open works there for all of these addresses.
    #[must_use]
    pub fn covers(&self, addresses: &[IpAddr]) -> bool {
        let Self::Said(said) = self else { return false };
        let works = |address: &IpAddr| said.get(&Some(*address)).or(said.get(&None)) == Some(&true);
        !addresses.is_empty() && addresses.iter().all(works)
    }

    fn why_not(&self) -> &str {
        match self {
            Self::Silent(why) => why,
            Self::Said(_) => "fail-open does not work there",
        }
    }
}

/// The value of a label; without escapes, which addresses do not have.
fn label<'a>(labels: &'a str, name: &str) -> Option<&'a str> {
    let mut parts = labels.split(',').map(str::trim);
    parts
        .find_map(|part| part.strip_prefix(name)?.trim_start().strip_prefix('=')?.trim().strip_prefix('"'))?
        .strip_suffix('"')
}

/// What all nodes together say of the addresses that pods are given.
#[must_use]
pub fn judge(
    reports: &Reports,
    resolvers: Option<Resolvers>,
    local_addresses: &[IpAddr],
) -> (FailOpen, Origin) {
    let unknown = |why: String| (FailOpen::NotProven, Origin::Unknown(why));
    let nodes = match resolvers {
        None => return unknown("it is not known which nodes should have a resolver".to_owned()),
        Some(Resolvers { desired: 0, .. }) => return unknown("no node should have a resolver".to_owned()),
        Some(resolvers) => usize::try_from(resolvers.desired).unwrap_or(usize::MAX),
    };
    let not_yet: Vec<_> = reports.iter().filter(|(_, report)| !report.covers(local_addresses)).collect();
    if !not_yet.is_empty() {
        let named =
            not_yet.iter().take(MAX_NAMED).map(|(node, report)| format!("{node}: {}", report.why_not()));
        let named = named.collect::<Vec<_>>().join("; ");
        return unknown(format!("{} of {nodes} nodes do not report it ({named})", not_yet.len()));
    }
    if reports.len() < nodes {
        return unknown(format!("{} of {nodes} nodes report it", reports.len()));
    }
    let origin = Origin::Object(format!("the reports of {} nodes", reports.len()));
    (FailOpen::At(local_addresses.to_vec()), origin)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "# HELP nodestub_fail_open 1 where ...\n# TYPE nodestub_fail_open gauge\n\
        nodestub_fail_open{address=\"169.254.20.10\",to=\"10.96.0.10\",state=\"works\"} 1\n\
        nodestub_fail_open{address=\"169.254.20.10\",to=\"10.96.0.10\",state=\"broken\"} 0\n\
        nodestub_fail_open{to=\"off, as { asked }\",address=\"10.96.0.10\",state=\"works\"} 0\n\
        nodestub_fail_open_tries_total{address=\"fd00::a\"} 1\nnodestub_ready 1\n";

    fn addresses(all: &[&str]) -> Vec<IpAddr> {
        all.iter().map(|one| one.parse().unwrap()).collect()
    }

    #[test]
    fn reads_what_a_resolver_says_of_each_address() {
        let report = Report::read(PAGE);
        assert!(report.covers(&addresses(&["169.254.20.10"])));
        assert!(!report.covers(&addresses(&["10.96.0.10"])));
        assert!(!report.covers(&addresses(&["169.254.20.10", "10.96.0.10"])));
        assert!(!report.covers(&addresses(&["fd00::a"])), "another metric does not count");
        assert!(!report.covers(&[]));
    }

    #[test]
    fn takes_one_no_for_a_no_and_rubbish_for_silence() {
        let twice = "nodestub_fail_open{address=\"::1\",state=\"works\"} 1\nnodestub_fail_open{address=\"::1\",by=\"a\",state=\"works\"} 0\n";
        assert!(!Report::read(twice).covers(&addresses(&["::1"])));
        assert!(
            Report::read("nodestub_fail_open{state=\"works\"} 1 1700000000\n").covers(&addresses(&["::1"]))
        );
        for page in [
            "",
            "nodestub_fail_open",
            "nodestub_fail_open{ 1",
            "nodestub_fail_open{address=\"x\",state=\"works\"} 1",
            "nodestub_fail_open{address=\"::1\",state=\"works\"} yes",
            "nodestub_fail_open{address=\"::1\",state=\"works\"}",
        ] {
            assert!(matches!(Report::read(page), Report::Silent(_)), "{page:?}");
        }
        for value in ["NaN", "0", "2", "0.5", "+Inf", "-1"] {
            assert!(
                !Report::read(&format!("nodestub_fail_open{{state=\"works\"}} {value}\n"))
                    .covers(&addresses(&["::1"])),
                "{value}"
            );
        }
    }

    #[test]
    fn is_proven_by_every_node_and_by_nothing_less() {
        let local = addresses(&["169.254.20.10"]);
        let all = |nodes: &[(&str, Report)], desired: u32| {
            let reports = nodes.iter().map(|(name, report)| ((*name).to_owned(), report.clone())).collect();
            let (fact, origin) = judge(&reports, Some(Resolvers { ready: desired, desired }), &local);
            (fact, origin.to_string())
        };
        let (yes, no) = (Report::read(PAGE), Report::read("nodestub_fail_open{state=\"works\"} 0\n"));
        assert_eq!(all(&[("a", yes.clone()), ("b", yes.clone())], 2).0, FailOpen::At(local.clone()));
        let (fact, why) = all(&[("a", yes.clone())], 2);
        assert!(fact == FailOpen::NotProven && why.contains("1 of 2 nodes report it"), "{why}");
        let (fact, why) = all(&[("a", yes.clone()), ("b", no)], 2);
        assert!(fact == FailOpen::NotProven && why.contains("b: fail-open does not work"), "{why}");
        let (fact, why) = all(&[("a", yes.clone()), ("b", Report::Silent("no answer".to_owned()))], 2);
        assert!(fact == FailOpen::NotProven && why.contains("b: no answer"), "{why}");
        assert_eq!(all(&[("a", yes)], 0).0, FailOpen::NotProven);
        assert_eq!(judge(&Reports::new(), None, &local).0, FailOpen::NotProven);
    }
}
