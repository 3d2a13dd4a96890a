//! What a Corefile says about changing questions and answers: `rewrite`.
//!
//! Names are text in presentation form, lower-cased, as CoreDNS compares them: a prefix or a substring need not end at a
//! label's border.

/// A regular expression that compiles. Its text; Rust's `regex` reads what Go's reads, but for rarities that are refused.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Pattern(pub(crate) String);

/// One line of `rewrite`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RewriteRule {
    /// `continue`: the rules behind it are looked at as well where it applies. Default: they are not (`stop`).
    pub goes_on: bool,
    /// What it does.
    pub rule: Rule,
}

/// What a line of `rewrite` does.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Rule {
    /// `name`
    Name(NameRule),
    /// `type FROM TO`
    Type(u16, u16),
    /// `class FROM TO`
    Class(u16, u16),
    /// `ttl [MATCH] NAME SECONDS`: TTLs of the answers to such names are brought into these bounds.
    Ttl(NamePattern, u32, u32),
    /// `rcode [MATCH] NAME FROM TO`
    Rcode(NamePattern, u16, u16),
    /// `cname [MATCH] FROM TO`: a CNAME that leads to such a name leads elsewhere, and is looked up there.
    Cname(NamePattern, String),
    /// `edns0`
    Edns(EdnsRule),
}

/// Which names are meant.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum NamePattern {
    /// This one.
    Exact(String),
    /// Those that begin so.
    Prefix(String),
    /// Those that end so.
    Suffix(String),
    /// Those that hold this.
    Substring(String),
    /// Those that match.
    Regex(Pattern),
}

/// `name [MATCH] FROM TO [answer ...]`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NameRule {
    /// Which questions.
    pub from: NamePattern,
    /// What the matched part becomes; `{1}` is a group of a regular expression.
    pub to: String,
    /// Names in answers are put back (`answer auto`; always for exact names).
    pub auto: bool,
    /// Names in answers are rewritten.
    pub answers: Vec<AnswerRule>,
}

/// `answer name|value FROM TO`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct AnswerRule {
    /// The name in a record's data rather than its owner.
    pub value: bool,
    /// Which names.
    pub from: Pattern,
    /// What they become; `{1}` is a group.
    pub to: String,
}

/// `edns0 OPTION ACTION ... [revert]`: what the upstream is told.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct EdnsRule {
    /// What is done.
    pub action: EdnsAction,
    /// To which option.
    pub option: EdnsOption,
}

/// What is done to an EDNS option of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EdnsAction {
    /// It is put in the place of the client's, or added.
    Set,
    /// It is added, whether there is one or not.
    Append,
    /// It is put in the place of the client's, if that sent one.
    Replace,
    /// It is taken away.
    Unset,
}

/// An EDNS option.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum EdnsOption {
    /// `local CODE DATA`
    Local(u16, EdnsData),
    /// `nsid`
    Nsid,
    /// `subnet V4LENGTH V6LENGTH`: so many bits of the client's address.
    Subnet(u8, u8),
}

/// Data of a local option.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum EdnsData {
    /// These bytes.
    Bytes(Vec<u8>),
    /// `{qname}`: the question's name as text.
    QueryName,
    /// `{qtype}`
    QueryType,
    /// `{client_ip}`
    ClientIp,
    /// `{client_port}`
    ClientPort,
    /// `{protocol}`: `udp` or `tcp`.
    Protocol,
    /// `{server_ip}`
    ServerIp,
    /// `{server_port}`
    ServerPort,
}

impl Pattern {
    /// The expression.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}
