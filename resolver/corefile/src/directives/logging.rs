//! Directives that write lines: `log` and `errors`.

use nodestub_wire::Name;

use super::rewrite::pattern;
use super::{count, flag, options, unknown_option, zone_list};
use crate::config::logging::{Consolidate, ErrorLevel, Errors, LogClasses, LogField, LogFormat, LogRule};
use crate::context::{Context, Problem};
use crate::parser::{Directive, Entry};
use crate::report::{Diagnostic, shown};
use crate::values::duration;

/// `log [NAME...] [FORMAT] { class CLASS... }`; may stand several times.
pub(super) fn log(context: &mut Context<'_>, directive: &Directive) -> Vec<LogRule> {
    let mut names = directive.arguments.as_slice();
    let mut format = LogFormat::read(LogFormat::COMMON);
    // As in CoreDNS, a single argument is a name, and the last of several may be a format.
    if let [rest @ .., last] = names
        && last.text.contains('{')
    {
        names = rest;
        if rest.is_empty() {
            let problem = Problem::new(format!(
                "{} is read as a name: a format needs a name before it",
                shown(&last.text)
            ));
            context.problem(last.span, problem.help("write `log .`, then the format"));
        }
        format = LogFormat::read(&last.text);
        if format.has(LogField::Unset) {
            let warning = Diagnostic::warning(last.span, "this format has a label that nothing sets");
            context.report(
                warning
                    .label("a `-` stands in its place")
                    .help("of labels, {/log/class} and {/log/type} are set"),
            );
        }
    }
    let mut zones = zone_list(context, names);
    if names.is_empty() {
        zones = vec![Name::root()];
    }
    let mut classes: Option<LogClasses> = None;
    for option in options(context, directive, &["class"]) {
        if option.name.text == "class" {
            read_classes(context, option, &mut classes);
        } else {
            unknown_option(context, directive, option, &["class"], &[]);
        }
    }
    let classes = classes.unwrap_or(LogClasses::ALL);
    zones.into_iter().map(|name| LogRule { name, format: format.clone(), classes }).collect()
}

fn read_classes(context: &mut Context<'_>, option: &Entry, classes: &mut Option<LogClasses>) {
    const FORM: &str = "class all|success|denial|error...";
    if !count(context, &option.name, &option.arguments, (1, usize::MAX), FORM) {
        return;
    }
    let classes = classes.get_or_insert(LogClasses { success: false, denial: false, error: false });
    for token in &option.arguments {
        match token.text.as_str() {
            "all" => *classes = LogClasses::ALL,
            "success" => classes.success = true,
            "denial" => classes.denial = true,
            "error" => classes.error = true,
            other => {
                let problem = Problem::new(format!("unknown class {} of `log`", shown(other)));
                context.problem(token.span, problem.help(format!("write `{FORM}`")));
            }
        }
    }
}

/// `errors [stdout] { stacktrace; consolidate DURATION EXPRESSION [LEVEL] [show_first] }`.
pub(super) fn errors(context: &mut Context<'_>, directive: &Directive) -> Errors {
    let mut errors = Errors::default();
    count(context, &directive.name, &directive.arguments, (0, 1), "errors");
    if let Some(token) = directive.arguments.first().filter(|token| token.text != "stdout") {
        let problem = Problem::new(format!("errors cannot be written to {}", shown(&token.text)));
        context.problem(token.span, problem.help("write `errors`"));
    }
    for option in options(context, directive, &["consolidate"]) {
        match option.name.text.as_str() {
            // A panic always says where it was; the option changes nothing.
            "stacktrace" => {
                flag(context, option);
            }
            "consolidate" => errors.consolidate.extend(consolidate(context, option)),
            _ => unknown_option(context, directive, option, &["stacktrace", "consolidate"], &[]),
        }
    }
    errors
}

fn consolidate(context: &mut Context<'_>, option: &Entry) -> Option<Consolidate> {
    const FORM: &str = "consolidate DURATION EXPRESSION [warning|error|info|debug] [show_first]";
    if !count(context, &option.name, &option.arguments, (2, 4), FORM) {
        return None;
    }
    let [period, expression, words @ ..] = option.arguments.as_slice() else { return None };
    let (mut level, mut show_first) = (None, false);
    for word in words {
        let read = match word.text.as_str() {
            "warning" => ErrorLevel::Warning,
            "error" => ErrorLevel::Error,
            "info" => ErrorLevel::Info,
            "debug" => ErrorLevel::Debug,
            "show_first" => {
                show_first = true;
                continue;
            }
            other => {
                let problem = Problem::new(format!("unknown word {} of `consolidate`", shown(other)));
                context.problem(word.span, problem.help(format!("write `{FORM}`")));
                continue;
            }
        };
        if level.is_some() || show_first {
            let problem = Problem::new("one level may stand here, before `show_first`");
            context.problem(word.span, problem.help(format!("write `{FORM}`")));
        }
        level = Some(read);
    }
    let period = context.accept(period.span, duration(&period.text));
    let pattern = context.accept(expression.span, pattern(&expression.text));
    Some(Consolidate {
        period: period?,
        pattern: pattern?.0,
        level: level.unwrap_or(ErrorLevel::Error),
        show_first,
    })
}
