//! What each test of rotation is set upon: a namespace, a registration, and replicas behind a port of ours.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use base64::Engine as _;
use serde_json::{Value, json};

use crate::common::api::{ApiServer, until};
use crate::common::load::{Balancer, Load};

/// A cluster has one registration of a name: one test at a time.
pub(crate) static ALONE: Mutex<()> = Mutex::new(());

pub(crate) const OWN: &str = "nodestub-rotation";
pub(crate) const LOAD: &str = "nodestub-rotation-load";
pub(crate) const SECRET: &str = "/api/v1/namespaces/nodestub-rotation/secrets/nodestub-webhook-certificates";
pub(crate) const LEASE: &str =
    "/apis/coordination.k8s.io/v1/namespaces/nodestub-rotation/leases/nodestub-webhook-certificates";
pub(crate) const REGISTRATION: &str =
    "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/nodestub-rotation";
/// A rotation of the CA takes twenty seconds; only a failure takes longer than this.
pub(crate) const ROTATION: Duration = Duration::from_secs(60);

pub(crate) fn rotations() -> usize {
    if std::env::var_os("NODESTUB_FULL").is_some() { 10 } else { 1 }
}

pub(crate) fn api(test: &str) -> Option<(ApiServer, String)> {
    let Ok(file) = std::env::var("NODESTUB_KUBECONFIG") else {
        let reason = "needs a Kubernetes API server for tests: name its kubeconfig in NODESTUB_KUBECONFIG";
        nodestub_lab::skip::skip("certificates_on_an_api_server", &format!("{test}: {reason}"));
        return None;
    };
    Some((ApiServer::connect(&file), file))
}

/// One process of the webhook.
pub(crate) struct Replica {
    pub(crate) process: Child,
    pub(crate) admission: String,
    pub(crate) admin: String,
}

impl Replica {
    pub(crate) fn start(home: &Path, number: usize, kubeconfig: &str, flags: &[String]) -> Self {
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

    pub(crate) fn admin(&self, path: &str) -> Option<String> {
        let mut curl = Command::new("curl");
        let got = curl
            .args(["-sS", "-w", "\n%{http_code}"])
            .arg(format!("http://{}{path}", self.admin))
            .output()
            .unwrap();
        got.status.success().then(|| String::from_utf8(got.stdout).unwrap())
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.admin("/readyz").is_some_and(|text| text.ends_with("\n200"))
    }

    pub(crate) fn id(&self) -> u32 {
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
pub(crate) struct Stage {
    pub(crate) api: ApiServer,
    pub(crate) kubeconfig: String,
    pub(crate) home: tempfile::TempDir,
    pub(crate) flags: Vec<Vec<String>>,
    pub(crate) replicas: Vec<Replica>,
    pub(crate) balancer: Balancer,
}

impl Stage {
    /// An empty namespace, a registration without a bundle, and replicas that start at once, each with its flags.
    pub(crate) fn set(api: ApiServer, kubeconfig: String, flags: Vec<Vec<String>>) -> Self {
        Self::set_with(api, kubeconfig, flags, |_| {})
    }

    /// The same, with what somebody else does before anything starts.
    pub(crate) fn set_with(
        api: ApiServer,
        kubeconfig: String,
        flags: Vec<Vec<String>>,
        before: impl Fn(&Self),
    ) -> Self {
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

    pub(crate) fn start(&self, number: usize, more: &[String]) -> Replica {
        let flags: Vec<String> = self.flags[number].iter().chain(more).cloned().collect();
        Replica::start(self.home.path(), number, &self.kubeconfig, &flags)
    }

    /// As `kubectl replace` does with a manifest that has no bundle.
    pub(crate) fn apply_registration(&self) {
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

    pub(crate) fn balance(&self) {
        self.balancer.set(self.replicas.iter().map(|one| one.admission.parse().unwrap()).collect());
    }

    /// The number of the replica that leads.
    pub(crate) fn leader(&self) -> Option<usize> {
        let lease = self.api.get(LEASE)?;
        let holder = lease["spec"]["holderIdentity"].as_str()?.rsplit_once('_')?.1.to_owned();
        self.replicas.iter().position(|one| one.id().to_string() == holder)
    }

    /// What the Secret holds by that key, decoded.
    pub(crate) fn kept(&self, key: &str) -> Option<String> {
        let secret = self.api.get(SECRET)?;
        let text = secret["data"][key].as_str()?.to_owned();
        let bytes = base64::engine::general_purpose::STANDARD.decode(text).unwrap();
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    pub(crate) fn bundles(&self) -> Vec<String> {
        let registration = self.api.get(REGISTRATION).unwrap();
        let hooks = registration["webhooks"].as_array().unwrap();
        hooks
            .iter()
            .map(|hook| hook["clientConfig"]["caBundle"].as_str().unwrap_or_default().to_owned())
            .collect()
    }

    /// Waits for so many new CAs that sign, under load; `on_each` is called after each but the last.
    pub(crate) fn rotate_under_load(&mut self, name: &str, mut on_each: impl FnMut(&mut Self)) {
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

    pub(crate) fn logs(&self) -> String {
        let logs = (0..self.flags.len()).filter_map(|number| {
            let text = std::fs::read_to_string(self.home.path().join(format!("log-{number}"))).ok()?;
            let lines: Vec<&str> = text.lines().rev().take(15).collect();
            Some(format!("\n-- replica {number}\n{}", lines.into_iter().rev().collect::<Vec<_>>().join("\n")))
        });
        logs.collect()
    }

    /// Whether some replica has said so, at any time.
    pub(crate) fn logs_since(&self, said: &str) -> bool {
        (0..self.flags.len()).any(|number| {
            let text =
                std::fs::read_to_string(self.home.path().join(format!("log-{number}"))).unwrap_or_default();
            text.contains(said)
        })
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

pub(crate) fn pod() -> Value {
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

pub(crate) fn names(service: &str) -> nodestub_certs::ServingNames {
    nodestub_certs::ServingNames {
        service: service.to_owned(),
        namespace: OWN.to_owned(),
        cluster_domain: None,
        addresses: vec!["127.0.0.1".parse().unwrap()],
        extra: Vec::new(),
    }
}

pub(crate) fn bytes(bytes: &[u8]) -> Value {
    json!(k8s_openapi::ByteString(bytes.to_vec()))
}
