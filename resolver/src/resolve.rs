//! The slow side: a query that the cache could not answer on the spot.
//!
//! ```text
//!   miss ─► probe of our own? ─► cache once more ─► hosts ─► forward ─► judge, keep ─► reply
//! ```
//!
//! The order is CoreDNS's. Every miss ends in a reply (SERVFAIL where nothing else can be said), and is counted.

use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Instant;

use futures_util::FutureExt;
use nodestub_cache::{Cache, Judgement, Key, Kind, Limits, NewEntry, judge};
use nodestub_wire::{Ask, Flags, Name, OwnedAnswer, Query, Rcode, rtype};

use crate::answer::size_limit;
use crate::clock::Clock;
use crate::coalesce::Coalescer;
use crate::forward::{ForwardError, Forwarder, Response};
use crate::local::hosts::Verdict;
use crate::loops::LoopProbes;
use crate::metrics::{Counter, Observation, Protocol, Source};
use crate::query_log::{LogLine, QueryLog};
use crate::tables::{Block, Route};
use crate::watchdog::SecretLabel;

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
    /// Questions to upstreams under way.
    pub coalescer: Coalescer<Question, Answered>,
    /// Names that only the watchdog asks for.
    pub secret_label: SecretLabel,
    /// Panics caught while answering: bugs of ours, each of which cost a query or a batch its answer.
    pub panics: Counter,
}

/// What makes two misses one question: the block, what is asked, and the transport towards the upstream.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Question {
    block: u64,
    ask: Ask,
    protocol: Protocol,
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

/// How a miss ends.
#[derive(Debug, Clone)]
pub struct Answered {
    answer: Arc<OwnedAnswer>,
    /// Seconds for every record; `None`: as they are.
    ttl: Option<u32>,
    source: Source,
}

impl Resolver {
    /// Answers a query, and returns the packet of the reply.
    pub async fn resolve(&self, miss: Miss) -> Vec<u8> {
        let Miss { query, route, protocol, .. } = &miss;
        if query.qtype == rtype::HINFO && self.secret_label.is_first_of(query.name.as_bytes()) {
            // The watchdog's: it has come the whole way, and is nobody's business.
            let limit = size_limit(query, *protocol);
            return write_reply(miss.packet, &miss.query, &Answered::bare(Rcode::NOERROR), limit);
        }
        let answered = AssertUnwindSafe(self.answer(query, route, *protocol)).catch_unwind().await;
        let answered = answered.unwrap_or_else(|_| self.after_a_panic());
        self.finish(miss, &answered)
    }

    /// Answers a query for which there is no room, and returns the packet of the reply.
    pub fn refuse(&self, miss: Miss) -> Vec<u8> {
        self.finish(miss, &Answered::bare(Rcode::REFUSED))
    }

    /// Builds the reply, counts it, and logs it where the Corefile says so.
    fn finish(&self, miss: Miss, answered: &Answered) -> Vec<u8> {
        let Miss { packet, query, route, client, protocol, received } = miss;
        let request_bytes = packet.len();
        let reply = write_reply(packet, &query, answered, size_limit(&query, protocol));
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
        if query.qtype == rtype::HINFO && self.loop_probes.came_back(&query.name) {
            return Answered::bare(Rcode::SERVFAIL);
        }
        let block = &route.block;
        let shelf = Shelf::new(self, block, query);
        if let Some((cached, kind)) = shelf.look() {
            route.counters.slow().cache_hit(kind);
            return cached;
        }
        if block.cache.is_some() {
            route.counters.slow().cache_miss();
        }
        if let Some(hosts) = &block.hosts
            && let Verdict::Answer(answer) = hosts.answer(&shelf.name, query.qtype)
        {
            return shelf.keep_local(answer);
        }
        let Some(forwarder) = block.forwarders.iter().find(|forwarder| forwarder.matches(&shelf.name)) else {
            return Answered::bare(Rcode::SERVFAIL);
        };
        let _place = match forwarder.enter() {
            Ok(place) => place,
            Err(error) => return shelf.failed(&error),
        };
        let protocol = forwarder.transport(protocol);
        let question = Question { block: block.id, ask: shelf.ask.clone(), protocol };
        let lead = ask_upstream(shelf.clone(), Arc::clone(forwarder), protocol);
        let answered = self.coalescer.ask(question, || shelf.look().map(|(cached, _)| cached), lead).await;
        answered.unwrap_or_else(|| self.after_a_panic())
    }

    fn after_a_panic(&self) -> Answered {
        self.panics.add(1);
        Answered::bare(Rcode::SERVFAIL)
    }
}

async fn ask_upstream(shelf: Shelf, forwarder: Arc<Forwarder>, protocol: Protocol) -> Answered {
    match forwarder.ask(&shelf.ask, protocol).await {
        Ok(response) => shelf.keep_response(&response),
        Err(error) => shelf.failed(&error),
    }
}

/// One question's place in the cache: where its answer is looked for, and put.
#[derive(Debug, Clone)]
struct Shelf {
    cache: Arc<Cache>,
    clock: Clock,
    block: Arc<Block>,
    name: Name,
    ask: Ask,
}

impl Shelf {
    fn new(resolver: &Resolver, block: &Arc<Block>, query: &Query) -> Self {
        Self {
            cache: Arc::clone(&resolver.cache),
            clock: resolver.clock,
            block: Arc::clone(block),
            name: query.name.to_name(),
            ask: Ask {
                name: query.name.as_bytes().into(),
                qtype: query.qtype,
                qclass: query.qclass,
                recursion_desired: query.flags.has(Flags::RD),
                checking_disabled: query.checking_disabled(),
                dnssec_ok: query.dnssec_ok(),
            },
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

    fn look(&self) -> Option<(Answered, Kind)> {
        let policy = self.block.cache.as_ref()?;
        self.cache.get(&self.key(), self.clock.now(), |hit| {
            let answer = OwnedAnswer {
                flags: hit.answer.flags,
                rcode: hit.answer.rcode,
                counts: hit.answer.counts,
                ttl_offsets: hit.answer.ttl_offsets.into(),
                records: hit.answer.records.into(),
            };
            let ttl = if policy.keep_ttl { hit.ttl } else { hit.ttl_left };
            (Answered { answer: Arc::new(answer), ttl: Some(ttl), source: Source::Cache }, hit.kind)
        })
    }

    fn keep_response(&self, response: &Response) -> Answered {
        let Ok(answer) = OwnedAnswer::from_reply(&response.packet, &response.reply) else {
            return Answered::bare(Rcode::SERVFAIL);
        };
        self.keep(answer, Source::Forward, |limits| judge(&response.packet, &response.reply, limits))
    }

    fn keep_local(&self, answer: OwnedAnswer) -> Answered {
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

    /// What is said when nobody answered. A failure is remembered for some seconds, so that upstreams can come to
    /// their senses (RFC 9520); a refusal of our own is not.
    fn failed(&self, error: &ForwardError) -> Answered {
        if self.block.errors {
            tracing::error!(name = %self.name, qtype = self.ask.qtype, %error, "errors: no answer from upstream");
        }
        if matches!(error, ForwardError::Overloaded) {
            return Answered::bare(Rcode::REFUSED);
        }
        self.keep(OwnedAnswer::empty(Rcode::SERVFAIL), Source::Server, failure)
    }

    /// Keeps an answer as its block says, and gives its records the TTL under which it is kept.
    fn keep(
        &self,
        answer: OwnedAnswer,
        source: Source,
        judgement: impl FnOnce(&Limits) -> Judgement,
    ) -> Answered {
        let Some(policy) = self.block.cache.as_ref().filter(|policy| policy.covers(&self.name)) else {
            return Answered { answer: Arc::new(answer), ttl: None, source };
        };
        let Judgement { ttl, kind } = judgement(&policy.limits);
        let kind = kind.filter(|kind| ttl > 0 && policy.keeps(&self.name, *kind));
        // What is answered without recursion (a referral, or nothing) is no answer for those who want it.
        if let Some(kind) = kind.filter(|_| self.ask.recursion_desired) {
            let [success, denial] = policy.capacities;
            let capacity = if kind == Kind::Success { success } else { denial };
            let entry = NewEntry { answer: &answer, ttl, kind, capacity };
            self.cache.insert(&self.key(), &entry, self.clock.now());
        }
        Answered { answer: Arc::new(answer), ttl: Some(ttl), source }
    }
}

/// TTL of an answer of our own that has no record to take one from, in seconds (CoreDNS `MinimalDefaultTTL`).
const WITHOUT_RECORDS_TTL: u32 = 5;

fn failure(limits: &Limits) -> Judgement {
    Judgement { ttl: limits.failure_ttl, kind: Some(Kind::Denial) }
}

impl Answered {
    /// Without records, and not kept.
    fn bare(rcode: Rcode) -> Self {
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
