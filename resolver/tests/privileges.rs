//! Rights: who has which, seen from outside, on real processes; and that what needs them works with no more.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise, in its helpers too")]

mod common;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use common::{HANG, ip, patient, patient_tcp, socket};
use nodestub_lab::skip::{can_make_namespaces, skip};
use nodestub_lab::{Daemon, Netns, Signal, ask};
use tempfile::TempDir;

const LOCAL: &str = "169.254.20.10";
const TABLE: &str = "nodestub";
const USER: &str = "65532";
/// NET_ADMIN (12) and NET_BIND_SERVICE (10), as the kernel shows a set.
const KEPT: &str = "0000000000001400";
/// The threads that keep them.
const PRIVILEGED: [&str; 2] = ["node", "ports"];
const NONE: &str = "0000000000000000";

const COREFILE: &str = "\
.:53 {
    bind 169.254.20.10
    hosts {
        192.0.2.7 here.test
    }
}
";

/// A copy of the program that another user can read, with capabilities of its own, and a Corefile beside it.
struct Scene {
    net: Netns,
    folder: TempDir,
}

impl Scene {
    /// `None`: that cannot be had on this machine, and it has been said.
    fn new(test: &str, capabilities: Option<&str>) -> Option<Self> {
        if !can_make_namespaces(test) {
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let users = std::fs::read_to_string("/proc/self/uid_map").unwrap();
        if users.split_whitespace().nth(2) != Some("4294967295") {
            skip(test, "needs other users: run it as root, outside a user namespace");
            return None;
        }
        if rustix::fs::statvfs(folder.path()).unwrap().f_flag.contains(rustix::fs::StatVfsMountFlags::NOSUID)
        {
            skip(test, "capabilities of files do not count where temporary files are (nosuid): set TMPDIR");
            return None;
        }
        let scene = Self { net: Netns::new().unwrap(), folder };
        // By another process: a file that this one has open for writing could not be executed from another thread.
        let program = scene.program();
        done(Command::new("cp").arg(env!("CARGO_BIN_EXE_nodestub-resolver")).arg(&program));
        done(Command::new("chmod").arg("755").arg(scene.folder.path()).arg(&program));
        if let Some(capabilities) = capabilities {
            done(Command::new("setcap").arg(capabilities).arg(&program));
        }
        scene.write(COREFILE);
        Some(scene)
    }

    fn program(&self) -> PathBuf {
        self.folder.path().join("resolver")
    }

    fn corefile(&self) -> PathBuf {
        self.folder.path().join("Corefile")
    }

    fn write(&self, text: &str) {
        let fresh = self.folder.path().join("Corefile.new");
        std::fs::write(&fresh, text).unwrap();
        std::fs::rename(fresh, self.corefile()).unwrap();
    }

    /// As a container's runtime starts it: another user, `no_new_privs`, and nothing in any set but `bounding`, which is
    /// permitted as well until the program begins.
    fn as_user(&self, bounding: &str, arguments: &[&str]) -> Daemon {
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid", USER, "--regid", USER, "--clear-groups", "--no-new-privs", "--inh-caps=-all"])
            .arg(format!("--bounding-set=-all{bounding}"))
            .arg(self.program())
            .arg("-conf")
            .arg(self.corefile())
            .args(arguments);
        without_environment(&mut command);
        self.net.spawn(command).unwrap()
    }

    fn answers(&self, server: &str) {
        let server = SocketAddr::new(ip(server), 53);
        for options in [patient(), patient_tcp()] {
            let answer = self.net.run(|| ask(server, "here.test", "A", &options)).unwrap().unwrap();
            assert_eq!(answer.data(), ["192.0.2.7"]);
        }
    }

    fn has_table(&self) -> bool {
        self.net.nft_tables().unwrap().contains(&TABLE.to_owned())
    }
}

const BOTH: &str = ",+net_admin,+net_bind_service";
const ON_THE_NODE: [&str; 4] = ["-localip", LOCAL, "--fallback", "10.96.0.10"];

fn done(command: &mut Command) {
    assert!(command.status().unwrap().success(), "{command:?}");
}

fn without_environment(command: &mut Command) {
    for variable in ["NODESTUB_LOG", "NODESTUB_LOCAL_ADDRESS", "NODESTUB_CLUSTER_DOMAIN"] {
        command.env_remove(variable);
    }
}

fn wait(daemon: &Daemon, text: &str) -> String {
    daemon.wait_for_line(HANG, |line| line.contains(text)).unwrap()
}

/// What the kernel says of each thread: its name, and the fields of its status.
fn threads(daemon: &Daemon) -> Vec<(String, BTreeMap<String, String>)> {
    let folder = PathBuf::from(format!("/proc/{}/task", daemon.id()));
    let thread = |path: &Path| {
        let read = |file: &str| std::fs::read_to_string(path.join(file)).ok();
        let status = read("status")?;
        let fields = status.lines().filter_map(|line| line.split_once(":\t"));
        let fields = fields.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect();
        Some((read("comm")?.trim().to_owned(), fields))
    };
    // A thread that ends meanwhile is none.
    std::fs::read_dir(folder).unwrap().filter_map(|entry| thread(&entry.unwrap().path())).collect()
}

/// One thread has both capabilities, and nobody else has any.
fn assert_confined(daemon: &Daemon) {
    const EXPECTED: [&str; 4] = ["udp-0", "tokio-rt-worker", "watchdog", "signals"];
    let started = Instant::now();
    // A thread names itself, a moment after it began; the last of them begins when DNS is served.
    let threads = loop {
        let threads = threads(daemon);
        let names: Vec<_> = threads.iter().map(|(name, _)| name.as_str()).collect();
        // Until then it has the program's name, as the first of them has for good.
        let unnamed = names.iter().filter(|name| **name == "resolver").count();
        if EXPECTED.iter().all(|expected| names.contains(expected)) && unnamed <= 1 {
            break threads;
        }
        assert!(started.elapsed() < HANG, "of {EXPECTED:?} one is not among {names:?}");
        std::thread::sleep(Duration::from_millis(20));
    };
    let names: Vec<_> = threads.iter().map(|(name, _)| name.as_str()).collect();
    for privileged in PRIVILEGED {
        assert_eq!(names.iter().filter(|name| **name == privileged).count(), 1, "{names:?}");
    }
    for (name, fields) in &threads {
        let kept = if PRIVILEGED.contains(&name.as_str()) { KEPT } else { NONE };
        for (field, expected) in
            [("CapEff", kept), ("CapPrm", kept), ("CapInh", NONE), ("CapAmb", NONE), ("NoNewPrivs", "1")]
        {
            assert_eq!(fields[field], expected, "{field} of {name}");
        }
    }
}

#[test]
fn another_user_with_capabilities_of_the_file_does_all_that_a_node_needs_and_one_thread_has_them() {
    let test =
        "another_user_with_capabilities_of_the_file_does_all_that_a_node_needs_and_one_thread_has_them";
    let Some(scene) = Scene::new(test, Some("cap_net_admin,cap_net_bind_service=p")) else { return };
    let mut daemon = scene.as_user(BOTH, &ON_THE_NODE);
    wait(&daemon, "serving DNS");
    scene.answers(LOCAL);
    assert_confined(&daemon);
    assert!(scene.has_table());

    // What somebody takes away is put back.
    scene.net.delete_nft_table(TABLE).unwrap();
    wait(&daemon, "is in order again");
    assert!(scene.has_table());

    // A reload binds port 53 of an address that was not there at the start.
    scene.net.add_address("lo", ip("192.0.2.53"), 32).unwrap();
    scene.write(&COREFILE.replace("bind 169.254.20.10", "bind 169.254.20.10 192.0.2.53"));
    daemon.signal(Signal::HUP).unwrap();
    wait(&daemon, "the Corefile was reloaded");
    scene.answers("192.0.2.53");
    assert_confined(&daemon);
    assert!(daemon.terminate(HANG).unwrap().success());
}

#[test]
fn receive_buffers_go_beyond_the_systems_limit_where_the_right_to_it_is_there() {
    let test = "receive_buffers_go_beyond_the_systems_limit_where_the_right_to_it_is_there";
    let Some(scene) = Scene::new(test, Some("cap_net_admin,cap_net_bind_service=p")) else { return };
    let limit: usize =
        std::fs::read_to_string("/proc/sys/net/core/rmem_max").unwrap().trim().parse().unwrap();
    if limit >= 4 << 20 {
        return skip(test, "net.core.rmem_max is as large as what is asked for, so nothing would be shown");
    }
    let daemon = scene.as_user(BOTH, &ON_THE_NODE);
    wait(&daemon, "serving DNS");
    let mut command = Command::new("ss");
    command.args(["-lunmH", "sport", "=", ":53"]);
    let shown = String::from_utf8(scene.net.output(command).unwrap().stdout).unwrap();
    // The kernel doubles what is asked for, for its own bookkeeping.
    assert!(shown.contains(",rb8388608,"), "{shown}");
}

#[test]
fn hands_over_between_two_processes_of_that_user() {
    let Some(scene) = Scene::new(
        "hands_over_between_two_processes_of_that_user",
        Some("cap_net_admin,cap_net_bind_service=p"),
    ) else {
        return;
    };
    let mut first = scene.as_user(BOTH, &ON_THE_NODE);
    wait(&first, "serving DNS");
    let second = scene.as_user(BOTH, &ON_THE_NODE);
    wait(&second, "took over; the resolver before this one stands by");
    scene.answers(LOCAL);
    for daemon in [&first, &second] {
        assert_confined(daemon);
    }
    assert!(first.terminate(HANG).unwrap().success());
    scene.answers(LOCAL);
    scene.net.delete_nft_table(TABLE).unwrap();
    wait(&second, "is in order again");
}

#[test]
fn without_any_right_it_serves_what_needs_none_and_does_not_complain() {
    let Some(scene) = Scene::new("without_any_right_it_serves_what_needs_none_and_does_not_complain", None)
    else {
        return;
    };
    scene.write(&COREFILE.replace(".:53", ".:5353").replace(LOCAL, "127.0.0.1"));
    let mut daemon = scene.as_user("", &[]);
    wait(&daemon, "serving DNS");
    let answer =
        scene.net.run(|| ask(socket("127.0.0.1:5353"), "here.test", "A", &patient())).unwrap().unwrap();
    assert_eq!(answer.rcode, "NOERROR");
    assert!(daemon.terminate(HANG).unwrap().success());
    let complaints: Vec<_> =
        daemon.lines().into_iter().filter(|line| line.contains("WARN") || line.contains("ERROR")).collect();
    assert_eq!(complaints, Vec::<String>::new());
}

#[test]
fn file_capabilities_that_are_not_granted_do_not_keep_it_from_starting() {
    let test = "file_capabilities_that_are_not_granted_do_not_keep_it_from_starting";
    let Some(scene) = Scene::new(test, Some("cap_net_admin,cap_net_bind_service=p")) else { return };
    // The port is free for all, the address is there: only the rules are refused.
    scene.net.set_sysctl("net/ipv4/ip_unprivileged_port_start", "0").unwrap();
    scene.net.add_address("lo", ip(LOCAL), 32).unwrap();
    let daemon = scene.as_user("", &ON_THE_NODE);
    let said = wait(&daemon, "the node is not set up as it should be");
    assert!(said.contains("CAP_NET_ADMIN is missing"), "{said}");
    wait(&daemon, "serving DNS");
    scene.answers(LOCAL);
    assert!(!scene.has_table());
}

#[test]
fn a_port_that_is_refused_is_named_with_what_it_needs() {
    let Some(scene) = Scene::new("a_port_that_is_refused_is_named_with_what_it_needs", None) else { return };
    scene.net.add_address("lo", ip(LOCAL), 32).unwrap();
    let mut daemon = scene.as_user("", &[]);
    assert!(!daemon.wait(HANG).unwrap().success());
    let said = wait(&daemon, "cannot listen on 169.254.20.10:53");
    assert!(said.contains("Ports below 1024 need the capability NET_BIND_SERVICE"), "{said}");
}

#[test]
fn root_keeps_no_more_than_another_user() {
    let Some(scene) = Scene::new("root_keeps_no_more_than_another_user", None) else { return };
    let mut command = Command::new(scene.program());
    command.arg("-conf").arg(scene.corefile()).args(ON_THE_NODE);
    without_environment(&mut command);
    let daemon = scene.net.spawn(command).unwrap();
    wait(&daemon, "serving DNS");
    scene.answers(LOCAL);
    assert_confined(&daemon);
    for (name, fields) in threads(&daemon) {
        assert_eq!(fields["CapBnd"], NONE, "CapBnd of {name}");
    }
}
