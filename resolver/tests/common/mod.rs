//! What the tests of the daemon share: a namespace with the real binary in it, and questions to it.
//!
//! Every scene has a network namespace of its own, so ports are those of real life and tests run side by side.
//! Deadlines are there for a daemon that hangs, never to measure one.
#![allow(dead_code, clippy::allow_attributes, reason = "every test file uses another part of it")]
#![expect(clippy::panic, reason = "a test may stop at the first surprise, in its helpers too")]

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use nodestub_lab::upstream::Reply;
use nodestub_lab::{Answer, Daemon, Netns, Options, Transport, Upstream, ask};
use tempfile::TempDir;

/// Where the daemon of a [`Scene`] answers, if its Corefile says `bind 127.0.0.1`.
pub(crate) const SERVER: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 53);

/// Longer than anything takes that works.
pub(crate) const HANG: Duration = Duration::from_secs(60);

/// A daemon at work in a namespace of its own.
pub(crate) struct Scene {
    pub(crate) net: Netns,
    pub(crate) daemon: Daemon,
    folder: TempDir,
}

impl Scene {
    /// Serves this Corefile in a fresh namespace.
    pub(crate) fn start(corefile: &str) -> Self {
        Self::start_in(Netns::new().unwrap(), corefile)
    }

    /// Serves this Corefile in `net`, and returns when it is served.
    pub(crate) fn start_in(net: Netns, corefile: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("Corefile"), corefile).unwrap();
        let daemon = net.spawn(resolver(&folder.path().join("Corefile"))).unwrap();
        let scene = Self { net, daemon, folder };
        scene.wait_for("serving DNS");
        scene
    }

    /// A daemon with a command line of its own, whose Corefile lies in `folder`; returns when it is served.
    pub(crate) fn of(net: Netns, command: Command, folder: TempDir) -> Self {
        let daemon = net.spawn(command).unwrap();
        let scene = Self { net, daemon, folder };
        scene.wait_for("serving DNS");
        scene
    }

    /// A path in the scene's folder, where the Corefile lies.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Puts another Corefile in the place of the old one, whole, as a ConfigMap's change does.
    pub(crate) fn write_corefile(&self, text: &str) {
        std::fs::write(self.path("Corefile.new"), text).unwrap();
        std::fs::rename(self.path("Corefile.new"), self.path("Corefile")).unwrap();
    }

    /// Waits for a line of the daemon that contains `text`.
    pub(crate) fn wait_for(&self, text: &str) -> String {
        self.daemon.wait_for_line(HANG, |line| line.contains(text)).unwrap()
    }

    /// Starts a server in the scene's namespace.
    pub(crate) fn upstream(
        &self,
        address: &str,
        behaviour: impl Fn(&[u8], Transport) -> Vec<Reply> + Send + Sync + 'static,
    ) -> Upstream {
        upstream_in(&self.net, address, behaviour)
    }

    /// Asks the daemon on [`SERVER`] over UDP.
    pub(crate) fn ask(&self, name: &str, rtype: &str) -> Answer {
        self.ask_with(SERVER, name, rtype, &patient())
    }

    /// Asks whom and how one likes.
    pub(crate) fn ask_with(&self, server: SocketAddr, name: &str, rtype: &str, options: &Options) -> Answer {
        self.net.run(|| ask(server, name, rtype, options)).unwrap().unwrap_or_else(|error| {
            panic!("{name} {rtype}: {error}\nthe daemon said:\n{}", self.daemon.lines().join("\n"))
        })
    }

    /// Response code of an answer of [`SERVER`] over UDP.
    pub(crate) fn rcode(&self, name: &str, rtype: &str) -> String {
        self.ask(name, rtype).rcode
    }

    /// Status and body of an HTTP resource.
    pub(crate) fn get(&self, address: &str, path: &str) -> (u16, String) {
        let address: SocketAddr = address.parse().unwrap();
        self.net.run(|| get(address, path)).unwrap()
    }

    /// The metrics page on CoreDNS's usual address.
    pub(crate) fn metrics(&self) -> Metrics {
        let (status, page) = self.get("127.0.0.1:9153", "/metrics");
        assert_eq!(status, 200, "{page}");
        Metrics(page)
    }
}

/// A server in a namespace.
pub(crate) fn upstream_in(
    net: &Netns,
    address: &str,
    behaviour: impl Fn(&[u8], Transport) -> Vec<Reply> + Send + Sync + 'static,
) -> Upstream {
    let address: SocketAddr = address.parse().unwrap();
    net.run(|| Upstream::start(address, behaviour)).unwrap().unwrap()
}

/// The daemon's command line.
pub(crate) fn resolver(corefile: &std::path::Path) -> Command {
    let mut command = binary();
    command.arg("-conf").arg(corefile);
    command
}

/// The daemon, without arguments and without what the test's own environment would tell it.
pub(crate) fn binary() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nodestub-resolver"));
    for variable in ["NODESTUB_LOG", "NODESTUB_LOCAL_ADDRESS", "NODESTUB_CLUSTER_DOMAIN"] {
        command.env_remove(variable);
    }
    command
}

/// UDP with a time limit for a machine under load.
pub(crate) fn patient() -> Options {
    Options { timeout: HANG, ..Options::default() }
}

/// TCP with a time limit for a machine under load.
pub(crate) fn patient_tcp() -> Options {
    Options { timeout: HANG, ..Options::tcp() }
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(crate) fn socket(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// Status and body of an HTTP resource, from the calling thread's namespace.
pub(crate) fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect_timeout(&address, HANG).unwrap();
    stream.set_read_timeout(Some(HANG)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, body.to_owned())
}

/// A page of metrics.
#[derive(Debug)]
pub(crate) struct Metrics(pub(crate) String);

impl Metrics {
    /// The sum of all samples of this name that carry all of these labels; `None` where there is no such sample.
    pub(crate) fn find(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let samples = self.0.lines().filter(|line| !line.starts_with('#'));
        let values = samples.filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let (found, rest) = series.split_once('{').unwrap_or((series, ""));
            let rest = format!(",{}", rest.trim_end_matches('}'));
            let has = |(label, value): &(&str, &str)| rest.contains(&format!(",{label}=\"{value}\""));
            (found == name && labels.iter().all(has)).then(|| value.parse::<f64>().ok()).flatten()
        });
        values.fold(None, |sum, value| Some(sum.unwrap_or(0.0) + value))
    }

    /// As [`Metrics::find`]; no such sample is 0.
    pub(crate) fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.find(name, labels).unwrap_or(0.0)
    }
}
