//! `rewrite [continue|stop] FIELD ...`: questions and answers on their way through.
//!
//! May stand several times; the rules are tried in the order of the file. Words may stand in braces when one word or
//! none stands before them.

use regex::Regex;

use super::count;
use crate::config::rewriting::{
    AnswerRule, EdnsAction, EdnsData, EdnsOption, EdnsRule, NamePattern, NameRule, Pattern, RewriteRule, Rule,
};
use crate::context::{Context, Problem};
use crate::lexer::Token;
use crate::mnemonics::{class_number, read_rcode, type_number};
use crate::parser::Directive;
use crate::report::{Diagnostic, shown};
use crate::values::number_u32;

/// Longest regular expression, in bytes (CoreDNS `maxRegexpLen`).
const MAX_PATTERN: usize = 10_000;

/// Longest data of a local EDNS option, in bytes: what fits into the OPT record of a question beside others.
const MAX_OPTION: usize = 512;

const FIELDS: &str = "name, type, class, ttl, rcode, cname, edns0";

/// Reads one rule.
pub(super) fn read(context: &mut Context<'_>, directive: &Directive) -> Option<RewriteRule> {
    let mut words: Vec<&Token> = directive.arguments.iter().collect();
    if words.len() < 2 {
        for entry in directive.options.iter().flatten() {
            words.push(&entry.name);
            words.extend(&entry.arguments);
        }
    } else if let Some(entry) = directive.options.iter().flatten().next() {
        let problem = Problem::new("a rule that stands on its line takes no braces");
        context.problem(entry.name.span, problem.help("put the whole rule into the braces, or none of it"));
        return None;
    }
    let mut words = words.as_slice();
    let mut goes_on = false;
    if let [first, rest @ ..] = words
        && let mode @ ("continue" | "stop") = first.text.to_lowercase().as_str()
    {
        goes_on = mode == "continue";
        words = rest;
    }
    let Some((field, arguments)) = words.split_first() else {
        let problem = Problem::new("`rewrite` needs a rule").help(format!("these begin one: {FIELDS}"));
        context.problem(directive.name.span, problem);
        return None;
    };
    let arguments: Vec<Token> = arguments.iter().map(|token| (*token).clone()).collect();
    let rule = match field.text.to_lowercase().as_str() {
        "name" => read_name(context, field, &arguments).map(Rule::Name),
        "type" => {
            read_pair(context, field, &arguments, type_number, "type").map(|(from, to)| Rule::Type(from, to))
        }
        "class" => read_pair(context, field, &arguments, class_number, "class")
            .map(|(from, to)| Rule::Class(from, to)),
        "ttl" => read_ttl(context, field, &arguments),
        "rcode" => read_rcode_rule(context, field, &arguments),
        "cname" => read_cname(context, field, &arguments),
        "edns0" => read_edns(context, field, &arguments).map(Rule::Edns),
        "answer" => {
            let problem = Problem::new("`answer` must stand behind a `name` rule");
            context.problem(field.span, problem.help("write `name MATCH FROM TO answer ...`"));
            None
        }
        other => {
            let problem = Problem::new(format!("unknown field {} of `rewrite`", shown(other)));
            context.problem(field.span, problem.help(format!("these are known: {FIELDS}")));
            None
        }
    };
    Some(RewriteRule { goes_on, rule: rule? })
}

/// As CoreDNS's `Normalize`: lower case and a final dot, whatever it is.
fn absolute(text: &str) -> String {
    let mut text = text.to_lowercase();
    if !text.ends_with('.') {
        text.push('.');
    }
    text
}

/// A regular expression that compiles.
pub(super) fn pattern(text: &str) -> Result<(Pattern, Regex), Problem> {
    if text.len() > MAX_PATTERN {
        return Err(Problem::new(format!("the regular expression is longer than {MAX_PATTERN} bytes"))
            .help("write a shorter one"));
    }
    match Regex::new(text) {
        Ok(regex) => Ok((Pattern(text.to_owned()), regex)),
        Err(error) => {
            let reason = error.to_string();
            let reason = reason.lines().last().unwrap_or_default().trim_start_matches("error: ");
            Err(Problem::new(format!("{} is not a regular expression: {reason}", shown(text)))
                .help("write one of RE2's, without look-around and back references"))
        }
    }
}

/// A regular expression, and a replacement that uses no more groups than it has.
fn pattern_and_replacement(from: &str, to: &str) -> Result<Pattern, Problem> {
    let (pattern, regex) = pattern(from)?;
    let used = (0..=100).filter(|group| to.contains(&format!("{{{group}}}"))).count();
    if used > regex.captures_len() - 1 {
        return Err(Problem::new(format!(
            "{} uses {used} groups, and the expression has {}",
            shown(to),
            regex.captures_len() - 1
        ))
        .help("put parentheses around each part that a group stands for"));
    }
    Ok(pattern)
}

/// How a name is matched, by its word.
fn name_pattern(context: &mut Context<'_>, how: &Token, name: &Token) -> Option<NamePattern> {
    let text = absolute(&name.text);
    Some(match how.text.to_lowercase().as_str() {
        "exact" => NamePattern::Exact(text),
        "prefix" => NamePattern::Prefix(text),
        "suffix" => NamePattern::Suffix(text),
        "substring" => NamePattern::Substring(text),
        "regex" => NamePattern::Regex(context.accept(name.span, pattern(&name.text))?.0),
        other => {
            let problem = Problem::new(format!("unknown way to match a name: {}", shown(other)));
            context.problem(how.span, problem.help("write exact, prefix, suffix, substring or regex"));
            return None;
        }
    })
}

fn read_name(context: &mut Context<'_>, field: &Token, arguments: &[Token]) -> Option<NameRule> {
    let form = "name [exact|prefix|suffix|substring|regex] FROM TO [answer ...]";
    if !count(context, field, arguments, (2, usize::MAX), form) {
        return None;
    }
    if let [from, to] = arguments {
        let (from_name, to_name) = (absolute(&from.text), absolute(&to.text));
        context.accept(from.span, pattern_and_replacement(&to_name, &from_name))?;
        return Some(NameRule {
            from: NamePattern::Exact(from_name),
            to: to_name,
            auto: true,
            answers: Vec::new(),
        });
    }
    let [how, from, to, rest @ ..] = arguments else { return None };
    let pattern = name_pattern(context, how, from)?;
    let name = absolute(&to.text);
    match &pattern {
        // CoreDNS reads the new name as an expression here, and the old one as its replacement.
        NamePattern::Exact(old) => {
            context.accept(to.span, pattern_and_replacement(&name, old))?;
        }
        NamePattern::Regex(_) => {
            context.accept(from.span, pattern_and_replacement(&from.text, &to.text))?;
        }
        _ => {}
    }
    let (metadata, rest) = match rest {
        [word, rest @ ..] if word.text == "metadata" => (Some(word), rest),
        _ => (None, rest),
    };
    let (auto, answers) = read_answers(context, rest)?;
    let auto = auto || matches!(pattern, NamePattern::Exact(_));
    if let Some(word) = metadata {
        let NamePattern::Regex(regex) = &pattern else {
            let problem = Problem::new("`metadata` stands behind a `regex` rule alone");
            context.problem(word.span, problem.help("write `name regex FROM TO metadata`, or remove it"));
            return None;
        };
        if let Some(label) = context.accept(to.span, label_of_replacement(&name, regex))? {
            never_applies(context, to, &label);
            return None;
        }
    }
    Some(NameRule { from: pattern, to: name, auto, answers })
}

/// The first label of metadata in the replacement of `name regex FROM TO metadata`; groups are none.
fn label_of_replacement(to: &str, from: &Pattern) -> Result<Option<String>, Problem> {
    let groups = Regex::new(from.as_str()).map_or(0, |regex| regex.captures_len() - 1);
    let brace = || {
        Problem::new(format!("the braces of {} do not match", shown(to)))
            .help("write `{1}` for a group, `{PLUGIN/NAME}` for metadata")
    };
    let (mut rest, mut label) = (to, None);
    while let Some((before, after)) = rest.split_once('{') {
        let (inside, behind) = after.split_once('}').filter(|_| !before.contains('}')).ok_or_else(brace)?;
        rest = behind;
        match inside.parse::<i64>() {
            Ok(group) if usize::try_from(group).is_ok_and(|group| group <= groups) => {}
            Ok(_) => {
                let problem = Problem::new(format!("the expression has no group {inside}"));
                return Err(problem.help("put parentheses around each part that a group stands for"));
            }
            Err(_) if is_label(inside) && !inside.contains('{') => {
                label.get_or_insert(inside.to_owned());
            }
            Err(_) => return Err(brace()),
        }
    }
    if rest.contains('}') { Err(brace()) } else { Ok(label) }
}

/// `PLUGIN/NAME` (CoreDNS `metadata.IsLabel`).
fn is_label(text: &str) -> bool {
    text.find('/').is_some_and(|slash| slash > 0 && slash + 1 < text.len())
}

/// A rule whose metadata nobody sets. CoreDNS passes over it too: what its plugins set is set later, by an answer.
fn never_applies(context: &mut Context<'_>, token: &Token, label: &str) {
    let warning =
        Diagnostic::warning(token.span, format!("nothing sets {}: this rule never applies", shown(label)));
    context.report(warning.help("remove it, or use groups and variables such as `{1}` and `{qname}`"));
}

/// `answer auto`, `answer name FROM TO`, `answer value FROM TO`, in a row; the word `answer` may be left out from the
/// second on.
fn read_answers(context: &mut Context<'_>, mut words: &[Token]) -> Option<(bool, Vec<AnswerRule>)> {
    let form = "answer auto, answer name FROM TO, or answer value FROM TO";
    let (mut auto, mut rules, mut first) = (false, Vec::new(), true);
    while let Some((word, rest)) = words.split_first() {
        let mut tail = rest;
        let mut kind = word;
        if word.text == "answer" {
            let Some((next, after)) = rest.split_first() else {
                context
                    .problem(word.span, Problem::new("`answer` needs a kind").help(format!("write {form}")));
                return None;
            };
            (kind, tail) = (next, after);
        } else if first {
            let problem = Problem::new(format!("{} is one word too many", shown(&word.text)));
            context.problem(word.span, problem.help(format!("a rule for answers is {form}")));
            return None;
        }
        first = false;
        words = match (kind.text.as_str(), tail) {
            ("auto", _) => {
                auto = true;
                tail
            }
            (which @ ("name" | "value"), [from, to, after @ ..]) => {
                let pattern = context.accept(from.span, pattern_and_replacement(&from.text, &to.text))?;
                rules.push(AnswerRule { value: which == "value", from: pattern, to: absolute(&to.text) });
                after
            }
            ("name" | "value", _) => {
                let problem = Problem::new(format!("`answer {}` needs two arguments", kind.text));
                context.problem(kind.span, problem.help(format!("write `answer {} FROM TO`", kind.text)));
                return None;
            }
            (other, _) => {
                let problem = Problem::new(format!("unknown rule {} for answers", shown(other)));
                context.problem(kind.span, problem.help(format!("write {form}")));
                return None;
            }
        };
        if auto && rules.iter().any(|rule| !rule.value) {
            let problem = Problem::new("`answer auto` and `answer name` exclude each other");
            context.problem(kind.span, problem.help("keep one of them"));
            return None;
        }
    }
    Some((auto, rules))
}

fn read_pair(
    context: &mut Context<'_>,
    field: &Token,
    arguments: &[Token],
    number: fn(&str) -> Option<u16>,
    what: &str,
) -> Option<(u16, u16)> {
    if !count(context, field, arguments, (2, 2), &format!("{what} FROM TO")) {
        return None;
    }
    let mut one = |token: &Token| {
        let found = number(&token.text.to_uppercase());
        let problem = || Problem::new(format!("unknown {what} {}", shown(&token.text)));
        context.accept(token.span, found.ok_or_else(|| problem().help(format!("write the name of a {what}"))))
    };
    match arguments {
        [from, to] => one(from).zip(one(to)),
        _ => None,
    }
}

fn read_ttl(context: &mut Context<'_>, field: &Token, arguments: &[Token]) -> Option<Rule> {
    let form = "ttl [exact|prefix|suffix|substring|regex] NAME SECONDS|MIN-MAX|-MAX|MIN-";
    if !count(context, field, arguments, (2, 3), form) {
        return None;
    }
    let (pattern, value) = match arguments {
        [name, value] => (NamePattern::Exact(absolute(&name.text)), value),
        [how, name, value] => (name_pattern(context, how, name)?, value),
        _ => return None,
    };
    let (least, most) = context.accept(value.span, ttl_bounds(&value.text))?;
    Some(Rule::Ttl(pattern, least, most))
}

fn ttl_bounds(text: &str) -> Result<(u32, u32), Problem> {
    /// What CoreDNS takes for no upper bound.
    const LONGEST_SECONDS: u32 = i32::MAX as u32;
    let problem = || {
        Problem::new(format!("{} is no TTL", shown(text)))
            .help("write SECONDS, MIN-MAX, -MAX or MIN-, in seconds without a unit")
    };
    let one = |text: &str, default: u32| {
        if text.is_empty() { Ok(default) } else { number_u32(text, 0).map_err(|_| problem()) }
    };
    let bounds = match text.split_once('-') {
        None if !text.is_empty() => {
            let ttl = one(text, 0)?;
            (ttl, ttl)
        }
        Some((least, most)) if !(least.is_empty() && most.is_empty()) => {
            (one(least, 0)?, one(most, LONGEST_SECONDS)?)
        }
        _ => return Err(problem()),
    };
    if bounds.0 <= bounds.1 { Ok(bounds) } else { Err(problem()) }
}

fn read_rcode_rule(context: &mut Context<'_>, field: &Token, arguments: &[Token]) -> Option<Rule> {
    let form = "rcode [exact|prefix|suffix|substring|regex] NAME FROM TO";
    if !count(context, field, arguments, (3, 4), form) {
        return None;
    }
    let (pattern, from, to) = match arguments {
        [name, from, to] => (NamePattern::Exact(absolute(&name.text)), from, to),
        [how, name, from, to] => (name_pattern(context, how, name)?, from, to),
        _ => return None,
    };
    let mut code = |token: &Token| {
        let number = token.text.parse::<u16>().ok().filter(|code| *code <= 23);
        context.accept(token.span, number.map_or_else(|| read_rcode(&token.text), Ok))
    };
    let (from, to) = (code(from)?, code(to)?);
    Some(Rule::Rcode(pattern, from, to))
}

fn read_cname(context: &mut Context<'_>, field: &Token, arguments: &[Token]) -> Option<Rule> {
    let form = "cname [exact|prefix|suffix|substring|regex] FROM TO";
    if !count(context, field, arguments, (2, 3), form) {
        return None;
    }
    let (how, from, to) = match arguments {
        [from, to] => ("exact", from, to),
        [how, from, to] => (how.text.as_str(), from, to),
        _ => return None,
    };
    // Only exact names are made absolute here, as in CoreDNS.
    let (lower_from, lower_to) = (from.text.to_lowercase(), to.text.to_lowercase());
    let pattern = match how.to_lowercase().as_str() {
        "exact" => return Some(Rule::Cname(NamePattern::Exact(absolute(&lower_from)), absolute(&lower_to))),
        "prefix" => NamePattern::Prefix(lower_from),
        "suffix" => NamePattern::Suffix(lower_from),
        "substring" => NamePattern::Substring(lower_from),
        "regex" => NamePattern::Regex(context.accept(from.span, pattern(&lower_from))?.0),
        other => {
            let problem = Problem::new(format!("unknown way to match a name: {}", shown(other)));
            context.problem(field.span, problem.help(format!("write `{form}`")));
            return None;
        }
    };
    Some(Rule::Cname(pattern, lower_to))
}

fn read_edns(context: &mut Context<'_>, field: &Token, arguments: &[Token]) -> Option<EdnsRule> {
    let form = "edns0 local|nsid|subnet set|append|replace|unset ...";
    if !count(context, field, arguments, (2, 5), form) {
        return None;
    }
    let [kind, action_word, rest @ ..] = arguments else { return None };
    let action = match action_word.text.to_lowercase().as_str() {
        "set" => EdnsAction::Set,
        "append" => EdnsAction::Append,
        "replace" => EdnsAction::Replace,
        "unset" => EdnsAction::Unset,
        other => {
            let problem = Problem::new(format!("unknown action {} of `edns0`", shown(other)));
            context.problem(action_word.span, problem.help(format!("write `{form}`")));
            return None;
        }
    };
    // `revert` keeps the option out of the reply. Replies of ours never repeat options (RFC 6891, 6.1.1).
    let rest = match rest {
        [rest @ .., last] if last.text == "revert" && action != EdnsAction::Unset => rest,
        _ => rest,
    };
    let unset = action == EdnsAction::Unset;
    let (least_and_most, form) = match (kind.text.to_lowercase().as_str(), unset) {
        ("local", true) => ((1, 1), "edns0 local unset CODE"),
        ("local", false) => ((2, 2), "edns0 local set|append|replace CODE DATA [revert]"),
        ("nsid", _) => ((0, 0), "edns0 nsid set|append|replace|unset [revert]"),
        ("subnet", true) => ((0, 0), "edns0 subnet unset"),
        ("subnet", false) => ((2, 2), "edns0 subnet set|append|replace V4LENGTH V6LENGTH [revert]"),
        (other, _) => {
            let problem = Problem::new(format!("unknown option {} of `edns0`", shown(other)));
            context.problem(kind.span, problem.help("write local, nsid or subnet"));
            return None;
        }
    };
    if !count(context, kind, rest, least_and_most, form) {
        return None;
    }
    let option = match (kind.text.to_lowercase().as_str(), rest) {
        ("local", [code, data @ ..]) => {
            let code_number = context.accept(code.span, option_code(&code.text))?;
            let data = match data.first() {
                Some(token) if metadata_label(&token.text).is_some() => {
                    never_applies(context, token, metadata_label(&token.text).unwrap_or_default());
                    return None;
                }
                Some(token) => context.accept(token.span, option_data(&token.text))?,
                None => EdnsData::Bytes(Vec::new()),
            };
            EdnsOption::Local(code_number, data)
        }
        ("subnet", [v4, v6]) => {
            let mut length =
                |token: &Token, most| context.accept(token.span, prefix_length(&token.text, most));
            let (v4, v6) = (length(v4, 32)?, length(v6, 128)?);
            EdnsOption::Subnet(v4, v6)
        }
        ("subnet", _) => EdnsOption::Subnet(0, 0),
        _ => EdnsOption::Nsid,
    };
    Some(EdnsRule { action, option })
}

/// A number as Go reads it with base 0: `0xffee`, `0b1`, `017`, `65535`.
fn go_number(text: &str) -> Option<u16> {
    let lower = text.to_lowercase();
    for (prefix, radix) in [("0x", 16), ("0b", 2), ("0o", 8), ("0", 8)] {
        if let Some(digits) = lower.strip_prefix(prefix).filter(|digits| !digits.is_empty()) {
            return u16::from_str_radix(digits, radix).ok();
        }
    }
    lower.parse().ok()
}

fn option_code(text: &str) -> Result<u16, Problem> {
    go_number(text).ok_or_else(|| {
        Problem::new(format!("{} is no code of an EDNS option", shown(text)))
            .help("write one such as `0xffee`")
    })
}

fn prefix_length(text: &str, most: u8) -> Result<u8, Problem> {
    let length =
        go_number(text).and_then(|length| u8::try_from(length).ok()).filter(|length| *length <= most);
    length.ok_or_else(|| {
        Problem::new(format!("{} is not a number of bits from 0 to {most}", shown(text)))
            .help("write one such as `24`")
    })
}

/// The label in `{PLUGIN/NAME}`.
fn metadata_label(text: &str) -> Option<&str> {
    text.strip_prefix('{')?.strip_suffix('}').filter(|label| is_label(label))
}

fn option_data(text: &str) -> Result<EdnsData, Problem> {
    if text.starts_with('{') && text.ends_with('}') {
        return Ok(match text {
            "{qname}" => EdnsData::QueryName,
            "{qtype}" => EdnsData::QueryType,
            "{client_ip}" => EdnsData::ClientIp,
            "{client_port}" => EdnsData::ClientPort,
            "{protocol}" => EdnsData::Protocol,
            "{server_ip}" => EdnsData::ServerIp,
            "{server_port}" => EdnsData::ServerPort,
            other => {
                return Err(Problem::new(format!("unknown variable {}", shown(other)))
                    .help("these are: {qname} {qtype} {client_ip} {client_port} {protocol} {server_ip} {server_port}"));
            }
        });
    }
    let bytes = match text.strip_prefix("0x") {
        Some(hexadecimal) => hexadecimal
            .as_bytes()
            .chunks(2)
            .map(|pair| {
                let pair = std::str::from_utf8(pair).ok().filter(|pair| pair.len() == 2)?;
                u8::from_str_radix(pair, 16).ok().filter(|_| !pair.starts_with('+'))
            })
            .collect::<Option<Vec<u8>>>()
            .ok_or_else(|| {
                Problem::new(format!("{} is not hexadecimal", shown(text)))
                    .help("write two digits for each byte")
            })?,
        None => text.as_bytes().to_vec(),
    };
    if bytes.len() > MAX_OPTION {
        return Err(Problem::new(format!("the data of the option is longer than {MAX_OPTION} bytes"))
            .help("write less; a question must fit into a datagram"));
    }
    Ok(EdnsData::Bytes(bytes))
}
