//! Clients that count what they lose. They share no code with the daemon: bytes and answers are the laboratory's.

use std::collections::{BTreeMap, HashSet};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nodestub_lab::Netns;
use nodestub_lab::dns::{Answer, Options, query, read_framed, write_framed};

/// Longer than anything takes that works, on an emulated processor too.
pub(crate) const HANG: Duration = Duration::from_secs(180);

/// Queries of one client that are on their way at once. Four clients then stay below what the daemon lets one address ask.
const MOST_OPEN: usize = 200;

/// Queries by UDP at a steady rate, each sent once and never again.
pub(crate) struct UdpLoad {
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<Tally>>,
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    sent: AtomicU64,
    answered: AtomicU64,
}

/// What became of them.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) sent: u64,
    pub(crate) lost: u64,
    /// When those were sent.
    pub(crate) lost_at: Vec<Instant>,
    /// Answers beyond the first to a query, which harm nobody.
    pub(crate) again: u64,
    /// How long an answer took, by the longest.
    pub(crate) longest: Duration,
}

impl UdpLoad {
    /// `clients` clients in `net`, which together send `rate` queries a second for `names` to `server`.
    pub(crate) fn start(net: &Netns, server: SocketAddr, names: &[String], clients: u32, rate: u32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let counts = Arc::<Counts>::default();
        let pause = Duration::from_secs(1) * clients / rate;
        let clients = (0..clients).map(|_| {
            let (names, stop, counts) = (names.to_vec(), Arc::clone(&stop), Arc::clone(&counts));
            net.run(move || std::thread::spawn(move || client(server, &names, pause, &stop, &counts)))
                .unwrap()
        });
        let clients = clients.collect();
        Self { stop, clients, counts }
    }

    /// Waits until that many more queries have been answered.
    pub(crate) fn wait_for(&self, more: u64) {
        wait(&self.counts.answered, more);
    }

    /// Waits until that many more have been sent, answered or not.
    pub(crate) fn wait_until_sent(&self, more: u64) {
        wait(&self.counts.sent, more);
    }

    /// Sends no more, waits for the last answers, and adds up.
    pub(crate) fn finish(self) -> Tally {
        self.stop.store(true, SeqCst);
        self.clients.into_iter().map(|client| client.join().unwrap()).fold(Tally::default(), |sum, one| {
            Tally {
                sent: sum.sent + one.sent,
                lost: sum.lost + one.lost,
                lost_at: [sum.lost_at, one.lost_at].concat(),
                again: sum.again + one.again,
                longest: sum.longest.max(one.longest),
            }
        })
    }
}

fn wait(count: &AtomicU64, more: u64) {
    let wanted = count.load(SeqCst) + more;
    let end = Instant::now() + HANG;
    while count.load(SeqCst) < wanted {
        assert!(Instant::now() < end, "nothing moves any more");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn client(
    server: SocketAddr,
    names: &[String],
    pause: Duration,
    stop: &AtomicBool,
    counts: &Counts,
) -> Tally {
    let any = if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = Arc::new(UdpSocket::bind(any).unwrap());
    socket.connect(server).unwrap();
    // What this side has no room for would look as if it had been lost.
    if nix::sys::socket::setsockopt(&*socket, nix::sys::socket::sockopt::RcvBufForce, &(4 << 20)).is_err() {
        socket2::SockRef::from(&*socket).set_recv_buffer_size(4 << 20).unwrap();
    }
    let open: Arc<Mutex<BTreeMap<u16, (String, Instant)>>> = Arc::default();
    let all_sent = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| read_answers(&socket, &open, &all_sent, counts));
        let mut sent = 0;
        let mut next = Instant::now();
        for id in (0..=u16::MAX).cycle() {
            if stop.load(SeqCst) {
                break;
            }
            // A machine on which nobody gets a CPU must not look like a server that loses queries: its queue would.
            while open.lock().unwrap().len() >= MOST_OPEN && !stop.load(SeqCst) {
                std::thread::sleep(Duration::from_millis(1));
                next = Instant::now();
            }
            let name = &names[usize::from(id) % names.len()];
            let bytes = query(name, "A", &Options { id: Some(id), ..Options::default() }).unwrap();
            let unanswered = open.lock().unwrap().insert(id, (format!("{name}."), Instant::now()));
            assert!(unanswered.is_none(), "65536 queries ago, and still unanswered");
            // A port that nobody has answers a query with an error for the next one, which is then sent once more.
            socket.send(&bytes).or_else(|_| socket.send(&bytes)).unwrap();
            sent += 1;
            counts.sent.fetch_add(1, SeqCst);
            next += pause;
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
        }
        all_sent.store(true, SeqCst);
        let (again, longest) = reader.join().unwrap();
        let lost_at: Vec<Instant> = open.lock().unwrap().values().map(|(_, asked_at)| *asked_at).collect();
        Tally { sent, lost: lost_at.len() as u64, lost_at, again, longest }
    })
}

fn read_answers(
    socket: &UdpSocket,
    open: &Mutex<BTreeMap<u16, (String, Instant)>>,
    all_sent: &AtomicBool,
    counts: &Counts,
) -> (u64, Duration) {
    socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let (mut again, mut longest) = (0, Duration::ZERO);
    let mut silent_since = Instant::now();
    let mut buffer = [0; 4096];
    loop {
        match socket.recv(&mut buffer) {
            Ok(length) => {
                silent_since = Instant::now();
                let answer = Answer::parse(&buffer[..length]).unwrap();
                let Some((name, asked_at)) = open.lock().unwrap().remove(&answer.id) else {
                    again += 1;
                    continue;
                };
                assert_eq!(answer.rcode, "NOERROR", "{name}");
                assert_eq!((answer.question.unwrap().0, answer.answers.len()), (name, 1));
                longest = longest.max(asked_at.elapsed());
                counts.answered.fetch_add(1, SeqCst);
            }
            // Nothing for now; or a port that was closed for a moment, which the end will show.
            Err(_) => {
                let over = all_sent.load(SeqCst)
                    && (open.lock().unwrap().is_empty() || silent_since.elapsed() > Duration::from_secs(5));
                if over {
                    return (again, longest);
                }
            }
        }
    }
}

/// A connection on which several queries at a time are under way, again and again.
pub(crate) struct TcpLoad {
    stop: Arc<AtomicBool>,
    client: JoinHandle<u64>,
}

impl TcpLoad {
    /// Asks for `names`, `at_once` at a time. A connection that closes is a panic.
    pub(crate) fn start(net: &Netns, server: SocketAddr, names: &[String], at_once: u16) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, names) = (Arc::clone(&stop), names.to_vec());
        let client = move || {
            let mut stream = connect(server);
            let mut asked = 0;
            while !stopped.load(SeqCst) {
                let mut open: HashSet<u16> = HashSet::new();
                for id in 0..at_once {
                    let name = &names[(usize::try_from(asked).unwrap() + usize::from(id)) % names.len()];
                    ask_on(&mut stream, name, id);
                    open.insert(id);
                }
                while !open.is_empty() {
                    let answer = answer_on(&mut stream);
                    assert_eq!((answer.rcode.as_str(), answer.answers.len()), ("NOERROR", 1));
                    assert!(open.remove(&answer.id), "answered twice, or not asked");
                }
                asked += u64::from(at_once);
                // A client thinks between its questions; else one connection takes a whole CPU.
                std::thread::sleep(Duration::from_millis(2));
            }
            asked
        };
        let client = net.run(move || std::thread::spawn(client)).unwrap();
        Self { stop, client }
    }

    /// How many queries were asked and answered.
    pub(crate) fn finish(self) -> u64 {
        self.stop.store(true, SeqCst);
        self.client.join().unwrap()
    }
}

pub(crate) fn connect(server: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect_timeout(&server, HANG).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(HANG)).unwrap();
    stream
}

pub(crate) fn ask_on(stream: &mut impl Write, name: &str, id: u16) {
    write_framed(stream, &query(name, "A", &Options { id: Some(id), ..Options::default() }).unwrap())
        .unwrap();
}

pub(crate) fn answer_on(stream: &mut impl Read) -> Answer {
    Answer::parse(&read_framed(stream).unwrap().expect("the connection was closed")).unwrap()
}
