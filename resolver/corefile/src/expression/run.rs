//! A tree and a query to a value.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;

use regex::Regex;

use super::functions::Predicate;
use super::{Node, Operator, QueryData, Value};

/// Most nodes that one evaluation visits.
const MAX_STEPS: usize = 100_000;

/// Longest text in bytes, and most items of a list.
const MAX_SIZE: usize = 65_535;

/// Why an expression comes to nothing for a query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpressionError(String);

pub(super) fn fails<T>(message: impl Into<String>) -> Result<T, ExpressionError> {
    Err(ExpressionError(message.into()))
}

pub(super) fn too_long(size: usize) -> Result<(), ExpressionError> {
    if size > MAX_SIZE { fails("a text or a list becomes too long") } else { Ok(()) }
}

pub(super) fn run(
    node: &Node,
    query: &QueryData<'_>,
    variables: &BTreeMap<String, Value>,
) -> Result<Value, ExpressionError> {
    Runner { query, variables, own: Vec::new(), items: Vec::new(), steps: 0 }.value(node)
}

struct Runner<'a> {
    query: &'a QueryData<'a>,
    variables: &'a BTreeMap<String, Value>,
    /// Of `let`.
    own: Vec<(&'a str, Value)>,
    /// `#` and `#index` of the predicates that are under way.
    items: Vec<(Value, usize)>,
    steps: usize,
}

impl<'a> Runner<'a> {
    fn value(&mut self, node: &'a Node) -> Result<Value, ExpressionError> {
        self.steps += 1;
        if self.steps > MAX_STEPS {
            return fails("the expression takes too long");
        }
        Ok(match node {
            Node::Literal(value) => value.clone(),
            Node::List(nodes) => Value::List(self.values(nodes)?),
            Node::Variable(name) => {
                let own = self.own.iter().rev().find(|(known, _)| known == name).map(|(_, value)| value);
                own.or_else(|| self.variables.get(name)).cloned().unwrap_or(Value::Nil)
            }
            Node::Item => self.items.last().map_or(Value::Nil, |(item, _)| item.clone()),
            Node::ItemIndex => {
                let index = self.items.last().map_or(0, |(_, index)| *index);
                Value::Int(i64::try_from(index).unwrap_or(i64::MAX))
            }
            Node::Not(node) => Value::Bool(!truth(&self.value(node)?)?),
            Node::Negate(node) => match self.value(node)? {
                Value::Int(number) => Value::Int(number.wrapping_neg()),
                Value::Float(number) => Value::Float(-number),
                other => return fails(format!("{other} is no number")),
            },
            Node::Binary(operator, sides) => self.binary(*operator, &sides.0, &sides.1)?,
            Node::If(parts) => {
                let (condition, then, otherwise) = &**parts;
                if truth(&self.value(condition)?)? { self.value(then)? } else { self.value(otherwise)? }
            }
            Node::Call(function, arguments) => {
                let arguments = self.values(arguments)?;
                function.call(self.query, &arguments)?
            }
            Node::Predicate(predicate, parts) => self.predicate(*predicate, &parts.0, &parts.1)?,
            Node::Index(parts) => index(&self.value(&parts.0)?, &self.value(&parts.1)?)?,
            Node::Slice(parts) => {
                let (of, from, to) = &**parts;
                let of = self.value(of)?;
                let mut bound =
                    |node: &'a Option<Node>| node.as_ref().map(|node| self.value(node)).transpose();
                let (from, to) = (bound(from)?, bound(to)?);
                slice(of, from.as_ref(), to.as_ref())?
            }
            Node::Let(name, parts) => {
                let value = self.value(&parts.0)?;
                self.own.push((name, value));
                let rest = self.value(&parts.1);
                self.own.pop();
                rest?
            }
        })
    }

    fn values(&mut self, nodes: &'a [Node]) -> Result<Vec<Value>, ExpressionError> {
        nodes.iter().map(|node| self.value(node)).collect()
    }

    fn binary(
        &mut self,
        operator: Operator,
        left: &'a Node,
        right: &'a Node,
    ) -> Result<Value, ExpressionError> {
        let left = self.value(left)?;
        // What need not be known is not asked.
        match operator {
            Operator::Or => return Ok(Value::Bool(truth(&left)? || truth(&self.value(right)?)?)),
            Operator::And => return Ok(Value::Bool(truth(&left)? && truth(&self.value(right)?)?)),
            Operator::Else => return if left == Value::Nil { self.value(right) } else { Ok(left) },
            _ => {}
        }
        combine(operator, &left, &self.value(right)?)
    }

    fn predicate(
        &mut self,
        predicate: Predicate,
        list: &'a Node,
        condition: &'a Node,
    ) -> Result<Value, ExpressionError> {
        let Value::List(list) = self.value(list)? else { return fails("a condition on items needs a list") };
        let mut results = Vec::with_capacity(list.len());
        for (index, item) in list.iter().enumerate() {
            self.items.push((item.clone(), index));
            let result = self.value(condition);
            self.items.pop();
            let result = result?;
            if predicate != Predicate::Map {
                let is = truth(&result)?;
                let decided = match predicate {
                    Predicate::All => !is,
                    Predicate::None | Predicate::Any | Predicate::Find | Predicate::FindIndex => is,
                    _ => false,
                };
                results.push(result);
                if decided {
                    break;
                }
                continue;
            }
            results.push(result);
        }
        let hits = || results.iter().enumerate().filter(|(_, result)| **result == Value::Bool(true));
        let number = |number: usize| Value::Int(i64::try_from(number).unwrap_or(i64::MAX));
        let first = hits().next().map(|(index, _)| index);
        Ok(match predicate {
            Predicate::All => Value::Bool(hits().count() == list.len()),
            Predicate::None => Value::Bool(first.is_none()),
            Predicate::Any => Value::Bool(first.is_some()),
            Predicate::One => Value::Bool(hits().count() == 1),
            Predicate::Count => number(hits().count()),
            Predicate::Find => first.and_then(|index| list.get(index)).cloned().unwrap_or(Value::Nil),
            Predicate::FindIndex => first.map_or(Value::Int(-1), number),
            Predicate::Filter => {
                Value::List(hits().filter_map(|(index, _)| list.get(index)).cloned().collect())
            }
            Predicate::Map => Value::List(results),
        })
    }
}

fn truth(value: &Value) -> Result<bool, ExpressionError> {
    if let Value::Bool(value) = value {
        Ok(*value)
    } else {
        fails(format!("{value} is neither true nor false"))
    }
}

#[expect(clippy::cast_precision_loss, reason = "as the language does it")]
pub(super) fn number(value: &Value) -> Result<f64, ExpressionError> {
    match value {
        Value::Int(number) => Ok(*number as f64),
        Value::Float(number) => Ok(*number),
        other => fails(format!("{other} is no number")),
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "as the language does it; what does not fit is the largest that does"
)]
pub(super) fn whole(number: f64) -> i64 {
    number as i64
}

pub(super) fn compare(left: &Value, right: &Value) -> Result<Ordering, ExpressionError> {
    match (left, right) {
        (Value::Int(left), Value::Int(right)) => Ok(left.cmp(right)),
        (Value::Text(left), Value::Text(right)) => Ok(left.cmp(right)),
        (Value::Int(_) | Value::Float(_), Value::Int(_) | Value::Float(_)) => {
            let ordering = number(left)?.partial_cmp(&number(right)?);
            ordering.map_or_else(|| fails("not a number cannot be compared"), Ok)
        }
        (left, right) => fails(format!("{left} and {right} cannot be compared")),
    }
}

fn equal(left: &Value, right: &Value) -> bool {
    match (left, right) {
        (Value::Int(_), Value::Float(_)) | (Value::Float(_), Value::Int(_)) => {
            compare(left, right).is_ok_and(Ordering::is_eq)
        }
        (Value::List(left), Value::List(right)) => {
            left.len() == right.len() && left.iter().zip(right).all(|(left, right)| equal(left, right))
        }
        _ => left == right,
    }
}

fn combine(operator: Operator, left: &Value, right: &Value) -> Result<Value, ExpressionError> {
    let is = |accept: fn(Ordering) -> bool| Ok(Value::Bool(accept(compare(left, right)?)));
    match operator {
        Operator::Equal => Ok(Value::Bool(equal(left, right))),
        Operator::NotEqual => Ok(Value::Bool(!equal(left, right))),
        Operator::Less => is(Ordering::is_lt),
        Operator::Greater => is(Ordering::is_gt),
        Operator::LessOrEqual => is(Ordering::is_le),
        Operator::GreaterOrEqual => is(Ordering::is_ge),
        Operator::In => match right {
            Value::List(list) => Ok(Value::Bool(list.iter().any(|item| equal(item, left)))),
            other => fails(format!("nothing is in {other}: it is no list")),
        },
        Operator::Matches | Operator::Contains | Operator::StartsWith | Operator::EndsWith => {
            let (Value::Text(text), Value::Text(part)) = (left, right) else {
                return fails(format!("{left} and {right} are not two texts"));
            };
            Ok(Value::Bool(match operator {
                Operator::Contains => text.contains(&**part),
                Operator::StartsWith => text.starts_with(&**part),
                Operator::EndsWith => text.ends_with(&**part),
                _ => match Regex::new(part) {
                    Ok(regex) => regex.is_match(text),
                    Err(_) => return fails(format!("{part:?} is no regular expression")),
                },
            }))
        }
        Operator::Range => {
            let (Value::Int(from), Value::Int(to)) = (left, right) else {
                return fails(format!("{left} and {right} are not two whole numbers"));
            };
            let size = to.checked_sub(*from).and_then(|size| usize::try_from(size).ok());
            too_long(size.unwrap_or(if to < from { 0 } else { usize::MAX }))?;
            Ok(Value::List((*from..=*to).map(Value::Int).collect()))
        }
        _ => calculate(operator, left, right),
    }
}

/// Whole numbers wrap, as Go's.
fn calculate(operator: Operator, left: &Value, right: &Value) -> Result<Value, ExpressionError> {
    if let (Operator::Add, Value::Text(left), Value::Text(right)) = (operator, left, right) {
        too_long(left.len() + right.len())?;
        return Ok(Value::Text(format!("{left}{right}")));
    }
    if let (Value::Int(left), Value::Int(right)) = (left, right) {
        match operator {
            Operator::Add => return Ok(Value::Int(left.wrapping_add(*right))),
            Operator::Subtract => return Ok(Value::Int(left.wrapping_sub(*right))),
            Operator::Multiply => return Ok(Value::Int(left.wrapping_mul(*right))),
            Operator::Remainder if *right == 0 => return fails("a division by 0"),
            Operator::Remainder => return Ok(Value::Int(left.wrapping_rem(*right))),
            _ => {}
        }
    }
    let (left, right) = (number(left)?, number(right)?);
    Ok(Value::Float(match operator {
        Operator::Add => left + right,
        Operator::Subtract => left - right,
        Operator::Multiply => left * right,
        Operator::Divide => left / right,
        Operator::Power => left.powf(right),
        _ => return fails("`%` is for whole numbers"),
    }))
}

/// A place counted from the end where it is below 0; `None`: there is none.
fn place(index: &Value, length: usize) -> Option<usize> {
    let Value::Int(index) = index else { return None };
    if *index >= 0 {
        return usize::try_from(*index).ok();
    }
    length.checked_sub(usize::try_from(index.unsigned_abs()).ok()?)
}

fn index(of: &Value, index: &Value) -> Result<Value, ExpressionError> {
    let Value::List(list) = of else { return fails(format!("{of} is no list")) };
    let item = place(index, list.len()).and_then(|index| list.get(index));
    item.cloned().map_or_else(|| fails(format!("there is no item {index}")), Ok)
}

/// Of a text, bytes. Bounds beyond the ends are the ends.
fn slice(of: Value, from: Option<&Value>, to: Option<&Value>) -> Result<Value, ExpressionError> {
    let length = match &of {
        Value::Text(text) => text.len(),
        Value::List(list) => list.len(),
        other => return fails(format!("{other} is neither a text nor a list")),
    };
    let bound = |value: Option<&Value>, default: usize| match value {
        None => Ok(default),
        Some(value @ Value::Int(_)) => Ok(place(value, length).unwrap_or(0).min(length)),
        Some(other) => fails(format!("{other} is no whole number")),
    };
    let to = bound(to, length)?;
    let from = bound(from, 0)?.min(to);
    Ok(match of {
        Value::Text(text) => match text.get(from..to) {
            Some(part) => Value::Text(part.to_owned()),
            None => return fails("a slice in the midst of a character"),
        },
        Value::List(list) => Value::List(list.get(from..to).unwrap_or_default().to_vec()),
        _ => Value::Nil,
    })
}

impl fmt::Display for ExpressionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ExpressionError {}
