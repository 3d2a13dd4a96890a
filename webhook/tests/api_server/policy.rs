//! Mode policy beside the webhook: what it decides, and what it refuses by name.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::common::api::{ApiServer, until};
use crate::common::{Vector, check_injected, resolv_conf, vectors};
use crate::{ALONE, BASELINE, SYSTEM, comparable, complete, kubeconfig, namespaces};

const POLICY: &str = "/apis/admissionregistration.k8s.io/v1/mutatingadmissionpolicies/nodestub";

/// What `nodestub-webhook policy` prints, or why it refuses.
fn rendered(flags: &[String]) -> Result<Vec<Value>, String> {
    let done = std::process::Command::new(env!("CARGO_BIN_EXE_nodestub-webhook"))
        .arg("policy")
        .args(flags)
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    if done.status.success() {
        Ok(serde_saphyr::from_multiple(&text(done.stdout)).unwrap())
    } else {
        Err(text(done.stderr))
    }
}

/// The path of a policy or a binding.
fn path_of(object: &Value) -> String {
    let kind = object["kind"].as_str().unwrap().to_lowercase();
    let plural = kind.strip_suffix('y').map_or_else(|| format!("{kind}s"), |stem| format!("{stem}ies"));
    let name = object["metadata"]["name"].as_str().unwrap();
    format!("/apis/admissionregistration.k8s.io/v1/{plural}/{name}")
}

#[test]
#[ignore = "stage cluster of tests/run runs it, on a real API server"]
fn decides_by_policy_as_the_webhook_does_or_refuses_by_name() {
    let _alone = ALONE.lock();
    let api = ApiServer::connect(&kubeconfig());
    api.namespace(BASELINE, &json!({}), &json!({}));
    let probe = json!({"nodestub-test": "yes", "nodestub.io/inject": "enabled"});
    api.namespace("nodestub-probe", &probe, &json!({}));
    let plain = complete(&json!({"metadata": {"name": "probe"}, "spec": {}})).unwrap();

    let mut by_flags: BTreeMap<Vec<String>, Vec<Vector>> = BTreeMap::new();
    for vector in vectors() {
        let exists = namespaces(&vector).contains_key(&vector.namespace);
        if vector.request == json!({}) && exists && complete(&vector.pod).is_some() {
            let own = vector.flags.iter().filter(|flag| !flag.starts_with("--namespace")).cloned().collect();
            by_flags.entry(own).or_default().push(vector);
        }
    }
    let (mut same, mut refused, mut shares, mut fallbacks, mut unknown, mut not_accepted) =
        (0, 0, 0, 0, 0, 0);
    let mut objects = Vec::new();
    for (flags, vectors) in &by_flags {
        match rendered(flags) {
            Err(why) => {
                // By the name of a flag that is there, or that is missing.
                let named = ["--rollout", "--min-ready-resolvers", "--fallback", "--host-search"]
                    .into_iter()
                    .find(|name| why.contains(&format!("nodestub-webhook: {name}")));
                assert!(named.is_some(), "{flags:?}: {why}");
                refused += vectors.len();
                continue;
            }
            Ok(rendered) => objects = rendered,
        }
        for object in &objects {
            api.apply(&path_of(object), object);
        }
        let expression = objects[0]["spec"]["mutations"][0]["jsonPatch"]["expression"].as_str().unwrap();
        until(&format!("the policy of {flags:?}"), || {
            let reply = api.create("nodestub-probe", &plain, true);
            let revision =
                reply.body["metadata"]["annotations"]["nodestub.io/revision"].as_str().unwrap_or("-");
            reply.is_good() && expression.contains(revision)
        });
        for vector in vectors {
            let name = &vector.name;
            for (namespace, (labels, annotations)) in namespaces(vector) {
                api.namespace(&namespace, &labels, &annotations);
            }
            let pod = complete(&vector.pod).unwrap();
            let without = api.create(BASELINE, &pod, true);
            if !without.is_good() {
                not_accepted += 1;
                continue;
            }
            let given = namespaces(vector).remove(&vector.namespace).unwrap();
            // A share of workloads is refused by leaving the namespace alone, and saying so.
            let share = given.1.get("nodestub.io/rollout").and_then(Value::as_str).map(str::to_owned);
            let has_share = share.is_some_and(|share| {
                share.trim_end_matches('%').trim().parse::<u8>().is_ok_and(|percent| percent < 100)
            });
            let is_injected = vector.reason == "injected" && !has_share;
            let as_foretold = |stored: &Value| {
                if is_injected {
                    stored["spec"]["dnsPolicy"] == "None"
                        && resolv_conf(stored) == *vector.resolv_conf.as_ref().unwrap()
                } else {
                    stored["spec"]["dnsPolicy"] == without.body["spec"]["dnsPolicy"]
                        && stored["spec"]["dnsConfig"] == without.body["spec"]["dnsConfig"]
                }
            };
            // The API server may be a moment behind with the namespace.
            let mut dry = api.create(&vector.namespace, &pod, true);
            let began = std::time::Instant::now();
            while !as_foretold(&dry.body) && began.elapsed() < std::time::Duration::from_secs(20) {
                dry = api.create(&vector.namespace, &pod, true);
            }
            assert!(as_foretold(&dry.body), "{name}: {}", resolv_conf(&dry.body));
            if has_share && ["injected", "not_in_rollout"].contains(&vector.reason.as_str()) {
                until("the warning", || {
                    let reply = api.create(&vector.namespace, &pod, true);
                    reply.warnings.iter().any(|text| {
                        text.contains("nodestub.io/rollout on the namespace is not for mode policy")
                    })
                });
            }
            // A fallback that cannot be granted is not passed over in silence.
            if vector.warnings.iter().any(|text| text.starts_with("none ")) {
                until("the warning", || {
                    let reply = api.create(&vector.namespace, &pod, true);
                    reply.warnings.iter().any(|text| text.contains("nodestub.io/fallback"))
                });
                fallbacks += 1;
            }
            // Neither is an annotation that does not exist; its name is said, as the webhook says it.
            for said in vector.warnings.iter().filter(|text| text.starts_with("annotation ")) {
                until(said, || {
                    let reply = api.create(&vector.namespace, &pod, true);
                    assert!(reply.is_good(), "{name}: {reply:?}");
                    reply.warnings.iter().any(|text| text.contains(said.as_str()))
                });
                unknown += 1;
            }
            let stored = api.create(&vector.namespace, &pod, false);
            assert!(stored.is_good() && as_foretold(&stored.body), "{name}: {stored:?}");
            assert_eq!(comparable(&stored.body), comparable(&without.body), "{name}: something else differs");
            if is_injected {
                check_injected(name, &stored.body, &stored.body);
            }
            let pod_name = stored.body["metadata"]["name"].as_str().unwrap();
            let path = format!("/api/v1/namespaces/{}/pods/{pod_name}", vector.namespace);
            api.delete(&format!("{path}?gracePeriodSeconds=0"));
            until("the pod's end", || api.get(&path).is_none());
            if has_share { shares += 1 } else { same += 1 }
        }
    }
    for object in &objects {
        api.delete(&path_of(object));
    }
    assert!(api.get(POLICY).is_none());
    for name in ["shop", "elsewhere", BASELINE, "nodestub-probe"] {
        api.delete(&format!("/api/v1/namespaces/{name}"));
    }
    for name in SYSTEM {
        api.namespace(name, &json!({}), &json!({}));
    }
    println!(
        "{same} vectors as by the webhook, {refused} refused by a flag's name, {shares} shares and {fallbacks} fallbacks refused by a warning, {unknown} unknown annotations warned of, {not_accepted} not accepted with or without"
    );
    assert!(
        same >= 100 && refused > 5 && shares > 5 && fallbacks >= 3 && unknown >= 3,
        "{same}, {refused}, {shares}, {fallbacks}, {unknown}"
    );
}
