//! Which answers are refreshed before they end: CoreDNS's `prefetch` (`plugin/cache/handler.go`, `freq/freq.go`, 1.15.0).
//!
//! A hit that comes within a time of the last one counts on; one that comes later begins at 1 again. An answer that was hit
//! often enough is due in the last part of its life. The count goes over to the answer that a refresh brings.

/// From how many hits on, counted how, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Popularity {
    /// Hits, at least 1.
    pub amount: u16,
    /// The longest time between two of them, in milliseconds.
    pub within: u64,
    /// The last part of the life, in percent: 10 to 90.
    pub percentage: u8,
}

/// Of one entry: bit 15 says that somebody refreshes it, the others are the count.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Asked {
    marks: u16,
    /// When it was hit last, in milliseconds after it was kept.
    last: u32,
}

const REFRESHED: u16 = 1 << 15;

/// More hits are not told apart.
pub(crate) const MOST_HITS: u16 = REFRESHED - 1;

impl Asked {
    /// One hit, `age` milliseconds after the answer was kept for `ttl` seconds, of which `ttl_left` are left. True: it should
    /// be refreshed; who does not `claim` that is not counted.
    pub(crate) fn hit(&mut self, by: &Popularity, age: u64, ttl_left: u32, ttl: u32, claim: bool) -> bool {
        let age = u32::try_from(age).unwrap_or(u32::MAX);
        let went_on = u64::from(age.saturating_sub(self.last)) <= by.within;
        let hits = if went_on { ((self.marks & MOST_HITS) + 1).min(MOST_HITS) } else { 1 };
        let last_part = (u64::from(ttl) * u64::from(by.percentage)).div_ceil(100);
        let is_refreshed = self.marks & REFRESHED != 0;
        let is_due = !is_refreshed && hits >= by.amount.min(MOST_HITS) && u64::from(ttl_left) <= last_part;
        if is_due && !claim {
            return true;
        }
        let mark = if is_due || is_refreshed { REFRESHED } else { 0 };
        *self = Self { marks: hits | mark, last: age };
        is_due
    }

    /// Of the answer that takes the place of this one's.
    pub(crate) fn handed_on(self) -> Self {
        if self.marks & REFRESHED == 0 {
            return Self::default();
        }
        Self { marks: self.marks & MOST_HITS, last: 0 }
    }

    pub(crate) fn end_refresh(&mut self) {
        self.marks &= MOST_HITS;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const THREE: Popularity = Popularity { amount: 3, within: 1000, percentage: 10 };

    #[test]
    fn what_is_asked_often_is_due_once_in_the_last_part_of_its_life() {
        let mut asked = Asked::default();
        let hit = |asked: &mut Asked, age: u64, claim| {
            let left = 100 - u32::try_from(age / 1000).unwrap();
            asked.hit(&THREE, age, left, 100, claim)
        };
        assert!(!hit(&mut asked, 88_000, false), "the first after a long time");
        assert!(!hit(&mut asked, 88_900, false));
        assert!(!hit(&mut asked, 89_800, false), "often enough, and not in the last tenth");
        assert!(hit(&mut asked, 90_100, false) && hit(&mut asked, 90_100, false), "told until it is claimed");
        assert!(hit(&mut asked, 90_100, true));
        assert!(!hit(&mut asked, 90_200, true) && !hit(&mut asked, 90_200, false), "once");
        asked.end_refresh();
        assert!(hit(&mut asked, 90_300, true), "the first try brought nothing");
        let mut next = asked.handed_on();
        assert!(!hit(&mut next, 500, false) && next.marks > 3, "the count goes over");
    }

    #[test]
    fn a_pause_begins_the_count_anew_and_another_answer_does_too() {
        let mut asked = Asked::default();
        for age in [96_000, 96_500, 97_600, 98_000] {
            assert!(!asked.hit(&THREE, age, 3, 100, true), "{age}");
        }
        assert!(asked.hit(&THREE, 98_400, 2, 100, true));
        asked.end_refresh();
        assert_eq!(asked.handed_on(), Asked::default());
    }

    #[test]
    fn the_last_second_is_always_in_the_last_part() {
        let one = Popularity { amount: 1, ..THREE };
        assert!(!Asked::default().hit(&one, 0, 2, 5, true));
        assert!(Asked::default().hit(&one, 0, 1, 5, true));
    }
}
