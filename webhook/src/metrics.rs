//! What operators can count. Every label value is known beforehand and present from the start, at zero.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use nodestub_certs::Resolver;
use nodestub_certs::machine::Action;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::admit::{Decision, Reason, Warning, keys};
use crate::facts::find::FACTS;
use crate::facts::seen::SOURCES;

/// One label.
type Label = [(&'static str, &'static str); 1];
type Counters = Family<Label, Counter>;

/// Upper bounds of the buckets, in seconds: a decision takes tens of microseconds, the API server waits seconds.
const DURATION_BUCKETS: [f64; 12] =
    [0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002, 0.005, 0.01, 0.05, 0.25, 1.0, 5.0];

/// Why a request on the admission port got no decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Not `application/json`.
    ContentType,
    /// Over the body limit.
    TooLarge,
    /// The body did not come in time, or broke off.
    Body,
    /// Not an AdmissionReview.
    NotAReview,
    /// Too many bytes are being read already.
    Busy,
    /// A fault of ours before there was anything to answer.
    Fault,
}

impl Refusal {
    const ALL: [Self; 6] =
        [Self::ContentType, Self::TooLarge, Self::Body, Self::NotAReview, Self::Busy, Self::Fault];

    fn label(self) -> &'static str {
        match self {
            Self::ContentType => "content_type",
            Self::TooLarge => "too_large",
            Self::Body => "body",
            Self::NotAReview => "not_a_review",
            Self::Busy => "busy",
            Self::Fault => "fault",
        }
    }
}

/// How a connection ended before it was of use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectionFailure {
    /// The TLS handshake failed.
    Handshake,
    /// The TLS handshake took too long.
    HandshakeTimeout,
    /// No request came in time.
    NoRequest,
    /// The HTTP on it was broken, or its client went away.
    Protocol,
    /// When it had to end, its client did not take what it was still owed.
    Overdue,
}

impl ConnectionFailure {
    const ALL: [Self; 5] =
        [Self::Handshake, Self::HandshakeTimeout, Self::NoRequest, Self::Protocol, Self::Overdue];

    fn label(self) -> &'static str {
        match self {
            Self::Handshake => "handshake",
            Self::HandshakeTimeout => "handshake_timeout",
            Self::NoRequest => "no_request",
            Self::Protocol => "protocol",
            Self::Overdue => "overdue",
        }
    }
}

/// All counters of the webhook.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    decisions: Counters,
    warnings: Counters,
    bad_values: Counters,
    refusals: Counters,
    connection_failures: Counters,
    faults: Counter,
    certificate_loads: Counters,
    certificate_actions: Counters,
    certificate_action_failures: Counters,
    certificate_leader: Gauge,
    watch_failures: Counters,
    publications: Counters,
    facts_known: Family<Label, Gauge>,
    reporting_nodes: Family<Label, Gauge>,
    taints: Counters,
    duration: Histogram,
    /// Connections on the admission port.
    pub connections: Gauge,
}

impl Metrics {
    /// Registers everything; the resolver tells when its certificates end.
    #[must_use]
    pub fn new(certificates: Arc<Resolver>) -> Self {
        let mut registry = Registry::with_prefix("nodestub_webhook");
        let decisions = counters("reason", Reason::ALL.map(Reason::label));
        registry.register("decisions", "Decisions by reason", decisions.clone());
        let warnings = counters("warning", Warning::LABELS);
        registry.register("warnings", "Warnings given to creators of pods", warnings.clone());
        let bad_values = counters("key", keys::CHECKED);
        registry.register(
            "bad_values",
            "Annotations and labels with a value that is not allowed",
            bad_values.clone(),
        );
        let refusals = counters("cause", Refusal::ALL.map(Refusal::label));
        registry.register("refusals", "Requests that got no decision", refusals.clone());
        let connection_failures = counters("cause", ConnectionFailure::ALL.map(ConnectionFailure::label));
        registry.register("connection_failures", "Connections that failed", connection_failures.clone());
        let faults = Counter::default();
        registry.register(
            "faults",
            "Failures of the webhook itself; the pod was left as it was",
            faults.clone(),
        );
        let certificate_loads = counters("result", ["swapped", "failed"]);
        registry.register(
            "certificate_loads",
            "Looks at the certificates that found new ones, or failed",
            certificate_loads.clone(),
        );
        let certificate_actions = counters("action", Action::LABELS);
        registry.register(
            "certificate_actions",
            "What this replica did to rotate certificates",
            certificate_actions.clone(),
        );
        let certificate_action_failures = counters("action", Action::LABELS);
        drop(certificate_actions.get_or_create(&[("action", "mend")]));
        for other in ["lease", "mend", "read", "request"] {
            drop(certificate_action_failures.get_or_create(&[("action", other)]));
        }
        registry.register(
            "certificate_action_failures",
            "What this replica failed to do to rotate certificates; it is tried again",
            certificate_action_failures.clone(),
        );
        let certificate_leader = Gauge::default();
        registry.register(
            "certificate_leader",
            "Whether this replica rotates certificates",
            certificate_leader.clone(),
        );
        let watch_failures = counters("source", SOURCES);
        drop(watch_failures.get_or_create(&[("source", "certificates")]));
        registry.register(
            "watch_failures",
            "Watches of the cluster that failed; what they told before is kept",
            watch_failures.clone(),
        );
        let publications = counters("result", ["written", "failed"]);
        registry.register(
            "fact_writes",
            "Writes of the ConfigMap that tells resolvers the facts",
            publications.clone(),
        );
        let facts_known = Family::<Label, Gauge>::default();
        for fact in FACTS {
            facts_known.get_or_create(&[("fact", fact)]).set(0);
        }
        registry.register("fact_known", "Whether a fact of the cluster is known", facts_known.clone());
        let taints = counters("result", ["lifted", "failed"]);
        registry.register("taints", "Taints of nodes that were to be taken off", taints.clone());
        let reporting_nodes = Family::<Label, Gauge>::default();
        for answer in ["yes", "no"] {
            reporting_nodes.get_or_create(&[("answer", answer)]).set(0);
        }
        registry.register(
            "reporting_nodes",
            "Nodes whose resolver was asked whether fail-open works, by whether it answered",
            reporting_nodes.clone(),
        );
        let duration = Histogram::new(DURATION_BUCKETS);
        registry.register(
            "decision_duration_seconds",
            "From the last byte in to the answer",
            duration.clone(),
        );
        let connections = Gauge::default();
        registry.register("connections", "Open connections on the admission port", connections.clone());
        registry.register_collector(Box::new(Expiry { certificates }));
        Self {
            registry,
            decisions,
            warnings,
            bad_values,
            refusals,
            connection_failures,
            faults,
            certificate_loads,
            certificate_actions,
            certificate_action_failures,
            certificate_leader,
            watch_failures,
            publications,
            facts_known,
            reporting_nodes,
            taints,
            duration,
            connections,
        }
    }

    /// Counts a decision with its warnings.
    pub fn decided(&self, decision: &Decision, took: Duration) {
        self.decisions.get_or_create(&[("reason", decision.reason.label())]).inc();
        for warning in &decision.warnings {
            self.warnings.get_or_create(&[("warning", warning.label())]).inc();
            if let Some(key) = warning.bad_key() {
                self.bad_values.get_or_create(&[("key", key)]).inc();
            }
        }
        if decision.reason == Reason::Fault {
            self.faults.inc();
        }
        self.duration.observe(took.as_secs_f64());
    }

    /// Counts a request that got no decision.
    pub fn refused(&self, cause: Refusal) {
        self.refusals.get_or_create(&[("cause", cause.label())]).inc();
        if cause == Refusal::Fault {
            self.faults.inc();
        }
    }

    /// Counts a connection that came to nothing.
    pub fn connection_failed(&self, cause: ConnectionFailure) {
        self.connection_failures.get_or_create(&[("cause", cause.label())]).inc();
    }

    /// Counts a look at the certificates.
    pub fn certificates_loaded(&self, swapped: bool) {
        let result = if swapped { "swapped" } else { "failed" };
        self.certificate_loads.get_or_create(&[("result", result)]).inc();
    }

    /// Counts a step of a rotation.
    pub fn certificate_action(&self, action: &'static str) {
        self.certificate_actions.get_or_create(&[("action", action)]).inc();
    }

    /// Counts a step of a rotation that failed.
    pub fn certificate_action_failed(&self, action: &'static str) {
        self.certificate_action_failures.get_or_create(&[("action", action)]).inc();
    }

    /// Notes whether this replica rotates certificates.
    pub fn certificates_led(&self, leads: bool) {
        self.certificate_leader.set(i64::from(leads));
    }

    /// Counts a watch that failed.
    pub fn watch_failed(&self, source: &'static str) {
        self.watch_failures.get_or_create(&[("source", source)]).inc();
    }

    /// Counts a write of the facts for resolvers.
    pub fn published(&self, written: bool) {
        let result = if written { "written" } else { "failed" };
        self.publications.get_or_create(&[("result", result)]).inc();
    }

    /// Notes whether a fact is known.
    pub fn fact_known(&self, fact: &'static str, known: bool) {
        self.facts_known.get_or_create(&[("fact", fact)]).set(i64::from(known));
    }

    /// Notes how many nodes were asked for a report, and how many of them gave none.
    pub fn nodes_asked(&self, asked: usize, silent: usize) {
        for (answer, nodes) in [("yes", asked.saturating_sub(silent)), ("no", silent)] {
            let nodes = i64::try_from(nodes).unwrap_or(i64::MAX);
            self.reporting_nodes.get_or_create(&[("answer", answer)]).set(nodes);
        }
    }

    /// Counts a taint that was taken off, or was to be.
    pub fn taint_lifted(&self, lifted: bool) {
        let result = if lifted { "lifted" } else { "failed" };
        self.taints.get_or_create(&[("result", result)]).inc();
    }

    /// The OpenMetrics text.
    ///
    /// # Errors
    /// When a collector cannot be written.
    pub fn text(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

fn counters<const N: usize>(name: &'static str, values: [&'static str; N]) -> Counters {
    let family = Counters::default();
    for value in values {
        drop(family.get_or_create(&[(name, value)]));
    }
    family
}

/// Seconds until certificates end, and whether the API server takes ours, told at the moment of the scrape.
#[derive(Debug)]
struct Expiry {
    certificates: Arc<Resolver>,
}

impl Collector for Expiry {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some(pair) = self.certificates.current() else { return Ok(()) };
        let (now, outlook) = (self.certificates.now(), self.certificates.outlook());
        let known = outlook.authorities.iter().map(|(_, validity)| validity);
        // Of several CAs the one that ends last is what clients will still trust.
        let authority =
            pair.authorities().iter().chain(known).map(|one| one.seconds_left(now)).reduce(f64::max);
        let gauges = Family::<Label, Gauge<f64, AtomicU64>>::default();
        gauges.get_or_create(&[("certificate", "leaf")]).set(pair.leaf().seconds_left(now));
        if let Some(seconds) = authority {
            gauges.get_or_create(&[("certificate", "ca")]).set(seconds);
        }
        let help = "Seconds until the certificate ends; negative afterwards";
        let metric =
            encoder.encode_descriptor("certificate_expiry_seconds", help, None, gauges.metric_type())?;
        gauges.encode(metric)?;

        let each = Family::<[(&'static str, String); 1], Gauge<f64, AtomicU64>>::default();
        for (name, validity) in &outlook.authorities {
            each.get_or_create(&[("name", name.clone())]).set(validity.seconds_left(now));
        }
        let help = "Seconds until a CA ends that clients are told to trust; there are eight at most";
        let metric = encoder.encode_descriptor("ca_expiry_seconds", help, None, each.metric_type())?;
        each.encode(metric)?;

        let Some(verdict) = &outlook.verdict else { return Ok(()) };
        let trusted = Gauge::<i64>::default();
        trusted.set(i64::from(verdict.is_ok()));
        let help = "Whether the caBundle that is registered verifies the certificate that is served";
        let metric = encoder.encode_descriptor("certificate_trusted", help, None, trusted.metric_type())?;
        trusted.encode(metric)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_every_label_from_the_start() {
        let text = Metrics::new(Resolver::empty()).text().unwrap();
        for reason in Reason::ALL {
            let line = format!("nodestub_webhook_decisions_total{{reason=\"{}\"}} 0", reason.label());
            assert!(text.contains(&line), "{line}");
        }
        for label in Warning::LABELS {
            assert!(text.contains(&format!("{{warning=\"{label}\"}} 0")), "{label}");
        }
    }

    #[test]
    fn counts_decisions_faults_and_refusals() {
        let metrics = Metrics::new(Resolver::empty());
        metrics.decided(&Decision::fault(), Duration::from_millis(1));
        metrics.refused(Refusal::TooLarge);
        let text = metrics.text().unwrap();
        for line in [
            "nodestub_webhook_decisions_total{reason=\"fault\"} 1",
            "nodestub_webhook_warnings_total{warning=\"fault\"} 1",
            "nodestub_webhook_faults_total 1",
            "nodestub_webhook_refusals_total{cause=\"too_large\"} 1",
            "nodestub_webhook_decision_duration_seconds_count 1",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }
}
