//! What may be called, with the kinds that it takes and gives, and what it does.

use std::net::IpAddr;

use super::run::{ExpressionError, compare, fails, number, too_long, whole};
use super::{Kind, QueryData, Value};
use crate::config::answering::Network;

/// A function.
#[derive(Debug)]
pub(super) struct Function {
    pub(super) name: &'static str,
    /// Kinds of its arguments; the last stands for more where `most` is larger.
    pub(super) takes: &'static [Kind],
    /// Least and most arguments.
    pub(super) count: (usize, usize),
    pub(super) gives: Kind,
    call: Call,
}

#[derive(Debug)]
enum Call {
    /// Of its arguments alone.
    Plain(fn(&[Value]) -> Result<Value, ExpressionError>),
    /// Of the query.
    Query(fn(&QueryData<'_>, &[Value]) -> Result<Value, ExpressionError>),
}

/// A function of a list and a condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Predicate {
    All,
    None,
    Any,
    One,
    Filter,
    Map,
    Count,
    Find,
    FindIndex,
}

/// Functions of the language that are not here.
pub(super) const FOREIGN: [&str; 25] = [
    "sum",
    "findLast",
    "findLastIndex",
    "groupBy",
    "sortBy",
    "reduce",
    "mean",
    "median",
    "toJSON",
    "fromJSON",
    "toBase64",
    "fromBase64",
    "now",
    "duration",
    "date",
    "timezone",
    "get",
    "keys",
    "values",
    "toPairs",
    "fromPairs",
    "flatten",
    "bitnand",
    "bitushr",
    "bitnot",
];

pub(super) fn predicate(name: &str) -> Option<Predicate> {
    Some(match name {
        "all" => Predicate::All,
        "none" => Predicate::None,
        "any" => Predicate::Any,
        "one" => Predicate::One,
        "filter" => Predicate::Filter,
        "map" => Predicate::Map,
        "count" => Predicate::Count,
        "find" => Predicate::Find,
        "findIndex" => Predicate::FindIndex,
        _ => return None,
    })
}

pub(super) fn find(name: &str) -> Option<&'static Function> {
    FUNCTIONS.iter().find(|function| function.name == name)
}

impl Function {
    pub(super) fn call(&self, query: &QueryData<'_>, arguments: &[Value]) -> Result<Value, ExpressionError> {
        match self.call {
            Call::Plain(call) => call(arguments),
            Call::Query(call) => call(query, arguments),
        }
    }
}

const fn query(
    name: &'static str,
    gives: Kind,
    call: fn(&QueryData<'_>, &[Value]) -> Result<Value, ExpressionError>,
) -> Function {
    Function { name, takes: &[], count: (0, 0), gives, call: Call::Query(call) }
}

const fn plain(
    name: &'static str,
    takes: &'static [Kind],
    count: (usize, usize),
    gives: Kind,
    call: fn(&[Value]) -> Result<Value, ExpressionError>,
) -> Function {
    Function { name, takes, count, gives, call: Call::Plain(call) }
}

/// Most arguments of `max`, `min` and `concat`.
const MANY: usize = 64;

use Kind::{Any, Bool, Float, Int, List, Text};

static FUNCTIONS: [Function; 52] = [
    query("type", Text, |query, _| text(query.rtype)),
    query("name", Text, |query, _| text(query.name)),
    query("class", Text, |query, _| text(query.class)),
    query("proto", Text, |query, _| text(query.protocol)),
    query("size", Int, |query, _| length(query.size)),
    query("client_ip", Text, |query, _| text(&query.client_ip())),
    query("port", Text, |query, _| text(&query.client.port())),
    query("id", Int, |query, _| Ok(Value::Int(query.id.into()))),
    query("opcode", Int, |_, _| Ok(Value::Int(0))),
    query("do", Bool, |query, _| Ok(Value::Bool(query.dnssec_ok))),
    query("bufsize", Int, |query, _| Ok(Value::Int(query.buffer_size.into()))),
    query("server_ip", Text, |query, _| text(&query.server.ip())),
    query("server_port", Text, |query, _| text(&query.server.port())),
    Function { takes: &[Any], count: (1, 1), ..query("group", Text, group) },
    // Nothing sets metadata here.
    plain("metadata", &[Text], (1, 1), Text, |_| text("")),
    plain("incidr", &[Text, Text], (2, 2), Bool, in_network),
    plain("len", &[Any], (1, 1), Int, |arguments| match arguments {
        [Value::Text(text)] => length(text.chars().count()),
        [Value::List(list)] => length(list.len()),
        _ => fails("len: neither a text nor a list"),
    }),
    plain("abs", &[Any], (1, 1), Any, |arguments| match arguments {
        [Value::Int(number)] => Ok(Value::Int(number.wrapping_abs())),
        [Value::Float(number)] => Ok(Value::Float(number.abs())),
        _ => fails("abs: not a number"),
    }),
    plain("ceil", &[Any], (1, 1), Float, |arguments| float(arguments, f64::ceil)),
    plain("floor", &[Any], (1, 1), Float, |arguments| float(arguments, f64::floor)),
    plain("round", &[Any], (1, 1), Float, |arguments| float(arguments, f64::round)),
    plain("int", &[Any], (1, 1), Int, |arguments| match arguments {
        [Value::Int(number)] => Ok(Value::Int(*number)),
        [Value::Float(number)] => Ok(Value::Int(whole(*number))),
        [Value::Text(text)] => {
            text.parse().map(Value::Int).or_else(|_| fails(format!("int: {text:?} is no whole number")))
        }
        _ => fails("int: neither a number nor a text"),
    }),
    plain("float", &[Any], (1, 1), Float, |arguments| match arguments {
        [Value::Text(text)] => {
            text.parse().map(Value::Float).or_else(|_| fails(format!("float: {text:?} is no number")))
        }
        _ => float(arguments, |number| number),
    }),
    plain("string", &[Any], (1, 1), Text, |arguments| arguments.first().map_or_else(|| text(""), text)),
    plain("trim", &[Text, Text], (1, 2), Text, |arguments| match arguments {
        [Value::Text(one)] => text(one.trim()),
        [Value::Text(one), Value::Text(set)] => text(one.trim_matches(|c| set.contains(c))),
        _ => wrong(),
    }),
    plain("trimPrefix", &[Text, Text], (1, 2), Text, |arguments| match arguments {
        [Value::Text(one)] => text(one.strip_prefix(' ').unwrap_or(one)),
        [Value::Text(one), Value::Text(prefix)] => text(one.strip_prefix(&**prefix).unwrap_or(one)),
        _ => wrong(),
    }),
    plain("trimSuffix", &[Text, Text], (1, 2), Text, |arguments| match arguments {
        [Value::Text(one)] => text(one.strip_suffix(' ').unwrap_or(one)),
        [Value::Text(one), Value::Text(suffix)] => text(one.strip_suffix(&**suffix).unwrap_or(one)),
        _ => wrong(),
    }),
    plain("upper", &[Text], (1, 1), Text, |arguments| match arguments {
        [Value::Text(one)] => text(&one.to_uppercase()),
        _ => wrong(),
    }),
    plain("lower", &[Text], (1, 1), Text, |arguments| match arguments {
        [Value::Text(one)] => text(&one.to_lowercase()),
        _ => wrong(),
    }),
    plain("split", &[Text, Text, Int], (2, 3), List, |arguments| split(arguments, false)),
    plain("splitAfter", &[Text, Text, Int], (2, 3), List, |arguments| split(arguments, true)),
    plain("replace", &[Text, Text, Text, Int], (3, 4), Text, |arguments| match arguments {
        [Value::Text(one), Value::Text(from), Value::Text(to), rest @ ..] => {
            too_long(one.len().saturating_add(1).saturating_mul(to.len().saturating_add(1)))?;
            text(&match rest {
                [Value::Int(most)] if *most >= 0 => {
                    one.replacen(&**from, to, usize::try_from(*most).unwrap_or(usize::MAX))
                }
                _ => one.replace(&**from, to),
            })
        }
        _ => wrong(),
    }),
    plain("repeat", &[Text, Int], (2, 2), Text, |arguments| match arguments {
        [Value::Text(one), Value::Int(times)] => {
            let times = usize::try_from(*times).or_else(|_| fails("repeat: a number below 0"))?;
            too_long(one.len().saturating_mul(times))?;
            text(&one.repeat(times))
        }
        _ => wrong(),
    }),
    plain("join", &[List, Text], (1, 2), Text, |arguments| match arguments {
        [Value::List(list), rest @ ..] => {
            let between = if let [Value::Text(between)] = rest { between } else { "" };
            let texts = list.iter().map(|value| match value {
                Value::Text(text) => Ok(&**text),
                other => fails(format!("join: {other} is no text")),
            });
            text(&texts.collect::<Result<Vec<&str>, _>>()?.join(between))
        }
        _ => wrong(),
    }),
    plain("indexOf", &[Text, Text], (2, 2), Int, |arguments| match arguments {
        [Value::Text(one), Value::Text(part)] => one.find(&**part).map_or(Ok(Value::Int(-1)), length),
        _ => wrong(),
    }),
    plain("lastIndexOf", &[Text, Text], (2, 2), Int, |arguments| match arguments {
        [Value::Text(one), Value::Text(part)] => one.rfind(&**part).map_or(Ok(Value::Int(-1)), length),
        _ => wrong(),
    }),
    plain("hasPrefix", &[Text, Text], (2, 2), Bool, |arguments| match arguments {
        [Value::Text(one), Value::Text(part)] => Ok(Value::Bool(one.starts_with(&**part))),
        _ => wrong(),
    }),
    plain("hasSuffix", &[Text, Text], (2, 2), Bool, |arguments| match arguments {
        [Value::Text(one), Value::Text(part)] => Ok(Value::Bool(one.ends_with(&**part))),
        _ => wrong(),
    }),
    plain("max", &[Any], (1, MANY), Any, |arguments| extreme(arguments, std::cmp::Ordering::is_gt)),
    plain("min", &[Any], (1, MANY), Any, |arguments| extreme(arguments, std::cmp::Ordering::is_lt)),
    plain("first", &[List], (1, 1), Any, |arguments| match arguments {
        [Value::List(list)] => Ok(list.first().cloned().unwrap_or(Value::Nil)),
        _ => wrong(),
    }),
    plain("last", &[List], (1, 1), Any, |arguments| match arguments {
        [Value::List(list)] => Ok(list.last().cloned().unwrap_or(Value::Nil)),
        _ => wrong(),
    }),
    plain("take", &[List, Int], (2, 2), List, |arguments| match arguments {
        [Value::List(list), Value::Int(most)] => {
            let most = usize::try_from(*most).or_else(|_| fails("take: a number below 0"))?;
            Ok(Value::List(list.iter().take(most).cloned().collect()))
        }
        _ => wrong(),
    }),
    plain("reverse", &[List], (1, 1), List, |arguments| match arguments {
        [Value::List(list)] => Ok(Value::List(list.iter().rev().cloned().collect())),
        _ => wrong(),
    }),
    plain("uniq", &[List], (1, 1), List, |arguments| match arguments {
        [Value::List(list)] => {
            let mut unique: Vec<Value> = Vec::new();
            for value in list {
                if !unique.contains(value) {
                    too_long(unique.len().saturating_mul(unique.len()) / 256)?;
                    unique.push(value.clone());
                }
            }
            Ok(Value::List(unique))
        }
        _ => wrong(),
    }),
    plain("concat", &[List], (1, MANY), List, |arguments| {
        let mut all = Vec::new();
        for argument in arguments {
            let Value::List(list) = argument else { return wrong() };
            too_long(all.len() + list.len())?;
            all.extend_from_slice(list);
        }
        Ok(Value::List(all))
    }),
    plain("sort", &[List], (1, 1), List, |arguments| match arguments {
        [Value::List(list)] => {
            let mut sorted = list.clone();
            for pair in list.windows(2) {
                if let [left, right] = pair {
                    compare(left, right)?;
                }
            }
            sorted.sort_by(|left, right| compare(left, right).unwrap_or(std::cmp::Ordering::Equal));
            Ok(Value::List(sorted))
        }
        _ => wrong(),
    }),
    plain("bitand", &[Int, Int], (2, 2), Int, |arguments| bits(arguments, |left, right| Some(left & right))),
    plain("bitor", &[Int, Int], (2, 2), Int, |arguments| bits(arguments, |left, right| Some(left | right))),
    plain("bitxor", &[Int, Int], (2, 2), Int, |arguments| bits(arguments, |left, right| Some(left ^ right))),
    plain("bitshl", &[Int, Int], (2, 2), Int, |arguments| {
        bits(arguments, |left, right| Some(left.checked_shl(u32::try_from(right).ok()?).unwrap_or(0)))
    }),
    plain("bitshr", &[Int, Int], (2, 2), Int, |arguments| {
        bits(arguments, |left, right| Some(left >> u32::try_from(right).ok()?.min(63)))
    }),
];

fn wrong<T>() -> Result<T, ExpressionError> {
    fails("an argument of another kind than the function takes")
}

fn text<T: ToString + ?Sized>(value: &T) -> Result<Value, ExpressionError> {
    let text = value.to_string();
    too_long(text.len())?;
    Ok(Value::Text(text))
}

fn length(length: usize) -> Result<Value, ExpressionError> {
    Ok(Value::Int(i64::try_from(length).unwrap_or(i64::MAX)))
}

fn float(arguments: &[Value], change: fn(f64) -> f64) -> Result<Value, ExpressionError> {
    let [value] = arguments else { return wrong() };
    Ok(Value::Float(change(number(value)?)))
}

/// An unknown group is empty.
fn group(query: &QueryData<'_>, arguments: &[Value]) -> Result<Value, ExpressionError> {
    let found = match arguments {
        [name @ (Value::Int(_) | Value::Text(_))] => query.groups.get(&name.to_string()),
        _ => None,
    };
    text(found.map_or("", |group| group))
}

fn in_network(arguments: &[Value]) -> Result<Value, ExpressionError> {
    let [Value::Text(address), Value::Text(network)] = arguments else { return wrong() };
    let Ok(address) = address.parse::<IpAddr>() else {
        return fails(format!("incidr: {address:?} is no address"));
    };
    match Network::read(network) {
        Some(network) => Ok(Value::Bool(network.holds(address))),
        None => fails(format!("incidr: {network:?} is no network")),
    }
}

fn split(arguments: &[Value], keeps_separator: bool) -> Result<Value, ExpressionError> {
    let [Value::Text(one), Value::Text(separator), rest @ ..] = arguments else { return wrong() };
    let most = match rest {
        [Value::Int(most)] => usize::try_from(*most).unwrap_or(usize::MAX),
        _ => usize::MAX,
    };
    let mut parts: Vec<String> = Vec::new();
    let mut left = one.as_str();
    // As Go's: an empty separator splits behind each character, and the last part has the rest.
    while parts.len() + 1 < most {
        let found = if separator.is_empty() {
            left.chars()
                .next()
                .map(char::len_utf8)
                .filter(|length| *length < left.len())
                .map(|length| (length, 0))
        } else {
            left.find(&**separator).map(|at| (at, separator.len()))
        };
        let Some((at, length)) = found else { break };
        let upto = if keeps_separator { at + length } else { at };
        parts.push(left.get(..upto).unwrap_or_default().to_owned());
        left = left.get(at + length..).unwrap_or_default();
    }
    if most > 0 && !(separator.is_empty() && left.is_empty()) {
        parts.push(left.to_owned());
    }
    Ok(Value::List(parts.into_iter().map(Value::Text).collect()))
}

/// Of numbers, which may stand in one list.
fn extreme(arguments: &[Value], wins: fn(std::cmp::Ordering) -> bool) -> Result<Value, ExpressionError> {
    let values = if let [Value::List(list)] = arguments { list } else { arguments };
    let Some((first, rest)) = values.split_first() else { return Ok(Value::Nil) };
    let mut best = first;
    number(first)?;
    for value in rest {
        number(value)?;
        if wins(compare(value, best)?) {
            best = value;
        }
    }
    Ok(best.clone())
}

fn bits(arguments: &[Value], change: fn(i64, i64) -> Option<i64>) -> Result<Value, ExpressionError> {
    match arguments {
        [Value::Int(left), Value::Int(right)] => change(*left, *right)
            .map_or_else(|| fails("a shift by less than 0"), |number| Ok(Value::Int(number))),
        _ => wrong(),
    }
}
