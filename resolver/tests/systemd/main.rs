//! The unit of manifests/systemd under a real systemd: it starts as a user of its own with two capabilities, and an upgrade
//! by the README's commands loses nothing.
#![forbid(unsafe_code)]
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test may stop at the first surprise, in its helpers too"
)]
#![allow(dead_code, clippy::allow_attributes, reason = "the load is shared with the tests of the handover")]

#[path = "../handover/load.rs"]
mod load;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use load::{HANG, TcpLoad, UdpLoad};
use nodestub_lab::dns::{Options, ask};
use nodestub_lab::skip::{can_make_namespaces, skip};
use nodestub_lab::upstream::zone;
use nodestub_lab::{Daemon, Netns, Upstream};

const SERVER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 53);
const SYSTEMD: &str = "/lib/systemd/systemd";

fn unit() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests/systemd/nodestub-resolver@.service")
}

/// A machine under systemd, as far as a unit can tell.
struct Machine {
    net: Netns,
    /// `timeout`, whose child is `unshare`, whose child is systemd.
    outer: Daemon,
    cgroup: String,
    _upstream: Upstream,
}

impl Machine {
    fn start(test: &str) -> Option<Self> {
        if !can_make_namespaces(test) {
            return None;
        }
        if !Path::new(SYSTEMD).exists() {
            skip(test, "systemd is missing (Debian: apt-get install systemd)");
            return None;
        }
        let users = std::fs::read_to_string("/proc/self/uid_map").unwrap();
        let cgroups = ["/sys/fs/cgroup/systemd/cgroup.procs", "/sys/fs/cgroup/cgroup.procs"];
        if users.split_whitespace().nth(2) != Some("4294967295")
            || !cgroups.iter().any(|file| Path::new(file).exists())
        {
            skip(test, "systemd needs root, outside a user namespace, and its cgroups mounted");
            return None;
        }
        let cgroup = format!("nodestub-systemd-{}", std::process::id());
        let net = Netns::new().unwrap();
        let here = zone(3600, &[("here.test.", IpAddr::from([192, 0, 2, 7]))]);
        let upstream = net.run(|| Upstream::start("127.0.0.1:5300".parse().unwrap(), here)).unwrap().unwrap();
        let mut command = Command::new("bash");
        command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/systemd/start.sh"));
        command.arg(&cgroup).arg(env!("CARGO_BIN_EXE_nodestub-resolver")).arg(unit());
        let outer = net.spawn(command).unwrap();
        let machine = Self { net, outer, cgroup, _upstream: upstream };
        let end = Instant::now() + HANG;
        while !machine.run(&["systemctl", "is-system-running"]).contains("running") {
            assert!(Instant::now() < end, "{}", machine.outer.lines().join("\n"));
            std::thread::sleep(Duration::from_millis(50));
        }
        Some(machine)
    }

    /// The process that is process 1 in there, once it is there.
    fn systemd(&self) -> Option<u32> {
        let child = |pid: u32| {
            let children =
                std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
            children.split_whitespace().next().and_then(|pid| pid.parse().ok())
        };
        // The first becomes `timeout`.
        child(self.outer.id()).and_then(child)
    }

    /// The output of a command in there.
    fn run(&self, words: &[&str]) -> String {
        let Some(systemd) = self.systemd() else { return String::new() };
        let mut command = Command::new("nsenter");
        command
            .args(["--mount", "--pid", "--uts", "--ipc", "--net", "--target", &systemd.to_string()])
            .args(words);
        let output = command.output().unwrap();
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    }

    /// A command that says nothing when it succeeds.
    fn systemctl(&self, words: &[&str]) {
        let said = self.run(&[&["systemctl", "--quiet"], words].concat());
        assert!(
            said.is_empty(),
            "{words:?}: {said}\n{}",
            self.run(&["systemctl", "status", "nodestub-resolver@*"])
        );
    }

    /// What both have said.
    fn logs(&self) -> String {
        self.run(&["tail", "-n", "100", "/run/blue.log", "/run/green.log"])
    }

    fn show(&self, colour: &str, property: &str) -> String {
        let unit = format!("nodestub-resolver@{colour}");
        self.run(&["systemctl", "show", "--value", "--property", property, &unit]).trim().to_owned()
    }

    fn wait_until(&self, colour: &str, property: &str, value: &str) {
        let end = Instant::now() + HANG;
        while self.show(colour, property) != value {
            assert!(Instant::now() < end, "{}", self.run(&["systemctl", "status", "nodestub-resolver@*"]));
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Everything in there ends with it, and those who wait for it out here.
        if let Some(systemd) = self.systemd() {
            drop(Command::new("kill").args(["-KILL", &systemd.to_string()]).status());
        }
        drop(self.outer.wait(HANG));
        // A cgroup goes when the kernel has ended the last process in it.
        let end = Instant::now() + HANG;
        let script = format!(
            "for root in /sys/fs/cgroup /sys/fs/cgroup/*/; do [[ ! -d $root/{0} ]] || \
             find $root/{0} -depth -type d -exec rmdir {{}} +; done",
            self.cgroup
        );
        while !Command::new("bash").args(["-c", &script]).output().is_ok_and(|output| output.status.success())
        {
            if Instant::now() > end {
                eprintln!("cgroups {} are left over", self.cgroup);
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

#[test]
fn an_upgrade_under_systemd_by_the_readmes_commands_loses_nothing() {
    let Some(machine) = Machine::start("an_upgrade_under_systemd_by_the_readmes_commands_loses_nothing")
    else {
        return;
    };
    machine.systemctl(&["enable", "--now", "nodestub-resolver@blue"]);
    assert_eq!(machine.show("blue", "StatusText"), "serving");
    let pid = machine.show("blue", "MainPID");
    let status = machine.run(&["cat", &format!("/proc/{pid}/status")]);
    let user = status.lines().find_map(|line| line.strip_prefix("Uid:\t")).unwrap().to_owned();
    assert!(!user.starts_with("0\t"), "{user}");
    assert!(
        status.contains("CapBnd:\t0000000000001400") && status.contains("CapEff:\t0000000000000000"),
        "{status}"
    );
    assert_eq!(machine.run(&["nodestub-resolver", "probe", "ready", "--pid", &pid]), "yes: serving\n");

    let names = ["here.test".to_owned()];
    let warm =
        machine.net.run(|| ask(SERVER, "here.test", "A", &Options { timeout: HANG, ..Options::default() }));
    assert_eq!(warm.unwrap().unwrap().data(), ["192.0.2.7"]);
    let udp = UdpLoad::start(&machine.net, SERVER, &names, 4, 500);
    let tcp = TcpLoad::start(&machine.net, SERVER, &names, 1);
    udp.wait_for(500);
    for (old, new) in [("blue", "green"), ("green", "blue"), ("blue", "green")] {
        machine.systemctl(&["enable", "--now", &format!("nodestub-resolver@{new}")]);
        assert_eq!(machine.show(new, "StatusText"), "serving");
        machine.wait_until(old, "StatusText", "standing by: a newer process serves");
        let same = machine.run(&["cat", &format!("/proc/{}/status", machine.show(new, "MainPID"))]);
        assert!(same.contains(&user), "another user: {same}");
        udp.wait_for(500);
        machine.systemctl(&["disable", "--now", &format!("nodestub-resolver@{old}")]);
        assert_eq!(machine.show(old, "ActiveState"), "inactive");
        udp.wait_for(500);
    }
    let (udp, tcp) = (udp.finish(), tcp.finish());
    assert_eq!(udp.lost, 0, "{udp:?}\n{}", machine.logs());
    println!("over three upgrades: {udp:?}, and {tcp} answers by TCP");

    // A new version that dies: the old one serves at once, and the new one is started again by systemd.
    machine.systemctl(&["start", "nodestub-resolver@blue"]);
    machine.systemctl(&["kill", "--signal=KILL", "nodestub-resolver@blue"]);
    machine.wait_until("green", "StatusText", "serving");
    machine.wait_until("blue", "StatusText", "serving");
    machine.wait_until("green", "StatusText", "standing by: a newer process serves");

    // A reload by systemd is a reload of the Corefile.
    machine.systemctl(&["reload", "nodestub-resolver@blue"]);
    machine.systemctl(&["stop", "nodestub-resolver@blue", "nodestub-resolver@green"]);
    assert_eq!(machine.show("blue", "Result"), "success");
}
