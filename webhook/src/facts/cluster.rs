//! Watches the cluster, and makes a new snapshot whenever that changes a fact.
//!
//! One task hears all watches and owns what was heard, so nothing is locked. Whatever comes at once becomes one
//! snapshot. A watch that fails is tried again, after at most 30 seconds (`kube`'s back-off); what it told before
//! stays. Whatever is refused (no right, no such kind) is an answer too: that source knows nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::error::Error;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{BoxStream, SelectAll, select_all};
use futures_util::{Stream, StreamExt as _};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace as KubeNamespace, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::Api;
use kube::core::{ObjectMeta, PartialObjectMeta};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Client, Config, Resource, ResourceExt as _};
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;

use super::ask::{self, Nodes};
use super::find::{Found, find};
use super::publish::{self, Published};
use super::reports::Reports;
use super::resolv_conf::ResolvConf;
use super::seen::{
    COREFILE, COREFILES, DAEMON_SET, DNS_LABEL, DNS_SERVICES, DnsService, ENDPOINTS, HOST_SEARCHES,
    HOST_SEARCHES_KEY, KNOWN_DNS_SERVICES, Listing, NAMESPACES, POOL_SEARCHES_KEY, RESOLVERS, SEARCHES,
    SearchTexts, Seen, Told,
};
use super::{SharedFacts, Snapshot, taint};
use crate::admit::{Facts, Namespace, Policy, Resolvers};
use crate::metrics::Metrics;

/// The namespace of the cluster's own parts.
const KUBE_SYSTEM: &str = "kube-system";
/// What comes at once, at most, before a snapshot is made.
const BATCH: usize = 4096;
/// How long a pod may wait for its namespace to be asked for; the API server itself waits two or three seconds.
const ASK_TIMEOUT: Duration = Duration::from_millis(800);
/// Namespaces that are asked for at the same time; further pods are decided by what is known.
const ASK_AT_ONCE: usize = 16;
/// How long the API server may take for one answer outside watches.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// What does not change while the webhook runs.
#[derive(Debug, Clone)]
pub struct Fixed {
    /// Facts by flag.
    pub given: Facts,
    /// Our own resolv.conf.
    pub own: ResolvConf,
    /// The resolvers' addresses.
    pub local_addresses: Vec<IpAddr>,
    /// The namespace that the webhook lives in.
    pub own_namespace: String,
}

impl Fixed {
    /// Out of policy and flags.
    #[must_use]
    pub fn new(policy: &Policy, given: Facts, own: ResolvConf) -> Self {
        let (local_addresses, own_namespace) = (policy.local_addresses.clone(), policy.own_namespace.clone());
        Self { given, own, local_addresses, own_namespace }
    }
}

/// The client for the cluster that we run in, or that `KUBECONFIG` names.
///
/// # Errors
/// When neither tells where the API server is, or what they tell cannot be used. Nothing is asked yet.
pub async fn connect() -> Result<Client, ClusterError> {
    let mut config = Config::infer().await.map_err(|source| ClusterError::Config(Box::new(source)))?;
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    Client::try_from(config).map_err(|source| ClusterError::Client(Box::new(source)))
}

/// What is done with the resolvers of nodes, besides counting them.
#[derive(Debug, Clone, Copy)]
pub struct OfNodes {
    /// Where they are asked whether fail-open works; none: they are not asked.
    pub report_port: Option<u16>,
    /// Whether the taint is taken off nodes whose resolver is ready.
    pub lift_taint: bool,
}

/// Starts to watch. Until everything has answered once, the snapshot names what is awaited.
pub fn start(client: &Client, fixed: Fixed, of_nodes: OfNodes, metrics: Arc<Metrics>) -> Arc<SharedFacts> {
    let awaited = World::default().awaited();
    let first = Snapshot { facts: fixed.given.clone(), awaited };
    let asking = Arc::new(Semaphore::new(ASK_AT_ONCE));
    let namespaces: Api<KubeNamespace> = Api::all(client.clone());
    let shared = SharedFacts::watched(first, move |name| {
        let (namespaces, asking) = (namespaces.clone(), Arc::clone(&asking));
        Box::pin(async move {
            let _permit = asking.try_acquire_owned().ok()?;
            let asked = timeout(ASK_TIMEOUT, namespaces.get_metadata_opt(&name)).await.ok()?.ok()??;
            Some(namespace(asked.metadata))
        })
    });
    let (sender, receiver) = watch::channel(None);
    tokio::spawn(publish::run(client.clone(), receiver, Arc::clone(&metrics)));
    let mut watches = watches(client, &fixed.own_namespace);
    let (nodes, nodes_to_ask) = watch::channel(Nodes::new());
    let (ready, ready_nodes) = watch::channel(BTreeSet::new());
    if of_nodes.lift_taint {
        tokio::spawn(taint::run(client.clone(), ready_nodes, Arc::clone(&metrics)));
    }
    if let Some(port) = of_nodes.report_port {
        let rounds = ask::rounds(nodes_to_ask, port, Arc::clone(&metrics));
        let heard = rounds.map(|reports| -> Heard {
            let change: Change = Box::new(move |world| world.reports = reports);
            Heard { source: ENDPOINTS, change: Ok(change), refusal: None }
        });
        watches.push(heard.boxed());
    }
    let keeper = Keeper { shared: Arc::clone(&shared), fixed, metrics, sender, nodes, ready, said: None };
    tokio::spawn(keeper.run(watches));
    shared
}

/// Looks at everything once, for `explain`.
///
/// # Errors
/// When namespaces cannot be listed. Other sources that fail are as if they were not there.
pub async fn look_once(client: &Client, fixed: &Fixed) -> Result<Found, ClusterError> {
    let mut world = World::default();
    let mut watches = watches(client, &fixed.own_namespace);
    while !world.awaited().is_empty() {
        // Watches never end by themselves.
        let Some(heard) = watches.next().await else { break };
        match heard.change {
            Ok(change) => change(&mut world),
            Err(error) => return Err(ClusterError::Look { source_name: heard.source, cause: error }),
        }
    }
    Ok(find(&fixed.given, &world.seen(), &fixed.own, &fixed.local_addresses))
}

/// All that was heard.
#[derive(Debug, Default)]
struct World {
    namespaces: Listing<Arc<Namespace>>,
    labelled: Listing<DnsService>,
    known: [Listing<DnsService>; 2],
    corefiles: [Listing<String>; 2],
    host_searches: Listing<SearchTexts>,
    resolvers: Listing<Resolvers>,
    endpoints: Listing<Vec<Endpoint>>,
    reports: Reports,
}

impl World {
    fn seen(&self) -> Seen {
        let all = |listings: &[Listing<DnsService>; 2]| -> BTreeMap<String, DnsService> {
            let every = listings.iter().flat_map(Listing::current);
            every.map(|(key, service)| (key.clone(), service.clone())).collect()
        };
        let corefiles = self.corefiles.iter().flat_map(Listing::current);
        Seen {
            namespaces: self.namespaces.current().clone(),
            labelled: self.labelled.current().clone(),
            known: all(&self.known),
            corefiles: corefiles
                .map(|(key, text)| (key.rsplit('/').next().unwrap_or(key).to_owned(), text.clone()))
                .collect(),
            host_searches: self.host_searches.current().values().next().cloned().unwrap_or_default(),
            resolvers: self.resolvers.current().values().next().copied(),
            reports: self.reports.clone(),
        }
    }

    /// One address of each node's resolver; a node may have one in each family.
    fn nodes(&self) -> Nodes {
        let mut nodes = Nodes::new();
        for endpoint in self.endpoints.current().values().flatten() {
            nodes.entry(endpoint.node.clone()).or_insert(endpoint.address);
        }
        nodes
    }

    fn ready_nodes(&self) -> BTreeSet<String> {
        let endpoints = self.endpoints.current().values().flatten();
        endpoints.filter(|endpoint| endpoint.is_ready).map(|endpoint| endpoint.node.clone()).collect()
    }

    fn awaited(&self) -> Vec<&'static str> {
        let answered = [
            (NAMESPACES, self.namespaces.answered()),
            (DNS_SERVICES, self.labelled.answered() && self.known.iter().all(Listing::answered)),
            (COREFILE, self.corefiles.iter().all(Listing::answered)),
            (SEARCHES, self.host_searches.answered()),
            (DAEMON_SET, self.resolvers.answered()),
            (ENDPOINTS, self.endpoints.answered()),
        ];
        answered.iter().filter(|(_, answered)| !answered).map(|(name, _)| *name).collect()
    }
}

/// One thing heard, from which watch.
struct Heard {
    source: &'static str,
    change: Result<Change, watcher::Error>,
    /// The API server's words, where it refuses to tell.
    refusal: Option<String>,
}

type Change = Box<dyn FnOnce(&mut World) + Send>;

fn watches(client: &Client, own_namespace: &str) -> SelectAll<BoxStream<'static, Heard>> {
    let everything = watcher::Config::default;
    let named = |name: &str| watcher::Config::default().fields(&format!("metadata.name={name}"));
    let system = |name: &str| -> (Api<ConfigMap>, watcher::Config) {
        (Api::namespaced(client.clone(), KUBE_SYSTEM), named(name))
    };
    let services = |namespace: &str| -> Api<Service> { Api::namespaced(client.clone(), namespace) };

    let namespaces = watcher(Api::<PartialObjectMeta<KubeNamespace>>::all(client.clone()), everything());
    let labelled = watcher(Api::<Service>::all(client.clone()), everything().labels(DNS_LABEL));
    let [(rke2_namespace, rke2), (openshift_namespace, openshift)] = KNOWN_DNS_SERVICES;
    let [coredns, rke2_coredns] = COREFILES.map(system);
    let searches = Api::<ConfigMap>::namespaced(client.clone(), own_namespace);
    let daemon_sets = Api::<DaemonSet>::namespaced(client.clone(), KUBE_SYSTEM);
    let slices = Api::<EndpointSlice>::namespaced(client.clone(), KUBE_SYSTEM);
    let of_resolvers = everything().labels(&format!("kubernetes.io/service-name={RESOLVERS}"));
    select_all([
        hear(
            NAMESPACES,
            namespaces,
            |world| &mut world.namespaces,
            |object| Some(Arc::new(namespace(object.metadata.clone()))),
        ),
        hear(DNS_SERVICES, labelled, |world| &mut world.labelled, dns_service),
        hear(
            DNS_SERVICES,
            watcher(services(rke2_namespace), named(rke2)),
            |world| &mut world.known[0],
            dns_service,
        ),
        hear(
            DNS_SERVICES,
            watcher(services(openshift_namespace), named(openshift)),
            |world| &mut world.known[1],
            dns_service,
        ),
        hear(COREFILE, watcher(coredns.0, coredns.1), |world| &mut world.corefiles[0], corefile),
        hear(COREFILE, watcher(rke2_coredns.0, rke2_coredns.1), |world| &mut world.corefiles[1], corefile),
        hear(
            SEARCHES,
            watcher(searches, named(HOST_SEARCHES)),
            |world| &mut world.host_searches,
            |map: &ConfigMap| {
                let text = |key: &str| map.data.as_ref()?.get(key).cloned();
                Some(SearchTexts { all: text(HOST_SEARCHES_KEY), pools: text(POOL_SEARCHES_KEY) })
            },
        ),
        hear(
            DAEMON_SET,
            watcher(daemon_sets, named(RESOLVERS)),
            |world| &mut world.resolvers,
            |set: &DaemonSet| set.status.as_ref().map(resolvers),
        ),
        hear(ENDPOINTS, watcher(slices, of_resolvers), |world| &mut world.endpoints, endpoints),
    ])
}

/// A watch as a stream of changes to what was heard.
fn hear<K, T>(
    source: &'static str,
    events: impl Stream<Item = watcher::Result<Event<K>>> + Send + 'static,
    place: fn(&mut World) -> &mut Listing<T>,
    read: fn(&K) -> Option<T>,
) -> BoxStream<'static, Heard>
where
    K: Resource + Send + 'static,
    T: Send + 'static,
{
    let key = |object: &K| match object.namespace() {
        Some(namespace) => format!("{namespace}/{}", object.name_any()),
        None => object.name_any(),
    };
    let told = move |event: Event<K>| match event {
        Event::Init => Told::Begin,
        Event::InitApply(object) => Told::Listed(key(&object), read(&object)),
        Event::InitDone => Told::Complete,
        Event::Apply(object) => Told::Changed(key(&object), read(&object)),
        Event::Delete(object) => Told::Gone(key(&object)),
    };
    let events = events.default_backoff().map(move |event| {
        let mut refusal = None;
        let told = match event {
            Ok(event) => Ok(told(event)),
            // Without namespaces nothing can be decided: that is waited for.
            Err(error) if source != NAMESPACES && is_refusal(&error) => {
                refusal = Some(in_one_line(&error));
                Ok(Told::Refused)
            }
            Err(error) => Err(error),
        };
        let change = told.map(|told| -> Change { Box::new(move |world| place(world).hear(told)) });
        Heard { source, change, refusal }
    });
    events.boxed()
}

fn is_refusal(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::InitialListFailed(kube::Error::Api(status)) if [403, 404].contains(&status.code))
}

fn namespace(metadata: ObjectMeta) -> Namespace {
    Namespace {
        labels: metadata.labels.unwrap_or_default(),
        annotations: metadata.annotations.unwrap_or_default(),
    }
}

fn dns_service(service: &Service) -> Option<DnsService> {
    let spec = service.spec.as_ref()?;
    // `clusterIPs` since Kubernetes 1.20; `None` stands there for a headless Service.
    let addresses: Vec<&String> = match &spec.cluster_ips {
        Some(all) if !all.is_empty() => all.iter().collect(),
        _ => spec.cluster_ip.iter().collect(),
    };
    Some(DnsService {
        addresses: addresses.into_iter().filter_map(|text| text.parse().ok()).collect(),
        serves_dns: spec.ports.iter().flatten().any(|port| port.port == 53),
    })
}

fn corefile(map: &ConfigMap) -> Option<String> {
    map.data.as_ref()?.get("Corefile").cloned()
}

/// A resolver's pod.
#[derive(Debug)]
struct Endpoint {
    node: String,
    address: IpAddr,
    /// `serving`: `ready` is always true in slices of a Service that publishes addresses that are not.
    is_ready: bool,
}

fn endpoints(slice: &EndpointSlice) -> Option<Vec<Endpoint>> {
    let all = slice.endpoints.iter().filter_map(|endpoint| {
        let address = endpoint.addresses.first()?.parse().ok()?;
        let node = endpoint.node_name.clone().unwrap_or_else(|| format!("{address}"));
        let is_ready = endpoint.conditions.as_ref().and_then(|all| all.serving).unwrap_or(false);
        Some(Endpoint { node, address, is_ready })
    });
    Some(all.collect())
}

fn resolvers(status: &k8s_openapi::api::apps::v1::DaemonSetStatus) -> Resolvers {
    // Never negative by the API's rules.
    let number = |number: i32| u32::try_from(number).unwrap_or(0);
    Resolvers { ready: number(status.number_ready), desired: number(status.desired_number_scheduled) }
}

/// Turns what is heard into snapshots.
struct Keeper {
    shared: Arc<SharedFacts>,
    fixed: Fixed,
    metrics: Arc<Metrics>,
    sender: watch::Sender<Option<Published>>,
    nodes: watch::Sender<Nodes>,
    ready: watch::Sender<BTreeSet<String>>,
    /// What was last said in the log.
    said: Option<[String; 5]>,
}

impl Keeper {
    async fn run(mut self, watches: SelectAll<BoxStream<'static, Heard>>) -> Infallible {
        let mut world = World::default();
        let mut failing: BTreeMap<&'static str, String> = BTreeMap::new();
        let mut batches = watches.ready_chunks(BATCH);
        loop {
            // Watches never end by themselves; should they, the last snapshot stays.
            let Some(batch) = batches.next().await else { std::future::pending().await };
            for Heard { source, change, refusal } in batch {
                match change {
                    Ok(change) => {
                        change(&mut world);
                        if let Some(error) = refusal {
                            self.metrics.watch_failed(source);
                            if failing.insert(source, error.clone()).as_ref() != Some(&error) {
                                tracing::warn!(
                                    source,
                                    error,
                                    "the API server refuses a watch; it tells nothing new"
                                );
                            }
                        } else if failing.remove(source).is_some() {
                            tracing::info!(source, "the API server answers again");
                        }
                    }
                    Err(error) => {
                        self.metrics.watch_failed(source);
                        let error = in_one_line(&error);
                        if failing.insert(source, error.clone()).is_none() {
                            tracing::warn!(source, error, "a watch failed; what it told before is kept");
                        }
                    }
                }
            }
            self.take(&world);
        }
    }

    fn take(&mut self, world: &World) {
        let Fixed { given, own, local_addresses, .. } = &self.fixed;
        let awaited = world.awaited();
        self.nodes.send_if_modified(|last| {
            let nodes = world.nodes();
            let new = *last != nodes;
            *last = nodes;
            new
        });
        self.ready.send_if_modified(|last| {
            let ready = world.ready_nodes();
            let new = *last != ready;
            *last = ready;
            new
        });
        let found = find(given, &world.seen(), own, local_addresses);
        let old = self.shared.load();
        if old.facts == found.facts && old.awaited == awaited && self.said.is_some() {
            return;
        }
        for (fact, origin) in &found.origins {
            self.metrics.fact_known(fact, origin.is_known());
        }
        if awaited.is_empty() {
            let published = Published::of(&found.facts, local_addresses);
            self.say(&found);
            if let Some(published) = published {
                self.sender.send_if_modified(|last| {
                    let new = last.as_ref() != Some(&published);
                    *last = Some(published);
                    new
                });
            }
        }
        self.shared.store(Snapshot { facts: found.facts, awaited });
    }

    /// One line when a fact or its origin has changed.
    fn say(&mut self, found: &Found) {
        let facts = &found.facts;
        let texts = [
            join(&facts.cluster_dns),
            facts.cluster_domain.as_ref().map(ToString::to_string).unwrap_or_default(),
            facts.host_searches.as_deref().map(join).unwrap_or_default(),
            facts.resolvers.map(|all| all.to_string()).unwrap_or_default(),
            facts.fail_open.to_string(),
        ];
        let mut origins = found.origins.iter().map(|(_, origin)| origin.to_string());
        let said = texts.map(|text| format!("{text} ({})", origins.next().unwrap_or_default()));
        if self.said.as_ref() != Some(&said) {
            let [cluster_dns, cluster_domain, host_searches, resolvers, fail_open] = &said;
            tracing::info!(cluster_dns, cluster_domain, host_searches, resolvers, fail_open, "facts");
            self.said = Some(said);
        }
    }
}

fn join<T: fmt::Display>(all: &[T]) -> String {
    all.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

/// An error with its causes.
pub(crate) fn in_one_line(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

/// Why the cluster cannot be asked.
#[derive(Debug)]
#[non_exhaustive]
pub enum ClusterError {
    /// It is not known where the API server is.
    Config(Box<kube::config::InferConfigError>),
    /// What the kubeconfig says cannot be read.
    Kubeconfig(Box<kube::config::KubeconfigError>),
    /// No client can be made of what is known.
    Client(Box<kube::Error>),
    /// An object cannot be read.
    Read {
        /// Its kind.
        what: &'static str,
        /// Why.
        cause: Box<kube::Error>,
    },
    /// One of the sources gave no list.
    Look {
        /// Which.
        source_name: &'static str,
        /// Why.
        cause: watcher::Error,
    },
}

impl fmt::Display for ClusterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(_) => f.write_str(
                "it is not known where the API server is: run in a cluster, or set KUBECONFIG; or give facts by flags",
            ),
            Self::Kubeconfig(_) => f.write_str("the kubeconfig cannot be used"),
            Self::Client(_) => f.write_str("no client for the API server can be made"),
            Self::Read { what, .. } => write!(f, "reading the {what} failed"),
            Self::Look { source_name, .. } => write!(f, "looking at the cluster's {source_name} failed"),
        }
    }
}

impl Error for ClusterError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Config(source) => Some(source.as_ref()),
            Self::Kubeconfig(source) => Some(source.as_ref()),
            Self::Client(source) => Some(source.as_ref()),
            Self::Read { cause, .. } => Some(cause.as_ref()),
            Self::Look { cause, .. } => Some(cause),
        }
    }
}
