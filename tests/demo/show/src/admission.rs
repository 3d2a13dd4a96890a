//! The API server's part: asks the webhook over TLS, as an API server does, and applies what it answers.
//!
//! The webhook's name is its Service's, its certificate is checked against the CA that a
//! `MutatingWebhookConfiguration` would carry, and the patch is applied by the library of most Rust programs for that,
//! not by code of ours.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use nodestub_lab::Error;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::{Value, json};

use crate::http;
use crate::manifest::Picked;

/// By this name an API server calls the webhook.
pub(crate) const SERVER_NAME: &str = "nodestub-webhook.nodestub-system.svc";

/// The webhook's answer, and what became of the Pod.
#[derive(Debug)]
pub(crate) struct Admitted {
    /// The Pod after the patch.
    pub(crate) pod: Value,
    /// The reason's label.
    pub(crate) decision: String,
    /// Warnings for the user.
    pub(crate) warnings: Vec<String>,
    /// Operations of the patch.
    pub(crate) operations: usize,
    /// `TLS 1.3`.
    pub(crate) tls: String,
    /// The whole exchange, from the connection on.
    pub(crate) took: Duration,
}

/// Sends the Pod and applies the answer.
pub(crate) fn admit(address: SocketAddr, ca: &Path, picked: &Picked) -> Result<Admitted, Error> {
    let uid = format!("demo-{}", nodestub_demo::now_ms());
    let body = serde_json::to_vec(&review(&uid, picked))
        .map_err(|error| Error::caused("write the review", error))?;
    let (answer, tls, took) = post(address, ca, &body)?;
    if answer.status != 200 {
        let said = answer.body.trim();
        return Err(Error::new(format!("send the review: the webhook answers {}: {said}", answer.status)));
    }
    let answer: Value = serde_json::from_str(&answer.body)
        .map_err(|error| Error::caused("read the webhook's answer", error))?;
    let judged = judge(&answer, &uid, &picked.pod)?;
    Ok(Admitted { tls, took, ..judged })
}

/// An AdmissionReview (v1) as an API server sends it.
fn review(uid: &str, picked: &Picked) -> Value {
    let kind = json!({"group": "", "version": "v1", "kind": "Pod"});
    let resource = json!({"group": "", "version": "v1", "resource": "pods"});
    let name = picked.pod.pointer("/metadata/name").cloned().unwrap_or(Value::Null);
    let mut review = json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": uid,
            "kind": kind,
            "resource": resource,
            "requestKind": kind,
            "requestResource": resource,
            "namespace": picked.namespace,
            "operation": "CREATE",
            "userInfo": {
                "username": "system:serviceaccount:kube-system:replicaset-controller",
                "groups": ["system:serviceaccounts", "system:authenticated"]
            },
            "object": picked.pod,
            "oldObject": null,
            "dryRun": false,
            "options": {"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1"}
        }
    });
    if let (Value::String(_), Some(request)) =
        (&name, review.get_mut("request").and_then(Value::as_object_mut))
    {
        request.insert("name".to_owned(), name);
    }
    review
}

fn post(address: SocketAddr, ca: &Path, body: &[u8]) -> Result<(http::Answer, String, Duration), Error> {
    let began = Instant::now();
    let tls = client(ca).map_err(|error| Error::caused("connect to the webhook by TLS", error))?;
    let mut tls = StreamOwned::new(tls, http::connect(address)?);
    let answer = http::exchange(&mut tls, "POST", SERVER_NAME, "/mutate?timeout=10s", Some(body))?;
    let version = match tls.conn.protocol_version() {
        Some(rustls::ProtocolVersion::TLSv1_3) => "TLS 1.3",
        Some(rustls::ProtocolVersion::TLSv1_2) => "TLS 1.2",
        _ => "TLS",
    };
    Ok((answer, version.to_owned(), began.elapsed()))
}

fn client(ca: &Path) -> Result<ClientConnection, Box<dyn std::error::Error + Send + Sync>> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca)? {
        roots.add(certificate?)?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(ClientConnection::new(Arc::new(config), ServerName::try_from(SERVER_NAME)?)?)
}

/// Reads an answer as strictly as an API server, and applies its patch.
fn judge(answer: &Value, uid: &str, pod: &Value) -> Result<Admitted, Error> {
    let fault = |what: &str| Error::new(format!("read the webhook's answer: {what}"));
    if answer.get("kind") != Some(&json!("AdmissionReview")) {
        return Err(fault("it is no AdmissionReview"));
    }
    let response = answer.get("response").ok_or_else(|| fault("it has no response"))?;
    if response.get("uid") != Some(&json!(uid)) {
        return Err(fault("it is for another request"));
    }
    if response.get("allowed") != Some(&json!(true)) {
        return Err(fault("the Pod is not allowed"));
    }
    let mut patched = pod.clone();
    let mut operations = 0;
    if let Some(patch) = response.get("patch") {
        if response.get("patchType") != Some(&json!("JSONPatch")) {
            return Err(fault("the patch is no JSON Patch"));
        }
        let text = patch.as_str().ok_or_else(|| fault("the patch is no text"))?;
        let bytes = STANDARD.decode(text).map_err(|error| Error::caused("decode the patch", error))?;
        let patch: json_patch::Patch =
            serde_json::from_slice(&bytes).map_err(|error| Error::caused("read the patch", error))?;
        operations = patch.0.len();
        json_patch::patch(&mut patched, &patch).map_err(|error| Error::caused("apply the patch", error))?;
    }
    let texts = |value: Option<&Value>| -> Vec<String> {
        let all = value.and_then(Value::as_array).into_iter().flatten();
        all.filter_map(Value::as_str).map(nodestub_demo::terminal::printable).collect()
    };
    let decision = response.pointer("/auditAnnotations/decision").and_then(Value::as_str);
    Ok(Admitted {
        pod: patched,
        decision: nodestub_demo::terminal::printable(decision.unwrap_or("without a reason")),
        warnings: texts(response.get("warnings")),
        operations,
        tls: String::new(),
        took: Duration::ZERO,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(response: &Value) -> Value {
        json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response})
    }

    #[test]
    fn applies_the_patch_of_an_answer() {
        let patch = STANDARD.encode(r#"[{"op": "replace", "path": "/spec/dnsPolicy", "value": "None"}]"#);
        let answer = answer(&json!({"uid": "u", "allowed": true, "patchType": "JSONPatch", "patch": patch,
            "warnings": ["careful\u{7}"], "auditAnnotations": {"decision": "injected"}}));
        let admitted = judge(&answer, "u", &json!({"spec": {"dnsPolicy": "ClusterFirst"}})).unwrap();
        assert_eq!(admitted.pod, json!({"spec": {"dnsPolicy": "None"}}));
        assert_eq!((admitted.decision.as_str(), admitted.operations), ("injected", 1));
        assert_eq!(admitted.warnings, ["careful\\u{7}"]);
    }

    #[test]
    fn leaves_the_pod_as_it_is_without_a_patch() {
        let pod = json!({"spec": {}});
        let admitted = judge(&answer(&json!({"uid": "u", "allowed": true})), "u", &pod).unwrap();
        assert_eq!((admitted.pod, admitted.operations), (pod, 0));
    }

    #[test]
    fn rejects_answers_that_an_api_server_would_reject() {
        for (response, said) in [
            (json!({"uid": "other", "allowed": true}), "another request"),
            (json!({"uid": "u", "allowed": false}), "not allowed"),
            (json!({"uid": "u", "allowed": true, "patch": "W10="}), "no JSON Patch"),
            (json!({"uid": "u", "allowed": true, "patchType": "JSONPatch", "patch": "%"}), "decode"),
            (
                json!({"uid": "u", "allowed": true, "patchType": "JSONPatch", "patch": "e30="}),
                "read the patch",
            ),
        ] {
            let error = judge(&answer(&response), "u", &json!({})).unwrap_err().to_string();
            assert!(error.contains(said), "{response}: {error}");
        }
        judge(&json!({"kind": "Status"}), "u", &json!({})).unwrap_err();
    }

    #[test]
    fn sends_what_an_api_server_sends() {
        let review = review("u", &crate::manifest::load(None).unwrap());
        assert_eq!(review["request"]["object"]["kind"], "Pod");
        assert_eq!(review["request"]["namespace"], "default");
        assert!(review["request"].get("name").is_none());
    }
}
