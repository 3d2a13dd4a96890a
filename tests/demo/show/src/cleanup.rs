//! What must go at the end, whichever end it is: the daemons, and on loopback the folder of files.
//!
//! Ends: the last line of the demo, an error, a closed pipe, Ctrl-C, SIGTERM. In namespaces the kernel does the same
//! once more when process 1 has gone; that is what a SIGKILL relies on.

use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::exit;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};

use nodestub_lab::Error;
use tokio::signal::unix::{SignalKind, signal};

use crate::process::Process;

/// The exit status after Ctrl-C, as shells have it.
const INTERRUPTED: i32 = 130;

/// Everything that must go.
#[derive(Debug, Default)]
pub(crate) struct Cleanup {
    made: Mutex<Made>,
    /// Ctrl-C is how it is meant to end.
    kept: AtomicBool,
    failed: AtomicBool,
    interrupted: AtomicBool,
}

#[derive(Debug, Default)]
struct Made {
    processes: Vec<Arc<Process>>,
    folder: Option<PathBuf>,
    /// Nothing may be made any more.
    closed: bool,
}

impl Cleanup {
    /// Makes a process that goes at the end. Under one lock with [`Cleanup::run`], so that none slips through.
    pub(crate) fn process(
        &self,
        start: impl FnOnce() -> Result<Arc<Process>, Error>,
    ) -> Result<Arc<Process>, Error> {
        let mut made = self.open()?;
        let process = start()?;
        made.processes.push(Arc::clone(&process));
        Ok(process)
    }

    /// As [`Cleanup::process`], for the folder.
    pub(crate) fn folder(&self, make: impl FnOnce() -> Result<PathBuf, Error>) -> Result<PathBuf, Error> {
        let mut made = self.open()?;
        let folder = make()?;
        made.folder = Some(folder.clone());
        Ok(folder)
    }

    /// Does something short that must not be cut in two by the end, such as running a program that writes files.
    pub(crate) fn whole<T>(&self, work: impl FnOnce() -> T) -> Result<T, Error> {
        let _made = self.open()?;
        Ok(work())
    }

    fn open(&self) -> Result<MutexGuard<'_, Made>, Error> {
        let made = self.made();
        if made.closed { Err(Error::new("go on: the demo is ending")) } else { Ok(made) }
    }

    fn made(&self) -> MutexGuard<'_, Made> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The end that the demo comes to by itself. After a signal it never returns: the end is under way already, and
    /// what failed meanwhile failed because of it.
    pub(crate) fn finish(&self) {
        while self.interrupted.load(Ordering::SeqCst) {
            std::thread::park();
        }
        self.run();
    }

    /// From now on Ctrl-C is the ordinary end.
    pub(crate) fn keep(&self, failed: bool) {
        self.failed.store(failed, Ordering::SeqCst);
        self.kept.store(true, Ordering::SeqCst);
    }

    /// Takes everything away. The second time there is nothing left to do.
    pub(crate) fn run(&self) {
        let mut made = self.made();
        made.closed = true;
        for process in made.processes.drain(..) {
            process.kill();
        }
        if let Some(folder) = made.folder.take() {
            remove(&folder);
        }
    }

    /// Listens for SIGINT and SIGTERM on a thread of its own; either ends the process.
    pub(crate) fn on_signals(self: &Arc<Self>) -> Result<(), Error> {
        let step = "listen for Ctrl-C";
        let (ready, listening) = mpsc::channel();
        let cleanup = Arc::clone(self);
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build();
            let waited = runtime.and_then(|runtime| {
                runtime.block_on(async {
                    let mut interrupt = signal(SignalKind::interrupt())?;
                    let mut terminate = signal(SignalKind::terminate())?;
                    // Nobody waits for this any more only if the process is about to end.
                    ready.send(Ok(())).ok();
                    tokio::select! {
                        _ = interrupt.recv() => {}
                        _ = terminate.recv() => {}
                    }
                    Ok(())
                })
            });
            match waited {
                Ok(()) => cleanup.interrupted(),
                Err(error) => drop(ready.send(Err(error))),
            }
        });
        match listening.recv() {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(Error::caused(step, error)),
            Err(error) => Err(Error::caused(step, error)),
        }
    }

    fn interrupted(&self) -> ! {
        self.interrupted.store(true, Ordering::SeqCst);
        // Held to the end, so that nothing of the demo comes after the last line.
        let mut out = std::io::stdout().lock();
        self.run();
        writeln!(out, "\nStopped; everything that the demo made is gone.").ok();
        let kept = self.kept.load(Ordering::SeqCst);
        exit(if kept { i32::from(self.failed.load(Ordering::SeqCst)) } else { INTERRUPTED })
    }
}

/// Removes a folder into which a file may still come while it is being removed.
fn remove(folder: &Path) {
    const TRIES: usize = 10;
    for attempt in 1..=TRIES {
        match std::fs::remove_dir_all(folder) {
            Ok(()) => return,
            Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty && attempt < TRIES => {}
            Err(error) => {
                eprintln!("demo: cannot remove {}: {error}", folder.display());
                return;
            }
        }
    }
}
