//! `cargo demo`, first half: checks the machine, builds the daemons and the second half, and becomes the latter.
//!
//! Without dependencies, so that whatever is missing is said in the first second and not after minutes of building.
//! The rest is built by one cargo command, so that each dependency is compiled with one set of features, once.
//! Order: options → the machine → the manifest can be read → build → `nodestub-demo-show` in this process's place.
//! With `--cluster` only the options are read here: `tests/cluster/demo` does the rest, with what the cluster's tests use.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use nodestub_demo::args::{Arguments, HELP};
use nodestub_demo::terminal::Palette;

#[cfg(target_os = "linux")]
mod build_binaries;
#[cfg(target_os = "linux")]
mod machine;

fn main() -> ExitCode {
    let arguments = match Arguments::parse(std::env::args_os().skip(1)) {
        Ok(arguments) => arguments,
        Err(error) => {
            eprintln!("demo: {error}");
            return ExitCode::from(2);
        }
    };
    if arguments.help {
        print!("{HELP}");
        return ExitCode::SUCCESS;
    }
    let error = run(&arguments);
    eprintln!("{}", Palette::for_stdout(arguments.colour).fault(error));
    ExitCode::FAILURE
}

/// Returns only if something is wrong.
#[cfg(target_os = "linux")]
fn run(arguments: &Arguments) -> String {
    use std::os::unix::process::CommandExt;

    use nodestub_demo::{BUILT_VARIABLE, STARTED_VARIABLE, now_ms};

    if arguments.cluster {
        return on_a_cluster(arguments);
    }
    let started = now_ms();
    if let Err(error) = machine::check(arguments) {
        return error;
    }
    let show = match build_binaries::build(Palette::for_stdout(arguments.colour)) {
        Ok(show) => show,
        Err(error) => return error,
    };
    let error = std::process::Command::new(&show)
        .args(std::env::args_os().skip(1))
        .env(STARTED_VARIABLE, started.to_string())
        .env(BUILT_VARIABLE, now_ms().to_string())
        .exec();
    format!("{} does not start: {error}", show.display())
}

/// As [`run`].
#[cfg(target_os = "linux")]
fn on_a_cluster(arguments: &Arguments) -> String {
    use std::os::unix::process::CommandExt;

    let script = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("cluster").join("demo");
    let colour = if Palette::for_stdout(arguments.colour).is_coloured() { "always" } else { "never" };
    let mut command = std::process::Command::new(&script);
    command.args(["--color", colour]).args(arguments.keep.then_some("--keep"));
    let error = command.exec();
    format!("{} does not start: {error}", script.display())
}

#[cfg(not(target_os = "linux"))]
fn run(_: &Arguments) -> String {
    "Nodestub works with the Linux kernel only: run the demo on Linux, in a container or in a virtual machine"
        .to_owned()
}
