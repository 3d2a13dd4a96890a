//! Alive but deaf is worse than dead: the process notices, and ends. Heard again in time, it stays.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise, in its helpers too")]

mod common;

use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::{HANG, Scene};
use nodestub_lab::skip::{can_make_namespaces, skip};

const COREFILE: &str = "cluster.local {\n bind 127.0.0.1\n hosts {\n 10.0.0.1 a.cluster.local\n }\n}\n";

/// Whether this machine has the program that makes a daemon deaf here.
fn can_deafen(test: &str) -> bool {
    let there = Command::new("nft").arg("--version").output().is_ok();
    if !there {
        skip(test, "the program nft is missing (Debian: apt-get install nftables)");
    }
    there && can_make_namespaces(test)
}

fn nft(scene: &Scene, rules: &str) {
    let mut command = Command::new("nft");
    command.arg(rules);
    let output = scene.net.output(command).unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn a_daemon_that_hears_nothing_ends_so_that_others_can_take_over() {
    if !can_deafen("a_daemon_that_hears_nothing_ends_so_that_others_can_take_over") {
        return;
    }
    let mut scene = Scene::start(COREFILE);
    nft(&scene, "table inet deaf { chain in { type filter hook input priority 0; udp dport 53 drop; }; }");
    let status = scene.daemon.wait(HANG).unwrap();
    assert_eq!(status.code(), Some(70), "{}", scene.daemon.lines().join("\n"));
}

#[test]
fn a_daemon_that_was_deaf_for_a_moment_stays() {
    if !can_deafen("a_daemon_that_was_deaf_for_a_moment_stays") {
        return;
    }
    let scene = Scene::start(COREFILE);
    nft(&scene, "table inet deaf { chain in { type filter hook input priority 0; udp dport 53 drop; }; }");
    scene.wait_for("tries=2");
    nft(&scene, "delete table inet deaf");
    for _ in 0..3 {
        assert_eq!(scene.ask("a.cluster.local", "A").data(), ["10.0.0.1"]);
    }
}

#[test]
fn a_daemon_that_answers_others_is_not_deaf() {
    if !can_deafen("a_daemon_that_answers_others_is_not_deaf") {
        return;
    }
    // As in a flood: what the watchdog asks is lost, what clients ask is answered.
    let scene = Scene::start(COREFILE);
    let drop_its_own = "table inet deaf { chain in { type filter hook input priority 0; \
                        udp dport 53 meta length > 70 drop; }; }";
    nft(&scene, drop_its_own);
    // Longer than it takes a deaf one to end.
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(8) {
        assert_eq!(scene.ask("a.cluster.local", "A").data(), ["10.0.0.1"]);
        sleep(Duration::from_millis(50));
    }
}
