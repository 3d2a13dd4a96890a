//! `nodestub-webhook policy`: the same settings as a `MutatingAdmissionPolicy` (stable since Kubernetes 1.36), for clusters
//! that want no webhook. Pure: settings in, YAML out.
//!
//! ```text
//! settings ─► refused by the flag's name, where no policy can say it
//!          ─► cel: conditions (which pods), variables (the three lists), the JSON Patch
//!          ─► policy, binding; and a ValidatingAdmissionPolicy that only warns, of what is ignored in annotations
//! ```
//!
//! What differs from the webhook: `nodestub.io/revision` is a hash of the settings, not of what the pod got; a share of
//! workloads cannot be computed, so namespaces with `nodestub.io/rollout` below 100% are left alone, with a warning; what nodes
//! report is not heard, so `nodestub.io/fallback` is `cluster`, with a warning, unless the operator vouches for all nodes; facts
//! are those of the moment at which the policy was printed. ApplyConfiguration would not do: the three lists of a
//! `dnsConfig` are atomic.

mod cel;

use std::fmt;

use serde_json::{Value, json};

use crate::admit::policy::SYSTEM_NAMESPACES;
use crate::admit::{Facts, FailOpen, Fallback, Policy, Share};

/// The name of the policy and its binding.
pub const NAME: &str = "nodestub";
/// The name of the policy that warns.
pub const WARNINGS_NAME: &str = "nodestub-warnings";

/// A setting that a policy cannot express.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum PolicyError {
    /// Its share of workloads is a matter of hashes.
    Rollout(Share),
    /// A policy does not know how many resolvers are ready.
    MinReadyResolvers(u8),
    /// It follows what the nodes report, which a policy does not hear.
    Fallback(Fallback),
    /// The webhook would warn of each pod; a policy would be wrong in silence.
    HostSearch,
    /// The facts that a policy is printed of must be given.
    Missing(&'static str),
    /// The text could not be written.
    Write(String),
}

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rollout(share) => write!(
                f,
                "--rollout {share} is not for a policy: it cannot compute which workloads those are; use the webhook, or opt in namespace by namespace"
            ),
            Self::MinReadyResolvers(percent) => write!(
                f,
                "--min-ready-resolvers {percent} is not for a policy: it does not know how many are ready; use the webhook, or give 0"
            ),
            Self::Fallback(fallback) => write!(
                f,
                "--fallback {fallback} is not for a policy: it does not hear whether nodes fail open; use the webhook, vouch for all of them by --fail-open-everywhere, or give --fallback cluster"
            ),
            Self::HostSearch => f.write_str(
                "--host-search is missing: a policy cannot warn of search domains that pods lose; give those of your nodes, or none",
            ),
            Self::Missing(flag) => write!(f, "{flag} is missing: a policy finds nothing out"),
            Self::Write(cause) => write!(f, "the policy cannot be written as YAML: {cause}"),
        }
    }
}

impl std::error::Error for PolicyError {}

/// The manifests: policy, binding, and both of the policy that warns.
///
/// # Errors
/// When a setting cannot be expressed; nothing is left out in silence.
pub fn render(policy: &Policy, facts: &Facts) -> Result<Vec<Value>, PolicyError> {
    if policy.rollout != Share::ALL {
        return Err(PolicyError::Rollout(policy.rollout));
    }
    if policy.min_ready_percent > 0 {
        return Err(PolicyError::MinReadyResolvers(policy.min_ready_percent));
    }
    if let Some(fallback @ (Fallback::Auto | Fallback::None)) = policy.defaults.fallback
        && facts.fail_open != FailOpen::Everywhere
    {
        return Err(PolicyError::Fallback(fallback));
    }
    if facts.host_searches.is_none() {
        return Err(PolicyError::HostSearch);
    }
    if facts.cluster_dns.is_empty() {
        return Err(PolicyError::Missing("--cluster-dns"));
    }
    let Some(domain) = &facts.cluster_domain else { return Err(PolicyError::Missing("--cluster-domain")) };
    let variables = cel::variables(policy, facts, domain);
    let revision = cel::revision(&variables);
    let constraints = json!({
        "matchPolicy": "Equivalent",
        "resourceRules": [
            {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"], "scope": "Namespaced"},
        ],
        // The cluster must be able to start without anything of ours.
        "namespaceSelector": {"matchExpressions": [{
            "key": "kubernetes.io/metadata.name",
            "operator": "NotIn",
            "values": SYSTEM_NAMESPACES.iter().copied().chain([policy.own_namespace.as_str()]).collect::<Vec<_>>(),
        }]},
        "objectSelector": {"matchExpressions": [
            {"key": crate::admit::keys::INJECT, "operator": "NotIn", "values": ["disabled"]},
            {"key": crate::admit::keys::INJECT_ALIAS, "operator": "NotIn", "values": ["disabled"]},
        ]},
    });
    let object = |kind: &str, name: &str, spec: Value| {
        json!({
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": kind,
            "metadata": {"name": name, "labels": {"app.kubernetes.io/part-of": "nodestub"}},
            "spec": spec,
        })
    };
    let named = |all: &[(&str, String)]| -> Value {
        all.iter().map(|(name, expression)| json!({"name": name, "expression": expression})).collect()
    };
    let validations: Vec<_> = cel::warnings(policy, facts)
        .into_iter()
        .map(|cel::Check { holds, message, own_message }| match own_message {
            Some(own) => json!({"expression": holds, "message": message, "messageExpression": own}),
            None => json!({"expression": holds, "message": message}),
        })
        .collect();
    let words: Vec<_> = cel::texts().into_iter().chain(cel::unknown_annotations()).collect();
    Ok(vec![
        object(
            "MutatingAdmissionPolicy",
            NAME,
            json!({
                // A pod that was not changed resolves by the cluster DNS; refusing it would be worse.
                "failurePolicy": "Ignore",
                // Another policy or webhook may change the pod after us; one that was changed by us matches no more.
                "reinvocationPolicy": "IfNeeded",
                "matchConstraints": constraints,
                "matchConditions": named(&cel::conditions(policy)),
                "variables": named(&variables),
                "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": cel::patch(&revision)}}],
            }),
        ),
        object("MutatingAdmissionPolicyBinding", NAME, json!({"policyName": NAME})),
        object(
            "ValidatingAdmissionPolicy",
            WARNINGS_NAME,
            json!({
                "failurePolicy": "Ignore",
                "matchConstraints": constraints,
                "variables": named(&words),
                "validations": validations,
            }),
        ),
        object(
            "ValidatingAdmissionPolicyBinding",
            WARNINGS_NAME,
            json!({"policyName": WARNINGS_NAME, "validationActions": ["Warn", "Audit"]}),
        ),
    ])
}

/// The manifests as YAML, one document each.
///
/// # Errors
/// As [`render`].
pub fn yaml(policy: &Policy, facts: &Facts) -> Result<String, PolicyError> {
    let mut text = String::new();
    for object in render(policy, facts)? {
        text.push_str("---\n");
        text.push_str(
            &serde_saphyr::to_string(&object).map_err(|error| PolicyError::Write(error.to_string()))?,
        );
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::{Cli, Command, FactsFrom};

    fn render_with(flags: &[&str]) -> Result<Vec<Value>, PolicyError> {
        let basic =
            ["nodestub-webhook", "policy", "--cluster-dns=10.96.0.10", "--cluster-domain=cluster.local"];
        let Some(Command::Policy(args)) = Cli::try_parse_from(basic.iter().chain(flags)).unwrap().command
        else {
            panic!("another command");
        };
        let (policy, facts) = args.split(FactsFrom::Flags).unwrap();
        render(&policy, &facts)
    }

    #[test]
    fn refuses_by_name_what_a_policy_cannot_express() {
        for (flags, said) in [
            (&["--host-search=none", "--rollout=25%"][..], "--rollout 25%"),
            (
                &["--host-search=none", "--min-ready-resolvers=90", "--resolvers=9/10"],
                "--min-ready-resolvers 90",
            ),
            (&["--host-search=none", "--fallback=auto"], "--fallback auto"),
            (&[], "--host-search is missing"),
        ] {
            let error = render_with(flags).unwrap_err().to_string();
            assert!(error.starts_with(said), "{flags:?}: {error}");
        }
        // Where the operator vouches for it, nothing need be heard.
        for fallback in ["--fallback=auto", "--fallback=none"] {
            render_with(&["--host-search=none", "--fail-open-everywhere", fallback]).unwrap();
        }
    }

    #[test]
    fn renders_a_policy_a_policy_of_warnings_and_their_bindings() {
        let objects = render_with(&["--host-search=none"]).unwrap();
        let kinds: Vec<_> = objects.iter().map(|one| one["kind"].as_str().unwrap()).collect();
        let expected = [
            "MutatingAdmissionPolicy",
            "MutatingAdmissionPolicyBinding",
            "ValidatingAdmissionPolicy",
            "ValidatingAdmissionPolicyBinding",
        ];
        assert_eq!(kinds, expected);
        assert_eq!(objects[1]["spec"]["policyName"], NAME);
        assert_eq!(objects[3]["spec"]["policyName"], WARNINGS_NAME);
    }

    #[test]
    fn marks_other_settings_with_another_revision_and_keeps_words_from_outside_in_quotes() {
        let expression = |flags: &[&str]| {
            let objects = render_with(flags).unwrap();
            objects[0]["spec"]["mutations"][0]["jsonPatch"]["expression"].as_str().unwrap().to_owned()
        };
        assert_eq!(expression(&["--host-search=none"]), expression(&["--host-search=none"]));
        assert_ne!(expression(&["--host-search=none"]), expression(&["--host-search=none", "--ndots=2"]));
        let objects =
            render_with(&["--host-search=none", "--leave-alone=label:a=\"') || true || ('\\"]).unwrap();
        let conditions = objects[0]["spec"]["matchConditions"].to_string();
        assert!(conditions.contains(r#"== \"\\\"') || true || ('\\\\\""#), "{conditions}");
    }
}
