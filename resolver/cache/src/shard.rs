//! One shard: an index over a slab of entries, and the choice of what goes when there is no room.
//!
//! Eviction is S3-FIFO (Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023), weighed in bytes:
//!
//! ```text
//!   new ──────────────► small (a tenth) ── asked again? ──► main ── asked since? ──► back to main's end
//!   new, but known ───────────────────────────────────────►  ▲         no ─► gone
//!     to the ghost                 └─ never ─► gone; its hash is left in the ghost
//! ```
//!
//! A flood of unique names passes through `small` alone and does not flush what is asked again. What has expired goes
//! first, whenever its turn comes.
//!
//! Invariants:
//! 1. Every slot is either free (in `free`) or in exactly one of the queues, and then exactly once in the index.
//! 2. `bytes` is the sum of the weights of all used slots, `small_bytes` of those in `small`; after an insert,
//!    `bytes` is at most `max_bytes`.
//! 3. The count of each (block, kind) equals the number of its entries.

use std::collections::VecDeque;
use std::mem::size_of;
use std::ops::Range;

use hashbrown::HashTable;
use nodestub_wire::{Answer, Flags, Rcode};

use crate::popular::{Asked, Popularity};
use crate::{Hit, Kept, Key, Kind, Millis, NewEntry, SHARDS, Stats};

/// How often an entry must be asked to survive a second round; higher counts are not told apart.
const MAX_FREQUENCY: u8 = 3;

/// How far into a queue a victim of one block is searched when that block's capacity is full.
const CAPACITY_SEARCH: usize = 256;

/// Places in the ghost: hashes of what left `small` without being asked again. Allocated at the first eviction.
const GHOSTS: usize = 2048;

/// What an entry costs besides its bytes: its slot, its place in the index and a queue, and the allocator's overhead.
const OVERHEAD: usize = size_of::<Entry>() + 5 + 4 + 16;

#[derive(Debug)]
pub(crate) struct Shard {
    index: HashTable<u32>,
    slots: Vec<Entry>,
    free: Vec<u32>,
    small: VecDeque<u32>,
    main: VecDeque<u32>,
    ghost: Vec<u32>,
    bytes: usize,
    small_bytes: usize,
    max_bytes: usize,
    blocks: Vec<BlockCount>,
    evictions: u64,
    refused: u64,
}

#[derive(Debug, Default)]
struct Entry {
    /// Name, then TTL offsets, then records.
    bytes: Box<[u8]>,
    hash: u64,
    block: u64,
    stored: u64,
    ttl: u32,
    qtype: u16,
    qclass: u16,
    flags: u16,
    rcode: u16,
    counts: [u16; 3],
    offsets_len: u16,
    name_len: u8,
    dnssec_ok: bool,
    checking_disabled: bool,
    denial: bool,
    in_small: bool,
    frequency: u8,
    asked: Asked,
}

#[derive(Debug)]
struct BlockCount {
    block: u64,
    kind: Kind,
    entries: usize,
    evictions: u64,
}

impl Shard {
    pub(crate) fn new(max_bytes: usize) -> Self {
        Self {
            index: HashTable::new(),
            slots: Vec::new(),
            free: Vec::new(),
            small: VecDeque::new(),
            main: VecDeque::new(),
            ghost: Vec::new(),
            bytes: 0,
            small_bytes: 0,
            max_bytes,
            blocks: Vec::new(),
            evictions: 0,
            refused: 0,
        }
    }

    pub(crate) fn get(&mut self, hash: u64, key: &Key<'_>, now: Millis) -> Option<Hit<'_>> {
        self.get_popular(hash, key, now, None)
    }

    /// The same, and counts it where a popularity is given: with `true`, for somebody who does the refresh if it is due.
    pub(crate) fn get_popular(
        &mut self,
        hash: u64,
        key: &Key<'_>,
        now: Millis,
        popularity: Option<(&Popularity, bool)>,
    ) -> Option<Hit<'_>> {
        let slot = self.find(hash, key)?;
        let entry = self.slots.get_mut(slot as usize)?;
        let ttl_left = entry.ttl_left(now);
        if ttl_left == 0 {
            return None;
        }
        entry.frequency = (entry.frequency + 1).min(MAX_FREQUENCY);
        let refresh = popularity.is_some_and(|(popularity, claim)| {
            let age = now.0.saturating_sub(entry.stored);
            entry.asked.hit(popularity, age, ttl_left, entry.ttl, claim)
        });
        Some(Hit { ttl_left, ttl: entry.ttl, kind: entry.kind(), refresh, answer: entry.answer() })
    }

    pub(crate) fn end_refresh(&mut self, hash: u64, key: &Key<'_>) {
        let Some(slot) = self.find(hash, key) else { return };
        if let Some(entry) = self.slots.get_mut(slot as usize) {
            entry.asked.end_refresh();
        }
    }

    /// What has expired no longer than `up_to` milliseconds ago, if it is no failure.
    pub(crate) fn get_stale(&mut self, hash: u64, key: &Key<'_>, up_to: u64, now: Millis) -> Option<Hit<'_>> {
        let slot = self.find(hash, key)?;
        let entry = self.slots.get_mut(slot as usize)?;
        let end = entry.stored.saturating_add(u64::from(entry.ttl) * 1000);
        if entry.ttl_left(now) > 0 || now.0 >= end.saturating_add(up_to) || entry.is_failure() {
            return None;
        }
        entry.frequency = (entry.frequency + 1).min(MAX_FREQUENCY);
        Some(Hit { ttl_left: 0, ttl: entry.ttl, kind: entry.kind(), refresh: false, answer: entry.answer() })
    }

    pub(crate) fn insert(&mut self, hash: u64, key: &Key<'_>, new: &NewEntry<'_>, now: Millis) {
        let Some(entry) = Entry::new(hash, key, new, now) else { return };
        let weight = entry.weight();
        if new.ttl == 0 || weight > self.max_bytes / 2 {
            return;
        }
        if let Some(slot) = self.find(hash, key) {
            self.replace(slot, entry);
        } else if self.make_room_in_block(key.block, new) {
            self.add(entry);
        } else {
            self.refused += 1;
        }
        while self.bytes > self.max_bytes && self.evict(now) {}
    }

    pub(crate) fn stats(&self) -> Stats {
        Stats {
            bytes: self.bytes,
            entries: self.index.len(),
            evictions: self.evictions,
            refused: self.refused,
        }
    }

    pub(crate) fn block_stats(&self, block: u64, kind: Kind) -> (usize, u64) {
        let count = self.blocks.iter().find(|count| (count.block, count.kind) == (block, kind));
        count.map_or((0, 0), |count| (count.entries, count.evictions))
    }

    /// Shows the living entries of these slots that were kept at `since` or later; false at the end of the slots.
    pub(crate) fn export(
        &self,
        slots: Range<u32>,
        since: Millis,
        now: Millis,
        mut visit: impl FnMut(Kept<'_>),
    ) -> bool {
        for slot in slots {
            let Some(entry) = self.slots.get(slot as usize) else { return false };
            if entry.stored >= since.0 && entry.ttl_left(now) > 0 {
                visit(Kept {
                    key: entry.key(),
                    answer: entry.answer(),
                    ttl: entry.ttl,
                    age: now.0.saturating_sub(entry.stored),
                    kind: entry.kind(),
                    // In `main` already: worth the way there, whatever it was asked since.
                    rating: if entry.in_small { entry.frequency } else { MAX_FREQUENCY },
                });
            }
        }
        true
    }

    /// Gives an entry the rating that it had in another shard.
    pub(crate) fn rate(&mut self, hash: u64, key: &Key<'_>, rating: u8) {
        let Some(slot) = self.find(hash, key) else { return };
        if let Some(entry) = self.slots.get_mut(slot as usize) {
            entry.frequency = rating.min(MAX_FREQUENCY);
        }
    }

    fn find(&self, hash: u64, key: &Key<'_>) -> Option<u32> {
        let slots = &self.slots;
        let same = |&slot: &u32| slots.get(slot as usize).is_some_and(|entry| entry.is_for(hash, key));
        self.index.find(hash, same).copied()
    }

    fn add(&mut self, mut entry: Entry) {
        let (hash, weight) = (entry.hash, entry.weight());
        entry.in_small = !self.take_ghost(hash);
        let in_small = entry.in_small;
        self.count(entry.block, entry.kind()).entries += 1;
        let slot = if let Some(slot) = self.free.pop() {
            if let Some(place) = self.slots.get_mut(slot as usize) {
                *place = entry;
            }
            slot
        } else {
            let Ok(slot) = u32::try_from(self.slots.len()) else { return };
            self.slots.push(entry);
            slot
        };
        self.bytes += weight;
        if in_small {
            self.small_bytes += weight;
            self.small.push_back(slot);
        } else {
            self.main.push_back(slot);
        }
        let slots = &self.slots;
        self.index.insert_unique(hash, slot, |&slot| slots.get(slot as usize).map_or(0, |entry| entry.hash));
    }

    /// Gives a slot new contents under the same key; its place in the queues stays.
    fn replace(&mut self, slot: u32, mut entry: Entry) {
        let new_kind = (entry.block, entry.kind());
        let new_weight = entry.weight();
        let Some(place) = self.slots.get_mut(slot as usize) else { return };
        let (old_kind, old_weight, in_small) = ((place.block, place.kind()), place.weight(), place.in_small);
        entry.in_small = in_small;
        entry.frequency = place.frequency;
        entry.asked = place.asked.handed_on();
        *place = entry;
        self.bytes = self.bytes + new_weight - old_weight;
        if in_small {
            self.small_bytes = self.small_bytes + new_weight - old_weight;
        }
        self.count(old_kind.0, old_kind.1).entries -= 1;
        self.count(new_kind.0, new_kind.1).entries += 1;
    }

    /// Whether another entry of this class may be added for its block, after one of the same class had to go where
    /// the capacity is full. The capacity is shared out evenly over the shards.
    fn make_room_in_block(&mut self, block: u64, new: &NewEntry<'_>) -> bool {
        let most = new.capacity.div_ceil(SHARDS).max(1);
        if self.count(block, new.kind).entries < most {
            return true;
        }
        let slots = &self.slots;
        let same = |slot: &u32| {
            slots.get(*slot as usize).is_some_and(|entry| (entry.block, entry.kind()) == (block, new.kind))
        };
        let in_small = self.small.iter().take(CAPACITY_SEARCH).position(same);
        let victim = match in_small {
            Some(position) => self.small.remove(position),
            None => {
                let in_main = self.main.iter().take(CAPACITY_SEARCH).position(same);
                in_main.and_then(|position| self.main.remove(position))
            }
        };
        let found = victim.is_some();
        if let Some(slot) = victim {
            self.remove(slot);
        }
        found
    }

    /// Makes one step towards less: an entry goes, or moves on. False when there is nothing left.
    fn evict(&mut self, now: Millis) -> bool {
        if self.small_bytes > self.max_bytes / 10 || self.main.is_empty() {
            let Some(slot) = self.small.pop_front() else { return false };
            let Some(entry) = self.slots.get_mut(slot as usize) else { return true };
            if entry.frequency > 1 && entry.ttl_left(now) > 0 {
                entry.frequency = 0;
                entry.in_small = false;
                self.small_bytes -= entry.weight();
                self.main.push_back(slot);
            } else {
                let hash = entry.hash;
                self.remember_ghost(hash);
                self.remove(slot);
            }
            return true;
        }
        let Some(slot) = self.main.pop_front() else { return false };
        let Some(entry) = self.slots.get_mut(slot as usize) else { return true };
        if entry.frequency > 0 && entry.ttl_left(now) > 0 {
            entry.frequency -= 1;
            self.main.push_back(slot);
        } else {
            self.remove(slot);
        }
        true
    }

    /// Frees a slot that has been taken out of its queue.
    fn remove(&mut self, slot: u32) {
        let Some(place) = self.slots.get_mut(slot as usize) else { return };
        let entry = std::mem::take(place);
        self.bytes -= entry.weight();
        if entry.in_small {
            self.small_bytes -= entry.weight();
        }
        if let Ok(found) = self.index.find_entry(entry.hash, |&other| other == slot) {
            found.remove();
        }
        let count = self.count(entry.block, entry.kind());
        count.entries -= 1;
        count.evictions += 1;
        self.free.push(slot);
        self.evictions += 1;
    }

    fn count(&mut self, block: u64, kind: Kind) -> &mut BlockCount {
        let same = |count: &BlockCount| (count.block, count.kind) == (block, kind);
        let position = self.blocks.iter().position(same).unwrap_or_else(|| {
            // Blocks of Corefiles long gone leave nothing behind.
            self.blocks.retain(|count| count.entries > 0);
            self.blocks.push(BlockCount { block, kind, entries: 0, evictions: 0 });
            self.blocks.len() - 1
        });
        #[expect(clippy::indexing_slicing, reason = "found, or pushed a moment ago")]
        &mut self.blocks[position]
    }

    /// The ghost is a table without chains: a newer hash takes the place of an older one, as a queue would in the
    /// long run, at four bytes a name.
    fn remember_ghost(&mut self, hash: u64) {
        if self.ghost.is_empty() {
            self.ghost = vec![0; GHOSTS];
        }
        let (place, mark) = ghost_place(hash);
        if let Some(ghost) = self.ghost.get_mut(place) {
            *ghost = mark;
        }
    }

    fn take_ghost(&mut self, hash: u64) -> bool {
        let (place, mark) = ghost_place(hash);
        match self.ghost.get_mut(place) {
            Some(ghost) if *ghost == mark => {
                *ghost = 0;
                true
            }
            _ => false,
        }
    }
}

/// A place and a mark from two disjoint parts of the hash; a mark is never 0, which means "nothing here".
fn ghost_place(hash: u64) -> (usize, u32) {
    ((hash >> 8) as usize % GHOSTS, (hash >> 32) as u32 | 1)
}

impl Entry {
    /// `None` where a length does not fit its field, which no DNS message can cause.
    fn new(hash: u64, key: &Key<'_>, new: &NewEntry<'_>, now: Millis) -> Option<Self> {
        let answer = new.answer;
        let mut bytes = Vec::with_capacity(key.name.len() + answer.ttl_offsets.len() + answer.records.len());
        bytes.extend_from_slice(key.name);
        bytes.extend_from_slice(&answer.ttl_offsets);
        bytes.extend_from_slice(&answer.records);
        Some(Self {
            bytes: bytes.into(),
            hash,
            block: key.block,
            stored: now.0,
            ttl: new.ttl,
            qtype: key.qtype,
            qclass: key.qclass,
            flags: answer.flags.0,
            rcode: answer.rcode.0,
            counts: answer.counts,
            offsets_len: u16::try_from(answer.ttl_offsets.len()).ok()?,
            name_len: u8::try_from(key.name.len()).ok()?,
            dnssec_ok: key.dnssec_ok,
            checking_disabled: key.checking_disabled,
            denial: new.kind == Kind::Denial,
            in_small: true,
            frequency: 0,
            asked: Asked::default(),
        })
    }

    fn is_for(&self, hash: u64, key: &Key<'_>) -> bool {
        self.hash == hash
            && (self.block, self.qtype, self.qclass) == (key.block, key.qtype, key.qclass)
            && (self.dnssec_ok, self.checking_disabled) == (key.dnssec_ok, key.checking_disabled)
            && self.bytes.get(..usize::from(self.name_len)) == Some(key.name)
    }

    fn key(&self) -> Key<'_> {
        Key {
            name: self.bytes.get(..usize::from(self.name_len)).unwrap_or_default(),
            qtype: self.qtype,
            qclass: self.qclass,
            dnssec_ok: self.dnssec_ok,
            checking_disabled: self.checking_disabled,
            block: self.block,
        }
    }

    fn answer(&self) -> Answer<'_> {
        let (_, rest) = self.bytes.split_at_checked(usize::from(self.name_len)).unwrap_or_default();
        let (ttl_offsets, records) = rest.split_at_checked(usize::from(self.offsets_len)).unwrap_or_default();
        Answer {
            flags: Flags(self.flags),
            rcode: Rcode(self.rcode),
            counts: self.counts,
            ttl_offsets,
            records,
        }
    }

    /// Whole seconds that are left; elapsed time is rounded down, as CoreDNS does.
    fn is_failure(&self) -> bool {
        !matches!(Rcode(self.rcode), Rcode::NOERROR | Rcode::NXDOMAIN)
    }

    fn ttl_left(&self, now: Millis) -> u32 {
        let elapsed = now.0.saturating_sub(self.stored) / 1000;
        self.ttl.saturating_sub(u32::try_from(elapsed).unwrap_or(u32::MAX))
    }

    fn kind(&self) -> Kind {
        if self.denial { Kind::Denial } else { Kind::Success }
    }

    fn weight(&self) -> usize {
        self.bytes.len() + OVERHEAD
    }
}

#[cfg(test)]
impl Shard {
    /// Checks the invariants of the module comment.
    pub(crate) fn assert_whole(&self) {
        use std::collections::HashSet;
        let queued: Vec<u32> = self.small.iter().chain(&self.main).copied().collect();
        let unique: HashSet<u32> = queued.iter().copied().collect();
        assert_eq!(queued.len(), unique.len(), "a slot is in a queue twice");
        assert_eq!(queued.len() + self.free.len(), self.slots.len(), "a slot is lost");
        assert_eq!(queued.len(), self.index.len(), "index and queues differ");
        let weight = |slots: &VecDeque<u32>| -> usize {
            slots.iter().map(|slot| self.slots[*slot as usize].weight()).sum()
        };
        assert_eq!(self.small_bytes, weight(&self.small));
        assert_eq!(self.bytes, weight(&self.small) + weight(&self.main));
        assert!(self.bytes <= self.max_bytes);
        assert_eq!(self.blocks.iter().map(|count| count.entries).sum::<usize>(), self.index.len());
        for slot in &self.small {
            assert!(self.slots[*slot as usize].in_small);
        }
        for slot in &self.main {
            assert!(!self.slots[*slot as usize].in_small);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nodestub_wire::OwnedAnswer;
    use proptest::prelude::*;

    const NOW: Millis = Millis(1_000_000);

    fn key(name: &[u8], block: u64) -> Key<'_> {
        Key { name, qtype: 1, qclass: 1, dnssec_ok: false, checking_disabled: false, block }
    }

    fn answer(length: usize) -> OwnedAnswer {
        OwnedAnswer { records: vec![7; length].into(), ..OwnedAnswer::empty(Rcode::NOERROR) }
    }

    fn entry(answer: &OwnedAnswer, ttl: u32) -> NewEntry<'_> {
        NewEntry { answer, ttl, kind: Kind::Success, capacity: 1 << 20 }
    }

    fn name(number: u32) -> Vec<u8> {
        let mut name = vec![4];
        name.extend(number.to_be_bytes());
        name.push(0);
        name
    }

    /// A hash that spreads; the shard does not care which.
    fn hash(number: u32) -> u64 {
        (u64::from(number) + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15)
    }

    #[test]
    fn names_whose_hashes_collide_do_not_meet() {
        let mut shard = Shard::new(1 << 20);
        let (first, second) = (answer(10), answer(20));
        shard.insert(1, &key(b"\x01a\0", 1), &entry(&first, 60), NOW);
        shard.insert(1, &key(b"\x01b\0", 1), &entry(&second, 60), NOW);
        shard.insert(1, &key(b"\x01a\0", 2), &entry(&second, 60), NOW);
        let length = |shard: &mut Shard, name, block| {
            shard.get(1, &key(name, block), NOW).map(|hit| hit.answer.records.len())
        };
        assert_eq!(length(&mut shard, b"\x01a\0", 1), Some(10));
        assert_eq!(length(&mut shard, b"\x01b\0", 1), Some(20));
        assert_eq!(length(&mut shard, b"\x01a\0", 2), Some(20));
        assert_eq!(length(&mut shard, b"\x01b\0", 2), None);
        shard.assert_whole();
    }

    #[test]
    fn questions_whose_hashes_collide_do_not_meet_whatever_they_differ_in() {
        let plain = key(b"\x01a\0", 1);
        let others = [
            Key { qtype: 28, ..plain },
            Key { qclass: 3, ..plain },
            Key { dnssec_ok: true, ..plain },
            Key { checking_disabled: true, ..plain },
            Key { block: 2, ..plain },
        ];
        let mut shard = Shard::new(1 << 20);
        shard.insert(1, &plain, &entry(&answer(10), 60), NOW);
        for other in &others {
            assert!(shard.get(1, other, NOW).is_none(), "{other:?}");
        }
        assert!(shard.get(1, &plain, NOW).is_some());
    }

    #[test]
    fn an_answer_is_given_until_its_last_second_and_not_after() {
        let mut shard = Shard::new(1 << 20);
        shard.insert(1, &key(b"\x01a\0", 1), &entry(&answer(10), 30), NOW);
        let left = |shard: &mut Shard, after: u64| {
            shard.get(1, &key(b"\x01a\0", 1), Millis(NOW.0 + after)).map(|hit| hit.ttl_left)
        };
        assert_eq!(left(&mut shard, 0), Some(30));
        assert_eq!(left(&mut shard, 999), Some(30));
        assert_eq!(left(&mut shard, 1000), Some(29));
        assert_eq!(left(&mut shard, 29_999), Some(1));
        assert_eq!(left(&mut shard, 30_000), None);
    }

    #[test]
    fn a_flood_of_unique_names_does_not_flush_what_is_asked_again() {
        let mut shard = Shard::new(200_000);
        let kept = answer(100);
        for round in 0..3 {
            for number in 0..200 {
                if shard.get(hash(number), &key(&name(number), 1), NOW).is_none() {
                    shard.insert(hash(number), &key(&name(number), 1), &entry(&kept, 60), NOW);
                }
            }
            assert!(round > 0 || shard.stats().evictions == 0, "the working set fits");
        }
        for number in 1000..21_000 {
            shard.insert(hash(number), &key(&name(number), 1), &entry(&kept, 60), NOW);
        }
        shard.assert_whole();
        let survivors = (0..200).filter(|&n| shard.get(hash(n), &key(&name(n), 1), NOW).is_some()).count();
        assert_eq!(survivors, 200);
    }

    #[test]
    fn a_full_block_makes_room_among_its_own_and_leaves_others_alone() {
        let mut shard = Shard::new(1 << 20);
        let kept = answer(10);
        let small = NewEntry { answer: &kept, ttl: 60, kind: Kind::Success, capacity: 8 * SHARDS };
        for number in 0..8 {
            shard.insert(hash(number), &key(&name(number), 2), &entry(&kept, 60), NOW);
        }
        for number in 0..100 {
            shard.insert(hash(number), &key(&name(number), 1), &small, NOW);
        }
        assert_eq!(shard.block_stats(1, Kind::Success), (8, 92));
        assert_eq!(shard.block_stats(2, Kind::Success), (8, 0));
        shard.assert_whole();
    }

    #[test]
    fn what_is_too_large_or_has_no_life_is_not_kept() {
        let mut shard = Shard::new(10_000);
        shard.insert(1, &key(b"\x01a\0", 1), &entry(&answer(6000), 60), NOW);
        shard.insert(2, &key(b"\x01b\0", 1), &entry(&answer(10), 0), NOW);
        assert_eq!(shard.stats(), Stats::default());
    }

    proptest! {
        #[test]
        fn whatever_happens_the_books_are_right_and_no_answer_is_another_names(
            steps in prop::collection::vec((0u32..60, 0u64..3, 0usize..900, 1u32..40, any::<bool>()), 1..400),
        ) {
            let mut shard = Shard::new(20_000);
            let mut now = NOW;
            for (number, block, length, ttl, denial) in steps {
                now = Millis(now.0 + 300);
                let name = name(number);
                let key = key(&name, block);
                // Few hashes, so that they collide.
                let hash = hash(number % 7);
                if let Some(hit) = shard.get(hash, &key, now) {
                    let expected = u8::try_from(number).unwrap();
                    prop_assert!(hit.answer.records.iter().all(|&byte| byte == expected));
                    prop_assert!(hit.ttl_left >= 1 && hit.ttl_left <= hit.ttl);
                }
                let records = vec![u8::try_from(number).unwrap(); length].into();
                let answer = OwnedAnswer { records, ..OwnedAnswer::empty(Rcode::NOERROR) };
                let kind = if denial { Kind::Denial } else { Kind::Success };
                shard.insert(hash, &key, &NewEntry { answer: &answer, ttl, kind, capacity: 20 * SHARDS }, now);
                shard.assert_whole();
            }
        }
    }
}
