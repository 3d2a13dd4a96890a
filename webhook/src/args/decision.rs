//! What decisions depend on, for whoever decides: the webhook, the policy, and `explain`.

use std::collections::BTreeMap;
use std::net::IpAddr;

use clap::{Args, ValueEnum};

use super::ArgsError;
use crate::admit::names::{MAX_CLUSTER_DOMAIN_BYTES, is_label};
use crate::admit::selector::DEFAULT_LEAVE_ALONE;
use crate::admit::{
    DnsOption, Domain, Facts, FailOpen, Fallback, Overrides, PodSelector, Policy, PoolSearches, Resolvers,
    Share, is_usable,
};

/// What decisions depend on: the operator's choices, and facts that the operator gives. Shared with `explain`.
/// Namespaces apart.
#[derive(Debug, Args)]
pub struct DecisionArgs {
    /// Address of the resolver on each node (repeatable: one for each family, the preferred first)
    #[arg(
        long,
        env = "NODESTUB_LOCAL_ADDRESS",
        value_name = "IP",
        value_delimiter = ',',
        default_value = "169.254.20.10"
    )]
    local_address: Vec<IpAddr>,
    /// Address of the cluster DNS Service (repeatable: one for each family; unset: found in the cluster, never guessed)
    #[arg(long, env = "NODESTUB_CLUSTER_DNS", value_name = "IP", value_delimiter = ',')]
    cluster_dns: Vec<IpAddr>,
    /// The cluster's domain, such as cluster.local (unset: found in the cluster, never guessed)
    #[arg(long, env = "NODESTUB_CLUSTER_DOMAIN", value_name = "DOMAIN")]
    cluster_domain: Option<Domain>,
    /// A search domain of the nodes' own resolv.conf (repeatable; `none` when they have none; unset: not known, and pods are told so)
    #[arg(long, env = "NODESTUB_HOST_SEARCH", value_name = "DOMAIN", value_delimiter = ',')]
    host_search: Option<Vec<Domain>>,
    /// Those of nodes that have others, by what the pods there say: PLACE:KEY[=VALUE]:DOMAIN[,DOMAIN...] (repeatable; in the environment, with `;` between)
    ///
    /// PLACE as for --leave-alone; such as node-selector:pool=gpu:gpu.example
    #[arg(long, env = "NODESTUB_POOL_HOST_SEARCH", value_name = "SELECTOR:DOMAINS", value_delimiter = ';')]
    pool_host_search: Vec<PoolSearches>,
    /// How many nodes have a ready resolver, such as 9/10 (unset: found in the cluster)
    #[arg(long, env = "NODESTUB_RESOLVERS", value_name = "READY/NODES")]
    resolvers: Option<Resolvers>,
    /// Percent of nodes whose resolver must be ready, or pods are left alone; 0: never mind (unset: 90 with facts from the cluster, else 0)
    #[arg(long, env = "NODESTUB_MIN_READY_RESOLVERS", value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(0..=100))]
    min_ready_resolvers: Option<u8>,
    /// Share of workloads to inject in namespaces that do not say otherwise
    #[arg(long, env = "NODESTUB_ROLLOUT", value_name = "PERCENT", default_value_t = Share::ALL)]
    rollout: Share,
    /// ndots for pods that do not say otherwise (unset: 5, as without Nodestub)
    #[arg(long, env = "NODESTUB_NDOTS", value_name = "N", value_parser = clap::value_parser!(u8).range(0..=15))]
    ndots: Option<u8>,
    /// Options for pods that do not say otherwise, such as timeout:1,attempts:2
    #[arg(long, env = "NODESTUB_OPTIONS", value_name = "OPTIONS", value_delimiter = ',')]
    options: Vec<DnsOption>,
    /// Search domains to add to pods that do not say otherwise (repeatable)
    #[arg(long, env = "NODESTUB_SEARCHES", value_name = "DOMAIN", value_delimiter = ',')]
    searches: Option<Vec<Domain>>,
    /// What stands behind the local address: cluster, auto (cluster, unless every node fails open), or none (only then)
    #[arg(long, env = "NODESTUB_FALLBACK", value_name = "WHAT")]
    fallback: Option<Fallback>,
    /// Every node's kernel sends queries on to the cluster DNS while its resolver does not listen (unset: as the nodes report)
    #[arg(long, env = "NODESTUB_FAIL_OPEN_EVERYWHERE")]
    fail_open_everywhere: bool,
    /// Pods that run where no resolver listens, besides the known kinds: PLACE:KEY[=VALUE] (repeatable)
    ///
    /// PLACE is label, annotation, node-selector, toleration or resource.
    #[arg(long, env = "NODESTUB_LEAVE_ALONE", value_name = "SELECTOR", value_delimiter = ',')]
    leave_alone: Vec<PodSelector>,
    /// The namespace that the webhook lives in; its pods are left alone
    #[arg(long, env = "NODESTUB_OWN_NAMESPACE", value_name = "NAME", default_value = "nodestub-system")]
    own_namespace: String,
}

/// Where facts come from that no flag gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum FactsFrom {
    /// Nowhere: flags give them all.
    Flags,
    /// They are found in the cluster and watched.
    Cluster,
}

/// Percent of nodes whose resolver must be ready where they can be counted.
pub const DEFAULT_MIN_READY_PERCENT: u8 = 90;

impl DecisionArgs {
    /// The namespace that the webhook lives in.
    #[cfg(feature = "kube")]
    pub(crate) fn own_namespace(&self) -> &str {
        &self.own_namespace
    }

    /// Sorts the flags into what the operator chose and what they say of the cluster.
    ///
    /// # Errors
    /// When flags contradict each other, or one is missing that nothing else can tell.
    pub fn split(self, facts_from: FactsFrom) -> Result<(Policy, Facts), ArgsError> {
        self.check(facts_from)?;
        let default_percent = match facts_from {
            FactsFrom::Flags => 0,
            FactsFrom::Cluster => DEFAULT_MIN_READY_PERCENT,
        };
        let known = DEFAULT_LEAVE_ALONE.iter().filter_map(|text| text.parse().ok());
        let policy = Policy {
            own_namespace: self.own_namespace,
            local_addresses: self.local_address,
            defaults: Overrides {
                ndots: self.ndots,
                options: self.options,
                searches: self.searches,
                fallback: self.fallback,
                local_addresses: None,
            },
            leave_alone: known.chain(self.leave_alone).collect(),
            min_ready_percent: self.min_ready_resolvers.unwrap_or(default_percent),
            rollout: self.rollout,
        };
        let facts = Facts {
            cluster_dns: self.cluster_dns,
            cluster_domain: self.cluster_domain,
            host_searches: self.host_search.map(or_none),
            pool_searches: self.pool_host_search,
            fail_open: if self.fail_open_everywhere { FailOpen::Everywhere } else { FailOpen::NotProven },
            resolvers: self.resolvers,
            namespaces: BTreeMap::new(),
        };
        Ok((policy, facts))
    }

    fn check(&self, facts_from: FactsFrom) -> Result<(), ArgsError> {
        match facts_from {
            FactsFrom::Flags if self.cluster_domain.is_none() => {
                return Err(ArgsError::Missing("--cluster-domain"));
            }
            FactsFrom::Flags if self.cluster_dns.is_empty() => {
                return Err(ArgsError::Missing("--cluster-dns"));
            }
            FactsFrom::Flags
                if self.min_ready_resolvers.is_some_and(|percent| percent > 0)
                    && self.resolvers.is_none() =>
            {
                return Err(ArgsError::Missing("--resolvers"));
            }
            FactsFrom::Cluster if cfg!(not(feature = "kube")) => return Err(ArgsError::NoClient),
            FactsFrom::Flags | FactsFrom::Cluster => {}
        }
        if let Some(domain) = &self.cluster_domain
            && domain.as_str().len() > MAX_CLUSTER_DOMAIN_BYTES
        {
            return Err(ArgsError::LongClusterDomain(domain.clone()));
        }
        if self.local_address.len() > 2 {
            return Err(ArgsError::ManyLocalAddresses(self.local_address.len()));
        }
        if let Some(address) = self.local_address.iter().chain(&self.cluster_dns).find(|one| !is_usable(one))
        {
            return Err(ArgsError::UselessAddress(*address));
        }
        if facts_from == FactsFrom::Flags
            && self.fallback == Some(Fallback::None)
            && !self.fail_open_everywhere
        {
            return Err(ArgsError::NoFallback);
        }
        if !is_label(&self.own_namespace) {
            return Err(ArgsError::OwnNamespace(self.own_namespace.clone()));
        }
        Ok(())
    }
}

/// A list of only `none` is empty: known to be.
pub(crate) fn or_none(names: Vec<Domain>) -> Vec<Domain> {
    let none = names.len() == 1 && names.iter().all(|name| name.as_str() == "none");
    if none { Vec::new() } else { names }
}
