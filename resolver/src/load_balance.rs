//! `loadbalance`: the order of addresses in an answer.
//!
//! On the slow side records move. On the fast side, in a kept answer, only the addresses themselves change places: where all
//! address records of the answer section have one type and one owner as it is written, that is the same, and no pointer is
//! bent. Kept answers of such blocks are packed in the order that makes this the usual case ([`Balance::arrange`]).

use std::net::IpAddr;

use nodestub_corefile::config::answering::{LoadBalance, Network};
use nodestub_wire::{OwnedRecord, Section, rtype};
use rand::Rng;
use rand::seq::SliceRandom;

mod weights;

pub use weights::Weights;

/// MX, which is shuffled too.
const MX: u16 = 15;

/// Most addresses whose order the fast side changes; more is the slow side's.
const MAX_IN_PLACE: usize = 32;

const ADDRESS_RANK: u8 = 2;
const MX_RANK: u8 = 3;

/// One `loadbalance` at work.
#[derive(Debug)]
pub struct Balance {
    prefer: Vec<Network>,
    /// `weighted`.
    pub weights: Option<std::sync::Arc<Weights>>,
}

impl Balance {
    /// From what the Corefile says. A file of weights is read here, and kept fresh for as long as this lives.
    pub fn new(config: &LoadBalance) -> Self {
        let weights =
            config.weighted.as_ref().map(|(file, interval)| Weights::start(file.clone(), *interval));
        Self { prefer: config.prefer.clone(), weights }
    }

    /// Orders the records of an answer anew: CNAMEs, the rest, addresses, MX, the last two shuffled.
    pub fn reorder(&self, records: &mut Vec<OwnedRecord>, random: &mut impl Rng) {
        for section in [Section::Answer, Section::Authority, Section::Additional] {
            let (mut own, others): (Vec<_>, Vec<_>) =
                std::mem::take(records).into_iter().partition(|record| record.section == section);
            *records = others;
            own.sort_by_key(|record| rank(record.rtype));
            match &self.weights {
                Some(weights) => weights.order(&mut own, random),
                None => {
                    for rank in [ADDRESS_RANK, MX_RANK] {
                        let start = own.partition_point(|record| self::rank(record.rtype) < rank);
                        let end = own.partition_point(|record| self::rank(record.rtype) <= rank);
                        own.get_mut(start..end).unwrap_or_default().shuffle(random);
                    }
                }
            }
            records.extend(own);
        }
        self.arrange(records);
    }

    /// The order of kinds in each section, and the preferred networks; inside a kind, the order stays.
    pub fn arrange(&self, records: &mut [OwnedRecord]) {
        records.sort_by_key(|record| (record.section, rank(record.rtype), self.preference(record)));
    }

    fn preference(&self, record: &OwnedRecord) -> usize {
        address(record.rtype, &record.data).map_or(0, |address| self.preference_of(address))
    }

    fn preference_of(&self, address: IpAddr) -> usize {
        self.prefer.iter().position(|network| network.holds(address)).unwrap_or(self.prefer.len())
    }

    /// Changes the order of addresses in a reply that stands in a buffer. `records`: from the first record on, cut as it
    /// may be; `answers`: how many records are in its answer section; `ttl_offsets`: as kept. False: this answer needs
    /// more than that. Allocates nothing.
    pub fn shuffle_in_place(
        &self,
        records: &mut [u8],
        answers: u16,
        ttl_offsets: &[u8],
        random: &mut impl Rng,
    ) -> bool {
        if self.weights.is_some() {
            return answers < 2;
        }
        let mut places = [0_usize; MAX_IN_PLACE];
        let mut count = 0;
        let mut kind: Option<(u16, usize)> = None;
        let mut owner = [0_u8; 2];
        let mut start = 0;
        let offsets = ttl_offsets.as_chunks::<2>().0.iter().take(usize::from(answers));
        for offset in offsets.map(|&pair| usize::from(u16::from_le_bytes(pair))) {
            // TYPE and CLASS stand before the TTL, RDLENGTH and RDATA behind it.
            let (Some(&[high, low]), Some(&[length_high, length_low])) = (
                records.get(offset.wrapping_sub(4)..offset.wrapping_sub(2)),
                records.get(offset + 4..offset + 6),
            ) else {
                return false;
            };
            let this_type = u16::from_be_bytes([high, low]);
            let length = usize::from(u16::from_be_bytes([length_high, length_low]));
            let owner_place = start..offset - 4;
            start = offset + 6 + length;
            match this_type {
                rtype::A | rtype::AAAA => {
                    // A pointer is two bytes; an owner in full is the first of its kind, or has other bytes.
                    let Some(&[first, second]) = records.get(owner_place) else { return answers == 1 };
                    if kind.is_some_and(|kind| kind != (this_type, length) || owner != [first, second])
                        || count == MAX_IN_PLACE
                    {
                        return false;
                    }
                    (kind, owner) = (Some((this_type, length)), [first, second]);
                    let Some(place) = places.get_mut(count) else { return false };
                    *place = offset + 6;
                    count += 1;
                }
                MX => return answers == 1,
                _ => {}
            }
        }
        let (Some((this_type, length)), Some(places)) = (kind, places.get(..count)) else { return true };
        for index in (1..count).rev() {
            let other = random.random_range(0..=index);
            swap(records, places, index, other, length);
        }
        if !self.prefer.is_empty() {
            // By insertion: stable, and there are few.
            for index in 1..count {
                let mut at = index;
                while at > 0
                    && self.rank_at(records, places, at, this_type, length)
                        < self.rank_at(records, places, at - 1, this_type, length)
                {
                    swap(records, places, at, at - 1, length);
                    at -= 1;
                }
            }
        }
        true
    }

    fn rank_at(&self, records: &[u8], places: &[usize], index: usize, rtype: u16, length: usize) -> usize {
        let data = places.get(index).and_then(|at| records.get(*at..*at + length));
        data.and_then(|data| address(rtype, data)).map_or(0, |address| self.preference_of(address))
    }
}

fn rank(this_type: u16) -> u8 {
    match this_type {
        rtype::CNAME => 0,
        rtype::A | rtype::AAAA => ADDRESS_RANK,
        MX => MX_RANK,
        _ => 1,
    }
}

fn address(this_type: u16, data: &[u8]) -> Option<IpAddr> {
    match this_type {
        rtype::A => <[u8; 4]>::try_from(data).ok().map(IpAddr::from),
        rtype::AAAA => <[u8; 16]>::try_from(data).ok().map(IpAddr::from),
        _ => None,
    }
}

/// Exchanges two ranges of the same length that do not overlap.
fn swap(records: &mut [u8], places: &[usize], one: usize, other: usize, length: usize) {
    let (Some(&one), Some(&other)) = (places.get(one), places.get(other)) else { return };
    if one == other {
        return;
    }
    for index in 0..length {
        if one.max(other) + index < records.len() {
            records.swap(one + index, other + index);
        }
    }
}
