//! `autopath`: the walk along a search list that a client's resolver would do, done here in one go.
//!
//! ```text
//!   www.example.com.default.svc.cluster.local   NXDOMAIN
//!   www.example.com.svc.cluster.local           NXDOMAIN
//!   www.example.com.cluster.local               NXDOMAIN
//!   www.example.com.                            an answer: given to the first name, behind a CNAME to this one
//! ```
//!
//! Which search list a pod has is not looked up: the first name of a walk says it, as it ends in the pod's namespace and
//! `svc.` and the cluster's domain. That a label is a namespace, and not the end of another name (the second name of a walk
//! looks alike), is asked of the cluster DNS: it says NXDOMAIN to `LABEL.svc.ZONE` where there is no such namespace.
//!
//! Only the decisions are here; `resolve::course` asks.

use nodestub_corefile::config::answering::{AutoPath, SearchPath};
use nodestub_wire::{CLASS_IN, MAX_NAME, Name, OwnedRecord, Section, rtype};

/// Between a namespace and the cluster's domain.
const SERVICES: &[u8] = b"svc";

/// One `autopath` at work.
#[derive(Debug)]
pub struct Search(AutoPath);

/// A walk that a name begins.
#[derive(Debug, PartialEq, Eq)]
pub struct Walk {
    /// Must exist, or this is no walk.
    pub namespace: Option<Name>,
    /// What is asked after the name itself, in this order; uncompressed wire form.
    pub names: Vec<Vec<u8>>,
}

impl Search {
    /// From what was read.
    pub fn new(config: &AutoPath) -> Self {
        Self(config.clone())
    }

    /// Whether this lower-cased name may begin a walk. Allocates nothing.
    pub fn is_for(&self, name: &[u8]) -> bool {
        let Some(zone) = self.zone_of(name) else { return false };
        match &self.0.path {
            SearchPath::List(domains) => domains.first().is_some_and(|first| {
                first.as_bytes().len() < name.len() && ends_with(name, first.as_bytes())
            }),
            SearchPath::Kubernetes(_) => labels_before(name, zone.as_bytes()).is_some_and(|before| {
                // BASE.NAMESPACE.svc
                let mut last = [[].as_slice(); 3];
                for label in labels(before) {
                    last = [last[1], last[2], label];
                }
                last[2] == SERVICES && !last[0].is_empty()
            }),
        }
    }

    /// The walk that this name begins, as it was written.
    pub fn walk(&self, name: &[u8]) -> Option<Walk> {
        let lower = name.to_ascii_lowercase();
        if !self.is_for(&lower) {
            return None;
        }
        let zone = self.zone_of(&lower)?;
        match &self.0.path {
            SearchPath::List(domains) => {
                let base = name.get(..name.len() - domains.first()?.as_bytes().len())?;
                let rest = domains.iter().skip(1).map(Name::as_bytes);
                Some(Walk { namespace: None, names: names(base, rest) })
            }
            SearchPath::Kubernetes(node) => {
                let before = labels_before(&lower, zone.as_bytes())?;
                let tail: usize = labels(before).rev_two()?;
                let base = name.get(..before.len() - tail)?;
                let namespace = Name::from_wire(lower.get(base.len()..)?).ok()?;
                let services = [&[3], SERVICES, zone.as_bytes()].concat();
                let rest = [services.as_slice(), zone.as_bytes()].into_iter();
                Some(Walk {
                    namespace: Some(namespace),
                    names: names(base, rest.chain(node.iter().map(Name::as_bytes))),
                })
            }
        }
    }

    fn zone_of(&self, name: &[u8]) -> Option<&Name> {
        let zones = self.0.zones.iter().filter(|zone| ends_with(name, zone.as_bytes()));
        zones.max_by_key(|zone| zone.as_bytes().len())
    }
}

/// A base below each domain, and by itself; what is too long for a name is left out.
fn names<'a>(base: &[u8], domains: impl Iterator<Item = &'a [u8]>) -> Vec<Vec<u8>> {
    let all = domains.chain([&[0_u8][..]]).map(|domain| [base, domain].concat());
    all.filter(|name| name.len() <= MAX_NAME).collect()
}

/// The labels of a name without its end.
struct Labels<'a>(&'a [u8]);

fn labels(bytes: &[u8]) -> Labels<'_> {
    Labels(bytes)
}

impl<'a> Iterator for Labels<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let (&length, rest) = self.0.split_first()?;
        let (label, rest) = rest.split_at_checked(usize::from(length))?;
        self.0 = rest;
        Some(label)
    }
}

impl Labels<'_> {
    /// Bytes that the last two labels take, with their lengths.
    fn rev_two(self) -> Option<usize> {
        let mut last = [0; 2];
        for label in self {
            last = [last[1], label.len() + 1];
        }
        (last[0] > 0).then_some(last[0] + last[1])
    }
}

/// Whether a name lies in a zone, or is it: at the border of a label.
fn ends_with(name: &[u8], zone: &[u8]) -> bool {
    labels_before(name, zone).is_some()
}

/// What stands before a zone.
fn labels_before<'a>(name: &'a [u8], zone: &[u8]) -> Option<&'a [u8]> {
    let mut at = 0;
    loop {
        let rest = name.get(at..)?;
        if rest.len() <= zone.len() {
            return if rest == zone { name.get(..at) } else { None };
        }
        at += 1 + usize::from(*rest.first()?);
    }
}

/// The answer that was found under another name, for the name that was asked: behind a CNAME to the first record that has
/// another owner.
pub fn put_under(name: &[u8], records: &mut Vec<OwnedRecord>) {
    let other = records
        .iter()
        .find(|record| record.section == Section::Answer && !record.owner.eq_ignore_ascii_case(name));
    let Some(other) = other else { return };
    let alias = OwnedRecord {
        section: Section::Answer,
        owner: name.to_vec(),
        rtype: rtype::CNAME,
        class: CLASS_IN,
        ttl: other.ttl,
        data: other.owner.clone(),
    };
    records.insert(0, alias);
}

#[cfg(test)]
mod tests {
    use super::*;
    use nodestub_wire::{name_text, wire_name};

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    fn search(zones: &[&str], path: SearchPath) -> Search {
        Search::new(&AutoPath { zones: zones.iter().copied().map(name).collect(), path })
    }

    fn walk(search: &Search, text: &str) -> Option<(Option<String>, Vec<String>)> {
        let walk = search.walk(&wire_name(text).unwrap())?;
        let names = walk.names.iter().map(|name| name_text(name)).collect();
        Some((walk.namespace.map(|name| name.to_string()), names))
    }

    #[test]
    fn the_first_name_of_a_walk_names_the_namespace() {
        let search = search(&["cluster.local"], SearchPath::Kubernetes(vec![name("corp.example")]));
        let (namespace, names) = walk(&search, "Www.Example.com.default.SVC.cluster.local.").unwrap();
        assert_eq!(namespace.unwrap(), "default.svc.cluster.local.");
        assert_eq!(
            names,
            [
                "Www.Example.com.svc.cluster.local.",
                "Www.Example.com.cluster.local.",
                "Www.Example.com.corp.example.",
                "Www.Example.com."
            ]
        );
        for other in [
            "default.svc.cluster.local",
            "svc.cluster.local",
            "www.default.pod.cluster.local",
            "cluster.local",
            "www.default.svc.xcluster.local",
            "www.default.svc.example",
            ".",
        ] {
            assert_eq!(walk(&search, other), None, "{other}");
        }
    }

    #[test]
    fn a_list_is_walked_from_its_first_domain() {
        let search = search(&["."], SearchPath::List(vec![name("a.test"), name("b.test"), name(".")]));
        assert_eq!(
            walk(&search, "x.y.A.test").unwrap(),
            (None, vec!["x.y.b.test.".into(), "x.y.".into(), "x.y.".into()])
        );
        for other in ["a.test", "x.b.test", "xa.test", "."] {
            assert_eq!(walk(&search, other), None, "{other}");
        }
    }

    #[test]
    fn a_name_that_would_be_too_long_is_left_out() {
        let long = [63, 63, 63, 30].map(|length| "a".repeat(length)).join(".");
        let search = search(&["."], SearchPath::List(vec![name("b"), name(&"c".repeat(40))]));
        assert_eq!(walk(&search, &format!("{long}.b")).unwrap().1, [format!("{long}.")]);
    }

    #[test]
    fn what_is_found_is_put_behind_a_cname() {
        let record = |owner: &str, ttl| OwnedRecord {
            section: Section::Answer,
            owner: wire_name(owner).unwrap(),
            rtype: rtype::A,
            class: CLASS_IN,
            ttl,
            data: vec![192, 0, 2, 1],
        };
        let mut records = vec![record("www.example", 7), record("www.example", 9)];
        put_under(&wire_name("www.example.a.test").unwrap(), &mut records);
        let first = records.first().unwrap();
        assert_eq!((first.rtype, first.ttl, records.len()), (rtype::CNAME, 7, 3));
        assert_eq!(name_text(&first.data), "www.example.");
        let mut own = vec![record("A.test", 7)];
        put_under(&wire_name("a.test").unwrap(), &mut own);
        assert_eq!(own.len(), 1);
    }
}
