//! What probes are told, by real processes in network and mount namespaces as containers have them.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise, in its helpers too")]

mod common;

use std::process::{Command, Output};
use std::time::{Duration, Instant};

use common::{HANG, binary};
use nodestub_lab::skip::can_make_namespaces;
use nodestub_lab::{Daemon, Netns, Signal};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};
use tempfile::TempDir;

const COREFILE: &str = ".:53 {\n    bind 127.0.0.1\n    hosts {\n        192.0.2.7 here.test\n    }\n}\n";

/// The host's network, which all pods here share.
struct Host {
    net: Netns,
    folder: TempDir,
}

impl Host {
    fn new(test: &str) -> Option<Self> {
        if !can_make_namespaces(test) {
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("Corefile"), COREFILE).unwrap();
        Some(Self { net: Netns::new().unwrap(), folder })
    }

    fn arguments(&self, command: &mut Command) {
        command.args(["--handover", "test", "-conf"]).arg(self.folder.path().join("Corefile"));
    }

    /// A process without a mount namespace of its own.
    fn start(&self) -> Daemon {
        let mut command = binary();
        self.arguments(&mut command);
        self.net.spawn(command).unwrap()
    }

    /// A process in a container, as far as probes are concerned.
    fn start_container(&self) -> Daemon {
        let mut command = Command::new("unshare");
        command.arg("--mount").arg(binary().get_program());
        self.arguments(&mut command);
        self.net.spawn(command).unwrap()
    }

    fn probe(&self, arguments: &[&str]) -> Output {
        let mut command = binary();
        command.arg("probe").args(arguments);
        self.net.output(command).unwrap()
    }

    /// As a kubelet does: in the container's namespaces.
    fn probe_in(&self, container: &Daemon, question: &str) -> String {
        let mut command = Command::new("nsenter");
        command.args(["--mount", "--target", &container.id().to_string()]);
        command.arg(binary().get_program()).args(["probe", question]);
        told(&self.net.output(command).unwrap())
    }
}

fn told(output: &Output) -> String {
    // The exit status is what a kubelet looks at.
    let (text, yes) = match output.status.code() {
        Some(0) => (&output.stdout, true),
        Some(1) => (&output.stderr, false),
        other => return format!("status {other:?}: {}", String::from_utf8_lossy(&output.stderr)),
    };
    let text = String::from_utf8_lossy(text).trim_end().to_owned();
    assert_eq!(text.starts_with("yes: "), yes, "{text}");
    text
}

fn wait(daemon: &Daemon, text: &str) {
    daemon.wait_for_line(HANG, |line| line.contains(text)).unwrap();
}

const ALL: [&str; 3] = ["startup", "live", "ready"];

#[test]
fn each_container_is_asked_itself_over_handovers_and_who_stands_by_is_ready() {
    let Some(host) = Host::new("each_container_is_asked_itself_over_handovers_and_who_stands_by_is_ready")
    else {
        return;
    };
    let first = host.start_container();
    wait(&first, "serving DNS");
    assert_eq!(ALL.map(|question| host.probe_in(&first, question)), ["yes: serving"; 3]);

    let mut second = host.start_container();
    wait(&second, "took over");
    wait(&first, "standing by");
    let stands_by = "yes: standing by: a newer process serves";
    assert_eq!(ALL.map(|question| host.probe_in(&first, question)), [stands_by; 3]);
    assert_eq!(ALL.map(|question| host.probe_in(&second, question)), ["yes: serving"; 3]);

    // A third: the first will never serve again, and need not be kept.
    let third = host.start_container();
    wait(&third, "took over");
    wait(&first, "waits to be stopped");
    let superseded = "no: two newer processes have come; this one only waits to be stopped";
    assert_eq!(ALL.map(|question| host.probe_in(&first, question)), [stands_by, stands_by, superseded]);

    // The newest dies, and the second serves again.
    drop(third);
    wait(&second, "this one serves again");
    assert_eq!(host.probe_in(&second, "ready"), "yes: serving");
    second.signal(Signal::TERM).unwrap();
    second.wait(HANG).unwrap();
}

#[test]
fn who_has_not_begun_to_serve_is_live_and_neither_started_nor_ready() {
    let Some(host) = Host::new("who_has_not_begun_to_serve_is_live_and_neither_started_nor_ready") else {
        return;
    };
    // Somebody who never answers holds the rendezvous.
    let _silent = host.net.run(|| {
        let socket =
            socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        let name = SocketAddrUnix::new_abstract_name(b"nodestub/handover/test").unwrap();
        rustix::net::bind(&socket, &name).unwrap();
        rustix::net::listen(&socket, 8).unwrap();
        socket
    });
    let daemon = host.start_container();
    let end = Instant::now() + HANG;
    while host.probe_in(&daemon, "live") != "yes: starting" {
        assert!(Instant::now() < end, "{}", daemon.lines().join("\n"));
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(host.probe_in(&daemon, "startup"), "no: not serving yet");
    assert_eq!(host.probe_in(&daemon, "ready"), "no: not serving yet");
}

#[test]
fn of_several_in_one_place_one_must_be_named() {
    let Some(host) = Host::new("of_several_in_one_place_one_must_be_named") else { return };
    let nobody = told(&host.probe(&["live"]));
    assert!(nobody.starts_with("no nodestub-resolver runs in this container"), "{nobody}");
    let first = host.start();
    wait(&first, "serving DNS");
    assert_eq!(told(&host.probe(&["live"])), "yes: serving");
    let second = host.start();
    wait(&second, "took over");
    wait(&first, "standing by");
    let several = told(&host.probe(&["ready"]));
    assert!(several.starts_with("several nodestub-resolvers run here"), "{several}");
    assert!(several.contains(&first.id().to_string()), "{several}");
    assert_eq!(told(&host.probe(&["ready", "--pid", &second.id().to_string()])), "yes: serving");
}

#[test]
fn a_process_that_does_not_answer_is_said_to_be_silent_and_the_probe_ends() {
    let Some(host) = Host::new("a_process_that_does_not_answer_is_said_to_be_silent_and_the_probe_ends")
    else {
        return;
    };
    let mut daemon = host.start_container();
    wait(&daemon, "serving DNS");
    daemon.signal(Signal::STOP).unwrap();
    assert_eq!(host.probe_in(&daemon, "live"), "nodestub-resolver did not answer in time");
    daemon.signal(Signal::CONT).unwrap();
    assert_eq!(host.probe_in(&daemon, "live"), "yes: serving");
}

#[test]
fn a_question_that_is_none_and_silence_take_nobodys_place() {
    use std::io::{Read, Write};
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixStream};
    let Some(host) = Host::new("a_question_that_is_none_and_silence_take_nobodys_place") else { return };
    let daemon = host.start();
    wait(&daemon, "serving DNS");
    let container = std::fs::read_link("/proc/self/ns/mnt").unwrap();
    let name = format!("nodestub/control/{}/{}", container.display(), daemon.id());
    let address = SocketAddr::from_abstract_name(name).unwrap();
    let connect = || host.net.run(|| UnixStream::connect_addr(&address).unwrap()).unwrap();
    // More than are answered at once, and none of them says anything.
    let _silent: Vec<_> = (0..20).map(|_| connect()).collect();
    let mut one = connect();
    one.write_all(b"how are you\n").unwrap();
    let mut answer = String::new();
    one.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "no this version does not know the question\n");
    assert_eq!(told(&host.probe(&["live", "--timeout", "60"])), "yes: serving");
}
