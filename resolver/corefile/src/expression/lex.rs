//! Text to tokens.

use super::ReadError;

/// Longest expression, in bytes.
const MAX_TEXT: usize = 10_000;

/// Words that are operators.
pub(super) const WORDS: [&str; 11] =
    ["not", "in", "or", "and", "matches", "contains", "startsWith", "endsWith", "let", "if", "else"];

/// Operators and brackets, longer ones first.
const SIGNS: [&str; 32] = [
    "**", "==", "!=", "<=", ">=", "&&", "||", "??", "?.", "..", "+", "-", "*", "/", "%", "^", "<", ">", "!",
    "?", ":", ";", ",", ".", "#", "|", "=", "(", ")", "[", "]", "{",
];

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Token {
    Int(i64),
    Float(f64),
    Text(String),
    Name(String),
    /// A sign, or one of [`WORDS`].
    Sign(&'static str),
    End,
}

/// A token, and from which byte to which it stands.
pub(super) type Placed = (Token, (usize, usize));

/// The last token is [`Token::End`].
pub(super) fn lex(text: &str) -> Result<Vec<Placed>, ReadError> {
    if text.len() > MAX_TEXT {
        return Err(error(
            (0, text.len()),
            format!("an expression of more than {MAX_TEXT} bytes"),
            "write a shorter one",
        ));
    }
    let mut tokens = Vec::new();
    let mut at = 0;
    while let Some(rest) = text.get(at..).filter(|rest| !rest.is_empty()) {
        let blank = rest.len() - rest.trim_start().len();
        if blank > 0 {
            at += blank;
            continue;
        }
        if rest.starts_with("//") {
            at += rest.find('\n').unwrap_or(rest.len());
            continue;
        }
        if rest.starts_with("/*") {
            let end = rest
                .find("*/")
                .ok_or_else(|| error((at, at + 2), "this comment is never closed", "write `*/`"))?;
            at += end + 2;
            continue;
        }
        let (token, length) =
            token(rest).map_err(|(length, message, help)| error((at, at + length), message, help))?;
        tokens.push((token, (at, at + length)));
        at += length;
    }
    tokens.push((Token::End, (text.len(), text.len())));
    Ok(tokens)
}

type Wrong = (usize, String, &'static str);

fn token(rest: &str) -> Result<(Token, usize), Wrong> {
    let first = rest.chars().next().unwrap_or_default();
    let after_dot = rest.strip_prefix('.').and_then(|rest| rest.bytes().next());
    if first.is_ascii_digit() || after_dot.is_some_and(|byte| byte.is_ascii_digit()) {
        return number(rest);
    }
    if matches!(first, '\'' | '"' | '`') {
        return quoted(rest, first);
    }
    if is_part_of_name(first) {
        let length = rest.find(|c| !is_part_of_name(c)).unwrap_or(rest.len());
        let word = rest.get(..length).unwrap_or_default();
        let sign = WORDS.into_iter().find(|known| *known == word);
        return Ok((sign.map_or_else(|| Token::Name(word.to_owned()), Token::Sign), length));
    }
    if let Some(sign) = SIGNS.into_iter().find(|sign| rest.starts_with(sign)) {
        return Ok((Token::Sign(sign), sign.len()));
    }
    if first == '}' {
        return Ok((Token::Sign("}"), 1));
    }
    Err((first.len_utf8(), format!("`{first}` means nothing here"), "see https://expr-lang.org"))
}

fn is_part_of_name(c: char) -> bool {
    c == '_' || c == '$' || c.is_alphanumeric()
}

fn number(rest: &str) -> Result<(Token, usize), Wrong> {
    let lower = rest.to_ascii_lowercase();
    let radix = [("0x", 16), ("0o", 8), ("0b", 2)].into_iter().find(|(prefix, _)| lower.starts_with(prefix));
    let run = |from: usize, accept: fn(u8) -> bool| {
        let tail = lower.as_bytes().get(from..).unwrap_or_default();
        from + tail.iter().take_while(|byte| accept(**byte) || **byte == b'_').count()
    };
    let mut is_float = false;
    let length = if radix.is_some() {
        run(2, |byte| byte.is_ascii_hexdigit())
    } else {
        let digit = |byte: u8| byte.is_ascii_digit();
        let mut end = run(0, digit);
        let tail = lower.get(end..).unwrap_or_default();
        // `1..3` is a range.
        if tail.starts_with('.') && !tail.starts_with("..") {
            is_float = true;
            end = run(end + 1, digit);
        }
        let tail = lower.get(end..).unwrap_or_default();
        if let Some(power) = tail.strip_prefix('e') {
            is_float = true;
            end = run(end + 1 + usize::from(power.starts_with(['+', '-'])), digit);
        }
        end
    };
    let runs_on = lower.get(length..).and_then(|tail| tail.chars().next()).is_some_and(is_part_of_name);
    let end = if runs_on { run(length, |byte| byte.is_ascii_alphanumeric()) } else { length };
    let digits = lower.get(radix.map_or(0, |_| 2)..length).unwrap_or_default().replace('_', "");
    let token = match radix {
        _ if runs_on => None,
        Some((_, radix)) => i64::from_str_radix(&digits, radix).ok().map(Token::Int),
        None if is_float => digits.parse().ok().filter(|number: &f64| number.is_finite()).map(Token::Float),
        None => digits.parse().ok().map(Token::Int),
    };
    token.map(|token| (token, length)).ok_or((
        end,
        "this is no number".to_owned(),
        "write one such as `30` or `1.5`",
    ))
}

fn quoted(rest: &str, quote: char) -> Result<(Token, usize), Wrong> {
    let open = (rest.len(), "this text is never closed".to_owned(), "put a quote behind it");
    let inside = rest.get(1..).unwrap_or_default();
    let mut text = String::new();
    let mut characters = inside.char_indices();
    while let Some((at, character)) = characters.next() {
        if character == quote {
            return Ok((Token::Text(text), at + 2));
        }
        if character != '\\' || quote == '`' {
            text.push(character);
            continue;
        }
        let wrong = |at: usize| (at + 2, "an unknown escape".to_owned(), "write `\\\\` for a backslash");
        let Some((at, escape)) = characters.next() else { return Err(open) };
        let mut code = |digits: usize, radix| {
            let digits: String = characters.by_ref().take(digits).map(|(_, digit)| digit).collect();
            u32::from_str_radix(&digits, radix).ok().and_then(char::from_u32)
        };
        let character = match escape {
            'n' => Some('\n'),
            't' => Some('\t'),
            'r' => Some('\r'),
            'a' => Some('\x07'),
            'b' => Some('\x08'),
            'f' => Some('\x0c'),
            'v' => Some('\x0b'),
            '\\' | '\'' | '"' => Some(escape),
            'x' => code(2, 16).filter(char::is_ascii),
            'u' => code(4, 16),
            'U' => code(8, 16),
            _ => None,
        };
        text.push(character.ok_or_else(|| wrong(at))?);
    }
    Err(open)
}

pub(super) fn error(at: (usize, usize), message: impl Into<String>, help: &str) -> ReadError {
    ReadError { at, message: message.into(), help: help.to_owned() }
}
