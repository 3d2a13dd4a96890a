//! `hosts [FILE [ZONE...]] { ADDRESS NAME...; ttl ...; no_reverse; reload ...; fallthrough ... }`.
//!
//! CoreDNS takes every line that is no option for an entry and drops it in silence when its first word is no
//! address; here that is an error, because it may be a mistyped option. Entries after `fallthrough` are an error in
//! both.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{count, flag, one, options, unknown_option, zone_list};
use crate::config::{Hosts, HostsEntry};
use crate::context::{Context, Problem};
use crate::lexer::Token;
use crate::names::name;
use crate::parser::{Directive, Entry};
use crate::report::{Diagnostic, shown};
use crate::values::{duration, number_u32};

const DEFAULT_FILE: &str = "/etc/hosts";
const TTL_SECONDS: u32 = 3600;
const MAX_TTL_SECONDS: u32 = 65_535;
const RELOAD: Duration = Duration::from_secs(5);

const SUPPORTED: [&str; 5] = ["ttl", "no_reverse", "reload", "fallthrough", "fallthrough_unsupported"];

pub(super) fn read(context: &mut Context<'_>, directive: &Directive) -> Option<Hosts> {
    let (file, zones) = match directive.arguments.split_first() {
        Some((file, zones)) => {
            check_file(context, file);
            (file.text.as_str(), zones)
        }
        None => (DEFAULT_FILE, [].as_slice()),
    };
    let mut hosts = Hosts {
        file: Some(PathBuf::from(file)),
        inline: Vec::new(),
        zones: zone_list(context, zones),
        ttl: TTL_SECONDS,
        no_reverse: false,
        reload: Some(RELOAD),
        fallthrough: None,
        passes_other_types: false,
    };
    // One address may have several lines.
    let entries = directive.options.as_deref().unwrap_or_default();
    let addresses: Vec<&str> = entries
        .iter()
        .map(|entry| entry.name.text.as_str())
        .filter(|text| !SUPPORTED.contains(text))
        .collect();
    for option in options(context, directive, &addresses) {
        match option.name.text.as_str() {
            "ttl" => {
                if let Some(token) = one(context, option, "ttl SECONDS")
                    && let Some(ttl) = context.accept(token.span, ttl(&token.text))
                {
                    hosts.ttl = ttl;
                }
            }
            "no_reverse" => hosts.no_reverse |= flag(context, option),
            "reload" => {
                if let Some(token) = one(context, option, "reload DURATION")
                    && let Some(interval) = context.accept(token.span, duration(&token.text))
                {
                    hosts.reload = (interval > Duration::ZERO).then_some(interval);
                }
            }
            "fallthrough_unsupported" => hosts.passes_other_types |= flag(context, option),
            "fallthrough" => hosts.fallthrough = Some(zone_list(context, &option.arguments)),
            _ => read_entry(context, directive, option, &mut hosts),
        }
    }
    if hosts.passes_other_types && hosts.fallthrough.is_none() {
        let problem = Problem::new("`fallthrough_unsupported` needs `fallthrough`");
        context.problem(directive.name.span, problem.help("write `fallthrough` as well"));
    }
    Some(hosts)
}

/// CoreDNS waits for a file that is not there yet.
fn check_file(context: &mut Context<'_>, token: &Token) {
    if token.text.is_empty() {
        context.problem(token.span, Problem::new("the name of the file is empty").help("write `hosts FILE`"));
        return;
    }
    let Err(error) = context.environment.read(Path::new(&token.text)) else { return };
    let name = shown(&token.text);
    match error.kind() {
        io::ErrorKind::NotFound => context.report(
            Diagnostic::warning(token.span, format!("the file {name} does not exist"))
                .label("read as soon as it does"),
        ),
        io::ErrorKind::IsADirectory => {
            context.report(
                Diagnostic::warning(token.span, format!("{name} is a directory")).label("nothing is read"),
            );
        }
        _ => context.problem(
            token.span,
            Problem::new(format!("the file {name} cannot be read: {error}")).help("make it readable"),
        ),
    }
}

fn ttl(text: &str) -> Result<u32, Problem> {
    number_u32(text, 1).ok().filter(|&ttl| ttl <= MAX_TTL_SECONDS).ok_or_else(|| {
        Problem::new(format!("{} is not a number of seconds from 1 to {MAX_TTL_SECONDS}", shown(text)))
            .help("write `ttl SECONDS`, without a unit")
    })
}

fn read_entry(context: &mut Context<'_>, directive: &Directive, option: &Entry, hosts: &mut Hosts) {
    let text = option.name.text.as_str();
    let without_scope = text.split_once('%').map_or(text, |(address, _)| address);
    let Ok(addr) = without_scope.parse::<IpAddr>() else {
        let looks_like_address = text.starts_with(|c: char| c.is_ascii_digit()) || text.contains(':');
        if looks_like_address {
            let problem = Problem::new(format!("{} is not an IP address", shown(text)));
            context.problem(option.name.span, problem.help("write `ADDRESS NAME...`"));
        } else {
            unknown_option(context, directive, option, &SUPPORTED, &[]);
        }
        return;
    };
    // `fallthrough` with zones that are wrong counts as well; those are errors already.
    if hosts.fallthrough.is_some() {
        context.problem(
            option.name.span,
            Problem::new("an entry may not stand after `fallthrough`")
                .help("put all entries before `fallthrough`, as CoreDNS wants it"),
        );
        return;
    }
    if !count(context, &option.name, &option.arguments, (1, usize::MAX), "ADDRESS NAME...") {
        return;
    }
    let names: Vec<_> =
        option.arguments.iter().filter_map(|token| context.accept(token.span, name(&token.text))).collect();
    if !names.is_empty() {
        hosts.inline.push(HostsEntry { addr, names });
    }
}
