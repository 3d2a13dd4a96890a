//! A resolver that is alive but deaf is worse than none: while its sockets are open, the kernel's fail-open stays out.
//!
//! So a thread of its own asks the daemon, through the kernel, by UDP, at each address that has it, for a name that only
//! this process knows: 128 random bits. The question goes the whole way (a worker thread, the queue, the slow side) and
//! never to an upstream. When nothing comes for five tries in a row, the process ends, which closes its sockets.
//!
//! A flood is no deafness: while clients are answered, a question of ours that drowns in it does not count. Ending then
//! would send the flood on to the cluster DNS.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, PoisonError};
use std::thread::{Builder, sleep};
use std::time::Duration;

use nodestub_corefile::config::Scheme;
use nodestub_wire::{Ask, CLASS_IN, Header, Name, rtype};
use rand::Rng;

use crate::admin::Status;
use crate::metrics::Lane;

/// Unanswered questions in a row after which the process ends.
const TRIES: u32 = 5;

/// Time between questions, and how long each waits for its answer.
const INTERVAL: Duration = Duration::from_secs(1);

/// Exit status of a process that was deaf (EX_SOFTWARE of sysexits.h).
const DEAF: i32 = 70;

/// A label that nobody can guess; names under it are the watchdog's.
#[derive(Debug)]
pub struct SecretLabel(String);

impl SecretLabel {
    /// A new one.
    #[expect(clippy::new_without_default, reason = "each is another")]
    pub fn new() -> Self {
        Self(format!("{:032x}", rand::rng().random::<u128>()))
    }

    /// Whether a name (lower-cased wire form) is the watchdog's.
    pub fn is_first_of(&self, name: &[u8]) -> bool {
        name.first() == Some(&32) && name.get(1..33) == Some(self.0.as_bytes())
    }

    fn under(&self, zone: &Name) -> Option<Name> {
        let name = if zone.is_root() { self.0.clone() } else { format!("{}.{zone}", self.0) };
        name.parse().ok()
    }
}

/// Starts the thread. It watches for as long as the process serves.
///
/// # Errors
/// The thread cannot be started.
pub fn start(status: Arc<Status>) -> io::Result<()> {
    Builder::new().name("watchdog".into()).spawn(move || watch(&status)).map(drop)
}

fn watch(status: &Status) {
    let mut silent = 0;
    let mut answered_before = 0;
    loop {
        sleep(INTERVAL);
        let answered = answered(status);
        let busy = answered != std::mem::replace(&mut answered_before, answered);
        let idle = !status.serving.load(Relaxed)
            || status.stopping.load(Relaxed)
            // Sockets that are on their way to a newer process are read by nobody, and it may take its ten seconds to fail.
            || status.handovers.is_giving()
            // A newer process has the sockets, and a watchdog of its own.
            || status.handovers.is_standing_by();
        if idle || busy || all_answer(status) {
            silent = 0;
            continue;
        }
        silent += 1;
        tracing::error!(
            tries = silent,
            of = TRIES,
            "the watchdog's question to this very process was not answered"
        );
        if silent >= TRIES {
            tracing::error!("alive, but deaf: ending, so that the kernel or the next process takes over");
            std::process::exit(DEAF);
        }
    }
}

/// Answers to clients so far; the watchdog's own questions are not counted.
fn answered(status: &Status) -> u64 {
    let workshop = status.workshop.lock().unwrap_or_else(PoisonError::into_inner);
    workshop.all_counters().iter().map(|route| route.sum(Lane::answered)).sum()
}

/// Asks at each listening address, but for those by TLS. What cannot be asked (no route in a test's namespace, say) does not count.
fn all_answer(status: &Status) -> bool {
    let tables = status.shared.tables.load_full();
    let mut by_udp = tables.listeners.iter().filter(|(_, zones)| zones.scheme() == Scheme::Dns);
    by_udp.all(|(listener, zones)| {
        let Some(route) = zones.routes().next() else { return true };
        let Some(name) = status.shared.resolver.secret_label.under(&route.zone) else { return true };
        answers(*listener, &name)
    })
}

fn answers(listener: SocketAddr, name: &Name) -> bool {
    let ask = Ask {
        name: name.as_bytes().into(),
        qtype: rtype::HINFO,
        qclass: CLASS_IN,
        recursion_desired: false,
        checking_disabled: false,
        dnssec_ok: false,
        options: Box::default(),
    };
    let id = rand::rng().random();
    let server = reachable(listener);
    let any: IpAddr =
        if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let asked = UdpSocket::bind((any, 0)).and_then(|socket| {
        socket.set_read_timeout(Some(INTERVAL))?;
        socket.connect(server)?;
        socket.send(&ask.to_packet(id, false))?;
        Ok(socket)
    });
    let Ok(socket) = asked else { return true };
    let mut reply = [0; 512];
    match socket.recv(&mut reply) {
        Ok(length) => {
            let header = Header::parse(reply.get(..length).unwrap_or_default());
            header.is_ok_and(|header| header.id == id)
        }
        Err(_) => false,
    }
}

/// A wildcard is asked on the loopback.
fn reachable(listener: SocketAddr) -> SocketAddr {
    match listener.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => (Ipv4Addr::LOCALHOST, listener.port()).into(),
        IpAddr::V6(ip) if ip.is_unspecified() => (Ipv6Addr::LOCALHOST, listener.port()).into(),
        _ => listener,
    }
}
