//! Carries out a plan: every server under every workload, round after round.

use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nodestub_lab::{Daemon, Netns};

use crate::burst;
use crate::load::{Load, Outcome, percentile, pinned};
use crate::peers::{Peer, Programs, SERVER, Setting, UPSTREAM};
use crate::report;
use crate::workload::{HELD, STEADY_RATE, Workload};

/// For a server to answer its first query.
const START: Duration = Duration::from_secs(20);

/// For the upstream's cache of connections and the like to come to rest before anything is measured.
const REST: Duration = Duration::from_secs(1);

/// What is measured how often.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) rounds: u32,
    pub(crate) seconds: u32,
    pub(crate) peers: Vec<Peer>,
    pub(crate) workloads: Vec<Workload>,
    pub(crate) programs: Programs,
}

/// What one run has shown.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Sample {
    pub(crate) per_second: f64,
    /// Of the server's process, in microseconds.
    pub(crate) cpu_per_query: f64,
    pub(crate) lost: u64,
    /// In microseconds.
    pub(crate) p50: Option<u32>,
    /// In microseconds.
    pub(crate) p99: Option<u32>,
    /// Resident, in KiB: before the first query, and after the last.
    pub(crate) idle_kib: u64,
    pub(crate) resident_kib: u64,
    /// Percent of queries that ended in NOERROR or NXDOMAIN.
    pub(crate) answered_percent: f64,
}

/// All samples, in the order of the rounds; `None`: a run that came to nothing.
pub(crate) type Samples = BTreeMap<(Workload, Peer), Vec<Option<Sample>>>;

impl Plan {
    /// All servers and workloads, or those that are named.
    ///
    /// # Errors
    /// A name that nothing has.
    pub(crate) fn new(only: &[String], workloads: &[String]) -> Result<Self, String> {
        let peers = choose(&Peer::ALL, Peer::name, only)?;
        let workloads = choose(&Workload::ALL, Workload::name, workloads)?;
        Ok(Self { rounds: 1, seconds: 1, peers, workloads, programs: Programs::default() })
    }

    pub(crate) fn list(&self) {
        for peer in Peer::ALL {
            let version = peer.version(&self.programs).unwrap_or_else(|| "not installed".to_owned());
            println!("server    {:<14} {version}", peer.name());
        }
        for workload in Workload::ALL {
            println!("workload  {:<14} {}", workload.name(), workload.title());
        }
    }
}

fn choose<T: Copy>(all: &[T], name: impl Fn(T) -> &'static str, wanted: &[String]) -> Result<Vec<T>, String> {
    if let Some(unknown) = wanted.iter().find(|wanted| !all.iter().any(|one| name(*one) == **wanted)) {
        return Err(format!("there is no {unknown}; --list says what there is"));
    }
    Ok(all
        .iter()
        .copied()
        .filter(|one| wanted.is_empty() || wanted.iter().any(|wanted| name(*one) == *wanted))
        .collect())
}

/// Measures, and returns the report.
///
/// # Errors
/// dnsperf or a second CPU is missing, or a namespace cannot be made.
pub(crate) fn run(plan: &Plan) -> Result<String, String> {
    let dnsperf = Command::new("dnsperf").arg("-h").output();
    dnsperf.map_err(|error| format!("cannot start dnsperf: {error} (Debian's package is dnsperf)"))?;
    let cpus = two_cpus()?;
    let mut versions = BTreeMap::new();
    for &peer in &plan.peers {
        match peer.version(&plan.programs) {
            Some(version) => drop(versions.insert(peer, version)),
            None => eprintln!("{}: not installed, left out", peer.name()),
        }
    }
    let folder = tempfile::tempdir().map_err(|error| format!("cannot make a folder: {error}"))?;
    let mut samples = Samples::new();
    for &workload in &plan.workloads {
        let at = folder.path();
        workload
            .write_names(
                &at.join(format!("{}.first", workload.name())),
                &at.join(format!("{}.names", workload.name())),
            )
            .map_err(|error| format!("cannot write the names: {error}"))?;
    }
    for round in 1..=plan.rounds {
        for &workload in &plan.workloads {
            for &peer in versions.keys() {
                if peer.why_not(workload).is_some() {
                    continue;
                }
                let result = Scene { plan, cpus, names: folder.path(), workload, peer }.measure();
                match &result {
                    Ok(sample) => eprintln!(
                        "{round}/{} {:<12} {:<14} {:>9.0} q/s {:>8.2} us/query, lost {}",
                        plan.rounds,
                        workload.name(),
                        peer.name(),
                        sample.per_second,
                        sample.cpu_per_query,
                        sample.lost
                    ),
                    Err(error) => eprintln!(
                        "{round}/{} {:<12} {:<14} {error}",
                        plan.rounds,
                        workload.name(),
                        peer.name()
                    ),
                }
                samples.entry((workload, peer)).or_default().push(result.ok());
            }
        }
    }
    Ok(report::write(plan, &versions, &samples))
}

/// The first two CPUs that this process may use: the server's, and that of client and upstream.
fn two_cpus() -> Result<[usize; 2], String> {
    let set =
        nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0)).map_err(|error| error.to_string())?;
    let mut cpus = (0..nix::sched::CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap_or(false));
    match (cpus.next(), cpus.next()) {
        (Some(first), Some(second)) => Ok([first, second]),
        _ => Err("two CPUs are needed: one for the server, one for the client".to_owned()),
    }
}

/// One run.
struct Scene<'a> {
    plan: &'a Plan,
    cpus: [usize; 2],
    names: &'a Path,
    workload: Workload,
    peer: Peer,
}

impl Scene<'_> {
    fn measure(&self) -> Result<Sample, String> {
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let folder = tempfile::tempdir().map_err(|error| text(&error))?;
        let net = Netns::new().map_err(|error| text(&error))?;
        let server: std::net::IpAddr = SERVER.parse().map_err(|error| text(&error))?;
        net.add_address("lo", server, 32).map_err(|error| text(&error))?;
        let (server_cpu, client_cpu) =
            if self.workload.floats() { (None, None) } else { (Some(self.cpus[0]), Some(self.cpus[1])) };

        let mut upstream = pinned(std::env::current_exe().map_err(|error| text(&error))?, client_cpu);
        upstream.args(["upstream", &format!("{UPSTREAM}:53")]);
        let upstream = net.spawn(upstream).map_err(|error| text(&error))?;
        upstream.wait_for_line(START, |line| line.contains("answering")).map_err(|error| text(&error))?;

        let setting = Setting {
            folder: folder.path(),
            workload: self.workload,
            cpu: server_cpu,
            programs: &self.plan.programs,
        };
        let command = self.peer.command(&setting).map_err(|error| text(&error))?;
        let daemon = net.spawn(command).map_err(|error| text(&error))?;
        wait_until_it_answers(&net, &daemon)?;
        sleep(REST);
        let idle_kib = resident(&daemon)?;

        let _hog = match self.workload {
            Workload::Hog => {
                let mut hog = Command::new(std::env::current_exe().map_err(|error| text(&error))?);
                Some(
                    net.spawn({
                        hog.arg("hog");
                        hog
                    })
                    .map_err(|error| text(&error))?,
                )
            }
            _ => None,
        };
        let output = folder.path().join("dnsperf");
        let names = |end: &str| self.names.join(format!("{}.{end}", self.workload.name()));
        let load = |names: &Path, seconds, rate, latencies| {
            Load { server: SERVER, names, seconds, rate, latencies, cpu: client_cpu }.run(&net, &output)
        };
        // At a rate at which nobody loses anything that is to be kept.
        let rate = (self.workload == Workload::Memory || self.workload.misses()).then_some(STEADY_RATE);
        let warm_up = load(&names("first"), None, rate, false)?;
        let mut sample = Sample { idle_kib, ..Sample::default() };
        match self.workload {
            Workload::Memory => {
                sample.lost = (HELD as u64).saturating_sub(warm_up.completed);
                sample.answered_percent = warm_up.answered_percent;
            }
            Workload::Burst => {
                sleep(REST);
                let list = std::fs::read_to_string(names("names")).map_err(|error| text(&error))?;
                let list: Vec<_> =
                    list.lines().filter_map(|line| Some(line.split_once(' ')?.0.to_owned())).collect();
                let lost = net.run(|| burst::lost(address(), &list)).map_err(|error| text(&error))?;
                sample.lost = lost.map_err(|error| text(&error))?;
                sample.answered_percent = 100.0;
            }
            _ => {
                let steady = self.workload.is_steady();
                let before = cpu_time(&daemon)?;
                let seconds = Some(self.plan.seconds);
                let outcome = load(&names("names"), seconds, steady.then_some(STEADY_RATE), steady)?;
                let used = cpu_time(&daemon)?.saturating_sub(before);
                sample.take(&outcome, used);
            }
        }
        sample.resident_kib = resident(&daemon)?;
        Ok(sample)
    }
}

impl Sample {
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    fn take(&mut self, outcome: &Outcome, used: Duration) {
        self.per_second = outcome.per_second;
        self.cpu_per_query = used.as_secs_f64() * 1e6 / outcome.completed.max(1) as f64;
        self.lost = outcome.lost;
        self.p50 = percentile(&outcome.latencies, 50);
        self.p99 = percentile(&outcome.latencies, 99);
        self.answered_percent = outcome.answered_percent;
    }
}

fn address() -> SocketAddr {
    SocketAddr::from(([169, 254, 20, 10], 53))
}

/// Asks until an answer comes.
fn wait_until_it_answers(net: &Netns, daemon: &Daemon) -> Result<(), String> {
    let asked = net.run(|| -> std::io::Result<bool> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        let end = Instant::now() + START;
        while Instant::now() < end {
            let began = Instant::now();
            if socket.send_to(&burst::query(1, "ready.bench.example.com"), address()).is_ok()
                && socket.recv(&mut [0; 512]).is_ok_and(|length| length > 12)
            {
                return Ok(true);
            }
            sleep(Duration::from_millis(50).saturating_sub(began.elapsed()));
        }
        Ok(false)
    });
    match asked.map_err(|error| error.to_string())? {
        Ok(true) => Ok(()),
        _ => Err(format!("does not answer; it said:\n{}", daemon.lines().join("\n"))),
    }
}

/// CPU time of all threads of the process, those that have ended included.
fn cpu_time(daemon: &Daemon) -> Result<Duration, String> {
    let path = format!("/proc/{}/stat", daemon.id());
    let text = std::fs::read_to_string(&path)
        .map_err(|error| format!("{path}: {error}; it said:\n{}", daemon.lines().join("\n")))?;
    // The name of the program may hold anything; behind its parenthesis, utime is the 12th field.
    let fields: Vec<&str> = text.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let field = |index: usize| fields.get(index).and_then(|field| field.parse::<u64>().ok());
    let ticks = field(11).zip(field(12)).map(|(user, system)| user + system);
    let ticks = ticks.ok_or_else(|| format!("{path}: not understood"))?;
    let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100);
    Ok(Duration::from_millis(ticks * 1000 / per_second.cast_unsigned().max(1)))
}

/// Resident memory, in KiB.
fn resident(daemon: &Daemon) -> Result<u64, String> {
    let path = format!("/proc/{}/status", daemon.id());
    let text = std::fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let value = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    value.ok_or_else(|| format!("{path}: not understood; it said:\n{}", daemon.lines().join("\n")))
}
