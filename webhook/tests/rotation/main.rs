//! Certificates that rotate under load on a real API server, with `failurePolicy: Fail`: no admission call fails.
//!
//! Runs where `NODESTUB_KUBECONFIG` names a kubeconfig with every right in a cluster for tests, whose API server can reach
//! this process at 127.0.0.1 (`tests/cluster/cases/certificates.sh`). The API server calls a port of ours, which
//! passes each connection on to a replica, as a Service does. Connections end after a second, so every rotation is met
//! by new handshakes; they are counted.
//!
//! One rotation each, or ten with `NODESTUB_FULL=1`; leaves live fifteen seconds, CAs thirty.
#![cfg(feature = "kube")]
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test stops at the first surprise")]

#[path = "../common/mod.rs"]
mod common;
mod provided;
mod stage;

use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use base64::Engine as _;
use common::api::{ApiServer, until};
use common::load::{Balancer, Load};
use serde_json::json;
use stage::{ALONE, LOAD, OWN, REGISTRATION, Replica, SECRET, Stage, api, bytes, names, pod, rotations};

fn ahead(milliseconds: i64) -> Vec<String> {
    vec![format!("--clock-ahead-milliseconds={milliseconds}")]
}

#[test]
fn loses_no_call_to_ten_rotations() {
    let _alone = ALONE.lock();
    let Some((api, kubeconfig)) = api("one replica") else { return };
    let mut stage = Stage::set(api, kubeconfig, vec![Vec::new()]);
    let id = stage.replicas[0].id();
    stage.rotate_under_load("one replica", |_| {});
    assert_eq!(stage.replicas[0].id(), id, "without a restart (defect 10)");
    let metrics = stage.replicas[0].admin("/metrics").unwrap();
    for line in ["nodestub_webhook_certificate_trusted 1", "nodestub_webhook_certificate_leader 1"] {
        assert!(metrics.contains(line), "{line}\n{metrics}");
    }
    let ca = metrics
        .lines()
        .filter(|line| line.starts_with("nodestub_webhook_ca_expiry_seconds{name=\"nodestub CA"));
    assert!(ca.count() >= 2, "{metrics}");
    let events = format!("/apis/events.k8s.io/v1/namespaces/{OWN}/events");
    let events = stage.api.get(&events).unwrap().to_string();
    for reason in ["AuthorityMade", "BundlePublished", "AuthorityPromoted"] {
        assert!(events.contains(reason), "{reason}");
    }
    let shown = |registration: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kubectl-nodestub"));
        command.args(["certs", "--namespace", OWN, "--registration", registration]);
        let shown = command.arg("--kubeconfig").arg(&stage.kubeconfig).output().unwrap();
        (shown.status.success(), String::from_utf8(shown.stdout).unwrap())
    };
    let (is_good, text) = shown(OWN);
    println!("{text}");
    assert!(is_good, "{text}");
    for part in
        ["current CA", "signed by", "127.0.0.1", "two.nodestub.io (127.0.0.1) trusts", "Rotation by", "next"]
    {
        assert!(text.contains(part), "{part}\n{text}");
    }
    let (is_good, text) = shown("elsewhere");
    assert!(!is_good && text.contains("MutatingWebhookConfiguration elsewhere: not there"), "{text}");
}

#[test]
fn loses_no_call_with_three_replicas_that_start_at_once_in_an_empty_namespace() {
    let _alone = ALONE.lock();
    let Some((api, kubeconfig)) = api("three replicas") else { return };
    let mut stage = Stage::set(api, kubeconfig, vec![Vec::new(); 3]);
    stage.rotate_under_load("three replicas", |_| {});
    let leads =
        |one: &Replica| one.admin("/metrics").unwrap().contains("nodestub_webhook_certificate_leader 1");
    until("one leader", || stage.replicas.iter().filter(|one| leads(one)).count() == 1);
}

#[test]
fn loses_no_call_with_the_leader_killed_after_each_rotation() {
    let _alone = ALONE.lock();
    let Some((api, kubeconfig)) = api("killed leader") else { return };
    let mut stage = Stage::set(api, kubeconfig, vec![Vec::new(); 3]);
    let mut killed = 0;
    let mut kill = |stage: &mut Stage| {
        until("a leader", || stage.leader().is_some());
        let leader = stage.leader().unwrap();
        // A call that is under way in a process that is killed is lost with it, whatever its certificate: so the
        // leader is asked nothing when it dies.
        let others = stage.replicas.iter().enumerate().filter(|(number, _)| *number != leader);
        stage.balancer.set(others.map(|(_, one)| one.admission.parse().unwrap()).collect());
        std::thread::sleep(Duration::from_millis(2500));
        stage.replicas[leader].process.kill().unwrap();
        stage.replicas[leader] = stage.start(leader, &[]);
        until("the new replica", || stage.replicas[leader].is_ready());
        stage.balance();
        killed += 1;
    };
    kill(&mut stage);
    stage.rotate_under_load("killed leader", &mut kill);
    assert_eq!(killed, rotations());
}

#[test]
fn loses_no_call_with_clocks_apart_by_a_quarter_of_the_leafs_life() {
    let _alone = ALONE.lock();
    let Some((api, kubeconfig)) = api("clocks apart") else { return };
    // The middle one goes right; and, further apart than asked: an hour and a day.
    for (name, flags) in [
        ("clocks a quarter apart", vec![ahead(-1875), ahead(0), ahead(1875)]),
        ("clocks far apart", vec![ahead(-3_600_000), ahead(86_400_000), ahead(2500)]),
    ] {
        let api = ApiServer::connect(&kubeconfig);
        let mut stage = Stage::set(api, kubeconfig.clone(), flags);
        stage.rotate_under_load(name, |_| {});
    }
    drop(api);
}

#[test]
fn loses_no_call_with_the_secret_deleted_in_the_middle() {
    let _alone = ALONE.lock();
    let Some((api, kubeconfig)) = api("deleted Secret") else { return };
    let mut stage = Stage::set(api, kubeconfig, vec![Vec::new(); 2]);
    let delete = |stage: &mut Stage| {
        std::thread::sleep(Duration::from_secs(1));
        stage.api.delete(SECRET);
    };
    delete(&mut stage);
    stage.rotate_under_load("deleted Secret", delete);
}

#[test]
fn serves_on_while_the_api_server_is_out_of_reach_and_rotates_when_it_is_back() {
    let _alone = ALONE.lock();
    let Some((api, kubeconfig)) = api("unreachable API server") else { return };
    // Longer than all of this takes: only what is served already can be served.
    let lives = vec!["--certificate-seconds=120".to_owned(), "--ca-seconds=600".to_owned()];
    let mut stage = Stage::set(api, kubeconfig.clone(), vec![lives; 2]);
    // The replicas reach the API server through a port that can be closed; the API server reaches them as ever.
    let text = std::fs::read_to_string(&kubeconfig).unwrap();
    let behind = text.split_once("https://").unwrap().1;
    let is_of_it = |letter: char| letter.is_ascii_digit() || ".:".contains(letter);
    let server = behind.split(|letter| !is_of_it(letter)).next().unwrap().to_owned();
    let gate = Balancer::start();
    let port = gate.port();
    gate.set(vec![server.parse().unwrap()]);
    let gated = stage.home.path().join("gated.kubeconfig");
    std::fs::write(&gated, text.replace(&server, &format!("127.0.0.1:{port}"))).unwrap();
    stage.kubeconfig = gated.to_str().unwrap().to_owned();
    for number in 0..stage.flags.len() {
        let replica = stage.start(number, &[]);
        until("the new replica", || replica.is_ready());
        let old = std::mem::replace(&mut stage.replicas[number], replica);
        stage.balance();
        // Its last connection has ended by then.
        std::thread::sleep(Duration::from_millis(2500));
        drop(old);
    }
    until("a leader", || stage.leader().is_some());

    let load = Load::start(&kubeconfig, LOAD, &pod());
    drop(gate);
    assert!(stage.kept("tls.crt").is_some(), "there is a Secret to lose");
    stage.api.delete(SECRET);
    // Longer than a leader keeps its Lease without renewing it.
    std::thread::sleep(Duration::from_secs(10));
    assert!(stage.kept("tls.crt").is_none(), "nobody can have mended it");
    assert!(stage.replicas.iter().all(Replica::is_ready), "{}", stage.logs());
    println!("unreachable API server: {:?}", load.counts());

    let gate = Balancer::start_at(port);
    gate.set(vec![server.parse().unwrap()]);
    until("a new Secret", || stage.kept("tls.crt").is_some_and(|text| !text.is_empty()));
    let counts = load.stop();
    println!("unreachable API server, and back: {counts:?}");
    assert_eq!(counts.failed, 0, "{:?}; logs: {}", counts.first_failure, stage.logs());
}

#[test]
fn loses_no_call_to_garbage_in_the_secret_and_mends_it() {
    let _alone = ALONE.lock();
    let Some((api, kubeconfig)) = api("garbage") else { return };
    let stage = Stage::set(api, kubeconfig, vec![Vec::new(); 2]);
    let load = Load::start(&stage.kubeconfig, LOAD, &pod());
    for garbage in common::garbage::all() {
        // Only what is whole can be damaged.
        until("a whole Secret", || {
            let has = |key: &str| stage.kept(key).is_some_and(|text| !text.is_empty());
            let is_complete = ["tls.crt", "tls.key", "current-ca.crt", "current-ca.key"].into_iter().all(has);
            let kept = stage.kept("ca.crt").unwrap_or_default();
            let kept = base64::engine::general_purpose::STANDARD.encode(kept);
            is_complete && stage.bundles().iter().all(|bundle| *bundle == kept)
        });
        let patch = json!({"data": garbage.data});
        let reply = stage.api.send("PATCH", SECRET, "application/merge-patch+json", Some(&patch));
        assert!(reply.is_good(), "{}: {reply:?}", garbage.name);
        until(garbage.name, || {
            let is_mended = garbage.data.as_object().unwrap().iter().all(|(key, value)| {
                let secret = stage.api.get(SECRET).unwrap_or_default();
                secret["data"][key] != *value
            });
            is_mended == garbage.is_mended && stage.logs_since(garbage.said)
        });
        println!("garbage: {}: {:?}", garbage.name, load.counts());
    }
    // Of our own CA, for a name that nobody calls: only the names are wrong.
    until("a CA that signs", || stage.kept("current-ca.key").is_some_and(|text| !text.is_empty()));
    let secret = |key: &str| stage.kept(key).unwrap().into_bytes();
    let own = nodestub_certs::Authority::read(&secret("current-ca.crt"), &secret("current-ca.key")).unwrap();
    let elsewhere = own.sign(&names("elsewhere"), Duration::from_secs(15), SystemTime::now()).unwrap();
    let data = json!({"tls.crt": bytes(&elsewhere.certificate), "tls.key": bytes(&elsewhere.key)});
    let reply =
        stage.api.send("PATCH", SECRET, "application/merge-patch+json", Some(&json!({ "data": data })));
    assert!(reply.is_good(), "{reply:?}");
    until("a certificate with the right names", || {
        stage.logs_since("tls.crt is not good for nodestub-webhook.nodestub-rotation.svc")
            && stage.kept("tls.crt").is_some_and(|text| text.into_bytes() != elsewhere.certificate)
    });
    println!("garbage: our own CA's certificate for another name: {:?}", load.counts());
    let counts = load.stop();
    assert_eq!(counts.failed, 0, "{:?}; logs: {}", counts.first_failure, stage.logs());
}

#[test]
fn mends_a_bundle_that_a_manifest_has_emptied_and_keeps_its_certificate() {
    let _alone = ALONE.lock();
    let Some((api, kubeconfig)) = api("emptied bundle") else { return };
    let stage = Stage::set(api, kubeconfig, vec![Vec::new(); 2]);
    let mut worst = Duration::ZERO;
    for _ in 0..5 {
        let authority = stage.kept("current-ca.crt");
        stage.apply_registration();
        let began = Instant::now();
        until("a mended bundle", || stage.bundles().iter().all(|bundle| !bundle.is_empty()));
        worst = worst.max(began.elapsed());
        // Rendering the manifests again makes no new CA (defect 11).
        let kept = stage.kept("ca.crt").unwrap_or_default();
        assert!(authority.is_none_or(|authority| kept.contains(authority.trim())));
        until("a pod", || stage.api.create(LOAD, &pod(), true).is_good());
    }
    println!("emptied bundle: mended after {worst:?} at most");
    // Applied by its owner, server-side, without a bundle: what is ours stays.
    let mut object = stage.api.get(REGISTRATION).unwrap();
    for hook in object["webhooks"].as_array_mut().unwrap() {
        hook["clientConfig"].as_object_mut().unwrap().remove("caBundle");
    }
    object["metadata"] = json!({"name": OWN});
    let before = stage.bundles();
    stage.api.apply(REGISTRATION, &object);
    assert!(stage.bundles().iter().all(|bundle| !bundle.is_empty()), "{before:?}");
}
