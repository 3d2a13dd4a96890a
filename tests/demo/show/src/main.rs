//! `cargo demo`, second half: shows the main job with real processes.
//!
//! The same program runs in up to three roles, told apart at the start:
//!
//! ```text
//!   outer ──starts──► probe   tries namespaces and connection tracking in a process of its own, and ends
//!     └─────starts──► inner   process 1 of namespaces that vanish with it; or, where they are refused, on loopback
//! ```
//!
//! The outer process only waits, and hands on signals. Whatever happens to it, the inner one ends with it, and the
//! inner one's end takes everything away: in namespaces the kernel does that, on loopback [`cleanup`] does.
//!
//! | module | what lives there |
//! | --- | --- |
//! | `manifest` | from a manifest to the Pod that an API server would send |
//! | `scene`, `folder`, `process`, `cleanup` | namespaces, files and daemons, and their end |
//! | `admission`, `http` | the API server's part: a TLS client, the patch applied |
//! | `diff`, `resolv_conf`, `metrics` | pure: what is shown and compared |
//! | `rounds` | names resolved in the pod, and what the counters say of it |
//! | `steady` | a pod that asks without a pause, while resolvers come and go |
//! | `play` | the whole, in order, as it is printed |
#![forbid(unsafe_code)]

mod admission;
mod cleanup;
mod diff;
mod folder;
mod http;
mod manifest;
mod metrics;
mod play;
mod process;
mod resolv_conf;
mod rounds;
mod scene;
mod steady;

use std::process::{Command, ExitCode, Stdio};

use nodestub_demo::args::{Arguments, HELP};
use nodestub_demo::terminal::{Palette, printable};
use nodestub_lab::isolate::{end_with_parent, is_inside, isolate_as, supervise};
use nodestub_lab::{Error, Isolation, Netns, Rights, conntrack, isolate, rights};

use crate::play::{Ground, Play};

/// Set for a process that only tries.
const PROBE_VARIABLE: &str = "NODESTUB_DEMO_PROBE";
/// Set for the inner process on loopback, to the reason why there are no namespaces.
const LOOPBACK_VARIABLE: &str = "NODESTUB_DEMO_LOOPBACK";
/// The outer process's id, by which others enter the namespaces.
const OUTER_VARIABLE: &str = "NODESTUB_DEMO_OUTER_PID";

fn main() -> ExitCode {
    if std::env::var_os(PROBE_VARIABLE).is_some() {
        return finish(Palette::for_stdout(Default::default()), probe());
    }
    let arguments = match Arguments::parse(std::env::args_os().skip(1)) {
        Ok(arguments) if arguments.help => {
            print!("{HELP}");
            return ExitCode::SUCCESS;
        }
        Ok(arguments) => arguments,
        Err(error) => {
            eprintln!("demo: {error}");
            return ExitCode::from(2);
        }
    };
    finish(Palette::for_stdout(arguments.colour), run(&arguments))
}

fn finish(palette: Palette, result: Result<u8, Error>) -> ExitCode {
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("{}", palette.fault(error));
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<u8, Error> {
    if let Ok(reason) = std::env::var(LOOPBACK_VARIABLE) {
        end_with_parent()?;
        return Play::new(arguments)?.perform(&Ground::Loopback { reason: &reason });
    }
    if is_inside() {
        isolate()?;
        let outer = std::env::var(OUTER_VARIABLE).ok();
        return Play::new(arguments)?.perform(&Ground::Namespaces { outer: outer.as_deref() });
    }

    // A manifest that is of no use is said before anything is made.
    manifest::load(arguments.manifest.as_deref())?;
    let own = std::env::current_exe().map_err(|error| Error::caused("find the demo's own file", error))?;
    let mut again = Command::new(own);
    again.args(std::env::args_os().skip(1)).env(OUTER_VARIABLE, std::process::id().to_string());
    let code = match why_no_namespaces(arguments)? {
        Some(reason) => supervise({
            again.env(LOOPBACK_VARIABLE, reason);
            again
        })?,
        None => match isolate_as(again)? {
            Isolation::Finished(code) => code,
            Isolation::Inside => return Err(Error::new("start the demo: it is process 1 already")),
        },
    };
    Ok(u8::try_from(code).unwrap_or(1))
}

/// `None`: namespaces can be had. The attempt is made by another process, so that a half-made one harms nothing.
fn why_no_namespaces(arguments: &Arguments) -> Result<Option<String>, Error> {
    if arguments.loopback {
        return Ok(Some("as --loopback asks".to_owned()));
    }
    if let Rights::None(reason) = rights() {
        return Ok(Some(reason));
    }
    let own = std::env::current_exe().map_err(|error| Error::caused("find the demo's own file", error))?;
    let probe = Command::new(own).env(PROBE_VARIABLE, "1").stdin(Stdio::null()).output();
    let probe = probe.map_err(|error| Error::caused("try whether namespaces can be made", error))?;
    if probe.status.success() {
        return Ok(None);
    }
    let said = String::from_utf8_lossy(&probe.stderr);
    let said = said.lines().last().unwrap_or_default();
    let reason = said.strip_prefix("demo: ").unwrap_or(said);
    Ok(Some(format!("namespaces were refused: {}", printable(reason))))
}

fn probe() -> Result<u8, Error> {
    match isolate()? {
        Isolation::Finished(code) => Ok(u8::try_from(code).unwrap_or(1)),
        Isolation::Inside => {
            let (one, other) = (Netns::new()?, Netns::new()?);
            one.join("probe0", &other, "probe1")?;
            conntrack::force_tracking(&one)?;
            conntrack::count(&one, 53)?;
            Ok(0)
        }
    }
}
