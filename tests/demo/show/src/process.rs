//! A daemon: a real process with real flags, whose output goes to a file.

use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use nodestub_lab::Error;

/// Between two looks at something that comes soon.
pub(crate) const LOOK: Duration = Duration::from_millis(5);

/// Lines of a log that are shown when something fails.
const SHOWN_LINES: usize = 12;

/// A running daemon. Killed by [`Process::kill`], or when dropped.
#[derive(Debug)]
pub(crate) struct Process {
    name: String,
    log: PathBuf,
    child: Mutex<Child>,
}

impl Process {
    /// Starts a daemon in the calling thread's namespaces. The environment is empty but for `variables`, so that
    /// nothing of the user's settings leaks in.
    pub(crate) fn start(
        mut command: Command,
        variables: &[(&str, &str)],
        log: &Path,
    ) -> Result<Arc<Self>, Error> {
        let program = PathBuf::from(command.get_program());
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut spawn = || -> io::Result<Child> {
            let file = File::options().create(true).append(true).open(log)?;
            let other = file.try_clone()?;
            command.env_clear().envs(variables.iter().copied());
            // Ctrl-C is for the demo, which then ends its daemons itself.
            command.process_group(0);
            command.stdin(Stdio::null()).stdout(file).stderr(other).spawn()
        };
        let child = spawn().map_err(|error| Error::caused(format!("start {name}"), error))?;
        Ok(Arc::new(Self { name, log: log.to_owned(), child: Mutex::new(child) }))
    }

    /// Waits until a look succeeds. The end of the process, or the deadline, is an error with its last lines.
    pub(crate) fn wait_until(
        &self,
        what: &str,
        deadline: Duration,
        mut look: impl FnMut() -> Result<(), Error>,
    ) -> Result<(), Error> {
        let end = Instant::now() + deadline;
        loop {
            let Err(not_yet) = look() else { return Ok(()) };
            let ended = self.child().try_wait();
            if let Ok(Some(status)) = ended {
                return Err(self.fault(&format!("wait until {} {what}: it has ended ({status})", self.name)));
            }
            if Instant::now() >= end {
                return Err(self.fault(&format!("wait until {} {what}: {not_yet}", self.name)));
            }
            std::thread::sleep(LOOK);
        }
    }

    /// SIGTERM, and the exit status.
    pub(crate) fn terminate(&self, deadline: Duration) -> Result<ExitStatus, Error> {
        let step = format!("stop {}", self.name);
        let end = Instant::now() + deadline;
        let mut child = self.child();
        let pid = i32::try_from(child.id()).map_err(|error| Error::caused(step.clone(), error))?;
        kill(Pid::from_raw(pid), Signal::SIGTERM).map_err(|error| Error::caused(step.clone(), error))?;
        loop {
            match child.try_wait() {
                Ok(Some(status)) => return Ok(status),
                Ok(None) if Instant::now() < end => std::thread::sleep(LOOK),
                Ok(None) => return Err(self.fault(&format!("{step}: it still runs"))),
                Err(error) => return Err(Error::caused(step, error)),
            }
        }
    }

    /// SIGKILL. A process that has ended already is no error.
    pub(crate) fn kill(&self) {
        let mut child = self.child();
        if matches!(child.try_wait(), Ok(Some(_))) {
            return;
        }
        if let Err(error) = child.kill().and_then(|()| child.wait()) {
            eprintln!("demo: cannot end {}: {error}", self.name);
        }
    }

    /// An error with the last lines of the log.
    pub(crate) fn fault(&self, step: &str) -> Error {
        Error::new(format!("{step}; its last lines:\n{}", last_lines(&self.log)))
    }

    fn child(&self) -> MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The end of a log, each line indented.
pub(crate) fn last_lines(log: &Path) -> String {
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    let last = lines.iter().skip(lines.len().saturating_sub(SHOWN_LINES));
    let last: Vec<String> =
        last.map(|line| format!("    {}", nodestub_demo::terminal::printable(line))).collect();
    if last.is_empty() { "    (nothing)".to_owned() } else { last.join("\n") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, log: &Path) -> Arc<Process> {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        Process::start(command, &[], log).unwrap()
    }

    #[test]
    fn tells_the_end_of_a_daemon_with_its_last_lines() {
        let folder = tempfile::tempdir().unwrap();
        let process = shell("echo this is why; exit 3", &folder.path().join("log"));
        let forever = || Err(Error::new("not yet"));
        let error = process.wait_until("answers", Duration::from_secs(20), forever).unwrap_err().to_string();
        assert!(error.contains("exit status: 3") && error.ends_with("\n    this is why"), "{error}");
    }

    #[test]
    fn gives_a_daemon_nothing_of_our_environment() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let process = shell("echo \"${CARGO_MANIFEST_DIR:-none}\"", &log);
        let logged = || match std::fs::read_to_string(&log) {
            Ok(text) if text == "none\n" => Ok(()),
            other => Err(Error::new(format!("{other:?}"))),
        };
        // The shell may have ended by the time that its line is seen.
        if let Err(error) = process.wait_until("logs", Duration::from_secs(20), logged) {
            assert!(error.to_string().ends_with("\n    none"), "{error}");
        }
    }
}
