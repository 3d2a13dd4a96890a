//! The MutatingWebhookConfiguration: whom the API server trusts, and telling it.
//!
//! By server-side apply under a field manager of our own, of `caBundle` and nothing else: everything else stays whose it
//! is, and a manifest without a bundle that is applied again takes nothing from us.

use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::{MutatingWebhookConfiguration, WebhookClientConfig};
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use nodestub_certs::bundle::Bundle;
use nodestub_certs::sight::Hook;
use serde_json::{Value, json};

/// Who we are among the managers of its fields.
pub(super) const FIELD_MANAGER: &str = "nodestub-certificates";

/// One MutatingWebhookConfiguration.
#[derive(Clone)]
pub(super) struct Registration {
    all: Api<MutatingWebhookConfiguration>,
    name: String,
}

impl Registration {
    pub(super) fn new(client: &Client, name: &str) -> Self {
        Self { all: Api::all(client.clone()), name: name.to_owned() }
    }

    pub(super) fn all(&self) -> Api<MutatingWebhookConfiguration> {
        self.all.clone()
    }

    pub(super) async fn read(&self) -> kube::Result<Option<MutatingWebhookConfiguration>> {
        self.all.get_opt(&self.name).await
    }

    /// Writes the bundle into each of the webhooks that were read; none when somebody has changed them since.
    pub(super) async fn publish(
        &self,
        read: &MutatingWebhookConfiguration,
        bundle: &str,
    ) -> kube::Result<Option<MutatingWebhookConfiguration>> {
        let object = applied(read, bundle);
        let how = PatchParams::apply(FIELD_MANAGER).force();
        match self.all.patch(&self.name, &how, &Patch::Apply(&object)).await {
            Ok(written) => Ok(Some(written)),
            // Changed meanwhile, or a webhook that we name is gone: look again.
            Err(kube::Error::Api(status)) if [404, 409].contains(&status.code) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// What is applied. The resourceVersion makes it a compare-and-set.
fn applied(read: &MutatingWebhookConfiguration, bundle: &str) -> Value {
    let bundle = ByteString(bundle.as_bytes().to_vec());
    let hooks = read.webhooks.iter().flatten();
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": read.metadata.name, "resourceVersion": read.metadata.resource_version},
        "webhooks": hooks
            .map(|hook| json!({"name": hook.name, "clientConfig": {"caBundle": bundle}}))
            .collect::<Vec<_>>(),
    })
}

/// Its webhooks, as far as certificates go.
pub(super) fn hooks(read: &MutatingWebhookConfiguration) -> Vec<Hook> {
    let hooks = read.webhooks.iter().flatten();
    let hook = |name: &String, client: &WebhookClientConfig| Hook {
        name: name.clone(),
        host: host(client),
        bundle: Bundle::read(client.ca_bundle.as_ref().map(|text| text.0.as_slice()).unwrap_or_default()),
    };
    hooks.map(|one| hook(&one.name, &one.client_config)).collect()
}

/// What the API server asks the certificate for: the Service's name, or the URL's host.
fn host(client: &WebhookClientConfig) -> String {
    if let Some(service) = &client.service {
        return format!("{}.{}.svc", service.name, service.namespace);
    }
    let url: Option<axum::http::Uri> = client.url.as_ref().and_then(|url| url.parse().ok());
    let host = url.as_ref().and_then(axum::http::Uri::host).unwrap_or_default();
    host.trim_start_matches('[').trim_end_matches(']').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(webhooks: &Value) -> MutatingWebhookConfiguration {
        let object = json!({"metadata": {"name": "nodestub", "resourceVersion": "7"}, "webhooks": webhooks});
        serde_json::from_value(object).unwrap()
    }

    fn hook(name: &str, client: &Value) -> Value {
        json!({"name": name, "clientConfig": client, "sideEffects": "None", "admissionReviewVersions": ["v1"]})
    }

    #[test]
    fn asks_certificates_for_what_the_api_server_calls() {
        let service = json!({"service": {"name": "web", "namespace": "here", "path": "/mutate"}});
        let cases = [
            (service, "web.here.svc"),
            (json!({"url": "https://127.0.0.1:8443/mutate"}), "127.0.0.1"),
            (json!({"url": "https://[fd00::1]:8443/mutate"}), "fd00::1"),
            (json!({"url": "https://web.example/mutate"}), "web.example"),
            (json!({}), ""),
        ];
        for (client, host) in cases {
            assert_eq!(hooks(&read(&json!([hook("a.b.c", &client)])))[0].host, host);
        }
    }

    #[test]
    fn applies_the_bundle_to_every_webhook_and_nothing_else() {
        let url = json!({"url": "https://127.0.0.1/mutate"});
        let object = applied(&read(&json!([hook("a.b.c", &url), hook("d.e.f", &url)])), "PEM");
        let expected = json!([
            {"name": "a.b.c", "clientConfig": {"caBundle": "UEVN"}},
            {"name": "d.e.f", "clientConfig": {"caBundle": "UEVN"}},
        ]);
        assert_eq!(object["webhooks"], expected);
        assert_eq!(object["metadata"], json!({"name": "nodestub", "resourceVersion": "7"}));
    }
}
