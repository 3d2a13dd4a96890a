//! `prometheus` by HTTPS: its `tls` FILE, over reloads and changes of the file.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise, in its helpers too")]

mod common;

use std::process::Command;
use std::time::{Duration, Instant};

use common::{HANG, Scene};
use nodestub_lab::Signal;
use nodestub_lab::skip::{can_make_namespaces, skip};
use rcgen::{CertificateParams, KeyPair};

fn corefile(tls: &str) -> String {
    format!(
        "test {{
    bind 127.0.0.1
    hosts {{
        192.0.2.1 a.test
        reload 0
    }}
    health 127.0.0.1:8080
    prometheus 127.0.0.1:9153 {{
        {tls}
    }}
}}
"
    )
}

/// Status of the page of metrics, by this scheme and with these words more; `None`: there is no answer.
fn status(scene: &Scene, scheme: &str, more: &[&str]) -> Option<String> {
    let mut command = Command::new("curl");
    command.args(["--silent", "--max-time", "60", "--output", "/dev/null", "--write-out", "%{http_code}"]);
    command.arg("--cacert").arg(scene.path("server.crt")).args(more);
    command.arg(format!("{scheme}://127.0.0.1:9153/metrics"));
    let output = scene.net.output(command).unwrap();
    output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
}

fn sign(scene: &Scene, name: &str) {
    let key = KeyPair::generate().unwrap();
    let certificate =
        CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().self_signed(&key).unwrap();
    std::fs::write(scene.path(&format!("{name}.crt")), certificate.pem()).unwrap();
    std::fs::write(scene.path(&format!("{name}.key")), key.serialize_pem()).unwrap();
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + HANG;
    while !is_so() {
        assert!(Instant::now() < end, "{what}: not in time");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn metrics_are_served_as_the_file_says_over_reloads_and_its_changes() {
    let test = "metrics_are_served_as_the_file_says_over_reloads_and_its_changes";
    if !can_make_namespaces(test) {
        return;
    }
    if Command::new("curl").arg("--version").output().is_err() {
        return skip(test, "the program curl is missing (Debian: apt-get install curl)");
    }
    let ok = Some("200".to_owned());
    let mut scene = Scene::start(&corefile(""));
    sign(&scene, "server");
    assert_eq!([status(&scene, "http", &[]), status(&scene, "https", &[])], [ok.clone(), None]);

    // A file that is refused changes nothing; a good one does, on the socket that is there.
    let file = scene.path("web.yml");
    let by_tls = corefile(&format!("tls {}", file.display()));
    scene.write_corefile(&by_tls);
    for (text, said) in [
        ("basic_auth_users: {me: x}", "basic_auth_users is not supported"),
        ("tls_server_config: {cert_file: server.crt, key_file: nothing.key}", "key_file"),
    ] {
        std::fs::write(&file, text).unwrap();
        scene.daemon.signal(Signal::HUP).unwrap();
        scene.wait_for(said);
        assert_eq!(status(&scene, "http", &[]), ok, "{text}");
    }
    std::fs::write(&file, "tls_server_config: {cert_file: server.crt, key_file: server.key}").unwrap();
    scene.daemon.signal(Signal::HUP).unwrap();
    until("metrics come by HTTPS", || status(&scene, "https", &[]) == ok);
    assert_eq!(status(&scene, "http", &[]), None);
    assert_eq!(scene.get("127.0.0.1:8080", "/health").0, 200);

    // The file says that nobody comes in without a certificate: no reload is needed.
    sign(&scene, "client");
    let strict = "tls_server_config: {cert_file: server.crt, key_file: server.key, client_ca_file: client.crt, \
                  client_auth_type: RequireAndVerifyClientCert}";
    std::fs::write(&file, strict).unwrap();
    assert_eq!(status(&scene, "https", &[]), None);
    let (certificate, key) = (scene.path("client.crt"), scene.path("client.key"));
    let shown = ["--cert", certificate.to_str().unwrap(), "--key", key.to_str().unwrap()];
    assert_eq!(status(&scene, "https", &shown), ok);
    std::fs::write(&file, "half of").unwrap();
    assert_eq!(status(&scene, "https", &shown), ok);
    scene.wait_for("the last good one stays");

    scene.write_corefile(&corefile(""));
    scene.daemon.signal(Signal::HUP).unwrap();
    until("metrics come by HTTP again", || status(&scene, "http", &[]) == ok);
}
