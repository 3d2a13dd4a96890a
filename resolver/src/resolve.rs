//! The slow side: a query that the cache could not answer on the spot.
//!
//! ```text
//!   miss ─► probe of our own? ─► the block's directives, in CoreDNS's order (`course`) ─► reply
//!                                  └─ what is kept, and where (`shelf`)
//! ```
//!
//! Every miss ends in a reply (SERVFAIL where nothing else can be said; silence where an access list demands it), and is
//! counted.

mod course;
mod prefetch;
mod rechecks;
mod shelf;

use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Instant;

use futures_util::FutureExt;
use nodestub_cache::Cache;
use nodestub_wire::{Ask, OwnedAnswer, Query, Rcode, rtype};

use crate::answer::size_limit;
use crate::asked::Asked;
use crate::chain::NSID;
use crate::clock::Clock;
use crate::coalesce::Coalescer;
use crate::loops::LoopProbes;
use crate::metrics::{Counter, Observation, PluginCounters, Protocol, Source};
use crate::query_log::{self, QueryLog};
use crate::tables::{Route, Tables};
use crate::watchdog::SecretLabel;
use course::Scope;
pub use prefetch::Prefetches;
pub use rechecks::Rechecks;

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
    /// What single directives count.
    pub plugin_counters: PluginCounters,
    /// Questions that are not asked again yet.
    pub rechecks: Arc<Rechecks>,
    /// Answers that are asked for again before they end.
    pub prefetches: Prefetches,
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
    /// The Corefile that says so.
    pub tables: Arc<Tables>,
    /// The listening address that was asked.
    pub listener: SocketAddr,
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
    /// EDNS options, as they stand in an OPT record; only for who sent one.
    options: Vec<u8>,
    /// Nothing is said.
    silent: bool,
}

impl Resolver {
    /// Answers a query, and returns the packet of the reply; `None`: there is none.
    pub async fn resolve(&self, miss: Miss) -> Option<Vec<u8>> {
        let Miss { packet, query, route, tables, listener, client, protocol, .. } = &miss;
        if query.qtype == rtype::HINFO && self.secret_label.is_first_of(query.name.as_bytes()) {
            // The watchdog's: it has come the whole way, and is nobody's business.
            let limit = size_limit(query, *protocol);
            return Some(write_reply(miss.packet, &miss.query, &Answered::bare(Rcode::NOERROR), limit));
        }
        let asked = Asked::new(query, packet, *client, *protocol, *listener);
        let scope = Scope { tables: Arc::clone(tables), listener: *listener };
        let answered = AssertUnwindSafe(self.answer(&scope, query, route, asked)).catch_unwind().await;
        let answered = answered.unwrap_or_else(|_| self.after_a_panic());
        let is_silent = answered.silent;
        let reply = self.finish(miss, answered);
        (!is_silent).then_some(reply)
    }

    /// Answers a query for which there is no room, and returns the packet of the reply.
    pub fn refuse(&self, miss: Miss) -> Vec<u8> {
        self.finish(miss, Answered::bare(Rcode::REFUSED))
    }

    /// Builds the reply, counts it, and logs it where the Corefile says so. Empty where nothing is said.
    fn finish(&self, miss: Miss, mut answered: Answered) -> Vec<u8> {
        let Miss { packet, query, route, listener, client, protocol, received, .. } = miss;
        if let Some(nsid) = route.block.chain.as_ref().and_then(|chain| chain.nsid.as_ref())
            && query.options(&packet).any(|(code, _)| code == NSID)
            && let Ok(length) = u16::try_from(nsid.len())
        {
            answered.options.extend_from_slice(&NSID.to_be_bytes());
            answered.options.extend_from_slice(&length.to_be_bytes());
            answered.options.extend_from_slice(nsid);
        }
        let request_bytes = packet.len();
        let reply = if answered.silent {
            Vec::new()
        } else {
            write_reply(packet, &query, &answered, size_limit(&query, protocol))
        };
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
            let answered = query_log::Answered {
                query: &query,
                client,
                server: listener,
                observation: &observation,
                reply: &reply,
                received,
            };
            self.query_log.write(&route.block.log, &answered);
        }
        reply
    }

    async fn answer(&self, scope: &Scope, query: &Query, route: &Arc<Route>, asked: Asked) -> Answered {
        if query.qtype == rtype::HINFO && self.loop_probes.came_back(&query.name) {
            return Answered::bare(Rcode::SERVFAIL);
        }
        self.course(scope, route, asked, 0).await
    }

    /// `errors`: says what went wrong with a query.
    fn errors(&self, route: &Route, asked: &Asked, error: &str) {
        if let Some(errors) = &route.block.errors {
            errors.say(Rcode::SERVFAIL, &asked.lower(), asked.qtype, error);
        }
    }

    fn after_a_panic(&self) -> Answered {
        self.panics.add(1);
        Answered::bare(Rcode::SERVFAIL)
    }
}

impl Answered {
    fn new(answer: OwnedAnswer, ttl: Option<u32>, source: Source) -> Self {
        Self { answer: Arc::new(answer), ttl, source, options: Vec::new(), silent: false }
    }

    /// Without records, and not kept.
    fn bare(rcode: Rcode) -> Self {
        Self::new(OwnedAnswer::empty(rcode), None, Source::Server)
    }
}

/// Builds the reply in the query's packet, made longer.
fn write_reply(mut packet: Vec<u8>, query: &Query, answered: &Answered, limit: usize) -> Vec<u8> {
    let answer = answered.answer.as_answer();
    let options = answered.options.as_slice();
    packet.resize((answer.reply_len(query) + options.len()).max(packet.len()), 0);
    let length =
        answer.write_with_options(&mut packet, query, answered.ttl, limit, options).unwrap_or_default();
    packet.truncate(length);
    packet
}

/// Whether a client's address is IPv6, mapped IPv4 not counted.
pub fn is_v6(client: SocketAddr) -> bool {
    client.ip().to_canonical().is_ipv6()
}
