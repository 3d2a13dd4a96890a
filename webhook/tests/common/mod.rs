//! Reads vectors and judges what came out, without any code of the webhook's.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test stops at the first surprise"
)]
#![allow(dead_code, clippy::allow_attributes, reason = "each test binary uses its own part")]

#[cfg(feature = "kube")]
pub(crate) mod api;
pub(crate) mod client;
#[cfg(feature = "kube")]
pub(crate) mod garbage;
#[cfg(feature = "kube")]
pub(crate) mod load;

use serde_json::{Value, json};

/// One case.
pub(crate) struct Vector {
    pub(crate) name: String,
    pub(crate) defect: Option<u64>,
    pub(crate) flags: Vec<String>,
    pub(crate) namespace: String,
    pub(crate) request: Value,
    pub(crate) pod: Value,
    pub(crate) reason: String,
    pub(crate) resolv_conf: Option<String>,
    pub(crate) warnings: Vec<String>,
}

const BASIC_FLAGS: [&str; 4] = [
    "--cluster-dns=10.96.0.10",
    "--cluster-domain=cluster.local",
    "--host-search=none",
    "--namespace=shop:nodestub.io/inject=enabled",
];

const FIELDS: [&str; 7] = ["name", "defect", "flags", "namespace", "request", "pod", "expect"];
const EXPECTED_FIELDS: [&str; 3] = ["reason", "resolv_conf", "warnings"];

/// All vectors of all files.
pub(crate) fn vectors() -> Vec<Vector> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors");
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|kind| kind == "yaml"));
    files.sort();
    let mut vectors = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let cases: Vec<Value> =
            serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        vectors.extend(cases.iter().map(vector));
    }
    vectors
}

fn vector(case: &Value) -> Vector {
    let name = case["name"].as_str().unwrap().to_owned();
    // A misspelt field would quietly be the default.
    for field in case.as_object().unwrap().keys() {
        assert!(FIELDS.contains(&field.as_str()), "{name}: {field}");
    }
    let expect = &case["expect"];
    for field in expect.as_object().unwrap().keys() {
        assert!(EXPECTED_FIELDS.contains(&field.as_str()), "{name}: {field}");
    }
    assert!(case.get("pod").is_some(), "{name}: no pod");
    let strings = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().map(|one| one.as_str().unwrap().to_owned()).collect()
    };
    let reason = expect["reason"].as_str().unwrap().to_owned();
    let resolv_conf = expect.get("resolv_conf").map(|text| text.as_str().unwrap().to_owned());
    assert_eq!(resolv_conf.is_some(), reason == "injected", "{name}: resolv_conf belongs to injected");
    Vector {
        defect: case.get("defect").map(|number| number.as_u64().unwrap()),
        flags: flags(&strings(&case["flags"])),
        namespace: case.get("namespace").map_or("shop", |name| name.as_str().unwrap()).to_owned(),
        request: case.get("request").cloned().unwrap_or(json!({})),
        pod: case["pod"].clone(),
        reason,
        resolv_conf,
        warnings: strings(&expect["warnings"]),
        name,
    }
}

/// The basic flags, without those that the case replaces; a flag with an empty value only takes the basic one away.
fn flags(own: &[String]) -> Vec<String> {
    let name = |flag: &str| flag.split('=').next().unwrap().to_owned();
    let replaced: Vec<_> = own.iter().map(|flag| name(flag)).collect();
    let basic = BASIC_FLAGS.iter().map(ToString::to_string).filter(|flag| !replaced.contains(&name(flag)));
    basic.chain(own.iter().filter(|flag| !flag.ends_with('=')).cloned()).collect()
}

/// The AdmissionReview of a vector.
pub(crate) fn review(vector: &Vector) -> Value {
    let mut request = json!({
        "uid": format!("uid of {}", vector.name),
        "kind": {"group": "", "version": "v1", "kind": "Pod"},
        "resource": {"group": "", "version": "v1", "resource": "pods"},
        "requestKind": {"group": "", "version": "v1", "kind": "Pod"},
        "namespace": vector.namespace,
        "operation": "CREATE",
        "userInfo": {"username": "someone", "groups": ["system:authenticated"]},
        "object": vector.pod,
        "oldObject": null,
        "dryRun": false,
        "options": {"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1"}
    });
    for (field, value) in vector.request.as_object().unwrap() {
        request[field] = value.clone();
    }
    json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request})
}

/// Judges the patch to a vector's pod, and gives the patched pod.
pub(crate) fn judge(vector: &Vector, reason: &str, patch: &Value, warnings: &[String]) -> Value {
    let name = &vector.name;
    assert_eq!(reason, vector.reason, "{name}");
    assert_eq!(warnings.len(), vector.warnings.len(), "{name}: {warnings:?}");
    for (warning, part) in warnings.iter().zip(&vector.warnings) {
        assert!(warning.contains(part.as_str()), "{name}: {warning:?} does not say {part:?}");
        assert!(warning.len() <= 256, "{name}: {warning:?} is too long");
    }
    let patched = apply(&vector.pod, patch);
    match &vector.resolv_conf {
        Some(text) => {
            assert_eq!(&resolv_conf(&patched), text, "{name}");
            check_injected(name, &vector.pod, &patched);
        }
        None => assert_eq!(patch, &json!([]), "{name}: a pod that is left alone was patched"),
    }
    patched
}

/// What must hold of every injected pod.
pub(crate) fn check_injected(name: &str, pod: &Value, patched: &Value) {
    assert_eq!(patched["spec"]["dnsPolicy"], "None", "{name}");
    assert_eq!(patched["metadata"]["annotations"]["nodestub.io/status"], "injected", "{name}");
    let revision = patched["metadata"]["annotations"]["nodestub.io/revision"].as_str().unwrap();
    assert_eq!(revision.len(), 16, "{name}");
    let config = &patched["spec"]["dnsConfig"];
    let nameservers = config["nameservers"].as_array().unwrap();
    assert!((1..=3).contains(&nameservers.len()), "{name}: {nameservers:?}");
    let searches: Vec<_> =
        config["searches"].as_array().unwrap().iter().map(|one| one.as_str().unwrap()).collect();
    assert!(searches.len() <= 32 && searches.join(" ").len() <= 2048, "{name}: {searches:?}");
    assert_eq!(without_ours(pod), without_ours(patched), "{name}: something else has changed");
}

/// The pod without what the webhook may touch, and without the parents that it may have made.
pub(crate) fn without_ours(pod: &Value) -> Value {
    let mut pod = pod.clone();
    let spec = pod["spec"].as_object_mut().unwrap();
    spec.remove("dnsPolicy");
    if let Some(config) = spec.get_mut("dnsConfig").and_then(Value::as_object_mut) {
        config.retain(|field, _| !["nameservers", "searches", "options"].contains(&field.as_str()));
    }
    if spec.get("dnsConfig").is_some_and(|config| config.is_null() || config == &json!({})) {
        spec.remove("dnsConfig");
    }
    let metadata = pod["metadata"].as_object_mut().unwrap();
    if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
        annotations.retain(|key, _| !["nodestub.io/status", "nodestub.io/revision"].contains(&key.as_str()));
    }
    if metadata.get("annotations").is_some_and(|all| all.is_null() || all == &json!({})) {
        metadata.remove("annotations");
    }
    pod
}

/// Applies a patch of `add` operations (RFC 6902, 4.1), and refuses any other.
pub(crate) fn apply(pod: &Value, patch: &Value) -> Value {
    let mut pod = pod.clone();
    for operation in patch.as_array().unwrap() {
        assert_eq!(operation["op"], "add", "{operation}");
        let path = operation["path"].as_str().unwrap();
        let (parent, key) = path.rsplit_once('/').unwrap();
        let key = key.replace("~1", "/").replace("~0", "~");
        let parent = pod.pointer_mut(parent).unwrap_or_else(|| panic!("{path}: its parent is not there"));
        parent.as_object_mut().unwrap().insert(key, operation["value"].clone());
    }
    pod
}

/// What kubelet writes for a pod with `dnsPolicy: None`.
pub(crate) fn resolv_conf(pod: &Value) -> String {
    let config = &pod["spec"]["dnsConfig"];
    let list = |field: &str| config[field].as_array().cloned().unwrap_or_default();
    let words = |words: &[Value]| -> String {
        words.iter().map(|word| format!(" {}", word.as_str().unwrap())).collect()
    };
    let mut text = String::new();
    if !list("searches").is_empty() {
        text += &format!("search{}\n", words(&list("searches")));
    }
    for server in list("nameservers") {
        text += &format!("nameserver {}\n", server.as_str().unwrap());
    }
    if !list("options").is_empty() {
        text += "options";
        for option in list("options") {
            text += &format!(" {}", option["name"].as_str().unwrap());
            match option["value"].as_str() {
                Some(value) if !value.is_empty() => text += &format!(":{value}"),
                _ => {}
            }
        }
        text += "\n";
    }
    text
}
