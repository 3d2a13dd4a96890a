//! How fast an upstream answers, and what follows: whom to ask first, and when to ask somebody else as well.
//!
//! The estimate is TCP's (RFC 6298): a smoothed time and its mean deviation. CoreDNS draws an upstream at random; so do
//! we among those that are about equally fast. One that is much slower than the fastest is asked when the others have
//! failed, and now and then, for otherwise nobody would notice that it is fast again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use rand::Rng;

use super::Upstream;

/// The earliest moment at which a second upstream is asked: nobody waits that long in the usual case.
const EARLIEST_HEDGE: Duration = Duration::from_millis(50);

/// The latest: later, the client's own patience becomes short.
const LATEST_HEDGE: Duration = Duration::from_millis(600);

/// An upstream that needs so much longer than the fastest is not "about equally fast": twice, and this.
const NEAR: Duration = Duration::from_millis(5);

/// One question in so many is asked in the drawn order, however slow the first is.
const EXPLORATION: u32 = 32;

/// A smoothed time and its deviation, packed: both in microseconds, 32 bits each.
#[derive(Debug, Default)]
pub(super) struct SmoothedRtt(AtomicU64);

impl SmoothedRtt {
    /// Takes in how long an answer took, or how long was waited in vain.
    pub(super) fn observe(&self, took: Duration) {
        let took = u32::try_from(took.as_micros()).unwrap_or(u32::MAX).max(1);
        // Two threads may overwrite each other's sample: an estimate survives that.
        let (smoothed, deviation) = unpack(self.0.load(Relaxed));
        let next = if smoothed == 0 {
            pack(took, took / 2)
        } else {
            let away = smoothed.abs_diff(took);
            pack(weigh(smoothed, took, 8), weigh(deviation, away, 4))
        };
        self.0.store(next, Relaxed);
    }

    /// The smoothed time; `None`: never asked.
    pub(super) fn smoothed(&self) -> Option<Duration> {
        let (smoothed, _) = unpack(self.0.load(Relaxed));
        (smoothed > 0).then(|| Duration::from_micros(u64::from(smoothed)))
    }

    /// After how much silence somebody else is asked as well: what about one answer in twenty exceeds.
    pub(super) fn hedge_after(&self) -> Duration {
        let (smoothed, deviation) = unpack(self.0.load(Relaxed));
        let usual = Duration::from_micros(u64::from(smoothed) + 2 * u64::from(deviation));
        usual.clamp(EARLIEST_HEDGE, LATEST_HEDGE)
    }
}

fn weigh(old: u32, new: u32, part: u64) -> u32 {
    let weighed = (u64::from(old) * (part - 1) + u64::from(new)).div_ceil(part);
    u32::try_from(weighed).unwrap_or(u32::MAX)
}

fn pack(smoothed: u32, deviation: u32) -> u64 {
    u64::from(smoothed) << 32 | u64::from(deviation)
}

fn unpack(packed: u64) -> (u32, u32) {
    let word = |value: u64| u32::try_from(value & u64::from(u32::MAX)).unwrap_or(u32::MAX);
    (word(packed >> 32), word(packed))
}

/// Puts those of a drawn order that are much slower than the fastest behind the others.
pub(super) fn prefer_near(order: &mut [Arc<Upstream>]) {
    if order.len() > 1 && !rand::rng().random_ratio(1, EXPLORATION) {
        let fastest = order.iter().filter_map(|upstream| upstream.rtt.smoothed()).min();
        let Some(fastest) = fastest else { return };
        order.sort_by_key(|upstream| !is_near(upstream.rtt.smoothed(), fastest));
    }
}

/// One that was never asked is as good as any: otherwise it never would be.
fn is_near(smoothed: Option<Duration>, fastest: Duration) -> bool {
    smoothed.is_none_or(|smoothed| smoothed <= 2 * fastest + NEAR)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(samples: &[u64]) -> SmoothedRtt {
        let rtt = SmoothedRtt::default();
        for sample in samples {
            rtt.observe(Duration::from_millis(*sample));
        }
        rtt
    }

    #[test]
    fn the_estimate_follows_and_the_hedge_keeps_its_distance() {
        assert_eq!(after(&[]).smoothed(), None);
        assert_eq!(after(&[]).hedge_after(), EARLIEST_HEDGE);
        let steady = after(&[2; 50]);
        assert!(steady.smoothed().unwrap() < Duration::from_millis(3));
        assert_eq!(steady.hedge_after(), EARLIEST_HEDGE);
        let far = after(&[80; 50]);
        assert!((80..100).contains(&far.hedge_after().as_millis()), "{far:?}");
        let varied = after(&[40, 160].repeat(50));
        assert!(varied.hedge_after() > Duration::from_millis(160), "{varied:?}");
        assert_eq!(after(&[5_000; 50]).hedge_after(), LATEST_HEDGE);
    }

    #[test]
    fn one_that_fell_silent_is_far_within_a_few_questions_and_near_again_once_it_answers() {
        let rtt = after(&[2; 100]);
        let fastest = Duration::from_millis(2);
        assert!(is_near(rtt.smoothed(), fastest));
        rtt.observe(Duration::from_millis(100));
        assert!(!is_near(rtt.smoothed(), fastest));
        for _ in 0..30 {
            rtt.observe(Duration::from_millis(2));
        }
        assert!(is_near(rtt.smoothed(), fastest));
        assert!(is_near(None, fastest));
    }
}
