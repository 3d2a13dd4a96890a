//! The `dnsConfig` of an injected pod: what kubelet would have composed, with the local address first.
//!
//! With `dnsPolicy: None` kubelet adds nothing, so everything that it would have written for `ClusterFirst` is
//! rebuilt here in its order (`pkg/kubelet/network/dns/dns.go`), each entry once, the first kept:
//!
//! * nameservers: local, cluster DNS, the user's own; in room that is left, further local and cluster addresses
//!   (dual stack). The cluster DNS that stands behind the local address is of its family.
//! * searches: `NAMESPACE.svc.DOMAIN`, `svc.DOMAIN`, `DOMAIN`, the node's own, the user's own, and those that an
//!   annotation or the defaults add.
//! * options: `ndots:5`; over it the defaults, the namespace's annotations, the pod's; over all the user's own.
//!
//! The API refuses what kubelet would only have cut, so the lists are cut here, at the end.

use std::fmt;
use std::net::IpAddr;

use serde::Serialize;

use super::facts::Facts;
use super::hash::stable_hash;
use super::names::{Domain, MAX_NAME_BYTES};
use super::options::DnsOption;
use super::pod::Pod;
use super::policy::{Fallback, Overrides, Policy};
use super::reason::{Place, Warning};

/// The most nameservers of a pod (`MaxDNSNameservers` in Kubernetes' `pkg/apis/core/validation`).
pub const MAX_NAMESERVERS: usize = 3;
/// The most search domains of a pod (`MaxDNSSearchPaths`; KEP-2595).
pub const MAX_SEARCHES: usize = 32;
/// The longest search list, in characters with the blanks between (`MaxDNSSearchListChars`; KEP-2595).
pub const MAX_SEARCH_CHARACTERS: usize = 2048;
/// What kubelet gives every pod of `ClusterFirst` (`defaultDNSOptions` in `dns.go`).
pub const DEFAULT_NDOTS: u8 = 5;

/// What an injected pod's `dnsConfig` holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Injection {
    /// At most [`MAX_NAMESERVERS`].
    pub nameservers: Vec<String>,
    /// At most [`MAX_SEARCHES`] of [`MAX_SEARCH_CHARACTERS`].
    pub searches: Vec<String>,
    /// Each name once.
    pub options: Vec<DnsOption>,
}

impl Injection {
    /// A short hash of what was injected: the same for the same lists, for ever (FNV-1a, 64 bits, 16 hex digits).
    ///
    /// It tells pods of an older configuration apart; it is no protection against forgery.
    #[must_use]
    pub fn revision(&self) -> String {
        stable_hash(self.to_string().bytes())
    }
}

impl fmt::Display for Injection {
    /// The pod's `/etc/resolv.conf`, as kubelet will write it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.searches.is_empty() {
            writeln!(f, "search {}", self.searches.join(" "))?;
        }
        for nameserver in &self.nameservers {
            writeln!(f, "nameserver {nameserver}")?;
        }
        if !self.options.is_empty() {
            f.write_str("options")?;
            for option in &self.options {
                write!(f, " {option}")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

/// What the pod and its namespace say, the namespace's first.
pub(super) struct Levels {
    pub(super) namespace: Overrides,
    pub(super) pod: Overrides,
}

/// Composes the three lists, and says what had no room.
pub(super) fn compose(
    policy: &Policy,
    facts: &Facts,
    levels: &Levels,
    namespace: &str,
    cluster_domain: &Domain,
    pod: &Pod,
    warnings: &mut Vec<Warning>,
) -> Injection {
    let local = levels.pod.local_addresses.as_ref().or(levels.namespace.local_addresses.as_ref());
    let local = local.or(policy.defaults.local_addresses.as_ref()).unwrap_or(&policy.local_addresses);
    let fails_open = facts.fail_open.covers(local);
    let fallback = fallback(policy, fails_open, levels, pod, warnings);
    let cluster: &[IpAddr] = if fallback { &facts.cluster_dns } else { &[] };
    Injection {
        nameservers: nameservers(local, cluster, pod, warnings),
        searches: searches(policy, facts, levels, namespace, cluster_domain, pod, warnings),
        options: options(policy, levels, pod, warnings),
    }
}

/// Whether the cluster DNS stands behind the local address: as the nearest level asks whose wish can be granted.
fn fallback(
    policy: &Policy,
    fails_open: bool,
    levels: &Levels,
    pod: &Pod,
    warnings: &mut Vec<Warning>,
) -> bool {
    let wishes = [
        (Place::Pod, levels.pod.fallback),
        (Place::Namespace, levels.namespace.fallback),
        (Place::Webhook, policy.defaults.fallback),
    ];
    for (place, wish) in wishes {
        match wish {
            None => {}
            Some(Fallback::None) if !fails_open => warnings.push(Warning::FallbackRefused { place }),
            Some(Fallback::Cluster) => return true,
            // The kernel's fail-open does not reach processes in the node's own network.
            Some(Fallback::None) if pod.host_network() => {
                warnings.push(Warning::FallbackKeptForHostNetwork);
                return true;
            }
            Some(Fallback::Auto | Fallback::None) => return !fails_open || pod.host_network(),
        }
    }
    true
}

fn nameservers(local: &[IpAddr], cluster: &[IpAddr], pod: &Pod, warnings: &mut Vec<Warning>) -> Vec<String> {
    let mut servers: Vec<String> = Vec::with_capacity(MAX_NAMESERVERS);
    let mut dropped: Vec<String> = Vec::new();
    let add = |server: &str, servers: &mut Vec<String>| {
        if servers.iter().any(|known| known == server) {
            return true;
        }
        let room = servers.len() < MAX_NAMESERVERS;
        if room {
            servers.push(server.to_owned());
        }
        room
    };
    let first = local.first();
    let behind = cluster
        .iter()
        .find(|address| first.is_some_and(|first| first.is_ipv4() == address.is_ipv4()))
        .or(cluster.first());
    for address in first.into_iter().chain(behind) {
        add(&address.to_string(), &mut servers);
    }
    for server in pod.nameservers() {
        let known = dropped.iter().any(|known| known == server);
        if !add(server, &mut servers) && !known && dropped.len() < MAX_NAMESERVERS {
            dropped.push(server.to_owned());
        }
    }
    // A local address of the other family before a cluster address of it: musl asks all at once, and this spares
    // the cluster DNS. They fill what is left, so nothing is said when they do not fit.
    for address in local.iter().skip(1).chain(cluster) {
        add(&address.to_string(), &mut servers);
    }
    if !dropped.is_empty() {
        warnings.push(Warning::NameserversCut { dropped });
    }
    servers
}

fn searches(
    policy: &Policy,
    facts: &Facts,
    levels: &Levels,
    namespace: &str,
    domain: &Domain,
    pod: &Pod,
    warnings: &mut Vec<Warning>,
) -> Vec<String> {
    let cluster = [format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.to_string()];
    let pool = facts.pool_searches.iter().find(|pool| pool.pods.matches(pod)).map(|pool| &pool.searches);
    let of_host = pool.or(facts.host_searches.as_ref());
    let host = of_host.into_iter().flatten().map(Domain::as_str);
    let added = levels.pod.searches.as_ref().or(levels.namespace.searches.as_ref());
    let added = added.or(policy.defaults.searches.as_ref()).into_iter().flatten().map(Domain::as_str);

    let mut searches: Vec<String> = Vec::new();
    let mut characters = 0;
    let (mut full, mut dropped, mut first_dropped) = (false, 0, None);
    for search in cluster.iter().map(String::as_str).chain(host).chain(pod.searches()).chain(added) {
        if searches.iter().any(|known| known == search) {
            continue;
        }
        let blank = usize::from(!searches.is_empty());
        // Only a final dot makes a name of a pod longer; kubelet drops it, for old resolver libraries abort.
        let is_too_long = search.len() > MAX_NAME_BYTES;
        full |= !is_too_long
            && (searches.len() == MAX_SEARCHES || characters + blank + search.len() > MAX_SEARCH_CHARACTERS);
        // As kubelet does: from the first that has no room, none follows, for the order has a meaning.
        if is_too_long || full {
            dropped += 1;
            first_dropped.get_or_insert_with(|| search.to_owned());
        } else {
            characters += blank + search.len();
            searches.push(search.to_owned());
        }
    }
    if let Some(first) = first_dropped {
        warnings.push(Warning::SearchesCut { dropped, first });
    }
    if of_host.is_none() {
        warnings.push(Warning::HostSearchesUnknown);
    }
    searches
}

fn options(policy: &Policy, levels: &Levels, pod: &Pod, warnings: &mut Vec<Warning>) -> Vec<DnsOption> {
    let mut options = vec![DnsOption::ndots(DEFAULT_NDOTS)];
    let set = |option: &DnsOption, options: &mut Vec<DnsOption>| match options
        .iter_mut()
        .find(|known| known.name == option.name)
    {
        Some(known) => *known = option.clone(),
        None => options.push(option.clone()),
    };
    let mut by_pod: Vec<DnsOption> = Vec::new();
    for (level, is_pod) in [(&policy.defaults, false), (&levels.namespace, false), (&levels.pod, true)] {
        // Within a level `ndots` counts more than an `ndots` among the options.
        let ndots = level.ndots.map(DnsOption::ndots);
        for option in level.options.iter().chain(&ndots) {
            set(option, &mut options);
            if is_pod {
                set(option, &mut by_pod);
            }
        }
    }
    for option in pod.options() {
        set(option, &mut options);
    }
    for option in by_pod {
        let stands = options.iter().any(|known| known.says_the_same(&option));
        if !stands {
            warnings.push(Warning::OptionKept { name: option.name });
        }
    }
    options
}
