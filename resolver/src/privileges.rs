//! What this process may do beyond any other, and the two threads that may do it.
//!
//! ```text
//!   main, before any other thread: confine()
//!     ├─ bounding, ambient and inheritable sets emptied, no_new_privs set: no program started from here has more
//!     ├─ threads "node" and "ports" ── keep NET_ADMIN and NET_BIND_SERVICE of what was permitted, and raise them
//!     │     ▲             ▲
//!     │     │             └── call: a port is bound, a receive buffer made larger than the system's limit
//!     │     └────── run: netlink (address, rules, whatever else the node needs)
//!     └─ main gives up all of it; every thread that it starts from now on begins with nothing
//! ```
//!
//! Why a thread keeps NET_ADMIN at all: rules and address are put right for as long as the process lives, and a reload
//! may bind port 53 of a new address. Why threads of their own: capabilities are a thread's own, and those that read what
//! comes from the network have none of them, by construction and not by remembering to. Why two: a system call of netlink
//! waits for whoever has the kernel's lock, without limit, and ports must be bound all the same. Threads share their
//! memory, so this keeps a mistake small; it does not keep out somebody who runs code of his own in here.
//!
//! File capabilities are permitted only (`setcap cap_net_admin,cap_net_bind_service=p`), so that the program starts
//! where they are not granted as well; what is then refused by the kernel is said where it is refused.

use std::future::Future;
use std::io;
use std::sync::OnceLock;
use std::thread::Builder;
use std::time::Duration;

use rustix::io::Errno;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{LocalSet, spawn_local};

/// What is kept, where it was permitted.
const KEPT: CapabilitySet = CapabilitySet::NET_ADMIN.union(CapabilitySet::NET_BIND_SERVICE);

/// Jobs that wait for the thread; there is one for each address that is bound, and a few for the node.
const WAITING: usize = 64;

/// How long a bound port may take. Its thread waits for nothing else.
const PATIENCE: Duration = Duration::from_secs(10);

type Job = Box<dyn FnOnce() + Send>;

/// Those who have rights.
#[derive(Debug)]
struct Threads {
    node: mpsc::Sender<Job>,
    ports: mpsc::Sender<Job>,
}

/// Rights are the process's own affair, and so is whom to ask for them.
static THREADS: OnceLock<Threads> = OnceLock::new();

/// Starts the threads that keep what is needed, and gives up everything else in the calling one. To be called before
/// any other thread is started, for those would keep what they have.
///
/// # Errors
/// A thread cannot be started.
pub fn confine() -> io::Result<()> {
    forbid_more();
    let threads = Threads { node: start("node")?, ports: start("ports")? };
    give_up()?;
    // A second call would leave threads that nobody asks; their queues are closed here, and they end.
    drop(THREADS.set(threads));
    Ok(())
}

fn start(name: &str) -> io::Result<mpsc::Sender<Job>> {
    let (jobs, queue) = mpsc::channel(WAITING);
    let (started, ready) = std::sync::mpsc::sync_channel(1);
    Builder::new().name(name.to_owned()).spawn(move || serve(queue, &started))?;
    ready.recv().map_err(|_| io::Error::other(format!("thread {name} ended at once")))??;
    Ok(jobs)
}

/// Gives up everything in the calling thread and those that it starts: for what needs no rights at all.
///
/// # Errors
/// As `capset(2)`.
pub fn give_up() -> io::Result<()> {
    let none = CapabilitySet::empty();
    Ok(set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })?)
}

/// Does something short that may need rights, and waits for it.
///
/// # Errors
/// Its own, and when the thread does not come to it.
pub fn call<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    let Some(Threads { ports: jobs, .. }) = THREADS.get() else { return work() };
    let (tell, answer) = std::sync::mpsc::sync_channel(1);
    // A task: a panic in it ends it, and not the thread. Who has given up waiting drops what comes too late.
    let job: Job = Box::new(move || drop(spawn_local(async move { drop(tell.send(work())) })));
    jobs.try_send(job).map_err(|_| busy())?;
    answer.recv_timeout(PATIENCE).unwrap_or_else(|_| Err(busy()))
}

/// Does something that may need rights and takes its time, on the own runtime of the node's thread.
///
/// # Errors
/// The thread is busy, or `work` panicked.
pub async fn run<T: Send + 'static, F: Future<Output = T> + 'static>(
    work: impl FnOnce() -> F + Send + 'static,
) -> io::Result<T> {
    let Some(Threads { node: jobs, .. }) = THREADS.get() else { return Ok(work().await) };
    let (tell, answer) = oneshot::channel();
    let job: Job = Box::new(move || drop(spawn_local(async move { drop(tell.send(work().await)) })));
    jobs.send(job).await.map_err(|_| busy())?;
    answer.await.map_err(|_| busy())
}

fn busy() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "the thread that has the right to it does not answer")
}

/// Whatever is started from here has no more than this process. Each of these may itself be refused, and then there is
/// nothing to forbid: the container's runtime has done so, or there is no right to begin with.
fn forbid_more() {
    let refused = [
        ("empty the ambient set", clear_ambient_capability_set()),
        ("empty the bounding set", empty_bounding_set()),
        ("set no_new_privs", set_no_new_privs(true)),
    ];
    for (step, result) in refused {
        if let Err(cause) = result {
            tracing::debug!(step, %cause, "not done");
        }
    }
}

/// Ends at the first capability that the kernel does not know.
fn empty_bounding_set() -> Result<(), Errno> {
    for bit in 0..64 {
        match remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << bit)) {
            Ok(()) => {}
            Err(Errno::INVAL) => break,
            Err(refused) => return Err(refused),
        }
    }
    Ok(())
}

/// One thread.
fn serve(mut queue: mpsc::Receiver<Job>, started: &std::sync::mpsc::SyncSender<io::Result<()>>) {
    let runtime = raise().and_then(|()| {
        // Threads that the runtime starts by itself have no business with rights.
        let without = || {
            if let Err(cause) = give_up() {
                tracing::error!(%cause, "a thread could not give up its capabilities");
            }
        };
        tokio::runtime::Builder::new_current_thread().enable_all().on_thread_start(without).build()
    });
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(cause) => return drop(started.send(Err(cause))),
    };
    drop(started.send(Ok(())));
    LocalSet::new().block_on(&runtime, async {
        while let Some(job) = queue.recv().await {
            job();
        }
    });
}

/// Raises what is kept in the calling thread, as far as it was permitted, and gives up the rest.
fn raise() -> io::Result<()> {
    let kept = capabilities(None)?.permitted.intersection(KEPT);
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    Ok(set_capabilities(None, sets)?)
}
