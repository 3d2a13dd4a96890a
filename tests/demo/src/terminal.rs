//! Colours and the few shapes of output that both programs use. Plain text when piped.

use std::fmt;
use std::io::IsTerminal;

/// Characters of a line, so that it fits a terminal of 80.
pub const WIDTH: usize = 78;

/// When to colour.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Colour {
    /// On a terminal, unless `NO_COLOR` is set (<https://no-color.org>) or it is a dumb one.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// Whether standard output is coloured, decided once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Palette {
    coloured: bool,
}

/// How a piece of text looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// Headings.
    Bold,
    /// What is good, and added lines.
    Green,
    /// What is wrong, and removed lines.
    Red,
    /// What needs a second look.
    Yellow,
    /// Names and addresses.
    Cyan,
    /// What can be read later.
    Dim,
}

impl Palette {
    /// For this process's standard output.
    pub fn for_stdout(colour: Colour) -> Self {
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let dumb = variable("TERM").is_some_and(|term| term == "dumb");
        Self::decide(colour, std::io::stdout().is_terminal() && !dumb, variable("NO_COLOR").is_some())
    }

    /// As [`Palette::for_stdout`], of facts alone.
    pub fn decide(colour: Colour, terminal: bool, no_color: bool) -> Self {
        let coloured = match colour {
            Colour::Always => true,
            Colour::Never => false,
            Colour::Auto => terminal && !no_color,
        };
        Self { coloured }
    }

    /// Whether there are colours.
    pub fn is_coloured(self) -> bool {
        self.coloured
    }

    /// Text in a style. Padding belongs inside the text, for escape codes count as width.
    pub fn paint(self, style: Style, text: impl fmt::Display) -> String {
        let code = match style {
            Style::Bold => "1",
            Style::Green => "32",
            Style::Red => "31",
            Style::Yellow => "33",
            Style::Cyan => "36",
            Style::Dim => "2",
        };
        if self.coloured { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_string() }
    }

    /// A section's heading, after an empty line.
    pub fn heading(self, title: &str) -> String {
        let line = "─".repeat(WIDTH.saturating_sub(title.chars().count() + 4));
        format!(
            "\n{} {} {}",
            self.paint(Style::Dim, "──"),
            self.paint(Style::Bold, title),
            self.paint(Style::Dim, line)
        )
    }

    /// The one line for something that stops the demo.
    pub fn fault(self, text: impl fmt::Display) -> String {
        format!("{} {text}", self.paint(Style::Red, "demo:"))
    }
}

/// Text from outside, safe for a terminal: control characters are escaped.
pub fn printable(text: &str) -> String {
    let plain = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    text.chars().map(plain).collect()
}

/// Text in lines of at most so many characters; a longer word stands alone.
pub fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// A span of time as people say it: `870 µs`, `12.3 ms`, `4.2 s`, `1 min 48 s`.
pub fn span(time: std::time::Duration) -> String {
    let micros = time.as_micros();
    let (whole_ms, whole_s) = (time.as_millis(), time.as_secs());
    match micros {
        0..1_000 => format!("{micros} µs"),
        1_000..100_000 => format!("{whole_ms}.{} ms", micros % 1_000 / 100),
        100_000..1_000_000 => format!("{whole_ms} ms"),
        1_000_000..60_000_000 => format!("{whole_s}.{} s", whole_ms % 1_000 / 100),
        _ => format!("{} min {} s", whole_s / 60, whole_s % 60),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn colours_only_where_it_is_wanted() {
        for (colour, terminal, no_color, expected) in [
            (Colour::Auto, true, false, true),
            (Colour::Auto, true, true, false),
            (Colour::Auto, false, false, false),
            (Colour::Always, false, true, true),
            (Colour::Never, true, false, false),
        ] {
            let palette = Palette::decide(colour, terminal, no_color);
            assert_eq!(palette.paint(Style::Red, "x") != "x", expected, "{colour:?} {terminal} {no_color}");
        }
    }

    #[test]
    fn says_spans_with_a_fitting_unit() {
        for (micros, text) in [
            (0, "0 µs"),
            (999, "999 µs"),
            (1_000, "1.0 ms"),
            (12_345, "12.3 ms"),
            (99_999, "99.9 ms"),
            (999_999, "999 ms"),
            (4_250_000, "4.2 s"),
            (59_990_000, "59.9 s"),
            (108_000_000, "1 min 48 s"),
        ] {
            assert_eq!(span(Duration::from_micros(micros)), text);
        }
    }

    #[test]
    fn wraps_between_words_only() {
        assert_eq!(wrap("a bb  ccc dddddd e", 4), ["a bb", "ccc", "dddddd", "e"]);
        assert!(wrap(" ", 4).is_empty());
    }

    #[test]
    fn lets_no_text_steer_the_terminal() {
        assert_eq!(printable("a\u{1b}[2Jé"), "a\\u{1b}[2Jé");
    }
}
