//! A Pod, read only as far as the decision needs it.
//!
//! The pod itself stays the JSON value that came in and is never written back from here, so fields that this
//! version does not know survive. `managedFields` and the rest are not even looked at.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde_json::Value;

use super::options::DnsOption;

/// The name of that system in `spec.os` and in nodes' labels.
const WINDOWS: &str = "windows";

/// What the decision looks at.
#[derive(Debug)]
pub struct Pod {
    metadata: Metadata,
    spec: Spec,
    /// `metadata.annotations` is there, and not null.
    pub has_annotations: bool,
    /// `spec.dnsConfig` is there, and not null.
    pub has_dns_config: bool,
}

/// `spec.dnsPolicy`; absent and empty count as the API's default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DnsPolicy {
    /// `ClusterFirst`.
    ClusterFirst,
    /// `ClusterFirstWithHostNet`.
    ClusterFirstWithHostNet,
    /// `Default`: the node's own resolvers.
    Default,
    /// `None`: only what `dnsConfig` says.
    None,
    /// A value that this version does not know.
    Unknown,
}

/// The user's own `spec.dnsConfig`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DnsConfig {
    nameservers: Option<Vec<String>>,
    searches: Option<Vec<String>>,
    options: Option<Vec<DnsOption>>,
}

impl Pod {
    /// Reads a pod.
    ///
    /// # Errors
    /// When a part that the decision needs has another shape than the API gives it.
    pub fn read(pod: &Value) -> Result<Self, NotAPod> {
        let metadata = part(pod, "metadata")?;
        let spec = part(pod, "spec")?;
        let there = |part: &Value, field: &str| part.get(field).is_some_and(|value| !value.is_null());
        Ok(Self {
            has_annotations: there(metadata, "annotations"),
            has_dns_config: there(spec, "dnsConfig"),
            metadata: Metadata::deserialize(metadata).map_err(|cause| NotAPod::shape("metadata", &cause))?,
            spec: Spec::deserialize(spec).map_err(|cause| NotAPod::shape("spec", &cause))?,
        })
    }

    /// The value of a label.
    #[must_use]
    pub fn label(&self, key: &str) -> Option<&str> {
        look_up(self.metadata.labels.as_ref(), key)
    }

    /// The value of an annotation.
    #[must_use]
    pub fn annotation(&self, key: &str) -> Option<&str> {
        look_up(self.metadata.annotations.as_ref(), key)
    }

    /// All annotations, by key.
    pub fn annotations(&self) -> impl Iterator<Item = (&str, &str)> {
        self.metadata.annotations.iter().flatten().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// Its name; none while the API server has yet to make one up.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.metadata.name.as_deref().filter(|name| !name.is_empty())
    }

    /// What its name will begin with; empty where it has none of that.
    #[must_use]
    pub fn generate_name(&self) -> &str {
        self.metadata.generate_name.as_deref().unwrap_or("")
    }

    /// Kind and name of what controls the pod.
    #[must_use]
    pub fn controller(&self) -> Option<(&str, &str)> {
        let owner = self.metadata.owner_references.iter().flatten().find(|owner| owner.controller)?;
        Some((owner.kind.as_str(), owner.name.as_str()))
    }

    /// Whether the pod can only run on nodes with that label (and that value, where one is given): by
    /// `spec.nodeSelector`, or because every term of its required node affinity asks for it.
    #[must_use]
    pub fn must_run_on(&self, key: &str, value: Option<&str>) -> bool {
        let is_wanted = |found: &str| value.is_none_or(|wanted| wanted == found);
        if look_up(self.spec.node_selector.as_ref(), key).is_some_and(is_wanted) {
            return true;
        }
        let mut terms = self.node_terms().peekable();
        let asks = |one: &Requirement| {
            let values = one.values.as_deref().unwrap_or_default();
            one.key == key
                && match one.operator.as_str() {
                    "In" => !values.is_empty() && values.iter().map(String::as_str).all(is_wanted),
                    "Exists" => value.is_none(),
                    _ => false,
                }
        };
        // Terms are alternatives; the requirements of one term must all be met.
        terms.peek().is_some() && terms.all(|term| term.match_expressions.iter().flatten().any(asks))
    }

    fn node_terms(&self) -> impl Iterator<Item = &NodeSelectorTerm> {
        let affinity = self.spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
        let required = affinity.and_then(|affinity| affinity.required.as_ref());
        required.and_then(|required| required.terms.as_ref()).into_iter().flatten()
    }

    /// Keys and values of `spec.tolerations`; those that tolerate everything have an empty key.
    pub fn tolerations(&self) -> impl Iterator<Item = (&str, &str)> {
        self.spec
            .tolerations
            .iter()
            .flatten()
            .map(|one| (one.key.as_deref().unwrap_or(""), one.value.as_deref().unwrap_or("")))
    }

    /// Whether a container asks for that resource.
    #[must_use]
    pub fn asks_for_resource(&self, name: &str) -> bool {
        let containers =
            self.spec.containers.iter().flatten().chain(self.spec.init_containers.iter().flatten());
        containers.filter_map(|container| container.resources.as_ref()).any(|resources| {
            [&resources.limits, &resources.requests]
                .into_iter()
                .flatten()
                .any(|amounts| amounts.contains_key(name))
        })
    }

    /// How the pod asked to resolve names.
    #[must_use]
    pub fn dns_policy(&self) -> DnsPolicy {
        match self.spec.dns_policy.as_deref() {
            None | Some("" | "ClusterFirst") => DnsPolicy::ClusterFirst,
            Some("ClusterFirstWithHostNet") => DnsPolicy::ClusterFirstWithHostNet,
            Some("Default") => DnsPolicy::Default,
            Some("None") => DnsPolicy::None,
            Some(_) => DnsPolicy::Unknown,
        }
    }

    /// Whether the pod lives in the node's network namespace.
    #[must_use]
    pub fn host_network(&self) -> bool {
        self.spec.host_network.unwrap_or(false)
    }

    /// Whether the pod says that it is for Windows.
    #[must_use]
    pub fn is_windows(&self) -> bool {
        let os = self.spec.os.as_ref().and_then(|os| os.name.as_deref());
        let labels = ["kubernetes.io/os", "beta.kubernetes.io/os"];
        os == Some(WINDOWS) || labels.iter().any(|label| self.must_run_on(label, Some(WINDOWS)))
    }

    /// The user's own nameservers, in their order.
    pub fn nameservers(&self) -> impl Iterator<Item = &str> {
        let config = self.spec.dns_config.as_ref();
        config.and_then(|config| config.nameservers.as_ref()).into_iter().flatten().map(String::as_str)
    }

    /// The user's own search domains, in their order.
    pub fn searches(&self) -> impl Iterator<Item = &str> {
        let config = self.spec.dns_config.as_ref();
        config.and_then(|config| config.searches.as_ref()).into_iter().flatten().map(String::as_str)
    }

    /// The user's own options, in their order.
    pub fn options(&self) -> impl Iterator<Item = &DnsOption> {
        let config = self.spec.dns_config.as_ref();
        config.and_then(|config| config.options.as_ref()).into_iter().flatten()
    }
}

/// Why the JSON is not a pod that can be judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotAPod {
    part: &'static str,
    cause: String,
}

impl NotAPod {
    fn shape(part: &'static str, cause: &serde_json::Error) -> Self {
        Self { part, cause: cause.to_string() }
    }
}

impl fmt::Display for NotAPod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.part, self.cause)
    }
}

impl std::error::Error for NotAPod {}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    name: Option<String>,
    generate_name: Option<String>,
    owner_references: Option<Vec<Owner>>,
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Deserialize)]
struct Owner {
    #[serde(default)]
    kind: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    controller: bool,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    dns_policy: Option<String>,
    dns_config: Option<DnsConfig>,
    host_network: Option<bool>,
    os: Option<Os>,
    node_selector: Option<BTreeMap<String, String>>,
    affinity: Option<Affinity>,
    tolerations: Option<Vec<Toleration>>,
    containers: Option<Vec<Container>>,
    init_containers: Option<Vec<Container>>,
}

#[derive(Debug, Deserialize)]
struct Os {
    name: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Affinity {
    node_affinity: Option<NodeAffinity>,
}

#[derive(Debug, Deserialize)]
struct NodeAffinity {
    #[serde(rename = "requiredDuringSchedulingIgnoredDuringExecution")]
    required: Option<RequiredNodes>,
}

#[derive(Debug, Deserialize)]
struct RequiredNodes {
    #[serde(rename = "nodeSelectorTerms")]
    terms: Option<Vec<NodeSelectorTerm>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct NodeSelectorTerm {
    match_expressions: Option<Vec<Requirement>>,
}

#[derive(Debug, Deserialize)]
struct Requirement {
    #[serde(default)]
    key: String,
    #[serde(default)]
    operator: String,
    values: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
struct Toleration {
    key: Option<String>,
    value: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Container {
    resources: Option<Resources>,
}

#[derive(Debug, Deserialize)]
struct Resources {
    limits: Option<BTreeMap<String, Value>>,
    requests: Option<BTreeMap<String, Value>>,
}

fn part<'a>(pod: &'a Value, name: &'static str) -> Result<&'a Value, NotAPod> {
    match pod.get(name) {
        Some(part @ Value::Object(_)) => Ok(part),
        _ => Err(NotAPod { part: name, cause: "not there, or not an object".to_owned() }),
    }
}

fn look_up<'a>(map: Option<&'a BTreeMap<String, String>>, key: &str) -> Option<&'a str> {
    map.and_then(|map| map.get(key)).map(String::as_str)
}
