//! The place: three network namespaces with real processes in them, or the same processes on loopback.
//!
//! ```text
//!   pod ──veth── node ──veth── cluster
//!   10.244.1.7   169.254.20.10  10.96.0.10 the cluster DNS, 192.0.2.53 the outside DNS, the webhook
//!   getent       the resolver
//! ```
//!
//! The pod's namespace is the one that process 1 was started in, so that whoever enters the demo from outside stands
//! in the pod. The pod reaches the local address by its default route, through the node's prerouting hook, as a real
//! pod does; and the cluster DNS too, so that the second nameserver of its `resolv.conf` is a real one.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nodestub_lab::{Error, Netns, Upstream, conntrack, upstream};

use crate::cleanup::Cleanup;
use crate::http;
use crate::process::{Process, last_lines};
use crate::{admission, folder};

/// The cluster's domain.
pub(crate) const CLUSTER_DOMAIN: &str = "cluster.local";
/// The Service that the pod asks for.
pub(crate) const HOGE: Ipv4Addr = Ipv4Addr::new(10, 96, 7, 7);
/// A name outside, and its address (RFC 5737, for documentation).
pub(crate) const OUTSIDE_NAME: &str = "example.com";
/// As above.
pub(crate) const OUTSIDE_ADDRESS: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
/// How far away the outside DNS is.
pub(crate) const OUTSIDE_DELAY: Duration = Duration::from_millis(20);
/// Where the pod is.
pub(crate) const POD: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 7);

/// The address of the node's resolver, as pods know it.
pub(crate) const LOCAL: Ipv4Addr = Ipv4Addr::new(169, 254, 20, 10);
const CLUSTER_DNS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
const OUTSIDE_DNS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 53);
const NODE_TO_POD: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 1);
const NODE_TO_CLUSTER: Ipv4Addr = Ipv4Addr::new(172, 31, 0, 2);
const CLUSTER_TO_NODE: Ipv4Addr = Ipv4Addr::new(172, 31, 0, 1);
const KUBERNETES: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);

const NODE_COREFILE: &str = include_str!("../../corefiles/node.Corefile");
const CLUSTER_COREFILE: &str = include_str!("../../corefiles/cluster.Corefile");
/// What the daemons write, into the folder.
const LOGS: [&str; 3] = [CLUSTER_DNS_LOG, RESOLVER_LOG, WEBHOOK_LOG];
const CLUSTER_DNS_LOG: &str = "cluster-dns.log";
const RESOLVER_LOG: &str = "resolver.log";
const WEBHOOK_LOG: &str = "webhook.log";
/// In seconds; longer than any demo takes.
const OUTSIDE_TTL: u32 = 300;
/// For a daemon to answer, or to end.
const PATIENCE: Duration = Duration::from_secs(20);

/// Where things listen.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Endpoints {
    /// The node's resolver.
    pub(crate) resolver: SocketAddr,
    /// Its counters.
    pub(crate) metrics: SocketAddr,
    ready: SocketAddr,
    health: SocketAddr,
    /// The cluster DNS.
    pub(crate) cluster_dns: SocketAddr,
    cluster_metrics: SocketAddr,
    cluster_ready: SocketAddr,
    /// The DNS outside of the cluster.
    pub(crate) outside_dns: SocketAddr,
}

/// One of the namespaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Node,
    Cluster,
}

/// Whether DNS to the local address is kept out of connection tracking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bypass {
    On,
    Off,
}

#[derive(Debug)]
struct Namespaces {
    pod: Netns,
    node: Netns,
    cluster: Netns,
}

/// Everything that runs.
#[derive(Debug)]
pub(crate) struct Scene {
    /// `None` on loopback.
    namespaces: Option<Namespaces>,
    /// Where things listen.
    pub(crate) endpoints: Endpoints,
    folder: PathBuf,
    programs: PathBuf,
    cleanup: Arc<Cleanup>,
    outside: Option<Upstream>,
    /// The node's resolver; another one after each start.
    resolver: Mutex<Option<Arc<Process>>>,
}

impl Scene {
    /// Makes the namespaces. Only in a process of [`nodestub_lab::isolate()`].
    pub(crate) fn in_namespaces(cleanup: &Arc<Cleanup>, manifest: Option<&Path>) -> Result<Self, Error> {
        let programs = programs()?;
        let mut needed = vec![programs.clone()];
        needed.extend(std::env::current_dir());
        needed.extend(manifest.and_then(|file| file.canonicalize().ok()));
        let folder = folder::private(&needed)?;
        let namespaces = Namespaces::make()?;
        let at = |ip: Ipv4Addr, port| SocketAddr::new(ip.into(), port);
        let endpoints = Endpoints {
            resolver: at(LOCAL, 53),
            metrics: at(LOCAL, 9253),
            ready: at(LOCAL, 8181),
            health: at(LOCAL, 8080),
            cluster_dns: at(CLUSTER_DNS, 53),
            cluster_metrics: at(CLUSTER_DNS, 9153),
            cluster_ready: at(CLUSTER_DNS, 8181),
            outside_dns: at(OUTSIDE_DNS, 53),
        };
        Ok(Self::new(Some(namespaces), endpoints, folder, programs, cleanup))
    }

    /// The same on loopback, with free ports.
    pub(crate) fn on_loopback(cleanup: &Arc<Cleanup>) -> Result<Self, Error> {
        let folder = cleanup.folder(folder::temporary)?;
        let endpoints = Endpoints {
            resolver: free()?,
            metrics: free()?,
            ready: free()?,
            health: free()?,
            cluster_dns: free()?,
            cluster_metrics: free()?,
            cluster_ready: free()?,
            outside_dns: free()?,
        };
        Ok(Self::new(None, endpoints, folder, programs()?, cleanup))
    }

    fn new(
        namespaces: Option<Namespaces>,
        endpoints: Endpoints,
        folder: PathBuf,
        programs: PathBuf,
        cleanup: &Arc<Cleanup>,
    ) -> Self {
        let cleanup = Arc::clone(cleanup);
        Self { namespaces, endpoints, folder, programs, cleanup, outside: None, resolver: Mutex::default() }
    }

    /// Starts the outside DNS (a scripted server of the laboratory) and the cluster DNS (a resolver of ours, with the
    /// Services in `hosts`), and waits until the latter is ready.
    pub(crate) fn start_cluster_dns(&mut self, namespace: &str) -> Result<(), Error> {
        let address = self.endpoints.outside_dns;
        self.outside = Some(self.inside(Place::Cluster, || Upstream::start(address, outside_dns()))??);

        let hosts: String =
            services(namespace).iter().map(|(name, ip)| format!("        {ip} {name}\n")).collect();
        let text = CLUSTER_COREFILE
            .replace("@ADDRESS@", &self.endpoints.cluster_dns.ip().to_string())
            .replace("@HOSTS@\n", &hosts)
            .replace("@OUTSIDE@", &self.endpoints.outside_dns.to_string())
            .replace("@METRICS@", &self.endpoints.cluster_metrics.to_string())
            .replace("@READY@", &self.endpoints.cluster_ready.to_string());
        let mut command = self.program("nodestub-resolver");
        let corefile = self.write("cluster.Corefile", &text)?;
        command.arg("-conf").arg(corefile);
        command.arg(format!("-dns.port={}", self.endpoints.cluster_dns.port()));
        let process = self.start(Place::Cluster, command, &[], CLUSTER_DNS_LOG)?;
        self.wait_ready(&process, Place::Cluster, self.endpoints.cluster_ready, "/ready")
    }

    /// Starts the node's resolver and waits until it is ready.
    pub(crate) fn start_resolver(&self, bypass: Bypass) -> Result<(), Error> {
        let process = self.launch_resolver(bypass)?;
        self.wait_ready(&process, Place::Node, self.endpoints.ready, "/ready")?;
        *self.resolver() = Some(process);
        Ok(())
    }

    /// Starts another resolver, which takes over from the one that runs, and stops the old one as a kubelet does.
    pub(crate) fn hand_over(&self) -> Result<ExitStatus, Error> {
        let log = self.folder.join(RESOLVER_LOG);
        let handovers = || -> Result<usize, Error> {
            let text = std::fs::read_to_string(&log)
                .map_err(|error| Error::caused(format!("read {}", log.display()), error))?;
            Ok(text.matches("took over").count())
        };
        let before = handovers()?;
        let process = self.launch_resolver(Bypass::On)?;
        process.wait_until("has taken over", PATIENCE, || {
            if handovers()? > before { Ok(()) } else { Err(Error::new("not yet")) }
        })?;
        let old = self.resolver().replace(process);
        old.ok_or_else(|| Error::new("hand over: no resolver runs"))?.terminate(PATIENCE)
    }

    /// Kills the node's resolver as nobody should: without a word.
    pub(crate) fn kill_resolver(&self) {
        let resolver = self.resolver().take();
        if let Some(resolver) = resolver {
            resolver.kill();
        }
    }

    /// Questions for addresses that the cluster DNS was asked so far: not those by which a resolver looks for loops.
    pub(crate) fn asked_cluster_dns(&self) -> Result<f64, Error> {
        let page =
            self.inside(Place::Cluster, || http::get(self.endpoints.cluster_metrics, "/metrics"))??;
        Ok(crate::metrics::sum(&page, "coredns_dns_requests_total", &[("type", "A")]))
    }

    fn launch_resolver(&self, bypass: Bypass) -> Result<Arc<Process>, Error> {
        let ends = self.endpoints;
        let mut text = NODE_COREFILE.to_owned();
        if self.namespaces.is_none() {
            for (port, address) in [(9253, ends.metrics), (8181, ends.ready), (8080, ends.health)] {
                text = text.replace(&format!("__PILLAR__LOCAL__DNS__:{port}"), &address.to_string());
            }
            // The variable that Kubernetes gives holds no port.
            text = text.replace("__PILLAR__CLUSTER__DNS__", &ends.cluster_dns.to_string());
        }
        let mut command = self.program("nodestub-resolver");
        command.arg("-conf").arg(self.write("Corefile", &text)?);
        command.arg("-localip").arg(ends.resolver.ip().to_string());
        if self.namespaces.is_none() {
            command.arg(format!("-dns.port={}", ends.resolver.port())).arg("-setupinterface=false");
        }
        if self.namespaces.is_none() || bypass == Bypass::Off {
            command.arg("-setupiptables=false");
        }
        let cluster_dns = ends.cluster_dns.ip().to_string();
        // As Kubernetes tells every pod where the Service kube-dns is.
        let variables = [("KUBE_DNS_SERVICE_HOST", cluster_dns.as_str())];
        self.start(Place::Node, command, &variables, RESOLVER_LOG)
    }

    /// Stops the node's resolver as a kubelet does.
    pub(crate) fn stop_resolver(&self) -> Result<ExitStatus, Error> {
        let resolver = self.resolver().take();
        let resolver = resolver.ok_or_else(|| Error::new("stop the resolver: it does not run"))?;
        resolver.terminate(PATIENCE)
    }

    /// Issues certificates, starts the webhook, and returns its address and the CA's file.
    pub(crate) fn start_webhook(&self, namespace: &str) -> Result<(SocketAddr, PathBuf), Error> {
        let certificates = self.folder.join("certificates");
        let mut command = self.program("nodestub-webhook");
        command.arg("certificates").arg("--folder").arg(&certificates).env_clear();
        let issued = self.cleanup.whole(|| command.output())?;
        let issued = issued.map_err(|error| Error::caused("start nodestub-webhook certificates", error))?;
        if !issued.status.success() {
            let said = String::from_utf8_lossy(&issued.stderr);
            return Err(Error::new(format!("issue certificates: {}", said.trim())));
        }

        let ports_file = self.folder.join("webhook.ports");
        let any_port = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0);
        let mut command = self.program("nodestub-webhook");
        command.arg("--certificates").arg(&certificates).arg("--ports-file").arg(&ports_file);
        command.arg(format!("--listen={any_port}")).arg(format!("--admin-listen={any_port}"));
        // On loopback as well: a Pod of a cluster gets a cluster's addresses.
        command.arg(format!("--cluster-dns={CLUSTER_DNS}")).arg(format!("--local-address={LOCAL}"));
        command.arg(format!("--cluster-domain={CLUSTER_DOMAIN}"));
        command.arg(format!("--namespace={namespace}:nodestub.io/inject=enabled"));
        command.arg("--host-search=none");
        let process = self.start(Place::Cluster, command, &[], WEBHOOK_LOG)?;
        let mut ports = None;
        process.wait_until("tells its ports", PATIENCE, || {
            let text = std::fs::read_to_string(&ports_file);
            ports =
                Some(text.map_err(|error| Error::caused(format!("read {}", ports_file.display()), error))?);
            Ok(())
        })?;
        let port = |name: &str| -> Option<SocketAddr> {
            ports.iter().flat_map(|text| text.lines()).find_map(|line| line.strip_prefix(name)?.parse().ok())
        };
        let (Some(admission), Some(admin)) = (port("admission="), port("admin=")) else {
            return Err(process.fault("read the webhook's ports"));
        };
        self.wait_ready(&process, Place::Cluster, admin, "/readyz")?;
        Ok((admission, certificates.join("ca.crt")))
    }

    /// Sends the Pod to the webhook, from where an API server would stand.
    pub(crate) fn admit(
        &self,
        address: SocketAddr,
        ca: &Path,
        picked: &crate::manifest::Picked,
    ) -> Result<admission::Admitted, Error> {
        self.inside(Place::Cluster, || admission::admit(address, ca, picked))?
    }

    /// The counters of the node's resolver.
    pub(crate) fn metrics_page(&self) -> Result<String, Error> {
        self.inside(Place::Node, || http::get(self.endpoints.metrics, "/metrics"))?
    }

    /// The pod's network namespace.
    pub(crate) fn pod(&self) -> Option<&Netns> {
        self.namespaces.as_ref().map(|all| &all.pod)
    }

    /// Switches connection tracking on in the node.
    pub(crate) fn force_tracking(&self) -> Result<(), Error> {
        self.node().map_or(Ok(()), conntrack::force_tracking)
    }

    /// Forgets all tracked connections of the node.
    pub(crate) fn forget_tracked(&self) -> Result<(), Error> {
        self.node().map_or(Ok(()), conntrack::flush)
    }

    /// Tracked connections of the node for DNS: with the local address, and with the cluster DNS.
    pub(crate) fn tracked(&self) -> Result<(usize, usize), Error> {
        let all = self.node().map_or(Ok(Vec::new()), |node| conntrack::tracked(node, 53))?;
        let with = |server: SocketAddr| {
            all.iter().filter(|one| one.source == server || one.destination == server).count()
        };
        Ok((with(self.endpoints.resolver), with(self.endpoints.cluster_dns)))
    }

    /// Takes the resolver's rules away: they outlive it.
    pub(crate) fn delete_rules(&self) -> Result<(), Error> {
        self.node().map_or(Ok(()), |node| node.delete_nft_table("nodestub"))
    }

    /// The last lines of each log.
    pub(crate) fn logs(&self) -> Vec<(&'static str, String)> {
        LOGS.iter().map(|name| (*name, last_lines(&self.folder.join(name)))).collect()
    }

    fn resolver(&self) -> MutexGuard<'_, Option<Arc<Process>>> {
        self.resolver.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn node(&self) -> Option<&Netns> {
        self.namespaces.as_ref().map(|all| &all.node)
    }

    fn inside<T: Send>(&self, place: Place, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
        match (&self.namespaces, place) {
            (None, _) => Ok(work()),
            (Some(all), Place::Node) => all.node.run(work),
            (Some(all), Place::Cluster) => all.cluster.run(work),
        }
    }

    fn start(
        &self,
        place: Place,
        command: Command,
        variables: &[(&str, &str)],
        log: &str,
    ) -> Result<Arc<Process>, Error> {
        let log = self.folder.join(log);
        self.cleanup.process(|| self.inside(place, || Process::start(command, variables, &log))?)
    }

    fn wait_ready(
        &self,
        process: &Process,
        place: Place,
        address: SocketAddr,
        path: &str,
    ) -> Result<(), Error> {
        process
            .wait_until("is ready", PATIENCE, || self.inside(place, || http::get(address, path))?.map(drop))
    }

    fn program(&self, name: &str) -> Command {
        Command::new(self.programs.join(name))
    }

    fn write(&self, name: &str, text: &str) -> Result<PathBuf, Error> {
        let file = self.folder.join(name);
        std::fs::write(&file, text)
            .map_err(|error| Error::caused(format!("write {}", file.display()), error))?;
        Ok(file)
    }
}

impl Namespaces {
    fn make() -> Result<Self, Error> {
        let (pod, node, cluster) = (Netns::current()?, Netns::new()?, Netns::new()?);
        let any = IpAddr::from(Ipv4Addr::UNSPECIFIED);
        node.join("pod0", &pod, "eth0")?;
        node.add_address("pod0", NODE_TO_POD.into(), 24)?;
        pod.add_address("eth0", POD.into(), 24)?;
        pod.add_route(any, 0, NODE_TO_POD.into())?;

        node.join("cluster0", &cluster, "node0")?;
        node.add_address("cluster0", NODE_TO_CLUSTER.into(), 24)?;
        cluster.add_address("node0", CLUSTER_TO_NODE.into(), 24)?;
        node.add_route(Ipv4Addr::new(10, 96, 0, 0).into(), 12, CLUSTER_TO_NODE.into())?;
        cluster.add_route(any, 0, NODE_TO_CLUSTER.into())?;
        for address in [CLUSTER_DNS, OUTSIDE_DNS] {
            cluster.add_address("lo", address.into(), 32)?;
        }
        node.set_sysctl("net/ipv4/ip_forward", "1")?;
        Ok(Self { pod, node, cluster })
    }
}

/// The Services that the cluster DNS knows, with what a pod of this namespace may ask for.
pub(crate) fn services(namespace: &str) -> Vec<(String, Ipv4Addr)> {
    let name = |service: &str, namespace: &str| format!("{service}.{namespace}.svc.{CLUSTER_DOMAIN}");
    let mut all = vec![(name("kubernetes", "default"), KUBERNETES), (name("hoge", "default"), HOGE)];
    if namespace != "default" {
        all.push((name("hoge", namespace), HOGE));
    }
    all
}

/// Knows one name, some way away. What is not in the cluster's `hosts` falls through to here, too, but at once.
fn outside_dns() -> impl Fn(&[u8], nodestub_lab::Transport) -> Vec<nodestub_lab::Reply> + Send + Sync {
    let name = format!("{OUTSIDE_NAME}.");
    let zone = upstream::zone(OUTSIDE_TTL, &[(name.as_str(), OUTSIDE_ADDRESS.into())]);
    let cluster = format!(".{CLUSTER_DOMAIN}.");
    move |query, transport| {
        let near = upstream::question(query).is_ok_and(|(name, _)| name.ends_with(&cluster));
        let delay = if near { Duration::ZERO } else { OUTSIDE_DELAY };
        zone(query, transport).into_iter().map(|reply| reply.after(delay)).collect()
    }
}

/// The folder of this program and of the daemons.
fn programs() -> Result<PathBuf, Error> {
    let own = std::env::current_exe().map_err(|error| Error::caused("find the demo's own file", error))?;
    Ok(own.parent().unwrap_or(Path::new("/")).to_owned())
}

/// A port of loopback that is free for UDP and TCP now.
fn free() -> Result<SocketAddr, Error> {
    const TRIES: usize = 32;
    let step = "find a free port";
    let mut last = Error::new(step);
    for _ in 0..TRIES {
        let bound = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|udp| {
            let address = udp.local_addr()?;
            TcpListener::bind(address).map(|_| address)
        });
        match bound {
            Ok(address) => return Ok(address),
            Err(error) => last = Error::caused(step, error),
        }
    }
    Err(last)
}
