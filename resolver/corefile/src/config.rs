//! What a Corefile means: plain types, no text.
//!
//! Everything is checked when it gets here: a value out of bounds, or a directive that is not supported, never
//! becomes a [`Config`]. Bounds and defaults stand beside each field, with CoreDNS 1.15.0 as their source where
//! nothing else is said. Two equal blocks serve the same answers: the daemon keeps cached answers over a reload for
//! every block whose value did not change.

pub mod answering;
pub mod logging;
pub mod rewriting;
pub mod tls;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use nodestub_wire::Name;

use answering::{Acl, AutoPath, Chaos, Dns64, LoadBalance, Local, Template};
use logging::{Errors, LogRule};
use rewriting::RewriteRule;
use tls::{ForwardTls, ServerTls};

/// A whole Corefile, in the order of the file.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Config {
    /// The server blocks; never empty.
    pub blocks: Vec<ServerBlock>,
}

/// `ZONE[:PORT]... { DIRECTIVE... }`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ServerBlock {
    /// The zones that the block answers, with their ports; never empty, no zone and port twice in one block.
    pub zones: Vec<ZoneKey>,
    /// `bind`: where to listen, all words of all of them; empty means every address of the machine.
    pub bind: Vec<Bind>,
    /// `errors`: log what goes wrong with a query.
    pub errors: Option<Errors>,
    /// `log`: log queries; in the order of the file.
    pub log: Vec<LogRule>,
    /// `cache`: keep answers.
    pub cache: Option<Cache>,
    /// `hosts`: answers of our own.
    pub hosts: Option<Hosts>,
    /// `rewrite`: the rules in the order of the file.
    pub rewrite: Vec<RewriteRule>,
    /// `acl`: in the order of the file.
    pub acl: Vec<Acl>,
    /// `autopath`: searches are done here.
    pub autopath: Option<AutoPath>,
    /// `template`: in the order of the file.
    pub template: Vec<Template>,
    /// `loadbalance`: the order of addresses in answers changes.
    pub load_balance: Option<LoadBalance>,
    /// `dns64`: addresses for clients that speak IPv6 alone.
    pub dns64: Option<Dns64>,
    /// `local`: names of this machine itself.
    pub local: Option<Local>,
    /// `chaos`: questions of class CH.
    pub chaos: Option<Chaos>,
    /// `nsid`: who we are (RFC 5001); inside, `None`: the machine's name.
    pub nsid: Option<Option<String>>,
    /// `bufsize`: the largest UDP payload, in bytes, that clients are believed to take. 512 to 4096.
    pub bufsize: Option<u16>,
    /// `any`: questions of type ANY get one HINFO record (RFC 8482).
    pub any: bool,
    /// `minimal`: answers without authority and additional records.
    pub minimal: bool,
    /// `whoami`: the client's own address and port.
    pub whoami: bool,
    /// `loop`: find out whether queries come back to us.
    pub detect_loop: bool,
    /// `forward`: whom to ask. Several, in the order of the file; the first whose `from` holds the name and whose
    /// `except` does not is used.
    pub forward: Vec<Forward>,
    /// `health`: an HTTP endpoint that says that the process lives.
    pub health: Option<Health>,
    /// `ready`: an HTTP endpoint that says that names are answered. Default `:8181`.
    pub ready: Option<Ready>,
    /// `prometheus`: an HTTP endpoint with metrics.
    pub prometheus: Option<Prometheus>,
    /// `timeouts`: of connections of clients.
    pub timeouts: Timeouts,
    /// `tls`: how the `tls://` zones of the block are served. There where the block has such a zone.
    pub tls: Option<ServerTls>,
    /// `reload`: look for changes of the file.
    pub reload: Option<Reload>,
}

impl ServerBlock {
    /// The directives that it has, of those that are asked about each query; in CoreDNS's order.
    pub fn plugins(&self) -> Vec<&'static str> {
        let all = [
            (self.nsid.is_some(), "nsid"),
            (self.bufsize.is_some(), "bufsize"),
            (self.prometheus.is_some(), "prometheus"),
            (self.errors.is_some(), "errors"),
            (!self.log.is_empty(), "log"),
            (self.local.is_some(), "local"),
            (self.dns64.is_some(), "dns64"),
            (self.any, "any"),
            (self.chaos.is_some(), "chaos"),
            (self.load_balance.is_some(), "loadbalance"),
            (!self.rewrite.is_empty(), "rewrite"),
            (self.autopath.is_some(), "autopath"),
            (!self.acl.is_empty(), "acl"),
            (self.cache.is_some(), "cache"),
            (self.minimal, "minimal"),
            (!self.template.is_empty(), "template"),
            (self.hosts.is_some(), "hosts"),
            (self.detect_loop, "loop"),
            (!self.forward.is_empty(), "forward"),
            (self.whoami, "whoami"),
        ];
        all.into_iter().filter(|(has, _)| *has).map(|(_, name)| name).collect()
    }
}

/// A zone, and how and on which port it is served.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ZoneKey {
    /// How clients ask. Default [`Scheme::Dns`].
    pub scheme: Scheme,
    /// The zone; the root for `.`.
    pub zone: Name,
    /// Default 53, or what `-dns.port` says; for [`Scheme::Tls`] 853.
    pub port: u16,
}

/// How clients ask at a port: what stands before `://`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// `dns://`: UDP and TCP.
    Dns,
    /// `tls://`: TLS over TCP (RFC 7858), and no UDP.
    Tls,
}

impl std::fmt::Display for Scheme {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Dns => "dns",
            Self::Tls => "tls",
        })
    }
}

/// One word of `bind`, and what its directive takes away.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Bind {
    /// Where to listen.
    pub target: BindTarget,
    /// `except`: not there, though the target has it. Empty where the parser could take the exceptions away itself.
    pub except: Vec<BindTarget>,
}

/// An address, or a device that has some.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum BindTarget {
    /// An address.
    Addr(IpAddr),
    /// All addresses that a network device has when the file is loaded.
    Device(String),
}

/// `[HOST]:PORT` of an HTTP endpoint; no host means every address.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HttpAddr {
    /// `None`: every address, both families.
    pub host: Option<IpAddr>,
    /// The TCP port.
    pub port: u16,
}

/// `cache [TTL] [ZONES...] { ... }`. TTLs in seconds.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Cache {
    /// Only names in these zones are kept; empty means all of the block's.
    pub zones: Vec<Name>,
    /// Answers that exist. Defaults: 9984 entries, TTL 5 to 3600.
    pub success: CacheClass,
    /// NXDOMAIN and NODATA. Defaults: 9984 entries, TTL 5 to 1800.
    pub denial: CacheClass,
    /// How long a SERVFAIL is kept. Default 5 s, 0 is off, at most 5 min.
    pub servfail: Duration,
    /// `keepttl`: give the original TTL, not what is left of it.
    pub keep_ttl: bool,
    /// `disable success [ZONES...]`: zones whose answers are not kept.
    pub disable_success: Vec<Name>,
    /// `disable denial [ZONES...]`: zones whose denials are not kept.
    pub disable_denial: Vec<Name>,
    /// `serve_stale`: what has expired is given when nothing better is to be had (RFC 8767). Default `None`.
    pub serve_stale: Option<ServeStale>,
    /// `serve_stale_policy prefer_positive`: an answer with data stays in its place for as long as it may be served,
    /// whatever but another one comes. Default no.
    pub prefer_positive: bool,
    /// `prefetch`: what is asked often is asked for again before it ends. Default `None`.
    pub prefetch: Option<Prefetch>,
}

/// `prefetch AMOUNT [DURATION [PERCENTAGE%]]`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Prefetch {
    /// Hits from which on; at least 1.
    pub amount: u32,
    /// The longest time between two hits. Default 1 min.
    pub within: Duration,
    /// The last part of the TTL in which it is done, in percent. Default 10; 10 to 90.
    pub percentage: u8,
}

/// `serve_stale [DURATION] [immediate [TTL [RECHECK]] | verify [TIMEOUT [TTL [RECHECK]]]]`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ServeStale {
    /// How long after its end an answer may be given. Default 1 h.
    pub up_to: Duration,
    /// The upstream is asked first; `None`: the client gets what is there, and the upstream is asked meanwhile (default).
    /// Inside: how long the client waits for it; 0: as long as it takes.
    pub verify: Option<Duration>,
    /// The TTL that is given, in seconds. Default 0.
    pub ttl: u32,
    /// How long after a failed try none is made. Default 0; at most 5 min.
    pub recheck: Duration,
}

/// `timeouts { read DURATION; write DURATION; idle DURATION; maxtcpqueries NUMBER }`: of connections of clients.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Timeouts {
    /// Until the first query is there. Default 3 s.
    pub read: Option<Duration>,
    /// Until a reply is sent. Default 5 s.
    pub write: Option<Duration>,
    /// Between queries. Default 10 s.
    pub idle: Option<Duration>,
    /// Queries of one connection. Default and `-1`: no limit.
    pub max_queries: Option<u32>,
}

/// Bounds of one class of cached answers.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CacheClass {
    /// Most entries. At least 1024.
    pub capacity: usize,
    /// Longest TTL, in seconds; a longer one is cut to it.
    pub max_ttl: u32,
    /// Shortest TTL, in seconds; a shorter one is lifted to it.
    pub min_ttl: u32,
}

/// `forward FROM TO... { ... }`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Forward {
    /// Names in this zone are forwarded.
    pub from: Name,
    /// 1 to 15 upstreams after files are read; without a cluster DNS that is known, none.
    pub to: Vec<Upstream>,
    /// `except`: names in these zones are not.
    pub except: Vec<Name>,
    /// `policy`. Default random.
    pub policy: Policy,
    /// Which transport towards the upstream.
    pub transport: Transport,
    /// `max_fails`: failures in a row after which an upstream is down. Default 2; 0: never down.
    pub max_fails: u32,
    /// `health_check`: time between probes of an upstream that failed. Default 0.5 s.
    pub health_check: Duration,
    /// `expire`: how long an unused connection is kept. Default 10 s.
    pub expire: Duration,
    /// `max_age`: how long a connection is used at all. Default `None`: for as long as it is in use.
    pub max_age: Option<Duration>,
    /// `max_idle_conns`: most connections that are kept, and most UDP sockets, for each upstream. Default `None`: our own
    /// bounds.
    pub max_idle: Option<u32>,
    /// `source_address`: where questions come from. Default `None`: the kernel's choice.
    pub source_address: Option<IpAddr>,
    /// `resolver`: whom to ask for host names of upstreams, one after the other. Default none: the system.
    pub resolvers: Vec<SocketAddr>,
    /// `tls`: for upstreams over TLS.
    pub tls: ForwardTls,
    /// `tls_servername`: what their certificates must be for. Default `None`: their IP address.
    pub tls_server_name: Option<String>,
    /// `max_concurrent`: queries under way above which more are REFUSED. Default `None`: no limit of the Corefile's.
    pub max_concurrent: Option<u32>,
    /// `max_connect_attempts`: failed tries before a question is given up. Default `None`: two for each upstream; 0: no
    /// limit but time.
    pub max_attempts: Option<u32>,
    /// `read_timeout`: longest time for one try. Default 2 s.
    pub read_timeout: Duration,
    /// `failover`: response codes after which the next upstream is asked; never NOERROR.
    pub failover: Vec<u16>,
    /// `next`: response codes after which the next `forward` is asked, if there is one.
    pub next: Vec<u16>,
    /// `next_on_nodata`: the same for an answer without records.
    pub next_on_nodata: bool,
    /// `failfast_all_unhealthy_upstreams`: SERVFAIL at once where all are down. Default: one is asked all the same.
    pub fail_fast: bool,
    /// `health_check ... no_rec`: probes without RD.
    pub probe_without_recursion: bool,
    /// `health_check ... domain NAME`: what probes ask for. Default the root.
    pub probe_name: Name,
}

/// One word of `forward`'s TO.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Upstream {
    /// A server; port 53 where none is given.
    Addr(SocketAddr),
    /// `tls://ADDRESS[%NAME]`: a server over TLS; port 853 where none is given.
    Tls {
        /// Where it is.
        address: SocketAddr,
        /// What its certificate must be for. `None`: what `tls_servername` says.
        server_name: Option<String>,
    },
    /// `HOST[:PORT]` or `tls://HOST[%NAME][:PORT]`: the servers of that name. Looked up when the file is loaded.
    Host {
        /// Without its final dot.
        host: String,
        /// Default 53, and 853 over TLS.
        port: u16,
        /// Over TLS.
        by_tls: bool,
        /// What their certificates must be for. `None`: what `tls_servername` says.
        server_name: Option<String>,
    },
    /// A file in the format of resolv.conf; its `nameserver` lines are meant. Read when the file is loaded.
    ResolvConf(PathBuf),
    /// The cluster DNS, whose address is not known yet: nobody to ask.
    UnknownClusterDns,
}

/// `policy`: in which order upstreams are tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Policy {
    /// A random one first.
    Random,
    /// Each in turn.
    RoundRobin,
    /// As listed.
    Sequential,
}

/// Which transport is used towards an upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transport {
    /// The one by which the client asked (CoreDNS's default).
    Same,
    /// `prefer_udp`: UDP, whatever the client used.
    Udp,
    /// `force_tcp`: TCP; wins when both are set.
    Tcp,
}

/// `hosts [FILE [ZONES...]] { INLINE ... }`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Hosts {
    /// The file; `/etc/hosts` where the directive names no file (CoreDNS reads it beside inline entries as well).
    pub file: Option<PathBuf>,
    /// Entries that stand in the Corefile itself; answers give those of the file first, then these (CoreDNS). A name
    /// such as `*.example.org` stands for what is below and not named itself, and has no PTR.
    pub inline: Vec<HostsEntry>,
    /// Only names in these zones; empty means all of the block's.
    pub zones: Vec<Name>,
    /// `ttl`: seconds. Default 3600, 1 to 65535.
    pub ttl: u32,
    /// `no_reverse`: no PTR answers.
    pub no_reverse: bool,
    /// `reload`: how often the file is looked at. Default 5 s; `None` (`reload 0`): never.
    pub reload: Option<Duration>,
    /// `fallthrough [ZONES...]`: where a name that is not found is passed on. `None`: nowhere, SERVFAIL is answered;
    /// empty: everywhere.
    pub fallthrough: Option<Vec<Name>>,
    /// `fallthrough_unsupported`: questions for other types than A, AAAA and PTR are passed on where `fallthrough` says so,
    /// though the name is known.
    pub passes_other_types: bool,
}

/// `ADDRESS NAME...`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HostsEntry {
    /// The address.
    pub addr: IpAddr,
    /// Its names, never empty; the first is the PTR's.
    pub names: Vec<Name>,
}

/// `health [ADDR] { lameduck DURATION }`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Health {
    /// Default `:8080`.
    pub addr: HttpAddr,
    /// `lameduck`: go on answering for so long after the order to stop. Default 0.
    pub lameduck: Duration,
}

/// `prometheus [ADDR] { tls FILE }`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Prometheus {
    /// Default `localhost:9153`.
    pub addr: HttpAddr,
    /// `tls`: HTTPS as this file says, a web configuration of Prometheus' exporter-toolkit. Default: HTTP.
    pub tls: Option<PathBuf>,
}

/// `ready [ADDR] { monitor until-ready|continuously }`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Ready {
    /// Default `:8181`.
    pub addr: HttpAddr,
    /// `monitor until-ready`: what a Corefile waits for is not looked at again once it was there. Default no
    /// (`continuously`).
    pub until_ready: bool,
}

/// `reload [INTERVAL] [JITTER]`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reload {
    /// Default 30 s, at least 2 s.
    pub interval: Duration,
    /// Default 15 s; 0, or at least 1 s. At most half the interval, and cut to it. Up to half of it is added or taken
    /// away at random.
    pub jitter: Duration,
}
