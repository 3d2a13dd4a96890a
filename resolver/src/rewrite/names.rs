//! How names are matched and made, as text.

use nodestub_corefile::config::rewriting::NamePattern;
use regex::Regex;

/// Which names are meant.
#[derive(Debug, Clone)]
pub enum Matcher {
    /// This one.
    Exact(String),
    /// Those that begin so.
    Prefix(String),
    /// Those that end so.
    Suffix(String),
    /// Those that hold this.
    Substring(String),
    /// Those that match.
    Regex(Regex),
}

/// How a name in an answer is changed.
#[derive(Debug, Clone)]
pub enum Replacer {
    /// This name, and what is below it.
    Whole {
        /// The name.
        from: String,
        /// What it becomes.
        to: String,
    },
    /// Names that end so.
    Suffix {
        /// The end.
        from: String,
        /// What it becomes.
        to: String,
    },
    /// Names that match, as a whole.
    Regex(Regex, String),
}

impl Matcher {
    /// `None`: the expression does not compile, which was said when the Corefile was read.
    pub fn new(pattern: &NamePattern) -> Option<Self> {
        Some(match pattern {
            NamePattern::Exact(text) => Self::Exact(text.clone()),
            NamePattern::Prefix(text) => Self::Prefix(text.clone()),
            NamePattern::Suffix(text) => Self::Suffix(text.clone()),
            NamePattern::Substring(text) => Self::Substring(text.clone()),
            NamePattern::Regex(pattern) => Self::Regex(Regex::new(pattern.as_str()).ok()?),
        })
    }

    /// Whether a name is meant.
    pub fn matches(&self, name: &str) -> bool {
        match self {
            Self::Exact(text) => name == text,
            Self::Prefix(text) => name.starts_with(text.as_str()),
            Self::Suffix(text) => name.ends_with(text.as_str()),
            Self::Substring(text) => name.contains(text.as_str()),
            Self::Regex(regex) => regex.is_match(name),
        }
    }

    /// The name with the matched part replaced; `None`: it is not meant.
    pub fn replace(&self, name: &str, to: &str) -> Option<String> {
        match self {
            Self::Exact(text) => (name == text).then(|| to.to_owned()),
            Self::Prefix(text) => name.strip_prefix(text.as_str()).map(|rest| format!("{to}{rest}")),
            Self::Suffix(text) => name.strip_suffix(text.as_str()).map(|rest| format!("{rest}{to}")),
            Self::Substring(text) => name.contains(text.as_str()).then(|| name.replace(text.as_str(), to)),
            Self::Regex(regex) => expand(regex, name, to),
        }
    }
}

impl Replacer {
    /// `None`: the expression does not compile, which was said when the Corefile was read.
    pub fn regex(pattern: &str, to: &str) -> Option<Self> {
        Some(Self::Regex(Regex::new(pattern).ok()?, to.to_owned()))
    }

    /// What a name becomes; `None`: it stays.
    pub fn replace(&self, name: &str) -> Option<String> {
        match self {
            Self::Whole { from, to } => {
                let head = name.strip_suffix(from.as_str())?;
                (head.is_empty() || head.ends_with('.')).then(|| format!("{head}{to}"))
            }
            Self::Suffix { from, to } => name.strip_suffix(from.as_str()).map(|head| format!("{head}{to}")),
            Self::Regex(regex, to) => expand(regex, name, to),
        }
    }
}

/// The replacement with its groups filled in, one after the other; `None`: no match.
fn expand(regex: &Regex, name: &str, to: &str) -> Option<String> {
    let groups = regex.captures(name)?;
    let mut text = to.to_owned();
    for (index, group) in groups.iter().enumerate() {
        text = text.replace(&format!("{{{index}}}"), group.map_or("", |group| group.as_str()));
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaces_the_part_that_matches() {
        let regex = |text: &str| Matcher::Regex(Regex::new(text).unwrap());
        for (matcher, name, to, expected) in [
            (Matcher::Exact("a.".into()), "a.", "b.", Some("b.")),
            (Matcher::Exact("a.".into()), "x.a.", "b.", None),
            (Matcher::Prefix("old.".into()), "old.a.", "new.", Some("new.a.")),
            (Matcher::Suffix(".a.".into()), "x.a.", ".b.", Some("x.b.")),
            (Matcher::Substring("in.".into()), "main.in.a.", "out.", Some("maout.out.a.")),
            (regex("(.*)-(us)\\.a\\."), "ftp-us.a.", "{1}.{2}.b.{0}", Some("ftp.us.b.ftp-us.a.")),
            (regex("^x"), "ax.", "b.", None),
        ] {
            assert_eq!(matcher.replace(name, to).as_deref(), expected, "{matcher:?} {name}");
            assert_eq!(matcher.matches(name), expected.is_some(), "{matcher:?} {name}");
        }
    }

    #[test]
    fn puts_a_name_and_what_is_below_it_back() {
        let whole = Replacer::Whole { from: "new.b.".into(), to: "old.a.".into() };
        assert_eq!(whole.replace("new.b.").as_deref(), Some("old.a."));
        assert_eq!(whole.replace("x.new.b.").as_deref(), Some("x.old.a."));
        assert_eq!(whole.replace("xnew.b."), None);
        let suffix = Replacer::Suffix { from: ".b.".into(), to: ".a.".into() };
        assert_eq!(suffix.replace("xnew.b.").as_deref(), Some("xnew.a."));
    }
}
