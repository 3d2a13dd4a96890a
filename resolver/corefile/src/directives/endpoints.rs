//! Directives that open an HTTP endpoint: `health`, `ready`, `prometheus`.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use super::{count, flag, one, options, unknown_option};
use crate::config::{Health, HttpAddr, Prometheus, Ready, ServerBlock};
use crate::context::{Context, Problem};
use crate::parser::Directive;
use crate::report::{Diagnostic, shown};
use crate::values::{duration, http_addr};

const HEALTH_PORT: u16 = 8080;
const READY_PORT: u16 = 8181;
const PROMETHEUS_PORT: u16 = 9153;

/// `health [ADDR] { lameduck DURATION }`. Said twice, the later one changes what it names.
pub(super) fn health(context: &mut Context<'_>, directive: &Directive, block: &mut ServerBlock) {
    let default = Health { addr: HttpAddr { host: None, port: HEALTH_PORT }, lameduck: Duration::ZERO };
    let mut health = block.health.take().unwrap_or(default);
    if let Some(addr) = address(context, directive, "health [[HOST]:PORT]") {
        health.addr = addr;
    }
    for option in options(context, directive, &[]) {
        if option.name.text == "lameduck" {
            if let Some(token) = one(context, option, "lameduck DURATION")
                && let Some(lameduck) = context.accept(token.span, duration(&token.text))
            {
                health.lameduck = lameduck;
            }
        } else {
            unknown_option(context, directive, option, &["lameduck"], &[]);
        }
    }
    block.health = Some(health);
}

/// `ready [ADDR] { monitor until-ready|continuously }`.
pub(super) fn ready(context: &mut Context<'_>, directive: &Directive, block: &mut ServerBlock) {
    let addr = address(context, directive, "ready [[HOST]:PORT]");
    let mut until_ready = false;
    for option in options(context, directive, &[]) {
        if option.name.text != "monitor" {
            unknown_option(context, directive, option, &["monitor"], &[]);
            continue;
        }
        let form = "monitor until-ready|continuously";
        let Some(token) = one(context, option, form) else { continue };
        match token.text.as_str() {
            "until-ready" => until_ready = true,
            "continuously" => until_ready = false,
            other => {
                let problem = Problem::new(format!("unknown way to monitor: {}", shown(other)));
                context.problem(token.span, problem.help(format!("write `{form}`")));
            }
        }
    }
    let addr = addr.unwrap_or(HttpAddr { host: None, port: READY_PORT });
    block.ready = Some(Ready { addr, until_ready });
}

/// `prometheus [ADDR] { runtime_metrics; tls FILE }`.
pub(super) fn prometheus(context: &mut Context<'_>, directive: &Directive, block: &mut ServerBlock) {
    let addr = address(context, directive, "prometheus [[HOST]:PORT]");
    let default = HttpAddr { host: Some(IpAddr::V4(Ipv4Addr::LOCALHOST)), port: PROMETHEUS_PORT };
    let mut prometheus = Prometheus { addr: addr.unwrap_or(default), tls: None };
    for option in options(context, directive, &["tls"]) {
        if option.name.text == "runtime_metrics" {
            flag(context, option);
            let message = "`runtime_metrics` is accepted and does nothing here";
            let warning = Diagnostic::warning(option.name.span, message);
            context.report(warning.help("these are metrics of Go's runtime, which is not here"));
        } else if option.name.text == "tls" {
            let Some(file) = one(context, option, "tls FILE") else { continue };
            if prometheus.tls.is_some() {
                let problem = Problem::new("`tls` may stand only once");
                context.problem(option.name.span, problem.help("remove one of them"));
            }
            prometheus.tls = Some(PathBuf::from(&file.text));
        } else {
            unknown_option(context, directive, option, &["runtime_metrics", "tls"], &[]);
        }
    }
    block.prometheus = Some(prometheus);
}

fn address(context: &mut Context<'_>, directive: &Directive, form: &str) -> Option<HttpAddr> {
    if !count(context, &directive.name, &directive.arguments, (0, 1), form) {
        return None;
    }
    let token = directive.arguments.first()?;
    context.accept(token.span, http_addr(&token.text))
}
