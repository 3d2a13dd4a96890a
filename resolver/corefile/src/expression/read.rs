//! Tokens to a tree, by the precedence of operators; kinds that can never fit are found here.

use regex::Regex;

use super::lex::{Placed, Token, error, lex};
use super::{Kind, Node, Operator, ReadError, Value, functions};

/// Deepest nesting of parts.
const MAX_DEPTH: usize = 64;

/// Most parts: a tree may be as deep as it has parts, and is walked by recursion.
const MAX_NODES: usize = 256;

/// Above this, only signs and `**` bind tighter.
const OF_NOT: u16 = 50;
const OF_SIGN: u16 = 90;

pub(super) fn read(text: &str, variables: &[(String, Kind)]) -> Result<(Node, Kind), ReadError> {
    let tokens = lex(text)?;
    let mut reader =
        Reader { tokens: &tokens, next: 0, variables: variables.to_vec(), items: 0, depth: 0, nodes: 0 };
    let read = reader.sequence()?;
    match reader.peek() {
        (Token::End, _) => Ok(read),
        (_, at) => {
            Err(error(*at, "the expression is over before this", "remove it, or write an operator before it"))
        }
    }
}

type Read = Result<(Node, Kind), ReadError>;

struct Reader<'a> {
    tokens: &'a [Placed],
    next: usize,
    variables: Vec<(String, Kind)>,
    /// Predicates around this place.
    items: usize,
    depth: usize,
    nodes: usize,
}

/// An operator, how tight it binds, and whether from the right.
fn operator(sign: &str) -> Option<(Operator, u16)> {
    Some(match sign {
        "or" | "||" => (Operator::Or, 10),
        "and" | "&&" => (Operator::And, 15),
        "==" => (Operator::Equal, 20),
        "!=" => (Operator::NotEqual, 20),
        "<" => (Operator::Less, 20),
        ">" => (Operator::Greater, 20),
        "<=" => (Operator::LessOrEqual, 20),
        ">=" => (Operator::GreaterOrEqual, 20),
        "in" => (Operator::In, 20),
        "matches" => (Operator::Matches, 20),
        "contains" => (Operator::Contains, 20),
        "startsWith" => (Operator::StartsWith, 20),
        "endsWith" => (Operator::EndsWith, 20),
        ".." => (Operator::Range, 25),
        "+" => (Operator::Add, 30),
        "-" => (Operator::Subtract, 30),
        "*" => (Operator::Multiply, 60),
        "/" => (Operator::Divide, 60),
        "%" => (Operator::Remainder, 60),
        "**" | "^" => (Operator::Power, 100),
        "??" => (Operator::Else, 500),
        _ => return None,
    })
}

impl Operator {
    fn is_comparison(self) -> bool {
        matches!(self, Self::Less | Self::Greater | Self::LessOrEqual | Self::GreaterOrEqual)
    }

    fn may_be_negated(self) -> bool {
        matches!(self, Self::In | Self::Matches | Self::Contains | Self::StartsWith | Self::EndsWith)
    }
}

impl Kind {
    fn is_number(self) -> bool {
        matches!(self, Self::Any | Self::Int | Self::Float)
    }

    fn fits(self, wanted: Self) -> bool {
        self == wanted || self == Self::Any || wanted == Self::Any
    }

    fn of_both(self, other: Self) -> Self {
        if self == other { self } else { Self::Any }
    }

    fn shown(self) -> &'static str {
        match self {
            Self::Any => "a value",
            Self::Bool => "true or false",
            Self::Int => "a whole number",
            Self::Float => "a number",
            Self::Text => "a text",
            Self::List => "a list",
        }
    }
}

/// What both sides come to; `None`: they never fit.
fn combine(operator: Operator, left: Kind, right: Kind) -> Option<Kind> {
    let numbers = left.is_number() && right.is_number();
    let texts = left.fits(Kind::Text) && right.fits(Kind::Text);
    match operator {
        Operator::Or | Operator::And => {
            (left.fits(Kind::Bool) && right.fits(Kind::Bool)).then_some(Kind::Bool)
        }
        Operator::Equal | Operator::NotEqual => (numbers || left.fits(right)).then_some(Kind::Bool),
        Operator::In => right.fits(Kind::List).then_some(Kind::Bool),
        Operator::Matches | Operator::Contains | Operator::StartsWith | Operator::EndsWith => {
            texts.then_some(Kind::Bool)
        }
        Operator::Range => (left.fits(Kind::Int) && right.fits(Kind::Int)).then_some(Kind::List),
        Operator::Remainder => (left.fits(Kind::Int) && right.fits(Kind::Int)).then_some(Kind::Int),
        Operator::Divide | Operator::Power => numbers.then_some(Kind::Float),
        Operator::Subtract | Operator::Multiply | Operator::Add if numbers => Some(match (left, right) {
            (Kind::Any, _) | (_, Kind::Any) => Kind::Any,
            (Kind::Int, Kind::Int) => Kind::Int,
            _ => Kind::Float,
        }),
        Operator::Add => texts.then_some(left.of_both(right)),
        Operator::Subtract | Operator::Multiply => None,
        Operator::Less | Operator::Greater | Operator::LessOrEqual | Operator::GreaterOrEqual => {
            (numbers || texts).then_some(Kind::Bool)
        }
        Operator::Else => Some(left.of_both(right)),
    }
}

impl<'a> Reader<'a> {
    fn peek(&self) -> &'a Placed {
        // The last token is `End`, and is never stepped over.
        const END: &Placed = &(Token::End, (0, 0));
        self.tokens.get(self.next.min(self.tokens.len().saturating_sub(1))).unwrap_or(END)
    }

    fn take(&mut self) -> &'a Placed {
        let token = self.peek();
        self.next += 1;
        token
    }

    fn is_sign(&self, sign: &str) -> bool {
        matches!(self.peek(), (Token::Sign(found), _) if *found == sign)
    }

    fn accept(&mut self, sign: &str) -> bool {
        let is = self.is_sign(sign);
        self.next += usize::from(is);
        is
    }

    fn expect(&mut self, sign: &str) -> Result<(), ReadError> {
        if self.accept(sign) {
            return Ok(());
        }
        Err(error(self.peek().1, format!("`{sign}` is expected here"), &format!("write `{sign}`")))
    }

    /// `a; b`: the last counts, and the others do nothing.
    fn sequence(&mut self) -> Read {
        let mut read = self.expression(0)?;
        while self.accept(";") {
            if matches!(self.peek(), (Token::End, _)) {
                break;
            }
            read = self.expression(0)?;
        }
        Ok(read)
    }

    /// One part more.
    fn count(&mut self) -> Result<(), ReadError> {
        self.nodes += 1;
        if self.depth <= MAX_DEPTH && self.nodes <= MAX_NODES {
            return Ok(());
        }
        Err(error(self.peek().1, "the expression has too many parts", "write less in one expression"))
    }

    fn expression(&mut self, least: u16) -> Read {
        self.depth += 1;
        self.count()?;
        let read = self.operators(least);
        self.depth -= 1;
        read
    }

    fn operators(&mut self, least: u16) -> Read {
        if least == 0 && self.accept("let") {
            return self.declaration();
        }
        if least == 0 && self.accept("if") {
            return self.branches();
        }
        let mut left = self.primary()?;
        let mut before = None;
        while let (Token::Sign(sign), at) = self.peek() {
            if *sign == "|" {
                if least > 0 {
                    break;
                }
                self.next += 1;
                left = self.piped(left)?;
                continue;
            }
            let negated = *sign == "not";
            let after_not = match self.tokens.get(self.next + 1) {
                Some((Token::Sign(sign), _)) if negated => {
                    operator(sign).filter(|(found, _)| found.may_be_negated())
                }
                _ => None,
            };
            let found = if negated { after_not } else { operator(sign) };
            let Some((operator, tight)) = found.filter(|(_, tight)| *tight >= least) else { break };
            if before == Some(Operator::Else) && operator != Operator::Else {
                return Err(error(
                    *at,
                    "`??` and another operator stand side by side",
                    "put one of them into parentheses",
                ));
            }
            before = Some(operator);
            self.next += 1 + usize::from(negated);
            let right_least = if operator == Operator::Power { tight } else { tight + 1 };
            let right = self.expression(right_least)?;
            left = self.binary(operator, left, right, *at)?;
            if negated {
                left = (Node::Not(Box::new(left.0)), Kind::Bool);
            }
            if operator.is_comparison() {
                left = self.compared_on(left, tight)?;
            }
        }
        if least == 0 { self.conditional(left) } else { Ok(left) }
    }

    /// `1 < x < 3`: the middle is compared with both.
    fn compared_on(&mut self, first: (Node, Kind), tight: u16) -> Read {
        let mut all = first;
        loop {
            let (Token::Sign(sign), at) = self.peek() else { return Ok(all) };
            let Some((operator, _)) = operator(sign).filter(|(operator, _)| operator.is_comparison()) else {
                return Ok(all);
            };
            let middle = match &all.0 {
                Node::Binary(Operator::And, parts) => right_of(&parts.1),
                node => right_of(node),
            };
            let Some(middle) = middle.cloned() else { return Ok(all) };
            self.next += 1;
            let right = self.expression(tight + 1)?;
            let next = self.binary(operator, (middle, Kind::Any), right, *at)?;
            all = (Node::Binary(Operator::And, Box::new((all.0, next.0))), Kind::Bool);
        }
    }

    fn binary(
        &self,
        operator: Operator,
        left: (Node, Kind),
        right: (Node, Kind),
        at: (usize, usize),
    ) -> Read {
        if let (Operator::Matches, Node::Literal(Value::Text(pattern))) = (operator, &right.0)
            && Regex::new(pattern).is_err()
        {
            return Err(error(at, "what stands behind it is no regular expression", "write one of RE2's"));
        }
        let kind = combine(operator, left.1, right.1).ok_or_else(|| {
            let message = format!("this is no operator of {} and {}", left.1.shown(), right.1.shown());
            error(at, message, "convert one by `int(...)`, `float(...)` or `string(...)`")
        })?;
        Ok((Node::Binary(operator, Box::new((left.0, right.0))), kind))
    }

    fn conditional(&mut self, condition: (Node, Kind)) -> Read {
        let at = self.peek().1;
        if !self.accept("?") {
            return Ok(condition);
        }
        // `a ?: b`
        let then = if self.is_sign(":") { condition.clone() } else { self.expression(0)? };
        self.expect(":")?;
        let otherwise = self.expression(0)?;
        let whole = choice(condition, then, otherwise, at)?;
        self.conditional(whole)
    }

    fn branches(&mut self) -> Read {
        let at = self.peek().1;
        let condition = self.expression(0)?;
        self.expect("{")?;
        let then = self.sequence()?;
        self.expect("}")?;
        self.expect("else")?;
        let otherwise = if self.accept("if") {
            self.depth += 1;
            self.count()?;
            let read = self.branches()?;
            self.depth -= 1;
            read
        } else {
            self.expect("{")?;
            let read = self.sequence()?;
            self.expect("}")?;
            read
        };
        choice(condition, then, otherwise, at)
    }

    fn declaration(&mut self) -> Read {
        let (Token::Name(name), _) = self.take() else {
            return Err(error(self.peek().1, "`let` needs a name", "write `let NAME = VALUE; ...`"));
        };
        self.expect("=")?;
        let value = self.expression(0)?;
        self.expect(";")?;
        self.variables.push((name.clone(), value.1));
        let rest = self.sequence();
        self.variables.pop();
        let rest = rest?;
        Ok((Node::Let(name.clone(), Box::new((value.0, rest.0))), rest.1))
    }

    fn primary(&mut self) -> Read {
        let (token, at) = self.take();
        let read = match token {
            Token::Int(number) => (Node::Literal(Value::Int(*number)), Kind::Int),
            Token::Float(number) => (Node::Literal(Value::Float(*number)), Kind::Float),
            Token::Text(text) => (Node::Literal(Value::Text(text.clone())), Kind::Text),
            Token::Name(name) => self.name(name, *at)?,
            Token::Sign("not" | "!") => {
                let (node, kind) = self.expression(OF_NOT)?;
                if !kind.fits(Kind::Bool) {
                    let message = format!("`not` of {}", kind.shown());
                    return Err(error(*at, message, "write a condition behind it"));
                }
                (Node::Not(Box::new(node)), Kind::Bool)
            }
            Token::Sign(sign @ ("-" | "+")) => {
                let (node, kind) = self.expression(OF_SIGN)?;
                if !kind.is_number() {
                    return Err(error(
                        *at,
                        format!("a sign before {}", kind.shown()),
                        "write a number behind it",
                    ));
                }
                if *sign == "-" { (Node::Negate(Box::new(node)), kind) } else { (node, kind) }
            }
            Token::Sign("(") => {
                let read = self.sequence()?;
                self.expect(")")?;
                read
            }
            Token::Sign("[") => {
                let mut items = Vec::new();
                while !self.accept("]") {
                    items.push(self.expression(0)?.0);
                    if !self.is_sign("]") {
                        self.expect(",")?;
                    }
                }
                (Node::List(items), Kind::List)
            }
            Token::Sign("#") if self.items > 0 => match self.peek() {
                (Token::Name(word), _) if word == "index" => {
                    self.next += 1;
                    (Node::ItemIndex, Kind::Int)
                }
                _ => (Node::Item, Kind::Any),
            },
            Token::Sign("#") => {
                return Err(error(
                    *at,
                    "`#` is an item of a list, and there is none here",
                    "write it in `any(LIST, ...)` and such",
                ));
            }
            Token::Sign("{") => {
                return Err(error(*at, "maps are not supported by this version", "use `? :`, or lists"));
            }
            Token::Sign(_) | Token::End => {
                return Err(error(
                    *at,
                    "a value is missing here",
                    "write one, or remove what stands before it",
                ));
            }
        };
        self.postfix(read)
    }

    fn name(&mut self, name: &str, at: (usize, usize)) -> Read {
        match name {
            "true" => return Ok((Node::Literal(Value::Bool(true)), Kind::Bool)),
            "false" => return Ok((Node::Literal(Value::Bool(false)), Kind::Bool)),
            "nil" => return Ok((Node::Literal(Value::Nil), Kind::Any)),
            _ => {}
        }
        if self.is_sign("(") {
            return self.call(name, at, None);
        }
        match self.variables.iter().rev().find(|(known, _)| known == name) {
            Some((name, kind)) => Ok((Node::Variable(name.clone()), *kind)),
            None if functions::find(name).is_some() => {
                Err(error(at, format!("`{name}` is a function"), &format!("write `{name}()`")))
            }
            None => Err(error(at, format!("there is no variable `{name}`"), "declare it before with `var`")),
        }
    }

    fn piped(&mut self, first: (Node, Kind)) -> Read {
        self.count()?;
        match self.take() {
            (Token::Name(name), at) => {
                let read = self.call(name, *at, Some(first))?;
                self.postfix(read)
            }
            (_, at) => Err(error(*at, "`|` needs a function behind it", "write `VALUE | FUNCTION(...)`")),
        }
    }

    /// A call; the opening parenthesis comes next.
    fn call(&mut self, name: &str, at: (usize, usize), first: Option<(Node, Kind)>) -> Read {
        if functions::FOREIGN.contains(&name) {
            let message = format!("the function `{name}` is not supported by this version");
            return Err(error(at, message, "do without it, or make the records of a file"));
        }
        let predicate = functions::predicate(name);
        let function = functions::find(name);
        if predicate.is_none() && function.is_none() {
            return Err(error(
                at,
                format!("there is no function `{name}`"),
                "see docs/directives/template.md",
            ));
        }
        self.expect("(")?;
        let mut arguments: Vec<(Node, Kind)> = first.into_iter().collect();
        let mut places = vec![at; arguments.len()];
        while !self.accept(")") {
            places.push(self.peek().1);
            let is_condition = predicate.is_some() && arguments.len() == 1;
            arguments.push(if is_condition { self.condition()? } else { self.expression(0)? });
            if !self.is_sign(")") {
                self.expect(",")?;
            }
        }
        if let Some(predicate) = predicate {
            let Ok([(list, kind), condition]) = <[_; 2]>::try_from(arguments) else {
                return Err(error(
                    at,
                    format!("`{name}` takes a list and a condition"),
                    &format!("write `{name}(LIST, ...)`"),
                ));
            };
            if !kind.fits(Kind::List) {
                return Err(error(at, format!("`{name}` of {}", kind.shown()), "give it a list"));
            }
            let gives = match predicate {
                functions::Predicate::Filter | functions::Predicate::Map => Kind::List,
                functions::Predicate::Count | functions::Predicate::FindIndex => Kind::Int,
                functions::Predicate::Find => Kind::Any,
                _ => Kind::Bool,
            };
            return Ok((Node::Predicate(predicate, Box::new((list, condition.0))), gives));
        }
        let Some(function) = function else { return Err(error(at, "no function", "remove it")) };
        let (least, most) = function.count;
        if arguments.len() < least || arguments.len() > most {
            let message = format!("`{name}` takes {least} to {most} arguments");
            return Err(error(at, message, "see https://expr-lang.org/docs/language-definition"));
        }
        for (index, ((_, kind), place)) in arguments.iter().zip(&places).enumerate() {
            let wanted = function.takes.get(index).or(function.takes.last()).copied().unwrap_or(Kind::Any);
            if !kind.fits(wanted) {
                let message = format!("`{name}` takes {} here, and this is {}", wanted.shown(), kind.shown());
                return Err(error(*place, message, "convert it by `int(...)` or `string(...)`"));
            }
        }
        Ok((Node::Call(function, arguments.into_iter().map(|(node, _)| node).collect()), function.gives))
    }

    /// What is said of each item: in braces or not.
    fn condition(&mut self) -> Read {
        self.items += 1;
        let in_braces = self.accept("{");
        let read = if in_braces { self.sequence() } else { self.expression(0) };
        self.items -= 1;
        if in_braces {
            self.expect("}")?;
        }
        read
    }

    /// `[index]` and `[from:to]`; fields there are none.
    fn postfix(&mut self, read: (Node, Kind)) -> Read {
        let (mut node, mut kind) = read;
        loop {
            let at = self.peek().1;
            if self.is_sign(".") || self.is_sign("?.") {
                return Err(error(at, "a value has no fields here", "use a function"));
            }
            if !self.accept("[") {
                return Ok((node, kind));
            }
            if !kind.fits(Kind::List) && kind != Kind::Text {
                return Err(error(at, format!("{} has no items", kind.shown()), "use a list"));
            }
            self.count()?;
            let from = if self.is_sign(":") { None } else { Some(self.expression(0)?.0) };
            if self.accept(":") {
                let to = if self.is_sign("]") { None } else { Some(self.expression(0)?.0) };
                self.expect("]")?;
                node = Node::Slice(Box::new((node, from, to)));
                continue;
            }
            self.expect("]")?;
            let Some(index) = from else { return Ok((node, kind)) };
            node = Node::Index(Box::new((node, index)));
            kind = Kind::Any;
        }
    }
}

fn right_of(node: &Node) -> Option<&Node> {
    if let Node::Binary(_, parts) = node { Some(&parts.1) } else { None }
}

fn choice(condition: (Node, Kind), then: (Node, Kind), otherwise: (Node, Kind), at: (usize, usize)) -> Read {
    if !condition.1.fits(Kind::Bool) {
        return Err(error(
            at,
            format!("{} is no condition", condition.1.shown()),
            "compare it with something",
        ));
    }
    Ok((Node::If(Box::new((condition.0, then.0, otherwise.0))), then.1.of_both(otherwise.1)))
}
