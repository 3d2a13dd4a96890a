//! What the operator chose: defaults, and which pods to leave alone.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use super::names::Domain;
use super::options::DnsOption;
use super::rollout::Share;
use super::selector::PodSelector;

/// Namespaces that are never touched: a cluster must be able to start without us.
pub const SYSTEM_NAMESPACES: [&str; 3] = ["kube-system", "kube-public", "kube-node-lease"];

/// The settings of one webhook.
#[derive(Debug, Clone)]
pub struct Policy {
    /// The namespace that the webhook itself lives in; its pods are left alone.
    pub own_namespace: String,
    /// The resolver's addresses on each node, the preferred first; never empty.
    pub local_addresses: Vec<IpAddr>,
    /// What holds where neither pod nor namespace say otherwise.
    pub defaults: Overrides,
    /// Pods that run where no resolver listens.
    pub leave_alone: Vec<PodSelector>,
    /// Percent of nodes whose resolver must be ready; below it pods are left alone. 0: that is not looked at.
    pub min_ready_percent: u8,
    /// The share of workloads in namespaces that do not say otherwise.
    pub rollout: Share,
}

/// The settings of one level: the webhook's defaults, a namespace's annotations or a pod's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overrides {
    /// `ndots`; stays what the pod would have had (5) where no level says otherwise.
    pub ndots: Option<u8>,
    /// Further options; levels are merged by the option's name.
    pub options: Vec<DnsOption>,
    /// Search domains that are added at the end; the nearest level that has any replaces the others.
    pub searches: Option<Vec<Domain>>,
    /// What stands behind the local address.
    pub fallback: Option<Fallback>,
    /// Addresses instead of the policy's.
    pub local_addresses: Option<Vec<IpAddr>>,
}

/// What stands behind the local address in the list of nameservers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fallback {
    /// The cluster DNS, always.
    Cluster,
    /// The cluster DNS, unless every node reports that kernel fail-open works.
    Auto,
    /// Nothing; refused unless every node reports that kernel fail-open works.
    None,
}

/// What a warning says is allowed for a fallback.
pub const ALLOWED_FALLBACKS: &str = "cluster, auto, none";

impl fmt::Display for Fallback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cluster => "cluster",
            Self::Auto => "auto",
            Self::None => "none",
        })
    }
}

impl FromStr for Fallback {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "cluster" => Ok(Self::Cluster),
            "auto" => Ok(Self::Auto),
            "none" => Ok(Self::None),
            _ => Err(format!("{text:?} is not a fallback; allowed: {ALLOWED_FALLBACKS}")),
        }
    }
}
