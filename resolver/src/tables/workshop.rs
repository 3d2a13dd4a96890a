//! From a Corefile to its tables, and what is handed on from one to the next.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Weak};
use std::time::Duration;

use nodestub_corefile::config::tls::ServerTls;
use nodestub_corefile::config::{Config, Forward, Hosts, Scheme, ServerBlock, Timeouts, Upstream};
use nodestub_corefile::nameservers;
use rustls::pki_types::ServerName;

use super::addresses::{http_address, listen_addresses, server_label};
use super::{Block, CachePolicy, CompileError, Route, Tables, Zones};
use crate::admin_tls::Tls;
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

/// Most upstreams of one `forward` (CoreDNS `maxUpstreams`).
pub(super) const MAX_UPSTREAMS: usize = 15;

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
