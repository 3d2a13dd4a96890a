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

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Weak};
use std::time::Duration;

use nodestub_cache::{Bounds, Limits, Popularity};
use nodestub_corefile::config::tls::ServerTls;
use nodestub_corefile::config::{
    Cache, Config, Forward, Hosts, HttpAddr, Reload, Scheme, ServeStale, ServerBlock, Timeouts, Upstream,
};
use nodestub_corefile::nameservers;
use nodestub_wire::{MAX_LABELS, Name, rtype};
use rustls::pki_types::ServerName;

use crate::admin_tls::{self, Tls};
use crate::chain::Chain;
use crate::error_log::ErrorLog;
use crate::forward::{Forwarder, Material, Server};
use crate::host_names::HostNames;
use crate::local::hosts::HostsTable;
use crate::local::template::Templates;
use crate::metrics::{DROPPED, RouteCounters};
use crate::pem::TlsError;
use crate::query_log;
use crate::server_tls::Certificates;
use addresses::{http_address, listen_addresses, server_label};

/// Most upstreams of one `forward` (CoreDNS `maxUpstreams`).
const MAX_UPSTREAMS: usize = 15;

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

/// Why a Corefile that reads well cannot be served.
#[derive(Debug)]
pub enum CompileError {
    /// `bind` names a device that does not exist or has no address.
    Device(String),
    /// `except` takes away all that `bind` names.
    NothingToBind,
    /// The machine's addresses cannot be listed.
    Addresses(std::io::Error),
    /// A file with upstreams cannot be read.
    ResolvConf(PathBuf, std::io::Error),
    /// An upstream's host name is not found: of which `forward`, which, and why.
    Host(Name, String, String),
    /// A `forward` has no upstream once its files are read.
    NoUpstream(Name),
    /// Upstreams over TLS cannot be asked.
    Tls(Name, TlsError),
    /// Metrics cannot be served by HTTPS.
    MetricsTls(admin_tls::TlsError),
    /// A `forward` has too many.
    TooManyUpstreams(Name, usize),
    /// Clients over TLS cannot be served.
    ServerTls(TlsError),
    /// Two blocks serve the same zone on the same address.
    Conflict(Name, SocketAddr),
    /// Two blocks serve an address in different manners: one in the clear, or with other certificates.
    Manners(SocketAddr),
}

/// A forwarder that may still be in use, and all that it was made from.
#[derive(Debug)]
struct KnownForwarder {
    config: Forward,
    servers: Vec<Server>,
    material: Option<Material>,
    forwarder: Weak<Forwarder>,
}

/// What is handed on from one Corefile to the next.
#[derive(Debug)]
pub struct Workshop {
    workers: usize,
    metrics_address: Option<SocketAddr>,
    counters: HashMap<(String, String), Arc<RouteCounters>>,
    forwarders: Vec<KnownForwarder>,
    hosts: Vec<(Hosts, Weak<HostsTable>)>,
    admin_tls: Vec<Weak<Tls>>,
    certificates: Vec<Weak<Certificates>>,
}

impl Workshop {
    /// For so many worker threads on the fast side.
    pub fn new(workers: usize) -> Self {
        Self {
            workers,
            metrics_address: None,
            counters: HashMap::new(),
            forwarders: Vec::new(),
            hosts: Vec::new(),
            admin_tls: Vec::new(),
            certificates: Vec::new(),
        }
    }

    /// Serves `/metrics` on this address as well, whatever the Corefile says.
    #[must_use]
    pub fn with_metrics(self, address: Option<SocketAddr>) -> Self {
        Self { metrics_address: address, ..self }
    }

    /// Compiles a Corefile whose host names are known. Nothing is bound and nothing running is touched.
    ///
    /// # Errors
    /// What the file refers to is not there.
    pub fn compile(&mut self, config: &Config, names: &HostNames) -> Result<Tables, CompileError> {
        let mut routes: HashMap<SocketAddr, HashMap<Box<[u8]>, Arc<Route>>> = HashMap::new();
        let mut timeouts: HashMap<SocketAddr, Timeouts> = HashMap::new();
        let mut manners: HashMap<SocketAddr, Option<Arc<Certificates>>> = HashMap::new();
        let mut tables = Tables {
            listeners: HashMap::new(),
            blocks: Vec::new(),
            admin: HashMap::new(),
            admin_tls: HashMap::new(),
            reload: config.blocks.iter().find_map(|block| block.reload.clone()),
            lameduck: Duration::ZERO,
            was_ready: AtomicBool::new(false),
        };
        for server_block in &config.blocks {
            let block = Arc::new(self.compile_block(server_block, names)?);
            let addresses = listen_addresses(&server_block.bind)?;
            let certificates = server_block.tls.as_ref().map(|tls| self.certificates(tls)).transpose()?;
            for key in &server_block.zones {
                for address in &addresses {
                    let listener = SocketAddr::new(*address, key.port);
                    let manner = certificates.clone().filter(|_| key.scheme == Scheme::Tls);
                    // The same files are the same certificates.
                    let same = |other: &Option<Arc<Certificates>>| match (other, &manner) {
                        (None, None) => true,
                        (Some(other), Some(ours)) => Arc::ptr_eq(other, ours),
                        _ => false,
                    };
                    if !same(manners.entry(listener).or_insert_with(|| manner.clone())) {
                        return Err(CompileError::Manners(listener));
                    }
                    merge(timeouts.entry(listener).or_default(), server_block.timeouts);
                    let server = server_label(key.scheme, listener);
                    let counters = self.counters(&server, &key.zone.to_string());
                    let route = Route { zone: key.zone.clone(), counters, block: Arc::clone(&block) };
                    let zones = routes.entry(listener).or_default();
                    if zones.insert(key.zone.as_bytes().into(), Arc::new(route)).is_some() {
                        return Err(CompileError::Conflict(key.zone.clone(), listener));
                    }
                }
            }
            tables.add_admin(server_block);
            if let Some((address, tls)) = self.admin_tls(server_block)? {
                tables.admin.entry(address).or_default().by_tls = true;
                tables.admin_tls.entry(address).or_insert(tls);
            }
            tables.blocks.push(block);
        }
        if let Some(address) = self.metrics_address {
            tables.admin.entry(address).or_default().metrics = true;
        }
        for (listener, by_name) in routes {
            let certificates = manners.remove(&listener).flatten();
            let scheme = if certificates.is_some() { Scheme::Tls } else { Scheme::Dns };
            let dropped = self.counters(&server_label(scheme, listener), DROPPED);
            tables.listeners.insert(
                listener,
                Arc::new(Zones {
                    timeouts: timeouts.remove(&listener).unwrap_or_default(),
                    certificates,
                    ..Zones::new(by_name, dropped)
                }),
            );
        }
        Ok(tables)
    }

    /// All counters that there ever were.
    pub fn all_counters(&self) -> Vec<Arc<RouteCounters>> {
        self.counters.values().cloned().collect()
    }

    fn compile_block(&mut self, block: &ServerBlock, names: &HostNames) -> Result<Block, CompileError> {
        let mut upstreams = Vec::new();
        for forward in &block.forward {
            upstreams.push(read_upstreams(forward, names)?);
        }
        let mut meaning = DefaultHasher::new();
        (&block.zones, &block.bind, &block.cache, &block.hosts, &block.forward, &upstreams)
            .hash(&mut meaning);
        // What changes what is kept, or how it is packed. What is done around the cache alone does not.
        (&block.template, block.minimal, block.whoami, block.load_balance.is_some(), &block.rewrite)
            .hash(&mut meaning);
        let mut forwarders = Vec::with_capacity(block.forward.len());
        for (config, to) in block.forward.iter().zip(&upstreams) {
            forwarders.push(self.forwarder(config, to)?);
        }
        Ok(Block {
            id: meaning.finish(),
            templates: (!block.template.is_empty()).then(|| Templates::new(&block.template)),
            chain: Chain::new(block),
            minimal: block.minimal,
            whoami: block.whoami,
            bufsize: block.bufsize.unwrap_or(u16::MAX),
            forwarders,
            cache: block.cache.as_ref().map(CachePolicy::new),
            hosts: block.hosts.as_ref().map(|config| self.hosts(config)),
            detect_loop: block.detect_loop,
            errors: block.errors.as_ref().map(ErrorLog::new),
            log: block.log.iter().map(query_log::Rule::new).collect(),
            zones: block.zones.iter().map(|key| key.zone.clone()).collect(),
            plugins: block.prometheus.as_ref().map(|_| block.plugins()).unwrap_or_default(),
        })
    }

    fn counters(&mut self, server: &str, zone: &str) -> Arc<RouteCounters> {
        let key = (server.to_owned(), zone.to_owned());
        let workers = self.workers;
        let new = || RouteCounters::new(server.to_owned(), zone.to_owned(), workers);
        Arc::clone(self.counters.entry(key).or_insert_with(new))
    }

    fn forwarder(&mut self, config: &Forward, to: &[Server]) -> Result<Arc<Forwarder>, CompileError> {
        let refused = |error| CompileError::Tls(config.from.clone(), error);
        let by_tls = to.iter().any(|server| server.by_tls.is_some());
        let material = by_tls.then(|| Material::read(&config.tls)).transpose().map_err(refused)?;
        self.forwarders.retain(|known| known.forwarder.strong_count() > 0);
        let mut known = self.forwarders.iter();
        let same =
            known.find(|known| known.config == *config && known.servers == to && known.material == material);
        if let Some(forwarder) = same.and_then(|known| known.forwarder.upgrade()) {
            return Ok(forwarder);
        }
        let tls = material.as_ref().map(Material::configure).transpose().map_err(refused)?;
        let forwarder = Arc::new(Forwarder::new(config, to, tls.as_ref()));
        self.forwarders.push(KnownForwarder {
            config: config.clone(),
            servers: to.to_vec(),
            material,
            forwarder: Arc::downgrade(&forwarder),
        });
        Ok(forwarder)
    }

    /// `tls` of `prometheus`; that of a file is one for all blocks, and follows the file by itself.
    fn admin_tls(&mut self, block: &ServerBlock) -> Result<Option<(SocketAddr, Arc<Tls>)>, CompileError> {
        let Some(prometheus) = &block.prometheus else { return Ok(None) };
        let Some(file) = &prometheus.tls else { return Ok(None) };
        self.admin_tls.retain(|tls| tls.strong_count() > 0);
        let known = self.admin_tls.iter().filter_map(Weak::upgrade).find(|tls| tls.file() == Some(file));
        let tls = match known {
            Some(tls) => tls,
            None => {
                let Some(tls) = Tls::of_file(file).map_err(CompileError::MetricsTls)? else {
                    return Ok(None);
                };
                self.admin_tls.push(Arc::downgrade(&tls));
                tls
            }
        };
        Ok(Some((http_address(&prometheus.addr), tls)))
    }

    fn certificates(&mut self, tls: &ServerTls) -> Result<Arc<Certificates>, CompileError> {
        self.certificates.retain(|known| known.strong_count() > 0);
        let mut known = self.certificates.iter().filter_map(Weak::upgrade);
        if let Some(certificates) = known.find(|known| known.files() == tls) {
            // What has become of the files is no reason to refuse a Corefile that names the same ones.
            certificates.refresh();
            return Ok(certificates);
        }
        let certificates = Certificates::read(tls).map_err(CompileError::ServerTls)?;
        certificates.keep_fresh();
        self.certificates.push(Arc::downgrade(&certificates));
        Ok(certificates)
    }

    fn hosts(&mut self, config: &Hosts) -> Arc<HostsTable> {
        self.hosts.retain(|(_, table)| table.strong_count() > 0);
        let known = self.hosts.iter().find(|(other, _)| other == config);
        if let Some(table) = known.and_then(|(_, table)| table.upgrade()) {
            return table;
        }
        let table = Arc::new(HostsTable::new(config));
        if let Some(interval) = table.interval() {
            keep_fresh(&table, interval);
        }
        self.hosts.push((config.clone(), Arc::downgrade(&table)));
        table
    }
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

/// What one block says about connections, and another has not said before.
fn merge(timeouts: &mut Timeouts, more: Timeouts) {
    timeouts.read = timeouts.read.or(more.read);
    timeouts.write = timeouts.write.or(more.write);
    timeouts.idle = timeouts.idle.or(more.idle);
    timeouts.max_queries = timeouts.max_queries.or(more.max_queries);
}

fn read_upstreams(forward: &Forward, names: &HostNames) -> Result<Vec<Server>, CompileError> {
    // Without a name of its own, a server's certificate must be for its address, as in CoreDNS.
    let certified =
        |own: &Option<String>, address: SocketAddr| match own.as_ref().or(forward.tls_server_name.as_ref()) {
            Some(name) => ServerName::try_from(name.clone())
                .map_err(|_| CompileError::Tls(forward.from.clone(), TlsError::Name(name.clone()))),
            None => Ok(ServerName::from(address.ip())),
        };
    let mut servers = Vec::new();
    for upstream in &forward.to {
        match upstream {
            Upstream::Addr(address) => servers.push(Server::plain(*address)),
            Upstream::Tls { address, server_name } => {
                let name = certified(server_name, *address)?;
                servers.push(Server { address: *address, by_tls: Some(name) });
            }
            Upstream::Host { host, port, by_tls, server_name } => {
                let key = (host.clone(), forward.resolvers.clone());
                for ip in names.get(&key).into_iter().flatten() {
                    let address = SocketAddr::new(*ip, *port);
                    let by_tls = by_tls.then(|| certified(server_name, address)).transpose()?;
                    let server = Server { address, by_tls };
                    if !servers.contains(&server) {
                        servers.push(server);
                    }
                }
            }
            Upstream::ResolvConf(file) => {
                let text = std::fs::read_to_string(file)
                    .map_err(|cause| CompileError::ResolvConf(file.clone(), cause))?;
                servers.extend(nameservers(&text).into_iter().map(Server::plain));
            }
            Upstream::UnknownClusterDns => {}
        }
    }
    match servers.len() {
        0 if forward.to.contains(&Upstream::UnknownClusterDns) => Ok(servers),
        0 => Err(CompileError::NoUpstream(forward.from.clone())),
        1..=MAX_UPSTREAMS => Ok(servers),
        number => Err(CompileError::TooManyUpstreams(forward.from.clone(), number)),
    }
}

/// Looks at the file of a hosts table every so often, for as long as the table is in use.
fn keep_fresh(table: &Arc<HostsTable>, interval: Duration) {
    let table = Arc::downgrade(table);
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(interval).await;
            let Some(table) = table.upgrade() else { return };
            // Reading may block; it is off the threads that answer.
            if tokio::task::spawn_blocking(move || table.refresh()).await.is_err() {
                return;
            }
        }
    });
}

impl std::fmt::Display for CompileError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Device(device) => write!(
                f,
                "bind: there is no network device {device:?}, or it has no address; name another one or an address"
            ),
            Self::NothingToBind => f.write_str(
                "bind: `except` leaves no address to listen on; take a device or an address out of it",
            ),
            Self::Addresses(cause) => write!(f, "bind: cannot list the machine's addresses: {cause}"),
            Self::ResolvConf(file, cause) => write!(f, "forward: cannot read {}: {cause}", file.display()),
            Self::Tls(from, error) => write!(f, "forward {from}: tls: {error}"),
            Self::MetricsTls(error) => write!(f, "prometheus: tls: {error}"),
            Self::Host(from, host, reason) => {
                write!(
                    f,
                    "forward {from}: cannot find the address of {host:?}: {reason}; name the server by its IP address"
                )
            }
            Self::ServerTls(error) => write!(f, "tls: {error}"),
            Self::NoUpstream(from) => {
                write!(f, "forward {from}: no nameserver is left once its files are read; name one")
            }
            Self::TooManyUpstreams(from, number) => {
                write!(f, "forward {from}: {number} upstreams; at most {MAX_UPSTREAMS} are allowed")
            }
            Self::Conflict(zone, listener) => {
                write!(f, "zone {zone} is served on {listener} by two server blocks; keep one")
            }
            Self::Manners(listener) => write!(
                f,
                "{listener} is served by two server blocks in different manners: give it one `tls`, or none"
            ),
        }
    }
}

impl std::error::Error for CompileError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Addresses(cause) | Self::ResolvConf(_, cause) => Some(cause),
            Self::Tls(_, error) | Self::ServerTls(error) => Some(error),
            Self::MetricsTls(error) => Some(error),
            _ => None,
        }
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
