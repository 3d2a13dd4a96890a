//! The time of whoever verifies: certificates are made, renewed and judged by the API server's clock, not by our own.
//!
//! Each of its answers carries a `Date`, in whole seconds. Between asking and hearing lies the moment at which it was
//! written, so each answer bounds how far its clock is from ours, and many answers bound it closely. Our side of it is
//! monotonic: steps of this machine's clock change nothing. An answer that contradicts those before tells of a step of
//! the other clock, and begins anew.

use std::time::{Duration, Instant, SystemTime};

/// Beyond this the bounds say no more than that clocks agree: a `Date` is whole seconds.
const AGREEMENT: Duration = Duration::from_secs(1);

/// Tells the API server's time.
#[derive(Debug, Clone)]
pub struct Clock {
    /// This process' own clock and its monotonic one at the same moment.
    own: (SystemTime, Instant),
    /// The API server's clock lies between both when ours is at `own`.
    bounds: Option<(SystemTime, SystemTime)>,
}

impl Clock {
    /// Nothing was heard yet: tells this time.
    #[must_use]
    pub fn new(own: SystemTime, at: Instant) -> Self {
        Self { own: (own, at), bounds: None }
    }

    /// An answer with that date was asked for and heard at these moments.
    pub fn hear(&mut self, date: SystemTime, asked: Instant, heard: Instant) {
        let since = |moment: Instant| moment.saturating_duration_since(self.own.1);
        let (Some(least), Some(most)) = (
            date.checked_sub(since(heard)),
            date.checked_add(AGREEMENT).and_then(|most| most.checked_sub(since(asked))),
        ) else {
            return;
        };
        self.bounds = Some(match self.bounds {
            Some((low, high)) if low.max(least) <= high.min(most) => (low.max(least), high.min(most)),
            _ => (least, most),
        });
    }

    /// The time at that moment.
    #[must_use]
    pub fn at(&self, moment: Instant) -> SystemTime {
        let begin = match self.bounds {
            // Our own clock, as long as nothing speaks against it.
            Some((low, high)) => self.own.0.clamp(low, high),
            None => self.own.0,
        };
        begin + moment.saturating_duration_since(self.own.1)
    }

    /// How far our own clock was from the API server's when this began, in seconds: positive when ours is ahead.
    #[must_use]
    pub fn skew_seconds(&self) -> f64 {
        let truth = self.at(self.own.1);
        match self.own.0.duration_since(truth) {
            Ok(ahead) => ahead.as_secs_f64(),
            Err(behind) => -behind.duration().as_secs_f64(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Answers of a server whose clock is `truth` when ours is `own`, every 0.7 seconds, on their way for 20 ms.
    fn listen(clock: &mut Clock, start: Instant, truth: SystemTime, count: u32) -> Duration {
        let mut passed = Duration::ZERO;
        for _ in 0..count {
            passed += Duration::from_millis(700);
            let written = truth + passed + Duration::from_millis(10);
            let whole = written.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
            let date = SystemTime::UNIX_EPOCH + Duration::from_secs(whole);
            clock.hear(date, start + passed, start + passed + Duration::from_millis(20));
        }
        passed
    }

    fn apart(one: SystemTime, two: SystemTime) -> Duration {
        one.duration_since(two).unwrap_or_else(|error| error.duration())
    }

    #[test]
    fn finds_the_other_clock_within_a_tenth_of_a_second() {
        let (own, start) = (SystemTime::UNIX_EPOCH + SECOND * 1_000_000, Instant::now());
        for (ahead, skew) in [(true, 3600), (false, 5), (true, 0), (false, 90_000)] {
            let truth = if ahead { own - SECOND * skew } else { own + SECOND * skew };
            let mut clock = Clock::new(own, start);
            assert_eq!(clock.at(start + SECOND), own + SECOND);
            let passed = listen(&mut clock, start, truth, 1);
            assert!(apart(clock.at(start + passed), truth + passed) <= SECOND);
            let passed = listen(&mut clock, start, truth, 20);
            let error = apart(clock.at(start + passed), truth + passed);
            assert!(error <= Duration::from_millis(130), "{skew}: {error:?}");
            assert!(
                (clock.skew_seconds().abs() - Duration::from_secs(skew.into()).as_secs_f64()).abs() < 0.2
            );
        }
    }

    #[test]
    fn follows_a_step_of_the_other_clock() {
        let (own, start) = (SystemTime::UNIX_EPOCH + SECOND * 1_000_000, Instant::now());
        let mut clock = Clock::new(own, start);
        listen(&mut clock, start, own, 20);
        let passed = listen(&mut clock, start, own + SECOND * 40, 20);
        assert!(apart(clock.at(start + passed), own + SECOND * 40 + passed) <= SECOND);
    }
}
