//! What resolvers need to know, in one ConfigMap of `kube-system`: the only thing that the webhook writes there.
//!
//! By server-side apply with a field manager of our own, so that fields of others stay theirs, and all replicas of the
//! webhook can write: they write the same. A fact that is lost again stays as it was published.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::cluster::in_one_line;
use crate::admit::Facts;
use crate::metrics::Metrics;

/// The ConfigMap's name. It is part of the manifests: the webhook may change it, but make no other.
pub const FACTS_CONFIG_MAP: &str = "nodestub-facts";
/// Its namespace.
pub const FACTS_NAMESPACE: &str = "kube-system";
/// Who we are among the managers of its fields.
pub const FIELD_MANAGER: &str = "nodestub-webhook";

/// After a write failed.
const RETRY: Duration = Duration::from_secs(10);
/// How long one write may take.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// The data of the ConfigMap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published(BTreeMap<&'static str, String>);

impl Published {
    /// Out of facts; none while what resolvers cannot do without is not known.
    #[must_use]
    pub fn of(facts: &Facts, local_addresses: &[IpAddr]) -> Option<Self> {
        let preferred = facts.cluster_dns.first()?.to_string();
        let domain = facts.cluster_domain.as_ref()?.to_string();
        let list = |all: &[IpAddr]| all.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        Some(Self(BTreeMap::from([
            ("cluster-dns", list(&facts.cluster_dns)),
            ("cluster-dns-preferred", preferred),
            ("cluster-domain", domain),
            ("local-addresses", list(local_addresses)),
            // For `explain`, which asks no node.
            (
                "fail-open",
                if facts.fail_open.covers(local_addresses) { list(local_addresses) } else { String::new() },
            ),
        ])))
    }

    /// What is applied.
    #[must_use]
    pub fn object(&self) -> Value {
        json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": FACTS_CONFIG_MAP, "namespace": FACTS_NAMESPACE},
            "data": self.0,
        })
    }
}

/// Writes whatever comes, until it is written or something newer has come.
pub(super) async fn run(
    client: Client,
    mut newest: watch::Receiver<Option<Published>>,
    metrics: Arc<Metrics>,
) {
    let maps: Api<ConfigMap> = Api::namespaced(client, FACTS_NAMESPACE);
    let ours = PatchParams::apply(FIELD_MANAGER).force();
    let mut failed = false;
    while newest.changed().await.is_ok() {
        loop {
            let Some(published) = newest.borrow_and_update().clone() else { break };
            let object = published.object();
            let patch = Patch::Apply(&object);
            let write = maps.patch(FACTS_CONFIG_MAP, &ours, &patch);
            let error = match timeout(WRITE_TIMEOUT, write).await {
                Ok(Ok(_)) => None,
                Ok(Err(error)) => Some(in_one_line(&error)),
                Err(_) => Some("no answer in time".to_owned()),
            };
            metrics.published(error.is_none());
            let Some(error) = error else {
                tracing::info!("wrote the facts to ConfigMap {FACTS_NAMESPACE}/{FACTS_CONFIG_MAP}");
                failed = false;
                break;
            };
            if !failed {
                tracing::warn!(
                    error,
                    "writing ConfigMap {FACTS_NAMESPACE}/{FACTS_CONFIG_MAP} failed; resolvers keep what they know, and it is tried again"
                );
            }
            failed = true;
            sleep(RETRY).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn publishes_only_what_resolvers_can_work_with() {
        let local: Vec<IpAddr> = vec!["169.254.20.10".parse().unwrap()];
        let mut facts = Facts { cluster_domain: Some("k8s.example".parse().unwrap()), ..Facts::default() };
        assert_eq!(Published::of(&facts, &local), None);
        facts.cluster_dns = ["10.96.0.10", "fd00:10:96::a"].map(|one| one.parse().unwrap()).to_vec();
        let object = Published::of(&facts, &local).unwrap().object();
        let data = json!({
            "cluster-dns": "10.96.0.10,fd00:10:96::a",
            "cluster-dns-preferred": "10.96.0.10",
            "cluster-domain": "k8s.example",
            "local-addresses": "169.254.20.10",
            "fail-open": "",
        });
        assert_eq!(object["data"], data);
        facts.fail_open = crate::admit::FailOpen::At(local.clone());
        assert_eq!(Published::of(&facts, &local).unwrap().object()["data"]["fail-open"], "169.254.20.10");
        assert_eq!(object["metadata"], json!({"name": "nodestub-facts", "namespace": "kube-system"}));
        facts.cluster_domain = None;
        assert_eq!(Published::of(&facts, &local), None);
    }
}
