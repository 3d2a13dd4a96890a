//! Certificates that are somebody else's affair: cert-manager's, and a person's.

use std::process::Command;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use nodestub_certs::Material;
use serde_json::{Value, json};

use crate::common::api::{ApiServer, until};
use crate::common::load::Load;
use crate::stage::{ALONE, LOAD, OWN, REGISTRATION, Replica, SECRET, Stage, api, bytes, names, pod};

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
