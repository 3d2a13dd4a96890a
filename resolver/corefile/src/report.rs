//! What was found wrong, and how it is shown.
//!
//! A [`Diagnostic`] names a place in a file as the user wrote it. A [`Report`] holds all that were found together
//! with the texts that they point into, and shows them the way rustc does.

use std::fmt;

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};

/// Most diagnostics that a report keeps; a file with more is not a Corefile.
pub const MAX_DIAGNOSTICS: usize = 100;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Severity {
    /// The configuration is not used.
    Error,
    /// The configuration is used as CoreDNS would use it, which is probably not what was meant.
    Warning,
}

/// A part of a file's text, in bytes; `start <= end`, both inside the text and between characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Span {
    /// Which of the report's files.
    pub source: usize,
    /// First byte.
    pub start: usize,
    /// Behind the last byte.
    pub end: usize,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    severity: Severity,
    message: String,
    place: Option<(Span, String)>,
    related: Vec<(Span, String)>,
    help: Option<String>,
}

/// Everything that is wrong with a Corefile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    sources: Vec<Source>,
    /// In the order of the text; at most [`MAX_DIAGNOSTICS`].
    diagnostics: Vec<Diagnostic>,
    /// How many more there were.
    left_out: usize,
}

/// A file that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Source {
    pub(crate) name: String,
    pub(crate) text: String,
}

impl Span {
    pub(crate) fn new(source: usize, start: usize, end: usize) -> Self {
        Self { source, start, end }
    }

    /// From the start of this one to the end of `other`, if that lies behind it in the same file.
    pub(crate) fn to(self, other: Self) -> Self {
        if other.source == self.source && other.end >= self.end {
            Self { end: other.end, ..self }
        } else {
            self
        }
    }
}

impl Diagnostic {
    pub(crate) fn error(span: Span, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Error,
            message: printable(message.into()),
            place: Some((span, String::new())),
            related: Vec::new(),
            help: None,
        }
    }

    pub(crate) fn warning(span: Span, message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(span, message) }
    }

    /// An error of the file as a whole.
    pub(crate) fn error_without_place(message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Error,
            message: printable(message.into()),
            place: None,
            related: Vec::new(),
            help: None,
        }
    }

    /// What stands beside the caret.
    pub(crate) fn label(mut self, text: impl Into<String>) -> Self {
        if let Some((_, label)) = &mut self.place {
            *label = printable(text.into());
        }
        self
    }

    /// A second place that belongs to it.
    pub(crate) fn also(mut self, span: Span, label: impl Into<String>) -> Self {
        self.related.push((span, printable(label.into())));
        self
    }

    /// What to do next.
    pub(crate) fn help(mut self, text: impl Into<String>) -> Self {
        self.help = Some(printable(text.into()));
        self
    }

    /// Error or warning.
    pub fn severity(&self) -> Severity {
        self.severity
    }

    /// One sentence.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Where; `None` for the file as a whole.
    pub fn span(&self) -> Option<Span> {
        self.place.as_ref().map(|(span, _)| *span)
    }

    /// Other places that belong to it.
    pub fn related(&self) -> impl Iterator<Item = Span> {
        self.related.iter().map(|(span, _)| *span)
    }

    /// What to do next.
    pub fn help_text(&self) -> Option<&str> {
        self.help.as_deref()
    }
}

impl Report {
    /// Sorts by place, and keeps one diagnostic for each place: what follows from the first says nothing new, and
    /// a snippet that is imported twice is wrong once.
    pub(crate) fn new(sources: Vec<Source>, diagnostics: Vec<Diagnostic>) -> Self {
        let mut kept: Vec<Diagnostic> = Vec::new();
        let mut places = std::collections::HashSet::new();
        let mut left_out = 0;
        for diagnostic in diagnostics {
            let is_new = diagnostic.span().is_none_or(|span| places.insert((span, diagnostic.severity)));
            if !is_new {
                continue;
            }
            if kept.len() < MAX_DIAGNOSTICS {
                kept.push(diagnostic);
            } else {
                left_out += 1;
            }
        }
        kept.sort_by_key(Diagnostic::span);
        Self { sources, diagnostics: kept, left_out }
    }

    /// All that is kept, in the order of the text.
    pub fn diagnostics(&self) -> &[Diagnostic] {
        &self.diagnostics
    }

    /// The text of a file that was read, by the number in a [`Span`].
    pub fn source(&self, source: usize) -> Option<&str> {
        self.sources.get(source).map(|source| source.text.as_str())
    }

    /// Whether there is nothing to say.
    pub fn is_empty(&self) -> bool {
        self.diagnostics.is_empty()
    }

    /// File name, line and column, both from 1 and the column in characters; `None` for the file as a whole.
    pub fn position(&self, diagnostic: &Diagnostic) -> Option<(&str, usize, usize)> {
        let span = diagnostic.span()?;
        let source = self.sources.get(span.source)?;
        let before = source.text.get(..span.start)?;
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        let column = before.get(line_start..)?.chars().count() + 1;
        Some((&source.name, before.matches('\n').count() + 1, column))
    }

    /// As [`Display`](fmt::Display) shows it, with colours for a terminal.
    pub fn coloured(&self) -> String {
        self.render(&Renderer::styled())
    }

    fn render(&self, renderer: &Renderer) -> String {
        let mut text = String::new();
        for diagnostic in &self.diagnostics {
            text.push_str(&renderer.render(&[self.group(diagnostic)]));
            text.push_str("\n\n");
        }
        if self.left_out > 0 {
            text.push_str(&format!("and {} more\n\n", self.left_out));
        }
        let count = |severity| self.diagnostics.iter().filter(|d| d.severity == severity).count();
        text.push_str(&summary(count(Severity::Error) + self.left_out, count(Severity::Warning)));
        text
    }

    fn group<'a>(&'a self, diagnostic: &'a Diagnostic) -> Group<'a> {
        let level = match diagnostic.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
        };
        let mut group = Group::with_title(level.primary_title(diagnostic.message.as_str()));
        let mut places = diagnostic.place.iter().chain(&diagnostic.related).peekable();
        let mut kind = AnnotationKind::Primary;
        // Places in a row that lie in one file share a snippet.
        while let Some((span, label)) = places.next() {
            let Some(source) = self.sources.get(span.source) else { continue };
            let annotate = |kind: AnnotationKind, span: Span, label: &'a str| {
                let annotation = kind.span(span.start..span.end);
                if label.is_empty() { annotation } else { annotation.label(label) }
            };
            let mut snippet = Snippet::source(source.text.as_str())
                .path(printable(source.name.clone()))
                .annotation(annotate(kind, *span, label));
            kind = AnnotationKind::Context;
            while let Some((next, label)) = places.next_if(|(next, _)| next.source == span.source) {
                snippet = snippet.annotation(annotate(kind, *next, label));
            }
            group = group.element(snippet);
        }
        if let Some(help) = &diagnostic.help {
            group = group.element(Level::HELP.message(help.as_str()));
        }
        group
    }
}

/// Plain text, without colours.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(&Renderer::plain()))
    }
}

impl std::error::Error for Report {}

fn summary(errors: usize, warnings: usize) -> String {
    let plural = |count: usize, noun: &str| match count {
        1 => format!("1 {noun}"),
        _ => format!("{count} {noun}s"),
    };
    match (errors, warnings) {
        (_, 0) => plural(errors, "error"),
        (0, _) => plural(warnings, "warning"),
        _ => format!("{}, {}", plural(errors, "error"), plural(warnings, "warning")),
    }
}

/// Without control characters: a file name or a value must not steer the terminal. What is quoted from a file is
/// cleaned by the renderer.
fn printable(text: String) -> String {
    if text.contains(char::is_control) {
        text.chars().flat_map(|c| if c.is_control() { c.escape_debug().collect() } else { vec![c] }).collect()
    } else {
        text
    }
}

/// A user's text for a message: in backticks, short, and without control characters.
pub(crate) fn shown(text: &str) -> String {
    const LONGEST_CHARACTERS: usize = 60;
    if text.is_empty() {
        return "an empty word".to_owned();
    }
    let mut short: String = text.chars().take(LONGEST_CHARACTERS).flat_map(char::escape_debug).collect();
    // Quotes need no escape between backticks.
    short = short.replace("\\\"", "\"").replace("\\'", "'");
    let dots = if text.chars().nth(LONGEST_CHARACTERS).is_some() { "…" } else { "" };
    format!("`{short}{dots}`")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(text: &str, diagnostics: Vec<Diagnostic>) -> Report {
        Report::new(vec![Source { name: "Corefile".into(), text: text.into() }], diagnostics)
    }

    #[test]
    fn shows_file_line_caret_label_and_help() {
        let shown = report(
            ". {\n  forwrd . 9.9.9.9\n}\n",
            vec![
                Diagnostic::error(Span::new(0, 6, 12), "unknown directive `forwrd`")
                    .label("no such directive")
                    .help("did you mean `forward`?"),
            ],
        )
        .to_string();
        assert_eq!(
            shown,
            "error: unknown directive `forwrd`\n \
             --> Corefile:2:3\n  \
             |\n\
             2 |   forwrd . 9.9.9.9\n  \
             |   ^^^^^^ no such directive\n  \
             |\n  \
             = help: did you mean `forward`?\n\n\
             1 error"
        );
    }

    #[test]
    fn keeps_one_error_for_each_place_in_the_order_of_the_text() {
        let at = |start| Diagnostic::error(Span::new(0, start, start + 1), format!("at {start}"));
        let report = report("abc", vec![at(2), at(0), at(2)]);
        let messages: Vec<_> = report.diagnostics().iter().map(Diagnostic::message).collect();
        assert_eq!(messages, ["at 0", "at 2"]);
    }

    #[test]
    fn counts_what_it_leaves_out() {
        let text = "x".repeat(MAX_DIAGNOSTICS + 5);
        let many = (0..text.len()).map(|at| Diagnostic::error(Span::new(0, at, at + 1), "bad")).collect();
        let report = report(&text, many);
        assert_eq!(report.diagnostics().len(), MAX_DIAGNOSTICS);
        assert!(report.to_string().ends_with("and 5 more\n\n105 errors"));
    }

    #[test]
    fn colours_only_when_asked() {
        let report = report("abc", vec![Diagnostic::error(Span::new(0, 0, 1), "bad")]);
        assert!(!report.to_string().contains('\u{1b}'));
        assert!(report.coloured().contains('\u{1b}'));
    }

    #[test]
    fn lets_no_text_steer_the_terminal() {
        let bad = "\u{1b}[2J";
        let diagnostic =
            Diagnostic::error(Span::new(0, 0, 1), bad).label(bad).also(Span::new(0, 1, 2), bad).help(bad);
        let source = Source { name: bad.into(), text: bad.into() };
        let shown = Report::new(vec![source], vec![diagnostic]).to_string();
        assert!(!shown.contains('\u{1b}'), "{shown:?}");
    }

    #[test]
    fn counts_lines_and_columns_from_one_in_characters() {
        let diagnostic = Diagnostic::error(Span::new(0, 6, 7), "bad");
        let report = report("ab\nüéx", vec![diagnostic.clone()]);
        assert_eq!(report.position(&diagnostic), None, "between bytes of a character");
        let diagnostic = Diagnostic::error(Span::new(0, 7, 8), "bad");
        assert_eq!(report.position(&diagnostic), Some(("Corefile", 2, 3)));
    }
}
