//! "did you mean": the known word nearest to a mistyped one.

/// The nearest of `known` by Damerau-Levenshtein distance (neighbours swapped count once), if it is near enough
/// that a slip of the hand explains it.
pub(crate) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Longer than any directive: no slip, and the table below stays small.
    const LONGEST_CHARACTERS: usize = 40;
    let length = word.chars().count();
    if length > LONGEST_CHARACTERS {
        return None;
    }
    let lowered = word.to_lowercase();
    known
        .into_iter()
        .map(|candidate| (distance(&lowered, candidate), candidate))
        .filter(|&(distance, candidate)| {
            distance <= (length.max(candidate.len()) / 3).max(1) && distance < length
        })
        .min_by_key(|&(distance, _)| distance)
        .map(|(_, candidate)| candidate)
}

/// Fewest insertions, deletions, replacements and swaps of neighbours.
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut before: Vec<usize> = Vec::new();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    let mut last_left = None;
    for (row_index, left_character) in left.chars().enumerate() {
        let mut next = vec![row_index + 1];
        let mut last_right = None;
        for (index, &right_character) in right.iter().enumerate() {
            let at = |row: &[usize], index: usize| row.get(index).copied().unwrap_or(usize::MAX / 2);
            let mut best = (at(&row, index + 1) + 1)
                .min(at(&next, index) + 1)
                .min(at(&row, index) + usize::from(left_character != right_character));
            if index > 0 && last_left == Some(right_character) && last_right == Some(left_character) {
                best = best.min(at(&before, index - 1) + 1);
            }
            next.push(best);
            last_right = Some(right_character);
        }
        before = std::mem::replace(&mut row, next);
        last_left = Some(left_character);
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measures_slips() {
        for (left, right, expected) in [
            ("", "abc", 3),
            ("abc", "abc", 0),
            ("forwrad", "forward", 1),
            ("cach", "cache", 1),
            ("kitten", "sitting", 3),
        ] {
            assert_eq!(distance(left, right), expected, "{left} {right}");
            assert_eq!(distance(right, left), expected, "{right} {left}");
        }
    }

    #[test]
    fn suggests_only_what_a_slip_explains() {
        let known = ["forward", "cache", "log", "loop"];
        assert_eq!(nearest("fowrard", known), Some("forward"));
        assert_eq!(nearest("Cache", known), Some("cache"));
        assert_eq!(nearest("lopo", known), Some("loop"));
        assert_eq!(nearest("kubernetes", known), None);
        assert_eq!(nearest("x", known), None);
        assert_eq!(nearest(&"forward".repeat(100), known), None);
    }
}
