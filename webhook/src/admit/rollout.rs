//! A stable share of a namespace's workloads: annotation `nodestub.io/rollout: "25%"`.
//!
//! Each workload has a fixed place from 0 to 99, computed from namespace, kind and name of what owns the pod; a
//! share of 25% takes the places below 25. So all pods of a workload go together, over any number of rollouts (a
//! pod-template hash or a UID does not count), and a raised share takes further workloads and gives none back.
//! The namespace counts too, so that a name that every namespace has is not taken everywhere at once.

use std::fmt;
use std::str::FromStr;

use super::hash::fnv1a;
use super::pod::Pod;

/// What a warning says is allowed for a share.
pub const ALLOWED_SHARES: &str = "0% to 100%";

/// Set by the Deployment controller on ReplicaSets and their pods; the ReplicaSet's name ends in its value.
const DEPLOYMENT_HASH: &str = "pod-template-hash";
/// The same by Argo Rollouts.
const ROLLOUT_HASH: &str = "rollouts-pod-template-hash";
/// The CronJob controller names its Jobs by the minutes since 1970 (`getJobName` in Kubernetes'
/// `pkg/controller/cronjob/utils.go`): eight digits until the year 2160.
const CRON_JOB_DIGITS: usize = 8;

/// How many of a namespace's workloads are injected, in percent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Share(u8);

impl Share {
    /// Every workload.
    pub const ALL: Self = Self(100);

    /// Whether the workload belongs to the share.
    #[must_use]
    pub fn takes(self, namespace: &str, workload: &Workload) -> bool {
        workload.place(namespace) < self.0
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.0)
    }
}

impl FromStr for Share {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is not a share; allowed: {ALLOWED_SHARES}");
        let number = text.trim();
        let number = number.strip_suffix('%').unwrap_or(number).trim_end();
        // `parse` alone would take "+5".
        if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(bad());
        }
        number.parse().ok().filter(|percent| *percent <= 100).map(Self).ok_or_else(bad)
    }
}

/// What stands behind a pod for as long as people call it by one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workload {
    /// `Deployment`, `StatefulSet`, `DaemonSet`, `CronJob`, `Job`, another owner's kind, or `Pod` for a bare pod.
    pub kind: String,
    /// Its name; of a bare pod that is named by the API server, the prefix.
    pub name: String,
}

impl Workload {
    /// What the pod belongs to.
    #[must_use]
    pub fn of(pod: &Pod) -> Self {
        let Some((kind, name)) = pod.controller() else {
            let name = pod.name().unwrap_or_else(|| pod.generate_name().trim_end_matches('-'));
            return Self::new("Pod", name);
        };
        let without = |label: &str| name.strip_suffix(pod.label(label)?)?.strip_suffix('-');
        match kind {
            "ReplicaSet" => match (without(DEPLOYMENT_HASH), without(ROLLOUT_HASH)) {
                (Some(name), _) => Self::new("Deployment", name),
                (None, Some(name)) => Self::new("Rollout", name),
                (None, None) => Self::new(kind, name),
            },
            "Job" => match cron_job(name) {
                Some(name) => Self::new("CronJob", name),
                None => Self::new(kind, name),
            },
            _ => Self::new(kind, name),
        }
    }

    fn new(kind: &str, name: &str) -> Self {
        Self { kind: kind.to_owned(), name: name.to_owned() }
    }

    /// From 0 to 99; the same for ever.
    fn place(&self, namespace: &str) -> u8 {
        let parts = [namespace, "/", &self.kind, "/", &self.name];
        let hash = mix(fnv1a(parts.iter().flat_map(|part| part.bytes())));
        // The upper half, scaled: the result is below 100.
        u8::try_from(((hash >> 32) * 100) >> 32).unwrap_or(u8::MAX)
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind, self.name)
    }
}

fn cron_job(job: &str) -> Option<&str> {
    let (name, digits) = job.rsplit_once('-')?;
    let minutes = digits.len() == CRON_JOB_DIGITS && digits.bytes().all(|byte| byte.is_ascii_digit());
    (minutes && !name.is_empty()).then_some(name)
}

/// The last step of SplitMix64: FNV-1a alone leaves the upper bits of short names alike.
fn mix(mut hash: u64) -> u64 {
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn of(metadata: &Value) -> String {
        Workload::of(&Pod::read(&json!({"metadata": metadata, "spec": {}})).unwrap()).to_string()
    }

    fn owned(kind: &str, name: &str, labels: &Value) -> String {
        let owners =
            json!([{"kind": "Other", "name": "x"}, {"kind": kind, "name": name, "controller": true}]);
        of(&json!({"generateName": format!("{name}-"), "labels": labels, "ownerReferences": owners}))
    }

    #[test]
    fn names_a_workload_as_people_do() {
        let hash = json!({"pod-template-hash": "7d9c"});
        assert_eq!(owned("ReplicaSet", "web-7d9c", &hash), "Deployment/web");
        assert_eq!(
            owned("ReplicaSet", "web-5f", &json!({"rollouts-pod-template-hash": "5f"})),
            "Rollout/web"
        );
        assert_eq!(owned("ReplicaSet", "web-7d9c", &json!({})), "ReplicaSet/web-7d9c");
        assert_eq!(owned("ReplicaSet", "web7d9c", &hash), "ReplicaSet/web7d9c");
        assert_eq!(owned("StatefulSet", "db-7d9c", &hash), "StatefulSet/db-7d9c");
        assert_eq!(owned("Job", "backup-29412345", &json!({})), "CronJob/backup");
        assert_eq!(owned("Job", "import-2024", &json!({})), "Job/import-2024");
        assert_eq!(of(&json!({"name": "one"})), "Pod/one");
        assert_eq!(of(&json!({"generateName": "one-"})), "Pod/one");
        assert_eq!(of(&json!({"name": "one", "generateName": "other-"})), "Pod/one");
        assert_eq!(of(&json!({"name": "one", "ownerReferences": [{"kind": "A", "name": "b"}]})), "Pod/one");
    }

    #[test]
    fn reads_shares_and_rejects_what_is_none() {
        for (text, share) in [("25%", 25), ("25", 25), (" 0% ", 0), ("100%", 100), ("7 %", 7)] {
            assert_eq!(text.parse(), Ok(Share(share)), "{text}");
        }
        for text in ["", "%", "101%", "-1%", "+5%", "12.5%", "a quarter", "256", "5%%"] {
            assert!(text.parse::<Share>().is_err(), "{text}");
        }
    }

    #[test]
    fn keeps_every_workload_in_its_place_for_ever() {
        // Written down once: whoever changes these moves running workloads from one group to the other.
        let place = |namespace: &str, kind: &str, name: &str| Workload::new(kind, name).place(namespace);
        assert_eq!(place("shop", "Deployment", "web"), PLACES[0]);
        assert_eq!(place("shop", "Deployment", "cart"), PLACES[1]);
        assert_eq!(place("shop", "StatefulSet", "web"), PLACES[2]);
        assert_eq!(place("stage", "Deployment", "web"), PLACES[3]);
    }

    const PLACES: [u8; 4] = [98, 85, 24, 46];

    #[test]
    fn spreads_workloads_evenly() {
        let taken = |share: u8| {
            (0..10_000)
                .filter(|n| Share(share).takes("a", &Workload::new("Deployment", &format!("w{n}"))))
                .count()
        };
        assert_eq!((taken(0), taken(100)), (0, 10_000));
        for share in [1, 10, 25, 50, 90, 99] {
            let (got, wanted) = (taken(share), usize::from(share) * 100);
            // Four standard deviations of a fair draw, at most 200.
            assert!(got.abs_diff(wanted) < 200, "{share}%: {got}");
        }
    }
}
