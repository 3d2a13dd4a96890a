//! The real binary from outside: TLS and HTTP by a client that shares no code with it.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use std::collections::BTreeMap;
use std::io::ErrorKind::{ConnectionReset, UnexpectedEof};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use common::client::{SERVICE, Webhook, connect, head, issue_certificates, read_response};
use common::{judge, review, vectors};
use k8s_openapi::ByteString;
use rustix::process::Signal;
use serde_json::{Value, json};

const BASIC: [&str; 4] = [
    "--cluster-dns=10.96.0.10",
    "--cluster-domain=cluster.local",
    "--host-search=none",
    "--namespace=shop:nodestub.io/inject=enabled",
];

const MAX_BODY_BYTES: usize = 7 * 1024 * 1024;

fn start(home: &tempfile::TempDir) -> Webhook {
    issue_certificates(home.path());
    Webhook::start(home.path(), &BASIC.map(str::to_owned))
}

fn a_review() -> Vec<u8> {
    let vectors = vectors();
    let plain =
        vectors.iter().find(|vector| vector.name == "a plain pod in a namespace that opted in").unwrap();
    serde_json::to_vec(&review(plain)).unwrap()
}

fn patch(response: &Value) -> Value {
    match response.get("patch") {
        None => json!([]),
        Some(patch) => {
            assert_eq!(response["patchType"], "JSONPatch");
            let ByteString(text) = serde_json::from_value(patch.clone()).unwrap();
            serde_json::from_slice(&text).unwrap()
        }
    }
}

#[test]
fn answers_every_vector_over_tls() {
    let mut by_flags: BTreeMap<Vec<String>, Vec<_>> = BTreeMap::new();
    for vector in vectors() {
        by_flags.entry(vector.flags.clone()).or_default().push(vector);
    }
    let home = tempfile::tempdir().unwrap();
    issue_certificates(home.path());
    for (flags, vectors) in by_flags {
        let webhook = Webhook::start(home.path(), &flags);
        for vector in &vectors {
            let answer = webhook.mutate(&serde_json::to_vec(&review(vector)).unwrap());
            assert_eq!(answer.status, 200, "{}: {}", vector.name, answer.text());
            let answer = answer.json();
            assert_eq!(
                (&answer["kind"], &answer["apiVersion"]),
                (&json!("AdmissionReview"), &json!("admission.k8s.io/v1"))
            );
            let response = &answer["response"];
            assert_eq!(response["uid"], format!("uid of {}", vector.name));
            assert_eq!(response["allowed"], true, "{}", vector.name);
            let reason = response["auditAnnotations"]["decision"].as_str().unwrap();
            let warnings = response["warnings"].as_array().cloned().unwrap_or_default();
            let warnings: Vec<_> = warnings.iter().map(|text| text.as_str().unwrap().to_owned()).collect();
            judge(vector, reason, &patch(response), &warnings);
        }
        let decided: u64 = vectors
            .iter()
            .map(|vector| format!("nodestub_webhook_decisions_total{{reason=\"{}\"}}", vector.reason))
            .collect::<std::collections::BTreeSet<_>>()
            .iter()
            .map(|name| webhook.count(name))
            .sum();
        assert_eq!(decided, vectors.len() as u64);
    }
}

#[test]
fn logs_one_line_for_each_decision() {
    let home = tempfile::tempdir().unwrap();
    let webhook = start(&home);
    webhook.mutate(&a_review());
    let log = webhook.wait_for("decided");
    assert_eq!(
        (&log["reason"], &log["namespace"], &log["name"]),
        (&json!("injected"), &json!("shop"), &json!("web"))
    );
    assert_eq!(log["rule"], "label nodestub.io/inject=enabled on the namespace");
    assert_eq!(log["revision"].as_str().unwrap().len(), 16);
    assert_eq!(log["dry_run"], false);
}

#[test]
fn rejects_what_is_not_a_review_with_one_clear_line() {
    let home = tempfile::tempdir().unwrap();
    let webhook = start(&home);
    let json_kind = "application/json";
    let large = vec![b' '; MAX_BODY_BYTES + 1];
    for (method, path, kind, body, status, said) in [
        ("POST", "/mutate", "text/plain", &a_review()[..], 415, "application/json"),
        ("POST", "/mutate", json_kind, b"", 400, "not JSON"),
        ("POST", "/mutate", json_kind, b"hello", 400, "not JSON"),
        ("POST", "/mutate", json_kind, &[0xff; 100], 400, "not JSON"),
        ("POST", "/mutate", json_kind, b"{}", 400, "AdmissionReview"),
        ("POST", "/mutate", json_kind, br#"{"kind":"Pod","apiVersion":"v1"}"#, 400, "kind \"Pod\""),
        ("POST", "/mutate", json_kind, &large, 413, "larger than 7340032 bytes"),
        ("GET", "/mutate", json_kind, b"", 405, "POST"),
        ("POST", "/", json_kind, b"", 404, "/mutate"),
    ] {
        let answer = webhook.send(method, path, kind, body);
        assert_eq!(answer.status, status, "{}", answer.text());
        assert!(answer.text().contains(said) && answer.text().lines().count() == 1, "{}", answer.text());
    }
    assert_eq!(webhook.count("nodestub_webhook_refusals_total{cause=\"too_large\"}"), 1);
    assert_eq!(webhook.count("nodestub_webhook_refusals_total{cause=\"not_a_review\"}"), 5);
    assert_eq!(webhook.count("nodestub_webhook_refusals_total{cause=\"content_type\"}"), 1);
    assert_eq!(webhook.count("nodestub_webhook_faults_total"), 0);
}

#[test]
fn answers_a_review_of_the_largest_size() {
    let home = tempfile::tempdir().unwrap();
    let webhook = start(&home);
    let mut body = a_review();
    body.resize(MAX_BODY_BYTES, b' ');
    let answer = webhook.mutate(&body);
    assert_eq!((answer.status, &answer.json()["response"]["allowed"]), (200, &json!(true)));
}

#[test]
fn serves_new_certificates_without_a_restart_and_keeps_them_through_damage() {
    let home = tempfile::tempdir().unwrap();
    let webhook = start(&home);
    let old = std::fs::read(home.path().join("ca.crt")).unwrap();
    assert_eq!(webhook.mutate(&a_review()).status, 200);

    issue_certificates(home.path());
    webhook.wait_for("serving a new certificate");
    assert_eq!(webhook.mutate(&a_review()).status, 200);
    let refusal = connect(webhook.admission, &old, &[]).unwrap_err();
    assert!(refusal.to_string().contains("certificate"), "the old CA no longer vouches: {refusal}");

    std::fs::write(home.path().join("tls.key"), "garbage").unwrap();
    webhook.wait_for("the certificate was not loaded; the last good one is kept");
    assert_eq!(webhook.mutate(&a_review()).status, 200);
    assert_eq!(webhook.admin("/readyz").status, 200);
    assert!(webhook.metric("nodestub_webhook_certificate_loads_total{result=\"failed\"}") >= 1.0);
    assert!(webhook.metric("nodestub_webhook_certificate_expiry_seconds{certificate=\"leaf\"}") > 86_400.0);
    assert!(webhook.metric("nodestub_webhook_certificate_expiry_seconds{certificate=\"ca\"}") > 864_000.0);
}

#[test]
fn waits_for_its_first_certificate_unready() {
    let home = tempfile::tempdir().unwrap();
    let webhook = Webhook::start(home.path(), &BASIC.map(str::to_owned));
    assert_eq!(webhook.admin("/healthz").status, 200);
    let answer = webhook.admin("/readyz");
    assert_eq!((answer.status, answer.text().as_str()), (503, "no certificate yet\n"));
    issue_certificates(home.path());
    webhook.wait_for("serving a new certificate");
    assert_eq!(webhook.admin("/readyz").status, 200);
    assert_eq!(webhook.mutate(&a_review()).status, 200);
}

#[test]
fn finishes_what_it_has_when_it_is_told_to_stop() {
    let home = tempfile::tempdir().unwrap();
    let mut webhook = start(&home);
    let body = a_review();
    let mut idle = webhook.connect().unwrap();
    let mut tls = webhook.connect().unwrap();
    // The server says "continue" once it waits for the body, so the request is in hand when the signal comes.
    tls.write_all(&expecting_head(body.len())).unwrap();
    read_continue(&mut tls);
    tls.write_all(&body[..10]).unwrap();

    webhook.signal(Signal::TERM);
    webhook.wait_for("stopping");
    let answer = webhook.admin("/readyz");
    assert_eq!((answer.status, answer.text().as_str()), (503, "stopping\n"));
    match idle.read(&mut [0]) {
        Ok(read) => assert_eq!(read, 0, "an idle connection is closed at once"),
        Err(error) => assert!([UnexpectedEof, ConnectionReset].contains(&error.kind()), "{error}"),
    }

    tls.write_all(&body[10..]).unwrap();
    let answer = read_response(&mut tls);
    assert_eq!((answer.status, &answer.json()["response"]["allowed"]), (200, &json!(true)));
    assert!(webhook.end().success());
    assert!(TcpStream::connect(webhook.admission).is_err());
}

#[test]
fn ends_a_body_that_does_not_come_and_lets_go_of_its_bytes() {
    let home = tempfile::tempdir().unwrap();
    let webhook = start(&home);
    let mut tls = webhook.connect().unwrap();
    tls.write_all(&expecting_head(MAX_BODY_BYTES)).unwrap();
    read_continue(&mut tls);
    tls.write_all(b"{").unwrap();
    // After the server's five seconds.
    let answer = read_response(&mut tls);
    assert_eq!((answer.status, answer.text().as_str()), (408, "the body did not come in time\n"));
    assert_eq!(webhook.count("nodestub_webhook_refusals_total{cause=\"body\"}"), 1);
    assert_eq!(webhook.mutate(&a_review()).status, 200);
}

#[test]
fn bounds_the_bytes_that_it_reads_at_once() {
    let home = tempfile::tempdir().unwrap();
    let webhook = start(&home);
    let mut held = Vec::new();
    for _ in 0..9 {
        let mut tls = webhook.connect().unwrap();
        tls.write_all(&expecting_head(MAX_BODY_BYTES)).unwrap();
        read_continue(&mut tls);
        held.push(tls);
    }
    // 63 of 64 MiB are spoken for: two more have no room, a small review has.
    let answer = webhook.mutate(&vec![b' '; 2 * 1024 * 1024]);
    assert_eq!((answer.status, answer.text().as_str()), (503, "too many requests at once; try again\n"));
    assert_eq!(webhook.mutate(&a_review()).status, 200);
    drop(held);
    assert_eq!(webhook.mutate(&vec![b' '; 2 * 1024 * 1024]).status, 400, "there is room again");
}

#[test]
fn offers_http2_and_http1() {
    let home = tempfile::tempdir().unwrap();
    let webhook = start(&home);
    let trust = std::fs::read(home.path().join("ca.crt")).unwrap();
    for (offered, chosen) in [(&[&b"h2"[..], b"http/1.1"][..], &b"h2"[..]), (&[b"http/1.1"], b"http/1.1")] {
        let tls = connect(webhook.admission, &trust, offered).unwrap();
        assert_eq!(tls.conn.alpn_protocol(), Some(chosen));
    }
    // RFC 9113, 3.4: the preface and an empty SETTINGS frame; the server's own SETTINGS frame comes first.
    let mut tls = connect(webhook.admission, &trust, &[b"h2"]).unwrap();
    tls.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").unwrap();
    let mut frame = [0; 9];
    tls.read_exact(&mut frame).unwrap();
    assert_eq!(frame[3], 4, "a SETTINGS frame");
}

#[test]
fn says_what_is_wrong_with_its_flags_and_does_not_start() {
    for (flags, said) in [
        (&["--cluster-dns=10.96.0.10", "--certificates=x"][..], "--cluster-domain is missing"),
        (
            &["--cluster-domain=a", "--certificates=x", "--cluster-dns=no"],
            "invalid value 'no' for '--cluster-dns <IP>'",
        ),
        (&["certificates", "--folder=x", "--service=A B"], "the service \"A B\" is not a DNS name"),
        (&["certificates", "--folder=/dev/null/x"], "making the folder /dev/null/x failed"),
    ] {
        let done =
            std::process::Command::new(env!("CARGO_BIN_EXE_nodestub-webhook")).args(flags).output().unwrap();
        let text = String::from_utf8(done.stderr).unwrap();
        assert!(!done.status.success() && text.contains(said), "{flags:?}: {text}");
    }
}

fn expecting_head(length: usize) -> Vec<u8> {
    let head = String::from_utf8(head("POST", "/mutate", "application/json", length)).unwrap();
    head.replace(&format!("host: {SERVICE}\r\n"), &format!("host: {SERVICE}\r\nexpect: 100-continue\r\n"))
        .into_bytes()
}

fn read_continue(tls: &mut common::client::Tls) {
    let mut line = [0; "HTTP/1.1 100 Continue\r\n\r\n".len()];
    tls.read_exact(&mut line).unwrap();
    assert_eq!(&line, b"HTTP/1.1 100 Continue\r\n\r\n");
}
