//! What a patch changed, as lines of YAML: the changes, where they are, and nothing else.

use std::collections::VecDeque;

use serde_json::Value;

/// A line, and whether it came or went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Line {
    /// On both sides.
    Same(String),
    /// Only before.
    Removed(String),
    /// Only after.
    Added(String),
    /// Some lines that are on both sides.
    Left(usize),
}

impl Line {
    fn text(&self) -> &str {
        match self {
            Self::Same(text) | Self::Removed(text) | Self::Added(text) => text,
            Self::Left(_) => "",
        }
    }

    fn is_change(&self) -> bool {
        matches!(self, Self::Removed(_) | Self::Added(_))
    }
}

/// The difference of two values: changed lines, the lines above them that say where they are, and a neighbour.
pub(crate) fn between(before: &Value, after: &Value) -> Vec<Line> {
    shorten(&pair(compare(&yaml(before), &yaml(after))))
}

/// Longest common subsequence, by the table: objects of at most a few thousand lines.
fn compare(before: &[String], after: &[String]) -> Vec<Line> {
    // lengths[i][j]: of what is common to before[i..] and after[j..].
    let mut lengths = vec![vec![0_u32; after.len() + 1]; before.len() + 1];
    let at = |lengths: &[Vec<u32>], i: usize, j: usize| -> u32 {
        lengths.get(i).and_then(|row| row.get(j)).copied().unwrap_or(0)
    };
    for (i, old) in before.iter().enumerate().rev() {
        for (j, new) in after.iter().enumerate().rev() {
            let best = if old == new {
                at(&lengths, i + 1, j + 1) + 1
            } else {
                at(&lengths, i + 1, j).max(at(&lengths, i, j + 1))
            };
            if let Some(cell) = lengths.get_mut(i).and_then(|row| row.get_mut(j)) {
                *cell = best;
            }
        }
    }
    let (mut i, mut j) = (0, 0);
    let mut lines = Vec::new();
    loop {
        match (before.get(i), after.get(j)) {
            (None, None) => return lines,
            (Some(old), Some(new)) if old == new => {
                lines.push(Line::Same(old.clone()));
                i += 1;
                j += 1;
            }
            (Some(old), new) if new.is_none() || at(&lengths, i + 1, j) >= at(&lengths, i, j + 1) => {
                lines.push(Line::Removed(old.clone()));
                i += 1;
            }
            (_, Some(new)) => {
                lines.push(Line::Added(new.clone()));
                j += 1;
            }
            (Some(_), None) => return lines,
        }
    }
}

/// Within each run of changes, moves a removed line down to the added one of the same key, so that an old value stands
/// directly above the new one, and not above what came before it.
fn pair(lines: Vec<Line>) -> Vec<Line> {
    let mut paired = Vec::with_capacity(lines.len());
    let (mut removed, mut added) = (VecDeque::new(), Vec::new());
    for line in lines.into_iter().chain([Line::Left(0)]) {
        match line {
            Line::Removed(_) => removed.push_back(line),
            Line::Added(_) => added.push(line),
            Line::Same(_) | Line::Left(_) => {
                let has_partner = |one: &Line| added.iter().any(|other| key(one) == key(other));
                if !removed.iter().any(has_partner) {
                    paired.extend(removed.drain(..));
                }
                for new in added.drain(..) {
                    if let Some(place) = removed.iter().position(|old| key(old) == key(&new)) {
                        paired.extend(removed.drain(..=place));
                    }
                    paired.push(new);
                }
                paired.extend(removed.drain(..));
                paired.push(line);
            }
        }
    }
    paired.pop();
    paired
}

/// What stands before the colon, with its indentation.
fn key(line: &Line) -> &str {
    line.text().split(": ").next().unwrap_or_default()
}

fn shorten(lines: &[Line]) -> Vec<Line> {
    let mut kept = vec![false; lines.len()];
    let mut keep = |index: usize| {
        if let Some(kept) = kept.get_mut(index) {
            *kept = true;
        }
    };
    for (index, line) in lines.iter().enumerate().filter(|(_, line)| line.is_change()) {
        keep(index);
        for beside in [index.wrapping_sub(1), index + 1] {
            // What is deeper belongs to something else.
            if lines.get(beside).is_some_and(|other| depth(other.text()) <= depth(line.text())) {
                keep(beside);
            }
        }
        // Upwards through the parents: each is indented less than what stands in it.
        let mut indent = depth(line.text());
        for (above, line) in lines.iter().enumerate().take(index).rev() {
            if depth(line.text()) < indent {
                indent = depth(line.text());
                keep(above);
            }
        }
    }
    let mut short = Vec::new();
    for (line, kept) in lines.iter().zip(kept) {
        match (kept, short.last_mut()) {
            (true, _) => short.push(line.clone()),
            (false, Some(Line::Left(count))) => *count += 1,
            (false, _) => short.push(Line::Left(1)),
        }
    }
    short
}

fn depth(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

/// A value as lines of YAML in kubectl's manner: keys sorted, lists not indented below their key.
fn yaml(value: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    write(value, 0, &mut lines);
    lines
}

fn write(value: &Value, indent: usize, lines: &mut Vec<String>) {
    let pad = " ".repeat(indent);
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (key, value) in fields {
                let key = scalar(&Value::String(key.clone()));
                match value {
                    Value::Object(inner) if !inner.is_empty() => {
                        lines.push(format!("{pad}{key}:"));
                        write(value, indent + 2, lines);
                    }
                    Value::Array(inner) if !inner.is_empty() => {
                        lines.push(format!("{pad}{key}:"));
                        write(value, indent, lines);
                    }
                    _ => lines.push(format!("{pad}{key}: {}", scalar(value))),
                }
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for item in items {
                let first = lines.len();
                write(item, indent + 2, lines);
                // The dash stands in the indentation of the item's first line.
                if let Some(line) = lines.get_mut(first) {
                    *line = format!("{pad}- {}", line.trim_start());
                }
            }
        }
        _ => lines.push(format!("{pad}{}", scalar(value))),
    }
}

/// A string as it is where YAML 1.1 and 1.2 read it back as that string for sure, else in JSON's quotes.
fn scalar(value: &Value) -> String {
    let Value::String(text) = value else { return value.to_string() };
    let words = ["true", "false", "yes", "no", "on", "off", "null", "y", "n", "~"];
    let inner =
        |c: char| c.is_ascii_alphanumeric() || "-_./ ".contains(c) || c == ':' && !text.contains(": ");
    let plain = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/')
        && text.chars().all(inner)
        && !text.ends_with([' ', ':'])
        && !words.iter().any(|word| text.eq_ignore_ascii_case(word));
    // Four numbers with dots between are no number in any YAML.
    let address = text.parse::<std::net::Ipv4Addr>().is_ok();
    if plain || address { text.clone() } else { value.to_string() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn shown(before: &Value, after: &Value) -> String {
        let line = |line: &Line| match line {
            Line::Same(text) => format!("  {text}\n"),
            Line::Removed(text) => format!("- {text}\n"),
            Line::Added(text) => format!("+ {text}\n"),
            Line::Left(count) => format!("  ... {count}\n"),
        };
        between(before, after).iter().map(line).collect()
    }

    #[test]
    fn shows_changes_below_what_they_stand_in() {
        let before = json!({"metadata": {"labels": {"a": "1", "b": "2"}, "name": "x"},
            "spec": {"containers": [{"image": "i", "name": "c"}], "dnsPolicy": "ClusterFirst", "z": 1}});
        let mut after = before.clone();
        after["metadata"]["annotations"] = json!({"k": "v"});
        after["spec"]["dnsPolicy"] = json!("None");
        after["spec"]["dnsConfig"] = json!({"nameservers": ["169.254.20.10"]});
        let expected = [
            "  metadata:",
            "+   annotations:",
            "+     k: v",
            "    labels:",
            "  ... 3",
            "  spec:",
            "  ... 3",
            "+   dnsConfig:",
            "+     nameservers:",
            "+     - 169.254.20.10",
            "-   dnsPolicy: ClusterFirst",
            "+   dnsPolicy: None",
            "    z: 1",
        ];
        let found = shown(&before, &after);
        assert_eq!(found.lines().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn shows_nothing_where_nothing_changed() {
        let value = json!({"a": [1, {"b": null}]});
        assert!(between(&value, &value).iter().all(|line| matches!(line, Line::Left(_))));
    }

    #[test]
    fn writes_yaml_that_reads_back_as_the_same_value() {
        let value = json!({
            "strings": ["plain text", "yes", "No", "1.5", "0x1f", "", "a: b", "a:b", "#x", "- x", " x", "x ", "é\u{1b}\n",
                "10.96.0.10", "1:30", "http://x/y", "null", "~", "{a}", "*a", "@", "2024-01-01", "a #b", "x:"],
            "numbers": [0, -1, 2.5, 1e30],
            "nested": [[], {}, [[1, 2], {"k": [{"a": 1, "b": {"c": null}}]}], true],
            "true": {"a/b.c": false, "5": 5},
        });
        let text = yaml(&value).join("\n");
        let back: Value = serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{text}\n{error}"));
        assert_eq!(back, value, "{text}");
    }
}
