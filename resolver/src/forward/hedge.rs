//! One try, hedged: an upstream that is silent for longer than it usually is gets company, and whoever answers first
//! is believed.
//!
//! ```text
//!   first ───────── silent ─────────────────────► answer? or given up
//!           └─ hedge_after ─► second ───► answer?
//! ```
//!
//! Hedges are a twentieth of all questions, and a few at once, so that upstreams that are slow because they are busy are not
//! asked twice as much. (A datagram that is lost is another matter: `udp` sends it again.)

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::time::Duration;

use nodestub_wire::Ask;
use tokio::time::{Instant, sleep, timeout_at};

use super::upstream::ExchangeError;
use super::{Response, Upstream};
use crate::metrics::{Counter, Protocol};

/// Questions that pay for one hedge.
const PRICE: i64 = 20;

/// Hedges that may be saved up for the moment at which an upstream dies.
const SAVED: i64 = 20;

/// How many hedges there may be.
#[derive(Debug)]
pub(super) struct Budget {
    /// In questions; a hedge costs [`PRICE`] of them.
    saved: AtomicI64,
    /// Hedges, ever.
    pub(super) spent: Counter,
    /// Hedges that there was no budget for.
    pub(super) refused: Counter,
}

impl Budget {
    pub(super) fn new() -> Self {
        Self { saved: AtomicI64::new(SAVED * PRICE), spent: Counter::default(), refused: Counter::default() }
    }

    fn earn(&self) {
        if self.saved.load(Relaxed) < SAVED * PRICE {
            self.saved.fetch_add(1, Relaxed);
        }
    }

    fn spend(&self) -> bool {
        if self.saved.fetch_sub(PRICE, Relaxed) >= PRICE {
            self.spent.add(1);
            return true;
        }
        self.saved.fetch_add(PRICE, Relaxed);
        self.refused.add(1);
        false
    }
}

/// Asks `first` until `deadline`, and `second` as well where `first` is silent for too long. Failures are noted with
/// whoever failed.
///
/// # Errors
/// Neither answered; the error is that of `first`.
pub(super) async fn exchange(
    first: &Arc<Upstream>,
    second: Option<&Arc<Upstream>>,
    ask: &Ask,
    protocol: Protocol,
    deadline: Instant,
    budget: &Budget,
) -> Result<Response, ExchangeError> {
    budget.earn();
    let began = Instant::now();
    let mut waiting = std::pin::pin!(timed(first, ask, protocol, deadline));
    let Some(second) = second else { return waiting.await };
    let patience = first.hedge_after();
    tokio::select! {
        biased;
        outcome = &mut waiting => return outcome,
        () = sleep(patience) => {}
    }
    if !budget.spend() {
        return waiting.await;
    }
    let mut company = std::pin::pin!(timed(second, ask, protocol, deadline));
    tokio::select! {
        biased;
        outcome = &mut waiting => match outcome {
            Ok(response) => Ok(response),
            Err(error) => company.await.map_err(|_| error),
        },
        outcome = &mut company => match outcome {
            Ok(response) => {
                // At least so long; the more often, the later it is asked again.
                first.observe_silence(began.elapsed());
                Ok(response)
            }
            Err(_) => waiting.await,
        },
    }
}

async fn timed(
    upstream: &Arc<Upstream>,
    ask: &Ask,
    protocol: Protocol,
    deadline: Instant,
) -> Result<Response, ExchangeError> {
    let began = Instant::now();
    let outcome = timeout_at(deadline, upstream.exchange(ask, protocol)).await;
    let outcome = outcome.unwrap_or(Err(ExchangeError::TimedOut));
    if outcome.is_err() {
        upstream.observe_silence(began.elapsed().max(Duration::from_millis(100)));
        upstream.failed();
    }
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hedges_are_a_twentieth_of_all_questions_beyond_what_was_saved() {
        let budget = Budget::new();
        let mut hedges = 0;
        for _ in 0..10_000 {
            budget.earn();
            hedges += i64::from(budget.spend());
        }
        assert!((500..=500 + SAVED).contains(&hedges), "{hedges}");
        assert_eq!(budget.spent.get() + budget.refused.get(), 10_000);
    }

    #[test]
    fn nothing_is_saved_without_end() {
        let budget = Budget::new();
        (0..100_000).for_each(|_| budget.earn());
        let hedges = (0..100).filter(|_| budget.spend()).count();
        assert_eq!(hedges, usize::try_from(SAVED).unwrap());
    }
}
