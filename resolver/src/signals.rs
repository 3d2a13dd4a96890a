//! Signals, and an end that nothing holds up.
//!
//! ```text
//!   SIGHUP, SIGUSR1        read the Corefile again
//!   SIGTERM, SIGINT   ├─ while starting: the end, at once; whoever serves already reads on
//!                     ├─ the first while serving: unready, drained, end; within a limit, whatever hangs
//!                     └─ the second: the end, at once
//! ```
//!
//! All threads block these signals, and one of our own takes them off a descriptor. So the end does not depend on a
//! thread that may be waiting: for the kernel's netlink, for a file on a server that is gone, for a lock, for somebody who
//! reads the log. An end at once
//! does no harm: the kernel closes the sockets and answers, or the process that stands by does; rules and address stay.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread::Builder;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::sync::mpsc;

/// Exit status of a process that did not stop in time (EX_TEMPFAIL of sysexits.h).
const STUCK: i32 = 75;

/// How long the last line of the log may take: who is to read it may not, and then writing waits without limit.
const LAST_WORD: Duration = Duration::from_secs(1);

/// What a signal means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// End in good order.
    Stop,
    /// Read the Corefile again.
    Reload,
}

/// The signals as they come.
#[derive(Debug)]
pub struct Signals {
    stop: mpsc::Receiver<()>,
    reload: mpsc::Receiver<()>,
    /// How long an end in good order may take, in milliseconds; 0 while there is nothing to put in order.
    limit: Arc<AtomicU64>,
}

/// Blocks the signals in the calling thread and those that it starts, so that none is lost before [`Signals::watch`].
///
/// # Errors
/// As `sigprocmask(2)`.
pub fn block() -> io::Result<()> {
    Ok(ours().thread_block()?)
}

impl Signals {
    /// Starts the thread that takes them. [`block`] comes before, and before any other thread.
    ///
    /// # Errors
    /// The descriptor or the thread cannot be made.
    pub fn watch() -> io::Result<Self> {
        let descriptor = SignalFd::with_flags(&ours(), SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        // One of each is enough: a second order to reload is done with the first, and a second one to stop is the end.
        let ((tell_stop, stop), (tell_reload, reload)) = (mpsc::channel(1), mpsc::channel(1));
        let limit = Arc::new(AtomicU64::new(0));
        let guard =
            Guard { descriptor, stop: tell_stop, reload: tell_reload, limit: Arc::clone(&limit), end: None };
        Builder::new().name("signals".into()).spawn(move || guard.run())?;
        Ok(Self { stop, reload, limit })
    }

    /// From now on there is something to put in order at the end, which may take as long as that.
    pub fn allow(&self, limit: Duration) {
        self.limit.store(u64::try_from(limit.as_millis()).unwrap_or(u64::MAX).max(1), Relaxed);
    }

    /// The next order.
    pub async fn next(&mut self) -> Order {
        tokio::select! {
            Some(()) = self.stop.recv() => Order::Stop,
            Some(()) = self.reload.recv() => Order::Reload,
            // The thread has ended, which only a panic in it can do; then signals are lost, and queries are not.
            else => std::future::pending().await,
        }
    }

    /// Waits for the order to stop; others are of no use any more.
    pub async fn stop(&mut self) {
        while self.next().await != Order::Stop {}
    }
}

fn ours() -> SigSet {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGUSR1] {
        signals.add(signal);
    }
    signals
}

/// The thread.
struct Guard {
    descriptor: SignalFd,
    stop: mpsc::Sender<()>,
    reload: mpsc::Sender<()>,
    limit: Arc<AtomicU64>,
    /// When patience ends.
    end: Option<Instant>,
}

impl Guard {
    fn run(mut self) {
        loop {
            let left = self.end.map(|end| end.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                say_and_end(STUCK, || tracing::error!("did not stop in time; ending all the same"));
            }
            let timeout = left.and_then(|left| Timespec::try_from(left).ok());
            if poll(&mut [PollFd::new(&self.descriptor, PollFlags::IN)], timeout.as_ref()).is_err() {
                // Interrupted; the descriptor and the time are looked at in any case.
            }
            while let Ok(Some(signal)) = self.descriptor.read_signal() {
                let number = i32::try_from(signal.ssi_signo).unwrap_or_default();
                match Signal::try_from(number) {
                    Ok(Signal::SIGHUP | Signal::SIGUSR1) => {
                        if self.reload.try_send(()).is_err() {
                            // One waits already.
                        }
                    }
                    _ => self.stop(),
                }
            }
        }
    }

    fn stop(&mut self) {
        let limit = Duration::from_millis(self.limit.load(Relaxed));
        if self.end.is_some() {
            say_and_end(0, || tracing::warn!("asked to stop once more; ending at once"));
        }
        if limit.is_zero() {
            say_and_end(0, || tracing::info!("asked to stop before serving began; ending at once"));
        }
        self.end = Some(Instant::now() + limit);
        if self.stop.try_send(()).is_err() {
            // One waits already.
        }
    }
}

/// Ends the process, and says why if that can be said: by another thread, for this one must not wait.
fn say_and_end(status: i32, say: impl FnOnce() + Send + 'static) -> ! {
    let (done, said) = std::sync::mpsc::sync_channel(1);
    let saying = Builder::new().name("last-word".into()).spawn(move || {
        say();
        if done.send(()).is_err() {
            // Too late.
        }
    });
    if saying.is_ok() && said.recv_timeout(LAST_WORD).is_err() {
        // Nobody reads.
    }
    std::process::exit(status)
}
