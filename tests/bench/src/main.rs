//! `nodestub-bench`: what a query costs, measured beside those who do the same work, in one run.
//!
//! ```text
//!   plan: rounds × workloads × servers        (interleaved, so that a slow minute hits all alike)
//!     each: a fresh namespace ─ upstream ─ server ─ is it answering? ─ warm-up ─ dnsperf ─ CPU time, memory
//!   medians over the rounds; ratios are taken within a round, then their median
//! ```
//!
//! One server runs at a time, on one CPU; dnsperf and the upstream have another one. What is printed depends on the
//! machine; the ratios do less so. Every run has a bound in time and in queries, and everything is in namespaces of
//! its own: when this process ends, however it does, the kernel takes all of it away.

mod answers;
mod batch;
mod burst;
mod echo;
mod load;
mod peers;
mod report;
mod run;
mod workload;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use nodestub_lab::{Isolation, isolate};

use crate::run::Plan;

/// Measures what a DNS query costs here, beside CoreDNS, Unbound, dnsdist, PowerDNS, BIND, Knot and dnsmasq.
#[derive(Debug, Parser)]
struct Arguments {
    /// One round of two seconds: enough to see that all of it works
    #[arg(long)]
    quick: bool,
    /// Rounds, over which medians are taken
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Seconds for which each server is loaded
    #[arg(long, default_value_t = 5)]
    seconds: u32,
    /// Only these servers (see --list)
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Only these workloads (see --list)
    #[arg(long, value_delimiter = ',')]
    workload: Vec<String>,
    /// Lists servers and workloads
    #[arg(long)]
    list: bool,
    /// The resolver that is measured
    #[arg(long, default_value = "target/release/nodestub-resolver")]
    resolver: PathBuf,
    /// CoreDNS
    #[arg(long, default_value = "coredns")]
    coredns: PathBuf,
    /// Writes the tables here too, as Markdown
    #[arg(long)]
    output: Option<PathBuf>,
    #[command(subcommand)]
    role: Option<Role>,
}

/// What this program is when it starts itself.
#[derive(Debug, clap::Subcommand)]
enum Role {
    #[command(hide = true)]
    Upstream { address: SocketAddr },
    #[command(hide = true)]
    BatchedEcho { address: SocketAddr },
    #[command(hide = true)]
    BlockingEcho { address: SocketAddr },
    #[command(hide = true)]
    Hog,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match arguments.role {
        Some(Role::Upstream { address }) => answers::serve(address),
        Some(Role::BatchedEcho { address }) => echo::batched(address),
        Some(Role::BlockingEcho { address }) => echo::blocking(address),
        Some(Role::Hog) => echo::keep_busy(),
        None => match isolate() {
            Ok(Isolation::Finished(code)) => return ExitCode::from(u8::try_from(code).unwrap_or(1)),
            Ok(Isolation::Inside) => measure(&arguments),
            Err(error) => Err(error.to_string()),
        },
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(arguments: &Arguments) -> Result<(), String> {
    let mut plan = Plan::new(&arguments.only, &arguments.workload)?;
    plan.rounds = if arguments.quick { 1 } else { arguments.rounds.clamp(1, 50) };
    plan.seconds = if arguments.quick { 2 } else { arguments.seconds.clamp(1, 20) };
    plan.programs =
        peers::Programs { resolver: arguments.resolver.clone(), coredns: arguments.coredns.clone() };
    if arguments.list {
        plan.list();
        return Ok(());
    }
    let report = run::run(&plan)?;
    print!("{report}");
    if let Some(path) = &arguments.output {
        std::fs::write(path, report).map_err(|error| format!("cannot write {}: {error}", path.display()))?;
    }
    Ok(())
}
