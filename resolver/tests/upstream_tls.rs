//! Upstreams over TLS, and what a Corefile says of connections to upstreams. The real binary, and servers that misbehave on
//! demand.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise, in its helpers too")]

mod common;
#[path = "common/secure.rs"]
mod secure;

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use common::{HANG, Scene, ip, patient, patient_tcp, resolver};
use nodestub_lab::skip::can_make_namespaces;
use nodestub_lab::upstream::{Data, Reply, answer, question};
use nodestub_lab::{Netns, Transport};
use secure::{Authority, Pair, Say, Secure};
use tempfile::TempDir;

const RIGHT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

fn right(query: &[u8]) -> Vec<u8> {
    let (name, _) = question(query).unwrap();
    answer(query, &[(&name, 300, Data::A(RIGHT))]).unwrap()
}

/// A namespace, and a folder with the authority's certificate.
struct Stage {
    net: Netns,
    folder: TempDir,
    authority: Authority,
}

impl Stage {
    fn new(test: &str) -> Option<Self> {
        if !can_make_namespaces(test) {
            return None;
        }
        let (net, folder, authority) =
            (Netns::new().unwrap(), tempfile::tempdir().unwrap(), Authority::new());
        std::fs::write(folder.path().join("ca.crt"), &authority.pem).unwrap();
        Some(Self { net, folder, authority })
    }

    fn write(&self, name: &str, pair: &Pair) {
        std::fs::write(self.folder.path().join(format!("{name}.crt")), &pair.certificate).unwrap();
        std::fs::write(self.folder.path().join(format!("{name}.key")), &pair.key).unwrap();
    }

    /// `FOLDER` in the text is the folder.
    fn serve(self, forward: &str) -> Scene {
        self.serve_with(forward, |_, _| {})
    }

    /// The same with changes to the command line.
    fn serve_with(self, forward: &str, change: impl FnOnce(&mut Command, &Path)) -> Scene {
        let text = format!(
            ". {{\n bind 127.0.0.1\n errors\n cache\n forward . {forward}\n prometheus 127.0.0.1:9153\n}}\n"
        );
        let text = text.replace("FOLDER", self.folder.path().to_str().unwrap());
        std::fs::write(self.folder.path().join("Corefile"), text).unwrap();
        let mut command = resolver(&self.folder.path().join("Corefile"));
        change(&mut command, self.folder.path());
        Scene::of(self.net, command, self.folder)
    }
}

#[test]
fn asks_over_tls_alone_and_takes_up_the_session_when_it_connects_again() {
    let Some(stage) = Stage::new("asks_over_tls_alone_and_takes_up_the_session_when_it_connects_again")
    else {
        return;
    };
    // After every third answer the server closes the connection.
    let pair = stage.authority.sign("dns.test");
    let server = Secure::start(&stage.net, "127.0.0.2:853", &pair, None, |_, asked, query| {
        if asked == 2 { Say::Last(right(query)) } else { Say::Answer(right(query)) }
    });
    let scene = stage.serve("tls://127.0.0.2%dns.test {\n tls FOLDER/ca.crt\n max_fails 0\n }");
    let plain = scene.upstream("127.0.0.2:53", |query, _| vec![Reply::now(right(query))]);
    for number in 0..12 {
        let options = if number % 2 == 0 { patient() } else { patient_tcp() };
        let found = scene.ask_with(common::SERVER, &format!("n{number}.test"), "A", &options);
        assert_eq!((found.rcode.as_str(), found.data()), ("NOERROR", vec!["192.0.2.1"]), "{number}");
    }
    assert_eq!(plain.count(), 0, "nothing is asked in the open");
    let connections = server.seen.connections.load(SeqCst);
    assert!((4..=6).contains(&connections), "{connections} connections for 12 questions, three on each");
    assert!(server.seen.resumed.load(SeqCst) >= 3, "sessions were not taken up");
    let labels = [("to", "127.0.0.2:853"), ("proto", "tcp-tls")];
    assert!(scene.metrics().sum("coredns_proxy_conn_cache_misses_total", &labels) >= 4.0);
}

#[test]
fn believes_nobody_whose_certificate_is_anothers_or_of_an_unknown_authority() {
    let test = "believes_nobody_whose_certificate_is_anothers_or_of_an_unknown_authority";
    let stranger = Authority::new();
    for (upstream, options, signed_by_ours, name, believed) in [
        ("127.0.0.2%dns.test", "", true, "dns.test", true),
        ("127.0.0.2", "tls_servername dns.test", true, "dns.test", true),
        ("127.0.0.2", "", true, "127.0.0.2", true),
        ("127.0.0.2%other.test", "", true, "dns.test", false),
        ("127.0.0.2", "", true, "dns.test", false),
        ("127.0.0.2%dns.test", "", false, "dns.test", false),
    ] {
        let Some(stage) = Stage::new(test) else { return };
        let authority = if signed_by_ours { &stage.authority } else { &stranger };
        let pair = authority.sign(name);
        let server =
            Secure::start(&stage.net, "127.0.0.2:853", &pair, None, |_, _, query| Say::Answer(right(query)));
        let scene = stage.serve(&format!("tls://{upstream} {{\n tls FOLDER/ca.crt\n {options}\n }}"));
        let expected = if believed { "NOERROR" } else { "SERVFAIL" };
        assert_eq!(scene.rcode("a.test", "A"), expected, "{upstream} {options} {name}");
        if !believed {
            scene.wait_for("invalid peer certificate");
            assert_eq!(server.seen.questions.load(SeqCst), 0, "asked before it was known who is there");
        }
    }
}

#[test]
fn without_authorities_of_its_own_a_forward_believes_those_of_the_system() {
    let test = "without_authorities_of_its_own_a_forward_believes_those_of_the_system";
    for (known, expected) in [(true, "NOERROR"), (false, "SERVFAIL")] {
        let Some(stage) = Stage::new(test) else { return };
        let pair = stage.authority.sign("dns.test");
        let server =
            Secure::start(&stage.net, "127.0.0.2:853", &pair, None, |_, _, query| Say::Answer(right(query)));
        std::fs::write(stage.folder.path().join("other.crt"), Authority::new().pem).unwrap();
        let scene = stage.serve_with("tls://127.0.0.2%dns.test", |command, folder| {
            command.env("SSL_CERT_FILE", folder.join(if known { "ca.crt" } else { "other.crt" }));
            command.env_remove("SSL_CERT_DIR");
        });
        assert_eq!(scene.rcode("a.test", "A"), expected);
        assert_eq!(server.seen.questions.load(SeqCst) > 0, known);
    }
}

#[test]
fn answers_that_come_out_of_order_over_tls_reach_who_asked() {
    const TOGETHER: usize = 8;
    let Some(stage) = Stage::new("answers_that_come_out_of_order_over_tls_reach_who_asked") else { return };
    let pair = stage.authority.sign("127.0.0.2");
    // Says nothing until so many are asked, and then the last first.
    let waiting: Mutex<Vec<Vec<u8>>> = Mutex::default();
    let server = Secure::start(&stage.net, "127.0.0.2:853", &pair, None, move |_, _, query| {
        let mut waiting = waiting.lock().unwrap();
        let (name, _) = question(query).unwrap();
        let number: u8 = name.trim_start_matches('n').split('.').next().unwrap().parse().unwrap();
        let data = Data::A(Ipv4Addr::new(192, 0, 2, number));
        waiting.push(answer(query, &[(&name, 300, data)]).unwrap());
        if waiting.len() < TOGETHER {
            return Say::Nothing;
        }
        Say::Several(waiting.drain(..).rev().collect())
    });
    let scene = stage.serve("tls://127.0.0.2 {\n tls FOLDER/ca.crt\n max_fails 0\n max_idle_conns 1\n }");
    std::thread::scope(|scope| {
        for number in 0..TOGETHER {
            let scene = &scene;
            scope.spawn(move || {
                let expected = format!("192.0.2.{number}");
                assert_eq!(scene.ask(&format!("n{number}.test"), "A").data(), [expected.as_str()]);
            });
        }
    });
    assert_eq!(server.seen.connections.load(SeqCst), 1);
    assert_eq!(server.seen.questions.load(SeqCst), TOGETHER);
}

#[test]
fn shows_its_own_certificate_where_the_corefile_names_one() {
    let Some(stage) = Stage::new("shows_its_own_certificate_where_the_corefile_names_one") else { return };
    let pair = stage.authority.sign("127.0.0.2");
    stage.write("client", &stage.authority.sign("client.test"));
    let server = Secure::start(&stage.net, "127.0.0.2:853", &pair, Some(&stage.authority), |_, _, query| {
        Say::Answer(right(query))
    });
    let scene = stage.serve("tls://127.0.0.2 {\n tls FOLDER/client.crt FOLDER/client.key FOLDER/ca.crt\n }");
    assert_eq!(scene.ask("a.test", "A").data(), ["192.0.2.1"]);
    assert_eq!(server.seen.shown.load(SeqCst), 1);
}

#[test]
fn a_tls_connection_that_falls_silent_is_replaced_within_the_same_try() {
    let Some(stage) = Stage::new("a_tls_connection_that_falls_silent_is_replaced_within_the_same_try") else {
        return;
    };
    // The first connection answers once and never again; one try is all that there is, so whoever waits its time out on
    // the silent connection is answered SERVFAIL.
    let pair = stage.authority.sign("127.0.0.2");
    let server = Secure::start(&stage.net, "127.0.0.2:853", &pair, None, |connection, asked, query| {
        if connection == 0 && asked > 0 { Say::Nothing } else { Say::Answer(right(query)) }
    });
    let scene = stage.serve(
        "tls://127.0.0.2 {\n tls FOLDER/ca.crt\n max_fails 0\n max_connect_attempts 1\n read_timeout 4s\n }",
    );
    for number in 0..3 {
        assert_eq!(scene.rcode(&format!("n{number}.test"), "A"), "NOERROR", "{number}");
    }
    assert_eq!(server.seen.connections.load(SeqCst), 2);
}

#[test]
fn questions_come_from_the_address_that_the_corefile_names() {
    let Some(stage) = Stage::new("questions_come_from_the_address_that_the_corefile_names") else { return };
    let pair = stage.authority.sign("127.0.0.3");
    let secure =
        Secure::start(&stage.net, "127.0.0.3:853", &pair, None, |_, _, query| Say::Answer(right(query)));
    let plain = common::upstream_in(&stage.net, "127.0.0.2:53", |query, _| vec![Reply::now(right(query))]);
    let scene = stage
        .serve("127.0.0.2 tls://127.0.0.3 {\n tls FOLDER/ca.crt\n policy round_robin\n source_address 127.0.0.77\n }");
    for number in 0..8 {
        let options = if number % 4 < 2 { patient() } else { patient_tcp() };
        let found = scene.ask_with(common::SERVER, &format!("n{number}.test"), "A", &options);
        assert_eq!(found.data(), ["192.0.2.1"]);
    }
    let here = ip("127.0.0.77");
    assert!(plain.count_of(Transport::Udp) > 0 && plain.count_of(Transport::Tcp) > 0);
    assert!(plain.received().iter().all(|received| received.from.ip() == here));
    let sources = secure.seen.sources.lock().unwrap().clone();
    assert!(!sources.is_empty() && sources.iter().all(|source| *source == here), "{sources:?}");
}

#[test]
fn a_connection_is_replaced_when_it_is_as_old_as_the_corefile_lets_it_be() {
    if !can_make_namespaces("a_connection_is_replaced_when_it_is_as_old_as_the_corefile_lets_it_be") {
        return;
    }
    for (max_age, replaced) in [("max_age 1s", true), ("", false)] {
        let net = Netns::new().unwrap();
        let upstream = common::upstream_in(&net, "127.0.0.2:53", |query, _| vec![Reply::now(right(query))]);
        let options = format!("force_tcp\n expire 1s\n max_idle_conns 1\n {max_age}");
        let text = format!(". {{\n bind 127.0.0.1\n forward . 127.0.0.2 {{\n {options}\n }}\n}}\n");
        let scene = Scene::start_in(net, &text);
        // Never idle for long, so that age alone can end it.
        let end = Instant::now() + Duration::from_millis(2500);
        let mut longest = Duration::ZERO;
        let mut last = Instant::now();
        while Instant::now() < end {
            assert_eq!(scene.rcode("a.test", "A"), "NOERROR");
            longest = longest.max(last.elapsed());
            last = Instant::now();
            std::thread::sleep(Duration::from_millis(50));
        }
        // Where the machine stood still meanwhile, idleness has closed it, and nothing is shown.
        if replaced {
            assert!(upstream.connections() >= 2);
        } else if longest < Duration::from_millis(500) {
            assert_eq!(upstream.connections(), 1);
        }
    }
}

#[test]
fn refuses_files_that_are_not_there_or_do_not_belong_together_and_names_them() {
    let Some(stage) = Stage::new("refuses_files_that_are_not_there_or_do_not_belong_together_and_names_them")
    else {
        return;
    };
    stage.write("one", &stage.authority.sign("one.test"));
    let other = Pair { certificate: String::new(), ..stage.authority.sign("other.test") };
    stage.write("other", &other);
    let folder = stage.folder.path().to_str().unwrap();
    for (files, said) in [
        ("FOLDER/none.crt", "none.crt"),
        ("FOLDER/one.key", "no certificate in PEM"),
        ("FOLDER/other.crt FOLDER/one.key", "no certificate in PEM"),
        ("FOLDER/one.crt FOLDER/other.key FOLDER/ca.crt", "cannot be used together"),
    ] {
        let files = files.replace("FOLDER", folder);
        let text = format!(". {{\n bind 127.0.0.1\n forward . tls://127.0.0.2 {{\n tls {files}\n }}\n}}\n");
        std::fs::write(stage.folder.path().join("Corefile"), text).unwrap();
        let daemon = stage.net.spawn(resolver(&stage.folder.path().join("Corefile"))).unwrap();
        let line = daemon.wait_for_line(HANG, |line| line.contains(said)).unwrap();
        assert!(line.contains("tls"), "{line}");
    }
}
