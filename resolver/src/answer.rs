//! The fast side's decision: what becomes of a packet from a client. No waiting, no allocation, no clock.
//!
//! ```text
//!   packet ──admit──► query ──zone──► route ──lets pass?──cache──► reply, in the buffer that the query came in
//!      │                 │              │        └──── no, or a miss: the slow side
//!      └─ ignore, or an error reply ────┘
//! ```
//!
//! The same function serves UDP and TCP; only what is done with the outcome differs.

use std::net::IpAddr;
use std::sync::Arc;

use nodestub_cache::{Cache, Hit, Key, Kind, Millis, Probe};
use nodestub_wire::{Admission, CLASS_IN, Header, Query, Rcode, write_error};

use crate::metrics::{Observation, Protocol, RouteCounters, Source};
use crate::tables::{Block, Route, Zones};

/// What becomes of a packet.
#[derive(Debug)]
pub enum Outcome<'a> {
    /// Nothing is said.
    Ignore,
    /// The buffer holds a reply.
    Reply(Replied<'a>),
    /// Somebody has to be asked.
    Miss(Query, &'a Arc<Route>),
}

/// A reply that stands in the buffer.
#[derive(Debug)]
pub struct Replied<'a> {
    /// Its length, in bytes.
    pub length: usize,
    /// For the counters.
    pub observation: Observation,
    /// Who counts it.
    pub counters: &'a RouteCounters,
    /// Its class, if it came from the cache.
    pub cached: Option<Kind>,
    /// The block that answered, for its log; with the query.
    pub logged: Option<(&'a Block, Query)>,
    /// An access list has let it pass.
    pub allowed: bool,
}

/// What the decision depends on besides the packet.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// The zones of the address that was asked.
    pub zones: &'a Zones,
    /// All kept answers.
    pub cache: &'a Cache,
    /// Now, taken once a batch.
    pub now: Millis,
    /// How the client asks.
    pub protocol: Protocol,
    /// Whether by IPv6.
    pub v6: bool,
    /// The client; may be `None` where no block of these zones asks ([`Zones::asks_for_client`]).
    pub client: Option<IpAddr>,
}

/// Decides about the first `length` bytes of `buffer`, and builds the reply in it where there is one to give at once.
pub fn answer<'a>(context: &Context<'a>, buffer: &mut [u8], length: usize) -> Outcome<'a> {
    let packet = buffer.get(..length).unwrap_or_default();
    let mut query = match Query::admit(packet) {
        Admission::Accept(query) => query,
        Admission::Ignore => return Outcome::Ignore,
        Admission::Reject(rcode) => return reject(context, buffer, length, None, rcode),
    };
    if query.qclass != CLASS_IN && !context.zones.serves_other_classes {
        return reject(context, buffer, length, Some(&query), Rcode::REFUSED);
    }
    if query.edns.is_some_and(|edns| edns.version != 0) {
        return reject(context, buffer, length, Some(&query), Rcode::BADVERS);
    }
    let Some(route) = context.zones.find(query.name.as_bytes(), query.qtype) else {
        return reject(context, buffer, length, Some(&query), Rcode::REFUSED);
    };
    if let Some(edns) = &mut query.edns {
        edns.udp_size = edns.udp_size.min(route.block.bufsize);
    }
    let chain = route.block.chain.as_ref();
    if chain.is_some_and(|chain| !chain.lets_pass(&query, context.client, context.v6)) {
        return Outcome::Miss(query, route);
    }
    let Some(policy) = &route.block.cache else { return Outcome::Miss(query, route) };
    let balance = chain.and_then(|chain| chain.balance.as_ref());
    let search = chain.and_then(|chain| chain.search.as_ref());
    let limit = size_limit(&query, context.protocol);
    let key = cache_key(&query, &route.block);
    let probe = context.cache.probe(&key, context.now, policy.prefetch.as_ref(), |hit: Hit<'_>| {
        // `prefetch`: somebody has to ask, and answers this one too. And a denial may be where a walk along a search
        // list begins.
        let begins_search = search.is_some_and(|search| {
            hit.answer.rcode == Rcode::NXDOMAIN && search.is_for(query.name.as_bytes())
        });
        if hit.refresh || begins_search {
            return None;
        }
        let ttl = if policy.keep_ttl { hit.ttl } else { hit.ttl_left };
        let length = hit.answer.write(buffer, &query, Some(ttl), limit)?;
        if let Some(balance) = balance
            && hit.answer.rcode == Rcode::NOERROR
        {
            let records = buffer.get_mut(query.question_end..length)?;
            let [answers, ..] = hit.answer.counts;
            let ordered =
                balance.shuffle_in_place(records, answers, hit.answer.ttl_offsets, &mut rand::rng());
            if !ordered {
                return None;
            }
        }
        Some((length, hit.answer.rcode, hit.kind))
    });
    match probe {
        Probe::Hit(Some((reply_length, rcode, kind))) => {
            let observation = observation(context, &query, length, reply_length, rcode, Source::Cache);
            let logged = (!route.block.log.is_empty()).then(|| (&*route.block, query));
            let counters = &*route.counters;
            Outcome::Reply(Replied {
                length: reply_length,
                observation,
                counters,
                cached: Some(kind),
                logged,
                allowed: chain.is_some_and(|chain| chain.acl.is_some()),
            })
        }
        // A reply that is too long for the buffer, a denial that begins a search, one whose order takes more than a swap,
        // an answer that is not there, and one that cannot be had without waiting are all the slow side's.
        Probe::Hit(None) | Probe::Miss | Probe::Busy => Outcome::Miss(query, route),
    }
}

/// The cache's key for a query that a block answers.
pub fn cache_key<'a>(query: &'a Query, block: &Block) -> Key<'a> {
    Key {
        name: query.name.as_bytes(),
        qtype: query.qtype,
        qclass: query.qclass,
        dnssec_ok: query.dnssec_ok(),
        checking_disabled: query.checking_disabled(),
        block: block.id,
    }
}

/// Most bytes of a reply that the client takes.
pub fn size_limit(query: &Query, protocol: Protocol) -> usize {
    match protocol {
        Protocol::Udp => query.udp_limit(),
        Protocol::Tcp => usize::from(u16::MAX),
    }
}

fn reject<'a>(
    context: &Context<'a>,
    buffer: &mut [u8],
    length: usize,
    query: Option<&Query>,
    rcode: Rcode,
) -> Outcome<'a> {
    let Some(reply_length) = write_error(buffer, query, rcode) else { return Outcome::Ignore };
    let observation = match query {
        Some(query) => observation(context, query, length, reply_length, rcode, Source::Server),
        None => Observation {
            protocol: context.protocol,
            v6: context.v6,
            qtype: 0,
            dnssec_ok: false,
            request_bytes: length,
            response_bytes: reply_length,
            rcode,
            source: Source::Server,
        },
    };
    debug_assert!(Header::parse(buffer).is_ok(), "a reply has a header");
    let counters = &*context.zones.dropped;
    Outcome::Reply(Replied {
        length: reply_length,
        observation,
        counters,
        cached: None,
        logged: None,
        allowed: false,
    })
}

fn observation(
    context: &Context<'_>,
    query: &Query,
    request_bytes: usize,
    response_bytes: usize,
    rcode: Rcode,
    source: Source,
) -> Observation {
    Observation {
        protocol: context.protocol,
        v6: context.v6,
        qtype: query.qtype,
        dnssec_ok: query.dnssec_ok(),
        request_bytes,
        response_bytes,
        rcode,
        source,
    }
}
