//! The flags of `kubectl nodestub`, and where its facts come from.
//!
//! Without a cluster, flags tell all. With one (`--cluster`, `--kubeconfig`, `--context`) the facts are found as the
//! webhook finds them, and the webhook's own settings are read from the ConfigMap that it gets them from; a flag wins
//! over either. What only the webhook can see from its place (its resolv.conf) is read from what it published.

use std::error::Error;
use std::fmt;
use std::fmt::Write as _;
use std::fs;
use std::io::{self, Read as _};
use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, Parser, Subcommand};

use super::explain;
use super::manifest::{ManifestError, subjects};
use crate::admit::{Facts, Namespace, Policy};
use crate::args::{ArgsError, DecisionArgs, FactsFrom, NamespaceLabels, pair};

/// The namespace of manifests that name none.
const DEFAULT_NAMESPACE: &str = "default";
/// The largest manifest, in bytes.
const MAX_MANIFEST_BYTES: u64 = 16 * 1024 * 1024;
/// The ConfigMap in the webhook's namespace that its settings stand in, as environment variables.
pub const SETTINGS_CONFIG_MAP: &str = "nodestub-settings";

/// Nodestub's tool for operators.
#[derive(Debug, Parser)]
#[command(name = "kubectl-nodestub", bin_name = "kubectl nodestub", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What can be done.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Say what would become of a manifest's pods, by which rule, and what their resolv.conf would be
    ///
    /// Nothing is created or changed. Without --cluster, --kubeconfig or --context no cluster is asked.
    Explain(Box<ExplainArgs>),
    /// Show the webhook's certificates, whom the API server trusts, and what comes next
    ///
    /// Fails when the API server does not trust the certificate.
    #[cfg(feature = "kube")]
    Certs(crate::certificates::show::CertsArgs),
}

/// What to explain.
#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// The manifest, of pods or of what makes pods; - reads standard input
    #[arg(short = 'f', long = "filename", value_name = "FILE")]
    file: PathBuf,
    /// The namespace, where the manifest names none, and its labels: NAME[:LABEL=VALUE[,LABEL=VALUE]...]
    ///
    /// With a cluster, labels that are given here stand in for those that it has.
    #[arg(short = 'n', long, value_name = "NAME:LABELS")]
    namespace: Option<NamespaceLabels>,
    /// An annotation of that namespace (repeatable)
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    namespace_annotation: Vec<(String, String)>,
    /// Find facts and settings in the cluster of the current context
    #[arg(long)]
    cluster: bool,
    /// Find them in the cluster that this file names
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Find them in the cluster of this context
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
    #[command(flatten)]
    decision: DecisionArgs,
}

impl ExplainArgs {
    fn asks_cluster(&self) -> bool {
        self.cluster || self.kubeconfig.is_some() || self.context.is_some()
    }
}

/// What a decision is made of, and what is said of it.
struct Known {
    policy: Policy,
    facts: Facts,
    /// Lines for the reader: each fact with its origin.
    told: Vec<String>,
}

/// Runs a command line, and gives what to print.
///
/// # Errors
/// When the flags are wrong, the manifest cannot be read, or the cluster cannot be asked.
pub fn run(words: &[String]) -> Result<String, CliError> {
    let args = match Cli::try_parse_from(words).map_err(CliError::Flags)?.command {
        Command::Explain(args) => args,
        #[cfg(feature = "kube")]
        Command::Certs(args) => return in_cluster::certs(&args),
    };
    let text = read(&args.file)?;
    let subjects = subjects(&text).map_err(CliError::Manifest)?;
    let given = args.namespace.clone();
    let annotations = args.namespace_annotation.clone();
    let mut known =
        if args.asks_cluster() { from_cluster(words, *args)? } else { from_flags(args.decision)? };

    let in_cluster = known.facts.namespaces.clone();
    let mut text = String::new();
    for line in &known.told {
        // Writing to a String does not fail.
        let _ = writeln!(text, "{line}");
    }
    for subject in &subjects {
        let name = subject.namespace.clone().or(given.as_ref().map(|one| one.name.clone()));
        let name = name.unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned());
        let mut namespace = in_cluster.get(&name).map(|known| (**known).clone());
        if let Some(given) = given.as_ref().filter(|given| given.name == name) {
            let known = namespace.get_or_insert_with(Namespace::default);
            known.labels.extend(given.labels.clone());
            known.annotations.extend(annotations.iter().cloned());
        }
        known.facts.namespaces.clear();
        if let Some(namespace) = namespace {
            known.facts.namespaces.insert(name.clone(), Arc::new(namespace));
        }
        let _ = write!(text, "\n{}", explain(&known.policy, &known.facts, subject, &name));
    }
    Ok(text.trim_start_matches('\n').to_owned())
}

fn read(file: &PathBuf) -> Result<String, CliError> {
    let failed = |source| CliError::Read { file: file.clone(), source };
    let mut text = String::new();
    let mut limited: Box<dyn io::Read> = if file.as_os_str() == "-" {
        Box::new(io::stdin().take(MAX_MANIFEST_BYTES))
    } else {
        Box::new(fs::File::open(file).map_err(failed)?.take(MAX_MANIFEST_BYTES))
    };
    limited.read_to_string(&mut text).map_err(failed)?;
    Ok(text)
}

fn from_flags(decision: DecisionArgs) -> Result<Known, CliError> {
    let (policy, facts) = decision.split(FactsFrom::Flags).map_err(CliError::Args)?;
    Ok(Known { policy, facts, told: Vec::new() })
}

#[cfg(not(feature = "kube"))]
fn from_cluster(_: &[String], _: ExplainArgs) -> Result<Known, CliError> {
    Err(CliError::Args(ArgsError::NoClient))
}

#[cfg(feature = "kube")]
use in_cluster::from_cluster;

#[cfg(feature = "kube")]
mod in_cluster {
    use std::collections::BTreeMap;

    use clap::parser::ValueSource;
    use clap::{CommandFactory as _, FromArgMatches as _};
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::api::Api;
    use kube::config::{KubeConfigOptions, Kubeconfig};
    use kube::{Client, Config};

    use super::*;
    use crate::admit::FailOpen;
    use crate::certificates::show::{CertsArgs, show};
    use crate::facts::cluster::{ClusterError, Fixed, connect, look_once};
    use crate::facts::publish::{FACTS_CONFIG_MAP, FACTS_NAMESPACE};
    use crate::facts::{Origin, ResolvConf};

    pub(super) fn from_cluster(words: &[String], args: ExplainArgs) -> Result<Known, CliError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.map_err(CliError::Runtime)?.block_on(look(words, args))
    }

    async fn look(words: &[String], args: ExplainArgs) -> Result<Known, CliError> {
        let client =
            client(args.kubeconfig.as_ref(), args.context.as_ref()).await.map_err(CliError::Cluster)?;
        let own_namespace = args.decision.own_namespace().to_owned();
        let mut told = Vec::new();
        let decision = match config_map(&client, &own_namespace, SETTINGS_CONFIG_MAP).await {
            Ok(settings) => {
                told.push(format!("settings: ConfigMap {own_namespace}/{SETTINGS_CONFIG_MAP}, and flags"));
                with_settings(words, &settings)?
            }
            Err(why) => {
                told.push(format!(
                    "settings: flags alone; ConfigMap {own_namespace}/{SETTINGS_CONFIG_MAP}: {why}"
                ));
                args.decision
            }
        };
        let (policy, given) = decision.split(FactsFrom::Cluster).map_err(CliError::Args)?;
        let fixed = Fixed::new(&policy, given, ResolvConf::default());
        let mut found = look_once(&client, &fixed).await.map_err(CliError::Cluster)?;
        if let Ok(published) = config_map(&client, FACTS_NAMESPACE, FACTS_CONFIG_MAP).await {
            complete(&mut found.facts, &mut found.origins, &published);
        }
        told.extend(found.origins.iter().map(|(fact, origin)| {
            let facts = &found.facts;
            let list =
                |words: Vec<String>| if words.is_empty() { "none".to_owned() } else { words.join(" ") };
            let value = match *fact {
                "cluster_dns" => list(facts.cluster_dns.iter().map(ToString::to_string).collect()),
                "cluster_domain" => list(facts.cluster_domain.iter().map(ToString::to_string).collect()),
                "host_searches" => {
                    list(facts.host_searches.iter().flatten().map(ToString::to_string).collect())
                }
                "fail_open" => facts.fail_open.to_string(),
                _ => list(facts.resolvers.iter().map(ToString::to_string).collect()),
            };
            format!("{fact}: {value} ({origin})")
        }));
        Ok(Known { policy, facts: found.facts, told })
    }

    pub(super) fn certs(args: &CertsArgs) -> Result<String, CliError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let shown = runtime.map_err(CliError::Runtime)?.block_on(async {
            let client = client(args.kubeconfig.as_ref(), args.context.as_ref()).await?;
            show(&client, args).await
        });
        let shown = shown.map_err(CliError::Cluster)?;
        if shown.is_good { Ok(shown.text) } else { Err(CliError::Distrusted(shown.text)) }
    }

    async fn client(kubeconfig: Option<&PathBuf>, context: Option<&String>) -> Result<Client, ClusterError> {
        if kubeconfig.is_none() && context.is_none() {
            return connect().await;
        }
        let failed = |source| ClusterError::Kubeconfig(Box::new(source));
        let options = KubeConfigOptions { context: context.cloned(), ..KubeConfigOptions::default() };
        let config = match kubeconfig {
            None => Config::from_kubeconfig(&options).await,
            Some(file) => {
                let read = Kubeconfig::read_from(file).map_err(failed)?;
                Config::from_custom_kubeconfig(read, &options).await
            }
        };
        Client::try_from(config.map_err(failed)?).map_err(|source| ClusterError::Client(Box::new(source)))
    }

    async fn config_map(
        client: &Client,
        namespace: &str,
        name: &str,
    ) -> Result<BTreeMap<String, String>, String> {
        let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
        match maps.get_opt(name).await {
            Ok(Some(map)) => Ok(map.data.unwrap_or_default()),
            Ok(None) => Err("it is not there".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// The same command line, with the webhook's settings where it says nothing.
    fn with_settings(
        words: &[String],
        settings: &BTreeMap<String, String>,
    ) -> Result<DecisionArgs, CliError> {
        let matches = Cli::command().try_get_matches_from(words).map_err(CliError::Flags)?;
        let mut all = words.to_vec();
        if let Some((name, matches)) = matches.subcommand()
            && let Some(command) = Cli::command().find_subcommand(name)
        {
            for flag in command.get_arguments() {
                let by_hand = matches.value_source(flag.get_id().as_str()) == Some(ValueSource::CommandLine);
                let value = flag.get_env().and_then(|key| settings.get(key.to_str()?));
                let (Some(value), Some(long), false) = (value, flag.get_long(), by_hand) else { continue };
                if flag.get_action().takes_values() {
                    all.push(format!("--{long}={value}"));
                } else if value == "true" {
                    all.push(format!("--{long}"));
                }
            }
        }
        let matches = Cli::command().try_get_matches_from(all).map_err(CliError::Settings)?;
        match Cli::from_arg_matches(&matches).map_err(CliError::Settings)?.command {
            Command::Explain(args) => Ok(args.decision),
            Command::Certs(_) => Err(CliError::Args(ArgsError::NoClient)),
        }
    }

    /// What the webhook sees from its place, and this machine does not.
    fn complete(
        facts: &mut Facts,
        origins: &mut [(&'static str, Origin)],
        published: &BTreeMap<String, String>,
    ) {
        let origin = || Origin::Object(format!("ConfigMap {FACTS_NAMESPACE}/{FACTS_CONFIG_MAP}"));
        for (fact, known) in origins.iter_mut().filter(|(_, origin)| !origin.is_known()) {
            match *fact {
                "cluster_dns" => {
                    let list = published.get("cluster-dns").map(String::as_str).unwrap_or_default();
                    if let Ok(addresses) = list.split(',').map(str::parse).collect::<Result<Vec<_>, _>>() {
                        (facts.cluster_dns, *known) = (addresses, origin());
                    }
                }
                "cluster_domain" => {
                    if let Some(domain) = published.get("cluster-domain").and_then(|text| text.parse().ok()) {
                        (facts.cluster_domain, *known) = (Some(domain), origin());
                    }
                }
                "fail_open" => {
                    let list = published.get("fail-open").map(String::as_str).unwrap_or_default();
                    if let Ok(addresses) = list.split(',').map(str::parse).collect::<Result<Vec<_>, _>>() {
                        (facts.fail_open, *known) = (FailOpen::At(addresses), origin());
                    }
                }
                _ => {}
            }
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn takes_the_webhooks_settings_where_no_flag_says_otherwise() {
            let words = ["kubectl-nodestub", "explain", "-fx", "--cluster", "--ndots=2"].map(str::to_owned);
            let settings = [
                ("NODESTUB_NDOTS", "3"),
                ("NODESTUB_ROLLOUT", "25%"),
                ("NODESTUB_FAIL_OPEN_EVERYWHERE", "true"),
                ("NODESTUB_LISTEN", "0.0.0.0:8443"),
            ];
            let settings = settings.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
            let decision = with_settings(&words, &settings).unwrap();
            let (policy, facts) = decision.split(FactsFrom::Cluster).unwrap();
            assert_eq!((policy.defaults.ndots, policy.rollout.to_string()), (Some(2), "25%".to_owned()));
            assert_eq!(facts.fail_open, FailOpen::Everywhere);
            let bad = [("NODESTUB_ROLLOUT".to_owned(), "some".to_owned())].into();
            assert!(matches!(with_settings(&words, &bad), Err(CliError::Settings(_))));
        }
    }
}

/// Why nothing is explained.
#[derive(Debug)]
#[non_exhaustive]
pub enum CliError {
    /// The command line; also its help and version.
    Flags(clap::Error),
    /// What the webhook's settings in the cluster say.
    Settings(clap::Error),
    /// Flags that contradict each other.
    Args(ArgsError),
    /// The file.
    Read {
        /// Which.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What is in it.
    Manifest(ManifestError),
    /// The system gave no event loop.
    Runtime(io::Error),
    /// The API server does not trust the webhook; what is to be printed.
    Distrusted(String),
    /// The cluster.
    #[cfg(feature = "kube")]
    Cluster(crate::facts::cluster::ClusterError),
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flags(error) => error.fmt(f),
            Self::Settings(error) => {
                write!(f, "the webhook's settings in the cluster cannot be used: {error}")
            }
            Self::Args(_) => f.write_str("give the facts by flags, or name a cluster with --cluster"),
            Self::Read { file, .. } => write!(f, "reading {} failed", file.display()),
            Self::Manifest(_) => f.write_str("there is nothing to explain"),
            Self::Runtime(_) => f.write_str("starting failed"),
            Self::Distrusted(_) => f.write_str("the API server does not trust the webhook"),
            #[cfg(feature = "kube")]
            Self::Cluster(_) => f.write_str("the cluster cannot be asked"),
        }
    }
}

impl Error for CliError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Flags(_) | Self::Settings(_) | Self::Distrusted(_) => None,
            Self::Args(source) => Some(source),
            Self::Read { source, .. } | Self::Runtime(source) => Some(source),
            Self::Manifest(source) => Some(source),
            #[cfg(feature = "kube")]
            Self::Cluster(source) => Some(source),
        }
    }
}
