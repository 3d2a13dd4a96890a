//! What the webhook's own `/etc/resolv.conf` tells of the cluster.
//!
//! Kubelet writes `NAMESPACE.svc.DOMAIN svc.DOMAIN DOMAIN` into the search list of pods that ask the cluster DNS. Only
//! where that stands there, the file speaks of the cluster; with `hostNetwork` or `dnsPolicy: Default` it is the
//! node's, and its nameservers are not the cluster's.

use std::net::IpAddr;

use crate::admit::Domain;

/// The two lines of resolv.conf(5) that matter here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResolvConf {
    nameservers: Vec<IpAddr>,
    searches: Vec<String>,
}

impl ResolvConf {
    /// Reads the text; lines that are not understood do not count, as in the C library.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut read = Self::default();
        for line in text.lines() {
            let mut words = line.split_ascii_whitespace();
            match words.next() {
                Some("nameserver") => {
                    read.nameservers.extend(words.next().and_then(|word| word.parse::<IpAddr>().ok()));
                }
                // The last one counts (resolv.conf(5)).
                Some("search") => read.searches = words.map(str::to_owned).collect(),
                _ => {}
            }
        }
        read
    }

    /// The cluster's domain, where the search list has kubelet's pattern.
    #[must_use]
    pub fn cluster_domain(&self) -> Option<Domain> {
        self.searches.windows(3).find_map(|window| {
            let [of_namespace, of_services, domain] = window else { return None };
            let services = of_namespace.split_once('.')?.1;
            let fits = services == of_services && of_services.strip_prefix("svc.") == Some(domain);
            if fits { domain.parse().ok() } else { None }
        })
    }

    /// The nameservers of the cluster: none where the file is not the cluster's, and none that is on the node itself.
    #[must_use]
    pub fn cluster_dns(&self, local_addresses: &[IpAddr]) -> Vec<IpAddr> {
        if self.cluster_domain().is_none() {
            return Vec::new();
        }
        let own = self.nameservers.iter().copied();
        own.filter(|address| !local_addresses.contains(address) && !stays_on_the_node(address)).collect()
    }
}

fn stays_on_the_node(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_loopback() || address.is_link_local() || address.is_unspecified(),
        IpAddr::V6(address) => {
            address.is_loopback() || address.is_unicast_link_local() || address.is_unspecified()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: &str = "search nodestub-system.svc.k8s.example svc.k8s.example k8s.example corp.example\n\
        nameserver 169.254.20.10\nnameserver 10.96.0.10\nnameserver fd00:10:96::a\noptions ndots:5\n";

    #[test]
    fn reads_what_kubelet_wrote() {
        let read = ResolvConf::parse(POD);
        assert_eq!(read.cluster_domain().unwrap().as_str(), "k8s.example");
        let dns = ["10.96.0.10", "fd00:10:96::a"].map(|one| one.parse::<IpAddr>().unwrap());
        assert_eq!(read.cluster_dns(&[]), dns);
        assert_eq!(read.cluster_dns(&dns[..1]), dns[1..]);
    }

    #[test]
    fn takes_nothing_from_a_file_that_is_the_nodes() {
        for text in [
            "",
            "nameserver 192.0.2.1\n",
            "search corp.example example\nnameserver 192.0.2.1\n",
            "search a.svc.x svc.y y\nnameserver 192.0.2.1\n",
            "search svc.cluster.local cluster.local\nnameserver 192.0.2.1\n",
            "search a.svc. svc. .\nnameserver 192.0.2.1\n",
            "search a.svc.b svc.b b\nsearch corp.example\nnameserver 192.0.2.1\n",
        ] {
            let read = ResolvConf::parse(text);
            assert_eq!((read.cluster_domain(), read.cluster_dns(&[])), (None, Vec::new()), "{text:?}");
        }
    }

    #[test]
    fn survives_lines_that_are_none() {
        let text = "\u{0}\nnameserver\nnameserver x\nnameserver 1.1.1.1 2.2.2.2\n;search a b c\nsearch\n";
        assert_eq!(ResolvConf::parse(text).nameservers, ["1.1.1.1".parse::<IpAddr>().unwrap()]);
    }
}
