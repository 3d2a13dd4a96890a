//! `kdig`, the client of Knot DNS: another DNS library than any other test's, and options that `dig` does not send. It speaks
//! of what it finds wrong in a reply itself.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise, in its helpers too")]

mod common;

use std::process::Command;

use common::Scene;
use nodestub_lab::skip::{can_make_namespaces, skip};

const COREFILE: &str = ". {
    bind 127.0.0.1
    nsid node-1
    cache
    hosts {
        192.0.2.1 a.test
        2001:db8::1 a.test
    }
}
";

/// What kdig prints about these questions.
fn kdig(scene: &Scene, words: &str) -> String {
    let mut command = Command::new("kdig");
    command.args(["@127.0.0.1", "+timeout=60", "+retry=0"]).args(words.split(' '));
    let output = scene.net.output(command).unwrap();
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words}: {said}");
    assert!(!said.contains(";; WARNING") && !said.contains(";; ERROR"), "{words}: {said}");
    said
}

#[test]
fn knots_client_finds_nothing_wrong_whatever_options_it_sends() {
    let test = "knots_client_finds_nothing_wrong_whatever_options_it_sends";
    if !can_make_namespaces(test) {
        return;
    }
    if Command::new("kdig").arg("-V").output().is_err() {
        return skip(test, "the program kdig is missing (Debian: apt-get install knot-dnsutils)");
    }
    let scene = Scene::start(COREFILE);
    // The second time each answer comes from the cache.
    for transport in ["+notcp", "+tcp", "+tcp", "+notcp"] {
        for (options, expected) in [
            ("+noedns", &[][..]),
            ("+bufsize=1232 +dnssec", &["EDNS PSEUDOSECTION", "UDP size: 1232"]),
            ("+bufsize=100", &[]),
            ("+nsid", &["NSID", "node-1"]),
            // Options that nobody here understands are not repeated (RFC 6891, 6.1.1), and change nothing else.
            ("+cookie=0102030405060708", &[]),
            ("+padding=128", &[]),
            ("+alignment=468 +cookie +nsid", &["node-1"]),
            ("+subnet=192.0.2.0/24", &[]),
            ("+expire", &[]),
            ("+ednsopt=65001:deadbeef", &[]),
            ("+edns=1", &["BADVERS"]),
        ] {
            let said = kdig(&scene, &format!("{transport} {options} a.test A"));
            for text in expected {
                assert!(said.contains(text), "{options}: no {text} in {said}");
            }
            if !options.contains("edns=1") {
                assert!(said.contains("status: NOERROR") && said.contains("192.0.2.1"), "{options}: {said}");
            }
            for foreign in ["COOKIE", "PADDING", "CLIENT-SUBNET", "EXPIRE", "deadbeef"] {
                assert!(
                    !said.to_uppercase().contains(&foreign.to_uppercase()),
                    "{foreign} is repeated: {said}"
                );
            }
        }
    }
    // Several questions on one connection, which is asked how long it may be silent: ten seconds, in tenths (RFC 7828).
    let said = kdig(&scene, "+tcp +keepopen +ednsopt=11 a.test A a.test AAAA a.test A");
    assert_eq!(said.matches("192.0.2.1").count(), 2, "{said}");
    assert_eq!(said.matches("2001:db8::1").count(), 1, "{said}");
    assert_eq!(said.matches("0064").count(), 3, "{said}");
}
