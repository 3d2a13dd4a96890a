//! A Corefile, compiled: what a query is looked up in. Built beside the running one, then swapped whole.
//!
//! ```text
//!   listening address ──► Zones ──longest zone──► Route ──► Block: chain, cache, templates, hosts, forward
//! ```
//!
//! [`Workshop`] outlives the tables. What a new Corefile has in common with the old one (forwarders with their
//! connections, host files, counters) is handed on, and a block whose meaning did not change keeps its number, so that
//! its cached answers stay valid.

mod addresses;
mod error;
mod workshop;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use nodestub_cache::{Bounds, Limits, Popularity};
use nodestub_corefile::config::{Cache, HttpAddr, Reload, Scheme, ServeStale, ServerBlock, Timeouts};
use nodestub_wire::{MAX_LABELS, Name, rtype};

use crate::admin_tls::Tls;
use crate::chain::Chain;
use crate::error_log::ErrorLog;
use crate::forward::Forwarder;
use crate::local::hosts::HostsTable;
use crate::local::template::Templates;
use crate::metrics::RouteCounters;
use crate::query_log;
use crate::server_tls::Certificates;
use addresses::http_address;
pub use error::CompileError;
pub use workshop::Workshop;

/// Everything that a Corefile says.
#[derive(Debug, Default)]
pub struct Tables {
    /// By the address that a socket is bound to.
    pub listeners: HashMap<SocketAddr, Arc<Zones>>,
    /// All blocks, in the order of the file.
    pub blocks: Vec<Arc<Block>>,
    /// HTTP endpoints.
    pub admin: HashMap<SocketAddr, Endpoints>,
    /// Those of them that are served by HTTPS.
    pub admin_tls: HashMap<SocketAddr, Arc<Tls>>,
    /// `reload` of the first block that has it.
    pub reload: Option<Reload>,
    /// The longest `lameduck`.
    pub lameduck: Duration,
    /// Nothing that this Corefile waits for was missing, once.
    pub was_ready: AtomicBool,
}

/// What is served on one HTTP address.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Endpoints {
    /// `/health`
    pub health: bool,
    /// `/ready`
    pub ready: bool,
    /// What was there once is not looked at again.
    pub ready_once: bool,
    /// `/metrics`
    pub metrics: bool,
    /// All of it by HTTPS.
    pub by_tls: bool,
}

impl std::fmt::Display for Endpoints {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let all = [(self.health, "/health"), (self.ready, "/ready"), (self.metrics, "/metrics")];
        let served: Vec<&str> = all.into_iter().filter(|(served, _)| *served).map(|(_, path)| path).collect();
        f.write_str(&served.join(" "))
    }
}

/// The zones of one listening address.
#[derive(Debug)]
pub struct Zones {
    by_name: HashMap<Box<[u8]>, Arc<Route>>,
    /// Bit `n`: there is a zone of `n` labels.
    label_counts: u128,
    /// Counters for queries of no zone.
    pub dropped: Arc<RouteCounters>,
    /// Some block has `acl`: who asks must be known.
    pub asks_for_client: bool,
    /// Some block has `chaos` or `forward`: classes other than IN are not refused (as in CoreDNS).
    pub serves_other_classes: bool,
    /// `timeouts` of its blocks; the first that says one.
    pub timeouts: Timeouts,
    /// Served over TLS with these; `None`: in the clear.
    pub certificates: Option<Arc<Certificates>>,
}

/// A zone on a listening address.
#[derive(Debug)]
pub struct Route {
    /// The zone.
    pub zone: Name,
    /// Its counters.
    pub counters: Arc<RouteCounters>,
    /// The block that answers.
    pub block: Arc<Block>,
}

/// A server block at work.
#[derive(Debug)]
pub struct Block {
    /// A number that only blocks of the same meaning share; part of the cache's key.
    pub id: u64,
    /// `cache`.
    pub cache: Option<CachePolicy>,
    /// `hosts`.
    pub hosts: Option<Arc<HostsTable>>,
    /// `template`.
    pub templates: Option<Templates>,
    /// Directives around the cache.
    pub chain: Option<Chain>,
    /// `minimal`.
    pub minimal: bool,
    /// `whoami`.
    pub whoami: bool,
    /// `bufsize`: what clients take at most, whatever they say, in bytes.
    pub bufsize: u16,
    /// `forward`.
    pub forwarders: Vec<Arc<Forwarder>>,
    /// `loop`.
    pub detect_loop: bool,
    /// `errors`.
    pub errors: Option<ErrorLog>,
    /// `log`: its rules; empty: nothing is logged.
    pub log: Vec<query_log::Rule>,
    /// The zones of the block.
    pub zones: Vec<Name>,
    /// Names of its directives for `coredns_plugin_enabled`; without `prometheus`, none.
    pub plugins: Vec<&'static str>,
}

/// `cache` of one block.
#[derive(Debug)]
pub struct CachePolicy {
    /// Lifetimes.
    pub limits: Limits,
    /// Most entries: with data, and denials.
    pub capacities: [usize; 2],
    /// `keepttl`.
    pub keep_ttl: bool,
    /// `serve_stale`.
    pub stale: Option<ServeStale>,
    /// `serve_stale_policy prefer_positive`.
    pub prefer_positive: bool,
    /// `prefetch`.
    pub prefetch: Option<Popularity>,
    zones: Vec<Name>,
    disable_success: Vec<Name>,
    disable_denial: Vec<Name>,
}

impl Tables {
    /// Says what `consolidate` has gathered: the end has come.
    pub fn flush_errors(&self) {
        for errors in self.blocks.iter().filter_map(|block| block.errors.as_ref()) {
            errors.flush();
        }
    }

    fn add_admin(&mut self, block: &ServerBlock) {
        if let Some(health) = &block.health {
            self.endpoints(&health.addr).health = true;
            self.lameduck = self.lameduck.max(health.lameduck);
        }
        if let Some(ready) = &block.ready {
            let endpoints = self.endpoints(&ready.addr);
            (endpoints.ready, endpoints.ready_once) = (true, ready.until_ready);
        }
        if let Some(prometheus) = &block.prometheus {
            self.endpoints(&prometheus.addr).metrics = true;
        }
    }

    fn endpoints(&mut self, address: &HttpAddr) -> &mut Endpoints {
        self.admin.entry(http_address(address)).or_default()
    }
}

impl Zones {
    fn new(by_name: HashMap<Box<[u8]>, Arc<Route>>, dropped: Arc<RouteCounters>) -> Self {
        let bit =
            |route: &Arc<Route>| 1_u128.checked_shl(u32::try_from(route.zone.labels().count()).unwrap_or(0));
        let label_counts = by_name.values().filter_map(bit).fold(0, |bits, bit| bits | bit);
        let any = |has: fn(&Block) -> bool| by_name.values().any(|route| has(&route.block));
        let asks_for_client = any(|block| block.chain.as_ref().is_some_and(|chain| chain.acl.is_some()));
        let serves_other_classes = any(|block| {
            !block.forwarders.is_empty() || block.chain.as_ref().is_some_and(|chain| chain.chaos.is_some())
        });
        Self {
            by_name,
            label_counts,
            dropped,
            asks_for_client,
            serves_other_classes,
            timeouts: Timeouts::default(),
            certificates: None,
        }
    }

    /// How clients ask here.
    pub fn scheme(&self) -> Scheme {
        if self.certificates.is_some() { Scheme::Tls } else { Scheme::Dns }
    }

    /// All routes.
    pub fn routes(&self) -> impl Iterator<Item = &Arc<Route>> {
        self.by_name.values()
    }

    /// The route of the longest zone that holds `name` (lower-cased wire form). A DS record belongs to the parent, so
    /// for that type a shorter zone other than the root wins where there is one (as in CoreDNS).
    pub fn find(&self, name: &[u8], qtype: u16) -> Option<&Arc<Route>> {
        let mut starts = [0_u8; MAX_LABELS + 1];
        let mut labels = 0;
        let mut at = 0;
        while let Some(&length) = name.get(at).filter(|length| **length > 0) {
            *starts.get_mut(labels)? = u8::try_from(at).ok()?;
            labels += 1;
            at += 1 + usize::from(length);
        }
        *starts.get_mut(labels)? = u8::try_from(at).ok()?;
        let mut of_child = None;
        for (skipped, start) in starts.iter().enumerate().take(labels + 1) {
            let label_count = labels - skipped;
            if self.label_counts >> label_count & 1 == 0 {
                continue;
            }
            if label_count == 0 && of_child.is_some() {
                break;
            }
            if let Some(route) = self.by_name.get(name.get(usize::from(*start)..)?) {
                if qtype != rtype::DS {
                    return Some(route);
                }
                of_child = Some(route);
            }
        }
        of_child
    }
}

impl CachePolicy {
    fn new(cache: &Cache) -> Self {
        let bounds =
            |class: &nodestub_corefile::config::CacheClass| Bounds { min: class.min_ttl, max: class.max_ttl };
        Self {
            limits: Limits {
                success: bounds(&cache.success),
                denial: bounds(&cache.denial),
                failure_ttl: u32::try_from(cache.servfail.as_secs()).unwrap_or(u32::MAX),
            },
            capacities: [cache.success.capacity, cache.denial.capacity],
            keep_ttl: cache.keep_ttl,
            stale: cache.serve_stale.clone(),
            prefer_positive: cache.prefer_positive,
            prefetch: cache.prefetch.as_ref().map(|prefetch| Popularity {
                amount: u16::try_from(prefetch.amount).unwrap_or(u16::MAX),
                within: u64::try_from(prefetch.within.as_millis()).unwrap_or(u64::MAX),
                percentage: prefetch.percentage,
            }),
            zones: cache.zones.clone(),
            disable_success: cache.disable_success.clone(),
            disable_denial: cache.disable_denial.clone(),
        }
    }

    /// Whether names like this one are kept at all.
    pub fn covers(&self, name: &Name) -> bool {
        self.zones.is_empty() || self.zones.iter().any(|zone| name.is_within(zone))
    }

    /// Whether an answer of this kind to this name is kept.
    pub fn keeps(&self, name: &Name, kind: nodestub_cache::Kind) -> bool {
        let disabled = match kind {
            nodestub_cache::Kind::Success => &self.disable_success,
            nodestub_cache::Kind::Denial => &self.disable_denial,
        };
        self.covers(name) && !disabled.iter().any(|zone| name.is_within(zone))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    fn zones(names: &[&str]) -> Zones {
        let counters = RouteCounters::new("dns://:53".into(), "x".into(), 0);
        let routes = names.iter().map(|zone| {
            let block = Block {
                id: 0,
                cache: None,
                hosts: None,
                templates: None,
                chain: None,
                minimal: false,
                whoami: false,
                bufsize: u16::MAX,
                forwarders: Vec::new(),
                detect_loop: false,
                errors: None,
                log: Vec::new(),
                zones: Vec::new(),
                plugins: Vec::new(),
            };
            let route = Route { zone: name(zone), counters: Arc::clone(&counters), block: Arc::new(block) };
            (name(zone).as_bytes().into(), Arc::new(route))
        });
        Zones::new(routes.collect(), Arc::clone(&counters))
    }

    fn found(zones: &Zones, query: &str, qtype: u16) -> Option<String> {
        zones.find(name(query).as_bytes(), qtype).map(|route| route.zone.to_string())
    }

    #[test]
    fn the_longest_zone_answers() {
        let zones = zones(&[".", "cluster.local", "10.in-addr.arpa"]);
        assert_eq!(found(&zones, "a.svc.cluster.local", 1).unwrap(), "cluster.local.");
        assert_eq!(found(&zones, "cluster.local", 1).unwrap(), "cluster.local.");
        assert_eq!(found(&zones, "xcluster.local", 1).unwrap(), ".");
        assert_eq!(found(&zones, ".", 1).unwrap(), ".");
        assert_eq!(found(&zones, "1.2.3.10.in-addr.arpa", 12).unwrap(), "10.in-addr.arpa.");
    }

    #[test]
    fn a_ds_record_is_asked_of_the_parent() {
        let zones = zones(&["local", "cluster.local"]);
        assert_eq!(found(&zones, "cluster.local", 43).unwrap(), "local.");
        assert_eq!(found(&zones, "local", 43).unwrap(), "local.");
        let zones = self::zones(&[".", "cluster.local"]);
        assert_eq!(found(&zones, "cluster.local", 43).unwrap(), "cluster.local.");
    }

    #[test]
    fn a_name_of_no_zone_finds_nothing() {
        let zones = zones(&["cluster.local"]);
        assert_eq!(found(&zones, "example.com", 1), None);
    }
}
