//! A pod that asks without a pause: each question sent once, by UDP, every few milliseconds, and counted.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nodestub_lab::dns::{Answer, Options, query};
use nodestub_lab::{Error, Netns};

/// Between two questions.
const PAUSE: Duration = Duration::from_millis(2);
/// A question without an answer for that long is lost.
const PATIENCE: Duration = Duration::from_secs(5);

/// Questions under way.
#[derive(Debug)]
pub(crate) struct Steady {
    over: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    sender: JoinHandle<Result<(), Error>>,
    reader: JoinHandle<Result<Counted, Error>>,
}

/// What became of them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Counted {
    /// Questions sent.
    pub(crate) sent: u64,
    /// The numbers of those that nobody answered, counted from 0.
    pub(crate) lost: Vec<u64>,
    /// The longest time for an answer.
    pub(crate) slowest: Duration,
}

impl Steady {
    /// Begins to ask `server` for the address of `name`, in the pod.
    pub(crate) fn start(pod: &Netns, server: SocketAddr, name: &'static str) -> Result<Self, Error> {
        let socket = pod.run(|| {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            // Connected: an answer from another address than the one that is asked is none.
            socket.connect(server)?;
            socket.set_read_timeout(Some(Duration::from_millis(50)))?;
            Ok(Arc::new(socket))
        })?;
        let socket: Arc<UdpSocket> = socket.map_err(|error: std::io::Error| failed(error))?;
        let over = Arc::<AtomicBool>::default();
        let sent = Arc::<AtomicU64>::default();
        let began = Instant::now();
        let sender = std::thread::spawn({
            let (socket, over, sent) = (Arc::clone(&socket), Arc::clone(&over), Arc::clone(&sent));
            move || send(&socket, name, began, &over, &sent)
        });
        let reader = std::thread::spawn({
            let (over, sent) = (Arc::clone(&over), Arc::clone(&sent));
            move || read(&socket, began, &over, &sent)
        });
        Ok(Self { over, sent, sender, reader })
    }

    /// How many have been sent by now.
    pub(crate) fn sent(&self) -> u64 {
        self.sent.load(SeqCst)
    }

    /// Waits until that many more questions have been sent.
    pub(crate) fn wait_for(&self, more: u64) {
        let wanted = self.sent().saturating_add(more);
        while self.sent() < wanted && !self.sender.is_finished() {
            std::thread::sleep(PAUSE);
        }
    }

    /// Asks no more, and waits for the last answers.
    pub(crate) fn finish(self) -> Result<Counted, Error> {
        self.over.store(true, SeqCst);
        let gone = |_| Error::new("count questions: a thread is gone");
        self.sender.join().map_err(gone)??;
        self.reader.join().map_err(gone)?
    }
}

/// When a question of that number is sent: the number is its id, so the time need not be kept.
fn moment(began: Instant, number: u16) -> Instant {
    began + PAUSE * u32::from(number)
}

fn send(
    socket: &UdpSocket,
    name: &str,
    began: Instant,
    over: &AtomicBool,
    sent: &AtomicU64,
) -> Result<(), Error> {
    // Two minutes at most: no id twice.
    for number in 0..=u16::MAX {
        std::thread::sleep(moment(began, number).saturating_duration_since(Instant::now()));
        if over.load(SeqCst) {
            return Ok(());
        }
        let bytes = query(name, "A", &Options { id: Some(number), ..Options::default() })?;
        // An error may be the one of an earlier question, which nobody took. One that cannot be sent is lost.
        drop(socket.send(&bytes).or_else(|_| socket.send(&bytes)));
        sent.store(u64::from(number) + 1, SeqCst);
    }
    Ok(())
}

fn read(socket: &UdpSocket, began: Instant, over: &AtomicBool, sent: &AtomicU64) -> Result<Counted, Error> {
    let mut answered = vec![false; usize::from(u16::MAX) + 1];
    let mut slowest = Duration::ZERO;
    let mut last = Instant::now();
    let mut buffer = [0; 1500];
    loop {
        if let Ok(length) = socket.recv(&mut buffer) {
            last = Instant::now();
            let answer = Answer::parse(buffer.get(..length).unwrap_or_default())?;
            if answer.rcode != "NOERROR" || answer.answers.is_empty() {
                return Err(Error::new(format!("ask steadily: the answer was {}", answer.rcode)));
            }
            if let Some(answered) = answered.get_mut(usize::from(answer.id)) {
                *answered = true;
            }
            slowest = slowest.max(last.saturating_duration_since(moment(began, answer.id)));
        }
        if over.load(SeqCst) {
            let sent = sent.load(SeqCst);
            let lost: Vec<u64> = (0..sent)
                .zip(&answered)
                .filter_map(|(number, answered)| (!answered).then_some(number))
                .collect();
            if lost.is_empty() || last.elapsed() > PATIENCE {
                return Ok(Counted { sent, lost, slowest });
            }
        }
    }
}

fn failed(error: std::io::Error) -> Error {
    Error::caused("ask steadily", error)
}
