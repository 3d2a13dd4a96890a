//! Watches the folder, and swaps the pair that is served when a new good one lies there.
//!
//! [`Watcher::poll`] is one look, with the time as an argument; [`Watcher::spawn`] looks on a thread of its own (files
//! are read blocking, and the executor is spared) whenever the folder changes, and every so often besides. The folder
//! is watched, not its files: a Secret volume swaps a symbolic link, and a watch on a file would see that once. The
//! looks in between are for what no watch tells: network file systems, a folder that comes later, a certificate that
//! was not yet valid. Contents are compared, not times of change.
//!
//! The last good pair stays whatever happens to the folder.

use std::fmt;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, SystemTime};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};

use crate::folder::{Folder, FolderError};
use crate::pair::{Material, Pair, PairError};
use crate::resolver::Resolver;

/// What one look at the folder came to.
#[derive(Debug)]
pub enum Outcome {
    /// What lies there is being served already.
    Unchanged,
    /// A new pair is served from now on.
    Swapped(Arc<Pair>),
    /// What lies there cannot be served; the last good pair is kept.
    Failed {
        /// Why.
        error: FolderError,
        /// The look before failed for the same reason: count it, but do not log it again.
        repeated: bool,
    },
}

/// Compares a folder with what is served.
#[derive(Debug)]
pub struct Watcher {
    folder: Folder,
    resolver: Arc<Resolver>,
    served: Option<Material>,
    last_failure: Option<String>,
}

impl Watcher {
    /// Watches that folder for that resolver. Nothing is read yet.
    #[must_use]
    pub fn new(folder: Folder, resolver: Arc<Resolver>) -> Self {
        Self { folder, resolver, served: None, last_failure: None }
    }

    /// Looks once.
    pub fn poll(&mut self, now: SystemTime) -> Outcome {
        let material = match self.folder.material() {
            Ok(material) if self.served.as_ref() == Some(&material) => {
                self.last_failure = None;
                return Outcome::Unchanged;
            }
            Ok(material) => material,
            Err(error) => return self.failed(error),
        };
        match self.folder.check(&material, now).and_then(|pair| self.keeps_names(pair, now)) {
            Ok(pair) => {
                let pair = Arc::new(pair);
                self.resolver.swap(Arc::clone(&pair));
                self.served = Some(material);
                self.last_failure = None;
                Outcome::Swapped(pair)
            }
            Err(error) => self.failed(error),
        }
    }

    /// Looks whenever the folder changes, and every so often, until the [`Watch`] is dropped; reports each look that
    /// was not [`Outcome::Unchanged`].
    ///
    /// # Errors
    /// When the system gives no thread or no pipe.
    pub fn spawn(
        mut self,
        every: Duration,
        mut report: impl FnMut(Outcome) + Send + 'static,
    ) -> io::Result<Watch> {
        let (stopped, stop) = io::pipe()?;
        let thread = Builder::new().name("certificates".to_owned()).spawn(move || {
            let mut changes = None;
            loop {
                // Armed before the look, so that nothing falls in between.
                changes = changes.or_else(|| watch(self.folder.path()));
                match self.poll(SystemTime::now()) {
                    Outcome::Unchanged => {}
                    outcome => report(outcome),
                }
                if waits(&stopped, &mut changes, every) == Woken::Stopped {
                    return;
                }
            }
        })?;
        Ok(Watch { stop: Some(stop), thread: Some(thread) })
    }

    /// Whoever asks for a name of the pair that is served, and not of the new one, would be lost by the exchange. One that
    /// has ended holds nobody.
    fn keeps_names(&self, pair: Pair, now: SystemTime) -> Result<Pair, FolderError> {
        let served = self.resolver.current().filter(|served| served.leaf().contains(now));
        match served.and_then(|served| served.lost_by(&pair)) {
            None => Ok(pair),
            Some(name) => Err(self.folder.refuse(PairError::Name { name })),
        }
    }

    fn failed(&mut self, error: FolderError) -> Outcome {
        let failure = full_text(&error);
        let repeated = self.last_failure.as_ref() == Some(&failure);
        self.last_failure = Some(failure);
        Outcome::Failed { error, repeated }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Woken {
    Stopped,
    Look,
}

/// None where the system or the folder allows no watch: then there are the looks every so often.
fn watch(folder: &Path) -> Option<OwnedFd> {
    let changes = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).ok()?;
    let what = WatchFlags::CREATE
        | WatchFlags::CLOSE_WRITE
        | WatchFlags::MOVED_TO
        | WatchFlags::DELETE
        | WatchFlags::DELETE_SELF
        | WatchFlags::MOVE_SELF
        | WatchFlags::ONLYDIR;
    inotify::add_watch(&changes, folder, what).ok()?;
    Some(changes)
}

/// Waits for the end, a change, or the time. A watch whose folder is gone is taken away.
fn waits(stopped: &io::PipeReader, changes: &mut Option<OwnedFd>, every: Duration) -> Woken {
    let time = Timespec::try_from(every).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 });
    let mut all = vec![PollFd::new(stopped, PollFlags::IN)];
    all.extend(changes.as_ref().map(|changes| PollFd::new(changes, PollFlags::IN)));
    // An interrupted wait is a look more.
    let _ = poll(&mut all, Some(&time));
    if all.first().is_some_and(|end| !end.revents().is_empty()) {
        return Woken::Stopped;
    }
    let Some(watched) = changes.as_ref() else { return Woken::Look };
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut reader = inotify::Reader::new(watched, &mut buffer);
    let mut is_gone = false;
    while let Ok(event) = reader.next() {
        let gone = ReadFlags::IGNORED | ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF;
        is_gone |= event.events().intersects(gone);
    }
    if is_gone {
        *changes = None;
    }
    Woken::Look
}

/// A watch that is running; dropping it ends it.
pub struct Watch {
    stop: Option<io::PipeWriter>,
    thread: Option<JoinHandle<()>>,
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").finish_non_exhaustive()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has said so itself.
            drop(thread.join());
        }
    }
}

/// An error and its causes in one line.
#[must_use]
pub fn full_text(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::folder::{CERTIFICATE_FILE, KEY_FILE};
    use crate::issue::{Lifetimes, ServingNames, issue};

    const HOUR: Duration = Duration::from_secs(3600);

    fn material(now: SystemTime) -> Material {
        material_of("web", now)
    }

    fn material_of(service: &str, now: SystemTime) -> Material {
        let names = ServingNames {
            service: service.to_owned(),
            namespace: "here".to_owned(),
            cluster_domain: None,
            addresses: Vec::new(),
            extra: Vec::new(),
        };
        issue(&names, Lifetimes::for_leaf(HOUR), now).unwrap()
    }

    #[test]
    fn keeps_the_last_good_pair_through_every_kind_of_damage() {
        let home = tempfile::tempdir().unwrap();
        let folder = Folder::new(home.path());
        let resolver = Resolver::empty();
        let mut watcher = Watcher::new(folder.clone(), Arc::clone(&resolver));
        let now = SystemTime::now();

        assert!(matches!(watcher.poll(now), Outcome::Failed { repeated: false, .. }));
        assert!(matches!(watcher.poll(now), Outcome::Failed { repeated: true, .. }));
        assert!(resolver.current().is_none());

        folder.write(&material(now)).unwrap();
        assert!(matches!(watcher.poll(now), Outcome::Swapped(_)));
        assert!(matches!(watcher.poll(now), Outcome::Unchanged));
        let good = resolver.current().unwrap();

        fs::write(home.path().join(KEY_FILE), material(now).key).unwrap();
        assert!(
            matches!(watcher.poll(now), Outcome::Failed { repeated: false, .. }),
            "a key of another pair"
        );
        fs::write(home.path().join(CERTIFICATE_FILE), "garbage").unwrap();
        assert!(matches!(watcher.poll(now), Outcome::Failed { repeated: false, .. }), "garbage");
        fs::remove_file(home.path().join(KEY_FILE)).unwrap();
        assert!(matches!(watcher.poll(now), Outcome::Failed { repeated: false, .. }), "no key");
        folder.write(&material(now - HOUR * 3)).unwrap();
        assert!(matches!(watcher.poll(now), Outcome::Failed { repeated: false, .. }), "expired");
        folder.write(&material_of("elsewhere", now)).unwrap();
        let Outcome::Failed { error, .. } = watcher.poll(now) else { panic!("another name was taken") };
        assert!(
            full_text(&error).ends_with("tls.crt is not good for web.here.svc, which is asked for until now")
        );
        assert!(Arc::ptr_eq(&good, &resolver.current().unwrap()));

        folder.write(&material(now)).unwrap();
        assert!(matches!(watcher.poll(now), Outcome::Swapped(_)));
        assert!(!Arc::ptr_eq(&good, &resolver.current().unwrap()));
    }

    #[test]
    fn takes_other_names_once_the_served_certificate_has_ended() {
        let home = tempfile::tempdir().unwrap();
        let folder = Folder::new(home.path());
        let mut watcher = Watcher::new(folder.clone(), Resolver::empty());
        let now = SystemTime::now();
        folder.write(&material(now)).unwrap();
        assert!(matches!(watcher.poll(now), Outcome::Swapped(_)));
        let later = now + HOUR * 2;
        folder.write(&material_of("elsewhere", later)).unwrap();
        assert!(matches!(watcher.poll(later), Outcome::Swapped(_)));
    }

    #[test]
    fn serves_a_certificate_once_its_time_has_come() {
        let home = tempfile::tempdir().unwrap();
        let folder = Folder::new(home.path());
        let mut watcher = Watcher::new(folder.clone(), Resolver::empty());
        let now = SystemTime::now();
        folder.write(&material(now + HOUR * 5)).unwrap();
        assert!(matches!(watcher.poll(now), Outcome::Failed { .. }));
        assert!(matches!(watcher.poll(now + HOUR * 5), Outcome::Swapped(_)));
    }

    #[test]
    fn reports_from_its_thread_and_ends_when_dropped() {
        let home = tempfile::tempdir().unwrap();
        let folder = Folder::new(home.path());
        folder.write(&material(SystemTime::now())).unwrap();
        let (sender, outcomes) = std::sync::mpsc::channel();
        let watch = Watcher::new(folder, Resolver::empty())
            .spawn(Duration::from_millis(1), move |outcome| sender.send(outcome).unwrap())
            .unwrap();
        assert!(matches!(outcomes.recv().unwrap(), Outcome::Swapped(_)));
        drop(watch);
        assert!(outcomes.recv().is_err(), "the thread, and with it the sender, is gone");
    }

    #[test]
    fn sees_every_swap_of_a_secret_volume_without_waiting_for_its_look() {
        let home = tempfile::tempdir().unwrap();
        // As kubelet lays out a volume: files are links into `..data`, which is a link that is exchanged.
        let lay = |version: &str| {
            Folder::new(home.path().join(version)).write(&material(SystemTime::now())).unwrap();
            std::os::unix::fs::symlink(version, home.path().join("..new")).unwrap();
            fs::rename(home.path().join("..new"), home.path().join("..data")).unwrap();
        };
        lay("..1");
        for file in [CERTIFICATE_FILE, KEY_FILE, crate::folder::AUTHORITY_FILE] {
            std::os::unix::fs::symlink(format!("..data/{file}"), home.path().join(file)).unwrap();
        }
        let (sender, outcomes) = std::sync::mpsc::channel();
        let hours = HOUR * 24;
        let watch = Watcher::new(Folder::new(home.path()), Resolver::empty())
            .spawn(hours, move |outcome| sender.send(outcome).unwrap())
            .unwrap();
        assert!(matches!(outcomes.recv().unwrap(), Outcome::Swapped(_)));
        for version in 2..6 {
            lay(&format!("..{version}"));
            let outcome = outcomes.recv_timeout(Duration::from_secs(30)).unwrap();
            assert!(matches!(outcome, Outcome::Swapped(_)), "{version}: {outcome:?}");
            fs::remove_dir_all(home.path().join(format!("..{}", version - 1))).unwrap();
        }
        drop(watch);
    }
}
