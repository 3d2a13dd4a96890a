//! The webhook on a real API server: the stored pod is judged, not the patch.
//!
//! Stage `cluster` of tests/run runs them (tests/cluster/cases/control-plane). By hand: `NODESTUB_KUBECONFIG` names a
//! kubeconfig with every right in a cluster for tests that has no cluster DNS, whose API server can reach this process at
//! 127.0.0.1. The webhook gets its facts from that cluster.
#![cfg(feature = "kube")]
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test stops at the first surprise"
)]

#[path = "../common/mod.rs"]
mod common;
mod policy;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use common::api::{ApiServer, everything, shipped, until};
use common::client::{Webhook, issue_certificates};
use common::{Vector, check_injected, resolv_conf, vectors, without_ours};
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};

/// A cluster has one registration and one namespace of a name: one test at a time.
static ALONE: Mutex<()> = Mutex::new(());

const SYSTEM: [&str; 4] = ["kube-system", "kube-public", "kube-node-lease", "nodestub-system"];
/// Pods that nobody asks the webhook about.
const BASELINE: &str = "nodestub-baseline";
const FACTS: &str = "/api/v1/namespaces/kube-system/configmaps/nodestub-facts";

fn kubeconfig() -> String {
    std::env::var("NODESTUB_KUBECONFIG")
        .expect("NODESTUB_KUBECONFIG must name the kubeconfig of a cluster for tests")
}

fn start(home: &tempfile::TempDir, kubeconfig: &str, flags: &[String]) -> Webhook {
    let mut all = vec!["--facts-from=cluster".to_owned(), "--resolv-conf=/dev/null".to_owned()];
    if !flags.iter().any(|flag| flag.starts_with("--min-ready-resolvers=")) {
        all.push("--min-ready-resolvers=0".to_owned());
    }
    all.extend(flags.iter().cloned());
    let webhook = Webhook::start_with(home.path(), &all, &[("KUBECONFIG", kubeconfig)]);
    until("readiness", || webhook.admin("/readyz").status == 200);
    webhook
}

/// What flags say of namespaces: labels and annotations by name.
fn namespaces(vector: &Vector) -> BTreeMap<String, (Value, Value)> {
    let mut all: BTreeMap<String, (Value, Value)> = BTreeMap::new();
    for flag in &vector.flags {
        if let Some(text) = flag.strip_prefix("--namespace=") {
            let (name, labels) = text.split_once(':').unwrap_or((text, ""));
            let entry = all.entry(name.to_owned()).or_insert((json!({"nodestub-test": "yes"}), json!({})));
            for (key, value) in labels.split(',').filter_map(|label| label.split_once('=')) {
                entry.0[key] = json!(value);
            }
        }
        if let Some(text) = flag.strip_prefix("--namespace-annotation=") {
            let (name, annotation) = text.split_once(':').unwrap();
            let (key, value) = annotation.split_once('=').unwrap();
            all.get_mut(name).unwrap().1[key] = json!(value);
        }
    }
    all
}

/// The vector's pod with what the API asks of any pod; none where it is not even of a pod's shape.
fn complete(pod: &Value) -> Option<Value> {
    let mut pod = pod.clone();
    let spec = pod.get_mut("spec")?.as_object_mut()?;
    spec.entry("containers").or_insert(json!([{"name": "c", "image": "i"}]));
    for container in spec["containers"].as_array_mut()? {
        let container = container.as_object_mut()?;
        container.entry("name").or_insert(json!("c"));
        container.entry("image").or_insert(json!("i"));
    }
    // Else a volume of a random name is added.
    spec.insert("automountServiceAccountToken".to_owned(), json!(false));
    let metadata = pod.get_mut("metadata")?.as_object_mut()?;
    metadata.remove("namespace");
    if !metadata.contains_key("name") && !metadata.contains_key("generateName") {
        metadata.insert("name".to_owned(), json!("unnamed"));
    }
    pod["apiVersion"] = json!("v1");
    pod["kind"] = json!("Pod");
    Some(pod)
}

/// The stored pod without what differs between any two pods.
fn comparable(pod: &Value) -> Value {
    let mut pod = without_ours(pod);
    pod.as_object_mut().unwrap().remove("status");
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp", "managedFields"] {
        pod["metadata"].as_object_mut().unwrap().remove(field);
    }
    pod
}

/// The decisions for a reason so far.
fn decided(webhook: &Webhook, reason: &str) -> u64 {
    webhook.count(&format!("nodestub_webhook_decisions_total{{reason=\"{reason}\"}}"))
}

fn all_decided(webhook: &Webhook) -> u64 {
    webhook.count("nodestub_webhook_decision_duration_seconds_count")
}

/// A dry run that is injected, however long the API server and the webhook take to hear of what was changed.
fn until_injected(api: &ApiServer, namespace: &str) {
    let pod = complete(&json!({"metadata": {"name": "probe"}, "spec": {}})).unwrap();
    until("an injected pod", || {
        let reply = api.create(namespace, &pod, true);
        reply.is_good() && reply.body["metadata"]["annotations"]["nodestub.io/status"] == "injected"
    });
}

#[test]
#[ignore = "stage cluster of tests/run runs it, on a real API server"]
fn decides_every_vector_on_an_api_server_as_written() {
    let _alone = ALONE.lock();
    let kubeconfig = kubeconfig();
    let api = ApiServer::connect(&kubeconfig);
    api.namespace(BASELINE, &json!({}), &json!({}));
    let home = tempfile::tempdir().unwrap();
    issue_certificates(home.path());

    // What a run that failed has left.
    api.delete("/api/v1/namespaces/shop/pods?gracePeriodSeconds=0");

    let mut by_flags: BTreeMap<Vec<String>, Vec<Vector>> = BTreeMap::new();
    let (mut left_out, mut asked, mut spared) = (BTreeMap::<&str, u32>::new(), 0, 0);
    for vector in vectors() {
        let exists = namespaces(&vector).contains_key(&vector.namespace)
            || SYSTEM.contains(&vector.namespace.as_str());
        let why = if vector.request != json!({}) {
            Some("another request than the creation of a pod")
        } else if !exists {
            Some("a namespace that does not exist")
        } else if complete(&vector.pod).is_none() {
            Some("not of a pod's shape")
        } else {
            None
        };
        if let Some(why) = why {
            *left_out.entry(why).or_default() += 1;
            continue;
        }
        let own = vector.flags.iter().filter(|flag| !flag.starts_with("--namespace")).cloned().collect();
        by_flags.entry(own).or_default().push(vector);
    }

    let mut run = 0;
    for (flags, vectors) in &by_flags {
        let webhook = start(&home, &kubeconfig, flags);
        for (registration, is_shipped) in [(everything(), false), (shipped(), true)] {
            let _registered = api.register(&webhook, registration);
            let probe = json!({"nodestub-test": "yes", "nodestub.io/inject": "enabled"});
            api.namespace("nodestub-probe", &probe, &json!({"nodestub.io/rollout": "100%"}));
            let can_inject = vectors.iter().any(|vector| vector.reason == "injected");
            if can_inject {
                until_injected(&api, "nodestub-probe");
            } else {
                let pod = complete(&json!({"metadata": {"name": "probe"}, "spec": {}})).unwrap();
                let before = all_decided(&webhook);
                until("a call", || {
                    api.create("nodestub-probe", &pod, true).is_good() && all_decided(&webhook) > before
                });
            }
            for vector in vectors {
                let Some(calls) = check(&api, &webhook, vector, is_shipped) else {
                    *left_out.entry("refused by the API server with and without us").or_default() += 1;
                    continue;
                };
                run += u32::from(!is_shipped);
                if is_shipped && calls == 0 { spared += 1 } else { asked += 1 }
            }
        }
    }
    for name in ["shop", "elsewhere", BASELINE, "nodestub-probe"] {
        api.delete(&format!("/api/v1/namespaces/{name}"));
    }
    for name in SYSTEM {
        api.namespace(name, &json!({}), &json!({}));
    }
    for (why, count) in &left_out {
        println!("left out {count}: {why}");
    }
    println!("{run} vectors, {asked} runs with a call, {spared} spared by the shipped registration");
    assert!(run >= 150 && spared > 10, "{run}, {spared}");
}

/// Creates the vector's pod, really and as a dry run; gives the calls that it took. None: the API server refuses it.
fn check(api: &ApiServer, webhook: &Webhook, vector: &Vector, is_shipped: bool) -> Option<u64> {
    let name = &vector.name;
    let mut given = namespaces(vector);
    if SYSTEM.contains(&vector.namespace.as_str()) {
        let (labels, _) =
            given.entry(vector.namespace.clone()).or_insert((json!({"nodestub-test": "yes"}), json!({})));
        // Otherwise the pod may be refused for what it is.
        labels["pod-security.kubernetes.io/enforce"] = json!("privileged");
    }
    for (namespace, (labels, annotations)) in given {
        api.namespace(&namespace, &labels, &annotations);
    }
    let pod = complete(&vector.pod).unwrap();
    let without = api.create(BASELINE, &pod, true);
    // The webhook's watch may be a moment behind: the dry run is repeated until it has heard.
    let before = all_decided(webhook);
    let mut calls = 0;
    let mut dry = api.create(&vector.namespace, &pod, true);
    let injected = |reply: &common::api::Reply| {
        reply.body["metadata"]["annotations"]["nodestub.io/status"] == "injected"
            && reply.body["spec"]["dnsPolicy"] == "None"
    };
    let as_before =
        |reply: &common::api::Reply| reply.body["spec"]["dnsConfig"] == without.body["spec"]["dnsConfig"];
    if vector.reason == "injected" {
        until(name, || {
            dry = api.create(&vector.namespace, &pod, true);
            dry.is_good() && injected(&dry) && resolv_conf(&dry.body) == *vector.resolv_conf.as_ref().unwrap()
        });
    } else {
        if !without.is_good() {
            assert!(!dry.is_good(), "{name}");
            return None;
        }
        until(name, || {
            let seen = decided(webhook, &vector.reason);
            let all = all_decided(webhook);
            dry = api.create(&vector.namespace, &pod, true);
            calls = all_decided(webhook) - all;
            // Where the shipped registration spares the call there is no decision to see.
            dry.is_good()
                && as_before(&dry)
                && (decided(webhook, &vector.reason) > seen || (is_shipped && calls == 0))
        });
    }
    if all_decided(webhook) > before && vector.reason == "injected" {
        calls = all_decided(webhook) - before;
    }
    // A vector counts on the basic warnings of a webhook that is told all; what is foretold is said, in order.
    if calls > 0 {
        assert_eq!(
            dry.warnings.iter().filter(|text| text.starts_with("nodestub: ")).count(),
            vector.warnings.len(),
            "{name}: {:?}",
            dry.warnings
        );
        for part in &vector.warnings {
            assert!(dry.warnings.iter().any(|text| text.contains(part)), "{name}: {:?}", dry.warnings);
        }
    }
    let stored = api.create(&vector.namespace, &pod, false);
    assert!(stored.is_good(), "{name}: {stored:?}");
    match &vector.resolv_conf {
        Some(text) => {
            assert_eq!(&resolv_conf(&stored.body), text, "{name}");
            check_injected(name, &stored.body, &stored.body);
        }
        None => assert!(
            as_before(&stored) && !injected(&stored)
                || pod["metadata"]["annotations"]["nodestub.io/status"] == "injected",
            "{name}"
        ),
    }
    if without.is_good() {
        assert_eq!(comparable(&stored.body), comparable(&without.body), "{name}: something else differs");
    }
    let pod_name = stored.body["metadata"]["name"].as_str().unwrap();
    let path = format!("/api/v1/namespaces/{}/pods/{pod_name}", vector.namespace);
    let owned = stored.body["metadata"].get("ownerReferences").is_some();
    if !owned {
        assert_eq!(api.get(&path).unwrap()["spec"], stored.body["spec"], "{name}");
    }
    api.delete(&format!("{path}?gracePeriodSeconds=0"));
    until("the pod's end", || api.get(&path).is_none());
    Some(calls)
}

#[test]
#[ignore = "stage cluster of tests/run runs it, on a real API server"]
fn keeps_acceptable_every_pod_that_the_api_server_accepts() {
    let _alone = ALONE.lock();
    let kubeconfig = kubeconfig();
    let api = ApiServer::connect(&kubeconfig);
    let home = tempfile::tempdir().unwrap();
    issue_certificates(home.path());
    let flags = [
        "--cluster-dns=10.96.0.10,fd00:10:96::a",
        "--cluster-domain=cluster.local",
        "--host-search=corp.example,example",
    ];
    let webhook = start(&home, &kubeconfig, &flags.map(str::to_owned));
    api.namespace(BASELINE, &json!({}), &json!({}));
    let labels = json!({"nodestub-test": "yes", "nodestub.io/inject": "enabled"});
    api.namespace("nodestub-any", &labels, &json!({}));
    let _registered = api.register(&webhook, everything());
    until_injected(&api, "nodestub-any");

    let (mut accepted, mut injected) = (0, 0);
    let mut runner = TestRunner::deterministic();
    for case in 0..400 {
        let pod = any_pod().new_tree(&mut runner).unwrap().current();
        let without = api.create(BASELINE, &pod, true);
        if !without.is_good() {
            continue;
        }
        accepted += 1;
        let with = api.create("nodestub-any", &pod, true);
        assert!(with.is_good(), "{case}: {pod}\n{:?}", with.body);
        if with.body["metadata"]["annotations"]["nodestub.io/status"] != "injected" {
            assert_eq!(comparable(&with.body), comparable(&without.body), "{case}: {pod}");
            continue;
        }
        injected += 1;
        check_injected("any", &with.body, &with.body);
        assert_eq!(comparable(&with.body), comparable(&without.body), "{case}: something else differs");
        let mut again = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {}, "spec": with.body["spec"]});
        for field in ["labels", "annotations", "name"] {
            again["metadata"][field] = with.body["metadata"][field].clone();
        }
        let again = api.create("nodestub-any", &again, true);
        assert!(again.is_good(), "{case}: {:?}", again.body);
        assert_eq!(again.body["spec"], with.body["spec"], "{case}: the second patch is not empty");
    }
    api.delete("/api/v1/namespaces/nodestub-any");
    println!("{accepted} pods accepted, {injected} of them injected");
    assert!(accepted > 200 && injected > 100, "{accepted}, {injected}");
}

/// Pods near the limits of what the API accepts, and a little past them.
fn any_pod() -> impl Strategy<Value = Value> {
    let address = prop_oneof![
        Just("9.9.9.9"),
        Just("1.1.1.1"),
        Just("2001:db8::1"),
        Just("10.96.0.10"),
        Just("169.254.20.10")
    ];
    let nameservers = prop::collection::vec(address, 0..4);
    let searches = prop::collection::vec("[a-z]{1,60}(\\.[a-z]{1,60}){0,2}", 0..34);
    let option = ("[a-z-]{1,8}", prop::option::of("[0-9]{1,2}"));
    let named = prop_oneof![Just("ndots".to_owned()), Just("timeout".to_owned())];
    let options = prop::collection::vec((prop_oneof![named, option.0], option.1), 0..6);
    let policy = prop_oneof![
        5 => Just("ClusterFirst"), 2 => Just("ClusterFirstWithHostNet"), 1 => Just("Default"), 1 => Just("None")
    ];
    let key = prop_oneof![
        Just("ndots"),
        Just("options"),
        Just("searches"),
        Just("fallback"),
        Just("local-address"),
        Just("inject"),
        Just("x")
    ];
    let value = prop_oneof![
        Just("2".to_owned()),
        Just("timeout:1,attempts:2".to_owned()),
        Just("a.example,b.example".to_owned()),
        Just("none".to_owned()),
        Just("10.0.0.1".to_owned()),
        any::<String>()
    ];
    let annotations =
        prop::collection::btree_map(key.prop_map(|key| format!("nodestub.io/{key}")), value, 0..4);
    let config = prop::option::weighted(0.8, (nameservers, searches, options));
    (config, policy, prop::bool::weighted(0.2), annotations, any::<bool>()).prop_map(
        |(config, policy, host_network, annotations, has_annotations)| {
            let mut pod = json!({"metadata": {"name": "any"}, "spec": {"dnsPolicy": policy, "hostNetwork": host_network}});
            if has_annotations {
                pod["metadata"]["annotations"] = json!(annotations);
            }
            if let Some((nameservers, searches, options)) = config {
                let unique: BTreeSet<_> = nameservers.into_iter().collect();
                let options: Vec<Value> = options.iter().map(|(name, value)| json!({"name": name, "value": value})).collect();
                pod["spec"]["dnsConfig"] = json!({"nameservers": unique, "searches": searches, "options": options});
            }
            complete(&pod).unwrap()
        },
    )
}

#[test]
#[ignore = "stage cluster of tests/run runs it, on a real API server"]
fn never_stops_a_pod_from_being_created() {
    let _alone = ALONE.lock();
    let kubeconfig = kubeconfig();
    let api = ApiServer::connect(&kubeconfig);
    let flags = ["--cluster-dns=10.96.0.10", "--cluster-domain=cluster.local"].map(str::to_owned);
    let (home, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    issue_certificates(home.path());
    issue_certificates(other.path());
    api.namespace("nodestub-faults", &json!({"nodestub.io/inject": "enabled"}), &json!({}));
    let pod = complete(&json!({"metadata": {"name": "web"}, "spec": {}})).unwrap();
    let until_as_it_was = |what: &str| {
        until(what, || {
            let reply = api.create("nodestub-faults", &pod, true);
            assert_eq!(reply.status, 201, "{what}: {reply:?}");
            reply.body["spec"]["dnsPolicy"] == "ClusterFirst"
        });
    };

    let webhook = start(&home, &kubeconfig, &flags);
    let registered = api.register_as_it_is(&webhook, shipped());
    until_injected(&api, "nodestub-faults");
    webhook.signal(rustix::process::Signal::STOP);
    until_as_it_was("a webhook that does not answer");
    webhook.signal(rustix::process::Signal::CONT);
    until_injected(&api, "nodestub-faults");
    drop(webhook);
    until_as_it_was("a webhook that is dead");
    drop(registered);

    let webhook = start(&other, &kubeconfig, &flags);
    let failures = || webhook.count("nodestub_webhook_connection_failures_total{cause=\"handshake\"}");
    let before = failures();
    std::fs::copy(home.path().join("ca.crt"), other.path().join("ca.crt")).unwrap();
    let _registered = api.register_as_it_is(&webhook, shipped());
    until("a handshake that fails", || {
        until_as_it_was("a webhook that is not trusted");
        failures() > before
    });
    api.delete("/api/v1/namespaces/nodestub-faults");
}

#[test]
#[ignore = "stage cluster of tests/run runs it, on a real API server"]
fn finds_facts_in_the_cluster_follows_them_and_tells_resolvers() {
    const SERVICE: &str = "/api/v1/namespaces/kube-system/services/kube-dns";
    const COREFILE: &str = "/api/v1/namespaces/kube-system/configmaps/coredns";
    const SEARCHES: &str = "/api/v1/namespaces/nodestub-system/configmaps/nodestub-host-searches";
    let _alone = ALONE.lock();
    let kubeconfig = kubeconfig();
    let api = ApiServer::connect(&kubeconfig);
    for path in [SERVICE, COREFILE] {
        assert!(api.get(path).is_none(), "the cluster has a cluster DNS already, which must not be touched");
    }
    let home = tempfile::tempdir().unwrap();
    issue_certificates(home.path());
    let labels = json!({"nodestub-test": "yes", "nodestub.io/inject": "enabled"});
    api.namespace("nodestub-facts-test", &labels, &json!({}));
    api.namespace("nodestub-system", &json!({}), &json!({}));
    let webhook = start(&home, &kubeconfig, &[]);
    let _registered = api.register(&webhook, everything());
    let pod = complete(&json!({"metadata": {"name": "web"}, "spec": {}})).unwrap();
    let known = |fact: &str| webhook.count(&format!("nodestub_webhook_fact_known{{fact=\"{fact}\"}}"));

    // Nothing is known, so nothing is injected, and that is said.
    until("a call", || {
        api.create("nodestub-facts-test", &pod, true);
        decided(&webhook, "cluster_dns_unknown") > 0
    });
    let reply = api.create("nodestub-facts-test", &pod, true);
    assert!(
        reply.warnings.iter().any(|text| text.contains("address of the cluster DNS is not known")),
        "{reply:?}"
    );
    assert_eq!((reply.status, &reply.body["spec"]["dnsPolicy"]), (201, &json!("ClusterFirst")));
    assert_eq!((known("cluster_dns"), known("cluster_domain")), (0, 0));

    // Each fact is found when it comes.
    let spec = json!({"ports": [{"name": "dns", "port": 53, "protocol": "UDP"}]});
    let service = api.apply(SERVICE, &json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "kube-dns", "labels": {"k8s-app": "kube-dns"}}, "spec": spec}));
    let dns = service["spec"]["clusterIP"].as_str().unwrap().to_owned();
    until("the cluster DNS", || known("cluster_dns") == 1);
    assert!(
        api.create("nodestub-facts-test", &pod, true)
            .warnings
            .iter()
            .any(|text| text.contains("cluster's domain is not known"))
    );
    api.apply(COREFILE, &json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "coredns"}, "data": {"Corefile": ".:53 {\n kubernetes k8s.example in-addr.arpa ip6.arpa {\n }\n}\n"}}));
    until("the domain", || known("cluster_domain") == 1);
    let reply = api.create("nodestub-facts-test", &pod, true);
    let searches = "search nodestub-facts-test.svc.k8s.example svc.k8s.example k8s.example";
    let expected = format!("{searches}\nnameserver 169.254.20.10\nnameserver {dns}\noptions ndots:5\n");
    assert_eq!(resolv_conf(&reply.body), expected);
    assert!(reply.warnings.iter().any(|text| text.contains("search domains are not known")), "{reply:?}");
    api.apply(SEARCHES, &json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "nodestub-host-searches"}, "data": {"searches": "corp.example"}}));
    until("the nodes' search domains", || known("host_searches") == 1);
    let reply = api.create("nodestub-facts-test", &pod, true);
    assert_eq!(
        resolv_conf(&reply.body),
        expected.replace("k8s.example\nname", "k8s.example corp.example\nname")
    );
    assert!(reply.warnings.is_empty(), "{reply:?}");

    // Resolvers are told.
    until("the ConfigMap", || {
        api.get(FACTS).is_some_and(|map| map["data"]["cluster-domain"] == "k8s.example")
    });
    let map = api.get(FACTS).unwrap();
    assert_eq!(
        (&map["data"]["cluster-dns"], &map["data"]["local-addresses"]),
        (&json!(dns), &json!("169.254.20.10"))
    );
    let managers = map["metadata"]["managedFields"].as_array().unwrap();
    assert!(
        managers.iter().any(|one| one["manager"] == "nodestub-webhook" && one["operation"] == "Apply"),
        "{managers:?}"
    );

    // A pod that comes at once after its namespace is injected too.
    for number in 0..20 {
        let name = format!("nodestub-new-{number}");
        api.namespace(&name, &json!({"nodestub-test": "yes"}), &json!({}));
        api.apply(
            &format!("/api/v1/namespaces/{name}"),
            &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}),
        );
        let reply = api.create(&name, &pod, true);
        assert_eq!(reply.body["spec"]["dnsPolicy"], "None", "{reply:?}");
        api.delete(&format!("/api/v1/namespaces/{name}"));
    }
    // A namespace that opts out is heard.
    api.namespace(
        "nodestub-facts-test",
        &json!({"nodestub-test": "yes", "nodestub.io/inject": "disabled"}),
        &json!({}),
    );
    until("the end of injection", || {
        api.create("nodestub-facts-test", &pod, true).body["spec"]["dnsPolicy"] == "ClusterFirst"
    });
    // A fact that is lost again leaves pods alone, and resolvers what they know.
    api.namespace("nodestub-facts-test", &labels, &json!({}));
    until("injection", || api.create("nodestub-facts-test", &pod, true).body["spec"]["dnsPolicy"] == "None");
    api.delete(SERVICE);
    until("the loss", || {
        api.create("nodestub-facts-test", &pod, true).body["spec"]["dnsPolicy"] == "ClusterFirst"
    });
    assert_eq!(api.get(FACTS).unwrap()["data"]["cluster-dns"], json!(dns));

    api.delete(COREFILE);
    api.delete(SEARCHES);
    api.delete("/api/v1/namespaces/nodestub-facts-test");
}
