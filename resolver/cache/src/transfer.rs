//! Kept answers on their way to another process's cache.
//!
//! [`Cache::export`] walks the slots a few at a time, so that no shard is held for longer than some copies take, and
//! clients go on being answered meanwhile. An entry that is kept while the walk is under way may be missed; who needs
//! it too walks once more with `since` set to when the first walk began.
//!
//! What travels is an age, never a moment: two processes have no common start of their clocks.

use nodestub_wire::{Answer, OwnedAnswer};

use crate::{Cache, Key, Kind, Millis, NewEntry, SHARDS, lock};

/// Slots that are looked at under one hold of a shard's lock.
const STEP: u32 = 32;

/// How far a walk has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Place {
    shard: usize,
    slot: u32,
}

/// A kept answer, borrowed while its shard is locked.
#[derive(Debug, Clone, Copy)]
pub struct Kept<'a> {
    /// What it answers.
    pub key: Key<'a>,
    /// The answer, its TTLs not lowered.
    pub answer: Answer<'a>,
    /// Its life when it was kept, in seconds.
    pub ttl: u32,
    /// How long it has been kept, in milliseconds; less than its life.
    pub age: u64,
    /// Its class.
    pub kind: Kind,
    /// How the shard rates it: 0 for what was never asked again, more for what deserves to stay.
    pub rating: u8,
}

impl Cache {
    /// Shows the living entries of the next few slots from `place` on that were kept at `since` or later, and returns
    /// where to go on; `None` at the end. `visit` should only copy: it runs under a lock.
    pub fn export(
        &self,
        place: Place,
        since: Millis,
        now: Millis,
        visit: impl FnMut(Kept<'_>),
    ) -> Option<Place> {
        let shard = self.shards.get(place.shard)?;
        let more = lock(shard).export(place.slot..place.slot.saturating_add(STEP), since, now, visit);
        let next = if more {
            Place { shard: place.shard, slot: place.slot.saturating_add(STEP) }
        } else {
            Place { shard: place.shard + 1, slot: 0 }
        };
        (next.shard < SHARDS).then_some(next)
    }

    /// Keeps an answer that another process has kept for `age` milliseconds. What has no life left, and what is not
    /// an answer in itself, is left out; returns whether it was taken.
    pub fn import(&self, key: &Key<'_>, entry: &NewEntry<'_>, age: u64, rating: u8, now: Millis) -> bool {
        let lived_out = age / 1000 >= u64::from(entry.ttl);
        if lived_out || key.name.len() > nodestub_wire::MAX_NAME || !is_whole(entry.answer) {
            return false;
        }
        let hash = self.hash(key);
        let kept_at = Millis(now.0.saturating_sub(age));
        let mut shard = lock(self.shard(hash));
        shard.insert(hash, key, entry, kept_at);
        shard.rate(hash, key, rating);
        true
    }
}

/// Whether every TTL lies within the records, and there is one for each record.
fn is_whole(answer: &OwnedAnswer) -> bool {
    let count: usize = answer.counts.iter().map(|count| usize::from(*count)).sum();
    let (offsets, rest) = answer.ttl_offsets.as_chunks::<2>();
    let within = |offset: &[u8; 2]| usize::from(u16::from_le_bytes(*offset)) + 4 <= answer.records.len();
    rest.is_empty() && offsets.len() == count && offsets.iter().all(within)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nodestub_wire::Rcode;
    use std::collections::HashMap;

    const NOW: Millis = Millis(1 << 43);

    fn key(name: &[u8]) -> Key<'_> {
        Key { name, qtype: 1, qclass: 1, dnssec_ok: true, checking_disabled: false, block: 7 }
    }

    fn name(number: u32) -> Vec<u8> {
        [&[4], number.to_be_bytes().as_slice(), &[0]].concat()
    }

    fn answer(ttl: u8) -> OwnedAnswer {
        // Owner (root), type, class, TTL at 5, no data.
        let records = [0, 0, 1, 0, 1, 0, 0, 0, ttl, 0, 0];
        OwnedAnswer {
            counts: [1, 0, 0],
            ttl_offsets: [5, 0].into(),
            records: records.into(),
            ..OwnedAnswer::empty(Rcode::NOERROR)
        }
    }

    fn keep(cache: &Cache, number: u32, ttl: u32, now: Millis) {
        let answer = answer(60);
        let entry = NewEntry { answer: &answer, ttl, kind: Kind::Success, capacity: 100_000 };
        cache.insert(&key(&name(number)), &entry, now);
    }

    fn left(cache: &Cache, number: u32, now: Millis) -> Option<u32> {
        cache.get(&key(&name(number)), now, |hit| hit.ttl_left)
    }

    /// Moves everything, as a handover does; the other process's clock reads `there`.
    fn transfer(from: &Cache, to: &Cache, since: Millis, now: Millis, there: Millis) -> usize {
        let mut moved = 0;
        let mut place = Some(Place::default());
        while let Some(at) = place {
            place = from.export(at, since, now, |kept| {
                let owned = OwnedAnswer {
                    flags: kept.answer.flags,
                    rcode: kept.answer.rcode,
                    counts: kept.answer.counts,
                    ttl_offsets: kept.answer.ttl_offsets.into(),
                    records: kept.answer.records.into(),
                };
                let entry = NewEntry { answer: &owned, ttl: kept.ttl, kind: kept.kind, capacity: 100_000 };
                moved += usize::from(to.import(&kept.key, &entry, kept.age, kept.rating, there));
            });
        }
        moved
    }

    #[test]
    fn every_living_answer_arrives_with_the_life_that_it_has_left() {
        let (from, to) = (Cache::new(32 << 20), Cache::new(32 << 20));
        let mut ttls = HashMap::new();
        for number in 0..5000 {
            let ttl = 1 + number % 90;
            keep(&from, number, ttl, NOW);
            ttls.insert(number, ttl);
        }
        let later = Millis(NOW.0 + 30_500);
        let there = Millis(NOW.0 / 2);
        let alive = ttls.values().filter(|ttl| **ttl > 30).count();
        assert_eq!(transfer(&from, &to, Millis(0), later, there), alive);
        for (number, ttl) in ttls {
            assert_eq!(left(&to, number, there), left(&from, number, later), "of {ttl} s");
        }
        assert_eq!(to.stats().entries, alive);
    }

    #[test]
    fn a_second_walk_brings_only_what_was_kept_since() {
        let (from, to) = (Cache::new(1 << 20), Cache::new(1 << 20));
        keep(&from, 1, 60, NOW);
        let since = Millis(NOW.0 + 10);
        keep(&from, 2, 60, since);
        assert_eq!(transfer(&from, &to, since, Millis(NOW.0 + 20), NOW), 1);
        assert_eq!((left(&to, 1, NOW), left(&to, 2, NOW)), (None, Some(60)));
    }

    #[test]
    fn what_was_asked_again_still_outlives_a_flood_after_the_move() {
        let (from, to) = (Cache::new(64 * 20_000), Cache::new(64 * 20_000));
        for number in 0..1000 {
            keep(&from, number, 600, NOW);
            assert!(left(&from, number, NOW).is_some() && left(&from, number, NOW).is_some());
        }
        assert_eq!(transfer(&from, &to, Millis(0), NOW, NOW), 1000);
        for number in 10_000..60_000 {
            keep(&to, number, 600, NOW);
        }
        assert!(to.stats().evictions > 0);
        assert_eq!((0..1000).filter(|number| left(&to, *number, NOW).is_some()).count(), 1000);
    }

    #[test]
    fn takes_no_answer_whose_parts_do_not_fit_together() {
        let cache = Cache::new(1 << 20);
        let good = answer(60);
        let broken = [
            OwnedAnswer { ttl_offsets: [8, 0].into(), ..good.clone() },
            OwnedAnswer { ttl_offsets: [5].into(), ..good.clone() },
            OwnedAnswer { counts: [2, 0, 0], ..good.clone() },
        ];
        let name = name(1);
        let new = |answer| NewEntry { answer, ttl: 60, kind: Kind::Success, capacity: 10 };
        for answer in &broken {
            assert!(!cache.import(&key(&name), &new(answer), 0, 0, NOW));
        }
        assert!(!cache.import(&key(&[1; 300]), &new(&good), 0, 0, NOW));
        assert!(!cache.import(&key(&name), &new(&good), 60_000, 0, NOW));
        assert_eq!(cache.stats().entries, 0);
        assert!(cache.import(&key(&name), &new(&good), 59_999, 0, NOW));
        assert_eq!(left(&cache, 1, NOW), Some(1));
    }
}
