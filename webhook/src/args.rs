//! Flags and environment to types, once, at the start. What is wrong is said before anything is bound.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::admit::names::{MAX_CLUSTER_DOMAIN_BYTES, is_label};
use crate::admit::selector::DEFAULT_LEAVE_ALONE;
use crate::admit::{
    DnsOption, Domain, Facts, FailOpen, Fallback, Namespace, Overrides, PodSelector, Policy, PoolSearches,
    Resolvers, Share, is_usable,
};
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

/// What decisions depend on: the operator's choices, and facts that the operator gives. Shared with `explain`.
/// Namespaces apart.
#[derive(Debug, Args)]
pub struct DecisionArgs {
    /// Address of the resolver on each node (repeatable: one for each family, the preferred first)
    #[arg(
        long,
        env = "NODESTUB_LOCAL_ADDRESS",
        value_name = "IP",
        value_delimiter = ',',
        default_value = "169.254.20.10"
    )]
    local_address: Vec<IpAddr>,
    /// Address of the cluster DNS Service (repeatable: one for each family; unset: found in the cluster, never guessed)
    #[arg(long, env = "NODESTUB_CLUSTER_DNS", value_name = "IP", value_delimiter = ',')]
    cluster_dns: Vec<IpAddr>,
    /// The cluster's domain, such as cluster.local (unset: found in the cluster, never guessed)
    #[arg(long, env = "NODESTUB_CLUSTER_DOMAIN", value_name = "DOMAIN")]
    cluster_domain: Option<Domain>,
    /// A search domain of the nodes' own resolv.conf (repeatable; `none` when they have none; unset: not known, and pods are told so)
    #[arg(long, env = "NODESTUB_HOST_SEARCH", value_name = "DOMAIN", value_delimiter = ',')]
    host_search: Option<Vec<Domain>>,
    /// Those of nodes that have others, by what the pods there say: PLACE:KEY[=VALUE]:DOMAIN[,DOMAIN...] (repeatable; in the environment, with `;` between)
    ///
    /// PLACE as for --leave-alone; such as node-selector:pool=gpu:gpu.example
    #[arg(long, env = "NODESTUB_POOL_HOST_SEARCH", value_name = "SELECTOR:DOMAINS", value_delimiter = ';')]
    pool_host_search: Vec<PoolSearches>,
    /// How many nodes have a ready resolver, such as 9/10 (unset: found in the cluster)
    #[arg(long, env = "NODESTUB_RESOLVERS", value_name = "READY/NODES")]
    resolvers: Option<Resolvers>,
    /// Percent of nodes whose resolver must be ready, or pods are left alone; 0: never mind (unset: 90 with facts from the cluster, else 0)
    #[arg(long, env = "NODESTUB_MIN_READY_RESOLVERS", value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(0..=100))]
    min_ready_resolvers: Option<u8>,
    /// Share of workloads to inject in namespaces that do not say otherwise
    #[arg(long, env = "NODESTUB_ROLLOUT", value_name = "PERCENT", default_value_t = Share::ALL)]
    rollout: Share,
    /// ndots for pods that do not say otherwise (unset: 5, as without Nodestub)
    #[arg(long, env = "NODESTUB_NDOTS", value_name = "N", value_parser = clap::value_parser!(u8).range(0..=15))]
    ndots: Option<u8>,
    /// Options for pods that do not say otherwise, such as timeout:1,attempts:2
    #[arg(long, env = "NODESTUB_OPTIONS", value_name = "OPTIONS", value_delimiter = ',')]
    options: Vec<DnsOption>,
    /// Search domains to add to pods that do not say otherwise (repeatable)
    #[arg(long, env = "NODESTUB_SEARCHES", value_name = "DOMAIN", value_delimiter = ',')]
    searches: Option<Vec<Domain>>,
    /// What stands behind the local address: cluster, auto (cluster, unless every node fails open), or none (only then)
    #[arg(long, env = "NODESTUB_FALLBACK", value_name = "WHAT")]
    fallback: Option<Fallback>,
    /// Every node's kernel sends queries on to the cluster DNS while its resolver does not listen (unset: as the nodes report)
    #[arg(long, env = "NODESTUB_FAIL_OPEN_EVERYWHERE")]
    fail_open_everywhere: bool,
    /// Pods that run where no resolver listens, besides the known kinds: PLACE:KEY[=VALUE] (repeatable)
    ///
    /// PLACE is label, annotation, node-selector, toleration or resource.
    #[arg(long, env = "NODESTUB_LEAVE_ALONE", value_name = "SELECTOR", value_delimiter = ',')]
    leave_alone: Vec<PodSelector>,
    /// The namespace that the webhook lives in; its pods are left alone
    #[arg(long, env = "NODESTUB_OWN_NAMESPACE", value_name = "NAME", default_value = "nodestub-system")]
    own_namespace: String,
}

/// Namespaces, where nobody watches them.
#[derive(Debug, Args)]
struct NamespaceArgs {
    /// A namespace and its labels: NAME[:LABEL=VALUE[,LABEL=VALUE]...] (repeatable; in the environment, with `;` between)
    #[arg(long, env = "NODESTUB_NAMESPACE", value_name = "NAME:LABELS", value_delimiter = ';')]
    namespace: Vec<NamespaceLabels>,
    /// An annotation of such a namespace: NAME:KEY=VALUE (repeatable; in the environment, one on each line)
    #[arg(
        long,
        env = "NODESTUB_NAMESPACE_ANNOTATION",
        value_name = "NAME:KEY=VALUE",
        value_delimiter = '\n'
    )]
    namespace_annotation: Vec<NamespaceAnnotation>,
}

/// Where facts come from that no flag gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum FactsFrom {
    /// Nowhere: flags give them all.
    Flags,
    /// They are found in the cluster and watched.
    Cluster,
}

/// Percent of nodes whose resolver must be ready where they can be counted.
pub const DEFAULT_MIN_READY_PERCENT: u8 = 90;

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
        if self.facts_from == FactsFrom::Cluster && !self.namespaces.namespace.is_empty() {
            return Err(ArgsError::NamespacesTwice);
        }
        given.namespaces = namespaces(self.namespaces.namespace, self.namespaces.namespace_annotation)?;
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

impl DecisionArgs {
    /// The namespace that the webhook lives in.
    #[cfg(feature = "kube")]
    pub(crate) fn own_namespace(&self) -> &str {
        &self.own_namespace
    }

    /// Sorts the flags into what the operator chose and what they say of the cluster.
    ///
    /// # Errors
    /// When flags contradict each other, or one is missing that nothing else can tell.
    pub fn split(self, facts_from: FactsFrom) -> Result<(Policy, Facts), ArgsError> {
        self.check(facts_from)?;
        let default_percent = match facts_from {
            FactsFrom::Flags => 0,
            FactsFrom::Cluster => DEFAULT_MIN_READY_PERCENT,
        };
        let known = DEFAULT_LEAVE_ALONE.iter().filter_map(|text| text.parse().ok());
        let policy = Policy {
            own_namespace: self.own_namespace,
            local_addresses: self.local_address,
            defaults: Overrides {
                ndots: self.ndots,
                options: self.options,
                searches: self.searches,
                fallback: self.fallback,
                local_addresses: None,
            },
            leave_alone: known.chain(self.leave_alone).collect(),
            min_ready_percent: self.min_ready_resolvers.unwrap_or(default_percent),
            rollout: self.rollout,
        };
        let facts = Facts {
            cluster_dns: self.cluster_dns,
            cluster_domain: self.cluster_domain,
            host_searches: self.host_search.map(or_none),
            pool_searches: self.pool_host_search,
            fail_open: if self.fail_open_everywhere { FailOpen::Everywhere } else { FailOpen::NotProven },
            resolvers: self.resolvers,
            namespaces: BTreeMap::new(),
        };
        Ok((policy, facts))
    }

    fn check(&self, facts_from: FactsFrom) -> Result<(), ArgsError> {
        match facts_from {
            FactsFrom::Flags if self.cluster_domain.is_none() => {
                return Err(ArgsError::Missing("--cluster-domain"));
            }
            FactsFrom::Flags if self.cluster_dns.is_empty() => {
                return Err(ArgsError::Missing("--cluster-dns"));
            }
            FactsFrom::Flags
                if self.min_ready_resolvers.is_some_and(|percent| percent > 0)
                    && self.resolvers.is_none() =>
            {
                return Err(ArgsError::Missing("--resolvers"));
            }
            FactsFrom::Cluster if cfg!(not(feature = "kube")) => return Err(ArgsError::NoClient),
            FactsFrom::Flags | FactsFrom::Cluster => {}
        }
        if let Some(domain) = &self.cluster_domain
            && domain.as_str().len() > MAX_CLUSTER_DOMAIN_BYTES
        {
            return Err(ArgsError::LongClusterDomain(domain.clone()));
        }
        if self.local_address.len() > 2 {
            return Err(ArgsError::ManyLocalAddresses(self.local_address.len()));
        }
        if let Some(address) = self.local_address.iter().chain(&self.cluster_dns).find(|one| !is_usable(one))
        {
            return Err(ArgsError::UselessAddress(*address));
        }
        if facts_from == FactsFrom::Flags
            && self.fallback == Some(Fallback::None)
            && !self.fail_open_everywhere
        {
            return Err(ArgsError::NoFallback);
        }
        if !is_label(&self.own_namespace) {
            return Err(ArgsError::OwnNamespace(self.own_namespace.clone()));
        }
        Ok(())
    }
}

/// A list of only `none` is empty: known to be.
pub(crate) fn or_none(names: Vec<Domain>) -> Vec<Domain> {
    let none = names.len() == 1 && names.iter().all(|name| name.as_str() == "none");
    if none { Vec::new() } else { names }
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

fn namespaces(
    names: Vec<NamespaceLabels>,
    annotations: Vec<NamespaceAnnotation>,
) -> Result<BTreeMap<String, Arc<Namespace>>, ArgsError> {
    let mut namespaces: BTreeMap<String, Namespace> = BTreeMap::new();
    for NamespaceLabels { name, labels } in names {
        let namespace = Namespace { labels, annotations: BTreeMap::new() };
        if namespaces.insert(name.clone(), namespace).is_some() {
            return Err(ArgsError::NamespaceTwice(name));
        }
    }
    for NamespaceAnnotation { name, key, value } in annotations {
        let Some(namespace) = namespaces.get_mut(&name) else {
            return Err(ArgsError::AnnotationWithoutNamespace(name));
        };
        namespace.annotations.insert(key, value);
    }
    Ok(namespaces.into_iter().map(|(name, namespace)| (name, Arc::new(namespace))).collect())
}

/// A namespace and its labels: `NAME[:LABEL=VALUE[,LABEL=VALUE]...]`.
#[derive(Debug, Clone)]
pub struct NamespaceLabels {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

impl std::str::FromStr for NamespaceLabels {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, labels) = text.split_once(':').unwrap_or((text, ""));
        let mut read = BTreeMap::new();
        for label in labels.split(',').filter(|label| !label.is_empty()) {
            let (key, value) = pair(label)?;
            read.insert(key, value);
        }
        Ok(Self { name: namespace_name(name)?, labels: read })
    }
}

/// The value of `--namespace-annotation`.
#[derive(Debug, Clone)]
struct NamespaceAnnotation {
    name: String,
    key: String,
    value: String,
}

impl std::str::FromStr for NamespaceAnnotation {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, annotation) = text.split_once(':').ok_or("write NAME:KEY=VALUE")?;
        let (key, value) = pair(annotation)?;
        Ok(Self { name: namespace_name(name)?, key, value })
    }
}

fn namespace_name(name: &str) -> Result<String, String> {
    if is_label(name) { Ok(name.to_owned()) } else { Err(format!("{name:?} is not a namespace's name")) }
}

pub(crate) fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("{text:?} is not KEY=VALUE")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
