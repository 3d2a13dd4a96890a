//! `acl`: who is answered. Pure, and without allocating: the fast side asks it too.

use std::net::IpAddr;

use nodestub_corefile::config::answering::{Acl, Action, Policy};
use nodestub_wire::Name;

/// The rules of one block, in the order of the file.
#[derive(Debug)]
pub struct AccessList(Vec<Acl>);

/// What becomes of a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict<'a> {
    /// It is answered.
    Allow,
    /// It is not, because of a rule for this zone.
    Deny(Action, &'a Name),
}

impl AccessList {
    /// From rules that were read.
    pub fn new(rules: &[Acl]) -> Self {
        Self(rules.to_vec())
    }

    /// Judges a query by its name (lower-cased wire form), its type and its client.
    pub fn verdict(&self, name: &[u8], qtype: u16, client: IpAddr) -> Verdict<'_> {
        for rule in &self.0 {
            let zones = rule.zones.iter().filter(|zone| is_within(name, zone.as_bytes()));
            let Some(zone) = zones.max_by_key(|zone| zone.as_bytes().len()) else { continue };
            match rule
                .policies
                .iter()
                .find(|policy| matches(policy, qtype, client))
                .map(|policy| policy.action)
            {
                Some(Action::Allow) => return Verdict::Allow,
                Some(action) => return Verdict::Deny(action, zone),
                None => {}
            }
        }
        Verdict::Allow
    }
}

fn matches(policy: &Policy, qtype: u16, client: IpAddr) -> bool {
    (policy.types.is_empty() || policy.types.contains(&qtype))
        && (policy.networks.is_empty() || policy.networks.iter().any(|network| network.holds(client)))
}

/// Whether a name is the zone or lies below it; both in wire form.
fn is_within(name: &[u8], zone: &[u8]) -> bool {
    let mut rest = name;
    loop {
        if rest == zone {
            return true;
        }
        let Some((&length, tail)) = rest.split_first().filter(|(length, _)| **length > 0) else {
            return false;
        };
        let Some(after) = tail.get(usize::from(length)..) else { return false };
        rest = after;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(text: &str) -> AccessList {
        let corefile = format!(". {{\n{text}\n}}");
        let options = nodestub_corefile::Options::default();
        let loaded =
            nodestub_corefile::parse("Corefile", &corefile, &options, &nodestub_corefile::System).unwrap();
        AccessList::new(&loaded.config.blocks[0].acl)
    }

    fn verdict(list: &AccessList, name: &str, qtype: u16, client: &str) -> Option<Action> {
        let name: Name = name.parse().unwrap();
        match list.verdict(name.as_bytes(), qtype, client.parse().unwrap()) {
            Verdict::Allow => None,
            Verdict::Deny(action, _) => Some(action),
        }
    }

    #[test]
    fn the_first_policy_that_matches_decides_and_without_one_the_query_is_answered() {
        let list = list(
            "acl a.test {\n allow net 192.168.1.0/24\n block type A AAAA net 192.168.0.0/16\n filter type TXT\n \
             drop net fd00::/8\n}\nacl test {\n block net 10.0.0.1\n}",
        );
        for (name, qtype, client, expected) in [
            ("x.a.test", 1, "192.168.1.7", None),
            ("x.a.test", 1, "192.168.2.7", Some(Action::Block)),
            ("x.a.test", 15, "192.168.2.7", None),
            ("x.a.test", 16, "192.0.2.1", Some(Action::Filter)),
            ("x.a.test", 1, "fd00::1", Some(Action::Drop)),
            ("x.a.test", 1, "10.0.0.1", Some(Action::Block)),
            ("b.test", 1, "10.0.0.1", Some(Action::Block)),
            ("b.test", 1, "::ffff:10.0.0.1", Some(Action::Block)),
            ("b.test", 1, "10.0.0.2", None),
            ("b.example", 1, "10.0.0.1", None),
        ] {
            assert_eq!(verdict(&list, name, qtype, client), expected, "{name} {qtype} {client}");
        }
    }
}
