//! A namespace with both servers and their upstream in it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nodestub_lab::skip::{can_make_namespaces, skip};
use nodestub_lab::{Answer, Daemon, Netns, Upstream, exchange};
use rustls::ClientConfig;
use tempfile::TempDir;

use crate::cases::Case;
use crate::compare;
use crate::question::{PLAIN, Question};
use crate::secure::Authority;
use crate::tls;
use crate::upstream::{behaviour, failing};

/// Longer than anything takes that works.
pub(crate) const HANG: Duration = Duration::from_secs(60);

/// What one server is.
struct Server {
    v4: SocketAddr,
    v6: SocketAddr,
    daemon: Daemon,
}

/// Both servers at work.
pub(crate) struct Scene {
    net: Netns,
    reference: Server,
    ours: Server,
    _upstreams: Vec<Upstream>,
    corefile: String,
    began: Instant,
    allowed: &'static [&'static str],
    /// With what questions are asked over TLS.
    tls: Arc<ClientConfig>,
    _folder: TempDir,
}

impl Scene {
    /// Serves a case's Corefile on both. `None`: it cannot run here, which has been said.
    pub(crate) fn start(case: &Case) -> Option<Self> {
        if !can_make_namespaces(case.name) {
            return None;
        }
        let Some(coredns) = coredns() else {
            skip("differential", "CoreDNS is not built: run tests/cluster/build coredns");
            return None;
        };
        let net = Netns::new().unwrap();
        net.add_address("lo", "fd00::1".parse().unwrap(), 128).unwrap();
        net.add_address("lo", "fd00::2".parse().unwrap(), 128).unwrap();
        net.add_address("lo", "fd00::3".parse().unwrap(), 128).unwrap();
        let good = net.run(|| Upstream::start("127.0.0.53:53".parse().unwrap(), behaviour)).unwrap().unwrap();
        let bad = net.run(|| Upstream::start("127.0.0.54:53".parse().unwrap(), failing)).unwrap().unwrap();
        let upstreams = vec![good, bad];
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in case.files {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        let authority = Authority::new();
        let pair = authority.sign(tls::NAME);
        std::fs::write(folder.path().join("server.crt"), &pair.certificate).unwrap();
        std::fs::write(folder.path().join("server.key"), &pair.key).unwrap();
        let write = |name: &str, bind: &str| {
            let text =
                case.corefile.replace("BIND", bind).replace("FOLDER", &folder.path().display().to_string());
            std::fs::write(folder.path().join(name), &text).unwrap();
            folder.path().join(name)
        };
        let mut command = Command::new(coredns);
        command.arg("-conf").arg(write("Corefile.coredns", "127.0.0.1 fd00::1"));
        let daemon = net.spawn(command).unwrap();
        let reference =
            Server { v4: "127.0.0.1:53".parse().unwrap(), v6: "[fd00::1]:53".parse().unwrap(), daemon };
        let mut command = Command::new(env!("CARGO_BIN_EXE_nodestub-resolver"));
        for variable in ["NODESTUB_LOG", "NODESTUB_LOCAL_ADDRESS", "NODESTUB_CLUSTER_DOMAIN"] {
            command.env_remove(variable);
        }
        command.arg("-conf").arg(write("Corefile.ours", "127.0.0.2 fd00::2"));
        let daemon = net.spawn(command).unwrap();
        let ours =
            Server { v4: "127.0.0.2:53".parse().unwrap(), v6: "[fd00::2]:53".parse().unwrap(), daemon };
        let corefile = case.corefile.to_owned();
        let scene = Self {
            net,
            reference,
            ours,
            _upstreams: upstreams,
            corefile,
            began: Instant::now(),
            allowed: case.allowed,
            tls: tls::believing(&authority),
            _folder: folder,
        };
        scene.wait_until_served();
        Some(scene)
    }

    fn wait_until_served(&self) {
        self.ours.daemon.wait_for_line(HANG, |line| line.contains("serving DNS")).unwrap();
        self.reference.daemon.wait_for_line(HANG, |line| line.contains("CoreDNS-")).unwrap();
        let end = Instant::now() + HANG;
        let question = Question::new("ready.invalid.", 1, PLAIN);
        for server in [&self.reference, &self.ours] {
            while self.ask_once(server, &question, Duration::from_millis(500)).is_none() {
                assert!(Instant::now() < end, "not served in time:\n{}", self.output());
            }
        }
    }

    fn ask_once(&self, server: &Server, question: &Question, timeout: Duration) -> Option<Answer> {
        let address = if question.way.v6 { server.v6 } else { server.v4 };
        let packet = question.to_packet(0x4711);
        let options = nodestub_lab::Options { timeout, ..question.options() };
        let raw = if question.way.tls {
            let address = SocketAddr::new(address.ip(), 853);
            self.net.run(|| tls::exchange(address, &packet, &self.tls, timeout)).unwrap().ok()?
        } else {
            self.net.run(|| exchange(address, &packet, &options)).unwrap().ok()?
        };
        Some(Answer::parse(&raw).unwrap_or_else(|error| panic!("{address}: {question}: {error}: {raw:02x?}")))
    }

    /// Asks both, and returns what differs and must not.
    pub(crate) fn compare(&self, question: &Question) -> Option<String> {
        // A question that nobody answers is one that both must leave unanswered.
        let patience = if self.allowed.contains(&"silence") { Duration::from_secs(1) } else { HANG };
        let theirs = self.ask_once(&self.reference, question, patience);
        let ours = self.ask_once(&self.ours, question, patience);
        let (theirs, ours) = match (theirs, ours) {
            (None, None) => return None,
            (Some(theirs), Some(ours)) => (theirs, ours),
            (theirs, ours) => {
                let said = |answer: &Option<Answer>| if answer.is_some() { "answers" } else { "is silent" };
                return Some(format!("{question}: CoreDNS {}, ours {}", said(&theirs), said(&ours)));
            }
        };
        let tolerance = u32::try_from(self.began.elapsed().as_secs()).unwrap() + 1;
        compare::difference(question, &theirs, &ours, tolerance)
    }

    pub(crate) fn corefile(&self) -> &str {
        &self.corefile
    }

    /// What both have said.
    pub(crate) fn output(&self) -> String {
        let last = |daemon: &Daemon| {
            let lines = daemon.lines();
            lines.iter().rev().take(12).rev().cloned().collect::<Vec<_>>().join("\n")
        };
        format!("CoreDNS said:\n{}\nours said:\n{}", last(&self.reference.daemon), last(&self.ours.daemon))
    }
}

/// Where CoreDNS's program is.
pub(crate) fn coredns() -> Option<PathBuf> {
    let cache = || {
        let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        Some(
            base.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))?
                .join("nodestub/kube"),
        )
    };
    let folder = std::env::var_os("NODESTUB_KUBE_BIN").map(PathBuf::from).or_else(cache)?;
    Some(folder.join("coredns")).filter(|file| file.is_file())
}
