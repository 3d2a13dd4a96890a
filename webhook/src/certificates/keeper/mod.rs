//! The task that keeps a replica's certificate: hears Secret and registration, serves what is good, and, in mode `self`
//! and when it leads, does what the machine says.
//!
//! What is decided from watches is written only if nothing has changed since. What fails is said once, counted, and tried
//! again; the last good pair is served meanwhile.
//!
//! Here: the task, and what it hears. `serving`: what is served. `acting`: what is done by who leads. `saying`: what is
//! said of it.

mod acting;
mod saying;
mod serving;

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures_util::StreamExt as _;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::core::v1::Secret;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::events::{Recorder, Reporter};
use kube::runtime::watcher::{self, watch_object};
use kube::{Client, ResourceExt};
use nodestub_certs::clock::Clock;
use nodestub_certs::kept::Kept;
use nodestub_certs::sight::Sight;
use nodestub_certs::{Pair, Resolver};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{sleep_until, timeout};

use super::lease::Lease;
use super::registration::{FIELD_MANAGER, Registration, hooks};
use super::store::Store;
use super::{Mode, SecretSettings};
use crate::facts::SharedFacts;
use crate::metrics::Metrics;

/// The longest time between two looks at what is known: time alone may make a difference.
const LOOK: Duration = Duration::from_secs(1);

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
