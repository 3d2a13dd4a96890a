//! A Corefile's way into force: `check`, a start that does not happen, and reloads.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise, in its helpers too")]

mod common;

use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::path::Path;
use std::process::Output;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::{HANG, SERVER, Scene, binary, patient, patient_tcp, socket, upstream_in};
use nodestub_lab::skip::can_make_namespaces;
use nodestub_lab::upstream::zone;
use nodestub_lab::{Netns, Signal, ask};

fn hosts(address: &str, more: &str) -> String {
    format!(
        "test {{
    bind 127.0.0.1
    hosts {{
        {address} a.test
        reload 0
    }}
    prometheus 127.0.0.1:9153
    {more}
}}
"
    )
}

fn check(text: &str) -> (Output, String) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("Corefile");
    std::fs::write(&file, text).unwrap();
    let output = binary().arg("check").arg(&file).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output, said)
}

#[test]
fn check_says_yes_to_a_good_file_and_binds_nothing() {
    // Port 53 of this machine may be taken; nothing here needs it.
    let (output, said) = check(&hosts("192.0.2.1", "cache 30\nforward . 192.0.2.53"));
    assert!(output.status.success(), "{said}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("can be served"));
    assert_eq!(said, "");
}

#[test]
fn check_names_the_place_of_what_is_wrong_and_what_was_meant() {
    for (text, place, marked, suggestion) in [
        (". {\n    forwrd . 192.0.2.53\n}\n", ":2:5", "forwrd", "forward"),
        (". {\n    cache thirty {\n        sucess 1000\n    }\n}\n", ":3:9", "sucess", "success"),
        (". {\n    forward . 192.0.2.53 {\n        force_tpc\n    }\n}\n", ":3:9", "force_tpc", "force_tcp"),
        (". {\n    forward . 10.96.0.1O\n}\n", ":2:15", "10.96.0.1O", ""),
        (". {\n    bind 127.0.0.1\n", ":1:3", "{", ""),
        (". {\n    kubernetes cluster.local\n}\n", ":2:5", "kubernetes", ""),
        (". {\n    health :99999\n}\n", ":2:12", ":99999", ""),
        (". {\n    erratic\n}\n", ":2:5", "erratic", ""),
        (". {\n}\n. {\n}\n", ":3:1", ".", ""),
    ] {
        let (output, said) = check(text);
        assert_eq!(output.status.code(), Some(1), "{text}\n{said}");
        assert_eq!(output.stdout, b"", "{text}");
        assert!(said.contains(&format!("Corefile{place}")), "no place {place} in\n{said}");
        assert!(said.contains(suggestion), "no `{suggestion}` in\n{said}");
        // The line itself, and under it the marks, as many as the word has letters.
        let caret =
            said.lines().find(|line| line.contains('^')).unwrap_or_else(|| panic!("no caret in\n{said}"));
        assert_eq!(caret.matches('^').count(), marked.len(), "{said}");
        let line = said.lines().find(|line| line.contains(" | ") && line.contains(marked));
        assert!(line.is_some(), "the line is not shown in\n{said}");
        assert!(!said.contains('\u{1b}'), "escape codes though nobody looks: {said}");
    }
}

#[test]
fn check_of_a_file_that_is_not_there_says_so() {
    let output = binary().args(["check", "/nonexistent/Corefile"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("/nonexistent/Corefile") && said.contains("No such file"), "{said}");
}

#[test]
fn an_unknown_flag_is_an_error_with_a_status() {
    let output = binary().args(["-conf", "x", "-no-such-flag"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--no-such-flag"));
}

#[test]
fn a_bad_corefile_ends_the_start_before_anything_is_bound() {
    if !can_make_namespaces("a_bad_corefile_ends_the_start_before_anything_is_bound") {
        return;
    }
    for (text, expected) in [
        (". {\n    forwrd . 192.0.2.53\n}\n", "Corefile:2:5"),
        (". {\n    bind nosuchdevice0\n    forward . 192.0.2.53\n}\n", "nosuchdevice0"),
        (". {\n    forward . /nonexistent/resolv.conf\n}\n", "/nonexistent/resolv.conf"),
    ] {
        let net = Netns::new().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let corefile = folder.path().join("Corefile");
        std::fs::write(&corefile, text).unwrap();
        let mut command = common::resolver(&corefile);
        command.args(["-localip", "169.254.20.10"]);
        let output = net.output(command).unwrap();
        assert!(!output.status.success());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains(expected), "no `{expected}` in\n{said}");
        assert!(!said.contains("serving"), "{said}");
        assert_nothing_is_bound(&net);
    }
}

#[test]
fn a_start_that_cannot_bind_leaves_no_socket_behind() {
    if !can_make_namespaces("a_start_that_cannot_bind_leaves_no_socket_behind") {
        return;
    }
    let net = Netns::new().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let corefile = folder.path().join("Corefile");
    let taken = net.run(|| TcpListener::bind(SERVER).unwrap()).unwrap();
    std::fs::write(&corefile, hosts("192.0.2.1", "").replace("127.0.0.1\n", "169.254.20.10 127.0.0.1\n"))
        .unwrap();
    let mut command = common::resolver(&corefile);
    command.args(["-localip", "169.254.20.10"]);
    let output = net.output(command).unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("127.0.0.1:53"), "{said}");
    drop(taken);
    assert_nothing_is_bound(&net);
}

/// The ports can be had. Address and rules are there all the same: they are the first act, and stay.
fn assert_nothing_is_bound(net: &Netns) {
    net.run(|| {
        let any: SocketAddr = "[::]:53".parse().unwrap();
        UdpSocket::bind(any).unwrap();
        TcpListener::bind(any).unwrap();
    })
    .unwrap();
    let on_lo: Vec<_> = net.addresses("lo").unwrap().into_iter().map(|(address, _)| address).collect();
    let local: IpAddr = "169.254.20.10".parse().unwrap();
    assert!(on_lo.contains(&local) || net.addresses("nodestub").is_ok(), "{on_lo:?}");
    assert_eq!(net.nft_tables().unwrap(), ["nodestub"]);
}

#[test]
fn a_hang_up_signal_and_sigusr1_bring_a_new_corefile_into_force() {
    if !can_make_namespaces("a_hang_up_signal_and_sigusr1_bring_a_new_corefile_into_force") {
        return;
    }
    let mut scene = Scene::start(&hosts("192.0.2.1", "cache"));
    assert_eq!(scene.ask("a.test", "A").data(), ["192.0.2.1"]);
    let before = version(&scene);
    for (signal, address) in [(Signal::HUP, "192.0.2.2"), (Signal::USR1, "192.0.2.3")] {
        scene.write_corefile(&hosts(address, "cache"));
        scene.daemon.signal(signal).unwrap();
        until("the new file is in force", || scene.ask("a.test", "A").data() == [address]);
        // At once for all, not only for those who find nothing kept.
        for options in [patient(), patient_tcp()] {
            assert_eq!(scene.ask_with(SERVER, "a.test", "A", &options).data(), [address]);
        }
    }
    assert_ne!(version(&scene), before);
    assert_eq!(failed_reloads(&scene), 0.0);
}

#[test]
fn a_changed_file_is_noticed_by_itself() {
    if !can_make_namespaces("a_changed_file_is_noticed_by_itself") {
        return;
    }
    let scene = Scene::start(&hosts("192.0.2.1", "reload 2s 1s"));
    assert_eq!(scene.ask("a.test", "A").data(), ["192.0.2.1"]);
    scene.write_corefile(&hosts("192.0.2.2", "reload 2s 1s"));
    until("the new file is in force", || scene.ask("a.test", "A").data() == ["192.0.2.2"]);
    // A file that cannot be served changes nothing, and is counted.
    scene.write_corefile(&hosts("192.0.2.3", "reload 2s 1s\n nonsense"));
    until("the bad file is counted", || failed_reloads(&scene) > 0.0);
    assert_eq!(scene.ask("a.test", "A").data(), ["192.0.2.2"]);
    // And the next good one is taken.
    scene.write_corefile(&hosts("192.0.2.4", "reload 2s 1s"));
    until("the good file is in force", || scene.ask("a.test", "A").data() == ["192.0.2.4"]);
}

#[test]
fn a_corefile_that_cannot_be_served_is_refused_and_counted_while_the_last_good_one_stays() {
    if !can_make_namespaces(
        "a_corefile_that_cannot_be_served_is_refused_and_counted_while_the_last_good_one_stays",
    ) {
        return;
    }
    let net = Netns::new().unwrap();
    let _taken = net.run(|| TcpListener::bind("127.0.0.8:53").unwrap()).unwrap();
    let _taken_http = net.run(|| TcpListener::bind("127.0.0.8:9153").unwrap()).unwrap();
    let mut scene = Scene::start_in(net, &hosts("192.0.2.1", "ready 127.0.0.1:8181"));
    let version_before = version(&scene);
    let good = hosts("192.0.2.2", "ready 127.0.0.1:8181");
    let bad = [
        ("nonsense {".to_owned(), "Corefile:1:10"),
        (good.replace("hosts {", "hotss {"), "Corefile:3"),
        (good.replace("bind 127.0.0.1", "bind nosuchdevice0"), "nosuchdevice0"),
        // Nobody has this address; somebody else has these two.
        (good.replace("bind 127.0.0.1", "bind 127.0.0.1 198.51.100.1"), "198.51.100.1:53"),
        (good.replace("bind 127.0.0.1", "bind 127.0.0.1 127.0.0.8"), "127.0.0.8:53"),
        (good.replace("prometheus 127.0.0.1", "prometheus 127.0.0.8"), "127.0.0.8:9153"),
        (good.replace("ready", "forward . /nonexistent\n ready"), "/nonexistent"),
    ];
    for (number, (text, said)) in bad.iter().enumerate() {
        scene.write_corefile(text);
        scene.daemon.signal(Signal::HUP).unwrap();
        until("the refusal is counted", || failed_reloads(&scene) == (number + 1) as f64);
        scene.wait_for(said);
        for options in [patient(), patient_tcp()] {
            assert_eq!(scene.ask_with(SERVER, "a.test", "A", &options).data(), ["192.0.2.1"], "{text}");
        }
        assert_eq!(scene.get("127.0.0.1:8181", "/ready").0, 200, "{text}");
        assert_eq!(version(&scene), version_before, "{text}");
    }
    scene.write_corefile(&good);
    scene.daemon.signal(Signal::HUP).unwrap();
    until("the good file is in force", || scene.ask("a.test", "A").data() == ["192.0.2.2"]);
}

#[test]
fn a_reload_opens_new_addresses_and_closes_those_that_are_gone() {
    if !can_make_namespaces("a_reload_opens_new_addresses_and_closes_those_that_are_gone") {
        return;
    }
    let mut scene = Scene::start(&hosts("192.0.2.1", "health 127.0.0.1:8080"));
    let moved = hosts("192.0.2.2", "ready 127.0.0.1:8181").replace("bind 127.0.0.1", "bind 127.0.0.2");
    scene.write_corefile(&moved);
    scene.daemon.signal(Signal::HUP).unwrap();
    scene.wait_for("the Corefile was reloaded");
    for options in [patient(), patient_tcp()] {
        let found = scene.ask_with(socket("127.0.0.2:53"), "a.test", "A", &options);
        assert_eq!(found.data(), ["192.0.2.2"]);
    }
    assert_eq!(scene.get("127.0.0.1:8181", "/ready").0, 200);
    for gone in ["127.0.0.1:53", "127.0.0.1:8080"].map(socket) {
        until("the old socket is closed", || scene.net.run(|| TcpListener::bind(gone).is_ok()).unwrap());
    }
    until("the old socket is closed", || scene.net.run(|| UdpSocket::bind(SERVER).is_ok()).unwrap());
}

#[test]
fn a_reload_goes_from_all_addresses_to_one_and_back() {
    if !can_make_namespaces("a_reload_goes_from_all_addresses_to_one_and_back") {
        return;
    }
    let one = hosts("192.0.2.1", "");
    let all = hosts("192.0.2.2", "").replace("bind 127.0.0.1\n", "\n");
    let mut scene = Scene::start(&one);
    for (text, server, address) in [
        (&all, "127.0.0.9:53", "192.0.2.2"),
        (&one, "127.0.0.1:53", "192.0.2.1"),
        (&all, "127.0.0.9:53", "192.0.2.2"),
    ] {
        let reloads = reloads(&scene);
        scene.write_corefile(text);
        scene.daemon.signal(Signal::HUP).unwrap();
        until("the file is taken or refused", || {
            self::reloads(&scene) > reloads || failed_reloads(&scene) > 0.0
        });
        assert_eq!(failed_reloads(&scene), 0.0, "{}", scene.daemon.lines().join("\n"));
        for options in [patient(), patient_tcp()] {
            assert_eq!(scene.ask_with(socket(server), "a.test", "A", &options).data(), [address]);
        }
    }
}

#[test]
fn no_query_is_lost_by_twenty_reloads_under_load() {
    if !can_make_namespaces("no_query_is_lost_by_twenty_reloads_under_load") {
        return;
    }
    let net = Netns::new().unwrap();
    let names: Vec<String> = (0..50).map(|number| format!("n{number}.test.")).collect();
    let known: Vec<(&str, IpAddr)> =
        names.iter().map(|name| (name.as_str(), [192, 0, 2, 1].into())).collect();
    let _upstream = upstream_in(&net, "127.0.0.2:53", zone(300, &known));
    let _same = upstream_in(&net, "127.0.0.3:53", zone(300, &known));
    // The block changes, so what was kept is not used, and an address comes and goes.
    let corefile = |odd: bool| {
        let (upstream, more) = if odd { ("127.0.0.3", " 127.0.0.7") } else { ("127.0.0.2", "") };
        format!(
            ". {{\n bind 127.0.0.1{more}\n cache\n forward . {upstream}\n prometheus 127.0.0.1:9153\n}}\n"
        )
    };
    let mut scene = Scene::start_in(net, &corefile(false));
    let (stop, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    let (stop, answered, names) = (&stop, &answered, &names);
    // A lost query is a time-out here: nothing is asked twice.
    let client = move |number: usize| {
        let mut asked = number;
        while !stop.load(Ordering::SeqCst) {
            let options = if asked % 8 == 7 { patient_tcp() } else { patient() };
            let name = &names[asked % names.len()];
            let found = ask(SERVER, name, "A", &options).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!((found.rcode.as_str(), found.data()), ("NOERROR", vec!["192.0.2.1"]), "{name}");
            answered.fetch_add(1, Ordering::SeqCst);
            asked += 1;
        }
    };
    let net = scene.net.try_clone().unwrap();
    std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            net.run(|| {
                std::thread::scope(|scope| {
                    for number in 0..4 {
                        scope.spawn(move || client(number * 13));
                    }
                });
            })
            .unwrap();
        });
        // Ends the clients also where a reload fails.
        struct Stop<'a>(&'a AtomicBool);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::SeqCst);
            }
        }
        let stop = Stop(stop);
        for round in 1..=20 {
            let before = answered.load(Ordering::SeqCst);
            scene.write_corefile(&corefile(round % 2 == 1));
            scene.daemon.signal(Signal::HUP).unwrap();
            until("the reload is done and queries went on", || {
                (reloads(&scene) >= round && answered.load(Ordering::SeqCst) >= before + 100)
                    || load.is_finished()
            });
        }
        drop(stop);
    });
    assert_eq!(failed_reloads(&scene), 0.0);
    assert_eq!(scene.metrics().sum("coredns_panics_total", &[]), 0.0);
    assert!(answered.load(Ordering::SeqCst) >= 2000);
}

fn reloads(scene: &Scene) -> usize {
    scene.daemon.lines().iter().filter(|line| line.contains("the Corefile was reloaded")).count()
}

fn failed_reloads(scene: &Scene) -> f64 {
    scene.metrics().find("coredns_reload_failed_total", &[]).unwrap()
}

/// The line of metrics that tells Corefiles apart.
fn version(scene: &Scene) -> String {
    let page = scene.metrics().0;
    page.lines().find(|line| line.starts_with("coredns_reload_version_info{")).unwrap().to_owned()
}

/// Looks until it is so. The limit is for what never comes.
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + HANG;
    while !is_so() {
        assert!(Instant::now() < end, "{what}: never");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn the_manifests_corefile_checks_with_the_flags_that_fill_it_in() {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("corefile/tests/fixtures/nodelocaldns.Corefile");
    let run = |flags: &[&str]| {
        let mut command = binary();
        command.env("KUBE_DNS_UPSTREAM_SERVICE_HOST", "10.96.7.7").arg("check").arg(&fixture).args(flags);
        command.output().unwrap()
    };
    let filled = [
        "-localip",
        "169.254.20.10,10.96.0.10",
        "-upstreamsvc",
        "kube-dns-upstream",
        "--cluster-domain",
        "cluster.local",
    ];
    let output = run(&filled);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // Without the domain it is an error that names the flag.
    let output = run(&filled[..4]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--cluster-domain"));
}

#[test]
fn a_template_is_read_in_place_of_the_corefile_where_it_is_there() {
    if !can_make_namespaces("a_template_is_read_in_place_of_the_corefile_where_it_is_there") {
        return;
    }
    let net = Netns::new().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    std::fs::write(path("Corefile.base"), hosts("192.0.2.7", "cache")).unwrap();
    let mut command = common::resolver(&path("Corefile"));
    command.arg("-basecorefile").arg(path("Corefile.base"));
    command.arg("-pidfile").arg(path("pid")).args(["-metrics-listen-address", "127.0.0.1:9353"]);
    let daemon = net.spawn(command).unwrap();
    daemon.wait_for_line(HANG, |line| line.contains("serving DNS")).unwrap();
    let found = net.run(|| ask(SERVER, "a.test", "A", &patient())).unwrap().unwrap();
    assert_eq!(found.data(), ["192.0.2.7"]);
    let metrics = "127.0.0.1:9353".parse().unwrap();
    let (status, page) = net.run(|| common::get(metrics, "/metrics")).unwrap();
    assert_eq!(status, 200);
    assert!(page.contains("coredns_nodecache_setup_errors_total"));
    until("the process id is written", || path("pid").exists());
}

#[test]
fn a_file_without_reload_is_looked_at_when_the_flag_says_so() {
    if !can_make_namespaces("a_file_without_reload_is_looked_at_when_the_flag_says_so") {
        return;
    }
    let net = Netns::new().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let corefile = folder.path().join("Corefile");
    std::fs::write(&corefile, hosts("192.0.2.7", "")).unwrap();
    let mut command = common::resolver(&corefile);
    command.arg("-reloadwithsignal");
    let daemon = net.spawn(command).unwrap();
    daemon.wait_for_line(HANG, |line| line.contains("serving DNS")).unwrap();
    std::fs::write(&corefile, hosts("192.0.2.8", "")).unwrap();
    daemon.wait_for_line(HANG, |line| line.contains("was reloaded")).unwrap();
    let found = net.run(|| ask(SERVER, "a.test", "A", &patient())).unwrap().unwrap();
    assert_eq!(found.data(), ["192.0.2.8"]);
}
