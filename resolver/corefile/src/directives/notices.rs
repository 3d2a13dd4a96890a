//! Directives that are accepted so that a Corefile need not be changed, and say that they do nothing here: `debug`, `pprof`,
//! `trace`; and `timeouts`, which does something.

use std::time::Duration;

use super::{count, one, options, unknown_option};
use crate::config::Timeouts;
use crate::context::{Context, Problem};
use crate::parser::Directive;
use crate::report::Diagnostic;
use crate::values::{duration, number_u32};

const LEAST: Duration = Duration::from_secs(1);
const MOST: Duration = Duration::from_secs(24 * 3600);

/// `debug`
pub(super) fn debug(context: &mut Context<'_>, directive: &Directive) {
    super::answering::word(context, directive);
    notice(context, directive, "what is said is chosen when the daemon starts: set NODESTUB_LOG=debug");
}

/// `pprof [ADDRESS] { block [RATE] }`
pub(super) fn pprof(context: &mut Context<'_>, directive: &Directive) {
    count(context, &directive.name, &directive.arguments, (0, 1), "pprof [ADDRESS]");
    for option in options(context, directive, &[]) {
        if option.name.text != "block" {
            unknown_option(context, directive, option, &["block"], &[]);
        }
    }
    notice(context, directive, "it profiles Go programs; this one is profiled with perf");
}

/// `trace [TYPE] [ENDPOINT] { ... }`
pub(super) fn trace(context: &mut Context<'_>, directive: &Directive) {
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
    for option in options(context, directive, &[]) {
        if !OPTIONS.contains(&option.name.text.as_str()) {
            unknown_option(context, directive, option, &OPTIONS, &[]);
        }
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
