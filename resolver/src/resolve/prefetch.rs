//! `prefetch`: what is asked often is asked for again before it ends, and no client waits for that.
//!
//! ```text
//!   fast side: a hit that is due ─► slow side: answered from the cache ─► claimed by one ─► the upstream is asked
//!                                                                                            └─ kept, or given back
//! ```
//!
//! Only what upstreams say is asked for again: what is made here costs nothing to make.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use super::Resolver;
use super::course::ask_upstream;
use super::shelf::Shelf;
use crate::asked::Asked;
use crate::local::{hosts, template};
use crate::metrics::Counter;
use crate::tables::Route;

/// Refreshes under way at once; an answer beyond that ends, and is asked for when a client wants it.
const MAX_UNDER_WAY: usize = 1024;

/// Refreshes under way, and those for which there was no room.
#[derive(Debug)]
pub struct Prefetches {
    places: Arc<Semaphore>,
    /// There was no room, ever.
    pub refused: Counter,
}

impl Default for Prefetches {
    fn default() -> Self {
        Self { places: Arc::new(Semaphore::new(MAX_UNDER_WAY)), refused: Counter::default() }
    }
}

/// The right to refresh one answer; given back however the refresh ends.
struct Claim(Shelf);

impl Drop for Claim {
    fn drop(&mut self) {
        self.0.end_refresh();
    }
}

impl Resolver {
    /// Asks for a kept answer again, in a task of its own.
    pub(super) async fn prefetch(&self, route: &Route, mut shelf: Shelf, asked: &Asked) {
        let block = Arc::clone(&shelf.block);
        let made_here = block
            .templates
            .as_ref()
            .is_some_and(|made| !matches!(made.answer(asked), template::Verdict::PassOn))
            || block.hosts.as_ref().is_some_and(|hosts| {
                matches!(hosts.answer(&shelf.name, asked.qtype), hosts::Verdict::Answer(_))
            });
        let first = block.forwarders.iter().position(|forwarder| forwarder.matches(&shelf.name));
        // Claimed and never given back: it is not looked at again in this life.
        let Some(first) = first.filter(|_| !made_here) else { return };
        let claim = Claim(shelf.clone());
        let Ok(place) = Arc::clone(&self.prefetches.places).try_acquire_owned() else {
            self.prefetches.refused.add(1);
            return;
        };
        let Some(forwarder) = block.forwarders.get(first).cloned() else { return };
        // Whoever asked without recursion, those who come want it.
        shelf.ask.recursion_desired = true;
        let question = self.question(&shelf, &forwarder, asked.protocol);
        let client = asked.protocol;
        let lead = async move {
            let _held = (claim, place);
            match forwarder.enter() {
                Ok(_place) => ask_upstream(shelf, first, client).await,
                Err(error) => shelf.failed(&error, forwarder.transport(client)),
            }
        };
        route.counters.slow().prefetched();
        // Under way once it has been polled, and nobody waits for it.
        let refresh = self.coalescer.ask_to_the_end(question, || None, lead);
        drop(tokio::time::timeout(Duration::ZERO, refresh).await);
    }
}
