//! Parsed blocks to configuration: zones, directives, and what holds between blocks.

use std::collections::HashMap;

use nodestub_wire::Name;

use crate::config::tls::ServerTls;
use crate::config::{BindTarget, Config, Scheme, ServerBlock, Timeouts, ZoneKey};
use crate::context::Context;
use crate::directives::{self, Draft};
use crate::lexer::Token;
use crate::names::zones;
use crate::parser::Block;
use crate::report::{Diagnostic, Span, shown};

/// Where `tls://` zones are served (RFC 7858, 3.1).
const TLS_PORT: u16 = 853;

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
            tls: None,
        });
        for directive in &block.directives {
            directives::read(context, directive, &mut draft);
        }
        check_tls(context, &keys, &mut draft);
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
    let scheme = zones.scheme.unwrap_or(Scheme::Dns);
    let port = zones.port.unwrap_or(match scheme {
        Scheme::Dns => context.options.default_port,
        Scheme::Tls => TLS_PORT,
    });
    zones.names.into_iter().map(|zone| ZoneKey { scheme, zone, port }).collect()
}

/// `tls://` zones need `tls`; where there is none, `tls` has no effect, as in CoreDNS, and its files are not read.
/// (CoreDNS takes a `tls://` zone without `tls`, and serves it in the clear.)
fn check_tls(context: &mut Context<'_>, keys: &[(ZoneKey, Span)], draft: &mut Draft) {
    let by_tls = keys.iter().find(|(key, _)| key.scheme == Scheme::Tls);
    match (by_tls, draft.place_of("tls")) {
        (Some((_, span)), None) => context.report(
            Diagnostic::error(*span, "this zone is served over TLS, and the block names no certificate")
                .help("write `tls CERT KEY` into the block"),
        ),
        (None, Some(span)) if !keys.is_empty() => {
            context.report(
                Diagnostic::warning(span, "`tls` has no effect: no zone of this block is served over TLS")
                    .help("write the zone as `tls://ZONE`, or remove this"),
            );
            draft.block.tls = None;
        }
        _ => {}
    }
}

/// Who serves what: no zone and port twice where the same address listens (CoreDNS's `zoneOverlap`), and no port in two
/// manners.
///
/// What devices have is not known here: two devices are taken for different, and a device for different from
/// addresses. The daemon finds those out when it binds.
#[derive(Default)]
struct Served {
    zones: HashMap<(Scheme, Name, u16), Vec<Listening>>,
    /// How each port of a target is served, and the key that said so first.
    manners: HashMap<(Option<BindTarget>, u16), (Manner, Span)>,
}

/// How a port is served; `None`: in the clear.
type Manner = Option<ServerTls>;

/// Where a zone is served, `None` being everywhere, and the key that says so.
type Listening = (Option<BindTarget>, Span);

impl Served {
    fn add(&mut self, context: &mut Context<'_>, key: &ZoneKey, span: Span, draft: &Draft) {
        let earlier = self.zones.entry((key.scheme, key.zone.clone(), key.port)).or_default();
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
        let manner = match key.scheme {
            Scheme::Dns => None,
            // What is wrong with it has been said.
            Scheme::Tls if draft.block.tls.is_none() => return,
            Scheme::Tls => draft.block.tls.clone(),
        };
        for target in targets {
            let first =
                self.manners.entry((target.clone(), key.port)).or_insert_with(|| (manner.clone(), span));
            if first.0 == manner {
                continue;
            }
            let (what, help) = if first.0.is_some() && manner.is_some() {
                (
                    "with different `tls`",
                    "write the same `tls` into both blocks: there is one certificate for a port",
                )
            } else {
                ("both over TLS and in the clear", "give one of them another port")
            };
            let diagnostic = Diagnostic::error(span, format!("port {} is served {what}", key.port));
            context.report(diagnostic.label("otherwise here").also(first.1, "first here").help(help));
            return;
        }
    }
}
