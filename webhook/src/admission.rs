//! Between HTTP and the decision: an AdmissionReview (v1) in, an AdmissionReview out.
//!
//! 1. The text is read as JSON; what is not a review is refused ([`NotAReview`], a 4xx).
//! 2. The object is taken out and stays the JSON it was; the rest is read with `kube-core`'s types. A pod of a
//!    strange shape is thus a matter of the decision, not of the parser.
//! 3. The decision is made behind `catch_unwind`: a panic leaves the pod as it is, with a warning.
//! 4. The response allows, always.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use k8s_openapi::ByteString;
use kube_core::DynamicObject;
use kube_core::admission::{
    AdmissionRequest, AdmissionResponse, AdmissionReview, META_API_VERSION_V1, META_KIND,
    Operation as KubeOperation,
};
use serde_json::Value;

use crate::admit::{Decision, Facts, Operation, Policy, Request, Warning, admit};

/// The answer to one review, with what is needed to log and count it.
#[derive(Debug)]
pub struct Answer {
    /// The AdmissionReview to send back, as JSON.
    pub body: Vec<u8>,
    /// What was decided.
    pub decision: Decision,
    /// The request's id, for the log.
    pub uid: String,
    /// The namespace of the request; empty where it has none.
    pub namespace: String,
    /// The pod's name, or its `generateName` and a star while the name is not yet known.
    pub name: String,
    /// Nothing of the request will be stored.
    pub dry_run: bool,
}

/// Answers a review.
///
/// # Errors
/// When the text is not an AdmissionReview that can be answered.
pub fn answer(policy: &Policy, facts: &Facts, text: &[u8]) -> Result<Answer, NotAReview> {
    answer_with(text, |request| admit(policy, facts, request))
}

/// Answers a review with another decision; a panic in it is a [`Reason::Fault`](crate::admit::Reason::Fault).
///
/// # Errors
/// When the text is not an AdmissionReview that can be answered.
pub fn answer_with(text: &[u8], decide: impl FnOnce(&Request<'_>) -> Decision) -> Result<Answer, NotAReview> {
    let (request, object) = read(text)?;
    let narrowed = Request {
        operation: match request.operation {
            KubeOperation::Create => Operation::Create,
            KubeOperation::Update => Operation::Update,
            KubeOperation::Delete => Operation::Delete,
            KubeOperation::Connect => Operation::Connect,
        },
        group: &request.resource.group,
        resource: &request.resource.resource,
        sub_resource: request.sub_resource.as_deref().unwrap_or(""),
        namespace: request.namespace.as_deref().unwrap_or(""),
        object: object.as_ref(),
    };
    // Nothing that the closure can leave half done is used afterwards: it borrows only what is read.
    let decision = catch_unwind(AssertUnwindSafe(|| decide(&narrowed))).unwrap_or_else(|_| Decision::fault());
    let (decision, body) = match write(&request, &decision) {
        Ok(body) => (decision, body),
        Err(error) => {
            tracing::error!(uid = request.uid, %error, "the response could not be written as JSON");
            let fault = Decision::fault();
            let body = write(&request, &fault).map_err(NotAReview::Response)?;
            (fault, body)
        }
    };
    Ok(Answer {
        body,
        name: name(&request, object.as_ref()),
        decision,
        namespace: request.namespace.unwrap_or_default(),
        uid: request.uid,
        dry_run: request.dry_run,
    })
}

/// Why the text is not an AdmissionReview that can be answered.
#[derive(Debug)]
#[non_exhaustive]
pub enum NotAReview {
    /// It is not JSON.
    Json(serde_json::Error),
    /// It is JSON of another kind.
    Kind {
        /// What it says it is.
        found: String,
    },
    /// It is a review without a request.
    NoRequest,
    /// Its request lacks something, or something has another shape.
    Request(serde_json::Error),
    /// The response cannot be written; not the sender's fault.
    Response(serde_json::Error),
}

impl fmt::Display for NotAReview {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Json(cause) => write!(f, "the body is not JSON: {cause}"),
            Self::Kind { found } => {
                write!(f, "the body is {found}, not an {META_KIND} of {META_API_VERSION_V1}")
            }
            Self::NoRequest => f.write_str("the AdmissionReview has no request"),
            Self::Request(cause) => write!(f, "the AdmissionReview's request cannot be read: {cause}"),
            Self::Response(cause) => write!(f, "the response cannot be written: {cause}"),
        }
    }
}

impl std::error::Error for NotAReview {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Json(source) | Self::Request(source) | Self::Response(source) => Some(source),
            Self::Kind { .. } | Self::NoRequest => None,
        }
    }
}

/// The request without its objects, and the object.
fn read(text: &[u8]) -> Result<(AdmissionRequest<DynamicObject>, Option<Value>), NotAReview> {
    let mut review: Value = serde_json::from_slice(text).map_err(NotAReview::Json)?;
    let field = |name: &str| review.get(name).and_then(Value::as_str).unwrap_or("");
    let (kind, version) = (field("kind"), field("apiVersion"));
    if kind != META_KIND || version != META_API_VERSION_V1 {
        let found = match (kind, version) {
            ("", "") => "JSON without kind and apiVersion".to_owned(),
            _ => {
                let short = |text: &str| text.chars().take(60).collect::<String>();
                format!("kind {:?} of {:?}", short(kind), short(version))
            }
        };
        return Err(NotAReview::Kind { found });
    }
    let request = review.get_mut("request").and_then(Value::as_object_mut).ok_or(NotAReview::NoRequest)?;
    let object = request.remove("object").filter(|object| !object.is_null());
    request.remove("oldObject");
    let review: AdmissionReview<DynamicObject> =
        serde_json::from_value(review).map_err(NotAReview::Request)?;
    let request = review.try_into().map_err(|_| NotAReview::NoRequest)?;
    Ok((request, object))
}

fn write(
    request: &AdmissionRequest<DynamicObject>,
    decision: &Decision,
) -> Result<Vec<u8>, serde_json::Error> {
    let mut response = AdmissionResponse::from(request);
    response.audit_annotations.insert("decision".to_owned(), decision.reason.label().to_owned());
    if let Some(injection) = &decision.injection {
        response.audit_annotations.insert("revision".to_owned(), injection.revision());
    }
    if !decision.warnings.is_empty() {
        response.warnings = Some(decision.warnings.iter().map(Warning::text).collect());
    }
    let changes = !decision.patch.0.is_empty();
    if changes {
        response = response.with_patch(decision.patch.clone()).map_err(serde::ser::Error::custom)?;
    }
    let patch = response.patch.take();
    let mut review = serde_json::to_value(response.into_review())?;
    // The API's own form is base64; kube-core writes an array of numbers, four times as long.
    if let Some(patch) = patch
        && let Some(response) = review.get_mut("response").and_then(Value::as_object_mut)
    {
        response.insert("patch".to_owned(), serde_json::to_value(ByteString(patch))?);
    }
    serde_json::to_vec(&review)
}

fn name(request: &AdmissionRequest<DynamicObject>, object: Option<&Value>) -> String {
    let metadata = |field: &str| {
        let text = object?.get("metadata")?.get(field)?.as_str()?;
        (!text.is_empty()).then_some(text)
    };
    if !request.name.is_empty() {
        return request.name.clone();
    }
    match (metadata("name"), metadata("generateName")) {
        (Some(name), _) => name.to_owned(),
        (None, Some(prefix)) => format!("{prefix}*"),
        (None, None) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::admit::Reason;

    fn review() -> Value {
        json!({
            "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
            "request": {
                "uid": "u-1", "operation": "CREATE", "namespace": "shop",
                "kind": {"group": "", "version": "v1", "kind": "Pod"},
                "resource": {"group": "", "version": "v1", "resource": "pods"},
                "userInfo": {"username": "me"},
                "object": {"metadata": {"generateName": "web-"}, "spec": {}}
            }
        })
    }

    fn text(review: &Value) -> Vec<u8> {
        serde_json::to_vec(review).unwrap()
    }

    #[test]
    fn leaves_the_pod_as_it_is_when_the_decision_panics() {
        let answer = answer_with(&text(&review()), |_| panic!("on purpose")).unwrap();
        assert_eq!(answer.decision.reason, Reason::Fault);
        assert_eq!(answer.name, "web-*");
        let body: Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!(body["response"]["allowed"], true);
        assert_eq!(body["response"]["uid"], "u-1");
        assert_eq!(body["response"]["warnings"][0], Warning::Fault.text());
        assert_eq!(body["response"].get("patch"), None);
    }

    #[test]
    fn rejects_what_is_not_a_review_and_says_why() {
        let mut no_request = review();
        no_request["request"].take();
        let mut no_uid = review();
        no_uid["request"]["uid"].take();
        let mut old = review();
        old["apiVersion"] = json!("admission.k8s.io/v1beta1");
        let deep = [b"[".repeat(100_000), b"]".repeat(100_000)].concat();
        for (body, said) in [
            (b"hello".to_vec(), "not JSON"),
            (Vec::new(), "not JSON"),
            (vec![0xff, 0xfe], "not JSON"),
            (deep, "not JSON"),
            (b"[]".to_vec(), "JSON without kind"),
            (text(&json!({"kind": "Pod", "apiVersion": "v1"})), "kind \"Pod\" of \"v1\""),
            (text(&old), "v1beta1"),
            (text(&no_request), "no request"),
            (text(&no_uid), "cannot be read"),
        ] {
            let error = answer_with(&body, |_| panic!("must not be asked")).unwrap_err().to_string();
            assert!(error.contains(said) && !error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn leaves_pods_of_a_strange_shape_to_the_decision() {
        for object in
            [json!(5), json!([]), json!({"metadata": 1}), json!({"metadata": {"labels": []}, "spec": {}})]
        {
            let mut review = review();
            review["request"]["object"] = object.clone();
            let answer = answer_with(&text(&review), |request| {
                assert_eq!(request.object, Some(&object));
                Decision::fault()
            });
            answer.unwrap();
        }
    }
}
