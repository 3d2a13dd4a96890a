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
use std::net::IpAddr;
use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nodestub_cache::Cache;
use nodestub_corefile::config::Config;
use nodestub_corefile::{Options, Report};
use rand::Rng;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::admin::{Admin, AdminError, Status};
use crate::args::{Placeholders, Serve};
use crate::clock::Clock;
use crate::coalesce::Coalescer;
use crate::handover::{Entrance, Event, HandoverError, Handovers, Identity, Pantry, Post, StoodBy, Taken};
use crate::listen::{BindError, Listeners, MAX_WORKERS, Shared};
use crate::loops::{self, LoopProbes};
use crate::metrics::{Counter, PluginCounters};
use crate::node::{self, CleanUpError, Node};
use crate::query_log::QueryLog;
use crate::resolve::Resolver;
use crate::tables::{CompileError, Tables, Workshop};
use crate::watchdog::{self, SecretLabel};

/// How long queries under way may take after the sockets are closed: one question's whole time.
const DRAIN: Duration = Duration::from_secs(5);

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
    Wish(nodestub_dataplane::desired::Error),
    /// `cleanup` did not do its work.
    CleanUp(CleanUpError),
    /// `rules` has nothing to print.
    NoRules,
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
    match nodestub_corefile::load(file, &options(placeholders)) {
        Ok(loaded) => {
            if !loaded.warnings.is_empty() {
                eprintln!("{}", show(&loaded.warnings));
            }
            println!("{}: this Corefile can be served", file.display());
            true
        }
        Err(report) => {
            eprintln!("{}", show(&report));
            false
        }
    }
}

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// Serving did not begin. The address and the rules, if they could be set up, stay.
pub async fn serve(arguments: &Serve) -> Result<(), StartError> {
    let placeholders = &arguments.placeholders;
    let (local_addresses, port) = (placeholders.local_addresses(), placeholders.port.get());
    let identity = Identity::new(arguments.handover.as_deref(), &local_addresses, port);
    let mut signals = Signals::new().map_err(StartError::System)?;
    raise_file_limit();
    let wish = node::wish(arguments, |name| std::env::var(name).ok()).map_err(StartError::Wish)?;
    if !arguments.skip_teardown {
        tracing::warn!(
            "-skipteardown=false: the address and the rules stay at the end all the same, so that DNS goes on"
        );
    }
    let node = Node::set_up(wish).await;
    let config = read(arguments).map_err(StartError::Corefile)?;
    let cpus = allowed_cpus();
    // Respects CPU quotas as well; a thread more than that would only wait for its slice.
    let workers =
        std::thread::available_parallelism().map_or(1, usize::from).min(MAX_WORKERS).min(cpus.len());
    let mut workshop = Workshop::new(workers).with_metrics(arguments.metrics_listen_address);
    let tables = workshop.compile(&config).map_err(StartError::Compile)?;
    let resolver = new_resolver(arguments).map_err(StartError::System)?;
    let pantry = Pantry::new(&resolver.cache, resolver.clock, &tables);
    let wanted: Vec<_> = tables.listeners.keys().copied().collect();
    let taken = tokio::select! {
        taken = Entrance::enter(&identity, &pantry, &wanted) => taken.map_err(StartError::Handover)?,
        () = signals.stop() => return Ok(()),
    };
    let parts = Compiled { config, workshop, tables, workers, cpus };
    let mut running = Running::start(arguments, parts, resolver, &node, identity, taken).await?;
    let status = Arc::clone(&running.status);
    let in_charge = move || !status.handovers.is_standing_by();
    tokio::spawn(node.keep_in_order(arguments.sync_interval, in_charge));
    if let Some(file) = &arguments.pid_file
        && let Err(cause) = std::fs::write(file, format!("{}\n", std::process::id()))
    {
        tracing::warn!(file = %file.display(), %cause, "-pidfile: cannot write the process id");
    }
    match running.until_stopped(&mut signals).await? {
        Left::Serving => running.stop(&mut signals).await,
        Left::StandingBy => running.finish(&mut signals).await,
    }
    Ok(())
}

/// What a Corefile has become, and for what machine.
struct Compiled {
    config: Config,
    workshop: Workshop,
    tables: Tables,
    workers: usize,
    cpus: Vec<usize>,
}

/// What a process was doing when the order to stop came.
enum Left {
    Serving,
    /// A newer process serves.
    StandingBy,
}

/// Prints the rules that these flags ask for.
///
/// # Errors
/// The flags make no sense, or ask for no rules.
pub fn print_rules(arguments: &Serve) -> Result<(), StartError> {
    let wish = node::wish(arguments, |name| std::env::var(name).ok()).map_err(StartError::Wish)?;
    match wish.filter(|wish| wish.parts.rules) {
        Some(wish) => {
            print!("{}", wish.desired.ruleset());
            Ok(())
        }
        None => Err(StartError::NoRules),
    }
}

/// Takes away everything that was ever set up on this node.
///
/// # Errors
/// Somebody listens on one of the addresses and `force` is not given, or the kernel refuses.
pub async fn clean_up(addresses: &[IpAddr], port: u16, force: bool) -> Result<(), StartError> {
    let removed = node::clean_up(addresses, port, force).await.map_err(StartError::CleanUp)?;
    println!("{removed}");
    Ok(())
}

/// A daemon that answers.
struct Running<'a> {
    arguments: &'a Serve,
    shared: Arc<Shared>,
    status: Arc<Status>,
    listeners: Listeners,
    admin: Admin,
    post: Post,
    config: Config,
    loop_watch: CancellationToken,
}

impl<'a> Running<'a> {
    async fn start(
        arguments: &'a Serve,
        parts: Compiled,
        resolver: Resolver,
        node: &Node,
        identity: Identity,
        mut taken: Taken,
    ) -> Result<Self, StartError> {
        let Compiled { config, workshop, tables, workers, cpus } = parts;
        let shared = Shared::new(Tables::default(), resolver);
        let status = Arc::new(Status {
            shared: Arc::clone(&shared),
            workshop: Arc::new(Mutex::new(workshop)),
            serving: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            failed_reloads: AtomicU64::new(0),
            fingerprint: Mutex::default(),
            setup_errors: node.errors(),
            fail_open: node.fail_open(),
            handovers: Handovers::default(),
        });
        let mut listeners = Listeners::start(&shared, workers, cpus).map_err(StartError::System)?;
        let mut admin = Admin::new(Arc::clone(&status));
        taken.offer_to(&mut listeners, &mut admin);
        let post = Post::new(identity, &status);
        let loop_watch = CancellationToken::new();
        let first = config.clone();
        let mut running = Self { arguments, listeners, admin, post, shared, status, config, loop_watch };
        running.apply(first, tables)?;
        running.post.enter(taken, &mut running.listeners, &running.admin).await;
        watchdog::start(Arc::clone(&running.status)).map_err(StartError::System)?;
        Ok(running)
    }

    /// Goes over to a compiled Corefile; on an error everything stays as it was.
    fn apply(&mut self, config: Config, tables: Tables) -> Result<(), StartError> {
        let prepared = self.admin.prepare(&tables.admin).map_err(StartError::Admin)?;
        let wanted = tables.admin.clone();
        self.listeners.apply(tables).map_err(StartError::Bind)?;
        self.admin.apply(&wanted, prepared);
        self.config = config;
        *self.status.fingerprint.lock().unwrap_or_else(PoisonError::into_inner) = fingerprint(&self.config);
        self.status.serving.store(true, Relaxed);
        self.watch_for_loops();
        for address in self.listeners.addresses() {
            tracing::info!(%address, "serving DNS");
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
                    Order::Reload => self.reload(true).await,
                },
                () = look => self.reload(false).await,
                event = self.post.next() => match event {
                    Event::Withdrawn => return Err(StartError::Handover(HandoverError::Withdrawn)),
                    Event::Newcomer(newcomer) => {
                        self.loop_watch.cancel();
                        let stop = signals.stop();
                        let (listeners, admin) = (&mut self.listeners, &mut self.admin);
                        match self.post.hand_over(newcomer, listeners, admin, stop).await {
                            StoodBy::Stopped => return Ok(Left::StandingBy),
                            StoodBy::Resumed => self.reload(true).await,
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
        let error = match read(self.arguments) {
            Ok(config) if config == self.config && !ordered => return,
            Ok(config) => {
                let compiled =
                    self.status.workshop.lock().unwrap_or_else(PoisonError::into_inner).compile(&config);
                match compiled {
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

    /// Unready, lameduck, sockets closed, queries under way answered. A second order to stop ends the waiting. Where
    /// an older process stands by, it serves again instead.
    async fn stop(mut self, signals: &mut Signals) {
        self.status.stopping.store(true, Relaxed);
        let back = tokio::select! {
            back = self.post.hand_back(&mut self.listeners, &mut self.admin) => back,
            () = signals.stop() => return,
        };
        if back {
            return self.finish(signals).await;
        }
        let lameduck = self.shared.tables.load().lameduck;
        tracing::info!(?lameduck, "stopping");
        tokio::select! {
            () = tokio::time::sleep(lameduck) => {}
            () = signals.stop() => {}
        }
        tokio::select! {
            () = self.listeners.stop(DRAIN) => {}
            () = signals.stop() => {}
        }
    }

    /// Ends beside another process that serves: queries under way are answered, and connections leave.
    async fn finish(self, signals: &mut Signals) {
        self.status.stopping.store(true, Relaxed);
        tracing::info!("stopping; another resolver serves");
        let finish = async {
            self.listeners.stop(DRAIN).await;
            self.post.last_connections().await;
        };
        tokio::select! {
            () = finish => {}
            () = signals.stop() => {}
        }
    }
}

/// The signals that this process minds.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
    user: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
            user: signal(SignalKind::user_defined1())?,
        })
    }

    async fn next(&mut self) -> Order {
        tokio::select! {
            _ = self.terminate.recv() => Order::Stop,
            _ = self.interrupt.recv() => Order::Stop,
            _ = self.hang_up.recv() => Order::Reload,
            _ = self.user.recv() => Order::Reload,
        }
    }

    /// Waits for the next order to stop; others are of no use any more.
    async fn stop(&mut self) {
        while !matches!(self.next().await, Order::Stop) {}
    }
}

/// What a signal means.
enum Order {
    Stop,
    Reload,
}

fn options(placeholders: &Placeholders) -> Options {
    placeholders.options(|name| std::env::var(name).ok())
}

fn read(arguments: &Serve) -> Result<Config, Box<Report>> {
    let loaded =
        nodestub_corefile::load(arguments.corefile(), &options(&arguments.placeholders)).map_err(Box::new)?;
    if !loaded.warnings.is_empty() {
        tracing::warn!("{}", loaded.warnings);
    }
    Ok(loaded.config)
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
    })
}

/// As many open files as the system allows: a thousand clients and their upstreams need more than the customary 1024.
fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(cause) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%cause, now = limit.current, "cannot raise the limit of open files");
    }
}

fn allowed_cpus() -> Vec<usize> {
    let allowed = rustix::thread::sched_getaffinity(None);
    let cpus =
        allowed.map(|set| (0..rustix::thread::CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect());
    cpus.ok().filter(|cpus: &Vec<usize>| !cpus.is_empty()).unwrap_or_else(|| vec![0])
}

fn fingerprint(config: &Config) -> String {
    let mut hasher = DefaultHasher::new();
    config.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

fn show(report: &Report) -> String {
    use std::io::IsTerminal;
    if io::stderr().is_terminal() { report.coloured() } else { report.to_string() }
}

impl std::fmt::Display for StartError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Corefile(report) => write!(f, "{report}"),
            Self::Compile(cause) => write!(f, "{cause}"),
            Self::Wish(cause) => write!(f, "{cause}"),
            Self::CleanUp(cause) => write!(f, "{cause}"),
            Self::NoRules => f.write_str("these flags ask for no rules: give an address with -localip"),
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
            Self::Corefile(_) | Self::NoRules => None,
            Self::Compile(cause) => Some(cause),
            Self::Wish(cause) => Some(cause),
            Self::CleanUp(cause) => Some(cause),
            Self::Admin(cause) => Some(cause),
            Self::Bind(cause) => Some(cause),
            Self::Handover(cause) => Some(cause),
            Self::System(cause) => Some(cause),
        }
    }
}
