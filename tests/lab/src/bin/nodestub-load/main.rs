//! `nodestub-load`: DNS queries at a steady rate, each sent once, and a count of what became of them.
//!
//! A program of its own, so that it can be put into a pod: it asks as stub resolvers do, and no library hides what is
//! lost. Only bytes and sockets: it may use none of our crates.
//!
//! ```text
//! nodestub-load --server IP --zone NAME [OPTION VALUE]...     asks until --stop or --seconds
//! nodestub-load kill PID                                      SIGKILL; prints when it was sent and when all was over
//! ```
//!
//! | option | default | |
//! | --- | --- | --- |
//! | `--server IP` | | whom to ask, port 53 |
//! | `--zone NAME`, `--names N` | 100 | asks for the addresses of `n0.NAME` to `n99.NAME` |
//! | `--udp RATE` | 0 | queries a second |
//! | `--per-port N` | 8 | queries from one port; then another one is taken |
//! | `--tcp-new RATE` | 0 | connections a second, for one query each |
//! | `--tcp-kept N` | 0 | connections that are kept, each with 20 queries a second |
//! | `--per-connection N` | 100 | queries on one that is kept; then it is closed, and another one opened |
//! | `--seconds N` | 600 | ends by itself after that |
//! | `--stop FILE` | | ends when there is such a file |
//! | `--timeline FILE` | | writes there what became of the queries of each millisecond |
//!
//! **Who answered** is told by the answer: the cluster DNS of `tests/cluster` gives, as the address of each name of its
//! zone, the address of whoever asked it. An answer with our own address came from the cluster DNS, which saw us; another
//! one from a resolver between, which had asked.
//!
//! | file | |
//! | --- | --- |
//! | `main` | options, the report |
//! | `message` | a query and an answer, as bytes |
//! | `tally` | what became of the queries |
//! | `udp`, `tcp` | the clients |
#![forbid(unsafe_code)]
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a tool of the tests may stop at the first surprise"
)]

mod message;
mod tally;
mod tcp;
mod udp;

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::tally::Tally;

/// After that a query is lost. Twice what a stub resolver waits: a machine that is too busy to run anybody for seconds is
/// not what is looked for, and the slowest answer is reported by itself.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
/// Threads that send by UDP, while the rate asks for them: one is good for some 20,000 queries a second.
const UDP_CLIENT_RATE: u32 = 12_000;
/// Connections a second that one thread opens.
const TCP_CLIENT_RATE: u32 = 250;

/// What all clients share.
pub(crate) struct Plan {
    pub(crate) server: SocketAddr,
    /// The address that we ask from.
    pub(crate) own: IpAddr,
    pub(crate) zone: String,
    pub(crate) names: u32,
    pub(crate) per_port: usize,
    pub(crate) per_connection: u32,
    pub(crate) started: Instant,
    pub(crate) over: AtomicBool,
}

impl Plan {
    pub(crate) fn is_over(&self) -> bool {
        self.over.load(SeqCst)
    }
}

struct Options {
    server: SocketAddr,
    zone: String,
    names: u32,
    udp: u32,
    per_port: usize,
    tcp_new: u32,
    tcp_kept: u32,
    per_connection: u32,
    limit: Duration,
    stop: Option<PathBuf>,
    timeline: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let done = match arguments.as_slice() {
        [word, pid] if word == "kill" => kill(pid),
        _ => read_options(&arguments).map(|options| load(&options)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("nodestub-load: {error}");
            ExitCode::from(2)
        }
    }
}

fn read_options(arguments: &[String]) -> Result<Options, String> {
    let mut options = Options {
        server: SocketAddr::from(([0, 0, 0, 0], 53)),
        zone: String::new(),
        names: 100,
        udp: 0,
        per_port: 8,
        tcp_new: 0,
        tcp_kept: 0,
        per_connection: 100,
        limit: Duration::from_secs(600),
        stop: None,
        timeline: None,
    };
    for pair in arguments.chunks(2) {
        let [name, value] = pair else { return Err(format!("{} needs a value", pair[0])) };
        let wrong = |_| format!("{name} {value}: no number");
        let number = || value.parse::<u32>().map_err(wrong);
        match name.as_str() {
            "--server" => {
                let address: IpAddr = value.parse().map_err(|_| format!("{value} is no address"))?;
                options.server = SocketAddr::new(address, 53);
            }
            "--zone" => options.zone.clone_from(value),
            "--names" => options.names = number()?.max(1),
            "--udp" => options.udp = number()?,
            "--per-port" => options.per_port = value.parse::<usize>().map_err(wrong)?.max(1),
            "--tcp-new" => options.tcp_new = number()?,
            "--tcp-kept" => options.tcp_kept = number()?,
            "--per-connection" => options.per_connection = number()?.max(1),
            "--seconds" => options.limit = Duration::from_secs(number()?.into()),
            "--stop" => options.stop = Some(value.into()),
            "--timeline" => options.timeline = Some(value.into()),
            _ => return Err(format!("no option {name}")),
        }
    }
    if options.server.ip().is_unspecified() || options.zone.is_empty() {
        return Err("--server and --zone are needed".to_owned());
    }
    Ok(options)
}

fn load(options: &Options) {
    let (started, started_at) = (Instant::now(), SystemTime::now());
    let plan = Plan {
        server: options.server,
        own: own_address(options.server),
        zone: options.zone.clone(),
        names: options.names,
        per_port: options.per_port,
        per_connection: options.per_connection,
        started,
        over: AtomicBool::new(false),
    };
    let plan = &plan;
    let shares = |rate: u32, each: u32| {
        let clients = rate.div_ceil(each);
        (0..clients).map(move |_| Duration::from_secs(1) * clients / rate)
    };
    let (udp, new, kept) = std::thread::scope(|scope| {
        let udp: Vec<_> = shares(options.udp, UDP_CLIENT_RATE)
            .map(|pause| scope.spawn(move || udp::Client::new(plan, pause).run()))
            .collect();
        let new: Vec<_> = shares(options.tcp_new, TCP_CLIENT_RATE)
            .map(|pause| scope.spawn(move || tcp::new_each_time(plan, pause)))
            .collect();
        let kept: Vec<_> =
            (0..options.tcp_kept).map(|number| scope.spawn(move || tcp::kept(plan, number))).collect();
        while started.elapsed() < options.limit && !options.stop.as_ref().is_some_and(|file| file.exists()) {
            std::thread::sleep(Duration::from_millis(50));
        }
        plan.over.store(true, SeqCst);
        let sum = |clients: Vec<std::thread::ScopedJoinHandle<'_, Tally>>| {
            clients.into_iter().map(|client| client.join().unwrap()).reduce(Tally::with)
        };
        (sum(udp), sum(new), sum(kept))
    });
    println!("asked {} as {} for {:.1} s", plan.server.ip(), plan.own, started.elapsed().as_secs_f64());
    let mut timeline = String::new();
    let start_ms = milliseconds(started_at);
    for (kind, tally) in [("udp", udp), ("tcp_new", new), ("tcp_kept", kept)] {
        let Some(tally) = tally else { continue };
        tally.report(kind);
        tally.write_timeline(kind, start_ms, &mut timeline);
    }
    if let Some(file) = &options.timeline {
        std::fs::write(file, timeline).expect("the timeline can be written");
    }
}

/// The address that the kernel takes towards the server.
fn own_address(server: SocketAddr) -> IpAddr {
    let socket = UdpSocket::bind(udp::anywhere(server)).unwrap();
    socket.connect(server).unwrap();
    socket.local_addr().unwrap().ip()
}

/// Ends a process, and waits until its last thread has: from then on nobody has its sockets.
fn kill(pid: &str) -> Result<(), String> {
    let process = pid.parse().ok().and_then(Pid::from_raw).ok_or(format!("{pid} is no process"))?;
    let process = pidfd_open(process, PidfdFlags::empty()).map_err(|error| format!("{pid}: {error}"))?;
    let asked = SystemTime::now();
    pidfd_send_signal(&process, Signal::KILL).map_err(|error| format!("kill {pid}: {error}"))?;
    poll(&mut [PollFd::new(&process, PollFlags::IN)], None).map_err(|error| error.to_string())?;
    println!("{} {}", milliseconds(asked), milliseconds(SystemTime::now()));
    Ok(())
}

fn milliseconds(time: SystemTime) -> u128 {
    time.duration_since(UNIX_EPOCH).unwrap().as_millis()
}
