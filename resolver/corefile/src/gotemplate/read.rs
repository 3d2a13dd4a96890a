//! A template's text to a tree.

use super::{FUNCTIONS, Node, Operand, Pipeline, ReadError};

/// Deepest nesting of blocks and parentheses.
const MAX_DEPTH: usize = 32;

/// Words of the language that are not supported, and functions of Go's that are not.
const FOREIGN: [&str; 10] =
    ["define", "template", "block", "break", "continue", "call", "html", "js", "urlquery", "slice"];

/// Fields of the data as a whole.
const FIELDS: [&str; 12] = [
    "Message", "Zone", "Name", "Regex", "Match", "Group", "Class", "Type", "Question", "Remote", "Var",
    "Meta",
];

#[derive(Debug, Clone, PartialEq)]
enum Kind {
    Word(String),
    /// `.a.b`; empty: the dot alone.
    Fields(Vec<String>),
    /// `$x` and fields.
    Variable(String, Vec<String>),
    Text(String),
    Number(i64),
    Open,
    Close(Vec<String>),
    Pipe,
    Declare,
    Assign,
    Comma,
}

#[derive(Debug, Clone, PartialEq)]
struct Token {
    kind: Kind,
    at: (usize, usize),
}

enum Piece {
    Text(String),
    Action(Vec<Token>, (usize, usize)),
}

fn error(at: (usize, usize), message: impl Into<String>, help: &str) -> ReadError {
    ReadError { at, message: message.into(), help: help.to_owned() }
}

pub(super) fn read(text: &str) -> Result<Vec<Node>, ReadError> {
    let pieces = pieces(text)?;
    let mut reader =
        Reader { pieces: pieces.into_iter().peekable(), variables: Vec::new(), depth: 0, dot_is_data: true };
    let (nodes, ended) = reader.nodes()?;
    match ended {
        None => Ok(nodes),
        Some((word, at)) => Err(error(at, format!("`{word}` closes nothing"), "remove it")),
    }
}

/// Text and actions, with `{{-` and `-}}` done.
fn pieces(text: &str) -> Result<Vec<Piece>, ReadError> {
    let mut pieces = Vec::new();
    let mut at = 0;
    let mut trim_next = false;
    loop {
        let rest = text.get(at..).unwrap_or_default();
        let open = rest.find("{{");
        let mut plain = rest.get(..open.unwrap_or(rest.len())).unwrap_or_default();
        let trims = open.is_some_and(|open| {
            let inside = rest.get(open + 2..).unwrap_or_default();
            inside.starts_with('-')
                && inside.get(1..).is_some_and(|after| after.starts_with(char::is_whitespace))
        });
        if trim_next {
            plain = plain.trim_start();
        }
        if trims {
            plain = plain.trim_end();
        }
        if !plain.is_empty() {
            pieces.push(Piece::Text(plain.to_owned()));
        }
        let Some(open) = open.map(|open| at + open) else { return Ok(pieces) };
        let start = open + if trims { 3 } else { 2 };
        let (tokens, end) = tokens(text, open, start)?;
        let inside = text.get(start..end).unwrap_or_default();
        trim_next = inside.ends_with('-')
            && inside.get(..inside.len() - 1).is_some_and(|head| head.ends_with(char::is_whitespace));
        at = end + 2;
        if let Some(tokens) = tokens {
            pieces.push(Piece::Action(tokens, (open, at)));
        }
    }
}

/// The words of one action, and where its `}}` is. `None`: a comment.
fn tokens(text: &str, open: usize, start: usize) -> Result<(Option<Vec<Token>>, usize), ReadError> {
    let unclosed = || error((open, open + 2), "this `{{` is never closed", "write `}}` at its end");
    let rest = text.get(start..).unwrap_or_default();
    if let Some(comment) = rest.trim_start().strip_prefix("/*") {
        let close = comment.find("*/").ok_or_else(unclosed)?;
        let end = text.len() - comment.len() + close + 2;
        let after = text.get(end..).unwrap_or_default();
        let braces = after.find("}}").ok_or_else(unclosed)?;
        return Ok((None, end + braces));
    }
    let mut tokens = Vec::new();
    let mut at = start;
    loop {
        let rest = text.get(at..).unwrap_or_default();
        let Some(first) = rest.chars().next() else { return Err(unclosed()) };
        if rest.starts_with("}}") {
            return Ok((Some(tokens), at));
        }
        if rest.starts_with("-}}") {
            return Ok((Some(tokens), at + 1));
        }
        if first.is_whitespace() {
            at += first.len_utf8();
            continue;
        }
        let (kind, length) = token(rest, at)?;
        tokens.push(Token { kind, at: (at, at + length) });
        at += length;
    }
}

fn word_length(text: &str) -> usize {
    text.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(text.len())
}

/// `.a.b` at the front: names, and how long.
fn fields(text: &str) -> (Vec<String>, usize) {
    let mut names = Vec::new();
    let mut at = 0;
    while let Some(rest) = text.get(at..).and_then(|rest| rest.strip_prefix('.')) {
        let length = word_length(rest);
        let name = rest.get(..length).unwrap_or_default();
        if name.is_empty() {
            break;
        }
        names.push(name.to_owned());
        at += 1 + length;
    }
    (names, at)
}

fn token(text: &str, at: usize) -> Result<(Kind, usize), ReadError> {
    let strange = || {
        let first = text.chars().next().unwrap_or(' ');
        error((at, at + first.len_utf8()), format!("{first:?} means nothing here"), "see Go's text/template")
    };
    if text.starts_with(":=") {
        return Ok((Kind::Declare, 2));
    }
    let first = text.chars().next().unwrap_or(' ');
    Ok(match first {
        '(' => (Kind::Open, 1),
        ')' => {
            let (names, length) = fields(text.get(1..).unwrap_or_default());
            (Kind::Close(names), 1 + length)
        }
        '|' => (Kind::Pipe, 1),
        '=' => (Kind::Assign, 1),
        ',' => (Kind::Comma, 1),
        '.' => {
            let (names, length) = fields(text);
            (Kind::Fields(names), length.max(1))
        }
        '$' => {
            let length = 1 + word_length(text.get(1..).unwrap_or_default());
            let (names, more) = fields(text.get(length..).unwrap_or_default());
            (Kind::Variable(text.get(..length).unwrap_or_default().to_owned(), names), length + more)
        }
        '"' | '`' | '\'' => {
            let (value, length) =
                quoted(text).ok_or_else(|| error((at, at + 1), "this quote is never closed", "close it"))?;
            match (first, value.chars().next()) {
                ('\'', Some(character)) => (Kind::Number(i64::from(u32::from(character))), length),
                ('\'', None) => return Err(strange()),
                _ => (Kind::Text(value), length),
            }
        }
        '0'..='9' | '-' | '+' => {
            let length = 1 + word_length(text.get(1..).unwrap_or_default());
            let digits = text.get(..length).unwrap_or_default();
            let number = number(digits).ok_or_else(|| {
                error((at, at + length), format!("{digits:?} is not a whole number"), "write it in digits")
            })?;
            (Kind::Number(number), length)
        }
        _ => {
            let length = word_length(text);
            if length == 0 {
                return Err(strange());
            }
            (Kind::Word(text.get(..length).unwrap_or_default().to_owned()), length)
        }
    })
}

fn number(text: &str) -> Option<i64> {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => (-1, digits),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    let digits = digits.replace('_', "").to_lowercase();
    let value = match digits.strip_prefix("0x") {
        Some(digits) => i64::from_str_radix(digits, 16).ok()?,
        None => digits.parse().ok()?,
    };
    Some(sign * value)
}

/// The value of a quoted text at the front, and its length with the quotes.
fn quoted(text: &str) -> Option<(String, usize)> {
    let quote = text.chars().next()?;
    let mut value = Vec::new();
    let mut characters = text.char_indices().skip(1);
    while let Some((at, character)) = characters.next() {
        if character == quote {
            return Some((String::from_utf8(value).ok()?, at + 1));
        }
        let mut utf8 = [0; 4];
        if character != '\\' || quote == '`' {
            value.extend_from_slice(character.encode_utf8(&mut utf8).as_bytes());
            continue;
        }
        let (_, escape) = characters.next()?;
        let mut code = |digits: usize| -> Option<u32> {
            let mut text = String::new();
            for _ in 0..digits {
                text.push(characters.next()?.1);
            }
            u32::from_str_radix(&text, 16).ok()
        };
        match escape {
            'n' => value.push(b'\n'),
            't' => value.push(b'\t'),
            'r' => value.push(b'\r'),
            'x' => value.push(u8::try_from(code(2)?).ok()?),
            'u' => value.extend_from_slice(char::from_u32(code(4)?)?.encode_utf8(&mut utf8).as_bytes()),
            '\\' | '"' | '\'' => value.push(u8::try_from(escape).ok()?),
            _ => return None,
        }
    }
    None
}

struct Reader<I: Iterator<Item = Piece>> {
    pieces: std::iter::Peekable<I>,
    /// Those that are declared so far, the innermost last.
    variables: Vec<String>,
    depth: usize,
    /// `.` is the data as a whole, and its fields are known.
    dot_is_data: bool,
}

/// A word that ended some nodes: `end`, or `else` with what follows it.
type Ended = Option<(String, (usize, usize))>;

impl<I: Iterator<Item = Piece>> Reader<I> {
    /// Nodes up to `end` or `else`, which is returned; `None` at the end of the text.
    fn nodes(&mut self) -> Result<(Vec<Node>, Ended), ReadError> {
        let (nodes, ended, _) = self.nodes_and_rest()?;
        Ok((nodes, ended))
    }

    fn nodes_and_rest(&mut self) -> Result<(Vec<Node>, Ended, Vec<Token>), ReadError> {
        let mut nodes = Vec::new();
        while let Some(piece) = self.pieces.next() {
            let (tokens, at) = match piece {
                Piece::Text(text) => {
                    nodes.push(Node::Text(text));
                    continue;
                }
                Piece::Action(tokens, at) => (tokens, at),
            };
            let Some((first, rest)) = tokens.split_first() else {
                return Err(error(at, "an action that does nothing", "remove it, or write what it shows"));
            };
            match &first.kind {
                Kind::Word(word) if word == "end" || word == "else" => {
                    return Ok((nodes, Some((word.clone(), first.at)), rest.to_vec()));
                }
                Kind::Word(word) if matches!(word.as_str(), "if" | "with" | "range") => {
                    nodes.push(self.block(word, first.at, rest, at)?);
                }
                Kind::Variable(name, fields)
                    if fields.is_empty()
                        && matches!(rest.first().map(|t| &t.kind), Some(Kind::Declare | Kind::Assign)) =>
                {
                    let declares = matches!(rest.first().map(|t| &t.kind), Some(Kind::Declare));
                    if !declares && !self.variables.contains(name) {
                        return Err(undefined(name, first.at));
                    }
                    let value = self.pipeline(rest.get(1..).unwrap_or_default(), at)?;
                    if declares {
                        self.variables.push(name.clone());
                    }
                    nodes.push(Node::Set { name: name.clone(), value, declares });
                }
                _ => nodes.push(Node::Print(self.pipeline(&tokens, at)?)),
            }
        }
        Ok((nodes, None, Vec::new()))
    }

    fn block(
        &mut self,
        word: &str,
        word_at: (usize, usize),
        tokens: &[Token],
        at: (usize, usize),
    ) -> Result<Node, ReadError> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(error(word_at, "blocks are nested too deep", "write less in one record"));
        }
        let declared = self.variables.len();
        let mut tokens = tokens;
        let mut variables = Vec::new();
        if word == "range"
            && let Some(declare) = tokens.iter().position(|token| token.kind == Kind::Declare)
        {
            for token in tokens.get(..declare).unwrap_or_default() {
                match &token.kind {
                    Kind::Variable(name, fields) if fields.is_empty() => variables.push(name.clone()),
                    Kind::Comma => {}
                    _ => {
                        return Err(error(
                            token.at,
                            "a variable is expected here",
                            "write `range $index, $item := ...`",
                        ));
                    }
                }
            }
            tokens = tokens.get(declare + 1..).unwrap_or_default();
        }
        let condition = self.pipeline(tokens, at)?;
        self.variables.extend(variables.iter().cloned());
        let dot_is_data = self.dot_is_data;
        self.dot_is_data &= word == "if";
        let (then, ended, rest) = self.nodes_and_rest()?;
        self.dot_is_data = dot_is_data;
        self.variables.truncate(declared);
        let otherwise = match ended {
            Some((ended, _)) if ended == "end" => Vec::new(),
            Some((_, else_at)) => match rest.split_first() {
                Some((first, rest)) if matches!(&first.kind, Kind::Word(next) if next == "if" || next == word) =>
                {
                    let Kind::Word(next) = &first.kind else {
                        return Err(error(first.at, "an `if` is expected", "write `else if`"));
                    };
                    // Its own `end` closes all.
                    let node = self.block(next, first.at, rest, at)?;
                    self.depth -= 1;
                    return Ok(finish(word, condition, variables, then, vec![node]));
                }
                Some((first, _)) => {
                    return Err(error(
                        first.at,
                        "this cannot stand behind `else`",
                        "write `else` or `else if`",
                    ));
                }
                None => {
                    let (otherwise, ended) = self.nodes()?;
                    self.variables.truncate(declared);
                    match ended {
                        Some((ended, _)) if ended == "end" => otherwise,
                        _ => return Err(error(else_at, "this `else` has no `end`", "write `{{ end }}`")),
                    }
                }
            },
            None => return Err(error(at, format!("this `{word}` has no `end`"), "write `{{ end }}`")),
        };
        self.depth -= 1;
        Ok(finish(word, condition, variables, then, otherwise))
    }

    fn pipeline(&mut self, tokens: &[Token], at: (usize, usize)) -> Result<Pipeline, ReadError> {
        let mut tokens = tokens.iter().peekable();
        let pipeline = self.commands(&mut tokens, at, None)?;
        Ok(pipeline)
    }

    /// Commands up to the end, or to the `)` that closes `opened`.
    fn commands(
        &mut self,
        tokens: &mut std::iter::Peekable<std::slice::Iter<'_, Token>>,
        at: (usize, usize),
        opened: Option<(usize, usize)>,
    ) -> Result<Pipeline, ReadError> {
        let mut pipeline: Pipeline = Vec::new();
        let mut command = Vec::new();
        let mut pipe: Option<(usize, usize)> = None;
        loop {
            let next = tokens.peek().map(|token| (&token.kind, token.at));
            let ends = match &next {
                None => {
                    if let Some(opened) = opened {
                        return Err(error(opened, "this `(` is never closed", "write `)`"));
                    }
                    true
                }
                Some((Kind::Close(_), close_at)) => {
                    if opened.is_none() {
                        return Err(error(*close_at, "`)` closes nothing", "remove it"));
                    }
                    true
                }
                Some((Kind::Pipe, _)) => false,
                Some(_) => {
                    let Some(token) = tokens.next() else { continue };
                    let operand = self.operand(token, tokens, at)?;
                    if let Some(first) = command.first()
                        && !matches!(first, Operand::Function(_))
                        && !is_meta(first)
                    {
                        return Err(error(
                            token.at,
                            "only a function takes arguments",
                            "put a function in front",
                        ));
                    }
                    command.push(operand);
                    continue;
                }
            };
            if command.is_empty() {
                return Err(error(
                    pipe.unwrap_or(opened.unwrap_or(at)),
                    "a value is missing here",
                    "write what is shown",
                ));
            }
            pipeline.push(std::mem::take(&mut command));
            if ends {
                return Ok(pipeline);
            }
            pipe = next.map(|(_, at)| at);
            tokens.next();
        }
    }

    fn operand(
        &mut self,
        token: &Token,
        tokens: &mut std::iter::Peekable<std::slice::Iter<'_, Token>>,
        at: (usize, usize),
    ) -> Result<Operand, ReadError> {
        Ok(match &token.kind {
            Kind::Text(text) => Operand::Text(text.clone()),
            Kind::Number(number) => Operand::Number(*number),
            Kind::Fields(fields) => {
                if self.dot_is_data {
                    check_field(fields, token.at)?;
                }
                Operand::Dot(fields.clone())
            }
            Kind::Variable(name, fields) => {
                if name == "$" {
                    check_field(fields, token.at)?;
                } else if !self.variables.contains(name) {
                    return Err(undefined(name, token.at));
                }
                Operand::Variable(name.clone(), fields.clone())
            }
            Kind::Word(word) => match word.as_str() {
                "true" => Operand::Bool(true),
                "false" => Operand::Bool(false),
                word if FUNCTIONS.contains(&word) => Operand::Function(word.to_owned()),
                word if FOREIGN.contains(&word) => {
                    let message = format!("`{word}` is not supported by this version");
                    return Err(error(token.at, message, "write the record without it"));
                }
                word => {
                    let message = format!("there is no function `{word}`");
                    let help = format!("these are there: {}", FUNCTIONS.join(", "));
                    return Err(error(token.at, message, &help));
                }
            },
            Kind::Open => {
                self.depth += 1;
                if self.depth > MAX_DEPTH {
                    return Err(error(
                        token.at,
                        "parentheses are nested too deep",
                        "write less in one record",
                    ));
                }
                let pipeline = self.commands(tokens, at, Some(token.at))?;
                self.depth -= 1;
                let fields = match tokens.next().map(|token| &token.kind) {
                    Some(Kind::Close(fields)) => fields.clone(),
                    _ => Vec::new(),
                };
                Operand::Group(pipeline, fields)
            }
            Kind::Close(_) | Kind::Pipe | Kind::Declare | Kind::Assign | Kind::Comma => {
                return Err(error(token.at, "this cannot stand here", "see Go's text/template"));
            }
        })
    }
}

fn is_meta(operand: &Operand) -> bool {
    matches!(operand, Operand::Dot(fields) | Operand::Variable(_, fields) if fields.last().is_some_and(|last| last == "Meta"))
}

fn finish(
    word: &str,
    condition: Pipeline,
    variables: Vec<String>,
    then: Vec<Node>,
    otherwise: Vec<Node>,
) -> Node {
    match word {
        "with" => Node::With { value: condition, then, otherwise },
        "range" => Node::Range { variables, list: condition, each: then, otherwise },
        _ => Node::If { condition, then, otherwise },
    }
}

fn undefined(name: &str, at: (usize, usize)) -> ReadError {
    error(at, format!("there is no variable `{name}`"), "declare it before with `:=`")
}

/// Fields of the data as a whole are known; a mistyped one would fail at every query.
fn check_field(fields: &[String], at: (usize, usize)) -> Result<(), ReadError> {
    let Some(first) = fields.first() else { return Ok(()) };
    if FIELDS.contains(&first.as_str()) {
        return Ok(());
    }
    let end = at.0 + at.1.min(at.0 + 1 + first.len()).saturating_sub(at.0);
    let help = format!("these are there: {}", FIELDS.map(|field| format!(".{field}")).join(", "));
    Err(error((at.0, end), format!("there is no field `.{first}`"), &help))
}
