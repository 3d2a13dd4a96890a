//! What one client may have under way, and all of them together.
//!
//! A client is an address: on a node, a pod. Its cached answers are never limited; what costs something that others
//! want too is: TCP connections, and queries that wait for an upstream. One pod that asks for names that nobody knows,
//! or opens connections and says nothing, then takes from itself, not from its neighbours.
//!
//! [`Pressure`] says how full the table of connections is. The fuller, the less patience there is with silent ones:
//! they make room by themselves before anybody has to be turned away.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use crate::metrics::Counter;

/// TCP connections of all clients together. A further one is closed at once, and counted.
pub(super) const MAX_CONNECTIONS: usize = 1024;

/// TCP connections of one client. A stub resolver opens one or two.
const MAX_CONNECTIONS_PER_CLIENT: usize = 64;

/// Queries of one client that wait for an upstream. A further one is refused, and counted. Far beyond what a pod asks
/// at once, and a quarter of what all may have.
const MAX_MISSES_PER_CLIENT: usize = 1000;

/// Parts of the table, each with its lock.
const SHARDS: usize = 16;

/// Who has what under way. An entry lives as long as something is, so the bounds on those bound the table.
#[derive(Debug)]
pub struct Clients {
    shards: [Mutex<HashMap<IpAddr, UnderWay>>; SHARDS],
    /// Clients choose their addresses, within limits; not their places here.
    hasher: RandomState,
    connections: AtomicUsize,
    pressure: watch::Sender<Pressure>,
    /// TCP connections closed at once because all places were taken.
    pub rejected_connections: Counter,
    /// TCP connections closed at once because their client had too many.
    pub greedy_connections: Counter,
    /// Queries refused because too many of their client were waiting.
    pub refused_misses: Counter,
    /// TCP connections closed because their client was silent for too long, or did not read.
    pub timed_out: Counter,
}

#[derive(Debug, Default)]
struct UnderWay {
    connections: usize,
    misses: usize,
}

/// How full the table of connections is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Pressure {
    /// Less than half.
    None,
    /// At least half.
    Some,
    /// At least three quarters.
    Much,
    /// At least seven eighths.
    Most,
}

/// A place among the connections; given back when it is dropped.
#[derive(Debug)]
pub struct ConnectionPlace(Held);

/// A place among the misses of one client; given back when it is dropped.
#[derive(Debug)]
pub(super) struct MissPlace {
    _held: Held,
}

#[derive(Debug)]
struct Held {
    clients: Arc<Clients>,
    client: IpAddr,
    what: What,
}

#[derive(Debug, Clone, Copy)]
enum What {
    Connection,
    Miss,
}

impl Clients {
    /// Nobody there.
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            shards: Default::default(),
            hasher: RandomState::new(),
            connections: AtomicUsize::new(0),
            pressure: watch::Sender::new(Pressure::None),
            rejected_connections: Counter::default(),
            greedy_connections: Counter::default(),
            refused_misses: Counter::default(),
            timed_out: Counter::default(),
        })
    }

    /// A place for a connection; `None`: it is to be closed. Counted.
    pub(super) fn connect(self: &Arc<Self>, client: IpAddr) -> Option<ConnectionPlace> {
        if self.connections.load(Relaxed) >= MAX_CONNECTIONS {
            self.rejected_connections.add(1);
            return None;
        }
        let Some(held) = self.hold(client, What::Connection) else {
            self.greedy_connections.add(1);
            return None;
        };
        self.note(self.connections.fetch_add(1, Relaxed) + 1);
        Some(ConnectionPlace(held))
    }

    /// A place for a query that waits for an upstream; `None`: it is to be refused. Counted.
    pub(super) fn miss(self: &Arc<Self>, client: IpAddr) -> Option<MissPlace> {
        let held = self.hold(client, What::Miss);
        if held.is_none() {
            self.refused_misses.add(1);
        }
        Some(MissPlace { _held: held? })
    }

    /// Connections, now.
    pub fn connections(&self) -> usize {
        self.connections.load(Relaxed)
    }

    /// Follows the pressure.
    pub(super) fn pressure(&self) -> watch::Receiver<Pressure> {
        self.pressure.subscribe()
    }

    fn hold(self: &Arc<Self>, client: IpAddr, what: What) -> Option<Held> {
        let client = client.to_canonical();
        let mut shard = self.shard(client);
        let place = shard.entry(client).or_default().place(what);
        if *place >= what.most() {
            return None;
        }
        *place += 1;
        drop(shard);
        Some(Held { clients: Arc::clone(self), client, what })
    }

    fn note(&self, connections: usize) {
        self.pressure.send_if_modified(|pressure| {
            let now = pressure.follow(connections);
            std::mem::replace(pressure, now) != now
        });
    }

    fn shard(&self, client: IpAddr) -> MutexGuard<'_, HashMap<IpAddr, UnderWay>> {
        #[expect(clippy::cast_possible_truncation, reason = "any bits will do")]
        let index = self.hasher.hash_one(client) as usize % SHARDS;
        #[expect(clippy::indexing_slicing, reason = "a remainder of SHARDS")]
        self.shards[index].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl UnderWay {
    fn place(&mut self, what: What) -> &mut usize {
        match what {
            What::Connection => &mut self.connections,
            What::Miss => &mut self.misses,
        }
    }
}

impl What {
    fn most(self) -> usize {
        match self {
            Self::Connection => MAX_CONNECTIONS_PER_CLIENT,
            Self::Miss => MAX_MISSES_PER_CLIENT,
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut shard = self.clients.shard(self.client);
        let Some(under_way) = shard.get_mut(&self.client) else { return };
        let place = under_way.place(self.what);
        *place = place.saturating_sub(1);
        if under_way.connections == 0 && under_way.misses == 0 {
            shard.remove(&self.client);
            // After a flood of clients its memory goes as well.
            if shard.capacity() > 64 && shard.len() * 8 < shard.capacity() {
                shard.shrink_to(16);
            }
        }
    }
}

impl Drop for ConnectionPlace {
    fn drop(&mut self) {
        let clients = &self.0.clients;
        clients.note(clients.connections.fetch_sub(1, Relaxed).saturating_sub(1));
    }
}

impl Pressure {
    const ALL: [(Self, usize); 4] = [
        (Self::None, 0),
        (Self::Some, MAX_CONNECTIONS / 2),
        (Self::Much, MAX_CONNECTIONS / 4 * 3),
        (Self::Most, MAX_CONNECTIONS / 8 * 7),
    ];

    /// The pressure with so many connections, coming from this one. It rises at its threshold and falls an eighth
    /// below: every change wakes all connections, and one that comes and goes must not do that.
    fn follow(self, connections: usize) -> Self {
        let reached = |slack: usize| {
            let levels =
                Self::ALL.iter().filter(|(_, threshold)| connections >= threshold.saturating_sub(slack));
            levels.map(|(level, _)| *level).max().unwrap_or(Self::None)
        };
        let (up, down) = (reached(0), reached(MAX_CONNECTIONS / 8));
        if up > self { up } else { self.min(down) }
    }

    /// How long a silent connection is kept that would be kept for `usual` without pressure.
    pub(super) fn patience(self, usual: Duration) -> Duration {
        match self {
            Self::None => usual,
            Self::Some => usual / 4,
            Self::Much => usual / 10,
            Self::Most => usual / 40,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u16) -> IpAddr {
        IpAddr::from([10, 0, last.to_be_bytes()[0], last.to_be_bytes()[1]])
    }

    #[test]
    fn one_client_cannot_take_what_another_one_needs() {
        let clients = Clients::new();
        let greedy: Vec<_> =
            (0..2 * MAX_MISSES_PER_CLIENT).filter_map(|_| clients.miss(address(1))).collect();
        assert_eq!(greedy.len(), MAX_MISSES_PER_CLIENT);
        assert_eq!(clients.refused_misses.get(), MAX_MISSES_PER_CLIENT as u64);
        assert!(clients.miss(address(2)).is_some());
        let many: Vec<_> = (0..100).filter_map(|_| clients.connect(address(1))).collect();
        assert_eq!(many.len(), MAX_CONNECTIONS_PER_CLIENT);
        assert_eq!(clients.greedy_connections.get(), 36);
        assert!(clients.connect(address(2)).is_some());
        drop((greedy, many));
        assert!(clients.miss(address(1)).is_some() && clients.connect(address(1)).is_some());
    }

    #[test]
    fn nothing_is_remembered_of_clients_that_have_gone() {
        let clients = Clients::new();
        let held: Vec<_> = (0..3000).filter_map(|client| clients.miss(address(client))).collect();
        assert_eq!(held.len(), 3000);
        drop(held);
        for shard in &clients.shards {
            let shard = shard.lock().unwrap();
            assert_eq!(shard.len(), 0);
            assert!(shard.capacity() < 100, "{}", shard.capacity());
        }
    }

    #[test]
    fn all_clients_together_have_a_bound_and_patience_goes_before_it() {
        let clients = Clients::new();
        let pressure = clients.pressure();
        let mut held = Vec::new();
        let mut seen = vec![];
        for client in 0..2000 {
            held.extend(clients.connect(address(client)));
            if seen.last() != Some(&*pressure.borrow()) {
                seen.push(*pressure.borrow());
            }
        }
        assert_eq!(held.len(), MAX_CONNECTIONS);
        assert_eq!(clients.rejected_connections.get(), 2000 - MAX_CONNECTIONS as u64);
        assert_eq!(seen, [Pressure::None, Pressure::Some, Pressure::Much, Pressure::Most]);
        let usual = Duration::from_secs(10);
        let patience: Vec<_> = seen.iter().map(|pressure| pressure.patience(usual)).collect();
        assert!(patience.is_sorted_by(|before, after| before > after), "{patience:?}");
        assert_eq!(patience[0], usual);
        drop(held);
        assert_eq!((*pressure.borrow(), clients.connections()), (Pressure::None, 0));
    }

    #[test]
    fn a_connection_that_comes_and_goes_does_not_move_the_pressure() {
        let half = MAX_CONNECTIONS / 2;
        let risen = Pressure::None.follow(half);
        assert_eq!(risen, Pressure::Some);
        assert_eq!(risen.follow(half - 1), Pressure::Some);
        assert_eq!(risen.follow(half - MAX_CONNECTIONS / 8 - 1), Pressure::None);
        assert_eq!(Pressure::None.follow(half - 1), Pressure::None);
    }
}
