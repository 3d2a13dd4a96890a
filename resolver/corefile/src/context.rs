//! What every step of reading a Corefile shares: the options, the world, the texts read so far, what was found.

use std::collections::HashSet;

use crate::Options;
use crate::environment::Environment;
use crate::placeholders::Placeholder;
use crate::report::{Diagnostic, Report, Severity, Source, Span};

/// A value that is wrong: told by a function that knows the value and not its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    pub(crate) message: String,
    pub(crate) help: Option<String>,
}

impl Problem {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), help: None }
    }

    pub(crate) fn help(mut self, text: impl Into<String>) -> Self {
        self.help = Some(text.into());
        self
    }
}

pub(crate) struct Context<'a> {
    pub(crate) options: &'a Options,
    pub(crate) environment: &'a dyn Environment,
    pub(crate) sources: Vec<Source>,
    pub(crate) diagnostics: Vec<Diagnostic>,
    /// Placeholders whose value is missing, so that each is said once.
    pub(crate) missing_placeholders: HashSet<Placeholder>,
}

impl<'a> Context<'a> {
    pub(crate) fn new(options: &'a Options, environment: &'a dyn Environment) -> Self {
        Self {
            options,
            environment,
            sources: Vec::new(),
            diagnostics: Vec::new(),
            missing_placeholders: HashSet::new(),
        }
    }

    pub(crate) fn report(&mut self, diagnostic: Diagnostic) {
        self.diagnostics.push(diagnostic);
    }

    pub(crate) fn problem(&mut self, span: Span, problem: Problem) {
        let mut diagnostic = Diagnostic::error(span, problem.message);
        if let Some(help) = problem.help {
            diagnostic = diagnostic.help(help);
        }
        self.report(diagnostic);
    }

    /// The value, or `None` after its problem was reported at `span`.
    pub(crate) fn accept<T>(&mut self, span: Span, result: Result<T, Problem>) -> Option<T> {
        result.map_err(|problem| self.problem(span, problem)).ok()
    }

    pub(crate) fn has_errors(&self) -> bool {
        self.diagnostics.iter().any(|diagnostic| diagnostic.severity() == Severity::Error)
    }

    pub(crate) fn into_report(self) -> Report {
        Report::new(self.sources, self.diagnostics)
    }
}
