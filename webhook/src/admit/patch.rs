//! The JSON Patch (RFC 6902): targeted `add` operations, parents first.
//!
//! `add` also replaces, so it is right whether the field was there or not. Nothing is touched but
//! `/spec/dnsPolicy`, the three lists in `/spec/dnsConfig`, and our two annotations.

use json_patch::jsonptr::PointerBuf;
use json_patch::{AddOperation, Patch, PatchOperation};
use serde_json::{Value, json};

use super::compose::Injection;
use super::keys;
use super::pod::Pod;

/// The value of [`keys::STATUS`] on pods that we changed.
pub(super) const INJECTED: &str = "injected";

/// What turns the pod into the injected one.
pub(super) fn patch(pod: &Pod, injection: &Injection) -> Patch {
    let mut operations = Vec::with_capacity(7);
    if !pod.has_annotations {
        operations.push(add(["metadata", "annotations"], json!({})));
    }
    operations.push(add(["metadata", "annotations", keys::STATUS], json!(INJECTED)));
    operations.push(add(["metadata", "annotations", keys::REVISION], json!(injection.revision())));
    if pod.has_dns_config {
        // List by list, so that a field of dnsConfig that this version does not know survives.
        operations.push(add(["spec", "dnsConfig", "nameservers"], json!(injection.nameservers)));
        operations.push(add(["spec", "dnsConfig", "searches"], json!(injection.searches)));
        operations.push(add(["spec", "dnsConfig", "options"], json!(injection.options)));
    } else {
        operations.push(add(["spec", "dnsConfig"], json!(injection)));
    }
    operations.push(add(["spec", "dnsPolicy"], json!("None")));
    Patch(operations)
}

/// A patch that changes nothing.
pub(super) fn empty() -> Patch {
    Patch(Vec::new())
}

fn add<const N: usize>(path: [&str; N], value: Value) -> PatchOperation {
    PatchOperation::Add(AddOperation { path: PointerBuf::from_tokens(path), value })
}
