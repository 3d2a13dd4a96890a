//! What single directives count, with labels that are not those of a route. The slow side's alone; the labels come from
//! the Corefile, so their number is bounded by it.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use nodestub_corefile::config::answering::Action;

use super::text::{Label, Page};
use crate::asked::Asked;
use crate::local::template::Failure;

/// Series of one counter; more are counted together under empty labels.
const MAX_SERIES: usize = 1024;

/// A counter with labels.
#[derive(Debug, Default)]
struct Family(Mutex<BTreeMap<Vec<String>, u64>>);

/// The counters of all directives.
#[derive(Debug, Default)]
pub struct PluginCounters {
    blocked: Family,
    filtered: Family,
    dropped: Family,
    translated: Family,
    localhost: Family,
    searched: Family,
    template_matches: Family,
    template_failures: Family,
    record_failures: Family,
}

impl Family {
    fn add(&self, labels: &[&str]) {
        let mut series = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut key: Vec<String> = labels.iter().map(|label| (*label).to_owned()).collect();
        if series.len() >= MAX_SERIES && !series.contains_key(&key) {
            key = vec![String::new(); labels.len()];
        }
        *series.entry(key).or_default() += 1;
    }

    fn write(&self, page: &mut Page, name: &str, help: &str, labels: &[&'static str]) {
        page.family(name, "counter", help);
        for (values, count) in self.0.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let labels: Vec<Label<'_>> =
                labels.iter().zip(values).map(|(label, value)| (*label, value as _)).collect();
            page.sample(name, &labels, *count);
        }
    }
}

impl PluginCounters {
    /// `acl` did not answer a query as it would have been.
    pub fn denied(&self, action: Action, server: &str, zone: &str) {
        let family = match action {
            Action::Filter => &self.filtered,
            Action::Drop => &self.dropped,
            Action::Block | Action::Allow => &self.blocked,
        };
        family.add(&[server, zone, ""]);
    }

    /// `dns64` made an answer.
    pub fn translated(&self, server: &str) {
        self.translated.add(&[server]);
    }

    /// `autopath` found an answer.
    pub fn searched(&self, server: &str) {
        self.searched.add(&[server]);
    }

    /// `local` answered for a name of this machine below another (CoreDNS counts those alone).
    pub fn localhost(&self, asked: &Asked) {
        let name = asked.text();
        if name != "localhost." && (name.ends_with(".localhost.") || name.starts_with("localhost.")) {
            self.localhost.add(&[]);
        }
    }

    /// A template matched. `labels`: zone, class, type.
    pub fn template_matched(&self, server: &str, [zone, class, rtype]: &[String; 3]) {
        self.template_matches.add(&[server, zone, "", class, rtype]);
    }

    /// A record of a template could not be made.
    pub fn template_failed(&self, server: &str, [zone, class, rtype]: &[String; 3], failure: &Failure) {
        let family = if failure.is_record { &self.record_failures } else { &self.template_failures };
        family.add(&[server, zone, "", class, rtype, failure.section, &failure.template]);
    }

    pub(super) fn write(&self, page: &mut Page) {
        let acl = ["server", "zone", "view"];
        let help = "Counter of DNS requests being blocked.";
        self.blocked.write(page, "coredns_acl_blocked_requests_total", help, &acl);
        let help = "Counter of DNS requests being filtered.";
        self.filtered.write(page, "coredns_acl_filtered_requests_total", help, &acl);
        let help = "Counter of DNS requests being dropped.";
        self.dropped.write(page, "coredns_acl_dropped_requests_total", help, &acl);
        let help = "Counter of DNS requests translated by dns64.";
        self.translated.write(page, "coredns_dns64_requests_translated_total", help, &["server"]);
        let help = "Counter of special localhost subdomain requests.";
        self.localhost.write(page, "coredns_local_localhost_requests_total", help, &[]);
        let help = "Counter of requests that did autopath.";
        self.searched.write(page, "coredns_autopath_success_total", help, &["server"]);
        let template = ["server", "zone", "view", "class", "type"];
        let help = "Counter of template regex matches.";
        self.template_matches.write(page, "coredns_template_matches_total", help, &template);
        let failed = ["server", "zone", "view", "class", "type", "section", "template"];
        let help = "Counter of go template failures.";
        self.template_failures.write(page, "coredns_template_template_failures_total", help, &failed);
        let help = "Counter of mis-templated RRs.";
        self.record_failures.write(page, "coredns_template_rr_failures_total", help, &failed);
    }
}
