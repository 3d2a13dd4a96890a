//! Parsed blocks to configuration: zones, directives, and what holds between blocks.

use std::collections::HashMap;

use nodestub_wire::Name;

use crate::config::{BindTarget, Config, ServerBlock, Timeouts, ZoneKey};
use crate::context::Context;
use crate::directives::{self, Draft};
use crate::lexer::Token;
use crate::names::zones;
use crate::parser::Block;
use crate::report::{Diagnostic, Span, shown};

/// Checks and builds everything; what is wrong is in the context.
pub(crate) fn build(context: &mut Context<'_>, blocks: &[Block]) -> Config {
    let mut config = Config { blocks: Vec::with_capacity(blocks.len()) };
    let mut served = Served::default();
    for block in blocks {
        let mut keys = Vec::new();
        for token in &block.keys {
            keys.extend(zone_keys(context, token).into_iter().map(|key| (key, token.span)));
        }
        let mut draft = Draft::new(ServerBlock {
            zones: keys.iter().map(|(key, _)| key.clone()).collect(),
            bind: Vec::new(),
            errors: None,
            autopath: None,
            log: Vec::new(),
            cache: None,
            hosts: None,
            rewrite: Vec::new(),
            acl: Vec::new(),
            template: Vec::new(),
            load_balance: None,
            dns64: None,
            local: None,
            chaos: None,
            nsid: None,
            bufsize: None,
            any: false,
            minimal: false,
            whoami: false,
            detect_loop: false,
            forward: Vec::new(),
            health: None,
            ready: None,
            prometheus: None,
            reload: None,
            timeouts: Timeouts::default(),
        });
        for directive in &block.directives {
            directives::read(context, directive, &mut draft);
        }
        for (key, span) in keys.iter().filter(|_| !draft.bind_is_broken()) {
            served.add(context, key, *span, &draft);
        }
        config.blocks.push(draft.block);
    }
    if config.blocks.is_empty() && !context.has_errors() {
        let diagnostic = match context.sources.first() {
            Some(source) => Diagnostic::error_without_place(format!("no server block in {}", source.name)),
            None => Diagnostic::error_without_place("no server block"),
        };
        context.report(
            diagnostic.help("write at least `. {`, `forward . ADDRESS` and `}`, each on a line of its own"),
        );
    }
    config
}

fn zone_keys(context: &mut Context<'_>, token: &Token) -> Vec<ZoneKey> {
    let Some(zones) = context.accept(token.span, zones(&token.text)) else { return Vec::new() };
    if let [zone] = zones.names.as_slice()
        && zone.to_string().trim_end_matches('.').parse::<std::net::Ipv4Addr>().is_ok()
    {
        context.report(
            Diagnostic::warning(token.span, format!("{} is read as the name of a zone", shown(&token.text)))
                .help("to listen on an address, write `bind ADDRESS` in the block"),
        );
    }
    let port = zones.port.unwrap_or(context.options.default_port);
    zones.names.into_iter().map(|zone| ZoneKey { zone, port }).collect()
}

/// Who serves what: no zone and port twice where the same address listens (CoreDNS's `zoneOverlap`).
///
/// What devices have is not known here: two devices are taken for different, and a device for different from
/// addresses. The daemon finds those out when it binds.
#[derive(Default)]
struct Served(HashMap<(Name, u16), Vec<Listening>>);

/// Where a zone is served, `None` being everywhere, and the key that says so.
type Listening = (Option<BindTarget>, Span);

impl Served {
    fn add(&mut self, context: &mut Context<'_>, key: &ZoneKey, span: Span, draft: &Draft) {
        let earlier = self.0.entry((key.zone.clone(), key.port)).or_default();
        let everywhere = [None];
        let bound: Vec<Option<BindTarget>> =
            draft.block.bind.iter().map(|bind| Some(bind.target.clone())).collect();
        let targets = if bound.is_empty() { everywhere.as_slice() } else { bound.as_slice() };
        for (index, target) in targets.iter().enumerate() {
            let found =
                earlier.iter().find(|(other, _)| other == target || other.is_none() || target.is_none());
            if let Some((other, other_span)) = found {
                let twice = format!("{} on port {} is served twice", shown(&key.zone.to_string()), key.port);
                let diagnostic = if *other_span == span && target.is_some() {
                    // The same block: a target of `bind` stands twice.
                    let place = draft.bind_spans.get(index).copied().unwrap_or(span);
                    Diagnostic::error(place, format!("{twice}: this stands in `bind` already"))
                        .help("remove it")
                } else {
                    let why = if other == target {
                        "first here"
                    } else {
                        "first here; without `bind`, one block takes all addresses"
                    };
                    Diagnostic::error(span, twice).label("again here").also(*other_span, why).help(
                        "remove one, give it another port, or `bind` both blocks to different addresses",
                    )
                };
                context.report(diagnostic);
                return;
            }
            earlier.push((target.clone(), span));
        }
    }
}
