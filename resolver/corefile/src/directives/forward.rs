//! `forward FROM TO... { ... }`: whom to ask.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{count, flag, one, options, unknown_option, zone_list};
use crate::config::tls::{ForwardTls, KeyPair};
use crate::config::{Forward, Policy, Transport, Upstream};
use crate::context::{Context, Problem};
use crate::lexer::Token;
use crate::mnemonics::read_rcode;
use crate::names::{name, zones};
use crate::parser::{Directive, Entry};
use crate::placeholders::CLUSTER_DNS;
use crate::report::{Diagnostic, shown};
use crate::resolv_conf::nameservers;
use crate::values::{duration, number_u32, server_addr, server_addr_or};

/// Most upstreams of one `forward`, after files are read.
pub(super) const MAX_UPSTREAMS: usize = 15;
const MAX_FAILS: u32 = 2;
const HEALTH_CHECK: Duration = Duration::from_millis(500);
const EXPIRE: Duration = Duration::from_secs(10);

const READ_TIMEOUT: Duration = Duration::from_secs(2);

const SUPPORTED: [&str; 20] = [
    "except",
    "policy",
    "force_tcp",
    "prefer_udp",
    "max_fails",
    "health_check",
    "expire",
    "max_concurrent",
    "max_connect_attempts",
    "read_timeout",
    "failover",
    "next",
    "next_on_nodata",
    "failfast_all_unhealthy_upstreams",
    "tls",
    "tls_servername",
    "max_age",
    "max_idle_conns",
    "source_address",
    "resolver",
];
const UNSUPPORTED: [&str; 1] = ["doh_method"];

/// Most of `resolver`, in all lines together.
const MAX_RESOLVERS: usize = 15;

/// DNS over TLS (RFC 7858, 3.1).
const TLS_PORT: u16 = 853;

const DNS_PORT: u16 = 53;

pub(super) fn read(context: &mut Context<'_>, directive: &Directive) -> Option<Forward> {
    if !count(context, &directive.name, &directive.arguments, (2, usize::MAX), "forward FROM TO...") {
        return None;
    }
    let (from, to) = directive.arguments.split_first()?;
    let mut forward = Forward {
        from: read_from(context, from)?,
        to: read_to(context, directive, to),
        except: Vec::new(),
        policy: Policy::Random,
        transport: Transport::Same,
        max_fails: MAX_FAILS,
        health_check: HEALTH_CHECK,
        expire: EXPIRE,
        max_age: None,
        max_idle: None,
        source_address: None,
        resolvers: Vec::new(),
        tls: ForwardTls::default(),
        tls_server_name: None,
        max_concurrent: None,
        max_attempts: None,
        read_timeout: READ_TIMEOUT,
        failover: Vec::new(),
        next: Vec::new(),
        next_on_nodata: false,
        fail_fast: false,
        probe_without_recursion: false,
        probe_name: nodestub_wire::Name::root(),
    };
    for option in options(context, directive, &["except"]) {
        read_option(context, directive, option, &mut forward);
    }
    check_together(context, directive, &forward);
    Some(forward)
}

/// What options say against each other.
fn check_together(context: &mut Context<'_>, directive: &Directive, forward: &Forward) {
    let span_of = |name: &str| {
        let options = directive.options.as_deref().unwrap_or_default();
        options.iter().rev().find(|option| option.name.text == name).map(|option| option.name.span)
    };
    if let Some(age) = forward.max_age
        && age < forward.expire
        && let Some(span) = span_of("max_age")
    {
        let problem = Problem::new(format!("`max_age` is less than `expire`, which is {:?}", forward.expire));
        context.problem(span, problem.help("make it longer, or `expire` shorter"));
    }
    let names_itself = forward.to.iter().any(|upstream| match upstream {
        Upstream::Tls { server_name, .. } | Upstream::Host { server_name, .. } => server_name.is_some(),
        _ => false,
    });
    if names_itself && let Some(span) = span_of("tls_servername") {
        let problem = Problem::new("an upstream has a server name of its own already");
        context.problem(span, problem.help("name all of them by `tls://ADDRESS%NAME`, or none"));
    }
    let is_by_tls =
        |upstream: &Upstream| matches!(upstream, Upstream::Tls { .. } | Upstream::Host { by_tls: true, .. });
    let by_tls = forward.to.iter().any(is_by_tls);
    for name in ["tls", "tls_servername"] {
        if !by_tls && let Some(span) = span_of(name) {
            let warning = format!("`{name}` changes nothing: no upstream is asked over TLS");
            context.report(Diagnostic::warning(span, warning).help("write the upstream as `tls://ADDRESS`"));
        }
    }
}

fn read_option(context: &mut Context<'_>, directive: &Directive, option: &Entry, forward: &mut Forward) {
    match option.name.text.as_str() {
        "except" => {
            if count(context, &option.name, &option.arguments, (1, usize::MAX), "except ZONE...") {
                forward.except.extend(zone_list(context, &option.arguments));
            }
        }
        "policy" => {
            if let Some(policy) = read_policy(context, option) {
                forward.policy = policy;
            }
        }
        "force_tcp" => {
            if flag(context, option) {
                forward.transport = Transport::Tcp;
            }
        }
        "prefer_udp" => {
            // TCP wins where both stand.
            if flag(context, option) && forward.transport == Transport::Same {
                forward.transport = Transport::Udp;
            }
        }
        "max_fails" => {
            if let Some(token) = one(context, option, "max_fails NUMBER")
                && let Some(fails) = context.accept(token.span, number_u32(&token.text, 0))
            {
                forward.max_fails = fails;
            }
        }
        "health_check" => {
            read_health_check(context, option, forward);
        }
        "expire" => {
            if let Some(token) = one(context, option, "expire DURATION")
                && let Some(expire) = context.accept(token.span, duration(&token.text))
            {
                forward.expire = expire;
            }
        }
        "max_concurrent" => {
            if let Some(token) = one(context, option, "max_concurrent NUMBER")
                && let Some(most) = context.accept(token.span, number_u32(&token.text, 0))
            {
                forward.max_concurrent = (most > 0).then_some(most);
            }
        }
        "max_connect_attempts" => {
            if let Some(token) = one(context, option, "max_connect_attempts NUMBER")
                && let Some(most) = context.accept(token.span, number_u32(&token.text, 0))
            {
                forward.max_attempts = Some(most);
            }
        }
        "read_timeout" => {
            if let Some(token) = one(context, option, "read_timeout DURATION") {
                let value = duration(&token.text).and_then(|value| {
                    let problem =
                        || Problem::new("`read_timeout` must be more than 0").help("write one such as `2s`");
                    if value.is_zero() { Err(problem()) } else { Ok(value) }
                });
                if let Some(value) = context.accept(token.span, value) {
                    forward.read_timeout = value;
                }
            }
        }
        "failover" | "next" => {
            let is_failover = option.name.text == "failover";
            if !count(
                context,
                &option.name,
                &option.arguments,
                (1, usize::MAX),
                &format!("{} CODE...", option.name.text),
            ) {
                return;
            }
            for token in &option.arguments {
                let code = read_rcode(&token.text).and_then(|code| {
                    let problem =
                        || Problem::new("NOERROR is no reason for `failover`").help("write another code");
                    if is_failover && code == 0 { Err(problem()) } else { Ok(code) }
                });
                let codes = if is_failover { &mut forward.failover } else { &mut forward.next };
                codes.extend(context.accept(token.span, code));
            }
        }
        "tls" => {
            if let Some(tls) = read_tls(context, option) {
                forward.tls = tls;
            }
        }
        "tls_servername" => {
            if let Some(token) = one(context, option, "tls_servername NAME")
                && let Some(name) = context.accept(token.span, server_name(&token.text))
            {
                forward.tls_server_name = Some(name);
            }
        }
        "max_age" => {
            if let Some(token) = one(context, option, "max_age DURATION")
                && let Some(age) = context.accept(token.span, duration(&token.text))
            {
                forward.max_age = (!age.is_zero()).then_some(age);
            }
        }
        "max_idle_conns" => {
            if let Some(token) = one(context, option, "max_idle_conns NUMBER")
                && let Some(most) = context.accept(token.span, number_u32(&token.text, 0))
            {
                forward.max_idle = (most > 0).then_some(most);
            }
        }
        "source_address" => {
            if let Some(token) = one(context, option, "source_address ADDRESS") {
                let address = token.text.parse::<IpAddr>().map_err(|_| {
                    Problem::new(format!("{} is not an IP address", shown(&token.text)))
                        .help("write an address of this machine")
                });
                forward.source_address = context.accept(token.span, address).or(forward.source_address);
            }
        }
        "resolver" => read_resolvers(context, option, forward),
        "next_on_nodata" => forward.next_on_nodata |= flag(context, option),
        "failfast_all_unhealthy_upstreams" => forward.fail_fast |= flag(context, option),
        _ => unknown_option(context, directive, option, &SUPPORTED, &UNSUPPORTED),
    }
}

fn read_from(context: &mut Context<'_>, token: &Token) -> Option<nodestub_wire::Name> {
    let zones = context.accept(token.span, zones(&token.text))?;
    let count = zones.names.len();
    let first = zones.names.into_iter().next()?;
    if count > 1 {
        context.report(
            Diagnostic::warning(
                token.span,
                format!(
                    "the network {} is {count} zones, and `forward` takes one: only {first} is forwarded",
                    shown(&token.text)
                ),
            )
            .help("write `forward .` in a server block of this network, or one `forward` for each zone"),
        );
    }
    if zones.port.is_some() {
        context.report(Diagnostic::warning(token.span, "a port has no meaning here").help("remove it"));
    }
    Some(first)
}

fn read_to(context: &mut Context<'_>, directive: &Directive, tokens: &[Token]) -> Vec<Upstream> {
    let mut upstreams: Vec<Upstream> = Vec::new();
    let mut addresses: Vec<SocketAddr> = Vec::new();
    let errors_before = context.diagnostics.len();
    for token in tokens {
        let Some((upstream, found)) = read_upstream(context, token) else { continue };
        // As CoreDNS: an upstream named twice is one.
        if !upstreams.contains(&upstream) {
            upstreams.push(upstream);
        }
        for address in found {
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
    }
    if context.diagnostics.len() > errors_before {
        return upstreams;
    }
    let span = tokens.iter().fold(directive.name.span, |span, token| span.to(token.span));
    if addresses.len() > MAX_UPSTREAMS {
        context.report(
            Diagnostic::error(
                span,
                format!("{} upstreams, and {MAX_UPSTREAMS} are the most", addresses.len()),
            )
            .help("take some away, or use several `forward` with zones of their own"),
        );
    } else if addresses.is_empty() && !upstreams.iter().any(is_known_later) {
        context.report(
            Diagnostic::error(span, "no upstream is left: the file has no `nameserver` line")
                .help("name a server by its IP address"),
        );
    }
    upstreams
}

/// Whether its addresses are not known before it is served.
fn is_known_later(upstream: &Upstream) -> bool {
    matches!(upstream, Upstream::UnknownClusterDns | Upstream::Host { .. })
}

/// The upstream, and the addresses that it stands for now.
fn read_upstream(context: &mut Context<'_>, token: &Token) -> Option<(Upstream, Vec<SocketAddr>)> {
    if let Some(text) = token.text.strip_prefix("tls://") {
        let upstream = context.accept(token.span, tls_upstream(text))?;
        let address = if let Upstream::Tls { address, .. } = &upstream { vec![*address] } else { Vec::new() };
        return Some((upstream, address));
    }
    let text = context.accept(token.span, without_transport(&token.text))?;
    if text == CLUSTER_DNS {
        return Some((Upstream::UnknownClusterDns, Vec::new()));
    }
    if let Some(address) = server_addr(text) {
        let address = context.accept(token.span, address)?;
        return Some((Upstream::Addr(address), vec![address]));
    }
    let path = Path::new(text);
    match context.environment.read(path) {
        Ok(bytes) => {
            let addresses = nameservers(&String::from_utf8_lossy(&bytes));
            Some((Upstream::ResolvConf(PathBuf::from(path)), addresses))
        }
        Err(error) => match host_and_port(text, DNS_PORT) {
            Some((host, port)) => {
                Some((Upstream::Host { host, port, by_tls: false, server_name: None }, Vec::new()))
            }
            None => {
                context.problem(token.span, not_an_upstream(text, &error));
                None
            }
        },
    }
}

/// `HOST[:PORT]`. `None`: it is none; what ends in digits, or is mostly numbers, is a mistyped address.
fn host_and_port(text: &str, default_port: u16) -> Option<(String, u16)> {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) => (host, port.parse().ok().filter(|port| *port > 0)?),
        None => (text, default_port),
    };
    let host = server_name(host).ok()?.to_lowercase();
    let is_number = |label: &str| label.bytes().all(|byte| byte.is_ascii_digit());
    let ends_in_number = host.rsplit('.').next().is_some_and(is_number);
    let numbers = host.split('.').filter(|label| is_number(label)).count();
    (!ends_in_number && numbers < 3).then_some((host, port))
}

/// `resolver ADDRESS[:PORT]...`
fn read_resolvers(context: &mut Context<'_>, option: &Entry, forward: &mut Forward) {
    let form = "resolver ADDRESS[:PORT]...";
    if !count(context, &option.name, &option.arguments, (1, MAX_RESOLVERS), form) {
        return;
    }
    // The last line counts, as in CoreDNS.
    forward.resolvers.clear();
    for token in &option.arguments {
        let address = server_addr(&token.text).unwrap_or_else(|| {
            Err(Problem::new(format!("{} is not an IP address", shown(&token.text)))
                .help(format!("write `{form}`")))
        });
        forward.resolvers.extend(context.accept(token.span, address));
    }
}

/// `ADDRESS[%NAME][:PORT]`, with brackets around an IPv6 address that has a port, as CoreDNS `splitZone` reads it.
fn tls_upstream(text: &str) -> Result<Upstream, Problem> {
    let mut host = text.to_owned();
    let mut name = None;
    if let Some((before, after)) = text.rsplit_once('%') {
        let close = if before.starts_with('[') { "]" } else { "" };
        let (named, port) = after.rsplit_once(':').map_or((after, None), |(named, port)| (named, Some(port)));
        let port = port.map(|port| format!(":{port}")).unwrap_or_default();
        host = format!("{before}{close}{port}");
        name = Some(server_name(named.trim_end_matches(']'))?);
    }
    if let Some(address) = server_addr_or(&host, TLS_PORT) {
        return Ok(Upstream::Tls { address: address?, server_name: name });
    }
    let (host, port) = host_and_port(&host, TLS_PORT).ok_or_else(|| {
        Problem::new(format!("{} is neither an IP address nor a host name", shown(&host)))
            .help("write `tls://ADDRESS`, `tls://ADDRESS%NAME` or `tls://ADDRESS%NAME:PORT`")
    })?;
    Ok(Upstream::Host { host, port, by_tls: true, server_name: name })
}

/// A name that a certificate can be for: a domain name of ASCII letters, digits, `-` and `_`, or an IP address.
fn server_name(text: &str) -> Result<String, Problem> {
    let plain = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    let host = text.strip_suffix('.').unwrap_or(text);
    if host.parse::<IpAddr>().is_ok() || (host.len() <= 253 && host.split('.').all(plain)) {
        return Ok(host.to_owned());
    }
    Err(Problem::new(format!("{} is not a name that a certificate can be for", shown(text)))
        .help("write a host name such as `dns.quad9.net`"))
}

/// `tls [CERT KEY] [CA]`.
fn read_tls(context: &mut Context<'_>, option: &Entry) -> Option<ForwardTls> {
    if !count(context, &option.name, &option.arguments, (0, 3), "tls [CERT KEY] [CA]") {
        return None;
    }
    let path = |token: &Token| PathBuf::from(&token.text);
    let pair = |certificate: &Token, key: &Token| KeyPair { certificate: path(certificate), key: path(key) };
    Some(match option.arguments.as_slice() {
        [ca] => ForwardTls { pair: None, authorities: Some(path(ca)) },
        [certificate, key] => ForwardTls { pair: Some(pair(certificate, key)), authorities: None },
        [certificate, key, ca] => {
            ForwardTls { pair: Some(pair(certificate, key)), authorities: Some(path(ca)) }
        }
        _ => ForwardTls::default(),
    })
}

fn without_transport(text: &str) -> Result<&str, Problem> {
    match text.split_once("://") {
        None => Ok(text),
        Some(("dns", rest)) => Ok(rest),
        Some((transport @ ("https" | "quic"), _)) => {
            Err(Problem::new(format!("upstreams over `{transport}://` are not supported by this version"))
                .help("name it by its IP address alone, which is plain DNS, or by `tls://ADDRESS`"))
        }
        Some((transport, _)) => {
            Err(Problem::new(format!("{} is no transport of `forward`", shown(transport)))
                .help("name the server by its IP address alone"))
        }
    }
}

fn not_an_upstream(text: &str, error: &io::Error) -> Problem {
    let name = shown(text);
    if text.contains('%') {
        return Problem::new(format!(
            "{name} holds a network device, which is not supported by this version"
        ))
        .help("name the server by an address that is not link-local");
    }
    if text.contains('/') {
        return Problem::new(format!("{name} cannot be read: {error}"))
            .help("name a file in the format of resolv.conf, or a server by its IP address");
    }
    Problem::new(format!("{name} is neither an IP address, nor a file, nor a host name"))
        .help("name the server by its IP address")
}

fn read_policy(context: &mut Context<'_>, option: &Entry) -> Option<Policy> {
    let form = "policy random|round_robin|sequential";
    let token = one(context, option, form)?;
    let policy = match token.text.as_str() {
        "random" => Ok(Policy::Random),
        "round_robin" => Ok(Policy::RoundRobin),
        "sequential" => Ok(Policy::Sequential),
        other => {
            Err(Problem::new(format!("unknown policy {}", shown(other))).help(format!("write `{form}`")))
        }
    };
    context.accept(token.span, policy)
}

/// `health_check DURATION [no_rec] [domain NAME]`.
fn read_health_check(context: &mut Context<'_>, option: &Entry, forward: &mut Forward) {
    let form = "health_check DURATION [no_rec] [domain NAME]";
    if !count(context, &option.name, &option.arguments, (1, usize::MAX), form) {
        return;
    }
    let Some((interval, mut words)) = option.arguments.split_first() else { return };
    if let Some(value) = context.accept(interval.span, duration(&interval.text)) {
        forward.health_check = value;
    }
    loop {
        words = match words {
            [] => return,
            [word, rest @ ..] if word.text == "no_rec" => {
                forward.probe_without_recursion = true;
                rest
            }
            [word, value, rest @ ..] if word.text == "domain" => {
                if let Some(value) = context.accept(value.span, name(&value.text)) {
                    forward.probe_name = value;
                }
                rest
            }
            [word, ..] => {
                let problem = Problem::new(format!("unknown word {} of `health_check`", shown(&word.text)));
                context.problem(word.span, problem.help(format!("write `{form}`")));
                return;
            }
        }
    }
}
