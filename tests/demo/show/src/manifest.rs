//! From a manifest to the Pod that an API server would send to a webhook.

use std::fmt;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

/// The demo's own manifest.
const OWN: &str = include_str!("../../manifests/hoge.yaml");
/// How it is named.
const OWN_NAME: &str = "tests/demo/manifests/hoge.yaml";
/// The largest manifest, in bytes: what an API server takes (`MaxRequestBodyBytes`).
const MAX_BYTES: u64 = 3 << 20;

/// A Pod, and where it comes from.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Picked {
    /// The file.
    pub(crate) file: String,
    /// `Deployment`, `CronJob`, `Pod`...
    pub(crate) kind: String,
    /// The workload's name.
    pub(crate) name: String,
    /// Where it is created.
    pub(crate) namespace: String,
    /// The Pod, with an API server's defaults.
    pub(crate) pod: Value,
}

/// Reads the file, or the demo's own manifest, and picks the first Pod or Pod template.
pub(crate) fn load(file: Option<&Path>) -> Result<Picked, nodestub_lab::Error> {
    let picked = match file {
        None => pick(OWN_NAME, OWN),
        Some(file) => read(file).and_then(|text| pick(&file.display().to_string(), &text)),
    };
    // The step and its cause make one line.
    picked.map_err(|error| nodestub_lab::Error::new(error.to_string()))
}

fn read(file: &Path) -> Result<String, Error> {
    let fault = |cause| Error::Read { file: file.to_owned(), cause };
    let mut text = String::new();
    let opened = std::fs::File::open(file).map_err(fault)?;
    opened.take(MAX_BYTES + 1).read_to_string(&mut text).map_err(fault)?;
    if text.len() as u64 > MAX_BYTES { Err(Error::TooLarge { file: file.to_owned() }) } else { Ok(text) }
}

/// Picks the first Pod or Pod template of a manifest of several documents.
pub(crate) fn pick(file: &str, text: &str) -> Result<Picked, Error> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text).map_err(|cause| Error::Parse {
        file: file.to_owned(),
        // The place and the reason; the rest is a picture of the lines.
        cause: cause.to_string().lines().next().unwrap_or_default().to_owned(),
    })?;
    let items = |document: Value| match document.get("items") {
        Some(Value::Array(items)) => items.clone(),
        _ => vec![document],
    };
    let objects: Vec<Value> =
        documents.into_iter().flat_map(items).filter(|object| !object.is_null()).collect();
    let picked = objects.iter().find_map(|object| from_object(file, object));
    picked.ok_or_else(|| {
        let kinds = objects
            .iter()
            .map(|object| text_at(object, &["kind"]).unwrap_or("an object without kind").to_owned());
        Error::NoPod { file: file.to_owned(), kinds: kinds.collect() }
    })
}

fn from_object(file: &str, object: &Value) -> Option<Picked> {
    let kind = text_at(object, &["kind"])?;
    let own = text_at(object, &["metadata", "name"]).unwrap_or("unnamed");
    let namespace = text_at(object, &["metadata", "namespace"]).unwrap_or("default");
    let (mut metadata, mut spec) = if kind == "Pod" {
        let metadata = object.get("metadata").and_then(Value::as_object).cloned().unwrap_or_default();
        (metadata, spec_of(object)?)
    } else {
        // Workloads and ReplicationController; CronJob; PodTemplate.
        let templates = ["/spec/template", "/spec/jobTemplate/spec/template", "/template"];
        let mut found = templates.iter().filter_map(|place| object.pointer(place));
        let (template, spec) = found.find_map(|template| Some((template, spec_of(template)?)))?;
        let mut metadata = template.get("metadata").and_then(Value::as_object).cloned().unwrap_or_default();
        // The name is not known yet when the webhook is asked.
        metadata.insert("generateName".to_owned(), json!(format!("{own}-")));
        (metadata, spec)
    };
    metadata.insert("namespace".to_owned(), json!(namespace));
    for (field, value) in [
        ("dnsPolicy", json!("ClusterFirst")),
        ("enableServiceLinks", json!(true)),
        ("restartPolicy", json!("Always")),
        ("schedulerName", json!("default-scheduler")),
        ("securityContext", json!({})),
        ("terminationGracePeriodSeconds", json!(30)),
    ] {
        spec.entry(field).or_insert(value);
    }
    Some(Picked {
        file: file.to_owned(),
        kind: kind.to_owned(),
        name: own.to_owned(),
        namespace: namespace.to_owned(),
        pod: json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}),
    })
}

/// The spec of a Pod: it has containers.
fn spec_of(pod: &Value) -> Option<Map<String, Value>> {
    let spec = pod.get("spec")?.as_object()?;
    spec.get("containers")?.as_array()?;
    Some(spec.clone())
}

fn text_at<'a>(value: &'a Value, path: &[&str]) -> Option<&'a str> {
    path.iter().try_fold(value, |value, field| value.get(field))?.as_str()
}

/// Why there is no Pod.
#[derive(Debug)]
pub(crate) enum Error {
    /// The file cannot be read.
    Read { file: PathBuf, cause: io::Error },
    /// No API server would take it.
    TooLarge { file: PathBuf },
    /// It is neither YAML nor JSON.
    Parse { file: String, cause: String },
    /// It holds other things.
    NoPod { file: String, kinds: Vec<String> },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read { file, cause } => write!(f, "cannot read the manifest {}: {cause}", file.display()),
            Self::TooLarge { file } => write!(f, "the manifest {} is larger than 3 MiB", file.display()),
            Self::Parse { file, cause } => write!(f, "the manifest {file} is not YAML: {cause}"),
            Self::NoPod { file, kinds } => {
                /// Enough to recognise the file by.
                const SHOWN: usize = 5;
                write!(f, "the manifest {file} has no Pod and no Pod template")?;
                if !kinds.is_empty() {
                    let shown: Vec<_> = kinds
                        .iter()
                        .take(SHOWN)
                        .map(|kind| nodestub_demo::terminal::printable(kind))
                        .collect();
                    let more = if kinds.len() > SHOWN { ", ..." } else { "" };
                    write!(f, " (it has {}{more})", shown.join(", "))?;
                }
                write!(f, ": give one with a Pod, a Deployment or another workload")
            }
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Read { cause, .. } => Some(cause),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPEC: &str = "{containers: [{name: a}]}";

    #[test]
    fn picks_the_template_of_the_demos_own_deployment() {
        let picked = load(None).unwrap();
        assert_eq!((picked.kind.as_str(), picked.name.as_str()), ("Deployment", "hoge"));
        assert_eq!(picked.pod["metadata"]["generateName"], "hoge-");
        assert_eq!(picked.pod["metadata"]["annotations"]["prometheus.io/scrape"], "true");
        assert_eq!(picked.pod["spec"]["dnsPolicy"], "ClusterFirst");
        // Unknown fields, and each number's kind, come through.
        assert_eq!(picked.pod["spec"]["containers"][0]["fieldOfTomorrow"]["weights"], json!([1, 2.5, 3]));
    }

    #[test]
    fn finds_a_pod_wherever_a_manifest_has_it() {
        for (text, kind, name) in [
            (format!("kind: Pod\nmetadata: {{name: p}}\nspec: {SPEC}"), "Pod", "p"),
            (
                format!("kind: Service\n---\n---\nkind: Job\nspec: {{template: {{spec: {SPEC}}}}}"),
                "Job",
                "unnamed",
            ),
            (
                format!("kind: CronJob\nspec: {{jobTemplate: {{spec: {{template: {{spec: {SPEC}}}}}}}}}"),
                "CronJob",
                "unnamed",
            ),
            (format!("kind: PodTemplate\ntemplate: {{spec: {SPEC}}}"), "PodTemplate", "unnamed"),
            (
                format!("kind: List\nitems: [{{kind: ConfigMap}}, {{kind: Pod, spec: {SPEC}}}]"),
                "Pod",
                "unnamed",
            ),
            (r#"{"kind": "Pod", "spec": {"containers": []}}"#.to_owned(), "Pod", "unnamed"),
        ] {
            let picked = pick("x.yaml", &text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!((picked.kind.as_str(), picked.name.as_str()), (kind, name), "{text}");
            assert_eq!(picked.namespace, "default");
            assert_eq!(picked.pod["kind"], "Pod");
        }
    }

    #[test]
    fn keeps_what_the_manifest_says_over_the_defaults() {
        let text = "kind: Pod\nmetadata: {namespace: shop}\nspec: {dnsPolicy: Default, containers: []}";
        let picked = pick("x", text).unwrap();
        assert_eq!(picked.namespace, "shop");
        assert_eq!(picked.pod["spec"]["dnsPolicy"], "Default");
    }

    #[test]
    fn rejects_a_manifest_without_a_pod_in_one_line() {
        for (text, said) in [
            ("", "no Pod and no Pod template"),
            ("kind: ConfigMap\n---\nkind: \"Ser\\e[2J\"", "it has ConfigMap, Ser\\u{1b}[2J"),
            ("kind: Deployment\nspec: {template: {}}", "it has Deployment"),
            ("just text", "an object without kind"),
            ("a: [", "is not YAML"),
        ] {
            let error = pick("x.yaml", text).unwrap_err().to_string();
            assert!(error.contains("x.yaml") && error.contains(said), "{text:?}: {error}");
            assert!(!error.contains('\n'), "{error}");
        }
    }
}
