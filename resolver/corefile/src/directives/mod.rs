//! Directives to configuration: which exist, which are supported, and what their options share.
//!
//! Syntax, defaults and bounds are those of each `plugin/*/setup.go` of CoreDNS 1.15.0. Where CoreDNS drops a word
//! in silence, it is an error here. The order of directives does not matter, as in CoreDNS.

mod answering;
mod autopath;
mod bind;
mod cache;
mod endpoints;
mod forward;
mod hosts;
mod logging;
mod notices;
mod rewrite;
mod small;
mod template;
mod tls;

use std::collections::HashMap;

use nodestub_wire::Name;

use crate::config::{Scheme, ServerBlock};
use crate::context::Context;
use crate::lexer::Token;
use crate::names::zones;
use crate::parser::{Directive, Entry};
use crate::report::{Diagnostic, Span, shown};
use crate::suggest::nearest;

/// The directives that are supported.
pub(crate) const SUPPORTED: [&str; 30] = [
    "acl",
    "any",
    "autopath",
    "bind",
    "bufsize",
    "cache",
    "chaos",
    "debug",
    "dns64",
    "errors",
    "forward",
    "health",
    "hosts",
    "loadbalance",
    "local",
    "log",
    "loop",
    "metadata",
    "minimal",
    "nsid",
    "pprof",
    "prometheus",
    "ready",
    "reload",
    "rewrite",
    "template",
    "timeouts",
    "tls",
    "trace",
    "whoami",
];

/// The other directives of CoreDNS 1.15.0 (`core/dnsserver/zdirectives.go`), with what to do where there is more to
/// say than to remove the line.
const UNSUPPORTED: [(&str, &str); 32] = [
    ("root", "write absolute paths instead"),
    ("geoip", ""),
    ("cancel", ""),
    ("proxyproto", ""),
    ("quic", ""),
    ("grpc_server", ""),
    ("https", ""),
    ("https3", ""),
    ("multisocket", "remove it: every CPU has a socket of its own already"),
    ("shed", ""),
    ("dnstap", ""),
    ("siit", ""),
    ("tsig", ""),
    ("header", ""),
    ("dnssec", ""),
    ("transfer", ""),
    ("dynupdate", ""),
    ("route53", ""),
    ("azure", ""),
    ("clouddns", ""),
    ("k8s_external", ""),
    ("kubernetes", "send its zone to the cluster DNS with `forward . ADDRESS`"),
    ("file", ""),
    ("auto", ""),
    ("secondary", ""),
    ("etcd", ""),
    ("grpc", ""),
    ("erratic", ""),
    ("on", ""),
    ("sign", ""),
    ("view", ""),
    ("nomad", ""),
];

/// What to do about an unsupported directive or option.
const LEAVE_OUT: &str = "remove it, or leave what needs it to CoreDNS and forward there";

/// Whether a directive's options are read.
pub(crate) fn is_supported(name: &str) -> bool {
    SUPPORTED.contains(&name)
}

/// A server block while its directives are read.
pub(crate) struct Draft {
    pub(crate) block: ServerBlock,
    /// Where each target of `bind` stands, in the same order.
    pub(crate) bind_spans: Vec<Span>,
    /// Where each directive stood first.
    first: HashMap<String, Span>,
}

impl Draft {
    pub(crate) fn new(block: ServerBlock) -> Self {
        Self { block, bind_spans: Vec::new(), first: HashMap::new() }
    }

    /// Where a directive stood first.
    pub(crate) fn place_of(&self, name: &str) -> Option<Span> {
        self.first.get(name).copied()
    }

    /// Whether where to listen is unknown: there is a `bind`, and all of it is wrong.
    pub(crate) fn bind_is_broken(&self) -> bool {
        self.block.bind.is_empty() && self.first.contains_key("bind")
    }
}

/// Reads one directive into the block.
pub(crate) fn read(context: &mut Context<'_>, directive: &Directive, draft: &mut Draft) {
    let name = directive.name.text.as_str();
    let earlier = draft.first.get(name).copied();
    draft.first.entry(name.to_owned()).or_insert(directive.name.span);
    if let Some(earlier) = earlier
        && !may_repeat(context, directive, earlier)
    {
        return;
    }
    match name {
        "bind" => bind::read(context, directive, draft),
        "cache" => draft.block.cache = cache::read(context, directive),
        "errors" => draft.block.errors = Some(logging::errors(context, directive)),
        "forward" => draft.block.forward.extend(forward::read(context, directive)),
        "health" => endpoints::health(context, directive, &mut draft.block),
        "hosts" => draft.block.hosts = hosts::read(context, directive),
        "log" => draft.block.log.extend(logging::log(context, directive)),
        "loop" => small::detect_loop(context, directive, &mut draft.block),
        "prometheus" => endpoints::prometheus(context, directive, &mut draft.block),
        "ready" => endpoints::ready(context, directive, &mut draft.block),
        "reload" => small::reload(context, directive, &mut draft.block),
        "acl" => {
            let zones = zones_of(draft);
            draft.block.acl.push(answering::acl(context, directive, &zones));
        }
        "autopath" => {
            let zones = zones_of(draft);
            draft.block.autopath = autopath::read(context, directive, &zones);
        }
        "template" => {
            let zones = zones_of(draft);
            draft.block.template.extend(template::read(context, directive, &zones));
        }
        "rewrite" => draft.block.rewrite.extend(rewrite::read(context, directive)),
        "loadbalance" => {
            let earlier = draft.block.load_balance.take();
            draft.block.load_balance = answering::load_balance(context, directive, earlier);
        }
        "dns64" => draft.block.dns64 = answering::dns64(context, directive, draft.block.dns64.take()),
        "local" => draft.block.local = answering::local(context, directive, draft.block.local.take()),
        "chaos" => draft.block.chaos = Some(answering::chaos(context, directive)),
        "nsid" => answering::nsid(context, directive, &mut draft.block),
        "bufsize" => draft.block.bufsize = answering::bufsize(context, directive),
        "any" => draft.block.any = answering::word(context, directive),
        "minimal" => draft.block.minimal = answering::word(context, directive),
        "whoami" => draft.block.whoami = answering::word(context, directive),
        "debug" => notices::debug(context, directive),
        "metadata" => notices::metadata(context, directive),
        "pprof" => notices::pprof(context, directive),
        "trace" => notices::trace(context, directive),
        "timeouts" => draft.block.timeouts = notices::timeouts(context, directive, draft.block.timeouts),
        "tls" => draft.block.tls = tls::read(context, directive),
        _ => unknown(context, &directive.name),
    }
}

/// The zones of the block: what a directive is for that names none.
fn zones_of(draft: &Draft) -> Vec<Name> {
    draft.block.zones.iter().map(|key| key.zone.clone()).collect()
}

/// Whether a directive that stood before is read again; CoreDNS is the measure.
fn may_repeat(context: &mut Context<'_>, directive: &Directive, earlier: Span) -> bool {
    let name = directive.name.text.as_str();
    let span = directive.name.span;
    match name {
        "acl" | "bind" | "debug" | "forward" | "log" | "rewrite" | "template" | "trace" => true,
        "autopath" | "dns64" | "health" | "loadbalance" | "local" | "timeouts" => {
            let twice = format!("`{name}` stands twice in this block; what the later one says counts");
            context.report(Diagnostic::warning(span, twice).also(earlier, "first here"));
            true
        }
        "any" | "bufsize" | "chaos" | "minimal" | "reload" | "whoami" => {
            let twice = format!("`{name}` stands twice in this block; only the first counts");
            context.report(Diagnostic::warning(span, twice).also(earlier, "this one counts"));
            false
        }
        _ if is_supported(name) => {
            context.report(
                Diagnostic::error(span, format!("`{name}` may stand only once in a server block"))
                    .label("again here")
                    .also(earlier, "first here")
                    .help("remove one of them"),
            );
            false
        }
        // Said for each: each has to be removed.
        _ => true,
    }
}

fn unknown(context: &mut Context<'_>, name: &Token) {
    let text = name.text.as_str();
    let diagnostic = if let Some((_, help)) = UNSUPPORTED.iter().find(|(known, _)| *known == text) {
        Diagnostic::error(name.span, format!("`{text}` is not supported by this version"))
            .label("CoreDNS has this directive")
            .help(if help.is_empty() { LEAVE_OUT } else { help })
    } else {
        let known = SUPPORTED.iter().chain(UNSUPPORTED.iter().map(|(name, _)| name)).copied();
        Diagnostic::error(name.span, format!("unknown directive {}", shown(text))).help(help_for(
            text,
            known,
            &SUPPORTED,
            "directives",
        ))
    };
    context.report(diagnostic);
}

fn help_for<'a>(text: &str, known: impl Iterator<Item = &'a str>, supported: &[&str], what: &str) -> String {
    if text.contains(['{', '}']) && text != "{" && text != "}" {
        return "put a space before and after each brace".to_owned();
    }
    match nearest(text, known) {
        Some(near) => format!("did you mean `{near}`?"),
        None if supported.is_empty() => format!("it has no {what}: remove it"),
        None => format!("these {what} are supported: {}", supported.join(", ")),
    }
}

/// An option that its directive does not read: one of CoreDNS's, or unknown.
fn unknown_option(
    context: &mut Context<'_>,
    directive: &Directive,
    option: &Entry,
    supported: &[&str],
    unsupported: &[&str],
) {
    let (text, directive) = (option.name.text.as_str(), directive.name.text.as_str());
    let diagnostic = if unsupported.contains(&text) {
        Diagnostic::error(
            option.name.span,
            format!("option `{text}` of `{directive}` is not supported by this version"),
        )
        .label("CoreDNS has this option")
        .help(LEAVE_OUT)
    } else {
        let known = supported.iter().chain(unsupported).copied();
        Diagnostic::error(option.name.span, format!("unknown option {} of `{directive}`", shown(text)))
            .help(help_for(text, known, supported, "options"))
    };
    context.report(diagnostic);
}

/// The options in a directive's braces, each with a warning where CoreDNS lets a later one replace it.
fn options<'a>(context: &mut Context<'_>, directive: &'a Directive, may_repeat: &[&str]) -> &'a [Entry] {
    let entries = directive.options.as_deref().unwrap_or_default();
    let mut first: HashMap<&str, Span> = HashMap::new();
    for entry in entries {
        let name = entry.name.text.as_str();
        if may_repeat.contains(&name) {
            continue;
        }
        if let Some(earlier) = first.insert(name, entry.name.span) {
            context.report(
                Diagnostic::warning(
                    entry.name.span,
                    format!("{} stands twice; the last one counts", shown(name)),
                )
                .also(earlier, "this one does not count"),
            );
        }
    }
    entries
}

/// The directive's options must not be there.
fn no_options(context: &mut Context<'_>, directive: &Directive) {
    for option in directive.options.as_deref().unwrap_or_default() {
        unknown_option(context, directive, option, &[], &[]);
    }
}

/// Whether there are `least` to `most` arguments; reports otherwise. `form` shows what to write.
fn count(
    context: &mut Context<'_>,
    name: &Token,
    arguments: &[Token],
    (least, most): (usize, usize),
    form: &str,
) -> bool {
    let shown_name = shown(&name.text);
    let diagnostic = match arguments.get(most) {
        Some(extra) => Diagnostic::error(extra.span, format!("too many arguments of {shown_name}")),
        None if arguments.len() < least => {
            let span = arguments.last().map_or(name.span, |last| name.span.to(last.span));
            Diagnostic::error(span, format!("too few arguments of {shown_name}"))
        }
        None => return true,
    };
    context.report(diagnostic.help(format!("write `{form}`")));
    false
}

/// The only argument of an option.
fn one<'a>(context: &mut Context<'_>, option: &'a Entry, form: &str) -> Option<&'a Token> {
    count(context, &option.name, &option.arguments, (1, 1), form).then(|| option.arguments.first()).flatten()
}

/// An option without arguments.
fn flag(context: &mut Context<'_>, option: &Entry) -> bool {
    count(context, &option.name, &option.arguments, (0, 0), &option.name.text)
}

/// Zones as arguments: names and networks. A port or a transport means nothing there; CoreDNS drops both, which is
/// warned of.
fn zone_list(context: &mut Context<'_>, tokens: &[Token]) -> Vec<Name> {
    let mut names = Vec::new();
    for token in tokens {
        let Some(zones) = context.accept(token.span, zones(&token.text)) else { continue };
        if zones.port.is_some() {
            context.report(Diagnostic::warning(token.span, "a port has no meaning here").help("remove it"));
        }
        if zones.scheme == Some(Scheme::Tls) {
            context.report(Diagnostic::warning(token.span, "`tls://` has no meaning here").help("remove it"));
        }
        for name in zones.names {
            if !names.contains(&name) {
                names.push(name);
            }
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_directive_is_both_supported_and_not() {
        for (name, _) in UNSUPPORTED {
            assert!(!is_supported(name), "{name}");
        }
    }
}
