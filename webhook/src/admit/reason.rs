//! The ends of every path: one [`Reason`] per decision, and any number of [`Warning`]s beside it.
//!
//! Labels are stable: dashboards and alerts are built on them. Sentences may change.

use std::fmt;

use super::facts::Resolvers;

/// Why the pod was injected, or why it was left as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// The pod now asks its node's resolver.
    Injected,
    /// The operation is not CREATE.
    NotCreate,
    /// The object is not a pod.
    NotAPod,
    /// The request is for a subresource of a pod.
    Subresource,
    /// The request carries no object.
    NoObject,
    /// The request names no namespace.
    NoNamespace,
    /// `kube-system`, `kube-public` or `kube-node-lease`.
    SystemNamespace,
    /// The webhook's own namespace.
    OwnNamespace,
    /// The pod's JSON has another shape than the API's.
    UnreadablePod,
    /// A static pod's mirror.
    MirrorPod,
    /// The pod has opted out.
    PodDisabled,
    /// The pod carries our mark and our policy.
    AlreadyInjected,
    /// Nothing is known of the namespace.
    NamespaceUnknown,
    /// The namespace has opted out.
    NamespaceDisabled,
    /// The namespace has not opted in.
    NamespaceNotEnabled,
    /// The pod is for Windows.
    Windows,
    /// The pod runs where no resolver listens.
    NodeWithoutResolver,
    /// `dnsPolicy: Default`.
    PolicyDefault,
    /// `dnsPolicy: None`, and not by us.
    PolicyNone,
    /// A `dnsPolicy` that this version does not know.
    PolicyUnknown,
    /// `hostNetwork` with `ClusterFirst`, which kubelet treats as `Default`.
    HostNetworkDefault,
    /// `ClusterFirstWithHostNet` without `hostNetwork`.
    HostNetPolicyWithoutHostNetwork,
    /// The address of the cluster DNS is not known.
    ClusterDnsUnknown,
    /// The cluster's domain is not known.
    ClusterDomainUnknown,
    /// It is not known how many nodes have a ready resolver.
    ResolversUnknown,
    /// Too few nodes have a ready resolver.
    FewResolversReady,
    /// The pod's workload is not in its namespace's share.
    NotInRollout,
    /// Something broke in the webhook itself.
    Fault,
}

impl Reason {
    /// All of them, for whoever registers metrics.
    pub const ALL: [Self; 28] = [
        Self::Injected,
        Self::NotCreate,
        Self::NotAPod,
        Self::Subresource,
        Self::NoObject,
        Self::NoNamespace,
        Self::SystemNamespace,
        Self::OwnNamespace,
        Self::UnreadablePod,
        Self::MirrorPod,
        Self::PodDisabled,
        Self::AlreadyInjected,
        Self::NamespaceUnknown,
        Self::NamespaceDisabled,
        Self::NamespaceNotEnabled,
        Self::Windows,
        Self::NodeWithoutResolver,
        Self::PolicyDefault,
        Self::PolicyNone,
        Self::PolicyUnknown,
        Self::HostNetworkDefault,
        Self::HostNetPolicyWithoutHostNetwork,
        Self::ClusterDnsUnknown,
        Self::ClusterDomainUnknown,
        Self::ResolversUnknown,
        Self::FewResolversReady,
        Self::NotInRollout,
        Self::Fault,
    ];

    /// The metric label: stable, snake case.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Injected => "injected",
            Self::NotCreate => "not_create",
            Self::NotAPod => "not_a_pod",
            Self::Subresource => "subresource",
            Self::NoObject => "no_object",
            Self::NoNamespace => "no_namespace",
            Self::SystemNamespace => "system_namespace",
            Self::OwnNamespace => "own_namespace",
            Self::UnreadablePod => "unreadable_pod",
            Self::MirrorPod => "mirror_pod",
            Self::PodDisabled => "pod_disabled",
            Self::AlreadyInjected => "already_injected",
            Self::NamespaceUnknown => "namespace_unknown",
            Self::NamespaceDisabled => "namespace_disabled",
            Self::NamespaceNotEnabled => "namespace_not_enabled",
            Self::Windows => "windows",
            Self::NodeWithoutResolver => "node_without_resolver",
            Self::PolicyDefault => "policy_default",
            Self::PolicyNone => "policy_none",
            Self::PolicyUnknown => "policy_unknown",
            Self::HostNetworkDefault => "host_network_default",
            Self::HostNetPolicyWithoutHostNetwork => "host_net_policy_without_host_network",
            Self::ClusterDnsUnknown => "cluster_dns_unknown",
            Self::ClusterDomainUnknown => "cluster_domain_unknown",
            Self::ResolversUnknown => "resolvers_unknown",
            Self::FewResolversReady => "few_resolvers_ready",
            Self::NotInRollout => "not_in_rollout",
            Self::Fault => "fault",
        }
    }

    /// The same for people.
    #[must_use]
    pub fn sentence(self) -> &'static str {
        match self {
            Self::Injected => "the pod will ask its node's resolver",
            Self::NotCreate => "only new pods are changed: DNS settings of a running pod cannot change",
            Self::NotAPod => "only pods are changed",
            Self::Subresource => "subresources of pods are not changed",
            Self::NoObject => "the request carries no object",
            Self::NoNamespace => "the request names no namespace",
            Self::SystemNamespace => "pods of system namespaces are never changed",
            Self::OwnNamespace => "pods of the webhook's own namespace are never changed",
            Self::UnreadablePod => "the pod cannot be read",
            Self::MirrorPod => "a static pod is not changed by editing its mirror",
            Self::PodDisabled => "the pod has opted out",
            Self::AlreadyInjected => "the pod was injected before",
            Self::NamespaceUnknown => "nothing is known of the pod's namespace",
            Self::NamespaceDisabled => "the namespace has opted out",
            Self::NamespaceNotEnabled => "the namespace has not opted in",
            Self::Windows => "Windows pods have no node resolver",
            Self::NodeWithoutResolver => "the pod runs where no node resolver listens",
            Self::PolicyDefault => "dnsPolicy Default was the user's choice",
            Self::PolicyNone => "dnsPolicy None was the user's choice",
            Self::PolicyUnknown => "the dnsPolicy is not known to this version",
            Self::HostNetworkDefault => "with hostNetwork, ClusterFirst means the node's own DNS",
            Self::HostNetPolicyWithoutHostNetwork => {
                "ClusterFirstWithHostNet is for pods with hostNetwork, which this one is not"
            }
            Self::ClusterDnsUnknown => "the address of the cluster DNS is not known",
            Self::ClusterDomainUnknown => "the cluster's domain is not known",
            Self::ResolversUnknown => "it is not known how many nodes have a ready resolver",
            Self::FewResolversReady => "too few nodes have a ready resolver",
            Self::NotInRollout => "the workload is not in the share that its namespace asks for",
            Self::Fault => "something broke in the webhook; the pod is left as it is",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.sentence())
    }
}

/// Whose setting it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The pod's.
    Pod,
    /// The namespace's.
    Namespace,
    /// The webhook's own, for pods that do not say otherwise.
    Webhook,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pod => "pod",
            Self::Namespace => "namespace",
            Self::Webhook => "webhook",
        })
    }
}

/// Something that the creator of the pod should know. Shown by `kubectl`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Warning {
    /// A setting has a value that is not allowed; the next level's is used.
    BadValue {
        /// Where it stands.
        place: Place,
        /// The annotation or label.
        key: &'static str,
        /// What it says.
        value: String,
        /// What it may say.
        allowed: &'static str,
    },
    /// An annotation under our prefix that does not exist.
    UnknownAnnotation {
        /// Where it stands.
        place: Place,
        /// Its key.
        key: String,
    },
    /// `fallback: none`, but not every node fails open.
    FallbackRefused {
        /// Where it stands.
        place: Place,
    },
    /// `fallback: none` on a pod in the node's network, where the kernel's fail-open does not reach.
    FallbackKeptForHostNetwork,
    /// Nameservers of the user's beyond the API's limit.
    NameserversCut {
        /// Those that had no room.
        dropped: Vec<String>,
    },
    /// Search domains beyond the API's limits.
    SearchesCut {
        /// How many had no room.
        dropped: usize,
        /// The first of them.
        first: String,
    },
    /// The pod's own `dnsConfig` sets the option differently than its annotation.
    OptionKept {
        /// The option's name.
        name: String,
    },
    /// The nodes' own search domains are not known and will be missing.
    HostSearchesUnknown,
    /// A fact that is needed is not known.
    FactUnknown {
        /// Which.
        fact: &'static str,
    },
    /// Too few nodes have a ready resolver.
    FewResolversReady {
        /// How many have.
        resolvers: Resolvers,
        /// How many must, in percent.
        min_percent: u8,
    },
    /// The pod cannot be read.
    UnreadablePod {
        /// Why.
        cause: String,
    },
    /// Something broke in the webhook itself.
    Fault,
}

/// The longest warning, in bytes: the API server may cut longer ones
/// (`AdmissionResponse.warnings` in Kubernetes' `admission/v1/types.go`).
pub const MAX_WARNING_BYTES: usize = 256;
/// The most warnings of one decision: together they stay below the API server's 4096 bytes.
pub const MAX_WARNINGS: usize = 12;
/// At the end of what was cut. ASCII, as all of a warning: it travels in an HTTP header (RFC 7234, 5.5), and not every
/// client shows one with other bytes.
pub(crate) const CUT: &str = "...";
/// How much of a value is quoted, in characters.
const MAX_QUOTED_CHARACTERS: usize = 40;

impl Warning {
    /// All labels, for whoever registers metrics.
    pub const LABELS: [&'static str; 12] = [
        "bad_value",
        "unknown_annotation",
        "fallback_refused",
        "fallback_kept_for_host_network",
        "nameservers_cut",
        "searches_cut",
        "option_kept",
        "host_searches_unknown",
        "fact_unknown",
        "few_resolvers_ready",
        "unreadable_pod",
        "fault",
    ];

    /// The metric label: stable, snake case.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            Self::BadValue { .. } => "bad_value",
            Self::UnknownAnnotation { .. } => "unknown_annotation",
            Self::FallbackRefused { .. } => "fallback_refused",
            Self::FallbackKeptForHostNetwork => "fallback_kept_for_host_network",
            Self::NameserversCut { .. } => "nameservers_cut",
            Self::SearchesCut { .. } => "searches_cut",
            Self::OptionKept { .. } => "option_kept",
            Self::HostSearchesUnknown => "host_searches_unknown",
            Self::FactUnknown { .. } => "fact_unknown",
            Self::FewResolversReady { .. } => "few_resolvers_ready",
            Self::UnreadablePod { .. } => "unreadable_pod",
            Self::Fault => "fault",
        }
    }

    /// The annotation or label whose value was bad, for the metric of bad values.
    #[must_use]
    pub fn bad_key(&self) -> Option<&'static str> {
        match self {
            Self::BadValue { key, .. } => Some(key),
            // The webhook's own setting is no annotation.
            Self::FallbackRefused { place } => (*place != Place::Webhook).then_some(super::keys::FALLBACK),
            Self::UnknownAnnotation { .. } => Some("other"),
            _ => None,
        }
    }

    /// The text for the response: one line, at most [`MAX_WARNING_BYTES`].
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = format!("nodestub: {self}");
        if text.len() > MAX_WARNING_BYTES {
            let mut end = MAX_WARNING_BYTES - CUT.len();
            while !text.is_char_boundary(end) {
                end -= 1;
            }
            text.truncate(end);
            text.push_str(CUT);
        }
        text
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadValue { place, key, value, allowed } => {
                write!(f, "{key} on the {place} cannot be {}; allowed: {allowed}", Quoted(value))
            }
            Self::UnknownAnnotation { place, key } => {
                write!(f, "annotation {} on the {place} is not known to this version", Quoted(key))
            }
            Self::FallbackRefused { place } => write!(
                f,
                "nodestub.io/fallback: none on the {place} is refused, for not every node reports fail-open; allowed: cluster, auto"
            ),
            Self::FallbackKeptForHostNetwork => {
                f.write_str("nodestub.io/fallback: none is not for hostNetwork pods; the cluster DNS is kept")
            }
            Self::NameserversCut { dropped } => {
                f.write_str("no room for nameserver")?;
                for one in dropped {
                    write!(f, " {}", Quoted(one))?;
                }
                f.write_str(": a pod can have 3")
            }
            Self::SearchesCut { dropped, first } => write!(
                f,
                "no room for {dropped} search domain(s) from {} on: a pod can have 32, of 2048 characters in all",
                Quoted(first)
            ),
            Self::OptionKept { name } => {
                write!(f, "the annotation for option {} is not used: dnsConfig sets it", Quoted(name))
            }
            Self::HostSearchesUnknown => {
                f.write_str("the nodes' own search domains are not known and will be missing")
            }
            Self::FactUnknown { fact } => write!(f, "the pod is left as it is: {fact} is not known"),
            Self::FewResolversReady { resolvers, min_percent } => write!(
                f,
                "the pod is left as it is: {resolvers} nodes have a ready resolver, and {min_percent}% must"
            ),
            Self::UnreadablePod { cause } => {
                write!(
                    f,
                    "the pod is left as it is: it cannot be read: {}",
                    printable(cause, MAX_WARNING_BYTES)
                )
            }
            Self::Fault => f.write_str("the pod is left as it is: something broke in the webhook"),
        }
    }
}

/// Text from outside, quoted, without control characters, and not too long.
struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", printable(self.0, MAX_QUOTED_CHARACTERS))
    }
}

fn printable(text: &str, max_characters: usize) -> String {
    let mut shown: String = text.chars().take(max_characters).flat_map(char::escape_default).collect();
    if text.chars().nth(max_characters).is_some() {
        shown.push_str(CUT);
    }
    shown
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn keeps_labels_apart() {
        let labels: BTreeSet<_> = Reason::ALL.iter().map(|reason| reason.label()).collect();
        assert_eq!(labels.len(), Reason::ALL.len());
        assert!(
            labels.iter().all(|label| label.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'))
        );
    }

    #[test]
    fn keeps_warnings_short_and_printable() {
        let value = "\u{7}\n\"é".repeat(1000);
        for warning in [
            Warning::BadValue {
                place: Place::Pod,
                key: super::super::keys::NDOTS,
                value: value.clone(),
                allowed: "0-15",
            },
            Warning::UnknownAnnotation { place: Place::Namespace, key: value.clone() },
            Warning::NameserversCut { dropped: vec![value.clone(); 40] },
            Warning::UnreadablePod { cause: value },
        ] {
            let text = warning.text();
            assert!(text.len() <= MAX_WARNING_BYTES, "{text}");
            assert!(text.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{text:?}");
        }
    }
}
