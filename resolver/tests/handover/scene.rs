//! What each test of handover is set upon: a namespace with an upstream, resolvers in it, and the socket where they meet.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use nodestub_lab::dns::Options;
use nodestub_lab::upstream::{Reply, zone};
use nodestub_lab::{Daemon, Netns, Upstream, ask, skip};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};
use tempfile::TempDir;

use crate::load::{HANG, connect};

pub(crate) const SERVER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 53);
pub(crate) const OTHER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2)), 53);
pub(crate) const HTTP: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8181);

pub(crate) const COREFILE: &str = "\
.:53 {
    bind 127.0.0.1
    cache 3600
    forward . 127.0.0.1:5300
    ready 127.0.0.1:8181
}
";

/// A namespace with an upstream in it.
pub(crate) struct Scene {
    pub(crate) net: Netns,
    pub(crate) upstream: Upstream,
    pub(crate) folder: TempDir,
}

impl Scene {
    /// `None`: this machine makes no namespaces, and that has been said.
    pub(crate) fn new(test: &str) -> Option<Self> {
        if !skip::can_make_namespaces(test) {
            return None;
        }
        let net = Netns::new().unwrap();
        // Names that begin with "slow" are answered late.
        let address = IpAddr::from([192, 0, 2, 1]);
        let fast: Vec<String> = names().iter().map(|name| format!("{name}.")).collect();
        let mut records: Vec<(&str, IpAddr)> = fast.iter().map(|name| (name.as_str(), address)).collect();
        records.extend([("slow1.test.", address), ("slow2.test.", address)]);
        let zone = zone(3600, &records);
        let behaviour = move |bytes: &[u8], transport| -> Vec<Reply> {
            let slow = bytes.windows(4).any(|window| window == b"slow");
            let delay = if slow { Duration::from_millis(500) } else { Duration::ZERO };
            zone(bytes, transport).into_iter().map(|reply| reply.after(delay)).collect()
        };
        let upstream =
            net.run(|| Upstream::start("127.0.0.1:5300".parse().unwrap(), behaviour)).unwrap().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let scene = Self { net, upstream, folder };
        scene.write("Corefile", COREFILE);
        Some(scene)
    }

    pub(crate) fn write(&self, file: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join(file);
        std::fs::write(&path, text).unwrap();
        path
    }

    pub(crate) fn command(&self, file: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nodestub-resolver"));
        for variable in ["NODESTUB_LOG", "NODESTUB_LOCAL_ADDRESS", "NODESTUB_CLUSTER_DOMAIN"] {
            command.env_remove(variable);
        }
        command
            .args(["--handover", "test", "-metrics-listen-address", "127.0.0.1:9253", "-conf"])
            .arg(self.folder.path().join(file));
        command
    }

    pub(crate) fn start(&self, file: &str) -> Daemon {
        self.net.spawn(self.command(file)).unwrap()
    }

    /// The first of its kind.
    pub(crate) fn first(&self) -> Daemon {
        let daemon = self.start("Corefile");
        wait(&daemon, "serving DNS");
        daemon
    }

    /// Takes over from `old`, which then stands by.
    pub(crate) fn next(&self, old: &Daemon) -> Daemon {
        let daemon = self.start("Corefile");
        wait(&daemon, "took over; the resolver before this one stands by");
        wait(old, "standing by");
        daemon
    }

    pub(crate) fn ttl(&self, name: &str) -> u32 {
        let answer = self.net.run(|| ask(SERVER, name, "A", &patient())).unwrap().unwrap();
        assert_eq!(answer.rcode, "NOERROR");
        answer.ttls()[0]
    }

    /// How often the upstream was asked for one of [`names`]. (The question of one process's watchdog that another one
    /// reads goes upstream as any other.)
    pub(crate) fn asked_upstream(&self) -> usize {
        let received = self.upstream.received();
        received.iter().filter(|one| one.bytes.windows(6).any(|window| window == b"\x04test\0")).count()
    }

    pub(crate) fn warm_up(&self) {
        for name in names() {
            self.ttl(&name);
        }
    }

    pub(crate) fn get(&self, address: SocketAddr, path: &str) -> String {
        self.net
            .run(|| {
                let mut stream = connect(address);
                write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
                let mut text = String::new();
                std::io::Read::read_to_string(&mut stream, &mut text).unwrap();
                text
            })
            .unwrap()
    }

    pub(crate) fn metric(&self, line: &str) -> String {
        let page = self.get("127.0.0.1:9253".parse().unwrap(), "/metrics");
        let found = page.lines().find_map(|one| one.strip_prefix(line));
        found.unwrap_or_else(|| panic!("no {line} in {page}")).trim().to_owned()
    }

    /// A line to the rendezvous, spoken by hand.
    pub(crate) fn knock(&self) -> OwnedFd {
        self.net
            .run(|| {
                let line = unix_socket();
                rustix::net::connect(&line, &rendezvous()).unwrap();
                line
            })
            .unwrap()
    }

    /// The rendezvous, held by the test.
    pub(crate) fn hold_rendezvous(&self) -> OwnedFd {
        self.net
            .run(|| {
                let socket = unix_socket();
                rustix::net::bind(&socket, &rendezvous()).unwrap();
                rustix::net::listen(&socket, 8).unwrap();
                socket
            })
            .unwrap()
    }
}

pub(crate) fn names() -> Vec<String> {
    (0..100).map(|number| format!("n{number}.test")).collect()
}

pub(crate) fn wait(daemon: &Daemon, text: &str) -> String {
    daemon.wait_for_line(HANG, |line| line.contains(text)).unwrap()
}

pub(crate) fn patient() -> Options {
    Options { timeout: HANG, ..Options::default() }
}

pub(crate) fn rounds(short: usize, full: usize) -> usize {
    in_full(short, full)
}

/// As [`rounds`], for rates and numbers of queries.
pub(crate) fn in_full<T>(short: T, full: T) -> T {
    if std::env::var_os("NODESTUB_FULL").is_some() { full } else { short }
}

pub(crate) fn say(line: &OwnedFd, bytes: &[u8]) {
    rustix::net::send(line, bytes, rustix::net::SendFlags::NOSIGNAL).unwrap();
}

pub(crate) fn rendezvous() -> SocketAddrUnix {
    SocketAddrUnix::new_abstract_name(b"nodestub/handover/test").unwrap()
}

/// Not for the children of this process: a line ends when the test drops it.
pub(crate) fn unix_socket() -> OwnedFd {
    socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap()
}

pub(crate) fn accept(rendezvous: &OwnedFd) -> OwnedFd {
    rustix::net::accept_with(rendezvous, SocketFlags::CLOEXEC).unwrap()
}

/// With a descriptor.
pub(crate) fn say_with(line: &OwnedFd, bytes: &[u8], given: &OwnedFd) {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let given = [given.as_fd()];
    assert!(control.push(SendAncillaryMessage::ScmRights(&given)));
    sendmsg(line, &[std::io::IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL).unwrap();
}

/// What the other one says; empty: it has hung up.
pub(crate) fn hear(line: &OwnedFd) -> Vec<u8> {
    let mut bytes = vec![0; 1 << 18];
    let (length, _) = rustix::net::recv(line, &mut bytes[..], rustix::net::RecvFlags::empty()).unwrap();
    bytes.truncate(length);
    bytes
}

/// The opening words of every protocol version: a Hello (1) or a Refused (2).
pub(crate) fn opening(kind: u8, protocol: u16, rest: &[u8]) -> Vec<u8> {
    [&[kind], b"NODESTUB".as_slice(), &protocol.to_be_bytes(), &[5], b"9.9.9", rest].concat()
}

/// Ends a process and looks at how.
pub(crate) fn terminate(mut daemon: Daemon) {
    assert!(daemon.terminate(HANG).unwrap().success(), "{}", daemon.lines().join("\n"));
}
