//! Queries by UDP: a few from one port, then from another one, as stub resolvers do.
//!
//! The sockets are not connected, so that an answer from a wrong address is seen, and counted, and is no answer.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::fd::OwnedFd;

use crate::Plan;
use crate::message;
use crate::tally::{Tally, is_too_late};

/// Ports that are open at once. Where all are taken by queries that nobody answers, the client waits.
const MAX_PORTS: usize = 4096;
/// Sent in one go by a client that was kept from sending: what is late beyond that is not sent at all.
const MAX_BURST: u32 = 256;
const IDLE: Duration = Duration::from_millis(20);
/// Between two looks at the ports that are given up.
const LOOK: Duration = Duration::from_millis(5);

/// One thread.
pub(crate) struct Client<'a> {
    plan: &'a Plan,
    pause: Duration,
    epoll: OwnedFd,
    ports: Vec<Option<Port>>,
    free: Vec<usize>,
    /// Ports that send no more, in the order in which they were given up.
    waiting: VecDeque<usize>,
    current: Option<usize>,
    sent: u32,
    tally: Tally,
}

struct Port {
    socket: UdpSocket,
    sent: usize,
    open: Vec<(Vec<u8>, Instant)>,
    answered: Vec<Vec<u8>>,
}

impl<'a> Client<'a> {
    pub(crate) fn new(plan: &'a Plan, pause: Duration) -> Self {
        Self {
            plan,
            pause,
            epoll: epoll::create(CreateFlags::CLOEXEC).unwrap(),
            ports: (0..MAX_PORTS).map(|_| None).collect(),
            free: (0..MAX_PORTS).rev().collect(),
            waiting: VecDeque::new(),
            current: None,
            sent: 0,
            tally: Tally::new(plan),
        }
    }

    pub(crate) fn run(mut self) -> Tally {
        let mut events = Vec::with_capacity(256);
        let (mut next, mut look_again) = (Instant::now(), Instant::now());
        loop {
            let now = Instant::now();
            let is_over = self.plan.is_over();
            if is_over {
                self.waiting.extend(self.current.take());
            } else {
                let mut burst = 0;
                while next <= now && burst < MAX_BURST && self.send() {
                    next += self.pause;
                    burst += 1;
                }
                if burst == MAX_BURST {
                    next = now;
                }
            }
            // Looking through them all is not for every packet.
            if now >= look_again {
                look_again = now + LOOK;
                self.give_up(now);
            }
            if is_over && self.waiting.is_empty() {
                return self.tally;
            }
            let wait = if is_over { IDLE } else { next.saturating_duration_since(Instant::now()).min(IDLE) };
            let wait = Timespec::try_from(wait).unwrap();
            events.clear();
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&wait)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => panic!("epoll: {error}"),
            }
            for event in &events {
                self.read(usize::try_from(event.data.u64()).unwrap());
            }
        }
    }

    /// Sends one query. `false`: every port waits for answers.
    fn send(&mut self) -> bool {
        let Some(place) = self.current.or_else(|| self.open()) else { return false };
        self.current = Some(place);
        let server = self.plan.server;
        let id = message::some_id(self.sent);
        let query = message::query(id, self.sent % self.plan.names, &self.plan.zone, server.is_ipv4());
        self.sent = self.sent.wrapping_add(1);
        let port = self.ports[place].as_mut().unwrap();
        let now = Instant::now();
        self.tally.sent(now);
        match port.socket.send_to(&query, server) {
            Ok(_) => port.open.push((query, now)),
            Err(error) => {
                // A full queue of our own; a route that is not there: nobody will answer.
                eprintln!("cannot send: {error}");
                self.tally.lost(now);
            }
        }
        port.sent += 1;
        if port.sent >= self.plan.per_port {
            self.current = None;
            self.waiting.push_back(place);
        }
        true
    }

    fn open(&mut self) -> Option<usize> {
        let place = self.free.pop()?;
        let socket = UdpSocket::bind(anywhere(self.plan.server)).unwrap();
        socket.set_nonblocking(true).unwrap();
        epoll::add(&self.epoll, &socket, EventData::new_u64(place as u64), EventFlags::IN).unwrap();
        self.ports[place] = Some(Port { socket, sent: 0, open: Vec::new(), answered: Vec::new() });
        self.tally.opened += 1;
        Some(place)
    }

    fn read(&mut self, place: usize) {
        let mut buffer = [0; 1500];
        let Some(port) = &mut self.ports[place] else { return };
        // A port that somebody closed answers with an error, which the time will show.
        while let Ok((length, from)) = port.socket.recv_from(&mut buffer) {
            let message = &buffer[..length];
            if from != self.plan.server {
                self.tally.wrong_source += 1;
                continue;
            }
            let asked = message::id(message)
                .and_then(|id| port.open.iter().position(|(query, _)| message::id(query) == Some(id)));
            let answer = asked.map(|asked| (asked, message::answer(&port.open[asked].0, message)));
            if let Some((asked, Ok(address))) = answer {
                let (query, asked_at) = port.open.swap_remove(asked);
                self.tally.answered(asked_at, address);
                port.answered.push(query);
            } else if port.answered.iter().any(|query| message::answer(query, message).is_ok()) {
                self.tally.again += 1;
            } else {
                self.tally.wrong_answer += 1;
            }
        }
    }

    /// Closes ports that have nothing to wait for any more.
    fn give_up(&mut self, now: Instant) {
        let mut left = self.waiting.len();
        while left > 0
            && let Some(place) = self.waiting.pop_front()
        {
            left -= 1;
            let port = self.ports[place].as_mut().unwrap();
            let too_late = |(_, asked_at): &(Vec<u8>, Instant)| is_too_late(*asked_at, now);
            if port.open.iter().all(too_late) {
                for (_, asked_at) in port.open.drain(..) {
                    self.tally.lost(asked_at);
                }
                self.ports[place] = None;
                self.free.push(place);
            } else {
                self.waiting.push_back(place);
            }
        }
    }
}

/// Any port of any address of the server's family.
pub(crate) fn anywhere(server: SocketAddr) -> SocketAddr {
    let any: IpAddr =
        if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    SocketAddr::new(any, 0)
}
