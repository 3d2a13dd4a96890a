//! The whole program in namespaces of its own.
//!
//! [`isolate()`] is called first thing in `main`. The outer process makes the namespaces (user, if it is not root;
//! mount, pid, network), starts the same program with the same arguments as process 1 of the new pid namespace, hands
//! on SIGINT and SIGTERM, waits, and returns the exit code. In the inner process the same call prepares the ground and
//! returns [`Isolation::Inside`].
//!
//! Why a pid namespace: when its process 1 dies, the kernel kills whatever is left in it. Process 1 in turn dies with
//! the outer process (`PR_SET_PDEATHSIG`). So even SIGKILL of the outer one leaves nothing behind. (A SIGKILL in the
//! instant between the start of the inner process and its `prctl` is the one gap.)

use std::process::Command;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::SignalFd;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getgid, getpid, getuid};

use crate::netns::on_new_thread;
use crate::{Error, Netns};

/// Set for the inner process. Its own children inherit it, so process 1 is asked for as well.
const INSIDE_VARIABLE: &str = "NODESTUB_LAB_INSIDE";

/// `si_code` of a signal that the kernel itself sent, such as Ctrl-C on a terminal.
const SI_KERNEL: i32 = 0x80;

/// What this process may do about namespaces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rights {
    /// It may make them at once: root, or already inside a user namespace.
    Root,
    /// It may make them after a user namespace: call [`isolate()`].
    UserNamespace,
    /// Neither; the reason is a sentence for the user.
    None(String),
}

/// Finds out what is possible, without changing this process.
///
/// `UserNamespace` is what the kernel's settings promise; a container's seccomp profile can still refuse, which
/// [`isolate()`] then reports.
pub fn rights() -> Rights {
    let probe = on_new_thread(|| unshare(CloneFlags::CLONE_NEWNET));
    let Err(error) = probe else { return Rights::Root };
    if error != Errno::EPERM {
        return Rights::None(format!("this kernel makes no network namespaces: {error}"));
    }
    let sysctl = |path: &str| std::fs::read_to_string(path).map(|text| text.trim().to_owned()).ok();
    let closed = [
        ("/proc/sys/user/max_user_namespaces", "0", "sysctl -w user.max_user_namespaces=15000"),
        ("/proc/sys/kernel/unprivileged_userns_clone", "0", "sysctl -w kernel.unprivileged_userns_clone=1"),
        (
            "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
            "1",
            "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
        ),
    ];
    for (path, forbids, remedy) in closed {
        if sysctl(path).as_deref() == Some(forbids) {
            return Rights::None(format!(
                "not root, and user namespaces are switched off: run as root, or `{remedy}`"
            ));
        }
    }
    if sysctl("/proc/sys/user/max_user_namespaces").is_none() {
        return Rights::None("not root, and this kernel has no user namespaces: run as root".to_owned());
    }
    Rights::UserNamespace
}

/// Which side of [`isolate()`] this is.
#[derive(Debug)]
pub enum Isolation {
    /// In the inner process: go on. `lo` is up, `/proc` shows this namespace, mounts propagate nowhere.
    Inside,
    /// In the outer process: the inner one has ended with this code (128 and the signal's number if it was killed).
    Finished(i32),
}

/// Runs the calling program again in fresh namespaces; see the module's comment.
///
/// Must be called while the process has one thread (first thing in `main`): the kernel makes no user namespace for a
/// process with several. The inner program should handle SIGINT and SIGTERM: as process 1 it ignores what it
/// does not handle; the second signal, Ctrl-C or not, therefore becomes SIGKILL, and the kernel cleans up.
pub fn isolate() -> Result<Isolation, Error> {
    let program = std::env::current_exe().map_err(Error::at("find this program's file"))?;
    let mut command = Command::new(program);
    command.args(std::env::args_os().skip(1));
    isolate_as(command)
}

/// As [`isolate()`], for another program: the inner process is `command`, which must call `isolate` (or
/// [`is_inside`] and [`settle`]) itself.
pub fn isolate_as(mut command: Command) -> Result<Isolation, Error> {
    if is_inside() {
        settle()?;
        return Ok(Isolation::Inside);
    }
    make_namespaces()?;
    command.env(INSIDE_VARIABLE, "1");
    supervise(command).map(Isolation::Finished)
}

/// Starts a program, hands SIGINT and SIGTERM on to it (the second of them as SIGKILL), and waits for its end.
///
/// Returns its exit code, or 128 and the signal's number. The program starts with these signals blocked, so that none
/// is lost: it calls [`settle`] or [`end_with_parent`] first. Must be called while the process has one thread.
pub fn supervise(mut command: Command) -> Result<i32, Error> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGCHLD] {
        signals.add(signal);
    }
    // The inner process inherits the mask and lifts it in `settle`; blocked from before its start, no signal is lost.
    signals.thread_block().map_err(Error::at("block signals"))?;
    let reader = SignalFd::new(&signals).map_err(Error::at("open a signal descriptor"))?;
    let child = command.spawn().map_err(Error::at(format!("start {}", command.get_program().display())))?;
    let pid = Pid::from_raw(i32::try_from(child.id()).map_err(Error::at("read a process id"))?);
    let code = wait_and_hand_on(pid, &reader);
    signals.thread_unblock().map_err(Error::at("unblock signals"))?;
    code
}

/// Whether this process is the inner one.
pub fn is_inside() -> bool {
    std::env::var_os(INSIDE_VARIABLE).is_some() && getpid().as_raw() == 1
}

/// Prepares the inner process: dies with the outer one, sees its own `/proc`, keeps its mounts to itself, has `lo`.
pub fn settle() -> Result<(), Error> {
    follow_parent(Signal::SIGKILL)?;
    keep_mounts_private()?;
    mount(
        Some("proc"),
        "/proc",
        Some("proc"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
        None::<&str>,
    )
    .map_err(Error::at(
        "mount /proc inside (inside a container, run it with an unmasked /proc or as privileged)",
    ))?;
    Netns::current()?.set_up("lo")
}

/// For a program under [`supervise`] that needs no namespaces: receives signals again, and gets SIGTERM when its parent
/// ends, killed or not.
pub fn end_with_parent() -> Result<(), Error> {
    follow_parent(Signal::SIGTERM)
}

fn follow_parent(signal: Signal) -> Result<(), Error> {
    set_pdeathsig(signal).map_err(Error::at("ask to die with the outer process"))?;
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGCHLD] {
        signals.add(signal);
    }
    signals.thread_unblock().map_err(Error::at("unblock signals"))
}

/// No mount of this mount namespace reaches another, nor the other way.
pub(crate) fn keep_mounts_private() -> Result<(), Error> {
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .map_err(Error::at("make the mounts private"))
}

fn make_namespaces() -> Result<(), Error> {
    let inner = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNET;
    match rights() {
        Rights::Root => unshare(inner).map_err(Error::at("make mount, pid and network namespaces")),
        Rights::None(reason) => Err(Error::new(reason)),
        Rights::UserNamespace => {
            let (uid, gid) = (getuid(), getgid());
            unshare(CloneFlags::CLONE_NEWUSER | inner).map_err(|error| {
                let hint = match error {
                    Errno::EINVAL => "the process already has several threads",
                    Errno::ENOSPC => "too many namespaces: see /proc/sys/user/max_*_namespaces",
                    _ => "not root, and user namespaces are refused here: run as root",
                };
                Error::caused(format!("make a user namespace ({hint})"), error)
            })?;
            let write = |path: &str, text: String| {
                std::fs::write(path, text).map_err(Error::at(format!("write {path}")))
            };
            // The kernel takes a group map from an ordinary user only after setgroups has been given up.
            write("/proc/self/setgroups", "deny".to_owned())?;
            write("/proc/self/uid_map", format!("0 {uid} 1"))?;
            write("/proc/self/gid_map", format!("0 {gid} 1"))
        }
    }
}

fn wait_and_hand_on(child: Pid, signals: &SignalFd) -> Result<i32, Error> {
    let mut handed_on = 0_u32;
    loop {
        match waitpid(child, Some(WaitPidFlag::WNOHANG)).map_err(Error::at("wait for the inner process"))? {
            WaitStatus::Exited(_, code) => return Ok(code),
            WaitStatus::Signaled(_, signal, _) => return Ok(128_i32.saturating_add(signal as i32)),
            _ => {}
        }
        let info = match signals.read_signal() {
            Ok(Some(info)) => info,
            Ok(None) | Err(Errno::EINTR) => continue,
            Err(error) => return Err(Error::caused("read a signal", error)),
        };
        let Some(signal) = i32::try_from(info.ssi_signo).ok().and_then(|n| Signal::try_from(n).ok()) else {
            continue;
        };
        if signal == Signal::SIGCHLD {
            continue;
        }
        handed_on = handed_on.saturating_add(1);
        // Ctrl-C reaches the inner process by itself, as a member of the terminal's foreground group.
        if handed_on == 1 && info.ssi_code == SI_KERNEL {
            continue;
        }
        let signal = if handed_on > 1 { Signal::SIGKILL } else { signal };
        match kill(child, signal) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => return Err(Error::caused("hand a signal on", error)),
        }
    }
}
