//! `nodestub-webhook`: parses flags, starts logging, and hands over to the library.
#![forbid(unsafe_code)]

use std::error::Error;
use std::process::ExitCode;

use clap::Parser as _;
use nodestub_webhook::app;
use nodestub_webhook::args::{Cli, Command, LogFormat};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.command {
        Some(Command::Certificates(args)) => app::certificates(&args),
        Some(Command::Policy(args)) => app::policy(*args),
        None => cli.serve.settings().map_err(Into::into).and_then(|settings| {
            start_logging(settings.log_format);
            app::run(settings)
        }),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("nodestub-webhook: {}", in_one_line(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

/// Logs go to standard error; `NODESTUB_LOG` chooses what is logged, such as `warn` or `nodestub_webhook=debug`.
fn start_logging(format: LogFormat) {
    // The client logs each try; what a failure means for us is said once, by `facts`.
    let usual = || EnvFilter::new("info,kube_client=off,kube_runtime=off");
    let filter = EnvFilter::try_from_env("NODESTUB_LOG").unwrap_or_else(|_| usual());
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => logs.with_ansi(false).init(),
        LogFormat::Json => logs.json().flatten_event(true).init(),
    }
    // One line instead of a panic's several; the request is answered all the same (`admission`).
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let what = panic.payload_as_str().unwrap_or("no message");
        tracing::error!(place, what, "panic");
    }));
}

fn in_one_line(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
