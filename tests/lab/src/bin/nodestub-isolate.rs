//! `nodestub-isolate PROGRAM [ARGUMENT...]`: runs a program in namespaces of its own, with root's rights there.
//!
//! For tests without root: `CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER=target/debug/nodestub-isolate cargo test`.
//! Exit status: the program's; 125 when the namespaces could not be made, 127 when the program could not be started.
#![forbid(unsafe_code)]

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, exit};

use nodestub_lab::{Isolation, isolate};

fn main() {
    let mut arguments = std::env::args_os().skip(1);
    let Some(program) = arguments.next() else {
        eprintln!("usage: nodestub-isolate PROGRAM [ARGUMENT...]");
        exit(125);
    };
    match isolate() {
        Err(error) => {
            eprintln!("nodestub-isolate: {error}");
            exit(125);
        }
        Ok(Isolation::Finished(code)) => exit(code),
        Ok(Isolation::Inside) => {}
    }
    match Command::new(&program).args(arguments).status() {
        Ok(status) => exit(
            status
                .code()
                .or_else(|| status.signal().map(|signal| 128_i32.saturating_add(signal)))
                .unwrap_or(1),
        ),
        Err(error) => {
            eprintln!("nodestub-isolate: cannot start {}: {error}", program.display());
            exit(127);
        }
    }
}
