//! A real process under test: its output captured by lines, waited for by events, killed and reaped on drop.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

use crate::Error;

/// The last lines that are kept; older ones go.
const MAX_LINES: usize = 10_000;

/// A running process. Standard output and standard error are both read as lines, in the order in which they came.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    child: Child,
    status: Option<ExitStatus>,
    output: Arc<Output>,
}

#[derive(Debug, Default)]
struct Output {
    state: Mutex<OutputState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct OutputState {
    lines: VecDeque<String>,
    /// Lines that came so far, dropped ones included: the number of the next line.
    total: usize,
    /// Streams that ended; both ended means that no line will come any more.
    ended: usize,
}

impl Daemon {
    /// Starts the process in the calling thread's namespaces, without standard input.
    pub fn spawn(mut command: Command) -> Result<Self, Error> {
        let name = command.get_program().to_string_lossy().into_owned();
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(Error::at(format!("start {name}")))?;
        let output = Arc::new(Output::default());
        if let Some(stream) = child.stdout.take() {
            read_lines(stream, Arc::clone(&output));
        }
        if let Some(stream) = child.stderr.take() {
            read_lines(stream, Arc::clone(&output));
        }
        Ok(Self { name, child, status: None, output })
    }

    /// The process id, as seen from the calling process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits until a line matches, and returns it. Lines that came before the call count too.
    ///
    /// Fails when the time is over, or at once when the process has closed its output; the error holds the last lines.
    pub fn wait_for_line(&self, deadline: Duration, matches: impl Fn(&str) -> bool) -> Result<String, Error> {
        let end = Instant::now() + deadline;
        let mut seen = 0;
        let mut state = self.output.lock();
        loop {
            let first = state.total - state.lines.len();
            let fresh = state.lines.iter().skip(seen.max(first) - first);
            if let Some(line) = fresh.into_iter().find(|line| matches(line)) {
                return Ok(line.clone());
            }
            seen = state.total;
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || state.ended == 2 {
                let why = if left.is_zero() { "no such line in time" } else { "its output ended first" };
                return Err(Error::new(format!(
                    "wait for a line of {}: {why}; last lines:\n{}",
                    self.name,
                    last_lines(&state.lines)
                )));
            }
            state = self.output.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The lines so far (the last ten thousand).
    pub fn lines(&self) -> Vec<String> {
        self.output.lock().lines.iter().cloned().collect()
    }

    /// Sends a signal. A process that has ended already is no error.
    pub fn signal(&mut self, signal: Signal) -> Result<(), Error> {
        if self.try_wait()?.is_some() {
            return Ok(());
        }
        // Not reaped yet, so the number is still this process's.
        match kill_process(self.pid()?, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(Error::caused(format!("send a signal to {}", self.name), error)),
        }
    }

    /// The exit status, if the process has ended.
    pub fn try_wait(&mut self) -> Result<Option<ExitStatus>, Error> {
        if self.status.is_none() {
            self.status = self.child.try_wait().map_err(Error::at(format!("wait for {}", self.name)))?;
        }
        Ok(self.status)
    }

    /// Waits for the end of the process. At the deadline it is an error, and the process runs on.
    pub fn wait(&mut self, deadline: Duration) -> Result<ExitStatus, Error> {
        if let Some(status) = self.try_wait()? {
            return Ok(status);
        }
        let step = format!("wait for the end of {}", self.name);
        let end = Instant::now() + deadline;
        let process = pidfd_open(self.pid()?, PidfdFlags::empty()).map_err(Error::at(step.clone()))?;
        loop {
            if let Some(status) = self.try_wait()? {
                return Ok(status);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let lines = last_lines(&self.output.lock().lines);
                return Err(Error::new(format!(
                    "{step}: still running at the deadline; last lines:\n{lines}"
                )));
            }
            let timeout = Timespec::try_from(left).map_err(Error::at(step.clone()))?;
            match poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&timeout)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(Error::caused(step, error)),
            }
        }
    }

    /// SIGTERM, then [`Daemon::wait`].
    pub fn terminate(&mut self, deadline: Duration) -> Result<ExitStatus, Error> {
        self.signal(Signal::TERM)?;
        self.wait(deadline)
    }

    /// SIGKILL and reap, as a crash would end it.
    pub fn kill(&mut self) -> Result<ExitStatus, Error> {
        let step = format!("kill {}", self.name);
        self.child.kill().map_err(Error::at(step.clone()))?;
        let status = self.child.wait().map_err(Error::at(step))?;
        self.status = Some(status);
        Ok(status)
    }

    fn pid(&self) -> Result<Pid, Error> {
        i32::try_from(self.child.id())
            .ok()
            .and_then(Pid::from_raw)
            .ok_or_else(|| Error::new(format!("read the process id of {}", self.name)))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.status.is_none()
            && let Err(error) = self.kill()
        {
            eprintln!("{error}");
        }
    }
}

impl Output {
    fn lock(&self) -> MutexGuard<'_, OutputState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read_lines(stream: impl Read + Send + 'static, output: Arc<Output>) {
    std::thread::spawn(move || {
        let mut reader = BufReader::new(stream);
        let mut line = Vec::new();
        loop {
            line.clear();
            let ended = !matches!(reader.read_until(b'\n', &mut line), Ok(length) if length > 0);
            let mut state = output.lock();
            if ended {
                state.ended += 1;
            } else {
                if state.lines.len() == MAX_LINES {
                    state.lines.pop_front();
                }
                state.total += 1;
                state.lines.push_back(String::from_utf8_lossy(&line).trim_end().to_owned());
            }
            drop(state);
            output.changed.notify_all();
            if ended {
                return;
            }
        }
    });
}

fn last_lines(lines: &VecDeque<String>) -> String {
    const SHOWN: usize = 40;
    lines.iter().skip(lines.len().saturating_sub(SHOWN)).map(|line| format!("  {line}\n")).collect()
}
