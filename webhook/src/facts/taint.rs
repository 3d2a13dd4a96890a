//! Takes the taint `nodestub.io/not-ready` off nodes whose resolver is ready. Off by default.
//!
//! Who sets it: the operator, by the kubelet's `--register-with-taints=nodestub.io/not-ready=:NoSchedule`, so that a new node
//! has it before anything could be scheduled there. Who lifts it: every replica of the webhook, for it has the rights in
//! the cluster that a resolver shall not have. It is never put back: pods that run there would not move, and kernel
//! fail-open answers them.
//!
//! A ready node is one whose resolver's endpoint is ready. Nodes are listed when those change, and every [`INTERVAL`].

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use json_patch::jsonptr::PointerBuf;
use json_patch::{Patch as JsonPatch, PatchOperation, RemoveOperation, TestOperation};
use k8s_openapi::api::core::v1::Node;
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, Client, ResourceExt as _};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::cluster::in_one_line;
use crate::metrics::Metrics;

/// The taint's key.
const TAINT: &str = "nodestub.io/not-ready";
/// Between two looks at all nodes.
const INTERVAL: Duration = Duration::from_secs(15);
/// How long one request may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Lifts until nobody tells of ready nodes any more.
pub(super) async fn run(client: Client, mut ready: watch::Receiver<BTreeSet<String>>, metrics: Arc<Metrics>) {
    let nodes: Api<Node> = Api::all(client);
    let mut failed = false;
    loop {
        let now = ready.borrow_and_update().clone();
        let done = if now.is_empty() { Ok(()) } else { lift(&nodes, &now, &metrics).await };
        if let Err(error) = &done
            && !failed
        {
            tracing::warn!(error, "taints of nodes were not looked at; it is tried again");
        }
        failed = done.is_err();
        tokio::select! {
            () = sleep(INTERVAL) => {}
            changed = ready.changed() => if changed.is_err() { return },
        }
    }
}

async fn lift(nodes: &Api<Node>, ready: &BTreeSet<String>, metrics: &Metrics) -> Result<(), String> {
    let no_answer = |_| "no answer in time".to_owned();
    let all = timeout(TIMEOUT, nodes.list(&ListParams::default())).await.map_err(no_answer)?;
    let all = all.map_err(|error| in_one_line(&error))?;
    for node in all.items.iter().filter(|node| ready.contains(&node.name_any())) {
        let Some(patch) = without_taint(node) else { continue };
        let name = node.name_any();
        let patch: Patch<()> = Patch::Json(patch);
        let lifted = timeout(TIMEOUT, nodes.patch(&name, &PatchParams::default(), &patch)).await;
        let error = match lifted {
            Ok(Ok(_)) => None,
            Ok(Err(error)) => Some(in_one_line(&error)),
            Err(_) => Some("no answer in time".to_owned()),
        };
        metrics.taint_lifted(error.is_none());
        match error {
            None => tracing::info!(node = name, "the resolver is ready: took the taint {TAINT} off"),
            // Another replica may have been faster.
            Some(error) => {
                tracing::warn!(node = name, error, "the taint {TAINT} was not taken off; it is tried again");
            }
        }
    }
    Ok(())
}

/// Takes exactly that taint, and only while it stands where it was seen.
fn without_taint(node: &Node) -> Option<JsonPatch> {
    let taints = node.spec.as_ref()?.taints.as_ref()?;
    let (place, taint) = taints.iter().enumerate().find(|(_, taint)| taint.key == TAINT)?;
    let path = PointerBuf::from_tokens(["spec".to_owned(), "taints".to_owned(), place.to_string()]);
    Some(JsonPatch(vec![
        PatchOperation::Test(TestOperation { path: path.clone(), value: json!(taint) }),
        PatchOperation::Remove(RemoveOperation { path }),
    ]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_that_taint_and_no_other() {
        let node = |taints: serde_json::Value| -> Node {
            serde_json::from_value(json!({"metadata": {"name": "a"}, "spec": {"taints": taints}})).unwrap()
        };
        let ours = json!({"key": TAINT, "effect": "NoSchedule"});
        let other = json!({"key": "dedicated", "value": "gpu", "effect": "NoSchedule"});
        let with_both = node(json!([other, ours]));
        let mut object = json!(with_both);
        json_patch::patch(&mut object, &without_taint(&with_both).unwrap()).unwrap();
        assert_eq!(object["spec"]["taints"], json!([other]));
        // What has changed meanwhile is not touched.
        let mut moved = json!(node(json!([ours, other])));
        assert!(json_patch::patch(&mut moved, &without_taint(&with_both).unwrap()).is_err());
        for without in [json!(null), json!([]), json!([other])] {
            assert!(without_taint(&node(without)).is_none());
        }
    }
}
