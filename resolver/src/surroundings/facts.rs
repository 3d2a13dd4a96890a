//! The folder of facts: the ConfigMap `kube-system/nodestub-facts`, mounted. The webhook writes it; each key is a file.
//!
//! A mounted ConfigMap changes by its link `..data` being swapped, so each file is old or new and never half. It is read anew
//! at every look: three small files.

use std::io::Read;
use std::net::IpAddr;
use std::path::Path;

/// Longest file that is read, in bytes.
const MAX_BYTES: u64 = 4096;

/// What the folder says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// The addresses of the cluster DNS, the preferred one first.
    pub cluster_dns: Vec<IpAddr>,
    /// The cluster's domain.
    pub cluster_domain: Option<String>,
}

impl Facts {
    /// What is there now. What is missing, too long or no value is not known.
    pub(super) fn read(folder: &Path) -> Self {
        let text = |key: &str| {
            let mut text = String::new();
            let file = std::fs::File::open(folder.join(key)).ok()?;
            file.take(MAX_BYTES).read_to_string(&mut text).ok()?;
            Some(text.trim().to_owned()).filter(|text| !text.is_empty())
        };
        let list = |key| text(key).map(|text| super::addresses(&text)).unwrap_or_default();
        let mut cluster_dns = list("cluster-dns-preferred");
        for address in list("cluster-dns") {
            if !cluster_dns.contains(&address) {
                cluster_dns.push(address);
            }
        }
        let cluster_domain =
            text("cluster-domain").filter(|text| text.parse::<nodestub_wire::Name>().is_ok());
        Self { cluster_dns, cluster_domain }
    }

    /// With what was known before in place of what is not known now: a fact that is lost again is still the last one.
    pub(super) fn or(self, before: &Self) -> Self {
        Self {
            cluster_dns: if self.cluster_dns.is_empty() {
                before.cluster_dns.clone()
            } else {
                self.cluster_dns
            },
            cluster_domain: self.cluster_domain.or_else(|| before.cluster_domain.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_webhook_writes_and_passes_over_what_is_no_value() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Facts::read(folder.path()), Facts::default());
        let write = |key: &str, text: &str| std::fs::write(folder.path().join(key), text).unwrap();
        write("cluster-dns", "10.96.0.10,fd00:10:96::a");
        write("cluster-dns-preferred", "fd00:10:96::a");
        write("cluster-domain", "k8s.example\n");
        let facts = Facts::read(folder.path());
        assert_eq!(facts.cluster_dns, super::super::addresses("fd00:10:96::a,10.96.0.10"));
        assert_eq!(facts.cluster_domain.as_deref(), Some("k8s.example"));
        write("cluster-dns", "<nil>");
        write("cluster-dns-preferred", "");
        write("cluster-domain", "two words");
        let later = Facts::read(folder.path());
        assert_eq!(later, Facts::default());
        assert_eq!(later.or(&facts), facts);
    }
}
