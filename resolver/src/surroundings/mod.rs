//! What the daemon must know of its cluster, and cannot be told once and for all: the cluster DNS, the Service of
//! `-upstreamsvc`, the cluster's domain.
//!
//! A container's environment never changes: a Service that is made after the pod is not in it (NodeLocal then writes `<nil>`
//! into its Corefile), and one that is made again with another address is wrong in it. So:
//!
//! ```text
//!   environment ────────── once ─┐
//!   [`facts`]: a mounted folder ─┼─► [`decide`] (pure) ─► [`Known`] ─► rules and Corefile, by the names of variables
//!   [`service`]: the cluster DNS ┘                           └─ metrics, /ready, a line on a change
//! ```
//!
//! | | first that is known |
//! | --- | --- |
//! | cluster DNS | the folder's `cluster-dns`, `KUBE_DNS_SERVICE_HOST` |
//! | Service of `-upstreamsvc` | what the cluster DNS says, its variable, and in its place the cluster DNS itself |
//! | domain | `--cluster-domain`, the folder's `cluster-domain` |
//!
//! Where the Service is `kube-dns` and the cluster's is called otherwise, the cluster DNS is what is meant. A Service that the
//! cluster DNS denies `DENIALS` times in a row is not there, whatever its variable says. One that cannot be asked about
//! stays what it was.

mod facts;
mod service;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use nodestub_wire::Name;
use rand::Rng;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::args::Serve;
pub use facts::Facts;
use service::Said;
pub use service::ask_addresses;

/// How often the folder is looked at.
const LOOK: Duration = Duration::from_secs(2);
/// How often the cluster DNS is asked while all is known; up to a quarter is added, so that nodes do not ask together.
const ASK: Duration = Duration::from_secs(30);
/// The same when something has come to be missing; each time it still is doubles it, up to the other.
const ASK_SOON: Duration = Duration::from_secs(2);
/// Denials in a row after which a Service that was known is not there.
const DENIALS: u32 = 3;
/// The namespace of Services.
const NAMESPACE: &str = "kube-system";
/// The Service that is meant when none is named, and whose variable says where the cluster DNS is.
const KUBE_DNS: &str = "kube-dns";
const KUBE_DNS_VARIABLE: &str = "KUBE_DNS_SERVICE_HOST";

/// What is known now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// The Service's name (`-upstreamsvc`).
    pub service_name: String,
    /// How its addresses are known.
    pub service: Service,
    /// The addresses that stand for it, in order of preference; empty: none is known.
    pub service_addresses: Vec<IpAddr>,
    /// The cluster DNS.
    pub cluster_dns: Vec<IpAddr>,
    /// The cluster's domain.
    pub cluster_domain: Option<String>,
}

/// How the Service of `-upstreamsvc` is known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Service {
    /// It is there.
    Found,
    /// It is not, or nothing says where; the cluster DNS stands in for it.
    StandIn,
    /// Nothing is known that could be asked.
    #[default]
    Unknown,
}

impl Service {
    /// All, for metrics.
    pub const ALL: [Self; 3] = [Self::Found, Self::StandIn, Self::Unknown];

    /// Its label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Found => "found",
            Self::StandIn => "stand_in",
            Self::Unknown => "unknown",
        }
    }
}

impl Known {
    /// An environment variable, with what is known in place of what the environment says. Several addresses stand in one
    /// value, separated by commas.
    pub fn variable(&self, name: &str) -> Option<String> {
        let list = |addresses: &[IpAddr]| {
            let all: Vec<String> = addresses.iter().map(ToString::to_string).collect();
            (!all.is_empty()).then(|| all.join(","))
        };
        if name == variable_of(&self.service_name) {
            return list(&self.service_addresses);
        }
        if name == KUBE_DNS_VARIABLE {
            return list(&self.cluster_dns);
        }
        std::env::var(name).ok()
    }

    /// The domain, as a name; `None` where it is not known or is none.
    pub fn domain(&self) -> Option<Name> {
        self.cluster_domain.as_ref().and_then(|text| text.parse().ok())
    }

    /// What an operator has to do something about; `None`: nothing.
    pub fn complaint(&self) -> Option<String> {
        let (name, namespace) = (&self.service_name, NAMESPACE);
        match self.service {
            Service::Found => None,
            Service::StandIn => Some(format!(
                "Service {namespace}/{name} (-upstreamsvc) is not there: make it, with the selector of the cluster DNS; it is \
                 found without a restart, and until then {} is asked in its place",
                self.cluster_dns.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ")
            )),
            Service::Unknown => Some(format!(
                "the cluster DNS is not known: {} is not set, nor {KUBE_DNS_VARIABLE}, and the folder of facts \
                 (--facts-folder) has no cluster-dns; names that it must answer are answered SERVFAIL until one of them says it",
                variable_of(name)
            )),
        }
    }
}

/// What the environment said at the start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Environment {
    service: Vec<IpAddr>,
    cluster_dns: Vec<IpAddr>,
    domain: Option<String>,
}

/// What the cluster DNS has said about the Service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Asked {
    addresses: Vec<IpAddr>,
    /// In a row, since it was last there.
    denials: u32,
}

impl Asked {
    fn hear(&mut self, said: Said) {
        match said {
            Said::There(addresses) => *self = Self { addresses, denials: 0 },
            Said::NotThere => {
                self.denials = self.denials.saturating_add(1);
                if self.denials >= DENIALS {
                    self.addresses.clear();
                }
            }
            Said::Nothing => {}
        }
    }
}

/// See the module's comment.
fn decide(name: &str, environment: &Environment, facts: &Facts, asked: &Asked) -> Known {
    let first = |choices: [&Vec<IpAddr>; 2]| choices.into_iter().find(|one| !one.is_empty()).cloned();
    let cluster_dns = first([&facts.cluster_dns, &environment.cluster_dns]).unwrap_or_default();
    let by_name = name == KUBE_DNS;
    let denied = asked.denials >= DENIALS && !by_name;
    let of_variable = if denied || by_name { &Vec::new() } else { &environment.service };
    let found = first([&asked.addresses, of_variable]);
    let (service, service_addresses) = match found {
        Some(addresses) => (Service::Found, addresses),
        None if cluster_dns.is_empty() => (Service::Unknown, Vec::new()),
        None if by_name => (Service::Found, cluster_dns.clone()),
        None => (Service::StandIn, cluster_dns.clone()),
    };
    Known {
        service_name: name.to_owned(),
        service,
        service_addresses,
        cluster_dns,
        cluster_domain: environment.domain.clone().or_else(|| facts.cluster_domain.clone()),
    }
}

/// `kube-dns-upstream` is in `KUBE_DNS_UPSTREAM_SERVICE_HOST`.
fn variable_of(service: &str) -> String {
    format!("{}_SERVICE_HOST", service.to_uppercase().replace('-', "_"))
}

/// Where what is known comes from.
#[derive(Debug)]
pub struct Surroundings {
    service_name: String,
    folder: PathBuf,
    environment: Environment,
    facts: Facts,
    asked: Asked,
    port: u16,
}

impl Surroundings {
    /// What flags and environment say, and the folder now. `variable` looks up an environment variable.
    pub fn new(serve: &Serve, variable: impl Fn(&str) -> Option<String>) -> Self {
        let service_name = serve.placeholders.upstream_service.clone();
        let addresses = |name: &str| variable(name).map(|text| addresses(&text)).unwrap_or_default();
        let environment = Environment {
            service: addresses(&variable_of(&service_name)),
            cluster_dns: addresses(KUBE_DNS_VARIABLE),
            domain: serve.placeholders.cluster_domain.clone().filter(|domain| !domain.is_empty()),
        };
        let folder = serve.facts_folder.clone();
        let facts = Facts::read(&folder);
        Self { service_name, folder, environment, facts, asked: Asked::default(), port: service::PORT }
    }

    /// What is known now.
    pub fn known(&self) -> Known {
        decide(&self.service_name, &self.environment, &self.facts, &self.asked)
    }

    /// Whether the folder is there: what it has not yet may come.
    pub fn has_folder(&self) -> bool {
        self.folder.is_dir()
    }

    /// Follows the folder and the cluster DNS for ever, on a task of its own; what is known changes under the receiver.
    pub fn follow(mut self) -> watch::Receiver<Known> {
        let known = self.known();
        complain(None, &known);
        let (sender, receiver) = watch::channel(known);
        tokio::spawn(async move {
            let mut ask_at = Instant::now();
            let mut pause = ASK_SOON;
            loop {
                // A folder that cannot be read is as it was: a ConfigMap's swap is never seen half, but may fail.
                let folder = self.folder.clone();
                let read = tokio::task::spawn_blocking(move || folder.is_dir().then(|| Facts::read(&folder)));
                if let Ok(Some(facts)) = read.await {
                    self.facts = facts.or(&self.facts);
                }
                if Instant::now() >= ask_at {
                    self.ask().await;
                    let missing = self.known().service != Service::Found;
                    let next = if missing { pause } else { ASK };
                    ask_at = Instant::now() + next + next.mul_f64(rand::rng().random_range(0.0..=0.25));
                    pause = if missing { (pause * 2).min(ASK) } else { ASK_SOON };
                }
                let known = self.known();
                sender.send_if_modified(|before| {
                    let changed = *before != known;
                    if changed {
                        complain(Some(before), &known);
                        *before = known;
                    }
                    changed
                });
                if sender.is_closed() {
                    return;
                }
                tokio::time::sleep(LOOK).await;
            }
        });
        receiver
    }

    async fn ask(&mut self) {
        let known = self.known();
        // What the webhook has found about the cluster DNS itself is not asked for again.
        let needless = self.service_name == KUBE_DNS && !self.facts.cluster_dns.is_empty();
        let Some(domain) = known.cluster_domain.filter(|_| !needless) else { return };
        let name = format!("{}.{NAMESPACE}.svc.{domain}", self.service_name);
        let Ok(name) = name.parse::<Name>() else { return };
        let mut servers = known.cluster_dns;
        servers.extend(known.service_addresses);
        for server in servers {
            let said = service::ask(SocketAddr::new(server, self.port), &name).await;
            let silent = said == Said::Nothing;
            self.asked.hear(said);
            if !silent {
                return;
            }
        }
    }
}

fn complain(before: Option<&Known>, now: &Known) {
    if before.is_some_and(|before| before.service == now.service && now.service != Service::Found) {
        return;
    }
    match now.complaint() {
        // Said where the Corefile asks for it.
        Some(_) if now.service == Service::Unknown => {}
        Some(complaint) => tracing::warn!("{complaint}"),
        None if before.is_some_and(|before| before.service_addresses != now.service_addresses) => {
            tracing::info!(
                service = now.service_name,
                addresses = ?now.service_addresses,
                "the Service of the cluster DNS is found at another address, and is followed"
            );
        }
        None => {}
    }
}

/// The addresses in a list with commas; what is none (`None`, as a headless Service has it) is left out.
pub fn addresses(text: &str) -> Vec<IpAddr> {
    text.split(',').filter_map(|one| one.trim().parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ips(text: &str) -> Vec<IpAddr> {
        addresses(text)
    }

    fn environment(service: &str, cluster_dns: &str) -> Environment {
        Environment { service: ips(service), cluster_dns: ips(cluster_dns), domain: None }
    }

    #[test]
    fn what_the_cluster_says_now_beats_what_the_environment_said_once() {
        let old = environment("10.96.7.7", "10.96.0.10");
        let facts = Facts { cluster_dns: ips("10.96.0.11,fd00::11"), cluster_domain: Some("a.b".to_owned()) };
        let mut asked = Asked::default();
        let known = decide("kube-dns-upstream", &old, &facts, &asked);
        assert_eq!(known.service_addresses, ips("10.96.7.7"));
        assert_eq!(known.variable(KUBE_DNS_VARIABLE).unwrap(), "10.96.0.11,fd00::11");
        assert_eq!(known.cluster_domain.as_deref(), Some("a.b"));
        asked.hear(Said::There(ips("10.96.8.8")));
        let known = decide("kube-dns-upstream", &old, &facts, &asked);
        assert_eq!(known.variable("KUBE_DNS_UPSTREAM_SERVICE_HOST").unwrap(), "10.96.8.8");
        assert_eq!(known.complaint(), None);
    }

    #[test]
    fn the_cluster_dns_stands_in_for_a_service_that_is_missing_and_the_complaint_names_it() {
        let (facts, mut asked) = (Facts::default(), Asked::default());
        let known = decide("kube-dns-upstream", &environment("", "10.96.0.10"), &facts, &asked);
        assert_eq!((known.service, &known.service_addresses), (Service::StandIn, &ips("10.96.0.10")));
        let complaint = known.complaint().unwrap();
        assert!(complaint.contains("kube-system/kube-dns-upstream") && complaint.contains("10.96.0.10"));

        // Denied once or twice, a Service that was there stays; then its variable is not believed any more.
        let stale = environment("10.96.7.7", "10.96.0.10");
        asked.hear(Said::There(ips("10.96.7.7")));
        for denials in 1..=DENIALS {
            asked.hear(Said::NotThere);
            asked.hear(Said::Nothing);
            let known = decide("kube-dns-upstream", &stale, &facts, &asked);
            assert_eq!(known.service == Service::Found, denials < DENIALS, "after {denials} denials");
        }
    }

    #[test]
    fn the_service_kube_dns_is_the_cluster_dns_whatever_that_is_called() {
        let mut asked = Asked::default();
        for _ in 0..DENIALS {
            asked.hear(Said::NotThere);
        }
        let known = decide(KUBE_DNS, &environment("10.43.0.10", "10.43.0.10"), &Facts::default(), &asked);
        assert_eq!((known.service, known.service_addresses), (Service::Found, ips("10.43.0.10")));
    }

    #[test]
    fn nothing_known_is_said_and_gives_no_address() {
        let known =
            decide("kube-dns-upstream", &environment("None", ""), &Facts::default(), &Asked::default());
        assert_eq!(known.service, Service::Unknown);
        assert_eq!(known.variable("KUBE_DNS_UPSTREAM_SERVICE_HOST"), None);
        assert!(known.complaint().unwrap().contains("KUBE_DNS_UPSTREAM_SERVICE_HOST"));
    }
}
