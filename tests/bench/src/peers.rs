//! Who is measured, and how each is set up: as its own documentation says for a caching forwarder, no validation, no
//! logs, room for all names.
//!
//! CoreDNS and this resolver get NodeLocal's Corefile, as it is shipped: the cluster's domain by TCP, all else by UDP.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::load::pinned;
use crate::workload::Workload;

/// The address of the server that is measured: NodeLocal's.
pub(crate) const SERVER: &str = "169.254.20.10";

/// The address of the upstream.
pub(crate) const UPSTREAM: &str = "127.0.0.2";

/// A server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Peer {
    /// `recvmmsg` and `sendmmsg`, nothing else.
    BatchedEcho,
    /// `recvfrom` and `sendto`, nothing else.
    BlockingEcho,
    /// This resolver.
    Nodestub,
    /// This resolver, with the right to run before all others (`SCHED_RR`).
    NodestubFirst,
    /// The engine of NodeLocal DNSCache.
    CoreDns,
    /// NodeLocal DNSCache itself.
    NodeCache,
    Unbound,
    Dnsdist,
    PowerDns,
    Bind,
    Knot,
    Dnsmasq,
}

/// Where the programs are that are not installed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Programs {
    pub(crate) resolver: PathBuf,
    pub(crate) coredns: PathBuf,
}

/// One start of a server.
#[derive(Debug)]
pub(crate) struct Setting<'a> {
    /// For its files.
    pub(crate) folder: &'a Path,
    pub(crate) workload: Workload,
    /// The CPU for it, where it is bound to one.
    pub(crate) cpu: Option<usize>,
    pub(crate) programs: &'a Programs,
}

impl Peer {
    pub(crate) const ALL: [Self; 12] = [
        Self::BatchedEcho,
        Self::BlockingEcho,
        Self::Nodestub,
        Self::NodestubFirst,
        Self::CoreDns,
        Self::NodeCache,
        Self::Unbound,
        Self::Dnsdist,
        Self::PowerDns,
        Self::Bind,
        Self::Knot,
        Self::Dnsmasq,
    ];

    pub(crate) fn is_echo(self) -> bool {
        matches!(self, Self::BatchedEcho | Self::BlockingEcho)
    }

    /// On the command line, and in the report.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::BatchedEcho => "echo",
            Self::BlockingEcho => "echo-blocking",
            Self::Nodestub => "nodestub",
            Self::NodestubFirst => "nodestub-rr",
            Self::CoreDns => "coredns",
            Self::NodeCache => "node-cache",
            Self::Unbound => "unbound",
            Self::Dnsdist => "dnsdist",
            Self::PowerDns => "pdns-recursor",
            Self::Bind => "bind",
            Self::Knot => "knot-resolver",
            Self::Dnsmasq => "dnsmasq",
        }
    }

    fn program(self, programs: &Programs) -> PathBuf {
        match self {
            Self::BatchedEcho | Self::BlockingEcho => std::env::current_exe().unwrap_or_default(),
            Self::Nodestub | Self::NodestubFirst => programs.resolver.clone(),
            Self::CoreDns => programs.coredns.clone(),
            Self::NodeCache => "node-cache".into(),
            Self::Unbound => "unbound".into(),
            Self::Dnsdist => "dnsdist".into(),
            Self::PowerDns => "pdns_recursor".into(),
            Self::Bind => "named".into(),
            Self::Knot => "kresd".into(),
            Self::Dnsmasq => "dnsmasq".into(),
        }
    }

    /// The version that it says it has; `None`: it is not here.
    pub(crate) fn version(self, programs: &Programs) -> Option<String> {
        let argument = match self {
            Self::BatchedEcho | Self::BlockingEcho => return Some("this program".to_owned()),
            Self::NodeCache => "-version",
            Self::CoreDns => "-version",
            Self::Unbound => "-V",
            Self::Bind => "-v",
            _ => "--version",
        };
        let output = Command::new(self.program(programs)).arg(argument).output().ok()?;
        let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.push_str(&String::from_utf8_lossy(&output.stderr));
        // The first number with a dot in it; dates and times have none.
        let words = text.split(|c: char| c.is_whitespace() || c == ',');
        let is_version = |word: &&str| {
            let word = word.trim_start_matches(|c: char| !c.is_ascii_digit());
            word.contains('.') && word.starts_with(|c: char| c.is_ascii_digit()) && !word.contains(':')
        };
        let version = words.into_iter().find(is_version)?;
        Some(version.trim_start_matches(|c: char| !c.is_ascii_digit()).to_owned())
    }

    /// Why it takes no part in a workload.
    pub(crate) fn why_not(self, workload: Workload) -> Option<&'static str> {
        match self {
            Self::BatchedEcho | Self::BlockingEcho if !workload.suits_echo() => Some("it keeps nothing"),
            Self::NodestubFirst if workload != Workload::Hog => Some("it makes no difference there"),
            Self::PowerDns | Self::Knot | Self::Dnsmasq if workload.by_tcp() => {
                Some("it has no setting for an upstream by TCP without TLS")
            }
            _ => None,
        }
    }

    /// Writes its files, and returns the command that starts it in the foreground.
    ///
    /// # Errors
    /// A file cannot be written.
    pub(crate) fn command(self, setting: &Setting<'_>) -> std::io::Result<Command> {
        let folder = setting.folder;
        let threads = setting.workload.threads();
        let program = self.program(setting.programs);
        let mut command = pinned(&program, setting.cpu);
        if self == Self::NodestubFirst {
            // Replaces itself by the program.
            command = Command::new("chrt");
            command.args(["--rr", "1"]).arg(&program);
        }
        command.current_dir(folder).env("GOMAXPROCS", threads.to_string());
        let file = |name: &str, text: &str| {
            let path = folder.join(name);
            std::fs::write(&path, text).map(|()| path)
        };
        match self {
            Self::BatchedEcho => command.args(["batched-echo", &format!("{SERVER}:53")]),
            Self::BlockingEcho => command.args(["blocking-echo", &format!("{SERVER}:53")]),
            Self::Nodestub | Self::NodestubFirst => {
                command.arg("--handover=").arg("--conf").arg(file("Corefile", &corefile(setting.workload))?)
            }
            Self::CoreDns => command.arg("-conf").arg(file("Corefile", &corefile(setting.workload))?),
            Self::NodeCache => {
                let path = file("Corefile", &corefile(setting.workload))?;
                let flags = ["-localip", SERVER, "-setupinterface=false", "-setupiptables=false", "-conf"];
                command.args(flags).arg(path)
            }
            Self::Unbound => {
                command.arg("-d").arg("-c").arg(file("unbound.conf", &unbound(setting, threads))?)
            }
            Self::Dnsdist => command
                .args(["--supervised", "--disable-syslog", "-C"])
                .arg(file("dnsdist.conf", &dnsdist(setting, threads))?),
            Self::PowerDns => {
                file("recursor.conf", &power_dns(folder, threads))?;
                command.arg(format!("--config-dir={}", folder.display()))
            }
            Self::Bind => {
                let path = file("named.conf", &bind(setting))?;
                command.args(["-g", "-n", &threads.to_string(), "-c"]).arg(path)
            }
            Self::Knot => command.arg("-n").arg("-c").arg(file("kresd.conf", &knot())?).arg(folder),
            Self::Dnsmasq => command.args([
                "--keep-in-foreground",
                "--conf-file=/dev/null",
                "--user=root",
                "--pid-file=",
                "--no-resolv",
                "--no-hosts",
                "--bind-interfaces",
                &format!("--listen-address={SERVER}"),
                &format!("--server={UPSTREAM}"),
                // The most that it takes.
                "--cache-size=10000",
                "--dns-forward-max=10000",
            ]),
        };
        Ok(command)
    }
}

/// NodeLocal's Corefile, filled in; for [`Workload::Memory`] with room for all names.
fn corefile(workload: Workload) -> String {
    let outside =
        if workload == Workload::Memory { "cache 3600 {\n        success 262144\n    }" } else { "cache 30" };
    format!(
        "cluster.local:53 {{
    errors
    cache {{
        success 9984 30
        denial 9984 5
    }}
    reload
    loop
    bind {SERVER}
    forward . {UPSTREAM} {{
        force_tcp
    }}
    prometheus :9253
    health {SERVER}:8080
}}
in-addr.arpa:53 {{
    errors
    cache 30
    reload
    loop
    bind {SERVER}
    forward . {UPSTREAM} {{
        force_tcp
    }}
    prometheus :9253
}}
ip6.arpa:53 {{
    errors
    cache 30
    reload
    loop
    bind {SERVER}
    forward . {UPSTREAM} {{
        force_tcp
    }}
    prometheus :9253
}}
.:53 {{
    errors
    {outside}
    reload
    loop
    bind {SERVER}
    forward . {UPSTREAM}
    prometheus :9253
}}
"
    )
}

fn unbound(setting: &Setting<'_>, threads: u32) -> String {
    let by_tcp = if setting.workload.by_tcp() { "yes" } else { "no" };
    format!(
        "server:
  interface: {SERVER}
  access-control: 0.0.0.0/0 allow
  do-daemonize: no
  use-syslog: no
  verbosity: 0
  chroot: \"\"
  username: \"\"
  directory: \"{folder}\"
  pidfile: \"\"
  num-threads: {threads}
  so-reuseport: yes
  so-rcvbuf: 4m
  module-config: \"iterator\"
  do-not-query-localhost: no
  msg-cache-size: 64m
  rrset-cache-size: 128m
  outgoing-range: 4096
  num-queries-per-thread: 2048
  outgoing-num-tcp: 100
  qname-minimisation: no
  tcp-upstream: {by_tcp}
forward-zone:
  name: \".\"
  forward-addr: {UPSTREAM}
remote-control:
  control-enable: no
",
        folder = setting.folder.display(),
    )
}

fn dnsdist(setting: &Setting<'_>, threads: u32) -> String {
    let by_tcp = if setting.workload.by_tcp() { ", tcpOnly=true" } else { "" };
    let mut text = format!("setLocal(\"{SERVER}:53\", {{reusePort=true}})\n");
    for _ in 1..threads {
        text.push_str(&format!("addLocal(\"{SERVER}:53\", {{reusePort=true}})\n"));
    }
    text.push_str(&format!(
        "setACL(\"0.0.0.0/0\")
newServer({{address=\"{UPSTREAM}:53\", sockets=8{by_tcp}}})
getPool(\"\"):setCache(newPacketCache(300000, {{maxTTL=86400}}))
setMaxUDPOutstanding(65535)
setSecurityPollSuffix(\"\")
"
    ));
    text
}

fn power_dns(folder: &Path, threads: u32) -> String {
    format!(
        "local-address={SERVER}
local-port=53
allow-from=0.0.0.0/0
dont-query=
forward-zones-recurse=.={UPSTREAM}
dnssec=off
threads={threads}
pdns-distributes-queries=no
reuseport=yes
socket-dir={folder}
disable-syslog=yes
quiet=yes
loglevel=3
security-poll-suffix=
",
        folder = folder.display(),
    )
}

fn bind(setting: &Setting<'_>) -> String {
    let by_tcp = if setting.workload.by_tcp() { "yes" } else { "no" };
    format!(
        "options {{
  directory \"{folder}\";
  listen-on port 53 {{ {SERVER}; }};
  listen-on-v6 {{ none; }};
  pid-file none;
  allow-query {{ any; }};
  recursion yes;
  forward only;
  forwarders {{ {UPSTREAM}; }};
  dnssec-validation no;
  max-cache-size 256m;
  recursive-clients 20000;
  empty-zones-enable no;
  minimal-responses yes;
}};
controls {{ }};
server {UPSTREAM} {{ tcp-only {by_tcp}; }};
logging {{ category default {{ null; }}; }};
",
        folder = setting.folder.display(),
    )
}

fn knot() -> String {
    format!(
        "net.listen('{SERVER}', 53)
trust_anchors.remove('.')
cache.size = 256 * MB
policy.add(policy.all(policy.STUB('{UPSTREAM}')))
"
    )
}
