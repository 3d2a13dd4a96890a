//! A network that loses, doubles and reorders packets towards an upstream.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise, in its helpers too")]

mod common;

use std::net::Ipv4Addr;
use std::process::Command;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use common::{HANG, Metrics, SERVER, Scene, upstream_in};
use nodestub_lab::skip::{can_make_namespaces, skip};
use nodestub_lab::upstream::{Data, Reply, answer, question};
use nodestub_lab::{Netns, Options, ask};

const NAMES: usize = 2_000;
const CLIENTS: usize = 50;

/// The address that a name has: all differ.
fn address_of(number: usize) -> Ipv4Addr {
    Ipv4Addr::from_bits(0x0a00_0000 | u32::try_from(number).unwrap())
}

/// One packet in six is lost each way, so that three exchanges in ten come to nothing.
const LOSS: &str = "table inet loss {
    chain input {
        type filter hook input priority 0;
        ip daddr 127.0.0.2 udp dport 53 numgen random mod 100 < 16 counter drop
        ip saddr 127.0.0.2 udp sport 53 numgen random mod 100 < 16 counter drop
        ip daddr 127.0.0.2 tcp dport 53 numgen random mod 100 < 16 counter drop
        ip saddr 127.0.0.2 tcp sport 53 numgen random mod 100 < 16 counter drop
    }
}
";

/// Resolves [`NAMES`] names over such a network, and says how many were. `None`: it cannot be done here, which has been said.
fn resolve(test: &str, options: &str) -> Option<(usize, Metrics)> {
    if !can_make_namespaces(test) {
        return None;
    }
    let net = Netns::new().unwrap();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("loss.nft"), LOSS).unwrap();
    let mut nft = Command::new("nft");
    nft.arg("-f").arg(folder.path().join("loss.nft"));
    match net.output(nft) {
        Ok(output) if output.status.success() => {}
        _ => {
            skip(test, "nft cannot lose packets at random here (Debian: apt-get install nftables)");
            return None;
        }
    }
    // Each answer comes later than it might, by another time; one in twenty comes twice.
    let asked = AtomicU32::new(0);
    let _upstream = upstream_in(&net, "127.0.0.2:53", move |query, _| {
        let (name, _) = question(query).unwrap();
        let number = name.trim_start_matches('n').split('.').next().and_then(|number| number.parse().ok());
        let Some(number) = number else { return Vec::new() };
        let reply = answer(query, &[(&name, 300, Data::A(address_of(number)))]).unwrap();
        let asked = asked.fetch_add(1, Relaxed);
        let reply = Reply::now(reply).after(Duration::from_millis(u64::from(asked * 7 % 20)));
        if asked.is_multiple_of(20) { vec![reply.clone(), reply] } else { vec![reply] }
    });
    let text = format!(
        ". {{\n bind 127.0.0.1\n forward . 127.0.0.2 {{\n {options}\n }}\n prometheus 127.0.0.1:9153\n}}\n"
    );
    let scene = Scene::start_in(net, &text);
    let (next, resolved) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Relaxed);
                    if number >= NAMES {
                        return;
                    }
                    let options = Options { timeout: HANG, ..Options::default() };
                    let asked = scene.net.run(|| ask(SERVER, &format!("n{number}.test"), "A", &options));
                    let answer = asked.unwrap().unwrap();
                    if answer.rcode == "NOERROR" {
                        assert_eq!(answer.data(), [address_of(number).to_string()], "another name's answer");
                        resolved.fetch_add(1, Relaxed);
                    }
                }
            });
        }
    });
    Some((resolved.into_inner(), scene.metrics()))
}

#[test]
fn of_a_thousand_names_999_are_resolved_though_three_exchanges_in_ten_are_lost_and_none_is_wrong() {
    let test =
        "of_a_thousand_names_999_are_resolved_though_three_exchanges_in_ten_are_lost_and_none_is_wrong";
    let Some((resolved, metrics)) = resolve(test, "prefer_udp") else { return };
    assert!(resolved * 1_000 >= NAMES * 999, "{resolved} of {NAMES} names\n{}", metrics.0);
    assert!(metrics.sum("nodestub_upstream_resent_total", &[]) >= 100.0, "nothing was lost");
}

#[test]
fn by_tcp_as_many_are_resolved_and_none_is_wrong() {
    let Some((resolved, metrics)) = resolve("by_tcp_as_many_are_resolved_and_none_is_wrong", "force_tcp")
    else {
        return;
    };
    assert!(resolved * 1_000 >= NAMES * 999, "{resolved} of {NAMES} names\n{}", metrics.0);
}
