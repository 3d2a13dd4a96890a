//! A running resolver hands over to a newly started one, and no query is lost.
//!
//! ```text
//!   take      the newcomer: asks, fills its cache, gets the sockets
//!   give      the one that serves: opens the door, gives, stands by, serves again
//!   warm      the cache's way
//!   message   what they say to each other, as bytes
//!   link      the line: whole messages with descriptors, and who is believed
//! ```
//!
//! Sockets are never closed on the way: what arrives while nobody reads waits in the kernel for whoever reads next.
//!
//! Invariants:
//! 1. The rendezvous name is held by who serves, or by who is about to. It is claimed before any other socket.
//! 2. Sockets move only towards a process that has started later, of the same protocol version and user.
//! 3. A newcomer reads only after [`Yours`](message::Message::Yours). Who gives reads nothing from before it sends the
//!    first socket, unless the newcomer goes, or does not say [`Serving`](message::Message::Serving) in time.
//! 4. Who stands by keeps copies of exactly the sockets that are served, and closes those that are not, so that
//!    nothing waits in a queue that nobody will ever read. Who is superseded keeps none.
//! 5. At most one process stands by, and it never serves beside another: it is superseded before a third begins.
//! 6. A connection of a client is in one process only, and moves only while nothing is under way on it.
//!
//! The kernel closes the line when a process dies, whatever it dies of, and closes it after its last thread has
//! stopped: so "the line is closed" means that nobody reads any more.

mod give;
pub mod link;
pub mod message;
mod take;
mod warm;

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

pub use give::{Event, Newcomer, Post, StoodBy};
use link::LinkError;
use message::{CACHE_FORMAT, Greeting, PROTOCOL};
pub use take::{Entrance, Taken};
pub use warm::Pantry;

use crate::metrics::Counter;

/// How long one message may take to be sent, and a quick answer to come.
const PATIENCE: Duration = Duration::from_secs(10);

/// Who we are towards other processes.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The abstract socket's name; `None`: no handover.
    rendezvous: Option<String>,
    /// Nanoseconds of CLOCK_BOOTTIME.
    started: u64,
}

impl Identity {
    /// `flag`: what `--handover` says. Without it, there is handover where local addresses are given: the name is then
    /// the first of them with the port, so that resolvers of different addresses do not meet. An empty flag switches
    /// it off.
    pub fn new(flag: Option<&str>, local_addresses: &[IpAddr], port: u16) -> Self {
        let name = match flag {
            Some("") => None,
            Some(name) => Some(name.to_owned()),
            None => local_addresses.first().map(|address| SocketAddr::new(*address, port).to_string()),
        };
        let rendezvous = name.map(|name| format!("nodestub/handover/{name}"));
        Self { rendezvous, started: u64::try_from(since_boot().as_nanos()).unwrap_or(u64::MAX) }
    }

    fn greeting(&self) -> Greeting {
        Greeting {
            protocol: PROTOCOL,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started: self.started,
            cache_format: CACHE_FORMAT,
        }
    }
}

/// How handovers ended, and what we are.
#[derive(Debug, Default)]
pub struct Handovers {
    taken: Counter,
    given: Counter,
    refused: Counter,
    failed: Counter,
    resumed: Counter,
    giving: AtomicBool,
    standing_by: AtomicBool,
    superseded: AtomicBool,
}

impl Handovers {
    /// By the metric's label.
    pub fn counts(&self) -> Vec<(&'static str, u64)> {
        let counters = [
            ("taken", &self.taken),
            ("given", &self.given),
            ("refused", &self.refused),
            ("failed", &self.failed),
            ("resumed", &self.resumed),
        ];
        counters.into_iter().map(|(label, counter)| (label, counter.get())).collect()
    }

    /// Whether sockets are on their way to a newer process. Nobody reads them then, and that ends in its own time.
    pub fn is_giving(&self) -> bool {
        self.giving.load(Relaxed)
    }

    /// Whether a newer process serves.
    pub fn is_standing_by(&self) -> bool {
        self.standing_by.load(Relaxed)
    }

    /// Whether a process has come after the newer one, so that this one would never serve again.
    pub fn is_superseded(&self) -> bool {
        self.superseded.load(Relaxed)
    }
}

/// Why a newcomer cannot serve.
#[derive(Debug)]
pub enum HandoverError {
    /// Somebody has an address and does not hand it over.
    InUse {
        /// The address.
        address: SocketAddr,
        /// What kept it from being handed over, if anybody said.
        reason: Option<String>,
    },
    /// The other process failed us again and again.
    Failed(LinkError),
    /// The rendezvous cannot be reached or made.
    Rendezvous(std::io::Error),
    /// The other process has taken back what it gave: we were too slow.
    Withdrawn,
}

/// Time since the machine started, sleep included; all processes agree on it.
fn since_boot() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::try_from(time).unwrap_or_default()
}

impl std::fmt::Display for HandoverError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::InUse { address, reason: Some(reason) } => write!(
                f,
                "another resolver serves {address} and does not hand it over: {reason}. It serves on; stop it first, \
                 then start this one"
            ),
            Self::InUse { address, reason: None } => write!(
                f,
                "{address} is served by another process, which does not hand over. It serves on; `ss -lnup sport = \
                 :{}` names it",
                address.port()
            ),
            Self::Failed(cause) => {
                write!(
                    f,
                    "the handover failed: {cause}. The other process serves on, if it is there; start again"
                )
            }
            Self::Rendezvous(cause) => write!(
                f,
                "cannot meet the resolver that serves, if there is one: {cause}. `--handover=` starts without that"
            ),
            Self::Withdrawn => {
                f.write_str("the resolver before this one serves again: this one did not take over in time")
            }
        }
    }
}

impl std::error::Error for HandoverError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Failed(cause) => Some(cause),
            Self::Rendezvous(cause) => Some(cause),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(flag: Option<&str>, local: &[&str]) -> Option<String> {
        let local: Vec<IpAddr> = local.iter().map(|address| address.parse().unwrap()).collect();
        Identity::new(flag, &local, 53).rendezvous
    }

    #[test]
    fn the_rendezvous_is_the_first_local_address_unless_a_flag_says_otherwise() {
        let local = ["169.254.20.10", "10.96.0.10"];
        assert_eq!(name(None, &local).unwrap(), "nodestub/handover/169.254.20.10:53");
        assert_eq!(name(Some("blue"), &local).unwrap(), "nodestub/handover/blue");
        assert_eq!(name(Some(""), &local), None);
        assert_eq!(name(None, &[]), None);
    }

    #[test]
    fn a_later_start_is_newer() {
        let first = Identity::new(None, &[], 53);
        assert!(Identity::new(None, &[], 53).started > first.started);
    }
}
