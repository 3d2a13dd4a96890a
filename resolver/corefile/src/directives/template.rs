//! `template CLASS TYPE [ZONE...] { match ...; answer ...; ... }`; may stand several times.

use nodestub_wire::Name;

use super::rewrite::pattern;
use super::{count, one, options, unknown_option, zone_list};
use crate::config::answering::Template;
use crate::context::{Context, Problem};
use crate::expression::{Expression, is_reserved};
use crate::gotemplate::GoTemplate;
use crate::lexer::Token;
use crate::mnemonics::{read_class, read_rcode, read_type};
use crate::parser::{Directive, Entry};
use crate::report::{Diagnostic, Span, shown};
use crate::values::number;

const SUPPORTED: [&str; 10] = [
    "match",
    "answer",
    "additional",
    "authority",
    "var",
    "expr",
    "rcode",
    "ederror",
    "fallthrough",
    "upstream",
];

/// Most variables, and most conditions, of one template: all are worked out for every query that matches.
const MAX_EXPRESSIONS: usize = 64;

/// Most lines of records of one template; each is made anew for every answer.
const MAX_RECORDS: usize = 256;

pub(super) fn read(context: &mut Context<'_>, directive: &Directive, zones: &[Name]) -> Option<Template> {
    let form = "template CLASS TYPE [ZONE...]";
    if !count(context, &directive.name, &directive.arguments, (2, usize::MAX), form) {
        return None;
    }
    let [class, rtype, zone_words @ ..] = directive.arguments.as_slice() else { return None };
    let mut template = Template {
        qclass: context.accept(class.span, read_class(&class.text))?,
        qtype: context.accept(rtype.span, read_type(&rtype.text))?,
        zones: zone_list(context, zone_words),
        matches: Vec::new(),
        variables: Vec::new(),
        conditions: Vec::new(),
        answer: Vec::new(),
        additional: Vec::new(),
        authority: Vec::new(),
        rcode: 0,
        extended_error: None,
        fallthrough: None,
    };
    if zone_words.is_empty() {
        template.zones = zones.to_vec();
    }
    for option in options(context, directive, &["match", "answer", "additional", "authority", "var", "expr"])
    {
        read_option(context, directive, option, &mut template);
    }
    if template.matches.is_empty() {
        template.matches.extend(pattern(".*").ok().map(|(pattern, _)| pattern));
    }
    Some(template)
}

fn read_option(context: &mut Context<'_>, directive: &Directive, option: &Entry, template: &mut Template) {
    match option.name.text.as_str() {
        "match" => {
            if count(context, &option.name, &option.arguments, (1, usize::MAX), "match EXPRESSION...") {
                for token in &option.arguments {
                    let read = context.accept(token.span, pattern(&token.text));
                    template.matches.extend(read.map(|(pattern, _)| pattern));
                }
            }
        }
        "answer" => records(context, option, &mut template.answer),
        "additional" => records(context, option, &mut template.additional),
        "authority" => records(context, option, &mut template.authority),
        "var" => read_variable(context, option, template),
        "expr" => {
            if count(context, &option.name, &option.arguments, (1, usize::MAX), "expr EXPRESSION") {
                let read = read_expression(context, &option.arguments, template);
                template.conditions.extend(read);
                bound(context, option, template.conditions.len());
            }
        }
        "rcode" => {
            if let Some(token) = one(context, option, "rcode CODE")
                && let Some(code) = context.accept(token.span, read_rcode(&token.text))
            {
                template.rcode = code;
            }
        }
        "ederror" => {
            if count(context, &option.name, &option.arguments, (1, 2), "ederror CODE [TEXT]")
                && let [code, text @ ..] = option.arguments.as_slice()
                && let Some(code) = context.accept(code.span, number(&code.text, 0, u64::from(u16::MAX)))
            {
                let text = text.first().map(|token| token.text.clone()).unwrap_or_default();
                template.extended_error = u16::try_from(code).ok().map(|code| (code, text));
            }
        }
        "fallthrough" => template.fallthrough = Some(zone_list(context, &option.arguments)),
        // CoreDNS reads over it as well.
        "upstream" => context.report(
            Diagnostic::warning(option.name.span, "`upstream` has no meaning any more").help("remove it"),
        ),
        _ => unknown_option(context, directive, option, &SUPPORTED, &[]),
    }
}

/// `NAME EXPRESSION`.
fn read_variable(context: &mut Context<'_>, option: &Entry, template: &mut Template) {
    if !count(context, &option.name, &option.arguments, (2, usize::MAX), "var NAME EXPRESSION") {
        return;
    }
    let Some((name, words)) = option.arguments.split_first() else { return };
    let text = name.text.as_str();
    let is_name = text.starts_with(|c: char| c == '_' || c.is_ascii_alphabetic())
        && text.bytes().all(|byte| byte == b'_' || byte.is_ascii_alphanumeric());
    if !is_name {
        let problem = Problem::new(format!("{} cannot be the name of a variable", shown(text)));
        context.problem(name.span, problem.help("write letters, digits and `_`, a digit not first"));
        return;
    }
    if is_reserved(text) || template.variables.iter().any(|(known, _)| known == text) {
        let problem = Problem::new(format!("the name {} is taken already", shown(text)));
        context.problem(name.span, problem.help("write another one"));
        return;
    }
    if let Some(expression) = read_expression(context, words, template) {
        template.variables.push((text.to_owned(), expression));
        bound(context, option, template.variables.len());
    }
}

fn bound(context: &mut Context<'_>, option: &Entry, number: usize) {
    if number == MAX_EXPRESSIONS + 1 {
        let message = format!("more than {MAX_EXPRESSIONS} of {} in one template", shown(&option.name.text));
        context.problem(option.name.span, Problem::new(message).help("use several templates"));
    }
}

/// Its words, with one space between two, as CoreDNS reads them.
fn read_expression(context: &mut Context<'_>, words: &[Token], template: &Template) -> Option<Expression> {
    let known: Vec<_> =
        template.variables.iter().map(|(name, expression)| (name.clone(), expression.kind())).collect();
    let texts: Vec<&str> = words.iter().map(|word| word.text.as_str()).collect();
    let error = match Expression::parse(&texts.join(" "), &known) {
        Ok(expression) => return Some(expression),
        Err(error) => error,
    };
    let mut start = 0;
    for (index, word) in words.iter().enumerate() {
        let end = start + word.text.len();
        if error.at.0 < end || index + 1 == words.len() {
            let at = (error.at.0.saturating_sub(start), error.at.1.saturating_sub(start));
            let source = context.sources.get(word.span.source).map_or("", |source| source.text.as_str());
            let span = inside(source, word.span, &word.text, at);
            context.problem(span, Problem::new(error.message.clone()).help(error.help.clone()));
            break;
        }
        start = end + 1;
    }
    None
}

fn records(context: &mut Context<'_>, option: &Entry, records: &mut Vec<GoTemplate>) {
    let form = format!("{} \"RECORD\"", option.name.text);
    if !count(context, &option.name, &option.arguments, (1, usize::MAX), &form) {
        return;
    }
    for token in &option.arguments {
        if records.len() >= MAX_RECORDS {
            let problem =
                Problem::new(format!("more than {MAX_RECORDS} records in one section of a template"));
            context.problem(token.span, problem.help("use a file of a zone"));
            return;
        }
        match GoTemplate::parse(&token.text) {
            Ok(template) => records.push(template),
            Err(error) => {
                let source = context.sources.get(token.span.source).map_or("", |source| source.text.as_str());
                let span = inside(source, token.span, &token.text, error.at);
                context.problem(span, Problem::new(error.message).help(error.help));
            }
        }
    }
}

/// The place of a byte of a word. Where the word stands in the file as it is (quotes apart), the place in it; the whole
/// word otherwise.
fn inside(source: &str, span: Span, text: &str, at: (usize, usize)) -> Span {
    let written = source.get(span.start..span.end).unwrap_or_default();
    let (start, end) = (at.0.min(text.len()), at.1.min(text.len()));
    match written.find(text) {
        Some(offset) if !text.is_empty() && text.is_char_boundary(start) && text.is_char_boundary(end) => {
            Span::new(span.source, span.start + offset + start, span.start + offset + end.max(start))
        }
        _ => span,
    }
}
