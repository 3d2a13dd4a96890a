//! What is asked: an AdmissionRequest, narrowed to what the decision depends on.
//!
//! Left out on purpose: the user, the pod's own `metadata.namespace` (it may be empty or wrong; the request's
//! counts), and `dryRun` (a decision has no side effects, so it is the same).

use serde_json::Value;

/// One question to [`admit`](super::admit).
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// What is being done.
    pub operation: Operation,
    /// The API group of the resource; empty for the core group.
    pub group: &'a str,
    /// The resource, such as `pods`.
    pub resource: &'a str,
    /// The subresource, such as `ephemeralcontainers`; empty for the object itself.
    pub sub_resource: &'a str,
    /// The namespace of the request.
    pub namespace: &'a str,
    /// The object, as it came.
    pub object: Option<&'a Value>,
}

impl<'a> Request<'a> {
    /// The question for a pod that is about to be created.
    #[must_use]
    pub fn create_pod(namespace: &'a str, pod: &'a Value) -> Self {
        Self {
            operation: Operation::Create,
            group: "",
            resource: "pods",
            sub_resource: "",
            namespace,
            object: Some(pod),
        }
    }
}

/// What is being done to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// It is made.
    Create,
    /// It is changed.
    Update,
    /// It is deleted.
    Delete,
    /// It is connected to.
    Connect,
}
