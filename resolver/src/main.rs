//! `nodestub-resolver`: reads the command line, starts what it asks for, and turns the end into an exit status.
//!
//! Signals are blocked and rights given up before there is a second thread: see `signals` and `privileges`.
#![forbid(unsafe_code)]

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use nodestub_resolver::app::{self, StartError};
use nodestub_resolver::args::{Arguments, Command, Serve, with_two_dashes};
use nodestub_resolver::signals::{self, Signals};
use nodestub_resolver::{control, privileges};
use tokio::runtime::{Builder, Runtime};
use tracing_subscriber::EnvFilter;

/// Threads of the slow side; misses wait for upstreams, not for a CPU.
const SLOW_THREADS: usize = 4;

fn main() -> ExitCode {
    let arguments = Arguments::parse_from(with_two_dashes(std::env::args_os()));
    match arguments.command {
        Some(Command::Check { file, placeholders }) => {
            without_rights();
            if app::check(&file, &placeholders) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Some(Command::Cleanup { local_addresses, port, force }) => {
            let clean_up = || {
                privileges::confine().map_err(StartError::System)?;
                runtime(1)?.block_on(app::clean_up(local_addresses, port, force))
            };
            ended(clean_up())
        }
        Some(Command::Rules(serve)) => {
            without_rights();
            ended(app::print_rules(&serve))
        }
        Some(Command::Probe { question, limit, pid }) => {
            without_rights();
            match control::ask(question, pid, limit) {
                Ok(text) => {
                    println!("yes: {text}");
                    ExitCode::SUCCESS
                }
                Err(error) => {
                    eprintln!("{error}");
                    ExitCode::FAILURE
                }
            }
        }
        None => ended(serve(&arguments.serve)),
    }
}

fn serve(arguments: &Serve) -> Result<(), StartError> {
    signals::block().map_err(StartError::System)?;
    let filter = EnvFilter::try_from_env("NODESTUB_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    privileges::confine().map_err(StartError::System)?;
    let signals = Signals::watch().map_err(StartError::System)?;
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(SLOW_THREADS);
    let runtime = runtime(threads)?;
    let result = runtime.block_on(app::serve(arguments, signals));
    // Without waiting for what may hang in it.
    runtime.shutdown_background();
    result
}

/// For what needs none. Where they cannot be given up, they are not used all the same.
fn without_rights() {
    if let Err(cause) = privileges::give_up() {
        eprintln!("cannot give up capabilities: {cause}");
    }
}

fn runtime(threads: usize) -> Result<Runtime, StartError> {
    Builder::new_multi_thread().worker_threads(threads).enable_all().build().map_err(StartError::System)
}

fn ended(result: Result<(), StartError>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
