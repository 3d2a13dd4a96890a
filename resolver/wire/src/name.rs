//! Owned names: lower-cased, uncompressed, absolute.
//!
//! [`Name`] is what configuration and keys are made of. Names inside packets stay where they are; see
//! `Query` and `Reply`.

use std::fmt;
use std::str::FromStr;

/// Longest name on the wire, in bytes, root label included (RFC 1035, 2.3.4).
pub const MAX_NAME: usize = 255;
/// Longest label, in bytes (RFC 1035, 2.3.4).
pub const MAX_LABEL: usize = 63;
/// Most labels that fit into [`MAX_NAME`] bytes, root not counted.
pub const MAX_LABELS: usize = 127;

/// An absolute domain name in wire form (length, label, …, 0), lower-cased, never compressed.
///
/// Equality is that of DNS: case does not count, because it is gone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(Box<[u8]>);

/// Why a text is not a domain name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameError {
    /// The text is empty; the root is written `.`.
    Empty,
    /// Two dots in a row, or a dot in front.
    EmptyLabel,
    /// A label has more than 63 bytes.
    LongLabel,
    /// The name has more than 255 bytes on the wire.
    LongName,
    /// A backslash that is followed by neither three digits up to 255 nor one other character.
    BadEscape,
    /// White space or a control character.
    BadCharacter(char),
}

impl Name {
    /// The root, written `.`.
    pub fn root() -> Self {
        Self(Box::new([0]))
    }

    /// The name in wire form, lower case, ending with the root's zero.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether this is the root.
    pub fn is_root(&self) -> bool {
        self.0.len() == 1
    }

    /// The labels from left to right, without the root's empty one.
    pub fn labels(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest: &[u8] = &self.0;
        std::iter::from_fn(move || {
            let (&length, tail) = rest.split_first()?;
            let (label, after) = tail.split_at_checked(usize::from(length))?;
            rest = after;
            (!label.is_empty()).then_some(label)
        })
    }

    /// Whether this name is `zone` or lies below it.
    pub fn is_within(&self, zone: &Self) -> bool {
        let mut rest: &[u8] = &self.0;
        loop {
            if rest == zone.as_bytes() {
                return true;
            }
            let Some((&length, tail)) = rest.split_first() else { return false };
            if length == 0 {
                return false;
            }
            let Some(after) = tail.get(usize::from(length)..) else { return false };
            rest = after;
        }
    }

    /// Takes a name in uncompressed wire form, ending with the root's zero, and lower-cases it.
    ///
    /// # Errors
    /// The labels do not add up to exactly `bytes`, or a limit is exceeded.
    pub fn from_wire(bytes: &[u8]) -> Result<Self, NameError> {
        if bytes.len() > MAX_NAME {
            return Err(NameError::LongName);
        }
        let mut rest = bytes;
        loop {
            let (&length, tail) = rest.split_first().ok_or(NameError::Empty)?;
            if usize::from(length) > MAX_LABEL {
                return Err(NameError::LongLabel);
            }
            if length == 0 {
                return if tail.is_empty() {
                    Ok(Self(bytes.to_ascii_lowercase().into()))
                } else {
                    Err(NameError::EmptyLabel)
                };
            }
            rest = tail.get(usize::from(length)..).ok_or(NameError::LongLabel)?;
        }
    }
}

impl FromStr for Name {
    type Err = NameError;

    /// Reads presentation form (RFC 1035, 5.1): a trailing dot is optional, `\.` and `\DDD` are escapes.
    fn from_str(text: &str) -> Result<Self, NameError> {
        let mut wire = wire_name(text)?;
        wire.make_ascii_lowercase();
        Ok(Self(wire.into()))
    }
}

/// Reads presentation form as [`Name`] does, and keeps its case: uncompressed wire form.
///
/// # Errors
/// It is no domain name.
pub fn wire_name(text: &str) -> Result<Vec<u8>, NameError> {
    if text.is_empty() {
        return Err(NameError::Empty);
    }
    if text == "." {
        return Ok(vec![0]);
    }
    read_labels(text)
}

/// A name in uncompressed wire form as text, its case kept, with a final dot; escaped as CoreDNS's library does it
/// (`\.`, `\032`). What follows the name in `wire` is not looked at.
pub fn name_text(wire: &[u8]) -> String {
    let mut text = String::with_capacity(wire.len());
    let mut rest = wire;
    while let Some((&length, tail)) = rest.split_first().filter(|(length, _)| **length > 0) {
        let Some((label, after)) = tail.split_at_checked(usize::from(length)) else { break };
        for &byte in label {
            match byte {
                b'.' | b' ' | b'\'' | b'@' | b';' | b'(' | b')' | b'"' | b'\\' => {
                    text.push('\\');
                    text.push(char::from(byte));
                }
                b'!'..=b'~' => text.push(char::from(byte)),
                _ => text.push_str(&format!("\\{byte:03}")),
            }
        }
        text.push('.');
        rest = after;
    }
    if text.is_empty() { ".".to_owned() } else { text }
}

fn read_labels(text: &str) -> Result<Vec<u8>, NameError> {
    let mut wire = Vec::with_capacity(text.len() + 2);
    let mut label = Vec::with_capacity(MAX_LABEL);
    let mut characters = text.chars();
    let mut ended_with_dot = false;
    while let Some(character) = characters.next() {
        ended_with_dot = false;
        match character {
            '.' => {
                push_label(&mut wire, &label)?;
                label.clear();
                ended_with_dot = true;
            }
            '\\' => label.push(unescape(&mut characters)?),
            c if c.is_whitespace() || c.is_control() => return Err(NameError::BadCharacter(c)),
            c => {
                let mut utf8 = [0; 4];
                label.extend_from_slice(c.encode_utf8(&mut utf8).as_bytes());
            }
        }
    }
    if !ended_with_dot {
        push_label(&mut wire, &label)?;
    }
    wire.push(0);
    if wire.len() > MAX_NAME {
        return Err(NameError::LongName);
    }
    Ok(wire)
}

fn push_label(wire: &mut Vec<u8>, label: &[u8]) -> Result<(), NameError> {
    if label.is_empty() {
        return Err(NameError::EmptyLabel);
    }
    let length = u8::try_from(label.len()).map_err(|_| NameError::LongLabel)?;
    if usize::from(length) > MAX_LABEL {
        return Err(NameError::LongLabel);
    }
    wire.push(length);
    wire.extend_from_slice(label);
    Ok(())
}

fn unescape(characters: &mut std::str::Chars<'_>) -> Result<u8, NameError> {
    let first = characters.next().ok_or(NameError::BadEscape)?;
    let Some(hundreds) = first.to_digit(10) else {
        return u8::try_from(first).map_err(|_| NameError::BadEscape);
    };
    let mut digit = || characters.next().and_then(|c| c.to_digit(10)).ok_or(NameError::BadEscape);
    let value = hundreds * 100 + digit()? * 10 + digit()?;
    u8::try_from(value).map_err(|_| NameError::BadEscape)
}

impl fmt::Display for Name {
    /// Presentation form with a trailing dot; bytes that are not plain are escaped.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_root() {
            return f.write_str(".");
        }
        for label in self.labels() {
            for &byte in label {
                match byte {
                    b'.' | b'\\' | b'"' => write!(f, "\\{}", char::from(byte))?,
                    b'!'..=b'~' => write!(f, "{}", char::from(byte))?,
                    _ => write!(f, "\\{byte:03}")?,
                }
            }
            f.write_str(".")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Name({self})")
    }
}

impl fmt::Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("a name is missing (the root is written \".\")"),
            Self::EmptyLabel => f.write_str("a label is empty (a dot in front, or two in a row)"),
            Self::LongLabel => write!(f, "a label has more than {MAX_LABEL} bytes"),
            Self::LongName => write!(f, "the name has more than {MAX_NAME} bytes"),
            Self::BadEscape => f.write_str("a backslash must be followed by one character or three digits"),
            Self::BadCharacter(c) => write!(f, "{c:?} cannot stand in a name"),
        }
    }
}

impl std::error::Error for NameError {}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    #[test]
    fn case_and_trailing_dot_do_not_count() {
        assert_eq!(name("Cluster.Local"), name("cluster.local."));
        assert_eq!(name("Cluster.Local").as_bytes(), b"\x07cluster\x05local\0");
        assert_eq!(name(".").as_bytes(), b"\0");
    }

    #[test]
    fn a_zone_holds_itself_and_what_is_below_and_nothing_else() {
        assert!(name("a.cluster.local").is_within(&name("cluster.local")));
        assert!(name("cluster.local").is_within(&name("cluster.local")));
        assert!(name("cluster.local").is_within(&Name::root()));
        assert!(!name("local").is_within(&name("cluster.local")));
        assert!(!name("acluster.local").is_within(&name("cluster.local")));
    }

    #[test]
    fn rejects_what_is_no_name() {
        let long_label = "a".repeat(64);
        let long_name = ["a".repeat(63), "b".repeat(63), "c".repeat(63), "d".repeat(62)].join(".");
        for (text, error) in [
            ("", NameError::Empty),
            ("..", NameError::EmptyLabel),
            (".a", NameError::EmptyLabel),
            ("a..b", NameError::EmptyLabel),
            (long_label.as_str(), NameError::LongLabel),
            (long_name.as_str(), NameError::LongName),
            ("a\\", NameError::BadEscape),
            ("a\\25", NameError::BadEscape),
            ("a\\256", NameError::BadEscape),
            ("a b", NameError::BadCharacter(' ')),
        ] {
            assert_eq!(text.parse::<Name>(), Err(error), "{text:?}");
        }
    }

    #[test]
    fn text_keeps_case_and_reads_back() {
        for (text, shown) in [
            (".", "."),
            ("Www.Example.com", "Www.Example.com."),
            ("a\\.b.c", "a\\.b.c."),
            ("a\\032b", "a\\ b."),
            ("\\001\\255", "\\001\\255."),
        ] {
            let wire = wire_name(text).unwrap();
            assert_eq!(name_text(&wire), shown);
            assert_eq!(wire_name(shown.replace("\\ ", "\\032").as_str()).unwrap(), wire);
        }
        assert_eq!(name_text(b"\x01a\0trailing"), "a.");
    }

    proptest! {
        #[test]
        fn what_is_shown_reads_back(labels in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..20), 0..8)) {
            let mut wire = Vec::new();
            for label in &labels {
                wire.push(u8::try_from(label.len()).unwrap());
                wire.extend_from_slice(label);
            }
            wire.push(0);
            let name = Name::from_wire(&wire).unwrap();
            prop_assert_eq!(name.to_string().parse::<Name>().unwrap(), name);
        }

        #[test]
        fn no_bytes_and_no_text_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), text in ".{0,300}") {
            drop(Name::from_wire(&bytes));
            drop(text.parse::<Name>());
        }
    }
}
