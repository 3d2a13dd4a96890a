//! Which pods run where no resolver listens: virtual nodes, and network interfaces that bypass the node.
//!
//! A selector is written `PLACE:KEY` or `PLACE:KEY=VALUE`, such as `toleration:virtual-kubelet.io/provider`.

use std::fmt;
use std::str::FromStr;

use super::pod::Pod;

/// Where the known providers mark such pods.
///
/// Sources: the Virtual Kubelet's taint and node label; Alibaba ECI's pod labels and Fargate's, set by their own
/// webhooks; the resource that Amazon's VPC controller adds to pods with a branch network interface, whose traffic
/// does not pass the node's network stack.
pub const DEFAULT_LEAVE_ALONE: [&str; 6] = [
    "toleration:virtual-kubelet.io/provider",
    "node-selector:type=virtual-kubelet",
    "label:eci",
    "label:alibabacloud.com/eci",
    "label:eks.amazonaws.com/fargate-profile",
    "resource:vpc.amazonaws.com/pod-eni",
];

/// Finds pods by one mark. `node-selector` finds it in a required node affinity as well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodSelector {
    place: Place,
    key: String,
    value: Option<String>,
}

/// What a selector looks for, for whoever says it in another language.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Mark<'a> {
    /// Key, and value where one is wanted.
    Label(&'a str, Option<&'a str>),
    /// As above.
    Annotation(&'a str, Option<&'a str>),
    /// As above.
    NodeSelector(&'a str, Option<&'a str>),
    /// As above.
    Toleration(&'a str, Option<&'a str>),
    /// The resource's name.
    Resource(&'a str),
}

/// Where the mark stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Label,
    Annotation,
    NodeSelector,
    Toleration,
    Resource,
}

const PLACES: [(&str, Place); 5] = [
    ("label", Place::Label),
    ("annotation", Place::Annotation),
    ("node-selector", Place::NodeSelector),
    ("toleration", Place::Toleration),
    ("resource", Place::Resource),
];

impl PodSelector {
    /// The same, taken apart.
    pub(crate) fn mark(&self) -> Mark<'_> {
        let (key, value) = (self.key.as_str(), self.value.as_deref());
        match self.place {
            Place::Label => Mark::Label(key, value),
            Place::Annotation => Mark::Annotation(key, value),
            Place::NodeSelector => Mark::NodeSelector(key, value),
            Place::Toleration => Mark::Toleration(key, value),
            Place::Resource => Mark::Resource(key),
        }
    }

    /// Whether the pod carries the mark.
    #[must_use]
    pub fn matches(&self, pod: &Pod) -> bool {
        let wanted = |found: Option<&str>| match (&self.value, found) {
            (_, None) => false,
            (None, Some(_)) => true,
            (Some(wanted), Some(found)) => wanted == found,
        };
        let key = self.key.as_str();
        match self.place {
            Place::Label => wanted(pod.label(key)),
            Place::Annotation => wanted(pod.annotation(key)),
            Place::NodeSelector => pod.must_run_on(key, self.value.as_deref()),
            Place::Toleration => pod.tolerations().any(|(found, value)| found == key && wanted(Some(value))),
            Place::Resource => pod.asks_for_resource(key),
        }
    }
}

impl fmt::Display for PodSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = PLACES.iter().find(|(_, place)| *place == self.place).map_or("", |(name, _)| name);
        write!(f, "{place}:{}", self.key)?;
        self.value.as_ref().map_or(Ok(()), |value| write!(f, "={value}"))
    }
}

impl FromStr for PodSelector {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = |what: &str| {
            Err(format!(
                "{text:?} is not a selector: {what}; write PLACE:KEY or PLACE:KEY=VALUE, where PLACE is label, annotation, node-selector, toleration or resource"
            ))
        };
        let Some((place, mark)) = text.split_once(':') else { return bad("no place is named") };
        let Some((_, place)) = PLACES.iter().find(|(name, _)| *name == place) else {
            return bad("the place is not known");
        };
        let (key, value) = match mark.split_once('=') {
            Some((key, value)) => (key, Some(value.to_owned())),
            None => (mark, None),
        };
        if key.is_empty() {
            return bad("the key is empty");
        }
        if *place == Place::Resource && value.is_some() {
            return bad("a resource has no value here");
        }
        Ok(Self { place: *place, key: key.to_owned(), value })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_its_own_writing() {
        for text in DEFAULT_LEAVE_ALONE.iter().copied().chain(["annotation:a.example/b=c"]) {
            assert_eq!(text.parse::<PodSelector>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn rejects_what_is_not_a_selector() {
        for text in ["", "eci", "labels:eci", "label:", "label:=x", "resource:a=1"] {
            assert!(text.parse::<PodSelector>().is_err(), "{text:?}");
        }
    }
}
