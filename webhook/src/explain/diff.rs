//! Two short texts side by side: lines that go begin with `-`, lines that come with `+`.

/// All lines of both texts, in order; by the longest common subsequence, for texts of some tens of lines.
pub(super) fn lines(before: &str, after: &str) -> String {
    let (old, new): (Vec<&str>, Vec<&str>) = (before.lines().collect(), after.lines().collect());
    let common = table(&old, &new);
    let length = |i: usize, j: usize| common.get(i).and_then(|row| row.get(j)).copied().unwrap_or(0);
    let (mut i, mut j, mut text) = (0, 0, String::new());
    let mut push = |sign: char, line: &str| {
        text.push(sign);
        text.push(' ');
        text.push_str(line);
        text.push('\n');
    };
    loop {
        match (old.get(i), new.get(j)) {
            (None, None) => return text,
            (Some(a), Some(b)) if a == b => {
                push(' ', a);
                (i, j) = (i + 1, j + 1);
            }
            (Some(a), b) if b.is_none() || length(i + 1, j) >= length(i, j + 1) => {
                push('-', a);
                i += 1;
            }
            (_, Some(b)) => {
                push('+', b);
                j += 1;
            }
            // The arm before the last takes it.
            (Some(_), None) => return text,
        }
    }
}

/// At `[i][j]` the length of the longest common subsequence of `old[i..]` and `new[j..]`.
fn table(old: &[&str], new: &[&str]) -> Vec<Vec<usize>> {
    let mut below = vec![0; new.len() + 1];
    let mut rows = vec![below.clone()];
    for a in old.iter().rev() {
        let mut row = vec![0; new.len() + 1];
        let mut right = 0;
        for (j, b) in new.iter().enumerate().rev() {
            let at = |row: &[usize], j: usize| row.get(j).copied().unwrap_or(0);
            right = if a == b { at(&below, j + 1) + 1 } else { right.max(at(&below, j)) };
            if let Some(cell) = row.get_mut(j) {
                *cell = right;
            }
        }
        rows.push(row.clone());
        below = row;
    }
    rows.reverse();
    rows
}

#[cfg(test)]
mod tests {
    use super::lines;

    #[test]
    fn shows_what_goes_and_what_comes() {
        assert_eq!(lines("", ""), "");
        assert_eq!(lines("a\nb\n", "a\nb\n"), "  a\n  b\n");
        assert_eq!(lines("", "a\n"), "+ a\n");
        assert_eq!(lines("a\n", ""), "- a\n");
        assert_eq!(lines("a\nb\nc\n", "a\nx\nc\nd\n"), "  a\n- b\n+ x\n  c\n+ d\n");
    }

    #[test]
    fn loses_no_line_of_either() {
        let (old, new) = ("a\nb\na\nc\nb\n", "b\na\nb\nc\nc\n");
        let text = lines(old, new);
        let with = |sign: char| -> String {
            let kept = text.lines().filter(|line| line.starts_with([' ', sign]));
            kept.map(|line| format!("{}\n", &line[2..])).collect()
        };
        assert_eq!((with('-').as_str(), with('+').as_str()), (old, new));
    }
}
