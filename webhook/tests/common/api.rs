//! A real API server, by plain requests: what is sent and what comes back is JSON.

use std::path::Path;
use std::time::{Duration, Instant};

use axum::http::Request;
use kube::Client;
use kube::client::Body;
use kube::config::{Config, KubeConfigOptions, Kubeconfig};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use super::client::Webhook;

/// How long a test waits for something that must come; only reached by a failure.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(20);

/// The registration that tests make; it is gone when the guard is dropped.
pub(crate) const REGISTRATION: &str =
    "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/nodestub-test";

/// An API server.
pub(crate) struct ApiServer {
    runtime: Runtime,
    client: Client,
}

/// What it said.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) body: Value,
    /// The texts of its `Warning` headers.
    pub(crate) warnings: Vec<String>,
}

impl Reply {
    pub(crate) fn is_good(&self) -> bool {
        (200..300).contains(&self.status)
    }
}

impl ApiServer {
    pub(crate) fn connect(kubeconfig: &str) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let client = runtime.block_on(async {
            let file = Kubeconfig::read_from(kubeconfig).unwrap();
            let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.unwrap();
            Client::try_from(config).unwrap()
        });
        Self { runtime, client }
    }

    pub(crate) fn send(&self, method: &str, path: &str, kind: &str, body: Option<&Value>) -> Reply {
        let text = body.map(|body| serde_json::to_vec(body).unwrap()).unwrap_or_default();
        let request = Request::builder().method(method).uri(path).header("content-type", kind);
        let request = request.body(Body::from(text)).unwrap();
        self.runtime.block_on(async {
            let response = self.client.send(request).await.unwrap();
            let status = response.status().as_u16();
            let headers = response.headers().get_all("warning").iter();
            // 299 - "text", with quotes and backslashes escaped (RFC 7234, 5.5).
            let text = |header: &str| header.splitn(3, ' ').nth(2).map(unquoted);
            let warnings = headers.filter_map(|header| text(header.to_str().ok()?)).collect();
            let bytes = response.into_body().collect_bytes().await.unwrap();
            Reply { status, body: serde_json::from_slice(&bytes).unwrap_or_default(), warnings }
        })
    }

    /// Makes the object as it is given, whatever it was before (server-side apply).
    pub(crate) fn apply(&self, path: &str, object: &Value) -> Value {
        let path = format!("{path}?fieldManager=nodestub-test&force=true");
        let reply = self.send("PATCH", &path, "application/apply-patch+yaml", Some(object));
        assert!(reply.is_good(), "{path}: {reply:?}");
        reply.body
    }

    pub(crate) fn get(&self, path: &str) -> Option<Value> {
        let reply = self.send("GET", path, "application/json", None);
        reply.is_good().then_some(reply.body)
    }

    pub(crate) fn delete(&self, path: &str) {
        self.send("DELETE", path, "application/json", None);
    }

    /// Makes a namespace with exactly these labels and annotations of ours, able to hold pods.
    pub(crate) fn namespace(&self, name: &str, labels: &Value, annotations: &Value) {
        let metadata = json!({"name": name, "labels": labels, "annotations": annotations});
        let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata});
        let path = format!("/api/v1/namespaces/{name}");
        // An earlier test may have sent it away.
        let is_ending = |found: &Value| found["metadata"].get("deletionTimestamp").is_some();
        until("the end of an old namespace", || !self.get(&path).as_ref().is_some_and(is_ending));
        self.apply(&path, &object);
        let account = format!("/api/v1/namespaces/{name}/serviceaccounts/default");
        until("the default ServiceAccount", || self.get(&account).is_some());
    }

    /// Creates a pod.
    pub(crate) fn create(&self, namespace: &str, pod: &Value, dry_run: bool) -> Reply {
        let dry_run = if dry_run { "?dryRun=All" } else { "" };
        self.send(
            "POST",
            &format!("/api/v1/namespaces/{namespace}/pods{dry_run}"),
            "application/json",
            Some(pod),
        )
    }

    /// Registers the webhooks of a configuration with another process and with `failurePolicy: Fail`, so that a
    /// call that does not come through is seen.
    pub(crate) fn register<'a>(&'a self, webhook: &Webhook, mut webhooks: Value) -> Registered<'a> {
        for one in webhooks.as_array_mut().unwrap() {
            one["failurePolicy"] = json!("Fail");
            one["timeoutSeconds"] = json!(10);
        }
        self.register_as_it_is(webhook, webhooks)
    }

    /// Registers the webhooks of a configuration with nothing changed but where they are, and whom to trust.
    pub(crate) fn register_as_it_is<'a>(&'a self, webhook: &Webhook, mut webhooks: Value) -> Registered<'a> {
        let authority = std::fs::read(webhook.folder.join("ca.crt")).unwrap();
        let url = format!("https://127.0.0.1:{}/mutate", webhook.admission.port());
        for one in webhooks.as_array_mut().unwrap() {
            one["clientConfig"] = json!({"url": url, "caBundle": k8s_openapi::ByteString(authority.clone())});
        }
        let object = json!({
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "MutatingWebhookConfiguration",
            "metadata": {"name": "nodestub-test"},
            "webhooks": webhooks,
        });
        self.apply(REGISTRATION, &object);
        Registered(self)
    }
}

/// A registration, while it lives.
pub(crate) struct Registered<'a>(&'a ApiServer);

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        self.0.delete(REGISTRATION);
    }
}

/// Every pod of namespaces with the label `nodestub-test: yes`, whatever it is.
pub(crate) fn everything() -> Value {
    json!([{
        "name": "everything.nodestub.io",
        "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}],
        "namespaceSelector": {"matchLabels": {"nodestub-test": "yes"}},
        "sideEffects": "None",
        "reinvocationPolicy": "IfNeeded",
        "admissionReviewVersions": ["v1"],
    }])
}

/// The registration that is shipped.
pub(crate) fn shipped() -> Value {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests/base/registration.yaml");
    let object: Value = serde_saphyr::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    object["webhooks"].clone()
}

/// Waits for what must come.
pub(crate) fn until(what: &str, mut is_there: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_there() {
        assert!(began.elapsed() < PATIENCE, "gave up waiting for {what}");
        std::thread::sleep(PAUSE);
    }
}

fn unquoted(text: &str) -> String {
    let text = text.trim_matches('"');
    let mut plain = String::new();
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        plain.extend(if character == '\\' { characters.next() } else { Some(character) });
    }
    plain
}
