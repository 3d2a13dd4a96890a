//! What a pod sees of the machine: a network namespace and an `/etc` with its own resolver configuration.
//!
//! The machine's files are never touched. A new mount namespace gets a copy of `/etc` that is made of mounts: a tmpfs
//! in which every entry of the real `/etc` is bound (files and directories) or made again (symbolic links), except for
//! the three files that decide how names are resolved. These are written, whatever stood there before: a file, a
//! symbolic link into `/run`, or nothing. The copy is then bound over `/etc`.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

use crate::isolate::keep_mounts_private;
use crate::netns::{enter, on_new_thread};
use crate::{Daemon, Error, Netns};

/// `hosts: files dns`, and files only for all else: no other name service can answer.
pub const NSSWITCH: &str = "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\nnetworks: files\nprotocols: files\nservices: files\n";

/// The hosts file of a container, as kubelets write it, without the pod's own name.
pub const HOSTS: &str = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n";

/// Where name service caches listen. A daemon behind such a socket would answer in our place.
const CACHE_DAEMONS: [&str; 4] = ["/run/nscd", "/var/run/nscd", "/run/nslcd", "/var/run/nslcd"];

/// A mount namespace beside a [`Netns`]. Vanishes when dropped and its processes have ended.
#[derive(Debug)]
pub struct Pod {
    netns: Netns,
    mounts: File,
}

impl Pod {
    /// Makes the mount namespace, with this text as `/etc/resolv.conf`.
    pub fn new(netns: &Netns, resolv_conf: &str) -> Result<Self, Error> {
        Self::with_files(
            netns,
            &[("resolv.conf", resolv_conf), ("nsswitch.conf", NSSWITCH), ("hosts", HOSTS)],
        )
    }

    /// As [`Pod::new`], with any files of `/etc` (plain names, no folders) in place of the machine's.
    pub fn with_files(netns: &Netns, files: &[(&str, &str)]) -> Result<Self, Error> {
        let mounts = on_new_thread(|| {
            unshare(CloneFlags::CLONE_NEWNS).map_err(Error::at("make a mount namespace"))?;
            keep_mounts_private()?;
            replace_etc(files)?;
            hide_cache_daemons()?;
            let own = "/proc/thread-self/ns/mnt";
            File::open(own).map_err(Error::at(format!("open {own}")))
        })?;
        Ok(Self { netns: netns.try_clone()?, mounts })
    }

    /// Runs a closure on a thread inside both namespaces and waits for it.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
        on_new_thread(|| {
            let folder = std::env::current_dir().map_err(Error::at("find the working folder"))?;
            // A thread that shares its root and working folder with others may not change mount namespaces.
            unshare(CloneFlags::CLONE_FS).map_err(Error::at("leave the shared working folder"))?;
            enter(self.netns.as_fd())?;
            setns(&self.mounts, CloneFlags::CLONE_NEWNS).map_err(Error::at("enter a mount namespace"))?;
            // Entering moved the thread to the root; relative paths should mean what they meant.
            std::env::set_current_dir(&folder)
                .map_err(Error::at(format!("go back to {}", folder.display())))?;
            Ok(work())
        })
    }

    /// Starts a process inside, with its output captured (see [`Daemon`]).
    pub fn spawn(&self, command: Command) -> Result<Daemon, Error> {
        self.run(|| Daemon::spawn(command))?
    }

    /// Runs a process inside to its end: `getent ahostsv4 NAME`, say.
    pub fn output(&self, mut command: Command) -> Result<Output, Error> {
        self.run(|| command.output().map_err(Error::at(format!("run {command:?}"))))?
    }

    /// The network namespace that this pod lives in.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }
}

fn replace_etc(files: &[(&str, &str)]) -> Result<(), Error> {
    let etc = Path::new("/etc");
    // Only the mount point; it goes away below, and with it every trace outside this mount namespace.
    let stage = tempfile::tempdir().map_err(Error::at("make a temporary folder"))?;
    let copy = stage.path();
    mount(Some("tmpfs"), copy, Some("tmpfs"), MsFlags::empty(), Some("mode=0755"))
        .map_err(Error::at("mount a tmpfs"))?;

    for entry in fs::read_dir(etc).map_err(Error::at("list /etc"))? {
        let entry = entry.map_err(Error::at("list /etc"))?;
        let name = entry.file_name();
        if files.iter().any(|(replaced, _)| name == *replaced) {
            continue;
        }
        let (from, to) = (entry.path(), copy.join(&name));
        let step = || format!("bring {} into the copy of /etc", from.display());
        let kind = entry.file_type().map_err(Error::at(step()))?;
        if kind.is_symlink() {
            fs::read_link(&from).and_then(|target| symlink(target, &to)).map_err(Error::at(step()))?;
        } else if kind.is_dir() {
            fs::create_dir(&to).map_err(Error::at(step()))?;
            bind(&from, &to).map_err(Error::at(step()))?;
        } else {
            File::create(&to).map_err(Error::at(step()))?;
            bind(&from, &to).map_err(Error::at(step()))?;
        }
    }
    for (name, text) in files {
        let path = copy.join(name);
        fs::write(&path, text).map_err(Error::at(format!("write {}", path.display())))?;
    }
    bind(copy, etc).map_err(Error::at("bind the copy over /etc"))?;
    umount2(copy, MntFlags::MNT_DETACH).map_err(Error::at("unmount the copy's first place"))?;
    stage.close().map_err(Error::at("remove the temporary folder"))
}

/// With everything mounted below: in a user namespace what lies under another's mount may not be uncovered.
fn bind(from: &Path, to: &Path) -> nix::Result<()> {
    mount(Some(from), to, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
}

fn hide_cache_daemons() -> Result<(), Error> {
    let mut hidden: Vec<PathBuf> = Vec::new();
    for place in CACHE_DAEMONS {
        let Ok(real) = fs::canonicalize(place) else { continue };
        if !real.is_dir() || hidden.contains(&real) {
            continue;
        }
        mount(Some("tmpfs"), &real, Some("tmpfs"), MsFlags::empty(), None::<&str>)
            .map_err(Error::at(format!("hide {}", real.display())))?;
        hidden.push(real);
    }
    Ok(())
}
