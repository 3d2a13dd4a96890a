//! Directives that are accepted so that a Corefile need not be changed, and say that they do nothing here: `debug`, `metadata`,
//! `pprof`, `trace`; and `timeouts`, which does something.

use std::time::Duration;

use super::{count, one, options, unknown_option};
use crate::config::Timeouts;
use crate::context::{Context, Problem};
use crate::parser::Directive;
use crate::report::{Diagnostic, shown};
use crate::values::{duration, http_addr, number_u32};

const LEAST: Duration = Duration::from_secs(1);
const MOST: Duration = Duration::from_secs(24 * 3600);

/// `debug`
pub(super) fn debug(context: &mut Context<'_>, directive: &Directive) {
    super::answering::word(context, directive);
    notice(context, directive, "what is said is chosen when the daemon starts: set NODESTUB_LOG=debug");
}

/// `metadata [ZONE...]`
pub(super) fn metadata(context: &mut Context<'_>, directive: &Directive) {
    super::no_options(context, directive);
    super::zone_list(context, &directive.arguments);
    notice(context, directive, "`log` has {/log/class} and {/log/type} without it, and no other labels");
}

fn is_a(text: &str, holds: bool, what: &str) -> Result<(), Problem> {
    let problem = || Problem::new(format!("{} is not {what}", shown(text)));
    if holds { Ok(()) } else { Err(problem().help("write what CoreDNS takes, or remove the directive")) }
}

/// `pprof [ADDRESS] { block [RATE] }`
pub(super) fn pprof(context: &mut Context<'_>, directive: &Directive) {
    count(context, &directive.name, &directive.arguments, (0, 1), "pprof [ADDRESS]");
    if let Some(token) = directive.arguments.first() {
        context.accept(token.span, http_addr(&token.text));
    }
    for option in options(context, directive, &[]) {
        if option.name.text != "block" {
            unknown_option(context, directive, option, &["block"], &[]);
        } else if count(context, &option.name, &option.arguments, (0, 1), "block [RATE]")
            && let Some(token) = option.arguments.first()
        {
            context
                .accept(token.span, is_a(&token.text, token.text.parse::<i64>().is_ok(), "a whole number"));
        }
    }
    notice(context, directive, "it profiles Go programs; this one is profiled with perf");
}

/// `trace [TYPE] [ENDPOINT] { ... }`
pub(super) fn trace(context: &mut Context<'_>, directive: &Directive) {
    /// As Go's `strconv.ParseBool`.
    const GO_BOOLS: [&str; 12] =
        ["1", "t", "T", "true", "TRUE", "True", "0", "f", "F", "false", "FALSE", "False"];
    const OPTIONS: [&str; 7] = [
        "every",
        "service",
        "client_server",
        "datadog_analytics_rate",
        "zipkin_max_backlog_size",
        "zipkin_max_batch_size",
        "zipkin_max_batch_interval",
    ];
    count(context, &directive.name, &directive.arguments, (0, 2), "trace [TYPE] [ENDPOINT]");
    if let [kind, _] = directive.arguments.as_slice() {
        let known = ["zipkin", "datadog"].contains(&kind.text.to_lowercase().as_str());
        context.accept(kind.span, is_a(&kind.text, known, "a type of tracing"));
    }
    for option in options(context, directive, &[]) {
        let name = option.name.text.as_str();
        if !OPTIONS.contains(&name) {
            unknown_option(context, directive, option, &OPTIONS, &[]);
            continue;
        }
        let least = usize::from(!matches!(name, "client_server" | "datadog_analytics_rate"));
        if !count(context, &option.name, &option.arguments, (least, 1), &format!("{name} VALUE")) {
            continue;
        }
        let Some(token) = option.arguments.first() else { continue };
        let text = token.text.as_str();
        let (holds, what) = match name {
            "every" => (text.parse::<u64>().is_ok(), "a number"),
            "client_server" => (GO_BOOLS.contains(&text), "true or false"),
            "datadog_analytics_rate" => {
                (text.parse().is_ok_and(|rate: f64| (0.0..=1.0).contains(&rate)), "a number from 0 to 1")
            }
            "zipkin_max_backlog_size" | "zipkin_max_batch_size" => {
                (text.parse::<i64>().is_ok(), "a whole number")
            }
            "zipkin_max_batch_interval" => (duration(text).is_ok(), "a duration"),
            _ => (true, ""),
        };
        context.accept(token.span, is_a(text, holds, what));
    }
    notice(context, directive, "no spans are sent; /metrics has the times that answers take");
}

fn notice(context: &mut Context<'_>, directive: &Directive, help: &str) {
    let message = format!("`{}` is accepted and does nothing here", directive.name.text);
    context.report(Diagnostic::warning(directive.name.span, message).help(help));
}

/// `timeouts { read DURATION; write DURATION; idle DURATION; maxtcpqueries NUMBER }`. Said twice, the later one changes what it
/// names.
pub(super) fn timeouts(context: &mut Context<'_>, directive: &Directive, earlier: Timeouts) -> Timeouts {
    const OPTIONS: [&str; 4] = ["read", "write", "idle", "maxtcpqueries"];
    let mut timeouts = earlier;
    count(context, &directive.name, &directive.arguments, (0, 0), "timeouts {");
    let entries = options(context, directive, &[]);
    if entries.is_empty() {
        let problem = Problem::new("`timeouts` names no time");
        context
            .problem(directive.name.span, problem.help("write `read`, `write`, `idle` or `maxtcpqueries`"));
    }
    for option in entries {
        let name = option.name.text.as_str();
        if !OPTIONS.contains(&name) {
            unknown_option(context, directive, option, &OPTIONS, &[]);
            continue;
        }
        let Some(token) = one(context, option, &format!("{name} VALUE")) else { continue };
        if name == "maxtcpqueries" {
            let most = number_u32(&token.text, 1).map(Some);
            let most = if token.text == "-1" { Ok(None) } else { most };
            timeouts.max_queries = context.accept(token.span, most).flatten();
            continue;
        }
        // CoreDNS takes a bare number for seconds here.
        let is_number = !token.text.is_empty() && token.text.bytes().all(|byte| byte.is_ascii_digit());
        let text = if is_number { format!("{}s", token.text) } else { token.text.clone() };
        let value = duration(&text).and_then(|value| {
            let problem =
                || Problem::new("a timeout must be from 1 s to 24 h").help("write one such as `10s`");
            if (LEAST..=MOST).contains(&value) { Ok(value) } else { Err(problem()) }
        });
        let Some(value) = context.accept(token.span, value) else { continue };
        match name {
            "read" => timeouts.read = Some(value),
            "write" => timeouts.write = Some(value),
            _ => timeouts.idle = Some(value),
        }
    }
    timeouts
}
