//! What rustls asks at each handshake. The pair in it can be exchanged at any time, under load, without a lock.
//!
//! Connections that are open keep the certificate they began with; the next handshake gets the new one.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use crate::pair::Pair;

/// The pair that is being served, if there is one. Handshakes before the first one fail.
#[derive(Debug, Default)]
pub struct Resolver {
    serving: ArcSwapOption<Pair>,
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
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.serving.load().as_ref().map(|pair| Arc::clone(pair.certified_key()))
    }
}
