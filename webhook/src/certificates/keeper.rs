//! The task that keeps a replica's certificate: hears Secret and registration, serves what is good, and, in mode `self`
//! and when it leads, does what the machine says.
//!
//! What is decided from watches is written only if nothing has changed since. What fails is said once, counted, and tried
//! again; the last good pair is served meanwhile.

use std::error::Error;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures_util::StreamExt as _;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::core::v1::Secret;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::runtime::watcher::{self, watch_object};
use kube::{Client, Resource as _, ResourceExt};
use nodestub_certs::bundle::{Root, text};
use nodestub_certs::clock::Clock;
use nodestub_certs::kept::{BUNDLE, CERTIFICATE, KEY, Kept};
use nodestub_certs::machine::{Action, Id, Registration as Told, next};
use nodestub_certs::resolver::Outlook;
use nodestub_certs::sight::Sight;
use nodestub_certs::{Material, Pair, Resolver};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{sleep, sleep_until, timeout};

use super::lease::Lease;
use super::registration::{FIELD_MANAGER, Registration, hooks};
use super::store::{Store, Written, contents};
use super::{Mode, SecretSettings};
use crate::facts::SharedFacts;
use crate::facts::cluster::in_one_line;
use crate::metrics::Metrics;

/// The longest time between two looks at what is known: time alone may make a difference.
const LOOK: Duration = Duration::from_secs(1);
/// After a write failed.
const RETRY: Duration = Duration::from_secs(2);
/// Things done in a row, at most, before watches are heard again.
const MOST_AT_ONCE: usize = 8;
/// What is done when nothing is to be done but to put damaged contents right.
const MEND: &str = "mend";
/// How long the API server may take for one request.
const REQUEST: Duration = Duration::from_secs(5);
/// How long an event may take; it is not waited for.
const EVENT: Duration = Duration::from_secs(10);

/// A keeper that runs.
pub struct Keeper {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl std::fmt::Debug for Keeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keeper").finish_non_exhaustive()
    }
}

impl Keeper {
    /// Starts the task. `identity` tells this replica from others.
    #[must_use]
    pub fn start(
        client: &Client,
        settings: SecretSettings,
        identity: &str,
        resolver: Arc<Resolver>,
        facts: Arc<SharedFacts>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let namespace = settings.names.namespace.clone();
        let reporter = Reporter { controller: FIELD_MANAGER.to_owned(), instance: Some(identity.to_owned()) };
        let now = shifted(SystemTime::now(), settings.clock_ahead);
        let work = Work {
            store: Store::new(client, &namespace, &settings.secret),
            registration: Registration::new(client, &settings.registration),
            lease: Lease::new(client, &namespace, &settings.secret, identity.to_owned(), settings.plan.leaf),
            recorder: Recorder::new(client.clone(), reporter),
            clock: Clock::new(now, Instant::now()),
            settings,
            resolver,
            facts,
            metrics,
            secret: Heard::Nothing,
            registered: Heard::Nothing,
            sight: Sight::default(),
            kept: Kept::default(),
            offered: None,
            refused_until: None,
            retry_at: None,
            said: Said::default(),
        };
        let (stop, stopped) = oneshot::channel();
        Self { stop, task: tokio::spawn(work.run(stopped)) }
    }

    /// Ends it, and lets another replica lead at once.
    pub async fn stop(self) {
        let _ = self.stop.send(());
        // How it ended does not matter any more.
        drop(timeout(LOOK, self.task).await);
    }
}

/// What a watch has told.
enum Heard<K> {
    /// Nothing yet.
    Nothing,
    /// Whether it is there, and what it is.
    Is(Option<Box<K>>),
}

impl<K> Heard<K> {
    fn object(&self) -> Option<&K> {
        match self {
            Self::Is(Some(object)) => Some(object),
            Self::Is(None) | Self::Nothing => None,
        }
    }

    fn is_known(&self) -> bool {
        matches!(self, Self::Is(_))
    }
}

/// What was last said in the log of things that go on: each is said when it changes.
#[derive(Default)]
struct Said {
    problems: String,
    verdict: Option<Result<(), String>>,
    kept_back: Option<String>,
    failure: Option<String>,
    watches: [Option<String>; 2],
    leads: bool,
}

struct Work {
    store: Store,
    registration: Registration,
    lease: Lease,
    recorder: Recorder,
    clock: Clock,
    settings: SecretSettings,
    resolver: Arc<Resolver>,
    facts: Arc<SharedFacts>,
    metrics: Arc<Metrics>,
    secret: Heard<Secret>,
    registered: Heard<MutatingWebhookConfiguration>,
    sight: Sight,
    /// What the Secret holds, in mode `self`.
    kept: Kept,
    /// The last good pair that the Secret held.
    offered: Option<Arc<Pair>>,
    /// Writing the registration failed: not again before.
    refused_until: Option<Instant>,
    /// A write failed: nothing before.
    retry_at: Option<Instant>,
    said: Said,
}

impl Work {
    async fn run(mut self, mut stopped: oneshot::Receiver<()>) {
        let secrets = watch_object(self.store.secrets(), &self.settings.secret);
        let mut secrets = pin!(secrets.default_backoff());
        let registrations = watch_object(self.registration.all(), &self.settings.registration);
        let mut registrations = pin!(registrations.default_backoff());
        let mut renew_at = tokio::time::Instant::now();
        loop {
            let look_at = tokio::time::Instant::now() + self.until_next_look();
            tokio::select! {
                _ = &mut stopped => break,
                Some(heard) = secrets.next() => self.hear_secret(heard),
                Some(heard) = registrations.next() => self.hear_registration(heard),
                () = sleep_until(renew_at), if self.settings.mode == Mode::Own => {
                    self.renew().await;
                    renew_at = tokio::time::Instant::now() + self.lease.interval();
                }
                () = sleep_until(look_at) => {}
            }
            self.resolver.set_now(self.now());
            self.serve();
            if self.settings.mode == Mode::Own && self.lease.leads() {
                self.act().await;
                self.serve();
            }
        }
        drop(timeout(LOOK, self.lease.release(&mut self.clock)).await);
    }

    fn now(&self) -> SystemTime {
        self.clock.at(Instant::now())
    }

    fn until_next_look(&self) -> Duration {
        // With short lives the grace is short, too, and its end must not be missed by much.
        LOOK.min(self.settings.plan.grace / 4).max(Duration::from_millis(50))
    }

    fn hear_secret(&mut self, heard: watcher::Result<Option<Secret>>) {
        match heard {
            Ok(secret) => {
                self.watch_said(0, "Secret", None);
                self.take_secret(secret);
            }
            Err(error) => self.watch_said(0, "Secret", Some(&error)),
        }
    }

    fn hear_registration(&mut self, heard: watcher::Result<Option<MutatingWebhookConfiguration>>) {
        match heard {
            Ok(registered) => {
                self.watch_said(1, "MutatingWebhookConfiguration", None);
                self.take_registration(registered);
            }
            Err(error) => self.watch_said(1, "MutatingWebhookConfiguration", Some(&error)),
        }
    }

    fn watch_said(&mut self, place: usize, kind: &str, error: Option<&watcher::Error>) {
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

    fn take_registration(&mut self, registered: Option<MutatingWebhookConfiguration>) {
        if is_older(registered.as_ref(), self.registered.object()) {
            return;
        }
        let hooks = registered.as_ref().map(hooks).unwrap_or_default();
        self.sight.see(hooks, Instant::now());
        self.registered = Heard::Is(registered.map(Box::new));
    }

    fn take_secret(&mut self, secret: Option<Secret>) {
        if is_older(secret.as_ref(), self.secret.object()) {
            return;
        }
        self.secret = Heard::Is(secret.map(Box::new));
        self.read();
    }

    /// Reads the Secret anew: it has changed, or the time has, or the names that are asked for.
    fn read(&mut self) {
        let (now, contents) = (self.now(), contents(self.secret.object()));
        let mut problems: Vec<String> = Vec::new();
        if self.settings.mode == Mode::Own {
            let (kept, found) = Kept::read(&contents, &self.wanted(), now);
            problems.extend(found.iter().map(|problem| in_one_line(problem)));
            if let Some(leaf) = &kept.leaf {
                self.offer(&leaf.pair);
            }
            self.kept = kept;
        } else if self.secret.object().is_none() {
            problems.push(format!("there is no Secret {}", self.settings.secret));
        } else {
            let part = |name: &str| contents.get(name).cloned().unwrap_or_default();
            let material =
                Material { certificate: part(CERTIFICATE), key: part(KEY), authority: part(BUNDLE) };
            match Pair::parse(&material, now) {
                Ok(pair) => match self.lacking(&pair) {
                    None => self.offer(&Arc::new(pair)),
                    Some(host) => {
                        problems.push(format!("tls.crt is not good for {host}, which the API server calls"));
                    }
                },
                Err(error) => problems.push(in_one_line(&error)),
            }
        }
        let problems = problems.join("; ");
        if !problems.is_empty() {
            self.metrics.certificates_loaded(false);
        }
        if self.said.problems != problems {
            if !problems.is_empty() {
                let who = match self.settings.mode {
                    Mode::Own => "it is mended by whoever leads",
                    Mode::CertManager => "see cert-manager's Certificate and its events",
                    Mode::Provided => "put a good one there",
                };
                let secret = &self.settings.secret;
                tracing::error!(
                    secret,
                    problems,
                    "the Secret is not as it should be; the last good certificate is kept; {who}"
                );
                self.event(EventType::Warning, "CertificateRefused", "Load", &problems);
            }
            self.said.problems = problems;
        }
    }

    /// What the API server asks for that this pair does not have.
    fn lacking(&self, pair: &Pair) -> Option<String> {
        let own = format!("{}.{}.svc", self.settings.names.service, self.settings.names.namespace);
        let hosts: Vec<String> = self.sight.hooks().iter().map(|hook| hook.host.clone()).collect();
        let hosts = if hosts.is_empty() { vec![own] } else { hosts };
        hosts.into_iter().find(|host| !pair.is_good_for(host))
    }

    fn offer(&mut self, pair: &Arc<Pair>) {
        // The same one again would lose what is known of it.
        let same = self.offered.as_ref().is_some_and(|known| known.chain() == pair.chain());
        if !same {
            self.offered = Some(Arc::clone(pair));
        }
    }

    fn names(&self) -> nodestub_certs::ServingNames {
        let mut names = self.settings.names.clone();
        if names.cluster_domain.is_none() {
            names.cluster_domain = self.facts.load().facts.cluster_domain.as_ref().map(ToString::to_string);
        }
        names
    }

    fn wanted(&self) -> Vec<String> {
        let names = self.names();
        // Checked when the flags were read; a domain of the cluster that is no name is left out.
        let mut wanted = names.dns_names().unwrap_or_default();
        wanted.extend(names.addresses.iter().map(ToString::to_string));
        wanted
    }

    /// Serves the offered pair, if that is no worse than the one that is served, and notes what is known of it.
    fn serve(&mut self) {
        let (at, now) = (Instant::now(), self.now());
        if self.offered.is_none() && self.secret.object().is_some() {
            // One that was not valid yet becomes so by time alone.
            self.read();
        }
        let served = self.resolver.current();
        if let Some(offered) = &self.offered
            && !served.as_ref().is_some_and(|served| Arc::ptr_eq(served, offered))
        {
            match self.sight.prefer(offered, served.as_deref(), self.settings.plan.grace, at, now) {
                Ok(()) => {
                    self.resolver.swap(Arc::clone(offered));
                    self.metrics.certificates_loaded(true);
                    let left = offered.leaf().seconds_left(now).round();
                    tracing::info!(seconds_left = left, "serving a new certificate");
                    self.said.kept_back = None;
                }
                Err(distrust) => {
                    let why = in_one_line(&distrust);
                    if self.said.kept_back.as_ref() != Some(&why) {
                        tracing::info!(why, "a new certificate waits until the API server trusts it");
                        self.said.kept_back = Some(why);
                    }
                }
            }
        }
        self.note(at, now);
    }

    fn note(&mut self, at: Instant, now: SystemTime) {
        let verdict = self.resolver.current().filter(|_| self.registered.object().is_some()).map(|served| {
            let verdict = self.sight.verify(&served, Duration::ZERO, at, now);
            verdict.map_err(|distrust| in_one_line(&distrust))
        });
        if self.said.verdict != verdict {
            match &verdict {
                Some(Err(why)) => {
                    tracing::error!(why, "the API server would refuse the certificate that is served");
                }
                Some(Ok(())) => tracing::info!("the API server trusts the certificate that is served"),
                None => {}
            }
            self.said.verdict.clone_from(&verdict);
        }
        let authority = |root: &Root| (root.name.clone(), root.validity);
        let authorities = self.kept.roots().map(authority).collect();
        self.resolver.note(Outlook { verdict, authorities });
    }

    async fn renew(&mut self) {
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

    fn failed(&mut self, what: &'static str, error: &str) {
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
    async fn act(&mut self) {
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

    fn named<'a>(&'a self, ids: &[Id]) -> Vec<&'a Root> {
        ids.iter().filter_map(|id| self.kept.roots().find(|root| root.id == *id)).collect()
    }

    fn told_in_words(&self, action: &Action) -> (&'static str, String) {
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
    fn event(&self, type_: EventType, reason: &str, action: &str, note: &str) {
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

/// A watch may tell of what a read has told already, and of what came before that.
fn is_older<K: ResourceExt>(heard: Option<&K>, known: Option<&K>) -> bool {
    // Numbers that only grow, on every API server that keeps to the conformance tests.
    let version = |object: Option<&K>| object?.resource_version()?.parse::<u64>().ok();
    matches!((version(heard), version(known)), (Some(heard), Some(known)) if heard < known)
}

/// A clock that is so many milliseconds ahead.
fn shifted(now: SystemTime, ahead: i64) -> SystemTime {
    let apart = Duration::from_millis(ahead.unsigned_abs());
    let shifted = if ahead < 0 { now.checked_sub(apart) } else { now.checked_add(apart) };
    shifted.unwrap_or(now)
}
