//! Questions whose answer could not be refreshed: until when they are not asked again (`serve_stale`'s recheck).

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nodestub_cache::Millis;

use super::Question;

/// Most questions that are remembered; the others are asked again at once.
const MAX_QUESTIONS: usize = 4096;

/// When each question may be asked again.
#[derive(Debug, Default)]
pub struct Rechecks(Mutex<HashMap<Question, Millis>>);

impl Rechecks {
    /// Whether a question may be asked now.
    pub(super) fn may_ask(&self, question: &Question, now: Millis) -> bool {
        let mut until = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match until.get(question) {
            Some(time) if now < *time => false,
            Some(_) => {
                until.remove(question);
                true
            }
            None => true,
        }
    }

    /// Remembers that a question was not answered.
    pub(super) fn failed(&self, question: Question, recheck: Duration, now: Millis) {
        let milliseconds = u64::try_from(recheck.as_millis()).unwrap_or(u64::MAX);
        if milliseconds == 0 {
            return;
        }
        let mut until = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if until.len() >= MAX_QUESTIONS {
            until.retain(|_, time| now < *time);
        }
        if until.len() < MAX_QUESTIONS {
            until.insert(question, Millis(now.0.saturating_add(milliseconds)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Protocol;
    use nodestub_wire::Ask;

    fn question(number: u16) -> Question {
        let ask = Ask {
            name: Box::new([0]),
            qtype: number,
            qclass: 1,
            recursion_desired: true,
            checking_disabled: false,
            dnssec_ok: false,
            options: Box::default(),
        };
        Question { block: 0, ask, protocol: Protocol::Udp }
    }

    #[test]
    fn a_question_that_failed_waits_and_the_memory_is_bounded() {
        let rechecks = Rechecks::default();
        rechecks.failed(question(1), Duration::from_secs(30), Millis(0));
        assert!(!rechecks.may_ask(&question(1), Millis(29_999)));
        assert!(rechecks.may_ask(&question(2), Millis(0)));
        assert!(rechecks.may_ask(&question(1), Millis(30_000)));
        for number in 0..5000 {
            rechecks.failed(question(number), Duration::from_secs(1), Millis(0));
        }
        assert_eq!(rechecks.0.lock().unwrap().len(), MAX_QUESTIONS);
        rechecks.failed(question(60_000), Duration::from_secs(1), Millis(2000));
        assert_eq!(rechecks.0.lock().unwrap().len(), 1);
    }
}
