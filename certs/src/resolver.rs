//! What rustls asks at each handshake. The pair in it can be exchanged at any time, under load, without a lock.
//!
//! Connections that are open keep the certificate they began with; the next handshake gets the new one. Beside the pair
//! stands what is known of it, for `/readyz` and metrics.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime};

use arc_swap::{ArcSwap, ArcSwapOption};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use crate::pair::{Pair, Validity};

/// The pair that is being served, if there is one. Handshakes before the first one fail.
#[derive(Debug, Default)]
pub struct Resolver {
    serving: ArcSwapOption<Pair>,
    outlook: ArcSwap<Outlook>,
    /// What is added to this machine's clock, in milliseconds, to have the clock of whoever verifies.
    correction: AtomicI64,
}

/// What is known of the pair that is served.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Outlook {
    /// Whether the API server takes it: not known, yes, or why not.
    pub verdict: Option<Result<(), String>>,
    /// The CAs that are to be trusted, by name. Empty where only the pair tells.
    pub authorities: Vec<(String, Validity)>,
}

impl Resolver {
    /// Serves nothing yet.
    #[must_use]
    pub fn empty() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// Serves this pair from the next handshake on.
    pub fn swap(&self, pair: Arc<Pair>) {
        self.serving.store(Some(pair));
    }

    /// The pair that is being served.
    #[must_use]
    pub fn current(&self) -> Option<Arc<Pair>> {
        self.serving.load_full()
    }

    /// Notes what is known of it.
    pub fn note(&self, outlook: Outlook) {
        self.outlook.store(Arc::new(outlook));
    }

    /// What is known of it.
    #[must_use]
    pub fn outlook(&self) -> Arc<Outlook> {
        self.outlook.load_full()
    }

    /// From now on [`Self::now`] tells this time.
    pub fn set_now(&self, now: SystemTime) {
        let own = SystemTime::now();
        let milliseconds = |apart: Duration| i64::try_from(apart.as_millis()).unwrap_or(i64::MAX);
        let correction = match now.duration_since(own) {
            Ok(behind) => milliseconds(behind),
            Err(ahead) => -milliseconds(ahead.duration()),
        };
        self.correction.store(correction, Ordering::Relaxed);
    }

    /// The time by which certificates are judged.
    #[must_use]
    pub fn now(&self) -> SystemTime {
        let correction = self.correction.load(Ordering::Relaxed);
        let apart = Duration::from_millis(correction.unsigned_abs());
        let own = SystemTime::now();
        let now = if correction < 0 { own.checked_sub(apart) } else { own.checked_add(apart) };
        now.unwrap_or(own)
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.serving.load().as_ref().map(|pair| Arc::clone(pair.certified_key()))
    }
}
