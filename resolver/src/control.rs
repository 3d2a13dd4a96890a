//! Questions that a process is asked from its own container: what probes want to know.
//!
//! ```text
//!   kubelet ─exec─► nodestub-resolver probe ready ── abstract Unix socket ──► this process
//!                                                    nodestub/control/MOUNT-NAMESPACE/PID
//! ```
//!
//! While one pod takes over from another, both are on the host's network, and a question by HTTP would be answered by
//! whichever serves. So a process is asked by a name that is its own: each container has a mount namespace, which the
//! kubelet enters to run a probe, and no file need be written for it. Both ends believe their own user and root only.

use std::io::{self, Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::sync::{Arc, OnceLock};
use std::thread::Builder;
use std::time::Duration;

use clap::ValueEnum;
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use tokio::sync::Semaphore;

use crate::admin::Status;

/// Questions that are answered at once; more wait.
const TOGETHER: usize = 8;

/// How long one may take from being connected to being answered.
const PATIENCE: Duration = Duration::from_secs(2);

/// More octets than a question or its answer has.
const LONGEST: usize = 4096;

/// What can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Question {
    /// Whether the start is over: queries are answered, or were, and a newer process answers them now.
    Startup,
    /// Whether the process is at work at all. One that stands by for a newer one is.
    Live,
    /// Whether it answers queries, or would at once if the newer process that does so went away.
    Ready,
}

/// What a question finds: nothing before the start is over.
pub type Stage = Arc<OnceLock<Arc<Status>>>;

/// Answers questions for as long as the process lives. Where that cannot be, it is said, and the start goes on.
pub fn open(stage: &Stage) {
    match bind() {
        Ok(listener) => drop(tokio::spawn(serve(listener, Arc::clone(stage)))),
        Err(cause) => tracing::warn!(%cause, "`nodestub-resolver probe` will not be answered"),
    }
}

/// The answer: yes or no, and why.
pub fn answer(question: Question, status: Option<&Status>) -> Result<String, String> {
    let Some(status) = status else {
        return match question {
            Question::Live => Ok("starting".to_owned()),
            Question::Startup | Question::Ready => Err("not serving yet".to_owned()),
        };
    };
    let stands_by = status.handovers.is_standing_by();
    match question {
        Question::Ready if status.handovers.is_superseded() => {
            Err("two newer processes have come; this one only waits to be stopped".to_owned())
        }
        Question::Ready if !stands_by => match status.unready() {
            reasons if reasons.is_empty() => Ok("serving".to_owned()),
            reasons => Err(reasons.join("; ")),
        },
        _ if stands_by => Ok("standing by: a newer process serves".to_owned()),
        _ => Ok("serving".to_owned()),
    }
}

fn bind() -> io::Result<UnixListener> {
    let listener = std::os::unix::net::UnixListener::bind_addr(&name(std::process::id())?)?;
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

/// The socket of a process of this container, by its number in the pid namespace that we see.
fn name(pid: u32) -> io::Result<SocketAddr> {
    // `mnt:[4026531841]`
    let container = std::fs::read_link("/proc/self/ns/mnt")?;
    SocketAddr::from_abstract_name(format!("nodestub/control/{}/{pid}", container.display()))
}

async fn serve(listener: UnixListener, stage: Stage) {
    let places = Arc::new(Semaphore::new(TOGETHER));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            // Too many open files, most likely; the one who asks waits, and gives up in time.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let stage = Arc::clone(&stage);
        tokio::spawn(async move {
            // An error is told by the silence: who asks takes it for a no.
            drop(tokio::time::timeout(PATIENCE, reply(stream, &stage)).await);
            drop(place);
        });
    }
}

async fn reply(mut stream: tokio::net::UnixStream, stage: &Stage) -> io::Result<()> {
    if !is_believed(stream.peer_cred()?.uid()) {
        return Ok(());
    }
    let mut asked = vec![0; LONGEST];
    let mut length = 0;
    while !asked.get(..length).is_some_and(|text| text.ends_with(b"\n")) {
        match stream.read(asked.get_mut(length..).unwrap_or_default()).await? {
            0 => return Ok(()),
            more => length += more,
        }
    }
    let asked = String::from_utf8_lossy(asked.get(..length).unwrap_or_default());
    let text = match Question::from_str(asked.trim_end(), false) {
        Ok(question) => match answer(question, stage.get().map(AsRef::as_ref)) {
            Ok(text) => format!("yes {text}\n"),
            Err(text) => format!("no {text}\n"),
        },
        Err(_) => "no this version does not know the question\n".to_owned(),
    };
    stream.write_all(text.as_bytes()).await
}

fn is_believed(uid: u32) -> bool {
    uid == 0 || uid == rustix::process::geteuid().as_raw()
}

/// Why a question has no answer, or the answer is no.
#[derive(Debug)]
pub enum ProbeError {
    /// No.
    No(String),
    /// There is nobody to ask.
    Nobody,
    /// There are several, and none was named.
    Several(Vec<u32>),
    /// Somebody whom we do not believe has the name.
    Stranger(u32),
    /// It did not answer.
    Silent,
    /// The system refused.
    System(io::Error),
}

/// Asks the process of this container, or the one with this number in it. The whole program ends with status 1 when
/// `limit` is over, whatever hangs.
///
/// # Errors
/// The answer is no, or there is none.
pub fn ask(question: Question, pid: Option<u32>, limit: Duration) -> Result<String, ProbeError> {
    // Connecting waits without a limit where too many wait already.
    let timer = move || {
        std::thread::sleep(limit);
        eprintln!("{}", ProbeError::Silent);
        std::process::exit(1);
    };
    Builder::new().name("limit".into()).spawn(timer).map_err(ProbeError::System)?;
    let mut found = match pid {
        Some(pid) => vec![pid],
        None => processes().map_err(ProbeError::System)?,
    };
    let mut lines = Vec::new();
    found.retain(|pid| {
        let line = name(*pid).and_then(|name| UnixStream::connect_addr(&name));
        line.map(|line| lines.push(line)).is_ok()
    });
    match (lines.pop(), found.len()) {
        (None, _) => Err(ProbeError::Nobody),
        (Some(line), 1) => ask_on(line, question),
        _ => Err(ProbeError::Several(found)),
    }
}

fn ask_on(mut line: UnixStream, question: Question) -> Result<String, ProbeError> {
    let theirs = getsockopt(&line, PeerCredentials).map_err(|cause| ProbeError::System(cause.into()))?.uid();
    // Root may ask anybody.
    if !is_believed(theirs) && !rustix::process::geteuid().is_root() {
        return Err(ProbeError::Stranger(theirs));
    }
    let asked =
        question.to_possible_value().map(|value| format!("{}\n", value.get_name())).unwrap_or_default();
    line.write_all(asked.as_bytes()).map_err(ProbeError::System)?;
    let mut answer = String::new();
    let longest = u64::try_from(LONGEST).unwrap_or(u64::MAX);
    line.take(longest).read_to_string(&mut answer).map_err(ProbeError::System)?;
    match answer.trim_end().split_once(' ') {
        Some(("yes", text)) => Ok(text.to_owned()),
        Some(("no", text)) => Err(ProbeError::No(text.to_owned())),
        _ => Err(ProbeError::Silent),
    }
}

/// The processes that are seen in here.
fn processes() -> io::Result<Vec<u32>> {
    let number = |entry: io::Result<std::fs::DirEntry>| entry.ok()?.file_name().to_str()?.parse().ok();
    Ok(std::fs::read_dir("/proc")?.filter_map(number).collect())
}

impl std::fmt::Display for ProbeError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::No(text) => write!(f, "no: {text}"),
            Self::Nobody => f.write_str(
                "no nodestub-resolver runs in this container, that is, in this mount and network namespace",
            ),
            Self::Several(pids) => write!(f, "several nodestub-resolvers run here; name one: --pid {pids:?}"),
            Self::Stranger(uid) => {
                write!(f, "the one that answers belongs to user {uid}, and is not believed")
            }
            Self::Silent => f.write_str("nodestub-resolver did not answer in time"),
            Self::System(cause) => write!(f, "cannot ask nodestub-resolver: {cause}"),
        }
    }
}

impl std::error::Error for ProbeError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::System(cause) => Some(cause),
            _ => None,
        }
    }
}
