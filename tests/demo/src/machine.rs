//! What the machine must have, asked before anything is built. Each failure is one line that says what to do.

use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};

use nodestub_demo::args::Arguments;

/// Checks the machine and the manifest.
pub(crate) fn check(arguments: &Arguments) -> Result<(), String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // A build script asks for the compiler by `CC` first, as the crate `cc` does.
    let compiler = std::env::var_os("CC").filter(|name| !name.is_empty()).unwrap_or_else(|| "cc".into());
    let compiler = compiler.to_string_lossy();
    let program = compiler.split_whitespace().next().unwrap_or("cc");
    if find(program, &path).is_none() {
        return Err(format!(
            "there is no C compiler ({program}): install one (Debian: apt-get install gcc libc6-dev; Fedora: dnf install gcc)"
        ));
    }
    if !arguments.loopback && find("getent", &path).is_none() {
        return Err(
            "there is no getent, which resolves names as programs do: install it (Debian: apt-get install \
                    libc-bin; Alpine: apk add musl-utils), or run `cargo demo --loopback`"
                .to_owned(),
        );
    }
    if let Some(manifest) = &arguments.manifest
        && let Err(error) = File::open(manifest)
    {
        return Err(format!("cannot read the manifest {}: {error}", manifest.display()));
    }
    Ok(())
}

/// The program that a shell would start.
fn find(program: &str, path: &OsStr) -> Option<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    let runs = |file: &Path| {
        file.metadata().is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
    };
    if program.contains('/') {
        return Some(PathBuf::from(program)).filter(|file| runs(file));
    }
    std::env::split_paths(path).map(|folder| folder.join(program)).find(|file| runs(file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_programs_as_a_shell_does() {
        assert_eq!(find("sh", OsStr::new("/nowhere:/bin")), Some(PathBuf::from("/bin/sh")));
        assert_eq!(find("/bin/sh", OsStr::new("")), Some(PathBuf::from("/bin/sh")));
        assert_eq!(find("sh", OsStr::new("/nowhere")), None);
        // A folder, and a file that nobody may run.
        assert_eq!(find("bin", OsStr::new("/usr")), None);
        assert_eq!(find("passwd", OsStr::new("/etc")), None);
    }
}
