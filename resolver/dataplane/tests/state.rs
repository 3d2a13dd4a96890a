//! What is in the kernel after applying, applying again, failing and removing.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise, in its helpers too")]

use std::net::IpAddr;
use std::num::NonZeroU16;

use nodestub_dataplane::desired::DEFAULT_DEVICE;
use nodestub_dataplane::{Applied, Desired, Error, Parts, Watch, apply, cleanup, link, nftables};
use nodestub_lab::Netns;
use nodestub_lab::conntrack::{TRACKING_TABLE, force_tracking};
use nodestub_lab::skip::can_make_namespaces;
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};

const LOCAL: [&str; 2] = ["169.254.20.10", "fd00:20::a"];

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn desired() -> Desired {
    let dns = NonZeroU16::new(53).unwrap();
    Desired::new(&LOCAL.map(ip), DEFAULT_DEVICE, dns, NonZeroU16::new(8080)).unwrap()
}

fn applied(net: &Netns) -> Applied {
    net.block_on(async || apply(&desired(), Parts::ALL).await.unwrap()).unwrap()
}

fn verify(net: &Netns, applied: &Applied) -> Result<(), Error> {
    net.block_on(async || applied.verify().await).unwrap()
}

fn remove(net: &Netns, applied: Applied) -> Result<(), Error> {
    net.block_on(async || applied.remove().await).unwrap()
}

/// The local addresses that a device carries, in the order of `LOCAL`.
fn carried(net: &Netns, device: &str) -> Vec<IpAddr> {
    let all = net.addresses(device).unwrap();
    LOCAL.map(ip).into_iter().filter(|local| all.iter().any(|(address, _)| address == local)).collect()
}

#[test]
fn puts_whole_prefixes_on_the_device_and_verifies() {
    if !can_make_namespaces("puts_whole_prefixes_on_the_device_and_verifies") {
        return;
    }
    let net = Netns::new().unwrap();
    let applied = applied(&net);
    verify(&net, &applied).unwrap();
    let addresses = net.addresses(applied.device().unwrap()).unwrap();
    assert!(addresses.contains(&(ip(LOCAL[0]), 32)), "{addresses:?}");
    assert!(addresses.contains(&(ip(LOCAL[1]), 128)), "{addresses:?}");
    // A kernel without type dummy carries them on lo, and says so by the device's name.
    assert!([DEFAULT_DEVICE, "lo"].contains(&applied.device().unwrap()));
}

#[test]
fn makes_a_dummy_device_and_removes_it_unless_others_use_it() {
    const NAME: &str = "makes_a_dummy_device_and_removes_it_unless_others_use_it";
    if !can_make_namespaces(NAME) {
        return;
    }
    let net = Netns::new().unwrap();
    let first = applied(&net);
    if first.device().unwrap() == "lo" {
        nodestub_lab::skip(NAME, "this kernel has no device type dummy");
        return;
    }
    assert_eq!(first.device().unwrap(), DEFAULT_DEVICE);
    remove(&net, first).unwrap();
    assert!(!devices(&net).contains(&DEFAULT_DEVICE.to_owned()));

    let second = applied(&net);
    net.add_address(DEFAULT_DEVICE, ip("192.0.2.77"), 32).unwrap();
    remove(&net, second).unwrap();
    assert!(devices(&net).contains(&DEFAULT_DEVICE.to_owned()));
}

#[test]
fn leaves_no_duplicates_when_applied_twice() {
    if !can_make_namespaces("leaves_no_duplicates_when_applied_twice") {
        return;
    }
    let net = Netns::new().unwrap();
    let first = applied(&net);
    let second = applied(&net);
    // `verify` compares the whole table: a rule too many is an error.
    verify(&net, &second).unwrap();
    let addresses = net.addresses(second.device().unwrap()).unwrap();
    for local in LOCAL.map(ip) {
        assert_eq!(addresses.iter().filter(|(address, _)| *address == local).count(), 1);
    }
    // The second adopted what the first made, as after a crash, and takes it away; to the first it is gone already.
    let device = second.device().unwrap().to_owned();
    remove(&net, second).unwrap();
    assert!(!devices(&net).contains(&device) || carried(&net, &device).is_empty());
    remove(&net, first).unwrap();
}

#[test]
fn leaves_nothing_when_removed_and_takes_what_is_already_gone() {
    if !can_make_namespaces("leaves_nothing_when_removed_and_takes_what_is_already_gone") {
        return;
    }
    let net = Netns::new().unwrap();
    let before = (net.addresses("lo").unwrap(), devices(&net));
    let first = applied(&net);
    let second = net.block_on(async || apply(&desired(), Parts::ALL).await.unwrap()).unwrap();
    remove(&net, first).unwrap();
    assert_eq!((net.addresses("lo").unwrap(), devices(&net)), before);
    // The table is gone as well: nothing of it can be verified, and deleting it again is no error.
    let gone = verify(&net, &second).unwrap_err();
    assert!(matches!(gone, Error::Rules(nftables::Error::Differs(_))), "{gone}");
    remove(&net, second).unwrap();
}

#[test]
fn leaves_tables_and_addresses_of_others_alone() {
    if !can_make_namespaces("leaves_tables_and_addresses_of_others_alone") {
        return;
    }
    let net = Netns::new().unwrap();
    force_tracking(&net).unwrap();
    let applied = applied(&net);
    let device = applied.device().unwrap().to_owned();
    let foreign = ip("192.0.2.77");
    net.add_address(&device, foreign, 32).unwrap();
    verify(&net, &applied).unwrap();
    remove(&net, applied).unwrap();
    assert!(net.addresses(&device).unwrap().contains(&(foreign, 32)));
    assert!(carried(&net, &device).is_empty());
    assert!(table_exists(&net, TRACKING_TABLE));
    assert!(!table_exists(&net, nodestub_dataplane::desired::TABLE));
}

#[test]
fn notices_a_rule_and_an_address_that_somebody_took_away() {
    if !can_make_namespaces("notices_a_rule_and_an_address_that_somebody_took_away") {
        return;
    }
    let net = Netns::new().unwrap();
    let applied = applied(&net);
    let rest = applied.ruleset().unwrap().without(3);
    net.block_on(async || nftables::replace(&rest).await.unwrap()).unwrap();
    let error = verify(&net, &applied).unwrap_err().to_string();
    let missing = applied.ruleset().unwrap().rules()[3].to_string();
    assert!(error.contains(&missing), "{missing} in {error}");
    net.block_on(async || nftables::replace(applied.ruleset().unwrap()).await.unwrap()).unwrap();
    verify(&net, &applied).unwrap();

    let second = Desired::new(&[ip(LOCAL[0])], DEFAULT_DEVICE, NonZeroU16::new(53).unwrap(), None).unwrap();
    net.block_on(async || {
        // Adopted by the second, taken away by the first: the second sees that.
        let second = link::apply(&second).await.unwrap();
        applied.remove().await.unwrap();
        let error = second.verify().await.unwrap_err();
        assert!(matches!(error, link::Error::Missing(_)), "{error}");
    })
    .unwrap();
}

#[test]
fn cleans_up_what_a_crashed_process_left_and_nothing_of_others() {
    if !can_make_namespaces("cleans_up_what_a_crashed_process_left_and_nothing_of_others") {
        return;
    }
    let net = Netns::new().unwrap();
    force_tracking(&net).unwrap();
    // Of somebody else: an address on lo without our mark, another with full prefix.
    let foreign = [ip("192.0.2.77"), ip("2001:db8::77")];
    net.add_address("lo", foreign[0], 32).unwrap();
    net.add_address("lo", foreign[1], 128).unwrap();
    let before = (net.addresses("lo").unwrap(), devices(&net));
    let nothing = net.block_on(async || cleanup().await.unwrap()).unwrap();
    assert_eq!(nothing.to_string(), "there was nothing to remove");

    let device = {
        // Dropped: the process is gone, what it made is not.
        let crashed = applied(&net);
        crashed.device().unwrap().to_owned()
    };
    assert_eq!(carried(&net, &device), LOCAL.map(ip));
    let removed = net.block_on(async || cleanup().await.unwrap()).unwrap();
    assert!(removed.rules);
    let text = removed.to_string();
    for local in LOCAL {
        assert!(text.contains(&format!("{local} from {device}")), "{text}");
    }
    assert_eq!((net.addresses("lo").unwrap(), devices(&net)), before);
    assert!(table_exists(&net, TRACKING_TABLE));
    assert!(!table_exists(&net, nodestub_dataplane::desired::TABLE));
}

#[test]
fn takes_away_a_former_wish_and_adopts_what_is_still_wished() {
    if !can_make_namespaces("takes_away_a_former_wish_and_adopts_what_is_still_wished") {
        return;
    }
    let net = Netns::new().unwrap();
    let crashed = applied(&net);
    let device = crashed.device().unwrap().to_owned();
    drop(crashed);
    let dns = NonZeroU16::new(53).unwrap();
    let other = Desired::new(&[ip(LOCAL[1]), ip("169.254.20.99")], DEFAULT_DEVICE, dns, None).unwrap();
    let second = net.block_on(async || apply(&other, Parts::ALL).await.unwrap()).unwrap();
    verify(&net, &second).unwrap();
    assert_eq!(carried(&net, &device), [ip(LOCAL[1])]);
    // Adopted, so it goes with the rest.
    remove(&net, second).unwrap();
    assert!(!devices(&net).contains(&device) || carried(&net, &device).is_empty());
}

#[test]
fn leaves_an_address_in_place_that_it_found_without_its_mark() {
    const NAME: &str = "leaves_an_address_in_place_that_it_found_without_its_mark";
    if !can_make_namespaces(NAME) {
        return;
    }
    let net = Netns::new().unwrap();
    let probe = applied(&net);
    if probe.device().unwrap() != "lo" {
        nodestub_lab::skip(NAME, "this kernel has dummy devices; the test is about lo");
        return;
    }
    remove(&net, probe).unwrap();
    net.add_address("lo", ip(LOCAL[0]), 32).unwrap();
    net.add_address("lo", ip(LOCAL[1]), 128).unwrap();
    let applied = applied(&net);
    verify(&net, &applied).unwrap();
    remove(&net, applied).unwrap();
    assert_eq!(carried(&net, "lo"), LOCAL.map(ip));
    let removed = net.block_on(async || cleanup().await.unwrap()).unwrap();
    assert_eq!(removed.link, link::Swept::default());
    assert_eq!(carried(&net, "lo"), LOCAL.map(ip));
}

#[test]
fn keeps_what_a_former_process_left_when_a_new_wish_fails() {
    if !can_make_namespaces("keeps_what_a_former_process_left_when_a_new_wish_fails") {
        return;
    }
    let (net, peer) = (Netns::new().unwrap(), Netns::new().unwrap());
    let former = applied(&net);
    let device = former.device().unwrap().to_owned();
    drop(former);
    net.join("nodelocaldns", &peer, "eth0").unwrap();
    net.add_address("nodelocaldns", ip("fd00:20::b"), 128).unwrap();
    let more: Vec<IpAddr> = LOCAL.into_iter().chain(["169.254.20.99", "fd00:20::b"]).map(ip).collect();
    let more = Desired::new(&more, DEFAULT_DEVICE, NonZeroU16::new(53).unwrap(), None).unwrap();
    let error = net.block_on(async || apply(&more, Parts::ALL).await.unwrap_err()).unwrap();
    assert!(matches!(error, Error::Link(link::Error::Taken { .. })), "{error}");
    assert_eq!(carried(&net, &device), LOCAL.map(ip));
    assert!(!net.addresses(&device).unwrap().contains(&(ip("169.254.20.99"), 32)));
    assert!(table_exists(&net, nodestub_dataplane::desired::TABLE));
}

#[test]
fn says_who_stole_an_address_and_cannot_repair_that() {
    if !can_make_namespaces("says_who_stole_an_address_and_cannot_repair_that") {
        return;
    }
    let (net, peer) = (Netns::new().unwrap(), Netns::new().unwrap());
    let mut applied = applied(&net);
    net.join("kube-ipvs0", &peer, "eth0").unwrap();
    net.add_address("kube-ipvs0", ip(LOCAL[1]), 128).unwrap();
    let error = net.block_on(async || applied.repair().await.unwrap_err()).unwrap().to_string();
    assert!(error.contains("fd00:20::a is already on device kube-ipvs0"), "{error}");
    assert!(error.contains("kube-proxy in IPVS mode"), "{error}");
    assert_eq!(carried(&net, "kube-ipvs0"), [ip(LOCAL[1])]);
}

#[test]
fn hears_of_every_kind_of_damage_and_repairs_it() {
    if !can_make_namespaces("hears_of_every_kind_of_damage_and_repairs_it") {
        return;
    }
    let net = Netns::new().unwrap();
    net.block_on(async || {
        let mut applied = apply(&desired(), Parts::ALL).await.unwrap();
        let mut watch = Watch::open().unwrap();
        let rules = applied.ruleset().unwrap().clone();

        // A table gone, a rule gone; each heard while waiting, and repaired.
        let (heard, ()) = tokio::join!(watch.broken(&applied), async {
            assert!(nftables::delete().await.unwrap());
        });
        assert!(matches!(heard.unwrap(), Error::Rules(nftables::Error::Differs(_))));
        applied.repair().await.unwrap();
        let less = rules.without(2);
        let (heard, ()) = tokio::join!(watch.broken(&applied), async {
            nftables::replace(&less).await.unwrap();
        });
        assert!(heard.unwrap().to_string().contains(&rules.rules()[2].to_string()));
        applied.repair().await.unwrap();

        // An address gone, of each family: another wish takes it away.
        for (kept, gone) in [(LOCAL[0], LOCAL[1]), (LOCAL[1], LOCAL[0])] {
            let dns = NonZeroU16::new(53).unwrap();
            let other = Desired::new(&[ip(kept)], DEFAULT_DEVICE, dns, None).unwrap();
            let (heard, _link) =
                tokio::join!(watch.broken(&applied), async { link::apply(&other).await.unwrap() });
            let text = heard.unwrap().to_string();
            assert!(text.contains(&format!("missing: address {gone}")), "{text}");
            applied.repair().await.unwrap();
        }

        // Damage while nobody waited is found by the next call.
        nftables::delete().await.unwrap();
        watch.broken(&applied).await.unwrap();
        applied.repair().await.unwrap();
        applied.verify().await.unwrap();
        applied.remove().await.unwrap();
    })
    .unwrap();
}

#[test]
fn hears_of_a_device_that_goes_down() {
    if !can_make_namespaces("hears_of_a_device_that_goes_down") {
        return;
    }
    let net = Netns::new().unwrap();
    let mut applied = applied(&net);
    let device = applied.device().unwrap().to_owned();
    net.block_on(async || {
        let mut watch = Watch::open().unwrap();
        let (heard, ()) = tokio::join!(watch.broken(&applied), async {
            let (connection, handle, _) = rtnetlink::new_connection().unwrap();
            let connection = tokio::spawn(connection);
            let down = rtnetlink::LinkUnspec::new_with_name(&device).down().build();
            handle.link().set(down).execute().await.unwrap();
            connection.abort();
        });
        let text = heard.unwrap().to_string();
        assert!(text.contains("down") || text.contains("missing"), "{text}");
        applied.repair().await.unwrap();
        applied.verify().await.unwrap();
    })
    .unwrap();
}

#[test]
fn refuses_an_address_that_another_device_carries_and_leaves_nothing() {
    if !can_make_namespaces("refuses_an_address_that_another_device_carries_and_leaves_nothing") {
        return;
    }
    let (net, peer) = (Netns::new().unwrap(), Netns::new().unwrap());
    net.join("nodelocaldns", &peer, "eth0").unwrap();
    net.add_address("nodelocaldns", ip(LOCAL[1]), 128).unwrap();
    let error = net.block_on(async || apply(&desired(), Parts::ALL).await.unwrap_err()).unwrap();
    let text = error.to_string();
    assert!(text.contains("fd00:20::a is already on device nodelocaldns"), "{text}");
    assert!(text.contains("another node cache"), "{text}");
    assert!(!table_exists(&net, nodestub_dataplane::desired::TABLE));
    assert!(carried(&net, "lo").is_empty());
    assert_eq!(carried(&net, "nodelocaldns"), [ip(LOCAL[1])]);
}

#[test]
fn refuses_a_device_of_another_type_under_its_name() {
    if !can_make_namespaces("refuses_a_device_of_another_type_under_its_name") {
        return;
    }
    let (net, peer) = (Netns::new().unwrap(), Netns::new().unwrap());
    net.join(DEFAULT_DEVICE, &peer, "eth0").unwrap();
    let error = net.block_on(async || apply(&desired(), Parts::ALL).await.unwrap_err()).unwrap();
    assert!(
        matches!(&error, Error::Link(link::Error::ForeignDevice(name)) if name == DEFAULT_DEVICE),
        "{error}"
    );
    assert!(devices(&net).contains(&DEFAULT_DEVICE.to_owned()));
}

#[test]
fn says_that_net_admin_is_missing() {
    if !can_make_namespaces("says_that_net_admin_is_missing") {
        return;
    }
    let net = Netns::new().unwrap();
    let refusals = net
        .run(|| {
            // Of this thread only; it ends with the closure.
            let none = CapabilitySet::empty();
            set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })
                .unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let whole = apply(&desired(), Parts::ALL).await.unwrap_err();
                let link = link::apply(&desired()).await.unwrap_err();
                [whole, Error::Link(link)]
            })
        })
        .unwrap();
    for error in refusals {
        assert!(error.to_string().contains("CAP_NET_ADMIN is missing"), "{error}");
        assert!(error.to_string().contains("Operation not permitted"), "{error}");
        assert!(std::error::Error::source(&error).is_some());
    }
    assert!(carried(&net, "lo").is_empty());
}

fn devices(net: &Netns) -> Vec<String> {
    let text = net.run(|| std::fs::read_to_string("/proc/thread-self/net/dev").unwrap()).unwrap();
    text.lines()
        .skip(2)
        .filter_map(|line| line.split(':').next())
        .map(|name| name.trim().to_owned())
        .collect()
}

fn table_exists(net: &Netns, name: &str) -> bool {
    net.nft_tables().unwrap().iter().any(|table| table == name)
}
