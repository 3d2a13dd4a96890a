//! Directives of a line: `loop`, `reload`.

use std::time::Duration;

use super::{count, no_options};
use crate::config::{Reload, ServerBlock};
use crate::context::{Context, Problem};
use crate::parser::Directive;
use crate::values::duration;

const RELOAD_INTERVAL: Duration = Duration::from_secs(30);
const MIN_RELOAD_INTERVAL: Duration = Duration::from_secs(2);
const RELOAD_JITTER: Duration = Duration::from_secs(15);
const MIN_RELOAD_JITTER: Duration = Duration::from_secs(1);

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
