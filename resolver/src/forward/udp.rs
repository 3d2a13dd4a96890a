//! Questions by UDP: a rotating pool of connected sockets.
//!
//! A fresh socket for every question costs some 10 µs, and a socket for ever is a port that an attacker can learn
//! (SAD DNS). So there are [`SLOTS`] places; each question draws up to [`DRAWS`] of them at random, takes the first socket
//! that it finds, and opens one where it finds none. A socket serves one question at a time, and [`USES`] questions or [`MAX_AGE`] at most. Its port is
//! the kernel's random choice; ids come from a CSPRNG. A socket on which a question was not answered is not used
//! again: what arrives late there is nobody's.
//!
//! A datagram may be lost, so a question is sent again on its socket, with its id, after [`RESEND`] of silence, and then after each [`RESEND_AGAIN`]; whichever
//! answer comes is believed, and the socket is not used again. So that a server which is slow because it is busy is not asked twice
//! as much, that is paid for by answers that came sooner ([`Credit`]).

use std::cell::RefCell;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nodestub_corefile::config::Forward;
use nodestub_wire::{Ask, Reply};
use rand::Rng;
use rustix::net::RecvFlags;
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::time::timeout_at;

use super::upstream::ExchangeError;
use super::{Response, local_end};
use crate::metrics::Counter;

/// Silence after which a question is sent again: longer than most answers take that the server must ask others for.
const RESEND: Duration = Duration::from_millis(700);

/// Silence after which it is sent once more: by then a loss is likelier than a slow answer.
const RESEND_AGAIN: Duration = Duration::from_millis(400);

/// Questions that may be sent again before an answer has come in time.
const FIRST_CREDIT: u32 = 20;

/// Most that may be saved up.
const MOST_CREDIT: u32 = 200;

/// Questions that one socket is used for.
const USES: u32 = 32;

/// Age after which an idle socket is not used again.
const MAX_AGE: Duration = Duration::from_secs(10);

/// Places of the pool; most idle sockets.
const SLOTS: usize = 256;

/// Places that a question looks at. With half of all sockets under way, one question in sixteen opens another one; with
/// a single look it would be every second.
const DRAWS: usize = 4;

/// Room for a response, in bytes. We offer 1232; what is longer than this was not meant for us, and comes cut, so
/// that it is malformed.
const RECEIVE_BUFFER: usize = 4096;

#[derive(Debug)]
pub(super) struct UdpPool {
    address: SocketAddr,
    source: Option<IpAddr>,
    /// [`MAX_AGE`], or less by `expire` and `max_age`.
    max_age: Duration,
    /// [`SLOTS`], or less by `max_idle_conns`.
    places: usize,
    /// Grows to all places with the first question.
    slots: Mutex<Vec<Option<PooledSocket>>>,
    credit: Credit,
    pub(super) ignored: Counter,
    pub(super) reused: Counter,
    pub(super) opened: Counter,
}

/// How many questions may be sent again: one for each answer that came before that was thought of.
#[derive(Debug)]
pub(super) struct Credit {
    left: AtomicU32,
    /// Questions sent again, ever.
    pub(super) spent: Counter,
    /// Those that were not because nothing was left, ever.
    pub(super) refused: Counter,
}

impl Credit {
    fn new() -> Self {
        Self { left: AtomicU32::new(FIRST_CREDIT), spent: Counter::default(), refused: Counter::default() }
    }

    fn earn(&self) {
        if self.left.load(Relaxed) < MOST_CREDIT {
            self.left.fetch_add(1, Relaxed);
        }
    }

    fn spend(&self) -> bool {
        let spent = self.left.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok();
        if spent {
            self.spent.add(1);
        } else {
            self.refused.add(1);
        }
        spent
    }
}

#[derive(Debug)]
struct PooledSocket {
    socket: UdpSocket,
    slot: usize,
    opened: Instant,
    uses: u32,
}

impl UdpPool {
    pub(super) fn new(address: SocketAddr, config: &Forward) -> Self {
        let most = config.max_idle.and_then(|most| usize::try_from(most).ok()).unwrap_or(SLOTS);
        Self {
            address,
            source: config.source_address,
            max_age: MAX_AGE.min(config.expire).min(config.max_age.unwrap_or(MAX_AGE)),
            places: SLOTS.min(most),
            slots: Mutex::default(),
            credit: Credit::new(),
            ignored: Counter::default(),
            reused: Counter::default(),
            opened: Counter::default(),
        }
    }

    pub(super) async fn exchange(&self, ask: &Ask, with_edns: bool) -> Result<Response, ExchangeError> {
        let mut pooled = self.take().await.map_err(|cause| ExchangeError::Connect(Arc::new(cause)))?;
        let id = rand::rng().random();
        let question = ask.to_packet(id, with_edns);
        pooled.socket.send(&question).await.map_err(|cause| ExchangeError::Send(Arc::new(cause)))?;
        let mut patience = tokio::time::Instant::now() + RESEND;
        let mut is_first = true;
        loop {
            let Ok(packet) = timeout_at(patience, receive(&pooled.socket)).await else {
                patience += RESEND_AGAIN;
                if self.credit.spend() {
                    is_first = false;
                    let sent = pooled.socket.send(&question).await;
                    sent.map_err(|cause| ExchangeError::Send(Arc::new(cause)))?;
                }
                continue;
            };
            let packet = packet.map_err(|cause| ExchangeError::Receive(Arc::new(cause)))?;
            match Reply::parse(&packet) {
                Ok(reply) if reply.answers(id, &ask.name, ask.qtype, ask.qclass) => {
                    if is_first {
                        self.credit.earn();
                        expect_no_more(&pooled.socket);
                        pooled.uses += 1;
                        self.put_back(pooled);
                    }
                    return Ok(Response { packet, reply });
                }
                _ => self.ignored.add(1),
            }
        }
    }

    /// What was sent again, and what was not for want of credit, ever.
    pub(super) fn resent(&self) -> [u64; 2] {
        [self.credit.spent.get(), self.credit.refused.get()]
    }

    async fn take(&self) -> io::Result<PooledSocket> {
        let draws: [usize; DRAWS] = std::array::from_fn(|_| rand::rng().random_range(0..self.places));
        if let Some(pooled) = self.take_idle(&draws) {
            self.reused.add(1);
            return Ok(pooled);
        }
        let [slot, ..] = draws;
        self.opened.add(1);
        let socket = UdpSocket::bind(local_end(self.source, self.address)?).await?;
        socket.connect(self.address).await?;
        Ok(PooledSocket { socket, slot, opened: Instant::now(), uses: 0 })
    }

    fn take_idle(&self, draws: &[usize]) -> Option<PooledSocket> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if slots.is_empty() {
            slots.resize_with(self.places, || None);
        }
        let young = |pooled: &PooledSocket| pooled.opened.elapsed() < self.max_age;
        draws.iter().find_map(|slot| slots.get_mut(*slot)?.take().filter(young))
    }

    /// A socket that has served its time is closed, and so is the one that another left in its place meanwhile.
    fn put_back(&self, pooled: PooledSocket) {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if pooled.uses < USES
            && let Some(place) = slots.get_mut(pooled.slot)
        {
            *place = Some(pooled);
        }
    }
}

/// A datagram has come, or the kernel's word that nobody listens there (ICMP): it tells of that as an error, and not as
/// something to read, so who waits only to read waits in vain.
const AN_END: Interest = Interest::READABLE.add(Interest::ERROR);

/// The next datagram. Most are small: one buffer for each thread, and as many bytes as there are kept.
async fn receive(socket: &UdpSocket) -> io::Result<Vec<u8>> {
    thread_local! {
        static BUFFER: RefCell<[u8; RECEIVE_BUFFER]> = const { RefCell::new([0; RECEIVE_BUFFER]) };
    }
    let read = || {
        BUFFER.with_borrow_mut(|buffer| {
            let (_, length) = rustix::net::recv(socket, buffer.as_mut_slice(), RecvFlags::DONTWAIT)?;
            Ok(buffer.get(..length).unwrap_or(buffer).to_vec())
        })
    };
    socket.async_io(AN_END, read).await
}

/// Notes that nothing more is expected: without this the next question would look for its answer before it can be there.
/// Only once the answer has come, for the kernel tells of a datagram when it comes, and not of those that lie there: what
/// lies behind the answer is found with the next one.
fn expect_no_more(socket: &UdpSocket) {
    if socket.try_io(AN_END, || Err::<(), _>(io::ErrorKind::WouldBlock.into())).is_ok() {
        // Never: the closure gives an error.
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_answers_nobody_in_time_is_not_asked_twice_as_much() {
        let credit = Credit::new();
        let spent = (0..1_000).filter(|_| credit.spend()).count();
        assert_eq!(spent, usize::try_from(FIRST_CREDIT).unwrap());
        (0..10_000).for_each(|_| credit.earn());
        let spent = (0..1_000).filter(|_| credit.spend()).count();
        assert_eq!(spent, usize::try_from(MOST_CREDIT).unwrap());
        assert_eq!(credit.spent.get() + credit.refused.get(), 2_000);
    }
}
