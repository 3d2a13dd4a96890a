//! Flags and environment to types, once, at the start. What is wrong is said before anything is bound.
//!
//! Here is what serving takes; `decision` has what a decision depends on, and `namespaces` those that flags give.

mod decision;
mod namespaces;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

pub(crate) use decision::or_none;
pub use decision::{DEFAULT_MIN_READY_PERCENT, DecisionArgs, FactsFrom};
use namespaces::NamespaceArgs;
pub use namespaces::NamespaceLabels;
pub(crate) use namespaces::pair;

use crate::admit::names::MAX_CLUSTER_DOMAIN_BYTES;
use crate::admit::{Domain, Facts, Policy};
use crate::certificates::args::SourceError;
use crate::certificates::{CertificateArgs, Source};

/// Points new pods at their node's DNS resolver.
///
/// Without a command it serves admission requests.
#[derive(Debug, Parser)]
#[command(name = "nodestub-webhook", version, args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// Another task than serving.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// How to serve.
    #[command(flatten)]
    pub serve: ServeArgs,
}

/// Other tasks than serving.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a CA and a serving certificate, and write ca.crt, tls.crt and tls.key
    Certificates(CertificatesArgs),
    /// Print the settings as a MutatingAdmissionPolicy (Kubernetes 1.36), for a cluster without this webhook
    ///
    /// What a policy cannot express is refused by the flag's name.
    Policy(Box<DecisionArgs>),
}

/// What to certify.
#[derive(Debug, Args)]
pub struct CertificatesArgs {
    /// Folder to write to; made if it is not there
    #[arg(long, value_name = "DIR")]
    pub folder: PathBuf,
    /// Name of the webhook's Service
    #[arg(long, value_name = "NAME", default_value = "nodestub-webhook")]
    pub service: String,
    /// Namespace of the webhook's Service
    #[arg(long, value_name = "NAME", default_value = "nodestub-system")]
    pub namespace: String,
    /// The cluster's domain; adds SERVICE.NAMESPACE.svc.DOMAIN
    #[arg(long, value_name = "DOMAIN")]
    pub cluster_domain: Option<String>,
    /// An IP address that the certificate is good for (repeatable)
    #[arg(long = "ip", value_name = "IP", value_delimiter = ',')]
    pub addresses: Vec<IpAddr>,
    /// A further DNS name that the certificate is good for (repeatable)
    #[arg(long = "dns", value_name = "NAME", value_delimiter = ',')]
    pub names: Vec<String>,
    /// Days that the serving certificate is valid; the CA lives ten times as long
    #[arg(long, value_name = "N", default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=36_500))]
    pub days: u32,
}

/// How to serve. Each flag has an environment form, `NODESTUB_` and the flag's name.
#[derive(Debug, Args)]
pub struct ServeArgs {
    #[command(flatten)]
    decision: DecisionArgs,
    #[command(flatten)]
    namespaces: NamespaceArgs,
    /// Where facts come from that no flag gives: `flags` (nowhere else) or `cluster` (found there, and watched)
    #[arg(long, env = "NODESTUB_FACTS_FROM", value_enum, default_value_t = FactsFrom::Flags)]
    facts_from: FactsFrom,
    /// With `cluster`: the file that tells how this very process asks for names
    #[arg(long, env = "NODESTUB_RESOLV_CONF", value_name = "FILE", default_value = "/etc/resolv.conf")]
    resolv_conf: PathBuf,
    /// With `cluster`: the port of resolvers' metrics pages, which say whether fail-open works on their node; 0: they are not asked
    #[arg(long, env = "NODESTUB_REPORT_PORT", value_name = "PORT", default_value_t = 9253)]
    report_port: u16,
    /// With `cluster`: take the taint nodestub.io/not-ready off nodes whose resolver is ready
    #[arg(long, env = "NODESTUB_LIFT_TAINT")]
    lift_taint: bool,
    /// Where to serve admission over TLS; port 0: any
    #[arg(long, env = "NODESTUB_LISTEN", value_name = "IP:PORT", default_value = "0.0.0.0:8443")]
    listen: SocketAddr,
    /// Where to serve /healthz, /readyz and /metrics, without TLS; port 0: any
    #[arg(long, env = "NODESTUB_ADMIN_LISTEN", value_name = "IP:PORT", default_value = "0.0.0.0:8081")]
    admin_listen: SocketAddr,
    #[command(flatten)]
    certificates: CertificateArgs,
    /// Seconds after which a connection is ended, so that clients meet new certificates and new replicas
    #[arg(long, env = "NODESTUB_CONNECTION_SECONDS", value_name = "N", default_value_t = 300,
          value_parser = clap::value_parser!(u64).range(1..=86_400))]
    connection_seconds: u64,
    /// File to write the addresses to, once both are bound: lines `admission=IP:PORT` and `admin=IP:PORT`
    #[arg(long, env = "NODESTUB_PORTS_FILE", value_name = "FILE")]
    ports_file: Option<PathBuf>,
    /// How to log
    #[arg(long, env = "NODESTUB_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
}

/// One line of log for each event, either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines.
    Json,
}

/// Everything that a serving webhook needs to know.
#[derive(Debug)]
pub struct Settings {
    /// What the operator chose.
    pub policy: Policy,
    /// What the operator says of the cluster; it wins over what is found there.
    pub given: Facts,
    /// Where the rest comes from.
    pub facts_from: FactsFrom,
    /// How this process itself asks for names.
    pub resolv_conf: PathBuf,
    /// Where nodes' resolvers are asked for their metrics; none: they are not asked.
    pub report_port: Option<u16>,
    /// Whether the taint is taken off nodes whose resolver is ready.
    pub lift_taint: bool,
    /// Where admission is served.
    pub listen: SocketAddr,
    /// Where health and metrics are served.
    pub admin_listen: SocketAddr,
    /// Where the certificates come from.
    pub certificates: Source,
    /// How long a connection may live.
    pub connection_age: Duration,
    /// Where to write the bound addresses.
    pub ports_file: Option<PathBuf>,
    /// How to log.
    pub log_format: LogFormat,
}

impl ServeArgs {
    /// Checks what single flags cannot tell, and sorts them into policy and facts.
    ///
    /// # Errors
    /// When a required flag is missing, or flags contradict each other.
    pub fn settings(self) -> Result<Settings, ArgsError> {
        let (policy, mut given) = self.decision.split(self.facts_from)?;
        if self.facts_from == FactsFrom::Cluster && !self.namespaces.is_empty() {
            return Err(ArgsError::NamespacesTwice);
        }
        given.namespaces = self.namespaces.read()?;
        let domain = given.cluster_domain.as_ref().map(ToString::to_string);
        let asks_cluster = self.facts_from == FactsFrom::Cluster;
        let source = self.certificates.source(asks_cluster, &policy.own_namespace, domain);
        let Some(certificates) = source.map_err(ArgsError::Certificates)? else {
            return Err(ArgsError::Missing("--certificates"));
        };
        Ok(Settings {
            policy,
            given,
            facts_from: self.facts_from,
            resolv_conf: self.resolv_conf,
            lift_taint: self.lift_taint,
            report_port: (self.report_port != 0).then_some(self.report_port),
            listen: self.listen,
            admin_listen: self.admin_listen,
            certificates,
            connection_age: Duration::from_secs(self.connection_seconds),
            ports_file: self.ports_file,
            log_format: self.log_format,
        })
    }
}

/// Why the flags make no sense together.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ArgsError {
    /// A required flag is missing.
    Missing(&'static str),
    /// Flags about certificates contradict each other.
    Certificates(SourceError),
    /// No namespace could have a search domain under it.
    LongClusterDomain(Domain),
    /// More local addresses than leave room for a fallback.
    ManyLocalAddresses(usize),
    /// An address that no server can have.
    UselessAddress(IpAddr),
    /// No fallback without fail-open.
    NoFallback,
    /// Not a namespace's name.
    OwnNamespace(String),
    /// A namespace that is given twice.
    NamespaceTwice(String),
    /// Namespaces by flag, though they are watched.
    NamespacesTwice,
    /// This build cannot ask a cluster.
    NoClient,
    /// An annotation of a namespace that is not given.
    AnnotationWithoutNamespace(String),
}

impl fmt::Display for ArgsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(flag) => write!(f, "{flag} is missing; see --help"),
            Self::Certificates(error) => error.fmt(f),
            Self::LongClusterDomain(domain) => write!(
                f,
                "--cluster-domain {domain} is longer than {MAX_CLUSTER_DOMAIN_BYTES} characters, so NAMESPACE.svc.DOMAIN would not always be a name"
            ),
            Self::ManyLocalAddresses(count) => {
                write!(f, "--local-address is given {count} times: give one for each family, two at most")
            }
            Self::UselessAddress(address) => {
                write!(f, "{address} cannot be a nameserver's address: give a unicast address")
            }
            Self::NoFallback => f.write_str(
                "--fallback none is refused without --fail-open-everywhere: pods would have no DNS while their node's resolver is down; use cluster or auto",
            ),
            Self::OwnNamespace(name) => write!(f, "--own-namespace {name:?} is not a namespace's name"),
            Self::NamespaceTwice(name) => {
                write!(f, "--namespace {name} is given twice: put all labels into one, with commas between")
            }
            Self::NamespacesTwice => f.write_str(
                "--namespace is for --facts-from=flags: with facts from the cluster, its namespaces are watched",
            ),
            Self::NoClient => f.write_str(
                "this build has no Kubernetes client: build it with the feature `kube`, or give facts by flags",
            ),
            Self::AnnotationWithoutNamespace(name) => {
                write!(f, "--namespace-annotation is given for {name}, but no --namespace {name}")
            }
        }
    }
}

impl std::error::Error for ArgsError {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admit::Namespace;
    use crate::admit::selector::DEFAULT_LEAVE_ALONE;

    const REQUIRED: [&str; 4] = [
        "nodestub-webhook",
        "--cluster-dns=10.96.0.10",
        "--cluster-domain=cluster.local",
        "--certificates=certs",
    ];

    fn settings(more: &[&str]) -> Result<Settings, String> {
        let cli = Cli::try_parse_from(REQUIRED.iter().chain(more)).map_err(|error| error.to_string())?;
        cli.serve.settings().map_err(|error| error.to_string())
    }

    #[test]
    fn needs_what_it_must_not_guess() {
        settings(&[]).unwrap();
        for missing in 1..REQUIRED.len() {
            let flags =
                REQUIRED.iter().enumerate().filter(|(index, _)| *index != missing).map(|(_, flag)| flag);
            let error = Cli::try_parse_from(flags).unwrap().serve.settings().unwrap_err();
            assert!(matches!(error, ArgsError::Missing(_)), "{error}");
        }
    }

    #[test]
    fn asks_the_cluster_only_with_a_client_and_then_for_all_namespaces() {
        let cluster = |more: &[&str]| {
            let flags = ["nodestub-webhook", "--certificates=certs", "--facts-from=cluster"];
            let cli = Cli::try_parse_from(flags.iter().chain(more)).unwrap();
            cli.serve.settings()
        };
        if cfg!(feature = "kube") {
            let settings = cluster(&[]).unwrap();
            assert_eq!(settings.policy.min_ready_percent, DEFAULT_MIN_READY_PERCENT);
            assert!(settings.given.cluster_dns.is_empty());
            assert_eq!(cluster(&["--namespace=shop"]).unwrap_err(), ArgsError::NamespacesTwice);
        } else {
            assert_eq!(cluster(&[]).unwrap_err(), ArgsError::NoClient);
        }
    }

    #[test]
    fn reads_namespaces_with_labels_and_annotations() {
        let settings = settings(&[
            "--namespace=shop:nodestub.io/inject=enabled,team=a",
            "--namespace=bare",
            "--namespace-annotation=shop:nodestub.io/options=timeout:1,attempts:2",
        ])
        .unwrap();
        let shop = &settings.given.namespaces["shop"];
        assert_eq!(shop.labels["team"], "a");
        assert_eq!(shop.annotations["nodestub.io/options"], "timeout:1,attempts:2");
        assert_eq!(*settings.given.namespaces["bare"], Namespace::default());
    }

    #[test]
    fn tells_no_host_searches_from_unknown_ones() {
        assert_eq!(settings(&[]).unwrap().given.host_searches, None);
        assert_eq!(settings(&["--host-search=none"]).unwrap().given.host_searches, Some(Vec::new()));
        let known = settings(&["--host-search=a.example,b.example"]).unwrap().given.host_searches.unwrap();
        assert_eq!(known.len(), 2);
    }

    #[test]
    fn rejects_flags_that_make_no_sense() {
        for (flags, said) in [
            (&["--fallback=none"][..], "--fail-open-everywhere"),
            (&["--fallback=google"], "not a fallback"),
            (&["--ndots=16"], "16"),
            (&["--options=nonsense"], "not an option"),
            (&["--host-search=_bad"], "not a domain name"),
            (&["--local-address=0.0.0.0"], "unicast"),
            (&["--local-address=10.0.0.1,10.0.0.2,10.0.0.3"], "two at most"),
            (&["--namespace=Shop"], "not a namespace's name"),
            (&["--namespace=a", "--namespace=a"], "given twice"),
            (&["--namespace=a:x"], "not KEY=VALUE"),
            (&["--namespace-annotation=a:b=c"], "no --namespace a"),
            (&["--leave-alone=eci"], "not a selector"),
            (&["--own-namespace=A"], "--own-namespace"),
            (&["--certificates-poll-milliseconds=1"], "10"),
            (&["--resolvers=3"], "not READY/NODES"),
            (&["--resolvers=3/2"], "not READY/NODES"),
            (&["--min-ready-resolvers=50"], "--resolvers is missing"),
            (&["--min-ready-resolvers=101", "--resolvers=1/1"], "101"),
            (&["--rollout=some"], "0% to 100%"),
        ] {
            let error = settings(flags).unwrap_err();
            assert!(error.contains(said), "{flags:?}: {error}");
        }
        let long = format!("--cluster-domain={}", ["a"; 100].join("."));
        let flags = ["nodestub-webhook", "--cluster-dns=10.96.0.10", "--certificates=certs", &long];
        let error = Cli::try_parse_from(flags).unwrap().serve.settings().unwrap_err();
        assert!(matches!(error, ArgsError::LongClusterDomain(_)), "{error}");
    }

    #[test]
    fn keeps_every_built_in_selector() {
        assert_eq!(settings(&[]).unwrap().policy.leave_alone.len(), DEFAULT_LEAVE_ALONE.len());
    }
}
