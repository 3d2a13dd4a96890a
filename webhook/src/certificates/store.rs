//! The Secret: read, and written only if nobody has changed it since (compare-and-set by its resourceVersion).

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::Client;
use kube::api::{Api, PostParams};
use kube::core::ObjectMeta;
use nodestub_certs::kept::{Contents, Kept};

use crate::facts::publish::FIELD_MANAGER;

/// One Secret of one namespace.
#[derive(Clone)]
pub(super) struct Store {
    secrets: Api<Secret>,
    name: String,
    namespace: String,
}

/// What became of a write.
#[derive(Debug)]
pub(super) enum Written {
    /// It is done; this is what stands there now.
    Done(Box<Secret>),
    /// Somebody was faster: look again.
    Raced,
}

impl Store {
    pub(super) fn new(client: &Client, namespace: &str, name: &str) -> Self {
        Self {
            secrets: Api::namespaced(client.clone(), namespace),
            name: name.to_owned(),
            namespace: namespace.to_owned(),
        }
    }

    pub(super) fn secrets(&self) -> Api<Secret> {
        self.secrets.clone()
    }

    pub(super) async fn read(&self) -> kube::Result<Option<Secret>> {
        self.secrets.get_opt(&self.name).await
    }

    /// Writes what is kept over what was read. Other keys, labels and annotations stay.
    pub(super) async fn write(&self, read: Option<&Secret>, kept: &Kept) -> kube::Result<Written> {
        let how = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), dry_run: false };
        let written = match read {
            None => {
                let mut secret = Secret {
                    metadata: ObjectMeta {
                        name: Some(self.name.clone()),
                        namespace: Some(self.namespace.clone()),
                        labels: Some(labels()),
                        ..ObjectMeta::default()
                    },
                    type_: Some("kubernetes.io/tls".to_owned()),
                    ..Secret::default()
                };
                put(&mut secret, kept.write());
                self.secrets.create(&how, &secret).await
            }
            Some(read) => {
                // The resourceVersion that was read goes along: the API server refuses it if it is not the newest.
                let mut secret = read.clone();
                put(&mut secret, kept.write());
                self.secrets.replace(&self.name, &how, &secret).await
            }
        };
        match written {
            Ok(secret) => Ok(Written::Done(Box::new(secret))),
            // Changed, made by somebody else, or deleted meanwhile.
            Err(kube::Error::Api(status)) if status.code == 409 || (status.code == 404 && read.is_some()) => {
                Ok(Written::Raced)
            }
            Err(error) => Err(error),
        }
    }
}

fn labels() -> std::collections::BTreeMap<String, String> {
    let pairs = [("app.kubernetes.io/name", "nodestub-webhook"), ("app.kubernetes.io/part-of", "nodestub")];
    pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).into()
}

fn put(secret: &mut Secret, contents: Contents) {
    let data = secret.data.get_or_insert_default();
    for key in Kept::keys() {
        data.remove(key);
    }
    data.extend(contents.into_iter().map(|(key, value)| (key, ByteString(value))));
}

/// The Secret's contents.
pub(super) fn contents(secret: Option<&Secret>) -> Contents {
    let data = secret.and_then(|secret| secret.data.as_ref());
    data.into_iter().flatten().map(|(key, value)| (key.clone(), value.0.clone())).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use axum::http::{Request, Response};
    use kube::client::Body;
    use serde_json::{Value, json};

    use super::*;

    /// Writes over what was read, to an API server that answers with that status; and what it was asked.
    fn write(read: Option<&Secret>, status: u16) -> (kube::Result<Written>, String, Value) {
        let asked = Arc::new(Mutex::new(None));
        let heard = Arc::clone(&asked);
        let service = tower::service_fn(move |request: Request<Body>| {
            let heard = Arc::clone(&heard);
            async move {
                let method = request.method().to_string();
                let body = request.into_body().collect_bytes().await?;
                *heard.lock().unwrap() = Some((method, serde_json::from_slice(&body)?));
                let reply = if status == 200 {
                    json!({"metadata": {"name": "certificates", "resourceVersion": "8"}})
                } else {
                    json!({"kind": "Status", "status": "Failure", "reason": "x", "message": "x", "code": status})
                };
                let reply = Response::builder().status(status).body(Body::from(serde_json::to_vec(&reply)?));
                Ok::<_, Box<dyn std::error::Error + Send + Sync>>(reply?)
            }
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let written = runtime.block_on(async {
            let store = Store::new(&Client::new(service, "here"), "here", "certificates");
            store.write(read, &Kept::default()).await
        });
        let (method, body) = asked.lock().unwrap().take().unwrap();
        (written, method, body)
    }

    #[test]
    fn writes_only_over_what_was_read_and_says_when_somebody_was_faster() {
        let read: Secret = serde_json::from_value(json!({
            "metadata": {"name": "certificates", "resourceVersion": "7", "labels": {"mine": "yes"}},
            "data": {"other": "eA=="},
        }))
        .unwrap();
        let (written, method, body) = write(Some(&read), 409);
        assert!(matches!(written, Ok(Written::Raced)), "{written:?}");
        assert_eq!((method.as_str(), &body["metadata"]["resourceVersion"]), ("PUT", &json!("7")));
        assert_eq!(
            (&body["data"]["other"], &body["metadata"]["labels"]["mine"]),
            (&json!("eA=="), &json!("yes"))
        );
        assert!(matches!(write(Some(&read), 404).0, Ok(Written::Raced)), "deleted meanwhile");

        let (written, method, _) = write(None, 409);
        assert!(matches!(written, Ok(Written::Raced)), "made by somebody else: {written:?}");
        assert_eq!(method, "POST");
        assert!(write(Some(&read), 403).0.is_err());
        assert!(matches!(write(Some(&read), 200).0, Ok(Written::Done(_))));
    }
}
