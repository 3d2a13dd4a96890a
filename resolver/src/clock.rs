//! The daemon's clock: milliseconds since it started, from a clock that wall-clock steps do not touch.

use std::time::Instant;

use nodestub_cache::Millis;

/// Longer than any TTL lives (2^32 s), in milliseconds: an answer that another process handed over may be older than
/// this one, and nothing is ever before the beginning.
const BEGINNING: u64 = 1 << 43;

/// Counts from when it was made.
#[derive(Debug, Clone, Copy)]
pub struct Clock(Instant);

impl Clock {
    /// Starts long after the beginning.
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// Now.
    pub fn now(self) -> Millis {
        Millis(BEGINNING + u64::try_from(self.0.elapsed().as_millis()).unwrap_or(u64::MAX))
    }
}
