//! Text to words, by the rules of the Caddyfile lexer that CoreDNS 1.15.0 uses (coredns/caddy 1.1.4).
//!
//! - White space (Unicode's) parts words; a carriage return is dropped wherever it stands outside quotes.
//! - `"` at the start of a word quotes up to the next `"`, over lines too; `\"` is a quote in it, and no other
//!   escape exists. What follows the closing quote is a new word. Inside a word `"` is an ordinary character.
//! - `#` at the start of a word is a comment to the end of the line. Inside a word it drops the rest of that word
//!   **only**; what comes after the next white space is read again. That surprises, so it is warned of.
//! - A byte order mark at the start of the file is skipped. There is no line continuation.
//!
//! One difference: a quote that is never closed is an error here, and an accepted word in CoreDNS.
//!
//! Not here: placeholders, environment variables, what words mean.

use crate::report::{Diagnostic, Span};

/// What a word is to the parser.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Text, quoted or not.
    Word,
    /// `{` alone and not quoted.
    Open,
    /// `}` alone and not quoted.
    Close,
}

/// A word with its place in the text as the user wrote it; substitution changes `text` and never `span`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) kind: Kind,
    pub(crate) text: String,
    pub(crate) span: Span,
    /// No other word of the same file stands before it on its line.
    pub(crate) first_on_line: bool,
    pub(crate) quoted: bool,
}

/// Cuts a file into words. `source` is the file's number in the report.
pub(crate) fn lex(source: usize, text: &str) -> (Vec<Token>, Vec<Diagnostic>) {
    let mut lexer = Lexer {
        source,
        end: text.len(),
        characters: text.char_indices().peekable(),
        line_started: true,
        diagnostics: Vec::new(),
    };
    if text.starts_with('\u{feff}') {
        lexer.characters.next();
    }
    let mut tokens = Vec::new();
    while let Some(token) = lexer.next_token() {
        tokens.push(token);
    }
    (tokens, lexer.diagnostics)
}

struct Lexer<'a> {
    source: usize,
    end: usize,
    characters: std::iter::Peekable<std::str::CharIndices<'a>>,
    /// A line began since the last word.
    line_started: bool,
    diagnostics: Vec<Diagnostic>,
}

impl Lexer<'_> {
    fn next_token(&mut self) -> Option<Token> {
        loop {
            let (start, character) = self.characters.next()?;
            match character {
                '\n' => self.line_started = true,
                c if c.is_whitespace() => {}
                '#' => self.skip_line(),
                '"' => return Some(self.quoted(start)),
                first => return Some(self.word(start, first)),
            }
        }
    }

    /// Up to the end of the line, which is left in place.
    fn skip_line(&mut self) {
        while self.characters.next_if(|&(_, c)| c != '\n').is_some() {}
    }

    fn word(&mut self, start: usize, first: char) -> Token {
        let mut text = String::from(first);
        let mut end = start + first.len_utf8();
        let mut dropped_from = None;
        while let Some((at, character)) = self.characters.next_if(|&(_, c)| c == '\r' || !c.is_whitespace()) {
            if character == '#' && dropped_from.is_none() {
                dropped_from = Some(at);
            }
            if character != '\r' {
                if dropped_from.is_none() {
                    text.push(character);
                }
                end = at + character.len_utf8();
            }
        }
        if let Some(from) = dropped_from {
            self.diagnostics.push(
                Diagnostic::warning(
                    Span::new(self.source, from, end),
                    "`#` inside a word drops the rest of that word, and nothing more",
                )
                .label("dropped, as CoreDNS does; what follows on the line is still read")
                .help("put a space before `#` to start a comment, or quote the word to keep it"),
            );
        }
        let kind = match text.as_str() {
            "{" => Kind::Open,
            "}" => Kind::Close,
            _ => Kind::Word,
        };
        self.token(kind, text, start, dropped_from.unwrap_or(end), false)
    }

    fn quoted(&mut self, start: usize) -> Token {
        let mut text = String::new();
        let mut end = None;
        while let Some((at, character)) = self.characters.next() {
            match character {
                '"' => {
                    end = Some(at + 1);
                    break;
                }
                '\\' if self.characters.next_if(|&(_, c)| c == '"').is_some() => text.push('"'),
                '\\' => {
                    // Not an escape: the backslash and what follows stay, so that `\\"` closes as in CoreDNS.
                    text.push('\\');
                    if let Some((_, next)) = self.characters.next() {
                        text.push(next);
                    }
                }
                c => text.push(c),
            }
        }
        let end = end.unwrap_or_else(|| {
            self.diagnostics.push(
                Diagnostic::error(Span::new(self.source, start, start + 1), "a quote is never closed")
                    .label("opened here")
                    .help("close it with `\"`; a quote inside quotes is written `\\\"`"),
            );
            self.end
        });
        self.token(Kind::Word, text, start, end, true)
    }

    fn token(&mut self, kind: Kind, text: String, start: usize, end: usize, quoted: bool) -> Token {
        let first_on_line = std::mem::take(&mut self.line_started);
        Token { kind, text, span: Span::new(self.source, start, end), first_on_line, quoted }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Words with their lines, counted from 1.
    fn words(text: &str) -> Vec<(usize, String)> {
        let (tokens, diagnostics) = lex(0, text);
        assert!(diagnostics.is_empty(), "{text:?}: {diagnostics:?}");
        tokens
            .into_iter()
            .map(|token| (text[..token.span.start].matches('\n').count() + 1, token.text))
            .collect()
    }

    fn expect(text: &str, expected: &[(usize, &str)]) {
        let expected: Vec<_> = expected.iter().map(|&(line, word)| (line, word.to_owned())).collect();
        assert_eq!(words(text), expected, "{text:?}");
    }

    #[test]
    fn parts_words_at_white_space_and_keeps_their_lines() {
        expect("", &[]);
        expect(" \t\n", &[]);
        expect("zone:53", &[(1, "zone:53")]);
        expect("zone:53\n\n  log", &[(1, "zone:53"), (3, "log")]);
        expect("zone { log }", &[(1, "zone"), (1, "{"), (1, "log"), (1, "}")]);
        expect("zone {\n log\n}", &[(1, "zone"), (1, "{"), (2, "log"), (3, "}")]);
        expect("a\u{a0}b\u{2003}c", &[(1, "a"), (1, "b"), (1, "c")]);
    }

    #[test]
    fn skips_comments_to_the_end_of_their_line() {
        expect(
            "a {\n#one\n b\n # two \"\n c # three }\n}",
            &[(1, "a"), (1, "{"), (3, "b"), (5, "c"), (6, "}")],
        );
        expect("# all", &[]);
    }

    #[test]
    fn keeps_what_quotes_hold_and_unescapes_only_quotes() {
        expect(r#"a "two words" b"#, &[(1, "a"), (1, "two words"), (1, "b")]);
        expect(r#"A "the \"inner\" one" B"#, &[(1, "A"), (1, r#"the "inner" one"#), (1, "B")]);
        expect(r#""don't\escape""#, &[(1, r"don't\escape")]);
        expect(r#""don't\\escape""#, &[(1, r"don't\\escape")]);
        expect(r#""ends\\" b"#, &[(1, r"ends\\"), (1, "b")]);
        expect(r#"empty "" word"#, &[(1, "empty"), (1, ""), (1, "word")]);
        expect(r#""a"b"#, &[(1, "a"), (1, "b")]);
        expect(r#"a"b"c"#, &[(1, r#"a"b"c"#)]);
        expect(r#""not # a comment""#, &[(1, "not # a comment")]);
    }

    #[test]
    fn a_quote_over_two_lines_does_not_start_a_line_after_it() {
        let (tokens, _) = lex(0, "log \"a\n b\" {\n x\n}");
        let starts: Vec<_> = tokens.iter().map(|token| token.first_on_line).collect();
        assert_eq!(starts, [true, false, false, true, true]);
    }

    #[test]
    fn drops_carriage_returns_and_a_byte_order_mark() {
        expect("no\r\nreturns\r\n", &[(1, "no"), (2, "returns")]);
        expect("\u{feff}:8080", &[(1, ":8080")]);
        expect("a\rb", &[(1, "ab")]);
    }

    #[test]
    fn reads_on_after_a_hash_inside_a_word_and_warns() {
        let (tokens, diagnostics) = lex(0, "forward . 9.9.9.9#fast one\nlog");
        let texts: Vec<_> = tokens.iter().map(|token| token.text.as_str()).collect();
        assert_eq!(texts, ["forward", ".", "9.9.9.9", "one", "log"]);
        assert_eq!(diagnostics.len(), 1);
        assert_eq!(diagnostics[0].span(), Some(Span::new(0, 17, 22)));
    }

    #[test]
    fn rejects_a_quote_that_is_never_closed() {
        let (tokens, diagnostics) = lex(0, "log \"open\n}");
        assert_eq!(tokens.len(), 2);
        assert_eq!(diagnostics[0].span(), Some(Span::new(0, 4, 5)));
    }

    #[test]
    fn takes_only_bare_braces_for_braces() {
        let (tokens, _) = lex(0, "{ } \"{\" {} a{ {$X}");
        let kinds: Vec<_> = tokens.iter().map(|token| token.kind).collect();
        assert_eq!(kinds, [Kind::Open, Kind::Close, Kind::Word, Kind::Word, Kind::Word, Kind::Word]);
    }
}
