//! What is done, in mode `self`, by the replica that leads: what the machine advises, written if nothing has changed since.

use std::time::{Duration, Instant};

use kube::runtime::events::EventType;
use nodestub_certs::bundle::text;
use nodestub_certs::kept::Kept;
use nodestub_certs::machine::{Action, Registration as Told, next};
use tokio::time::{sleep, timeout};

use super::Work;
use crate::certificates::store::{Written, contents};
use crate::facts::cluster::in_one_line;

/// After a write failed.
const RETRY: Duration = Duration::from_secs(2);
/// Things done in a row, at most, before watches are heard again.
const MOST_AT_ONCE: usize = 8;
/// What is done when nothing is to be done but to put damaged contents right.
const MEND: &str = "mend";
/// How long the API server may take for one request.
const REQUEST: Duration = Duration::from_secs(5);

impl Work {
    pub(super) async fn renew(&mut self) {
        if let Err(error) = self.lease.renew(&mut self.clock).await {
            self.failed("lease", &error);
        }
        let leads = self.lease.leads();
        self.metrics.certificates_led(leads);
        if leads != self.said.leads {
            self.said.leads = leads;
            let skew = self.clock.skew_seconds();
            tracing::info!(leads, clock_ahead_seconds = skew, "leadership of certificates changed");
        }
    }

    /// The registration as the machine wants it; none while the API server has not told of it.
    fn told(&self, at: Instant) -> Option<Option<Told>> {
        if !self.registered.is_known() {
            return None;
        }
        let refused = self.refused_until.is_some_and(|until| at < until);
        let has_hooks = !self.sight.hooks().is_empty();
        Some(has_hooks.then(|| self.sight.registration(refused, at)))
    }

    fn advice(&self) -> Option<Action> {
        let told = self.told(Instant::now())?;
        if !self.secret.is_known() {
            return None;
        }
        Some(next(&self.kept.state(told), &self.settings.plan, self.now()))
    }

    /// Does what is to be done, one thing after the other.
    pub(super) async fn act(&mut self) {
        if self.retry_at.is_some_and(|at| Instant::now() < at) {
            return;
        }
        for _ in 0..MOST_AT_ONCE {
            self.reread_if_names_changed();
            match self.advice() {
                None => return,
                Some(Action::Wait(_)) if !self.is_damaged() => return,
                Some(_) => {}
            }
            match timeout(REQUEST, self.step()).await {
                Ok(Ok(true)) => {
                    self.retry_at = None;
                    self.said.failure = None;
                }
                // Somebody was faster: by what?
                Ok(Ok(false)) => match timeout(REQUEST, self.look()).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => return self.after_failure("read", &in_one_line(&error)),
                    Err(_) => return self.after_failure("read", "no answer in time"),
                },
                Ok(Err((what, error))) => {
                    self.after_failure(what, &error);
                    return;
                }
                Err(_) => {
                    self.after_failure("request", "no answer in time");
                    return;
                }
            }
            self.serve();
        }
        // What goes on like this is no progress.
        sleep(Duration::from_millis(10)).await;
    }

    fn after_failure(&mut self, what: &'static str, error: &str) {
        self.failed(what, error);
        let later = Instant::now().checked_add(RETRY);
        if what == "publish" {
            // The rest need not wait for it.
            self.refused_until = later;
        } else {
            self.retry_at = later;
        }
    }

    /// Whether the Secret holds what cannot be used and is not what we would write.
    fn is_damaged(&self) -> bool {
        if self.said.problems.is_empty() {
            return false;
        }
        let mut held = contents(self.secret.object());
        held.retain(|key, _| Kept::keys().contains(&key.as_str()));
        held != self.kept.write()
    }

    fn reread_if_names_changed(&mut self) {
        let missing = self.kept.leaf.as_ref().is_some_and(|leaf| {
            let wanted = self.wanted();
            leaf.missing.is_empty() && wanted.iter().any(|name| !leaf.pair.names().contains(name))
        });
        if missing {
            self.read();
        }
    }

    /// Reads both objects, before a watch tells of them.
    async fn look(&mut self) -> kube::Result<()> {
        let (secret, registered) = (self.store.read().await?, self.registration.read().await?);
        self.take_secret(secret);
        self.take_registration(registered);
        Ok(())
    }

    /// Decides and writes; false when somebody was faster.
    async fn step(&mut self) -> Result<bool, (&'static str, String)> {
        let line = |what: &'static str| move |error: kube::Error| (what, in_one_line(&error));
        let Some(action) = self.advice() else { return Ok(true) };
        let what = if matches!(action, Action::Wait(_)) { MEND } else { action.label() };
        match &action {
            Action::Wait(_) if !self.is_damaged() => return Ok(true),
            Action::Publish(ids) => {
                let Some(registered) = self.registered.object() else { return Ok(false) };
                let bundle = text(self.named(ids));
                let written = self.registration.publish(registered, &bundle).await.map_err(line(what))?;
                let Some(written) = written else { return Ok(false) };
                self.take_registration(Some(written));
            }
            _ => {
                let (trusted, now) = (self.sight.roots(), self.now());
                let after = self.kept.after(&action, &trusted, &self.names(), &self.settings.plan, now);
                let after = after.map_err(|error| (what, in_one_line(&error)))?;
                let written = self.store.write(self.secret.object(), &after).await.map_err(line(what))?;
                let Written::Done(written) = written else { return Ok(false) };
                self.take_secret(Some(*written));
            }
        }
        self.metrics.certificate_action(what);
        let (reason, note) = self.told_in_words(&action);
        tracing::info!(action = what, note, "certificates");
        self.event(EventType::Normal, reason, "Rotate", &note);
        Ok(true)
    }
}
