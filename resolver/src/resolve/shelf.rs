//! One question's place in the cache: where its answer is looked for, and put.

use std::sync::Arc;

use nodestub_cache::{Cache, Hit, Judgement, Key, Kind, Limits, NewEntry, judge};
use nodestub_corefile::config::ServeStale;
use nodestub_wire::{
    Ask, Flags, HEADER, Header, Name, OwnedAnswer, OwnedRecord, Rcode, Reply, Section, rtype,
};

use super::{Answered, Resolver};
use crate::asked::Asked;
use crate::clock::Clock;
use crate::error_log::in_words;
use crate::forward::{ForwardError, Response};
use crate::metrics::{Protocol, Source};
use crate::tables::Block;

/// TTL of an answer of our own that has no record to take one from, in seconds (CoreDNS `MinimalDefaultTTL`).
const WITHOUT_RECORDS_TTL: u32 = 5;

/// Where one question's answer is kept.
#[derive(Debug, Clone)]
pub(super) struct Shelf {
    cache: Arc<Cache>,
    clock: Clock,
    pub(super) block: Arc<Block>,
    pub(super) name: Name,
    pub(super) ask: Ask,
}

impl Shelf {
    pub(super) fn new(resolver: &Resolver, block: &Arc<Block>, asked: &Asked) -> Self {
        Self {
            cache: Arc::clone(&resolver.cache),
            clock: resolver.clock,
            block: Arc::clone(block),
            name: asked.lower(),
            ask: asked.to_ask(),
        }
    }

    fn key(&self) -> Key<'_> {
        Key {
            name: &self.ask.name,
            qtype: self.ask.qtype,
            qclass: self.ask.qclass,
            dnssec_ok: self.ask.dnssec_ok,
            checking_disabled: self.ask.checking_disabled,
            block: self.block.id,
        }
    }

    /// What is kept, for a client; and whether it is for the caller to ask for it again, by `prefetch`.
    pub(super) fn look_for_client(&self) -> Option<(Answered, Kind, bool)> {
        let policy = self.block.cache.as_ref()?;
        let Some(prefetch) = &policy.prefetch else {
            return self.look().map(|(cached, kind)| (cached, kind, false));
        };
        self.cache.get_popular(&self.key(), self.clock.now(), prefetch, |hit| {
            let (refresh, (cached, kind)) = (hit.refresh, take(&hit, policy.keep_ttl));
            (cached, kind, refresh)
        })
    }

    /// A refresh that [`Shelf::look_for_client`] demanded is over.
    pub(super) fn end_refresh(&self) {
        self.cache.end_refresh(&self.key());
    }

    /// What is kept, for whoever would ask for it otherwise.
    pub(super) fn look(&self) -> Option<(Answered, Kind)> {
        let policy = self.block.cache.as_ref()?;
        self.cache.get(&self.key(), self.clock.now(), |hit| take(&hit, policy.keep_ttl))
    }

    /// What has expired, and may be given where nothing better is to be had; with the rules for it.
    pub(super) fn look_stale(&self) -> Option<(Answered, Kind, ServeStale)> {
        let policy = self.block.cache.as_ref()?;
        let stale = policy.stale.as_ref()?;
        self.cache.get_stale(&self.key(), stale.up_to, self.clock.now(), |hit| {
            let (cached, kind) = take(&hit, false);
            (Answered { ttl: Some(stale.ttl), ..cached }, kind, stale.clone())
        })
    }

    pub(super) fn keep_response(&self, response: &Response) -> Answered {
        let Ok(answer) = OwnedAnswer::from_reply(&response.packet, &response.reply) else {
            return Answered::bare(Rcode::SERVFAIL);
        };
        if self.block.minimal {
            let mut reply = response.reply.clone();
            if is_minimized(&reply) {
                reply.records.retain(|record| record.section == Section::Answer);
            }
            let answer = first_of(answer, reply.records.len());
            return self.keep(answer, Source::Forward, |limits| judge(&response.packet, &reply, limits));
        }
        self.keep(answer, Source::Forward, |limits| judge(&response.packet, &response.reply, limits))
    }

    /// From `hosts`.
    pub(super) fn keep_local(&self, answer: OwnedAnswer) -> Answered {
        let failed = answer.rcode != Rcode::NOERROR;
        let ttl = answer.first_ttl().unwrap_or(WITHOUT_RECORDS_TTL);
        self.keep(answer, Source::Hosts, |limits| {
            if failed {
                failure(limits)
            } else {
                Judgement { ttl: limits.success.apply(ttl), kind: Some(Kind::Success) }
            }
        })
    }

    /// Records that were made here.
    pub(super) fn keep_made(
        &self,
        flags: Flags,
        rcode: Rcode,
        records: &[OwnedRecord],
        source: Source,
    ) -> Answered {
        let made = OwnedRecord::pack(&self.ask.name, flags, rcode, records);
        let parsed = made.and_then(|answer| {
            let packet = self.packet_of(&answer);
            Some((answer, Reply::parse(&packet).ok()?, packet))
        });
        let Some((mut answer, mut reply, packet)) = parsed else { return Answered::bare(Rcode::SERVFAIL) };
        if self.block.minimal && is_minimized(&reply) {
            reply.records.retain(|record| record.section == Section::Answer);
            answer = first_of(answer, reply.records.len());
        }
        self.keep(answer, source, |limits| judge(&packet, &reply, limits))
    }

    fn packet_of(&self, answer: &OwnedAnswer) -> Vec<u8> {
        let [answers, authorities, additionals] = answer.counts;
        let flags = Flags(Flags::QR | answer.flags.0 | answer.rcode.0 & 0xF);
        let header = Header { id: 0, flags, counts: [1, answers, authorities, additionals] };
        let mut packet = Vec::with_capacity(HEADER + self.ask.name.len() + 4 + answer.records.len());
        packet.extend_from_slice(&header.to_bytes());
        packet.extend_from_slice(&self.ask.name);
        packet.extend_from_slice(&self.ask.qtype.to_be_bytes());
        packet.extend_from_slice(&self.ask.qclass.to_be_bytes());
        packet.extend_from_slice(&answer.records);
        packet
    }

    /// What is said when nobody answered. A failure is remembered for some seconds, so that upstreams can come to
    /// their senses (RFC 9520); a refusal of our own is not.
    pub(super) fn failed(&self, error: &ForwardError, protocol: Protocol) -> Answered {
        let is_refused = matches!(error, ForwardError::Overloaded);
        if let Some(errors) = &self.block.errors {
            let rcode = if is_refused { Rcode::REFUSED } else { Rcode::SERVFAIL };
            errors.say(rcode, &self.name, self.ask.qtype, &in_words(error, protocol));
        }
        if is_refused {
            return Answered::bare(Rcode::REFUSED);
        }
        self.keep(OwnedAnswer::empty(Rcode::SERVFAIL), Source::Server, failure)
    }

    /// Keeps an answer as its block says, and gives its records the TTL under which it is kept.
    fn keep(
        &self,
        mut answer: OwnedAnswer,
        source: Source,
        judgement: impl FnOnce(&Limits) -> Judgement,
    ) -> Answered {
        let Some(policy) = self.block.cache.as_ref().filter(|policy| policy.covers(&self.name)) else {
            return Answered::new(answer, None, source);
        };
        let Judgement { ttl, kind } = judgement(&policy.limits);
        let kind = kind.filter(|kind| ttl > 0 && policy.keeps(&self.name, *kind));
        // What is answered without recursion (a referral, or nothing) is no answer for those who want it.
        if let Some(kind) =
            kind.filter(|kind| self.ask.recursion_desired && !self.would_displace(&answer, *kind))
        {
            self.arrange(&mut answer);
            let [success, denial] = policy.capacities;
            let capacity = if kind == Kind::Success { success } else { denial };
            let entry = NewEntry { answer: &answer, ttl, kind, capacity };
            self.cache.insert(&self.key(), &entry, self.clock.now());
        }
        Answered::new(answer, Some(ttl), source)
    }

    /// A failure never takes the place of an answer that may still be served, nor, with `prefer_positive`, anything but
    /// data that of data.
    fn would_displace(&self, answer: &OwnedAnswer, kind: Kind) -> bool {
        let Some(policy) = &self.block.cache else { return false };
        let is_failure = !matches!(answer.rcode, Rcode::NOERROR | Rcode::NXDOMAIN);
        let prefers = policy.prefer_positive && policy.stale.is_some();
        if !is_failure && (!prefers || has_data(answer, kind)) {
            return false;
        }
        let stale = self.look_stale().map(|(kept, kind, _)| (kept, kind));
        stale.or_else(|| self.look()).is_some_and(|(kept, kept_kind)| {
            let kept_failure = !matches!(kept.answer.rcode, Rcode::NOERROR | Rcode::NXDOMAIN);
            is_failure && !kept_failure || prefers && has_data(&kept.answer, kept_kind)
        })
    }

    /// Packs what `loadbalance` will reorder so that the fast side can.
    fn arrange(&self, answer: &mut OwnedAnswer) {
        let balance = self.block.chain.as_ref().and_then(|chain| chain.balance.as_ref());
        let Some(balance) = balance.filter(|_| answer.counts.first().is_some_and(|count| *count > 1)) else {
            return;
        };
        let Ask { name, qtype, qclass, .. } = &self.ask;
        let records = OwnedRecord::unpack_answer(name, *qtype, *qclass, &answer.as_answer(), None);
        if let Ok(mut records) = records {
            balance.arrange(&mut records);
            if let Some(packed) = OwnedRecord::pack(name, answer.flags, answer.rcode, &records) {
                *answer = packed;
            }
        }
    }
}

fn take(hit: &Hit<'_>, keep_ttl: bool) -> (Answered, Kind) {
    let answer = OwnedAnswer {
        flags: hit.answer.flags,
        rcode: hit.answer.rcode,
        counts: hit.answer.counts,
        ttl_offsets: hit.answer.ttl_offsets.into(),
        records: hit.answer.records.into(),
    };
    let ttl = if keep_ttl { hit.ttl } else { hit.ttl_left };
    (Answered::new(answer, Some(ttl), Source::Cache), hit.kind)
}

/// Whether records are there that answer the question: without any, NOERROR is a referral, or nothing.
fn has_data(answer: &OwnedAnswer, kind: Kind) -> bool {
    kind == Kind::Success
        && answer.rcode == Rcode::NOERROR
        && answer.counts.first().is_some_and(|count| *count > 0)
}

fn failure(limits: &Limits) -> Judgement {
    Judgement { ttl: limits.failure_ttl, kind: Some(Kind::Denial) }
}

/// What `minimal` takes records from: data, or nothing at all. Denials and referrals need theirs.
fn is_minimized(reply: &Reply) -> bool {
    let authority = |wanted: u16| reply.section(Section::Authority).any(|record| record.rtype == wanted);
    reply.rcode() == Rcode::NOERROR
        && (reply.section(Section::Answer).next().is_some()
            || !(authority(rtype::SOA) || authority(rtype::NS)))
}

/// An answer's first records. Pointers lead backward, so the others can be left off.
fn first_of(mut answer: OwnedAnswer, records: usize) -> OwnedAnswer {
    let Some(cut_at) = answer.ttl_offsets.len().checked_sub(records * 2).filter(|left_off| *left_off > 0)
    else {
        return answer;
    };
    let kept = answer.ttl_offsets.len() - cut_at;
    let end = kept.checked_sub(2).map_or(Some(0), |last| {
        let &[low, high] = answer.ttl_offsets.get(last..last + 2)? else { return None };
        let at = usize::from(u16::from_le_bytes([low, high]));
        let &[high, low] = answer.records.get(at + 4..at + 6)? else { return None };
        Some(at + 6 + usize::from(u16::from_be_bytes([high, low])))
    });
    let Some(end) = end else { return answer };
    let mut left = records;
    for count in &mut answer.counts {
        *count = (*count).min(u16::try_from(left).unwrap_or(u16::MAX));
        left -= usize::from(*count);
    }
    answer.ttl_offsets = answer.ttl_offsets.get(..kept).unwrap_or_default().into();
    answer.records = answer.records.get(..end).unwrap_or_default().into();
    answer
}
