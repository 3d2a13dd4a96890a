//! The end: SIGTERM never hangs, whatever else does; a second one ends the process at once; and after any end another
//! start finds everything in its place, once.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise, in its helpers too")]

#[path = "../common/mod.rs"]
mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use common::{HANG, SERVER, Scene, binary, ip, patient, upstream_in};
use nodestub_lab::skip::{can_make_namespaces, skip};
use nodestub_lab::{Daemon, Netns, Signal, Transport, ask};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use tempfile::TempDir;

const LOCAL: &str = "169.254.20.10";

const COREFILE: &str = "\
.:53 {
    bind 169.254.20.10
    hosts {
        192.0.2.7 here.test
    }
}
";

fn wait(daemon: &Daemon, text: &str) {
    daemon.wait_for_line(HANG, |line| line.contains(text)).unwrap();
}

/// A node: a namespace, and a folder with a Corefile.
struct Node {
    net: Netns,
    folder: TempDir,
}

impl Node {
    fn new(corefile: &str) -> Self {
        let node = Self { net: Netns::new().unwrap(), folder: tempfile::tempdir().unwrap() };
        std::fs::write(node.path("Corefile"), corefile).unwrap();
        node
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self) -> Command {
        let mut command = binary();
        command.args(["-localip", LOCAL, "--fallback", "10.96.0.10", "-conf"]).arg(self.path("Corefile"));
        command
    }

    fn start(&self) -> Daemon {
        let daemon = self.net.spawn(self.command()).unwrap();
        wait(&daemon, "serving DNS");
        daemon
    }

    /// Rules and addresses as the kernel shows them, without what counts.
    fn state(&self) -> String {
        let shown = |program: &str, arguments: &[&str]| {
            let mut command = Command::new(program);
            command.args(arguments);
            String::from_utf8(self.net.output(command).unwrap().stdout).unwrap()
        };
        let rules = shown("nft", &["--stateless", "list", "ruleset"]);
        let addresses = shown("ip", &["-oneline", "address"]);
        // The pair of devices that fail-open is tried by comes a moment after the start.
        let addresses = addresses.lines().filter(|line| !line.contains("nodestub-hear"));
        let addresses = addresses.collect::<Vec<_>>().join("\n");
        assert!(rules.contains("table inet nodestub") && addresses.contains(LOCAL), "{rules}\n{addresses}");
        format!("{rules}\n{addresses}")
    }

    fn answers(&self) {
        self.answers_at(LOCAL);
    }

    fn answers_at(&self, address: &str) {
        let server = SocketAddr::new(ip(address), 53);
        let answer = self.net.run(|| ask(server, "here.test", "A", &patient())).unwrap().unwrap();
        assert_eq!(answer.data(), ["192.0.2.7"]);
    }
}

fn can_run(test: &str, programs: &[&str]) -> bool {
    for program in programs {
        if Command::new(program).arg("--version").output().is_err() {
            skip(test, &format!("the program {program} is missing"));
            return false;
        }
    }
    can_make_namespaces(test)
}

/// A netlink socket's message hangs in this command while the returned file is there.
fn with_hanging_netlink(node: &Node, command: &mut Command) -> PathBuf {
    let (library, hangs) = (node.path("netlink_hangs.so"), node.path("hangs"));
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/ending/netlink_hangs.c");
    let built =
        Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(source).arg("-ldl").status();
    assert!(built.unwrap().success());
    command.env("LD_PRELOAD", library).env("NETLINK_HANGS", &hangs);
    hangs
}

#[test]
fn sigterm_ends_a_process_at_once_that_waits_for_its_corefile() {
    if !can_run("sigterm_ends_a_process_at_once_that_waits_for_its_corefile", &[]) {
        return;
    }
    let node = Node::new("");
    std::fs::remove_file(node.path("Corefile")).unwrap();
    // Reading it waits for somebody who writes.
    assert!(Command::new("mkfifo").arg(node.path("Corefile")).status().unwrap().success());
    let mut daemon = node.net.spawn(node.command()).unwrap();
    wait(&daemon, "the node is set up");
    assert!(daemon.terminate(HANG).unwrap().success());
    wait(&daemon, "asked to stop before serving began");
}

#[test]
fn sigterm_ends_process_1_of_a_container_that_waits_for_its_corefile() {
    if !can_run("sigterm_ends_process_1_of_a_container_that_waits_for_its_corefile", &["unshare"]) {
        return;
    }
    let node = Node::new("");
    std::fs::remove_file(node.path("Corefile")).unwrap();
    assert!(Command::new("mkfifo").arg(node.path("Corefile")).status().unwrap().success());
    // The kernel keeps signals from a process 1 that has not asked for them.
    let inner = node.command();
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--kill-child"]).arg(inner.get_program()).args(inner.get_args());
    let mut outer = node.net.spawn(command).unwrap();
    wait(&outer, "the node is set up");
    let children = format!("/proc/{0}/task/{0}/children", outer.id());
    let first = std::fs::read_to_string(children).unwrap();
    assert!(Command::new("kill").args(["-TERM", first.trim()]).status().unwrap().success());
    assert!(outer.wait(HANG).unwrap().success());
}

#[test]
fn sigterm_ends_a_process_that_waits_for_netlink_at_its_start() {
    if !can_run("sigterm_ends_a_process_that_waits_for_netlink_at_its_start", &["cc"]) {
        return;
    }
    let node = Node::new(COREFILE);
    let mut command = node.command();
    std::fs::write(with_hanging_netlink(&node, &mut command), "").unwrap();
    let mut daemon = node.net.spawn(command).unwrap();
    // The thread that takes signals is there before anything is set up.
    let threads = format!("/proc/{}/task", daemon.id());
    let named = |name: &str| {
        let comm = |entry: std::io::Result<std::fs::DirEntry>| {
            std::fs::read_to_string(entry.ok()?.path().join("comm")).ok()
        };
        std::fs::read_dir(&threads).unwrap().filter_map(comm).any(|found| found.trim() == name)
    };
    while !named("signals") {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(daemon.terminate(HANG).unwrap().success());
    assert!(!daemon.lines().iter().any(|line| line.contains("the node is set up")));
}

#[test]
fn a_kernel_that_does_not_answer_netlink_costs_neither_answers_nor_the_end() {
    if !can_run("a_kernel_that_does_not_answer_netlink_costs_neither_answers_nor_the_end", &["cc"]) {
        return;
    }
    let node = Node::new(COREFILE);
    let mut command = node.command();
    let hangs = with_hanging_netlink(&node, &mut command);
    let mut daemon = node.net.spawn(command).unwrap();
    wait(&daemon, "serving DNS");
    std::fs::write(&hangs, "").unwrap();
    // It is told, looks, and waits.
    node.net.delete_nft_table("nodestub").unwrap();
    node.answers();
    // Ports are bound by another thread than the one that waits.
    std::fs::write(node.path("Corefile"), COREFILE.replace(LOCAL, "169.254.20.10 127.0.0.9")).unwrap();
    daemon.signal(Signal::HUP).unwrap();
    wait(&daemon, "the Corefile was reloaded");
    node.answers_at("127.0.0.9");
    node.answers();
    assert!(daemon.terminate(HANG).unwrap().success(), "{}", daemon.lines().join("\n"));
}

#[test]
fn serves_at_an_address_that_is_there_while_netlink_hangs_from_the_start_and_sets_up_the_rest_later() {
    let test =
        "serves_at_an_address_that_is_there_while_netlink_hangs_from_the_start_and_sets_up_the_rest_later";
    if !can_run(test, &["cc"]) {
        return;
    }
    let node = Node::new(&COREFILE.replace("    hosts", "    prometheus 127.0.0.1:9153\n    hosts"));
    node.net.add_address("lo", ip(LOCAL), 32).unwrap();
    let mut command = node.command();
    let hangs = with_hanging_netlink(&node, &mut command);
    std::fs::write(&hangs, "").unwrap();
    let mut daemon = node.net.spawn(command).unwrap();
    wait(&daemon, "the kernel does not answer about the address and the rules");
    wait(&daemon, "serving DNS");
    node.answers();
    let address = common::socket("127.0.0.1:9153");
    let page = common::Metrics(node.net.run(|| common::get(address, "/metrics")).unwrap().1);
    let counted = page.sum("coredns_nodecache_setup_errors_total", &[("errortype", "interface_add")]);
    assert_eq!(counted, 1.0);
    assert!(node.net.nft_tables().unwrap().is_empty());
    std::fs::remove_file(&hangs).unwrap();
    wait(&daemon, "the node is set up");
    assert!(node.net.nft_tables().unwrap().contains(&"nodestub".to_owned()));
    // And it is kept so.
    node.net.delete_nft_table("nodestub").unwrap();
    wait(&daemon, "is in order again");
    node.answers();
    assert!(daemon.terminate(HANG).unwrap().success());
}

#[test]
fn waits_for_its_address_where_netlink_hangs_from_the_start_and_none_is_there() {
    if !can_run("waits_for_its_address_where_netlink_hangs_from_the_start_and_none_is_there", &["cc"]) {
        return;
    }
    let node = Node::new(COREFILE);
    let mut command = node.command();
    let hangs = with_hanging_netlink(&node, &mut command);
    std::fs::write(&hangs, "").unwrap();
    let daemon = node.net.spawn(command).unwrap();
    wait(&daemon, "the kernel does not answer about the address and the rules");
    // In this time it would bind, and fail, if it did not wait.
    std::thread::sleep(Duration::from_secs(2));
    std::fs::remove_file(&hangs).unwrap();
    wait(&daemon, "the node is set up");
    wait(&daemon, "serving DNS");
    node.answers();
}

/// A daemon that serves, and whose log has no room for another line: whoever writes one waits for ever.
fn with_a_full_log(node: &Node) -> (Daemon, std::fs::File) {
    assert!(Command::new("mkfifo").arg(node.path("log")).status().unwrap().success());
    let mut log = std::fs::OpenOptions::new().read(true).write(true).open(node.path("log")).unwrap();
    let inner = node.command();
    let mut command = Command::new("sh");
    command.args(["-c", "exec \"$@\" 2> \"$0\""]).arg(node.path("log"));
    command.arg(inner.get_program()).args(inner.get_args());
    let daemon = node.net.spawn(command).unwrap();
    let (mut said, mut some) = (String::new(), [0; 4096]);
    while !said.contains("serving DNS") {
        let length = log.read(&mut some).unwrap();
        said.push_str(&String::from_utf8_lossy(some.get(..length).unwrap()));
    }
    // A description of its own, so that only this end does not wait.
    let flags = rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::NONBLOCK;
    let full = rustix::fs::open(node.path("log"), flags, rustix::fs::Mode::empty()).unwrap();
    for size in [4096, 1] {
        while rustix::io::write(&full, vec![b'x'; size].as_slice()).is_ok() {}
    }
    (daemon, log)
}

#[test]
fn sigterm_ends_within_its_limit_a_process_that_waits_for_a_reader_of_its_log() {
    if !can_run("sigterm_ends_within_its_limit_a_process_that_waits_for_a_reader_of_its_log", &[]) {
        return;
    }
    let node = Node::new(COREFILE);
    let (mut daemon, _log) = with_a_full_log(&node);
    daemon.signal(Signal::TERM).unwrap();
    // Its limit is 35 s; then it says so by its status, as it cannot by its log.
    assert_eq!(daemon.wait(HANG + Duration::from_secs(35)).unwrap().code(), Some(75));
    node.start().terminate(HANG).unwrap();
}

#[test]
fn a_second_sigterm_ends_a_process_that_waits_for_a_reader_of_its_log() {
    if !can_run("a_second_sigterm_ends_a_process_that_waits_for_a_reader_of_its_log", &[]) {
        return;
    }
    let node = Node::new(COREFILE);
    let (mut daemon, _log) = with_a_full_log(&node);
    // Two of a kind that wait are one.
    daemon.signal(Signal::TERM).unwrap();
    daemon.signal(Signal::INT).unwrap();
    // Not by its limit, which has another status.
    assert_eq!(daemon.wait(HANG).unwrap().code(), Some(0));
}

#[test]
fn sigterm_ends_it_with_clients_that_hold_connections_and_an_upstream_that_never_answers() {
    let test = "sigterm_ends_it_with_clients_that_hold_connections_and_an_upstream_that_never_answers";
    if !can_run(test, &[]) {
        return;
    }
    let net = Netns::new().unwrap();
    let silent = upstream_in(&net, "127.0.0.1:5300", |_, _: Transport| Vec::new());
    let mut scene = Scene::start_in(net, ".:53 {\n    bind 127.0.0.1\n    forward . 127.0.0.1:5300\n}\n");
    let connections: Vec<TcpStream> =
        (0..20).map(|_| scene.net.run(|| TcpStream::connect(SERVER).unwrap()).unwrap()).collect();
    let question = nodestub_lab::dns::query("never.test", "A", &patient()).unwrap();
    let length = u16::try_from(question.len()).unwrap().to_be_bytes();
    for (index, mut connection) in connections.iter().enumerate() {
        // A half of them in the midst of a question.
        let until = if index % 2 == 0 { question.len() } else { question.len() / 2 };
        connection.write_all(&length).unwrap();
        connection.write_all(question.get(..until).unwrap()).unwrap();
    }
    while silent.received().is_empty() {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(scene.daemon.terminate(HANG).unwrap().success(), "{}", scene.daemon.lines().join("\n"));
    drop(connections);
}

#[test]
fn a_second_sigterm_ends_it_at_once() {
    if !can_run("a_second_sigterm_ends_it_at_once", &[]) {
        return;
    }
    let corefile = ".:53 {\n    bind 127.0.0.1\n    health 127.0.0.1:8080 {\n        lameduck 1h\n    }\n    hosts {\n    }\n}\n";
    let mut scene = Scene::start(corefile);
    scene.daemon.signal(Signal::TERM).unwrap();
    scene.wait_for("stopping");
    assert_eq!(scene.daemon.try_wait().unwrap(), None);
    assert!(scene.daemon.terminate(HANG).unwrap().success());
    scene.wait_for("asked to stop once more");
}

#[test]
fn sigterm_in_the_midst_of_a_handover_ends_who_gives_and_who_takes() {
    if !can_run("sigterm_in_the_midst_of_a_handover_ends_who_gives_and_who_takes", &[]) {
        return;
    }
    let node = Node::new(COREFILE);
    let name = SocketAddrUnix::new_abstract_name(format!("nodestub/handover/{LOCAL}:53").as_bytes()).unwrap();
    let unix =
        || socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();

    // A newcomer that is greeted, gets the cache and all sockets, and goes no further.
    let mut giving = node.start();
    let line = node.net.run(unix).unwrap();
    node.net.run(|| connect(&line, &name).unwrap()).unwrap();
    let say = |bytes: &[u8]| rustix::net::send(&line, bytes, rustix::net::SendFlags::NOSIGNAL).unwrap();
    // Hello: protocol 1, a version, started at the end of time, no cache format that is known. Then: ready.
    say(&[&b"\x01NODESTUB\x00\x01\x059.9.9"[..], &[0xff; 8], &[0xff; 2]].concat());
    say(&[6]);
    wait(&giving, "handing over");
    assert!(giving.terminate(HANG).unwrap().success(), "{}", giving.lines().join("\n"));
    drop(line);

    // One that serves, and never greets back.
    let silent = node.net.run(unix).unwrap();
    node.net
        .run(|| {
            rustix::net::bind(&silent, &name).unwrap();
            rustix::net::listen(&silent, 8).unwrap();
        })
        .unwrap();
    let mut taking = node.net.spawn(node.command()).unwrap();
    let line = node.net.run(|| rustix::net::accept(&silent).unwrap()).unwrap();
    assert!(taking.terminate(HANG).unwrap().success(), "{}", taking.lines().join("\n"));
    drop(line);
}

#[test]
fn after_any_end_a_start_serves_and_finds_the_same_rules_and_address_once() {
    let test = "after_any_end_a_start_serves_and_finds_the_same_rules_and_address_once";
    if !can_run(test, &["nft"]) {
        return;
    }
    let node = Node::new(COREFILE);
    drop(node.start());
    let once = node.state();
    // Not SIGQUIT: a shell that runs this in the background has it ignored.
    for end in [Signal::TERM, Signal::KILL, Signal::ABORT, Signal::INT] {
        let mut daemon = node.start();
        node.answers();
        assert_eq!(node.state(), once);
        daemon.signal(end).unwrap();
        daemon.wait(HANG).unwrap();
        assert_eq!(node.state(), once, "after {end:?}");
    }
    // The watchdog's.
    let mut daemon = node.start();
    let nft = |rules: &str| {
        let mut command = Command::new("nft");
        command.arg(rules);
        assert!(node.net.output(command).unwrap().status.success());
    };
    nft("table inet deaf { chain in { type filter hook input priority 0; udp dport 53 drop; }; }");
    let end = daemon.wait(HANG).unwrap_or_else(|error| panic!("{error}\n{}", node.state()));
    assert_eq!(end.code(), Some(70));
    nft("delete table inet deaf");
    assert_eq!(node.state(), once);
    let _last = node.start();
    node.answers();
}
