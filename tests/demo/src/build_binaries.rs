//! Builds everything that the demo runs, by the cargo that started us, in the profile that we were built in.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nodestub_demo::terminal::{Palette, Style};

const SHOW: &str = "nodestub-demo-show";
/// Packages and, of the same name, programs.
const PACKAGES: [&str; 3] = [SHOW, "nodestub-resolver", "nodestub-webhook"];

/// Builds, and returns the second half of the demo. Cargo shows its progress itself.
pub(crate) fn build(palette: Palette) -> Result<PathBuf, String> {
    let own = std::env::current_exe().map_err(|error| format!("cannot find the demo's own file: {error}"))?;
    let folder = own.parent().unwrap_or(Path::new("."));
    let first_time = PACKAGES.iter().any(|name| !folder.join(name).exists());
    if first_time {
        let text =
            "Building the resolver, the webhook and the demo; the first time this takes a minute or two.";
        println!("{}", palette.paint(Style::Dim, text));
    }
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // Without the Kubernetes client: there is no cluster here, and it is a minute's work to compile.
    command.args(["build", "--no-default-features", "--profile", profile(folder)]).stdin(Stdio::null());
    for package in PACKAGES {
        command.args(["--package", package]);
    }
    // Hundreds of lines are no use where nobody watches.
    if !std::io::stderr().is_terminal() {
        command.arg("--quiet");
    }
    let status = command.status().map_err(|error| format!("cannot start cargo: {error}"))?;
    if !status.success() {
        return Err("the build failed; cargo says why above".to_owned());
    }
    for name in PACKAGES {
        if !folder.join(name).exists() {
            return Err(format!(
                "cargo has not put {name} into {}: choose another target folder by CARGO_TARGET_DIR, not by --target-dir",
                folder.display()
            ));
        }
    }
    Ok(folder.join(SHOW))
}

/// Cargo's profile by the folder that it builds into.
fn profile(folder: &Path) -> &str {
    match folder.file_name().and_then(|name| name.to_str()) {
        Some("debug") => "dev",
        Some(name) => name,
        None => "quick",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_the_profile_that_it_was_built_in() {
        assert_eq!(profile(Path::new("/x/target/quick")), "quick");
        assert_eq!(profile(Path::new("/x/target/debug")), "dev");
        assert_eq!(profile(Path::new("/x/target/x86_64-unknown-linux-gnu/release")), "release");
    }
}
