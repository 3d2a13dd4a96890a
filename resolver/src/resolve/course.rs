//! The way of a question through the directives of its block, in CoreDNS's order.
//!
//! ```text
//!   local ─ dns64 ─ any ─ chaos ─ loadbalance ─ rewrite ─ autopath ─ acl ─ cache ─ template ─ hosts ─ forward ─ whoami
//!             │                                    │                        │
//!             └── asks for A ──────────────────────┴── follows a CNAME ─────┴─► the whole way once more, for another name
//! ```
//!
//! How deep questions of our own may lead to others is bounded ([`MAX_DEPTH`]).

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use nodestub_corefile::config::ServeStale;
use nodestub_corefile::config::answering::Action;
use nodestub_wire::{CLASS_IN, Flags, OwnedRecord, Rcode, rtype};

use super::shelf::Shelf;
use super::{Answered, Question, Resolver};
use crate::acl::Verdict as Access;
use crate::asked::Asked;
use crate::chain::Chain;
use crate::forward::Forwarder;
use crate::local::hosts::Verdict;
use crate::local::{small, template};
use crate::metrics::{Protocol, Source};
use crate::rewrite::{Outcome, Rewriting};
use crate::tables::{Route, Tables};
use crate::{dns64, load_balance, search};

/// Questions of our own that one question may lead to, one inside the other (CoreDNS `maxCNAMERewriteDepth`).
const MAX_DEPTH: u8 = 8;

/// Code of an extended error (RFC 8914) as an EDNS option.
const EXTENDED_ERROR: u16 = 15;
/// "Blocked" (RFC 8914, 4.16).
const BLOCKED: u16 = 15;
/// "Stale Answer" (RFC 8914, 4.4).
const STALE: u16 = 3;
/// "Stale NXDOMAIN Answer" (RFC 8914, 4.20).
const STALE_NXDOMAIN: u16 = 19;
/// "Filtered" (RFC 8914, 4.18).
const FILTERED: u16 = 17;

/// Where a question came in, and what the Corefile was then.
#[derive(Debug)]
pub(super) struct Scope {
    pub(super) tables: Arc<Tables>,
    pub(super) listener: SocketAddr,
}

impl Resolver {
    /// The whole way.
    pub(super) async fn course(
        &self,
        scope: &Scope,
        route: &Arc<Route>,
        asked: Asked,
        depth: u8,
    ) -> Answered {
        let Some(chain) = &route.block.chain else { return self.below(scope, route, &asked, depth).await };
        if let Some((rcode, records)) = chain.local.as_ref().and_then(|local| local.answer(&asked)) {
            self.plugin_counters.localhost(&asked);
            return Answered::made(&asked, Flags(0), rcode, &records, Source::Local);
        }
        let translator = chain.dns64.as_ref().filter(|dns64| {
            asked.qtype == rtype::AAAA
                && asked.qclass == CLASS_IN
                && (dns64.allow_ipv4 || asked.client_ip().is_ipv6())
        });
        let Some(translator) = translator else {
            return self.inside(scope, route, chain, asked, depth).await;
        };
        let answered = self.inside(scope, route, chain, asked.clone(), depth).await;
        // Where nobody has said anything there is nothing to translate.
        if answered.silent || answered.source == Source::Server {
            return answered;
        }
        let Some(records) = answered.records(&asked) else { return answered };
        if !dns64::is_wanted(translator, answered.answer.rcode, &records) {
            return answered;
        }
        let Some(found) = self.look_up(scope, asked.with_question(asked.name.clone(), rtype::A), depth).await
        else {
            return Answered::bare(Rcode::SERVFAIL);
        };
        self.plugin_counters.translated(&route.counters.server);
        let made = dns64::synthesize(translator, &records, found.records);
        Answered::made(&asked, Flags(found.flags.0 & Flags::TC), found.rcode, &made, Source::Dns64)
    }

    /// From `any` on.
    async fn inside(
        &self,
        scope: &Scope,
        route: &Arc<Route>,
        chain: &Chain,
        asked: Asked,
        depth: u8,
    ) -> Answered {
        if chain.any && asked.qtype == rtype::ANY {
            return Answered::made(&asked, Flags(0), Rcode::NOERROR, &[small::any(&asked)], Source::Any);
        }
        if let Some(records) = chain.chaos.as_ref().and_then(|chaos| small::chaos(chaos, &asked)) {
            return Answered::made(&asked, Flags(0), Rcode::NOERROR, &records, Source::Chaos);
        }
        let Some(balance) = &chain.balance else {
            return self.rewritten(scope, route, chain, asked, depth).await;
        };
        let answered = self.rewritten(scope, route, chain, asked.clone(), depth).await;
        balanced(balance, &asked, answered)
    }

    async fn rewritten(
        &self,
        scope: &Scope,
        route: &Arc<Route>,
        chain: &Chain,
        asked: Asked,
        depth: u8,
    ) -> Answered {
        let Some(rules) = &chain.rewrite else {
            return self.searched(scope, route, chain, &asked, depth).await;
        };
        let mut new = asked.clone();
        let changes = match rules.apply(&mut new) {
            Outcome::Untouched => return self.searched(scope, route, chain, &asked, depth).await,
            Outcome::NoName(text) => {
                self.errors(route, &asked, &format!("rewrite: {text:?} is no domain name"));
                return Answered::bare(Rcode::SERVFAIL);
            }
            Outcome::Rewritten(changes) => changes,
        };
        let mut answered = self.searched(scope, route, chain, &new, depth).await;
        if answered.silent || (changes.is_empty() && new.name == asked.name) {
            return answered;
        }
        let Some(records) = answered.records(&new) else { return Answered::bare(Rcode::SERVFAIL) };
        let mut rewriting = Rewriting { records, rcode: answered.answer.rcode };
        let mut flags = answered.answer.flags;
        if let Some(target) = rewriting.apply(&changes) {
            let question = new.with_question(target.name.clone(), new.qtype);
            if let Some(found) = self.look_up(scope, question, depth).await {
                flags = Flags(flags.0 & !Flags::TC | found.flags.0 & Flags::TC);
                rewriting.follow(&target, found.records);
            }
        }
        let options = std::mem::take(&mut answered.options);
        let made = Answered::made(&asked, flags, rewriting.rcode, &rewriting.records, answered.source);
        Answered { options, ..made }
    }

    /// `autopath`: where the first name of a walk along a search list is denied, the others are asked.
    async fn searched(
        &self,
        scope: &Scope,
        route: &Arc<Route>,
        chain: &Chain,
        asked: &Asked,
        depth: u8,
    ) -> Answered {
        let first = self.guarded(scope, route, chain, asked, depth).await;
        let Some(search) = chain.search.as_ref().filter(|_| asked.qclass == CLASS_IN) else { return first };
        if first.silent || first.answer.rcode != Rcode::NXDOMAIN {
            return first;
        }
        let Some(walk) = search.walk(&asked.name) else { return first };
        if let Some(namespace) = &walk.namespace {
            let question = asked.with_question(namespace.as_bytes().to_vec(), rtype::A);
            let found = self.beside(scope, route, chain, question, depth).await;
            if found.is_none_or(|found| found.rcode != Rcode::NOERROR) {
                return first;
            }
        }
        for name in walk.names {
            let question = asked.with_question(name, asked.qtype);
            let Some(found) = self.beside(scope, route, chain, question, depth).await else { return first };
            if found.rcode == Rcode::NXDOMAIN {
                continue;
            }
            let mut records = found.records;
            search::put_under(&asked.name, &mut records);
            self.plugin_counters.searched(&route.counters.server);
            return Answered::made(asked, found.flags, found.rcode, &records, first.source);
        }
        first
    }

    /// Asks ourselves for another name, from where `autopath` stands; the whole way where another block is responsible.
    async fn beside(
        &self,
        scope: &Scope,
        route: &Arc<Route>,
        chain: &Chain,
        asked: Asked,
        depth: u8,
    ) -> Option<Found> {
        let zones = scope.tables.listeners.get(&scope.listener)?;
        let responsible = zones.find(&asked.name.to_ascii_lowercase(), asked.qtype);
        if responsible.is_some_and(|other| !Arc::ptr_eq(&other.block, &route.block)) {
            return self.look_up(scope, asked, depth).await;
        }
        let answered = Box::pin(self.guarded(scope, route, chain, &asked, depth + 1)).await;
        if answered.silent {
            return None;
        }
        let records = answered.records(&asked)?;
        Some(Found { flags: answered.answer.flags, rcode: answered.answer.rcode, records })
    }

    async fn guarded(
        &self,
        scope: &Scope,
        route: &Arc<Route>,
        chain: &Chain,
        asked: &Asked,
        depth: u8,
    ) -> Answered {
        let Some(acl) = &chain.acl else { return self.below(scope, route, asked, depth).await };
        let name = asked.name.to_ascii_lowercase();
        match acl.verdict(&name, asked.qtype, asked.client_ip()) {
            Access::Allow => {
                if depth == 0 {
                    route.counters.slow().allowed();
                }
                self.below(scope, route, asked, depth).await
            }
            Access::Deny(action, zone) => {
                self.plugin_counters.denied(action, &route.counters.server, &zone.to_string());
                let (rcode, reason) = match action {
                    Action::Drop => return Answered { silent: true, ..Answered::bare(Rcode::NOERROR) },
                    Action::Filter => (Rcode::NOERROR, FILTERED),
                    _ => (Rcode::REFUSED, BLOCKED),
                };
                let mut answered = Answered::bare(rcode);
                answered.source = Source::Acl;
                answered.say_extended_error(reason, "");
                answered
            }
        }
    }

    /// The cache, and what is asked where it knows nothing.
    async fn below(&self, scope: &Scope, route: &Arc<Route>, asked: &Asked, depth: u8) -> Answered {
        let block = &route.block;
        let shelf = Shelf::new(self, block, asked);
        if let Some((cached, kind, refresh)) = shelf.look_for_client() {
            route.counters.slow().cache_hit(kind);
            if refresh {
                self.prefetch(route, shelf, asked).await;
            }
            return cached;
        }
        if block.cache.is_some() {
            route.counters.slow().cache_miss();
        }
        if let Some(templates) = &block.templates {
            match templates.answer(asked) {
                template::Verdict::PassOn => {}
                template::Verdict::Fail => return Answered::bare(Rcode::SERVFAIL),
                template::Verdict::Answer(made) => {
                    return self.fill_in(scope, route, &shelf, asked, made, depth).await;
                }
            }
        }
        if let Some(hosts) = &block.hosts
            && let Verdict::Answer(answer) = hosts.answer(&shelf.name, asked.qtype)
        {
            return shelf.keep_local(answer);
        }
        if let Some(first) = block.forwarders.iter().position(|forwarder| forwarder.matches(&shelf.name)) {
            let Some((stale, _, rules)) = shelf.look_stale() else {
                return self.forwarded(&shelf, first, asked.protocol).await;
            };
            return self.fresh_or_stale(route, &shelf, first, asked.protocol, stale, &rules).await;
        }
        if block.whoami {
            return shelf.keep_made(Flags(Flags::AA), Rcode::NOERROR, &small::whoami(asked), Source::Whoami);
        }
        Answered::bare(Rcode::SERVFAIL)
    }

    /// Asks upstreams: those of the `forward` with this number, and of those behind it where it says so.
    async fn forwarded(&self, shelf: &Shelf, first: usize, client: Protocol) -> Answered {
        let Some(forwarder) = shelf.block.forwarders.get(first) else {
            return Answered::bare(Rcode::SERVFAIL);
        };
        let _place = match forwarder.enter() {
            Ok(place) => place,
            Err(error) => return shelf.failed(&error, forwarder.transport(client)),
        };
        let question = self.question(shelf, forwarder, client);
        let lead = ask_upstream(shelf.clone(), first, client);
        let answered = self.coalescer.ask(question, || shelf.look().map(|(cached, _)| cached), lead).await;
        answered.unwrap_or_else(|| self.after_a_panic())
    }

    pub(super) fn question(&self, shelf: &Shelf, forwarder: &Forwarder, client: Protocol) -> Question {
        Question { block: shelf.block.id, ask: shelf.ask.clone(), protocol: forwarder.transport(client) }
    }

    /// `serve_stale`: what has expired, unless something better comes in time. The upstream is asked in any case, by one
    /// at a time for each question, and after a failure not before `recheck` is over.
    async fn fresh_or_stale(
        &self,
        route: &Route,
        shelf: &Shelf,
        first: usize,
        client: Protocol,
        mut stale: Answered,
        rules: &ServeStale,
    ) -> Answered {
        let Some(forwarder) = shelf.block.forwarders.get(first) else { return stale };
        let prefers = shelf.block.cache.as_ref().is_some_and(|policy| policy.prefer_positive)
            && stale.answer.rcode == Rcode::NOERROR
            && stale.answer.counts.first().is_some_and(|count| *count > 0);
        let question = self.question(shelf, forwarder, client);
        if self.rechecks.may_ask(&question, self.clock.now()) {
            let (rechecks, clock, recheck) = (Arc::clone(&self.rechecks), self.clock, rules.recheck);
            let (asked, again) = (question.clone(), shelf.clone());
            let lead = async move {
                let answered = ask_upstream(again, first, client).await;
                if !refreshes(&answered, prefers) {
                    rechecks.failed(asked, recheck, clock.now());
                }
                answered
            };
            let refresh =
                self.coalescer.ask_to_the_end(question, || shelf.look().map(|(cached, _)| cached), lead);
            let answered = match rules.verify {
                // Asked now, whoever waits for it: the question is under way once it has been polled.
                None => tokio::time::timeout(Duration::ZERO, refresh).await.ok().flatten(),
                Some(Duration::ZERO) => refresh.await,
                Some(patience) => tokio::time::timeout(patience, refresh).await.ok().flatten(),
            };
            if rules.verify.is_some()
                && let Some(answered) = answered.filter(|answered| refreshes(answered, prefers))
            {
                return answered;
            }
        }
        route.counters.slow().served_stale();
        let is_denial = stale.answer.rcode == Rcode::NXDOMAIN;
        stale.say_extended_error(if is_denial { STALE_NXDOMAIN } else { STALE }, "");
        stale
    }

    async fn fill_in(
        &self,
        scope: &Scope,
        route: &Arc<Route>,
        shelf: &Shelf,
        asked: &Asked,
        made: Box<template::Made>,
        depth: u8,
    ) -> Answered {
        self.plugin_counters.template_matched(&route.counters.server, &made.labels);
        if let Some(failure) = &made.failure {
            self.plugin_counters.template_failed(&route.counters.server, &made.labels, failure);
            self.errors(route, asked, &format!("template: {}", failure.cause));
            return Answered::bare(Rcode::SERVFAIL);
        }
        if made.rcode == Rcode::SERVFAIL {
            return Answered::bare(Rcode::SERVFAIL);
        }
        let mut records = Vec::with_capacity(made.records.len());
        let mut flags = Flags(Flags::AA);
        for (index, record) in made.records.into_iter().enumerate() {
            let target = made.follow.contains(&(index + 1)).then(|| record.data.clone());
            records.push(record);
            let Some(target) = target else { continue };
            if let Some(found) = self.look_up(scope, asked.with_question(target, asked.qtype), depth).await {
                flags = Flags(flags.0 & !Flags::TC | found.flags.0 & Flags::TC);
                records.extend(
                    found.records.into_iter().filter(|r| r.section == nodestub_wire::Section::Answer),
                );
            }
        }
        let mut answered = shelf.keep_made(flags, made.rcode, &records, Source::Template);
        if let Some((code, text)) = &made.extended_error {
            answered.say_extended_error(*code, text);
        }
        answered
    }

    /// Asks ourselves, the whole way. `None`: too deep, or nothing was said.
    fn look_up<'a>(
        &'a self,
        scope: &'a Scope,
        asked: Asked,
        depth: u8,
    ) -> Pin<Box<dyn Future<Output = Option<Found>> + Send + 'a>> {
        Box::pin(async move {
            if depth > MAX_DEPTH {
                return None;
            }
            let zones = scope.tables.listeners.get(&scope.listener)?;
            let name = asked.name.to_ascii_lowercase();
            let Some(route) = zones.find(&name, asked.qtype) else {
                return Some(Found { flags: Flags(0), rcode: Rcode::REFUSED, records: Vec::new() });
            };
            let answered = self.course(scope, route, asked.clone(), depth + 1).await;
            if answered.silent {
                return None;
            }
            let records = answered.records(&asked)?;
            Some(Found { flags: answered.answer.flags, rcode: answered.answer.rcode, records })
        })
    }
}

/// What a question of our own has found.
struct Found {
    flags: Flags,
    rcode: Rcode,
    records: Vec<OwnedRecord>,
}

fn balanced(balance: &load_balance::Balance, asked: &Asked, answered: Answered) -> Answered {
    let is_transfer = matches!(asked.qtype, rtype::AXFR | rtype::IXFR);
    let has_order = answered.answer.counts.iter().any(|count| *count > 1);
    if answered.silent || answered.answer.rcode != Rcode::NOERROR || is_transfer || !has_order {
        return answered;
    }
    let Some(mut records) = answered.records(asked) else { return answered };
    balance.reorder(&mut records, &mut rand::rng());
    let Answered { answer, source, options, .. } = answered;
    let made = Answered::made(asked, answer.flags, answer.rcode, &records, source);
    Answered { options, ..made }
}

/// Whether an answer is better than one that has expired (RFC 8767, 4); with `prefer_positive`, than one with data.
fn refreshes(answered: &Answered, prefers_data: bool) -> bool {
    let is_whole = !answered.answer.flags.has(Flags::TC);
    if prefers_data && answered.answer.counts.first().is_none_or(|count| *count == 0) {
        return false;
    }
    is_whole && matches!(answered.answer.rcode, Rcode::NOERROR | Rcode::NXDOMAIN)
}

/// Asks the upstreams of one `forward`; those of the next that is for this name, where `next` says so.
pub(super) async fn ask_upstream(shelf: Shelf, first: usize, client: Protocol) -> Answered {
    let block = Arc::clone(&shelf.block);
    for (number, forwarder) in block.forwarders.iter().enumerate().skip(first) {
        if !forwarder.matches(&shelf.name) {
            continue;
        }
        match forwarder.ask(&shelf.ask, forwarder.transport(client)).await {
            Ok(response) if forwarder.passes_on(&response) && number + 1 < block.forwarders.len() => {}
            Ok(response) => return shelf.keep_response(&response),
            Err(error) => return shelf.failed(&error, forwarder.transport(client)),
        }
    }
    // The last was passed over, and none behind it is for this name.
    Answered::bare(Rcode::SERVFAIL)
}

impl Answered {
    /// Records of our own, in answer to `asked`.
    fn made(asked: &Asked, flags: Flags, rcode: Rcode, records: &[OwnedRecord], source: Source) -> Self {
        match OwnedRecord::pack(&asked.name, flags, rcode, records) {
            Some(answer) => Self::new(answer, None, source),
            None => Self::bare(Rcode::SERVFAIL),
        }
    }

    /// The records, with the TTLs that they are given.
    fn records(&self, asked: &Asked) -> Option<Vec<OwnedRecord>> {
        let answer = self.answer.as_answer();
        OwnedRecord::unpack_answer(&asked.name, asked.qtype, asked.qclass, &answer, self.ttl).ok()
    }

    fn say_extended_error(&mut self, code: u16, text: &str) {
        let Ok(length) = u16::try_from(text.len() + 2) else { return };
        self.options.extend_from_slice(&EXTENDED_ERROR.to_be_bytes());
        self.options.extend_from_slice(&length.to_be_bytes());
        self.options.extend_from_slice(&code.to_be_bytes());
        self.options.extend_from_slice(text.as_bytes());
    }
}
