//! Expressions of `template`'s `var` and `expr`: the part of <https://expr-lang.org> that Corefiles use.
//!
//! Literals, lists, variables, calls, pipes, `? :` and `if`, `let`, indexes and slices, all operators but those of maps, and
//! predicates with `#` (`any(list, # > 1)`). What else the language has (maps, dates, JSON, `reduce`, ...) is an error with its
//! place when the Corefile is read, as is an unknown name, or an operand of a kind that never fits.
//!
//! - `lex`: text to tokens.
//! - `read`: tokens to a tree whose kinds were looked at.
//! - `functions`: what may be called, and what it does.
//! - `run`: a tree and a query to a value. Pure, bounded in steps and in size.

mod functions;
mod lex;
mod read;
mod run;

use std::collections::BTreeMap;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, SocketAddr};

pub use run::ExpressionError;

/// An expression that was read. Two are equal whose text is.
#[derive(Debug, Clone)]
pub struct Expression {
    text: String,
    node: Node,
    kind: Kind,
}

/// What an expression comes to.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// `nil`
    Nil,
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// Another number.
    Float(f64),
    /// A text.
    Text(String),
    /// `[a, b]`
    List(Vec<Value>),
}

/// What is known of a value before there is a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Any,
    Bool,
    Int,
    Float,
    Text,
    List,
}

/// What an expression can ask about a query.
#[derive(Debug, Clone, Copy)]
pub struct QueryData<'a> {
    /// `type()`: `A`.
    pub rtype: &'a str,
    /// `class()`: `IN`.
    pub class: &'a str,
    /// `name()`: lower-cased, with its final dot.
    pub name: &'a str,
    /// `proto()`: `udp` or `tcp`.
    pub protocol: &'a str,
    /// `size()`: bytes of the query.
    pub size: usize,
    /// `client_ip()` and `port()`.
    pub client: SocketAddr,
    /// `server_ip()` and `server_port()`.
    pub server: SocketAddr,
    /// `id()`
    pub id: u16,
    /// `do()`
    pub dnssec_ok: bool,
    /// `bufsize()`: what the client takes, in bytes.
    pub buffer_size: u16,
    /// `group(...)`: groups by number and by name.
    pub groups: &'a BTreeMap<String, String>,
}

/// What is wrong with an expression's text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ReadError {
    /// From which byte to which.
    pub(crate) at: (usize, usize),
    pub(crate) message: String,
    pub(crate) help: String,
}

#[derive(Debug, Clone)]
enum Node {
    Literal(Value),
    List(Vec<Node>),
    Variable(String),
    /// `#` and `#index` of the innermost predicate.
    Item,
    ItemIndex,
    Not(Box<Node>),
    Negate(Box<Node>),
    Binary(Operator, Box<(Node, Node)>),
    If(Box<(Node, Node, Node)>),
    Call(&'static functions::Function, Vec<Node>),
    /// A function of a list and a condition on its items.
    Predicate(functions::Predicate, Box<(Node, Node)>),
    Index(Box<(Node, Node)>),
    Slice(Box<(Node, Option<Node>, Option<Node>)>),
    /// `let x = value; rest`
    Let(String, Box<(Node, Node)>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operator {
    Or,
    And,
    Equal,
    NotEqual,
    Less,
    Greater,
    LessOrEqual,
    GreaterOrEqual,
    In,
    Matches,
    Contains,
    StartsWith,
    EndsWith,
    Range,
    Add,
    Subtract,
    Multiply,
    Divide,
    Remainder,
    Power,
    Else,
}

impl Expression {
    /// Reads an expression that may use `variables`.
    pub(crate) fn parse(text: &str, variables: &[(String, Kind)]) -> Result<Self, ReadError> {
        let (node, kind) = read::read(text, variables)?;
        Ok(Self { text: text.to_owned(), node, kind })
    }

    /// As it was written.
    pub fn text(&self) -> &str {
        &self.text
    }

    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    /// What it comes to for a query.
    ///
    /// # Errors
    /// What is found out only now: a text that is no number or no address, an index out of range, too much of anything.
    pub fn evaluate(
        &self,
        query: &QueryData<'_>,
        variables: &BTreeMap<String, Value>,
    ) -> Result<Value, ExpressionError> {
        run::run(&self.node, query, variables)
    }
}

/// Whether a name of a variable is taken: by a function, a word or a literal of the language.
pub(crate) fn is_reserved(name: &str) -> bool {
    functions::find(name).is_some()
        || functions::predicate(name).is_some()
        || functions::FOREIGN.contains(&name)
        || lex::WORDS.contains(&name)
        || ["true", "false", "nil"].contains(&name)
}

impl PartialEq for Expression {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Expression {}

impl Hash for Expression {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.text.hash(state);
    }
}

/// As Go's `%v`.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nil => f.write_str("<nil>"),
            Self::Bool(value) => write!(f, "{value}"),
            Self::Int(number) => write!(f, "{number}"),
            Self::Float(number) => write_float(f, *number),
            Self::Text(text) => f.write_str(text),
            Self::List(list) => {
                f.write_str("[")?;
                for (index, value) in list.iter().enumerate() {
                    write!(f, "{}{value}", if index == 0 { "" } else { " " })?;
                }
                f.write_str("]")
            }
        }
    }
}

/// Go's shortest form: an exponent of two digits at least, from 1e+21 on and below 1e-04.
fn write_float(f: &mut fmt::Formatter<'_>, number: f64) -> fmt::Result {
    if number.is_nan() {
        return f.write_str("NaN");
    }
    if number.is_infinite() {
        return f.write_str(if number > 0.0 { "+Inf" } else { "-Inf" });
    }
    let scientific = format!("{number:e}");
    match scientific.split_once('e').and_then(|(digits, power)| Some((digits, power.parse::<i32>().ok()?))) {
        Some((digits, power)) if number != 0.0 && !(-4..21).contains(&power) => {
            let sign = if power < 0 { '-' } else { '+' };
            write!(f, "{digits}e{sign}{:02}", power.unsigned_abs())
        }
        _ => write!(f, "{number}"),
    }
}

impl QueryData<'_> {
    fn client_ip(&self) -> IpAddr {
        self.client.ip().to_canonical()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::any_text;

    fn groups() -> BTreeMap<String, String> {
        [("0", "x-10.test."), ("1", "10"), ("n", "10")].map(|(k, v)| (k.to_owned(), v.to_owned())).into()
    }

    fn run(text: &str) -> Result<Value, ExpressionError> {
        let groups = groups();
        let query = QueryData {
            rtype: "A",
            class: "IN",
            name: "x-10.test.",
            protocol: "udp",
            size: 40,
            client: "10.1.2.3:4000".parse().unwrap(),
            server: "169.254.20.10:53".parse().unwrap(),
            id: 7,
            dnssec_ok: true,
            buffer_size: 1232,
            groups: &groups,
        };
        let variables = [("v".to_owned(), Value::Int(4))].into();
        let known = [("v".to_owned(), Kind::Int)];
        let read = Expression::parse(text, &known).unwrap_or_else(|error| panic!("{text}: {error:?}"));
        read.evaluate(&query, &variables)
    }

    #[test]
    fn comes_to_what_expr_comes_to() {
        for (text, expected) in [
            ("1 + 2 * 3", "7"),
            ("(1 + 2) * 3 - -1", "10"),
            ("7 / 2", "3.5"),
            ("6 / 2", "3"),
            ("7 % 4", "3"),
            ("2 ** 3 ** 2", "512"),
            ("0x1F + 0b11 + 0o7 + 1_000", "1041"),
            ("1.5e3", "1500"),
            ("'a' + \"b\\n\" + `c\\n`", "ab\nc\\n"),
            ("v + 1", "5"),
            ("group('n') + group(1) + group(9) + group('x')", "1010"),
            ("int(group('n')) > 9 and not false", "true"),
            ("name() == 'x-10.test.' && type() == 'A' && class() != 'CH'", "true"),
            (
                "proto() + port() + server_port() + server_ip() + client_ip()",
                "udp400053169.254.20.1010.1.2.3",
            ),
            ("[id(), opcode(), size(), bufsize()]", "[7 0 40 1232]"),
            ("do()", "true"),
            ("metadata('a/b') == ''", "true"),
            ("incidr(client_ip(), '10.0.0.0/8')", "true"),
            ("incidr(client_ip(), '11.0.0.0/8') || false", "false"),
            ("any(['11.0.0.0/8', '10.0.0.0/8'], incidr(client_ip(), #))", "true"),
            ("all([1, 2], {# > 0}) ? 'yes' : 'no'", "yes"),
            ("if v > 5 { 'a' } else if v > 3 { 'b' } else { 'c' }", "b"),
            ("let x = 2; let y = x * 3; y + x", "8"),
            ("'A' in ['A', 'AAAA']", "true"),
            ("'A' not in ['A', 'AAAA']", "false"),
            ("'abc' contains 'b' and 'abc' startsWith 'a' and 'abc' endsWith 'c'", "true"),
            ("'abc' not matches '^b'", "true"),
            ("replace('a-b-c', '-', '.')", "a.b.c"),
            ("'a-b' | replace('-', '.') | upper()", "A.B"),
            ("split('a.b.c', '.')[1]", "b"),
            ("split('a.b.c', '.')[-1]", "c"),
            ("split('a.b.c', '.')[1:] | join('/')", "b/c"),
            ("'abcdef'[1:3]", "bc"),
            ("map([1, 2, 3], # * 2)", "[2 4 6]"),
            ("filter(1..5, # % 2 == 0)", "[2 4]"),
            ("count([1, 2, 3], # > 1)", "2"),
            ("find([1, 2, 3], # > 1)", "2"),
            ("findIndex(['a', 'b'], # == 'b')", "1"),
            ("one([1, 2], # == 1) and none([1, 2], # == 3)", "true"),
            ("map(['a', 'b'], #index)", "[0 1]"),
            ("any([[1], [2]], any(#, # == 2))", "true"),
            ("len('äb') + len([1, 2])", "4"),
            ("trim('  a ') + trimPrefix('ab', 'a') + trimSuffix('ab', 'b') + lower('A')", "abaa"),
            ("repeat('ab', 2) + string(1.5) + string(3)", "abab1.53"),
            ("indexOf('abc', 'c') + lastIndexOf('abca', 'a')", "5"),
            ("hasPrefix('ab', 'a') && hasSuffix('ab', 'b')", "true"),
            ("max(1, 3, 2) + min(4, 2)", "5"),
            ("abs(-3) + int('12') + int(2.9)", "17"),
            ("ceil(1.2) + floor(1.8) + round(1.5)", "5"),
            ("float('1.5')", "1.5"),
            ("first([1, 2]) + last([1, 2])", "3"),
            ("take([1, 2, 3], 2)", "[1 2]"),
            ("reverse(uniq([1, 2, 1]))", "[2 1]"),
            ("concat([1], [2])", "[1 2]"),
            ("sort(['b', 'a'])", "[a b]"),
            ("bitand(6, 3) + bitor(4, 1) + bitxor(5, 1) + bitshl(1, 3) + bitshr(8, 2)", "21"),
            ("nil ?? 'x'", "x"),
            ("1 < 2 and 2 < 3 and 1 < 2 < 3", "true"),
            ("'a' < 'b'", "true"),
            ("1 == 1.0", "true"),
            ("[1, 2] == [1, 2]", "true"),
            ("true ? 1 : 2 // a comment", "1"),
            ("1 /* between */ + 1;", "2"),
            ("1e21 + 0.5", "1e+21"),
            ("0.00001", "1e-05"),
        ] {
            assert_eq!(run(text).map(|value| value.to_string()).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn finds_out_with_the_query_what_expr_finds_out_then() {
        for text in [
            "incidr('notanip', '10.0.0.0/8')",
            "incidr(client_ip(), 'x')",
            "int('x')",
            "[1][3]",
            "1 % (v - 4)",
            "repeat('a', 1000000)",
            "1..1000000",
            "'a' matches group('n') + '('",
        ] {
            assert!(run(text).is_err(), "{text}: {:?}", run(text));
        }
    }

    #[test]
    fn says_where_an_expression_is_wrong() {
        for (text, at) in [
            ("", (0, 0)),
            ("1 +", (3, 3)),
            ("(1", (2, 2)),
            ("nosuch()", (0, 6)),
            ("nosuch", (0, 6)),
            ("1 + 'a'", (2, 3)),
            ("'a", (0, 2)),
            ("name() > 1", (7, 8)),
            ("len()", (0, 3)),
            ("len('a', 'b')", (0, 3)),
            ("incidr(1, '10.0.0.0/8')", (7, 8)),
            ("not 1", (0, 3)),
            ("{'a': 1}", (0, 1)),
            ("now()", (0, 3)),
            ("# + 1", (0, 1)),
            ("1 ~ 2", (2, 3)),
            ("'a' matches '('", (4, 11)),
            ("1 2", (2, 3)),
            ("a.b", (0, 1)),
            ("name().x", (6, 7)),
            ("1x", (0, 2)),
        ] {
            let error = Expression::parse(text, &[]).expect_err(text);
            assert_eq!(error.at, at, "{text}: {error:?}");
            assert!(!error.help.is_empty(), "{text}");
        }
        let deep = format!("{}1{}", "(".repeat(5_000), ")".repeat(5_000));
        assert!(Expression::parse(&deep, &[]).is_err());
    }

    #[test]
    fn an_expression_of_any_text_does_not_panic() {
        let pieces = [
            "1",
            "'a'",
            "(",
            ")",
            "[",
            "]",
            "{",
            "}",
            "+",
            "-",
            "not ",
            " in ",
            "#",
            "any",
            ",",
            ":",
            "?",
            "??",
            "..",
            "|",
            "len",
            "let x =",
            ";",
            "v",
            " matches ",
            "'",
            "äö",
            ".",
            "*",
            "if ",
            " else ",
        ];
        for text in any_text::of(&pieces) {
            if Expression::parse(&text, &[("v".to_owned(), Kind::Int)]).is_ok() {
                drop(run(&text));
            }
        }
    }
}
