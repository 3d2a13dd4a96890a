//! `rewrite`: questions on their way in, and answers on their way back.
//!
//! ```text
//!   question ──rules, in order──► question' ──acl, cache, upstream──► answer' ──rules that applied, backwards──► answer
//! ```
//!
//! - here: which rules apply, and what they make of a question. Pure.
//! - `names`: how names are matched and made.
//! - `answers`: what the rules that applied make of an answer.
//!
//! Names are compared as text in lower case, as CoreDNS does it: a prefix may end inside a label.

mod answers;
mod names;

use std::net::IpAddr;

use nodestub_corefile::config::rewriting::{self as config, EdnsAction, EdnsData, EdnsOption as Wanted};
use nodestub_wire::{name_text, wire_name};

use crate::asked::{Asked, EdnsOption};
pub use answers::{Change, Rewriting};
use names::{Matcher, Replacer};

/// Code of the NSID option (RFC 5001).
const NSID: u16 = 3;
/// Code of the client subnet option (RFC 7871).
const SUBNET: u16 = 8;

/// The rules of one block.
#[derive(Debug)]
pub struct Rules(Vec<Compiled>);

#[derive(Debug)]
struct Compiled {
    goes_on: bool,
    rule: Rule,
}

#[derive(Debug)]
enum Rule {
    Name { from: Matcher, to: String, auto: Auto, answers: Vec<Change> },
    Type(u16, u16),
    Class(u16, u16),
    Ttl(Matcher, u32, u32),
    Rcode(Matcher, u16, u16),
    Cname(Matcher, String),
    Edns(config::EdnsRule),
}

/// How names in answers are put back.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Auto {
    No,
    /// The new name, and what is below it, becomes the old one.
    Whole,
    /// The new suffix becomes the old one.
    Suffix {
        new: String,
        old: String,
    },
}

/// What the rules make of a question.
#[derive(Debug)]
pub enum Outcome {
    /// Some applied; what they do to the answer, in the order of the rules.
    Rewritten(Vec<Change>),
    /// None did.
    Untouched,
    /// What came out is no name.
    NoName(String),
}

impl Rules {
    /// From rules that were read: their expressions compile.
    pub fn new(rules: &[config::RewriteRule]) -> Self {
        Self(
            rules
                .iter()
                .filter_map(|rule| Some(Compiled { goes_on: rule.goes_on, rule: Rule::new(&rule.rule)? }))
                .collect(),
        )
    }

    /// Whether no rule would change this question, or its answer. Allocates nothing. `name`: lower-cased text.
    pub fn leave_alone(&self, name: &str, qtype: u16, qclass: u16) -> bool {
        for Compiled { goes_on, rule } in &self.0 {
            let touches = match rule {
                Rule::Name { from, .. } | Rule::Ttl(from, ..) | Rule::Rcode(from, ..) => from.matches(name),
                Rule::Type(from, _) => *from == qtype,
                Rule::Class(from, _) => *from == qclass,
                // Every answer may hold such a CNAME.
                Rule::Cname(..) => true,
                // What the upstream is told does not change what is known already.
                Rule::Edns(rule) if !goes_on && always_applies(rule) => return true,
                Rule::Edns(_) => false,
            };
            if touches {
                return false;
            }
        }
        true
    }

    /// Changes the question, and says what is to become of its answer.
    pub fn apply(&self, asked: &mut Asked) -> Outcome {
        let mut changes = Vec::new();
        let mut applied = false;
        for Compiled { goes_on, rule } in &self.0 {
            match rule.apply(asked, &mut changes) {
                Applied::No => continue,
                Applied::NoName(text) => return Outcome::NoName(text),
                Applied::Yes => applied = true,
            }
            if !goes_on {
                break;
            }
        }
        if applied { Outcome::Rewritten(changes) } else { Outcome::Untouched }
    }
}

enum Applied {
    Yes,
    No,
    NoName(String),
}

impl Rule {
    fn new(rule: &config::Rule) -> Option<Self> {
        Some(match rule {
            config::Rule::Name(rule) => {
                let auto = match (&rule.from, rule.auto) {
                    (_, false) => Auto::No,
                    (config::NamePattern::Suffix(old), true) => {
                        Auto::Suffix { new: rule.to.clone(), old: old.clone() }
                    }
                    (_, true) => Auto::Whole,
                };
                let mut answers = Vec::new();
                for answer in &rule.answers {
                    let replacer = Replacer::regex(answer.from.as_str(), &answer.to)?;
                    answers.push(if answer.value {
                        Change::Value(replacer)
                    } else {
                        Change::Owner(replacer)
                    });
                }
                Self::Name { from: Matcher::new(&rule.from)?, to: rule.to.clone(), auto, answers }
            }
            config::Rule::Type(from, to) => Self::Type(*from, *to),
            config::Rule::Class(from, to) => Self::Class(*from, *to),
            config::Rule::Ttl(name, least, most) => Self::Ttl(Matcher::new(name)?, *least, *most),
            config::Rule::Rcode(name, from, to) => Self::Rcode(Matcher::new(name)?, *from, *to),
            config::Rule::Cname(from, to) => Self::Cname(Matcher::new(from)?, to.clone()),
            config::Rule::Edns(rule) => Self::Edns(rule.clone()),
        })
    }

    fn apply(&self, asked: &mut Asked, changes: &mut Vec<Change>) -> Applied {
        let applies = |applies: bool| if applies { Applied::Yes } else { Applied::No };
        match self {
            Self::Name { from, to, auto, answers } => {
                let old = asked.text();
                let Some(new) = from.replace(&old, to) else { return Applied::No };
                let Ok(wire) = wire_name(&new) else { return Applied::NoName(new) };
                asked.name = wire;
                match auto {
                    Auto::No => {}
                    Auto::Whole => {
                        let replacer = Replacer::Whole { from: new, to: old };
                        changes.extend([Change::Owner(replacer.clone()), Change::Value(replacer)]);
                    }
                    Auto::Suffix { new, old } => {
                        let replacer = Replacer::Suffix { from: new.clone(), to: old.clone() };
                        changes.extend([Change::Owner(replacer.clone()), Change::Value(replacer)]);
                    }
                }
                changes.extend(answers.iter().cloned());
                Applied::Yes
            }
            Self::Type(from, to) => {
                let matches = asked.qtype == *from;
                if matches {
                    asked.qtype = *to;
                }
                applies(matches)
            }
            Self::Class(from, to) => {
                let matches = asked.qclass == *from;
                if matches {
                    asked.qclass = *to;
                }
                applies(matches)
            }
            Self::Ttl(name, least, most) => {
                let matches = name.matches(&asked.text());
                if matches {
                    changes.push(Change::Ttl(*least, *most));
                }
                applies(matches)
            }
            Self::Rcode(name, from, to) => {
                let matches = name.matches(&asked.text());
                if matches {
                    changes.push(Change::Rcode(*from, *to));
                }
                applies(matches)
            }
            Self::Cname(from, to) => {
                changes.push(Change::Cname(from.clone(), to.clone()));
                Applied::Yes
            }
            Self::Edns(rule) => applies(edns(rule, asked)),
        }
    }
}

/// Whether a rule applies whatever the client sent.
fn always_applies(rule: &config::EdnsRule) -> bool {
    let fixed = matches!(rule.option, Wanted::Nsid | Wanted::Local(_, EdnsData::Bytes(_)));
    match rule.action {
        EdnsAction::Unset | EdnsAction::Set => true,
        EdnsAction::Append => fixed,
        EdnsAction::Replace => false,
    }
}

/// Changes the options of a question. False: the rule does not apply.
fn edns(rule: &config::EdnsRule, asked: &mut Asked) -> bool {
    let (code, is_variable) = match &rule.option {
        Wanted::Local(code, data) => (*code, !matches!(data, EdnsData::Bytes(_))),
        Wanted::Nsid => (NSID, false),
        Wanted::Subnet(..) => (SUBNET, false),
    };
    if rule.action == EdnsAction::Unset {
        asked.options.retain(|option| option.code != code);
        return true;
    }
    let Some(data) = data_of(&rule.option, asked) else { return false };
    let new = EdnsOption { code, data, ours: true };
    match asked.options.iter_mut().find(|option| option.code == code) {
        Some(place) if matches!(rule.action, EdnsAction::Set | EdnsAction::Replace) => *place = new,
        // CoreDNS appends a second one only where the data is fixed.
        Some(_) if is_variable || code == SUBNET => return false,
        _ if rule.action == EdnsAction::Replace => return false,
        _ => asked.options.push(new),
    }
    true
}

fn data_of(option: &Wanted, asked: &Asked) -> Option<Vec<u8>> {
    Some(match option {
        Wanted::Nsid => Vec::new(),
        Wanted::Subnet(v4, v6) => subnet(asked.client_ip(), *v4, *v6),
        Wanted::Local(_, data) => match data {
            EdnsData::Bytes(bytes) => bytes.clone(),
            EdnsData::QueryName => name_text(&asked.name).into_bytes(),
            EdnsData::QueryType => asked.qtype.to_be_bytes().to_vec(),
            EdnsData::ClientIp => octets(asked.client_ip()),
            EdnsData::ClientPort => asked.client.port().to_be_bytes().to_vec(),
            EdnsData::Protocol => asked.protocol.label().as_bytes().to_vec(),
            EdnsData::ServerIp => octets(asked.server.ip().to_canonical()),
            EdnsData::ServerPort => asked.server.port().to_be_bytes().to_vec(),
        },
    })
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// RFC 7871, 6: family, length, no scope, and as many bytes as the length needs; bits behind it are 0.
fn subnet(client: IpAddr, v4: u8, v6: u8) -> Vec<u8> {
    let (family, length) = if client.is_ipv4() { (1_u8, v4) } else { (2, v6) };
    let mut bytes = octets(client);
    bytes.truncate(usize::from(length.div_ceil(8)));
    if let Some(last) = bytes.last_mut()
        && length % 8 != 0
    {
        *last &= 0xFF << (8 - length % 8);
    }
    [&[0, family, length, 0], bytes.as_slice()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subnet_has_no_more_of_the_client_than_was_asked() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(subnet(ip("10.244.255.7"), 20, 56), [0, 1, 20, 0, 10, 244, 240]);
        assert_eq!(subnet(ip("10.244.255.7"), 0, 56), [0, 1, 0, 0]);
        assert_eq!(subnet(ip("2001:db8::1"), 24, 32), [0, 2, 32, 0, 0x20, 1, 0xd, 0xb8]);
    }
}
