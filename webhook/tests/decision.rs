//! The vectors through the decision itself.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use std::collections::BTreeSet;

use clap::Parser as _;
use common::{Vector, judge, review, vectors};
use nodestub_webhook::admit::{Decision, Facts, FailOpen, Operation, Reason, Request, admit};
use nodestub_webhook::args::{Cli, Settings};
use serde_json::{Value, json};

fn settings(vector: &Vector) -> Settings {
    let flags = ["nodestub-webhook", "--certificates=unused"].into_iter().map(str::to_owned);
    Cli::try_parse_from(flags.chain(vector.flags.clone())).unwrap().serve.settings().unwrap()
}

fn decide(vector: &Vector, pod: &Value) -> Decision {
    let Settings { policy, given: facts, .. } = settings(vector);
    let review = review(vector);
    let text = |path: &str| review.pointer(&format!("/request/{path}")).and_then(Value::as_str).unwrap_or("");
    let request = Request {
        operation: match text("operation") {
            "CREATE" => Operation::Create,
            "UPDATE" => Operation::Update,
            "DELETE" => Operation::Delete,
            _ => Operation::Connect,
        },
        group: text("resource/group"),
        resource: text("resource/resource"),
        sub_resource: text("subResource"),
        namespace: text("namespace"),
        object: Some(pod).filter(|pod| !pod.is_null()),
    };
    admit(&policy, &facts, &request)
}

/// The simplest pod that is injected.
fn plain() -> Vector {
    let name = "a plain pod in a namespace that opted in";
    vectors().into_iter().find(|vector| vector.name == name).unwrap()
}

#[test]
fn decides_every_vector_as_written() {
    for vector in vectors() {
        let decision = decide(&vector, &vector.pod);
        let warnings: Vec<_> = decision.warnings.iter().map(nodestub_webhook::admit::Warning::text).collect();
        let patched = judge(&vector, decision.reason.label(), &json!(decision.patch), &warnings);
        let foretold = decision.injection.map(|injection| injection.to_string());
        assert_eq!(foretold, vector.resolv_conf, "{}", vector.name);
        if vector.reason == "injected" {
            let again = decide(&vector, &patched);
            assert_eq!((again.reason, again.patch.0.len()), (Reason::AlreadyInjected, 0), "{}", vector.name);
            assert_eq!(decide(&vector, &vector.pod).patch, decision.patch, "{}", vector.name);
        }
    }
}

#[test]
fn has_vectors_for_every_defect_and_enough_of_them() {
    let vectors = vectors();
    let names: BTreeSet<_> = vectors.iter().map(|vector| vector.name.as_str()).collect();
    assert_eq!(names.len(), vectors.len(), "two vectors of one name");
    assert!(vectors.len() >= 150, "{}", vectors.len());
    for defect in 1..=8 {
        assert!(vectors.iter().any(|vector| vector.defect == Some(defect)), "defect {defect}");
    }
}

#[test]
fn has_a_vector_for_every_reason_that_flags_can_bring_about() {
    let seen: BTreeSet<_> = vectors().into_iter().map(|vector| vector.reason).collect();
    // Facts that flags always give, and a fault that no input may bring about.
    let out_of_reach =
        [Reason::ClusterDnsUnknown, Reason::ClusterDomainUnknown, Reason::ResolversUnknown, Reason::Fault];
    for reason in Reason::ALL.iter().filter(|reason| !out_of_reach.contains(reason)) {
        assert!(seen.contains(reason.label()), "{}", reason.label());
    }
}

#[test]
fn leaves_pods_alone_while_a_fact_is_not_known() {
    let vector = &plain();
    let Settings { policy, given: facts, .. } = settings(vector);
    let request = Request::create_pod("shop", &vector.pod);
    assert_eq!(admit(&policy, &facts, &request).reason, Reason::Injected);

    let mut without = facts.clone();
    without.cluster_dns.clear();
    let decision = admit(&policy, &without, &request);
    assert_eq!((decision.reason, decision.patch.0.len()), (Reason::ClusterDnsUnknown, 0));
    assert_eq!(decision.warnings.len(), 1);

    let watched = nodestub_webhook::admit::Policy { min_ready_percent: 1, ..policy.clone() };
    let decision = admit(&watched, &facts, &request);
    assert_eq!((decision.reason, decision.patch.0.len()), (Reason::ResolversUnknown, 0));
    assert_eq!(decision.warnings.len(), 1);

    let without = Facts { cluster_domain: None, ..facts };
    let decision = admit(&policy, &without, &request);
    assert_eq!((decision.reason, decision.patch.0.len()), (Reason::ClusterDomainUnknown, 0));
    assert_eq!(decision.warnings.len(), 1);
}

#[test]
fn stops_at_the_first_search_domain_that_has_no_room() {
    let Settings { policy, given: facts, .. } = settings(&plain());
    let long = |index: usize| format!("{index}.{}", ["a"; 100].join("."));
    let own: Vec<_> = (0..10).map(long).chain(["short.example".to_owned()]).collect();
    let pod = json!({"metadata": {}, "spec": {"dnsConfig": {"searches": own}}});
    let decision = admit(&policy, &facts, &Request::create_pod("shop", &pod));
    // The first three are the cluster's, of 57 characters with their blanks; nine more are of 202 each.
    assert_eq!(decision.injection.unwrap().searches[3..], own[..9]);
    let said = "no room for 2 search domain(s) from \"9.a.a";
    assert!(decision.warnings[0].text().contains(said), "{}", decision.warnings[0].text());
}

#[test]
fn does_without_a_fallback_only_at_addresses_that_every_node_vouches_for() {
    let Settings { policy, given, .. } = settings(&plain());
    let pod = |annotations: Value| json!({"metadata": {"annotations": annotations}, "spec": {}});
    let servers = |fail_open: FailOpen, annotations: Value| {
        let facts = Facts { fail_open, ..given.clone() };
        let decision = admit(&policy, &facts, &Request::create_pod("shop", &pod(annotations)));
        (decision.injection.unwrap().nameservers, decision.warnings.len())
    };
    let proven = || FailOpen::At(vec!["169.254.20.10".parse().unwrap()]);
    let local = vec!["169.254.20.10".to_owned()];
    assert_eq!(servers(proven(), json!({"nodestub.io/fallback": "auto"})), (local.clone(), 0));
    assert_eq!(servers(proven(), json!({"nodestub.io/fallback": "none"})), (local, 0));
    assert_eq!(servers(FailOpen::NotProven, json!({"nodestub.io/fallback": "auto"})).0.len(), 2);
    // Another address on the pod: nobody has vouched for that one.
    let elsewhere = |fallback: &str| json!({"nodestub.io/fallback": fallback, "nodestub.io/local-address": "169.254.1.1"});
    let both = vec!["169.254.1.1".to_owned(), "10.96.0.10".to_owned()];
    assert_eq!(servers(proven(), elsewhere("auto")), (both.clone(), 0));
    assert_eq!(servers(proven(), elsewhere("none")), (both, 1));
}
