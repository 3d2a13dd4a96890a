//! The rules as nft text and as netlink messages are the same rules, as nft itself sees them.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise, in its helpers too")]

use std::net::IpAddr;
use std::num::NonZeroU16;
use std::process::Command;

use nodestub_dataplane::Desired;
use nodestub_dataplane::desired::{DEFAULT_DEVICE, MAX_ADDRESSES, TABLE};
use nodestub_dataplane::nftables::{self, Was};
use nodestub_lab::Netns;
use nodestub_lab::skip::can_make_namespaces;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn desired(addresses: &[IpAddr]) -> Desired {
    let dns = NonZeroU16::new(53).unwrap();
    Desired::new(addresses, DEFAULT_DEVICE, dns, NonZeroU16::new(8080)).unwrap()
}

#[test]
fn loads_as_text_and_lists_as_what_netlink_made() {
    const NAME: &str = "loads_as_text_and_lists_as_what_netlink_made";
    if !can_make_namespaces(NAME) {
        return;
    }
    if Command::new("nft").arg("--version").output().is_err() {
        nodestub_lab::skip(NAME, "nft is not installed");
        return;
    }
    let (local4, local6) = (ip("169.254.20.10"), ip("fd00:20::a"));
    let plain = desired(&[local4, local6]);
    let one_family = plain.clone().with_fallback(local6, ip("fd00:96::a")).unwrap();
    let both = one_family.clone().with_fallback(local4, ip("10.96.0.10")).unwrap();
    let services = [ip("10.96.0.10"), ip("fd00:96::a")];
    let intercepting = desired(&services).intercept(&services).unwrap();
    for wish in [plain, one_family, both.clone(), both.intercept(&services).unwrap(), intercepting] {
        let rules = wish.ruleset();
        let (by_netlink, by_text) = (Netns::new().unwrap(), Netns::new().unwrap());
        by_netlink.block_on(async || nftables::replace(&rules).await.unwrap()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("rules.nft");
        std::fs::write(&file, rules.to_string()).unwrap();
        let mut load = Command::new("nft");
        load.arg("-f").arg(&file);
        // Twice: the text replaces what is there.
        for _ in 0..2 {
            nft(&by_text, &load);
        }
        assert_eq!(list(&by_netlink), list(&by_text), "{rules}");
        // And what the text made is read back as ours.
        by_text.block_on(async || nftables::verify(&rules).await.unwrap()).unwrap();
    }
}

#[test]
fn takes_as_many_addresses_as_it_promises() {
    if !can_make_namespaces("takes_as_many_addresses_as_it_promises") {
        return;
    }
    let addresses: Vec<IpAddr> = (0..MAX_ADDRESSES).map(|n| ip(&format!("fd00:20::{}", n + 1))).collect();
    let wish = addresses
        .iter()
        .fold(desired(&addresses), |wish, address| wish.with_fallback(*address, ip("fd00:96::a")).unwrap());
    let rules = wish.ruleset();
    let net = Netns::new().unwrap();
    net.block_on(async || {
        nftables::replace(&rules).await.unwrap();
        nftables::replace(&rules).await.unwrap();
        // Read back whole: one rule that is not expected is noticed.
        let error = nftables::verify(&rules.without(0)).await.unwrap_err();
        assert!(matches!(error, nftables::Error::Differs(_)), "{error}");
    })
    .unwrap();
}

#[test]
fn leaves_alone_what_is_already_so() {
    if !can_make_namespaces("leaves_alone_what_is_already_so") {
        return;
    }
    let rules = desired(&[ip("169.254.20.10")]).ruleset();
    let net = Netns::new().unwrap();
    net.block_on(async || {
        assert_eq!(nftables::ensure(&rules).await.unwrap(), Was::Absent);
        assert_eq!(nftables::ensure(&rules).await.unwrap(), Was::Same);
        nftables::replace(&rules.without(1)).await.unwrap();
        assert_eq!(nftables::ensure(&rules).await.unwrap(), Was::Different);
        nftables::verify(&rules).await.unwrap();
    })
    .unwrap();
}

fn list(net: &Netns) -> String {
    let mut list = Command::new("nft");
    list.args(["list", "table", "inet", TABLE]);
    nft(net, &list)
}

fn nft(net: &Netns, command: &Command) -> String {
    let mut again = Command::new(command.get_program());
    again.args(command.get_args());
    let output = net.output(again).unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
