//! The part of Go's `text/template` that Corefiles use in `template`.
//!
//! Text and `{{ actions }}`: fields of the query (`.Name`, `.Group.b`, `.Match`), variables, literals, pipelines,
//! parentheses, `if`/`else if`/`else`, `with`, `range`, and the functions in [`FUNCTIONS`]. Everything else of the language
//! (`define`, `template`, `block`, `break`, `call`, ...) is an error with its place when the Corefile is read.
//!
//! - `read`: text to a tree.
//! - `run`: a tree and a query's data to text. Pure, bounded in steps and in output.

mod read;
mod run;

use std::collections::BTreeMap;

pub use run::TemplateError;

use crate::expression::Value;

/// Functions that may be called.
pub const FUNCTIONS: [&str; 15] = [
    "and", "eq", "ge", "gt", "index", "le", "len", "lt", "ne", "not", "or", "parseInt", "print", "printf",
    "println",
];

/// A template that was read.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct GoTemplate {
    text: String,
    nodes: Vec<Node>,
}

/// What a template can say about a query.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TemplateData {
    /// `.Zone`: the zone of the template that matched.
    pub zone: String,
    /// `.Name`: the name that is asked, lower-cased, with its final dot.
    pub name: String,
    /// `.Regex`: the expression that matched.
    pub regex: String,
    /// `.Match`: the whole match, then the groups.
    pub matches: Vec<String>,
    /// `.Group`: groups by number and by name.
    pub group: BTreeMap<String, String>,
    /// `.Class`: `IN`.
    pub class: String,
    /// `.Type`: `A`.
    pub rtype: String,
    /// `.Question.Qclass`.
    pub qclass: u16,
    /// `.Question.Qtype`.
    pub qtype: u16,
    /// `.Question.Name`: as the client wrote it.
    pub question: String,
    /// `.Remote`: the client's address.
    pub remote: String,
    /// `.Var`: what `var` has come to.
    pub variables: BTreeMap<String, Value>,
    /// `.Message`
    pub message: MessageData,
}

/// What a template can say about the header of a query.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MessageData {
    /// `.Message.Id`
    pub id: u16,
    /// `.Message.RecursionDesired`
    pub recursion_desired: bool,
    /// `.Message.AuthenticatedData`
    pub authentic_data: bool,
    /// `.Message.CheckingDisabled`
    pub checking_disabled: bool,
}

/// What is wrong with a template's text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadError {
    /// From which byte to which.
    pub at: (usize, usize),
    /// One sentence.
    pub message: String,
    /// What to do.
    pub help: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Node {
    Text(String),
    Print(Pipeline),
    /// `$x := ...` and `$x = ...`; the latter must find one.
    Set {
        name: String,
        value: Pipeline,
        declares: bool,
    },
    If {
        condition: Pipeline,
        then: Vec<Node>,
        otherwise: Vec<Node>,
    },
    With {
        value: Pipeline,
        then: Vec<Node>,
        otherwise: Vec<Node>,
    },
    Range {
        variables: Vec<String>,
        list: Pipeline,
        each: Vec<Node>,
        otherwise: Vec<Node>,
    },
}

/// Commands, each of which gets the value of the one before as its last argument.
type Pipeline = Vec<Command>;

/// A function and its arguments, or one value.
type Command = Vec<Operand>;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Operand {
    /// `.` and its fields.
    Dot(Vec<String>),
    /// `$x` and its fields; `$` is the data as a whole.
    Variable(String, Vec<String>),
    Text(String),
    Number(i64),
    Bool(bool),
    Function(String),
    /// `( ... )` and its fields.
    Group(Pipeline, Vec<String>),
}

impl GoTemplate {
    /// Reads a template.
    ///
    /// # Errors
    /// It is none, or uses what is not supported.
    pub fn parse(text: &str) -> Result<Self, ReadError> {
        Ok(Self { text: text.to_owned(), nodes: read::read(text)? })
    }

    /// As it was written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Fills in the data of a query.
    ///
    /// # Errors
    /// What Go finds out only now: an index out of range, a number that is none, types that do not fit.
    pub fn execute(&self, data: &TemplateData) -> Result<String, TemplateError> {
        run::run(&self.nodes, data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::any_text;

    fn data() -> TemplateData {
        TemplateData {
            zone: "example.".into(),
            name: "ip-10-95-12-8.example.".into(),
            regex: "x".into(),
            matches: vec!["ip-10-95-12-8.example.".into(), "10".into(), "0a".into()],
            group: [("0", "whole"), ("1", "10"), ("a", "10"), ("b", "")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
            class: "IN".into(),
            rtype: "A".into(),
            qclass: 1,
            qtype: 1,
            question: "IP-10-95-12-8.example.".into(),
            remote: "10.244.0.7".into(),
            variables: [("x".to_owned(), Value::Int(7)), ("f".to_owned(), Value::Float(0.5))].into(),
            message: MessageData { id: 4711, recursion_desired: true, ..MessageData::default() },
        }
    }

    fn run(text: &str) -> Result<String, TemplateError> {
        GoTemplate::parse(text).unwrap_or_else(|error| panic!("{text}: {error:?}")).execute(&data())
    }

    #[test]
    fn says_what_go_says() {
        for (text, expected) in [
            ("plain", "plain"),
            ("{{ .Name }} 60 IN A 10.{{ .Group.a }}.1.1", "ip-10-95-12-8.example. 60 IN A 10.10.1.1"),
            ("{{.Zone}}|{{.Class}}|{{.Type}}|{{.Remote}}|{{.Regex}}", "example.|IN|A|10.244.0.7|x"),
            ("{{ index .Match 1 }}{{ index .Group \"1\" }}", "1010"),
            ("{{ .Group.missing }}|{{ index .Group \"missing\" }}|{{ .Group.b }}", "<no value>||"),
            ("{{ .Question.Name }} {{ .Question.Qtype }}", "IP-10-95-12-8.example. 1"),
            ("a {{- \" b \" -}} c", "a b c"),
            ("{{/* nothing */}}x{{- /* nothing */ -}} y", "xy"),
            ("{{ parseInt .Group.a 16 8 }}", "16"),
            ("{{ parseInt \"ff\" 16 8 | printf \"%d.%d\" 7 | len }}", "5"),
            (
                "{{ printf \"%03d|%x|%X|%q|%v|%s|%%\" 7 255 255 \"a\" true .Class }}",
                "007|ff|FF|\"a\"|true|IN|%",
            ),
            ("{{ print 1 2 \"a\" 3 }}|{{ println \"a\" }}", "1 2a3|a\n"),
            ("{{ if eq .Type \"A\" \"AAAA\" }}yes{{ else if true }}maybe{{ else }}no{{ end }}", "yes"),
            ("{{ if .Group.b }}yes{{ else if and 1 \"x\" }}{{ or 0 \"z\" }}{{ end }}", "z"),
            ("{{ if not (lt 1 2) }}a{{ else }}{{ (index .Match 1) }}{{ end }}", "10"),
            ("{{ with .Group }}{{ .a }}{{ $.Class }}{{ end }}", "10IN"),
            ("{{ with .Group.b }}x{{ else }}y{{ end }}", "y"),
            ("{{ $x := .Group.a }}{{ $y := 5 }}{{ if true }}{{ $y = 6 }}{{ end }}{{ $x }}{{ $y }}", "106"),
            ("{{ range $i, $m := .Match }}{{ $i }}={{ len $m }};{{ end }}", "0=22;1=2;2=2;"),
            ("{{ range .Match }}{{ . }},{{ end }}", "ip-10-95-12-8.example.,10,0a,"),
            ("{{ `raw \\n` }}{{ \"q\\\"\\x41\" }}{{ 'a' }}{{ 0x10 }}{{ -3 }}", "raw \\nq\"A9716-3"),
            (
                "{{ le 1 1 }}{{ gt 2 1 }}{{ ge 1 2 }}{{ ne .Class \"CH\" }}{{ lt \"a\" \"b\" }}",
                "truetruefalsetruetrue",
            ),
            ("{{ .Meta \"x/y\" }}", ""),
            (
                "{{ .Message.Id }} {{ .Message.RecursionDesired }} {{ $.Message.Truncated }}",
                "4711 true false",
            ),
            (
                "{{ (index .Message.Question 0).Name }} {{ len .Message.Question }}",
                "IP-10-95-12-8.example. 1",
            ),
            ("{{ range .Message.Question }}{{ .Qtype }}{{ end }}", "1"),
            ("{{ .Var.x }} {{ printf \"%02d\" .Var.x }} {{ .Var.f }} {{ .Var.y }}", "7 07 0.5 <no value>"),
            ("{{ .Match }}", "[ip-10-95-12-8.example. 10 0a]"),
        ] {
            assert_eq!(run(text).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn finds_out_when_it_runs_what_go_finds_out_then() {
        for text in [
            "{{ index .Match 9 }}",
            "{{ parseInt \"xyz\" 16 8 }}",
            "{{ parseInt \"300\" 10 8 }}",
            "{{ eq 1 \"a\" }}",
            "{{ index .Name \"a\" }}",
            "{{ len 5 }}",
            "{{ .Name.Foo }}",
            "{{ .Message.Foo }}",
            "{{ index .Message.Question 1 }}",
        ] {
            assert!(run(text).is_err(), "{text}: {:?}", run(text));
        }
    }

    #[test]
    fn says_where_a_template_is_wrong() {
        for (text, at) in [
            ("a {{ .Name", (2, 4)),
            ("{{ nosuch 1 }}", (3, 9)),
            ("{{ define \"x\" }}{{ end }}", (3, 9)),
            ("{{ .Nmae }}", (3, 8)),
            ("{{ if true }}x", (0, 13)),
            ("{{ end }}", (3, 6)),
            ("{{ $x }}", (3, 5)),
            ("{{ \"a }}", (3, 4)),
            ("{{ ( .Name }}", (3, 4)),
            ("{{ }}", (0, 5)),
            ("{{ .Name | }}", (9, 10)),
            ("{{ 1 2 }}", (5, 6)),
        ] {
            let error = GoTemplate::parse(text).expect_err(text);
            assert_eq!(error.at, at, "{text}: {error:?}");
            assert!(!error.help.is_empty());
        }
    }

    #[test]
    fn a_template_of_any_text_does_not_panic() {
        let pieces = [
            "{{", "}}", "-", " ", "if", ".", "$", "x", "\"", "(", ")", "|", ":=", "end", "range", "1", "`",
            "'",
        ];
        for text in any_text::of(&pieces) {
            if let Ok(template) = GoTemplate::parse(&text) {
                drop(template.execute(&data()));
            }
        }
    }
}
