//! `cache [TTL] [ZONE...] { success ...; denial ...; prefetch ...; servfail ...; disable ...; keepttl; serve_stale ... }`.

use std::time::Duration;

use nodestub_wire::Name;

use super::{count, flag, one, options, unknown_option, zone_list};
use crate::config::{Cache, CacheClass, Prefetch, ServeStale};
use crate::context::{Context, Problem};
use crate::lexer::Token;
use crate::parser::{Directive, Entry};
use crate::report::{Diagnostic, shown};
use crate::values::{duration, number, number_u32};

/// CoreDNS's cache is 256 shards of at least 4 entries; a capacity is rounded down to a multiple of the shards.
const SHARDS: u64 = 256;
const LEAST_ENTRIES: u64 = 4 * SHARDS;
const DEFAULT_ENTRIES: u64 = 10_000;
const MAX_TTL_SECONDS: u32 = 3600;
const MAX_DENIAL_TTL_SECONDS: u32 = 1800;
const MIN_TTL_SECONDS: u32 = 5;
const SERVFAIL: Duration = Duration::from_secs(5);
/// RFC 2308, 7.1.
const MAX_SERVFAIL: Duration = Duration::from_secs(300);

const STALE: Duration = Duration::from_secs(3600);
/// RFC 9520.
const MAX_RECHECK: Duration = Duration::from_secs(300);

const PREFETCH_WITHIN: Duration = Duration::from_secs(60);
const PREFETCH_PERCENTAGE: u8 = 10;

const SUPPORTED: [&str; 8] =
    ["success", "denial", "prefetch", "servfail", "disable", "keepttl", "serve_stale", "serve_stale_policy"];

pub(super) fn read(context: &mut Context<'_>, directive: &Directive) -> Option<Cache> {
    let class =
        |max_ttl| CacheClass { capacity: capacity(DEFAULT_ENTRIES), max_ttl, min_ttl: MIN_TTL_SECONDS };
    let mut cache = Cache {
        zones: Vec::new(),
        success: class(MAX_TTL_SECONDS),
        denial: class(MAX_DENIAL_TTL_SECONDS),
        servfail: SERVFAIL,
        keep_ttl: false,
        disable_success: Vec::new(),
        disable_denial: Vec::new(),
        serve_stale: None,
        prefer_positive: false,
        prefetch: None,
    };
    let mut zones = directive.arguments.as_slice();
    if let Some((first, rest)) = zones.split_first()
        && is_number(&first.text)
    {
        zones = rest;
        let ttl = context.accept(first.span, number_u32(&first.text, 1))?;
        cache.success.max_ttl = ttl;
        cache.denial.max_ttl = ttl;
    }
    cache.zones = zone_list(context, zones);
    // `disable` may stand once for each class; the second of a class replaces the first, as in CoreDNS.
    for option in options(context, directive, &["disable", "serve_stale_policy"]) {
        match option.name.text.as_str() {
            "success" => read_class(context, option, &mut cache.success),
            "denial" => read_class(context, option, &mut cache.denial),
            "servfail" => {
                if let Some(ttl) = read_servfail(context, option) {
                    cache.servfail = ttl;
                }
            }
            "disable" => read_disable(context, option, &mut cache),
            "serve_stale" => {
                if let Some(stale) = read_stale(context, option) {
                    cache.serve_stale = (!stale.up_to.is_zero()).then_some(stale);
                }
            }
            "serve_stale_policy" if cache.prefer_positive => {
                let problem = Problem::new("`serve_stale_policy` may stand only once");
                context.problem(option.name.span, problem.help("remove one of them"));
            }
            "serve_stale_policy" => read_policy(context, directive, option, &mut cache),
            "prefetch" => {
                cache.prefetch = read_prefetch(context, option).filter(|prefetch| prefetch.amount > 0);
            }
            "keepttl" => cache.keep_ttl |= flag(context, option),
            _ => unknown_option(context, directive, option, &SUPPORTED, &[]),
        }
    }
    Some(cache)
}

/// What Go's `strconv.Atoi` takes: then it is the TTL and no zone.
fn is_number(text: &str) -> bool {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
}

fn capacity(entries: u64) -> usize {
    usize::try_from((entries / SHARDS * SHARDS).max(LEAST_ENTRIES)).unwrap_or(usize::MAX)
}

/// `CAPACITY [TTL [MINTTL]]`.
fn read_class(context: &mut Context<'_>, option: &Entry, class: &mut CacheClass) {
    let form = format!("{} CAPACITY [TTL [MINTTL]]", option.name.text);
    if !count(context, &option.name, &option.arguments, (1, usize::MAX), &form) {
        return;
    }
    if let Some(extra) = option.arguments.get(3) {
        let warning = Diagnostic::warning(extra.span, "what stands here is not read, here as in CoreDNS");
        context.report(warning.help(format!("write `{form}`")));
    }
    let mut arguments = option.arguments.iter();
    if let Some(token) = arguments.next()
        && let Some(entries) = context.accept(token.span, number(&token.text, 0, u64::from(u32::MAX)))
    {
        class.capacity = capacity(entries);
    }
    let mut ttl = |token: Option<&Token>, least, value: &mut u32| {
        if let Some(token) = token
            && let Some(seconds) = context.accept(token.span, number_u32(&token.text, least))
        {
            *value = seconds;
        }
    };
    ttl(arguments.next(), 1, &mut class.max_ttl);
    ttl(arguments.next(), 0, &mut class.min_ttl);
}

fn read_servfail(context: &mut Context<'_>, option: &Entry) -> Option<Duration> {
    let token = one(context, option, "servfail DURATION")?;
    let ttl = duration(&token.text).and_then(|ttl| {
        if ttl <= MAX_SERVFAIL {
            return Ok(ttl);
        }
        Err(Problem::new("SERVFAIL may be kept for 5 minutes at most")
            .help("write `servfail 5m` or less (RFC 2308, 7.1)"))
    });
    context.accept(token.span, ttl)
}

/// `[DURATION] [immediate [TTL [RECHECK]] | verify [TIMEOUT [TTL [RECHECK]]]]`; `None`: it is wrong.
fn read_stale(context: &mut Context<'_>, option: &Entry) -> Option<ServeStale> {
    let form = "serve_stale [DURATION] [immediate [TTL [RECHECK]] | verify [TIMEOUT [TTL [RECHECK]]]]";
    let mut stale = ServeStale { up_to: STALE, verify: None, ttl: 0, recheck: Duration::ZERO };
    if let Some(token) = option.arguments.first() {
        stale.up_to = context.accept(token.span, duration(&token.text))?;
    }
    let mode = option.arguments.get(1);
    let is_verify = match mode.map(|token| token.text.to_lowercase()).as_deref() {
        None | Some("immediate") => false,
        Some("verify") => true,
        Some(other) => {
            let problem = Problem::new(format!("unknown way to refresh: {}", shown(other)));
            context.problem(option.name.span, problem.help(format!("write `{form}`")));
            return None;
        }
    };
    let most = if is_verify { 5 } else { 4 };
    if !count(context, &option.name, &option.arguments, (0, most), form) {
        return None;
    }
    let mut words = option.arguments.iter().skip(2);
    let mut next = |context: &mut Context<'_>| match words.next() {
        Some(token) => Ok(Some((token.span, context.accept(token.span, duration(&token.text)).ok_or(())?))),
        None => Ok::<_, ()>(None),
    };
    if is_verify {
        stale.verify = Some(next(context).ok()?.map_or(Duration::ZERO, |(_, value)| value));
    }
    if let Some((span, value)) = next(context).ok()? {
        let whole = (value.subsec_nanos() == 0).then(|| u32::try_from(value.as_secs()).ok()).flatten();
        let problem = || Problem::new("a TTL is a whole number of seconds").help("write one such as `30s`");
        stale.ttl = context.accept(span, whole.ok_or_else(problem))?;
    }
    if let Some((span, value)) = next(context).ok()? {
        let problem =
            || Problem::new("a failure may be remembered for 5 minutes at most").help("write `5m` or less");
        stale.recheck =
            context.accept(span, if value <= MAX_RECHECK { Ok(value) } else { Err(problem()) })?;
    }
    Some(stale)
}

/// `prefer_positive`, where there is `serve_stale`.
fn read_policy(context: &mut Context<'_>, directive: &Directive, option: &Entry, cache: &mut Cache) {
    let form = "serve_stale_policy prefer_positive";
    let Some(token) = one(context, option, form) else { return };
    if !token.text.eq_ignore_ascii_case("prefer_positive") {
        let problem = Problem::new(format!("unknown policy {}", shown(&token.text)));
        context.problem(token.span, problem.help(format!("write `{form}`")));
    }
    let options = directive.options.as_deref().unwrap_or_default();
    if !options.iter().any(|option| option.name.text == "serve_stale") {
        let problem = Problem::new("`serve_stale_policy` needs `serve_stale`");
        context.problem(option.name.span, problem.help("write `serve_stale` as well, or remove it"));
    }
    cache.prefer_positive = true;
}

/// `AMOUNT [DURATION [PERCENTAGE%]]`.
fn read_prefetch(context: &mut Context<'_>, option: &Entry) -> Option<Prefetch> {
    let form = "prefetch AMOUNT [DURATION [PERCENTAGE%]]";
    if !count(context, &option.name, &option.arguments, (1, 3), form) {
        return None;
    }
    let mut words = option.arguments.iter();
    let amount = words.next().and_then(|token| context.accept(token.span, number_u32(&token.text, 0)))?;
    let within = match words.next() {
        Some(token) => context.accept(token.span, duration(&token.text))?,
        None => PREFETCH_WITHIN,
    };
    let percentage = match words.next() {
        Some(token) => {
            let number = token.text.strip_suffix('%').and_then(|number| number.parse().ok());
            let number = number.filter(|number| (10..=90).contains(number)).ok_or_else(|| {
                Problem::new(format!("{} is not a percentage from 10% to 90%", shown(&token.text)))
                    .help("write one such as `20%`")
            });
            context.accept(token.span, number)?
        }
        None => PREFETCH_PERCENTAGE,
    };
    Some(Prefetch { amount, within, percentage })
}

/// `success|denial [ZONE...]`; without zones, all.
fn read_disable(context: &mut Context<'_>, option: &Entry, cache: &mut Cache) {
    let form = "disable success|denial [ZONE...]";
    if !count(context, &option.name, &option.arguments, (1, usize::MAX), form) {
        return;
    }
    let Some((class, zones)) = option.arguments.split_first() else { return };
    let mut zones = zone_list(context, zones);
    if zones.is_empty() {
        zones = vec![Name::root()];
    }
    match class.text.as_str() {
        "success" => cache.disable_success = zones,
        "denial" => cache.disable_denial = zones,
        other => context.problem(
            class.span,
            Problem::new(format!("{} is no class of answers", shown(other))).help(format!("write `{form}`")),
        ),
    }
}
