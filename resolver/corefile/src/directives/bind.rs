//! `bind ADDRESS|DEVICE... { except ADDRESS|DEVICE... }`: where to listen.
//!
//! May stand several times; all targets count. `except` takes away from its own `bind`. Addresses are taken away
//! here; what a device has is known to the daemon alone, which gets the exceptions with the target.

use std::net::IpAddr;

use super::{Draft, count, options, unknown_option};
use crate::config::{Bind, BindTarget};
use crate::context::{Context, Problem};
use crate::lexer::Token;
use crate::parser::Directive;
use crate::report::{Diagnostic, shown};

/// Longest name of a network device, in bytes (Linux: IFNAMSIZ without its zero).
const MAX_DEVICE_BYTES: usize = 15;

pub(super) fn read(context: &mut Context<'_>, directive: &Directive, draft: &mut Draft) {
    let form = "bind ADDRESS... or bind DEVICE...";
    if !count(context, &directive.name, &directive.arguments, (1, usize::MAX), form) {
        return;
    }
    let targets = targets(context, &directive.arguments);
    let mut except = Vec::new();
    for option in options(context, directive, &[]) {
        if option.name.text == "except" {
            let form = "except ADDRESS... or except DEVICE...";
            if count(context, &option.name, &option.arguments, (1, usize::MAX), form) {
                let found = self::targets(context, &option.arguments);
                except = found.into_iter().map(|(target, _)| target).collect();
            }
        } else {
            unknown_option(context, directive, option, &["except"], &[]);
        }
    }
    if !targets.is_empty() && targets.iter().all(|(target, _)| except.contains(target)) {
        context.report(
            Diagnostic::error(directive.name.span, "this `bind` leaves nothing to listen on")
                .help("take an address or a device out of `except`"),
        );
    }
    let is_device = |target: &BindTarget| matches!(target, BindTarget::Device(_));
    let needs_daemon = except.iter().any(is_device);
    for (target, token) in targets {
        if except.contains(&target) {
            continue;
        }
        let except = if needs_daemon || is_device(&target) { except.clone() } else { Vec::new() };
        draft.block.bind.push(Bind { target, except });
        draft.bind_spans.push(token.span);
    }
}

fn targets<'a>(context: &mut Context<'_>, tokens: &'a [Token]) -> Vec<(BindTarget, &'a Token)> {
    tokens
        .iter()
        .filter_map(|token| Some((context.accept(token.span, target(&token.text))?, token)))
        .collect()
}

fn target(text: &str) -> Result<BindTarget, Problem> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(BindTarget::Addr(address));
    }
    let looks_like_address =
        text.contains([':', '%']) || text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let is_device_name = !text.is_empty()
        && text.len() <= MAX_DEVICE_BYTES
        && !text.contains('/')
        && text.bytes().all(|byte| byte.is_ascii_graphic());
    if is_device_name && !looks_like_address {
        return Ok(BindTarget::Device(text.to_owned()));
    }
    Err(Problem::new(format!("{} is neither an IP address nor the name of a network device", shown(text)))
        .help(
            "write an address without port or device, such as `169.254.20.10`; the port belongs to the zone",
        ))
}
