//! The page of metrics: names, labels and help texts of CoreDNS 1.15.0 where it has them; what is new is `nodestub_*`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::UNIX_EPOCH;

use nodestub_cache::Kind;
use nodestub_corefile::config::Scheme;
use nodestub_dataplane::obstacles::Report;
use nodestub_wire::Rcode;

use super::counters::{
    DROPPED, DURATION_BOUNDS, Lane, Protocol, RCODES, RouteCounters, SIZE_BOUNDS, SLIM_BOUNDS, Source, TYPES,
};
use super::text::{Label, Page};
use super::tls;
use crate::listen::{Shared, overflow};
use crate::local::small::VERSION;
use crate::node::SetupErrors;
use crate::proof::{Finding, State};
use crate::self_check::SelfChecks;
use crate::surroundings::Service;
use crate::tables::Tables;

/// What the page needs besides the running state.
#[derive(Debug, Default)]
pub struct Facts {
    /// Counters of all routes that there ever were.
    pub routes: Vec<Arc<RouteCounters>>,
    /// Reloads that were refused.
    pub failed_reloads: u64,
    /// Of the Corefile in force (CoreDNS gives a SHA-512 of its text; ours is of its meaning).
    pub fingerprint: String,
    /// What went wrong with the address and the rules.
    pub setup_errors: Arc<SetupErrors>,
    /// Whether what becomes of queries while nobody listens was seen to work, address by address.
    pub fail_open: Vec<Finding>,
    /// Whether it was for every address.
    pub fail_open_is_proven: bool,
    /// The Service of `-upstreamsvc`, and how it is known.
    pub service: (String, Service),
    /// Chains of others that would drop our packets.
    pub obstacles: Report,
    /// What `health` found out about itself.
    pub self_checks: Arc<SelfChecks>,
    /// Whether `/ready` says yes.
    pub ready: bool,
    /// How handovers ended, by their label.
    pub handovers: Vec<(&'static str, u64)>,
    /// Whether an older process stands by for this one.
    pub has_stand_by: bool,
}

/// Writes the page.
pub fn render(shared: &Shared, facts: &Facts) -> String {
    let mut page = Page::default();
    let tables = shared.tables.load();
    let mut routes: Vec<&RouteCounters> = facts.routes.iter().map(|route| &**route).collect();
    routes.sort_by_key(|route| (&route.server, &route.zone));
    build_info(&mut page);
    plugins(&mut page, &tables);
    requests(&mut page, &routes);
    sizes_and_durations(&mut page, &routes);
    responses(&mut page, &routes);
    routes.retain(|route| route.zone != DROPPED);
    cache(&mut page, shared, &tables, &routes);
    acl(&mut page, &routes);
    shared.resolver.plugin_counters.write(&mut page);
    forward(&mut page, &tables);
    hosts(&mut page, &tables);
    health(&mut page, &facts.self_checks);
    tls::write(&mut page, shared, &tables);
    process(&mut page, shared, facts);
    page.into_text()
}

const ROUTE: [&str; 3] = ["server", "zone", "view"];

fn labels<'a>(route: &'a RouteCounters, more: &[Label<'a>]) -> Vec<Label<'a>> {
    let [server, zone, view] = ROUTE;
    let mut labels: Vec<Label<'a>> = vec![(server, &route.server), (zone, &route.zone), (view, &"")];
    labels.extend_from_slice(more);
    labels
}

fn build_info(page: &mut Page) {
    let name = "nodestub_build_info";
    page.family(name, "gauge", "A metric with a constant '1' value labeled by version.");
    page.sample(name, &[("version", &env!("CARGO_PKG_VERSION"))], 1);
    let name = "coredns_build_info";
    let help = "A metric with a constant '1' value labeled by version, revision, and goversion from which CoreDNS was built.";
    page.family(name, "gauge", help);
    page.sample(name, &[("version", &VERSION), ("revision", &""), ("goversion", &"")], 1);
}

/// Directives that answer or change a query, of blocks that have `prometheus`.
fn plugins(page: &mut Page, tables: &Tables) {
    let name = "coredns_plugin_enabled";
    let help = "A metric that indicates whether a plugin is enabled on per server and zone basis.";
    page.family(name, "gauge", help);
    let routes = tables.listeners.values().flat_map(|zones| zones.routes());
    // The wildcards of both families are one server.
    let enabled: BTreeSet<(&str, &str, &str)> = routes
        .flat_map(|route| {
            let counters = &route.counters;
            route.block.plugins.iter().map(|plugin| (&*counters.server, &*counters.zone, *plugin))
        })
        .collect();
    for (server, zone, plugin) in enabled {
        page.sample(name, &[("server", &server), ("zone", &zone), ("view", &""), ("name", &plugin)], 1);
    }
}

fn health(page: &mut Page, checks: &SelfChecks) {
    let name = "coredns_health_request_duration_seconds";
    page.family(name, "histogram", "Histogram of the time (in seconds) each request took.");
    let mut counts = [0; SLIM_BOUNDS.len() + 1];
    let nanoseconds = checks.durations.add_to(&mut counts);
    page.histogram(name, &[], &SLIM_BOUNDS, &counts, seconds(nanoseconds));
    let help = "The number of times the health check failed.";
    page.single("coredns_health_request_failures_total", "counter", help, checks.failures.get());
}

fn requests(page: &mut Page, routes: &[&RouteCounters]) {
    let name = "coredns_dns_requests_total";
    page.family(name, "counter", "Counter of DNS requests made per zone, protocol and family.");
    for route in routes {
        for protocol in Protocol::ALL {
            let protocol_label = protocol.label();
            for (family, family_label) in ["1", "2"].iter().enumerate() {
                for place in 0..=TYPES.len() {
                    let count = route.sum(|lane| {
                        let by_family = lane.requests.get(protocol as usize).and_then(|by| by.get(family));
                        by_family.and_then(|by_type| by_type.get(place)).map_or(0, super::Counter::get)
                    });
                    if count > 0 {
                        let type_label = TYPES.get(place).map_or("other", |(_, label)| *label);
                        let more: [Label<'_>; 3] =
                            [("proto", &protocol_label), ("family", family_label), ("type", &type_label)];
                        page.sample(name, &labels(route, &more), count);
                    }
                }
            }
        }
    }
    let name = "coredns_dns_do_requests_total";
    page.family(name, "counter", "Counter of DNS requests with DO bit set per zone.");
    for route in routes {
        page.sample(name, &labels(route, &[]), route.sum(|lane| lane.dnssec_ok.get()));
    }
}

fn sizes_and_durations(page: &mut Page, routes: &[&RouteCounters]) {
    let name = "coredns_dns_request_duration_seconds";
    page.family(name, "histogram", "Histogram of the time (in seconds) each request took per zone.");
    for route in routes {
        let mut counts = [0; DURATION_BOUNDS.len() + 1];
        let nanoseconds: u64 = route.lanes().map(|lane| lane.durations.add_to(&mut counts)).sum();
        page.histogram(name, &labels(route, &[]), &DURATION_BOUNDS, &counts, seconds(nanoseconds));
    }
    let request = "Size of the EDNS0 UDP buffer in bytes (64K for TCP) per zone and protocol.";
    let response = "Size of the returned response in bytes.";
    let request_sizes = |lane: &Lane, protocol: usize, counts: &mut [u64; SIZE_BOUNDS.len() + 1]| {
        lane.request_sizes.get(protocol).map_or(0, |sizes| sizes.add_to(counts))
    };
    let response_sizes = |lane: &Lane, protocol: usize, counts: &mut [u64; SIZE_BOUNDS.len() + 1]| {
        lane.response_sizes.get(protocol).map_or(0, |sizes| sizes.add_to(counts))
    };
    sizes(page, routes, "coredns_dns_request_size_bytes", request, request_sizes);
    sizes(page, routes, "coredns_dns_response_size_bytes", response, response_sizes);
}

fn sizes(
    page: &mut Page,
    routes: &[&RouteCounters],
    name: &str,
    help: &str,
    add: impl Fn(&Lane, usize, &mut [u64; SIZE_BOUNDS.len() + 1]) -> u64,
) {
    page.family(name, "histogram", help);
    for route in routes {
        for protocol in Protocol::ALL {
            let mut counts = [0; SIZE_BOUNDS.len() + 1];
            let bytes: u64 = route.lanes().map(|lane| add(lane, protocol as usize, &mut counts)).sum();
            if counts.iter().any(|count| *count > 0) {
                page.histogram(
                    name,
                    &labels(route, &[("proto", &protocol.label())]),
                    &SIZE_BOUNDS,
                    &counts,
                    float(bytes),
                );
            }
        }
    }
}

fn responses(page: &mut Page, routes: &[&RouteCounters]) {
    let name = "coredns_dns_responses_total";
    page.family(name, "counter", "Counter of response status codes.");
    for route in routes {
        for (source, plugin) in Source::ALL {
            for code in 0..RCODES {
                let count = route.sum(|lane| {
                    let codes = lane.responses.get(source as usize);
                    codes.and_then(|codes| codes.get(code)).map_or(0, super::Counter::get)
                });
                if count > 0 {
                    let rcode = rcode_label(code);
                    page.sample(name, &labels(route, &[("rcode", &rcode), ("plugin", &plugin)]), count);
                }
            }
        }
    }
}

fn cache(page: &mut Page, shared: &Shared, tables: &Tables, routes: &[&RouteCounters]) {
    let cache_labels = |route: &RouteCounters| -> [(&str, String); 3] {
        [("server", route.server.clone()), ("zones", route.zone.clone()), ("view", String::new())]
    };
    let with_type =
        |labels: &[(&'static str, String); 3], kind: Option<&'static str>| -> Vec<(&'static str, String)> {
            let mut all: Vec<_> = labels.iter().take(1).cloned().collect();
            all.extend(kind.map(|kind| ("type", kind.to_owned())));
            all.extend(labels.iter().skip(1).cloned());
            all
        };
    let mut counter =
        |name: &str, help: &str, kinds: &[Option<&'static str>], count: &dyn Fn(&Lane, usize) -> u64| {
            page.family(name, "counter", help);
            for route in routes {
                for (place, kind) in kinds.iter().enumerate() {
                    let owned = with_type(&cache_labels(route), *kind);
                    let borrowed: Vec<Label<'_>> =
                        owned.iter().map(|(label, value)| (*label, value as _)).collect();
                    page.sample(name, &borrowed, route.sum(|lane| count(lane, place)));
                }
            }
        };
    let hits = |lane: &Lane, place: usize| lane.cache_hits.get(place).map_or(0, super::Counter::get);
    let all_hits = |lane: &Lane| hits(lane, 0) + hits(lane, 1);
    let kinds = [Some("success"), Some("denial")];
    counter("coredns_cache_requests_total", "The count of cache requests.", &[None], &|lane, _| {
        all_hits(lane) + lane.cache_misses.get()
    });
    counter("coredns_cache_hits_total", "The count of cache hits.", &kinds, &hits);
    let help = "The count of cache misses. Deprecated, derive misses from cache hits/requests counters.";
    counter("coredns_cache_misses_total", help, &[None], &|lane, _| lane.cache_misses.get());

    let help = "The number of times the cache has prefetched a cached item.";
    counter("coredns_cache_prefetch_total", help, &[None], &|lane, _| lane.prefetched.get());

    let help = "The number of requests served from stale cache entries.";
    counter("coredns_cache_served_stale_total", help, &[None], &|lane, _| lane.stale.get());

    let mut entries = BTreeMap::new();
    for (listener, zones) in &tables.listeners {
        for route in zones.routes() {
            for (kind, label) in [(Kind::Success, "success"), (Kind::Denial, "denial")] {
                let stats = shared.resolver.cache.block_stats(route.block.id, kind);
                entries.insert(
                    (listener, route.counters.zone.clone(), label),
                    (route.counters.server.clone(), stats),
                );
            }
        }
    }
    let mut by_block = |name: &str, kind: &str, help: &str, value: &dyn Fn((usize, u64)) -> u64| {
        page.family(name, kind, help);
        for ((_, zone, label), (server, stats)) in &entries {
            page.sample(
                name,
                &[("server", server), ("type", label), ("zones", zone), ("view", &"")],
                value(*stats),
            );
        }
    };
    by_block("coredns_cache_entries", "gauge", "The number of elements in the cache.", &|(entries, _)| {
        entries as u64
    });
    by_block("coredns_cache_evictions_total", "counter", "The count of cache evictions.", &|(
        _,
        evictions,
    )| evictions);
    let stats = shared.resolver.cache.stats();
    page.single("nodestub_cache_bytes", "gauge", "What all kept answers of all zones weigh.", stats.bytes);
    page.single("nodestub_cache_names", "gauge", "Kept answers of all zones.", stats.entries);
    let help = "Answers not kept because the capacity of their server block was full.";
    page.single("nodestub_cache_refused_total", "counter", help, stats.refused);
}

fn acl(page: &mut Page, routes: &[&RouteCounters]) {
    let name = "coredns_acl_allowed_requests_total";
    page.family(name, "counter", "Counter of DNS requests being allowed.");
    let mut servers: BTreeMap<&str, u64> = BTreeMap::new();
    for route in routes {
        *servers.entry(&route.server).or_default() += route.sum(|lane| lane.acl_allowed.get());
    }
    for (server, count) in servers.into_iter().filter(|(_, count)| *count > 0) {
        page.sample(name, &[("server", &server), ("view", &"")], count);
    }
}

fn forward(page: &mut Page, tables: &Tables) {
    let mut forwarders: Vec<_> = tables.blocks.iter().flat_map(|block| &block.forwarders).collect();
    forwarders.sort_by_key(|forwarder| Arc::as_ptr(forwarder));
    forwarders.dedup_by_key(|forwarder| Arc::as_ptr(forwarder));
    let total =
        |count: &dyn Fn(&crate::forward::Forwarder) -> u64| forwarders.iter().map(|f| count(f)).sum::<u64>();
    let help = "Counter of the number of complete failures of the healthchecks.";
    page.single("coredns_forward_healthcheck_broken_total", "counter", help, total(&|f| f.all_down.get()));
    let help = "Counter of the number of queries rejected because the concurrent queries were at maximum.";
    page.single(
        "coredns_forward_max_concurrent_rejects_total",
        "counter",
        help,
        total(&|f| f.rejected.get()),
    );

    // Several forwarders may have the same server; CoreDNS has one time series for each address.
    let mut upstreams: BTreeMap<String, Vec<_>> = BTreeMap::new();
    for upstream in forwarders.iter().flat_map(|forwarder| &forwarder.upstreams) {
        upstreams.entry(upstream.address.to_string()).or_default().push(upstream);
    }
    let name = "coredns_proxy_request_duration_seconds";
    page.family(name, "histogram", "Histogram of the time each request took.");
    for (to, same) in &upstreams {
        for code in 0..RCODES {
            let mut counts = [0; DURATION_BOUNDS.len() + 1];
            let durations = same.iter().filter_map(|upstream| upstream.durations.get(code));
            let nanoseconds: u64 = durations.map(|durations| durations.add_to(&mut counts)).sum();
            if counts.iter().any(|count| *count > 0) {
                let labels: [Label<'_>; 3] =
                    [("proxy_name", &"forward"), ("to", to), ("rcode", &rcode_label(code))];
                page.histogram(name, &labels, &DURATION_BOUNDS, &counts, seconds(nanoseconds));
            }
        }
    }
    let name = "coredns_proxy_healthcheck_failures_total";
    page.family(name, "counter", "Counter of the number of failed healthchecks.");
    for (to, same) in &upstreams {
        let failed: u64 = same.iter().map(|upstream| upstream.failed_probes.get()).sum();
        page.sample(name, &[("proxy_name", &"forward"), ("to", to)], failed);
    }
    for (place, name, help) in [
        (
            0,
            "coredns_proxy_conn_cache_hits_total",
            "Counter of connection cache hits per upstream and protocol.",
        ),
        (
            1,
            "coredns_proxy_conn_cache_misses_total",
            "Counter of connection cache misses per upstream and protocol.",
        ),
    ] {
        page.family(name, "counter", help);
        for (to, same) in &upstreams {
            let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
            for (protocol, hits, misses) in same.iter().flat_map(|upstream| upstream.connections()) {
                *counts.entry(protocol).or_default() += if place == 0 { hits } else { misses };
            }
            for (protocol, count) in counts {
                page.sample(name, &[("proxy_name", &"forward"), ("to", to), ("proto", &protocol)], count);
            }
        }
    }
    let name = "nodestub_upstream_ignored_replies_total";
    page.family(
        name,
        "counter",
        "Datagrams from an upstream that did not answer what was asked, and were ignored.",
    );
    for (to, same) in &upstreams {
        page.sample(name, &[("to", to)], same.iter().map(|upstream| upstream.ignored_replies()).sum::<u64>());
    }
    for (place, name, help) in [
        (0, "nodestub_upstream_resent_total", "Questions sent again by UDP because nothing came."),
        (
            1,
            "nodestub_upstream_resends_refused_total",
            "Questions not sent again because the upstream had answered too few in time.",
        ),
    ] {
        page.family(name, "counter", help);
        for (to, same) in &upstreams {
            let resent: u64 = same.iter().filter_map(|upstream| upstream.resent().get(place).copied()).sum();
            page.sample(name, &[("to", to)], resent);
        }
    }
    let name = "nodestub_upstream_stalled_connections_total";
    page.family(name, "counter", "TCP connections to an upstream that fell silent and were replaced.");
    for (to, same) in &upstreams {
        let stalled: u64 = same.iter().map(|upstream| upstream.stalled_connections()).sum();
        page.sample(name, &[("to", to)], stalled);
    }
    let name = "nodestub_upstream_smoothed_seconds";
    page.family(name, "gauge", "How long an upstream usually takes to answer.");
    for (to, same) in &upstreams {
        if let Some(smoothed) = same.iter().filter_map(|upstream| upstream.smoothed_rtt()).max() {
            page.sample(name, &[("to", to)], smoothed.as_secs_f64());
        }
    }
    let help =
        "Questions that a second upstream was asked too, because the first was silent for longer than usual.";
    page.single("nodestub_hedges_total", "counter", help, total(&|f| f.hedges()[0]));
    let help = "Questions that would have been hedged, had there been a budget left.";
    page.single("nodestub_hedges_refused_total", "counter", help, total(&|f| f.hedges()[1]));
    let name = "nodestub_upstream_looped";
    page.family(name, "gauge", "1 where an upstream sends our queries back to us and is not asked.");
    for (to, same) in &upstreams {
        page.sample(name, &[("to", to)], u8::from(same.iter().any(|upstream| upstream.is_looped())));
    }
}

fn hosts(page: &mut Page, tables: &Tables) {
    let tables: Vec<_> = tables.blocks.iter().filter_map(|block| block.hosts.as_ref()).collect();
    let name = "coredns_hosts_entries";
    page.family(name, "gauge", "The combined number of entries in hosts and Corefile.");
    let mut by_file: BTreeMap<String, usize> = BTreeMap::new();
    for table in &tables {
        let file = table.file().map(|file| file.display().to_string()).unwrap_or_default();
        *by_file.entry(file).or_default() += table.stats().0;
    }
    for (file, entries) in by_file {
        page.sample(name, &[("hostsfile", &file)], entries);
    }
    let read_at = tables.iter().filter_map(|table| table.stats().1?.duration_since(UNIX_EPOCH).ok()).max();
    if let Some(read_at) = read_at {
        let help = "The timestamp of the last reload of hosts file.";
        page.single("coredns_hosts_reload_timestamp_seconds", "gauge", help, read_at.as_secs_f64());
    }
    let failed: u64 = tables.iter().map(|table| table.failed_reads.get()).sum();
    page.single(
        "nodestub_hosts_failed_reads_total",
        "counter",
        "Attempts to read a hosts file that failed.",
        failed,
    );
}

fn process(page: &mut Page, shared: &Shared, facts: &Facts) {
    let drops = &shared.drops;
    page.single(
        "coredns_panics_total",
        "counter",
        "A metrics that counts the number of panics.",
        shared.resolver.panics.get(),
    );
    page.single(
        "coredns_reload_failed_total",
        "counter",
        "Counter of the number of failed reload attempts.",
        facts.failed_reloads,
    );
    let name = "coredns_reload_version_info";
    page.family(
        name,
        "gauge",
        "A metric with a constant '1' value labeled by hash, and value which type of hash generated.",
    );
    page.sample(name, &[("hash", &"siphash"), ("value", &facts.fingerprint)], 1);
    let name = "coredns_nodecache_setup_errors_total";
    page.family(name, "counter", "The number of errors during periodic network setup for node-cache.");
    let SetupErrors { interface_add, interface_check, iptables, configmap } = &*facts.setup_errors;
    for (kind, count) in [
        ("configmap", configmap),
        ("interface_add", interface_add),
        ("interface_check", interface_check),
        ("iptables", iptables),
    ] {
        page.sample(name, &[("errortype", &kind)], count.get());
    }
    fail_open(page, facts);
    let name = "nodestub_upstream_service";
    let help = "1 for how the Service of -upstreamsvc is known: found, stand_in (the cluster DNS in its place) or unknown.";
    page.family(name, "gauge", help);
    let (service, is) = &facts.service;
    for one in Service::ALL {
        page.sample(name, &[("name", service), ("state", &one.label())], u8::from(one == *is));
    }
    obstacles(page, &facts.obstacles);
    let help = "1 while queries are answered and no upstream loops.";
    page.single("nodestub_ready", "gauge", help, u8::from(facts.ready));
    let name = "nodestub_handover_total";
    page.family(name, "counter", "Handovers between processes, by how they ended for this one.");
    for (result, count) in &facts.handovers {
        page.sample(name, &[("result", result)], count);
    }
    let help = "1 while an older process stands by to serve again should this one die.";
    page.single("nodestub_standby", "gauge", help, u8::from(facts.has_stand_by));
    let help = "Queries that needed an upstream and were dropped because too many were waiting.";
    page.single("nodestub_misses_dropped_total", "counter", help, drops.misses.get());
    let help = "Queries that wait for an upstream, now.";
    page.single("nodestub_misses_under_way", "gauge", help, shared.misses_under_way());
    let help = "Queries that waited for the answer to the same question of another client.";
    page.single("nodestub_coalesced_total", "counter", help, shared.resolver.coalescer.joined.get());
    let help = "Answers that were not asked for again before their end because too many were.";
    page.single(
        "nodestub_prefetches_refused_total",
        "counter",
        help,
        shared.resolver.prefetches.refused.get(),
    );
    let help = "Different questions that upstreams are being asked, now.";
    page.single("nodestub_questions_under_way", "gauge", help, shared.resolver.coalescer.len());
    let help = "Replies that the kernel refused to send.";
    page.single("nodestub_replies_refused_total", "counter", help, drops.replies.get());
    let help = "TCP connections closed at once because there were too many.";
    let clients = &shared.clients;
    page.single("nodestub_tcp_rejected_total", "counter", help, clients.rejected_connections.get());
    let help = "TCP connections closed at once because their client had too many.";
    page.single("nodestub_tcp_greedy_total", "counter", help, clients.greedy_connections.get());
    let help = "TCP connections closed because their client was silent for too long, or did not read.";
    page.single("nodestub_tcp_timed_out_total", "counter", help, clients.timed_out.get());
    let help = "Queries refused because too many of their client waited for an upstream.";
    page.single("nodestub_misses_refused_total", "counter", help, clients.refused_misses.get());
    let help = "UDP queries that the kernel dropped because a socket's queue was full.";
    let tables = shared.tables.load();
    let by_udp = tables.listeners.iter().filter(|(_, zones)| zones.scheme() == Scheme::Dns);
    let addresses: Vec<_> = by_udp.map(|(address, _)| *address).collect();
    page.single("nodestub_udp_overflows_total", "counter", help, overflow::dropped(&addresses));
    let help = "TCP connections of clients, those by TLS included, now.";
    page.single("nodestub_tcp_connections", "gauge", help, shared.open_connections.load(Relaxed));
    let help = "Lines of the query log dropped because the writer was behind.";
    page.single("nodestub_log_dropped_total", "counter", help, shared.resolver.query_log.dropped.get());
}

fn fail_open(page: &mut Page, facts: &Facts) {
    let name = "nodestub_fail_open";
    let help = "1 for what is known about queries to the address while nobody listens: works (the last query of our own was \
                answered from where they go), broken (it was not), untried, unknown (it cannot be tried here), off.";
    page.family(name, "gauge", help);
    for finding in &facts.fail_open {
        let to = finding.target();
        for state in State::LABELS {
            let is = u8::from(finding.state.label() == state);
            page.sample(name, &[("address", &finding.address), ("to", &to), ("state", &state)], is);
        }
    }
    let name = "nodestub_fail_open_tries_total";
    page.family(name, "counter", "Queries of our own that tried it, by result.");
    for finding in &facts.fail_open {
        for (result, count) in Finding::RESULTS.iter().zip(finding.tries) {
            page.sample(name, &[("address", &finding.address), ("result", result)], count);
        }
    }
    let name = "nodestub_fail_open_answered_timestamp_seconds";
    page.family(name, "gauge", "When one of them was answered last.");
    for finding in &facts.fail_open {
        if let Some(answered) = finding.answered.and_then(|at| at.duration_since(UNIX_EPOCH).ok()) {
            page.sample(name, &[("address", &finding.address)], answered.as_secs());
        }
    }
    let help = "1 while it was last seen to work for every address of this node.";
    page.single("nodestub_fail_open_proven", "gauge", help, u8::from(facts.fail_open_is_proven));
}

/// Bounded by the dataplane's `MAX_FINDINGS`; the rest is one sample without names.
fn obstacles(page: &mut Page, report: &Report) {
    let name = "nodestub_node_obstacles";
    page.family(name, "gauge", "Chains of others that drop DNS of this node for certain, or may.");
    let sure = |certain: bool| if certain { "yes" } else { "no" };
    for finding in &report.findings {
        let (table, chain) = (finding.table_name(), &finding.chain);
        page.sample(name, &[("table", &table), ("chain", chain), ("certain", &sure(finding.is_certain))], 1);
    }
    page.sample(name, &[("table", &""), ("chain", &""), ("certain", &"no")], report.more);
    let help = "What could not be looked at for such chains; the log says what.";
    page.single("nodestub_node_obstacles_unseen", "gauge", help, report.unseen.len());
}

fn rcode_label(code: usize) -> String {
    match u16::try_from(code) {
        Ok(code) if usize::from(code) < RCODES - 1 => Rcode(code).to_string(),
        _ => "other".to_owned(),
    }
}

fn seconds(nanoseconds: u64) -> f64 {
    float(nanoseconds) / 1e9
}

#[expect(clippy::cast_precision_loss, reason = "a sum in a metric; 53 bits are months of nanoseconds")]
fn float(number: u64) -> f64 {
    number as f64
}
