//! Words to server blocks and their directives, by the rules of the Caddyfile parser that CoreDNS 1.15.0 uses.
//!
//! - Keys up to `{`, which may stand on the next line; a comma at the end of a key lets them go on there. A file
//!   with one block may leave the braces out.
//! - A directive is a line; `{` at its end opens its options, `}` stands on a line of its own (`{ }` is allowed).
//! - `(name) { ... }` keeps words for `import name`. `import PATTERN` reads files relative to the importing one.
//!   Imported words take the place of the two, so a file may hold blocks, directives or options.
//!
//! Stricter than CoreDNS where it accepts by accident: a `}` too many, or one too few at the end of the file, a block
//! without braces after another, words on the line of a `}`. Braces count as they are written, never as they come
//! out of a variable. Imports are bounded in depth and number, and an import of itself is found at once.
//!
//! A mistake in the structure ends the reading; nothing behind it could be trusted.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use crate::context::Context;
use crate::environment::{expand_pattern, is_pattern, is_simple_pattern};
use crate::lexer::{Kind, Token, lex};
use crate::placeholders::expand;
use crate::report::{Diagnostic, Source, Span, shown};

/// Most imports in all (CoreDNS: 10000 of snippets, 100000 of files).
pub const MAX_IMPORTS: usize = 10_000;
/// Deepest import in an import.
pub const MAX_IMPORT_DEPTH: usize = 100;
/// Most words in all, imported ones counted each time.
pub const MAX_WORDS: usize = 1_000_000;

/// `KEY... { DIRECTIVE... }`.
#[derive(Debug)]
pub(crate) struct Block {
    /// Never empty.
    pub(crate) keys: Vec<Token>,
    pub(crate) directives: Vec<Directive>,
}

/// `NAME ARGUMENT... { OPTION... }`.
#[derive(Debug)]
pub(crate) struct Directive {
    pub(crate) name: Token,
    pub(crate) arguments: Vec<Token>,
    /// `None` where no braces stand.
    pub(crate) options: Option<Vec<Entry>>,
}

/// A line inside a directive's braces.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) name: Token,
    pub(crate) arguments: Vec<Token>,
}

/// The structure is broken; said already.
#[derive(Debug)]
pub(crate) struct Broken;

/// Reads the main file's text and all that it imports. `knows` tells the directives whose options are read; of the
/// others only the end is looked for.
pub(crate) fn parse(
    context: &mut Context<'_>,
    file_name: &str,
    text: &str,
    knows: fn(&str) -> bool,
) -> Result<Vec<Block>, Broken> {
    let tokens = load(context, file_name.to_owned(), text.to_owned());
    let words = tokens.len();
    let origin = Origin::File(tidy(Path::new(file_name)));
    let main = Frame { tokens: tokens.into(), next: 0, origin, importer: None };
    let mut parser =
        Parser { context, frames: vec![main], snippets: HashMap::new(), imports: 0, words, knows };
    let mut blocks = Vec::new();
    while parser.peek().is_some() {
        blocks.extend(parser.block(blocks.is_empty())?);
    }
    Ok(blocks)
}

fn load(context: &mut Context<'_>, name: String, text: String) -> Vec<Token> {
    let (tokens, diagnostics) = lex(context.sources.len(), &text);
    context.sources.push(Source { name, text });
    context.diagnostics.extend(diagnostics);
    expand(context, tokens)
}

/// A path without `.` parts.
fn tidy(path: &Path) -> PathBuf {
    path.components().filter(|part| !matches!(part, std::path::Component::CurDir)).collect()
}

/// Words that are being read: those of a file or of a snippet.
struct Frame {
    tokens: Rc<[Token]>,
    next: usize,
    origin: Origin,
    /// The frame whose `import` this is; further down in the stack.
    importer: Option<usize>,
}

#[derive(Debug, PartialEq, Eq)]
enum Origin {
    File(PathBuf),
    Snippet(String),
}

struct Snippet {
    tokens: Rc<[Token]>,
    defined: Span,
}

struct Parser<'a, 'b> {
    context: &'a mut Context<'b>,
    /// What is being read, the innermost import last; never empty. A frame that is read to its end stays until the
    /// next word is asked for, so that what it imports with its last word still counts as inside it.
    frames: Vec<Frame>,
    snippets: HashMap<String, Snippet>,
    imports: usize,
    words: usize,
    knows: fn(&str) -> bool,
}

impl Parser<'_, '_> {
    /// A block, or `None` for a snippet and for an import of nothing.
    fn block(&mut self, is_first: bool) -> Result<Option<Block>, Broken> {
        let keys = self.keys()?;
        let Some(first) = keys.first() else { return Ok(None) };
        let open = self.next_if(|token| token.kind == Kind::Open);
        if let Some(name) = snippet_name(&keys) {
            return self.snippet(name.to_owned(), first.span, open.as_ref()).map(|()| None);
        }
        let directives = self.directives(&keys, open.as_ref(), is_first)?;
        Ok(Some(Block { keys, directives }))
    }

    fn keys(&mut self) -> Result<Vec<Token>, Broken> {
        let mut keys = Vec::new();
        let mut comma: Option<Span> = None;
        let mut empty: Option<Span> = None;
        while let Some(mut token) = self.next_if(|token| token.kind != Kind::Open) {
            if token.kind == Kind::Close {
                return Err(self.broken(
                    Diagnostic::error(token.span, "`}` closes nothing")
                        .help("remove it, or add the `{` it belongs to"),
                ));
            }
            if is_import(&token) {
                self.import(&token)?;
                continue;
            }
            if token.text.is_empty() {
                // A variable that is not set, or `""`: no key.
                empty = Some(token.span);
            } else {
                comma = token.text.ends_with(',').then_some(token.span);
                if comma.is_some() {
                    token.text.pop();
                }
                keys.push(token);
            }
            if comma.is_none() && self.peek().is_none_or(|next| next.first_on_line) {
                break;
            }
        }
        if let Some(comma) = comma {
            return Err(self.broken(
                Diagnostic::error(comma, "another zone is expected after the comma").help("remove the comma"),
            ));
        }
        if keys.is_empty()
            && let Some(span) =
                empty.or_else(|| self.peek().filter(|next| next.kind == Kind::Open).map(|open| open.span))
        {
            return Err(self.broken(
                Diagnostic::error(span, "a server block needs a zone before its `{`")
                    .help("write `. {` for all names"),
            ));
        }
        Ok(keys)
    }

    fn snippet(&mut self, name: String, defined: Span, open: Option<&Token>) -> Result<(), Broken> {
        let Some(open) = open else {
            return Err(self.broken(
                Diagnostic::error(defined, format!("the snippet {} has no body", shown(&name)))
                    .help(format!("write `({name}) {{`, its directives, and `}}`")),
            ));
        };
        let mut tokens = Vec::new();
        let mut depth = 1_usize;
        while let Some(mut token) = self.next() {
            match token.kind {
                Kind::Open => depth += 1,
                Kind::Close => depth -= 1,
                Kind::Word => {}
            }
            if depth == 0 {
                break;
            }
            // Imported words begin a line, wherever the snippet's braces stand.
            token.first_on_line |= tokens.is_empty();
            tokens.push(token);
        }
        if depth > 0 {
            return Err(self.unclosed(open.span));
        }
        if let Some(earlier) = self.snippets.get(&name) {
            let diagnostic =
                Diagnostic::error(defined, format!("the snippet {} is defined twice", shown(&name)))
                    .label("again here")
                    .also(earlier.defined, "first here")
                    .help("rename one of them");
            return Err(self.broken(diagnostic));
        }
        self.snippets.insert(name, Snippet { tokens: tokens.into(), defined });
        Ok(())
    }

    fn directives(
        &mut self,
        keys: &[Token],
        open: Option<&Token>,
        is_first: bool,
    ) -> Result<Vec<Directive>, Broken> {
        let mut directives = Vec::new();
        while let Some(token) = self.next() {
            match token.kind {
                Kind::Close if open.is_some() => return Ok(directives),
                Kind::Close => {
                    return Err(self.broken(
                        Diagnostic::error(token.span, "`}` closes nothing")
                            .help("remove it, or put `{` behind the zones of this block"),
                    ));
                }
                Kind::Open => {
                    return Err(self.broken(
                        Diagnostic::error(token.span, "`{` opens nothing")
                            .help("put it at the end of the line of the directive that it belongs to"),
                    ));
                }
                // Here it need not begin its line: `. { import common`.
                Kind::Word if token.text == "import" => self.import(&token)?,
                Kind::Word if (self.knows)(&token.text) => directives.push(self.directive(token)?),
                Kind::Word => directives.push(self.foreign_directive(token)?),
            }
        }
        match (open, keys.last()) {
            (Some(open), _) => Err(self.unclosed(open.span)),
            (None, Some(key)) if !is_first => Err(self.broken(
                Diagnostic::error(key.span, "a server block after another one needs braces")
                    .help("put `{` here and `}` at its end"),
            )),
            _ => Ok(directives),
        }
    }

    fn directive(&mut self, name: Token) -> Result<Directive, Broken> {
        let arguments = self.arguments(&name)?;
        let Some(open) = self.next_if(|token| token.kind == Kind::Open && !token.first_on_line) else {
            return Ok(Directive { name, arguments, options: None });
        };
        let mut options = Vec::new();
        loop {
            let Some(token) = self.next() else { return Err(self.unclosed(open.span)) };
            match token.kind {
                Kind::Close => break,
                Kind::Open => return Err(self.nested(&token)),
                Kind::Word if is_import(&token) => self.import(&token)?,
                Kind::Word => {
                    let arguments = self.arguments(&token)?;
                    if let Some(open) = self.next_if(|token| token.kind == Kind::Open && !token.first_on_line)
                    {
                        return Err(self.nested(&open));
                    }
                    options.push(Entry { name: token, arguments });
                }
            }
        }
        if let Some(extra) = self.next_if(|token| !token.first_on_line) {
            return Err(self.broken(
                Diagnostic::error(extra.span, format!("{} stands behind a `}}`", shown(&extra.text)))
                    .help("put it on a line of its own"),
            ));
        }
        Ok(Directive { name, arguments, options: Some(options) })
    }

    /// The words up to the end of the line or `{`.
    fn arguments(&mut self, name: &Token) -> Result<Vec<Token>, Broken> {
        let mut arguments = Vec::new();
        while let Some(token) = self.next_if(|token| token.kind != Kind::Open && !token.first_on_line) {
            if token.kind == Kind::Close {
                return Err(self.broken(
                    Diagnostic::error(token.span, "`}` must stand on a line of its own")
                        .also(name.span, "this line is not over")
                        .help("put a line break before it"),
                ));
            }
            arguments.push(token);
        }
        Ok(arguments)
    }

    /// A directive that is not ours: its words are skipped, whatever they are.
    fn foreign_directive(&mut self, name: Token) -> Result<Directive, Broken> {
        let mut opened: Vec<Span> = Vec::new();
        loop {
            let nested = !opened.is_empty();
            let Some(token) = self.next_if(|token| nested || !token.first_on_line) else { break };
            match token.kind {
                Kind::Open => opened.push(token.span),
                Kind::Close if opened.pop().is_none() => {
                    return Err(self.broken(
                        Diagnostic::error(token.span, "`}` must stand on a line of its own")
                            .also(name.span, "this line is not over")
                            .help("put a line break before it"),
                    ));
                }
                _ => {}
            }
        }
        match opened.pop() {
            Some(open) => Err(self.unclosed(open)),
            None => Ok(Directive { name, arguments: Vec::new(), options: None }),
        }
    }

    fn import(&mut self, word: &Token) -> Result<(), Broken> {
        let Some(argument) = self.next_in_line() else {
            return Err(self.broken(
                Diagnostic::error(word.span, "`import` needs a file, a pattern or the name of a snippet")
                    .help("write `import NAME`"),
            ));
        };
        if let Some(extra) = self.next_in_line() {
            return Err(self.broken(
                Diagnostic::error(extra.span, "`import` takes one file, pattern or name")
                    .help("write one `import` line for each"),
            ));
        }
        let importer = self.frames.len() - 1;
        if let Some(snippet) = self.snippets.get(&argument.text) {
            let tokens = Rc::clone(&snippet.tokens);
            return self.enter(tokens, Origin::Snippet(argument.text.clone()), importer, &argument);
        }
        self.import_files(importer, &argument)
    }

    fn import_files(&mut self, importer: usize, argument: &Token) -> Result<(), Broken> {
        let pattern = &argument.text;
        if pattern.is_empty() {
            return Err(
                self.broken(Diagnostic::error(argument.span, "the name of the file to import is empty"))
            );
        }
        if !is_simple_pattern(pattern) {
            return Err(self.broken(
                Diagnostic::error(argument.span, "a pattern may hold one `*` and one `?`, and no `[`")
                    .help("write one `import` line for each directory"),
            ));
        }
        let importing = self.context.sources.get(argument.span.source).map_or("", |source| &source.name);
        let directory = Path::new(importing).parent().unwrap_or(Path::new(""));
        let path = tidy(&directory.join(pattern));
        let from_pattern = is_pattern(pattern);
        let paths = if from_pattern { expand_pattern(self.context.environment, &path) } else { vec![path] };
        let mut files = Vec::new();
        for path in paths {
            let bytes = match self.context.environment.read(&path) {
                Ok(bytes) => bytes,
                // A mounted ConfigMap holds directories beside its files; a pattern means the files.
                Err(error)
                    if from_pattern
                        && matches!(error.kind(), io::ErrorKind::IsADirectory | io::ErrorKind::NotFound) =>
                {
                    continue;
                }
                Err(error) => return Err(self.cannot_import(argument, &path, &error)),
            };
            let text = match String::from_utf8(bytes) {
                Ok(text) => text,
                Err(error) => {
                    let error = io::Error::new(io::ErrorKind::InvalidData, error.utf8_error());
                    return Err(self.cannot_import(argument, &path, &error));
                }
            };
            self.count_import(argument)?;
            files.push((load(self.context, path.display().to_string(), text), path));
        }
        // Pushed last to first: the first is read first.
        for (tokens, path) in files.into_iter().rev() {
            self.enter(tokens.into(), Origin::File(path), importer, argument)?;
        }
        Ok(())
    }

    fn count_import(&mut self, argument: &Token) -> Result<(), Broken> {
        self.imports += 1;
        if self.imports <= MAX_IMPORTS {
            return Ok(());
        }
        Err(self.broken(
            Diagnostic::error(argument.span, format!("more than {MAX_IMPORTS} imports")).help("import less"),
        ))
    }

    fn enter(
        &mut self,
        tokens: Rc<[Token]>,
        origin: Origin,
        importer: usize,
        argument: &Token,
    ) -> Result<(), Broken> {
        if matches!(origin, Origin::Snippet(_)) {
            self.count_import(argument)?;
        }
        let mut depth = 0;
        let mut is_circle = false;
        let mut outer = Some(importer);
        while let Some(frame) = outer.and_then(|index| self.frames.get(index)) {
            depth += 1;
            is_circle |= frame.origin == origin;
            outer = frame.importer;
        }
        self.words += tokens.len();
        let too_much = if depth > MAX_IMPORT_DEPTH {
            Some(format!("more than {MAX_IMPORT_DEPTH} imports inside one another"))
        } else if self.words > MAX_WORDS {
            Some(format!("more than {MAX_WORDS} words with all imports"))
        } else {
            None
        };
        if let Some(message) = too_much {
            return Err(self.broken(Diagnostic::error(argument.span, message).help("import less")));
        }
        if is_circle {
            return Err(self.broken(
                Diagnostic::error(argument.span, format!("{} imports itself", shown(&argument.text)))
                    .label("this is being imported already")
                    .help("remove one `import` of the circle"),
            ));
        }
        self.frames.push(Frame { tokens, next: 0, origin, importer: Some(importer) });
        Ok(())
    }

    fn cannot_import(&mut self, argument: &Token, path: &Path, error: &io::Error) -> Broken {
        let name = shown(&argument.text);
        let mut diagnostic = Diagnostic::error(argument.span, format!("cannot import {name}"))
            .label(format!("{}: {error}", path.display()));
        if error.kind() == io::ErrorKind::NotFound {
            diagnostic = diagnostic.help(format!(
                "make the file, or define a snippet `({}) {{ ... }}` above this line",
                argument.text
            ));
        }
        self.broken(diagnostic)
    }

    fn nested(&mut self, open: &Token) -> Broken {
        self.broken(
            Diagnostic::error(open.span, "this option takes no braces")
                .help("close the braces of the directive before"),
        )
    }

    fn unclosed(&mut self, open: Span) -> Broken {
        self.broken(
            Diagnostic::error(open, "this `{` is never closed")
                .help("add `}` on a line of its own at the end"),
        )
    }

    fn broken(&mut self, diagnostic: Diagnostic) -> Broken {
        self.context.report(diagnostic);
        Broken
    }

    /// The next word, over the ends of imported files.
    fn next(&mut self) -> Option<Token> {
        self.next_if(|_| true)
    }

    fn next_if(&mut self, wanted: impl Fn(&Token) -> bool) -> Option<Token> {
        let token = self.peek().filter(|&token| wanted(token)).cloned()?;
        if let Some(frame) = self.frames.last_mut() {
            frame.next += 1;
        }
        Some(token)
    }

    fn peek(&mut self) -> Option<&Token> {
        while self.frames.len() > 1
            && self.frames.last().is_some_and(|frame| frame.next >= frame.tokens.len())
        {
            self.frames.pop();
        }
        self.frames.last().and_then(|frame| frame.tokens.get(frame.next))
    }

    /// The next word of the same file on the same line.
    fn next_in_line(&mut self) -> Option<Token> {
        let frame = self.frames.last_mut()?;
        let token = frame.tokens.get(frame.next).filter(|token| !token.first_on_line)?.clone();
        frame.next += 1;
        Some(token)
    }
}

fn is_import(token: &Token) -> bool {
    token.first_on_line && token.text == "import"
}

/// A block is a snippet when its only key stands in parentheses.
fn snippet_name(keys: &[Token]) -> Option<&str> {
    match keys {
        [key] => key.text.strip_prefix('(')?.strip_suffix(')'),
        _ => None,
    }
}
