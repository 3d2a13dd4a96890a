//! What is known of the cluster. A fact that is not known is said to be unknown; none is guessed.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use super::names::{Domain, NotADomain};
use super::selector::PodSelector;

/// The cluster as far as it is known at the moment of a decision.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// Addresses of the cluster DNS; empty when not known.
    pub cluster_dns: Vec<IpAddr>,
    /// The cluster's domain, such as `cluster.local`, of at most
    /// [`MAX_CLUSTER_DOMAIN_BYTES`](super::names::MAX_CLUSTER_DOMAIN_BYTES).
    pub cluster_domain: Option<Domain>,
    /// The search domains of the nodes themselves, which kubelet adds to every pod; none when not known.
    pub host_searches: Option<Vec<Domain>>,
    /// Those of nodes that have others than the rest; the first that takes a pod counts.
    pub pool_searches: Vec<PoolSearches>,
    /// Where queries reach the cluster DNS while no resolver listens on the node.
    pub fail_open: FailOpen,
    /// The resolvers of all nodes; none when not known.
    pub resolvers: Option<Resolvers>,
    /// Namespaces by name; shared, for a snapshot is made of the one before it.
    pub namespaces: BTreeMap<String, Arc<Namespace>>,
}

/// On every node, queries to these addresses reach the cluster DNS while no resolver listens there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum FailOpen {
    /// Not every node reports it, or nobody knows.
    #[default]
    NotProven,
    /// Every node reports it for these addresses.
    At(Vec<IpAddr>),
    /// The operator vouches for it, whatever the address.
    Everywhere,
}

impl FailOpen {
    /// Whether pods with these nameservers need no other for the time in which their node's resolver is down.
    #[must_use]
    pub fn covers(&self, addresses: &[IpAddr]) -> bool {
        match self {
            Self::NotProven => false,
            Self::At(proven) => !addresses.is_empty() && addresses.iter().all(|one| proven.contains(one)),
            Self::Everywhere => true,
        }
    }
}

impl fmt::Display for FailOpen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotProven => f.write_str("not proven"),
            Self::At(addresses) => {
                let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
                write!(f, "on every node at {}", addresses.join(" "))
            }
            Self::Everywhere => f.write_str("everywhere"),
        }
    }
}

/// The search domains of the nodes of one pool, written `PLACE:KEY[=VALUE]:DOMAIN[,DOMAIN...]`.
///
/// Which node a pod will run on is not known when it is made; so a pool is known by what its pods must say, such as
/// `node-selector:pool=gpu`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolSearches {
    /// The pods that run there.
    pub pods: PodSelector,
    /// May be empty: those nodes have none.
    pub searches: Vec<Domain>,
}

impl FromStr for PoolSearches {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (selector, domains) = text.rsplit_once(':').ok_or_else(|| {
            format!("{text:?} is not PLACE:KEY[=VALUE]:DOMAIN[,DOMAIN...], such as node-selector:pool=gpu:gpu.example")
        })?;
        let words = domains.split([',', ' ']).filter(|word| !["", ".", "none"].contains(word));
        let searches = words.map(|word| word.parse().map_err(|bad: NotADomain| bad.to_string()));
        Ok(Self { pods: selector.parse()?, searches: searches.collect::<Result<_, _>>()? })
    }
}

/// How many nodes have a resolver that is ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resolvers {
    /// Nodes whose resolver is ready.
    pub ready: u32,
    /// Nodes that should have one.
    pub desired: u32,
}

impl Resolvers {
    /// Whether at least that many percent are ready; never where no node should have one.
    #[must_use]
    pub fn reach(self, percent: u8) -> bool {
        self.desired > 0 && u64::from(self.ready) * 100 >= u64::from(self.desired) * u64::from(percent)
    }
}

impl fmt::Display for Resolvers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.ready, self.desired)
    }
}

impl FromStr for Resolvers {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let read = |(ready, desired): (&str, &str)| {
            Some(Self { ready: ready.parse().ok()?, desired: desired.parse().ok()? })
        };
        let resolvers = text.split_once('/').and_then(read).filter(|one| one.ready <= one.desired);
        resolvers.ok_or_else(|| format!("{text:?} is not READY/NODES, such as 9/10"))
    }
}

/// What a namespace says about itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Namespace {
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_searches_of_a_pool() {
        let pool: PoolSearches = "node-selector:pool=gpu:a.example,b.example.".parse().unwrap();
        assert_eq!(pool.pods.to_string(), "node-selector:pool=gpu");
        assert_eq!(pool.searches.iter().map(Domain::as_str).collect::<Vec<_>>(), ["a.example", "b.example"]);
        assert!("label:bare:none".parse::<PoolSearches>().unwrap().searches.is_empty());
        for bad in ["", "gpu", "pool=gpu:a.example", "label:pool:_bad"] {
            assert!(bad.parse::<PoolSearches>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn needs_every_address_to_be_proven() {
        let [a, b] = ["169.254.20.10", "fd00::a"].map(|one| one.parse::<IpAddr>().unwrap());
        assert!(!FailOpen::NotProven.covers(&[a]));
        assert!(FailOpen::At(vec![b, a]).covers(&[a, b]));
        assert!(!FailOpen::At(vec![a]).covers(&[a, b]) && !FailOpen::At(vec![a]).covers(&[]));
        assert!(FailOpen::Everywhere.covers(&[b]));
    }
}
