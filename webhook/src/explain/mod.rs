//! `kubectl nodestub explain`: what would become of the pods of a manifest, and why.
//!
//! ```text
//! manifest   YAML -> the pods that it will make
//! (admit)    the webhook's own decision, on the same facts
//! diff       what changes in the pod
//! cli        flags, and with them the facts: by flags alone, or out of a cluster
//! ```
//!
//! Nothing is created and nothing changed; the cluster is only read.

pub mod cli;
mod diff;
pub mod manifest;

use std::fmt;

use serde_json::{Map, Value};

use crate::admit::{Decision, Facts, Policy, Request, admit};
use manifest::Subject;

/// What is said of one pod or one kind of pods.
#[derive(Debug)]
pub struct Explanation {
    /// Such as `Deployment/web`.
    pub title: String,
    /// Where it will be.
    pub namespace: String,
    /// What was decided.
    pub decision: Decision,
    /// The lines of the pod that change, with a little around them.
    diff: String,
}

/// Decides as the webhook would.
#[must_use]
pub fn explain(policy: &Policy, facts: &Facts, subject: &Subject, namespace: &str) -> Explanation {
    let decision = admit(policy, facts, &Request::create_pod(namespace, &subject.pod));
    let mut patched = subject.pod.clone();
    // Our own patch to the very pod that it was made for always applies; else nothing is shown as changed.
    if json_patch::patch(&mut patched, &decision.patch).is_err() {
        patched.clone_from(&subject.pod);
    }
    Explanation {
        title: subject.title.clone(),
        namespace: namespace.to_owned(),
        diff: diff::lines(&yaml(&subject.pod), &yaml(&patched)),
        decision,
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { title, namespace, decision, diff } = self;
        writeln!(f, "{title} in namespace {namespace}")?;
        writeln!(f, "  decision: {}: {}", decision.reason.label(), decision.reason)?;
        if !decision.rule.is_empty() {
            writeln!(f, "  rule: {}", decision.rule)?;
        }
        for warning in &decision.warnings {
            writeln!(f, "  warning: {warning}")?;
        }
        match &decision.injection {
            Some(injection) => {
                writeln!(f, "  changes:")?;
                indented(f, diff)?;
                writeln!(f, "  /etc/resolv.conf:")?;
                indented(f, &injection.to_string())
            }
            None => writeln!(
                f,
                "  changes: none; /etc/resolv.conf is what kubelet makes of the pod's own settings"
            ),
        }
    }
}

fn indented(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    text.lines().try_for_each(|line| writeln!(f, "    {line}"))
}

/// The parts of a pod that the webhook may change, as YAML.
fn yaml(pod: &Value) -> String {
    let mut shown = Map::new();
    for (part, fields) in [("metadata", &["annotations"][..]), ("spec", &["dnsPolicy", "dnsConfig"])] {
        let there = |field: &&str| Some(((*field).to_owned(), pod.get(part)?.get(*field)?.clone()));
        let part_shown: Map<String, Value> = fields.iter().filter_map(there).collect();
        if !part_shown.is_empty() {
            shown.insert(part.to_owned(), Value::Object(part_shown));
        }
    }
    if shown.is_empty() {
        return String::new();
    }
    // JSON is YAML, should it ever not be written more kindly.
    serde_saphyr::to_string(&shown).unwrap_or_else(|_| Value::Object(shown).to_string())
}
