//! Directives of a line: `errors`, `log`, `loop`, `reload`.

use std::time::Duration;

use nodestub_wire::Name;

use super::{LEAVE_OUT, count, no_options, options, unknown_option, zone_list};
use crate::config::{Log, Reload, ServerBlock};
use crate::context::{Context, Problem};
use crate::parser::Directive;
use crate::report::shown;
use crate::values::duration;

const RELOAD_INTERVAL: Duration = Duration::from_secs(30);
const MIN_RELOAD_INTERVAL: Duration = Duration::from_secs(2);
const RELOAD_JITTER: Duration = Duration::from_secs(15);
const MIN_RELOAD_JITTER: Duration = Duration::from_secs(1);

/// `errors [stdout]`; `stacktrace` and `consolidate` are not supported.
pub(super) fn errors(context: &mut Context<'_>, directive: &Directive, block: &mut ServerBlock) {
    block.errors = true;
    count(context, &directive.name, &directive.arguments, (0, 1), "errors");
    if let Some(token) = directive.arguments.first().filter(|token| token.text != "stdout") {
        let problem = Problem::new(format!("errors cannot be written to {}", shown(&token.text)));
        context.problem(token.span, problem.help("write `errors`"));
    }
    for option in options(context, directive, &["consolidate"]) {
        unknown_option(context, directive, option, &[], &["stacktrace", "consolidate"]);
    }
}

/// `log [NAME...] [FORMAT] { class all }`; formats but `{common}` and classes but `all` are not supported.
pub(super) fn log(context: &mut Context<'_>, directive: &Directive, block: &mut ServerBlock) {
    let mut names = directive.arguments.as_slice();
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
        } else if last.text != "{common}" {
            let problem =
                Problem::new("formats of `log` other than {common} are not supported by this version");
            context.problem(last.span, problem.help("leave the format out"));
        }
    }
    let mut names = zone_list(context, names);
    if names.is_empty() {
        names = vec![Name::root()];
    }
    let log = block.log.get_or_insert_with(|| Log { names: Vec::new() });
    for name in names {
        if !log.names.contains(&name) {
            log.names.push(name);
        }
    }
    for option in options(context, directive, &["class"]) {
        if option.name.text != "class" {
            unknown_option(context, directive, option, &["class"], &[]);
            continue;
        }
        count(context, &option.name, &option.arguments, (1, usize::MAX), "class all");
        if option.arguments.iter().any(|token| token.text == "all") {
            continue;
        }
        for token in &option.arguments {
            let problem = match token.text.as_str() {
                "success" | "denial" | "error" => {
                    Problem::new(format!("class `{}` of `log` is not supported by this version", token.text))
                        .help(LEAVE_OUT)
                }
                other => {
                    Problem::new(format!("unknown class {} of `log`", shown(other))).help("write `class all`")
                }
            };
            context.problem(token.span, problem);
        }
    }
}

/// `loop`.
pub(super) fn detect_loop(context: &mut Context<'_>, directive: &Directive, block: &mut ServerBlock) {
    block.detect_loop = true;
    count(context, &directive.name, &directive.arguments, (0, 0), "loop");
    no_options(context, directive);
}

/// `reload [INTERVAL [JITTER]]`.
pub(super) fn reload(context: &mut Context<'_>, directive: &Directive, block: &mut ServerBlock) {
    no_options(context, directive);
    if !count(context, &directive.name, &directive.arguments, (0, 2), "reload [INTERVAL [JITTER]]") {
        return;
    }
    let mut arguments = directive.arguments.iter();
    let mut read = |default: Duration, least: Duration, may_be_off: bool, what: &str| {
        let Some(token) = arguments.next() else { return Some(default) };
        let value = duration(&token.text).and_then(|value| {
            if value >= least || (may_be_off && value.is_zero()) {
                return Ok(value);
            }
            let or_off = if may_be_off { "0, or " } else { "" };
            Err(Problem::new(format!(
                "the {what} of `reload` must be {or_off}at least {} s",
                least.as_secs()
            ))
            .help(format!("write `{}s`", least.as_secs())))
        });
        context.accept(token.span, value)
    };
    let interval = read(RELOAD_INTERVAL, MIN_RELOAD_INTERVAL, false, "interval");
    let jitter = read(RELOAD_JITTER, MIN_RELOAD_JITTER, true, "jitter");
    if let (Some(interval), Some(jitter)) = (interval, jitter) {
        block.reload = Some(Reload { interval, jitter: jitter.min(interval / 2) });
    }
}
