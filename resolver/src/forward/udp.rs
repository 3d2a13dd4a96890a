//! Questions by UDP: a rotating pool of connected sockets.
//!
//! A fresh socket for every question costs some 10 µs, and a socket for ever is a port that an attacker can learn
//! (SAD DNS). So a socket is used for one question at a time, for [`USES`] questions or [`MAX_AGE`] at most, and the
//! next one is drawn at random from those that are idle. Its port is the kernel's random choice; ids come from a
//! CSPRNG. A socket on which a question was not answered is not used again: what arrives late there is nobody's.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nodestub_wire::{Ask, Reply};
use rand::Rng;
use tokio::net::UdpSocket;

use super::Response;
use super::upstream::ExchangeError;
use crate::metrics::Counter;

/// Questions that one socket is used for.
const USES: u32 = 32;

/// Age after which an idle socket is not used again.
const MAX_AGE: Duration = Duration::from_secs(10);

/// Most idle sockets; more are closed.
const MAX_IDLE: usize = 256;

/// Room for a response, in bytes. We offer 1232; what is longer than this was not meant for us, and comes cut, so
/// that it is malformed.
const RECEIVE_BUFFER: usize = 4096;

#[derive(Debug)]
pub(super) struct UdpPool {
    address: SocketAddr,
    idle: Mutex<Vec<PooledSocket>>,
    pub(super) ignored: Counter,
    pub(super) reused: Counter,
    pub(super) opened: Counter,
}

#[derive(Debug)]
struct PooledSocket {
    socket: UdpSocket,
    opened: Instant,
    uses: u32,
}

impl UdpPool {
    pub(super) fn new(address: SocketAddr) -> Self {
        Self {
            address,
            idle: Mutex::default(),
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
        loop {
            let mut packet = Vec::with_capacity(RECEIVE_BUFFER);
            let received = pooled.socket.recv_buf(&mut packet).await;
            received.map_err(|cause| ExchangeError::Receive(Arc::new(cause)))?;
            match Reply::parse(&packet) {
                Ok(reply) if reply.answers(id, &ask.name, ask.qtype, ask.qclass) => {
                    pooled.uses += 1;
                    self.put_back(pooled);
                    packet.shrink_to_fit();
                    return Ok(Response { packet, reply });
                }
                _ => self.ignored.add(1),
            }
        }
    }

    async fn take(&self) -> io::Result<PooledSocket> {
        if let Some(pooled) = self.take_idle() {
            self.reused.add(1);
            return Ok(pooled);
        }
        self.opened.add(1);
        let any: SocketAddr = match self.address {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let socket = UdpSocket::bind(any).await?;
        socket.connect(self.address).await?;
        Ok(PooledSocket { socket, opened: Instant::now(), uses: 0 })
    }

    fn take_idle(&self) -> Option<PooledSocket> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|pooled| pooled.opened.elapsed() < MAX_AGE);
        if idle.is_empty() {
            return None;
        }
        let index = rand::rng().random_range(0..idle.len());
        Some(idle.swap_remove(index))
    }

    fn put_back(&self, pooled: PooledSocket) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if pooled.uses < USES && idle.len() < MAX_IDLE {
            idle.push(pooled);
        }
    }
}
