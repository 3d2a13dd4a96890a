//! Clients that ask over TLS. The real binary in a namespace of its own, and rustls, `kdig` and `dig` as its clients.
//!
//! ```text
//!   stage    certificates, the daemon, a client
//!   (here)   what is answered, to whom, and by which certificate
//!   abuse    what clients should not do
//!   life     renewed certificates, reloads, handover, the end
//! ```
#![forbid(unsafe_code)]
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may stop at the first surprise, in its helpers too"
)]

mod abuse;
#[path = "../common/mod.rs"]
mod common;
mod life;
#[path = "../common/secure.rs"]
mod secure;
mod stage;

use std::process::Command;
use std::time::Duration;

use common::{HANG, patient, patient_tcp, resolver};
use nodestub_lab::ask;
use nodestub_lab::skip::skip;
use rustls::{HandshakeKind, ProtocolVersion, version};
use secure::Authority;
use stage::{RIGHT, Stage, TLS, Trust, asked, with_option};

#[test]
fn answers_over_tls_1_2_and_1_3_and_in_no_other_way() {
    let Some(stage) = Stage::new("answers_over_tls_1_2_and_1_3_and_in_no_other_way") else { return };
    let scene = stage.serve("");
    for (versions, spoken) in [
        (&[&version::TLS12][..], ProtocolVersion::TLSv1_2),
        (&[&version::TLS13][..], ProtocolVersion::TLSv1_3),
    ] {
        let trust = Trust { versions, ..stage.trust() };
        let mut client = scene.connect(&trust);
        for _ in 0..2 {
            assert_eq!(client.ask("a.test").data(), [RIGHT]);
        }
        assert_eq!(client.conn().protocol_version(), Some(spoken));
        assert_eq!(client.conn().alpn_protocol(), Some(&b"dot"[..]));
    }
    // Who names no protocol is served; who names others only means something else.
    assert_eq!(scene.connect(&Trust { alpn: &[], ..stage.trust() }).ask("a.test").data(), [RIGHT]);
    assert!(scene.try_connect(&Trust { alpn: &["h2"], ..stage.trust() }).is_err());
    assert_eq!(scene.connect(&Trust { alpn: &["h2", "dot"], ..stage.trust() }).ask("a.test").data(), [RIGHT]);
    // Nothing in the clear: no UDP at the port, and a query by TCP is no handshake.
    let short = nodestub_lab::Options { timeout: Duration::from_secs(2), ..patient() };
    assert!(scene.net.run(|| ask(TLS, "a.test", "A", &short)).unwrap().is_err());
    assert!(scene.net.run(|| ask(TLS, "a.test", "A", &patient_tcp())).unwrap().is_err());
    let metrics = scene.metrics();
    let labels = [("server", "tls://127.0.0.1:853"), ("zone", "."), ("proto", "tcp")];
    assert!((metrics.sum("coredns_dns_requests_total", &labels) - 6.0).abs() < 0.5, "{}", metrics.0);
    assert!((metrics.sum("nodestub_tls_handshakes_total", &[("result", "full")]) - 4.0).abs() < 0.5);
    assert!((metrics.sum("nodestub_tls_handshakes_total", &[("result", "failed")]) - 2.0).abs() < 0.5);
}

#[test]
fn kdig_and_dig_are_answered() {
    let Some(stage) = Stage::new("kdig_and_dig_are_answered") else { return };
    let authority = stage.path("ca.crt").display().to_string();
    let scene = stage.serve("");
    let run = |program: &str, arguments: &[&str]| {
        let mut command = Command::new(program);
        command.args(arguments);
        match scene.net.output(command) {
            Ok(output) => Some(String::from_utf8_lossy(&output.stdout).into_owned()),
            Err(_) => {
                skip("kdig_and_dig_are_answered", &format!("there is no {program}"));
                None
            }
        }
    };
    let believed = format!("+tls-ca={authority}");
    let strict = ["@127.0.0.1", &believed, "+tls-hostname=dns.test", "+retry=0", "a.test", "A"];
    if let Some(said) = run("kdig", &strict) {
        assert!(said.contains(RIGHT) && said.contains("NOERROR") && said.contains("TLS session"), "{said}");
        let stranger = ["@127.0.0.1", "+tls-ca", "+tls-hostname=dns.test", "+retry=0", "a.test", "A"];
        let said = run("kdig", &stranger).unwrap();
        assert!(!said.contains(RIGHT), "{said}");
        let open = ["@127.0.0.1", "+tls", "+padding", "+keepopen", "a.test", "A", "b.test", "A"];
        let said = run("kdig", &open).unwrap();
        assert_eq!(said.matches(RIGHT).count(), 2, "{said}");
        assert!(said.contains("PADDING") && said.contains("468 B"), "{said}");
    }
    if let Some(said) = run("dig", &["@127.0.0.1", "+tls", "a.test", "A"]) {
        // Versions before 9.18 have no TLS.
        if !said.is_empty() && !said.contains("nvalid option") {
            assert!(said.contains(RIGHT), "{said}");
        }
    }
}

#[test]
fn asks_for_clients_certificates_as_the_corefile_says() {
    let test = "asks_for_clients_certificates_as_the_corefile_says";
    // Nothing, a stranger's, one of ours.
    for (mode, served) in [
        ("nocert", [true, true, true]),
        ("request", [true, true, true]),
        ("require", [false, true, true]),
        ("verify_if_given", [true, false, true]),
        ("require_and_verify", [false, false, true]),
    ] {
        let Some(stage) = Stage::new(test) else { return };
        let pairs = [None, Some(Authority::new().sign("a.client")), Some(stage.authority.sign("a.client"))];
        let scene = stage.serve(&format!("FOLDER/ca.crt {{\n client_auth {mode}\n }}"));
        for (versions, (pair, served)) in [&[&version::TLS13][..], &[&version::TLS12][..]]
            .into_iter()
            .flat_map(|versions| pairs.iter().zip(served).map(move |each| (versions, each)))
        {
            let trust = Trust { pair: pair.as_ref(), versions, ..stage.trust() };
            // By TLS 1.3 a client takes itself for let in before it has been looked at.
            let answered = scene.try_connect(&trust).and_then(|mut client| client.try_ask("a.test"));
            assert_eq!(answered.is_ok(), served, "{mode} {versions:?} {answered:?}");
        }
        let shown = scene.connect(&Trust { pair: pairs[2].as_ref(), ..stage.trust() });
        drop(shown);
        // Where certificates are verified, each handshake looks at them.
        let trust = Trust { pair: pairs[2].as_ref(), ..stage.trust() };
        let config = trust.config();
        for round in 0..2 {
            let mut client = scene.try_connect_with(&config).unwrap();
            assert_eq!(client.ask("a.test").data(), [RIGHT]);
            let resumed = client.conn().handshake_kind() == Some(HandshakeKind::Resumed);
            assert_eq!(resumed, round == 1 && !mode.contains("verify"), "{mode} {round}");
        }
    }
}

#[test]
fn takes_up_sessions_again_by_both_versions() {
    let Some(stage) = Stage::new("takes_up_sessions_again_by_both_versions") else { return };
    let scene = stage.serve("");
    for versions in [&[&version::TLS12][..], &[&version::TLS13][..]] {
        let config = Trust { versions, ..stage.trust() }.config();
        for round in 0..4 {
            let mut client = scene.try_connect_with(&config).unwrap();
            assert_eq!(client.ask("a.test").data(), [RIGHT]);
            let kind = client.conn().handshake_kind();
            let expected = if round == 0 { HandshakeKind::Full } else { HandshakeKind::Resumed };
            assert_eq!(kind, Some(expected), "{versions:?} {round}");
        }
    }
    let resumed = scene.metrics().sum("nodestub_tls_handshakes_total", &[("result", "resumed")]);
    assert!((resumed - 6.0).abs() < 0.5, "{resumed}");
}

#[test]
fn a_cached_answer_overtakes_what_must_be_asked_on_the_same_connection() {
    let test = "a_cached_answer_overtakes_what_must_be_asked_on_the_same_connection";
    let Some(stage) = Stage::new(test) else { return };
    let scene = stage.serve("");
    let mut client = scene.connect(&stage.trust());
    assert_eq!(client.ask("a.test").data(), [RIGHT]);
    // All in one record: two that take their time, the second less, and one that is kept.
    let queries = ["slow.test", "late.test", "a.test"].map(asked);
    client.send_all(&queries);
    let names: Vec<String> = (0..3).map(|_| client.receive().question.unwrap().0).collect();
    assert_eq!(names, ["a.test.", "late.test.", "slow.test."]);
}

#[test]
fn a_zone_of_another_block_is_not_answered() {
    let Some(stage) = Stage::new("a_zone_of_another_block_is_not_answered") else { return };
    let scene = stage.serve_text(
        "tls://a.test tls://c.test {\n bind 127.0.0.1\n tls FOLDER/server.crt FOLDER/server.key\n forward . 127.0.0.2\n prometheus \
         127.0.0.1:9153\n}\nb.test {\n bind 127.0.0.1\n forward . 127.0.0.2\n}\ntls://d.test {\n bind 127.0.0.1\n tls \
         FOLDER/server.crt FOLDER/server.key\n hosts {\n 192.0.2.77 x.d.test\n }\n}\n",
    );
    let mut client = scene.connect(&stage.trust());
    for (name, rcode) in [
        ("x.a.test", "NOERROR"),
        ("x.c.test", "NOERROR"),
        ("x.d.test", "NOERROR"),
        ("x.b.test", "REFUSED"),
        ("other", "REFUSED"),
    ] {
        assert_eq!(client.ask(name).rcode, rcode, "{name}");
    }
    assert_eq!(client.ask("x.d.test").data(), ["192.0.2.77"]);
    assert_eq!(scene.rcode("x.b.test", "A"), "NOERROR");
    assert_eq!(scene.rcode("x.a.test", "A"), "REFUSED");
    let metrics = scene.metrics();
    let of = |server, zone| metrics.sum("coredns_dns_requests_total", &[("server", server), ("zone", zone)]);
    assert!((of("tls://127.0.0.1:853", "dropped") - 2.0).abs() < 0.5, "{}", metrics.0);
    assert!((of("dns://127.0.0.1:53", "dropped") - 1.0).abs() < 0.5);
    assert!((of("tls://127.0.0.1:853", "d.test.") - 2.0).abs() < 0.5);
}

#[test]
fn without_bind_every_address_of_both_families_is_served() {
    let Some(stage) = Stage::new("without_bind_every_address_of_both_families_is_served") else { return };
    let scene = stage.serve_text(
        "tls://. {\n tls FOLDER/server.crt FOLDER/server.key\n forward . 127.0.0.2\n prometheus 127.0.0.1:9153\n}\n",
    );
    for address in ["127.0.0.1:853", "127.0.0.77:853", "[::1]:853"] {
        assert_eq!(scene.connect_to(address, &stage.trust()).ask("a.test").data(), [RIGHT], "{address}");
    }
    let metrics = scene.metrics();
    for (family, count) in [("1", 2.0), ("2", 1.0)] {
        let labels = [("server", "tls://:853"), ("proto", "tcp"), ("family", family)];
        let found = metrics.sum("coredns_dns_requests_total", &labels);
        assert!((found - count).abs() < 0.5, "{}", metrics.0);
    }
}

#[test]
fn a_block_of_both_kinds_keeps_its_answers_once() {
    let Some(stage) = Stage::new("a_block_of_both_kinds_keeps_its_answers_once") else { return };
    let scene = stage.serve_text(
        ". tls://.:8853 {\n bind 127.0.0.1\n tls FOLDER/server.crt FOLDER/server.key\n cache 300\n forward . 127.0.0.2\n}\n",
    );
    assert_eq!(scene.ask("a.test", "A").data(), [RIGHT]);
    let mut client = scene.connect_to("127.0.0.1:8853", &stage.trust());
    assert_eq!(client.ask("a.test").data(), [RIGHT]);
    let asked = scene.upstream.received();
    assert_eq!(
        asked.iter().filter(|one| one.bytes.windows(6).any(|part| part == b"\x01a\x04tes")).count(),
        1
    );
}

#[test]
fn a_reply_is_padded_and_says_how_long_the_connection_may_be_silent_where_that_is_wanted() {
    let test = "a_reply_is_padded_and_says_how_long_the_connection_may_be_silent_where_that_is_wanted";
    let Some(stage) = Stage::new(test) else { return };
    let scene = stage.serve("");
    let mut client = scene.connect(&stage.trust());
    const PADDING: [u8; 6] = [0, 12, 0, 2, 0, 0];
    const KEEPALIVE: [u8; 4] = [0, 11, 0, 0];
    let both = [&PADDING[..], &KEEPALIVE[..]].concat();
    // Not kept yet, then kept.
    for _ in 0..2 {
        client.send_all(&[with_option("a.test", &both)]);
        let answer = client.receive();
        assert_eq!(answer.data(), [RIGHT]);
        assert_eq!((answer.raw.len(), answer.edns.unwrap().options), (468, vec![11, 12]));
    }
    client.send_all(&[with_option("a.test", &KEEPALIVE)]);
    assert_eq!(client.receive().edns.unwrap().options, [11]);
    assert!(client.ask("a.test").raw.len() < 100);
    // In the clear padding would hide nothing.
    let scene = Stage::new(test).unwrap().serve_text(". {\n bind 127.0.0.1\n forward . 127.0.0.2\n}\n");
    let (query, options) = (with_option("a.test", &PADDING), patient_tcp());
    let raw = scene.net.run(|| nodestub_lab::exchange(common::SERVER, &query, &options)).unwrap().unwrap();
    assert!(raw.len() < 100);
}

#[test]
fn says_which_file_cannot_be_served() {
    let Some(stage) = Stage::new("says_which_file_cannot_be_served") else { return };
    let other = stage.authority.sign("other.test");
    stage.write("other", &other);
    for (files, said) in [
        ("FOLDER/none.crt FOLDER/server.key", "none.crt"),
        ("FOLDER/server.crt FOLDER/none.key", "none.key"),
        ("FOLDER/server.key FOLDER/server.key", "no certificate in PEM"),
        ("FOLDER/server.crt FOLDER/other.key", "cannot be used together"),
        ("FOLDER/server.crt FOLDER/server.key FOLDER/none.crt", "none.crt"),
    ] {
        let corefile =
            stage.corefile(&format!("tls://. {{\n bind 127.0.0.1\n tls {files}\n forward . 127.0.0.2\n}}\n"));
        let mut daemon = stage.net.spawn(resolver(&corefile)).unwrap();
        let line = daemon.wait_for_line(HANG, |line| line.contains(said)).unwrap();
        assert!(line.contains("tls"), "{line}");
        assert!(!daemon.wait(HANG).unwrap().success());
    }
}
