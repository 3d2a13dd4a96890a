//! `bind ADDRESS|DEVICE... { except ADDRESS|DEVICE... }`: where to listen.
//!
//! May stand several times; all targets count. `except` takes away from its own `bind`. Addresses are taken away
//! here; what a device has is known to the daemon alone, which gets the exceptions with the block.

use std::net::IpAddr;

use super::{Draft, count, options, unknown_option};
use crate::config::BindTarget;
use crate::context::{Context, Problem};
use crate::lexer::Token;
use crate::parser::Directive;
use crate::report::{Diagnostic, shown};

/// Longest name of a network device, in bytes (Linux: IFNAMSIZ without its zero).
const MAX_DEVICE_BYTES: usize = 15;

pub(super) fn read(context: &mut Context<'_>, directive: &Directive, draft: &mut Draft, is_repeated: bool) {
    let form = "bind ADDRESS... or bind DEVICE...";
    if !count(context, &directive.name, &directive.arguments, (1, usize::MAX), form) {
        return;
    }
    let targets = targets(context, &directive.arguments);
    let mut except = Vec::new();
    let mut except_span = None;
    for option in options(context, directive, &[]) {
        if option.name.text == "except" {
            let form = "except ADDRESS... or except DEVICE...";
            if count(context, &option.name, &option.arguments, (1, usize::MAX), form) {
                except =
                    self::targets(context, &option.arguments).into_iter().map(|(target, _)| target).collect();
                except_span = Some(option.name.span);
            }
        } else {
            unknown_option(context, directive, option, &["except"], &[]);
        }
    }
    let all_taken_away = !targets.is_empty() && targets.iter().all(|(target, _)| except.contains(target));
    let mut has_device = false;
    for (target, token) in targets {
        has_device |= matches!(target, BindTarget::Device(_));
        if !except.contains(&target) {
            draft.block.bind.push(target);
            draft.bind_spans.push(token.span);
        }
    }
    // An exception that only the daemon can resolve holds for the whole block, so there must be one `bind`.
    let needs_daemon = has_device || except.iter().any(|target| matches!(target, BindTarget::Device(_)));
    if let Some(span) = except_span.filter(|_| needs_daemon) {
        draft.bind_except = Some(span);
        draft.block.bind_except = except;
    }
    if let Some(span) = draft.bind_except.filter(|_| is_repeated) {
        context.report(
            Diagnostic::error(
                span,
                "`except` with devices is not supported by this version where a block has several `bind`",
            )
            .help("put all addresses and devices into one `bind`"),
        );
    } else if all_taken_away {
        context.report(
            Diagnostic::error(directive.name.span, "this `bind` leaves nothing to listen on")
                .help("take an address or a device out of `except`"),
        );
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
