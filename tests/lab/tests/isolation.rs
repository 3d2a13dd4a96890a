//! Running a whole program in namespaces of its own, as root and as an ordinary user.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise, in its helpers too")]

use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use nodestub_lab::{Daemon, Rights, rights, skip};
use rustix::process::{Pid, Signal, test_kill_process};

const SOON: Duration = Duration::from_secs(20);

/// Ways to run `nodestub-isolate`: as we are, and, as root, as nobody, who needs a user namespace.
fn ways(test: &str) -> Vec<Command> {
    let program = env!("CARGO_BIN_EXE_nodestub-isolate");
    match rights() {
        Rights::None(reason) => {
            skip(test, &reason);
            Vec::new()
        }
        Rights::UserNamespace => vec![Command::new(program)],
        Rights::Root => {
            let mut ways = vec![Command::new(program)];
            let mut nobody = Command::new(program);
            nobody.uid(65534).gid(65534);
            // A program in a folder that nobody may enter cannot be started, which is no fault of ours.
            let refusal = match nobody.arg("true").output() {
                Ok(output) if output.status.success() => None,
                Ok(output) => Some(String::from_utf8_lossy(&output.stderr).into_owned()),
                Err(error) => Some(format!("cannot start a program as nobody: {error}")),
            };
            if let Some(reason) = refusal {
                skip(&format!("{test} (as nobody)"), &reason);
                return ways;
            }
            let mut nobody = Command::new(program);
            nobody.uid(65534).gid(65534);
            ways.push(nobody);
            ways
        }
    }
}

#[test]
fn gives_the_program_roots_rights_and_an_own_network() {
    for mut command in ways("gives_the_program_roots_rights_and_an_own_network") {
        let script = "id -u; wc -l < /proc/net/dev; test -d /proc/1 && ls /proc | grep -c '^[0-9]'; exit 7";
        let output = command.args(["sh", "-c", script]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "0", "{text}");
        // Two header lines and lo.
        assert_eq!(lines[1], "3", "{text}");
        // Only its own processes: isolate, sh, ls, grep.
        assert!(lines[2].parse::<u32>().unwrap() <= 5, "{text}");
        assert_eq!(output.status.code(), Some(7));
    }
}

#[test]
fn ends_every_child_when_the_outer_process_is_killed() {
    for mut command in ways("ends_every_child_when_the_outer_process_is_killed") {
        // The host's number of the inner sleep is not visible inside; a descendant of the outer process is.
        let mut outer = Daemon::spawn({
            command.args(["sh", "-c", "sleep 1000 & echo started; wait"]);
            command
        })
        .unwrap();
        outer.wait_for_line(SOON, |line| line == "started").unwrap();
        let family = descendants(outer.id());
        assert!(family.len() >= 3, "inner isolate, sh, sleep: {family:?}");
        let watched: Vec<_> = family
            .iter()
            .map(|pid| rustix::process::pidfd_open(*pid, rustix::process::PidfdFlags::empty()).unwrap())
            .collect();
        outer.kill().unwrap();
        for process in &watched {
            let timeout = rustix::event::Timespec::try_from(SOON).unwrap();
            let mut poll = [rustix::event::PollFd::new(process, rustix::event::PollFlags::IN)];
            assert_eq!(rustix::event::poll(&mut poll, Some(&timeout)).unwrap(), 1, "still alive");
        }
        assert!(family.iter().all(|pid| is_gone(*pid)), "{family:?}");
    }
}

#[test]
fn hands_sigterm_on_and_returns_the_programs_status() {
    for mut command in ways("hands_sigterm_on_and_returns_the_programs_status") {
        // Process 1 ignores SIGTERM here, for it handles none; the second is handed on as SIGKILL.
        command.args(["sh", "-c", "echo started; sleep 1000"]);
        let mut outer = Daemon::spawn(command).unwrap();
        outer.wait_for_line(SOON, |line| line == "started").unwrap();
        outer.signal(Signal::TERM).unwrap();
        outer.signal(Signal::INT).unwrap();
        assert_eq!(outer.wait(SOON).unwrap().code(), Some(137));
    }
}

/// All processes below one, by the parent numbers in `/proc`.
fn descendants(of: u32) -> Vec<Pid> {
    let mut parents = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        // Gone in the meantime, perhaps.
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
        let parent =
            stat.rsplit(')').next().unwrap().split_whitespace().nth(1).unwrap().parse::<u32>().unwrap();
        parents.push((pid, parent));
    }
    let mut found = vec![of];
    let mut next = 0;
    while let Some(parent) = found.get(next).copied() {
        found.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid));
        next += 1;
    }
    found.iter().skip(1).map(|pid| Pid::from_raw(i32::try_from(*pid).unwrap()).unwrap()).collect()
}

/// Ended, or a zombie that its parent has not reaped yet.
fn is_gone(pid: Pid) -> bool {
    test_kill_process(pid).is_err()
        || std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()))
            .is_ok_and(|stat| stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z')))
}
