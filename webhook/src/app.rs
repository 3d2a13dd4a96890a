//! Puts the parts together. Reads as a list: certificates, sockets, ports file, serving, stopping.
//!
//! Stopping (SIGTERM or SIGINT): unready → no new connections → what is in hand is finished, for at most
//! [`DRAIN`] → the end. A second signal does not wait.

use std::error::Error;
use std::fmt;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use nodestub_certs::{Folder, Lifetimes, Outcome, Resolver, ServingNames, Watch, Watcher, issue};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

#[cfg(not(feature = "kube"))]
use crate::args::ArgsError;
use crate::args::{CertificatesArgs, DecisionArgs, FactsFrom, Settings};
use crate::certificates::Source;
#[cfg(feature = "kube")]
use crate::certificates::keeper::Keeper;
use crate::facts::SharedFacts;
use crate::listen::{self, Limits, Port};
use crate::metrics::Metrics;
use crate::server::{self, Shared};

/// How long requests in hand may take when the process is asked to stop; below Kubernetes' default of 30 seconds.
pub const DRAIN: Duration = Duration::from_secs(20);

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// `nodestub-webhook certificates`: makes a CA and a serving certificate, and writes them.
///
/// # Errors
/// When a name is not one, or a file cannot be written.
pub fn certificates(args: &CertificatesArgs) -> Result<(), Box<dyn Error>> {
    let names = ServingNames {
        service: args.service.clone(),
        namespace: args.namespace.clone(),
        cluster_domain: args.cluster_domain.clone(),
        addresses: args.addresses.clone(),
        extra: args.names.clone(),
    };
    let lifetimes = Lifetimes::for_leaf(DAY.saturating_mul(args.days));
    let material = issue(&names, lifetimes, SystemTime::now())?;
    Folder::new(&args.folder).write(&material)?;
    println!("wrote ca.crt, tls.crt and tls.key to {}", args.folder.display());
    println!("tls.crt is good for {} days, for:", args.days);
    for name in names.dns_names()? {
        println!("  {name}");
    }
    for address in &names.addresses {
        println!("  {address}");
    }
    Ok(())
}

/// `nodestub-webhook policy`: prints the settings as a policy of the API server's own.
///
/// # Errors
/// When flags contradict each other, or a policy cannot express one.
pub fn policy(args: DecisionArgs) -> Result<(), Box<dyn Error>> {
    let (policy, facts) = args.split(FactsFrom::Flags)?;
    print!("{}", crate::policy::yaml(&policy, &facts)?);
    Ok(())
}

/// Serves until it is told to stop.
///
/// # Errors
/// When a port cannot be bound or the system refuses threads or signals. A certificate that is missing is no
/// error: it may come later, and until then `/readyz` says no.
pub fn run(settings: Settings) -> Result<(), Box<dyn Error>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(serve(settings))
}

async fn serve(settings: Settings) -> Result<(), Box<dyn Error>> {
    let certificates = Resolver::empty();
    let metrics = Arc::new(Metrics::new(Arc::clone(&certificates)));
    // The first look comes before the sockets, so that the first handshake finds a certificate.
    let _watch = match &settings.certificates {
        Source::Folder(folder, every) => Some(watch_certificates(folder, *every, &certificates, &metrics)?),
        Source::Secret(_) => None,
    };
    let mut signals = Signals::new()?;

    let (admission, admin) = (bind(settings.listen).await?, bind(settings.admin_listen).await?);
    let (admission_address, admin_address) = (admission.local_addr()?, admin.local_addr()?);
    let facts = start_facts(&settings, &metrics).await?;
    #[cfg(feature = "kube")]
    let keeper = keep_certificates(&settings, &certificates, &facts, &metrics).await?;
    let shared = Shared::new(settings.policy, facts, Arc::clone(&metrics), Arc::clone(&certificates));
    let stop = CancellationToken::new();
    let connections = TaskTracker::new();
    let admission_port = Port {
        router: server::admission(Arc::clone(&shared)),
        tls: Some(listen::tls(certificates)?),
        limits: Limits { age: settings.connection_age, ..Limits::default() },
        metrics: Some(metrics),
    };
    let admin_port = Port {
        router: server::admin(Arc::clone(&shared)),
        tls: None,
        limits: Limits::default(),
        metrics: None,
    };
    // The admin port answers until the end, so that `/readyz` can say that we are stopping.
    let (admin_stop, admin_connections) = (CancellationToken::new(), TaskTracker::new());
    tokio::spawn(listen::serve(admin, admin_port, admin_stop.clone(), admin_connections.clone()));
    let accepting = tokio::spawn(listen::serve(admission, admission_port, stop.clone(), connections.clone()));
    if let Some(file) = &settings.ports_file {
        write_ports(file, admission_address, admin_address)?;
    }
    tracing::info!(admission = %admission_address, admin = %admin_address, "listening");

    let name = signals.next().await;
    shared.stop();
    stop.cancel();
    tracing::info!(signal = name, "stopping");
    #[cfg(feature = "kube")]
    if let Some(keeper) = keeper {
        keeper.stop().await;
    }
    accepting.await?;
    connections.close();
    tokio::select! {
        drained = timeout(DRAIN, connections.wait()) => if drained.is_err() {
            tracing::warn!(open = connections.len(), "stopped with requests in hand");
        },
        name = signals.next() => tracing::warn!(signal = name, open = connections.len(), "stopped at once"),
    }
    admin_stop.cancel();
    tracing::info!("stopped");
    Ok(())
}

/// Facts by flags alone, or found and watched; the first answers come later.
#[cfg(feature = "kube")]
async fn start_facts(settings: &Settings, metrics: &Arc<Metrics>) -> Result<Arc<SharedFacts>, AppError> {
    use crate::facts::{ResolvConf, cluster};
    let given = settings.given.clone();
    if settings.facts_from == FactsFrom::Flags {
        return Ok(SharedFacts::fixed(given));
    }
    let file = &settings.resolv_conf;
    let own = match fs::read_to_string(file) {
        Ok(text) => ResolvConf::parse(&text),
        Err(error) => {
            tracing::warn!(file = %file.display(), %error, "our own resolv.conf cannot be read; it tells nothing");
            ResolvConf::default()
        }
    };
    let client = cluster::connect().await.map_err(AppError::Cluster)?;
    let fixed = cluster::Fixed::new(&settings.policy, given, own);
    let of_nodes = cluster::OfNodes { report_port: settings.report_port, lift_taint: settings.lift_taint };
    Ok(cluster::start(&client, fixed, of_nodes, Arc::clone(metrics)))
}

#[cfg(not(feature = "kube"))]
#[expect(clippy::unused_async, reason = "with the client it has to wait")]
async fn start_facts(settings: &Settings, _: &Arc<Metrics>) -> Result<Arc<SharedFacts>, AppError> {
    match settings.facts_from {
        FactsFrom::Flags => Ok(SharedFacts::fixed(settings.given.clone())),
        FactsFrom::Cluster => Err(AppError::NoClient(ArgsError::NoClient)),
    }
}

/// In a Secret they are kept up from here on, and served as soon as they are there.
#[cfg(feature = "kube")]
async fn keep_certificates(
    settings: &Settings,
    certificates: &Arc<Resolver>,
    facts: &Arc<SharedFacts>,
    metrics: &Arc<Metrics>,
) -> Result<Option<Keeper>, AppError> {
    let Source::Secret(secret) = &settings.certificates else { return Ok(None) };
    let client = crate::facts::cluster::connect().await.map_err(AppError::Cluster)?;
    // In a pod the host's name is the pod's; the number tells processes of one machine apart.
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let identity = format!("{}_{}", host.trim(), std::process::id());
    let (certificates, facts, metrics) = (Arc::clone(certificates), Arc::clone(facts), Arc::clone(metrics));
    Ok(Some(Keeper::start(&client, secret.clone(), &identity, certificates, facts, metrics)))
}

fn watch_certificates(
    folder: &Path,
    every: Duration,
    certificates: &Arc<Resolver>,
    metrics: &Arc<Metrics>,
) -> Result<Watch, AppError> {
    let mut watcher = Watcher::new(Folder::new(folder), Arc::clone(certificates));
    let metrics = Arc::clone(metrics);
    let report = move |outcome: Outcome| match outcome {
        Outcome::Unchanged => {}
        Outcome::Swapped(pair) => {
            metrics.certificates_loaded(true);
            let left = pair.leaf().seconds_left(SystemTime::now()).round();
            tracing::info!(seconds_left = left, "serving a new certificate");
        }
        Outcome::Failed { error, repeated } => {
            metrics.certificates_loaded(false);
            if !repeated {
                // A log in JSON shows no causes by itself.
                let error = nodestub_certs::watch::full_text(&error);
                tracing::error!(error, "the certificate was not loaded; the last good one is kept");
            }
        }
    };
    report(watcher.poll(SystemTime::now()));
    watcher.spawn(every, report).map_err(AppError::Watch)
}

async fn bind(address: SocketAddr) -> Result<tokio::net::TcpListener, AppError> {
    listen::bind(address).await.map_err(|source| AppError::Bind { address, source })
}

/// Written beside and renamed, so that whoever waits for the file never reads half of it.
fn write_ports(file: &Path, admission: SocketAddr, admin: SocketAddr) -> Result<(), AppError> {
    let mut beside = file.as_os_str().to_owned();
    beside.push(".new");
    fs::write(&beside, format!("admission={admission}\nadmin={admin}\n"))
        .and_then(|()| fs::rename(&beside, file))
        .map_err(|source| AppError::PortsFile { file: file.to_owned(), source })
}

/// The signals that ask for an end.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// Why the webhook did not start.
#[derive(Debug)]
#[non_exhaustive]
pub enum AppError {
    /// An address could not be bound.
    Bind {
        /// Which.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The file with the ports could not be written.
    PortsFile {
        /// Which.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The cluster cannot be asked for facts.
    #[cfg(feature = "kube")]
    Cluster(crate::facts::cluster::ClusterError),
    /// This build cannot ask a cluster.
    #[cfg(not(feature = "kube"))]
    NoClient(ArgsError),
    /// The system gave no thread for watching certificates.
    Watch(io::Error),
}

impl fmt::Display for AppError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bind { address, .. } => {
                write!(f, "binding {address} failed: choose another with --listen or --admin-listen")
            }
            Self::PortsFile { file, .. } => write!(f, "writing the ports to {} failed", file.display()),
            #[cfg(feature = "kube")]
            Self::Cluster(_) => f.write_str("facts cannot be found in the cluster"),
            #[cfg(not(feature = "kube"))]
            Self::NoClient(_) => f.write_str("facts cannot be found in the cluster"),
            Self::Watch(_) => f.write_str("no thread could be had to watch the certificates"),
        }
    }
}

impl Error for AppError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            #[cfg(feature = "kube")]
            Self::Cluster(source) => Some(source),
            #[cfg(not(feature = "kube"))]
            Self::NoClient(source) => Some(source),
            Self::Bind { source, .. } | Self::PortsFile { source, .. } | Self::Watch(source) => Some(source),
        }
    }
}
