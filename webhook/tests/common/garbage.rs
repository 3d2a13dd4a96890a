//! What people and tools put into the Secret by mistake.

use std::time::{Duration, SystemTime};

use k8s_openapi::ByteString;
use nodestub_certs::{Authority, Material, ServingNames};
use serde_json::{Value, json};

const HOUR: Duration = Duration::from_secs(3600);

/// One kind of it.
pub(crate) struct Garbage {
    pub(crate) name: &'static str,
    /// What is put over the Secret's data.
    pub(crate) data: Value,
    /// It is ours to mend.
    pub(crate) is_mended: bool,
    /// What the log says of it.
    pub(crate) said: &'static str,
}

fn material(service: &str, made: SystemTime) -> Material {
    let names = ServingNames {
        service: service.to_owned(),
        namespace: "nodestub-rotation".to_owned(),
        cluster_domain: Some("cluster.local".to_owned()),
        addresses: vec!["127.0.0.1".parse().unwrap()],
        extra: Vec::new(),
    };
    Authority::new(HOUR, made).unwrap().sign(&names, HOUR, made).unwrap()
}

fn data(pairs: &[(&str, &[u8])]) -> Value {
    pairs
        .iter()
        .map(|(key, bytes)| ((*key).to_owned(), json!(ByteString(bytes.to_vec()))))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

pub(crate) fn all() -> Vec<Garbage> {
    let now = SystemTime::now();
    let (good, other) = (material("nodestub-webhook", now), material("nodestub-webhook", now));
    let pair = |material: &Material| data(&[("tls.crt", &material.certificate), ("tls.key", &material.key)]);
    let garbage = |name, data, said| Garbage { name, data, is_mended: true, said };
    vec![
        garbage(
            "no certificate at all",
            data(&[("tls.crt", b"hello")]),
            "tls.crt holds no certificate in PEM form",
        ),
        garbage(
            "a certificate that is cut off",
            data(&[("tls.crt", &good.certificate[..200])]),
            "tls.crt is not PEM text",
        ),
        garbage(
            "a key of another pair",
            data(&[("tls.key", &other.key)]),
            "tls.key and tls.crt are not of the same pair",
        ),
        garbage(
            "an expired certificate",
            pair(&material("nodestub-webhook", now - HOUR * 5)),
            "tls.crt ended at",
        ),
        garbage(
            "a certificate of tomorrow",
            pair(&material("nodestub-webhook", now + HOUR * 24)),
            "tls.crt is not valid before",
        ),
        garbage("a certificate of another CA", pair(&good), "tls.crt was signed by none of the CAs"),
        garbage("another name", pair(&material("elsewhere", now)), "tls.crt was signed by none of the CAs"),
        garbage(
            "a CA's key that is none",
            data(&[("current-ca.key", b"hello")]),
            "current-ca.crt and current-ca.key cannot be used",
        ),
        garbage(
            "a CA's key of another pair",
            data(&[("current-ca.key", &other.key)]),
            "the CA's key and certificate are not of the same pair",
        ),
        garbage("a list of CAs that is none", data(&[("ca.crt", b"hello")]), "ca.crt is not a list of CAs"),
    ]
}
