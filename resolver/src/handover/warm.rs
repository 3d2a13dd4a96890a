//! The warm cache's way to a newcomer.
//!
//! It goes twice: whole, while the old process still serves; and once more what was kept meanwhile, when it has stopped
//! reading. So the time in which nobody reads does not depend on the cache's size, and the newcomer begins with all of
//! it. Ages are taken at the sender and made older by the time on the way: a life is never lengthened.

use std::collections::HashMap;
use std::sync::Arc;

use nodestub_cache::{Cache, Key, Kind, Millis, NewEntry, Place};
use nodestub_wire::OwnedAnswer;

use super::link::{Link, LinkError};
use super::message::{Entry, MAX_MESSAGE, Message};
use super::{PATIENCE, since_boot};
use crate::clock::Clock;
use crate::tables::Tables;

/// A batch is sent when it has this many bytes.
const BATCH: usize = 32 << 10;

/// Where a newcomer puts what it is given.
#[derive(Debug)]
pub struct Pantry {
    cache: Arc<Cache>,
    clock: Clock,
    /// Most entries of each class, by the block's number. Answers of other blocks would never be asked for.
    capacities: HashMap<u64, [usize; 2]>,
}

impl Pantry {
    /// For the blocks of these tables.
    pub fn new(cache: &Arc<Cache>, clock: Clock, tables: &Tables) -> Self {
        let capacity = |block: &Arc<crate::tables::Block>| Some((block.id, block.cache.as_ref()?.capacities));
        let capacities = tables.blocks.iter().filter_map(capacity).collect();
        Self { cache: Arc::clone(cache), clock, capacities }
    }

    /// Keeps what belongs to our blocks, and returns how many that were.
    pub(super) fn keep(&self, at: u64, entries: &[Entry]) -> usize {
        // One more: both clocks are cut to whole milliseconds.
        let on_the_way = millis_since_boot().saturating_sub(at) + 1;
        let now = self.clock.now();
        let kept = entries.iter().filter(|entry| {
            let Some([success, denial]) = self.capacities.get(&entry.block).copied() else { return false };
            let key = Key {
                name: &entry.name,
                qtype: entry.qtype,
                qclass: entry.qclass,
                dnssec_ok: entry.dnssec_ok,
                checking_disabled: entry.checking_disabled,
                block: entry.block,
            };
            let capacity = if entry.kind == Kind::Success { success } else { denial };
            let new = NewEntry { answer: &entry.answer, ttl: entry.ttl, kind: entry.kind, capacity };
            self.cache.import(&key, &new, entry.age.saturating_add(on_the_way), entry.rating, now)
        });
        kept.count()
    }
}

/// Sends all answers that were kept at `since` or later, and returns how many.
pub(super) async fn send(
    link: &Link,
    cache: &Cache,
    clock: Clock,
    since: Millis,
) -> Result<usize, LinkError> {
    let mut sent = 0;
    let mut place = Some(Place::default());
    while let Some(mut at) = place {
        let (mut entries, mut bytes) = (Vec::new(), 0);
        let taken_at = millis_since_boot();
        loop {
            place = cache.export(at, since, clock.now(), |kept| {
                let entry = Entry {
                    name: kept.key.name.into(),
                    qtype: kept.key.qtype,
                    qclass: kept.key.qclass,
                    dnssec_ok: kept.key.dnssec_ok,
                    checking_disabled: kept.key.checking_disabled,
                    block: kept.key.block,
                    answer: OwnedAnswer {
                        flags: kept.answer.flags,
                        rcode: kept.answer.rcode,
                        counts: kept.answer.counts,
                        ttl_offsets: kept.answer.ttl_offsets.into(),
                        records: kept.answer.records.into(),
                    },
                    kind: kept.kind,
                    ttl: kept.ttl,
                    age: kept.age,
                    rating: kept.rating,
                };
                bytes += entry.size();
                entries.push(entry);
            });
            match place {
                Some(next) if bytes < BATCH => at = next,
                _ => break,
            }
        }
        sent += entries.len();
        for batch in batches(entries) {
            link.send(&Message::Cache { at: taken_at, entries: batch }, &[], PATIENCE).await?;
        }
    }
    Ok(sent)
}

/// Cuts a list so that each part fits one message. A single entry always does, but for what is no DNS message.
fn batches(entries: Vec<Entry>) -> Vec<Vec<Entry>> {
    let mut batches = Vec::new();
    let (mut batch, mut bytes) = (Vec::new(), 0);
    for entry in entries {
        let size = entry.size();
        if size > MAX_MESSAGE / 2 {
            continue;
        }
        if bytes + size > MAX_MESSAGE / 2 {
            batches.push(std::mem::take(&mut batch));
            bytes = 0;
        }
        bytes += size;
        batch.push(entry);
    }
    if !batch.is_empty() {
        batches.push(batch);
    }
    batches
}

fn millis_since_boot() -> u64 {
    u64::try_from(since_boot().as_millis()).unwrap_or(u64::MAX)
}
