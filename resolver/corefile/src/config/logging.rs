//! What a Corefile says about lines in the log: `log` and `errors`.

use std::time::Duration;

use nodestub_wire::Name;

use super::rewriting::Pattern;

/// `log [NAME...] [FORMAT] { class CLASS... }`, for one of its names. Of several rules the first whose name holds the
/// query's counts, whatever its classes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LogRule {
    /// Queries for this name and below. Default the root.
    pub name: Name,
    /// What a line says. Default [`LogFormat::COMMON`].
    pub format: LogFormat,
    /// Which answers are logged. Default all.
    pub classes: LogClasses,
}

/// A format, read.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LogFormat(pub Vec<LogPiece>);

/// A part of a format.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum LogPiece {
    /// As it is.
    Text(String),
    /// A placeholder.
    Field(LogField),
}

/// A placeholder of a format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LogField {
    /// `{type}`
    Type,
    /// `{name}`: lower-cased, with its final dot.
    Name,
    /// `{class}`
    Class,
    /// `{proto}`: `udp` or `tcp`.
    Protocol,
    /// `{remote}`: the client's address; IPv6 in brackets.
    Remote,
    /// `{port}`: the client's.
    Port,
    /// `{local}`: the address that was asked; IPv6 in brackets.
    Local,
    /// `{size}`: bytes of the query.
    Size,
    /// `{>id}`
    Id,
    /// `{>opcode}`
    Opcode,
    /// `{>do}`: `true` or `false`.
    DnssecOk,
    /// `{>bufsize}`: bytes that the client takes.
    BufferSize,
    /// `{rcode}`
    Rcode,
    /// `{rsize}`: bytes of the reply, had no name in it been compressed.
    ReplySize,
    /// `{>rflags}`: flags of the reply.
    ReplyFlags,
    /// `{duration}`: in seconds.
    Duration,
    /// `{/log/class}`: `success`, `denial` or `error`.
    ReplyClass,
    /// `{/log/type}`: `NOERROR`, `NODATA`, `NXDOMAIN`, and so on.
    ReplyKind,
    /// Any other `{/LABEL}`: `-`, as nothing sets it.
    Unset,
}

/// `class`: which answers are logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LogClasses {
    /// With data, and referrals.
    pub success: bool,
    /// NXDOMAIN and NODATA.
    pub denial: bool,
    /// Everything else.
    pub error: bool,
}

impl LogClasses {
    /// Every answer, and silence.
    pub const ALL: Self = Self { success: true, denial: true, error: true };
}

impl LogFormat {
    /// `{common}`.
    pub const COMMON: &'static str = "{remote}:{port} - {>id} \"{type} {class} {name} {proto} {size} {>do} {>bufsize}\" {rcode} {>rflags} {rsize} {duration}";

    /// Reads a format. Braces that hold no placeholder are text, as in CoreDNS.
    pub fn read(text: &str) -> Self {
        let combined = format!("{} \"{{>opcode}}\"", Self::COMMON);
        let text = text.replace("{common}", Self::COMMON).replace("{combined}", &combined);
        let mut pieces = Vec::new();
        let mut literal = String::new();
        let mut rest = text.as_str();
        // The closing brace is looked for first: in `{ {name} }` the inner pair counts.
        while let Some(end) = rest.find('}') {
            let (upto, after) = rest.split_at(end + 1);
            let field = upto.rfind('{').and_then(|start| Some((start, field(upto.get(start..)?)?)));
            match field {
                Some((start, field)) => {
                    literal.push_str(upto.get(..start).unwrap_or_default());
                    if !literal.is_empty() {
                        pieces.push(LogPiece::Text(std::mem::take(&mut literal)));
                    }
                    pieces.push(LogPiece::Field(field));
                }
                None => literal.push_str(upto),
            }
            rest = after;
        }
        literal.push_str(rest);
        if !literal.is_empty() {
            pieces.push(LogPiece::Text(literal));
        }
        Self(pieces)
    }

    /// Whether it says this.
    pub fn has(&self, field: LogField) -> bool {
        self.0.contains(&LogPiece::Field(field))
    }
}

fn field(text: &str) -> Option<LogField> {
    Some(match text {
        "{type}" => LogField::Type,
        "{name}" => LogField::Name,
        "{class}" => LogField::Class,
        "{proto}" => LogField::Protocol,
        "{remote}" => LogField::Remote,
        "{port}" => LogField::Port,
        "{local}" => LogField::Local,
        "{size}" => LogField::Size,
        "{>id}" => LogField::Id,
        "{>opcode}" => LogField::Opcode,
        "{>do}" => LogField::DnssecOk,
        "{>bufsize}" => LogField::BufferSize,
        "{rcode}" => LogField::Rcode,
        "{rsize}" => LogField::ReplySize,
        "{>rflags}" => LogField::ReplyFlags,
        "{duration}" => LogField::Duration,
        "{/log/class}" => LogField::ReplyClass,
        "{/log/type}" => LogField::ReplyKind,
        other if other.starts_with("{/") => LogField::Unset,
        _ => return None,
    })
}

/// `errors [stdout] { stacktrace; consolidate ... }`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Errors {
    /// In the order of the file; the first whose expression matches an error gathers it.
    pub consolidate: Vec<Consolidate>,
}

/// `consolidate DURATION EXPRESSION [LEVEL] [show_first]`: errors that look alike are one line at the end of a time.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Consolidate {
    /// From the first error on.
    pub period: Duration,
    /// Which errors.
    pub pattern: Pattern,
    /// How loud the line is. Default error.
    pub level: ErrorLevel,
    /// The first error is said at once.
    pub show_first: bool,
}

/// How loud a line of `errors` is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorLevel {
    /// `warning`
    Warning,
    /// `error`
    Error,
    /// `info`
    Info,
    /// `debug`
    Debug,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_format_is_read_as_coredns_reads_it() {
        let text = |text: &str| LogPiece::Text(text.into());
        let field = LogPiece::Field;
        for (format, expected) in [
            ("{type}", vec![field(LogField::Type)]),
            ("A {>id}!", vec![text("A "), field(LogField::Id), text("!")]),
            ("{ {name} }", vec![text("{ "), field(LogField::Name), text(" }")]),
            ("A } {port}", vec![text("A } "), field(LogField::Port)]),
            ("{X} {Type} {", vec![text("{X} {Type} {")]),
            ("{/forward/upstream}{/log/class}", vec![field(LogField::Unset), field(LogField::ReplyClass)]),
            ("", vec![]),
        ] {
            assert_eq!(LogFormat::read(format).0, expected, "{format}");
        }
        let combined = LogFormat::read("x {combined}");
        assert_eq!(combined.0.first(), Some(&text("x ")));
        assert!(combined.has(LogField::Opcode) && !LogFormat::read("{common}").has(LogField::Opcode));
    }
}
