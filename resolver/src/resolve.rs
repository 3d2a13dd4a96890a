//! The slow side: a query that the cache could not answer on the spot.
//!
//! ```text
//!   miss ─► probe of our own? ─► cache once more ─► hosts ─► forward ─► judge, keep ─► reply
//! ```
//!
//! The order is CoreDNS's. Every miss ends in a reply (SERVFAIL where nothing else can be said), and is counted.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use nodestub_cache::{Cache, Judgement, Kind, NewEntry, judge};
use nodestub_wire::{Ask, Flags, Name, OwnedAnswer, Query, Rcode, rtype};

use crate::answer::{cache_key, size_limit};
use crate::clock::Clock;
use crate::forward::ForwardError;
use crate::local::hosts::Verdict;
use crate::loops::LoopProbes;
use crate::metrics::{Observation, Protocol, Source};
use crate::query_log::{LogLine, QueryLog};
use crate::tables::{Block, Route};

/// What all queries share.
#[derive(Debug)]
pub struct Resolver {
    /// All kept answers.
    pub cache: Arc<Cache>,
    /// The daemon's clock.
    pub clock: Clock,
    /// Probes for loops under way.
    pub loop_probes: LoopProbes,
    /// Where `log` writes.
    pub query_log: QueryLog,
}

/// A query on the slow side.
#[derive(Debug)]
pub struct Miss {
    /// The packet.
    pub packet: Vec<u8>,
    /// What it asks.
    pub query: Query,
    /// Who is responsible.
    pub route: Arc<Route>,
    /// Who asks.
    pub client: SocketAddr,
    /// How.
    pub protocol: Protocol,
    /// When it came.
    pub received: Instant,
}

struct Answered {
    answer: Arc<OwnedAnswer>,
    /// Seconds for every record; `None`: as they are.
    ttl: Option<u32>,
    source: Source,
}

impl Resolver {
    /// Answers a query, and returns the packet of the reply.
    pub async fn resolve(&self, miss: Miss) -> Vec<u8> {
        let Miss { packet, query, route, client, protocol, received } = miss;
        let answered = self.answer(&query, &route, protocol).await;
        let request_bytes = packet.len();
        let reply = write_reply(packet, &query, &answered, size_limit(&query, protocol));
        let lane = route.counters.slow();
        let observation = Observation {
            protocol,
            v6: is_v6(client),
            qtype: query.qtype,
            dnssec_ok: query.dnssec_ok(),
            request_bytes,
            response_bytes: reply.len(),
            rcode: answered.answer.rcode,
            source: answered.source,
        };
        lane.observe(&observation);
        lane.observe_durations(received.elapsed(), 1);
        if !route.block.log.is_empty() {
            self.query_log
                .write(&route.block.log, &LogLine::new(&query, client, &observation, &reply, received));
        }
        reply
    }

    async fn answer(&self, query: &Query, route: &Route, protocol: Protocol) -> Answered {
        let block = &route.block;
        if query.qtype == rtype::HINFO && self.loop_probes.came_back(&query.name) {
            return Answered::failure(Rcode::SERVFAIL);
        }
        if let Some(cached) = self.cached(query, route) {
            return cached;
        }
        let name = query.name.to_name();
        if let Some(hosts) = &block.hosts
            && let Verdict::Answer(answer) = hosts.answer(&name, query.qtype)
        {
            return self.keep_local(query, block, &name, answer);
        }
        let Some(forwarder) = block.forwarders.iter().find(|forwarder| forwarder.matches(&name)) else {
            return Answered::failure(Rcode::SERVFAIL);
        };
        let ask = Ask {
            name: query.name.as_bytes().into(),
            qtype: query.qtype,
            qclass: query.qclass,
            recursion_desired: query.flags.has(Flags::RD),
            checking_disabled: query.checking_disabled(),
            dnssec_ok: query.dnssec_ok(),
        };
        match forwarder.ask(ask, protocol).await {
            Ok(response) => match OwnedAnswer::from_reply(&response.packet, &response.reply) {
                Ok(answer) => {
                    let judgement = |limits: &_| judge(&response.packet, &response.reply, limits);
                    self.keep(query, block, &name, answer, Source::Forward, judgement)
                }
                Err(_) => Answered::failure(Rcode::SERVFAIL),
            },
            Err(error) => {
                if block.errors {
                    tracing::error!(%name, qtype = query.qtype, %error, "errors: no answer from upstream");
                }
                if matches!(error, ForwardError::Overloaded) {
                    return Answered::failure(Rcode::REFUSED);
                }
                let failure = |limits: &nodestub_cache::Limits| Judgement {
                    ttl: limits.failure_ttl,
                    kind: (limits.failure_ttl > 0).then_some(Kind::Denial),
                };
                // RFC 9520: a failure is remembered for a few seconds, so that upstreams can come to their senses.
                let answer = OwnedAnswer::empty(Rcode::SERVFAIL);
                Answered {
                    source: Source::Server,
                    ..self.keep(query, block, &name, answer, Source::Server, failure)
                }
            }
        }
    }

    fn cached(&self, query: &Query, route: &Route) -> Option<Answered> {
        let policy = route.block.cache.as_ref()?;
        let found = self.cache.get(&cache_key(query, &route.block), self.clock.now(), |hit| {
            let answer = OwnedAnswer {
                flags: hit.answer.flags,
                rcode: hit.answer.rcode,
                counts: hit.answer.counts,
                ttl_offsets: hit.answer.ttl_offsets.into(),
                records: hit.answer.records.into(),
            };
            let ttl = if policy.keep_ttl { hit.ttl } else { hit.ttl_left };
            (answer, ttl, hit.kind)
        });
        let Some((answer, ttl, kind)) = found else {
            route.counters.slow().cache_miss();
            return None;
        };
        route.counters.slow().cache_hit(kind);
        Some(Answered { answer: Arc::new(answer), ttl: Some(ttl), source: Source::Cache })
    }

    fn keep_local(&self, query: &Query, block: &Block, name: &Name, answer: OwnedAnswer) -> Answered {
        let ttl = answer.first_ttl();
        let success = answer.rcode == Rcode::NOERROR;
        let judgement = |limits: &nodestub_cache::Limits| match ttl {
            Some(ttl) => Judgement {
                ttl: ttl.clamp(limits.success.min, limits.success.max),
                kind: Some(Kind::Success),
            },
            None if success => Judgement { ttl: limits.success.min.max(5), kind: Some(Kind::Success) },
            None => Judgement { ttl: limits.failure_ttl, kind: Some(Kind::Denial) },
        };
        self.keep(query, block, name, answer, Source::Hosts, judgement)
    }

    /// Keeps an answer as its block says, and gives its records the TTL under which it is kept.
    fn keep(
        &self,
        query: &Query,
        block: &Block,
        name: &Name,
        answer: OwnedAnswer,
        source: Source,
        judgement: impl FnOnce(&nodestub_cache::Limits) -> Judgement,
    ) -> Answered {
        let Some(policy) = block.cache.as_ref().filter(|policy| policy.covers(name)) else {
            return Answered { answer: Arc::new(answer), ttl: None, source };
        };
        let Judgement { ttl, kind } = judgement(&policy.limits);
        if let Some(kind) = kind.filter(|kind| ttl > 0 && policy.keeps(name, *kind)) {
            let [success, denial] = policy.capacities;
            let capacity = if kind == Kind::Success { success } else { denial };
            let entry = NewEntry { answer: &answer, ttl, kind, capacity };
            self.cache.insert(&cache_key(query, block), &entry, self.clock.now());
        }
        Answered { answer: Arc::new(answer), ttl: Some(ttl), source }
    }
}

impl Answered {
    fn failure(rcode: Rcode) -> Self {
        Self { answer: Arc::new(OwnedAnswer::empty(rcode)), ttl: None, source: Source::Server }
    }
}

/// Builds the reply in the query's packet, made longer.
fn write_reply(mut packet: Vec<u8>, query: &Query, answered: &Answered, limit: usize) -> Vec<u8> {
    let answer = answered.answer.as_answer();
    packet.resize(answer.reply_len(query).max(packet.len()), 0);
    let length = answer.write(&mut packet, query, answered.ttl, limit).unwrap_or_default();
    packet.truncate(length);
    packet
}

/// Whether a client's address is IPv6, mapped IPv4 not counted.
pub fn is_v6(client: SocketAddr) -> bool {
    client.ip().to_canonical().is_ipv6()
}
