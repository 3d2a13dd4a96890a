//! Answers kept as packets. No sockets, no clock: "now" is an argument.
//!
//! - [`judge()`]: whether a response is kept, as what, and for how long. Pure.
//! - [`Cache`]: where it is kept: one level of shards, each behind a plain mutex that is held for a copy only.
//! - [`Popularity`]: which answers are worth refreshing before they end. Pure.
//! - `transfer`: on the way to another process's cache, with the age that they have.
//! - `shard`: one shard: an index over a slab, and S3-FIFO weighed in bytes to choose what goes.
//!
//! The key is the lower-cased name, type, class, DO, CD and the server block that answers, compared in full: an
//! answer is never given to a client of another block, and two names that collide in the hash do not meet.
#![forbid(unsafe_code)]

mod judge;
mod popular;
mod shard;
mod transfer;

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

use nodestub_wire::{Answer, OwnedAnswer};

pub use judge::{Bounds, Judgement, Limits, judge};
pub use popular::Popularity;
pub use transfer::{Kept, Place};

use shard::Shard;

/// Number of shards. With one thread per CPU on the fast side and a copy of some 100 ns under the lock, 64 make a
/// wait rare on any node; a power of two, so that the hash's low bits choose.
pub const SHARDS: usize = 64;

/// Default bound of all entries of all zones together, in bytes: some 100,000 names.
pub const DEFAULT_BYTES: usize = 32 << 20;

/// A moment on a clock that never goes back, in milliseconds since some start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Millis(pub u64);

/// What is asked, by whose client.
#[derive(Debug, Clone, Copy)]
pub struct Key<'a> {
    /// Lower-cased, uncompressed wire form.
    pub name: &'a [u8],
    /// QTYPE.
    pub qtype: u16,
    /// QCLASS.
    pub qclass: u16,
    /// DO of the query's OPT.
    pub dnssec_ok: bool,
    /// CD of the query's header.
    pub checking_disabled: bool,
    /// The server block that answers. Blocks that would answer differently have different numbers.
    pub block: u64,
}

/// The two classes that CoreDNS counts and bounds apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// An answer with data.
    Success,
    /// NXDOMAIN, NODATA, and failures.
    Denial,
}

/// A kept answer, borrowed while the shard is locked.
#[derive(Debug)]
pub struct Hit<'a> {
    /// The answer, its TTLs not lowered yet.
    pub answer: Answer<'a>,
    /// What is left of its life, in whole seconds as CoreDNS counts them; at least 1, but for
    /// what [`Cache::get_stale`] finds.
    pub ttl_left: u32,
    /// Its life when it was kept, in seconds.
    pub ttl: u32,
    /// Its class.
    pub kind: Kind,
    /// It is asked often and ends soon, and nobody refreshes it yet ([`Popularity`]).
    pub refresh: bool,
}

/// What the fast side finds.
#[derive(Debug)]
pub enum Probe<R> {
    /// The answer was there.
    Hit(R),
    /// It was not, or it had expired.
    Miss,
    /// Somebody else holds the shard. The slow side may wait; the fast side does not.
    Busy,
}

/// An answer to keep.
#[derive(Debug)]
pub struct NewEntry<'a> {
    /// The answer.
    pub answer: &'a OwnedAnswer,
    /// Seconds; 0 keeps nothing.
    pub ttl: u32,
    /// Its class.
    pub kind: Kind,
    /// Most entries of this class that its block may have.
    pub capacity: usize,
}

/// All kept answers of all zones.
#[derive(Debug)]
pub struct Cache {
    shards: Box<[Mutex<Shard>]>,
    hasher: RandomState,
}

/// Sums over all shards.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Bytes that all entries weigh.
    pub bytes: usize,
    /// Entries of all blocks.
    pub entries: usize,
    /// Entries that had to go for others, ever.
    pub evictions: u64,
    /// Answers that were not kept because their block's capacity was full, ever.
    pub refused: u64,
}

impl Cache {
    /// An empty cache of at most `bytes` bytes.
    pub fn new(bytes: usize) -> Self {
        let each = bytes / SHARDS;
        Self {
            shards: (0..SHARDS).map(|_| Mutex::new(Shard::new(each))).collect(),
            // SipHash-1-3 under a key of this process: names come from clients, who must not be able to choose
            // where they land.
            hasher: RandomState::new(),
        }
    }

    /// Looks a key up without waiting and hands what is found to `use_hit`, which should only copy. A popularity counts the
    /// hit; where the answer should be refreshed the hit says so and is not counted: the slow side is asked then, which
    /// counts it and takes the refresh upon itself.
    pub fn probe<R>(
        &self,
        key: &Key<'_>,
        now: Millis,
        popularity: Option<&Popularity>,
        use_hit: impl FnOnce(Hit<'_>) -> R,
    ) -> Probe<R> {
        let hash = self.hash(key);
        let mut shard = match self.shard(hash).try_lock() {
            Ok(shard) => shard,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return Probe::Busy,
        };
        let hit = shard.get_popular(hash, key, now, popularity.map(|popularity| (popularity, false)));
        hit.map_or(Probe::Miss, |hit| Probe::Hit(use_hit(hit)))
    }

    /// As [`Cache::get`], and counts the hit. Whoever is told to refresh the answer is the only one, until it is replaced or
    /// [`Cache::end_refresh`] is called.
    pub fn get_popular<R>(
        &self,
        key: &Key<'_>,
        now: Millis,
        popularity: &Popularity,
        use_hit: impl FnOnce(Hit<'_>) -> R,
    ) -> Option<R> {
        let hash = self.hash(key);
        lock(self.shard(hash)).get_popular(hash, key, now, Some((popularity, true))).map(use_hit)
    }

    /// A refresh has come to its end: if it brought nothing, another one may try.
    pub fn end_refresh(&self, key: &Key<'_>) {
        let hash = self.hash(key);
        lock(self.shard(hash)).end_refresh(hash, key);
    }

    /// Looks a key up, waiting for the shard where necessary.
    pub fn get<R>(&self, key: &Key<'_>, now: Millis, use_hit: impl FnOnce(Hit<'_>) -> R) -> Option<R> {
        let hash = self.hash(key);
        lock(self.shard(hash)).get(hash, key, now).map(use_hit)
    }

    /// Looks for an answer that has expired no longer than `up_to` ago, if it is no failure (RFC 8767), waiting for the
    /// shard where necessary. Its `ttl_left` is 0. An answer that still lives is not found here.
    pub fn get_stale<R>(
        &self,
        key: &Key<'_>,
        up_to: Duration,
        now: Millis,
        use_hit: impl FnOnce(Hit<'_>) -> R,
    ) -> Option<R> {
        let hash = self.hash(key);
        let up_to = u64::try_from(up_to.as_millis()).unwrap_or(u64::MAX);
        lock(self.shard(hash)).get_stale(hash, key, up_to, now).map(use_hit)
    }

    /// Keeps an answer, in place of the one that was there under the same key.
    pub fn insert(&self, key: &Key<'_>, entry: &NewEntry<'_>, now: Millis) {
        let hash = self.hash(key);
        lock(self.shard(hash)).insert(hash, key, entry, now);
    }

    /// Sums over all shards, each locked in turn.
    pub fn stats(&self) -> Stats {
        self.shards.iter().fold(Stats::default(), |sum, shard| {
            let one = lock(shard).stats();
            Stats {
                bytes: sum.bytes + one.bytes,
                entries: sum.entries + one.entries,
                evictions: sum.evictions + one.evictions,
                refused: sum.refused + one.refused,
            }
        })
    }

    /// How many entries a block has of a class, and how many of those were evicted, ever.
    pub fn block_stats(&self, block: u64, kind: Kind) -> (usize, u64) {
        self.shards.iter().fold((0, 0), |(entries, evictions), shard| {
            let (more_entries, more_evictions) = lock(shard).block_stats(block, kind);
            (entries + more_entries, evictions + more_evictions)
        })
    }

    fn hash(&self, key: &Key<'_>) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        hasher.write(key.name);
        hasher.write_u64(key.block);
        let bits = u64::from(key.dnssec_ok) << 1 | u64::from(key.checking_disabled);
        hasher.write_u64(u64::from(key.qtype) << 32 | u64::from(key.qclass) << 16 | bits);
        hasher.finish()
    }

    fn shard(&self, hash: u64) -> &Mutex<Shard> {
        // The low bits choose the shard; the index inside uses the high ones.
        #[expect(clippy::cast_possible_truncation, reason = "only the low bits are wanted")]
        let index = hash as usize % SHARDS;
        #[expect(clippy::indexing_slicing, reason = "there are SHARDS of them")]
        &self.shards[index]
    }
}

/// A shard is whole between two statements that can panic, so one that was poisoned is as good as before.
fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}
