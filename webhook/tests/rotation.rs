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

mod common;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime};

use base64::Engine as _;
use common::api::{ApiServer, until};
use common::load::{Balancer, Load};
use nodestub_certs::Material;
use serde_json::{Value, json};

/// A cluster has one registration of a name: one test at a time.
static ALONE: Mutex<()> = Mutex::new(());

const OWN: &str = "nodestub-rotation";
const LOAD: &str = "nodestub-rotation-load";
const SECRET: &str = "/api/v1/namespaces/nodestub-rotation/secrets/nodestub-webhook-certificates";
const LEASE: &str =
    "/apis/coordination.k8s.io/v1/namespaces/nodestub-rotation/leases/nodestub-webhook-certificates";
const REGISTRATION: &str =
    "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/nodestub-rotation";
/// A rotation of the CA takes twenty seconds; only a failure takes longer than this.
const ROTATION: Duration = Duration::from_secs(60);

fn rotations() -> usize {
    if std::env::var_os("NODESTUB_FULL").is_some() { 10 } else { 1 }
}

fn api(test: &str) -> Option<(ApiServer, String)> {
    let Ok(file) = std::env::var("NODESTUB_KUBECONFIG") else {
        let reason = "needs a Kubernetes API server for tests: name its kubeconfig in NODESTUB_KUBECONFIG";
        nodestub_lab::skip::skip("certificates_on_an_api_server", &format!("{test}: {reason}"));
        return None;
    };
    Some((ApiServer::connect(&file), file))
}

/// One process of the webhook.
struct Replica {
    process: Child,
    admission: String,
    admin: String,
}

impl Replica {
    fn start(home: &Path, number: usize, kubeconfig: &str, flags: &[String]) -> Self {
        let ports = home.join(format!("ports-{number}"));
        drop(std::fs::remove_file(&ports));
        let log = home.join(format!("log-{number}"));
        let log = std::fs::OpenOptions::new().create(true).append(true).open(log).unwrap();
        let process = Command::new(env!("CARGO_BIN_EXE_nodestub-webhook"))
            .args(["--listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0", "--log-format=json"])
            .args(["--cluster-dns=10.96.0.10", "--cluster-domain=cluster.local", "--host-search=none"])
            .args(["--registration=nodestub-rotation", "--certificate-ip=127.0.0.1"])
            .args(if flags.iter().any(|flag| flag.starts_with("--certificate-seconds=")) {
                &[][..]
            } else {
                &["--certificate-seconds=15", "--ca-seconds=30"]
            })
            .arg("--connection-seconds=1")
            .arg(format!("--own-namespace={OWN}"))
            .arg(format!("--namespace={LOAD}:nodestub.io/inject=enabled"))
            .arg(format!("--ports-file={}", ports.display()))
            .args(if flags.iter().any(|flag| flag.starts_with("--certificates-mode=")) {
                &[][..]
            } else {
                &["--certificates-mode=self"]
            })
            .args(flags)
            // Each decision would be a line.
            .env("NODESTUB_LOG", "info,nodestub_webhook::server=warn,kube_client=off,kube_runtime=off")
            .env("KUBECONFIG", kubeconfig)
            .stderr(Stdio::from(log))
            .spawn()
            .unwrap();
        let mut replica = Self { process, admission: String::new(), admin: String::new() };
        until("the ports of a replica", || {
            let Ok(text) = std::fs::read_to_string(&ports) else { return false };
            let port = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
            replica.admission = port("admission=").unwrap();
            replica.admin = port("admin=").unwrap();
            true
        });
        replica
    }

    fn admin(&self, path: &str) -> Option<String> {
        let mut curl = Command::new("curl");
        let got = curl
            .args(["-sS", "-w", "\n%{http_code}"])
            .arg(format!("http://{}{path}", self.admin))
            .output()
            .unwrap();
        got.status.success().then(|| String::from_utf8(got.stdout).unwrap())
    }

    fn is_ready(&self) -> bool {
        self.admin("/readyz").is_some_and(|text| text.ends_with("\n200"))
    }

    fn id(&self) -> u32 {
        self.process.id()
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

/// What is set up for one test, and what it leaves.
struct Stage {
    api: ApiServer,
    kubeconfig: String,
    home: tempfile::TempDir,
    flags: Vec<Vec<String>>,
    replicas: Vec<Replica>,
    balancer: Balancer,
}

impl Stage {
    /// An empty namespace, a registration without a bundle, and replicas that start at once, each with its flags.
    fn set(api: ApiServer, kubeconfig: String, flags: Vec<Vec<String>>) -> Self {
        Self::set_with(api, kubeconfig, flags, |_| {})
    }

    /// The same, with what somebody else does before anything starts.
    fn set_with(api: ApiServer, kubeconfig: String, flags: Vec<Vec<String>>, before: impl Fn(&Self)) -> Self {
        api.delete(REGISTRATION);
        for name in [OWN, LOAD] {
            api.namespace(name, &json!({"nodestub-rotation": name}), &json!({}));
        }
        api.delete(SECRET);
        api.delete(LEASE);
        let mut stage = Self {
            api,
            kubeconfig,
            home: tempfile::tempdir().unwrap(),
            flags,
            replicas: Vec::new(),
            balancer: Balancer::start(),
        };
        stage.apply_registration();
        before(&stage);
        let set = &stage;
        let started: Vec<Replica> = std::thread::scope(|scope| {
            let starts: Vec<_> =
                (0..set.flags.len()).map(|number| scope.spawn(move || set.start(number, &[]))).collect();
            starts.into_iter().map(|start| start.join().unwrap()).collect()
        });
        stage.replicas = started;
        stage.balance();
        until("replicas that are ready", || stage.replicas.iter().all(Replica::is_ready));
        // The API server reads registrations with a delay of its own.
        until("a pod", || stage.api.create(LOAD, &pod(), true).is_good());
        stage
    }

    fn start(&self, number: usize, more: &[String]) -> Replica {
        let flags: Vec<String> = self.flags[number].iter().chain(more).cloned().collect();
        Replica::start(self.home.path(), number, &self.kubeconfig, &flags)
    }

    /// As `kubectl replace` does with a manifest that has no bundle.
    fn apply_registration(&self) {
        let url = format!("https://127.0.0.1:{}/mutate", self.balancer.port());
        let hook = |name: &str| {
            json!({
                "name": name,
                "clientConfig": {"url": url},
                "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}],
                "namespaceSelector": {"matchLabels": {"nodestub-rotation": LOAD}},
                "sideEffects": "None",
                "failurePolicy": "Fail",
                "timeoutSeconds": 10,
                "admissionReviewVersions": ["v1"],
            })
        };
        let mut object = json!({
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "MutatingWebhookConfiguration",
            "metadata": {"name": OWN},
            "webhooks": [hook("one.nodestub.io"), hook("two.nodestub.io")],
        });
        match self.api.get(REGISTRATION) {
            None => {
                let all = REGISTRATION.rsplit_once('/').unwrap().0;
                let reply = self.api.send("POST", all, "application/json", Some(&object));
                assert!(reply.is_good(), "{reply:?}");
            }
            Some(found) => {
                object["metadata"]["resourceVersion"] = found["metadata"]["resourceVersion"].clone();
                let reply = self.api.send("PUT", REGISTRATION, "application/json", Some(&object));
                assert!(reply.is_good() || reply.status == 409, "{reply:?}");
            }
        }
    }

    fn balance(&self) {
        self.balancer.set(self.replicas.iter().map(|one| one.admission.parse().unwrap()).collect());
    }

    /// The number of the replica that leads.
    fn leader(&self) -> Option<usize> {
        let lease = self.api.get(LEASE)?;
        let holder = lease["spec"]["holderIdentity"].as_str()?.rsplit_once('_')?.1.to_owned();
        self.replicas.iter().position(|one| one.id().to_string() == holder)
    }

    /// What the Secret holds by that key, decoded.
    fn kept(&self, key: &str) -> Option<String> {
        let secret = self.api.get(SECRET)?;
        let text = secret["data"][key].as_str()?.to_owned();
        let bytes = base64::engine::general_purpose::STANDARD.decode(text).unwrap();
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn bundles(&self) -> Vec<String> {
        let registration = self.api.get(REGISTRATION).unwrap();
        let hooks = registration["webhooks"].as_array().unwrap();
        hooks
            .iter()
            .map(|hook| hook["clientConfig"]["caBundle"].as_str().unwrap_or_default().to_owned())
            .collect()
    }

    /// Waits for so many new CAs that sign, under load; `on_each` is called after each but the last.
    fn rotate_under_load(&mut self, name: &str, mut on_each: impl FnMut(&mut Self)) {
        let load = Load::start(&self.kubeconfig, LOAD, &pod());
        let wanted = rotations();
        let (mut leaves, mut authorities) = (BTreeSet::new(), BTreeSet::new());
        let (began, mut last) = (Instant::now(), Instant::now());
        let mut seen = (self.balancer.connections(), Vec::new());
        loop {
            leaves.extend(self.kept("tls.crt").filter(|text| !text.is_empty()));
            let before = authorities.len();
            authorities.extend(self.kept("current-ca.crt"));
            if authorities.len() > before && before > 0 {
                let connections = self.balancer.connections();
                seen.1.push(connections - seen.0);
                seen.0 = connections;
                last = Instant::now();
                println!("{name}: rotation {before}, {:?}", load.counts());
                if authorities.len() > wanted {
                    break;
                }
                on_each(self);
            }
            assert!(last.elapsed() < ROTATION, "{name}: no rotation any more; logs: {}", self.logs());
            std::thread::sleep(Duration::from_millis(100));
        }
        // The new leaf must be met as well.
        let connections = self.balancer.connections();
        until("handshakes after the last rotation", || self.balancer.connections() >= connections + 2);
        let seconds = began.elapsed().as_secs_f64();
        let counts = load.stop();
        println!(
            "{name}: {} CAs and {} leaves in {seconds:.0} s; {} pods ({:.0}/s), {} of them stored, {} failed; {} connections, by rotation {:?}",
            authorities.len(),
            leaves.len(),
            counts.asked,
            f64::from(u32::try_from(counts.asked).unwrap()) / seconds,
            counts.stored,
            counts.failed,
            self.balancer.connections(),
            seen.1,
        );
        assert_eq!(counts.failed, 0, "{:?}; logs: {}", counts.first_failure, self.logs());
        assert!(counts.asked > 100 && counts.stored > 0, "{counts:?}");
        assert!(
            seen.1.iter().all(|connections| *connections > 1),
            "a rotation that no handshake met: {seen:?}"
        );
        assert!(leaves.len() > authorities.len() - 1, "{} leaves", leaves.len());
    }

    fn logs(&self) -> String {
        let logs = (0..self.flags.len()).filter_map(|number| {
            let text = std::fs::read_to_string(self.home.path().join(format!("log-{number}"))).ok()?;
            let lines: Vec<&str> = text.lines().rev().take(15).collect();
            Some(format!("\n-- replica {number}\n{}", lines.into_iter().rev().collect::<Vec<_>>().join("\n")))
        });
        logs.collect()
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.api.delete(REGISTRATION);
        self.api.delete(&format!("/api/v1/namespaces/{LOAD}/pods?gracePeriodSeconds=0"));
        for name in [OWN, LOAD] {
            self.api.delete(&format!("/api/v1/namespaces/{name}"));
        }
    }
}

fn pod() -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"generateName": "load-", "labels": {"nodestub-rotation": "load"}},
        "spec": {
            "automountServiceAccountToken": false,
            "nodeSelector": {"nodestub.io/nowhere": "yes"},
            "containers": [{"name": "c", "image": "i"}],
        },
    })
}

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

impl Stage {
    /// Whether some replica has said so, at any time.
    fn logs_since(&self, said: &str) -> bool {
        (0..self.flags.len()).any(|number| {
            let text =
                std::fs::read_to_string(self.home.path().join(format!("log-{number}"))).unwrap_or_default();
            text.contains(said)
        })
    }
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

fn names(service: &str) -> nodestub_certs::ServingNames {
    nodestub_certs::ServingNames {
        service: service.to_owned(),
        namespace: OWN.to_owned(),
        cluster_domain: None,
        addresses: vec!["127.0.0.1".parse().unwrap()],
        extra: Vec::new(),
    }
}

fn bytes(bytes: &[u8]) -> Value {
    json!(k8s_openapi::ByteString(bytes.to_vec()))
}

fn put(api: &ApiServer, material: &Material) {
    let object = json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "nodestub-webhook-certificates"},
        "type": "kubernetes.io/tls",
        "data": {
            "tls.crt": bytes(&material.certificate),
            "tls.key": bytes(&material.key),
            "ca.crt": bytes(&material.authority),
        },
    });
    api.apply(SECRET, &object);
}

/// The CA and certificate that somebody else makes, cert-manager or a person.
struct Theirs {
    authority: nodestub_certs::Authority,
}

impl Theirs {
    fn new() -> Self {
        let life = Duration::from_secs(10 * 86_400);
        Self { authority: nodestub_certs::Authority::new(life, SystemTime::now()).unwrap() }
    }

    fn bundle(&self) -> Value {
        json!(k8s_openapi::ByteString(self.authority.certificate_pem().into_bytes()))
    }

    /// A certificate for the webhook that is made at that time, and lives ten minutes.
    fn sign(&self, service: &str, made: SystemTime) -> Material {
        self.authority.sign(&names(service), Duration::from_secs(600), made).unwrap()
    }

    fn put_certificate(&self, api: &ApiServer) {
        put(api, &self.sign("nodestub-webhook", SystemTime::now()));
    }

    /// As cainjector does, some time later.
    fn put_bundle(&self, api: &ApiServer) {
        let hook = |name: &str| json!({"name": name, "clientConfig": {"caBundle": self.bundle()}});
        let patch = json!({"webhooks": [hook("one.nodestub.io"), hook("two.nodestub.io")]});
        let reply = api.send("PATCH", REGISTRATION, "application/strategic-merge-patch+json", Some(&patch));
        assert!(reply.is_good(), "{reply:?}");
    }
}

#[test]
fn serves_what_cert_manager_makes_once_the_api_server_trusts_it() {
    let _alone = ALONE.lock();
    let Some((api, kubeconfig)) = api("cert-manager") else { return };
    let first = Theirs::new();
    let mode = vec!["--certificates-mode=cert-manager".to_owned()];
    let stage = Stage::set_with(api, kubeconfig, vec![mode.clone(), mode], |stage| {
        first.put_certificate(&stage.api);
        first.put_bundle(&stage.api);
    });
    // A new certificate of the same CA is served at once, and under load nothing is lost by it.
    let load = Load::start(&stage.kubeconfig, LOAD, &pod());
    for _ in 0..5 {
        first.put_certificate(&stage.api);
        std::thread::sleep(Duration::from_millis(1500));
    }
    // One of a new CA waits until the API server trusts that.
    let second = Theirs::new();
    second.put_certificate(&stage.api);
    std::thread::sleep(Duration::from_secs(3));
    let said = "a new certificate waits until the API server trusts it";
    until(said, || stage.logs_since(said));
    let counts = load.stop();
    assert_eq!(counts.failed, 0, "{:?}; logs: {}", counts.first_failure, stage.logs());
    // cainjector drops the old CA at once; what is in between is lost, and short.
    second.put_bundle(&stage.api);
    until("trust in the new one", || stage.replicas.iter().all(Replica::is_ready));
    until("a pod", || stage.api.create(LOAD, &pod(), true).is_good());
    // What cannot be served is refused, and named.
    let garbage = json!({"data": {"tls.crt": "aGVsbG8="}});
    stage.api.send("PATCH", SECRET, "application/merge-patch+json", Some(&garbage));
    until("a refusal", || stage.logs_since("see cert-manager's Certificate and its events"));
    assert!(stage.api.create(LOAD, &pod(), true).is_good(), "the last good one is kept");
}

/// An RSA key and its certificate, as `openssl` gives them to people: it signed itself, so it is its own CA.
fn rsa(key_form: &str) -> Material {
    let home = tempfile::tempdir().unwrap();
    let openssl = |arguments: &[&str]| {
        let done = Command::new("openssl").args(arguments).current_dir(home.path()).output().unwrap();
        assert!(done.status.success(), "openssl {arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
    };
    openssl(&["genrsa", "-out", "any.key", "2048"]);
    match key_form {
        "PKCS#1" => openssl(&["rsa", "-in", "any.key", "-traditional", "-out", "tls.key"]),
        _ => openssl(&["pkcs8", "-topk8", "-nocrypt", "-in", "any.key", "-out", "tls.key"]),
    }
    let host = format!("subjectAltName=DNS:nodestub-webhook.{OWN}.svc,IP:127.0.0.1");
    openssl(&[
        "req", "-x509", "-new", "-key", "tls.key", "-out", "tls.crt", "-days", "1", "-subj", "/CN=w",
        "-addext", &host,
    ]);
    let read = |name: &str| std::fs::read(home.path().join(name)).unwrap();
    let (certificate, key) = (read("tls.crt"), read("tls.key"));
    let begin = if key_form == "PKCS#1" { "-----BEGIN RSA PRIVATE KEY" } else { "-----BEGIN PRIVATE KEY" };
    assert!(key.starts_with(begin.as_bytes()), "openssl gave another form than {key_form}");
    Material { authority: certificate.clone(), certificate, key }
}

#[test]
fn serves_what_somebody_provides_and_keeps_the_last_good_of_it() {
    let _alone = ALONE.lock();
    let Some((api, kubeconfig)) = api("provided") else { return };
    let theirs = Theirs::new();
    // With remarks of the person, who trusts more than one.
    let commented = |text: &str| format!("# the CA of the house\n{text}\n\n# and an old one\n");
    let publish = |stage: &Stage, roots: &[&[u8]]| {
        let mut text = String::new();
        for root in roots {
            text.push_str(&commented(&String::from_utf8_lossy(root)));
        }
        let hook = |name: &str| json!({"name": name, "clientConfig": {"caBundle": bytes(text.as_bytes())}});
        let patch = json!({"webhooks": [hook("one.nodestub.io"), hook("two.nodestub.io")]});
        let reply =
            stage.api.send("PATCH", REGISTRATION, "application/strategic-merge-patch+json", Some(&patch));
        assert!(reply.is_good(), "{reply:?}");
    };
    let root = theirs.authority.certificate_pem().into_bytes();
    let rsa = [("PKCS#1", rsa("PKCS#1")), ("PKCS#8", rsa("PKCS#8"))];
    let mode = vec!["--certificates-mode=provided".to_owned()];
    let stage = Stage::set_with(api, kubeconfig, vec![mode.clone(), mode], |stage| {
        theirs.put_certificate(&stage.api);
        publish(stage, &[&root, &rsa[0].1.authority, &rsa[1].1.authority]);
    });
    let load = Load::start(&stage.kubeconfig, LOAD, &pod());

    let now = SystemTime::now();
    let (good, hour) = (|made| theirs.sign("nodestub-webhook", made), Duration::from_secs(3600));
    let mut other_key = good(now);
    other_key.key = good(now).key;
    let mut other_names = names("nodestub-webhook");
    other_names.addresses = vec!["192.0.2.1".parse().unwrap()];
    let elsewhere = theirs.authority.sign(&other_names, hour, now).unwrap();
    let bad = [
        ("hello", Material { certificate: b"hello".to_vec(), ..good(now) }, "tls.crt holds no certificate"),
        ("of two pairs", other_key, "tls.key and tls.crt are not of the same pair"),
        ("expired", good(now - hour * 5), "tls.crt ended at"),
        ("of tomorrow", good(now + hour * 24), "tls.crt is not valid before"),
        ("for another name", elsewhere, "tls.crt is not good for 127.0.0.1, which the API server calls"),
    ];
    let served = |times: usize| {
        (0..stage.flags.len()).all(|number| {
            let log = std::fs::read_to_string(stage.home.path().join(format!("log-{number}"))).unwrap();
            log.matches("serving a new certificate").count() == times
        })
    };
    until("the first certificate", || served(1));
    let mut times = 1;
    for (name, material, said) in &bad {
        put(&stage.api, material);
        until(said, || stage.logs_since(said));
        assert!(stage.logs_since("put a good one there"), "{}", stage.logs());
        std::thread::sleep(Duration::from_millis(1500));
        assert!(served(times), "{name}: something else than the last good one is served; {}", stage.logs());
        assert!(stage.replicas.iter().all(Replica::is_ready), "{name}");
        // Nobody mends what is not ours.
        assert_eq!(stage.kept("tls.crt").unwrap().into_bytes(), material.certificate, "{name}");
        println!("provided: {name}: {:?}", load.counts());
    }
    for (form, material) in &rsa {
        put(&stage.api, material);
        times += 1;
        until("the RSA certificate", || served(times));
        // Met by new handshakes: connections end after a second.
        std::thread::sleep(Duration::from_millis(2500));
        println!("provided: RSA, {form}: {:?}", load.counts());
    }
    let counts = load.stop();
    assert_eq!(counts.failed, 0, "{:?}; logs: {}", counts.first_failure, stage.logs());
    let bundle = base64::engine::general_purpose::STANDARD.decode(&stage.bundles()[0]).unwrap();
    assert!(String::from_utf8(bundle).unwrap().contains("# the CA of the house"), "the bundle is theirs");
}
