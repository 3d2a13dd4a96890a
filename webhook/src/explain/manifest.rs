//! From a manifest to the pods that it will make.
//!
//! Pods, and whatever holds a pod template where Kubernetes' own kinds hold theirs: Deployments, StatefulSets,
//! DaemonSets, ReplicaSets, Jobs, CronJobs, Lists of them, and kinds of others that do the same.

use std::fmt;

use serde_json::{Map, Value, json};

/// The most documents of one file.
pub const MAX_DOCUMENTS: usize = 1000;

/// Pods that a manifest will make, all of one kind.
#[derive(Debug, Clone, PartialEq)]
pub struct Subject {
    /// Such as `Deployment/web`.
    pub title: String,
    /// What the manifest says of the namespace.
    pub namespace: Option<String>,
    /// The pod, as the API server will see it come.
    pub pod: Value,
}

/// Why nothing can be explained.
#[derive(Debug)]
#[non_exhaustive]
pub enum ManifestError {
    /// The text is not YAML.
    Yaml(serde_saphyr::Error),
    /// There is nothing that makes pods.
    NoPods {
        /// What is there instead.
        kinds: Vec<String>,
    },
    /// There are more documents than anybody reads.
    TooMany(usize),
}

impl fmt::Display for ManifestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Yaml(_) => f.write_str("the manifest is not YAML"),
            Self::NoPods { kinds } if kinds.is_empty() => f.write_str("the manifest is empty"),
            Self::NoPods { kinds } => {
                write!(f, "the manifest makes no pods: it holds {}", kinds.join(", "))
            }
            Self::TooMany(count) => {
                write!(f, "the manifest has {count} documents: give at most {MAX_DOCUMENTS}")
            }
        }
    }
}

impl std::error::Error for ManifestError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Yaml(source) => Some(source),
            Self::NoPods { .. } | Self::TooMany(_) => None,
        }
    }
}

/// Finds everything in the manifest that makes pods; what makes none is passed over.
///
/// # Errors
/// When the text cannot be read, or nothing in it makes pods.
pub fn subjects(text: &str) -> Result<Vec<Subject>, ManifestError> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text).map_err(ManifestError::Yaml)?;
    let mut objects = Vec::new();
    for document in documents {
        match document.get("items") {
            Some(Value::Array(items)) => objects.extend(items.iter().cloned()),
            _ => objects.push(document),
        }
    }
    objects.retain(|object| !object.is_null());
    if objects.len() > MAX_DOCUMENTS {
        return Err(ManifestError::TooMany(objects.len()));
    }
    let subjects: Vec<Subject> = objects.iter().filter_map(subject).collect();
    if subjects.is_empty() {
        let kinds =
            objects.iter().map(|object| text_at(object, "/kind").unwrap_or("something without a kind"));
        return Err(ManifestError::NoPods { kinds: kinds.map(str::to_owned).collect() });
    }
    Ok(subjects)
}

fn subject(object: &Value) -> Option<Subject> {
    let kind = text_at(object, "/kind")?;
    let name = text_at(object, "/metadata/name").or_else(|| text_at(object, "/metadata/generateName"));
    let name = name.unwrap_or("(no name)");
    let pod = if kind == "Pod" {
        object.clone()
    } else {
        let template = ["/spec/jobTemplate/spec/template", "/spec/template", "/template"];
        let template = template.iter().find_map(|path| object.pointer(path))?;
        template.pointer("/spec/containers")?;
        made(kind, name, template)
    };
    let namespace = text_at(object, "/metadata/namespace").map(str::to_owned);
    Some(Subject { title: format!("{kind}/{name}"), namespace, pod })
}

/// A pod as a controller makes it: without a name of its own yet, and with its owner.
///
/// The owner is what people named, not the ReplicaSet or Job between: a share of workloads counts the same.
fn made(kind: &str, name: &str, template: &Value) -> Value {
    let part = |name: &str| template.get(name).and_then(Value::as_object).cloned().unwrap_or_default();
    let mut metadata: Map<String, Value> = part("metadata");
    metadata.insert("generateName".to_owned(), json!(format!("{name}-")));
    metadata.insert("ownerReferences".to_owned(), json!([{"kind": kind, "name": name, "controller": true}]));
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": part("spec")})
}

fn text_at<'a>(object: &'a Value, path: &str) -> Option<&'a str> {
    object.pointer(path).and_then(Value::as_str).filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admit::Workload;
    use crate::admit::pod::Pod;

    const TEMPLATE: &str =
        "{metadata: {labels: {a: b}}, spec: {dnsPolicy: Default, containers: [{name: c}]}}";

    fn one(text: &str) -> Subject {
        let mut all = subjects(text).unwrap();
        assert_eq!(all.len(), 1);
        all.remove(0)
    }

    #[test]
    fn finds_the_pod_in_every_kind() {
        for (kind, spec) in [
            ("Deployment", format!("{{template: {TEMPLATE}}}")),
            ("StatefulSet", format!("{{template: {TEMPLATE}}}")),
            ("DaemonSet", format!("{{template: {TEMPLATE}}}")),
            ("Job", format!("{{template: {TEMPLATE}}}")),
            ("CronJob", format!("{{jobTemplate: {{spec: {{template: {TEMPLATE}}}}}}}")),
            ("Rollout", format!("{{template: {TEMPLATE}}}")),
        ] {
            let subject =
                one(&format!("kind: {kind}\nmetadata: {{name: web, namespace: shop}}\nspec: {spec}"));
            assert_eq!(subject.title, format!("{kind}/web"));
            assert_eq!(subject.namespace.as_deref(), Some("shop"));
            assert_eq!(subject.pod["spec"]["dnsPolicy"], "Default", "{kind}");
            assert_eq!(subject.pod["metadata"]["labels"]["a"], "b", "{kind}");
            let workload = Workload::of(&Pod::read(&subject.pod).unwrap());
            assert_eq!(workload.to_string(), format!("{kind}/web"));
        }
    }

    #[test]
    fn takes_a_pod_as_it_is_and_many_documents() {
        let text = "kind: Pod\nmetadata: {name: a}\nspec: {}\n---\nkind: Service\nmetadata: {name: s}\n---\n\
            kind: List\nitems:\n- {kind: Pod, metadata: {generateName: b-}, spec: {}}\n---\n";
        let all = subjects(text).unwrap();
        let titles: Vec<_> = all.iter().map(|one| one.title.as_str()).collect();
        assert_eq!(titles, ["Pod/a", "Pod/b-"]);
        assert_eq!(all[0].pod, json!({"kind": "Pod", "metadata": {"name": "a"}, "spec": {}}));
    }

    #[test]
    fn says_why_there_is_nothing_to_explain() {
        for (text, said) in [
            ("", "is empty"),
            ("a: [", "not YAML"),
            ("kind: Service\n---\nkind: ConfigMap", "it holds Service, ConfigMap"),
            ("kind: Deployment\nspec: {template: {spec: {}}}", "it holds Deployment"),
            ("5", "something without a kind"),
        ] {
            let error = subjects(text).unwrap_err().to_string();
            assert!(error.contains(said), "{text}: {error}");
        }
    }
}
