//! The cluster's domain out of the Corefile of the cluster DNS: `kubernetes DOMAIN in-addr.arpa ip6.arpa {`.
//!
//! Only that one directive is looked for, word by word. The Corefile is another program's and may hold plugins that
//! nobody here knows, so it is not parsed as a whole.

use std::collections::BTreeSet;

use crate::admit::Domain;

/// The one domain that all `kubernetes` directives of the Corefile agree on; none when there is none, or several.
///
/// Zones of reverse names do not count. A directive without zones of its own has those of its server block.
#[must_use]
pub fn cluster_domain(corefile: &str) -> Option<Domain> {
    let mut zones = BTreeSet::new();
    let (mut depth, mut block_zones) = (0_usize, Vec::new());
    for line in corefile.lines() {
        let line = line.split('#').next().unwrap_or("");
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let names: Vec<&str> = words.iter().copied().filter(|word| *word != "{" && *word != "}").collect();
        match depth {
            // Labels of a server block may stand on several lines.
            0 => block_zones.extend(names.iter().filter_map(|word| zone(word))),
            1 if names.first() == Some(&"kubernetes") => {
                let own: Vec<String> = names.iter().skip(1).filter_map(|word| zone(word)).collect();
                let all = names.len() == 1;
                zones.extend(if all { block_zones.clone() } else { own });
            }
            _ => {}
        }
        for word in words {
            match word {
                "{" => depth += 1,
                "}" => {
                    depth = depth.saturating_sub(1);
                    if depth == 0 {
                        block_zones.clear();
                    }
                }
                _ => {}
            }
        }
    }
    let mut zones = zones.into_iter();
    match (zones.next(), zones.next()) {
        (Some(one), None) => one.parse().ok(),
        _ => None,
    }
}

/// A zone that can be a cluster's domain: `dns://cluster.local:53,` becomes `cluster.local`.
fn zone(word: &str) -> Option<String> {
    let word = word.trim_end_matches(',');
    let word = word.split_once("://").map_or(word, |(_, rest)| rest);
    // Prefixes such as `10.0.0.0/24` are reverse zones.
    let name = word.split(':').next().unwrap_or("").trim_end_matches('.').to_ascii_lowercase();
    let reverse = name.contains('/')
        || ["in-addr.arpa", "ip6.arpa"]
            .iter()
            .any(|zone| name == *zone || name.ends_with(&format!(".{zone}")));
    (!name.is_empty() && !reverse).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn domain(text: &str) -> Option<String> {
        cluster_domain(text).map(|domain| domain.to_string())
    }

    #[test]
    fn finds_the_domain_of_usual_corefiles() {
        let kubeadm = ".:53 {\n    errors\n    health {\n       lameduck 5s\n    }\n    ready\n    kubernetes cluster.local in-addr.arpa ip6.arpa {\n       pods insecure\n       fallthrough in-addr.arpa ip6.arpa\n       ttl 30\n    }\n    forward . /etc/resolv.conf\n}\n";
        assert_eq!(domain(kubeadm).as_deref(), Some("cluster.local"));
        assert_eq!(domain(".:53 {\n kubernetes K8s.Example. # ours\n}").as_deref(), Some("k8s.example"));
        let of_block = "corp.example:53 {\n forward . 192.0.2.1\n}\ndns://k8s.example:5353 in-addr.arpa {\n kubernetes\n}\n";
        assert_eq!(domain(of_block).as_deref(), Some("k8s.example"));
        let twice = ".:53 {\n kubernetes a.example\n}\n.:54 {\n kubernetes a.example 10.0.0.0/24\n}\n";
        assert_eq!(domain(twice).as_deref(), Some("a.example"));
    }

    #[test]
    fn guesses_nothing() {
        for text in [
            "",
            "}}}} {",
            ".:53 {\n kubernetes a.example b.example\n}",
            ".:53 {\n kubernetes a.example\n}\n.:54 {\n kubernetes b.example\n}",
            ".:53 {\n kubernetes in-addr.arpa\n}",
            ".:53 {\n # kubernetes a.example\n}",
            ".:53 {\n hosts {\n  kubernetes a.example\n }\n}",
            "kubernetes a.example",
            ".:53 {\n kubernetes bad_name\n}",
            ".:53 {\n kubernetes\n}",
        ] {
            assert_eq!(domain(text), None, "{text}");
        }
    }
}
