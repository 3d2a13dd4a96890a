//! How the webhook comes to know the cluster.
//!
//! ```text
//! flags ─────────────────────────────┐
//! cluster      watches ──> Seen ─────┤
//! ask          nodes' reports ───────┤
//! resolv_conf  our own ──────────────┴─> find() ─> Snapshot ─> SharedFacts ─> admit
//!                                                      └─> publish: ConfigMap for the resolvers
//! ```
//!
//! [`find()`] is pure. Decisions get one immutable [`Snapshot`] each; a new one takes its place as a whole. When the
//! API server cannot be reached, nothing new is seen, and the last snapshot stays.
//!
//! `taint` acts on what is seen: it takes a taint off nodes whose resolver is ready, where that is asked for.
//!
//! Only [`cluster`], `ask`, `taint` and [`publish`] need the Kubernetes client (feature `kube`).

#[cfg(feature = "kube")]
mod ask;
#[cfg(feature = "kube")]
pub mod cluster;
pub mod corefile;
pub mod find;
#[cfg(feature = "kube")]
pub mod publish;
pub mod reports;
pub mod resolv_conf;
pub mod seen;
#[cfg(feature = "kube")]
mod taint;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::admit::{Facts, Namespace};

pub use find::{Found, Origin, find};
pub use resolv_conf::ResolvConf;
pub use seen::Seen;

/// What decisions are made of at one moment.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// The facts.
    pub facts: Facts,
    /// What has not answered yet, in words; decisions can be made, but are not asked for (`/readyz` says no).
    pub awaited: Vec<&'static str>,
}

/// One namespace, asked for at this moment.
type Asked = Pin<Box<dyn Future<Output = Option<Namespace>> + Send>>;

/// Where every decision gets its facts.
pub struct SharedFacts {
    current: ArcSwap<Snapshot>,
    ask: Option<Box<dyn Fn(String) -> Asked + Send + Sync>>,
}

impl SharedFacts {
    /// Facts that stay as they are.
    #[must_use]
    pub fn fixed(facts: Facts) -> Arc<Self> {
        let snapshot = Snapshot { facts, awaited: Vec::new() };
        Arc::new(Self { current: ArcSwap::from_pointee(snapshot), ask: None })
    }

    /// Facts that are still to come; `ask` gets a namespace that is newer than the last snapshot.
    #[must_use]
    pub fn watched(first: Snapshot, ask: impl Fn(String) -> Asked + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self { current: ArcSwap::from_pointee(first), ask: Some(Box::new(ask)) })
    }

    /// The snapshot of this moment.
    #[must_use]
    pub fn load(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// From now on decisions get this one.
    pub fn store(&self, snapshot: Snapshot) {
        self.current.store(Arc::new(snapshot));
    }

    /// Asks the API server for the namespace itself, where it can be asked; none when that adds nothing.
    ///
    /// A pod may come milliseconds after its namespace got the label, and before the watch has told us.
    pub async fn newer(&self, snapshot: &Snapshot, namespace: &str) -> Option<Snapshot> {
        let asked = self.ask.as_ref()?(namespace.to_owned()).await?;
        if snapshot.facts.namespaces.get(namespace).is_some_and(|known| **known == asked) {
            return None;
        }
        let mut newer = snapshot.clone();
        newer.facts.namespaces.insert(namespace.to_owned(), Arc::new(asked));
        Some(newer)
    }
}

impl fmt::Debug for SharedFacts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedFacts").field("current", &self.current).finish_non_exhaustive()
    }
}
