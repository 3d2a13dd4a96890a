//! Puts the parts together, in the order in which they must come, and takes them apart again.
//!
//! ```text
//!   address and rules ─► Corefile read and compiled ─► who serves already is asked ─► HTTP and DNS sockets, handed over
//!     or bound (now we answer) ─► ready
//!   a newer process asks ─► sockets handed over ─► standing by ─► serving again, or exit
//!   unready ─► lameduck ─► sockets closed, queries under way answered ─► exit; address and rules stay
//! ```
//!
//! This is the only file that knows every part. A Corefile that does not read ends the start before anything is bound;
//! on a reload it changes nothing, is said and counted.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use nodestub_cache::Cache;
use nodestub_corefile::Report;
use nodestub_corefile::config::{Config, Scheme};
use nodestub_dataplane::Desired;
use rand::Rng;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::admin::{Admin, AdminError, Status};
use crate::admin_tls::{Tls, TlsError};
use crate::args::{Mode, Placeholders, Serve};
use crate::cleanup::{self, CleanUp, CleanUpError};
use crate::clock::Clock;
use crate::coalesce::Coalescer;
use crate::control::{self, Stage};
use crate::handover::{Entrance, Event, HandoverError, Handovers, Identity, Pantry, Post, StoodBy, Taken};
use crate::host_names;
use crate::listen::{BindError, Listeners, MAX_WORKERS, Shared};
use crate::loops::{self, LoopProbes};
use crate::machine;
use crate::metrics::{Counter, PluginCounters};
use crate::node::{self, Node, SetupErrors};
use crate::obstacles::{self, Obstacles};
use crate::privileges;
use crate::proof::Proof;
use crate::query_log::QueryLog;
use crate::resolve::{Prefetches, Resolver};
use crate::service::{self, Word};
use crate::signals::{Order, Signals};
use crate::sources::{self, Sources};
use crate::surroundings::{Known, Surroundings};
use crate::tables::{CompileError, Tables, Workshop};
use crate::watchdog::{self, SecretLabel};
use crate::wish::{self, WishError};

/// How long queries under way may take after the sockets are closed: one question's whole time.
const DRAIN: Duration = Duration::from_secs(5);

/// How long stopping may take beyond lameduck: the sockets go back to who stands by, queries under way are answered,
/// and connections leave. Each has a limit of its own; this one holds whatever hangs.
const STOP_LIMIT: Duration = Duration::from_secs(35);

/// How long the start waits for address and rules: they take milliseconds, and a second on a slow machine.
const SET_UP_LIMIT: Duration = Duration::from_secs(15);

/// How often one looks for the addresses after that.
const LOOK: Duration = Duration::from_secs(1);

/// How often the Corefile is looked at with `-reloadwithsignal` (node-cache's `syncInterval` of files).
const TEMPLATE_INTERVAL: Duration = Duration::from_secs(10);

/// Why serving did not begin.
#[derive(Debug)]
pub enum StartError {
    /// The Corefile does not read.
    Corefile(Box<Report>),
    /// It reads, but cannot be served here.
    Compile(CompileError),
    /// The flags about the local address make no sense.
    Wish(WishError),
    /// In mode redirect the Corefile binds a local address, which nobody puts up.
    BoundInRedirect(SocketAddr),
    /// `cleanup` did not do its work.
    CleanUp(CleanUpError),
    /// `rules` has nothing to print.
    NoRules,
    /// Metrics cannot be served by HTTPS.
    Tls(TlsError),
    /// An HTTP endpoint cannot be bound.
    Admin(AdminError),
    /// A DNS socket cannot be bound.
    Bind(BindError),
    /// Another resolver serves, and did not hand over.
    Handover(HandoverError),
    /// A thread, or a signal's handler, cannot be made.
    System(io::Error),
}

/// Reads a Corefile for `check` and says what is wrong with it. True: it can be served, as far as the text goes.
pub fn check(file: &Path, placeholders: &Placeholders) -> bool {
    match sources::check(file, placeholders) {
        Ok(loaded) => {
            if !loaded.warnings.is_empty() {
                eprintln!("{}", sources::show(&loaded.warnings));
            }
            println!("{}: this Corefile can be served", file.display());
            true
        }
        Err(text) => {
            eprintln!("{text}");
            false
        }
    }
}

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// Serving did not begin. The address and the rules, if they could be set up, stay.
pub async fn serve(arguments: &Serve, mut signals: Signals) -> Result<(), StartError> {
    let stage = Stage::new(OnceLock::new());
    control::open(&stage);
    let placeholders = &arguments.placeholders;
    let (local_addresses, port) = (placeholders.local_addresses(), placeholders.port.get());
    let identity = Identity::new(arguments.handover.as_deref(), &local_addresses, port);
    machine::raise_file_limit();
    let surroundings = Surroundings::new(arguments, |name| std::env::var(name).ok());
    let at_start = surroundings.known();
    let wish = wish::wish(arguments, |name| at_start.variable(name)).map_err(StartError::Wish)?;
    if !arguments.skip_teardown {
        tracing::warn!(
            "-skipteardown=false: the address and the rules stay at the end all the same, so that DNS goes on"
        );
    }
    let ours = wish.iter().filter(|wish| wish.parts.addresses);
    let addresses: Vec<IpAddr> = ours.flat_map(|wish| wish.desired.addresses().to_vec()).collect();
    let node = Node::new(wish);
    let of_node = OfNode { errors: node.errors(), proof: node.proof(), rules: node.follow_rules() };
    let set_up = set_up(node, &addresses, at_start.clone(), &of_node.errors).await?;
    let tls = Tls::new(&arguments.metrics_tls).map_err(StartError::Tls)?;
    let may_wait = surroundings.has_folder();
    let mut known = surroundings.follow();
    let mut sources = Sources::new(arguments, Arc::clone(&of_node.errors));
    let config = first_config(&mut sources, &mut known, may_wait).await.map_err(StartError::Corefile)?;
    let cpus = machine::allowed_cpus();
    // Respects CPU quotas as well; a thread more than that would only wait for its slice.
    let workers =
        std::thread::available_parallelism().map_or(1, usize::from).min(MAX_WORKERS).min(cpus.len());
    let mut workshop = Workshop::new(workers).with_metrics(arguments.metrics_address());
    let names = host_names::find(&config).await.map_err(StartError::Compile)?;
    let tables = workshop.compile(&config, &names).map_err(StartError::Compile)?;
    refuse_in_redirect(arguments, &tables)?;
    let resolver = new_resolver(arguments).map_err(StartError::System)?;
    let pantry = Pantry::new(&resolver.cache, resolver.clock, &tables);
    let wanted: Vec<_> = tables.listeners.iter().map(|(address, zones)| (*address, zones.scheme())).collect();
    let taken = Entrance::enter(&identity, &pantry, &wanted).await.map_err(StartError::Handover)?;
    // From the first socket on, an order to stop is carried out in good order.
    signals.allow(longest_stop(&tables));
    let parts = Compiled { sources, tls, config, workshop, tables, workers, cpus, known: known.clone() };
    let mut running = Running::start(arguments, parts, resolver, &of_node, identity, taken).await?;
    let status = Arc::clone(&running.status);
    drop(stage.set(Arc::clone(&status)));
    service::tell(Word::Serving);
    let in_charge = move || !status.handovers.is_standing_by();
    let (proof, rules) = (of_node.proof, of_node.rules);
    let also_in_charge = in_charge.clone();
    tokio::spawn(privileges::run(move || async move { proof.keep_trying(also_in_charge).await }));
    let found = Arc::clone(&running.status.obstacles);
    let (interval, also_in_charge) = (arguments.sync_interval, in_charge.clone());
    tokio::spawn(privileges::run(move || obstacles::keep_looking(rules, interval, found, also_in_charge)));
    let flags = arguments.clone();
    tokio::spawn(async move {
        // A node that the kernel has not let us set up yet is kept in order from when it has.
        let node = set_up.await.map_err(io::Error::other)??;
        privileges::run(move || node.keep_in_order(flags, known, at_start, in_charge)).await
    });
    if let Some(file) = &arguments.pid_file
        && let Err(cause) = std::fs::write(file, format!("{}\n", std::process::id()))
    {
        tracing::warn!(file = %file.display(), %cause, "-pidfile: cannot write the process id");
    }
    let left = running.until_stopped(&mut signals).await?;
    service::tell(Word::Stopping);
    match left {
        Left::Serving => running.stop().await,
        Left::StandingBy => running.finish().await,
    }
    Ok(())
}

/// What others follow of the node, whether or not it is set up.
struct OfNode {
    errors: Arc<SetupErrors>,
    proof: Arc<Proof>,
    rules: watch::Receiver<Option<Desired>>,
}

/// Sets the node up, and waits for it as long as [`SET_UP_LIMIT`]: netlink waits for whoever has the kernel's lock. What takes
/// longer goes on by itself; but before the addresses are there, nothing could be served at them.
async fn set_up(
    node: Node,
    addresses: &[IpAddr],
    known: Known,
    errors: &SetupErrors,
) -> Result<JoinHandle<io::Result<Node>>, StartError> {
    let mut done = tokio::spawn(privileges::run(move || async move { node.set_up(&known).await }));
    match tokio::time::timeout(SET_UP_LIMIT, &mut done).await {
        Ok(Ok(Ok(node))) => Ok(tokio::spawn(async { Ok(node) })),
        Ok(Ok(Err(cause))) => Err(StartError::System(cause)),
        Ok(Err(cause)) => Err(StartError::System(io::Error::other(cause))),
        Err(_) => {
            errors.interface_add.add(1);
            tracing::error!(
                limit = ?SET_UP_LIMIT,
                "the kernel does not answer about the address and the rules (netlink waits): going on as soon as the \
                 addresses are there; what is missing is set up when it answers. On the node, look for a process that hangs in rtnetlink or nftables: \
                 `ps -eo pid,wchan:32,comm | grep -E 'rtnl|netlink|nf'`"
            );
            while !done.is_finished() && !addresses.iter().all(|address| is_there(*address)) {
                tokio::time::sleep(LOOK).await;
            }
            Ok(done)
        }
    }
}

/// Whether a device has the address. A socket sees that, for netlink is what does not answer. Any other trouble is met, and
/// told, where the address is bound in earnest.
fn is_there(address: IpAddr) -> bool {
    !matches!(UdpSocket::bind((address, 0)), Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable)
}

/// What a Corefile has become, and for what machine.
struct Compiled<'a> {
    sources: Sources<'a>,
    tls: Option<Arc<Tls>>,
    config: Config,
    workshop: Workshop,
    tables: Tables,
    workers: usize,
    cpus: Vec<usize>,
    known: watch::Receiver<Known>,
}

/// What a process was doing when the order to stop came.
enum Left {
    Serving,
    /// A newer process serves.
    StandingBy,
}

/// Prints the rules that these flags ask for, and chains of others on this node that would drop DNS all the same.
///
/// # Errors
/// The flags make no sense, or ask for no rules.
pub async fn print_rules(arguments: &Serve) -> Result<(), StartError> {
    let wish = wish::wish(arguments, |name| std::env::var(name).ok()).map_err(StartError::Wish)?;
    let Some(wish) = wish.filter(|wish| wish.parts.rules) else { return Err(StartError::NoRules) };
    let look = move || async move {
        let (desired, left) = node::without_taken(&wish).await;
        let found = nodestub_dataplane::obstacles::look(&desired).await;
        (desired, left, found)
    };
    let (desired, left, found) = privileges::run(look).await.map_err(StartError::System)?;
    print!("{}", desired.ruleset());
    for (address, device) in left {
        println!("# {address} is already on device {device}, and left to it: no rules for it");
    }
    print!("{}", obstacles::Comments(found));
    Ok(())
}

/// Takes away everything that was ever set up on this node.
///
/// # Errors
/// Somebody uses one of the addresses and `force` is not given, or the kernel refuses.
pub async fn clean_up(wanted: CleanUp) -> Result<(), StartError> {
    let removed = privileges::run(move || async move { cleanup::clean_up(&wanted).await }).await;
    let removed = removed.map_err(StartError::System)?.map_err(StartError::CleanUp)?;
    println!("{removed}");
    Ok(())
}

/// A daemon that answers.
struct Running<'a> {
    arguments: &'a Serve,
    sources: Sources<'a>,
    shared: Arc<Shared>,
    status: Arc<Status>,
    listeners: Listeners,
    admin: Admin,
    post: Post,
    config: Config,
    known: watch::Receiver<Known>,
    loop_watch: CancellationToken,
}

impl<'a> Running<'a> {
    async fn start(
        arguments: &'a Serve,
        parts: Compiled<'a>,
        resolver: Resolver,
        node: &OfNode,
        identity: Identity,
        mut taken: Taken,
    ) -> Result<Self, StartError> {
        let Compiled { sources, tls, config, workshop, tables, workers, cpus, known } = parts;
        let shared = Shared::new(Tables::default(), resolver);
        let status = Arc::new(Status {
            shared: Arc::clone(&shared),
            workshop: Arc::new(Mutex::new(workshop)),
            serving: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            failed_reloads: AtomicU64::new(0),
            fingerprint: Mutex::default(),
            setup_errors: Arc::clone(&node.errors),
            proof: Arc::clone(&node.proof),
            known: known.clone(),
            obstacles: Arc::new(Obstacles::default()),
            handovers: Handovers::default(),
            self_checks: Arc::default(),
        });
        let mut listeners = Listeners::start(&shared, workers, cpus).map_err(StartError::System)?;
        let mut admin = Admin::new(Arc::clone(&status));
        if let (Some(address), Some(tls)) = (arguments.metrics_address(), tls) {
            admin.serve_by_tls(address, tls);
        }
        taken.offer_to(&mut listeners, &mut admin);
        let post = Post::new(identity, &status);
        let loop_watch = CancellationToken::new();
        let first = config.clone();
        let mut running =
            Self { arguments, sources, listeners, admin, post, shared, status, config, known, loop_watch };
        running.apply(first, tables)?;
        running.post.enter(taken, &mut running.listeners, &running.admin).await;
        watchdog::start(Arc::clone(&running.status)).map_err(StartError::System)?;
        Ok(running)
    }

    /// Goes over to a compiled Corefile; on an error everything stays as it was.
    fn apply(&mut self, config: Config, tables: Tables) -> Result<(), StartError> {
        refuse_in_redirect(self.arguments, &tables)?;
        let prepared = self.admin.prepare(&tables.admin).map_err(StartError::Admin)?;
        let (wanted, by_tls) = (tables.admin.clone(), tables.admin_tls.clone());
        self.listeners.apply(tables).map_err(StartError::Bind)?;
        self.admin.apply(&wanted, &by_tls, prepared);
        self.config = config;
        *self.status.fingerprint.lock().unwrap_or_else(PoisonError::into_inner) = fingerprint(&self.config);
        self.status.serving.store(true, Relaxed);
        self.watch_for_loops();
        if let Some(complaint) = self.status.lacks_cluster_dns() {
            tracing::error!("{complaint}");
        }
        let tables = self.shared.tables.load();
        for address in self.listeners.addresses() {
            match tables.listeners.get(&address).map(|zones| zones.scheme()) {
                Some(Scheme::Tls) => tracing::info!(%address, "serving DNS over TLS"),
                _ => tracing::info!(%address, "serving DNS"),
            }
        }
        Ok(())
    }

    fn watch_for_loops(&mut self) {
        self.loop_watch.cancel();
        self.loop_watch = CancellationToken::new();
        let watch = loops::watch(Arc::clone(&self.shared));
        let stop = self.loop_watch.clone();
        tokio::spawn(async move { stop.run_until_cancelled(watch).await });
    }

    async fn until_stopped(&mut self, signals: &mut Signals) -> Result<Left, StartError> {
        loop {
            let interval = self.next_look();
            let look = async {
                match interval {
                    Some(interval) => tokio::time::sleep(interval).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                order = signals.next() => match order {
                    Order::Stop => return Ok(Left::Serving),
                    Order::Reload => {
                        self.reload(true).await;
                        signals.allow(longest_stop(&self.shared.tables.load()));
                    }
                },
                () = look => {
                    self.reload(false).await;
                    signals.allow(longest_stop(&self.shared.tables.load()));
                }
                Ok(()) = self.known.changed() => {
                    // Nobody's wish: what `ready` waited for once is not waited for again.
                    let was_ready = self.shared.tables.load().was_ready.load(Relaxed);
                    self.reload(false).await;
                    self.shared.tables.load().was_ready.fetch_or(was_ready, Relaxed);
                    signals.allow(longest_stop(&self.shared.tables.load()));
                }
                event = self.post.next() => match event {
                    Event::Withdrawn => return Err(StartError::Handover(HandoverError::Withdrawn)),
                    Event::Newcomer(newcomer) => {
                        self.loop_watch.cancel();
                        let stop = signals.stop();
                        let (listeners, admin) = (&mut self.listeners, &mut self.admin);
                        match self.post.hand_over(newcomer, listeners, admin, stop).await {
                            StoodBy::Stopped => return Ok(Left::StandingBy),
                            StoodBy::Resumed => {
                                service::tell(Word::Serving);
                                self.reload(true).await;
                            }
                        }
                        self.watch_for_loops();
                    }
                },
            }
        }
    }

    /// When the Corefile is looked at next: `reload`'s interval, and up to half its jitter more or less.
    fn next_look(&self) -> Option<Duration> {
        let Some(reload) = self.shared.tables.load().reload.clone() else {
            return self.arguments.reload_with_signal.then_some(TEMPLATE_INTERVAL);
        };
        let jitter = reload.jitter.mul_f64(rand::rng().random_range(0.0..=0.5));
        let later: bool = rand::rng().random();
        Some(if later { reload.interval + jitter } else { reload.interval.saturating_sub(jitter) })
    }

    /// Reads the Corefile and serves it, if it has changed. `ordered`: by a signal; then files that it names are read
    /// again as well.
    async fn reload(&mut self, ordered: bool) {
        let known = self.known.borrow().clone();
        let error = match self.sources.read(&known) {
            Ok(config) if config == self.config && !ordered => return,
            Ok(config) => {
                let names = host_names::find(&config).await;
                let workshop = || self.status.workshop.lock().unwrap_or_else(PoisonError::into_inner);
                match names.and_then(|names| workshop().compile(&config, &names)) {
                    Ok(tables) => match self.apply(config, tables) {
                        Ok(()) => {
                            self.post.addresses_changed(&self.listeners, &self.admin).await;
                            tracing::info!(
                                fingerprint = fingerprint(&self.config),
                                "the Corefile was reloaded"
                            );
                            return;
                        }
                        Err(error) => error,
                    },
                    Err(error) => StartError::Compile(error),
                }
            }
            Err(report) => StartError::Corefile(report),
        };
        self.status.failed_reloads.fetch_add(1, Relaxed);
        tracing::error!(%error, "the Corefile was not reloaded; the last good one stays in force");
    }

    /// Unready, lameduck, sockets closed, queries under way answered. (A second order to stop ends the process wherever
    /// this is: see `signals`.) Where an older process stands by, it serves again instead.
    async fn stop(mut self) {
        self.status.stopping.store(true, Relaxed);
        if self.post.hand_back(&mut self.listeners, &mut self.admin).await {
            return self.finish().await;
        }
        let lameduck = self.shared.tables.load().lameduck;
        tracing::info!(?lameduck, "stopping");
        tokio::time::sleep(lameduck).await;
        self.listeners.turn_away().await;
        self.listeners.stop(DRAIN).await;
        self.shared.tables.load().flush_errors();
    }

    /// Ends beside another process that serves: queries under way are answered, and connections leave.
    async fn finish(self) {
        self.status.stopping.store(true, Relaxed);
        tracing::info!("stopping; another resolver serves");
        self.listeners.stop(DRAIN).await;
        self.shared.tables.load().flush_errors();
        self.post.last_connections().await;
    }
}

/// In mode redirect nobody puts up the addresses of `-localip`.
fn refuse_in_redirect(arguments: &Serve, tables: &Tables) -> Result<(), StartError> {
    let local_addresses = arguments.placeholders.local_addresses();
    let bound = tables.listeners.keys().find(|bound| local_addresses.contains(&bound.ip()));
    match bound.filter(|_| arguments.mode == Some(Mode::Redirect)) {
        Some(bound) => Err(StartError::BoundInRedirect(*bound)),
        None => Ok(()),
    }
}

fn longest_stop(tables: &Tables) -> Duration {
    tables.lameduck + STOP_LIMIT
}

/// Reads the Corefile for the first time. One that lacks the cluster's domain waits for it, where there is a folder that may
/// come to say it; the address and the rules are there already.
async fn first_config(
    sources: &mut Sources<'_>,
    known: &mut watch::Receiver<Known>,
    may_wait: bool,
) -> Result<Config, Box<Report>> {
    loop {
        let now = known.borrow_and_update().clone();
        match sources.read(&now) {
            Err(report) if may_wait && now.cluster_domain.is_none() => {
                tracing::error!(
                    error = %report,
                    "not serving yet; it is read again when the folder of facts (--facts-folder) names the cluster's domain"
                );
                if known.changed().await.is_err() {
                    return Err(report);
                }
            }
            read => return read,
        }
    }
}

fn new_resolver(arguments: &Serve) -> io::Result<Resolver> {
    Ok(Resolver {
        cache: Arc::new(Cache::new(usize::from(arguments.cache_mib) << 20)),
        clock: Clock::start(),
        loop_probes: LoopProbes::default(),
        query_log: QueryLog::start()?,
        coalescer: Coalescer::default(),
        secret_label: SecretLabel::new(),
        panics: Counter::default(),
        plugin_counters: PluginCounters::default(),
        rechecks: Arc::default(),
        prefetches: Prefetches::default(),
    })
}

fn fingerprint(config: &Config) -> String {
    let mut hasher = DefaultHasher::new();
    config.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

impl StartError {
    /// The address that somebody else listens on, where that is the reason.
    pub fn in_use(&self) -> Option<SocketAddr> {
        match self {
            Self::Bind(cause) => cause.in_use(),
            Self::Handover(HandoverError::InUse { address, .. }) => Some(*address),
            _ => None,
        }
    }
}

impl std::fmt::Display for StartError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Corefile(report) => write!(f, "{report}"),
            Self::Compile(cause) => write!(f, "{cause}"),
            Self::Wish(cause) => write!(f, "{cause}"),
            Self::BoundInRedirect(address) => write!(
                f,
                "the Corefile binds {address}, and --mode redirect puts no address on this node: write `bind 0.0.0.0`"
            ),
            Self::CleanUp(cause) => write!(f, "{cause}"),
            Self::NoRules => f.write_str(
                "these flags ask for no rules: none are for --mode redirect or -setupiptables=false, and else an \
                 address is needed, with -localip",
            ),
            Self::Tls(cause) => write!(f, "{cause}"),
            Self::Admin(cause) => write!(f, "{cause}"),
            Self::Bind(cause) => write!(f, "{cause}"),
            Self::Handover(cause) => write!(f, "{cause}"),
            Self::System(cause) => write!(f, "the system refused a thread or a signal handler: {cause}"),
        }
    }
}

impl std::error::Error for StartError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Corefile(_) | Self::NoRules | Self::BoundInRedirect(_) => None,
            Self::Compile(cause) => Some(cause),
            Self::Wish(cause) => Some(cause),
            Self::CleanUp(cause) => Some(cause),
            Self::Tls(cause) => Some(cause),
            Self::Admin(cause) => Some(cause),
            Self::Bind(cause) => Some(cause),
            Self::Handover(cause) => Some(cause),
            Self::System(cause) => Some(cause),
        }
    }
}
