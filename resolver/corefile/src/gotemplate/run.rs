//! A template's tree and a query's data to text.

use std::fmt;

use super::{MessageData, Node, Operand, Pipeline, TemplateData};
use crate::expression;

/// Longest text that one template makes, in bytes: a record cannot be longer.
const MAX_OUTPUT: usize = 65_535;

/// Most nodes and operands that one execution visits.
const MAX_STEPS: usize = 100_000;

/// Why a template says nothing about a query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemplateError(String);

#[derive(Debug, Clone, PartialEq)]
enum Value {
    Text(String),
    Number(i128),
    Bool(bool),
    List(Vec<String>),
    Map(std::collections::BTreeMap<String, String>),
    /// `.Var`
    Variables,
    Data,
    Question,
    /// The query's packet: its header, and its one question.
    Message,
    /// Questions of that packet.
    Questions,
    /// A key that is not there.
    Nothing,
}

struct Runner<'a> {
    data: &'a TemplateData,
    variables: Vec<(String, Value)>,
    output: String,
    steps: usize,
}

fn fails<T>(message: impl Into<String>) -> Result<T, TemplateError> {
    Err(TemplateError(message.into()))
}

pub(super) fn run(nodes: &[Node], data: &TemplateData) -> Result<String, TemplateError> {
    let mut runner = Runner { data, variables: Vec::new(), output: String::new(), steps: 0 };
    runner.nodes(nodes, &Value::Data)?;
    Ok(runner.output)
}

impl Runner<'_> {
    fn step(&mut self) -> Result<(), TemplateError> {
        self.steps += 1;
        if self.steps > MAX_STEPS || self.output.len() > MAX_OUTPUT {
            return fails("it says too much");
        }
        Ok(())
    }

    fn nodes(&mut self, nodes: &[Node], dot: &Value) -> Result<(), TemplateError> {
        let declared = self.variables.len();
        for node in nodes {
            self.step()?;
            match node {
                Node::Text(text) => self.output.push_str(text),
                Node::Print(pipeline) => {
                    let value = self.pipeline(pipeline, dot)?;
                    let shown = value.to_string();
                    self.output.push_str(&shown);
                }
                Node::Set { name, value, declares } => {
                    let value = self.pipeline(value, dot)?;
                    match self
                        .variables
                        .iter_mut()
                        .rev()
                        .find(|(known, _)| known == name)
                        .filter(|_| !declares)
                    {
                        Some((_, place)) => *place = value,
                        None => self.variables.push((name.clone(), value)),
                    }
                }
                Node::If { condition, then, otherwise } => {
                    let branch = if self.pipeline(condition, dot)?.is_true() { then } else { otherwise };
                    self.nodes(branch, dot)?;
                }
                Node::With { value, then, otherwise } => {
                    let value = self.pipeline(value, dot)?;
                    if value.is_true() {
                        self.nodes(then, &value)?;
                    } else {
                        self.nodes(otherwise, dot)?;
                    }
                }
                Node::Range { variables, list, each, otherwise } => {
                    let value = self.pipeline(list, dot)?;
                    self.range(variables, value, each, otherwise, dot)?;
                }
            }
        }
        self.variables.truncate(declared);
        Ok(())
    }

    fn range(
        &mut self,
        variables: &[String],
        list: Value,
        each: &[Node],
        otherwise: &[Node],
        dot: &Value,
    ) -> Result<(), TemplateError> {
        let items: Vec<(Value, Value)> = match list {
            Value::List(items) => {
                let number = |index: usize| Value::Number(i128::try_from(index).unwrap_or_default());
                items
                    .into_iter()
                    .enumerate()
                    .map(|(index, item)| (number(index), Value::Text(item)))
                    .collect()
            }
            Value::Map(items) => {
                items.into_iter().map(|(key, item)| (Value::Text(key), Value::Text(item))).collect()
            }
            Value::Questions => vec![(Value::Number(0), Value::Question)],
            other => return fails(format!("`range` cannot go over {other}")),
        };
        if items.is_empty() {
            return self.nodes(otherwise, dot);
        }
        for (key, item) in items {
            let declared = self.variables.len();
            match variables {
                [only] => self.variables.push((only.clone(), item.clone())),
                [first, second, ..] => {
                    self.variables.push((first.clone(), key));
                    self.variables.push((second.clone(), item.clone()));
                }
                [] => {}
            }
            self.nodes(each, &item)?;
            self.variables.truncate(declared);
        }
        Ok(())
    }

    fn pipeline(&mut self, pipeline: &Pipeline, dot: &Value) -> Result<Value, TemplateError> {
        let mut last: Option<Value> = None;
        for command in pipeline {
            self.step()?;
            let Some((first, rest)) = command.split_first() else { continue };
            if let Operand::Function(name) = first {
                let mut arguments = Vec::with_capacity(rest.len() + 1);
                for operand in rest {
                    arguments.push(self.operand(operand, dot)?);
                }
                arguments.extend(last.take());
                last = Some(call(name, &arguments)?);
                continue;
            }
            if last.is_some() {
                return fails("a value that is no function gets an argument");
            }
            last = Some(self.operand(first, dot)?);
        }
        last.map_or_else(|| fails("nothing to show"), Ok)
    }

    fn operand(&mut self, operand: &Operand, dot: &Value) -> Result<Value, TemplateError> {
        self.step()?;
        let (value, fields) = match operand {
            Operand::Dot(fields) => (dot.clone(), fields),
            Operand::Variable(name, fields) if name == "$" => (Value::Data, fields),
            Operand::Variable(name, fields) => {
                let found = self.variables.iter().rev().find(|(known, _)| known == name);
                (found.map_or(Value::Nothing, |(_, value)| value.clone()), fields)
            }
            Operand::Text(text) => return Ok(Value::Text(text.clone())),
            Operand::Number(number) => return Ok(Value::Number(i128::from(*number))),
            Operand::Bool(value) => return Ok(Value::Bool(*value)),
            Operand::Function(name) => return call(name, &[]),
            Operand::Group(pipeline, fields) => (self.pipeline(pipeline, dot)?, fields),
        };
        fields.iter().try_fold(value, |value, field| self.field(value, field))
    }

    fn field(&self, value: Value, name: &str) -> Result<Value, TemplateError> {
        let data = self.data;
        let text = |text: &String| Value::Text(text.clone());
        Ok(match (value, name) {
            (Value::Data, "Zone") => text(&data.zone),
            (Value::Data, "Name") => text(&data.name),
            (Value::Data, "Regex") => text(&data.regex),
            (Value::Data, "Match") => Value::List(data.matches.clone()),
            (Value::Data, "Group") => Value::Map(data.group.clone()),
            (Value::Data, "Class") => text(&data.class),
            (Value::Data, "Type") => text(&data.rtype),
            (Value::Data, "Remote") => text(&data.remote),
            (Value::Data, "Var") => Value::Variables,
            (Value::Variables, name) => data.variables.get(name).map_or(Value::Nothing, Value::from),
            (Value::Data, "Question") => Value::Question,
            (Value::Data, "Message") => Value::Message,
            (Value::Message, "Question") => Value::Questions,
            (Value::Message, name) => data
                .message
                .field(name)
                .map_or_else(|| fails(format!("a message has no field {name}")), Ok)?,
            // Without the directive `metadata` there is none, and CoreDNS says nothing either.
            (Value::Data, "Meta") => Value::Text(String::new()),
            (Value::Question, "Name") => text(&data.question),
            (Value::Question, "Qtype") => Value::Number(i128::from(data.qtype)),
            (Value::Question, "Qclass") => Value::Number(i128::from(data.qclass)),
            (Value::Map(map), key) => map.get(key).map_or(Value::Nothing, text),
            (value, name) => return fails(format!("{value} has no field {name}")),
        })
    }
}

impl MessageData {
    /// Of Go's `dns.MsgHdr`, as it stands in a query.
    fn field(&self, name: &str) -> Option<Value> {
        Some(match name {
            "Id" => Value::Number(i128::from(self.id)),
            "Opcode" | "Rcode" => Value::Number(0),
            "RecursionDesired" => Value::Bool(self.recursion_desired),
            "AuthenticatedData" => Value::Bool(self.authentic_data),
            "CheckingDisabled" => Value::Bool(self.checking_disabled),
            "Response" | "Authoritative" | "Truncated" | "RecursionAvailable" | "Zero" | "Compress" => {
                Value::Bool(false)
            }
            _ => return None,
        })
    }
}

fn call(name: &str, arguments: &[Value]) -> Result<Value, TemplateError> {
    let wrong = || fails(format!("wrong arguments of {name}"));
    let compare = |accept: fn(std::cmp::Ordering) -> bool| match arguments {
        [left, right] => Ok(Value::Bool(accept(left.compare(right)?))),
        _ => wrong(),
    };
    match (name, arguments) {
        ("and" | "or", [first, rest @ ..]) => {
            let mut last = first;
            for value in rest {
                if last.is_true() != (name == "and") {
                    break;
                }
                last = value;
            }
            Ok(last.clone())
        }
        ("not", [value]) => Ok(Value::Bool(!value.is_true())),
        ("eq", [first, rest @ ..]) if !rest.is_empty() => {
            for value in rest {
                if first.compare(value)?.is_eq() {
                    return Ok(Value::Bool(true));
                }
            }
            Ok(Value::Bool(false))
        }
        ("ne", _) => compare(std::cmp::Ordering::is_ne),
        ("lt", _) => compare(std::cmp::Ordering::is_lt),
        ("le", _) => compare(std::cmp::Ordering::is_le),
        ("gt", _) => compare(std::cmp::Ordering::is_gt),
        ("ge", _) => compare(std::cmp::Ordering::is_ge),
        ("len", [value]) => {
            let length = match value {
                Value::Text(text) => text.len(),
                Value::List(list) => list.len(),
                Value::Map(map) => map.len(),
                Value::Questions => 1,
                _ => return wrong(),
            };
            Ok(Value::Number(i128::try_from(length).unwrap_or_default()))
        }
        ("index", [value, keys @ ..]) => {
            keys.iter().try_fold(value.clone(), |value, key| match (&value, key) {
                (Value::List(list), Value::Number(index)) => {
                    let item = usize::try_from(*index).ok().and_then(|index| list.get(index));
                    item.map_or_else(
                        || fails(format!("there is no item {index}")),
                        |item| Ok(Value::Text(item.clone())),
                    )
                }
                (Value::Questions, Value::Number(0)) => Ok(Value::Question),
                (Value::Questions, Value::Number(index)) => fails(format!("there is no item {index}")),
                (Value::Variables, Value::Text(_)) => fails("`index` of `.Var`: write `.Var.NAME`"),
                (Value::Map(map), Value::Text(key)) => {
                    Ok(Value::Text(map.get(key).cloned().unwrap_or_default()))
                }
                (Value::Text(text), Value::Number(index)) => {
                    let byte = usize::try_from(*index).ok().and_then(|index| text.as_bytes().get(index));
                    byte.map_or_else(
                        || fails(format!("there is no byte {index}")),
                        |byte| Ok(Value::Number(i128::from(*byte))),
                    )
                }
                _ => wrong(),
            })
        }
        ("parseInt", [Value::Text(text), Value::Number(base), Value::Number(bits)]) => {
            let base = u32::try_from(*base).ok().filter(|base| (2..=36).contains(base));
            let bits = u32::try_from(*bits)
                .ok()
                .filter(|bits| *bits <= 64)
                .map(|bits| if bits == 0 { 64 } else { bits });
            let digits = !text.starts_with('+');
            let value = base.filter(|_| digits).and_then(|base| u64::from_str_radix(text, base).ok());
            match (value, bits) {
                (Some(value), Some(bits)) if bits == 64 || value >> bits == 0 => {
                    Ok(Value::Number(i128::from(value)))
                }
                _ => fails(format!("{text:?} is no such number")),
            }
        }
        ("print", values) => Ok(Value::Text(print(values))),
        ("println", values) => {
            let shown: Vec<String> = values.iter().map(ToString::to_string).collect();
            Ok(Value::Text(shown.join(" ") + "\n"))
        }
        ("printf", [Value::Text(format), values @ ..]) => printf(format, values).map(Value::Text),
        _ => wrong(),
    }
}

/// Go's `Sprint`: a space between two values of which neither is a text.
fn print(values: &[Value]) -> String {
    let mut text = String::new();
    for (index, value) in values.iter().enumerate() {
        let before = index.checked_sub(1).and_then(|before| values.get(before));
        if before.is_some_and(|before| !matches!(before, Value::Text(_)) && !matches!(value, Value::Text(_)))
        {
            text.push(' ');
        }
        text += &value.to_string();
    }
    text
}

/// Go's `Sprintf` for `%s %v %d %x %X %o %b %q %%`, with `0`, `-` and a width.
fn printf(format: &str, values: &[Value]) -> Result<String, TemplateError> {
    const WIDEST: usize = 256;
    let mut text = String::new();
    let mut values = values.iter();
    let mut characters = format.chars().peekable();
    while let Some(character) = characters.next() {
        if character != '%' {
            text.push(character);
            continue;
        }
        let (mut zeros, mut left, mut width) = (false, false, 0_usize);
        while let Some(flag) = characters.next_if(|c| matches!(c, '0' | '-')) {
            zeros |= flag == '0';
            left |= flag == '-';
        }
        while let Some(digit) = characters.next_if(char::is_ascii_digit) {
            width = (width * 10 + digit.to_digit(10).unwrap_or_default() as usize).min(WIDEST);
        }
        let Some(verb) = characters.next() else { return fails("printf: a verb is missing behind `%`") };
        if verb == '%' {
            text.push('%');
            continue;
        }
        let Some(value) = values.next() else { return fails("printf: fewer values than verbs") };
        let shown = match (verb, value) {
            ('v', value) | ('s', value @ Value::Text(_)) => value.to_string(),
            ('d', Value::Number(number)) => number.to_string(),
            ('x', Value::Number(number)) => format!("{number:x}"),
            ('X', Value::Number(number)) => format!("{number:X}"),
            ('o', Value::Number(number)) => format!("{number:o}"),
            ('b', Value::Number(number)) => format!("{number:b}"),
            ('x', Value::Text(value)) => value.bytes().map(|byte| format!("{byte:02x}")).collect(),
            ('q', Value::Text(value)) => format!("{value:?}"),
            (verb, value) => return fails(format!("printf: `%{verb}` cannot show {value}")),
        };
        let padding = width.saturating_sub(shown.chars().count());
        if left {
            text += &shown;
            text.extend(std::iter::repeat_n(' ', padding));
        } else {
            let fill = if zeros && matches!(value, Value::Number(_)) { '0' } else { ' ' };
            text.extend(std::iter::repeat_n(fill, padding));
            text += &shown;
        }
    }
    Ok(text)
}

impl From<&expression::Value> for Value {
    fn from(value: &expression::Value) -> Self {
        match value {
            expression::Value::Nil => Self::Nothing,
            expression::Value::Bool(value) => Self::Bool(*value),
            expression::Value::Int(number) => Self::Number(i128::from(*number)),
            expression::Value::Text(text) => Self::Text(text.clone()),
            expression::Value::List(list) => Self::List(list.iter().map(ToString::to_string).collect()),
            // Shown as Go shows it; not a number to reckon with.
            expression::Value::Float(_) => Self::Text(value.to_string()),
        }
    }
}

impl Value {
    fn is_true(&self) -> bool {
        match self {
            Self::Text(text) => !text.is_empty(),
            Self::Number(number) => *number != 0,
            Self::Bool(value) => *value,
            Self::List(list) => !list.is_empty(),
            Self::Map(map) => !map.is_empty(),
            Self::Data | Self::Question | Self::Message | Self::Questions | Self::Variables => true,
            Self::Nothing => false,
        }
    }

    fn compare(&self, other: &Self) -> Result<std::cmp::Ordering, TemplateError> {
        match (self, other) {
            (Self::Text(left), Self::Text(right)) => Ok(left.cmp(right)),
            (Self::Number(left), Self::Number(right)) => Ok(left.cmp(right)),
            (Self::Bool(left), Self::Bool(right)) => Ok(left.cmp(right)),
            (left, right) => fails(format!("{left} and {right} cannot be compared")),
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::Number(number) => write!(f, "{number}"),
            Self::Bool(value) => write!(f, "{value}"),
            Self::List(list) => write!(f, "[{}]", list.join(" ")),
            Self::Map(map) => {
                let pairs: Vec<String> = map.iter().map(|(key, value)| format!("{key}:{value}")).collect();
                write!(f, "map[{}]", pairs.join(" "))
            }
            Self::Data => f.write_str("the data"),
            Self::Variables => f.write_str("the variables"),
            Self::Question => f.write_str("the question"),
            Self::Message => f.write_str("the message"),
            Self::Questions => f.write_str("the questions"),
            Self::Nothing => f.write_str("<no value>"),
        }
    }
}

impl fmt::Display for TemplateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for TemplateError {}
