//! The daemon's clock: milliseconds since it started, from a clock that wall-clock steps do not touch.

use std::time::Instant;

use nodestub_cache::Millis;

/// Counts from when it was made.
#[derive(Debug, Clone, Copy)]
pub struct Clock(Instant);

impl Clock {
    /// Starts at one hour, so that nothing is ever "before the beginning".
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// Now.
    pub fn now(self) -> Millis {
        Millis(3_600_000 + u64::try_from(self.0.elapsed().as_millis()).unwrap_or(u64::MAX))
    }
}
