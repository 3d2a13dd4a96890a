//! What must go at the end, whichever end it is: the daemons, and on loopback the folder of files.
//!
//! Ends: the last line of the demo, an error, a closed pipe, Ctrl-C, SIGTERM. In namespaces the kernel does the same
//! once more when process 1 has gone; that is what a SIGKILL relies on.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::exit;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};

use nodestub_lab::Error;
use tokio::signal::unix::{SignalKind, signal};

use crate::process::Process;

/// The exit status after Ctrl-C, as shells have it.
const INTERRUPTED: i32 = 130;

/// Everything that must go.
#[derive(Debug, Default)]
pub(crate) struct Cleanup {
    processes: Mutex<Vec<Arc<Process>>>,
    folder: Mutex<Option<PathBuf>>,
    /// Ctrl-C is how it is meant to end.
    kept: AtomicBool,
    failed: AtomicBool,
}

impl Cleanup {
    /// Kills a process at the end.
    pub(crate) fn add(&self, process: &Arc<Process>) {
        self.processes.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(process));
    }

    /// Removes a folder at the end.
    pub(crate) fn add_folder(&self, folder: &Path) {
        *self.folder.lock().unwrap_or_else(PoisonError::into_inner) = Some(folder.to_owned());
    }

    /// From now on Ctrl-C is the ordinary end.
    pub(crate) fn keep(&self, failed: bool) {
        self.failed.store(failed, Ordering::SeqCst);
        self.kept.store(true, Ordering::SeqCst);
    }

    /// Takes everything away. The second time there is nothing left to do.
    pub(crate) fn run(&self) {
        for process in self.processes.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            process.kill();
        }
        if let Some(folder) = self.folder.lock().unwrap_or_else(PoisonError::into_inner).take()
            && let Err(error) = std::fs::remove_dir_all(&folder)
        {
            eprintln!("demo: cannot remove {}: {error}", folder.display());
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
        // Held to the end, so that nothing of the demo comes after the last line.
        let mut out = std::io::stdout().lock();
        self.run();
        writeln!(out, "\nStopped; everything that the demo made is gone.").ok();
        let kept = self.kept.load(Ordering::SeqCst);
        exit(if kept { i32::from(self.failed.load(Ordering::SeqCst)) } else { INTERRUPTED })
    }
}

impl Drop for Cleanup {
    fn drop(&mut self) {
        self.run();
    }
}
