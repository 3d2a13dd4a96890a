//! `kubectl-nodestub`: what `kubectl nodestub` runs. All of it is in the library's `explain` and `certificates`.
#![forbid(unsafe_code)]

use std::error::Error;
use std::io::Write as _;
use std::process::ExitCode;

use nodestub_webhook::explain::cli::{CliError, run};

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
    match run(&words) {
        Ok(text) => match std::io::stdout().write_all(text.as_bytes()) {
            Ok(()) => ExitCode::SUCCESS,
            // Whoever reads us has seen enough.
            Err(_) => ExitCode::FAILURE,
        },
        // Help and version go to standard output, and are no failures.
        Err(CliError::Flags(error)) => error.exit(),
        Err(error) => {
            if let CliError::Distrusted(shown) = &error {
                print!("{shown}");
            }
            let mut text = error.to_string();
            let mut cause = error.source();
            while let Some(error) = cause {
                text = format!("{text}: {error}");
                cause = error.source();
            }
            eprintln!("kubectl nodestub: {text}");
            ExitCode::FAILURE
        }
    }
}
