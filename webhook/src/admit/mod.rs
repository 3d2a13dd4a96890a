//! The decision: given the operator's policy, what is known of the cluster, and a request, what becomes of the pod.
//!
//! [`admit`] is pure and total. It reads no clock, no file and no network, draws no random number, and ends on
//! every path in a [`Reason`]. The same function serves the webhook and whoever wants to know what it would do.
//!
//! The first rule that applies decides, in this order:
//!
//! ```text
//! is it a new pod?          not_create, not_a_pod, subresource, no_object
//! where?                    no_namespace, own_namespace, system_namespace
//! can it be read?           unreadable_pod
//! is it ours to change?     mirror_pod, pod_disabled, already_injected
//! did the namespace opt in? namespace_unknown, namespace_disabled, namespace_not_enabled
//! does a resolver run there? windows, node_without_resolver
//! did the user choose?      policy_*, host_network_*, host_net_*
//! is it its turn?           not_in_rollout
//! do we know enough?        cluster_dns_unknown, cluster_domain_unknown, resolvers_unknown
//! are resolvers there?      few_resolvers_ready
//! then                      injected
//! ```
//!
//! "disabled" beats "enabled", wherever either stands. A decision that is not [`Reason::Injected`] has an empty
//! patch, always.

pub mod compose;
pub mod facts;
mod hash;
pub mod names;
pub mod options;
mod overrides;
mod patch;
pub mod pod;
pub mod policy;
pub mod reason;
pub mod request;
pub mod rollout;
pub mod selector;

pub use compose::Injection;
pub use facts::{Facts, FailOpen, Namespace, PoolSearches, Resolvers};
pub(crate) use hash::stable_hash;
pub use names::Domain;
pub use options::DnsOption;
pub(crate) use overrides::is_usable;
pub use policy::{Fallback, Overrides, Policy};
pub use reason::{Place, Reason, Warning};
pub use request::{Operation, Request};
pub use rollout::{Share, Workload};
pub use selector::PodSelector;

use compose::{Levels, compose};
use json_patch::Patch;
use pod::{DnsPolicy, Pod};
use policy::SYSTEM_NAMESPACES;
use reason::MAX_WARNINGS;

/// Labels and annotations.
pub mod keys {
    /// All of ours begin with this.
    pub const PREFIX: &str = "nodestub.io/";
    /// Label of a namespace or pod, or annotation of a pod: `enabled` or `disabled`.
    pub const INJECT: &str = "nodestub.io/inject";
    /// The same as a label, as ACK, CCE and UK8S name it.
    pub const INJECT_ALIAS: &str = "node-local-dns-injection";
    /// Annotation: dots in a name before it is tried as it is.
    pub const NDOTS: &str = "nodestub.io/ndots";
    /// Annotation: options of resolv.conf(5), such as `timeout:1,attempts:2`.
    pub const OPTIONS: &str = "nodestub.io/options";
    /// Annotation: search domains to add.
    pub const SEARCHES: &str = "nodestub.io/searches";
    /// Annotation: `cluster`, `auto` or `none`.
    pub const FALLBACK: &str = "nodestub.io/fallback";
    /// Annotation: other addresses of the node's resolver.
    pub const LOCAL_ADDRESS: &str = "nodestub.io/local-address";
    /// Annotation of a namespace: the share of its workloads that are injected, such as `25%`.
    pub const ROLLOUT: &str = "nodestub.io/rollout";
    /// Written by us: `injected`.
    pub const STATUS: &str = "nodestub.io/status";
    /// Written by us: a hash of what was injected.
    pub const REVISION: &str = "nodestub.io/revision";

    /// Annotations of pods and namespaces that exist; a namespace may have [`ROLLOUT`] besides.
    pub const ANNOTATIONS: [&str; 8] =
        [INJECT, NDOTS, OPTIONS, SEARCHES, FALLBACK, LOCAL_ADDRESS, STATUS, REVISION];

    /// Keys whose values can be bad, for the metric; `other` stands for keys that do not exist.
    pub const CHECKED: [&str; 9] =
        [INJECT, INJECT_ALIAS, NDOTS, OPTIONS, SEARCHES, FALLBACK, LOCAL_ADDRESS, ROLLOUT, "other"];
}

const ENABLED: &str = "enabled";
const DISABLED: &str = "disabled";
const ALLOWED_INJECT: &str = "enabled, disabled";
/// Set by kubelet on mirrors of static pods.
const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";

/// What becomes of the pod, and why.
#[derive(Debug, Clone)]
pub struct Decision {
    /// The rule that decided.
    pub reason: Reason,
    /// What made the rule apply, where the reason alone does not tell; else empty. Of an injected pod: what opted in.
    pub rule: String,
    /// What the pod gets; only with [`Reason::Injected`].
    pub injection: Option<Injection>,
    /// The change; empty unless the reason is [`Reason::Injected`].
    pub patch: Patch,
    /// For the creator of the pod; at most [`MAX_WARNINGS`].
    pub warnings: Vec<Warning>,
}

impl Decision {
    /// Leaves the pod as it is, for something broke in the webhook itself.
    #[must_use]
    pub fn fault() -> Self {
        Self::leave(Reason::Fault, "", vec![Warning::Fault])
    }

    fn leave(reason: Reason, rule: impl Into<String>, warnings: Vec<Warning>) -> Self {
        Self { reason, rule: rule.into(), injection: None, patch: patch::empty(), warnings }
    }
}

/// Decides. The same arguments give the same decision, byte for byte.
#[must_use]
pub fn admit(policy: &Policy, facts: &Facts, request: &Request<'_>) -> Decision {
    let mut warnings = Vec::new();
    let mut decision = match decide(policy, facts, request, &mut warnings) {
        Ok((pod, rule, injection)) => Decision {
            reason: Reason::Injected,
            rule,
            patch: patch::patch(&pod, &injection),
            injection: Some(injection),
            warnings,
        },
        Err((reason, rule)) => Decision::leave(reason, rule, warnings),
    };
    decision.warnings.truncate(MAX_WARNINGS);
    decision
}

/// A rule that leaves the pod as it is, and what made it apply.
type Left = (Reason, String);

fn decide(
    policy: &Policy,
    facts: &Facts,
    request: &Request<'_>,
    warnings: &mut Vec<Warning>,
) -> Result<(Pod, String, Injection), Left> {
    let pod = new_pod(request)?;
    place(policy, request.namespace)?;
    let pod = Pod::read(pod).map_err(|cause| {
        warnings.push(Warning::UnreadablePod { cause: cause.to_string() });
        (Reason::UnreadablePod, cause.to_string())
    })?;
    ours_to_change(&pod, warnings)?;
    let (namespace, mut rule) = opted_in(facts, request.namespace, warnings)?;
    resolver_runs_there(policy, &pod)?;
    user_left_it_to_the_cluster(&pod)?;
    rule.push_str(&its_turn(policy, namespace, request.namespace, &pod, warnings)?);
    if facts.cluster_dns.is_empty() {
        warnings.push(Warning::FactUnknown { fact: "the address of the cluster DNS" });
        return left(Reason::ClusterDnsUnknown, "");
    }
    let Some(domain) = &facts.cluster_domain else {
        warnings.push(Warning::FactUnknown { fact: "the cluster's domain" });
        return left(Reason::ClusterDomainUnknown, "");
    };
    resolvers_ready(policy, facts, warnings)?;
    let of_namespace = namespace.annotations.iter().map(|(key, value)| (key.as_str(), value.as_str()));
    let levels = Levels {
        namespace: overrides::read(of_namespace, Place::Namespace, warnings),
        pod: overrides::read(pod.annotations(), Place::Pod, warnings),
    };
    let injection = compose(policy, facts, &levels, request.namespace, domain, &pod, warnings);
    Ok((pod, rule, injection))
}

fn new_pod<'a>(request: &Request<'a>) -> Result<&'a serde_json::Value, Left> {
    if request.operation != Operation::Create {
        return left(Reason::NotCreate, format!("{:?}", request.operation).to_uppercase());
    }
    if !request.group.is_empty() || request.resource != "pods" {
        return left(Reason::NotAPod, format!("{}/{}", request.group, request.resource));
    }
    if !request.sub_resource.is_empty() {
        return left(Reason::Subresource, request.sub_resource);
    }
    request.object.ok_or((Reason::NoObject, String::new()))
}

fn place(policy: &Policy, namespace: &str) -> Result<(), Left> {
    if namespace.is_empty() {
        return left(Reason::NoNamespace, "");
    }
    if namespace == policy.own_namespace {
        return left(Reason::OwnNamespace, namespace);
    }
    if SYSTEM_NAMESPACES.contains(&namespace) {
        return left(Reason::SystemNamespace, namespace);
    }
    Ok(())
}

fn ours_to_change(pod: &Pod, warnings: &mut Vec<Warning>) -> Result<(), Left> {
    if pod.annotation(MIRROR_ANNOTATION).is_some() {
        return left(Reason::MirrorPod, format!("annotation {MIRROR_ANNOTATION}"));
    }
    let switches = [
        ("label", keys::INJECT, pod.label(keys::INJECT)),
        ("annotation", keys::INJECT, pod.annotation(keys::INJECT)),
        ("label", keys::INJECT_ALIAS, pod.label(keys::INJECT_ALIAS)),
    ];
    if let Some(rule) = switched(&switches, DISABLED) {
        return left(Reason::PodDisabled, rule);
    }
    // Our mark alone is not enough: it may have been copied with a manifest whose policy says otherwise.
    if pod.annotation(keys::STATUS) == Some(patch::INJECTED) && pod.dns_policy() == DnsPolicy::None {
        return left(Reason::AlreadyInjected, format!("annotation {}", keys::STATUS));
    }
    warn_of_bad_switches(Place::Pod, &switches, warnings);
    Ok(())
}

/// The namespace, and by what it opted in.
fn opted_in<'a>(
    facts: &'a Facts,
    name: &str,
    warnings: &mut Vec<Warning>,
) -> Result<(&'a Namespace, String), Left> {
    let Some(namespace) = facts.namespaces.get(name) else {
        warnings.push(Warning::FactUnknown { fact: "the pod's namespace" });
        return left(Reason::NamespaceUnknown, name);
    };
    let label = |key: &'static str| ("label", key, namespace.labels.get(key).map(String::as_str));
    let annotation = namespace.annotations.get(keys::INJECT).map(String::as_str);
    let labels = [label(keys::INJECT), label(keys::INJECT_ALIAS)];
    let all = [label(keys::INJECT), ("annotation", keys::INJECT, annotation), label(keys::INJECT_ALIAS)];
    warn_of_bad_switches(Place::Namespace, &all, warnings);
    if let Some(rule) = switched(&all, DISABLED) {
        return left(Reason::NamespaceDisabled, rule);
    }
    // Labels only: the API server selects by them, so an annotation would opt in on some paths and not on others.
    match switched(&labels, ENABLED) {
        Some(rule) => Ok((namespace, format!("{rule} on the namespace"))),
        None => left(Reason::NamespaceNotEnabled, ""),
    }
}

fn resolver_runs_there(policy: &Policy, pod: &Pod) -> Result<(), Left> {
    if pod.is_windows() {
        return left(Reason::Windows, "");
    }
    match policy.leave_alone.iter().find(|selector| selector.matches(pod)) {
        Some(selector) => left(Reason::NodeWithoutResolver, selector.to_string()),
        None => Ok(()),
    }
}

fn user_left_it_to_the_cluster(pod: &Pod) -> Result<(), Left> {
    match (pod.dns_policy(), pod.host_network()) {
        (DnsPolicy::ClusterFirst, false) | (DnsPolicy::ClusterFirstWithHostNet, true) => Ok(()),
        (DnsPolicy::ClusterFirst, true) => left(Reason::HostNetworkDefault, ""),
        (DnsPolicy::ClusterFirstWithHostNet, false) => left(Reason::HostNetPolicyWithoutHostNetwork, ""),
        (DnsPolicy::Default, _) => left(Reason::PolicyDefault, ""),
        (DnsPolicy::None, _) => left(Reason::PolicyNone, ""),
        (DnsPolicy::Unknown, _) => left(Reason::PolicyUnknown, ""),
    }
}

/// What is to be said of the share, where there is one.
fn its_turn(
    policy: &Policy,
    namespace: &Namespace,
    name: &str,
    pod: &Pod,
    warnings: &mut Vec<Warning>,
) -> Result<String, Left> {
    let share = overrides::rollout(namespace, warnings).unwrap_or(policy.rollout);
    let workload = Workload::of(pod);
    if share == Share::ALL {
        return Ok(String::new());
    }
    if share.takes(name, &workload) {
        return Ok(format!(", {} {share} with {workload}", keys::ROLLOUT));
    }
    left(Reason::NotInRollout, format!("{} {share} without {workload}", keys::ROLLOUT))
}

fn resolvers_ready(policy: &Policy, facts: &Facts, warnings: &mut Vec<Warning>) -> Result<(), Left> {
    let min_percent = policy.min_ready_percent;
    if min_percent == 0 {
        return Ok(());
    }
    let Some(resolvers) = facts.resolvers else {
        warnings.push(Warning::FactUnknown { fact: "how many nodes have a ready resolver" });
        return left(Reason::ResolversUnknown, "");
    };
    if resolvers.reach(min_percent) {
        return Ok(());
    }
    warnings.push(Warning::FewResolversReady { resolvers, min_percent });
    left(Reason::FewResolversReady, format!("{resolvers} ready, {min_percent}% wanted"))
}

fn left<T>(reason: Reason, rule: impl Into<String>) -> Result<T, Left> {
    Err((reason, rule.into()))
}

/// Kind, key and value of a switch, where it is set.
type Switch<'a> = (&'static str, &'static str, Option<&'a str>);

/// The first switch that says so, in words.
fn switched(switches: &[Switch<'_>], wanted: &str) -> Option<String> {
    let (kind, key, _) = switches.iter().find(|(_, _, value)| *value == Some(wanted))?;
    Some(format!("{kind} {key}={wanted}"))
}

fn warn_of_bad_switches(place: Place, switches: &[Switch<'_>], warnings: &mut Vec<Warning>) {
    for (_, key, value) in switches {
        if let Some(value) = value.filter(|value| *value != ENABLED && *value != DISABLED) {
            warnings.push(Warning::BadValue { place, key, value: value.to_owned(), allowed: ALLOWED_INJECT });
        }
    }
}
