//! What holds for every pod, whatever its JSON.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use std::collections::BTreeMap;

use common::{apply, check_injected};
use nodestub_webhook::admission::answer;
use nodestub_webhook::admit::options::DnsOption;
use nodestub_webhook::admit::reason::{MAX_WARNING_BYTES, MAX_WARNINGS};
use nodestub_webhook::admit::{
    Facts, FailOpen, Fallback, Namespace, Overrides, Policy, Reason, Request, Share, admit, keys,
};
use proptest::prelude::*;
use serde_json::{Value, json};

/// Any JSON, but of names and words that the decision looks for.
fn any_json() -> impl Strategy<Value = Value> {
    let word = prop_oneof![
        Just("metadata"),
        Just("spec"),
        Just("labels"),
        Just("annotations"),
        Just("dnsConfig"),
        Just("dnsPolicy"),
        Just("nameservers"),
        Just("searches"),
        Just("options"),
        Just("name"),
        Just("value"),
        Just("hostNetwork"),
        Just("nodeSelector"),
        Just("tolerations"),
        Just("containers"),
        Just("os"),
        Just("None"),
        Just("windows"),
        Just(keys::INJECT),
        Just(keys::NDOTS),
        Just(keys::STATUS),
        Just("ClusterFirst"),
        Just("169.254.20.10"),
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        word.clone().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 64, 6, move |inner| {
        let key = prop_oneof![3 => word.clone().prop_map(str::to_owned), 1 => any::<String>()];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::btree_map(key, inner, 0..6).prop_map(|map| json!(map)),
        ]
    })
}

/// A pod that the API takes, with whatever touches the decision.
fn any_pod() -> impl Strategy<Value = Value> {
    let address = prop_oneof![
        any::<[u8; 4]>().prop_map(|bytes| std::net::Ipv4Addr::from(bytes).to_string()),
        any::<[u8; 16]>().prop_map(|bytes| std::net::Ipv6Addr::from(bytes).to_string()),
        Just("169.254.20.10".to_owned()),
        Just("10.96.0.10".to_owned()),
    ];
    let search = prop_oneof![
        "[a-z]{1,20}(\\.[a-z]{1,20}){0,3}",
        "[a-z]{40,60}\\.[a-z]{40,60}\\.[a-z]{40,60}",
        Just("cluster.local".to_owned()),
    ];
    let option =
        (prop_oneof!["ndots|timeout|attempts|rotate|edns0", "[a-z]{1,8}"], prop::option::of("[0-9]{0,2}"))
            .prop_map(|(name, value)| json!({"name": name, "value": value, "unknown": {"kept": name}}));
    let config = (
        prop::option::of(prop::collection::vec(address, 0..=3)),
        prop::option::of(prop::collection::vec(search, 0..=32)),
        prop::option::of(prop::collection::vec(option, 0..8)),
    )
        .prop_map(|(nameservers, searches, options)| {
            json!({"nameservers": nameservers, "searches": searches, "options": options, "unknown": [1]})
        });
    let key = prop_oneof![
        Just(keys::NDOTS.to_owned()),
        Just(keys::OPTIONS.to_owned()),
        Just(keys::SEARCHES.to_owned()),
        Just(keys::FALLBACK.to_owned()),
        Just(keys::LOCAL_ADDRESS.to_owned()),
        Just(keys::STATUS.to_owned()),
        "nodestub.io/[a-z~/]{1,10}",
        "[a-z]{1,10}",
    ];
    let value = prop_oneof![
        "[0-9]{1,2}",
        Just("timeout:1,rotate".to_owned()),
        Just("a.example,b.example".to_owned()),
        Just("none".to_owned()),
        Just("auto".to_owned()),
        Just("10.0.0.1,fd00::1".to_owned()),
        Just("injected".to_owned()),
        any::<String>(),
    ];
    let policy = prop_oneof![4 => Just(Value::Null), 4 => Just(json!("ClusterFirst")), 1 => Just(json!("Default")),
        1 => Just(json!("ClusterFirstWithHostNet"))];
    (
        prop::option::of(config),
        prop::option::of(prop::collection::btree_map(key, value, 0..6)),
        policy,
        prop::option::weighted(0.2, any::<bool>()),
    )
        .prop_map(|(config, annotations, policy, host_network)| {
            json!({
                "metadata": {"name": "web", "annotations": annotations, "unknown": {"kept": true}},
                "spec": {"dnsConfig": config, "dnsPolicy": policy, "hostNetwork": host_network, "unknown": [null, 1]},
            })
        })
}

fn any_setting() -> impl Strategy<Value = (Policy, Facts)> {
    let local = prop_oneof![
        Just(vec!["169.254.20.10"]),
        Just(vec!["fd00::a"]),
        Just(vec!["169.254.20.10", "fd00::a"]),
    ];
    let cluster = prop_oneof![
        Just(vec!["10.96.0.10"]),
        Just(vec!["fd00:10:96::a"]),
        Just(vec!["fd00:10:96::a", "10.96.0.10"]),
    ];
    let searches = prop::option::of(prop::collection::vec("[a-z]{1,60}\\.[a-z]{1,60}", 0..20));
    (local, cluster, searches, any::<bool>(), prop::option::of(0..16_u8), any::<bool>()).prop_map(
        |(local, cluster, searches, fail_open, ndots, auto)| {
            let addresses = |texts: Vec<&str>| texts.into_iter().map(|text| text.parse().unwrap()).collect();
            let policy = Policy {
                own_namespace: "nodestub-system".to_owned(),
                local_addresses: addresses(local),
                defaults: Overrides {
                    ndots,
                    fallback: auto.then_some(Fallback::Auto),
                    ..Overrides::default()
                },
                leave_alone: Vec::new(),
                min_ready_percent: 0,
                rollout: Share::ALL,
            };
            let namespace = Namespace {
                labels: BTreeMap::from([(keys::INJECT.to_owned(), "enabled".to_owned())]),
                annotations: BTreeMap::new(),
            };
            let facts = Facts {
                cluster_dns: addresses(cluster),
                cluster_domain: Some("cluster.local".parse().unwrap()),
                host_searches: searches.map(|all| all.iter().map(|one| one.parse().unwrap()).collect()),
                pool_searches: Vec::new(),
                fail_open: if fail_open { FailOpen::Everywhere } else { FailOpen::NotProven },
                resolvers: None,
                namespaces: BTreeMap::from([("shop".to_owned(), std::sync::Arc::new(namespace))]),
            };
            (policy, facts)
        },
    )
}

fn strings(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().map(|one| one.as_str().unwrap().to_owned()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn never_panics_and_never_patches_what_it_leaves_alone(
        pod in any_json(), namespace in any::<String>(), (policy, facts) in any_setting()
    ) {
        for namespace in [namespace.as_str(), "shop"] {
            let decision = admit(&policy, &facts, &Request::create_pod(namespace, &pod));
            prop_assert_eq!(decision.reason == Reason::Injected, !decision.patch.0.is_empty());
            prop_assert!(decision.warnings.len() <= MAX_WARNINGS);
            prop_assert!(decision.warnings.iter().all(|warning| warning.text().len() <= MAX_WARNING_BYTES));
            if decision.reason == Reason::Injected {
                check_injected("any", &pod, &apply(&pod, &json!(decision.patch)));
            }
        }
    }

    #[test]
    fn never_refuses_a_pod_nor_breaks_on_any_bytes(
        bytes in prop::collection::vec(any::<u8>(), 0..300), object in any_json(), at in any::<prop::sample::Index>(),
        (policy, facts) in any_setting()
    ) {
        let review = json!({
            "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {
                "uid": "1", "operation": "CREATE", "namespace": "shop", "name": "web", "userInfo": {}, "object": object,
                "kind": {"group": "", "version": "v1", "kind": "Pod"},
                "resource": {"group": "", "version": "v1", "resource": "pods"},
            },
        });
        let whole = review.to_string().into_bytes();
        let mut broken = whole.clone();
        let at = at.index(broken.len());
        broken.splice(at..(at + 1), bytes.iter().take(3).copied());
        for (body, must_answer) in [(whole, true), (broken, false), (bytes, false)] {
            match answer(&policy, &facts, &body) {
                Ok(answered) => {
                    prop_assert_ne!(answered.decision.reason, Reason::Fault);
                    let answered: Value = serde_json::from_slice(&answered.body).unwrap();
                    prop_assert_eq!(&answered["response"]["allowed"], &json!(true));
                    prop_assert!(answered["response"]["auditAnnotations"]["decision"].is_string());
                }
                Err(error) => {
                    prop_assert!(!must_answer, "{}", error);
                    let said = error.to_string();
                    prop_assert!(!said.is_empty() && !said.contains('\n'), "{}", said);
                }
            }
        }
    }

    #[test]
    fn keeps_every_entry_that_fits_and_is_idempotent(pod in any_pod(), (policy, facts) in any_setting()) {
        let decide = |pod: &Value| admit(&policy, &facts, &Request::create_pod("shop", pod));
        let decision = decide(&pod);
        prop_assert_eq!(&decide(&pod).patch, &decision.patch, "the same pod, the same patch");
        let Some(injection) = &decision.injection else { return Ok(()) };
        let patched = apply(&pod, &json!(decision.patch));
        check_injected("any", &pod, &patched);

        let again = decide(&patched);
        prop_assert_eq!((again.reason, again.patch.0.len()), (Reason::AlreadyInjected, 0));

        // Nameservers: ours first, then as many of the user's as there is room for, in their order.
        let config = &pod["spec"]["dnsConfig"];
        let mut own = strings(&config["nameservers"]);
        let mut seen = std::collections::BTreeSet::new();
        own.retain(|server| seen.insert(server.clone()));
        let kept = own.iter().filter(|server| injection.nameservers.contains(server)).count();
        let all_kept = kept == own.len();
        prop_assert!(all_kept || injection.nameservers.len() == 3);
        let said = decision.warnings.iter().any(|one| one.label() == "nameservers_cut");
        prop_assert_eq!(all_kept, !said);

        // Searches: all of them, or the list is full and that is said.
        let missing: Vec<_> =
            strings(&config["searches"]).into_iter().filter(|one| !injection.searches.contains(one)).collect();
        let full = |one: &String| injection.searches.len() == 32 || injection.searches.join(" ").len() + 1 + one.len() > 2048;
        prop_assert!(missing.first().is_none_or(full), "{:?}", missing);
        if !missing.is_empty() {
            let said = decision.warnings.iter().any(|one| one.label() == "searches_cut");
            prop_assert!(said);
        }

        // Options: the user's last word on each name, unknown fields included.
        let mut last: BTreeMap<String, DnsOption> = BTreeMap::new();
        for option in config["options"].as_array().into_iter().flatten() {
            let option: DnsOption = serde_json::from_value(option.clone()).unwrap();
            last.insert(option.name.clone(), option);
        }
        for option in last.values() {
            prop_assert!(injection.options.contains(option), "{option}");
        }

        // In the node's own network, and wherever nobody vouches for fail-open, the cluster DNS is there.
        if pod["spec"]["hostNetwork"] == true || facts.fail_open == FailOpen::NotProven {
            prop_assert!(facts.cluster_dns.iter().any(|one| injection.nameservers.contains(&one.to_string())));
        }
    }

    #[test]
    fn gives_a_workload_the_same_answer_in_every_rollout_and_takes_none_back(
        name in "[a-z]([a-z0-9-]{0,40}[a-z0-9])?", namespace in "[a-z]{1,20}",
        (policy, facts) in any_setting(), hashes in prop::collection::vec("[a-z0-9]{5,10}", 20)
    ) {
        let answers = |share: u8| -> Vec<bool> {
            let mut of_namespace = (*facts.namespaces["shop"]).clone();
            of_namespace.annotations.insert(keys::ROLLOUT.to_owned(), format!("{share}%"));
            let mut facts = facts.clone();
            facts.namespaces = BTreeMap::from([(namespace.clone(), std::sync::Arc::new(of_namespace))]);
            let answer = |hash: &String| {
                let set = format!("{name}-{hash}");
                let owner = json!({"kind": "ReplicaSet", "name": set, "uid": hash, "controller": true});
                let pod = json!({
                    "metadata": {
                        "generateName": format!("{set}-"),
                        "labels": {"pod-template-hash": hash},
                        "ownerReferences": [owner],
                    },
                    "spec": {},
                });
                let reason = admit(&policy, &facts, &Request::create_pod(&namespace, &pod)).reason;
                assert!([Reason::Injected, Reason::NotInRollout].contains(&reason), "{reason:?}");
                reason == Reason::Injected
            };
            hashes.iter().map(answer).collect()
        };
        let mut before = false;
        for share in [0, 1, 10, 25, 50, 75, 99, 100] {
            let answers = answers(share);
            prop_assert!(answers.iter().all(|one| *one == answers[0]), "{share}%");
            prop_assert!(answers[0] || !before, "{share}% took it back");
            before = answers[0];
        }
        prop_assert!(before && !answers(0)[0]);
    }
}
