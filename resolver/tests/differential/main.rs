//! The same Corefile on CoreDNS 1.15.0 and on ours, over the same upstream: clients see the same.
//!
//! ```text
//!   cases ── Corefile, questions ──► scene: one namespace with CoreDNS, our daemon, one scripted upstream
//!                                      └─ each question to both ──► compare ── a difference ──► allowed? ── no: fails
//! ```
//!
//! `upstream` is what both ask, `question` what both are asked, `compare` what may not differ, and `allowed` the closed
//! list of what may, which ARCHITECTURE.md holds as well. `accepted` tries what either takes of a Corefile. CoreDNS's program is built by `tests/cluster/build coredns`;
//! where it is missing, the tests say so and skip. `NODESTUB_FULL=1` asks every question; otherwise every fourth.
#![forbid(unsafe_code)]
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may stop at the first surprise, in its helpers too"
)]

mod accepted;
mod allowed;
mod cases;
mod compare;
mod question;
mod scene;
#[path = "../common/secure.rs"]
mod secure;
mod templates;
mod tls;
mod upstream;

use cases::{CASES, Case};
use scene::Scene;

/// Questions that all cases ask together in the full form; at least.
const AT_LEAST: usize = 5_000;

/// Asks the questions of one case, and fails with all differences that are not allowed.
fn agree(name: &str) {
    let case = CASES.iter().find(|case| case.name == name).unwrap();
    let Some(scene) = Scene::start(case) else { return };
    let full = std::env::var_os("NODESTUB_FULL").is_some();
    let questions = case.questions();
    let mut differences = Vec::new();
    for (index, question) in questions.iter().enumerate() {
        // Pairs stay together: the second of each is answered from the cache.
        if full || index % 8 < 2 || questions.len() < 64 {
            differences.extend(scene.compare(question));
        }
    }
    assert!(
        differences.is_empty(),
        "{} differences; the Corefile:\n{}\n{}\n{}",
        differences.len(),
        scene.corefile(),
        differences.iter().take(25).cloned().collect::<Vec<_>>().join("\n"),
        scene.output()
    );
}

macro_rules! agrees {
    ($($name:ident),+ $(,)?) => {
        const TESTED: &[&str] = &[$(stringify!($name)),+];
        $(#[test] fn $name() { agree(stringify!($name)); })+
    };
}

agrees!(
    forward_and_cache,
    hosts,
    forward_failover,
    forward_next,
    hosts_other_types,
    forward_connections,
    forward_names,
    cache_prefetch,
    clients_by_tls,
    errors_of_upstreams,
    rewrite_names,
    rewrite_answers,
    rewrite_fields,
    rewrite_edns,
    rewrite_metadata,
    templates,
    template_expressions,
    template_conditions,
    access_lists,
    loadbalance,
    loadbalance_prefer,
    dns64,
    bufsize,
    whoami,
    any,
    minimal,
    minimal_without_cache,
    local,
    local_without_prefix,
    nsid,
    chaos,
    other_classes,
    autopath,
    autopath_zones,
    twice,
);

#[test]
fn every_case_is_tested_and_together_they_ask_enough() {
    let names: Vec<&str> = CASES.iter().map(|case| case.name).collect();
    assert_eq!(names, TESTED);
    let total: usize = CASES.iter().map(|case: &Case| case.questions().len()).sum();
    assert!(total >= AT_LEAST, "{total} questions");
}

#[test]
fn every_allowed_difference_stands_in_architecture_with_its_reason() {
    let page = include_str!("../../../ARCHITECTURE.md");
    for difference in allowed::ALLOWED {
        let row = page.lines().find(|line| line.starts_with(&format!("| {} |", difference.what)));
        let row = row.unwrap_or_else(|| panic!("no row for: {}", difference.what));
        assert_eq!(row.matches('|').count(), 5, "{row}");
    }
}
