//! What is known of the cluster. A fact that is not known is said to be unknown; none is guessed.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use super::names::Domain;

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
    /// Every node reports that queries reach the cluster DNS while no resolver listens on the node.
    pub fail_open_everywhere: bool,
    /// The resolvers of all nodes; none when not known.
    pub resolvers: Option<Resolvers>,
    /// Namespaces by name; shared, for a snapshot is made of the one before it.
    pub namespaces: BTreeMap<String, Arc<Namespace>>,
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
