//! The folder of certificates, Corefiles and logs, which leaves nothing behind.
//!
//! In namespaces it is a tmpfs of the demo's own, mounted in its private mount namespace over some folder that it does
//! not need: the machine never sees a file of it, and it vanishes with the last process, even after SIGKILL. On
//! loopback it is an ordinary temporary folder.

use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nodestub_lab::Error;

/// Folders that nearly every system has and hardly any program needs.
const CANDIDATES: [&str; 4] = ["/mnt", "/media", "/srv", "/dev/shm"];

/// Makes a private one; `needed` are paths that must stay visible. Only for a process with its own mount namespace.
pub(crate) fn private(needed: &[PathBuf]) -> Result<PathBuf, Error> {
    let there: Vec<&Path> = CANDIDATES.iter().map(Path::new).filter(|folder| folder.is_dir()).collect();
    let folder = choose(&there, needed)
        .ok_or_else(|| Error::new("find a folder to mount a tmpfs on: make a folder /mnt"))?;
    mount(Some("tmpfs"), folder, Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some("mode=0700"))
        .map_err(|error| Error::caused(format!("mount a tmpfs on {}", folder.display()), error))?;
    // What others put into temporary folders comes here as well.
    tempfile::env::override_temp_dir(folder).map_err(|other| {
        Error::new(format!("move temporary folders: they are in {} already", other.display()))
    })?;
    Ok(folder.to_owned())
}

/// Makes an ordinary one, which somebody has to remove.
pub(crate) fn temporary() -> Result<PathBuf, Error> {
    let folder = tempfile::Builder::new().prefix("nodestub-demo-").tempdir();
    Ok(folder.map_err(|error| Error::caused("make a temporary folder", error))?.keep())
}

fn choose<'a>(there: &[&'a Path], needed: &[PathBuf]) -> Option<&'a Path> {
    there.iter().copied().find(|folder| !needed.iter().any(|path| path.starts_with(folder)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hides_nothing_that_is_needed() {
        let there = [Path::new("/mnt"), Path::new("/media")];
        let needed = |path: &str| vec![PathBuf::from(path)];
        assert_eq!(choose(&there, &needed("/home/me/nodestub")), Some(Path::new("/mnt")));
        assert_eq!(choose(&there, &needed("/mnt/c/nodestub")), Some(Path::new("/media")));
        assert_eq!(choose(&there[..1], &needed("/mnt")), None);
        assert_eq!(choose(&[], &[]), None);
    }
}
