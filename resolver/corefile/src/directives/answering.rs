//! Directives that answer themselves, or decide who is answered: `acl`, `any`, `chaos`, `dns64`, `loadbalance`, `local`,
//! `minimal`, `nsid`, `bufsize`, `whoami`.

use std::net::{IpAddr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use nodestub_wire::Name;

use super::{count, flag, no_options, one, options, unknown_option, zone_list};
use crate::config::ServerBlock;
use crate::config::answering::{Acl, Action, Chaos, Dns64, LoadBalance, Local, Network, Policy};
use crate::context::{Context, Problem};
use crate::mnemonics::read_type;
use crate::parser::{Directive, Entry};
use crate::report::shown;
use crate::values::{duration, number};

/// Longest text of a TXT record's string, in bytes; CoreDNS cuts to it.
const MAX_STRING: usize = 255;

/// A directive of one word.
pub(super) fn word(context: &mut Context<'_>, directive: &Directive) -> bool {
    let name = &directive.name;
    count(context, name, &directive.arguments, (0, 0), &name.text);
    no_options(context, directive);
    true
}

/// `acl [ZONE...] { allow|block|filter|drop [type TYPE...] [net NETWORK...] }`; may stand several times.
pub(super) fn acl(context: &mut Context<'_>, directive: &Directive, zones: &[Name]) -> Acl {
    let mut acl = Acl { zones: zone_list(context, &directive.arguments), policies: Vec::new() };
    if directive.arguments.is_empty() {
        acl.zones = zones.to_vec();
    }
    for line in directive.options.iter().flatten() {
        acl.policies.extend(policy(context, line));
    }
    acl
}

fn policy(context: &mut Context<'_>, line: &Entry) -> Option<Policy> {
    const FORM: &str = "allow|block|filter|drop [type TYPE...] [net NETWORK...]";
    let action = match line.name.text.to_lowercase().as_str() {
        "allow" => Action::Allow,
        "block" => Action::Block,
        "filter" => Action::Filter,
        "drop" => Action::Drop,
        other => {
            let problem = Problem::new(format!("unknown action {} of `acl`", shown(other)));
            context.problem(line.name.span, problem.help(format!("write `{FORM}`")));
            return None;
        }
    };
    let mut policy = Policy { action, types: Vec::new(), networks: Vec::new() };
    let mut words = line.arguments.as_slice();
    // `*` in a section means all; what stands behind it in the section is not read, as in CoreDNS.
    while let Some((section, rest)) = words.split_first() {
        let kind = section.text.to_lowercase();
        if kind != "type" && kind != "net" {
            let problem = Problem::new(format!("{} is neither `type` nor `net`", shown(&section.text)));
            context.problem(section.span, problem.help(format!("write `{FORM}`")));
            return None;
        }
        let is_section = |text: &str| matches!(text.to_lowercase().as_str(), "type" | "net");
        let end = rest.iter().position(|token| is_section(&token.text)).unwrap_or(rest.len());
        let (values, after) = rest.split_at(end);
        words = after;
        if values.is_empty() {
            let problem = Problem::new(format!("`{kind}` names nothing"));
            context.problem(section.span, problem.help(format!("write `{FORM}`, or `*` for all")));
            return None;
        }
        for token in values {
            if token.text == "*" {
                if kind == "type" {
                    policy.types.clear();
                } else {
                    policy.networks.clear();
                }
                break;
            }
            if kind == "type" {
                policy.types.push(context.accept(token.span, read_type(&token.text))?);
            } else {
                policy.networks.push(context.accept(token.span, client_network(&token.text))?);
            }
        }
    }
    Some(policy)
}

/// A network, or a single address.
fn client_network(text: &str) -> Result<Network, Problem> {
    let whole = if text.contains('/') {
        text.to_owned()
    } else if text.contains(':') {
        format!("{text}/128")
    } else {
        format!("{text}/32")
    };
    network(&whole)
}

fn network(text: &str) -> Result<Network, Problem> {
    Network::read(text).ok_or_else(|| {
        Problem::new(format!("{} is not a network", shown(text)))
            .help("write ADDRESS/LENGTH, such as `10.0.0.0/8`")
    })
}

/// `loadbalance [round_robin|weighted FILE] { reload DURATION; prefer NETWORK... }`. Said twice, the later policy counts, and
/// networks are preferred behind those of the `earlier` one.
pub(super) fn load_balance(
    context: &mut Context<'_>,
    directive: &Directive,
    earlier: Option<LoadBalance>,
) -> Option<LoadBalance> {
    const RELOAD: Duration = Duration::from_secs(30);
    let prefer = earlier.map(|earlier| earlier.prefer).unwrap_or_default();
    let mut balance = LoadBalance { weighted: None, prefer };
    match directive.arguments.as_slice() {
        [] => {}
        [policy] if policy.text == "round_robin" => {}
        [policy, file] if policy.text == "weighted" => {
            balance.weighted = Some((PathBuf::from(&file.text), RELOAD));
        }
        [policy, rest @ ..] => {
            let form = "loadbalance [round_robin] or loadbalance weighted FILE";
            let problem = match (policy.text.as_str(), rest) {
                ("round_robin", [extra, ..]) => (extra.span, "`round_robin` takes no argument".to_owned()),
                ("weighted", []) => (policy.span, "`weighted` needs a file".to_owned()),
                ("weighted", _) => (policy.span, "`weighted` takes one file".to_owned()),
                (other, _) => (policy.span, format!("unknown policy {} of `loadbalance`", shown(other))),
            };
            context.problem(problem.0, Problem::new(problem.1).help(format!("write `{form}`")));
            return None;
        }
    }
    for option in options(context, directive, &["prefer"]) {
        match (option.name.text.as_str(), &mut balance.weighted) {
            ("prefer", _) => {
                for token in &option.arguments {
                    balance.prefer.extend(context.accept(token.span, network(&token.text)));
                }
            }
            ("reload", Some((_, interval))) => {
                if let Some(token) = one(context, option, "reload DURATION")
                    && let Some(value) = context.accept(token.span, duration(&token.text))
                {
                    *interval = value;
                }
            }
            _ => unknown_option(context, directive, option, &["prefer", "reload"], &[]),
        }
    }
    Some(balance)
}

/// `dns64 [PREFIX] { translate_all; prefix PREFIX; allow_ipv4 }`. Said twice, the later one changes what it names.
pub(super) fn dns64(
    context: &mut Context<'_>,
    directive: &Directive,
    earlier: Option<Dns64>,
) -> Option<Dns64> {
    const PREFIX: Ipv6Addr = Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0);
    let default = Dns64 { prefix: PREFIX, length: 96, translate_all: false, allow_ipv4: false };
    let mut dns64 = earlier.unwrap_or(default);
    if !count(context, &directive.name, &directive.arguments, (0, 1), "dns64 [PREFIX]") {
        return None;
    }
    let mut prefixes: Vec<_> = directive.arguments.iter().collect();
    for option in options(context, directive, &[]) {
        match option.name.text.as_str() {
            "prefix" => prefixes.extend(one(context, option, "prefix PREFIX")),
            "translate_all" => dns64.translate_all |= flag(context, option),
            "allow_ipv4" => dns64.allow_ipv4 |= flag(context, option),
            _ => unknown_option(context, directive, option, &["prefix", "translate_all", "allow_ipv4"], &[]),
        }
    }
    for token in prefixes {
        let read = Network::read(&token.text)
            .filter(|network| matches!(network.length, 32 | 40 | 48 | 56 | 64 | 96));
        match read.map(|network| (network.address, network.length)) {
            Some((IpAddr::V6(prefix), length)) => (dns64.prefix, dns64.length) = (prefix, length),
            _ => {
                let problem = Problem::new(format!("{} is no prefix of DNS64", shown(&token.text)));
                context.problem(
                    token.span,
                    problem.help("write an IPv6 prefix of 32, 40, 48, 56, 64 or 96 bits (RFC 6052, 2.2)"),
                );
            }
        }
    }
    Some(dns64)
}

/// `local { localhost_prefix on|off }`. Said twice, the later one changes what it names.
pub(super) fn local(
    context: &mut Context<'_>,
    directive: &Directive,
    earlier: Option<Local>,
) -> Option<Local> {
    count(context, &directive.name, &directive.arguments, (0, 0), "local");
    let mut local = earlier.unwrap_or(Local { localhost_prefix: true });
    for option in options(context, directive, &[]) {
        if option.name.text != "localhost_prefix" {
            unknown_option(context, directive, option, &["localhost_prefix"], &[]);
            continue;
        }
        let token = one(context, option, "localhost_prefix on|off")?;
        match token.text.as_str() {
            "on" => local.localhost_prefix = true,
            "off" => local.localhost_prefix = false,
            other => {
                let problem = Problem::new(format!("{} is neither `on` nor `off`", shown(other)));
                context.problem(
                    token.span,
                    problem.help("write `localhost_prefix on` or `localhost_prefix off`"),
                );
            }
        }
    }
    Some(local)
}

/// `chaos [VERSION] [AUTHOR...]`.
pub(super) fn chaos(context: &mut Context<'_>, directive: &Directive) -> Chaos {
    no_options(context, directive);
    let cut = |text: &str| text.get(..MAX_STRING).unwrap_or(text).to_owned();
    let mut words = directive.arguments.iter().map(|token| cut(&token.text));
    let version = words.next();
    let mut authors: Vec<String> = words.collect();
    authors.sort();
    authors.dedup();
    Chaos { version, authors }
}

/// `nsid [DATA...]`; `None`: the machine's name.
pub(super) fn nsid(context: &mut Context<'_>, directive: &Directive, block: &mut ServerBlock) {
    const MAX_BYTES: usize = 255;
    no_options(context, directive);
    let words: Vec<&str> = directive.arguments.iter().map(|token| token.text.as_str()).collect();
    let data = words.join(" ");
    if data.len() > MAX_BYTES {
        let problem = Problem::new(format!("an identifier of more than {MAX_BYTES} bytes"));
        context.problem(directive.name.span, problem.help("write a shorter one"));
    }
    block.nsid = Some((!data.is_empty()).then_some(data));
}

/// `bufsize [SIZE]`.
pub(super) fn bufsize(context: &mut Context<'_>, directive: &Directive) -> Option<u16> {
    const SIZE: u16 = 1232;
    no_options(context, directive);
    if !count(context, &directive.name, &directive.arguments, (0, 1), "bufsize [SIZE]") {
        return None;
    }
    let Some(token) = directive.arguments.first() else { return Some(SIZE) };
    let size = context.accept(token.span, number(&token.text, 512, 4096))?;
    u16::try_from(size).ok()
}
