//! `nodestub-resolver`: reads the command line, starts what it asks for, and turns the end into an exit status.
#![forbid(unsafe_code)]

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use nodestub_resolver::app;
use nodestub_resolver::app::StartError;
use nodestub_resolver::args::{Arguments, Command, Serve, with_two_dashes};
use nodestub_resolver::holder;
use tokio::runtime::{Builder, Runtime};
use tracing_subscriber::EnvFilter;

/// Threads of the slow side; misses wait for upstreams, not for a CPU.
const SLOW_THREADS: usize = 4;

fn main() -> ExitCode {
    let arguments = Arguments::parse_from(with_two_dashes(std::env::args_os()));
    match arguments.command {
        Some(Command::Check { file, placeholders }) => {
            if app::check(&file, &placeholders) {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            }
        }
        Some(Command::Cleanup { local_addresses, port, force }) => ended(
            runtime(1).and_then(|runtime| runtime.block_on(app::clean_up(&local_addresses, port, force))),
        ),
        Some(Command::Rules(serve)) => {
            ended(runtime(1).and_then(|runtime| runtime.block_on(app::print_rules(&serve))))
        }
        None => ended(serve(&arguments.serve)),
    }
}

fn serve(arguments: &Serve) -> Result<(), StartError> {
    let filter = EnvFilter::try_from_env("NODESTUB_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(SLOW_THREADS);
    runtime(threads)?.block_on(app::serve(arguments))
}

fn runtime(threads: usize) -> Result<Runtime, StartError> {
    Builder::new_multi_thread().worker_threads(threads).enable_all().build().map_err(StartError::System)
}

fn ended(result: Result<(), StartError>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            if let Some(holder) = error.in_use().and_then(holder::describe) {
                eprintln!("{holder}, and it is left alone; stop it, or give this resolver another address");
            }
            ExitCode::FAILURE
        }
    }
}
