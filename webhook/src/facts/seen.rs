//! What watches have told of the cluster, as far as facts come from it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::reports::Reports;
use crate::admit::{Namespace, Resolvers};

/// The label of the cluster DNS Service, whatever it is called (kubeadm, kOps, k3s, GKE, EKS, AKS).
pub const DNS_LABEL: &str = "k8s-app=kube-dns";
/// Cluster DNS Services known by namespace and name: RKE2's chart, and OpenShift's operator.
pub const KNOWN_DNS_SERVICES: [(&str, &str); 2] =
    [("kube-system", "rke2-coredns-rke2-coredns"), ("openshift-dns", "dns-default")];
/// ConfigMaps of `kube-system` that may hold the cluster DNS's Corefile: kubeadm's and k3s's, and RKE2's.
pub const COREFILES: [&str; 2] = ["coredns", "rke2-coredns-rke2-coredns"];
/// The ConfigMap in the webhook's own namespace with the nodes' search domains, under [`HOST_SEARCHES_KEY`].
pub const HOST_SEARCHES: &str = "nodestub-host-searches";
/// Search domains between blanks or commas; empty when the nodes have none.
pub const HOST_SEARCHES_KEY: &str = "searches";
/// The key there with the search domains of node pools that have others: one `PLACE:KEY[=VALUE]:DOMAINS` on each line.
pub const POOL_SEARCHES_KEY: &str = "pools";
/// The resolvers' DaemonSet and their headless Service, in `kube-system`.
pub const RESOLVERS: &str = "nodestub-resolver";

/// The watch of all namespaces.
pub const NAMESPACES: &str = "namespaces";
/// The watches of Services that may be the cluster DNS.
pub const DNS_SERVICES: &str = "dns_services";
/// The watches of the cluster DNS's Corefile.
pub const COREFILE: &str = "corefile";
/// The watch of the nodes' search domains.
pub const SEARCHES: &str = "host_searches";
/// The watch of the resolvers' DaemonSet.
pub const DAEMON_SET: &str = "resolvers";

/// The watch of the resolvers' addresses.
pub const ENDPOINTS: &str = "resolver_endpoints";

/// Names of all watches, for metrics.
pub const SOURCES: [&str; 6] = [NAMESPACES, DNS_SERVICES, COREFILE, SEARCHES, DAEMON_SET, ENDPOINTS];

/// The cluster as it was seen last.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// All namespaces.
    pub namespaces: BTreeMap<String, Arc<Namespace>>,
    /// Services with [`DNS_LABEL`], by namespace and name.
    pub labelled: BTreeMap<String, DnsService>,
    /// Those of [`KNOWN_DNS_SERVICES`] that are there, by namespace and name.
    pub known: BTreeMap<String, DnsService>,
    /// Corefiles of the cluster DNS, by the ConfigMap's name.
    pub corefiles: BTreeMap<String, String>,
    /// The texts in [`HOST_SEARCHES`].
    pub host_searches: SearchTexts,
    /// The resolvers' DaemonSet.
    pub resolvers: Option<Resolvers>,
    /// What the nodes said when they were last asked.
    pub reports: Reports,
}

/// What [`HOST_SEARCHES`] says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SearchTexts {
    /// Of all nodes.
    pub all: Option<String>,
    /// Of pools that have others.
    pub pools: Option<String>,
}

/// A Service that may be the cluster DNS's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DnsService {
    /// Its cluster IPs; empty for a headless one.
    pub addresses: Vec<IpAddr>,
    /// It has a port 53.
    pub serves_dns: bool,
}

/// What one watch has told: the objects by key, replaced as a whole when the watch starts anew.
///
/// 1. `current` is what was seen last; nothing that happens to the watch takes from it but a complete new list.
/// 2. `coming` is a list that is not complete yet.
#[derive(Debug, Clone)]
pub struct Listing<T> {
    current: BTreeMap<String, T>,
    coming: Option<BTreeMap<String, T>>,
    /// It has been listed once, or the API server said that it will not be.
    answered: bool,
}

impl<T> Default for Listing<T> {
    fn default() -> Self {
        Self { current: BTreeMap::new(), coming: None, answered: false }
    }
}

/// What a watch tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told<T> {
    /// A complete list begins.
    Begin,
    /// An object of that list; none when it says nothing to us.
    Listed(String, Option<T>),
    /// The list is complete.
    Complete,
    /// An object is there, or has changed.
    Changed(String, Option<T>),
    /// An object is gone.
    Gone(String),
    /// The API server refuses the list: it does not exist, or is not for us.
    Refused,
}

impl<T> Listing<T> {
    /// What is there.
    #[must_use]
    pub fn current(&self) -> &BTreeMap<String, T> {
        &self.current
    }

    /// Whether anything is known, be it that nothing will be.
    #[must_use]
    pub fn answered(&self) -> bool {
        self.answered
    }

    /// Takes in one more thing told.
    pub fn hear(&mut self, told: Told<T>) {
        match told {
            Told::Begin => self.coming = Some(BTreeMap::new()),
            Told::Listed(key, value) => put(self.coming.get_or_insert_default(), key, value),
            Told::Complete => {
                if let Some(complete) = self.coming.take() {
                    self.current = complete;
                }
                self.answered = true;
            }
            Told::Changed(key, value) => put(&mut self.current, key, value),
            Told::Gone(key) => drop(self.current.remove(&key)),
            Told::Refused => self.answered = true,
        }
    }
}

fn put<T>(map: &mut BTreeMap<String, T>, key: String, value: Option<T>) {
    match value {
        Some(value) => drop(map.insert(key, value)),
        None => drop(map.remove(&key)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(told: impl IntoIterator<Item = Told<u8>>) -> Listing<u8> {
        let mut listing = Listing::default();
        told.into_iter().for_each(|told| listing.hear(told));
        listing
    }

    fn first() -> Vec<Told<u8>> {
        vec![
            Told::Begin,
            Told::Listed("a".into(), Some(1)),
            Told::Listed("b".into(), Some(2)),
            Told::Complete,
        ]
    }

    #[test]
    fn shows_a_list_only_when_it_is_complete() {
        let half = listing(first().into_iter().take(3));
        assert!(half.current().is_empty() && !half.answered());
        let whole = listing(first());
        assert!(whole.current().len() == 2 && whole.answered());
    }

    #[test]
    fn keeps_the_last_list_until_the_next_is_complete() {
        let again = [Told::Begin, Told::Listed("c".into(), Some(3))];
        let half = listing(first().into_iter().chain(again.clone()));
        assert_eq!(half.current().keys().collect::<Vec<_>>(), ["a", "b"]);
        let broken_off =
            listing(first().into_iter().chain(again.clone()).chain([Told::Begin]).chain(again.clone()));
        assert_eq!(broken_off.current().len(), 2);
        let whole = listing(first().into_iter().chain(again).chain([Told::Complete]));
        assert_eq!(whole.current().keys().collect::<Vec<_>>(), ["c"]);
    }

    #[test]
    fn follows_changes_and_counts_a_refusal_as_an_answer() {
        let changes =
            [Told::Changed("a".into(), Some(9)), Told::Gone("b".into()), Told::Changed("c".into(), None)];
        let listing_after = listing(first().into_iter().chain(changes));
        assert_eq!(listing_after.current().iter().collect::<Vec<_>>(), [(&"a".to_owned(), &9)]);
        let refused = listing([Told::Refused]);
        assert!(refused.answered() && refused.current().is_empty());
        assert_eq!(listing(first().into_iter().chain([Told::Refused])).current().len(), 2);
    }
}
