//! What is said of it: log lines, each when something changes, and events.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use kube::Resource as _;
use kube::runtime::events::{Event, EventType};
use kube::runtime::watcher;
use nodestub_certs::bundle::Root;
use nodestub_certs::machine::{Action, Id};
use tokio::time::timeout;

use super::Work;
use crate::facts::cluster::in_one_line;

/// How long an event may take; it is not waited for.
const EVENT: Duration = Duration::from_secs(10);

impl Work {
    pub(super) fn watch_said(&mut self, place: usize, kind: &str, error: Option<&watcher::Error>) {
        let error = error.map(|error| in_one_line(error));
        if error.is_some() {
            self.metrics.watch_failed("certificates");
        }
        let Some(said) = self.said.watches.get_mut(place) else { return };
        match (&error, &said) {
            (Some(error), None) => {
                tracing::warn!(
                    kind,
                    error,
                    "a watch failed; what it told before is kept, and certificates stay as they are"
                );
            }
            (None, Some(_)) => tracing::info!(kind, "the API server answers again"),
            _ => {}
        }
        *said = error;
    }

    pub(super) fn failed(&mut self, what: &'static str, error: &str) {
        self.metrics.certificate_action_failed(what);
        let text = format!("{what}: {error}");
        if self.said.failure.as_ref() != Some(&text) {
            tracing::warn!(
                what,
                error,
                "keeping certificates up failed; it is tried again, and serving goes on"
            );
            self.said.failure = Some(text);
        }
    }

    pub(super) fn named<'a>(&'a self, ids: &[Id]) -> Vec<&'a Root> {
        ids.iter().filter_map(|id| self.kept.roots().find(|root| root.id == *id)).collect()
    }

    pub(super) fn told_in_words(&self, action: &Action) -> (&'static str, String) {
        let list = |roots: Vec<&Root>| {
            let names: Vec<&str> = roots.iter().map(|root| root.name.as_str()).collect();
            if names.is_empty() { "none".to_owned() } else { names.join(", ") }
        };
        let leaf_ends = || match &self.kept.leaf {
            Some(leaf) => k8s_openapi::jiff::Timestamp::try_from(leaf.pair.leaf().not_after)
                .map(|ends| ends.to_string())
                .unwrap_or_default(),
            None => "never".to_owned(),
        };
        let name = |authority: &Option<Arc<nodestub_certs::Authority>>| {
            authority.as_ref().map(|one| one.root().name.clone()).unwrap_or_default()
        };
        match action {
            Action::Announce { .. } => (
                "AuthorityMade",
                format!("made {}, which signs once the API server trusts it", name(&self.kept.next)),
            ),
            Action::Adopt(ids) => {
                ("AuthorityAdopted", format!("kept what the API server trusts: {}", list(self.named(ids))))
            }
            Action::Publish(ids) => {
                ("BundlePublished", format!("told the API server to trust {}", list(self.named(ids))))
            }
            Action::Promote => (
                "AuthorityPromoted",
                format!(
                    "{} signs from now on, and signed a certificate until {}",
                    name(&self.kept.current),
                    leaf_ends()
                ),
            ),
            Action::SignLeaf => (
                "CertificateSigned",
                format!("{} signed a certificate until {}", name(&self.kept.current), leaf_ends()),
            ),
            Action::Forget(ids) => {
                ("AuthorityForgotten", format!("dropped CAs whose last certificate has ended: {}", ids.len()))
            }
            Action::Wait(_) => ("SecretMended", "wrote again what was still good".to_owned()),
        }
    }

    /// Sends an event about the Secret, and does not wait for it.
    pub(super) fn event(&self, type_: EventType, reason: &str, action: &str, note: &str) {
        let Some(secret) = self.secret.object() else { return };
        let (recorder, regarding) = (self.recorder.clone(), secret.object_ref(&()));
        // The API takes 1024 bytes.
        let note: String = note.chars().take(500).collect();
        let (reason, action) = (reason.to_owned(), action.to_owned());
        let event = Event { type_, reason, note: Some(note), action, secondary: None };
        tokio::spawn(async move {
            match timeout(EVENT, recorder.publish(&event, &regarding)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    let error: &dyn Error = &error;
                    tracing::debug!(error, "an event was not taken");
                }
                Err(_) => tracing::debug!("an event was not taken in time"),
            }
        });
    }
}
