//! What is known of the cluster. A fact that is not known is said to be unknown; none is guessed.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::names::Domain;

/// The cluster as far as it is known at the moment of a decision.
#[derive(Debug, Clone, Default)]
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
    /// Namespaces by name.
    pub namespaces: BTreeMap<String, Namespace>,
}

/// What a namespace says about itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Namespace {
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
}
